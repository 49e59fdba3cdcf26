"""Unrolled's options, each against a loop of virtual steps in plain torch."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.autograd import grad
from torch.nn.functional import softplus
from torch.utils._pytree import tree_map

from metarl import Learner, Role, Track, Unrolled, Update, adam, momentum, nn, sgd
from metarl.errors import ConfigError

N, STEPS = 8, 4
NAMES = ("layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias")


def errors(params, batch, noise=0.0):
    """Squared error per sample of a net with one hidden layer of tanh."""
    hidden = torch.tanh(batch["obs"] @ params["layers.0.weight"] + params["layers.0.bias"])
    return (hidden @ params["layers.1.weight"] + params["layers.1.bias"] - batch["action"] - noise).square().mean(-1)


def inner_loss(tree, batches):
    """Weighed errors: what the meta-parameters reach only through the inner loss."""
    each = errors(tree["net"], batches["train"], batches["noise"]["label"])
    return (softplus(tree["meta"]["logits"]) * each).mean()


def other_loss(tree, batches):
    return 0.5 * inner_loss(tree, batches) + errors(tree["net"], batches["demo"]).mean()


def outer_loss(tree, batches):
    """The validation error, and a direct path to the logits that no inner step hides."""
    return errors(tree["net"], batches["validation"]).mean() + 0.1 * tree["meta"]["logits"].square().mean()


def contrasted_loss(tree, batches, contrast):
    return -torch.tanh(outer_loss(contrast, batches) - outer_loss(tree, batches))


def rate(tree):
    return tree["meta"]["log_lr"].exp()


OPTIMIZERS = {
    "sgd": lambda tree: sgd(rate(tree), weight_decay=0.1),
    "momentum": lambda tree: momentum(rate(tree), 0.8),
    "nesterov": lambda tree: momentum(rate(tree), 0.8, nesterov=True),
    "adam": lambda tree: adam(rate(tree), eps=1e-3),
}


def hand_step(name, lr, params, grads, state):
    """One optimiser step written out; the state is (velocity or moments, count)."""
    trace, square, count = state
    if name == "sgd":
        return {k: p - lr * (grads[k] + 0.1 * p) for k, p in params.items()}, state
    if name in ("momentum", "nesterov"):
        trace = {k: 0.8 * trace[k] + g for k, g in grads.items()}
        along = {k: g + 0.8 * trace[k] for k, g in grads.items()} if name == "nesterov" else trace
        return {k: p - lr * along[k] for k, p in params.items()}, (trace, square, count)
    count += 1
    trace = {k: 0.9 * trace[k] + 0.1 * g for k, g in grads.items()}
    square = {k: 0.999 * square[k] + 0.001 * g * g for k, g in grads.items()}
    new = {
        k: p - lr * (trace[k] / (1 - 0.9**count)) / ((square[k] / (1 - 0.999**count)).sqrt() + 1e-3)
        for k, p in params.items()
    }
    return new, (trace, square, count)


def cut(nest):
    if isinstance(nest, torch.Tensor):
        return nest.detach()
    return {k: cut(v) for k, v in nest.items()} if isinstance(nest, dict) else nest


def hand_roll(loss, name, start, meta, state, step_batches, truncate=None, first_order=False):
    """Virtual steps as a reader would write them; `truncate` keeps the graph of the last steps only."""
    params = start
    for k, batches in enumerate(step_batches):
        tracked = truncate is None or k >= len(step_batches) - truncate
        seen = meta if tracked else cut(meta)
        if not tracked:
            params, state = cut(params), tuple(cut(part) for part in state)
        params = {key: p if p.requires_grad else p.detach().requires_grad_() for key, p in params.items()}
        value = loss({"net": params, "meta": seen}, batches)
        grads = dict(zip(params, grad(value, list(params.values()), create_graph=tracked), strict=True))
        if first_order:
            grads = cut(grads)
        params, state = hand_step(name, seen["log_lr"].exp(), params, grads, state)
        if not tracked:
            params, state = cut(params), tuple(cut(part) for part in state)
    return params


@pytest.fixture
def setting():
    """A learner whose Update "meta" differentiates through "net", its state, and batches."""

    def build(optimizer="sgd", carried=False, loss=outer_loss, **options):
        g = torch.Generator().manual_seed(0)
        net = nn.MLP([3, 5, 2], g, "tanh")
        own = OPTIMIZERS[optimizer]
        estimator = Unrolled("net", None if carried else own, **options)
        learner = Learner(
            modules={"net": net},
            tensors={"meta": {"logits": torch.randn(N, generator=g), "log_lr": torch.tensor(-1.5)}},
            stages=(
                (Update("meta", "meta", loss, sgd(0.1), estimator),),
                (Update("net", "net", inner_loss, own if carried else sgd(0.1)),),
            ),
            act=lambda tree, obs, carry, noise, deterministic: (nn.call(net, tree["net"], obs), carry),
            virtual={"other": Update("other", "net", other_loss, own if carried else sgd(0.1))},
            roles={name: Role(name, N) for name in ("train", "demo", "validation")},
        ).ready()
        return learner, learner.init(torch.float64)

    return build


def random_batches(seed, *lead):
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*lead, *shape, generator=g, dtype=torch.float64)

    batches = {r: {"obs": normal(N, 3), "action": normal(N, 2)} for r in ("train", "demo", "validation")}
    return {**batches, "noise": {"label": 0.1 * normal(N, 2)}}


def zero_state(params):
    zeros = {k: torch.zeros_like(v) for k, v in params.items()}
    return zeros, zeros, 0


def warm_state(learner, state):
    """The carried optimiser state as `hand_step` keeps it."""
    opt = state.opt["net"]
    if hasattr(opt, "trace"):
        return opt.trace, opt.trace, 0
    return (opt.mu, opt.nu, float(opt.count)) if hasattr(opt, "mu") else zero_state(state.tree["net"])


def leaf_meta(state):
    return {k: v.clone().requires_grad_() for k, v in state.tree["meta"].items()}


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("truncate", [None, 1, 2, STEPS])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_fresh_optimizer_equals_a_plain_loop(setting, apart, optimizer, truncate, first_order):
    learner, state = setting(optimizer, steps=STEPS, truncate=truncate, first_order=first_order)
    batches = random_batches(1)
    meta = leaf_meta(state)
    params = hand_roll(
        inner_loss,
        optimizer,
        state.tree["net"],
        meta,
        zero_state(state.tree["net"]),
        [batches] * STEPS,
        truncate,
        first_order,
    )
    outer = outer_loss({"net": params, "meta": meta}, batches)
    expected = dict(zip(meta, grad(outer, list(meta.values())), strict=True))
    update = learner.updates["meta"]
    estimate = update.gradient(update, state, batches)
    assert apart(estimate.inner, params) < 1e-12
    assert abs(estimate.loss - outer.detach()) < 1e-14
    assert apart(estimate.grads, expected) < 1e-10
    direct = 0.2 * state.tree["meta"]["logits"] / N
    assert (apart(expected, {**expected, "logits": direct}) < 1e-12) == first_order


def test_truncation_and_first_order_are_no_idle_switches(setting, apart):
    batches, seen = random_batches(1), []
    for options in ({}, {"truncate": 1}, {"truncate": 2}, {"truncate": 3}, {"first_order": True}):
        learner, state = setting("momentum", steps=STEPS, **options)
        update = learner.updates["meta"]
        seen.append(update.gradient(update, state, batches).grads)
    for i, a in enumerate(seen):
        assert all(apart(a, b) > 1e-3 for b in seen[:i])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_carried_optimizer_goes_on_from_its_warm_state(setting, apart, optimizer):
    learner, state = setting(optimizer, carried=True, steps=3)
    for step in range(1, 6):
        state, _ = learner.step(state, random_batches(10 + step), learner.due(step))
    batches, meta = random_batches(1), leaf_meta(state)
    params = hand_roll(inner_loss, optimizer, state.tree["net"], meta, warm_state(learner, state), [batches] * 3)
    expected = grad(outer_loss({"net": params, "meta": meta}, batches), list(meta.values()))
    update = learner.updates["meta"]
    estimate = update.gradient(update, state, batches)
    assert apart(estimate.inner, params) < 1e-12
    assert apart(estimate.grads, dict(zip(meta, expected, strict=True))) < 1e-10


@pytest.mark.parametrize("fresh", ["batch", "noise", "both"])
def test_fresh_gives_every_virtual_step_its_own_rows_and_noise(setting, apart, fresh):
    wanted = {"batch": {"train": "many"}, "noise": {"noise.label": "noise.many"}}
    wanted["both"] = wanted["batch"] | wanted["noise"]
    learner, state = setting("sgd", steps=3, fresh=wanted[fresh])
    one, many = random_batches(1), random_batches(2, 3)
    batches = {**one, "many": many["train"], "noise": {**one["noise"], "many": many["noise"]["label"]}}
    steps = []
    for k in range(3):
        rows = {key: value[k] for key, value in many["train"].items()}
        steps.append(
            {
                **one,
                "train": rows if fresh != "noise" else one["train"],
                "noise": {"label": many["noise"]["label"][k]} if fresh != "batch" else one["noise"],
            }
        )
    meta = leaf_meta(state)
    params = hand_roll(inner_loss, "sgd", state.tree["net"], meta, zero_state(state.tree["net"]), steps)
    expected = grad(outer_loss({"net": params, "meta": meta}, one), list(meta.values()))
    update = learner.updates["meta"]
    estimate = update.gradient(update, state, batches)
    assert apart(estimate.inner, params) < 1e-12
    assert apart(estimate.grads, dict(zip(meta, expected, strict=True))) < 1e-10


@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_contrast_rolls_alike_from_the_same_start_and_is_constant(setting, apart, optimizer, steps, carried):
    """The contrast's loss holds the meta-parameters too, so that a forgotten detach would show."""
    learner, state = setting(optimizer, carried, contrasted_loss, steps=steps, contrast="other")
    for step in range(1, 4):
        state, _ = learner.step(state, random_batches(10 + step), {"net"})
    batches, meta = random_batches(1), leaf_meta(state)
    start = warm_state(learner, state) if carried else zero_state(state.tree["net"])
    adapted = hand_roll(inner_loss, optimizer, state.tree["net"], meta, start, [batches] * steps)
    other = cut(hand_roll(other_loss, optimizer, state.tree["net"], meta, start, [batches] * steps))
    value = contrasted_loss({"net": adapted, "meta": meta}, batches, {"net": other, "meta": cut(meta)})
    expected = dict(zip(meta, grad(value, list(meta.values())), strict=True))
    update = learner.updates["meta"]
    estimate = update.gradient(update, state, batches)
    assert abs(estimate.loss - value.detach()) < 1e-13
    assert apart(estimate.grads, expected) < 1e-10


