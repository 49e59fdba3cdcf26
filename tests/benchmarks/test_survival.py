"""A suite under accidents: killed, crashed, without room on the disk, interrupted, and started twice at once.

Whatever happens, its results are in the end those of the undisturbed suite, byte for byte, and no run is trained twice:
every start of training opens one file of TensorBoard events, so that these count the starts.
"""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from benchmarks.running import availability, suite
from benchmarks.running.folder import BenchFolder

SUITE = """
name: grid
base:
  steps: 40
  device: cpu
  evaluation: {every: 10, episodes: 1}
axes:
  method:
    BC: {algorithm: {name: "accidents:Cloning", hidden: [8], batch_size: 16}}
    wide: {algorithm: {name: bc, hidden: [16], batch_size: 16}}
    TD3+BC: {algorithm: {name: td3_bc, hidden: [8], batch_size: 16}}
    GORL:
      algorithm: {name: td3_bc, hidden: [8], batch_size: 16}
      objective: {name: gorl, preset: quick, batch_size: 5}
  dataset:
    pendulum:
      data:
        train: {recipe: pendulum/medium, size: 600}
        guide: {recipe: pendulum/expert, size: 600, tuples: 50}
seeds: [0, 1, 2, 3, 4, 5]
"""

ACCIDENTS = """
import dataclasses
import os
import signal
import sys
import time
from pathlib import Path

from algorithms.bc import BC

HERE = Path(__file__).parent
WHEN, AGAIN = 36, 8  # calls of the loss: after the checkpoint of step 30, from the beginning and going on from there


class Cloning(BC):
    "Behaviour cloning that meets with the accident which a file named after its seed orders."

    def build(self, spec, generator):
        learner = super().build(spec, generator)
        ((update,),) = learner.stages
        calls = 0

        def loss(tree, batches):
            nonlocal calls
            calls += 1
            if calls == (AGAIN if (HERE / "victim").exists() else WHEN):
                accident()
            return update.loss(tree, batches)

        return dataclasses.replace(learner, stages=((dataclasses.replace(update, loss=loss),),))


def accident():
    order = HERE / f"accident-{sys.argv[sys.argv.index('--seed') + 1]}"
    if not order.exists():
        return
    kind = order.read_text()
    (HERE / "victim").write_text(str(os.getpid()))
    if kind != "always":
        order.unlink()
    if kind in ("raise", "always"):
        raise RuntimeError("an accident")
    if kind == "leave":
        os._exit(0)
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "full":  # from here on the system answers what is written to metrics.csv as a full disk would
        full = os.open("/dev/full", os.O_WRONLY)
        for name in os.listdir("/proc/self/fd"):
            path = f"/proc/self/fd/{name}"
            if os.path.exists(path) and os.readlink(path).endswith("metrics.csv"):
                os.dup2(full, int(name))
    if kind == "orphan":
        os.kill(os.getppid(), signal.SIGKILL)
    if kind == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if kind in ("orphan", "hang", "deaf"):
        time.sleep(600)
"""

ALL, TWO, ONE = "seeds=[0,1,2,3,4,5]", "seeds=[0,1]", "seeds=[1]"


def lay_out(folder):
    (folder / "suite.yaml").write_text(SUITE)
    (folder / "accidents.py").write_text(ACCIDENTS)
    return folder


def outcome(folder):
    """By run: its metrics as bytes, and what its evaluations gave."""
    runs = sorted(file.parent for file in (folder / "runs" / "grid").glob("*/*/result.json"))
    return {
        f"{run.parent.name}/{run.name}": (
            (run / "metrics.csv").read_bytes(),
            json.loads((run / "result.json").read_text())["evaluations"],
        )
        for run in runs
    }


def starts(folder):
    """By run: how often its training has been begun or gone on with."""
    runs = sorted(file.parent for file in (folder / "runs" / "grid").glob("*/*/config.yaml"))
    return {f"{run.parent.name}/{run.name}": len(list((run / "tensorboard").glob("*tfevents*"))) for run in runs}


def key(folder, seed):
    """The run of the cell that has accidents."""
    (found,) = (name for name in starts(folder) if name.startswith("bc--") and name.endswith(f"/{seed}"))
    return found


