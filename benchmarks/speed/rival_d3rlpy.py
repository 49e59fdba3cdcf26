"""The contestant `d3rlpy`: its TD3PlusBC through the public API, without the logger of `fit`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import torch

from benchmarks.speed.data import columns, repeated
from benchmarks.speed.worker import Run


def prepare(options: Mapping[str, Any]) -> tuple[dict[str, Run], dict[str, Any]]:
    """`update` on batches of its own replay buffer; its defaults are the papers' networks and rates."""
    d3rlpy: Any = importlib.import_module("d3rlpy")
    torch.set_num_threads(1)
    d3rlpy.seed(0)
    data = columns(options)
    dataset = d3rlpy.dataset.MDPDataset(
        data["obs"],
        data["action"],
        data["reward"][:, None],
        data["terminated"],
        data["truncated"],
        action_space=d3rlpy.ActionSpace.CONTINUOUS,
    )
    learner = d3rlpy.algos.TD3PlusBCConfig(batch_size=options["batch"]).create(device="cpu:0")
    learner.build_with_dataset(dataset)
    step = repeated(lambda: learner.update(dataset.sample_transition_batch(options["batch"])))
    return {"step": step}, {"versions": {"d3rlpy": d3rlpy.__version__, "torch": torch.__version__}}
