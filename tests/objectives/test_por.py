"""POR against a textbook: modules, torch.optim with schedulers, torch's Gaussians, the authors' order of a step."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

from algorithms.bc import BC
from algorithms.iql import IQL
from algorithms.none import Nothing
from algorithms.td3_bc import TD3BC
from metarl import Rewards, adam
from metarl import nn as own_nn
from metarl.bilevel.compiling import has_compiler
from metarl.component import component
from metarl.errors import ConfigError
from metarl.training.stepping import Stepping, auto, stacked, unstacked
from objectives.fixed import Fixed
from objectives.por import POR

HIGH = torch.tensor([1.0, 0.5], dtype=torch.float64)
STEPS = 25  # of the run, so that the cosine shows within a few
BEHAVIOUR = 7
FORMS = ("residual", "v_guided")


class Net(nn.Module):
    """torch's Linear, LayerNorm where there is one, and ReLU, started from a group of the learner."""

    def __init__(self, params, prefix):
        super().__init__()
        self.prefix, self.depth = prefix, sum(k.startswith(f"{prefix}layers.") for k in params) // 2
        self.layers, self.norms = nn.ModuleList(), nn.ModuleList()
        for i in range(self.depth):
            weight, bias = (params[f"{prefix}layers.{i}.{k}"] for k in ("weight", "bias"))
            layer = nn.Linear(*weight.shape, dtype=torch.float64)
            layer.weight.data.copy_(weight.T)
            layer.bias.data.copy_(bias)
            self.layers.append(layer)
            if f"{prefix}norms.{i}.weight" in params:
                norm = nn.LayerNorm(len(bias), dtype=torch.float64)
                for k in ("weight", "bias"):
                    getattr(norm, k).data.copy_(params[f"{prefix}norms.{i}.{k}"])
                self.norms.append(norm)

    def forward(self, x):
        for i, layer in enumerate(self.layers[:-1]):
            x = layer(x)
            x = torch.relu(self.norms[i](x) if len(self.norms) else x)
        return self.layers[-1](x)

    def group(self, read=lambda p: p):
        """Values (or what `read` finds for them) under the learner's names, weights as [in, out]."""
        found = {}
        for kind, modules in (("layers", self.layers), ("norms", self.norms)):
            for i, module in enumerate(modules):
                for k in ("weight", "bias"):
                    value = read(getattr(module, k))
                    found[f"{self.prefix}{kind}.{i}.{k}"] = value.T if value.dim() == 2 else value
        return found


class Gaussian(nn.Module):
    """The authors' policy: no tanh, one logarithmic deviation for all states in [-5, 2]."""

    def __init__(self, params, bounds):
        super().__init__()
        self.net, self.bounds = Net(params, "net."), bounds
        self.log_std = nn.Parameter(params["log_std"].clone())

    def forward(self, x):
        return MultivariateNormal(self.net(x), scale_tril=torch.diag(self.log_std.clamp(*self.bounds).exp()))

    def group(self, read=lambda p: p):
        return self.net.group(read) | {"log_std": read(self.log_std)}


def sampled(distribution, noise):
    """`rsample` by given noise."""
    return distribution.loc + (distribution.scale_tril @ noise[..., None]).squeeze(-1)


class Twin(nn.Module):
    def __init__(self, params):
        super().__init__()
        self.v1, self.v2 = Net(params, "v1."), Net(params, "v2.")

    def both(self, x):
        return self.v1(x).squeeze(-1), self.v2(x).squeeze(-1)

    def forward(self, x):
        return torch.min(*self.both(x))

    def group(self, read=lambda p: p):
        return self.v1.group(read) | self.v2.group(read)


class Given(Net):
    """Another algorithm's V, which nothing here trains."""

    def __init__(self, params):
        super().__init__(params, "")

    def forward(self, x):
        return super().forward(x).squeeze(-1)


