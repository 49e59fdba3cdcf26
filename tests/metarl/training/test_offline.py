"""The offline loop: same numbers again, after a kill, and further on; loud when something is wrong."""

import dataclasses
import json
import random
import signal
import subprocess

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from algorithms.td3_bc import TD3BC
from metarl import Update, config, nn, sgd
from metarl.data import transitions
from metarl.errors import CheckpointError, ConfigError, DataError, DatasetUnavailable, NumericalError, UserError
from metarl.training import checkpoints, offline, setup
from metarl.training import run as training_run
from metarl.training.folder import RunFolder
from metarl.training.progress import Silent
from metarl.training.setup import prepare, resolve_device
from metarl.training.stepping import Stepping
from metarl.training.streams import Streams


class Listener(Silent):
    """Keeps what is said."""

    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


def contents(folder):
    """Everything that must repeat: metrics, probes, evaluations and every tensor of the last checkpoint."""
    saved = checkpoints.load_newest(folder / "checkpoint", pytest.fail)
    return {
        "metrics": (folder / "metrics.csv").read_bytes(),
        "probes": (folder / "probes.jsonl").read_bytes(),
        "result": (folder / "result.json").read_bytes(),
        "step": saved.step,
        "tensors": {name: value.numpy().tobytes() for name, value in saved.tensors.items()},
    }


def test_a_run_writes_what_it_promises(run):
    folder = run()
    lines = (folder / "metrics.csv").read_text().splitlines()
    assert lines[0] == "step,metric,value"
    names = {line.split(",")[1] for line in lines[1:]}
    assert {
        "critic/loss",
        "actor/b_mean",
        "guiding_network/hypergradient_norm",
        "guiding_network/params_moved",
    } <= names
    assert {"evaluation/return", "guiding_network/output_moved"} <= names
    result = json.loads((folder / "result.json").read_text())
    assert [e["step"] for e in result["evaluations"]] == [0, 20, 40, 60]
    assert all(len(e["returns"]) == 2 and e["lengths"] == [200, 200] for e in result["evaluations"])
    assert set(result["data"]) == {"train", "guide"} and len(result["data"]["train"]["sha256"]) == 64
    probe = json.loads((folder / "probes.jsonl").read_text().splitlines()[-1])
    assert probe["step"] == 60 and len(probe["curve"]) == len(probe["grid"]) == 64
    assert sum(probe["outputs"]["counts"]) == 16
    assert any((folder / "tensorboard").iterdir())


def test_same_seed_same_bits_and_another_seed_others(run):
    first, second, other = run(root="a"), run(root="b"), run(root="c", seed=1)
    assert contents(first) == contents(second)
    assert contents(first)["tensors"] != contents(other)["tensors"]


