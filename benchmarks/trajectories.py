"""Where a policy goes beside the pieces it learned from: `python -m benchmarks.trajectories RUN [RUN ...] [--out PNG]`.

A map per run: pieces (episodes) of the training data in grey, and the deterministic policy from the evaluation's own
start-goal pairs. Below it, whether the policy stitches:

    success         share of the pairs whose goal it reaches, as the evaluation counts it
    linked          pairs whose goal some single piece reaches after it was at the start
    displacement    the longest shortest way between any two places of a piece
    way             the shortest way from a trajectory's start to its end

A success on a pair that no single piece links is stitched. `--value` draws the run's V behind the trajectories.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib as mpl
import numpy as np
import torch
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Rectangle
from numpy.typing import NDArray

from benchmarks.colours import FAINT, INK, PALETTE
from benchmarks.drawing import STYLE, plain, to_png
from benchmarks.planes import GOAL, Points, Trained, World, need_world, read, say
from metarl.data.transitions import Transitions
from metarl.envs import make_env
from metarl.errors import ConfigError, UserError
from metarl.process import settle
from metarl.training import export
from metarl.training.evaluation import EpisodeReturns, Evaluator

EPISODES = 20  # evaluated, unless told
SHOWN = 6  # trajectories drawn, unless told
GREY_STEPS = 6000  # of the data's pieces drawn, about
NEAR_START = 0.5  # how near to a start a piece must pass, in a maze's cells; elsewhere as near as to a goal
COLUMNS = 3
CMAP = "viridis"
GREYS = ("#848b92", "#9aa1a8", "#adb3b9", "#71787f")
COLOURS = tuple(PALETTE[i] for i in (1, 2, 3, 4, 5, 7))  # told apart best, beside grey
WHITE = [patheffects.withStroke(linewidth=3.2, foreground="white")]


@dataclass(frozen=True)
class Trajectory:
    """One episode of the policy, up to its goal or its end.

    Attributes:
        obs: [T + 1, O], as the environment observes them.
        places: of these, [T + 1, 2].
        goal: [2].
        steps: to the goal; None where it was not reached.
        way: the shortest way from its start to its end.
        linked: pieces of the data that were at its start and later at its goal.
    """

    obs: NDArray[Any]
    places: Points
    goal: Points
    steps: int | None
    way: float
    linked: int


@dataclass(frozen=True)
class Found:
    """What is drawn of a run.

    Attributes:
        run, world: what it is, and its map.
        trajectories: of the evaluation's episodes, in their order.
        returns: what the evaluation itself says of them.
        displacements: of every piece of the data.
    """

    run: Trained
    world: World
    trajectories: tuple[Trajectory, ...]
    returns: EpisodeReturns
    displacements: NDArray[np.float64]


class Watched(gym.Wrapper[Any, Any, Any, Any]):
    """Keeps the observations of the episode that runs."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.seen: list[NDArray[Any]] = []

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """See `gym.Env`."""
        obs, info = super().reset(**kwargs)
        self.seen = [np.array(obs)]
        return obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """See `gym.Env`."""
        obs, reward, terminated, truncated, info = super().step(action)
        self.seen.append(np.array(obs))
        return obs, reward, terminated, truncated, info


def find(path: Path, episodes: int = EPISODES, beside: Path | None = None) -> Found:
    """Reads a run back and lets its policy act.

    Args:
        path: its folder.
        episodes: of the evaluation.
        beside: where components named `module:Class` lie.

    Raises:
        ConfigError: there is no run, no data or no map.
    """
    run = read(path, beside)
    world = need_world(run)
    envs: list[Watched] = []

    def make() -> gym.Env:
        envs.append(Watched(make_env(run.env, run.policy.obs_keys or None)))
        return envs[-1]

    evaluator = Evaluator(make, episodes, run.seed)
    try:
        returns = evaluator(run.policy, run.step)
    finally:
        evaluator.close()
    if returns.steps_to_goal is None:
        raise ConfigError(f"{path}: its environment tells of no success; choose a task with a goal")
    paths = [
        np.stack(env.seen)[: None if steps is None else steps + 1]
        for env, steps in zip(envs, returns.steps_to_goal, strict=True)
    ]
    starts = np.stack([world.places(obs[:1])[0] for obs in paths])
    goals = np.stack([world.goals(obs[:1])[0] for obs in paths])
    links = linked(world, run.train, starts, goals)
    trajectories = []
    for obs, goal, steps, found in zip(paths, goals, returns.steps_to_goal, links, strict=True):
        places = world.places(obs)
        trajectories.append(Trajectory(obs, places, goal, steps, world.way(places[0], places[-1]), int(found)))
    return Found(run, world, tuple(trajectories), returns, displacements(world, run.train))


