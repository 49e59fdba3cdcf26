"""Pendulum from scratch, five seeds of each algorithm: the recorded suite `online_pendulum` as a table and curves."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from benchmarks import results
from benchmarks.report.curves import learning_curves
from benchmarks.results import Results
from benchmarks.speed.tables import Grid

RECORDED = Path(results.__file__).parent / "results" / "online_pendulum.parquet"
SOLVED = -200.0
"""A mean return above this is called solved."""


def load() -> Results | None:
    """The recorded runs; None where there are none."""
    return results.load(RECORDED) if RECORDED.is_file() else None


def grid(found: Results) -> Grid:
    """One row an algorithm: the last evaluation's mean, and the lowest seed of it and of the last ten evaluations."""
    rows = []
    for cell in found.cells:
        last = [run.evaluations[-1].mean for run in cell.finished]
        lowest = min(sum(e.mean for e in run.evaluations[-10:]) / 10 for run in cell.finished)
        rows.append(
            (
                cell.row,
                str(len(last)),
                f"{sum(last) / len(last):,.0f}",
                f"{min(last):,.0f}",
                f"{lowest:,.0f}",
                "yes" if min(*last, lowest) > SOLVED else "no",
            )
        )
    head = (
        "algorithm",
        "seeds",
        "mean return at the end",
        "its lowest seed",
        "lowest seed, last 10 evaluations",
        "solved",
    )
    return Grid(f"Pendulum from scratch, {max(cell.steps for cell in found.cells):,} steps", head, rows)


def curves(found: Results) -> Figure | None:
    """Returns over environment steps."""
    return learning_curves(found)
