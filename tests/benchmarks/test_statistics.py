"""Every statistic against an independent computation, and properties that hold for any scores."""

import math
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from benchmarks import statistics
from benchmarks.statistics import (
    benjamini_hochberg,
    difference,
    holm,
    iqm,
    mean_interval,
    over_seeds,
    paired_t_over_evaluations,
    performance_profile,
    permutation,
    probability_of_improvement,
    significant,
    stratified_bootstrap,
    welch,
)
from metarl.errors import ConfigError

METHODS = ("t", "percentile", "expanded", "bca")
SCORES = st.integers(-1000, 1000).map(lambda value: value / 8)
CELL = st.lists(SCORES, min_size=3, max_size=7)
TASKS = st.dictionaries(st.sampled_from("abcde"), CELL, min_size=1, max_size=4)
SEEDED = st.dictionaries(st.integers(0, 9), SCORES, min_size=2, max_size=7)
FEW = settings(max_examples=40, deadline=None)


def keyed(scores, first=0):
    return dict(enumerate(scores, first))


def ends(interval):
    return [interval.value, interval.low, interval.high]


# -- the mean of one cell ----------------------------------------------------------------------------------------


def test_the_interval_of_a_mean_by_hand():
    # 1, 2, 6: mean 3; squares of residuals 4 + 1 + 9 = 14, s² = 14 / 2 = 7; t(0.975, 2) = 4.302653 of any table
    interval = mean_interval([1, 2, 6])
    half = 4.302653 * math.sqrt(7 / 3)
    assert ends(interval) == pytest.approx([3, 3 - half, 3 + half], rel=1e-6)
    assert (interval.level, interval.n) == (0.95, 3)


def test_the_interval_of_a_mean_is_scipys():
    scores = np.random.default_rng(0).normal(size=6)
    theirs = stats.ttest_1samp(scores, 0).confidence_interval(0.9)
    assert ends(mean_interval(scores, 0.9))[1:] == pytest.approx([theirs.low, theirs.high])


@pytest.mark.parametrize("scores", [[], [1.0]])
def test_one_seed_has_no_interval(scores):
    assert mean_interval(scores) is None


def test_equal_scores_have_no_width():
    assert ends(mean_interval([0.1, 0.1, 0.1])) == [0.1, 0.1, 0.1]


# -- the interquartile mean --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([7], 7),
        ([1, 2, 9], 4),  # floor(3 / 4) = 0 cut off: (1 + 2 + 9) / 3
        ([9, 1, 4, 2], 3),  # one at each end: (2 + 4) / 2
        ([0, 5, 6, 7, 100], 6),  # one at each end: (5 + 6 + 7) / 3
        ([8, 1, 7, 2, 6, 3, 5, 100], 5.25),  # two at each end: (3 + 5 + 6 + 7) / 4
    ],
)
def test_the_interquartile_mean_by_hand(scores, expected):
    assert iqm(scores) == expected
    assert iqm(np.array([scores, scores]), axis=-1) == pytest.approx([expected, expected])


def exact_standard_error(tasks, statistic):
    """Over every resample of every task, each as likely."""
    inflated = [np.mean(t) + math.sqrt(len(t) / (len(t) - 1)) * (np.array(t) - np.mean(t)) for t in tasks]
    values = [statistic(np.concatenate(drawn)) for drawn in product(*(product(t, repeat=len(t)) for t in inflated))]
    return np.std(values)


def test_of_one_tasks_mean_the_bootstrap_gives_students_interval():
    scores = [1.0, 2.0, 6.0]
    # All 27 resamples: their standard deviation is s / sqrt(3) exactly, s² = 7 with n - 1 in the denominator.
    assert exact_standard_error([scores], np.mean) == pytest.approx(math.sqrt(7 / 3))
    ours = stratified_bootstrap({"task": scores}, np.mean, samples=20_000)
    assert ends(ours) == pytest.approx(ends(mean_interval(scores)), rel=0.02)


