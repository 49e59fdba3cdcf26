"""npz and hdf5 files with D4RL's keys: what is read, what an export keeps, and the cache beside an hdf5."""

from __future__ import annotations

import json
import logging

import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch

from metarl.data import cache, files
from metarl.data.files import export_file, load_file, read_columns
from metarl.data.importing import import_file
from metarl.data.minari import load_minari
from metarl.data.recipes import make_dataset
from metarl.errors import DataError, DatasetUnavailable


@pytest.fixture
def columns() -> dict[str, np.ndarray]:
    """Three episodes of 3, 1 and 2 rows: terminated, cut, and left open at the end."""
    obs = np.array([[0, 0], [0, 1], [0, 2], [1, 0], [2, 0], [2, 1]], np.float64)
    return {
        "observations": obs,
        "actions": np.arange(6, dtype=np.float32)[:, None],
        "rewards": np.arange(6) + 0.5,
        "next_observations": obs + np.array([0, 1]),
        "terminals": np.array([0, 0, 1, 0, 0, 0], bool),
        "timeouts": np.array([0, 0, 0, 1, 0, 0], bool),
    }


@pytest.fixture
def save(tmp_path):
    """`save(name, columns)`: a file in `tmp_path`, which it returns."""

    def write(name, columns):
        if name.endswith(".npz"):
            np.savez(tmp_path / name, **columns)
        else:
            with h5py.File(tmp_path / name, "w") as file:
                for key, values in columns.items():
                    file.create_dataset(key, data=values, compression="gzip" if np.ndim(values) else None)
        return tmp_path

    return write


@pytest.mark.parametrize("name", ["rows.npz", "rows.hdf5", "rows.h5"])
def test_rows_ends_and_the_open_last_episode(save, columns, name):
    folder = save(name, {**columns, "infos/goal": np.zeros((6, 2)), "timeouts": columns["timeouts"].astype(np.uint8)})
    data = load_file(name, folder=folder)
    assert data.episode_lengths().tolist() == [3, 1, 2]
    assert data.next_obs.tolist() == columns["next_observations"].tolist()
    assert data.terminated.tolist() == [0, 0, 1, 0, 0, 0] and data.truncated.tolist() == [0, 0, 0, 1, 0, 1]
    assert data.card.source == "file" and data.card.dataset_id == name and data.card.env_spec is None
    assert data.card.returns["mean"] == pytest.approx((0.5 + 1.5 + 2.5 + 3.5 + 4.5 + 5.5) / 3)


def test_both_formats_give_the_same_rows(save, columns):
    folder = save("rows.npz", columns)
    save("rows.hdf5", columns)
    one, other = (load_file(f"rows.{suffix}", folder=folder) for suffix in ("npz", "hdf5"))
    assert torch.equal(one.rows, other.rows) and one.card.sha256 == other.card.sha256


def test_timeouts_may_be_missing_where_next_observations_show_every_end(save, columns):
    del columns["timeouts"]
    columns["terminals"][[3, 5]] = True
    assert load_file("rows.npz", folder=save("rows.npz", columns)).episode_lengths().tolist() == [3, 1, 2]
    columns["terminals"][3] = False  # an end that no flag tells of
    with pytest.raises(DataError, match=r"next_observations of row 3 is not observations of row 4, and row 3 ends no"):
        load_file("rows.npz", folder=save("rows.npz", columns))


def test_without_next_observations_steps_before_a_cut_are_left_out_and_it_is_said(save, columns, caplog):
    del columns["next_observations"]
    columns["terminals"][:] = False
    columns["timeouts"][2] = True
    data = load_file("rows.npz", folder=save("rows.npz", columns))
    assert data.obs.tolist() == [[0, 0], [0, 1], [2, 0]] and data.next_obs.tolist() == [[0, 1], [0, 2], [2, 1]]
    assert data.truncated.tolist() == [0, 1, 1] and data.episode_lengths().tolist() == [2, 1]
    assert "3 last steps before a cut are left out" in caplog.text
    assert "3 last steps" in data.card.figures["left_out"]


def test_an_environment_can_be_named_and_its_code_is_never_the_files(save, columns):
    folder = save("rows.npz", columns)
    card = load_file("rows.npz", "Pendulum-v1", folder=folder).card
    assert card.env_id == "Pendulum-v1" and json.loads(card.env_spec)["entry_point"].startswith("gymnasium.envs")
    about = {"env_id": "Pendulum-v1", "entry_point": "os:system", "env_kwargs": {"g": 5.0}, "max_episode_steps": 7}
    card = load_file("about.npz", folder=save("about.npz", {**columns, "metarl": np.array(json.dumps(about))})).card
    spec = json.loads(card.env_spec)
    assert spec["kwargs"] == {"g": 5.0} and spec["max_episode_steps"] == 7
    assert spec["entry_point"] == gym.spec("Pendulum-v1").entry_point


