"""PEX against a textbook: modules, torch.optim, torch's Gaussians, the authors' order of a step; and real runs."""

from __future__ import annotations

import math
from dataclasses import replace

import gymnasium as gym
import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal

from algorithms.awac import AWAC
from algorithms.bc import BC
from algorithms.cql import CQL
from algorithms.ddpg import DDPG
from algorithms.iql import IQL
from algorithms.none import Nothing
from algorithms.sac import SAC
from algorithms.sac_bc import SACBC
from algorithms.td3_bc import TD3BC
from metarl import Spec, config, cosine_decay, sgd
from metarl.bilevel.recording import leaves
from metarl.checking.checks import check
from metarl.checking.small import Plan
from metarl.data.recipes import make_dataset
from metarl.errors import ConfigError
from metarl.training import checkpoints, offline
from metarl.training.progress import Silent
from metarl.training.stepping import Stepping
from objectives.pex import PEX, _Set, weights
from objectives.por import POR

HIGH = torch.tensor([1.0, 0.5], dtype=torch.float64)
SWITCH, ONLINE = 6, 14  # gradient steps on data, and after them


# -- a textbook --------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """Layers of torch.nn.Linear, started from a group of the learner."""

    def __init__(self, params, prefix=""):
        super().__init__()
        self.prefix, layers = prefix, []
        for i in range(sum(name.startswith(f"{prefix}layers.") for name in params) // 2):
            weight, bias = (params[f"{prefix}layers.{i}.{k}"] for k in ("weight", "bias"))
            layer = nn.Linear(*weight.shape, dtype=torch.float64)
            layer.weight.data.copy_(weight.T)
            layer.bias.data.copy_(bias)
            layers.append(layer)
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        return self.layers[-1](x)

    def group(self, read=lambda p: p):
        """Values (or what `read` finds for them) under the learner's names, weights as [in, out]."""
        return {
            f"{self.prefix}layers.{i}.{kind}": read(p).T if p.dim() == 2 else read(p)
            for i, layer in enumerate(self.layers)
            for kind, p in (("weight", layer.weight), ("bias", layer.bias))
        }


class Gaussian(nn.Module):
    """Around tanh of a network, one deviation for all states; over actions in units of their bounds."""

    def __init__(self, params):
        super().__init__()
        self.net, self.log_std = Net(params, "net."), nn.Parameter(params["log_std"].clone())

    def forward(self, obs):
        return Independent(Normal(torch.tanh(self.net(obs)), self.log_std.clamp(-5.0, 2.0).exp()), 1)

    def mode(self, obs):
        return self(obs).mean * HIGH

    def group(self, read=lambda p: p):
        return self.net.group(read) | {"log_std": read(self.log_std)}


class Deterministic(Net):
    def mode(self, obs):
        return torch.tanh(self(obs)) * HIGH


class Twin(nn.Module):
    def __init__(self, params):
        super().__init__()
        self.q1, self.q2 = Net(params, "q1."), Net(params, "q2.")

    def forward(self, obs, action):
        x = torch.cat([obs, action], -1)
        return self.q1(x).squeeze(-1), self.q2(x).squeeze(-1)

    def min(self, obs, action):
        return torch.min(*self(obs, action))

    def group(self, read=lambda p: p):
        return self.q1.group(read) | self.q2.group(read)


class Textbook:
    """An offline phase by IQL or TD3+BC, and PEX online, a policy more whenever `joins` says so."""

    def __init__(self, tree, base, joins=(SWITCH,), kappa=10.0, entropy=None, beta=10.0):
        self.base, self.joins, self.entropy, self.beta = base, joins, entropy, beta
        self.iql = isinstance(base, IQL)
        self.nets = {"critic": Twin(tree["critic"]), "critic_target": Twin(tree["critic_target"])}
        if self.iql:
            self.nets |= {"actor": Gaussian(tree["actor"]), "value": Net(tree["value"])}
        else:
            self.nets |= {name: Deterministic(tree[name], "net.") for name in ("actor", "actor_target")}
        self.fresh = [Gaussian(tree[f"policy_{i + 1}"]) for i in range(len(joins))]
        self.nets |= {f"policy_{i + 1}": policy for i, policy in enumerate(self.fresh)}
        log = tree["inverse_temperature"]["log"].clone() if entropy else torch.tensor(max(kappa, 1e-300)).double().log()
        self.log_kappa = log.requires_grad_()
        still = ("critic_target", "actor_target")
        self.optimizers = {
            name: torch.optim.Adam(net.parameters(), 3e-4) for name, net in self.nets.items() if name not in still
        }
        self.optimizers["kappa"] = torch.optim.Adam([self.log_kappa], 3e-4)
        self.cosine = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizers["actor"], SWITCH)
        self.done, self.clipped, self.chosen, self.beyond = 0, 0, torch.zeros(1 + len(joins)), 0

    def train(self, batch, noise):
        self.done += 1
        losses = {}
        if self.iql:
            self.value_and_critic(batch, noise)
        elif self.done <= SWITCH:
            self.td3_bc(batch, noise)
        else:
            self.expanded_critic(batch, noise["pex/next"])
        if self.iql or self.done % 2 == 0:
            self.follow("critic")
            if not self.iql and self.done <= SWITCH:
                self.follow("actor")
        if self.done > SWITCH:
            losses = self.policy_update(batch, noise["pex"])
        return losses

    # -- on data -------------------------------------------------------------------------------------------------

    def value_and_critic(self, batch, noise):
        """The authors' IQL, or where `order` is official that of its own authors."""
        base, value, critic = self.base, self.nets["value"], self.nets["critic"]
        action = torch.clip(batch["action"] / HIGH, -(1 - 1e-5), 1 - 1e-5) * HIGH

        def v(obs):
            return value(obs).squeeze(-1)

        with torch.no_grad():
            target_q, next_v = self.nets["critic_target"].min(batch["obs"], action), v(batch["next_obs"])
        advantage = target_q - v(batch["obs"])
        weight = torch.abs(base.expectile - (advantage < 0).double())
        self.move("value", (weight * advantage**2).mean())
        with torch.no_grad():
            if base.order == "official":
                advantage, next_v = target_q - v(batch["obs"]), v(batch["next_obs"])
        if self.done <= SWITCH:
            gain = torch.exp(base.beta * advantage.detach()).clamp(max=100.0)
            self.move("actor", -(gain * self.nets["actor"](batch["obs"]).log_prob(action / HIGH)).mean())
            self.cosine.step()
        y = batch["reward"] + (1.0 - batch["terminated"]) * base.discount * next_v
        losses = [nn.functional.mse_loss(q, y) for q in critic(batch["obs"], action)]
        self.move("critic", sum(losses) / (2 if base.order == "corl" else 1))

    def td3_bc(self, batch, noise):
        base, high = self.base, HIGH
        with torch.no_grad():
            eps = (noise["target_smoothing"] * base.policy_noise).clamp(-base.noise_clip, base.noise_clip) * high
            following = self.nets["actor_target"].mode(batch["next_obs"]) + eps
            following = torch.min(torch.max(following, -high), high)
            y = self.nets["critic_target"].min(batch["next_obs"], following)
            y = batch["reward"] + base.discount * (1 - batch["terminated"]) * y
        self.move(
            "critic", sum(nn.functional.mse_loss(q, y) for q in self.nets["critic"](batch["obs"], batch["action"]))
        )
        if self.done % 2 == 0:
            action = self.nets["actor"].mode(batch["obs"])
            q, _ = self.nets["critic"](batch["obs"], action)
            cloned = nn.functional.mse_loss(action, batch["action"])
            self.move("actor", cloned - base.alpha / q.abs().mean().detach() * q.mean())

    # -- online --------------------------------------------------------------------------------------------------

    @property
    def size(self):
        """Policies in the set."""
        return 1 + max(1, sum(self.done > join for join in self.joins))

    def propose(self, obs, noise, explore=True):
        """An action of each policy in the set, and the logits of the choice; constants."""
        with torch.no_grad():
            actions = [self.nets["actor"].mode(obs), *(policy.mode(obs) for policy in self.fresh[: self.size - 1])]
            if explore:
                last = self.fresh[self.size - 2](obs)
                actions[-1] = (last.mean + last.stddev * noise[:, :-1]) * HIGH
            q = torch.stack([self.nets["critic"].min(obs, action) for action in actions], -1)
            return torch.stack(actions, 1), q * self.log_kappa.detach().exp()

    def draw(self, obs, noise):
        actions, logits = self.propose(obs, noise)
        u = Normal(0.0, 1.0).cdf(noise[:, -1:])
        choice = torch.searchsorted(logits.softmax(-1).cumsum(-1), u).squeeze(-1).clamp(max=self.size - 1)
        return actions, logits, choice, actions[torch.arange(len(obs)), choice]

    def expanded_critic(self, batch, noise):
        following = self.draw(batch["next_obs"], noise)[-1]
        with torch.no_grad():
            y = self.nets["critic_target"].min(batch["next_obs"], following)
            y = batch["reward"] + 0.99 * (1 - batch["terminated"]) * y
        self.move(
            "critic", sum(nn.functional.mse_loss(q, y) for q in self.nets["critic"](batch["obs"], batch["action"]))
        )

    def policy_update(self, batch, noise):
        obs = batch["obs"]
        actions, logits, choice, action = self.draw(obs, noise)
        target = self.nets["critic_target"]
        with torch.no_grad():
            if self.iql:
                v = self.nets["value"](obs).squeeze(-1)
            else:
                each = torch.stack([target.min(obs, actions[:, i]) for i in range(self.size)], -1)
                v = (each * logits.softmax(-1)).sum(-1)
            weight = torch.exp(self.beta * (target.min(obs, action) - v))
        newest = self.fresh[self.size - 2]
        loss = (weight.clamp(max=100.0) * -newest(obs).log_prob(action / HIGH)).mean()
        self.move(f"policy_{self.size - 1}", loss)
        entropy = torch.distributions.Categorical(logits=logits).entropy().mean()
        if self.entropy is not None:
            self.move("kappa", self.log_kappa * (self.entropy * math.log(self.size) - entropy).detach())
        self.clipped += int((weight > 100).sum())
        self.chosen += torch.bincount(choice, minlength=len(self.chosen))
        self.beyond += int((action.abs() > HIGH).any(-1).sum())
        return {f"policy_{self.size - 1}/loss": loss.detach(), f"policy_{self.size - 1}/entropy": entropy}

    # -- both ----------------------------------------------------------------------------------------------------

    def move(self, name, loss):
        self.optimizers[name].zero_grad()
        loss.backward()
        self.optimizers[name].step()

    def follow(self, name):
        with torch.no_grad():
            for p, t in zip(self.nets[name].parameters(), self.nets[f"{name}_target"].parameters(), strict=True):
                t.mul_(1 - self.base.tau).add_(self.base.tau * p)

    def tree(self):
        joined = sum(self.done > join for join in self.joins)
        found = {name: net.group() for name, net in self.nets.items()}
        found["policy_set"] = {"size": torch.tensor(1.0 + joined, dtype=torch.float64)}
        return found | ({} if self.entropy is None else {"inverse_temperature": {"log": self.log_kappa}})

    def moments(self, key):
        def read(p):
            return next(o.state[p][key] for o in self.optimizers.values() if p in o.state)

        found = {name: self.nets[name].group(read) for name in self.nets if name in self.optimizers}
        return found | ({} if self.entropy is None else {"inverse_temperature": {"log": read(self.log_kappa)}})


