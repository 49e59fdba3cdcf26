"""The contestant Stable-Baselines3, run with an interpreter that has it; metarl is not needed.

    PYTHON -m benchmarks.online.rival_sb3 train --env HalfCheetah-v5 --algorithm sac --seed 0 --out FILE

trains one seed and writes FILE after every evaluation. A FILE of a finished run of the same settings is left as it is;
an unfinished run begins anew. `prepare` is for `benchmarks/online/worker.py`.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import inspect
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.online.settings import COURSES, EPISODES, LABELS, settings

Run = Callable[[int], int]


def arguments(algorithm: str, told: Mapping[str, Any]) -> dict[str, Any]:
    """`benchmarks.online.settings.settings` in Stable-Baselines3's words; `action_noise` is a standard deviation."""
    kwargs: dict[str, Any] = {
        "learning_rate": told["lr"],
        "buffer_size": told["replay"],
        "learning_starts": told["random_steps"],
        "batch_size": told["batch_size"],
        "tau": told["tau"],
        "gamma": told["discount"],
        "train_freq": told["envs"],
        "gradient_steps": told["updates_per_step"],
        "policy_kwargs": {
            "net_arch": list(told["hidden"]),
            "activation_fn": {"relu": "ReLU"}[told["activation"]],
            "n_critics": told["critics"],
        },
    }
    match algorithm:
        case "sac":
            own = {"ent_coef": f"auto_{told['temperature']}", "target_update_interval": told["policy_every"]}
        case "td3":
            own = {
                "policy_delay": told["policy_every"],
                "target_policy_noise": told["policy_noise"],
                "target_noise_clip": told["noise_clip"],
                "action_noise": told["exploration_noise"],
            }
        case "ddpg":
            own = {"action_noise": told["exploration_noise"]}
        case _:
            raise ValueError(f"no algorithm is called {algorithm!r}")
    return {**kwargs, **own}


def build(algorithm: str, env: Any, seed: int, told: Mapping[str, Any]) -> Any:
    """The model, on one thread of the CPU."""
    import numpy as np
    import torch

    sb3: Any = importlib.import_module("stable_baselines3")
    torch.set_num_threads(1)
    kwargs = arguments(algorithm, told)
    policy = {**kwargs["policy_kwargs"], "activation_fn": getattr(torch.nn, kwargs["policy_kwargs"]["activation_fn"])}
    if "action_noise" in kwargs:
        dims = env.action_space.shape
        sigma = kwargs["action_noise"] * np.ones(dims, dtype=np.float32)
        kwargs["action_noise"] = sb3.common.noise.NormalActionNoise(np.zeros(dims, dtype=np.float32), sigma)
    made = getattr(sb3, LABELS[algorithm])
    return made("MlpPolicy", env, seed=seed, device="cpu", verbose=0, **{**kwargs, "policy_kwargs": policy})


def changed(algorithm: str, told: Mapping[str, Any]) -> dict[str, list[str]]:
    """Arguments that are given another value than Stable-Baselines3's default: the default, and the value.

    Its networks' defaults stand in their policies: 400 and 300 units for TD3 and DDPG, 256 twice for SAC.
    """
    sb3: Any = importlib.import_module("stable_baselines3")
    defaults = inspect.signature(getattr(sb3, LABELS[algorithm])).parameters
    kwargs = arguments(algorithm, told)
    net = kwargs.pop("policy_kwargs")["net_arch"]
    found = {name: [repr(defaults[name].default), repr(value)] for name, value in kwargs.items()}
    found["net_arch"] = [repr([256, 256] if algorithm == "sac" else [400, 300]), repr(net)]
    if found.get("ent_coef") == ["'auto'", "'auto_1.0'"]:  # which means the same
        del found["ent_coef"]
    return {name: pair for name, pair in found.items() if pair[0] != pair[1]}


def versions() -> dict[str, str]:
    """Of the packages that decide speed and returns."""
    names = ("stable_baselines3", "torch", "gymnasium", "numpy")
    return {name: str(importlib.import_module(name).__version__) for name in names}


# -- training --------------------------------------------------------------------------------------------------


