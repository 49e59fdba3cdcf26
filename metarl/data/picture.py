"""One picture of a dataset: returns, observations, actions, and where in the state space its transitions lie."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from metarl.data.recipes.datasets import origin
from metarl.data.scores import readable
from metarl.data.transitions import Transitions
from metarl.errors import DataError

SUFFIXES = (".png", ".svg", ".pdf")
COLOURS = ("#4477aa", "#cc6677", "#228833", "#aa8800", "#66ccee", "#aa3377")
PER_ROW = 6


def check_path(path: Path) -> None:
    """Refuse a picture's path before any work.

    Raises:
        DataError: the suffix is none that can be drawn, or the folder does not exist.
    """
    if path.suffix not in SUFFIXES:
        raise DataError(f"--picture {path}: the name must end in {', '.join(SUFFIXES)}.")
    if not path.parent.is_dir():
        raise DataError(f"--picture {path}: there is no folder {path.parent}.")


def draw(transitions: Transitions, levels: Mapping[str, Transitions], path: Path) -> None:
    """Draw a dataset into `path`.

    Args:
        transitions: the dataset; its observations and actions are drawn.
        levels: other levels of the same recipe, this one included, for returns and densities side by side.
        path: ends in one of `SUFFIXES`.
    """
    shown = dict(levels) or {transitions.card.dataset_id: transitions}
    columns = _columns(transitions)
    density = _planes(transitions, shown)
    per_row = max(4, min(PER_ROW, len(columns)))
    small = math.ceil(len(columns) / per_row)

    figure = Figure(figsize=(13, 3 + 2.1 * small + (3.2 if density else 0)), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(transitions.card.dataset_id)
    heights = [2.6, 2.1 * small, *([3.2] if density else [])]
    parts = np.atleast_1d(np.asarray(figure.subfigures(len(heights), 1, height_ratios=heights)))
    _draw_returns(parts[0].subplots(1, 2, width_ratios=(3, 1)), shown)
    axes = list(parts[1].subplots(small, per_row, squeeze=False).flat)
    for axis, (name, values) in zip(axes, columns.items(), strict=False):
        colour = COLOURS[1] if name.startswith("action") else COLOURS[0]
        axis.hist(values, bins=50, color=colour)
        axis.set_xlabel(name)
        axis.set_yticks([])
    for axis in axes[len(columns) :]:
        axis.remove()
    if density:
        _draw_planes(parts[2], density)
    figure.savefig(path, dpi=130)


def _draw_returns(axes: NDArray[Any], shown: Mapping[str, Transitions]) -> None:
    returns = {name: data.returns().numpy() for name, data in shown.items()}
    lengths = {name: data.episode_lengths().numpy() for name, data in shown.items()}
    for axis, values, label in ((axes[0], returns, "episode return"), (axes[1], lengths, "episode length [steps]")):
        everything = np.concatenate(list(values.values())).astype(np.float64)
        if everything.min() == everything.max():
            axis.text(0.5, 0.5, f"{label}:\nall {everything[0]:,.6g}", ha="center", va="center")
            axis.set_axis_off()
            continue
        bins = np.histogram_bin_edges(everything, bins=40)
        for (name, one), colour in zip(values.items(), _colours(len(values)), strict=True):
            axis.hist(one, bins=bins, histtype="stepfilled", color=colour, alpha=0.25)
            axis.hist(
                one,
                bins=bins,
                histtype="step",
                color=colour,
                linewidth=1.4,
                label=f"{name}: mean {readable(one.mean())}",
            )
        axis.set_xlabel(label)
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axis.set_ylabel("episodes")
    if axes[0].get_legend_handles_labels()[0]:
        axes[0].legend(fontsize="small")


def _columns(transitions: Transitions) -> dict[str, NDArray[Any]]:
    obs, action = transitions.obs.numpy(), transitions.action.numpy()
    named = {f"obs[{i}]": obs[:, i] for i in range(obs.shape[1])}
    named |= {f"action[{i}]": action[:, i] for i in range(action.shape[1])}
    return {**named, "reward": transitions.reward.numpy()}


def _planes(transitions: Transitions, shown: Mapping[str, Transitions]) -> dict[str, Any]:
    made = origin(transitions.card)
    planes = {name: made[0].plane(data.obs.numpy()) for name, data in shown.items()} if made else {}
    return {name: plane for name, plane in planes.items() if plane is not None}


def _draw_planes(part: SubFigure, planes: Mapping[str, Any]) -> None:
    axes: NDArray[Any] = part.subplots(1, len(planes), squeeze=False, sharex=True, sharey=True)[0]
    x = np.concatenate([plane.x for plane in planes.values()])
    y = np.concatenate([plane.y for plane in planes.values()])
    edges = [np.histogram_bin_edges(values, bins=50) for values in (x, y)]
    counts = {name: np.histogram2d(plane.x, plane.y, bins=edges)[0] / len(plane.x) for name, plane in planes.items()}
    filled = np.concatenate([one[one > 0] for one in counts.values()])
    norm = LogNorm(filled.min(), filled.max())
    for axis, (name, plane) in zip(axes, planes.items(), strict=True):
        drawn: Axes = axis
        drawn.pcolormesh(*edges, np.ma.masked_equal(counts[name].T, 0), norm=norm, cmap="viridis")
        drawn.set_title(name, fontsize="medium")
        drawn.set_xlabel(plane.x_name)
    next(iter(axes)).set_ylabel(next(iter(planes.values())).y_name)
    part.colorbar(ScalarMappable(norm, "viridis"), ax=list(axes), label="share of transitions")


def _colours(n: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(n)]
