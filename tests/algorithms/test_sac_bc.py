"""SAC+BC against a textbook SAC with a cloning term: modules, torch.distributions, torch.optim, targets in place."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from algorithms.sac_bc import SACBC
from metarl import Rewards, adam, sgd
from metarl.component import component
from metarl.errors import ConfigError

HIGH = torch.tensor([1.0, 0.5], dtype=torch.float64)
BASE = {"hidden": (16, 16), "batch_size": 32}


class Net(nn.Module):
    """Two hidden layers of torch.nn.Linear, started from a group of the learner."""

    def __init__(self, params, prefix):
        super().__init__()
        layers = []
        for i in range(3):
            weight, bias = (params[f"{prefix}layers.{i}.{k}"] for k in ("weight", "bias"))
            layer = nn.Linear(*weight.shape, dtype=torch.float64)
            layer.weight.data.copy_(weight.T)
            layer.bias.data.copy_(bias)
            layers.append(layer)
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        return self.layers[2](self.hidden(x))

    def hidden(self, x):
        return torch.relu(self.layers[1](torch.relu(self.layers[0](x))))

    def group(self, prefix, read=lambda p: p):
        """Values (or what `read` finds for them) under the learner's names, weights as [in, out]."""
        return {
            f"{prefix}layers.{i}.{kind}": (lambda t, k: t.T if k == "weight" else t)(read(getattr(layer, kind)), kind)
            for i, layer in enumerate(self.layers)
            for kind in ("weight", "bias")
        }


class Textbook:
    """SAC (Haarnoja et al. 2018) with TD3+BC's cloning term and its scale of Q (GORL, Eq. 11 and Table VIII)."""

    def __init__(
        self,
        tree,
        weight=2.5,
        temperature=0.2,
        learned=False,
        target_entropy=None,
        gamma=0.99,
        tau=0.005,
        actor_lr=3e-4,
        critic_lr=3e-4,
        every=2,
    ):
        self.actor = Net(tree["actor"], "net.")
        self.critics = [Net(tree["critic"], f"q{i}.") for i in (1, 2)]
        self.targets = [Net(tree["critic"], f"q{i}.") for i in (1, 2)]
        log = tree["temperature"]["log"].item() if learned else math.log(temperature)
        assert abs(log - math.log(temperature)) < 1e-7  # it starts as a number in single precision
        self.log_alpha = torch.tensor(log, dtype=torch.float64, requires_grad=learned)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), actor_lr)
        self.critic_optimizer = torch.optim.Adam([p for c in self.critics for p in c.parameters()], critic_lr)
        self.alpha_optimizer = torch.optim.Adam([self.log_alpha], actor_lr) if learned else None
        self.target_entropy = -len(HIGH) if target_entropy is None else target_entropy
        self.weight, self.gamma, self.tau, self.every = weight, gamma, tau, every
        self.total = 0

    def distribution(self, obs):
        mean, log_std = self.actor(obs).chunk(2, -1)
        base = Normal(mean, log_std.clamp(-5, 2).exp())
        return Independent(TransformedDistribution(base, [TanhTransform(cache_size=1)]), 1)

    def sample(self, obs, eps):
        """An action by given noise, and the log-density of its part in +-1."""
        pi = self.distribution(obs)
        base = pi.base_dist.base_dist
        unit = pi.base_dist.transforms[0](base.loc + base.scale * eps)
        return unit * HIGH, pi.log_prob(unit)

    def least(self, nets, obs, action):
        return torch.min(*[net(torch.cat([obs, action], 1)).squeeze(1) for net in nets])

    def critic_loss(self, batch, eps):
        with torch.no_grad():
            action, log_pi = self.sample(batch["next_obs"], eps)
            soft = self.least(self.targets, batch["next_obs"], action) - self.log_alpha.exp() * log_pi
            y = batch["reward"] + self.gamma * (1 - batch["terminated"]) * soft
        x = torch.cat([batch["obs"], batch["action"]], 1)
        return sum(nn.functional.mse_loss(critic(x).squeeze(1), y) for critic in self.critics)

    def actor_loss(self, batch, eps, constant=True):
        """Also the log-densities, which a learned temperature looks at."""
        action, log_pi = self.sample(batch["obs"], eps)
        q = self.least(self.critics, batch["obs"], action)
        scale = self.weight / q.abs().mean()
        clone = nn.functional.mse_loss(action, batch["action"])
        entropy = self.log_alpha.exp().detach() * log_pi
        return (entropy - (scale.detach() if constant else scale) * q).mean() + clone, log_pi

    def train(self, batch, noise):
        self.total += 1
        loss = self.critic_loss(batch, noise["next_policy"])
        self.critic_optimizer.zero_grad()
        loss.backward()
        self.critic_optimizer.step()
        if self.total % self.every == 0:
            actor_loss, log_pi = self.actor_loss(batch, noise["policy"])
            self.actor_optimizer.zero_grad()
            actor_loss.backward()
            self.actor_optimizer.step()
            if self.alpha_optimizer is not None:
                alpha_loss = -(self.log_alpha * (log_pi + self.target_entropy).detach()).mean()
                self.alpha_optimizer.zero_grad()
                alpha_loss.backward()
                self.alpha_optimizer.step()
            for net, target in zip(self.critics, self.targets, strict=True):
                for p, t in zip(net.parameters(), target.parameters(), strict=True):
                    t.data.mul_(1 - self.tau).add_(self.tau * p.data)
        return loss.detach()

    def tree(self):
        twin = [c.group(f"q{i}.") for i, c in enumerate(self.critics, 1)]
        target = [c.group(f"q{i}.") for i, c in enumerate(self.targets, 1)]
        tree = {"actor": self.actor.group("net."), "critic": twin[0] | twin[1], "critic_target": target[0] | target[1]}
        return tree if self.alpha_optimizer is None else tree | {"temperature": {"log": self.log_alpha}}

    def moments(self, key):
        actor = self.actor.group("net.", lambda p: self.actor_optimizer.state[p][key])
        twin = [c.group(f"q{i}.", lambda p: self.critic_optimizer.state[p][key]) for i, c in enumerate(self.critics, 1)]
        found = {"actor": actor, "critic": twin[0] | twin[1]}
        if self.alpha_optimizer is not None:
            found["temperature"] = {"log": self.alpha_optimizer.state[self.log_alpha][key]}
        return found


