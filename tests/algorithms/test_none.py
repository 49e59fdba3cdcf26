"""The empty learner: what it says of the data, and what becomes of it without an objective."""

from __future__ import annotations

import pytest
import torch

from algorithms.none import Nothing
from metarl import Rewards, config
from metarl.checking import Plan, check
from metarl.component import component
from metarl.data.recipes import make_dataset
from metarl.errors import ConfigError
from metarl.training.setup import prepare
from objectives.fixed import Fixed
from objectives.gild import GILD
from objectives.gorl import GORL
from objectives.meta_critic import MetaCritic
from objectives.por import POR
from objectives.rl_il import RLIL


def test_there_is_nothing_in_it(spec):
    learner = Nothing().build(spec, torch.Generator().manual_seed(0)).ready()
    assert (learner.modules, learner.tensors, learner.stages, learner.roles) == ({}, {}, (), {})
    assert (learner.noise, learner.policy, learner.span, learner.updates) == ({}, None, None, {})


def test_it_draws_no_number(spec):
    """So that the objective starts as it would by itself."""
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    Nothing().build(spec, generator)
    assert torch.equal(generator.get_state(), before)


def test_it_says_how_data_is_read(assemble):
    built, plain = component("metarl.algorithms", {"name": "none"}, "test.yaml", "algorithm")
    assert plain == {
        "name": "none",
        "normalize": False,
        "rewards": {"scale": 1.0, "shift": 0.0, "return_range": False},
    }
    assert (assemble(built, POR()).normalize, assemble(built, POR()).rewards) == (False, Rewards())
    node = {"name": "none", "normalize": True, "rewards": {"return_range": True}}
    built, _ = component("metarl.algorithms", node, "test.yaml", "algorithm")
    learner = assemble(built, POR())
    assert learner.normalize and learner.rewards == Rewards(return_range=True)


def test_alone_it_acts_not(spec):
    learner = Nothing().build(spec, torch.Generator().manual_seed(0))
    with pytest.raises(ConfigError, match="algorithm none cannot act; give an objective that brings a policy"):
        learner.act({}, torch.zeros(2, spec.obs_dim), None, None, True)


@pytest.mark.parametrize(
    "objective", [Fixed(0.5), GORL(), GILD(), MetaCritic(), RLIL()], ids=lambda o: type(o).__name__
)
def test_an_objective_that_needs_a_policy_says_so(assemble, objective):
    with pytest.raises(ConfigError, match="this algorithm exposes no policy improvement and constraint to hook on"):
        assemble(Nothing(), objective)


def test_metarl_check_says_that_an_objective_has_nothing_to_stand_on():
    with pytest.raises(ConfigError, match="objective fixed: this algorithm exposes no policy"):
        check(Plan({"name": "fixed"}, "none"))


def test_a_run_of_nothing_is_refused_before_it_begins(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    make_dataset("pendulum/medium", 200)
    raw = {"algorithm": "none", "data": {"train": {"recipe": "pendulum/medium", "size": 200}}, "steps": 10}
    with pytest.raises(ConfigError, match=r"^here: algorithm and objective have nothing to train; add an objective"):
        prepare(config.build(raw, "here"), 0)
