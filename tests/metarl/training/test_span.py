"""Schedules and the number of steps: what goes on to the same bits, what is refused, and what never comes."""

from __future__ import annotations

import sys

import pytest
import torch

from algorithms.cql import CQL
from algorithms.iql import IQL
from metarl import Learner, Spec, Unrolled, Update, config, sgd
from metarl.errors import ConfigError
from metarl.training import checkpoints, offline
from metarl.training.folder import RunFolder
from metarl.training.progress import Silent
from metarl.training.setup import prepare, saved_spec

EXPERIMENT = """
name: small
algorithm: {{name: {algorithm}, hidden: [8, 8], batch_size: 16{settings}}}
data:
  train: {{recipe: pendulum/medium, size: 1000}}
steps: 40
device: cpu
compile: "off"
log_every: 5
evaluation: {{every: 40, episodes: 1}}
checkpoint: {{every: 20}}
"""
SPANNING = {"iql": ("iql", ""), "cql": ("cql", ", bc_share: 0.25, samples: 2")}
PLAIN = {"iql": ("iql", ", actor_decay: false"), "cql": ("cql", ", bc_steps: 10, samples: 2")}


@pytest.fixture
def yaml(tmp_path):
    """`yaml(algorithm, settings)`: an experiment's file."""

    def write(algorithm, settings):
        file = tmp_path / f"{algorithm}.yaml"
        file.write_text(EXPERIMENT.format(algorithm=algorithm, settings=settings))
        return file

    return write


@pytest.fixture
def train(yaml, tmp_path):
    """`train(algorithm, settings, *overrides, root="runs")`: trains, and returns the run's folder."""

    def run(algorithm, settings, *overrides, root="runs"):
        return offline.train(config.load(yaml(algorithm, settings), overrides), 0, tmp_path / root, Silent())

    return run


def contents(folder):
    """Everything that must repeat."""
    saved = checkpoints.load_newest(folder / "checkpoint", pytest.fail)
    files = {name: (folder / name).read_bytes() for name in ("metrics.csv", "result.json")}
    return files | {name: value.numpy().tobytes() for name, value in saved.tensors.items()} | {"step": saved.step}


def killed_at(patch, step):
    real = offline._Loop._advance

    def advance(self):
        real(self)
        if self.step == step:
            raise KeyboardInterrupt

    patch.setattr(offline._Loop, "_advance", advance)


@pytest.mark.parametrize("case", SPANNING)
def test_a_finished_run_takes_no_other_number_of_steps(train, case):
    folder = train(*SPANNING[case])
    before = contents(folder)
    message = (
        r"^this run's schedules were made for 40 steps, not for 80 \(a setting that is a share .*\); "
        r"to go on from .*, set steps=40; "
        "else give the experiment another name$"
    )
    with pytest.raises(ConfigError, match=message) as raised:
        train(*SPANNING[case], "steps=80")
    assert str(folder) in str(raised.value)
    with pytest.raises(ConfigError, match="made for 40 steps, not for 30"):
        train(*SPANNING[case], "steps=30")
    assert contents(train(*SPANNING[case])) == before  # and the same number is fine
    assert train(*SPANNING[case], "steps=80", "name=other") != folder


OWN = """
from dataclasses import replace

from algorithms.iql import IQL


class Own(IQL):
    def build(self, *args):
        return replace(super().build(*args), span=%s)
"""


@pytest.mark.parametrize(("before", "after"), [("None", "40"), ("40", "None"), ("40", "80")])
def test_a_plug_in_whose_schedules_change_is_refused_as_changed(yaml, tmp_path, monkeypatch, before, after):
    """The file has changed, which is the cause; the number of steps is not."""
    file, own = yaml("'own:Own'", ""), tmp_path / "own.py"
    file = file.rename(tmp_path / "own.yaml")
    own.write_text(OWN % before)
    offline.train(config.load(file), 0, tmp_path / "runs", Silent())
    own.write_text(OWN % after)
    for name in [n for n, module in sys.modules.items() if getattr(module, "__file__", None) == str(own)]:
        monkeypatch.delitem(sys.modules, name)  # as a new process finds it
    with pytest.raises(ConfigError, match="the file of 'own:Own' has changed since this run was begun"):
        offline.train(config.load(file), 0, tmp_path / "runs", Silent())


@pytest.mark.parametrize("case", SPANNING)
@pytest.mark.parametrize("step", [7, 33])  # before and after the first checkpoint; cql clones up to step 10
def test_a_killed_run_goes_on_to_the_same_bits(train, monkeypatch, case, step):
    whole = contents(train(*SPANNING[case], root="whole"))
    with monkeypatch.context() as patch:
        killed_at(patch, step)
        with pytest.raises(KeyboardInterrupt):
            train(*SPANNING[case], root="killed")
    if step > 20:
        with pytest.raises(ConfigError, match="made for 40 steps, not for 80"):
            train(*SPANNING[case], "steps=80", root="killed")
    assert contents(train(*SPANNING[case], root="killed")) == whole


