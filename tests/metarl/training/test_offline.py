"""The offline loop: same numbers again, after a kill, and further on; loud when something is wrong."""

import json
import random
import shutil
import signal
import subprocess

import numpy as np
import pytest
import torch

from metarl import config
from metarl.data import transitions
from metarl.errors import CheckpointError, ConfigError, DataError, DatasetUnavailable, NonFiniteError, UserError
from metarl.training import checkpoints, offline
from metarl.training.folder import RunFolder


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
    rng = random.Random(0)
    for _ in range(3):
        child = subprocess.Popen(
            [*command, str(tmp_path / "killed")], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        stop_at = rng.randrange(1, 55)
        for line in child.stdout:
            if json.loads(line).get("done", 0) >= stop_at:
                child.send_signal(signal.SIGKILL)
        assert child.wait() in (-signal.SIGKILL, 0)
        child.stdout.close()
    subprocess.run([*command, str(tmp_path / "killed")], check=True, capture_output=True)
    (killed,) = (tmp_path / "killed").glob("small-*/0")
    assert contents(killed) == whole


def test_files_written_after_the_last_checkpoint_are_cut_off(run, monkeypatch):
    whole = contents(run(root="whole"))
    real = offline._Run._advance

    def die_at_57(self):
        real(self)
        if self.step == 57:
            raise KeyboardInterrupt

    monkeypatch.setattr(offline._Run, "_advance", die_at_57)
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
    data = transitions.Statistics.of(offline.prepare(RunFolder(folder).experiment(), 0).data["train"])
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
    said = []

    class Listener(offline.Reporter):
        def start(self, *args): ...
        def update(self, *args, **figures): ...
        def stop(self): ...
        def say(self, text):
            said.append(text)

    assert contents(run(root="hurt", reporter=Listener())) == whole
    assert "step-000000060 is corrupt" in said[0] and "going on from step 40" in said[1]


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
    real = offline.data.load

    def other(source, generator, role, folder=None):
        loaded = real(source, generator, role, folder=folder)
        return loaded.sample_tuples(900, torch.Generator().manual_seed(1)) if role == "train" else loaded

    monkeypatch.setattr(offline.data, "load", other)
    with pytest.raises(DataError, match=r"data\.train is not what .* was trained on"):
        run()


def test_two_processes_cannot_train_one_run(run, yaml, tmp_path):
    experiment = config.load(yaml)
    with RunFolder.of(experiment, 0, tmp_path / "runs").held(), pytest.raises(UserError, match="another process"):
        run()


def test_a_loss_that_becomes_infinite_stops_the_run_and_keeps_the_last_checkpoint(run, tmp_path):
    run("steps=20", "algorithm.critic_optimizer={name: sgd, lr: 0.01}")
    (folder,) = (tmp_path / "runs").glob("small-*/0")
    with pytest.raises(
        NonFiniteError, match=r"critic.*NaN or infinite at or before step \d+; the last checkpoint is kept"
    ):
        run("algorithm.critic_optimizer={name: sgd, lr: 1e30}")
    shutil.rmtree(folder / "tensorboard")
    assert checkpoints.load_newest(folder / "checkpoint", pytest.fail).step == 20


def test_missing_and_misfitting_data(run, yaml, tmp_path):
    with pytest.raises(DatasetUnavailable, match=r"data\.train.*metarl data make pendulum/medium"):
        run("data.train.size=800")
    yaml.write_text(yaml.read_text().replace("  guide:", "  giude:"))
    with pytest.raises(ConfigError, match=r"needs data\.guide .* and has train, giude"):
        run()
    assert not (tmp_path / "runs").exists()


def test_guide_data_of_another_shape(run, monkeypatch):
    real = offline.data.load

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

    monkeypatch.setattr(offline.data, "load", other)
    with pytest.raises(DataError, match=r"data\.guide has observations of 6 .* data\.train 3"):
        run()


def test_a_period_that_is_no_multiple_names_the_file(run):
    with pytest.raises(ConfigError, match=r"experiment\.yaml: update 'guiding_network': every=3 is no multiple"):
        run("objective.every=3")


def test_a_gpu_that_is_not_there():
    if torch.cuda.is_available():
        assert offline.resolve_device("cuda").type == "cuda"
    else:
        with pytest.raises(ConfigError, match="no GPU"):
            offline.resolve_device("cuda")
    assert offline.resolve_device("cpu").type == "cpu"


def test_statistics_of_the_guide_data_are_a_choice(yaml):
    rows = {}
    for which in ("train", "guide"):
        experiment = config.load(yaml, [f"objective.statistics={which}"])
        rows[which] = offline.prepare(experiment, 0).streams.batches(1)["guide"]["obs"]
    setup = offline.prepare(config.load(yaml), 0)
    by_train, by_guide = (transitions.Statistics.of(setup.data[name]) for name in ("train", "guide"))
    raw = rows["train"] * (by_train.std + 1e-3) + by_train.mean
    torch.testing.assert_close(by_guide(raw).float(), rows["guide"])
    assert not torch.allclose(rows["train"], rows["guide"])
