"""Learning to reweight noisy labels by a few clean ones, beside plain training on the same batches."""

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.problems.data import accuracy, corrupt, digits, losses
from metarl import Batches, Learner, TrainState, Tree, Unrolled, Update, momentum, nn, option, sgd, stop_gradient
from metarl.problems import Bound, Figures, Instance, Problem, no_policy
from metarl.training.streams import generator


@dataclass(frozen=True)
class Reweighting(Problem):
    """Weights of noisy samples from the gradient of a few clean ones (Learning to Reweight, Ren et al. 2018).

    w = max(-g, 0) / sum max(-g, 0),  g = d F_clean(theta - sum_i eps_i grad f_i(theta)) / d eps  at eps = 0; theta then
    moves along sum_i w_i grad f_i (arXiv:1803.09050, Algorithm 1). Both networks train on the clean samples, too.
    """

    steps: int = option(1500, "batches of 100 samples", least=1)
    noise: float = option(0.4, "share of wrong labels", least=0)
    lr: float = option(0.05, "of both networks", least=0)

    seeds = (0, 1, 2, 3, 4)
    expected = {"gain": Bound("Ren et al. 2018: more accurate than plain training", least=0, over="t-test")}

    def build(self, seed: int) -> Instance:
        g = generator(seed, "data")
        clean, test, rest = digits((50, 500), g)
        x, y = torch.cat((clean["x"], rest["x"])), torch.cat((clean["y"], corrupt(rest["y"], self.noise, g)[0]))
        net = nn.MLP((64, 100, 10), g)

        def batches(step: int) -> Batches:
            rows = torch.randint(len(x), (100,), generator=generator(seed, "batch", step))
            return {"train": {"x": x[rows], "y": y[rows]}, "clean": clean}

        def probe(tree: Tree, batches: Batches) -> Tensor:
            eps = tree["eps"]["eps"] - stop_gradient(tree["eps"]["eps"])  # zero, whatever the last step found
            return (eps * losses(net, tree["net"], batches["train"])).sum()

        def reweighted(tree: Tree, batches: Batches) -> Tensor:
            w = tree["eps"]["eps"].relu()
            return (w / w.sum().clamp(min=1e-12) * losses(net, tree["net"], batches["train"])).sum()

        def measure(learner: Learner, state: TrainState) -> Figures:
            ours, plain = (accuracy(net, state.tree[group], test) for group in ("net", "plain"))
            return {"accuracy": ours, "plain": plain, "gain": ours - plain}

        sgdm, replace = momentum(self.lr, 0.9), sgd(1.0, weight_decay=1.0)  # p <- p - (g + p) = -g
        through = Unrolled("probe", sgd(1.0))  # its rate cancels out of w
        outer = Update("eps", "eps", lambda t, b: losses(net, t["net"], b["clean"]).mean(), replace, through)
        ours = Update("net", "net", reweighted, sgdm)
        plain = Update("plain", "plain", lambda t, b: losses(net, t["plain"], b["train"]).mean(), sgdm)
        tensors = {"eps": {"eps": torch.zeros(100)}}
        stages, virtual = ((outer,), (ours, plain)), {"probe": Update("probe", "net", probe, sgdm)}
        learner = Learner({"net": net, "plain": net}, stages, no_policy, tensors, virtual)
        return Instance(learner, batches, measure)
