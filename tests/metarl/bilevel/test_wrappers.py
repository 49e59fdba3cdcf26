"""Clipping and schedules: the step against torch's own, the derivative against finite differences."""

from __future__ import annotations

import pytest
import torch
import torchopt
from torch.autograd import gradcheck

from metarl import (
    ScheduledState,
    Update,
    adam,
    adamw,
    clip_by_global_norm,
    cosine_decay,
    export_state,
    linear_decay,
    momentum,
    rmsprop,
    sgd,
)
from metarl.bilevel import backends
from metarl.bilevel.state import TrainState, optimizer_step
from metarl.component import component, plain_component
from metarl.errors import ConfigError
from metarl.training.stepping import stacked, unstacked


def start():
    g = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=g, dtype=torch.float64) for name, shape in (("w", (4, 3)), ("b", (3,)))}


def gradient(params, step):
    return {k: (step + 1) * torch.sin(v) for k, v in params.items()}


def walk(optimizer, steps):
    params = start()
    state = optimizer.init(params)
    for step in range(steps):
        params, state = optimizer_step(optimizer, params, gradient(params, step), state)
    return params, state


def live_walk(steps, max_norm=None, schedule=None, lr=0.1):
    params = {k: v.requires_grad_() for k, v in start().items()}
    live = torch.optim.Adam(params.values(), lr)
    scheduler = schedule(live) if schedule else None
    for step in range(steps):
        for k, g in gradient(params, step).items():
            params[k].grad = g.detach()
        if max_norm:
            torch.nn.utils.clip_grad_norm_(list(params.values()), max_norm)
        live.step()
        if scheduler:
            scheduler.step()
    return {k: v.detach() for k, v in params.items()}


@pytest.mark.parametrize("max_norm", [0.5, 8.0, 1e3])
def test_clipped_steps_equal_torchs(apart, max_norm):
    ours, _ = walk(clip_by_global_norm(adam(0.1), max_norm), 10)
    assert apart(ours, live_walk(10, max_norm)) < 1e-12


@pytest.mark.parametrize("final", [0.0, 0.2])
def test_cosine_decay_equals_torchs(apart, final):
    def schedule(live):
        return torch.optim.lr_scheduler.CosineAnnealingLR(live, T_max=12, eta_min=0.1 * final)

    ours, state = walk(cosine_decay(adam(0.1), steps=12, final=final), 12)
    assert apart(ours, live_walk(12, schedule=schedule)) < 1e-12
    assert isinstance(state, ScheduledState) and state.count == 12


def test_linear_decay_with_warmup_equals_a_lambda(apart):
    def factor(t):
        return (t + 1) / 3 if t < 3 else 1 - 0.9 * min(1, (t - 3) / 7)

    ours, _ = walk(linear_decay(adam(0.1), steps=10, warmup=3, final=0.1), 14)
    theirs = live_walk(14, schedule=lambda live: torch.optim.lr_scheduler.LambdaLR(live, factor))
    assert apart(ours, theirs) < 1e-12


@pytest.mark.parametrize(
    "wrap",
    [
        lambda o: clip_by_global_norm(o, 0.5),
        lambda o: clip_by_global_norm(o, 1e3),
        lambda o: cosine_decay(o, 10, warmup=2),
        lambda o: linear_decay(clip_by_global_norm(o, 0.5), 10),
    ],
    ids=["clipped", "not-clipped", "cosine", "both"],
)
def test_two_warm_steps_are_differentiable(wrap):
    """In gradients, parameters and rate; the clipped norm is a part of the graph."""
    params, state = walk(wrap(adam(0.1)), 5)
    names = list(params)

    def steps(lr, *flat):
        p, g = dict(zip(names, flat[:2], strict=True)), dict(zip(names, flat[2:], strict=True))
        opt = state
        for _ in range(2):
            p, opt = optimizer_step(wrap(adam(lr)), p, g, opt)
            g = {k: v + p[k].square() for k, v in g.items()}
        return tuple(p.values())

    inputs = [torch.tensor(0.1, dtype=torch.float64), *params.values(), *gradient(params, 5).values()]
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    assert gradcheck(steps, inputs, rtol=1e-5, atol=1e-8)
    slopes = torch.autograd.grad(sum(x.sum() for x in steps(*inputs)), inputs)
    assert min(slope.abs().max() for slope in slopes) > 1e-4


def test_a_zero_gradient_has_a_finite_derivative():
    g = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = clip_by_global_norm(sgd(0.1), 1.0)
    new, _ = optimizer_step(optimizer, {"x": torch.ones(3, dtype=torch.float64)}, {"x": g}, optimizer.init({"x": g}))
    (slope,) = torch.autograd.grad(new["x"].sum(), g)
    assert torch.allclose(slope, torch.full_like(slope, -0.1), rtol=1e-12)


def test_yaml_nests_wrappers_and_prints_them_back():
    node = {
        "name": "cosine_decay",
        "steps": 100,
        "optimizer": {"name": "clip_by_global_norm", "max_norm": 1.0, "optimizer": {"name": "adam", "lr": 0.1}},
    }
    optimizer, plain = component("metarl.optimizers", node, "test", "optimizer")
    assert repr(optimizer).startswith("cosine_decay(optimizer=clip_by_global_norm(optimizer=adam(lr=0.1")
    assert optimizer.adaptive and plain == plain_component(optimizer)
    again, _ = component("metarl.optimizers", plain, "test", "optimizer")
    assert repr(again) == repr(optimizer)
    with pytest.raises(ConfigError, match=r"'optimizer\.optimizer' is missing"):
        component("metarl.optimizers", {"name": "clip_by_global_norm", "max_norm": 1.0}, "test", "optimizer")
    with pytest.raises(ConfigError, match=r"optimizer\.optimizer\.momentun"):
        component(
            "metarl.optimizers",
            {"name": "linear_decay", "steps": 9, "optimizer": {"name": "momentum", "lr": 0.1, "momentun": 1}},
            "test",
            "optimizer",
        )


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="max_norm must be positive"):
        clip_by_global_norm(sgd(0.1), 0.0)
    with pytest.raises(ValueError, match=r"warmup must lie in 0\.\.steps - 1"):
        cosine_decay(sgd(0.1), steps=5, warmup=5)
    with pytest.raises(ValueError, match=r"clip_by_global_norm has no torch\.optim counterpart"):
        optimizer = clip_by_global_norm(adam(0.1), 1.0)
        export_state(optimizer, start(), optimizer.init(start()))


