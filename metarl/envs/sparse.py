"""Gymnasium's robots with a reward only beyond a distance, as GILD and LOGO train them.

The reward of a step that ends at x, in an episode that began at x_0, with a threshold d:

    gild    r = r_dense  where x - x_0 > d, else 0    (GILD, arXiv:2501.07346)
    logo    r = 1        where x - x_0 > d, else 0    (LOGO, ICLR 2022)

Observations, dynamics and terminations are those of Gymnasium's v5 environment, and r_dense is its reward.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec, load_env_creator

from metarl.errors import ConfigError

Variant = Literal["gild", "logo"]
Origin = Literal["reset", "model"]


@dataclass(frozen=True)
class Robot:
    """One of Gymnasium's robots.

    Attributes:
        entry_point: of its v5 environment.
        thresholds: variant -> d in metres, as in the authors' code; LOGO has no Ant.
        kwargs: what makes the v5 environment come closest to the v2 that the authors used.
    """

    entry_point: str
    thresholds: dict[Variant, float]
    kwargs: dict[str, Any] = field(default_factory=dict)


# Under GILD's mujoco-py 2.1 with Gym 0.21 contact forces were always 0: 84 zeros observed, and no contact cost.
WITHOUT_CONTACTS = {"include_cfrc_ext_in_observation": False, "contact_cost_weight": 0.0}

ROBOTS = {
    "Hopper": Robot("gymnasium.envs.mujoco.hopper_v5:HopperEnv", {"gild": 1.0, "logo": 2.0}),
    "HalfCheetah": Robot("gymnasium.envs.mujoco.half_cheetah_v5:HalfCheetahEnv", {"gild": 2.0, "logo": 20.0}),
    "Walker2d": Robot("gymnasium.envs.mujoco.walker2d_v5:Walker2dEnv", {"gild": 1.0, "logo": 2.0}),
    "Ant": Robot("gymnasium.envs.mujoco.ant_v5:AntEnv", {"gild": 1.0}, WITHOUT_CONTACTS),
}


class Sparse(gym.Wrapper):
    """A robot's environment with the sparse reward; `info` has `dense_reward`, `x_position` and `x_displacement`.

    Args:
        env: one of Gymnasium's robots, whose info has `x_position`.
        threshold: d in metres.
        variant: what is paid beyond it.
        origin: x_0 is the robot's place at the episode's reset, noise included, or the model's (always 0).
    """

    def __init__(self, env: gym.Env, threshold: float, variant: Variant, origin: Origin) -> None:
        super().__init__(env)
        self.threshold = threshold
        self.variant = variant
        self.origin = origin
        self._start = 0.0

    @property
    def spec(self) -> EnvSpec | None:  # type: ignore[override]
        """The entry point makes this wrapper, so it is none of the specification's additional ones."""
        return self.env.spec

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See `gym.Env`."""
        obs, info = self.env.reset(seed=seed, options=options)
        x = float(info["x_position"])
        self._start = x if self.origin == "reset" else float(self.get_wrapper_attr("init_qpos")[0])
        return obs, info | {"x_displacement": x - self._start}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """See `gym.Env`."""
        obs, dense, terminated, truncated, info = self.env.step(action)
        displacement = float(info["x_position"]) - self._start
        paid = float(dense) if self.variant == "gild" else 1.0
        reward = paid if displacement > self.threshold else 0.0
        info |= {"dense_reward": float(dense), "x_displacement": displacement}
        return obs, reward, terminated, truncated, info


def sparse(
    robot: str, variant: Variant = "gild", threshold: float | None = None, origin: Origin = "reset", **kwargs: Any
) -> Sparse:
    """The entry point of the registered environments; the time limit is the registration's.

    Args:
        robot: a key of `ROBOTS`.
        variant: see the module.
        threshold: d in metres; the authors' if None.
        origin: see `Sparse`.
        kwargs: of the v5 environment, such as `render_mode` or `xml_file`.

    Raises:
        ConfigError: a value that there is not, or LOGO's Ant without a threshold.
    """
    for key, value, known in (
        ("robot", robot, tuple(ROBOTS)),
        ("variant", variant, get_args(Variant)),
        ("origin", origin, get_args(Origin)),
    ):
        if value not in known:
            raise ConfigError(f"{key} must be one of {', '.join(known)}, not {value!r}")
    found = ROBOTS[robot]
    if threshold is None:
        if variant not in found.thresholds:
            raise ConfigError(f"variant {variant!r} has no {robot}; give a threshold in metres")
        threshold = found.thresholds[variant]
    env: Any = load_env_creator(found.entry_point)(**found.kwargs | kwargs)
    return Sparse(env, float(threshold), variant, origin)
