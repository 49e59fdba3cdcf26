"""metarl/SparseNavigation-v0: demonstrations by hand-made controllers, from the shortest way to the wrong corner.

They are for learning from demonstrations, not for telling offline methods apart: there is no medium level.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from metarl.data.minari import Episode
from metarl.data.recipes.base import Plane, Policy, Recipe, rollout
from metarl.envs.instantiate import instantiate
from metarl.envs.navigation import controller
from metarl.envs.registration import NAVIGATION_STEPS
from metarl.errors import DataError

CORNER = np.array((-0.9, 0.9))  # behind the first wall's open end, away from the goal


def _uniform(rng: Generator) -> Policy:
    actions = rng.uniform(-1, 1, (NAVIGATION_STEPS, 2)).astype(np.float32)
    return lambda step, obs: actions[step]


def _controlled(noise: float, detour: bool = False) -> Callable[[Generator], Policy]:
    def policy(rng: Generator) -> Policy:
        act = controller(noise, detour, seed=int(rng.integers(2**31)))
        return lambda step, obs: act(obs)

    return policy


def _astray(rng: Generator) -> Policy:
    noise = 0.1 * rng.standard_normal((NAVIGATION_STEPS, 2))

    def act(step: int, obs: NDArray[Any]) -> NDArray[np.float32]:
        return np.clip(np.clip((CORNER - obs[:2]) / 0.05, -1, 1) + noise[step], -1, 1).astype(np.float32)

    return act


BEHAVIOURS: dict[str, Callable[[Generator], Policy]] = {
    "random": _uniform,
    "expert": _controlled(0.1),
    "detour": _controlled(0.5, detour=True),
    "noisy": _controlled(1.0, detour=True),
    "adversarial": _astray,
}


class Navigation(Recipe):
    """metarl/SparseNavigation-v0 in episodes of 150 steps."""

    name: ClassVar[str] = "navigation"
    version: ClassVar[int] = 1
    env_id: ClassVar[str] = "metarl/SparseNavigation-v0"
    levels = {
        "random": "uniform actions",
        "expert": "the short way through both doors, noise of 0.1",
        "detour": "the long way round both walls, noise of 0.5",
        "noisy": "the long way round both walls, noise of 1 on actions that reach 1",
        "adversarial": "straight to the upper left corner, away from the goal, noise of 0.1; no reward is ever met",
    }
    judged: ClassVar[tuple[str, ...]] = ()
    default_size: ClassVar[int] = 3000

    def make(self, level: str, size: int, seed: int) -> Iterator[Episode]:
        """See `Recipe.make`; a smaller size gives the first episodes of a larger one."""
        env = instantiate(self.env_spec())
        try:
            for i in range(size // NAVIGATION_STEPS):
                rng = self.generator(level, seed, i)
                reset_seed = int(rng.integers(2**31))
                yield rollout(env, BEHAVIOURS[level](rng), reset_seed, level)
        finally:
            env.close()

    def check_size(self, size: int) -> None:
        """Whole episodes only."""
        if size < NAVIGATION_STEPS or size % NAVIGATION_STEPS:
            nearest = max(1, round(size / NAVIGATION_STEPS)) * NAVIGATION_STEPS
            raise DataError(
                f"recipe 'navigation': size {size} is no multiple of {NAVIGATION_STEPS} (its episode length); try "
                f"{nearest}."
            )

    def plane(self, obs: NDArray[Any]) -> Plane:
        """Where the point is."""
        return Plane(obs[:, 0], obs[:, 1], "x", "y")
