"""docs/speed.png: gradient steps per CPU-second, relative to plain PyTorch, every contestant a bar."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from benchmarks.drawing import FAINT, PALETTE, STYLE
from benchmarks.speed.contestants import FLOORS, LABELS, TEXTBOOK
from benchmarks.speed.derived import speed

OURS, THEIRS = PALETTE[1], PALETTE[0]
LIMITS = {"floor": (0, (1, 2)), "floor-onednn": (0, (5, 3))}


def picture(result: Mapping[str, Any]) -> Figure:
    """One panel a size; the fastest contestant at the top of the first, the same order in all."""
    sizes = result["sizes"]
    first = next(iter(sizes.values()))
    everyone = [name for name in LABELS if name not in FLOORS and all(name in s["contestants"] for s in sizes.values())]
    names = sorted(everyone, key=lambda name: speed(first, name, TEXTBOOK).median)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.6 * len(sizes), 0.34 * len(names) + 1.5), layout="constrained", facecolor="white")
        axes = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
        for axis, (title, size) in zip(axes, sizes.items(), strict=True):
            _bars(axis, size, names)
            axis.set_title(f"size of {title}")
        handles, labels = axes[0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside upper right", ncols=len(labels))
        figure.supxlabel("gradient steps per CPU-second, in those of plain PyTorch (higher is faster)", fontsize=9.5)
    return figure


def _bars(axis: Axes, size: Mapping[str, Any], names: list[str]) -> None:
    for place, name in enumerate(names):
        ratio = speed(size, name, TEXTBOOK)
        whiskers = [[ratio.median - ratio.low], [ratio.high - ratio.median]]
        colour = OURS if LABELS[name].startswith("metarl") else THEIRS
        axis.barh(place, ratio.median, height=0.7, color=colour)
        axis.errorbar(ratio.median, place, xerr=whiskers, color="black", linewidth=1, capsize=2)
        inside: Any = {"textcoords": "offset points", "ha": "right", "va": "center", "fontsize": 8.5, "color": "white"}
        axis.annotate(f"{ratio.median:.2f}", (ratio.low, place), (-5, 0), **inside)
    for name, style in LIMITS.items():
        if name in size["contestants"]:
            limit = speed(size, name, TEXTBOOK).median
            axis.axvline(limit, color=FAINT, linestyle=style, zorder=0, label=f"matrix {LABELS[name]}, nothing else")
    axis.set_yticks(range(len(names)), [LABELS[name] for name in names])
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axis.margins(x=0.06)
    axis.set_xlim(left=0)
