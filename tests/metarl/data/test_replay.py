"""The replay: which rows it holds, and what its log brings back."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metarl.data.replay import Replay
from metarl.data.transitions import Layout
from metarl.errors import CheckpointError

LAYOUT = Layout(obs_dim=2, action_dim=1)


def fill(replay, first, last):
    """Rows whose every number is the row's own, from `first` to before `last`."""
    for i in range(first, last):
        row, columns = replay.row()
        for name, column in columns.items():
            column[:] = i if name not in ("terminated", "truncated") else i % 2
        replay.add(row)


def rewards(replay):
    return replay.layout.split(replay.rows)["reward"][: len(replay)].tolist()


@given(capacity=st.integers(1, 9), added=st.integers(0, 30))
def test_it_holds_the_newest_rows_and_overwrites_the_oldest_first(capacity, added):
    replay = Replay(LAYOUT, capacity)
    for i in range(added):
        fill(replay, i, i + 1)
        held = sorted(rewards(replay))
        assert held == list(range(max(0, i + 1 - capacity), i + 1))
    assert len(replay) == min(added, capacity) and replay.added == added


def test_the_row_that_is_overwritten_is_the_oldest_and_no_other():
    replay = Replay(LAYOUT, 4)
    fill(replay, 0, 4)
    before = replay.rows.clone()
    fill(replay, 4, 5)
    assert rewards(replay) == [4, 1, 2, 3]
    assert torch.equal(replay.rows[1:], before[1:])


def test_rows_are_read_as_prepared_and_logged_as_they_were(tmp_path):
    def prepare(rows):
        LAYOUT.split(rows)["reward"].mul_(10).add_(1)
        return rows

    replay = Replay(LAYOUT, 4, prepare=prepare)
    fill(replay, 0, 3)
    assert rewards(replay) == [1, 11, 21]
    record = replay.save(tmp_path / "replay.bin")
    assert LAYOUT.split(torch.from_numpy(replay.read(tmp_path / "replay.bin", 0, 3)))["reward"].tolist() == [0, 1, 2]
    again = Replay(LAYOUT, 4, prepare=prepare)
    again.restore(tmp_path / "replay.bin", record)
    assert torch.equal(again.rows, replay.rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("saves", [(0,), (3,), (3, 4, 9), (3, 4, 9, 23)])
def test_the_log_brings_back_the_same_ring(tmp_path, dtype, saves):
    path = tmp_path / "replay.bin"
    replay, whole = Replay(LAYOUT, 5, dtype), Replay(LAYOUT, 5, dtype)
    before = 0
    for save in saves:
        fill(replay, before, save)
        record = replay.save(path)
        before = save
    fill(replay, before, before + 7)  # never saved
    replay.save(path)
    again = Replay(LAYOUT, 5, dtype)
    again.restore(path, record)
    fill(whole, 0, saves[-1])
    assert torch.equal(again.rows, whole.rows) and again.added == whole.added
    # And it goes on as if it had not stopped, in memory and on disk.
    for one in (again, whole):
        fill(one, saves[-1], saves[-1] + 3)
    assert torch.equal(again.rows, whole.rows)
    assert again.save(path) == whole.save(tmp_path / "other.bin")
    assert path.read_bytes() == (tmp_path / "other.bin").read_bytes()


def test_a_save_costs_what_is_new(tmp_path):
    path, replay = tmp_path / "replay.bin", Replay(LAYOUT, 100)
    fill(replay, 0, 50)
    replay.save(path)
    first = path.stat().st_size
    fill(replay, 50, 52)
    replay.save(path)
    assert (first, path.stat().st_size - first) == (50 * LAYOUT.width * 4, 2 * LAYOUT.width * 4)


def test_a_log_that_is_gone_short_or_changed_is_refused(tmp_path):
    path, replay = tmp_path / "replay.bin", Replay(LAYOUT, 10)
    fill(replay, 0, 6)
    record = replay.save(path)
    data = path.read_bytes()
    path.write_bytes(np.flip(np.frombuffer(data, np.uint8)).tobytes())
    with pytest.raises(CheckpointError, match=r"replay\.bin is corrupt.*move the folder"):
        Replay(LAYOUT, 10).restore(path, record)
    os.truncate(path, len(data) - 1)
    with pytest.raises(CheckpointError, match=r"replay\.bin is missing or shorter"):
        Replay(LAYOUT, 10).restore(path, record)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"replay\.bin is missing or shorter"):
        Replay(LAYOUT, 10).restore(path, record)
