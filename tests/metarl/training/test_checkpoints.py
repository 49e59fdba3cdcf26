"""Checkpoints: whole or not at all, checked, never of another learner."""

import json

import pytest
import torch
import torchopt

from algorithms.td3_bc import TD3BC
from metarl.errors import CheckpointError
from metarl.training import checkpoints


@pytest.fixture
def state(assemble):
    return assemble(TD3BC(hidden=(4,), actor_optimizer=torchopt.adam(1e-3))).init()


def equal(a, b):
    a, b = checkpoints.flatten(a), checkpoints.flatten(b)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def save(folder, step, state, keep=2):
    checkpoints.save(folder, step, checkpoints.flatten(state._asdict()), {"sizes": {"a": step}}, keep)


def test_round_trip_with_foreign_optimizer_states(tmp_path, state):
    save(tmp_path, 3, state)
    saved = checkpoints.load_newest(tmp_path, pytest.fail)
    assert saved.step == 3 and saved.record["sizes"] == {"a": 3}
    restored = type(state)(**checkpoints.unflatten(state._asdict(), saved.tensors, "here"))
    assert equal(restored._asdict(), state._asdict())
    assert type(restored.opt["actor"]) is type(state.opt["actor"])


def test_keeps_the_newest(tmp_path, state):
    for step in (1, 20, 3):
        save(tmp_path, step, state)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000003", "step-000000020"]


@pytest.mark.parametrize("damage", ["tensors", "json", "json-number", "missing", "truncated"])
def test_a_corrupt_checkpoint_gives_way_to_the_previous_and_says_so(tmp_path, state, damage):
    save(tmp_path, 1, state)
    save(tmp_path, 2, state)
    newest = tmp_path / "step-000000002"
    tensors, record = newest / "tensors.safetensors", newest / "state.json"
    if damage == "tensors":
        data = bytearray(tensors.read_bytes())
        data[-1] ^= 1
        tensors.write_bytes(data)
    elif damage == "json":
        record.write_text("{")
    elif damage == "json-number":
        record.write_text(record.read_text().replace('"a": 2', '"a": 3'))
    elif damage == "missing":
        tensors.unlink()
    else:
        tensors.write_bytes(tensors.read_bytes()[:-9])
    said = []
    assert checkpoints.load_newest(tmp_path, said.append).step == 1
    assert len(said) == 1 and "step-000000002 is corrupt" in said[0] and "previous" in said[0]


def test_nothing_whole_is_an_error_and_nothing_at_all_is_not(tmp_path, state):
    assert checkpoints.load_newest(tmp_path / "none", pytest.fail) is None
    save(tmp_path, 1, state)
    (tmp_path / "step-000000001" / "state.json").write_text("[]")
    with pytest.raises(CheckpointError, match="no checkpoint is whole"):
        checkpoints.load_newest(tmp_path, lambda text: None)


def test_an_interrupted_write_leaves_the_old_one(tmp_path, state, monkeypatch):
    save(tmp_path, 1, state)

    def die(folder):
        raise KeyboardInterrupt

    real = checkpoints._write
    monkeypatch.setattr(
        checkpoints, "_write", lambda path, data: die(path) if path.name == "state.json" else real(path, data)
    )
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 2, state)
    assert checkpoints.load_newest(tmp_path, pytest.fail).step == 1


def test_a_foreign_checkpoint_is_refused(tmp_path, state, assemble):
    save(tmp_path, 1, state)
    saved = checkpoints.load_newest(tmp_path, pytest.fail)
    wider = assemble(TD3BC(hidden=(5,), actor_optimizer=torchopt.adam(1e-3))).init()
    with pytest.raises(CheckpointError, match=r"actor/net.layers.0.weight' is torch.float32\[3, 4\]"):
        checkpoints.unflatten(wider._asdict(), saved.tensors, "here")
    deeper = assemble(TD3BC(hidden=(4, 4), actor_optimizer=torchopt.adam(1e-3))).init()
    with pytest.raises(CheckpointError, match="belongs to another configuration"):
        checkpoints.unflatten(deeper._asdict(), saved.tensors, "here")


def test_nothing_in_a_checkpoint_can_run_code(tmp_path, state):
    save(tmp_path, 1, state)
    files = sorted(p.name for p in (tmp_path / "step-000000001").iterdir())
    assert files == ["state.json", "tensors.safetensors"]
    json.loads((tmp_path / "step-000000001" / "state.json").read_text())
