"""`metarl bench`: real processes; one failure stops no other run, and finished work is left alone."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

from benchmarks import results
from benchmarks.running import availability, command, executor, suite
from benchmarks.running.folder import BenchFolder
from benchmarks.running.watch import Lines, failed


def planned(folder, *overrides):
    """The jobs of the suite in `folder`, as `metarl bench own/suite.yaml` plans them."""
    loaded = availability.fitted(suite.load(folder / "own" / "suite.yaml", overrides))
    return executor.plan(loaded, BenchFolder(folder / "runs" / loaded.name))


def test_one_failing_cell_stops_no_other(bench):
    folder, printed = bench
    jobs = planned(folder)
    assert [job.finished for job in jobs] == [not job.title.startswith("broken") for job in jobs]
    assert printed.stderr.count("\nfailed: broken · pendulum · seed") == 2
    assert "2 of 6 runs failed" in printed.stderr and "became NaN or infinite" in printed.stderr
    for job in jobs:
        assert job.log.exists() == job.title.startswith("broken")
        if job.log.exists():
            assert "became NaN or infinite" in job.log.read_text()
            assert str(job.log.relative_to(folder)) in printed.stderr
    assert "4 of 6 runs finished; see them: metarl report runs/small" in printed.stdout


def test_the_first_seed_of_every_cell_comes_first(bench):
    assert [job.seeds for job in planned(bench[0])] == [(0,), (0,), (0,), (1,), (1,), (1,)]


def test_stacked_seeds_are_one_job(bench):
    jobs = planned(bench[0], "stack=2", "seeds=[0,1,2]")
    assert [job.seeds for job in jobs] == [(0, 1)] * 3 + [(2,)] * 3
    assert [run.seed for run in jobs[0].runs] == [0, 1] and jobs[0].title.endswith("seeds 0, 1")


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
    command.bench("own/suite.yaml", dry_run=True)
    states = capsys.readouterr().out.split()
    assert states.count("finished") == 4 and states.count("new") == 2
    printed = metarl(folder, "bench", "own/suite.yaml", "seeds=[0]", "steps=25", expect=1)
    assert printed.stderr.count("going on from step 20") == 2 and "small: 3 runs" in printed.stderr
    for job, changed in before.items():
        assert (job.runs[0].result.stat().st_mtime_ns != changed) == (job.seeds == (0,))
        assert json.loads(job.runs[0].result.read_text())["steps"] == (25 if job.seeds == (0,) else 20)


def test_an_unreadable_result_is_not_finished(tmp_path, bench):
    job = planned(bench[0])[0]
    broken = executor.Job(job.title, job.config, (0,), 20, (type(job.runs[0])(tmp_path / "0"),))
    for text in ("", "[]", "{", '{"steps": "x"}', '{"steps": 19}'):
        broken.runs[0].path.mkdir(exist_ok=True)
        broken.runs[0].result.write_text(text)
        assert not broken.finished
    broken.runs[0].result.write_text('{"steps": 20}')
    assert broken.finished


def test_sigterm_stops_the_children_and_the_run_goes_on_later(suite_file):
    folder = suite_file.parent
    command = [sys.executable, "-m", "metarl", "bench", "suite.yaml", "steps=1000000", "seeds=[0]", "name=long"]
    parent = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
    checkpoints = folder / "runs" / "long"
    try:
        for _ in range(600):
            if list(checkpoints.glob("*/0/checkpoint/step-*")):
                break
            time.sleep(0.1)
        children = _children(parent.pid)
        assert children
    finally:
        parent.send_signal(signal.SIGTERM)
        _, stderr = parent.communicate(timeout=30)
    assert parent.returncode == 130 and "stopped; run the same command again" in stderr
    assert not any(os.path.exists(f"/proc/{pid}") for pid in children)
    assert "Traceback" not in stderr


def _children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return file.read().split()


def test_lines_sum_over_runs(bench, capsys):
    first, second = planned(bench[0])[:2]
    watch = Lines()
    watch.begin("small", [first, second], finished=3)
    for job, done in ((first, 15), (second, 0)):
        watch.started(job)
        watch.event(job, {"title": job.title, "done": done, "total": 20})
    watch.event(first, {"done": 20, "total": 20, "return": -5.0})
    watch.ended(first, None)
    failure = executor.Failure(second, 2, ("error: no",))
    watch.ended(second, failure)
    printed = capsys.readouterr().err
    assert "small: 2 runs, 40 steps; 3 finished before" in printed
    assert "1 of 2 runs, 5 of 25 steps" in printed  # 15 steps were taken before
    assert "2 of 2 runs, 1 failed, 5 of 5 steps" in printed
    assert failed(failure) in printed and "return -5" in printed
