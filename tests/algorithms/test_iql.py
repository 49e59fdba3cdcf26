"""IQL against a textbook implementation: modules, torch.optim with a scheduler, targets moved in place."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from algorithms.iql import IQL
from metarl import Rewards, Spec, adam
from metarl.component import component
from metarl.errors import ConfigError

HIGH = torch.tensor([1.0, 0.5], dtype=torch.float64)
NETS = {"value": ("",), "actor": ("net.",), "critic": ("q1.", "q2."), "critic_target": ("q1.", "q2.")}


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

    def forward(self, x, uniform=None, rate=0.0):
        """`uniform` on [0, 1): a hidden unit is dropped where it is below `rate`."""
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
            if uniform is not None:
                here, uniform = uniform[:, : x.shape[1]], uniform[:, x.shape[1] :]
                x = torch.where(here < rate, torch.zeros_like(x), x / (1 - rate))
        return self.layers[-1](x)

    def group(self, prefix, read=lambda p: p):
        """Values (or what `read` finds for them) under the learner's names, weights as [in, out]."""
        return {
            f"{prefix}layers.{i}.{kind}": (lambda t, k: t.T if k == "weight" else t)(read(getattr(layer, kind)), kind)
            for i, layer in enumerate(self.layers)
            for kind in ("weight", "bias")
        }


class Textbook:
    """IQL as its paper has it (arXiv:2110.06169, Algorithm 1), or as CORL orders it."""

    def __init__(
        self,
        tree,
        expectile=0.7,
        beta=3.0,
        gamma=0.99,
        tau=0.005,
        rate=0.0,
        log_std=(-5.0, 2.0),
        corl=False,
        steps=1_000_000,
        lr=(3e-4, 3e-4, 3e-4),
    ):
        self.nets = {group: [Net(tree[group], prefix) for prefix in prefixes] for group, prefixes in NETS.items()}
        self.value, self.actor = self.nets["value"][0], self.nets["actor"][0]
        self.critics, self.targets = self.nets["critic"], self.nets["critic_target"]
        self.log_std = nn.Parameter(tree["actor"]["log_std"].clone())
        self.optimizers = {
            "value": torch.optim.Adam(self.value.parameters(), lr[0]),
            "actor": torch.optim.Adam([*self.actor.parameters(), self.log_std], lr[1]),
            "critic": torch.optim.Adam([p for critic in self.critics for p in critic.parameters()], lr[2]),
        }
        self.schedule = (
            None if steps is None else torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizers["actor"], steps)
        )
        self.expectile, self.beta, self.gamma, self.tau, self.rate = expectile, beta, gamma, tau, rate
        self.bounds, self.corl = log_std, corl

    def inside(self, batch):
        """Actions in units of their bounds, and as they are, both short of the bounds."""
        units = torch.clip(batch["action"] / HIGH, -(1 - 1e-5), 1 - 1e-5)
        return units, units * HIGH

    def advantage(self, batch):
        x = torch.cat([batch["obs"], self.inside(batch)[1]], 1)
        return torch.min(self.targets[0](x), self.targets[1](x)).squeeze(1) - self.value(batch["obs"]).squeeze(1)

    def weight(self, advantage):
        return torch.exp(self.beta * advantage).clamp(max=100.0)

    def log_prob(self, batch, uniform=None):
        mean = torch.tanh(self.actor(batch["obs"], uniform, self.rate))
        deviation = self.log_std.clamp(*self.bounds).exp()
        return Normal(mean, deviation).log_prob(self.inside(batch)[0]).sum(1)

    def train(self, batch, uniform=None):
        with torch.no_grad():
            old_advantage, old_next = self.advantage(batch), self.value(batch["next_obs"]).squeeze(1)
        advantage = self.advantage(batch)
        value_loss = (torch.abs(self.expectile - (advantage < 0).double()) * advantage**2).mean()
        self.move("value", value_loss)
        with torch.no_grad():
            new_advantage, new_next = self.advantage(batch), self.value(batch["next_obs"]).squeeze(1)
        advantage, next_v = (old_advantage, old_next) if self.corl else (new_advantage, new_next)
        self.weights = self.weight(advantage)
        actor_loss = -(self.weights * self.log_prob(batch, uniform)).mean()
        self.move("actor", actor_loss)
        if self.schedule is not None:
            self.schedule.step()
        y = batch["reward"] + self.gamma * (1 - batch["terminated"]) * next_v
        x = torch.cat([batch["obs"], self.inside(batch)[1]], 1)
        losses = [nn.functional.mse_loss(critic(x).squeeze(1), y) for critic in self.critics]
        critic_loss = sum(losses) / len(losses) if self.corl else sum(losses)
        self.move("critic", critic_loss)
        with torch.no_grad():
            for critic, target in zip(self.critics, self.targets, strict=True):
                for p, t in zip(critic.parameters(), target.parameters(), strict=True):
                    t.mul_(1 - self.tau).add_(self.tau * p)
        return {"value": value_loss.detach(), "actor": actor_loss.detach(), "critic": critic_loss.detach()}

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


