"""The figures of the report's tables: one home of what is shown, in which digits, and what is marked.

A figure is the mean over seeds with its interval; the highest of a column is marked, and so is what a test over seeds
does not tell from it (Holm-corrected within the column).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from benchmarks.results import Cell, Results
from benchmarks.statistics import Interval, holm, mean_interval, over_seeds, significant, stratified_bootstrap

ENOUGH = 3  # seeds from which an interval and a test are given
MANY, FOREMOST = 12, 6  # rows above which figures show only so many of them in colour

Kind = Literal["last", "normalized", "best"]


@dataclass(frozen=True)
class Score:
    """One figure of a table.

    Attributes:
        mean: over seeds.
        sd: over seeds; None for one.
        low, high: of its interval; None below `ENOUGH` seeds.
        n, planned: seeds that count, and that should.
        digits: shown after the point.
        best: the highest mean of its column.
        tied: not told from the best by the test.
    """

    mean: float
    sd: float | None
    low: float | None
    high: float | None
    n: int
    planned: int
    digits: int = 1
    best: bool = False
    tied: bool = False

    @property
    def value(self) -> str:
        """The mean as shown: `-1,234.5`."""
        return f"{self.mean:,.{self.digits}f}"

    @property
    def around(self) -> str:
        """What stands beside it: `[-1,300.1, -1,100.2]`, of two seeds `± 7.9`, of one nothing."""
        if self.low is not None and self.high is not None:
            return f"[{self.low:,.{self.digits}f}, {self.high:,.{self.digits}f}]"
        return "" if self.sd is None else f"± {self.sd:,.{self.digits}f}"

    @property
    def seeds(self) -> str:
        """`n=5`, or `n=3 of 5`."""
        return f"n={self.n}" if self.n == self.planned else f"n={self.n} of {self.planned}"


@dataclass(frozen=True)
class Total:
    """One row's figures over several datasets.

    Attributes:
        sum: of the means.
        iqm: interquartile mean over runs with its interval; None below `ENOUGH` seeds.
    """

    sum: float
    iqm: Interval | None


@dataclass(frozen=True)
class Grid:
    """A table of scores.

    Attributes:
        kind: what they are.
        rows, columns: labels in order.
        units: by column: `return`, `success, %` or `score`.
        scores: by row and column; None where no run has finished.
        missing: by row and column, what stands in an empty place.
        totals: by row, over `common`; empty where these are fewer than two.
        common: columns that every row of `totals` has.
    """

    kind: Kind
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    units: Mapping[str, str]
    scores: Mapping[tuple[str, str], Score]
    missing: Mapping[tuple[str, str], str]
    totals: Mapping[str, Total]
    common: tuple[str, ...] = ()

    def at(self, row: str, column: str) -> Score | None:
        return self.scores.get((row, column))

    @property
    def few(self) -> bool:
        """Whether some figure has too few seeds for an interval."""
        return any(score.n < ENOUGH for score in self.scores.values())

    @property
    def tested(self) -> bool:
        """Whether some column has two figures with enough seeds."""
        per_column = [sum(s.n >= ENOUGH for (_, c), s in self.scores.items() if c == column) for column in self.columns]
        return any(n > 1 for n in per_column)


def grid(results: Results, kind: Kind = "last") -> Grid:
    """The table of one kind of score; of normalised ones, only datasets that have them."""
    values = {(c.row, c.column): (c, v) for c in results.cells if (v := values_of(c, kind)) is not None and len(v)}
    columns = tuple(c for c in results.columns if kind != "normalized" or any(c == column for _, column in values))
    scores: dict[tuple[str, str], Score] = {}
    for column in columns:
        found = {row: values[row, column] for row in results.rows if (row, column) in values}
        digits = _digits([float(v.mean()) for _, v in found.values()])
        made = {row: _score(cell, v, digits) for row, (cell, v) in found.items()}
        marked = _marked(made, {row: v for row, (_, v) in found.items()}, tests=kind != "best")
        scores.update({(row, column): score for row, score in marked.items()})
    missing = {(r, c): _missing(results, r, c) for r in results.rows for c in columns if (r, c) not in scores}
    totals, common = _totals(results, values, columns) if kind == "normalized" else ({}, ())
    units = {column: _unit(results, column, kind) for column in columns}
    return Grid(kind, results.rows, columns, units, scores, missing, totals, common)


def values_of(cell: Cell, kind: Kind = "last") -> Any:
    """A cell's scores by finished seed [n]; success rates in percent; None where there is no such score."""
    if kind == "normalized":
        return cell.normalized
    scores = cell.scores if kind == "last" else np.array([run.best for run in cell.scored], np.float64)
    return 100 * scores if cell.measure == "success" else scores


