"""A point among walls, for experiments of minutes: a goal that chance does not find, and a long and a short way to it.

The square [-1, 1]^2 has two upright walls. Each leaves one end open, the long way, and has a narrow door, the short
way. The point starts at the lower left; the goal lies at the upper right. An action in [-1, 1]^2 moves the point by at
most `STEP` along each axis, x first and then y, and a wall stops it along that axis. A sparse reward of 1 is paid for
every step that ends within `RADIUS` of the goal, and the episode goes on to its time limit:

    return = number of steps spent at the goal

so that who arrives sooner gets more, and a learner can get past a demonstrator who goes the long way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple, get_args

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from metarl.errors import ConfigError

Reward = Literal["sparse", "dense"]
Point = tuple[float, float]
Colour = tuple[int, int, int]

STEP = 0.05  # along an axis, for an action of 1
RADIUS = 0.1  # of the goal
PIXELS, EDGE = 320, 1.05  # a picture's side, and how far from the middle it reaches
PIXEL = 2 * EDGE / PIXELS
GREY, GREEN, BLUE = (60, 60, 60), (44, 160, 44), (31, 119, 180)


class Wall(NamedTuple):
    """A rectangle; its edges are free, its inside is not."""

    left: float
    right: float
    bottom: float
    top: float


class Gap(NamedTuple):
    """Where an upright wall, from `left` to `right`, can be passed: from `bottom` to `top`."""

    left: float
    right: float
    bottom: float
    top: float


BEYOND = 1.1  # where a wall ends that meets the border: at 1 a point on the border would pass it
WALLS = (
    Wall(-0.4, -0.3, -BEYOND, -0.35),
    Wall(-0.4, -0.3, -0.1, 0.55),
    Wall(0.3, 0.4, -0.55, 0.1),
    Wall(0.3, 0.4, 0.35, BEYOND),
)
DOORS = (Gap(-0.4, -0.3, -0.35, -0.1), Gap(0.3, 0.4, 0.1, 0.35))
ENDS = (Gap(-0.4, -0.3, 0.55, 1.0), Gap(0.3, 0.4, -1.0, -0.55))
NEAR, FAR = 0.6, 0.9  # both coordinates of the goal lie between them, and of the start between -FAR and -NEAR


class Navigation(gym.Env[NDArray[np.float32], NDArray[np.float32]]):
    """The point among walls; see the module. Observations are (x, y, goal - x, goal - y).

    `info` has `success`, whether the point is at the goal now, and its `distance` from it.

    Args:
        reward: sparse, or dense: minus the straight distance to the goal, through walls.
        render_mode: `rgb_array`, a picture with the episode's path.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(self, reward: Reward = "sparse", render_mode: str | None = None) -> None:
        if reward not in get_args(Reward):
            raise ConfigError(f"reward must be one of {', '.join(get_args(Reward))}, not {reward!r}")
        self.reward = reward
        self.render_mode = render_mode
        bound = np.array([1, 1, 2, 2], np.float32)
        self.observation_space = Box(-bound, bound, dtype=np.float32)
        self.action_space = Box(-1.0, 1.0, (2,), np.float32)
        self._x = self._y = -NEAR
        self._goal = (NEAR, NEAR)
        self._path: list[Point] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """See `gym.Env`."""
        super().reset(seed=seed)
        x, y, *goal = self.np_random.uniform(NEAR, FAR, 4).tolist()
        self._x, self._y = -x, -y
        self._goal = (goal[0], goal[1])
        self._path = [(self._x, self._y)]
        return self._obs(), self._info()

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """See `gym.Env`."""
        # Python's numbers: a quarter of the time that NumPy takes over arrays of two.
        dx, dy = (min(max(float(a), -1.0), 1.0) * STEP for a in action)
        self._x, self._y = move(self._x, self._y, dx, dy)
        info = self._info()
        if self.render_mode is not None:
            self._path.append((self._x, self._y))
        reward = float(info["success"]) if self.reward == "sparse" else -info["distance"]
        return self._obs(), reward, False, False, info

    def render(self) -> NDArray[np.uint8] | None:
        """The square from above, uint8 [PIXELS, PIXELS, 3]; None without a render mode."""
        return picture(self._path, self._goal) if self.render_mode == "rgb_array" else None

    def _obs(self) -> NDArray[np.float32]:
        x, y = self._x, self._y
        return np.array((x, y, self._goal[0] - x, self._goal[1] - y), np.float32)

    def _info(self) -> dict[str, Any]:
        distance = math.hypot(self._goal[0] - self._x, self._goal[1] - self._y)
        return {"success": distance <= RADIUS, "distance": distance}


def move(x: float, y: float, dx: float, dy: float, walls: Sequence[Wall] = WALLS) -> tuple[float, float]:
    """Where a point that goes by dx and then by dy comes to."""
    to = min(max(x + dx, -1.0), 1.0)
    for wall in walls:
        if wall.bottom < y < wall.top:
            to = _stop(x, to, wall.left, wall.right)
    x, start = to, y
    to = min(max(y + dy, -1.0), 1.0)
    for wall in walls:
        if wall.left < x < wall.right:
            to = _stop(start, to, wall.bottom, wall.top)
    return x, to


