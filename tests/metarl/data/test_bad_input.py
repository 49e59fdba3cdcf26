"""Bad input, walked line by line: one clear line, exit code 2, and nothing lost or overwritten."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest

from metarl import cli
from metarl.data import importing
from metarl.data import minari as store
from metarl.data.files import export_file
from metarl.data.minari import load_minari
from metarl.data.recipes import make_dataset
from metarl.training import checkpoints

EXPERIMENT = {
    "name": "small",
    "algorithm": {"name": "bc", "hidden": [4], "batch_size": 8},
    "data": {"train": {"recipe": "pendulum/expert", "size": 400}},
    "steps": 2,
    "log_every": 1,
    "evaluation": {"every": 2, "episodes": 1},
    "device": "cpu",
}
GUIDED = {
    "algorithm": {"name": "td3_bc", "hidden": [4], "batch_size": 8},
    "objective": {"name": "gorl", "preset": "quick", "batch_size": 5},
}
OURS = (".lock", "metarl_rows.npz")  # files of ours that may come and go


class Place:
    """A folder with an experiment, datasets and files, and the command line run in it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
        self.folder, self.monkeypatch, self.capsys = folder, monkeypatch, capsys
        self.held: TextIO | None = None

    def experiment(self, train=None, guide=None, text=None, **changed) -> list[str]:
        """Writes the experiment; returns the arguments that train it."""
        content = {**EXPERIMENT, **changed}
        if train is not None:
            content["data"] = {"train": train}
        if guide is not None:
            content |= GUIDED
            content["data"] = {**content["data"], "guide": guide}
        (self.folder / "experiment.yaml").write_text(text or json.dumps(content))
        return ["train", "experiment.yaml", "--progress", "none"]

    def columns(self) -> dict[str, np.ndarray]:
        """Two Pendulum episodes of 200 rows, as a file has them."""
        path = self.folder / "made.npz"
        export_file(make_dataset("pendulum/expert", 400).transitions, path, overwrite=True)
        with np.load(path) as stored:
            columns = {key: stored[key] for key in stored.files if key != "metarl"}
        path.unlink()
        return columns

    def npz(self, **changed) -> dict[str, str]:
        """Writes rows.npz with some columns changed, None leaving one out; returns the entry that names it."""
        columns = {key: value for key, value in {**self.columns(), **changed}.items() if value is not None}
        np.savez(self.folder / "rows.npz", **columns)
        return {"file": "rows.npz", "env": "Pendulum-v1"}

    def hdf5(self, leave_out=()) -> dict[str, str]:
        """The same as hdf5."""
        with h5py.File(self.folder / "rows.hdf5", "w") as file:
            for key, value in self.columns().items():
                if key not in leave_out:
                    file[key] = value
        return {"file": "rows.hdf5", "env": "Pendulum-v1"}

    def content(self) -> dict[Path, bytes]:
        """Every file below the folder, but for what may come and go."""
        paths = [path for path in self.folder.rglob("*") if path.is_file() and not path.name.endswith(OURS)]
        return {path.relative_to(self.folder): path.read_bytes() for path in paths}

    def hold(self, path: Path) -> None:
        """Locks a file as another process would, until the test ends."""
        self.held = path.open("w")
        fcntl.flock(self.held, fcntl.LOCK_EX)

    def call(self, arguments: list[str]) -> tuple[int, str]:
        """The exit code, and what standard error holds."""
        self.monkeypatch.setattr(sys, "argv", ["metarl", *arguments])
        self.capsys.readouterr()
        try:
            cli.main()
        except SystemExit as stop:
            return int(stop.code or 0), self.capsys.readouterr().err
        raise AssertionError("the command line always exits")


@pytest.fixture
def place(tmp_path, monkeypatch, capsys, minari_root) -> Iterator[Place]:
    monkeypatch.chdir(tmp_path)
    make_dataset("pendulum/expert", 400)
    made = Place(tmp_path, monkeypatch, capsys)
    yield made
    if made.held is not None:
        made.held.close()


# ---- the table: what is wrong -> the arguments that run into it, and what the line must say

