"""Random numbers in the shape of a dataset: speed does not depend on what they mean. Needs NumPy alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

EPISODE = 1000


def columns(options: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
    """obs, action, reward, next_obs, terminated and truncated of `options["rows"]` transitions, float32."""
    random = np.random.default_rng(0)
    n, obs_dim, action_dim = options["rows"], options["obs_dim"], options["action_dim"]
    truncated = np.zeros(n, np.float32)
    truncated[EPISODE - 1 :: EPISODE] = truncated[-1] = 1
    return {
        "obs": random.standard_normal((n, obs_dim), np.float32),
        "action": random.uniform(-1, 1, (n, action_dim)).astype(np.float32),
        "reward": random.standard_normal(n, np.float32),
        "next_obs": random.standard_normal((n, obs_dim), np.float32),
        "terminated": np.zeros(n, np.float32),
        "truncated": truncated,
    }


def repeated(step: Any) -> Any:
    """A function of no argument that takes one gradient step, as `run(steps) -> steps`."""

    def run(steps: int) -> int:
        for _ in range(steps):
            step()
        return steps

    return run
