"""Cells that start with what another cell of their suite has trained."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch

from benchmarks import results
from benchmarks.running import attempt, availability, command, estimate, executor, jobs, suite
from benchmarks.running.executor import LocalExecutor
from benchmarks.running.folder import BenchFolder
from benchmarks.running.watch import Lines
from metarl.errors import ConfigError
from metarl.training import checkpoints, offline
from metarl.training.folder import RunFolder
from metarl.training.progress import Silent

SUITE = """
name: tasks
base:
  algorithm: {name: none}
  objective: {name: por, hidden: [8, 8], execute_hidden: [8, 8], batch_size: 16, decay: false}
  data:
    train: {recipe: pendulum/medium, size: 600}
    guide: {recipe: pendulum/expert, size: 600, tuples: 50}
  steps: 20
  device: cpu
  compile: "off"
  log_every: 5
  evaluation: {every: 20, episodes: 1}
  checkpoint: {every: 10}
axes:
  task:
    second:
      init: {execute_policy: {task: first}}
      objective: {train_execute: false}
    first: {}
seeds: [0, 1]
"""
WIDTHS = "  width: {narrow: {}, wide: {objective: {execute_hidden: [9, 9]}}}\nseeds:"


@pytest.fixture
def load(tmp_path):
    """`load(changes=[(old, new)], small=False)`: the suite, with parts of its text replaced."""

    def read(changes=(), small=False):
        text = SUITE
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "suite.yaml").write_text(text)
        return suite.load(tmp_path / "suite.yaml", small=small)

    return read


@pytest.fixture(scope="module")
def ran(made, metarl, tmp_path_factory):
    """The suite's file and its bench folder, which was moved once the suite had run, and what the command printed."""
    folder = tmp_path_factory.mktemp("ran")
    file = folder / "suite.yaml"
    file.write_text(SUITE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(made))
        printed = metarl(folder, "bench", "suite.yaml", "--jobs", "2").stderr
    shutil.move(folder / "runs", folder / "moved")
    return file, folder / "moved" / "tasks", printed


@pytest.fixture
def copied(ran, tmp_path):
    """The suite's file and a copy of its bench folder, to be changed."""
    return ran[0], shutil.copytree(ran[1], tmp_path / "runs" / "tasks")


def planned(file, folder, *overrides):
    """The jobs of the suite by label and first seed."""
    loaded = availability.fitted(suite.load(file, overrides))
    return {(job.cell, job.seeds[0]): job for job in jobs.plan(loaded, BenchFolder(folder))}


def group(run, name="execute_policy"):
    """A group's tensors in the newest checkpoint."""
    saved = checkpoints.load_newest(run.checkpoints, pytest.fail)
    return {k: v for k, v in saved.tensors.items() if k.startswith(f"tree/{name}/")}


def same(ours, theirs):
    return len(ours) > 0 and ours.keys() == theirs.keys() and all(torch.equal(v, theirs[k]) for k, v in ours.items())


def contents(run):
    """Everything that must repeat."""
    saved = checkpoints.load_newest(run.checkpoints, pytest.fail)
    tensors = {name: tensor.numpy().tobytes() for name, tensor in saved.tensors.items()}
    return tensors, run.metrics.read_bytes(), run.config.read_bytes(), json.loads(run.result.read_text())["evaluations"]


# -- which cell is meant -------------------------------------------------------------------------------------


def source_of(cell, group="execute_policy"):
    return cell.experiment.init[group]


def test_the_path_is_the_source_s_below_the_folder_of_the_runs(load):
    second, first = load().cells
    assert source_of(second) == f"{{root}}/{first.experiment.folder}/{{seed}}"
    assert second.experiment.resolved["init"] == second.experiment.init and not first.experiment.init
    assert second.experiment.objectives[0].train_execute is False


