"""One picture for the claims of a suite, drawn from the results that judge them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from numpy.typing import NDArray

from benchmarks.claims import gild, pictures_pex, pictures_por
from benchmarks.claims.panels import PANEL, by_setting, course, line, panels, point
from benchmarks.claims.verdict import by_label, logged, mean, normalized
from benchmarks.colours import FAINT, INK, PALETTE
from benchmarks.drawing import DASHES, STYLE, compact, power, to_png
from benchmarks.results import Cell, Results
from benchmarks.statistics.intervals import mean_interval

SCORE = "normalised score"
CAPTION = "Bands and bars: 95 % intervals of the mean over seeds. Grey dots: seeds. Heat maps: means over seeds."
METHODS = ("RL", "RL+IL", "Meta-Critic", "GILD")  # GILD's, of one look in all its pictures
BANDS = (
    "Bands: 95 % intervals of the mean over seeds, cut off outside of what seeds did. Thin lines, where there are "
    "fewer than five seeds: each of them."
)
CURVES = f"Raw mean return at every evaluation. {BANDS} Dashed: the demonstrator's."
CLONING = f"The cloning loss on all demonstrations at every evaluation. {BANDS} Dotted: where learning begins."
SPREADS = (
    "The standard deviation of G over the demonstrations at every evaluation, a line a seed; the axis is linear below "
    "1e-5. Dotted: where learning begins, and 1 % of the gradient steps later."
)


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
        gild.COMPARISON: returns,
        gild.ROBOT: returns,
        gild.DEMONSTRATIONS: returns,
        gild.DIVERGENCE: imitation,
        gild.NETWORK: spread_of_network,
        **pictures_por.DRAWN,
        **pictures_pex.DRAWN,
    }.get(results.name)
    return to_png(draw(results)) if draw else None


def caption(results: Results) -> str:
    """What is to be read below that picture."""
    return {
        gild.COMPARISON: CURVES,
        gild.ROBOT: CURVES,
        gild.DEMONSTRATIONS: CURVES,
        gild.DIVERGENCE: CLONING,
        gild.NETWORK: SPREADS,
        **pictures_por.CAPTIONS,
        **pictures_pex.CAPTIONS,
    }.get(results.name, CAPTION)


def constants(results: Results) -> Figure:
    """Table IV: the score over the constant weight, and what learned weights score."""
    weights = by_label(results, "fixed ")
    learned = [row for row in results.rows if row not in weights.values()]

    def one(axis: Axes, column: str) -> None:
        line(axis, list(weights), [_scores(results, row, column) for row in weights.values()], 0, "constant weight")
        for i, row in enumerate(learned, 1):
            point(axis, 1.05 + 0.13 * i, _scores(results, row, column), i, row)
        axis.axvline(1.1, color=FAINT, linewidth=0.8, linestyle=":")
        axis.set_xticks([0, 0.5, 1])
        axis.set_xlabel("constant weight  |  learned weights")
        axis.set_ylabel(SCORE)

    return panels(results.columns, one)


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
            line(axis, steps, list(ratios.T), i, row, markers=False)
        axis.set_xlabel("gradient steps")
        axis.set_ylabel("log(constraint loss: expert / random)")
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))

    return panels(results.columns, one)


def mixing(results: Results) -> Figure:
    """Figure 4: the score with pure data, with expert tuples mixed in, and guided by them."""

    def one(axis: Axes, column: str) -> None:
        for i, row in enumerate(results.rows):
            point(axis, i, _scores(results, row, column), i)
        axis.set_xticks(range(len(results.rows)), [row.replace(" ", "\n", 1) for row in results.rows])
        axis.margins(x=0.25)
        axis.set_ylabel(SCORE)

    return panels(results.columns, one, legend=False)


def by_base(results: Results) -> Figure:
    """The score of every method on every base algorithm."""
    bases, methods = results.axes["base"], results.axes["method"]
    width = 0.8 / len(methods)

    def one(axis: Axes, column: str) -> None:
        for i, method in enumerate(methods):
            for x, base in enumerate(bases):
                if results.at(f"{base} · {method}", column) is not None:
                    place, label = x + (i - (len(methods) - 1) / 2) * width, method if x == len(bases) - 1 else None
                    point(axis, place, _scores(results, f"{base} · {method}", column), i, label)
        axis.set_xticks(range(len(bases)), bases)
        axis.set_ylabel(SCORE)

    return panels(results.columns, one)


def numbers(results: Results) -> Figure:
    """Figure 5: the score over the number of expert tuples."""
    some = [int(n) for n in results.axes["tuples"] if int(n)]

    def one(axis: Axes, column: str) -> None:
        none = mean_interval(_scores(results, "none · 0", column))
        assert none is not None
        axis.axhline(none.value, color=PALETTE[0], linestyle=DASHES[1], linewidth=1.4, label="none")
        axis.axhspan(none.low, none.high, color=PALETTE[0], alpha=0.08, linewidth=0)
        for i, use in enumerate((u for u in results.axes["use"] if u != "none"), 1):
            line(axis, some, [_scores(results, f"{use} · {n}", column) for n in some], i, use)
        axis.set_xscale("log")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
        axis.set_xlabel("expert tuples")
        axis.set_ylabel(SCORE)

    return panels(results.columns, one)


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


def returns(results: Results) -> Figure:
    """GILD: the raw return over environment steps by method, beside the demonstrator's."""

    def one(axis: Axes, cells: Mapping[str, Cell]) -> list[float]:
        level = mean(gild.demonstrators(next(iter(cells.values()))))
        seen = [level]
        for method, cell in cells.items():
            steps = [e.step for e in cell.scored[0].evaluations]
            seen += course(
                axis, steps, [[e.mean for e in run.evaluations] for run in cell.scored], METHODS.index(method), method
            )
        axis.axhline(level, color=INK, linestyle=(0, (4, 3)), linewidth=1.0, zorder=1, label="demonstrator")
        axis.set_ylabel("mean return")
        return seen

    return by_setting(results, "method", one)