CASES: dict[str, tuple[Callable[[Place], list[str]], str]] = {}


def case(says: str):
    """Registers a line of the table under its function's name."""

    def add(build: Callable[[Place], list[str]]):
        CASES[build.__name__] = (build, says)
        return build

    return add


@case(r"data\.train\.minari: .* not on this machine; run: metarl data import mujoco/hopper/expert-v0")
def absent_dataset(place):
    return place.experiment(train={"minari": "mujoco/hopper/expert-v0"})


@case(r"data\.train\.recipe: .* run: metarl data make pendulum/expert --size 800 --seed 0")
def absent_recipe_data(place):
    return place.experiment(train={"recipe": "pendulum/expert", "size": 800})


@case(r"data\.train\.file: there is no file 'none\.npz'")
def absent_file(place):
    return place.experiment(train={"file": "none.npz"})


@case(r"there is no file 'none\.npz'")
def absent_file_inspected(place):
    return ["data", "inspect", "none.npz"]


@case(r"HF_HUB_OFFLINE is set\); with a network, run: metarl data import mujoco/hopper/expert-v0")
def no_network_since_it_is_switched_off(place):
    return place.experiment(train={"minari": "mujoco/hopper/expert-v0", "remote": True})


@case(r"no network: http://127\.0\.0\.1:9: .*run: metarl data import mujoco/hopper/expert-v0")
def no_network_connection_refused(place):
    place.monkeypatch.delenv("HF_HUB_OFFLINE")
    place.monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    place.monkeypatch.setenv("no_proxy", "127.0.0.1")
    return ["data", "import", "mujoco/hopper/expert-v0"]


@case(r"data\.train\.minari: 'mujoco/hopper' is no Minari dataset id; it must be \(namespace/\)name-vN")
def malformed_id(place):
    return place.experiment(train={"minari": "mujoco/hopper"})


@case(r"'\.\./hopper-v0' is no Minari dataset id")
def malformed_id_to_download(place):
    return ["data", "import", "../hopper-v0"]


@case(r"data\.train has observations of 4 and actions of 1 numbers, Pendulum-v1 3 and 1")
def another_observation_shape(place):
    obs = np.zeros((400, 4), np.float32)
    return place.experiment(train=place.npz(observations=obs, next_observations=obs))


@case(r"data\.train has observations of 3 and actions of 2 numbers, Pendulum-v1 3 and 1")
def another_action_shape(place):
    return place.experiment(train=place.npz(actions=np.zeros((400, 2), np.float32)))


@case(r"data\.guide has observations of 3 and actions of 2 numbers, data\.train 3 and 1")
def guide_of_another_action_shape(place):
    return place.experiment(guide=place.npz(actions=np.zeros((400, 2), np.float32)))


@case(r"file 'rows\.npz' has observations of 3 and actions of 2 numbers, Pendulum-v1 3 and 1")
def another_action_shape_imported(place):
    place.npz(actions=np.zeros((400, 2), np.float32))
    return ["data", "import", "rows.npz", "--as", "tests/rows-v0", "--env", "Pendulum-v1"]


@case(r"data\.train: action\[0\] is 3 in row 7, and Pendulum-v1 takes -2 to 2 \(2 such rows\)")
def actions_outside_the_bounds(place):
    actions = place.columns()["actions"]
    actions[[7, 9]] = 3.0
    return place.experiment(train=place.npz(actions=actions))


@case(r"data\.guide: action\[0\] is -2\.5 in row 0, and Pendulum-v1 takes -2 to 2 \(1 such rows\)")
def guide_actions_outside_the_bounds(place):
    actions = place.columns()["actions"]
    actions[0] = -2.5
    return place.experiment(guide=place.npz(actions=actions))