def displacements(world: World, train: Transitions) -> NDArray[np.float64]:
    """How far every piece of the data comes, [E]: `World.displacement`."""
    return np.array([world.displacement(piece) for piece in _pieces(world, train)])


def linked(world: World, train: Transitions, starts: Points, goals: Points) -> NDArray[np.int64]:
    """How many pieces of the data are near a start and later at its goal, [N] for N pairs."""
    reach = NEAR_START if world.kind == "maze" else world.radius
    found = np.zeros(len(starts), np.int64)
    obs, after = train.obs.numpy(), train.next_obs.numpy()
    keyed = world.stage(after) == len(world.stages) - 1
    at, to = world.places(obs), world.places(after)
    bounds = train.episode_starts.numpy()
    piece = train.episode_of_row().numpy()
    rows = np.arange(len(train))
    for i, (start, goal) in enumerate(zip(starts, goals, strict=True)):
        near = rows[np.linalg.norm(at - start, axis=1) <= reach]
        there = rows[(np.linalg.norm(to - goal, axis=1) <= world.radius) & keyed]
        first, last = np.full(len(bounds) - 1, len(train)), np.full(len(bounds) - 1, -1)
        np.minimum.at(first, piece[near], near)
        np.maximum.at(last, piece[there], there)
        found[i] = int((first <= last).sum())
    return found


def _pieces(world: World, train: Transitions) -> list[Points]:
    """The places of every piece, its last state included."""
    at, to = world.places(train.obs.numpy()), world.places(train.next_obs.numpy())
    bounds = train.episode_starts.tolist()
    return [np.concatenate((at[i:j], to[j - 1 : j])) for i, j in pairwise(bounds)]


def measure(found: Found) -> dict[str, Any]:
    """The numbers of a run.

    Returns:
        `episodes`; `success`: rate; `steps`: mean to the goal (None without a success); `piece`: the longest
        displacement of a piece; `longest`: the longest way of a success (None without one); `beyond`: share of the
        successes whose way is longer than any piece's displacement (None without one); `unlinked`: pairs that no
        single piece links; `stitched`: successes among them.
    """
    reached = [one for one in found.trajectories if one.steps is not None]
    unlinked = [one for one in found.trajectories if one.linked == 0]
    piece = float(found.displacements.max())
    return {
        "episodes": len(found.trajectories),
        "success": found.returns.success,
        "steps": float(np.mean([one.steps for one in reached])) if reached else None,
        "piece": piece,
        "longest": max(one.way for one in reached) if reached else None,
        "beyond": float(np.mean([one.way > piece for one in reached])) if reached else None,
        "unlinked": len(unlinked),
        "stitched": sum(one.steps is not None for one in unlinked),
    }


def summary(found: Found) -> str:
    """The numbers in words."""
    numbers, unit = measure(found), found.world.unit
    pieces = found.run.train.episode_lengths()
    parts = [f"Goal reached in {len(found.returns.reached)} of {numbers['episodes']} episodes"]
    if numbers["steps"] is not None:
        parts[0] += f", after {numbers['steps']:,.0f} steps on average"
    parts.append(
        f"Data: {plain(len(pieces))} pieces of {plain(float(pieces.double().median()))} steps (median); none leads "
        f"farther than {numbers['piece']:.1f}{unit}"
    )
    if numbers["longest"] is not None:
        parts.append(
            f"The policy's farthest success leads {numbers['longest']:.1f}{unit}, and {numbers['beyond']:.0%} of its "
            "successes lead farther than any piece"
        )
    if numbers["unlinked"]:
        parts.append(
            f"Stitching: in {numbers['unlinked']} of the {numbers['episodes']} episodes no single piece leads from "
            f"start to goal; the policy reaches {numbers['stitched']} of these goals"
        )
    else:
        parts.append("Some single piece leads from start to goal in every episode, so that none needs stitching")
    return ". ".join(parts) + "."


# -- the picture -----------------------------------------------------------------------------------------------


