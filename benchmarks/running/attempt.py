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
from collections.abc import Collection, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.running.folder import BenchFolder
from benchmarks.running.jobs import Job

Process = subprocess.Popen[bytes]
Events = queue.SimpleQueue[tuple[Job, Process, dict[str, Any] | None]]  # None: the process has ended

TAIL = 20  # lines of standard error that a failure keeps,
WIDTH = 500  # characters of each of them,
LAST = 1 << 16  # bytes of a log's end that they are looked for in
GRACE = 2.0  # seconds between asking processes to stop and killing them

# Products of a step are too small to share among threads, and each compiler beside would hold a copy of PyTorch.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
HEADING = "-- attempt "

# What a line of progress may hold beside figures of other names.
KINDS = {"title": str, "say": str, "error": str, "done": int, "total": int, "return": (int, float)}


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
    process: Process
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
            RuntimeError: there is no thread to be had.
        """
        environment = {"TORCHINDUCTOR_COMPILE_THREADS": "1", **os.environ, **ONE_THREAD}
        with claim, job.log.open("ab") as log:
            start = log.tell()
            seeds = " and ".join(map(str, job.seeds))
            log.write(f"{HEADING}{number}, seed {seeds}, from step {job.step:,} --\n".encode())
            log.flush()
            # A session of its own: Ctrl-C reaches this process alone, which then stops its children in order.
            try:
                process = subprocess.Popen(
                    command_of(job, root, beside),
                    stdin=subprocess.PIPE,  # closed by this process's end; see child.py
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=environment,
                    start_new_session=True,
                )
                _follow(job, process, events)
            except (OSError, RuntimeError):
                _shorten(job.log, start)
                drop_empty(job.log)
                raise
            return cls(job, process, claim.pop_all(), start)

    @property
    def said(self) -> tuple[str, ...]:
        """The last lines of its log, or what it said of its end where the disk took no log."""
        return tail(self.job.log, self.log_start) or ((self.error,) if self.error else ())

    def note(self, text: str) -> None:
        """Adds to what it said."""
        self.error = text
        with suppress(OSError), self.job.log.open("a") as log:
            log.write(f"{text}\n")

    def forget(self, unless_said: bool = False) -> None:
        """Takes it out of the log, where there is nothing to tell of it; a log that says nothing goes."""
        if not (unless_said and tail(self.job.log, self.log_start)):
            _shorten(self.job.log, self.log_start)
        drop_empty(self.job.log)


def command_of(job: Job, root: Path, beside: Path | None) -> list[str]:
    """The command line of a job's process."""
    command = [sys.executable, "-P", "-m", "benchmarks.running.child", str(job.config), "--root", str(root)]
    command += [part for seed in job.seeds for part in ("--seed", str(seed))]
    return command + (["--beside", str(beside)] if beside is not None else [])


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
    with suppress(OSError), log.open("rb") as file:
        file.seek(max(start, file.seek(0, os.SEEK_END) - LAST))
        lines = file.read(LAST).decode(errors="replace").rstrip().splitlines()
        said = [line for line in lines if not line.startswith(HEADING)][-TAIL:]
        return tuple(line if len(line) <= WIDTH else f"{line[:WIDTH]} ..." for line in said)
    return ()


def drop_empty(log: Path) -> None:
    """Deletes a log that holds headings of attempts at the most."""
    with suppress(OSError):
        if log.stat().st_size < LAST and not tail(log):
            log.unlink()


def tidy(finished: Iterable[Job], folder: BenchFolder) -> None:
    """What the processes of finished jobs may not have lived to do: no entry in failures.json, no log without words."""
    finished = list(finished)
    with suppress(OSError):
        folder.change_failures({key: None for job in finished for key in job.keys})
    for job in finished:
        drop_empty(job.log)


def _shorten(log: Path, size: int) -> None:
    with suppress(OSError):
        os.truncate(log, size)


def _follow(job: Job, process: Process, events: Events) -> None:
    """Passes on what a process prints, and its end."""
    reader = threading.Thread(target=_listen, args=(job, process, events), daemon=True)
    try:
        reader.start()
        threading.Thread(target=_await, args=(job, process, reader, events), daemon=True).start()
    except RuntimeError:  # nobody would learn of its end
        _signal(process, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, None if reader.ident else process.stdout):
            if pipe is not None:
                pipe.close()
        raise


def _await(job: Job, process: Process, reader: threading.Thread, events: Events) -> None:
    assert process.stdin is not None
    process.wait()
    _signal(process, signal.SIGKILL)  # compilers that it left behind would keep its output open
    reader.join(GRACE)  # as may a helper in a session of its own: it is not waited for
    process.stdin.close()
    events.put((job, process, None))


def _listen(job: Job, process: Process, events: Events) -> None:
    assert process.stdout is not None
    with process.stdout as output:
        for line in iter(lambda: output.readline(LAST), b""):
            events.put((job, process, event_of(line.decode(errors="replace").strip())))


def event_of(line: str) -> dict[str, Any]:
    """A line of `metarl train --progress lines`; any other output is something to say."""
    with suppress(ValueError, RecursionError):
        value = json.loads(line)
        if isinstance(value, dict) and _sound(value):
            return value
    return {"say": line[:WIDTH]}


def _sound(value: dict[str, Any]) -> bool:
    known = value.keys() & KINDS
    whole = known and ("done" in known) == ("total" in known) and ("title" not in known or "done" in known)
    return bool(whole) and all(isinstance(value[key], KINDS[key]) for key in known)  # type: ignore[arg-type]


def _signal(process: Process, number: int) -> None:
    """To the process and all that it has started."""
    with suppress(ProcessLookupError, PermissionError):  # none is left
        os.killpg(process.pid, number)
