"""GORL on TD3+BC: every option against the formula that its help text promises."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from algorithms.td3_bc import TD3BC
from metarl import adam, momentum, sgd
from metarl.component import component
from metarl.errors import ConfigError
from objectives.gorl import GORL, GuidingNet

LR = 1e-2
BASE = TD3BC(hidden=(16, 16), batch_size=32, actor_optimizer=adam(LR), critic_optimizer=adam(LR))
HIGH = torch.tensor([1.0, 0.5], dtype=torch.float64)
ACTIVATIONS = {
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": torch.nn.functional.softplus,
    "silu": torch.nn.functional.silu,
}


def objective(**options):
    return GORL(**({"every": 2, "net": GuidingNet((8,)), "optimizer": adam(0.1), "batch_size": 6} | options))


def warm(learner, draw, steps=6):
    state = learner.init(torch.float64)
    for step in range(1, steps + 1):
        state, _ = learner.step(state, draw(learner, step), learner.due(step))
    return state


def mlp(params, prefix, x, hidden, output):
    depth = len([k for k in params if k.startswith(prefix) and k.endswith("weight")])
    for i in range(depth):
        x = x @ params[f"{prefix}layers.{i}.weight"] + params[f"{prefix}layers.{i}.bias"]
        x = hidden(x) if i < depth - 1 else output(x)
    return x


def pi(actor, obs):
    return mlp(actor, "net.", obs, torch.relu, torch.tanh) * HIGH


def clone_loss(actor, batch, reduction="mean"):
    squared = (pi(actor, batch["obs"]) - batch["action"]).square()
    return squared.mean(-1) if reduction == "mean" else squared.sum(-1)


def degrees(options, tree, each):
    """B(signal) as the options read."""
    net = options.net
    value = each if options.attach_signal else each.detach()
    if options.signal == "standardized":
        statistics = tree["signal_statistics"]
        mean, square = (statistics[name] / statistics["weight"] for name in ("mean", "square"))
        value = (value - mean) / ((square - mean**2).sqrt() + 1e-3)
    output = ACTIVATIONS[net.output]
    return mlp(tree["guiding_network"], "", value[:, None], ACTIVATIONS[net.activation], output).squeeze(-1)


def policy_loss(options, actor, tree, batch):
    """Eq. 2 as the options read: -lambda Q + B(L_pc) L_pc."""
    action = pi(actor, batch["obs"])
    q = mlp(tree["critic"], "q1.", torch.cat((batch["obs"], action), -1), torch.relu, lambda x: x).squeeze(-1)
    scale = 1.0 if options.improvement == "literal" else 2.5 / q.detach().abs().mean()
    each = clone_loss(actor, batch, options.reduction)
    b = degrees(options, tree, each)
    return -scale * q.mean() + (b * each).mean(), b


def hand_grads(fn, params):
    leaves = {k: v.detach().clone().requires_grad_() for k, v in params.items()}
    return dict(zip(leaves, torch.autograd.grad(fn(leaves), list(leaves.values())), strict=True))


OPTIONS = {
    "default": {},
    "hidden-sigmoid": {"net": GuidingNet((8,), "sigmoid")},
    "hidden-tanh": {"net": GuidingNet((8,), "tanh")},
    "hidden-softplus": {"net": GuidingNet((8,), "softplus")},
    "hidden-silu": {"net": GuidingNet((8,), "silu")},
    "two-layers": {"net": GuidingNet((8, 4))},
    "output-softplus": {"net": GuidingNet((8,), output="softplus")},
    "literal": {"improvement": "literal"},
    "sum": {"reduction": "sum"},
    "attached": {"attach_signal": True},
    "standardized": {"signal": "standardized"},
    "standardized-attached": {"signal": "standardized", "attach_signal": True},
    "literal-sum": {"improvement": "literal", "reduction": "sum"},
    "carried": {"virtual": None},
    "three-steps": {"steps": 3},
    "three-carried": {"virtual": None, "steps": 3},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_means_its_formula(assemble, draw, apart, name):
    """The policy's loss and gradient, the virtual step, the guide's loss, and the order, all by hand."""
    options = objective(**OPTIONS[name])
    learner = assemble(BASE, options)
    state = warm(learner, draw)
    batches = draw(learner, 100)
    batch, guide = batches["train"], batches["guide"]

    policy = learner.updates["actor"]
    estimate = policy.gradient(policy, state, batches)
    loss, b = policy_loss(options, state.tree["actor"], state.tree, batch)
    assert abs(estimate.loss - loss) < 1e-12
    assert abs(estimate.metrics["b_mean"] - b.mean()) < 1e-12
    assert abs(estimate.metrics["b_std"] - b.std(correction=0)) < 1e-12
    expected = hand_grads(lambda p: policy_loss(options, p, state.tree, batch)[0], state.tree["actor"])
    assert apart(estimate.grads, expected) < 1e-10

    live_params = {k: v.clone() for k, v in state.tree["actor"].items()}
    if options.virtual is None:
        live = torch.optim.Adam(live_params.values(), LR)
        for key, p in live_params.items():
            opt = state.opt["actor"]
            live.state[p] = {
                "step": opt.count.float(),
                "exp_avg": opt.mu[key].clone(),
                "exp_avg_sq": opt.nu[key].clone(),
            }
    else:
        live = torch.optim.SGD(live_params.values(), 3e-4)
    for _ in range(options.steps):
        for key, g in hand_grads(lambda p: policy_loss(options, p, state.tree, batch)[0], live_params).items():
            live_params[key].grad = g
        live.step()
    update = learner.updates["guiding_network"]
    meta = update.gradient(update, state, batches)
    assert apart(meta.inner, live_params) < 1e-10
    assert abs(meta.loss - clone_loss(live_params, guide, options.reduction).mean()) < 1e-12
    assert all(g.isfinite().all() for g in meta.grads.values())
    assert meta.metrics["hypergradient_norm"] > 1e-10


@pytest.mark.parametrize("name", [name for name in OPTIONS if name not in ("default", "two-layers")])
def test_no_option_is_idle(assemble, draw, apart, name):
    """From one state, each option gives another policy or another guiding network than the default."""
    options = objective(**OPTIONS[name])
    learner, default = assemble(BASE, options), assemble(BASE, objective())
    state, batches = warm(learner, draw), draw(learner, 100)
    plain = default.state_of({k: state.tree[k] for k in default.init().tree})
    plain = plain._replace(opt={k: state.opt[k] for k in plain.opt})
    due = {"actor", "guiding_network"}
    ours, theirs = learner.step(state, batches, due)[0], default.step(plain, batches, due)[0]
    moved = [apart(ours.tree[k], theirs.tree[k]) for k in ("actor", "guiding_network")]
    assert max(moved) > 1e-6


@pytest.mark.parametrize("output", ["sigmoid", "softplus"])
def test_the_range_of_b(assemble, draw, output):
    learner = assemble(BASE, objective(net=GuidingNet((8,), output=output)))
    state, grid = learner.init(torch.float64), torch.linspace(0, 2, 9, dtype=torch.float64)
    last = state.tree["guiding_network"]["layers.1.bias"]
    probe = learner.probes["guiding_network"]
    for shift in (-5.0, 0.0, 5.0):
        tree = {
            **state.tree,
            "guiding_network": {**state.tree["guiding_network"], "layers.1.bias": last + shift},
        }
        b = probe.curve(tree, grid)
        assert b.shape == (9,) and (b > 0).all()
        if output == "sigmoid":
            assert (b < 1).all()
    assert (b > 1).any() == (output == "softplus")


def test_the_probe_shows_what_b_sees_and_says(assemble, draw):
    for options in (objective(), objective(signal="standardized"), objective(reduction="sum")):
        learner = assemble(BASE, options)
        state, batches = warm(learner, draw), draw(learner, 100)
        seen, b = learner.probes["guiding_network"].sample(state.tree, batches)
        assert torch.allclose(learner.probes["guiding_network"].curve(state.tree, seen), b, rtol=1e-12)
        policy = learner.updates["actor"]
        assert abs(policy.gradient(policy, state, batches).metrics["b_mean"] - b.mean()) < 1e-12


def saturated(state):
    """B == 1 exactly: the output's bias is so large that the sigmoid rounds to 1."""
    group = state.tree["guiding_network"]
    bias = torch.full_like(group["layers.1.bias"], 100.0)
    return state.with_params("guiding_network", {**group, "layers.1.bias": bias})


