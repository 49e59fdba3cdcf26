"""Fixtures for hypergradients: what a bilevel test differentiates, and central differences to judge it by."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from metarl import TrainState, hold_stop_gradients
from metarl.bilevel import Params


@pytest.fixture(scope="session")
def central_differences() -> Callable[..., tuple[Params, float]]:
    """`central_differences(fn, params, h=1e-3)`: a group's gradient by five-point differences, and its noise.

    Values that losses stop are held as they are at `params`. Noise is the rounding of `fn` over `h`.
    """

    def gradient(fn, params: Params, h: float = 1e-3) -> tuple[Params, float]:
        with hold_stop_gradients() as rewind, torch.no_grad():
            value = fn(params)[0]

            def at(name: str, index: int, step: float) -> torch.Tensor:
                moved = params[name].clone()
                moved.view(-1)[index] += step
                rewind()
                return fn({**params, name: moved})[0]

            def slope(name: str, index: int) -> torch.Tensor:
                near = at(name, index, h) - at(name, index, -h)
                far = at(name, index, 2 * h) - at(name, index, -2 * h)
                return (8 * near - far) / (12 * h)

            grads = {
                name: torch.stack([slope(name, i) for i in range(p.numel())]).view_as(p) for name, p in params.items()
            }
        return grads, float(2e-16 * value.abs() / h)

    return gradient


@pytest.fixture(scope="session")
def flat() -> Callable[[Params], torch.Tensor]:
    """`flat(params)`: a group as one vector."""
    return lambda params: torch.cat([value.detach().flatten() for value in params.values()])


@pytest.fixture(scope="session")
def hypergradient() -> Callable[..., tuple[Params, Callable, Params]]:
    """`hypergradient(learner, name, state, batches)`: the estimate, its objective, and the point."""

    def estimate(learner, name: str, state: TrainState, batches):
        update = learner.updates[name]
        grads = update.gradient(update, state, batches).grads
        return grads, update.gradient.objective(update, state, batches), state.tree[update.params]

    return estimate
