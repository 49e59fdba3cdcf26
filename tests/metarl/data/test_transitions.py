"""Packing, its refusals, draws and statistics."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch

from metarl.data.mixing import concatenate
from metarl.data.transitions import Card, Layout, Statistics, Transitions, digest, pack
from metarl.errors import DataError

LENGTHS = (1, 4, 7, 2)


@pytest.fixture
def columns() -> dict:
    """Valid arguments of `pack`: episodes 0 and 2 terminate, episode 1 is truncated, episode 3 is left open."""
    rng = np.random.default_rng(0)
    starts = np.concatenate([[0], np.cumsum(LENGTHS)])
    n = int(starts[-1])
    terminated, truncated = np.zeros(n, bool), np.zeros(n, bool)
    terminated[[starts[1] - 1, starts[3] - 1]] = True
    truncated[starts[2] - 1] = True
    chains = [rng.normal(size=(length + 1, 3)) for length in LENGTHS]
    return {
        "obs": np.concatenate([chain[:-1] for chain in chains]),
        "action": rng.normal(size=(n, 2)),
        "reward": rng.normal(size=n),
        "next_obs": np.concatenate([chain[1:] for chain in chains]),
        "terminated": terminated,
        "truncated": truncated,
        "episode_starts": starts,
        "card": Card(source="test", dataset_id="tests/packed-v0"),
    }


@pytest.fixture
def transitions(columns) -> Transitions:
    return pack(**columns, contiguous=True)


def test_split_gives_views_in_the_documented_order():
    layout = Layout(obs_dim=3, action_dim=2)
    rows = torch.arange(2 * 5 * 11.0).reshape(2, 5, 11)
    parts = layout.split(rows)
    assert layout.width == 11
    assert list(parts) == ["obs", "action", "reward", "next_obs", "terminated", "truncated"]
    assert [tuple(parts[name].shape) for name in parts] == [(2, 5, 3), (2, 5, 2), (2, 5), (2, 5, 3), (2, 5), (2, 5)]
    assert torch.equal(parts["reward"], rows[..., 5])
    assert torch.equal(parts["next_obs"], rows[..., 6:9])
    assert all(part.untyped_storage().data_ptr() == rows.untyped_storage().data_ptr() for part in parts.values())


def test_split_refuses_rows_of_another_width():
    with pytest.raises(DataError, match="10 columns"):
        Layout(3, 2).split(torch.zeros(4, 10))


def test_pack_keeps_every_column(columns, transitions):
    assert transitions.rows.dtype == torch.float32 and transitions.rows.is_contiguous()
    for name in ("obs", "action", "reward", "next_obs", "terminated"):
        expected = torch.as_tensor(columns[name]).float()
        assert torch.equal(getattr(transitions, name), expected), name
    assert len(transitions) == sum(LENGTHS) and transitions.episodes == len(LENGTHS)


def test_an_open_last_row_is_truncated_and_nothing_else_is(columns):
    columns["truncated"] = columns["truncated"].astype(np.float32)
    transitions = pack(**columns)
    expected = torch.tensor(columns["truncated"])
    expected[-1] = 1.0
    assert torch.equal(transitions.truncated, expected)
    assert not columns["truncated"][-1]  # the caller's array is left alone


def _set(name, index, value):
    def change(columns):
        columns[name] = columns[name].astype(np.float64)
        columns[name][index] = value

    return change


def _replace(name, value):
    return lambda columns: columns.update({name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("obs", (5, 2), np.nan), r"obs\[2\] is nan in row 5"),
        (_set("action", (3, 1), np.inf), r"action\[1\] is inf in row 3"),
        (_set("reward", 7, -np.inf), r"reward is -inf in row 7"),
        (_set("next_obs", (2, 0), 1e300), r"next_obs\[0\] is inf in row 2"),
        (_set("terminated", 0, 0.5), r"terminated is 0.5 in row 0; it must be 0 or 1"),
        (_set("terminated", 2, 1), r"terminated is set in row 2, in the middle of an episode"),
        (_set("truncated", 6, 1), r"truncated is set in row 6, in the middle of an episode"),
        (_set("next_obs", (1, 0), 9.0), r"next_obs of row 1 is not obs of row 2"),
        (_replace("obs", np.zeros(14)), r"obs has shape \(14,\)"),
        (_replace("obs", np.zeros((0, 3))), r"at least one row"),
        (_replace("action", np.zeros((13, 2))), r"action has shape \(13, 2\)"),
        (_replace("action", np.zeros(14)), r"action has shape \(14,\)"),
        (_replace("next_obs", np.zeros((14, 4))), r"next_obs has shape \(14, 4\)"),
        (_replace("reward", np.zeros((14, 1))), r"reward has shape \(14, 1\)"),
        (_replace("truncated", np.zeros(13)), r"truncated has shape \(13,\)"),
        (_replace("episode_starts", np.array([0, 5, 5, 14])), r"rise strictly from 0 to 14"),
        (_replace("episode_starts", np.array([1, 5, 14])), r"rise strictly from 0 to 14"),
        (_replace("episode_starts", np.array([0, 5, 13])), r"rise strictly from 0 to 14"),
        (_replace("episode_starts", np.array([0.0, 14.0])), r"must be integers"),
    ],
)
def test_pack_refuses_in_one_line(columns, change, message):
    change(columns)
    with pytest.raises(DataError, match=message) as raised:
        pack(**columns, contiguous=True)
    assert "tests/packed-v0" in str(raised.value) and "\n" not in str(raised.value)


def test_only_a_source_that_claims_contiguity_is_checked_for_it(columns):
    columns["next_obs"] = columns["next_obs"] + 1
    pack(**columns)
    with pytest.raises(DataError, match="next_obs of row 1"):
        pack(**columns, contiguous=True)


def test_returns_are_sums_over_the_episodes(columns, transitions):
    starts = columns["episode_starts"]
    rewards = columns["reward"].astype(np.float32).astype(np.float64)
    expected = [rewards[a:b].sum() for a, b in itertools.pairwise(starts)]
    assert transitions.returns().dtype == torch.float64
    np.testing.assert_allclose(transitions.returns(), expected, rtol=1e-14)
    assert transitions.card.returns["mean"] == pytest.approx(np.mean(expected), rel=1e-14)
    assert transitions.card.returns["max"] == pytest.approx(max(expected), rel=1e-14)
    assert transitions.episode_lengths().tolist() == list(LENGTHS)
    assert transitions.episode_of_row().tolist() == np.repeat(range(4), LENGTHS).tolist()


def test_the_hash_sees_rows_and_boundaries(columns, transitions):
    assert pack(**columns).card.sha256 == transitions.card.sha256
    open_flag = columns["truncated"].copy()
    open_flag[-1] = True  # what pack sets itself: the same rows
    assert pack(**{**columns, "truncated": open_flag}).card.sha256 == transitions.card.sha256
    columns["reward"][3] += 1e-3
    assert pack(**columns).card.sha256 != transitions.card.sha256
    starts = transitions.episode_starts
    assert digest(transitions.rows, starts) == transitions.card.sha256
    assert digest(transitions.rows, starts[[0, 2, 3, 4]]) != transitions.card.sha256


def test_tuples_are_distinct_rows_of_the_data_each_a_piece_of_its_own(transitions):
    before = transitions.rows.clone()
    drawn = transitions.sample_tuples(10, torch.Generator().manual_seed(3))
    again = transitions.sample_tuples(10, torch.Generator().manual_seed(3))
    assert torch.equal(drawn.rows, again.rows)
    assert drawn.episode_starts.tolist() == list(range(11))
    matches = [(transitions.obs == row).all(1).nonzero().flatten().tolist() for row in drawn.obs]
    indices = [match for (match,) in matches]
    assert len(set(indices)) == 10
    for name in ("obs", "action", "reward", "next_obs", "terminated"):
        assert torch.equal(getattr(drawn, name), getattr(transitions, name)[indices]), name
    assert ((drawn.terminated + drawn.truncated) >= 1).all()
    assert torch.equal(drawn.truncated * drawn.terminated, torch.zeros(10))
    assert torch.equal(transitions.rows, before)
    assert drawn.card.figures["drawn"] == "10 random transitions of 14" and drawn.card.returns == {}
    assert drawn.card.sha256 != transitions.card.sha256


def test_all_tuples_can_be_drawn_and_no_more(transitions):
    everything = transitions.sample_tuples(14, torch.Generator().manual_seed(0))
    assert sorted(everything.reward.tolist()) == sorted(transitions.reward.tolist())
    for n in (15, 0):
        with pytest.raises(DataError, match=f"'tests/packed-v0': {n} transitions were asked for and 14 are there"):
            transitions.sample_tuples(n, torch.Generator())


def test_episodes_are_drawn_whole(transitions):
    drawn = transitions.sample_episodes(3, torch.Generator().manual_seed(1))
    wanted = torch.randperm(4, generator=torch.Generator().manual_seed(1))[:3].tolist()
    for piece, episode in enumerate(wanted):
        mine = drawn.rows[drawn.episode_starts[piece] : drawn.episode_starts[piece + 1]]
        theirs = transitions.rows[transitions.episode_starts[episode] : transitions.episode_starts[episode + 1]]
        assert torch.equal(mine, theirs)
    assert drawn.card.returns["mean"] == pytest.approx(transitions.returns()[wanted].mean().item())
    with pytest.raises(DataError, match="5 episodes were asked for and 4 are there"):
        transitions.sample_episodes(5, torch.Generator())


def test_statistics_are_td3_bcs(columns, transitions):
    obs = columns["obs"].astype(np.float32).astype(np.float64)
    statistics = Statistics.of(transitions)
    assert statistics.mean.dtype == statistics.std.dtype == torch.float64
    expected = (obs - obs.mean(0)) / (obs.std(0) + 1e-3)
    np.testing.assert_allclose(statistics(torch.from_numpy(obs)), expected, rtol=1e-12)
    assert statistics(transitions.obs).dtype == torch.float32
    restored = Statistics.from_dict(statistics.to_dict())
    assert torch.equal(restored.mean, statistics.mean) and torch.equal(restored.std, statistics.std)


def test_normalising_touches_observations_only(transitions):
    statistics = Statistics.of(transitions)
    before = transitions.rows.clone()
    normalized = transitions.normalized(statistics)
    assert torch.equal(transitions.rows, before)
    assert torch.equal(normalized.obs, statistics(transitions.obs))
    assert torch.equal(normalized.next_obs, statistics(transitions.next_obs))
    for name in ("action", "reward", "terminated", "truncated"):
        assert torch.equal(getattr(normalized, name), getattr(transitions, name)), name
    assert transitions.to(dtype=torch.float64).rows.dtype == torch.float64


def test_a_constant_observation_stays_finite(columns):
    columns["obs"][:, 1] = columns["next_obs"][:, 1] = 4.0
    packed = pack(**columns)
    assert torch.equal(packed.normalized(Statistics.of(packed)).obs[:, 1], torch.zeros(14))


def test_a_card_survives_json(transitions):
    card = transitions.card
    assert Card.from_dict(json.loads(json.dumps(card.to_dict()))) == card
    with pytest.raises(DataError, match="unknown keys"):
        Card.from_dict({**card.to_dict(), "sead": 1})
    with pytest.raises(DataError, match="lacks"):
        Card.from_dict({"source": "test"})


def test_rewards_are_transformed_in_a_copy(transitions):
    before = transitions.rows.clone()
    changed = transitions.with_rewards(2.0, -3.0)
    assert torch.equal(transitions.rows, before) and changed.card is transitions.card
    torch.testing.assert_close(changed.reward, 2 * transitions.reward - 3, rtol=1e-6, atol=1e-6)
    for name in ("obs", "action", "next_obs", "terminated", "truncated"):
        assert torch.equal(getattr(changed, name), getattr(transitions, name)), name
    assert changed.episode_starts is transitions.episode_starts
    assert transitions.with_rewards(1.0, 0.0) is transitions
    for other in ((1.0, 1.0), (2.0, 0.0)):
        assert not torch.equal(transitions.with_rewards(*other).reward, transitions.reward)


def test_the_range_of_returns_is_that_of_whole_episodes(transitions):
    returns = transitions.returns()
    card = transitions.card
    assert card.return_range() == (returns.min().item(), returns.max().item())
    single = transitions.sample_tuples(3, torch.Generator())
    with pytest.raises(DataError, match="'tests/packed-v0' holds single transitions, which have no returns"):
        single.card.return_range()
    one = transitions.take_episodes(torch.tensor([1]))
    with pytest.raises(DataError, match=r"'tests/packed-v0': every episode has the return .* so there is no range"):
        one.card.return_range()


def test_the_range_of_a_mixture_is_that_of_its_whole_episodes(transitions):
    low, high = transitions.card.return_range()
    worst, best = transitions.returns().argmin(), transitions.returns().argmax()
    middle = transitions.take_episodes(torch.tensor([i for i in range(4) if i not in (worst, best)]))
    single = transitions.sample_tuples(3, torch.Generator())
    ends = [transitions.take_episodes(torch.tensor([int(i)])) for i in (worst, best)]
    assert concatenate([ends[0], middle, ends[1]]).card.return_range() == (low, high)
    mixed = concatenate([ends[0], single, ends[1]]).card
    assert mixed.returns == {} and mixed.return_range() == (low, high)
    assert Card.from_dict(json.loads(json.dumps(mixed.to_dict()))).return_range() == (low, high)
    assert concatenate([middle, single]).card.return_range() == middle.card.return_range()
    with pytest.raises(DataError, match="holds single transitions"):
        concatenate([single, single]).card.return_range()
    with pytest.raises(DataError, match="so there is no range"):
        concatenate([ends[0], single]).card.return_range()


def test_the_range_of_what_was_drawn_from_a_mixture_is_that_of_the_draw(transitions):
    mixed = concatenate([transitions, transitions])
    best = mixed.top(0.6)
    assert best.card.return_range() == (best.returns().min().item(), best.returns().max().item())
    assert best.card.return_range()[0] > mixed.card.return_range()[0]
    with pytest.raises(DataError, match="holds single transitions"):
        mixed.sample_tuples(5, torch.Generator()).card.return_range()