def imitation(results: Results) -> Figure:
    """GILD: the cloning loss on the demonstrations over environment steps, by method."""

    def one(axis: Axes, cells: Mapping[str, Cell]) -> list[float]:
        seen: list[float] = []
        for method, cell in cells.items():
            found = [gild.course(results, run, gild.IMITATION) for run in cell.scored]
            seen += course(axis, found[0].steps, [series.values for series in found], METHODS.index(method), method)
        axis.axvline(gild.learns_from(next(iter(cells.values()))), color=FAINT, linestyle=":", linewidth=1.0)
        axis.set_ylabel("cloning loss")
        return seen

    return by_setting(results, "method", one)


def spread_of_network(results: Results) -> Figure:
    """GILD: the spread of G over the demonstrations, by weight decay."""

    def one(axis: Axes, cells: Mapping[str, Cell]) -> list[float]:
        for i, (decay, cell) in enumerate(cells.items()):
            for j, run in enumerate(cell.scored):
                series = gild.course(results, run, gild.SPREAD)
                label = None if j else "no weight decay" if decay == "none" else f"weight decay {decay}"
                axis.plot(
                    series.steps, series.values, color=PALETTE[i], linestyle=DASHES[i], linewidth=1.3, label=label
                )
        for step in gild.first_steps(next(iter(cells.values()))):
            axis.axvline(step, color=FAINT, linestyle=":", linewidth=1.0)
        axis.set_yscale("symlog", linthresh=1e-5)
        axis.set_ylim(bottom=0)
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: power(value) if value else "0"))
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.set_ylabel("spread of G")
        return []

    return by_setting(results, "weight decay", one)


# -- parts -----------------------------------------------------------------------------------------------------


def _scores(results: Results, row: str, column: str) -> NDArray[np.float64]:
    return np.array(list(normalized(results, row, column).values()))
