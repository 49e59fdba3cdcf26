"""Minari datasets: alignment, refusals, whole writes, and a cache that is never stale."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import replace

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
import torch

from metarl.data import minari as store
from metarl.data.minari import Episode, load_minari, local_datasets, read_columns, save_minari
from metarl.data.transitions import Card
from metarl.errors import DataError, DatasetUnavailable

INFINITE = {"low": -np.inf, "high": np.inf, "dtype": np.float64}


def hdf5(root, dataset_id="tests/counting-v0"):
    return root / dataset_id / "data" / "main_data.hdf5"


def pendulum_episodes(n, steps=4, offset=0.0):
    """Episodes of made-up numbers in Pendulum's spaces."""
    for i in range(n):
        t = np.arange(steps + 1, dtype=np.float32)
        yield Episode(
            observations=np.stack([np.cos(t), np.sin(t), t + i + offset], axis=1).astype(np.float32),
            actions=np.full((steps, 1), i, np.float32),
            rewards=-t[:-1].astype(np.float64),
            terminations=np.zeros(steps, bool),
            truncations=t[:-1] == steps - 1,
            seed=i,
            behaviour="odd" if i % 2 else "even",
        )


def save(dataset_id="tests/saved-v0", episodes=None, **options):
    card = Card(source="test", dataset_id=dataset_id, policy="counting", seed=7)
    episodes = pendulum_episodes(3) if episodes is None else episodes
    return save_minari(dataset_id, episodes, gym.spec("Pendulum-v1"), card, description="A test.", **options)


# ---- alignment


@pytest.mark.parametrize("lengths", [(1,), (1, 1, 1), (2, 1, 3), (7, 1, 40, 2, 13), "random"])
def test_every_row_holds_what_its_episode_and_step_say(write, lengths):
    if lengths == "random":
        lengths = tuple(np.random.default_rng(5).integers(1, 60, size=30).tolist())
    data = load_minari(write(lengths=lengths))
    assert data.episode_lengths().tolist() == list(lengths)
    row = 0
    for episode, length in enumerate(lengths):
        for t in range(length):
            last = t == length - 1
            assert data.obs[row].tolist() == [episode, t]
            assert data.next_obs[row].tolist() == [episode, t + 1]  # the last observation of an episode is kept
            assert data.action[row].tolist() == [1000 * episode + t]
            assert data.reward[row].item() == 100 * episode + t + 0.5
            assert data.terminated[row].item() == float(last and episode % 3 == 0)
            assert data.truncated[row].item() == float(last and episode % 3 != 0)  # an open end is truncated
            row += 1
    assert row == len(data)


def test_rows_are_the_same_in_blocks_and_when_minari_has_miscounted(write, minari_root, monkeypatch):
    whole = load_minari(write("tests/whole-v0", lengths=(3, 1, 5, 2, 4)))
    dataset_id = write("tests/blocks-v0", lengths=(3, 1, 5, 2, 4))
    path = minari_root / dataset_id / "data" / "metadata.json"
    monkeypatch.setattr(store, "BLOCK", 2)
    for count in (1, 100):
        path.write_text(json.dumps({**json.loads(path.read_text()), "total_steps": count}))
        again = load_minari(dataset_id)
        assert torch.equal(again.rows, whole.rows) and torch.equal(again.episode_starts, whole.episode_starts)


def test_unchecked_columns_are_the_same_rows(write):
    dataset_id = write()
    columns, data = read_columns(dataset_id), load_minari(dataset_id)
    assert columns["episode_starts"].tolist() == data.episode_starts.tolist()
    for name in ("obs", "action", "reward", "next_obs", "terminated"):
        assert torch.equal(torch.from_numpy(columns[name]), getattr(data, name)), name
    assert columns["truncated"].sum() == 1  # only what the dataset says


