"""docs/profile.md, written from the recorded result alone."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.profile.shares import EPISODE, GROUPS, OVERHEAD, PARTS, grouped, measured, overhead, whole

HOW = """Each run is a real one, in a process of its own, on one thread and with an empty cache of compiled programs:
    `metarl.training.offline.train` with every setting at its default but those named. It plans {planned:,} gradient
    steps with an evaluation of {episodes} episodes every {every:,}, and is ended after the first {steps:,}. Public
    callables are timed from outside; the time of one that another calls counts for the inner one alone. Times are CPU
    times, compilers that were started and threads beside included."""
FORMULA = """The whole run follows from these first steps by unit costs: `seconds = start-up and reading data once
    + sum over what is due together (steps with it x its mean step) + steps x (drawing a batch + progress + threads
    beside + rest) + evaluations x (environments + policy + loop + probes) + rows of metrics x a row + checkpoints x a
    checkpoint`. The learner itself says how often each set of Updates is due."""
FULL = """Where a policy falls, its episodes are short while it is bad. The last line takes each of them as lasting
    until the time limit, which bounds what a run with these settings can spend on evaluation."""
STEP = """{what}: {steps} steps of one program for each set of Updates that is due together, as they come in a run.
    A step takes {us:,.0f} us of CPU time; under the profiler, whose clock is the wall's, {us_watched:,.0f} us in the
    quickest look. *products* are calls of the library; *optimisers and targets* are the generated kernels that write
    the state, with what the compiler has fused into them; *copies* are the library's; *allocation* is of outputs and
    buffers; *wrapper* is what runs between the kernels."""
LEAST = 10  # names that the table of a step shows


def page(result: Mapping[str, Any]) -> str:
    """The whole page."""
    runs = result["runs"]
    first = next(iter(runs.values()))
    evaluation = first["experiment"]["evaluation"]
    how = HOW.format(planned=first["planned"]["steps"], steps=first["counts"]["steps"], **evaluation)
    made, load = result["environment"], result["load_average"]
    machine = f"Python {made['python']}, torch {made['torch']}; {made['machine']}"
    blocks = [
        "# Where the time of a run goes",
        _filled(
            f"Made by `python -m benchmarks.profile`. {machine}; load average {load['before']:.1f} before and "
            f"{load['after']:.1f} after."
        ),
        "![shares of CPU time in whole runs and in one compiled step](profile.png)",
        _filled(how),
        f"## A run of {first['planned']['steps']:,} steps",
        _groups(runs),
        _filled(FULL),
        "## Part by part",
        _parts(runs),
        _filled(FORMULA),
        "## The steps that were made",
        _made(runs),
        "## One compiled step",
        _filled(STEP.format(**result["step"])),
        _step(result["step"]),
    ]
    return "\n\n".join(blocks) + "\n"


def _groups(runs: Mapping[str, Any]) -> str:
    wholes = [whole(run) for run in runs.values()]
    rows = [[group, *(_share(grouped(s)[group], s) for s in wholes)] for group in GROUPS]
    rows.append(["all, CPU seconds", *(f"{sum(s.values()):,.0f}" for s in wholes)])
    longest = [whole(run, full_episodes=True) for run in runs.values()]
    name = f"**{', '.join(OVERHEAD)}**"
    rows.append([name, *(f"**{100 * overhead(s):.1f} %**" for s in wholes)])
    rows.append([f"{name}, episodes as long as they can be", *(f"**{100 * overhead(s):.1f} %**" for s in longest)])
    return _table(["", *(run["what"] for run in runs.values())], rows)


def _parts(runs: Mapping[str, Any]) -> str:
    rows = []
    for part, (unit, group) in PARTS.items():
        cells = []
        for run in runs.values():
            seconds = whole(run)
            times = 1 if unit == "once" else run["planned"][unit]
            cells.append(f"{_time(seconds[part] / times)}, {_share(seconds[part], seconds)}")
        rows.append([part, group, unit, *cells])
    for name in dict.fromkeys(name for run in runs.values() for name in run["due"]):
        ones = [run["due"].get(name) for run in runs.values()]
        cells = [f"{_time(one['seconds'] / one['calls'])} x {one['planned']:,}" if one else "" for one in ones]
        rows.append([f"steps of {name}", "steps", "", *cells])
    whose = {"an environment": EPISODE[:1], "an evaluation, all in all": EPISODE}
    for name, parts in whose.items():
        spent = [sum(run["seconds"][part] for part in parts) / run["counts"]["env_steps"] for run in runs.values()]
        rows.append([f"one step of {name}", "evaluation", "", *map(_time, spent)])
    return _table(["part", "group", "times", *(f"{run['what']}: each, share" for run in runs.values())], rows)


def _made(runs: Mapping[str, Any]) -> str:
    made = [measured(run) for run in runs.values()]
    rows = [[group, *(_share(grouped(s)[group], s) for s in made)] for group in GROUPS]
    rows.append(["all, CPU seconds", *(f"{sum(s.values()):,.1f}" for s in made)])
    for what in ("steps", "evaluations", "env_steps", "rows", "checkpoints"):
        name = "steps of environments" if what == "env_steps" else what
        rows.append([name, *(f"{run['counts'][what]:,}" for run in runs.values())])
    return _table(["", *(run["what"] for run in runs.values())], rows)


def _step(step: Mapping[str, Any]) -> str:
    groups = step["groups"]
    total = sum(groups.values())
    rows = [[group, f"{us:,.1f}", f"{100 * us / total:.1f} %"] for group, us in groups.items() if us >= 0.05]
    events = list(step["events"].items())[:LEAST]
    calls = [[f"`{name}`", f"{one['times']:,.1f}", f"{one['us']:,.1f}"] for name, one in events]
    return (
        _table(["group", "us in a step", "share"], rows)
        + f"\n\nThe {LEAST} longest of its names:\n\n"
        + _table(["name in the profiler", "times in a step", "us in a step"], calls)
    )


def _share(seconds: float, of: Mapping[str, float]) -> str:
    return f"{100 * seconds / sum(of.values()):.2g} %"


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _filled(words: str) -> str:
    return textwrap.fill(" ".join(words.split()), 120, break_long_words=False, break_on_hyphens=False)
