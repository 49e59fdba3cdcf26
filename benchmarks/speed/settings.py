"""What is timed and for how long."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

SIZES = {"hopper": (11, 3), "halfcheetah": (17, 6)}
"""Lengths of observations and actions by environment."""


@dataclass(frozen=True)
class Settings:
    """Of one call of the benchmark.

    Attributes:
        sizes: names in `SIZES` that TD3+BC is timed at.
        rounds: each gives every contestant one turn.
        turn_s: CPU seconds of a turn, at least; steps are chosen for it beforehand.
        warm: steps of each contestant before anything is timed.
        hidden: widths of all networks of metarl, the textbook and the floor (CQL's have one layer more); rivals have
            their own defaults, the same.
        batch: transitions in a batch.
        samples: actions of each kind that CQL samples at a state.
        rows: transitions of the dataset.
        demos: demonstrated transitions.
        whole_steps: environment steps of a whole run.
        whole_rounds: pairs of whole runs.
        long: environment steps of the runs that they stand for.
        warm_start: share of a whole run's gradient steps that GILD has.
        slice_s: seconds of a turn of a whole run.
        outer: meta-steps of the question whether their cost stays.
        outer_hidden: widths of its networks, small, so that it takes seconds.
        core: the CPU core that every contestant is pinned to; None where the system cannot pin.
    """

    sizes: tuple[str, ...] = tuple(SIZES)
    rounds: int = 11
    turn_s: float = 0.4
    warm: int = 20
    hidden: tuple[int, ...] = (256, 256)
    batch: int = 256
    samples: int = 10
    rows: int = 200_000
    outer: int = 2000
    outer_hidden: tuple[int, ...] = (64, 64)
    core: int | None = None
    demos: int = 4000
    whole_steps: int = 20_000
    whole_rounds: int = 3
    long: int = 1_000_000
    warm_start: float = 0.01
    slice_s: float = 0.5

    @classmethod
    def quick(cls, core: int | None = None) -> Settings:
        """Small enough to see in seconds that everything runs; the numbers mean nothing."""
        return cls(("hopper",), 2, 0.0, 2, (16, 16), 16, 2, 2000, 40, (16, 16), core, 100, 300, 1, 300, 0.1)

    def options(self, size: str = "hopper") -> dict[str, Any]:
        """What every worker is told, unless it is told otherwise."""
        obs_dim, action_dim = SIZES[size]
        return {**asdict(self), "algorithm": "td3_bc", "obs_dim": obs_dim, "action_dim": action_dim}


def default_core() -> int | None:
    """The last core that this process may use; None where the system cannot say."""
    return max(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
