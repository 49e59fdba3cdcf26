"""Suites: a base experiment and axes of fragments; their product, built and checked before anything runs."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from metarl import config
from metarl.component import first_line, overlay
from metarl.config import Experiment
from metarl.errors import ConfigError, nearest

SHIPPED = Path(__file__).parents[1] / "suites"
KEYS = ("name", "base", "axes", "seeds", "overrides")
OF_THE_SUITE = ("name", "seeds")  # keys of an experiment that a fragment cannot set


@dataclass(frozen=True)
class Cell:
    """One point of the grid.

    Attributes:
        labels: the label on every axis.
        slug: names its file and its experiment.
        experiment: built, so that it is known to be sound.
    """

    labels: Mapping[str, str]
    slug: str
    experiment: Experiment

    @property
    def title(self) -> str:
        """Its labels in one line."""
        return " · ".join(self.labels.values())


@dataclass(frozen=True)
class Suite:
    """A grid of experiments.

    Attributes:
        name: names the bench folder.
        path: of the YAML file.
        axes: labels of every axis, in order.
        seeds: of every cell.
        cells: the product of the axes.
        resolved: the suite as plain data; a file with this content is the same suite.
    """

    name: str
    path: Path
    axes: Mapping[str, tuple[str, ...]]
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]
    resolved: Mapping[str, Any]


def find(name: str) -> Path:
    """The file that a path, or the name of a shipped suite, means.

    Raises:
        ConfigError: there is neither; names the nearest shipped suite.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = sorted(file.stem for file in SHIPPED.glob("*.yaml"))
    if name in shipped:
        return SHIPPED / f"{name}.yaml"
    if path.suffix or len(path.parts) > 1:
        raise ConfigError(f"there is no suite file {path}; shipped suites are: {', '.join(shipped)}")
    raise ConfigError(f"there is no suite called {name!r}, neither shipped nor a file.{nearest(name, shipped)}")


def load(path: Path, overrides: Sequence[str] = ()) -> Suite:
    """The suite of a YAML file, every cell built.

    Args:
        path: the file.
        overrides: `key=value`; `name` and `seeds` are the suite's, any other is merged over every cell.

    Raises:
        ConfigError: names the file, and the axis and label or the key that is wrong.
    """
    raw = _read(path)
    for key in raw:
        if key not in KEYS:
            raise ConfigError(f"{path}: unknown key {key!r}.{nearest(str(key), KEYS)}")
    over = overlay(_mapping(raw.get("overrides"), path, "overrides"), _dotlist(overrides))
    base = _base(raw, path)
    name = str(over.pop("name", raw.get("name") or path.stem))
    if slugged(name) != name.lower():
        raise ConfigError(f"{path}: name {name!r} names a folder; use letters, digits, '-' and '_' only")
    seeds = _seeds(over.pop("seeds", raw.get("seeds", base.get("seeds", [0]))), path)
    base = {key: value for key, value in base.items() if key not in OF_THE_SUITE}
    axes = _axes(raw, path)
    cells = _cells(path, base, axes, over, seeds)
    resolved = {"name": name, "base": base, "axes": axes, "seeds": list(seeds)} | ({"overrides": over} if over else {})
    labels = {axis: tuple(fragments) for axis, fragments in axes.items()}
    return Suite(name, path, labels, seeds, cells, resolved)


def slugged(label: str) -> str:
    """A label as part of a file name: lower case, and `-` for whatever is no letter, digit or underscore."""
    return re.sub(r"[^a-z0-9_]+", "-", label.lower()).strip("-")


