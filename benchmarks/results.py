"""Results: runs, cells and tables, each number that is said of them defined once here.

The score of a run is the mean over its last evaluations (ten, or fewer where there are fewer; never the one before
the first step) of their success rate where the environment has one, else of the mean raw return; a column of a table
has one measure, success only where all its runs have it. A cell is the mean over its finished seeds, with the standard
deviation over seeds (ddof = 1) beside it. `load` reads all of it back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from metarl.data.scores import Reference, reference
from metarl.errors import UserError
from metarl.training.cost import Cost

LAST = 10  # evaluations that a score averages

Measure = Literal["success", "return"]


class ResultError(UserError):
    """A run folder or a results file that cannot be read."""


@dataclass(frozen=True)
class Evaluation:
    """One evaluation.

    Attributes:
        step: gradient steps taken before it.
        mean: of its episodes' raw undiscounted returns.
        success: share of its episodes that reached their goal; None where there is none to reach.
    """

    step: int
    mean: float
    success: float | None = None


@dataclass(frozen=True)
class Series:
    """A logged scalar over gradient steps."""

    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Run:
    """One seed of one experiment, as its folder tells.

    Attributes:
        folder: where it lies; of a run read from a file, `<experiment>/<seed>`.
        seed: of the run.
        steps: gradient steps on record.
        finished: whether result.json records all that its configuration asks for.
        evaluations: in the order of steps, the one before the first step included.
        scalars: metrics.csv by metric.
        probes: rows of probes.jsonl by probe, in the order of steps.
        data: dataset cards by role; empty until the run has finished once.
        environment: versions, machine and commit of the last start; empty until the run has finished once.
        config: resolved.
        planned: gradient steps that it should reach.
        env: the Gymnasium id that it is evaluated in; None where that is not known yet.
        cost: None where it is not on record.
        failure: the tail of its log, where its last attempt failed.
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
    planned: int = 0
    env: str | None = None
    cost: Cost | None = None
    failure: str | None = None

    @property
    def trained(self) -> tuple[Evaluation, ...]:
        """Evaluations after step 0."""
        return tuple(e for e in self.evaluations if e.step > 0)

    @property
    def measure(self) -> Measure:
        """What is scored: success rates where every evaluation has one, else returns."""
        return "success" if self.evaluations and all(e.success is not None for e in self.evaluations) else "return"

    def values(self, measure: Measure) -> tuple[float, ...]:
        """That measure of every evaluation after step 0."""
        if measure == "return":
            return tuple(e.mean for e in self.trained)
        return tuple(e.success for e in self.trained if e.success is not None)

    @property
    def last_evaluations(self) -> tuple[float, ...]:
        """The values that the score averages: the last min(10, all) after step 0."""
        return self.values(self.measure)[-LAST:]

    @property
    def score(self) -> float | None:
        """The mean of `last_evaluations`; None where there is none."""
        return self.score_of(self.measure)

    def score_of(self, measure: Measure) -> float | None:
        """The score, were it that measure's."""
        last = self.values(measure)[-LAST:]
        return float(np.mean(last)) if last else None

    @property
    def best(self) -> float | None:
        """The largest evaluation after step 0: optimistic, since it is chosen on the evaluations themselves."""
        return self.best_of(self.measure)

    def best_of(self, measure: Measure) -> float | None:
        """The best, were it that measure's; what is not a number is no best."""
        values = self.values(measure)
        return float(np.fmax.reduce(values)) if values else None

    @property
    def reference(self) -> Reference | None:
        """The returns that normalise the score; None for success rates, and where the environment has none."""
        return self.reference_of(self.measure)

    def reference_of(self, measure: Measure) -> Reference | None:
        """The reference, were it that measure's."""
        return reference(self.env) if self.env is not None and measure == "return" else None

    @property
    def normalized(self) -> float | None:
        """In percent: 100 (score - low) / (high - low), or 100 times a success rate; None without references."""
        return self.normalized_of(self.measure)

    def normalized_of(self, measure: Measure) -> float | None:
        """The normalised score, were it that measure's."""
        score, scale = self.score_of(measure), self.reference_of(measure)
        if score is None or measure == "success":
            return None if score is None else 100 * score
        return None if scale is None else scale.normalized(score)


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
        with np.errstate(invalid="ignore"):  # a seed that diverged to infinity leaves no spread
            sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
            return cls(float(np.mean(values)), sd, len(values))


