"""Fixtures that the whole suite shares; those that tests call return functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from metarl import Learner, Spec
from metarl.bilevel import Batches


@pytest.fixture(autouse=True, scope="session")
def plain_output() -> Iterator[None]:
    """No colours in what commands print, also where the machine asks for them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("FORCE_COLOR", raising=False)
        yield


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """One thread, so that sums have one order and test processes do not crowd each other."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def denormals() -> Iterator[None]:
    """Whatever a test trains in this process, the next one finds denormal numbers as they were."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def spec() -> Spec:
    """A small environment whose action bounds differ per dimension."""
    return Spec(obs_dim=3, action_dim=2, max_action=(1.0, 0.5))


@pytest.fixture(scope="session")
def assemble(spec: Spec) -> Callable[..., Learner]:
    """`assemble(algorithm, *objectives, seed=0)`: a ready learner."""

    def build(algorithm, *objectives, seed: int = 0) -> Learner:
        generator = torch.Generator().manual_seed(seed)
        learner = algorithm.build(spec, generator)
        for objective in objectives:
            learner = objective.attach(learner, spec, generator)
        return learner.ready()

    return build


@pytest.fixture(scope="session")
def draw(spec: Spec) -> Callable[..., Batches]:
    """`draw(learner, seed=0, dtype=float64)`: random batches and noise for every role of a learner."""

    def random(learner: Learner, seed: int = 0, dtype: torch.dtype = torch.float64) -> Batches:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator, dtype=dtype)

        batches: Batches = {}
        for name, role in learner.roles.items():
            n = role.size
            batches[name] = {
                "obs": normal(n, spec.obs_dim),
                "action": normal(n, spec.action_dim).tanh() * normal(1).new_tensor(spec.max_action),
                "reward": normal(n),
                "next_obs": normal(n, spec.obs_dim),
                "terminated": (normal(n) > 0.5).to(dtype),
                "truncated": (normal(n) > 1.0).to(dtype),
            }
        batches["noise"] = {name: normal(*n.whole_shape(learner.roles)) for name, n in learner.noise.items()}
        return batches

    return random


@pytest.fixture(scope="session")
def apart() -> Callable[[Any, Any], float]:
    """`apart(a, b)`: the largest difference of two nests of tensors, relative to the largest value of each leaf."""

    def distance(a, b) -> float:
        if isinstance(a, torch.Tensor):
            assert a.shape == b.shape, (a.shape, b.shape)
            if torch.equal(a, b):
                return 0.0
            value = (a - b).detach().abs().max() / b.detach().abs().max()
            return float(value.nan_to_num(nan=math.inf))  # max() would lose a NaN
        if isinstance(a, dict):
            assert set(a) == set(b), (set(a), set(b))
            return max((distance(a[key], b[key]) for key in a), default=0.0)
        assert len(a) == len(b)
        return max((distance(x, y) for x, y in zip(a, b, strict=True)), default=0.0)

    return distance
