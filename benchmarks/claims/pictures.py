"""One picture for the claims of a suite, drawn from the results that judge them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from numpy.typing import NDArray

from benchmarks.claims.verdict import by_label, logged, mean, normalized
from benchmarks.colours import FAINT, GRID, PALETTE
from benchmarks.drawing import DASHES, MARKERS, STYLE, compact, to_png
from benchmarks.results import Results
from benchmarks.statistics.intervals import mean_interval

PANEL = (3.4, 2.9)  # inches
SCORE = "normalised score"
CAPTION = "Bands and bars: 95 % intervals of the mean over seeds. Grey dots: seeds. Heat maps: means over seeds."


def of(results: Results) -> bytes | None:
    """The picture of a suite as PNG; None where its claims have none."""
    draw = {
        "gorl_table_iv-small": constants,
        "gorl_figure_3-small": constraints,
        "gorl_figure_4-small": mixing,
        "gorl_figure_5-small": numbers,
        "gorl_schedule-small": schedule,
        "gorl_table_i-small": by_base,
        "gorl_figure_4_bases-small": by_base,
    }.get(results.name)
    return to_png(draw(results)) if draw else None


def constants(results: Results) -> Figure:
    """Table IV: the score over the constant weight, and what learned weights score."""
    weights = by_label(results, "fixed ")
    learned = [row for row in results.rows if row not in weights.values()]

    def one(axis: Axes, column: str) -> None:
        _line(axis, list(weights), [_scores(results, row, column) for row in weights.values()], 0, "constant weight")
        for i, row in enumerate(learned, 1):
            _point(axis, 1.05 + 0.13 * i, _scores(results, row, column), i, row)
        axis.axvline(1.1, color=FAINT, linewidth=0.8, linestyle=":")
        axis.set_xticks([0, 0.5, 1])
        axis.set_xlabel("constant weight  |  learned weights")
        axis.set_ylabel(SCORE)

    return _panels(results, one)


def constraints(results: Results) -> Figure:
    """Figure 3: the constraint loss on expert samples over that on random ones, in the course of training."""

    def one(axis: Axes, column: str) -> None:
        for i, row in enumerate(results.rows):
            cell = results.at(row, column)
            assert cell is not None
            pairs = [
                [run.scalars[f"watch/{name}/constraint"] for name in ("expert", "random")] for run in cell.finished
            ]
            ratios = np.array([np.log(np.divide(expert.values, random.values)) for expert, random in pairs])
            steps = pairs[0][0].steps
            _line(axis, steps, list(ratios.T), i, row, markers=False)
        axis.set_xlabel("gradient steps")
        axis.set_ylabel("log(constraint loss: expert / random)")
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))

    return _panels(results, one)


def mixing(results: Results) -> Figure:
    """Figure 4: the score with pure data, with expert tuples mixed in, and guided by them."""

    def one(axis: Axes, column: str) -> None:
        for i, row in enumerate(results.rows):
            _point(axis, i, _scores(results, row, column), i)
        axis.set_xticks(range(len(results.rows)), [row.replace(" ", "\n", 1) for row in results.rows])
        axis.margins(x=0.25)
        axis.set_ylabel(SCORE)

    return _panels(results, one, legend=False)


def by_base(results: Results) -> Figure:
    """The score of every method on every base algorithm."""
    bases, methods = results.axes["base"], results.axes["method"]
    width = 0.8 / len(methods)

    def one(axis: Axes, column: str) -> None:
        for i, method in enumerate(methods):
            for x, base in enumerate(bases):
                if results.at(f"{base} · {method}", column) is not None:
                    place, label = x + (i - (len(methods) - 1) / 2) * width, method if x == len(bases) - 1 else None
                    _point(axis, place, _scores(results, f"{base} · {method}", column), i, label)
        axis.set_xticks(range(len(bases)), bases)
        axis.set_ylabel(SCORE)

    return _panels(results, one)


def numbers(results: Results) -> Figure:
    """Figure 5: the score over the number of expert tuples."""
    some = [int(n) for n in results.axes["tuples"] if int(n)]

    def one(axis: Axes, column: str) -> None:
        none = mean_interval(_scores(results, "none · 0", column))
        assert none is not None
        axis.axhline(none.value, color=PALETTE[0], linestyle=DASHES[1], linewidth=1.4, label="none")
        axis.axhspan(none.low, none.high, color=PALETTE[0], alpha=0.08, linewidth=0)
        for i, use in enumerate((u for u in results.axes["use"] if u != "none"), 1):
            _line(axis, some, [_scores(results, f"{use} · {n}", column) for n in some], i, use)
        axis.set_xscale("log")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
        axis.set_xlabel("expert tuples")
        axis.set_ylabel(SCORE)

    return _panels(results, one)


def schedule(results: Results) -> Figure:
    """Score and movement of B over learning rate and period."""
    rates, periods = results.axes["learning rate"], results.axes["period"]
    kinds: tuple[tuple[str, Callable[[str, str], float]], ...] = (
        (SCORE, lambda row, column: mean(normalized(results, row, column))),
        (
            "B moved by",
            lambda row, column: mean(logged(results, row, column, "guiding_network/output_moved", last=0.1)),
        ),
    )
    with mpl.rc_context(STYLE):
        size = (PANEL[0] * len(results.columns), 2 * PANEL[1])
        figure = Figure(figsize=size, layout="constrained", facecolor="white")
        axes = figure.subplots(2, len(results.columns), squeeze=False)
        for line, (title, of_cell) in zip(axes, kinds, strict=True):
            for axis, column in zip(line, results.columns, strict=True):
                values = np.array([[of_cell(f"{r} · {p}", column) for p in periods] for r in rates])
                low, high = (values.min(), values.max()) if np.ptp(values) else (values[0, 0] - 1, values[0, 0] + 1)
                axis.imshow(values, cmap="cividis", aspect="auto", vmin=low, vmax=high)
                for (i, j), value in np.ndenumerate(values):
                    ink = "white" if value < (low + high) / 2 else "black"
                    axis.text(j, i, f"{value:.3g}", ha="center", va="center", color=ink)
                axis.set_xticks(range(len(periods)), periods)
                axis.set_yticks(range(len(rates)), rates)
                axis.set_xlabel("gradient steps between updates")
                axis.set_ylabel("learning rate")
                axis.set_title(f"{column}\n{title}")
                axis.spines[:].set_visible(False)
                axis.tick_params(length=0)
    return figure


# -- parts -----------------------------------------------------------------------------------------------------


def _scores(results: Results, row: str, column: str) -> NDArray[np.float64]:
    return np.array(list(normalized(results, row, column).values()))


def _panels(results: Results, draw: Callable[[Axes, str], None], legend: bool = True) -> Figure:
    """One panel a dataset, at most three in a row, and one legend below."""
    columns = min(3, len(results.columns))
    rows = -(-len(results.columns) // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows + 0.5), layout="constrained", facecolor="white")
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axis, column in zip(axes, results.columns, strict=False):
            draw(axis, column)
            axis.set_title(column)
            axis.grid(axis="y", color=GRID, linewidth=0.7)
            axis.set_axisbelow(True)
        for axis in axes[len(results.columns) :]:
            axis.remove()
        if legend:
            handles, labels = axes[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)))
    return figure


def _line(
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


def _point(axis: Axes, x: float, scores: NDArray[np.float64], i: int, label: str | None = None) -> None:
    """The mean over seeds with its 95 % interval, and the seeds beside it."""
    interval = mean_interval(scores)
    assert interval is not None
    axis.plot(np.full(len(scores), x + 0.04), scores, ".", color=FAINT, markersize=5)
    axis.vlines(x, interval.low, interval.high, color=PALETTE[i], linewidth=1.6)
    axis.plot(
        [x],
        [interval.value],
        color=PALETTE[i],
        marker=MARKERS[i % len(MARKERS)],
        markersize=6,
        label=label,
        linestyle="none",
    )
