"""`metarl report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

console = Console()


def report(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="RESULTS",
            help="A bench folder, a folder of runs, or a results.parquet that a report left.",
            show_default=False,
        ),
    ],
    other: Annotated[
        Path | None,
        typer.Argument(metavar="[OTHER]", help="Results to compare with, cell by cell.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="By default RESULTS/report, and RESULTS/against-OTHER.", show_default=False),
    ] = None,
) -> None:
    """Print the results of a suite, or how two differ, and write them as a page."""
    from benchmarks import results
    from benchmarks.report import compare, tables
    from benchmarks.report import page as pages

    loaded = results.load(path)
    if other is None:
        page = pages.write(loaded, out or beside(path, "report"), parquet=path.is_dir())
        console.print(tables.rich_table(loaded), highlight=False)
        notes = tables.notes_of(loaded)
    else:
        found = compare.compare(loaded, results.load(other), str(path), str(other))
        page = compare.write(found, out or beside(path, f"against-{other.resolve().stem}"))
        console.print(compare.rich_table(found), highlight=False)
        notes = found.notes
    for note in notes:
        console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"page: {page}", highlight=False, soft_wrap=True)


def beside(path: Path, name: str) -> Path:
    """Where a report goes: into a folder of runs, or next to a file."""
    return path / name if path.is_dir() else path.with_name(f"{path.stem}-{name}")
