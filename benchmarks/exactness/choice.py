"""What estimators cost and how far they are off, on one problem: the table of docs/estimators.md.

    f(W, phi) = |X W - Y|^2 / 2n + sum_jk exp(phi_j) W_jk^2 / 2,   F(W) = |V W - Z|^2 / 2n

with W [100, 50] and one penalty for each of the 100 rows of W, or a single one for all; the exact hypergradient at the
optimum is a linear solve. FLOPs and bytes are counted, not timed, so that the table is the same on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from metarl import (
    Batches,
    EvolutionStrategies,
    FiniteDifference,
    ForwardMode,
    Implicit,
    Learner,
    TrainState,
    Tree,
    Unrolled,
    Update,
    sgd,
)
from metarl.bilevel import Params, value_and_grad
from metarl.checking.watch import peak_memory
from metarl.problems import no_policy

N, D, K = 200, 100, 50
STEPS, TRAINED, LR = 20, 500, 0.2
SAMPLES = 32
ESTIMATORS: dict[str, Any] = {
    f"Unrolled(steps={STEPS})": Unrolled("fit", steps=STEPS),
    f"Unrolled(steps={STEPS}, truncate=5)": Unrolled("fit", steps=STEPS, truncate=5),
    "Unrolled(steps=1)": Unrolled("fit"),
    f"ForwardMode(steps={STEPS})": ForwardMode("fit", steps=STEPS),
    f"FiniteDifference(steps={STEPS})": FiniteDifference("fit", steps=STEPS),
    f'Implicit("cg", iterations={STEPS})': Implicit("fit", "cg", STEPS),
    f'Implicit("neumann", iterations={STEPS})': Implicit("fit", "neumann", STEPS),
    f'Implicit("fixed_point", iterations={STEPS})': Implicit("fit", "fixed_point", STEPS),
    'Implicit("identity")': Implicit("fit", "identity"),
    f"EvolutionStrategies(Unrolled(steps={STEPS}), samples={SAMPLES})": EvolutionStrategies(
        Unrolled("fit", steps=STEPS), SAMPLES, 1e-3
    ),
}


@dataclass(frozen=True)
class Row:
    """One estimator's figures.

    Attributes:
        cold, trained: cosine with the exact hypergradient and relative length, from zeros and after training.
        one, many: FLOPs with a single meta-parameter and with a hundred, in gradients of the inner loss.
        memory: peak bytes, in those of one gradient of the inner loss (a hundred meta-parameters).
    """

    cold: tuple[float, float]
    trained: tuple[float, float]
    one: float
    many: float
    memory: float


def measure() -> dict[str, Row]:
    """All rows."""
    return {name: _row(estimator) for name, estimator in ESTIMATORS.items()}


def table(rows: dict[str, Row]) -> str:
    """As markdown."""
    lines = [
        "| estimator | direction, length: 20 steps from zeros | direction, length: trained | cost, 1 meta-parameter | "
        "cost, 100 meta-parameters | memory |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        cold, trained = (f"{cosine:.3f}, {length:.2f}" for cosine, length in (row.cold, row.trained))
        lines.append(f"| `{name}` | {cold} | {trained} | {row.one:.0f} | {row.many:.0f} | {row.memory:.1f} |")
    return "\n".join(lines)


def _row(estimator: Any) -> Row:
    many, one = _learner(estimator, D), _learner(estimator, 1)
    cold = many.init(torch.float64)
    trained = cold
    for _ in range(TRAINED):
        trained, _ = many.step(trained, {}, {"fit"})
    gradient = _gradient(many, cold)
    # From zeros, an estimator that takes no virtual steps needs the real ones first.
    start = cold
    if isinstance(estimator, Implicit) or "steps=1" in repr(estimator):
        for _ in range(STEPS - (0 if isinstance(estimator, Implicit) else 1)):
            start, _ = many.step(start, {}, {"fit"})
    flops = _flops(gradient)
    return Row(
        _direction(many, start),
        _direction(many, trained),
        _flops(_estimate(one, one.init(torch.float64))) / flops,
        _flops(_estimate(many, cold)) / flops,
        peak_memory(_estimate(many, cold)) / peak_memory(gradient),
    )


def _learner(estimator: Any, penalties: int) -> Learner:
    data = _data()

    def inner(tree: Tree, batches: Batches) -> Tensor:
        w = tree["weights"]["w"]
        error = (data["x"] @ w - data["y"]).square().sum() / N
        return (error + (tree["penalties"]["log"].exp()[:, None] * w.square()).sum()) / 2

    def outer(tree: Tree, batches: Batches) -> Tensor:
        return (data["v"] @ tree["weights"]["w"] - data["z"]).square().sum() / (2 * N)

    tune = Update("tune", "penalties", outer, sgd(0.1), estimator)
    fit = Update("fit", "weights", inner, sgd(LR))
    tensors = {"weights": {"w": torch.zeros(D, K)}, "penalties": {"log": torch.full((penalties,), -3.0)}}
    return Learner({}, ((tune,), (fit,)), no_policy, tensors=tensors).ready()


def _data() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    w, x, v = normal(D, K), normal(N, D), normal(N, D)
    return {"x": x, "v": v, "y": x @ w + normal(N, K), "z": v @ w + normal(N, K)}


def _exact(state: TrainState) -> Tensor:
    """`-exp(phi_j) sum_k W*_jk (H^-1 dF/dW)_jk` at the optimum W*."""
    data, penalty = _data(), state.tree["penalties"]["log"].exp()
    hessian = data["x"].T @ data["x"] / N + torch.diag(penalty)
    w = torch.linalg.solve(hessian, data["x"].T @ data["y"] / N)
    slope = data["v"].T @ (data["v"] @ w - data["z"]) / N
    return -penalty * (w * torch.linalg.solve(hessian, slope)).sum(-1)


def _estimate(learner: Learner, state: TrainState) -> Callable[[], Any]:
    g = torch.Generator().manual_seed(0)
    noise = {name: torch.randn(s.shape, generator=g, dtype=torch.float64) for name, s in learner.noise.items()}
    update = learner.updates["tune"]
    return lambda: update.gradient(update, state, {"noise": noise})


def _direction(learner: Learner, state: TrainState) -> tuple[float, float]:
    found, exact = _estimate(learner, state)().grads["log"], _exact(state)
    return float(found.dot(exact) / (found.norm() * exact.norm())), float(found.norm() / exact.norm())


def _gradient(learner: Learner, state: TrainState) -> Callable[[], Params]:
    fit = learner.updates["fit"]
    objective = fit.gradient.objective(fit, state, {})  # type: ignore[attr-defined]
    return lambda: value_and_grad(objective, state.tree["weights"])[0]


def _flops(fn: Callable[[], Any]) -> float:
    with FlopCounterMode(display=False) as counter:
        fn()
    flops = float(counter.get_total_flops())
    if not math.isfinite(flops) or flops <= 0:
        raise RuntimeError("no FLOPs were counted")
    return flops
