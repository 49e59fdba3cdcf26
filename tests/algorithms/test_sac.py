"""SAC against a textbook implementation: modules, torch.distributions, torch.optim, targets moved in place."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from algorithms.sac import SAC
from metarl import Rewards, adam, sgd
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
    """Haarnoja et al. 2018 (arXiv:1812.05905), Algorithm 1; log(alpha) in the place of Eq. 18's factor alpha."""

    def __init__(
        self,
        tree,
        alpha=1.0,
        learned=True,
        entropy=-2.0,
        gamma=0.99,
        tau=0.005,
        pi_lr=3e-4,
        q_lr=3e-4,
        pi_every=1,
        target_every=1,
    ):
        self.pi = network(tree["actor"], "net.")
        self.qs = [network(tree["critic"], f"q{i}.") for i in (1, 2)]
        self.q_targets = [network(tree["critic_target"], f"q{i}.") for i in (1, 2)]
        self.log_alpha = torch.tensor(math.log(alpha), dtype=torch.float64, requires_grad=True)
        self.pi_optimizer = torch.optim.Adam(self.pi.parameters(), lr=pi_lr)
        self.q_optimizer = torch.optim.Adam([p for q in self.qs for p in q.parameters()], lr=q_lr)
        self.alpha_optimizer = torch.optim.Adam([self.log_alpha], lr=pi_lr)
        self.learned, self.entropy, self.gamma, self.tau = learned, entropy, gamma, tau
        self.pi_every, self.target_every, self.t = pi_every, target_every, 0

    @property
    def alpha(self):
        return self.log_alpha.exp().detach()

    def gaussian(self, s):
        """Of the action in its units of +-1, before tanh."""
        mean, log_std = self.pi(s).chunk(2, 1)
        return Normal(mean, torch.clip(log_std, -20, 2).exp())

    def density(self, s):
        return Independent(TransformedDistribution(self.gaussian(s), TanhTransform(cache_size=1)), 1)

    def sample(self, s, eps):
        """An action by given noise, and the log-density of its part in +-1, [n, 1]."""
        density, base = self.density(s), self.gaussian(s)
        unit = density.base_dist.transforms[0](base.loc + base.scale * eps)
        return unit * HIGH, density.log_prob(unit)[:, None]

    def least(self, nets, s, a):
        x = torch.cat([s, a], 1)
        return torch.min(nets[0](x), nets[1](x))

    def future(self, batch, eps):
        """gamma (min Q'(s', a') - alpha log pi(a'|s'))."""
        with torch.no_grad():
            a2, log_pi = self.sample(batch["next_obs"], eps)
            return self.gamma * (self.least(self.q_targets, batch["next_obs"], a2) - self.alpha * log_pi)

    def q_loss(self, batch, future):
        y = batch["reward"][:, None] + (1 - batch["terminated"][:, None]) * future
        x = torch.cat([batch["obs"], batch["action"]], 1)
        return sum(((q(x) - y) ** 2).mean() for q in self.qs)

    def train(self, batch, noise):
        self.t += 1
        loss = self.q_loss(batch, self.future(batch, noise["next_policy"]))
        self.q_optimizer.zero_grad()
        loss.backward()
        self.q_optimizer.step()
        if self.t % self.pi_every == 0:
            a, log_pi = self.sample(batch["obs"], noise["policy"])
            pi_loss = (self.alpha * log_pi - self.least(self.qs, batch["obs"], a)).mean()
            self.pi_optimizer.zero_grad()
            pi_loss.backward()
            self.pi_optimizer.step()
            if self.learned:
                alpha_loss = -(self.log_alpha * (log_pi.detach() + self.entropy)).mean()
                self.alpha_optimizer.zero_grad()
                alpha_loss.backward()
                self.alpha_optimizer.step()
        if self.t % self.target_every == 0:
            with torch.no_grad():
                for net, target in zip(self.qs, self.q_targets, strict=True):
                    for p, q in zip(net.parameters(), target.parameters(), strict=True):
                        q.copy_(self.tau * p + (1 - self.tau) * q)
        return loss.detach()

    def tree(self):
        tree = {
            "actor": group(self.pi, "net."),
            "critic": group(self.qs[0], "q1.") | group(self.qs[1], "q2."),
            "critic_target": group(self.q_targets[0], "q1.") | group(self.q_targets[1], "q2."),
        }
        return tree | ({"temperature": {"log": self.log_alpha}} if self.learned else {})

    def moments(self, key):
        def read(p):
            return {**self.pi_optimizer.state, **self.q_optimizer.state, **self.alpha_optimizer.state}[p][key]

        found = {
            "actor": group(self.pi, "net.", read),
            "critic": group(self.qs[0], "q1.", read) | group(self.qs[1], "q2.", read),
        }
        return found | ({"temperature": {"log": read(self.log_alpha)}} if self.learned else {})


