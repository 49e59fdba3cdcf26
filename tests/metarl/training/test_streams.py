"""Batches and noise are functions of the seed and the step, and nothing else."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from metarl.data.transitions import Card, pack
from metarl.learner import NoiseSpec, Role
from metarl.training import streams
from metarl.training.streams import BLOCK, Streams, derive_seed


@pytest.fixture
def rows():
    n = 50
    index = np.arange(n, dtype=np.float32)
    return pack(
        obs=index[:, None].repeat(3, 1),
        action=index[:, None],
        reward=index,
        next_obs=index[:, None].repeat(3, 1) + 0.5,
        terminated=np.zeros(n),
        truncated=np.r_[np.zeros(n - 1), 1],
        episode_starts=np.array([0, n]),
        card=Card("test", "test", env_spec=gym.spec("Pendulum-v1").to_json()),
    )


def build(rows, seed=0):
    roles = {"train": Role("train", 7), "second": Role("train", 7)}
    noise = {"a": NoiseSpec((2,)), "b": NoiseSpec((2,), distribution="uniform")}
    return Streams({"train": rows, "second": rows}, roles, noise, seed)


def test_any_step_can_be_drawn_without_the_ones_before(rows):
    walked, jumped = build(rows), build(rows)
    for step in range(1, 2 * BLOCK + 3):
        seen = walked.batches(step)
    direct = jumped.batches(2 * BLOCK + 2)
    for role in seen:
        for name in seen[role]:
            assert torch.equal(seen[role][name], direct[role][name])


def test_steps_roles_noises_and_seeds_differ(rows):
    one, other = build(rows), build(rows, seed=1)
    batches = [one.batches(1)["train"], one.batches(2)["train"], one.batches(1)["second"], other.batches(1)["train"]]
    batches.append(one.batches(BLOCK + 1)["train"])
    drawn = {tuple(batch["reward"].tolist()) for batch in batches}
    assert len(drawn) == len(batches)
    noise = one.batches(1)["noise"]
    assert noise["a"].shape == noise["b"].shape == (7, 2) and not torch.equal(noise["a"], noise["b"])


def test_what_one_update_alone_reads_is_drawn_with_it_and_is_the_same_draw(rows):
    def streams_of(reader):
        roles = {"train": Role("train", 7), "guide": Role("train", 3, reader=reader)}
        noise = {"a": NoiseSpec((2,)), "guide/a": NoiseSpec((2,), role="guide"), "alone": NoiseSpec((), None)}
        return Streams({"train": rows, "guide": rows}, roles, noise, seed=0)

    with_reader, always = streams_of("meta"), streams_of(None)
    for step in (1, 2, BLOCK + 3):
        rest, due = with_reader.batches(step, {"actor"}), with_reader.batches(step, {"actor", "meta"})
        assert set(rest) == {"train", "noise"} and set(rest["noise"]) == {"a", "alone"}
        assert torch.equal(rest["train"]["reward"], due["train"]["reward"])
        for other in (always.batches(step, {"actor"}), with_reader.batches(step)):
            assert set(other) == set(due)
            for role, columns in due.items():
                assert set(columns) == set(other[role])
                assert all(torch.equal(value, other[role][name]) for name, value in columns.items())


def test_rows_stay_whole_and_cover_the_data(rows):
    stream, seen = build(rows), set()
    for step in range(1, 60):
        batch = stream.batches(step)["train"]
        assert torch.equal(batch["obs"][:, 0], batch["reward"]) and torch.equal(batch["action"][:, 0], batch["reward"])
        assert torch.equal(batch["next_obs"][:, 0], batch["reward"] + 0.5)
        seen |= set(batch["reward"].int().tolist())
    assert seen == set(range(50))


def test_leading_axes_hold_rows_and_noise_of_their_own(rows):
    roles = {"train": Role("train", 4), "many": Role("train", 4, lead=(2, 3))}
    noise = {"n": NoiseSpec((5,), "many", lead=(3,)), "alone": NoiseSpec((7, 2), None)}
    stream = streams.Streams({"train": rows, "many": rows}, roles, noise, seed=0)
    batch = stream.batches(1)
    assert batch["many"]["obs"].shape == (2, 3, 4, rows.layout.obs_dim) and batch["many"]["reward"].shape == (2, 3, 4)
    assert torch.equal(batch["many"]["obs"][..., 0], batch["many"]["reward"])  # rows stay whole
    assert len(batch["many"]["reward"].unique()) > 12
    assert batch["noise"]["n"].shape == (3, 4, 5) and batch["noise"]["alone"].shape == (7, 2)


def test_distributions(rows):
    stream = build(rows)
    noise = [stream.batches(step)["noise"] for step in range(1, 2 * BLOCK)]
    normal = torch.stack([n["a"] for n in noise])
    uniform = torch.stack([n["b"] for n in noise])
    assert abs(normal.mean()) < 0.05 and abs(normal.std() - 1) < 0.05
    assert -1 <= uniform.min() < -0.99 and 0.99 < uniform.max() <= 1


def test_a_large_noise_is_drawn_in_smaller_blocks_with_the_same_numbers_every_time(rows, monkeypatch):
    monkeypatch.setattr(streams, "LARGEST", 28)
    assert torch.equal(build(rows).batches(9)["noise"]["a"], build(rows).batches(9)["noise"]["a"])


def test_derived_seeds_are_stable():
    assert derive_seed(0, "batch", "train", 0) == derive_seed(0, "batch", "train", 0)
    assert len({derive_seed(s, name) for s in range(20) for name in "abc"}) == 60
    assert derive_seed(0, "init", "algorithm") == 7573609436189903410