class Textbook:
    """One step as ryanxhr/POR takes it: the target by the old V', V, V' at once, then guide and execute policy."""

    def __init__(
        self,
        tree,
        form="residual",
        expectile=0.9,
        alpha=10.0,
        gamma=0.99,
        tau=0.005,
        log_std=(-5.0, 2.0),
        lr=(1e-4, 1e-4, 1e-4, 1e-4),
        steps=STEPS,
        decay=True,
        execute=True,
    ):
        self.form, self.expectile, self.alpha, self.gamma, self.tau = form, expectile, alpha, gamma, tau
        self.trains_execute = execute
        self.nets = {
            name: Gaussian(tree[name], log_std)
            for name in ("guide_policy", "execute_policy", "behaviour_guide")
            if name in tree
        }
        if "value_target" in tree:
            self.nets |= {"value": Twin(tree["value"]), "value_target": Twin(tree["value_target"])}
        rates = dict(zip(("value", "guide_policy", "execute_policy", "behaviour_guide"), lr, strict=True))
        self.optimizers = {
            name: torch.optim.Adam(self.nets[name].parameters(), rate)
            for name, rate in rates.items()
            if name in self.nets
        }
        self.schedules = {
            name: torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizers[name], steps)
            for name in ("guide_policy", "execute_policy")
            if decay
        }

    def pretrain(self, batch):
        loss = -self.nets["behaviour_guide"](batch["obs"]).log_prob(batch["next_obs"]).mean()
        return {"behaviour_guide": self.move("behaviour_guide", loss)}

    def train(self, batch, noise=None, v=None):
        """`v`: another algorithm's V, which is taken for V and V' alike."""
        losses = {}
        with torch.no_grad():
            next_v = (v or self.nets["value_target"])(batch["next_obs"])
        target = batch["reward"] + (1.0 - batch["terminated"]) * self.gamma * next_v
        if v is None:
            v = self.nets["value"]
            errors = [target - one for one in v.both(batch["obs"])]
            loss = sum(torch.mean(torch.abs(self.expectile - (u < 0).double()) * u**2) for u in errors) / 2
            losses["value"] = self.move("value", loss)
            with torch.no_grad():
                pairs = zip(self.nets["value_target"].parameters(), v.parameters(), strict=True)
                for slow, p in pairs:
                    slow.mul_(1 - self.tau).add_(p, alpha=self.tau)
        guide = self.nets["guide_policy"](batch["obs"])
        if self.form == "residual":
            advantage = target - v(batch["obs"])
            self.weights = torch.clamp_max(torch.exp(self.alpha * advantage), 100.0).detach()
            loss = torch.mean(self.weights * -guide.log_prob(batch["next_obs"]))
        else:
            aim = sampled(guide, noise)
            first = -v(aim)
            second = -self.nets["behaviour_guide"](batch["obs"]).log_prob(aim).mean()
            loss = torch.mean(self.alpha / first.abs().mean().detach() * first + second)
        losses["guide_policy"] = self.move("guide_policy", loss)
        if self.trains_execute:
            both = torch.concat([batch["obs"], batch["next_obs"]], dim=1)
            loss = torch.mean(-self.nets["execute_policy"](both).log_prob(batch["action"] / HIGH))
            losses["execute_policy"] = self.move("execute_policy", loss)
        return losses

    def move(self, name, loss):
        self.optimizers[name].zero_grad()
        loss.backward()
        self.optimizers[name].step()
        if name in self.schedules:
            self.schedules[name].step()
        return loss.detach()

    def tree(self):
        return {name: net.group() for name, net in self.nets.items()}

    def moments(self, name, key):
        return self.nets[name].group(lambda p: self.optimizers[name].state[p][key])


@pytest.fixture
def build(spec):
    """`build(**settings)`: a ready learner; `base` is the algorithm, `steps` those of the run."""

    def learner(seed=0, steps=STEPS, base=None, then=(), **settings):
        small = {"hidden": (16, 16), "execute_hidden": (16, 12), "batch_size": 32, "behaviour_steps": BEHAVIOUR}
        generator = torch.Generator().manual_seed(seed)
        run = replace(spec, steps=steps)
        made = (base or Nothing()).build(run, generator)
        for objective in (POR(**{**small, **settings}), *then):
            made = objective.attach(made, run, generator)
        return made.ready()

    return learner


def started(learner):
    """A state whose V' is not V, with unlike deviations; layer norms that do something."""
    state = learner.init(torch.float64)
    for i, group in enumerate(g for g in state.tree if "guide" in g or "policy" in g):
        p = state.tree[group]["log_std"]
        moved = torch.linspace(-0.4 + 0.1 * i, 0.2, len(p), dtype=torch.float64)
        state = state.with_params(group, {**state.tree[group], "log_std": moved})
    if "value_target" in state.tree:
        generator = torch.Generator().manual_seed(7)

        def shaken(group):
            return {
                k: p + 0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
                for k, p in state.tree[group].items()
            }

        target = {k: 1.2 * p + 0.02 for k, p in shaken("value_target").items()}
        state = state.with_params("value", shaken("value")).with_params("value_target", target)
    return state


CASES = {
    "residual": {},
    "residual-layer_norm": {"layer_norm": True, "expectile": 0.5, "alpha": 3.0},
    "v_guided": {"form": "v_guided", "expectile": 0.7, "alpha": 50.0},
    "v_guided-layer_norm": {"form": "v_guided", "layer_norm": True, "expectile": 0.7, "alpha": 5.0},
}


def hand(settings):
    """The settings that the textbook knows."""
    return {k: v for k, v in settings.items() if k != "layer_norm"}


