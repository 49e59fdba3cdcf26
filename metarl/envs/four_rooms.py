"""Four rooms in three tasks, for the question whether a policy that was trained on one helps on the others.

The square [-1, 1]^2 has two crossing walls with a door in each half, off its middle. The point starts in the lower left
room; the goal lies in the upper right one. An action in [-1, 1]^2 moves the point by at most `STEP` along each axis, x
first and then y, and a wall stops it along that axis. A key lies in the upper left room and is taken by going there.
The goal pays 1 and ends the episode.

    plain   no more than that
    river   a river runs through both upper rooms; every step that ends in it costs 1, and a bridge is dry
    key     the goal pays, and ends the episode, only with the key

All three move and observe alike, (x, y, has_key), though the key means something on one of them alone: they are one
world with three rewards.
The tasks are inspired by the "Four-room", "Four-room-river" and "Four-room-key" in the authors' slides on POR (Xu et
al. 2022, arXiv:2210.08323), which give these names and nothing more.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, Literal, get_args

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from metarl.envs.navigation import FAR, GREEN, GREY, NEAR, RADIUS, STEP, Canvas, Point, Wall, move
from metarl.errors import ConfigError

Task = Literal["plain", "river", "key"]

WALLS = (  # they end outside of the square: along a wall's own end, as along its faces, a point may go
    Wall(-0.05, 0.05, -1.1, -0.5),
    Wall(-0.05, 0.05, -0.3, 0.6),
    Wall(-0.05, 0.05, 0.8, 1.1),
    Wall(-1.1, -0.4, -0.05, 0.05),
    Wall(-0.2, 0.3, -0.05, 0.05),
    Wall(0.5, 1.1, -0.05, 0.05),
)
FACES = 0.05  # how far both walls' faces are from the middle lines
GOAL: Point = (0.75, 0.75)
KEY: Point = (-0.75, 0.75)
RIVER = Wall(-1.0, 1.0, 0.25, 0.45)  # too wide for a step; its edges are dry, as is the bridge's
BRIDGE = Wall(-0.9, -0.7, 0.25, 0.45)
WATER, WOOD, ORANGE = (158, 202, 225), (196, 156, 108), (255, 127, 14)

SIDE = 41  # nodes along a side of the controllers' grid; every face of a wall lies on it
WET, NEARLY_WET, AT_WALL = 25.0, 2.0, 1.0  # what a node costs them, in steps
SLANT = 0.01  # what a step along both axes costs more, so that of equally long ways the straight one is taken


class FourRooms(gym.Env[NDArray[np.float32], NDArray[np.float32]]):
    """One of the three tasks; see the module. Observations are (x, y, has_key).

    `info` has `success`, whether the goal was reached and paid; on `river` also `wet`, the steps in the river so far.

    Args:
        task: plain, river or key.
        render_mode: `rgb_array`, a picture with the episode's path.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(self, task: Task = "plain", render_mode: str | None = None) -> None:
        _check(task)
        self.task = task
        self.render_mode = render_mode
        self.observation_space = Box(np.array([-1, -1, 0], np.float32), np.ones(3, np.float32), dtype=np.float32)
        self.action_space = Box(-1.0, 1.0, (2,), np.float32)
        self._x = self._y = -NEAR
        self._has_key = False
        self._wet = 0
        self._path: list[Point] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """See `gym.Env`."""
        super().reset(seed=seed)
        self._x, self._y = (-self.np_random.uniform(NEAR, FAR, 2)).tolist()
        self._has_key, self._wet = False, 0
        self._path = [(self._x, self._y)]
        return self._obs(), self._info(False)

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """See `gym.Env`."""
        dx, dy = (min(max(float(a), -1.0), 1.0) * STEP for a in action)
        self._x, self._y = at = move(self._x, self._y, dx, dy, WALLS)
        if self.render_mode is not None:
            self._path.append(at)
        self._has_key = self._has_key or math.dist(at, KEY) <= RADIUS
        wet = self.task == "river" and in_river(*at)
        self._wet += wet
        success = math.dist(at, GOAL) <= RADIUS and (self.task != "key" or self._has_key)
        return self._obs(), float(success) - float(wet), success, False, self._info(success)

    def render(self) -> NDArray[np.uint8] | None:
        """The square from above, uint8 [PIXELS, PIXELS, 3]; None without a render mode."""
        return picture(self.task, self._path, self._has_key) if self.render_mode == "rgb_array" else None

    def _obs(self) -> NDArray[np.float32]:
        return np.array((self._x, self._y, self._has_key), np.float32)

    def _info(self, success: bool) -> dict[str, Any]:
        return {"success": success} | ({"wet": self._wet} if self.task == "river" else {})


def in_river(x: float, y: float) -> bool:
    """Whether a point lies in the river and not on the bridge."""
    return RIVER.bottom < y < RIVER.top and not BRIDGE.left <= x <= BRIDGE.right


def picture(task: Task, path: list[Point], has_key: bool = False) -> NDArray[np.uint8]:
    """The rooms, river, bridge, key (orange, until it is taken), goal (green) and path (blue), uint8 [H, W, 3]."""
    canvas = Canvas()
    if task == "river":
        canvas.rectangle(RIVER, WATER)
        canvas.rectangle(BRIDGE, WOOD)
    for wall in WALLS:
        canvas.rectangle(wall, GREY)
    canvas.disc(GOAL, RADIUS, GREEN, 0.6)
    if not has_key:
        canvas.disc(KEY, RADIUS, ORANGE, 0.6)
    canvas.path(path)
    return canvas.image


