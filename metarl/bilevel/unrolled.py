"""Unrolled: the hypergradient by differentiating through virtual steps of another Update."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from metarl.bilevel import backends
from metarl.bilevel.autodiff import Params, detach, is_tracked, norm, value_and_grad
from metarl.bilevel.optimizers import AdamState, Optimizer
from metarl.bilevel.state import TrainState, optimizer_step
from metarl.bilevel.update import Batches, Estimate, Objective, OptimizerLike, Tree, Update
from metarl.errors import ConfigError

Inner = Update | str | tuple[Update | str, ...]


@dataclass(frozen=True)
class Unrolled:
    """The gradient of an outer loss through `steps` virtual steps of an inner Update (reverse mode).

    With inner parameters `theta`, the Update's own group `phi`, inner loss `f` and outer loss `F`::

        theta_{k+1} = theta_k - optimizer(grad_theta f(theta_k, phi)),   k = 0 .. steps - 1
        estimate    = d F(theta_steps(phi), phi) / d phi

    (Maclaurin et al. 2015, arXiv:1502.03492; GORL's Eqs. 3-4 are one step of `sgd`.) The virtual steps are never
    written back.

    Attributes:
        inner: the Update that is rolled, or its name, or several rolled in order in every step.
        optimizer: the virtual optimiser, started fresh; None takes the inner Update's own and its current state.
        steps: virtual steps. They reuse one batch and one noise draw unless `fresh` says otherwise.
        truncate: differentiate through the last so many steps only (Shaban et al. 2019, arXiv:1810.10667).
        first_order: take the inner gradient as a constant (first-order MAML). Parameters that enter only through
            the inner loss then have no gradient at all: refused before the first step.
        contrast: an Update (or its name) rolled from the same start with the same virtual optimiser and number of
            steps, detached; the outer loss gets the resulting tree as its third argument (GILD's RL+IL).
        fresh: `{role: source role}`; step k sees `batches[role] = batches[source][k]`, so that the source carries a
            leading axis of length `steps`. Entries of `noise` are named `noise.<name>`.
        backend: "native"; or "torchopt" or "higher": the same roll, eagerly, through those libraries.

    Raises:
        ConfigError: settings that no backend can compute rightly.
    """

    inner: Inner
    optimizer: OptimizerLike | None = None
    steps: int = 1
    truncate: int | None = None
    first_order: bool = False
    contrast: Inner | None = None
    fresh: Mapping[str, str] | None = None
    backend: Literal["native", "torchopt", "higher"] = "native"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"Unrolled: steps must be at least 1, not {self.steps}")
        if self.truncate is not None and not 1 <= self.truncate <= self.steps:
            raise ConfigError(f"Unrolled: truncate must lie in 1..steps ({self.steps}), not {self.truncate}")
        if self.backend not in backends.NAMES:
            raise ConfigError(f"Unrolled: backend must be one of {', '.join(backends.NAMES)}, not {self.backend!r}")
        if self.backend != "native" and (self.truncate is not None or self.first_order):
            raise ConfigError(f"Unrolled: backend {self.backend!r} has no truncate and no first_order; use native")

    def resolve(self, lookup: Callable[[str], Update]) -> Unrolled:
        """The same estimator with names of Updates replaced by the Updates."""

        def resolved(inner: Inner) -> tuple[Update, ...]:
            inners = inner if isinstance(inner, tuple) else (inner,)
            return tuple(lookup(u) if isinstance(u, str) else u for u in inners)

        inner = resolved(self.inner)
        contrast = None if self.contrast is None else resolved(self.contrast)
        for update in contrast or ():
            if update.params not in {u.params for u in inner}:
                raise ConfigError(
                    f"Unrolled: contrast {update.name!r} moves {update.params!r}, but takes the virtual optimiser of "
                    f"its inner, which moves {', '.join(u.params for u in inner)}; let both move the same"
                )
        return replace(self, inner=inner, contrast=contrast)

    @property
    def inners(self) -> tuple[Update, ...]:
        """The inner Updates in the order they roll."""
        return _updates(self.inner)

    def __call__(self, update: Update, state: TrainState, batches: Batches) -> Estimate:
        grads, loss, (metrics, inner) = value_and_grad(
            self.objective(update, state, batches),
            state.tree[update.params],
            differentiable=is_tracked(state.tree),
        )
        metrics = {**metrics, "hypergradient_norm": norm(grads)}
        return Estimate(loss, grads, metrics, inner)

    def objective(self, update: Update, state: TrainState, batches: Batches) -> Objective:
        """The outer loss as a function of the Update's group, through the virtual steps."""
        optimizers = self._optimizers()
        contrast: tuple[Tree, ...] = ()
        if self.contrast is not None:
            contrast = (detach(self._roll(_updates(self.contrast), optimizers, detach(state), batches)),)

        def objective(params: Params) -> tuple[Tensor, tuple[dict[str, Tensor], Params]]:
            entry = state.with_params(update.params, params)
            adapted = self._roll(self.inners, optimizers, entry, batches)
            loss, metrics = update.evaluate(adapted, batches, *contrast)
            group = self.inners[-1].params
            moved = {k: v - state.tree[group][k] for k, v in detach(adapted[group]).items()}
            metrics = {**metrics, "inner_step_norm": norm(detach(moved)), **self._cold(state)}
            return loss, (metrics, adapted[group])

        return objective

    def check(self, update: Update, state: TrainState) -> None:
        """Warns of one virtual step of a fresh adaptive optimiser."""
        given = None if self.optimizer is None else _built(self.optimizer, state.tree)
        if isinstance(given, Optimizer) and given.adaptive and self.steps == 1:
            warnings.warn(
                f"update {update.name!r}: one virtual step of a fresh {given.name} has a useless hypergradient (its "
                "first step is about lr * sign(gradient)); use sgd, or optimizer=None to carry the real moments",
                stacklevel=3,
            )

    def _optimizers(self) -> dict[str, OptimizerLike]:
        """The virtual optimiser of every inner group."""
        return {u.params: self.optimizer or u.optimizer for u in self.inners}

    def _cold(self, state: TrainState) -> dict[str, Tensor]:
        """Whether the inner Adam's moments are still zero: then its first step is about lr * sign(gradient)."""
        carried = {u.params: state.opt[u.params] for u in self.inners if self.optimizer is None}
        counts = {group: opt.count for group, opt in carried.items() if isinstance(opt, AdamState)}
        return {f"cold_moments/{group}": (count < 1).to(count.dtype) for group, count in counts.items()}

    def _roll(
        self,
        inners: tuple[Update, ...],
        optimizers: dict[str, OptimizerLike],
        state: TrainState,
        batches: Batches,
    ) -> Tree:
        if self.optimizer is not None:  # a given optimiser starts fresh
            fresh = {
                group: _built(optimizer, state.tree).init(state.tree[group]) for group, optimizer in optimizers.items()
            }
            state = state._replace(opt={**state.opt, **fresh})
        if self.backend != "native":
            return backends.roll(
                self.backend,
                inners,
                optimizers,
                state,
                [self._batches(batches, k) for k in range(self.steps)],
            )
        graph_from = self.steps - (self.truncate or self.steps)
        for k in range(self.steps):
            step_batches = self._batches(batches, k)
            for inner in inners:
                through = state if k >= graph_from else detach(state)
                stepped = virtual_step(inner, optimizers, through, step_batches, first_order=self.first_order)
                state = stepped if k >= graph_from else _keep_outer(state, stepped, inner.params)
        return state.tree

    def _batches(self, batches: Batches, k: int) -> Batches:
        sliced = dict(batches)
        for role, source in (self.fresh or {}).items():
            if role.startswith("noise."):
                value = batches["noise"][source.removeprefix("noise.")][k]
                sliced["noise"] = {**sliced["noise"], role.removeprefix("noise."): value}
            else:
                sliced[role] = {name: value[k] for name, value in batches[source].items()}
        return sliced


def virtual_step(
    inner: Update,
    optimizers: Mapping[str, OptimizerLike],
    state: TrainState,
    batches: Batches,
    *,
    first_order: bool = False,
) -> TrainState:
    """One step of `inner` on a copy of the state, differentiable in everything that the state holds."""
    estimate = inner.gradient(inner, state, batches)
    grads = detach(estimate.grads) if first_order else estimate.grads
    optimizer = _built(optimizers[inner.params], state.tree)
    backends.refuse_known_wrong(optimizer)
    params, opt = optimizer_step(optimizer, state.tree[inner.params], grads, state.opt[inner.params])
    return state.with_params(inner.params, params)._replace(opt={**state.opt, inner.params: opt})


def _keep_outer(state: TrainState, stepped: TrainState, group: str) -> TrainState:
    """The detached step's result for `group`; everything else as it was, still followed by autograd."""
    stepped = detach(stepped)
    state = state.with_params(group, stepped.tree[group])
    return state._replace(opt={**state.opt, group: stepped.opt[group]})


def _built(optimizer: OptimizerLike, tree: Tree) -> Any:
    return optimizer(tree) if callable(optimizer) else optimizer


def _updates(inner: Inner) -> tuple[Update, ...]:
    inners = inner if isinstance(inner, tuple) else (inner,)
    for u in inners:
        if isinstance(u, str):
            raise ConfigError(f"Unrolled: inner Update {u!r} is still a name; build the learner with Learner.ready()")
    return inners  # type: ignore[return-value]
