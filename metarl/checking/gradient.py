"""Whether every gradient and hypergradient is right."""

from __future__ import annotations

from collections.abc import Iterator

from metarl.bilevel import Batches, Estimate, Params, TrainState, Update
from metarl.bilevel.autodiff import norm
from metarl.checking.case import Case, differentiated, estimate
from metarl.checking.differences import Agreement, agreements, best
from metarl.checking.findings import Finding
from metarl.checking.reached import cuts_in
from metarl.checking.watch import HeldDetach

RIGHT = 1e-5  # relative error of a right gradient at its best step size, rounding aside
READABLE = 1e-3  # rounding may blur a difference by so much and still leave something to judge
DRAWS = 3  # a ReLU's kink may lie within the smallest step by chance; a wrong gradient is wrong on every batch
JUMP = 0.05  # a smooth loss errs by less at the largest step


def gradient(case: Case) -> list[Finding]:
    """Every gradient and hypergradient against float64 differences of the function that it claims to differentiate."""
    problems: list[Finding] = []
    errors = []
    for update in case.updates:
        if differentiated(update) is None:
            continue
        state = case.warm()
        tried = []
        for draw in range(DRAWS):
            batches = case.batches(draw)
            result = estimate(update, state, batches)
            tried.append((batches, result, _compare(update, state, batches, result.grads)))
            if best(tried[-1][2]).error <= RIGHT:  # else a kink may pass for rounding
                break
        batches, result, found = min(tried, key=lambda each: (not _agrees(each[2]), best(each[2]).error))
        problems += _admitted(update, result)
        errors.append(f"{update.name} {best(found).error:.0e}")
        if not getattr(update.gradient, "exact", True):
            errors[-1] += f" ({type(update.gradient).__name__} approximates)"
            if best(found).error > getattr(update.gradient, "tolerance", float("inf")):
                problems.append(_far_off(update, best(found)))
            continue
        problems += _judged(update, state, batches, result.grads, found)
    measured = "relative error " + ", ".join(errors) if errors else "no gradient to compare"
    return problems or [Finding("gradient", "ok", measured)]


def _compare(update: Update, state: TrainState, batches: Batches, grads: Params) -> list[Agreement]:
    make = differentiated(update)
    assert make is not None
    return agreements(make(update, state, batches), state.tree[update.params], grads)


def _admitted(update: Update, result: Estimate) -> Iterator[Finding]:
    """What the estimator itself says went wrong."""
    cures = getattr(update.gradient, "failures", {})
    for kind, flag in result.failures.items():
        if bool(flag):
            text = f"update {update.name!r}: {cures.get(kind, kind)}"
            seen = {k: float(v) for k, v in result.metrics.items() if k in ("residual", "smallest_curvature")}
            told = ", ".join(f"{k} {v:.1e}" for k, v in seen.items())
            yield Finding("gradient", "FAILED", f"{kind}: {told}", f"{text} ({told})", update.name, update.params)


def _far_off(update: Update, found: Agreement) -> Finding:
    kind = type(update.gradient).__name__
    text = (
        f"update {update.name!r}: {kind} is {found.error:.0e} off the gradient that it approximates: a plain detach in "
        "the inner loss (write metarl.stop_gradient, which it can hold), a kink, or an adaptive step with a small eps; "
        "or let it use Unrolled"
    )
    return Finding("gradient", "warning", f"{found.error:.0e} at h={found.h:g}", text, update.name, update.params)


def _agrees(found: list[Agreement]) -> bool:
    return any(a.error <= RIGHT + 20 * a.noise for a in found if a.noise <= READABLE)


def _judged(
    update: Update, state: TrainState, batches: Batches, grads: Params, found: list[Agreement]
) -> Iterator[Finding]:
    name = update.name
    table = ", ".join(f"{a.error:.0e} at h={a.h:g}" for a in found)
    if all(a.noise > READABLE for a in found):
        text = (
            f"update {name!r}: its gradient (norm {float(norm(grads)):.1e}) is too small to compare with differences "
            "of its loss; raise the virtual step's learning rate for this check"
        )
        yield Finding("gradient", "warning", table, text, name, update.params)
    elif not _agrees(found):
        with HeldDetach() as held:
            again = _compare(update, state, batches, grads)
        where = " and ".join(held.seen[:2])
        if held.seen and _agrees(again):
            text = (
                f"update {name!r}: right only if the plain detach at {where} is meant; write metarl.stop_gradient(x) "
                "there, which says so and which differences can hold"
            )
            yield Finding("gradient", "warning", table, text, name, update.params, where)
            return
        cuts = cuts_in(update, state, batches, list(state.tree[update.params]))
        blamed = " or ".join(f"{cut} at {at}" for cut, at in cuts[:2])
        suspects = blamed or "detach, .data, .item(), no_grad or a hand-written backward"
        text = (
            f"update {name!r}: the gradient of {update.params!r} is wrong (relative error {table}): its loss depends "
            f"on it in a way that the graph does not follow; look at {suspects}"
        )
        yield Finding("gradient", "FAILED", table, text, name, update.params, cuts[0][1] if cuts else "")
    elif update.inners and found[0].error > JUMP:
        text = (
            f"update {name!r}: agrees with differences for small steps and not for large ones ({table}): a kink; ReLU "
            "in a learned loss has a jump in its input's gradient, which no hypergradient sees; use tanh, softplus or "
            "silu in the learned loss"
        )
        yield Finding("gradient", "warning", table, text, name, update.params)
