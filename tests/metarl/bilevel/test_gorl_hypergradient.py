"""TD3+BC with GORL: its hypergradient against Theorem 1, other libraries and finite differences."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torchopt
from torch.autograd import grad

from algorithms.td3_bc import TD3BC
from metarl import AdamState, Unrolled, adam, adamw, momentum, sgd
from metarl.bilevel.backends.torchopt import convert
from metarl.errors import ConfigError
from objectives.gorl import GORL, GuidingNet

NET = GuidingNet(hidden=(4,), activation="tanh")


@pytest.fixture
def gorl(assemble, draw):
    """A small TD3+BC with GORL whose Adam moments are warm: learner, state, batches."""

    def build(steps=1, virtual=None, backend="native", warm=6, actor=None, dead=False, batch=0, **options):
        base = TD3BC(hidden=(6, 6), batch_size=24, actor_optimizer=actor or adam(1e-2), critic_optimizer=adam(1e-2))
        options = {"net": NET, "every": 2, "batch_size": 5, "optimizer": adam(1e-2)} | options
        learner = assemble(base, GORL(virtual=virtual, steps=steps, backend=backend, **options), seed=1)
        native = with_estimator(learner, backend="native", optimizer=virtual or sgd(1e-2))
        state = learner.init(torch.float64)
        first, second = (torch.full((6,), 0.5, dtype=torch.float64) for _ in range(2))  # every unit fires
        if dead:
            first[0] = -100.0  # this one never: its gradients are zero for good
        biases = {"net.layers.0.bias": first, "net.layers.1.bias": second}
        state = state.with_params("actor", {**state.tree["actor"], **biases})
        for step in range(1, warm + 1):
            state, _ = native.step(state, draw(learner, step), native.due(step))
        if warm and isinstance(state.opt["actor"], AdamState):
            assert dead != all((v > 0).all() for v in state.opt["actor"].nu.values())
        return learner, state, draw(learner, 100 + batch)

    return build


def with_estimator(learner, **changes):
    """The learner with other settings of its one bilevel estimator."""

    def changed(update):
        bilevel = isinstance(update.gradient, Unrolled)
        return replace(update, gradient=replace(update.gradient, **changes)) if bilevel else update

    return replace(learner, stages=tuple(tuple(changed(u) for u in stage) for stage in learner.stages))


def layers(params, prefix, x, hidden, output=lambda y: y):
    """An MLP from the parameters of `nn.MLP`, in plain torch."""
    depth = len([k for k in params if k.startswith(prefix) and k.endswith("weight")])
    for i in range(depth):
        x = x @ params[f"{prefix}layers.{i}.weight"] + params[f"{prefix}layers.{i}.bias"]
        x = hidden(x) if i < depth - 1 else output(x)
    return x


def theorem_1(state, batches, spec, lr, alpha=2.5):
    """dL/dw = -(a_D / n_D) sum_k C_k dB_k/dw,  C_k = <mean guide gradient at theta_hat, grad L_pc,k at theta>."""

    def leaves(group):
        return {k: v.detach().clone().requires_grad_() for k, v in group.items()}

    high = torch.tensor(spec.max_action, dtype=torch.float64)
    theta, w, critic = leaves(state.tree["actor"]), leaves(state.tree["guiding_network"]), state.tree["critic"]

    def pi(p, obs):
        return layers(p, "net.", obs, torch.relu, torch.tanh) * high

    batch, guide = batches["train"], batches["guide"]
    action = pi(theta, batch["obs"])
    q = layers(critic, "q1.", torch.cat((batch["obs"], action), -1), torch.relu).squeeze(-1)
    each = (action - batch["action"]).square().mean(-1)
    b = layers(w, "", each.detach()[:, None], torch.tanh, torch.sigmoid).squeeze(-1)
    loss = -(alpha / q.detach().abs().mean()) * q.mean() + (b.detach() * each).mean()
    inner = grad(loss, list(theta.values()), retain_graph=True)
    hat = {k: (v - lr * g).detach().requires_grad_() for (k, v), g in zip(theta.items(), inner, strict=True)}
    outer = (pi(hat, guide["obs"]) - guide["action"]).square().mean()
    towards = torch.cat([x.flatten() for x in grad(outer, list(hat.values()))])
    total = {k: torch.zeros_like(v) for k, v in w.items()}
    for k in range(len(each)):
        own = torch.cat([x.flatten() for x in grad(each[k], list(theta.values()), retain_graph=True)])
        slope = grad(b[k], list(w.values()), retain_graph=True)
        for name, db in zip(w, slope, strict=True):
            total[name] -= lr / len(each) * (towards @ own) * db
    return total


@pytest.mark.parametrize("backend", ["native", "torchopt", "higher"])
@pytest.mark.parametrize("lr", [1e-2, 3e-4])
def test_one_virtual_step_of_sgd_is_theorem_1(gorl, hypergradient, spec, apart, flat, backend, lr):
    learner, state, batches = gorl(virtual=sgd(lr), backend=backend)
    grads, _, _ = hypergradient(learner, "guiding_network", state, batches)
    expected = theorem_1(state, batches, spec, lr)
    assert flat(expected).norm() > 1e-9
    assert apart(grads, expected) < 1e-10


CARRIED = {"adam": adam(1e-2), "momentum": momentum(1e-2), "adamw": adamw(1e-2, weight_decay=0.1)}
SETTINGS = {
    "sgd": {"virtual": sgd(2e-2)},
    "fresh-momentum": {"virtual": momentum(1e-2, nesterov=True, weight_decay=0.1)},
    **{f"carried-{name}": {"actor": optimizer} for name, optimizer in CARRIED.items()},
}


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_native_equals_torchopt(gorl, hypergradient, apart, flat, settings, steps):
    learner, state, batches = gorl(steps, **settings)
    native, _, _ = hypergradient(learner, "guiding_network", state, batches)
    other, _, _ = hypergradient(with_estimator(learner, backend="torchopt"), "guiding_network", state, batches)
    assert flat(native).norm() > 1e-8
    assert apart(native, other) < 1e-10


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", ["sgd", "fresh-momentum", "carried-momentum"])
def test_native_equals_higher(gorl, hypergradient, apart, name, steps):
    learner, state, batches = gorl(steps, **SETTINGS[name])
    native, _, _ = hypergradient(learner, "guiding_network", state, batches)
    other, _, _ = hypergradient(with_estimator(learner, backend="higher"), "guiding_network", state, batches)
    assert apart(native, other) < 1e-10


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("attached", [False, True], ids=["detached", "attached"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_native_equals_central_differences(gorl, hypergradient, central_differences, flat, settings, attached, steps):
    learner, state, batches = gorl(steps, attach_signal=attached, **settings)
    grads, fn, point = hypergradient(learner, "guiding_network", state, batches)
    expected, noise = central_differences(fn, point)
    assert flat(grads).norm() > 1000 * noise
    assert (flat(grads) - flat(expected)).norm() < 1e-6 * flat(grads).norm()


def test_held_stop_gradients_matter_to_the_differences(gorl, hypergradient, central_differences, flat):
    """Without the hold, differences see lambda move from the second virtual step on and disagree."""
    learner, state, batches = gorl(3, sgd(0.1))
    grads, fn, point = hypergradient(learner, "guiding_network", state, batches)
    held, _ = central_differences(fn, point)
    h, seen = 1e-3, {}
    for name, value in point.items():
        slopes = []
        for i in range(value.numel()):
            e = torch.zeros_like(value).view(-1)
            e[i] = h
            up, down = (fn({**point, name: value + s * e.view_as(value)})[0] for s in (1, -1))
            slopes.append((up - down) / (2 * h))
        seen[name] = torch.stack(slopes).view_as(value)
    assert (flat(grads) - flat(held)).norm() < 1e-6 * flat(grads).norm()
    assert (flat(grads) - flat(seen)).norm() > 1e-4 * flat(grads).norm()


@pytest.mark.parametrize("optimizer", [adam(1e-2), adamw(1e-2)], ids=["adam", "adamw"])
@pytest.mark.parametrize("steps", [1, 3])
def test_cold_adam_equals_torchopt(gorl, hypergradient, apart, optimizer, steps):
    """Finite differences are of no use here: a fresh Adam's first step is nearly lr * sign(gradient)."""
    learner, state, batches = gorl(steps, virtual=optimizer)
    native, _, _ = hypergradient(learner, "guiding_network", state, batches)
    other, _, _ = hypergradient(with_estimator(learner, backend="torchopt"), "guiding_network", state, batches)
    assert all(value.abs().max() > 0 for value in native.values())
    assert apart(native, other) < 1e-8