@pytest.mark.parametrize("attached", [False, True], ids=["detached", "attached"])
def test_b_of_one_is_the_base_bitwise(assemble, draw, apart, attached):
    base = assemble(BASE)
    guided = assemble(BASE, objective(optimizer=sgd(0.0), attach_signal=attached))
    a, b = base.init(), saturated(guided.init())
    for step in range(1, 201):
        batches = draw(guided, step, torch.float32)
        a, _ = base.step(a, batches, base.due(step))
        b, metrics = guided.step(b, batches, guided.due(step))
    assert metrics["actor/b_mean"] == 1 and metrics["actor/b_std"] == 0
    for group in a.tree:
        assert apart(b.tree[group], a.tree[group]) == 0, group
    for group in a.opt:
        assert apart(b.opt[group], a.opt[group]) == 0, group
    assert apart(a.tree["actor"], base.init().tree["actor"]) > 1e-3


def test_b_of_zero_is_pure_improvement(assemble, draw, apart):
    learner = assemble(BASE, objective())
    state, batches = learner.init(torch.float64), draw(learner)
    group = state.tree["guiding_network"]
    zero = {**group, "layers.1.bias": torch.full_like(group["layers.1.bias"], -1000.0)}
    state = state.with_params("guiding_network", zero)
    update, policy = learner.updates["actor"], learner.policy

    def pure(params):
        terms = policy.terms({**state.tree, "actor": params}, batches["train"], {})
        return policy.combine(terms, None)

    expected = hand_grads(pure, state.tree["actor"])
    assert apart(update.gradient(update, state, batches).grads, expected) < 1e-12


