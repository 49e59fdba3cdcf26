"""Whether the hypergradient is large enough to move anything."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from metarl.bilevel import Params, TrainState, Update, optimizer_step
from metarl.bilevel.autodiff import norm
from metarl.checking.case import WARM_UP, Case, estimate
from metarl.checking.findings import Finding


def signal(case: Case) -> list[Finding]:
    """The hypergradient is not zero, cold or warm, and large enough to move what it is for."""
    if not case.bilevel:
        return [Finding("signal", "info", "no bilevel Update")]
    problems: list[Finding] = []
    sizes = []
    for update in case.bilevel:
        cold, warm = (float(norm(_grads(update, state, case))) for state in (case.cold(), case.warm()))
        step = _relative_step(update, case)
        sizes.append(f"{update.name} |g| {cold:.1e} cold, {warm:.1e} after {WARM_UP} steps, moves {step:.0e} of |p|")
        problems += _weak(case, update, cold, warm, step)
    return problems or [Finding("signal", "ok", "; ".join(sizes))]


def _grads(update: Update, state: TrainState, case: Case) -> Params:
    return estimate(update, state, case.batches()).grads


def _relative_step(update: Update, case: Case) -> float:
    """How far the first real step of this Update moves its group, relative to its norm."""
    state = case.warm()
    params = state.tree[update.params]
    optimizer = update.optimizer_for(state.tree)
    moved, _ = optimizer_step(optimizer, params, _grads(update, state, case), optimizer.init(params))
    size = float(norm(params))
    return float(norm({k: moved[k] - p for k, p in params.items()})) / size if size else float("inf")


def _weak(case: Case, update: Update, cold: float, warm: float, step: float) -> Iterator[Finding]:
    def problem(status: Any, measured: str, text: str) -> Finding:
        return Finding("signal", status, measured, f"update {update.name!r}: {text}", update.name, update.params)

    if cold == 0 and warm == 0:
        yield problem(
            "FAILED",
            "|g| exactly 0",
            f"the hypergradient of {update.params!r} is exactly zero: the inner gradient does not depend on it, or "
            "what the outer loss reads does not move in the virtual step; let the inner loss use it where the inner "
            "group's gradient can see it, and the outer loss the inner group",
        )
        return
    eps = _setting(update.optimizer_for(case.cold().tree), "eps")
    entries = sum(p.numel() for p in case.cold().tree[update.params].values())
    typical = warm / entries**0.5
    if eps and typical < eps:
        yield problem(
            "warning",
            f"entries {typical:.0e} below eps {eps:.0e}",
            f"the hypergradient's entries ({typical:.1e}) are smaller than its optimiser's eps ({eps:g}), which "
            f"swallows them; give the optimiser a smaller one, such as eps={max(typical * 1e-4, 1e-30):.0e}",
        )
    elif step < torch.finfo(torch.float32).eps / 2:
        yield problem(
            "warning",
            f"moves {step:.0e} of |p|",
            f"one step moves {update.params!r} by {step:.0e} of its norm, which float32 rounds away; raise its "
            "learning rate",
        )


def _setting(optimizer: Any, name: str) -> float | None:
    """A setting of an optimiser, or of the one that it wraps."""
    while optimizer is not None:
        settings = getattr(optimizer, "hparams", {})
        if name in settings:
            return float(settings[name])
        optimizer = settings.get("optimizer")
    return None
