"""What both sides are told; no package but Python's own, since Stable-Baselines3's interpreter loads this too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Course:
    """How long an environment is trained in.

    Attributes:
        steps: of the environment, in all.
        random_steps: with uniform actions and without an update, at the start.
        every: steps from one evaluation to the next.
    """

    steps: int
    random_steps: int
    every: int


COURSES = {"Pendulum-v1": Course(10_000, 1_000, 500), "HalfCheetah-v5": Course(100_000, 10_000, 5_000)}
PAIRS = (
    ("Pendulum-v1", "sac"),
    ("Pendulum-v1", "td3"),
    ("Pendulum-v1", "ddpg"),
    ("HalfCheetah-v5", "sac"),
    ("HalfCheetah-v5", "td3"),
)
LABELS = {"sac": "SAC", "td3": "TD3", "ddpg": "DDPG"}
EPISODES = 10  # of an evaluation

_SHARED: Mapping[str, Any] = {
    "hidden": (256, 256),
    "activation": "relu",
    "batch_size": 256,
    "lr": 3e-4,
    "discount": 0.99,
    "tau": 0.005,
    "replay": 1_000_000,
    "envs": 1,
    "updates_per_step": 1,
}
_OWN: Mapping[str, Mapping[str, Any]] = {
    "sac": {"temperature": 1.0, "policy_every": 1, "critics": 2},
    "td3": {"policy_every": 2, "critics": 2, "exploration_noise": 0.1, "policy_noise": 0.2, "noise_clip": 0.5},
    "ddpg": {"policy_every": 1, "critics": 1, "exploration_noise": 0.1},
}


def settings(algorithm: str, env: str) -> dict[str, Any]:
    """By their names here.

    `temperature` is the start of one that is learned at the same rate, towards an entropy of minus the action
    dimension. Noises are standard deviations in units of the largest action. `policy_every` counts critic steps to one
    of the policy and the targets.
    """
    return {**_SHARED, **_OWN[algorithm], "random_steps": COURSES[env].random_steps}