@case(r"data\.train was recorded with actions from \[-1\.0\] to \[1\.0\], Pendulum-v1 takes \[-2\.0\] to \[2\.0\]")
def action_bounds_that_differ(place):
    rows = [
        minari.data_collector.EpisodeBuffer(
            observations=np.zeros((3, 3), np.float32),
            actions=np.zeros((2, 1), np.float32),
            rewards=np.zeros(2),
            terminations=np.zeros(2, bool),
            truncations=np.array([False, True]),
            infos={},
        )
    ]
    spaces = {
        "observation_space": gym.make("Pendulum-v1").observation_space,
        "action_space": gym.spaces.Box(-1.0, 1.0, (1,)),
    }
    with pytest.warns(UserWarning):
        minari.create_dataset_from_buffers("tests/narrow-v0", rows, **spaces)
    return place.experiment(train={"minari": "tests/narrow-v0"}, evaluation={"every": 2, "env": "Pendulum-v1"})


@case(r"data\.train\.file: dataset 'rows\.npz': reward is nan in row 5 \(2 rows of reward are not finite\)")
def nan_in_a_file(place):
    rewards = place.columns()["rewards"]
    rewards[[5, 6]] = np.nan
    return place.experiment(train=place.npz(rewards=rewards))


@case(r"dataset 'rows\.npz': obs\[2\] is inf in row 3 \(1 rows of obs are not finite\)")
def infinity_in_a_file_inspected(place):
    obs = place.columns()["observations"]
    obs[3, 2] = np.inf
    place.npz(observations=obs)
    return ["data", "inspect", "rows.npz"]


@case(r"data\.train\.minari: dataset '.*/expert-400-s0-v\d+': action\[0\] is nan in row 2 \(1 rows")
def nan_in_minari(place):
    dataset_id = make_dataset("pendulum/expert", 400).dataset_id
    with h5py.File(store.root() / dataset_id / "data" / "main_data.hdf5", "a") as file:
        file["episode_0/actions"][2] = np.nan
    return place.experiment(train={"minari": dataset_id})


@case(r"data\.train\.file: file 'rows\.npz' is empty: observations has shape \(0, 3\)")
def empty_file_of_rows(place):
    return place.experiment(train=place.npz(**{key: value[:0] for key, value in place.columns().items()}))


@case(r"data\.train\.file: file 'rows\.npz' is empty\.")
def file_of_no_bytes(place):
    (place.folder / "rows.npz").touch()
    return place.experiment(train={"file": "rows.npz"})


@case(r"data\.train\.minari: dataset 'tests/empty-v0' holds no transitions")
def empty_minari_dataset(place):
    shutil.copytree(store.root() / make_dataset("pendulum/expert", 400).dataset_id, store.root() / "tests/empty-v0")
    folder = store.root() / "tests/empty-v0"
    (folder / store.CARD).unlink()
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        del file["episode_0"], file["episode_1"]
    path = folder / "data" / "metadata.json"
    metadata = {**json.loads(path.read_text()), "total_episodes": 0, "total_steps": 0, "dataset_id": "tests/empty-v0"}
    path.write_text(json.dumps(metadata))
    return place.experiment(train={"minari": "tests/empty-v0"})


@case(r"row 199 ends no episode; set timeouts \(or terminals\) in every episode's last row")
def episode_without_an_end_flag(place):
    timeouts = place.columns()["timeouts"]
    timeouts[199] = False
    return place.experiment(train=place.npz(timeouts=timeouts))


@case(r"no row of terminals or timeouts is set, so where its episodes end is unknown")
def no_end_flag_at_all(place):
    return place.experiment(train=place.npz(timeouts=np.zeros(400, bool)))


@case(r"has neither timeouts nor next_observations, so where its episodes are cut is unknown; add timeouts")
def no_sign_of_where_episodes_are_cut(place):
    return place.experiment(train=place.npz(timeouts=None, next_observations=None))


@case(r"1 rows are terminals \(the first is row 199\) and their next observations are not in it; add next_observations")
def terminations_without_next_observations(place):
    terminals = np.zeros(400, bool)
    terminals[199] = True
    return place.experiment(train=place.npz(terminals=terminals, next_observations=None))


@case(r"data\.guide\.tuples: .*401 transitions were asked for and 400 are there; ask for 1 to 400")
def fewer_guide_tuples_than_asked(place):
    return place.experiment(guide={"recipe": "pendulum/expert", "size": 400, "tuples": 401})


