"""One step, many ways to run it: the pure function, eager, recorded, compiled, stacked; fused and not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch.utils._pytree import tree_map
from torchopt.base import GradientTransformation

from algorithms.td3_bc import TD3BC
from metarl import (
    Estimate,
    Learner,
    Polyak,
    Track,
    Update,
    adam,
    adamw,
    clip_by_global_norm,
    cosine_decay,
    momentum,
    rmsprop,
    sgd,
)
from metarl.bilevel.compiling import has_compiler
from metarl.bilevel.recording import leaves, record
from metarl.errors import ConfigError
from metarl.training import stepping as stepping_module
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


COMPILED = pytest.mark.parametrize(  # two of the four: a compilation takes its time
    ("virtual", "dtype"),
    [(None, torch.float64), (sgd(1e-2), torch.float32)],
    ids=["carried-adam-float64", "sgd-float32"],
)


@pytest.mark.slow
@COMPILES
@COMPILED
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
@pytest.mark.parametrize("mode", ["eager", "recorded"])
def test_stacked_seeds_equal_seeds_alone(gorl, draw, apart, dtype, virtual, mode):
    check_stacked(gorl, draw, apart, dtype, virtual, mode)


@pytest.mark.slow
@COMPILES
@COMPILED
def test_stacked_and_compiled_seeds_equal_seeds_alone(gorl, draw, apart, dtype, virtual):
    check_stacked(gorl, draw, apart, dtype, virtual, "compiled")


def check_stacked(gorl, draw, apart, dtype, virtual, mode):
    """Three seeds in one program against the pure function of each."""
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


@COMPILES
@pytest.mark.skipif(not has_compiler(), reason="there is no C++ compiler")
@pytest.mark.parametrize("stack", [None, 2])
def test_a_small_step_compiled(apart, stack):
    """The C++ compiler in earnest, as often as the tests run."""
    learner = toy(adam(0.1))
    start = learner.init(torch.float64)
    stepping = Stepping(learner, stacked([start] * stack) if stack else start, "compiled", stack)
    state, x = start, torch.ones(7, 2, dtype=torch.float64)
    for _ in range(3):
        metrics = stepping({"train": {"x": torch.stack([x] * stack) if stack else x}}, learner.due(1))
        state, expected = learner.step(state, {"train": {"x": x}}, learner.due(1))
    ours, metrics = (unstacked(v, 1) if stack else v for v in (stepping.state, metrics))
    assert apart(ours.tree, state.tree) < 1e-10 and apart(ours.opt, state.opt) < 1e-10
    assert apart(metrics, expected) < 1e-10


class Previous(NamedTuple):
    """The state of an optimiser that remembers where it was."""

    params: dict


def with_memory(lr):
    """Heavy ball written with positions: its new state is the old parameters themselves."""

    def update(grads, state, *, params=None, inplace=False):
        return {k: 0.5 * (p - state.params[k]) - lr * grads[k] for k, p in params.items()}, Previous(dict(params))

    return GradientTransformation(lambda params: Previous({k: p.clone() for k, p in params.items()}), update)


@dataclass(frozen=True)
class Handed:
    """A gradient that is another group's parameter (times one)."""

    factor: float | None

    def __call__(self, update, state, batches):
        other = state.tree["rate"]["lr"]
        grads = {"w": other if self.factor is None else self.factor * other}
        return Estimate(None, grads, {"seen": 1.0 * state.tree["rate"]["lr"]})


ALIASING = {
    "optimiser state": Update("net", "net", lambda tree, _: (tree["net"]["w"] - 1).square().sum(), with_memory(0.1)),
    "gradient": Update("net", "net", None, sgd(0.1), Handed(None)),
    "gradient times one": Update("net", "net", None, sgd(0.1), Handed(1.0)),
}
MODES = pytest.mark.parametrize(
    "mode", ["eager", "recorded", pytest.param("compiled", marks=[pytest.mark.slow, COMPILES])]
)


@MODES
@pytest.mark.parametrize("stack", [None, 2])
@pytest.mark.parametrize("name", ALIASING)
def test_memory_of_the_state_that_is_handed_on_is_copied_in_time(name, stack, mode, apart):
    rate = Update("rate", "rate", lambda tree, _: (tree["rate"]["lr"] - 0.3).square(), sgd(0.1))
    learner = Learner(
        modules={},
        tensors={"net": {"w": torch.tensor(0.5)}, "rate": {"lr": torch.tensor(0.05)}},
        stages=((rate, ALIASING[name]),),
        act=lambda *_: None,
    ).ready()
    state = learner.init(torch.float64)
    stepping = Stepping(learner, stacked([state] * stack) if stack else state, mode, stack)
    seen, expected = [], []
    for _ in range(4):
        seen.append(stepping({}, learner.due(1)))
        state, metrics = learner.step(state, {}, learner.due(1))
        expected.append(metrics)
    ours, seen = (unstacked(v, 1) if stack else v for v in (stepping.state, seen))
    assert apart(ours.tree, state.tree) < 1e-12 and apart(ours.opt, state.opt) < 1e-12 and apart(seen, expected) < 1e-12


@pytest.mark.parametrize("mode", ["eager", "recorded"])
def test_columns_are_known_by_name(mode, apart):
    def loss(tree, batches):
        return ((tree["net"]["w"] * batches["train"]["x"]).sum() - batches["train"]["y"].sum()).square()

    learner = Learner(
        modules={},
        tensors={"net": {"w": torch.tensor([0.5, 1.0])}},
        stages=((Update("net", "net", loss, sgd(0.1)),),),
        act=lambda *_: None,
    ).ready()
    state = learner.init()
    stepping = Stepping(learner, state, mode)
    for names in ("xy", "yx"):
        batches = {"train": {name: torch.tensor([1.0, 2.0 if name == "x" else -3.0]) for name in names}}
        stepping(batches, learner.due(1))
        state, _ = learner.step(state, batches, learner.due(1))
    assert apart(stepping.state.tree, state.tree) < 1e-6


def test_what_cannot_be_overwritten_is_refused():
    class Counted(NamedTuple):
        count: int

    counted = GradientTransformation(
        lambda params: Counted(0), lambda grads, state, *, params=None, inplace=False: (grads, Counted(state.count + 1))
    )

    def learner(tensor, optimizer):
        update = Update("net", "net", None, optimizer, Track(lambda tree, _: {"w": tree["net"]["w"] + 1}))
        return Learner({}, ((update,),), lambda *_: None, tensors={"net": {"w": tensor}}).ready()

    one = learner(torch.ones(()), counted)
    with pytest.raises(ConfigError, match=r"optimiser of group 'net' keeps 0 in its state.*0-d tensors"):
        Stepping(one, one.init())
    two = learner(torch.ones((), dtype=torch.int64), sgd(1.0))
    with pytest.raises(ConfigError, match=r"update 'net' moves group 'net', whose 'w' is torch.int64"):
        Stepping(two, two.init())


def test_further_shapes_of_batches_run_eagerly_once_many_are_kept(monkeypatch):
    monkeypatch.setattr(stepping_module, "MOST", 2)
    said = []
    learner = toy(sgd(0.1))
    stepping = Stepping(learner, learner.init(), "recorded", say=said.append)
    monkeypatch.setattr(
        stepping,
        "_recorded",
        lambda batches, due, real=stepping._recorded: said.append("recorded") or real(batches, due),
    )
    for n in (1, 2, 3, 4, 1):
        stepping({"train": {"x": torch.ones(n, 2)}}, learner.due(1))
    assert said == ["recorded", "recorded", "batches came in 2 shapes; in further ones steps run eagerly"]
