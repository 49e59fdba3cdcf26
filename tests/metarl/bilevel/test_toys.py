"""Five methods written down as the design reads, each against a derivation in plain torch.

If one of them took a detour through the engine, the engine's interfaces would be wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch.autograd import grad

from metarl import Learner, Polyak, Role, Terms, Unrolled, Update, adam, nn, sgd, stop_gradient

OBS, ACT = 3, 2
LR = 0.01


def normal(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def transitions(seed, n):
    g = torch.Generator().manual_seed(seed)
    return {
        "obs": normal(g, n, OBS),
        "action": normal(g, n, ACT).tanh(),
        "reward": normal(g, n),
        "next_obs": normal(g, n, OBS),
    }


def leaves(params):
    """A group as leaves of its own, for a derivation by hand."""
    return {name: value.detach().clone().requires_grad_() for name, value in params.items()}


def mlp(p, x, output=lambda y: y):
    """One hidden layer of tanh, from the very parameters that `nn.MLP` names."""
    hidden = torch.tanh(x @ p["layers.0.weight"] + p["layers.0.bias"])
    return output(hidden @ p["layers.1.weight"] + p["layers.1.bias"])


def grads_of(loss, params, **kwargs):
    return dict(zip(params, grad(loss, list(params.values()), **kwargs), strict=True))


def stepped(params, grads, lr):
    return {name: value - lr * grads[name] for name, value in params.items()}


def apply(live, params, grads):
    """One step of a live torch.optim optimiser along given gradients."""
    for name, value in params.items():
        value.grad = grads[name].detach().clone()
    live.step()
    live.zero_grad()


@dataclass(frozen=True)
class ToyPolicy:
    """Policy terms of a plain actor-critic: -Q, and the squared distance to the data's action."""

    actor: nn.MLP
    critic: nn.MLP
    updates: tuple[str, ...] = ("actor",)
    forms: tuple[str, ...] = ()

    def terms(self, tree, batch, noise, form=()):
        action = self.action(tree, batch["obs"], noise)
        constraint = (action - batch["action"]).square().mean(-1)
        return Terms(self.q(tree, batch["obs"], action), constraint, None, constraint)

    def combine(self, terms, degree):
        loss = -terms.improvement.mean()
        return loss if degree is None else loss + (degree * terms.constraint).mean()

    def imitation(self, tree, batch, noise, form=()):
        return (self.action(tree, batch["obs"], noise) - batch["action"]).square().mean()

    def action(self, tree, obs, noise):
        return nn.call(self.actor, tree["actor"], obs)

    def features(self, tree, obs):
        raise AssertionError("no toy calls this")

    def q(self, tree, obs, action):
        return nn.call(self.critic, tree["critic"], torch.cat((obs, action), -1)).squeeze(-1)

    def v(self, tree, obs):
        raise AssertionError("no toy calls this")


@pytest.fixture
def actor_critic():
    """A toy actor-critic: (critic) (actor), both Adam; the critic regresses on the reward."""
    g = torch.Generator().manual_seed(0)
    actor = nn.MLP([OBS, 6, ACT], g, "tanh", "tanh")
    critic = nn.MLP([OBS + ACT, 6, 1], g, "tanh")
    policy = ToyPolicy(actor, critic)

    def critic_loss(tree, batches):
        batch = batches["train"]
        return (policy.q(tree, batch["obs"], batch["action"]) - batch["reward"]).square().mean()

    def actor_loss(tree, batches):
        return policy.combine(policy.terms(tree, batches["train"], batches["noise"]), 1.0)

    return Learner(
        modules={"actor": actor, "critic": critic},
        stages=(
            (Update("critic", "critic", critic_loss, adam(LR)),),
            (Update("actor", "actor", actor_loss, adam(LR)),),
        ),
        act=lambda tree, obs, carry, noise, deterministic: (nn.call(actor, tree["actor"], obs), carry),
        roles={"train": Role("train", 12)},
        policy=policy,
    )


def hand_q(critic, obs, action):
    return mlp(critic, torch.cat((obs, action), -1)).squeeze(-1)


