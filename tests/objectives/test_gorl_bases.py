"""GORL on TD3+BC, SAC+BC, CQL and IQL, in each reading of the paper: against formulas written out, and differences."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.autograd import grad
from torch.distributions import Normal

from algorithms.cql import CQL
from algorithms.iql import IQL
from algorithms.sac_bc import SACBC
from algorithms.td3_bc import TD3BC
from metarl import adam, hold_stop_gradients, sgd
from metarl.checking import Plan, check
from metarl.component import component
from metarl.errors import ConfigError
from metarl.training.stepping import Stepping, stacked, unstacked
from metarl.training.streams import Noise
from objectives.gorl import GORL, GuidingNet

LR = 1e-2
STEPS = 40  # of the run, so that IQL's cosine has a say within a few of them
HIGH = torch.tensor([1.0, 0.5], dtype=torch.float64)
ALGORITHMS = {"td3_bc": TD3BC, "sac_bc": SACBC, "cql": CQL, "iql": IQL}
OWN = {
    "cql": {"samples": 3, "bc_steps": 0},
    "iql": {"value_optimizer": adam(LR)},
    "sac_bc-learned": {"auto_temperature": True},
    "iql-dropout": {"value_optimizer": adam(LR), "dropout": 0.2},
}
BASES = ("td3_bc", "sac_bc", "sac_bc-learned", "cql", "iql", "iql-dropout")
SIGNALS = {"td3_bc": "raw", "sac_bc": "raw", "cql": "scaled", "iql": "standardized"}


def algorithm(name, hidden=(16, 16), batch_size=32, **settings):
    sizes = {"hidden": hidden, "batch_size": batch_size, "actor_optimizer": adam(LR), "critic_optimizer": adam(LR)}
    return ALGORITHMS[kind(name)](**(sizes | OWN.get(name, {}) | settings))


def kind(name):
    """The algorithm, without its variant."""
    return name.partition("-")[0]


def objective(**options):
    net = GuidingNet((8,), "tanh")
    return GORL(**({"every": 2, "net": net, "optimizer": sgd(5.0), "virtual": sgd(LR), "batch_size": 6} | options))


@pytest.fixture
def build(spec):
    """`build(name, options or None, **settings)`: a ready learner; without options, the base alone."""

    def learner(name, options=None, seed=0, **settings):
        generator = torch.Generator().manual_seed(seed)
        made = algorithm(name, **settings).build(replace(spec, steps=STEPS), generator)
        return (made if options is None else options.attach(made, spec, generator)).ready()

    return learner


@pytest.fixture
def batches_of(draw):
    """`batches_of(learner, seed, dtype)`: random batches, with uniform noise where it is asked for."""

    def drawn(learner, seed=0, dtype=torch.float64):
        batches = draw(learner, seed, dtype)
        for name, noise in learner.noise.items():
            if noise.distribution == "uniform":
                batches["noise"][name] = torch.erf(batches["noise"][name] / math.sqrt(2))
        return batches

    return drawn


@pytest.fixture
def warm(batches_of):
    """`warm(learner)`: a state after some steps, every optimiser's moments filled, whose critics take either sign."""

    def trained(learner, steps=6):
        state = learner.init(torch.float64)
        for step in range(1, steps + 1):
            state, _ = learner.step(state, batches_of(learner, step), learner.due(step))
        batch, critic = batches_of(learner)["train"], dict(state.tree["critic"])
        for i in (1, 2):
            q = mlp(critic, f"q{i}.", torch.cat((batch["obs"], batch["action"]), -1))
            critic[f"q{i}.layers.2.bias"] = critic[f"q{i}.layers.2.bias"] - q.mean()
        return state.with_params("critic", critic)

    return trained


# -- the four bases by hand ----------------------------------------------------------------------------------


def mlp(params, prefix, x, hidden=torch.relu, output=lambda y: y, masks=None):
    depth = len([k for k in params if k.startswith(prefix) and k.endswith("weight")])
    for i in range(depth):
        x = x @ params[f"{prefix}layers.{i}.weight"] + params[f"{prefix}layers.{i}.bias"]
        x = hidden(x) if i < depth - 1 else output(x)
        if masks is not None and i < depth - 1:
            x = x * masks[i]
    return x


