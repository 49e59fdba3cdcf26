"""Hopper, HalfCheetah and Walker2d by uniform actions: what D4RL calls `random`, and what needs no trained policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar

import gymnasium as gym
from numpy.random import Generator

from metarl.data.minari import Episode
from metarl.data.recipes.base import Policy, Recipe, first, rollout, uniform
from metarl.envs.instantiate import instantiate


class Locomotion(Recipe):
    """A MuJoCo robot at `random`; episodes end by falling (terminated) or after 1,000 steps (truncated)."""

    version: ClassVar[int] = 1
    levels = {"random": "uniform actions"}
    judged: ClassVar[tuple[str, ...]] = ()
    requirements = ("gymnasium[mujoco]>=1.1,<2",)
    packages = ("mujoco",)

    def make(self, level: str, size: int, seed: int) -> Iterator[Episode]:
        """See `Recipe.make`; the last episode is cut, and truncated, where the size is reached."""
        return first(size, self.lived(level, seed, lambda rows: (level, uniform)))

    def lived(self, stream: str, seed: int, acting: Callable[[int], tuple[str, Acting]]) -> Iterator[Episode]:
        """Episodes without end.

        Args:
            stream: what they draw from; streams of different names share no draws.
            seed: of the dataset.
            acting: transitions so far -> the name of what acts next, and what makes its policy for one episode.
        """
        env = instantiate(self.env_spec())
        rows = number = 0
        try:
            while True:
                rng = self.generator(stream, seed, number)
                reset_seed = int(rng.integers(2**31))
                behaviour, make = acting(rows)
                episode = rollout(env, make(rng, env.action_space), reset_seed, behaviour)
                rows, number = rows + len(episode.rewards), number + 1
                yield episode
        finally:
            env.close()


Acting = Callable[[Generator, gym.Space], Policy]
"""(what an episode draws from, the action space) -> what acts in it."""


class Hopper(Locomotion):
    """Hopper-v5."""

    name: ClassVar[str] = "hopper"
    env_id: ClassVar[str] = "Hopper-v5"


class HalfCheetah(Locomotion):
    """HalfCheetah-v5, which never falls."""

    name: ClassVar[str] = "halfcheetah"
    env_id: ClassVar[str] = "HalfCheetah-v5"


class Walker2d(Locomotion):
    """Walker2d-v5."""

    name: ClassVar[str] = "walker2d"
    env_id: ClassVar[str] = "Walker2d-v5"
