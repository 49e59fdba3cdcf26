"""MAML on sine waves: an initialisation from which one gradient step fits a new wave."""

from dataclasses import dataclass

import torch
from torch import Tensor

from metarl import Batch, Batches, Learner, TrainState, Tree, Unrolled, Update, adam, nn, option, sgd
from metarl.problems import Bound, Figures, Instance, Problem, no_policy, outer_loss
from metarl.training.streams import generator

SOURCE = "Finn et al. 2017, section 5.1 (a figure); an earlier implementation: .395 / .150 / .112"


@dataclass(frozen=True)
class Sinusoid(Problem):
    """MAML on sine waves: an initialisation from which one step fits a new wave (Finn et al. 2017).

    min_theta mean_tasks F_task(theta - 0.01 grad f_task(theta)), mean squared errors on two sets of ten points
    (arXiv:1703.03400, Algorithm 2 and section 5.1): y = a sin(x - p), a in U[0.1, 5], p in U[0, pi], x in U[-5, 5].
    """

    steps: int = option(30_000, "meta-updates", least=1)
    tasks: int = option(25, "waves in a meta-batch", least=1)
    lr: float = option(1e-3, "Adam's, of the initialisation", least=0)

    every = 5000
    compiled = True
    expected = {
        "mse_1": Bound(SOURCE, most=0.45, over="mean"),
        "mse_5": Bound(SOURCE, most=0.17, over="mean"),
        "mse_10": Bound(SOURCE, most=0.13, over="mean"),
    }

    def build(self, seed: int) -> Instance:
        net = nn.MLP((1, 40, 40, 1), generator(seed, "net"))

        def waves(n: int, query: int, *names: str | int) -> Batches:
            g = generator(seed, *names)
            a, p = 0.1 + 4.9 * torch.rand(n, 1, 1, generator=g), torch.pi * torch.rand(n, 1, 1, generator=g)
            x = 10 * torch.rand(n, 10 + query, 1, generator=g) - 5
            (x_s, x_q), (y_s, y_q) = (v.split([10, query], dim=1) for v in (x, a * torch.sin(x - p)))
            return {"support": {"x": x_s, "y": y_s}, "query": {"x": x_q, "y": y_q}}

        def error(tree: Tree, batch: Batch) -> Tensor:
            return (nn.call(net, tree["task"], batch["x"]) - batch["y"]).square().mean()

        def measure(learner: Learner, state: TrainState) -> Figures:
            outer, test = learner.updates["initial"], waves(600, 100, "test")
            return {f"mse_{n}": outer_loss(outer, state, test, steps=n) for n in (1, 5, 10)}

        adapt = Update("adapt", "task", lambda tree, batches: error(tree, batches["support"]), sgd(0.01))
        through = Unrolled("adapt", init_from="initial", tasks=("support", "query"))
        outer = Update("initial", "initial", lambda t, b: error(t, b["query"]), adam(self.lr), through)
        learner = Learner({"initial": net, "task": net}, ((outer,),), no_policy, virtual={"adapt": adapt})
        return Instance(learner, lambda step: waves(self.tasks, 10, "tasks", step), measure)
