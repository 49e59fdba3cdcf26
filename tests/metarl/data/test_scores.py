"""Reference returns: which environments have them, whose they are, and what the score is."""

from __future__ import annotations

import math
import statistics

import pytest

from metarl.data.recipes import find
from metarl.data.scores import REFERENCES, normalized, reference


@pytest.mark.parametrize(
    ("env_id", "low", "high"),
    [
        ("hopper-medium-v2", -20.272305, 3234.3),
        ("hopper-medium-replay-v2", -20.272305, 3234.3),
        ("halfcheetah-random-v0", -280.178953, 12135.0),
        ("walker2d-full-replay-v2", 1.629008, 4592.3),
        ("pen-human-v1", 96.262799, 3076.8331017826877),
        ("antmaze-umaze-diverse-v2", 0.0, 1.0),
        ("antmaze-large-play-v2", 0.0, 1.0),
        ("maze2d-umaze-v1", 23.85, 161.86),
        ("kitchen-partial-v0", 0.0, 4.0),
        ("minigrid-fourrooms-random-v0", 0.01442, 2.89685),
        ("Hopper-v5", -20.272305, 3234.3),
        ("Pendulum-v1", -1227.0, -150.0),
        ("InvertedPendulum-v5", 5.07, 1000.0),
    ],
)
def test_the_ends_of_the_scale(env_id, low, high):
    assert normalized(env_id, low).normalized == pytest.approx(0.0)
    assert normalized(env_id, high).normalized == pytest.approx(100.0)
    assert normalized(env_id, (low + high) / 2).normalized == pytest.approx(50.0)
    assert normalized(env_id, 7.5).raw == 7.5


@pytest.mark.parametrize(
    "env_id", ["Hopper-v4", "hopper-medium-v3", "maze2d-umaze-dense-v1", "Pendulum-v0", "PointMaze_UMaze-v3", "x", None]
)
def test_another_version_or_environment_has_no_score_and_keeps_its_return(env_id):
    score = normalized(env_id, 12.34)
    assert (score.normalized, score.reference, str(score)) == (None, None, "12.3")


def test_gymnasiums_v5_says_how_it_differs():
    text = str(normalized("Hopper-v5", 1607.0))
    assert text.startswith("1,607.0 (D4RL score 50.0; ") and "random returns about +18 in v5" in text
    d4rl = {key: one for key, one in REFERENCES.items() if one.whose == "D4RL"}
    assert all(one.source == "d4rl/infos.py" for one in d4rl.values())
    v5 = [one for (_, version), one in d4rl.items() if version == 5]
    assert len(v5) == 4 and all(one.note for one in v5)
    assert str(normalized("hopper-expert-v2", 3234.3)) == "3,234.3 (D4RL score 100.0)"


def test_a_score_by_the_recipes_levels_is_not_called_d4rls():
    text = str(normalized("Pendulum-v1", -688.5))
    assert text == "-688.5 (metarl score 50.0; 0 is pendulum/random, 100 is pendulum/expert)"
    ours = {key: one for key, one in REFERENCES.items() if one.whose != "D4RL"}
    assert ours.keys() == {("Pendulum", 1), ("InvertedPendulum", 5)}
    for one in ours.values():
        assert "metarl data make" in one.source and "episodes" in one.source and "standard error" in one.source


@pytest.mark.parametrize(
    ("recipe", "env_id"), [("pendulum", "Pendulum-v1"), ("inverted_pendulum", "InvertedPendulum-v5")]
)
def test_metarls_references_are_what_the_recipes_levels_return(recipe, env_id):
    """Within five standard errors of twenty episodes of another seed."""
    for level, wanted in (("random", reference(env_id).low), ("expert", reference(env_id).high)):
        pendulum = recipe == "pendulum"
        size = 4000 if pendulum else {"random": 300, "expert": 2000}[level]
        found, _ = find(f"{recipe}/{level}")
        assert found.env_id == env_id
        returns = [float(episode.rewards.sum()) for episode in found.make(level, size, seed=99)]
        returns = returns if pendulum or level == "expert" else returns[:-1]  # which is cut
        error = statistics.stdev(returns) / math.sqrt(len(returns))
        assert abs(statistics.mean(returns) - wanted) <= 5 * error
