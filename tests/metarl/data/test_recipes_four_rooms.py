"""Four rooms: real interaction that replays, levels that differ as they say, the same bytes again."""

from __future__ import annotations

from functools import cache

import gymnasium as gym
import numpy as np
import pytest
from typer.testing import CliRunner

from metarl.data.commands import app
from metarl.data.minari import load_minari
from metarl.data.recipes.four_rooms import HOLD, RANDOM, FourRooms, FourRoomsKey, FourRoomsRiver
from metarl.envs.registration import FOUR_ROOMS_STEPS

RECIPES = (FourRooms, FourRoomsRiver, FourRoomsKey)


@cache
def episodes(recipe, level: str, size: int = 4000, seed: int = 0):
    return tuple(recipe().make(level, size, seed))


def whole(made):
    """All but the last, which may be cut."""
    return made[:-1]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("level", FourRooms.levels)
def test_episodes_replay_in_the_real_environment(recipe, level):
    env = gym.make(f"metarl.envs:{recipe.env_id}")
    made = episodes(recipe, level)
    assert sum(len(episode.rewards) for episode in made) == 4000
    assert len({episode.seed for episode in made}) == len(made) > 15
    for episode in made[:5]:
        obs, _ = env.reset(seed=episode.seed)
        np.testing.assert_array_equal(episode.observations[0], obs)
        for t, action in enumerate(episode.actions):
            assert action.dtype == np.float32 and env.action_space.contains(action)
            obs, reward, terminated, truncated, _ = env.step(action)
            np.testing.assert_array_equal(episode.observations[t + 1], obs)
            assert episode.rewards[t] == reward
            assert (episode.terminations[t], episode.truncations[t]) == (terminated, truncated)
        assert terminated or truncated
    assert made[-1].terminations[-1] != made[-1].truncations[-1]
    env.close()


@pytest.mark.parametrize("recipe", RECIPES)
def test_experts_succeed_the_medium_sometimes_and_chance_hardly_ever(recipe):
    success, returns = {}, {}
    for level in recipe.levels:
        made = whole(episodes(recipe, level))
        success[level] = np.mean([episode.terminations[-1] for episode in made])
        returns[level] = np.mean([episode.rewards.sum() for episode in made])
        assert all(len(e.rewards) == FOUR_ROOMS_STEPS for e in made if not e.terminations[-1])
        assert {episode.behaviour for episode in made} == ({"wandering", "random"} if level == "medium" else {level})
    assert success["expert"] == 1 and returns["expert"] > 0.9
    assert success["random"] < 0.1 and success["medium"] < 0.5
    assert returns["medium"] < 0.5


@pytest.mark.parametrize("recipe", RECIPES)
def test_medium_gets_around_in_all_rooms_and_is_seldom_as_fast_as_the_expert(recipe):
    made = whole(episodes(recipe, "medium"))
    obs = np.concatenate([episode.observations for episode in made])
    for x_sign in (-1, 1):
        for y_sign in (-1, 1):
            assert np.mean((obs[:, 0] * x_sign > 0.1) & (obs[:, 1] * y_sign > 0.1)) > 0.02
    slowest = max(len(episode.rewards) for episode in whole(episodes(recipe, "expert")))
    fast = [e.terminations[-1] and e.rewards.sum() == 1 and len(e.rewards) <= 1.2 * slowest for e in made]
    assert np.mean(fast) < 0.15


def test_shares_of_the_medium_level():
    made = [episode for seed in range(4) for episode in whole(episodes(FourRooms, "medium", seed=seed))]
    assert np.mean([episode.behaviour == "random" for episode in made]) == pytest.approx(RANDOM, abs=0.12)


def test_uniform_actions_are_held():
    for episode in whole(episodes(FourRooms, "random")):
        changes = np.flatnonzero((np.diff(episode.actions, axis=0) != 0).any(1)) + 1
        assert HOLD[0] <= np.diff([0, *changes]).min() and np.diff([0, *changes]).max() <= HOLD[1]


def test_the_key_is_taken_on_all_tasks_and_on_its_own_some_take_it_and_do_not_succeed():
    for recipe in (FourRooms, FourRoomsRiver):
        share = np.mean([episode.observations[-1, 2] for episode in whole(episodes(recipe, "medium"))])
        assert 0 < share < 1
    made = whole(episodes(FourRoomsKey, "medium"))
    taken = np.array([episode.observations[-1, 2] == 1 for episode in made])
    ended = np.array([bool(episode.terminations[-1]) for episode in made])
    assert (taken >= ended).all() and 0 < np.mean(taken & ~ended) < 1
    assert all(episode.observations[-1, 2] == 1 for episode in whole(episodes(FourRoomsKey, "expert")))


def test_the_medium_goes_through_the_river_and_over_the_bridge_and_the_expert_stays_dry():
    made = episodes(FourRoomsRiver, "medium")
    wet = sum((episode.rewards < 0).sum() for episode in made)
    assert 20 < wet < 1000
    x, y = np.concatenate([episode.observations[:, :2] for episode in made]).T
    assert ((x > -0.9) & (x < -0.7) & (y > 0.25) & (y < 0.45)).any()
    assert sum((episode.rewards < 0).sum() for episode in episodes(FourRoomsRiver, "expert")) <= 3


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("level", FourRooms.levels)
def test_the_same_arguments_give_the_same_bytes_and_others_do_not(recipe, level):
    def packed(size, seed):
        columns = ("observations", "actions", "rewards")
        made = recipe().make(level, size, seed)
        return [b"".join(getattr(episode, name).tobytes() for name in columns) for episode in made]

    few, more, other = packed(600, 0), packed(900, 0), packed(600, 1)
    assert few == packed(600, 0)
    assert few[:-1] == more[: len(few) - 1] and few != other
    assert len(set(more)) == len(more)


def test_made_by_the_command_and_read_again(minari_root):
    name = "metarl.data.recipes.four_rooms:FourRoomsKey/medium"
    result = CliRunner().invoke(app, ["make", name, "--size", "700"])
    assert result.exit_code == 0, result.output
    data = load_minari("metarl/four_rooms_key/medium-700-s0-v2")
    assert len(data) == 700 and data.card.env_id == "metarl/FourRoomsKey-v0"
    assert (data.layout.obs_dim, data.layout.action_dim) == (3, 2)
    assert "75 %" in data.card.policy and "acceptance" not in data.card.figures


def test_observations_are_points_of_the_square():
    obs = episodes(FourRooms, "expert")[0].observations
    plane = FourRooms().plane(obs)
    np.testing.assert_array_equal(plane.x, obs[:, 0])
    np.testing.assert_array_equal(plane.y, obs[:, 1])
    assert (plane.x_name, plane.y_name) == ("x", "y")
