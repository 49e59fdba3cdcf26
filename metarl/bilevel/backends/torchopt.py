"""Virtual steps with torchopt's own optimisers (eager)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torchopt
from torch import Tensor
from torchopt.base import EmptyState, GradientTransformation
from torchopt.transform.scale_by_adam import ScaleByAdamState
from torchopt.transform.scale_by_rms import ScaleByRmsState
from torchopt.transform.trace import TraceState

from metarl.bilevel.autodiff import Params
from metarl.bilevel.backends import refuse_known_wrong
from metarl.bilevel.optimizers import AdamState, MomentumState, Optimizer, RMSpropState
from metarl.bilevel.state import TrainState
from metarl.bilevel.update import Batches, OptimizerLike, Tree, Update
from metarl.errors import ConfigError


def roll(
    inners: tuple[Update, ...],
    optimizers: Mapping[str, OptimizerLike],
    state: TrainState,
    batches: list[Batches],
) -> Tree:
    """See `metarl.bilevel.backends.roll`. metarl's optimisers are replaced by torchopt's of the same name."""
    converted: dict[str, tuple[GradientTransformation, Any]] = {}
    for inner in inners:
        optimizer = optimizers[inner.params]
        optimizer = optimizer(state.tree) if callable(optimizer) else optimizer
        refuse_known_wrong(optimizer)
        converted[inner.params] = convert(optimizer, state.tree[inner.params], state.opt[inner.params])
    for step_batches in batches:
        for inner in inners:
            group = inner.params
            optimizer, opt = converted[group]
            estimate = inner.gradient(inner, state, step_batches)
            params = state.tree[group]
            updates, opt = optimizer.update(estimate.grads, opt, params=params, inplace=False)
            converted[group] = (optimizer, opt)
            state = state.with_params(group, torchopt.apply_updates(params, updates, inplace=False))
    return state.tree


def convert(
    optimizer: GradientTransformation, params: Params, state: Any, *, eps_root: float = 0.0
) -> tuple[GradientTransformation, Any]:
    """torchopt's optimiser and state for one of metarl's; torchopt's own pass unchanged.

    torchopt keeps its moments as a flat list in optree's order, which is the sorted order of the names. A new
    `torchopt.sgd` leaves the decay out of its first call, whatever its trace holds: it gets the trace decayed. Adam's
    count stays float64: from an int64 one torchopt takes its bias corrections in float32.
    """
    if not isinstance(optimizer, Optimizer):
        return optimizer, state
    settings = dict(optimizer.hparams)
    learned = [name for name, value in settings.items() if name != "lr" and isinstance(value, Tensor)]
    if learned:
        raise ConfigError(f"backend 'torchopt' takes no learned {learned[0]} of {optimizer.name}; use backend 'native'")
    names = sorted(params)
    if optimizer.name == "sgd":
        return torchopt.sgd(**settings), (EmptyState(), EmptyState())[: len(torchopt.sgd(**settings).init(params))]
    if optimizer.name == "momentum":
        assert isinstance(state, MomentumState)
        theirs = torchopt.sgd(**settings)
        traced = TraceState(trace=[settings["momentum"] * state.trace[name] for name in names])
        return theirs, tuple(traced if isinstance(s, TraceState) else s for s in theirs.init(params))
    if optimizer.name == "rmsprop":
        assert isinstance(state, RMSpropState)
        theirs = torchopt.rmsprop(**settings)
        moment = ScaleByRmsState(nu=[state.nu[name] for name in names])
        return theirs, tuple(moment if isinstance(s, ScaleByRmsState) else s for s in theirs.init(params))
    if optimizer.name not in ("adam", "adamw"):
        raise ConfigError(f"backend 'torchopt' has no counterpart of {optimizer.name}; use backend 'native'")
    assert isinstance(state, AdamState)
    betas = (settings.pop("b1"), settings.pop("b2"))
    theirs = getattr(torchopt, optimizer.name)(betas=betas, eps_root=eps_root, **settings)
    moments = ScaleByAdamState(
        mu=[state.mu[name] for name in names],
        nu=[state.nu[name] for name in names],
        count=[state.count for _ in names],
    )
    return theirs, tuple(moments if isinstance(s, ScaleByAdamState) else s for s in theirs.init(params))