def least(critic, obs, action):
    x = torch.cat((obs, action), -1)
    return torch.min(mlp(critic, "q1.", x), mlp(critic, "q2.", x)).squeeze(-1)


def squashed(actor, obs):
    """The Gaussian before tanh."""
    mean, log_std = mlp(actor, "net.", obs).chunk(2, -1)
    return Normal(mean, log_std.clamp(-5, 2).exp())


def tanh_density(normal, u):
    return (normal.log_prob(u) - torch.log1p(-torch.tanh(u).square())).sum(-1)


def gaussian(actor, obs, noise):
    """IQL's policy, in units of the bounds."""
    masks = None
    if "dropout" in noise:  # two layers of equal width; a fifth is dropped
        masks = ((noise["dropout"] + 1) / 2 >= 0.2).double().div(0.8).chunk(2, -1)
    mean = mlp(actor, "net.", obs, output=torch.tanh, masks=masks)
    return Normal(mean, actor["log_std"].clamp(-5, 2).exp().expand_as(mean))


def temperature(name, tree):
    if name == "sac_bc":
        return 0.2
    return tree["temperature"]["log"].exp()


def parts(name, options, actor, tree, batch, noise):
    """[B] each: the policy's loss without a degree, what the degree weighs, and what B looks at."""
    obs, action = batch["obs"], batch["action"]
    reduce = torch.sum if options.reduction == "sum" else torch.mean
    if kind(name) == "iql":
        q = least(tree["critic_target"], obs, action)
        advantage = q - mlp(tree["value"], "", obs).squeeze(-1)
        weight = torch.exp((3.0 if options.keep_beta else 1.0) * advantage).clamp(max=100.0)
        log_pi = gaussian(actor, obs, noise).log_prob(action / HIGH).sum(-1)
        return torch.zeros_like(log_pi), -weight * log_pi, -log_pi
    if kind(name) == "td3_bc":
        drawn = mlp(actor, "net.", obs, output=torch.tanh) * HIGH
        q = mlp(tree["critic"], "q1.", torch.cat((obs, drawn), -1)).squeeze(-1)
        entropy = torch.zeros_like(q)
    else:
        normal = squashed(actor, obs)
        u = normal.loc + normal.scale * noise["policy"]
        drawn = torch.tanh(u) * HIGH
        q, entropy = least(tree["critic"], obs, drawn), temperature(name, tree) * tanh_density(normal, u)
    if kind(name) == "cql":
        return entropy, -q, q
    scale = 1.0 if options.improvement == "literal" else 2.5 / q.detach().abs().mean()
    constraint = reduce((drawn - action).square(), -1)
    return entropy - scale * q, constraint, constraint


def seen(name, options, tree, signal):
    """B's input."""
    value = signal if options.attach_signal else signal.detach()
    how = SIGNALS[kind(name)] if options.signal == "base" else options.signal
    if how == "scaled":
        return value / signal.detach().abs().mean()
    if how == "standardized":
        moments = tree["signal_statistics"]
        mean, square = moments["mean"] / moments["weight"], moments["square"] / moments["weight"]
        return (value - mean) / ((square - mean**2).sqrt() + 1e-3)
    return value


def policy_loss(name, options, actor, w, tree, batch, noise):
    """Eqs. 2, 11, 14 and 16."""
    free, weighed, signal = parts(name, options, actor, tree, batch, noise)
    hidden = {"tanh": torch.tanh, "sigmoid": torch.sigmoid}[options.net.activation]
    b = mlp(w, "", seen(name, options, tree, signal)[:, None], hidden, torch.sigmoid).squeeze(-1)
    return (free + b * weighed).mean()


