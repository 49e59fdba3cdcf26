"""TD3+BC against a textbook implementation: modules, torch.optim, targets moved in place."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from algorithms.td3_bc import TD3BC
from metarl import Spec, adam
from metarl.errors import ConfigError

HIGH = torch.tensor([1.0, 0.5], dtype=torch.float64)


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
        x = torch.relu(self.layers[0](x))
        return self.layers[2](torch.relu(self.layers[1](x)))

    def group(self, prefix, read=lambda p: p):
        """Values (or what `read` finds for them) under the learner's names, weights as [in, out]."""
        return {
            f"{prefix}layers.{i}.{kind}": (lambda t, k: t.T if k == "weight" else t)(read(getattr(layer, kind)), kind)
            for i, layer in enumerate(self.layers)
            for kind in ("weight", "bias")
        }


class Textbook:
    """TD3+BC as its paper and a textbook have it."""

    def __init__(self, tree, alpha=2.5, gamma=0.99, tau=0.005, sigma=0.2, clip=0.5, lr=3e-4):
        self.actor, self.actor_target = Net(tree["actor"], "net."), Net(tree["actor"], "net.")
        self.critics = [Net(tree["critic"], f"q{i}.") for i in (1, 2)]
        self.targets = [Net(tree["critic"], f"q{i}.") for i in (1, 2)]
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr)
        self.critic_optimizer = torch.optim.Adam([p for c in self.critics for p in c.parameters()], lr)
        self.alpha, self.gamma, self.tau, self.sigma, self.clip = alpha, gamma, tau, sigma, clip
        self.total = 0

    def train(self, batch, eps):
        self.total += 1
        with torch.no_grad():
            noise = torch.maximum(torch.minimum(eps * self.sigma * HIGH, self.clip * HIGH), -self.clip * HIGH)
            next_action = torch.tanh(self.actor_target(batch["next_obs"])) * HIGH + noise
            next_action = torch.maximum(torch.minimum(next_action, HIGH), -HIGH)
            x = torch.cat([batch["next_obs"], next_action], 1)
            q = torch.min(self.targets[0](x), self.targets[1](x)).squeeze(1)
            y = batch["reward"] + (1 - batch["terminated"]) * self.gamma * q
        x = torch.cat([batch["obs"], batch["action"]], 1)
        loss = sum(nn.functional.mse_loss(critic(x).squeeze(1), y) for critic in self.critics)
        self.critic_optimizer.zero_grad()
        loss.backward()
        self.critic_optimizer.step()
        if self.total % 2 == 0:
            action = torch.tanh(self.actor(batch["obs"])) * HIGH
            q = self.critics[0](torch.cat([batch["obs"], action], 1))
            lam = self.alpha / q.abs().mean().detach()
            actor_loss = -lam * q.mean() + nn.functional.mse_loss(action, batch["action"])
            self.actor_optimizer.zero_grad()
            actor_loss.backward()
            self.actor_optimizer.step()
            for net, target in [(self.actor, self.actor_target), *zip(self.critics, self.targets, strict=True)]:
                for p, t in zip(net.parameters(), target.parameters(), strict=True):
                    t.data.copy_(self.tau * p.data + (1 - self.tau) * t.data)
        return loss.detach()

    def tree(self):
        twin = [c.group(f"q{i}.") for i, c in enumerate(self.critics, 1)]
        target = [c.group(f"q{i}.") for i, c in enumerate(self.targets, 1)]
        return {
            "actor": self.actor.group("net."),
            "actor_target": self.actor_target.group("net."),
            "critic": twin[0] | twin[1],
            "critic_target": target[0] | target[1],
        }

    def moments(self, key):
        actor = self.actor.group("net.", lambda p: self.actor_optimizer.state[p][key])
        twin = [c.group(f"q{i}.", lambda p: self.critic_optimizer.state[p][key]) for i, c in enumerate(self.critics, 1)]
        return {"actor": actor, "critic": twin[0] | twin[1]}


@pytest.fixture
def learner(assemble):
    return assemble(TD3BC(hidden=(16, 16), batch_size=32))


def test_twenty_steps_equal_the_textbook(learner, draw, apart):
    state = learner.init(torch.float64)
    bias = torch.tensor([1.5, -1.5], dtype=torch.float64)  # near the bounds, so that noise crosses them
    for group in ("actor", "actor_target"):
        state = state.with_params(group, {**state.tree[group], "net.layers.2.bias": bias})
    textbook, clipped, bounded = Textbook(state.tree), 0, 0
    for step in range(1, 21):
        batches = draw(learner, step)
        eps = batches["noise"]["target_smoothing"]
        with torch.no_grad():
            mean = torch.tanh(textbook.actor_target(batches["train"]["next_obs"])) * HIGH
        clipped += (eps.abs() > 2.5).sum()
        bounded += ((mean + 0.2 * HIGH * eps).abs() > HIGH).sum()
        state, metrics = learner.step(state, batches, learner.due(step))
        loss = textbook.train(batches["train"], eps)
        assert abs(metrics["critic/loss"] - loss) < 1e-10 * loss
        assert ("actor/loss" in metrics) == (step % 2 == 0)
        assert apart(state.tree, textbook.tree()) < 1e-10
    assert clipped > 0 and bounded > 50
    for ours, theirs in (("mu", "exp_avg"), ("nu", "exp_avg_sq")):
        for group, moments in textbook.moments(theirs).items():
            assert apart(getattr(state.opt[group], ours), moments) < 1e-10
    assert state.opt["actor"].count == 10 and state.opt["critic"].count == 20
    assert {float(s["step"]) for s in textbook.actor_optimizer.state.values()} == {10.0}
    assert {float(s["step"]) for s in textbook.critic_optimizer.state.values()} == {20.0}


