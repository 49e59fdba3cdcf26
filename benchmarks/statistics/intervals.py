"""Confidence intervals over seeds: of one cell's mean, and of a statistic of all tasks' scores together."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from benchmarks.statistics.checks import Scores, array, by_task, constant, probability
from metarl.errors import ConfigError, nearest

LEVEL = 0.95  # of an interval
SAMPLES = 10_000  # of a bootstrap
TRIM = 0.25  # of the IQM, at each end

Statistic = Callable[..., Any]  # (scores, axis) -> reduced along the axis, as np.mean
Method = Literal["t", "percentile", "expanded", "bca"]
DEFAULT: Method = "t"


@dataclass(frozen=True)
class Interval:
    """An estimate with a confidence interval.

    Attributes:
        value: the estimate.
        low, high: the interval.
        level: how often such intervals should cover the true value.
        n: seeds; the fewest of any task.
    """

    value: float
    low: float
    high: float
    level: float
    n: int


def mean_interval(scores: ArrayLike, level: float = LEVEL) -> Interval | None:
    """Student's interval of one cell's mean over its seeds: `mean ± t((1 + level) / 2, n - 1) s / sqrt(n)`.

    Student 1908, "The probable error of a mean". Exact for normal scores at any number of seeds.

    Args:
        scores: one per seed.

    Returns:
        None below two seeds, whose spread nobody knows.

    Raises:
        ConfigError: a score is not finite.
    """
    found = array(scores, "scores")
    probability(level, "level")
    n = len(found)
    if n < 2:
        return None
    # Of equal scores numpy's mean may differ in its last bit, which would leave a spread.
    value, error = (found[0], 0.0) if constant(found) else (found.mean(), stats.sem(found))
    half = stats.t.ppf((1 + level) / 2, n - 1) * error
    return Interval(float(value), float(value - half), float(value + half), level, n)


def iqm(scores: ArrayLike, axis: int | None = None) -> Any:
    """The interquartile mean: what is left after a quarter of the scores, rounded down, is cut off at each end.

    `IQM = mean of x_(g+1) ... x_(N-g), g = floor(N / 4)`; Agarwal et al. 2021, "Deep reinforcement learning at the
    edge of the statistical precipice", section 4.3, in the form of their library rliable (`scipy.stats.trim_mean`).
    Of three scores it is their mean, of five the mean of the middle three.

    Args:
        scores: of all tasks and seeds together.
        axis: to reduce; all by default.
    """
    found = np.asarray(scores, dtype=np.float64)
    if not found.size:
        raise ConfigError("scores: empty; the interquartile mean needs at least one score")
    if axis is None:
        return float(stats.trim_mean(array(found.ravel(), "scores"), TRIM))
    return stats.trim_mean(found, TRIM, axis=axis)


def stratified_bootstrap(
    scores: Mapping[str, ArrayLike],
    statistic: Statistic = iqm,
    level: float = LEVEL,
    samples: int = SAMPLES,
    seed: int = 0,
    method: Method = DEFAULT,
) -> Interval:
    """An interval of a statistic of all tasks' scores, from resampling the seeds of each task (Agarwal et al. 2021).

    Methods, of which docs/statistics.md compares the coverage:

    - `t`: `value ± t((1 + level) / 2, df) SE`. SE is the bootstrap's standard error with every task's residuals
      multiplied by `sqrt(n / (n - 1))`, since plain resamples of n seeds vary too little by that factor (Hesterberg
      2015, "What teachers should know about the bootstrap": narrowness bias). df is Satterthwaite's (1946, "An
      approximate distribution of estimates of variance components") `(Σ v)² / Σ (v² / (n - 1))`, v being a task's
      part of the variance by the jackknife `(n - 1) / n Σ (θ_(-i) - mean)²`: tasks that the statistic trims away lend
      no degrees of freedom. Of one task's mean it is Student's interval.
    - `percentile`: quantiles of plain resamples, as in rliable. Too short for few seeds.
    - `expanded`: the same at `Φ(-sqrt(n / (n - 1)) t((1 + level) / 2, Σ (n - 1)))` and its mirror image (Hesterberg
      2015). No wider than the lowest to the highest resample.
    - `bca`: bias-corrected and accelerated (Efron 1987, "Better bootstrap confidence intervals"), by scipy.

    Args:
        scores: of every task, one per seed; tasks may differ in their number.
        statistic: of the pooled scores, `(scores, axis) -> value`, such as `iqm` or `np.mean`.
        samples: resamples.
        seed: of the resampling.

    Raises:
        ConfigError: no task, a task with fewer than two seeds, a score that is not finite, an unknown method.
    """
    tasks = list(by_task(scores, least=2).values())
    if method not in get_args(Method):
        raise ConfigError(f"method: no interval is called {method!r}.{nearest(str(method), get_args(Method))}")
    if samples < 2:
        raise ConfigError(f"samples: {samples} resamples make no interval; take 1,000 or more")
    found = bounds(tasks, statistic, probability(level, "level"), samples, seed, (method,))
    value = float(statistic(np.concatenate(tasks), axis=-1))
    return Interval(value, *found[method], level, min(map(len, tasks)))


def bounds(
    tasks: Sequence[Scores], statistic: Statistic, level: float, samples: int, seed: int, methods: Sequence[Method]
) -> dict[Method, tuple[float, float]]:
    """(low, high) by several methods; those that can share their resamples do."""

    def pooled(*parts: Scores, axis: int = -1) -> Any:
        return statistic(np.concatenate(parts, axis=axis), axis=axis)

    def resampled(of: Sequence[Scores]) -> NDArray[np.float64]:
        # The method is any: only the distribution is read, and this one is cheap.
        rng = np.random.default_rng(seed)
        made = stats.bootstrap(of, pooled, n_resamples=samples, vectorized=True, method="percentile", rng=rng)
        return np.asarray(made.bootstrap_distribution)

    value = float(pooled(*tasks))
    plain = resampled(tasks) if set(methods) - {"t"} else None
    found: dict[Method, tuple[float, float]] = {}
    for method in methods:
        if all(constant(task) for task in tasks):
            found[method] = (value, value)
        elif method == "t":
            half = _student(tasks, pooled, level) * resampled([_inflated(task) for task in tasks]).std(ddof=1)
            found[method] = (value - float(half), value + float(half))
        else:
            tail = (1 - level) / 2
            if method == "expanded":
                fewest = min(map(len, tasks))
                df = sum(len(task) - 1 for task in tasks)
                tail = float(stats.norm.cdf(np.sqrt(fewest / (fewest - 1)) * stats.t.ppf(tail, df)))
            low, high = np.quantile(plain, [tail, 1 - tail])  # type: ignore[arg-type]
            found[method] = (float(low), float(high))
            if method == "bca":
                found[method] = _bca(tasks, pooled, level, plain, found[method])
    return found


def _inflated(task: Scores) -> Scores:
    """Residuals that a resample draws with the variance that the sample estimates."""
    n, mean = len(task), task.mean()
    return np.asarray(mean + np.sqrt(n / (n - 1)) * (task - mean))


def _student(tasks: Sequence[Scores], pooled: Statistic, level: float) -> float:
    """Student's quantile at Satterthwaite's degrees of freedom."""
    scores = np.concatenate(tasks)
    others = ~np.eye(len(scores), dtype=bool)
    left_out = pooled(np.broadcast_to(scores, others.shape)[others].reshape(len(scores), -1))
    of_tasks = np.split(left_out, np.cumsum([len(task) for task in tasks])[:-1])
    variances = np.array([(len(part) - 1) * np.var(part) for part in of_tasks])
    sizes = np.array([len(task) - 1 for task in tasks])
    if not variances.sum():  # scores differ only where the statistic does not look
        return float(stats.t.ppf((1 + level) / 2, sizes.min()))
    variances /= variances.max()
    return float(stats.t.ppf((1 + level) / 2, variances.sum() ** 2 / (variances**2 / sizes).sum()))


def _bca(
    tasks: Sequence[Scores], pooled: Statistic, level: float, plain: Any, percentile: tuple[float, float]
) -> tuple[float, float]:
    """scipy's, from the resamples at hand; the percentiles where its correction is undefined."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        made = stats.bootstrap(
            tasks,
            pooled,
            n_resamples=0,
            vectorized=True,
            method="BCa",
            confidence_level=level,
            bootstrap_result=_Drawn(plain),
        )
    low, high = map(float, made.confidence_interval)
    return (low, high) if np.isfinite([low, high]).all() else percentile


@dataclass(frozen=True)
class _Drawn:
    """Of an earlier result, what `scipy.stats.bootstrap` reads."""

    bootstrap_distribution: NDArray[np.float64]
