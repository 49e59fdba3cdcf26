"""Runs of a suite as local processes of one thread each; finished runs are skipped, killed and crashed ones go on.

Several executors may work on one folder: each run is claimed by a lock before it starts, and looked at again once it
is claimed, so that none is trained twice. An attempt that fails goes to the end of the queue and is made once more,
from the run's checkpoint: by then memory or a disk may have room again. Only a mistake that shows before the first
step is final at once, since it would show again.
"""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.running import locks
from benchmarks.running.attempt import Attempt, Events, stop, tail
from benchmarks.running.child import HELD, MISTAKE, NO_ROOM
from benchmarks.running.folder import BenchFolder
from benchmarks.running.jobs import Failure, Job
from benchmarks.running.resources import cores
from benchmarks.running.watch import Watch
from metarl.errors import one_line

POLL = 0.5  # seconds between looks at runs that other processes hold
ATTEMPTS = 2


class LocalExecutor:
    """Runs jobs as processes on this machine.

    Args:
        root: the bench folder.
        jobs: processes at a time; by default one per core.
        beside: where components named `module:Class` lie.
    """

    def __init__(self, root: Path, jobs: int | None = None, beside: Path | None = None) -> None:
        self.folder, self.limit, self.beside = BenchFolder(root), jobs or cores(), beside

    def __call__(self, jobs: Sequence[Job], watch: Watch) -> list[Failure]:
        """Runs all jobs, and returns those that failed; one failure stops no other job.

        Raises:
            KeyboardInterrupt: Ctrl-C or SIGTERM; the children are stopped first.
        """
        self._watch = watch
        self._waiting, self._running = list(jobs), dict[Job, Attempt]()
        self._held: set[Job] = set()
        self._tried: dict[Job, int] = {}
        self._failures: dict[Job, Failure] = {}
        self._before = self.folder.read_failures()
        self._events: Events = queue.SimpleQueue()
        with _sigterm_interrupts():
            try:
                while self._waiting or self._running:
                    self._fill()
                    self._listen()
            finally:
                with _deaf():  # impatience must not leave any behind
                    stop(self._running.values())
        return list(self._failures.values())

    # -- starting --------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        """Starts what there is room for; a run that another process holds stays in the queue."""
        for job in list(self._waiting):
            if len(self._running) >= self.limit:
                return
            try:
                self._take(job)
            except OSError as error:  # no room for a log, or no process to be had
                if job in self._waiting:
                    self._waiting.remove(job)
                self._failed(job, NO_ROOM, (f"error: it could not be started: {one_line(error)}",), final=False)

    def _take(self, job: Job) -> None:
        claim = locks.claimed(job.claims)
        with claim or ExitStack():
            if claim is None or not all(map(locks.free, job.locks)):
                self._hold(job)
                return
            self._waiting.remove(job)
            self._held.discard(job)
            if job.finished:  # by another process
                self._finish(job)
            elif job not in self._tried and self._attempts(job) >= ATTEMPTS:  # by another process, in vain
                entry = self._entry(job)
                self._give_up(Failure(job, int(entry["code"]), tail(job.log), int(entry["attempts"])))
            else:
                number = self._attempts(job) + 1
                self._running[job] = Attempt.start(
                    job, number, self.folder.path, self.beside, claim.pop_all(), self._events
                )
                self._watch.started(job)

    def _hold(self, job: Job) -> None:
        if job not in self._held:
            self._held.add(job)
            self._watch.waiting(job)

    # -- ending ----------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        """Waits for one event; only for a while where a run in the queue may come free meanwhile."""
        if not self._waiting and not self._running:
            return
        room = self._waiting and len(self._running) < self.limit
        try:
            job, event = self._events.get(timeout=POLL if room else None)
        except queue.Empty:
            return
        attempt = self._running[job]
        if event is None:
            with attempt.claim:
                self._ended(job, attempt)
        elif "error" in event:
            attempt.error = str(event["error"])
        else:
            attempt.begun = attempt.begun or "done" in event
            self._watch.event(job, event)

    def _ended(self, job: Job, attempt: Attempt) -> None:
        code = attempt.process.wait()
        del self._running[job]
        if code == HELD:  # `metarl train` has it
            attempt.forget()
            self._waiting.append(job)
            self._hold(job)
        elif code:
            self._failed(job, code, attempt.said, final=code == MISTAKE and not attempt.begun)
        else:
            attempt.forget(unless_said=True)
            self._finish(job)

    def _finish(self, job: Job) -> None:
        self._record(dict.fromkeys(job.keys))
        self._watch.ended(job, None)

    def _failed(self, job: Job, code: int, said: tuple[str, ...], final: bool) -> None:
        self._tried[job] = self._attempts(job) + 1
        failure = Failure(job, code, said, int(self._before_entry(job).get("attempts", 0)) + self._tried[job])
        log = str(job.log.relative_to(self.folder.path))
        entry = {"title": job.title, "code": code, "attempts": failure.attempts, "log": log}
        self._record(dict.fromkeys(job.keys, entry))
        if final or self._tried[job] >= ATTEMPTS:
            self._give_up(failure)
        else:
            self._waiting.append(job)
            self._watch.retrying(job, failure)

    def _give_up(self, failure: Failure) -> None:
        self._failures[failure.job] = failure
        self._watch.ended(failure.job, failure)

    # -- attempts --------------------------------------------------------------------------------------------

    def _attempts(self, job: Job) -> int:
        """Attempts that failed since this start, those of other processes included."""
        others = int(self._entry(job).get("attempts", 0)) - int(self._before_entry(job).get("attempts", 0))
        return max(self._tried.get(job, 0), others)

    def _entry(self, job: Job) -> Mapping[str, Any]:
        return self.folder.read_failures().get(job.keys[0], {})

    def _before_entry(self, job: Job) -> Mapping[str, Any]:
        return self._before.get(job.keys[0], {})

    def _record(self, change: Mapping[str, Mapping[str, Any] | None]) -> None:
        """A full disk takes the record, and not the other runs with it."""
        try:
            self.folder.change_failures(change)
        except OSError as error:
            self._watch.say(f"{self.folder.failures} could not be written: {one_line(error)}")


@contextmanager
def _deaf() -> Iterator[None]:
    with _handling({signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: signal.SIG_IGN}):
        yield


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM as KeyboardInterrupt, so that both end the children."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with _handling({signal.SIGTERM: interrupt}):
        yield


@contextmanager
def _handling(handlers: Mapping[signal.Signals, Any]) -> Iterator[None]:
    """Other handlers of signals meanwhile; only the main thread may set any."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
