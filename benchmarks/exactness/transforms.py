"""What compiles as one graph and what runs under vmap, each with the numbers of the eager estimate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from benchmarks.exactness.cells import KINDS, OPTIMIZERS, learner_of, noise_of, state_of
from benchmarks.exactness.oracle import Ridge
from metarl import Batches, Estimate, Polyak, Track, TrainState, Update, sgd
from metarl.bilevel import Params
from metarl.bilevel.recording import recorded

TOLERANCE = 1e-10
BILEVEL = {
    "unrolled": ("unrolled", "unrolled, truncate=1"),
    "forward_mode": ("forward_mode",),
    "finite_difference": ("finite_difference",),
    "evolution_strategies": ("evolution_strategies",),
    "implicit": ("implicit, cg", "implicit, neumann", "implicit, fixed_point", "implicit, identity"),
}
Example = tuple[Update, TrainState, Batches]


def measure(through: Callable[..., Any] = recorded) -> dict[str, dict[str, bool]]:
    """By registered name: whether it compiles whole, and runs under vmap, with equal numbers.

    Args:
        through: what stands for compiling: `recorded` is all that metarl does to a step, short of the C++ compiler;
            `metarl.bilevel.compiling.compiled` goes through that too.
    """
    found: dict[str, dict[str, bool]] = {}
    for name, examples in sorted(_examples().items()):
        each = [_both(*example, through) for example in examples]
        found[name] = {"compiles": all(c for c, _ in each), "vmaps": all(v for _, v in each)}
    return found


def _both(update: Update, state: TrainState, batches: Batches, through: Callable[..., Any]) -> tuple[bool, bool]:
    def numbers(state: TrainState) -> Any:
        estimate: Estimate = update.gradient(update, state, batches)
        return estimate.grads, estimate.metrics

    states = [state, state._replace(tree=tree_map(lambda leaf: 0.9 * leaf, state.tree))]
    return (
        _equal(_ignoring_the_seed(through(numbers)), numbers, states),
        _equal(_vmapped(numbers, states), numbers, states),
    )


def _examples() -> dict[str, list[Example]]:
    problem = Ridge()
    examples: dict[str, list[Example]] = {name: [] for name in BILEVEL}
    for name, kinds in BILEVEL.items():
        for kind in kinds:
            learner = learner_of(problem, OPTIMIZERS["momentum"](), KINDS[kind].build(3))
            state = state_of(learner, problem, "warm")
            examples[name].append((learner.updates["meta"], state, noise_of(learner)))
    state = state.with_params("source", {"phi": state.tree["theta"]["theta"]})

    def theta(tree: dict[str, Params], batches: Batches) -> Params:
        return {"phi": tree["theta"]["theta"]}

    examples["direct"] = [(learner.updates["fit"], state, {})]
    examples["polyak"] = [(Update("follow", "phi", None, sgd(0.1), Polyak("source")), state, {})]
    examples["track"] = [(Update("track", "phi", None, sgd(0.1), Track(theta)), state, {})]
    return examples


def _ignoring_the_seed(fn: Callable[[TrainState], Any]) -> Callable[[int, TrainState], Any]:
    return lambda i, state: fn(state)


def _vmapped(numbers: Callable, states: list[TrainState]) -> Callable[[int, TrainState], Any]:
    stacked = tree_map(lambda *leaves: torch.stack(leaves), *states)

    def one(i: int, state: TrainState) -> Any:
        together = torch.vmap(numbers)(stacked)
        return tree_map(lambda leaf: leaf[i], together)

    return one


def _equal(other: Callable[[int, TrainState], Any], numbers: Callable, states: list[TrainState]) -> bool:
    for i, state in enumerate(states):
        try:
            ours = tree_leaves(other(i, state))
        except Exception:  # whatever a transform cannot do, it raises as it likes
            return False
        theirs = zip(ours, tree_leaves(numbers(state)), strict=True)
        if not all(torch.allclose(a, b, rtol=TOLERANCE, atol=1e-14) for a, b in theirs):
            return False
    return True
