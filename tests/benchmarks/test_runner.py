"""The measurement of the runner: its arithmetic, its page, and the whole of it once in small."""

import json
from dataclasses import asdict

import pytest

from benchmarks.runner.__main__ import DOCS, RESULT, main, render
from benchmarks.runner.measure import Plan
from benchmarks.runner.page import overheads, page, speed_up


def result(*rounds):
    """A result with (importing torch, one process, two processes, loops) of every round."""
    return {
        "environment": {"python": "3", "torch": "2", "machine": "a machine"},
        "load_average": {"before": 0.1, "after": 0.2},
        "plan": {"runs": 2, "steps": 10, "hidden": [8], "rounds": len(rounds)},
        "rounds": [
            {
                "import_torch": torch,
                "start": 2.0,
                "jobs_1": {"seconds": one, "loops": loops},
                "jobs_2": {"seconds": two, "loops": loops},
            }
            for torch, one, two, loops in rounds
        ],
    }


def test_overhead_is_what_is_neither_loop_nor_torch():
    assert overheads(result((1.0, 20.0, 10.0, [7.0, 8.0]))).median == 1.5
    found = overheads(
        result((1.0, 20.0, 10.0, [7.0, 8.0]), (2.0, 20.0, 10.0, [7.0, 8.0]), (0.0, 20.0, 9.0, [8.0, 8.0]))
    )
    assert (found.low, found.median, found.high) == (0.5, 1.5, 2.0)


def test_speed_up_is_taken_round_by_round():
    found = speed_up(result((1, 20.0, 10.0, [1.0]), (1, 40.0, 25.0, [1.0]), (1, 30.0, 16.0, [1.0])))
    assert (found.low, found.median, found.high) == (1.6, 1.875, 2.0)


def test_the_page_shows_both(tmp_path):
    render(result((1.0, 20.0, 10.0, [7.0, 8.0])), tmp_path)
    text = (tmp_path / "runner.md").read_text()
    assert "| **overhead of a run**, s | 1.50 | 1.50 | 1.50 |" in text
    assert "| **speed-up with two processes** | 2.00 | 2.00 | 2.00 |" in text
    assert "load average 0.1" in text and "10 eager steps" in text


def test_the_committed_page_is_that_of_the_committed_result():
    assert (DOCS / "runner.md").read_text() == page(json.loads(RESULT.read_text()))


def test_the_committed_result_is_of_the_whole_plan():
    result, plan = json.loads(RESULT.read_text()), Plan()
    assert result["plan"] == json.loads(json.dumps(asdict(plan))) and len(result["rounds"]) == plan.rounds
    assert all(len(one[f"jobs_{jobs}"]["loops"]) == plan.runs for one in result["rounds"] for jobs in (1, 2))


@pytest.mark.slow
def test_the_whole_of_it(capsys, tmp_path):
    assert main(["--quick", "--out", str(tmp_path / "x.json"), "--docs", str(tmp_path)]) == 0
    assert "overhead of a run" in capsys.readouterr().out and not list(tmp_path.iterdir())
