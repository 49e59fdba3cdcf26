"""GILD on seven bases: every step against a derivation of its own, differences, each option, and the warm start."""

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
from metarl import Learner, adam, config, sgd
from metarl.checking import Plan, check
from metarl.component import component
from metarl.data.recipes import make_dataset
from metarl.data.transitions import Card, Layout, Transitions
from metarl.errors import ConfigError
from metarl.training import checkpoints, offline
from metarl.training.progress import Silent
from metarl.training.streams import Streams
from objectives.gild import GILD, LossNet
from objectives.gorl import GORL

LR, RATE = 1e-2, 0.1  # of every optimiser; eta of the virtual steps
STEPS = 40  # of the run, so that IQL's cosine has a say
HIGH = torch.tensor([1.0, 0.5], dtype=torch.float64)
SIZES = {"hidden": (16, 16), "batch_size": 32, "actor_optimizer": adam(LR), "critic_optimizer": adam(LR)}
BASES = {
    "ddpg": DDPG(**SIZES),
    "td3": TD3(**SIZES),
    "sac": SAC(auto_temperature=False, **SIZES),
    "sac-learned": SAC(auto_temperature=True, temperature=0.3, **SIZES),
    "td3_bc": TD3BC(**SIZES),
    "iql": IQL(value_optimizer=adam(LR), **SIZES),
    "cql": CQL(samples=3, bc_steps=3, **SIZES),
}
ACTIVATIONS = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "softplus": torch.nn.functional.softplus,
    "silu": torch.nn.functional.silu,
}
SMOOTH = ("silu", "tanh", "softplus")


def objective(**options):
    defaults = {
        "net": LossNet((16, 16)),
        "optimizer": adam(LR, weight_decay=1e-4),
        "virtual": sgd(RATE),
        "batch_size": 24,
    }
    return GILD(**(defaults | options))


@pytest.fixture
def build(spec):
    """`build(name, options or None)`: a ready learner; without options, the base alone."""

    def learner(name, options=None, seed=0):
        generator = torch.Generator().manual_seed(seed)
        own = replace(spec, steps=STEPS)
        made = BASES[name].build(own, generator)
        return (made if options is None else options.attach(made, own, generator)).ready()

    return learner


@pytest.fixture
def trained(draw):
    """`trained(learner, steps=6)`: a state whose optimisers' moments are those of training."""

    def steps(learner, steps=6, first=1, dtype=torch.float64):
        state = learner.init(dtype)
        for step in range(first, first + steps):
            state, _ = learner.step(state, draw(learner, step, dtype), learner.due(step))
        return state

    return steps


@pytest.fixture
def imagined(spec):
    """Data of random rows."""
    layout = Layout(spec.obs_dim, spec.action_dim)
    rows = torch.randn(50, layout.width, generator=torch.Generator().manual_seed(0))
    return Transitions(rows, layout, torch.tensor([0, 50]), Card(source="imagined", dataset_id="imagined"))


# -- everything by hand --------------------------------------------------------------------------------------


def mlp(params, prefix, x, hidden=torch.relu, output=lambda y: y):
    depth = len([k for k in params if k.startswith(prefix) and k.endswith("weight")])
    for i in range(depth):
        x = x @ params[f"{prefix}layers.{i}.weight"] + params[f"{prefix}layers.{i}.bias"]
        x = hidden(x) if i < depth - 1 else output(x)
    return x


