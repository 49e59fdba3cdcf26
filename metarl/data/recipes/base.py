"""What a recipe is: levels of behaviour in one environment, and the episodes that each gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray

from metarl.data.minari import Episode
from metarl.errors import DataError

Policy = Callable[[int, NDArray[Any]], NDArray[np.float32]]
"""(step from 0, observation) -> action [A], inside the action space."""


@dataclass(frozen=True)
class Plane:
    """Observations drawn as points: two coordinates [N] and the names of their axes."""

    x: NDArray[Any]
    y: NDArray[Any]
    x_name: str
    y_name: str


class Recipe(ABC):
    """Datasets of one environment, one per level.

    Class attributes:
        name: the registered name, the first part of `<name>/<level>`.
        version: part of the dataset id; raise it when the same size and seed give other rows.
        env_id: a registered Gymnasium id.
        levels: level -> what acts, in one sentence (it goes into the card).
        judged: the levels whose card carries acceptance figures.
        default_size: transitions.
        requirements: pip-style, for making the environment again.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    env_id: ClassVar[str]
    levels: ClassVar[Mapping[str, str]]
    judged: ClassVar[tuple[str, ...]] = ("medium",)
    default_size: ClassVar[int] = 20_000
    requirements: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def make(self, level: str, size: int, seed: int) -> Iterator[Episode]:
        """Episodes of `size` transitions in all; the same arguments give the same bytes on one platform."""

    def check_size(self, size: int) -> None:
        """Refuse a size that `make` cannot give exactly.

        Raises:
            DataError: with what it can give.
        """
        if size < 1:
            raise DataError(f"recipe {self.name!r}: size {size} is below 1.")

    def env_spec(self) -> EnvSpec:
        """The environment that the data is recorded in."""
        return gym.spec(self.env_id)

    def plane(self, obs: NDArray[Any]) -> Plane | None:
        """Observations [N, O] as points of a plane worth looking at, where there is one."""
        return None


def rollout(env: gym.Env, policy: Policy, seed: int, behaviour: str = "") -> Episode:
    """One episode of `policy` from a seeded reset, up to the environment's own end."""
    obs, _ = env.reset(seed=seed)
    observations: list[NDArray[Any]] = [obs]
    actions: list[NDArray[np.float32]] = []
    rewards: list[float] = []
    terminations: list[bool] = []
    truncations: list[bool] = []
    done = False
    while not done:
        action = policy(len(actions), obs)
        obs, reward, terminated, truncated, _ = env.step(action)
        observations.append(obs)
        actions.append(action)
        rewards.append(float(reward))
        terminations.append(terminated)
        truncations.append(truncated)
        done = terminated or truncated
    return Episode(
        observations=np.stack(observations),
        actions=np.stack(actions),
        rewards=np.array(rewards, np.float64),
        terminations=np.array(terminations, np.bool_),
        truncations=np.array(truncations, np.bool_),
        seed=seed,
        behaviour=behaviour,
    )