@pytest.mark.parametrize("case", CASES)
def test_twenty_updates_equal_the_textbook(build, draw, apart, case):
    """Losses, parameters and both moments; v_guided goes over the end of the behaviour guide's phase."""
    settings = CASES[case]
    first = BEHAVIOUR if "form" in settings else 0
    learner = build(**settings)
    state = started(learner)
    start = state.tree
    assert any(k.startswith("v1.norms.1") for k in start["value"]) == settings.get("layer_norm", False)
    book = Textbook(start, steps=STEPS - first, **hand(settings))
    ended = clipped = 0
    for step in range(1, 21):
        batches = draw(learner, step)
        state, metrics = learner.step(state, batches, learner.due(step))
        noise = batches["noise"].get("guide")
        losses = book.pretrain(batches["train"]) if step <= first else book.train(batches["train"], noise)
        assert {f"{name}/loss" for name in losses} == {k for k in metrics if k.endswith("/loss")}
        for name, loss in losses.items():
            assert abs(metrics[f"{name}/loss"] - loss) < 1e-10 * abs(loss)
        assert apart(state.tree, book.tree()) < 1e-10
        ended += batches["train"]["terminated"].sum()
        clipped += (book.weights == 100).sum() if "form" not in settings else 0
    assert ended > 100 and ("form" in settings or 20 < clipped < 600)
    assert all(not torch.equal(state.tree[g][k], p) for g, group in start.items() for k, p in group.items())
    assert all(0 < s.get_last_lr()[0] < 0.5 * 1e-4 for s in book.schedules.values())
    for group, optimizer in book.optimizers.items():
        opt = state.opt[group].inner if group in book.schedules else state.opt[group]
        taken = first if group == "behaviour_guide" else 20 - first
        assert opt.count == taken and {float(s["step"]) for s in optimizer.state.values()} == {float(taken)}
        for ours, theirs in (("mu", "exp_avg"), ("nu", "exp_avg_sq")):
            assert apart(getattr(opt, ours), book.moments(group, theirs)) < 1e-10


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("settings", "book"),
    [
        ({"discount": 0.9}, {"gamma": 0.9}),
        ({"tau": 0.1}, {"tau": 0.1}),
        ({"log_std": (-0.2, 2.0)}, {"log_std": (-0.2, 2.0)}),
        ({"log_std": (-5.0, 0.0)}, {"log_std": (-5.0, 0.0)}),
        ({"decay": False}, {"decay": False}),
        ({"train_execute": False}, {"execute": False}),
        ({"value_optimizer": adam(1e-2)}, {"lr": (1e-2, 1e-4, 1e-4, 1e-4)}),
        ({"guide_optimizer": adam(1e-2)}, {"lr": (1e-4, 1e-2, 1e-4, 1e-4)}),
        ({"execute_optimizer": adam(1e-2)}, {"lr": (1e-4, 1e-4, 1e-2, 1e-4)}),
        ({"behaviour_optimizer": adam(1e-2)}, {"lr": (1e-4, 1e-4, 1e-4, 1e-2)}),
    ],
    ids=lambda value: ",".join(value),
)
def test_every_setting_means_what_the_textbook_means(build, draw, apart, form, settings, book):
    learner = build(form=form, behaviour_steps=2, **settings)
    state = started(learner)
    first = 2 if form == "v_guided" else 0
    hands = [Textbook(state.tree, form, steps=STEPS - first, **own) for own in (book, {})]
    for step in range(1, 6):
        batches = draw(learner, step)
        state, _ = learner.step(state, batches, learner.due(step))
        for one in hands:
            one.pretrain(batches["train"]) if step <= first else one.train(
                batches["train"], batches["noise"].get("guide")
            )
    assert apart(state.tree, hands[0].tree()) < 1e-10
    idle = "behaviour_optimizer" in settings and form == "residual"
    assert (apart(state.tree, hands[1].tree()) > 1e-7) != idle


# -- on IQL's value function ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_on_iqls_value_function(build, spec, draw, apart, form):
    """Guide and execute policy by IQL's V; its V and Q go their own way, bitwise; its policy is not there at all."""
    iql = IQL(hidden=(16, 16), batch_size=32)
    learner = build(base=iql, value="base", form=form)
    plain = iql.build(replace(spec, steps=STEPS), torch.Generator().manual_seed(0)).ready()
    state, alone = started(learner), plain.init(torch.float64)
    own = {"guide_policy", "execute_policy"} | ({"behaviour_guide"} if form == "v_guided" else set())
    assert set(state.tree) == {"value", "critic", "critic_target"} | own == set(state.opt) | {"value"}
    assert "actor" not in learner.updates and set(learner.roles) == {"train"} and learner.roles["train"].size == 32
    assert set(learner.noise) == ({"guide"} if form == "v_guided" else set())
    first = BEHAVIOUR if form == "v_guided" else 0
    book = Textbook(state.tree, form, steps=STEPS - first)
    for step in range(1, 21):
        batches = draw(learner, step)
        state, _ = learner.step(state, batches, learner.due(step))
        alone, _ = plain.step(alone, batches, plain.due(step))
        for group in ("value", "critic", "critic_target"):
            assert apart(state.tree[group], alone.tree[group]) == 0
            assert apart(state.opt[group], alone.opt[group]) == 0
        if step <= first:
            book.pretrain(batches["train"])
        else:
            book.train(batches["train"], batches["noise"].get("guide"), Given(alone.tree["value"]))
        assert apart({k: state.tree[k] for k in own}, book.tree()) < 1e-10
    names = [[u.name for u in stage] for stage in learner.stages]
    last = ["guide_policy", "execute_policy"]
    assert names == [["value"], ["critic"], ["critic_target"], *([["behaviour_guide"]] if first else []), last]
    assert learner.rewards == iql.rewards and learner.normalize == iql.normalize


