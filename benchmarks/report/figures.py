"""Figures of a report: one colour per method throughout, every axis labelled with its unit."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from benchmarks.results import Cell, Results, Run

# Okabe and Ito's palette, darkened where it would be pale on white; told apart by colour-blind readers too.
PALETTE = ("#5b6770", "#0072b2", "#d55e00", "#00845f", "#b0578d", "#a37a00", "#3f8fc4", "#7a5195")
INK, FAINT = "#30353a", "#9aa1a8"
WIDE, NARROW = (4.4, 2.9), (3.6, 2.7)  # inches: one panel of two, and of three, in a row of the page
STYLE: Any = {  # Matplotlib types its keys one by one
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.unicode_minus": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "metarl",
    "lines.solid_capstyle": "round",
}

Point = tuple[Sequence[float], Sequence[float]]


def colours(results: Results) -> dict[str, str]:
    """The colour of every row of the table."""
    return {row: PALETTE[i % len(PALETTE)] for i, row in enumerate(results.rows)}


# -- learning curves -------------------------------------------------------------------------------------------


def learning_curve(results: Results, column: str) -> Figure | None:
    """Return over gradient steps for one dataset: mean over seeds, the seeds, and the range that they span."""
    cells = [cell for cell in results.cells if cell.column == column and any(run.evaluations for run in cell.runs)]
    if not cells:
        return None
    with _panel() as (figure, axis):
        _curves(axis, results, cells)
    return figure


def learning_curves(results: Results) -> Figure | None:
    """All datasets side by side with one legend, for papers and slides."""
    cells = {c: [cell for cell in results.cells if cell.column == c] for c in results.columns}
    cells = {c: [cell for cell in found if any(r.evaluations for r in cell.runs)] for c, found in cells.items()}
    cells = {c: found for c, found in cells.items() if found}
    if not cells:
        return None
    columns = min(3, len(cells))
    rows = -(-len(cells) // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDE[0] * columns, WIDE[1] * rows + 0.4), layout="constrained", facecolor="white")
        axes = figure.subplots(rows, columns, squeeze=False).flat
        for (column, found), axis in zip(cells.items(), axes, strict=False):
            _curves(axis, results, found)
            axis.set_title(column)
        for axis in list(axes)[len(cells) :]:
            axis.remove()
        entries = {
            text: handle for axis in figure.axes for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        figure.legend(
            entries.values(), entries.keys(), loc="outside lower center", ncols=min(2 * columns, len(entries))
        )
    return figure


def _curves(axis: Axes, results: Results, cells: Sequence[Cell]) -> None:
    colour = colours(results)
    for cell in cells:
        lines = [([e.step for e in run.evaluations], [e.mean for e in run.evaluations]) for run in cell.runs]
        _mean_line(axis, [line for line in lines if line[0]], colour[cell.row], cell.row)
    for value in dict.fromkeys(filter(None, (_data_return(cell) for cell in cells))):
        axis.axhline(value, color=FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=0, label="mean return of the data")
    _steps_axis(axis)
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _plain(value)))
    axis.set_ylabel("raw return per episode")


def _data_return(cell: Cell) -> float | None:
    """The mean return of the training data, where its card knows it."""
    cards = [run.data["train"] for run in cell.runs if "train" in run.data]
    return cards[0].get("returns", {}).get("mean") if cards else None


# -- learned functions -----------------------------------------------------------------------------------------


def probe_curve(cell: Cell, name: str, colour: str) -> Figure | None:
    """A learned function over its input at the start, in the middle and at the end, every seed a line."""
    moments = list(_moments(cell, name))
    if not moments:
        return None
    with _panel(NARROW) as (figure, axis):
        density = axis.twinx()
        for row in moments[-1][2]:
            edges, counts = np.asarray(row["inputs"]["edges"]), np.asarray(row["inputs"]["counts"])
            density.stairs(counts / counts.sum(), edges, fill=True, color=FAINT, alpha=0.35 / len(moments[-1][2]))
        density.set_axis_off()
        density.set_ylim(0, density.get_ylim()[1] * 2)
        axis.set_zorder(density.get_zorder() + 1)
        for label, tone, rows in moments:
            for i, row in enumerate(rows):
                axis.plot(
                    row["grid"],
                    row["curve"],
                    color=_faded(colour, tone),
                    linewidth=1.6,
                    linestyle="-" if tone else "--",
                    label=None if i else label,
                )
        axis.set_xlabel(f"{moments[0][2][0]['input_name']} (grey: the last batch)")
        axis.set_ylabel(moments[0][2][0]["output_name"])
        _legend_above(figure, axis)
    return figure


def probe_histogram(cell: Cell, name: str, colour: str) -> Figure | None:
    """How the learned function's outputs are distributed over a batch at the start, in the middle, at the end."""
    moments = list(_moments(cell, name))
    if not moments:
        return None
    with _panel(NARROW) as (figure, axis):
        for label, tone, rows in moments:
            low = min(row["outputs"]["edges"][0] for row in rows)
            high = max(row["outputs"]["edges"][-1] for row in rows)
            edges = np.linspace(low, high, 33)
            share = np.mean([_rebinned(row["outputs"], edges) for row in rows], axis=0)
            shade = _faded(colour, tone)
            axis.stairs(share, edges, fill=True, color=shade, alpha=0.35)
            axis.stairs(share, edges, color=shade, linewidth=1.4, linestyle="-" if tone else "--", label=label)
        axis.set_xlabel(moments[0][2][0]["output_name"])
        axis.set_ylabel("share of the batch")
        _legend_above(figure, axis)
    return figure