def _stop(start: float, to: float, low: float, high: float) -> float:
    # A step of any length ends at the face that it meets.
    if start <= low < to:
        return low
    if start >= high > to:
        return high
    return to


def controller(
    noise: float = 0.0, detour: bool = False, speed: float = 1.0, seed: int = 0
) -> Callable[[NDArray[Any]], NDArray[np.float32]]:
    """A demonstrator: observation -> action.

    It heads for the next wall's gap, through it, and behind both walls for the goal.

    Args:
        noise: standard deviation of normal noise on its actions, drawn from `seed`.
        detour: round the open ends, not through the doors.
        speed: bound of its actions before the noise.
    """
    rng = np.random.default_rng(seed)
    gaps = ENDS if detour else DOORS

    def act(obs: NDArray[Any]) -> NDArray[np.float32]:
        aim = _aim(float(obs[0]), float(obs[1]), gaps)
        way = obs[2:4] if aim is None else aim - obs[:2]
        action = np.clip(way / STEP, -speed, speed)
        if noise:
            action = action + noise * rng.standard_normal(2)
        return np.clip(action, -1, 1).astype(np.float32)

    return act


def _aim(x: float, y: float, gaps: tuple[Gap, ...]) -> NDArray[np.float64] | None:
    # Just before the next gap, or behind it from its height; None behind both.
    margin = STEP / 2
    for gap in gaps:
        if x <= gap.right:
            through = gap.bottom <= y <= gap.top
            height = min(max(y, gap.bottom + margin), gap.top - margin)
            return np.array((gap.right + STEP if through else gap.left - margin, height))
    return None


def picture(path: list[Point], goal: Point) -> NDArray[np.uint8]:
    """The square with its walls, the goal (green), the path and the point at its end (blue), uint8 [H, W, 3]."""
    canvas = Canvas()
    for wall in WALLS:
        canvas.rectangle(wall, GREY)
    canvas.disc(goal, RADIUS, GREEN, 0.6)
    canvas.path(path)
    return canvas.image


class Canvas:
    """A picture of the empty square, to paint shapes on one after the other."""

    def __init__(self) -> None:
        x = (np.arange(PIXELS) + 0.5) * PIXEL - EDGE
        self._x, self._y = np.meshgrid(x, -x)
        self._image = np.full((PIXELS, PIXELS, 3), 255.0)
        self._paint(np.maximum(abs(self._x), abs(self._y)) - 1, GREY)

    @property
    def image(self) -> NDArray[np.uint8]:
        """What is painted so far, uint8 [PIXELS, PIXELS, 3]."""
        return self._image.round().astype(np.uint8)

    def rectangle(self, wall: Wall, colour: Colour, opacity: float = 1.0) -> None:
        """A wall, or what has a wall's shape."""
        sides = (self._x - wall.left, wall.right - self._x, self._y - wall.bottom, wall.top - self._y)
        self._paint(np.minimum.reduce(sides), colour, opacity)

    def disc(self, middle: Point, radius: float, colour: Colour, opacity: float = 1.0) -> None:
        """A disc."""
        self._paint(radius - np.hypot(self._x - middle[0], self._y - middle[1]), colour, opacity)

    def path(self, path: list[Point]) -> None:
        """A path and the point at its end."""
        near = np.full_like(self._x, np.inf)
        for one, other in pairwise(path):
            box = _around(one, other)
            np.minimum(near[box], _distance(self._x[box], self._y[box], one, other), out=near[box])
        if len(path) > 1:
            self._paint(0.008 - near, BLUE, 0.7)
        if path:
            self.disc(path[-1], 0.03, BLUE)

    def _paint(self, depth: NDArray[np.float64], colour: Colour, opacity: float = 1.0) -> None:
        # `depth` is how far inside a shape a pixel's middle lies: edges are blended over one pixel.
        share = opacity * np.clip(0.5 + depth / PIXEL, 0, 1)[..., None]
        self._image[:] = (1 - share) * self._image + share * np.array(colour)


def _around(one: Point, other: Point) -> tuple[slice, slice]:
    # Rows and columns of the pixels near a piece of the path; all others are too far to be painted.
    ends = np.array((one, other)) * (1, -1)  # rows go down
    low, high = ends.min(0), ends.max(0)
    first = ((low + EDGE) / PIXEL).astype(int) - 4
    last = ((high + EDGE) / PIXEL).astype(int) + 5
    (left, upper), (right, lower) = first.clip(0).tolist(), last.tolist()
    return slice(upper, lower), slice(left, right)


def _distance(x: NDArray[np.float64], y: NDArray[np.float64], one: Point, other: Point) -> NDArray[np.float64]:
    dx, dy = other[0] - one[0], other[1] - one[1]
    along = np.clip(((x - one[0]) * dx + (y - one[1]) * dy) / max(dx * dx + dy * dy, 1e-12), 0, 1)
    return np.asarray(np.hypot(x - one[0] - along * dx, y - one[1] - along * dy))
