"""Meta-Critic on seven bases: every step against a derivation of its own, each option, and the warm start."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest
import torch
from torch.autograd import grad
from torch.distributions import Normal
from torch.func import jvp

from algorithms.bc import BC
from algorithms.cql import CQL
from algorithms.ddpg import DDPG
from algorithms.iql import IQL
from algorithms.sac import SAC
from algorithms.td3 import TD3
from algorithms.td3_bc import TD3BC
from metarl import adam, sgd
from metarl.checking import Plan, check
from metarl.component import component
from metarl.errors import ConfigError
from objectives.gild import GILD
from objectives.meta_critic import AuxiliaryNet, MetaCritic

LR, RATE, STEPS = 1e-2, 0.1, 40
HIGH = torch.tensor([1.0, 0.5], dtype=torch.float64)
SIZES = {"hidden": (16, 14), "batch_size": 32, "actor_optimizer": adam(LR), "critic_optimizer": adam(LR)}
BASES = {
    "ddpg": DDPG(**SIZES),
    "td3": TD3(**SIZES),
    "sac": SAC(auto_temperature=False, **SIZES),
    "sac-learned": SAC(auto_temperature=True, temperature=0.3, **SIZES),
    "td3_bc": TD3BC(**SIZES),
    "iql": IQL(value_optimizer=adam(LR), actor_decay=False, **SIZES),
    "cql": CQL(samples=3, bc_steps=3, **SIZES),
}


def objective(**options):
    defaults = {
        "net": AuxiliaryNet((12, 12)),
        "optimizer": adam(LR, weight_decay=1e-4),
        "virtual": sgd(RATE),
    }
    return MetaCritic(**(defaults | options))


@pytest.fixture
def build(spec):
    """`build(name, options or None)`: a ready learner; without options, the base alone."""

    def learner(name, options=None, seed=0):
        generator = torch.Generator().manual_seed(seed)
        own = replace(spec, steps=STEPS)
        made = BASES[name].build(own, generator)
        return (made if options is None else options.attach(made, own, generator)).ready()

    return learner


# -- the bases' losses by hand -------------------------------------------------------------------------------


def mlp(params, prefix, x, output=lambda y: y):
    depth = len([k for k in params if k.startswith(prefix) and k.endswith("weight")])
    for i in range(depth):
        x = x @ params[f"{prefix}layers.{i}.weight"] + params[f"{prefix}layers.{i}.bias"]
        x = torch.relu(x) if i < depth - 1 else output(x)
    return x


def least(critic, obs, action):
    x = torch.cat((obs, action), -1)
    return torch.min(mlp(critic, "q1.", x), mlp(critic, "q2.", x)).squeeze(-1)


def gaussian(name, actor, obs):
    """SAC's and CQL's before tanh; IQL's is the whole."""
    if name == "iql":
        mean = mlp(actor, "net.", obs, torch.tanh)
        return Normal(mean, actor["log_std"].clamp(-5, 2).exp().expand_as(mean))
    mean, log_std = mlp(actor, "net.", obs).chunk(2, -1)
    return Normal(mean, log_std.clamp(-5 if name == "cql" else -20, 2).exp())


def inside(action):
    return torch.max(torch.min(action, HIGH * (1 - 1e-5)), -HIGH * (1 - 1e-5))


def rl(name, actor, tree, batch, noise, constraint=True):
    """The base's own policy loss."""
    obs, critic = batch["obs"], tree["critic"]
    if name == "iql":
        value = mlp(tree["value"], "", obs).squeeze(-1)
        weight = torch.exp(3 * (least(tree["critic_target"], obs, inside(batch["action"])) - value)).clamp(max=100)
        return -(weight.detach() * gaussian(name, actor, obs).log_prob(inside(batch["action"]) / HIGH).sum(-1)).mean()
    if name in ("sac", "sac-learned", "cql"):
        normal = gaussian(name, actor, obs)
        u = normal.mean + normal.stddev * noise
        log_prob = (normal.log_prob(u) - torch.log1p(-torch.tanh(u).square())).sum(-1)
        temperature = 0.2 if name == "sac" else tree["temperature"]["log"].exp()
        return (temperature * log_prob - least(critic, obs, torch.tanh(u) * HIGH)).mean()
    action = mlp(actor, "net.", obs, torch.tanh) * HIGH
    q = mlp(critic, "q." if name == "ddpg" else "q1.", torch.cat((obs, action), -1)).squeeze(-1)
    if name != "td3_bc":
        return -q.mean()
    cloning = (action - batch["action"]).square().mean() if constraint else 0
    return -2.5 / q.detach().abs().mean() * q.mean() + cloning


