"""Suites: a base experiment and axes of changes; their product, built and checked before anything runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from benchmarks.running.axes import (
    OF_THE_SUITE,
    Change,
    Excluded,
    mapping,
    overlaid,
    product,
    read_axes,
    read_exclude,
    slugged,
    titled,
)
from benchmarks.running.reading import KEYS, base_of, dotlist, read, seeds_of, small_of, with_files
from metarl import config
from metarl.component import first_line, overlay
from metarl.config import Experiment
from metarl.errors import ConfigError, nearest
from metarl.training.initial import ROOT, SEED

SHIPPED = Path(__file__).parents[1] / "suites"


@dataclass(frozen=True)
class Cell:
    """One point of the grid.

    Attributes:
        labels: the label on every axis.
        slug: names its file and its experiment.
        experiment: built, so that it is known to be sound.
        title: its labels in one line, for people.
        sources: by parameter group, the slug of the cell whose trained values it starts with.
    """

    labels: Mapping[str, str]
    slug: str
    experiment: Experiment
    title: str
    sources: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Suite:
    """A grid of experiments.

    Attributes:
        name: names the bench folder.
        path: of the YAML file.
        axes: labels of every axis, in order.
        seeds: of every cell.
        cells: the product of the axes, without the combinations that are excluded.
        excluded: those, each with its reason.
        resolved: the suite as plain data; a file with this content is the same suite.
    """

    name: str
    path: Path
    axes: Mapping[str, tuple[str, ...]]
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]
    excluded: tuple[Excluded, ...]
    resolved: Mapping[str, Any]

    def __post_init__(self) -> None:
        """Every `init` names its source's folder, whose name says how that cell came out in the end."""
        object.__setattr__(self, "cells", _linked(self.path, self.cells))


def shipped() -> list[str]:
    """The names of the suites that come with the package."""
    return sorted(file.stem for file in SHIPPED.glob("*.yaml"))


def find(name: str) -> Path:
    """The file that a path, or the name of a shipped suite, means.

    Raises:
        ConfigError: there is neither; names the nearest shipped suite.
    """
    path = Path(name)
    if path.is_file():
        return path
    if name in shipped():
        return SHIPPED / f"{name}.yaml"
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; give the suite's YAML file in it")
    if path.suffix or len(path.parts) > 1:
        raise ConfigError(f"there is no suite file {path}; shipped suites are: {', '.join(shipped())}")
    raise ConfigError(f"there is no suite called {name!r}, neither shipped nor a file.{nearest(name, shipped())}")


def load(path: Path, overrides: Sequence[str] = (), small: bool = False) -> Suite:
    """The suite of a YAML file, every cell built.

    Args:
        path: the file.
        overrides: `key=value`; `name` and `seeds` are the suite's, any other is merged over every cell.
        small: with the file's `small` laid over the rest.

    Raises:
        ConfigError: names the file, and the axis and label or the key that is wrong.
    """
    raw = read(path)
    for key in raw:
        if key not in KEYS and key in config.TOP_LEVEL:
            raise ConfigError(f"{path}: {key!r} belongs under base, or under a label of an axis")
        if key not in KEYS:
            raise ConfigError(f"{path}: unknown key {key!r}.{nearest(str(key), KEYS)}")
    base, raw_axes = base_of(raw, path, "base"), with_files(raw.get("axes"), path, "axes")
    axes = read_axes(raw_axes, path)
    if not axes:
        raise ConfigError(f"{path}: 'axes' is missing; add, for example, 'axes: {{method: {{BC: {{algorithm: bc}}}}}}'")
    exclusions = read_exclude(raw.get("exclude"), axes, path, "exclude")
    name, seeds = str(raw.get("name") or path.stem), raw.get("seeds", base.get("seeds", [0]))
    if small:
        over = small_of(raw, path)
        replacing = with_files(over.get("axes"), path, "small.axes")
        for axis in replacing:
            if axis not in axes:
                raise ConfigError(f"{path}: small.axes: there is no axis {axis!r} to replace.{nearest(axis, axes)}")
        raw_axes |= replacing
        axes |= read_axes(replacing, path, "small.axes")
        below = {} if isinstance(over.get("base"), str) else base  # a file is another base
        base = overlay(below, base_of(over, path, "small.base"))
        seeds, name = over.get("seeds", seeds), f"{name}-small"
        if "exclude" in over:  # else the suite's own, whose labels may be among those that are replaced
            exclusions = read_exclude(over["exclude"], axes, path, "small.exclude")
    over = overlay(mapping(raw.get("overrides"), path, "overrides"), dotlist(overrides))
    name, seeds = str(over.pop("name", name)), seeds_of(over.pop("seeds", seeds), path)
    fragments = [
        f for axis in raw_axes.values() if isinstance(axis, dict) for f in axis.values() if isinstance(f, dict)
    ]
    for text in overrides:
        config.check_let(text.partition("=")[0], text, str(path), base, *fragments)
    if slugged(name) != name.lower():
        raise ConfigError(f"{path}: name {name!r} names a folder; use letters, digits, '-' and '_' only")
    base = {key: value for key, value in base.items() if key not in OF_THE_SUITE}
    cells: dict[str, Cell] = {}
    excluded = []
    for labels, changes in product(axes):
        found = next((one for one in exclusions if one.covers(labels)), None)
        if found:
            excluded.append(Excluded(labels, found.reason, titled(labels, axes)))
            continue
        slug, title = _slug(labels), titled(labels, axes)
        if slug in cells:
            raise ConfigError(
                f"{path}: cells {cells[slug].title!r} and {title!r} would share the file name "
                f"{slug}; make the labels differ in a letter or a digit"
            )
        last = {**over, "name": slug, "seeds": list(seeds)}
        where = f"{path} ({', '.join(f'{axis} {label!r}' for axis, label in labels.items())})"
        whole = _whole(where, base, changes, last)
        sources = {}
        for group, given in _references(whole).items():
            sources[group] = _slug(overlaid(given, labels, axes, exclusions, f"{where}: init.{group}"))
            whole["init"][group] = sources[group]  # a name of its own until the cells are linked
        experiment = config.build(whole, where, path.parent)
        cells[slug] = Cell(labels, slug, experiment, title, sources)
    if not cells:
        raise ConfigError(f"{path}: every combination is excluded; take an entry out of 'exclude'")
    check_distinct(path, cells.values(), _why_equal(over))
    resolved = {"name": name, "base": base, "axes": raw_axes, "seeds": list(seeds)}
    resolved |= {"overrides": over} if over else {}
    resolved |= {"exclude": [{"labels": dict(e.labels), "reason": e.reason} for e in excluded]} if excluded else {}
    labels_of = {axis: tuple(changes) for axis, changes in axes.items()}
    return Suite(name, path, labels_of, seeds, tuple(cells.values()), tuple(excluded), resolved)


