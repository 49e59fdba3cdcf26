"""What may be said of scores over a few seeds: `python -m benchmarks.statistics` measures how far it can be trusted.

`intervals.py` and `profiles.py` estimate, `tests.py` and `differences.py` compare, `coverage.py` simulates all of them
where the answer is known, `page.py` and `picture.py` write docs/statistics.md and its picture from the simulation's
result.
"""

from benchmarks.statistics.differences import difference
from benchmarks.statistics.intervals import LEVEL, Interval, iqm, mean_interval, stratified_bootstrap
from benchmarks.statistics.profiles import Profile, performance_profile, probability_of_improvement
from benchmarks.statistics.tests import (
    Test,
    benjamini_hochberg,
    holm,
    over_seeds,
    paired_t_over_evaluations,
    permutation,
    significant,
    welch,
)

__all__ = [
    "LEVEL",
    "Interval",
    "Profile",
    "Test",
    "benjamini_hochberg",
    "difference",
    "holm",
    "iqm",
    "mean_interval",
    "over_seeds",
    "paired_t_over_evaluations",
    "performance_profile",
    "permutation",
    "probability_of_improvement",
    "significant",
    "stratified_bootstrap",
    "welch",
]