@case(r"file 'rows\.npz' is neither npz nor hdf5, or its beginning is damaged")
def garbage(place):
    (place.folder / "rows.npz").write_bytes(np.random.default_rng(0).bytes(5000))
    return place.experiment(train={"file": "rows.npz"})


@case(r"file 'rows\.npz' cannot be read as npz, it is damaged \(")
def garbage_that_begins_like_an_npz(place):
    (place.folder / "rows.npz").write_bytes(b"PK\x03\x04" + np.random.default_rng(0).bytes(5000))
    return place.experiment(train={"file": "rows.npz"})


@case(r"file 'rows\.npz' cannot be read as npz, it is damaged \(")
def truncated_npz(place):
    place.npz()
    path = place.folder / "rows.npz"
    path.write_bytes(path.read_bytes()[:-2000])
    return place.experiment(train={"file": "rows.npz"})


@case(r"file 'rows\.npz' cannot be read as npz, it is damaged \(BadZipFile: Bad CRC-32")
def bit_flipped_npz(place):
    place.npz()
    path = place.folder / "rows.npz"
    content = bytearray(path.read_bytes())
    content[3000] ^= 1
    path.write_bytes(content)
    return place.experiment(train={"file": "rows.npz"})


@case(r"file 'rows\.npz': rewards is Python objects, which are pickled; it must be a plain array of numbers")
def object_dtype_npz(place):
    return place.experiment(train=place.npz(rewards=np.array([0.0] * 399 + [None], dtype=object)))


@case(r"file 'rows\.npz': rewards is of type <U4; it must be a plain array of numbers")
def text_in_an_npz(place):
    return place.experiment(train=place.npz(rewards=np.array(["0.25"] * 400)))


@case(r"file 'rows\.npz': rewards has shape \[399\]; it must be \[400\], like the rest")
def columns_of_other_lengths(place):
    return place.experiment(train=place.npz(rewards=np.zeros(399)))


@case(r"file 'rows\.hdf5' lacks rewards, terminals; it holds actions, next_observations, observations, timeouts")
def hdf5_with_missing_keys(place):
    return place.experiment(train=place.hdf5(leave_out=("rewards", "terminals")))


@case(r"file 'rows\.npz' lacks actions; it holds next_observations, observations, rewards, terminals, timeouts")
def npz_with_missing_keys(place):
    return place.experiment(train=place.npz(actions=None))


@case(r"file 'rows\.hdf5' cannot be read as hdf5, it is damaged \(")
def truncated_hdf5(place):
    place.hdf5()
    path = place.folder / "rows.hdf5"
    path.write_bytes(path.read_bytes()[:-2000])
    return place.experiment(train={"file": "rows.hdf5"})


@case(r"file 'rows\.hdf5': rewards points into another file; write its values into this one")
def hdf5_that_links_elsewhere(place):
    place.hdf5(leave_out=("rewards",))
    (place.folder / "rows.hdf5").rename(place.folder / "other.hdf5")
    with h5py.File(place.folder / "other.hdf5", "a") as file:
        file["rewards"] = np.zeros(400)
    place.hdf5(leave_out=("rewards",))
    with h5py.File(place.folder / "rows.hdf5", "a") as file:
        file["rewards"] = h5py.ExternalLink("other.hdf5", "/rewards")
    return place.experiment(train={"file": "rows.hdf5"})


@case(r"file 'rows\.hdf5': rewards is a group, not an array")
def hdf5_with_a_group_for_a_column(place):
    place.hdf5(leave_out=("rewards",))
    with h5py.File(place.folder / "rows.hdf5", "a") as file:
        file.create_group("rewards")
    return place.experiment(train={"file": "rows.hdf5"})


@case(r"file 'rows\.pkl' is a pickle, which can run code when it is read; write npz or hdf5 instead")
def pickle_as_a_file(place):
    (place.folder / "rows.pkl").write_bytes(pickle.dumps(place.columns()))
    return place.experiment(train={"file": "rows.pkl"})


@case(r"file 'rows\.npz' is a pickle, which can run code")
def pickle_under_another_name(place):
    (place.folder / "rows.npz").write_bytes(pickle.dumps(place.columns()))
    return place.experiment(train={"file": "rows.npz"})


