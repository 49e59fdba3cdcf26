"""Pendulum-v1: swing up by energy shaping, hold by proportional-derivative control, and ways to do both badly.

With theta = 0 upright, Gymnasium's pendulum obeys theta'' = 15 sin(theta) + 3 u with |u| <= 2, so that
E = theta'^2 / 2 + 15 cos(theta) grows at the rate 3 u theta' and is 15 at rest upright. Far from upright the
controller pumps, u = (15 - E) theta' (Astrom and Furuta, 2000, "Swinging up a pendulum by energy control"); near
it, u = -(kp theta + kd theta'), which holds only where 3 kp > 15.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from metarl.data.minari import Episode
from metarl.data.recipes.base import Plane, Policy, Recipe, rollout
from metarl.errors import DataError

STEPS = 200  # of every episode: Pendulum never terminates
TORQUE = 2.0
UPRIGHT_ENERGY = 15.0


@dataclass(frozen=True)
class Controller:
    """Energy shaping away from upright, proportional-derivative control near it.

    Attributes:
        kp, kd: gains near upright, in torque per radian and per radian a second.
        bias: torque added at every step.
        delay: steps by which the observation acted on is old.
        noise: standard deviation of the torque's noise.
    """

    kp: float = 10.0
    kd: float = 3.0
    bias: float = 0.0
    delay: int = 0
    noise: float = 0.1

    def torque(self, obs: NDArray[Any]) -> float:
        """The torque for an observation (cos theta, sin theta, theta'), before bias, noise and bounds."""
        cos, sin, speed = map(float, obs)
        theta = math.atan2(sin, cos)
        if abs(theta) < 0.5 and abs(speed) < 4.0:
            return -(self.kp * theta + self.kd * speed)
        energy = 0.5 * speed * speed + 15.0 * cos
        return (UPRIGHT_ENERGY - energy) * (speed or 1.0)

    def policy(self, rng: Generator) -> Policy:
        """The controller for one episode, its noise drawn from `rng`."""
        offset = self.bias + self.noise * rng.standard_normal(STEPS)
        seen: list[NDArray[Any]] = []

        def act(step: int, obs: NDArray[Any]) -> NDArray[np.float32]:
            seen.append(obs)
            torque = self.torque(seen[max(0, step - self.delay)]) + offset[step]
            return np.array([min(max(torque, -TORQUE), TORQUE)], np.float32)

        return act


def uniform(rng: Generator) -> Policy:
    """Uniform torques for one episode."""
    torques = rng.uniform(-TORQUE, TORQUE, (STEPS, 1)).astype(np.float32)
    return lambda step, obs: torques[step]


BEHAVIOURS: dict[str, Callable[[Generator], Policy]] = {
    "random": uniform,
    "expert": lambda rng: Controller().policy(rng),
    "noisy": lambda rng: Controller(noise=1.0).policy(rng),
    "weak": lambda rng: Controller(kp=rng.uniform(0, 4), kd=rng.uniform(0, 1), noise=1.0).policy(rng),
    "biased": lambda rng: Controller(
        kp=rng.uniform(0, 4), kd=rng.uniform(0, 1), bias=rng.uniform(0.5, 1.5), noise=1.0
    ).policy(rng),
    "delayed": lambda rng: Controller(delay=int(rng.integers(5, 9)), noise=1.0).policy(rng),
}

# Detuned episodes swing up well and cannot hold, and their bias has one sign: near upright the mean action of the
# mixture falls, though good actions are there in the same states. That is what cloning cannot see and values can.
MIXTURE = (
    *("noisy", "biased", "delayed", "random", "noisy", "biased", "weak", "delayed", "biased", "noisy"),
    *("biased", "random", "delayed", "noisy", "biased", "weak", "random", "noisy", "delayed", "biased"),
)


class Pendulum(Recipe):
    """Pendulum-v1 in episodes of 200 steps."""

    name: ClassVar[str] = "pendulum"
    version: ClassVar[int] = 1
    env_id: ClassVar[str] = "Pendulum-v1"
    levels = {
        "random": "uniform torques",
        "medium": (
            "a mixture by episode, in 20: 5 swing up and hold with torque noise of 1, 6 hold too weakly and with a "
            "bias to one side, 2 hold too weakly, 4 act on observations 5 to 8 steps old, 3 uniform"
        ),
        "expert": "energy shaping and proportional-derivative control, torque noise of 0.1",
        "medium-expert": "medium and expert, episode by episode in turn",
    }
    requirements = ("gymnasium>=1.1,<2",)

    def make(self, level: str, size: int, seed: int) -> Iterator[Episode]:
        """See `Recipe.make`; a smaller size gives the first episodes of a larger one."""
        env = gym.make(self.env_id, disable_env_checker=True)
        for i in range(size // STEPS):
            rng = self.generator(level, seed, i)
            behaviour = _behaviour(level, i)
            reset_seed = int(rng.integers(2**31))
            yield rollout(env, BEHAVIOURS[behaviour](rng), reset_seed, behaviour)
        env.close()

    def check_size(self, size: int) -> None:
        """Whole episodes only."""
        if size < STEPS or size % STEPS:
            nearest = max(1, round(size / STEPS)) * STEPS
            raise DataError(
                f"recipe 'pendulum': size {size} is no multiple of {STEPS} (its episode length); try {nearest}."
            )

    def plane(self, obs: NDArray[Any]) -> Plane:
        """Angle from upright and its speed."""
        return Plane(np.arctan2(obs[:, 1], obs[:, 0]), obs[:, 2], "theta [rad], 0 is upright", "theta' [rad/s]")


def _behaviour(level: str, episode: int) -> str:
    if level == "medium-expert":
        return MIXTURE[episode // 2 % len(MIXTURE)] if episode % 2 == 0 else "expert"
    return MIXTURE[episode % len(MIXTURE)] if level == "medium" else level
