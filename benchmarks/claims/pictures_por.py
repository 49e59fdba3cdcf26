"""The pictures of POR's claims."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.claims import por
from benchmarks.claims.cells import Score, cell_of, scores_of
from benchmarks.claims.panels import course, panels, points
from benchmarks.drawing import steps_axis
from benchmarks.results import Cell, Results

SUCCESS, RETURN = "success, %", "raw return"
POINTS = "Points: the mean of the second half of the evaluations, with its 95 % interval over seeds; grey: the seeds."
BANDS = "Success at every evaluation: means over seeds with 95 % intervals."
HEIGHT = (-4.0, 104.0)  # of a panel of success rates


def pointmaze(results: Results) -> Figure:
    """Success over gradient steps, and what it averages in the second half, by method."""
    cells = {method: cell_of(results, {"method": method}) for method in results.axes["method"]}

    def one(axis: Axes, name: str) -> None:
        if name == "in the course of training":
            _courses(results, axis, cells)
        else:
            points(axis, _worth(results, cells, por.late))
        axis.set_ylabel(SUCCESS)
        axis.set_ylim(*HEIGHT)

    return panels(["in the course of training", "in its second half"], one, widths=(1.0, 1.25))


def rooms(results: Results) -> Figure:
    """Success over gradient steps by task and method; below it the raw return of the second half."""
    by_task: dict[str, dict[str, Cell]] = {}
    for cell in results.cells:
        by_task.setdefault(cell.labels["task"], {})[cell.labels["method"]] = cell_of(results, cell.labels)
    names = [(task, what) for what in (SUCCESS, RETURN) for task in by_task]

    def one(axis: Axes, name: str) -> None:
        task, what = next((t, w) for t, w in names if _title(t, w) == name)
        if what == SUCCESS:
            _courses(results, axis, by_task[task])
            axis.set_ylim(*HEIGHT)
        else:
            points(axis, _worth(results, by_task[task], por.late_return), results.axes["method"])
        axis.set_ylabel(what)

    return panels([_title(*name) for name in names], one, legend_of=-1 - len(by_task))


def uses(results: Results) -> Figure:
    """The score of every method by dataset."""

    def one(axis: Axes, column: str) -> None:
        labels = {method: {"dataset": column, "method": method} for method in results.axes["method"]}
        cells = {method: cell_of(results, own) for method, own in labels.items()}
        points(axis, _worth(results, cells, por.late))
        rate = next(iter(cells.values())).measure == "success"
        axis.set_ylabel(SUCCESS if rate else "normalised score")

    return panels(results.axes["dataset"], one, legend=False, widths=(1.4,) * len(results.axes["dataset"]))


def _title(task: str, what: str) -> str:
    return task if what == SUCCESS else f"{task}: {what}"


def _courses(results: Results, axis: Axes, cells: Mapping[str, Cell]) -> None:
    steps_axis(axis)
    for method, cell in cells.items():
        i = results.axes["method"].index(method)
        rates = [[100 * (e.success or 0.0) for e in run.evaluations] for run in cell.scored]
        course(axis, [e.step for e in cell.scored[0].evaluations], rates, i, method)


def _worth(results: Results, cells: Mapping[str, Cell], score: Score) -> dict[str, NDArray[np.float64]]:
    return {method: np.array(list(scores_of(results, cell.labels, score).values())) for method, cell in cells.items()}


DRAWN = {por.POINTMAZE: pointmaze, por.ROOMS: rooms, por.SUPPLEMENT: uses, por.LEARNED: uses}
CAPTIONS = {
    por.POINTMAZE: f"{BANDS} {POINTS}",
    por.ROOMS: f"{BANDS} {POINTS} The return on the river falls by 1 with every step in the water.",
    por.SUPPLEMENT: POINTS,
    por.LEARNED: POINTS,
}
