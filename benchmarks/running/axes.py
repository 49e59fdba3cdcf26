"""The axes of a suite: what each label changes in an experiment, and which combinations are left out and why."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metarl import config
from metarl.component import overlay
from metarl.errors import ConfigError, nearest

OF_THE_SUITE = ("name", "seeds")  # keys of an experiment that no axis sets
FRAGMENT = tuple(key for key in config.TOP_LEVEL if key not in OF_THE_SUITE)


@dataclass(frozen=True)
class Fragment:
    """Keys of an experiment, overlaid."""

    keys: Mapping[str, Any]

    def __call__(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        return overlay(raw, self.keys)


@dataclass(frozen=True)
class Setting:
    """One dotted key, set; a number in it counts the entries of a list, as in `objective.1.degree`."""

    key: str
    value: Any

    def __call__(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """Raises ConfigError where the key does not lead to a setting."""
        first, *rest = self.key.split(".")
        if rest and isinstance(raw.get(first), list):
            return {**raw, first: self._within(raw[first], rest, first)}
        nested = self.value
        for part in reversed(rest):
            nested = {part: nested}
        return overlay(raw, {first: nested})

    def _within(self, entries: list[Any], rest: Sequence[str], above: str) -> list[Any]:
        index, *inner = rest
        if not index.isdigit() or int(index) >= len(entries) or not inner:
            raise ConfigError(
                f"{self.key}: {above} is a list of {len(entries)} there; say which, as in {above}.0.{rest[-1]}"
            )
        entry = entries[int(index)]
        entry = {"name": entry} if isinstance(entry, str) else entry
        changed = Setting(".".join(inner), self.value)(entry)
        return [*entries[: int(index)], changed, *entries[int(index) + 1 :]]


Change = Fragment | Setting


@dataclass(frozen=True)
class Excluded:
    """A combination that is not run.

    Attributes:
        labels: on every axis.
        reason: as the suite gives it.
        title: its labels in one line, for people.
    """

    labels: Mapping[str, str]
    reason: str
    title: str


@dataclass(frozen=True)
class Exclusion:
    """An entry of `exclude`: the labels that it names, per axis; any label on the other axes."""

    labels: Mapping[str, tuple[str, ...]]
    reason: str

    def covers(self, labels: Mapping[str, str]) -> bool:
        """Whether a combination is among those that it leaves out."""
        return all(labels[axis] in named for axis, named in self.labels.items())


def slugged(label: str) -> str:
    """A label as part of a file name: lower case, and `-` for whatever is no letter, digit or underscore."""
    signed = re.sub(r"(?<![\w.])-(?=[\d.])", "minus", label)  # so that -1 and 1 differ
    return re.sub(r"[^a-z0-9_]+", "-", signed.lower()).strip("-")


def titled(labels: Mapping[str, str], axes: Mapping[str, Mapping[str, Change]]) -> str:
    """Labels in one line; those of an axis of values with the last part of its key, as in `degree=0.1`."""
    keys = {axis: change.key for axis in axes if isinstance(change := next(iter(axes[axis].values())), Setting)}
    ends = {axis: key.rpartition(".")[2] for axis, key in keys.items()}
    names = {axis: end if list(ends.values()).count(end) == 1 else keys[axis] for axis, end in ends.items()}
    return " · ".join(f"{names[axis]}={label}" if axis in names else label for axis, label in labels.items())


def product(axes: Mapping[str, Mapping[str, Change]]) -> Iterator[tuple[dict[str, str], list[Change]]]:
    """Every combination: its labels by axis, and what they change, in the order of the axes."""
    for choice in itertools.product(*(changes.items() for changes in axes.values())):
        yield dict(zip(axes, (label for label, _ in choice), strict=True)), [change for _, change in choice]


def read_axes(node: Any, path: Path, key: str = "axes") -> dict[str, dict[str, Change]]:
    """Axes as a suite writes them.

    An axis is a mapping of labels to fragments of an experiment; or a list of values, where the axis is named after a
    dotted key; or `{key: <dotted key>, values: [...]}`. The labels of values are the values.

    Raises:
        ConfigError: names the file, the axis and the label.
    """
    result: dict[str, dict[str, Change]] = {}
    for axis, choices in mapping(node, path, key).items():
        where = f"{key}.{axis}"
        if isinstance(choices, Mapping) and isinstance(choices.get("key"), str):
            if set(choices) != {"key", "values"} or not isinstance(choices["values"], list):
                raise ConfigError(f"{path}: {where} must be {{key: ..., values: [...]}}, not {choices!r}")
            changes = _settings(choices["key"], choices["values"], path, where)
        elif isinstance(choices, list):
            changes = _settings(str(axis), choices, path, where)
        elif choices is not None and not isinstance(choices, Mapping):
            raise ConfigError(
                f"{path}: {where} must be a mapping of labels or a list of values, not {choices!r}; write [{choices}]"
            )
        else:
            changes = _fragments(choices, path, where)
        if not changes:
            raise ConfigError(f"{path}: {where} has no labels; give each a fragment of an experiment")
        result[str(axis)] = changes
    return result


def read_exclude(node: Any, axes: Mapping[str, Mapping[str, Change]], path: Path, key: str) -> list[Exclusion]:
    """`exclude` as a suite writes it, every axis and label of it known.

    Raises:
        ConfigError: names the file, the entry, and the label or the key that is wrong.
    """
    if node is None:
        return []
    if not isinstance(node, list):
        raise ConfigError(f"{path}: {key} must be a list of {{labels: {{axis: label}}, reason: ...}}, not {node!r}")
    found = []
    for i, entry in enumerate(node):
        where = f"{key}[{i}]"
        entry = mapping(entry, path, where)
        check_keys(entry, ("labels", "reason"), path, where)
        labels = mapping(entry.get("labels"), path, f"{where}.labels")
        if not labels:
            raise ConfigError(f"{path}: {where} has no labels; add, for example, 'labels: {{{next(iter(axes))}: ...}}'")
        reason = entry.get("reason")
        if not isinstance(reason, str) or not reason.strip():
            raise ConfigError(f"{path}: {where} has no reason; say in 'reason' why this combination is not run")
        named = {str(axis): _known(value, str(axis), axes, path, where) for axis, value in labels.items()}
        found.append(Exclusion(named, " ".join(reason.split())))
    return found


def overlaid(
    given: Mapping[str, Any],
    labels: Mapping[str, str],
    axes: Mapping[str, Mapping[str, Change]],
    exclusions: Sequence[Exclusion],
    where: str,
) -> dict[str, str]:
    """A cell's labels with those that are given in their places: another cell.

    Raises:
        ConfigError: there is no such axis or label, or it is the cell itself or one that is left out.
    """
    found = dict(labels)
    for key, value in given.items():
        axis, label = str(key), _label(value)
        if axis not in axes:
            raise ConfigError(f"{where}: there is no axis {axis!r}.{nearest(axis, axes)}")
        if label not in axes[axis]:
            raise ConfigError(f"{where}: axis {axis!r} has no label {label!r}.{nearest(label, axes[axis])}")
        found[axis] = label
    if found == labels:
        raise ConfigError(
            f"{where}: this is the cell itself; name the label of another, or set 'init: null' on this one's label"
        )
    if out := next((one for one in exclusions if one.covers(found)), None):
        raise ConfigError(
            f"{where}: cell {titled(found, axes)!r} is excluded ({out.reason}); name another, or exclude this one too"
        )
    return found


def check_keys(node: Mapping[str, Any], known: Sequence[str], path: Path, key: str) -> None:
    """Raises ConfigError for a key that is not known, with the nearest that is."""
    for name in node:
        if name in OF_THE_SUITE and name not in known:
            raise ConfigError(f"{path}: {key}: {name!r} belongs to the whole suite; move it to the top of the file")
        if name not in known:
            raise ConfigError(f"{path}: {key}: unknown key {name!r}.{nearest(str(name), known)}")


def mapping(node: Any, path: Path, key: str) -> dict[str, Any]:
    """A mapping, empty for None; raises ConfigError for anything else."""
    if node is None:
        return {}
    if not isinstance(node, dict):
        raise ConfigError(f"{path}: {key} must be a mapping, not {node!r}")
    return node


def _known(value: Any, axis: str, axes: Mapping[str, Mapping[str, Change]], path: Path, where: str) -> tuple[str, ...]:
    if axis not in axes:
        raise ConfigError(f"{path}: {where}: there is no axis {axis!r}.{nearest(axis, axes)}")
    labels = tuple(_label(entry) for entry in (value if isinstance(value, list) else [value]))
    for label in labels:
        if label not in axes[axis]:
            raise ConfigError(f"{path}: {where}: axis {axis!r} has no label {label!r}.{nearest(label, axes[axis])}")
    return labels


def _fragments(node: Any, path: Path, where: str) -> dict[str, Change]:
    found: dict[str, Change] = {}
    for label, fragment in mapping(node, path, where).items():
        if not slugged(str(label)):
            raise ConfigError(f"{path}: {where}: label {label!r} needs a letter or a digit")
        fragment = mapping(fragment, path, f"{where}.{label}")
        check_keys(fragment, FRAGMENT, path, f"{where}.{label}")
        found[_label(label)] = Fragment(fragment)
    return found


def _settings(key: str, values: Sequence[Any], path: Path, where: str) -> dict[str, Change]:
    check_keys({key.partition(".")[0]: None}, FRAGMENT, path, where)
    found: dict[str, Change] = {}
    for value in values:
        label = _label(value)
        if not slugged(label) or label in found:
            fault = "is there twice" if label in found else "needs a letter or a digit to be named after"
            raise ConfigError(f"{path}: {where}: value {value!r} {fault}; write labels and fragments instead")
        found[label] = Setting(key, value)
    return found


def _label(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