@pytest.fixture(scope="module")
def phases(spec):
    """`phases(base, objective, ..., offline=6, online=14)`: a ready learner of a run with both phases."""

    def build(base, *objectives, offline=SWITCH, online=ONLINE, seed=0, **others):
        own = replace(spec, steps=offline + online, offline=offline, **others)
        generator = torch.Generator().manual_seed(seed)
        learner = base.build(own, generator)
        for objective in objectives:
            learner = objective.attach(learner, own, generator)
        return learner.ready()

    return build


SMALL = {"hidden": (16, 12), "batch_size": 32}


def pex(**settings):
    return PEX(**{"hidden": (16, 12), **settings})


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def started(learner):
    """A state whose target stands somewhat above the critic, so that some weights are clipped; no bias is 0."""
    state = learner.init(torch.float64)
    target = {k: 1.5 * p + (0.55 if k.endswith("2.bias") else 0.02) for k, p in state.tree["critic_target"].items()}
    state = state.with_params("critic_target", target)
    for i, group in enumerate(sorted(learner.modules)):
        bias = {k: p + 0.1 * normal(len(p), seed=i) for k, p in state.tree[group].items() if k.endswith("bias")}
        state = state.with_params(group, {**state.tree[group], **bias})
    return state


OFFICIAL, CORL, WITHOUT_V = IQL(**SMALL), IQL(order="corl", **SMALL), TD3BC(**SMALL)
CASES = {
    "corl": (CORL, {"beta": 25.0}),
    "official": (OFFICIAL, {"inverse_temperature": 40.0, "beta": 25.0}),
    "adaptive": (CORL, {"entropy": 0.6, "beta": 25.0}),
    "grows": (CORL, {"grow": (4, 0.6), "beta": 25.0}),
    "grows, adaptive": (OFFICIAL, {"grow": (5,), "entropy": 0.9, "beta": 25.0}),
    "without V": (WITHOUT_V, {"beta": 60.0}),
    "without V, grows, adaptive": (WITHOUT_V, {"grow": (5,), "entropy": 0.5, "beta": 60.0}),
}