def test_killed_three_times_it_ends_with_the_same_bits(run, command, tmp_path):
    whole = contents(run())
    rng, codes = random.Random(0), []
    for _ in range(3):
        child = subprocess.Popen(
            [*command, str(tmp_path / "killed")], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        stop_at = rng.randrange(1, 55)
        for line in child.stdout:
            if json.loads(line).get("done", 0) >= stop_at:
                child.send_signal(signal.SIGKILL)
        codes.append(child.wait())
        child.stdout.close()
    assert codes.count(-signal.SIGKILL) >= 2
    subprocess.run([*command, str(tmp_path / "killed")], check=True, capture_output=True)
    (killed,) = (tmp_path / "killed").glob("small-*/0")
    assert contents(killed) == whole


def test_files_written_after_the_last_checkpoint_are_cut_off(run, monkeypatch):
    whole = contents(run(root="whole"))
    real = offline._Loop._advance

    def die_at_57(self):
        real(self)
        if self.step == 57:
            raise KeyboardInterrupt

    monkeypatch.setattr(offline._Loop, "_advance", die_at_57)
    with pytest.raises(KeyboardInterrupt):
        run(root="cut")
    monkeypatch.undo()
    folder = run(root="cut")
    assert contents(folder) == whole


def test_more_steps_extend_a_run(run):
    run("steps=40", root="grown")
    assert contents(run(root="grown")) == contents(run(root="whole"))
    again = run(root="grown")
    assert contents(again) == contents(run(root="whole"))


def test_normalisation_travels_with_the_checkpoint(run):
    folder = run()
    policy, _, step = offline.load_policy(folder)
    assert step == 60
    data = transitions.Statistics.of(prepare(RunFolder(folder).experiment(), 0).data["train"])
    raw = np.array([[0.5, -0.5, 3.0]])
    action, _ = policy(raw)
    normalised = (torch.tensor(raw, dtype=torch.float32) - data.mean) / (data.std + 1e-3)
    expected, _ = policy.learner.act(policy.tree, normalised.float(), None, None, True)
    assert np.array_equal(action, expected.numpy())
    unnormalised, _ = policy.learner.act(policy.tree, torch.tensor(raw).float(), None, None, True)
    assert not np.array_equal(action, unnormalised.numpy())


def test_a_corrupt_checkpoint_costs_only_the_steps_since_the_previous_one(run, tmp_path):
    whole = contents(run(root="whole"))
    folder = run(root="hurt")
    (folder / "checkpoint" / "step-000000060" / "tensors.safetensors").write_bytes(b"nonsense")
    listener = Listener()
    assert contents(run(root="hurt", reporter=listener)) == whole
    assert "step-000000060 is corrupt" in listener.said[0] and "going on from step 40" in listener.said[1]


def test_all_checkpoints_corrupt_stops_before_anything_is_overwritten(run):
    folder = run()
    before = (folder / "metrics.csv").read_bytes()
    for file in folder.glob("checkpoint/*/state.json"):
        file.write_text("{}")
    with pytest.raises(CheckpointError, match="no checkpoint is whole"):
        run()
    assert (folder / "metrics.csv").read_bytes() == before


def test_an_edited_folder_is_refused(run):
    folder = run()
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("alpha: 2.5", "alpha: 2.0"))
    with pytest.raises(ConfigError, match="differs from this experiment in 'algorithm'"):
        run()


def test_other_data_under_the_same_name_is_refused(run, monkeypatch):
    run("steps=20")
    real = setup.data.load

    def other(source, generator, role, folder=None):
        loaded = real(source, generator, role, folder=folder)
        return loaded.sample_tuples(900, torch.Generator().manual_seed(1)) if role == "train" else loaded

    monkeypatch.setattr(setup.data, "load", other)
    with pytest.raises(DataError, match=r"data\.train has changed since this run was begun"):
        run()


def test_two_processes_cannot_train_one_run(run, yaml, tmp_path):
    experiment = config.load(yaml)
    with RunFolder.of(experiment, 0, tmp_path / "runs").held(), pytest.raises(UserError, match="another process"):
        run()


def poisoned(monkeypatch, step, column, value):
    """From `step` on, one number of every training batch is `value`."""
    real = Streams.batches

    def batches(self, at, due=None):
        drawn = real(self, at)
        if at >= step:
            drawn["train"] = {**drawn["train"], column: drawn["train"][column].clone()}
            drawn["train"][column].view(-1)[0] = value
        return drawn

    monkeypatch.setattr(Streams, "batches", batches)


def test_numbers_that_become_infinite_stop_the_run_and_keep_what_was_saved(run, monkeypatch, tmp_path):
    poisoned(monkeypatch, 25, "reward", float("inf"))
    with pytest.raises(
        NumericalError, match=r"at or before step 25: .*critic.*NaN or infinite.*What was saved before is"
    ):
        run()
    (folder,) = (tmp_path / "runs").glob("small-*/0")
    assert checkpoints.load_newest(folder / "checkpoint", pytest.fail).step == 20
    monkeypatch.undo()
    assert contents(run()) == contents(run(root="whole"))


def test_a_parameter_that_becomes_nan_is_seen_though_no_loss_is(run, monkeypatch):
    real = Stepping.__call__

    def step(self, batches, due):
        metrics = real(self, batches, due)
        for value in self.state.tree["critic_target"].values():
            value.fill_(float("nan"))
        return metrics

    monkeypatch.setattr(Stepping, "__call__", step)
    with pytest.raises(NumericalError, match=r"at or before step 1: .*critic_target became NaN"):
        run("log_every=1")


def test_flags_are_read_before_every_checkpoint(run, monkeypatch, tmp_path):
    poisoned(monkeypatch, 38, "reward", float("nan"))
    with pytest.raises(NumericalError, match="at or before step 40"):
        run("log_every=20")
    (folder,) = (tmp_path / "runs").glob("small-*/0")
    assert checkpoints.load_newest(folder / "checkpoint", pytest.fail).step == 20
    with pytest.raises(NumericalError):
        run("log_every=20", "evaluation.every=40", "checkpoint.every=20", "steps=39", root="last")
    assert not list((tmp_path / "last").glob("small-*/0/checkpoint/*39"))