@pytest.fixture
def learner(assemble):
    return assemble(SAC(**BASE))


def edgy(state):
    """One dimension's deviation crosses its upper bound, and either critic is the lower one in some states."""
    bias = torch.tensor([0.7, -0.7, 1.9, -1.0], dtype=torch.float64)
    state = state.with_params("actor", {**state.tree["actor"], "net.layers.2.bias": bias})
    critic = {k: 20 * p if k.endswith("layers.2.weight") else p for k, p in state.tree["critic"].items()}
    return state.with_params("critic", critic).with_params("critic_target", critic)


@pytest.mark.parametrize(
    ("settings", "hand"),
    [
        ({}, {}),
        ({"temperature": 0.3}, {"alpha": 0.3}),
        ({"target_entropy": 0.5}, {"entropy": 0.5}),
        ({"auto_temperature": False}, {"learned": False, "alpha": 0.2}),
        ({"auto_temperature": False, "temperature": 0.5}, {"learned": False, "alpha": 0.5}),
        ({"policy_every": 2}, {"pi_every": 2}),
        ({"target_every": 2}, {"target_every": 2}),
        ({"policy_every": 3, "auto_temperature": False}, {"pi_every": 3, "learned": False, "alpha": 0.2}),
    ],
    ids=lambda value: "-".join(value) or "defaults",
)
def test_twenty_steps_equal_the_textbook(assemble, draw, apart, settings, hand):
    learner = assemble(SAC(**BASE, **settings))
    state = edgy(learner.init(torch.float64))
    textbook, bounded = Textbook(state.tree, **hand), 0
    start = textbook.alpha
    for step in range(1, 21):
        batches = draw(learner, step)
        with torch.no_grad():
            bounded += 0 < (textbook.pi(batches["train"]["obs"])[:, 2:] > 2).sum() < 64
        state, metrics = learner.step(state, batches, learner.due(step))
        loss = textbook.train(batches["train"], batches["noise"])
        assert abs(metrics["critic/loss"] - loss) < 1e-10 * loss
        assert ("actor/loss" in metrics) == (step % hand.get("pi_every", 1) == 0)
        assert apart(state.tree, textbook.tree()) < 1e-10
    assert bounded > 10
    for ours, theirs in (("mu", "exp_avg"), ("nu", "exp_avg_sq")):
        for name, moments in textbook.moments(theirs).items():
            assert apart(getattr(state.opt[name], ours), moments) < 1e-10
    assert state.opt["actor"].count == 20 // hand.get("pi_every", 1) and state.opt["critic"].count == 20
    assert (abs(textbook.alpha - start) > 1e-4) == hand.get("learned", True)


@pytest.mark.parametrize(
    ("settings", "hand"),
    [
        ({"discount": 0.9}, {"gamma": 0.9}),
        ({"tau": 0.1}, {"tau": 0.1}),
        ({"target_entropy": 0.5}, {"entropy": 0.5}),
        ({"temperature": 0.5}, {"alpha": 0.5}),
        ({"policy_every": 2}, {"pi_every": 2}),
        ({"target_every": 2}, {"target_every": 2}),
        ({"actor_optimizer": adam(1e-2)}, {"pi_lr": 1e-2}),
        ({"critic_optimizer": adam(1e-2)}, {"q_lr": 1e-2}),
    ],
    ids=lambda value: "-".join(value),
)
def test_every_setting_makes_its_own_difference(assemble, draw, apart, settings, hand):
    learner = assemble(SAC(**BASE, **settings))
    state = learner.init(torch.float64)
    textbook, plain = Textbook(state.tree, **hand), Textbook(state.tree)
    for step in range(1, 6):
        batches = draw(learner, step)
        state, _ = learner.step(state, batches, learner.due(step))
        for book in (textbook, plain):
            book.train(batches["train"], batches["noise"])
    assert apart(state.tree, textbook.tree()) < 1e-10
    assert apart(state.tree, plain.tree()) > 1e-6


