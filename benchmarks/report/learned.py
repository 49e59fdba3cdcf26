"""Figures of a learned function, from a run's probes: over its input, its outputs, over training.

A function of more than its input has no curve; then some of its batch are drawn as points.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.colours import FAINT
from benchmarks.drawing import NARROW, panel, steps_axis, thinned
from benchmarks.results import Cell, Run

LONG = 24  # letters of an input's name that leave room beside them
SEEDS = 3  # drawn one by one; of more, mean and range


def probe_curve(cell: Cell, name: str, colour: str) -> Figure | None:
    """A learned function over its input at the start, in the middle and at the end."""
    moments = list(_moments(cell, name))
    if not moments:
        return None
    with panel(NARROW) as (figure, axis):
        density = axis.twinx()
        edges, share = _pooled(moments[-1][2], "inputs")
        density.stairs(share, edges, fill=True, color=FAINT, alpha=0.35)
        density.set_axis_off()
        density.set_ylim(0, density.get_ylim()[1] * 2)
        axis.set_zorder(density.get_zorder() + 1)
        for label, tone, rows in moments:
            _functions(axis, rows, colour, tone, label)
        seen = moments[0][2][0]["input_name"]
        axis.set_xlabel(seen + ("\n" if len(seen) > LONG else " ") + "(grey: the last batch)")
        axis.set_ylabel(moments[0][2][0]["output_name"])
        _legend_above(figure, axis)
    return figure


def probe_histogram(cell: Cell, name: str, colour: str) -> Figure | None:
    """How the learned function's outputs are distributed over a batch at the start, in the middle, at the end."""
    moments = list(_moments(cell, name))
    if not moments:
        return None
    reach: list[float] = []
    with panel(NARROW) as (figure, axis):
        for label, tone, rows in moments:
            edges, share = _pooled(rows, "outputs")
            held = np.flatnonzero(share)
            reach += [edges[held[0]], edges[held[-1] + 1]]
            shade, alpha = _shade(colour, tone)
            axis.stairs(share, edges, fill=True, color=shade, alpha=0.3 * alpha)
            dash = "-" if tone else "--"
            axis.stairs(share, edges, color=shade, alpha=alpha, linewidth=1.4, linestyle=dash, label=label)
        axis.set_xlabel(moments[0][2][0]["output_name"])
        axis.set_ylabel("share of the batch")
        margin = 0.05 * (max(reach) - min(reach))
        axis.set_xlim(min(reach) - margin, max(reach) + margin)  # bins of a constant reach far beyond it
        _legend_above(figure, axis)
    return figure


def probe_course(cell: Cell, name: str, colour: str) -> Figure | None:
    """Mean and spread of the outputs over a batch, and how far they have moved since the start, over steps."""
    runs = [run for run in cell.runs if run.probes.get(name)]
    if not runs:
        return None
    with panel(NARROW, rows=2) as (figure, axes):
        above, below = axes
        symbol = _symbol(runs[0].probes[name][0]["output_name"])
        for run in runs:
            course, dash = run.probes[name], "-" if run.finished else ":"
            kept = [course[i] for i in thinned(len(course))]
            steps = [row["step"] for row in kept]
            mean, std, moved = (np.array([row[key] for row in kept]) for key in ("mean", "std", "moved"))
            above.plot(steps, mean, color=colour, linewidth=1.4, linestyle=dash)
            band = 0.25 / len(runs)
            above.fill_between(steps, mean - std, mean + std, color=colour, alpha=band, linewidth=0)
            below.plot(steps, moved, color=colour, linewidth=1.4, linestyle=dash)
        above.set_ylabel(f"{symbol}: mean ± std")
        below.set_ylabel(f"|{symbol} now − at start|")
        below.set_ylim(bottom=0)
        above.tick_params(labelbottom=False)
        steps_axis(above)
        steps_axis(below, _unit(cell))
        above.set_xlabel("")
        figure.align_ylabels()
    return figure


def summary(cell: Cell, name: str) -> str:
    """How mean and outputs moved, in words: over finished runs, or while there are none, as far as the others came."""
    ends = [(run.probes[name][0], run.probes[name][-1], run.seed) for run in _counted(cell, name)]
    what = ends[0][0]["output_name"]
    if len(ends) <= SEEDS:
        told = "; ".join(
            f"seed {seed}: {first['mean']:.3g} to {last['mean']:.3g}, moved by {last['moved']:.3g}"
            for first, last, seed in ends
        )
    else:
        first, last, moved = (
            [one["mean"] for one, _, _ in ends],
            [one["mean"] for _, one, _ in ends],
            [one["moved"] for _, one, _ in ends],
        )
        told = (
            f"{len(ends)} seeds from {_range(first)} to {_range(last)}, moved by {_range(moved)} (mean over seeds, and "
            "their range)"
        )
    far = "end" if any(run.finished for run in _counted(cell, name)) else "the last probe, of unfinished runs"
    return f"Mean {what} over a batch, from start to {far}, and how far its outputs have moved: {told}."


