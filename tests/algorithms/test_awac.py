"""AWAC against a textbook implementation: modules, torch.optim, targets moved in place; CORL's order of updates."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from algorithms.awac import AWAC
from metarl import Rewards, Spec, adam, config
from metarl.component import component
from metarl.data.recipes import make_dataset
from metarl.errors import ConfigError
from metarl.training import checkpoints, offline
from metarl.training.progress import Silent
from objectives.fixed import Fixed
from objectives.gorl import GORL
from objectives.por import POR

HIGH = torch.tensor([1.0, 0.5], dtype=torch.float64)
NETS = {"actor": ("net.",), "critic": ("q1.", "q2."), "critic_target": ("q1.", "q2.")}
SMALL = {"hidden": (16, 16), "batch_size": 32}


class Net(nn.Module):
    """Layers of torch.nn.Linear, started from a group of the learner."""

    def __init__(self, params, prefix):
        super().__init__()
        layers = []
        for i in range(sum(name.startswith(f"{prefix}layers.") for name in params) // 2):
            weight, bias = (params[f"{prefix}layers.{i}.{k}"] for k in ("weight", "bias"))
            layer = nn.Linear(*weight.shape, dtype=torch.float64)
            layer.weight.data.copy_(weight.T)
            layer.bias.data.copy_(bias)
            layers.append(layer)
        self.layers = nn.ModuleList(layers)

    def forward(self, *x):
        x = torch.cat(x, 1)
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        return self.layers[-1](x)

    def group(self, prefix, read=lambda p: p):
        """Values (or what `read` finds for them) under the learner's names, weights as [in, out]."""
        return {
            f"{prefix}layers.{i}.{kind}": (lambda t, k: t.T if k == "weight" else t)(read(getattr(layer, kind)), kind)
            for i, layer in enumerate(self.layers)
            for kind in ("weight", "bias")
        }


class Textbook:
    """AWAC in the order of CORL: critics, policy, targets."""

    def __init__(self, tree, temperature=1.0, gamma=0.99, tau=0.005, log_std=(-20.0, 2.0), lr=(3e-4, 3e-4), high=HIGH):
        self.nets = {group: [Net(tree[group], prefix) for prefix in prefixes] for group, prefixes in NETS.items()}
        self.mean, self.critics, self.targets = self.nets["actor"][0], self.nets["critic"], self.nets["critic_target"]
        self.log_std = nn.Parameter(tree["actor"]["log_std"].clone())
        self.optimizers = {
            "actor": torch.optim.Adam([*self.mean.parameters(), self.log_std], lr[0]),
            "critic": torch.optim.Adam([p for critic in self.critics for p in critic.parameters()], lr[1]),
        }
        self.temperature, self.gamma, self.tau, self.bounds, self.high = temperature, gamma, tau, log_std, high

    def policy(self, obs):
        return Normal(self.mean(obs), self.log_std.clamp(*self.bounds).exp())

    def sample(self, obs, eps):
        pi = self.policy(obs)
        return torch.clip(pi.mean + pi.stddev * eps, -1, 1) * self.high

    def lower(self, critics, obs, action):
        return torch.min(*(critic(obs, action).squeeze(1) for critic in critics))

    def log_prob(self, batch):
        return self.policy(batch["obs"]).log_prob(batch["action"] / self.high).sum(1)

    @torch.no_grad()
    def weigh(self, batch, eps):
        own = self.lower(self.critics, batch["obs"], self.sample(batch["obs"], eps))
        self.advantages = self.lower(self.critics, batch["obs"], batch["action"]) - own
        return torch.clamp(torch.exp(self.advantages / self.temperature), max=100.0)

    def train(self, batch, noise):
        with torch.no_grad():
            next_q = self.lower(self.targets, batch["next_obs"], self.sample(batch["next_obs"], noise["next_policy"]))
            y = batch["reward"] + self.gamma * (1 - batch["terminated"]) * next_q
        critic_loss = sum(
            nn.functional.mse_loss(critic(batch["obs"], batch["action"]).squeeze(1), y) for critic in self.critics
        )
        self.move("critic", critic_loss)
        self.weights = self.weigh(batch, noise["policy"])
        actor_loss = -(self.weights * self.log_prob(batch)).mean()
        self.move("actor", actor_loss)
        with torch.no_grad():
            for critic, target in zip(self.critics, self.targets, strict=True):
                for p, t in zip(critic.parameters(), target.parameters(), strict=True):
                    t.mul_(1 - self.tau).add_(self.tau * p)
        return {"critic": critic_loss.detach(), "actor": actor_loss.detach()}

    def move(self, group, loss):
        self.optimizers[group].zero_grad()
        loss.backward()
        self.optimizers[group].step()

    def group(self, name, read=lambda p: p):
        params = {}
        for net, prefix in zip(self.nets[name], NETS[name], strict=True):
            params |= net.group(prefix, read)
        return params | ({"log_std": read(self.log_std)} if name == "actor" else {})

    def tree(self):
        return {name: self.group(name) for name in NETS}

    def moments(self, name, key):
        return self.group(name, lambda p: self.optimizers[name].state[p][key])


