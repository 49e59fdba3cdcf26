"""The pictures of PEX's claims."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.claims import pex
from benchmarks.claims.cells import cell_of, scores_of
from benchmarks.claims.panels import by_setting, course, panels, points
from benchmarks.colours import INK
from benchmarks.results import Cell, Results

COURSES = (
    "Success or normalised return at every evaluation: means over seeds with 95 % intervals. Dashed: the switch; left "
    "of it are gradient steps on data, right of it environment steps."
)
POINTS = (
    "The mean over the online steps, with its 95 % interval over seeds (of three it may be wider than the panel); "
    "grey: the seeds."
)


def strategies(results: Results) -> Figure:
    """Success or return over the steps after the switch, by strategy."""

    def one(axis: Axes, cells: Mapping[str, Cell]) -> list[float]:
        seen: list[float] = []
        for strategy, cell in cells.items():
            i = results.axes["strategy"].index(strategy)
            curves = [pex.curve(run) for run in cell.scored]
            steps = [step for step, _ in curves[0]]
            seen += course(axis, steps, [[value for _, value in curve] for curve in curves], i, strategy)
        axis.axvline(0, color=INK, linestyle=(0, (4, 3)), linewidth=1.0, zorder=1)
        axis.set_xlabel("steps after the switch")
        axis.set_ylabel(_unit(next(iter(cells.values()))))
        return seen

    return by_setting(results, "strategy", one)


def options(results: Results) -> Figure:
    """The area under the online curve by task and option."""
    tasks, *axes = results.axes
    kept = [labels for labels in product(*(results.axes[axis] for axis in axes)) if pex.OFFLINE not in labels]

    def one(axis: Axes, task: str) -> None:
        cells = {
            " · ".join(labels): cell_of(results, {tasks: task, **dict(zip(axes, labels, strict=True))})
            for labels in kept
        }
        scores = {
            label: np.array(list(scores_of(results, cell.labels, pex.area).values())) for label, cell in cells.items()
        }
        points(axis, scores)
        values = np.concatenate(list(scores.values()))
        room = 0.25 * (values.max() - values.min()) or 1.0
        axis.set_ylim(values.min() - room, values.max() + room)
        axis.set_xlabel(" · ".join(axes))
        axis.set_ylabel(_unit(next(iter(cells.values()))))

    return panels(results.axes[tasks], one, legend=False, widths=(1.4,) * len(results.axes[tasks]))


def _unit(cell: Cell) -> str:
    return "success, %" if cell.scored[0].measure == "success" else "normalised return"


DRAWN = {pex.STRATEGIES: strategies} | dict.fromkeys((pex.SETS, pex.TEMPERATURE, pex.CRITIC, pex.SENSITIVITY), options)
CAPTIONS = {suite: COURSES if suite == pex.STRATEGIES else POINTS for suite in DRAWN}