@pytest.mark.parametrize("case", CASES)
def test_twenty_steps_across_the_switch_equal_the_textbook(phases, draw, apart, case):
    base, settings = CASES[case]
    learner = phases(base, pex(**settings))
    state = started(learner)
    joins = [SWITCH, *(SWITCH + (int(g) if g >= 1 else round(g * ONLINE)) for g in settings.get("grow", ()))]
    kappa, beta = settings.get("inverse_temperature", 10.0), settings.get("beta", 10.0)
    book = Textbook(state.tree, base, joins, kappa, settings.get("entropy"), beta)
    for step in range(1, SWITCH + ONLINE + 1):
        batches = draw(learner, step)
        state, metrics = learner.step(state, batches, learner.due(step))
        for name, value in book.train(batches["train"], batches["noise"]).items():
            assert abs(metrics[name] - value) < 1e-10 * abs(value)
        assert apart(state.tree, book.tree()) < 1e-10
    assert book.clipped > 5 and book.beyond > 20 and (book.chosen > 20).all(), "the hard parts were not met"
    for ours, theirs in (("mu", "exp_avg"), ("nu", "exp_avg_sq")):
        opt = {name: getattr(value, "inner", value) for name, value in state.opt.items()}
        kept = {name: getattr(value, ours) for name, value in opt.items() if name in book.moments(theirs)}
        assert apart(kept, book.moments(theirs)) < 1e-10


