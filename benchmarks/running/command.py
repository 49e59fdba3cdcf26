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
    from benchmarks.running.executor import Job

console = Console()
INTERRUPTED = 130  # exit status after Ctrl-C or SIGTERM


def bench(
    suite: Annotated[str, typer.Argument(help="A suite's YAML file, or a shipped one: demo.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Settings of every cell as key=value, such as steps=200; or seeds=[0].", show_default=False
        ),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(help="Runs at a time, one thread each; by default one per core.", show_default=False)
    ] = None,
    root: Annotated[Path, typer.Option(help="Where the suite's folder is made.")] = Path("runs"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and show the plan.")] = False,
) -> None:
    """Run a suite of experiments; started again, it skips what is finished."""
    from benchmarks.running import availability, executor
    from benchmarks.running import suite as suites
    from benchmarks.running.folder import BenchFolder
    from benchmarks.running.watch import watch

    if jobs is not None and jobs < 1:
        raise ConfigError(f"--jobs must be at least 1, not {jobs}")
    loaded = availability.fitted(suites.load(suites.find(suite), overrides or []))
    folder = BenchFolder(root / loaded.name)
    planned = executor.plan(loaded, folder)
    if dry_run:
        _show(planned)
        return
    folder.write(loaded)
    todo = [job for job in planned if not job.finished]
    progress = watch()
    progress.begin(loaded.name, todo, finished=len(planned) - len(todo))
    try:
        failures = executor.LocalExecutor(folder.path, jobs, loaded.path.parent)(todo, progress)
    except KeyboardInterrupt:
        progress.close()
        Console(stderr=True).print("stopped; run the same command again to go on", highlight=False)
        raise typer.Exit(INTERRUPTED) from None
    finally:
        progress.close()
    done = sum(job.finished for job in planned)
    console.print(f"{done} of {len(planned)} runs finished; see them: metarl report {folder.path}", soft_wrap=True)
    if failures:
        errors = Console(stderr=True)
        errors.print(f"{len(failures)} of {len(todo)} runs failed:", highlight=False)
        for failure in failures:
            errors.print(
                f"\n{failure.job.title} (exit {failure.code}), {failure.job.log}:", highlight=False, markup=False
            )
            errors.print("\n".join(failure.tail) or "it said nothing", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(1)


def _show(jobs: Sequence[Job]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("run", "steps", "state", "folder"):
        table.add_column(column, justify="right" if column == "steps" else "left", overflow="fold")
    for job in jobs:
        state = "finished" if job.finished else "goes on" if job.begun else "new"
        table.add_row(Text(job.title), f"{job.steps:,}", state, Text("\n".join(str(run.path) for run in job.runs)))
    console.print(table)
