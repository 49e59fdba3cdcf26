"""A contestant's process: it answers in JSON lines whatever it prints, and its end is told with its last words."""

import json
import sys

import pytest

from benchmarks.speed import ours, rival_corl
from benchmarks.speed.client import Worker, WorkerDied
from benchmarks.speed.comparisons import COMPARISONS, LEARNED
from benchmarks.speed.rounds import side_by_side
from benchmarks.speed.settings import Settings
from metarl.errors import UserError

TINY = Settings.quick().options()
FAKE = """
import os
import d4rl, gym, pyrallis, wandb

class TrainConfig:
    def __getattr__(self, name):
        return 1.0

@pyrallis.wrap()
def train(env: gym.Env):
    pass

def set_seed(seed):
    print("printed by Python")
    os.write(1, b"printed below Python")

class Net(__import__("torch").nn.Linear):
    def __init__(self, *sizes, **settings):
        super().__init__(1, 1)

Actor = Critic = TwinQ = ValueFunction = GaussianPolicy = FullyConnectedQFunction = TanhGaussianPolicy = Net

class Trainer:
    def __init__(self, device, discount, **settings):
        assert (device, discount) == ("cpu", 1.0)
        self.steps = 0

    def train(self, batch):
        self.steps += 1
        print("step", self.steps)
        if self.steps > 10:
            raise RuntimeError("the eleventh step fails")

TD3_BC = ImplicitQLearning = ContinuousCQL = Trainer

class ReplayBuffer:
    def __init__(self, *sizes):
        pass

    def load_d4rl_dataset(self, data):
        assert len(data["observations"]) == 2000

    def sample(self, n):
        return []
"""


@pytest.fixture
def checkout(tmp_path):
    """A folder that is laid out as CORL is, whose trainers print, and fail at their eleventh step."""
    folder = tmp_path / "algorithms" / "offline"
    folder.mkdir(parents=True)
    for name in rival_corl.TRAINERS:
        (folder / name).write_text(FAKE)
    return tmp_path


