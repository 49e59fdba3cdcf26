"""DDPG: Lillicrap et al. 2015, "Continuous control with deep reinforcement learning", arXiv:1509.02971, Algorithm 1.

    y    = r + gamma (1 - d) Q'(s', pi'(s'))
    L_Q  = mean (Q(s, a) - y)^2                                                                          (Eq. 4)
    L_pi = -mean Q(s, pi(s))                                                                             (Eq. 6)
    a    = clip(pi(s) + exploration a_max eps, +-a_max),   eps ~ N(0, 1), while data are gathered        (Eq. 7)

d is 1 at terminations only, never at time limits. Every step moves the critic, then the policy by the new critic, then
all targets. Defaults are those of the re-tuned DDPG of TD3's authors (sfujim/TD3, OurDDPG.py and main.py), which are
GILD's too (arXiv:2501.07346, slDeng1003/GILD): two hidden layers of 256, Adam at 3e-4, batches of 256, tau 0.005.

Deviations from that code: none in a step's maths. Targets move through `target - tau (target - source)`, which equals
its convex combination to rounding; actions are bounded per dimension, not by one number. Deviations from the paper
(its Sec. 7):
- exploration is white Gaussian noise, where the paper has an Ornstein-Uhlenbeck process;
- hidden layers of 400 and 300, learning rates of 1e-4 (policy) and 1e-3 (critic), tau 0.001 and batches of 64 are
  settings;
- the critic's weights do not decay (paper: 1e-2), nothing is batch-normalised, and the action enters the critic's first
  layer, where the paper's enters the second;
- networks start as PyTorch's do, where the paper's last layers start within +-3e-3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torchopt.base import GradientTransformation

from metarl import (
    Learner,
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
    refuse_degree,
    sgd,
    stop_gradient,
)
from metarl.bilevel import Batch, Batches, Metrics, Tree
from metarl.errors import ConfigError
from metarl.learner import Act


@dataclass(frozen=True)
class DDPG:
    """Deep deterministic policy gradient."""

    exploration: float = option(
        0.1, "deviation of the noise on actions while data are gathered, in units of the largest action", least=0
    )
    discount: float = option(0.99, "gamma", least=0, most=1)
    tau: float = option(0.005, "rate at which targets follow", least=0, most=1)
    hidden: tuple[int, ...] = option((256, 256), "widths of the hidden layers of policy and critic", least=1)
    actor_hidden: tuple[int, ...] | None = option(
        None, "widths of the policy's hidden layers; `hidden` if null", least=1
    )
    actor_optimizer: GradientTransformation = option(
        factory=lambda: adam(lr=3e-4), help="of the policy", group="metarl.optimizers"
    )
    critic_optimizer: GradientTransformation = option(
        factory=lambda: adam(lr=3e-4), help="of the critic", group="metarl.optimizers"
    )
    batch_size: int = option(256, "transitions in a batch", least=1)
    normalize: bool = option(False, "observations as (s - mean) / (std + 1e-3) of the training data")
    rewards: Rewards = option(factory=Rewards, help="what is made of the data's rewards")

    presets: ClassVar[Mapping[str, Mapping]] = {"gild": {"exploration": 0.1}}  # the GILD authors' code

    def build(self, spec: Spec, generator: torch.Generator) -> Learner:
        """The learner: groups `actor`, `critic` and their targets."""
        hidden = self.hidden if self.actor_hidden is None else self.actor_hidden
        actor = nn.DeterministicPolicy(spec.obs_dim, spec.max_action, hidden, generator)
        critic = nn.Critic(spec.obs_dim, spec.action_dim, self.hidden, generator)
        policy = DDPGTerms(actor, critic)

        def critic_loss(tree: Tree, batches: Batches) -> tuple[Tensor, Metrics]:
            batch = batches["train"]
            y = stop_gradient(target(tree, batch))
            q = nn.call(critic, tree["critic"], batch["obs"], batch["action"])
            return (q - y).square().mean(), {"q": q.mean(), "q_max": q.max()}

        def target(tree: Tree, batch: Batch) -> Tensor:
            next_action = nn.call(actor, tree["actor_target"], batch["next_obs"])
            q = nn.call(critic, tree["critic_target"], batch["next_obs"], next_action)
            return batch["reward"] + self.discount * (1 - batch["terminated"]) * q

        def actor_loss(tree: Tree, batches: Batches) -> tuple[Tensor, Metrics]:
            terms = policy.terms(tree, batches["train"], batches["noise"])
            return policy.combine(terms, 1.0), terms.metrics

        return Learner(
            modules={"actor": actor, "critic": critic},
            stages=(
                (Update("critic", "critic", critic_loss, self.critic_optimizer),),
                (Update("actor", "actor", actor_loss, self.actor_optimizer),),
                (
                    Update("critic_target", "critic_target", None, sgd(self.tau), Polyak("critic")),
                    Update("actor_target", "actor_target", None, sgd(self.tau), Polyak("actor")),
                ),
            ),
            act=exploring(actor, self.exploration),
            roles={"train": Role("train", self.batch_size)},
            policy=policy,
            normalize=self.normalize,
            rewards=self.rewards,
        )


def exploring(actor: nn.DeterministicPolicy, exploration: float) -> Act:
    """The policy's action; where asked to explore, with Gaussian noise on it, inside the bounds."""

    def act(tree: Tree, obs: Tensor, carry: None, noise: Tensor | None, deterministic: bool) -> tuple[Tensor, None]:
        action = nn.call(actor, tree["actor"], obs)
        if deterministic or noise is None:
            return action, carry
        high = obs.new_tensor(actor.max_action)
        return bounded(action + exploration * high * noise, high), carry

    return act


