"""A quadratic bilevel problem: hypergradient, value function and solution in closed form."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import solve

from metarl import Batches, Implicit, Learner, TrainState, Tree, Update, momentum, option
from metarl.problems import Bound, Figures, Instance, Problem, no_policy
from metarl.training.streams import generator

CLOSED = Bound("closed form, relative", most=1e-6)


@dataclass(frozen=True)
class Quadratic(Problem):
    """A quadratic bilevel problem, solved in closed form.

    min_x z G z / 2 + g z + x P x / 2 + x K z,  z(x) = argmin_z z A z / 2 + x C z + a z = -A^-1 (C^T x + a)
    (the simulated problem of benchmark_bilevel, with a coupling in the outer loss).
    """

    steps: int = option(200, "updates of x", least=1)
    lr: float = option(0.05, "of x", least=0)

    every = 50
    expected = {"error@0": CLOSED, "error": CLOSED, "distance": CLOSED}

    def build(self, seed: int) -> Instance:
        rng, d, p = generator(seed, "data"), 8, 5
        A, G, P = (torch.randn(k, k, generator=rng, dtype=torch.float64) for k in (d, d, p))
        A, G, P = (w @ w.T / len(w) + torch.eye(len(w)) for w in (A, G, P))
        C, K = 0.3 * torch.randn(2, p, d, generator=rng, dtype=torch.float64)
        a, g = torch.randn(2, d, generator=rng, dtype=torch.float64)
        CA, Aa = solve(A, C.T).T, solve(A, a)  # z = -CA^T x - Aa

        def inner(tree: Tree, batches: Batches) -> Tensor:
            z, x = tree["inner"]["z"], tree["outer"]["x"]
            return z @ A @ z / 2 + (x @ C + a) @ z

        def outer(tree: Tree, batches: Batches) -> Tensor:
            z, x = tree["inner"]["z"], tree["outer"]["x"]
            return z @ G @ z / 2 + g @ z + x @ P @ x / 2 + x @ K @ z

        def measure(learner: Learner, state: TrainState) -> Figures:
            update, x = learner.updates["judge"], state.tree["outer"]["x"]
            hessian = P + CA @ G @ CA.T - K @ CA.T - CA @ K.T
            solution = solve(hessian, K @ Aa + CA @ g - CA @ G @ Aa)
            exact = hessian @ (x - solution)  # the value function's gradient
            error = (update.gradient(update, state, {}).grads["x"] - exact).norm() / (P @ x).norm()  # a term of it
            return {"error": float(error), "distance": float((x - solution).norm() / solution.norm())}

        fit = Update("fit", "inner", inner, momentum(0.2, 0.8))
        judge = Update("judge", "outer", outer, momentum(self.lr, 0.8), Implicit("fit", iterations=d, steps=150))
        groups = {"inner": {"z": torch.zeros(d)}, "outer": {"x": torch.ones(p)}}
        learner = Learner({}, ((judge,),), no_policy, tensors=groups, virtual={"fit": fit})
        return Instance(learner, lambda step: {}, measure, torch.float64)
