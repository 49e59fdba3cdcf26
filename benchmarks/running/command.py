"""`metarl bench`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.running.signals import interrupted_by_signals
from metarl.errors import ConfigError

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
        with interrupted_by_signals():
            _bench(suite, overrides or [], jobs, root, small, dry_run, not no_estimate)
    except KeyboardInterrupt:
        with suppress(OSError):  # its terminal may be gone
            Console(stderr=True).print("stopped; run the same command again to go on", highlight=False)
        raise typer.Exit(INTERRUPTED) from None


def _bench(
    name: str, overrides: list[str], jobs: int | None, root: Path, small: bool, dry_run: bool, estimating: bool
) -> None:
    # Imported late, as PyTorch is with them: the other commands must not wait for it.
    from benchmarks.running import availability, resources
    from benchmarks.running import estimate as estimates
    from benchmarks.running import suite as suites
    from benchmarks.running.attempt import tidy
    from benchmarks.running.executor import LocalExecutor
    from benchmarks.running.folder import BenchFolder
    from benchmarks.running.jobs import plan
    from benchmarks.running.printing import flush, show, show_failures, show_plan
    from benchmarks.running.watch import watch

    errors = Console(stderr=True)

    def say(text: str) -> None:
        show(errors, text)

    loaded = availability.fitted(suites.load(suites.find(name), overrides, small), say)
    folder = BenchFolder(root / loaded.name)
    planned = plan(loaded, folder)
    room = resources.Room(jobs) if jobs else resources.room(*estimates.peak(loaded, folder))
    if dry_run:
        show_plan(console, loaded, planned, set(folder.read_failures()))
        for note in filter(None, (folder.orphans(loaded), room.note)):
            say(note)
        if estimating:
            processes = max(1, min(room.jobs, sum(not job.finished for job in planned)))
            found = estimates.estimate(loaded, planned, folder, processes, say)
            show(console, f"about {estimates.in_words(found.seconds)} ({found.how})")
        return
    with folder.held(loaded, say):
        todo = [job for job in planned if not job.finished]
        tidy([job for job in planned if job.finished], folder)
        if room.note and len(todo) > room.jobs:
            say(room.note)
        progress = watch()
        progress.begin(loaded.name, todo, finished=len(planned) - len(todo))
        try:
            failures = LocalExecutor(folder.path, room.jobs, loaded.path.parent)(todo, progress)
        finally:
            progress.close()
    flush(errors)
    done = sum(job.finished for job in planned)
    show(console, f"{done} of {len(planned)} runs finished; see them: metarl report {folder.path}")
    if failures:
        show_failures(errors, failures, len(planned))
    if failures or done < len(planned):
        raise typer.Exit(1)