# -- order, targets and constants ----------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_the_guide_sees_the_new_v_and_the_old_target(build, draw, apart, form):
    learner = build(form=form, tau=0.5, value_optimizer=adam(1e-2))
    names = [[u.name for u in stage] for stage in learner.stages]
    behaviour = [["behaviour_guide"]] if form == "v_guided" else []
    assert names == [*behaviour, ["value"], ["guide_policy", "execute_policy"], ["value_target"]]
    old, batches = started(learner), draw(learner)
    new, _ = learner.step(old, batches, learner.due(STEPS))
    guide = learner.updates["guide_policy"]

    def step(value, target):
        tree = {**old.tree, "value": value, "value_target": target}
        return guide.gradient(guide, old._replace(tree=tree), batches).grads

    found = new.opt["guide_policy"].inner.mu  # a tenth of the first gradient
    right = step(new.tree["value"], old.tree["value_target"])
    assert apart(found, {k: 0.1 * g for k, g in right.items()}) < 1e-12
    others = [step(old.tree["value"], old.tree["value_target"])]
    if form == "residual":  # the other form reads no V'
        others.append(step(new.tree["value"], new.tree["value_target"]))
    assert all(apart(other, right) > 1e-3 for other in others)
    halfway = {k: (p + new.tree["value"][k]) / 2 for k, p in old.tree["value_target"].items()}
    assert apart(new.tree["value_target"], halfway) < 1e-12


@pytest.mark.parametrize("form", FORMS)
def test_losses_reach_their_own_groups_only(build, draw, form):
    """Targets, weights and lambda are constants; V(g~) leads to V, too, which the guide's Update leaves alone."""
    learner = build(form=form)
    batches = draw(learner)
    tree = {g: {k: p.clone().requires_grad_() for k, p in ps.items()} for g, ps in started(learner).tree.items()}

    def reached(name):
        loss = learner.updates[name].evaluate(tree, batches)[0]
        return {
            group
            for group, params in tree.items()
            if any(
                g is not None
                for g in torch.autograd.grad(loss, [*params.values()], retain_graph=True, allow_unused=True)
            )
        }

    assert reached("value") == {"value"} and reached("execute_policy") == {"execute_policy"}
    if form == "residual":
        assert reached("guide_policy") == {"guide_policy"}
    else:
        assert reached("guide_policy") == {"guide_policy", "behaviour_guide", "value"}
        assert reached("behaviour_guide") == {"behaviour_guide"}


def test_lambda_is_a_constant(build, draw, apart):
    """Were it not, the gradient of alpha mean V / mean |V| would vanish wherever V has one sign."""
    learner = build(form="v_guided", alpha=2.0)
    state, batches = started(learner), draw(learner)
    v = dict(state.tree["value"])
    for i in (1, 2):
        v[f"v{i}.layers.2.bias"] = v[f"v{i}.layers.2.bias"] + 100.0
    state = state.with_params("value", v)
    book = Textbook(state.tree, "v_guided", alpha=2.0)
    nets = book.nets

    def gradient(detach):
        guide = nets["guide_policy"](batches["train"]["obs"])
        aim = sampled(guide, batches["noise"]["guide"])
        value = nets["value"](aim)
        assert (value > 0).all()
        scale = 2.0 / value.abs().mean()
        loss = -(scale.detach() if detach else scale) * value.mean()
        loss = loss - nets["behaviour_guide"](batches["train"]["obs"]).log_prob(aim).mean()
        parameters = [*nets["guide_policy"].parameters()]
        grads = dict(zip(parameters, torch.autograd.grad(loss, parameters), strict=True))
        return nets["guide_policy"].group(lambda p: grads[p])

    update = learner.updates["guide_policy"]
    found = update.gradient(update, state, batches)
    assert apart(found.grads, gradient(detach=True)) < 1e-10
    assert apart(found.grads, gradient(detach=False)) > 1e-5
    assert found.metrics["lambda"] * found.metrics["v"] == pytest.approx(2.0, rel=1e-12)


@pytest.mark.parametrize("shift", [50.0, -50.0])
def test_weights_are_clipped_at_100(build, draw, apart, shift):
    learner = build()
    state, batches = started(learner), draw(learner)
    batches["train"] = {**batches["train"], "reward": batches["train"]["reward"] + shift}
    terms = learner.policy.terms(state.tree, batches["train"], {})
    weight = terms.improvement / -terms.signal
    expected = 100.0 if shift > 0 else 0.0
    assert torch.allclose(weight, torch.full_like(weight, expected), rtol=1e-12, atol=1e-30)
    assert terms.metrics["weight"] == pytest.approx(expected, abs=1e-30)
    assert terms.constraint is None and terms.rest is None