def test_a_hypergradient_that_stays_zero_warns_then_stops(run, monkeypatch):
    monkeypatch.setattr(training_run, "ZERO_WARN", 3)
    monkeypatch.setattr(training_run, "ZERO_STOP", 12)
    listener = Listener()
    with pytest.raises(NumericalError, match=r"'guiding_network'.* exactly zero 1\d times in a row.* learns nothing"):
        run("objective.virtual={name: sgd, lr: 0.0}", reporter=listener, root="zero")
    assert [text for text in listener.said if "exactly zero" in text] == [
        "warning: update 'guiding_network' (group 'guiding_network'): its hypergradient was exactly zero 5 times in a "
        "row, so it learns nothing; check what its losses depend on (metarl check)"
    ]


def test_a_parameter_that_reaches_no_loss_is_found_before_anything_is_written(run, monkeypatch, tmp_path):
    real = TD3BC.build

    def build(self, spec, generator):
        learner = real(self, spec, generator).with_modules(lost=nn.Linear(1, 1, generator))
        return learner.with_stage_before(
            "actor", Update("lost", "lost", lambda t, b: b["train"]["obs"].sum(), sgd(1.0))
        )

    monkeypatch.setattr(TD3BC, "build", build)
    with pytest.raises(ConfigError, match="'lost' do not reach its loss"):
        run()
    assert not (tmp_path / "runs").exists()


def test_a_run_killed_after_its_last_checkpoint_still_gets_its_result(run, monkeypatch):
    whole = contents(run(root="whole"))

    def die(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(training_run, "write_json", die)
    with pytest.raises(KeyboardInterrupt):
        run(root="late")
    monkeypatch.undo()
    assert contents(run(root="late")) == whole


# After 24, the row of step 25 holds what the policy said at 24.
@pytest.mark.parametrize("first", [23, 24])
def test_a_run_extended_from_off_the_schedule_equals_one_that_went_straight(run, first):
    folder = run(f"steps={first}", root="grown")
    assert json.loads((folder / "result.json").read_text())["evaluations"][-1]["step"] == first
    events = len(list((folder / "tensorboard").iterdir()))
    run(f"steps={first}", root="grown")
    assert len(list((folder / "tensorboard").iterdir())) == events
    assert contents(run(root="grown")) == contents(run(root="whole"))


def test_a_metrics_file_that_was_cut_short_is_refused(run):
    folder = run("steps=40")
    (folder / "metrics.csv").unlink()
    with pytest.raises(CheckpointError, match=r"metrics\.csv is shorter than at the checkpoint of step 40"):
        run()


def test_a_plug_in_that_has_changed_is_refused(run, yaml):
    plugin = yaml.with_name("mine.py")
    plugin.write_text("from objectives.fixed import Fixed\n\n\nclass Mine(Fixed):\n    pass\n")
    yaml.write_text(yaml.read_text().replace("{name: gorl, preset: quick, batch_size: 5}", "{name: 'mine:Mine'}"))
    run("steps=20")
    plugin.write_text(plugin.read_text() + "# changed\n")
    with pytest.raises(ConfigError, match=r"the file of 'mine:Mine' has changed since this run was begun"):
        run()


def test_what_the_meta_signals_say(run):
    folder = run()
    rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()[1:]]
    values = {(int(step), name): float(value) for step, name, value in rows}
    states = {
        step: checkpoints.unflatten(
            prepare(RunFolder(folder).experiment(), 0).start.tree,
            {
                k.removeprefix("tree/"): v
                for k, v in checkpoints._load(folder / "checkpoint" / f"step-{step:09d}").tensors.items()
                if k.startswith("tree/")
            },
            "",
        )
        for step in (40, 60)
    }
    ready = prepare(RunFolder(folder).experiment(), 0)
    for step, tree in states.items():
        now, start = tree["guiding_network"], ready.start.tree["guiding_network"]
        moved = sum(float((now[k] - start[k]).double().square().sum()) for k in now) ** 0.5
        assert values[step, "guiding_network/params_moved"] == pytest.approx(moved, rel=1e-4) and moved > 0
        probe = ready.learner.probes["guiding_network"]
        signal, b = probe.sample(tree, ready.streams.batches(step))
        before = probe.curve(ready.start.tree, signal)
        assert values[step, "guiding_network/output_moved"] == pytest.approx(float((b - before).abs().mean()), rel=1e-4)
        assert values[step, "guiding_network/output_mean"] == pytest.approx(float(b.mean()), rel=1e-5)
    evaluation = json.loads((folder / "result.json").read_text())["evaluations"][-1]["returns"]
    assert values[60, "evaluation/return_std"] == pytest.approx(float(np.std(evaluation)))