def bounded(action: Tensor, high: Tensor) -> Tensor:
    """Actions inside +-high, per dimension."""
    return torch.minimum(torch.maximum(action, -high), high)


@dataclass(frozen=True)
class DDPGTerms:
    """The terms of a deterministic policy that climbs Q; no constraint, so that a degree weighs nothing."""

    actor: nn.DeterministicPolicy
    critic: nn.Critic | nn.TwinCritic
    _: KW_ONLY
    updates: tuple[str, ...] = ("actor",)
    forms: tuple[str, ...] = ()
    noise: tuple[str, ...] = ()
    signal: Signal = "scaled"

    name: ClassVar[str] = "ddpg"

    def terms(self, tree: Tree, batch: Batch, noise: Mapping[str, Tensor], form: tuple[str, ...] = ()) -> Terms:
        q = self.q(tree, batch["obs"], self.action(tree, batch["obs"], noise))
        return Terms(q, None, None, q, {"q": q.mean()})

    def combine(self, terms: Terms, degree: float | Tensor | None) -> Tensor:
        refuse_degree(self.name, degree)
        return -terms.improvement.mean()

    def imitation(self, tree: Tree, batch: Batch, noise: Mapping[str, Tensor], form: tuple[str, ...] = ()) -> Tensor:
        """The mean squared error to the batch's actions (GILD's L_bc)."""
        return (self.action(tree, batch["obs"], noise) - batch["action"]).square().mean()

    def action(self, tree: Tree, obs: Tensor, noise: Mapping[str, Tensor]) -> Tensor:
        return nn.call(self.actor, tree["actor"], obs)

    def features(self, tree: Tree, obs: Tensor) -> Tensor:
        return nn.features(self.actor.net, nn.part(tree["actor"], "net."), obs)

    def q(self, tree: Tree, obs: Tensor, action: Tensor) -> Tensor:
        return nn.call(self.critic, tree["critic"], obs, action)

    def v(self, tree: Tree, obs: Tensor) -> Tensor:
        raise ConfigError(f"{self.name} learns no state-value function; choose an algorithm that does, such as iql")
