"""Recipes: real interaction, the same bytes again, levels as documented, and datasets by name."""

from __future__ import annotations

import importlib.resources
import json
from collections import Counter

import gymnasium as gym
import minari
import numpy as np
import pytest

from metarl import registry
from metarl.data.recipes import datasets, find, load_recipe, make_dataset, recipe_dataset_id
from metarl.data.recipes.pendulum import MIXTURE, Controller, Pendulum
from metarl.errors import DataError, DatasetUnavailable

# Mean returns of 2,000 episodes each, standard errors 6.5 and 2.0.
RANDOM, EXPERT = -1229.3, -149.1


def mean_return(level: str, size: int = 20_000, seed: int = 0) -> float:
    return float(np.mean([episode.rewards.sum() for episode in Pendulum().make(level, size, seed)]))


# ---- Pendulum


@pytest.mark.parametrize("level", Pendulum.levels)
def test_episodes_replay_in_the_real_environment(level):
    env = gym.make("Pendulum-v1")
    for episode in Pendulum().make(level, 1000, seed=2):
        obs, _ = env.reset(seed=episode.seed)
        np.testing.assert_array_equal(episode.observations[0], obs)
        for t, action in enumerate(episode.actions):
            assert env.action_space.contains(action)
            obs, reward, terminated, truncated, _ = env.step(action)
            np.testing.assert_array_equal(episode.observations[t + 1], obs)
            assert episode.rewards[t] == reward
            assert (episode.terminations[t], episode.truncations[t]) == (terminated, truncated) == (False, t == 199)
        assert len(episode.actions) == 200
    env.close()


def test_the_levels_lie_where_they_should():
    assert mean_return("random") == pytest.approx(RANDOM, abs=100)
    assert mean_return("expert") == pytest.approx(EXPERT, abs=30)
    for seed in (0, 1):
        fraction = (mean_return("medium", seed=seed) - RANDOM) / (EXPERT - RANDOM)
        assert 0.3 <= fraction <= 0.5
    halves = 0.5 * (mean_return("medium") + EXPERT)
    assert mean_return("medium-expert") == pytest.approx(halves, abs=80)


def test_medium_is_a_fixed_mixture_of_good_and_bad():
    assert Counter(MIXTURE) == {"noisy": 5, "biased": 6, "weak": 2, "delayed": 4, "random": 3}
    made = [episode.behaviour for episode in Pendulum().make("medium", 4000, 0)]
    assert made == list(MIXTURE)
    both = [episode.behaviour for episode in Pendulum().make("medium-expert", 2000, 0)]
    assert both[1::2] == ["expert"] * 5 and both[0::2] == list(MIXTURE[:5])


def test_near_upright_the_mixtures_mean_action_is_worse_than_its_best():
    """What the level rests on: cloning sees a mean that holds less and leans, though good actions are there."""
    near = {"good": [], "all": []}
    for episode in Pendulum().make("medium", 20_000, 0):
        theta = np.arctan2(episode.observations[:-1, 1], episode.observations[:-1, 0])
        speed = episode.observations[:-1, 2]
        band = (theta > 0.1) & (theta < 0.4) & (speed > 0) & (speed < 2)  # falling: it must be pushed back
        near["all"].extend(episode.actions[band, 0])
        if episode.behaviour == "noisy":
            near["good"].extend(episode.actions[band, 0])
    assert len(near["good"]) > 20
    assert np.mean(near["good"]) < -1.0 < -0.5 < np.mean(near["all"])


def test_the_same_seed_gives_the_same_bytes():
    first = make_dataset("pendulum/medium", 1000, 5).transitions
    second = make_dataset("pendulum/medium", 1000, 5, force=True).transitions
    assert first.card == second.card and first.card.sha256
    other = make_dataset("pendulum/medium", 1000, 6).transitions
    assert other.card.sha256 != first.card.sha256
    levels = {level: make_dataset(f"pendulum/{level}", 1000, 5).transitions for level in Pendulum.levels}
    assert len({data.card.sha256 for data in levels.values()}) == 4
    starts = {data.obs[0, 2].item() for data in levels.values()}
    assert len(starts) == 4  # no two levels share their start states