def test_the_bootstrap_of_two_tasks_against_every_resample():
    tasks = {"a": [0.0, 1.0, 5.0], "b": [2.0, 3.0, 10.0]}
    se = exact_standard_error(list(tasks.values()), iqm)  # 27 x 27 resamples
    # Jackknife: of six scores 0 1 2 3 5 10 one is cut at each end; of the five without one of them too.
    # a: without 0: (2 + 3 + 5) / 3 = 10/3, without 1: (2 + 3 + 5) / 3 = 10/3, without 5: (1 + 2 + 3) / 3 = 2
    # b: without 2: (1 + 3 + 5) / 3 = 3, without 3: (1 + 2 + 5) / 3 = 8/3, without 10: (1 + 2 + 3) / 3 = 2
    va, vb = 2 * np.var([10 / 3, 10 / 3, 2]), 2 * np.var([3, 8 / 3, 2])
    df = (va + vb) ** 2 / (va**2 / 2 + vb**2 / 2)
    assert 2 < df < 4  # between those of one task and of both
    half = stats.t.ppf(0.975, df) * se
    ours = stratified_bootstrap(tasks, samples=40_000)
    assert ours.value == 2.75  # (1 + 2 + 3 + 5) / 4
    assert [ours.low, ours.high] == pytest.approx([2.75 - half, 2.75 + half], abs=0.02 * half)


def test_the_percentile_bootstrap_against_every_resample():
    means = [np.mean(drawn) for drawn in product([1.0, 2.0, 6.0], repeat=3)]
    assert np.mean(np.array(means) == 1) == pytest.approx(1 / 27)  # more than 2.5 %: the interval ends at the scores
    ours = stratified_bootstrap({"task": [1.0, 2.0, 6.0]}, np.mean, method="percentile")
    assert [ours.low, ours.high] == [1, 6]
    narrower = stratified_bootstrap({"task": [1.0, 2.0, 6.0]}, np.mean, 0.5, method="percentile")
    assert [narrower.low, narrower.high] == pytest.approx(np.quantile(means, [0.25, 0.75], method="inverted_cdf"))


def test_the_expanded_percentiles_by_formula():
    scores = [3.0, 1.0, 4.0, 1.5, 9.0]
    ours = stratified_bootstrap({"task": scores}, np.mean, method="expanded")
    # n = 5: sqrt(5 / 4) t(0.975, 4) = 1.118034 x 2.776445 = 3.104160; Φ(-3.104160) = 0.000954
    plain = stratified_bootstrap({"task": scores}, np.mean, 1 - 2 * 0.000954, method="percentile")
    assert [ours.low, ours.high] == pytest.approx([plain.low, plain.high], rel=1e-3)


def test_bca_is_scipys():
    scores = np.random.default_rng(1).lognormal(size=8)
    ours = stratified_bootstrap({"task": scores}, np.mean, method="bca")
    rng = np.random.default_rng(5)
    theirs = stats.bootstrap((scores,), np.mean, n_resamples=20_000, rng=rng).confidence_interval
    assert [ours.low, ours.high] == pytest.approx([theirs.low, theirs.high], rel=0.05)


def test_every_seed_of_the_bootstrap_gives_about_the_same():
    tasks = {"a": [0.0, 1.0, 5.0, 2.0, 3.0], "b": [2.0, 3.0, 10.0]}
    one, other = (stratified_bootstrap(tasks, seed=seed) for seed in (0, 1))
    assert one == stratified_bootstrap(tasks, seed=0) and one != other
    assert ends(one) == pytest.approx(ends(other), rel=0.05)
    assert one.n == 3


@pytest.mark.parametrize("method", METHODS)
def test_a_bootstrap_of_equal_scores_has_no_width(method):
    made = stratified_bootstrap({"a": [1.0, 1.0, 1.0], "b": [3.0, 3.0]}, method=method, samples=100)
    assert ends(made) == pytest.approx([5 / 3] * 3)  # one cut at each end: (1 + 1 + 3) / 3 = 5/3


@FEW
@given(TASKS, st.randoms(use_true_random=False), st.sampled_from(["t", "percentile"]))
def test_the_bootstrap_depends_on_no_order(tasks, random, method):
    shuffled = [(task, random.sample(scores, len(scores))) for task, scores in tasks.items()]
    random.shuffle(shuffled)
    one, other = (stratified_bootstrap(t, samples=50, method=method) for t in (tasks, dict(shuffled)))
    assert one == other
    assert one.n == min(map(len, tasks.values()))