def features(actor, obs):
    """What the policy's last hidden layer gives."""
    for i in range(2):
        obs = torch.relu(obs @ actor[f"net.layers.{i}.weight"] + actor[f"net.layers.{i}.bias"])
    return obs


def judged(w, seen, hidden=torch.relu):
    for i in range(2):
        seen = hidden(seen @ w[f"layers.{i}.weight"] + w[f"layers.{i}.bias"])
    return torch.nn.functional.softplus(seen @ w["layers.2.weight"] + w["layers.2.bias"]).mean()


def slopes(fn, params):
    """The value of a scalar function and its gradient, entry by entry; 0 where it depends on none."""
    leaves = {k: v.detach().clone().requires_grad_() for k, v in params.items()}
    value = fn(leaves)
    found = grad(value, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return value.detach(), dict(zip(leaves, found, strict=True))


ACTIVATIONS = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "softplus": torch.nn.functional.softplus,
    "silu": torch.nn.functional.silu,
}


def by_hand(name, options, tree, batches, adam_of_actor=None):
    """The gradients of the policy and, in forward mode, of the loss network; L_meta.

    theta(w) = theta - step(g_rl + g_aux(w)) and v = dL_meta / dtheta(w) give, with features u of the batch and their
    derivative du along slope * v, -d/dw <dL_aux/du, du>.
    """
    hidden = ACTIVATIONS[options.net.activation]
    train, fresh, noise = batches["train"], batches["validation"], batches["noise"]
    theta, w = tree["actor"], tree["loss_network"]

    def own(actor, batch, drawn):
        return rl(name, actor, tree, batch, drawn, options.constraint)

    plain, g_rl = slopes(lambda actor: own(actor, train, noise.get("policy")), theta)
    extra, g_aux = slopes(lambda actor: judged(w, features(actor, train["obs"]), hidden), theta)

    def virtual(grads):
        if options.virtual is not None:
            rate = options.virtual.hparams["lr"]
            return {k: rate * g for k, g in grads.items()}, {k: torch.full_like(g, rate) for k, g in grads.items()}
        step, slope = {}, {}
        t = float(adam_of_actor.count) + 1
        for k, g in grads.items():
            m = (0.9 * adam_of_actor.mu[k] + 0.1 * g) / (1 - 0.9**t)
            root = ((0.999 * adam_of_actor.nu[k] + 0.001 * g * g) / (1 - 0.999**t)).sqrt()
            below, by_v = root + 1e-8, torch.where(root > 0, 0.001 * g / (1 - 0.999**t) / root, 0.0)
            step[k], slope[k] = LR * m / below, LR * (0.1 / (1 - 0.9**t) / below - m / below.square() * by_v)
        return step, slope

    def after(grads):
        return {k: v - virtual(grads)[0][k] for k, v in theta.items()}

    both = {k: g_rl[k] + g_aux[k] for k in theta}
    before = own(after(g_rl), fresh, noise.get("validation/policy"))

    def meta(actor):
        gain = before - own(actor, fresh, noise.get("validation/policy"))
        return -(torch.tanh(gain) if options.bounded else gain)

    value, v = slopes(meta, after(both))
    slope = virtual(both)[1]
    u, du = jvp(lambda actor: features(actor, train["obs"]), (theta,), ({k: slope[k] * v[k] for k in v},))

    def directional(w):
        point = u.detach().clone().requires_grad_()
        (by_features,) = grad(judged(w, point, hidden), point, create_graph=True)
        return -(by_features * du).sum()

    return both, slopes(directional, w)[1], value, (plain, extra)


