"""Whether a claim held, by rules that are the same for every claim."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from benchmarks.results import Cell, Results
from benchmarks.statistics import Interval, Test, difference, holm, over_seeds, significant
from metarl.errors import UserError

Outcome = Literal["held", "did not hold", "undecided", "not measured"]
BySeed = Mapping[int, float]


@dataclass(frozen=True)
class Verdict:
    """What was found about a claim.

    Attributes:
        outcome: `undecided` where the seeds cannot tell.
        measured: in a sentence or two, figures included.
        table: header and rows behind it.
    """

    outcome: Outcome
    measured: str
    table: Sequence[Sequence[str]] = ()


@dataclass(frozen=True)
class Claim:
    """A statement of a paper.

    Attributes:
        paper, where: whose, and at which table or section.
        says: the statement.
        rule: by which it is judged.
        suite: whose committed results judge it; empty where the speed benchmark's do.
        judge: of those results.
    """

    paper: str
    where: str
    says: str
    rule: str
    suite: str
    judge: Callable[[Results | None], Verdict] | Callable[[Results], Verdict]


@dataclass(frozen=True)
class Difference:
    """Mean of one method minus mean of another, over seeds.

    Attributes:
        interval: of it, 95 %.
        test: of no difference.
    """

    interval: Interval
    test: Test

    @classmethod
    def of(cls, x: BySeed, y: BySeed) -> Difference:
        """x minus y.

        Raises:
            UserError: fewer than two seeds of either.
        """
        interval, test = difference(x, y), over_seeds(x, y)
        if interval is None or test is None:
            raise UserError("a claim needs two seeds of each method at the least; run the suite with more")
        return cls(interval, test)

    @property
    def value(self) -> float:
        return self.interval.value

    @property
    def range(self) -> str:
        """`+1.2 (−0.3 to +2.7)`."""
        return f"{signed(self.value)} ({signed(self.interval.low)} to {signed(self.interval.high)})"

    def __str__(self) -> str:
        return f"{self.range[:-1]}; p = {self.test.p:.2g})"


def clear(differences: Sequence[Difference]) -> list[bool]:
    """Which of them are significant at 5 % together, by Holm's correction, over three seeds or more."""
    corrected = holm([d.test.p for d in differences])
    return [significant(p, d.test.n) for p, d in zip(corrected, differences, strict=True)]


def called(is_clear: bool, as_said: bool) -> Outcome:
    """`undecided` unless the difference is clear; else whether it is as the claim says."""
    if not is_clear:
        return "undecided"
    return "held" if as_said else "did not hold"


def direction(found: Difference, expected: int) -> Outcome:
    """`held` where one difference has the expected sign significantly, `did not hold` where the opposite one."""
    return called(clear([found])[0], bool(np.sign(found.value) == expected))


def directions(found: Sequence[Difference], expected: int) -> list[Outcome]:
    """The same of several differences that are judged together."""
    return [called(yes, bool(np.sign(d.value) == expected)) for yes, d in zip(clear(found), found, strict=True)]


def majority(outcomes: Sequence[Outcome]) -> Outcome:
    """Of a claim about most of some cases: held, or refuted, on more than half of them."""
    counts = Counter(outcomes)
    return next((outcome for outcome, count in counts.items() if count > len(outcomes) / 2), "undecided")


def normalized(results: Results, row: str, column: str) -> BySeed:
    """The normalised scores of a cell by seed, in percent.

    Raises:
        UserError: the cell is missing, unfinished, or has no references.
    """
    cell = _whole(results, row, column)
    scores = cell.normalized
    if scores is None:
        raise UserError(f"{results.name}: no reference scores are known for {column!r}; see metarl/data/scores.py")
    return dict(zip((run.seed for run in cell.scored), scores.tolist(), strict=True))


def totals(results: Results, row: str) -> BySeed:
    """The normalised scores by seed, averaged over the datasets."""
    by_column = [normalized(results, row, column) for column in results.columns]
    return {seed: mean([scores[seed] for scores in by_column]) for seed in by_column[0]}


def logged(results: Results, row: str, column: str, metric: str, last: float = 0.5) -> BySeed:
    """A logged metric by seed, averaged over the last part of training (as a share of its rows).

    Raises:
        UserError: the cell or the metric is missing.
    """
    found = {}
    for run in _whole(results, row, column).finished:
        series = run.scalars.get(metric)
        if series is None:
            raise UserError(f"{results.name}: {row!r}, {column!r} has no metric {metric!r}; run the suite again")
        found[run.seed] = mean(series.values[-max(1, round(last * len(series.values))) :])
    return found


def _whole(results: Results, row: str, column: str) -> Cell:
    cell = results.at(row, column)
    if cell is None or len(cell.scored) < len(cell.seeds):
        raise UserError(f"{results.name}: the cell {row!r}, {column!r} is not there with all its seeds; run the suite")
    return cell


def mean(values: BySeed | Sequence[float]) -> float:
    """Of numbers, or of what seeds have."""
    return float(np.mean(list(values.values()) if isinstance(values, Mapping) else values))


def signed(value: float) -> str:
    """`+1.2`, with a true minus and digits to match the size."""
    digits = 1 if abs(value) >= 1 else 2
    return f"{value:+.{digits}f}".replace("-", "−")


def by_label(results: Results, prefix: str) -> Mapping[float, str]:
    """Rows that are called by a prefix and a number, by that number."""
    return {float(row.removeprefix(prefix)): row for row in results.rows if row.startswith(prefix)}
