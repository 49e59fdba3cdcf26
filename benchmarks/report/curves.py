"""Figures over gradient steps: returns, watched terms, hypergradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.colours import FAINT
from benchmarks.drawing import STYLE, WIDE, end_labels, panel, plain, power, steps_axis, thinned
from benchmarks.report.courses import Courses, Line, Point, courses
from benchmarks.report.scores import foremost
from benchmarks.results import Cell, Results, Run

LABELLED = 10  # lines that have room for their names beside a panel
LONGEST = 26  # characters of such a name
SINGLE = 12  # lines of single seeds that a panel bears
DOTTED = (0, (1, 1.6))  # seeds that have not finished
HYPERGRADIENT = "/hypergradient_norm"


class Drawn(NamedTuple):
    """A figure and its caption."""

    figure: Figure
    text: str


def learning_curve(results: Results, column: str) -> Drawn | None:
    """Return, or success rate, over gradient steps for one dataset; None where nothing was evaluated."""
    found = courses(results, column, _evaluations, rates=True)
    if not found.lines:
        return None
    with panel() as (figure, axis):
        _returns(axis, results, column, found.lines)
        _name_ends(axis, found.lines)
    return Drawn(figure, " ".join(found.notes))


def learning_curves(results: Results) -> Figure | None:
    """All datasets side by side with one legend, for papers and slides."""
    found = {column: courses(results, column, _evaluations, rates=True) for column in results.columns}
    found = {column: one for column, one in found.items() if one.lines}
    if not found:
        return None
    columns = min(3, len(found))
    rows = -(-len(found) // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDE[0] * columns, WIDE[1] * rows + 0.5), layout="constrained")
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for (column, one), axis in zip(found.items(), axes, strict=False):
            _returns(axis, results, column, one.lines)
            n = sorted({len(line.values) for line in one.lines})
            axis.set_title(f"{column} (n = {n[0]})" if len(n) == 1 else f"{column} (n = {n[0]} to {n[-1]})")
        for axis in axes[len(found) :]:
            axis.remove()
        entries = {
            text: handle for axis in figure.axes for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        width = max(map(len, entries), default=0)
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


def watch_curve(results: Results, column: str, term: str, batches: Sequence[str]) -> Drawn | None:
    """One watched term over gradient steps, a panel a batch; None where it was not watched."""
    found = {batch: _highest(results, column, _logged(results, column, f"watch/{batch}/{term}")) for batch in batches}
    found = {batch: one for batch, one in found.items() if one.lines}
    if not found:
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDE[0], 0.6 + 2.1 * len(found)), layout="constrained")
        axes = figure.subplots(len(found), 1, sharex=True, squeeze=False)[:, 0]
        for (batch, one), axis in zip(found.items(), axes, strict=True):
            _all(axis, one.lines)
            steps_axis(axis, results.counted)
            axis.set_ylabel(term.replace("_", " "))
            axis.set_title(f"on {batch}")
            axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
        for one, axis in zip(found.values(), axes, strict=True):
            _name_ends(axis, one.lines, height=1.55)
        for axis in axes[:-1]:
            axis.set_xlabel("")
    return Drawn(figure, " ".join(dict.fromkeys(note for one in found.values() for note in one.notes)))


def hypergradients(results: Results, column: str) -> Drawn | None:
    """The norm of every logged hypergradient over steps, on a logarithmic axis; None where none is logged.

    A norm of exactly 0, the sign of a function that learns nothing, is drawn at the foot of the axis.
    """
    names = sorted({m for cell in results.cells for run in cell.runs for m in run.scalars if m.endswith(HYPERGRADIENT)})
    drawn: list[Line] = []
    notes: dict[str, None] = {}
    for name in names:
        one = _highest(results, column, _logged(results, column, name))
        what = f" ({name.removesuffix(HYPERGRADIENT).replace('_', ' ')})" if len(names) > 1 else ""
        drawn += [replace(line, name=line.name + what) for line in one.lines]
        notes |= dict.fromkeys((*one.notes, *_zeros(results, column, name, what, [line.name for line in one.lines])))
    if not drawn:
        return None
    tables = [values for line in drawn for values in (line.values, *(part.values for part in line.parts))]
    positive = np.concatenate([table[table > 0].ravel() for table in tables])
    floor = 10.0 ** (math.ceil(math.log10(positive.min())) - 1) if len(positive) else 1.0
    zeros = any((table <= 0).any() for table in tables)
    with panel() as (figure, axis):
        _all(axis, [_raised(line, floor) for line in drawn], geometric=True)
        low, high = axis.dataLim.intervaly
        room = max((high / low) ** 0.05, 1.2)  # not Matplotlib's own, which is none where nothing varies
        axis.set_ylim(low / room, high * room)
        axis.set_yscale("log")
        wide = math.log10(high / low) >= 1 or not len(positive)  # else no power of ten may be in sight

        def label(value: float, _: object) -> str:
            if zeros and math.isclose(value, floor):
                return "0"
            return power(value) if len(positive) else ""

        axis.yaxis.set_major_formatter(FuncFormatter(label))
        axis.yaxis.set_minor_formatter(NullFormatter() if wide else FuncFormatter(lambda value, _: f"{value:.0e}"))
        axis.set_ylabel("norm of the hypergradient")
        steps_axis(axis, results.counted)
        _name_ends(axis, [_raised(line, floor) for line in drawn], geometric=True)
    return Drawn(figure, " ".join(notes))


def moved(results: Results) -> set[str]:
    """Rows with a logged hypergradient."""
    return {c.row for c in results.cells for run in c.runs for m in run.scalars if m.endswith(HYPERGRADIENT)}


def data_returns(results: Results, column: str) -> list[float]:
    """The mean returns of a dataset's training data, where cards know them."""
    cells = [cell for cell in results.cells if cell.column == column]
    cards = [next((run.data["train"] for run in cell.runs if "train" in run.data), {}) for cell in cells]
    means = [card.get("returns", {}).get("mean") for card in cards]
    return list(dict.fromkeys(mean for mean in means if mean is not None))


