"""TrainState: everything that a step changes, as one pytree of tensors; and one optimiser step on it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torchopt.base import GradientTransformation

from metarl.bilevel.autodiff import Params
from metarl.bilevel.update import Tree


class TrainState(NamedTuple):
    """A pytree; no step counter inside, so that a compiled step never branches on one.

    Attributes:
        tree: every parameter group by name.
        opt: optimiser state by group.
        flags: sticky 0-d tensors by Update, read by the training loop only when it logs or saves:
            `nonfinite/<update>` (bool) and `zero/<update>` (hypergradients of exactly zero in a row, int64).
    """

    tree: Tree
    opt: dict[str, Any]
    flags: dict[str, Tensor]

    def with_params(self, group: str, params: Params) -> TrainState:
        """The same state with one group replaced."""
        return self._replace(tree={**self.tree, group: params})


def apply_updates(params: Params, updates: Params) -> Params:
    """`params + updates`, entry by entry."""
    return {name: value + updates[name] for name, value in params.items()}


def optimizer_step(optimizer: GradientTransformation, params: Params, grads: Params, opt: Any) -> tuple[Params, Any]:
    """One step of a gradient transformation: new parameters and new optimiser state; nothing in place."""
    updates, opt = optimizer.update(grads, opt, params=params, inplace=False)
    return apply_updates(params, updates), opt


def finite(state: TrainState) -> dict[str, bool]:
    """Per group, whether its parameters and its optimiser's state are finite (reads back; not for the hot path)."""
    return {
        group: all(
            bool(torch.isfinite(leaf).all())
            for leaf in pytree.tree_leaves((params, state.opt.get(group)))
            if isinstance(leaf, Tensor)
        )
        for group, params in state.tree.items()
    }