def probe_course(cell: Cell, name: str, colour: str) -> Figure | None:
    """Mean and spread of the outputs over a batch, and how far they have moved since the start, over steps."""
    rows = [run.probes[name] for run in cell.runs if run.probes.get(name)]
    if not rows:
        return None
    with _panel(NARROW, rows=2) as (figure, axes):
        above, below = axes
        for course in rows:
            steps = [row["step"] for row in course]
            mean, std, moved = (np.array([row[key] for row in course]) for key in ("mean", "std", "moved"))
            above.plot(steps, mean, color=colour, linewidth=1.4)
            above.fill_between(steps, mean - std, mean + std, color=colour, alpha=0.25 / len(rows), linewidth=0)
            below.plot(steps, moved, color=colour, linewidth=1.4)
        above.set_ylabel(f"{_symbol(rows[0][0]['output_name'])}: mean ± std")
        below.set_ylabel(f"|{_symbol(rows[0][0]['output_name'])} now − at start|")
        below.set_ylim(bottom=0)
        above.tick_params(labelbottom=False)
        _steps_axis(below)
    return figure


def hypergradients(results: Results, column: str) -> Figure | None:
    """The norm of every logged hypergradient over steps, on a logarithmic axis; None where none is logged."""
    colour = colours(results)
    found = [
        (cell, metric)
        for cell in results.cells
        if cell.column == column
        for metric in sorted({m for run in cell.runs for m in run.scalars if m.endswith("/hypergradient_norm")})
    ]
    if not found:
        return None
    with _panel() as (figure, axis):
        for cell, metric in found:
            series = [run.scalars[metric] for run in cell.runs if metric in run.scalars]
            lines = [_positive(s.steps, s.values) for s in series]
            label = f"{cell.row}: {metric.removesuffix('/hypergradient_norm')}"
            _mean_line(axis, [line for line in lines if line[0]], colour[cell.row], label, geometric=True)
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _power(value)))
        low, high = axis.get_ylim()
        wide = math.log10(high / low) >= 1  # else no power of ten may be in sight
        axis.yaxis.set_minor_formatter(NullFormatter() if wide else FuncFormatter(lambda value, _: f"{value:.0e}"))
        axis.set_ylabel("norm of the hypergradient")
        _steps_axis(axis)
    return figure


# -- files -----------------------------------------------------------------------------------------------------


def to_svg(figure: Figure) -> str:
    """The figure as an `<svg>` element for a page: no XML head, no fixed size, the same text for the same figure."""
    text = io.StringIO()
    with mpl.rc_context(STYLE):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    return re.sub(r'^<svg([^>]*?) width="[^"]*"', r"<svg\1", re.sub(r'^(<svg[^>]*?) height="[^"]*"', r"\1", svg))


