"""`init:`: parameter groups that start with what another run has trained."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from metarl import config
from metarl.envs import make_env
from metarl.errors import ConfigError
from metarl.training import checkpoints, offline
from metarl.training.evaluation import Evaluator
from metarl.training.folder import RunFolder
from metarl.training.progress import Silent
from metarl.training.setup import prepare

SOURCE = """
name: source
algorithm: {name: none}
objective: {name: por, hidden: [8, 8], execute_hidden: [8, 8], batch_size: 16, decay: false}
data:
  train: {recipe: pendulum/medium, size: 1000}
steps: 20
device: cpu
compile: "off"
log_every: 5
evaluation: {every: 40, episodes: 1}
checkpoint: {every: 10}
"""
FROZEN = ("name=frozen", "objective.train_execute=false")


@pytest.fixture
def load(tmp_path):
    """`load(*overrides, init={group: folder})`: the experiment."""

    def read(*overrides, init=None):
        file = tmp_path / "experiment.yaml"
        lines = [f"  {group}: {json.dumps(str(run))}\n" for group, run in (init or {}).items()]
        file.write_text(SOURCE + ("init:\n" + "".join(lines) if lines else ""))
        return config.load(file, overrides)

    return read


@pytest.fixture
def train(load, tmp_path):
    """`train(*overrides, init={}, seed=0, root="runs")`: trains, and returns the run's folder."""

    def run(*overrides, init=None, seed=0, root="runs"):
        return offline.train(load(*overrides, init=init), seed, tmp_path / root, Silent())

    return run


@pytest.fixture(scope="module")
def trained(made, tmp_path_factory):
    """The source's runs of seeds 0 and 1, as `<folder>/{seed}`; read, never changed."""
    root = tmp_path_factory.mktemp("sources")
    file = root / "source.yaml"
    file.write_text(SOURCE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(made))
        folders = [offline.train(config.load(file), seed, root / "runs", Silent()) for seed in (0, 1)]
    return folders[0].parent / "{seed}"


@pytest.fixture
def source(trained, tmp_path):
    """A copy of them that may be trained further: the folder of all seeds."""
    return shutil.copytree(trained.parent, tmp_path / "runs" / trained.parent.name) / "{seed}"


def of(run, seed):
    return type(run)(str(run).replace("{seed}", str(seed)))


def group(folder, name):
    """A group's tensors in the newest checkpoint."""
    saved = checkpoints.load_newest(folder / "checkpoint", pytest.fail)
    prefix = f"tree/{name}/"
    return {k.removeprefix(prefix): v for k, v in saved.tensors.items() if k.startswith(prefix)}


def same(ours, theirs):
    return ours.keys() == theirs.keys() and len(ours) > 0 and all(torch.equal(ours[k], v) for k, v in theirs.items())


def contents(folder):
    """Everything that must repeat."""
    saved = checkpoints.load_newest(folder / "checkpoint", pytest.fail)
    files = {name: (folder / name).read_bytes() for name in ("metrics.csv", "result.json")}
    record = {k: v for k, v in saved.record.items() if k in ("init", "data", "config_hash")}
    return files | {name: tensor.numpy().tobytes() for name, tensor in saved.tensors.items()} | {"record": record}


# -- what a run starts with ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_groups_start_bitwise_with_the_newest_checkpoint_of_their_seed(load, trained, seed):
    init = {"execute_policy": trained, "value": trained}
    setup, plain = prepare(load(init=init), seed), prepare(load(), seed)
    theirs = {name: group(of(trained, seed), name) for name in init}
    for name in init:
        assert same(setup.start.tree[name], theirs[name])
        assert not same(plain.start.tree[name], theirs[name])
    assert same(setup.start.tree["value_target"], theirs["value"])  # a follower is its source's copy
    assert not same(theirs["value"], group(of(trained, seed), "value_target"))
    assert same(setup.start.tree["guide_policy"], plain.start.tree["guide_policy"])
    assert checkpoints.load_newest(of(trained, seed) / "checkpoint", pytest.fail).step == 20
    for name in init:  # fresh moments: a group starts with values, not with an optimiser's memory
        opt = setup.start.opt[name]
        assert opt.count == 0 and all((m == 0).all() for m in opt.mu.values())


def test_one_seed_may_serve_all(load, trained):
    start = prepare(load(init={"execute_policy": of(trained, 1)}), 0).start
    assert same(start.tree["execute_policy"], group(of(trained, 1), "execute_policy"))


def test_a_follower_may_be_given_too(load, trained):
    tree = prepare(load(init={"value_target": trained}), 0).start.tree
    assert same(tree["value_target"], group(of(trained, 0), "value_target"))
    assert not same(tree["value"], tree["value_target"])


