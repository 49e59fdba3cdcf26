"""One attempt at a run: a process of one thread in a session of its own, its output, its log and its end."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.running.jobs import Job

Events = queue.SimpleQueue[tuple[Job, dict[str, Any] | None]]  # None: its process has ended

TAIL = 20  # lines of standard error that a failure keeps
GRACE = 2.0  # seconds between asking processes to stop and killing them

# Products of a step are too small to share among threads, and each compiler beside would hold a copy of PyTorch.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
HEADING = "-- attempt "


@dataclass
class Attempt:
    """A job's process.

    Attributes:
        job: which.
        process: a session of its own.
        claim: the runs' locks.
        log_start: where its part of the log begins.
        begun: whether it has reached its first step.
        error: what it said of its end.
    """

    job: Job
    process: subprocess.Popen[bytes]
    claim: ExitStack
    log_start: int
    begun: bool = False
    error: str = ""

    @classmethod
    def start(cls, job: Job, number: int, root: Path, beside: Path | None, claim: ExitStack, events: Events) -> Attempt:
        """Starts the process.

        Args:
            job: what it trains.
            number: of the attempt, for the log.
            root: where run folders lie.
            beside: where components named `module:Class` lie.
            claim: the runs' locks; released where it cannot be started.
            events: is told what it prints, and that it has ended.

        Raises:
            OSError: there is no room for its log, or no process to be had.
        """
        command = [sys.executable, "-P", "-m", "benchmarks.running.child", str(job.config), "--root", str(root)]
        command += [part for seed in job.seeds for part in ("--seed", str(seed))]
        command += ["--beside", str(beside)] if beside is not None else []
        environment = {"TORCHINDUCTOR_COMPILE_THREADS": "1", **os.environ, **ONE_THREAD}
        with claim, job.log.open("ab") as log:
            start = log.tell()
            seeds = " and ".join(map(str, job.seeds))
            log.write(f"{HEADING}{number}, seed {seeds}, from step {job.step:,} --\n".encode())
            log.flush()
            # A session of its own: Ctrl-C reaches this process alone, which then stops its children in order.
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,  # closed by this process's end; see child.py
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
            threading.Thread(target=_await, args=(job, process, events), daemon=True).start()
            return cls(job, process, claim.pop_all(), start)

    @property
    def said(self) -> tuple[str, ...]:
        """The last lines of its log, or what it said of its end where the disk took no log."""
        return tail(self.job.log, self.log_start) or ((self.error,) if self.error else ())

    def forget(self, unless_said: bool = False) -> None:
        """Takes it out of the log, where there is nothing to tell of it; an empty log goes."""
        with suppress(OSError):
            if not (unless_said and tail(self.job.log, self.log_start)):
                os.truncate(self.job.log, self.log_start)
            if not self.job.log.stat().st_size:
                self.job.log.unlink()


def stop(attempts: Collection[Attempt]) -> None:
    """Ends all their processes within `GRACE` and a little."""
    for attempt in attempts:
        _signal(attempt.process, signal.SIGTERM)
    end = time.monotonic() + GRACE
    for attempt in attempts:
        try:
            attempt.process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            _signal(attempt.process, signal.SIGKILL)
            attempt.process.wait()
        attempt.forget(unless_said=True)
        attempt.claim.close()


def tail(log: Path, start: int = 0) -> tuple[str, ...]:
    """The last lines of what stands in a log from `start` on, without the attempts' headings."""
    with suppress(OSError):
        text = log.read_bytes()[start:].decode(errors="replace")
        return tuple([line for line in text.rstrip().splitlines() if not line.startswith(HEADING)][-TAIL:])
    return ()


def _await(job: Job, process: subprocess.Popen[bytes], events: Events) -> None:
    """Passes on what a process prints, and its end."""
    assert process.stdin is not None
    reader = threading.Thread(target=_listen, args=(job, process, events), daemon=True)
    reader.start()
    process.wait()
    _signal(process, signal.SIGKILL)  # compilers that it left behind would keep its output open
    reader.join()
    process.stdin.close()
    events.put((job, None))


def _listen(job: Job, process: subprocess.Popen[bytes], events: Events) -> None:
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            events.put((job, _event(line.decode(errors="replace").strip())))


def _event(line: str) -> dict[str, Any]:
    """A line of `metarl train --progress lines`; any other output is something to say."""
    with suppress(ValueError):
        value = json.loads(line)
        if isinstance(value, dict):
            return value
    return {"say": line}


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    """To the process and all that it has started."""
    with suppress(ProcessLookupError, PermissionError):  # none is left
        os.killpg(process.pid, number)
