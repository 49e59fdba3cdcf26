"""InvertedPendulum-v5: a cart that balances a pole by linear feedback, and a bias that walks it off its rail.

u = kx x + ka theta + kv v + kw theta' in newtons, |u| <= 3. With soft gains, kx of 0.05 above all, a bias b rests
only at x = -b / kx: beyond the rail's end, a metre off, which throws the pole. The pole stands until then, so that
episodes fail late, which is what a medium level needs where a step upright pays 1 and falling is all that costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from gymnasium.spaces import Box
from numpy.random import Generator
from numpy.typing import NDArray

from metarl.data.minari import Episode
from metarl.data.recipes.base import Plane, Policy, Recipe, evenly, first, rollout, uniform
from metarl.envs.instantiate import instantiate

STEPS = 1000  # the horizon
FORCE = 3.0
SPACE = Box(-FORCE, FORCE, (1,), np.float32)


@dataclass(frozen=True)
class Feedback:
    """Linear feedback of (x, theta, v, theta').

    Attributes:
        position, angle, speed, spin: gains, in newtons per metre, radian, metre a second and radian a second.
        bias: newtons added at every step.
        noise: standard deviation of the force's noise.
    """

    position: float = 1.0
    angle: float = 10.0
    speed: float = 1.5
    spin: float = 2.0
    bias: float = 0.0
    noise: float = 0.1

    def policy(self, rng: Generator) -> Policy:
        """The controller for one episode, its noise drawn from `rng`."""
        offset = (self.bias + self.noise * rng.standard_normal(STEPS)).tolist()

        def act(step: int, obs: NDArray[np.float64]) -> NDArray[np.float32]:
            x, theta, v, w = obs.tolist()
            force = self.position * x + self.angle * theta + self.speed * v + self.spin * w + offset[step]
            return np.array([min(max(force, -FORCE), FORCE)], np.float32)

        return act


SOFT = Feedback(position=0.05, angle=8.0, speed=1.0, spin=1.5)

BEHAVIOURS: dict[str, Callable[[Generator], Policy]] = {
    "random": lambda rng: uniform(rng, SPACE),
    "expert": lambda rng: Feedback().policy(rng),
    "soft": lambda rng: replace(SOFT, noise=0.5).policy(rng),
    "biased": lambda rng: replace(SOFT, bias=rng.uniform(0.11, 0.19), noise=0.5).policy(rng),
}

# Clones take the mixture's mean, which leans to one side. The bias is small, since a value that hardly changes with
# one action moves TD3+BC's policy little; it suffices, since the gains are soft.
MIXTURE = (
    *("soft", *["biased"] * 5, "soft", *["biased"] * 2, "random"),
    *(*["biased"] * 3, "soft", *["biased"] * 6),
)


class InvertedPendulum(Recipe):
    """InvertedPendulum-v5: an episode ends when the pole falls (terminated) or after 1,000 steps (truncated)."""

    name: ClassVar[str] = "inverted_pendulum"
    version: ClassVar[int] = 1
    env_id: ClassVar[str] = "InvertedPendulum-v5"
    levels = {
        "random": "uniform forces",
        "medium": (
            "a mixture by episode, in 20: 3 hold pole and cart with soft gains, 16 do so with a bias of 0.11 to 0.19 "
            "newtons to one side until they run off the rail, both with force noise of 0.5, 1 uniform"
        ),
        "expert": "linear feedback, force noise of 0.1",
        "medium-expert": "medium and expert, each time an episode of the one with fewer transitions so far",
    }
    requirements = ("gymnasium[mujoco]>=1.1,<2",)
    packages = ("mujoco",)

    def make(self, level: str, size: int, seed: int) -> Iterator[Episode]:
        """See `Recipe.make`; the last episode is cut, and truncated, where the size is reached."""
        if level == "medium-expert":
            episodes = evenly(
                self._episodes(level, MIXTURE, seed), self._episodes(f"{level}/expert", ("expert",), seed)
            )
        else:
            episodes = self._episodes(level, MIXTURE if level == "medium" else (level,), seed)
        return first(size, episodes)

    def plane(self, obs: NDArray[Any]) -> Plane:
        """Where the cart is, and the pole's angle."""
        return Plane(obs[:, 0], obs[:, 1], "x [m]", "theta [rad], 0 is upright")

    def _episodes(self, level: str, behaviours: tuple[str, ...], seed: int) -> Iterator[Episode]:
        env = instantiate(self.env_spec())
        try:
            i = 0
            while True:
                rng = self.generator(level, seed, i)
                behaviour = behaviours[i % len(behaviours)]
                reset_seed = int(rng.integers(2**31))
                yield rollout(env, BEHAVIOURS[behaviour](rng), reset_seed, behaviour)
                i += 1
        finally:
            env.close()
