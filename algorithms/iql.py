"""IQL: Kostrikov, Nair & Levine 2022, "Offline Reinforcement Learning with Implicit Q-Learning", arXiv:2110.06169.

    L_V  = mean |tau - 1(u < 0)| u^2,   u = min_i Q'_i(s, a) - V(s)                                (Eq. 5)
    L_pi = -mean min(exp(beta (min_i Q'_i(s, a) - V(s))), 100) log pi(a|s)                         (Eq. 7)
    L_Q  = mean (Q_1(s, a) - y)^2 + mean (Q_2(s, a) - y)^2,   y = r + gamma (1 - d) V(s')          (Eq. 6)

pi is a Gaussian around tanh of a network with one deviation for all states, over actions in units of their bounds. d is
1 at terminations only. V moves first; the policy and Q then see the new V; the targets follow the new Q. The policy's
learning rate falls to zero over the steps on data by a cosine. Defaults are those of the authors' JAX code for
locomotion (ikostrikov/implicit_q_learning, configs/mujoco_config.py).

Deviations from that code: none in a step's maths, but for actions in units of their bounds (the code's are in +-1
throughout; the density differs by a constant). Targets move through `target - rate (target - source)`, which equals the
official convex combination to rounding. The range of returns comes from the episodes as recorded, where the code cuts
them at jumps of the observation.

`order: corl` is CORL's step (corl-team/CORL, algorithms/offline/iql.py): everything sees the V of before the step, and
L_Q is halved. Its bounds of log-std are -20 and 2. It takes the data's actions as they are, which are brought inside
+-(1 - 1e-5) here all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torchopt.base import GradientTransformation

from metarl import (
    Learner,
    NoiseSpec,
    Polyak,
    Rewards,
    Role,
    Signal,
    Spec,
    Terms,
    Update,
    adam,
    cosine_decay,
    nn,
    option,
    sgd,
    stop_gradient,
)
from metarl.bilevel import Batch, Batches, Metrics, Tree

CLIP = 100.0  # of exp(beta A)
INSIDE = 1 - 1e-5  # dataset actions are brought inside +- this, in units of their bounds


@dataclass(frozen=True)
class IQL:
    """Implicit Q-learning."""

    expectile: float = option(0.7, "tau of L_V: 0.5 is the mean, 1 the maximum")
    beta: float = option(3.0, "inverse temperature of the advantage weights")
    discount: float = option(0.99, "gamma", least=0, most=1)
    tau: float = option(0.005, "rate at which targets follow", least=0, most=1)
    dropout: float = option(0.0, "probability of dropping a hidden unit of the policy")
    order: Literal["official", "corl"] = option("official", "whether policy and Q see the new V, or CORL's old one")
    log_std: tuple[float, ...] = option((-5.0, 2.0), "bounds of the policy's logarithmic deviation")
    hidden: tuple[int, ...] = option((256, 256), "widths of the hidden layers of all networks", least=1)
    initialization: Literal["orthogonal", "default"] = option("orthogonal", "of all networks; default is PyTorch's")
    actor_optimizer: GradientTransformation = option(
        factory=lambda: adam(lr=3e-4), help="of the policy", group="metarl.optimizers"
    )
    actor_decay: bool = option(True, "let the policy's learning rate fall to 0 by a cosine over the steps on data")
    critic_optimizer: GradientTransformation = option(
        factory=lambda: adam(lr=3e-4), help="of Q", group="metarl.optimizers"
    )
    value_optimizer: GradientTransformation = option(
        factory=lambda: adam(lr=3e-4), help="of V", group="metarl.optimizers"
    )
    batch_size: int = option(256, "transitions in a batch", least=1)
    normalize: bool = option(False, "observations as (s - mean) / (std + 1e-3) of the training data")
    rewards: Rewards = option(factory=Rewards, help="what is made of the data's rewards")

    presets: ClassVar[Mapping[str, Mapping]] = {
        # configs/mujoco_config.py, kitchen_config.py and antmaze_config.py, with the rewards of train_offline.py.
        "locomotion": {"expectile": 0.7, "beta": 3.0, "rewards": {"return_range": True}},
        "adroit": {"expectile": 0.7, "beta": 0.5, "dropout": 0.1},
        "kitchen": {"expectile": 0.7, "beta": 0.5, "dropout": 0.1},
        "antmaze": {"expectile": 0.9, "beta": 10.0, "rewards": {"shift": -1.0}},
        # CORL's iql.py as its TrainConfig has it.
        "corl": {
            "order": "corl",
            "log_std": [-20.0, 2.0],
            "initialization": "default",
            "normalize": True,
        },
        # PEX's: the same step with half of L_Q, from the README of Haichao-Zhang/PEX; antmaze has rewards of shift -1.
        "pex": {"order": "corl", "initialization": "default", "expectile": 0.9, "beta": 10.0},
    }

    def __post_init__(self) -> None:
        if not 0 < self.expectile < 1:
            raise ValueError(f"expectile must lie between 0 and 1, not {self.expectile}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, not {self.dropout}")
        if len(self.log_std) != 2 or not self.log_std[0] < self.log_std[1]:
            raise ValueError(f"log_std must be a lower and a higher bound, not {list(self.log_std)}")

    def build(self, spec: Spec, generator: torch.Generator) -> Learner:
        """The learner: groups `value`, `actor`, `critic` and its target."""
        low, high = self.log_std
        start = self.initialization
        value = nn.MLP([spec.obs_dim, *self.hidden, 1], generator, initialization=start)
        actor = nn.GaussianPolicy(spec.obs_dim, spec.action_dim, self.hidden, generator, (low, high), start)
        critic = nn.TwinCritic(spec.obs_dim, spec.action_dim, self.hidden, generator, start)
        policy = _Policy(actor, critic, value, spec.max_action, self.beta, self.dropout, self.hidden)
        corl = self.order == "corl"

        def value_loss(tree: Tree, batches: Batches) -> tuple[Tensor, Metrics]:
            u = policy.advantage(tree, batches["train"])
            weight = (self.expectile - (u < 0).to(u.dtype)).abs()
            return (weight * u.square()).mean(), {"advantage": u.mean()}

        def critic_loss(tree: Tree, batches: Batches) -> tuple[Tensor, Metrics]:
            batch = batches["train"]
            next_v = policy.v(tree, batch["next_obs"])
            y = stop_gradient(batch["reward"] + self.discount * (1 - batch["terminated"]) * next_v)
            q1, q2 = nn.call(critic, tree["critic"], batch["obs"], policy.inside(batch["action"]))
            loss = (q1 - y).square().mean() + (q2 - y).square().mean()
            return loss / 2 if corl else loss, {"q": q1.mean(), "q_max": torch.maximum(q1, q2).max()}

        def actor_loss(tree: Tree, batches: Batches) -> tuple[Tensor, Metrics]:
            terms = policy.terms(tree, batches["train"], batches["noise"])
            return policy.combine(terms, 1.0), terms.metrics

        actor_optimizer, span = self.actor_optimizer, None
        if self.actor_decay and spec.offline != 0:  # on data; online is at the full rate, as in PEX's code
            span = spec.offline or spec.steps
            actor_optimizer = cosine_decay(actor_optimizer, span, after=1.0 if spec.offline else None)
        first = (Update("value", "value", value_loss, self.value_optimizer),)
        then = (
            Update("actor", "actor", actor_loss, actor_optimizer),
            Update("critic", "critic", critic_loss, self.critic_optimizer),
        )
        targets = (Update("critic_target", "critic_target", None, sgd(self.tau), Polyak("critic")),)
        return Learner(
            modules={"value": value, "actor": actor, "critic": critic},
            stages=((*first, *then), targets) if corl else (first, then, targets),
            act=policy.act,
            roles={"train": Role("train", self.batch_size)},
            noise={"dropout": NoiseSpec((sum(self.hidden),), distribution="uniform")} if self.dropout else {},
            policy=policy,
            normalize=self.normalize,
            rewards=self.rewards,
            span=span,
        )


@dataclass(frozen=True)
class _Policy:
    """IQL's terms: the degree weighs every sample's weighted log-likelihood.

    Forms: `no_beta` takes beta out of the exponent (GORL's Eq. 14); `mode` clones by the squared error of the mean.
    """

    actor: nn.GaussianPolicy
    critic: nn.TwinCritic
    value: nn.MLP
    max_action: tuple[float, ...]
    beta: float
    dropout: float
    hidden: tuple[int, ...]
    updates: tuple[str, ...] = ("actor",)
    forms: tuple[str, ...] = ("no_beta", "mode")
    signal: Signal = "standardized"
    noise: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "noise", ("dropout",) if self.dropout else ())

    def terms(self, tree: Tree, batch: Batch, noise: Mapping[str, Tensor], form: tuple[str, ...] = ()) -> Terms:
        beta = 1.0 if "no_beta" in form else self.beta
        weight = stop_gradient(torch.exp(beta * self.advantage(tree, batch)).clamp(max=CLIP))
        log_prob = self.log_prob(tree, batch, noise)
        metrics = {"log_prob": log_prob.mean(), "weight": weight.mean()}
        return Terms(weight * log_prob, None, None, -log_prob, metrics)

    def combine(self, terms: Terms, degree: float | Tensor | None) -> Tensor:
        return -(terms.improvement if degree is None else terms.improvement * degree).mean()

    def imitation(self, tree: Tree, batch: Batch, noise: Mapping[str, Tensor], form: tuple[str, ...] = ()) -> Tensor:
        if "mode" in form:
            return (self.action(tree, batch["obs"], noise) - batch["action"]).square().mean()
        return -self.log_prob(tree, batch, noise).mean()

    def advantage(self, tree: Tree, batch: Batch) -> Tensor:
        """min_i Q'_i(s, a) - V(s)."""
        q1, q2 = nn.call(self.critic, tree["critic_target"], batch["obs"], self.inside(batch["action"]))
        return torch.minimum(q1, q2) - self.v(tree, batch["obs"])

    def log_prob(self, tree: Tree, batch: Batch, noise: Mapping[str, Tensor]) -> Tensor:
        """log pi(a|s) of the batch's actions, in units of their bounds."""
        mean, log_std = nn.call(self.actor, tree["actor"], batch["obs"], self._masks(noise))
        action = self.inside(batch["action"]) / mean.new_tensor(self.max_action)
        return nn.normal_log_prob(action, mean, log_std)

    def inside(self, action: Tensor) -> Tensor:
        high = action.new_tensor(self.max_action) * INSIDE
        return torch.minimum(torch.maximum(action, -high), high)

    def _masks(self, noise: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        return nn.dropout_masks(noise["dropout"], self.dropout, self.hidden) if self.dropout else ()

    def action(self, tree: Tree, obs: Tensor, noise: Mapping[str, Tensor]) -> Tensor:
        mean, _ = nn.call(self.actor, tree["actor"], obs, self._masks(noise))
        return mean * mean.new_tensor(self.max_action)

    def act(
        self, tree: Tree, obs: Tensor, carry: None, noise: Tensor | None, deterministic: bool
    ) -> tuple[Tensor, None]:
        """The mean, or a sample by standard normal `noise`, cut at the bounds; nothing is dropped."""
        action, log_std = nn.call(self.actor, tree["actor"], obs)
        if not deterministic and noise is not None:
            action = (action + torch.exp(log_std) * noise).clamp(-1, 1)
        return action * action.new_tensor(self.max_action), carry

    def features(self, tree: Tree, obs: Tensor) -> Tensor:
        return nn.features(self.actor.net, nn.part(tree["actor"], "net."), obs)

    def q(self, tree: Tree, obs: Tensor, action: Tensor) -> Tensor:
        return torch.minimum(*nn.call(self.critic, tree["critic"], obs, action))

    def v(self, tree: Tree, obs: Tensor) -> Tensor:
        v: Tensor = nn.call(self.value, tree["value"], obs).squeeze(-1)
        return v
