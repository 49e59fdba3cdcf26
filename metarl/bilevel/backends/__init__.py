"""The unrolled virtual steps through other libraries, eagerly: for users of their optimisers, and as oracles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchopt.base import ChainedGradientTransformation, GradientTransformation

from metarl.bilevel.optimizers import Optimizer
from metarl.bilevel.state import TrainState
from metarl.bilevel.update import Batches, OptimizerLike, Tree, Update
from metarl.errors import ConfigError

NAMES = ("native", "torchopt", "higher")

_KNOWN_WRONG = {
    "clip_grad_norm": (
        "torchopt 0.7.3 takes the norm as a constant, so the hypergradient through it is wrong; use "
        "metarl.clip_by_global_norm"
    ),
    "scale_by_accelerated_adam": (
        "torchopt 0.7.3's accelerated Adam has twice the right derivative in its first step; use "
        "use_accelerated_op=False"
    ),
}
_HIDDEN_STATE = {
    "trace": "torchopt 0.7.3's momentum keeps a flag outside its state, so that no run could resume with it; use "
    "metarl.momentum",
}


def roll(
    backend: str,
    inners: tuple[Update, ...],
    optimizers: Mapping[str, OptimizerLike],
    state: TrainState,
    batches: list[Batches],
) -> Tree:
    """The tree after one virtual step of every inner Update per entry of `batches`, differentiable."""
    from metarl.bilevel.backends import higher, torchopt

    return {"torchopt": torchopt.roll, "higher": higher.roll}[backend](inners, optimizers, state, batches)


def refuse_known_wrong(optimizer: GradientTransformation) -> None:
    """Raises ConfigError for a torchopt transformation whose derivative is known to be wrong."""
    _refuse(optimizer, "virtual optimiser", {**_KNOWN_WRONG, **_HIDDEN_STATE})


def refuse_hidden_state(optimizer: GradientTransformation) -> None:
    """Raises ConfigError for a torchopt transformation whose state is not all that it remembers."""
    _refuse(optimizer, "optimiser", _HIDDEN_STATE)


def _refuse(optimizer: GradientTransformation, role: str, refused: Mapping[str, str]) -> None:
    if isinstance(optimizer, Optimizer):
        if "optimizer" in optimizer.hparams:
            _refuse(optimizer.hparams["optimizer"], role, refused)
        return
    parts: tuple[Any, ...] = (optimizer,)
    if isinstance(optimizer, ChainedGradientTransformation):
        parts = optimizer.transformations
    for part in parts:
        for cell in (part.update, *(c.cell_contents for c in getattr(part.update, "__closure__", None) or ())):
            if isinstance(cell, GradientTransformation):
                _refuse(cell, role, refused)
            name = getattr(cell, "__qualname__", "")
            for wrong, reason in refused.items():
                if wrong in name:
                    raise ConfigError(f"{role}: {wrong} is refused: {reason}")
