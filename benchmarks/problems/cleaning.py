"""Data hyper-cleaning: a weight for every training sample, learned from a clean validation set."""

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.problems.data import accuracy, corrupt, digits, losses
from metarl import Batches, Implicit, Learner, TrainState, Tree, Update, adam, momentum, nn, option
from metarl.problems import Bound, Figures, Instance, Problem, no_policy
from metarl.training.streams import generator


@dataclass(frozen=True)
class Cleaning(Problem):
    """A weight for every training sample, learned from clean validation samples (Franceschi et al. 2017).

    min_v F_validation(W(v)),  W(v) = argmin_W mean_i sigmoid(v_i) f_i(W) + decay |W|^2  (arXiv:1703.01785, section
    5.1), on digits: a linear softmax; half of the labels wrong. A sample with v < 0 counts as found to be wrong;
    `plain` is the model with equal weights and no penalty.
    """

    steps: int = option(1000, "gradient steps of the model", least=1)
    period: int = option(10, "of which so many lie between updates of the weights", least=1)
    decay: float = option(1e-3, "weight of the penalty", least=0)
    lr: float = option(0.05, "Adam's, of the sample weights", least=0)

    expected = {
        "accuracy": Bound("an earlier implementation: .941", least=0.92, over="mean"),
        "f1": Bound("an earlier implementation: .92", least=0.90),
    }

    def build(self, seed: int) -> Instance:
        g = generator(seed, "data")
        train, validation, test = digits((800, 200), g)
        train["y"], wrong = corrupt(train["y"], 0.5, g)
        net = nn.MLP((64, 10), g)

        def weighted(tree: Tree, batches: Batches) -> Tensor:
            each = losses(net, tree["model"], batches["train"])
            penalty = sum((p.square().sum() for p in tree["model"].values()), torch.zeros(()))
            return (tree["v"]["v"].sigmoid() * each).mean() + self.decay * penalty

        def measure(learner: Learner, state: TrainState) -> Figures:
            found = state.tree["v"]["v"] < 0
            figures = {"f1": 2 * float((found & wrong).sum()) / float(found.sum() + wrong.sum())}
            ours, plain = (accuracy(net, state.tree[group], test) for group in ("model", "plain"))
            return {"accuracy": ours, "plain": plain, **figures}

        sgdm, implicit = momentum(0.5, 0.9), Implicit("model", "cg", iterations=20)
        model = Update("model", "model", weighted, sgdm)
        plain = Update("plain", "plain", lambda t, b: losses(net, t["plain"], b["train"]).mean(), sgdm)
        outer = Update(
            "v", "v", lambda t, b: losses(net, t["model"], b["validation"]).mean(), adam(self.lr), implicit, self.period
        )
        tensors = {"v": {"v": torch.zeros(800)}}
        learner = Learner({"model": net, "plain": net}, ((outer,), (model, plain)), no_policy, tensors)
        return Instance(learner, lambda step: {"train": train, "validation": validation}, measure)
