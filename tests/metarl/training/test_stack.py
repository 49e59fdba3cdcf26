"""Seeds in one program: folders as of seeds alone, resumed together, and never mixed up."""

import json
from collections import Counter

import pytest
import torch

from algorithms.td3_bc import TD3BC
from metarl import Learner, Update, config, sgd
from metarl.errors import ConfigError, NumericalError
from metarl.training import checkpoints, offline
from metarl.training import run as training_run
from metarl.training.folder import RunFolder
from metarl.training.progress import Silent
from metarl.training.stepping import Stepping, auto


@pytest.fixture
def stack(yaml, tmp_path):
    """`stack(*overrides, root="stack", seeds=(0, 1, 2))`: trains seeds together, and returns their folders."""

    def train(*overrides, root="stack", seeds=(0, 1, 2)):
        experiment = config.load(yaml, ["seeds=[0,1,2]", *overrides])
        return offline.train_stack(experiment, seeds, tmp_path / root, Silent())

    return train


def contents(folder):
    saved = checkpoints.load_newest(folder / "checkpoint", pytest.fail)
    files = {name: (folder / name).read_bytes() for name in ("metrics.csv", "probes.jsonl", "result.json")}
    return files | {name: tensor.numpy().tobytes() for name, tensor in saved.tensors.items()}


def rows(folder):
    """Every figure by step and name."""
    lines = (folder / "metrics.csv").read_text().splitlines()[1:]
    return {tuple(line.split(",")[:2]): float(line.split(",")[2]) for line in lines}


def test_a_stack_writes_what_its_seeds_write_alone(stack, run):
    for seed, folder in enumerate(stack()):
        alone, together = rows(run(seed=seed, root="alone")), rows(folder)
        assert folder.name == str(seed) and alone.keys() == together.keys() and len(alone) > 100
        for key, value in alone.items():
            assert together[key] == pytest.approx(value, rel=2e-3, abs=2e-4), key
        assert json.loads((folder / "result.json").read_text())["seed"] == seed


@pytest.mark.parametrize("saved", [0, 1, 2])
def test_a_stack_killed_among_its_checkpoints_goes_on_together(stack, monkeypatch, saved):
    # Recorded, since eager seeds take their steps in turn and would not show whether they are together.
    monkeypatch.setattr("metarl.training.stepping.RECORDED_FROM", 1)
    whole = [contents(folder) for folder in stack(root="whole")]
    real, seen = training_run.Run.save, []

    def save(self, state, step, pending):
        if step == 40 and len(seen) == saved:
            raise KeyboardInterrupt
        seen.extend([self.seed] if step == 40 else [])
        real(self, state, step, pending)

    monkeypatch.setattr(training_run.Run, "save", save)
    with pytest.raises(KeyboardInterrupt):
        stack()
    monkeypatch.setattr(training_run.Run, "save", real)
    together, go = [], offline._Loop.go
    monkeypatch.setattr(offline._Loop, "go", lambda loop: together.append((loop.stack, loop.step)) or go(loop))
    assert [contents(folder) for folder in stack()] == whole
    assert together == [(3, 20)]


def test_a_complete_seed_is_left_out_and_a_new_one_starts_by_itself(stack, run):
    first = run(seed=0, root="stack")
    before = contents(first)
    folders = stack()
    assert contents(folders[0]) == before
    assert all(RunFolder(folder).steps_on_record() == 60 for folder in folders)


def test_a_seed_that_is_behind_gets_a_stack_of_its_own(stack):
    stack("steps=40", seeds=(0, 1))
    folders = stack()
    assert all(RunFolder(folder).steps_on_record() == 60 for folder in folders)
    assert contents(stack()[2]) == contents(folders[2])


def test_nan_names_the_seed(stack, monkeypatch):
    real = Stepping.__call__

    def step(self, batches, due):
        metrics = real(self, batches, due)
        if self.stack:
            self.state.tree["actor"]["net.layers.0.bias"][1].fill_(float("nan"))
        return metrics

    monkeypatch.setattr(Stepping, "__call__", step)
    with pytest.raises(NumericalError, match=r"/1, at or before step 5: .* became NaN.*seeds=\[0,2\]"):
        stack()


