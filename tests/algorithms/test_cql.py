"""CQL against a textbook implementation: modules, torch.distributions, torch.optim, targets moved in place."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.distributions import Normal, TanhTransform

from algorithms.cql import CQL
from metarl import Spec, adam
from metarl.component import component
from metarl.errors import ConfigError

FLOOR = 3.3  # of a gap: between those of the states below
HIGH = torch.tensor([1.0, 0.5], dtype=torch.float64)
SMALL = {"hidden": (16, 16), "batch_size": 32, "samples": 4, "bc_steps": 6}
# Far larger than the published rates, so that an Update on the wrong side of another one is seen.
FAST = {"actor_optimizer": adam(1e-2), "critic_optimizer": adam(3e-3)}


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


def repeated(states, n):
    return states.repeat_interleave(n, 0)


def flat(noise, n):
    """The first n of each state's draws, in the order of `repeated`."""
    return noise[:, :n].reshape(-1, 2)


class Textbook:
    """CQL with one loop body, every copy of a state through every network, one optimiser for each network."""

    def __init__(
        self,
        tree,
        w=5.0,
        version=3,
        n=4,
        lagrange=None,
        floor=None,
        cloning=6,
        best_of_n=False,
        entropy=False,
        gamma=0.99,
        tau=0.005,
        actor_lr=1e-2,
        critic_lr=3e-3,
    ):
        self.actor = Net(tree["actor"], "net.")
        self.critics = [Net(tree["critic"], f"q{i}.") for i in (1, 2)]
        self.targets = [Net(tree["critic_target"], f"q{i}.") for i in (1, 2)]
        self.log_alpha = tree["temperature"]["log"].clone().requires_grad_()
        self.log_alpha_prime = None if lagrange is None else tree["penalty"]["log"].clone().requires_grad_()
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), actor_lr)
        self.critic_optimizers = [torch.optim.Adam(critic.parameters(), critic_lr) for critic in self.critics]
        self.alpha_optimizer = torch.optim.Adam([self.log_alpha], actor_lr)
        if lagrange is not None:
            self.alpha_prime_optimizer = torch.optim.Adam([self.log_alpha_prime], critic_lr)
        self.w, self.version, self.n, self.lagrange, self.floor = w, version, n, lagrange, floor
        self.cloning, self.best_of_n, self.entropy, self.gamma, self.tau = cloning, best_of_n, entropy, gamma, tau
        self.total = 0

    def normal(self, states):
        mean, log_std = self.actor(states).split(2, 1)
        return Normal(mean, log_std.clamp(-5, 2).exp())

    def sample(self, states, eps):
        normal = self.normal(states)
        u = normal.mean + normal.stddev * eps
        action = torch.tanh(u)
        log_prob = normal.log_prob(u) - TanhTransform().log_abs_det_jacobian(u, action)
        return action * HIGH, log_prob.sum(1)

    def log_prob(self, states, actions):
        u = torch.atanh((actions / HIGH).clamp(-1 + 1e-6, 1 - 1e-6))
        log_prob = self.normal(states).log_prob(u) - TanhTransform().log_abs_det_jacobian(u, torch.tanh(u))
        return log_prob.sum(1)

    @staticmethod
    def q(critic, states, actions):
        return critic(torch.cat([states, actions], 1)).squeeze(1)

    def backup(self, batch, noise, alpha):
        states, n = batch["next_obs"], self.n
        with torch.no_grad():
            if self.best_of_n:
                actions, _ = self.sample(repeated(states, n), flat(noise["backup"], n))
                best = [self.q(t, repeated(states, n), actions).view(-1, n).max(1).values for t in self.targets]
                q = torch.min(*best)
            else:
                actions, log_prob = self.sample(states, noise["next_policy"])
                q = torch.min(*(self.q(target, states, actions) for target in self.targets))
                if self.entropy:
                    q = q - alpha * log_prob
            return batch["reward"] + self.gamma * (1 - batch["terminated"]) * q

    def gap(self, critic, batch, noise):
        """Each state's log sum exp less the value of its data action."""
        states, n = repeated(batch["obs"], self.n), self.n
        with torch.no_grad():
            random = flat(noise["uniform"], n) * HIGH
            now, log_now = self.sample(states, flat(noise["samples"], n))
            then, log_then = self.sample(repeated(batch["next_obs"], n), flat(noise["next_samples"], n))
        data = self.q(critic, batch["obs"], batch["action"])
        of_random, of_now, of_then = (self.q(critic, states, a) for a in (random, now, then))
        if self.version == 3:
            terms = [of_random + 2 * math.log(2), of_then - log_then, of_now - log_now]
        else:
            terms = [of_random, of_then, of_now]
        terms = [term.view(-1, n) for term in terms] + ([data[:, None]] if self.version == 2 else [])
        gap = torch.cat(terms, 1).exp().sum(1).log() - data
        return data, gap if self.floor is None else torch.clamp(gap, min=self.floor)

    def train(self, batch, noise):
        self.total += 1
        obs = batch["obs"]
        actions, log_prob = self.sample(obs, noise["policy"])
        alpha_loss = -(self.log_alpha * (log_prob - 2).detach()).mean()
        self.alpha_optimizer.zero_grad()
        alpha_loss.backward()
        self.alpha_optimizer.step()
        alpha = self.log_alpha.exp().detach()

        if self.total <= self.cloning:
            actor_loss = (alpha * log_prob - self.log_prob(obs, batch["action"])).mean()
        else:
            actor_loss = (alpha * log_prob - torch.min(*(self.q(c, obs, actions) for c in self.critics))).mean()
        y = self.backup(batch, noise, alpha)
        losses, excesses = [], []
        alpha_prime = 1.0 if self.lagrange is None else self.log_alpha_prime.exp().clamp(max=1e6)
        for critic in self.critics:
            data, gap = self.gap(critic, batch, noise)
            excesses.append(self.w * gap.mean() - (self.lagrange or 0.0))
            losses.append(nn.functional.mse_loss(data, y) + alpha_prime * excesses[-1])
        if self.lagrange is not None:
            alpha_prime_loss = -alpha_prime * 0.5 * (excesses[0] + excesses[1]).detach()
            (gradient,) = torch.autograd.grad(alpha_prime_loss, [self.log_alpha_prime], retain_graph=True)
        gradients = torch.autograd.grad(actor_loss, list(self.actor.parameters()))
        for critic, loss, optimizer in zip(self.critics, losses, self.critic_optimizers, strict=True):
            grads = torch.autograd.grad(loss, list(critic.parameters()), retain_graph=True)
            self.move(optimizer, list(critic.parameters()), grads)
        self.move(self.actor_optimizer, list(self.actor.parameters()), gradients)
        if self.lagrange is not None:
            self.move(self.alpha_prime_optimizer, [self.log_alpha_prime], [gradient])
        for net, target in zip(self.critics, self.targets, strict=True):
            for p, t in zip(net.parameters(), target.parameters(), strict=True):
                t.data.copy_(self.tau * p.data + (1 - self.tau) * t.data)
        return {
            "temperature/loss": alpha_loss,
            ("cloning/loss" if self.total <= self.cloning else "actor/loss"): actor_loss,
            "critic/loss": losses[0] + losses[1],
            **({} if self.lagrange is None else {"penalty/loss": alpha_prime_loss}),
        }

    @staticmethod
    def move(optimizer, params, grads):
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        optimizer.step()

    def tree(self):
        twin = [c.group(f"q{i}.") for i, c in enumerate(self.critics, 1)]
        target = [c.group(f"q{i}.") for i, c in enumerate(self.targets, 1)]
        return {
            "actor": self.actor.group("net."),
            "critic": twin[0] | twin[1],
            "critic_target": target[0] | target[1],
            "temperature": {"log": self.log_alpha},
            **({} if self.lagrange is None else {"penalty": {"log": self.log_alpha_prime}}),
        }

    def moments(self, key):
        twin = [
            c.group(f"q{i}.", lambda p, o=o: o.state[p][key])
            for i, (c, o) in enumerate(zip(self.critics, self.critic_optimizers, strict=True), 1)
        ]
        penalty = {}
        if self.lagrange is not None:
            penalty = {"penalty": {"log": self.alpha_prime_optimizer.state[self.log_alpha_prime][key]}}
        return {
            "actor": self.actor.group("net.", lambda p: self.actor_optimizer.state[p][key]),
            "critic": twin[0] | twin[1],
            "temperature": {"log": self.alpha_optimizer.state[self.log_alpha][key]},
            **penalty,
        }