def guide_loss(name, options, actor, tree, batch, noise):
    """Eq. 4."""
    obs, action = batch["obs"], batch["action"]
    squared = (lambda x: (x - action).square().sum(-1).mean()) if options.reduction == "sum" else None
    squared = squared or (lambda x: (x - action).square().mean())
    if kind(name) == "td3_bc":
        return squared(mlp(actor, "net.", obs, output=torch.tanh) * HIGH)
    if kind(name) == "iql":
        normal = gaussian(actor, obs, noise)
        return squared(normal.loc * HIGH) if options.outer == "mode" else -normal.log_prob(action / HIGH).sum(-1).mean()
    normal = squashed(actor, obs)
    if options.outer == "mode":
        return squared(torch.tanh(normal.loc) * HIGH)
    if kind(name) == "cql":
        return -tanh_density(normal, torch.atanh(action / HIGH)).mean()
    u = normal.loc + normal.scale * noise["policy"]
    entropy = temperature(name, tree) * tanh_density(normal, u).mean() if options.outer == "base" else 0.0
    return squared(torch.tanh(u) * HIGH) + entropy


def guide_noise(batches):
    return {name[6:]: value for name, value in batches["noise"].items() if name[:6] == "guide/"}


def adam_step(params, grads, opt):
    """Adam's new parameters and state, which may be differentiated; with IQL's cosine where there is one."""
    rate, scheduled = LR, hasattr(opt, "inner")
    if scheduled:
        rate = LR * (1 + math.cos(math.pi * float(opt.count) / STEPS)) / 2
    own = opt.inner if scheduled else opt
    t = float(own.count) + 1
    mu = {k: 0.9 * own.mu[k] + 0.1 * g for k, g in grads.items()}
    nu = {k: 0.999 * own.nu[k] + 0.001 * g * g for k, g in grads.items()}

    def root(v):  # its derivative where a unit never fired is taken as 0
        return torch.where(v > 0, torch.where(v > 0, v, 1.0).sqrt(), 0.0)

    new = {k: p - rate * mu[k] / (1 - 0.9**t) / (root(nu[k] / (1 - 0.999**t)) + 1e-8) for k, p in params.items()}
    own = own._replace(mu=mu, nu=nu, count=own.count + 1)
    return new, opt._replace(inner=own, count=opt.count + 1) if scheduled else own


def leaves(group):
    return {k: v.detach().clone().requires_grad_() for k, v in group.items()}


def meta(name, options, state, batches):
    """Eqs. 3 and 4: the adapted policy, the guide's loss there, and its gradient towards w."""
    w, actor, opt = leaves(state.tree["guiding_network"]), leaves(state.tree["actor"]), state.opt["actor"]
    for _ in range(options.steps):
        loss = policy_loss(name, options, actor, w, state.tree, batches["train"], batches["noise"])
        grads = dict(zip(actor, grad(loss, list(actor.values()), create_graph=True), strict=True))
        if options.virtual is None:
            actor, opt = adam_step(actor, grads, opt)
        else:
            actor = {k: p - LR * grads[k] for k, p in actor.items()}
    outer = guide_loss(name, options, actor, state.tree, batches["guide"], guide_noise(batches))
    return actor, outer, dict(zip(w, grad(outer, list(w.values())), strict=True))


COMMON = {
    "default": {},
    "raw": {"signal": "raw"},
    "scaled": {"signal": "scaled"},
    "standardized": {"signal": "standardized"},
    "attached": {"attach_signal": True},
    "attached-scaled": {"signal": "scaled", "attach_signal": True},
    "attached-standardized": {"signal": "standardized", "attach_signal": True},
    "hidden-sigmoid": {"net": GuidingNet((8,), "sigmoid")},
    "carried": {"virtual": None},
    "three-steps": {"steps": 3},
    "three-carried": {"virtual": None, "steps": 3},
    "three-attached-scaled": {"signal": "scaled", "attach_signal": True, "steps": 3},
}
EXPLICIT = {
    "literal": {"improvement": "literal"},
    "sum": {"reduction": "sum"},
    "literal-sum-attached": {"improvement": "literal", "reduction": "sum", "attach_signal": True},
}
MODE = {"mode": {"outer": "mode"}}
ENTROPY = {"cloning": {"outer": "cloning"}, "sum-cloning": {"reduction": "sum", "outer": "cloning"}}
SUM_MODE = {"sum-mode": {"reduction": "sum", "outer": "mode"}}
BETA = {"keep-beta": {"keep_beta": True}, "keep-beta-raw": {"keep_beta": True, "signal": "raw"}}
READINGS = {
    "td3_bc": COMMON | EXPLICIT,
    "sac_bc": COMMON | EXPLICIT | ENTROPY | MODE | SUM_MODE,
    "sac_bc-learned": {k: (COMMON | ENTROPY)[k] for k in ("default", "cloning", "three-carried")},
    "cql": COMMON | MODE,
    "iql": COMMON | MODE | BETA,
    "iql-dropout": {k: (COMMON | MODE)[k] for k in ("default", "mode", "three-carried")},
}
CASES = [
    pytest.param(name, READINGS[name][reading], id=f"{name}-{reading}") for name in BASES for reading in READINGS[name]
]


