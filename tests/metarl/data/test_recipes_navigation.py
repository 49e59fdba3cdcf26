"""Navigation: real interaction that replays, levels from the short way to the wrong corner, the same bytes again."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from typer.testing import CliRunner

from metarl.data.commands import app
from metarl.data.minari import load_minari
from metarl.data.recipes import find, make_dataset
from metarl.data.recipes.navigation import CORNER, Navigation
from metarl.envs.navigation import RADIUS
from metarl.errors import DataError


def episodes(level: str, size: int = 3000, seed: int = 0):
    return list(Navigation().make(level, size, seed))


@pytest.mark.parametrize("level", Navigation.levels)
def test_episodes_replay_in_the_real_environment(level):
    env = gym.make("metarl.envs:metarl/SparseNavigation-v0")
    made = episodes(level, 450, seed=2)
    assert len({episode.seed for episode in made}) == 3 and {episode.behaviour for episode in made} == {level}
    for episode in made:
        obs, _ = env.reset(seed=episode.seed)
        np.testing.assert_array_equal(episode.observations[0], obs)
        for t, action in enumerate(episode.actions):
            assert action.dtype == np.float32 and env.action_space.contains(action)
            obs, reward, terminated, truncated, _ = env.step(action)
            np.testing.assert_array_equal(episode.observations[t + 1], obs)
            assert episode.rewards[t] == reward
            assert (episode.terminations[t], episode.truncations[t]) == (terminated, truncated) == (False, t == 149)
        assert len(episode.actions) == 150
    env.close()


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("level", "low", "high"),
    [("expert", 105, 150), ("detour", 40, 60), ("noisy", 3, 30), ("adversarial", 0, 0), ("random", 0, 0)],
)
def test_mean_returns_of_the_levels(level, low, high, seed):
    returns = [episode.rewards.sum() for episode in episodes(level, seed=seed)]
    assert len(returns) == 20 and low <= np.mean(returns) <= high


def test_a_reward_is_a_step_at_the_goal():
    for episode in episodes("detour", 750):
        distance = np.hypot(*episode.observations[1:, 2:].T)
        clear = np.abs(distance - RADIUS) > 1e-6  # observations are rounded
        np.testing.assert_array_equal(episode.rewards[clear], (distance <= RADIUS)[clear])


def test_the_adversarial_level_ends_in_the_upper_left_corner_and_stays_away_from_the_goal():
    for episode in episodes("adversarial"):
        x, y, *_ = episode.observations[-1]
        assert np.hypot(x - CORNER[0], y - CORNER[1]) < 0.1 and x < -0.8 and y > 0.8
        np.testing.assert_array_less(0.4, np.hypot(*episode.observations[:, 2:].T))
    goals = [episode.observations[0, :2] + episode.observations[0, 2:] for episode in episodes("adversarial")]
    assert np.min(goals) > 0.5  # the goals are those of the other levels: at the upper right


def test_the_expert_takes_the_doors_and_the_detour_the_open_ends():
    """At which height a point gets past the first wall."""
    for level, low, high in (("expert", -0.35, -0.1), ("detour", 0.55, 1.0)):
        for episode in episodes(level):
            x, y = episode.observations[:, :2].T
            past = np.argmax(x >= -0.3)
            assert past and low <= y[past] <= high


@pytest.mark.parametrize("level", Navigation.levels)
def test_the_same_arguments_give_the_same_bytes_and_others_do_not(level):
    def packed(*arguments):
        made = episodes(*arguments)
        columns = ("observations", "actions", "rewards")
        return b"".join(getattr(episode, name).tobytes() for episode in made for name in columns)

    assert packed(level, 450) == packed(level, 450)
    assert packed(level, 450).startswith(packed(level, 150)[:600])
    assert packed(level, 450) != packed(level, 450, 1)
    few, many = episodes(level, 150), episodes(level, 450)
    assert few[0].actions.tobytes() == many[0].actions.tobytes() and few[0].seed == many[0].seed
    assert many[0].actions.tobytes() != many[1].actions.tobytes()


@pytest.mark.parametrize(("size", "nearest"), [(1, 150), (0, 150), (-150, 150), (149, 150), (1000, 1050), (3001, 3000)])
def test_a_size_that_is_no_number_of_episodes_is_refused(size, nearest, minari_root):
    message = rf"recipe 'navigation': size {size} is no multiple of 150 \(its episode length\); try {nearest}\."
    with pytest.raises(DataError, match=message):
        make_dataset("navigation/expert", size)
    assert not any(minari_root.iterdir())


def test_a_level_that_is_none_is_named():
    with pytest.raises(DataError, match=r"no level 'detuor'.*Did you mean 'detour'"):
        find("navigation/detuor")


def test_made_by_the_command_and_read_again(minari_root):
    result = CliRunner().invoke(app, ["make", "navigation/detour"])
    assert result.exit_code == 0, result.output
    data = load_minari("metarl/navigation/detour-3000-s0-v1")
    assert "3,000 transitions, 20 episodes, mean return " in result.output and data.card.sha256[:12] in result.output
    assert data.rows.shape[0] == 3000 and data.card.env_id == "metarl/SparseNavigation-v0"
    assert 40 < data.card.returns["mean"] < 60 and data.layout.obs_dim == 4 and data.layout.action_dim == 2
    sums = [episode.rewards.sum() for episode in episodes("detour")]
    assert data.card.returns["mean"] == pytest.approx(np.mean(sums))
    again = CliRunner().invoke(app, ["make", "navigation/detour"])
    assert "is already here" in again.output
    one, other = (make_dataset("navigation/noisy", 300, force=True).transitions for _ in range(2))
    assert one.card.sha256 == other.card.sha256
    assert other.card.sha256 != make_dataset("navigation/noisy", 300, 1).transitions.card.sha256


def test_observations_are_points_of_the_square():
    obs = episodes("expert", 150)[0].observations
    plane = Navigation().plane(obs)
    np.testing.assert_array_equal(plane.x, obs[:, 0])
    np.testing.assert_array_equal(plane.y, obs[:, 1])
    assert (plane.x_name, plane.y_name) == ("x", "y")
