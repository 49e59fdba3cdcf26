"""Time per environment step: live trainings of both sides in processes of their own advance in turns."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from rich.progress import Progress

from benchmarks.online.settings import settings
from benchmarks.speed.client import Worker
from metarl.provenance import environment

OURS, SB3 = "metarl", "stable_baselines3"
MODULES = {OURS: "benchmarks.online.ours", SB3: "benchmarks.online.rival_sb3"}


@dataclass(frozen=True)
class Turns:
    """What is timed and for how long.

    Attributes:
        rounds: in each of them both sides have one turn.
        steps: of the environment in a turn.
        warm: steps with updates before the first turn.
        seed: of the trainings.
        mode: metarl's `compile`.
        core: the CPU core that both are pinned to; None where the system cannot pin.
    """

    rounds: int = 7
    steps: int = 2000
    warm: int = 500
    seed: int = 0
    mode: str = "auto"
    core: int | None = None


def measure(
    pairs: Sequence[tuple[str, str]], pythons: Mapping[str, str], turns: Turns, progress: Progress
) -> dict[str, Any]:
    """Every pair's times.

    Args:
        pairs: environments and algorithms.
        pythons: interpreters by side, a part of `MODULES`.
        turns: what is timed.
        progress: a running bar.

    Raises:
        UserError: a side's process cannot be started, or ends.
    """
    load = os.getloadavg()[0]
    timed = [
        {"env": env, "algorithm": algorithm, "sides": pair(env, algorithm, pythons, turns, progress)}
        for env, algorithm in pairs
    ]
    return {
        "environment": environment(),
        "load_average": {"before": load, "after": os.getloadavg()[0]},
        "turns": asdict(turns),
        "pairs": timed,
    }


def pair(
    env: str, algorithm: str, pythons: Mapping[str, str], turns: Turns, progress: Progress
) -> dict[str, dict[str, Any]]:
    """By side what its worker says of itself, and CPU and wall milliseconds per step in every round by part."""
    told = {"env": env, "algorithm": algorithm, "seed": turns.seed, "settings": settings(algorithm, env)}
    options = {**told, "warm": turns.warm, "core": turns.core, "mode": turns.mode}
    with ExitStack() as opened:
        workers = {
            side: opened.enter_context(Worker(f"{side}, {algorithm} on {env}", python, MODULES[side], options))
            for side, python in pythons.items()
        }
        title = f"{algorithm} on {env}"
        task = progress.add_task(f"{title}: getting ready", total=turns.rounds * len(workers))
        found = {side: {**worker.ready(), "times": {}} for side, worker in workers.items()}
        for i in range(turns.rounds):
            for side in in_turn(list(workers), i):
                progress.update(task, description=f"{title}: {side}")
                for part in found[side]["parts"]:
                    took = workers[side].run(turns.steps, part)
                    times = found[side]["times"].setdefault(part, {"cpu_ms": [], "wall_ms": []})
                    for clock in ("cpu", "wall"):
                        times[f"{clock}_ms"].append(1e3 * took[f"{clock}_s"] / took["steps"])
                progress.advance(task)
        progress.remove_task(task)
        return found


def in_turn(sides: Sequence[str], i: int) -> list[str]:
    """Everyone once in the `i`th round; who is first alternates."""
    first = i % len(sides)
    return [*sides[first:], *sides[:first]]
