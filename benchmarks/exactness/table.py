"""The grid as one markdown page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from benchmarks.exactness.cells import NOISY, OPTIMIZERS, STARTS, STEPS, WARM, Cell
from benchmarks.exactness.oracle import DECAY, EPS, LR

PAGE = """# Every estimator against exact values

Made by `python -m benchmarks.exactness`; the tests take the same measurements. float64, one thread.

Each entry is the largest relative error `|estimate - exact| / |exact|` over its row's starts and numbers of steps
({starts}; {steps} steps); for `evolution_strategies`, the distance in its own standard errors. The exact value is what
the estimator defines, from closed forms and complex steps in numpy, without automatic differentiation: for a truncated,
first-order or identity estimate its own value, and in the rows "to/at the optimum" the closed-form hypergradient at the
inner optimum. *refused*: the formula does not hold or the library computes it wrongly, and metarl says so.

Rates {lr}; Adam's and RMSprop's eps {eps}; AdamW's decay {decay}; warm: after {warm} real steps, moments carried.

{table}

## Refused

{refused}
"""


def page(cells: Sequence[Cell]) -> str:
    """The whole page."""
    return PAGE.format(
        starts=" and ".join(STARTS),
        steps=" and ".join(map(str, STEPS)),
        lr=LR,
        eps=EPS,
        decay=DECAY,
        warm=WARM,
        table=table(cells),
        refused="\n".join(
            sorted({f"- {c.estimator}, {c.optimizer}, {c.backend}: {c.refused}" for c in cells if c.refused})
        ),
    )


def table(cells: Sequence[Cell]) -> str:
    """Rows by problem, estimator and backend; columns by optimiser; the worst of each."""
    lines = ["| problem | estimator | backend | " + " | ".join(OPTIMIZERS) + " |", "|---" * (3 + len(OPTIMIZERS)) + "|"]
    for (problem, estimator, backend), row in groupby(sorted(cells, key=_row), key=_row):
        found = list(row)
        entries = [_entry([c for c in found if c.optimizer == name]) for name in OPTIMIZERS]
        lines.append(f"| {problem} | {estimator} | {backend} | {' | '.join(entries)} |")
    return "\n".join(lines)


def summary(cells: Sequence[Cell]) -> Mapping[str, Any]:
    """How many cells there are, how many were refused, and the worst of each judgement."""
    worst = {j: max(c.error for c in cells if c.judged == j and c.error is not None) for j in {c.judged for c in cells}}
    return {"cells": len(cells), "refused": sum(c.refused is not None for c in cells), "worst": worst}


def _row(cell: Cell) -> tuple[str, str, str]:
    return cell.problem, cell.estimator, cell.backend


def _entry(cells: Sequence[Cell]) -> str:
    if not cells:
        return ""
    errors = [c.error for c in cells if c.error is not None]
    if not errors:
        return "refused"
    return f"{max(errors):.1f} s.e." if cells[0].judged == NOISY else f"{max(errors):.0e}"