def test_axes_that_are_left_out_stay_the_same(load):
    cells = {cell.slug: cell for cell in load(changes=[("seeds:", WIDTHS)]).cells}
    for width in ("narrow", "wide"):
        assert cells[f"first--{width}"].experiment.folder in source_of(cells[f"second--{width}"])
    crossed = [("seeds:", WIDTHS), ("{task: first}", "{task: first, width: narrow}")]
    cells = {cell.slug: cell for cell in load(changes=crossed).cells}
    assert {source_of(cells[f"second--{width}"]) for width in ("narrow", "wide")} == {
        f"{{root}}/{cells['first--narrow'].experiment.folder}/{{seed}}"
    }


def test_a_chain_changes_with_its_first_cell(load):
    third = "    third: {init: {execute_policy: {task: second}, value: {task: first}}}\nseeds:"
    before = {cell.slug: cell.experiment for cell in load(changes=[("seeds:", third)]).cells}
    other = [("seeds:", third), ("first: {}", "first: {objective: {tau: 0.5}}")]
    after = {cell.slug: cell.experiment for cell in load(changes=other).cells}
    assert before["third"].init == {
        "execute_policy": f"{{root}}/{before['second'].folder}/{{seed}}",
        "value": f"{{root}}/{before['first'].folder}/{{seed}}",
    }
    assert all(before[name].folder != after[name].folder for name in before)
    assert after["second"].folder in after["third"].init["execute_policy"]


@pytest.mark.parametrize("small", [False, True])
def test_the_base_may_name_a_source_that_has_none_itself(load, small):
    changes = [
        ("  steps: 20", "  init: {value: {objective.tau: 0.2}}\n  steps: 20"),
        ("seeds:", "  start: {some: {}, none: {init: null}}\n  objective.tau: [0.1, 0.2]\nseeds:"),
        ("seeds:", "small: {axes: {objective.tau: [0.2, 0.3]}}\nexclude: []\nseeds:"),
        ("{execute_policy: {task: first}}", "{value: {start: none}}"),
        ("first: {}", "first: {init: {value: {start: none}}}"),
    ]
    cells = {cell.slug: cell for cell in load(changes=changes, small=small).cells}
    for task in ("first", "second"):
        source = cells[f"{task}--none--0-2"].experiment
        assert not source.init and source.objectives[0].tau == 0.2
        for tau in ("0-2", "0-3" if small else "0-1"):
            assert source_of(cells[f"{task}--some--{tau}"], "value") == f"{{root}}/{source.folder}/{{seed}}"


def test_data_that_is_not_read_is_left_out_of_the_source_s_name_too(load):
    loaded = load()
    second, first = availability.fitted(loaded).cells
    assert first.experiment.folder != loaded.cells[1].experiment.folder  # the guide's data
    assert source_of(second) == f"{{root}}/{first.experiment.folder}/{{seed}}"
    assert second.experiment.hash != loaded.cells[0].experiment.hash


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ([("task: first", "tsk: first")], ["(task 'second')", "there is no axis 'tsk'. Did you mean 'task'?"]),
        ([("task: first", "task: frist")], ["(task 'second')", "no label 'frist'. Did you mean 'first'?"]),
        ([("task: first", "task: second")], ["(task 'second')", "this is the cell itself; name the label of another"]),
        ([("{task: first}", "{}")], ["this is the cell itself", "'init: null'"]),
        ([("first: {}", "first: {init: {value: {task: second}}}")], ["cells 'second', 'first' start with each other"]),
        (
            [("seeds:", "exclude: [{labels: {task: first}, reason: too long}]\nseeds:")],
            ["cell 'first' is excluded (too long); name another"],
        ),
        ([("{execute_policy: {task: first}}", "{execute_policy: [first]}")], ["init.execute_policy must name a run"]),
        ([("{execute_policy: {task: first}}", "first")], ["'init' must be a mapping"]),
    ],
)
def test_mistakes_name_file_and_cell_and_remedy(load, tmp_path, changes, words):
    with pytest.raises(ConfigError) as told:
        load(changes=changes)
    text = str(told.value)
    assert text.startswith(str(tmp_path / "suite.yaml")) and "\n" not in text
    assert all(word in text for word in words), text