@pytest.fixture(scope="session")
def material(draw):
    """`material(learner, seed=0)`: batches with a few data actions on the bounds, and uniform noise in [-1, 1]."""

    def prepared(learner, seed=0):
        batches = draw(learner, seed)
        batches["noise"]["uniform"] = torch.special.erf(batches["noise"]["uniform"] / 2**0.5)
        batches["train"]["action"][:2] = HIGH
        batches["train"]["action"][2:4, 0] = -HIGH[0]
        return batches

    return prepared


def start(learner, spread=5.0):
    """A generic state: targets and multipliers of their own, log-deviations that differ by about `spread` / 5."""
    state = learner.init(torch.float64)
    actor = dict(state.tree["actor"])
    actor["net.layers.2.weight"] = actor["net.layers.2.weight"] * torch.tensor([2.0, 2.0, spread, spread])
    actor["net.layers.2.bias"] = torch.tensor([0.1, -0.1, -1 - 0.1 * spread, -1 - 0.22 * spread], dtype=torch.float64)
    state = state.with_params("actor", actor)
    # Neither critic is the lower one everywhere.
    critic = {k: 5 * v if "2.weight" in k else v for k, v in state.tree["critic"].items()}
    critic |= {f"q{i}.layers.2.bias": torch.tensor([bias], dtype=torch.float64) for i, bias in ((1, 0.6), (2, 0.9))}
    moved = {k: v + 0.01 * torch.sin(1 + 7 * torch.arange(v.numel())).view(v.shape) for k, v in critic.items()}
    state = state.with_params("critic", critic).with_params("critic_target", moved)
    state = state.with_params("temperature", {"log": torch.tensor(-0.7, dtype=torch.float64)})
    if "penalty" in state.tree:
        state = state.with_params("penalty", {"log": torch.tensor(0.4, dtype=torch.float64)})
    return state


