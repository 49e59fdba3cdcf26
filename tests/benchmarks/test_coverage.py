"""The defaults cover and keep their level, by simulation; and the page says what the simulation found."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.statistics import coverage, iqm
from benchmarks.statistics.__main__ import DOCS, RESULT, main
from benchmarks.statistics.page import GOAL, page
from benchmarks.statistics.picture import picture
from benchmarks.statistics.simulation import DISTRIBUTIONS, bootstrap_t, generator, locations, p_permutation, wilson
from benchmarks.statistics.study import (
    COMMON,
    CORRELATIONS,
    DIFFERENCE,
    GORL,
    IMPROVEMENT,
    IQM,
    MEAN,
    MISSING,
    OUR_TEST,
    OURS,
    PROFILE,
    UNLIKE,
    UNPAIRED,
    Size,
)
from metarl.provenance import PACKAGES

SIMULATIONS = 1000
SEEDS = 5
TINY = Size(simulations=4, samples=20)

# A share of 1,000 simulations has a standard error of sqrt(p (1 - p) / 1000): 0.7 points at 0.95 and at 0.05, 0.95
# points at 0.9. With the margin of three standard errors a true coverage of 0.90, or a true level of 0.05, fails one
# time in 740, and the seeds are fixed: what passes here passes always.
MARGIN = 3
COVERS = GOAL - MARGIN * math.sqrt(GOAL * (1 - GOAL) / SIMULATIONS)
LEVEL = 0.05 + MARGIN * math.sqrt(0.05 * 0.95 / SIMULATIONS)

KEEP = (OUR_TEST, UNPAIRED, COMMON, "Holm")  # their level; Welch's is the default where seeds are unlike

# Of five seeds that fail with probability 0.2 none does in a third of all cells, whose mean nobody can know.
UNKNOWABLE = (MEAN, "failing")


@pytest.fixture(scope="module")
def published():
    return json.loads(RESULT.read_text())


@pytest.fixture(scope="module")
def tiny():
    """All studies, of next to nothing."""
    return coverage.measure(TINY)


# -- what is simulated -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_distributions_are_standardised_and_their_quantiles_are_their_own(name):
    distribution = DISTRIBUTIONS[name]
    drawn = distribution.draw(np.random.default_rng(0), (200_000,))
    for scores in (drawn, distribution.quantiles):
        assert (scores.mean(), scores.std()) == pytest.approx((0, 1), abs=0.01)
    shares = np.arange(0.05, 1, 0.1)
    assert np.quantile(drawn, shares) == pytest.approx(np.quantile(distribution.quantiles, shares), abs=0.05)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("correlation", CORRELATIONS)
def test_two_methods_correlate_as_said_and_are_distributed_as_one(name, correlation):
    distribution = DISTRIBUTIONS[name]
    pair = distribution.pair(np.random.default_rng(0), (200_000,), correlation)
    assert np.corrcoef(*pair)[0, 1] == pytest.approx(correlation, abs=0.01)
    shares = np.arange(0.05, 1, 0.1)
    for scores in pair:
        assert np.quantile(scores, shares) == pytest.approx(np.quantile(distribution.quantiles, shares), abs=0.05)


def test_the_true_values_are_those_of_very_many_seeds():
    centres, spreads = locations(4)
    drawn = DISTRIBUTIONS["skewed"].draw(np.random.default_rng(0), (4, 200_000))
    rows = coverage.iqm_study(Size(simulations=2, samples=10, only_ours=True), "skewed", 5, 4)
    assert [row["method"] for row in rows] == ["t"]
    mixture = centres[:, None] + spreads[:, None] * DISTRIBUTIONS["skewed"].quantiles
    assert iqm(mixture) == pytest.approx(iqm(centres[:, None] + spreads[:, None] * drawn), abs=0.02)


def test_bootstrap_t_by_its_definition():
    scores, rng = np.array([1.0, 2.0, 4.0, 8.0]), np.random.default_rng(3)
    low, high = bootstrap_t(scores, 0.5, 2000, rng)
    drawn = scores[np.random.default_rng(3).integers(0, 4, (2000, 4))]
    drawn = drawn[np.ptp(drawn, axis=-1) > 0]
    t = (drawn.mean(-1) - 3.75) / (drawn.std(-1, ddof=1) / 2)
    error = scores.std(ddof=1) / 2
    assert [low, high] == pytest.approx(3.75 - error * np.quantile(t, [0.75, 0.25]), rel=0.1)
    assert bootstrap_t(np.array([1.0, 2.0, 3.0]), 0.95, 500, rng)[1] == np.inf  # a ninth of resamples are constant


def test_wilsons_interval_is_scipys():
    theirs = stats.binomtest(3, 12).proportion_ci(method="wilson")
    assert np.array(wilson(np.array(0.25), 12, 0.95)) == pytest.approx([theirs.low, theirs.high])


def test_permutations_of_many_pairs_are_exact_for_few_seeds():
    x, y = np.array([[3.0, 4, 5], [0, 1, 5]]), np.array([[0.0, 1, 2], [2, 3, 4]])
    p = p_permutation(x, y, np.random.default_rng(0))
    assert p == pytest.approx([0.1, 0.7])  # 0 + 1 + 5: of the 20 sums of three of 0 ... 5, seven are 6 or less


def test_cells_have_generators_of_their_own():
    one, same, other = (generator(0, *names).random() for names in (("a", 3), ("a", 3), ("a", 5)))
    assert one == same != other


# -- the result and the page -------------------------------------------------------------------------------------


def test_page_and_picture_are_made_from_the_result_alone(tiny):
    assert json.loads(json.dumps(tiny, allow_nan=False)) == tiny
    again = coverage.measure(TINY)
    assert (again["intervals"], again["tests"]) == (tiny["intervals"], tiny["tests"])
    assert {*PACKAGES, "scipy", "machine"} <= set(tiny["environment"])
    assert "nan" not in page(tiny)
    assert len(picture(tiny).axes) == 8


def test_the_command_writes_three_files_and_renders_them_again(tmp_path, capsys, monkeypatch, tiny):
    monkeypatch.setattr("benchmarks.statistics.__main__.measure", lambda size: tiny)
    out = ["--out", str(tmp_path / "results" / "coverage.json"), "--docs", str(tmp_path / "docs")]
    assert main(out) == 0
    assert "written" in capsys.readouterr().out
    written = [(tmp_path / "docs" / name).read_bytes() for name in ("statistics.md", "statistics.png")]
    assert main([*out, "--render"]) == 0
    assert [(tmp_path / "docs" / name).read_bytes() for name in ("statistics.md", "statistics.png")] == written


def test_no_simulation_is_a_mistake(capsys):
    assert main(["--simulations", "1"]) == 2
    assert "1 say nothing" in capsys.readouterr().err


def test_the_page_is_that_of_the_published_result(published):
    assert (DOCS / "statistics.md").read_text() == page(published)


def test_the_published_result_is_whole(published):
    assert published["simulations"] >= SIMULATIONS
    assert {row["seeds"] for row in published["intervals"]} == {3, 5, 10}
    assert {(row["statistic"], row["distribution"]) for row in published["intervals"]} == {
        (statistic, name) for statistic in OURS for name in DISTRIBUTIONS
    }


def test_published_defaults_cover(published):
    for row in published["intervals"]:
        ours = row["method"] == OURS[row["statistic"]]
        if ours and row["seeds"] >= SEEDS and (row["statistic"], row["distribution"]) != UNKNOWABLE:
            # Of four tasks two lie in the middle: their IQM is nearly a mean, and 0.90 is where it is with failures.
            assert row["coverage"] >= (COVERS if row["distribution"] == "failing" else GOAL), row


def test_published_percentiles_do_not(published):
    """Why they are no default."""
    for statistic, tasks in ((MEAN, 1), (IMPROVEMENT, 1)):
        (worst, *_) = sorted(
            row["coverage"]
            for row in published["intervals"]
            if (row["statistic"], row["method"], row["tasks"], row["seeds"]) == (statistic, "percentile", tasks, SEEDS)
        )
        assert worst < GOAL


def test_published_default_test_keeps_its_level_and_gorls_does_not(published):
    found = rejected(published["tests"], effect=0)
    for (test, scenario, correlation, _), share in found.items():
        if test in KEEP:
            assert share <= LEVEL, (test, scenario, correlation)
    for seeds in (3, 5, 10):
        assert found[GORL, "0 within runs", 0, seeds] <= LEVEL
        assert found[GORL, "0.5 within runs", 0, seeds] > 0.3
        assert found[GORL, "0.8 within runs", 0, seeds] > 0.45
    assert found["permutation over seeds", "normal", 0, 3] == 0


def test_published_pairs_find_more_where_seeds_are_shared(published):
    """Why they are the default, and what they cost."""
    none, some = (rejected(published["tests"], effect=effect) for effect in (0, 1))
    for seeds in (3, 5, 10):
        assert none[UNPAIRED, "normal", 0.8, seeds] < 0.02
        for correlation in (0.5, 0.8):
            assert some[OUR_TEST, "normal", correlation, seeds] > 1.3 * some[UNPAIRED, "normal", correlation, seeds]
            if seeds > 3:  # of three seeds two pairs are left
                assert some[COMMON, MISSING, 0.8, seeds] > some[UNPAIRED, MISSING, 0.8, seeds]
    assert some[OUR_TEST, "normal", 0, 10] < some[UNPAIRED, "normal", 0, 10]


# -- simulated anew ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_default_intervals_cover_at_five_seeds(published):
    size = Size(SIMULATIONS, seed=1, seeds=(SEEDS,), only_ours=True)
    rows = [row for study in coverage.interval_studies(size) for row in study()]
    said = {key(row): row["coverage"] for row in published["intervals"]}
    assert {row["statistic"] for row in rows} == {MEAN, DIFFERENCE, IQM, IMPROVEMENT, PROFILE}
    for row in rows:
        if (row["statistic"], row["distribution"]) != UNKNOWABLE:
            assert row["coverage"] >= COVERS, row
        # Two shares of 1,000 each: their difference varies by sqrt(2) of one's error; four of those for 72 rows.
        error = math.sqrt(2 * max(0.02, said[key(row)] * (1 - said[key(row)])) / SIMULATIONS)
        assert row["coverage"] == pytest.approx(said[key(row)], abs=4 * error), row


@pytest.mark.slow
def test_the_default_test_keeps_its_level(published):
    size = Size(SIMULATIONS, seed=1, only_ours=True)
    rows = [row for study in coverage.comparison_studies(size) for row in study() if not row["effect"]]
    said, found = rejected(published["tests"], effect=0), rejected(rows, effect=0)
    assert {scenario for _, scenario, _, _ in found} > {*DISTRIBUTIONS, UNLIKE, MISSING}
    assert {correlation for test, _, correlation, _ in found if test == OUR_TEST} == {*CORRELATIONS}
    for cell, share in found.items():
        if cell[0] in KEEP:
            assert share <= LEVEL, cell
        error = math.sqrt(2 * max(0.02, said[cell] * (1 - said[cell])) / SIMULATIONS)
        assert share == pytest.approx(said[cell], abs=4 * error), cell


def rejected(rows, effect):
    return {
        (row["test"], row["scenario"], row["correlation"], row["seeds"]): row["rejected"]
        for row in rows
        if row["effect"] == effect
    }


def key(row):
    return (
        row["statistic"],
        row["method"],
        row["distribution"],
        row["tasks"],
        row["seeds"],
        row.get("effect"),
        row.get("correlation"),
    )
