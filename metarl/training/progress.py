"""Progress of long work: a bar for people, lines of JSON for a parent process, or nothing."""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Literal, Protocol, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

Style = Literal["auto", "bar", "lines", "none"]

REFRESH = 4  # drawings of a bar in a second: a drawing takes as long as half a training step


class Reporter(Protocol):
    """Told of every step; decides itself when to show something."""

    def start(self, title: str, done: int, total: int) -> None: ...

    def update(self, done: int, **figures: float) -> None: ...

    def say(self, text: str) -> None: ...

    def stop(self) -> None: ...


def reporter(style: Style) -> Reporter:
    """The reporter of a style; `auto` is a bar on a terminal and sparse lines of text elsewhere."""
    if style == "bar" or (style == "auto" and sys.stderr.isatty()):
        return Bar()
    return {"lines": Lines, "none": Silent}.get(style, Plain)()


class Bar:
    """A Rich progress bar: rate, remaining time, and the figures that people watch.

    Args:
        console: where it is drawn; by default standard error.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._progress = bar(console or Console(stderr=True))
        self._figures: dict[str, float] = {}
        self._done, self._last = 0, 0.0

    def start(self, title: str, done: int, total: int) -> None:
        self._done = done
        self._progress.start()
        self._task = self._progress.add_task(title, total=total, completed=done, figures="")

    def update(self, done: int, **figures: float) -> None:
        self._figures |= figures
        self._done = done
        now = time.monotonic()
        if figures or now - self._last > 1 / REFRESH:
            self._last = now
            self._tell()

    def say(self, text: str) -> None:
        self._progress.console.print(text, highlight=False)

    def stop(self) -> None:
        if self._progress.tasks:
            self._tell()
        self._progress.stop()

    def _tell(self) -> None:
        text = "  ".join(f"{name} {value:,.4g}" for name, value in self._figures.items())
        self._progress.update(self._task, completed=self._done, figures=text)


class Rate(ProgressColumn):
    """Steps per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f}/s" if speed else "-/s", style="progress.data.speed")


def bar(console: Console) -> Progress:
    """The house's progress bar; tasks carry a field `figures`."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
        console=console,
        refresh_per_second=REFRESH,
    )


class Lines:
    """One JSON object a line on standard output, at most ten in a second: for a parent that draws the bars."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._figures: dict[str, float] = {}
        self._last = 0.0

    def start(self, title: str, done: int, total: int) -> None:
        self._total = total
        self._emit({"title": title, "done": done, "total": total})

    def update(self, done: int, **figures: float) -> None:
        self._figures |= figures
        if done == self._total or time.monotonic() - self._last > 0.1:
            self._emit({"done": done, "total": self._total, **self._figures})

    def say(self, text: str) -> None:
        self._emit({"say": text})

    def stop(self) -> None:
        return

    def _emit(self, value: dict[str, Any]) -> None:
        self._last = time.monotonic()
        print(json.dumps(value), file=self._stream, flush=True)


class Plain:
    """Lines of text for logs: at most one in ten seconds, and every new figure."""

    def __init__(self) -> None:
        self._began = self._last = time.monotonic()

    def start(self, title: str, done: int, total: int) -> None:
        self._title, self._first, self._total = title, done, total
        self._began = time.monotonic()

    def update(self, done: int, **figures: float) -> None:
        now = time.monotonic()
        if not figures and now - self._last < 10:
            return
        self._last = now
        rate = (done - self._first) / max(now - self._began, 1e-9)
        speed = f"  {rate:,.0f}/s  {(self._total - done) / rate:,.0f} s left" if rate else ""
        text = "".join(f"  {name} {value:,.4g}" for name, value in figures.items())
        self.say(f"{self._title}: {done:,}/{self._total:,}{speed}{text}")

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def stop(self) -> None:
        return


class Silent:
    """Shows nothing but what must be said."""

    def start(self, title: str, done: int, total: int) -> None:
        return

    def update(self, done: int, **figures: float) -> None:
        return

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def stop(self) -> None:
        return
