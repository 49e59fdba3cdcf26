"""docs/speed.png: gradient steps per CPU-second, relative to a rival's, every contestant a bar."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from benchmarks.drawing import FAINT, PALETTE, STYLE
from benchmarks.speed.comparisons import COMPARISONS
from benchmarks.speed.contestants import FLOORS, LABELS, TEXTBOOK, compared_label
from benchmarks.speed.derived import speed
from benchmarks.speed.timing import Timing

OURS, THEIRS = PALETTE[1], PALETTE[0]
LIMITS = {"floor": (0, (1, 2)), "floor-onednn": (0, (5, 3))}


def picture(result: Mapping[str, Any]) -> Figure:
    """A row of TD3+BC, one panel a size, the fastest contestant of the first at the top in all; and a row of the
    other algorithms, a panel each."""
    sizes, compared = result["sizes"], result.get("compared", {})
    first = next(iter(sizes.values()))
    everyone = [name for name in LABELS if name not in FLOORS and all(name in s["contestants"] for s in sizes.values())]
    names = sorted(everyone, key=lambda name: speed(first, name, TEXTBOOK).median)
    rows = {name: bars for name, measured in compared.items() if (bars := _shown(name, measured))}
    heights = [0.34 * len(names) + 1.5, *([0.34 * max(map(len, rows.values())) + 1.2] if rows else [])]
    with mpl.rc_context(STYLE):
        width = max(4.6 * len(sizes), 4.2 * len(rows))
        figure = Figure(figsize=(width, sum(heights)), layout="constrained", facecolor="white")
        parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        axes = parts[0].subplots(1, len(sizes), sharey=True, squeeze=False)[0]
        for axis, (title, size) in zip(axes, sizes.items(), strict=True):
            bars = {LABELS[name]: speed(size, name, TEXTBOOK) for name in names}
            _limits(axis, size)
            _bars(axis, bars)
            axis.set_title(f"TD3+BC, size of {title}" if rows else f"size of {title}")
        handles, labels = axes[0].get_legend_handles_labels()
        if handles:
            parts[0].legend(handles, labels, loc="outside upper right", ncols=len(labels))
        parts[0].supxlabel("gradient steps per CPU-second, in those of plain PyTorch (higher is faster)", fontsize=9.5)
        below = parts[1].subplots(1, len(rows), squeeze=False)[0] if rows else ()
        for axis, (name, bars) in zip(below, rows.items(), strict=True):
            _bars(axis, bars)
            axis.set_title(f"{COMPARISONS[name].label}, size of hopper")
            axis.set_xlabel(f"in those of {COMPARISONS[name].yardstick}")
    return figure


def _shown(name: str, measured: Mapping[str, Any]) -> dict[str, Timing]:
    """Speeds by label, the first row at the top; none where what they are measured by is not there."""
    comparison, found = COMPARISONS[name], measured["contestants"]
    pairs = [(each, comparison.against(each)) for each in comparison.names()]
    shown = [(each, against) for each, against in pairs if {each, against} <= set(found)]
    return {compared_label(name, each): speed(measured, each, against) for each, against in reversed(shown)}


def _bars(axis: Axes, bars: Mapping[str, Timing]) -> None:
    for place, (label, ratio) in enumerate(bars.items()):
        whiskers = [[ratio.median - ratio.low], [ratio.high - ratio.median]]
        axis.barh(place, ratio.median, height=0.7, color=OURS if label.startswith("metarl") else THEIRS)
        axis.errorbar(ratio.median, place, xerr=whiskers, color="black", linewidth=1, capsize=2)
        inside: Any = {"textcoords": "offset points", "ha": "right", "va": "center", "fontsize": 8.5, "color": "white"}
        axis.annotate(f"{ratio.median:.2f}", (ratio.low, place), (-5, 0), **inside)
    axis.set_yticks(range(len(bars)), list(bars))
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axis.margins(x=0.06)
    axis.set_xlim(left=0)


def _limits(axis: Axes, size: Mapping[str, Any]) -> None:
    for name, style in LIMITS.items():
        if name in size["contestants"]:
            limit = speed(size, name, TEXTBOOK).median
            axis.axvline(limit, color=FAINT, linestyle=style, zorder=0, label=f"matrix {LABELS[name]}, nothing else")
