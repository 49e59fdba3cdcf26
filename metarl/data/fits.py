"""Whether data and an environment belong together: sizes, versions and action bounds."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import parse_env_id

from metarl.data.transitions import Transitions
from metarl.errors import DataError

TOLERANCE = 1e-5  # of an action at its bound, rounded to float32


def check_fits(transitions: Transitions, env: gym.Env, where: str) -> None:
    """Refuses data that was not recorded in an environment like this one.

    Args:
        transitions: what is to be trained on or written.
        env: with vectors for observations and actions.
        where: names the data, for messages.

    Raises:
        DataError: other sizes, another version, other action bounds, or an action outside the bounds.
    """
    layout, card = transitions.layout, transitions.card
    name = env.spec.id if env.spec else str(env)
    sizes = [space.shape[0] if space.shape else 0 for space in (env.observation_space, env.action_space)]
    if sizes != [layout.obs_dim, layout.action_dim]:
        raise DataError(
            f"{where} has observations of {layout.obs_dim} and actions of {layout.action_dim} numbers, {name} "
            f"{sizes[0]} and {sizes[1]}; name the environment that it was recorded in"
        )
    if card.env_id not in (None, name) and parse_env_id(str(card.env_id))[:2] == parse_env_id(name)[:2]:
        raise DataError(
            f"{where} was recorded in {card.env_id}, not in {name}, and versions differ in rewards or physics; "
            f"use {card.env_id}, or data of {name}"
        )
    assert isinstance(env.action_space, gym.spaces.Box)
    low, high = env.action_space.low, env.action_space.high
    declared = card.figures.get("action_bounds")
    if declared is not None and not np.allclose(declared, [low, high], atol=TOLERANCE):
        raise DataError(
            f"{where} was recorded with actions from {declared[0]} to {declared[1]}, {name} takes {low.tolist()} to "
            f"{high.tolist()}; name the environment that it was recorded in, or rescale the actions"
        )
    values = transitions.action.numpy()
    outside = (values < low - TOLERANCE) | (values > high + TOLERANCE)
    if outside.any():
        row, column = np.argwhere(outside)[0]
        raise DataError(
            f"{where}: action[{column}] is {values[row, column]:g} in row {row}, and {name} takes {low[column]:g} to "
            f"{high[column]:g} ({outside.any(axis=1).sum()} such rows); name the environment that it was recorded in, "
            "or rescale the actions"
        )
