"""Unrolled: the hypergradient by differentiating through virtual steps of another Update."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from metarl.bilevel import backends, virtual
from metarl.bilevel.autodiff import Params, detach, is_tracked, norm, value_and_grad
from metarl.bilevel.optimizers import Optimizer, innermost
from metarl.bilevel.state import TrainState
from metarl.bilevel.update import Batches, Estimate, Objective, OptimizerLike, Tree, Update
from metarl.bilevel.virtual import Inner, virtual_step
from metarl.errors import ConfigError


@dataclass(frozen=True)
class Unrolled:
    """The gradient of an outer loss through virtual steps of an inner Update (reverse mode).

    With inner parameters `theta`, the Update's own group `phi`, inner loss `f` and outer loss `F`::

        theta_{k+1} = theta_k - optimizer(grad_theta f(theta_k, phi)),   k = 0 .. steps - 1
        estimate    = d F(theta_steps(phi), phi) / d phi

    (Maclaurin et al. 2015, arXiv:1502.03492; GORL's Eqs. 3-4 are one step of `sgd`, MAML's Eq. 1 is one step from
    `init_from`.) The virtual steps are never written back. Exact for the steps that it takes; time about three times
    that of the steps, memory grows with `steps`.

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
        init_from: the group at whose values the inner group starts its virtual steps: a learned initialisation
            (Finn et al. 2017, arXiv:1703.03400, Eq. 1), or the centre of a proximal term (iMAML).
        tasks: roles whose leading axis counts tasks; the steps and the outer loss are taken for every task (under
            vmap), and the estimate is the gradient of their mean. Entries of `noise` are named `noise.<name>`.
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
    init_from: str | None = None
    tasks: tuple[str, ...] = ()
    backend: Literal["native", "torchopt", "higher"] = "native"

    def __post_init__(self) -> None:
        name = type(self).__name__
        if isinstance(self.tasks, str):
            raise ConfigError(f"{name}: tasks is a tuple of roles, such as ({self.tasks!r},), not a string")
        if self.optimizer is not None and not callable(self.optimizer) and not hasattr(self.optimizer, "update"):
            raise ConfigError(f"{name}: optimizer must be an optimiser such as sgd(0.1), not {self.optimizer!r}")
        if self.steps < 1:
            raise ConfigError(f"{name}: steps must be at least 1, not {self.steps}")
        if self.truncate is not None and not 1 <= self.truncate <= self.steps:
            raise ConfigError(f"{name}: truncate must lie in 1..steps ({self.steps}), not {self.truncate}")
        if self.backend not in backends.NAMES:
            raise ConfigError(f"{name}: backend must be one of {', '.join(backends.NAMES)}, not {self.backend!r}")
        if self.backend != "native" and (self.truncate is not None or self.first_order or self.tasks):
            raise ConfigError(
                f"{name}: backend {self.backend!r} has no truncate, no first_order and no tasks; use native"
            )

    def resolve(self, lookup: Callable[[str], Update]) -> Unrolled:
        """The same estimator with names of Updates replaced by the Updates."""
        inner = virtual.resolved(self.inner, lookup)
        virtual.refuse_unlike(type(self).__name__, inner)
        contrast = None if self.contrast is None else virtual.resolved(self.contrast, lookup)
        for update in contrast or ():
            if update.params not in {u.params for u in inner}:
                raise ConfigError(
                    f"Unrolled: contrast {update.name!r} moves {update.params!r}, but takes the virtual optimiser of "
                    f"its inner, which moves {', '.join(u.params for u in inner)}; let both move the same"
                )
        if self.init_from is not None and len(inner) != 1:
            raise ConfigError(f"Unrolled: init_from={self.init_from!r} starts one inner Update, not {len(inner)}")
        return replace(self, inner=inner, contrast=contrast)

    @property
    def exact(self) -> bool:
        """Whether the estimate is the gradient of `objective`, with nothing cut off."""
        return not self.first_order and self.truncate is None

    @property
    def recordable(self) -> bool:
        """Whether a step may be recorded and compiled: the libraries' ways run eagerly only."""
        return self.backend == "native"

    @property
    def inners(self) -> tuple[Update, ...]:
        """The inner Updates in the order they roll."""
        return virtual.updates_of(self.inner)

    def __call__(self, update: Update, state: TrainState, batches: Batches) -> Estimate:
        grads, loss, (metrics, inner) = value_and_grad(
            self.objective(update, state, batches),
            state.tree[update.params],
            differentiable=is_tracked(state.tree),
        )
        return Estimate(loss, grads, {**metrics, "hypergradient_norm": norm(grads)}, inner)

    def objective(self, update: Update, state: TrainState, batches: Batches) -> Objective:
        """The outer loss as a function of the Update's group, through the virtual steps."""
        optimizers: dict[str, OptimizerLike] = {u.params: self.optimizer or u.optimizer for u in self.inners}
        contrast: tuple[Tree, ...] = ()
        if self.contrast is not None:
            start = self._start(detach(state))
            other = virtual.updates_of(self.contrast)
            contrast = (detach(self._each_task(lambda b: self._roll(other, optimizers, start, b), batches)),)
        group = self.inners[-1].params
        before = detach(self._start(state).tree[group])

        def objective(params: Params) -> tuple[Tensor, tuple[dict[str, Tensor], Params]]:
            entry = self._start(state.with_params(update.params, params))

            def one(batches: Batches, *contrast: Tree) -> tuple[Tensor, dict[str, Tensor], Params]:
                adapted = self._roll(self.inners, optimizers, entry, batches)
                loss, metrics = update.evaluate(adapted, batches, *contrast)
                moved = {k: v - before[k] for k, v in detach(adapted[group]).items()}
                metrics = {**metrics, "inner_step_norm": norm(moved)}
                return loss, {k: torch.as_tensor(v).to(loss.dtype) for k, v in metrics.items()}, adapted[group]

            loss, metrics, adapted = self._each_task(one, batches, *contrast)
            if self.tasks:
                loss, metrics = loss.mean(), {name: value.mean() for name, value in metrics.items()}
            if self.optimizer is None:
                metrics |= virtual.cold_moments(self.inners, state)
            return loss, (metrics, adapted)

        return objective

    def check(self, update: Update, state: TrainState) -> None:
        """Warns of one virtual step of a fresh adaptive optimiser."""
        if self.init_from is not None:
            self._check_start(update, state.tree)
        given = None if self.optimizer is None else virtual.built(self.optimizer, state.tree)
        if isinstance(given, Optimizer) and given.adaptive and self.steps == 1:
            warnings.warn(
                f"update {update.name!r}: one virtual step of a fresh {innermost(given).name} has a useless "
                "hypergradient (its "
                "first step is about lr * sign(gradient)); use sgd, or optimizer=None to carry the real moments",
                stacklevel=3,
            )

    def _check_start(self, update: Update, tree: Tree) -> None:
        group = self.inners[0].params
        if self.init_from not in tree:
            return  # the search for the name itself says so better
        ours, theirs = ({k: tuple(p.shape) for k, p in tree[name].items()} for name in (group, self.init_from))
        if ours != theirs:
            raise ConfigError(
                f"update {update.name!r}: init_from={self.init_from!r} has the parameters {theirs}, its inner group "
                f"{group!r} has {ours}; both must be alike"
            )

    def _start(self, state: TrainState) -> TrainState:
        """The state at which the virtual steps begin."""
        if self.init_from is None:
            return state
        return state.with_params(self.inners[0].params, state.tree[self.init_from])

    def _each_task(self, fn: Callable[..., Any], batches: Batches, *per_task: Tree) -> Any:
        """`fn(batches, *per_task)`, mapped over the leading axis of the tasks' roles where there are any."""
        if not self.tasks:
            return fn(batches, *per_task)
        noise = {name.removeprefix("noise."): name for name in self.tasks if name.startswith("noise.")}
        mapped: Batches = {role: batches[role] for role in self.tasks if role not in noise.values()}
        drawn = {name: batches["noise"][name] for name in noise}

        def one(own: Batches, drawn: dict[str, Tensor], *rest: Tree) -> Any:
            return fn({**batches, **own, "noise": {**batches.get("noise", {}), **drawn}}, *rest)

        return torch.vmap(one)(mapped, drawn, *per_task)

    def _roll(
        self,
        inners: tuple[Update, ...],
        optimizers: Mapping[str, OptimizerLike],
        state: TrainState,
        batches: Batches,
    ) -> Tree:
        if self.optimizer is not None:  # a given optimiser starts fresh
            state = virtual.fresh(optimizers, state)
        each = [self._batches(batches, k) for k in range(self.steps)]
        if self.backend != "native":
            return backends.roll(self.backend, inners, optimizers, state, each)
        graph_from = self.steps - (self.truncate or self.steps)
        for k, step_batches in enumerate(each):
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


def _keep_outer(state: TrainState, stepped: TrainState, group: str) -> TrainState:
    """The detached step's result for `group`; everything else as it was, still followed by autograd."""
    stepped = detach(stepped)
    state = state.with_params(group, stepped.tree[group])
    return state._replace(opt={**state.opt, group: stepped.opt[group]})