VARIANTS = {
    "version 3": ({}, {}, 5),
    "version 3, deviations at their bounds": ({}, {}, 50),
    "version 2": ({"min_q_version": 2}, {"version": 2}, 5),
    "lagrange": ({"lagrange": 12.0}, {"lagrange": 12.0}, 5),
    "lagrange, version 2": ({"lagrange": 15.0, "min_q_version": 2}, {"lagrange": 15.0, "version": 2}, 5),
    "max_q_backup": ({"max_q_backup": True}, {"best_of_n": True}, 5),
    "entropy_backup": ({"entropy_backup": True}, {"entropy": True}, 5),
    "min_gap": ({"min_gap": FLOOR}, {"floor": FLOOR}, 5),
    "min_gap, lagrange": ({"min_gap": FLOOR, "lagrange": 22.0}, {"floor": FLOOR, "lagrange": 22.0}, 5),
}


@pytest.mark.parametrize("ours, theirs, spread", VARIANTS.values(), ids=VARIANTS)
def test_twenty_steps_equal_the_textbook(assemble, material, apart, ours, theirs, spread):
    learner = assemble(CQL(**SMALL, **FAST, **ours))
    state = start(learner, spread)
    book = Textbook(state.tree, **theirs)
    for step in range(1, 21):
        batches = material(learner, step)
        state, metrics = learner.step(state, batches, learner.due(step))
        losses = book.train(batches["train"], batches["noise"])
        assert {k for k in metrics if k.endswith("/loss")} == set(losses)
        for name, loss in losses.items():
            assert abs(metrics[name] - loss) < 1e-10 * max(abs(loss), 1), name
        assert apart(state.tree, book.tree()) < 1e-10
    for mine, his in (("mu", "exp_avg"), ("nu", "exp_avg_sq")):
        for group, moments in book.moments(his).items():
            assert apart(getattr(state.opt[group], mine), moments) < 1e-10
    assert {float(state.opt[group].count) for group in book.moments("exp_avg")} == {20.0}


