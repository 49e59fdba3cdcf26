"""What a run has cost so far: time and memory, in a file of its own, since no two runs of one seed cost the same."""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import asdict, dataclass

from metarl.training.folder import RunFolder, write_json


@dataclass(frozen=True)
class Cost:
    """Of the steps that a run's folder tells of, evaluations and checkpoints included; not of starting the process.

    Attributes:
        step: gradient steps that it was spent on.
        seconds: by the clock, of this run alone: a process that trains several seeds together is shared evenly.
        cpu_seconds: of the processor, shared likewise.
        peak_memory: bytes that the process held at most, shared by no one.
        together: seeds in that process.
    """

    step: int
    seconds: float
    cpu_seconds: float
    peak_memory: int
    together: int

    @classmethod
    def read(cls, folder: RunFolder) -> Cost | None:
        """What the folder records; None where nothing whole is there."""
        try:
            return cls(**json.loads(folder.cost.read_text()))
        except (OSError, ValueError, TypeError):
            return None


class Meter:
    """Adds to what a run has cost.

    Args:
        folder: the run's.
        step: that it goes on from.
        together: seeds in this process.
    """

    def __init__(self, folder: RunFolder, step: int, together: int) -> None:
        before = Cost.read(folder) if step else None
        self._before = before or Cost(0, 0.0, 0.0, 0, together)
        self._folder, self._together = folder, together
        self._clock, self._cpu = time.monotonic(), time.process_time()

    def write(self, step: int) -> None:
        """Records the cost up to `step`."""
        spent, cpu = time.monotonic() - self._clock, time.process_time() - self._cpu
        unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        cost = Cost(
            step=step,
            seconds=self._before.seconds + spent / self._together,
            cpu_seconds=self._before.cpu_seconds + cpu / self._together,
            peak_memory=max(self._before.peak_memory, peak),
            together=self._together,
        )
        write_json(self._folder.cost, asdict(cost))