def entry_of(learner, state, batches):
    """The state that the guiding network's stage sees in a step: after those stages that come before it."""
    names = [[u.name for u in stage] for stage in learner.stages]
    position = names.index(["guiding_network"])
    return learner.step(state, batches, {name for stage in names[:position] for name in stage})[0]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_meta_step_equals_its_equations(build, warm, batches_of, apart, name, options):
    """Eqs. 3 to 5: virtual step, hypergradient, the step of w, and then the policy's with the new w."""
    options = objective(**options)
    learner = build(name, options)
    state, batches = warm(learner), batches_of(learner, 100)
    entry = entry_of(learner, state, batches)
    update, policy = learner.updates["guiding_network"], learner.updates["actor"]

    drawn = learner.policy.action(entry.tree, batches["train"]["obs"], batches["noise"])
    q = learner.policy.q(entry.tree, batches["train"]["obs"], drawn)
    assert q.min() < 0 < q.max()  # so that the mean of |Q| is not |mean of Q|

    adapted, outer, grads = meta(name, options, entry, batches)
    estimate = update.gradient(update, entry, batches)
    assert apart(estimate.inner, adapted) < 1e-10
    assert abs(estimate.loss - outer) < 1e-10 * abs(outer)
    assert estimate.metrics["hypergradient_norm"] > 1e-8
    assert apart(estimate.grads, grads) < 1e-10

    new, _ = learner.step(state, batches, learner.due(8))
    w = {k: p - 5.0 * grads[k] for k, p in entry.tree["guiding_network"].items()}
    assert apart(new.tree["guiding_network"], w) < 1e-10

    actor = leaves(entry.tree["actor"])
    loss = policy_loss(name, options, actor, w, entry.tree, batches["train"], batches["noise"])
    own = dict(zip(actor, grad(loss, list(actor.values())), strict=True))
    moved = entry.with_params("guiding_network", w)
    assert apart(policy.gradient(policy, moved, batches).grads, own) < 1e-10
    assert apart(new.tree["actor"], adam_step(entry.tree["actor"], own, entry.opt["actor"])[0]) < 1e-10


def central_differences(fn, params, h=1e-3):
    """A group's gradient by five-point differences, values that losses stop held; and the rounding in it."""
    with hold_stop_gradients() as rewind, torch.no_grad():
        value = fn(params)[0]

        def at(name, index, step):
            moved = params[name].clone()
            moved.view(-1)[index] += step
            rewind()
            return fn({**params, name: moved})[0]

        def slope(name, i):
            near = at(name, i, h) - at(name, i, -h)
            return (8 * near - at(name, i, 2 * h) + at(name, i, -2 * h)) / (12 * h)

        slopes = [slope(name, i) for name, p in params.items() for i in range(p.numel())]
    return torch.stack(slopes), float(2e-16 * value.abs() / h)