def test_the_states_of_the_comparison_cross_bounds_and_floors(assemble, material):
    """What a comparison on too tame a state would not see."""
    learner = assemble(CQL(**SMALL, **FAST))
    batches = material(learner)
    batch, noise = batches["train"], batches["noise"]
    log_std = Textbook(start(learner, 50).tree).actor(batch["obs"])[:, 2:]
    assert (log_std > 2).any() and (log_std < -5).any() and (log_std.abs() < 2).any()
    book = Textbook(start(learner).tree)
    for critic in book.critics:
        _, gap = book.gap(critic, batch, noise)
        assert (gap > FLOOR).sum() > 8 and (gap < FLOOR).sum() > 8
    for states, actions in ((batch["obs"], batch["action"]), (batch["next_obs"], batch["action"])):
        q1, q2 = (book.q(c, states, actions) for c in book.critics)
        assert (q1 < q2).sum() > 5 and (q2 < q1).sum() > 5
    drawn = book.sample(repeated(batch["next_obs"], 4), flat(noise["samples"], 4))[0]
    q1, q2 = (book.q(t, repeated(batch["next_obs"], 4), drawn).view(-1, 4) for t in book.targets)
    assert not torch.allclose(torch.minimum(q1, q2).amax(1), torch.minimum(q1.amax(1), q2.amax(1)))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"min_q_weight": 1.0}, {"w": 1.0}),
        ({"min_q_version": 2}, {"version": 2}),
        ({"samples": 7}, {"n": 7}),
        ({"lagrange": 2.0}, {"lagrange": 2.0}),
        ({"min_gap": FLOOR}, {"floor": FLOOR}),
        ({"bc_steps": 2}, {"cloning": 2}),
        ({"bc_steps": 0}, {"cloning": 0}),
        ({"bc_share": 0.2}, {"cloning": 2}),
        ({"bc_share": 0.0}, {"cloning": 0}),
        ({"max_q_backup": True}, {"best_of_n": True}),
        ({"entropy_backup": True}, {"entropy": True}),
        ({"discount": 0.9}, {"gamma": 0.9}),
        ({"tau": 0.1}, {"tau": 0.1}),
        ({"actor_optimizer": adam(1e-3)}, {"actor_lr": 1e-3}),
        ({"critic_optimizer": adam(1e-3)}, {"critic_lr": 1e-3}),
        ({"critic_optimizer": adam(1e-3), "lagrange": 2.0}, {"critic_lr": 1e-3, "lagrange": 2.0}),
    ],
    ids=str,
)
def test_every_setting_means_what_the_textbook_means(spec, material, apart, ours, theirs):
    generator = torch.Generator().manual_seed(0)
    learner = CQL(**{**SMALL, **FAST, **ours}).build(replace(spec, steps=10), generator).ready()
    state = start(learner)
    book, plain = Textbook(state.tree, **theirs), Textbook(state.tree)
    for step in range(1, 5):
        batches = material(learner, step)
        state, _ = learner.step(state, batches, learner.due(step))
        book.train(batches["train"], batches["noise"])
        spare = {"next_policy": batches["noise"]["policy"]}  # of which max_q_backup has no use
        plain.train(batches["train"], spare | batches["noise"])
    assert apart(state.tree, book.tree()) < 1e-10
    assert apart({k: state.tree[k] for k in plain.tree()}, plain.tree()) > 1e-6


def test_the_warm_up_is_a_number_of_steps_or_a_share_of_the_runs(spec):
    def built(steps=1_000_000, **settings):
        return CQL(hidden=(4,), **settings).build(replace(spec, steps=steps), torch.Generator()).ready()

    usual = {"temperature", "critic", "critic_target"}
    learner = built(bc_steps=3)
    assert [learner.due(step) - usual for step in range(1, 6)] == [{"cloning"}] * 3 + [{"actor"}] * 2
    assert [[u.name for u in stage] for stage in learner.stages] == [
        ["temperature"],
        ["cloning", "actor", "critic"],
        ["critic_target"],
    ]
    assert learner.span is None
    assert "penalty" in built(bc_steps=3, lagrange=1.0).due(1) and "penalty" not in learner.due(1)
    for none in (built(bc_steps=0), built(bc_share=0.0)):
        assert "cloning" not in none.updates and "actor" in none.due(1)
    for steps, last in ((1_000_000, 40_000), (1000, 40)):
        learner = built(steps, bc_share=0.04, bc_steps=7)  # the share goes before the number
        assert learner.span == steps
        assert learner.due(last) - usual == {"cloning"} and learner.due(last + 1) - usual == {"actor"}
    assert built(1000).due(40_000) - usual == {"cloning"} and built(1000).span is None