def test_contrast_equals_central_differences_with_the_contrast_held(setting, hypergradient, central_differences, flat):
    learner, state = setting("adam", True, contrasted_loss, steps=2, contrast="other")
    for step in range(1, 4):
        state, _ = learner.step(state, random_batches(10 + step), {"net"})
    grads, fn, point = hypergradient(learner, "meta", state, random_batches(1))
    expected, noise = central_differences(fn, point)
    assert flat(grads).norm() > 1000 * noise
    assert (flat(grads) - flat(expected)).norm() < 1e-6 * flat(grads).norm()


def two_groups(*inner):
    """Two nets in a row: "low" feeds "high"; the Update "meta" rolls them in the given order."""
    g = torch.Generator().manual_seed(3)
    low, high = nn.MLP([3, 4, 3], g, "tanh"), nn.MLP([3, 4, 2], g, "tanh")

    def predict(tree, batch):
        return nn.call(high, tree["high"], nn.call(low, tree["low"], batch["obs"]))

    def fit(tree, batches, role):
        return (predict(tree, batches[role]) - batches[role]["action"]).square().mean(-1)

    def weighed(tree, batches):
        return (softplus(tree["meta"]["logits"]) * fit(tree, batches, "train")).mean()

    updates = {
        "meta": Update(
            "meta",
            "meta",
            lambda tree, batches: fit(tree, batches, "validation").mean(),
            sgd(0.1),
            Unrolled(inner, steps=2),
        ),
        "low": Update("low", "low", weighed, sgd(0.3)),
        "high": Update("high", "high", weighed, momentum(0.2)),
    }
    return Learner(
        modules={"low": low, "high": high},
        tensors={"meta": {"logits": torch.zeros(N)}},
        stages=tuple((u,) for u in updates.values()),
        act=lambda tree, obs, carry, noise, deterministic: (obs, carry),
    ).ready()


