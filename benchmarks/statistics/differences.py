"""The difference of two methods' means over seeds, with its interval."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import stats

from benchmarks.statistics.checks import Scores, by_seed, constant, gaps, probability
from benchmarks.statistics.intervals import LEVEL, Interval, mean_interval


def difference(x: Mapping[int, float], y: Mapping[int, float], level: float = LEVEL) -> Interval | None:
    """Mean of x minus mean of y with the interval of `over_seeds`: 0 lies outside exactly where t finds a difference.

    Of the same seeds `mean d ± t((1 + level) / 2, n - 1) s_d / sqrt(n)`, d = x - y seed by seed (Student 1908, "The
    probable error of a mean"). Otherwise `mean x - mean y ± t((1 + level) / 2, df) SE`,
    `SE² = s_x² / n + s_y² / m`, `df = SE⁴ / (s_x⁴ / (n² (n - 1)) + s_y⁴ / (m² (m - 1)))` (Welch 1938, "The significance
    of the difference between two means when the population variances are unequal"; Satterthwaite 1946). Where nothing
    varies it has no width.

    Args:
        x, y: the score of each seed.

    Returns:
        None where a method has fewer than two seeds. `n` is that of the method with fewer.

    Raises:
        ConfigError: a score is not finite, or scores are not keyed by seed.
    """
    probability(level, "level")
    ours, theirs, paired = by_seed(x, y)
    n = min(len(ours), len(theirs))
    if n < 2:
        return None
    if paired:
        return mean_interval(gaps(ours, theirs)[0], level)
    value = float(ours.mean() - theirs.mean())
    parts = [_variance(scores) / len(scores) for scores in (ours, theirs)]
    if not sum(parts):
        value = 0.0 if constant(np.concatenate([ours, theirs])) else value  # not what rounding leaves
        return Interval(value, value, value, level, n)
    # Shares of SE², so that the squares of tiny variances do not vanish.
    shares = [part / sum(parts) for part in parts]
    df = 1 / (shares[0] ** 2 / (len(ours) - 1) + shares[1] ** 2 / (len(theirs) - 1))
    half = float(stats.t.ppf((1 + level) / 2, df) * np.sqrt(sum(parts)))
    return Interval(value, value - half, value + half, level, n)


def _variance(scores: Scores) -> float:
    return 0.0 if constant(scores) else float(scores.var(ddof=1))
