"""Checks that all contestants agree, then lets them take turns; and what each allocates at most."""

from __future__ import annotations

import math
import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import torch
from torch import Tensor
from torch.autograd import profiler

from benchmarks.hypergradients.contestants import OURS, RIVALS, Hypergradient, by_hand, metarl
from benchmarks.hypergradients.problems import Problem
from benchmarks.speed import Timing
from metarl.bilevel.compiling import compiled
from metarl.errors import UserError
from metarl.provenance import environment

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}


class Unequal(UserError):
    """A contestant computes another hypergradient than the reference: its time would mean nothing."""


@dataclass(frozen=True)
class Size:
    """How long to look.

    Attributes:
        rounds: each gives every contestant one turn.
        turn_ms: CPU milliseconds of a turn, about.
        compiled: whether metarl takes part a second time, compiled.
    """

    rounds: int = 31
    turn_ms: float = 30.0
    compiled: bool = True


def measure(problems: Sequence[Problem], size: Size) -> dict[str, Any]:
    """Every problem's answers as plain data; raises `Unequal` before anything is timed wrongly."""
    return {
        "environment": environment() | {"higher": metadata.version("higher")},
        "load_average": os.getloadavg()[0],
        "settings": asdict(size) | {"dtype": "float32", "threads": torch.get_num_threads()},
        "problems": {problem.name: _one(problem, size) for problem in problems},
    }


def _one(problem: Problem, size: Size) -> dict[str, Any]:
    contestants = OURS | RIVALS
    if size.compiled:
        contestants["metarl compiled"] = lambda problem: metarl(problem, compiled)
    with default_dtype(torch.float64):  # in which torchopt's Adam takes its bias corrections
        exact, _ = errors(problem.to(torch.float64), contestants)
    single, prepared = errors(problem.to(torch.float32), contestants)
    times = take_turns({name: run for name, (run, _) in prepared.items()}, size)
    peaks = {name: peak_memory(run) for name, (run, _) in prepared.items()}
    fastest = min(RIVALS, key=lambda name: Timing.of(times[name]).median)
    leanest = min(RIVALS, key=lambda name: peaks[name])
    result: dict[str, Any] = {
        "what": problem.what,
        "contestants": {
            name: {
                "ms": asdict(Timing.of(times[name])),
                "peak_bytes": peaks[name],
                "error_float64": exact[name],
                "error_float32": single[name],
            }
            for name in contestants
        },
        "fastest_rival": fastest,
        "leanest_rival": leanest,
        "over_best_rival": {
            name: {
                "time": asdict(Timing.of([a / b for a, b in zip(times[name], times[fastest], strict=True)])),
                "memory": peaks[name] / peaks[leanest],
            }
            for name in contestants
        },
    }
    if size.compiled:
        seconds = prepared["metarl compiled"][1]
        saved = Timing.of(times["metarl eager"]).median - Timing.of(times["metarl compiled"]).median
        result["compile"] = {"seconds": seconds, "pays_after": math.ceil(1e3 * seconds / saved) if saved > 0 else None}
    return result


def errors(
    problem: Problem, contestants: dict[str, Callable[[Problem], Hypergradient]]
) -> tuple[dict[str, float], dict[str, tuple[Hypergradient, float]]]:
    """Relative distance from the hand-written hypergradient; and each contestant's function with its first call's time.

    Raises:
        Unequal: more than the tolerance of the problem's precision apart, or a reference without a signal.
    """
    reference = by_hand(problem)()
    dtype = reference[0].dtype
    if not all(value.isfinite().all() and value.norm() > 0 for value in reference):
        raise Unequal(f"{problem.name}: the reference hypergradient is zero or not finite")
    found, prepared = {}, {}
    for name, contestant in contestants.items():
        run = contestant(problem)
        began = _cpu_seconds()
        value = run()
        prepared[name] = (run, _cpu_seconds() - began)
        # A second call: a contestant that leaves its virtual steps behind would differ only now.
        found[name] = max(_distance(value, reference), _distance(run(), reference))
        if not found[name] < TOLERANCE[dtype]:
            raise Unequal(
                f"{problem.name}: {name} is {found[name]:.1e} away from the hand-written hypergradient in {dtype}; "
                f"at most {TOLERANCE[dtype]:.0e} counts as the same"
            )
    return found, prepared


def _distance(value: tuple[Tensor, ...], reference: tuple[Tensor, ...]) -> float:
    pairs = zip(value, reference, strict=True)
    distances = [float((a - b).norm() / b.norm()) for a, b in pairs]
    return max(distances) if all(map(math.isfinite, distances)) else math.inf


def take_turns(contestants: dict[str, Hypergradient], size: Size) -> dict[str, list[float]]:
    """CPU milliseconds per hypergradient, one number a round; who begins changes from round to round."""
    names = list(contestants)
    calls = {}
    for name, run in contestants.items():
        _cpu_ms(run, 3)
        calls[name] = max(1, round(size.turn_ms / _cpu_ms(run, 3)))
    times: dict[str, list[float]] = {name: [] for name in names}
    for i in range(size.rounds):
        shift = i % len(names)
        for name in names[shift:] + names[:shift]:
            times[name].append(_cpu_ms(contestants[name], calls[name]))
    return times


def _cpu_ms(run: Hypergradient, calls: int) -> float:
    began = time.process_time_ns()
    for _ in range(calls):
        run()
    return (time.process_time_ns() - began) / 1e6 / calls


def _cpu_seconds() -> float:
    """Of this process and of the compilers that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def peak_memory(fn: Callable[[], Any]) -> int:
    """Bytes that `fn` holds at most beyond what was held before, results included.

    Counted by the profiler at PyTorch's CPU allocator. A dispatch mode would not see inside a compiled function, and
    the resident set of a process would not see a few megabytes among those that the allocator keeps.
    """
    with _quiet_stderr(), profiler.profile(profile_memory=True) as profile:
        result = fn()
    del result
    events = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """PyTorch's dtype of a float from nowhere, for a while."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Without the two lines that PyTorch's C++ profiler writes to the terminal."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