@pytest.mark.parametrize("backend", ["torchopt", "higher"])
def test_backends_refuse_what_they_cannot_wrap(backend):
    optimizer = clip_by_global_norm(sgd(0.1), 1.0)
    update = Update("net", "net", lambda tree, batches: tree["net"]["w"].square().sum(), optimizer)
    state = TrainState({"net": start()}, {"net": optimizer.init(start())}, {})
    with pytest.raises(ConfigError, match="clip_by_global_norm"):
        backends.roll(backend, (update,), {"net": optimizer}, state, [{}])


def test_a_wrapped_torchopt_optimizer_is_still_looked_into():
    wrong = cosine_decay(torchopt.sgd(0.1, momentum=0.9), 10)
    with pytest.raises(ConfigError, match="keeps a flag outside its state"):
        backends.refuse_hidden_state(wrong)


# -- steps that overwrite --------------------------------------------------------------------------------------

INNER = {
    "adam": lambda: adam(0.1),
    "adam-decay": lambda: adam(0.1, weight_decay=0.2),
    "adamw": lambda: adamw(0.1, weight_decay=0.2),
    "sgd": lambda: sgd(0.1),
    "sgd-decay": lambda: sgd(0.1, weight_decay=0.2),
}
SCHEDULES = {
    "cosine": lambda o: cosine_decay(o, 40),
    "cosine-warmup-final": lambda o: cosine_decay(o, 10, warmup=4, final=0.2),  # ends before the 15 steps do
    "cosine-to-zero": lambda o: cosine_decay(o, 10),
    "linear-warmup": lambda o: linear_decay(o, 30, warmup=4),
    "nested": lambda o: cosine_decay(linear_decay(o, 20, warmup=3, final=0.5), 25, warmup=2),
    "thrice": lambda o: linear_decay(cosine_decay(linear_decay(o, 20), 25, warmup=2), 30),
}


def overwritten(optimizer, params, state, steps):
    for step in range(steps):
        optimizer.overwrite(params, gradient(params, step), state)
    return params, state


@pytest.fixture(params=[(i, w) for i in INNER for w in SCHEDULES], ids="-".join)
def scheduled(request):
    inner, wrap = request.param
    return SCHEDULES[wrap](INNER[inner]())


def test_overwriting_equals_the_pure_step(apart, scheduled):
    pure, pure_state = walk(scheduled, 15)
    params, state = start(), scheduled.init(start())
    ours, _ = overwritten(scheduled, params, state, 15)
    assert all(ours[name] is params[name] for name in ours)
    assert apart(ours, pure) < 1e-12
    while isinstance(state, ScheduledState):  # counts and moments too, at every depth
        assert state.count == pure_state.count == 15 and state.count.dtype == torch.float64
        state, pure_state = state.inner, pure_state.inner
    assert apart(tuple(state), tuple(pure_state)) < 1e-12
    assert apart(ours, start()) > 0.01


def test_overwriting_in_a_stack_equals_every_seed_alone(apart, scheduled):
    states = [scheduled.init(start()) for _ in range(3)]
    seeds = [{name: (1 + i / 7) * value for name, value in start().items()} for i in range(3)]
    alone = [
        overwritten(scheduled, {k: v.clone() for k, v in params.items()}, scheduled.init(params), 15)
        for params in seeds
    ]
    together, state = overwritten(scheduled, stacked(seeds), stacked(states), 15)
    assert together["w"].shape == (3, 4, 3) and state.count.tolist() == [15, 15, 15]
    for i, (params, own) in enumerate(alone):
        assert apart(unstacked(together, i), params) < 1e-12
        assert apart(unstacked(state, i), own) < 1e-12
    assert apart(unstacked(together, 0), unstacked(together, 2)) > 1e-3


def test_a_schedule_goes_on_from_its_count(apart):
    """Eight pure steps, then seven that overwrite: as one walk."""
    optimizer = cosine_decay(adamw(0.1), 20, warmup=3)
    params, state = walk(optimizer, 8)
    for step in range(8, 15):
        optimizer.overwrite(params, gradient(params, step), state)
    assert apart(params, walk(optimizer, 15)[0]) < 1e-12 and state.count == 15


@pytest.mark.parametrize(
    "optimizer",
    [
        clip_by_global_norm(adam(0.1), 1.0),
        cosine_decay(clip_by_global_norm(adam(0.1), 1.0), 10),
        linear_decay(cosine_decay(clip_by_global_norm(sgd(0.1), 1.0), 10), 10),
        cosine_decay(momentum(0.1), 10),
        cosine_decay(rmsprop(0.1), 10),
        cosine_decay(adam(0.1, eps=0.0), 10),
        cosine_decay(adam(torch.tensor(0.1)), 10),
        cosine_decay(torchopt.adam(0.1), 10),
    ],
    ids=["clip", "around-clip", "deep", "momentum", "rmsprop", "eps-0", "learned", "torchopt"],
)
def test_a_schedule_overwrites_only_around_what_overwrites(optimizer):
    assert optimizer.overwrite is None