# -- the runs of a suite -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_the_execute_policy_is_the_source_s(ran, seed):
    runs = {name: job.runs[0] for (name, first), job in planned(*ran[:2]).items() if first == seed}
    assert same(group(runs["second"]), group(runs["first"]))
    assert not same(group(runs["second"]), group(planned(*ran[:2])["first", 1 - seed].runs[0]))
    saved = checkpoints.load_newest(runs["second"].checkpoints, pytest.fail)
    assert saved.step == 20 and saved.record["init"].keys() == {"execute_policy"}


def test_the_source_comes_first_and_is_not_waited_for_twice(ran):
    printed = ran[2]
    for seed in (0, 1):
        assert printed.index(f"done: first · seed {seed}") < printed.index(f"done: second · seed {seed}")
    assert "failed" not in printed and "to be tried again" not in printed and "waiting" not in printed


def test_the_plan_has_what_each_job_needs(ran):
    by_cell = planned(*ran[:2])
    assert [key for key in by_cell] == [("second", 0), ("first", 0), ("second", 1), ("first", 1)]
    assert all(by_cell["second", seed].needs == (by_cell["first", seed],) for seed in (0, 1))
    assert not by_cell["first", 0].needs
    stacked = planned(*ran[:2], "stack=2", "seeds=[0,1,2]")
    assert [job.seeds for job in stacked.values()] == [(0, 1), (0, 1), (2,), (2,)]
    assert stacked["second", 0].needs == (stacked["first", 0],) and stacked["second", 2].needs[0].seeds == (2,)


def test_the_report_reads_them(ran):
    read = results.load(ran[1])
    assert {cell.row: cell.config.get("init") for cell in read.cells} == {
        "first": None,
        "second": {"execute_policy": f"{{root}}/{planned(*ran[:2])['first', 0].runs[0].path.parent.name}/{{seed}}"},
    }
    assert all(run.finished for cell in read.cells for run in cell.runs)


def test_killed_runs_go_on_to_the_same_numbers_in_a_folder_that_was_moved(copied, ran, metarl, tmp_path):
    file, folder = copied
    runs = {key: job.runs[0] for key, job in planned(file, folder).items()}
    before = {key: contents(run) for key, run in runs.items()}
    for run in (runs["second", 0], runs["first", 1]):  # killed after their first checkpoints
        run.result.unlink()
        shutil.rmtree(sorted(run.checkpoints.glob("step-*"))[-1])
    shutil.rmtree(runs["second", 1].path)
    printed = metarl(tmp_path, "bench", file, "--jobs", "2").stderr
    assert printed.count("going on from step 10") == 2 and "failed" not in printed
    assert printed.index("done: first · seed 1") < printed.index("done: second · seed 1")
    assert {key: contents(run) for key, run in runs.items()} == before


def test_stacked_seeds_start_with_their_own(copied):
    file, folder = copied
    runs = {key: job.runs[0] for key, job in planned(file, folder).items()}
    shutil.rmtree(runs["second", 0].path.parent)
    loaded = availability.fitted(suite.load(file, ["stack=2"]))
    offline.train_stack(loaded.cells[0].experiment, (0, 1), folder, Silent(), file.parent)
    for seed in (0, 1):
        assert same(group(runs["second", seed]), group(runs["first", seed]))


def test_a_finished_run_needs_no_source_to_be_evaluated(copied):
    runs = {key: job.runs[0] for key, job in planned(*copied).items()}
    kept = group(runs["second", 0])
    shutil.rmtree(runs["first", 0].path.parent)
    policy, _, step = offline.load_policy(runs["second", 0].path, pytest.fail)
    found = {f"tree/execute_policy/{k}": v for k, v in policy.tree["execute_policy"].items()}
    assert step == 20 and same(found, kept)


