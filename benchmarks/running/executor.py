"""Runs of a suite as local processes of one thread each; finished runs are skipped, killed and crashed ones go on.

Several executors may work on one folder: each run is claimed by a lock before it starts, and looked at again once it
is claimed, so that none is trained twice. An attempt that fails goes to the end of the queue and is made once more,
from the run's checkpoint: by then memory or a disk may have room again. Only a mistake that shows before the first
step is final at once, since it would show again.

A run that starts with what others have trained waits for them in the queue, whoever trains them; where one of them has
failed for good there is nothing to start with, and it fails without an attempt.
"""

from __future__ import annotations

import errno
import queue
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.running import locks
from benchmarks.running.attempt import Attempt, Events, stop, tail
from benchmarks.running.child import HELD, MISTAKE, NO_ROOM
from benchmarks.running.folder import BenchFolder
from benchmarks.running.jobs import Failure, Job
from benchmarks.running.resources import cores
from benchmarks.running.signals import deaf, interrupted_by_signals
from benchmarks.running.watch import Tolerant, Watch
from metarl.errors import one_line

POLL = 0.5  # seconds between looks at runs that other processes hold
ATTEMPTS = 2
SCARCE = (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM)  # what the runs that are under way hold
NO_RESULT = "it ended without an error and without its result"


class CannotStart(Exception):
    """There is no room for a run's files, or no process or thread to be had.

    Attributes:
        scarce: whether there may be once a run that is under way has ended.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(one_line(error))
        self.scarce = not isinstance(error, OSError) or error.errno in SCARCE


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
            KeyboardInterrupt: Ctrl-C, SIGTERM or SIGHUP; the children are stopped first.
        """
        self._watch: Watch = Tolerant(watch)
        self._room = self.limit
        self._waiting, self._running = list(jobs), dict[Job, Attempt]()
        self._held: set[Job] = set()
        self._tried: dict[Job, int] = {}
        self._failures: dict[Job, Failure] = {}
        self._before = self.folder.read_failures()
        self._events: Events = queue.SimpleQueue()
        with interrupted_by_signals():
            try:
                while self._waiting or self._running:
                    self._fill()
                    self._listen()
            finally:
                with deaf():  # impatience must not leave any behind
                    stop(self._running.values())
        return list(self._failures.values())

    # -- starting --------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        """Starts what there is room for; a run that another process holds stays in the queue."""
        for job in list(self._waiting):
            if len(self._running) >= self._room:
                return
            try:
                self._take(job)
            except CannotStart as error:
                if not self._running:
                    self._waiting.remove(job)
                    self._failed(job, NO_ROOM, (f"error: it could not be started: {error}",), final=False)
                elif error.scarce:  # it stays in the queue
                    self._room = len(self._running)
                    self._watch.say(f"no more than {self._room} at a time from here on: {error}")

    def _take(self, job: Job) -> None:
        if missing := [need for need in job.needs if not need.finished]:
            if lost := [need for need in missing if need not in self._waiting and need not in self._running]:
                self._leave_queue(job)
                text = f"error: it starts with what {lost[0].title} has trained, and that run has failed"
                self._give_up(Failure(job, MISTAKE, (text,), attempts=0))
            return
        with _starting():
            claim = _claimed(job)
        if claim is None:
            self._hold(job)
            return
        with claim:
            if job.finished:  # by another process
                self._leave_queue(job)
                self._finish(job)
            elif job not in self._tried and self._attempts(job) >= ATTEMPTS:  # by another process, in vain
                self._leave_queue(job)
                entry = self._entry(job)
                self._give_up(Failure(job, int(entry.get("code", NO_ROOM)), tail(job.log), _count(entry)))
            else:
                number = self._attempts(job) + 1
                start = partial(Attempt.start, job, number, self.folder.path, self.beside)
                with _starting():
                    self._running[job] = start(claim.pop_all(), self._events)
                self._leave_queue(job)
                self._watch.started(job)

    def _leave_queue(self, job: Job) -> None:
        self._waiting.remove(job)
        self._held.discard(job)

    def _hold(self, job: Job) -> None:
        if job not in self._held:
            self._held.add(job)
            self._watch.waiting(job)

    # -- ending ----------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        """Waits for one event; only for a while where a run in the queue may come free meanwhile."""
        if not self._waiting and not self._running:
            return
        room = self._waiting and len(self._running) < self._room
        try:
            job, process, event = self._events.get(timeout=POLL if room else None)
        except queue.Empty:
            return
        attempt = self._running.get(job)
        if attempt is None or attempt.process is not process:  # a helper still speaks for an attempt that has ended
            return
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
        elif code or not job.finished:
            if not code:  # some component ended the process, or its plan was read when it was another
                attempt.note(NO_RESULT)
            self._failed(job, code, attempt.said, final=code == MISTAKE and not attempt.begun)
        else:
            attempt.forget(unless_said=True)
            self._finish(job)

    def _finish(self, job: Job) -> None:
        self._record(dict.fromkeys(job.keys))
        self._watch.ended(job, None)

    def _failed(self, job: Job, code: int, said: tuple[str, ...], final: bool) -> None:
        self._tried[job] = self._attempts(job) + 1
        failure = Failure(job, code, said, _count(self._before_entry(job)) + self._tried[job])
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
        others = _count(self._entry(job)) - _count(self._before_entry(job))
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


def _count(entry: Mapping[str, Any]) -> int:
    return int(entry.get("attempts", 0))


def _claimed(job: Job) -> ExitStack | None:
    """The job's locks; None where another process has taken it on, or trains it."""
    claim = locks.claimed(job.claims)
    if claim is None:
        return None
    with claim:
        return claim.pop_all() if all(map(locks.free, job.locks)) else None


@contextmanager
def _starting() -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise CannotStart(error) from error