@pytest.fixture(scope="module")
def learner(assemble):
    return assemble(AWAC(**SMALL))


def started(learner):
    """A state whose critics are steep, so that some weights are clipped, its targets elsewhere, deviations unlike."""
    state = learner.init(torch.float64)
    critic = {k: 6 * p for k, p in state.tree["critic"].items()}
    target = {k: 1.3 * p + 0.05 for k, p in critic.items()}
    log_std = torch.tensor([-0.5, 0.3], dtype=torch.float64)
    state = state.with_params("critic", critic).with_params("critic_target", target)
    return state.with_params("actor", {**state.tree["actor"], "log_std": log_std})


def bounded(batches):
    """The batches with some actions on their bounds."""
    action = batches["train"]["action"].clone()
    action[0:4], action[4:8] = HIGH, -HIGH
    return {**batches, "train": {**batches["train"], "action": action}}


def test_twenty_steps_equal_the_textbook(assemble, draw, apart):
    learner = assemble(AWAC(hidden=(16, 12, 8), batch_size=32), seed=3)  # where now this, now that critic is lower
    state = started(learner)
    first, book = state.tree, Textbook(state.tree)
    clipped, positive, lower, ended = 0, 0, torch.zeros(2), torch.zeros(2)
    for step in range(1, 21):
        batches = bounded(draw(learner, step))
        batch = batches["train"]
        state, metrics = learner.step(state, batches, learner.due(step))
        for name, loss in book.train(batch, batches["noise"]).items():
            assert abs(metrics[f"{name}/loss"] - loss) < 1e-10 * abs(loss)
        assert apart(state.tree, book.tree()) < 1e-10
        clipped += (book.weights == 100).sum()
        positive += (book.advantages > 0).sum()
        for i, group in enumerate((book.critics, book.targets)):
            one, other = (q(batch["obs"], batch["action"]) for q in group)
            lower[i] += (one < other).sum()
        ended += torch.stack([batch["terminated"].sum(), ((1 - batch["terminated"]) * batch["truncated"]).sum()])
    assert 10 < clipped < positive < 600 and (ended > 20).all()
    assert (lower > 100).all() and (lower < 540).all()
    assert all(not torch.equal(state.tree[g][k], p) for g, group in first.items() for k, p in group.items())
    for ours, theirs in (("mu", "exp_avg"), ("nu", "exp_avg_sq")):
        for group in ("actor", "critic"):
            assert apart(getattr(state.opt[group], ours), book.moments(group, theirs)) < 1e-10
            assert state.opt[group].count == 20