@FEW
@given(TASKS, st.sampled_from([0.5, 1.0, 4.0]), st.sampled_from([-16.0, 0.0, 32.0]), st.sampled_from(METHODS))
def test_intervals_move_with_the_scale(tasks, slope, shift, method):
    one = stratified_bootstrap(tasks, samples=50, method=method)
    moved = {task: slope * np.array(scores) + shift for task, scores in tasks.items()}
    other = stratified_bootstrap(moved, samples=50, method=method)
    assert ends(other) == pytest.approx(slope * np.array(ends(one)) + shift, rel=1e-6, abs=1e-6)
    assert one.low <= one.high


@FEW
@given(CELL, st.sampled_from([0.5, 0.9, 0.99]))
def test_default_intervals_hold_the_value_and_widen_with_the_level(scores, level):
    for narrow, wide in (
        (mean_interval(scores, level), mean_interval(scores, 0.999)),
        (
            stratified_bootstrap({"a": scores}, level=level, samples=50),
            stratified_bootstrap({"a": scores}, level=0.999, samples=50),
        ),
    ):
        assert wide.low <= narrow.low <= narrow.value <= narrow.high <= wide.high


# -- profiles ----------------------------------------------------------------------------------------------------


def test_a_profile_by_hand():
    # Above 2, strictly: of a none of three is equal or below but 1 and 2, so 1 of 3; of b both
    profile = performance_profile({"a": [1, 2, 3], "b": [5, 6]}, [2, 0, 9])
    assert profile.thresholds.tolist() == [0, 2, 9]
    assert profile.share == pytest.approx([1, (1 / 3 + 1) / 2, 0])
    assert profile.n == 2


@pytest.mark.parametrize("above", range(6))
def test_the_band_of_equally_many_seeds_is_clopper_and_pearsons(above):
    scores = [1.0] * above + [-1.0] * (5 - above)
    profile = performance_profile({"a": scores}, [0.0])
    theirs = stats.binomtest(above, 5).proportion_ci(method="exact")
    assert [profile.low[0], profile.high[0]] == pytest.approx([theirs.low, theirs.high])
    pooled = performance_profile({"a": scores, "b": scores}, [0.0])
    theirs = stats.binomtest(2 * above, 10).proportion_ci(method="exact")
    assert [pooled.low[0], pooled.high[0]] == pytest.approx([theirs.low, theirs.high])


def test_the_band_where_all_are_above_by_hand():
    # 0.025 = p^5, the least p under which five of five are not surprising
    assert performance_profile({"a": [1, 1, 1, 1, 1]}, [0]).low[0] == pytest.approx(0.025 ** (1 / 5))


@FEW
@given(TASKS, st.lists(SCORES, min_size=1, max_size=9))
def test_a_profile_falls_and_lies_in_its_band(tasks, thresholds):
    profile = performance_profile(tasks, thresholds)
    for curve in (profile.share, profile.low, profile.high):
        assert (np.diff(curve) <= 1e-12).all()
    assert (profile.low >= 0).all() and (profile.high <= 1).all()
    assert (profile.low <= profile.share + 1e-12).all() and (profile.share <= profile.high + 1e-12).all()
    stretched = {task: 4 * np.array(scores) - 8 for task, scores in tasks.items()}
    assert (performance_profile(stretched, 4 * np.array(thresholds) - 8).share == profile.share).all()


# -- probability of improvement ----------------------------------------------------------------------------------


def test_the_probability_of_improvement_by_hand():
    # a: of 3 x 2 pairs 3 > 1, 3 > 2, 2 > 1 win, 2 = 2 and 1 = 1 are halves, 1 < 2: 4 of 6. b: all 2 x 2 lose.
    made = probability_of_improvement({"a": [1, 2, 3], "b": [0, 0]}, {"a": [1, 2], "b": [5, 6]})
    assert made.value == pytest.approx((4 / 6 + 0) / 2)
    assert made.n == 2