def test_a_smaller_size_is_the_beginning_of_a_larger_one():
    large = list(Pendulum().make("medium", 2000, 1))
    for small, same in zip(Pendulum().make("medium", 600, 1), large, strict=False):
        np.testing.assert_array_equal(small.observations, same.observations)
        np.testing.assert_array_equal(small.actions, same.actions)


def test_a_delayed_controller_acts_on_old_observations():
    delayed = Controller(delay=3, noise=0.0).policy(np.random.default_rng(0))
    prompt = Controller(noise=0.0)
    rng = np.random.default_rng(1)
    seen = [np.array([np.cos(a), np.sin(a), w], np.float32) for a, w in rng.uniform(-1, 1, (10, 2))]
    for step, obs in enumerate(seen):
        wanted = np.clip(prompt.torque(seen[max(0, step - 3)]), -2, 2)
        assert delayed(step, obs)[0] == pytest.approx(wanted, rel=1e-6)


def test_the_default_size():
    made = make_dataset("pendulum/medium")
    assert len(made.transitions) == 20_000 and made.transitions.episodes == 100


# ---- by name


def test_a_made_dataset_is_a_plain_minari_dataset_with_a_card(minari_root):
    made = make_dataset("pendulum/medium", 1000, 4)
    assert made.dataset_id == "metarl/pendulum/medium-1000-s4-v1" and not made.existed
    dataset = minari.load_dataset(made.dataset_id)
    assert (dataset.total_episodes, dataset.total_steps) == (5, 1000)
    assert dataset[0].observations.shape == (201, 3)
    env = dataset.recover_environment()
    assert env.spec.max_episode_steps == 200
    env.close()
    assert list(minari.list_local_datasets()) == [made.dataset_id]

    card = json.loads((minari_root / made.dataset_id / "metarl_card.json").read_text())
    assert (card["source"], card["env_id"], card["seed"]) == ("recipe", "Pendulum-v1", 4)
    assert card["policy"] == Pendulum.levels["medium"]
    assert card["sha256"] == made.transitions.card.sha256
    assert card["returns"]["mean"] == pytest.approx(made.transitions.returns().mean().item())
    assert set(card["versions"]) == {"metarl", "python", "gymnasium", "minari", "numpy"}
    assert card["figures"]["recipe"] == "pendulum/medium" and card["figures"]["recipe_version"] == 1
    assert load_recipe("pendulum/medium", 1000, 4).card == made.transitions.card
    assert str(minari_root) not in json.dumps(card)


def test_what_is_there_is_left_alone_unless_forced():
    first = make_dataset("pendulum/random", 400)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pendulum, "make", lambda *args: pytest.fail("made again"))
        again = make_dataset("pendulum/random", 400)
    assert again.existed and again.transitions.card == first.transitions.card
    assert not make_dataset("pendulum/random", 400, force=True).existed


def test_every_episode_is_reported_once():
    seen = []
    make_dataset("pendulum/expert", 800, on_episode=seen.append)
    assert [len(episode.actions) for episode in seen] == [200] * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pendulun/medium",), r"there is no recipe called 'pendulun'. Did you mean 'pendulum'"),
        (("pendulum/medum",), r"'pendulum' has no level 'medum'. Did you mean 'medium'"),
        (("pendulum",), r"'pendulum' is no recipe; write <name>/<level>"),
        (("pendulum/medium", 300), r"size 300 is no multiple of 200 .*; try 400"),
        (("pendulum/medium", 0), r"size 0 is no multiple of 200 .*; try 200"),
        (("pendulum/medium", 400, -1), r"seed -1: a recipe's seed is 0 or more"),
    ],
)
def test_mistakes_are_one_line(minari_root, arguments, message):
    for attempt in (recipe_dataset_id, load_recipe, make_dataset):
        with pytest.raises(DataError, match=message) as raised:
            attempt(*arguments)
        assert "\n" not in str(raised.value)
    assert list(minari_root.iterdir()) == []