@pytest.mark.parametrize("best_of_n", [False, True])
def test_the_target_bootstraps_through_time_limits_and_stops_at_terminations(assemble, material, best_of_n):
    learner = assemble(CQL(**SMALL, min_q_weight=0.0, max_q_backup=best_of_n))
    state, batches = start(learner), material(learner)
    update, batch = learner.updates["critic"], batches["train"]

    def loss(terminated, truncated):
        flags = {"terminated": terminated, "truncated": truncated}
        flags = {k: torch.full((32,), v, dtype=torch.float64) for k, v in flags.items()}
        return update.evaluate(state.tree, {**batches, "train": batch | flags})[0]

    assert loss(0.0, 1.0) == loss(0.0, 0.0) and loss(1.0, 1.0) == loss(1.0, 0.0)
    book = Textbook(state.tree)
    stopped = sum((book.q(c, batch["obs"], batch["action"]) - batch["reward"]).square().mean() for c in book.critics)
    assert abs(loss(1.0, 0.0) - stopped) < 1e-12
    assert abs(loss(0.0, 0.0) - stopped) > 1e-3


def test_policy_terms_are_per_sample_and_the_degree_weighs_the_improvement(assemble, material):
    learner = assemble(CQL(**SMALL))
    state, batches = start(learner), material(learner)
    batch, noise, policy, book = batches["train"], batches["noise"], learner.policy, Textbook(state.tree)
    with torch.no_grad():
        action, log_prob = book.sample(batch["obs"], noise["policy"])
        q = torch.min(*(book.q(c, batch["obs"], action) for c in book.critics))
        entropy = book.log_alpha.exp() * log_prob
        mean = torch.tanh(book.actor(batch["obs"])[:, :2]) * HIGH
    terms = policy.terms(state.tree, batch, noise)
    assert terms.constraint is None
    for found, expected in ((terms.improvement, q), (terms.signal, q), (terms.rest, entropy)):
        assert found.shape == (32,) and torch.allclose(found, expected, rtol=1e-10)
    assert torch.allclose(terms.metrics["q"], q.mean(), rtol=1e-10)
    assert torch.allclose(terms.metrics["entropy"], -log_prob.mean(), rtol=1e-10)
    b = torch.linspace(0, 2, 32, dtype=torch.float64)
    for degree, expected in ((None, q), (1.0, q), (0.0, 0 * q), (0.3, 0.3 * q), (b, b * q)):
        assert torch.allclose(policy.combine(terms, degree), (entropy - expected).mean(), rtol=1e-10)
    assert torch.equal(policy.combine(terms, torch.ones_like(b)), policy.combine(terms, 1.0))
    assert torch.equal(learner.updates["actor"].evaluate(state.tree, batches)[0], policy.combine(terms, 1.0))
    clone = policy.imitation(state.tree, batch, {})
    assert torch.allclose(clone, -book.log_prob(batch["obs"], batch["action"]).mean(), rtol=1e-10)
    squared = (mean - batch["action"]).square().mean()
    assert torch.allclose(policy.imitation(state.tree, batch, {}, ("mode",)), squared, rtol=1e-10)
    assert torch.equal(policy.terms(state.tree, batch, noise, ("mode",)).improvement, terms.improvement)
    assert torch.allclose(policy.action(state.tree, batch["obs"], noise), action, rtol=1e-10)
    assert torch.allclose(policy.q(state.tree, batch["obs"], action), q, rtol=1e-10)
    hidden = torch.relu(book.actor.layers[1](torch.relu(book.actor.layers[0](batch["obs"]))))
    assert torch.allclose(policy.features(state.tree, batch["obs"]), hidden, rtol=1e-10)
    assert (policy.updates, policy.noise, policy.signal) == (("actor",), ("policy",), "scaled")
    with pytest.raises(ConfigError, match="no state-value function"):
        policy.v(state.tree, batch["obs"])
    for deterministic, given, expected in (
        (True, noise["policy"], mean),
        (False, noise["policy"], action),
        (False, None, mean),
    ):
        acted, carry = learner.act(state.tree, batch["obs"], None, given, deterministic)
        assert torch.allclose(acted, expected, rtol=1e-10) and carry is None