@pytest.mark.parametrize("name", ["value", "guide_policy"])
def test_targets_bootstrap_through_time_limits_and_stop_at_terminations(build, draw, name):
    learner = build()
    state, batches = started(learner), draw(learner)
    batch, update = batches["train"], learner.updates[name]

    def loss(terminated, truncated, next_obs=None):
        flags = {"terminated": torch.full_like(batch["reward"], terminated)}
        flags |= {"truncated": torch.full_like(batch["reward"], truncated)}
        return update.evaluate(state.tree, {**batches, "train": batch | flags | (next_obs or {})})[0]

    assert loss(0.0, 1.0) == loss(0.0, 0.0) and loss(1.0, 1.0) == loss(1.0, 0.0)
    assert abs(loss(0.0, 0.0) - loss(1.0, 0.0)) > 1e-3
    if name == "value":
        elsewhere = {"next_obs": batch["next_obs"] + 1}
        assert loss(1.0, 0.0, elsewhere) == loss(1.0, 0.0) and loss(0.0, 0.0, elsewhere) != loss(0.0, 0.0)


def test_the_execute_policy_reads_state_next_state_and_action(build, draw):
    """In units of the bounds, and nothing of rewards, ends and V."""
    learner = build()
    state, batches = started(learner), draw(learner)
    batch, update = batches["train"], learner.updates["execute_policy"]
    net = Gaussian(state.tree["execute_policy"], (-5.0, 2.0))
    with torch.no_grad():
        pi = net(torch.cat((batch["obs"], batch["next_obs"]), 1))
    loss = update.evaluate(state.tree, batches)[0]
    assert abs(loss + pi.log_prob(batch["action"] / HIGH).mean()) < 1e-12
    blind = {k: torch.full_like(batch[k], torch.nan) for k in ("reward", "terminated", "truncated")}
    tree = {g: p for g, p in state.tree.items() if g == "execute_policy"}
    assert update.evaluate(tree, {"train": batch | blind})[0] == loss


