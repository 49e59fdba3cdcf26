"""A policy of SAC acting in plain NumPy: the same bytes on one platform, whatever PyTorch is installed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from metarl.data.recipes.base import BLOCK, Policy

LOG_STD = (-20.0, 2.0)  # bounds of the logarithm of the deviation, as in algorithms/sac.py


class SquashedGaussian:
    """a = high tanh(mean(s) + exp(log_std(s)) noise): a sample of SAC's policy (arXiv:1812.05905, App. C), in float64.

    Args:
        tensors: `net.layers.<i>.weight` [in, out] and `net.layers.<i>.bias` [out], as the actor's are called.
    """

    def __init__(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        names = [f"net.layers.{i}" for i in range(len(tensors) // 2)]
        self._layers = [
            (tensors[f"{name}.weight"].astype(np.float64), tensors[f"{name}.bias"].astype(np.float64)) for name in names
        ]

    def __call__(self, obs: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and deviation [..., A] before tanh, for observations [..., O]."""
        x = np.asarray(obs, np.float64)
        *hidden, (weight, bias) = self._layers
        for w, b in hidden:
            x = np.maximum(x @ w + b, 0.0)
        mean, log_std = np.split(x @ weight + bias, 2, axis=-1)
        return mean, np.exp(np.clip(log_std, *LOG_STD))

    def acting(self, rng: Generator, space: gym.Space) -> Policy:
        """Sampled actions for one episode, their noise drawn from `rng` in blocks."""
        assert isinstance(space, gym.spaces.Box)
        high, shape = space.high.astype(np.float64), (BLOCK, *space.shape)
        block: NDArray[np.float64] = np.empty(0)

        def act(step: int, obs: Any) -> NDArray[np.float32]:
            nonlocal block
            if step % BLOCK == 0:
                block = rng.standard_normal(shape)
            mean, std = self(obs)
            return (high * np.tanh(mean + std * block[step % BLOCK])).astype(np.float32)

        return act
