"""The claims page: its index is whole, its rules judge known data as they should, and it says what is committed."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.claims import __main__ as command
from benchmarks.claims import gorl, page
from benchmarks.claims.verdict import Difference, called, clear, directions, majority
from benchmarks.results import Cell, Evaluation, Results, Run, Series
from benchmarks.running import suite
from metarl.errors import UserError

ROOT = Path(__file__).parents[2]
SEEDS = 5


def _judge(says, results):
    """The outcome of the claim that says this."""
    (claim,) = [claim for claim in gorl.CLAIMS if claim.says.startswith(says)]
    return claim.judge(results).outcome


def _run(seed, score, scalars):
    """A finished run whose ten evaluations after step 0 all have the success rate `score` percent."""
    evaluations = tuple(Evaluation(step, score, score / 100) for step in range(11))
    series = {name: Series((0, 1), (values[seed], values[seed])) for name, values in scalars.items()}
    return Run(Path(f"x/{seed}"), seed, 10, True, evaluations, series, {}, {}, {}, {}, planned=10)


def _results(name, means, sd=1.0, scalars=None, axes=None, columns=("a", "b", "c")):
    """Rows with these mean scores on every dataset, and a spread over seeds that has no part in the mean."""
    cells = []
    for row, mean in means.items():
        for column in columns:
            noise = np.random.default_rng(len(cells)).normal(size=SEEDS)
            noise = sd * (noise - noise.mean())
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
        ((90, 89.9, 70, 60, 50, 40, 30), "undecided"),  # the end beats the other one, and no weight beside it
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
    verdict = gorl.better(gorl.PUBLISHED, gorl.BASE, results)
    assert verdict.outcome == outcome
    # Every evaluation of a run is the same here, so that the papers' test sees 50 pairs where there are 5.
    assert all(float(row[3]) <= float(row[2]) for row in verdict.table[1:])


def test_constants_that_matter():
    assert gorl.weight_matters(_constants((10, 40, 80, 90, 70, 60, 50))).outcome == "held"
    assert gorl.weight_matters(_constants((90, 90, 91, 90, 90, 90, 90))).outcome == "undecided"


@pytest.mark.parametrize(("mixed", "harms", "guiding"), [(40, "held", "held"), (80, "did not hold", "did not hold")])
def test_mixing(mixed, harms, guiding):
    results = _results("gorl_figure_4-small", {"pure data": 60, "expert mixed in": mixed, "guided": 60})
    assert _judge("mixing 200 expert tuples", results) == harms
    assert _judge("guiding with them", results) == guiding


def _numbers(guiding, mixed, alone, sd=1.0):
    tuples = ("50", "1000", "10000")
    rows = {"none · 0": 50.0}
    for use, scores in (("guiding", guiding), ("mixed in", mixed), ("alone", alone)):
        rows |= {f"{use} · {n}": score for n, score in zip(tuples, scores, strict=True)}
    axes = {"use": ("none", "guiding", "mixed in", "alone"), "tuples": ("0", *tuples), "dataset": ("a", "b", "c")}
    return _results("gorl_figure_5-small", rows, sd, axes=axes)


def test_numbers_of_tuples():
    as_published = _numbers((70, 70, 70), (40, 50, 70), (10, 50, 90))
    assert gorl.few_guide_better(as_published).outcome == "held"
    same = gorl.many_mix_as_well(as_published)
    assert same.outcome == "undecided" and "does not prove" in same.measured
    assert gorl.alone_grows(as_published).outcome == "held"
    reversed_ = _numbers((40, 40, 90), (70, 70, 70), (90, 50, 10))
    assert gorl.few_guide_better(reversed_).outcome == "did not hold"
    assert gorl.many_mix_as_well(reversed_).outcome == "did not hold"
    assert gorl.alone_grows(reversed_).outcome == "did not hold"
    mixing_wins = gorl.many_mix_as_well(_numbers((70, 70, 40), (40, 50, 70), (50, 50, 50)))
    assert mixing_wins.outcome == "held" and "does not prove" not in mixing_wins.measured


def test_scores_that_are_all_the_same_leave_claims_undecided():
    flat = _numbers((100, 100, 100), (100, 100, 100), (100, 100, 100), sd=0.0)
    assert gorl.alone_grows(flat).outcome == "undecided"
    assert gorl.few_guide_better(flat).outcome == "undecided"


def _spread(value):
    """A logged metric of one row, by seed."""
    return tuple(value * (1 + 0.01 * wobble) for wobble in (-1, 2, 0, 1, -2))


@pytest.mark.parametrize(("expert", "outcome"), [(0.5, "held"), (1.0, "undecided"), (2.0, "did not hold")])
def test_the_relative_constraint(expert, outcome):
    scalars = {
        "TD3+BC": {"watch/expert/constraint": _spread(1.0), "watch/random/constraint": _spread(1.0)[::-1]},
        "GORL quick": {"watch/expert/constraint": _spread(expert), "watch/random/constraint": _spread(1.0)},
    }
    results = _results("gorl_figure_3-small", {"TD3+BC": 50, "GORL quick": 50}, scalars=scalars)
    assert gorl.relative_constraint("GORL quick", results).outcome == outcome


@pytest.mark.parametrize(("expert", "outcome"), [(0.6, "held"), (0.5, "undecided"), (0.4, "did not hold")])
def test_the_degree_on_expert_samples(expert, outcome):
    scalars = {
        "GORL quick": {
            "watch/expert/guiding_network": _spread(expert),
            "watch/random/guiding_network": _spread(0.5)[::-1] if expert != 0.5 else _spread(0.5),
        }
    }
    results = _results("gorl_figure_3-small", {"GORL quick": 50}, scalars=scalars)
    assert gorl.larger_degree("GORL quick", results).outcome == outcome


@pytest.mark.parametrize(("moved", "outcome"), [(0.2, "held"), (0.01, "did not hold")])
def test_the_schedule(moved, outcome):
    by_row = {"1e-5 · 500": 0.001, "1e-5 · 4": moved, "1e-3 · 4": 0.4}
    scalars = {row: {"guiding_network/output_moved": _spread(m)} for row, m in by_row.items()}
    results = _results("gorl_schedule-small", dict.fromkeys(by_row, 50), scalars=scalars)
    assert gorl.schedule_moves(results).outcome == outcome


def test_the_cost_is_that_of_the_speed_benchmark():
    verdict = gorl.cheap()
    page_of_speed = (ROOT / "docs" / "speed.md").read_text().splitlines()
    for base, period, *_, compiled, paper in verdict.table[1:]:
        (line,) = [line for line in page_of_speed if line.startswith(f"| {base}, compiled | {period} |")]
        assert line.endswith(f"| {paper} |") and abs(_percent(line.split("|")[6]) - _percent(compiled)) <= 0.051


def _percent(text):
    return float(text.split("%")[0])


@pytest.mark.parametrize(("guided", "outcome"), [(10.9, "held"), (20.0, "did not hold")])
def test_the_cost_by_hand(monkeypatch, tmp_path, guided, outcome):
    """Weights cost 0.1 of 10 ms in every policy step, a guiding update `guided` - 10.1 ms."""
    turns = {"policy": 10.0, "weighted": 10.1, "guided": guided}
    parts = {mode: {"parts": {k: {"cpu_ms": [v, v]} for k, v in turns.items()}} for mode in ("eager", "compiled")}
    file = tmp_path / "speed.json"
    file.write_text(json.dumps({"gorl": parts, "gorl_bases": dict.fromkeys(("sac_bc", "iql", "cql"), parts)}))
    monkeypatch.setattr(gorl, "SPEED", file)
    if outcome == "did not hold":
        monkeypatch.setattr(gorl, "PUBLISHED_AVERAGE", 1.2)
    verdict = gorl.cheap()
    assert verdict.outcome == outcome and verdict.table[0][2:4] == ["eager", "compiled"]
    at_500, at_200 = (100 * (0.1 + (guided - 10.1) / period) / 10 for period in (500, 200))
    assert verdict.table[1][3] == f"{at_500:.1f} %" and verdict.table[3][3] == f"{at_200:.1f} %"
    assert verdict.table[5][3] == f"{(at_500 + at_200) / 2:.1f} %"
    file.write_text("{}")
    assert gorl.cheap().outcome == "not measured"


def test_a_difference_by_hand():
    """Of one seed minus the other -2, -3, -4: mean -3, sd 1, se 1 / sqrt(3) = 0.5774, t = -5.196, half-width
    4.303 * 0.5774 = 2.484."""
    found = Difference.of({0: 1, 1: 2, 2: 3}, {2: 7, 1: 5, 0: 3})
    assert found.value == -3 and found.test.statistic == pytest.approx(-5.196, abs=1e-3)
    assert found.range == "−3.0 (−5.5 to −0.52)"
    assert clear([found]) == [True] and clear([found] * 10) == [False] * 10  # p = 0.035, of ten 0.35
    assert clear([Difference.of({0: 1, 1: 2}, {0: 40, 1: 41})]) == [False]  # two seeds claim nothing
    with pytest.raises(UserError, match="two seeds"):
        Difference.of({0: 1}, {0: 2})


def test_what_a_claim_about_most_datasets_is_called():
    up, down = (Difference.of(dict(enumerate(x)), dict.fromkeys(range(3), 0.0)) for x in ((9, 10, 11), (-9, -10, -11)))
    assert directions([up, down], 1) == ["held", "did not hold"] and directions([up, down], -1)[0] == "did not hold"
    assert called(False, True) == "undecided" and called(True, False) == "did not hold"
    assert majority(["held", "held", "undecided"]) == "held"
    assert majority(["held", "held", "undecided", "did not hold"]) == "undecided"


def test_an_unfinished_cell_is_not_judged():
    results = _constants((10, 40, 80, 90, 70, 60, 50))
    short = replace(results.cells[0], runs=results.cells[0].runs[:3])
    with pytest.raises(UserError, match=r"'fixed 0.0', 'a' is not there with all its seeds"):
        gorl.interior_optimum(replace(results, cells=(short, *results.cells[1:])))


def test_every_item_of_the_papers_has_one_answer_that_exists():
    papers = page.papers()
    assert [paper["paper"] for paper in papers] == ["GORL", "GILD", "POR", "PEX"]
    for item in (item for paper in papers for item in paper["items"]):
        for key in ("page", "test"):
            assert key not in item or (ROOT / item[key]).is_file(), item


MANY_CELLS = ("gorl_figure_4_bases", "gorl_figure_5", "gorl_table_i", "gorl_table_iv", "gorl_table_iv_bases")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in MANY_CELLS)) for name in suite.shipped()]
)
def test_shipped_suites_are_sound(name):
    path = suite.find(name)
    loaded = suite.load(path)
    assert loaded.name == name and loaded.cells
    if "small:" in path.read_text():
        small = suite.load(path, small=True)
        for cell in small.cells:
            assert cell.experiment.steps <= (20_000 if cell.experiment.online else 10_000)
        sources = [source for cell in small.cells for source in cell.experiment.data.values()]
        assert all(part.recipe for source in sources for part in source.mix or (source,))


def test_unfinished_results_do_not_replace_kept_ones(tmp_path, monkeypatch, capsys):
    whole = _results("gorl_schedule-small", {"1e-5 · 500": 50.0})
    short = replace(whole, cells=(replace(whole.cells[0], runs=whole.cells[0].runs[:2]), *whole.cells[1:]))
    monkeypatch.setattr("benchmarks.results.load", lambda path: short)
    monkeypatch.setattr(page, "RECORDED", tmp_path)
    assert command.main(["--record", "runs/x", "--docs", str(tmp_path)]) == 2
    assert "3 runs are not finished" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_the_page_says_what_is_committed(tmp_path):
    page.write(tmp_path)
    assert (tmp_path / "claims.md").read_text() == (ROOT / "docs" / "claims.md").read_text()
