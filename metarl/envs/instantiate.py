"""Environments as they are recorded: an instance of a Gymnasium specification, dict observations left as they are."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
from pathlib import Path

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import Error as GymnasiumError

from metarl.errors import ConfigError

# First part of an entry point -> what brings it; the rest of the message is the same for all.
_EXTRAS = {"gymnasium_robotics": "mujoco", "gymnasium.envs.mujoco": "mujoco", "metarl.envs.sparse": "mujoco"}


def instantiate(spec: EnvSpec) -> gym.Env:
    """A new environment, without Gymnasium's checker.

    Raises:
        ConfigError: it cannot be made here; where a package is missing, the message gives the pip command.
    """
    try:
        _announce_nothing(str(spec.entry_point))
        env = gym.make(spec, disable_env_checker=True)
    except (GymnasiumError, ImportError, AttributeError, TypeError) as error:  # the last two: an entry point of old
        raise ConfigError(
            f"environment {spec.id!r} cannot be made here ({_line(error)}); {_remedy(spec, str(error))}"
        ) from error
    _clean_up(env)
    return env


def _announce_nothing(entry_point: str) -> None:
    # At its first import gymnasium-robotics prints news about environments that are not this one.
    if entry_point.startswith("gymnasium_robotics"):
        with contextlib.redirect_stderr(io.StringIO()):
            importlib.import_module("gymnasium_robotics")


def _clean_up(env: gym.Env) -> None:
    # Every maze leaves its model in the temporary folder once it is loaded: fifty files for one evaluator.
    left = getattr(env.unwrapped, "tmp_xml_file_path", None)
    if left is not None:
        Path(left).unlink(missing_ok=True)


def _remedy(spec: EnvSpec, said: str) -> str:
    if "MUJOCO_GL" in os.environ and ("OpenGL" in said or "glGetError" in said):
        return f"MUJOCO_GL={os.environ['MUJOCO_GL']} names an OpenGL library that is not here; unset it"
    for prefix, extra in _EXTRAS.items():
        if str(spec.entry_point).startswith(prefix):
            return f"run: pip install 'metarl[{extra}]'"
    return "install what it needs"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
