"""Demonstrations of states and actions only, rebuilt by simulation, and pickles that cannot run code."""

from __future__ import annotations

import os
import pickle
import pickletools
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from metarl.data import DataSource, load
from metarl.data.gild import load_gild
from metarl.errors import DataError, DatasetUnavailable

PUBLIC = Path(__file__).parents[4] / "shared" / "data" / "gild_demos"


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    """Hopper-v5 under small random actions: two episodes, with the rewards and ends that are to be rebuilt."""
    rng = np.random.default_rng(0)
    columns: dict[str, list] = {name: [] for name in ("obs", "action", "reward", "next_obs", "terminated")}
    starts = []
    with gym.make("Hopper-v5") as env:
        for seed in (0, 1):
            obs, _ = env.reset(seed=seed)
            starts.append(len(columns["obs"]))
            done = False
            while not done:
                action = rng.uniform(-0.3, 0.3, 3).astype(np.float32)
                after, reward, done, _, _ = env.step(action)
                for name, value in zip(columns, (obs, action, reward, after, done), strict=True):
                    columns[name].append(value)
                obs = after
    return {**{name: np.array(values) for name, values in columns.items()}, "starts": np.array(starts)}


@pytest.fixture
def npz(recorded, tmp_path) -> Path:
    """The recording as an npz of observations, actions and episode starts; returns its folder."""
    parts = {"observations": recorded["obs"], "actions": recorded["action"], "episode_starts": recorded["starts"]}
    np.savez(tmp_path / "demo.npz", **parts)
    return tmp_path


def test_a_recording_of_this_very_environment_is_rebuilt(recorded, npz):
    data = load_gild("demo.npz", "Hopper-v5", folder=npz)
    assert len(data) == len(recorded["obs"]) > 30 and data.episode_starts[:-1].tolist() == recorded["starts"].tolist()
    for name in ("obs", "action", "terminated"):
        assert torch.equal(getattr(data, name), torch.from_numpy(recorded[name]).float()), name
    # the solver's warm start, which no observation holds, is what remains
    np.testing.assert_allclose(data.reward, recorded["reward"], atol=2e-3)
    np.testing.assert_allclose(data.next_obs, recorded["next_obs"], atol=2e-2)
    assert data.card.figures["left_out"] == data.card.figures["ended_early"] == 0
    assert data.card.figures["deviation"]["median"] < 1e-3
    assert data.card.returns["mean"] == pytest.approx(recorded["reward"].sum() / 2, rel=1e-3)
    assert data.card.env_id == "Hopper-v5" and data.card.source == "gild"


def test_rows_do_not_depend_on_their_order(recorded, npz):
    first = load_gild("demo.npz", "Hopper-v5", folder=npz)
    half = recorded["starts"][1]
    parts = {"observations": recorded["obs"][half:], "actions": recorded["action"][half:], "episode_starts": [0]}
    np.savez(npz / "second.npz", **parts)
    assert torch.equal(load_gild("second.npz", "Hopper-v5", folder=npz).rows, first.rows[half:])


def test_clipped_velocities_hide_the_state_and_cost_their_rows(recorded, npz, caplog):
    obs = recorded["obs"].copy()
    obs[[0, 5, 6], 7] = 10.0
    np.savez(npz / "fast.npz", observations=obs, actions=recorded["action"], episode_starts=recorded["starts"])
    data = load_gild("fast.npz", "Hopper-v5", folder=npz)
    assert len(data) == len(obs) - 3 and data.card.figures["left_out"] == 3 and data.card.returns == {}
    begin = recorded["starts"][1]
    assert data.episode_starts.tolist() == [0, 4, begin - 3, len(obs) - 3]
    assert data.truncated.nonzero().flatten().tolist() == [3]
    assert "3 of" in caplog.text
    np.savez(npz / "all.npz", observations=np.full_like(obs, 10.0), actions=recorded["action"], episode_starts=[0])
    with pytest.raises(DataError, match="the velocities of every row are clipped"):
        load_gild("all.npz", "Hopper-v5", folder=npz)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_of_one_plain_array_is_read_and_its_episodes_found(recorded, npz, protocol):
    both = np.concatenate([recorded["obs"], recorded["action"]], axis=1)
    (npz / "demo.pkl").write_bytes(pickle.dumps(both, protocol))
    if protocol not in (3, 4):  # the others need more names than the public files do
        with pytest.raises(DataError, match=r"it asks for .*; only plain arrays of protocol 3 or 4 are read"):
            load_gild("demo.pkl", "Hopper-v5", folder=npz)
        return
    data = load_gild("demo.pkl", "Hopper-v5", folder=npz)
    assert torch.equal(data.rows, load_gild("demo.npz", "Hopper-v5", folder=npz).rows)
    assert data.episode_starts[:-1].tolist() == recorded["starts"].tolist()


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize(
    "wrap", [lambda x: x, lambda x: np.array([[x]], dtype=object), lambda x: [np.zeros((3, 14)), x]]
)
def test_a_pickle_that_runs_code_does_not_run(tmp_path, wrap):
    mark = tmp_path / "mark"
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(wrap(Evil(mark))))
    with pytest.raises(DataError, match=r"it asks for (posix|os)\.system; only plain arrays") as raised:
        load_gild("evil.pkl", "Hopper-v5", folder=tmp_path)
    assert not mark.exists() and "\n" not in str(raised.value)
    asked = [argument for _, argument, _ in pickletools.genops((tmp_path / "evil.pkl").read_bytes())]
    assert "system" in asked and f"touch {mark}" in asked  # so the file is a real danger


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1.0, 2.0], "it is no array"),
        (np.zeros(14), "it is no array"),
        (np.zeros((3, 14), dtype=object), "it is no array"),
        (np.zeros((3, 13)), r"has observations \[3, 11\] and actions \[3, 2\]; the environment needs"),
        (np.zeros((0, 14)), r"has observations \[0, 11\]"),
        (np.full((3, 14), np.nan), r"observations are not finite numbers in row 0 \(3 rows\)"),
        (np.zeros((3, 14)), r"episode_starts must be integers that rise strictly from 0"),  # none begins at rest
    ],
)
def test_what_is_no_demonstration_is_refused(tmp_path, value, message):
    (tmp_path / "odd.pkl").write_bytes(pickle.dumps(value))
    with pytest.raises(DataError, match=message):
        load_gild("odd.pkl", "Hopper-v5", folder=tmp_path)