@pytest.mark.parametrize("steps", [1, 3])
def test_dead_unit_leaves_adam_finite_where_torchopt_is_nan(gorl, hypergradient, central_differences, flat, steps):
    """A unit that never fires keeps Adam's second moment at zero; the root's derivative there is 0, not infinite."""
    learner, state, batches = gorl(steps, dead=True)
    assert (state.opt["actor"].nu["net.layers.0.weight"][:, 0] == 0).all()
    grads, fn, point = hypergradient(learner, "guiding_network", state, batches)
    expected, noise = central_differences(fn, point)
    assert flat(grads).isfinite().all() and flat(grads).norm() > 1000 * noise
    assert (flat(grads) - flat(expected)).norm() < 1e-6 * flat(grads).norm()
    theirs, _, _ = hypergradient(with_estimator(learner, backend="torchopt"), "guiding_network", state, batches)
    assert flat(theirs).isnan().all()


def test_dead_unit_agrees_with_torchopt_once_its_root_is_shifted(gorl, hypergradient, apart):
    """eps_root keeps torchopt's root away from 0; at 1e-30 it changes no digit of what is left."""
    learner, state, batches = gorl(1, dead=True)
    native, _, _ = hypergradient(learner, "guiding_network", state, batches)
    update = learner.updates["guiding_network"]
    actor = learner.updates["actor"]
    theirs, opt = convert(actor.optimizer, state.tree["actor"], state.opt["actor"], eps_root=1e-30)
    shifted = replace(update.gradient, inner=(replace(actor, optimizer=theirs),))
    entry = state._replace(opt={**state.opt, "actor": opt})
    assert apart(shifted(update, entry, batches).grads, native) < 1e-8


