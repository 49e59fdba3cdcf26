"""Whole distributions of scores: how many runs get how far, and how often one method beats another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats

from benchmarks.statistics.checks import Scores, array, by_task, probability
from benchmarks.statistics.intervals import LEVEL, Interval
from metarl.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Profile:
    """A performance profile.

    Attributes:
        thresholds: in ascending order.
        share: of runs above each threshold.
        low, high: a band, threshold by threshold.
        level: how often the band should cover the true share at a threshold.
        n: seeds; the fewest of any task.
    """

    thresholds: Scores
    share: Scores
    low: Scores
    high: Scores
    level: float
    n: int


def performance_profile(scores: Mapping[str, ArrayLike], thresholds: ArrayLike, level: float = LEVEL) -> Profile:
    """The share of runs whose score lies above each threshold: `F(τ) = 1/K Σ_k 1/n_k Σ_i [x_ki > τ]`.

    Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice", section 4.2, after
    Dolan and Moré 2002, "Benchmarking optimization software with performance profiles". The band is Clopper and
    Pearson's (1934, "The use of confidence or fiducial limits illustrated in the case of the binomial") for a share of
    `N = K² / Σ 1/n_k` runs, which is all of them where tasks have equally many. Tasks of unlike difficulty only
    narrow the distribution that it assumes (Hoeffding 1956, "On the distribution of the number of successes in
    independent trials"), and unlike a bootstrap's it does not shrink to nothing where no run or every run is above.

    Args:
        scores: of every task, one per seed, on a scale that means the same in each.
        thresholds: in any order.

    Raises:
        ConfigError: no task or threshold, a task without scores, a number that is not finite.
    """
    tasks = by_task(scores).values()
    at = np.sort(array(thresholds, "thresholds"))
    if not len(at):
        raise ConfigError("thresholds: empty; give the scores at which the profile is read")
    probability(level, "level")
    share = np.mean([1 - np.searchsorted(task, at, side="right") / len(task) for task in tasks], axis=0)
    runs = len(tasks) ** 2 / sum(1 / len(task) for task in tasks)
    low, high = clopper_pearson(share, runs, level)
    return Profile(at, share, low, high, level, min(map(len, tasks)))


def clopper_pearson(share: Scores, runs: float, level: float) -> tuple[Scores, Scores]:
    """`B(α/2; x, N - x + 1)` and `B(1 - α/2; x + 1, N - x)`, quantiles of the beta distribution, x = N share."""
    tail, above = (1 - level) / 2, runs * share
    with np.errstate(invalid="ignore"):  # the beta distribution ends at its edges, whose limits are known
        low = stats.beta.ppf(tail, above, runs - above + 1)
        high = stats.beta.ppf(1 - tail, above + 1, runs - above)
    return np.where(share <= 0, 0.0, low), np.where(share >= 1, 1.0, high)


def probability_of_improvement(
    x: Mapping[str, ArrayLike], y: Mapping[str, ArrayLike], level: float = LEVEL
) -> Interval:
    """How probably a run of X beats a run of Y on the same task, ties counted half: the mean over tasks of `U / (n m)`.

    Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice", section 4.3; U is
    Mann and Whitney's (1947). The interval holds every θ with `(estimate - θ)² ≤ z² V(θ)`: a score interval (Newcombe
    2006, "Confidence intervals for an effect size measure based on the Mann-Whitney statistic, part 2", method 5)
    with Hanley and McNeil's variance (1982, "The meaning and use of the area under a ROC curve")

        V_k(θ) = θ (1 - θ) / (n m) [1 + ((n + m) / 2 - 1) ((1 - θ) / (2 - θ) + θ / (1 + θ))],  V = 1/K² Σ V_k.

    All tasks take their variance at the common θ, which makes the interval wide where they differ. It stays open
    where every run of X beats every run of Y, which is where a bootstrap's shrinks to a point.

    Args:
        x, y: of every task, one score per seed; the same tasks.

    Raises:
        ConfigError: unlike tasks, no task, a task without scores, a score that is not finite.
    """
    ours, theirs = by_task(x, "x"), by_task(y, "y")
    if set(ours) != set(theirs):
        unlike = ", ".join(sorted(set(ours) ^ set(theirs)))
        raise ConfigError(f"x and y: {unlike} has scores of one of them only; compare on the tasks of both")
    probability(level, "level")
    sizes = [(len(ours[task]), len(theirs[task])) for task in ours]
    wins = 0.0
    for n, m in sorted(set(sizes)):  # one call for all tasks of a size
        alike = [task for task, size in zip(ours, sizes, strict=True) if size == (n, m)]
        above, below = (np.stack([scores[task] for task in alike]) for scores in (ours, theirs))
        wins += float(stats.mannwhitneyu(above, below, axis=-1, method="asymptotic").statistic.sum()) / (n * m)
    value = wins / len(sizes)
    low, high = _score_interval(value, sizes, float(stats.norm.ppf((1 + level) / 2)))
    return Interval(value, low, high, level, min(min(pair) for pair in sizes))


def _score_interval(value: float, sizes: list[tuple[int, int]], z: float) -> tuple[float, float]:
    def excess(theta: float) -> float:
        form = (1 - theta) / (2 - theta) + theta / (1 + theta)
        variance = sum(theta * (1 - theta) / (n * m) * (1 + ((n + m) / 2 - 1) * form) for n, m in sizes)
        return (value - theta) ** 2 - z**2 * variance / len(sizes) ** 2

    nudge = 1e-9  # off an estimate of 0 or 1, where the variance and the distance are both nothing
    low = 0.0 if value <= nudge else optimize.brentq(excess, 0.0, min(value, 1 - nudge))
    high = 1.0 if value >= 1 - nudge else optimize.brentq(excess, max(value, nudge), 1.0)
    return float(low), float(high)
