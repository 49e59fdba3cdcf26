"""A step changes nothing that it was given, keeps no graph, and grows no memory."""

from __future__ import annotations

import gc
import hashlib
from pathlib import Path

import pytest
import torch
from torch.utils._pytree import tree_leaves

from algorithms.td3_bc import TD3BC
from metarl import adam, momentum, sgd
from metarl.bilevel.state import TrainState, finite
from objectives.gorl import GORL, GuidingNet

BASE = {"hidden": (6,), "batch_size": 8, "critic_optimizer": adam(1e-2)}


@pytest.fixture
def gorl(assemble):
    def build(virtual=None, backend="native", steps=1, actor=None):
        objective = GORL(
            every=2,
            net=GuidingNet((4,)),
            optimizer=adam(1e-2),
            virtual=virtual,
            backend=backend,
            steps=steps,
            batch_size=4,
        )
        return assemble(TD3BC(actor_optimizer=actor or adam(1e-2), **BASE), objective)

    return build


def digest(nest) -> str:
    """The hash of every tensor's bytes, in order."""
    sha = hashlib.sha256()
    for leaf in tree_leaves(nest):
        sha.update(leaf.detach().contiguous().numpy().tobytes())
    return sha.hexdigest()


@pytest.mark.parametrize(
    ("virtual", "backend", "actor"),
    [
        (None, "native", None),
        (None, "torchopt", None),
        (None, "higher", momentum(1e-2)),
        (sgd(1e-2), "native", None),
        (sgd(1e-2), "torchopt", None),
        (sgd(1e-2), "higher", None),
    ],
)
@pytest.mark.parametrize("steps", [1, 3])
def test_neither_an_estimate_nor_a_step_touches_the_state(gorl, draw, virtual, backend, actor, steps):
    learner = gorl(virtual, backend, steps, actor)
    state, batches = learner.init(torch.float64), draw(learner)
    state, _ = learner.step(state, batches, learner.due(2))
    before, batch_before, templates = digest(state), digest(batches), digest(parameters(learner))
    for update in learner.updates.values():
        update.gradient(update, state, batches)
        assert digest(state) == before, update.name
    new, _ = learner.step(state, batches, learner.due(2))
    assert digest(state) == before and digest(batches) == batch_before
    assert digest(parameters(learner)) == templates
    assert digest(new) != before
    again, _ = learner.step(state, batches, learner.due(2))
    assert digest(again) == digest(new)
    assert not any(leaf.requires_grad for leaf in tree_leaves((state, new)))


def parameters(learner):
    return [dict(m.named_parameters()) for m in learner.modules.values()]


def test_metrics_and_estimates_hold_no_graph(gorl, draw):
    learner = gorl()
    state, batches = learner.init(), draw(learner, dtype=torch.float32)
    _, metrics = learner.step(state, batches, learner.due(2))
    update = learner.updates["guiding_network"]
    estimate = update.gradient(update, state, batches)
    assert not any(leaf.requires_grad for leaf in tree_leaves((metrics, tuple(estimate))))
    assert all(value.dim() == 0 for value in metrics.values())


def resident() -> int:
    """Bytes of this process that lie in memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_two_thousand_outer_steps_grow_no_memory(gorl, draw):
    learner = gorl()
    state, batches = learner.init(), draw(learner, dtype=torch.float32)
    due = {"guiding_network", "actor"}
    for _ in range(200):
        state, _ = learner.step(state, batches, due)
    before = resident()
    for _ in range(2000):
        state, _ = learner.step(state, batches, due)
    assert resident() - before < 2 * 2**20


def test_finite_reads_every_group():
    tree = {"a": {"x": torch.ones(2)}, "b": {"y": torch.tensor([1.0, float("nan")])}, "c": {"z": torch.ones(1)}}
    opt = {"a": (torch.zeros(1),), "c": {"nu": torch.tensor(float("inf"))}}
    assert finite(TrainState(tree, opt, {})) == {"a": True, "b": False, "c": False}