@FEW
@given(TASKS, st.data())
def test_the_probability_of_improvement_by_counting_pairs(x, data):
    y = {task: data.draw(CELL) for task in x}
    made = probability_of_improvement(x, y)
    shares = [np.mean([(a > b) + (a == b) / 2 for a, b in product(x[task], y[task])]) for task in x]
    assert made.value == pytest.approx(np.mean(shares))
    assert 0 <= made.low <= made.value + 1e-12 and made.value - 1e-12 <= made.high <= 1
    turned = probability_of_improvement(y, x)
    assert [turned.value, turned.low, turned.high] == pytest.approx(
        [1 - made.value, 1 - made.high, 1 - made.low], abs=1e-6
    )
    assert ends(probability_of_improvement(*({t: np.exp(np.array(s) / 64) for t, s in z.items()} for z in (x, y)))) == (
        pytest.approx(ends(made))
    )


@pytest.mark.parametrize(("x", "sizes"), [([3, 4, 5], (3, 3)), ([1, 5, 9, 2], (4, 3)), ([0, 5], (2, 3))])
def test_the_score_interval_on_a_grid(x, sizes):
    y, (n, m) = [2, 1, 0], sizes
    made = probability_of_improvement({"a": x}, {"a": y})
    theta = np.linspace(0, 1, 200_001)
    v = theta * (1 - theta) / (n * m) * (1 + ((n + m) / 2 - 1) * ((1 - theta) / (2 - theta) + theta / (1 + theta)))
    inside = theta[(made.value - theta) ** 2 <= 1.959964**2 * v]
    assert [made.low, made.high] == pytest.approx([inside.min(), inside.max()], abs=1e-5)
    tasks = {name: x for name in "abcd"}
    inside = theta[(made.value - theta) ** 2 <= 1.959964**2 * v / 4]
    four = probability_of_improvement(tasks, {name: y for name in "abcd"})
    assert [four.low, four.high] == pytest.approx([inside.min(), inside.max()], abs=1e-5)


# -- tests -------------------------------------------------------------------------------------------------------


def test_pairs_over_seeds_by_hand():
    # differences 1, 2, 6: mean 3, squares of residuals 4 + 1 + 9 = 14, s² = 7, t = 3 / sqrt(7 / 3), df = 2
    x, y = {4: 11, 0: 3, 7: 8}, {0: 2, 4: 9, 7: 2}
    test = over_seeds(x, y)
    t = 3 / math.sqrt(7 / 3)
    assert (test.name, test.difference, test.n, test.warning) == ("paired t over seeds", 3, 3, "")
    assert test.statistic == pytest.approx(t)
    assert test.p == pytest.approx(2 * stats.t.sf(t, 2))
    assert test.p < welch([*x.values()], [*y.values()]).p  # which takes the seeds' luck for noise
    half = 4.302653 * math.sqrt(7 / 3)  # t(0.975, 2) of any table
    made = difference(x, y)
    assert ends(made) == pytest.approx([3, 3 - half, 3 + half], rel=1e-6)
    assert (made.level, made.n) == (0.95, 3)


def test_unlike_seeds_are_compared_by_welchs_test_by_hand():
    # x: mean 4, s² = (4 + 0 + 4) / 2 = 4; y: mean 1, s² = (1 + 0 + 1) / 2 = 1
    # t = 3 / sqrt(4/3 + 1/3) = 3 / sqrt(5/3); df = (5/3)² / ((4/3)² / 2 + (1/3)² / 2) = (25/9) / (17/18) = 50/17
    x, y = {0: 2, 1: 4, 2: 6}, {1: 0, 2: 1, 3: 2}
    test = over_seeds(x, y)
    t = 3 / math.sqrt(5 / 3)
    assert (test.name, test.difference, test.n) == ("Welch over seeds", 3, 3)
    assert test.statistic == pytest.approx(t)
    assert test.p == pytest.approx(2 * stats.t.sf(t, 50 / 17))
    assert "unlike seeds, which make no pairs" in test.warning
    assert test.p == pytest.approx(stats.ttest_ind([2, 4, 6], [0, 1, 2], equal_var=False).pvalue)
    assert welch([2, 4, 6], [0, 1, 2]).warning == ""
    half = stats.t.ppf(0.9, 50 / 17) * math.sqrt(5 / 3)
    assert ends(difference(x, y, 0.8)) == pytest.approx([3, 3 - half, 3 + half])


