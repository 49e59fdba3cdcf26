"""`metarl bench`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from metarl.errors import ConfigError

if TYPE_CHECKING:
    from benchmarks.running.folder import BenchFolder
    from benchmarks.running.jobs import Failure, Job
    from benchmarks.running.suite import Suite

console = Console()
INTERRUPTED = 130  # exit status after Ctrl-C or SIGTERM
SUITES = ", ".join(sorted(file.stem for file in (Path(__file__).parents[1] / "suites").glob("*.yaml")))


def bench(
    suite: Annotated[str, typer.Argument(help=f"A suite's YAML file, or a shipped one: {SUITES}.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Settings of every cell as key=value, such as steps=200; or seeds=[0].", show_default=False
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            help="Runs at a time, one thread each; by default one per core as far as memory allows.", show_default=False
        ),
    ] = None,
    root: Annotated[Path, typer.Option(help="Where the suite's folder is made.")] = Path("runs"),
    small: Annotated[bool, typer.Option("--small", help="The suite's small form, to see in minutes that it works.")] = (
        False
    ),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, show the plan and estimate its time.")
    ] = False,
    no_estimate: Annotated[
        bool, typer.Option("--no-estimate", help="With --dry-run: time nothing, which takes some seconds a cell.")
    ] = False,
) -> None:
    """Run a suite of experiments; started again, it skips what is finished and retries what failed."""
    if jobs is not None and jobs < 1:
        raise ConfigError(f"--jobs must be at least 1, not {jobs}")
    try:
        _bench(suite, overrides or [], jobs, root, small, dry_run, not no_estimate)
    except KeyboardInterrupt:
        Console(stderr=True).print("stopped; run the same command again to go on", highlight=False)
        raise typer.Exit(INTERRUPTED) from None


def _bench(
    name: str, overrides: list[str], jobs: int | None, root: Path, small: bool, dry_run: bool, estimating: bool
) -> None:
    # Imported late, as PyTorch is with them: the other commands must not wait for it.
    from benchmarks.running import availability, resources
    from benchmarks.running import estimate as estimates
    from benchmarks.running import suite as suites
    from benchmarks.running.executor import LocalExecutor
    from benchmarks.running.folder import BenchFolder
    from benchmarks.running.jobs import plan
    from benchmarks.running.watch import watch

    loaded = availability.fitted(suites.load(suites.find(name), overrides, small))
    folder = BenchFolder(root / loaded.name)
    planned = plan(loaded, folder)
    errors = Console(stderr=True)
    room = resources.Room(jobs) if jobs else resources.room(*estimates.peak(loaded, folder))
    if dry_run:
        _show(loaded, planned, folder)
        if room.note:
            errors.print(room.note, highlight=False, soft_wrap=True)
        if estimating:
            processes = max(1, min(room.jobs, sum(not job.finished for job in planned)))
            found = estimates.estimate(
                loaded, planned, folder, processes, lambda text: errors.print(text, highlight=False, markup=False)
            )
            console.print(f"about {estimates.in_words(found.seconds)} ({found.how})", highlight=False, soft_wrap=True)
        return
    with folder.held(loaded):
        todo = [job for job in planned if not job.finished]
        if room.note and len(todo) > room.jobs:
            errors.print(room.note, highlight=False, soft_wrap=True)
        progress = watch()
        progress.begin(loaded.name, todo, finished=len(planned) - len(todo))
        try:
            failures = LocalExecutor(folder.path, room.jobs, loaded.path.parent)(todo, progress)
        finally:
            progress.close()
    done = sum(job.finished for job in planned)
    console.print(f"{done} of {len(planned)} runs finished; see them: metarl report {folder.path}", soft_wrap=True)
    if failures:
        _tell(failures, len(todo))
        raise typer.Exit(1)


def _tell(failures: Sequence[Failure], of: int) -> None:
    errors = Console(stderr=True)
    errors.print(f"{len(failures)} of {of} runs failed:", highlight=False)
    for failure in failures:
        job, times = failure.job, f", {failure.attempts} times" if failure.attempts > 1 else ""
        errors.print(f"\n{job.title} (exit {failure.code}{times}), {job.log}:", highlight=False, markup=False)
        errors.print("\n".join(failure.tail) or "it said nothing", highlight=False, markup=False, soft_wrap=True)
    errors.print("\nthe same command tries them again", highlight=False)


def _show(suite: Suite, jobs: Sequence[Job], folder: BenchFolder) -> None:
    from benchmarks.running.jobs import state

    failures = set(folder.read_failures())
    table = Table(box=None, pad_edge=False)
    for column in ("run", "steps", "state", "folder"):
        table.add_column(column, justify="right" if column == "steps" else "left", overflow="fold")
    for job in jobs:
        paths = "\n".join(str(run.path) for run in job.runs)
        table.add_row(Text(job.title), f"{job.steps:,}", state(job, failures), Text(paths))
    for one in suite.excluded:
        table.add_row(Text(one.title), "", Text(f"excluded: {one.reason}"), "")
    console.print(table)
    left = [job for job in jobs if not job.finished]
    steps = sum((job.steps - job.step) * len(job.seeds) for job in left)
    console.print(f"{len(jobs)} runs, {len(left)} of them to do: {steps:,} steps", highlight=False)
