"""One compiled training step from inside: PyTorch's profiler over its products, kernels and allocations."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from torch.profiler import ProfilerActivity, profile

from metarl import config
from metarl.bilevel import Batches
from metarl.training.setup import prepare
from metarl.training.stepping import Stepping

# The first pattern that a name of the profiler matches names its group.
GROUPS: Mapping[str, str] = {
    "matrix products": r"mkldnn::_linear_pointwise|aoti_torch_(cpu|mkldnn)_.*(mm|linear)|aten::(add|b|badd)?mm\b",
    "optimisers and targets": r"cpp_fused.*(?<!to_)copy_(_|$)",
    "other generated kernels": r"cpp_fused",
    "copies": r"aten::(copy_|clone|contiguous)",
    "allocation": r"aten::(empty|resolve)",
    "wrapper": r"CompiledFxGraph|AOTDispatcher",
}
REST = "not seen by the profiler"

Drawn = Sequence[tuple[Batches, frozenset[str]]]


def examine(experiment: Mapping[str, Any], steps: int, rounds: int) -> dict[str, Any]:
    """Microseconds of a compiled step, by group, over steps as they come in a run.

    Args:
        experiment: as its YAML file would have it.
        steps: of one look; a multiple of the periods of what is due.
        rounds: how often they are timed, and looked at; the quickest look is kept.
    """
    setup = prepare(config.build(experiment, where="the profiled experiment"), 0)
    bare = Stepping(setup.learner, setup.start, "compiled")
    shown = Stepping(setup.learner, setup.start, "compiled", options={"cpp.enable_kernel_profile": True})
    drawn = [(setup.streams.batches(step), setup.learner.due(step)) for step in range(1, steps + 1)]
    for stepping in (bare, shown):
        _run(stepping, drawn)
    plain = median(_run(bare, drawn)[0] for _ in range(rounds))
    looks = [_look(shown, drawn) for _ in range(rounds)]
    seen, wall = min(looks, key=lambda look: look[1])  # the profiler's clock goes on while a neighbour computes
    events = [(event.key, event.self_cpu_time_total / steps, event.count / steps) for event in seen.key_averages()]
    groups = by_group({name: us for name, us, _ in events})
    return {
        "steps": steps,
        "us": plain,
        "us_watched": wall,
        "groups": groups | {REST: max(0.0, wall - sum(groups.values()))},
        "events": {name: {"us": us, "times": times} for name, us, times in sorted(events, key=lambda e: -e[1])},
    }


def by_group(events: Mapping[str, float]) -> dict[str, float]:
    """Microseconds by group, from microseconds by name."""
    groups = dict.fromkeys((*GROUPS, "others"), 0.0)
    for name, us in events.items():
        group = next((group for group, pattern in GROUPS.items() if re.search(pattern, name)), "others")
        groups[group] += us
    return groups


def _look(stepping: Stepping, drawn: Drawn) -> tuple[profile, float]:
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        _, wall = _run(stepping, drawn)
    return seen, wall


def _run(stepping: Stepping, drawn: Drawn) -> tuple[float, float]:
    """Microseconds of one step: of CPU time, and on the wall."""
    cpu, wall = time.process_time(), time.perf_counter()
    for batches, due in drawn:
        stepping(batches, due)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return cpu / len(drawn) * 1e6, wall / len(drawn) * 1e6
