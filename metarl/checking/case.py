"""A learner with the objective attached, and the states and batches that the checks run it on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from metarl.bilevel import Batches, Estimate, TrainState, Update
from metarl.bilevel.update import Objective
from metarl.learner import Learner, Spec
from metarl.training.streams import generator

WARM_UP = 20


@dataclass(frozen=True)
class Case:
    """An objective attached to a learner, and everything that a check needs to run it."""

    algorithm: str
    spec: Spec
    learner: Learner
    base: Learner
    seed: int = 0

    @cached_property
    def updates(self) -> list[Update]:
        """Those with a loss: bilevel ones first, then ordinary ones, then those that only estimators use."""
        staged = [u for u in self.learner.updates.values() if u.loss is not None]
        virtual = [u for u in self.learner.virtual.values() if u.loss is not None]
        return sorted(staged, key=lambda u: not u.inners) + virtual

    @cached_property
    def inner_first(self) -> list[Update]:
        """The same, so that a loss comes before the Updates that differentiate through it."""
        return self.updates[::-1]

    @cached_property
    def bilevel(self) -> list[Update]:
        """The Updates that differentiate through another."""
        return [u for u in self.updates if u.inners]

    @cached_property
    def meta_step(self) -> int:
        """The first step in which as many bilevel Updates as possible are due."""
        wanted = {u.name for u in self.bilevel} or set(self.learner.updates)
        ends = max((u.start for u in self.learner.updates.values()), default=0) + period(self.learner)
        return max(range(1, ends + 1), key=lambda step: len(wanted & self.learner.due(step)))

    @cached_property
    def due(self) -> frozenset[str]:
        """What is due in that step."""
        return self.learner.due(self.meta_step)

    def cold(self, dtype: torch.dtype = torch.float64) -> TrainState:
        """The state before the first step."""
        return self.learner.init(dtype)

    def warm(self) -> TrainState:
        """A copy of the state after real steps, so that optimisers' moments are those of training."""
        return clone(self._warm)

    @cached_property
    def _warm(self) -> TrainState:
        state = self.cold()
        start = max((u.start for u in self.bilevel), default=0)
        for step in range(1, WARM_UP + 1):
            state, _ = self.learner.step(state, self.batches(step), self.learner.due(start + step))
        return state

    def batches(self, draw: int = 0, dtype: torch.dtype = torch.float64) -> Batches:
        """Made-up batches of every role, and noise; another `draw`, other numbers."""
        source = generator(self.seed, "check", draw)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=source, dtype=torch.float64)

        bounds = torch.tensor(self.spec.max_action, dtype=torch.float64)
        batches: Batches = {}
        for name, role in self.learner.roles.items():
            lead = (*role.lead, role.size)
            batches[name] = {
                "obs": normal(*lead, self.spec.obs_dim),
                "action": normal(*lead, self.spec.action_dim).tanh() * bounds,
                "reward": normal(*lead),
                "next_obs": normal(*lead, self.spec.obs_dim),
                "terminated": (normal(*lead) > 0.5).double(),
                "truncated": (normal(*lead) > 1.0).double(),
            }
        batches["noise"] = {}
        for name, noise in self.learner.noise.items():
            drawn = normal(*noise.whole_shape(self.learner.roles))
            batches["noise"][name] = drawn if noise.distribution == "normal" else torch.special.erf(drawn / 2**0.5)
        return pytree.tree_map(lambda x: x.to(dtype), batches)


def period(learner: Learner, longest: int = 5000) -> int:
    """Steps after which what is due repeats itself, at most `longest`."""
    return min(math.lcm(*(u.every for u in learner.updates.values())), longest)


def clone(tree: Any) -> Any:
    """A nest of tensors copied, memory and all."""
    return pytree.tree_map(lambda x: x.detach().clone() if isinstance(x, Tensor) else x, tree)


def estimate(update: Update, state: TrainState, batches: Batches) -> Estimate:
    """What the Update's estimator says."""
    return update.gradient(update, state, batches)


def differentiated(update: Update) -> Callable[..., Objective] | None:
    """`(update, state, batches) -> function of the group`, which the estimator or its base differentiates."""
    estimator: Any = update.gradient
    return getattr(estimator, "objective", None) or getattr(getattr(estimator, "base", None), "objective", None)