def build(spec, steps=25, seed=0, **settings):
    """A ready learner for a run of few steps, so that the cosine shows."""
    settings = {"hidden": (16, 16), "batch_size": 32, **settings}
    run = Spec(spec.obs_dim, spec.action_dim, spec.max_action, steps=steps)
    return IQL(**settings).build(run, torch.Generator().manual_seed(seed)).ready()


def started(learner):
    """A state whose targets stand above the critic, so that weights are clipped, with unlike deviations."""
    state = learner.init(torch.float64)
    target = {k: 1.5 * p + (3.0 if k.endswith("2.bias") else 0.05) for k, p in state.tree["critic_target"].items()}
    log_std = torch.tensor([-0.5, 0.3], dtype=torch.float64)
    state = state.with_params("critic_target", target)
    return state.with_params("actor", {**state.tree["actor"], "log_std": log_std})


def hard(batches):
    """The batches with actions on and beyond their bounds, and uniform noise for dropout."""
    action = batches["train"]["action"].clone()
    action[0:4], action[4:8], action[8:10], action[10:12] = HIGH, -HIGH, 1.3 * HIGH, -1.3 * HIGH
    noise = {name: torch.special.erf(n / math.sqrt(2)) for name, n in batches["noise"].items()}
    return {**batches, "train": {**batches["train"], "action": action}, "noise": noise}


def uniform_of(batches):
    """The same noise on [0, 1); None where nothing is dropped."""
    noise = batches["noise"].get("dropout")
    return None if noise is None else (noise + 1) / 2


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("order", ["official", "corl"])
def test_twenty_steps_equal_the_textbook(spec, draw, apart, order, rate):
    learner = build(spec, order=order, dropout=rate, hidden=(16, 12))
    state = started(learner)
    first = state.tree
    book = Textbook(state.tree, corl=order == "corl", rate=rate, steps=25)
    clipped, ended = 0, torch.zeros(2)
    for step in range(1, 21):
        batches = hard(draw(learner, step))
        batch = batches["train"]
        state, metrics = learner.step(state, batches, learner.due(step))
        losses = book.train(batch, uniform_of(batches))
        for name, loss in losses.items():
            assert abs(metrics[f"{name}/loss"] - loss) < 1e-10 * abs(loss)
        assert apart(state.tree, book.tree()) < 1e-10
        clipped += (book.weights == 100).sum()
        ended += torch.stack([batch["terminated"].sum(), ((1 - batch["terminated"]) * batch["truncated"]).sum()])
    assert 20 < clipped < 400 and (ended > 20).all()
    assert all(not torch.equal(state.tree[g][k], p) for g, group in first.items() for k, p in group.items())
    assert book.schedule.get_last_lr()[0] < 0.1 * 3e-4
    for ours, theirs in (("mu", "exp_avg"), ("nu", "exp_avg_sq")):
        for group in ("value", "actor", "critic"):
            opt = state.opt[group].inner if group == "actor" else state.opt[group]
            assert apart(getattr(opt, ours), book.moments(group, theirs)) < 1e-10
            assert opt.count == 20
            assert {float(s["step"]) for s in book.optimizers[group].state.values()} == {20.0}
    assert state.opt["actor"].count == 20


