"""The contestant `textbook`: `textbook.py` on one thread."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from benchmarks.speed.data import columns, repeated
from benchmarks.speed.textbook import TD3BC, ReplayBuffer
from benchmarks.speed.worker import Run


def prepare(options: Mapping[str, Any]) -> tuple[dict[str, Run], dict[str, Any]]:
    """TD3+BC in plain PyTorch, batch drawing included."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    learner = TD3BC(options["obs_dim"], options["action_dim"], 1.0, options["hidden"])
    data = {name: column for name, column in columns(options).items() if name != "truncated"}
    buffer = ReplayBuffer(data, seed=0)
    return {"step": repeated(lambda: learner.train_step(buffer.sample(options["batch"])))}, {
        "versions": {"torch": torch.__version__}
    }
