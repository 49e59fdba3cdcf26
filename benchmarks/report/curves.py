"""Figures over gradient steps: returns, watched terms, hypergradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.colours import FAINT
from benchmarks.drawing import STYLE, WIDE, Look, end_labels, panel, plain, power, steps_axis, thinned
from benchmarks.report.looks import looks
from benchmarks.report.scores import ENOUGH, foremost
from benchmarks.results import Cell, Results, Run
from benchmarks.statistics import mean_interval

LABELLED = 10  # lines that have room for their names beside a panel
LONGEST = 26  # characters of such a name
SINGLE = 12  # lines of single seeds that a panel bears
CROWD, BINS = 5, 40  # lines from which a panel is crowded, and the points that each of them then has
HYPERGRADIENT = "/hypergradient_norm"

Point = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class Line:
    """One method's course.

    Attributes:
        name, look: of it.
        steps: [k], common to all seeds.
        values: [seeds, k].
    """

    name: str
    look: Look
    steps: Any
    values: Any

    def summary(self, geometric: bool = False) -> tuple[Any, Any, Any]:
        """Mean over seeds, and its 95 % interval; of two seeds the two; in logarithms where `geometric`."""
        table = np.log(self.values) if geometric else self.values
        back: Callable[[Any], Any] = np.exp if geometric else np.asarray
        if len(table) < ENOUGH:
            return back(table.mean(0)), back(table.min(0)), back(table.max(0))
        found = [mean_interval(column) for column in table.T]
        low = [i.low if i else math.nan for i in found]
        high = [i.high if i else math.nan for i in found]
        return back(table.mean(0)), back(low), back(high)


def learning_curve(results: Results, column: str) -> Figure | None:
    """Return, or success rate, over gradient steps for one dataset; None where nothing was evaluated."""
    drawn = _lines(results, column, _evaluations)
    if not drawn:
        return None
    with panel() as (figure, axis):
        _returns(axis, results, column, drawn)
        _name_ends(axis, drawn)
    return figure


def learning_curves(results: Results) -> Figure | None:
    """All datasets side by side with one legend, for papers and slides."""
    found = {column: _lines(results, column, _evaluations) for column in results.columns}
    found = {column: lines for column, lines in found.items() if lines}
    if not found:
        return None
    columns = min(3, len(found))
    rows = -(-len(found) // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDE[0] * columns, WIDE[1] * rows + 0.5), layout="constrained")
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for (column, lines), axis in zip(found.items(), axes, strict=False):
            _returns(axis, results, column, lines)
            axis.set_title(column)
        for axis in axes[len(found) :]:
            axis.remove()
        entries = {
            text: handle for axis in figure.axes for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        width = max(map(len, entries))
        ncols = max(1, min(len(entries), int(WIDE[0] * columns * 13 / (width + 8))))
        figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=ncols, handlelength=3)
    return figure


def watched(results: Results) -> dict[str, tuple[str, ...]]:
    """Terms that were watched on batches: `watch/<batch>/<term>` as term to batches, in alphabetical order."""
    names = sorted({m for cell in results.cells for run in cell.runs for m in run.scalars if m.startswith("watch/")})
    terms: dict[str, tuple[str, ...]] = {}
    for name in names:
        _, batch, term = name.split("/", 2) if name.count("/") > 1 else ("", "batch", name.removeprefix("watch/"))
        terms[term] = (*terms.get(term, ()), batch)
    return terms


def watch_curve(results: Results, column: str, term: str, batches: Sequence[str]) -> Figure | None:
    """One watched term over gradient steps, a panel a batch; None where it was not watched."""
    found = {
        batch: _lines(results, column, lambda run, b=batch: _scalar(run, f"watch/{b}/{term}"))  # type: ignore[misc]
        for batch in batches
    }
    found = {batch: _highest(results, column, lines) for batch, lines in found.items()}
    found = {batch: lines for batch, lines in found.items() if lines}
    if not found:
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDE[0], 0.6 + 2.1 * len(found)), layout="constrained")
        axes = figure.subplots(len(found), 1, sharex=True, squeeze=False)[:, 0]
        for (batch, lines), axis in zip(found.items(), axes, strict=True):
            for line in lines:
                _line(axis, line, seeds=len(lines) * line.values.shape[0] <= SINGLE)
            steps_axis(axis)
            axis.set_ylabel(term.replace("_", " "))
            axis.set_title(f"on {batch}")
            axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
        for (_, lines), axis in zip(found.items(), axes, strict=True):
            _name_ends(axis, lines, height=1.55)
        for axis in axes[:-1]:
            axis.set_xlabel("")
    return figure


def hypergradients(results: Results, column: str) -> Figure | None:
    """The norm of every logged hypergradient over steps, on a logarithmic axis; None where none is logged."""
    names = sorted({m for cell in results.cells for run in cell.runs for m in run.scalars if m.endswith(HYPERGRADIENT)})
    drawn = []
    for name in names:
        lines = _lines(results, column, lambda run, n=name: _positive(_scalar(run, n)))  # type: ignore[misc]
        for line in _highest(results, column, lines):
            what = f" ({name.removesuffix(HYPERGRADIENT).replace('_', ' ')})" if len(names) > 1 else ""
            drawn.append(Line(line.name + what, line.look, line.steps, line.values))
    if not drawn:
        return None
    with panel() as (figure, axis):
        for line in drawn:
            _line(axis, line, seeds=len(drawn) * line.values.shape[0] <= SINGLE, geometric=True)
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: power(value)))
        low, high = axis.get_ylim()
        wide = math.log10(high / low) >= 1  # else no power of ten may be in sight
        axis.yaxis.set_minor_formatter(NullFormatter() if wide else FuncFormatter(lambda value, _: f"{value:.0e}"))
        axis.set_ylabel("norm of the hypergradient")
        steps_axis(axis)
        _name_ends(axis, drawn, geometric=True)
    return figure


def moved(results: Results) -> set[str]:
    """Rows with a logged hypergradient."""
    return {c.row for c in results.cells for run in c.runs for m in run.scalars if m.endswith(HYPERGRADIENT)}


def is_success(results: Results, column: str) -> bool:
    """Whether a dataset's score is a success rate."""
    cells = [cell for cell in results.cells if cell.column == column and cell.runs]
    return bool(cells) and all(cell.measure == "success" for cell in cells)