@dataclass(frozen=True)
class Cell:
    """All seeds of one experiment.

    Attributes:
        row, column: where it stands in the table: usually the method and the dataset.
        experiment: name of the folder that holds the seeds.
        seeds: that were planned.
        steps: that were planned.
        runs: that exist, by seed.
        labels: of every axis.
        failed: by seed, the tail of the log of runs whose last attempt failed, those without a folder included.
        column_measure: what its column scores, as `Results` finds it; None of a cell on its own.
        config: resolved; None where nothing has started.
    """

    row: str
    column: str
    experiment: str
    seeds: tuple[int, ...]
    steps: int
    runs: tuple[Run, ...]
    labels: Mapping[str, str] = field(default_factory=dict)
    failed: Mapping[int, str] = field(default_factory=dict)
    column_measure: Measure | None = None

    @property
    def config(self) -> Mapping[str, Any] | None:
        return self.runs[0].config if self.runs else None

    @property
    def finished(self) -> tuple[Run, ...]:
        """Runs with all their steps; only these are counted."""
        return tuple(run for run in self.runs if run.finished)

    @property
    def scored(self) -> tuple[Run, ...]:
        """Finished runs with an evaluation after step 0, in the order of `scores`."""
        return tuple(run for run in self.finished if run.trained)

    @property
    def evaluated(self) -> tuple[Run, ...]:
        """Those that say what is scored: `scored`, or while there is none, any run with evaluations."""
        return self.scored or tuple(run for run in self.runs if run.evaluations)

    @property
    def measure(self) -> Measure:
        """What is scored: its column's; on its own, success rates where every run has them throughout, else returns."""
        return self.column_measure or _measure(self.evaluated)

    @property
    def by_seed(self) -> dict[int, float]:
        """The scores of the finished seeds, by seed."""
        return dict(zip((run.seed for run in self.scored), self.scores.tolist(), strict=True))

    @property
    def evaluations_by_seed(self) -> dict[int, tuple[float, ...]]:
        """The evaluations that each score averages, by seed."""
        return {run.seed: run.values(self.measure)[-LAST:] for run in self.scored}

    @property
    def scores(self) -> NDArray[np.float64]:
        """The scores [n] of the finished seeds."""
        return np.array([run.score_of(self.measure) for run in self.scored], np.float64)

    @property
    def bests(self) -> NDArray[np.float64]:
        """The best evaluation [n] of each finished seed."""
        return np.array([run.best_of(self.measure) for run in self.scored], np.float64)

    @property
    def normalized(self) -> NDArray[np.float64] | None:
        """The normalised scores [n] in percent; None without references, and of no run."""
        values = [run.normalized_of(self.measure) for run in self.scored]
        return np.array(values, np.float64) if values and None not in values else None

    @property
    def reference(self) -> Reference | None:
        """The returns that normalise its scores."""
        return self.scored[0].reference_of(self.measure) if self.scored else None

    @property
    def last_evaluations(self) -> NDArray[np.float64]:
        """The evaluations [n, k] that the scores average; k is that of the seed with fewest."""
        values = [run.values(self.measure)[-LAST:] for run in self.scored]
        k = min(map(len, values), default=0)
        return np.array([last[len(last) - k :] for last in values], np.float64).reshape(len(values), k)

    @property
    def last(self) -> Spread | None:
        """The score, over finished seeds."""
        return Spread.of(self.scores.tolist())

    @property
    def best(self) -> Spread | None:
        """The best evaluation of each seed, over finished seeds."""
        return Spread.of(self.bests.tolist())


@dataclass(frozen=True)
class Excluded:
    """A combination of labels that the suite leaves out.

    Attributes:
        labels: by axis.
        reason: the suite's.
        row, column: where it would stand in the table.
    """

    labels: Mapping[str, str]
    reason: str
    row: str = ""
    column: str = ""


class Failure(NamedTuple):
    """A run whose last attempt failed.

    Attributes:
        cell: that it belongs to.
        run: as far as it came; its seed where it left no folder.
        text: the tail of its log.
    """

    cell: Cell
    run: Run | int
    text: str

    @property
    def seed(self) -> int:
        """Of the run."""
        return self.run if isinstance(self.run, int) else self.run.seed


