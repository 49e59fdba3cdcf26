"""Whether estimating changes, draws or remembers anything."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from metarl.bilevel import Batches, TrainState, Update
from metarl.checking.case import Case, estimate
from metarl.checking.findings import Finding, once
from metarl.checking.watch import Draws, Writes


def purity(case: Case) -> list[Finding]:
    """Estimating changes nothing, draws nothing, and gives the same numbers again."""
    found = [finding for update in case.inner_first for finding in _impure(case, update)]
    return once(found) or [Finding("purity", "ok", "nothing changed, nothing drawn, twice the same bits")]


def _impure(case: Case, update: Update) -> Iterator[Finding]:
    def failed(measured: str, text: str, where: str = "") -> Finding:
        at = f" at {where}" if where else ""
        text = f"update {update.name!r}: {text.format(at=at)}"
        return Finding("purity", "FAILED", measured, text, update.name, update.params, where)

    state, batches = case.cold(), case.batches()
    owned = dict(_owned(case, state, batches))
    before = {label: x.detach().clone() for label, x in owned.items()}
    randomness = _randomness()
    with Writes(owned) as writes, Draws() as draws:
        first = estimate(update, state, batches)
    moved = [name for name, now in _randomness().items() if now != randomness[name]]
    changed = [label for label, x in owned.items() if not _same(x, before[label])]
    with torch.no_grad():
        for label in changed:  # the next check must find the networks as they were
            owned[label].copy_(before[label])
    places = dict(writes.seen)
    for label in {*changed, *places}:
        text = f"its loss changes {label} in place{{at}}; write x = x + y in place of x += y, x.add_(y) or x[i] = y"
        yield failed(f"in-place: {label}", text, places.get(label, ""))
    if draws.seen or moved:
        what, where = draws.seen[0] if draws.seen else (f"{moved[0]}'s generator", "")
        text = (
            f"its loss draws random numbers ({what}){{at}}, so that virtual and real steps see different ones; declare "
            "them as learner.with_noise(name=NoiseSpec(...)) and read batches['noise'][name]"
        )
        yield failed("randomness", text, where)
    elif not changed and not places:
        again = estimate(update, state, batches)
        if not all(map(_same, pytree.tree_leaves(first[:2]), pytree.tree_leaves(again[:2]))):
            text = "its loss gives other numbers when it is called again; keep no counters or caches in it"
            yield failed("not repeatable", text)


def _owned(case: Case, state: TrainState, batches: Batches) -> Iterator[tuple[str, Tensor]]:
    for group, params in state.tree.items():
        yield from ((f"parameter {name!r} of group {group!r}", x) for name, x in params.items())
    for group, opt in state.opt.items():
        leaves = [x for x in pytree.tree_leaves(opt) if isinstance(x, Tensor)]
        yield from ((f"entry {i} of the optimiser's state of group {group!r}", x) for i, x in enumerate(leaves))
    for role, batch in batches.items():
        yield from ((f"batches[{role!r}][{name!r}]", x) for name, x in batch.items())
    for group, module in case.learner.modules.items():
        yield from ((f"the template {group!r} ({name})", x) for name, x in module.named_parameters())


def _randomness() -> dict[str, Any]:
    numbers: Any = np.random.get_state()  # noqa: NPY002  (what a loss must not touch)
    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": (numbers[1].tobytes(), numbers[2]),
        "Python": random.getstate(),
    }


def _same(a: Any, b: Any) -> bool:
    return bool(torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num()))
