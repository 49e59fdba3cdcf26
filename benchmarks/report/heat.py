"""Numbers over two axes as a heat map: shades of one or two colours behind, the numbers in the cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from benchmarks.colours import FAINT, PALETTE
from benchmarks.drawing import STYLE
from benchmarks.report.facts import seeds
from benchmarks.report.scores import grid
from benchmarks.results import Cell, Results

HIGH, LOW = PALETTE[1], PALETTE[2]  # blue and vermillion
STRONGEST = 0.5  # opacity, up to which ink stays readable on every shade in both schemes
MOST = 30  # labels of an axis, above which a heat map is no picture any more


@dataclass(frozen=True)
class Heat:
    """A heat map to be drawn.

    Attributes:
        title: names of the axis beside and the axis below.
        rows, columns: labels.
        values: [rows, columns], NaN where there is none.
        texts: in the cells.
        shades: [rows, columns] in -1 (vermillion) to 1 (blue).
        seeds: how many each number has, in words.
    """

    title: tuple[str, str]
    rows: Sequence[str]
    columns: Sequence[str]
    values: Any
    texts: Sequence[Sequence[str]]
    shades: Any
    seeds: str = ""


def heat_map(heat: Heat) -> Figure:
    """The picture; cells grow with their texts."""
    longest = max(len(text) for row in heat.texts for text in row)
    width = max(0.6, 0.085 * longest + 0.2)
    margin = 0.085 * max(map(len, heat.rows)) + 0.5
    slanted = max(map(len, heat.columns)) * 0.09 > width
    with mpl.rc_context(STYLE):
        size = (margin + width * len(heat.columns) + 0.2, 0.38 * len(heat.rows) + (1.5 if slanted else 0.9))
        figure = Figure(figsize=(max(size[0], 2.6), size[1]), layout="constrained")
        axis = figure.subplots()
        for i, row in enumerate(heat.texts):
            for j, text in enumerate(row):
                shade = float(np.nan_to_num(heat.shades[i, j]))
                colour = HIGH if shade >= 0 else LOW
                alpha = round(STRONGEST * abs(shade), 3)
                axis.add_patch(Rectangle((j, i), 1, 1, facecolor=colour, alpha=alpha, linewidth=0))
                axis.text(j + 0.5, i + 0.5, text, ha="center", va="center", fontsize=8.5)
        axis.set_xlim(0, len(heat.columns))
        axis.set_ylim(len(heat.rows), 0)
        turn: Any = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
        axis.set_xticks(np.arange(len(heat.columns)) + 0.5, list(heat.columns), **turn)
        axis.set_yticks(np.arange(len(heat.rows)) + 0.5, list(heat.rows))
        axis.tick_params(length=0)
        axis.spines[["left", "bottom"]].set_color(FAINT)
        axis.set_ylabel(heat.title[0])
        axis.set_xlabel(heat.title[1])
    return figure


def axes_of(results: Results) -> tuple[str, str] | None:
    """Two axes with several labels besides the columns' axis, numeric ones first; None where there are fewer."""
    several = [axis for axis, labels in results.axes.items() if axis != results.column_title and len(labels) > 1]
    several.sort(key=lambda axis: not all(map(_is_number, results.axes[axis])))
    if len(several) < 2 or any(len(results.axes[axis]) > MOST for axis in several[:2]):
        return None
    down, across = sorted(several[:2], key=list(results.axes).index)
    return down, across


def over_axes(results: Results, column: str) -> list[tuple[str, Heat]]:
    """(labels of the other axes, mean score over two axes) of one column; empty where there are no two."""
    axes = axes_of(results)
    if axes is None:
        return []
    down, across = axes
    rest = [axis for axis in results.axes if axis not in (down, across, results.column_title)]
    groups: dict[str, list[Cell]] = {}
    for cell in results.cells:
        if cell.column == column and {down, across} <= set(cell.labels):
            groups.setdefault(", ".join(_named(axis, cell.labels[axis]) for axis in rest), []).append(cell)
    scores = grid(results)
    rows, columns = results.axes[down], results.axes[across]
    drawn = []
    for name, cells in groups.items():
        values = np.full((len(rows), len(columns)), np.nan)
        texts = [[""] * len(columns) for _ in rows]
        n = {}
        for cell in cells:
            score = scores.at(cell.row, cell.column)
            if score is not None:
                i, j = rows.index(cell.labels[down]), columns.index(cell.labels[across])
                values[i, j] = score.mean if np.isfinite(score.mean) else np.nan
                texts[i][j] = score.value.replace("-", "−")
                n[f"{rows[i]}, {columns[j]}"] = score.n
        if np.isfinite(values).any():
            drawn.append((name, Heat((down, across), rows, columns, values, texts, _scaled(values), seeds(n))))
    return drawn


def probabilities(rows: Sequence[str], probability: Callable[[str, str], float]) -> Heat:
    """P(row > column) of every ordered pair, blue above a half and vermillion below."""
    values = np.array([[np.nan if a == b else probability(a, b) for b in rows] for a in rows])
    texts = [["" if np.isnan(v) else f"{v:.2f}" for v in row] for row in values]
    return Heat(("", ""), rows, rows, values, texts, 2 * values - 1)


def _named(axis: str, label: str) -> str:
    """A number says nothing without the name of its axis."""
    return f"{axis} {label}" if _is_number(label) else label


def _is_number(label: str) -> bool:
    try:
        float(label)
    except ValueError:
        return False
    return True


def _scaled(values: Any) -> Any:
    """From 0.05 for the lowest to 1 for the highest."""
    low, high = np.nanmin(values), np.nanmax(values)
    return 0.05 + 0.95 * (values - low) / (high - low) if high > low else np.full(values.shape, 0.5)
