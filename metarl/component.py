"""Components: frozen dataclasses, or functions with annotated arguments, built from checked settings.

A field that holds another component says so with `option(..., group=...)`.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException
from torch import Tensor
from torchopt.base import GradientTransformation

from metarl import registry
from metarl.errors import ConfigError, nearest


def option(
    default: Any = MISSING,
    help: str = "",
    *,
    factory: Any = MISSING,
    group: str | None = None,
    least: float | None = None,
    most: float | None = None,
) -> Any:
    """A dataclass field with its help text beside it.

    Args:
        default: the default value.
        help: one line for `metarl list NAME`.
        factory: makes the default, where it is mutable or a component.
        group: the entry-point group, where the field holds a component (`metarl.optimizers`).
        least, most: the smallest and the largest number allowed, of every entry where the field holds several.
    """
    metadata = {"help": help} | {k: v for k, v in (("group", group), ("least", least), ("most", most)) if v is not None}
    if factory is not MISSING:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


def component(
    group: str, node: Any, where: str, key: str, folder: Path | None = None, default: Any = None
) -> tuple[Any, dict[str, Any]]:
    """A component and its resolved plain form from `{name: ..., preset: ..., setting: value}` or just its name.

    Raises:
        ConfigError: an unknown name, preset or setting, or a value of the wrong type.
    """
    kind = registry.GROUPS[group]
    node = {"name": node} if isinstance(node, str) else node
    if not isinstance(node, Mapping):
        raise ConfigError(f"{where}: {key} must be a mapping such as {{name: ...}}, not {node!r}")
    settings = dict(node)
    name = settings.pop("name", None) or (default or {}).get("name")
    if not isinstance(name, str):
        raise ConfigError(f"{where}: {key} has no name. Known: {', '.join(registry.names(group))}.")
    if default and default["name"] == name:
        settings = {**{k: v for k, v in default.items() if k != "name"}, **settings}
    try:
        target = registry.resolve(group, name, folder=folder)
    except ConfigError as error:
        raise ConfigError(f"{where}: {key}.name: {error}") from error.__cause__
    preset = settings.pop("preset", None)
    if preset is not None:
        presets = getattr(target, "presets", {})
        if not isinstance(preset, str) or preset not in presets:
            raise ConfigError(
                f"{where}: {key}.preset: {kind} {name!r} has no preset {preset!r}.{nearest(str(preset), presets)}"
            )
        settings = overlay(presets[preset], settings)
    schema = schema_of(target)
    nested: dict[str, tuple[Any, Any]] = {}
    for f in dataclasses.fields(schema):
        if "group" in f.metadata:
            inner_default = plain_component(_default(f))
            if _default(f) is MISSING and f.name not in settings:
                raise ConfigError(f"{where}: '{key}.{f.name}' is missing")
            value = settings.pop(f.name, inner_default)
            if value is None:
                nested[f.name] = (None, None)
            else:
                nested[f.name] = component(f.metadata["group"], value, where, f"{key}.{f.name}", folder, inner_default)
    plain = merge(schema, settings, where, key, without=tuple(nested))
    arguments = _objects(schema, plain) | {k: obj for k, (obj, _) in nested.items()}
    try:
        built = target(**arguments)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where}: {key}: {error}") from error
    return built, {"name": name, **plain, **{k: p for k, (_, p) in nested.items()}}


def schema_of(target: Any) -> type:
    """The dataclass of a component's settings: itself, or one made from a function's signature."""
    if dataclasses.is_dataclass(target):
        return typing.cast(type, target)
    hints = typing.get_type_hints(target)
    fields = []
    for parameter in inspect.signature(target).parameters.values():
        hint = hints.get(parameter.name, Any)
        kinds = [t for t in typing.get_args(hint) if t is not Tensor]
        hint = kinds[0] if len(kinds) == 1 and Tensor in typing.get_args(hint) else hint
        default = MISSING if parameter.default is inspect.Parameter.empty else parameter.default
        wraps = isinstance(hint, type) and issubclass(hint, GradientTransformation)
        fields.append((parameter.name, hint, option(default, group="metarl.optimizers" if wraps else None)))
    fields.sort(key=lambda f: f[2].default is not MISSING)
    return dataclasses.make_dataclass(target.__name__, fields)


def plain_component(built: Any) -> dict[str, Any] | None:
    """The plain form of a built optimiser; None for None, or where there is no default."""
    if built is None or built is MISSING:
        return None
    settings = {k: plain_component(v) if isinstance(v, GradientTransformation) else v for k, v in built.hparams.items()}
    return {"name": built.name, **settings}


def describe(target: Callable) -> list[tuple[str, str, str]]:
    """(setting, default, help) of every setting of a component; help from beside the field, or from the docstring."""
    documented = _documented(target)
    rows = []
    for f in dataclasses.fields(schema_of(target)):
        default = _default(f)
        text = f.metadata.get("help") or documented.get(f.name, "")
        rows.append((f.name, "required" if default is MISSING else str(default), text))
    return rows


def _documented(target: Any) -> dict[str, str]:
    """What a docstring, or those of the base classes, says under `Attributes:` or `Args:`."""
    found: dict[str, str] = {}
    for source in reversed(target.__mro__ if isinstance(target, type) else (target,)):
        text = inspect.cleandoc(source.__doc__ or "")
        section = re.search(r"^(?:Attributes|Args):\n((?: {4}.*\n?|\n)+)", text, re.MULTILINE)
        entries = re.split(r"^ {4}(?=\S)", section[1], flags=re.MULTILINE)[1:] if section else []
        for names, _, said in (entry.partition(":") for entry in entries):
            found |= {name.strip(): " ".join(said.split()) for name in names.split(",")}
    return found


def _default(f: dataclasses.Field) -> Any:
    return f.default_factory() if f.default_factory is not MISSING else f.default


def merge(schema: type, node: Any, where: str, key: str, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """`node` merged into a dataclass schema, as plain data."""
    prefix = f"{key}." if key else ""
    if node is None:
        node = {}
    if not isinstance(node, Mapping):
        raise ConfigError(f"{where}: {key} must be a mapping of settings, not {node!r}")
    hints = typing.get_type_hints(schema)
    kept = [f for f in dataclasses.fields(schema) if f.name not in without]
    known = [f.name for f in dataclasses.fields(schema)]
    for name in node:
        if name not in known:
            raise ConfigError(f"{where}: unknown key '{prefix}{name}'.{nearest(str(name), known)}")
    missing = [f.name for f in kept if _default(f) is MISSING and f.name not in node]
    if missing:
        raise ConfigError(f"{where}: '{prefix}{missing[0]}' is missing")
    ordered = sorted(kept, key=lambda f: _default(f) is not MISSING)
    fields = [(f.name, hints[f.name], _again(f)) for f in ordered]
    structured = OmegaConf.structured(dataclasses.make_dataclass(schema.__name__, fields))
    try:
        merged = OmegaConf.merge(structured, OmegaConf.create(dict(node)))
        plain = typing.cast(dict, OmegaConf.to_container(merged, resolve=True, throw_on_missing=True))
    except ConfigKeyError as error:
        raise ConfigError(f"{where}: unknown key '{prefix}{error.full_key}'.{_suggestion(error)}") from error
    except OmegaConfBaseException as error:
        if error.full_key:
            raise ConfigError(f"{where}: {prefix}{error.full_key}: {first_line(error)}") from error
        # Of what lies inside a setting OmegaConf does not say where it is.
        name = next((str(k) for k, v in node.items() if not _fits(structured, k, v)), "")
        hint = str(hints[name]) if typing.get_origin(hints[name]) else hints[name].__name__
        raise ConfigError(f"{where}: {prefix}{name}: {node[name]!r} is not of the type {hint}") from error
    _check_range(schema, plain, where, prefix)
    return plain


def _fits(structured: Any, key: Any, value: Any) -> bool:
    try:
        OmegaConf.merge(structured, OmegaConf.create({key: value}))
    except OmegaConfBaseException:
        return False
    return True


def _check_range(schema: type, plain: Mapping[str, Any], where: str, prefix: str) -> None:
    hints = typing.get_type_hints(schema)
    for f in dataclasses.fields(schema):
        value, hint = plain.get(f.name), _given(hints[f.name])
        if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
            _check_range(typing.cast(type, hint), value, where, f"{prefix}{f.name}.")
        least, most = f.metadata.get("least"), f.metadata.get("most")
        values = [v for v in (value if isinstance(value, list | tuple) else [value]) if v is not None]
        if least is not None and any(not v >= least for v in values):
            raise ConfigError(f"{where}: {prefix}{f.name} must be at least {least}, not {value}")
        if most is not None and any(not v <= most for v in values):
            raise ConfigError(f"{where}: {prefix}{f.name} must be at most {most}, not {value}")


def _given(hint: Any) -> Any:
    """`X` of `X | None`; any other hint as it is."""
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    optional = type(None) in typing.get_args(hint) and len(kinds) == 1
    return kinds[0] if optional else hint


def _again(f: dataclasses.Field) -> Any:
    if f.default_factory is not MISSING:
        return field(default_factory=f.default_factory)
    return field() if f.default is MISSING else field(default=f.default)


def _objects(schema: type, plain: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data with nested dataclasses and tuples made again."""
    hints = typing.get_type_hints(schema)

    def made(hint: Any, value: Any) -> Any:
        hint = _given(hint)
        if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
            return typing.cast(type, hint)(**_objects(typing.cast(type, hint), value))
        return tuple(value) if typing.get_origin(hint) is tuple and value is not None else value

    return {name: made(hints[name], value) for name, value in plain.items()}


def overlay(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` merged into `under`, key by key; a component of another `name` replaces the one below it whole.

    A component may be given as just its name on either side.
    """
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(below, str) and isinstance(value, Mapping) and key in ("algorithm", "objective"):
            below = {"name": below}
        elif isinstance(value, str) and isinstance(below, Mapping) and "name" in below:
            value = {"name": value}
        if isinstance(value, Mapping) and isinstance(below, Mapping) and not _renamed(below, value):
            merged[key] = overlay(below, value)
        else:
            merged[key] = value
    return merged


def _renamed(below: Mapping[str, Any], above: Mapping[str, Any]) -> bool:
    return "name" in above and above["name"] != below.get("name", above["name"])


def first_line(error: Exception) -> str:
    return " ".join(str(error).split("\n")[0].split()) or type(error).__name__


def _suggestion(error: Exception) -> str:
    text = first_line(error)
    return f" Did you mean {text.split('Did you mean:')[1].strip()}" if "Did you mean:" in text else ""