def test_carried_moments_change_the_hypergradient(gorl, hypergradient, flat):
    """A fresh Adam's direction has little to do with that of the real one, which is why moments are carried."""
    learner, state, batches = gorl(1)
    carried, _, _ = hypergradient(learner, "guiding_network", state, batches)
    fresh, _, _ = hypergradient(with_estimator(learner, optimizer=adam(1e-2)), "guiding_network", state, batches)
    assert torch.cosine_similarity(flat(carried), flat(fresh), 0) < 0.99
    assert not 0.5 < flat(fresh).norm() / flat(carried).norm() < 2


def test_a_torchopt_optimizer_drops_in(gorl, hypergradient, apart):
    """A user's own transformation runs natively, and equals the same step of metarl's."""
    learner, state, batches = gorl(2, sgd(1e-2))
    ours, _, _ = hypergradient(learner, "guiding_network", state, batches)
    for backend in ("native", "torchopt"):
        theirs = with_estimator(learner, optimizer=torchopt.sgd(1e-2), backend=backend)
        grads, _, _ = hypergradient(theirs, "guiding_network", state, batches)
        assert apart(grads, ours) < 1e-10


@pytest.mark.parametrize("backend", ["native", "torchopt"])
@pytest.mark.parametrize(
    ("optimizer", "reason"),
    [
        (torchopt.chain(torchopt.clip_grad_norm(1.0), torchopt.sgd(0.1)), "takes the norm as a constant"),
        (torchopt.clip_grad_norm(1.0), "takes the norm as a constant"),
        (torchopt.adam(0.1, use_accelerated_op=True), "twice the right derivative"),
        (torchopt.adamw(0.1, use_accelerated_op=True), "twice the right derivative"),
        (torchopt.chain(torchopt.adam(0.1, use_accelerated_op=True)), "twice the right derivative"),
    ],
    ids=["clip-chain", "clip", "adam", "adamw", "adam-chain"],
)
def test_torchopt_transformations_with_wrong_derivatives_are_refused(gorl, backend, optimizer, reason):
    learner, state, batches = gorl(1, sgd(1e-2), warm=0)
    learner = with_estimator(learner, optimizer=optimizer, backend=backend)
    with pytest.raises(ConfigError, match=reason):
        learner.check(state, batches)


@pytest.mark.parametrize("optimizer", [adam(1e-2), adamw(1e-2)], ids=["adam", "adamw"])
def test_higher_refuses_adam_with_the_reason(gorl, optimizer):
    learner, state, batches = gorl(1, sgd(1e-2), warm=0)
    learner = with_estimator(learner, optimizer=optimizer, backend="higher")
    with pytest.raises(ConfigError, match=f"refuses {optimizer.name}: higher 0.2.1"):
        learner.step(state, batches, learner.due(2))
    learner = with_estimator(learner, optimizer=torchopt.sgd(0.1), backend="higher")
    with pytest.raises(ConfigError, match="not a torchopt optimiser"):
        learner.step(state, batches, learner.due(2))
