"""TD3+BC: Fujimoto & Gu 2021, "A Minimalist Approach to Offline Reinforcement Learning", arXiv:2106.06860.

    y    = r + gamma (1 - d) min_i Q'_i(s', clip(pi'(s') + clip(eps, -c, c), +-a_max)),   eps ~ N(0, sigma^2)
    L_Q  = mean (Q_1(s, a) - y)^2 + mean (Q_2(s, a) - y)^2
    L_pi = -lambda mean Q_1(s, pi(s)) + mean_{batch, dims} (pi(s) - a)^2,   lambda = alpha / mean |Q_1(s, pi(s))|

d is 1 at terminations only, never at time limits; lambda is a constant to the gradient. The critic moves in every
step, the policy and both targets in every second one: TD3's steps (algorithms/td3.py) with another L_pi. Where it is
trained online, it explores as TD3 does. Defaults are the paper's Table 3; `exploration` is TD3's.

Deviations from the official code (sfujim/TD3_BC): none in a step's maths. Targets move through
`target - tau (target - source)`, which equals the official convex combination to rounding; actions are bounded per
dimension, not by one number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torchopt.base import GradientTransformation

from algorithms import td3
from metarl import Learner, Rewards, Signal, Spec, Terms, adam, nn, option, stop_gradient
from metarl.bilevel import Batch, Tree


@dataclass(frozen=True)
class TD3BC:
    """TD3 with a behaviour-cloning term."""

    alpha: float = option(2.5, "weight of Q against cloning (the paper's alpha)")
    exploration: float = option(
        0.1, "deviation of the noise on actions while data are gathered, in units of the largest action", least=0
    )
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
        return td3.learner(self, spec, _Policy(actor, critic, self.alpha))


@dataclass(frozen=True)
class _Policy(td3.TD3Terms):
    """TD3+BC's terms. Forms: `literal` drops lambda (GORL's Eq. 2 as printed), `sum` adds L_pc over dimensions."""

    alpha: float
    forms: tuple[str, ...] = field(default=("literal", "sum"), kw_only=True)
    signal: Signal = field(default="raw", kw_only=True)

    name: ClassVar[str] = "td3_bc"

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
