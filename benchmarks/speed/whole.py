"""A whole online run of TD3, alone or with a warm start by GILD, as `metarl train` does it.

It runs once, while the worker gets ready: its facts are the answer. A run of `options["long"]` steps would prepare
what is due often enough; one of `options["whole_steps"]` does as that one would, by thresholds that are as much lower.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.speed.data import columns
from benchmarks.speed.worker import Run, cpu_seconds
from metarl import config
from metarl.envs.make import env_spec, make_env, spec_of
from metarl.process import settle
from metarl.training import offline, stepping
from metarl.training.progress import Silent
from metarl.training.stepping import Mode, Program, Stepping

RANDOM = 20  # one of so many steps is random, before any is learned from


class Timed(Stepping):
    """Counts the CPU time that preparing programs takes, and keeps which were prepared how."""

    cpu_s: float
    modes: dict[str, str]

    def _prepared(self, mode: Mode, batches: Any, due: frozenset[str]) -> Program:
        began = cpu_seconds()
        program = super()._prepared(mode, batches, due)
        Timed.cpu_s += cpu_seconds() - began
        Timed.modes[", ".join(sorted(due))] = mode
        return program


def prepare(options: Mapping[str, Any]) -> tuple[dict[str, Run], dict[str, Any]]:
    """Trains. Facts: CPU seconds of the whole process, and those of them that preparing programs took."""
    settle()
    share = options["whole_steps"] / options["long"]
    stepping.COMPILED_FROM = max(2, round(stepping.COMPILED_FROM * share))
    stepping.RECORDED_FROM = max(1, round(stepping.RECORDED_FROM * share))
    offline.Stepping = Timed  # type: ignore[misc]
    Timed.cpu_s, Timed.modes = 0.0, {}
    with tempfile.TemporaryDirectory() as folder:
        experiment = config.build(description(options, Path(folder)), "the benchmark")
        offline.train(experiment, options["seed"], Path(folder), Silent())
    facts = {"gradient_steps": experiment.gradient_steps, "modes": Timed.modes, "preparing_cpu_s": Timed.cpu_s}
    return {}, {"versions": {"torch": torch.__version__}, **facts, "cpu_s": cpu_seconds()}


def description(options: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The experiment; its demonstrations are random numbers in a file in `folder`."""
    steps, hidden, batch = options["whole_steps"], list(options["hidden"]), options["batch"]
    raw: dict[str, Any] = {
        "algorithm": {"name": "td3", "hidden": hidden, "batch_size": batch},
        "online": {"env": options["env"], "random_steps": max(2, steps // RANDOM)},
        "steps": steps,
        "device": "cpu",
        "evaluation": {"every": steps, "episodes": 1},
    }
    if options["warm_start"]:
        file = folder / "demonstrations.npz"
        np.savez(file, **_demonstrations(options))
        raw["data"] = {"demo": {"file": str(file), "env": options["env"]}}
        net = {"hidden": hidden}
        raw["objective"] = {"name": "gild", "warm_start": options["warm_start"], "net": net, "batch_size": batch}
    return raw


def _demonstrations(options: Mapping[str, Any]) -> dict[str, Any]:
    env = make_env(env_spec(options["env"]))
    spec = spec_of(env)
    env.close()
    sizes = {"obs_dim": spec.obs_dim, "action_dim": spec.action_dim, "rows": options["demos"]}
    found = columns({**options, **sizes})
    names = {"observations": "obs", "actions": "action", "rewards": "reward"}
    ends = {"terminals": "terminated", "timeouts": "truncated"}
    return {key: found[name] for key, name in {**names, **ends}.items()}