@pytest.mark.parametrize(
    ("settings", "hand"),
    [
        ({"expectile": 0.9}, {"expectile": 0.9}),
        ({"beta": 0.5}, {"beta": 0.5}),
        ({"discount": 0.9}, {"gamma": 0.9}),
        ({"tau": 0.1}, {"tau": 0.1}),
        ({"dropout": 0.4}, {"rate": 0.4}),
        ({"log_std": (-0.2, 2.0)}, {"log_std": (-0.2, 2.0)}),
        ({"log_std": (-5.0, 0.1)}, {"log_std": (-5.0, 0.1)}),
        ({"order": "corl"}, {"corl": True}),
        ({"actor_decay": False}, {"steps": None}),
        ({"value_optimizer": adam(1e-2)}, {"lr": (1e-2, 3e-4, 3e-4)}),
        ({"actor_optimizer": adam(1e-2)}, {"lr": (3e-4, 1e-2, 3e-4)}),
        ({"critic_optimizer": adam(1e-2)}, {"lr": (3e-4, 3e-4, 1e-2)}),
    ],
    ids=lambda value: ",".join(value),
)
def test_every_setting_means_what_the_textbook_means(spec, draw, apart, settings, hand):
    learner = build(spec, **settings)
    state = started(learner)
    book, plain = Textbook(state.tree, **{"steps": 25, **hand}), Textbook(state.tree, steps=25)
    for step in range(1, 5):
        batches = hard(draw(learner, step))
        state, _ = learner.step(state, batches, learner.due(step))
        book.train(batches["train"], uniform_of(batches))
        plain.train(batches["train"])
    assert apart(state.tree, book.tree()) < 1e-10
    assert apart(state.tree, plain.tree()) > 1e-6


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_a_step_in_float32_stays_there(spec, draw, rate):
    learner = build(spec, dropout=rate)
    losses = {}
    for dtype in (torch.float32, torch.float64):
        batches = {k: {n: t.to(dtype) for n, t in group.items()} for k, group in hard(draw(learner)).items()}
        state = started(learner)
        tree = {group: {k: p.to(dtype) for k, p in params.items()} for group, params in state.tree.items()}
        state, metrics = learner.step(learner.state_of(tree), batches, learner.due(1))
        assert {p.dtype for group in state.tree.values() for p in group.values()} == {dtype}
        losses[dtype] = torch.stack([metrics[f"{name}/loss"] for name in ("value", "actor", "critic")])
        assert losses[dtype].dtype == dtype
    assert torch.allclose(losses[torch.float32].double(), losses[torch.float64], rtol=1e-4)


def test_the_policy_rests_once_its_rate_has_fallen_to_zero(spec, draw, apart):
    learner = build(spec, steps=3)
    state = started(learner)
    for step in range(1, 4):
        state, _ = learner.step(state, hard(draw(learner, step)), learner.due(step))
    after, _ = learner.step(state, hard(draw(learner, 4)), learner.due(4))
    assert apart(after.tree["actor"], state.tree["actor"]) == 0
    assert all(apart(after.tree[g], state.tree[g]) > 1e-6 for g in ("value", "critic", "critic_target"))
    assert learner.span == 3 and build(spec, actor_decay=False).span is None


def test_orthogonal_weights_have_norm_sqrt_two_and_no_bias(spec, apart):
    tree = build(spec, hidden=(16, 8)).init(torch.float64).tree
    for group in ("value", "actor", "critic"):
        for name, p in tree[group].items():
            if name.endswith("weight"):
                gram = p @ p.T if p.shape[0] < p.shape[1] else p.T @ p
                assert torch.allclose(gram, 2 * torch.eye(min(p.shape), dtype=torch.float64), atol=1e-5)
            else:
                assert (p == 0).all()  # biases and log_std
    assert apart(tree["critic"], tree["critic_target"]) == 0
    assert apart(tree, build(spec, hidden=(16, 8)).init(torch.float64).tree) == 0
    assert apart(tree, build(spec, hidden=(16, 8), seed=1).init(torch.float64).tree) > 0.1
    q1, q2 = (tree["critic"][f"{q}.layers.1.weight"] for q in ("q1", "q2"))
    assert apart(q1, q2) > 0.1


def test_default_initialisation_is_torchs(spec):
    tree = build(spec, initialization="default", hidden=(256, 256)).init(torch.float64).tree
    for group in ("value", "actor", "critic"):
        for name, p in tree[group].items():
            if name.endswith("weight"):
                bias, bound = tree[group][name.replace("weight", "bias")], 1 / math.sqrt(p.shape[0])
                assert 0.9 * bound < p.abs().max() <= bound and 0 < bias.abs().max() <= bound
                assert p.numel() < 1000 or abs(p.std() * math.sqrt(3) / bound - 1) < 0.1
    assert (tree["actor"]["log_std"] == 0).all()


