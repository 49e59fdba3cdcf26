"""How long a plan will take: from runs of its kind that were made here, else from a few steps that are timed now.

    seconds of a job = its steps to go x seconds a step
                       + evaluations to go x episodes x steps of an episode x seconds a step of an episode + start-up
    seconds of all   = max(sum over jobs / processes at a time, the longest job with those that it waits for)

A run's cost.json holds the seconds that it has trained, evaluations included: divided by its steps they replace the
first two terms, if it is at least half as long as the run that is to be estimated: a short one is mostly warm-up.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.running.folder import BenchFolder
from benchmarks.running.jobs import Job
from benchmarks.running.resources import COMPILING, own_peak
from benchmarks.running.suite import Cell, Suite
from metarl.config import Experiment
from metarl.envs import make_env
from metarl.process import settle
from metarl.training.cost import Cost as Spent
from metarl.training.evaluation import Evaluator, Policy
from metarl.training.folder import RunFolder
from metarl.training.setup import Setup, prepare
from metarl.training.stepping import COMPILED_FROM, RECORDED_FROM, Mode, Stepping, stacked

START_UP = 1.5  # seconds: a process, its imports and its data (docs/runner.md)
LEAST = 0.5  # seconds that the steps of each kind are timed for, or
MOST = 30  # steps, whichever comes first
LONG_ENOUGH = 0.5  # share of a run's steps from which on a measured run tells of it
LOOKED = 2000  # steps whose due sets are counted


@dataclass(frozen=True)
class Cost:
    """What one run takes.

    Attributes:
        step: seconds a gradient step, evaluations included where they were measured together.
        evaluation: seconds an evaluation; 0 where `step` includes them.
        measured: whether runs here say so, of each seed by itself; else a few steps do, of all seeds of a stack.
    """

    step: float
    evaluation: float
    measured: bool

    def seconds(self, job: Job, experiment: Experiment) -> float:
        """Of what a job has still to do."""
        evaluations = job.steps // experiment.evaluation.every - job.step // experiment.evaluation.every + 1
        seeds = len(job.seeds) if self.measured else 1
        return (job.steps - job.step) * self.step * seeds + evaluations * self.evaluation + START_UP


class Estimate(NamedTuple):
    """Seconds until all is done, and how this is known."""

    seconds: float
    how: str


def estimate(
    suite: Suite, jobs: Sequence[Job], folder: BenchFolder, processes: int, say: Callable[[str], None]
) -> Estimate:
    """The time that the unfinished jobs need; times a few steps of every kind of run that was not made here yet."""
    costs: dict[str, Cost] = {}
    timed: dict[str, Cost] = {}
    before = _measured(suite, folder)
    cells = {folder.config(cell.slug): cell for cell in suite.cells}
    todo = [job for job in jobs if not job.finished]
    needed = {cells[job.config].slug: cells[job.config] for job in todo}
    for cell in needed.values():
        known = _rate(before, cell.experiment)
        if known is not None:
            costs[cell.slug] = Cost(known, 0.0, measured=True)
        elif _kind(cell.experiment) not in timed:
            say(f"timing a few steps of {cell.title}")
            timed[_kind(cell.experiment)] = time_steps(cell.experiment, suite.path.parent)
        costs.setdefault(cell.slug, timed.get(_kind(cell.experiment), Cost(0.0, 0.0, False)))
    seconds = {job: costs[cells[job.config].slug].seconds(job, cells[job.config].experiment) for job in todo}

    def until_end(job: Job) -> float:
        return seconds[job] + max((until_end(need) for need in job.needs if need in seconds), default=0.0)

    total = max(sum(seconds.values()) / processes, max(map(until_end, todo), default=0.0))
    return Estimate(total, _how(needed, costs, processes))


def peak(suite: Suite, folder: BenchFolder) -> tuple[int, bool]:
    """Bytes that a run takes at its peak, and whether runs here say so.

    Without any it is what this process has taken: it has imported what a run imports, and has read all the data. A
    compiler comes on top of it in runs that are long enough for one.
    """
    if known := [cost.peak_memory for _, cost in _costs(suite, folder)]:
        return max(known), True
    compiles = any(
        e.compile == "on" or (e.compile == "auto" and e.gradient_steps >= COMPILED_FROM)
        for e in (cell.experiment for cell in suite.cells)
    )
    return own_peak() + (COMPILING if compiles else 0), False


def time_steps(experiment: Experiment, beside: Path) -> Cost:
    """The mean cost of a step over what is due in it, and that of an evaluation, both timed in this process.

    Steps run as they will but that none is compiled, which makes long runs faster. An evaluation is taken to last until
    the environment's time limit, which a policy that falls does not reach.
    """
    settle()
    setup = prepare(experiment, experiment.seeds[0], beside, init=False)
    mode: Mode = "eager" if experiment.compile == "off" or experiment.gradient_steps < RECORDED_FROM else "recorded"
    stack = experiment.stack if experiment.stack > 1 else None
    start = stacked([setup.start] * stack) if stack else setup.start
    stepping = Stepping(setup.learner, start, mode, stack=stack, insist=False)

    def take(due: frozenset[str], step: int) -> None:
        batches = setup.streams.batches(step)
        stepping(stacked([batches] * stack) if stack else batches, due)

    looked = min(experiment.gradient_steps, LOOKED)
    by_due: dict[frozenset[str], list[int]] = {}
    for step in range(1, looked + 1):
        by_due.setdefault(setup.learner.due(step), []).append(step)
    mean = sum(len(steps) / looked * _timed(partial(take, due), steps) for due, steps in by_due.items())
    episode_step, limit = _episode_step(experiment, setup)
    lived = (experiment.steps - experiment.offline_steps) / experiment.steps
    seconds = mean * experiment.gradient_steps / experiment.steps + episode_step * lived
    return Cost(seconds, episode_step * limit * experiment.evaluation.episodes * experiment.stack, measured=False)


def _timed(take: Callable[[int], None], steps: Sequence[int]) -> float:
    """Mean seconds of a step; what is prepared once is left out."""
    for step in steps[:2]:
        take(step)
    start, done = time.perf_counter(), 0
    while done < MOST and time.perf_counter() - start < LEAST:
        take(steps[done % len(steps)])
        done += 1
    return (time.perf_counter() - start) / done


def _episode_step(experiment: Experiment, setup: Setup) -> tuple[float, int]:
    """Seconds of one step of an episode, the policy's forward included, and the most steps of one."""
    limits: list[int] = []

    def make() -> Any:
        env = make_env(setup.env)
        limits.append(getattr(env.spec, "max_episode_steps", None) or 1000)
        return env

    evaluator = Evaluator(make, min(experiment.evaluation.episodes, 2), experiment.seeds[0])
    policy = Policy(setup.learner, setup.start.tree, setup.statistics)
    start = time.perf_counter()
    found = evaluator(policy, 0)
    seconds = (time.perf_counter() - start) / sum(found.lengths)
    evaluator.close()
    return seconds, limits[0]


