"""Cuts policies out of a training run: evaluates its snapshots by sampled actions, and picks expert, medium and replay.

Return and share are of sampled episodes under float16 weights, which is what acts in the data. The share of a return is
its place between uniform actions (0) and the expert (1).

- expert: the best of the last fifth of the snapshots. D4RL takes the last; SAC's returns go up and down.
- medium: the earliest snapshot whose share lies within 35 to 45 %; where none does, the one that comes nearest to 40 %.
  D4RL stops at about a third of the expert's return.
- replay: snapshots spread evenly up to medium, each for the steps of training that are nearest to it.

A choice is made on more episodes than the first look, and the returns that are claimed are of yet other episodes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray

from benchmarks.trained import policies
from benchmarks.trained.policies import RANDOM
from benchmarks.trained.policy import SquashedGaussian
from metarl.config import Experiment
from metarl.data.recipes.base import rollout, uniform
from metarl.envs.instantiate import instantiate
from metarl.errors import ConfigError
from metarl.training import checkpoints
from metarl.training.folder import RunFolder
from metarl.training.progress import Reporter

FIRST_LOOK, SECOND_LOOK, CLAIM = 5, 20, 50  # episodes
LAST = 0.2  # share of the snapshots that the expert is among
FINALISTS = 3
AIM, NEAR, WORTH_A_LOOK = 0.4, 0.05, 0.2  # of medium's share
REPLAYED = 8  # snapshots before medium
LEAST = 3  # snapshots to choose from
PREFIX = "tree/actor/"
PACKAGES = ("metarl", "torch", "gymnasium", "mujoco", "numpy")


@dataclass(frozen=True)
class Snapshot:
    """The policy of one checkpoint, its weights rounded to what is shipped."""

    step: int
    weights: Mapping[str, NDArray[Any]]

    @property
    def net(self) -> SquashedGaussian:
        return SquashedGaussian(self.weights)


def cut(run: Path, name: str, folder: Path, reporter: Reporter) -> None:
    """Writes `<name>.safetensors` and `<name>.json` of a finished run into a folder.

    Raises:
        ConfigError: the run is not finished, not one of SAC, or has learned nothing.
        CheckpointError: a checkpoint is corrupt.
    """
    told = RunFolder(run)
    experiment = told.experiment()
    check(experiment)
    if told.steps_on_record() != experiment.steps:
        raise ConfigError(f"{run} is not at its last step, {experiment.steps:,}, yet; train it to its end")
    env_spec, found = snapshots(run)
    env = instantiate(env_spec)
    try:
        picked = _pick(env, name, found, reporter)
    finally:
        env.close()
    medium = picked["medium"]["step"]
    online = experiment.online
    assert online is not None
    replay = replayed([s.step for s in found if s.step <= medium], online.random_steps or 0)
    kept = {medium, picked["expert"]["step"], *(part["acts"] for part in replay if part["acts"] != RANDOM)}
    facts = {
        "env_id": env_spec.id,
        "algorithm": experiment.resolved["algorithm"]["name"],
        "config": experiment.hash,
        "seed": told.seed,
        "steps": experiment.steps,
        **picked,
        "replay": replay,
        "versions": {package: version(package) for package in PACKAGES},
    }
    policies.write(folder, name, facts, {s.step: s.weights for s in found if s.step in kept})


def check(experiment: Experiment) -> None:
    """Refuses an experiment that leaves no snapshots of a policy that acts as `SquashedGaussian` does.

    Raises:
        ConfigError: with the key.
    """
    algorithm, online = experiment.resolved["algorithm"], experiment.online
    if algorithm["name"] != "sac" or algorithm["normalize"] or experiment.objectives:
        raise ConfigError(
            f"{experiment.where}: policies are cut out of runs of `algorithm: sac` alone, with normalize: false and "
            "no objective"
        )
    if online is None or online.envs != 1 or experiment.offline_steps:
        raise ConfigError(f"{experiment.where}: policies are cut out of online runs in one environment: online.envs=1")
    if len(experiment.seeds) != 1:
        raise ConfigError(f"{experiment.where}: one training gives the policies; name one of the seeds")


def snapshots(run: Path) -> tuple[EnvSpec, list[Snapshot]]:
    """The environment and, in order, the policies of all checkpoints between two episodes, and of the last.

    A checkpoint in the midst of an episode is one that a shorter run ended with, before more steps were asked for.

    Raises:
        ConfigError: there are fewer than `LEAST`.
        CheckpointError: one is corrupt.
    """
    folder = RunFolder(run).checkpoints
    steps = sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))
    found, env = [], ""
    for step in steps:
        saved = checkpoints.load(folder, step)
        lived = saved.record["online"]
        if lived["begun"][0] != lived["taken"] and step != steps[-1]:
            continue
        env = saved.record["env"]
        actor = {k.removeprefix(PREFIX): v.numpy() for k, v in saved.tensors.items() if k.startswith(PREFIX)}
        found.append(Snapshot(step, {name: value.astype(np.float16) for name, value in actor.items()}))
    if len(found) < LEAST:
        raise ConfigError(
            f"{run} keeps {len(found)} snapshots, and {LEAST} or more are needed to choose from; set checkpoint.every "
            "lower, or checkpoint.keep higher"
        )
    return EnvSpec.from_json(env), found


def replayed(steps: Sequence[int], random_steps: int) -> list[dict[str, Any]]:
    """What acts up to which step of training: `random` at first, then some of the snapshots at `steps`, in order.

    Each stands for the steps that are nearer to its own than to another's, the last one up to its own.
    """
    spread = np.linspace(0, len(steps) - 1, min(REPLAYED + 1, len(steps))).round().astype(int)
    chosen = [steps[i] for i in spread if steps[i] > random_steps] or [steps[-1]]
    ends = [(a + b) // 2 for a, b in pairwise(chosen)] + [chosen[-1]]
    start = [{"acts": RANDOM, "until": random_steps}] if random_steps else []
    return start + [{"acts": step, "until": end} for step, end in zip(chosen, ends, strict=True)]


class _Trial:
    """Episodes of snapshots, counted on a progress bar; no two looks at one share an episode."""

    def __init__(self, env: gym.Env, name: str, reporter: Reporter) -> None:
        self.env, self.name, self.reporter = env, name, reporter
        self.done, self._looks = 0, dict[int, int]()

    def returns(self, snapshot: Snapshot | None, episodes: int) -> list[float]:
        """Returns of more episodes of a snapshot; of uniform actions for None."""
        step, found = snapshot.step if snapshot else 0, []
        for _ in range(episodes):
            look = self._looks[step] = self._looks.get(step, -1) + 1
            rng = np.random.default_rng([step, look, *f"{self.name}/snapshots".encode()])
            seed = int(rng.integers(2**31))
            space = self.env.action_space
            policy = snapshot.net.acting(rng, space) if snapshot else uniform(rng, space)
            found.append(float(rollout(self.env, policy, seed).rewards.sum()))
        self.done += episodes
        self.reporter.update(self.done, **{"step": step, "return": float(np.mean(found))})
        return found


def _pick(env: gym.Env, name: str, found: Sequence[Snapshot], reporter: Reporter) -> dict[str, Any]:
    """The facts on random, medium, expert and every snapshot.

    Raises:
        ConfigError: no snapshot returns more than uniform actions.
    """
    trial = _Trial(env, name, reporter)
    by_step = {snapshot.step: snapshot for snapshot in found}
    # How many are worth a second look is not known yet; say a quarter of them.
    expected = 3 * CLAIM + FIRST_LOOK * len(found) + SECOND_LOOK * (FINALISTS + len(found) // 4)
    reporter.start(f"{name}: snapshots", 0, expected)
    try:
        random = trial.returns(None, CLAIM)
        seen = {snapshot.step: trial.returns(snapshot, FIRST_LOOK) for snapshot in found}

        def mean(step: int) -> float:
            return float(np.mean(seen[step]))

        def look_again(step: int) -> float:
            if len(seen[step]) == FIRST_LOOK:
                seen[step] += trial.returns(by_step[step], SECOND_LOOK)
            return mean(step)

        last = sorted(by_step)[-max(1, round(LAST * len(found))) :]
        expert = max(sorted(last, key=mean)[-FINALISTS:], key=look_again)
        claim = trial.returns(by_step[expert], CLAIM)
        low, high = float(np.mean(random)), float(np.mean(claim))
        if high <= low:
            raise ConfigError(
                f"{name}: the run's best late snapshot returns {high:,.1f}, uniform actions {low:,.1f}; train for more "
                "steps"
            )
        medium = _medium([step for step in sorted(by_step) if step < expert], mean, look_again, low, high)
        claims = {expert: claim, medium: trial.returns(by_step[medium], CLAIM)}
    finally:
        reporter.stop()

    def told(step: int, returns: Sequence[float]) -> dict[str, Any]:
        return {"step": step, **_spread(returns), "share": _share(float(np.mean(returns)), low, high)}

    return {
        "random": _spread(random),
        "medium": told(medium, claims[medium]),
        "expert": told(expert, claims[expert]),
        "snapshots": [told(step, seen[step]) for step in sorted(seen)],
    }


def _medium(
    steps: Sequence[int], mean: Callable[[int], float], look_again: Callable[[int], float], low: float, high: float
) -> int:
    """The step of medium: see the module."""

    def off(value: float) -> float:
        return abs(_share(value, low, high) - AIM)

    looked_at = {}
    for step in (step for step in steps if off(mean(step)) <= WORTH_A_LOOK):
        looked_at[step] = off(look_again(step))
        if looked_at[step] <= NEAR:
            return step
    if looked_at:
        return min(looked_at, key=lambda step: looked_at[step])
    return min(steps, key=lambda step: off(mean(step)))


def _share(value: float, low: float, high: float) -> float:
    return round((value - low) / (high - low), 4)


def _spread(returns: Sequence[float]) -> dict[str, Any]:
    return {
        "mean": round(float(np.mean(returns)), 2),
        "std": round(float(np.std(returns)), 2),
        "episodes": len(returns),
    }
