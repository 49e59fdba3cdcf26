"""A property of every source: obs, action, reward, next_obs and both flags of a row come from one step.

Every number says which episode and step it belongs to, so a row can be judged by itself.
"""

from __future__ import annotations

import itertools
import warnings
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from minari.data_collector import EpisodeBuffer

from metarl.data import files
from metarl.data import minari as store
from metarl.data.files import export_file, load_file
from metarl.data.minari import load_minari
from metarl.data.transitions import Card, Transitions, pack
from metarl.errors import DataError

TERMINATED, TRUNCATED, OPEN = "terminated", "truncated", "open"  # how an episode ends; open: no flag in the source

ENDED = st.tuples(st.integers(1, 9), st.sampled_from([TERMINATED, TRUNCATED]))
# the last episode may lack its flag: only there can a file say so
EPISODES = st.tuples(
    st.lists(ENDED, max_size=7), st.tuples(st.integers(1, 9), st.sampled_from([TERMINATED, TRUNCATED, OPEN]))
)
EPISODES = EPISODES.map(lambda parts: (*parts[0], parts[1]))

SETTINGS = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # each example takes a fresh name in the folder
)


@dataclass(frozen=True)
class Columns:
    """What was recorded, step by step, and the truth that a reader must give back."""

    obs: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    next_obs: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    flagged: np.ndarray  # truncated, as far as the source says so
    starts: np.ndarray


def recorded(episodes) -> Columns:
    """obs = (episode, t), action = 100 episode + t, reward = action + 0.5."""
    lengths = [length for length, _ in episodes]
    e = np.repeat(np.arange(len(lengths)), lengths)
    t = np.concatenate([np.arange(length) for length in lengths])
    last = t == np.repeat(lengths, lengths) - 1
    how = np.repeat([how for _, how in episodes], lengths)
    return Columns(
        obs=np.stack([e, t], 1).astype(np.float64),
        action=(100.0 * e + t)[:, None].astype(np.float32),
        reward=100.0 * e + t + 0.5,
        next_obs=np.stack([e, t + 1], 1).astype(np.float64),
        terminated=last & (how == TERMINATED),
        truncated=last & (how != TERMINATED),
        flagged=last & (how == TRUNCATED),
        starts=np.concatenate([[0], np.cumsum(lengths)]),
    )


def check(data: Transitions, truth: Columns) -> None:
    """Every recorded row is there, in order, and whole."""
    assert data.episode_starts.tolist() == truth.starts.tolist()
    for name in ("obs", "action", "reward", "next_obs", "terminated", "truncated"):
        expected = torch.from_numpy(getattr(truth, name)).float()
        assert torch.equal(getattr(data, name), expected), name


# ---- the sources


def through_minari(truth: Columns, folder: Path) -> Transitions:
    """Written by Minari alone, which keeps T + 1 observations and T of the rest."""
    name = f"tests/rows{len(list(folder.glob('tests/*')))}-v0"
    buffers = []
    for begin, end in itertools.pairwise(truth.starts):
        part = slice(begin, end)
        buffers.append(
            EpisodeBuffer(
                observations=np.concatenate([truth.obs[part], truth.next_obs[end - 1 : end]]),
                actions=truth.action[part],
                rewards=truth.reward[part],
                terminations=truth.terminated[part],
                truncations=truth.flagged[part],
                infos={},
            )
        )
    box = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning)  # Minari wants an author, an address, a page
        minari.create_dataset_from_buffers(
            name, buffers, observation_space=box, action_space=gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
        )
    return load_minari(name)


def as_d4rl(truth: Columns) -> dict[str, np.ndarray]:
    return {
        "observations": truth.obs,
        "actions": truth.action,
        "rewards": truth.reward,
        "next_observations": truth.next_obs,
        "terminals": truth.terminated,
        "timeouts": truth.flagged,
    }


def through_npz(truth: Columns, folder: Path) -> Transitions:
    np.savez(folder / "rows.npz", **as_d4rl(truth))
    return load_file("rows.npz", folder=folder)


def through_hdf5(truth: Columns, folder: Path) -> Transitions:
    with h5py.File(folder / "rows.hdf5", "w") as file:
        for key, values in as_d4rl(truth).items():
            file[key] = values
    return load_file("rows.hdf5", folder=folder)


SOURCES = (through_minari, through_npz, through_hdf5)


def ends_somewhere(episodes) -> bool:
    """A file without a single flag is refused; Minari keeps episodes apart by itself."""
    return any(how != OPEN for _, how in episodes)


@pytest.mark.parametrize("source", SOURCES)
@SETTINGS
@given(episodes=EPISODES)
def test_every_row_belongs_together(source, episodes, minari_root):
    if source is through_minari or ends_somewhere(episodes):
        check(source(recorded(episodes), minari_root), recorded(episodes))