@pytest.mark.parametrize(("name", "options"), [case for case in CASES if case.values[0] != "td3_bc"])
def test_the_hypergradient_equals_central_differences(build, warm, batches_of, name, options):
    """Through the virtual steps as they are, without the formulas above; for TD3+BC see test_gorl_hypergradient.py."""
    net = replace(options.get("net", GuidingNet((), "tanh")), hidden=(2,))
    learner = build(name, objective(**options | {"net": net, "batch_size": 5}), hidden=(6, 6), batch_size=16, seed=1)
    state, batches = warm(learner), batches_of(learner, 100)
    update = learner.updates["guiding_network"]
    grads = update.gradient(update, state, batches).grads
    expected, noise = central_differences(update.gradient.objective(update, state, batches), state.tree[update.params])
    found = torch.cat([g.flatten() for g in grads.values()])
    assert found.norm() > 1e6 * noise
    assert (found - expected).norm() < 1e-6 * found.norm()


# -- a degree of 1, and of 0 ---------------------------------------------------------------------------------


def trained(learner, state, batches_of, source, steps=8):
    """After some steps on the batches of `source`, whose roles and noise may be more than the learner's."""
    dtype = next(iter(state.tree["actor"].values())).dtype
    for step in range(1, steps + 1):
        state, metrics = learner.step(state, batches_of(source, step, dtype), learner.due(step))
    return state, metrics


def biased(state, bias):
    """A guiding network whose output's bias outweighs everything: B is 1 or 0 to the last bit."""
    group = state.tree["guiding_network"]
    last = [k for k in group if k.endswith("bias")][-1]
    return state.with_params("guiding_network", {**group, last: torch.full_like(group[last], bias)})


def as_base(name):
    """The options with which a degree of 1 is the base."""
    return {"keep_beta": True} if kind(name) == "iql" else {}


@pytest.mark.parametrize(
    ("signal", "attached"),
    [("base", False), ("base", True), ("raw", False), ("scaled", True), ("standardized", True)],
)
@pytest.mark.parametrize("name", BASES)
def test_b_of_one_is_the_base_bitwise(build, batches_of, apart, name, signal, attached):
    settings = {"bc_steps": 3} if name == "cql" else {}
    options = objective(optimizer=sgd(0.0), signal=signal, attach_signal=attached, **as_base(name))
    base, guided = build(name, **settings), build(name, options, **settings)
    a, _ = trained(base, base.init(), batches_of, guided)
    b, metrics = trained(guided, biased(guided.init(), 100.0), batches_of, guided)
    assert metrics["actor/b_mean"] == 1 and metrics["actor/b_std"] == 0
    assert apart({k: b.tree[k] for k in a.tree}, a.tree) == 0
    assert apart({k: b.opt[k] for k in a.opt}, a.opt) == 0
    assert apart(a.tree["actor"], base.init().tree["actor"]) > 1e-3


@pytest.mark.parametrize("name", BASES)
def test_b_below_one_is_not_the_base(build, batches_of, apart, name):
    base, guided = build(name), build(name, objective(optimizer=sgd(0.0), **as_base(name)))
    a, _ = trained(base, base.init(), batches_of, guided)
    b, _ = trained(guided, biased(guided.init(), 0.0), batches_of, guided)
    assert apart(b.tree["actor"], a.tree["actor"]) > 1e-3


@pytest.mark.parametrize("name", ["iql", "iql-dropout"])
def test_eq_14_has_no_beta(build, batches_of, apart, name):
    """Without `keep_beta`, B of 1 is IQL with beta 1, bitwise, and so not the IQL that it is attached to."""
    guided = build(name, objective(optimizer=sgd(0.0)))
    ours, _ = trained(guided, biased(guided.init(), 100.0), batches_of, guided)
    trees = {}
    for beta in (1.0, 3.0):
        base = build(name, beta=beta)
        trees[beta] = trained(base, base.init(), batches_of, guided)[0].tree
    assert apart({k: ours.tree[k] for k in trees[1.0]}, trees[1.0]) == 0
    assert apart(ours.tree["actor"], trees[3.0]["actor"]) > 1e-3