def test_the_target_bootstraps_through_time_limits_and_stops_at_terminations(spec, draw):
    learner = build(spec)
    state, batches = started(learner), hard(draw(build(spec)))
    update, batch = learner.updates["critic"], batches["train"]

    def loss(terminated, truncated):
        n = len(batch["reward"])
        flags = {
            "terminated": torch.full((n,), terminated, dtype=torch.float64),
            "truncated": torch.full((n,), truncated, dtype=torch.float64),
        }
        return update.evaluate(state.tree, {**batches, "train": batch | flags})[0]

    assert loss(0.0, 1.0) == loss(0.0, 0.0) and loss(1.0, 1.0) == loss(1.0, 0.0)
    book = Textbook(state.tree)
    x = torch.cat([batch["obs"], book.inside(batch)[1]], 1)
    stopped = sum((critic(x).squeeze(1) - batch["reward"]).square().mean() for critic in book.critics)
    assert abs(loss(1.0, 0.0) - stopped) < 1e-10
    assert abs(loss(0.0, 0.0) - stopped) > 1e-3


def test_weights_and_targets_are_constants_to_the_gradient(spec, draw):
    learner = build(spec)
    tree, batches = started(learner).tree, hard(draw(learner))
    tree = {group: {k: p.clone().requires_grad_() for k, p in params.items()} for group, params in tree.items()}
    reached = {
        name: {
            group
            for group, params in tree.items()
            if any(
                g is not None
                for g in torch.autograd.grad(
                    learner.updates[name].evaluate(tree, batches)[0], list(params.values()), allow_unused=True
                )
            )
        }
        for name in ("actor", "critic")
    }
    assert reached == {"actor": {"actor"}, "critic": {"critic"}}


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_policy_terms_are_per_sample_and_add_up(spec, draw, rate):
    learner = build(spec, dropout=rate, hidden=(16, 12))
    state, batches = started(learner), hard(draw(learner))
    batch, noise, policy, n = batches["train"], batches["noise"], learner.policy, 32
    book = Textbook(state.tree, rate=rate)
    with torch.no_grad():
        advantage = book.advantage(batch)
        log_prob = book.log_prob(batch, uniform_of(batches))
        mean = torch.tanh(book.actor(batch["obs"], uniform_of(batches), rate)) * HIGH
        weights = {(): (3 * advantage).exp().clamp(max=100), ("no_beta",): advantage.exp().clamp(max=100)}
    assert not torch.allclose(weights[()], weights["no_beta",])
    assert (weights[()] == 100).any() and (weights[()] < 100).any()
    for form, weight in weights.items():
        terms = policy.terms(state.tree, batch, noise, form)
        assert terms.improvement.shape == terms.signal.shape == (n,)
        assert terms.constraint is None and terms.rest is None
        assert torch.allclose(terms.improvement, weight * log_prob, rtol=1e-10)
        assert torch.allclose(terms.signal, -log_prob, rtol=1e-10)
        assert torch.allclose(terms.metrics["weight"], weight.mean(), rtol=1e-10)
        assert torch.allclose(terms.metrics["log_prob"], log_prob.mean(), rtol=1e-10)
        base = -(weight * log_prob).mean()
        b = torch.linspace(0, 2, n, dtype=torch.float64)
        assert torch.allclose(policy.combine(terms, None), base, rtol=1e-10)
        assert torch.allclose(policy.combine(terms, 0.3), 0.3 * base, rtol=1e-10)
        assert torch.allclose(policy.combine(terms, b), -(b * weight * log_prob).mean(), rtol=1e-10)
        for one in (1.0, torch.ones_like(b)):
            assert torch.equal(policy.combine(terms, one), policy.combine(terms, None))
        assert torch.allclose(policy.imitation(state.tree, batch, noise, form), -log_prob.mean(), rtol=1e-10)
    loss, _ = learner.updates["actor"].evaluate(state.tree, batches)
    assert torch.equal(loss, policy.combine(policy.terms(state.tree, batch, noise), 1.0))
    squared = (mean - batch["action"]).square().mean()
    assert torch.allclose(policy.imitation(state.tree, batch, noise, ("mode",)), squared, rtol=1e-10)
    assert torch.allclose(policy.action(state.tree, batch["obs"], noise), mean, rtol=1e-10)
    assert policy.updates == ("actor",) and policy.signal == "standardized"


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_functions_of_the_state_are_the_networks_and_drop_nothing(spec, draw, rate):
    learner = build(spec, dropout=rate)
    state, batches = started(learner), hard(draw(learner))
    batch, policy, book = batches["train"], learner.policy, Textbook(state.tree)
    with torch.no_grad():
        x = torch.cat([batch["obs"], batch["action"]], 1)
        q = torch.min(book.critics[0](x), book.critics[1](x)).squeeze(1)
        v = book.value(batch["obs"]).squeeze(1)
        hidden = torch.relu(book.actor.layers[1](torch.relu(book.actor.layers[0](batch["obs"]))))
    for ours, theirs in (
        (policy.q(state.tree, batch["obs"], batch["action"]), q),
        (policy.v(state.tree, batch["obs"]), v),
        (policy.features(state.tree, batch["obs"]), hidden),
    ):
        assert ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-10)