def test_its_shares_are_those_of_the_draws(phases, draw):
    learner = phases(CORL, pex(grow=(4,)))
    state = started(learner)
    book = Textbook(state.tree, CORL, (SWITCH, SWITCH + 4))
    for step in range(1, SWITCH + 8):
        batches, before = draw(learner, step), book.chosen.clone()
        state, metrics = learner.step(state, batches, learner.due(step))
        book.train(batches["train"], batches["noise"])
        told = {k.rpartition("_")[2]: float(v) for k, v in metrics.items() if "/share_" in k}
        wanted = ((book.chosen - before) / 32).tolist()
        n = 0 if step <= SWITCH else 2 if step <= SWITCH + 4 else 3
        assert told == pytest.approx({str(i): wanted[i] for i in range(n)})


# -- what stays --------------------------------------------------------------------------------------------------

GUIDE = POR(value="base", hidden=(16,), execute_hidden=(16,), decay=False)
BASES = {
    "iql": (IQL(**SMALL),),
    "td3_bc": (TD3BC(**SMALL),),
    "sac_bc": (SACBC(**SMALL),),
    "cql": (CQL(**SMALL),),
    "awac": (AWAC(**SMALL),),
    "sac": (SAC(**SMALL),),
    "por over iql": (IQL(**SMALL), GUIDE),
}


@pytest.mark.parametrize("base", BASES)
def test_what_was_learned_on_data_stays_bit_for_bit(phases, draw, base):
    learner = phases(*BASES[base], pex(grow=(3,)), offline=4, online=6)
    state = learner.init(torch.float64)
    for step in range(1, 5):
        state, _ = learner.step(state, draw(learner, step), learner.due(step))
    before = state
    for step in range(5, 11):
        state, _ = learner.step(state, draw(learner, step), learner.due(step))
        if step == 7:
            joined = state

    def same(a, b, group):
        return all(torch.equal(a.tree[group][k], b.tree[group][k]) for k in a.tree[group])

    moves = {"critic", "critic_target", "policy_1", "policy_2", "policy_set"} | ({"value"} & set(state.tree))
    assert {group for group in state.tree if not same(before, state, group)} == moves
    acting = {"por over iql": {"guide_policy", "execute_policy"}}.get(base, {"actor"})
    assert acting <= set(state.tree) - moves
    assert not same(learner.init(torch.float64), before, min(acting))
    for group in set(state.opt) - moves:
        assert all(torch.equal(a, b) for a, b in zip(*map(leaves, (state.opt[group], before.opt[group])), strict=True))
    assert same(joined, state, "policy_1") and not same(before, joined, "policy_1")
    assert same(before, joined, "policy_2") and not same(joined, state, "policy_2")
    assert state.tree["policy_set"]["size"] == 3