def drawn(found: Sequence[Found], shown: int = SHOWN, value: bool = False) -> tuple[Figure, list[str]]:
    """The picture, and what is written below every map."""
    panels = [(one, stage) for one in found for stage in range(len(one.world.stages) if value else 1)]
    columns = min(COLUMNS, len(panels))
    if value and (stages := max(len(one.world.stages) for one in found)) > 1:
        columns = stages if len(found) == 1 else 2 * stages  # the stages of a run side by side
    rows = -(-len(panels) // columns)
    side = 4.9 if columns < 3 else 4.2
    notes = [summary(one) for one in found]
    if value:
        notes = [f"{note} {_of_value(one)}".strip() for note, one in zip(notes, found, strict=True)]
    wrapped = [textwrap.wrap(note, int(side * 15.5)) for note in notes]
    deep = 0.16 * max(len(lines) for lines in wrapped) + 0.25
    left, right, bottom, top = zip(*(one.world.bounds for one in found), strict=True)
    aspect = max((t - b) / (r - l) for l, r, b, t in zip(left, right, bottom, top, strict=True))  # noqa: E741
    tall = (side - 0.8) * aspect + 1.0
    legend = 0.75
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(side * columns + 0.4, rows * (tall + deep) + legend), layout="constrained")
        parts: Any = figure.subfigures(2, 1, height_ratios=(rows * (tall + deep), legend))
        cells: Any = parts[0].subfigures(rows, columns, squeeze=False)
        for cell in list(cells.flat)[len(panels) :]:
            cell.set_visible(False)
        for (one, stage), cell in zip(panels, cells.flat, strict=False):
            upper, lower = cell.subfigures(2, 1, height_ratios=(tall, deep))
            axis = upper.subplots()
            title = textwrap.fill(one.run.title, int(side * 10))
            label = one.world.stages[stage] if value else ""
            axis.set_title(f"{title}\n{label}" if label else title)
            one.world.draw(axis)
            chosen = _chosen(one, shown, value)
            if value:
                _value(upper, axis, one, stage, chosen[0].goal)
            else:
                _data(axis, one)
            for i, trajectory in enumerate(chosen):
                _trajectory(axis, one, trajectory, COLOURS[i % len(COLOURS)], stage if value else None)
            if stage == 0:
                text = "\n".join(wrapped[next(i for i, other in enumerate(found) if other is one)])
                lower.text(0.04, 0.98, text, ha="left", va="top", fontsize=8.5)
        parts[1].legend(handles=_handles(value), loc="center", ncols=3 if columns > 1 else 2)
    return figure, notes


def _chosen(found: Found, shown: int, value: bool) -> list[Trajectory]:
    """The episodes to draw, the first ones; with V, only those of one goal, that of the longest way to go."""
    every = list(found.trajectories)
    if not value:
        return every[:shown]
    far = max(every, key=lambda one: (one.steps is not None, found.world.way(one.places[0], one.goal)))
    return [far, *(one for one in every if one is not far and np.allclose(one.goal, far.goal))][:shown]


def _of_value(found: Found) -> str:
    if found.world.kind == "rooms":
        return ""
    return "Drawn: the success that led farthest from its start (a failure, if all failed), and V for its goal."


def _data(axis: Axes, found: Found) -> None:
    """Some pieces of the data, drawn by chance, each in its own line."""
    pieces = _pieces(found.world, found.run.train)
    order = np.random.default_rng(0).permutation(len(pieces))
    steps = np.cumsum([len(pieces[i]) for i in order])
    for k, i in enumerate(order[: max(1, int(np.searchsorted(steps, GREY_STEPS)))]):
        axis.plot(*pieces[i].T, color=GREYS[k % len(GREYS)], linewidth=0.7, alpha=0.75, zorder=1.8)
        axis.plot(*pieces[i][-1], ".", color=GREYS[k % len(GREYS)], markersize=2.2, zorder=1.8)


def _trajectory(axis: Axes, found: Found, one: Trajectory, colour: str, stage: int | None) -> None:
    """A trajectory with its ends; with a stage, the part of it in that stage."""
    dense = stage is not None
    line = "white" if dense else colour
    places = one.places
    if dense and len(found.world.stages) > 1:
        inside = found.world.stage(one.obs) == stage
        places = places[inside]
        if not len(places):
            return
    begins = stage is None or np.array_equal(places[0], one.places[0])
    ends = stage is None or np.array_equal(places[-1], one.places[-1])
    edge = [patheffects.withStroke(linewidth=3.0, foreground=INK)] if dense else WHITE
    axis.plot(*places.T, color=line, linewidth=1.6, zorder=4, path_effects=edge)
    if found.world.kind != "rooms":
        circle: Any = {"fill": False, "edgecolor": line, "linewidth": 1.0, "linestyle": (0, (2, 1.5)), "zorder": 3.9}
        axis.add_patch(Circle((float(one.goal[0]), float(one.goal[1])), found.world.radius, **circle))
    mark: Any = {"color": colour, "zorder": 5, "clip_on": False}
    if begins:
        axis.plot(*places[0], "o", markersize=6, markeredgewidth=1.6, **(mark | {"markerfacecolor": "white"}))
    if ends and one.steps is not None:
        axis.plot(*places[-1], "*", markersize=13, markeredgecolor="white", markeredgewidth=0.8, **mark)
    elif ends:
        axis.plot(*places[-1], "X", markersize=9, markeredgecolor="white", markeredgewidth=0.8, **mark)