@pytest.mark.parametrize("name", BASES)
def test_b_of_zero_leaves_what_no_degree_weighs(build, warm, batches_of, apart, name):
    """-Q and the entropy on TD3+BC and SAC+BC; the entropy alone on CQL; nothing on IQL."""
    options = objective()
    learner = build(name, options)
    state, batches = biased(warm(learner), -1000.0), batches_of(learner, 100)
    update, actor = learner.updates["actor"], leaves(state.tree["actor"])
    free, _, _ = parts(name, options, actor, state.tree, batches["train"], batches["noise"])
    grads = update.gradient(update, state, batches).grads
    if kind(name) == "iql":
        assert all(g.abs().max() == 0 for g in grads.values())
    else:
        expected = dict(zip(actor, grad(free.mean(), list(actor.values())), strict=True))
        assert apart(grads, expected) < 1e-10


# -- when, and on what ---------------------------------------------------------------------------------------

BEFORE = {
    "td3_bc": [["critic"], ["guiding_network"], ["actor"], ["critic_target", "actor_target"]],
    "sac_bc": [["critic"], ["guiding_network"], ["actor"], ["critic_target"]],
    "sac_bc-learned": [["critic"], ["guiding_network"], ["actor", "temperature"], ["critic_target"]],
    "cql": [["temperature"], ["guiding_network"], ["actor", "critic"], ["critic_target"]],
    "iql": [["value"], ["guiding_network"], ["actor", "critic"], ["critic_target"]],
    "iql-dropout": [["value"], ["guiding_network"], ["actor", "critic"], ["critic_target"]],
}


@pytest.mark.parametrize("name", BASES)
def test_the_guiding_network_moves_right_before_the_policy(build, name):
    learner = build(name, objective(signal="raw"))
    assert [[u.name for u in stage] for stage in learner.stages] == BEFORE[name]
    assert learner.updates["guiding_network"].inners == (learner.updates["actor"],)
    due = [step for step in range(1, 13) if "guiding_network" in learner.due(step)]
    assert due == [2, 4, 6, 8, 10, 12]


def test_gorl_waits_for_the_end_of_cqls_warm_up(build, batches_of, apart):
    learner = build("cql", objective(every=4, signal="standardized"), bc_steps=9)
    due = {step: learner.due(step) for step in range(1, 26)}
    assert [step for step in due if "guiding_network" in due[step]] == [12, 16, 20, 24]
    assert [step for step in due if "signal_statistics" in due[step]] == [*range(10, 26)]
    assert [step for step in due if "cloning" in due[step]] == [*range(1, 10)]
    start = learner.init(torch.float64)
    state, _ = trained(learner, start, batches_of, learner, 9)
    for group in ("guiding_network", "signal_statistics"):
        assert apart(state.tree[group], start.tree[group]) == 0
        assert apart(state.opt[group], start.opt[group]) == 0
    base = build("cql", bc_steps=9)
    plain, _ = trained(base, base.init(torch.float64), batches_of, learner, 9)
    assert apart({k: state.tree[k] for k in plain.tree}, plain.tree) == 0


def test_gorl_waits_where_the_warm_up_is_a_share_of_the_run(build):
    learner = build("cql", objective(every=4), bc_share=0.5)
    assert [step for step in range(1, STEPS + 1) if "guiding_network" in learner.due(step)] == [24, 28, 32, 36, 40]


@pytest.mark.parametrize("name", BASES)
def test_running_moments_follow_the_signal_beside_the_policy(build, batches_of, name):
    """mean <- mean + 0.01 (m - mean) with the moments of the policy before its step."""
    options = objective(signal="standardized", net=GuidingNet((8,)))
    learner = build(name, options)
    beside = next(stage for stage in learner.stages if any(u.name == "actor" for u in stage))
    assert "signal_statistics" in {u.name for u in beside}
    state, moved = learner.init(torch.float64), 0
    mean, square, weight = 0.0, 0.01, 0.01
    for step in range(1, 9):
        batches, due = batches_of(learner, step), learner.due(step)
        entry = entry_of(learner, state, batches) if "actor" in due else state
        if "actor" in due:
            args = entry.tree["actor"], entry.tree, batches["train"], batches["noise"]
            signal = parts(name, options, *args)[2]
            mean, square = mean + 0.01 * (signal.mean() - mean), square + 0.01 * (signal.square().mean() - square)
            weight += 0.01 * (1 - weight)
            moved += 1
        state, _ = learner.step(state, batches, due)
        statistics = state.tree["signal_statistics"]
        expected = {"mean": mean, "square": square, "weight": weight}
        assert all(abs(statistics[name] - value) <= 1e-7 * abs(value) for name, value in expected.items())
    assert moved == (8 if kind(name) in ("cql", "iql") else 4)