@pytest.mark.parametrize(
    ("settings", "hand"),
    [
        ({"temperature": 0.3}, {"temperature": 0.3}),
        ({"discount": 0.9}, {"gamma": 0.9}),
        ({"tau": 0.1}, {"tau": 0.1}),
        ({"log_std": (-0.2, 2.0)}, {"log_std": (-0.2, 2.0)}),
        ({"log_std": (-20.0, 0.1)}, {"log_std": (-20.0, 0.1)}),
        ({"actor_optimizer": adam(1e-2)}, {"lr": (1e-2, 3e-4)}),
        ({"critic_optimizer": adam(1e-2)}, {"lr": (3e-4, 1e-2)}),
    ],
    ids=lambda value: ",".join(value),
)
def test_every_setting_means_what_the_textbook_means(assemble, draw, apart, settings, hand):
    learner = assemble(AWAC(**SMALL, **settings))
    state = started(learner)
    book, plain = Textbook(state.tree, **hand), Textbook(state.tree)
    for step in range(1, 5):
        batches = bounded(draw(learner, step))
        state, _ = learner.step(state, batches, learner.due(step))
        book.train(batches["train"], batches["noise"])
        plain.train(batches["train"], batches["noise"])
    assert apart(state.tree, book.tree()) < 1e-10
    assert apart(state.tree, plain.tree()) > 1e-6


