"""metarl's side: the experiment that both sides' settings make, and a live training of it that advances on command."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch

from benchmarks.online.settings import COURSES, EPISODES, settings
from benchmarks.speed.worker import Run as Advance
from metarl.config import Experiment, build
from metarl.process import settle
from metarl.provenance import environment
from metarl.training.folder import RunFolder
from metarl.training.offline import _Loop
from metarl.training.progress import Silent
from metarl.training.run import Run
from metarl.training.setup import prepare as set_up

NEVER = 10**9  # steps between two of what is not timed


def described(env: str, algorithm: str, told: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The YAML of `metarl train`: `benchmarks.online.settings.settings`, or what is told in their place, in its words.

    Raises:
        ValueError: a setting is one that metarl's networks do not have.
    """
    told, course = told or settings(algorithm, env), COURSES[env]
    for name, ours in (("activation", "relu"), ("critics", 1 if algorithm == "ddpg" else 2)):
        if told[name] != ours:
            raise ValueError(f"{name}: metarl's {algorithm} has {ours}, not {told[name]}")
    rate = {"name": "adam", "lr": told["lr"]}
    learner: dict[str, Any] = {
        "name": algorithm,
        "hidden": list(told["hidden"]),
        "batch_size": told["batch_size"],
        "discount": told["discount"],
        "tau": told["tau"],
        "actor_optimizer": rate,
        "critic_optimizer": dict(rate),
        "normalize": False,
    }
    match algorithm:
        case "sac":
            every = told["policy_every"]
            learner |= {"auto_temperature": True, "temperature": told["temperature"]}
            learner |= {"policy_every": every, "target_every": every}
        case "td3":
            learner |= {"exploration": told["exploration_noise"], "policy_every": told["policy_every"]}
            learner |= {"policy_noise": told["policy_noise"], "noise_clip": told["noise_clip"]}
        case "ddpg":
            learner |= {"exploration": told["exploration_noise"]}
    return {
        "name": f"{env}-{algorithm}",
        "algorithm": learner,
        "online": {
            "env": env,
            "envs": told["envs"],
            "random_steps": told["random_steps"],
            "updates_per_step": told["updates_per_step"],
            "replay": told["replay"],
        },
        "steps": course.steps,
        "device": "cpu",
        "evaluation": {"every": course.every, "episodes": EPISODES},
    }


class Ours:
    """A live training whose random start is over, as the training loop goes but for evaluations and checkpoints.

    Args:
        env, algorithm, seed: of the run.
        folder: where the run's folder is made.
        told: settings, by default those of the comparison.
        mode: the experiment's `compile`.
    """

    def __init__(
        self,
        env: str,
        algorithm: str,
        seed: int,
        folder: Path,
        told: Mapping[str, Any] | None = None,
        mode: str = "auto",
    ) -> None:
        settle()
        raw = described(env, algorithm, told)
        logged = COURSES[env].every // 5  # the default, of the evaluations that are left out here
        raw |= {"evaluation": {"every": NEVER, "episodes": 1}, "checkpoint": {"every": NEVER}, "log_every": logged}
        self.experiment: Experiment = build({**raw, "compile": mode}, "benchmarks.online")
        setup = set_up(self.experiment, seed)
        self._run = Run(self.experiment, seed, RunFolder.of(self.experiment, seed, folder), setup, Silent())
        self._run.folder.path.mkdir(parents=True)
        self._run.open(1)
        self._loop = _Loop(self.experiment, [self._run], Silent())
        assert self.experiment.online is not None
        self.advance(self.experiment.online.random_steps or 0)

    def advance(self, steps: int) -> int:
        """Takes so many steps of the environment, with what belongs to them."""
        for _ in range(steps):
            self._loop._advance()
        return steps

    @property
    def modes(self) -> list[str]:
        """How its gradient steps run: eager, recorded or compiled."""
        mode, learner = self._loop._mode(), self._loop.learner
        return sorted({mode(learner.due(step)) for step in range(1, 1 + 64)})

    def close(self) -> None:
        """Closes files and environments."""
        self._run.close()


def prepare(options: Mapping[str, Any]) -> tuple[dict[str, Advance], dict[str, Any]]:
    """For `benchmarks/speed/worker.py`: steps of a training, and those of its environment alone."""
    folder = tempfile.TemporaryDirectory()  # goes with the process
    ours = Ours(
        options["env"], options["algorithm"], options["seed"], Path(folder.name), options["settings"], options["mode"]
    )
    facts = {"versions": environment(), "threads": torch.get_num_threads(), "modes": ours.modes}

    def step(steps: int, _kept: Any = folder) -> int:
        return ours.advance(steps)

    return {"step": step, "environment": bare(gym.make(options["env"]))}, facts


def bare(env: gym.Env[Any, Any]) -> Callable[[int], int]:
    """Steps of the environment alone, with random actions drawn beforehand."""
    actions = [env.action_space.sample() for _ in range(1000)]
    env.reset(seed=0)

    def step(steps: int) -> int:
        for i in range(steps):
            _, _, terminated, truncated, _ = env.step(actions[i % len(actions)])
            if terminated or truncated:
                env.reset()
        return steps

    return step
