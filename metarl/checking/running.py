"""How a step with the objective runs: compiled, stacked, and at what cost over the base algorithm."""

from __future__ import annotations

import statistics
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from metarl.bilevel import Batches, Metrics, TrainState
from metarl.bilevel.recording import leaves, record
from metarl.checking.case import Case, period
from metarl.checking.findings import Finding
from metarl.checking.small import Plan, make
from metarl.checking.watch import peak_memory
from metarl.checking.where import raised_at
from metarl.learner import Learner
from metarl.training.stepping import eager_only, stacked

EQUAL = 1e-10
SMALL = 1e-4  # a leaf below this is compared absolutely: a solver's residual of 1e-15 is rounding and nothing else
REPEATS = 11

Step = Callable[[TrainState, Batches], tuple[TrainState, Metrics]]


def _step(learner: Learner, due: frozenset[str]) -> Step:
    return lambda state, batches: learner.step(state, batches, due)


def compiles(case: Case) -> list[Finding]:
    """The whole step in which the bilevel Updates are due, recorded as the compiler gets it, gives eager's numbers."""
    if names := eager_only(case.bilevel):
        return [Finding("compiles", "info", f"the library that {', '.join(names)} goes through runs eagerly only")]
    step = _step(case.learner, case.due)
    state, batches = case.warm(), case.batches()
    expected = step(state, batches)
    try:
        got = record(step, state, batches)(*leaves(state, batches))
    except Exception as error:
        return [_refused("compiles", "compile", error)]
    return [_equal("compiles", "one graph", apart(got, expected))]


def stacks(case: Case, other: Case) -> list[Finding]:
    """Two seeds stacked under torch.vmap give the numbers of each alone."""
    step = _step(case.learner, case.due)
    states, batches = (case.warm(), other.warm()), (case.batches(), other.batches())
    expected = [step(s, b) for s, b in zip(states, batches, strict=True)]
    try:
        with torch.no_grad():
            got = torch.vmap(step)(stacked(states), stacked(batches))
    except Exception as error:
        return [_refused("stacks", "run under torch.vmap", error)]
    each = [pytree.tree_map(lambda x, i=i: x[i], got) for i in range(2)]
    return [_equal("stacks", "two seeds", max(map(apart, each, expected)))]


def _refused(check: str, what: str, error: Exception) -> Finding:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    where = raised_at(error.__cause__, inside=True) if error.__cause__ else raised_at(error)
    first = textwrap.shorten(lines[0] if lines else "", 160, placeholder=" ...")
    reason = f"{type(error).__name__}: {first}" + (f" at {where}" if where else "")
    cure = "eager training works all the same; keep to tensor operations, without .item() and if on a tensor"
    return Finding(check, "warning", "no", f"the step does not {what} ({reason}); {cure}", where=where)


def _equal(check: str, what: str, difference: float) -> Finding:
    measured = f"{what}, differs from eager by {difference:.0e}"
    if difference <= EQUAL:
        return Finding(check, "ok", measured)
    text = (
        f"the numbers differ by {difference:.0e} relative, more than {EQUAL:g}: some loss is no pure function of its "
        "inputs; look for state, randomness or another dtype in it"
    )
    return Finding(check, "FAILED", measured, text)


def apart(a: Any, b: Any) -> float:
    """The largest difference of two nests of tensors, relative to each leaf's largest value or `SMALL`."""
    pairs = zip(pytree.tree_leaves(a), pytree.tree_leaves(b), strict=True)
    return max((_distance(x, y) for x, y in pairs if isinstance(x, Tensor)), default=0.0)


def _distance(x: Tensor, y: Tensor) -> float:
    if x.shape != y.shape:
        return float("inf")
    if torch.equal(x, y):
        return 0.0
    x, y = x.double(), y.double()
    return float(((x - y).abs().max() / y.abs().max().clamp_min(SMALL)).nan_to_num(nan=float("inf")))


def cost(plan: Plan, algorithm: str) -> list[Finding]:
    """Time, FLOPs and memory of a step over the base algorithm's, at the components' own sizes in float32."""
    case = make(replace(plan, algorithm=plan.algorithm or algorithm), small=False)
    ours = _ready(case, case.learner)
    flops, memory = _flops(ours), peak_memory(ours)
    if not case.base.due(case.meta_step):
        (seconds,) = _interleaved(ours)
        measured = f"{flops / 1e6:.2f} MFLOP, {1e3 * seconds:.1f} ms (noisy), peak {_size(memory)}; no base to compare"
        return [Finding("cost", "info", measured)]
    theirs = _ready(case, case.base)
    base_flops, base_memory = _flops(theirs), peak_memory(theirs)
    seconds, base_seconds = _interleaved(ours, theirs)
    mean = _mean_flops(case, case.learner) / _mean_flops(case, case.base)
    measured = (
        f"{'meta-step' if case.bilevel else 'step'} {flops / base_flops:.2f}x base FLOPs ({mean:.2f}x on average), "
        f"{seconds / base_seconds:.1f}x time (noisy), peak {_size(memory)} against {_size(base_memory)}"
    )
    return [Finding("cost", "info", measured)]


def _size(count: int) -> str:
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"


def _ready(case: Case, learner: Learner, due: frozenset[str] | None = None) -> Callable[[], Any]:
    """One step of a learner in the case's meta-step, or of the given due set."""
    due = learner.due(case.meta_step) if due is None else due
    state = learner.init(torch.float32)
    batches = case.batches(dtype=torch.float32)
    return lambda: learner.step(state, batches, due)


def _interleaved(*fns: Callable[[], Any]) -> list[float]:
    """Median seconds of each, taken in turn so that a busy machine slows all alike."""
    times: list[list[float]] = [[] for _ in fns]
    for repeat in range(REPEATS + 1):
        for fn, taken in zip(fns, times, strict=True):
            start = time.perf_counter()
            fn()
            if repeat:  # the first call warms up
                taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in times]


def _flops(fn: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        fn()
    return counter.get_total_flops()


def _mean_flops(case: Case, learner: Learner) -> float:
    """FLOPs of a step on average over the objective's period."""
    start, length = max((u.start for u in case.learner.updates.values()), default=0), period(case.learner)
    kinds = Counter(learner.due(start + i) for i in range(1, length + 1))
    return sum(times * _flops(_ready(case, learner, due)) for due, times in kinds.items()) / length