def test_one_step_number_by_number():
    """Linear networks of one state and one action, two transitions; every number of CORL's step worked out by hand."""
    spec = Spec(obs_dim=1, action_dim=1, max_action=(2.0,))
    learner = AWAC(temperature=0.5, hidden=(), batch_size=2).build(spec, torch.Generator().manual_seed(0)).ready()

    def column(*values):
        return torch.tensor(values, dtype=torch.float64).reshape(-1, 1)

    def critics(q1, q2):
        """Each as (of the state, of the action, constant)."""
        return {
            f"{name}.layers.0.{kind}": column(*q[:2]) if kind == "weight" else column(q[2])[0]
            for name, q in (("q1", q1), ("q2", q2))
            for kind in ("weight", "bias")
        }

    tree = {
        "actor": {
            "net.layers.0.weight": column(0.5),
            "net.layers.0.bias": column(0.1)[0],
            "log_std": column(math.log(0.5))[0],
        },
        "critic": critics((1.0, 2.0, 0.0), (0.5, 1.0, 0.3)),
        "critic_target": critics((1.0, 1.0, 0.0), (0.0, 2.0, 0.5)),
    }
    batches = {
        "train": {
            "obs": column(1.0, -1.0),
            "action": column(1.6, -2.0),
            "reward": column(1.0, 2.0)[:, 0],
            "next_obs": column(0.4, 3.0),
            "terminated": column(0.0, 1.0)[:, 0],
            "truncated": column(1.0, 0.0)[:, 0],
        },
        "noise": {"policy": column(-2.0, 0.4), "next_policy": column(1.0, -1.0)},
    }
    state, metrics = learner.step(learner.state_of(tree), batches, learner.due(1))
    # a' = 2 (0.5 0.4 + 0.1 + 0.5) = 1.6; Q' = 2.0 and 3.7; the second transition ends.
    y = (1 + 0.99 * 2.0, 2.0)
    # Q_1 = 1 + 3.2, -1 - 4; Q_2 = 0.5 + 1.6 + 0.3, -0.5 - 2 + 0.3
    q1, q2 = (4.2, -5.0), (2.4, -2.2)
    loss = sum((q - target) ** 2 / 2 for qs in (q1, q2) for q, target in zip(qs, y, strict=True))
    assert metrics["critic/loss"].item() == pytest.approx(loss, rel=1e-12)
    assert metrics["critic/q"].item() == pytest.approx(-0.4, rel=1e-12)
    assert metrics["critic/q_max"].item() == pytest.approx(4.2, rel=1e-12)

    # Adam's first step moves by its rate against the gradient's sign, but for eps.
    def adam_step(value, gradient):
        return value - 3e-4 * gradient / (abs(gradient) + 1e-8)

    moved = {}
    for name, qs, start in (("q1", q1, (1.0, 2.0, 0.0)), ("q2", q2, (0.5, 1.0, 0.3))):
        error = [q - target for q, target in zip(qs, y, strict=True)]
        gradients = (error[0] - error[1], 1.6 * error[0] - 2.0 * error[1], error[0] + error[1])
        moved[name] = [adam_step(v, g) for v, g in zip(start, gradients, strict=True)]
        weight, bias = (
            state.tree["critic"][f"{name}.layers.0.{kind}"].flatten().tolist() for kind in ("weight", "bias")
        )
        assert [*weight, *bias] == pytest.approx(moved[name], rel=1e-12)

    # The policy sees these new critics. Means 0.6 and -0.4; a~ = 2 (0.6 - 1) = -0.8 and 2 (-0.4 + 0.2) = -0.4.
    def lower(s, a):
        return min(w * s + u * a + b for w, u, b in moved.values())

    advantages = (lower(1, 1.6) - lower(1, -0.8), lower(-1, -2.0) - lower(-1, -0.4))
    assert advantages == pytest.approx((3.0, -3.2), abs=0.01)
    weights = [100.0, math.exp(advantages[1] / 0.5)]  # exp(6) = 403 is clipped
    # (a / 2 - mean) / 0.5 = 0.4 and -1.2
    log_probs = [-0.5 * z * z - math.log(0.5) - 0.5 * math.log(2 * math.pi) for z in (0.4, -1.2)]
    assert metrics["actor/weight"].item() == pytest.approx(sum(weights) / 2, rel=1e-12)
    assert metrics["actor/advantage"].item() == pytest.approx(sum(advantages) / 2, rel=1e-12)
    assert metrics["actor/log_prob"].item() == pytest.approx(sum(log_probs) / 2, rel=1e-12)
    assert metrics["actor/loss"].item() == pytest.approx(
        -sum(w * p for w, p in zip(weights, log_probs, strict=True)) / 2, rel=1e-12
    )
    by_mean = [-w * z / 0.5 / 2 for w, z in zip(weights, (0.4, -1.2), strict=True)]
    by_log_std = sum(-w * (z * z - 1) / 2 for w, z in zip(weights, (0.4, -1.2), strict=True))
    expected = (
        adam_step(0.5, by_mean[0] - by_mean[1]),
        adam_step(0.1, sum(by_mean)),
        adam_step(math.log(0.5), by_log_std),
    )
    actor = state.tree["actor"]
    names = ("net.layers.0.weight", "net.layers.0.bias", "log_std")
    assert [actor[name].item() for name in names] == pytest.approx(expected, rel=1e-12)
    for name, start in (("q1", (1.0, 1.0, 0.0)), ("q2", (0.0, 2.0, 0.5))):
        target = [0.995 * old + 0.005 * new for old, new in zip(start, moved[name], strict=True)]
        group = state.tree["critic_target"]
        weight, bias = (group[f"{name}.layers.0.{kind}"].flatten().tolist() for kind in ("weight", "bias"))
        assert [*weight, *bias] == pytest.approx(target, rel=1e-12)


def test_the_target_bootstraps_through_time_limits_and_stops_at_terminations(learner, draw):
    state, batches = started(learner), bounded(draw(learner))
    update, batch = learner.updates["critic"], batches["train"]

    def loss(terminated, truncated):
        n = len(batch["reward"])
        flags = {
            "terminated": torch.full((n,), terminated, dtype=torch.float64),
            "truncated": torch.full((n,), truncated, dtype=torch.float64),
        }
        return update.evaluate(state.tree, {**batches, "train": batch | flags})[0]

    assert loss(0.0, 1.0) == loss(0.0, 0.0) and loss(1.0, 1.0) == loss(1.0, 0.0)
    critics = Textbook(state.tree).critics
    stopped = sum((q(batch["obs"], batch["action"]).squeeze(1) - batch["reward"]).square().mean() for q in critics)
    assert abs(loss(1.0, 0.0) - stopped) < 1e-10 * stopped
    assert abs(loss(0.0, 0.0) - stopped) > 1e-3


