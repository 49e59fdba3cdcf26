"""The first steps of a real run, through `metarl.training.offline.train`, with CPU time by part."""

from __future__ import annotations

import os
import resource
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from rich.console import Console

from benchmarks.profile.accounts import Accounts
from benchmarks.profile.shares import PARTS
from metarl import config, data
from metarl.bilevel import Batches
from metarl.learner import Learner
from metarl.training import offline, progress, run
from metarl.training.evaluation import Evaluator, Policy
from metarl.training.recorder import Recorder
from metarl.training.run import Run
from metarl.training.setup import prepare
from metarl.training.stepping import Stepping
from metarl.training.streams import Streams

TD3BC = {"algorithm": {"name": "td3_bc"}}
MEDIUM, EXPERT = ({"recipe": f"pendulum/{level}", "size": 20_000} for level in ("medium", "expert"))


@dataclass(frozen=True)
class Case:
    """An experiment of which the first steps are made.

    Attributes:
        what: for people.
        experiment: as its YAML file would have it.
        steps: that are made; the experiment plans more.
    """

    what: str
    experiment: Mapping[str, Any]
    steps: int = 25_000


CASES: Mapping[str, Case] = {
    "pendulum": Case("TD3+BC on Pendulum", {**TD3BC, "data": {"train": MEDIUM}}),
    "hopper": Case("TD3+BC on Hopper", {**TD3BC, "data": {"train": {"recipe": "hopper/random", "size": 20_000}}}),
    "gorl": Case(
        "TD3+BC + GORL on Pendulum",
        {**TD3BC, "objective": {"name": "gorl"}, "data": {"train": MEDIUM, "guide": {**EXPERT, "tuples": 200}}},
    ),
}


class Enough(Exception):
    """The steps to be measured are made."""


class Bar(progress.Bar):
    """The bar that people see, drawn on a terminal that is not there; ends the run after so many steps."""

    def __init__(self, last: int, terminal: Any) -> None:
        super().__init__(Console(file=terminal, force_terminal=True, width=120))
        self.last = last

    def update(self, done: int, **figures: float) -> None:
        super().update(done, **figures)
        if done >= self.last and not figures:
            raise Enough


class Timed(gym.Wrapper):
    """An environment on an account."""

    def __init__(self, env: gym.Env, accounts: Accounts) -> None:
        super().__init__(env)
        self.step = accounts.timed("environments", env.step)  # type: ignore[method-assign]
        self.reset = accounts.timed("resets", env.reset)  # type: ignore[method-assign]


def measure(case: Case, root: Path) -> dict[str, Any]:
    """Trains in the folder `root`: CPU seconds by part, how often each came, and how often it will in the whole run.

    To be called once in a process, whose seconds until now count as those of importing.
    """
    experiment = config.build(case.experiment, where="the profiled experiment")
    steps = min(case.steps, experiment.steps)
    accounts = Accounts()
    imports, before = time.process_time(), _clocks()
    with ExitStack() as stack:
        terminal = stack.enter_context(open(os.devnull, "w"))
        _watch(accounts, stack)
        with suppress(Enough):
            offline.train(experiment, 0, root, Bar(steps, terminal))
    own, process, compilers = (now - then for now, then in zip(_clocks(), before, strict=True))
    seconds = {part: value for part, value in accounts.seconds.items() if part in PARTS}
    seconds |= {
        "imports": imports,
        "preparing steps": seconds["preparing steps"] + compilers,
        "rest": own - sum(accounts.seconds.values()),
        "threads beside": process - own,
    }
    setup = prepare(experiment, 0)
    planned = Counter(_named(setup.learner.due(step)) for step in range(1, experiment.steps + 1))
    return {
        "what": case.what,
        "experiment": {key: experiment.resolved[key] for key in ("algorithm", "objective", "data", "evaluation")},
        "seconds": seconds,
        "due": {
            name: {
                "seconds": accounts.seconds.get(f"steps of {name}", 0.0),
                "calls": accounts.calls.get(f"steps of {name}", 0),
                "planned": times,
            }
            for name, times in planned.items()
        },
        "counts": _schedule(experiment, steps)
        | {"env_steps": accounts.calls["environments"], "episodes": accounts.calls["resets"]},
        "planned": _schedule(experiment, experiment.steps),
        "time_limit": EnvSpec.from_json(setup.env).max_episode_steps,
    }


def _schedule(experiment: config.Experiment, steps: int) -> dict[str, int]:
    """How often each thing comes in the first `steps` steps; a row of metrics goes with every evaluation too."""
    evaluations = 1 + steps // experiment.evaluation.every
    return {
        "steps": steps,
        "evaluations": evaluations,
        "rows": steps // experiment.log_every + evaluations,
        "checkpoints": steps // (experiment.checkpoint.every or 1),
    }


def _named(due: frozenset[str]) -> str:
    return ", ".join(sorted(due)) or "nothing"


def _clocks() -> tuple[float, float, float]:
    """CPU seconds of this thread, of this process, and of those that it started and saw end."""
    others = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.thread_time(), time.process_time(), others.ru_utime + others.ru_stime


def _watch(accounts: Accounts, stack: ExitStack) -> None:
    made: set[frozenset[str]] = set()

    def step(stepping: Stepping, batches: Batches, due: frozenset[str]) -> str:
        first = due not in made
        made.add(due)
        return "preparing steps" if first else f"steps of {_named(due)}"

    make_evaluator = Evaluator.__init__

    def init(self: Evaluator, *args: Any, **options: Any) -> None:
        accounts.call("building the run", make_evaluator, self, *args, **options)
        self.envs = [Timed(env, accounts) for env in self.envs]

    stack.enter_context(patch.object(Evaluator, "__init__", init))
    for owner, name, part in (
        (data, "load", "reading data"),
        (offline, "prepare", "building the run"),
        (Learner, "check", "building the run"),
        (Run, "open", "building the run"),
        (Stepping, "__init__", "building the run"),
        (Stepping, "__call__", step),
        (Streams, "batches", "drawing batches"),
        (Run, "log", "metrics"),
        (Run, "evaluate", "metrics"),
        (Evaluator, "__call__", "evaluation's own loop"),
        (Policy, "__call__", "policy"),
        (run, "examine", "probes"),
        (Recorder, "probe", "probes"),
        (Run, "save", "checkpoints"),
        (progress.Bar, "update", "progress"),
    ):
        accounts.watch(stack, owner, name, part)