@pytest.mark.parametrize("name", BASES)
def test_steps_are_those_of_plain_pytorch(build, draw, apart, name):
    """Policy and loss network by hand, with their moments; what is the base's own as the base moves it."""
    options = objective()
    learner, plain = build(name, options), build(name)
    state = learner.init(torch.float64)
    tree = {group: {k: v.clone() for k, v in state.tree[group].items()} for group in ("actor", "loss_network")}
    adams = {
        "actor": torch.optim.Adam(tree["actor"].values(), LR),
        "loss_network": torch.optim.Adam(tree["loss_network"].values(), LR, weight_decay=1e-4),
    }
    period, begin = (2, 0) if name in ("td3", "td3_bc") else (1, 3 if name == "cql" else 0)
    sizes = []
    for step in range(1, 9):
        batches, entry = draw(learner, step), state
        state, metrics = learner.step(entry, batches, learner.due(step))
        theirs, _ = plain.step(entry, batches, plain.due(step))  # all but the policy, and what follows it
        for group in {"critic", "critic_target", "value", "temperature"} & set(state.tree):
            assert apart(state.tree[group], theirs.tree[group]) == 0, (step, group)
        if step % period or step <= begin:
            assert "loss_network/loss" not in metrics
            tree["actor"] = {k: v.clone() for k, v in state.tree["actor"].items()} if name == "cql" else tree["actor"]
            if name == "cql":  # which clones by then
                assert apart(state.tree["actor"], theirs.tree["actor"]) == 0
                adams["actor"] = torch.optim.Adam(tree["actor"].values(), LR)
                opt = state.opt["actor"]
                for k, p in tree["actor"].items():
                    kept = {"step": opt.count.float(), "exp_avg": opt.mu[k].clone(), "exp_avg_sq": opt.nu[k].clone()}
                    adams["actor"].state[p] = kept
            continue
        first = {"iql": {"value"}, "cql": {"temperature"}}.get(name, {"critic"})  # moves before the policy
        seen = {group: (theirs if group in first else entry).tree[group] for group in entry.tree}
        policy, network, value, (own, extra) = by_hand(name, options, {**seen, **tree}, batches)
        assert abs(metrics["actor/loss"] - own - extra) < 1e-11 and abs(metrics["actor/auxiliary"] - extra) < 1e-11
        assert abs(metrics["loss_network/loss"] - value) < 1e-11
        sizes.append(torch.cat([g.flatten() for g in network.values()]).norm())
        assert abs(metrics["loss_network/hypergradient_norm"] - sizes[-1]) < 1e-9 * sizes[-1]
        for group, grads in {"actor": policy, "loss_network": network}.items():
            for k, p in tree[group].items():
                p.grad = grads[k]
            adams[group].step()
            assert apart(state.tree[group], tree[group]) < 1e-10, (step, group)
            kept = [adams[group].state[p] for p in tree[group].values()]
            for ours, moment in ((state.opt[group].mu, "exp_avg"), (state.opt[group].nu, "exp_avg_sq")):
                assert apart(ours, dict(zip(tree[group], [k[moment] for k in kept], strict=True))) < 1e-10
    assert len(sizes) == (8 - begin) // period and min(sizes) > 1e-6


OPTIONS = {
    "default": {},
    "unbounded": {"bounded": False},
    "carried": {"virtual": None},
    "eta": {"virtual": sgd(0.5)},
    "tanh": {"net": AuxiliaryNet((12, 12), "tanh")},
    "softplus": {"net": AuxiliaryNet((12, 12), "softplus")},
    "silu": {"net": AuxiliaryNet((12, 12), "silu")},
    "without-constraint": {"constraint": False},
}


@pytest.fixture
def warm(draw):
    """A state that training has reached, with values and a loss so large that tanh bends."""

    def steps(learner):
        state = learner.init(torch.float64)
        for step in range(1, 7):
            state, _ = learner.step(state, draw(learner, step), learner.due(step))
        last = {k: v * (30 if "layers.2" in k else 1) for k, v in state.tree["critic"].items()}
        loud = {k: 4 * v for k, v in state.tree["loss_network"].items()}
        return state.with_params("critic", last).with_params("loss_network", loud)

    return steps


@pytest.mark.parametrize("name", ["td3_bc", "sac"])
@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_means_its_formula(build, warm, draw, apart, name, option):
    options = objective(**OPTIONS[option])
    learner = build(name, options)
    state, batches = warm(learner), draw(learner, 100)
    policy, network, value, _ = by_hand(name, options, state.tree, batches, state.opt["actor"])
    found = {group: learner.updates[group] for group in ("actor", "loss_network")}
    found = {group: update.gradient(update, state, batches) for group, update in found.items()}
    assert apart(found["actor"].grads, policy) < 1e-10 and apart(found["loss_network"].grads, network) < 1e-9
    assert abs(found["loss_network"].loss - value) < 1e-11
    assert found["loss_network"].metrics["hypergradient_norm"] > 1e-5