def test_dropout_asks_for_uniform_noise_and_only_then(spec):
    learner = build(spec, dropout=0.1, hidden=(16, 12))
    noise = learner.noise["dropout"]
    assert (noise.whole_shape(learner.roles), noise.distribution) == ((32, 28), "uniform")
    assert learner.policy.noise == ("dropout",) and list(learner.noise) == ["dropout"]
    none = build(spec)
    assert none.noise == {} and none.policy.noise == ()


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_acting_is_the_mean_or_a_sample_cut_at_the_bounds(spec, draw, rate):
    learner = build(spec, dropout=rate)
    state, obs = started(learner), draw(build(spec))["train"]["obs"]
    book, n = Textbook(state.tree), len(obs)
    noise = torch.randn((n, 2), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        mean = torch.tanh(book.actor(obs))
        sample = mean + book.log_std.exp() * noise
    cut = (sample.abs() > 1).any(1).sum()
    assert 5 < cut < n
    for eps, deterministic, expected in (
        (noise, True, mean * HIGH),
        (None, False, mean * HIGH),
        (noise, False, sample.clamp(-1, 1) * HIGH),
    ):
        action, carry = learner.act(state.tree, obs, "kept", eps, deterministic)
        assert torch.allclose(action, expected, rtol=1e-10) and carry == "kept"
        assert (action.abs() <= HIGH).all()


OFFICIAL = {
    "discount": 0.99,
    "tau": 0.005,
    "dropout": 0.0,
    "order": "official",
    "log_std": (-5.0, 2.0),
    "hidden": (256, 256),
    "initialization": "orthogonal",
    "actor_decay": True,
    "batch_size": 256,
    "normalize": False,
    "rewards": Rewards(),
}
PUBLISHED = {
    None: {"expectile": 0.7, "beta": 3.0},
    "locomotion": {"expectile": 0.7, "beta": 3.0, "rewards": Rewards(return_range=True)},
    "adroit": {"expectile": 0.7, "beta": 0.5, "dropout": 0.1},
    "kitchen": {"expectile": 0.7, "beta": 0.5, "dropout": 0.1},
    "antmaze": {"expectile": 0.9, "beta": 10.0, "rewards": Rewards(shift=-1.0)},
    "corl": {
        "expectile": 0.7,
        "beta": 3.0,
        "order": "corl",
        "log_std": (-20.0, 2.0),
        "initialization": "default",
        "normalize": True,
    },
    "pex": {"expectile": 0.9, "beta": 10.0, "order": "corl", "initialization": "default"},
}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_presets_and_defaults_are_the_published_ones(preset):
    node = {"name": "iql"} if preset is None else {"name": "iql", "preset": preset}
    iql, _ = component("metarl.algorithms", node, "run.yaml", "algorithm")
    for name, value in {**OFFICIAL, **PUBLISHED[preset]}.items():
        assert getattr(iql, name) == value, name
    for optimizer in (iql.actor_optimizer, iql.critic_optimizer, iql.value_optimizer):
        assert (optimizer.name, optimizer.hparams["lr"], optimizer.hparams["eps"]) == ("adam", 3e-4, 1e-8)
    assert set(IQL.presets) == set(PUBLISHED) - {None}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"expectile": 0.0}, "expectile must lie between 0 and 1, not 0.0"),
        ({"expectile": 1.0}, "expectile must lie between 0 and 1, not 1.0"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, not 1.0"),
        ({"dropout": -0.1}, "dropout must be at least 0 and below 1, not -0.1"),
        ({"log_std": [2.0, -5.0]}, r"log_std must be a lower and a higher bound, not \[2.0, -5.0\]"),
        ({"log_std": [1.0]}, r"log_std must be a lower and a higher bound, not \[1.0\]"),
        ({"order": "backwards"}, "order"),
        ({"initialization": "zeros"}, "initialization"),
        ({"beta": "high"}, "beta"),
        ({"hidden": [16, 0]}, "hidden"),
        ({"batch_size": 0}, "batch_size"),
        ({"expectil": 0.7}, "expectile"),
        ({"preset": "antmase"}, "antmaze"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_bad_settings_are_refused_in_one_line(settings, said):
    with pytest.raises(ConfigError, match=said) as error:
        component("metarl.algorithms", {"name": "iql", **settings}, "run.yaml", "algorithm")
    assert str(error.value).startswith("run.yaml: ") and "\n" not in str(error.value)
