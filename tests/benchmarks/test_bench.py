"""`metarl bench`: real processes; one failure stops no other run, and finished work is left alone."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from io import StringIO

import pytest
from rich.console import Console

from benchmarks import results
from benchmarks.running import availability, command, estimate, jobs, locks, printing, resources, suite
from benchmarks.running.folder import BenchFolder
from benchmarks.running.watch import Bars, Lines, failed
from metarl.errors import ConfigError, UserError


def planned(folder, *overrides):
    """The jobs of the suite in `folder`, as `metarl bench own/suite.yaml` plans them."""
    loaded = availability.fitted(suite.load(folder / "own" / "suite.yaml", overrides))
    return jobs.plan(loaded, BenchFolder(folder / "runs" / loaded.name))


def test_one_failing_cell_stops_no_other(bench):
    folder, printed = bench
    runs = planned(folder)
    assert [job.finished for job in runs] == [not job.title.startswith("broken") for job in runs]
    assert printed.stderr.count("\nfailed: broken · pendulum · seed") == 2
    assert "2 of 6 runs failed" in printed.stderr and "became NaN or infinite" in printed.stderr
    failures = BenchFolder(folder / "runs" / "small").read_failures()
    assert set(failures) == {job.keys[0] for job in runs if job.title.startswith("broken")}
    for job in runs:
        assert job.log.exists() == job.title.startswith("broken")
        if job.log.exists():
            log = job.log.read_text()
            assert log.count("became NaN or infinite") == 2  # it is tried twice
            assert log.count('{"title": "mine"}') == log.count('{"done": "never"}') == 2  # and prints beside progress
            assert str(job.log.relative_to(folder)) in printed.stderr
            entry = failures[job.keys[0]]
            assert entry["title"] == job.title and entry["attempts"] == 2 and entry["code"] == 2
            assert folder / "runs" / "small" / entry["log"] == job.log
    assert printed.stderr.count("to be tried again: broken") == 2
    assert "4 of 6 runs finished; see them: metarl report runs/small" in printed.stdout


def test_the_first_seed_of_every_cell_comes_first(bench):
    assert [job.seeds for job in planned(bench[0])] == [(0,), (0,), (0,), (1,), (1,), (1,)]


def test_stacked_seeds_are_one_job(bench):
    runs = planned(bench[0], "stack=2", "seeds=[0,1,2]")
    assert [job.seeds for job in runs] == [(0, 1)] * 3 + [(2,)] * 3
    assert [run.seed for run in runs[0].runs] == [0, 1] and runs[0].title.endswith("seeds 0, 1")


def test_the_index_says_what_ran(bench):
    bench_folder = BenchFolder(bench[0] / "runs" / "small")
    index = bench_folder.read_index()
    assert index["axes"] == {"method": ["BC", "TD3+BC + GORL", "broken"], "dataset": ["pendulum"]}
    assert index["seeds"] == [0, 1]
    (environment,) = results.load(bench[0] / "runs" / "small").environments
    assert {"torch", "metarl", "machine"} <= set(environment)
    for entry in index["cells"]:
        assert (bench_folder.path / entry["config"]).is_file()
        assert (bench_folder.path / entry["experiment"] / "0" / "config.yaml").is_file()


def test_again_it_skips_what_is_finished_and_extends_what_is_not(bench, metarl, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(bench[0], tmp_path / "bench")
    before = {job: job.runs[0].result.stat().st_mtime_ns for job in planned(folder) if job.finished}
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    command.bench("own/suite.yaml", dry_run=True, no_estimate=True)
    printed = capsys.readouterr().out
    assert printed.split().count("finished") == 4 and printed.count("failed before") == 2
    assert "6 runs, 2 of them to do: 40 steps" in printed and "about" not in printed
    printed = metarl(folder, "bench", "own/suite.yaml", "seeds=[0]", "steps=25", expect=1)
    assert printed.stderr.count("going on from step 20") == 2 and "small: 3 runs" in printed.stderr
    for job, changed in before.items():
        assert (job.runs[0].result.stat().st_mtime_ns != changed) == (job.seeds == (0,))
        assert json.loads(job.runs[0].result.read_text())["steps"] == (25 if job.seeds == (0,) else 20)


def test_an_unreadable_result_is_not_finished(tmp_path, bench):
    job = planned(bench[0])[0]
    broken = jobs.Job(job.cell, job.config, (0,), 20, (type(job.runs[0])(tmp_path / "0"),))
    for text in ("", "[]", "{", '{"steps": "x"}', '{"steps": 19}'):
        broken.runs[0].path.mkdir(exist_ok=True)
        broken.runs[0].result.write_text(text)
        assert not broken.finished
    broken.runs[0].result.write_text('{"steps": 20}')
    assert broken.finished


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)])
def test_a_signal_stops_the_children_and_the_run_goes_on_later(suite_file, number):
    folder = suite_file.parent
    command = [sys.executable, "-m", "metarl", "bench", "suite.yaml", "steps=1000000", "seeds=[0]", "name=long"]
    heard = partial(signal.signal, number, signal.SIG_DFL)  # under nohup SIGHUP would be ignored, as it should be
    parent = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    checkpoints = folder / "runs" / "long"
    try:
        for _ in range(600):
            if list(checkpoints.glob("*/0/checkpoint/step-*")):
                break
            time.sleep(0.1)
        children = _children(parent.pid)
        assert children
    finally:
        parent.send_signal(number)
        _, stderr = parent.communicate(timeout=30)
    assert parent.returncode == 130 and "stopped; run the same command again" in stderr
    assert not any(os.path.exists(f"/proc/{pid}") for pid in children)
    assert "Traceback" not in stderr


def _children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return file.read().split()


def test_lines_sum_over_runs(bench, capsys):
    first, second, third = planned(bench[0], "steps=40")[:3]
    assert [job.step for job in (first, second, third)] == [20, 20, 0]
    watch = Lines()
    watch.begin("small", [first, second, third], finished=3)
    for job, done in ((first, 20), (second, 20), (third, 0)):
        watch.started(job)
        watch.event(job, {"title": job.title, "done": done, "total": 40})
    watch.event(first, {"done": 40, "total": 40, "return": -5.0})
    watch.ended(first, None)
    watch.event(second, {"done": 30, "total": 40})
    failure = jobs.Failure(second, -9, ("Killed",))
    watch.retrying(second, failure)
    watch.started(second)
    watch.event(second, {"title": second.title, "done": 20, "total": 40})  # its steps are to be taken again
    watch.waiting(third)
    watch.ended(third, None)  # by another process
    watch.ended(second, jobs.Failure(second, 2, ("error: no",)))
    printed = capsys.readouterr().err
    assert "small: 3 runs, 80 steps; 3 finished before" in printed  # 40 of 120 were taken before
    assert "4 of 6 runs, 20 of 80 steps" in printed and "return -5" in printed
    assert f"to be tried again: {second.title} (exit -9): Killed" in printed
    assert f"waiting: {third.title}: another process is training it" in printed
    assert "5 of 6 runs, 60 of 80 steps" in printed
    assert f"failed: {second.title} (exit 2): error: no" in printed
    assert "6 of 6 runs, 1 failed, 60 of 60 steps" in printed


def test_bars_take_the_same_events(bench):
    first, second = planned(bench[0], "steps=40")[:2]
    shown = StringIO()
    bars = Bars(Console(file=shown, force_terminal=True, width=120))
    bars.begin("small", [first, second], finished=0)
    bars.started(first)
    bars.event(first, {"title": first.title, "done": 20, "total": 40})
    bars.event(first, {"done": 30, "total": 40, "return": 1.5})
    bars.event(first, {"say": "a [note]"})
    failure = jobs.Failure(first, 1, ("RuntimeError: no",))
    bars.retrying(first, failure)
    bars.waiting(second)
    bars.event(second, {"done": 30, "total": 40})  # late, of an attempt that has ended
    bars.started(first)
    bars.ended(first, failure)
    bars.ended(second, None)
    bars.close()
    for text in ("a [note]", "to be tried again", "waiting: ", failed(failure), "2 of 2 runs, 1 failed"):
        assert text in shown.getvalue()


# -- the plan ----------------------------------------------------------------------------------------------------


def test_the_plan_shows_what_is_left_out_and_why(bench, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(bench[0], tmp_path / "bench")
    file = folder / "own" / "suite.yaml"
    file.write_text(file.read_text() + "exclude: [{labels: {method: broken}, reason: it cannot survive}]\n")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    command.bench("own/suite.yaml", ["seeds=[0,1,2]", "steps=25"], dry_run=True)
    printed = capsys.readouterr()
    assert printed.out.count("goes on from step 20") == 4 and printed.out.count(" new ") == 2
    assert "broken · pendulum" in printed.out and "excluded: it cannot survive" in printed.out
    assert "6 runs, 6 of them to do: 70 steps" in printed.out
    assert "2 of 2 cells from the cost.json of runs here" in printed.out and "timing" not in printed.err
    assert not (folder / "runs" / "small" / "cells" / "new.yaml").exists()


def test_a_plan_of_many_runs_has_a_line_a_cell_and_fits_a_terminal(bench, monkeypatch):
    runs = planned(bench[0], "seeds=[0,1,2,3,4,5,6,7,8]")
    loaded = suite.load(bench[0] / "own" / "suite.yaml")
    shown = StringIO()
    printing.show_plan(Console(file=shown, width=80), loaded, runs, {runs[2].keys[0]})
    lines = [line.rstrip() for line in shown.getvalue().splitlines()]
    assert lines[1].split() == ["BC", "·", "pendulum", "·", "seeds", "0,", "1", "20", "finished"]
    assert lines[2].startswith("BC · pendulum · seeds 2, 3, 4, 5, 6, 7, 8 ") and lines[2].endswith("20  new")
    assert len(lines) == 1 + 2 + 2 + 2 + 1 and "failed before" in shown.getvalue() and "folder" not in lines[0]
    for width, there in ((80, False), (120, True)):
        shown = StringIO()
        printing.show_plan(Console(file=shown, width=width), loaded, runs[:3], set())
        assert ("folder" in shown.getvalue().splitlines()[0]) == there
        assert max(map(len, shown.getvalue().splitlines())) <= width


def test_nobody_left_to_read_is_no_error(tmp_path, monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as file:
        printing.show(Console(file=file), "a word")
        printing.show(Console(file=file), "another")


def test_an_estimate_without_runs_times_each_kind_once(suite_file, monkeypatch):
    loaded = availability.fitted(suite.load(suite_file, ["seeds=[0,1,2]", "steps=50"]))
    folder = BenchFolder(suite_file.parent / "runs")
    said = []
    planned = jobs.plan(loaded, folder)
    found = estimate.estimate(loaded, planned, folder, 2, said.append)
    assert [text.split(" of ")[1] for text in said] == [cell.title for cell in loaded.cells]
    assert "3 of 3 cells by timing a few steps" in found.how and found.how.endswith("2 processes at a time")
    assert not folder.path.exists()
    monkeypatch.setattr(estimate, "time_steps", lambda *_: estimate.Cost(0.25, 0.5, measured=False))
    each = 50 * 0.25 + (50 // 5 + 1) * 0.5 + estimate.START_UP
    assert estimate.estimate(loaded, planned, folder, 2, said.append).seconds == pytest.approx(9 * each / 2)
    assert estimate.estimate(loaded, planned, folder, 99, said.append).seconds == pytest.approx(each)
    assert estimate.estimate(loaded, planned, folder, 1, said.append).how.endswith("1 process at a time")


def test_only_runs_of_a_like_length_tell_how_long_the_next_take(bench, tmp_path, monkeypatch):
    folder = shutil.copytree(bench[0], tmp_path / "bench")
    bench_folder = BenchFolder(folder / "runs" / "small")
    monkeypatch.setattr(estimate, "time_steps", lambda *_: estimate.Cost(1000.0, 0.0, measured=False))
    for steps, measured in ((40, 2), (41, 0)):  # those here have 20; the cell that cannot survive has none
        loaded = availability.fitted(suite.load(folder / "own" / "suite.yaml", [f"steps={steps}"]))
        for run in (run for job in jobs.plan(loaded, bench_folder) for run in job.runs if run.cost.exists()):
            run.cost.write_text(json.dumps({**json.loads(run.cost.read_text()), "seconds": 2.0}))
        planned = [job for job in jobs.plan(loaded, bench_folder) if not job.title.startswith("broken")]
        found = estimate.estimate(loaded, planned, bench_folder, 1, lambda _: None)
        assert found.how.startswith(f"{measured or 2} of 2 cells {'from' if measured else 'by timing'}")
        each = 20 * 2.0 / 20 if measured else 21 * 1000.0
        assert found.seconds == pytest.approx(4 * (each + estimate.START_UP))


def test_times_are_written_as_people_read_them():
    seconds = (0.0, 8.25, 59, 200, 5399, 7200, 86400, 200000)
    assert [estimate.in_words(s) for s in seconds] == [
        "0 s",
        "8.2 s",
        "59 s",
        "3.3 min",
        "90 min",
        "2 h",
        "24 h",
        "2.3 days",
    ]


def test_memory_limits_the_processes(monkeypatch):
    monkeypatch.setattr(resources, "cores", lambda: 8)
    assert resources.room(1 << 30, True, available=100 << 30) == resources.Room(8)
    few = resources.room(2 << 30, True, available=5 << 30)
    assert few.jobs == 2 and few.note.startswith("memory for 2 of 8 runs at a time: 5.0 GiB")
    assert "may take 2.0 GiB" in resources.room(2 << 30, False, available=5 << 30).note
    assert resources.room(2 << 30, True, available=0).jobs == 1


def test_the_smallest_limit_on_memory_counts(tmp_path):
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (groups / "user" / "mine").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 900 kB\nMemAvailable: 800 kB\n")
    (proc / "self" / "cgroup").write_text("0::/user/mine\n")
    assert resources.available_memory(proc, groups) == 800 * 1024
    for folder, limit in ((groups / "user", "500000"), (groups / "user" / "mine", "max")):
        (folder / "memory.max").write_text(limit)
        (folder / "memory.current").write_text("100000")
        (folder / "memory.stat").write_text("anon 5\ninactive_file 20000\n")
    assert resources.available_memory(proc, groups) == 420_000
    assert resources.available_memory(tmp_path / "nowhere", groups) is None


def test_the_first_version_of_control_groups_limits_memory_and_cores_too(tmp_path, monkeypatch):
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text("9:memory:/mine\n4:cpu,cpuacct:/mine\n1:name=systemd:/\n")
    for controller in ("memory", "cpu"):
        (groups / controller / "mine").mkdir(parents=True)
    (groups / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    (groups / "memory" / "memory.usage_in_bytes").write_text("5\n")
    (groups / "memory" / "memory.stat").write_text("total_inactive_file 0\n")
    mine = groups / "memory" / "mine"
    (mine / "memory.limit_in_bytes").write_text("500000\n")
    (mine / "memory.usage_in_bytes").write_text("100000\n")
    (mine / "memory.stat").write_text("inactive_file 7\ntotal_inactive_file 20000\n")
    assert resources.available_memory(proc, groups) == 420_000
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for quota, cores in (("-1", 8), ("350000", 3), ("50000", 1), ("9000000", 8)):
        (groups / "cpu" / "mine" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
        (groups / "cpu" / "mine" / "cpu.cfs_period_us").write_text("100000\n")
        assert resources.cores(proc, groups) == cores


def test_a_quota_of_a_control_group_limits_the_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (groups / "user" / "mine").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text("0::/user/mine\n")
    assert resources.cores(proc, groups) == resources.cores(tmp_path, groups) == 8
    (groups / "user" / "mine" / "cpu.max").write_text("max 100000\n")
    assert resources.cores(proc, groups) == 8
    (groups / "user" / "cpu.max").write_text("250000 100000\n")
    assert resources.cores(proc, groups) == 2


def test_the_memory_of_finished_runs_is_what_the_next_are_planned_with(bench, tmp_path):
    folder = shutil.copytree(bench[0], tmp_path / "bench")
    loaded = availability.fitted(suite.load(folder / "own" / "suite.yaml"))
    bench_folder = BenchFolder(folder / "runs" / "small")
    run = jobs.plan(loaded, bench_folder)[0].runs[0]
    cost = json.loads(run.cost.read_text())
    run.cost.write_text(json.dumps({**cost, "peak_memory": 99_000_000_000}))
    assert estimate.peak(loaded, bench_folder) == (99_000_000_000, True)
    new = BenchFolder(tmp_path / "nowhere")
    assert estimate.peak(loaded, new) == (resources.own_peak(), False)
    long = availability.fitted(suite.load(folder / "own" / "suite.yaml", ["steps=100000"]))
    assert estimate.peak(long, new)[0] >= resources.COMPILING


# -- the folder --------------------------------------------------------------------------------------------------


def test_one_plan_at_a_time(suite_file):
    folder = BenchFolder(suite_file.parent / "runs")
    loaded, other = suite.load(suite_file), suite.load(suite_file, ["steps=30"])
    with folder.held(loaded), folder.held(loaded):
        written = folder.index.read_text()
        with pytest.raises(ConfigError, match=r"running in .* with other settings; wait for it, or .* name=small-2"):
            folder.held(other).__enter__()
        assert folder.index.read_text() == written
    with folder.held(other):
        assert folder.read_index()["cells"][0]["steps"] == 30


def test_finished_runs_that_a_new_plan_leaves_out_are_told_of(bench, tmp_path, monkeypatch, capsys):
    root = shutil.copytree(bench[0], tmp_path / "bench")
    folder, file = BenchFolder(root / "runs" / "small"), root / "own" / "suite.yaml"

    def plan(*overrides):
        return availability.fitted(suite.load(file, overrides))

    assert folder.orphans(plan()) == folder.orphans(plan("steps=30")) == folder.orphans(plan("seeds=[0,1,2]")) == ""
    assert folder.orphans(plan("seeds=[0]")).startswith("2 finished runs here no longer belong to the plan")
    said = []
    with folder.held(plan("algorithm.batch_size=5"), said.append):
        assert said[0].startswith("4 finished runs")
    with folder.held(plan(), said.append):  # those that are new have not run: nothing is lost
        assert len(said) == 1
    file.write_text(file.read_text().replace("    BC:", "    behaviour cloning:"))
    monkeypatch.chdir(root)
    command.bench("own/suite.yaml", dry_run=True, no_estimate=True)
    assert "2 finished runs here no longer belong to the plan" in capsys.readouterr().err
    written = folder.index.read_text()
    file.write_text(file.read_text().replace("  dataset:", "  data:"))
    with pytest.raises(ConfigError, match=r"2 finished runs of .* other axes \(method, dataset\).*name=small-2"):
        folder.held(plan()).__enter__()
    assert folder.index.read_text() == written
    with BenchFolder(tmp_path / "new").held(plan(), said.append):
        assert len(said) == 1


@pytest.mark.parametrize("root", ["a-file", "a-file/below", "/proc/nowhere", "blocked"])
def test_a_folder_that_cannot_be_made_is_a_mistake_with_a_remedy(suite_file, tmp_path, root):
    (tmp_path / "a-file").write_text("")
    (tmp_path / "blocked" / "small").mkdir(parents=True)
    (tmp_path / "blocked" / "small" / "cells").write_text("")
    folder = BenchFolder(tmp_path / root / "small")
    with pytest.raises(UserError, match=r"cannot be written \(.+\); make room there, or choose another --root"):
        folder.held(suite.load(suite_file)).__enter__()


def test_failures_of_several_processes_are_kept(tmp_path):
    folder = BenchFolder(tmp_path)
    folder.change_failures({"a/0": {"code": 1}, "a/1": {"code": 2}})
    folder.change_failures({"a/1": None, "b/0": {"code": -9}})
    assert folder.read_failures() == {"a/0": {"code": 1}, "b/0": {"code": -9}}
    for text in ("", "[]", "{"):
        folder.failures.write_text(text)
        assert folder.read_failures() == {}


def test_a_claim_is_one_process_s(tmp_path):
    paths = [tmp_path / "x" / ".0.claim", tmp_path / "x" / ".1.claim"]
    claim = locks.claimed(paths)
    assert claim is not None and locks.claimed(paths[1:]) is None and not locks.free(paths[0])
    claim.close()
    again = locks.claimed(paths[1:])
    assert again is not None and locks.claimed(paths) is None and locks.free(paths[0])
    again.close()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_keeps_the_failures_that_were_recorded(tmp_path):
    folder = BenchFolder(tmp_path)
    folder.change_failures({"a/0": {"code": 1}})
    (tmp_path / ".failures.json.writing").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        folder.change_failures({"a/0": None})
    assert folder.read_failures() == {"a/0": {"code": 1}}