def foremost(values: Mapping[str, float]) -> set[str]:
    """The rows that a figure shows in colour: all, or of many the highest."""
    order = sorted(values, key=lambda row: -np.nan_to_num(values[row], nan=-math.inf))
    return set(order if len(order) <= MANY else order[:FOREMOST])


def testable(values: Any) -> bool:
    """Whether intervals and tests are given: enough seeds, none of them diverged."""
    return len(values) >= ENOUGH and bool(np.isfinite(values).all())


def comparable(results: Results, kind: Kind) -> tuple[dict[str, dict[str, Any]], tuple[str, ...]]:
    """(row, column) -> scores for aggregates over datasets: every row has every column, each with enough seeds.

    Rows that lack more than half of the columns are left out, then columns that a remaining row lacks.

    Returns:
        Scores by row and by column, and the rows that are left out.
    """
    found: dict[str, dict[str, Any]] = {row: {} for row in results.rows}
    for cell in results.cells:
        values = values_of(cell, kind)
        if values is not None and testable(values):
            found[cell.row][cell.column] = values
    most = max((len(columns) for columns in found.values()), default=0)
    kept = {row: columns for row, columns in found.items() if columns and 2 * len(columns) >= most}
    common = [c for c in results.columns if all(c in columns for columns in kept.values())]
    out = tuple(row for row in results.rows if row not in kept)
    return ({row: {c: columns[c] for c in common} for row, columns in kept.items()} if common else {}), out


# -- parts -----------------------------------------------------------------------------------------------------


def _score(cell: Cell, values: Any, digits: int) -> Score:
    interval = mean_interval(values) if testable(values) else None
    low, high = (interval.low, interval.high) if interval else (None, None)
    if cell.measure == "success" and low is not None and high is not None:
        low, high = max(low, 0.0), min(high, 100.0)  # Student's interval does not know that rates end
    return Score(
        mean=float(values.mean()),
        sd=float(values.std(ddof=1)) if len(values) > 1 else None,
        low=low,
        high=high,
        n=len(values),
        planned=len(cell.seeds),
        digits=digits,
    )


def _marked(scores: Mapping[str, Score], values: Mapping[str, Any], tests: bool) -> dict[str, Score]:
    """The scores of one column with its best and what is not told from it."""
    if len(scores) < 2:
        return dict(scores)
    top = max(scores, key=lambda row: np.nan_to_num(scores[row].mean, nan=-math.inf))
    marked = {row: replace(score, best=score.mean == scores[top].mean) for row, score in scores.items()}
    rivals = [row for row in scores if not marked[row].best and testable(values[row]) and testable(values[top])]
    if tests and rivals:
        found = [over_seeds(values[top], values[row]) for row in rivals]
        corrected = holm([1.0 if test is None or math.isnan(test.p) else test.p for test in found])
        for row, p in zip(rivals, corrected, strict=True):
            n = min(scores[row].n, scores[top].n)
            marked[row] = replace(marked[row], tied=not significant(float(p), n))
    return marked


def _totals(
    results: Results, values: Mapping[tuple[str, str], tuple[Cell, Any]], columns: Sequence[str]
) -> tuple[dict[str, Total], tuple[str, ...]]:
    """Over the columns that all rows with any score have."""
    rows = [row for row in results.rows if any((row, column) in values for column in columns)]
    common = tuple(c for c in columns if all((row, c) in values for row in rows))
    if len(common) < 2:
        return {}, ()
    totals = {}
    for row in rows:
        mine = {column: values[row, column][1] for column in common}
        enough = all(map(testable, mine.values()))
        totals[row] = Total(sum(float(v.mean()) for v in mine.values()), stratified_bootstrap(mine) if enough else None)
    return totals, common


def _missing(results: Results, row: str, column: str) -> str:
    if results.excluded_at(row, column):
        return "excluded"
    cell = results.at(row, column)
    return "" if cell is None else f"0 of {len(cell.seeds)} runs finished"


def _unit(results: Results, column: str, kind: Kind) -> str:
    if kind == "normalized":
        return "score"
    cells = [cell for cell in results.cells if cell.column == column and cell.runs]
    return "success, %" if cells and all(cell.measure == "success" for cell in cells) else "return"


def _digits(means: Iterable[float]) -> int:
    """After the point, the same for a whole column: a tenth from 10 on, else a thousandth."""
    return 1 if max((abs(mean) for mean in means), default=0.0) >= 10 else 3
