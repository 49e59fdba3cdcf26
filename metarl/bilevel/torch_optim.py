"""Optimiser state from and to a live torch.optim optimiser."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchopt.base import EmptyState

from metarl.bilevel.autodiff import Params
from metarl.bilevel.optimizers import (
    AdamState,
    MomentumState,
    Optimizer,
    RMSpropState,
    adam,
    adamw,
    momentum,
    rmsprop,
    sgd,
)


def import_state(live: torch.optim.Optimizer, params: dict[str, Tensor]) -> tuple[Optimizer, Any]:
    """metarl's optimiser and state that continue a torch.optim optimiser exactly.

    Args:
        live: SGD, Adam, AdamW or RMSprop with one parameter group.
        params: name to the very tensors that `live` holds, in any order.

    Raises:
        ValueError: an optimiser, an option or a set of parameters that has no exact counterpart.
    """
    if len(live.param_groups) != 1:
        raise ValueError(f"import_state: {len(live.param_groups)} param_groups; import them one by one")
    group = live.param_groups[0]
    if {id(p) for p in group["params"]} != {id(p) for p in params.values()}:
        raise ValueError("import_state: `params` must be exactly the tensors that the optimiser holds")
    refused = ("amsgrad", "maximize", "dampening", "centered", *(["momentum"] * (type(live) is torch.optim.RMSprop)))
    for option in refused:
        if group.get(option):
            raise ValueError(f"import_state: torch.optim's {option}={group[option]} has no counterpart here")
    state = {name: live.state.get(p, {}) for name, p in params.items()}
    if type(live) is torch.optim.SGD:
        common = {"lr": group["lr"], "weight_decay": group["weight_decay"]}
        if not group["momentum"]:
            return sgd(**common), EmptyState()
        trace = {name: _value(s.get("momentum_buffer"), params[name]) for name, s in state.items()}
        return momentum(momentum=group["momentum"], nesterov=group["nesterov"], **common), MomentumState(trace)
    if type(live) not in (torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop):
        raise ValueError(f"import_state: {type(live).__name__} has no counterpart; use SGD, Adam, AdamW or RMSprop")
    counts = {float(s["step"]) for s in state.values() if s} or {0.0}
    if len(counts) > 1 or (counts != {0.0} and not all(state.values())):
        raise ValueError("import_state: parameters have taken different numbers of steps")
    count = torch.tensor(counts.pop(), dtype=torch.float64, device=next(iter(params.values())).device)

    def moment(buffer: str) -> Params:
        return {name: _value(s.get(buffer), params[name]) for name, s in state.items()}

    if type(live) is torch.optim.RMSprop:
        optimizer = rmsprop(group["lr"], group["alpha"], group["eps"], group["weight_decay"])
        return optimizer, RMSpropState(moment("square_avg"), count)
    decoupled = type(live) is torch.optim.AdamW or group.get("decoupled_weight_decay", False)
    b1, b2 = group["betas"]
    optimizer = (adamw if decoupled else adam)(group["lr"], b1, b2, group["eps"], group["weight_decay"])
    return optimizer, AdamState(moment("exp_avg"), moment("exp_avg_sq"), count)


def export_state(optimizer: Optimizer, params: Params, state: Any) -> torch.optim.Optimizer:
    """A torch.optim optimiser over `params` (leaf tensors) that continues exactly where metarl's stands.

    Raises:
        ValueError: an optimiser that is not one of metarl's.
    """
    if not isinstance(optimizer, Optimizer) or "optimizer" in optimizer.hparams:
        name = getattr(optimizer, "name", type(optimizer).__name__)
        raise ValueError(f"export_state: {name} has no torch.optim counterpart")
    settings: dict[str, Any] = {k: float(v) if isinstance(v, Tensor) else v for k, v in optimizer.hparams.items()}
    leaves = list(params.values())
    if optimizer.name in ("sgd", "momentum"):
        live: torch.optim.Optimizer = torch.optim.SGD(leaves, **settings)
        if isinstance(state, MomentumState):
            for name, p in params.items():
                live.state[p]["momentum_buffer"] = state.trace[name].detach().clone()
        return live
    if isinstance(state, RMSpropState):
        live, moments = torch.optim.RMSprop(leaves, **settings), {"square_avg": state.nu}
    else:
        build = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer.name]
        live = build(leaves, betas=(settings.pop("b1"), settings.pop("b2")), **settings)
        moments = {"exp_avg": state.mu, "exp_avg_sq": state.nu}
    if state.count > 0:
        for name, p in params.items():
            live.state[p]["step"] = state.count.detach().to(torch.float32).clone()
            for buffer, values in moments.items():
                live.state[p][buffer] = values[name].detach().clone()
    return live


def _value(buffer: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like, requires_grad=False) if buffer is None else buffer.detach().clone()
