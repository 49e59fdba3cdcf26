"""Return at equal steps: what both sides' runs reached, and whether it can be told apart."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from benchmarks.online.ours import described
from benchmarks.online.settings import COURSES, EPISODES, PAIRS, settings
from benchmarks.online.turns import OURS, SB3
from benchmarks.statistics import Interval, Test, difference, holm, over_seeds, significant, stratified_bootstrap
from metarl.config import FREE
from metarl.errors import ConfigError, UserError

Curves = dict[int, dict[int, float]]
"""By seed and step, the mean return of an evaluation's episodes."""


def collect(ours: Path, theirs: Path) -> dict[str, Any]:
    """The returns of all runs under two folders, as plain data for the JSON file.

    Args:
        ours: holds run folders of `metarl train`.
        theirs: holds the files of `rival_sb3 train`.

    Raises:
        UserError: a run has other settings than the comparison, or is not there.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for env, algorithm in PAIRS:
        sides = {OURS: _ours(ours, env, algorithm), SB3: _theirs(theirs, env, algorithm)}
        if all(side["runs"] for side in sides.values()):
            found[env, algorithm] = sides
    if not found:
        raise UserError(f"{ours} and {theirs} hold no pair of finished runs; train some on both sides")
    return {"pairs": [{"env": env, "algorithm": algorithm, "sides": s} for (env, algorithm), s in found.items()]}


def _ours(root: Path, env: str, algorithm: str) -> dict[str, Any]:
    wanted = described(env, algorithm)
    runs: dict[str, Any] = {}
    versions: dict[str, str] = {}
    for path in sorted(root.rglob("result.json")):
        config: Any = OmegaConf.to_container(OmegaConf.load(path.with_name("config.yaml")))
        if (config["algorithm"]["name"], (config.get("online") or {}).get("env")) != (algorithm, env):
            continue
        if config["algorithm"].get("temperature", 0) is None and config["algorithm"]["auto_temperature"]:
            config["algorithm"]["temperature"] = 1.0  # what `null` stands for there
        for key in _unlike(wanted, config):
            raise UserError(f"{path.parent}: {key} is not the comparison's; train it by --experiments, or move it away")
        result = json.loads(path.read_text())
        if result["steps"] < COURSES[env].steps:
            continue
        if str(result["seed"]) in runs:
            raise UserError(f"{root} holds two runs of {algorithm} in {env} with seed {result['seed']}; move one away")
        runs[str(result["seed"])] = _means(result["evaluations"])
        versions = result["environment"]
    return {"runs": dict(sorted(runs.items(), key=lambda item: int(item[0]))), "versions": versions}


def _unlike(wanted: Any, config: Any, key: str = "") -> Iterable[str]:
    """Keys of a resolved configuration whose values are not the wanted ones; what is not wanted does not count."""
    if isinstance(wanted, Mapping):
        if not isinstance(config, Mapping):
            yield key
            return
        for name, value in wanted.items():
            yield from _unlike(value, config.get(name), f"{key}.{name}" if key else str(name))
    elif key in ("name", *FREE):  # what a run is called, and what may differ between its starts
        return
    elif wanted != config:
        yield key


def _theirs(folder: Path, env: str, algorithm: str) -> dict[str, Any]:
    told = json.loads(json.dumps(settings(algorithm, env)))
    course = COURSES[env]
    runs: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    for path in sorted(folder.glob(f"{env}-{algorithm}-*.json")):
        result = json.loads(path.read_text())
        plan = (result["settings"], result["every"], result["episodes"])
        if plan != (told, course.every, EPISODES):
            raise UserError(f"{path}: its settings are not the comparison's; train it again")
        if result["steps"] < course.steps:
            continue
        runs[str(result["seed"])] = _means(result["evaluations"])
        facts = {name: result[name] for name in ("versions", "changed")}
    return {"runs": dict(sorted(runs.items(), key=lambda item: int(item[0]))), **facts}


def _means(evaluations: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    return {str(e["step"]): float(np.mean(e["returns"])) for e in evaluations}


# -- what may be said ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Moment:
    """Both sides at one evaluation.

    Attributes:
        step: of the environment.
        intervals: by side, of the mean over seeds.
        test: of no difference, over seeds; None below two seeds.
        p: the test's, corrected by Holm for all evaluations of the pair that count.
        counts: whether updates have begun: before, there is nothing to compare.
    """

    step: int
    intervals: Mapping[str, Interval]
    test: Test | None
    p: float
    counts: bool

    @property
    def overlap(self) -> bool:
        """Whether the intervals have a point in common."""
        one, other = self.intervals.values()
        return one.low <= other.high and other.low <= one.high

    @property
    def differs(self) -> bool:
        """Whether the test finds a difference."""
        return self.test is not None and significant(self.p, self.test.n)


@dataclass(frozen=True)
class Comparison:
    """Both sides' curves, compared.

    Attributes:
        env, algorithm: of the pair.
        seeds: by side.
        moments: at every evaluation that both sides have.
        area: the test of a seed's mean over all evaluations that count.
        gap: the difference of those means with its interval, metarl minus Stable-Baselines3.
        last: the same of the last evaluation.
    """

    env: str
    algorithm: str
    seeds: Mapping[str, int]
    moments: Sequence[Moment]
    area: Test | None
    gap: Interval | None
    last: Interval | None

    @property
    def counting(self) -> list[Moment]:
        return [moment for moment in self.moments if moment.counts]

    @property
    def overlap(self) -> bool:
        """The verdict: intervals meet at every evaluation that counts, and no test finds a difference."""
        area = self.area is not None and significant(self.area.p, self.area.n)
        return not area and all(moment.overlap and not moment.differs for moment in self.counting)

    @property
    def apart(self) -> list[int]:
        """Steps at which intervals do not meet."""
        return [moment.step for moment in self.counting if not moment.overlap]


def compare(pair: Mapping[str, Any]) -> Comparison:
    """One of `collect`'s pairs.

    Raises:
        ConfigError: a side has fewer than two seeds, or the sides have no evaluation in common that counts.
    """
    env, algorithm = pair["env"], pair["algorithm"]
    curves = {side: _curves(pair["sides"][side]["runs"]) for side in (OURS, SB3)}
    if any(len(runs) < 2 for runs in curves.values()):
        raise ConfigError(f"{algorithm} on {env}: a side has fewer than two seeds; an interval over seeds needs more")
    steps = sorted(set.intersection(*(set(curve) for runs in curves.values() for curve in runs.values())))
    start = settings(algorithm, env)["random_steps"]
    counting = [step for step in steps if step > start]
    if not counting:
        raise ConfigError(f"{algorithm} on {env}: the sides share no evaluation after step {start:,}")
    tests = {step: over_seeds(*(_at(curves[side], [step]) for side in (OURS, SB3))) for step in steps}
    counted = [test.p for step in counting if (test := tests[step]) is not None]
    corrected = dict(zip(counting, map(float, holm(counted)), strict=True))
    moments = [
        Moment(
            step,
            {side: _interval(_at(runs, [step])) for side, runs in curves.items()},
            tests[step],
            corrected.get(step, 1.0),
            step in corrected,
        )
        for step in steps
    ]
    area, theirs = (_at(curves[side], counting) for side in (OURS, SB3))
    end, their_end = (_at(curves[side], counting[-1:]) for side in (OURS, SB3))
    seeds = {side: len(runs) for side, runs in curves.items()}
    gaps = difference(area, theirs), difference(end, their_end)
    return Comparison(env, algorithm, seeds, moments, over_seeds(area, theirs), *gaps)


def _curves(runs: Mapping[str, Mapping[str, float]]) -> Curves:
    return {int(seed): {int(step): value for step, value in curve.items()} for seed, curve in runs.items()}


def _at(curves: Curves, steps: Sequence[int]) -> dict[int, float]:
    """By seed the mean over some evaluations."""
    return {seed: float(np.mean([curve[step] for step in steps])) for seed, curve in curves.items()}


def _interval(scores: Mapping[int, float]) -> Interval:
    return stratified_bootstrap({"return": [*scores.values()]}, np.mean, samples=2000)