def test_dict_observations_are_joined_by_one_recorded_rule(write, counting):
    parts = {"achieved_goal": 2, "desired_goal": 2, "zeta": 1, "observation": 4}
    space = gym.spaces.Dict({key: gym.spaces.Box(shape=(size,), **INFINITE) for key, size in parts.items()})
    buffers = [
        replace(
            buffer,
            observations={
                key: 10.0 * i + np.arange(len(buffer) + 1)[:, None] + np.zeros(size)
                for i, (key, size) in enumerate(parts.items())
            },
        )
        for buffer in counting((3, 2))
    ]
    data = load_minari(write("tests/goals-v0", buffers, observation_space=space))
    assert data.card.figures["flattened"] == ["observation", "desired_goal", "achieved_goal", "zeta"]
    assert data.obs[1].tolist() == [31, 31, 31, 31, 11, 11, 1, 1, 21]
    assert data.next_obs[1].tolist() == [32, 32, 32, 32, 12, 12, 2, 2, 22]
    again = load_minari("tests/goals-v0")  # from the cache
    assert torch.equal(again.rows, data.rows) and again.card == data.card


def test_an_episode_without_steps_is_left_out(write, minari_root, caplog):
    dataset_id = write(lengths=(2, 1, 3))
    with h5py.File(hdf5(minari_root), "a") as file:
        for name in ("actions", "rewards", "terminations", "truncations", "observations"):
            column = file[f"episode_1/{name}"]
            column.resize((int(name == "observations"), *column.shape[1:]))
    data = load_minari(dataset_id)
    assert data.episode_lengths().tolist() == [2, 3] and data.obs[2].tolist() == [2, 0]
    assert "episode 1 has no step" in caplog.text


# ---- refusals


def test_a_missing_dataset_names_the_command_and_reaches_for_nothing(monkeypatch):
    def download(*args, **kwargs):
        raise AssertionError("a download was tried")

    monkeypatch.setattr("minari.storage.hosting.download_dataset", download)
    with pytest.raises(DatasetUnavailable, match=r"run: metarl data import mujoco/hopper/expert-v0$"):
        load_minari("mujoco/hopper/expert-v0")
    with pytest.raises(DatasetUnavailable, match=r"run: metarl data make pendulum/medium-expert --size 400 --seed 3$"):
        load_minari("metarl/pendulum/medium-expert-400-s3-v1")


def test_the_command_for_what_a_training_made_trains():
    with pytest.raises(DatasetUnavailable, match=r"make hopper/medium --size 20 --seed 1 --from-scratch$"):
        load_minari("metarl/hopper/medium-scratch-0123abcd-20-s1-v1")


@pytest.mark.parametrize(
    "dataset_id", ["foo/bar", "foo/bar-v", "a/bar-v0", "/foo/bar-v0", "../foo/bar-v0", "foo//bar-v0", "fo o/bar-v0", ""]
)
def test_a_bad_id_is_refused_and_leaves_nothing(minari_root, dataset_id):
    for attempt in (load_minari, read_columns, save):
        with pytest.raises(DataError, match="no Minari dataset id"):
            attempt(dataset_id)
    assert list(minari_root.iterdir()) == []
    assert minari.list_local_datasets() == {}


@pytest.mark.parametrize(
    ("spaces", "message"),
    [
        ({"action_space": gym.spaces.Discrete(5)}, r"actions are Discrete\(5\); only continuous"),
        ({"action_space": gym.spaces.Box(-1, 1, (1, 1))}, r"actions are Box.*; only continuous"),
        ({"observation_space": gym.spaces.Box(shape=(1, 2), **INFINITE)}, r"the observation is Box"),
        ({"observation_space": gym.spaces.Discrete(5)}, r"the observation is Discrete"),
        ({"observation_space": gym.spaces.Dict({"grid": gym.spaces.Discrete(3)})}, r"observation 'grid' is Discrete"),
    ],
)
def test_spaces_that_cannot_be_packed_are_refused(write, minari_root, spaces, message):
    dataset_id = write()
    metadata = minari_root / dataset_id / "data" / "metadata.json"
    stored = json.loads(metadata.read_text())
    for name, space in spaces.items():
        stored[name] = minari.serialization.serialize_space(space)
    metadata.write_text(json.dumps(stored))
    with pytest.raises(DataError, match=message):
        load_minari(dataset_id)


def test_an_observation_too_few_is_refused(write, minari_root):
    dataset_id = write()
    with h5py.File(hdf5(minari_root), "a") as file:
        file["episode_2/observations"].resize((5, 2))
    with pytest.raises(DataError, match=r"episode 2 has 5 rewards and 5 observations; it must have 6"):
        load_minari(dataset_id)