@pytest.mark.parametrize(
    ("setting", "value", "hand"),
    [
        ("alpha", 0.1, "alpha"),
        ("discount", 0.9, "gamma"),
        ("tau", 0.1, "tau"),
        ("policy_noise", 0.6, "sigma"),
        ("noise_clip", 0.05, "clip"),
    ],
)
def test_every_setting_means_what_the_textbook_means(assemble, draw, apart, setting, value, hand):
    learner = assemble(TD3BC(hidden=(16, 16), batch_size=32, **{setting: value}))
    state = learner.init(torch.float64)
    textbook, plain = Textbook(state.tree, **{hand: value}), Textbook(state.tree)
    for step in range(1, 5):
        batches = draw(learner, step)
        state, _ = learner.step(state, batches, learner.due(step))
        for book in (textbook, plain):
            book.train(batches["train"], batches["noise"]["target_smoothing"])
    assert apart(state.tree, textbook.tree()) < 1e-10
    assert apart(state.tree, plain.tree()) > 1e-6


def test_the_target_bootstraps_through_time_limits_and_stops_at_terminations(learner, draw, apart):
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


def test_the_policy_gradient_sees_lambda_as_a_constant(learner, draw, apart):
    state, batches = learner.init(torch.float64), draw(learner)
    update, batch = learner.updates["actor"], batches["train"]
    grads = update.gradient(update, state, batches).grads
    book = Textbook(state.tree)

    def by_hand(constant):
        action = torch.tanh(book.actor(batch["obs"])) * HIGH
        q = book.critics[0](torch.cat([batch["obs"], action], 1))
        lam = 2.5 / q.abs().mean()
        loss = -(lam.detach() if constant else lam) * q.mean() + (action - batch["action"]).square().mean()
        values = torch.autograd.grad(loss, list(book.actor.parameters()))
        by_id = dict(zip(map(id, book.actor.parameters()), values, strict=True))
        return book.actor.group("net.", lambda p: by_id[id(p)])

    assert apart(grads, by_hand(True)) < 1e-10
    assert apart(grads, by_hand(False)) > 1e-3


def test_policy_terms_are_per_sample_and_add_up(learner, draw, apart):
    state, batches = learner.init(torch.float64), draw(learner)
    batch, policy, n = batches["train"], learner.policy, 32
    book = Textbook(state.tree)
    with torch.no_grad():
        action = torch.tanh(book.actor(batch["obs"])) * HIGH
        q = book.critics[0](torch.cat([batch["obs"], action], 1)).squeeze(1)
        squared = (action - batch["action"]).square()
    lam = 2.5 / q.abs().mean()
    for form, scale, constraint in (
        ((), lam, squared.mean(1)),
        (("literal",), 1.0, squared.mean(1)),
        (("sum",), lam, squared.sum(1)),
    ):
        terms = policy.terms(state.tree, batch, batches["noise"], form)
        assert terms.improvement.shape == terms.constraint.shape == terms.signal.shape == (n,)
        assert torch.allclose(terms.improvement, scale * q, rtol=1e-12)
        assert torch.allclose(terms.constraint, constraint, rtol=1e-12)
        assert torch.equal(terms.signal, terms.constraint) and terms.rest is None
        b = torch.linspace(0, 2, n, dtype=torch.float64)
        assert torch.allclose(policy.combine(terms, b), -(scale * q).mean() + (b * constraint).mean(), rtol=1e-12)
        assert torch.allclose(policy.combine(terms, None), -(scale * q).mean(), rtol=1e-12)
        clone = policy.imitation(state.tree, batch, batches["noise"], form)
        assert torch.allclose(clone, constraint.mean(), rtol=1e-12)
    assert torch.allclose(policy.action(state.tree, batch["obs"], {}), action, rtol=1e-12)
    assert torch.allclose(policy.q(state.tree, batch["obs"], action), q, rtol=1e-12)
    features = policy.features(state.tree, batch["obs"])
    hidden = torch.relu(book.actor.layers[1](torch.relu(book.actor.layers[0](batch["obs"]))))
    assert torch.allclose(features, hidden, rtol=1e-12)
    with pytest.raises(ConfigError, match="no state-value function"):
        policy.v(state.tree, batch["obs"])


def test_act_is_the_policy_and_carries_nothing(learner, draw):
    state, batches = learner.init(torch.float64), draw(learner)
    obs = batches["train"]["obs"]
    action, carry = learner.act(state.tree, obs, None, None, True)
    with torch.no_grad():
        expected = torch.tanh(Textbook(state.tree).actor(obs)) * HIGH
    assert torch.allclose(action, expected, rtol=1e-12) and carry is None


def test_presets_and_defaults_are_the_papers():
    defaults = TD3BC()
    assert (defaults.alpha, defaults.discount, defaults.tau, defaults.policy_every) == (2.5, 0.99, 0.005, 2)
    assert (defaults.policy_noise, defaults.noise_clip, defaults.hidden) == (0.2, 0.5, (256, 256))
    assert defaults.batch_size == 256 and defaults.normalize
    for optimizer in (defaults.actor_optimizer, defaults.critic_optimizer):
        assert (optimizer.name, optimizer.hparams["lr"]) == ("adam", 3e-4)
    learner = TD3BC(policy_every=3, actor_optimizer=adam(1e-3)).build(Spec(3, 2, (1.0, 1.0)), torch.Generator())
    assert [u.every for u in learner.updates.values()] == [1, 3, 3, 3]
    for preset in TD3BC.presets.values():
        TD3BC(**preset)
