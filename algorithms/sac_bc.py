"""SAC+BC: TD3+BC with SAC in the place of TD3 (GORL, Yang et al. 2023, arXiv:2309.01448, Eq. 11 and Table VIII).

    y    = r + gamma (1 - d) (min_i Q'_i(s', a') - t log pi(a'|s')),   a' ~ pi(.|s')
    L_Q  = mean (Q_1(s, a) - y)^2 + mean (Q_2(s, a) - y)^2
    L_pi = mean t log pi(a~|s) - lambda mean min_i Q_i(s, a~) + mean_{batch, dims} (a~ - a)^2,   a~ ~ pi(.|s)
    lambda = alpha / mean |min_i Q_i(s, a~)|

with the temperature t (Eq. 11's alpha), a~ reparameterised and lambda a constant to the gradient. pi is a Gaussian
squashed by tanh (Haarnoja et al. 2018, arXiv:1801.01290), its density that of actions in units of their bounds. d is 1
at terminations only. The critic moves in every step, the policy and the targets in every second one: SAC's steps
(algorithms/sac.py) with another L_pi. Defaults are Table VIII's.

No code was published. Readings of the paper:
- Eq. 11 calls its alpha a constant and Table VIII says "Alpha target 0.2": the temperature is 0.2 and fixed.
  `auto_temperature` learns it instead (Haarnoja et al. 2018b, arXiv:1812.05905, Eq. 18, with log alpha as usual in the
  place of its factor alpha), with `target_entropy` -|A| or a number such as 0.2.
- Table VIII's lambda of 2.5 is TD3+BC's alpha (here `alpha`): it scales Q by its mean magnitude, as there.
- Q is the lower of the two critics, as in SAC; targets follow whenever the policy moves, as in TD3+BC.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torchopt.base import GradientTransformation

from algorithms import sac
from metarl import Learner, Rewards, Signal, Spec, Terms, adam, nn, option, stop_gradient
from metarl.bilevel import Batch, Tree


@dataclass(frozen=True)
class SACBC:
    """SAC with a behaviour-cloning term."""

    alpha: float = option(2.5, "weight of Q against cloning (Table VIII's lambda)")
    temperature: float = option(0.2, "weight of the entropy (Eq. 11's alpha); where it is learned, its start")
    auto_temperature: bool = option(False, "learn the temperature")
    target_entropy: float | None = option(
        None, "that a learned temperature aims at; minus the action dimension if null"
    )
    discount: float = option(0.99, "gamma", least=0, most=1)
    tau: float = option(0.005, "rate at which targets follow", least=0, most=1)
    policy_every: int = option(2, "critic steps to one of the policy and the targets", least=1)
    hidden: tuple[int, ...] = option((256, 256), "widths of the hidden layers of policy and critics", least=1)
    actor_optimizer: GradientTransformation = option(
        factory=lambda: adam(lr=3e-4), help="of the policy, and of a learned temperature", group="metarl.optimizers"
    )
    critic_optimizer: GradientTransformation = option(
        factory=lambda: adam(lr=3e-4), help="of the critics", group="metarl.optimizers"
    )
    batch_size: int = option(256, "transitions in a batch", least=1)
    normalize: bool = option(True, "observations as (s - mean) / (std + 1e-3) of the training data")
    rewards: Rewards = option(factory=Rewards, help="what is made of the data's rewards")

    presets: ClassVar[Mapping[str, Mapping]] = {
        "locomotion": {"alpha": 2.5},  # GORL, Table VIII
        "adroit": {"alpha": 0.1},  # GORL, Table VIII
    }

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be positive and finite, not {self.temperature}")

    def build(self, spec: Spec, generator: torch.Generator) -> Learner:
        """The learner: groups `actor`, `critic`, its target, and `temperature` where it is learned."""
        actor = nn.TanhGaussianPolicy(spec.obs_dim, spec.action_dim, self.hidden, generator)
        critic = nn.TwinCritic(spec.obs_dim, spec.action_dim, self.hidden, generator)
        fixed = None if self.auto_temperature else self.temperature
        policy = _Policy(actor, critic, spec.max_action, fixed, self.alpha)
        return sac.learner(self, spec, policy, self.temperature, self.policy_every)


@dataclass(frozen=True)
class _Policy(sac.SACTerms):
    """SAC+BC's terms.

    Forms: `literal` drops lambda (Eq. 11 as printed), `sum` adds the squared errors over dimensions; for cloning alone,
    `entropy` adds the entropy term (Sec. III-C: "adding the maximizing entropy term to Equation (3), (4), (5)") and
    `mode` clones the mode in place of a sample.
    """

    alpha: float
    forms: tuple[str, ...] = field(default=("literal", "sum", "entropy", "mode"), kw_only=True)
    signal: Signal = field(default="raw", kw_only=True)

    name: ClassVar[str] = "sac_bc"

    def terms(self, tree: Tree, batch: Batch, noise: Mapping[str, Tensor], form: tuple[str, ...] = ()) -> Terms:
        action, log_prob = self.sample(tree, batch["obs"], noise["policy"])
        q = self.q(tree, batch["obs"], action)
        scale = 1.0 if "literal" in form else stop_gradient(self.alpha / q.abs().mean())
        constraint = _squared(action, batch["action"], form)
        metrics = {"q": q.mean(), "constraint": constraint.mean(), "entropy": -log_prob.mean()}
        return Terms(scale * q, constraint, self.temperature(tree) * log_prob, constraint, metrics)

    def combine(self, terms: Terms, degree: float | Tensor | None) -> Tensor:
        assert terms.rest is not None
        loss = terms.rest.mean() - terms.improvement.mean()
        if degree is None or terms.constraint is None:
            return loss
        return loss + (terms.constraint * degree).mean()

    def imitation(self, tree: Tree, batch: Batch, noise: Mapping[str, Tensor], form: tuple[str, ...] = ()) -> Tensor:
        if "mode" in form:
            action = self.act(tree, batch["obs"], None, None, True)[0]
            return _squared(action, batch["action"], form).mean()
        action, log_prob = self.sample(tree, batch["obs"], noise["policy"])
        loss = _squared(action, batch["action"], form).mean()
        return loss + self.temperature(tree) * log_prob.mean() if "entropy" in form else loss


def _squared(action: Tensor, data: Tensor, form: tuple[str, ...]) -> Tensor:
    squared = (action - data).square()
    return squared.sum(-1) if "sum" in form else squared.mean(-1)