# -- acting --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_acting_goes_towards_the_guides_mean(build, draw, form):
    learner = build(form=form)
    state, obs = started(learner), 30 * draw(learner)["train"]["obs"]
    guide, execute = (Gaussian(state.tree[f"{name}_policy"], (-5.0, 2.0)) for name in ("guide", "execute"))
    noise = torch.randn((len(obs), 2), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        pi = execute(torch.cat((obs, guide(obs).loc), 1))
        mean, sample = pi.loc, sampled(pi, noise)
    assert (mean.abs() > 1).any() and (sample.abs() > 1).sum() > (mean.abs() > 1).sum()
    for eps, deterministic, expected in (
        (noise, True, mean),
        (None, True, mean),
        (None, False, mean),
        (noise, False, sample),
    ):
        action, carry = learner.act(state.tree, obs, "kept", eps, deterministic)
        assert torch.allclose(action, expected.clamp(-1, 1) * HIGH, rtol=1e-10) and carry == "kept"
    assert torch.allclose(learner.policy.action(state.tree, obs, {}), mean.clamp(-1, 1) * HIGH, rtol=1e-10)


def test_without_an_objective_the_empty_learner_is_refused(spec):
    generator = torch.Generator().manual_seed(0)
    learner = Nothing().build(spec, generator)
    with pytest.raises(ConfigError, match="give an objective that brings a policy, such as por"):
        learner.act({}, torch.zeros(1, 3), None, None, True)


# -- the terms -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_policy_terms_are_per_sample_and_add_up(build, draw, form):
    learner = build(form=form, alpha=3.0)
    state, batches = started(learner), draw(learner)
    batch, noise, policy, n = batches["train"], batches["noise"], learner.policy, 32
    book = Textbook(state.tree, form, alpha=3.0)
    nets = book.nets
    with torch.no_grad():
        guide = nets["guide_policy"](batch["obs"])
        log_prob = guide.log_prob(batch["next_obs"])
        v = nets["value"](batch["obs"])
        y = batch["reward"] + 0.99 * (1 - batch["terminated"]) * nets["value_target"](batch["next_obs"])
        if form == "residual":
            improvement = (3 * (y - v)).exp().clamp(max=100) * log_prob
            constraint, signal = None, -log_prob
        else:
            aim = sampled(guide, noise["guide"])
            ahead = nets["value"](aim)
            improvement = 3.0 / ahead.abs().mean() * ahead
            constraint = signal = -nets["behaviour_guide"](batch["obs"]).log_prob(aim)
    terms = policy.terms(state.tree, batch, noise)
    assert terms.improvement.shape == terms.signal.shape == (n,) and terms.rest is None
    assert torch.allclose(terms.improvement, improvement, rtol=1e-10)
    assert torch.allclose(terms.signal, signal, rtol=1e-10)
    assert torch.allclose(policy.imitation(state.tree, batch, noise), -log_prob.mean(), rtol=1e-10)
    assert torch.allclose(policy.combine(terms, None), -improvement.mean(), rtol=1e-10)
    loss = learner.updates["guide_policy"].evaluate(state.tree, batches)[0]
    assert torch.equal(loss, policy.combine(terms, 1.0))
    if constraint is None:
        assert terms.constraint is None and torch.equal(policy.combine(terms, 1.0), policy.combine(terms, None))
    else:
        b = torch.linspace(0, 2, n, dtype=torch.float64)
        assert torch.allclose(terms.constraint, constraint, rtol=1e-10)
        assert torch.allclose(policy.combine(terms, b), (b * constraint - improvement).mean(), rtol=1e-10)
        assert torch.equal(policy.combine(terms, torch.ones_like(b)), policy.combine(terms, 1.0))
    assert (policy.updates, policy.forms, policy.signal) == (("guide_policy",), (), "standardized")
    assert torch.allclose(policy.v(state.tree, batch["obs"]), v, rtol=1e-10)
    hidden = batch["obs"]
    for layer in nets["guide_policy"].net.layers[:-1]:
        hidden = torch.relu(layer(hidden))
    assert torch.allclose(policy.features(state.tree, batch["obs"]), hidden, rtol=1e-10)
    with pytest.raises(ConfigError, match="por learns no action-value function"):
        policy.q(state.tree, batch["obs"], batch["action"])


# -- settings ------------------------------------------------------------------------------------------------


def test_the_behaviour_phase_is_a_number_of_steps_or_a_share(build):
    for settings, stop, span in (
        ({"behaviour_steps": 7}, 7, STEPS),
        ({"behaviour_steps": 0.4}, 10, STEPS),
        ({"behaviour_steps": 7, "decay": False}, 7, None),
        ({"behaviour_steps": 0.4, "decay": False}, 10, STEPS),  # a share depends on the run's length, too
    ):
        learner = build(form="v_guided", **settings)
        due = {name: [s for s in range(1, STEPS + 1) if name in learner.due(s)] for name in learner.updates}
        assert due.pop("behaviour_guide") == [*range(1, stop + 1)]
        assert all(steps == [*range(stop + 1, STEPS + 1)] for steps in due.values()) and len(due) == 4
        assert learner.span == span
    assert build().span == STEPS and build(decay=False).span is None
    assert build().noise == {} and "behaviour_guide" not in build().modules


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"base": TD3BC(hidden=(8,))}, "objective por: with value=own nothing of the algorithm would be used"),
        ({"base": IQL(hidden=(8,))}, "set algorithm: none, or value=base"),
        ({"base": TD3BC(hidden=(8,)), "value": "base"}, "td3_bc learns no state-value function"),
        ({"base": BC(hidden=(8,)), "value": "base"}, "por with value=base"),
        ({"value": "base"}, "por with value=base: this algorithm exposes no policy"),
        ({"form": "v_guided", "behaviour_steps": 25}, "behaviour_steps=25 leave none of the 25 steps on data"),
        ({"form": "v_guided", "behaviour_steps": 30}, "behaviour_steps=30 leave none"),
        ({"form": "v_guided", "behaviour_steps": 0.99}, "behaviour_steps=25 leave none"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:24],
)
def test_what_it_cannot_stand_on_is_refused(build, settings, words):
    with pytest.raises(ConfigError, match=words):
        build(**settings)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"expectile": 0.0}, "expectile must lie between 0 and 1, not 0"),
        ({"expectile": 1.0}, "expectile must lie between 0 and 1, not 1"),
        ({"log_std": [2.0, -5.0]}, "log_std must be a lower and a higher bound"),
        ({"log_std": [2.0]}, "log_std must be a lower and a higher bound"),
        ({"behaviour_steps": 0}, "behaviour_steps must be a share below 1 or a whole number"),
        ({"behaviour_steps": 2.5}, "behaviour_steps must be a share below 1 or a whole number"),
        ({"form": "guided"}, "form"),
        ({"discount": 1.5}, "discount"),
        ({"batch_size": 0}, "batch_size"),
        ({"expectil": 0.5}, "Did you mean 'expectile'?"),
    ],
    ids=str,
)
def test_bad_settings_name_their_key(setting, words):
    with pytest.raises(ConfigError) as told:
        component("metarl.objectives", {"name": "por", **setting}, "test.yaml", "objective")
    assert words in str(told.value) and str(told.value).startswith("test.yaml: ")


def test_the_residual_form_refuses_a_degree_before_the_first_step(build, draw):
    learner = build(then=(Fixed(0.5),))
    with pytest.raises(ConfigError, match="form=residual has no constraint to weigh; set form: v_guided"):
        learner.check(learner.init(torch.float64), draw(learner))
    whole = build(then=(Fixed(1.0),))
    whole.check(whole.init(torch.float64), draw(whole))


