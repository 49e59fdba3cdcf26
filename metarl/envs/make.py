"""Environments from ids or recorded specifications, and what a learner must know of them."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import Error as GymnasiumError

from metarl.errors import ConfigError
from metarl.learner import Spec


def env_spec(env_id: str) -> str:
    """The specification of a registered environment as JSON.

    Raises:
        ConfigError: the id is not registered.
    """
    try:
        return gym.spec(env_id).to_json()
    except GymnasiumError as error:
        raise ConfigError(f"evaluation.env: {error}") from error


def make_env(spec_json: str) -> gym.Env:
    """A new environment from a specification as JSON (a dataset's, or `env_spec(id)`).

    Raises:
        ConfigError: the environment cannot be made here.
    """
    spec = EnvSpec.from_json(spec_json)
    try:
        return gym.make(spec, disable_env_checker=True)
    except (GymnasiumError, ImportError) as error:
        raise ConfigError(f"environment {spec.id!r} cannot be made here ({error}); install what it needs") from error


def spec_of(env: gym.Env) -> Spec:
    """Sizes and action bounds of an environment with flat continuous observations and symmetric actions.

    Raises:
        ConfigError: another kind of space.
    """
    name = env.spec.id if env.spec else str(env)
    obs, action = env.observation_space, env.action_space
    if not isinstance(obs, gym.spaces.Box) or len(obs.shape) != 1:
        raise ConfigError(f"environment {name!r}: observations must be flat vectors, not {obs}")
    if not isinstance(action, gym.spaces.Box) or len(action.shape) != 1:
        raise ConfigError(f"environment {name!r}: actions must be continuous vectors, not {action}")
    if not np.array_equal(action.low, -action.high) or not np.isfinite(action.high).all():
        raise ConfigError(f"environment {name!r}: action bounds must be finite and symmetric, not {action}")
    return Spec(obs.shape[0], action.shape[0], tuple(float(bound) for bound in action.high))