@pytest.mark.parametrize("name", BASES)
def test_the_signal_is_looked_at_as_suits_the_base(build, name):
    """`base` means raw on TD3+BC and SAC+BC, scaled on CQL, standardized on IQL."""
    learners = {signal: build(name, objective(signal=signal)) for signal in ("base", "raw", "scaled", "standardized")}
    tracked = {signal for signal, learner in learners.items() if "signal_statistics" in learner.updates}
    assert tracked == {"standardized"} | ({"base"} if kind(name) == "iql" else set())
    label = {s: learner.probes["guiding_network"].input_name for s, learner in learners.items()}
    # A value or a log-density by itself is no constraint.
    assert label["raw"] == ("policy constraint" if SIGNALS[kind(name)] == "raw" else "signal")
    assert label["scaled"] == label["standardized"] == "signal"
    assert label["base"] == label[SIGNALS[kind(name)]]


@pytest.mark.parametrize("name", BASES)
def test_the_probe_shows_what_b_sees_and_says(build, warm, batches_of, name):
    options = objective()
    learner = build(name, options)
    state, batches = warm(learner), batches_of(learner, 100)
    found, b = learner.probes["guiding_network"].sample(state.tree, batches)
    signal = parts(name, options, state.tree["actor"], state.tree, batches["train"], batches["noise"])[2]
    assert torch.allclose(found, seen(name, options, state.tree, signal), rtol=1e-10)
    assert torch.allclose(learner.probes["guiding_network"].curve(state.tree, found), b, rtol=1e-12)
    assert found.shape == b.shape == (32,) and ((b > 0) & (b < 1)).all()


# -- noise ---------------------------------------------------------------------------------------------------

NOISE = {"td3_bc": {}, "cql": {"policy": (2,)}, "iql": {}, "iql-dropout": {"dropout": (32,)}}


@pytest.mark.parametrize("name", BASES)
def test_the_guide_has_noise_of_its_own(build, warm, batches_of, apart, name):
    """Of the guide's batch size, another draw than the training batch's, and the only one that Eq. 4 reads."""
    learner, base = build(name, objective(batch_size=6)), build(name)
    wanted = NOISE.get(name, {"policy": (2,)})
    shapes = {k: n.whole_shape(learner.roles) for k, n in learner.noise.items()}
    assert set(learner.noise) - set(base.noise) == {f"guide/{key}" for key in wanted}
    assert {k: learner.noise[k] for k in base.noise} == base.noise
    state, batches = warm(learner), batches_of(learner, 100)
    loss = learner.updates["guiding_network"].loss
    for key, shape in wanted.items():
        assert shapes[f"guide/{key}"] == (6, *shape) and shapes[key] == (32, *shape)
        assert learner.noise[f"guide/{key}"].distribution == learner.noise[key].distribution
        drawn = [
            Noise(learner.noise[k], shapes[k], 0, k, torch.float64, torch.device("cpu")).draw(1)
            for k in (key, f"guide/{key}")
        ]
        assert (drawn[0][:6] - drawn[1]).abs().min() > 1e-6
        other = {**batches, "noise": batches["noise"] | {f"guide/{key}": -batches["noise"][f"guide/{key}"]}}
        reads = name != "cql"  # -log pi(a|s) draws nothing
        assert (loss(state.tree, other) != loss(state.tree, batches)) == reads
    untouched = {k: torch.full_like(v, torch.nan) for k, v in batches["noise"].items() if k in base.noise}
    assert loss(state.tree, {**batches, "noise": batches["noise"] | untouched}) == loss(state.tree, batches)


# -- settings ------------------------------------------------------------------------------------------------