def test_weights_and_targets_are_constants_to_the_gradient(learner, draw):
    tree, batches = started(learner).tree, bounded(draw(learner))
    tree = {group: {k: p.clone().requires_grad_() for k, p in params.items()} for group, params in tree.items()}
    gradients = {
        name: {
            group: torch.autograd.grad(
                learner.updates[name].evaluate(tree, batches)[0], list(params.values()), allow_unused=True
            )
            for group, params in tree.items()
        }
        for name in ("actor", "critic")
    }
    for name, groups in gradients.items():
        assert {group for group, found in groups.items() if any(g is not None for g in found)} == {name}
    # The policy's own action a~ in the weights gives the actor no gradient either.
    book = Textbook(tree)
    batch = batches["train"]
    (-(book.weigh(batch, batches["noise"]["policy"]) * book.log_prob(batch)).mean()).backward()
    expected = book.group("actor", lambda p: p.grad)
    for name, g in zip(tree["actor"], gradients["actor"]["actor"], strict=True):
        assert torch.allclose(g, expected[name], rtol=1e-10, atol=1e-14)


def test_policy_terms_are_per_sample_and_add_up(learner, draw):
    state, batches = started(learner), bounded(draw(learner))
    batch, noise, policy, n = batches["train"], batches["noise"], learner.policy, 32
    book = Textbook(state.tree)
    with torch.no_grad():
        weight = book.weigh(batch, noise["policy"])
        log_prob = book.log_prob(batch)
        mean = book.mean(batch["obs"])
        q = book.lower(book.critics, batch["obs"], batch["action"])
        hidden = torch.relu(book.mean.layers[1](torch.relu(book.mean.layers[0](batch["obs"]))))
    assert (weight == 100).any() and (weight < 1).any() and (mean.abs() < 1).all()
    terms = policy.terms(state.tree, batch, noise)
    assert terms.improvement.shape == terms.signal.shape == (n,)
    assert terms.constraint is None and terms.rest is None
    assert torch.allclose(terms.improvement, weight * log_prob, rtol=1e-10)
    assert torch.allclose(terms.signal, -log_prob, rtol=1e-10)
    for name, values in (("weight", weight), ("log_prob", log_prob), ("advantage", book.advantages)):
        assert torch.allclose(terms.metrics[name], values.mean(), rtol=1e-10)
    base = -(weight * log_prob).mean()
    b = torch.linspace(0, 2, n, dtype=torch.float64)
    assert torch.allclose(policy.combine(terms, None), base, rtol=1e-10)
    assert torch.allclose(policy.combine(terms, 0.3), 0.3 * base, rtol=1e-10)
    assert torch.allclose(policy.combine(terms, b), -(b * weight * log_prob).mean(), rtol=1e-10)
    for one in (1.0, torch.ones_like(b)):
        assert torch.equal(policy.combine(terms, one), policy.combine(terms, None))
    loss, _ = learner.updates["actor"].evaluate(state.tree, batches)
    assert torch.equal(loss, policy.combine(terms, 1.0))
    squared = (mean * HIGH - batch["action"]).square().mean()
    for ours, theirs in (
        (policy.imitation(state.tree, batch, noise), -log_prob.mean()),
        (policy.imitation(state.tree, batch, noise, ("mode",)), squared),
        (policy.action(state.tree, batch["obs"], noise), mean * HIGH),
        (policy.q(state.tree, batch["obs"], batch["action"]), q),
        (policy.features(state.tree, batch["obs"]), hidden),
    ):
        assert ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-10)
    assert (policy.updates, policy.forms, policy.signal) == (("actor",), ("mode",), "standardized")


