"""PointMaze from gymnasium-robotics: a force-driven ball in a maze, one goal an episode, a reward of 1 on reaching it.

A planner knows, for every goal cell, each cell's next cell on a shortest path (breadth-first search); a
proportional-derivative controller drives the ball to that cell's centre, and in the goal's cell to the goal. With
`continuing_task=False` an episode ends at its goal, so that its return is 1 for a success and 0 for none, and a mean
return is a success rate.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box
from numpy.random import Generator
from numpy.typing import NDArray

from metarl.data.minari import Episode
from metarl.data.recipes.base import Plane, Policy, Recipe, first, rollout, uniform
from metarl.envs.instantiate import instantiate

Cell = tuple[int, int]
"""(row, column), from the top left."""
Aim = tuple[float, float] | Literal["goal", "start"]
"""A point to reach: the episode's goal, the middle of the cell that it starts in, or (x, y)."""

FORCE = 1.0  # bound of both actions
SPACE = Box(-FORCE, FORCE, (2,), np.float32)
PIECE = (20, 50)  # steps of a piece: the ball passes one or two cells


@dataclass(frozen=True)
class Maze:
    """A map of walls (1) and free cells (0), cells of one metre, its middle at the origin."""

    rows: tuple[str, ...]

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """Free cells, row by row."""
        return tuple((i, j) for i, row in enumerate(self.rows) for j, wall in enumerate(row) if wall == "0")

    @cached_property
    def paths(self) -> dict[Cell, dict[Cell, tuple[Cell, int]]]:
        """goal cell -> cell -> (next cell on a shortest path, cells to go); the goal itself is its own next."""
        return {goal: self._search(goal) for goal in self.cells}

    def cell(self, x: float, y: float) -> Cell:
        """The cell that a point lies in."""
        return math.floor(len(self.rows) / 2 - y), math.floor(x + len(self.rows[0]) / 2)

    def centre(self, cell: Cell) -> tuple[float, float]:
        """(x, y) of a cell's middle."""
        return cell[1] + 0.5 - len(self.rows[0]) / 2, len(self.rows) / 2 - cell[0] - 0.5

    def map(self) -> list[list[int]]:
        """As the environment takes it."""
        return [[int(wall) for wall in row] for row in self.rows]

    def _search(self, goal: Cell) -> dict[Cell, tuple[Cell, int]]:
        found = {goal: (goal, 0)}
        queue = deque([goal])
        while queue:
            i, j = here = queue.popleft()
            for cell in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
                if cell not in found and self.rows[cell[0]][cell[1]] == "0":
                    found[cell] = (here, found[here][1] + 1)
                    queue.append(cell)
        return found


@dataclass(frozen=True)
class Driver:
    """Drives the ball by the planner.

    Attributes:
        maze: what it plans in.
        aim: the point to reach.
        kp, kd: gains, in full force per metre and per metre a second.
        noise: standard deviation of both forces' noise.
    """

    maze: Maze
    aim: Aim = "goal"
    kp: float = 10.0
    kd: float = 1.0
    noise: float = 0.1

    def policy(self, rng: Generator, steps: int) -> Policy:
        """The driver for one episode of at most `steps` steps, its noise drawn from `rng`."""
        noise = (self.noise * rng.standard_normal((steps, 2))).tolist()
        aim: Sequence[float] = ()

        def act(step: int, obs: dict[str, NDArray[np.float64]]) -> NDArray[np.float32]:
            nonlocal aim
            x, y, vx, vy = obs["observation"].tolist()
            if step == 0:
                own = {"goal": obs["desired_goal"].tolist(), "start": self.maze.centre(self.maze.cell(x, y))}
                aim = own[self.aim] if isinstance(self.aim, str) else self.aim
            to_x, to_y = self.waypoint(x, y, aim)
            extra_x, extra_y = noise[step]
            force_x = self.kp * (to_x - x) - self.kd * vx + extra_x
            force_y = self.kp * (to_y - y) - self.kd * vy + extra_y
            return np.array([_bounded(force_x), _bounded(force_y)], np.float32)

        return act

    def waypoint(self, x: float, y: float, goal: Sequence[float]) -> Sequence[float]:
        """Where to drive from (x, y): the next cell's middle, or the goal in its own cell."""
        here, last = self.maze.cell(x, y), self.maze.cell(goal[0], goal[1])
        return goal if here == last else self.maze.centre(self.maze.paths[last][here][0])


