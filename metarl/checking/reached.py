"""Whether every parameter has a path to the value that it moves along; and if not, why not."""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch
from torch import Tensor

from metarl.bilevel import Batches, TrainState, Update
from metarl.bilevel.autodiff import unreached
from metarl.checking.case import Case, clone, differentiated
from metarl.checking.findings import Finding, listed
from metarl.checking.watch import Cuts
from metarl.errors import UserError


def reached(case: Case) -> list[Finding]:
    """Every parameter that an Update moves has a path to the value that it moves along."""
    found, sizes = [], []
    for update in case.updates:
        if differentiated(update) is None:
            continue
        state, batches = case.cold(), case.batches()
        lost = _lost(update, state, batches)
        sizes.append(f"{update.name} {len(state.tree[update.params])}")
        if not lost:
            continue
        causes: dict[tuple[str, str], list[str]] = {}
        for name in lost:
            causes.setdefault(_cause(case, update, state, batches, name), []).append(name)
        for (cause, where), group in causes.items():
            text = f"update {update.name!r}: no gradient reaches {listed(group)} of group {update.params!r}: {cause}"
            measured = f"{len(group)} unreached"
            found.append(Finding("reached", "FAILED", measured, text, update.name, update.params, where))
    if found:
        return found
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `moments` tells of them
            case.learner.check(case.cold(), case.batches())
    except UserError as error:
        return [Finding("reached", "FAILED", "refused by the engine", str(error))]
    return [Finding("reached", "ok", f"every parameter tensor: {', '.join(sizes)}")]


def _lost(update: Update, state: TrainState, batches: Batches) -> list[str]:
    own = getattr(update.gradient, "unreached", None)
    if own is not None:
        return own(update, state, batches)
    objective = differentiated(update)
    return unreached(objective(update, state, batches), state.tree[update.params]) if objective else []


def _cause(case: Case, update: Update, state: TrainState, batches: Batches, name: str) -> tuple[str, str]:
    """Why no gradient reaches one parameter, and the user's line."""
    if getattr(update.gradient, "first_order", False):
        whole = replace(update, gradient=replace(update.gradient, first_order=False))  # type: ignore[type-var]
        if name not in _lost(whole, state, batches):
            return (
                "first_order=True takes the inner gradient as a constant, and they enter only through the inner loss, "
                "so that their hypergradient is exactly zero; use first_order=False",
                "",
            )

    def matters(one: Update) -> bool:
        return _matters(one, state, update.params, name, batches)

    if not matters(update):
        for inner in filter(matters, update.inners):
            return (
                f"to the loss of {inner.name!r} they add a constant, which its gradient does not see (the bias of a "
                "last layer); leave them out, or squash that output, with softplus for example",
                "",
            )
        return (
            "unused: changing them changes no loss; remove them, or read them from the tree, as in "
            f"nn.call(net, tree[{update.params!r}], x)",
            "",
        )
    cuts = cuts_in(update, state, batches, [name])
    named = " or ".join(f"{name} at {where}" for name, where in cuts[:2]) or "detach, no_grad, .data or .item()"
    return (
        f"detached: changing them changes the loss, but the path is cut by {named}; leave that out",
        cuts[0][1] if cuts else "",
    )


def _matters(update: Update, state: TrainState, group: str, name: str, batches: Batches) -> bool:
    """Whether the value that an Update differentiates depends on a parameter of a group at all."""
    make = differentiated(update)
    assert make is not None
    params = state.tree[group]
    source = torch.Generator().manual_seed(0)

    def value(size: float) -> Tensor:
        noise = torch.randn(params[name].shape, generator=source, dtype=params[name].dtype)
        moved = state.with_params(group, {**params, name: params[name] + size * noise})
        return make(update, moved, batches)(moved.tree[update.params])[0]

    with torch.no_grad():
        here = value(0.0)
        return any(not torch.equal(value(1.0), here) for _ in range(3))


def cuts_in(update: Update, state: TrainState, batches: Batches, names: list[str]) -> list[tuple[str, str]]:
    """Where the losses that this Update looks at drop the gradient of its parameters."""
    params = {k: p.detach().requires_grad_(k in names) for k, p in state.tree[update.params].items()}
    tree = {**clone(state.tree), update.params: params}
    with Cuts() as cuts, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for one in (update, *update.inners):
            contrast = (tree,) if getattr(one.gradient, "contrast", None) is not None else ()
            one.evaluate(tree, clone(batches), *contrast)
    return cuts.seen
