"""What a simulation study is made of: its size, the names of what is compared, and rows of plain data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.statistics.checks import Scores
from benchmarks.statistics.simulation import DISTRIBUTIONS
from metarl.errors import ConfigError

SEEDS = (3, 5, 10)
TASKS = (1, 4, 12)
EFFECTS = (0, 1, 2)  # in standard deviations over seeds
CORRELATIONS = (0.0, 0.5, 0.8)  # of two methods' scores over seeds
WITHIN = (0.0, 0.5, 0.8)  # correlations of a run's evaluations
EVALUATIONS = 10
COMPARISONS = 12
MEAN, DIFFERENCE, IQM = "mean of one cell", "difference of two methods", "IQM"
IMPROVEMENT, PROFILE = "probability of improvement", "performance profile"
OURS = {  # the defaults
    MEAN: "Student's t",
    DIFFERENCE: "paired t",
    IQM: "t",
    IMPROVEMENT: "score",
    PROFILE: "Clopper-Pearson",
}
OUR_TEST, UNPAIRED, COMMON = "paired t over seeds", "Welch over seeds", "paired t over common seeds"
GORL = "paired t over evaluations"
UNLIKE, MISSING = "unlike spread", "unlike seeds"
Row = dict[str, Any]
Study = Callable[[], list[Row]]


@dataclass(frozen=True)
class Size:
    """How much is simulated.

    Attributes:
        simulations: of every cell.
        samples: resamples of each bootstrap.
        seed: of everything.
        seeds: numbers of seeds.
        distributions: names of those that scores are drawn from.
        tasks: numbers of tasks.
        only_ours: whether the other candidates are left out.
    """

    simulations: int = 1000
    samples: int = 500
    seed: int = 0
    seeds: tuple[int, ...] = SEEDS
    distributions: tuple[str, ...] = tuple(DISTRIBUTIONS)
    tasks: tuple[int, ...] = TASKS
    only_ours: bool = False

    def __post_init__(self) -> None:
        if self.simulations < 2:
            raise ConfigError(f"simulations: {self.simulations} say nothing; 1,000 take some minutes")


def keyed(x: Scores, y: Scores, moved: int = 0) -> tuple[dict[int, Any], dict[int, Any]]:
    """By seed; those of y start `moved` later."""
    return dict(enumerate(x)), dict(enumerate(y, moved))
