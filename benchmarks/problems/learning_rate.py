"""A learning rate learned through steps of gradient descent, beside the best constant one."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from metarl import Batches, Learner, TrainState, Tree, Unrolled, Update, option, sgd
from metarl.problems import Bound, Figures, Instance, Problem, no_policy
from metarl.training.streams import generator

CLOSED = "closed form: -<grad F(z_1), grad F(z_0)>, relative"
SEARCH = "the best of 20,001 constant rates"


@dataclass(frozen=True)
class LearningRate(Problem):
    """A learning rate, learned through the steps that it is used for (Baydin et al. 2018).

    min_lr E F(z_T),  z_{k+1} = z_k - lr grad F(z_k),  F(z) = 1/2 sum_i a_i z_i^2,  z_0 standard normal. For T = 1 the
    hypergradient is -<grad F(z_1), grad F(z_0)> (arXiv:1703.04782, section 2). The starts z_0 are data; the group x,
    which the virtual steps move, holds the distance from them.
    """

    steps: int = option(1000, "updates of the learning rate", least=1)
    horizon: int = option(1, "steps T that the rate is used for", least=1)
    lr: float = option(2e-4, "of the learning rate", least=0)

    expected = {
        "error@0": Bound(CLOSED, most=1e-12),
        "error": Bound(CLOSED, most=1e-12),
        "rate_over_best": Bound.near(1.0, 0.02, SEARCH),
    }

    def build(self, seed: int) -> Instance:
        a = torch.linspace(0.1, 1, 10, dtype=torch.float64)

        def batches(step: int) -> Batches:
            z = torch.randn(64, 10, generator=generator(seed, "starts", step), dtype=torch.float64)
            return {"train": {"z": z}}

        def loss(tree: Tree, batches: Batches) -> torch.Tensor:
            return (a * (batches["train"]["z"] + tree["x"]["x"]) ** 2).sum() / 2

        def measure(learner: Learner, state: TrainState) -> Figures:
            outer, lr, z, n = learner.updates["rate"], state.tree["rate"]["lr"], batches(0)["train"]["z"], self.horizon
            exact = -n * (a**2 * z**2 * (1 - lr * a) ** (2 * n - 1)).sum()
            estimate = outer.gradient(outer, state, batches(0)).grads["lr"]
            rates = torch.linspace(0, 2, 20_001, dtype=torch.float64)
            best = rates[(a * (1 - rates[:, None] * a) ** (2 * n)).sum(-1).argmin()]
            return {"rate": float(lr), "error": float((estimate / exact - 1).abs()), "rate_over_best": float(lr / best)}

        inner = Update("descent", "x", loss, lambda tree: sgd(tree["rate"]["lr"]))
        outer = Update("rate", "rate", loss, sgd(self.lr), Unrolled("descent", steps=self.horizon))
        tensors = {"x": {"x": torch.zeros(64, 10)}, "rate": {"lr": torch.tensor(0.01)}}
        learner = Learner({}, ((outer,),), no_policy, tensors=tensors, virtual={"descent": inner})
        return Instance(learner, batches, measure, torch.float64)
