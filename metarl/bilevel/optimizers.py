"""Differentiable optimisers as torchopt GradientTransformations, safe to compile, vmap and differentiate.

Each equals one step of its torch.optim namesake. Unlike torchopt's, the adaptive ones compile under torch.func, and
their derivative stays finite where a gradient has always been zero (a dead ReLU): there the square root of the second
moment is differentiated as the constant that it is. `wrappers.py` adds clipping and schedules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchopt.base import EmptyState, GradientTransformation

Setting = float | Tensor  # a number, or a 0-d tensor that is itself learned
Overwrite = Callable[..., None]


class Optimizer(GradientTransformation):
    """A `GradientTransformation` that knows its name and settings, for backends, exports and checkpoints."""

    name: str
    hparams: Mapping[str, Any]
    adaptive: bool
    overwrite: Overwrite | None
    """`(params, grads, state, factor=None) -> None`: the same step (to rounding), times a 0-d tensor, written over
    parameters and state in one pass over memory, for dense tensors on a CPU; None where there is no such form."""

    def __new__(
        cls,
        name: str,
        hparams: Mapping[str, Any],
        init: Callable,
        update: Callable,
        adaptive: bool = False,
        overwrite: Overwrite | None = None,
    ) -> Optimizer:
        self = super().__new__(cls, init, update)
        self.name, self.hparams, self.adaptive = name, hparams, adaptive
        # A setting that is learned is a tensor, and may have one value for every seed of a stack.
        self.overwrite = None if any(isinstance(value, Tensor) for value in hparams.values()) else overwrite
        return self

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{key}={value}' for key, value in self.hparams.items())})"


class MomentumState(NamedTuple):
    """`trace`: the velocity, with the structure of the group."""

    trace: Any


class AdamState(NamedTuple):
    """`mu`, `nu`: first and second moments; `count`: steps taken, a 0-d float64 tensor."""

    mu: Any
    nu: Any
    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which nothing calls


class RMSpropState(NamedTuple):
    """`nu`: second moment; `count`: steps taken, a 0-d float64 tensor."""

    nu: Any
    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which nothing calls


def sgd(lr: Setting, weight_decay: Setting = 0.0) -> Optimizer:
    """Gradient descent: `p <- p - lr (g + weight_decay p)`."""

    _check_rate(lr)

    def update(grads: Any, state: EmptyState, *, params: Any = None, inplace: bool = False) -> tuple:
        grads = _decayed(grads, params, weight_decay)
        return tree_map(lambda g: -lr * g, grads), state

    def overwrite(params: dict, grads: dict, state: EmptyState, factor: Tensor | None = None) -> None:
        grads = _decayed(grads, params, weight_decay)
        rate = lr if factor is None else float(factor) * lr
        torch._foreach_add_(list(params.values()), [grads[name] for name in params], alpha=-rate)  # type: ignore[arg-type]  # no tensor: see Optimizer.overwrite

    hparams = {"lr": lr, "weight_decay": weight_decay}
    return Optimizer("sgd", hparams, lambda params: EmptyState(), update, overwrite=overwrite)


def momentum(lr: Setting, momentum: Setting = 0.9, nesterov: bool = False, weight_decay: Setting = 0.0) -> Optimizer:
    """Heavy-ball descent as torch.optim.SGD writes it: `m <- momentum m + g`, `p <- p - lr m`.

    With `nesterov` the step is along `g + momentum m`.
    """

    _check_rate(lr)

    def init(params: Any) -> MomentumState:
        return MomentumState(tree_map(torch.zeros_like, params))

    def update(grads: Any, state: MomentumState, *, params: Any = None, inplace: bool = False) -> tuple:
        grads = _decayed(grads, params, weight_decay)
        trace = tree_map(lambda m, g: momentum * m + g, state.trace, grads)
        step = tree_map(lambda g, m: g + momentum * m, grads, trace) if nesterov else trace
        return tree_map(lambda m: -lr * m, step), MomentumState(trace)

    hparams = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
    return Optimizer("momentum", hparams, init, update)


def adam(
    lr: Setting, b1: Setting = 0.9, b2: Setting = 0.999, eps: Setting = 1e-8, weight_decay: Setting = 0.0
) -> Optimizer:
    """Adam (Kingma & Ba 2015, arXiv:1412.6980, Algorithm 1), as torch.optim.Adam computes it.

    `m <- b1 m + (1 - b1) g`, `v <- b2 v + (1 - b2) g^2`,
    `p <- p - lr / (1 - b1^t) m / (sqrt(v / (1 - b2^t)) + eps)`; `weight_decay` adds `weight_decay p` to `g`.
    """
    _check_rate(lr)
    _check_betas(b1=b1, b2=b2)
    hparams = {"lr": lr, "b1": b1, "b2": b2, "eps": eps, "weight_decay": weight_decay}

    def update(grads: Any, state: AdamState, *, params: Any = None, inplace: bool = False) -> tuple:
        return _adam_step(_decayed(grads, params, weight_decay), state, lr, b1, b2, eps)

    overwrite = _fused(torch._fused_adam_, hparams)
    return Optimizer("adam", hparams, _adam_init, update, adaptive=True, overwrite=overwrite)


def adamw(
    lr: Setting, b1: Setting = 0.9, b2: Setting = 0.999, eps: Setting = 1e-8, weight_decay: Setting = 0.01
) -> Optimizer:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101): Adam's step with `- lr weight_decay p` beside it."""
    _check_rate(lr)
    _check_betas(b1=b1, b2=b2)
    hparams = {"lr": lr, "b1": b1, "b2": b2, "eps": eps, "weight_decay": weight_decay}

    def update(grads: Any, state: AdamState, *, params: Any = None, inplace: bool = False) -> tuple:
        if params is None:
            raise ValueError("adamw needs params=: its weight decay acts on them")
        updates, state = _adam_step(grads, state, lr, b1, b2, eps)
        return tree_map(lambda u, p: u - lr * weight_decay * p, updates, params), state

    overwrite = _fused(torch._fused_adamw_, hparams)
    return Optimizer("adamw", hparams, _adam_init, update, adaptive=True, overwrite=overwrite)


