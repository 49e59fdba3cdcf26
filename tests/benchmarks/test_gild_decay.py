"""The decay of GILD's loss network: what is recorded, the picture, and one real measurement of metarl's side."""

import json

import pytest

from benchmarks import gild_decay
from metarl.data.recipes import make_dataset


def test_recorded_courses_fall_together_and_only_with_the_decay():
    courses = json.loads(gild_decay.RESULTS.read_text())["courses"]
    assert list(courses) == [gild_decay.AUTHORS, gild_decay.PUBLISHED, gild_decay.UNDECAYED]
    for who, runs in courses.items():
        assert len(runs) == 3
        for course in runs.values():
            (first, *_, last) = (spread for _, spread in course)
            assert first > 0.05
            assert last > 0.01 if who == gild_decay.UNDECAYED else last < 1e-6


def test_the_picture_and_the_figures_are_drawn_from_the_record(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gild_decay, "PICTURE", tmp_path / "decay.png")
    assert gild_decay.main(["--render"]) == 0
    assert (tmp_path / "decay.png").read_bytes().startswith(b"\x89PNG")
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        gild_decay.AUTHORS,
        gild_decay.PUBLISHED,
        gild_decay.UNDECAYED,
    ]


def test_measuring_needs_a_checkout(capsys, tmp_path):
    assert gild_decay.main([]) == 2
    assert "name a checkout of github.com/slDeng1003/GILD with --gild" in capsys.readouterr().err
    with pytest.raises(gild_decay.UserError, match="there is no"):
        gild_decay.authors(tmp_path, 0)


def test_a_decay_that_is_large_makes_the_network_constant(monkeypatch, tmp_path):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    make_dataset("halfcheetah/random", 1000)
    monkeypatch.setattr(gild_decay, "DEMO", {"recipe": "halfcheetah/random", "size": 1000})
    for name, value in {"RANDOM": 100, "STEPS": 140, "EVERY": 20}.items():
        monkeypatch.setattr(gild_decay, name, value)
    steps, spreads = zip(*gild_decay.ours(0, 1e-4), strict=True)
    assert steps == (0, 20, 40) and spreads[2] < spreads[0]
