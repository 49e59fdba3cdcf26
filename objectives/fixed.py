"""The policy's loss with one constant degree of constraint: the baseline of every learned one.

    L(pi) = combine(terms, degree)

Degree 1 is the base algorithm, bitwise; GORL's Table IV compares such constants with its learned weights. On CQL the
degree weighs the improvement; on IQL and AWAC it is a factor of the whole loss, which Adam divides out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from metarl import Learner, Spec, option
from metarl.bilevel import Batches, Metrics, Tree


@dataclass(frozen=True)
class Fixed:
    """One constant weight on the policy constraint."""

    degree: float = option(
        1.0, "weight of the constraint (on CQL and IQL: of the improvement); 1 is the base algorithm"
    )

    def __post_init__(self) -> None:
        if not math.isfinite(self.degree):
            raise ValueError(f"degree must be a number, not {self.degree}")

    def attach(self, learner: Learner, spec: Spec, generator: torch.Generator) -> Learner:
        """The learner with its policy's loss weighed by `degree`."""
        policy = learner.hooks("fixed")

        def loss(tree: Tree, batches: Batches) -> tuple[Tensor, Metrics]:
            terms = policy.terms(tree, batches["train"], batches["noise"])
            return policy.combine(terms, self.degree), terms.metrics

        return learner.with_policy_loss(loss)