@case(r"experiment\.yaml is not readable YAML, line 1: could not determine a constructor for the tag .*python/object")
def yaml_with_python_tags(place):
    return place.experiment(text="name: !!python/object/apply:os.system ['touch ran']\nalgorithm: bc\n")


@case(r"evaluation\.env: Environment `Pendulun` doesn't exist")
def environment_that_does_not_exist(place):
    return place.experiment(evaluation={"every": 2, "env": "Pendulun-v1"})


@case(r"data\.train\.file: environment 'Pendulun-v1': .*give another `env`")
def environment_of_a_file_that_does_not_exist(place):
    return place.experiment(train={**place.npz(), "env": "Pendulun-v1"})


@case(r"data\.train was recorded in Hopper-v4, not in Hopper-v5, and versions differ in rewards or physics")
def environment_of_another_version(place):
    """As recorded elsewhere: the environment need not exist here for its data to be refused."""
    zeros = np.zeros((4, 11))
    place.npz(
        observations=zeros,
        next_observations=zeros,
        actions=np.zeros((4, 3)),
        rewards=np.zeros(4),
        terminals=np.zeros(4, bool),
        timeouts=np.array([0, 0, 0, 1], bool),
    )
    entry = {"file": "rows.npz", "env": "Hopper-v4"}
    return place.experiment(train=entry, evaluation={"every": 2, "episodes": 1, "env": "Hopper-v5"})


@case(r"dataset 'metarl/pendulum/medium-400-s0-v\d+' cannot be written to .* \(No space left on device\); make room")
def full_disk_for_a_dataset(place):
    usage = namedtuple("usage", "total used free")
    place.monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 0))
    return ["data", "make", "pendulum/medium", "--size", "400"]


@case(r"out\.npz cannot be written \(No space left on device\); make room there")
def full_disk_for_an_export(place):
    place.monkeypatch.setattr(np, "savez", refuse(errno.ENOSPC))
    return ["data", "export", "pendulum/expert", "out.npz", "--size", "400"]


@case(r"out\.hdf5 is there already; overwrite it with --force")
def export_over_a_file(place):
    (place.folder / "out.hdf5").write_text("precious")
    return ["data", "export", "pendulum/expert", "out.hdf5", "--size", "400"]


@case(r"runs/small-\w+/0 cannot be written \(No space left on device\); what was saved before is kept: make room")
def full_disk_for_a_run(place):
    trained(place, steps=2)
    place.monkeypatch.setattr(checkpoints, "_write", refuse(errno.ENOSPC))
    return place.experiment(steps=4)


@case(r"Minari's folder cannot be made \(.*Not a directory.*\); set MINARI_DATASETS_PATH to another")
def folder_that_cannot_be_made_for_data(place):
    (place.folder / "file").touch()
    place.monkeypatch.setenv("MINARI_DATASETS_PATH", str(place.folder / "file" / "datasets"))
    return ["data", "make", "pendulum/medium", "--size", "400"]


@case(r"dataset 'metarl/pendulum/medium-400-s0-v\d+' cannot be written to .* \(Read-only file system\)")
def read_only_folder_for_data(place):
    place.monkeypatch.setattr(store.tempfile, "mkdtemp", refuse(errno.EROFS))
    return ["data", "make", "pendulum/medium", "--size", "400"]


@case(r"runs/small-\w+/0 cannot be written \(Not a directory\); choose another --root")
def read_only_folder_for_runs(place):
    (place.folder / "file").touch()
    return [*place.experiment(), "--root", "file/runs"]


@case(r"runs/small-\w+/0 cannot be written \(Read-only file system\); what was saved before is kept")
def run_folder_that_becomes_read_only(place):
    trained(place, steps=2)
    place.monkeypatch.setattr(os, "replace", refuse(errno.EROFS))
    return place.experiment(steps=4)


@case(r"another process is making dataset 'metarl/pendulum/medium-400-s0-v\d+'; wait for it")
def dataset_that_another_process_is_making(place):
    version = make_dataset("pendulum/expert", 400).dataset_id.rpartition("-v")[2]
    place.hold(store.root() / f".metarl-metarl-pendulum-medium-400-s0-v{version}.lock")
    return ["data", "make", "pendulum/medium", "--size", "400"]


