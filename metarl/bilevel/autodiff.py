"""Gradients of a scalar loss with respect to one parameter group, in eager, compiled and vmapped code.

Two ways give the same numbers. `torch.func` is what `torch.compile` and `torch.vmap` can trace through; plain
autograd costs about 1.3x less in eager, and leaves stop-gradients recordable for finite differences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Params = dict[str, Tensor]

_held: _Held | None = None


class _Held:
    """The values that `stop_gradient` saw in one evaluation, to be returned in the next ones."""

    def __init__(self, values: list[Tensor] | None = None, position: int | None = None) -> None:
        self.values: list[Tensor] = values or []
        self.position = position  # None while recording

    def __call__(self, x: Tensor) -> Tensor:
        if self.position is None:
            self.values.append(x.detach().clone())
            return self.values[-1]
        self.position += 1
        if self.position > len(self.values):
            raise RuntimeError(
                f"stop_gradient was called more often than in the recorded evaluation ({len(self.values)} times), so "
                "that no value can be held: a loss must call it the same number of times at every point"
            )
        return self.values[self.position - 1]


def stop_gradient(x: Tensor) -> Tensor:
    """`x` as a constant: a detach whose value `hold_stop_gradients` can keep fixed.

    Finite differences see through a plain detach, so an analytic gradient that is right would be called wrong.
    """
    if _held is not None:
        return _held(x)
    return x.detach()


@contextmanager
def hold_stop_gradients() -> Iterator[Callable[[], None]]:
    """Records every `stop_gradient` value, then replays them after each call of the yielded `rewind`.

    ```python
    with hold_stop_gradients() as rewind:
        value = f(x)          # records
        rewind(); f(x + h)    # replays: the stopped values are those of f(x)
    ```
    """
    if _held is not None:
        raise RuntimeError("hold_stop_gradients does not nest")
    held = _Held()

    def rewind() -> None:
        held.position = 0

    with _holding(held):
        yield rewind


Function = Callable[[Params], tuple[Tensor, Any]]


def recorded(fn: Function) -> Function:
    """`fn` with the values that it stopped: `params -> (value, (aux, stopped values))`."""

    def recording(params: Params) -> tuple[Tensor, Any]:
        with _holding(_Held()) as held:
            value, aux = fn(params)
        return value, (aux, tuple(held.values))

    return recording


def replayed(fn: Function, values: tuple[Tensor, ...]) -> Function:
    """`fn` with every `stop_gradient` giving the value that it gave when recorded."""

    def replaying(params: Params) -> tuple[Tensor, Any]:
        with _holding(_Held(list(values), 0)):
            return fn(params)

    return replaying


@contextmanager
def _holding(held: _Held) -> Iterator[_Held]:
    global _held
    before, _held = _held, held
    try:
        yield held
    finally:
        _held = before


def _transformed() -> bool:
    """Whether this code runs under torch.compile or inside a torch.func transform."""
    return torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None


def is_tracked(tree: Any) -> bool:
    """Whether autograd follows any tensor of a nested dict."""
    if isinstance(tree, Tensor):
        return tree.requires_grad
    return any(is_tracked(value) for value in tree.values())


def value_and_grad(
    fn: Callable[[Params], tuple[Tensor, Any]], params: Params, *, differentiable: bool = False
) -> tuple[Params, Tensor, Any]:
    """Gradient, value and auxiliary output of `fn(params) -> (scalar, aux)`.

    Args:
        fn: a pure function of the group.
        params: the point; of tensors that autograd already follows, the gradient's graph leads back to them.
        differentiable: keep the graph of the gradient, for a caller that differentiates through it.

    Returns:
        (grads, value, aux); a parameter that does not reach the value has gradient zero.
    """
    if _transformed():
        grads, (value, aux) = torch.func.grad_and_value(fn, has_aux=True)(params)
        return grads, value, aux
    grads, value, aux = _tape(fn, params, differentiable)
    return {k: torch.zeros_like(params[k]) if g is None else g for k, g in grads.items()}, value, aux


def _tape(
    fn: Callable[[Params], tuple[Tensor, Any]], params: Params, differentiable: bool
) -> tuple[dict[str, Tensor | None], Tensor, Any]:
    with torch.enable_grad():
        # Aliases: where `fn` holds tensors computed from `params`, the gradient must not flow back through those.
        leaves = {k: p.view_as(p) if p.requires_grad else p.detach().requires_grad_() for k, p in params.items()}
        value, aux = fn(leaves)
        grads: tuple[Tensor | None, ...] = (None,) * len(leaves)
        if value.requires_grad:
            grads = torch.autograd.grad(value, list(leaves.values()), create_graph=differentiable, allow_unused=True)
    if not differentiable:
        value, aux = value.detach(), detach(aux)
    return dict(zip(leaves, grads, strict=True)), value, aux


def linearized(fn: Callable[[Params], Params], params: Params) -> tuple[Params, Callable[[Params], Params]]:
    """`fn(params)` and `v -> v^T (d fn / d params)`, which may be called many times; detached.

    Args:
        fn: a function of the group whose output has any names, such as a gradient.
        params: the point.
    """
    if _transformed():
        value, pull = torch.func.vjp(fn, params)[:2]
        return value, lambda v: pull(v)[0]
    with torch.enable_grad():
        leaves = {k: p.detach().requires_grad_() for k, p in params.items()}
        outputs = fn(leaves)
    tracked = {k: y for k, y in outputs.items() if y.requires_grad}

    def pull_back(v: Params) -> Params:
        if not tracked:
            return {k: torch.zeros_like(p) for k, p in params.items()}
        along = [v[k] for k in tracked]
        grads = torch.autograd.grad(
            list(tracked.values()), list(leaves.values()), along, retain_graph=True, allow_unused=True
        )
        return {k: torch.zeros_like(params[k]) if g is None else g for k, g in zip(leaves, grads, strict=True)}

    return detach(outputs), pull_back


def ravel(params: Params) -> Tensor:
    """A group as one vector, in the group's order."""
    return torch.cat([p.reshape(-1) for p in params.values()])


def unravel(vector: Tensor, like: Params) -> Params:
    """A vector cut into the shapes of a group."""
    parts = vector.split([p.numel() for p in like.values()])
    return {name: part.view(p.shape) for part, (name, p) in zip(parts, like.items(), strict=True)}


def unreached(fn: Callable[[Params], tuple[Tensor, Any]], params: Params) -> list[str]:
    """Names of the parameters that have no path to the value of `fn` (not merely a gradient of zero)."""
    grads, _, _ = _tape(fn, params, differentiable=False)
    return [name for name, grad in grads.items() if grad is None]


def detach(tree: Any) -> Any:
    """The same nested structure with every tensor detached."""
    if isinstance(tree, Tensor):
        return tree.detach()
    if isinstance(tree, dict):
        return {key: detach(value) for key, value in tree.items()}
    if isinstance(tree, tuple):
        values = [detach(value) for value in tree]
        return type(tree)(*values) if hasattr(tree, "_fields") else tuple(values)
    if isinstance(tree, list):
        return [detach(value) for value in tree]
    return tree


def norm(params: Params) -> Tensor:
    """The Euclidean norm of a group taken as one vector, 0-d."""
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(p) for p in params.values()]))