@pytest.mark.parametrize("bias", [-9.0, 9.0])  # of the first critic: it has the lowest or the highest values
def test_metrics_are_what_they_are_called(assemble, material, bias):
    learner = assemble(CQL(**SMALL, lagrange=2.0, min_gap=FLOOR))
    state, batches = start(learner), material(learner)
    shifted = {"q1.layers.2.bias": torch.tensor([bias], dtype=torch.float64)}
    state = state.with_params("critic", state.tree["critic"] | shifted)
    book = Textbook(state.tree, lagrange=2.0, floor=FLOOR)
    with torch.no_grad():
        (q1, gap1), (q2, gap2) = (book.gap(c, batches["train"], batches["noise"]) for c in book.critics)
    _, metrics = learner.step(state, batches, learner.due(1))
    expected = {
        "critic/q": q1.mean(),
        "critic/q_max": torch.maximum(q1, q2).max(),
        "critic/gap": (gap1.mean() + gap2.mean()) / 2,
        "temperature/temperature": book.log_alpha.exp(),
        "penalty/weight": book.log_alpha_prime.exp(),
    }
    for name, value in expected.items():
        assert torch.allclose(metrics[name], value, rtol=1e-10), name
    huge = state.with_params("penalty", {"log": torch.tensor(20.0, dtype=torch.float64)})
    after, metrics = learner.step(huge, batches, learner.due(1))
    assert metrics["penalty/weight"] == 1e6 and after.tree["penalty"]["log"] == 20.0


def test_float32_clones_actions_on_the_bounds_as_float64_does(assemble, material, apart):
    learner = assemble(CQL(**SMALL))
    update, batches = learner.updates["cloning"], material(learner)
    state, grads = start(learner), []
    for dtype in (torch.float64, torch.float32):
        tree = {g: {k: t.to(dtype) for k, t in group.items()} for g, group in state.tree.items()}
        cast = {r: {k: t.to(dtype) for k, t in batch.items()} for r, batch in batches.items()}
        found = update.gradient(update, learner.state_of(tree), cast).grads
        grads.append({k: g.double() for k, g in found.items()})
    assert apart(grads[1], grads[0]) < 5e-3


def test_the_critics_gradient_equals_central_differences(assemble, material):
    learner = assemble(CQL(**SMALL, lagrange=2.0))
    state, batches = start(learner), material(learner)
    update = learner.updates["critic"]
    grads, params = update.gradient(update, state, batches).grads, state.tree["critic"]
    generator = torch.Generator().manual_seed(0)

    def loss(direction, t):
        moved = {k: p + t * direction[k] for k, p in params.items()}
        return update.evaluate({**state.tree, "critic": moved}, batches)[0]

    for _ in range(5):
        direction = {k: torch.randn(p.shape, generator=generator, dtype=p.dtype) for k, p in params.items()}
        slope = (loss(direction, 1e-7) - loss(direction, -1e-7)) / 2e-7
        exact = sum((grads[k] * direction[k]).sum() for k in grads)
        size = sum(g.square().sum() for g in grads.values()).sqrt()
        assert abs(slope - exact) < 1e-6 * size