def test_tensorboard_holds_each_step_once_after_a_kill(run, monkeypatch):
    real = offline._Loop._advance

    def die_at_13(self):
        real(self)
        if self.step == 13:
            raise KeyboardInterrupt

    monkeypatch.setattr(offline._Loop, "_advance", die_at_13)
    with pytest.raises(KeyboardInterrupt):
        run()
    monkeypatch.undo()
    folder = run()
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0, "histograms": 0})
    events.Reload()
    assert [e.step for e in events.Scalars("critic/loss")] == list(range(5, 61, 5))
    assert [e.step for e in events.Images("guiding_network/curve")] == [0, 20, 40, 60]
    assert [e.step for e in events.Histograms("guiding_network/output")] == [0, 20, 40, 60]


def test_missing_and_misfitting_data(run, yaml, tmp_path):
    with pytest.raises(DatasetUnavailable, match=r"experiment\.yaml: data\.train.*metarl data make pendulum/medium"):
        run("data.train.size=800")
    yaml.write_text(yaml.read_text().replace("  guide:", "  giude:"))
    with pytest.raises(ConfigError, match=r"needs data\.guide .* and has train, giude"):
        run()
    assert not (tmp_path / "runs").exists()


def test_guide_data_of_another_shape(run, monkeypatch):
    real = setup.data.load

    def other(source, generator, role, folder=None):
        loaded = real(source, generator, role, folder=folder)
        if role != "guide":
            return loaded
        wide = loaded.obs.repeat(1, 2).numpy()
        return transitions.pack(
            obs=wide,
            action=loaded.action.numpy(),
            reward=loaded.reward.numpy(),
            next_obs=wide,
            terminated=loaded.terminated.numpy(),
            truncated=loaded.truncated.numpy(),
            episode_starts=loaded.episode_starts.numpy(),
            card=loaded.card,
        )

    monkeypatch.setattr(setup.data, "load", other)
    with pytest.raises(DataError, match=r"data\.guide has observations of 6 .* data\.train 3"):
        run()


def test_guide_data_of_another_environment(run, monkeypatch):
    real = setup.data.load

    def other(source, generator, role, folder=None):
        loaded = real(source, generator, role, folder=folder)
        card = dataclasses.replace(loaded.card, env_id="Elsewhere-v0")
        return dataclasses.replace(loaded, card=card) if role == "guide" else loaded

    monkeypatch.setattr(setup.data, "load", other)
    with pytest.raises(DataError, match=r"data\.guide comes from Elsewhere-v0, data\.train from Pendulum-v1"):
        run()


def test_a_period_that_is_no_multiple_names_the_file(run):
    with pytest.raises(ConfigError, match=r"experiment\.yaml: update 'guiding_network': every=3 is no multiple"):
        run("objective.every=3")


def test_a_gpu_that_is_not_there():
    if torch.cuda.is_available():
        assert resolve_device("cuda").type == "cuda"
    else:
        with pytest.raises(ConfigError, match="no GPU"):
            resolve_device("cuda")
    assert resolve_device("cpu").type == "cpu"


def test_statistics_of_the_guide_data_are_a_choice(yaml):
    rows = {}
    for which in ("train", "guide"):
        experiment = config.load(yaml, [f"objective.statistics={which}"])
        rows[which] = prepare(experiment, 0).streams.batches(1)["guide"]["obs"]
    ready = prepare(config.load(yaml), 0)
    by_train, by_guide = (transitions.Statistics.of(ready.data[name]) for name in ("train", "guide"))
    raw = rows["train"] * (by_train.std + 1e-3) + by_train.mean
    torch.testing.assert_close(by_guide(raw).float(), rows["guide"])
    assert not torch.allclose(rows["train"], rows["guide"])
