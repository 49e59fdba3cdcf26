"""docs/statistics.png: coverage of intervals, false positives and power of tests, at each number of seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator, PercentFormatter

from benchmarks.colours import FAINT, GRID, INK, PALETTE
from benchmarks.drawing import STYLE
from benchmarks.statistics.page import GOAL
from benchmarks.statistics.simulation import DISTRIBUTIONS
from benchmarks.statistics.study import (
    DIFFERENCE,
    GORL,
    IMPROVEMENT,
    IQM,
    MEAN,
    OUR_TEST,
    OURS,
    PROFILE,
    UNPAIRED,
    Row,
)

OURS_COLOUR = PALETTE[1]
COLOURS = {
    "percentile": PALETTE[2],
    "expanded": PALETTE[5],
    "bca": PALETTE[4],
    "bootstrap-t": PALETTE[0],
    "Wilson": PALETTE[0],
}
MARKERS = {"percentile": "s", "expanded": "^", "bca": "D", "bootstrap-t": "v", "Wilson": "v"}
NAMES = {"t": "ours: bootstrap's error, Student's t", "bca": "BCa", "expanded": "expanded percentile"}
ROOM = 0.13  # between candidates, in seeds' ticks
OTHERS_COLOUR = PALETTE[2]
OF_CORRELATION = "o^s"


def picture(result: Mapping[str, Any]) -> Figure:
    """Five panels of coverage, three of what tests find."""
    intervals, tests = result["intervals"], result["tests"]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 14.4), layout="constrained", facecolor="white")
        axes = figure.subplots(4, 2)
        panels = [
            (axes[0, 0], MEAN, 1, "Mean of one cell"),
            (axes[0, 1], IQM, 4, "IQM over 4 tasks"),
            (axes[1, 0], IMPROVEMENT, 1, "Probability of improvement, 1 task"),
            (axes[1, 1], PROFILE, 4, "Performance profile, 4 tasks"),
        ]
        for axis, statistic, tasks, title in panels:
            rows = [row for row in intervals if (row["statistic"], row["tasks"]) == (statistic, tasks)]
            _intervals(axis, rows, OURS[statistic], result["level"])
            axis.set_title(title)
        of_differences = [row for row in intervals if row["statistic"] == DIFFERENCE]
        _pairs(axes[2, 0], of_differences, "method", OURS[DIFFERENCE], "coverage")
        _nominal(axes[2, 0], result["level"], "nominal")
        axes[2, 0].set_title("Difference of two methods")
        axes[2, 0].set_ylim(0.905, 1.004)
        _finish(axes[2, 0], "lower left", 0.02, columns=2)
        _evaluations(axes[2, 1], tests, result["alpha"])
        _tests(axes[3, 0], tests, 0)
        _nominal(axes[3, 0], result["alpha"], "nominal")
        axes[3, 0].set_title("Tests over seeds, no difference")
        axes[3, 0].set_ylim(-0.004, 0.115)
        _finish(axes[3, 0], "upper left", 0.02, columns=2)
        _tests(axes[3, 1], tests, 1)
        axes[3, 1].set_title("Tests over seeds, 1 standard deviation")
        axes[3, 1].set_ylim(0, 1.02)
        _finish(axes[3, 1], "upper left", 0.2)
        words = (
            "Marks: normal scores (of improvement, with the effect that is covered worst).\n"
            "Bars: from the lowest to the highest of all distributions and effects that are simulated."
        )
        figure.supxlabel(words, x=0.008, ha="left", fontsize=9)
    return figure


def _intervals(axis: Axes, rows: Sequence[Row], ours: str, level: float) -> None:
    """A dot for normal scores, and a line over all distributions and effects."""
    seeds = _seeds(axis, rows)
    methods = list(dict.fromkeys(row["method"] for row in rows))
    _nominal(axis, level, "nominal")
    axis.axhline(GOAL, color=FAINT, linewidth=0.8, linestyle=(0, (1, 2)), zorder=0)
    for place, method in enumerate(methods):
        at = [i + ROOM * (place - (len(methods) - 1) / 2) for i in range(len(seeds))]
        found = [[row for row in rows if (row["method"], row["seeds"]) == (method, n)] for n in seeds]
        normal = [min(r["coverage"] for r in of_n if r["distribution"] == "normal") for of_n in found]
        lows, highs = ([pick(r["coverage"] for r in of_n) for of_n in found] for pick in (min, max))
        colour = OURS_COLOUR if method == ours else COLOURS[method]
        axis.vlines(at, lows, highs, color=colour, linewidth=2, alpha=0.55)
        name = NAMES.get(method, method)
        label = name if method != ours or name.startswith("ours") else f"ours: {name}"
        marker = "o" if method == ours else MARKERS[method]
        axis.plot(at, normal, marker, color=colour, markersize=6.5 if method == ours else 5, label=label)
    axis.set_ylabel("coverage")
    axis.set_ylim(bottom=max(0.0, min(row["coverage"] for row in rows) - 0.12), top=1.01)
    _finish(axis, "lower right", 0.1)


def _tests(axis: Axes, rows: Sequence[Row], effect: int) -> None:
    rows = [row for row in rows if row["scenario"] in DISTRIBUTIONS and row["effect"] == effect]
    _pairs(axis, [row for row in rows if row["test"] in (OUR_TEST, UNPAIRED)], "test", OUR_TEST, "rejected")
    axis.set_ylabel("found where there is no difference" if not effect else "found")


def _pairs(axis: Axes, rows: Sequence[Row], key: str, ours: str, share: str) -> None:
    """Pairs and Welch's at each correlation of the two methods: a mark for normal scores, a line over distributions."""
    seeds = _seeds(axis, rows)
    correlations = list(dict.fromkeys(row["correlation"] for row in rows))
    for is_ours, colour, name in ((True, OURS_COLOUR, "ours: paired"), (False, OTHERS_COLOUR, "Welch")):
        for place, correlation in enumerate(correlations):
            alike = [row for row in rows if (row[key] == ours, row["correlation"]) == (is_ours, correlation)]
            found = [[row for row in alike if row["seeds"] == n] for n in seeds]
            at = [i + ROOM * (place + (-3 if is_ours else 0.4)) for i in range(len(seeds))]
            lows, highs = ([pick(row[share] for row in of_n) for of_n in found] for pick in (min, max))
            axis.vlines(at, lows, highs, color=colour, linewidth=2, alpha=0.55)
            normal = [
                next(r[share] for r in of_n if "normal" in (r.get("distribution"), r.get("scenario"))) for of_n in found
            ]
            axis.plot(at, normal, OF_CORRELATION[place], color=colour, markersize=5.5)
        axis.plot([], [], "s", color=colour, markersize=8, label=name)
    for place, correlation in enumerate(correlations):
        axis.plot([], [], OF_CORRELATION[place], color=INK, markersize=5, label=f"correlation {correlation:g}")
    axis.set_ylabel(share)


