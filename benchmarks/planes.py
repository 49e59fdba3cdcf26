"""Finished runs read back for pictures, and maps of the tasks that happen in a plane: walls, goals, ways between walls.

Point mazes, the four rooms and navigation have a map. A way is measured along walls by Dijkstra's algorithm over a grid
of points, each joined to its eight neighbours; so a straight line at an angle comes out up to 8 % too long.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from gymnasium.envs.registration import EnvSpec
from matplotlib.axes import Axes
from matplotlib.patches import Circle, Rectangle
from numpy.typing import NDArray
from rich.console import Console
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra
from scipy.spatial import cKDTree

from benchmarks.colours import FAINT, INK
from benchmarks.drawing import plain
from benchmarks.running.folder import BenchFolder
from metarl import data
from metarl.config import Experiment
from metarl.data.recipes.pointmaze import Maze
from metarl.data.transitions import Transitions
from metarl.envs import four_rooms, navigation
from metarl.envs.navigation import Wall
from metarl.errors import ConfigError
from metarl.training.evaluation import Policy
from metarl.training.folder import RunFolder
from metarl.training.offline import load_policy
from metarl.training.streams import generator

Kind = Literal["maze", "rooms", "navigation"]
Points = NDArray[np.float64]
"""Places [N, 2]."""

POINT_MAZE_RADIUS = 0.45  # of a goal, in gymnasium-robotics' point mazes
PER_METRE = 7  # points of the grid along a metre of a maze; odd, so that one is the middle of a cell
GOAL, KEY, WATER, WOOD, WALL = "#2ca02c", "#d98200", "#b5d7ea", "#d9bd97", "#c3c8cd"


# -- runs ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Acting:
    """A run, as far as it has come.

    Attributes:
        path: its folder.
        name: the labels of its cell where a bench folder lies around it, else the experiment's name.
        labels: axis -> label of that cell; empty elsewhere.
        experiment, seed, step: what it is, and the step of its newest checkpoint.
        policy: of that checkpoint.
        env: specification of the environment that it is evaluated in, as JSON.
    """

    path: Path
    name: str
    labels: dict[str, str]
    experiment: Experiment
    seed: int
    step: int
    policy: Policy
    env: str

    @property
    def title(self) -> str:
        """Which run, and when."""
        return f"{self.name}, seed {self.seed}, step {plain(self.step)}"

    def precise(self) -> Policy:
        """The policy in double precision."""
        tree = {
            group: {name: value.double().cpu() for name, value in params.items()}
            for group, params in self.policy.tree.items()
        }
        return replace(self.policy, tree=tree)


@dataclass(frozen=True)
class Trained(Acting):
    """A run and its training data, as they are."""

    train: Transitions


def acting(path: Path, beside: Path | None = None) -> Acting:
    """Reads a run back without its data; arguments as of `read`.

    Raises:
        ConfigError: there is no run.
        CheckpointError: it has no checkpoint.
    """
    folder = RunFolder(path)
    experiment = folder.experiment(beside)
    policy, env, step = load_policy(path, lambda text: print(text, file=sys.stderr), beside)
    labels = _labels(path.resolve())
    name = " · ".join(labels.values()) or experiment.name
    return Acting(path, name, labels, experiment, folder.seed, step, policy, env)


def read(path: Path, beside: Path | None = None) -> Trained:
    """Reads a run back.

    Args:
        path: its folder.
        beside: where components named `module:Class` lie.

    Raises:
        ConfigError: there is no run, or none with training data.
        CheckpointError: it has no checkpoint.
        DataError: its data are not there.
    """
    experiment = RunFolder(path).experiment(beside)
    if "train" not in experiment.data:
        raise ConfigError(f"{path} has no data.train to be looked at beside the policy; choose a run with offline data")
    run = acting(path, beside)
    train = data.load(experiment.data["train"], generator(run.seed, "data", "train"), "train", folder=beside)
    return Trained(**vars(run), train=train)


def _labels(path: Path) -> dict[str, str]:
    bench = BenchFolder(path.parent.parent)
    if not bench.index.is_file():
        return {}
    cells = [cell for cell in bench.read_index()["cells"] if cell["experiment"] == path.parent.name]
    return {str(axis): str(label) for cell in cells for axis, label in cell["labels"].items()}


class Near:
    """Looks up the nearest of some points [M, D].

    scipy's tree cuts at the number next to a coordinate. Next to 0 that is a denormal, and with denormals as zero
    (`metarl.process.settle`) the tree would be built for ever; so all coordinates are moved beyond 1.
    """

    def __init__(self, points: NDArray[Any]) -> None:
        self._shift = 1.0 - points.min(0)
        self._tree = cKDTree(points + self._shift)

    def __call__(self, places: NDArray[Any], k: int = 1) -> tuple[NDArray[Any], NDArray[Any]]:
        """Distances and indices of the `k` nearest: [N], or [N, k] where k is more than 1."""
        distance, index = self._tree.query(places + self._shift, k=k)
        return distance, index


# -- maps ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """The map of a task.

    Attributes:
        kind: which of the three families.
        walls: rectangles; their edges are free.
        x, y: the grid's lines.
        radius: of the goal.
        unit: of lengths, with a space before it; empty where there is none.
        task: of the four rooms.
    """

    kind: Kind
    walls: tuple[Wall, ...]
    x: tuple[float, ...]
    y: tuple[float, ...]
    radius: float
    unit: str = ""
    task: four_rooms.Task = "plain"

    @property
    def axes(self) -> tuple[str, str]:
        """The names of both axes."""
        return ("x [m]", "y [m]") if self.unit else ("x", "y")

    @property
    def stages(self) -> tuple[str, ...]:
        """States of one place that differ beside velocity and goal; a single one has no name."""
        return ("without the key", "with the key") if self.task == "key" else ("",)

    @cached_property
    def bounds(self) -> tuple[float, float, float, float]:
        """(left, right, bottom, top) of what is free."""
        half = (self.x[1] - self.x[0]) / 2 if self.kind == "maze" else 0.0
        (left, bottom), (right, top) = self.points.min(0) - half, self.points.max(0) + half
        return float(left), float(right), float(bottom), float(top)

    @cached_property
    def points(self) -> Points:
        """The grid's free points [M, 2]."""
        x, y = (lines.ravel() for lines in np.meshgrid(self.x, self.y))
        return np.stack((x, y), 1)[self.free.ravel()]

    @cached_property
    def free(self) -> NDArray[np.bool_]:
        """Which points of the grid, [Y, X], lie in no wall."""
        x, y = np.meshgrid(self.x, self.y)
        inside = [(w.left < x) & (x < w.right) & (w.bottom < y) & (y < w.top) for w in self.walls]
        return ~np.logical_or.reduce(inside)

    @cached_property
    def ways(self) -> NDArray[np.float64]:
        """Lengths of the shortest ways between free points of the grid, [M, M]; inf where there is none."""
        free, step = self.free, self.x[1] - self.x[0]
        index = np.full((free.shape[0] + 2, free.shape[1] + 2), -1)
        index[1:-1, 1:-1][free] = np.arange(free.sum())
        tails, heads, lengths = [], [], []
        here = index[1:-1, 1:-1]
        for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
            there, beside, above = (_moved(index, *by) for by in ((dy, dx), (0, dx), (dy, 0)))
            # Not across a corner: both other points of a slant must be free.
            open_ = (here >= 0) & (there >= 0) & ((dy * dx == 0) | ((beside >= 0) & (above >= 0)))
            tails.append(here[open_])
            heads.append(there[open_])
            lengths.append(np.full(int(open_.sum()), step * np.hypot(dy, dx)))
        n = int(free.sum())
        edges = csr_array((np.concatenate(lengths), (np.concatenate(tails), np.concatenate(heads))), shape=(n, n))
        return np.asarray(dijkstra(edges, directed=False))

    @cached_property
    def _near(self) -> Near:
        return Near(self.points)

    def nodes(self, places: NDArray[Any]) -> NDArray[np.int64]:
        """The nearest free points of the grid, [N], of places [N, 2]."""
        return cast("NDArray[np.int64]", self._near(np.asarray(places, np.float64))[1])

    def way(self, one: NDArray[Any], other: NDArray[Any]) -> float:
        """How long the shortest way between two places [2] is."""
        a, b = self.nodes(np.stack((one, other)))
        return float(self.ways[a, b])

    def displacement(self, places: NDArray[Any]) -> float:
        """The longest shortest way between any two places of a path [N, 2]: what it covers, however it wanders."""
        seen = np.unique(self.nodes(places))
        return float(self.ways[np.ix_(seen, seen)].max())

    # -- observations --

    def places(self, obs: NDArray[Any]) -> Points:
        """Where observations [N, O] are, [N, 2]."""
        return np.asarray(obs[:, :2], np.float64)

    def goals(self, obs: NDArray[Any]) -> Points:
        """The goals [N, 2] that observations [N, O] name."""
        if self.kind == "maze":
            return np.asarray(obs[:, 4:6], np.float64)
        if self.kind == "navigation":
            return np.asarray(obs[:, :2] + obs[:, 2:4], np.float64)
        return np.broadcast_to(np.array(four_rooms.GOAL), (len(obs), 2))

    def stage(self, obs: NDArray[Any]) -> NDArray[np.int64]:
        """Which of `stages` observations [N, O] are in."""
        return (obs[:, 2] >= 0.5).astype(np.int64) if self.task == "key" else np.zeros(len(obs), np.int64)

    def at(self, places: Points, goal: Sequence[float], stage: int = 0) -> NDArray[np.float32]:
        """Observations [N, O] at rest at places [N, 2]."""
        n, aim = len(places), np.broadcast_to(np.asarray(goal), places.shape)
        parts = {
            "maze": (places, np.zeros((n, 2)), aim, places),
            "navigation": (places, aim - places),
            "rooms": (places, np.full((n, 1), float(stage))),
        }
        return np.concatenate(parts[self.kind], 1).astype(np.float32)

    # -- drawing --

    def draw(self, axis: Axes, goal: bool = True) -> None:
        """Walls, river, bridge and key, and the goal where all episodes share one; names and limits of the axes."""
        left, right, bottom, top = self.bounds
        if self.task == "river":
            _rectangle(axis, four_rooms.RIVER, WATER, 0.1)
            _rectangle(axis, four_rooms.BRIDGE, WOOD, 0.2)
        for wall in self.walls:
            inside = Wall(max(wall.left, left), min(wall.right, right), max(wall.bottom, bottom), min(wall.top, top))
            _rectangle(axis, inside, WALL, 1.5)
        if self.kind == "rooms" and goal:
            axis.add_patch(Circle(four_rooms.GOAL, self.radius, facecolor=GOAL, alpha=0.45, linewidth=0, zorder=1.6))
        if self.task == "key":
            axis.add_patch(Circle(four_rooms.KEY, self.radius, facecolor=KEY, alpha=0.6, linewidth=0, zorder=1.6))
            at: Any = {"ha": "center", "va": "center", "fontsize": 7.5, "zorder": 6, "color": INK}
            axis.text(four_rooms.KEY[0], four_rooms.KEY[1] + 0.15, "key", **at)
        axis.add_patch(Rectangle((left, bottom), right - left, top - bottom, fill=False, edgecolor=FAINT, zorder=1.7))
        margin = 0.03 * (right - left)
        axis.set_xlim(left - margin, right + margin)
        axis.set_ylim(bottom - margin, top + margin)
        axis.set_aspect("equal")
        axis.spines[:].set_visible(False)
        axis.set_xlabel(self.axes[0])
        axis.set_ylabel(self.axes[1])


