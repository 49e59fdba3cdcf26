import pytest
import torch

from metarl.config import build
from metarl.errors import ConfigError
from metarl.training import watching
from metarl.training.setup import prepare

EXPERIMENT = {
    "algorithm": {"name": "td3_bc", "hidden": [8], "batch_size": 16},
    "objective": {"name": "gorl", "batch_size": 5},
    "data": {
        "train": {"recipe": "pendulum/medium", "size": 1000},
        "guide": {"recipe": "pendulum/expert", "size": 1000, "tuples": 50},
        "other": {"recipe": "pendulum/expert", "size": 1000, "tuples": 37},
    },
    "steps": 4,
    "evaluation": {"every": 2, "episodes": 1},
}


def _setup(**changes):
    return prepare(build({**EXPERIMENT, **changes}, "here"), 0)


def test_means_are_those_of_all_rows_at_once():
    setup = _setup(watch=["other"])
    batches, tree = setup.streams.batches(1), setup.start.tree
    found = watching.terms(setup.learner, tree, setup.watched["other"], batches)
    batch = setup.watched["other"].layout.split(setup.watched["other"].rows)
    assert len(batch["obs"]) == 37  # two batches of 16 and one of 5 that is filled up
    with torch.no_grad():
        action = setup.learner.policy.action(tree, batch["obs"], {})
        constraint = (action - batch["action"]).square().mean(-1)
        degree = setup.learner.probes["guiding_network"].curve(tree, constraint)
    assert found["constraint"] == pytest.approx(float(constraint.mean()), rel=1e-6)
    assert found["guiding_network"] == pytest.approx(float(degree.mean()), rel=1e-6)


def test_rows_are_normalised_by_the_training_data():
    setup = _setup(watch=["other"])
    raw = setup.data["other"].layout.split(setup.data["other"].rows)["obs"]
    seen = setup.watched["other"].layout.split(setup.watched["other"].rows)["obs"]
    assert torch.equal(seen, setup.statistics(raw))


def test_only_watched_data_enters_the_hash():
    plain, watched = build(EXPERIMENT, "here"), build({**EXPERIMENT, "watch": ["other"]}, "here")
    assert "watch" not in plain.resolved and watched.resolved["watch"] == ["other"]
    assert plain.hash != watched.hash


def test_mistakes_are_named():
    with pytest.raises(ConfigError, match=r"watch names 'othr', which is no entry of data.*other"):
        build({**EXPERIMENT, "watch": ["othr"]}, "here")
    with pytest.raises(ConfigError, match="this algorithm exposes none"):
        _setup(algorithm={"name": "bc", "hidden": [8]}, objective=None, watch=["other"])