def test_up_to_the_switch_it_is_the_base(phases, draw):
    base = IQL(**SMALL)
    alone, both = phases(base), phases(base, pex())
    a, b = alone.init(), both.init()
    for step in range(1, SWITCH + 1):
        batches = draw(both, step, torch.float32)
        a, _ = alone.step(a, batches, alone.due(step))
        b, _ = both.step(b, batches, both.due(step))
    assert all(torch.equal(a.tree[g][k], b.tree[g][k]) for g in a.tree for k in a.tree[g])
    obs = batches["train"]["obs"]
    assert torch.equal(alone.act(a.tree, obs, None, None, True)[0], both.act(b.tree, obs, None, None, True)[0])


def test_a_recorded_step_is_the_eager_one(phases, draw, apart):
    learner = phases(TD3BC(**SMALL), pex(grow=(2,), entropy=0.5), offline=2, online=5)
    state = learner.init(torch.float64)
    stepping = Stepping(learner, state, "recorded")
    for step in range(1, 8):
        batches = draw(learner, step)
        state, _ = learner.step(state, batches, learner.due(step))
        stepping(batches, learner.due(step))
        assert apart(stepping.state.tree, state.tree) < 1e-10


# -- how it acts -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def acting(phases, draw):
    """`acting(size, **settings)`: a learner whose set could hold three, at that size, and its textbook."""

    def build(size, kappa=10.0, **settings):
        learner = phases(IQL(**SMALL), pex(grow=(4,), inverse_temperature=kappa, **settings))
        state = started(learner)
        state = state.with_params("policy_set", {"size": torch.tensor(float(size), dtype=torch.float64)})
        book = Textbook(state.tree, IQL(**SMALL), (SWITCH, SWITCH + 4), kappa)
        book.done = {1: 0, 2: SWITCH + 1, 3: SWITCH + 5}[size]
        return learner, state.tree, book

    return build


def cut(action):
    return torch.min(torch.max(action, -HIGH), HIGH)


@pytest.mark.parametrize(("size", "kappa"), [(1, 10.0), (2, 10.0), (3, 10.0), (3, 60.0), (3, 0.0)])
def test_choices_are_as_frequent_as_the_softmax_says(acting, size, kappa):
    learner, tree, book = acting(size, kappa)
    obs, noise = normal(20_000, 3, seed=1), normal(20_000, 3, seed=2)
    assert learner.exploration == 3
    actions, logits = book.propose(obs, noise)
    told = learner.told(tree, obs, None, noise)
    chosen = torch.stack([told[f"policy_{i}"] for i in range(3)], -1)
    assert set(told) == {"policy_0", "policy_1", "policy_2"} and torch.equal(
        chosen.sum(-1), torch.ones(20_000).double()
    )
    n = max(size, 2)
    assert not chosen[:, n:].any()
    shares, chosen = logits.softmax(-1), chosen[:, :n]
    for rows in (shares[:, 0] > -1, shares[:, 0] >= shares[:, 0].median(), noise[:, 0] > 0.5):
        z = (chosen - shares)[rows].sum(0) / (shares * (1 - shares))[rows].sum(0).sqrt()
        assert (z.abs() < 4).all()
    acted, _ = learner.act(tree, obs, None, noise, False)
    taken = (actions * chosen[:, :, None]).sum(1)
    assert torch.allclose(acted, cut(taken), rtol=0, atol=1e-12)
    assert (acted.abs() <= HIGH).all() and (taken.abs() > HIGH).any() and (chosen.mean(0) > 0.05).all()


@pytest.mark.parametrize("size", [1, 2, 3])
def test_evaluated_is_the_best_of_the_modes(acting, size):
    learner, tree, book = acting(size)
    obs = normal(500, 3, seed=1)
    actions, logits = book.propose(obs, None, explore=False)
    if size == 1:  # nobody has learned online yet
        actions, logits = actions[:, :1], logits[:, :1]
    best = logits.argmax(-1)
    acted, carry = learner.act(tree, obs, None, normal(500, 3), True)
    assert torch.allclose(acted, actions[torch.arange(500), best], rtol=0, atol=1e-12) and carry is None
    assert torch.equal(acted, learner.act(tree, obs, None, None, False)[0])
    assert len(best.unique()) == size
    assert torch.allclose(weights(learner, tree, obs)[:, :size], logits.softmax(-1))
    assert not weights(learner, tree, obs)[:, size:].any()


