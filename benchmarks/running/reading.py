"""A suite's YAML file and the arguments after it, read as plain data; every mistake named with its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from benchmarks.running.axes import check_keys, mapping
from metarl import config
from metarl.component import first_line, overlay
from metarl.errors import ConfigError, nearest

KEYS = ("name", "base", "axes", "seeds", "overrides", "exclude", "small")
OF_SMALL = ("base", "axes", "seeds", "exclude")


def read(path: Path) -> dict[str, Any]:
    """A file's content, a mapping.

    Raises:
        ConfigError: names the file, and the line and column where it is no YAML.
    """
    try:
        raw = OmegaConf.to_container(OmegaConf.load(path))
    except FileNotFoundError:
        raise ConfigError(f"there is no file {path}") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path} is not readable YAML: {fault(error)}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: a suite is a mapping of the keys {', '.join(KEYS)}; an axis, one of labels")
    return raw  # type: ignore[return-value]


def base_of(raw: Mapping[str, Any], path: Path, key: str) -> dict[str, Any]:
    """The experiment under `base`, or that of the file which it names."""
    base = raw.get("base")
    if isinstance(base, str):
        return config.read(path.parent / base, resolve=False)  # what an axis sets may be meant
    base = mapping(base, path, key)
    check_keys(base, config.TOP_LEVEL, path, key)
    return base


def with_files(node: Any, path: Path, key: str) -> dict[str, Any]:
    """Axes, those that name a file replaced by what stands in it."""
    axes = mapping(node, path, key)
    return {str(axis): read(path.parent / value) if isinstance(value, str) else value for axis, value in axes.items()}


def small_of(raw: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What stands under `small`."""
    over = mapping(raw.get("small"), path, "small")
    if not over:
        raise ConfigError(f"{path}: this suite has no small form; add, for example, 'small: {{base: {{steps: 500}}}}'")
    check_keys(over, OF_SMALL, path, "small")
    return over


def seeds_of(value: Any, path: Path) -> tuple[int, ...]:
    """A seed, or a list of them."""
    seeds = value if isinstance(value, list) else [value]
    sound = all(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in seeds)
    if not seeds or not sound or len(set(seeds)) < len(seeds):
        raise ConfigError(f"{path}: seeds must be different whole numbers from 0 up, such as [0, 1], not {value!r}")
    return tuple(seeds)


def dotlist(overrides: Sequence[str]) -> dict[str, Any]:
    """Arguments of the form key=value as one mapping."""
    result: dict[str, Any] = {}
    for text in overrides:
        key, equals, _ = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"argument {text!r} is not of the form key=value")
        try:
            plain = OmegaConf.to_container(OmegaConf.from_dotlist([text]), resolve=True)
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            raise ConfigError(f"argument {text!r}: {fault(error)}") from error
        assert isinstance(plain, dict)
        top = key.partition(".")[0]
        if top not in config.TOP_LEVEL:
            raise ConfigError(f"argument {text!r}: unknown key {top!r}.{nearest(top, config.TOP_LEVEL)}")
        result = overlay(result, plain)  # type: ignore[arg-type]
    return result


def fault(error: Exception) -> str:
    """What is wrong in a text, in one line, with its line and column where YAML tells them."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark:
        mark = error.problem_mark
        return f"{error.problem} in line {mark.line + 1}, column {mark.column + 1}"
    if isinstance(error, yaml.reader.ReaderError):
        return " ".join(str(error).split())
    return first_line(error)
