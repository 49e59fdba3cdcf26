"""What a recipe is: levels of behaviour in one environment, and the episodes that each gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from numpy.random import Generator
from numpy.typing import NDArray

from metarl.data.minari import Episode
from metarl.errors import DataError

if TYPE_CHECKING:
    from metarl.training.progress import Style

BLOCK = 64  # uniform actions drawn at a time

Policy = Callable[[int, Any], NDArray[np.float32]]
"""(step from 0, the environment's own observation) -> action [A], inside the action space."""


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
        measure: what these compare: mean returns, or success rates (goals reached within the horizon).
        default_size: transitions.
        requirements: pip-style, for making the environment again.
        packages: beside Gymnasium and NumPy, whose versions the card records since rows depend on them.
        trained: the levels that a policy acts in which `from_scratch` can train again; the others need no training.

    Attributes:
        variant: part of the dataset id, after the level; empty for what every installation makes.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    env_id: ClassVar[str]
    levels: Mapping[str, str]
    judged: ClassVar[tuple[str, ...]] = ("medium",)
    measure: ClassVar[Literal["return", "success"]] = "return"
    default_size: ClassVar[int] = 20_000
    requirements: ClassVar[tuple[str, ...]] = ()
    packages: ClassVar[tuple[str, ...]] = ()
    trained: ClassVar[tuple[str, ...]] = ()
    variant: str = ""

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

    def rows(self, level: str) -> int:
        """Transitions of a level where no size is given."""
        return self.default_size

    def facts(self, level: str) -> dict[str, Any]:
        """What the card's figures tell of a level, beside what they tell of every dataset."""
        return {}

    def from_scratch(self, settings: Sequence[str], root: Path, style: Style) -> Recipe:
        """This recipe with policies trained here, or as far as its run already is: `trained` levels, another `variant`.

        Args:
            settings: `key=value`, put over the training's own settings.
            root: where run folders lie.
            style: of the progress shown.

        Raises:
            UserError: bad settings or numbers, or a run that cannot go on; nothing that was saved is lost.
        """
        raise DataError(f"recipe {self.name!r} trains nothing; leave --from-scratch out.")

    def env_spec(self) -> EnvSpec:
        """The environment that the data is recorded in."""
        return gym.spec(self.env_id)

    def generator(self, level: str, seed: int, episode: int) -> Generator:
        """What one episode of a level draws from; no two share their draws."""
        return np.random.default_rng([seed, episode, *f"{self.name}/{level}".encode()])

    def plane(self, obs: NDArray[Any]) -> Plane | None:
        """Observations [N, O] as points of a plane worth looking at, where there is one."""
        return None


def rollout(env: gym.Env, policy: Policy, seed: int, behaviour: str = "", limit: int | None = None) -> Episode:
    """One episode of `policy` from a seeded reset, up to the environment's own end or, truncated, to `limit` steps."""
    obs, _ = env.reset(seed=seed)
    observations: list[Any] = [obs]
    actions: list[NDArray[np.float32]] = []
    rewards: list[float] = []
    done = terminated = False
    while not done:
        action = policy(len(actions), obs)
        obs, reward, terminated, truncated, _ = env.step(action)
        observations.append(obs)
        actions.append(action)
        rewards.append(float(reward))
        done = terminated or truncated or len(actions) == limit
    last = np.arange(len(actions)) == len(actions) - 1
    return Episode(
        observations=_stack(observations),
        actions=np.stack(actions),
        rewards=np.array(rewards, np.float64),
        terminations=last & bool(terminated),
        truncations=last & (bool(truncated) or not terminated),
        seed=seed,
        behaviour=behaviour,
    )


def uniform(rng: Generator, space: gym.Space) -> Policy:
    """Uniform actions of a bounded Box for one episode, drawn in blocks, since most such episodes are short."""
    assert isinstance(space, gym.spaces.Box)
    low, high, shape = space.low, space.high, (BLOCK, *space.shape)
    block: NDArray[np.float32] = np.empty(0, np.float32)

    def act(step: int, obs: Any) -> NDArray[np.float32]:
        nonlocal block
        if step % BLOCK == 0:
            block = rng.uniform(low, high, shape).astype(np.float32)
        return block[step % BLOCK]

    return act


def first(size: int, episodes: Iterator[Episode]) -> Iterator[Episode]:
    """The first `size` transitions; an episode that would run over is cut there, and truncated."""
    while size > 0:
        episode = next(episodes)
        yield episode if len(episode.rewards) <= size else cut(episode, size)
        size -= len(episode.rewards)


def cut(episode: Episode, steps: int) -> Episode:
    """The first `steps` steps of a longer episode, truncated there."""
    observations = episode.observations
    part = {k: v[: steps + 1] for k, v in observations.items()} if isinstance(observations, dict) else None
    return replace(
        episode,
        observations=observations[: steps + 1] if part is None else part,
        actions=episode.actions[:steps],
        rewards=episode.rewards[:steps],
        terminations=episode.terminations[:steps],
        truncations=np.arange(steps) == steps - 1,
    )


def evenly(*streams: Iterator[Episode]) -> Iterator[Episode]:
    """Episodes of several streams, next from the one that has given fewest transitions."""
    given = [0] * len(streams)
    while True:
        i = given.index(min(given))
        episode = next(streams[i])
        given[i] += len(episode.rewards)
        yield episode


def _stack(observations: list[Any]) -> Any:
    if isinstance(observations[0], dict):
        return {key: np.stack([obs[key] for obs in observations]) for key in observations[0]}
    return np.stack(observations)