def hand_critic_step(live, critic, batch):
    loss = (hand_q(critic, batch["obs"], batch["action"]) - batch["reward"]).square().mean()
    apply(live, critic, grads_of(loss, critic))


# -- 1. GORL: the guiding network stands in a stage before the actor's ---------------------------------------


def attach_gorl(learner, virtual_lr):
    policy = learner.hooks("gorl")
    net = nn.MLP([1, 5, 1], torch.Generator().manual_seed(1), "tanh", "sigmoid")

    def policy_loss(tree, batches):
        terms = policy.terms(tree, batches["train"], batches["noise"])
        signal = stop_gradient(terms.signal)[:, None]
        return policy.combine(terms, nn.call(net, tree["guiding_network"], signal).squeeze(-1))

    def guide_loss(tree, batches):
        return policy.imitation(tree, batches["guide"], batches["noise"])

    guide = Update("guiding_network", "guiding_network", guide_loss, adam(0.1), Unrolled("actor", sgd(virtual_lr)))
    return (
        learner.with_modules(guiding_network=net)
        .with_roles(guide=Role("guide", 5))
        .with_policy_loss(policy_loss)
        .with_stage_before("actor", guide)
        .ready()
    )


def theorem_1(actor, critic, w, batch, guide, lr):
    """-(a_D / n_D) sum_k C_k dB_k/dw,  C_k = <mean guide gradient at theta_hat, grad L_pc,k at theta>."""
    action = mlp(actor, batch["obs"], torch.tanh)
    each = (action - batch["action"]).square().mean(-1)
    b = mlp(w, each.detach()[:, None], torch.sigmoid).squeeze(-1)
    loss = -hand_q(critic, batch["obs"], action).mean() + (b.detach() * each).mean()
    virtual = leaves(stepped(actor, grads_of(loss, actor, retain_graph=True), lr))
    outer = (mlp(virtual, guide["obs"], torch.tanh) - guide["action"]).square().mean()
    mean_guide = torch.cat([x.flatten() for x in grad(outer, list(virtual.values()))])
    total = {name: torch.zeros_like(value) for name, value in w.items()}
    for k in range(len(each)):
        own = torch.cat([x.flatten() for x in grad(each[k], list(actor.values()), retain_graph=True)])
        for name, db in grads_of(b[k], w, retain_graph=True).items():
            total[name] -= lr / len(each) * (mean_guide @ own) * db
    return outer.detach(), total


def test_gorl_actor_sees_the_new_weights_and_the_hypergradient_is_theorem_1(actor_critic, apart):
    lr = 0.05
    learner = attach_gorl(actor_critic, lr)
    state = learner.init(torch.float64)
    actor, critic, w = (leaves(state.tree[group]) for group in ("actor", "critic", "guiding_network"))
    lives = {
        "critic": torch.optim.Adam(critic.values(), LR),
        "actor": torch.optim.Adam(actor.values(), LR),
        "w": torch.optim.Adam(w.values(), 0.1),
    }
    for step in range(1, 4):
        batch, guide = transitions(step, 12), transitions(100 + step, 5)
        batches = {"train": batch, "guide": guide, "noise": {}}
        hand_critic_step(lives["critic"], critic, batch)
        outer, hypergradient = theorem_1(actor, critic, w, batch, guide, lr)
        before = state.with_params("critic", {k: v.detach() for k, v in critic.items()})
        update = learner.updates["guiding_network"]
        estimate = update.gradient(update, before, batches)
        assert apart(estimate.grads, hypergradient) < 1e-10
        apply(lives["w"], w, hypergradient)

        action = mlp(actor, batch["obs"], torch.tanh)
        each = (action - batch["action"]).square().mean(-1)
        b = mlp(w, each.detach()[:, None], torch.sigmoid).squeeze(-1)  # with the NEW w
        loss = -hand_q(critic, batch["obs"], action).mean() + (b * each).mean()
        apply(lives["actor"], actor, grads_of(loss, actor))

        state, metrics = learner.step(state, batches, learner.due(step))
        assert abs(metrics["guiding_network/loss"] - outer) < 1e-14
        assert abs(metrics["actor/loss"] - loss) < 1e-14
        assert apart(state.tree, {"actor": actor, "critic": critic, "guiding_network": w}) < 1e-11