def test_a_temperature_starts_at_one_where_it_is_learned_and_is_else_a_fifth(assemble):
    for settings, start in (({}, 1.0), ({"temperature": 0.3}, 0.3)):
        learner = assemble(SAC(**BASE, **settings))
        assert learner.policy.fixed_temperature is None
        assert math.isclose(learner.init(torch.float64).tree["temperature"]["log"].exp(), start, rel_tol=1e-12)
    for settings, fixed in (({}, 0.2), ({"temperature": 1.0}, 1.0)):
        learner = assemble(SAC(**BASE, auto_temperature=False, **settings))
        assert learner.policy.fixed_temperature == fixed and "temperature" not in learner.init().tree


def test_a_learned_temperature_climbs_below_its_target_and_falls_above(assemble, draw):
    """The density of the new samples tells which: entropy under a target of 5, and over one of -50."""
    for target, sign in ((5.0, 1), (-50.0, -1)):
        learner = assemble(SAC(**BASE, target_entropy=target, actor_optimizer=sgd(1e-3)))
        state, batches = learner.init(torch.float64), draw(learner)
        moved, _ = learner.step(state, batches, learner.due(1))
        change = moved.tree["temperature"]["log"] - state.tree["temperature"]["log"]
        entropy = learner.updates["actor"].evaluate(state.tree, batches)[1]["entropy"]
        assert math.isclose(change, 1e-3 * (target - entropy), rel_tol=1e-9) and change * sign > 0


def test_the_target_bootstraps_through_time_limits_and_stops_at_terminations(learner, draw):
    """A row that a time limit ended has the target of one that went on; a terminated one has its reward alone."""
    state, batches = learner.init(torch.float64), draw(learner)
    update, batch = learner.updates["critic"], batches["train"]
    book, ones = Textbook(state.tree), torch.ones_like(batch["reward"])
    found = {}
    for terminated in (0, 1):
        flags = {"terminated": terminated * ones}
        expected = book.q_loss(batch | flags, book.future(batch, batches["noise"]["next_policy"]))
        for truncated in (0, 1):
            rows = batch | flags | {"truncated": truncated * ones}
            found[terminated] = update.evaluate(state.tree, {**batches, "train": rows})[0]
            assert abs(found[terminated] - expected) < 1e-12
    assert abs(found[0] - found[1]) > 1e-3


def test_the_critic_gradient_sees_its_target_as_a_constant(learner, draw, apart):
    """Also where the target and the critic are one network."""
    state, batches = learner.init(torch.float64), draw(learner)
    update, book = learner.updates["critic"], Textbook(state.tree)
    book.q_targets = book.qs
    book.q_loss(batches["train"], book.future(batches["train"], batches["noise"]["next_policy"])).backward()
    expected = group(book.qs[0], "q1.", lambda p: p.grad) | group(book.qs[1], "q2.", lambda p: p.grad)
    grads = torch.func.grad(
        lambda p: update.evaluate({**state.tree, "critic": p, "critic_target": p}, batches)[0],
    )(state.tree["critic"])
    assert apart(grads, expected) < 1e-10


