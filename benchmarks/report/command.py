"""`metarl report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

console = Console()


def report(
    path: Annotated[
        Path, typer.Argument(metavar="DIR", help="A bench folder or a folder of runs.", show_default=False)
    ],
    out: Annotated[Path | None, typer.Option(help="By default DIR/report.", show_default=False)] = None,
) -> None:
    """Print the results of a suite and write them as a page."""
    from benchmarks import results
    from benchmarks.report import page as pages
    from benchmarks.report import tables

    loaded = results.load(path)
    page = pages.write(loaded, out or path / "report")
    console.print(tables.rich_table(loaded), highlight=False)
    for note in loaded.notes:
        console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"page: {page}", highlight=False, soft_wrap=True)
