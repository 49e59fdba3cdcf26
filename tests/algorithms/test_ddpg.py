"""DDPG against a textbook implementation of its Algorithm 1: modules, torch.optim, targets moved in place."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from algorithms.ddpg import DDPG
from metarl import Rewards, adam
from metarl.component import component
from metarl.errors import ConfigError

HIGH = torch.tensor([1.0, 0.5], dtype=torch.float64)
BASE = {"hidden": (16, 16), "batch_size": 32}


def network(params, prefix):
    """torch.nn's layers, with the values of a group of the learner."""
    layers = []
    for i in range(len(params) // 2):
        weight, bias = (params[f"{prefix}layers.{i}.{kind}"] for kind in ("weight", "bias"))
        layer = nn.Linear(*weight.shape, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(weight.T)
            layer.bias.copy_(bias)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def group(net, prefix, read=lambda p: p):
    """Values (or what `read` finds for them) under the learner's names, weights as [in, out]."""
    found = {}
    for i, layer in enumerate(net[::2]):
        found |= {f"{prefix}layers.{i}.weight": read(layer.weight).T, f"{prefix}layers.{i}.bias": read(layer.bias)}
    return found


class Textbook:
    """Lillicrap et al. 2015, Algorithm 1."""

    def __init__(self, tree, gamma=0.99, tau=0.005, actor_lr=3e-4, critic_lr=3e-4):
        self.mu, self.mu_target = network(tree["actor"], "net."), network(tree["actor_target"], "net.")
        self.q, self.q_target = network(tree["critic"], "q."), network(tree["critic_target"], "q.")
        self.mu_optimizer = torch.optim.Adam(self.mu.parameters(), lr=actor_lr)
        self.q_optimizer = torch.optim.Adam(self.q.parameters(), lr=critic_lr)
        self.gamma, self.tau = gamma, tau

    def act(self, net, s):
        return HIGH * torch.tanh(net(s))

    def value(self, net, s, a):
        return net(torch.cat([s, a], 1)).squeeze(1)

    def future(self, batch):
        """gamma Q'(s', mu'(s'))."""
        with torch.no_grad():
            s2 = batch["next_obs"]
            return self.gamma * self.value(self.q_target, s2, self.act(self.mu_target, s2))

    def critic_loss(self, batch, future):
        y = batch["reward"] + (1 - batch["terminated"]) * future
        return ((y - self.value(self.q, batch["obs"], batch["action"])) ** 2).mean()

    def train(self, batch):
        loss = self.critic_loss(batch, self.future(batch))
        self.q_optimizer.zero_grad()
        loss.backward()
        self.q_optimizer.step()
        self.mu_optimizer.zero_grad()
        (-self.value(self.q, batch["obs"], self.act(self.mu, batch["obs"])).mean()).backward()
        self.mu_optimizer.step()
        with torch.no_grad():
            for net, target in ((self.mu, self.mu_target), (self.q, self.q_target)):
                for p, q in zip(net.parameters(), target.parameters(), strict=True):
                    q.copy_(self.tau * p + (1 - self.tau) * q)
        return loss.detach()

    def tree(self):
        return {
            "actor": group(self.mu, "net."),
            "actor_target": group(self.mu_target, "net."),
            "critic": group(self.q, "q."),
            "critic_target": group(self.q_target, "q."),
        }

    def moments(self, key):
        return {
            "actor": group(self.mu, "net.", lambda p: self.mu_optimizer.state[p][key]),
            "critic": group(self.q, "q.", lambda p: self.q_optimizer.state[p][key]),
        }


@pytest.fixture
def learner(assemble):
    return assemble(DDPG(**BASE))


def test_twenty_steps_equal_the_textbook(learner, draw, apart):
    state = learner.init(torch.float64)
    textbook = Textbook(state.tree)
    for step in range(1, 21):
        batches = draw(learner, step)
        state, metrics = learner.step(state, batches, learner.due(step))
        loss = textbook.train(batches["train"])
        assert abs(metrics["critic/loss"] - loss) < 1e-10 * loss and "actor/loss" in metrics
        assert apart(state.tree, textbook.tree()) < 1e-10
    for ours, theirs in (("mu", "exp_avg"), ("nu", "exp_avg_sq")):
        for name, moments in textbook.moments(theirs).items():
            assert apart(getattr(state.opt[name], ours), moments) < 1e-10
    assert state.opt["actor"].count == state.opt["critic"].count == 20


@pytest.mark.parametrize(
    ("settings", "hand"),
    [
        ({"discount": 0.9}, {"gamma": 0.9}),
        ({"tau": 0.1}, {"tau": 0.1}),
        ({"actor_optimizer": adam(1e-2)}, {"actor_lr": 1e-2}),
        ({"critic_optimizer": adam(1e-2)}, {"critic_lr": 1e-2}),
    ],
    ids=lambda value: "-".join(value),
)
def test_every_setting_means_what_the_textbook_means(assemble, draw, apart, settings, hand):
    learner = assemble(DDPG(**BASE, **settings))
    state = learner.init(torch.float64)
    textbook, plain = Textbook(state.tree, **hand), Textbook(state.tree)
    for step in range(1, 4):
        batches = draw(learner, step)
        state, _ = learner.step(state, batches, learner.due(step))
        for book in (textbook, plain):
            book.train(batches["train"])
    assert apart(state.tree, textbook.tree()) < 1e-10
    assert apart(state.tree, plain.tree()) > 1e-6


def test_the_target_bootstraps_through_time_limits_and_stops_at_terminations(learner, draw):
    """A row that a time limit ended has the target of one that went on; a terminated one has its reward alone."""
    state, batches = learner.init(torch.float64), draw(learner)
    update, batch = learner.updates["critic"], batches["train"]
    book, ones = Textbook(state.tree), torch.ones_like(batch["reward"])
    found = {}
    for terminated in (0, 1):
        flags = {"terminated": terminated * ones}
        expected = book.critic_loss(batch | flags, book.future(batch))
        for truncated in (0, 1):
            rows = batch | flags | {"truncated": truncated * ones}
            found[terminated] = update.evaluate(state.tree, {**batches, "train": rows})[0]
            assert abs(found[terminated] - expected) < 1e-12
    assert abs(found[0] - found[1]) > 1e-3


def test_the_critic_gradient_sees_its_target_as_a_constant(learner, draw, apart):
    """Also where the target and the critic are one network."""
    state, batches = learner.init(torch.float64), draw(learner)
    update, book = learner.updates["critic"], Textbook(state.tree)
    book.q_target = book.q
    book.critic_loss(batches["train"], book.future(batches["train"])).backward()
    grads = torch.func.grad(
        lambda p: update.evaluate({**state.tree, "critic": p, "critic_target": p}, batches)[0],
    )(state.tree["critic"])
    assert apart(grads, group(book.q, "q.", lambda p: p.grad)) < 1e-10


def test_metrics_are_what_they_are_called(learner, draw):
    state, batches = learner.init(torch.float64), draw(learner)
    q = Textbook(state.tree).value(
        network(state.tree["critic"], "q."), batches["train"]["obs"], batches["train"]["action"]
    )
    metrics = learner.updates["critic"].evaluate(state.tree, batches)[1]
    assert set(metrics) == {"q", "q_max"}
    assert torch.allclose(metrics["q"], q.mean(), rtol=1e-12) and torch.allclose(metrics["q_max"], q.max(), rtol=1e-12)


def test_policy_terms_are_per_sample_and_no_degree_weighs_them(learner, draw):
    state, batches = learner.init(torch.float64), draw(learner)
    batch, policy = batches["train"], learner.policy
    book = Textbook(state.tree)
    with torch.no_grad():
        action = book.act(book.mu, batch["obs"])
        q = book.value(book.q, batch["obs"], action)
    assert (policy.updates, policy.forms, policy.noise, policy.signal) == (("actor",), (), (), "scaled")
    terms = policy.terms(state.tree, batch, {})
    assert terms.improvement.shape == terms.signal.shape == (32,) and terms.constraint is terms.rest is None
    assert torch.allclose(terms.improvement, q, rtol=1e-12) and torch.equal(terms.signal, terms.improvement)
    assert set(terms.metrics) == {"q"} and torch.allclose(terms.metrics["q"], q.mean(), rtol=1e-12)
    loss = learner.updates["actor"].evaluate(state.tree, batches)[0]
    for degree in (1.0, None):
        assert torch.equal(policy.combine(terms, degree), loss)
    for degree in (0.5, torch.linspace(0, 2, 32, dtype=torch.float64)):
        with pytest.raises(ConfigError, match="ddpg ties its policy to no data"):
            policy.combine(terms, degree)
    assert torch.allclose(loss, -q.mean(), rtol=1e-12)
    clone = ((action - batch["action"]) ** 2).mean()
    assert torch.allclose(policy.imitation(state.tree, batch, {}), clone, rtol=1e-12)
    assert torch.allclose(policy.action(state.tree, batch["obs"], {}), action, rtol=1e-12)
    assert torch.allclose(policy.q(state.tree, batch["obs"], action), q, rtol=1e-12)
    assert torch.allclose(policy.features(state.tree, batch["obs"]), book.mu[:4](batch["obs"]), rtol=1e-12)
    with pytest.raises(ConfigError, match="ddpg learns no state-value function"):
        policy.v(state.tree, batch["obs"])


def test_exploration_adds_noise_in_units_of_the_largest_action(assemble, draw):
    for settings, size in (({}, 0.1), ({"exploration": 0.4}, 0.4), ({"exploration": 0.0}, 0.0)):
        learner = assemble(DDPG(**BASE, **settings))
        state, obs = learner.init(torch.float64), draw(learner)["train"]["obs"]
        mean = HIGH * torch.tanh(network(state.tree["actor"], "net.")(obs))
        assert (mean.abs() < 0.6 * HIGH).all()
        eps = torch.linspace(-0.9, 0.9, 64, dtype=torch.float64).reshape(32, 2)  # reaches no bound
        action, carry = learner.act(state.tree, obs, None, eps, False)
        assert torch.allclose(action, mean + size * HIGH * eps, rtol=1e-12) and carry is None
        for noise, deterministic in ((None, True), (eps, True), (None, False)):
            assert torch.allclose(learner.act(state.tree, obs, None, noise, deterministic)[0], mean, rtol=1e-12)
        if size:
            action, _ = learner.act(state.tree, obs, None, 100 * torch.sign(eps), False)
            assert torch.equal(action, HIGH * torch.sign(eps))


def test_sizes_and_the_remaining_settings_reach_the_learner(spec):
    rewards = Rewards(scale=2.0, shift=-1.0)
    for actor_hidden, widths in ((None, [5, 7]), ((9,), [9]), ((), [])):
        algorithm = DDPG(hidden=(5, 7), actor_hidden=actor_hidden, batch_size=11, normalize=True, rewards=rewards)
        learner = algorithm.build(spec, torch.Generator().manual_seed(0))
        shapes = {
            name: [tuple(p.shape) for k, p in learner.modules[name].named_parameters() if k.endswith("weight")]
            for name in ("actor", "critic")
        }
        assert shapes == {"actor": [*pairwise([3, *widths, 2])], "critic": [(5, 5), (5, 7), (7, 1)]}
    assert {k: (r.source, r.size) for k, r in learner.roles.items()} == {"train": ("train", 11)}
    assert learner.noise == {}
    assert (learner.normalize, learner.rewards, learner.span) == (True, rewards, None)
    start = learner.ready().init().tree
    for name in ("actor", "critic"):
        assert all(torch.equal(p, start[f"{name}_target"][k]) for k, p in start[name].items())


def test_updates_stand_in_their_order_and_are_due_in_every_step(learner):
    stages = [[u.name for u in stage] for stage in learner.stages]
    assert stages == [["critic"], ["actor"], ["critic_target", "actor_target"]]
    assert learner.due(1) == learner.due(2) == set(learner.updates)


def test_presets_and_defaults_are_those_of_gilds_code():
    defaults = DDPG()
    assert (defaults.exploration, defaults.discount, defaults.tau, defaults.batch_size) == (0.1, 0.99, 0.005, 256)
    assert (defaults.hidden, defaults.actor_hidden, defaults.rewards) == ((256, 256), None, Rewards())
    assert not defaults.normalize
    for optimizer in (defaults.actor_optimizer, defaults.critic_optimizer):
        assert (optimizer.name, optimizer.hparams["lr"]) == ("adam", 3e-4)
    _, plain = component("metarl.algorithms", {"name": "ddpg"}, "test.yaml", "algorithm")
    _, gild = component("metarl.algorithms", {"name": "ddpg", "preset": "gild"}, "test.yaml", "algorithm")
    assert gild == plain


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"exploration": -0.1}, "exploration must be at least 0"),
        ({"actor_hidden": [16, 0]}, "actor_hidden must be at least 1"),
        ({"policy_every": 2}, "unknown key 'algorithm.policy_every'"),
    ],
    ids=str,
)
def test_a_bad_setting_is_refused(setting, message):
    with pytest.raises(ConfigError, match=message):
        component("metarl.algorithms", {"name": "ddpg", **setting}, "test.yaml", "algorithm")
