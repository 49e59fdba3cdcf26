"""How fast a step is: `python -m benchmarks.speed`. Prints a table and writes benchmarks/results/speed.json.

Three questions, each on one thread and in eager mode, in CPU time of the process, so that a neighbour on the machine
who takes turns does not count (one who shares caches does):

1. a TD3+BC step of metarl, against the same algorithm in plain PyTorch (`textbook.py`), batch drawing included; the
   two take turns, and the ratio is taken round by round;
2. what one guiding update of GORL adds to a step;
3. whether a meta-step costs the same after 2,000 of them, over time and in turns with a fresh learner: a leaked graph
   would show.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from algorithms.td3_bc import TD3BC
from benchmarks import textbook
from metarl import Learner, Spec, TrainState
from metarl.data.transitions import Card, Transitions, pack
from metarl.provenance import environment
from metarl.training.folder import write_json
from metarl.training.streams import Streams
from objectives.gorl import GORL

RESULT = Path(__file__).parent / "results" / "speed.json"
ROWS = 50_000


@dataclass(frozen=True)
class Size:
    """What is timed.

    Attributes:
        obs_dim, action_dim, hidden, batch: Hopper's sizes and the papers' networks.
        rounds: each times every contestant once.
        steps: in a round; even, since every second step moves the policy.
        outer: meta-steps of the third question.
        outer_hidden: its networks, small, so that it takes seconds.
    """

    obs_dim: int = 11
    action_dim: int = 3
    hidden: tuple[int, ...] = (256, 256)
    batch: int = 256
    rounds: int = 15
    steps: int = 40
    outer: int = 2000
    outer_hidden: tuple[int, ...] = (64, 64)


@dataclass(frozen=True)
class Timing:
    """Median, smallest and largest over rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Timing:
        return cls(float(np.median(values)), float(np.min(values)), float(np.max(values)))


class Metarl:
    """A learner on random transitions, stepped as the training loop steps it."""

    def __init__(self, data: Transitions, size: Size, objective: GORL | None, hidden: tuple[int, ...]) -> None:
        generator = torch.Generator().manual_seed(0)
        spec = Spec(size.obs_dim, size.action_dim, (1.0,) * size.action_dim)
        learner = TD3BC(hidden=hidden, batch_size=size.batch).build(spec, generator)
        if objective is not None:
            learner = objective.attach(learner, spec, generator)
        self.learner: Learner = learner.ready()
        self.streams = Streams({role: data for role in learner.roles}, learner.roles, learner.noise, seed=0)
        self.state: TrainState = self.learner.init()
        self.count = 0

    def step(self, due: frozenset[str] | None = None) -> None:
        """One step; `due` replaces the learner's own choice of Updates."""
        self.count += 1
        batches = self.streams.batches(self.count)
        chosen = self.learner.due(self.count) if due is None else due
        self.state, _ = self.learner.step(self.state, batches, chosen, donate=True)


def measure(size: Size) -> dict[str, Any]:
    """All three answers as plain data."""
    data = _transitions(size)
    return {
        "size": asdict(size),
        "environment": environment(),
        "load_average": os.getloadavg()[0],
        "step": _against_textbook(data, size),
        "guiding_update": _guiding_update(data, size),
        "flatness": _flatness(data, size),
    }


def _against_textbook(data: Transitions, size: Size) -> dict[str, Any]:
    ours = Metarl(data, size, None, size.hidden)
    theirs = textbook.TD3BC(size.obs_dim, size.action_dim, 1.0, size.hidden)
    columns = {name: getattr(data, name).numpy().copy() for name in ("obs", "action", "reward", "next_obs")}
    buffer = textbook.ReplayBuffer(columns | {"terminated": data.terminated.numpy().copy()}, seed=0)
    contestants: dict[str, Callable[[], None]] = {
        "metarl": ours.step,
        "textbook": lambda: theirs.train_step(buffer.sample(size.batch)),
    }
    times = _take_turns(contestants, size)
    ratios = [a / b for a, b in zip(times["metarl"], times["textbook"], strict=True)]
    return {
        "metarl_ms": asdict(Timing.of(times["metarl"])),
        "textbook_ms": asdict(Timing.of(times["textbook"])),
        "metarl_over_textbook": asdict(Timing.of(ratios)),
    }


def _guiding_update(data: Transitions, size: Size) -> dict[str, Any]:
    learner = Metarl(data, size, GORL(every=2), size.hidden)
    everything = frozenset(learner.learner.updates)
    contestants: dict[str, Callable[[], None]] = {
        "with": lambda: learner.step(everything),
        "without": lambda: learner.step(everything - {"guiding_network"}),
    }
    times = _take_turns(contestants, size)
    added = [a - b for a, b in zip(times["with"], times["without"], strict=True)]
    shares = [a / b for a, b in zip(added, times["without"], strict=True)]
    return {
        "full_step_ms": asdict(Timing.of(times["without"])),
        "added_ms": asdict(Timing.of(added)),
        "added_over_full_step": asdict(Timing.of(shares)),
    }


