"""metarl's own environments, registered with Gymnasium when `metarl.envs` is imported.

Without that import, `gym.make("metarl.envs:metarl/SparseHopper-v0")` imports it first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym

MUJOCO_STEPS = 1000  # GILD's and LOGO's time limit, and that of the v5 environments
NAVIGATION_STEPS = 150

_SPARSE = "metarl.envs.sparse:sparse"
_NAVIGATION = "metarl.envs.navigation:Navigation"
# The thresholds and the Ant's arguments again: `metarl.envs.sparse` is imported when one is made, tests compare.
_GILD = {"Hopper": 1, "HalfCheetah": 2, "Walker2d": 1, "Ant": 1}
_LOGO = {"Hopper": 2, "HalfCheetah": 20, "Walker2d": 2}


@dataclass(frozen=True)
class Entry:
    """One registered environment.

    Attributes:
        summary: one line for `metarl list`.
        entry_point, kwargs, steps: what makes it, with what, and its time limit.
    """

    summary: str
    entry_point: str
    steps: int
    kwargs: dict[str, Any] = field(default_factory=dict)


ENVIRONMENTS = (
    {
        f"metarl/Sparse{robot}-v0": Entry(
            f"{robot}-v5's reward beyond {d} m, else 0 (GILD)", _SPARSE, MUJOCO_STEPS, {"robot": robot}
        )
        for robot, d in _GILD.items()
    }
    | {
        f"metarl/LOGO{robot}-v0": Entry(
            f"1 a step beyond {d} m, else 0 (LOGO)", _SPARSE, MUJOCO_STEPS, {"robot": robot, "variant": "logo"}
        )
        for robot, d in _LOGO.items()
    }
    | {
        "metarl/DenseAnt-v0": Entry(
            "Ant-v5 without contact forces: the dense reward for policies of SparseAnt",
            "gymnasium.envs.mujoco.ant_v5:AntEnv",
            MUJOCO_STEPS,
            {"include_cfrc_ext_in_observation": False, "contact_cost_weight": 0.0},
        ),
        "metarl/SparseNavigation-v0": Entry(
            "a point among walls: 1 a step at the goal, else 0", _NAVIGATION, NAVIGATION_STEPS
        ),
        "metarl/DenseNavigation-v0": Entry(
            "the same with minus the distance to the goal", _NAVIGATION, NAVIGATION_STEPS, {"reward": "dense"}
        ),
    }
)


def register() -> None:
    """Registers what is not yet registered."""
    for env_id, entry in ENVIRONMENTS.items():
        if env_id not in gym.registry:
            gym.register(env_id, entry.entry_point, max_episode_steps=entry.steps, kwargs=dict(entry.kwargs))


def registered() -> list[tuple[str, str]]:
    """(id, one line) of every environment, in the order of `ENVIRONMENTS`."""
    return [(env_id, entry.summary) for env_id, entry in ENVIRONMENTS.items()]
