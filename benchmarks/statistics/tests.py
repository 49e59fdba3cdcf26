"""Tests of a difference between two methods, and what they may be called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from benchmarks.statistics.checks import Scores, array, constant, p_values, probability
from metarl.errors import ConfigError

LEVEL = 0.05  # of a test
FEWEST = 3  # seeds, below which nothing is called significant
ARRANGEMENTS = 20_000  # that an exact permutation test lists; beyond, as many are drawn


@dataclass(frozen=True)
class Test:
    """A two-sided test of no difference.

    Attributes:
        name: of the test.
        difference: mean of x minus mean of y.
        statistic: that the p-value belongs to.
        p: two-sided.
        n: seeds; of the method with fewer.
        warning: what a reader must know; empty where there is nothing.
    """

    __test__ = False  # to pytest, which would collect a class of this name

    name: str
    difference: float
    statistic: float
    p: float
    n: int
    warning: str = ""


def over_seeds(x: ArrayLike, y: ArrayLike) -> Test | None:
    """Welch's t-test over seeds, our default: `t = (mean x - mean y) / sqrt(s_x² / n + s_y² / m)`.

    Welch 1947, "The generalization of 'Student's' problem when several different population variances are involved".
    The two methods may differ in spread and in their number of seeds. Where neither has any spread there is no t, and
    the permutation test stands in.

    Args:
        x, y: one score per seed.

    Returns:
        None where a method has fewer than two seeds.

    Raises:
        ConfigError: a score is not finite.
    """
    ours, theirs = array(x, "x"), array(y, "y")
    n = min(len(ours), len(theirs))
    if n < 2:
        return None
    few = "" if n >= FEWEST else f"{n} seeds: fewer than {FEWEST} are never called significant"
    if constant(ours) and constant(theirs):
        said = "; ".join(filter(None, ("no spread over seeds, so that there is no Welch's t", few)))
        return replace(permutation(ours, theirs), warning=said)
    # From moments: of raw scores scipy warns where only one of the methods has no spread.
    moments = [moment for scores in (ours, theirs) for moment in (scores.mean(), scores.std(ddof=1), len(scores))]
    found = stats.ttest_ind_from_stats(*moments, equal_var=False)
    return Test("Welch over seeds", _difference(ours, theirs), float(found.statistic), float(found.pvalue), n, few)


def permutation(x: ArrayLike, y: ArrayLike, seed: int = 0) -> Test:
    """The permutation test over seeds: the share of arrangements of the scores with at least this difference of means.

    Fisher 1935, "The design of experiments"; exact up to 20,000 arrangements. With three seeds of each method there
    are 20, so that no p-value is below 2 / 20 = 0.1: it cannot find anything at 5 %. With five the least is 2 / 252.

    Args:
        x, y: one score per seed.
        seed: of arrangements that are drawn where there are too many.

    Raises:
        ConfigError: a method without scores, a score that is not finite.
    """
    ours, theirs = array(x, "x"), array(y, "y")
    n, m = len(ours), len(theirs)
    if not n or not m:
        raise ConfigError("x and y: a method has no score; give at least one seed of each")
    least = 2 / special.comb(n + m, n)
    warning = "" if least < LEVEL else f"with {n} and {m} seeds no p-value is below {min(1.0, least):.2g}"
    if constant(np.concatenate([ours, theirs])):  # scores that differ by rounding do not differ
        return Test("permutation over seeds", 0.0, 0.0, 1.0, min(n, m), warning)
    found = stats.permutation_test(
        (ours, theirs), _mean_difference, vectorized=True, n_resamples=ARRANGEMENTS, rng=np.random.default_rng(seed)
    )
    return Test(
        "permutation over seeds",
        _difference(ours, theirs),
        float(found.statistic),
        float(found.pvalue),
        min(n, m),
        warning,
    )


def paired_t_over_evaluations(x: ArrayLike, y: ArrayLike) -> Test:
    """GORL's test: a paired t-test over all evaluations of all seeds, `t = mean d / (s_d / sqrt(N)), d = x - y`.

    "GORL": the papers pair the last 10 evaluations of 5 seeds and test on N = 50 pairs. Evaluations of one run share
    its policy's luck, so the N are not independent and p is far too small: docs/statistics.md shows how often it finds
    a difference where there is none. Kept for comparison with the papers; it always says so.

    Args:
        x, y: [seeds, evaluations], row and column of one paired with those of the other.

    Raises:
        ConfigError: unlike shapes, fewer than two pairs, a score that is not finite.
    """
    ours, theirs = array(x, "x", 2), array(y, "y", 2)
    if ours.shape != theirs.shape or ours.size < 2:
        raise ConfigError(
            f"x and y: shapes {list(ours.shape)} and {list(theirs.shape)} do not make two or more pairs; give the same "
            "number of evaluations of the same seeds"
        )
    seeds, evaluations = ours.shape
    warning = (
        f"takes {seeds * evaluations} evaluations of {seeds} runs for independent, which they are not: p is too small; "
        "go by the test over seeds"
    )
    gaps = (ours - theirs).ravel()
    difference = float(gaps.mean())
    if constant(gaps):  # no t; the exact test that flips the signs of differences stands in
        statistic, p = (np.copysign(np.inf, difference), 2.0 ** (1 - len(gaps))) if difference else (0.0, 1.0)
    else:
        statistic, p = stats.ttest_rel(ours.ravel(), theirs.ravel())
    return Test("paired t over evaluations", difference, float(statistic), float(p), seeds, warning)


def significant(p: float, n: int, level: float = LEVEL) -> bool:
    """Whether a p-value over n seeds may be called significant: never below three seeds.

    Raises:
        ConfigError: p is not in [0, 1], or the level is not between 0 and 1.
    """
    return bool(p_values([p])[0] < probability(level, "level")) and n >= FEWEST


def holm(p: Sequence[float] | Scores) -> Scores:
    """p-values of m comparisons so that a false positive among *all* of them stays below the level.

    `p'_(i) = max over j <= i of min(1, (m - j + 1) p_(j))`, p in ascending order; Holm 1979, "A simple sequentially
    rejective multiple test procedure". Holds however the comparisons depend on each other.

    Raises:
        ConfigError: there is none, or one lies outside [0, 1].
    """
    found = p_values(p)
    order = np.argsort(found)
    factors = np.arange(len(found), 0, -1)
    adjusted = np.empty_like(found)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(factors * found[order]))
    return adjusted


def benjamini_hochberg(p: Sequence[float] | Scores) -> Scores:
    """p-values of m comparisons so that the expected share of false ones among those found stays below the level.

    `p'_(i) = min over j >= i of m p_(j) / j`; Benjamini and Hochberg 1995, "Controlling the false discovery rate", by
    `scipy.stats.false_discovery_control`. Finds more than Holm's; holds for independent comparisons.

    Raises:
        ConfigError: there is none, or one lies outside [0, 1].
    """
    return np.asarray(stats.false_discovery_control(p_values(p)))


def _difference(x: Scores, y: Scores) -> float:
    return float(x.mean() - y.mean())


def _mean_difference(x: Scores, y: Scores, axis: int) -> Scores:
    return np.asarray(x.mean(axis) - y.mean(axis))
