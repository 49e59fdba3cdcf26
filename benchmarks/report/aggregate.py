"""What several datasets say together, and what tests say of every pair: only from three seeds on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from benchmarks.colours import FAINT, GRID
from benchmarks.drawing import STYLE, WIDE, Look, panel, plain
from benchmarks.report.heat import heat_map, probabilities
from benchmarks.report.looks import looks
from benchmarks.report.scores import ENOUGH, MANY, by_seed, comparable, foremost, pooled, testable
from benchmarks.results import LAST, Cell, Results
from benchmarks.statistics import (
    Interval,
    Test,
    difference,
    holm,
    over_seeds,
    paired_t_over_evaluations,
    performance_profile,
    probability_of_improvement,
    significant,
)

THRESHOLDS = 101  # of a performance profile
BANDS = 4  # lines of a profile, above which their bands would hide each other


@dataclass(frozen=True)
class Aggregate:
    """Scores that can be put together over datasets.

    Attributes:
        scores: by row and dataset.
        unit: of the scores.
        out: rows that lack seeds or datasets.
        most: what a score can be at most, where all are rates.
    """

    scores: Mapping[str, Mapping[str, Any]]
    unit: str
    out: tuple[str, ...]
    most: float | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(next(iter(self.scores.values()), ()))

    @property
    def seeds(self) -> dict[str, int]:
        """How many each score has: `row, column` -> n."""
        return {f"{row}, {c}": len(v) for row, columns in self.scores.items() for c, v in columns.items()}


@dataclass(frozen=True)
class Pair:
    """Two rows compared on one dataset.

    Attributes:
        column, first, second: what is compared.
        test: over seeds.
        corrected: its p, Holm-corrected over the pairs of the dataset.
        holds: whether it is significant after that.
        interval: of the difference.
        over_evaluations: GORL's test, where it can be made.
        pairs: of evaluations, that it takes.
    """

    column: str
    first: str
    second: str
    test: Test
    corrected: float
    holds: bool
    interval: Interval
    over_evaluations: Test | None
    pairs: int


def aggregate(results: Results) -> Aggregate | None:
    """Normalised scores; of one dataset without references, its own; None where no two rows can be compared."""
    for kind in ("normalized", "last"):
        scores, out = comparable(results, kind)
        columns = next(iter(scores.values()), {})
        if len(scores) > 1 and (kind == "normalized" or len(columns) == 1):
            success = all(results.measure(column) == "success" for column in columns)
            unit = "normalised score" if kind == "normalized" else ("success rate, %" if success else "return")
            return Aggregate(scores, unit, out, 100.0 if success else None)
    return None


def why_none(results: Results) -> str:
    """Why there is no aggregate, as a sentence."""
    rows = {cell.row for cell in results.cells if testable(cell.scores)}
    if len(rows) < 2:
        return f"No aggregate over datasets: fewer than two methods have {ENOUGH} finished seeds that did not diverge."
    if not comparable(results, "last")[0]:
        return f"No aggregate over datasets: no dataset has {ENOUGH} finished seeds of every method that is compared."
    unknown = dict.fromkeys(c.column for c in results.cells if c.scored and c.normalized is None)
    if unknown:
        return f"No aggregate over datasets: no reference scores are known for {', '.join(unknown)}."
    return "No aggregate over datasets: no normalised dataset is common to two methods."


def profiles(found: Aggregate, rows: tuple[str, ...]) -> Figure:
    """The share of runs above every score (Agarwal et al., 2021)."""
    look = looks(rows)
    every = np.concatenate([values for columns in found.scores.values() for values in columns.values()])
    low, high = float(every.min()), float(every.max())
    room = 0.03 * (high - low or 1.0)
    thresholds = np.linspace(low - room, high + room, THRESHOLDS)
    shown = foremost({row: float(np.mean([v.mean() for v in scores.values()])) for row, scores in found.scores.items()})
    with panel() as (figure, axis):
        for row, scores in found.scores.items():
            profile, one = performance_profile(scores, thresholds), look[row]
            if row not in shown:
                axis.plot(thresholds, profile.share, color=FAINT, linewidth=0.7, alpha=0.7, zorder=1)
                continue
            if len(found.scores) <= BANDS:
                axis.fill_between(thresholds, profile.low, profile.high, color=one.colour, alpha=0.12, linewidth=0)
            style: Any = {"color": one.colour, "linestyle": one.dash, "marker": one.marker, "markersize": 4.5}
            axis.plot(thresholds, profile.share, linewidth=1.8, markeredgewidth=0, markevery=16, label=row, **style)
        axis.set_xlabel(f"{found.unit} τ")
        axis.set_ylabel("share of runs above τ")
        axis.set_ylim(-0.02, 1.02)
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
        axis.grid(axis="y", color=GRID, linewidth=0.7)
        axis.set_axisbelow(True)
    return figure


def intervals(found: Aggregate) -> dict[str, Interval]:
    """The interquartile mean of every row over all its runs, with its stratified bootstrap interval."""
    return {row: pooled(scores, found.most) for row, scores in found.scores.items()}


def forest(made: Mapping[str, Interval], rows: tuple[str, ...], unit: str) -> Figure:
    """Every row's interquartile mean as a point with its interval, the best at the top."""
    look = looks(rows)
    order = sorted(made, key=lambda row: made[row].value)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDE[0], 0.3 * len(order) + 0.9), layout="constrained")
        axis = figure.subplots()
        for place, row in enumerate(order):
            interval, one = made[row], look[row]
            axis.plot([interval.low, interval.high], [place, place], color=one.colour, linewidth=2.2)
            _ends(axis, interval, place, one)
            axis.plot(interval.value, place, one.marker, color=one.colour, markersize=6.5, markeredgewidth=0)
        best = made[order[-1]]
        axis.axvspan(best.low, best.high, color=FAINT, alpha=0.15, linewidth=0, zorder=0)
        axis.set_yticks(range(len(order)), order)
        axis.set_ylim(-0.6, len(order) - 0.4)
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
        axis.grid(axis="x", color=GRID, linewidth=0.7)
        axis.set_axisbelow(True)
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
        axis.set_xlabel(f"interquartile mean of the {unit}")
    return figure


