"""What a policy's terms are on data that no step draws from: expert-like samples beside random-like ones, say."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from metarl.bilevel import Batch, Batches, Tree
from metarl.data.transitions import Transitions
from metarl.learner import Learner


@torch.no_grad()
def terms(learner: Learner, tree: Tree, data: Transitions, batches: Batches) -> dict[str, float]:
    """Means over the rows of `data` of the policy's terms and cloning loss, and of what learned functions give.

    Rows are taken in batches of the training batch's size with its noise, since a learner's noise has that shape.

    Args:
        learner: with a policy.
        tree: parameters.
        data: normalised as the training data is.
        batches: of one step; its `train` batch is replaced.

    Returns:
        `improvement`, `constraint` (where the policy has one), `imitation` (the policy's cloning loss on these rows:
        where that is minus a log-density, their cross-entropy under the policy), and for every probe of training
        batches the mean output under its name.
    """
    policy = learner.hooks("watch")
    found: dict[str, list[Tensor]] = {}
    probes = {name: probe for name, probe in learner.probes.items() if probe.role == "train"}
    for batch, rows in _batches(data, len(batches["train"]["obs"])):
        here = {**batches, "train": batch}
        of_policy = policy.terms(tree, batch, batches["noise"])
        columns = {"improvement": of_policy.improvement, "constraint": of_policy.constraint}
        columns |= {name: probe.sample(tree, here)[1] for name, probe in probes.items()}
        counted = {name: value[:rows] for name, value in batch.items()}
        noise = {name: batches["noise"][name][:rows] for name in policy.noise}
        columns["imitation"] = policy.imitation(tree, counted, noise).expand(rows)
        for name, column in columns.items():
            if column is not None:
                found.setdefault(name, []).append(column[:rows].detach().double())
    return {name: float(torch.cat(columns).mean()) for name, columns in found.items()}


def _batches(data: Transitions, size: int) -> Iterator[tuple[Batch, int]]:
    """Every row once, in batches of `size`, each with the number of its rows that count; the last is filled up."""
    order = torch.arange(-(-len(data.rows) // size) * size, device=data.rows.device) % len(data.rows)
    for first, chosen in zip(range(0, len(order), size), order.split(size), strict=True):
        yield data.layout.split(data.rows[chosen]), min(size, len(data.rows) - first)
