"""The results table in its forms: terminal, CSV, Markdown."""

from __future__ import annotations

import csv
import io
import math

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from benchmarks.results import Cell, Results, Spread

CAPTION = (
    "Mean raw return over the last min(10, all) evaluations; ± is the standard deviation over seeds. "
    "best: the best evaluation of each seed."
)
FEW = "No significance is claimed below 3 seeds."


def rich_table(results: Results) -> RenderableType:
    """For the terminal."""
    table = Table(title=results.name, title_justify="left")
    table.add_column(results.row_title)
    for column in results.columns:
        table.add_column(Text(column), justify="right")
    for row in results.rows:
        cells = [results.at(row, column) for column in results.columns]
        table.add_row(Text(row), *(Text("\n".join(lines(cell))) for cell in cells))
    return Group(table, Text(caption(results), style="dim"))


def caption(results: Results) -> str:
    """What the numbers are, and a warning where seeds are few."""
    return f"{CAPTION} {FEW}" if results.fewest < 3 else CAPTION


def lines(cell: Cell | None) -> tuple[str, ...]:
    """The text of one cell: last with its number of seeds, and best."""
    if cell is None:
        return ("",)
    last, best = cell.last, cell.best
    if last is None or best is None:
        return (f"0 of {len(cell.seeds)} runs finished",)
    return f"{shown(last)}  (n={last.n})", f"best {shown(best)}"


def shown(spread: Spread) -> str:
    """`-1,234.5 ± 6.7`; one seed has no spread."""
    digits = 1 if math.hypot(spread.mean, spread.sd or 0) >= 10 else 3
    sd = "" if spread.sd is None else f" ± {spread.sd:,.{digits}f}"
    return f"{spread.mean:,.{digits}f}{sd}"


def csv_text(results: Results) -> str:
    """One row a cell, full precision, the seeds' scores at the end."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = [results.row_title or "row", results.column_title or "column", "n", "planned", "steps"]
    writer.writerow([*head, "mean", "sd", "best_mean", "best_sd", "seeds", "scores"])
    for cell in results.cells:
        runs = cell.finished
        figures = [value for spread in (cell.last, cell.best) for value in _numbers(spread)]
        seeds, scores = " ".join(str(run.seed) for run in runs), " ".join(repr(run.score) for run in runs)
        writer.writerow([cell.row, cell.column, len(runs), len(cell.seeds), cell.steps, *figures, seeds, scores])
    return text.getvalue()


def markdown(results: Results) -> str:
    """A table in GitHub's dialect."""
    rows = [[results.row_title, *results.columns], ["---", *("---:" for _ in results.columns)]]
    rows += [[row, *("<br>".join(lines(results.at(row, c))) for c in results.columns)] for row in results.rows]
    table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
    notes = "".join(f"\n- {note}" for note in results.notes)
    return f"{table}\n\n{caption(results)}\n{notes}".rstrip() + "\n"


def _numbers(spread: Spread | None) -> tuple[str, str]:
    if spread is None:
        return "", ""
    return repr(spread.mean), "" if spread.sd is None else repr(spread.sd)
