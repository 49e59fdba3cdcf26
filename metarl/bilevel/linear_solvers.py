"""Solvers of `A x = b` for an operator given by its products: fixed numbers of products, no read-back.

Each returns `(x, residual)`, the residual `|b - A x| / |b|`, and conjugate gradients also whether it met a direction
without positive curvature, and how small the curvature was. All compile and run under vmap.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Operator = Callable[[Tensor], Tensor]


def conjugate_gradient(
    product: Operator, b: Tensor, iterations: int, tolerance: float | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Conjugate gradients (Hestenes & Stiefel 1952) for a symmetric positive definite operator.

    Args:
        product: `x -> A x`.
        b: the right-hand side, [P].
        iterations: products; at most P are needed in exact arithmetic.
        tolerance: of the residual, where it stops; by default ten times the dtype's epsilon.

    Returns:
        x [P]; residual (0-d); singular (0-d bool): a direction p with p^T A p <= 0, or too small to divide by;
        the smallest p^T A p / p^T p seen (0-d).
    """
    eps = torch.finfo(b.dtype).eps
    tolerance = 10 * eps if tolerance is None else tolerance
    x, r, p = torch.zeros_like(b), b, b
    rr = bb = b.dot(b)
    steepest = torch.zeros_like(bb)  # the largest curvature seen: what "too small" is measured by
    flattest = torch.full_like(bb, float("inf"))
    singular = torch.zeros_like(bb, dtype=torch.bool)
    for _ in range(iterations):
        ap = product(p)
        curvature, pp = p.dot(ap), p.dot(p)
        quotient = curvature / torch.where(pp > 0, pp, 1)
        steepest = torch.maximum(steepest, quotient)
        running = (rr > tolerance**2 * bb) & ~singular
        flattest = torch.where(running, torch.minimum(flattest, quotient), flattest)
        flat = curvature <= 10 * eps * steepest * pp  # not so for NaN, which goes on into x
        singular = singular | (running & flat)
        move = running & ~flat
        alpha = torch.where(move, rr / torch.where(move, curvature, 1), 0)
        x, r = x + alpha * p, r - alpha * ap
        rr, before = r.dot(r), rr
        p = torch.where(move, r + rr / torch.where(before > 0, before, 1) * p, p)
    return x, relative(r, b), singular, torch.where(flattest.isinf(), 0, flattest)


def neumann(product: Operator, b: Tensor, iterations: int, scale: float | Tensor) -> tuple[Tensor, Tensor]:
    """The truncated Neumann series `x = scale sum_{i < iterations} (I - scale A)^i b`.

    It converges where every eigenvalue of `scale A` lies in (0, 2); a residual above 1 says that it grows.
    """
    x, term = torch.zeros_like(b), b
    for _ in range(iterations):
        x = x + scale * term
        term = term - scale * product(term)
    return x, relative(term, b)


def fixed_point(transpose: Operator, b: Tensor, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """`x = sum_{i < iterations} J^i b`, towards `(I - J)^-1 b`; it converges where J is a contraction.

    Returns:
        x [P], residual (0-d), growing (0-d bool): the last term is above b and twice the middle one. A momentum's J
        is not normal, so that terms may rise for a while before they fall.
    """
    x, term = torch.zeros_like(b), b
    for i in range(iterations):
        if i == iterations // 2:
            middle = relative(term, b)
        x = x + term
        term = transpose(term)
    residual = relative(term, b)
    return x, residual, ~((residual <= 1) | (residual <= 2 * middle))


def relative(r: Tensor, b: Tensor) -> Tensor:
    """`|r| / |b|`, 0-d; `|r|` where b is zero."""
    bb = b.dot(b)
    return (r.dot(r) / torch.where(bb > 0, bb, 1)).sqrt()
