"""D4RL's reference scores: which environments have them, and what the score is."""

from __future__ import annotations

import pytest

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
    ],
)
def test_the_ends_of_the_scale(env_id, low, high):
    assert normalized(env_id, low).normalized == pytest.approx(0.0)
    assert normalized(env_id, high).normalized == pytest.approx(100.0)
    assert normalized(env_id, (low + high) / 2).normalized == pytest.approx(50.0)
    assert normalized(env_id, 7.5).raw == 7.5


@pytest.mark.parametrize(
    "env_id", ["Hopper-v4", "hopper-medium-v3", "maze2d-umaze-dense-v1", "Pendulum-v1", "PointMaze_UMaze-v3", "x", None]
)
def test_another_version_or_environment_has_no_score_and_keeps_its_return(env_id):
    score = normalized(env_id, 12.34)
    assert (score.normalized, score.reference, str(score)) == (None, None, "12.3")


def test_gymnasiums_v5_says_how_it_differs():
    text = str(normalized("Hopper-v5", 1607.0))
    assert text.startswith("1,607.0 (D4RL score 50.0; ") and "random returns about +18 in v5" in text
    v5 = [reference(f"{name}-v{version}") for name, version in REFERENCES if version == 5]
    assert len(v5) == 4 and all(one.note for one in v5)
    assert all(one.source == "d4rl/infos.py" for one in REFERENCES.values())
    assert str(normalized("hopper-expert-v2", 3234.3)) == "3,234.3 (D4RL score 100.0)"
