"""Runs of both sides, each kept in a file of its own, and the verdict over their seeds."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from benchmarks.statistics import Interval, difference, mean_interval
from metarl.errors import UserError
from metarl.training.folder import write_json

OFFICIAL, OURS = "official", "ours"
SIDES = (OFFICIAL, OURS)
RULE = (
    "Overlap is yes where the 95 % intervals of the two means share a point and the 95 % interval of the difference "
    "holds 0"
)


class Result(Protocol):
    """What a run gives, such as the episodes of an evaluation."""

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        ...


@dataclass(frozen=True)
class Job:
    """One seed of one side.

    Attributes:
        side, cell, seed: whose run it is.
        updates: gradient steps, by which the time left is told.
        plan: all that decides the numbers; a file of another plan is not taken for this run.
        go: trains and evaluates.
    """

    side: str
    cell: str
    seed: int
    updates: int
    plan: Mapping[str, Any]
    go: Callable[[], Result]

    @property
    def title(self) -> str:
        return f"{self.cell}, {self.side}, seed {self.seed}"

    @property
    def told(self) -> Any:
        """Its plan as JSON gives it back."""
        return json.loads(json.dumps(dict(self.plan)))

    def file(self, out: Path) -> Path:
        return out / f"{self.cell}-{self.side}-{self.seed}.json"


def run(jobs: Sequence[Job], out: Path, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Every job's record, `{"plan", "evaluation", "seconds"}`; those whose file is there are not run again.

    Raises:
        UserError: a file holds a run of another plan.
    """
    found = {job.title: _kept(job, out) for job in jobs}
    waiting = [job for job in jobs if found[job.title] is None]
    spent = done = 0.0
    for i, job in enumerate(waiting):
        left = sum(other.updates for other in waiting[i:])
        rest = f"; about {spent / done * left / 60:.0f} min left" if done else ""
        say(f"{len(jobs) - len(waiting) + i + 1}/{len(jobs)} {job.title}{rest}")
        began = time.perf_counter()
        result = job.go()
        seconds = time.perf_counter() - began
        record = {"plan": job.told, "evaluation": result.to_dict(), "seconds": round(seconds, 1)}
        out.mkdir(parents=True, exist_ok=True)
        write_json(job.file(out), record)
        found[job.title] = record
        spent, done = spent + seconds, done + job.updates
    return [record for record in found.values() if record is not None]


def _kept(job: Job, out: Path) -> dict[str, Any] | None:
    file = job.file(out)
    if not file.is_file():
        return None
    try:
        record: dict[str, Any] = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} cannot be read ({error}); remove it to have its run again") from error
    if record.get("plan") != job.told:
        raise UserError(f"{file} holds a run of other settings; move it away, or name another --out")
    return record


@dataclass(frozen=True)
class Verdict:
    """Two sides' means over seeds, and ours less the authors'."""

    official: Interval
    ours: Interval
    gap: Interval

    @property
    def overlap(self) -> bool:
        """See `RULE`."""
        meet = self.official.low <= self.ours.high and self.ours.low <= self.official.high
        return meet and self.gap.low <= 0 <= self.gap.high


def judge(official: Mapping[int, float], ours: Mapping[int, float]) -> Verdict:
    """Student's intervals over seeds; the difference is taken seed by seed.

    Raises:
        UserError: fewer than two seeds.
    """
    found = mean_interval(list(official.values())), mean_interval(list(ours.values())), difference(ours, official)
    if None in found:
        raise UserError("an interval over seeds needs two seeds or more; set --seeds 2 or more")
    return Verdict(*found)  # type: ignore[arg-type]
