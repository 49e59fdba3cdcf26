"""Behaviour cloning with a deterministic policy.

    L(pi) = mean_{batch, dims} (pi(s) - a)^2

Settings follow CORL's any_percent_bc.py: two hidden layers of 256, batch 256, normalised observations; but for Adam's
rate of 1e-3, which is 3e-4 there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchopt.base import GradientTransformation

from metarl import Learner, Role, Spec, Update, adam, nn, option
from metarl.bilevel import Batches, Tree


@dataclass(frozen=True)
class BC:
    """Behaviour cloning."""

    hidden: tuple[int, ...] = option((256, 256), "widths of the policy's hidden layers", least=1)
    optimizer: GradientTransformation = option(
        factory=lambda: adam(lr=1e-3), help="of the policy", group="metarl.optimizers"
    )
    batch_size: int = option(256, "transitions in a batch", least=1)
    normalize: bool = option(True, "observations as (s - mean) / (std + 1e-3) of the training data")

    def build(self, spec: Spec, generator: torch.Generator) -> Learner:
        """The learner: one Update of the group `actor`."""
        actor = nn.DeterministicPolicy(spec.obs_dim, spec.max_action, self.hidden, generator)

        def loss(tree: Tree, batches: Batches) -> Tensor:
            batch = batches["train"]
            return (nn.call(actor, tree["actor"], batch["obs"]) - batch["action"]).square().mean()

        return Learner(
            modules={"actor": actor},
            stages=((Update("actor", "actor", loss, self.optimizer),),),
            act=lambda tree, obs, carry, noise, deterministic: (nn.call(actor, tree["actor"], obs), carry),
            roles={"train": Role("train", self.batch_size)},
            normalize=self.normalize,
        )
