"""Whether a claim held, by rules that are the same for every claim."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from benchmarks.results import Results
from benchmarks.statistics.tests import Test, over_seeds, significant
from metarl.errors import UserError

Outcome = Literal["held", "did not hold", "undecided", "not measured"]


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
        suite: whose committed results judge it; empty for other sources.
        judge: of those results.
    """

    paper: str
    where: str
    says: str
    suite: str
    judge: Callable[[Results], Verdict]


@dataclass(frozen=True)
class Difference:
    """Mean of one method minus mean of another, over seeds.

    Attributes:
        value: of the means.
        low, high: Welch's 95 % interval.
        test: Welch's, over seeds.
    """

    value: float
    low: float
    high: float
    test: Test

    @classmethod
    def of(cls, x: ArrayLike, y: ArrayLike) -> Difference:
        """x minus y, from one score per seed.

        Raises:
            UserError: fewer than two seeds of either.
        """
        ours, theirs = np.asarray(x, np.float64), np.asarray(y, np.float64)
        test = over_seeds(ours, theirs)
        if test is None:
            raise UserError("a claim needs two seeds of each method at the least; run the suite with more")
        value = float(ours.mean() - theirs.mean())
        if np.ptp(ours) == np.ptp(theirs) == 0:
            return cls(value, value, value, test)
        # From moments: of raw scores scipy warns where only one of the methods has no spread.
        parts = [scores.var(ddof=1) / len(scores) for scores in (ours, theirs)]
        degrees = sum(parts) ** 2 / sum(v**2 / (len(s) - 1) for v, s in zip(parts, (ours, theirs), strict=True))
        half = float(stats.t.ppf(0.975, degrees) * np.sqrt(sum(parts)))
        return cls(value, value - half, value + half, test)

    @property
    def significant(self) -> bool:
        """At 5 %, of three seeds or more."""
        return significant(self.test.p, self.test.n)

    def __str__(self) -> str:
        return f"{signed(self.value)} ({signed(self.low)} to {signed(self.high)}; p = {self.test.p:.2g})"


def direction(difference: Difference, expected: int) -> Outcome:
    """`held` where the difference has the expected sign significantly, `did not hold` where the opposite one."""
    return called(difference.significant, bool(np.sign(difference.value) == expected))


def called(clear: bool, as_said: bool) -> Outcome:
    """`undecided` unless the difference is clear; else whether it is as the claim says."""
    if not clear:
        return "undecided"
    return "held" if as_said else "did not hold"


def majority(outcomes: Sequence[Outcome]) -> Outcome:
    """Of a claim about most datasets: held, or refuted, on more than half of them."""
    counts = Counter(outcomes)
    return next((outcome for outcome, count in counts.items() if count > len(outcomes) / 2), "undecided")


def normalized(results: Results, row: str, column: str) -> NDArray[np.float64]:
    """The normalised scores of a cell by seed, in percent.

    Raises:
        UserError: the cell is missing, unfinished, or has no references.
    """
    cell = results.at(row, column)
    scores = None if cell is None or len(cell.finished) < len(cell.seeds) else cell.normalized
    if scores is None:
        raise UserError(f"{results.name}: the cell {row!r}, {column!r} is not there with all its seeds; run the suite")
    return scores


def totals(results: Results, row: str) -> NDArray[np.float64]:
    """The normalised scores by seed, averaged over the datasets.

    Datasets share no randomness but the seed's number, so that these averages are independent of each other.
    """
    return np.mean([normalized(results, row, column) for column in results.columns], axis=0)


def logged(results: Results, row: str, column: str, metric: str, last: float = 0.5) -> NDArray[np.float64]:
    """A logged metric by seed, averaged over the last part of training (as a share of its rows).

    Raises:
        UserError: the cell or the metric is missing.
    """
    cell = results.at(row, column)
    series = [run.scalars.get(metric) for run in cell.finished] if cell else []
    values = [s.values[-max(1, round(last * len(s.values))) :] for s in series if s is not None]
    if not values or len(values) < len(series):
        raise UserError(f"{results.name}: {row!r}, {column!r} has no metric {metric!r}; run the suite again")
    return np.array([np.mean(v) for v in values])


def signed(value: float) -> str:
    """`+1.2`, with a true minus and digits to match the size."""
    digits = 1 if abs(value) >= 1 else 2
    return f"{value:+.{digits}f}".replace("-", "−")


def by_label(results: Results, prefix: str) -> Mapping[float, str]:
    """Rows that are called by a prefix and a number, by that number."""
    return {float(row.removeprefix(prefix)): row for row in results.rows if row.startswith(prefix)}
