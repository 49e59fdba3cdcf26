"""docs/online.png: returns over steps of both sides, and the time per step of the one in units of the other's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.drawing import FAINT, PALETTE, STYLE, Look, steps_axis
from benchmarks.online.returns import Comparison
from benchmarks.online.settings import LABELS, settings
from benchmarks.online.tables import AIM, MOST, NAMES, label, ratio
from benchmarks.online.turns import OURS, SB3

LOOKS = {OURS: Look(PALETTE[1]), SB3: Look(PALETTE[2], (0, (6, 1.3)), "s")}
ROW = 3  # panels beside each other


def picture(measured: Mapping[str, Any] | None, returns: Sequence[Comparison]) -> Figure:
    """A panel of curves for every pair, and one of all ratios."""
    panels = len(returns) + bool(measured)
    columns = min(ROW, panels)
    rows = -(-panels // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.1 * columns, 2.9 * rows + 0.3), layout="constrained", facecolor="white")
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axis, one in zip(axes, returns, strict=False):
            _curves(axis, one)
        if returns:
            handles, labels = axes[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside upper right", ncols=len(labels))
        if measured:
            _ratios(axes[len(returns)], measured)
        for axis in axes[panels:]:
            axis.set_visible(False)
    return figure


def _curves(axis: Axes, one: Comparison) -> None:
    steps = [moment.step for moment in one.moments]
    start = settings(one.algorithm, one.env)["random_steps"]
    axis.axvspan(0, start, color=FAINT, alpha=0.15, linewidth=0)
    for side, look in LOOKS.items():
        found = [moment.intervals[side] for moment in one.moments]
        line: Any = {"color": look.colour, "linestyle": look.dash, "linewidth": 1.6}
        axis.plot(steps, [each.value for each in found], label=NAMES[side], **line)
        bounds = [each.low for each in found], [each.high for each in found]
        axis.fill_between(steps, *bounds, color=look.colour, alpha=0.16, linewidth=0)
    values = [moment.intervals[side] for moment in one.moments for side in LOOKS]
    low, high = min(each.value for each in values), max(each.value for each in values)
    # Intervals of few seeds may reach far: curves are what is looked at.
    axis.set_ylim(low - 0.25 * (high - low) - 1e-9, high + 0.25 * (high - low) + 1e-9)
    steps_axis(axis, "environment steps")
    axis.set_title(f"{LABELS[one.algorithm]}, {one.env}: return")


def _ratios(axis: Axes, measured: Mapping[str, Any]) -> None:
    pairs = list(reversed(measured["pairs"]))
    for place, pair in enumerate(pairs):
        share = ratio(pair)
        axis.barh(place, share.median, height=0.7, color=LOOKS[OURS].colour)
        whiskers = [[share.median - share.low], [share.high - share.median]]
        axis.errorbar(share.median, place, xerr=whiskers, color="black", linewidth=1, capsize=2)
        inside: Any = {"textcoords": "offset points", "ha": "right", "va": "center", "fontsize": 8.5, "color": "white"}
        axis.annotate(f"{share.median:.2f}", (share.low, place), (-5, 0), **inside)
    for limit, dash in ((AIM, (0, (1, 2))), (MOST, (0, (5, 3))), (1.0, "-")):
        axis.axvline(limit, color=FAINT, linestyle=dash, zorder=0)
    axis.set_yticks(range(len(pairs)), [label(pair) for pair in pairs])
    axis.set_xlim(0, max(1.08, 1.08 * max(ratio(pair).high for pair in pairs)))
    axis.set_xlabel("CPU time a step, Stable-Baselines3 = 1")
    axis.set_title("Time per step")
