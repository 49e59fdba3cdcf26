"""From what was measured in the first steps of a run to the whole of it: unit costs times how often each comes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metarl.errors import UserError

# What a run's parts are called, what drives each, and the group that it is shown in.
ONCE, STEP, EVALUATION, ROW, CHECKPOINT = "once", "steps", "evaluations", "rows", "checkpoints"
PARTS: Mapping[str, tuple[str, str]] = {
    "imports": (ONCE, "start-up"),
    "building the run": (ONCE, "start-up"),
    "reading data": (ONCE, "data"),
    "preparing steps": (ONCE, "start-up"),
    "steps": (STEP, "steps"),
    "drawing batches": (STEP, "data"),
    "environments": (EVALUATION, "evaluation"),
    "resets": (EVALUATION, "evaluation"),
    "policy": (EVALUATION, "evaluation"),
    "evaluation's own loop": (EVALUATION, "evaluation"),
    "probes": (EVALUATION, "logging"),
    "metrics": (ROW, "logging"),
    "checkpoints": (CHECKPOINT, "logging"),
    "progress": (STEP, "logging"),
    "threads beside": (STEP, "logging"),
    "rest": (STEP, "rest"),
}
GROUPS = ("steps", "data", "evaluation", "logging", "start-up", "rest")
OVERHEAD = ("data", "evaluation", "logging")
EPISODE = ("environments", "policy", "evaluation's own loop")  # as long as the episodes last


def measured(run: Mapping[str, Any]) -> dict[str, float]:
    """CPU seconds by part of the steps that were really made."""
    steps = sum(one["seconds"] for one in run["due"].values())
    return {part: steps if part == "steps" else run["seconds"].get(part, 0.0) for part in PARTS}


def whole(run: Mapping[str, Any], full_episodes: bool = False) -> dict[str, float]:
    """CPU seconds by part of the run to its last planned step.

    Args:
        run: what `benchmarks.profile.run.measure` gave.
        full_episodes: every episode of every evaluation lasts until the time limit.

    Raises:
        UserError: the measured steps hold nothing of what comes later.
    """
    ratio = {ONCE: 1.0}
    for unit in (STEP, EVALUATION, ROW, CHECKPOINT):
        ratio[unit] = _ratio(run["planned"][unit], run["counts"][unit], unit)
    seconds = {part: value * ratio[PARTS[part][0]] for part, value in measured(run).items()}
    seconds["steps"] = sum(
        one["seconds"] * _ratio(one["planned"], one["calls"], f"steps of {name}") for name, one in run["due"].items()
    )
    if full_episodes:
        longest = run["counts"]["episodes"] * run["time_limit"] / run["counts"]["env_steps"]
        seconds |= {part: seconds[part] * longest for part in EPISODE}
    return seconds


def grouped(seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds by group."""
    return {group: sum(s for part, s in seconds.items() if PARTS[part][1] == group) for group in GROUPS}


def overhead(seconds: Mapping[str, float]) -> float:
    """The share of evaluation, logging and data."""
    groups = grouped(seconds)
    return sum(groups[group] for group in OVERHEAD) / sum(groups.values())


def _ratio(planned: int, counted: int, what: str) -> float:
    if planned and not counted:
        raise UserError(f"the measured steps hold no {what}, of which the whole run has {planned:,}; measure more")
    return planned / counted if counted else 0.0