# -- parts -----------------------------------------------------------------------------------------------------


def _returns(axis: Axes, results: Results, column: str, lines: Sequence[Line]) -> None:
    shown = foremost({line.name: float(line.values[:, -1].mean()) for line in lines})
    for line in lines:
        if line.name in shown:
            _line(axis, line, seeds=sum(len(other.values) for other in lines) <= SINGLE)
        else:
            axis.plot(line.steps, line.values.mean(0), color=FAINT, linewidth=0.7, alpha=0.7, zorder=1)
    success = is_success(results, column)
    if not success:
        cells = [cell for cell in results.cells if cell.column == column]
        for value in dict.fromkeys(filter(None, (_data_return(cell) for cell in cells))):
            axis.axhline(value, color=FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=0.5, label="mean of the data")
    steps_axis(axis)
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
    axis.set_ylabel("success rate, %" if success else "return per episode")


def _highest(results: Results, column: str, lines: Sequence[Line]) -> list[Line]:
    """The lines of the methods with the highest scores, where they are many."""
    scores = {c.row: float(c.scores.mean()) if len(c.scores) else math.nan for c in results.cells if c.column == column}
    shown = foremost({line.name: scores[line.name] for line in lines})
    return [line for line in lines if line.name in shown]


def _line(axis: Axes, line: Line, seeds: bool, geometric: bool = False) -> None:
    """The mean with its band, and thin lines for the seeds where there are few."""
    mean, low, high = line.summary(geometric)
    look, n = line.look, len(line.values)
    if seeds and n > 1:
        for values in line.values:
            axis.plot(line.steps, values, color=look.colour, linewidth=0.7, alpha=0.45)
    marked = thinned(len(line.steps), 7)
    axis.plot(
        line.steps,
        mean,
        color=look.colour,
        linestyle=look.dash,
        linewidth=1.8,
        marker=look.marker,
        markersize=4.5,
        markeredgewidth=0,
        markevery=[int(i) for i in marked],
        label=line.name,
    )
    if n > 1:
        axis.fill_between(line.steps, low, high, color=look.colour, alpha=0.13 if seeds else 0.08, linewidth=0)


