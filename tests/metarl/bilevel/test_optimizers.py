"""metarl's optimisers: the step against torch.optim, its derivative against finite differences."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn.functional import one_hot

from metarl import (
    AdamState,
    MomentumState,
    RMSpropState,
    Update,
    adam,
    adamw,
    export_state,
    import_state,
    momentum,
    rmsprop,
    sgd,
)
from metarl.bilevel.state import TrainState, optimizer_step
from metarl.bilevel.virtual import virtual_step

CASES = {
    "sgd": (sgd(0.1), torch.optim.SGD, {"lr": 0.1}),
    "sgd-decay": (sgd(0.1, weight_decay=0.2), torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.2}),
    "momentum": (momentum(0.1, 0.8), torch.optim.SGD, {"lr": 0.1, "momentum": 0.8}),
    "momentum-decay": (
        momentum(0.1, 0.8, weight_decay=0.2),
        torch.optim.SGD,
        {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.2},
    ),
    "nesterov": (
        momentum(0.1, 0.8, nesterov=True),
        torch.optim.SGD,
        {"lr": 0.1, "momentum": 0.8, "nesterov": True},
    ),
    "nesterov-decay": (
        momentum(0.1, 0.8, nesterov=True, weight_decay=0.2),
        torch.optim.SGD,
        {"lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 0.2},
    ),
    "adam": (adam(0.1), torch.optim.Adam, {"lr": 0.1}),
    "adam-decay": (adam(0.1, weight_decay=0.2), torch.optim.Adam, {"lr": 0.1, "weight_decay": 0.2}),
    "adam-settings": (
        adam(0.1, b1=0.5, b2=0.7, eps=0.01),
        torch.optim.Adam,
        {"lr": 0.1, "betas": (0.5, 0.7), "eps": 0.01},
    ),
    "adam-no-first-moment": (adam(0.1, b1=0.0), torch.optim.Adam, {"lr": 0.1, "betas": (0.0, 0.999)}),
    "adamw": (adamw(0.1, weight_decay=0.2), torch.optim.AdamW, {"lr": 0.1, "weight_decay": 0.2}),
    "adamw-default": (adamw(0.1), torch.optim.AdamW, {"lr": 0.1}),
    "rmsprop": (rmsprop(0.1), torch.optim.RMSprop, {"lr": 0.1}),
    "rmsprop-settings": (
        rmsprop(0.1, alpha=0.7, eps=0.01, weight_decay=0.2),
        torch.optim.RMSprop,
        {"lr": 0.1, "alpha": 0.7, "eps": 0.01, "weight_decay": 0.2},
    ),
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request):
    return request.param


def start(dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    return {
        "weight": torch.randn(4, 3, generator=g, dtype=dtype),
        "bias": torch.randn(3, generator=g, dtype=dtype),
    }


def loss(params, step):
    """A loss whose gradient depends on the parameters and on the step."""
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(step)).to(params["bias"].dtype)
    return torch.tanh(x @ params["weight"] + params["bias"]).square().sum()


def gradient(params, step):
    leaves = {k: v.detach().requires_grad_() for k, v in params.items()}
    return dict(zip(leaves, torch.autograd.grad(loss(leaves, step), list(leaves.values())), strict=True))


def live_step(live, params, step):
    for name, g in gradient(params, step).items():
        params[name].grad = g
    live.step()


def walk(optimizer, params, state, steps):
    for step in steps:
        params, state = optimizer_step(optimizer, params, gradient(params, step), state)
    return params, state


def test_twenty_steps_and_their_state_equal_torch_optim(case, apart):
    optimizer, kind, settings = case
    live_params = start()
    live = kind(live_params.values(), **settings)
    for step in range(20):
        live_step(live, live_params, step)
    params, state = walk(optimizer, start(), optimizer.init(start()), range(20))
    assert apart(params, live_params) < 1e-12
    theirs = {name: live.state[p] for name, p in live_params.items()}
    if isinstance(state, MomentumState):
        assert apart(state.trace, {k: s["momentum_buffer"] for k, s in theirs.items()}) < 1e-12
    if isinstance(state, AdamState):
        assert apart(state.mu, {k: s["exp_avg"] for k, s in theirs.items()}) < 1e-12
        assert apart(state.nu, {k: s["exp_avg_sq"] for k, s in theirs.items()}) < 1e-12
    if isinstance(state, RMSpropState):
        assert apart(state.nu, {k: s["square_avg"] for k, s in theirs.items()}) < 1e-12
    if isinstance(state, (AdamState, RMSpropState)):
        assert state.count == 20 and state.count.dtype == torch.float64 and state.count.dim() == 0


def test_virtual_step_equals_a_live_optimizer_after_twenty_warm_steps(case, apart):
    _, kind, settings = case
    params = start()
    live = kind(params.values(), **settings)
    for step in range(20):
        live_step(live, params, step)
    optimizer, opt = import_state(live, params)
    update = Update("u", "net", lambda tree, batches: loss(tree["net"], 20), optimizer)
    state = TrainState({"net": {k: v.clone() for k, v in params.items()}}, {"net": opt}, {})
    virtual = virtual_step(update, {"net": optimizer}, state, {})
    live_step(live, params, 20)
    assert apart(virtual.tree["net"], params) < 1e-12


def test_float32_step_stays_close_to_torch_optim(case, apart):
    optimizer, kind, settings = case
    live_params = start(torch.float32)
    live = kind(live_params.values(), **settings)
    for step in range(20):
        live_step(live, live_params, step)
    params, _ = walk(optimizer, start(torch.float32), optimizer.init(start(torch.float32)), range(20))
    assert params["weight"].dtype == torch.float32
    assert apart(params, live_params) < 1e-4


def test_import_then_both_continue_identically(case, apart):
    _, kind, settings = case
    params = start()
    live = kind(reversed(params.values()), **settings)  # the order that `live` holds them in is its own
    for step in range(7):
        live_step(live, params, step)
    optimizer, state = import_state(live, params)
    ours, state = walk(optimizer, {k: v.clone() for k, v in params.items()}, state, range(7, 12))
    for step in range(7, 12):
        live_step(live, params, step)
    assert apart(ours, params) < 1e-12


def test_import_of_a_cold_optimizer_starts_where_it_starts(case, apart):
    _, kind, settings = case
    params = start()
    live = kind(params.values(), **settings)
    optimizer, state = import_state(live, params)
    ours, _ = walk(optimizer, start(), state, range(3))
    for step in range(3):
        live_step(live, params, step)
    assert apart(ours, params) < 1e-12


@pytest.mark.parametrize("warm", [0, 7])
def test_export_then_both_continue_identically(case, apart, warm):
    optimizer, kind, _ = case
    params, state = walk(optimizer, start(), optimizer.init(start()), range(warm))
    live_params = {k: v.clone() for k, v in params.items()}
    live = export_state(optimizer, live_params, state)
    assert type(live) is kind
    params, state = walk(optimizer, params, state, range(warm, warm + 5))
    for step in range(warm, warm + 5):
        live_step(live, live_params, step)
    assert apart(params, live_params) < 1e-12


def test_round_trip_returns_the_same_optimizer_and_state(case, apart):
    optimizer, _, _ = case
    params, state = walk(optimizer, start(), optimizer.init(start()), range(7))
    live = export_state(optimizer, params, state)
    again, imported = import_state(live, params)
    assert (again.name, again.hparams) == (optimizer.name, optimizer.hparams)
    assert apart(imported, state) == 0
    for theirs in live.state.values():  # the export owns its memory
        for value in theirs.values():
            value.zero_()
    if isinstance(state, (MomentumState, AdamState, RMSpropState)):
        assert all(value.abs().sum() > 0 for value in state[0].values())


@pytest.mark.parametrize(
    ("build", "word"),
    [
        (lambda p: torch.optim.Adam(p, amsgrad=True), "amsgrad"),
        (lambda p: torch.optim.AdamW(p, amsgrad=True), "amsgrad"),
        (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, dampening=0.1), "dampening"),
        (lambda p: torch.optim.Adam(p, maximize=True), "maximize"),
        (lambda p: torch.optim.RMSprop(p, centered=True), "centered"),
        (lambda p: torch.optim.RMSprop(p, momentum=0.9), "momentum"),
        (lambda p: torch.optim.NAdam(p), "NAdam"),
        (lambda p: torch.optim.Adam([{"params": [q]} for q in p]), "param_groups"),
        (lambda p: torch.optim.Adam(list(p)[:1]), "exactly the tensors"),
    ],
)
def test_import_refuses_what_has_no_counterpart(build, word):
    params = start()
    with pytest.raises(ValueError, match=word):
        import_state(build(params.values()), params)


def test_import_refuses_uneven_step_counts():
    params = start()
    live = torch.optim.Adam(params.values())
    params["bias"].grad = torch.ones(3, dtype=torch.float64)
    live.step()
    with pytest.raises(ValueError, match="different numbers of steps"):
        import_state(live, params)


def test_export_refuses_a_foreign_optimizer():
    import torchopt

    foreign = torchopt.rmsprop(0.1)
    with pytest.raises(ValueError, match=r"no torch\.optim counterpart"):
        export_state(foreign, start(), foreign.init(start()))


@pytest.mark.parametrize("build", [sgd, momentum, adam, rmsprop])
def test_weight_decay_without_parameters_is_an_error(build):
    optimizer = build(0.1, weight_decay=0.1)
    with pytest.raises(ValueError, match="weight_decay needs params"):
        optimizer.update(start(), optimizer.init(start()))
    with pytest.raises(ValueError, match="adamw needs params"):
        adamw(0.1).update(start(), adamw(0.1).init(start()))


def test_step_is_differentiable_in_gradient_parameters_state_and_rate(case):
    """gradcheck of two warm steps, in everything that a hypergradient can flow through."""
    optimizer, _, settings = case
    build = {"sgd": sgd, "momentum": momentum, "adam": adam, "adamw": adamw, "rmsprop": rmsprop}[optimizer.name]
    rest = {k: v for k, v in optimizer.hparams.items() if k != "lr"}
    params, state = walk(optimizer, start(), optimizer.init(start()), range(6))
    floats = [x for part in state if isinstance(part, dict) for x in part.values()]
    rate = torch.tensor(settings["lr"], dtype=torch.float64)
    names = list(params)

    def steps(*flat):
        lr, p, g, s = flat[0], flat[1:3], flat[3:5], list(flat[5:])
        p, g = dict(zip(names, p, strict=True)), dict(zip(names, g, strict=True))
        opt = type(state)(*({k: s.pop(0) for k in names} if isinstance(x, dict) else x for x in state))
        for _ in range(2):
            p, opt = optimizer_step(build(lr, **rest), p, g, opt)
            g = {k: v + p[k].square() for k, v in g.items()}
        return tuple(p.values())

    inputs = [rate, *params.values(), *gradient(params, 6).values(), *floats]
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    assert gradcheck(steps, inputs, rtol=1e-5, atol=1e-8)
    slopes = torch.autograd.grad(sum(x.sum() for x in steps(*inputs)), inputs[:5])
    assert min(slope.abs().max() for slope in slopes) > 1e-5  # nothing passes by being zero


def test_step_is_differentiable_in_every_setting(case):
    """Learned betas, momentum, eps and decay: gradcheck of two warm steps, eagerly and under vmap."""
    optimizer, _, _ = case
    build = {"sgd": sgd, "momentum": momentum, "adam": adam, "adamw": adamw, "rmsprop": rmsprop}[optimizer.name]
    learned = {k: v for k, v in optimizer.hparams.items() if isinstance(v, float) and v}
    fixed = {k: v for k, v in optimizer.hparams.items() if k not in learned}
    params, state = walk(optimizer, start(), optimizer.init(start()), range(6))

    def steps(*settings):
        p, opt = params, state
        for step in (6, 7):
            made = build(**dict(zip(learned, settings, strict=True)), **fixed)
            p, opt = optimizer_step(made, p, {k: step * torch.sin(v) for k, v in p.items()}, opt)
        return tuple(p.values())

    settings = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in learned.values()]
    assert gradcheck(steps, settings, rtol=1e-4, atol=1e-9)
    stacked = [torch.stack([s.detach(), s.detach()]) for s in settings]
    for alone, together in zip(steps(*settings), torch.vmap(steps)(*stacked), strict=True):
        assert torch.allclose(together[1], alone, rtol=1e-12)


def test_adam_derivative_where_the_gradient_has_always_been_zero():
    """At m = v = g = 0 the step is -lr (1 - b1) g / (bias1 eps) to first order; no NaN from the square root."""
    optimizer = adam(0.1, eps=1e-3)
    params = {"x": torch.ones(2, dtype=torch.float64)}
    state = AdamState(
        {"x": torch.zeros(2, dtype=torch.float64)},
        {"x": torch.zeros(2, dtype=torch.float64)},
        torch.tensor(4.0, dtype=torch.float64),
    )
    g = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    new, _ = optimizer_step(optimizer, params, {"x": g}, state)
    (slope,) = torch.autograd.grad((new["x"] * one_hot(torch.tensor(0), 2)).sum(), g)
    assert torch.equal(new["x"], params["x"])
    assert abs(slope[0] - -0.1 * 0.1 / (1 - 0.9**5) / 1e-3) < 1e-10 and slope[1] == 0


def test_rmsprop_derivative_where_the_gradient_has_always_been_zero():
    """At v = g = 0 the step is -lr g / eps to first order; no NaN from the square root."""
    optimizer = rmsprop(0.1, eps=1e-3)
    params = {"x": torch.ones(2, dtype=torch.float64)}
    g = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    new, _ = optimizer_step(optimizer, params, {"x": g}, optimizer.init(params))
    (slope,) = torch.autograd.grad(new["x"].sum(), g)
    assert torch.allclose(slope, torch.full_like(slope, -0.1 / 1e-3), rtol=1e-12)


def test_settings_are_readable_for_exports_and_messages():
    optimizer = adamw(3e-4, b1=0.8)
    assert optimizer.name == "adamw" and optimizer.adaptive
    assert optimizer.hparams == {"lr": 3e-4, "b1": 0.8, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.01}
    assert repr(sgd(0.1)) == "sgd(lr=0.1, weight_decay=0.0)"
    assert not sgd(0.1).adaptive and not momentum(0.1).adaptive


@pytest.mark.parametrize("build", [sgd, momentum, adam, adamw, rmsprop])
def test_a_negative_rate_is_refused(build):
    with pytest.raises(ValueError, match=r"lr must be 0 or more, not -0\.1"):
        build(-0.1)


def test_update_leaves_its_inputs_untouched(case):
    optimizer, _, _ = case
    params, state = walk(optimizer, start(), optimizer.init(start()), range(3))
    grads = gradient(params, 3)
    nests = [params, grads, *(part for part in state if isinstance(part, dict))]
    before = [{k: v.clone() for k, v in nest.items()} for nest in nests]
    optimizer_step(optimizer, params, grads, state)
    for nest, old in zip(nests, before, strict=True):
        assert all(torch.equal(nest[k], old[k]) for k in nest)


OVERWRITING = {
    "sgd": sgd(0.1),
    "sgd-decay": sgd(0.1, weight_decay=0.2),
    "adam": adam(0.1),
    "adam-settings": adam(0.1, b1=0.5, b2=0.7, eps=0.01, weight_decay=0.2),
    "adamw": adamw(0.1, weight_decay=0.2),
}


@pytest.mark.parametrize("factors", [None, [1.0] * 15, [0.25, 1.0, 0.0, 0.6, 0.9] * 3], ids=["none", "ones", "some"])
@pytest.mark.parametrize("optimizer", OVERWRITING.values(), ids=OVERWRITING)
def test_overwriting_times_a_factor_equals_the_pure_step(apart, optimizer, factors):
    pure, pure_state = start(), optimizer.init(start())
    params, state = start(), optimizer.init(start())
    for step in range(15):
        factor = None if factors is None else torch.tensor(factors[step], dtype=torch.float64)
        updates, pure_state = optimizer.update(gradient(pure, step), pure_state, params=pure)
        pure = {name: p + (1 if factor is None else factor) * updates[name] for name, p in pure.items()}
        optimizer.overwrite(params, gradient(params, step), state, factor)
    assert apart(params, pure) < 1e-12 and apart(tuple(state), tuple(pure_state)) < 1e-12
    assert apart(params, start()) > 0.01


def test_what_does_not_overwrite():
    for optimizer in (momentum(0.1), rmsprop(0.1), adam(torch.tensor(0.1)), adam(0.1, eps=0.0)):
        assert optimizer.overwrite is None
    assert all(optimizer.overwrite is not None for optimizer in OVERWRITING.values())
