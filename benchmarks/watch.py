"""Showing a suite's progress: bars on a terminal, sparse lines elsewhere; both on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import TaskID

from metarl.training.progress import bar

if TYPE_CHECKING:
    from benchmarks.executor import Failure, Job

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

    def ended(self, job: Job, failure: Failure | None) -> None: ...

    def close(self) -> None: ...


def watch() -> Watch:
    """Bars where standard error is a terminal."""
    return Bars() if sys.stderr.isatty() else Lines()


class _Steps:
    """Steps and runs done, over all jobs; what a run had done before it was started here does not count."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.total = sum(job.steps for job in jobs)
        self.runs, self.ended, self.failed = len(jobs), 0, 0
        self._done: dict[Job, int] = {}
        self._began = time.monotonic()

    def start(self, job: Job, done: int) -> None:
        self.total -= done

    def update(self, job: Job, done: int) -> None:
        self._done[job] = done

    def end(self, job: Job, failure: Failure | None) -> None:
        self.ended += 1
        if failure is not None:  # its remaining steps will not be taken
            self.failed += 1
            self.total -= job.steps - self._done.get(job, 0)

    @property
    def done(self) -> int:
        return sum(self._done.values())

    @property
    def rate(self) -> float:
        """Steps per second, all processes together."""
        return self.done / max(time.monotonic() - self._began, 1e-9)

    @property
    def summary(self) -> str:
        failed = f", {self.failed} failed" if self.failed else ""
        return f"{self.ended} of {self.runs} runs{failed}"


class Bars:
    """One bar for the suite and one for every running child: rate, remaining time, last return."""

    def __init__(self) -> None:
        self._progress = bar(Console(stderr=True))
        self._tasks: dict[Job, TaskID] = {}

    def begin(self, name: str, jobs: Sequence[Job], finished: int) -> None:
        self._steps = _Steps(jobs)
        self._first: dict[Job, int] = {}
        self._progress.start()
        self._overall = self._progress.add_task(f"[bold]{name}", total=self._steps.total, figures=self._steps.summary)

    def started(self, job: Job) -> None:
        self._tasks[job] = self._progress.add_task(f"  {escape(job.title)}", total=job.steps, figures="starting")

    def event(self, job: Job, event: Mapping[str, Any]) -> None:
        if "say" in event:
            self._progress.console.print(f"{job.title}: {event['say']}", highlight=False, markup=False)
        if "done" not in event:
            return
        if "title" in event:  # the first line: where the run goes on from
            self._first[job] = event["done"]
            self._steps.start(job, event["done"])
            self._progress.reset(self._tasks[job], total=event["total"], completed=event["done"])
        self._steps.update(job, event["done"] - self._first.get(job, 0))
        figures = f"return {event['return']:,.4g}" if "return" in event else ""
        self._progress.update(self._tasks[job], completed=event["done"], figures=figures)
        self._refresh()

    def ended(self, job: Job, failure: Failure | None) -> None:
        self._steps.end(job, failure)
        self._progress.remove_task(self._tasks.pop(job))
        if failure is not None:
            self._progress.console.print(failed(failure), style="red", highlight=False, markup=False)
        self._refresh()

    def close(self) -> None:
        self._progress.stop()

    def _refresh(self) -> None:
        steps = self._steps
        self._progress.update(self._overall, completed=steps.done, total=steps.total, figures=steps.summary)


class Lines:
    """Lines of text for logs: every start, evaluation and end, and the sum every ten seconds."""

    def begin(self, name: str, jobs: Sequence[Job], finished: int) -> None:
        self._name, self._steps = name, _Steps(jobs)
        self._first: dict[Job, int] = {}
        self._returns: dict[Job, float] = {}
        self._clock: dict[Job, float] = {}
        self._last = time.monotonic()
        already = f"; {finished} finished before" if finished else ""
        self._say(f"{name}: {len(jobs)} runs, {self._steps.total:,} steps{already}")

    def started(self, job: Job) -> None:
        self._clock[job] = time.monotonic()

    def event(self, job: Job, event: Mapping[str, Any]) -> None:
        if "say" in event:
            self._say(f"{job.title}: {event['say']}")
        if "done" in event:
            if "title" in event:
                self._first[job] = event["done"]
                self._steps.start(job, event["done"])
            self._steps.update(job, event["done"] - self._first.get(job, 0))
        if "return" in event:
            self._returns[job] = event["return"]
        if time.monotonic() - self._last > INTERVAL:
            self._overall()

    def ended(self, job: Job, failure: Failure | None) -> None:
        self._steps.end(job, failure)
        seconds = time.monotonic() - self._clock[job]
        returned = f"return {self._returns[job]:,.4g}, " if job in self._returns else ""
        self._say(failed(failure) if failure else f"done: {job.title}  ({returned}{seconds:,.0f} s)")
        self._overall()

    def close(self) -> None:
        return

    def _overall(self) -> None:
        self._last = time.monotonic()
        steps = self._steps
        left = (steps.total - steps.done) / steps.rate if steps.rate else float("inf")
        self._say(
            f"{self._name}: {steps.summary}, {steps.done:,} of {steps.total:,} steps, {steps.rate:,.0f}/s, "
            f"{left:,.0f} s left"
        )

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def failed(failure: Failure) -> str:
    """One line: which run, how it ended, and the last thing that it said."""
    last = failure.tail[-1] if failure.tail else "it said nothing"
    return f"failed: {failure.job.title} (exit {failure.code}): {last}"
