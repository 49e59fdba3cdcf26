"""TD3: Fujimoto, van Hoof & Meger 2018, "Addressing Function Approximation Error in Actor-Critic Methods",
arXiv:1802.09477, Algorithm 1.

    y    = r + gamma (1 - d) min_i Q'_i(s', clip(pi'(s') + clip(eps, -c, c), +-a_max)),   eps ~ N(0, sigma^2)
           (Eqs. 10 and 14)
    L_Q  = mean (Q_1(s, a) - y)^2 + mean (Q_2(s, a) - y)^2
    L_pi = -mean Q_1(s, pi(s))
    a    = clip(pi(s) + exploration a_max eps, +-a_max),   eps ~ N(0, 1), while data are gathered

d is 1 at terminations only, never at time limits. The critics move in every step, the policy and then all targets in
every second one. Defaults are those of the authors' code (sfujim/TD3, main.py and TD3.py).

Deviations from that code: none in a step's maths. Targets move through `target - tau (target - source)`, which equals
its convex combination to rounding; actions are bounded per dimension, not by one number.
The paper's own networks have hidden layers of 400 and 300, learning rates of 1e-3 and batches of 100: settings here.
GILD's code (arXiv:2501.07346, slDeng1003/GILD; preset `gild`) has the defaults' numbers, but sigma is not scaled by
a_max there (1 in its environments), and its critics start by Xavier's rule, where these start as PyTorch's do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torchopt.base import GradientTransformation

from algorithms.ddpg import DDPGTerms, bounded, exploring
from metarl import (
    Learner,
    NoiseSpec,
    Polyak,
    Rewards,
    Role,
    Spec,
    Update,
    adam,
    nn,
    option,
    sgd,
    stop_gradient,
)
from metarl.bilevel import Batch, Batches, Metrics, Tree

if TYPE_CHECKING:
    from algorithms.td3_bc import TD3BC


@dataclass(frozen=True)
class TD3:
    """Twin delayed deep deterministic policy gradient."""

    exploration: float = option(
        0.1, "deviation of the noise on actions while data are gathered, in units of the largest action", least=0
    )
    discount: float = option(0.99, "gamma", least=0, most=1)
    tau: float = option(0.005, "rate at which targets follow", least=0, most=1)
    policy_noise: float = option(0.2, "sigma of target smoothing, in units of the largest action", least=0)
    noise_clip: float = option(0.5, "c of target smoothing, in units of the largest action", least=0)
    policy_every: int = option(2, "critic steps to one of the policy and the targets", least=1)
    hidden: tuple[int, ...] = option((256, 256), "widths of the hidden layers of policy and critics", least=1)
    actor_hidden: tuple[int, ...] | None = option(
        None, "widths of the policy's hidden layers; `hidden` if null", least=1
    )
    actor_optimizer: GradientTransformation = option(
        factory=lambda: adam(lr=3e-4), help="of the policy", group="metarl.optimizers"
    )
    critic_optimizer: GradientTransformation = option(
        factory=lambda: adam(lr=3e-4), help="of the critics", group="metarl.optimizers"
    )
    batch_size: int = option(256, "transitions in a batch", least=1)
    normalize: bool = option(False, "observations as (s - mean) / (std + 1e-3) of the training data")
    rewards: Rewards = option(factory=Rewards, help="what is made of the data's rewards")

    presets: ClassVar[Mapping[str, Mapping]] = {
        "gild": {"exploration": 0.1, "policy_noise": 0.2, "noise_clip": 0.5}  # the GILD authors' code
    }

    def build(self, spec: Spec, generator: torch.Generator) -> Learner:
        """The learner: groups `actor`, `critic` and their targets."""
        hidden = self.hidden if self.actor_hidden is None else self.actor_hidden
        actor = nn.DeterministicPolicy(spec.obs_dim, spec.max_action, hidden, generator)
        critic = nn.TwinCritic(spec.obs_dim, spec.action_dim, self.hidden, generator)
        return learner(self, spec, TD3Terms(actor, critic))


@dataclass(frozen=True)
class TD3Terms(DDPGTerms):
    """DDPG's terms by the first of two critics."""

    critic: nn.TwinCritic

    name: ClassVar[str] = "td3"

    def q(self, tree: Tree, obs: Tensor, action: Tensor) -> Tensor:
        # The second critic has no say in the policy.
        return nn.call(self.critic.q1, nn.part(tree["critic"], "q1."), torch.cat((obs, action), dim=-1)).squeeze(-1)


def learner(settings: TD3 | TD3BC, spec: Spec, policy: TD3Terms) -> Learner:
    """TD3's steps for a policy whose loss is made of `policy`'s terms: its critics, delay, targets and exploration."""
    actor, critic = policy.actor, policy.critic

    def critic_loss(tree: Tree, batches: Batches) -> tuple[Tensor, Metrics]:
        batch = batches["train"]
        y = stop_gradient(target(tree, batch, batches["noise"]["target_smoothing"]))
        q1, q2 = nn.call(critic, tree["critic"], batch["obs"], batch["action"])
        loss = (q1 - y).square().mean() + (q2 - y).square().mean()
        return loss, {"q": q1.mean(), "q_max": torch.maximum(q1, q2).max()}

    def target(tree: Tree, batch: Batch, eps: Tensor) -> Tensor:
        high = eps.new_tensor(spec.max_action)
        noise = (eps * settings.policy_noise).clamp(-settings.noise_clip, settings.noise_clip) * high
        next_action = bounded(nn.call(actor, tree["actor_target"], batch["next_obs"]) + noise, high)
        q1, q2 = nn.call(critic, tree["critic_target"], batch["next_obs"], next_action)
        return batch["reward"] + settings.discount * (1 - batch["terminated"]) * torch.minimum(q1, q2)

    def actor_loss(tree: Tree, batches: Batches) -> tuple[Tensor, Metrics]:
        terms = policy.terms(tree, batches["train"], batches["noise"])
        return policy.combine(terms, 1.0), terms.metrics

    every = settings.policy_every
    return Learner(
        modules={"actor": actor, "critic": critic},
        stages=(
            (Update("critic", "critic", critic_loss, settings.critic_optimizer),),
            (Update("actor", "actor", actor_loss, settings.actor_optimizer, every=every),),
            (
                Update("critic_target", "critic_target", None, sgd(settings.tau), Polyak("critic"), every=every),
                Update("actor_target", "actor_target", None, sgd(settings.tau), Polyak("actor"), every=every),
            ),
        ),
        act=exploring(actor, settings.exploration),
        roles={"train": Role("train", settings.batch_size)},
        noise={"target_smoothing": NoiseSpec((spec.action_dim,), role="train")},
        policy=policy,
        normalize=settings.normalize,
        rewards=settings.rewards,
    )