@pytest.mark.parametrize("order", [("low", "high"), ("high", "low")])
def test_several_inner_updates_roll_in_their_order(order, apart):
    """Each step moves the first, and the second sees it moved."""
    learner, batches = two_groups(*order), random_batches(1)
    state = learner.init(torch.float64)
    update = learner.updates["meta"]

    def fit_one(tree, name, params):
        return learner.updates[name].loss({**tree, name: params}, batches)

    def outer(logits):
        tree = {**state.tree, "meta": {"logits": logits}}
        trace = {k: torch.zeros_like(v) for k, v in tree["high"].items()}
        for name in order * 2:
            grads = torch.func.grad(partial(fit_one, tree, name))(tree[name])
            if name == "high":
                grads = trace = {k: 0.9 * trace[k] + g for k, g in grads.items()}
            lr = {"low": 0.3, "high": 0.2}[name]
            tree = {**tree, name: {k: v - lr * grads[k] for k, v in tree[name].items()}}
        return update.loss(tree, batches)

    expected = torch.func.grad(outer)(state.tree["meta"]["logits"])
    estimate = update.gradient(update, state, batches)
    assert apart(estimate.grads, {"logits": expected}) < 1e-10
    torchopt = replace(update.gradient, backend="torchopt")(update, state, batches)
    assert apart(torchopt.grads, {"logits": expected}) < 1e-10
    with pytest.raises(ConfigError, match="one inner Update"):
        replace(update.gradient, backend="higher")(update, state, batches)


