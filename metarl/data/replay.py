"""Replay: what an online run has lived through, as packed rows in memory, and as a log on disk that only grows."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarl.data.transitions import Layout
from metarl.errors import CheckpointError

CHUNK = 2**24  # bytes of the log that are read at once


class Replay:
    """The newest `capacity` transitions in a ring of packed rows, allocated at the start.

    Every row is also written to a log, in the order in which it was lived through and as the environment gave it. A
    checkpoint adds what is new to the log and records its length and its sha256: its cost does not grow with the
    replay, and rows that a checkpoint tells of are never overwritten.

    Args:
        layout: of a row.
        capacity: rows; the oldest is overwritten first.
        dtype, device: of the rows.
        prepare: what a learner reads in the place of raw rows [n, width] (normalised, rewards scaled); None for the
            rows themselves.

    Attributes:
        rows: [capacity, width]; the first `len(replay)` hold transitions.
        added: transitions since the start.
    """

    def __init__(
        self,
        layout: Layout,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        prepare: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.layout, self.capacity, self.prepare = layout, capacity, prepare
        self.rows = torch.zeros(capacity, layout.width, dtype=dtype, device=device)
        self.added = 0
        self._new: list[NDArray[Any]] = []
        self._logged, self._digest = 0, hashlib.sha256()
        self._type = torch.zeros((), dtype=dtype).numpy().dtype

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def row(self) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
        """An empty row [width] and views of its columns, to be filled and given to `add`."""
        row = np.zeros(self.layout.width, self._type)
        return row, {name: row[columns] for name, columns in self.layout.slices().items()}

    def add(self, row: NDArray[Any]) -> None:
        """Takes one raw row [width], which it keeps."""
        self._new.append(row)
        self._put(torch.from_numpy(row)[None], self.added)
        self.added += 1

    def _put(self, raw: Tensor, first: int) -> None:
        """Raw rows [n, width], the first of them the `first`th of all."""
        read = raw if self.prepare is None else self.prepare(raw.clone())
        start = first % self.capacity
        fits = min(len(read), self.capacity - start)
        self.rows[start : start + fits].copy_(read[:fits])
        if fits < len(read):
            self.rows[: len(read) - fits].copy_(read[fits:])

    # -- on disk ---------------------------------------------------------------------------------------------

    def save(self, path: Path) -> dict[str, Any]:
        """Adds what is new to the log at `path`; returns what a checkpoint must record of it."""
        data = np.stack(self._new).tobytes() if self._new else b""
        with path.open("ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self._digest.update(data)
        self._logged += len(self._new)
        self._new = []
        return {"rows": self._logged, "sha256": self._digest.hexdigest()}

    def restore(self, path: Path, record: dict[str, Any]) -> None:
        """Takes up the log at `path` as `save` left it; rows that were added to it later are cut off.

        Raises:
            CheckpointError: the log is missing, too short, or another one.
        """
        size = record["rows"] * self.layout.width * self._type.itemsize
        remedy = f"bring it back, or move the folder {path.parent} away to start the run again"
        if not path.is_file() or path.stat().st_size < size:
            raise CheckpointError(f"{path} is missing or shorter than at the checkpoint; {remedy}")
        digest = hashlib.sha256()
        with path.open("rb") as file:
            for first in range(0, size, CHUNK):
                digest.update(file.read(min(CHUNK, size - first)))
        if digest.hexdigest() != record["sha256"]:
            raise CheckpointError(f"{path} is corrupt: it does not match its sha256; {remedy}")
        os.truncate(path, size)
        kept = min(record["rows"], self.capacity)
        self._put(torch.from_numpy(self.read(path, record["rows"] - kept, kept)), record["rows"] - kept)
        self.added = self._logged = record["rows"]
        self._digest, self._new = digest, []

    def read(self, path: Path, first: int, count: int) -> NDArray[Any]:
        """Raw rows of the log [count, width]."""
        width = self.layout.width
        found = np.fromfile(path, self._type, count * width, offset=first * width * self._type.itemsize)
        return found.reshape(-1, width)
