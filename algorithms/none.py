"""No algorithm: the empty learner, for an objective that brings everything (POR); it says only how data is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metarl import Learner, Rewards, Spec, option
from metarl.bilevel import Tree
from metarl.errors import ConfigError


@dataclass(frozen=True)
class Nothing:
    """The empty learner, for an objective that brings everything."""

    normalize: bool = option(False, "observations as (s - mean) / (std + 1e-3) of the training data")
    rewards: Rewards = option(factory=Rewards, help="what is made of the data's rewards")

    def build(self, spec: Spec, generator: torch.Generator) -> Learner:
        """The learner: no groups, no stages, no roles."""
        return Learner(
            modules={},
            stages=(),
            act=_act,
            normalize=self.normalize,
            rewards=self.rewards,
        )


def _act(tree: Tree, obs: Tensor, carry: Any, noise: Tensor | None, deterministic: bool) -> tuple[Tensor, Any]:
    raise ConfigError("algorithm none cannot act; give an objective that brings a policy, such as por")