@pytest.fixture
def learner(assemble):
    return assemble(SACBC(**BASE))


def edgy(state):
    """Deviations of the policy cross both of their bounds, one in each dimension, and the critics cross zero."""
    bias = torch.tensor([0.7, -0.7, 1.9, -5.3], dtype=torch.float64)
    state = state.with_params("actor", {**state.tree["actor"], "net.layers.2.bias": bias})
    critic = dict(state.tree["critic"])
    for i, middle in ((1, -0.2), (2, 0.5)):
        critic[f"q{i}.layers.2.weight"] = 20 * critic[f"q{i}.layers.2.weight"]
        critic[f"q{i}.layers.2.bias"] = torch.tensor([middle], dtype=torch.float64)
    return state.with_params("critic", critic).with_params("critic_target", critic)


@pytest.mark.parametrize(
    ("settings", "hand"),
    [
        ({}, {}),
        ({"auto_temperature": True}, {"learned": True}),
        ({"auto_temperature": True, "target_entropy": 0.2}, {"learned": True, "target_entropy": 0.2}),
        ({"auto_temperature": True, "temperature": 1.0}, {"learned": True, "temperature": 1.0}),
    ],
    ids=["fixed", "learned", "learned-0.2", "learned-from-1"],
)
def test_twenty_steps_equal_the_textbook(assemble, draw, apart, settings, hand):
    learner = assemble(SACBC(**BASE, **settings))
    state = edgy(learner.init(torch.float64))
    textbook, bounded = Textbook(state.tree, **hand), 0
    start = textbook.log_alpha.item()
    for step in range(1, 21):
        batches = draw(learner, step)
        with torch.no_grad():
            upper, lower = textbook.actor(batches["train"]["obs"]).T[2:]
        bounded += all(0 < outside.sum() < 32 for outside in (upper > 2, lower < -5))
        state, metrics = learner.step(state, batches, learner.due(step))
        loss = textbook.train(batches["train"], batches["noise"])
        assert abs(metrics["critic/loss"] - loss) < 1e-10 * loss
        assert ("actor/loss" in metrics) == (step % 2 == 0)
        assert apart(state.tree, textbook.tree()) < 1e-10
    assert bounded > 10
    for ours, theirs in (("mu", "exp_avg"), ("nu", "exp_avg_sq")):
        for group, moments in textbook.moments(theirs).items():
            assert apart(getattr(state.opt[group], ours), moments) < 1e-10
    assert state.opt["actor"].count == 10 and state.opt["critic"].count == 20
    assert (abs(textbook.log_alpha.item() - start) > 1e-3) == ("auto_temperature" in settings)