@pytest.mark.parametrize("learned", [True, False], ids=["learned", "fixed"])
def test_policy_terms_are_per_sample_and_no_degree_weighs_them(assemble, draw, learned):
    learner = assemble(SAC(**BASE, auto_temperature=learned, temperature=0.7))
    state, batches = edgy(learner.init(torch.float64)), draw(learner)
    batch, policy, noise = batches["train"], learner.policy, {"policy": batches["noise"]["policy"]}
    book = Textbook(state.tree)
    with torch.no_grad():
        action, log_pi = book.sample(batch["obs"], noise["policy"])
        q = book.least(book.qs, batch["obs"], action)[:, 0]
        assert any(not torch.allclose(q, one(torch.cat([batch["obs"], action], 1))[:, 0]) for one in book.qs)
    assert (policy.updates, policy.forms, policy.noise, policy.signal) == (("actor",), ("gild",), ("policy",), "scaled")
    terms = policy.terms(state.tree, batch, noise)
    assert terms.improvement.shape == terms.rest.shape == terms.signal.shape == (32,) and terms.constraint is None
    assert torch.allclose(terms.improvement, q, rtol=1e-12) and torch.equal(terms.signal, terms.improvement)
    assert torch.allclose(terms.rest, 0.7 * log_pi[:, 0], rtol=1e-12)
    assert set(terms.metrics) == {"q", "entropy"}
    assert torch.allclose(terms.metrics["q"], q.mean(), rtol=1e-12)
    assert torch.allclose(terms.metrics["entropy"], -log_pi.mean(), rtol=1e-12)
    loss = learner.updates["actor"].evaluate(state.tree, batches)[0]
    for degree in (1.0, None):
        assert torch.equal(policy.combine(terms, degree), loss)
    for degree in (0.5, torch.linspace(0, 2, 32, dtype=torch.float64)):
        with pytest.raises(ConfigError, match="sac ties its policy to no data"):
            policy.combine(terms, degree)
    assert torch.allclose(loss, (0.7 * log_pi[:, 0] - q).mean(), rtol=1e-12)
    assert torch.allclose(policy.action(state.tree, batch["obs"], noise), action, rtol=1e-12)
    assert torch.allclose(policy.q(state.tree, batch["obs"], action), q, rtol=1e-12)
    assert torch.allclose(policy.features(state.tree, batch["obs"]), book.pi[:4](batch["obs"]), rtol=1e-12)
    with pytest.raises(ConfigError, match="sac learns no state-value function"):
        policy.v(state.tree, batch["obs"])


def test_imitation_is_the_density_of_the_data_or_gilds(learner, draw):
    state, batch = edgy(learner.init(torch.float64)), draw(learner)["train"]
    book, unit = Textbook(state.tree), batch["action"] / HIGH
    squashed = -book.density(batch["obs"]).log_prob(unit).mean()
    assert torch.allclose(learner.policy.imitation(state.tree, batch, {}), squashed, rtol=1e-9)
    plain = -book.gaussian(batch["obs"]).log_prob(unit).mean()  # over rows and dimensions
    assert torch.allclose(learner.policy.imitation(state.tree, batch, {}, ("gild",)), plain, rtol=1e-12)
    assert abs(squashed - plain) > 0.1


def test_sampled_densities_are_those_of_torch_distributions(learner, draw):
    """Of one action a state and of several, where the deviation is within its bounds, at either, and beyond."""
    state, obs = learner.init(torch.float64), draw(learner)["train"]["obs"]
    for log_std, tolerance in ((-1.0, 1e-12), (2.5, 1e-12), (-21.0, 1e-6)):
        bias = torch.tensor([0.3, -0.3, log_std, log_std], dtype=torch.float64)
        state = state.with_params("actor", {**state.tree["actor"], "net.layers.2.bias": bias})
        book, generator = Textbook(state.tree), torch.Generator().manual_seed(1)
        eps = torch.randn(32, 3, 2, generator=generator, dtype=torch.float64)
        actions, log_probs = learner.policy.sample(state.tree, obs, eps)
        assert actions.shape == (32, 3, 2) and log_probs.shape == (32, 3)
        for i in range(3):
            expected, log_pi = book.sample(obs, eps[:, i])
            single = learner.policy.sample(state.tree, obs, eps[:, i])
            for action, log_prob in ((actions[:, i], log_probs[:, i]), single):
                assert torch.allclose(action, expected, rtol=1e-12)
                assert torch.allclose(log_prob, log_pi[:, 0], rtol=tolerance, atol=tolerance)


