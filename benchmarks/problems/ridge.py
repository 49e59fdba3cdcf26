"""Ridge regression with a penalty per coordinate: the hypergradient in closed form."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import solve

from metarl import Batches, Implicit, Learner, TrainState, Tree, Update, adam, momentum, option
from metarl.problems import Bound, Figures, Instance, Problem, no_policy
from metarl.training.streams import generator

CLOSED = Bound("closed form, relative", most=1e-6)


@dataclass(frozen=True)
class Ridge(Problem):
    """A penalty for every coordinate of a ridge regression: the hypergradient in closed form.

    min_l |V w(l) - z|^2 / 2n,  w(l) = argmin_w |X w - y|^2 / 2n + 1/2 sum_j exp(l_j) w_j^2;
    with H = X^T X / n + diag(exp l), the hypergradient is -exp(l_j) w_j (H^-1 V^T (V w - z) / n)_j.
    """

    steps: int = option(80, "updates of the penalties", least=1)
    lr: float = option(0.05, "Adam's, of the penalties", least=0)

    every = 20
    expected = {"error@0": CLOSED, "error": CLOSED, "gain": Bound("loss of least squares, over its own", least=1.05)}

    def build(self, seed: int) -> Instance:
        g, n, d = generator(seed, "data"), 60, 20
        x, v, noise = (torch.randn(shape, generator=g, dtype=torch.float64) for shape in ((n, d), (n, d), (2, n)))
        truth = (torch.arange(d) % 4 == 0).double()
        y, z = x @ truth + 2 * noise[0], v @ truth + 2 * noise[1]

        def inner(tree: Tree, batches: Batches) -> Tensor:
            w, log = tree["weights"]["w"], tree["penalties"]["log"]
            return ((x @ w - y).square().mean() + (log.exp() * w.square()).sum()) / 2

        def outer(tree: Tree, batches: Batches) -> Tensor:
            return (v @ tree["weights"]["w"] - z).square().mean() / 2

        def measure(learner: Learner, state: TrainState) -> Figures:
            update, penalty, gram = learner.updates["tune"], state.tree["penalties"]["log"].exp(), x.T @ x / n
            w, plain = solve(gram + torch.diag(penalty), x.T @ y / n), solve(gram, x.T @ y / n)
            exact = -penalty * w * solve(gram + torch.diag(penalty), v.T @ (v @ w - z) / n)
            error = (update.gradient(update, state, {}).grads["log"] - exact).norm() / exact.norm()
            losses = [float(outer({"weights": {"w": each}}, {})) for each in (plain, w)]
            return {"error": float(error), "loss": losses[1], "gain": losses[0] / losses[1]}

        fit = Update("fit", "weights", inner, momentum(0.1, 0.9))
        tune = Update("tune", "penalties", outer, adam(self.lr), Implicit("fit", iterations=d, steps=400))
        tensors = {"weights": {"w": torch.zeros(d)}, "penalties": {"log": torch.full((d,), -3.0)}}
        learner = Learner({}, ((tune,),), no_policy, tensors=tensors, virtual={"fit": fit})
        return Instance(learner, lambda step: {}, measure, torch.float64)
