"""Applying estimates: new parameters, optimiser states and flags; as a pure function, or over the old ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from metarl.bilevel.autodiff import Params
from metarl.bilevel.optimizers import Optimizer
from metarl.bilevel.state import TrainState, optimizer_step
from metarl.bilevel.update import Estimate, Tree, Update

Estimates = Sequence[tuple[Update, Estimate]]


def applied(estimates: Estimates, state: TrainState) -> TrainState:
    """The state after a stage, whose Updates have all estimated on `state`; which stays as it is."""
    if not estimates:
        return state
    tree, opt, flags = dict(state.tree), dict(state.opt), dict(state.flags)
    for update, estimate in estimates:
        group = update.params
        tree[group], opt[group] = _step(update, state.tree, state.opt[group], estimate.grads)
        flags |= _flags(update, estimate, flags)
    return TrainState(tree, opt, flags)


def apply_(estimates: Estimates, state: TrainState, stacked: bool = False) -> None:
    """The same numbers (to rounding) written over the state's own tensors, which saves memory and its traffic.

    Args:
        estimates: of all Updates due in the stage.
        state: overwritten.
        stacked: whether every tensor carries a leading axis of seeds.
    """
    writes: list[Callable[[], None]] = []
    for update, estimate in estimates:
        # What is computed from the entry state comes first: a learned rate may itself move in this stage.
        writes.append(_write(update, estimate.grads, state, stacked))
    for write in writes:
        write()
    for update, estimate in estimates:
        for name, value in _flags(update, estimate, state.flags).items():
            state.flags[name].copy_(value)


def _write(update: Update, grads: Params, state: TrainState, stacked: bool) -> Callable[[], None]:
    group = update.params
    params, opt = state.tree[group], state.opt[group]
    overwrite = _overwriting(update.optimizer)
    if overwrite is not None and next(iter(params.values())).device.type == "cpu":
        dense = {name: grad if grad.is_contiguous() else grad.contiguous() for name, grad in grads.items()}
        return partial(overwrite, params, dense, opt)
    step = partial(_step, update)
    new = (torch.vmap(step) if stacked else step)(state.tree, opt, grads)
    return partial(_copy, new, (params, opt))


def _overwriting(optimizer: Any) -> Callable[[Params, Params, Any], None] | None:
    return optimizer.overwrite if isinstance(optimizer, Optimizer) else None


def _step(update: Update, tree: Tree, opt: Any, grads: Params) -> tuple[Params, Any]:
    return optimizer_step(update.optimizer_for(tree), tree[update.params], grads, opt)


def _copy(source: Any, target: Any) -> None:
    for new, old in zip(pytree.tree_leaves(source), pytree.tree_leaves(target), strict=True):
        if isinstance(old, Tensor):
            old.copy_(new)


def _flags(update: Update, estimate: Estimate, flags: dict[str, Tensor]) -> dict[str, Tensor]:
    """The flags that an estimate changes."""
    new = {}
    for failure, failed in estimate.failures.items():
        key = f"{failure}/{update.name}"
        new[key] = flags.get(key, False) | failed
    key = f"nonfinite/{update.name}"
    if estimate.loss is not None:
        new[key] = flags[key] | ~estimate.loss.isfinite()
    size = estimate.metrics.get("hypergradient_norm")
    if size is not None:
        streak = f"zero/{update.name}"
        if streak in flags:
            new[streak] = torch.where(size == 0, flags[streak] + 1, 0)
        new[key] = new.get(key, flags[key]) | ~size.isfinite()
    return new