def improvement(results: Results) -> tuple[Figure, Aggregate] | None:
    """P(row > column) of every pair over all datasets in their own units, and these; None of one row, and of many."""
    scores, out = comparable(results, "last")
    if not 1 < len(scores) <= MANY:
        return None
    rows = tuple(scores)

    def probability(a: str, b: str) -> float:
        return probability_of_improvement(scores[a], scores[b]).value

    return heat_map(probabilities(rows, probability)), Aggregate(scores, "", out)


def pairs(results: Results, column: str) -> list[Pair]:
    """Every pair of rows of one dataset with enough seeds each; of many rows, the best with every other."""
    cells = [c for c in results.cells if c.column == column and testable(c.scores)]
    best = max(cells, key=lambda cell: float(cell.scores.mean()), default=None)
    chosen = combinations(cells, 2) if len(cells) <= MANY else ((best, cell) for cell in cells if cell is not best)
    tested = []
    for one, other in chosen:
        assert one is not None
        x, y = by_seed(one), by_seed(other)
        test, interval = over_seeds(x, y), difference(x, y)
        assert test is not None and interval is not None  # of `ENOUGH` seeds
        tested.append((one, other, test, interval))
    corrected = holm([test.p for *_, test, _ in tested]).tolist() if tested else []
    return [
        Pair(
            column,
            one.row,
            other.row,
            test,
            p,
            significant(p, test.n),
            interval,
            *over_evaluations(one, other),
        )
        for (one, other, test, interval), p in zip(tested, corrected, strict=True)
    ]


def over_evaluations(one: Cell, other: Cell) -> tuple[Test | None, int]:
    """GORL's test on the last evaluations, paired by seed and by step, and its number of pairs; nothing of one seed."""
    x, y = (_by_step(cell) for cell in (one, other))
    seeds = [seed for seed in x if seed in y]
    steps = set.intersection(*(set(of[seed]) for of in (x, y) for seed in seeds)) if seeds else set()
    if len(seeds) < 2 or not steps:
        return None, 0
    ours, theirs = ({seed: [of[seed][step] for step in sorted(steps)] for seed in seeds} for of in (x, y))
    return paired_t_over_evaluations(ours, theirs), len(seeds) * len(steps)


def _by_step(cell: Cell) -> dict[int, dict[int, float]]:
    """seed -> step -> value of the evaluations that the score averages."""
    steps = {run.seed: [e.step for e in run.trained][-LAST:] for run in cell.scored}
    return {seed: dict(zip(steps[seed], values, strict=True)) for seed, values in cell.evaluations_by_seed.items()}


def _ends(axis: Any, interval: Interval, place: int, look: Look) -> None:
    for end in (interval.low, interval.high):
        axis.plot([end, end], [place - 0.13, place + 0.13], color=look.colour, linewidth=1.4)
