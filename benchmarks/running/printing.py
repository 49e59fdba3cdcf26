"""What `metarl bench` prints before and after the runs: the plan, and what has failed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from benchmarks.running.jobs import Failure, Job, state, titled
from benchmarks.running.suite import Suite

MANY = 24  # runs, from which on the plan has a line a cell
WIDE = 100  # columns that a terminal needs for the folders


def show(console: Console, what: RenderableType) -> None:
    """Prints text as it is, or a table; where nobody is left to read it, what follows goes nowhere, and quietly."""
    try:
        console.print(what, highlight=False, markup=False, emoji=False, soft_wrap=isinstance(what, str))
    except (OSError, SystemExit):  # Rich answers a broken pipe with SystemExit
        _silence(console)


def flush(console: Console) -> None:
    """Writes what is left, or drops it where nobody reads it: at the end Python would make an exit status of it."""
    try:
        console.file.flush()
    except OSError:
        _silence(console)


def show_plan(console: Console, suite: Suite, jobs: Sequence[Job], failures: set[str]) -> None:
    """The runs, what is left out and why, and the sum; `failures` are the keys of failures.json."""
    rows = _rows(jobs, failures)
    folders = console.width >= WIDE and len(jobs) < MANY
    table = Table(box=None, pad_edge=False)
    for column in ("run", "steps", "state", "folder")[: 4 if folders else 3]:
        table.add_column(column, justify="right" if column == "steps" else "left", overflow="fold")
    for title, steps, how, paths in rows:
        table.add_row(Text(title), f"{steps:,}", how, *([Text(paths)] if folders else []))
    for one in suite.excluded:
        table.add_row(Text(one.title), "", Text(f"excluded: {one.reason}"))
    show(console, table)
    left = [job for job in jobs if not job.finished]
    steps = sum((job.steps - job.step) * len(job.seeds) for job in left)
    show(console, f"{len(jobs)} runs, {len(left)} of them to do: {steps:,} steps")


def show_failures(console: Console, failures: Sequence[Failure], of: int) -> None:
    """What each of them said last."""
    show(console, f"{len(failures)} of {of} runs failed:")
    for failure in failures:
        job, times = failure.job, f", {failure.attempts} times" if failure.attempts > 1 else ""
        show(console, f"\n{job.title} (exit {failure.code}{times}), {job.log}:")
        show(console, "\n".join(failure.tail) or "it said nothing")
    show(console, "\nthe same command tries them again")


def _silence(console: Console) -> None:
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), console.file.fileno())


def _rows(jobs: Sequence[Job], failures: set[str]) -> list[tuple[str, int, str, str]]:
    """Title, steps, state and folders: of every run, or of the runs of a cell that are in one state."""
    if len(jobs) < MANY:
        return [(job.title, job.steps, state(job, failures), _paths([job])) for job in jobs]
    alike: dict[tuple[str, str], list[Job]] = {}
    for job in jobs:
        alike.setdefault((job.cell, state(job, failures)), []).append(job)
    first = {cell: i for i, (cell, _) in reversed(list(enumerate(alike)))}  # states of a cell side by side
    return [
        (titled(cell, [seed for job in some for seed in job.seeds]), some[0].steps, how, _paths(some))
        for (cell, how), some in sorted(alike.items(), key=lambda entry: first[entry[0][0]])
    ]


def _paths(jobs: Sequence[Job]) -> str:
    return "\n".join(str(run.path) for job in jobs for run in job.runs)