def train(
    env: str, algorithm: str, seed: int, steps: int, every: int, episodes: int, out: Path, told: Mapping[str, Any]
) -> None:
    """One seed; its evaluations in the form of a result.json, the one before the first step included."""
    import gymnasium

    plan = {
        "contestant": "stable_baselines3",
        "env": env,
        "algorithm": algorithm,
        "seed": seed,
        "planned": steps,
        "every": every,
        "episodes": episodes,
        "settings": {name: list(value) if isinstance(value, tuple) else value for name, value in told.items()},
    }
    if out.is_file():
        before = json.loads(out.read_text())
        if {name: before.get(name) for name in plan} != plan:
            sys.exit(f"{out} holds a run of other settings; move it away, or name another --out")
        if before["steps"] >= steps:
            print(f"{out}: already at step {steps:,}")
            return
    out.parent.mkdir(parents=True, exist_ok=True)
    model = build(algorithm, gymnasium.make(env), seed, told)
    envs = [gymnasium.make(env) for _ in range(episodes)]
    found: dict[str, Any] = {
        **plan,
        "steps": 0,
        "versions": versions(),
        "changed": changed(algorithm, told),
        "evaluations": [],
    }
    trained = 0.0
    while True:
        at = int(model.num_timesteps)
        found["evaluations"].append({"step": at, **evaluate(model, envs, seed, at)})
        found["steps"], found["train_wall_s"] = at, trained
        _write(out, found)
        mean = sum(found["evaluations"][-1]["returns"]) / episodes
        print(f"{env} {algorithm} seed {seed}: step {at:,} of {steps:,}, return {mean:.1f}", flush=True)
        if at >= steps:
            return
        began = time.perf_counter()
        model.learn(min(every, steps - at), reset_num_timesteps=False)
        trained += time.perf_counter() - began


def evaluate(model: Any, envs: Sequence[Any], seed: int, step: int) -> dict[str, list[Any]]:
    """One deterministic episode in each environment, all stepped on one forward."""
    import numpy as np

    obs = np.stack([env.reset(seed=start(seed, step, i))[0] for i, env in enumerate(envs)])
    returns, lengths = [0.0] * len(envs), [0] * len(envs)
    running = list(enumerate(envs))
    while running:
        actions, _ = model.predict(obs, deterministic=True)
        ended = set()
        for i, env in running:
            obs[i], reward, terminated, truncated, _ = env.step(actions[i])
            returns[i] += float(reward)
            lengths[i] += 1
            if terminated or truncated:
                ended.add(i)
        running = [(i, env) for i, env in running if i not in ended]
    return {"returns": returns, "lengths": lengths}


def start(seed: int, step: int, episode: int) -> int:
    """The seed of an episode's start state: metarl's own, so that both sides meet the same starts."""
    text = f"{seed}/evaluation/{step}/{episode}"
    return (int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1) % 2**32


def _write(out: Path, found: Mapping[str, Any]) -> None:
    beside = out.with_name(out.name + ".part")
    beside.write_text(json.dumps(found, indent=1) + "\n")
    os.replace(beside, out)


# -- timing ----------------------------------------------------------------------------------------------------


def prepare(options: Mapping[str, Any]) -> tuple[dict[str, Run], dict[str, Any]]:
    """A live training whose random start is over; `learn` goes on from where it stopped."""
    import gymnasium

    told = {**options["settings"], "hidden": tuple(options["settings"]["hidden"])}
    model = build(options["algorithm"], gymnasium.make(options["env"]), options["seed"], told)
    model.learn(told["random_steps"])

    def advance(steps: int) -> int:
        before = model.num_timesteps
        model.learn(steps, reset_num_timesteps=False)
        return int(model.num_timesteps - before)

    return {"step": advance}, {"versions": versions(), "changed": changed(options["algorithm"], told)}


def main(words: Sequence[str] | None = None) -> None:
    """`train`, with the settings of the comparison."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.online.rival_sb3")
    command = parser.add_subparsers(required=True).add_parser("train", help="train one seed")
    command.add_argument("--env", required=True, choices=COURSES)
    command.add_argument("--algorithm", required=True, choices=LABELS)
    command.add_argument("--seed", type=int, required=True)
    command.add_argument("--steps", type=int, help="of the environment (that of the comparison)")
    command.add_argument("--every", type=int, help="steps from one evaluation to the next (that of the comparison)")
    command.add_argument("--episodes", type=int, default=EPISODES, help="of an evaluation")
    command.add_argument("--out", type=Path, required=True, help="the JSON file")
    asked = parser.parse_args(words)
    course = COURSES[asked.env]
    told = settings(asked.algorithm, asked.env)
    steps, every = asked.steps or course.steps, asked.every or course.every
    train(asked.env, asked.algorithm, asked.seed, steps, every, asked.episodes, asked.out, told)


if __name__ == "__main__":
    main()
