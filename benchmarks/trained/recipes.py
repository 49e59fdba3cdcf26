"""Hopper, HalfCheetah and Walker2d at D4RL's levels, from policies of metarl's own SAC (arXiv:2004.07219).

D4RL's definitions, with our own SAC's return in the place of theirs: `expert` and `medium` are samples of the
stochastic policy of a fully trained and of an early-stopped agent, `medium-replay` is what the agent lived through up
to medium, `medium-expert` is medium, cut at its last complete trajectory, and expert after it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.trained import cutting, policies
from benchmarks.trained.policies import RANDOM, SHIPPED, Policies
from metarl import config
from metarl.config import Experiment
from metarl.data.minari import Episode
from metarl.data.recipes import locomotion
from metarl.data.recipes.base import cut, first, uniform
from metarl.data.recipes.locomotion import Acting
from metarl.data.replay import Replay
from metarl.data.transitions import Layout
from metarl.errors import CheckpointError, ConfigError, DataError
from metarl.training import checkpoints
from metarl.training.folder import RunFolder
from metarl.training.offline import train
from metarl.training.progress import Style, reporter
from metarl.training.setup import dtype_of
from metarl.training.streams import derive_seed

RANDOM_ONLY = dict(locomotion.Locomotion.levels)
TRAINED = ("medium", "medium-replay", "medium-expert", "expert")


def shipped_levels(name: str) -> dict[str, str]:
    """What acts at each level of a recipe: `random` alone where no policies are shipped."""
    found = policies.shipped(name)
    return RANDOM_ONLY if found is None else described(found)


def described(found: Policies, log: bool = False) -> dict[str, str]:
    """What acts at each level; `log` where the run's own replay is at hand."""
    facts = found.facts

    def sac(level: str) -> str:
        one = facts[level]
        return f"SAC after {one['step']:,} steps, sampled: {one['share']:.0%} of the way from random to expert"

    snapshots = sum(part["acts"] != RANDOM for part in facts["replay"])
    rebuilt = (
        f"rebuilt from {snapshots} snapshots of the training up to medium, each for the share of steps that it stands "
        "for, after the random start; not the run's own replay"
    )
    return {
        **RANDOM_ONLY,
        "medium": sac("medium"),
        "medium-replay": "the run's replay up to medium: every transition that it was trained on" if log else rebuilt,
        "medium-expert": "half medium, cut at its last complete trajectory, then expert",
        "expert": f"SAC after {facts['expert']['step']:,} steps of {facts['steps']:,}, sampled: the best late snapshot",
    }