def rmsprop(lr: Setting, alpha: Setting = 0.99, eps: Setting = 1e-8, weight_decay: Setting = 0.0) -> Optimizer:
    """RMSprop (Tieleman & Hinton 2012, lecture 6.5) as torch.optim.RMSprop computes it.

    `v <- alpha v + (1 - alpha) g^2`, `p <- p - lr g / (sqrt(v) + eps)`; `weight_decay` adds `weight_decay p` to `g`.
    """
    _check_rate(lr)
    _check_betas(alpha=alpha)
    hparams = {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay}

    def init(params: Any) -> RMSpropState:
        return RMSpropState(tree_map(torch.zeros_like, params), _zero_count(params))

    def update(grads: Any, state: RMSpropState, *, params: Any = None, inplace: bool = False) -> tuple:
        grads = _decayed(grads, params, weight_decay)
        nu = tree_map(lambda v, g: alpha * v + (1 - alpha) * (g * g), state.nu, grads)
        return tree_map(lambda g, v: -lr * g / (root(v) + eps), grads, nu), RMSpropState(nu, state.count + 1)

    return Optimizer("rmsprop", hparams, init, update, adaptive=True)


def innermost(optimizer: Any) -> Any:
    """The optimiser inside clipping and schedules."""
    while isinstance(optimizer, Optimizer) and "optimizer" in optimizer.hparams:
        optimizer = optimizer.hparams["optimizer"]
    return optimizer


def first_step_is_sign(state: Any) -> bool:
    """Whether this is the state of an optimiser whose first step is about lr * sign(gradient)."""
    return isinstance(_innermost(state), AdamState | RMSpropState)


def steps_taken(state: Any) -> Tensor | None:
    """The steps that a state counts, 0-d float64; None where it counts none."""
    return getattr(_innermost(state), "count", None) if first_step_is_sign(state) else None


def _innermost(state: Any) -> Any:
    while hasattr(state, "inner"):  # a wrapper's state
        state = state.inner
    return state


def _check_rate(lr: Setting) -> None:
    if not isinstance(lr, Tensor) and not lr >= 0:
        raise ValueError(f"lr must be 0 or more, not {lr}")


