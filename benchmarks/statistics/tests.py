"""Tests of a difference between two methods, and what they may be called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from benchmarks.statistics.checks import Scores, array, by_seed, constant, gaps, in_order, p_values, probability
from metarl.errors import ConfigError

LEVEL = 0.05  # of a test
FEWEST = 3  # seeds, below which nothing is called significant
UNLIKE_SEEDS = "the two methods were run with unlike seeds, which make no pairs: compared as if they shared nothing"
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


def over_seeds(x: Mapping[int, float], y: Mapping[int, float]) -> Test | None:
    """Our default: the paired t-test over seeds where both methods have the same ones, otherwise Welch's.

    `t = mean d / (s_d / sqrt(n))`, d = x - y seed by seed; Student 1908, "The probable error of a mean". Runs of one
    seed share the draw of guide tuples, the initial networks, every batch and the evaluation's start states, so that
    their scores rise and fall together: pairs take that out of the difference, and Welch's, which takes them for
    independent, is much too careful (docs/statistics.md). Methods with unlike seeds make no pairs: all of their
    scores are compared by `welch`, and the warning says so.

    Where all gaps are the same there is no t. Where neither method has any spread either (every seed fails with the one
    and succeeds with the other), the permutation test stands in; else the exact test that flips the gaps' signs (Fisher
    1935, "The design of experiments"), `p = 2^(1 - n)`; p is 1 where they are zero.

    Args:
        x, y: the score of each seed.

    Returns:
        None where a method has fewer than two seeds.

    Raises:
        ConfigError: a score is not finite, or scores are not keyed by seed.
    """
    ours, theirs, paired = by_seed(x, y)
    if not paired:
        found = welch(ours, theirs)
        return found and replace(found, warning=_said(UNLIKE_SEEDS, found.warning))
    n = len(ours)
    if n < 2:
        return None
    if constant(ours) and constant(theirs):
        return _no_spread(ours, theirs)
    statistic, p, same = _paired(ours, theirs)
    equal = "the same difference on every seed, so that there is no t; signs are flipped instead" if same else ""
    difference = float(gaps(ours, theirs)[0].mean())
    return Test("paired t over seeds", difference, statistic, p, n, _said(equal, _few(n)))


def welch(x: ArrayLike, y: ArrayLike) -> Test | None:
    """Welch's t-test over seeds that make no pairs: `t = (mean x - mean y) / sqrt(s_x² / n + s_y² / m)`.

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
    if constant(ours) and constant(theirs):
        return _no_spread(ours, theirs)
    # From moments: of raw scores scipy warns where only one of the methods has no spread.
    moments = [moment for scores in (ours, theirs) for moment in (scores.mean(), scores.std(ddof=1), len(scores))]
    found = stats.ttest_ind_from_stats(*moments, equal_var=False)
    return Test("Welch over seeds", _difference(ours, theirs), float(found.statistic), float(found.pvalue), n, _few(n))


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


def paired_t_over_evaluations(x: Mapping[int, Sequence[float]], y: Mapping[int, Sequence[float]]) -> Test:
    """GORL's test: a paired t-test over all evaluations of all seeds, `t = mean d / (s_d / sqrt(N)), d = x - y`.

    "GORL": the papers pair the last 10 evaluations of 5 seeds and test on N = 50 pairs. Evaluations of one run share
    its policy's luck, so the N are not independent and p is far too small: docs/statistics.md shows how often it finds
    a difference where there is none. Kept for comparison with the papers; it always says so.

    Args:
        x, y: the evaluations of each seed, paired by seed and then in their order. Seeds of one method only are left
            out.

    Returns:
        `name` says how many pairs there are, `n` how many seeds.

    Raises:
        ConfigError: fewer than two common seeds, unlike numbers of evaluations, a score that is not finite.
    """
    ours, theirs = in_order(x, "x"), in_order(y, "y")
    common = [seed for seed in ours if seed in theirs]
    if len(common) < 2:
        raise ConfigError(
            f"x and y: seeds {[*ours]} and {[*theirs]} have fewer than two in common; give evaluations of the same "
            "seeds"
        )
    runs = [
        [array(of_seeds[seed], f"{what}[{seed}]") for seed in common] for what, of_seeds in (("x", ours), ("y", theirs))
    ]
    if {len(run) for method in runs for run in method} - {max(1, len(runs[0][0]))}:
        raise ConfigError(
            f"x and y: {[len(run) for run in runs[0]]} and {[len(run) for run in runs[1]]} evaluations of seeds "
            f"{common} do not make pairs; give as many of every seed, of both methods"
        )
    flat = [np.concatenate(method) for method in runs]
    statistic, p, same = _paired(*flat)
    warning = _said(
        "takes the evaluations of one run for independent, which they are not, so that p is too small: go by the test "
        "over seeds",
        "seeds of one method only are left out" if set(ours) != set(theirs) else "",
        "all pairs differ by the same, so that there is no t; signs are flipped instead" if same else "",
    )
    name = f"paired t over {flat[0].size} pairs of evaluations"
    return Test(name, float(gaps(*flat)[0].mean()), statistic, p, len(common), warning)


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


def _paired(x: Scores, y: Scores) -> tuple[float, float, bool]:
    """(t, p, whether all gaps are the same); then the exact test that flips their signs, which has no t."""
    found, same = gaps(x, y)
    if same:
        gap = float(found[0])
        return (float(np.copysign(np.inf, gap)), 2.0 ** (1 - len(found)), True) if gap else (0.0, 1.0, True)
    made = stats.ttest_rel(x, y)
    return float(made.statistic), float(made.pvalue), False


def _no_spread(x: Scores, y: Scores) -> Test:
    few = _few(min(len(x), len(y)))
    return replace(permutation(x, y), warning=_said("no spread over seeds, so that there is no t", few))


def _few(n: int) -> str:
    return "" if n >= FEWEST else f"{n} seeds: fewer than {FEWEST} are never called significant"


def _said(*warnings: str) -> str:
    return "; ".join(filter(None, warnings))


def _difference(x: Scores, y: Scores) -> float:
    return float(x.mean() - y.mean())


def _mean_difference(x: Scores, y: Scores, axis: int) -> Scores:
    return np.asarray(x.mean(axis) - y.mean(axis))
