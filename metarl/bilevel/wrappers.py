"""Gradient clipping and learning-rate schedules around an optimiser, differentiable and safe to compile.

They nest: `cosine_decay(clip_by_global_norm(adam(3e-4), 1.0), steps=100_000)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchopt.base import GradientTransformation

from metarl.bilevel.optimizers import Optimizer, Overwrite, root, tree_map


class ScheduledState(NamedTuple):
    """`inner`: the wrapped optimiser's state; `count`: steps taken, a 0-d float64 tensor."""

    inner: Any
    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which nothing calls


def clip_by_global_norm(optimizer: GradientTransformation, max_norm: float) -> Optimizer:
    """`optimizer` on gradients scaled so that their norm, as one vector, is at most `max_norm`.

    `g <- g min(1, max_norm / (|g| + 1e-6))`, torch.nn.utils.clip_grad_norm_'s formula, here with the norm as a part
    of the graph (torchopt 0.7.3's takes it as a constant, so that hypergradients through it are wrong).
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm must be positive, not {max_norm}")

    def update(grads: Any, state: Any, *, params: Any = None, inplace: bool = False) -> tuple:
        squares: list[Tensor] = []
        tree_map(lambda g: squares.append(g.square().sum()), grads)
        factor = (max_norm / (root(torch.stack(squares).sum()) + 1e-6)).clamp(max=1.0)
        return optimizer.update(tree_map(lambda g: factor * g, grads), state, params=params, inplace=False)

    return _wrapper("clip_by_global_norm", optimizer, {"max_norm": max_norm}, optimizer.init, update)


def clips(optimizer: Any) -> bool:
    """Whether clipping stands around an optimiser, at any depth."""
    while isinstance(optimizer, Optimizer) and "optimizer" in optimizer.hparams:
        if optimizer.name == "clip_by_global_norm":
            return True
        optimizer = optimizer.hparams["optimizer"]
    return False


def cosine_decay(
    optimizer: GradientTransformation, steps: int, warmup: int = 0, final: float = 0.0, after: float | None = None
) -> Optimizer:
    """`optimizer` with its steps scaled by a cosine from 1 to `final` over `steps`, after a linear rise over `warmup`.

    The factor of step t = 1, 2, ... is `t / warmup` up to `warmup`; then `final + (1 - final) (1 + cos(pi x)) / 2`
    with `x = (t - 1 - warmup) / (steps - warmup)`, at most 1 (Loshchilov & Hutter 2017, arXiv:1608.03983, Eq. 5;
    without warm-up, torch's CosineAnnealingLR). Once the `steps` are over it stays `final`, or is `after`.
    """
    return _decaying("cosine_decay", lambda x: (1 + torch.cos(math.pi * x)) / 2, optimizer, steps, warmup, final, after)


def linear_decay(
    optimizer: GradientTransformation, steps: int, warmup: int = 0, final: float = 0.0, after: float | None = None
) -> Optimizer:
    """`optimizer` with its steps scaled linearly from 1 to `final` over `steps`, after a linear rise over `warmup`.

    The factor of step t = 1, 2, ... is `t / warmup` up to `warmup`; then `1 - (1 - final) x` with
    `x = (t - 1 - warmup) / (steps - warmup)`, at most 1. Once the `steps` are over it stays `final`, or is `after`.
    """
    return _decaying("linear_decay", lambda x: 1 - x, optimizer, steps, warmup, final, after)


def _decaying(
    name: str,
    shape: Callable[[Tensor], Tensor],
    optimizer: GradientTransformation,
    steps: int,
    warmup: int,
    final: float,
    after: float | None,
) -> Optimizer:
    if not 0 <= warmup < steps:
        raise ValueError(f"{name}: warmup must lie in 0..steps - 1 ({steps - 1}), not {warmup}")

    def init(params: Any) -> ScheduledState:
        leaves: list[Tensor] = []
        tree_map(leaves.append, params)
        return ScheduledState(optimizer.init(params), torch.zeros((), dtype=torch.float64, device=leaves[0].device))

    def factor_of(count: Tensor) -> Tensor:
        x = ((count - warmup) / (steps - warmup)).clamp(0, 1)
        factor = final + (1 - final) * shape(x)
        if after is not None:
            factor = torch.where(count < steps, factor, after)
        return torch.where(count < warmup, (count + 1) / warmup, factor) if warmup else factor

    def update(grads: Any, state: ScheduledState, *, params: Any = None, inplace: bool = False) -> tuple:
        factor = factor_of(state.count)
        updates, inner = optimizer.update(grads, state.inner, params=params, inplace=False)
        return tree_map(lambda u: factor.to(u.dtype) * u, updates), ScheduledState(inner, state.count + 1)

    own = optimizer.overwrite if isinstance(optimizer, Optimizer) else None

    def overwrite(params: dict, grads: dict, state: ScheduledState, factor: Tensor | None = None) -> None:
        assert own is not None
        mine = factor_of(state.count.view(-1)[0])  # seeds in a stack take their steps together
        own(params, grads, state.inner, mine if factor is None else mine * factor)
        state.count.add_(1)

    settings = {"steps": steps, "warmup": warmup, "final": final, "after": after}
    return _wrapper(name, optimizer, settings, init, update, None if own is None else overwrite)


def _wrapper(
    name: str,
    optimizer: GradientTransformation,
    settings: Mapping[str, Any],
    init: Callable,
    update: Callable,
    overwrite: Overwrite | None = None,
) -> Optimizer:
    adaptive = getattr(optimizer, "adaptive", False)
    hparams = {"optimizer": optimizer, **settings}
    return Optimizer(name, hparams, init, update, adaptive=adaptive, overwrite=overwrite)