def _value(part: Any, axis: Axes, found: Found, stage: int, goal: Points) -> None:
    """V over the free points of the map, at rest."""
    world = found.world
    values = value_over(found, goal)
    low, high = min(float(v.min()) for v in values), max(float(v.max()) for v in values)
    norm = Normalize(low, high if high > low else low + 1e-9)
    grid = np.full(world.free.shape, np.nan)
    grid[world.free] = values[stage]
    mesh = axis.pcolormesh(world.x, world.y, grid, cmap=CMAP, norm=norm, shading="nearest", zorder=0.5)
    left, right, bottom, top = world.bounds
    mesh.set_clip_path(Rectangle((left, bottom), right - left, top - bottom, transform=axis.transData))
    if world.kind == "rooms":
        axis.add_patch(Circle((float(goal[0]), float(goal[1])), world.radius, fill=False, edgecolor=GOAL, zorder=3.9))
    bar = part.colorbar(ScalarMappable(norm, CMAP), ax=axis, shrink=0.8, pad=0.02)
    bar.set_label(
        "V" if world.kind == "rooms" else "V, at rest, for the goal drawn" if world.unit else "V for the goal"
    )


@torch.no_grad()
def value_over(found: Found, goal: Points) -> list[NDArray[np.float64]]:
    """V at the map's free points, [M], of every stage.

    Raises:
        ConfigError: the learner has no state-value function.
    """
    policy = found.run.precise()
    grids = (found.world.at(found.world.points, goal.tolist(), i) for i in range(len(found.world.stages)))
    try:
        terms = policy.learner.hooks("of --value")
        return [terms.v(policy.tree, policy.read(grid)).numpy() for grid in grids]
    except ConfigError as error:
        raise ConfigError(
            f"{found.run.path} has no state-value function; leave --value out, or choose a run of iql or por"
        ) from error


def _handles(value: bool) -> list[Line2D]:
    colour: Any = {"color": INK, "linestyle": "none", "markeredgecolor": "white", "markeredgewidth": 0.8}
    start: Any = {"linestyle": "none", "markerfacecolor": "white", "markeredgecolor": INK, "markeredgewidth": 1.6}
    handles = [
        Line2D([], [], color=FAINT, linewidth=1, marker=".", markersize=3, label="pieces of the data (dot: their end)"),
        Line2D([], [], color=COLOURS[0], linewidth=1.8, label="the policy, a colour for each episode"),
        Line2D([], [], marker="o", markersize=6, label="start", **start),
        Line2D([], [], marker="*", markersize=13, label="goal reached", **colour),
        Line2D([], [], marker="X", markersize=9, label="end, goal not reached", **colour),
        Line2D([], [], linestyle="none", marker="o", markersize=9, markerfacecolor="none", markeredgecolor=INK,
               label="goal (in the rooms: green)"),
    ]  # fmt: skip
    if value:
        line: Any = {"path_effects": [patheffects.withStroke(linewidth=3, foreground=INK)]}
        handles[:2] = [Line2D([], [], color="white", linewidth=1.6, label="the policy", **line)]
    return handles


# -- the command -----------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws trajectories of runs; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.trajectories",
        description="Draw where policies go beside the data they learned from.",
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="run", help="a run's folder, runs/<name>-<hash>/<seed>")
    parser.add_argument("--out", type=Path, help="FILE.png; by default trajectories.png in the first run's folder")
    parser.add_argument("--episodes", type=int, default=EPISODES, help="start-goal pairs of the evaluation")
    parser.add_argument("--shown", type=int, default=SHOWN, help="trajectories drawn, the first ones")
    parser.add_argument("--value", action="store_true", help="draw the run's V behind the trajectories")
    parser.add_argument("--beside", type=Path, help="where components named module:Class lie")
    options = parser.parse_args(arguments)
    out = options.out or options.runs[0] / "trajectories.png"
    settle()
    try:
        for name in ("episodes", "shown"):
            if getattr(options, name) < 1:
                raise ConfigError(f"--{name} must be at least 1, not {getattr(options, name)}")
        found = [find(run, options.episodes, options.beside) for run in options.runs]
        export.check_path(out, True, (".png",))
        figure, notes = drawn(found, options.shown, options.value)
        export.write_bytes(out, to_png(figure))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    say(str(out))
    for one, note in zip(found, notes, strict=True):
        say(f"{one.run.title}: {note}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
