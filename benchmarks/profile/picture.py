"""docs/profile.png: each run, and one compiled step, as a bar of shares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.drawing import INK, PALETTE, STYLE
from benchmarks.profile.shares import GROUPS, grouped, whole

ROOM = 0.045  # of a bar, below which a share is not written into it
COLOURS = (PALETTE[1], PALETTE[4], PALETTE[2], PALETTE[5], PALETTE[3], PALETTE[0], PALETTE[6], PALETTE[7])


def picture(result: Mapping[str, Any]) -> Figure:
    """Runs above, the step below; every bar is 100 %."""
    runs = result["runs"].values()
    bars = {}
    for run in runs:
        bars[run["what"]] = grouped(whole(run))
        if run["counts"]["env_steps"] < run["counts"]["episodes"] * run["time_limit"]:
            bars[f"{run['what']},\nepisodes of full length"] = grouped(whole(run, full_episodes=True))
    groups = {name: us for name, us in result["step"]["groups"].items() if us >= 0.001 * result["step"]["us"]}
    planned = next(iter(runs))["planned"]["steps"]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 0.5 * len(bars) + 2.9), layout="constrained", facecolor="white")
        upper, lower = figure.subplots(2, 1, height_ratios=[len(bars), 1])
        _bars(upper, bars, GROUPS)
        upper.set_title(f"A run of {planned:,} steps, of its CPU time")
        _bars(lower, {result["step"]["what"]: groups}, tuple(groups))
        lower.set_title(f"One compiled step, of {result['step']['us_watched'] / 1e3:.2f} ms")
    return figure


def _bars(axis: Axes, bars: Mapping[str, Mapping[str, float]], groups: tuple[str, ...]) -> None:
    for place, parts in enumerate(bars.values()):
        left, total = 0.0, sum(parts.values())
        for group, colour in zip(groups, COLOURS, strict=False):
            share = parts[group] / total
            axis.barh(place, share, left=left, height=0.62, color=colour, label=None if place else group)
            if share >= ROOM:
                axis.text(left + share / 2, place, f"{100 * share:.0f} %", color="white", ha="center", va="center")
            left += share
    axis.set_yticks(range(len(bars)), list(bars))
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.xaxis.set_visible(False)
    axis.spines[["left", "bottom"]].set_visible(False)
    axis.tick_params(left=False, labelcolor=INK)
    axis.legend(
        loc="upper left", bbox_to_anchor=(0, 0), ncols=4 if len(groups) > 6 else 6, handlelength=1, borderaxespad=0
    )
