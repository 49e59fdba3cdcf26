"""FiniteDifference: the unrolled hypergradient with differences in the place of second derivatives."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from metarl.bilevel import virtual
from metarl.bilevel.autodiff import Params, norm, recorded, replayed, value_and_grad
from metarl.bilevel.direct import Direct
from metarl.bilevel.optimizers import Optimizer, innermost
from metarl.bilevel.state import TrainState, optimizer_step
from metarl.bilevel.unrolled import Unrolled
from metarl.bilevel.update import Batches, Estimate, Objective, OptimizerLike, Update
from metarl.bilevel.virtual import Inner
from metarl.errors import ConfigError

SMALL_EPS = 1e-5  # of an adaptive optimiser: below it, a warning


@dataclass(frozen=True)
class FiniteDifference:
    """The gradient through virtual steps from first derivatives only (DARTS, Liu et al. 2019, arXiv:1806.09055, Eq. 8).

    For one step of sgd with rate xi, `theta' = theta - xi grad_theta f(theta, phi)` and `u = dF/dtheta'`::

        estimate = dF/dphi - xi [grad_phi f(theta + h u, phi) - grad_phi f(theta - h u, phi)] / (2 h)

    the difference taken around `theta`. Here the adjoint u goes backwards through any number of steps and through any
    of metarl's optimisers, whose own step is differentiated exactly. Three first-order gradients per step, no second
    derivative: for losses that have none in PyTorch, or for memory. What `metarl.stop_gradient` stopped at `theta` is
    held at the displaced points; a plain detach is seen through. Its bias is O(h^2), with h in the order of
    eps^(1/3) |theta| / |u|: for smooth losses about 1e-9 relative in float64, 1e-3 in float32. Not for Adam or RMSprop
    with a small eps over ReLU units: there the step's derivative is up to lr/eps, and u points at dead units alone.

    Attributes:
        inner: the Update that is rolled, or its name; its gradient must be `Direct`.
        optimizer: the virtual optimiser, started fresh; None takes the inner Update's own and its current state.
        steps: virtual steps.
        epsilon: the length `h |u|` of the displacement, relative to `max(1, |theta|)`; by default the cube root of the
            dtype's epsilon.

    Raises:
        ConfigError: an inner Update that it cannot roll.
    """

    inner: Inner
    optimizer: OptimizerLike | None = None
    steps: int = 1
    epsilon: float | None = None

    exact: ClassVar[bool] = False
    tolerance: ClassVar[float] = 1e-3  # relative; beyond it the differences cannot be trusted
    differentiable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.steps < 1 or (self.epsilon is not None and self.epsilon <= 0):
            raise ConfigError("FiniteDifference: steps must be at least 1 and epsilon positive")

    def resolve(self, lookup: Callable[[str], Update]) -> FiniteDifference:
        """The same estimator with the name of its inner Update replaced by the Update."""
        inner = virtual.resolved(self.inner, lookup)
        if len(inner) != 1 or not isinstance(inner[0].gradient, Direct):
            raise ConfigError("FiniteDifference: it rolls one inner Update with a plain gradient; use Unrolled")
        return replace(self, inner=inner)

    @property
    def inners(self) -> tuple[Update, ...]:
        """The inner Update, in a tuple."""
        return virtual.updates_of(self.inner)

    def objective(self, update: Update, state: TrainState, batches: Batches) -> Objective:
        """The function whose gradient is approximated: the outer loss through the virtual steps."""
        return self._unrolled.objective(update, state, batches)

    def check(self, update: Update, state: TrainState) -> None:
        """Refuses a foreign optimiser and the group of its own inner Update."""
        (inner,) = self.inners
        if inner.params == update.params:
            raise ConfigError(f"update {update.name!r}: FiniteDifference moves another group than its inner Update")
        if not isinstance(virtual.built(self.optimizer or inner.optimizer, state.tree), Optimizer):
            raise ConfigError(f"update {update.name!r}: FiniteDifference rolls metarl's optimisers only; use Unrolled")
        self._unrolled.check(update, state)
        plain = innermost(virtual.built(self.optimizer or inner.optimizer, state.tree))
        eps = plain.hparams.get("eps", 1.0)
        if not isinstance(eps, Tensor) and eps < SMALL_EPS:
            warnings.warn(
                f"update {update.name!r}: FiniteDifference through {plain.name} with eps={eps:g}: where a gradient is "
                "near zero (a dead ReLU), differences of its step are worthless; raise eps, or use Unrolled",
                stacklevel=3,
            )

    def __call__(self, update: Update, state: TrainState, batches: Batches) -> Estimate:
        (inner,) = self.inners
        group, phi = inner.params, state.tree[update.params]
        optimizer = self.optimizer or inner.optimizer
        start = here = state if self.optimizer is None else virtual.fresh({group: optimizer}, state)
        walked = []
        for _ in range(self.steps):
            objective = recorded(inner.gradient.objective(inner, here, batches))  # type: ignore[attr-defined]
            grads, _, (_, stopped) = value_and_grad(objective, here.tree[group])
            walked.append((here, grads, stopped))
            made = virtual.built(optimizer, here.tree)
            theta, opt = optimizer_step(made, here.tree[group], grads, here.opt[group])
            here = here.with_params(group, theta)._replace(opt={**here.opt, group: opt})

        theta = here.tree[group]
        slopes, loss, (metrics, _) = _joint_gradient(update, here, group, update.params, theta, batches)
        adjoint, estimate = slopes
        opt_adjoint = _zeros_like(here.opt[group])
        for at, grads, stopped in reversed(walked):

            def step(theta: Params, opt: Any, grads: Params, phi: Params, at: TrainState = at) -> tuple[Params, Any]:
                made = virtual.built(optimizer, at.with_params(update.params, phi).tree)
                return optimizer_step(made, theta, grads, opt)

            pull = torch.func.vjp(step, at.tree[group], at.opt[group], grads, phi)[1]
            back, opt_adjoint, u, direct = pull((adjoint, opt_adjoint))
            second, mixed = self._difference(inner, at, update.params, u, batches, stopped)
            adjoint = {k: back[k] + second[k] for k in back}
            estimate = {k: estimate[k] + direct[k] + mixed[k] for k in estimate}

        moved = norm({k: v - start.tree[group][k] for k, v in theta.items()})
        metrics = {**metrics, "inner_step_norm": moved, "hypergradient_norm": norm(estimate)}
        if self.optimizer is None:
            metrics |= virtual.cold_moments(self.inners, state)
        return Estimate(loss, estimate, metrics, theta)

    def _difference(
        self, inner: Update, at: TrainState, outer: str, u: Params, batches: Batches, stopped: tuple[Tensor, ...]
    ) -> tuple[Params, Params]:
        """`u^T` times the second derivatives of the inner loss by theta and theta, and by theta and phi."""
        theta = at.tree[inner.params]
        length = norm(u)
        epsilon = torch.finfo(length.dtype).eps ** (1 / 3) if self.epsilon is None else self.epsilon
        h = epsilon * norm(theta).clamp_min(1) / torch.where(length > 0, length, 1)

        def gradients(sign: float) -> tuple[Params, Params]:
            displaced = {k: p + sign * h * u[k] for k, p in theta.items()}
            return _joint_gradient(inner, at, inner.params, outer, displaced, batches, stopped)[0]

        ahead, behind = gradients(1.0), gradients(-1.0)
        return tuple({k: (a[k] - b[k]) / (2 * h) for k in a} for a, b in zip(ahead, behind, strict=True))  # type: ignore[return-value]

    @property
    def _unrolled(self) -> Unrolled:
        return Unrolled(self.inner, self.optimizer, self.steps)


def _joint_gradient(
    update: Update,
    state: TrainState,
    group: str,
    outer: str,
    theta: Params,
    batches: Batches,
    stopped: tuple[Tensor, ...] | None = None,
) -> tuple[tuple[Params, Params], Tensor, Any]:
    """The gradient of an Update's own loss by two groups at once: at `theta` and at the state's outer group."""
    phi = state.tree[outer]

    def loss(both: Params) -> tuple[Tensor, Any]:
        groups = {group: {k: both[f"0{k}"] for k in theta}, outer: {k: both[f"1{k}"] for k in phi}}
        value, metrics = update.evaluate({**state.tree, **groups}, batches)
        return value, (metrics, {})

    both = {f"0{k}": v for k, v in theta.items()} | {f"1{k}": v for k, v in phi.items()}
    grads, value, aux = value_and_grad(loss if stopped is None else replayed(loss, stopped), both)
    return ({k: grads[f"0{k}"] for k in theta}, {k: grads[f"1{k}"] for k in phi}), value, aux


def _zeros_like(opt: Any) -> Any:
    return torch.utils._pytree.tree_map(torch.zeros_like, opt)
