"""The `data:` block: contradictions, draws and missing data."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, ValidationError

from metarl.data import DataSource, load
from metarl.data.recipes import make_dataset
from metarl.errors import DataError, DatasetUnavailable


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_omegaconf_takes_the_dataclass():
    schema = OmegaConf.structured(DataSource)
    merged = OmegaConf.merge(schema, {"recipe": "pendulum/medium", "size": 400, "tuples": 20})
    assert OmegaConf.to_object(merged) == DataSource(recipe="pendulum/medium", size=400, tuples=20)
    assert OmegaConf.to_object(schema) == DataSource()
    with pytest.raises(ConfigKeyError):
        OmegaConf.merge(schema, {"recipes": "pendulum/medium"})
    with pytest.raises(ValidationError):
        OmegaConf.merge(schema, {"size": "many"})
    assert all(field.metadata["help"] for field in dataclasses.fields(DataSource))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (DataSource(), r"data.guide: give exactly one of `recipe` and `minari`"),
        (DataSource(recipe="pendulum/medium", minari="foo/bar-v0"), r"data.guide: give exactly one of"),
        (DataSource(minari="foo/bar-v0", size=400), r"data.guide.size: only a recipe has a size"),
        (DataSource(minari="foo/bar-v0", seed=1), r"data.guide.seed: only a recipe has a seed"),
        (DataSource(recipe="pendulum/medium", tuples=3, episodes=1), r"data.guide: give `tuples` or `episodes`"),
        (DataSource(recipe="pendulum/medum"), r"data.guide.recipe: .*Did you mean 'medium'"),
        (DataSource(recipe="pendulun/medium"), r"data.guide.recipe: .*Did you mean 'pendulum'"),
        (DataSource(recipe="pendulum/medium", size=10), r"data.guide.recipe: .*size 10 is no multiple of 200"),
        (DataSource(minari="foo/bar"), r"data.guide.minari: 'foo/bar' is no Minari dataset id"),
        (
            DataSource(recipe="pendulum/expert", size=400, tuples=401),
            r"data.guide.tuples: .*401 transitions .* 400 are",
        ),
        (DataSource(recipe="pendulum/expert", size=400, tuples=0), r"data.guide.tuples: .*ask for 1 to 400"),
        (
            DataSource(recipe="pendulum/expert", size=400, episodes=3),
            r"data.guide.episodes: .*3 episodes .* 2 are there",
        ),
    ],
)
def test_mistakes_name_the_key(source, message):
    make_dataset("pendulum/expert", 400)
    with pytest.raises(DataError, match=message) as raised:
        load(source, generator(), "guide")
    assert "\n" not in str(raised.value) and not isinstance(raised.value, DatasetUnavailable)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            DataSource(recipe="pendulum/medium", size=400, seed=2),
            r"^data.train.recipe: .*run: metarl data make pendulum/medium --size 400 --seed 2$",
        ),
        (DataSource(minari="mujoco/hopper/expert-v0"), r"^data.train.minari: .*run: minari download mujoco/hopper/exp"),
    ],
)
def test_missing_data_names_the_key_and_the_command(source, message):
    with pytest.raises(DatasetUnavailable, match=message):
        load(source, generator(), "train")


def test_the_whole_dataset_costs_no_random_number():
    made = make_dataset("pendulum/expert", 400).transitions
    source = generator()
    before = source.get_state()
    for entry in (DataSource(recipe="pendulum/expert", size=400), DataSource(minari=made.card.dataset_id)):
        loaded = load(entry, source, "train")
        assert torch.equal(loaded.rows, made.rows)
    assert torch.equal(source.get_state(), before)


def test_parts_are_drawn_with_the_generator():
    made = make_dataset("pendulum/expert", 1000).transitions
    tuples = DataSource(recipe="pendulum/expert", size=1000, tuples=30)
    drawn = load(tuples, generator(1), "guide")
    assert torch.equal(drawn.rows, made.sample_tuples(30, generator(1)).rows) and drawn.episodes == 30
    assert torch.equal(drawn.rows, load(tuples, generator(1), "other").rows)
    assert not torch.equal(drawn.rows, load(tuples, generator(2), "guide").rows)
    episodes = load(DataSource(recipe="pendulum/expert", size=1000, episodes=2), generator(1), "demo")
    assert torch.equal(episodes.rows, made.sample_episodes(2, generator(1)).rows)
    assert episodes.episode_lengths().tolist() == [200, 200]


def test_a_recipe_beside_the_yaml_is_found(tmp_path):
    (tmp_path / "own.py").write_text(
        "from metarl.data.recipes.pendulum import Pendulum\nclass Own(Pendulum):\n    name = 'own'\n"
    )
    make_dataset("own:Own/expert", 200, folder=tmp_path)
    entry = DataSource(recipe="own:Own/expert", size=200)
    assert len(load(entry, generator(), "train", folder=tmp_path)) == 200