@pytest.mark.parametrize(
    ("settings", "hand"),
    [
        ({"alpha": 0.1}, {"weight": 0.1}),
        ({"temperature": 0.5}, {"temperature": 0.5}),
        ({"auto_temperature": True}, {"learned": True}),
        ({"auto_temperature": True, "actor_optimizer": adam(1e-2)}, {"learned": True, "actor_lr": 1e-2}),
        ({"discount": 0.9}, {"gamma": 0.9}),
        ({"tau": 0.1}, {"tau": 0.1}),
        ({"policy_every": 1}, {"every": 1}),
        ({"policy_every": 3}, {"every": 3}),
        ({"actor_optimizer": adam(1e-2)}, {"actor_lr": 1e-2}),
        ({"critic_optimizer": adam(1e-2)}, {"critic_lr": 1e-2}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_every_setting_means_what_the_textbook_means(assemble, draw, apart, settings, hand):
    learner = assemble(SACBC(**BASE, **settings))
    state = edgy(learner.init(torch.float64))
    textbook, plain = Textbook(state.tree, **hand), Textbook(state.tree)
    for step in range(1, 7):
        batches = draw(learner, step)
        state, _ = learner.step(state, batches, learner.due(step))
        for book in (textbook, plain):
            book.train(batches["train"], batches["noise"])
    assert apart(state.tree, textbook.tree()) < 1e-10
    common = plain.tree()
    assert apart({k: state.tree[k] for k in common}, common) > 1e-6


def test_a_target_entropy_matters_only_to_a_learned_temperature(assemble, draw, apart):
    trees = {}
    for learned in (False, True):
        for target in (None, -2.0, 0.2):
            learner = assemble(SACBC(**BASE, auto_temperature=learned, target_entropy=target, actor_optimizer=sgd(0.1)))
            state = learner.init(torch.float64)
            for step in range(1, 5):
                state, _ = learner.step(state, draw(learner, step), learner.due(step))
            trees[learned, target] = state.tree
    assert apart(trees[False, 0.2], trees[False, None]) == 0
    assert apart(trees[True, -2.0], trees[True, None]) == 0  # minus two action dimensions
    assert apart(trees[True, 0.2]["temperature"], trees[True, None]["temperature"]) > 1e-2


def test_sizes_and_the_remaining_settings_reach_the_learner(spec):
    rewards = Rewards(scale=2.0, shift=-1.0)
    algorithm = SACBC(hidden=(5, 7, 9), batch_size=11, normalize=False, rewards=rewards)
    learner = algorithm.build(spec, torch.Generator().manual_seed(0))
    shapes = {k: tuple(p.shape) for k, p in learner.modules["actor"].named_parameters() if k.endswith("weight")}
    assert [*shapes.values()] == [(3, 5), (5, 7), (7, 9), (9, 4)]
    shapes = [tuple(p.shape) for k, p in learner.modules["critic"].named_parameters() if k.endswith("weight")]
    assert shapes == 2 * [(5, 5), (5, 7), (7, 9), (9, 1)]
    assert learner.roles["train"].size == 11 and [*learner.roles] == ["train"]
    assert {k: n.whole_shape(learner.roles) for k, n in learner.noise.items()} == {
        "policy": (11, 2),
        "next_policy": (11, 2),
    }
    assert {n.distribution for n in learner.noise.values()} == {"normal"}
    assert (learner.normalize, learner.rewards, learner.span) == (False, rewards, None)
    start = learner.ready().init().tree
    assert all(torch.equal(p, start["critic"][k]) for k, p in start["critic_target"].items())


@pytest.mark.parametrize("learned", [False, True], ids=["fixed", "learned"])
def test_updates_stand_in_their_order(assemble, learned):
    learner = assemble(SACBC(**BASE, auto_temperature=learned))
    improvement = ["actor", "temperature"] if learned else ["actor"]
    assert [[u.name for u in stage] for stage in learner.stages] == [["critic"], improvement, ["critic_target"]]
    assert learner.due(3) == {"critic"} and learner.due(4) == {"critic", *improvement, "critic_target"}


def test_the_target_bootstraps_through_time_limits_and_stops_at_terminations(learner, draw):
    state, batches = learner.init(torch.float64), draw(learner)
    update = learner.updates["critic"]

    def loss(terminated, truncated):
        n = len(batches["train"]["reward"])
        flags = {
            "terminated": torch.full((n,), terminated, dtype=torch.float64),
            "truncated": torch.full((n,), truncated, dtype=torch.float64),
        }
        return update.evaluate(state.tree, {**batches, "train": batches["train"] | flags})[0]

    assert loss(0.0, 1.0) == loss(0.0, 0.0) and loss(1.0, 1.0) == loss(1.0, 0.0)
    x = torch.cat([batches["train"]["obs"], batches["train"]["action"]], 1)
    stopped = sum(
        (Net(state.tree["critic"], f"q{i}.")(x).squeeze(1) - batches["train"]["reward"]).square().mean() for i in (1, 2)
    )
    assert abs(loss(1.0, 0.0) - stopped) < 1e-12
    assert abs(loss(0.0, 0.0) - stopped) > 1e-3


def test_metrics_are_what_they_are_called(assemble, draw):
    learner = assemble(SACBC(**BASE, auto_temperature=True))
    state, batches = learner.init(torch.float64), draw(learner)
    book, batch = Textbook(state.tree, learned=True), batches["train"]
    with torch.no_grad():
        x = torch.cat([batch["obs"], batch["action"]], 1)
        q1, q2 = (critic(x) for critic in book.critics)
        action, log_pi = book.sample(batch["obs"], batches["noise"]["policy"])
        least = book.least(book.critics, batch["obs"], action)
    expected = {
        "critic": {"q": q1.mean(), "q_max": torch.max(q1, q2).max()},
        "actor": {
            "q": least.mean(),
            "constraint": (action - batch["action"]).square().mean(),
            "entropy": -log_pi.mean(),
        },
        "temperature": {"temperature": torch.tensor(0.2, dtype=torch.float64)},
    }
    for name, values in expected.items():
        metrics = learner.updates[name].evaluate(state.tree, batches)[1]
        assert set(metrics) == set(values)
        assert all(torch.allclose(metrics[key], value, rtol=1e-7) for key, value in values.items())


def test_the_policy_gradient_sees_lambda_as_a_constant(learner, draw, apart):
    state, batches = learner.init(torch.float64), draw(learner)
    update, batch, eps = learner.updates["actor"], batches["train"], batches["noise"]["policy"]
    grads = update.gradient(update, state, batches).grads
    book = Textbook(state.tree)

    def by_hand(constant):
        values = torch.autograd.grad(book.actor_loss(batch, eps, constant)[0], list(book.actor.parameters()))
        by_id = dict(zip(map(id, book.actor.parameters()), values, strict=True))
        return book.actor.group("net.", lambda p: by_id[id(p)])

    assert apart(grads, by_hand(True)) < 1e-10
    assert apart(grads, by_hand(False)) > 1e-3


def test_the_critic_gradient_sees_its_target_as_a_constant(learner, draw, apart):
    """Also where the target and the critic are one network."""
    state, batches = learner.init(torch.float64), draw(learner)
    update = learner.updates["critic"]
    book = Textbook(state.tree)
    book.targets = book.critics
    parameters = [p for c in book.critics for p in c.parameters()]
    values = torch.autograd.grad(book.critic_loss(batches["train"], batches["noise"]["next_policy"]), parameters)
    by_id = dict(zip(map(id, parameters), values, strict=True))
    twin = [c.group(f"q{i}.", lambda p: by_id[id(p)]) for i, c in enumerate(book.critics, 1)]
    grads = torch.func.grad(
        lambda p: update.evaluate({**state.tree, "critic": p, "critic_target": p}, batches)[0],
    )(state.tree["critic"])
    assert apart(grads, twin[0] | twin[1]) < 1e-10


@pytest.mark.parametrize("learned", [False, True], ids=["fixed", "learned"])
def test_policy_terms_are_per_sample_and_add_up(assemble, draw, learned):
    learner = assemble(SACBC(**BASE, auto_temperature=learned))
    state, batches = edgy(learner.init(torch.float64)), draw(learner)
    if learned:
        state = state.with_params("temperature", {"log": torch.tensor(0.3, dtype=torch.float64)})
    batch, policy, noise, n = batches["train"], learner.policy, {"policy": batches["noise"]["policy"]}, 32
    assert policy.updates == ("actor",) and policy.noise == ("policy",) and policy.signal == "raw"
    book = Textbook(state.tree)
    with torch.no_grad():
        action, log_pi = book.sample(batch["obs"], noise["policy"])
        q = book.least(book.critics, batch["obs"], action)
        mode = torch.tanh(book.actor(batch["obs"])[:, :2]) * HIGH
    assert q.min() < -0.05 and q.max() > 0.05
    entropy = (math.exp(0.3) if learned else 0.2) * log_pi
    lam, squared = 2.5 / q.abs().mean(), (action - batch["action"]).square()
    for form, scale, constraint in (
        ((), lam, squared.mean(1)),
        (("literal",), 1.0, squared.mean(1)),
        (("sum",), lam, squared.sum(1)),
        (("literal", "sum"), 1.0, squared.sum(1)),
    ):
        terms = policy.terms(state.tree, batch, noise, form)
        for value in (terms.improvement, terms.constraint, terms.rest, terms.signal):
            assert value.shape == (n,)
        assert torch.allclose(terms.improvement, scale * q, rtol=1e-12)
        assert torch.allclose(terms.constraint, constraint, rtol=1e-12)
        assert torch.allclose(terms.rest, entropy, rtol=1e-12)
        assert torch.equal(terms.signal, terms.constraint)
        b = torch.linspace(0, 2, n, dtype=torch.float64)
        free = (entropy - scale * q).mean()
        assert torch.allclose(policy.combine(terms, b), free + (b * constraint).mean(), rtol=1e-12)
        assert torch.allclose(policy.combine(terms, 0.5), free + constraint.mean() / 2, rtol=1e-12)
        assert torch.allclose(policy.combine(terms, None), free, rtol=1e-12)
    far = (mode - batch["action"]).square()
    for form, expected in (
        ((), squared.mean()),
        (("sum",), squared.sum(1).mean()),
        (("entropy",), squared.mean() + entropy.mean()),
        (("sum", "entropy"), squared.sum(1).mean() + entropy.mean()),
        (("mode",), far.mean()),
        (("sum", "mode"), far.sum(1).mean()),
    ):
        assert set(form) <= set(policy.forms)
        assert torch.allclose(policy.imitation(state.tree, batch, noise, form), expected, rtol=1e-12), form
    assert torch.allclose(policy.action(state.tree, batch["obs"], noise), action, rtol=1e-12)
    assert torch.allclose(policy.q(state.tree, batch["obs"], action), q, rtol=1e-12)
    with torch.no_grad():
        hidden = book.actor.hidden(batch["obs"])
    assert torch.allclose(policy.features(state.tree, batch["obs"]), hidden, rtol=1e-12)
    with pytest.raises(ConfigError, match="no state-value function"):
        policy.v(state.tree, batch["obs"])


def test_degree_one_is_the_algorithms_own_loss(learner, draw):
    state, batches = learner.init(torch.float64), draw(learner)
    policy, update = learner.policy, learner.updates["actor"]
    terms = policy.terms(state.tree, batches["train"], batches["noise"])
    loss = update.evaluate(state.tree, batches)[0]
    assert torch.equal(loss, policy.combine(terms, 1.0))
    assert torch.equal(loss, policy.combine(terms, torch.ones(32, dtype=torch.float64)))
    assert abs(loss - Textbook(state.tree).actor_loss(batches["train"], batches["noise"]["policy"])[0]) < 1e-12


def test_act_is_the_mode_or_a_sample_and_carries_nothing(learner, draw):
    state, batches = edgy(learner.init(torch.float64)), draw(learner)
    obs, eps = batches["train"]["obs"], batches["noise"]["policy"]
    book = Textbook(state.tree)
    with torch.no_grad():
        mode, (sample, _) = torch.tanh(book.actor(obs)[:, :2]) * HIGH, book.sample(obs, eps)
    for noise, deterministic, expected in (
        (None, True, mode),
        (eps, True, mode),
        (None, False, mode),
        (eps, False, sample),
    ):
        action, carry = learner.act(state.tree, obs, None, noise, deterministic)
        assert torch.allclose(action, expected, rtol=1e-12) and carry is None
    assert not torch.allclose(mode, sample)
    assert (sample.abs() <= HIGH).all()


def test_presets_and_defaults_are_those_of_table_viii():
    defaults = SACBC()
    assert (defaults.alpha, defaults.discount, defaults.tau, defaults.policy_every) == (2.5, 0.99, 0.005, 2)
    assert (defaults.temperature, defaults.auto_temperature, defaults.target_entropy) == (0.2, False, None)
    assert defaults.hidden == (256, 256) and defaults.batch_size == 256 and defaults.normalize
    for optimizer in (defaults.actor_optimizer, defaults.critic_optimizer):
        assert (optimizer.name, optimizer.hparams["lr"]) == ("adam", 3e-4)
    found = {}
    for preset in SACBC.presets:
        found[preset], _ = component(
            "metarl.algorithms", {"name": "sac_bc", "preset": preset}, "test.yaml", "algorithm"
        )
    assert {name: built.alpha for name, built in found.items()} == {"locomotion": 2.5, "adroit": 0.1}
    assert found["locomotion"] == SACBC(
        **{f: getattr(found["locomotion"], f) for f in ("actor_optimizer", "critic_optimizer")}
    )


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive and finite, not 0.0"),
        ({"temperature": -1.0}, "temperature must be positive and finite, not -1.0"),
        ({"temperature": float("nan")}, "temperature must be positive and finite, not nan"),
        ({"policy_every": 0}, "policy_every"),
        ({"batch_size": 0}, "batch_size"),
        ({"hidden": [16, 0]}, "hidden"),
        ({"temprature": 0.1}, "Did you mean 'temperature'"),
        ({"alpha": "high"}, "alpha"),
    ],
    ids=str,
)
def test_a_bad_setting_is_refused(setting, message):
    with pytest.raises(ConfigError, match=message):
        component("metarl.algorithms", {"name": "sac_bc", **setting}, "test.yaml", "algorithm")


def test_the_policy_moves_towards_value_and_data(assemble, draw):
    """A larger alpha trades cloning for Q: from one state, lower constraint with a small one, higher Q with a large."""
    found = {}
    for alpha in (0.0, 50.0):
        learner = assemble(SACBC(**BASE, alpha=alpha, actor_optimizer=adam(1e-2), critic_optimizer=sgd(0.0)))
        state, batches = learner.init(torch.float64), draw(learner)
        for step in range(1, 61):
            state, _ = learner.step(state, batches, learner.due(step))
        found[alpha] = learner.policy.terms(state.tree, batches["train"], batches["noise"]).metrics
    assert found[0.0]["constraint"] < found[50.0]["constraint"] - 0.01
    assert found[50.0]["q"] > found[0.0]["q"] + 0.01