def test_an_episode_of_another_width_is_refused(write, minari_root):
    dataset_id = write()
    with h5py.File(hdf5(minari_root), "a") as file:
        del file["episode_1/actions"]
        file["episode_1/actions"] = np.zeros((1, 2), np.float32)
    with pytest.raises(DataError, match=r"episode 1 has observations of 2 and actions of 2 numbers, the episodes befo"):
        load_minari(dataset_id)


def test_a_value_that_is_not_finite_is_named(write, minari_root):
    dataset_id = write()
    with h5py.File(hdf5(minari_root), "a") as file:
        file["episode_2/rewards"][1] = np.nan
    with pytest.raises(DataError, match=r"'tests/counting-v0': reward is nan in row 5"):
        load_minari(dataset_id)
    assert np.isnan(read_columns(dataset_id)["reward"]).sum() == 1


def test_a_damaged_file_is_one_line(write, minari_root):
    dataset_id = write()
    content = hdf5(minari_root).read_bytes()
    hdf5(minari_root).write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"cannot be read.*remove its folder, then run: metarl data import") as raised:
        load_minari(dataset_id)
    assert "\n" not in str(raised.value)
    (minari_root / dataset_id / "data" / "metadata.json").write_text("{")
    with pytest.raises(DataError, match="cannot be opened"):
        load_minari(dataset_id)


# ---- writing


def test_what_is_saved_is_a_plain_minari_dataset(minari_root):
    card = save("tests/deep/saved-v0")
    dataset = minari.load_dataset("tests/deep/saved-v0")
    assert list(minari.list_local_datasets()) == ["tests/deep/saved-v0"]
    assert minari.namespace.list_local_namespaces() == ["tests", "tests/deep"]
    assert repr(dataset[0]).startswith("EpisodeData(id=0, total_steps=4")
    assert dataset[2].observations.shape == (5, 3) and dataset[2].rewards.dtype == np.float64
    assert [m["seed"] for m in dataset.storage.get_episode_metadata(range(3))] == [0, 1, 2]
    env = dataset.recover_environment()
    assert env.spec.id == "Pendulum-v1"
    env.close()

    data = load_minari("tests/deep/saved-v0")
    assert data.card == card and card.sha256 and card.seed == 7
    assert card.returns["mean"] == -6.0
    assert card.figures["behaviours"] == {
        "even": {"episodes": 2, "mean_return": -6.0},
        "odd": {"episodes": 1, "mean_return": -6.0},
    }
    assert gym.make(gym.envs.registration.EnvSpec.from_json(card.env_spec)).spec.id == card.env_id
    assert {path.name for path in minari_root.iterdir()} == {"tests"}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_crash_leaves_no_half_of_a_dataset(minari_root, error):
    def episodes():
        yield from pendulum_episodes(2)
        raise error("in the middle")

    with pytest.raises(error):
        save(episodes=episodes())
    assert list(minari_root.iterdir()) == []
    assert os.environ["MINARI_DATASETS_PATH"] == str(minari_root)
    save()  # and the id is free
    with pytest.raises(error):
        save(episodes=episodes(), overwrite=True)
    assert len(load_minari("tests/saved-v0")) == 12


def test_nothing_can_be_seen_before_it_is_whole(minari_root):
    seen = []

    def episodes():
        for episode in pendulum_episodes(2):
            yield episode
            seen.extend(path.name for path in minari_root.iterdir() if not path.name.startswith("."))

    save(episodes=episodes())
    assert seen == []


def test_an_existing_dataset_is_replaced_only_when_asked(minari_root):
    first = save()
    with pytest.raises(DataError, match=r"is already at .*--force"):
        save(episodes=pendulum_episodes(2))
    assert load_minari("tests/saved-v0").card == first
    second = save(episodes=pendulum_episodes(2, offset=1.0), overwrite=True)
    assert load_minari("tests/saved-v0").card == second != first
    assert {path.name for path in minari_root.iterdir()} == {"tests"}


