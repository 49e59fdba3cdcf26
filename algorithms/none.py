"""No algorithm: the empty learner, for an objective that brings everything (POR).

It has no network and no policy; it says how large the batches of the role `train` are, and how data is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metarl import Learner, Rewards, Role, Spec, option
from metarl.bilevel import Tree
from metarl.errors import ConfigError


@dataclass(frozen=True)
class Nothing:
    """The empty learner, for an objective that brings everything."""

    batch_size: int = option(256, "transitions in a batch", least=1)
    normalize: bool = option(False, "observations as (s - mean) / (std + 1e-3) of the training data")
    rewards: Rewards = option(factory=Rewards, help="what is made of the data's rewards")

    def build(self, spec: Spec, generator: torch.Generator) -> Learner:
        """The learner: no groups and no stages."""
        return Learner(
            modules={},
            stages=(),
            act=_act,
            roles={"train": Role("train", self.batch_size)},
            normalize=self.normalize,
            rewards=self.rewards,
        )


def _act(tree: Tree, obs: Tensor, carry: Any, noise: Tensor | None, deterministic: bool) -> tuple[Tensor, Any]:
    raise ConfigError("algorithm none cannot act; give an objective that brings a policy, such as por")