def _name_ends(axis: Axes, lines: Sequence[Line], geometric: bool = False, height: float = 2.2) -> None:
    shown = foremost({line.name: float(line.values[:, -1].mean()) for line in lines})
    lines = [line for line in lines if line.name in shown]
    if not 1 < len(lines) <= LABELLED or any(len(line.name) > LONGEST for line in lines):
        return
    ends = [(line.steps[-1], line.summary(geometric)[0][-1], line.name, line.look) for line in lines]
    end_labels(axis, ends, height)


def _lines(results: Results, column: str, points: Callable[[Run], Point | None]) -> list[Line]:
    """One line a row: the steps that all its runs have in common, thinned or averaged to what can be seen."""
    look = looks(results.rows)
    tables: dict[str, tuple[Any, Any]] = {}
    for cell in results.cells:
        if cell.column != column:
            continue
        found: list[Mapping[float, float]] = []
        for run in cell.runs:
            steps, values = points(run) or ((), ())
            if steps:
                found.append({s: v for s, v in zip(steps, values, strict=True) if math.isfinite(v)})
        common = sorted(set.intersection(*map(set, found))) if found else []
        if common:
            tables[cell.row] = (np.array(common), np.array([[one[step] for step in common] for one in found]))
    k = 1 if len(tables) < CROWD else max(1, round(max(len(steps) for steps, _ in tables.values()) / BINS))
    return [Line(row, look[row], *_shorter(steps, table, k)) for row, (steps, table) in tables.items()]


def averaged(results: Results, column: str) -> int:
    """How many consecutive evaluations a point of the learning curve averages, so that a crowd can be told apart."""
    counts = [len(run.evaluations) for cell in results.cells if cell.column == column for run in cell.runs]
    rows = {cell.row for cell in results.cells if cell.column == column and any(run.evaluations for run in cell.runs)}
    return 1 if len(rows) < CROWD else max(1, round(max(counts, default=0) / BINS))


def _shorter(steps: Any, table: Any, k: int) -> tuple[Any, Any]:
    """The first point, then means of `k` consecutive ones; or every so many where that is too much to draw."""
    if k == 1 or len(steps) <= k:
        kept = thinned(len(steps))
        return steps[kept], table[:, kept]
    starts = np.r_[0, np.arange(1, len(steps), k)]
    sizes = np.diff(np.r_[starts, len(steps)])
    return np.add.reduceat(steps, starts) / sizes, np.add.reduceat(table, starts, axis=1) / sizes


def _evaluations(run: Run) -> Point | None:
    rates = [100 * e.success for e in run.evaluations if e.success is not None]
    values = rates if run.measure == "success" else [e.mean for e in run.evaluations]
    return [e.step for e in run.evaluations], values


def _scalar(run: Run, name: str) -> Point | None:
    series = run.scalars.get(name)
    return None if series is None else (series.steps, series.values)


def _positive(points: Point | None) -> Point | None:
    """The points that a logarithmic axis can show."""
    kept = [(step, value) for step, value in zip(*points, strict=True) if value > 0] if points else []
    return [step for step, _ in kept], [value for _, value in kept]


def _data_return(cell: Cell) -> float | None:
    """The mean return of the training data, where its card knows it."""
    cards = [run.data["train"] for run in cell.runs if "train" in run.data]
    return cards[0].get("returns", {}).get("mean") if cards else None