@pytest.mark.parametrize("case", PLAIN)
def test_without_such_a_schedule_a_run_can_be_extended(train, case):
    train(*PLAIN[case], root="grown")
    assert contents(train(*PLAIN[case], "steps=60", root="grown")) == contents(
        train(*PLAIN[case], "steps=60", root="whole")
    )


@pytest.mark.parametrize("case", SPANNING)
def test_what_a_checkpoint_remembers(train, yaml, case):
    saved = checkpoints.load_newest(train(*SPANNING[case]) / "checkpoint", pytest.fail)
    assert saved.record["span"] == 40 == saved_spec(saved.record["spec"]).steps == 40
    assert saved_spec(saved.record["spec"]) == prepare(config.load(yaml(*SPANNING[case])), 0).spec
    older = {name: value for name, value in saved.record["spec"].items() if name != "steps"}
    assert saved_spec(older).steps == Spec(1, 1, (1.0,)).steps  # from before it was kept
    plain = checkpoints.load_newest(train(*PLAIN[case], root="plain") / "checkpoint", pytest.fail)
    assert plain.record["span"] is None


@pytest.mark.parametrize("case", SPANNING)
def test_a_saved_policy_acts_as_it_did(train, yaml, case):
    folder = train(*SPANNING[case])
    policy, _, step = offline.load_policy(folder)
    assert step == 40 and policy.learner.span == 40
    saved = checkpoints.load_newest(folder / "checkpoint", pytest.fail)
    setup = prepare(config.load(yaml(*SPANNING[case])), 0)
    tree = {
        group: {name: saved.tensors[f"tree/{group}/{name}"] for name in params}
        for group, params in setup.start.tree.items()
    }
    obs = setup.data["train"].obs[:5]
    action, _ = policy(obs.numpy())
    expected, _ = setup.learner.act(tree, obs, None, None, True)
    start, _ = setup.learner.act(setup.start.tree, obs, None, None, True)
    assert torch.equal(torch.as_tensor(action), expected) and not torch.allclose(expected, start, atol=1e-4)


def test_a_policy_extended_is_read_with_the_steps_of_its_last_run(train):
    train(*PLAIN["iql"])
    folder = train(*PLAIN["iql"], "steps=60")
    saved = checkpoints.load_newest(folder / "checkpoint", pytest.fail)
    assert saved.record["spec"]["steps"] == 60 and offline.load_policy(folder)[2] == 60
    assert RunFolder(folder).experiment().steps == 60


@pytest.mark.parametrize(
    ("algorithm", "span"),
    [
        (IQL(hidden=(4,)), 300),
        (IQL(hidden=(4,), actor_decay=False), None),
        (CQL(hidden=(4,), bc_share=0.25), 300),
        (CQL(hidden=(4,), bc_steps=5), None),
        (CQL(hidden=(4,), bc_share=0.0), 300),
    ],
)
def test_a_learner_says_what_its_schedules_were_made_for(algorithm, span):
    spec = Spec(3, 2, (1.0, 1.0), steps=300)
    assert algorithm.build(spec, torch.Generator()).ready().span == span


def test_iqls_rate_falls_to_zero_over_the_runs_steps(yaml):
    """The policy's last step: the cosine leaves (1 - cos(pi / 40)) / 2 of the rate, 0.15 %."""
    last = {}
    for settings in ("", ", actor_decay: false"):
        setup = prepare(config.load(yaml("iql", settings)), 0)
        state = setup.start
        for step in range(1, 41):
            before, (state, _) = state, setup.learner.step(state, setup.streams.batches(step), setup.learner.due(step))
        now, then = state.tree["actor"], before.tree["actor"]
        last[settings] = max(float((now[name] - then[name]).abs().max()) for name in now)
    decayed, plain = last.values()
    assert 0 < decayed < 0.02 * plain


@pytest.mark.parametrize("case", SPANNING)
def test_a_run_takes_the_pure_learners_steps(train, yaml, apart, case):
    """A run writes over its state in one pass, schedules included; `Learner.step` makes a new one."""
    saved = checkpoints.load_newest(train(*SPANNING[case], "precision=float64") / "checkpoint", pytest.fail)
    setup = prepare(config.load(yaml(*SPANNING[case]), ["precision=float64"]), 0)
    state = setup.start
    for step in range(1, 41):
        state, _ = setup.learner.step(state, setup.streams.batches(step), setup.learner.due(step))
    pure = checkpoints.flatten(state._asdict())
    moved = {name: value for name, value in pure.items() if name.startswith(("tree/", "opt/"))}
    assert apart({name: saved.tensors[name] for name in moved}, moved) < 1e-9


def test_cql_clones_for_its_share_of_the_run(train):
    rows = (train(*SPANNING["cql"], "log_every=1") / "metrics.csv").read_text().splitlines()[1:]
    names = ("cloning/loss", "actor/loss")
    steps = {name: [int(row.split(",")[0]) for row in rows if row.split(",")[1] == name] for name in names}
    assert steps == {"cloning/loss": [*range(1, 11)], "actor/loss": [*range(11, 41)]}


# -- Updates that are never due --------------------------------------------------------------------------------


