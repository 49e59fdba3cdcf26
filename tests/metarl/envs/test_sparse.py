"""Sparse robots against Gymnasium's own, stepped beside them: same numbers, other rewards."""

import json
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import TimeLimit

from metarl.envs import env_spec, make_env, registered, spec_of
from metarl.envs.registration import ENVIRONMENTS
from metarl.envs.sparse import ROBOTS, WITHOUT_CONTACTS
from metarl.errors import ConfigError

GILD = {"Hopper": 1.0, "HalfCheetah": 2.0, "Walker2d": 1.0, "Ant": 1.0}
LOGO = {"Hopper": 2.0, "HalfCheetah": 20.0, "Walker2d": 2.0}
IDS = [env_id for env_id, _ in registered()]


def base(robot, **kwargs):
    return gym.make(f"{robot}-v5", **(WITHOUT_CONTACTS if robot == "Ant" else {}) | kwargs)


def shift(env, metres):
    """The robot as it is, elsewhere along x."""
    robot = env.unwrapped
    qpos = robot.data.qpos.copy()
    qpos[0] += metres
    robot.set_state(qpos, robot.data.qvel.copy())


def actions(env, count, seed=0):
    space = env.action_space
    return np.random.default_rng(seed).uniform(space.low, space.high, (count, *space.shape)).astype(np.float32) * 0.3


def rollout(env, steps, seed=0):
    rows = [env.reset(seed=seed)[0]]
    for action in actions(env, steps):
        obs, reward, terminated, truncated, _ = env.step(action)
        rows += [obs, reward, terminated, truncated]
        if terminated or truncated:
            break
    return rows


def same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("variant", ["gild", "logo"])
@pytest.mark.parametrize("robot", ROBOTS)
def test_rewards_are_the_dense_ones_beyond_the_threshold_and_zero_before(robot, variant):
    threshold = {"gild": GILD, "logo": LOGO}[variant].get(robot, 3.0)
    given = {"threshold": 3.0} if (robot, variant) == ("Ant", "logo") else {}
    env, dense = gym.make(f"metarl/Sparse{robot}-v0", variant=variant, **given), base(robot)
    obs, info = env.reset(seed=3)
    np.testing.assert_array_equal(obs, dense.reset(seed=3)[0])
    start = info["x_position"]
    assert info["x_displacement"] == 0
    paid = []
    for t, action in enumerate(actions(env, 12)):
        if t == 4:  # just before the threshold
            shift(env, threshold - 0.3)
            shift(dense, threshold - 0.3)
        if t == 8:  # beyond it
            shift(env, 0.6)
            shift(dense, 0.6)
        obs, reward, terminated, truncated, info = env.step(action)
        expected, full, *ends, there = dense.step(action)
        np.testing.assert_array_equal(obs, expected)
        assert [terminated, truncated] == ends
        assert info["dense_reward"] == full
        assert info["x_position"] == there["x_position"]
        assert info["x_displacement"] == there["x_position"] - start
        beyond = there["x_position"] - start > threshold
        assert reward == (0 if not beyond else full if variant == "gild" else 1)
        assert isinstance(reward, float)
        paid.append(reward != 0)
    assert paid == [False] * 8 + [True] * 4
    env.close()
    dense.close()


def test_the_threshold_itself_pays_nothing():
    env = gym.make("metarl/SparseHalfCheetah-v0")
    env.reset(seed=1)
    forward = actions(env, 10)
    reached = [env.step(action)[-1]["x_displacement"] for action in forward][-1]
    env.close()
    assert reached != 0
    for threshold, expected in ((reached, 0), (np.nextafter(reached, -np.inf), 1)):
        env = gym.make("metarl/SparseHalfCheetah-v0", threshold=float(threshold), variant="logo")
        env.reset(seed=1)
        assert [env.step(action)[1] for action in forward][-1] == expected
        env.close()


@pytest.mark.parametrize("robot", ROBOTS)
def test_the_start_is_that_of_the_episode(robot):
    env = gym.make(f"metarl/Sparse{robot}-v0")
    starts = []
    for seed in (0, 1, None):
        _, info = env.reset(seed=seed)
        start = env.unwrapped.data.qpos[0]
        assert (info["x_position"], info["x_displacement"]) == (start, 0)
        shift(env, 5)  # the last episode's end is not the next one's start
        _, reward, *_, info = env.step(np.zeros(env.action_space.shape, np.float32))
        assert info["x_displacement"] == info["x_position"] - start
        assert reward == info["dense_reward"]
        starts.append(start)
    assert len(set(starts)) == 3
    env.close()


def test_the_model_s_origin_leaves_the_noise_in():
    env = gym.make("metarl/SparseAnt-v0", origin="model")
    _, info = env.reset(seed=0)
    assert info["x_displacement"] == info["x_position"] != 0
    *_, info = env.step(np.zeros(8, np.float32))
    assert info["x_displacement"] == info["x_position"]
    env.close()


def test_a_time_limit_truncates_once():
    env = gym.make("metarl/SparseHalfCheetah-v0")
    env.reset(seed=0)
    still = np.zeros(6, np.float32)
    ends = [env.step(still)[2:4] for _ in range(1000)]
    assert ends == [(False, False)] * 999 + [(False, True)]
    env.close()


@pytest.mark.parametrize("env_id", IDS)
def test_every_environment_has_one_time_limit(env_id):
    env = gym.make(env_id)
    assert env.spec.max_episode_steps == ENVIRONMENTS[env_id].steps
    layers, layer = [], env
    while isinstance(layer, gym.Wrapper):
        layers.append(type(layer))
        layer = layer.env
    assert layers.count(TimeLimit) == 1
    env.close()