def slopes(fn, params):
    """The value of a scalar function and its gradient, entry by entry; 0 where it depends on none."""
    leaves = {k: v.detach().clone().requires_grad_() for k, v in params.items()}
    value = fn(leaves)
    found = grad(value, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return value.detach(), dict(zip(leaves, found, strict=True))


def minus(params, steps, factor=1.0):
    return {k: v - factor * steps[k] for k, v in params.items()}


def plus(a, b, factor):
    return {k: v + factor * b[k] for k, v in a.items()}


class Hand:
    """The base's and GILD's steps in plain PyTorch: a tree of tensors, and a torch.optim.Adam for each group."""

    def __init__(self, name, learner, options):
        self.name, self.kind, self.options = name, name.partition("-")[0], options
        state = learner.init(torch.float64)
        self.tree = {group: {k: v.clone() for k, v in params.items()} for group, params in state.tree.items()}
        self.adams = {
            group: torch.optim.Adam(params.values(), LR, weight_decay=1e-4 if group == "loss_network" else 0)
            for group, params in self.tree.items()
            if "target" not in group
        }
        self.count, self.clones, self.meta_gradient, self.gain = 0, False, None, None

    # -- networks --

    def gaussian(self, actor, obs):
        """Before tanh; IQL's is the whole."""
        if self.kind == "iql":
            mean = mlp(actor, "net.", obs, output=torch.tanh)
            return Normal(mean, actor["log_std"].clamp(-5, 2).exp().expand_as(mean))
        mean, log_std = mlp(actor, "net.", obs).chunk(2, -1)
        return Normal(mean, log_std.clamp(-20 if self.kind == "sac" else -5, 2).exp())

    def sample(self, actor, obs, noise):
        """An action in units of its bounds, and its log-density."""
        normal = self.gaussian(actor, obs)
        u = normal.mean + normal.stddev * noise
        return torch.tanh(u), (normal.log_prob(u) - torch.log1p(-torch.tanh(u).square())).sum(-1)

    def action(self, actor, obs, noise):
        if self.kind in ("ddpg", "td3", "td3_bc"):
            return mlp(actor, "net.", obs, output=torch.tanh) * HIGH
        if self.kind == "iql":
            return self.gaussian(actor, obs).mean * HIGH
        return self.sample(actor, obs, noise)[0] * HIGH

    def twins(self, critic, obs, action):
        x = torch.cat((obs, action), -1)
        return mlp(critic, "q1.", x).squeeze(-1), mlp(critic, "q2.", x).squeeze(-1)

    def q(self, tree, obs, action):
        """What the policy climbs."""
        if self.kind == "ddpg":
            return mlp(tree["critic"], "q.", torch.cat((obs, action), -1)).squeeze(-1)
        one, two = self.twins(tree["critic"], obs, action)
        return one if self.kind in ("td3", "td3_bc") else torch.min(one, two)

    def temperature(self, tree):
        return 0.2 if self.name == "sac" else tree["temperature"]["log"].exp()

    def inside(self, action):
        return torch.max(torch.min(action, HIGH * (1 - 1e-5)), -HIGH * (1 - 1e-5))

    # -- losses of the policy --

    def rl(self, actor, tree, batch, noise):
        obs = batch["obs"]
        if self.kind == "iql":
            advantage = torch.min(*self.twins(tree["critic_target"], obs, self.inside(batch["action"])))
            advantage = (advantage - mlp(tree["value"], "", obs).squeeze(-1)).detach()
            return -(torch.exp(3 * advantage).clamp(max=100) * self.log_prob(actor, batch)).mean()
        if self.kind in ("sac", "cql"):
            unit, log_prob = self.sample(actor, obs, noise)
            return (self.temperature(tree) * log_prob - self.q(tree, obs, unit * HIGH)).mean()
        action = self.action(actor, obs, noise)
        q = self.q(tree, obs, action)
        if self.kind != "td3_bc":
            return -q.mean()
        cloning = (action - batch["action"]).square().mean() if self.options.constraint else 0
        return -2.5 / q.detach().abs().mean() * q.mean() + cloning

    def log_prob(self, actor, batch):
        """IQL's, of the data's actions."""
        return self.gaussian(actor, batch["obs"]).log_prob(self.inside(batch["action"]) / HIGH).sum(-1)

    def il(self, actor, batch, noise):
        if self.kind == "iql":
            return -self.log_prob(actor, batch).mean()
        if self.kind == "sac":  # no correction for tanh, and a mean over dimensions
            return -self.gaussian(actor, batch["obs"]).log_prob(batch["action"] / HIGH).mean()
        if self.kind == "cql":
            unit = batch["action"] / HIGH
            density = self.gaussian(actor, batch["obs"]).log_prob(torch.atanh(unit)) - torch.log1p(-unit.square())
            return -density.sum(-1).mean()
        return (self.action(actor, batch["obs"], noise) - batch["action"]).square().mean()

    def g(self, w, action, demo):
        hidden = ACTIVATIONS[self.options.net.activation]
        x = torch.cat((action, demo["obs"], demo["action"]), -1)
        return mlp(w, "", x, hidden, torch.nn.functional.softplus).mean()

    def gild(self, actor, w, batches):
        demo = batches["demo"]
        return self.g(w, self.action(actor, demo["obs"], self.noise(batches, "demo/policy")), demo)

    def noise(self, batches, name="policy"):
        return batches["noise"].get(name)

    def utility(self, actor, tree, batches):
        batch, noise = batches["validation"], self.noise(batches, "validation/policy")
        if self.options.utility == "rl_loss":
            return -self.rl(actor, tree, batch, noise)
        return self.q(tree, batch["obs"], self.action(actor, batch["obs"], noise)).mean()

    # -- the virtual steps --

    def virtual(self, grads):
        """The virtual optimiser's step along a gradient, and the step's derivative by it, entry by entry."""
        if self.options.virtual is not None:
            rate = self.options.virtual.hparams["lr"]
            return {k: rate * g for k, g in grads.items()}, {k: torch.full_like(g, rate) for k, g in grads.items()}
        step, slope = {}, {}
        for (k, g), p in zip(grads.items(), self.tree["actor"].values(), strict=True):
            carried, lr = self.adams["actor"].state[p], self.adams["actor"].param_groups[0]["lr"]
            t = float(carried.get("step", 0)) + 1
            m = (0.9 * carried.get("exp_avg", 0) + 0.1 * g) / (1 - 0.9**t)
            v = (0.999 * carried.get("exp_avg_sq", 0) + 0.001 * g * g) / (1 - 0.999**t)
            root = v.sqrt()
            below = root + 1e-8
            by_v = torch.where(root > 0, 0.001 * g / (1 - 0.999**t) / root, 0.0)
            step[k] = lr * m / below
            slope[k] = lr * (0.1 / (1 - 0.9**t) / below - m / below.square() * by_v)
        return step, slope

    def losses(self, tree, batches):
        """The gradients that the policy's steps are made of."""
        actor, demo = tree["actor"], batches["demo"]
        return (
            slopes(lambda a: self.rl(a, tree, batches["train"], self.noise(batches)), actor),
            slopes(lambda a: self.gild(a, tree["loss_network"], batches), actor),
            slopes(lambda a: self.il(a, demo, self.noise(batches, "demo/policy")), actor),
        )

    def meta(self, tree, batches):
        """The gradient of L_meta by w, in forward mode: nothing of the policy's or the critic's is derived twice.

        theta(w) = theta - step(g_rl + weight g_gild(w)) and v = dL_meta / dtheta(w) give, with the demonstrated states'
        actions u and their derivative du along slope * v, -weight d/dw <dL_gild/du, du>.
        """
        options, demo = self.options, batches["demo"]
        (_, g_rl), (_, g_gild), (_, g_il) = self.losses(tree, batches)
        step, slope = self.virtual(plus(g_rl, g_gild, options.weight))
        other = self.utility(minus(tree["actor"], self.virtual(plus(g_rl, g_il, options.il_weight))[0]), tree, batches)

        def loss(actor):
            self.gain = self.utility(actor, tree, batches) - other
            return -(torch.tanh(self.gain) if options.bounded else self.gain)

        value, v = slopes(loss, minus(tree["actor"], step))
        along = {k: slope[k] * v[k] for k in v}
        noise = self.noise(batches, "demo/policy")
        u, du = jvp(lambda actor: self.action(actor, demo["obs"], noise), (tree["actor"],), (along,))

        def directional(w):
            point = u.detach().clone().requires_grad_()
            (by_action,) = grad(self.g(w, point, demo), point, create_graph=True)
            return -options.weight * (by_action * du).sum()

        return value, slopes(directional, tree["loss_network"])[1]

    # -- steps --

    def apply(self, group, grads):
        for k, p in self.tree[group].items():
            p.grad = grads[k].reshape(p.shape)
        self.adams[group].step()

    def follow(self, target, source):
        for k, p in self.tree[target].items():
            p.lerp_(self.tree[source][k], 0.005)

    def critic_gradient(self, batches):
        tree, batch, kind = self.tree, batches["train"], self.kind
        obs, next_obs, noise = batch["obs"], batch["next_obs"], batches["noise"]
        left = 0.99 * (1 - batch["terminated"])
        if kind == "iql":
            y = batch["reward"] + left * mlp(tree["value"], "", next_obs).squeeze(-1)
        elif kind in ("sac", "cql"):
            unit, log_prob = self.sample(tree["actor"], next_obs, noise["next_policy"])
            q = torch.min(*self.twins(tree["critic_target"], next_obs, unit * HIGH))
            y = batch["reward"] + left * (q if kind == "cql" else q - self.temperature(tree) * log_prob)
        else:
            action = self.action(tree["actor_target"], next_obs, None)
            if kind == "ddpg":
                q = self.q({"critic": tree["critic_target"]}, next_obs, action)
            else:
                smooth = (0.2 * noise["target_smoothing"]).clamp(-0.5, 0.5) * HIGH
                action = torch.max(torch.min(action + smooth, HIGH), -HIGH)
                q = torch.min(*self.twins(tree["critic_target"], next_obs, action))
            y = batch["reward"] + left * q

        def loss(critic):
            if kind == "ddpg":
                return (self.q({"critic": critic}, obs, batch["action"]) - y).square().mean()
            action = self.inside(batch["action"]) if kind == "iql" else batch["action"]
            qs = self.twins(critic, obs, action)
            total = sum((q - y).square().mean() for q in qs)
            if kind != "cql":
                return total
            columns = [
                [(q, math.log(0.25)) for q in self.twins(critic, obs, noise["uniform"][:, j] * HIGH)] for j in range(3)
            ]
            for source, drawn in ((next_obs, "next_samples"), (obs, "samples")):
                for j in range(3):
                    unit, log_prob = self.sample(tree["actor"], source, noise[drawn][:, j])
                    columns.append([(q, log_prob) for q in self.twins(critic, obs, unit * HIGH)])
            for i, q in enumerate(qs):
                z = torch.stack([column[i][0] - column[i][1] for column in columns], -1)
                total = total + 5 * (z.exp().sum(-1).log() - q).mean()
            return total

        return slopes(loss, tree["critic"])[1]

    def value_gradient(self, batch):
        q = torch.min(*self.twins(self.tree["critic_target"], batch["obs"], self.inside(batch["action"])))

        def loss(value):
            u = q - mlp(value, "", batch["obs"]).squeeze(-1)
            return (abs(0.7 - (u < 0).double()) * u.square()).mean()

        return slopes(loss, self.tree["value"])[1]

    def temperature_gradient(self, batches):
        log_prob = self.sample(self.tree["actor"], batches["train"]["obs"], self.noise(batches))[1].detach()
        return slopes(lambda group: -(group["log"] * (log_prob - 2)).mean(), self.tree["temperature"])[1]

    def policy_gradients(self, batches, due):
        """What moves the policy and the loss network, both by the state as it is."""
        tree = self.tree
        if self.kind == "cql" and self.count <= 3:

            def cloning(actor):
                _, log_prob = self.sample(actor, batches["train"]["obs"], self.noise(batches))
                clone = self.il(actor, batches["train"], None)
                return (self.temperature(tree) * log_prob).mean() + clone

            return {"actor": slopes(cloning, tree["actor"])[1]}
        if not due:
            return {}
        (_, g_rl), (_, g_gild), _ = self.losses(tree, batches)
        self.meta_gradient = self.meta(tree, batches)[1]
        return {"actor": plus(g_rl, g_gild, self.options.weight), "loss_network": self.meta_gradient}

    def step(self, batches):
        self.count += 1
        self.meta_gradient = None
        kind, due = self.kind, self.kind not in ("td3", "td3_bc") or self.count % 2 == 0
        if kind == "cql":
            self.apply("temperature", self.temperature_gradient(batches))
        elif kind == "iql":
            self.apply("value", self.value_gradient(batches["train"]))
            self.adams["actor"].param_groups[0]["lr"] = LR * (1 + math.cos(math.pi * (self.count - 1) / STEPS)) / 2
        else:
            self.apply("critic", self.critic_gradient(batches))
        together = self.policy_gradients(batches, due)
        if kind in ("cql", "iql"):
            together["critic"] = self.critic_gradient(batches)
        if self.name == "sac-learned":
            together["temperature"] = self.temperature_gradient(batches)
        for group, grads in together.items():
            self.apply(group, grads)
        if due:
            self.follow("critic_target", "critic")
            if kind in ("ddpg", "td3", "td3_bc"):
                self.follow("actor_target", "actor")

    def moments(self, group):
        kept = [self.adams[group].state[p] for p in self.tree[group].values()]
        return [dict(zip(self.tree[group], [s[m] for s in kept], strict=True)) for m in ("exp_avg", "exp_avg_sq")]


# -- steps ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("virtual", ["sgd", "carried"])
@pytest.mark.parametrize("name", BASES)
def test_eight_steps_are_those_of_plain_pytorch(build, draw, apart, name, virtual):
    """Every group and both its moments after every step; the loss network's gradient is no rounding error."""
    options = objective() if virtual == "sgd" else objective(virtual=None)
    learner = build(name, options)
    state, hand = learner.init(torch.float64), Hand(name, learner, options)
    sizes = []
    for step in range(1, 9):
        batches = draw(learner, step)
        state, metrics = learner.step(state, batches, learner.due(step))
        hand.step(batches)
        for group, params in hand.tree.items():
            assert apart(state.tree[group], params) < 1e-10, (step, group)
        if hand.meta_gradient is None:
            assert "loss_network/loss" not in metrics
            continue
        size = torch.cat([g.flatten() for g in hand.meta_gradient.values()]).norm()
        sizes.append(size)
        assert abs(metrics["loss_network/hypergradient_norm"] - size) < 1e-9 * size
        assert abs(metrics["loss_network/gain"] - hand.gain) < 1e-12
    assert len(sizes) == {"td3": 4, "td3_bc": 4, "cql": 5}.get(name, 8)
    assert min(sizes[1:]) > 1e-6  # moments that are carried are cold in the first
    for group in hand.adams:
        opt = getattr(state.opt[group], "inner", state.opt[group])
        for ours, theirs in zip((opt.mu, opt.nu), hand.moments(group), strict=True):
            assert apart(ours, theirs) < 1e-10, group


def by_hand(name, learner, options, state):
    """The derivation on a state that training has reached."""
    hand = Hand(name, learner, options)
    hand.tree = {group: {k: v.clone() for k, v in params.items()} for group, params in state.tree.items()}
    hand.adams["actor"] = torch.optim.Adam(hand.tree["actor"].values(), LR)
    opt = getattr(state.opt["actor"], "inner", state.opt["actor"])
    for k, p in hand.tree["actor"].items():
        hand.adams["actor"].state[p] = {"step": opt.count, "exp_avg": opt.mu[k], "exp_avg_sq": opt.nu[k]}
    return hand


# -- the meta-gradient against differences -------------------------------------------------------------------

PAIRS = [(name, "silu") for name in BASES] + [(name, net) for name in ("td3_bc", "sac") for net in ("tanh", "softplus")]


@pytest.mark.parametrize(("name", "activation"), PAIRS)
def test_the_meta_gradient_agrees_with_central_differences(build, trained, draw, apart, name, activation):
    """By every coordinate of w, through a virtual step taken here."""
    options = objective(net=LossNet((5,), activation), virtual=sgd(0.3))
    learner = build(name, options)
    state, batches = trained(learner), draw(learner, 100)
    hand = by_hand(name, learner, options, state)
    (_, g_rl), _, (_, g_il) = hand.losses(hand.tree, batches)
    theta = hand.tree["actor"]
    other = hand.utility(minus(theta, plus(g_rl, g_il, 1.0), 0.3), hand.tree, batches)

    def loss(w):
        step = plus(g_rl, slopes(lambda actor: hand.gild(actor, w, batches), theta)[1], 1.0)
        return -torch.tanh(hand.utility(minus(theta, step, 0.3), hand.tree, batches) - other)

    h, found = 1e-4, {}
    for key, value in hand.tree["loss_network"].items():
        found[key] = torch.zeros_like(value)
        for i in range(value.numel()):
            sides = []
            for sign in (1, -1):
                moved = value.clone()
                moved.view(-1)[i] += sign * h
                sides.append(loss({**hand.tree["loss_network"], key: moved}))
            found[key].view(-1)[i] = (sides[0] - sides[1]) / (2 * h)
    update = learner.updates["loss_network"]
    estimate = update.gradient(update, state, batches)
    assert abs(estimate.loss - loss(hand.tree["loss_network"])) < 1e-12
    largest = max(float(g.abs().max()) for g in found.values())
    assert largest > 1e-5
    assert max(float((estimate.grads[k] - g).abs().max()) for k, g in found.items()) < 1e-6 * largest


@pytest.mark.parametrize(
    ("name", "activation"), [("td3_bc", "silu"), ("td3", "tanh"), ("ddpg", "softplus"), ("sac", "silu")]
)
def test_metarl_check_passes_smooth_networks_and_warns_of_a_kink(name, activation):
    smooth = checked(name, activation)
    assert not smooth.problems, smooth.problems
    passed = {f.check for f in smooth.findings if f.status == "ok"}
    assert passed >= {"gradient", "reached", "moments", "edges", "signal"}
    kinked = checked(name, "relu", "broadcasting", "purity", "edges", "signal")
    assert not kinked.failed
    (warning,) = kinked.problems
    assert warning.check == "gradient" and warning.update == "loss_network"
    assert "a kink" in warning.problem and "use tanh, softplus or silu" in warning.problem


def checked(name, activation, *skip):
    """`metarl check`'s report, without what takes long."""
    settings = {"name": "gild", "net": {"activation": activation, "hidden": [24, 24]}}
    return check(Plan(settings, name), ("compiles", "stacks", "cost", *skip))


# -- options -------------------------------------------------------------------------------------------------

OPTIONS = {
    "default": {},
    "weight": {"weight": 0.3},
    "without-gild": {"weight": 0.0},
    "il_weight": {"il_weight": 2.5},
    "without-cloning": {"il_weight": 0.0},
    "rl_loss": {"utility": "rl_loss"},
    "unbounded": {"bounded": False},
    "carried": {"virtual": None},
    "eta": {"virtual": sgd(0.5)},
    "tanh": {"net": LossNet((16, 16), "tanh")},
    "softplus": {"net": LossNet((16, 16), "softplus")},
    "silu": {"net": LossNet((16, 16), "silu")},
    "one-layer": {"net": LossNet((9,))},
    "batch_size": {"batch_size": 7},
    "without-constraint": {"constraint": False},
}


@pytest.mark.parametrize("name", ["td3_bc", "sac"])
@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_means_its_formula(build, trained, draw, apart, name, option):
    options = objective(**({"virtual": sgd(1.0)} | OPTIONS[option]))
    learner = build(name, options)
    state, batches = trained(learner), draw(learner, 100)
    hand = by_hand(name, learner, options, state)
    assert batches["demo"]["obs"].shape == (options.batch_size, 3) and batches["validation"]["obs"].shape == (32, 3)
    (rl, g_rl), (gild, g_gild), (il, _) = hand.losses(hand.tree, batches)
    policy, network = learner.updates["actor"], learner.updates["loss_network"]
    estimate = policy.gradient(policy, state, batches)
    assert abs(estimate.loss - (rl + options.weight * gild)) < 1e-12
    assert apart(estimate.grads, plus(g_rl, g_gild, options.weight)) < 1e-10
    assert abs(estimate.metrics["gild"] - gild) < 1e-12 and abs(estimate.metrics["imitation"] - il) < 1e-12
    estimate = network.gradient(network, state, batches)
    value, grads = hand.meta(hand.tree, batches)
    assert abs(estimate.loss - value) < 1e-12 and abs(estimate.metrics["gain"] - hand.gain) < 1e-12
    if options.weight:
        assert apart(estimate.grads, grads) < 1e-9 and estimate.metrics["hypergradient_norm"] > 1e-5
    else:  # nothing that w could change
        assert estimate.metrics["hypergradient_norm"] == 0


MOVED = ("actor", "loss_network")
CHANGES = [option for option in OPTIONS if option not in ("default", "one-layer", "batch_size")]
SAC_CHANGES = [option for option in CHANGES if option != "without-constraint"]  # it is tied to no data


@pytest.mark.parametrize(("name", "option"), [("td3_bc", o) for o in CHANGES] + [("sac", o) for o in SAC_CHANGES])
def test_no_option_is_idle(build, trained, draw, apart, name, option):
    """From one state, each option gives the policy or the loss network another gradient than the default."""
    eta = {"virtual": sgd(1.0 if name == "td3_bc" else 0.3)}
    default, learner = build(name, objective(**eta)), build(name, objective(**(eta | OPTIONS[option])))
    state, batches = trained(default), draw(default, 100)
    last = {k: v * (30 if "layers.2" in k else 1) for k, v in state.tree["critic"].items()}
    state = state.with_params("critic", last)  # values so large that tanh bends
    ours, theirs = (
        {group: made.updates[group].gradient(made.updates[group], state, batches).grads for group in MOVED}
        for made in (learner, default)
    )
    assert max(apart(ours[group], theirs[group]) for group in MOVED) > 1e-5


def test_the_validation_states_are_a_draw_of_their_own(build, trained, draw, apart):
    """The utility reads them and nothing else does; what a step trains on moves the policy alone."""
    learner = build("sac", objective())
    state, batches = trained(learner), draw(learner, 100)
    other = draw(learner, 101)

    def estimates(batches):
        found = Learner.estimates(learner.updates.values(), state, batches, {"actor", "loss_network"})
        return {update.name: estimate.grads for update, estimate in found}

    before = estimates(batches)
    after = estimates({**batches, "validation": other["validation"]})
    assert apart(after["actor"], before["actor"]) == 0 and apart(after["loss_network"], before["loss_network"]) > 1e-3
    noise = {**batches["noise"], "validation/policy": other["noise"]["validation/policy"]}
    after = estimates({**batches, "noise": noise})
    assert apart(after["actor"], before["actor"]) == 0 and apart(after["loss_network"], before["loss_network"]) > 1e-3


def test_the_loss_network_starts_as_its_options_say(build):
    shapes = [tuple(p.shape) for p in build("td3", objective(net=LossNet((7, 5)))).modules["loss_network"].parameters()]
    assert shapes == [(7, 7), (7,), (7, 5), (5,), (5, 1), (1,)]  # action, state, demonstrated action: 2 + 3 + 2


def test_defaults_are_the_papers_and_every_option_has_help():
    defaults = GILD()
    assert (defaults.weight, defaults.il_weight, defaults.batch_size) == (1.0, 1.0, 256)
    assert (defaults.net.hidden, defaults.net.activation) == ((256, 256), "relu")
    rate = {"lr": 1e-4, "weight_decay": 1e-4}
    assert defaults.optimizer.name == "adam" and {k: defaults.optimizer.hparams[k] for k in rate} == rate
    assert (defaults.virtual.name, defaults.virtual.hparams["lr"]) == ("sgd", 3e-4)
    assert (defaults.bounded, defaults.utility, defaults.warm_start) == (True, "q", None)
    for f in (*fields(GILD), *fields(LossNet)):
        assert f.metadata["help"], f.name


def test_it_builds_through_the_configuration():
    built, _ = component("metarl.objectives", {"name": "gild", "preset": "warm_start"}, "test.yaml", "objective")
    assert built.warm_start == 10_000
    built, plain = component("metarl.objectives", {"name": "gild", "virtual": None}, "test.yaml", "objective")
    assert built.virtual is None and plain["virtual"] is None
    for key, value in (("weight", -1), ("il_weight", -0.1), ("batch_size", 0), ("utility", "v")):
        with pytest.raises(ConfigError, match=key):
            component("metarl.objectives", {"name": "gild", key: value}, "test.yaml", "objective")


def test_it_refuses_what_it_cannot_attach_to(assemble):
    with pytest.raises(ConfigError, match="exposes no policy improvement"):
        assemble(BC(hidden=(4,)), objective())
    with pytest.raises(ConfigError, match="two objectives rewrite the loss of actor"):
        assemble(TD3BC(hidden=(4,)), GORL(every=2), objective())
    with pytest.raises(ConfigError, match="cannot be attached"):
        assemble(TD3BC(hidden=(4,)), objective(), objective())


# -- warm start ----------------------------------------------------------------------------------------------


def without_demonstrations(batches):
    noise = {k: v for k, v in batches["noise"].items() if "/" not in k}
    return {"train": batches["train"], "noise": noise}


@pytest.mark.parametrize("name", BASES)
def test_after_a_warm_start_a_step_is_the_plain_algorithms_bitwise(build, draw, apart, name):
    """Up to step 5 it is GILD without an end; from 6 on the algorithm alone, which finds no demonstrations."""
    started, endless, plain = build(name, objective(warm_start=5)), build(name, objective()), build(name)
    state = other = started.init()
    for step in range(1, 6):
        batches = draw(started, step, torch.float32)
        state, _ = started.step(state, batches, started.due(step))
        other, _ = endless.step(other, batches, endless.due(step))
        assert started.due(step) == endless.due(step)
    assert apart(state.tree, other.tree) == 0
    moved = apart(state.tree["loss_network"], started.init().tree["loss_network"])
    assert moved > 1e-3
    alone = plain.state_of({group: state.tree[group] for group in plain.init().tree})
    alone = alone._replace(opt={group: state.opt[group] for group in alone.opt})
    network, moments = state.tree["loss_network"], state.opt["loss_network"]
    for step in range(6, 11):
        batches = without_demonstrations(draw(started, step, torch.float32))
        due = started.due(step)
        assert "loss_network" not in due and {n.removesuffix("_after") for n in due} == plain.due(step)
        state, metrics = started.step(state, batches, due)
        alone, _ = plain.step(alone, batches, plain.due(step))
        assert not any("gild" in metric or "imitation" in metric for metric in metrics)
        for group in alone.tree:
            assert apart(state.tree[group], alone.tree[group]) == 0, (step, group)
        for group in alone.opt:
            assert apart(tuple(state.opt[group]), tuple(alone.opt[group])) == 0, (step, group)
    assert (
        apart(state.tree["loss_network"], network) == 0 and apart(tuple(state.opt["loss_network"]), tuple(moments)) == 0
    )


@pytest.mark.parametrize("stop", [4, 5, 6])
def test_the_last_step_of_a_warm_start_is_the_one_that_it_names(build, stop):
    every = {"ddpg": 1, "td3": 2, "sac": 1, "cql": 1}
    for name, period in every.items():
        learner = build(name, objective(warm_start=stop))
        with_it = [step for step in range(1, 13) if "loss_network" in learner.due(step)]
        begin = 3 if name == "cql" else 0
        assert with_it == [step for step in range(1, stop + 1) if step % period == 0 and step > begin]
        assert with_it == [step for step in range(1, 13) if "actor" in learner.due(step)]
        after = [step for step in range(1, 13) if "actor_after" in learner.due(step)]
        assert after == [step for step in range(stop + 1, 13) if step % period == 0]


@pytest.mark.parametrize("name", ["td3", "sac", "cql"])
def test_only_steps_with_it_draw_demonstrations(build, imagined, name):
    learner, plain = build(name, objective(warm_start=6)), build(name)
    streams = Streams(dict.fromkeys(learner.roles, imagined), learner.roles, learner.noise, 0)
    alone = Streams({"train": imagined}, plain.roles, plain.noise, 0)
    for step in range(1, 11):
        due = learner.due(step)
        found, wanted = streams.batches(step, due), alone.batches(step, plain.due(step))
        extra = {"demo", "validation"} if "loss_network" in due else set()
        assert set(found) - set(wanted) == extra
        names = {f"{role}/policy" for role in extra} if name != "td3" else set()
        assert set(found["noise"]) - set(wanted["noise"]) == names
        assert torch.equal(found["train"]["obs"], wanted["train"]["obs"])  # and the others are as without it


@pytest.mark.parametrize(("share", "stop"), [(0.25, 10), (0.01, 1), (0.99, 40), (0.26, 10), (1.0, 1), (7, 7), (7.0, 7)])
def test_a_share_is_of_the_runs_steps_and_binds_to_them(build, share, stop):
    learner = build("ddpg", objective(warm_start=share))
    assert max(step for step in range(1, 50) if "loss_network" in learner.due(step)) == stop
    assert learner.span == (STEPS if share < 1 else None)
    assert build("iql", objective(warm_start=share)).span == STEPS  # as its cosine has it


@pytest.mark.parametrize("value", [0, -1, 1.5, 10_000.5, 0.0, -0.5, math.nan, math.inf])
def test_a_warm_start_that_is_neither_is_refused(value):
    with pytest.raises(ConfigError, match=r"warm_start must be a share below 1 or a whole number of gradient steps"):
        component("metarl.objectives", {"name": "gild", "warm_start": value}, "test.yaml", "objective")


@pytest.mark.parametrize("value", ["many", True, [5]])
def test_a_warm_start_that_is_no_number_is_refused(value):
    with pytest.raises(ConfigError, match="warm_start"):
        component("metarl.objectives", {"name": "gild", "warm_start": value}, "test.yaml", "objective")


@pytest.mark.parametrize(("stop", "fine"), [(10_000, False), (40_000, False), (40_001, True)])
def test_a_warm_start_that_ends_before_the_policy_begins_is_refused(assemble, stop, fine):
    algorithm = CQL(hidden=(4,), samples=2)  # clones for 40,000 steps
    if fine:
        assert assemble(algorithm, objective(warm_start=stop)).due(40_001) >= {"actor", "loss_network"}
        return
    with pytest.raises(ConfigError, match=r"a warm start of .* gradient steps .*'actor' begins after step 40,000"):
        assemble(algorithm, objective(warm_start=stop))


# -- runs ----------------------------------------------------------------------------------------------------

EXPERIMENT = """
name: imitation
algorithm: {name: td3, hidden: [8, 8], batch_size: 16}
objective: {name: gild, warm_start: 60, batch_size: 12, net: {hidden: [8]}, virtual: {name: sgd, lr: 0.1}}
data: {demo: {recipe: pendulum/expert, size: 400}}
online: {env: Pendulum-v1, random_steps: 20}
steps: 160
device: cpu
log_every: 10
evaluation: {every: 80, episodes: 1}
checkpoint: {every: 50}
"""
ROBUST = "algorithm={name: sac, hidden: [8, 8], batch_size: 16}"


class Stop(Silent):
    """Ends a run from outside once it has come so far."""

    def __init__(self, at):
        self.at = at

    def update(self, done, **figures):
        if done >= self.at:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory):
    """pendulum/expert, made once."""
    root = tmp_path_factory.mktemp("datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(root))
        make_dataset("pendulum/expert", 400)
    return root


@pytest.fixture
def train(tmp_path, demonstrations, monkeypatch):
    """`train(*overrides, root="runs", stop=None)`: a real online run; returns its folder."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(demonstrations))
    file = tmp_path / "experiment.yaml"
    file.write_text(EXPERIMENT)

    def run(*overrides, root="runs", stop=None):
        reporter = Silent() if stop is None else Stop(stop)
        return offline.train(config.load(file, overrides), 0, tmp_path / root, reporter)

    return run


def contents(folder):
    """Everything that must repeat."""
    saved = checkpoints.load_newest(folder / "checkpoint", pytest.fail)
    files = {
        name: (folder / name).read_bytes() for name in ("metrics.csv", "result.json", "replay.bin", "probes.jsonl")
    }
    return files | {"step": saved.step} | {name: value.numpy().tobytes() for name, value in saved.tensors.items()}


def logged(folder, metric):
    rows = (line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()[1:])
    return [int(step) for step, name, _ in rows if name == metric]


@pytest.mark.parametrize("changes", [(), (ROBUST, "objective.virtual=null")], ids=["td3", "sac"])
def test_killed_on_both_sides_of_the_end_of_a_warm_start_it_ends_with_the_same_bits(train, changes):
    """The warm start ends after gradient step 60, which is environment step 80."""
    whole = contents(train(*changes, root="whole"))
    for step in (90, 130):  # after checkpoints of 50 and 100
        with pytest.raises(KeyboardInterrupt):
            train(*changes, root="killed", stop=step)
    assert contents(train(*changes, root="killed")) == whole


def test_what_a_run_logs_ends_with_the_warm_start(train):
    folder = train("log_every=2")
    assert logged(folder, "actor/gild")[-1] == logged(folder, "loss_network/gain")[-1] == 80
    assert logged(folder, "actor_after/loss")[0] == 82 and logged(folder, "actor_after/loss")[-1] == 160
    assert not logged(folder, "actor_after/gild")


def test_a_run_takes_as_many_steps_with_it_as_it_should(train):
    saved = checkpoints.load_newest(train() / "checkpoint", pytest.fail).tensors
    counts = {group: saved[f"opt/{group}/count"].item() for group in ("critic", "actor", "loss_network")}
    assert counts == {"critic": 140, "actor": 70, "loss_network": 30}


def test_a_share_refuses_another_number_of_steps(train):
    folder = train("objective.warm_start=0.5")
    before = contents(folder)
    assert before["step"] == 160 and logged(folder, "actor/gild")[-1] == 90  # gradient step 70 of 140
    with pytest.raises(ConfigError, match=r"schedules were made for 140 gradient steps, not for 240"):
        train("objective.warm_start=0.5", "steps=260")
    assert contents(train("objective.warm_start=0.5")) == before
    assert contents(train("steps=200"))["step"] == 200  # a number of steps binds to none


def test_a_bad_warm_start_stops_a_run_before_anything_is_written(train, tmp_path):
    for value in ("0", "1.5", "-3"):
        with pytest.raises(ConfigError, match="warm_start must be a share below 1 or a whole number") as raised:
            train(f"objective.warm_start={value}")
        assert "\n" not in str(raised.value)
    assert not (tmp_path / "runs").exists()
