"""The grid: every estimator under every optimiser, backend, start and number of steps; each cell's error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.exactness.oracle import DECAY, EPS, LR, Array, Exact, Quadratic, Ridge, Walk, step
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
    adam,
    adamw,
    momentum,
    rmsprop,
    sgd,
)
from metarl.errors import ConfigError
from metarl.problems import no_policy

PROBLEMS: dict[str, type[Ridge] | type[Quadratic]] = {"ridge": Ridge, "quadratic": Quadratic}
OPTIMIZERS: dict[str, Callable] = {
    "sgd": lambda: sgd(LR),
    "momentum": lambda: momentum(LR, 0.9),
    "adam": lambda: adam(LR, eps=EPS),
    "adamw": lambda: adamw(LR, eps=EPS, weight_decay=DECAY),
    "rmsprop": lambda: rmsprop(LR, eps=EPS),
}
STARTS = ("cold", "warm")
STEPS = (1, 3)
ITERATIONS = 12
SCALE = 0.1
WARM = 20
LONG = 600
SIGMA, SAMPLES = 1e-3, 512

EXACT = "exact"  # judged by a relative error of 1e-6
SOLVED = "solver"  # judged by 1e-6 too: these systems have at most six unknowns
NOISY = "noise"  # judged by four standard errors


@dataclass(frozen=True)
class Kind:
    """An estimator of the grid.

    Attributes:
        build: of a number of steps.
        value: the exact value that it defines.
        judged: how its error is measured.
        backends: libraries that can roll it.
        problems: on which it is defined.
        steps, optimizers: for which.
    """

    build: Callable[[int], Any]
    value: Callable[[Exact, int], Array]
    judged: str = EXACT
    backends: tuple[str, ...] = ("native",)
    problems: tuple[str, ...] = tuple(PROBLEMS)
    steps: tuple[int, ...] = STEPS
    optimizers: tuple[str, ...] = tuple(OPTIMIZERS)


def _implicit(solver: str, scale: float | None = None) -> Kind:
    return Kind(
        lambda steps: Implicit("fit", solver, ITERATIONS, scale=scale, steps=steps),  # type: ignore[arg-type]
        lambda exact, steps: exact.implicit(steps, solver, ITERATIONS, 1.0 if scale is None else scale),
        SOLVED,
    )


KINDS = {
    "unrolled": Kind(
        lambda steps: Unrolled("fit", steps=steps),
        lambda exact, steps: exact.rolled(steps),
        backends=("native", "torchopt", "higher"),
    ),
    "unrolled, truncate=1": Kind(
        lambda steps: Unrolled("fit", steps=steps, truncate=1), lambda exact, steps: exact.rolled(steps, truncate=1)
    ),
    "unrolled, first_order": Kind(
        lambda steps: Unrolled("fit", steps=steps, first_order=True),
        lambda exact, steps: exact.rolled(steps, first_order=True),
        problems=("quadratic",),  # ridge's penalties enter through the inner loss only
    ),
    "forward_mode": Kind(lambda steps: ForwardMode("fit", steps=steps), lambda exact, steps: exact.rolled(steps)),
    "finite_difference": Kind(
        lambda steps: FiniteDifference("fit", steps=steps), lambda exact, steps: exact.rolled(steps)
    ),
    "evolution_strategies": Kind(
        lambda steps: EvolutionStrategies(Unrolled("fit", steps=steps), SAMPLES, SIGMA),
        lambda exact, steps: exact.rolled(steps),
        NOISY,
    ),
    "implicit, cg": _implicit("cg"),
    "implicit, neumann": _implicit("neumann", SCALE),
    "implicit, fixed_point": _implicit("fixed_point"),
    "implicit, identity": _implicit("identity"),
}


def _at_optimum(build: Callable[[int], Any], judged: str = EXACT) -> Kind:
    """Enough momentum steps to reach the inner optimum: there the closed form holds."""
    return Kind(build, lambda exact, _: exact.at_optimum, judged, steps=(LONG,), optimizers=("momentum",))


KINDS |= {
    "unrolled, to the optimum": _at_optimum(lambda steps: Unrolled("fit", steps=steps)),
    "forward_mode, to the optimum": _at_optimum(lambda steps: ForwardMode("fit", steps=steps)),
    "finite_difference, to the optimum": _at_optimum(lambda steps: FiniteDifference("fit", steps=steps)),
    "implicit, cg, at the optimum": _at_optimum(lambda steps: Implicit("fit", "cg", ITERATIONS, steps=steps), SOLVED),
    "implicit, neumann, at the optimum": _at_optimum(
        lambda steps: Implicit("fit", "neumann", steps, scale=SCALE, steps=steps), SOLVED
    ),
    "implicit, fixed_point, at the optimum": _at_optimum(
        lambda steps: Implicit("fit", "fixed_point", steps, steps=steps), SOLVED
    ),
}


@dataclass(frozen=True)
class Cell:
    """One cell and what was found: `error` is relative, or in standard errors; or `refused` says why there is none."""

    estimator: str
    backend: str
    problem: str
    start: str
    steps: int
    optimizer: str
    judged: str
    error: float | None = None
    refused: str | None = None

    @property
    def good(self) -> bool:
        """Whether it was refused, or lies within its bound."""
        return self.error is None or self.error <= (4.0 if self.judged == NOISY else 1e-6)


def grid() -> Iterator[Cell]:
    """All cells, still without results."""
    for estimator, kind in KINDS.items():
        for backend in kind.backends:
            for problem in kind.problems:
                for start in STARTS:
                    for steps in kind.steps:
                        for optimizer in kind.optimizers:
                            yield Cell(estimator, backend, problem, start, steps, optimizer, kind.judged)


def measure(cell: Cell) -> Cell:
    """The cell with its error."""
    kind, problem = KINDS[cell.estimator], PROBLEMS[cell.problem]()
    estimator = kind.build(cell.steps)
    if cell.backend != "native":
        estimator = replace(estimator, backend=cell.backend)
    exact = Exact(problem, cell.optimizer, _start(problem, cell))
    try:
        learner = learner_of(problem, OPTIMIZERS[cell.optimizer](), estimator)
        state = state_of(learner, problem, cell.start)
        update = learner.updates["meta"]
        batches = noise_of(learner)
        learner.check(state, batches)
        estimate = update.gradient(update, state, batches)
    except ConfigError as error:
        return replace(cell, refused=str(error))
    value = kind.value(exact, cell.steps)
    size = np.linalg.norm(value)
    if not size > 1e-4:
        raise RuntimeError(f"{cell}: the exact value is too small to compare with")
    distance = np.linalg.norm(estimate.grads["phi"].numpy() - value)
    if cell.judged == NOISY:
        return replace(cell, error=float(distance) / float(estimate.metrics["standard_error"]))
    return replace(cell, error=float(distance / size))


def learner_of(problem: Ridge | Quadratic, optimizer: Any, estimator: Any) -> Learner:
    """The problem as two Updates: "fit" moves theta, "meta" moves phi by the estimator."""
    inner, outer = losses(problem)
    return Learner(
        modules={},
        tensors={"theta": {"theta": torch.tensor(problem.theta)}, "phi": {"phi": torch.tensor(problem.phi)}},
        stages=(
            (Update("meta", "phi", outer, sgd(0.1), estimator),),
            (Update("fit", "theta", inner, optimizer),),
        ),
        act=no_policy,
    ).ready()


def losses(problem: Ridge | Quadratic) -> tuple[Callable, Callable]:
    """f and F in torch."""
    constants = {name: torch.tensor(value) for name, value in vars(problem).items() if isinstance(value, np.ndarray)}

    def inner_ridge(tree: Tree, batches: Batches) -> Tensor:
        theta, phi, (x, y) = tree["theta"]["theta"], tree["phi"]["phi"], (constants["x"], constants["y"])
        return (x @ theta - y).square().mean() / 2 + (phi.exp() * theta.square()).sum() / 2

    def outer_ridge(tree: Tree, batches: Batches) -> Tensor:
        return (constants["v"] @ tree["theta"]["theta"] - constants["z"]).square().mean() / 2

    def inner_quadratic(tree: Tree, batches: Batches) -> Tensor:
        theta, phi, c = tree["theta"]["theta"], tree["phi"]["phi"], constants
        return theta @ c["A"] @ theta / 2 + phi @ c["C"] @ theta + c["a"] @ theta

    def outer_quadratic(tree: Tree, batches: Batches) -> Tensor:
        theta, phi, c = tree["theta"]["theta"], tree["phi"]["phi"], constants
        return theta @ c["G"] @ theta / 2 + c["g"] @ theta + phi @ c["P"] @ phi / 2 + phi @ c["K"] @ theta

    return (inner_ridge, outer_ridge) if isinstance(problem, Ridge) else (inner_quadratic, outer_quadratic)


def state_of(learner: Learner, problem: Ridge | Quadratic, start: str) -> TrainState:
    """The learner's initial state, or the one after real steps of the inner Update."""
    state = learner.init(torch.float64)
    for _ in range(WARM if start == "warm" else 0):
        state, _ = learner.step(state, {}, {"fit"})
    return state


def _start(problem: Ridge | Quadratic, cell: Cell) -> Walk:
    at = Walk.at(problem.theta)
    for _ in range(WARM if cell.start == "warm" else 0):
        at = step(cell.optimizer, at, problem.gradient(at.theta, problem.phi))
    return at


def noise_of(learner: Learner) -> Batches:
    g = torch.Generator().manual_seed(0)
    drawn = {name: torch.randn(spec.shape, generator=g, dtype=torch.float64) for name, spec in learner.noise.items()}
    return {"noise": drawn}


def plain(cell: Cell) -> dict[str, Any]:
    """For JSON."""
    return asdict(cell)
