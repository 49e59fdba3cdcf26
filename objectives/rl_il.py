"""RL+IL: the RL loss and behaviour cloning of demonstrations, summed. The baseline that GILD is measured against.

    L(theta) = L_rl(theta; batch) + weight L_il(theta; demonstrations)

(Deng et al. 2025, arXiv:2501.07346, "vanilla RL + IL"; in its code the step that GILD's meta-loss compares with.)
L_il is the mean squared error of a deterministic policy, and minus the mean log-density of a stochastic one. On SAC
GILD's code takes the density of the Gaussian before tanh at the action itself, averaged over dimensions: its mode is
tanh(a), not a. That is the default; `density: base` is the log-density of the policy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from metarl import Learner, Role, Spec, noise_for, option
from metarl.bilevel import Batches, Metrics, Tree
from metarl.learned_loss import check_duration, duration, rl_loss


@dataclass(frozen=True)
class RLIL:
    """The RL loss plus behaviour cloning of demonstrations."""

    weight: float = option(1.0, "of the cloning loss", least=0)
    batch_size: int = option(256, "demonstrated transitions in a batch", least=1)
    warm_start: float | None = option(
        None, "gradient steps (or, below 1, share of the run's) after which the demonstrations are dropped"
    )
    density: Literal["gild", "base"] = option(
        "gild", "what cloning maximises on sac: the density of GILD's code, or the policy's own"
    )
    constraint: bool = option(True, "keep an offline algorithm's own tie to its data")

    def __post_init__(self) -> None:
        check_duration(self.warm_start, "warm_start")

    def attach(self, learner: Learner, spec: Spec, generator: torch.Generator) -> Learner:
        """The learner with another loss of its policy, and the role `demo`."""
        policy = learner.hooks("rl_il")
        form = ("gild",) if self.density == "gild" and "gild" in policy.forms else ()

        def loss(tree: Tree, batches: Batches) -> tuple[Tensor, Metrics]:
            rl, metrics = rl_loss(policy, tree, batches, constraint=self.constraint)
            il = policy.imitation(tree, batches["demo"], noise_for(batches, "demo"), form)
            return rl + self.weight * il, {**metrics, "imitation": il}

        learner, stop = duration(learner, self.warm_start, spec)
        return (
            learner.with_policy_loss(loss, stop)
            .with_roles(demo=Role("demo", self.batch_size, reader=policy.updates[-1]))
            .with_noise_for("demo")
        )
