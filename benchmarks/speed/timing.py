"""Numbers over rounds; no package but Python's own, since foreign interpreters load this one too."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Median, smallest and largest over rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Timing:
        return cls(float(statistics.median(values)), float(min(values)), float(max(values)))

    @classmethod
    def ratio(cls, above: Sequence[float], below: Sequence[float]) -> Timing:
        """Of `above / below`, taken round by round: what slows a whole round down cancels."""
        return cls.of([a / b for a, b in zip(above, below, strict=True)])