@case(r"dataset 'tests/rows-v0' is already at .*overwrite it with --force")
def import_over_a_dataset(place):
    place.npz()
    arguments = ["data", "import", "rows.npz", "--as", "tests/rows-v0", "--env", "Pendulum-v1"]
    assert place.call(arguments) == (0, "")
    return arguments


@case(r"another process is training this run; wait for it")
def run_folder_that_another_process_holds(place):
    place.hold(trained(place, steps=2) / ".lock")
    return place.experiment(steps=4)


@case(r"no checkpoint is whole; move the folder .* away to start the run again")
def truncated_checkpoints(place):
    for path in sorted((trained(place, steps=2) / "checkpoint").rglob("*.safetensors")):
        path.write_bytes(path.read_bytes()[:-9])
    return place.experiment(steps=4)


@case(r"no checkpoint is whole; move the folder .* away to start the run again")
def bit_flipped_checkpoints(place):
    for path in sorted((trained(place, steps=2) / "checkpoint").rglob("state.json")):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    return place.experiment(steps=4)


@case(r"checkpoint: .*net\.layers\.0\.weight' is torch\.float32\[3, 5\] in the checkpoint and torch\.float32\[3, 4\]")
def checkpoint_of_another_configuration(place):
    other = trained(place, steps=2, algorithm={**EXPERIMENT["algorithm"], "hidden": [5]})
    mine = trained(place, steps=2)
    shutil.rmtree(mine / "checkpoint")
    shutil.copytree(other / "checkpoint", mine / "checkpoint")
    return place.experiment(steps=4)


def refuse(number: int) -> Callable[..., None]:
    """A function that the disk refuses."""

    def call(*arguments, **options):
        raise OSError(number, os.strerror(number))

    return call


def trained(place: Place, **changed) -> Path:
    """A run of the experiment; its folder."""
    before = set((place.folder / "runs").glob("*/0"))
    code, said = place.call(place.experiment(**changed))
    assert code == 0, said
    (folder,) = set((place.folder / "runs").glob("*/0")) - before
    return folder


@pytest.mark.parametrize("name", CASES)
def test_one_line_exit_code_2_and_nothing_lost(name, place):
    build, says = CASES[name]
    arguments = build(place)
    before = place.content()
    code, said = place.call(arguments)
    lines = [line for line in said.splitlines() if not line.startswith(("small seed", f"{place.folder}/runs", "runs/"))]
    assert code == 2 and len(lines) == 1, said
    assert lines[0].startswith("error: ")
    assert re.search(says, lines[0]), lines[0]
    after = place.content()
    for path, content in before.items():
        if path.name == "metrics.csv":  # rows after the last checkpoint are cut off when the run goes on
            assert after[path].startswith(content)
        elif path.name != "config.yaml":  # it tells of the steps that were asked for last
            assert after.get(path) == content, path
    assert not (place.folder / "ran").exists()
    assert all(path.parts[0] == "runs" for path in after.keys() - before.keys())


def test_every_kind_of_bad_input_has_a_case():
    kinds = """absent no_network malformed another_observation another_action action_bounds nan_in infinity empty
        without_an_end_flag fewer_guide_tuples garbage truncated_npz object_dtype hdf5_with_missing_keys pickle
        yaml_with_python_tags environment_that_does_not_exist environment_of_another_version full_disk read_only
        another_process truncated_checkpoints bit_flipped_checkpoints checkpoint_of_another_configuration"""
    for words in kinds.split():
        assert any(words in name for name in CASES), words


# ---- what needs more than a line


def wait_for_ever(*arguments, **options):
    """As a name server that is not there; longer than anybody waits, but not than the test run."""
    time.sleep(6)
    raise OSError("Name or service not known")