class Trained(locomotion.Locomotion):
    """A robot at D4RL's levels, as far as policies are at hand: those that are shipped, or those of a run.

    Shipped policies are part of `version`: other ones need another.

    Args:
        found: the policies; by default those that are shipped.
        run: the run that they come from, which holds its replay.
        variant: see `Recipe`.
    """

    default_size: ClassVar[int] = 100_000
    trained: ClassVar[tuple[str, ...]] = TRAINED
    settings: ClassVar[Path]

    def __init__(self, found: Policies | None = None, run: Path | None = None, variant: str = "") -> None:
        self.policies = found or policies.shipped(self.name)
        self.run, self.variant = run, variant
        if found is not None:
            self.levels = described(found, log=run is not None)

    def make(self, level: str, size: int, seed: int) -> Iterator[Episode]:
        """See `Recipe.make`; the last episode is cut, and truncated, where the size is reached."""
        match level:
            case "medium" | "expert":
                return first(size, self.lived(level, seed, lambda rows: (level, self._net(level))))
            case "medium-expert":
                return first(size, self._stitched(size // 2, seed))
            case "medium-replay" if self.run is not None:
                return self._log(size)
            case "medium-replay":
                medium = self._policies.step("medium")
                return first(size, self.lived(level, seed, lambda rows: self._replayed(medium * rows / size)))
        return super().make(level, size, seed)

    def rows(self, level: str) -> int:
        """See `Recipe.rows`; a run's replay is whole."""
        whole = level == "medium-replay" and self.run is not None
        return self._policies.step("medium") if whole else self.default_size

    def facts(self, level: str) -> dict[str, Any]:
        """Returns, shares of the reference, and where the policies come from."""
        if level not in TRAINED:
            return {}
        told = self._policies.facts
        origin = {key: told[key] for key in ("algorithm", "config", "seed", "steps")}
        run = {} if self.run is None else {"run": "/".join(self.run.parts[-2:])}
        policy: dict[str, Any] = {**origin, **run, "sha256": self._policies.sha256}
        policy |= {name: told[name] for name in (RANDOM, "medium", "expert")}
        if level == "medium-replay" and self.run is None:
            policy["replay"] = told["replay"]
        return {"policies": policy}

    def from_scratch(self, settings: Sequence[str], root: Path, style: Style) -> Trained:
        """See `Recipe.from_scratch`: the shipped YAML, metarl's own loop, and the same choice of snapshots."""
        experiment = self.experiment(settings)
        cutting.check(experiment)
        if experiment.online is None or experiment.online.env != self.env_id:
            raise ConfigError(f"recipe {self.name!r} is trained in {self.env_id}; leave online.env as it is")
        (seed,) = experiment.seeds
        run = RunFolder.of(experiment, seed, root).path
        variant = f"scratch-{fingerprint(experiment, seed)}"
        found = policies.read(run / variant, self.name)
        if found is None:
            train(experiment, seed, root, reporter(style))
            cutting.cut(run, self.name, run / variant, reporter(style))
            found = policies.read(run / variant, self.name)
            assert found is not None
        return type(self)(found, run, variant)

    @classmethod
    def experiment(cls, settings: Sequence[str] = ()) -> Experiment:
        """The training, from the shipped YAML and `key=value` over it."""
        return config.load(cls.settings, settings)

    @property
    def _policies(self) -> Policies:
        assert self.policies is not None, f"{self.name} has no policies"
        return self.policies

    def _net(self, level: str) -> Acting:
        return self._policies.nets[self._policies.step(level)].acting

    def _replayed(self, step: float) -> tuple[str, Acting]:
        snapshot = self._policies.replayed(step)
        if snapshot is None:
            return RANDOM, uniform
        return f"step {snapshot}", self._policies.nets[snapshot].acting

    def _stitched(self, half: int, seed: int) -> Iterator[Episode]:
        """Medium's episodes that end within `half` transitions, or the first of them cut there; then expert's."""
        rows = 0
        for episode in self.lived("medium-expert/medium", seed, lambda rows: ("medium", self._net("medium"))):
            ends = rows + len(episode.rewards)
            if ends > half:
                if not rows and half:
                    yield cut(episode, half)
                break
            yield episode
            rows = ends
        yield from self.lived("medium-expert/expert", seed, lambda rows: ("expert", self._net("expert")))

    def _log(self, size: int) -> Iterator[Episode]:
        """The newest `size` transitions of the run's replay up to medium: what a buffer of that capacity holds."""
        assert self.run is not None
        folder, medium = RunFolder(self.run), self._policies.step("medium")
        if size > medium:
            raise DataError(f"recipe '{self.name}/medium-replay': the run's replay up to medium holds {medium} rows.")
        record = checkpoints.load(folder.checkpoints, medium).record
        spec, logged = record["spec"], record["online"]["replay"]
        layout = Layout(spec["obs_dim"], spec["action_dim"])
        rows = Replay(layout, 1, dtype_of(folder.experiment())).read(folder.replay, 0, logged["rows"])
        if hashlib.sha256(rows.tobytes()).hexdigest() != logged["sha256"]:
            raise CheckpointError(f"{folder.replay} does not match the sha256 of its checkpoint at step {medium:,}")
        return _relived({name: rows[:, at] for name, at in layout.slices().items()}, medium - size, folder.seed)


class Hopper(Trained, locomotion.Hopper):
    """Hopper-v5."""

    settings = SHIPPED / "hopper.yaml"
    levels = shipped_levels("hopper")
    judged: ClassVar[tuple[str, ...]] = tuple({"medium"} & set(levels))


class HalfCheetah(Trained, locomotion.HalfCheetah):
    """HalfCheetah-v5, which never falls."""

    settings = SHIPPED / "halfcheetah.yaml"
    levels = shipped_levels("halfcheetah")
    judged: ClassVar[tuple[str, ...]] = tuple({"medium"} & set(levels))


class Walker2d(Trained, locomotion.Walker2d):
    """Walker2d-v5."""

    settings = SHIPPED / "walker2d.yaml"
    levels = shipped_levels("walker2d")
    judged: ClassVar[tuple[str, ...]] = tuple({"medium"} & set(levels))


def fingerprint(experiment: Experiment, seed: int) -> str:
    """Eight hex digits of what the numbers of a training follow from: settings, seed and steps."""
    told = json.dumps([experiment.hash, seed, experiment.steps])
    return hashlib.sha256(told.encode()).hexdigest()[:8]


def _relived(columns: Mapping[str, NDArray[Any]], begin: int, seed: int) -> Iterator[Episode]:
    """A run's log from row `begin` on, as the episodes that the training loop lived through in one environment."""
    ends = np.flatnonzero(columns["terminated"][:, 0] + columns["truncated"][:, 0])
    bounds = [0, *(ends + 1).tolist()]
    if bounds[-1] < len(columns["obs"]):
        bounds.append(len(columns["obs"]))
    for number, (start, end) in enumerate(pairwise(bounds)):
        if end <= begin:
            continue
        from_ = max(start, begin)
        terminated = columns["terminated"][from_:end, 0] > 0
        yield Episode(
            observations=np.concatenate([columns["obs"][from_:end], columns["next_obs"][end - 1 : end]]).astype(
                np.float64
            ),
            actions=columns["action"][from_:end].astype(np.float32),
            rewards=columns["reward"][from_:end, 0].astype(np.float64),
            terminations=terminated,
            truncations=(np.arange(from_, end) == end - 1) & ~terminated,
            seed=None if from_ > start else derive_seed(seed, "episode", 0, number) % 2**32,
            behaviour="training",
        )