def _cells(
    path: Path,
    base: Mapping[str, Any],
    axes: Mapping[str, Mapping[str, Any]],
    over: Mapping[str, Any],
    seeds: tuple[int, ...],
) -> tuple[Cell, ...]:
    cells: dict[str, Cell] = {}
    for choice in itertools.product(*(fragments.items() for fragments in axes.values())):
        labels = dict(zip(axes, (label for label, _ in choice), strict=True))
        slug = "--".join(slugged(label) for label in labels.values())
        if slug in cells:
            raise ConfigError(
                f"{path}: cells {cells[slug].title!r} and {' · '.join(labels.values())!r} would share the file name "
                f"{slug}; make the labels differ in a letter or a digit"
            )
        raw: dict[str, Any] = dict(base)
        for _, fragment in choice:
            raw = overlay(raw, fragment)
        raw = overlay(raw, over) | {"name": slug, "seeds": list(seeds)}
        where = f"{path} ({', '.join(f'{axis} {label!r}' for axis, label in labels.items())})"
        cells[slug] = Cell(labels, slug, config.build(raw, where, path.parent))
    return tuple(cells.values())


# -- reading ---------------------------------------------------------------------------------------------------


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (yaml.YAMLError, UnicodeDecodeError, OSError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path} is not readable YAML: {first_line(error)}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: a suite is a mapping of the keys {', '.join(KEYS)}")
    return raw  # type: ignore[return-value]


def _base(raw: Mapping[str, Any], path: Path) -> dict[str, Any]:
    base = raw.get("base")
    if isinstance(base, str):
        return config.read(path.parent / base)
    base = _mapping(base, path, "base")
    _check_keys(base, config.TOP_LEVEL, path, "base")
    return base


def _axes(raw: Mapping[str, Any], path: Path) -> dict[str, dict[str, dict[str, Any]]]:
    axes = _mapping(raw.get("axes"), path, "axes")
    if not axes:
        raise ConfigError(f"{path}: 'axes' is missing; add, for example, 'axes: {{method: {{BC: {{algorithm: bc}}}}}}'")
    known = [key for key in config.TOP_LEVEL if key not in OF_THE_SUITE]
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for axis, fragments in axes.items():
        result[str(axis)] = {}
        if not _mapping(fragments, path, f"axes.{axis}"):
            raise ConfigError(f"{path}: axes.{axis} has no labels; give each a fragment of an experiment")
        for label, fragment in fragments.items():
            if not slugged(str(label)):
                raise ConfigError(f"{path}: axes.{axis}: label {label!r} needs a letter or a digit")
            fragment = _mapping(fragment, path, f"axes.{axis}.{label}")
            _check_keys(fragment, known, path, f"axes.{axis}.{label}")
            result[str(axis)][str(label)] = fragment
    return result


def _check_keys(node: Mapping[str, Any], known: Sequence[str], path: Path, key: str) -> None:
    for name in node:
        if name in OF_THE_SUITE and name not in known:
            raise ConfigError(f"{path}: {key}: {name!r} belongs to the whole suite; move it to the top of the file")
        if name not in known:
            raise ConfigError(f"{path}: {key}: unknown key {name!r}.{nearest(str(name), known)}")


def _seeds(value: Any, path: Path) -> tuple[int, ...]:
    seeds = value if isinstance(value, list) else [value]
    sound = all(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in seeds)
    if not seeds or not sound or len(set(seeds)) < len(seeds):
        raise ConfigError(f"{path}: seeds must be different whole numbers from 0 up, such as [0, 1], not {value!r}")
    return tuple(seeds)


def _dotlist(overrides: Sequence[str]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for text in overrides:
        key, equals, _ = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"argument {text!r} is not of the form key=value")
        try:
            plain = OmegaConf.to_container(OmegaConf.from_dotlist([text]), resolve=True)
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            raise ConfigError(f"argument {text!r}: {first_line(error)}") from error
        assert isinstance(plain, dict)
        top = key.partition(".")[0]
        if top not in config.TOP_LEVEL:
            raise ConfigError(f"argument {text!r}: unknown key {top!r}.{nearest(top, config.TOP_LEVEL)}")
        result = overlay(result, plain)  # type: ignore[arg-type]
    return result


def _mapping(node: Any, path: Path, key: str) -> dict[str, Any]:
    if node is None:
        return {}
    if not isinstance(node, dict):
        raise ConfigError(f"{path}: {key} must be a mapping, not {node!r}")
    return node