def _check_betas(**betas: Setting) -> None:
    for name, value in betas.items():
        if not isinstance(value, Tensor) and not 0 <= value < 1:
            raise ValueError(f"{name} must lie in [0, 1), not {value}")


def _adam_init(params: Any) -> AdamState:
    return AdamState(tree_map(torch.zeros_like, params), tree_map(torch.zeros_like, params), _zero_count(params))


def _zero_count(params: Any) -> Tensor:
    return torch.zeros((), dtype=torch.float64, device=_first(params).device)


def _adam_step(
    grads: Any, state: AdamState, lr: Setting, b1: Setting, b2: Setting, eps: Setting
) -> tuple[Any, AdamState]:
    count = state.count + 1
    bias1, bias2 = _bias(count, b1), _bias(count, b2)
    bias2_root = bias2.sqrt()
    mu = tree_map(lambda m, g: torch.lerp(m, g, 1 - b1), state.mu, grads)
    nu = tree_map(lambda v, g: torch.lerp(v, g * g, 1 - b2), state.nu, grads)
    # With r = sqrt(bias2), the step is -(lr r / bias1) m / (sqrt(v) + eps r): all corrections on 0-d tensors.
    dtype = _first(mu).dtype
    scale, shift = (-lr * bias2_root / bias1).to(dtype), (eps * bias2_root).to(dtype)
    return tree_map(lambda m, v: scale * (m / (root(v) + shift)), mu, nu), AdamState(mu, nu, count)


def _fused(kernel: Callable, hparams: Mapping[str, Any]) -> Overwrite | None:
    """torch.optim's fused step; None where it differs: for an eps below `root` of zero, where a gradient is tiny."""
    if isinstance(hparams["eps"], Tensor) or hparams["eps"] < 1e-16:
        return None
    settings = {"beta1": hparams["b1"], "beta2": hparams["b2"]}
    settings |= {name: hparams[name] for name in ("weight_decay", "eps")}

    def overwrite(params: dict, grads: dict, state: AdamState, factor: Tensor | None = None) -> None:
        state.count.add_(1)
        lr = hparams["lr"] if factor is None else float(factor) * hparams["lr"]
        count = state.count.view(-1)[0]  # seeds in a stack take their steps together
        columns = [[group[name] for name in params] for group in (params, grads, state.mu, state.nu)]
        kernel(*columns, [], [count] * len(params), lr=lr, amsgrad=False, maximize=False, **settings)

    return overwrite


def _bias(count: Tensor, b: Setting) -> Tensor:
    """`1 - b^count` without a float ** Tensor, which torch.func cannot trace, and without cancellation."""
    if not isinstance(b, Tensor) and b == 0:
        return torch.ones_like(count)
    return -torch.expm1(count * (torch.log(b) if isinstance(b, Tensor) else math.log(b)))


def root(v: Tensor) -> Tensor:
    """The square root, with derivative 0 (not infinity) where `v` is 0 (its value there, 1e-19, drowns in eps)."""
    return v.clamp_min(torch.finfo(v.dtype).tiny).sqrt()


def decays(weight_decay: Setting) -> bool:
    """Whether there is a weight decay; one that is learned always counts."""
    return isinstance(weight_decay, Tensor) or weight_decay != 0


def _decayed(grads: Any, params: Any, weight_decay: Setting) -> Any:
    if not decays(weight_decay):
        return grads
    if params is None:
        raise ValueError("weight_decay needs params=: it acts on them")
    return tree_map(lambda g, p: g + weight_decay * p, grads, params)


def tree_map(fn: Callable, tree: Any, *rest: Any) -> Any:
    """`fn` over the tensors of nested dicts, lists and tuples (optree's C++ cannot be traced by the compiler)."""
    if isinstance(tree, Tensor):
        return fn(tree, *rest)
    if isinstance(tree, dict):
        return {key: tree_map(fn, value, *(other[key] for other in rest)) for key, value in tree.items()}
    return type(tree)([tree_map(fn, *values) for values in zip(tree, *rest, strict=True)])


def _first(tree: Any) -> Tensor:
    while not isinstance(tree, Tensor):
        tree = next(iter(tree.values() if isinstance(tree, dict) else tree))
    return tree