def _flatness(data: Transitions, size: Size) -> dict[str, Any]:
    def meta_steps() -> Callable[[], None]:
        learner = Metarl(data, size, GORL(every=2), size.outer_hidden)
        everything = frozenset(learner.learner.updates)
        for _ in range(20):
            learner.step(everything)
        return lambda: learner.step(everything)

    old = meta_steps()
    times = [_cpu_ms(old) for _ in range(size.outer)]
    n = size.outer // 10
    first, last = float(np.median(times[:n])), float(np.median(times[-n:]))
    # The machine itself drifts within a minute: the same question with a fresh learner taking turns with the old one.
    new = meta_steps()
    pairs = [(_cpu_ms(old), _cpu_ms(new)) for _ in range(n)]
    aged, fresh = (float(np.median(side)) for side in zip(*pairs, strict=True))
    return {
        "window": n,
        "first_ms": first,
        "last_ms": last,
        "change_percent": 100 * (last / first - 1),
        "old_ms": aged,
        "fresh_ms": fresh,
        "old_over_fresh_percent": 100 * (aged / fresh - 1),
    }


def _take_turns(contestants: dict[str, Callable[[], None]], size: Size) -> dict[str, list[float]]:
    """CPU milliseconds per step, one number a round; who begins alternates."""
    for step in contestants.values():
        for _ in range(10):
            step()
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for i in range(size.rounds):
        names = list(contestants) if i % 2 else list(contestants)[::-1]
        for name in names:
            times[name].append(_cpu_ms(lambda name=name: _repeat(contestants[name], size.steps)) / size.steps)  # type: ignore[misc]
    return times


def _repeat(step: Callable[[], None], n: int) -> None:
    for _ in range(n):
        step()


def _cpu_ms(work: Callable[[], None]) -> float:
    began = time.process_time_ns()
    work()
    return (time.process_time_ns() - began) / 1e6


def _transitions(size: Size) -> Transitions:
    """Random numbers in the shape of a dataset: speed does not depend on what they mean."""
    random = np.random.default_rng(0)
    ends = np.zeros(ROWS)
    ends[999::1000] = 1
    return pack(
        obs=random.standard_normal((ROWS, size.obs_dim)),
        action=random.uniform(-1, 1, (ROWS, size.action_dim)),
        reward=random.standard_normal(ROWS),
        next_obs=random.standard_normal((ROWS, size.obs_dim)),
        terminated=np.zeros(ROWS),
        truncated=ends,
        episode_starts=np.arange(0, ROWS + 1, 1000),
        card=Card(source="random", dataset_id="random"),
    )


def table(result: dict[str, Any]) -> Table:
    """The result for people."""
    step, guide, flat = result["step"], result["guiding_update"], result["flatness"]
    shown = Table(title="Speed, CPU time on one thread, eager", title_justify="left", box=None, pad_edge=False)
    for column in ("what", "median", "range over rounds"):
        shown.add_column(column, justify="left" if column == "what" else "right")

    def row(what: str, timing: dict[str, float], unit: str) -> None:
        shown.add_row(what, f"{timing['median']:.2f}{unit}", f"{timing['low']:.2f} to {timing['high']:.2f}{unit}")

    row("TD3+BC step, metarl", step["metarl_ms"], " ms")
    row("TD3+BC step, plain PyTorch", step["textbook_ms"], " ms")
    row("metarl / plain PyTorch (lower is faster)", step["metarl_over_textbook"], "")
    row("GORL: a step that moves everything but the guiding network", guide["full_step_ms"], " ms")
    row("GORL: what one guiding update adds", guide["added_ms"], " ms")
    row("GORL: the same, over that step", guide["added_over_full_step"], "")
    outer, n = f"{result['size']['outer']:,}", flat["window"]
    shown.add_row(
        f"GORL meta-step, first {n} to last {n} of {outer}",
        f"{flat['change_percent']:+.1f} %",
        f"{flat['first_ms']:.2f} to {flat['last_ms']:.2f} ms",
    )
    shown.add_row(
        f"GORL meta-step, after {outer} against a fresh start, in turns",
        f"{flat['old_over_fresh_percent']:+.1f} %",
        f"{flat['fresh_ms']:.2f} to {flat['old_ms']:.2f} ms",
    )
    return shown


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description="Speed of a step, against plain PyTorch.")
    parser.add_argument("--out", type=Path, default=RESULT, help="where the JSON goes")
    parser.add_argument("--quick", action="store_true", help="a few rounds, to see that it runs; writes nothing")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    size = Size(rounds=3, steps=4, outer=40, hidden=(32, 32)) if options.quick else Size()
    result = measure(size)
    Console().print(table(result), highlight=False)
    if not options.quick:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.out, result)
        print(f"written: {options.out}")


if __name__ == "__main__":
    main(sys.argv[1:])
