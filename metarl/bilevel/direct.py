"""Estimators that look at no other Update: the plain gradient, and groups that follow a source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from metarl.bilevel.autodiff import Params, is_tracked, value_and_grad
from metarl.bilevel.state import TrainState
from metarl.bilevel.update import Batches, Estimate, Objective, Tree, Update


@dataclass(frozen=True)
class Direct:
    """The gradient of the Update's own loss with respect to its own group."""

    def __call__(self, update: Update, state: TrainState, batches: Batches) -> Estimate:
        grads, loss, (metrics, _) = value_and_grad(
            self.objective(update, state, batches),
            state.tree[update.params],
            differentiable=is_tracked(state.tree),
        )
        return Estimate(loss, grads, metrics)

    def objective(self, update: Update, state: TrainState, batches: Batches) -> Objective:
        """The loss as a function of the Update's group."""

        def objective(params: Params) -> tuple:
            loss, metrics = update.evaluate({**state.tree, update.params: params}, batches)
            return loss, (metrics, {})

        return objective


@dataclass(frozen=True)
class Polyak:
    """Points a target group at its source: gradient `target - source`.

    With `sgd(tau)` this is the exponential moving average `target <- (1 - tau) target + tau source`. The target
    group starts as a copy of its source.
    """

    source: str

    def __call__(self, update: Update, state: TrainState, batches: Batches) -> Estimate:
        return _towards(state.tree[update.params], state.tree[self.source])


@dataclass(frozen=True)
class Track:
    """Points a group at `fn(tree, batches)`: gradient `value - fn(tree, batches)`; with `sgd(rate)` a running mean."""

    fn: Callable[[Tree, Batches], Params]

    def __call__(self, update: Update, state: TrainState, batches: Batches) -> Estimate:
        return _towards(state.tree[update.params], self.fn(state.tree, batches))


def _towards(own: Params, source: Params) -> Estimate:
    return Estimate(None, {name: value - source[name] for name, value in own.items()}, {})
