"""Packed rows kept on disk, and used only while the content that they were read from is the same."""

from __future__ import annotations

import dataclasses
import logging
import os
from pathlib import Path

import numpy as np
import torch

from metarl.data.transitions import Card, Layout, Transitions, digest, summary
from metarl.errors import disk_reason, one_line

VERSION = 1  # of the rows in a cache: raise it when packing changes

_log = logging.getLogger(__name__)
_told: set[Path] = set()


def read(path: Path, key: str, card: Card) -> Transitions | None:
    """The rows at `path`, where they were written under `key`; None where they are stale, damaged or not there.

    Args:
        path: of the cache.
        key: a hash of the content that the rows were read from.
        card: its returns and sha256 are filled in.
    """
    if not path.is_file():
        return None
    try:
        # opened here: np.load leaves its own file open where the zip is damaged
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            if str(stored["key"]) != key:
                _log.info("%s is of other content and is rebuilt", path)
                return None
            rows, starts = torch.from_numpy(stored["rows"]), torch.from_numpy(stored["episode_starts"])
            layout = Layout(*stored["dims"].tolist())
        transitions = Transitions(rows, layout, starts, card)
        card = dataclasses.replace(card, returns=summary(transitions.returns()), sha256=digest(rows, starts))
    except Exception as error:  # a damaged zip raises nearly anything
        _log.warning("%s is damaged (%s) and is rebuilt", path, one_line(error))
        return None
    return dataclasses.replace(transitions, card=card)


def write(path: Path, key: str, transitions: Transitions) -> None:
    """Writes the rows aside and renames them; where that cannot be done, says so once and goes on without."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("wb") as file:
            np.savez(
                file,
                key=np.array(key),
                rows=transitions.rows.numpy(),
                episode_starts=transitions.episode_starts.numpy(),
                dims=np.array([transitions.layout.obs_dim, transitions.layout.action_dim]),
            )
        os.replace(aside, path)
    except OSError as error:
        if aside.exists():
            aside.unlink()
        if path not in _told:
            _told.add(path)
            _log.warning("%s cannot be written (%s); the data is read anew each time", path, disk_reason(error))