def test_the_guiding_network_moves_before_the_actor_and_with_its_own_optimizer(assemble, draw, apart):
    for optimizer in (sgd(5.0), momentum(5.0), adam(1e-5, eps=1e-12)):
        learner = assemble(BASE, objective(optimizer=optimizer))
        names = [[u.name for u in stage] for stage in learner.stages]
        assert names == [["critic"], ["guiding_network"], ["actor"], ["critic_target", "actor_target"]]
        state, batches = warm(learner, draw), draw(learner, 100)
        due = {"guiding_network", "actor"}
        update, policy = learner.updates["guiding_network"], learner.updates["actor"]
        grads = update.gradient(update, state, batches).grads
        new, _ = learner.step(state, batches, due)
        if optimizer.name == "sgd":
            expected = {k: v - 5.0 * grads[k] for k, v in state.tree["guiding_network"].items()}
            assert apart(new.tree["guiding_network"], expected) < 1e-12
        moved = state.with_params("guiding_network", new.tree["guiding_network"])
        again, _ = learner.step(moved, batches, {policy.name})
        assert apart(new.tree["actor"], again.tree["actor"]) == 0
        old, _ = learner.step(state, batches, {policy.name})
        assert apart(new.tree["actor"], old.tree["actor"]) > 0


def test_running_statistics_follow_the_signal(assemble, draw):
    learner = assemble(BASE, objective(signal="standardized"))
    names = [[u.name for u in stage] for stage in learner.stages]
    assert names[1:3] == [["guiding_network"], ["actor", "signal_statistics"]]
    state = learner.init(torch.float64)
    mean, square, weight = 0.0, 0.01, 0.01
    for step in range(1, 8):
        batches = draw(learner, step)
        each = clone_loss(state.tree["actor"], batches["train"])
        if "actor" in learner.due(step):
            mean += 0.01 * (each.mean() - mean)
            square += 0.01 * (each.square().mean() - square)
            weight += 0.01 * (1 - weight)
        state, _ = learner.step(state, batches, learner.due(step))
        statistics = state.tree["signal_statistics"]
        expected = {"mean": mean, "square": square, "weight": weight}
        assert all(abs(statistics[name] - value) < 1e-7 * abs(value) for name, value in expected.items() if value)


