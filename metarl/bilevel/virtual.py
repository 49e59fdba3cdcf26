"""Virtual steps: an Update's step taken on a copy of the state, which no estimator writes back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from torch import Tensor
from torchopt.base import GradientTransformation

from metarl.bilevel import backends
from metarl.bilevel.autodiff import detach
from metarl.bilevel.optimizers import first_step_is_sign, steps_taken
from metarl.bilevel.state import TrainState, optimizer_step
from metarl.bilevel.update import Batches, OptimizerLike, Tree, Update
from metarl.errors import ConfigError

Inner = Update | str | tuple[Update | str, ...]


def resolved(inner: Inner, lookup: Callable[[str], Update]) -> tuple[Update, ...]:
    """Inner Updates in order, names replaced by the Updates that they name."""
    given = inner if isinstance(inner, tuple) else (inner,)
    return tuple(lookup(u) if isinstance(u, str) else u for u in given)


def updates_of(inner: Inner) -> tuple[Update, ...]:
    """The inner Updates; raises ConfigError where one is still a name."""
    given = inner if isinstance(inner, tuple) else (inner,)
    updates = tuple(u for u in given if isinstance(u, Update))
    for u in given:
        if isinstance(u, str):
            raise ConfigError(f"inner Update {u!r} is still a name; build the learner with Learner.ready()")
    return updates


def refuse_unlike(estimator: str, inners: Iterable[Update]) -> None:
    """Raises ConfigError for an inner Update whose own estimate cannot be differentiated rightly."""
    for inner in inners:
        if not getattr(inner.gradient, "differentiable", True):
            kind = type(inner.gradient).__name__
            raise ConfigError(
                f"{estimator}: the inner Update {inner.name!r} estimates its gradient with {kind}, whose result cannot "
                "be differentiated again; let the inner one use Unrolled"
            )


def built(optimizer: OptimizerLike, tree: Tree) -> GradientTransformation:
    """The optimiser, made from the tree where its settings are meta-learned."""
    return optimizer if isinstance(optimizer, GradientTransformation) else optimizer(tree)


def fresh(optimizers: Mapping[str, OptimizerLike], state: TrainState) -> TrainState:
    """The state with these groups' optimisers as they start."""
    opt = {group: built(optimizer, state.tree).init(state.tree[group]) for group, optimizer in optimizers.items()}
    return state._replace(opt={**state.opt, **opt})


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
    optimizer = built(optimizers[inner.params], state.tree)
    backends.refuse_known_wrong(optimizer)
    params, opt = optimizer_step(optimizer, state.tree[inner.params], grads, state.opt[inner.params])
    return state.with_params(inner.params, params)._replace(opt={**state.opt, inner.params: opt})


def cold_moments(inners: Iterable[Update], state: TrainState) -> dict[str, Tensor]:
    """Metrics that say whether carried adaptive moments are still zero, so that a step is about lr * sign(gradient)."""
    counts = {u.params: steps_taken(state.opt[u.params]) for u in inners if first_step_is_sign(state.opt[u.params])}
    return {f"cold_moments/{group}": (n < 1).to(n.dtype) for group, n in counts.items() if n is not None}