OFFICIAL = {
    "form": "residual",
    "expectile": 0.9,
    "alpha": 10.0,
    "value": "own",
    "layer_norm": False,
    "hidden": (256, 256),
    "execute_hidden": (1024, 1024),
    "log_std": (-5.0, 2.0),
    "discount": 0.99,
    "tau": 0.005,
    "behaviour_steps": 0.5,
    "value_optimizer": 1e-4,
    "guide_optimizer": 1e-4,
    "execute_optimizer": 1e-4,
    "behaviour_optimizer": 1e-4,
    "decay": True,
    "train_execute": True,
    "batch_size": 256,
    "rewards": None,
}
POLICY_LR = {"guide_optimizer": 1e-3, "execute_optimizer": 1e-3}
SCRIPTS = {  # run_antmaze_por.sh and run_mujoco_por.sh line by line; rewards of main_por.py
    "antmaze": {"rewards": Rewards(shift=-1.0)},
    "antmaze_umaze": {"rewards": Rewards(shift=-1.0), **POLICY_LR},
    "locomotion": {
        "expectile": 0.5,
        "alpha": 3.0,
        "layer_norm": True,
        "rewards": Rewards(return_range=True),
        **POLICY_LR,
    },
    "hopper": {
        "form": "v_guided",
        "expectile": 0.7,
        "alpha": 50.0,
        "rewards": Rewards(return_range=True),
        **POLICY_LR,
    },
    "hopper_medium_expert": {
        "form": "v_guided",
        "expectile": 0.7,
        "alpha": 5.0,
        "layer_norm": True,
        "rewards": Rewards(return_range=True),
        **POLICY_LR,
    },
}


def read(built):
    """Settings, optimisers by their rate."""
    found = {f.name: getattr(built, f.name) for f in fields(POR)}
    for name, value in found.items():
        if name.endswith("_optimizer"):
            assert value.name == "adam" and {**value.hparams, "lr": 0} == {**adam(0.0).hparams, "lr": 0}
            found[name] = value.hparams["lr"]
    return found


def test_defaults_and_presets_are_the_authors(spec):
    assert read(POR()) == OFFICIAL
    assert set(POR.presets) == set(SCRIPTS)
    for preset, changed in SCRIPTS.items():
        built, _ = component("metarl.objectives", {"name": "por", "preset": preset}, "test.yaml", "objective")
        assert read(built) == OFFICIAL | changed
        generator = torch.Generator().manual_seed(0)
        learner = built.attach(Nothing().build(spec, generator), spec, generator).ready()
        assert learner.rewards == changed["rewards"] and learner.normalize is False
        assert learner.roles["train"].size == 256
        shapes = {k: list(p.shape) for k, p in learner.init().tree["execute_policy"].items() if k.endswith("weight")}
        assert [*shapes.values()] == [[6, 1024], [1024, 1024], [1024, 2]]
    assert all(f.metadata["help"] for f in fields(POR))


def test_rewards_and_normalisation_are_the_algorithms_unless_given(build):
    mine, theirs = Rewards(shift=-1.0), Rewards(scale=2.0)
    for given, expected in ((None, theirs), (mine, mine)):
        assert build(base=Nothing(normalize=True, rewards=theirs), rewards=given).rewards == expected
    assert build(base=Nothing(normalize=True)).normalize is True and build().normalize is False


# -- networks ------------------------------------------------------------------------------------------------


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def shaken(module):
    """Its parameters, off their start so that no scale is 1 and no bias 0."""
    return {
        k: p.detach() + 0.3 * normal(*p.shape, seed=i) for i, (k, p) in enumerate(module.double().named_parameters())
    }


@pytest.mark.parametrize("sizes", [(3, 8, 1), (3, 8, 6, 2)])
def test_layer_norm_is_torchs_before_each_activation(apart, sizes):
    net = own_nn.MLP(sizes, generator(), layer_norm=True)
    start = dict(net.named_parameters())
    assert all((start[f"norms.{i}.weight"] == 1).all() for i in range(len(sizes) - 2))
    assert all((start[f"norms.{i}.bias"] == 0).all() for i in range(len(sizes) - 2))
    plain = dict(own_nn.MLP(sizes, generator()).named_parameters())
    assert {k for k in start if "norms" not in k} == set(plain)  # norms draw no numbers
    assert all(torch.equal(start[k], p) for k, p in plain.items())
    params, x = shaken(net), normal(20, sizes[0], seed=9)
    params = {k: p.requires_grad_() for k, p in params.items()}
    stack = []
    for i in range(len(sizes) - 1):
        layer = nn.Linear(sizes[i], sizes[i + 1], dtype=torch.float64)
        layer.weight.data.copy_(params[f"layers.{i}.weight"].T)
        layer.bias.data.copy_(params[f"layers.{i}.bias"])
        stack.append(layer)
        if i < len(sizes) - 2:
            norm = nn.LayerNorm(sizes[i + 1], dtype=torch.float64)
            norm.weight.data.copy_(params[f"norms.{i}.weight"])
            norm.bias.data.copy_(params[f"norms.{i}.bias"])
            stack += [norm, nn.ReLU()]
    theirs = nn.Sequential(*stack)
    ours, expected = own_nn.call(net, params, x), theirs(x)
    assert apart(ours, expected) < 1e-12
    grads = dict(zip(params, torch.autograd.grad(ours.square().sum(), [*params.values()]), strict=True))
    expected.square().sum().backward()
    assert apart(grads["layers.0.weight"], theirs[0].weight.grad.T) < 1e-10
    assert apart(grads["norms.0.weight"], theirs[1].weight.grad) < 1e-10
    assert apart(grads["norms.0.bias"], theirs[1].bias.grad) < 1e-10


