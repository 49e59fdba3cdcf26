"""Applying estimates: new parameters, optimiser states and flags; as a pure function, or over the old ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from metarl.bilevel.autodiff import Params
from metarl.bilevel.optimizers import Optimizer
from metarl.bilevel.state import TrainState, optimizer_step
from metarl.bilevel.update import Estimate, Tree, Update

DENSE = torch.contiguous_format
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


def apply_(estimates: Estimates, state: TrainState, owned: Set[int], stacked: bool = False) -> None:
    """The same numbers (to rounding) written over the state's own tensors, which saves memory and its traffic.

    Args:
        estimates: of all Updates due in the stage.
        state: overwritten.
        owned: the state's memory (see `memory`): what an estimate or an optimiser hands on of it is copied first.
        stacked: whether every tensor carries a leading axis of seeds.
    """
    # What is computed from the entry state comes first: a learned rate may itself move in this stage.
    writes = [_write(update, estimate.grads, state, owned, stacked) for update, estimate in estimates]
    for write in writes:
        write()
    for update, estimate in estimates:
        for name, value in _flags(update, estimate, state.flags).items():
            state.flags[name].copy_(value)


def memory(state: TrainState) -> frozenset[int]:
    """Where the tensors of a state lie."""
    return frozenset(_address(leaf) for leaf in pytree.tree_leaves(state) if isinstance(leaf, Tensor))


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _write(update: Update, grads: Params, state: TrainState, owned: Set[int], stacked: bool) -> Callable[[], None]:
    group = update.params
    params, opt = state.tree[group], state.opt[group]
    overwrite = update.optimizer.overwrite if isinstance(update.optimizer, Optimizer) else None
    if overwrite is not None and params and all(p.device.type == "cpu" for p in params.values()):
        own = {
            name: grad if grad.is_contiguous() and _address(grad) not in owned else grad.clone(memory_format=DENSE)
            for name, grad in grads.items()
        }
        return partial(overwrite, params, own, opt)
    step = partial(_step, update)
    new = (torch.vmap(step) if stacked else step)(state.tree, opt, grads)
    pairs = [
        (old, value.clone() if _address(value) in owned else value)
        for old, value in zip(pytree.tree_leaves((params, opt)), pytree.tree_leaves(new), strict=True)
        if isinstance(old, Tensor) and value is not old
    ]
    return partial(_copy, pairs)


def _copy(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    for old, new in pairs:
        old.copy_(new)


def _step(update: Update, tree: Tree, opt: Any, grads: Params) -> tuple[Params, Any]:
    return optimizer_step(update.optimizer_for(tree), tree[update.params], grads, opt)


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
