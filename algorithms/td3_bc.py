"""TD3+BC: Fujimoto & Gu 2021, "A Minimalist Approach to Offline Reinforcement Learning", arXiv:2106.06860.

    y    = r + gamma (1 - d) min_i Q'_i(s', clip(pi'(s') + clip(eps, -c, c), +-a_max)),   eps ~ N(0, sigma^2)
    L_Q  = mean (Q_1(s, a) - y)^2 + mean (Q_2(s, a) - y)^2
    L_pi = -lambda mean Q_1(s, pi(s)) + mean_{batch, dims} (pi(s) - a)^2,   lambda = alpha / mean |Q_1(s, pi(s))|

d is 1 at terminations only, never at time limits; lambda is a constant to the gradient. The critic moves in every
step, the policy and both targets in every second one. Defaults are the paper's Table 3.

Deviations from the official code (sfujim/TD3_BC): none in a step's maths. Targets move through
`target - tau (target - source)`, which equals the official convex combination to rounding; actions are bounded per
dimension, not by one number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

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
    nn,
    option,
    sgd,
    stop_gradient,
)
from metarl.bilevel import Batch, Batches, Metrics, Tree
from metarl.errors import ConfigError


@dataclass(frozen=True)
class TD3BC:
    """TD3 with a behaviour-cloning term."""

    alpha: float = option(2.5, "weight of Q against cloning (the paper's alpha)")
    discount: float = option(0.99, "gamma", least=0, most=1)
    tau: float = option(0.005, "rate at which targets follow", least=0, most=1)
    policy_noise: float = option(0.2, "sigma of target smoothing, in units of the largest action", least=0)
    noise_clip: float = option(0.5, "c of target smoothing, in units of the largest action", least=0)
    policy_every: int = option(2, "critic steps to one of the policy and the targets", least=1)
    hidden: tuple[int, ...] = option((256, 256), "widths of the hidden layers of policy and critics", least=1)
    actor_optimizer: GradientTransformation = option(
        factory=lambda: adam(lr=3e-4), help="of the policy", group="metarl.optimizers"
    )
    critic_optimizer: GradientTransformation = option(
        factory=lambda: adam(lr=3e-4), help="of the critics", group="metarl.optimizers"
    )
    batch_size: int = option(256, "transitions in a batch", least=1)
    normalize: bool = option(True, "observations as (s - mean) / (std + 1e-3) of the training data")
    rewards: Rewards = option(factory=Rewards, help="what is made of the data's rewards")

    check_first: ClassVar[bool] = True  # `metarl check` attaches objectives to it, unless it is told another
    presets: ClassVar[Mapping[str, Mapping]] = {
        "locomotion": {"alpha": 2.5},  # TD3+BC, Table 3
        "adroit": {"alpha": 0.1},  # GORL (arXiv:2309.01448), Table VI
        # Normalisation: sfujim/TD3_BC, issue 2. Rewards: as IQL's and CORL's.
        "antmaze": {"alpha": 2.5, "normalize": False, "rewards": {"shift": -1.0}},
    }

    def build(self, spec: Spec, generator: torch.Generator) -> Learner:
        """The learner: groups `actor`, `critic` and their targets."""
        actor = nn.DeterministicPolicy(spec.obs_dim, spec.max_action, self.hidden, generator)
        critic = nn.TwinCritic(spec.obs_dim, spec.action_dim, self.hidden, generator)
        policy = _Policy(actor, critic, self.alpha)

        def critic_loss(tree: Tree, batches: Batches) -> tuple[Tensor, Metrics]:
            batch = batches["train"]
            y = stop_gradient(target(tree, batch, batches["noise"]["target_smoothing"]))
            q1, q2 = nn.call(critic, tree["critic"], batch["obs"], batch["action"])
            loss = (q1 - y).square().mean() + (q2 - y).square().mean()
            return loss, {"q": q1.mean(), "q_max": torch.maximum(q1, q2).max()}

        def target(tree: Tree, batch: Batch, eps: Tensor) -> Tensor:
            high = eps.new_tensor(spec.max_action)
            noise = (eps * self.policy_noise).clamp(-self.noise_clip, self.noise_clip) * high
            next_action = nn.call(actor, tree["actor_target"], batch["next_obs"]) + noise
            next_action = torch.minimum(torch.maximum(next_action, -high), high)
            q1, q2 = nn.call(critic, tree["critic_target"], batch["next_obs"], next_action)
            return batch["reward"] + self.discount * (1 - batch["terminated"]) * torch.minimum(q1, q2)

        def actor_loss(tree: Tree, batches: Batches) -> tuple[Tensor, Metrics]:
            terms = policy.terms(tree, batches["train"], batches["noise"])
            return policy.combine(terms, 1.0), terms.metrics

        every = self.policy_every
        return Learner(
            modules={"actor": actor, "critic": critic},
            stages=(
                (Update("critic", "critic", critic_loss, self.critic_optimizer),),
                (Update("actor", "actor", actor_loss, self.actor_optimizer, every=every),),
                (
                    Update("critic_target", "critic_target", None, sgd(self.tau), Polyak("critic"), every=every),
                    Update("actor_target", "actor_target", None, sgd(self.tau), Polyak("actor"), every=every),
                ),
            ),
            act=lambda tree, obs, carry, noise, deterministic: (nn.call(actor, tree["actor"], obs), carry),
            roles={"train": Role("train", self.batch_size)},
            noise={"target_smoothing": NoiseSpec((spec.action_dim,), role="train")},
            policy=policy,
            normalize=self.normalize,
            rewards=self.rewards,
        )


@dataclass(frozen=True)
class _Policy:
    """TD3+BC's terms. Forms: `literal` drops lambda (GORL's Eq. 2 as printed), `sum` adds L_pc over dimensions."""

    actor: nn.DeterministicPolicy
    critic: nn.TwinCritic
    alpha: float
    updates: tuple[str, ...] = ("actor",)
    forms: tuple[str, ...] = ("literal", "sum")
    noise: tuple[str, ...] = ()
    signal: Signal = "raw"

    def terms(self, tree: Tree, batch: Batch, noise: Mapping[str, Tensor], form: tuple[str, ...] = ()) -> Terms:
        action = self.action(tree, batch["obs"], noise)
        q = self.q(tree, batch["obs"], action)
        scale = 1.0 if "literal" in form else stop_gradient(self.alpha / q.abs().mean())
        squared = (action - batch["action"]).square()
        constraint = squared.sum(-1) if "sum" in form else squared.mean(-1)
        metrics = {"q": q.mean(), "constraint": constraint.mean()}
        return Terms(scale * q, constraint, None, constraint, metrics)

    def combine(self, terms: Terms, degree: float | Tensor | None) -> Tensor:
        loss = -terms.improvement.mean()
        if degree is None or terms.constraint is None:
            return loss
        return loss + (terms.constraint * degree).mean()

    def imitation(self, tree: Tree, batch: Batch, noise: Mapping[str, Tensor], form: tuple[str, ...] = ()) -> Tensor:
        squared = (self.action(tree, batch["obs"], noise) - batch["action"]).square()
        return (squared.sum(-1) if "sum" in form else squared.mean(-1)).mean()

    def action(self, tree: Tree, obs: Tensor, noise: Mapping[str, Tensor]) -> Tensor:
        return nn.call(self.actor, tree["actor"], obs)

    def features(self, tree: Tree, obs: Tensor) -> Tensor:
        return nn.features(self.actor.net, nn.part(tree["actor"], "net."), obs)

    def q(self, tree: Tree, obs: Tensor, action: Tensor) -> Tensor:
        # The second critic has no say in the policy.
        return nn.call(self.critic.q1, nn.part(tree["critic"], "q1."), torch.cat((obs, action), dim=-1)).squeeze(-1)

    def v(self, tree: Tree, obs: Tensor) -> Tensor:
        raise ConfigError("td3_bc learns no state-value function; choose an algorithm that does, such as iql")
