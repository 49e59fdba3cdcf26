"""One step, many ways to run it: the pure function, eager, recorded, compiled, stacked; fused and not."""

from __future__ import annotations

import pytest
import torch
from torch.utils._pytree import tree_map

from algorithms.td3_bc import TD3BC
from metarl import Learner, Polyak, Update, adam, adamw, clip_by_global_norm, cosine_decay, momentum, rmsprop, sgd
from metarl.bilevel.recording import leaves, record
from metarl.training.stepping import Stepping, stacked, unstacked
from objectives.gorl import GORL, GuidingNet

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}
STEPS = 100


@pytest.fixture
def gorl(assemble):
    """TD3+BC with GORL: critic every step, actor every 2nd, guiding network every 4th."""

    def build(virtual=None, seed=0, hidden=(16, 16), batch=24):
        base = TD3BC(hidden=hidden, batch_size=batch, actor_optimizer=adam(1e-3), critic_optimizer=adam(1e-3))
        objective = GORL(every=4, net=GuidingNet((8,)), optimizer=adam(1e-2), virtual=virtual, batch_size=6)
        return assemble(base, objective, seed=seed)

    return build


def reference(learner, state, draw, dtype, steps=STEPS, offset=0):
    """The pure function, step by step, with fresh batches; the guiding network is due in some and not in others."""
    seen = {}
    for i in range(1, steps + 1):
        state, metrics = learner.step(state, draw(learner, offset + i, dtype), learner.due(i))
        seen |= metrics
    return state, seen


def stepped(learner, state, draw, dtype, mode, steps=STEPS):
    stepping, seen = Stepping(learner, state, mode), {}
    for i in range(1, steps + 1):
        seen |= stepping(draw(learner, i, dtype), learner.due(i))
    return stepping.state, seen


def close(apart, ours, theirs, tolerance):
    (state, metrics), (expected, expected_metrics) = ours, theirs
    assert apart(state.tree, expected.tree) < tolerance
    assert apart(state.opt, expected.opt) < tolerance
    assert {k: v.item() for k, v in state.flags.items()} == {k: v.item() for k, v in expected.flags.items()}
    assert apart(metrics, expected_metrics) < 10 * tolerance  # a norm of differences loses a digit
    assert any(key.startswith("guiding_network/") for key in metrics)


VIRTUAL = pytest.mark.parametrize("virtual", [None, sgd(1e-2)], ids=["carried-adam", "sgd"])
DTYPE = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
COMPILES = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # PyTorch's


@VIRTUAL
@DTYPE
@pytest.mark.parametrize("mode", ["eager", "recorded"])
def test_a_hundred_steps_equal_those_of_the_pure_function(gorl, draw, apart, virtual, dtype, mode):
    learner = gorl(virtual)
    state = learner.init(dtype)
    before = tree_map(torch.clone, state)
    close(apart, stepped(learner, state, draw, dtype, mode), reference(learner, state, draw, dtype), TOLERANCE[dtype])
    assert apart(state, before) == 0  # the caller's own is left alone


@pytest.mark.slow
@COMPILES
@VIRTUAL
@DTYPE
def test_a_hundred_compiled_steps_equal_those_of_the_pure_function(gorl, draw, apart, virtual, dtype):
    learner = gorl(virtual)
    state = learner.init(dtype)
    ours = stepped(learner, state, draw, dtype, "compiled")
    close(apart, ours, reference(learner, state, draw, dtype), TOLERANCE[dtype])


@pytest.mark.parametrize("mode", ["eager", "recorded", pytest.param("compiled", marks=[pytest.mark.slow, COMPILES])])
def test_products_through_onednn_agree(gorl, draw, apart, mode, monkeypatch):
    """Layers wide enough for it, against PyTorch's own products."""
    learner = gorl(sgd(1e-2), hidden=(64, 64), batch=64)
    ours = stepped(learner, learner.init(), draw, torch.float32, mode, 20)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    plain = reference(learner, learner.init(), draw, torch.float32, 20)
    assert 0 < apart(ours[0].tree, plain[0].tree) < 1e-4


@VIRTUAL
def test_the_whole_step_fused_equals_the_step_as_it_stands(gorl, draw, apart, virtual):
    """Guiding update and policy step in one list: shared passes, reordered products; in float64 to 1e-10."""
    learner = gorl(virtual, hidden=(32, 32), batch=40)
    state, batches = learner.init(torch.float64), draw(learner, 4, torch.float64)
    due = learner.due(4)
    assert "guiding_network" in due

    def step(state, batches):
        return learner.step(state, batches, due)

    fused, plain = record(step, state, batches), record(step, state, batches, rewrite=False)
    inputs = leaves(state, batches)
    assert apart(plain(*inputs), step(state, batches)) < 1e-14
    assert apart(fused(*inputs), step(state, batches)) < 1e-10

    def work(recording):
        nodes = (n for n in recording.module.graph.nodes if str(n.target) in ("aten.mm.default", "aten.addmm.default"))
        return sum(n.args[-2].meta["val"].shape[1] * n.meta["val"].numel() for n in nodes)

    assert work(fused) < 0.9 * work(plain)