# -- 2. GILD: the loss network stands beside the actor and both see the entry state ---------------------------


def attach_gild(learner, virtual_lr, contrast_weight=0.0):
    policy = learner.hooks("gild")
    net = nn.MLP([OBS + 2 * ACT, 7, 1], torch.Generator().manual_seed(2), "tanh", "softplus")

    def rl(tree, batches):
        return policy.combine(policy.terms(tree, batches["train"], batches["noise"]), None)

    def learned(tree, demo):
        x = torch.cat((policy.action(tree, demo["obs"], {}), demo["obs"], demo["action"]), -1)
        return nn.call(net, tree["loss_network"], x).mean()

    def policy_loss(tree, batches):
        return rl(tree, batches) + learned(tree, batches["demo"])

    def rl_il_loss(tree, batches):
        plain = rl(tree, batches) + policy.imitation(tree, batches["demo"], batches["noise"])
        return plain + contrast_weight * learned(tree, batches["demo"])

    def value(tree, obs):
        return policy.q(tree, obs, policy.action(tree, obs, {})).mean()

    def meta_loss(tree, batches, contrast):
        obs = batches["validation"]["obs"]
        return -torch.tanh(value(tree, obs) - value(contrast, obs))

    estimator = Unrolled("actor", sgd(virtual_lr), contrast="rl_il")
    return (
        learner.with_modules(loss_network=net)
        .with_roles(demo=Role("demo", 6), validation=Role("train", 9))
        .with_virtual(replace(learner.updates["actor"], name="rl_il", loss=rl_il_loss))
        .with_policy_loss(policy_loss)
        .with_update_beside(
            "actor",
            Update("loss_network", "loss_network", meta_loss, adam(0.1, weight_decay=1e-4), estimator),
        )
        .ready()
    )


@pytest.mark.parametrize("contrast_weight", [0.0, 0.5], ids=["rl_il", "contrast_holds_the_loss_network"])
def test_gild_real_step_uses_the_old_loss_network_and_the_contrast_is_constant(actor_critic, apart, contrast_weight):
    lr = 0.05
    learner = attach_gild(actor_critic, lr, contrast_weight)
    assert [[u.name for u in stage] for stage in learner.stages] == [["critic"], ["actor", "loss_network"]]
    state = learner.init(torch.float64)
    actor, critic, w = (leaves(state.tree[group]) for group in ("actor", "critic", "loss_network"))
    lives = {
        "critic": torch.optim.Adam(critic.values(), LR),
        "actor": torch.optim.Adam(actor.values(), LR),
        "w": torch.optim.Adam(w.values(), 0.1, weight_decay=1e-4),
    }
    for step in range(1, 5):
        batch, demo, held = transitions(step, 12), transitions(50 + step, 6), transitions(100 + step, 9)
        hand_critic_step(lives["critic"], critic, batch)

        def pi(p, obs):
            return mlp(p, obs, torch.tanh)

        def learned(p, demo=demo):
            x = torch.cat((pi(p, demo["obs"]), demo["obs"], demo["action"]), -1)
            return mlp(w, x, torch.nn.functional.softplus).mean()

        def value(p, obs=held["obs"]):
            return hand_q(critic, obs, pi(p, obs)).mean()

        rl = -hand_q(critic, batch["obs"], pi(actor, batch["obs"])).mean()
        bc = (pi(actor, demo["obs"]) - demo["action"]).square().mean()
        contrast = stepped(actor, grads_of(rl + bc + contrast_weight * learned(actor), actor, retain_graph=True), lr)
        loss = rl + learned(actor)
        shared = grads_of(loss, actor, create_graph=True)
        adapted = stepped(actor, shared, lr)
        meta = -torch.tanh(value(adapted) - value(contrast).detach())
        hypergradient = grads_of(meta, w)

        batches = {"train": batch, "demo": demo, "validation": held, "noise": {}}
        before = state.with_params("critic", {k: v.detach() for k, v in critic.items()})
        update = learner.updates["loss_network"]
        estimate = update.gradient(update, before, batches)
        assert apart(estimate.grads, hypergradient) < 1e-10
        assert apart(estimate.inner, adapted) < 1e-12

        apply(lives["actor"], actor, shared)  # Adam on the gradient with the OLD w
        apply(lives["w"], w, hypergradient)
        state, metrics = learner.step(state, batches, learner.due(step))
        assert abs(metrics["loss_network/loss"] - meta.detach()) < 1e-14
        assert abs(metrics["actor/loss"] - loss.detach()) < 1e-14
        assert apart(state.tree, {"actor": actor, "critic": critic, "loss_network": w}) < 1e-11
        assert apart(state.opt["actor"].nu, {k: lives["actor"].state[v]["exp_avg_sq"] for k, v in actor.items()}) < (
            1e-11
        )


