"""Results: run folders read back, and what is said of them, each number defined once here.

The score of a run is the mean over its last evaluations (ten, or fewer where there are fewer; never the one before
the first step) of the mean raw return. A cell is the mean over its finished seeds, with the standard deviation over
seeds (ddof = 1) beside it.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from benchmarks.running.folder import BenchFolder
from metarl.errors import UserError
from metarl.training.folder import RunFolder

LAST = 10  # evaluations that a score averages


class ResultError(UserError):
    """A run folder whose files cannot be read."""


@dataclass(frozen=True)
class Evaluation:
    """One evaluation.

    Attributes:
        step: gradient steps taken before it.
        mean: of its episodes' raw undiscounted returns.
    """

    step: int
    mean: float


@dataclass(frozen=True)
class Series:
    """A logged scalar over gradient steps."""

    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Run:
    """One seed of one experiment, as its folder tells.

    Attributes:
        folder: where it lies.
        seed: of the run.
        steps: gradient steps on record.
        finished: whether result.json records all that its configuration asks for.
        evaluations: in the order of steps, the one before the first step included.
        scalars: metrics.csv by metric.
        probes: rows of probes.jsonl by probe, in the order of steps.
        data: dataset cards by role; empty until the run has finished once.
        environment: versions and machine of the last start; empty until the run has finished once.
        config: resolved.
    """

    folder: Path
    seed: int
    steps: int
    finished: bool
    evaluations: tuple[Evaluation, ...]
    scalars: Mapping[str, Series]
    probes: Mapping[str, tuple[Mapping[str, Any], ...]]
    data: Mapping[str, Mapping[str, Any]]
    environment: Mapping[str, str]
    config: Mapping[str, Any]

    @property
    def trained(self) -> tuple[Evaluation, ...]:
        """Evaluations after step 0."""
        return tuple(e for e in self.evaluations if e.step > 0)

    @property
    def score(self) -> float | None:
        """Mean over the last min(10, all) evaluations after step 0; None where there is none."""
        means = [e.mean for e in self.trained[-LAST:]]
        return float(np.mean(means)) if means else None

    @property
    def best(self) -> float | None:
        """The largest evaluation after step 0: optimistic, since it is chosen on the evaluations themselves."""
        return max((e.mean for e in self.trained), default=None)


@dataclass(frozen=True)
class Spread:
    """Mean over seeds, standard deviation over seeds (ddof = 1; None for one seed), and their number."""

    mean: float
    sd: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """The spread of at least one value; None of none."""
        if not values:
            return None
        return cls(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None, len(values))


@dataclass(frozen=True)
class Cell:
    """All seeds of one experiment.

    Attributes:
        row, column: where it stands in the table: usually the method and the dataset.
        experiment: name of the folder that holds the seeds.
        seeds: that were planned.
        steps: that were planned.
        runs: that exist, by seed.
        config: resolved; None where nothing has started.
    """

    row: str
    column: str
    experiment: str
    seeds: tuple[int, ...]
    steps: int
    runs: tuple[Run, ...]

    @property
    def config(self) -> Mapping[str, Any] | None:
        return self.runs[0].config if self.runs else None

    @property
    def finished(self) -> tuple[Run, ...]:
        """Runs with all their steps; only these are counted."""
        return tuple(run for run in self.runs if run.finished)

    @property
    def last(self) -> Spread | None:
        """The score, over finished seeds."""
        return Spread.of([run.score for run in self.finished if run.score is not None])

    @property
    def best(self) -> Spread | None:
        """The best evaluation of each seed, over finished seeds."""
        return Spread.of([run.best for run in self.finished if run.best is not None])


@dataclass(frozen=True)
class Results:
    """A bench folder, or a folder of runs, read back.

    Attributes:
        name: of the suite or the folder.
        row_title, column_title: names of the axes.
        rows, columns: labels in order.
        cells: in the order of the plan.
        notes: what a reader must know: unfinished or unreadable runs, unlike lengths.
    """

    name: str
    row_title: str
    column_title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[Cell, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def environments(self) -> tuple[Mapping[str, str], ...]:
        """Versions and machines that the finished runs were made with, each once."""
        runs = [run for cell in self.cells for run in cell.finished]
        return tuple({tuple(run.environment.items()): run.environment for run in runs}.values())

    def at(self, row: str, column: str) -> Cell | None:
        """The cell of a row and a column."""
        return next((cell for cell in self.cells if (cell.row, cell.column) == (row, column)), None)

    @property
    def finished(self) -> int:
        """The number of finished runs."""
        return sum(len(cell.finished) for cell in self.cells)

    @property
    def fewest(self) -> int:
        """The smallest number of finished seeds of any cell."""
        return min((len(cell.finished) for cell in self.cells), default=0)


# -- reading ---------------------------------------------------------------------------------------------------


def load(path: Path) -> Results:
    """The results in a bench folder, a folder of runs, or one run's folder.

    Raises:
        UserError: there is no run.
    """
    if not path.is_dir():
        raise UserError(f"there is no folder {path}; name a bench folder such as runs/demo")
    bench = BenchFolder(path)
    results = _of_bench(bench) if bench.index.is_file() else _of_folder(path)
    if not any(cell.runs for cell in results.cells):
        raise UserError(f"{path} holds no run yet; start some with `metarl bench` or `metarl train`")
    return results


def read_run(path: Path, steps: int | None = None) -> Run:
    """One run's folder; `steps` is what it should reach, by default what its config.yaml says.

    Raises:
        ResultError: a file is missing or unreadable; names it.
    """
    folder = RunFolder(path)
    config = _yaml(folder.config)
    scalars = _scalars(folder.metrics)
    result = _json(folder.result) if folder.result.is_file() else None
    if result is not None:
        try:
            taken, data, environment = int(result["steps"]), dict(result["data"]), dict(result["environment"])
            evaluations = tuple(Evaluation(int(e["step"]), float(np.mean(e["returns"]))) for e in result["evaluations"])
        except (KeyError, TypeError, ValueError) as error:
            raise ResultError(f"{folder.result} is not a run's result ({error!r}); train the run again") from error
    else:
        returns = scalars.get("evaluation/return", Series((), ()))
        evaluations = tuple(Evaluation(*pair) for pair in zip(returns.steps, returns.values, strict=True))
        taken, data = max((series.steps[-1] for series in scalars.values()), default=0), {}
        environment = {}
    planned = int(config["steps"]) if steps is None else steps
    return Run(
        folder=path,
        seed=folder.seed,
        steps=taken,
        finished=result is not None and taken >= planned,
        evaluations=evaluations,
        scalars=scalars,
        probes=_probes(folder.probes),
        data=data,
        environment=environment,
        config=config,
    )


def _of_bench(bench: BenchFolder) -> Results:
    index = bench.read_index()
    axes: Mapping[str, Sequence[str]] = index["axes"]
    column_axis = "dataset" if "dataset" in axes and len(axes) > 1 else (list(axes)[-1] if len(axes) > 1 else None)
    row_axes = [axis for axis in axes if axis != column_axis]
    notes: list[str] = []
    cells = []
    for entry in index["cells"]:
        labels = entry["labels"]
        row = " · ".join(labels[axis] for axis in row_axes)
        column = labels[column_axis] if column_axis else "return"
        seeds = tuple(index["seeds"])
        folders = [bench.path / entry["experiment"] / str(seed) for seed in seeds]
        runs = tuple(_readable(folders, entry["steps"], notes))
        cells.append(Cell(row, column, entry["experiment"], seeds, entry["steps"], runs))
    titles = (" · ".join(row_axes), column_axis or "")
    return _results(index["name"], titles, cells, notes)


def _of_folder(path: Path) -> Results:
    found = sorted(file.parent for depth in ("", "*/", "*/*/") for file in path.glob(f"{depth}config.yaml"))
    notes: list[str] = []
    by_experiment: dict[str, list[Run]] = {}
    for run in _readable([folder for folder in found if folder.name.isdigit()], None, notes):
        by_experiment.setdefault(run.folder.parent.name, []).append(run)
    labels = {name: (_method(runs[0].config), _dataset(runs[0].config)) for name, runs in by_experiment.items()}
    cells = []
    for name, runs in by_experiment.items():
        row, column = labels[name]
        unique = list(labels.values()).count(labels[name]) == 1
        seeds = tuple(run.seed for run in runs)
        steps = max(int(run.config["steps"]) for run in runs)
        cells.append(Cell(row if unique else name, column, name, seeds, steps, tuple(runs)))
    return _results(path.resolve().name, ("method", "dataset"), cells, notes)


def _results(
    name: str,
    titles: tuple[str, str],
    cells: Sequence[Cell],
    notes: list[str],
) -> Results:
    for cell in cells:
        missing = len(cell.seeds) - len(cell.finished)
        title = f"{cell.row}, {cell.column}"
        if missing:
            reached = max((run.steps for run in cell.runs if not run.finished), default=0)
            notes.append(f"{title}: {missing} of {len(cell.seeds)} runs unfinished, the furthest at step {reached:,}")
        if len({run.steps for run in cell.finished}) > 1:
            lengths = ", ".join(f"{run.steps:,}" for run in cell.finished)
            notes.append(f"{title}: runs of unlike lengths are averaged ({lengths} steps)")
    rows, columns = (tuple(dict.fromkeys(getattr(cell, side) for cell in cells)) for side in ("row", "column"))
    return Results(name, *titles, rows, columns, tuple(cells), tuple(notes))


def _readable(folders: Sequence[Path], steps: int | None, notes: list[str]) -> Iterator[Run]:
    """The runs that exist; one that cannot be read becomes a note."""
    for folder in folders:
        if not (folder / "config.yaml").is_file():
            continue
        try:
            yield read_run(folder, steps)
        except ResultError as error:
            notes.append(str(error))


def _method(config: Mapping[str, Any]) -> str:
    names = [config["algorithm"]["name"], *(objective["name"] for objective in config["objective"])]
    return " + ".join(names)


def _dataset(config: Mapping[str, Any]) -> str:
    source = config["data"]["train"]
    return str(source.get("recipe") or source.get("minari") or "data")


def _yaml(path: Path) -> dict[str, Any]:
    try:
        value = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise ResultError(f"{path} is not readable ({type(error).__name__}); move the run away") from error
    if not isinstance(value, dict) or not {"algorithm", "objective", "data", "steps"} <= set(value):
        raise ResultError(f"{path} is not a run's configuration; move the run away")
    return value  # type: ignore[return-value]


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ResultError(f"{path} is not readable ({error}); train the run again") from error
    if not isinstance(value, dict):
        raise ResultError(f"{path} is not a run's result; train the run again")
    return value


def _scalars(path: Path) -> dict[str, Series]:
    if not path.is_file():
        return {}
    columns: dict[str, tuple[list[int], list[float]]] = {}
    with path.open(newline="") as file:
        for line in file:
            try:
                step, metric, value = next(csv.reader([line]))
                pair = int(step), float(value)
            except (ValueError, csv.Error):  # the head; the last line of a run that is being written
                continue
            steps, values = columns.setdefault(metric, ([], []))
            steps.append(pair[0])
            values.append(pair[1])
    return {metric: Series(tuple(steps), tuple(values)) for metric, (steps, values) in columns.items()}


def _probes(path: Path) -> dict[str, tuple[Mapping[str, Any], ...]]:
    if not path.is_file():
        return {}
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
            by_name.setdefault(row["probe"], []).append(row)
        except (ValueError, KeyError):  # the last line of a run that is being written
            continue
    return {name: tuple(rows) for name, rows in by_name.items()}
