"""The figures of the report's tables: one home of what is shown, in which digits, and what is marked.

A figure is the mean over seeds with its interval; the highest of a column is marked, and so is what a test over seeds
does not tell from it (Holm-corrected within the column), and what could not be tested against it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from benchmarks.results import Cell, Results, Spread
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
        untested: not the best, and no test says how far from it.
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
    untested: bool = False

    @property
    def value(self) -> str:
        """The mean as shown: `-1,234.5`."""
        return f"{self.mean:,.{self.digits}f}"

    @property
    def around(self) -> str:
        """What stands beside it: `[-1,300.1, -1,100.2]`, of two seeds `± 7.9`, of one or a diverged one nothing."""
        if self.low is not None and self.high is not None:
            return f"[{self.low:,.{self.digits}f}, {self.high:,.{self.digits}f}]"
        return "" if self.sd is None or not math.isfinite(self.sd) else f"± {self.sd:,.{self.digits}f}"

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
        n: the fewest and the most seeds of a dataset.
    """

    sum: float
    iqm: Interval | None
    n: tuple[int, int]

    @property
    def seeds(self) -> str:
        """`n=5`, or `n=3 to 5`, of each dataset."""
        return f"n={self.n[0]}" if self.n[0] == self.n[1] else f"n={self.n[0]} to {self.n[1]}"


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
        """Whether some figure was tested against the best of its column."""
        rivals = {column for (_, column), score in self.scores.items() if score.best}
        return self.kind != "best" and any(
            column in rivals and not score.best and not score.untested for (_, column), score in self.scores.items()
        )


def grid(results: Results, kind: Kind = "last") -> Grid:
    """The table of one kind of score; of normalised ones, only datasets that have them."""
    cells = {(c.row, c.column): c for c in results.cells if by_seed(c, kind)}
    columns = tuple(c for c in results.columns if kind != "normalized" or any(c == column for _, column in cells))
    scores: dict[tuple[str, str], Score] = {}
    for column in columns:
        found = {row: cells[row, column] for row in results.rows if (row, column) in cells}
        places = digits([float(np.mean(values_of(cell, kind))) for cell in found.values()])
        marked = _marked({row: _score(cell, kind, places) for row, cell in found.items()}, found, kind)
        scores.update({(row, column): score for row, score in marked.items()})
    missing = {(r, c): _missing(results.at(r, c), results, r, c) for r in results.rows for c in columns}
    missing = {place: text for place, text in missing.items() if place not in scores}
    totals, common = _totals(results, cells, columns) if kind == "normalized" else ({}, ())
    units = {column: _unit(results, column, kind) for column in columns}
    return Grid(kind, results.rows, columns, units, scores, missing, totals, common)


def values_of(cell: Cell, kind: Kind = "last") -> Any:
    """A cell's scores by finished seed [n]; success rates in percent; None where there is no such score."""
    if kind == "normalized":
        return cell.normalized
    scores = cell.scores if kind == "last" else cell.bests
    return 100 * scores if cell.measure == "success" else scores


def by_seed(cell: Cell, kind: Kind = "last") -> dict[int, float]:
    """The same, by seed; empty where there is none."""
    values = values_of(cell, kind)
    return {} if values is None else dict(zip((r.seed for r in cell.scored), values.tolist(), strict=True))


def mean_ends(values: Any, most: float | None = None) -> tuple[float, float] | None:
    """Ends of Student's interval of the mean over seeds; of rates, whose `most` is 1 or 100, within what they can be.

    None below `ENOUGH` seeds, and where one diverged.
    """
    interval = mean_interval(values) if testable(values) else None
    if interval is None:
        return None
    low, high = interval.low, interval.high
    return (low, high) if most is None else (max(low, 0.0), min(high, most))


def most_of(cell: Cell) -> float | None:
    """What `values_of` can be at most; None of returns."""
    return 100.0 if cell.measure == "success" else None


