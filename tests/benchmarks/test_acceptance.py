"""The acceptance rule of made data, by hand."""

import json
import math

import pytest

from benchmarks import acceptance
from benchmarks.acceptance import judge
from benchmarks.readme import with_table
from benchmarks.results import Spread
from metarl.data.recipes.datasets import available
from metarl.errors import UserError

FAILED = {"hopper/medium", "walker2d/medium"}
"""Real data on which TD3+BC is no better than cloning: recorded as what they are."""


def test_the_rule():
    verdict = judge(Spread(-900.0, 30.0, 5), Spread(-800.0, 40.0, 5), -800.0, -1300.0, -100.0, 1000)
    assert math.isclose(verdict.standard_error, math.sqrt(30**2 / 5 + 40**2 / 5))
    assert verdict.difference == 100 and math.isclose(verdict.place(-900.0), 400 / 1200)
    assert verdict.beats and verdict.below_expert and verdict.accepted
    assert verdict.figures()["accepted"] is True and json.dumps(verdict.figures())
    assert "4.5 standard errors" in "\n".join(acceptance.lines("a/medium", verdict))


def test_too_small_a_difference_or_too_good_a_clone_is_refused():
    small = judge(Spread(-900.0, 30.0, 5), Spread(-856.0, 40.0, 5), -800.0, -1300.0, -100.0, 1000)
    assert not small.beats and small.below_expert and not small.accepted
    good = judge(Spread(-300.0, 30.0, 5), Spread(-120.0, 40.0, 5), -800.0, -1300.0, -100.0, 1000)
    assert good.beats and not good.below_expert and not good.accepted


def test_scores_without_any_spread_are_no_division_by_zero():
    verdict = judge(Spread(0.2, 0.0, 5), Spread(1.0, 0.0, 5), 0.5, 0.0, 1.0, 100, "success")
    assert verdict.apart is None and verdict.beats
    assert json.loads(json.dumps(verdict.figures()))["difference_in_standard_errors"] is None
    assert "no spread over seeds" in "\n".join(acceptance.lines("a/medium", verdict))
    record = {"a/medium": {"size": 1, "figures": verdict.figures()}}
    assert "no spread over seeds" in acceptance.table(record)


def test_fewer_than_five_seeds_are_refused():
    with pytest.raises(UserError, match="BC has 4 finished seeds"):
        judge(Spread(-900.0, 30.0, 4), Spread(-800.0, 40.0, 5), -800.0, -1300.0, -100.0, 1000)


@pytest.mark.slow
def test_a_suite_without_the_two_rows_is_a_users_mistake(bench, tmp_path, capsys):
    record = tmp_path / "record.json"
    assert acceptance.main([str(bench[0] / "runs" / "small"), "--record", str(record)]) == 2
    assert "TD3+BC on pendulum has no finished run" in capsys.readouterr().err and not record.exists()


def test_the_record_names_recipes_that_exist():
    for recipe, entry in json.loads(acceptance.RECORD.read_text()).items():
        assert recipe in available()
        assert {"size", "seed", "version", "sha256", "figures"} == set(entry)
        assert entry["figures"]["accepted"] is (recipe not in FAILED)


@pytest.mark.parametrize(("data_return", "medium"), [(-950.0, False), (-930.0, True), (-710.0, True), (-690.0, False)])
def test_the_data_must_lie_30_to_50_percent_of_the_way(data_return, medium):
    verdict = judge(Spread(-900.0, 30.0, 5), Spread(-800.0, 40.0, 5), data_return, -1300.0, -100.0, 1000)
    assert verdict.medium is medium and verdict.accepted is medium


def test_mazes_compare_success_rates_and_their_pieces_need_not_lie_between():
    figures = (Spread(0.4, 0.05, 5), Spread(0.7, 0.05, 5), 0.07, 0.2, 1.0, 1000)
    assert not judge(*figures).accepted and judge(*figures, measure="success").accepted
    assert "success rate" in (text := "\n".join(acceptance.lines("a/medium", judge(*figures, measure="success"))))
    assert "7.0% of pieces reach their goal" in text
    good = judge(Spread(0.9, 0.01, 5), Spread(0.99, 0.01, 5), 0.07, 0.2, 1.0, 1000, measure="success")
    assert good.beats and not good.below_expert and not good.accepted


def test_the_committed_page_shows_the_committed_record():
    page = acceptance.PAGE.read_text()
    record = json.loads(acceptance.RECORD.read_text())
    assert with_table(page, acceptance.table(record), "recipes") == page
    for recipe, entry in record.items():
        verdict = "not accepted" if recipe in FAILED else "accepted"
        (row,) = [line for line in page.splitlines() if line.startswith(f"| {recipe} |") and "s.e." in line]
        assert row.endswith(f"| {verdict} |") and entry["figures"]["accepted"] is (recipe not in FAILED)
