"""Environments from ids or recorded specifications, and what a learner must know of them."""

from __future__ import annotations

import importlib
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import Error as GymnasiumError
from numpy.typing import NDArray

from metarl.data.flatten import flat_space, flatten, observation_keys
from metarl.envs.instantiate import instantiate
from metarl.errors import ConfigError, DataError
from metarl.learner import Spec


class Flat(gym.ObservationWrapper):
    """Dict observations as vectors, joined by the rule that datasets are read with (`metarl.data.flatten`)."""

    def __init__(self, env: gym.Env, keys: tuple[str, ...]) -> None:
        super().__init__(env)
        self.keys = keys
        assert isinstance(env.observation_space, gym.spaces.Dict)
        self.observation_space = flat_space(env.observation_space, keys)

    def observation(self, observation: Any) -> NDArray[Any]:
        """See `gym.ObservationWrapper`."""
        return flatten(observation, self.keys)


def env_spec(env_id: str, key: str = "evaluation.env") -> str:
    """The specification of a registered environment as JSON; `key` names the setting in messages.

    An id may name the module that registers it, as Gymnasium's do: `package.module:Id-v0`.

    Raises:
        ConfigError: the id is not registered.
    """
    module, _, name = env_id.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        return gym.spec(name).to_json()
    except (GymnasiumError, ImportError) as error:
        hint = f"; is {module} on PYTHONPATH?" if isinstance(error, ImportError) else ""
        raise ConfigError(f"{key}: {error}{hint}") from error


def make_env(spec_json: str, keys: tuple[str, ...] | None = None) -> gym.Env:
    """A new environment whose dict observations come flat.

    Args:
        spec_json: a dataset's specification, or `env_spec(id)`.
        keys: the order in which to join a dict observation's parts, as a checkpoint records it; the rule's if None.

    Raises:
        ConfigError: the environment cannot be made here, or its observations cannot be flattened.
    """
    env = instantiate(EnvSpec.from_json(spec_json))
    if not isinstance(env.observation_space, gym.spaces.Dict):
        return env
    try:
        found = observation_keys(env.observation_space, f"environment {_name(env)!r}")
    except DataError as error:
        raise ConfigError(str(error)) from error
    if keys is not None and set(keys) != set(found):
        raise ConfigError(
            f"environment {_name(env)!r} observes {', '.join(found)}; the policy was trained on {', '.join(keys)}"
        )
    return Flat(env, found if keys is None else keys)


def spec_of(env: gym.Env) -> Spec:
    """Sizes, flattened keys and action bounds of an environment of `make_env` with continuous symmetric actions.

    Raises:
        ConfigError: another kind of space.
    """
    name = _name(env)
    obs, action = env.observation_space, env.action_space
    if not isinstance(obs, gym.spaces.Box) or len(obs.shape) != 1:
        raise ConfigError(f"environment {name!r}: observations must be flat vectors, not {obs}")
    if not isinstance(action, gym.spaces.Box) or len(action.shape) != 1:
        raise ConfigError(f"environment {name!r}: actions must be continuous vectors, not {action}")
    if not np.array_equal(action.low, -action.high) or not np.isfinite(action.high).all():
        raise ConfigError(f"environment {name!r}: action bounds must be finite and symmetric, not {action}")
    keys = env.keys if isinstance(env, Flat) else ()
    return Spec(obs.shape[0], action.shape[0], tuple(float(bound) for bound in action.high), keys)


def _name(env: gym.Env) -> str:
    return env.spec.id if env.spec else str(env)