def test_act_is_the_mode_or_a_sample_and_carries_nothing(learner, draw):
    state, batches = edgy(learner.init(torch.float64)), draw(learner)
    obs, eps = batches["train"]["obs"], batches["noise"]["policy"]
    book = Textbook(state.tree)
    mode, (sample, _) = torch.tanh(book.pi(obs)[:, :2]) * HIGH, book.sample(obs, eps)
    assert (mode - sample).abs().mean() > 0.1 and (sample.abs() <= HIGH).all()
    for noise, deterministic, expected in (
        (None, True, mode),
        (eps, True, mode),
        (None, False, mode),
        (eps, False, sample),
    ):
        action, carry = learner.act(state.tree, obs, None, noise, deterministic)
        assert torch.allclose(action, expected, rtol=1e-12) and carry is None


def test_sizes_and_the_remaining_settings_reach_the_learner(spec):
    rewards = Rewards(scale=2.0, shift=-1.0)
    for actor_hidden, widths in ((None, [5, 7]), ((9,), [9]), ((), [])):
        algorithm = SAC(hidden=(5, 7), actor_hidden=actor_hidden, batch_size=11, normalize=True, rewards=rewards)
        learner = algorithm.build(spec, torch.Generator().manual_seed(0))
        shapes = {
            name: [tuple(p.shape) for k, p in learner.modules[name].named_parameters() if k.endswith("weight")]
            for name in ("actor", "critic")
        }
        assert shapes["actor"] == [*pairwise([3, *widths, 4])]
        assert shapes["critic"] == 2 * [(5, 5), (5, 7), (7, 1)]
    assert {k: (r.source, r.size) for k, r in learner.roles.items()} == {"train": ("train", 11)}
    shapes = {k: n.whole_shape(learner.roles) for k, n in learner.noise.items()}
    assert shapes == {"policy": (11, 2), "next_policy": (11, 2)}
    assert {n.distribution for n in learner.noise.values()} == {"normal"}
    assert (learner.normalize, learner.rewards, learner.span) == (True, rewards, None)
    start = learner.ready().init().tree
    assert all(torch.equal(p, start["critic_target"][k]) for k, p in start["critic"].items())


@pytest.mark.parametrize("learned", [True, False], ids=["learned", "fixed"])
def test_updates_stand_in_their_order(assemble, learned):
    learner = assemble(SAC(**BASE, auto_temperature=learned, policy_every=2, target_every=3))
    improvement = ["actor", "temperature"] if learned else ["actor"]
    assert [[u.name for u in stage] for stage in learner.stages] == [["critic"], improvement, ["critic_target"]]
    assert learner.due(1) == {"critic"} and learner.due(2) == {"critic", *improvement}
    assert learner.due(3) == {"critic", "critic_target"} and learner.due(6) == set(learner.updates)


def test_presets_and_defaults_are_those_of_table_1():
    defaults = SAC()
    assert (defaults.auto_temperature, defaults.temperature, defaults.target_entropy) == (True, None, None)
    assert (defaults.discount, defaults.tau, defaults.batch_size, defaults.normalize) == (0.99, 0.005, 256, False)
    assert (defaults.policy_every, defaults.target_every, defaults.hidden) == (1, 1, (256, 256))
    assert (defaults.actor_hidden, defaults.rewards) == (None, Rewards())
    for optimizer in (defaults.actor_optimizer, defaults.critic_optimizer):
        assert (optimizer.name, optimizer.hparams["lr"]) == ("adam", 3e-4)
    _, plain = component("metarl.algorithms", {"name": "sac"}, "test.yaml", "algorithm")
    _, gild = component("metarl.algorithms", {"name": "sac", "preset": "gild"}, "test.yaml", "algorithm")
    assert gild == plain | {"auto_temperature": False, "target_every": 2}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"temperature": 0.0}, "temperature must be positive and finite, not 0.0"),
        ({"temperature": float("inf")}, "temperature must be positive and finite, not inf"),
        ({"policy_every": 0}, "policy_every must be at least 1"),
        ({"target_every": 0}, "target_every must be at least 1"),
        ({"actor_hidden": [16, 0]}, "actor_hidden must be at least 1"),
        ({"temprature": 0.1}, "Did you mean 'temperature'"),
    ],
    ids=str,
)
def test_a_bad_setting_is_refused(setting, message):
    with pytest.raises(ConfigError, match=message):
        component("metarl.algorithms", {"name": "sac", **setting}, "test.yaml", "algorithm")