@pytest.mark.parametrize("option", [option for option in OPTIONS if option != "default"])
def test_no_option_is_idle(build, warm, draw, apart, option):
    name = "td3_bc" if option == "without-constraint" else "ddpg"
    default, learner = build(name, objective()), build(name, objective(**OPTIONS[option]))
    state, batches = warm(default), draw(default, 100)
    ours, theirs = (
        {g: made.updates[g].gradient(made.updates[g], state, batches).grads for g in ("actor", "loss_network")}
        for made in (learner, default)
    )
    assert max(apart(ours[group], theirs[group]) for group in ours) > 1e-6


@pytest.mark.parametrize("name", BASES)
def test_after_a_warm_start_a_step_is_the_plain_algorithms_bitwise(build, draw, apart, name):
    started, plain = build(name, objective(warm_start=5)), build(name)
    state = started.init()
    for step in range(1, 6):
        state, _ = started.step(state, draw(started, step, torch.float32), started.due(step))
    alone = plain.state_of({group: state.tree[group] for group in plain.init().tree})
    alone = alone._replace(opt={group: state.opt[group] for group in alone.opt})
    assert apart(state.tree["loss_network"], started.init().tree["loss_network"]) > 1e-3
    for step in range(6, 11):
        batches = draw(started, step, torch.float32)
        del batches["validation"]
        state, metrics = started.step(state, batches, started.due(step))
        alone, _ = plain.step(alone, batches, plain.due(step))
        assert not any("auxiliary" in metric or "loss_network" in metric for metric in metrics)
        for group in alone.tree:
            assert apart(state.tree[group], alone.tree[group]) == 0, (step, group)


def test_features_are_as_wide_as_the_policys_last_hidden_layer(build, spec):
    for name in BASES:
        learner = build(name, objective())
        assert learner.modules["loss_network"].layers[0].weight.shape == (14, 12)
        assert set(learner.roles) == {"train", "validation"} and learner.roles["validation"].size == 32
    wide = TD3(actor_hidden=(9, 5), **SIZES)
    generator = torch.Generator().manual_seed(0)
    learner = objective().attach(wide.build(spec, generator), spec, generator).ready()
    assert learner.modules["loss_network"].layers[0].weight.shape == (5, 12)


def test_the_probe_shows_the_loss_of_each_state(build, draw):
    learner = build("td3", objective())
    state, batches = learner.init(torch.float64), draw(learner)
    probe = learner.probes["loss_network"]
    seen, given = probe.sample(state.tree, batches)
    assert seen.shape == given.shape == (32,) and probe.curve is None and probe.role == "train"
    wanted = judged(state.tree["loss_network"], features(state.tree["actor"], batches["train"]["obs"]))
    assert math.isclose(given.mean(), wanted, rel_tol=1e-12)


def test_what_it_refuses(assemble):
    with pytest.raises(ConfigError, match="exposes no policy improvement"):
        assemble(BC(hidden=(4,)), objective())
    with pytest.raises(ConfigError, match=r"exists already|two objectives rewrite"):
        assemble(TD3(hidden=(4,)), objective(), GILD())
    with pytest.raises(ConfigError, match="a warm start of 10,000 gradient steps would be over before"):
        assemble(CQL(hidden=(4,), samples=2), objective(warm_start=10_000))
    with pytest.raises(ConfigError, match="warm_start must be a share below 1 or a whole number"):
        component("metarl.objectives", {"name": "meta_critic", "warm_start": 1.5}, "test.yaml", "objective")


def test_defaults_are_the_papers_and_every_option_has_help():
    defaults = MetaCritic()
    assert (defaults.net.hidden, defaults.net.activation, defaults.bounded) == ((100, 100), "relu", True)
    rate = {"lr": 1e-3, "weight_decay": 1e-4}
    assert defaults.optimizer.name == "adam" and {k: defaults.optimizer.hparams[k] for k in rate} == rate
    assert (defaults.virtual.name, defaults.virtual.hparams["lr"]) == ("sgd", 1e-3)
    for f in (*fields(MetaCritic), *fields(AuxiliaryNet)):
        assert f.metadata["help"], f.name


@pytest.mark.parametrize(("name", "activation"), [("td3", "tanh"), ("sac", "silu"), ("iql", "softplus")])
def test_metarl_check_passes_smooth_networks(name, activation):
    settings = {"name": "meta_critic", "net": {"activation": activation, "hidden": [12, 12]}}
    report = check(Plan(settings, name), ("compiles", "stacks", "cost"))
    assert not report.failed, report.problems