REFUSED = {
    "cql-literal": ("cql", {"improvement": "literal"}, "leave improvement=literal out"),
    "iql-literal": ("iql", {"improvement": "literal"}, "leave improvement=literal out"),
    "cql-sum": ("cql", {"reduction": "sum"}, "leave reduction=sum out"),
    "iql-sum": ("iql", {"reduction": "sum"}, "leave reduction=sum out"),
    "td3_bc-beta": ("td3_bc", {"keep_beta": True}, "keep_beta is for iql"),
    "sac_bc-beta": ("sac_bc", {"keep_beta": True}, "keep_beta is for iql"),
    "cql-beta": ("cql", {"keep_beta": True}, "keep_beta is for iql"),
    "td3_bc-cloning": ("td3_bc", {"outer": "cloning"}, "outer=cloning leaves the entropy out"),
    "cql-cloning": ("cql", {"outer": "cloning"}, "outer=cloning leaves the entropy out"),
    "iql-cloning": ("iql", {"outer": "cloning"}, "outer=cloning leaves the entropy out"),
    "td3_bc-mode": ("td3_bc", {"outer": "mode"}, "outer=mode is how this algorithm clones"),
}


@pytest.mark.parametrize(("name", "setting", "message"), REFUSED.values(), ids=REFUSED)
def test_a_reading_that_the_base_has_not_is_refused(build, name, setting, message):
    """None is ignored without a word."""
    with pytest.raises(ConfigError, match=f"objective gorl: .*{message}"):
        build(name, objective(**setting))


def test_preset_periods_are_those_of_tables_vi_to_ix(spec):
    periods = {"td3_bc": 500, "sac_bc": 500, "cql": 200, "cql_adroit": 100, "iql": 200, "iql_adroit": 1}
    assert set(GORL.presets) == {*periods, "quick"}
    for preset, every in periods.items():
        node = {"name": "gorl", "preset": preset}
        built, _ = component("metarl.objectives", node, "test.yaml", "objective")
        assert (built.every, built.batch_size, built.net.hidden) == (every, 20, (100,))
        assert (built.optimizer.name, built.optimizer.hparams["lr"]) == ("adam", 1e-5)
        base = ALGORITHMS[preset.removesuffix("_adroit")]()
        assert built.virtual.name == "sgd"
        assert built.virtual.hparams["lr"] == base.actor_optimizer.hparams["lr"]  # a_D is the policy's rate
        made = base.build(spec, torch.Generator().manual_seed(0))
        built.attach(made, spec, torch.Generator().manual_seed(0)).ready()  # a multiple of the policy's period


# -- ways to run ---------------------------------------------------------------------------------------------


VARIANTS = ("td3_bc", "sac_bc-learned", "iql-dropout")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in VARIANTS else []) for n in BASES])
def test_recorded_and_stacked_steps_equal_eager_ones(build, batches_of, apart, name):
    """Two seeds, each alone eagerly, against the first recorded alone and against both recorded together."""
    options = objective(optimizer=adam(LR, eps=1e-12))
    learner, other = (build(name, options, seed) for seed in (0, 1))
    starts = [learner.init(torch.float64), other.init(torch.float64)]
    alone = [Stepping(learner, state) for state in starts]
    recorded, both = Stepping(learner, starts[0], "recorded"), Stepping(learner, stacked(starts), "recorded", 2)
    for step in range(1, 7):
        due = learner.due(step)
        batches = [batches_of(learner, 10 * step + seed) for seed in (0, 1)]
        metrics = [stepping(own, due) for stepping, own in zip(alone, batches, strict=True)]
        assert apart(recorded(batches[0], due), metrics[0]) < 1e-10
        assert apart(both(stacked(batches), due), stacked(metrics)) < 1e-10
    assert apart(recorded.state.tree, alone[0].state.tree) < 1e-10
    for seed, stepping in enumerate(alone):
        assert apart(unstacked(both.state.tree, seed), stepping.state.tree) < 1e-10
        assert apart(stepping.state.tree["guiding_network"], starts[seed].tree["guiding_network"]) > 1e-3


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("guide", ["gorl", "fixed"])
def test_metarl_check_finds_nothing(guide, name):
    report = check(Plan({"name": guide}, name), skip=("cost",))
    assert (report.algorithm, report.status) == (name, "ok"), report.problems