def _measured(suite: Suite, folder: BenchFolder) -> dict[str, list[Spent]]:
    """What runs here have cost: by experiment, and by kind."""
    found: dict[str, list[Spent]] = {}
    for experiment, cost in _costs(suite, folder):
        for key in (experiment.folder, _kind(experiment)):
            found.setdefault(key, []).append(cost)
    return found


def _rate(before: Mapping[str, Sequence[Spent]], experiment: Experiment) -> float | None:
    """Mean seconds a step of the experiment's own runs, else of its kind; None without any that is long enough."""
    for key in (experiment.folder, _kind(experiment)):
        long = [cost for cost in before.get(key, ()) if cost.step >= max(1, LONG_ENOUGH * experiment.steps)]
        if long:
            return sum(cost.seconds / cost.step for cost in long) / len(long)
    return None


def _costs(suite: Suite, folder: BenchFolder) -> list[tuple[Experiment, Spent]]:
    pairs = [(cell.experiment, seed) for cell in suite.cells for seed in suite.seeds]
    read = ((experiment, Spent.read(RunFolder.of(experiment, seed, folder.path))) for experiment, seed in pairs)
    return [(experiment, cost) for experiment, cost in read if cost is not None]


def _kind(experiment: Experiment) -> str:
    """Runs that take as long: the components with their settings, the environment, how it is evaluated, and how run."""
    plain = experiment.resolved
    recipe = {role: {**source, "size": None} for role, source in plain["data"].items() if role == "train"}
    kept = {key: plain[key] for key in ("algorithm", "objective", "precision", "compile", "stack", "device")}
    return json.dumps(
        [kept, recipe, plain.get("online"), plain["evaluation"], experiment.gradient_steps >= COMPILED_FROM],
        sort_keys=True,
    )


def _how(needed: Mapping[str, Cell], costs: Mapping[str, Cost], processes: int) -> str:
    measured = sum(costs[slug].measured for slug in needed)
    parts = [f"{measured} of {len(needed)} cells from the cost.json of runs here"] if measured else []
    if measured < len(needed):
        parts.append(
            f"{len(needed) - measured} of {len(needed)} cells by timing a few steps and episodes now, as if none was "
            "compiled and every episode lasted until its limit"
        )
    return f"{'; '.join(parts)}; {processes} process{'' if processes == 1 else 'es'} at a time"


def in_words(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h` or `2.1 days`."""
    for unit, size, most in (("s", 1, 90), ("min", 60, 90), ("h", 3600, 36)):
        if seconds < most * size:
            return f"{seconds / size:.2g} {unit}" if seconds < 10 * size else f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.1f} days"