def pooled(scores: Mapping[str, Any], most: float | None = None) -> Interval:
    """The interquartile mean over all runs with its stratified bootstrap interval, clipped as in `mean_ends`."""
    found = stratified_bootstrap(scores)
    return found if most is None else replace(found, low=max(found.low, 0.0), high=min(found.high, most))


def digits(means: Iterable[float]) -> int:
    """After the point, the same for a whole column: a tenth from 10 on, else a thousandth, of less than 0.1 more."""
    largest = max((abs(mean) for mean in means if math.isfinite(mean)), default=0.0)
    return 1 if largest >= 10 else min(12, max(3, 2 - math.floor(math.log10(largest)))) if largest else 3


def foremost(values: Mapping[str, float]) -> set[str]:
    """The rows that a figure shows in colour: all, or of many the highest."""
    order = sorted(values, key=lambda row: -np.nan_to_num(values[row], nan=-math.inf))
    return set(order if len(order) <= MANY else order[:FOREMOST])


def testable(values: Any) -> bool:
    """Whether intervals and tests are given: enough seeds, none of them diverged."""
    return values is not None and len(values) >= ENOUGH and bool(np.isfinite(values).all())


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


def _score(cell: Cell, kind: Kind, digits: int) -> Score:
    values = values_of(cell, kind)
    low, high = mean_ends(values, most_of(cell)) or (None, None)
    spread = Spread.of(values.tolist())
    assert spread is not None  # of a cell with scores
    return Score(
        mean=spread.mean,
        sd=spread.sd,
        low=low,
        high=high,
        n=len(values),
        planned=len(cell.seeds),
        digits=digits,
    )


def _marked(scores: Mapping[str, Score], cells: Mapping[str, Cell], kind: Kind) -> dict[str, Score]:
    """The scores of one column with its best, what is not told from it, and what was not tested against it."""
    if len(scores) < 2:
        return dict(scores)
    values = {row: by_seed(cell, kind) for row, cell in cells.items()}
    top = max(scores, key=lambda row: np.nan_to_num(scores[row].mean, nan=-math.inf))
    marked = {row: replace(score, best=score.mean == scores[top].mean) for row, score in scores.items()}
    if kind == "best":
        return marked
    others = [row for row in scores if not marked[row].best]
    rivals = [row for row in others if testable([*values[row].values()]) and testable([*values[top].values()])]
    found = [over_seeds(values[top], values[row]) for row in rivals]
    corrected = holm([1.0 if test is None else test.p for test in found]).tolist() if found else []
    for row, p in zip(rivals, corrected, strict=True):
        n = min(scores[row].n, scores[top].n)
        marked[row] = replace(marked[row], tied=not significant(p, n))
    return marked | {row: replace(marked[row], untested=True) for row in others if row not in rivals}


def _totals(
    results: Results, cells: Mapping[tuple[str, str], Cell], columns: Sequence[str]
) -> tuple[dict[str, Total], tuple[str, ...]]:
    """Over the columns that all rows with any score have."""
    rows = [row for row in results.rows if any((row, column) in cells for column in columns)]
    common = tuple(c for c in columns if all((row, c) in cells for row in rows))
    if len(common) < 2:
        return {}, ()
    most = 100.0 if all(results.measure(column) == "success" for column in common) else None
    totals = {}
    for row in rows:
        mine = {column: values_of(cells[row, column], "normalized") for column in common}
        iqm = pooled(mine, most) if all(map(testable, mine.values())) else None
        n = [len(values) for values in mine.values()]
        totals[row] = Total(sum(float(v.mean()) for v in mine.values()), iqm, (min(n), max(n)))
    return totals, common


def _missing(cell: Cell | None, results: Results, row: str, column: str) -> str:
    if results.excluded_at(row, column):
        return "excluded"
    if cell is None:
        return ""
    if not cell.finished:
        return f"0 of {len(cell.seeds)} runs finished"
    return "no reference scores" if cell.scored else "no evaluation after step 0"


def _unit(results: Results, column: str, kind: Kind) -> str:
    if kind == "normalized":
        return "score"
    return "success, %" if results.measure(column) == "success" else "return"