def test_numbers_hidden_in_a_learner_are_found_out(stack, monkeypatch):
    real = TD3BC.build

    def build(self, spec, generator):
        hidden = 1 + torch.rand((), generator=generator)
        learner = real(self, spec, generator)
        critic = learner.stages[0][0]
        loss = critic.loss
        scaled = type(critic)(
            critic.name, critic.params, lambda *args: (loss(*args)[0] * hidden, loss(*args)[1]), critic.optimizer
        )
        return type(learner)(**{**vars(learner), "stages": ((scaled,), *learner.stages[1:])})

    monkeypatch.setattr(TD3BC, "build", build)
    with pytest.raises(
        ConfigError, match=r"seed 1 by itself has another loss of critic .* outside its parameter groups.*stack: 1"
    ):
        stack()


def test_the_command_line_trains_in_stacks(yaml, tmp_path, capsys, monkeypatch):
    from metarl.cli import main

    seen, real = [], offline.train_stack
    monkeypatch.setattr(
        offline, "train_stack", lambda experiment, seeds, *rest: seen.append(seeds) or real(experiment, seeds, *rest)
    )
    monkeypatch.setattr(
        "sys.argv",
        ["metarl", "train", str(yaml), "seeds=[0,1,2]", "stack=2", "steps=5", "--root", str(tmp_path / "runs")],
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code and seen == [(0, 1), (2,)]
    assert capsys.readouterr().out.count("run folder:") == 3


@pytest.mark.parametrize("key", ["stack", "compile"])
def test_how_it_runs_is_no_part_of_what_it_is(yaml, run, key):
    value = {"stack": "stack=3", "compile": "compile=off"}[key]
    assert config.load(yaml).hash == config.load(yaml, [value]).hash
    folder = run("steps=40")
    path = RunFolder(folder).config
    path.write_text("".join(line for line in path.read_text().splitlines(True) if not line.startswith(key)))
    assert run(value) == folder  # one that was begun before there was such a key, too


def test_stack_and_compile_are_checked(yaml):
    with pytest.raises(ConfigError, match="stack must be at least 1, not 0"):
        config.load(yaml, ["stack=0"])
    with pytest.raises(ConfigError, match=r"compile.*(auto|on|off)"):
        config.load(yaml, ["compile=maybe"])
    for given, read in (("on", "on"), ("off", "off"), ("auto", "auto"), ("true", "on")):  # YAML reads on as true
        assert config.load(yaml, [f"compile={given}"]).compile == read


def test_compile_on_needs_a_compiler_and_auto_does_not(run, monkeypatch):
    monkeypatch.setattr("metarl.training.offline.has_compiler", lambda: False)
    with pytest.raises(ConfigError, match=r"compile: on needs a C\+\+ compiler; set CXX, install g\+\+, or use auto"):
        run("compile=on", root="on")
    said = []
    listener = Silent()
    listener.say = said.append
    monkeypatch.setattr("metarl.training.stepping.RECORDED_FROM", 1)
    monkeypatch.setattr("metarl.training.stepping.COMPILED_FROM", 1)
    run("compile=auto", reporter=listener)
    assert said == ["there is no C++ compiler (set CXX, or install g++), so steps are recorded, not compiled"]


def test_auto_prepares_what_is_due_often_enough(yaml):
    def modes(steps, every):
        experiment = config.load(yaml, [f"steps={steps}", f"objective.every={every}"])
        learner = offline.prepare(experiment, 0).learner
        modes = auto(learner, steps)
        return [modes[learner.due(step)] for step in (1, 2, every)]

    assert modes(300, 2) == ["eager"] * 3
    assert modes(2_000, 2) == ["recorded"] * 3
    assert modes(2_000, 100) == ["recorded", "recorded", "eager"]
    assert modes(100_000, 500) == ["compiled", "compiled", "recorded"]
    assert modes(100_000, 1_000) == ["compiled", "compiled", "eager"]
    assert modes(100_000, 100) == ["compiled", "compiled", "recorded"]
    assert modes(1_000_000, 1_000) == ["compiled", "compiled", "recorded"]


def test_auto_counts_what_starts_and_stops():
    def update(name, **schedule):
        return Update(name, name, lambda tree, _: tree[name]["p"], sgd(0.1), **schedule)

    learner = Learner(
        modules={},
        tensors={name: {"p": torch.zeros(())} for name in ("a", "b", "c")},
        stages=((update("a", every=3),), (update("b", start=1000, stop=46_000),), (update("c", every=7, stop=500),)),
        act=lambda *_: None,
    ).ready()
    modes = auto(learner, 100_000)
    assert modes[frozenset("b")] == "compiled" == modes[frozenset()]  # 30,000 and 36,000 times
    assert modes[frozenset("a")] == "recorded" and modes[frozenset("ac")] == "eager"
    exact = Counter(learner.due(step) for step in range(1, 100_001))
    assert {
        due: "compiled" if n >= 30_000 else "recorded" if n >= 200 else "eager" for due, n in exact.items()
    } == modes


def test_what_cannot_be_prepared_is_said_and_runs_slower(run, monkeypatch):
    listener = Silent()
    said = []
    listener.say = said.append
    monkeypatch.setattr("metarl.training.stepping.RECORDED_FROM", 1)
    expected = rows(run(root="whole"))
    monkeypatch.setattr("metarl.training.stepping.COMPILED_FROM", 1)
    monkeypatch.setattr("metarl.training.offline.has_compiler", lambda: True)

    def fail(*_):
        raise RuntimeError("the compiler is on holiday\nand more")

    monkeypatch.setattr("metarl.training.stepping.compile_recording", fail)
    assert rows(run(reporter=listener)) == expected
    refused = [text for text in said if "cannot be compiled: the compiler is on holiday; it runs recorded" in text]
    assert len(refused) == 2  # once for each due set
    with pytest.raises(ConfigError, match=r"cannot be compiled: the compiler is on holiday; mend that, or run eagerly"):
        run("compile=on", root="on")


@pytest.mark.parametrize("backend", ["torchopt", "higher"])
def test_steps_through_a_library_stay_eager(run, backend):
    with pytest.raises(ConfigError, match="the library that guiding_network goes through runs eagerly only"):
        run(f"objective.backend={backend}", "compile=on", "steps=4", root="on")
    run(f"objective.backend={backend}", "steps=4")


def test_a_stack_goes_back_one_interval_at_most_and_leaves_usable_folders(stack, run):
    """Seed 0 is far ahead: it keeps its work, and both can go on alone afterwards."""
    run("steps=60", "checkpoint.keep=10", seed=0, root="stack")
    run("steps=20", "checkpoint.keep=10", seed=1, root="stack")
    folders = stack("steps=80", "checkpoint.keep=10", seeds=(0, 1))
    assert [RunFolder(folder).steps_on_record() for folder in folders] == [80, 80]
    assert contents(folders[0]) == contents(run("steps=80", "checkpoint.keep=10", seed=0, root="alone"))


def test_a_stack_that_went_back_can_be_taken_apart(stack, run, monkeypatch):
    real = training_run.Run.save

    def save(self, state, step, pending):
        if step == 40 and self.seed == 1:
            raise KeyboardInterrupt
        real(self, state, step, pending)

    def log(self, state, step, metrics):
        raise KeyboardInterrupt

    monkeypatch.setattr(training_run.Run, "save", save)
    with pytest.raises(KeyboardInterrupt):
        stack(seeds=(0, 1))
    monkeypatch.setattr(training_run.Run, "log", log)
    with pytest.raises(KeyboardInterrupt):
        stack(seeds=(0, 1))  # seed 0 goes back to 20, and is stopped long before 40
    monkeypatch.undo()
    for seed in (0, 1):
        assert RunFolder(run(seed=seed, root="stack")).steps_on_record() == 60


def test_a_corrupt_older_checkpoint_makes_two_stacks(stack, run):
    folder = run("steps=40", seed=0, root="stack")
    run("steps=20", seed=1, root="stack")
    (folder / "checkpoint" / "step-000000020" / "state.json").write_text("{")
    assert [RunFolder(path).steps_on_record() for path in stack(seeds=(0, 1))] == [60, 60]


@pytest.mark.parametrize("backend", ["torchopt", "higher"])
def test_a_library_takes_no_stack(stack, backend):
    with pytest.raises(ConfigError, match="library that guiding_network goes through takes no stack; use stack: 1"):
        stack(f"objective.backend={backend}")
