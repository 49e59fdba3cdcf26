"""Environments that cannot be made are one clear error."""

import gymnasium as gym
import pytest
from gymnasium.envs.registration import EnvSpec

from metarl.envs import make_env
from metarl.errors import ConfigError


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (EnvSpec("Old-v2", entry_point="gymnasium.envs.mujoco:NoSuchEnv"), r"'Old-v2' cannot be made here .*NoSuchEnv"),
        (
            EnvSpec("Gone-v0", entry_point="no_such_package.envs:Env"),
            r"'Gone-v0' cannot be made here .*no_such_package",
        ),
        (EnvSpec("Odd-v0", entry_point="builtins:dict", kwargs={"a": 1}), r"'Odd-v0' cannot be made here"),
    ],
    ids=["a class that is gone", "a package that is missing", "no environment"],
)
def test_an_entry_point_of_another_time_is_one_line(spec, words):
    with pytest.raises(ConfigError, match=words):
        make_env(spec.to_json())


def test_a_specification_gives_a_new_environment_each_time():
    spec = gym.spec("Pendulum-v1").to_json()
    one, other = make_env(spec), make_env(spec)
    assert one.unwrapped is not other.unwrapped
    one.close()
    other.close()
