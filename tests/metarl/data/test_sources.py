"""The `data:` block: contradictions, draws and missing data."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, ValidationError

from metarl import config
from metarl.data import Card, DataSource, load, pack, sources
from metarl.data.files import export_file
from metarl.data.mixing import concatenate
from metarl.data.recipes import make_dataset
from metarl.data.sources import Part
from metarl.errors import ConfigError, DataError, DatasetUnavailable
from metarl.training import streams
from metarl.training.setup import prepare


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
        (DataSource(), r"data.guide: give exactly one of `recipe`, `minari`, `file`, `gild` and `mix`"),
        (DataSource(recipe="pendulum/medium", mix=(Part(recipe="pendulum/expert"),)), r"data.guide: give exactly one"),
        (DataSource(recipe="pendulum/medium", file="rows.npz"), r"data.guide: give exactly one"),
        (DataSource(recipe="pendulum/medium", minari="foo/bar-v0"), r"data.guide: give exactly one of"),
        (DataSource(minari="foo/bar-v0", size=400), r"data.guide.size: only `recipe` can have `size`"),
        (DataSource(minari="foo/bar-v0", seed=1), r"data.guide.seed: only `recipe` can have `seed`"),
        (DataSource(recipe="pendulum/medium", tuples=3, episodes=1), r"data.guide: give only one of `tuples`"),
        (
            DataSource(recipe="pendulum/expert", size=400, top=0.5, tuples=3, episodes=1),
            r"data.guide: give only one of `tuples` and `episodes`; `top` can stand beside either",
        ),
        (
            DataSource(recipe="pendulum/expert", size=400, top=0.5, tuples=201),
            r"data.guide.tuples: .*201 transitions .* 200 are there",
        ),
        (
            DataSource(recipe="pendulum/expert", size=400, top=0.5, episodes=2),
            r"data.guide.episodes: .*2 episodes .* 1 are there",
        ),
        (
            DataSource(mix=(Part(recipe="pendulum/expert", size=400, tuples=9),), top=0.5),
            r"data.guide.top: .* holds single transitions .* no returns to choose by; give `top` to",
        ),
        (DataSource(recipe="pendulum/medium", remote=True), r"data.guide.remote: only `minari` can have `remote`"),
        (
            DataSource(recipe="pendulum/medium", env="Pendulum-v1"),
            r"data.guide.env: only `file` and `gild` can have `env`",
        ),
        (DataSource(recipe="pendulum/expert", size=400, top=0.0), r"data.guide.top: .*above 0 and at most 1, not 0.0"),
        (DataSource(recipe="pendulum/expert", size=400, top=1.5), r"data.guide.top: .*above 0 and at most 1, not 1.5"),
        (DataSource(recipe="pendulum/expert", size=400, top=0.4), r"data.guide.top: .*200 rows.* 160; ask for 0.5"),
        (DataSource(mix=()), r"data.guide.mix: name at least one source"),
        (DataSource(mix=(Part(recipe="pendulum/expert", size=400), Part())), r"data.guide.mix\[1\]: give exactly one"),
        (
            DataSource(mix=(Part(recipe="pendulum/expert", size=400, tuples=401),)),
            r"data.guide.mix\[0\].tuples: .*401 transitions",
        ),
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
        (
            DataSource(minari="mujoco/hopper/expert-v0"),
            r"^data.train.minari: .*run: metarl data import mujoco/hopper/exp",
        ),
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


def test_the_top_share_is_whole_episodes_best_first_and_stays_within():
    made = make_dataset("pendulum/medium", 4000).transitions  # 20 episodes of 200
    top = load(DataSource(recipe="pendulum/medium", size=4000, top=0.19), generator(), "train")
    best = sorted(made.returns().tolist(), reverse=True)
    assert top.returns().tolist() == best[:3] and top.episode_lengths().tolist() == [200] * 3
    assert top.card.figures["drawn"] == "best 3 episodes of 20, within 0.19 of the rows"
    assert top.card.returns["min"] == best[2] and top.card.sha256 != made.card.sha256
    for share, episodes in ((0.1, 2), (0.3, 6), (0.35, 7), (1.0, 20)):  # 0.35 * 20 is not quite 7
        assert made.top(share).episodes == episodes


@pytest.mark.parametrize(
    ("selection", "drawn", "told"),
    [
        ({"tuples": 50}, lambda best: best.sample_tuples(50, generator(3)), "50 random transitions of 600"),
        ({"episodes": 2}, lambda best: best.sample_episodes(2, generator(3)), "2 random episodes of 3"),
    ],
)
def test_parts_are_drawn_from_the_top_share(selection, drawn, told):
    made = make_dataset("pendulum/medium", 4000).transitions  # 20 episodes of 200
    found = load(DataSource(recipe="pendulum/medium", size=4000, top=0.19, **selection), generator(3), "guide")
    assert torch.equal(found.rows, drawn(made.top(0.19)).rows)
    best = {round(value, 3) for value in sorted(made.returns().tolist(), reverse=True)[:3]}
    if "episodes" in selection:
        assert {round(value, 3) for value in found.returns().tolist()} < best
    kept = made.top(0.19).rows[:, :4]  # obs and action; the last column is set in a tuple
    assert all((kept == row).all(1).any() for row in found.rows[:, :4])
    assert found.card.figures["drawn"] == f"{told}, from best 3 episodes of 20, within 0.19 of the rows"


def test_the_first_episode_too_long_for_the_share_ends_it():
    lengths, rewards = (4, 5, 1), (9.0, 1.0, 0.0)  # of 10 rows: the best has 4, the next would make 9
    starts = np.concatenate([[0], np.cumsum(lengths)])
    zeros = np.zeros((10, 1))
    reward = np.repeat(np.array(rewards) / lengths, lengths)
    card = Card(source="test", dataset_id="tests/top-v0")
    flags = {"terminated": zeros[:, 0], "truncated": zeros[:, 0]}
    data = pack(obs=zeros, action=zeros, reward=reward, next_obs=zeros, **flags, episode_starts=starts, card=card)
    assert data.top(0.5).episode_lengths().tolist() == [4]  # and not the last one too, which would fit
    assert data.top(0.9).episode_lengths().tolist() == [4, 5]


def test_a_mixture_is_its_parts_in_order_each_with_its_card():
    expert, medium = (make_dataset(f"pendulum/{level}", 1000).transitions for level in ("expert", "medium"))
    parts = [{"recipe": "pendulum/expert", "size": 1000, "episodes": 2}, {"recipe": "pendulum/medium", "size": 1000}]
    mixed = load(DataSource(mix=parts), generator(1), "train")
    drawn = expert.sample_episodes(2, generator(1))
    assert torch.equal(mixed.rows, torch.cat([drawn.rows, medium.rows]))
    assert mixed.episode_lengths().tolist() == [200] * 7
    assert mixed.card.figures["parts"][0] == {"transitions": 400, **drawn.card.to_dict()}
    assert mixed.card.figures["parts"][1]["sha256"] == medium.card.sha256
    assert mixed.card.env_spec == expert.card.env_spec and mixed.card.source == "mix"
    assert mixed.card.returns["mean"] == pytest.approx(torch.cat([drawn.returns(), medium.returns()]).mean().item())
    tuples = load(DataSource(mix=[{**parts[0], "episodes": None, "tuples": 5}, parts[1]]), generator(1), "train")
    assert tuples.episodes == 10 and tuples.card.returns == {}
    some = load(DataSource(mix=parts, tuples=30), generator(1), "train")
    assert len(some) == 30 and some.card.figures["parts"] == mixed.card.figures["parts"]


def test_parts_of_two_environments_do_not_mix(write):
    make_dataset("pendulum/expert", 400)
    write()
    with pytest.raises(DataError, match=r"data.train.mix: part 1 \('tests/counting-v0'\) has sizes .*\(2, 1\), part 0"):
        load(
            DataSource(mix=[{"recipe": "pendulum/expert", "size": 400}, {"minari": "tests/counting-v0"}]),
            generator(),
            "train",
        )
    one = make_dataset("pendulum/expert", 400).transitions
    other = dataclasses.replace(one, card=dataclasses.replace(one.card, env_id="Pendulum-v2"))
    with pytest.raises(DataError, match=r"has environment Pendulum-v2, part 0 .* Pendulum-v1"):
        concatenate([one, other])


def test_a_configuration_builds_files_and_mixtures(tmp_path):
    export_file(make_dataset("pendulum/medium", 1000).transitions, tmp_path / "rows.npz")
    (tmp_path / "bc.yaml").write_text(
        "algorithm: bc\n"
        "data:\n"
        "  train: {file: rows.npz, top: 0.4}\n"
        "  guide: {mix: [{file: rows.npz, tuples: 3}, {recipe: pendulum/medium, size: 1000, episodes: 1}], tuples: 9}\n"
    )
    experiment = config.load(tmp_path / "bc.yaml")
    loaded = {role: load(one, generator(), role, folder=tmp_path) for role, one in experiment.data.items()}
    assert loaded["train"].episodes == 2 and len(loaded["guide"]) == 9
    assert {experiment.data["guide"]: 1}[experiment.data["guide"]] == 1  # suites use them as keys
    again = config.build(experiment.resolved, "again")
    assert again.data == experiment.data and again.hash == experiment.hash
    (tmp_path / "bad.yaml").write_text("algorithm: bc\ndata: {train: {mix: [{recipee: pendulum/medium}]}}\n")
    with pytest.raises(ConfigError, match=r"unknown key 'data\.train\.mix\[0\]\.recipee'.*Did you mean 'recipe'"):
        config.load(tmp_path / "bad.yaml")


def test_a_guide_can_be_the_best_of_the_training_data(tmp_path):
    made = make_dataset("pendulum/medium", 4000).transitions
    (tmp_path / "own.yaml").write_text(
        "algorithm: bc\n"
        "data:\n"
        "  train: {recipe: pendulum/medium, size: 4000}\n"
        "  guide: {mix: ['${data.train}'], top: 0.1, tuples: 20}\n"
    )
    entry = config.load(tmp_path / "own.yaml").data["guide"]
    found = load(entry, generator(5), "guide")
    assert torch.equal(found.rows, made.top(0.1).sample_tuples(20, generator(5)).rows)
    assert found.card.figures["drawn"].endswith("from best 2 episodes of 20, within 0.1 of the rows")
    (tmp_path / "mixed.yaml").write_text(
        "algorithm: bc\n"
        "data:\n"
        "  train: {mix: [{recipe: pendulum/medium, size: 4000}]}\n"
        "  guide: {mix: '${data.train.mix}', top: 0.1, tuples: 20}\n"
    )
    same = load(config.load(tmp_path / "mixed.yaml").data["guide"], generator(5), "guide")
    assert torch.equal(same.rows, found.rows)


def test_expert_tuples_in_the_training_data(tmp_path):
    """One entry named twice: each role draws from it with a generator of its own, as it is told to."""
    medium, expert = (make_dataset(f"pendulum/{level}", 1000).transitions for level in ("medium", "expert"))
    (tmp_path / "mixed.yaml").write_text(
        "algorithm: {name: td3_bc, hidden: [4], batch_size: 8}\n"
        "objective: {name: gorl, batch_size: 4}\n"
        "data:\n"
        "  train: {mix: [{recipe: pendulum/medium, size: 1000}, '${data.guide}']}\n"
        "  guide: {recipe: pendulum/expert, size: 1000, tuples: 200}\n"
        "device: cpu\n"
    )
    ready = prepare(config.load(tmp_path / "mixed.yaml"), 0)
    train, guide = ready.data["train"], ready.data["guide"]
    assert (len(train), len(guide)) == (1200, 200) and train.episodes == 5 + 200
    assert torch.equal(train.rows[:1000], medium.rows)
    mixed = expert.sample_tuples(200, streams.generator(0, "data", "train"))
    assert torch.equal(train.rows[1000:], mixed.rows)
    assert torch.equal(guide.rows, expert.sample_tuples(200, streams.generator(0, "data", "guide")).rows)
    shared = (train.rows[1000:, None] == guide.rows[None]).all(-1).any(1).sum()
    assert 0 < shared < 200  # some of the 1,000 are drawn by both
    drawn = train.card.figures["parts"][1]["figures"]["drawn"]
    assert drawn == guide.card.figures["drawn"] == "200 random transitions of 1000"


def test_only_remote_downloads_and_only_what_is_missing(monkeypatch, write):
    asked = []
    monkeypatch.setattr(sources, "download", lambda dataset_id: asked.append(write(dataset_id)))
    entry = DataSource(minari="tests/counting-v0", remote=True)
    with pytest.raises(DatasetUnavailable, match="run: metarl data import tests/counting-v0"):
        load(DataSource(minari="tests/counting-v0"), generator(), "train")
    assert asked == []
    first, second = (load(entry, generator(), "train") for _ in range(2))
    assert asked == ["tests/counting-v0"] and torch.equal(first.rows, second.rows)


def test_a_recipe_beside_the_yaml_is_found(tmp_path):
    (tmp_path / "own.py").write_text(
        "from metarl.data.recipes.pendulum import Pendulum\nclass Own(Pendulum):\n    name = 'own'\n"
    )
    make_dataset("own:Own/expert", 200, folder=tmp_path)
    entry = DataSource(recipe="own:Own/expert", size=200)
    assert len(load(entry, generator(), "train", folder=tmp_path)) == 200
