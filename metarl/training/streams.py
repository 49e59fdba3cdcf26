"""Batches and noise as functions of the run's seed and the step, drawn in blocks.

Nothing here has a state to save: a resumed run draws what the uninterrupted one would have drawn.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Container, Mapping

import torch
from torch import Tensor

from metarl.bilevel import Batch, Batches
from metarl.data.transitions import Layout, Transitions
from metarl.learner import NoiseSpec, Role

BLOCK = 256  # steps drawn at once
LARGEST = 2**22  # numbers of one noise in a block


def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for one purpose, from the run's seed and the purpose's name."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator for one purpose; the same numbers on every device."""
    return torch.Generator().manual_seed(derive_seed(seed, *names))


class Streams:
    """What every step reads.

    Args:
        data: transitions by role, on the device and of the dtype that the steps use.
        roles, noise: what the learner asks for.
        seed: of the run.
    """

    def __init__(
        self,
        data: Mapping[str, Transitions],
        roles: Mapping[str, Role],
        noise: Mapping[str, NoiseSpec],
        seed: int,
    ) -> None:
        self.seed = seed
        rows = next(iter(data.values())).rows
        self._roles = {name: _Rows(data[name], role, seed, name) for name, role in roles.items()}
        self._readers = {name: role.reader for name, role in roles.items()}
        self._readers_of_noise = {name: self._readers.get(spec.role or "") for name, spec in noise.items()}
        self._noise = {
            name: Noise(spec, spec.whole_shape(roles), seed, name, rows.dtype, rows.device)
            for name, spec in noise.items()
        }

    def batches(self, step: int, due: Container[str | None] | None = None) -> Batches:
        """The batches of `step` (counted from 1), by role, and `noise`; with `due`, those that these Updates read."""

        def read(readers: Mapping[str, str | None], name: str) -> bool:
            return due is None or readers[name] is None or readers[name] in due

        batches: Batches = {name: rows.batch(step) for name, rows in self._roles.items() if read(self._readers, name)}
        batches["noise"] = {
            name: noise.draw(step) for name, noise in self._noise.items() if read(self._readers_of_noise, name)
        }
        return batches


class _Rows:
    """Uniform draws with replacement from one packed dataset."""

    def __init__(self, data: Transitions, role: Role, seed: int, name: str) -> None:
        self.rows: Tensor = data.rows
        self.layout: Layout = data.layout
        self.shape, self.seed, self.name = (*role.lead, role.size), seed, name
        self.size = math.prod(self.shape)
        self._block, self._indices = -1, torch.empty(0)

    def batch(self, step: int) -> Batch:
        block, offset = divmod(step - 1, BLOCK)
        if block != self._block:
            drawn = torch.randint(
                len(self.rows), (BLOCK, self.size), generator=generator(self.seed, "batch", self.name, block)
            )
            self._block, self._indices = block, drawn.to(self.rows.device)
        drawn = self.rows.index_select(0, self._indices[offset])
        return self.layout.split(drawn.view(*self.shape, -1) if len(self.shape) > 1 else drawn)


class Noise:
    """One named noise of `shape` per step."""

    def __init__(
        self,
        spec: NoiseSpec,
        shape: tuple[int, ...],
        seed: int,
        name: str,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.shape = shape
        self.block = max(1, min(BLOCK, LARGEST // math.prod(self.shape)))
        self.uniform = spec.distribution == "uniform"
        self.seed, self.name, self.dtype, self.device = seed, name, dtype, device
        self._block, self._drawn = -1, torch.empty(0)

    def draw(self, step: int) -> Tensor:
        """The noise of `step`, counted from 1."""
        block, offset = divmod(step - 1, self.block)
        if block != self._block:
            source = generator(self.seed, "noise", self.name, block)
            shape = (self.block, *self.shape)
            if self.uniform:
                drawn = torch.rand(shape, generator=source, dtype=self.dtype) * 2 - 1
            else:
                drawn = torch.randn(shape, generator=source, dtype=self.dtype)
            self._block, self._drawn = block, drawn.to(self.device)
        return self._drawn[offset]