def test_episodes_that_fail_the_checks_are_not_kept(minari_root):
    bad = [replace(episode, rewards=episode.rewards * np.nan) for episode in pendulum_episodes(1)]
    with pytest.raises(DataError, match="reward is nan"):
        save(episodes=bad)
    assert list(minari_root.iterdir()) == []


def test_data_changed_after_it_was_made_is_refused(minari_root):
    save("metarl/pendulum/medium-200-s0-v1")
    with h5py.File(hdf5(minari_root, "metarl/pendulum/medium-200-s0-v1"), "a") as file:
        file["episode_1/actions"][2] = 0.25
    with pytest.raises(DataError, match=r"changed after it was made.*data make pendulum/medium .*--force"):
        load_minari("metarl/pendulum/medium-200-s0-v1")


def test_listing_passes_over_what_is_broken(write, minari_root, caplog):
    write()
    card = save()
    (minari_root / "tests" / "broken-v0" / "data").mkdir(parents=True)
    (minari_root / "tests" / "broken-v0" / "data" / "metadata.json").write_text("{}")
    (minari_root / ".metarl-left" / "data").mkdir(parents=True)
    (minari_root / ".metarl-left" / "data" / "metadata.json").write_text("{}")
    rows = [(one.dataset_id, one.transitions, one.episodes, one.mean_return) for one in local_datasets()]
    assert rows == [("tests/counting-v0", 9, 3, None), ("tests/saved-v0", 12, 3, card.returns["mean"])]
    assert all(one.bytes > 1000 for one in local_datasets())
    assert "broken-v0" in caplog.text and ".metarl-left" not in caplog.text


# ---- the cache


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The ids that were read from Minari's own files."""
    ids = []
    columns = store._read_rows

    def counted(dataset, keys, dataset_id):
        ids.append(dataset_id)
        return columns(dataset, keys, dataset_id)

    monkeypatch.setattr(store, "_read_rows", counted)
    return ids


def test_a_second_load_reads_the_cache_and_is_the_same(write, reads):
    dataset_id = write()
    first, second = load_minari(dataset_id), load_minari(dataset_id)
    assert reads == [dataset_id]
    assert torch.equal(first.rows, second.rows) and torch.equal(first.episode_starts, second.episode_starts)
    assert first.card == second.card and first.layout == second.layout
    assert second.rows.is_contiguous() and second.rows.dtype == torch.float32


def test_changed_content_of_the_same_size_and_time_is_read_anew(write, minari_root, reads):
    dataset_id = write()
    load_minari(dataset_id)
    path = hdf5(minari_root)
    before = path.stat()
    with h5py.File(path, "a") as file:
        file["episode_0/rewards"][0] = -9.0
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert load_minari(dataset_id).reward[0] == -9.0
    assert len(reads) == 2


def test_changed_metadata_is_read_anew(write, minari_root, reads):
    dataset_id = write()
    load_minari(dataset_id)
    path = minari_root / dataset_id / "data" / "metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "algorithm_name": "other"}))
    assert load_minari(dataset_id).card.policy == "other"
    assert len(reads) == 2


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "pickle"])
def test_a_damaged_cache_is_rebuilt_and_logged(write, minari_root, reads, caplog, damage):
    dataset_id = write()
    first = load_minari(dataset_id)
    path = minari_root / dataset_id / store.CACHE
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        content[content.find(first.rows.numpy().tobytes()) + 4] ^= 1
    elif damage == "empty":
        content = bytearray()
    if damage == "pickle":
        np.savez(path, key=np.array([{}], dtype=object))
    else:
        path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        second = load_minari(dataset_id)
    assert "is damaged" in caplog.text and len(reads) == 2
    assert torch.equal(first.rows, second.rows)
    load_minari(dataset_id)
    assert len(reads) == 2  # it was written again


def test_a_cache_that_cannot_be_written_is_no_failure(write, minari_root, reads, caplog, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("No space left on device")

    dataset_id = write()
    monkeypatch.setattr(np, "savez", refuse)
    load_minari(dataset_id)
    load_minari(dataset_id)
    assert len(reads) == 2 and "cannot be written" in caplog.text
    assert {path.name for path in (minari_root / dataset_id).iterdir()} == {"data"}
