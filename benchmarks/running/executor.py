"""Runs of a suite as local processes, one thread each; finished runs are skipped, killed ones go on."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.running.folder import BenchFolder
from benchmarks.running.suite import Suite
from benchmarks.running.watch import Watch
from metarl.training.folder import RunFolder

TAIL = 20  # lines of standard error that a failure keeps
GRACE = 10.0  # seconds between asking a child to stop and killing it


@dataclass(frozen=True)
class Job:
    """One seed of one cell, or a stack of them.

    Attributes:
        title: for people.
        config: the cell's experiment file.
        seeds: of the runs.
        steps: gradient steps at the end, of each.
        runs: the runs' folders.
    """

    title: str
    config: Path
    seeds: tuple[int, ...]
    steps: int
    runs: tuple[RunFolder, ...]

    @property
    def log(self) -> Path:
        """Standard error of the last attempt, beside the (first) run's folder."""
        return self.runs[0].path.with_name(f"{self.runs[0].path.name}.log")

    @property
    def finished(self) -> bool:
        """Whether every result.json records all the steps."""
        return all((run.steps_on_record() or 0) >= self.steps for run in self.runs)

    @property
    def begun(self) -> bool:
        """Whether there is something to go on from."""
        return any(run.checkpoints.is_dir() for run in self.runs)


@dataclass(frozen=True)
class Failure:
    """A run that ended with an error.

    Attributes:
        job: which.
        code: exit status of the process; negative for a signal.
        tail: the last lines of its standard error.
    """

    job: Job
    code: int
    tail: tuple[str, ...]


def plan(suite: Suite, folder: BenchFolder) -> list[Job]:
    """Every run of a suite, stacked as its cell says; the first seeds of every cell come before the next of any."""
    by_cell = [(cell, cell.experiment.stack) for cell in suite.cells]
    starts = sorted((first, i) for i, (_, n) in enumerate(by_cell) for first in range(0, len(suite.seeds), n))
    jobs = []
    for first, i in starts:
        cell, n = by_cell[i]
        seeds = suite.seeds[first : first + n]
        jobs.append(
            Job(
                f"{cell.title} · seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}",
                folder.config(cell.slug),
                seeds,
                cell.experiment.steps,
                tuple(RunFolder.of(cell.experiment, seed, folder.path) for seed in seeds),
            )
        )
    return jobs


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class LocalExecutor:
    """Runs jobs as processes on this machine.

    Args:
        root: where run folders lie.
        jobs: processes at a time; by default one per core.
        beside: where components named `module:Class` lie.
    """

    def __init__(self, root: Path, jobs: int | None = None, beside: Path | None = None) -> None:
        self.root, self.limit, self.beside = root, jobs or cores(), beside

    def __call__(self, jobs: Sequence[Job], watch: Watch) -> list[Failure]:
        """Runs all jobs, and returns those that failed; one failure stops no other job.

        Raises:
            KeyboardInterrupt: Ctrl-C or SIGTERM; the children are stopped first.
        """
        waiting, running = list(jobs), dict[Job, subprocess.Popen[bytes]]()
        failures: list[Failure] = []
        events: queue.SimpleQueue[tuple[Job, dict[str, Any] | None]] = queue.SimpleQueue()
        with _sigterm_interrupts():
            try:
                while waiting or running:
                    while waiting and len(running) < self.limit:
                        job = waiting.pop(0)
                        running[job] = self._start(job, events)
                        watch.started(job)
                    job, event = events.get()
                    if event is not None:
                        watch.event(job, event)
                        continue
                    code = running[job].wait()
                    del running[job]
                    if code:
                        failures.append(Failure(job, code, _tail(job.log)))
                    elif not job.log.stat().st_size:
                        job.log.unlink()
                    watch.ended(job, failures[-1] if code else None)
            finally:
                _stop(list(running.values()))
        return failures

    def _start(self, job: Job, events: queue.SimpleQueue) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "metarl", "train", str(job.config)]
        command += [part for seed in job.seeds for part in ("--seed", str(seed))]
        command += ["--root", str(self.root), "--progress", "lines"]
        command += ["--beside", str(self.beside)] if self.beside is not None else []
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with job.log.open("wb") as log:
            # A session of its own: Ctrl-C reaches this process alone, which then stops its children in order.
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        threading.Thread(target=_listen, args=(job, process, events), daemon=True).start()
        return process


def _listen(job: Job, process: subprocess.Popen[bytes], events: queue.SimpleQueue) -> None:
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            events.put((job, _event(line.decode(errors="replace").strip())))
    events.put((job, None))


def _event(line: str) -> dict[str, Any]:
    """A line of `metarl train --progress lines`; any other output is something to say."""
    with suppress(ValueError):
        value = json.loads(line)
        if isinstance(value, dict):
            return value
    return {"say": line}


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM as KeyboardInterrupt, so that both end the children; only the main thread may set it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _tail(log: Path) -> tuple[str, ...]:
    return tuple(log.read_text(errors="replace").rstrip().splitlines()[-TAIL:])
