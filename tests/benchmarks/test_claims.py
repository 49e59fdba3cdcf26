"""The claims page: its index is whole, its rules judge known data as they should, and it says what is committed."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.claims import gorl, page
from benchmarks.claims.verdict import Difference, called, majority
from benchmarks.results import Cell, Evaluation, Results, Run, Series
from benchmarks.running import suite
from metarl.errors import UserError

ROOT = Path(__file__).parents[2]
SEEDS = 5


def _run(seed, score, scalars):
    """A finished run whose ten evaluations after step 0 all have the success rate `score` percent."""
    evaluations = tuple(Evaluation(step, score, score / 100) for step in range(11))
    series = {name: Series((0, 1), (value, value)) for name, value in scalars.items()}
    return Run(Path(f"x/{seed}"), seed, 10, True, evaluations, series, {}, {}, {}, {}, planned=10)


def _results(name, means, sd=1.0, scalars=None, axes=None, columns=("a", "b", "c")):
    """Rows with these mean scores on every dataset, and a spread over seeds that has no part in the mean."""
    spread = sd * np.array([-1.2, -0.5, 0.1, 0.5, 1.1])
    cells = []
    for row, mean in means.items():
        for shift, column in enumerate(columns):
            noise = np.roll(spread, shift + len(cells))
            runs = tuple(_run(s, mean + noise[s], (scalars or {}).get(row, {})) for s in range(SEEDS))
            cells.append(Cell(row, column, f"{row}-{column}", tuple(range(SEEDS)), 10, runs))
    return Results(name, "method", "dataset", tuple(means), tuple(columns), tuple(cells), axes=axes or {})


def _constants(scores, **learned):
    fixed = {f"fixed {w}": score for w, score in zip((0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0), scores, strict=True)}
    return _results("gorl_table_iv-small", {**fixed, **learned})


@pytest.mark.parametrize(
    ("scores", "outcome"),
    [
        ((10, 40, 80, 90, 70, 60, 50), "held"),
        ((90, 80, 70, 60, 50, 40, 30), "did not hold"),
        ((89.9, 90, 90.1, 90, 90, 90, 89.9), "undecided"),
    ],
)
def test_an_interior_optimum(scores, outcome):
    verdict = gorl.interior_optimum(_constants(scores))
    assert verdict.outcome == outcome
    assert len(verdict.table) == 1 + 3
    if outcome == "held":
        assert verdict.table[1][1:3] == ["0.5", "90.0"]


@pytest.mark.parametrize(("ours", "outcome"), [(99, "held"), (90.1, "undecided"), (50, "did not hold")])
def test_learned_weights_against_every_constant(ours, outcome):
    results = _constants((10, 40, 80, 90, 70, 60, 50), **{"GORL as published": ours})
    verdict = gorl.beats_every_constant(gorl.PUBLISHED, results)
    assert verdict.outcome == outcome
    assert f"averages {ours:.1f}" in verdict.measured


@pytest.mark.parametrize(("ours", "outcome"), [(60, "held"), (50.05, "undecided"), (40, "did not hold")])
def test_an_improvement_over_the_base(ours, outcome):
    results = _constants((10, 40, 80, 90, 70, 60, 50), **{"GORL as published": ours})
    verdict = gorl.improves_base(gorl.PUBLISHED, results)
    assert verdict.outcome == outcome
    # Every evaluation of a run is the same here, so the papers' test sees 50 pairs where there are 5.
    assert "takes the evaluations of one run for independent" in verdict.measured


def test_constants_that_matter():
    assert gorl.weight_matters(_constants((10, 40, 80, 90, 70, 60, 50))).outcome == "held"
    assert gorl.weight_matters(_constants((90, 90, 91, 90, 90, 90, 90))).outcome == "undecided"


@pytest.mark.parametrize(("mixed", "harms", "guiding"), [(40, "held", "held"), (80, "did not hold", "did not hold")])
def test_mixing(mixed, harms, guiding):
    results = _results("gorl_figure_4-small", {"pure data": 60, "expert mixed in": mixed, "guided": 60})
    assert gorl.mixing_harms(results).outcome == harms
    assert gorl.guiding_beats_mixing(results).outcome == guiding


def _numbers(guiding, mixed, alone):
    tuples = ("50", "1000", "10000")
    rows = {"none · 0": 50.0}
    for use, scores in (("guiding", guiding), ("mixed in", mixed), ("alone", alone)):
        rows |= {f"{use} · {n}": score for n, score in zip(tuples, scores, strict=True)}
    axes = {"use": ("none", "guiding", "mixed in", "alone"), "tuples": ("0", *tuples), "dataset": ("a", "b", "c")}
    return _results("gorl_figure_5-small", rows, axes=axes)


def test_numbers_of_tuples():
    as_published = _numbers((70, 70, 70), (40, 50, 70), (10, 50, 90))
    assert gorl.few_guide_better(as_published).outcome == "held"
    assert gorl.many_mix_as_well(as_published).outcome == "undecided"  # no test proves that two things are equal
    assert gorl.alone_grows(as_published).outcome == "held"
    reversed_ = _numbers((40, 40, 90), (70, 70, 70), (90, 50, 10))
    assert gorl.few_guide_better(reversed_).outcome == "did not hold"
    assert gorl.many_mix_as_well(reversed_).outcome == "did not hold"
    assert gorl.alone_grows(reversed_).outcome == "did not hold"


@pytest.mark.parametrize(("expert", "outcome"), [(0.5, "held"), (2.0, "did not hold")])
def test_the_relative_constraint(expert, outcome):
    scalars = {
        "TD3+BC": {"watch/expert/constraint": 1.0, "watch/random/constraint": 1.0},
        "GORL quick": {"watch/expert/constraint": expert, "watch/random/constraint": 1.0},
    }
    results = _results("gorl_figure_3-small", {"TD3+BC": 50, "GORL quick": 50}, scalars=scalars)
    assert gorl.relative_constraint("GORL quick", results).outcome == outcome


@pytest.mark.parametrize(("moved", "outcome"), [(0.2, "held"), (0.01, "did not hold")])
def test_the_schedule(moved, outcome):
    scalars = {row: {"guiding_network/output_moved": m} for row, m in (("1e-5 · 500", moved), ("1e-3 · 4", 0.4))}
    results = _results("gorl_schedule-small", {"1e-5 · 500": 50, "1e-3 · 4": 50}, scalars=scalars)
    assert gorl.schedule_moves(results).outcome == outcome


def test_a_difference_by_hand():
    """Means 2 and 5, variances 1 and 1: se = sqrt(1/3 + 1/3) = 0.8165, 4 degrees of freedom, t = -3.674, half-width
    2.776 * 0.8165 = 2.267."""
    found = Difference.of([1, 2, 3], [4, 5, 6])
    assert found.value == -3 and found.test.statistic == pytest.approx(-3.674, abs=1e-3)
    assert (found.low, found.high) == pytest.approx((-5.267, -0.733), abs=1e-3)
    assert found.significant and not Difference.of([1, 2], [40, 50]).significant  # two seeds claim nothing
    with pytest.raises(UserError, match="two seeds"):
        Difference.of([1], [2])


def test_what_a_claim_about_most_datasets_is_called():
    assert called(False, True) == "undecided" and called(True, False) == "did not hold"
    assert majority(["held", "held", "undecided"]) == "held"
    assert majority(["held", "held", "undecided", "did not hold"]) == "undecided"


def test_an_unfinished_cell_is_not_judged():
    results = _constants((10, 40, 80, 90, 70, 60, 50))
    short = Cell(**{**vars(results.cells[0]), "runs": results.cells[0].runs[:3]})
    with pytest.raises(UserError, match=r"'fixed 0.0', 'a' is not there with all its seeds"):
        gorl.interior_optimum(Results(**{**vars(results), "cells": (short, *results.cells[1:])}))


def test_every_item_of_the_papers_has_one_answer_that_exists():
    papers = page.papers()
    assert [paper["paper"] for paper in papers] == ["GORL", "GILD", "POR", "PEX"]
    for item in (item for paper in papers for item in paper["items"]):
        for key in ("page", "test"):
            assert key not in item or (ROOT / item[key]).is_file(), item


@pytest.mark.parametrize("name", suite.shipped())
def test_shipped_suites_are_sound(name):
    path = suite.find(name)
    loaded = suite.load(path)
    assert loaded.name == name and loaded.cells
    if "small:" in path.read_text():
        small = suite.load(path, small=True)
        assert max(cell.experiment.steps for cell in small.cells) <= 10_000
        sources = [source for cell in small.cells for source in cell.experiment.data.values()]
        assert all(part.recipe for source in sources for part in source.mix or (source,))


def test_the_page_says_what_is_committed(tmp_path):
    page.write(tmp_path)
    assert (tmp_path / "claims.md").read_text() == (ROOT / "docs" / "claims.md").read_text()
