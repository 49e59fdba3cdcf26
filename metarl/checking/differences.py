"""A gradient against five-point central differences along directions, at several step sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metarl.bilevel import Params, hold_stop_gradients
from metarl.bilevel.autodiff import norm

STEPS = (1e-2, 1e-4, 1e-6)


@dataclass(frozen=True)
class Agreement:
    """How far a gradient lies from differences with step `h`; both relative to the gradient's norm.

    Attributes:
        error: the largest over the directions.
        noise: what rounding alone can make of it.
    """

    h: float
    error: float
    noise: float


def agreements(
    fn: Callable[[Params], tuple[Tensor, Any]], params: Params, grads: Params, seed: int = 0, random: int = 3
) -> list[Agreement]:
    """One Agreement per step size, along the gradient and along random directions of unit size per entry.

    A random direction d with unit entries has E (g . d)^2 = |g|^2, so that all errors are relative to |g|. Values
    that losses stop with `metarl.stop_gradient` are held; a gradient of zero is compared absolutely.
    """
    source = torch.Generator().manual_seed(seed)
    size = float(norm(grads))
    scale = size or 1.0
    directions = [{k: g / scale for k, g in grads.items()}] if size else []
    for _ in range(random):
        drawn = {k: torch.randn(p.shape, generator=source, dtype=p.dtype) for k, p in params.items()}
        rms = norm(drawn) / sum(p.numel() for p in params.values()) ** 0.5
        directions.append({k: d / rms for k, d in drawn.items()})
    with hold_stop_gradients() as rewind, torch.no_grad():
        value = float(fn(params)[0])

        def at(direction: Params, t: float) -> float:
            rewind()
            return float(fn({k: p + t * direction[k] for k, p in params.items()})[0])

        slopes: dict[float, list[float]] = {}
        rounding = 2e-16 * abs(value)
        for h in STEPS:
            slopes[h] = []
            for direction in directions:
                far, near, near_, far_ = (at(direction, t * h) for t in (2, 1, -1, -2))
                slopes[h].append((8 * (near - near_) - (far - far_)) / (12 * h))
                if h == min(STEPS):  # a fourth difference at so small a step is rounding alone
                    rounding = max(rounding, abs(far - 4 * near + 6 * value - 4 * near_ + far_) / 8)
    exact = [float(sum((grads[k] * d[k]).sum() for k in grads)) for d in directions]
    return [
        Agreement(
            h,
            max(abs(slope - e) for slope, e in zip(slopes[h], exact, strict=True)) / scale,
            rounding / h / scale,
        )
        for h in STEPS
    ]


def best(found: Sequence[Agreement]) -> Agreement:
    """The step size at which they agree best."""
    return min(found, key=lambda a: a.error)
