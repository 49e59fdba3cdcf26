"""The checks in order; each one needs those before it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from dataclasses import replace

import torch

from metarl.checking import contract, running
from metarl.checking.case import Case
from metarl.checking.edges import edges
from metarl.checking.findings import RANK, Finding, Report
from metarl.checking.gradient import gradient
from metarl.checking.moments import moments
from metarl.checking.purity import purity
from metarl.checking.reached import reached
from metarl.checking.signal import signal
from metarl.checking.small import CannotBuild, Plan, make
from metarl.checking.where import raised_at
from metarl.errors import ConfigError, UserError

Check = Callable[[Plan, Case], list[Finding]]

CHECKS: dict[str, Check] = {
    "runs": lambda plan, case: contract.runs(case),
    "shapes": lambda plan, case: contract.shapes(case),
    "dtypes": lambda plan, case: contract.dtypes(case),
    "broadcasting": lambda plan, case: contract.broadcasting(case),
    "purity": lambda plan, case: purity(case),
    "reached": lambda plan, case: reached(case),
    "moments": lambda plan, case: moments(case),
    "gradient": lambda plan, case: gradient(case),
    "edges": lambda plan, case: edges(case),
    "signal": lambda plan, case: signal(case),
    "compiles": lambda plan, case: running.compiles(case),
    "stacks": lambda plan, case: running.stacks(case, _sibling(plan, case)),
    "cost": lambda plan, case: running.cost(plan, case.algorithm),
}


def names() -> tuple[str, ...]:
    """The names of all checks, in order."""
    return ("builds", *CHECKS)


def check(plan: Plan, skip: Collection[str] = ()) -> Report:
    """Builds the plan's objective over a small learner and measures it.

    Args:
        plan: which objective over which algorithm.
        skip: names of checks to leave out.

    Raises:
        ConfigError: a name or a setting is wrong; no algorithm suits the objective.
    """
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # what matters among them is a finding
        try:
            case = make(plan)
        except ConfigError:  # a mistake in what was asked for, not in the objective
            raise
        except Exception as error:
            return Report(plan.title, plan.base or "any", (_unbuilt(plan, error),))
        found = []
        for name, run in CHECKS.items():
            if name in skip:
                continue
            found += _guarded(name, run, plan, case)
            if name in ("runs", "shapes") and any(f.status == "FAILED" for f in found):
                break  # without a value there is nothing to measure
        found = _causes(found)
    return Report(plan.title, case.algorithm, tuple(found))


FOLLOWS = {
    "gradient": ("reached", "dtypes", "purity", "moments"),
    "signal": ("reached", "moments"),
    "compiles": ("purity",),
    "stacks": ("purity",),
}


def _causes(found: list[Finding]) -> list[Finding]:
    """Without what only follows from an earlier failure."""
    failed = {name: [f for f in found if f.check == name and f.status == "FAILED"] for name in CHECKS}
    kept = []
    for f in found:
        cause = next((c for c in FOLLOWS.get(f.check, ()) if failed[c]), None)
        if cause is None or RANK[f.status] < RANK["warning"]:
            kept.append(f)
        elif not any(k.check == f.check for k in kept):
            kept.append(Finding(f.check, "info", f"follows from {cause!r}"))
    return kept


def _guarded(name: str, run: Check, plan: Plan, case: Case) -> list[Finding]:
    try:
        return run(plan, case)
    except Exception as error:  # one check that trips must not hide the others
        where = raised_at(error)
        at = f" at {where}" if where else ""
        text = f"this check could not be made{at}: {type(error).__name__}: {_first(error)}"
        status = "FAILED" if where or isinstance(error, UserError) else "warning"
        return [Finding(name, status, "could not be made", text, where=where)]  # type: ignore[arg-type]


def _unbuilt(plan: Plan, error: Exception) -> Finding:
    where = raised_at(error)
    at = f" at {where}" if where else ""
    kind = "" if isinstance(error, CannotBuild) else f"{type(error).__name__}: "
    text = f"the objective cannot be attached{at}: {kind}{_first(error)}"
    return Finding("builds", "FAILED", "attach raised", text, where=where)


def _first(error: Exception) -> str:
    return " ".join((str(error).splitlines() or [""])[0].split())


def _sibling(plan: Plan, case: Case) -> Case:
    return make(replace(plan, algorithm=plan.algorithm or case.algorithm), seed=1)
