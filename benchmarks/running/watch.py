"""Showing a suite's progress: bars on a terminal, sparse lines elsewhere; both on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import TaskID

from metarl.training.progress import bar

if TYPE_CHECKING:
    from benchmarks.running.jobs import Failure, Job

INTERVAL = 10.0  # seconds between lines


class Watch(Protocol):
    """Told what the runs of a suite do."""

    def begin(self, name: str, jobs: Sequence[Job], finished: int) -> None:
        """`jobs` are to run; `finished` others need nothing."""
        ...

    def started(self, job: Job) -> None: ...

    def event(self, job: Job, event: Mapping[str, Any]) -> None:
        """A line of `metarl train --progress lines`."""
        ...

    def waiting(self, job: Job) -> None:
        """Another process has the run; it is looked at again later."""
        ...

    def retrying(self, job: Job, failure: Failure) -> None:
        """An attempt failed, and another is to come."""
        ...

    def ended(self, job: Job, failure: Failure | None) -> None: ...

    def say(self, text: str) -> None: ...

    def close(self) -> None: ...


def watch() -> Watch:
    """Bars where standard error is a terminal."""
    return Tolerant(Bars() if sys.stderr.isatty() else Lines())


class Tolerant:
    """Tells a watch what happens for as long as it can show it: training outlives its terminal."""

    def __init__(self, watch: Watch) -> None:
        self._watch, self._lost = watch, False

    def begin(self, name: str, jobs: Sequence[Job], finished: int) -> None:
        self._tell(self._watch.begin, name, jobs, finished)

    def started(self, job: Job) -> None:
        self._tell(self._watch.started, job)

    def event(self, job: Job, event: Mapping[str, Any]) -> None:
        self._tell(self._watch.event, job, event)

    def waiting(self, job: Job) -> None:
        self._tell(self._watch.waiting, job)

    def retrying(self, job: Job, failure: Failure) -> None:
        self._tell(self._watch.retrying, job, failure)

    def ended(self, job: Job, failure: Failure | None) -> None:
        self._tell(self._watch.ended, job, failure)

    def say(self, text: str) -> None:
        self._tell(self._watch.say, text)

    def close(self) -> None:
        self._lost = False  # bars hold a thread
        self._tell(self._watch.close)

    def _tell(self, call: Callable[..., None], *arguments: Any) -> None:
        if self._lost:
            return
        try:
            call(*arguments)
        except (OSError, SystemExit):  # Rich answers a broken pipe with SystemExit
            self._lost = True


class _Tally:
    """Steps and runs done, over all jobs. Steps taken before this start count neither as done nor as to do."""

    def __init__(self, jobs: Sequence[Job], finished: int) -> None:
        self.runs, self.ended, self.failed = len(jobs) + finished, finished, 0
        self.first = {job: job.step for job in jobs}
        self._now = dict(self.first)
        self._given_up = 0
        self._taken = 0
        self._began = time.monotonic()

    def event(self, job: Job, event: Mapping[str, Any]) -> None:
        if "done" not in event:
            return
        done = event["done"]
        if "title" in event:  # the first line of an attempt says where it goes on from
            self.first[job] = min(self.first[job], done)  # earlier than planned: its newest checkpoint was damaged
        else:
            self._taken += max(0, done - self._now[job])
        self._now[job] = done

    def end(self, job: Job, failure: Failure | None) -> None:
        self.ended += 1
        if failure is None:
            self._now[job] = job.steps  # also where another process took them
        else:
            self.failed += 1
            self._given_up += job.steps - self._now[job]

    @property
    def total(self) -> int:
        """Steps to take, those of jobs that have failed for good left out."""
        return sum(job.steps - first for job, first in self.first.items()) - self._given_up

    @property
    def done(self) -> int:
        return sum(now - self.first[job] for job, now in self._now.items())

    @property
    def rate(self) -> float:
        """Steps per second, all processes together; those that a retry repeats count as often as they are taken."""
        return self._taken / max(time.monotonic() - self._began, 1e-9)

    @property
    def summary(self) -> str:
        failed = f", {self.failed} failed" if self.failed else ""
        return f"{self.ended} of {self.runs} runs{failed}"


class Bars:
    """One bar for the suite and one for every running child: rate, remaining time, last return."""

    def __init__(self, console: Console | None = None) -> None:
        self._progress = bar(console or Console(stderr=True))
        self._tasks: dict[Job, TaskID] = {}

    def begin(self, name: str, jobs: Sequence[Job], finished: int) -> None:
        self._tally = _Tally(jobs, finished)
        title = f"[bold]{escape(name)}[/bold]"
        self._progress.start()
        self._overall = self._progress.add_task(title, total=self._tally.total, figures=self._tally.summary)

    def started(self, job: Job) -> None:
        title, first = f"  {escape(job.title)}", self._tally.first[job]
        self._tasks[job] = self._progress.add_task(title, total=job.steps, completed=first, figures="starting")

    def event(self, job: Job, event: Mapping[str, Any]) -> None:
        self._tally.event(job, event)
        if "say" in event:
            self.say(f"{job.title}: {event['say']}")
        if job not in self._tasks:
            return
        if "title" in event:  # the clock of its rate starts now, without the seconds that imports took
            self._progress.reset(self._tasks[job], total=event["total"], completed=event["done"])
        if "done" in event:
            figures = f"return {event['return']:,.4g}" if "return" in event else ""
            self._progress.update(self._tasks[job], completed=event["done"], figures=figures)
            self._refresh()

    def waiting(self, job: Job) -> None:
        self._remove(job)
        self.say(held(job))

    def retrying(self, job: Job, failure: Failure) -> None:
        self._remove(job)
        self._progress.console.print(retried(failure), style="yellow", highlight=False, markup=False)

    def ended(self, job: Job, failure: Failure | None) -> None:
        self._tally.end(job, failure)
        self._remove(job)
        if failure is not None:
            self._progress.console.print(failed(failure), style="red", highlight=False, markup=False)
        self._refresh()

    def say(self, text: str) -> None:
        self._progress.console.print(text, highlight=False, markup=False)

    def close(self) -> None:
        self._progress.stop()

    def _remove(self, job: Job) -> None:
        if job in self._tasks:
            self._progress.remove_task(self._tasks.pop(job))

    def _refresh(self) -> None:
        tally = self._tally
        self._progress.update(self._overall, completed=tally.done, total=tally.total, figures=tally.summary)


class Lines:
    """Lines of text for logs: every start, evaluation and end, and the sum every ten seconds."""

    def begin(self, name: str, jobs: Sequence[Job], finished: int) -> None:
        self._name, self._tally = name, _Tally(jobs, finished)
        self._returns: dict[Job, float] = {}
        self._clock: dict[Job, float] = {}
        self._last = time.monotonic()
        already = f"; {finished} finished before" if finished else ""
        self.say(f"{name}: {len(jobs)} runs, {self._tally.total:,} steps{already}")

    def started(self, job: Job) -> None:
        self._clock[job] = time.monotonic()

    def event(self, job: Job, event: Mapping[str, Any]) -> None:
        self._tally.event(job, event)
        if "say" in event:
            self.say(f"{job.title}: {event['say']}")
        if "return" in event:
            self._returns[job] = event["return"]
        if time.monotonic() - self._last > INTERVAL:
            self._overall()

    def waiting(self, job: Job) -> None:
        self.say(held(job))

    def retrying(self, job: Job, failure: Failure) -> None:
        self.say(retried(failure))

    def ended(self, job: Job, failure: Failure | None) -> None:
        self._tally.end(job, failure)
        returned = f"return {self._returns[job]:,.4g}, " if job in self._returns else ""
        took = f"{time.monotonic() - self._clock[job]:,.0f} s" if job in self._clock else "by another process"
        self.say(failed(failure) if failure else f"done: {job.title}  ({returned}{took})")
        self._overall()

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        return

    def _overall(self) -> None:
        self._last = time.monotonic()
        tally, rate = self._tally, self._tally.rate
        left = f", {(tally.total - tally.done) / rate:,.0f} s left" if rate else ""
        self.say(f"{self._name}: {tally.summary}, {tally.done:,} of {tally.total:,} steps, {rate:,.0f}/s{left}")


def failed(failure: Failure) -> str:
    """One line: which run, how it ended, and the last thing that it said."""
    return f"failed: {_how(failure)}"


def retried(failure: Failure) -> str:
    """The same of an attempt that is not the last."""
    return f"to be tried again: {_how(failure)}"


def held(job: Job) -> str:
    """One line about a run that another process trains."""
    return f"waiting: {job.title}: another process is training it"


def _how(failure: Failure) -> str:
    last = failure.tail[-1] if failure.tail else "it said nothing"
    return f"{failure.job.title} (exit {failure.code}): {last}"