def test_welchs_interval_of_unlike_numbers_of_seeds_is_scipys():
    x, y = [1.0, 4.0, 2.0, 8.0], [3.0, 0.5]
    theirs = stats.ttest_ind(x, y, equal_var=False).confidence_interval(0.95)
    made = difference(keyed(x), keyed(y))
    assert [made.low, made.high] == pytest.approx([theirs.low, theirs.high])
    assert made.n == over_seeds(keyed(x), keyed(y)).n == 2


def test_one_method_without_spread_is_still_tested():
    # s_x = 0: t = (5 - 1) / sqrt(1/3), df = (1/3)² / ((1/3)² / 2) = 2, of pairs and without
    p = pytest.approx(2 * stats.t.sf(4 * math.sqrt(3), 2))
    assert welch([5, 5, 5], [0, 1, 2]).p == over_seeds(keyed([5, 5, 5]), keyed([0, 1, 2])).p == p
    half = stats.t.ppf(0.975, 2) / math.sqrt(3)
    for first in (0, 9):
        assert ends(difference(keyed([5, 5, 5]), keyed([0, 1, 2], first))) == pytest.approx([4, 4 - half, 4 + half])


@pytest.mark.parametrize(("seeds", "p"), [(3, 2 / 20), (5, 2 / 252)])
def test_two_methods_without_spread_are_arranged(seeds, p):
    x, y = [1.0] * seeds, [0.1] * seeds
    for test in (welch(x, y), over_seeds(keyed(x), keyed(y, 9)), over_seeds(keyed(x), keyed(y))):
        assert test.p == pytest.approx(p)
        assert "no spread" in test.warning and test.name == "permutation over seeds"
    assert welch(y, y).p == 1
    assert ends(difference(keyed(x), keyed(y, 9))) == pytest.approx([0.9, 0.9, 0.9])
    assert ends(difference(keyed(y), keyed([0.1, 0.1]))) == [0, 0, 0]


@pytest.mark.parametrize(("seeds", "p"), [(3, 1 / 4), (6, 1 / 32)])
def test_equal_differences_have_their_signs_flipped(seeds, p):
    """Of 2^n assignments of signs two are as extreme: those of all alike."""
    y = np.linspace(0.1, 0.7, seeds)
    test = over_seeds(keyed(y - 1e3), keyed(y))  # whose differences are equal but for rounding
    assert (test.p, test.statistic, test.name) == (p, -math.inf, "paired t over seeds")
    assert "signs are flipped" in test.warning
    assert ends(difference(keyed(y - 1e3), keyed(y))) == pytest.approx([-1e3] * 3)
    same = over_seeds(keyed(y + 1e3 - 1e3), keyed(y))
    assert (same.p, same.difference, same.statistic) == (1, 0, 0)


def test_two_seeds_are_tested_and_one_is_not():
    for y in ([1], [], [1, 2, 3]):
        assert over_seeds({0: 1}, keyed(y)) is difference({0: 1}, keyed(y)) is welch([1], y) is None
    assert over_seeds({}, {}) is None
    for y in ({0: 7, 1: 9}, {0: 7, 1: 9, 2: 8}):
        assert "never called significant" in over_seeds({0: 1, 1: 2}, y).warning


@FEW
@given(st.lists(SCORES, min_size=2, max_size=4), st.lists(SCORES, min_size=2, max_size=4))
def test_the_permutation_test_by_listing_arrangements(x, y):
    test, scores = permutation(x, y), np.array(x + y)
    gap, total = np.mean(x) - np.mean(y), scores.sum()
    gaps = []
    for chosen in combinations(range(len(scores)), len(x)):
        part = scores[list(chosen)].sum()
        gaps.append(part / len(x) - (total - part) / len(y))
    above, below = np.mean(np.array(gaps) >= gap - 1e-9), np.mean(np.array(gaps) <= gap + 1e-9)
    assert test.p == pytest.approx(min(1, 2 * min(above, below)))
    assert test.difference == pytest.approx(gap)


def test_three_seeds_cannot_reach_five_percent_by_permutation():
    test = permutation([100, 101, 102], [0, 1, 2])
    assert test.p == pytest.approx(2 / 20)
    assert "no p-value is below 0.1" in test.warning
    assert permutation([100, 101, 102, 103], [0, 1, 2, 3]).warning == ""  # 2 / 70