@pytest.fixture(scope="module")
def undisturbed(made, tmp_path_factory, metarl):
    """Outcome of the whole suite where nothing happens."""
    folder = lay_out(tmp_path_factory.mktemp("undisturbed"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(made))
        printed = metarl(folder, "bench", "suite.yaml")
    assert "24 of 24 runs finished" in printed.stdout
    assert len(starts(folder)) == 24 and set(starts(folder).values()) == {1}
    return outcome(folder)


one = pytest.mark.parametrize("seeds", [ONE, pytest.param(ALL, marks=pytest.mark.slow)])
two = pytest.mark.parametrize("seeds", [TWO, pytest.param(ALL, marks=pytest.mark.slow)])


@pytest.fixture
def expected(undisturbed, seeds):
    """The undisturbed outcome of these seeds."""
    return {name: found for name, found in undisturbed.items() if name.rpartition("/")[2] in seeds}


@one
@pytest.mark.parametrize(
    ("kind", "code", "words"),
    [
        ("kill", -9, "it said nothing"),
        ("raise", 1, "RuntimeError: an accident"),
        pytest.param("leave", 0, "it ended without an error and without its result", marks=pytest.mark.slow),
        pytest.param(
            "full",
            74,
            "No space left on device",
            marks=pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full"),
        ),
    ],
)
def test_an_accident_of_one_run(tmp_path, metarl, expected, seeds, kind, code, words):
    folder = lay_out(tmp_path)
    (folder / "accident-1").write_text(kind)
    printed = metarl(folder, "bench", "suite.yaml", seeds)
    (line,) = (line for line in printed.stderr.splitlines() if line.startswith("to be tried again"))
    assert f"BC · pendulum · seed 1 (exit {code})" in line and words in line
    assert printed.stderr.count("going on from step 30") == 1  # not from the beginning
    assert outcome(folder) == expected
    assert starts(folder) == {name: 1 + (name == key(folder, 1)) for name in expected}
    assert BenchFolder(folder / "runs" / "grid").read_failures() == {}


@one
def test_a_run_that_always_raises_stops_no_other_and_is_tried_again_later(tmp_path, metarl, expected, seeds):
    folder = lay_out(tmp_path)
    (folder / "accident-1").write_text("always")
    printed = metarl(folder, "bench", "suite.yaml", seeds, expect=1)
    bad = key(folder, 1)
    assert "1 of " in printed.stderr and "RuntimeError: an accident" in printed.stderr
    assert outcome(folder) == {name: found for name, found in expected.items() if name != bad}
    bench = BenchFolder(folder / "runs" / "grid")
    (entry,) = bench.read_failures().values()
    assert entry == {"title": "BC · pendulum · seed 1", "code": 1, "attempts": 2, "log": f"{bad}.log"}
    log = (bench.path / entry["log"]).read_text()
    assert log.count("Traceback (most recent call last)") == 2 and log.count("RuntimeError: an accident") == 2
    assert log.count("-- attempt ") == 2 and "accidents.py" in log
    (folder / "accident-1").unlink()
    again = metarl(folder, "bench", "suite.yaml", seeds)
    assert again.stderr.count("going on from step 30") == 1
    assert outcome(folder) == expected and bench.read_failures() == {}
    assert starts(folder) == {name: 3 if name == bad else 1 for name in expected}


@two
def test_the_parent_is_killed(tmp_path, metarl, expected, seeds):
    folder = lay_out(tmp_path)
    (folder / "accident-1").write_text("orphan")
    metarl(folder, "bench", "suite.yaml", seeds, expect=-signal.SIGKILL)
    before = set(outcome(folder))
    metarl(folder, "bench", "suite.yaml", seeds)  # at once
    assert not alive(int((folder / "victim").read_text()))  # it would have slept for long
    assert outcome(folder) == expected
    count = starts(folder)
    assert count[key(folder, 1)] == 2
    assert all(count[name] == 1 for name in before)  # what was finished is left alone
    assert sum(count.values()) <= len(expected) + len(os.sched_getaffinity(0))  # what was under way has gone on


@two
def test_two_at_once_share_the_runs(tmp_path, expected, seeds):
    folder = lay_out(tmp_path)
    both = [start(folder, seeds) for _ in range(2)]
    printed = [process.communicate(timeout=600) for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    assert all(f"{len(expected)} of {len(expected)} runs finished" in out for out, _ in printed)
    assert outcome(folder) == expected
    assert set(starts(folder).values()) == {1}  # none was trained by both
    assert BenchFolder(folder / "runs" / "grid").read_index()["name"] == "grid"
    assert sum(err.count("by another process") for _, err in printed) >= 1


def test_a_run_that_metarl_train_holds_is_waited_for(tmp_path, undisturbed):
    folder = lay_out(tmp_path)
    bench = BenchFolder(folder / "runs" / "grid")
    with bench.held(availability.fitted(suite.load(folder / "suite.yaml", [ONE]))):
        pass
    (folder / "accident-1").write_text("hang")
    config = next((bench.path / "cells").glob("bc--*"))
    command = [sys.executable, "-m", "metarl", "train", str(config), "--seed", "1", "--root", str(bench.path)]
    holder = subprocess.Popen([*command, "--beside", str(folder)], stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: (folder / "victim").exists(), holder)
        second = start(folder, ONE)
        until("waiting: BC · pendulum · seed 1: another process is training it", second)
    finally:
        holder.kill()
        holder.wait()
    out, _ = second.communicate(timeout=600)
    assert second.returncode == 0 and "4 of 4 runs finished" in out
    assert outcome(folder) == {name: found for name, found in undisturbed.items() if name.endswith("/1")}
    assert starts(folder)[key(folder, 1)] == 2


@pytest.mark.slow
@pytest.mark.parametrize("state", ["planning", "starting", "training", "deaf", "compiling"])
def test_ctrl_c_is_heard_within_five_seconds(tmp_path, metarl, undisturbed, state, monkeypatch):
    folder = lay_out(tmp_path)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))  # so that it has to compile
    arguments = [TWO]
    if state in ("training", "deaf"):
        (folder / "accident-1").write_text("hang" if state == "training" else "deaf")
    if state == "compiling":
        arguments += ["compile=on", "name=compiled"]
    if state == "planning":  # so many cells that it says when it plans
        axis = "  algorithm.batch_size: [11, 12, 13, 14, 15]\nseeds:"
        (folder / "suite.yaml").write_text(SUITE.replace("seeds:", axis))
    bench = start(folder, *arguments)
    if state == "planning":
        until("checking 20 cells", bench)
    elif state in ("training", "deaf"):
        wait_for(lambda: (folder / "victim").exists(), bench)
        time.sleep(0.5)
    else:
        until("compiling a step" if state == "compiling" else "grid: 8 runs", bench)
        time.sleep(0.5 if state == "starting" else 2.0)
    children = _children(bench.pid)
    began = time.monotonic()
    bench.send_signal(signal.SIGINT)
    _, err = bench.communicate(timeout=120)
    took = time.monotonic() - began
    # Processes that share the cores with others get their share of them: the bound is for a quiet machine.
    crowd = max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0)))
    assert took < 5 * crowd, f"{took:.1f} s"
    assert not any(alive(int(pid)) for pid in children)
    wait_for(lambda: not left_behind(tmp_path), None)  # compilers included
    assert bench.returncode == 130 and "stopped; run the same command again" in err and "Traceback" not in err
    lay_out(folder)
    for order in folder.glob("accident-*"):
        order.unlink()
    if state != "compiling":
        metarl(folder, "bench", "suite.yaml", TWO)
        assert outcome(folder) == {name: found for name, found in undisturbed.items() if name[-1] in "01"}


def start(folder, *arguments):
    command = [sys.executable, "-m", "metarl", "bench", "suite.yaml", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, stdout=pipe, stderr=pipe, text=True)


def wait_for(condition, process):
    """Waits until something holds, as long as a process lives that is to bring it about."""
    while not condition():
        assert process is None or process.poll() is None
        time.sleep(0.05)


def until(words, process):
    """Reads what a process says until it says some words."""
    said = ""
    while words not in said:
        line = process.stderr.readline()
        assert line, said
        said += line


def alive(pid):
    """Whether a process runs; one that has ended and waits to be asked how does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def left_behind(folder):
    """Processes that were started with a folder in their environment."""
    found = []
    for file in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if str(folder).encode() in file.read_bytes():
                found.append(file.parent.name)
    return found


def _children(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