@pytest.mark.parametrize("extreme", [-40.0, 40.0])
def test_a_policy_that_has_not_joined_is_never_drawn(acting, extreme):
    """Not even at the ends of the noise, where float32's shares need not add up to 1."""
    learner, tree, _ = acting(2)
    tree = {group: {k: p.float() for k, p in params.items()} for group, params in tree.items()}
    noise = normal(4000, 3, dtype=torch.float32)
    noise[:, -1] = extreme
    told = learner.told(tree, normal(4000, 3, seed=1, dtype=torch.float32), None, noise)
    assert not told["policy_2"].any()
    assert told["policy_1" if extreme > 0 else "policy_0"].all()


def test_it_acts_by_the_kappa_that_it_learns(acting):
    learner, tree, _ = acting(2, entropy=0.5)
    obs, noise = normal(2000, 3, seed=1), normal(2000, 3, seed=2)
    shares = {}
    for kappa in (1e-3, 1e3):
        now = {**tree, "inverse_temperature": {"log": torch.tensor(math.log(kappa), dtype=torch.float64)}}
        best = learner.act.__self__
        assert isinstance(best, _Set)
        actions = best.actions(now, obs, noise)
        q = best.offline.q(now, obs, actions)[:, :2]
        told = torch.stack([learner.told(now, obs, None, noise)[f"policy_{i}"] for i in range(2)], -1)
        shares[kappa] = float((told.argmax(-1) == q.argmax(-1)).double().mean())
    assert abs(shares[1e-3] - 0.5) < 0.05 and shares[1e3] > 0.95


def test_only_a_set_has_weights(phases):
    learner = phases(IQL(**SMALL))
    with pytest.raises(ConfigError, match="no set of policies"):
        weights(learner, learner.init().tree, torch.zeros(1, 3))


