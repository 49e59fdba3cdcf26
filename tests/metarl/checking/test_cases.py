"""Single checks on single cases: what they leave behind, and what must not deceive them."""

from pathlib import Path

import pytest
import torch

from algorithms.cql import CQL
from algorithms.td3_bc import TD3BC
from metarl import Learner, Update, registry, sgd
from metarl.checking import Plan
from metarl.checking.case import Case
from metarl.checking.gradient import gradient
from metarl.checking.purity import purity
from metarl.checking.running import apart, stacks
from metarl.checking.small import SMALL, make


@pytest.fixture
def case(beside: Path):
    """`case(name, seed=0)`: an objective of broken.py over the first algorithm that suits it."""
    return lambda name, seed=0: make(Plan({"name": f"broken:{name}"}, folder=beside), seed=seed)


def test_every_size_is_unlike_every_other(case):
    one = case("DeclaredNoise")
    sizes = [role.size for role in one.learner.roles.values()]
    assert len({*sizes, SMALL.obs_dim, SMALL.action_dim}) == len(sizes) + 2 == 4
    batches = one.batches()
    assert batches["noise"]["weight"].shape == (one.learner.roles["train"].size,)
    assert {0.0, 1.0} == set(batches["train"]["terminated"].tolist()) == set(batches["train"]["truncated"].tolist())


def test_batches_are_a_function_of_the_seed_and_the_draw(case):
    first, again, other = case("Sound"), case("Sound"), case("Sound", 1)
    assert apart(first.batches(), again.batches()) == 0
    assert apart(first.batches(), other.batches()) > 0.1 < apart(first.batches(), first.batches(1))
    assert first.batches(dtype=torch.float32)["guide"]["obs"].dtype == torch.float32


def test_warming_up_takes_real_steps(case):
    one = case("Sound")
    cold, warm = one.cold(), one.warm()
    assert float(warm.opt["actor"].count) == 10 and float(warm.opt["critic"].count) == 20
    assert apart(cold.tree, warm.tree) > 1e-3
    warm.tree["actor"]["net.layers.0.bias"].add_(1)
    assert apart(one.warm().tree, warm.tree) > 0.1  # each caller has its own copy


def test_a_network_that_a_loss_wrote_on_is_put_back(case):
    one = case("WritesTemplate")
    before = [p.detach().clone() for p in one.learner.modules["weight"].parameters()]
    (found,) = purity(one)
    assert "the template 'weight'" in found.problem and "broken.py:" in found.where
    assert all(torch.equal(p, b) for p, b in zip(one.learner.modules["weight"].parameters(), before, strict=True))


def test_a_kink_that_one_batch_happens_to_meet_is_no_fault(case):
    base = case("Sound")
    kink = base.batches(0)["train"]["reward"].mean()

    def loss(tree, batches):
        return (tree["p"]["x"] - batches["train"]["reward"].mean()).relu() + tree["p"]["x"]

    update = Update("p", "p", loss, sgd(0.0))
    roles = base.learner.roles
    learner = Learner({}, ((update,),), base.learner.act, tensors={"p": {"x": kink}}, roles=roles).ready()
    (found,) = gradient(Case("none", SMALL, learner, learner))
    assert found.status == "ok"


def test_unlike_numbers_when_stacked_are_a_failure(case):
    (found,) = stacks(case("Counts"), case("Counts", 1))
    assert found.status == "FAILED" and "no pure function" in found.problem


def test_apart():
    a = {"x": torch.tensor([1.0, 200.0]), "y": (torch.tensor(3.0),)}
    assert apart(a, a) == 0
    assert apart(a, {"x": torch.tensor([1.0, 100.0]), "y": (torch.tensor(3.0),)}) == 1
    assert apart({"x": torch.tensor(1e-15)}, {"x": torch.tensor(2e-15)}) < 1e-10
    assert apart({"x": torch.tensor(float("nan"))}, {"x": torch.tensor(1.0)}) == float("inf")
    assert apart({"x": torch.ones(2)}, {"x": torch.ones(3)}) == float("inf")


def test_objectives_are_attached_to_the_algorithm_that_asks_to_be_first(monkeypatch):
    """`check_first`, whatever its place in the alphabet; else the first by name."""
    plan = Plan({"name": "gorl", "every": 2})
    names = registry.names("metarl.algorithms")
    assert names.index("cql") < names.index("td3_bc")  # or it would come first anyway
    assert [name for name in names if getattr(registry.resolve("metarl.algorithms", name), "check_first", False)] == [
        "td3_bc"
    ]
    assert make(plan).algorithm == "td3_bc"
    monkeypatch.setattr(CQL, "check_first", True, raising=False)
    assert make(plan).algorithm == "cql"
    monkeypatch.setattr(TD3BC, "check_first", False)
    assert make(plan).algorithm == "cql"
    monkeypatch.setattr(CQL, "check_first", False)
    assert make(plan).algorithm == "awac"
    assert make(Plan({"name": "gorl", "every": 2}, "iql")).algorithm == "iql"
