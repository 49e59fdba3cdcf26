"""The results as grids of text; every number comes from the recorded ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.online.returns import Comparison
from benchmarks.online.settings import LABELS, PAIRS, settings
from benchmarks.online.turns import OURS, SB3
from benchmarks.speed.tables import Grid
from benchmarks.speed.timing import Timing
from benchmarks.statistics import Interval

MOST, AIM = 0.7, 0.5
"""metarl's time per step in units of Stable-Baselines3's: what it may take at most, and what it aims at."""
LISTED = 3  # steps of a verdict
NAMES = {OURS: "metarl", SB3: "Stable-Baselines3"}
WORDS = {
    "hidden": "hidden layers of policy and critics",
    "activation": "their activation",
    "critics": "critics",
    "batch_size": "batch",
    "lr": "learning rate of everything that is learned (Adam)",
    "discount": "discount",
    "tau": "rate of the targets",
    "policy_every": "critic steps to one of the policy, and of the targets",
    "replay": "replay",
    "envs": "environments",
    "updates_per_step": "updates to a step of the environment",
    "random_steps": "random steps at the start",
    "exploration_noise": "exploration noise, in units of the largest action",
    "policy_noise": "target smoothing",
    "noise_clip": "its clip",
    "temperature": "start of the learned temperature",
}


def label(pair: Mapping[str, Any]) -> str:
    """Of an environment and an algorithm."""
    return f"{LABELS[pair['algorithm']]}, {pair['env']}"


def told() -> Grid:
    """One row a setting, one column an environment and algorithm."""
    columns = [settings(algorithm, env) for env, algorithm in PAIRS]
    rows = [(words, *(_value(one.get(name)) for one in columns)) for name, words in WORDS.items()]
    head = ("both sides", *(label({"env": env, "algorithm": algorithm}) for env, algorithm in PAIRS))
    return Grid("What both sides are told", head, rows)


def _value(value: Any) -> str:
    match value:
        case None:
            return ""
        case int():
            return f"{value:,}"
        case tuple() | list():
            return " x ".join(map(str, value))
    return str(value)


def ratio(pair: Mapping[str, Any], clock: str = "cpu") -> Timing:
    """metarl's time per step in units of Stable-Baselines3's, round by round."""
    times = [pair["sides"][side]["times"]["step"][f"{clock}_ms"] for side in (OURS, SB3)]
    return Timing.ratio(*times)


def times(measured: Mapping[str, Any]) -> Grid:
    """One row a pair."""
    rows = []
    for pair in measured["pairs"]:
        sides, share = pair["sides"], ratio(pair)
        steps = [_ranged(Timing.of(sides[side]["times"]["step"]["cpu_ms"])) for side in (OURS, SB3)]
        bare = Timing.of(sides[OURS]["times"]["environment"]["cpu_ms"]).median
        modes = " and ".join(sides[OURS]["facts"]["modes"])
        met = f"at most {AIM:g}" if share.median <= AIM else f"at most {MOST:g}" if share.median <= MOST else "no"
        rows.append((label(pair), *steps, _ranged(share), _ranged(ratio(pair, "wall")), met, f"{bare:.3f}", modes))
    head = (
        "CPU-ms a step",
        NAMES[OURS],
        NAMES[SB3],
        "metarl / SB3",
        "of wall times",
        f"at most {MOST:g}, aim {AIM:g}",
        "environment alone",
        "metarl's steps",
    )
    return Grid("Time per environment step", head, rows)


def returns(comparisons: Sequence[Comparison]) -> Grid:
    """One row a pair: the last evaluation, the whole course, and the verdict."""
    rows = []
    for one in comparisons:
        last = one.counting[-1]
        met = sum(moment.overlap for moment in one.counting)
        seeds = " and ".join(map(str, dict.fromkeys(one.seeds[side] for side in (OURS, SB3))))
        rows.append(
            (
                label({"env": one.env, "algorithm": one.algorithm}),
                seeds,
                f"{last.step:,}",
                *(interval(last.intervals[side]) for side in (OURS, SB3)),
                interval(one.last),
                f"{met} of {len(one.counting)}",
                f"{min(moment.p for moment in one.counting):.2g}",
                "" if one.area is None else f"{one.area.p:.2g}",
                interval(one.gap),
                verdict(one),
            )
        )
    head = (
        "mean return",
        "seeds",
        "last evaluation at",
        NAMES[OURS],
        NAMES[SB3],
        "difference",
        "evaluations whose intervals meet",
        "least p of them",
        "p of the whole course",
        "its difference",
        "verdict",
    )
    return Grid("Return at equal steps", head, rows)


def verdict(one: Comparison) -> str:
    """In words."""
    if one.overlap:
        return "overlap"
    differing = [moment.step for moment in one.counting if moment.differs]
    found = [f"{words} at {_listed(steps)}" for words, steps in (("apart", one.apart), ("differs", differing)) if steps]
    return "; ".join(found or ["the whole course differs"])


def _listed(steps: Sequence[int]) -> str:
    """All of a few steps, and the first of many."""
    few = [f"{step:,}" for step in steps[:LISTED]]
    return ", ".join(few) + (f" and {len(steps) - LISTED} more" if len(steps) > LISTED else "")


def interval(found: Interval | None) -> str:
    """The mean with its bounds, to one return, and below a hundred to a tenth."""
    if found is None:
        return ""
    places = 0 if max(abs(found.low), abs(found.high)) >= 100 else 1
    return f"{found.value:,.{places}f} ({found.low:,.{places}f} to {found.high:,.{places}f})"


def _ranged(timing: Timing) -> str:
    return f"{timing.median:.2f} ({timing.low:.2f} to {timing.high:.2f})"
