"""Implicit: the hypergradient at an inner optimum, by the implicit function theorem."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from metarl.bilevel import linear_solvers, virtual
from metarl.bilevel.autodiff import (
    Params,
    is_tracked,
    linearized,
    norm,
    ravel,
    stop_gradient,
    unravel,
    value_and_grad,
)
from metarl.bilevel.direct import Direct
from metarl.bilevel.optimizers import MomentumState, Optimizer, Setting, decays, innermost
from metarl.bilevel.state import TrainState
from metarl.bilevel.unrolled import Unrolled
from metarl.bilevel.update import Batches, Estimate, Metrics, Objective, OptimizerLike, Update
from metarl.bilevel.virtual import Inner
from metarl.bilevel.wrappers import clips
from metarl.errors import ConfigError


@dataclass(frozen=True)
class Implicit:
    """The gradient of an outer loss at an optimum of the inner one, without the way that led there.

    Where `grad_theta f(theta, phi) = 0`, with `H` the inner Hessian (plus the inner optimiser's weight decay)::

        estimate = dF/dphi - (d grad_theta f / d phi)^T v,   H v = dF/dtheta

    (Pedregosa 2016, arXiv:1602.02355, Eq. 6; Lorraine et al. 2020, arXiv:1911.02590, Eq. 3.) It looks at the inner
    parameters as they stand, so train them well between outer steps, or give `steps`. Memory is that of one Hessian
    product whatever the inner training took. How `v` is found:

    - `cg`: conjugate gradients (iMAML). Exact within P products where H is positive definite, by far the fastest.
    - `neumann`: `v = scale sum_i (I - scale H)^i dF/dtheta` (Lorraine et al., Eq. 4); biased when cut short, and
      divergent unless `scale` times the largest eigenvalue is below 2.
    - `fixed_point`: the same through the inner optimiser's own step, momentum included (Grazzi et al. 2020,
      arXiv:2006.16218, Eq. 8). No adaptive optimiser: where the gradient is zero its step has no derivative.
    - `identity`: `v = scale dF/dtheta` (T1-T2, Luketina et al. 2016, arXiv:1511.06727). One product, biased.

    cg, neumann and identity rest on `grad f = 0` alone, so Adam or RMSprop may have led there. AdamW with weight decay
    has no such optimum and is refused.

    Attributes:
        inner: the Update, or its name.
        solver: cg, neumann, fixed_point or identity: how v is found.
        iterations: Hessian products.
        damping: added to H's diagonal (cg, neumann), where it is singular or indefinite; biases the estimate.
        scale: of neumann and identity; by default the learning rate of an inner sgd or momentum, and 1 for identity.
        tolerance: cg stops at this relative residual; by default ten times the dtype's epsilon.
        optimizer: of the virtual steps; None takes the inner Update's own and its current state.
        steps: virtual steps, not differentiated, before the optimum is taken as reached.

    Raises:
        ConfigError: an inner optimiser or estimator for which the formula does not hold.
    """

    inner: Inner
    solver: Literal["cg", "neumann", "fixed_point", "identity"] = "cg"
    iterations: int = 20
    damping: float = 0.0
    scale: float | None = None
    tolerance: float | None = None
    optimizer: OptimizerLike | None = None
    steps: int = 0

    differentiable: ClassVar[bool] = False
    failures: ClassVar[Mapping[str, str]] = {
        "singular": "the inner Hessian is singular or indefinite, so that conjugate gradients have no solution; give "
        "Implicit damping=, more than the metric smallest_curvature lies below zero, or make the inner loss strictly "
        "convex (a penalty, weight decay)",
        "diverged": "the series of its implicit solve grows instead of shrinking; lower Implicit's scale= (neumann) or "
        "the inner learning rate (fixed_point), or use solver='cg'",
    }

    def __post_init__(self) -> None:
        solvers = ("cg", "neumann", "fixed_point", "identity")
        if self.solver not in solvers:
            hint = "; an optimiser is given as optimizer=" if hasattr(self.solver, "update") else ""
            raise ConfigError(f"Implicit: solver must be one of {', '.join(solvers)}, not {self.solver!r}{hint}")
        if self.iterations < 1 or self.steps < 0 or self.damping < 0:
            raise ConfigError("Implicit: iterations must be at least 1, steps and damping at least 0")
        if self.scale is not None and self.scale <= 0:
            raise ConfigError(f"Implicit: scale must be positive, not {self.scale}")
        if self.damping and self.solver not in ("cg", "neumann"):
            raise ConfigError(f"Implicit: damping belongs to cg and neumann, not to {self.solver}")
        if self.scale is not None and self.solver not in ("neumann", "identity"):
            raise ConfigError(f"Implicit: scale belongs to neumann and identity, not to {self.solver}")

    def resolve(self, lookup: Callable[[str], Update]) -> Implicit:
        """The same estimator with the name of its inner Update replaced by the Update."""
        inner = virtual.resolved(self.inner, lookup)
        if len(inner) != 1:
            raise ConfigError(f"Implicit: one inner Update has one optimum; {len(inner)} are given. Use Unrolled")
        gradient = inner[0].gradient
        if not isinstance(gradient, Direct | Unrolled) or not getattr(gradient, "exact", True):
            raise ConfigError(
                f"Implicit: the estimated gradient of inner Update {inner[0].name!r} is not the gradient of a function "
                "whose Hessian could be taken; let it use Direct, or Unrolled without truncate and first_order"
            )
        return replace(self, inner=inner)

    @property
    def rests(self) -> bool:
        """Whether it relies on real steps of its inner Update to have reached the optimum."""
        return self.steps == 0

    @property
    def inners(self) -> tuple[Update, ...]:
        """The inner Update, in a tuple."""
        return virtual.updates_of(self.inner)

    def __call__(self, update: Update, state: TrainState, batches: Batches) -> Estimate:
        objective, inner, failures = self._linearized(update, state, batches)
        grads, loss, (metrics, _) = value_and_grad(objective, state.tree[update.params])
        return Estimate(loss, grads, {**metrics, "hypergradient_norm": norm(grads)}, inner, failures)

    def objective(self, update: Update, state: TrainState, batches: Batches) -> Objective:
        """A function with the estimate as its gradient: `F(theta, phi) - <v, grad_theta f(theta, phi)>`, v held.

        Its value is F's.
        """
        return self._linearized(update, state, batches)[0]

    def check(self, update: Update, state: TrainState) -> None:
        """Raises ConfigError for an inner optimiser under which the formula does not hold."""
        inner = self.inners[0]
        if inner.params == update.params:
            raise ConfigError(f"update {update.name!r}: Implicit moves another group than its inner Update")
        self._decay(inner, virtual.built(self.optimizer or inner.optimizer, state.tree))
        self._scale(inner, virtual.built(self.optimizer or inner.optimizer, state.tree))

    def _linearized(
        self, update: Update, state: TrainState, batches: Batches
    ) -> tuple[Objective, Params, dict[str, Tensor]]:
        (inner,) = self.inners
        group = inner.params
        if is_tracked(state.tree):
            raise ConfigError(f"update {update.name!r}: Implicit's estimate cannot be differentiated again")
        optimizers = {group: self.optimizer or inner.optimizer}
        if self.optimizer is not None:
            state = virtual.fresh(optimizers, state)
        for _ in range(self.steps):
            state = virtual.virtual_step(inner, optimizers, state, batches)
        theta = state.tree[group]
        right, _, _ = value_and_grad(lambda p: update.evaluate({**state.tree, group: p}, batches), theta)
        solve = self._fixed_point if self.solver == "fixed_point" else self._stationary
        penalty, metrics, failures = solve(inner, optimizers, state, batches, right)

        def objective(params: Params) -> tuple[Tensor, tuple[Metrics, Params]]:
            at = state.with_params(update.params, params)
            loss, outer_metrics = update.evaluate(at.tree, batches)
            term = penalty(at)
            return loss - (term - stop_gradient(term)), ({**outer_metrics, **metrics}, theta)

        return objective, theta, failures

    def _stationary(
        self,
        inner: Update,
        optimizers: Mapping[str, OptimizerLike],
        state: TrainState,
        batches: Batches,
        right: Params,
    ) -> tuple[Callable[[TrainState], Tensor], Metrics, dict[str, Tensor]]:
        """`<v, grad f>` as a function of the state, with `H v = right`."""
        theta = state.tree[inner.params]
        scale = self._scale(inner, virtual.built(optimizers[inner.params], state.tree))

        def gradient(at: TrainState, params: Params) -> Params:
            objective = inner.gradient.objective(inner, at, batches)  # type: ignore[attr-defined]
            grads, _, _ = value_and_grad(objective, params, differentiable=True)
            decay = self._decay(inner, virtual.built(optimizers[inner.params], at.tree))
            return {k: g + decay * params[k] for k, g in grads.items()} if decays(decay) else grads

        at_theta, pull = linearized(lambda p: gradient(state, p), theta)

        def product(v: Tensor) -> Tensor:
            return ravel(pull(unravel(v, theta))) + self.damping * v

        b = ravel(right)
        metrics = {"inner_gradient_norm": norm(at_theta)}
        failures = {name: torch.zeros_like(b[0], dtype=torch.bool) for name in self.failures}
        if self.solver == "cg":
            v, residual, failures["singular"], curvature = linear_solvers.conjugate_gradient(
                product, b, self.iterations, self.tolerance
            )
            metrics["smallest_curvature"] = curvature - self.damping
        elif self.solver == "neumann":
            v, residual = linear_solvers.neumann(product, b, self.iterations, scale)
            failures["diverged"] = ~(residual <= 1)
        else:
            v = scale * b
            residual = linear_solvers.relative(product(v) - b, b)
        held = unravel(v, theta)

        def penalty(at: TrainState) -> Tensor:
            grads = gradient(at, theta)
            return torch.stack([(held[k] * g).sum() for k, g in grads.items()]).sum()

        return penalty, {**metrics, "residual": residual}, failures

    def _fixed_point(
        self,
        inner: Update,
        optimizers: Mapping[str, OptimizerLike],
        state: TrainState,
        batches: Batches,
        right: Params,
    ) -> tuple[Callable[[TrainState], Tensor], Metrics, dict[str, Tensor]]:
        """`-<u, step>` as a function of the state, with `u = right + J^T u` for the Jacobian J of one inner step."""
        group = inner.params
        names = list(state.tree[group])

        def joint(theta: Params, opt: Any) -> Params:
            velocity = {f"velocity/{k}": v for k, v in opt.trace.items()} if isinstance(opt, MomentumState) else {}
            return {**{k: theta[k] for k in names}, **velocity}

        def step(at: TrainState, both: Params) -> Params:
            opt = at.opt[group]
            if isinstance(opt, MomentumState):
                opt = MomentumState({k: both[f"velocity/{k}"] for k in names})
            at = at.with_params(group, {k: both[k] for k in names})._replace(opt={**at.opt, group: opt})
            optimizer = virtual.built(optimizers[group], at.tree)
            self._decay(inner, optimizer)
            stepped = virtual.virtual_step(inner, {group: optimizer}, at, batches)
            return joint(stepped.tree[group], stepped.opt[group])

        here = joint(state.tree[group], state.opt[group])
        after, pull = linearized(lambda both: step(state, both), here)
        b = ravel({k: right.get(k, torch.zeros_like(p)) for k, p in here.items()})
        u, residual, growing = linear_solvers.fixed_point(lambda v: ravel(pull(unravel(v, here))), b, self.iterations)
        held = unravel(u, here)

        def penalty(at: TrainState) -> Tensor:
            stepped = step(at, here)
            return -torch.stack([(held[k] * p).sum() for k, p in stepped.items()]).sum()

        moved = norm({k: after[k] - here[k] for k in names})
        failures = {"singular": torch.zeros_like(b[0], dtype=torch.bool), "diverged": growing}
        return penalty, {"inner_step_norm": moved, "residual": residual}, failures

    def _decay(self, inner: Update, optimizer: Any) -> Setting:
        """The weight decay that moves the optimum; raises ConfigError where there is no such optimum."""
        name = getattr(optimizer, "name", None)
        plain = innermost(optimizer)
        if not isinstance(plain, Optimizer):
            raise ConfigError(
                f"Implicit: it cannot be known where {type(plain).__name__}, the optimiser of inner Update "
                f"{inner.name!r}, comes to rest; use one of metarl's"
            )
        decay = plain.hparams["weight_decay"]
        if self.solver == "fixed_point" and (plain.adaptive or plain is not optimizer):
            raise ConfigError(
                f"Implicit: fixed_point iterates the step of inner Update {inner.name!r}, and that of {name} has no "
                "derivative, or no fixed form, where the gradient is zero; use solver='cg' or 'neumann', or sgd or "
                "momentum"
            )
        if decays(decay) and (plain.name == "adamw" or clips(optimizer)):
            raise ConfigError(
                f"Implicit: with weight decay, {name} of inner Update {inner.name!r} does not rest where a gradient is "
                "zero; put the decay into the inner loss"
            )
        return decay

    def _scale(self, inner: Update, optimizer: Any) -> Setting:
        if self.scale is not None or self.solver in ("cg", "fixed_point"):
            return 1.0 if self.scale is None else self.scale
        if self.solver == "identity":
            return 1.0
        plain = innermost(optimizer)
        if plain.adaptive:
            raise ConfigError(
                f"Implicit: neumann needs scale=, below 2 over the largest eigenvalue of the inner Hessian; the "
                f"learning rate of {plain.name}, inner Update {inner.name!r}, says nothing about it"
            )
        return plain.hparams["lr"]