def test_an_inner_update_may_itself_be_bilevel(hypergradient, central_differences, flat):
    """Three levels: a rate for the weights that are learned through the net's step."""
    g = torch.Generator().manual_seed(4)
    net = nn.MLP([3, 5, 2], g, "tanh")
    updates = (
        Update(
            "rate",
            "rate",
            lambda tree, batches: errors(tree["net"], batches["demo"]).mean(),
            sgd(0.1),
            Unrolled(("meta", "net"), steps=2),
        ),
        Update(
            "meta",
            "meta",
            lambda tree, batches: errors(tree["net"], batches["validation"]).mean(),
            lambda tree: sgd(tree["rate"]["log_lr"].exp()),
            Unrolled("net", sgd(0.3), steps=2),
        ),
        Update("net", "net", inner_loss, momentum(0.2)),
    )
    learner = Learner(
        modules={"net": net},
        tensors={
            "meta": {"logits": torch.randn(N, generator=g), "log_lr": torch.zeros(())},
            "rate": {"log_lr": torch.tensor(0.5)},
        },
        stages=tuple((u,) for u in updates),
        act=lambda tree, obs, carry, noise, deterministic: (obs, carry),
    ).ready()
    state = learner.init(torch.float64)
    grads, fn, point = hypergradient(learner, "rate", state, random_batches(1))
    expected, noise = central_differences(fn, point)
    assert flat(grads).norm() > 1000 * noise
    assert (flat(grads) - flat(expected)).norm() < 1e-6 * flat(grads).norm()


