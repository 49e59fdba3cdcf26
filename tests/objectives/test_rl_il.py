"""RL+IL: the RL loss plus cloning, by hand on seven bases; its options and its warm start."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch.autograd import grad
from torch.distributions import Normal

from algorithms.bc import BC
from algorithms.cql import CQL
from algorithms.ddpg import DDPG
from algorithms.iql import IQL
from algorithms.sac import SAC
from algorithms.td3 import TD3
from algorithms.td3_bc import TD3BC
from metarl import adam
from metarl.checking import Plan, check
from metarl.component import component
from metarl.errors import ConfigError
from objectives.fixed import Fixed
from objectives.rl_il import RLIL

LR = 1e-2
STEPS = 40
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
    """`trained(learner, steps=6)`: a state that training has reached."""

    def steps(learner, steps=6):
        state = learner.init(torch.float64)
        for step in range(1, steps + 1):
            state, _ = learner.step(state, draw(learner, step), learner.due(step))
        return state

    return steps


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


def il(name, actor, batch):
    """The cloning loss on demonstrations."""
    obs, unit = batch["obs"], batch["action"] / HIGH
    if name == "iql":
        return -gaussian(name, actor, obs).log_prob(inside(batch["action"]) / HIGH).sum(-1).mean()
    if name == "cql":  # the density of the action
        density = gaussian(name, actor, obs).log_prob(torch.atanh(unit)) - torch.log1p(-unit.square())
        return -density.sum(-1).mean()
    if name in ("sac", "sac-learned"):  # of the Gaussian before tanh, at the action itself; a mean over dimensions
        return -gaussian(name, actor, obs).log_prob(unit).mean()
    return (mlp(actor, "net.", obs, torch.tanh) * HIGH - batch["action"]).square().mean()


@pytest.mark.parametrize("constraint", [True, False])
@pytest.mark.parametrize("weight", [1.0, 0.3, 0.0])
@pytest.mark.parametrize("name", BASES)
def test_the_loss_is_rl_plus_weighted_cloning(build, trained, draw, apart, name, weight, constraint):
    learner = build(name, RLIL(weight=weight, batch_size=24, constraint=constraint))
    state, batches = trained(learner), draw(learner, 100)
    noise, demo = batches["noise"].get("policy"), batches["demo"]
    assert demo["obs"].shape == (24, 3)
    leaves = {k: v.detach().clone().requires_grad_() for k, v in state.tree["actor"].items()}
    cloning = il(name, leaves, demo)
    loss = rl(name, leaves, state.tree, batches["train"], noise, constraint) + weight * cloning
    found = grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    update = learner.updates["actor"]
    estimate = update.gradient(update, state, batches)
    assert abs(estimate.loss - loss) < 1e-12 and abs(estimate.metrics["imitation"] - cloning) < 1e-12
    assert apart(estimate.grads, dict(zip(leaves, found, strict=True))) < 1e-10
    assert max(float(g.abs().max()) for g in found) > 1e-3


@pytest.mark.parametrize("name", BASES)
def test_every_other_group_moves_as_in_the_base(build, trained, draw, apart, name):
    learner, plain = build(name, RLIL(batch_size=24)), build(name)
    state, batches = trained(learner), draw(learner, 100)
    ours, _ = learner.step(state, batches, learner.due(8))
    theirs, _ = plain.step(state, batches, plain.due(8))
    assert learner.due(8) == plain.due(8)
    same = {"critic", "value", "temperature", "critic_target"} & set(ours.tree)
    assert all(apart(ours.tree[group], theirs.tree[group]) == 0 for group in same)
    assert apart(ours.tree["actor"], theirs.tree["actor"]) > 1e-6


def test_a_weight_of_zero_is_the_base(build, draw, apart):
    learner, plain = build("td3", RLIL(weight=0.0)), build("td3")
    ours, theirs = learner.init(torch.float64), plain.init(torch.float64)
    for step in range(1, 7):
        batches = draw(learner, step)
        ours, _ = learner.step(ours, batches, learner.due(step))
        theirs, _ = plain.step(theirs, batches, plain.due(step))
    assert apart(ours.tree, theirs.tree) < 1e-12


def test_the_constraint_is_td3_bcs_tie_to_its_own_data(build, trained, draw, apart):
    """Without it the actions of the training batch say nothing to the policy; with it they do."""
    for constraint in (True, False):
        learner = build("td3_bc", RLIL(batch_size=24, constraint=constraint))
        state, batches = trained(learner), draw(learner, 100)
        other = {**batches, "train": {**batches["train"], "action": -batches["train"]["action"]}}
        update = learner.updates["actor"]
        one, two = (update.gradient(update, state, b).grads for b in (batches, other))
        assert (apart(one, two) > 1e-3) == constraint


def test_cloning_has_its_own_noise_and_its_own_rows(build, draw):
    learner = build("sac", RLIL(batch_size=7))
    role = learner.roles["demo"]
    assert (role.source, role.size, role.statistics, role.reader) == ("demo", 7, "train", "actor")
    assert learner.noise["demo/policy"].whole_shape(learner.roles) == (7, 2)


@pytest.mark.parametrize("name", BASES)
def test_after_a_warm_start_a_step_is_the_plain_algorithms_bitwise(build, draw, apart, name):
    started, endless, plain = build(name, RLIL(warm_start=5)), build(name, RLIL()), build(name)
    state = other = started.init()
    for step in range(1, 6):
        batches = draw(started, step, torch.float32)
        state, _ = started.step(state, batches, started.due(step))
        other, _ = endless.step(other, batches, endless.due(step))
    assert apart(state.tree, other.tree) == 0
    alone = plain.state_of(state.tree)._replace(opt=state.opt)
    for step in range(6, 11):
        batches = draw(started, step, torch.float32)
        del batches["demo"]
        state, metrics = started.step(state, batches, started.due(step))
        alone, _ = plain.step(alone, batches, plain.due(step))
        assert not any("imitation" in metric for metric in metrics)
        assert apart(state.tree, alone.tree) == 0
        assert all(apart(tuple(state.opt[group]), tuple(alone.opt[group])) == 0 for group in alone.opt)


@pytest.mark.parametrize(("share", "stop", "span"), [(0.25, 10, STEPS), (7, 7, None), (1e-9, 1, STEPS)])
def test_how_long_a_warm_start_lasts(build, share, stop, span):
    learner = build("ddpg", RLIL(warm_start=share))
    assert [step for step in range(1, 50) if "actor" in learner.due(step)] == [*range(1, stop + 1)]
    assert [step for step in range(1, 50) if "actor_after" in learner.due(step)] == [*range(stop + 1, 50)]
    assert learner.span == span


@pytest.mark.parametrize("value", [0, -1, 1.5, float("nan")])
def test_bad_values_are_named(value):
    with pytest.raises(ConfigError, match="warm_start must be a share below 1 or a whole number of gradient steps"):
        component("metarl.objectives", {"name": "rl_il", "warm_start": value}, "test.yaml", "objective")


def test_what_it_refuses(assemble):
    with pytest.raises(ConfigError, match="exposes no policy improvement"):
        assemble(BC(hidden=(4,)), RLIL())
    with pytest.raises(ConfigError, match="two objectives rewrite the loss of actor"):
        assemble(TD3BC(hidden=(4,)), Fixed(), RLIL())
    for key, bad in (("weight", -1), ("batch_size", 0)):
        with pytest.raises(ConfigError, match=key):
            component("metarl.objectives", {"name": "rl_il", key: bad}, "test.yaml", "objective")


def test_defaults_and_help():
    assert (RLIL().weight, RLIL().batch_size, RLIL().warm_start, RLIL().constraint) == (1.0, 256, None, True)
    for f in fields(RLIL):
        assert f.metadata["help"], f.name


@pytest.mark.parametrize("name", ["td3_bc", "sac", "iql"])
def test_metarl_check_passes(name):
    report = check(Plan({"name": "rl_il"}, name), ("compiles", "stacks", "cost"))
    assert not report.problems, report.problems


@pytest.mark.parametrize("stop", [10_000, 40_000])
def test_a_warm_start_that_ends_before_the_policy_begins_is_refused(assemble, stop):
    with pytest.raises(ConfigError, match=r"a warm start of .* gradient steps .*'actor' begins after step 40,000"):
        assemble(CQL(hidden=(4,), samples=2), RLIL(warm_start=stop))
