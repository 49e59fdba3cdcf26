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
from metarl.data.replay import Replay
from metarl.data.transitions import Layout, Transitions
from metarl.errors import ConfigError
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
        replay: of an online run; once it is `live`, roles of the source `train` draw from it.
        from_data: the share of these roles' rows that still comes from their data.

    Attributes:
        live: whether the replay is drawn from.
    """

    def __init__(
        self,
        data: Mapping[str, Transitions],
        roles: Mapping[str, Role],
        noise: Mapping[str, NoiseSpec],
        seed: int,
        replay: Replay | None = None,
        from_data: float = 0.0,
    ) -> None:
        self.seed, self.live = seed, False
        rows = next(iter(data.values())).rows
        self._roles = {name: _Rows(data[name], role, seed, name) for name, role in roles.items()}
        self._live_roles: dict[str, _Rows | _Live] = dict(self._roles)
        if replay is not None:
            for name, role in roles.items():
                if role.source == "train":
                    self._live_roles[name] = _Live(replay, self._roles[name], from_data)
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

        roles = self._live_roles if self.live else self._roles
        batches: Batches = {name: rows.batch(step) for name, rows in roles.items() if read(self._readers, name)}
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
        return self.split(self.rows.index_select(0, self._indices[offset]))

    def split(self, rows: Tensor) -> Batch:
        """Drawn rows as the role's batch."""
        return self.layout.split(rows.view(*self.shape, -1) if len(self.shape) > 1 else rows)


class _Live:
    """Uniform draws with replacement from what a replay holds by then; every batch begins with rows of fixed data."""

    def __init__(self, replay: Replay, fixed: _Rows, from_data: float) -> None:
        self.replay, self.fixed, self.rows = replay, fixed, fixed.shape[-1]
        self.of_data = round(from_data * self.rows)
        if from_data and not self.of_data:
            raise ConfigError(f"online.from_data={from_data} of a batch of {self.rows} rows is none; use more, or 0")
        self._block, self._drawn = -1, torch.empty(0)

    def batch(self, step: int) -> Batch:
        block, offset = divmod(step - 1, BLOCK)
        if block != self._block:
            source = generator(self.fixed.seed, "replay", self.fixed.name, block)
            # In float64: in float32 some rows of a large replay could never be drawn.
            drawn = torch.rand((BLOCK, self.fixed.size), generator=source, dtype=torch.float64)
            self._block, self._drawn = block, drawn.to(self.replay.rows.device)
        drawn, n = self._drawn[offset].view(-1, self.rows), self.of_data
        rows = self.replay.rows[(drawn[:, n:] * len(self.replay)).long()]
        if n:
            data = self.fixed.rows
            rows = torch.cat((data[(drawn[:, :n] * len(data)).long()], rows), dim=1)
        return self.fixed.split(rows.flatten(0, 1))


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
