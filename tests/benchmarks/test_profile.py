"""Where the time goes: accounts that add up, shares that follow from them, and a page made of nothing else."""

import json
import time
from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from benchmarks.profile.__main__ import DOCS, RESULT, main
from benchmarks.profile.accounts import Accounts
from benchmarks.profile.page import page
from benchmarks.profile.picture import picture
from benchmarks.profile.run import CASES
from benchmarks.profile.shares import PARTS, grouped, measured, overhead, whole
from benchmarks.profile.step import by_group
from metarl.errors import UserError


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves where it is told to."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(time, "thread_time", lambda: now.seconds)
    return now


def test_a_second_counts_for_one_part_only(clock):
    def inner():
        clock.seconds += 2

    def outer(twice):
        clock.seconds += 1
        for _ in range(twice):
            module.inner()

    module = SimpleNamespace(inner=inner, outer=outer)
    accounts = Accounts()
    with ExitStack() as stack:
        accounts.watch(stack, module, "inner", "policy")
        accounts.watch(stack, module, "outer", lambda twice: f"outer {twice}")
        module.outer(2)
        module.outer(1)
    module.inner()
    assert accounts.seconds == {"policy": 6.0, "outer 2": 1.0, "outer 1": 1.0}
    assert accounts.calls == {"policy": 3, "outer 2": 1, "outer 1": 1}


def test_what_fails_is_on_the_account_too(clock):
    def fails():
        clock.seconds += 3
        raise ValueError

    accounts = Accounts()
    with pytest.raises(ValueError):
        accounts.call("probes", fails)
    accounts.call("policy", lambda: None)
    assert accounts.seconds == {"probes": 3.0, "policy": 0.0}


RUN = {
    "what": "a run",
    "experiment": {"evaluation": {"every": 10, "episodes": 2}},
    "seconds": dict.fromkeys(PARTS, 1.0),
    "due": {
        "critic": {"seconds": 4.0, "calls": 4, "planned": 60},
        "actor, critic": {"seconds": 10.0, "calls": 5, "planned": 40},
    },
    "counts": {"steps": 10, "evaluations": 2, "rows": 4, "checkpoints": 1, "env_steps": 100, "episodes": 4},
    "planned": {"steps": 100, "evaluations": 11, "rows": 21, "checkpoints": 10},
    "time_limit": 50,
}


def test_the_whole_run_follows_from_unit_costs():
    seconds = whole(RUN)
    assert seconds["steps"] == 60 * 1.0 + 40 * 2.0
    assert seconds["imports"] == seconds["reading data"] == 1
    assert seconds["drawing batches"] == 10
    assert seconds["environments"] == seconds["probes"] == 5.5
    assert seconds["metrics"] == 5.25 and seconds["checkpoints"] == 10
    longest = whole(RUN, full_episodes=True)  # 4 episodes of 50 steps, of which 100 were made
    assert longest["environments"] == longest["policy"] == 11 and longest["probes"] == 5.5
    assert sum(grouped(seconds).values()) == pytest.approx(sum(seconds.values()))
    assert measured(RUN)["steps"] == 14
    parts = [part for part, (_, group) in PARTS.items() if group in ("data", "evaluation", "logging")]
    assert overhead(seconds) == pytest.approx(sum(seconds[p] for p in parts) / sum(seconds.values()))


def test_what_was_not_measured_has_no_unit_cost():
    later = {"seconds": 0.0, "calls": 0, "planned": 3}
    with pytest.raises(UserError, match="no steps of guide, of which the whole run has 3"):
        whole({**RUN, "due": {**RUN["due"], "guide": later}})
    never = whole({**RUN, "due": {**RUN["due"], "guide": {**later, "planned": 0}}})
    assert never == whole(RUN)


def test_names_of_the_profiler_have_groups():
    names = {
        "mkldnn::_linear_pointwise": "matrix products",
        "aoti_torch_cpu_mm_out": "matrix products",
        "aten::addmm": "matrix products",
        "aten::bmm": "matrix products",
        "graph_2_cpp_fused__to_copy_add_clamp_min_copy__div_expm1_lerp_mul_9": "optimisers and targets",
        "graph_2_cpp_fused_lerp_copy__9": "optimisers and targets",
        "graph_3_cpp_fused__to_copy_relu_1": "other generated kernels",
        "aten::copy_": "copies",
        "aten::empty_like": "allocation",
        "## Call CompiledFxGraph None ##": "wrapper",
        "aten::sort": "others",
    }
    for name, group in names.items():
        assert {found for found, us in by_group({name: 1.0}).items() if us} == {group}, name


@pytest.mark.slow
def test_a_quick_look_measures_every_part_and_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", "")  # put back afterwards: the command names a folder of its own
    out = tmp_path / "profile.json"
    assert main(["--quick", "--out", str(out), "--docs", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    for part in {*PARTS} - {"probes"}:
        (line,) = (line for line in text.splitlines() if line.startswith(f"| {part} | {PARTS[part][1]} "))
        assert " 0 us" not in line or part == "threads beside", line
    assert "| 1,200 |" in text  # three evaluations of two episodes of Pendulum
    assert "matrix products" in text and "one step of an environment" in text and "steps of actor" in text


def test_an_unknown_run_is_refused(capsys, tmp_path):
    with pytest.raises(SystemExit):
        main(["--child", "nobody", "--out", str(tmp_path / "profile.json")])
    assert "nobody" in capsys.readouterr().err


@pytest.fixture(scope="module")
def result():
    return json.loads(RESULT.read_text())


def test_the_committed_page_is_that_of_the_committed_measurement(result):
    assert (DOCS / "profile.md").read_text() == page(result)
    assert (DOCS / "profile.png").is_file()
    assert list(result["runs"]) == list(CASES)


def test_the_picture_shows_shares_of_the_measurement(result):
    upper, lower = picture(result).axes
    for axis in (upper, lower):
        widths = {}
        for patch in axis.patches:
            widths[patch.get_y()] = widths.get(patch.get_y(), 0.0) + patch.get_width()
        assert list(widths.values()) == pytest.approx([1.0] * len(axis.get_yticks()))


def test_the_overhead_of_a_default_run_is_small(result):
    for run in result["runs"].values():
        assert overhead(whole(run, full_episodes=True)) < 0.15, run["what"]