@pytest.mark.parametrize("objective", [Fixed(), GORL(every=2, batch_size=5)], ids=["fixed", "gorl"])
def test_objectives_attach(assemble, draw, apart, objective):
    """Degree 1 is the algorithm, bit for bit; a guiding network at its start weighs every sample by less."""
    plain, learner = assemble(AWAC(**SMALL)), assemble(AWAC(**SMALL), objective)
    batches = bounded(draw(learner, 1))
    shared = {**batches, "noise": {k: batches["noise"][k] for k in plain.noise}}
    (ours, _), (base, _) = (
        one.step(one.init(torch.float64), given, one.due(1)) for one, given in ((learner, batches), (plain, shared))
    )
    assert (
        apart({k: ours.tree[k] for k in ("critic", "critic_target")}, {k: base.tree[k] for k in NETS if k != "actor"})
        == 0
    )
    assert (apart(ours.tree["actor"], base.tree["actor"]) == 0) == isinstance(objective, Fixed)


def test_por_is_refused_its_value(assemble):
    with pytest.raises(ConfigError, match="awac learns no state-value function; choose an algorithm that does"):
        assemble(AWAC(**SMALL), POR(value="base"))


def test_acting_is_the_mean_or_a_sample_cut_at_the_bounds(learner, draw):
    state, obs = started(learner), draw(learner)["train"]["obs"]
    wide = {k: 8 * p if k.startswith("net.") else p for k, p in state.tree["actor"].items()}
    state = state.with_params("actor", wide)
    noise = torch.randn((len(obs), 2), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    book = Textbook(state.tree)
    with torch.no_grad():
        mean, sample = book.mean(obs), book.mean(obs) + book.log_std.exp() * noise
    assert all(0 < (x.abs() > 1).sum() < x.numel() for x in (mean, sample))
    for eps, deterministic, expected in ((noise, True, mean), (None, False, mean), (noise, False, sample)):
        action, carry = learner.act(state.tree, obs, "kept", eps, deterministic)
        assert torch.allclose(action, expected.clamp(-1, 1) * HIGH, rtol=1e-10) and carry == "kept"


def test_a_step_in_float32_stays_there(learner, draw):
    losses = {}
    for dtype in (torch.float32, torch.float64):
        batches = {k: {n: t.to(dtype) for n, t in group.items()} for k, group in bounded(draw(learner)).items()}
        tree = {g: {k: p.to(dtype) for k, p in params.items()} for g, params in started(learner).tree.items()}
        state, metrics = learner.step(learner.state_of(tree), batches, learner.due(1))
        assert {p.dtype for group in state.tree.values() for p in group.values()} == {dtype}
        losses[dtype] = torch.stack([metrics[f"{name}/loss"] for name in ("actor", "critic")])
        assert losses[dtype].dtype == dtype
    assert torch.allclose(losses[torch.float32].double(), losses[torch.float64], rtol=1e-3)


def test_sizes_and_the_remaining_settings_reach_the_learner(spec):
    rewards = Rewards(scale=2.0, shift=-1.0)
    algorithm = AWAC(hidden=(5, 7), batch_size=11, normalize=False, rewards=rewards)
    learner = algorithm.build(spec, torch.Generator().manual_seed(0)).ready()
    shapes = {
        name: [tuple(p.shape) for k, p in learner.modules[name].named_parameters() if k.endswith("weight")]
        for name in ("actor", "critic")
    }
    assert shapes == {"actor": [*pairwise([3, 5, 7, 2])], "critic": 2 * [*pairwise([5, 5, 7, 1])]}
    assert {k: (r.source, r.size) for k, r in learner.roles.items()} == {"train": ("train", 11)}
    assert {k: n.whole_shape(learner.roles) for k, n in learner.noise.items()} == {
        "policy": (11, 2),
        "next_policy": (11, 2),
    }
    assert {n.distribution for n in learner.noise.values()} == {"normal"}
    assert (learner.normalize, learner.rewards, learner.span) == (False, rewards, None)
    start = learner.init().tree
    assert all(torch.equal(p, start["critic_target"][k]) for k, p in start["critic"].items())
    assert (start["actor"]["log_std"] == 0).all()
    assert [[u.name for u in stage] for stage in learner.stages] == [["critic"], ["actor"], ["critic_target"]]


PUBLISHED = {
    None: (1.0, Rewards()),
    "locomotion": (0.3333, Rewards()),
    "adroit": (0.1, Rewards()),
    "antmaze": (0.1, Rewards(shift=-1.0)),
    "maze2d": (0.1, Rewards()),
}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_presets_and_defaults_are_those_of_corl(preset):
    node = {"name": "algorithms.awac:AWAC"} | ({} if preset is None else {"preset": preset})
    awac, _ = component("metarl.algorithms", node, "run.yaml", "algorithm")
    assert (awac.temperature, awac.rewards) == PUBLISHED[preset]
    assert (awac.discount, awac.tau, awac.log_std, awac.hidden) == (0.99, 0.005, (-20.0, 2.0), (256, 256, 256))
    assert (awac.batch_size, awac.normalize) == (256, True)
    for optimizer in (awac.actor_optimizer, awac.critic_optimizer):
        assert (optimizer.name, optimizer.hparams["lr"], optimizer.hparams["eps"]) == ("adam", 3e-4, 1e-8)
    assert set(AWAC.presets) == set(PUBLISHED) - {None}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"temperature": 0.0}, "temperature must be positive and finite, not 0.0"),
        ({"temperature": -1.0}, "temperature must be positive and finite, not -1.0"),
        ({"temperature": math.inf}, "temperature must be positive and finite, not inf"),
        ({"log_std": [2.0, -5.0]}, r"log_std must be a lower and a higher bound, not \[2.0, -5.0\]"),
        ({"log_std": [1.0]}, r"log_std must be a lower and a higher bound, not \[1.0\]"),
        ({"tau": 1.5}, "tau"),
        ({"hidden": [16, 0]}, "hidden"),
        ({"batch_size": 0}, "batch_size"),
        ({"beta": 3.0}, "unknown key 'algorithm.beta'"),
        ({"preset": "antmase"}, "antmaze"),
    ],
    ids=str,
)
def test_bad_settings_are_refused_in_one_line(settings, said):
    with pytest.raises(ConfigError, match=said) as error:
        component("metarl.algorithms", {"name": "algorithms.awac:AWAC", **settings}, "run.yaml", "algorithm")
    assert str(error.value).startswith("run.yaml: ") and "\n" not in str(error.value)