OPTIONS = {
    "plain": {},
    "truncate": {"truncate": 1},
    "first_order": {"first_order": True},
    "contrast": {"loss": contrasted_loss, "contrast": "other"},
    "carried": {"carried": True},
    "fresh": {"fresh": {"train": "many"}},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_transformed_estimate_equals_the_eager_one(setting, apart, optimizer, options):
    """Under vmap, torch.func takes the derivatives; in eager, autograd does."""
    learner, state = setting(optimizer, steps=3, **options)
    update = learner.updates["meta"]
    states, all_batches = [], []
    for seed in (1, 2):
        state, _ = learner.step(state, random_batches(10 + seed), {"net"})
        states.append(state)
        all_batches.append({**random_batches(seed), "many": random_batches(seed, 3)["train"]})
    stacked = tree_map(lambda *leaves: torch.stack(leaves), *zip(states, all_batches, strict=True))
    together = torch.vmap(lambda s, b: update.gradient(update, s, b))(*stacked)
    alone = [update.gradient(update, s, b) for s, b in zip(states, all_batches, strict=True)]
    for i, estimate in enumerate(alone):
        ours = tree_map(lambda leaf, i=i: leaf[i], together)
        assert apart(ours.grads, estimate.grads) < 1e-10
        assert apart(ours.metrics, estimate.metrics) < 1e-10
        assert apart(ours.inner, estimate.inner) < 1e-10
        assert apart({"loss": ours.loss}, {"loss": estimate.loss}) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_traced_estimate_equals_the_eager_one(setting, apart, optimizer, options):
    """Every option is one graph without a break."""
    torch._dynamo.reset()
    learner, state = setting(optimizer, steps=3, **options)
    state, _ = learner.step(state, random_batches(10), {"net"})
    batches = {**random_batches(1), "many": random_batches(2, 3)["train"]}
    update = learner.updates["meta"]
    traced = torch.compile(
        lambda s, b: update.gradient(update, s, b), fullgraph=True, dynamic=False, backend="aot_eager"
    )
    ours, eager = traced(state, batches), update.gradient(update, state, batches)
    assert apart(ours.grads, eager.grads) < 1e-10
    assert apart(ours.inner, eager.inner) < 1e-10
    assert apart(ours.metrics, eager.metrics) < 1e-10


@pytest.mark.parametrize("backend", ["higher", "torchopt"])
def test_backends_refuse_learned_settings_that_they_would_hold_constant(setting, backend):
    learner, state = setting("momentum", steps=2)
    update = learner.updates["meta"]
    gradient = replace(
        update.gradient, backend=backend, optimizer=lambda tree: momentum(0.1, tree["meta"]["log_lr"].exp())
    )
    with pytest.raises(ConfigError, match="learned momentum"):
        gradient(update, state, random_batches(1))


def test_higher_refuses_moments_that_are_differentiated(setting):
    learner, state = setting("momentum", carried=True)
    update = learner.updates["meta"]
    gradient = replace(update.gradient, backend="higher")
    trace = {k: v.clone().requires_grad_() for k, v in state.opt["net"].trace.items()}
    state = state._replace(opt={**state.opt, "net": state.opt["net"]._replace(trace=trace)})
    with pytest.raises(ConfigError, match="moments that are differentiated"):
        gradient(update, state, random_batches(1))


def test_a_running_mean_in_the_roll_is_a_part_of_it(hypergradient, central_differences, flat):
    """Track follows the net while it is rolled, and the net's loss reads the mean."""
    g = torch.Generator().manual_seed(5)
    net = nn.MLP([3, 5, 2], g, "tanh")

    def level(tree, batches):
        return {"level": errors(tree["net"], batches["train"]).mean()}

    def weighed(tree, batches):
        each = errors(tree["net"], batches["train"])
        return (softplus(tree["meta"]["logits"]) * each).mean() / (1 + tree["stat"]["level"])

    def validation(tree, batches):
        return errors(tree["net"], batches["validation"]).mean()

    learner = Learner(
        modules={"net": net},
        tensors={"meta": {"logits": torch.randn(N, generator=g)}, "stat": {"level": torch.ones(())}},
        stages=(
            (Update("meta", "meta", validation, sgd(0.1), Unrolled(("net", "stat"), steps=3)),),
            (Update("stat", "stat", None, sgd(0.5), Track(level)),),
            (Update("net", "net", weighed, sgd(0.3)),),
        ),
        act=lambda tree, obs, carry, noise, deterministic: (obs, carry),
    ).ready()
    state = learner.init(torch.float64)
    grads, fn, point = hypergradient(learner, "meta", state, random_batches(1))
    expected, noise = central_differences(fn, point)
    assert flat(grads).norm() > 1000 * noise
    assert (flat(grads) - flat(expected)).norm() < 1e-7 * flat(grads).norm()
    stepped, _ = learner.step(state, random_batches(1), {"stat"})
    assert not stepped.tree["stat"]["level"].requires_grad


def test_metrics_say_how_large_the_hypergradient_and_the_virtual_step_are(setting, flat):
    learner, state = setting("adam", carried=True)
    batches = random_batches(1)
    update = learner.updates["meta"]
    estimate = update.gradient(update, state, batches)
    step = flat(estimate.inner) - flat(state.tree["net"])
    assert torch.allclose(estimate.metrics["inner_step_norm"], step.norm(), rtol=1e-12)
    assert torch.allclose(estimate.metrics["hypergradient_norm"], flat(estimate.grads).norm(), rtol=1e-12)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="steps must be at least 1"):
        Unrolled("net", steps=0)
    with pytest.raises(ConfigError, match=r"truncate must lie in 1\.\.steps \(2\), not 3"):
        Unrolled("net", steps=2, truncate=3)
    with pytest.raises(ConfigError, match="backend must be one of native, torchopt, higher"):
        Unrolled("net", backend="jax")
    with pytest.raises(ConfigError, match="no truncate"):
        Unrolled("net", steps=2, truncate=1, backend="torchopt")
    with pytest.raises(ConfigError, match="no first_order"):
        Unrolled("net", first_order=True, backend="higher")


def test_an_unresolved_name_says_how_to_resolve_it(setting):
    _, state = setting()
    raw = Update("meta", "meta", outer_loss, sgd(0.1), Unrolled("net", sgd(0.1)))
    with pytest.raises(ConfigError, match=r"'net' is still a name; build the learner with Learner\.ready"):
        raw.gradient(raw, state, random_batches(1))