class Listener(Silent):
    """Keeps what is said."""

    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)

    @property
    def notes(self):
        return [text for text in self.said if text.startswith("note: ")]


GUIDED = """
objective: {name: gorl, every: %d, batch_size: 5}
"""


@pytest.fixture
def notes(yaml, tmp_path):
    """`notes(algorithm, settings, *overrides, every=None, seeds=(0,))`: what is noted of a run of 40 steps."""

    def train(algorithm, settings, *overrides, every=None, seeds=(0,)):
        file = yaml(algorithm, settings)
        if every:
            guide = "  guide: {recipe: pendulum/expert, size: 1000, tuples: 50}\nsteps: 40"
            file.write_text(file.read_text().replace("steps: 40", guide) + GUIDED % every)
        listener = Listener()
        offline.train_stack(config.load(file, overrides), seeds, tmp_path / "runs", listener)
        return listener.notes

    return train


def test_a_guiding_network_that_is_never_due_is_noted_once(notes, tmp_path):
    expected = [
        f"note: {tmp_path / 'td3_bc.yaml'}: update 'guiding_network' is not due in these 40 steps, so it does nothing: "
        "it is first due at step 500 (every=500); set steps=500 or more, or let it begin sooner"
    ]
    assert notes("td3_bc", "", every=500, seeds=(0, 1)) == expected
    assert notes("td3_bc", "", every=500) == []  # nothing is trained, nothing is said
    assert notes("td3_bc", "", "steps=42", every=500) == [expected[0].replace("these 40", "these 42")]


def test_one_that_is_due_in_the_last_step_is_not_noted(notes):
    assert notes("td3_bc", "", every=40) == []
    assert "first due at step 42 (every=42)" in notes("td3_bc", "", every=42)[0]


def test_a_policy_that_clones_throughout_is_noted(notes):
    (note,) = notes("cql", ", bc_steps: 40, samples: 2")
    assert "update 'actor' is not due" in note and "first due at step 41 ('actor' starts after 40)" in note
    assert notes("cql", ", bc_steps: 39, samples: 2") == []


def test_a_guiding_network_waits_for_the_policy(notes):
    policy, guide = sorted(notes("cql", ", bc_steps: 30000, samples: 2", every=70))
    assert "update 'actor' is not due in these 40 steps" in policy and "first due at step 30,001 " in policy
    assert "first due at step 30,030 ('actor' starts after 30,000); set steps=30030 or more" in guide


def learner(outer, inner):
    """A bilevel Update through an ordinary one, with these schedules."""
    tensors = {"net": {"x": torch.ones(2)}, "meta": {"y": torch.ones(2)}}
    inside = Update("net", "net", lambda tree, batches: (tree["net"]["x"] * tree["meta"]["y"]).sum(), sgd(0.1), **inner)
    outside = Update(
        "meta", "meta", lambda tree, batches: tree["net"]["x"].sum(), sgd(0.1), Unrolled("net", sgd(0.1)), **outer
    )
    return Learner({}, ((outside,), (inside,)), lambda *a: a, tensors=tensors).ready()


@pytest.mark.parametrize(
    ("outer", "inner", "step"),
    [
        ({"every": 6}, {"every": 3}, 6),
        ({"every": 6}, {"every": 3, "start": 6}, 12),
        ({"every": 6, "start": 5}, {"every": 2, "start": 4}, 6),
        ({"every": 4, "start": 1}, {"stop": 4}, 4),
        ({"every": 4, "start": 1}, {"stop": 3}, None),
        ({"every": 4, "stop": 3}, {}, None),
        ({"every": 4, "start": 4, "stop": 8}, {"start": 7}, 8),
        ({"every": 4, "start": 4, "stop": 8}, {"start": 8}, None),
    ],
)
def test_the_first_step_is_the_one_that_a_search_finds(outer, inner, step):
    made = learner(outer, inner)
    assert next((at for at in range(1, 100) if "meta" in made.due(at)), None) == step
    found = [text for text in offline._never_due(made, 1) if "'meta'" in text.split(" is ")[0]]
    if step is None:
        assert "update 'meta' is never due, so it does nothing" in found[0] and "ends at" in found[0]
    else:
        assert f"it is first due at step {step} " in found[0]
        assert not [text for text in offline._never_due(made, step) if "'meta'" in text.split(" is ")[0]]


def test_what_is_said_of_one_that_is_never_due():
    (text,) = offline._never_due(learner({"every": 500}, {"stop": 300}), 10**6)
    assert text == (
        "update 'meta' is never due, so it does nothing: with every=500 it would be at step 500, and 'net' ends at "
        "300; make every smaller, or let 'net' end later"
    )


def test_long_periods_cost_no_search(monkeypatch):
    made = learner({"every": 10**12}, {})
    asked = []
    real = Learner.due
    monkeypatch.setattr(Learner, "due", lambda self, step: asked.append(step) or real(self, step))
    (text,) = offline._never_due(made, 1000)
    assert "step 1,000,000,000,000 " in text and len(asked) == 2  # one a piece