def shuffled(scores, random):
    return dict(random.sample([*scores.items()], len(scores)))


@FEW
@given(SEEDED, st.data(), st.sampled_from([0.5, 4.0, -2.0]), st.sampled_from([-16.0, 64.0]), st.booleans())
def test_the_default_test_knows_neither_order_nor_scale(x, data, slope, shift, alike):
    random = data.draw(st.randoms(use_true_random=False))
    y = {seed: data.draw(SCORES) for seed in x} if alike else data.draw(SEEDED)
    one, interval = over_seeds(x, y), difference(x, y)
    expected = "paired t over seeds" if x.keys() == y.keys() else "Welch over seeds"
    assert one.name == expected or (one.name == "permutation over seeds" and "no spread" in one.warning)
    moved = [{seed: slope * score + shift for seed, score in shuffled(scores, random).items()} for scores in (x, y)]
    other = over_seeds(*moved)
    assert other.p == pytest.approx(one.p, rel=1e-6)
    assert other.difference == pytest.approx(slope * one.difference, abs=1e-9)
    assert over_seeds(y, x).statistic == pytest.approx(-one.statistic)
    assert over_seeds(shuffled(x, random), shuffled(y, random)) == one
    assert difference(shuffled(x, random), shuffled(y, random)) == interval
    assert interval.value == pytest.approx(one.difference)
    turned = difference(y, x)
    assert [turned.low, turned.high] == pytest.approx([-interval.high, -interval.low])


@FEW
@given(SEEDED, st.data(), st.booleans())
def test_the_interval_of_a_difference_leaves_out_zero_where_the_test_finds_one(x, data, alike):
    y = {seed: data.draw(SCORES) for seed in x} if alike else data.draw(SEEDED)
    test, interval = over_seeds(x, y), difference(x, y)
    assume("no t" not in test.warning and abs(test.p - 0.05) > 1e-9)
    assert (interval.low > 0 or interval.high < 0) == (test.p < 0.05)


def test_gorls_test_by_hand():
    # differences 1, 2, 3, 6: mean 3, squares of residuals 4 + 1 + 0 + 9 = 14, s² = 14/3, t = 3 / sqrt(14/3 / 4)
    test = paired_t_over_evaluations({3: [1, 3], 8: [5, 6]}, {8: [2, 0], 3: [0, 1]})
    t = 3 / math.sqrt(14 / 12)
    assert (test.difference, test.statistic, test.n) == (3, pytest.approx(t), 2)
    assert test.p == pytest.approx(2 * stats.t.sf(t, 3))
    assert test.name == "paired t over 4 pairs of evaluations"
    assert "independent, which they are not" in test.warning and "left out" not in test.warning


def test_gorls_test_pairs_common_seeds_only():
    x, y = {0: [1, 3], 1: [5, 6], 2: [9, 9]}, {1: [2, 0], 5: [7, 7], 0: [0, 1]}
    test = paired_t_over_evaluations(x, y)
    common = paired_t_over_evaluations({0: x[0], 1: x[1]}, {0: y[0], 1: y[1]})
    assert (test.p, test.n, test.name) == (common.p, 2, common.name)
    assert "seeds of one method only are left out" in test.warning


@pytest.mark.parametrize(("gap", "p"), [(0.0, 1.0), (1.0, 2 / 2**6)])
def test_gorls_test_of_equal_differences(gap, p):
    y = np.arange(6.0).reshape(3, 2)
    test = paired_t_over_evaluations(keyed(y + gap), keyed(y))
    assert test.p == p
    assert "signs are flipped" in test.warning


@pytest.mark.parametrize(("p", "n", "expected"), [(0.0, 2, False), (0.04, 3, True), (0.05, 9, False), (0.06, 9, False)])
def test_nothing_is_significant_below_three_seeds(p, n, expected):
    assert significant(p, n) is expected


def test_holm_by_the_worked_example():
    # In order 0.005, 0.01, 0.03, 0.04: times 4, 3, 2, 1 = 0.02, 0.03, 0.06, 0.04; each at least the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_benjamini_and_hochberg_by_the_worked_example():
    # In order: times 4/1, 4/2, 4/3, 4/4 = 0.02, 0.02, 0.04, 0.04; each at most the one behind
    assert benjamini_hochberg([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.02, 0.04, 0.04, 0.02])