def world_of(env: str) -> World | None:
    """The map of an environment, from its specification as JSON; None where this module has none."""
    spec = EnvSpec.from_json(env)
    entry, kwargs = str(spec.entry_point), spec.kwargs
    if entry.endswith(".point_maze:PointMazeEnv") and "maze_map" in kwargs:
        return maze_world(kwargs["maze_map"])
    lines = tuple(round(-1 + navigation.STEP * i, 9) for i in range(four_rooms.SIDE))
    if entry == _entry(four_rooms.FourRooms):
        task = kwargs.get("task", "plain")
        return World("rooms", four_rooms.WALLS, lines, lines, navigation.RADIUS, task=task)
    if entry == _entry(navigation.Navigation):
        return World("navigation", navigation.WALLS, lines, lines, navigation.RADIUS)
    return None


def maze_world(rows: Sequence[Sequence[Any]]) -> World:
    """The map of a point maze from rows of cells of one metre; 1 is a wall."""
    maze = Maze(tuple("".join("1" if cell == 1 else "0" for cell in row) for row in rows))
    height, width = len(maze.rows), len(maze.rows[0])
    middles = [maze.centre((i, j)) for i in range(height) for j in range(width) if maze.rows[i][j] == "1"]
    walls = tuple(Wall(x - 0.5, x + 0.5, y - 0.5, y + 0.5) for x, y in middles)
    x, y = (tuple(-n / 2 + (i + 0.5) / PER_METRE for i in range(n * PER_METRE)) for n in (width, height))
    return World("maze", walls, x, y, POINT_MAZE_RADIUS, " m")


def need_world(run: Trained) -> World:
    """The map of a run's environment.

    Raises:
        ConfigError: it has none.
    """
    world = world_of(run.env)
    if world is None:
        raise ConfigError(
            f"{run.path}: {EnvSpec.from_json(run.env).id} has no map to draw on; choose a run on a point maze, the "
            "four rooms or navigation"
        )
    return world


def _entry(env: type) -> str:
    return f"{env.__module__}:{env.__qualname__}"


def _moved(index: NDArray[Any], dy: int, dx: int) -> NDArray[Any]:
    rows, columns = index.shape
    return index[1 + dy : rows - 1 + dy, 1 + dx : columns - 1 + dx]


def _rectangle(axis: Axes, wall: Wall, colour: str, zorder: float) -> None:
    size = wall.right - wall.left, wall.top - wall.bottom
    axis.add_patch(Rectangle((wall.left, wall.bottom), *size, facecolor=colour, linewidth=0, zorder=zorder))


def say(text: str) -> None:
    """One line for people, as it is."""
    Console().print(text, highlight=False, markup=False, soft_wrap=True)
