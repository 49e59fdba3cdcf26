"""Recipes on MuJoCo: real interaction, the same bytes again, honest ends, levels as documented."""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from functools import cache

import gymnasium as gym
import minari
import numpy as np
import pytest

from metarl import registry
from metarl.data.minari import Episode
from metarl.data.recipes import find, make_dataset
from metarl.data.recipes.base import cut, evenly, first
from metarl.data.recipes.inverted_pendulum import MIXTURE
from metarl.envs.instantiate import instantiate
from metarl.errors import ConfigError

NAMES = ("inverted_pendulum", "pointmaze_umaze", "pointmaze_medium", "pointmaze_large", "hopper", "halfcheetah")
NAMES += ("walker2d",)
ALL = [f"{name}/{level}" for name in NAMES for level in registry.resolve("metarl.recipes", name).levels]


@cache
def made(recipe: str, size: int, seed: int = 0) -> list[Episode]:
    found, level = find(recipe)
    return list(found.make(level, size, seed))


def mean_return(recipe: str, size: int = 20_000, seed: int = 0) -> float:
    return float(np.mean([episode.rewards.sum() for episode in made(recipe, size, seed)[:-1]]))  # the last may be cut


# ---- every recipe


@pytest.mark.parametrize("recipe", ALL)
def test_episodes_replay_in_the_real_environment_and_end_as_it_says(recipe):
    found, level = find(recipe)
    pieces = found.name.startswith("pointmaze") and level == "medium"
    env = instantiate(found.env_spec())
    episodes = made(recipe, 1500, seed=2)
    assert sum(len(episode.rewards) for episode in episodes) == 1500
    for number, episode in enumerate(episodes):
        obs, _ = env.reset(seed=episode.seed)
        terminated = truncated = False
        for t, action in enumerate(episode.actions):
            assert not (terminated or truncated), "recorded beyond the environment's end"
            assert action.dtype == np.float32 and env.action_space.contains(action)
            assert_same(episode.observations, t, obs)
            obs, reward, terminated, truncated, _ = env.step(action)
            assert episode.rewards[t] == reward
            assert episode.terminations[t] == terminated
        assert_same(episode.observations, len(episode.actions), obs)
        assert not episode.truncations[:-1].any()
        half = recipe == "halfcheetah/medium-expert" and number == 0  # no whole episode of medium fits into 750 steps
        cut_here = pieces or half or number == len(episodes) - 1
        assert episode.truncations[-1] == (truncated or (cut_here and not terminated))
        assert episode.truncations[-1] or episode.terminations[-1]
    env.close()


def at(observations, t):
    """One observation of many."""
    return {k: part[t] for k, part in observations.items()} if isinstance(observations, dict) else observations[t]


def assert_same(observations, t, obs) -> None:
    if isinstance(obs, dict):
        assert set(observations) == set(obs)
        for key, part in obs.items():
            np.testing.assert_array_equal(observations[key][t], part)
    else:
        np.testing.assert_array_equal(observations[t], obs)


@pytest.mark.parametrize("recipe", ["inverted_pendulum/medium", "pointmaze_umaze/medium", "hopper/random"])
def test_the_same_seed_gives_the_same_bytes_on_disk(recipe, minari_root):
    first_made = make_dataset(recipe, 1000, 5)
    files = hashes(minari_root / first_made.dataset_id)
    again = make_dataset(recipe, 1000, 5, force=True)
    assert again.transitions.card == first_made.transitions.card and again.transitions.card.sha256
    assert hashes(minari_root / again.dataset_id) == files and len(files) >= 2
    other = make_dataset(recipe, 1000, 6)
    assert other.transitions.card.sha256 != again.transitions.card.sha256