@SETTINGS
@given(episodes=EPISODES.filter(lambda e: all(how != TERMINATED for _, how in e) and ends_somewhere(e)))
def test_without_next_observations_the_step_before_a_cut_is_all_that_is_missing(episodes, minari_root):
    truth = recorded(episodes)
    columns = as_d4rl(truth)
    del columns["next_observations"]
    np.savez(minari_root / "rows.npz", **columns)
    kept = ~truth.truncated
    if not kept.any():
        return
    data = load_file("rows.npz", folder=minari_root)
    for name in ("obs", "action", "reward", "next_obs"):
        assert torch.equal(getattr(data, name), torch.from_numpy(getattr(truth, name)[kept]).float()), name
    assert data.terminated.sum() == 0
    assert data.episode_lengths().tolist() == [length - 1 for length, _ in episodes if length > 1]
    assert str((~kept).sum()) in data.card.figures["left_out"]


# ---- faults that the property must see, each as a reader that makes it


def packed(truth: Columns, **changed) -> Transitions:
    names = ("obs", "action", "reward", "next_obs", "terminated", "truncated")
    columns = {name: changed.get(name, getattr(truth, name)) for name in names}
    starts = changed.get("starts", truth.starts)
    return pack(**columns, episode_starts=starts, card=Card(source="test", dataset_id="tests/faulty-v0"))


def shifted(truth: Columns) -> Transitions:
    """T + 1 observations joined against T actions: episode k is off by k rows (what d3rlpy does)."""
    chains = [
        np.concatenate([truth.obs[begin:end], truth.next_obs[end - 1 : end]])
        for begin, end in itertools.pairwise(truth.starts)
    ]
    obs = np.concatenate(chains)[: len(truth.obs)]
    return packed(truth, obs=obs)


def truncation_as_termination(truth: Columns) -> Transitions:
    return packed(truth, terminated=truth.terminated | truth.truncated, truncated=np.zeros_like(truth.truncated))


def dropped_last_step(truth: Columns) -> Transitions:
    """The last step of every timed-out episode is left out (D4RL's own rule), and the rest packed."""
    kept = ~truth.truncated
    lengths = [int(kept[begin:end].sum()) for begin, end in itertools.pairwise(truth.starts)]
    names = ("obs", "action", "reward", "next_obs", "terminated", "truncated")
    return packed(
        truth,
        **{name: getattr(truth, name)[kept] for name in names},
        starts=np.concatenate([[0], np.cumsum([length for length in lengths if length])]),
    )


@pytest.mark.parametrize("fault", [shifted, truncation_as_termination, dropped_last_step])
def test_the_property_fails_for(fault):
    """Every example that the fault can touch fails, and a reader without the fault passes on the same examples."""
    seen = 0

    @SETTINGS
    @given(episodes=EPISODES.filter(lambda e: len(e) > 1 and e[0][1] == TRUNCATED and e[0][0] > 1))
    def judge(episodes):
        nonlocal seen
        truth = recorded(episodes)
        check(packed(truth), truth)
        with pytest.raises(AssertionError):
            check(fault(truth), truth)
        seen += 1

    judge()
    assert seen >= 20


@pytest.mark.parametrize("source", SOURCES)
def test_the_readers_themselves_are_seen_to_shift(source, minari_root, monkeypatch):
    """Our own readers, broken by one row: the rows differ, or the packing's own check already refuses them."""
    truth = recorded([(3, TRUNCATED), (2, TERMINATED), (4, TRUNCATED)])
    aligned, arrays = store._aligned, files._pack

    def late(episode, keys, where):
        rows = aligned(episode, keys, where)
        return {**rows, "obs": rows["next_obs"]}

    def late_file(columns, name):
        return arrays({**columns, "observations": np.roll(columns["observations"], 1, axis=0)}, name)

    monkeypatch.setattr(store, "_aligned", late)
    monkeypatch.setattr(files, "_pack", late_file)
    with pytest.raises((AssertionError, DataError)):
        check(source(truth, minari_root), truth)


# ---- one dataset, every way out and in


@SETTINGS
@given(episodes=EPISODES)
def test_exports_and_minari_itself_give_identical_rows(episodes, minari_root):
    data = through_minari(recorded(episodes), minari_root)
    for suffix in ("npz", "hdf5", "h5"):
        path = minari_root / f"export.{suffix}"
        export_file(data, path, overwrite=True)
        again = load_file(path.name, folder=minari_root)
        assert torch.equal(again.rows, data.rows) and torch.equal(again.episode_starts, data.episode_starts)
        assert again.card.sha256 == data.card.sha256
    rows = []
    for episode in minari.load_dataset(data.card.dataset_id):  # Minari's own reader, and nothing of ours
        for t in range(len(episode)):
            ended = episode.terminations[t] or episode.truncations[t] or t == len(episode) - 1
            flags = [episode.terminations[t], ended and not episode.terminations[t]]
            step = (
                episode.observations[t],
                episode.actions[t],
                [episode.rewards[t]],
                episode.observations[t + 1],
                flags,
            )
            rows.append(np.concatenate(step).astype(np.float32))
    assert torch.equal(torch.from_numpy(np.stack(rows)).float(), data.rows)
