"""The runs of a suite, and where each of them stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.running.folder import BenchFolder
from benchmarks.running.suite import Cell, Suite
from metarl.training.folder import RunFolder


@dataclass(frozen=True)
class Job:
    """One seed of one cell, or a stack of them.

    Attributes:
        cell: its title.
        config: the cell's experiment file.
        seeds: of the runs.
        steps: gradient steps at the end, of each.
        runs: the runs' folders.
        needs: the jobs whose runs these start with.
    """

    cell: str
    config: Path
    seeds: tuple[int, ...]
    steps: int
    runs: tuple[RunFolder, ...]
    needs: tuple[Job, ...] = ()

    @property
    def title(self) -> str:
        """For people."""
        return titled(self.cell, self.seeds)

    @property
    def keys(self) -> tuple[str, ...]:
        """`<experiment>/<seed>` of every run: what failures.json calls it."""
        return tuple(f"{run.path.parent.name}/{run.path.name}" for run in self.runs)

    @property
    def log(self) -> Path:
        """Standard error of its attempts, beside the (first) run's folder."""
        return self.runs[0].path.with_name(f"{self.runs[0].path.name}.log")

    @property
    def claims(self) -> tuple[Path, ...]:
        """Files whose locks say that some `metarl bench` has taken the runs on."""
        return tuple(run.path.with_name(f".{run.path.name}.claim") for run in self.runs)

    @property
    def locks(self) -> tuple[Path, ...]:
        """Files whose locks say that some process is training the runs."""
        return tuple(run.path / ".lock" for run in self.runs)

    @property
    def finished(self) -> bool:
        """Whether every result.json records all the steps."""
        return all((run.steps_on_record() or 0) >= self.steps for run in self.runs)

    @property
    def step(self) -> int:
        """The step that it goes on from: that of the newest checkpoint which every seed has; 0 at the start."""
        return min(self.steps, *(_newest(run) for run in self.runs))


@dataclass(frozen=True)
class Failure:
    """An attempt that ended with an error.

    Attributes:
        job: which.
        code: exit status of the process; negative for a signal.
        tail: the last lines that it said.
        attempts: how many have failed since the run last finished.
    """

    job: Job
    code: int
    tail: tuple[str, ...]
    attempts: int = 1


def plan(suite: Suite, folder: BenchFolder) -> list[Job]:
    """Every run of a suite, stacked as its cell says; the first seeds of every cell come before the next of any."""
    cells = {cell.slug: cell for cell in suite.cells}
    made: dict[str, list[Job]] = {}

    def jobs_of(slug: str) -> list[Job]:
        if slug not in made:
            cell = cells[slug]
            before = [job for source in dict.fromkeys(cell.sources.values()) for job in jobs_of(source)]
            stacks = [suite.seeds[i : i + cell.experiment.stack] for i in _firsts(suite, cell)]
            made[slug] = [_job(cell, seeds, folder, before) for seeds in stacks]
        return made[slug]

    order = sorted((first, i) for i, cell in enumerate(suite.cells) for first in _firsts(suite, cell))
    return [jobs_of(suite.cells[i].slug)[first // suite.cells[i].experiment.stack] for first, i in order]


def _firsts(suite: Suite, cell: Cell) -> range:
    """Where the stacks of a cell begin among the seeds."""
    return range(0, len(suite.seeds), cell.experiment.stack)


def _job(cell: Cell, seeds: tuple[int, ...], folder: BenchFolder, before: Sequence[Job]) -> Job:
    return Job(
        cell.title,
        folder.config(cell.slug),
        seeds,
        cell.experiment.steps,
        tuple(RunFolder.of(cell.experiment, seed, folder.path) for seed in seeds),
        tuple(job for job in before if not set(seeds).isdisjoint(job.seeds)),
    )


def titled(cell: str, seeds: Sequence[int]) -> str:
    """A cell's title with some of its seeds."""
    return f"{cell} · seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def state(job: Job, failures: frozenset[str] | set[str]) -> str:
    """`finished`, `new`, or what it is between the two; `failures` are the keys of failures.json."""
    if job.finished:
        return "finished"
    failed = "failed before" if failures.intersection(job.keys) else ""
    on = f"goes on from step {job.step:,}" if job.step else ""
    return ", ".join(filter(None, (failed, on))) or "new"


def _newest(run: RunFolder) -> int:
    names = [path.name.removeprefix("step-") for path in run.checkpoints.glob("step-*")]
    return max((int(name) for name in names if name.isdigit()), default=0)
