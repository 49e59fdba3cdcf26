"""Ratios from the recorded times, all taken round by round."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.speed.timing import Timing

PERIODS = (500, 10, 2)  # gradient steps between guiding updates


def step_ms(size: Mapping[str, Any], name: str, clock: str = "cpu") -> list[float]:
    """Milliseconds per gradient step of one contestant, one number a round."""
    times: list[float] = size["contestants"][name]["parts"]["step"][f"{clock}_ms"]
    return times


def speed(size: Mapping[str, Any], name: str, against: str, clock: str = "cpu") -> Timing:
    """How many gradient steps `name` takes while `against` takes one."""
    return Timing.ratio(step_ms(size, against, clock), step_ms(size, name, clock))


def cost(measured: Mapping[str, Any], name: str, against: str) -> Timing:
    """The time of one gradient step of `name` in those of `against`."""
    return Timing.ratio(step_ms(measured, name), step_ms(measured, against))


def whole_cost(runs: Mapping[str, Any], prepared: bool = False) -> Timing:
    """The time of a whole run with a warm start over that of one without; with `prepared`, preparing left out."""
    times = []
    for each in ("gild", "alone"):
        run = runs[each]
        times.append([a - prepared * b for a, b in zip(run["cpu_s"], run["preparing_cpu_s"], strict=True)])
    return Timing.ratio(*times)


def gorl_costs(parts: Mapping[str, Any]) -> dict[str, Timing]:
    """CPU milliseconds: `base` of an average step without GORL, `weighing` of the guiding network in a policy step,
    `guiding` of one guiding update."""
    base, weighing, guiding = _costs(parts)
    return {"base": Timing.of(base), "weighing": Timing.of(weighing), "guiding": Timing.of(guiding)}


def gorl_overhead(parts: Mapping[str, Any], period: int) -> Timing:
    """Cost of GORL over that of its base algorithm, with a guiding update every `period` gradient steps."""
    return Timing.of(_overheads(parts, period))


def gorl_average(bases: Sequence[tuple[Mapping[str, Any], int]]) -> Timing:
    """The mean of `gorl_overhead` over bases, given as their parts and periods; taken round by round."""
    overheads = zip(*(_overheads(parts, period) for parts, period in bases), strict=True)
    return Timing.of([statistics.fmean(each) for each in overheads])


def _overheads(parts: Mapping[str, Any], period: int) -> list[float]:
    """Every step that moves the policy evaluates the guiding network's weights: every second one, or each."""
    share = 0.5 if "critic" in parts else 1.0
    return [(share * w + g / period) / b for b, w, g in zip(*_costs(parts), strict=True)]


def gorl_measured(parts: Mapping[str, Any]) -> Timing:
    """The same for a period of 2, from both algorithms on their own schedule."""
    return Timing.of([a / b - 1 for a, b in zip(parts["gorl"]["cpu_ms"], parts["base"]["cpu_ms"], strict=True)])


def _costs(parts: Mapping[str, Any]) -> tuple[list[float], list[float], list[float]]:
    policy, weighted, guided = (parts[name]["cpu_ms"] for name in ("policy", "weighted", "guided"))
    critic = parts["critic"]["cpu_ms"] if "critic" in parts else policy
    base = [(a + b) / 2 for a, b in zip(critic, policy, strict=True)]
    return base, _differences(weighted, policy), _differences(guided, weighted)


def _differences(more: Sequence[float], less: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(more, less, strict=True)]


def pays_after(result: Mapping[str, Any], algorithm: str, row: str) -> int | None:
    """Gradient steps after which compiling has saved the CPU time that it took, against recording; None if never."""
    rows = result["compile"][algorithm]
    if algorithm == "gorl":
        times = [result["gorl"][mode]["parts"]["gorl"]["cpu_ms"] for mode in ("recorded", "compiled")]
    else:
        times = [step_ms(result["sizes"]["hopper"], mode) for mode in ("recorded", "compiled")]
    saved = statistics.median(_differences(*times))
    spent = 1e3 * (rows[row]["cpu_s"] - rows["recorded"]["cpu_s"])
    return math.ceil(max(0.0, spent) / saved) if saved > 0 else None


def flatness_percent(course: Mapping[str, Any]) -> tuple[float, float]:
    """By how many per cent a meta-step costs more: in the last tenth than in the first, and than a fresh learner's."""
    times = course["course_ms"]
    tenth = max(1, len(times) // 10)
    over_time = statistics.median(times[-tenth:]) / statistics.median(times[:tenth])
    in_turns = Timing.ratio(course["old_ms"], course["fresh_ms"]).median
    return 100 * (over_time - 1), 100 * (in_turns - 1)