# -- 3. CQL: the temperature first, then actor and critic both from the entry state ---------------------------


def cql_losses(policy_of, q_of, log_alpha_of):
    """The three losses of a small CQL(H), on any way of reading parameters."""

    def sample(tree, obs, eps):
        mean = policy_of(tree, obs)
        action = torch.tanh(mean + 0.3 * eps)
        log_prob = (-0.5 * eps.square() - torch.log(1 - action.square() + 1e-6)).sum(-1)
        return action, log_prob

    def alpha_loss(tree, batches):
        _, log_prob = sample(tree, batches["train"]["obs"], batches["noise"]["policy"])
        return -(log_alpha_of(tree) * (log_prob.detach() - ACT)).mean()

    def actor_loss(tree, batches):
        obs = batches["train"]["obs"]
        action, log_prob = sample(tree, obs, batches["noise"]["policy"])
        return (log_alpha_of(tree).exp().detach() * log_prob - q_of(tree, obs, action)).mean()

    def critic_loss(tree, batches):
        batch = batches["train"]
        next_action, _ = sample(tree, batch["next_obs"], batches["noise"]["target"])
        y = (batch["reward"] + 0.9 * q_of(tree, batch["next_obs"], next_action)).detach()
        q = q_of(tree, batch["obs"], batch["action"])
        pushed = q_of(tree, batch["obs"], batches["noise"]["uniform"])
        return (q - y).square().mean() + (torch.logaddexp(pushed, q) - q).mean()

    return alpha_loss, actor_loss, critic_loss


def hand_cql(state, all_batches, order):
    """A loop over torch.optim; `order` lists the groups of each joint step."""
    tree = {name: leaves(group) for name, group in state.tree.items()}
    live = {name: torch.optim.Adam(group.values(), LR) for name, group in tree.items()}
    losses = dict(
        zip(
            ("log_alpha", "actor", "critic"),
            cql_losses(
                lambda t, obs: mlp(t["actor"], obs),
                lambda t, obs, action: hand_q(t["critic"], obs, action),
                lambda t: t["log_alpha"]["value"],
            ),
            strict=True,
        )
    )
    for batches in all_batches:
        for together in order:
            grads = {group: grads_of(losses[group](tree, batches), tree[group]) for group in together}
            for group in together:
                apply(live[group], tree[group], grads[group])
    return tree


def test_cql_steps_alpha_first_then_actor_and_critic_from_the_entry_state(apart):
    g = torch.Generator().manual_seed(3)
    actor, critic = nn.MLP([OBS, 6, ACT], g, "tanh"), nn.MLP([OBS + ACT, 6, 1], g, "tanh")
    alpha_loss, actor_loss, critic_loss = cql_losses(
        lambda tree, obs: nn.call(actor, tree["actor"], obs),
        lambda tree, obs, a: nn.call(critic, tree["critic"], torch.cat((obs, a), -1)).squeeze(-1),
        lambda tree: tree["log_alpha"]["value"],
    )
    learner = Learner(
        modules={"actor": actor, "critic": critic},
        tensors={"log_alpha": {"value": torch.zeros(())}},
        stages=(
            (Update("log_alpha", "log_alpha", alpha_loss, adam(LR)),),
            (
                Update("actor", "actor", actor_loss, adam(LR)),
                Update("critic", "critic", critic_loss, adam(LR)),
            ),
        ),
        act=lambda tree, obs, carry, noise, deterministic: (nn.call(actor, tree["actor"], obs), carry),
        roles={"train": Role("train", 10)},
    ).ready()
    start = learner.init(torch.float64)
    all_batches = []
    for step in range(5):
        noise = {k: transitions(20 * step + i, 10)["action"] for i, k in enumerate(("policy", "target", "uniform"))}
        all_batches.append({"train": transitions(step, 10), "noise": noise})
    state = start
    for step, batches in enumerate(all_batches, start=1):
        state, _ = learner.step(state, batches, learner.due(step))
    assert apart(state.tree, hand_cql(start, all_batches, [["log_alpha"], ["actor", "critic"]])) < 1e-11
    for wrong in (
        [["log_alpha", "actor", "critic"]],
        [["log_alpha"], ["critic"], ["actor"]],
        [["log_alpha"], ["actor"], ["critic"]],
        [["actor", "critic"], ["log_alpha"]],
    ):  # the oracle tells the orders apart
        assert apart(state.tree, hand_cql(start, all_batches, wrong)) > 1e-6, wrong


