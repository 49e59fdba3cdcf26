"""Whether losses and gradients stay finite where a square root, a norm or a logarithm meets zero."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from torch.utils import _pytree as pytree

from metarl.bilevel import Batch, Batches, TrainState, Tree, Update
from metarl.checking.case import Case, clone, estimate
from metarl.checking.findings import Finding, once
from metarl.checking.watch import Backwards, NonFinite
from metarl.checking.where import in_text
from metarl.errors import UserError


def edges(case: Case) -> list[Finding]:
    """Losses and gradients stay finite on batches of zeros, and where the policy does exactly what the data does."""
    found: dict[str, Finding] = {}
    for what, batches in _edges(case):
        for update in case.inner_first:
            if update.name in found:
                continue
            result = estimate(update, case.warm(), clone(batches))
            leaves = [x for x in (result.loss, *result.grads.values()) if x is not None]
            if all(bool(torch.isfinite(x).all()) for x in leaves):
                continue
            operation, where = _culprit(update, case.warm(), clone(batches))
            named = f"{operation} at {where}" if where else operation
            text = (
                f"update {update.name!r}: loss or gradient is NaN or infinite {what}; it comes from {named}: add a "
                "small constant inside sqrt, log or a division, or square in place of taking a norm"
            )
            found[update.name] = Finding(
                "edges", "FAILED", f"non-finite {what}", text, update.name, update.params, where
            )
    cases = "zeros" if case.learner.policy is None else "zeros, and with the policy's own actions"
    return once(found.values()) or [Finding("edges", "ok", f"finite on batches of {cases}")]


def _edges(case: Case) -> Iterator[tuple[str, Batches]]:
    yield "on a batch of zeros", pytree.tree_map(torch.zeros_like, case.batches())
    if case.learner.policy is None:
        return
    state, batches = case.warm(), case.batches()
    own = {role: _with_own_action(case, state.tree, batches, role) for role in case.learner.roles}
    yield "where the policy's actions equal the data's", {**batches, **own}
    for update in case.bilevel:  # an outer loss sees the policy after its virtual step
        inner = estimate(update, state, batches).inner
        tree = {**state.tree, update.inners[-1].params: inner} if inner else state.tree
        for role in case.learner.roles:
            one = {**batches, role: _with_own_action(case, tree, batches, role)}
            yield f"where the actions of {role!r} equal the policy's after its virtual step", one


def _with_own_action(case: Case, tree: Tree, batches: Batches, role: str) -> Batch:
    assert case.learner.policy is not None
    try:
        action = case.learner.policy.action(tree, batches[role]["obs"], batches["noise"])
    except (UserError, RuntimeError, KeyError):  # its noise belongs to another role
        return batches[role]
    return {**batches[role], "action": action.detach()}


def _culprit(update: Update, state: TrainState, batches: Batches) -> tuple[str, str]:
    """The operation, and the user's line, that first gives a number that is not finite."""
    for one in (*update.inners, update):
        with Backwards() as backwards, NonFinite() as forward, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            estimate(one, state, batches)
        if forward.seen and forward.seen[0][1]:
            return forward.seen[0]
        if backwards.seen:
            name, where = backwards.seen[0]
            return f"the derivative of {name.split('Backward')[0]}", where
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            with torch.autograd.detect_anomaly():
                estimate(update, state, batches)
        except RuntimeError as error:
            name = str(error).partition("Backward")[0].rpartition("'")[2]
            return f"the second derivative of {name}", next((at for w in said if (at := in_text(str(w.message)))), "")
    return (forward.seen[0][0] if forward.seen else "an unknown operation"), ""