def _whole(where: str, base: Mapping[str, Any], changes: Sequence[Change], last: Mapping[str, Any]) -> dict[str, Any]:
    """A cell as plain data: the base, what its labels change, and what has the last word."""
    raw: dict[str, Any] = dict(base)
    for change in changes:
        try:
            raw = change(raw)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
    try:  # `${data.train}` means the cell's, which no axis knows by itself
        return OmegaConf.to_container(OmegaConf.create(overlay(raw, last)), resolve=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise ConfigError(f"{where}: {first_line(error)}") from error


def _references(whole: Mapping[str, Any]) -> dict[str, Any]:
    """By parameter group, the labels of the cell that it starts with; paths are left out."""
    init = whole.get("init")
    return {k: v for k, v in init.items() if isinstance(v, Mapping)} if isinstance(init, Mapping) else {}


def _linked(path: Path, cells: Iterable[Cell]) -> tuple[Cell, ...]:
    """The cells, their `init` with the folders of the cells that they start with.

    Raises:
        ConfigError: cells start with each other.
    """
    known = {cell.slug: cell for cell in cells}
    done: dict[str, Cell] = {}

    def link(slug: str, above: tuple[str, ...] = ()) -> Cell:
        if slug in above:
            circle = ", ".join(repr(known[one].title) for one in above[above.index(slug) :])
            raise ConfigError(
                f"{path}: cells {circle} start with each other in a circle; set 'init: null' on the label of the one "
                "that is to be trained first"
            )
        if slug not in done:
            cell = known[slug]
            folders = {g: link(source, (*above, slug)).experiment.folder for g, source in cell.sources.items()}
            done[slug] = replace(cell, experiment=_starting(cell.experiment, folders)) if folders else cell
        return done[slug]

    return tuple(link(slug) for slug in known)


def _starting(experiment: Experiment, folders: Mapping[str, str]) -> Experiment:
    """An experiment whose groups start with those of other experiments of its bench folder."""
    init = {**experiment.init, **{group: f"{ROOT}/{folder}/{SEED}" for group, folder in folders.items()}}
    return replace(experiment, init=init, resolved={**experiment.resolved, "init": init})


def check_distinct(path: Path, cells: Iterable[Cell], why: str) -> None:
    """Equal cells would be one experiment under two names, which is never what two labels mean.

    Args:
        path: of the suite.
        cells: all of them.
        why: how two may have become equal, and what to do.

    Raises:
        ConfigError: two of them are equal.
    """
    known: dict[str, Cell] = {}
    for cell in cells:
        same = known.setdefault(json.dumps({**cell.experiment.resolved, "name": None}, sort_keys=True), cell)
        if same is not cell:
            raise ConfigError(
                f"{path}: cells {same.title!r} and {cell.title!r} are the same experiment; {why}, or leave one of the "
                "cells out with 'exclude'"
            )


def _why_equal(over: Mapping[str, Any]) -> str:
    order = "where two axes set one key the later one has the last word, so change their order"
    if not over:
        return order
    return f"what is given for every cell ({', '.join(over)}) has the last word, so leave that to the axes; {order}"


def _slug(labels: Mapping[str, str]) -> str:
    return "--".join(slugged(label) for label in labels.values())
