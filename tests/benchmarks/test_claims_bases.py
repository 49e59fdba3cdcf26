"""Claims about GORL's four bases: their rules judge known data as they should."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.claims import gorl_bases
from benchmarks.claims.gorl_bases import BASES, beats_cloning, bounded, guiding_helps, improves_all, mixing_harms
from benchmarks.results import Cell, Evaluation, Results, Run, Series

SEEDS = 5
AXES = {"dataset": (), "base": ("BC", *BASES), "method": ("base", "GORL quick")}
COLUMNS = ("pendulum/medium", "inverted_pendulum/medium", "pointmaze_umaze/medium")


def made(scores, q=None, columns=COLUMNS, scale=1.0):
    """Results whose rows have these scores (success rates in percent) on every dataset, with some spread over seeds."""
    cells = []
    for row, score in scores.items():
        for column in columns:
            noise = np.random.default_rng(len(cells)).normal(size=SEEDS)
            noise -= noise.mean()
            runs = []
            for seed in range(SEEDS):
                value = (score[column] if isinstance(score, dict) else score) + noise[seed]
                evaluations = tuple(Evaluation(step, value, value / 100) for step in range(11))
                top = (q or {}).get((row, column), -1.0)
                scalars = {"critic/q_max": Series((0, 1), (-5.0, top))}
                config = {"algorithm": {"rewards": {"scale": scale}}}
                runs.append(
                    Run(Path(f"x/{seed}"), seed, 10, True, evaluations, scalars, {}, {}, {}, config, planned=10)
                )
            cells.append(Cell(row, column, f"{row}-{column}", tuple(range(SEEDS)), 10, tuple(runs)))
    return Results("made", "method", "dataset", tuple(scores), tuple(columns), tuple(cells), axes=AXES)


def rows(**by_method):
    return {"BC · base": 40} | {f"{b} · {m.replace('_', ' ')}": s for m, s in by_method.items() for b in BASES}


def test_every_base_must_beat_cloning_on_medium_data_alone():
    assert beats_cloning(made(rows(base=60))).outcome == "held"
    one_short = rows(base=60) | {"CQL · base": {c: 60 for c in COLUMNS} | {COLUMNS[1]: 40.01}}
    assert beats_cloning(made(one_short)).outcome == "undecided"
    one_below = rows(base=60) | {"CQL · base": {c: 60 for c in COLUMNS} | {COLUMNS[1]: 20}}
    assert beats_cloning(made(one_below)).outcome == "did not hold"
    only_random = {row: {"pendulum/medium": 60, "pendulum/random": 0} for row in rows(base=0)} | {"BC · base": 40}
    verdict = beats_cloning(made(only_random, columns=("pendulum/medium", "pendulum/random")))
    assert verdict.outcome == "held" and len(verdict.table) == 2


@pytest.mark.parametrize(
    ("column", "top", "outcome"),
    [
        ("inverted_pendulum/medium", 299.0, "held"),
        ("inverted_pendulum/medium", 301.0, "did not hold"),
        ("pointmaze_umaze/medium", 2.9, "held"),
        ("pointmaze_umaze/medium", 3.1, "did not hold"),
        ("pendulum/medium", 160.0, "held"),
        ("pendulum/medium", 165.0, "did not hold"),
        ("pendulum/medium", float("nan"), "did not hold"),
    ],
)
def test_q_is_measured_against_the_best_possible_return(column, top, outcome):
    scores = rows(base=60, GORL_quick=60)
    verdict = bounded(made(scores, {("IQL · GORL quick", column): top}))
    assert verdict.outcome == outcome
    line = next(line for line in verdict.table if line[0] == column)
    assert line[3 + BASES.index("IQL")] == f"{top:.3g}"
    scaled = bounded(made(scores, {("IQL · GORL quick", column): 100 * top}, scale=100.0))
    assert scaled.outcome == outcome


def test_the_average_over_bases_and_each_base():
    assert improves_all("GORL quick", made(rows(base=50, GORL_quick=60))).outcome == "held"
    assert improves_all("GORL quick", made(rows(base=60, GORL_quick=50))).outcome == "did not hold"
    mixed = rows(base=50, GORL_quick=50.01)
    verdict = improves_all("GORL quick", made(mixed))
    assert verdict.outcome == "undecided" and [line[0] for line in verdict.table[1:]] == list(BASES)


def test_mixing_and_guiding_by_base():
    harmful = rows(**{"pure data": 60, "expert mixed in": 40, "guided by expert": 70, "guided by best episodes": 50})
    results = replace(made(harmful), axes={**AXES, "method": ()})
    assert mixing_harms(results).outcome == "held"
    assert guiding_helps("guided by expert", results).outcome == "held"
    verdict = guiding_helps("guided by best episodes", results)
    assert verdict.outcome == "did not hold" and "CQL −10" in verdict.measured


def test_every_claim_names_a_suite_that_is_shipped_and_rows_that_it_has():
    from benchmarks.running import suite

    for name in (gorl_bases.SUITE, gorl_bases.MIXING):
        loaded = suite.load(suite.find(name.removesuffix("-small")), small=True)
        assert set(BASES) < set(loaded.axes["base"])
    loaded = suite.load(suite.find("gorl_figure_4_bases"), small=True)
    assert {"pure data", "expert mixed in", "guided by expert", "guided by best episodes"} == set(loaded.axes["method"])