def _evaluations(axis: Axes, rows: Sequence[Row], alpha: float) -> None:
    rows = [row for row in rows if not row["effect"] and row["scenario"].endswith("within runs")]
    seeds = _seeds(axis, rows)
    _nominal(axis, alpha, "nominal")
    scenarios = list(dict.fromkeys(row["scenario"] for row in rows))
    for test in (GORL, OUR_TEST):
        for place, scenario in enumerate(scenarios):
            found = {r["seeds"]: r["rejected"] for r in rows if (r["test"], r["scenario"]) == (test, scenario)}
            colour = PALETTE[2] if test == GORL else OURS_COLOUR
            values = [found[n] for n in seeds]
            axis.plot(range(len(seeds)), values, OF_CORRELATION[place] + "-", color=colour, linewidth=1.2, markersize=5)
            if test == GORL:
                axis.annotate(
                    scenario,
                    (len(seeds) - 1, values[-1]),
                    xytext=(7, 0 if place else 8),  # off the nominal line
                    textcoords="offset points",
                    va="center",
                    color=colour,
                    fontsize=8.5,
                )
    axis.plot([], [], "-", color=PALETTE[2], label="GORL's: paired t over evaluations")
    axis.plot([], [], "-", color=OURS_COLOUR, label="ours: paired t over seeds")
    axis.set_title("Tests where evaluations of a run correlate")
    axis.set_xlim(right=len(seeds) - 0.05)  # room for words on the right
    axis.set_ylabel("found where there is no difference")
    axis.set_ylim(0, 1)
    _finish(axis, "upper right", 0.2)


def _seeds(axis: Axes, rows: Sequence[Row]) -> list[int]:
    seeds = list(dict.fromkeys(row["seeds"] for row in rows))
    axis.set_xticks(range(len(seeds)), [f"{n} seeds" for n in seeds])
    axis.set_xlim(-0.8, len(seeds) - 0.55)  # room for a word on the left
    axis.grid(axis="y", color=GRID, linewidth=0.7)
    axis.set_axisbelow(True)
    return seeds


def _nominal(axis: Axes, value: float, text: str) -> None:
    axis.axhline(value, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
    axis.annotate(
        text, (0.0, value), xycoords=("axes fraction", "data"), xytext=(3, 2), textcoords="offset points", fontsize=8
    )


def _finish(axis: Axes, place: Any, ticks: float, columns: int = 1) -> None:
    axis.yaxis.set_major_locator(MultipleLocator(ticks))
    axis.tick_params(bottom=False)
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    axis.legend(loc=place, ncols=columns, handlelength=1.1, borderaxespad=0.2, labelspacing=0.3)