def overview() -> NDArray[np.uint8]:
    """The three tasks side by side, each before its first step and after its shortest way: the picture of the docs."""
    columns = []
    for task in get_args(Task):
        env = FourRooms(task, render_mode="rgb_array")
        obs, _ = env.reset(seed=0)
        before, act, done = env.render(), controller(task), False
        while not done:
            obs, _, done, _, _ = env.step(act(obs))
        columns.append((before, env.render()))
    return np.concatenate([np.concatenate(column) for column in columns], 1)  # type: ignore[arg-type]


# -- controllers -----------------------------------------------------------------------------------------------


def controller(
    task: Task = "plain", noise: float = 0.0, seed: int = 0, target: Point | None = None
) -> Callable[[NDArray[Any]], NDArray[np.float32]]:
    """A demonstrator: observation -> action, on shortest paths by Dijkstra's algorithm over a grid.

    On `river` it keeps out of the river where it can, on `key` it fetches the key first; elsewhere it knows of neither.

    Args:
        task: what it knows of.
        noise: standard deviation of normal noise on its actions, drawn from `seed`.
        target: where it goes; the goal (and before, the key) if None.
    """
    _check(task)
    rng = np.random.default_rng(seed)
    river = task == "river"
    last = _node(*(GOAL if target is None else target))
    if last not in _roads():
        raise ConfigError(f"target {target} lies in a wall or outside the square; give a point of a room")

    def act(obs: NDArray[Any]) -> NDArray[np.float32]:
        x, y, has_key = (float(value) for value in obs)
        fetch = task == "key" and target is None and has_key < 0.5
        # Rounded, since an observation, being float32, may lie in a wall by a hair.
        to_x, to_y = _aim(round(x, 6), round(y, 6), river, _node(*KEY) if fetch else last)
        action = np.clip(np.array((to_x - x, to_y - y)) / STEP, -1, 1)
        if noise:
            action = action + noise * rng.standard_normal(2)
        return np.clip(action, -1, 1).astype(np.float32)

    return act


Node = tuple[int, int]


def _check(task: str) -> None:
    if task not in get_args(Task):
        raise ConfigError(f"task must be one of {', '.join(get_args(Task))}, not {task!r}")


def _node(x: float, y: float) -> Node:
    return round((x + 1) / STEP), round((y + 1) / STEP)


def _point(node: Node) -> Point:
    return round(node[0] * STEP - 1, 9), round(node[1] * STEP - 1, 9)  # the very numbers of the walls' faces


def _aim(x: float, y: float, river: bool, target: Node) -> Point:
    # The node within two steps from which the rest is cheapest; of equally good ones the farthest, so that no step
    # is cut short at a node on the way.
    to_go, costs = _costs_to_go(river, target), _costs(river)
    i, j = _node(x, y)
    best, aim = (math.inf, 0.0), (x, y)
    for k in range(i - 2, i + 3):
        for m in range(j - 2, j + 3):
            if (k, m) not in to_go:
                continue
            to_x, to_y = _point((k, m))
            dx, dy = to_x - x, to_y - y
            length = max(abs(dx), abs(dy)) / STEP
            cost = length + SLANT * min(abs(dx), abs(dy)) / STEP + costs[k, m] + to_go[k, m]
            if length > 1 + 1e-9:
                cost += costs.get(_node(x + dx / 2, y + dy / 2), math.inf)
            rank = (round(cost, 6), -length)
            if rank < best and math.dist(move(x, y, dx, dy, WALLS), (to_x, to_y)) < 1e-9:
                best, aim = rank, (to_x, to_y)
    return aim


@cache
def _roads() -> dict[Node, list[Node]]:
    """free node -> the nodes from which one step leads to it."""
    nodes = [(i, j) for i in range(SIDE) for j in range(SIDE)]
    points = {node: _point(node) for node in nodes}
    inside = {n for n, (x, y) in points.items() if any(w.left < x < w.right and w.bottom < y < w.top for w in WALLS)}
    roads: dict[Node, list[Node]] = {node: [] for node in nodes if node not in inside}
    for i, j in roads:
        for to in ((i + di, j + dj) for di in (-1, 0, 1) for dj in (-1, 0, 1)):
            if to in roads and to != (i, j):
                (x, y), (to_x, to_y) = points[i, j], points[to]
                if math.dist(move(x, y, to_x - x, to_y - y, WALLS), (to_x, to_y)) < 1e-9:
                    roads[to].append((i, j))
    return roads


@cache
def _costs(river: bool) -> dict[Node, float]:
    """free node -> what it costs beside the step: faces, the river and its banks are avoided where that is cheap."""

    def cost(x: float, y: float) -> float:
        found = 0.0
        if any(w.left <= x <= w.right and w.bottom <= y <= w.top for w in WALLS):
            found = AT_WALL
        if river and in_river(x, y):
            found += WET
        elif river and any(in_river(x + dx, y + dy) for dx in (-STEP, 0, STEP) for dy in (-STEP, 0, STEP)):
            found += NEARLY_WET
        return found

    return {node: cost(*_point(node)) for node in _roads()}


@lru_cache(maxsize=512)
def _costs_to_go(river: bool, target: Node) -> dict[Node, float]:
    """free node -> the steps and costs from there to the target."""
    roads, costs = _roads(), _costs(river)
    found: dict[Node, float] = {}
    queue = [(0.0, target)]
    while queue:
        cost, node = heapq.heappop(queue)
        if node not in found:
            found[node] = cost
            cost += 1 + costs[node]
            for other in roads[node]:
                if other not in found:
                    slant = SLANT * (node[0] != other[0] and node[1] != other[1])
                    heapq.heappush(queue, (cost + slant, other))
    return found