def _range(values: list[float]) -> str:
    return f"{np.mean(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def _functions(axis: Axes, rows: list[Mapping[str, Any]], colour: str, tone: float, label: str) -> None:
    """Every seed a line, of many seeds their mean and range on a common grid; or every seed's points."""
    shade, alpha = _shade(colour, tone)
    if "points" in rows[0]:
        x, y = np.concatenate([row["points"] for row in rows]).T
        filled = shade if tone == 1 else "none"
        marker = {0.0: "s", 0.5: "^"}.get(tone, "o")
        axis.plot(x, y, marker, color=shade, alpha=alpha, markersize=3.2, markerfacecolor=filled, label=label)
        return
    style: Any = {"color": shade, "alpha": alpha, "linewidth": 1.6, "linestyle": "-" if tone else "--"}
    if len(rows) <= SEEDS:
        for i, row in enumerate(rows):
            axis.plot(row["grid"], row["curve"], label=None if i else label, **style)
        return
    low, high = max(row["grid"][0] for row in rows), min(row["grid"][-1] for row in rows)
    points = np.linspace(low, high, 64)  # where every seed's batch reached
    curves = np.array([np.interp(points, row["grid"], row["curve"]) for row in rows])
    axis.fill_between(points, curves.min(0), curves.max(0), color=shade, alpha=0.15, linewidth=0)
    axis.plot(points, curves.mean(0), label=label, **style)


def _counted(cell: Cell, name: str) -> list[Run]:
    """The finished runs with that function; all where none has finished."""
    runs = [run for run in cell.runs if run.probes.get(name)]
    return [run for run in runs if run.finished] or runs


def _moments(cell: Cell, name: str) -> Iterator[tuple[str, float, list[Mapping[str, Any]]]]:
    """(label, tone from 0 at the start to 1 at the end, one probe row a seed) for three moments of training.

    Every row is of the step that the label names; a seed without a probe there is left out, and the label says so.
    """
    runs = _counted(cell, name)
    of_runs = [{row["step"]: row for row in run.probes[name]} for run in runs]
    every = {step for rows in of_runs for step in rows}
    if not every:
        return
    first, last = min(every), max(every)
    moments: dict[int, float] = {}
    for tone in (1.0, 0.0, 0.5) if last else (0.0,):  # of few steps, the end and the start are told
        moments.setdefault(min(sorted(every), key=lambda step: abs(step - first - tone * (last - first))), tone)
    for at, tone in sorted(moments.items()):
        rows = [of_run[at] for of_run in of_runs if at in of_run]
        few = "" if len(rows) == len(runs) else f" ({len(rows)} of {len(runs)} seeds)"
        yield f"step {at:,}{few}", tone, rows


def _pooled(rows: list[Mapping[str, Any]], what: str) -> tuple[Any, Any]:
    """One histogram of all seeds: edges, and the mean share of a batch in each bin."""
    low, high = min(row[what]["edges"][0] for row in rows), max(row[what]["edges"][-1] for row in rows)
    edges = np.linspace(low, high, 33) if high > low else np.array([low - 0.5, low + 0.5])
    return edges, np.mean([_rebinned(row[what], edges) for row in rows], axis=0)


def _rebinned(histogram: Mapping[str, Any], edges: Any) -> Any:
    """Shares in new bins, as if each old bin's counts lay evenly in it."""
    old, counts = np.asarray(histogram["edges"]), np.asarray(histogram["counts"], dtype=float)
    cumulative = np.concatenate([[0.0], np.cumsum(counts)]) / counts.sum()
    return np.diff(np.interp(edges, old, cumulative))


def _shade(colour: str, tone: float) -> tuple[str, float]:
    """Grey at the start, then the colour, ever less transparent."""
    return (colour, 0.3 + 0.7 * tone) if tone else (FAINT, 1.0)


def _unit(cell: Cell) -> str:
    """What the cell's steps are; see `Results.counted`."""
    config = cell.config or {}
    if not config.get("online"):
        return "gradient steps"
    return "steps" if config["steps"]["offline"] else "environment steps"


def _symbol(name: str) -> str:
    """The last word of a name where it is a symbol (`degree of constraint B`), else the name."""
    last = name.split()[-1]
    return last if len(last) == 1 else name


def _legend_above(figure: Figure, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=3, handlelength=1.4, columnspacing=1.2)