class PointMaze(Recipe):
    """One maze. Episodes of `random` and `expert` run to the goal (terminated) or to the horizon (truncated); those of
    `medium` are pieces, truncated after 20 to 50 steps unless they reach their goal before.
    """

    version: ClassVar[int] = 1
    measure: ClassVar[Literal["return", "success"]] = "success"
    shares: ClassVar[Mapping[str, float]] = {"towards": 0.15, "loitering": 0.55, "astray": 0.2, "random": 0.1}
    maze: ClassVar[Maze]
    horizon: ClassVar[int]
    levels = {
        "random": "uniform forces",
        "medium": (
            "pieces of 20 to 50 steps with force noise of 0.5: 15 % drive towards the goal, 55 % loiter in the cell "
            "that they start in, 20 % drive towards a random cell, 10 % are uniform"
        ),
        "expert": "shortest paths by breadth-first search, a proportional-derivative controller, force noise of 0.1",
    }
    requirements = ("gymnasium-robotics>=1.4,<2",)
    packages = ("mujoco", "gymnasium-robotics")

    def env_spec(self) -> EnvSpec:
        """As gymnasium-robotics registers it, with episodes that end at the goal; it need not be installed."""
        return EnvSpec(
            id=self.env_id,
            entry_point="gymnasium_robotics.envs.maze.point_maze:PointMazeEnv",
            max_episode_steps=self.horizon,
            kwargs={"maze_map": self.maze.map(), "reward_type": "sparse", "continuing_task": False},
        )

    def make(self, level: str, size: int, seed: int) -> Iterator[Episode]:
        """See `Recipe.make`; the last episode is cut, and truncated, where the size is reached."""
        return first(size, self._episodes(level, seed))

    def plane(self, obs: NDArray[Any]) -> Plane:
        """Where the ball is."""
        return Plane(obs[:, 0], obs[:, 1], "x [m]", "y [m]")

    def _episodes(self, level: str, seed: int) -> Iterator[Episode]:
        env = instantiate(self.env_spec())
        try:
            i = 0
            while True:
                rng = self.generator(level, seed, i)
                reset_seed = int(rng.integers(2**31))
                if level == "medium":
                    behaviour = str(rng.choice(list(self.shares), p=list(self.shares.values())))
                    steps = int(rng.integers(*PIECE, endpoint=True))
                else:
                    behaviour, steps = level, self.horizon
                yield rollout(env, self._policy(behaviour, rng, steps), reset_seed, behaviour, steps)
                i += 1
        finally:
            env.close()

    def _policy(self, behaviour: str, rng: Generator, steps: int) -> Policy:
        if behaviour == "random":
            return uniform(rng, SPACE)
        if behaviour == "expert":
            return Driver(self.maze).policy(rng, steps)
        cell = self.maze.cells[rng.integers(len(self.maze.cells))]
        aims: dict[str, Aim] = {"towards": "goal", "loitering": "start", "astray": self.maze.centre(cell)}
        return Driver(self.maze, aims[behaviour], noise=0.5).policy(rng, steps)


class UMaze(PointMaze):
    """PointMaze_UMaze-v3: seven cells in a row, bent."""

    name: ClassVar[str] = "pointmaze_umaze"
    env_id: ClassVar[str] = "PointMaze_UMaze-v3"
    horizon: ClassVar[int] = 300
    maze: ClassVar[Maze] = Maze(("11111", "10001", "11101", "10001", "11111"))


class MediumMaze(PointMaze):
    """PointMaze_Medium-v3."""

    name: ClassVar[str] = "pointmaze_medium"
    env_id: ClassVar[str] = "PointMaze_Medium-v3"
    horizon: ClassVar[int] = 600
    maze: ClassVar[Maze] = Maze(
        ("11111111", "10011001", "10010001", "11000111", "10010001", "10100101", "10001001", "11111111")
    )


class LargeMaze(PointMaze):
    """PointMaze_Large-v3."""

    name: ClassVar[str] = "pointmaze_large"
    env_id: ClassVar[str] = "PointMaze_Large-v3"
    horizon: ClassVar[int] = 800
    maze: ClassVar[Maze] = Maze(
        (
            *("111111111111", "100001000001", "101101010101", "100000010001", "101111011101"),
            *("100101000001", "110101010111", "100100010001", "111111111111"),
        )
    )


def _bounded(force: float) -> float:
    return min(max(force, -FORCE), FORCE)