def test_moments_forget_their_start_within_a_few_steps(assemble, draw):
    """A signal far from 0 is standardised well before a running mean of rate 0.01 would have arrived."""
    learner = assemble(BASE, objective(signal="standardized", every=20))
    state = learner.init(torch.float64)
    far = {
        **draw(learner),
        "train": {**draw(learner)["train"], "action": torch.full((32, 2), 9.0, dtype=torch.float64)},
    }
    for step in range(1, 21):
        state, _ = learner.step(state, far, learner.due(step))
    seen, _ = learner.probes["guiding_network"].sample(state.tree, far)
    statistics = state.tree["signal_statistics"]
    signal = clone_loss(state.tree["actor"], far["train"]).mean()
    assert statistics["mean"] < 0.2 * signal  # ten policy steps
    assert abs(statistics["mean"] / statistics["weight"] - signal) < 0.15 * signal and seen.mean() < 1


@pytest.mark.parametrize("virtual", [sgd(3e-4), momentum(3e-4)])
def test_backends_train_alike(assemble, draw, apart, virtual):
    trees = []
    for backend in ("native", "torchopt", "higher"):
        learner = assemble(BASE, objective(backend=backend, virtual=virtual, steps=2))
        assert learner.updates["guiding_network"].gradient.backend == backend
        trees.append(warm(learner, draw, 8).tree)
    assert apart(trees[0], trees[1]) < 1e-8 and apart(trees[0], trees[2]) < 1e-8


def test_a_backend_refuses_what_its_library_gets_wrong(assemble, draw):
    learner = assemble(BASE, objective(backend="higher", virtual=None))
    with pytest.raises(ConfigError, match="backend 'higher' refuses adam"):
        learner.check(learner.init(torch.float64), draw(learner))


def test_periods_sizes_and_statistics_reach_the_learner(assemble):
    for statistics in ("train", "guide"):
        learner = assemble(BASE, objective(every=10, batch_size=7, statistics=statistics))
        role = learner.roles["guide"]
        assert (role.source, role.size, role.statistics) == ("guide", 7, statistics)
        due = [step for step in range(1, 41) if "guiding_network" in learner.due(step)]
        assert due == [10, 20, 30, 40]


def test_a_form_that_the_algorithm_lacks_is_refused(spec):
    generator = torch.Generator().manual_seed(0)
    learner = BASE.build(spec, generator)
    learner = replace(learner, policy=replace(learner.policy, forms=()))
    with pytest.raises(ConfigError, match="leave improvement=literal out"):
        objective(improvement="literal").attach(learner, spec, generator)
    objective().attach(learner, spec, generator)


def test_defaults_are_the_papers_and_every_option_has_help():
    defaults = GORL()
    assert (defaults.every, defaults.batch_size, defaults.net.hidden) == (500, 20, (100,))
    assert (defaults.net.activation, defaults.net.output) == ("relu", "sigmoid")
    assert (defaults.optimizer.name, defaults.optimizer.hparams["lr"]) == ("adam", 1e-5)
    assert (defaults.virtual.name, defaults.virtual.hparams["lr"]) == ("sgd", 3e-4)
    for f in (*fields(GORL), *fields(GuidingNet)):
        assert f.metadata["help"], f.name


def test_presets_build_through_the_configuration(spec):
    built, plain = component("metarl.objectives", {"name": "gorl", "preset": "quick"}, "test.yaml", "objective")
    assert built.every == 2 and built.optimizer.hparams["lr"] == 3e-4
    assert plain["optimizer"]["eps"] == 1e-12
    built, _ = component("metarl.objectives", {"name": "gorl", "virtual": None}, "test.yaml", "objective")
    assert built.virtual is None
