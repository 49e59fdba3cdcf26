"""docs/runner.md, written from the recorded result alone."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.speed.timing import Timing

HOW = """The suite has {runs} runs of one method: TD3+BC with hidden layers {hidden}, {steps:,} eager steps on Pendulum
    data and 5 evaluations of 5 episodes. In {rounds} rounds it runs from nothing, with `--jobs 1` and with
    `--jobs 2` in an order that alternates. A run's loop (steps, evaluations, checkpoints) is timed by the run itself
    (cost.json); everything else is timed from outside. Figures are medians over rounds, with the smallest and the
    largest."""
OVERHEAD = """`overhead of a run = (seconds of the command - seconds in loops) / runs - seconds of importing torch`,
    with `--jobs 1`. It holds all that is not training: starting {runs} processes, their imports beside torch, data,
    learners, result files, and the command's own start, which a suite of more runs spreads over more of them."""


def overheads(result: Mapping[str, Any]) -> Timing:
    """Seconds of a run beside its loop and importing torch."""
    found = []
    for one in result["rounds"]:
        alone = one["jobs_1"]
        found.append((alone["seconds"] - sum(alone["loops"])) / len(alone["loops"]) - one["import_torch"])
    return Timing.of(found)


def speed_up(result: Mapping[str, Any]) -> Timing:
    """How many times as fast the suite runs with two processes, round by round."""
    one, two = ([r[f"jobs_{jobs}"]["seconds"] for r in result["rounds"]] for jobs in (1, 2))
    return Timing.ratio(one, two)


def page(result: Mapping[str, Any]) -> str:
    """The whole page."""
    made, load, plan, rounds = (result[key] for key in ("environment", "load_average", "plan", "rounds"))
    machine = f"Python {made['python']}, torch {made['torch']}; {made['machine']}"
    rows = [
        ("**overhead of a run**, s", overheads(result)),
        ("**speed-up with two processes**", speed_up(result)),
        ("importing torch, s", Timing.of([one["import_torch"] for one in rounds])),
        ("starting the command (`--dry-run --no-estimate`), s", Timing.of([one["start"] for one in rounds])),
    ]
    for jobs in (1, 2):
        suites = [one[f"jobs_{jobs}"] for one in rounds]
        rows.append((f"the suite with `--jobs {jobs}`, s", Timing.of([suite["seconds"] for suite in suites])))
        loops = [sum(suite["loops"]) / len(suite["loops"]) for suite in suites]
        rows.append((f"a run's loop with `--jobs {jobs}`, s", Timing.of(loops)))
    blocks = [
        "# What running a suite costs",
        _filled(
            f"Made by `python -m benchmarks.runner`. {machine}; load average {load['before']:.1f} before and "
            f"{load['after']:.1f} after."
        ),
        _table(["", "median", "smallest", "largest"], rows),
        _filled(HOW.format(**plan)),
        _filled(OVERHEAD.format(**plan)),
    ]
    return "\n\n".join(blocks) + "\n"


def _table(head: Sequence[str], rows: Sequence[tuple[str, Timing]]) -> str:
    lines = [[name, *(f"{value:.2f}" for value in (t.median, t.low, t.high))] for name, t in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---", "---:", "---:", "---:"], *lines])


def _filled(words: str) -> str:
    return textwrap.fill(" ".join(words.split()), 120, break_long_words=False, break_on_hyphens=False)