@pytest.mark.parametrize("layer_norm", [False, True])
def test_twin_value_holds_two_independent_values(apart, layer_norm):
    net = own_nn.TwinValue(3, (8, 6), generator(), layer_norm)
    params, obs = shaken(net), normal(20, 3, seed=9)
    v1, v2 = own_nn.call(net, params, obs)
    assert v1.shape == v2.shape == (20,) and not torch.allclose(v1, v2)
    for value, prefix in ((v1, "v1."), (v2, "v2.")):
        assert apart(value, Net(params, prefix)(obs).squeeze(-1)) < 1e-12
        assert any(k.startswith(f"{prefix}norms") for k in params) == layer_norm
    first = {**params, **{k: p + 1 for k, p in params.items() if k.startswith("v1.")}}
    other, same = own_nn.call(net, first, obs)
    assert torch.equal(same, v2) and not torch.allclose(other, v1)


def test_an_unsquashed_policy_has_the_network_itself_as_its_mean():
    bare, squashed = (own_nn.GaussianPolicy(3, 2, (8,), generator(), squashed=s).double() for s in (False, True))
    params, obs = shaken(bare), 20 * normal(50, 3, seed=9)
    mean, log_std = own_nn.call(bare, params, obs)
    assert torch.allclose(mean, Net(params, "net.")(obs), rtol=1e-12) and mean.abs().max() > 2
    assert torch.allclose(torch.tanh(mean), own_nn.call(squashed, params, obs)[0], rtol=1e-12)
    assert log_std.shape == (2,)


def test_networks_with_layer_norm_stack_as_each_in_turn():
    nets = [own_nn.TwinValue(3, (8, 6), generator(seed), True) for seed in range(3)]
    params = [shaken(net) for net in nets]
    together, obs = {k: torch.stack([p[k] for p in params]) for k in params[0]}, normal(3, 20, 3, seed=9)
    both = torch.vmap(lambda p, x: own_nn.call(nets[0], p, x))(together, obs)
    for i in range(3):
        for ours, theirs in zip(both, own_nn.call(nets[0], params[i], obs[i]), strict=True):
            assert torch.allclose(ours[i], theirs, rtol=1e-10, atol=1e-12)


# -- ways to run ---------------------------------------------------------------------------------------------


COMPILED = pytest.param(
    "compiled",
    marks=[
        pytest.mark.slow,
        pytest.mark.skipif(not has_compiler(), reason="needs a C++ compiler"),
        pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
    ],
)


@pytest.mark.parametrize("mode", ["eager", "recorded", COMPILED])
@pytest.mark.parametrize("case", ["residual", "v_guided-layer_norm"])
def test_eager_recorded_and_compiled_steps_agree(build, draw, apart, case, mode):
    """Over the end of the behaviour guide's phase; against the pure function."""
    learner = build(**CASES[case], value_optimizer=adam(1e-3), guide_optimizer=adam(1e-3))
    start = started(learner)
    stepping, state = Stepping(learner, start, mode), start
    for step in range(1, STEPS + 1):
        batches, due = draw(learner, step), learner.due(step)
        metrics = stepping(batches, due)
        state, expected = learner.step(state, batches, due)
        assert apart(metrics, expected) < 1e-9
    assert apart(stepping.state.tree, state.tree) < 1e-10
    assert apart(stepping.state.opt, state.opt) < 1e-10


@pytest.mark.parametrize("mode", ["eager", "recorded", COMPILED])
@pytest.mark.parametrize("case", ["residual-layer_norm", "v_guided", "base"])
def test_stacked_seeds_equal_seeds_alone(build, draw, apart, case, mode):
    settings = {"base": IQL(hidden=(16, 16), batch_size=32), "value": "base"} if case == "base" else CASES[case]
    learners = [build(seed, **settings) for seed in (0, 1)]
    starts = [started(learner) for learner in learners]
    alone, both = starts, Stepping(learners[0], stacked(starts), mode, 2)
    for step in range(1, 13):
        batches, due = [draw(learners[0], 10 * step + seed) for seed in (0, 1)], learners[0].due(step)
        both(stacked(batches), due)
        alone = [learners[0].step(s, own, due)[0] for s, own in zip(alone, batches, strict=True)]
    for seed, state in enumerate(alone):
        assert apart(unstacked(both.state.tree, seed), state.tree) < 1e-10
        assert apart(state.tree["guide_policy"], starts[seed].tree["guide_policy"]) > 1e-4


def test_auto_prepares_both_phases(build):
    learner = build(form="v_guided", steps=1000, behaviour_steps=0.4)
    late = frozenset({"value", "guide_policy", "execute_policy", "value_target"})
    assert auto(learner, 1000) == {frozenset({"behaviour_guide"}): "recorded", late: "recorded"}
