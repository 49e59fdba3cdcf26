import json

import pytest

from metarl.training.cost import Cost, Meter
from metarl.training.folder import RunFolder


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path)


def test_a_run_that_goes_on_adds_to_its_cost(folder, monkeypatch):
    clock = iter([100.0, 103.0, 200.0, 204.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    monkeypatch.setattr("time.process_time", lambda: 0.0)
    Meter(folder, 0, 1).write(10)
    assert Cost.read(folder).seconds == 3.0
    Meter(folder, 10, 2).write(20)
    cost = Cost.read(folder)
    assert (cost.step, cost.seconds, cost.together) == (20, 3.0 + 4.0 / 2, 2)
    assert cost.peak_memory > 10**6


def test_a_run_that_begins_again_begins_its_cost_again(folder, monkeypatch):
    clock = iter([100.0, 103.0, 200.0, 204.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    Meter(folder, 0, 1).write(10)
    Meter(folder, 0, 1).write(10)
    assert Cost.read(folder).seconds == 4.0


@pytest.mark.parametrize("text", ["", "[]", '{"seconds": 1}', json.dumps({"step": 1})])
def test_a_damaged_record_counts_as_none(folder, text):
    folder.cost.write_text(text)
    assert Cost.read(folder) is None
    Meter(folder, 5, 1).write(6)
    assert Cost.read(folder).step == 6