@VIRTUAL
@DTYPE
@pytest.mark.parametrize("mode", ["eager", "recorded", pytest.param("compiled", marks=[pytest.mark.slow, COMPILES])])
def test_stacked_seeds_equal_seeds_alone(gorl, draw, apart, dtype, virtual, mode):
    learners = [gorl(virtual, seed) for seed in range(3)]
    learner, states = learners[0], [other.init(dtype) for other in learners]
    alone = [reference(learner, s, draw, dtype, offset=1000 * i) for i, s in enumerate(states)]
    stepping, seen = Stepping(learner, stacked(states), mode, stack=3), {}
    for i in range(1, STEPS + 1):
        seen |= stepping(stacked([draw(learner, 1000 * k + i, dtype) for k in range(3)]), learner.due(i))
    for k, expected in enumerate(alone):
        close(apart, unstacked((stepping.state, seen), k), expected, TOLERANCE[dtype])
    assert apart(alone[0][0].tree, alone[1][0].tree) > 1e-3  # the seeds differ


def toy(optimizer, learned=False):
    """A learner of one group; with `learned`, its rate is a group that moves in the same stage."""

    def loss(tree, batches):
        return ((tree["net"]["w"] * batches["train"]["x"]).sum(-1) - 1).square().mean(), {"rate": tree["rate"]["lr"]}

    def of_tree(tree):
        return sgd(tree["rate"]["lr"])

    def rate_loss(tree, batches):
        return (tree["rate"]["lr"] - 0.3).square()

    return Learner(
        modules={},
        tensors={"net": {"w": torch.tensor([0.3, -0.2])}, "rate": {"lr": torch.tensor(0.05)}},
        stages=(
            (
                Update("net", "net", loss, of_tree if learned else optimizer),
                Update("rate", "rate", rate_loss, sgd(0.1)),
            ),
            (Update("target", "target", None, sgd(0.5), Polyak("net")),),
        ),
        act=lambda *_: None,
    ).ready()


OPTIMIZERS = {
    "sgd": sgd(0.1),
    "sgd-decay": sgd(0.1, weight_decay=0.1),
    "momentum": momentum(0.1),
    "adam": adam(0.1),
    "adam-decay": adam(0.1, weight_decay=0.1),
    "adam-no-eps": adam(0.1, eps=0.0),
    "adamw": adamw(0.1),
    "rmsprop": rmsprop(0.1),
    "clipped": clip_by_global_norm(adam(0.1), 0.1),
    "scheduled": cosine_decay(adam(0.1), 20),
}


@pytest.mark.parametrize("stack", [None, 2])
@pytest.mark.parametrize("mode", ["eager", "recorded"])
@pytest.mark.parametrize("name", [*OPTIMIZERS, "learned rate"])
def test_every_optimizer_overwrites_with_the_numbers_of_its_pure_step(name, mode, stack, apart):
    learner = toy(OPTIMIZERS.get(name), learned=name not in OPTIMIZERS)
    drawn = torch.randn(10, 2, 7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    start = learner.init(torch.float64)
    seen, expected = [], []
    stepping = Stepping(learner, stacked([start] * stack) if stack else start, mode, stack)
    states = [start] * (stack or 1)
    for x in drawn:
        seen.append(stepping({"train": {"x": x if stack else x[0]}}, learner.due(1)))
        states, metrics = zip(
            *(learner.step(s, {"train": {"x": x[i]}}, learner.due(1)) for i, s in enumerate(states)), strict=True
        )
        expected.append(metrics)
    for i, state in enumerate(states):
        ours, metrics = (unstacked(v, i) if stack else v for v in (stepping.state, seen))
        assert apart(ours.tree, state.tree) < 1e-10 and apart(ours.opt, state.opt) < 1e-10
        assert apart(metrics, [m[i] for m in expected]) < 1e-10  # the rate as it was when the step began


def test_gradients_that_are_views_are_not_misread(apart):
    """A linear loss has a gradient without memory of its own, which a fused step would read past."""
    learner = Learner(
        modules={},
        tensors={"net": {"w": torch.arange(6.0).view(2, 3), "v": torch.ones(3, 2)}},
        stages=(
            (Update("net", "net", lambda tree, _: tree["net"]["w"].sum() + tree["net"]["v"].t()[0].sum(), adam(0.1)),),
        ),
        act=lambda *_: None,
    ).ready()
    state = learner.init()
    stepping = Stepping(learner, state)
    for _ in range(3):
        stepping({}, learner.due(1))
        state, _ = learner.step(state, {}, learner.due(1))
    assert apart(stepping.state.tree, state.tree) < 1e-6