@pytest.mark.parametrize("suffix", ["npz", "hdf5"])
def test_an_export_and_its_import_keep_every_row_and_the_environment(tmp_path, suffix):
    made = make_dataset("pendulum/medium", 1000).transitions
    path = tmp_path / f"pendulum.{suffix}"
    export_file(made, path)
    again = load_file(path.name, folder=tmp_path)
    assert torch.equal(again.rows, made.rows) and torch.equal(again.episode_starts, made.episode_starts)
    assert (again.card.env_spec, again.card.sha256) == (made.card.env_spec, made.card.sha256)
    assert again.card.figures["from"] == made.card.dataset_id
    with pytest.raises(DataError, match=r"is there already; overwrite it with --force"):
        export_file(made, path)
    card = import_file(str(path), "tests/imported-v0", None)
    imported = load_minari("tests/imported-v0")
    assert torch.equal(imported.rows, made.rows) and imported.card == card and card.env_id == "Pendulum-v1"
    assert {p.name for p in tmp_path.iterdir() if p.is_file()} <= {path.name, f".{path.name}.metarl_rows.npz"}


def test_dict_observations_go_out_as_vectors_and_come_back_as_parts(tmp_path):
    made = make_dataset("pointmaze_umaze/random", 1000).transitions
    export_file(made, tmp_path / "maze.npz")
    import_file(str(tmp_path / "maze.npz"), "tests/maze-v0", None)
    imported = load_minari("tests/maze-v0")
    assert torch.equal(imported.rows, made.rows)
    assert imported.card.figures["flattened"] == made.card.figures["flattened"]


def test_a_changed_export_is_refused(tmp_path):
    export_file(make_dataset("pendulum/expert", 400).transitions, tmp_path / "rows.hdf5")
    with h5py.File(tmp_path / "rows.hdf5", "a") as file:
        file["actions"][3] = 0.25
    with pytest.raises(DataError, match=r"'rows\.hdf5' was changed after metarl exported it"):
        load_file("rows.hdf5", folder=tmp_path)


def test_inspection_reads_what_loading_refuses(save, columns):
    columns["rewards"][2] = np.nan
    folder = save("rows.npz", columns)
    assert np.isnan(read_columns("rows.npz", folder=folder)["rewards"]).sum() == 1
    with pytest.raises(DataError, match="reward is nan in row 2"):
        load_file("rows.npz", folder=folder)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DatasetUnavailable, match=r"there is no file 'none\.npz' in"):
        load_file("none.npz", folder=tmp_path)


# ---- the cache of an hdf5


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The names of files that were read and not taken from the cache."""
    names = []
    read = files.read_columns
    monkeypatch.setattr(files, "read_columns", lambda name, **rest: names.append(name) or read(name, **rest))
    return names


def test_the_cache_serves_the_same_content_only(save, columns, reads):
    folder = save("rows.hdf5", columns)
    first, second = (load_file("rows.hdf5", folder=folder) for _ in range(2))
    assert len(reads) == 1 and torch.equal(first.rows, second.rows) and first.card == second.card
    columns["rewards"][0] = -3.0
    save("rows.hdf5", columns)
    assert load_file("rows.hdf5", folder=folder).reward[0] == -3.0 and len(reads) == 2


def test_a_folder_that_takes_no_cache_is_no_failure_and_is_told_once(save, columns, reads, monkeypatch, caplog):
    def refuse(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    folder = save("rows.hdf5", columns)
    monkeypatch.setattr(cache.np, "savez", refuse)
    with caplog.at_level(logging.WARNING):
        rows = [load_file("rows.hdf5", folder=folder).rows for _ in range(2)]
    assert torch.equal(*rows) and len(reads) == 2
    assert caplog.text.count("cannot be written (Read-only file system); the data is read anew each time") == 1
    assert [path.name for path in folder.iterdir() if path.is_file()] == ["rows.hdf5"]


def test_a_path_from_home_is_found_and_a_d4rl_file_that_is_not_there_says_where_it_comes_from(
    save, columns, tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    save("rows.npz", columns)
    assert len(load_file("~/rows.npz", folder=tmp_path / "elsewhere")) == 6
    with pytest.raises(DatasetUnavailable, match=r"run: wget -P ~/\.d4rl/datasets http.*/hopper_medium-v2\.hdf5$"):
        load_file("~/.d4rl/datasets/hopper_medium-v2.hdf5", env="Hopper-v5")