def test_the_runs_own_precision_is_kept(load, trained):
    start = prepare(load("precision=float64", init={"execute_policy": trained}), 0).start
    theirs = group(of(trained, 0), "execute_policy")
    assert all(p.dtype == torch.float64 for p in start.tree["execute_policy"].values())
    assert all(torch.equal(start.tree["execute_policy"][k], v.double()) for k, v in theirs.items())


def test_a_frozen_execute_policy_is_the_sources_at_the_end(train, trained):
    folder = train(*FROZEN, init={"execute_policy": trained})
    theirs = group(of(trained, 0), "execute_policy")
    assert same(group(folder, "execute_policy"), theirs)
    assert same(group(folder, "guide_policy"), group(of(trained, 0), "guide_policy"))  # apart: it does not notice
    free = train("name=free", init={"execute_policy": trained})
    assert not same(group(free, "execute_policy"), theirs)
    assert "execute_policy/loss" not in (folder / "metrics.csv").read_text()


def test_stacked_seeds_each_start_with_their_own(load, trained, tmp_path):
    experiment = load(*FROZEN, "seeds=[0,1]", "stack=2", init={"execute_policy": trained})
    folders = offline.train_stack(experiment, (0, 1), tmp_path / "runs", Silent())
    for seed, folder in enumerate(folders):
        assert same(group(folder, "execute_policy"), group(of(trained, seed), "execute_policy"))


def test_root_is_the_folder_that_the_run_lies_in(load, source, tmp_path):
    init = {"execute_policy": f"{{root}}/{source.parent.name}/{{seed}}"}
    experiment = load(*FROZEN, init=init)
    (folder,) = offline.train_stack(experiment, (1,), source.parents[1], Silent())
    assert same(group(folder, "execute_policy"), group(of(source, 1), "execute_policy"))
    whole = contents(folder)
    moved = source.parents[1].rename(tmp_path / "{seed}")  # what stands above the runs is taken as it is
    run = RunFolder(moved / folder.parent.name / "1")
    shutil.rmtree(sorted(run.checkpoints.glob("step-*"))[-1])
    assert offline.train(run.experiment(), 1, moved, Silent()) == run.path
    assert contents(run.path) == whole


def test_root_needs_a_folder(load, source):
    text = refused(load, {"execute_policy": f"{{root}}/{source.parent.name}/{{seed}}"})
    assert text.endswith(
        "{root} stands for the folder of this run's experiment, which has none here; write the path out"
    )


# -- mistakes ------------------------------------------------------------------------------------------------


def refused(load, init, *overrides, seed=0):
    with pytest.raises(ConfigError) as told:
        prepare(load(*overrides, init=init), seed)
    text = str(told.value)
    assert "\n" not in text and "experiment.yaml: init." in text
    return text


def test_a_run_that_is_not_there(load, trained):
    text = refused(load, {"execute_policy": trained}, seed=7)
    assert f"init.execute_policy: there is no run folder {of(trained, 7).absolute()}; train that run first" in text


def test_a_run_without_a_checkpoint(load, trained, tmp_path):
    text = refused(load, {"execute_policy": trained.parent})
    assert f"{trained.parent} has no checkpoint; name the folder of one seed, and train it first" in text
    (tmp_path / "0").mkdir()
    assert f"{tmp_path / '0'} has no checkpoint" in refused(load, {"execute_policy": tmp_path / "{seed}"})


def test_no_such_group_here(load, trained):
    text = refused(load, {"execute_polcy": trained})
    assert "init.execute_polcy: this learner has no such parameter group. Did you mean 'execute_policy'?" in text
    assert "no such parameter group" in refused(load, {"behaviour_guide": trained})


def test_no_such_group_there(load, trained):
    text = refused(load, {"behaviour_guide": trained}, "objective.form=v_guided")
    assert f"{of(trained, 0)} has no such group; it has execute_policy, guide_policy, value, value_target" in text


@pytest.mark.parametrize(
    "setting", ["objective.execute_hidden=[8,6]", "objective.execute_hidden=[8]", "objective.execute_hidden=[8,8,8]"]
)
def test_other_shapes(load, trained, setting):
    text = refused(load, {"execute_policy": trained}, setting)
    assert text.endswith("; give both runs the same networks")


def test_a_layer_norm_is_another_shape(load, trained):
    text = refused(load, {"value": trained}, "objective.layer_norm=true")
    assert "v1.norms.0.bias is missing there and [8] here" in text and text.endswith(
        "; give both runs the same networks"
    )