def hashes(folder) -> dict[str, str]:
    """Of what Minari wrote."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / "data").iterdir()}


@pytest.mark.parametrize("recipe", ALL)
def test_levels_and_seeds_share_nothing(recipe):
    name = recipe.split("/")[0]
    seeds = [episode.seed for episode in made(recipe, 1500)]
    assert len(set(seeds)) == len(seeds)
    others = [r for r in ALL if r.split("/")[0] == name and r != recipe]
    for other in [(r, 0) for r in others] + [(recipe, 1)]:
        assert not set(seeds) & {episode.seed for episode in made(other[0], 1500, other[1])}


@pytest.mark.parametrize("recipe", ["inverted_pendulum/medium", "pointmaze_umaze/medium", "walker2d/random"])
def test_plain_minari_reads_it(recipe):
    done = make_dataset(recipe, 1000, 4)
    dataset = minari.load_dataset(done.dataset_id)
    assert (dataset.total_steps, dataset.total_episodes) == (1000, done.transitions.episodes)
    for ours, theirs in zip(made(recipe, 1000, 4), dataset.iterate_episodes(), strict=True):
        np.testing.assert_array_equal(ours.actions, theirs.actions)
        np.testing.assert_array_equal(ours.rewards, theirs.rewards)
        np.testing.assert_array_equal(ours.truncations, theirs.truncations)
        for t in range(len(ours.actions) + 1):
            assert_same(theirs.observations, t, at(ours.observations, t))
    env = dataset.recover_environment()
    assert env.spec.max_episode_steps == find(recipe)[0].env_spec().max_episode_steps
    assert env.spec.kwargs == find(recipe)[0].env_spec().kwargs
    env.close()
    versions = done.transitions.card.versions
    assert "mujoco" in versions and versions["gymnasium"] == gym.__version__


@pytest.mark.parametrize(
    ("recipe", "missing", "loaded"),
    [
        ("hopper/random", "mujoco", "gymnasium.envs.mujoco"),
        ("pointmaze_umaze/random", "gymnasium_robotics", "gymnasium_robotics"),
    ],
)
def test_a_missing_package_is_one_line_with_the_command(recipe, missing, loaded, minari_root, monkeypatch):
    for name in [name for name in sys.modules if name == loaded or name.startswith(f"{loaded}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigError, match=r"pip install 'metarl\[mujoco\]'") as raised:
        make_dataset(recipe, 100)
    assert "\n" not in str(raised.value) and list(minari_root.iterdir()) == []


# ---- sizes and mixtures of streams


def lengths(*values: int):
    for number, n in enumerate(values):
        last = np.arange(n) == n - 1
        yield Episode(np.arange(n + 1.0)[:, None], np.zeros((n, 1)), np.ones(n), last, last & False, seed=number)


def test_first_cuts_the_last_episode_and_truncates_it():
    episodes = list(first(10, lengths(4, 4, 4, 4)))
    assert [len(episode.rewards) for episode in episodes] == [4, 4, 2]
    assert [bool(episode.terminations[-1]) for episode in episodes] == [True, True, False]
    assert [bool(episode.truncations[-1]) for episode in episodes] == [False, False, True]
    assert episodes[-1].observations.ravel().tolist() == [0, 1, 2]
    assert [len(episode.rewards) for episode in first(8, lengths(4, 4, 4))] == [4, 4]


def test_cut_takes_one_observation_more_than_steps_of_every_part():
    whole = Episode({"a": np.arange(5), "b": np.arange(5)}, np.zeros(4), np.zeros(4), np.ones(4) > 2, np.ones(4) > 2)
    assert {key: len(part) for key, part in cut(whole, 2).observations.items()} == {"a": 3, "b": 3}


def test_evenly_balances_transitions_not_episodes():
    mixed = evenly(lengths(*[1] * 50), lengths(*[5] * 50))
    given = [len(next(mixed).rewards) for _ in range(8)]
    assert given == [1, 5, 1, 1, 1, 1, 1, 5]


# ---- InvertedPendulum


def test_the_levels_of_inverted_pendulum():
    random, expert = mean_return("inverted_pendulum/random", 5000), mean_return("inverted_pendulum/expert", 5000)
    assert random < 10 and expert == 1000
    for seed in (0, 1):
        place = (mean_return("inverted_pendulum/medium", seed=seed) - random) / (expert - random)
        assert 0.3 <= place <= 0.5
    behaviours = [episode.behaviour for episode in made("inverted_pendulum/medium", 20_000)]
    n = len(MIXTURE)
    assert (
        behaviours[:n] == list(MIXTURE)
        and Counter(MIXTURE) == {"biased": 16, "soft": 3, "random": 1}
        and behaviours[n:] == behaviours[: len(behaviours) - n]
    )


def test_medium_expert_has_as_many_transitions_of_either():
    episodes = made("inverted_pendulum/medium-expert", 20_000)
    expert = sum(len(episode.rewards) for episode in episodes if episode.behaviour == "expert")
    assert expert == pytest.approx(10_000, abs=1000)


# ---- Hopper, HalfCheetah, Walker2d


@pytest.mark.parametrize(("name", "low", "high"), [("hopper", 14, 21), ("halfcheetah", -340, -240), ("walker2d", 0, 5)])
def test_random_returns_are_those_of_uniform_actions(name, low, high):
    assert low < mean_return(f"{name}/random", 10_000) < high