@pytest.mark.parametrize("what", ["silent", "name"])
def test_a_network_that_hangs_is_given_up_in_time(place, monkeypatch, what):
    """A server that takes the connection and says nothing, and a name that is looked up for ever."""
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert importing.PATIENCE <= 4  # of the 5 seconds in which the whole command must fail
    monkeypatch.setattr(importing, "PATIENCE", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        if what == "name":
            monkeypatch.setattr(importing.urllib.request, "urlopen", wait_for_ever)
        began = time.perf_counter()
        code, said = place.call(["data", "import", "mujoco/hopper/expert-v0"])
        assert time.perf_counter() - began < 4
    assert code == 2 and said.count("\n") == 1 and "no network" in said


def test_one_whole_checkpoint_is_enough(place):
    folder = trained(place, steps=4, evaluation={"every": 2, "episodes": 1})
    newest = folder / "checkpoint" / "step-000000004" / "tensors.safetensors"
    newest.write_bytes(newest.read_bytes()[:-9])
    code, said = place.call(place.experiment(steps=6))
    assert code == 0, said
    assert json.loads((folder / "result.json").read_text())["steps"] == 6


def test_a_run_goes_on_once_there_is_room_again(place, monkeypatch):
    straight = trained(place, steps=6)
    numbers = {name: (straight / name).read_bytes() for name in ("metrics.csv", "result.json")}
    shutil.rmtree(straight)
    trained(place, steps=2)
    with monkeypatch.context() as full:
        full.setattr(checkpoints, "_write", refuse(errno.ENOSPC))
        assert place.call(place.experiment(steps=6))[0] == 2
    assert place.call(place.experiment(steps=6))[0] == 0
    assert (straight / "metrics.csv").read_bytes() == numbers["metrics.csv"]
    assert json.loads((straight / "result.json").read_text()) == json.loads(numbers["result.json"])


@pytest.mark.slow
def test_two_processes_making_one_dataset_make_one_dataset(place):
    command = [sys.executable, "-m", "metarl", "data", "make", "pendulum/medium", "--size", "4000"]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=50)[1] for process in processes]
    codes = sorted(process.returncode for process in processes)
    assert codes in ([0, 0], [0, 2]), said
    for text, process in zip(said, processes, strict=True):
        assert process.returncode == 0 or (text.startswith("error: ") and text.count("\n") == 1)
    made = make_dataset("pendulum/medium", 4000)
    assert made.existed and load_minari(made.dataset_id).card.sha256 == made.transitions.card.sha256
    assert not [path for path in store.root().iterdir() if path.name.startswith(".")]


def test_a_download_is_whole_or_not_at_all(place, monkeypatch, write):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(importing, "_unreachable", lambda: None)
    monkeypatch.setattr(importing, "find_spec", lambda name: None)
    code, said = place.call(["data", "import", "tests/far-v0"])
    assert code == 2 and "run: pip install 'minari[hf]' && metarl data import tests/far-v0" in said
    monkeypatch.setattr(importing, "find_spec", lambda name: name)

    def breaks(dataset_id):
        write(dataset_id)
        raise ConnectionError("cut\noff")

    monkeypatch.setattr(importing.hosting, "download_dataset", breaks)
    code, said = place.call(["data", "import", "tests/far-v0"])
    assert code == 2 and said.count("\n") == 1 and "(ConnectionError: cut off); try again" in said
    assert not store.is_local("tests/far-v0")
    monkeypatch.setattr(importing.hosting, "download_dataset", write)
    assert place.call(["data", "import", "tests/far-v0"]) == (0, "")
    assert len(load_minari("tests/far-v0")) == 9
    assert not [path for path in store.root().iterdir() if path.name.startswith(".")]


def test_an_error_that_is_no_disks_is_not_hidden(place, monkeypatch):
    """A traceback is for our mistakes: only what a disk answers becomes a line."""
    monkeypatch.setattr(store.minari, "create_dataset_from_buffers", refuse(errno.ENOTTY))
    with pytest.raises(OSError, match="Inappropriate"):
        place.call(["data", "make", "pendulum/medium", "--size", "400"])
    trained(place, steps=2)
    monkeypatch.setattr(checkpoints, "_write", refuse(errno.ENOTTY))
    with pytest.raises(OSError, match="Inappropriate"):
        place.call(place.experiment(steps=4))
