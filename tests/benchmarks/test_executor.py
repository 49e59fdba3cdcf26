"""The executor with processes that only pretend to train: how each way of ending and of speaking is taken."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.running import attempt, executor
from benchmarks.running.attempt import Attempt, event_of, tail, tidy
from benchmarks.running.executor import NO_RESULT, LocalExecutor
from benchmarks.running.folder import BenchFolder
from benchmarks.running.jobs import Job
from benchmarks.running.signals import interrupted_by_signals
from benchmarks.running.watch import Lines
from metarl.training.folder import RunFolder

FINISH = """
import pathlib, subprocess, sys
run = pathlib.Path(sys.argv[1])
run.mkdir(parents=True, exist_ok=True)
(run / "result.json").write_text('{"steps": 5}')
"""


def made(root, count=1):
    """Jobs of five steps, one seed each."""
    runs = [RunFolder(root / "cell-1" / str(seed)) for seed in range(count)]
    return [Job("cell", root / "cell.yaml", (run.seed,), 5, (run,)) for run in runs]


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """`execute(script, jobs, watch=..., at_a_time=1)`: their failures, where every process runs a Python script."""

    def call(script, jobs, watch=None, at_a_time=1):
        def command(job, root, beside):
            return [sys.executable, "-c", script, str(job.runs[0].path)]

        monkeypatch.setattr(attempt, "command_of", command)
        watch = watch or Lines()
        watch.begin("fake", jobs, 0)
        return LocalExecutor(tmp_path, at_a_time)(jobs, watch)

    return call


def test_an_end_without_an_error_and_without_a_result_is_a_failure(tmp_path, execute):
    (job,) = made(tmp_path)
    (failure,) = execute("print('a word', file=__import__('sys').stderr)", [job])
    assert (failure.code, failure.attempts, failure.tail) == (0, 2, ("a word", NO_RESULT))
    assert job.log.read_text().count(NO_RESULT) == 2 and set(BenchFolder(tmp_path).read_failures()) == set(job.keys)


def test_a_log_without_words_goes_also_when_an_earlier_attempt_was_killed(tmp_path, execute):
    (job,) = made(tmp_path)
    job.log.parent.mkdir()
    job.log.write_text("-- attempt 1, seed 0, from step 0 --\n")
    assert execute(FINISH, [job]) == [] and not job.log.exists()
    job.log.write_text("-- attempt 1, seed 0, from step 0 --\n")  # its process has ended, and then the bench itself
    folder = BenchFolder(tmp_path)
    folder.change_failures({job.keys[0]: {"code": -9}, "other/0": {"code": 1}})
    tidy([job], folder)
    assert not job.log.exists() and folder.read_failures() == {"other/0": {"code": 1}}
    job.log.write_text("-- attempt 1, seed 0, from step 0 --\na warning\n")
    tidy([job], folder)
    assert job.log.exists()


def test_a_helper_that_lives_on_keeps_no_run_waiting(tmp_path, execute, monkeypatch):
    monkeypatch.setattr(attempt, "GRACE", 0.2)
    chatter = "import time, os\nwhile os.getppid() != 0: print('late', flush=True); time.sleep(0.02)"
    helper = f"subprocess.Popen([sys.executable, '-c', {chatter!r}], start_new_session=True).pid"
    script = f"{FINISH}\n(run / 'helper').write_text(str({helper}))"
    jobs = made(tmp_path, 2)
    assert execute(script, jobs) == []
    helpers = [int((job.runs[0].path / "helper").read_text()) for job in jobs]
    for pid in helpers:
        os.kill(pid, signal.SIGKILL)  # raises where it is not alive: then it has been waited for


@pytest.mark.parametrize(
    "line",
    [
        '{"title": "mine"}',
        '{"done": "x", "total": 5}',
        '{"done": 3}',
        '{"return": 1.0, "done": [1], "total": 2}',
        '{"title": 5, "done": 1, "total": 2}',
        '{"mine": 3}',
        "[1]",
        "3",
        "{",
        "[" * 100_000,
    ],
)
def test_what_is_no_progress_is_something_to_say(line):
    assert event_of(line) == {"say": line[: attempt.WIDTH]}


@pytest.mark.parametrize(
    "line",
    ['{"title": "x", "done": 1, "total": 5}', '{"done": 1, "total": 5, "return": NaN, "loss": 1}', '{"say": "x"}'],
)
def test_progress_is_read(line):
    assert "say" not in (found := event_of(line)) or found == {"say": "x"}
    assert found.keys() >= {"done", "total"} or found == {"say": "x"}


def test_foreign_lines_are_shown_and_end_nothing(tmp_path, execute, capsys):
    said = """print('{"title": "mine"}'); print('{"done": null, "total": 2}'); print('{"done": 9}')"""
    assert execute(f"{FINISH}\n{said}", made(tmp_path)) == []
    assert 'cell · seed 0: {"title": "mine"}' in capsys.readouterr().err


def test_a_terminal_that_is_lost_ends_nothing(tmp_path, execute, capsys):
    class Lost(Lines):
        def started(self, job):
            raise OSError(errno.EIO, "Input/output error")

    assert execute(FINISH, made(tmp_path, 2), Lost()) == []
    assert BenchFolder(tmp_path).read_failures() == {}
    assert "done: " not in capsys.readouterr().err  # and nothing more is shown


@pytest.mark.parametrize(
    "error", [OSError(errno.EMFILE, "Too many open files"), RuntimeError("can't start new thread")]
)
def test_what_others_hold_lowers_the_number_of_runs_and_burns_no_attempt(tmp_path, execute, monkeypatch, capsys, error):
    running = []
    start, ended = Attempt.start, LocalExecutor._ended

    def scarce(*arguments):
        if running:
            arguments[4].close()
            raise error
        running.append(1)
        return start(*arguments)

    def end(self, *arguments):
        running.clear()
        ended(self, *arguments)

    monkeypatch.setattr(Attempt, "start", scarce)
    monkeypatch.setattr(LocalExecutor, "_ended", end)
    jobs = made(tmp_path, 3)
    assert execute(FINISH, jobs, at_a_time=3) == [] and all(job.finished for job in jobs)
    assert not any(job.log.exists() for job in jobs)
    said = capsys.readouterr().err
    assert said.count("no more than 1 at a time from here on") == 1 and "to be tried again" not in said


def test_a_run_that_cannot_be_started_by_itself_has_failed(tmp_path, execute, monkeypatch):
    def refused(*arguments):
        arguments[4].close()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Attempt, "start", refused)
    monkeypatch.setattr(executor, "POLL", 0.01)
    (failure,) = execute(FINISH, made(tmp_path))
    assert failure.code == executor.NO_ROOM and failure.attempts == 2
    assert "could not be started" in failure.tail[-1] and "No space left on device" in failure.tail[-1]


def test_without_a_thread_no_process_is_left_and_no_log(tmp_path, monkeypatch):
    (job,) = made(tmp_path)
    claim = executor._claimed(job)
    begun = []

    class NoThread:
        ident = None

        def __init__(self, **_):
            pass

        def start(self):
            raise RuntimeError("can't start new thread")

    def popen(*arguments, **options):
        begun.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], **options))
        return begun[0]

    monkeypatch.setattr(attempt.threading, "Thread", NoThread)
    monkeypatch.setattr(attempt, "subprocess", type("fake", (), {"Popen": popen, "PIPE": subprocess.PIPE}))
    with pytest.raises(RuntimeError, match="new thread"):
        Attempt.start(job, 1, tmp_path, None, claim, attempt.Events())
    assert begun[0].stdout.closed and begun[0].stdin.closed
    assert begun[0].returncode == -signal.SIGKILL and not job.log.exists()
    with executor._claimed(job):  # which is None where the claim is not free
        pass


def test_the_end_of_a_log_is_found_without_reading_all_of_it(tmp_path):
    log = tmp_path / "0.log"
    log.touch()
    os.truncate(log, 1 << 40)  # more than any memory holds; it takes no room on the disk
    with log.open("a") as file:
        file.write("\nthe last but one\n" + "y" * 3000 + "\n")
    *_, before, last = tail(log)
    assert before == "the last but one" and last == "y" * attempt.WIDTH + " ..."
    assert len(tail(log)) <= attempt.TAIL


def test_a_terminal_that_closes_ends_the_suite_unless_told_otherwise():
    before = signal.getsignal(signal.SIGHUP)
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with pytest.raises(KeyboardInterrupt), interrupted_by_signals():
            os.kill(os.getpid(), signal.SIGHUP)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        with interrupted_by_signals():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_failures_that_cannot_be_read_are_not_written_over(tmp_path, monkeypatch):
    folder = BenchFolder(tmp_path)
    folder.change_failures({"a/0": {"code": 1}})

    def unreadable(self, *_):
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", unreadable)
        assert folder.read_failures() == {}
        with pytest.raises(PermissionError):
            folder.change_failures({"b/0": {"code": 2}})
    assert folder.read_failures() == {"a/0": {"code": 1}}