@pytest.mark.parametrize("env", ["Pendulum-v1", "InvertedPendulum-v5", "Ant-v5"])
def test_an_observation_that_is_not_the_state_is_refused_with_the_reason(npz, env):
    with pytest.raises(DataError, match=f"an observation of {env} does not determine the simulator's state"):
        load_gild("demo.npz", env, folder=npz)


def test_mistakes_name_the_key(npz):
    generator = torch.Generator()
    with pytest.raises(DataError, match=r"^data\.demo\.gild: .*add `env`, such as env: Hopper-v5"):
        load(DataSource(gild="demo.npz"), generator, "demo", folder=npz)
    with pytest.raises(DataError, match=r"^data\.demo\.gild: environment 'Hoper-v5'"):
        load(DataSource(gild="demo.npz", env="Hoper-v5"), generator, "demo", folder=npz)
    with pytest.raises(DatasetUnavailable, match=r"^data\.demo\.gild: there is no file 'none\.npz'"):
        load(DataSource(gild="none.npz", env="Hopper-v5"), generator, "demo", folder=npz)
    guide = load(DataSource(gild="demo.npz", env="Hopper-v5", tuples=20), generator, "guide", folder=npz)
    assert len(guide) == 20


@pytest.mark.skipif(not PUBLIC.is_dir(), reason="the public demonstrations are not beside the repository")
@pytest.mark.parametrize(
    ("name", "env", "rows", "left_out", "terminated"),
    [("hopper-td3", "Hopper-v5", 3030, 459, 10), ("walker2d-ddpg", "Walker2d-v5", 591, 3021, 1)],
)
def test_the_public_demonstrations(name, env, rows, left_out, terminated):
    data = load_gild(f"{name}.npz", env, folder=PUBLIC)
    assert (len(data), data.card.figures["left_out"]) == (rows, left_out)
    assert data.terminated.sum() == terminated and data.card.figures["ended_early"] == 0
    assert data.card.figures["deviation"]["median"] < 0.1  # they were recorded with an older simulator


@pytest.mark.skipif(not PUBLIC.is_dir(), reason="the public demonstrations are not beside the repository")
@pytest.mark.parametrize("name", ["hopper-ddpg", "walker2d-sac", "halfcheetah-sac"])
def test_episode_starts_are_found_in_the_public_pickles_format(name, tmp_path):
    from metarl.data.gild import _read, _Simulator

    with np.load(PUBLIC / f"{name}.npz") as stored:
        both = np.concatenate([stored["observations"], stored["actions"]], axis=1).astype(np.float64)
        starts = stored["episode_starts"].tolist()
    (tmp_path / "demo.pkl").write_bytes(pickle.dumps(both, 4))
    envs = {"hopper": "Hopper-v5", "walker2d": "Walker2d-v5", "halfcheetah": "HalfCheetah-v5"}
    with gym.make(envs[name.split("-")[0]], disable_env_checker=True) as env:
        found = _read(tmp_path / "demo.pkl", "demo.pkl", _Simulator(env, "demo.pkl"))[2]
    assert found[:-1].tolist() == starts