def test_times_are_told_before_the_source_is_trained(ran, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command.bench(str(ran[0]), ["seeds=[0]"], dry_run=True)
    printed = capsys.readouterr().out
    assert "2 runs, 2 of them to do" in printed and "about" in printed
    assert not (tmp_path / "runs").exists()


def test_a_run_and_its_source_take_their_time_one_after_the_other(copied):
    file, folder = copied
    for job in planned(file, folder).values():
        job.runs[0].result.unlink()
        shutil.rmtree(job.runs[0].checkpoints)
    loaded = availability.fitted(suite.load(file))
    plan = jobs.plan(loaded, BenchFolder(folder))
    one, many = (estimate.estimate(loaded, plan, BenchFolder(folder), n, pytest.fail).seconds for n in (1, 100))
    assert many == pytest.approx(one / 2)  # two seeds beside each other, each with a run and its source


# -- waiting -------------------------------------------------------------------------------------------------

TRAIN = """
import pathlib, sys
run, *needs = map(pathlib.Path, sys.argv[1:])
if "bad" in str(run) or not all((need / "result.json").exists() for need in needs):
    sys.exit(f"{run.parent.name} stops")
run.mkdir(parents=True, exist_ok=True)
(run / "result.json").write_text('{"steps": 5}')
"""


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """`execute(jobs, watch)`: their failures, with processes that only pretend to train."""

    def command_of(job, root, beside):
        paths = [run.path for of in (job, *job.needs) for run in of.runs]
        return [sys.executable, "-c", TRAIN, *map(str, paths)]

    def call(todo, watch=None):
        watch = watch or Lines()
        watch.begin("fake", todo, 0)
        return LocalExecutor(tmp_path, 2)(todo, watch)

    monkeypatch.setattr(attempt, "command_of", command_of)
    monkeypatch.setattr(executor, "POLL", 0.02)
    return call


def job_of(root, name, *needs):
    run = RunFolder(root / name / "0")
    return jobs.Job(name, root / f"{name}.yaml", (0,), 5, (run,), needs)


def test_a_source_that_fails_takes_along_what_starts_with_it_and_nothing_else(tmp_path, execute):
    bad, other = job_of(tmp_path, "bad"), job_of(tmp_path, "other")
    middle = job_of(tmp_path, "middle", other, bad)
    last, sound = job_of(tmp_path, "last", middle), job_of(tmp_path, "sound", other)
    failures = {failure.job: failure for failure in execute([last, middle, sound, bad, other])}
    assert failures.keys() == {bad, middle, last} and other.finished and sound.finished
    assert failures[bad].attempts == 2 and failures[bad].tail == ("bad stops",)
    for job, source in ((middle, bad), (last, middle)):
        (text,) = failures[job].tail
        assert text == f"error: it starts with what {source.title} has trained, and that run has failed"
        assert failures[job].attempts == 0 and not job.runs[0].path.exists()
    assert set(BenchFolder(tmp_path).read_failures()) == set(bad.keys)  # no attempt was made at the others
    retried = job_of(tmp_path, "alone", bad)  # a plan without its source, which has no result either
    assert [failure.job for failure in execute([retried])] == [retried]


def test_a_source_that_another_process_trains_is_waited_for(tmp_path, execute):
    source = job_of(tmp_path, "source")
    after = job_of(tmp_path, "after", source)
    source.runs[0].path.mkdir(parents=True)
    lock = source.runs[0].held()
    told = []

    class Other(Lines):
        def waiting(self, job):
            told.append(("waiting", job))
            source.runs[0].result.write_text('{"steps": 5}')
            lock.__exit__(None, None, None)

        def started(self, job):
            told.append(("started", job))
            super().started(job)

    lock.__enter__()
    assert execute([after, source], Other()) == [] and after.finished
    assert told == [("waiting", source), ("started", after)]


def test_what_was_killed_waits_again(tmp_path, execute):
    source = job_of(tmp_path, "source")
    after = job_of(tmp_path, "after", source)

    class Killed(Lines):
        def started(self, job):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute([after, source], Killed())
    assert not after.runs[0].path.exists()
    assert execute([after, source]) == [] and after.finished and source.finished
