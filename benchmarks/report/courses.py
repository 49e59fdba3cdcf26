"""What was logged over gradient steps, method by method: the seeds that make a mean, and those that do not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.drawing import Look, thinned
from benchmarks.report.facts import seeds
from benchmarks.report.looks import looks
from benchmarks.report.scores import ENOUGH, mean_ends, most_of
from benchmarks.results import Cell, Results, Run

CROWD, BINS = 5, 40  # lines from which a panel is crowded, and the points that each of them then has
NAMED = 5  # seeds outside of a mean that a caption names

Point = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class Part:
    """A seed that is in no mean.

    Attributes:
        seed: its number.
        steps, values: as far as they are finite.
        until: the step of its last value where it has not finished, of its first that is not finite where it has.
        diverged: which of the two.
    """

    seed: int
    steps: Any
    values: Any
    until: float
    diverged: bool


@dataclass(frozen=True)
class Line:
    """One method's course.

    Attributes:
        name, look: of it.
        steps: [k], common to all seeds that have finished without diverging.
        values: [seeds, k] of these.
        parts: the other seeds.
        most: the largest possible value of rates.
    """

    name: str
    look: Look
    steps: Any
    values: Any
    parts: tuple[Part, ...] = ()
    most: float | None = None

    @property
    def end(self) -> float:
        """The mean at the last step; NaN without a mean."""
        return float(self.values[:, -1].mean()) if self.values.size else math.nan

    def summary(self, geometric: bool = False) -> tuple[Any, Any, Any]:
        """Mean over seeds, and its 95 % interval; of two seeds the two; in logarithms where `geometric`."""
        table = np.log(self.values) if geometric else self.values
        back: Callable[[Any], Any] = np.exp if geometric else np.asarray
        if len(table) < ENOUGH:
            return back(table.mean(0)), back(table.min(0)), back(table.max(0))
        found = [mean_ends(column, self.most) or (math.nan, math.nan) for column in table.T]
        low, high = zip(*found, strict=True)
        return back(table.mean(0)), back(low), back(high)


@dataclass(frozen=True)
class Courses:
    """The lines of a panel.

    Attributes:
        lines: one a method.
        k: how many consecutive values a point averages, so that a crowd can be told apart.
    """

    lines: tuple[Line, ...]
    k: int = 1

    def only(self, names: Iterable[str]) -> Courses:
        """Those lines."""
        kept = set(names)
        return replace(self, lines=tuple(line for line in self.lines if line.name in kept))

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for a caption: how many seeds, what a point averages, and which seeds are in no mean."""
        found = [seeds({line.name: len(line.values) for line in self.lines})] if self.lines else []
        if self.k > 1:
            found.append(f"Each point averages {self.k} consecutive evaluations.")
        for diverged, what in ((True, "diverged (×)"), (False, "not finished (dotted)")):
            parts = [(line.name, part) for line in self.lines for part in line.parts if part.diverged == diverged]
            if parts:
                told = [f"seed {part.seed} of {name} at step {part.until:,.0f}" for name, part in parts[:NAMED]]
                more = f" and {len(parts) - NAMED} more" if len(parts) > NAMED else ""
                found.append(f"In no mean, since {what}: {', '.join(told)}{more}.")
        return tuple(found)


def courses(results: Results, column: str, points: Callable[[Cell, Run], Point | None], rates: bool = False) -> Courses:
    """One line a row of a dataset, averaged or thinned to what can be seen.

    Args:
        results: to be drawn.
        column: the dataset.
        points: (steps, values) of a run; None where it has none.
        rates: whether they are scores, which end at 100 where they are success rates.
    """
    look = looks(results.rows)
    lines = [
        line
        for cell in results.cells
        if cell.column == column
        for line in [_line(cell, look[cell.row], points, most_of(cell) if rates else None)]
        if line is not None
    ]
    longest = max((len(s) for line in lines for s in (line.steps, *(part.steps for part in line.parts))), default=0)
    k = 1 if len(lines) < CROWD else max(1, round(longest / BINS))
    return Courses(tuple(_shortened(line, k) for line in lines), k)


# -- parts -----------------------------------------------------------------------------------------------------


def _line(
    cell: Cell, look: Look, points: Callable[[Cell, Run], Point | None], most: float | None = None
) -> Line | None:
    whole: list[dict[float, float]] = []
    parts = []
    for run in cell.runs:
        steps, values = points(cell, run) or ((), ())
        odd = next((i for i, value in enumerate(values) if not math.isfinite(value)), None)
        if not steps:
            continue
        if run.finished and odd is None:
            whole.append(dict(zip(steps, values, strict=True)))
        else:
            until = steps[-1] if odd is None else steps[odd]
            parts.append(Part(run.seed, np.array(steps[:odd]), np.array(values[:odd]), until, odd is not None))
    common = sorted(set.intersection(*map(set, whole))) if whole else []
    seeds_in = whole if common else []
    table = np.array([[one[step] for step in common] for one in seeds_in]).reshape(len(seeds_in), len(common))
    return Line(cell.row, look, np.array(common), table, tuple(parts), most) if common or parts else None


def _shortened(line: Line, k: int) -> Line:
    steps, table = _shorter(line.steps, line.values, k)
    parts = []
    for part in line.parts:
        at, values = _shorter(part.steps, part.values[None], k)
        parts.append(replace(part, steps=at, values=values[0]))
    return replace(line, steps=steps, values=table, parts=tuple(parts))


def _shorter(steps: Any, table: Any, k: int) -> tuple[Any, Any]:
    """The first point, then means of `k` consecutive ones; or every so many where that is too much to draw."""
    if k == 1 or len(steps) <= k:
        kept = thinned(len(steps)) if len(steps) else []
        return steps[kept], table[:, kept]
    starts = np.r_[0, np.arange(1, len(steps), k)]
    sizes = np.diff(np.r_[starts, len(steps)])
    return np.add.reduceat(steps, starts) / sizes, np.add.reduceat(table, starts, axis=1) / sizes