# -- parts -----------------------------------------------------------------------------------------------------


def _returns(axis: Axes, results: Results, column: str, lines: Sequence[Line]) -> None:
    shown = foremost({line.name: line.end for line in lines})
    _all(axis, [line for line in lines if line.name in shown], of=lines)
    for line in lines:
        if line.name not in shown and len(line.values):
            axis.plot(line.steps, line.values.mean(0), color=FAINT, linewidth=0.7, alpha=0.7, zorder=1)
    success = results.measure(column) == "success"
    if not success:
        for value in data_returns(results, column):
            axis.axhline(value, color=FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=0.5, label="mean of the data")
    steps_axis(axis, results.counted)
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
    axis.set_ylabel("success rate, %" if success else "return per episode")


def _highest(results: Results, column: str, found: Courses) -> Courses:
    """The lines of the methods with the highest scores, where they are many."""
    scores = {c.row: float(c.scores.mean()) if len(c.scores) else math.nan for c in results.cells if c.column == column}
    return found.only(foremost({line.name: scores[line.name] for line in found.lines}))


def _all(axis: Axes, lines: Sequence[Line], geometric: bool = False, of: Sequence[Line] = ()) -> None:
    """Every line; where seeds are few (of all the lines of the panel), with each seed."""
    few = sum(len(line.values) for line in of or lines) <= SINGLE
    for line in lines:
        _line(axis, line, few, geometric)


def _line(axis: Axes, line: Line, seeds: bool, geometric: bool) -> None:
    """The mean with its band, thin lines for the seeds where there are few, and dotted ones for those in no mean."""
    look, n = line.look, len(line.values)
    thin: Any = {"color": look.colour, "linewidth": 0.7, "alpha": 0.45}
    for part in line.parts:
        axis.plot(part.steps, part.values, **thin | {"linestyle": DOTTED, "linewidth": 0.9, "alpha": 0.8})
        if part.diverged and len(part.steps):
            axis.plot(part.steps[-1:], part.values[-1:], "x", color=look.colour, markersize=6, markeredgewidth=1.3)
    if not n:
        return
    mean, low, high = line.summary(geometric)
    if seeds and n > 1:
        for values in line.values:
            axis.plot(line.steps, values, **thin)
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
    shown = foremost({line.name: line.end for line in lines})
    lines = [line for line in lines if line.name in shown and len(line.values)]
    if not 1 < len(lines) <= LABELLED or any(len(line.name) > LONGEST for line in lines):
        return
    ends = [(line.steps[-1], line.summary(geometric)[0][-1], line.name, line.look) for line in lines]
    end_labels(axis, ends, height)


def _evaluations(cell: Cell, run: Run) -> Point | None:
    if cell.measure == "return":
        return [e.step for e in run.evaluations], [e.mean for e in run.evaluations]
    rates = [(e.step, 100 * e.success) for e in run.evaluations if e.success is not None]
    return [step for step, _ in rates], [rate for _, rate in rates]


def _logged(results: Results, column: str, name: str) -> Courses:
    def points(_: Cell, run: Run) -> Point | None:
        series = run.scalars.get(name)
        return None if series is None else (series.steps, series.values)

    return courses(results, column, points)


def _raised(line: Line, floor: float) -> Line:
    """With `floor` in place of what a logarithmic axis cannot show."""
    parts = tuple(replace(part, values=np.maximum(part.values, floor)) for part in line.parts)
    return replace(line, values=np.maximum(line.values, floor), parts=parts)


def _zeros(results: Results, column: str, name: str, what: str, rows: Sequence[str]) -> list[str]:
    """A sentence on hypergradients of exactly 0."""
    told = []
    for row in rows:
        cell = results.at(row, column)
        series = [run.scalars[name] for run in (cell.runs if cell else ()) if name in run.scalars]
        values = [value for one in series for value in one.values]
        zeros = sum(value == 0 for value in values)
        if zeros:
            told.append(f"{zeros:,} of {len(values):,} of {row}{what}")
    return [f"Exactly 0, drawn at the foot of the axis: {', '.join(told)}."] if told else []