def to_png(figure: Figure) -> bytes:
    """The figure as PNG on white, at 160 dots per inch."""
    data = io.BytesIO()
    with mpl.rc_context(STYLE):
        FigureCanvasAgg(figure)
        figure.savefig(data, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return data.getvalue()


# -- parts -----------------------------------------------------------------------------------------------------


@contextmanager
def _panel(size: tuple[float, float] = WIDE, rows: int = 1) -> Iterator[tuple[Figure, Any]]:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        yield figure, figure.subplots(rows, sharex=True)


def _mean_line(axis: Axes, lines: Sequence[Point], colour: str, label: str, geometric: bool = False) -> None:
    """The mean where every seed has a point, thin lines for the seeds, and a band from the lowest to the highest."""
    if not lines:
        return
    if len(lines) > 1:
        for steps, values in lines:
            axis.plot(steps, values, color=colour, linewidth=0.7, alpha=0.45)
    common = sorted(set.intersection(*(set(steps) for steps, _ in lines)))
    table = np.array([[dict(zip(*line, strict=True))[step] for step in common] for line in lines])
    mean: Callable[[Any], Any] = (lambda t: np.exp(np.log(t).mean(0))) if geometric else (lambda t: t.mean(0))
    axis.plot(common, mean(table), color=colour, linewidth=1.9, label=label)
    if len(lines) > 1:
        axis.fill_between(common, table.min(0), table.max(0), color=colour, alpha=0.13, linewidth=0)


def _positive(steps: Sequence[float], values: Sequence[float]) -> Point:
    """The points that a logarithmic axis can show."""
    kept = [(step, value) for step, value in zip(steps, values, strict=True) if value > 0 and np.isfinite(value)]
    return [step for step, _ in kept], [value for _, value in kept]


def _moments(cell: Cell, name: str) -> Iterator[tuple[str, float, list[Mapping[str, Any]]]]:
    """(label, tone from 0 at the start to 1 at the end, one probe row a seed) for three moments of training."""
    runs = [run for run in cell.runs if run.probes.get(name)]
    if not runs:
        return
    last = max(row["step"] for run in runs for row in run.probes[name])
    for tone in (0.0, 0.5, 1.0):
        rows = [_nearest(run, name, tone * last) for run in runs]
        if not tone or rows[0]["step"]:
            yield f"step {rows[0]['step']:,}", tone, rows


def _nearest(run: Run, name: str, step: float) -> Mapping[str, Any]:
    return min(run.probes[name], key=lambda row: abs(row["step"] - step))


def _rebinned(histogram: Mapping[str, Any], edges: Any) -> Any:
    """Shares in new bins, as if each old bin's counts lay evenly in it."""
    old, counts = np.asarray(histogram["edges"]), np.asarray(histogram["counts"], dtype=float)
    cumulative = np.concatenate([[0.0], np.cumsum(counts)]) / counts.sum()
    return np.diff(np.interp(edges, old, cumulative))


def _faded(colour: str, tone: float) -> tuple[float, ...]:
    """From grey (0) over a pale form of the colour to itself (1)."""
    if not tone:
        return to_rgb(FAINT)
    return tuple(float(v) for v in 1 - (1 - np.array(to_rgb(colour))) * tone)


def _symbol(name: str) -> str:
    """The last word of a name where it is a symbol (`degree of constraint B`), else the name."""
    last = name.split()[-1]
    return last if len(last) == 1 else name


def _legend_above(figure: Figure, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=3, handlelength=1.4, columnspacing=1.2)


def _power(value: float) -> str:
    """A power of ten as text: SVG text knows no mathematics."""
    digits = str(round(np.log10(value))).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{digits}"


def _plain(value: float) -> str:
    """Thousands apart, a true minus, no more digits than needed."""
    return f"{value:,.10g}".replace("-", "−")


def _steps_axis(axis: Axes) -> None:
    axis.set_xlabel("gradient steps")
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _plain(value)))
    axis.margins(x=0.02)
    axis.grid(axis="y", color="#e6e8ea", linewidth=0.7)
    axis.set_axisbelow(True)


__all__ = [
    "colours",
    "hypergradients",
    "learning_curve",
    "learning_curves",
    "probe_course",
    "probe_curve",
    "probe_histogram",
    "to_png",
    "to_svg",
]
