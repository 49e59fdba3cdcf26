"""Whether virtual steps are taken by an optimiser whose step says something of the gradient's size."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

from metarl.bilevel import Update
from metarl.checking.case import WARM_UP, Case, estimate
from metarl.checking.findings import Finding


def moments(case: Case) -> list[Finding]:
    """No virtual step is the first of an adaptive optimiser, which is about lr * sign(gradient)."""
    if not case.bilevel:
        return [Finding("moments", "info", "no bilevel Update")]
    problems = [finding for update in case.bilevel for finding in _useless(case, update)]
    return problems or [Finding("moments", "ok", ", ".join(_described(u) for u in case.bilevel))]


def _described(update: Update) -> str:
    given = getattr(getattr(update.gradient, "base", update.gradient), "optimizer", None)
    if given is None:
        return f"{update.name} steps with the real optimiser, warm after {WARM_UP} steps"
    return f"{update.name} steps with {getattr(given, 'name', 'a given optimiser')}"


def _useless(case: Case, update: Update) -> Iterator[Finding]:
    def failed(measured: str, text: str) -> Finding:
        return Finding("moments", "FAILED", measured, f"update {update.name!r}: {text}", update.name, update.params)

    estimator: Any = update.gradient
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if hasattr(estimator, "check"):
            estimator.check(update, case.cold())
    for warning in said:  # the engine warns only: someone may want to see for themselves
        yield failed("fresh", str(warning.message).removeprefix(f"update {update.name!r}: "))
    for name, value in estimate(update, case.warm(), case.batches()).metrics.items():
        if name.startswith("cold_moments/") and float(value) > 0:
            group = name.removeprefix("cold_moments/")
            yield failed(
                f"{group} cold",
                f"the virtual step carries the moments of {group!r}, which are still zero after {WARM_UP} steps, so "
                "that it goes along sign(gradient); let a staged Update step that group, or give optimizer=sgd(lr)",
            )
