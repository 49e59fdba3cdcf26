"""Matrix products of single-precision tensors on a CPU through oneDNN, differentiable any number of times.

PyTorch's own products go to a library that leaves the widest vectors of some makers' CPUs unused: there oneDNN takes
half the time, elsewhere about the same. Recordings get the same products by rewriting (`metarl.bilevel.rewriting`);
this is for eager code.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LINEAR: Any = torch.ops.mkldnn._linear_pointwise.default if torch.backends.mkldnn.is_available() else None
"""`(x [M, K], w [N, K], bias [N] or None, "none", [], "") -> [M, N]`: `x w^T + bias`, with a bias that is dense in
memory, which is not checked there."""

_FEWEST = 8  # rows, and terms of a sum, from which oneDNN's cost of a call is earned
LEAST = 32**3  # multiplications of such a product
LONG, PART = 2048, 1024  # terms of a sum from which it is taken in parts, and of a part


def faster_by_onednn(m: int, k: int, n: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a product [m, k] x [k, n] had better go to oneDNN; depends on nothing that is measured."""
    return (
        min(m, k) >= _FEWEST
        and n > 1
        and m * k * n >= LEAST
        and dtype == torch.float32
        and device.type == "cpu"
        and torch.backends.mkldnn.is_available()
    )


def in_parts(a: Tensor, b: Tensor) -> bool:
    """Whether `a b` had better be a sum of products: oneDNN copies a transposed left factor, such as the activations
    of a weight's gradient, which is quick where the copy stays in the nearest cache."""
    return b.shape[0] >= LONG and not a.is_contiguous()


def affine(x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
    """`x w + bias`: x [M, K], w [K, N], bias [N]."""
    if (
        _plain()
        and faster_by_onednn(len(x), w.shape[0], w.shape[1], x.dtype, x.device)
        and x.dtype == w.dtype == bias.dtype
        and x.shape[1:] == w.shape[:1]
        and bias.shape == w.shape[1:]
        and bias.is_contiguous()
    ):
        return _Affine.apply(x, w, bias)
    return torch.addmm(bias, x, w)  # which says what is wrong with shapes


def _plain() -> bool:
    """Whether this is ordinary eager code: no transform, no recording, no compiler, no forward mode, no autocast."""
    return (
        torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._len_torch_dispatch_stack() == 0
        and torch.autograd.forward_ad._current_level < 0
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _product(a: Tensor, b: Tensor) -> Tensor:
    if not faster_by_onednn(len(a), b.shape[0], b.shape[1], a.dtype, a.device):
        return a @ b
    if torch.is_grad_enabled() and (a.requires_grad or b.requires_grad):
        return _Product.apply(a, b)
    return _by_onednn(a, b)


def _by_onednn(a: Tensor, b: Tensor) -> Tensor:
    if not in_parts(a, b):
        return LINEAR(a, b.t(), None, "none", [], "")
    parts = zip(a.split(PART, 1), b.split(PART), strict=True)
    first, *others = [LINEAR(left, right.t(), None, "none", [], "") for left, right in parts]
    for product in others:
        first += product
    return first


class _Product(torch.autograd.Function):
    """`a b`; its derivative consists of products again."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return _by_onednn(a, b)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors
        return (
            _product(grad, b.t()) if ctx.needs_input_grad[0] else None,
            _product(a.t(), grad) if ctx.needs_input_grad[1] else None,
        )


class _Affine(torch.autograd.Function):
    """`x w + bias`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return LINEAR(x, w.t(), bias, "none", [], "")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, w = ctx.saved_tensors
        return (
            _product(grad, w.t()) if ctx.needs_input_grad[0] else None,
            _product(x.t(), grad) if ctx.needs_input_grad[1] else None,
            grad.sum(0) if ctx.needs_input_grad[2] else None,
        )