@given(st.lists(st.floats(0, 1, allow_subnormal=False), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_corrections_keep_the_order_and_lie_where_they_must(p, random):
    m, order = len(p), list(range(len(p)))
    random.shuffle(order)
    for adjusted in (holm(p), benjamini_hochberg(p)):
        assert (adjusted >= np.array(p) - 1e-12).all() and (adjusted <= 1).all()
        assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()
    assert (holm(p) <= np.minimum(1, m * np.array(p)) + 1e-12).all()  # never worse than Bonferroni's
    assert (benjamini_hochberg(p) <= holm(p) + 1e-12).all()
    assert holm([p[i] for i in order]) == pytest.approx(holm(p)[order])


# -- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mean_interval([1, math.nan]), "scores[1] is nan; leave runs"),
        (lambda: mean_interval([[1, 2]]), "give one score per seed"),
        (lambda: mean_interval(["a"]), "not an array of numbers"),
        (lambda: mean_interval([1, 2], 95), "level: 95 is not between 0 and 1"),
        (lambda: iqm([]), "at least one score"),
        (lambda: iqm([math.inf]), "scores[0] is inf"),
        (lambda: stratified_bootstrap({}), "holds no task"),
        (lambda: stratified_bootstrap([1, 2]), "holds no task"),
        (lambda: stratified_bootstrap({"a": [1, 2], "b": [1]}), "scores['b']: 1 of at least 2 seeds; train more"),
        (lambda: stratified_bootstrap({"a": [1, 2]}, method="precentile"), "Did you mean 'percentile'?"),
        (lambda: stratified_bootstrap({"a": [1, 2]}, samples=1), "take 1,000 or more"),
        (lambda: performance_profile({"a": []}, [0]), "scores['a']: 0 of at least 1 seeds"),
        (lambda: performance_profile({"a": [1]}, []), "thresholds: empty"),
        (lambda: probability_of_improvement({"a": [1]}, {"b": [1]}), "a, b has scores of one of them only"),
        (lambda: probability_of_improvement({"a": [1]}, {"a": [math.nan]}), "y['a'][0] is nan"),
        (lambda: over_seeds({3: 1, 4: 2}, {3: 1, 4: math.inf}), "y[4] is inf"),
        (lambda: over_seeds([1, 2], [1, 2]), "x: not keyed by seed; give a mapping"),
        (lambda: difference({0: 1, 1: 2}, [1, 2]), "y: not keyed by seed"),
        (lambda: difference({0: 1, 1: 2}, {0: 1, 1: 2}, 95), "level: 95 is not between 0 and 1"),
        (lambda: welch([1, 2], [1, math.inf]), "y[1] is inf"),
        (lambda: permutation([], [1]), "at least one seed of each"),
        (
            lambda: paired_t_over_evaluations({0: [1], 1: [2]}, {1: [1], 2: [2]}),
            "[0, 1] and [1, 2] have fewer than two",
        ),
        (lambda: paired_t_over_evaluations({0: [1], 1: [2]}, {0: [1, 2], 1: [2]}), "[1, 1] and [2, 1] evaluations of"),
        (lambda: paired_t_over_evaluations({0: [], 1: []}, {0: [], 1: []}), "give as many of every seed"),
        (lambda: paired_t_over_evaluations({0: 1, 1: 2}, {0: 1, 1: 2}), "x[0]: has shape []"),
        (lambda: paired_t_over_evaluations([[1, 2]], [[1, 2]]), "x: not keyed by seed"),
        (lambda: significant(1.5, 5), "not one or more p-values"),
        (lambda: significant(0.01, 5, level=5), "level: 5 is not between 0 and 1"),
        (lambda: holm([]), "not one or more p-values"),
        (lambda: benjamini_hochberg([0.5, -0.1]), "give numbers from 0 to 1"),
    ],
)
def test_bad_input_says_what_to_do(call, words):
    with pytest.raises(ConfigError) as error:
        call()
    assert words in str(error.value)


def test_what_is_public_is_there():
    assert all(hasattr(statistics, name) for name in statistics.__all__)