@pytest.mark.parametrize(
    ("module", "options", "per_call"),
    [("plain", {}, 1), ("ours", {"question": "step", "mode": "recorded", "stack": 4}, 4)],
)
def test_a_worker_takes_the_steps_that_it_is_asked_for(module, options, per_call):
    with Worker(module, sys.executable, module, {**TINY, **options}) as worker:
        ready = worker.ready()
        assert ready["parts"] == ["step"] and ready["setup_cpu_s"] > 0
        assert {"torch"} <= set(ready["facts"]["versions"])
        for steps in (2, 6):
            took = worker.run(steps)
            assert took["steps"] == -(-steps // per_call) * per_call
            assert took["cpu_s"] > 0 and took["wall_s"] > 0
    assert worker._process.returncode == 0


@pytest.mark.parametrize("file", rival_corl.TRAINERS)
def test_a_trainer_of_corl_is_made_and_called(checkout, file, monkeypatch):
    for name in ("d4rl", "gym", "pyrallis", "wandb", f"rival_{file.removesuffix('.py')}"):
        monkeypatch.setitem(sys.modules, name, None)  # to be put back: what is loaded stays there
    parts, facts = rival_corl.prepare({**TINY, "checkout": str(checkout), "file": file})
    assert parts["step"](10) == 10 and len(facts["sha256"]) == 64
    with pytest.raises(RuntimeError, match="the eleventh step fails"):
        parts["step"](1)


@pytest.mark.parametrize("algorithm", [variant for each in COMPARISONS.values() for variant in each.variants])
@pytest.mark.parametrize("gorl", [False, True])
def test_a_variant_takes_steps(algorithm, gorl):
    options = {**TINY, "algorithm": algorithm}
    contestant = ours.Metarl(options, ours.transitions(options), gorl)
    assert contestant.run(2) == 2
    every = {True: {"policy", "weighted", "guided"}, False: {"critic", "policy", "weighted", "guided"}}
    parts, _ = ours._gorl({**options, "mode": "eager", "whole": False})
    assert set(parts) == every[algorithm in ("iql", "iql_corl", "cql")]
    assert contestant.learner.due(2) == frozenset(contestant.learner.updates)


@pytest.mark.parametrize("algorithm", [variant for each in LEARNED.values() for variant in each.variants])
def test_a_learned_loss_takes_steps_on_a_full_replay_and_few_demonstrations(algorithm):
    options = {**TINY, "algorithm": algorithm, "demos": 5}
    data = ours.transitions(options)
    contestant = ours.Metarl(options, data)
    (streams,) = contestant.streams
    batches = streams.batches(1)
    assert streams.live and contestant.run(2) == 2
    assert _rows(batches["train"]["obs"]) <= _rows(data.obs)
    assert ("demo" in batches) == ("il" in algorithm)
    if "demo" in batches:
        assert _rows(batches["demo"]["obs"]) <= _rows(data.obs[:5])
    group = contestant.stepping.state.tree.get("loss_network")
    assert (group is None) == (algorithm == "td3" or "rl_il" in algorithm)


def _rows(values):
    return set(map(tuple, values.tolist()))


def test_an_objective_that_is_not_there():
    with pytest.raises(ValueError, match="no objective is called 'gail'"):
        ours.objective({**TINY, "algorithm": "td3+gail"})


def test_what_algorithms_for_environments_learn_from_is_the_whole_replay():
    data = ours.transitions(TINY)
    full = ours.replay(data)
    assert len(full) == full.capacity == len(data) and full.rows.equal(data.rows) and full.rows is not data.rows


def test_a_whole_run_tells_what_it_cost_and_how_its_steps_were_prepared():
    options = {**TINY, "env": "metarl/SparseNavigation-v0", "seed": 0}
    facts = {}
    for share in (0.0, TINY["warm_start"]):
        with Worker("whole", sys.executable, "whole", {**options, "warm_start": share}) as worker:
            facts[share] = worker.ready()["facts"]
        assert 0 <= facts[share]["preparing_cpu_s"] <= facts[share]["cpu_s"]
        assert facts[share]["gradient_steps"] == TINY["whole_steps"] * 19 // 20
    plain, gild = (set(each["modes"]) for each in facts.values())
    alone = "actor, actor_target, critic, critic_target"
    assert plain == {"critic", alone}
    assert gild == {"critic", f"{alone}, loss_network", alone.replace("actor,", "actor_after,")}


def test_workers_that_stand_still_in_turns_both_get_ready():
    with (
        Worker("one", sys.executable, "floor", {**TINY, "engine": "mm"}) as one,
        Worker("other", sys.executable, "floor", {**TINY, "engine": "mm"}) as other,
    ):
        told = side_by_side({"one": one, "other": other}, slice_s=0.05)
        assert told == {"one": one.ready(), "other": other.ready()} and all(
            each["parts"] == ["step"] for each in told.values()
        )
        assert one.run(2)["steps"] == other.run(2)["steps"] == 2  # neither stands still any more


def test_the_variants_are_what_the_page_calls_them():
    iql, corl, cql = (ours.algorithm({**TINY, "algorithm": name}) for name in ("iql", "iql_corl", "cql"))
    assert (iql.order, corl.order) == ("official", "corl") and iql.actor_decay and corl.actor_decay
    assert (cql.hidden, cql.samples, cql.bc_steps, cql.min_q_version) == ((16, 16, 16), 2, 0, 3)
    full = ours.algorithm({**Settings().options(), "algorithm": "cql"})
    assert (full.hidden, full.samples, full.batch_size) == ((256, 256, 256), 10, 256)
    with pytest.raises(ValueError, match="no algorithm is called 'ppo'"):
        ours.algorithm({**TINY, "algorithm": "ppo"})


def test_what_a_contestant_prints_does_not_disturb_and_its_last_words_are_told(checkout):
    with Worker("corl", sys.executable, "rival_corl", {**TINY, "checkout": str(checkout)}) as worker:
        assert len(worker.ready()["facts"]["sha256"]) == 64
        assert worker.run(4)["steps"] == 4
        with pytest.raises(WorkerDied, match="corl: its process ended with status 1") as died:
            worker.run(20)
    assert "RuntimeError: the eleventh step fails" in str(died.value)


def test_a_worker_that_never_gets_ready():
    with Worker("nobody", sys.executable, "nobody", TINY) as worker, pytest.raises(WorkerDied, match="No module named"):
        worker.ready()


def test_an_interpreter_that_is_not_there():
    with pytest.raises(UserError, match="no/python cannot be started"):
        Worker("corl", "no/python", "rival_corl", TINY)


def test_the_options_survive_as_json():
    assert json.loads(json.dumps(TINY))["hidden"] == [16, 16]