# -- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "objectives", "others", "message"),
    [
        (IQL(), (PEX(),), {"offline": None}, r"objective pex: .*add online: .*steps: \{offline: N, online: M\}"),
        (DDPG(), (PEX(),), {}, "objective pex: .*learns no twin critic; choose one that does, such as iql"),
        (BC(), (PEX(),), {}, "objective pex: this algorithm exposes no policy"),
        (Nothing(), (POR(), PEX()), {}, "objective pex: .*learns no twin critic"),
        (Nothing(), (PEX(),), {}, "objective pex: this algorithm exposes no policy"),
        (IQL(), (PEX(grow=(14,)),), {}, r"grow=\[14\] must be ascending and lie within the 14 online gradient steps"),
        (IQL(), (PEX(grow=(5, 5)),), {}, r"grow=\[5, 5\] must be ascending"),
        (IQL(), (PEX(grow=(0.5, 0.2)),), {}, r"grow=\[0.5, 0.2\] must be ascending"),
        (IQL(), (PEX(grow=(0.01,)),), {}, r"grow=\[0.01\] must be ascending and lie within"),
        (IQL(), (PEX(grow=(3,)),), {"online": 0}, "lie within the 0 online gradient steps"),
    ],
)
def test_what_cannot_be_expanded_is_refused(phases, base, objectives, others, message):
    own = {"offline": SWITCH, **others}
    with pytest.raises(ConfigError, match=message):
        if own["offline"] is None:
            spec = Spec(3, 2, (1.0, 0.5))
            objectives[0].attach(base.build(spec, torch.Generator()), spec, torch.Generator())
        else:
            phases(base, *objectives, **own)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"entropy": 0.5, "inverse_temperature": 0.0}, "inverse_temperature must be above 0"),
        ({"grow": (0.0,)}, r"grow must hold shares below 1 or whole gradient steps, not \[0.0\]"),
        ({"grow": (-3,)}, "grow must hold shares"),
        ({"grow": (2.5,)}, "grow must hold shares"),
        ({"log_std": (2.0, -5.0)}, "log_std must be a lower and a higher bound"),
        ({"log_std": (2.0,)}, "log_std must be a lower and a higher bound"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        PEX(**settings)


def test_shares_of_the_phase_bind_a_run_to_its_steps(phases):
    assert phases(TD3BC(**SMALL), pex(grow=(0.5,))).span == SWITCH + ONLINE
    assert phases(TD3BC(**SMALL), pex(grow=(3,))).span is None
    assert phases(IQL(**SMALL), pex()).span == SWITCH  # the cosine of the phase on data


@pytest.mark.parametrize("base", BASES)
def test_without_an_offline_phase_what_acts_must_be_given(phases, base):
    learner = phases(*BASES[base], pex(), offline=0)
    assert learner.given == ({"guide_policy", "execute_policy"} if "por" in base else {"actor"})
    assert not learner.given & {u.params for u in learner.updates.values()}


def test_a_policy_that_would_begin_after_the_switch_must_be_given(phases):
    class Late:
        def attach(self, learner, spec, generator):
            stages = (tuple(replace(u, start=8) if u.name == "actor" else u for u in s) for s in learner.stages)
            return replace(learner, stages=tuple(stages))

    assert phases(IQL(**SMALL), Late(), pex(), offline=8, online=12).given == {"actor"}
    assert not phases(IQL(**SMALL), Late(), pex(), offline=9, online=12).given


def test_the_schedules_of_por_lie_in_the_phase_on_data(phases):
    settings = {"form": "v_guided", "value": "base", "hidden": (16,), "execute_hidden": (16,), "behaviour_steps": 0.5}
    learner = phases(IQL(**SMALL), POR(**settings), pex(), offline=8, online=12)
    assert learner.updates["guide_policy"].start == 4 and learner.span == 8 and not learner.given
    with pytest.raises(ConfigError, match="leave none of the 8 steps on data"):
        phases(IQL(**SMALL), POR(**{**settings, "behaviour_steps": 8}), pex(), offline=8, online=12)


# -- the cosine of the phase on data -----------------------------------------------------------------------------


@pytest.mark.parametrize("overwriting", [False, True])
def test_a_cosine_may_end_at_another_rate(overwriting):
    """By hand: steps of sgd(1) on a gradient of 1 are the factors themselves."""
    optimizer = cosine_decay(sgd(1.0), 4, after=0.5)
    value = {"x": torch.zeros((), dtype=torch.float64)}
    state, seen = optimizer.init(value), []
    for _ in range(7):
        gradient = {"x": torch.ones((), dtype=torch.float64)}
        before = value["x"].clone()
        if overwriting:
            optimizer.overwrite(value, gradient, state)
        else:
            moves, state = optimizer.update(gradient, state, params=value, inplace=False)
            value = {"x": value["x"] + moves["x"]}
        seen.append(float(before - value["x"]))
    root = math.sqrt(0.5)
    assert seen == pytest.approx([1.0, (1 + root) / 2, 0.5, (1 - root) / 2, 0.5, 0.5, 0.5])
    assert optimizer.hparams["after"] == 0.5


def test_iql_trains_on_at_the_full_rate_online(phases):
    online, alone = phases(IQL(**SMALL)), IQL(**SMALL)
    settings = online.updates["actor"].optimizer.hparams
    assert (settings["steps"], settings["after"]) == (SWITCH, 1.0)
    spec = Spec(3, 2, (1.0, 0.5), steps=30)
    assert alone.build(spec, torch.Generator()).updates["actor"].optimizer.hparams["steps"] == 30


# -- metarl check ------------------------------------------------------------------------------------------------


def test_it_passes_metarl_check():
    report = check(Plan({"name": "pex", "hidden": [16, 16]}), skip=("compiles", "stacks", "cost"))
    assert not report.problems, [f"{f.check}: {f.problem}" for f in report.problems]
    assert len(report.findings) > 5


# -- real runs ---------------------------------------------------------------------------------------------------

EXPERIMENT = """
name: bridge
algorithm: {name: iql, hidden: [8, 8], batch_size: 16, order: corl, beta: 10}
objective: {name: pex, hidden: [8, 8], grow: [0.5], entropy: 0.8}
data:
  train: {recipe: pendulum/medium, size: 1000}
online: {env: MetarlBridge-v0, from_data: 0.5, learn_from: 30}
steps: {offline: 40, online: 200}
device: cpu
log_every: 10
evaluation: {every: 50, episodes: 1}
checkpoint: {every: 20, keep: 99}
"""  # a run rests where an episode of 17 steps ends, and so in the middle of a row of the log


class Stop(Silent):
    """Ends a run from outside once it has come so far."""

    def __init__(self, at):
        self.at = at

    def update(self, done, **figures):
        if done >= self.at:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """pendulum/medium, made once, and Pendulum cut after 17 steps."""
    root = tmp_path_factory.mktemp("datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(root))
        make_dataset("pendulum/medium", 1000)
    gym.register("MetarlBridge-v0", "gymnasium.envs.classic_control:PendulumEnv", max_episode_steps=17)
    yield root
    del gym.registry["MetarlBridge-v0"]


@pytest.fixture
def train(tmp_path, made, monkeypatch):
    """`train(*overrides, root="runs", stop=None)`: a real run of both phases; returns its folder."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(made))
    file = tmp_path / "experiment.yaml"
    file.write_text(EXPERIMENT)

    def run(*overrides, root="runs", stop=None):
        reporter = Silent() if stop is None else Stop(stop)
        return offline.train(config.load(file, overrides), 0, tmp_path / root, reporter)

    return run


def contents(folder):
    """Everything that must repeat, the replay included."""
    saved = checkpoints.load_newest(folder / "checkpoint", pytest.fail)
    return {
        "metrics": (folder / "metrics.csv").read_bytes(),
        "result": (folder / "result.json").read_bytes(),
        "replay": (folder / "replay.bin").read_bytes(),
        "online": saved.record["online"],
        "step": saved.step,
        "tensors": {name: value.numpy().tobytes() for name, value in saved.tensors.items()},
    }


def test_no_objective_may_follow(train):
    with pytest.raises(ConfigError, match=r"objective pex must come last, after those that change how"):
        train("objective=[{name: pex}, {name: fixed}]")


def test_killed_around_the_switch_it_ends_with_the_same_bits(train):
    whole = train()
    for at in (31, 40, 52, 203):  # before, at and after the switch, before and after a policy joins
        with pytest.raises(KeyboardInterrupt):
            train(root="killed", stop=at)
    assert contents(train(root="killed")) == contents(whole)

    rows = [line.split(",") for line in (whole / "metrics.csv").read_text().splitlines()[1:]]
    found = {(int(step), name): float(value) for step, name, value in rows}
    acted = {i: {s: v for (s, name), v in found.items() if name == f"online/policy_{i}"} for i in range(3)}
    steps = sorted(acted[0])
    assert steps == list(range(50, 241, 10))
    assert all(sum(acted[i][s] for i in range(3)) == pytest.approx(1) for s in steps)
    joined = 40 + 30 + 85  # of 170 gradient steps half are over
    assert not any(acted[2][s] for s in steps if s <= joined) and any(acted[2][s] for s in steps if s > joined)
    assert any(0 < acted[1][s] < 1 for s in (50, 60, 70))  # before anything was learned online

    first, last = (checkpoints.load(whole / "checkpoint", at).tensors for at in (40, 240))
    actor = [name for name in first if name.startswith(("tree/actor/", "opt/actor/"))]
    assert len(actor) > 6 and all(torch.equal(first[name], last[name]) for name in actor)
    assert not torch.equal(first["tree/critic/q1.layers.0.weight"], last["tree/critic/q1.layers.0.weight"])
    assert last["tree/policy_set/size"] == 3


def test_online_alone_it_begins_with_what_another_run_has_trained(train, tmp_path):
    """The frozen policy is given; critic and V begin afresh."""
    source = train("objective=null", "online=null", "steps=20", "evaluation.every=20", root="source")
    alone = ("steps={offline: 0, online: 60}", "online.random_steps=0", "evaluation.every=60")
    with pytest.raises(ConfigError, match=r"actor would stay as initialised; name the run that trained it.*init"):
        train(*alone)
    assert not (tmp_path / "runs").exists()
    folder = train(*alone, f"init.actor={source}")
    theirs, ours = (checkpoints.load_newest(f / "checkpoint", pytest.fail).tensors for f in (source, folder))
    actor = [name for name in theirs if name.startswith("tree/actor/")]
    assert actor and all(torch.equal(theirs[name], ours[name]) for name in actor)
    assert not torch.equal(theirs["tree/critic/q1.layers.0.weight"], ours["tree/critic/q1.layers.0.weight"])
    assert not any(name.startswith("opt/actor") for name in ours)
