"""metarl's own environments, registered with Gymnasium when `metarl.envs` is imported.

Without that import, `gym.make("metarl.envs:metarl/SparseHopper-v0")` imports it first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym

from metarl.envs.sparse import ROBOTS, WITHOUT_CONTACTS, Variant

MUJOCO_STEPS = 1000  # GILD's and LOGO's time limit, and that of the v5 environments
NAVIGATION_STEPS = 150
FOUR_ROOMS_STEPS = 200

_SPARSE = "metarl.envs.sparse:sparse"
_NAVIGATION = "metarl.envs.navigation:Navigation"
_FOUR_ROOMS = "metarl.envs.four_rooms:FourRooms"


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


def _sparse(robot: str, variant: Variant, summary: str) -> Entry:
    d = ROBOTS[robot].thresholds[variant]
    return Entry(summary.format(robot=robot, d=d), _SPARSE, MUJOCO_STEPS, {"robot": robot, "variant": variant})


ENVIRONMENTS = (
    {
        f"metarl/Sparse{robot}-v0": _sparse(robot, "gild", "{robot}-v5's reward beyond {d:g} m, else 0 (GILD)")
        for robot in ROBOTS
    }
    | {
        f"metarl/LOGO{robot}-v0": _sparse(robot, "logo", "{robot}-v5 with 1 a step beyond {d:g} m, else 0 (LOGO)")
        for robot in ROBOTS
        if "logo" in ROBOTS[robot].thresholds
    }
    | {
        "metarl/DenseAnt-v0": Entry(
            "Ant-v5 without contact forces: the dense reward for policies of SparseAnt",
            "gymnasium.envs.mujoco.ant_v5:AntEnv",
            MUJOCO_STEPS,
            WITHOUT_CONTACTS,
        ),
        "metarl/SparseNavigation-v0": Entry(
            "a point among walls: 1 a step at the goal, else 0", _NAVIGATION, NAVIGATION_STEPS
        ),
        "metarl/DenseNavigation-v0": Entry(
            "the same with minus the distance to the goal", _NAVIGATION, NAVIGATION_STEPS, {"reward": "dense"}
        ),
        "metarl/FourRooms-v0": Entry(
            "four rooms: 1 at the goal, which ends the episode", _FOUR_ROOMS, FOUR_ROOMS_STEPS
        ),
        "metarl/FourRoomsRiver-v0": Entry(
            "the same with a river that costs 1 a step, and a bridge", _FOUR_ROOMS, FOUR_ROOMS_STEPS, {"task": "river"}
        ),
        "metarl/FourRoomsKey-v0": Entry(
            "the same with a goal that pays only with the key", _FOUR_ROOMS, FOUR_ROOMS_STEPS, {"task": "key"}
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
