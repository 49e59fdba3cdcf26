"""Hopper, HalfCheetah and Walker2d by uniform actions: what D4RL calls `random`, where no trained policy is at hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from metarl.data.minari import Episode
from metarl.data.recipes.base import Recipe, first, rollout, uniform
from metarl.envs.instantiate import instantiate


class Locomotion(Recipe):
    """A MuJoCo robot at `random` only; episodes end by falling (terminated) or after 1,000 steps (truncated)."""

    version: ClassVar[int] = 1
    levels = {"random": "uniform actions"}
    judged: ClassVar[tuple[str, ...]] = ()
    requirements = ("gymnasium[mujoco]>=1.1,<2",)
    packages = ("mujoco",)

    def make(self, level: str, size: int, seed: int) -> Iterator[Episode]:
        """See `Recipe.make`; the last episode is cut, and truncated, where the size is reached."""
        return first(size, self._episodes(level, seed))

    def _episodes(self, level: str, seed: int) -> Iterator[Episode]:
        env = instantiate(self.env_spec())
        try:
            i = 0
            while True:
                rng = self.generator(level, seed, i)
                reset_seed = int(rng.integers(2**31))
                yield rollout(env, uniform(rng, env.action_space), reset_seed, level)
                i += 1
        finally:
            env.close()


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