def test_observations_that_were_normalised_otherwise(load, train, trained):
    words = "saw observations normalised otherwise; train both with normalize=false, or on the same data.train"
    assert words in refused(load, {"execute_policy": trained}, "algorithm.normalize=true")
    normal = train("name=normal", "algorithm.normalize=true")
    init = {"execute_policy": normal}
    assert words in refused(load, init)
    assert words in refused(load, init, "algorithm.normalize=true", "data.train.episodes=3")
    start = prepare(load("algorithm.normalize=true", init=init), 0).start
    assert same(start.tree["execute_policy"], group(normal, "execute_policy"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("init: runs/x", "'init' must be a mapping, not 'runs/x'"),
        ("init: {value: 3}", "init.value must name a run folder, such as runs/<name>-<hash>/{seed}"),
        ("init: {value: [a, b]}", "init.value must name a run folder"),
        ("init:\n  value:", "init.value must name a run folder"),
        ("inti: {value: runs/x/0}", "unknown key 'inti'. Did you mean 'init'?"),
    ],
)
def test_what_is_no_run_folder_is_refused(tmp_path, text, words):
    file = tmp_path / "experiment.yaml"
    file.write_text(f"{SOURCE}{text}\n")
    with pytest.raises(ConfigError) as told:
        config.load(file)
    assert words in str(told.value) and str(told.value).startswith(str(file))


# -- a run that goes on --------------------------------------------------------------------------------------


def test_it_is_part_of_what_a_run_is(load, trained):
    plain, one = load(), load(init={"execute_policy": trained})
    other = load(init={"execute_policy": of(trained, 0)})
    assert len({plain.hash, one.hash, other.hash, load(init={"value": trained}).hash}) == 4
    assert "init" not in plain.resolved and one.resolved["init"] == {"execute_policy": str(trained)}


@pytest.mark.parametrize("step", [7, 13])  # before and after the first checkpoint
def test_a_killed_run_goes_on_to_the_same_files(train, trained, monkeypatch, step):
    init = {"execute_policy": trained, "value": trained}
    whole = contents(train(*FROZEN, init=init, root="whole"))
    real = offline._Loop._advance

    def advance(self):
        real(self)
        if self.step == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(offline._Loop, "_advance", advance)
        with pytest.raises(KeyboardInterrupt):
            train(*FROZEN, init=init)
    assert contents(train(*FROZEN, init=init)) == whole


def test_more_steps_extend_it(train, trained):
    init = {"execute_policy": trained}
    train(*FROZEN, init=init)
    longer = train(*FROZEN, "steps=40", init=init)
    assert contents(longer) == contents(train(*FROZEN, "steps=40", init=init, root="straight"))


def test_a_source_that_was_trained_further_is_seen(train, source):
    init = {"execute_policy": source, "value": source}
    folder = train(*FROZEN, init=init)
    before = contents(folder)
    assert train("steps=30") == of(source, 0)  # the same folder: the source goes on
    with pytest.raises(ConfigError) as told:
        train(*FROZEN, "steps=30", init=init)
    text = str(told.value)
    assert text.startswith("init.execute_policy has been trained further since this run was begun; to go on from ")
    assert str(folder) in text and "\n" not in text
    assert contents(folder) == before
    assert train(*FROZEN, "steps=30", init=init, seed=1) == folder.parent / "1"  # whose source rested


def test_a_finished_run_is_evaluated_without_its_source(train, source, tmp_path):
    folder = train(*FROZEN, init={"execute_policy": source})
    kept = group(folder, "execute_policy")
    shutil.rmtree(source.parent)
    policy, env, step = offline.load_policy(folder, pytest.fail)
    assert step == 20 and same(policy.tree["execute_policy"], kept)
    evaluator = Evaluator(lambda: make_env(env), 1, 0)
    found = evaluator(policy, step)
    evaluator.close()
    assert found.mean == json.loads((folder / "result.json").read_text())["evaluations"][-1]["returns"][0]
    assert RunFolder(folder).experiment().init == {"execute_policy": str(source)}


def test_the_record_names_what_it_started_with(train, trained):
    folder = train(*FROZEN, init={"execute_policy": trained})
    saved = checkpoints.load_newest(folder / "checkpoint", pytest.fail)
    assert saved.record["init"] == {"execute_policy": checkpoints.digest_of(group(of(trained, 0), "execute_policy"))}
    plain = checkpoints.load_newest(of(trained, 0) / "checkpoint", pytest.fail)
    assert "init" not in plain.record
    other = train("name=other", *FROZEN[1:], init={"execute_policy": of(trained, 1)})
    theirs = checkpoints.load_newest(other / "checkpoint", pytest.fail).record["init"]
    assert theirs.keys() == saved.record["init"].keys() and theirs != saved.record["init"]


def test_a_damaged_checkpoint_is_no_reason_to_take_the_one_before(load, source):
    newest = sorted(of(source, 0).glob("checkpoint/step-*"))[-1]
    (newest / "tensors.safetensors").write_bytes(b"damaged")
    text = refused(load, {"execute_policy": source})
    assert f"{newest} is corrupt" in text and text.endswith("; train that run again, or name another")