# -- 4. POR: only Direct Updates, and an act of its own ------------------------------------------------------


def attach_por(learner):
    g = torch.Generator().manual_seed(4)
    value, guide = nn.MLP([OBS, 6, 1], g, "tanh"), nn.MLP([OBS, 6, OBS], g, "tanh")
    execute = nn.MLP([2 * OBS, 6, ACT], g, "tanh", "tanh")

    def residual(tree, batch):
        v_next = nn.call(value, tree["value_target"], batch["next_obs"]).squeeze(-1)
        return stop_gradient(batch["reward"] + 0.9 * v_next) - nn.call(value, tree["value"], batch["obs"]).squeeze(-1)

    def value_loss(tree, batches):
        u = residual(tree, batches["train"])
        return (torch.where(u < 0, 0.3, 0.7) * u.square()).mean()

    def guide_loss(tree, batches):
        batch = batches["train"]
        weight = stop_gradient(residual(tree, batch).exp().clamp_max(10.0))
        error = (nn.call(guide, tree["guide_policy"], batch["obs"]) - batch["next_obs"]).square().sum(-1)
        return (weight * error).mean()

    def execute_loss(tree, batches):
        batch = batches["train"]
        x = torch.cat((batch["obs"], batch["next_obs"]), -1)
        return (nn.call(execute, tree["execute_policy"], x) - batch["action"]).square().mean()

    def act(tree, obs, carry, noise, deterministic):
        towards = nn.call(guide, tree["guide_policy"], obs)
        return nn.call(execute, tree["execute_policy"], torch.cat((obs, towards), -1)), carry

    learner = learner.with_modules(value=value, guide_policy=guide, execute_policy=execute).with_roles(
        train=Role("train", 10)
    )
    stages = (
        (Update("value", "value", value_loss, adam(LR)),),
        (
            Update("guide_policy", "guide_policy", guide_loss, adam(LR)),
            Update("execute_policy", "execute_policy", execute_loss, adam(LR)),
        ),
        (Update("value_target", "value_target", None, sgd(0.005), Polyak("value")),),
    )
    return replace(learner, stages=(*learner.stages, *stages), act=act).ready()


