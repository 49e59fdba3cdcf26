"""Parts of the pictures of claims: panels in rows, means over seeds as lines with bands and as points with bars."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.claims.cells import cell_of, settings
from benchmarks.colours import FAINT, GRID, PALETTE
from benchmarks.drawing import DASHES, MARKERS, STYLE, WIDE, steps_axis
from benchmarks.results import Cell, Results
from benchmarks.statistics.intervals import mean_interval

PANEL = (3.4, 2.9)  # inches
FEW = 5  # seeds, below which each is drawn: intervals would be as wide as the panel


def panels(
    names: Sequence[str],
    draw: Callable[[Axes, str], None],
    legend: bool = True,
    one_height: bool = False,
    widths: Sequence[float] = (),
    legend_of: int = 0,
) -> Figure:
    """One panel a name (of a dataset, say), at most three in a row, and one legend below.

    Args:
        names: titles of the panels.
        draw: into the panel of a name.
        legend: whether there is one.
        one_height: whether all panels span the same heights.
        widths: of the panels of a row, as parts of the usual one; all of them 1 by default.
        legend_of: the panel whose legend it is.
    """
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    with mpl.rc_context(STYLE):
        width = PANEL[0] * (sum(widths) or columns) if columns > 1 else WIDE[0]
        figure = Figure(figsize=(width, PANEL[1] * rows + 0.5), layout="constrained", facecolor="white")
        axes = list(figure.subplots(rows, columns, squeeze=False, sharey=one_height, width_ratios=widths or None).flat)
        for axis, name in zip(axes, names, strict=False):
            draw(axis, name)
            axis.set_title(name)
            axis.grid(axis="y", color=GRID, linewidth=0.7)
            axis.set_axisbelow(True)
        for axis in axes[len(names) :]:
            axis.remove()
        if legend:
            handles, labels = axes[legend_of].get_legend_handles_labels()
            most = 5 if columns > 1 else 3
            lines = -(-len(labels) // most) if columns > 1 else 1
            per_row = min(most, -(-len(labels) // lines))  # lines of about one length
            figure.legend(handles, labels, loc="outside lower center", ncols=per_row)
    return figure


def by_setting(results: Results, over: str, draw: Callable[[Axes, Mapping[str, Cell]], list[float]]) -> Figure:
    """A panel for every combination of the other axes, of one height where the task is one.

    Args:
        results: of a suite.
        over: the axis that `draw` is given cells of, by label.
        draw: returns what the panel must have room for: the band of a few seeds may be far wider, and is cut off.
    """
    under = settings(results, over)
    excluded = [dict(one.labels) for one in results.excluded]
    one_task = all(len(results.axes.get(axis, ())) <= 1 for axis in ("task", "dataset"))
    seen: list[float] = []

    def one(axis: Axes, name: str) -> None:
        labels = {label: under[name] | {over: label} for label in results.axes[over]}
        cells = {label: cell_of(results, own) for label, own in labels.items() if own not in excluded}
        steps_axis(axis, results.counted)
        if not one_task:
            seen.clear()
        seen.extend(draw(axis, cells))
        if seen:
            room = 0.05 * (max(seen) - min(seen)) or 1.0
            axis.set_ylim(min(seen) - room, max(seen) + room)

    return panels(list(under), one, one_height=one_task)


def course(axis: Axes, steps: Sequence[int], courses: Sequence[Sequence[float]], i: int, label: str) -> list[float]:
    """Draws means over seeds of values [seeds, steps] with their intervals, or with few seeds; returns all values."""
    values = np.array(courses)
    if len(values) >= FEW:
        line(axis, steps, list(values.T), i, label, markers=False)
    else:
        axis.plot(
            steps, values.mean(0), color=PALETTE[i], linestyle=DASHES[i % len(DASHES)], linewidth=1.7, label=label
        )
        axis.plot(steps, values.T, color=PALETTE[i], alpha=0.4, linewidth=0.7)
    return [float(value) for value in values.ravel()]


def line(
    axis: Axes, x: Sequence[float], scores: Sequence[NDArray[np.float64]], i: int, label: str, markers: bool = True
) -> None:
    """Means over seeds with their 95 % intervals as a band."""
    found = [mean_interval(values) for values in scores]
    assert None not in found
    mean, low, high = (np.array([getattr(interval, name) for interval in found]) for name in ("value", "low", "high"))
    marker = MARKERS[i % len(MARKERS)] if markers else None
    style = DASHES[i % len(DASHES)]
    axis.plot(x, mean, color=PALETTE[i], marker=marker, markersize=4, linestyle=style, linewidth=1.7, label=label)
    axis.fill_between(x, low, high, color=PALETTE[i], alpha=0.12, linewidth=0)


def point(axis: Axes, x: float, scores: NDArray[np.float64], i: int, label: str | None = None) -> None:
    """The mean over seeds with its 95 % interval, and the seeds beside it."""
    interval = mean_interval(scores)
    assert interval is not None
    axis.plot(np.full(len(scores), x + 0.04), scores, ".", color=FAINT, markersize=5)
    axis.vlines(x, interval.low, interval.high, color=PALETTE[i % len(PALETTE)], linewidth=1.6)
    axis.plot(
        [x],
        [interval.value],
        color=PALETTE[i % len(PALETTE)],
        marker=MARKERS[i % len(MARKERS)],
        markersize=6,
        label=label,
        linestyle="none",
    )


def points(axis: Axes, scores: Mapping[str, NDArray[np.float64]], among: Sequence[str] = (), width: int = 9) -> None:
    """`point` for every label, side by side.

    Args:
        axis: drawn into.
        scores: of the seeds, by label.
        among: all labels, in the order of their looks; by default those of `scores`.
        width: letters after which a label is wrapped.
    """
    looks = list(among or scores)
    for x, (label, values) in enumerate(scores.items()):
        point(axis, x, values, looks.index(label))
    axis.set_xticks(range(len(scores)), ["\n".join(textwrap.wrap(label, width)) for label in scores])
    axis.margins(x=0.1)