TWO_PHASES = """
name: awac
algorithm: {name: "algorithms.awac:AWAC", hidden: [8, 8], batch_size: 16}
data:
  train: {recipe: pendulum/medium, size: 600}
online: {from_data: 0.5}
steps: {offline: 40, online: 230}
device: cpu
compile: off
log_every: 10
evaluation: {every: 300, episodes: 1}
checkpoint: {every: 20}
"""


class Stop(Silent):
    """Ends a run from outside once it has come so far."""

    def __init__(self, at):
        self.at = at

    def update(self, done, **figures):
        if done >= self.at:
            raise KeyboardInterrupt


def contents(folder):
    """Everything that must repeat, the replay included."""
    saved = checkpoints.load_newest(folder / "checkpoint", pytest.fail)
    files = {name: (folder / name).read_bytes() for name in ("metrics.csv", "result.json", "replay.bin")}
    return files | {name: value.numpy().tobytes() for name, value in saved.tensors.items()}


def test_offline_then_online_and_stopped_it_ends_with_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "data"))
    make_dataset("pendulum/medium", 600)
    file = tmp_path / "awac.yaml"
    file.write_text(TWO_PHASES)
    whole = offline.train(config.load(file), 0, tmp_path / "whole", Silent())
    for step in (25, 255):  # in either phase; the first episode ends at 240
        with pytest.raises(KeyboardInterrupt):
            offline.train(config.load(file), 0, tmp_path / "stopped", Stop(step))
    stopped = offline.train(config.load(file), 0, tmp_path / "stopped", Silent())
    assert contents(stopped) == contents(whole)
    saved = checkpoints.load_newest(whole / "checkpoint", pytest.fail)
    assert saved.step == 270 and saved.tensors["opt/actor/count"].item() == 270