def test_networks_are_as_deep_and_start_as_they_are_told(spec):
    learner = CQL().build(spec, torch.Generator().manual_seed(0))
    for module in learner.modules.values():
        assert {tuple(p.shape) for p in module.parameters()} >= {(256, 256), (256,)}
    assert [layer.weight.shape[1] for layer in learner.modules["actor"].net.layers] == [256, 256, 256, 4]
    assert [layer.weight.shape[1] for layer in learner.modules["critic"].q2.layers] == [256, 256, 256, 1]
    learner = CQL(hidden=(8,), initialization="orthogonal").build(spec, torch.Generator().manual_seed(0))
    nets = (learner.modules["actor"].net, learner.modules["critic"].q1, learner.modules["critic"].q2)
    for net in nets:
        weight = net.layers[0].weight
        assert torch.allclose(weight @ weight.T, 2 * torch.eye(len(weight)), atol=1e-5)
        assert not net.layers[0].bias.any()


def test_defaults_and_presets_are_the_published_ones():
    cql, plain = component("metarl.algorithms", "cql", "run.yaml", "algorithm")
    assert (cql.min_q_weight, cql.min_q_version, cql.samples, cql.lagrange, cql.min_gap) == (5.0, 3, 10, None, None)
    assert (cql.bc_steps, cql.max_q_backup, cql.entropy_backup) == (40_000, False, False)
    assert (cql.discount, cql.tau, cql.hidden, cql.batch_size, cql.normalize) == (0.99, 0.005, (256,) * 3, 256, False)
    for optimizer, lr in ((cql.actor_optimizer, 1e-4), (cql.critic_optimizer, 3e-4)):
        assert (optimizer.name, optimizer.hparams["lr"]) == ("adam", lr)
    assert (plain["rewards"]["scale"], plain["rewards"]["shift"]) == (1.0, 0.0)

    def preset(name, **changed):
        node = {"name": "cql", "preset": name, **changed}
        return component("metarl.algorithms", node, "run.yaml", "algorithm")

    assert preset("locomotion")[1] == plain
    assert preset("adroit")[1] == plain | {"min_q_weight": 1.0, "min_q_version": 2}
    ant, _ = preset("antmaze")
    assert (ant.lagrange, ant.min_gap, ant.max_q_backup) == (0.2 * ant.min_q_weight, -200.0, True)
    assert (ant.rewards.scale, ant.rewards.shift, ant.min_q_weight, ant.min_q_version) == (10.0, -5.0, 5.0, 3)
    assert (ant.initialization, ant.bc_steps, ant.hidden) == ("orthogonal", 40_000, (256,) * 3)
    assert preset("antmaze", rewards={"shift": 1.0})[0].rewards.scale == 10.0
    learner = ant.build(Spec(3, 2, (1.0, 1.0)), torch.Generator())
    assert learner.rewards == ant.rewards and not learner.normalize and "penalty" in learner.updates
    assert CQL(normalize=True).build(Spec(3, 2, (1.0, 1.0)), torch.Generator()).normalize


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"min_q_version": 4}, "algorithm: min_q_version must be 2 or 3, not 4"),
        ({"bc_share": 1.0}, "algorithm: bc_share must be at least 0 and below 1, not 1.0"),
        ({"bc_share": -0.1}, "algorithm: bc_share must be at least 0 and below 1, not -0.1"),
        ({"bc_share": float("nan")}, "algorithm: bc_share must be at least 0 and below 1, not nan"),
        ({"bc_steps": -1}, "algorithm.bc_steps must be at least 0, not -1"),
        ({"samples": 0}, "algorithm.samples must be at least 1, not 0"),
        ({"hidden": [256, 0]}, "algorithm.hidden must be at least 1"),
        ({"batch_size": 0}, "algorithm.batch_size must be at least 1, not 0"),
        ({"initialization": "xavier"}, "algorithm.initialization"),
        ({"lagrange": "on"}, "algorithm.lagrange"),
        ({"min_q_wieght": 1.0}, "unknown key 'algorithm.min_q_wieght'. Did you mean 'min_q_weight'?"),
        ({"preset": "antmase"}, "algorithm.preset: algorithm 'cql' has no preset 'antmase'"),
    ],
    ids=str,
)
def test_bad_settings_give_one_clear_error(setting, message):
    with pytest.raises(ConfigError) as caught:
        component("metarl.algorithms", {"name": "cql", **setting}, "run.yaml", "algorithm")
    assert str(caught.value).startswith("run.yaml: ") and message in str(caught.value)
    assert "\n" not in str(caught.value)
