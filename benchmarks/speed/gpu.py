"""Contestants on a GPU: metarl's modes and stacks of seeds, and the textbook. Wall time is what counts here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from benchmarks.speed.data import columns, repeated
from benchmarks.speed.ours import Metarl, transitions
from benchmarks.speed.textbook import TD3BC, ReplayBuffer
from benchmarks.speed.worker import Run

DEVICE = "cuda"


def prepare(options: Mapping[str, Any]) -> tuple[dict[str, Run], dict[str, Any]]:
    """Steps that end when the device has done them."""
    torch.set_num_threads(1)
    textbook = options["mode"] == "textbook"
    run = _textbook(options) if textbook else _metarl(options)

    def finished(steps: int) -> int:
        done = run(steps)
        torch.cuda.synchronize()
        return done

    return {"step": finished}, {"versions": {"torch": torch.__version__}}


def _metarl(options: Mapping[str, Any]) -> Run:
    mode, stack = options["mode"], options["stack"]
    return Metarl(options, transitions(options), mode=mode, stack=stack, device=DEVICE).run


def _textbook(options: Mapping[str, Any]) -> Run:
    learner = TD3BC(options["obs_dim"], options["action_dim"], 1.0, options["hidden"])
    for module in (learner.actor, learner.critic, learner.actor_target, learner.critic_target):
        module.to(DEVICE)
    data = {name: column for name, column in columns(options).items() if name != "truncated"}
    buffer = ReplayBuffer(data, seed=0)

    def step() -> None:
        learner.train_step({name: column.to(DEVICE) for name, column in buffer.sample(options["batch"]).items()})

    return repeated(step)
