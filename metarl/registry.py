"""Names in YAML to Python objects: entry points, or `module:Class` for a file beside the YAML."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from metarl.errors import ConfigError, nearest

GROUPS = {
    "metarl.algorithms": "algorithm",
    "metarl.objectives": "objective",
    "metarl.estimators": "estimator",
    "metarl.optimizers": "optimizer",
    "metarl.recipes": "recipe",
    "metarl.problems": "problem",
    "metarl.commands": "command",
}


@cache
def _entry_points(group: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=group)}


def names(group: str) -> list[str]:
    """The registered names of a group, sorted."""
    return sorted(_entry_points(group))


def resolve(group: str, name: str, *, folder: Path | None = None) -> Any:
    """The object registered as `name` in an entry-point group, or the one that `module:Class` names.

    Args:
        group: an entry-point group such as `metarl.objectives`.
        name: a registered name, or `module:Class`; `module` is first looked for as `folder/module.py`.
        folder: where the YAML file lies.

    Raises:
        ConfigError: nothing has that name, or importing it fails.
    """
    kind = GROUPS.get(group, group)
    if ":" in name:
        return _from_module(kind, name, folder)
    points = _entry_points(group)
    if name not in points:
        raise ConfigError(f"there is no {kind} called {name!r}.{nearest(name, points)}")
    try:
        return points[name].load()
    except (ImportError, AttributeError) as error:
        package = getattr(points[name].dist, "name", "an unknown package")
        raise ConfigError(f"{kind} {name!r} of {package} cannot be loaded: {error}") from error


def _from_module(kind: str, name: str, folder: Path | None) -> Any:
    module_name, _, attribute = name.partition(":")
    if module_name.endswith(".py"):
        raise ConfigError(f"{kind} {name!r}: name the module, not its file: {module_name[:-3]}:{attribute}")
    try:
        module = _module_beside(module_name, folder) or importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"{kind} {name!r}: module {module_name!r} cannot be imported ({error}). Put {module_name}.py beside the "
            "YAML file (or in the current folder, where there is none), or install it."
        ) from error
    if not hasattr(module, attribute):
        public = [key for key in vars(module) if not key.startswith("_")]
        raise ConfigError(f"{kind} {name!r}: {module_name} has no {attribute!r}.{nearest(attribute, public)}")
    return getattr(module, attribute)


def _module_beside(module_name: str, folder: Path | None) -> Any:
    path = (folder or Path.cwd()) / f"{module_name}.py"
    if not path.is_file():
        return None
    unique = f"_metarl_plugin_{module_name}_{abs(hash(path.resolve()))}"
    if unique not in sys.modules:
        spec = importlib.util.spec_from_file_location(unique, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[unique] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[unique]
            raise
    return sys.modules[unique]
