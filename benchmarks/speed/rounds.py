"""Rounds: in each, every part of every worker has one turn, in another order each time."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.speed.client import Worker
from benchmarks.speed.settings import Settings

Turns = dict[str, Any]
"""Of one part: `steps` of each turn, and a list over rounds each of `cpu_ms` and `wall_ms` per gradient step."""
PROBE = 10  # steps by which the length of a turn is chosen


def bar() -> Progress:
    """Over rounds, with whose turn it is; gone when it ends."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


def take_turns(
    workers: Mapping[str, Worker], settings: Settings, progress: Progress, title: str
) -> dict[str, dict[str, Turns]]:
    """Times per gradient step by worker and part."""
    turns: dict[str, dict[str, Turns]] = {}
    for name, worker in workers.items():
        turns[name] = {part: _empty(worker, part, settings) for part in worker.ready()["parts"]}
    task = progress.add_task(title, total=settings.rounds * sum(map(len, turns.values())))
    for i in range(settings.rounds):
        for name, part in _order(turns, i):
            progress.update(task, description=f"{title}: {name}" + (f", {part}" if part != "step" else ""))
            mine = turns[name][part]
            took = workers[name].run(mine["steps"], part)
            for clock in ("cpu", "wall"):
                mine[f"{clock}_ms"].append(1e3 * took[f"{clock}_s"] / took["steps"])
            progress.advance(task)
    progress.remove_task(task)
    return turns


def side_by_side(workers: Mapping[str, Worker], slice_s: float) -> dict[str, dict[str, Any]]:
    """What workers say of themselves that do all their work while they get ready, by name.

    They take turns of `slice_s` in which all others stand still, so that they meet the same neighbours.
    """
    waiting = dict(workers)
    for worker in waiting.values():
        worker.pause()
    while waiting:
        for name, worker in list(waiting.items()):
            worker.go_on()
            if worker.answers(slice_s):
                worker.ready()
                del waiting[name]
            else:
                worker.pause()
    return {name: worker.ready() for name, worker in workers.items()}


def _empty(worker: Worker, part: str, settings: Settings) -> Turns:
    """No turns yet, of an even number of steps that take about `turn_s`: every second step moves the policy."""
    took = worker.run(PROBE if settings.turn_s else 2, part)
    pairs = math.ceil(settings.turn_s * took["steps"] / max(took["cpu_s"], 1e-6) / 2)
    return {"steps": 2 * max(1, pairs), "cpu_ms": [], "wall_ms": []}


def _order(parts: Mapping[str, Iterable[str]], i: int) -> list[tuple[str, str]]:
    """Workers in another order each round, and so each one's parts, which stay together: they are subtracted.

    Shuffled, the same in every run; a rotation would leave everyone behind the same neighbour.
    """
    shuffle = random.Random(i)
    names = shuffle.sample(list(parts), len(parts))
    return [(name, part) for name in names for part in shuffle.sample(list(parts[name]), len(list(parts[name])))]
