"""TD3 against a textbook implementation of its Algorithm 1: modules, torch.optim, targets moved in place."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from algorithms.td3 import TD3
from algorithms.td3_bc import TD3BC
from metarl import Rewards, adam
from metarl.component import component
from metarl.errors import ConfigError

HIGH = torch.tensor([1.0, 0.5], dtype=torch.float64)
BASE = {"hidden": (16, 16), "batch_size": 32}


def network(params, prefix):
    """torch.nn's layers, with the values of a group of the learner."""
    layers = []
    for i in range(len([k for k in params if k.startswith(prefix)]) // 2):
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
    """Fujimoto et al. 2018, Algorithm 1, with the constants of its Sec. 6.1."""

    def __init__(self, tree, gamma=0.99, tau=0.005, sigma=0.2, c=0.5, d=2, actor_lr=3e-4, critic_lr=3e-4):
        self.pi, self.pi_target = network(tree["actor"], "net."), network(tree["actor_target"], "net.")
        self.qs = [network(tree["critic"], f"q{i}.") for i in (1, 2)]
        self.q_targets = [network(tree["critic_target"], f"q{i}.") for i in (1, 2)]
        self.pi_optimizer = torch.optim.Adam(self.pi.parameters(), lr=actor_lr)
        self.q_optimizer = torch.optim.Adam([p for q in self.qs for p in q.parameters()], lr=critic_lr)
        self.gamma, self.tau, self.sigma, self.c, self.d = gamma, tau, sigma, c, d
        self.t = 0

    def act(self, net, s):
        return HIGH * torch.tanh(net(s))

    def smoothed(self, s, eps):
        """pi'(s) + clip(eps, -c, c), before it is brought inside the bounds."""
        return self.act(self.pi_target, s) + torch.clip(self.sigma * eps, -self.c, self.c) * HIGH

    def train(self, batch, eps):
        self.t += 1
        s, a, r, s2 = batch["obs"], batch["action"], batch["reward"][:, None], batch["next_obs"]
        with torch.no_grad():
            a2 = torch.clip(self.smoothed(s2, eps), -HIGH, HIGH)
            x2 = torch.cat([s2, a2], 1)
            y = r + self.gamma * (1 - batch["terminated"][:, None]) * torch.min(*[q(x2) for q in self.q_targets])
        x = torch.cat([s, a], 1)
        loss = sum(((y - q(x)) ** 2).mean() for q in self.qs)
        self.q_optimizer.zero_grad()
        loss.backward()
        self.q_optimizer.step()
        if self.t % self.d == 0:
            pi_loss = -self.qs[0](torch.cat([s, self.act(self.pi, s)], 1)).mean()
            self.pi_optimizer.zero_grad()
            pi_loss.backward()
            self.pi_optimizer.step()
            with torch.no_grad():
                for net, target in [(self.pi, self.pi_target), *zip(self.qs, self.q_targets, strict=True)]:
                    for p, q in zip(net.parameters(), target.parameters(), strict=True):
                        q.copy_(self.tau * p + (1 - self.tau) * q)
        return loss.detach()

    def tree(self):
        return {
            "actor": group(self.pi, "net."),
            "actor_target": group(self.pi_target, "net."),
            "critic": group(self.qs[0], "q1.") | group(self.qs[1], "q2."),
            "critic_target": group(self.q_targets[0], "q1.") | group(self.q_targets[1], "q2."),
        }

    def moments(self, key):
        def read(p):
            return {**self.pi_optimizer.state, **self.q_optimizer.state}[p][key]

        return {
            "actor": group(self.pi, "net.", read),
            "critic": group(self.qs[0], "q1.", read) | group(self.qs[1], "q2.", read),
        }


@pytest.fixture
def learner(assemble):
    return assemble(TD3(**BASE))


def at_its_bounds(state):
    """The policy near the bounds, so that smoothing noise crosses them."""
    bias = torch.tensor([1.5, -1.5], dtype=torch.float64)
    for name in ("actor", "actor_target"):
        state = state.with_params(name, {**state.tree[name], "net.layers.2.bias": bias})
    return state


@pytest.mark.parametrize("every", [1, 2, 3])
def test_twenty_steps_equal_the_textbook(assemble, draw, apart, every):
    learner = assemble(TD3(**BASE, policy_every=every))
    state = at_its_bounds(learner.init(torch.float64))
    textbook, clipped, bounded = Textbook(state.tree, d=every), 0, 0
    for step in range(1, 21):
        batches = draw(learner, step)
        eps = batches["noise"]["target_smoothing"]
        clipped += (eps.abs() > 2.5).sum()
        bounded += (textbook.smoothed(batches["train"]["next_obs"], eps).abs() > HIGH).sum()
        state, metrics = learner.step(state, batches, learner.due(step))
        loss = textbook.train(batches["train"], eps)
        assert abs(metrics["critic/loss"] - loss) < 1e-10 * loss
        assert ("actor/loss" in metrics) == (step % every == 0)
        assert apart(state.tree, textbook.tree()) < 1e-10
    assert clipped > 0 and bounded > 50
    for ours, theirs in (("mu", "exp_avg"), ("nu", "exp_avg_sq")):
        for name, moments in textbook.moments(theirs).items():
            assert apart(getattr(state.opt[name], ours), moments) < 1e-10
    assert state.opt["actor"].count == 20 // every and state.opt["critic"].count == 20


@pytest.mark.parametrize(
    ("settings", "hand"),
    [
        ({"discount": 0.9}, {"gamma": 0.9}),
        ({"tau": 0.1}, {"tau": 0.1}),
        ({"policy_noise": 0.6}, {"sigma": 0.6}),
        ({"noise_clip": 0.05}, {"c": 0.05}),
        ({"policy_every": 1}, {"d": 1}),
        ({"actor_optimizer": adam(1e-2)}, {"actor_lr": 1e-2}),
        ({"critic_optimizer": adam(1e-2)}, {"critic_lr": 1e-2}),
    ],
    ids=lambda value: "-".join(value),
)
def test_every_setting_means_what_the_textbook_means(assemble, draw, apart, settings, hand):
    learner = assemble(TD3(**BASE, **settings))
    state = learner.init(torch.float64)
    textbook, plain = Textbook(state.tree, **hand), Textbook(state.tree)
    for step in range(1, 5):
        batches = draw(learner, step)
        state, _ = learner.step(state, batches, learner.due(step))
        for book in (textbook, plain):
            book.train(batches["train"], batches["noise"]["target_smoothing"])
    assert apart(state.tree, textbook.tree()) < 1e-10
    assert apart(state.tree, plain.tree()) > 1e-6


def test_the_target_bootstraps_through_time_limits_and_stops_at_terminations(learner, draw):
    """A row that a time limit ended has the target of one that went on; a terminated one has its reward alone."""
    state, batches = learner.init(torch.float64), draw(learner)
    update, batch = learner.updates["critic"], batches["train"]

    def loss(terminated, truncated):
        n = len(batch["reward"])
        flags = {
            "terminated": torch.full((n,), terminated, dtype=torch.float64),
            "truncated": torch.full((n,), truncated, dtype=torch.float64),
        }
        return update.evaluate(state.tree, {**batches, "train": batch | flags})[0]

    def by_hand(future):
        x = torch.cat([batch["obs"], batch["action"]], 1)
        q = [network(state.tree["critic"], f"q{i}.")(x)[:, 0] for i in (1, 2)]
        return sum(((value - batch["reward"] - future) ** 2).mean() for value in q)

    book = Textbook(state.tree)
    a2 = torch.clip(book.smoothed(batch["next_obs"], batches["noise"]["target_smoothing"]), -HIGH, HIGH)
    x2 = torch.cat([batch["next_obs"], a2], 1)
    future = 0.99 * torch.min(*[q(x2) for q in book.q_targets])[:, 0]
    assert abs(by_hand(future) - by_hand(0)) > 1e-3
    for truncated in (0.0, 1.0):
        assert abs(loss(0.0, truncated) - by_hand(future)) < 1e-12
        assert abs(loss(1.0, truncated) - by_hand(0)) < 1e-12


def test_only_the_first_critic_leads_the_policy(learner, draw, apart):
    state, batches = learner.init(torch.float64), draw(learner)
    update = learner.updates["actor"]
    grads = update.gradient(update, state, batches).grads
    for critic, same in (("q2.", True), ("q1.", False)):
        other = {k: p.flip(0) if k.startswith(critic) else p for k, p in state.tree["critic"].items()}
        moved = update.gradient(update, state.with_params("critic", other), batches).grads
        assert (apart(moved, grads) == 0) == same


def test_policy_terms_are_per_sample_and_no_degree_weighs_them(learner, draw):
    state, batches = learner.init(torch.float64), draw(learner)
    batch, policy = batches["train"], learner.policy
    book = Textbook(state.tree)
    with torch.no_grad():
        action = book.act(book.pi, batch["obs"])
        q = book.qs[0](torch.cat([batch["obs"], action], 1))[:, 0]
    assert (policy.updates, policy.forms, policy.noise, policy.signal) == (("actor",), (), (), "scaled")
    terms = policy.terms(state.tree, batch, {})
    assert terms.improvement.shape == terms.signal.shape == (32,) and terms.constraint is terms.rest is None
    assert torch.allclose(terms.improvement, q, rtol=1e-12) and torch.equal(terms.signal, terms.improvement)
    assert set(terms.metrics) == {"q"} and torch.allclose(terms.metrics["q"], q.mean(), rtol=1e-12)
    loss = learner.updates["actor"].evaluate(state.tree, batches)[0]
    for degree in (1.0, None):
        assert torch.equal(policy.combine(terms, degree), loss)
    for degree in (0.5, torch.linspace(0, 2, 32, dtype=torch.float64)):
        with pytest.raises(ConfigError, match="td3 ties its policy to no data"):
            policy.combine(terms, degree)
    assert torch.allclose(loss, -q.mean(), rtol=1e-12)
    clone = ((action - batch["action"]) ** 2).mean()
    assert torch.allclose(policy.imitation(state.tree, batch, {}), clone, rtol=1e-12)
    assert torch.allclose(policy.action(state.tree, batch["obs"], {}), action, rtol=1e-12)
    assert torch.allclose(policy.q(state.tree, batch["obs"], action), q, rtol=1e-12)
    hidden = book.pi[:4](batch["obs"])
    assert torch.allclose(policy.features(state.tree, batch["obs"]), hidden, rtol=1e-12)
    with pytest.raises(ConfigError, match="td3 learns no state-value function"):
        policy.v(state.tree, batch["obs"])


@pytest.mark.parametrize("algorithm", [TD3, TD3BC])
def test_exploration_adds_noise_in_units_of_the_largest_action(assemble, draw, algorithm):
    for size in (0.1, 0.4):
        learner = assemble(algorithm(**BASE, exploration=size))
        state, obs = learner.init(torch.float64), draw(learner)["train"]["obs"]
        mean = HIGH * torch.tanh(network(state.tree["actor"], "net.")(obs))
        assert (mean.abs() < 0.6 * HIGH).all()
        eps = torch.linspace(-0.9, 0.9, 64, dtype=torch.float64).reshape(32, 2)  # reaches no bound
        action, carry = learner.act(state.tree, obs, None, eps, False)
        assert torch.allclose(action, mean + size * HIGH * eps, rtol=1e-12) and carry is None
        for noise, deterministic in ((None, True), (eps, True), (None, False)):
            assert torch.allclose(learner.act(state.tree, obs, None, noise, deterministic)[0], mean, rtol=1e-12)
        action, _ = learner.act(state.tree, obs, None, 100 * torch.sign(eps), False)
        assert torch.equal(action, HIGH * torch.sign(eps))
    default = assemble(algorithm(**BASE))
    same, _ = default.act(state.tree, obs, None, eps, False)
    assert torch.allclose(same, mean + 0.1 * HIGH * eps, rtol=1e-12)


def test_sizes_and_the_remaining_settings_reach_the_learner(spec):
    rewards = Rewards(scale=2.0, shift=-1.0)
    for actor_hidden, widths in ((None, [5, 7]), ((9,), [9]), ((), [])):
        algorithm = TD3(hidden=(5, 7), actor_hidden=actor_hidden, batch_size=11, normalize=True, rewards=rewards)
        learner = algorithm.build(spec, torch.Generator().manual_seed(0))
        shapes = {
            name: [tuple(p.shape) for k, p in learner.modules[name].named_parameters() if k.endswith("weight")]
            for name in ("actor", "critic")
        }
        sizes = [3, *widths, 2]
        assert shapes["actor"] == [*pairwise(sizes)]
        assert shapes["critic"] == 2 * [(5, 5), (5, 7), (7, 1)]
    assert {k: (r.source, r.size) for k, r in learner.roles.items()} == {"train": ("train", 11)}
    assert {k: n.whole_shape(learner.roles) for k, n in learner.noise.items()} == {"target_smoothing": (11, 2)}
    assert {n.distribution for n in learner.noise.values()} == {"normal"}
    assert (learner.normalize, learner.rewards, learner.span) == (True, rewards, None)
    start = learner.ready().init().tree
    for name in ("actor", "critic"):
        assert all(torch.equal(p, start[f"{name}_target"][k]) for k, p in start[name].items())


def test_updates_stand_in_their_order(learner):
    stages = [[u.name for u in stage] for stage in learner.stages]
    assert stages == [["critic"], ["actor"], ["critic_target", "actor_target"]]


def test_presets_and_defaults_are_those_of_the_authors_code():
    defaults = TD3()
    assert (defaults.exploration, defaults.policy_noise, defaults.noise_clip) == (0.1, 0.2, 0.5)
    assert defaults.policy_every == 2
    assert (defaults.discount, defaults.tau, defaults.batch_size, defaults.normalize) == (0.99, 0.005, 256, False)
    assert (defaults.hidden, defaults.actor_hidden, defaults.rewards) == ((256, 256), None, Rewards())
    for optimizer in (defaults.actor_optimizer, defaults.critic_optimizer):
        assert (optimizer.name, optimizer.hparams["lr"]) == ("adam", 3e-4)
    _, plain = component("metarl.algorithms", {"name": "td3"}, "test.yaml", "algorithm")
    _, gild = component("metarl.algorithms", {"name": "td3", "preset": "gild"}, "test.yaml", "algorithm")
    assert gild == plain


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"exploration": -0.1}, "exploration must be at least 0"),
        ({"policy_every": 0}, "policy_every must be at least 1"),
        ({"actor_hidden": [16, 0]}, "actor_hidden must be at least 1"),
        ({"alpha": 2.5}, "unknown key 'algorithm.alpha'"),
    ],
    ids=str,
)
def test_a_bad_setting_is_refused(setting, message):
    with pytest.raises(ConfigError, match=message):
        component("metarl.algorithms", {"name": "td3", **setting}, "test.yaml", "algorithm")
