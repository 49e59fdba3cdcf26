"""Regularisation of logistic regression: the curve that hypertorch's notebook prints."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from benchmarks.problems.data import extra
from metarl import Batch, Batches, Learner, TrainState, Tree, Unrolled, Update, momentum, option, sgd
from metarl.problems import Bound, Figures, Instance, Problem, no_policy, outer_loss, projected

NOTEBOOK = "hypertorch's logistic-regression notebook"
CURVE = {0: 0.574399, 10: 0.533768, 20: 0.361522, 50: 0.294467, 100: 0.285354, 130: 0.282979}


@dataclass(frozen=True)
class Logistic(Problem):
    """Twenty regularisers of logistic regression, learned from the validation loss F (Grazzi et al. 2020).

    min_h F(w_100(h)),  w_0 = 0,  w_{k+1} = w_k - 0.1 grad[BCE(x w_k, y) + 1/2 sum_i h_i w_i^2],  h >= 1e-8
    (arXiv:2006.16218 and the notebook of its library; reverse mode through the last ten steps).
    """

    steps: int = option(130, "updates of the twenty regularisers", least=1)
    inner_steps: int = option(100, "gradient steps of the regression, from zeros", least=1)
    truncate: int = option(10, "of which so many are differentiated", least=1)

    every = 10
    seeds = (1,)
    expected = {f"validation_loss@{step}": Bound.near(value, 1e-4, NOTEBOOK) for step, value in CURVE.items()}

    def build(self, seed: int) -> Instance:
        random = np.random.RandomState(seed)
        w, x = random.randn(20), random.randn(1000, 20)
        y = x @ w + 0.1 * random.randn(1000) > 0
        split = extra("sklearn.model_selection").train_test_split(x, y, test_size=0.5, random_state=random)
        x_train, x_val, y_train, y_val = (torch.from_numpy(part).float() for part in split)
        data: Batches = {"train": {"x": x_train, "y": y_train}, "validation": {"x": x_val, "y": y_val}}

        def loss(tree: Tree, batch: Batch) -> Tensor:
            return bce(batch["x"] @ tree["w"]["w"], batch["y"])

        def regularised(tree: Tree, batches: Batches) -> Tensor:
            return loss(tree, batches["train"]) + (tree["h"]["h"] * tree["w"]["w"] ** 2).sum() / 2

        def measure(learner: Learner, state: TrainState) -> Figures:
            return {"validation_loss": outer_loss(learner.updates["h"], state, data)}

        inner = Update("w", "w", regularised, sgd(0.1))
        positive = projected(momentum(1.0, 0.9), lambda h: h.clamp(min=1e-8))
        through = Unrolled("w", steps=self.inner_steps, truncate=self.truncate)
        outer = Update("h", "h", lambda tree, batches: loss(tree, batches["validation"]), positive, through)
        tensors = {"w": {"w": torch.zeros(20)}, "h": {"h": torch.ones(20)}}
        learner = Learner({}, ((outer,),), no_policy, tensors, virtual={"w": inner})
        return Instance(learner, lambda step: data, measure)