@pytest.mark.parametrize("robot", ["Hopper", "Walker2d"])
def test_a_fall_terminates_when_it_does_in_the_dense_environment(robot):
    env, dense = gym.make(f"metarl/Sparse{robot}-v0"), base(robot)
    env.reset(seed=0)
    dense.reset(seed=0)
    push = np.ones(env.action_space.shape, np.float32)
    terminated, steps = False, 0
    while not terminated:
        _, reward, terminated, truncated, info = env.step(push)
        _, full, ended, *_ = dense.step(push)
        steps += 1
        assert (terminated, truncated, info["dense_reward"], reward) == (ended, False, full, 0)
    assert 1 < steps < 200
    env.close()
    dense.close()


def test_an_ant_comes_without_contact_forces_and_has_a_dense_twin():
    env, dense = gym.make("metarl/SparseAnt-v0"), gym.make("metarl/DenseAnt-v0")
    assert env.observation_space.shape == dense.observation_space.shape == (27,)
    env.reset(seed=0)
    dense.reset(seed=0)
    contacts = []
    for action in actions(env, 40):
        *_, info = env.step(action)
        _, full, *_, terms = dense.step(action)
        assert info["dense_reward"] == full
        assert info["reward_contact"] == terms["reward_contact"] == 0
        contacts.append(np.abs(dense.unwrapped.contact_forces).max())
    assert max(contacts) > 0  # it landed on its feet: Ant-v5 would have charged for it
    env.close()
    dense.close()


def test_ids_and_lines_carry_the_authors_thresholds():
    lines = dict(registered())
    for name, variant, thresholds in (("Sparse", "gild", GILD), ("LOGO", "logo", LOGO)):
        assert {each for each in lines if each.startswith(f"metarl/{name}")} - {"metarl/SparseNavigation-v0"} == {
            f"metarl/{name}{robot}-v0" for robot in thresholds
        }
        for robot, threshold in thresholds.items():
            env_id = f"metarl/{name}{robot}-v0"
            assert f"beyond {threshold:g} m" in lines[env_id]
            env = gym.make(env_id)
            assert (env.get_wrapper_attr("variant"), env.get_wrapper_attr("threshold")) == (variant, threshold)
            assert type(env.unwrapped) is type(base(robot).unwrapped)
            env.close()
    assert all(line and "\n" not in line for line in lines.values())


@pytest.mark.parametrize("env_id", IDS)
def test_a_specification_survives_json(env_id):
    env = gym.make(env_id)
    text = env.spec.to_json()
    assert json.loads(text)["id"] == env_id
    assert env.spec.additional_wrappers == ()
    again = gym.make(EnvSpec.from_json(text))
    ours = make_env(env_spec(env_id))
    assert again.spec.to_json() == text
    assert spec_of(ours).obs_dim == env.observation_space.shape[0]
    expected = rollout(env, 30)
    same(expected, rollout(again, 30))
    same(expected, rollout(ours, 30))
    same(expected, rollout(env, 30))  # the same seed, once more in the same environment
    for each in (env, again, ours):
        each.close()


def test_arguments_survive_json():
    made = gym.make("metarl/SparseWalker2d-v0", variant="logo", threshold=0.5, xml_file="walker2d.xml")
    env = gym.make(EnvSpec.from_json(made.spec.to_json()))
    assert (env.get_wrapper_attr("variant"), env.get_wrapper_attr("threshold")) == ("logo", 0.5)
    friction = [env.unwrapped.model.geom(f"{foot}_geom").friction[0] for foot in ("foot", "foot_left")]
    assert friction == [0.9, 1.9]  # Gymnasium's v2 to v4
    made.close()
    env.close()


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"variant": "sparse"}, r"variant must be one of gild, logo, not 'sparse'"),
        ({"origin": "goal"}, r"origin must be one of reset, model, not 'goal'"),
        ({"robot": "Humanoid"}, r"robot must be one of Hopper, .*not 'Humanoid'"),
        ({"variant": "logo"}, r"variant 'logo' has no Ant; give a threshold"),
    ],
)
def test_a_wrong_argument_is_one_line(kwargs, words):
    with pytest.raises(ConfigError, match=words):
        gym.make("metarl/SparseAnt-v0", **kwargs)


@pytest.mark.parametrize("robot", ROBOTS)
# Gymnasium's robots have no bounds, and the sparse reward is a wrapper around them: both as intended.
@pytest.mark.filterwarnings("ignore:.*A Box observation space m.* value is -?infinity:UserWarning")
@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version:UserWarning")
def test_gymnasium_s_checker_passes(robot):
    env = gym.make(f"metarl/Sparse{robot}-v0", max_episode_steps=-1, disable_env_checker=True).env
    check_env(env, skip_render_check=True)  # pictures need OpenGL
    env.close()


def test_without_mujoco_the_command_that_installs_it_is_given(monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco", None)  # as where it is not installed
    for name in [name for name in sys.modules if name.startswith("gymnasium.envs.mujoco")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ConfigError, match=r"SparseHopper-v0' cannot be made here .*pip install 'metarl\[mujoco\]'"):
        make_env(env_spec("metarl/SparseHopper-v0"))


def test_gymnasium_finds_them_without_metarl_s_import():
    # A process of its own, since this one has imported metarl.
    code = (
        "import gymnasium as gym\n"
        "assert not any(name.startswith('metarl/') for name in gym.registry)\n"
        "env = gym.make('metarl.envs:metarl/SparseHopper-v0')\n"
        "print(env.spec.id)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "metarl/SparseHopper-v0\n"