def test_por_is_three_supervised_losses_and_an_act():
    def nothing(tree, obs, carry, noise, deterministic):
        raise AssertionError("no toy calls this")

    learner = attach_por(Learner(modules={}, stages=(), act=nothing))
    state = learner.init(torch.float64)
    names = ("value", "guide_policy", "execute_policy")
    hand = {name: leaves(state.tree[name]) for name in names}
    target = {k: v.clone() for k, v in state.tree["value"].items()}
    optimizer = adam(LR)
    opt = {name: optimizer.init(state.tree[name]) for name in names}

    def linear(p, x, output=lambda y: y):  # the very operations of nn.Linear: bitwise is asked for
        hidden = torch.tanh(torch.addmm(p["layers.0.bias"], x, p["layers.0.weight"]))
        return output(torch.addmm(p["layers.1.bias"], hidden, p["layers.1.weight"]))

    def move(name, loss):
        updates, opt[name] = optimizer.update(grads_of(loss, hand[name]), opt[name], params=hand[name], inplace=False)
        hand[name] = leaves({k: v.detach() + updates[k] for k, v in hand[name].items()})

    for step in range(1, 11):
        batch = transitions(step, 10)
        y = batch["reward"] + 0.9 * linear(target, batch["next_obs"]).squeeze(-1)
        u = y - linear(hand["value"], batch["obs"]).squeeze(-1)
        move("value", (torch.where(u < 0, 0.3, 0.7) * u.square()).mean())
        u = y - linear(hand["value"], batch["obs"]).squeeze(-1)  # the guide sees the new V
        error = (linear(hand["guide_policy"], batch["obs"]) - batch["next_obs"]).square().sum(-1)
        move("guide_policy", (u.exp().clamp_max(10.0).detach() * error).mean())
        x = torch.cat((batch["obs"], batch["next_obs"]), -1)
        move(
            "execute_policy",
            (linear(hand["execute_policy"], x, torch.tanh) - batch["action"]).square().mean(),
        )
        target = {k: t + -0.005 * (t - hand["value"][k].detach()) for k, t in target.items()}
        state, _ = learner.step(state, {"train": batch, "noise": {}}, learner.due(step))

    for name in names:
        for key, value in hand[name].items():
            assert torch.equal(state.tree[name][key], value), (name, key)
    for key, value in target.items():
        assert torch.equal(state.tree["value_target"][key], value), key
    obs = transitions(99, 4)["obs"]
    action, carry = learner.act(state.tree, obs, None, None, True)
    with torch.no_grad():
        towards = linear(hand["guide_policy"], obs)
        expected = linear(hand["execute_policy"], torch.cat((obs, towards), -1), torch.tanh)
    assert torch.equal(action, expected) and carry is None


# -- 5. a meta-learned learning rate: an optimiser that reads the tree ----------------------------------------


@pytest.mark.parametrize("first_order", [False, True])
def test_learned_learning_rate_has_its_closed_form(apart, first_order):
    g = torch.Generator().manual_seed(5)
    net = nn.MLP([OBS, 6, ACT], g, "tanh")

    def fit(tree, batches, role):
        batch = batches[role]
        return (nn.call(net, tree["net"], batch["obs"]) - batch["action"]).square().mean()

    learner = Learner(
        modules={"net": net},
        tensors={"rate": {"log_lr": torch.tensor(-2.0)}},
        stages=(
            (
                Update(
                    "rate",
                    "rate",
                    lambda tree, batches: fit(tree, batches, "validation"),
                    sgd(0.5),
                    Unrolled("net", first_order=first_order),
                ),
            ),
            (
                Update(
                    "net",
                    "net",
                    lambda tree, batches: fit(tree, batches, "train"),
                    lambda tree: sgd(tree["rate"]["log_lr"].exp()),
                ),
            ),
        ),
        act=lambda tree, obs, carry, noise, deterministic: (nn.call(net, tree["net"], obs), carry),
        roles={"train": Role("train", 8), "validation": Role("validation", 8)},
    ).ready()
    state = learner.init(torch.float64)
    for step in range(1, 4):
        batches = {"train": transitions(step, 8), "validation": transitions(50 + step, 8), "noise": {}}
        p = leaves(state.tree["net"])
        log_lr = state.tree["rate"]["log_lr"]
        inner = grads_of((mlp(p, batches["train"]["obs"]) - batches["train"]["action"]).square().mean(), p)
        moved = leaves(stepped(p, inner, log_lr.exp()))
        outer = grads_of(
            (mlp(moved, batches["validation"]["obs"]) - batches["validation"]["action"]).square().mean(),
            moved,
        )
        expected = -sum((outer[k] * inner[k]).sum() for k in p) * log_lr.exp()
        assert abs(expected) > 1e-4
        update = learner.updates["rate"]
        estimate = update.gradient(update, state, batches)
        assert abs(estimate.grads["log_lr"] - expected) < 1e-10 * abs(expected)

        state, _ = learner.step(state, batches, learner.due(step))
        new_log_lr = log_lr - 0.5 * expected
        assert apart(state.tree["rate"], {"log_lr": new_log_lr}) < 1e-12
        assert apart(state.tree["net"], {k: v.detach() for k, v in stepped(p, inner, new_log_lr.exp()).items()}) < (
            1e-12
        )
