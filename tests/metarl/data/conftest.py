"""A Minari folder of each test's own, and episodes whose every number says where it belongs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer


@pytest.fixture(autouse=True)
def minari_root(tmp_path, monkeypatch) -> Path:
    """An empty Minari folder; whatever tries to reach a network fails at once."""
    root = tmp_path / "datasets"
    root.mkdir()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return root


def counting_buffers(lengths) -> list[EpisodeBuffer]:
    """Episodes with obs = (episode, t), action = 1000 episode + t, reward = 100 episode + t + 0.5.

    Every third episode terminates, every third is truncated, and every third carries no flag at its end.
    """
    buffers = []
    for episode, length in enumerate(lengths):
        t = np.arange(length + 1)
        end = t[:-1] == length - 1
        buffers.append(
            EpisodeBuffer(
                observations=np.stack([np.full_like(t, episode), t], axis=1).astype(np.float64),
                actions=(1000.0 * episode + t[:-1, None]).astype(np.float32),
                rewards=100.0 * episode + t[:-1] + 0.5,
                terminations=end & (episode % 3 == 0),
                truncations=end & (episode % 3 == 1),
                infos={},
            )
        )
    return buffers


@pytest.fixture
def counting() -> Callable[..., list[EpisodeBuffer]]:
    """`counting(lengths)`: the buffers of `counting_buffers`."""
    return counting_buffers


@pytest.fixture
def write() -> Callable[..., str]:
    """`write(dataset_id, buffers, observation_space=..., action_space=...)`: plain Minari writes a dataset."""

    def create(
        dataset_id="tests/counting-v0", buffers=None, observation_space=None, action_space=None, lengths=(3, 1, 5)
    ) -> str:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning)  # Minari wants an author, an address, a page
            minari.create_dataset_from_buffers(
                dataset_id,
                counting_buffers(lengths) if buffers is None else buffers,
                observation_space=observation_space or gym.spaces.Box(-np.inf, np.inf, (2,), np.float64),
                action_space=action_space or gym.spaces.Box(-np.inf, np.inf, (1,), np.float32),
            )
        return dataset_id

    return create