@dataclass(frozen=True)
class Results:
    """A bench folder, or a folder of runs, read back.

    Attributes:
        name: of the suite or the folder.
        row_title, column_title: names of the axes.
        rows, columns: labels in order.
        cells: in the order of the plan.
        notes: what a reader must know: unfinished or unreadable runs, unlike lengths.
        axes: labels by axis, in the order of the plan.
        excluded: combinations that the suite leaves out, each with its reason.

    Its cells are given the measure of their column; where some runs know success rates that others lack, a note says
    that returns are scored.
    """

    name: str
    row_title: str
    column_title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[Cell, ...]
    notes: tuple[str, ...] = field(default=())
    axes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    excluded: tuple[Excluded, ...] = field(default=())

    @property
    def counted(self) -> str:
        """What steps are: of gradients, of an environment, or first these and then those."""
        phases = {
            "gradient steps"
            if not cell.config or not cell.config.get("online")
            else "steps"
            if cell.config["steps"]["offline"]
            else "environment steps"
            for cell in self.cells
        }
        return phases.pop() if len(phases) == 1 else "steps"

    def __post_init__(self) -> None:
        notes = list(self.notes)
        measures: dict[str, Measure] = {}
        for column in dict.fromkeys(cell.column for cell in self.cells):
            runs = [run for cell in self.cells if cell.column == column for run in cell.evaluated]
            measures[column] = _measure(runs)
            note = f"{column}: returns are scored, since success rates are known of some runs alone"
            if measures[column] == "return" and any(run.measure == "success" for run in runs) and note not in notes:
                notes.append(note)
        cells = (replace(cell, column_measure=measures[cell.column]) for cell in self.cells)
        object.__setattr__(self, "cells", tuple(cells))
        object.__setattr__(self, "notes", tuple(notes))

    def measure(self, column: str) -> Measure:
        """What a column scores."""
        return next((cell.measure for cell in self.cells if cell.column == column), "return")

    @property
    def environments(self) -> tuple[Mapping[str, str], ...]:
        """Versions and machines that the finished runs were made with, each once."""
        runs = [run for cell in self.cells for run in cell.finished]
        return tuple({tuple(run.environment.items()): run.environment for run in runs}.values())

    @property
    def failures(self) -> tuple[Failure, ...]:
        """Runs whose last attempt failed."""
        found = []
        for cell in self.cells:
            runs = {run.seed: run for run in cell.runs}
            found += [Failure(cell, runs.get(seed, seed), text) for seed, text in cell.failed.items()]
        return tuple(found)

    def at(self, row: str, column: str) -> Cell | None:
        """The cell of a row and a column."""
        return next((cell for cell in self.cells if (cell.row, cell.column) == (row, column)), None)

    def excluded_at(self, row: str, column: str) -> Excluded | None:
        """What the suite leaves out at a row and a column."""
        return next((one for one in self.excluded if (one.row, one.column) == (row, column)), None)

    @property
    def finished(self) -> int:
        """The number of finished runs."""
        return sum(len(cell.finished) for cell in self.cells)

    @property
    def fewest(self) -> int:
        """The smallest number of finished seeds of any cell."""
        return min((len(cell.finished) for cell in self.cells), default=0)


def _measure(runs: Sequence[Run]) -> Measure:
    """Success rates where every run has them throughout, else returns."""
    return "success" if runs and all(run.measure == "success" for run in runs) else "return"


def logged_evaluations(scalars: Mapping[str, Series]) -> tuple[Evaluation, ...]:
    """The evaluations that the logged scalars tell of."""
    returns, success = (scalars.get(f"evaluation/{what}", Series((), ())) for what in ("return", "success"))
    rates = dict(zip(success.steps, success.values, strict=True))
    pairs = zip(returns.steps, returns.values, strict=True)
    return tuple(Evaluation(step, mean, rates.get(step)) for step, mean in pairs)


def load(path: Path) -> Results:
    """The results in a bench folder, a folder of runs, one run's folder, or a file that `tidy.write` wrote.

    Raises:
        UserError: there is no run, or the file cannot be read.
    """
    from benchmarks import reading  # it builds what stands above

    return reading.load(path)
