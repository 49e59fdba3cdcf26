"""Seeds whose distribution is known, and the intervals and tests that our defaults are compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from benchmarks.statistics.checks import Scores

FAILS, DROP, SIGMA = 0.2, 5.0, 0.5
FINE = 10_000  # quantiles that stand for a distribution


@dataclass(frozen=True)
class Distribution:
    """Scores of one task over seeds, with mean 0 and standard deviation 1.

    Attributes:
        what: in words.
        draw: (generator, shape) -> scores.
        pair: (generator, shape, correlation) -> scores of two methods that correlate seed by seed.
        quantiles: many evenly spaced ones, which stand for the distribution where a true value is computed.
    """

    what: str
    draw: Callable[[np.random.Generator, tuple[int, ...]], Scores]
    pair: Callable[[np.random.Generator, tuple[int, ...], float], tuple[Scores, Scores]]
    quantiles: Scores


def _normal() -> Distribution:
    return Distribution("normal", lambda rng, shape: rng.standard_normal(shape), _normal_pair, _normal_quantiles(FINE))


def _normal_pair(rng: np.random.Generator, shape: tuple[int, ...], correlation: float) -> tuple[Scores, Scores]:
    z, own = rng.standard_normal((2, *shape))
    return z, correlation * z + np.sqrt(1 - correlation**2) * own


def _skewed() -> Distribution:
    """`(exp(σ z) - E) / sd` with `E = exp(σ²/2)`, `sd = E sqrt(exp(σ²) - 1)`.

    Of z that correlate by ρ' the scores do by `(exp(σ² ρ') - 1) / (exp(σ²) - 1)`.
    """
    mean = np.exp(SIGMA**2 / 2)
    sd = mean * np.sqrt(np.exp(SIGMA**2) - 1)

    def of(z: Scores) -> Scores:
        return np.asarray((np.exp(SIGMA * z) - mean) / sd)

    def pair(rng: np.random.Generator, shape: tuple[int, ...], correlation: float) -> tuple[Scores, Scores]:
        of_z = np.log1p(correlation * np.expm1(SIGMA**2)) / SIGMA**2
        x, y = _normal_pair(rng, shape, of_z)
        return of(x), of(y)

    what = f"lognormal, σ = {SIGMA:g}: skewness 1.75"
    return Distribution(what, lambda rng, shape: of(rng.standard_normal(shape)), pair, of(_normal_quantiles(FINE)))


def _failing() -> Distribution:
    """`(z - DROP f + DROP FAILS) / sqrt(1 + DROP² FAILS (1 - FAILS))`, f a failure.

    Of two methods z correlates by ρ, and with probability ρ a seed's failure is that of the other.
    """
    sd = np.sqrt(1 + DROP**2 * FAILS * (1 - FAILS))

    def of(z: Scores, fails: NDArray[np.bool_]) -> Scores:
        return np.asarray((z - DROP * fails + DROP * FAILS) / sd)

    def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> Scores:
        return of(rng.standard_normal(shape), rng.random(shape) < FAILS)

    def pair(rng: np.random.Generator, shape: tuple[int, ...], correlation: float) -> tuple[Scores, Scores]:
        x, y = _normal_pair(rng, shape, correlation)
        fails, own = rng.random((2, *shape)) < FAILS
        return of(x, fails), of(y, np.where(rng.random(shape) < correlation, fails, own))

    failed = round(FINE * FAILS)
    grid = np.concatenate([_normal_quantiles(failed), _normal_quantiles(FINE - failed)])
    what = f"bimodal: a seed fails with probability {FAILS:g} and then ends {DROP:g} standard deviations lower"
    return Distribution(what, draw, pair, np.sort(of(grid, np.arange(FINE) < failed)))


def _normal_quantiles(count: int) -> Scores:
    return np.asarray(stats.norm.ppf((np.arange(count) + 0.5) / count))


DISTRIBUTIONS = {"normal": _normal(), "skewed": _skewed(), "failing": _failing()}


def locations(tasks: int) -> tuple[Scores, Scores]:
    """(centres, spreads) of tasks that are unlike in both; of a single one, 0 and 1."""
    if tasks == 1:
        return np.zeros(1), np.ones(1)
    return np.linspace(0, 8, tasks), np.array([0.5, 1.0, 1.5, 1.0])[np.arange(tasks) % 4]


def generator(seed: int, *names: object) -> np.random.Generator:
    """Its own for every cell of a study, whichever others are simulated."""
    return np.random.default_rng([seed, *" ".join(map(str, names)).encode()])


# -- candidates, for many simulations at once --------------------------------------------------------------------


def bootstrap_t(scores: Scores, level: float, samples: int, rng: np.random.Generator) -> tuple[Scores, Scores]:
    """Bootstrap-t of means along the last axis: `mean - q s / sqrt(n)`, q quantiles of the resamples' own t.

    Efron 1981, "Nonparametric standard errors and confidence intervals". A resample
    of equal scores has no t: it counts as infinitely far on both sides.
    """
    n = scores.shape[-1]
    mean, error = scores.mean(-1, keepdims=True), scores.std(-1, ddof=1, keepdims=True) / np.sqrt(n)
    drawn = scores[..., rng.integers(0, n, (samples, n))]
    spread = drawn.std(-1, ddof=1) / np.sqrt(n)
    same = spread < 1e-12 * error
    t = (drawn.mean(-1) - mean) / np.where(same, 1.0, spread)
    tail = (1 - level) / 2
    highest = np.quantile(np.where(same, np.inf, t), 1 - tail, axis=-1, method="higher")
    lowest = np.quantile(np.where(same, -np.inf, t), tail, axis=-1, method="lower")
    centre, width = mean[..., 0], error[..., 0]
    return centre - highest * width, centre - lowest * width


def percentile_of_improvement(
    x: Scores, y: Scores, level: float, samples: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Percentiles of the probability of improvement over resamples of [tasks, seeds] by task."""
    tasks, n = x.shape
    place = np.arange(tasks)[:, None]
    above, below = (scores[place, rng.integers(0, n, (samples, tasks, n))] for scores in (x, y))
    wins = (above[..., :, None] > below[..., None, :]).mean((-3, -2, -1))
    low, high = np.quantile(wins, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def percentile_of_share(
    above: NDArray[np.bool_], level: float, samples: int, rng: np.random.Generator
) -> tuple[Scores, Scores]:
    """Percentiles of a profile over resamples; `above` is [simulations, thresholds, tasks, seeds].

    A resample of a task's n seeds has a binomial number of seeds above the threshold.
    """
    n = above.shape[-1]
    drawn = rng.binomial(n, above.mean(-1), (samples, *above.shape[:-1])).mean(-1) / n
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def wilson(share: Scores, runs: int, level: float) -> tuple[Scores, Scores]:
    """Wilson's score interval of a share (1927)."""
    z2 = stats.norm.ppf((1 + level) / 2) ** 2
    centre = (share + z2 / (2 * runs)) / (1 + z2 / runs)
    half = np.sqrt(z2 * (share * (1 - share) / runs + z2 / (4 * runs**2))) / (1 + z2 / runs)
    return centre - half, centre + half


def p_permutation(x: Scores, y: Scores, rng: np.random.Generator) -> Scores:
    """Permutation tests of means along the last axis, by at most 999 arrangements of each pair."""

    def difference(a: Scores, b: Scores, axis: int) -> Scores:
        return np.asarray(a.mean(axis) - b.mean(axis))

    found = stats.permutation_test((x, y), difference, vectorized=True, n_resamples=999, batch=100, axis=-1, rng=rng)
    return np.asarray(found.pvalue)
