"""Suites: merging, the product of axes, and mistakes that fail before anything runs."""

import pytest

from benchmarks.running import availability, suite
from metarl.component import overlay
from metarl.errors import ConfigError, DatasetUnavailable
from metarl.training.folder import RunFolder


def edit(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    return file


def test_a_component_of_another_name_replaces_settings_and_all():
    base = {"algorithm": {"name": "td3_bc", "alpha": 1, "actor_optimizer": {"name": "adam", "lr": 1, "eps": 2}}}
    assert overlay(base, {"algorithm": {"name": "bc"}}) == {"algorithm": {"name": "bc"}}
    assert overlay(base, {"algorithm": "bc"}) == {"algorithm": {"name": "bc"}}
    assert overlay(base, {"algorithm": {"alpha": 3}})["algorithm"]["alpha"] == 3
    assert overlay(base, {"algorithm": {"name": "td3_bc", "tau": 3}})["algorithm"]["alpha"] == 1
    inner = overlay(base, {"algorithm": {"actor_optimizer": {"name": "sgd", "lr": 5}}})["algorithm"]
    assert inner["actor_optimizer"] == {"name": "sgd", "lr": 5} and inner["alpha"] == 1
    assert overlay({"objective": {"name": "gorl"}}, {"objective": None})["objective"] is None
    assert overlay({"data": {"train": {"size": 5}}}, {"data": {"train": {"recipe": "r"}}})["data"] == {
        "train": {"size": 5, "recipe": "r"}
    }


def test_cells_are_the_product_of_the_axes(suite_file):
    text = suite_file.read_text().replace("seeds: [0, 1]", "")
    suite_file.write_text(text + "  precision:\n    single: {}\n    double: {precision: float64}\nseeds: [3]\n")
    loaded = suite.load(suite_file)
    assert len(loaded.cells) == 3 * 1 * 2 and loaded.seeds == (3,)
    assert [c.labels["precision"] for c in loaded.cells[:2]] == ["single", "double"]
    assert [c.experiment.precision for c in loaded.cells[:2]] == ["float32", "float64"]
    assert loaded.cells[2].slug == "td3-bc-gorl--pendulum--single"
    assert len({c.experiment.folder for c in loaded.cells}) == 6


def test_overrides_reach_every_cell_and_seeds_the_suite(suite_file):
    loaded = suite.load(suite_file, ["steps=7", "evaluation.every=7", "seeds=[5]", "name=other"])
    assert loaded.seeds == (5,) and loaded.name == "other"
    assert {c.experiment.steps for c in loaded.cells} == {7}
    assert {c.experiment.evaluation.every for c in loaded.cells} == {7}


def test_the_resolved_suite_is_the_same_suite(suite_file, tmp_path):
    from metarl.config import to_yaml

    loaded = suite.load(suite_file, ["steps=7", "algorithm.batch_size=4"])
    (tmp_path / "again.yaml").write_text(to_yaml(loaded.resolved))
    again = suite.load(tmp_path / "again.yaml")
    assert [c.experiment.resolved for c in again.cells] == [c.experiment.resolved for c in loaded.cells]


def test_a_base_may_be_a_file(suite_file, tmp_path):
    (tmp_path / "base.yaml").write_text("name: ignored\nsteps: 9\nseeds: [8]\n")
    lines = suite_file.read_text().split("\n")
    head = [line for line in lines if not line.startswith(("base:", "  steps", "  device", "  evaluation", "seeds"))]
    suite_file.write_text("base: base.yaml\n" + "\n".join(head))
    loaded = suite.load(suite_file)
    assert loaded.seeds == (8,) and loaded.cells[0].experiment.steps == 9
    assert loaded.cells[0].experiment.name == "bc--pendulum"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("seeds:", "seds:", ["unknown key 'seds'", "Did you mean 'seeds'?"]),
        ("BC: {algorithm: {", "BC: {algoritm: {", ["axes.method.BC", "Did you mean 'algorithm'?"]),
        ("hidden: [8], batch_size: 16}}", "hiden: [8]}}", ["method 'BC'", "algorithm.hiden", "Did you mean 'hidden'?"]),
        ("name: gorl", "name: gorll", ["method 'TD3+BC + GORL'", "Did you mean 'gorl'?"]),
        ("  steps: 20", "  stps: 20", ["base", "Did you mean 'steps'?"]),
        ("broken: {", "broken: {seeds: [4], ", ["axes.method.broken", "'seeds' belongs to the whole suite"]),
        ("broken:", '"BC ":', ["share the file name bc--pendulum"]),
        ("seeds: [0, 1]", "seeds: [0, 0]", ["seeds must be different"]),
        ("name: small", "name: a/b", ["names a folder"]),
        ("  dataset:", "  dataset: {}\n  other:", ["axes.dataset has no labels"]),
        ("axes:", "axes: [", ["not readable YAML"]),
    ],
)
def test_a_mistake_is_named_before_anything_runs(suite_file, old, new, words):
    edit(suite_file, old, new)
    with pytest.raises(ConfigError) as raised:
        suite.load(suite_file)
    text = str(raised.value)
    assert str(suite_file) in text and "\n" not in text
    for word in words:
        assert word in text


def test_argument_mistakes(suite_file):
    with pytest.raises(ConfigError, match="not of the form key=value"):
        suite.load(suite_file, ["steps"])
    with pytest.raises(ConfigError, match="Did you mean 'steps'"):
        suite.load(suite_file, ["stps=3"])
    with pytest.raises(ConfigError, match="Did you mean 'demo'"):
        suite.find("dmo")
    with pytest.raises(ConfigError, match="no suite file"):
        suite.find("nowhere/suite.yaml")


def test_all_missing_data_is_named_in_one_error(suite_file):
    edit(suite_file, "size: 600", "size: 800")
    with pytest.raises(DatasetUnavailable) as raised:
        availability.fitted(suite.load(suite_file))
    assert "metarl data make pendulum/medium --size 800" in str(raised.value)
    assert "metarl data make pendulum/expert --size 800" in str(raised.value)


def test_parts_that_do_not_fit_are_named_with_their_cell(suite_file):
    edit(suite_file, "broken: {", "broken: {objective: gorl, ")
    with pytest.raises(ConfigError, match=r"broken · pendulum.*exposes no policy"):
        availability.fitted(suite.load(suite_file))


def test_a_learner_that_needs_no_guide_has_none_in_its_hash(suite_file):
    with_guide = availability.fitted(suite.load(suite_file))
    edit(suite_file, "        guide: {recipe: pendulum/expert, size: 600, tuples: 50}\n", "")
    edit(suite_file, "      objective: {name: gorl, preset: quick, batch_size: 5}\n", "")
    without = availability.fitted(suite.load(suite_file))
    folders = [RunFolder.of(s.cells[0].experiment, 0, suite_file.parent) for s in (with_guide, without)]
    assert folders[0] == folders[1]
    assert set(with_guide.cells[1].experiment.data) == {"train", "guide"}


@pytest.mark.parametrize("name", sorted(file.stem for file in suite.SHIPPED.glob("*.yaml")))
def test_shipped_suites_build(name):
    assert suite.load(suite.find(name)).cells
