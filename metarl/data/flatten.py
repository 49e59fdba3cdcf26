"""One rule that turns a dict observation into a vector, for data and for environments alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from metarl.errors import DataError

FIRST = ("observation", "desired_goal")


def key_order(keys: Iterable[str]) -> tuple[str, ...]:
    """`observation`, then `desired_goal`, then the other keys sorted."""
    keys = set(keys)
    return tuple(key for key in FIRST if key in keys) + tuple(sorted(keys.difference(FIRST)))


def observation_keys(space: gym.Space, where: str) -> tuple[str, ...]:
    """The keys that `flatten` joins, in order; empty for a plain vector.

    Args:
        space: a Box [O], or a Dict of such Boxes.
        where: what has this space, for messages.

    Raises:
        DataError: any other space.
    """
    if isinstance(space, gym.spaces.Dict):
        for key, part in space.spaces.items():
            _check_vector(part, f"{where}: observation {key!r}")
        return key_order(space.spaces)
    _check_vector(space, f"{where}: the observation")
    return ()


def flatten(observation: Mapping[str, NDArray[Any]] | NDArray[Any], keys: tuple[str, ...]) -> NDArray[Any]:
    """The parts [..., O_k] of an observation joined in the order of `keys` into [..., O]."""
    if isinstance(observation, Mapping):
        return np.concatenate([observation[key] for key in keys], axis=-1)
    return observation


def flat_space(space: gym.spaces.Dict, keys: tuple[str, ...]) -> gym.spaces.Box:
    """The space of what `flatten` gives."""
    parts = [space[key] for key in keys]
    dtype = np.result_type(*(part.dtype for part in parts if part.dtype is not None))
    low, high = (np.concatenate([getattr(part, bound) for part in parts]) for bound in ("low", "high"))
    return gym.spaces.Box(low.astype(dtype), high.astype(dtype), dtype=dtype.type)


def _check_vector(space: gym.Space, what: str) -> None:
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
        raise DataError(f"{what} is {space}; only vectors (1-d Box) can be packed.")