def test_an_unmade_dataset_names_the_command():
    with pytest.raises(DatasetUnavailable, match=r"run: metarl data make pendulum/medium --size 20000 --seed 0$"):
        load_recipe("pendulum/medium")


def test_a_recipe_in_a_file_beside_the_yaml(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from metarl.data.recipes.pendulum import Pendulum\n"
        "class Mine(Pendulum):\n    name = 'mine'\n    levels = {'random': 'mine'}\n    judged = ()\n"
    )
    made = make_dataset("mine:Mine/random", 200, folder=tmp_path)
    assert made.dataset_id == "metarl/mine/random-200-s0-v1"
    assert load_recipe("mine:Mine/random", 200, folder=tmp_path).card.policy == "mine"
    with pytest.raises(DatasetUnavailable, match="metarl data make mine:Mine/random --size 400"):
        load_recipe("mine:Mine/random", 400, folder=tmp_path)


# ---- acceptance figures


@pytest.fixture
def committed(tmp_path, monkeypatch):
    """`committed(entry)`: a package whose acceptance.json has this entry for pendulum/medium."""

    def commit(entry) -> None:
        (tmp_path / "acceptance.json").write_text(json.dumps({"pendulum/medium": entry} if entry else {}))
        monkeypatch.setattr(datasets, "files", lambda package: tmp_path)

    return commit


def test_the_card_says_on_what_the_acceptance_figures_were_measured(committed):
    committed(None)
    made = make_dataset("pendulum/medium", 400)
    assert made.transitions.card.figures["acceptance"] == {"status": "not measured"}
    entry = {"size": 400, "seed": 0, "version": 1, "sha256": made.transitions.card.sha256, "figures": {"bc": -900.0}}
    committed(entry)
    assert load_recipe("pendulum/medium", 400).card.figures["acceptance"] == {
        "status": "measured on these rows (size 400, seed 0, version 1)",
        "bc": -900.0,
    }
    other = make_dataset("pendulum/medium", 400, 1).transitions.card.figures["acceptance"]
    assert other["status"].startswith("measured on other rows (size 400, seed 0, version 1, sha256 ")
    assert "acceptance" not in make_dataset("pendulum/expert", 400).transitions.card.figures
    assert datasets.load_any(made.dataset_id).card == load_recipe("pendulum/medium", 400).card


def test_the_card_on_disk_has_the_figures_too(committed, minari_root):
    committed({"size": 20000, "seed": 0, "version": 1, "sha256": "0" * 64, "figures": {"bc": -900.0}})
    made = make_dataset("pendulum/medium", 400)
    card = json.loads((minari_root / made.dataset_id / "metarl_card.json").read_text())
    assert card["figures"]["acceptance"]["bc"] == -900.0
    assert card["figures"]["acceptance"] == made.transitions.card.figures["acceptance"]


def test_committed_figures_are_of_the_recipes_as_they_are():
    content = importlib.resources.files("metarl.data.recipes").joinpath("acceptance.json").read_text()
    for name, entry in json.loads(content).items():
        recipe, level = find(name)
        assert level in recipe.judged
        assert entry["version"] == recipe.version, "the recipe changed: measure again"
        assert set(entry) == {"size", "seed", "version", "sha256", "figures"}


def test_registered_recipes_have_distinct_names_and_sentences():
    for name in registry.names("metarl.recipes"):
        recipe = registry.resolve("metarl.recipes", name)()
        assert recipe.name == name and all(recipe.levels.values())
        assert set(recipe.judged) <= set(recipe.levels)
        assert recipe.env_spec().id == recipe.env_id
