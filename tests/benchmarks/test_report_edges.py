"""The report where seeds are unfinished, diverged, few or unlike, and labels odd."""

import csv
import math
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from benchmarks import results
from benchmarks.report import aggregate, compare, curves, facts, heat, latex, learned, looks, tables
from benchmarks.report import page as pages
from benchmarks.report.courses import courses
from benchmarks.report.picture import Names
from benchmarks.report.scores import MANY, digits, foremost, grid
from benchmarks.results import Cell, Evaluation, Results, Run, Series
from metarl.errors import UserError

CONFIG = {
    "algorithm": {"name": "bc"},
    "objective": [{"name": "fixed"}],
    "data": {"train": {"recipe": "pendulum/medium"}},
    "steps": 1000,
    "evaluation": {"every": 100, "episodes": 2},
}
NAN, INF = float("nan"), float("inf")


def run_of(values, seed=0, *, rates=None, every=100, finished=True, scalars=None, probes=None, env=None):
    """A run with these evaluations after step 0."""
    rates = [None] * len(values) if rates is None else list(rates)
    after = [Evaluation(every * (i + 1), float(v), r) for i, (v, r) in enumerate(zip(values, rates, strict=True))]
    first = Evaluation(0, -1000.0, None if rates[:1] in ([], [None]) else 0.0)
    last = after[-1].step if after else 0
    more = (scalars or {}, probes or {}, {}, {}, CONFIG, 1000, env)
    return Run(Path(f"x/{seed}"), seed, last, finished, (first, *after), *more)


def noisy(mean, seed, k=10):
    rng = np.random.default_rng([seed, int(abs(mean) * 1000)])
    return mean + 5 * rng.normal() + rng.normal(size=k)


def runs_of(mean, seeds, **more):
    return [run_of(noisy(mean, seed), seed, **more) for seed in seeds]


def made(cells, labels=None, titles=("method", "dataset"), axes=None, seeds=None):
    """Results of `{(row, column): runs}`."""
    found = []
    for (row, column), runs in cells.items():
        own = (labels or {}).get((row, column), dict(zip(titles, (row, column), strict=True)))
        planned = seeds or tuple(run.seed for run in runs)
        found.append(Cell(row, column, f"{row}-{column}", tuple(planned), 1000, tuple(runs), own))
    rows, columns = (tuple(dict.fromkeys(place[i] for place in cells)) for i in (0, 1))
    return Results(
        "made", *titles, rows, columns, tuple(found), axes=axes or dict(zip(titles, (rows, columns), strict=True))
    )


def text_of(html):
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


# -- pairs -----------------------------------------------------------------------------------------------------


def shared(offset, seeds, every=100, k=10):
    """Runs whose seeds have a luck in common."""
    luck = np.random.default_rng(0).normal(size=9) * 50
    return [run_of(offset + luck[s] + noisy(0.0, s + round(abs(offset)), k), s, every=every) for s in seeds]


def test_papers_test_pairs_by_seed():
    a, b = shared(-300, (1, 2, 3, 4)), shared(-302, (0, 1, 2, 3, 4))
    (pair,) = aggregate.pairs(made({("a", "x"): a, ("b", "x"): b}, seeds=range(5)), "x")
    x, y = (np.ravel([run.last_evaluations for run in runs]) for runs in (a, b[1:]))
    assert pair.over_evaluations.p == pytest.approx(stats.ttest_rel(x, y).pvalue)
    assert pair.pairs == 40 and pair.over_evaluations.n == 4
    assert pair.test.name == "Welch over seeds"  # the seeds are unlike
    assert "40 pairs" in text_of(pages.page(made({("a", "x"): a, ("b", "x"): b})))


def test_marks_of_unlike_seeds_are_those_of_the_test():
    """Paired by seed where the seeds are the same, in whatever order; Welch's where one is missing."""
    a, b, c = shared(-300, range(5)), shared(-312, (4, 3, 2, 1, 0)), shared(-313, range(4))
    loaded = made({("a", "x"): a, ("b", "x"): b, ("c", "x"): c}, seeds=range(5))
    shown = grid(loaded)
    assert [(s.best, s.tied, s.n) for s in (shown.at(row, "x") for row in "abc")] == [(1, 0, 5), (0, 0, 5), (0, 1, 4)]
    found = {pair.second: pair for pair in aggregate.pairs(loaded, "x") if pair.first == "a"}
    scores = [[run.score for run in sorted(runs, key=lambda run: run.seed)] for runs in (a, b, c)]
    assert found["b"].test.p == pytest.approx(stats.ttest_rel(scores[0], scores[1]).pvalue)
    assert found["c"].test.p == pytest.approx(stats.ttest_ind(scores[0], scores[2], equal_var=False).pvalue)
    (match,) = compare.compare(made({("a", "x"): a}), made({("a", "x"): c})).matches
    assert match.verdict == "not significant" and match.p == pytest.approx(found["c"].test.p)


def test_papers_test_pairs_by_step():
    a, b = shared(-300, range(3)), shared(-302, range(3), every=50, k=20)
    test, pairs = aggregate.over_evaluations(*made({("a", "x"): a, ("b", "x"): b}).cells)
    x = np.ravel([[e.mean for e in run.trained if e.step >= 600] for run in a])
    y = np.ravel([[e.mean for e in run.trained if e.step in range(600, 1001, 100)] for run in b])
    assert pairs == 15 and test.p == pytest.approx(stats.ttest_rel(x, y).pvalue)
    alone = made({("a", "x"): shared(-300, (0, 1, 2)), ("b", "x"): shared(-302, (3, 4, 5))})
    assert aggregate.over_evaluations(*alone.cells) == (None, 0)


def test_a_pair_shows_its_interval_in_the_digits_of_its_column():
    near, far = ([run_of([base + 0.0001 * s * s] * 10, s) for s in range(5)] for base in (0.01, 0.03))
    loaded = made({("a", "x"): near, ("b", "x"): [*far[:4], run_of([0.0301] * 10, 4)]})
    (pair,) = aggregate.pairs(loaded, "x")
    assert pair.interval.low < pair.test.difference < pair.interval.high
    shown = text_of(pages.page(loaded))
    assert f"{pair.test.difference:+.4f}".replace("-", "−") in shown and "−0.0 " not in shown
    assert [digits([v]) for v in (300.0, 10.0, 1.0, 0.03, 0.0)] == [1, 1, 3, 4, 3]


# -- one measure a column --------------------------------------------------------------------------------------


@pytest.fixture
def mixed():
    """A row that knows success rates, one that does not, and a cell of both."""
    rates = [run_of([9.0 + s] * 10, s, rates=[0.9] * 10, env="Hopper-v5") for s in range(3)]
    plain = [run_of([12.0 + s] * 10, s, env="Hopper-v5") for s in range(3)]
    return made({("a", "x"): rates, ("b", "x"): plain, ("a", "y"): [*rates[:2], plain[2]], ("b", "y"): plain})


def test_a_column_has_one_measure_everywhere(mixed):
    assert mixed.measure("x") == "return" and {cell.measure for cell in mixed.cells} == {"return"}
    assert mixed.cells[0].scores.tolist() == [9.0, 10.0, 11.0] and mixed.cells[0].best.mean == 10
    assert grid(mixed).units == {"x": "return", "y": "return"}
    assert {pair.column: pair.test.difference for c in "xy" for pair in aggregate.pairs(mixed, c)}["x"] == -3
    low, _, last = (mixed.at("a", "y").scores[i] for i in range(3))
    assert (low, last) == (9.0, 14.0) and mixed.at("a", "y").bests.tolist() == [9.0, 10.0, 14.0]
    line = courses(mixed, "y", curves._evaluations, rates=True).lines[0]
    assert line.values[:, -1].tolist() == [9.0, 10.0, 14.0] and line.most is None
    assert mixed.cells[0].normalized is not None and mixed.cells[0].normalized[0] < 10
    assert [note for note in mixed.notes if "success rates are known of some runs alone" in note] == list(mixed.notes)
    assert len(mixed.notes) == 2
    rows = list(csv.DictReader(tables.csv_text(mixed).splitlines()))
    assert {row["measure"] for row in rows} == {"return"}


def test_rates_end_at_100_percent_in_every_form():
    runs = [run_of([v] * 10, s, rates=[v] * 10) for s, v in enumerate((1.0, 1.0, 0.6))]
    loaded = made({("a", "x"): runs, ("b", "x"): runs})
    score = grid(loaded).at("a", "x")
    (row, _) = csv.DictReader(tables.csv_text(loaded).splitlines())
    line = courses(loaded, "x", curves._evaluations, rates=True).lines[0]
    assert score.high == 100 and float(row["high"]) == 1 and line.summary()[2].max() == 100
    assert float(row["low"]) == pytest.approx(score.low / 100) and line.summary()[1][-1] == pytest.approx(score.low)


def test_a_cell_tells_scores_and_evaluations_by_seed():
    cell = made({("a", "x"): [run_of(range(12), 7), run_of(range(3), 2), run_of([9], 5, finished=False)]}).cells[0]
    assert cell.by_seed == {7: 6.5, 2: 1.0} and cell.evaluations_by_seed == {7: tuple(range(2, 12)), 2: (0, 1, 2)}


@pytest.mark.parametrize("values", [(NAN, 5, 7), (5, NAN, 7), (5, 7, NAN), (7, 5, NAN)])
def test_the_best_evaluation_is_a_number(values):
    assert run_of(values).best == 7 and math.isnan(run_of([NAN]).best)


# -- few, unfinished, diverged ---------------------------------------------------------------------------------


def test_what_was_not_tested_is_marked_and_explained():
    few, many = [run_of([-150] * 10, 0)], range(5)
    loaded = made({("a", "x"): few, ("b", "x"): runs_of(-205, many), ("c", "x"): runs_of(-206, many)})
    shown = grid(loaded)
    assert shown.at("a", "x").best and all(shown.at(row, "x").untested for row in "bc")
    assert not shown.tested and tables.UNTESTED not in tables.markdown(loaded)
    worst = made({("a", "x"): runs_of(-100, many), ("b", "x"): runs_of(-260, many), ("c", "x"): few})
    shown = grid(worst)
    assert [(s.tied, s.untested) for s in (shown.at(row, "x") for row in "bc")] == [(False, False), (False, True)]
    for text in (tables.markdown(worst), pages.page(worst), latex.latex(worst)):
        assert "not tested against it, since one of the two has too few seeds or diverged" in text
        assert "unmarked: significantly" in text
    assert " †" in tables.markdown(worst).splitlines()[4] and "†</abbr>" in pages.page(worst)
    assert "†" not in pages.page(loaded)  # where there is no test at all, the notes say so
    assert r"$^{\dagger}$" in latex.latex(worst) and "$n=5$" in latex.latex(worst) and "$n=1$" in latex.latex(worst)


@pytest.mark.parametrize("odd", [NAN, INF, -INF])
def test_a_diverged_seed_does_not_stop_the_report(tmp_path, odd):
    diverged = [run_of([-200] * 10, 0), run_of([-210] * 5 + [odd] * 5, 1), run_of([-220] * 10, 2), *runs_of(-200, [3])]
    loaded = made({("a", "x"): diverged, ("b", "x"): runs_of(-300, range(4))})
    page = pages.write(loaded, tmp_path / "out")
    assert "±" not in tables.caption(grid(loaded)) and grid(loaded).at("a", "x").around == ""
    assert "mean return of the training data" not in page.read_text()
    row, _ = csv.DictReader((tmp_path / "out" / "table.csv").read_text().splitlines())
    assert row["n"] == "4" and row["low"] == row["high"] == ""
    assert "a, x: seed 1 diverged" in (tmp_path / "out" / "table.md").read_text()
    assert "In no mean, since diverged (×): seed 1 of a at step 600." in page.read_text()


def test_unfinished_and_diverged_seeds_neither_cut_nor_erase_a_curve():
    runs = [
        *runs_of(-300, range(3)),
        run_of([], 3, finished=False),
        run_of([-300] * 2, 4, finished=False),
        run_of([-300] * 5 + [NAN] * 5, 5),
    ]
    loaded = made(
        {("a", "x"): runs, ("b", "x"): runs_of(-310, range(6)), ("c", "x"): [run_of([-9], 0, finished=False)]}
    )
    first, _, third = courses(loaded, "x", curves._evaluations, rates=True).lines
    assert first.values.shape == (3, 11) and first.steps[-1] == 1000
    assert [(p.seed, p.until, p.diverged, len(p.steps)) for p in first.parts] == [
        (3, 0, False, 1),
        (4, 200, False, 3),
        (5, 600, True, 6),
    ]
    assert third.values.shape[0] == 0 and math.isnan(third.end) and len(third.parts) == 1
    drawn = curves.learning_curve(loaded, "x")
    assert drawn.text == (
        "n = 6 seeds; 3 of a; 0 of c. In no mean, since diverged (×): seed 5 of a at step 600. In no mean, since not "
        "finished (dotted): seed 3 of a at step 0, seed 4 of a at step 200, seed 0 of c at step 100."
    )
    assert {line.get_label() for line in drawn.figure.axes[0].lines} >= {"a", "b"}
    assert "(n = 0 to 6)" in curves.learning_curves(loaded).axes[0].get_title(loc="left")


def test_what_a_point_averages_is_what_the_caption_says():
    cells = {(row, "x"): [*runs_of(-300, range(2)), run_of(noisy(0, 9, 5), 2, finished=False)] for row in "abcdef"}
    for runs in cells.values():
        runs[:2] = [run_of(noisy(-300, s, 121), s, every=10) for s in range(2)]
    found = courses(made(cells), "x", curves._evaluations)
    assert found.k == 3 and "averages 3" in " ".join(found.notes)
    assert found.lines[0].steps.tolist()[:3] == [0, 20, 50] and found.lines[0].values.shape == (2, 42)


def test_hypergradients_of_zero_are_drawn_and_told():
    def runs(*values):
        return [
            run_of([-200] * 10, s, scalars={"g/hypergradient_norm": Series((0, 100, 200), v)})
            for s, v in enumerate(values)
        ]

    still, moving = runs((0.0,) * 3, (0.0,) * 3), runs((2e-3,) * 3, (2e-3, 2e-3, 0.0))
    drawn = curves.hypergradients(made({("z", "x"): still, ("y", "x"): moving}), "x")
    assert "Exactly 0, drawn at the foot of the axis: 6 of 6 of z, 1 of 6 of y." in drawn.text
    lines = {line.get_label(): line for line in drawn.figure.axes[0].lines}
    assert lines["z"].get_ydata().tolist() == pytest.approx([1e-3] * 3) and len(lines["y"].get_xdata()) == 3
    assert drawn.figure.axes[0].yaxis.get_major_formatter()(1e-3, 0) == "0"
    alone = curves.hypergradients(made({("z", "x"): still}), "x")
    assert alone.figure.axes[0].yaxis.get_major_formatter()(1.0, 0) == "0" and "6 of 6 of z" in alone.text


def test_a_moment_shows_no_row_of_another_step():
    def probed(*steps):
        row = {"mean": 0.5, "std": 0.1, "moved": 0.0, "output_name": "B"}
        return {"g": tuple(row | {"step": step} for step in steps)}

    cell = made({("a", "x"): [run_of([-1], 0, probes=probed(0, 400, 1000)), run_of([], 1, probes=probed(0, 100))]})
    moments = [(label, [row["step"] for row in rows]) for label, _, rows in learned._moments(cell.cells[0], "g")]
    assert moments == [
        ("step 0", [0, 0]),
        ("step 400 (1 of 2 seeds)", [400]),
        ("step 1,000 (1 of 2 seeds)", [1000]),
    ]
    unfinished = run_of([], 1, finished=False, probes=probed(0, 100))
    cell = made({("a", "x"): [run_of([-1], 0, probes=probed(0, 400, 1000)), unfinished]}).cells[0]
    assert [label for label, *_ in learned._moments(cell, "g")] == ["step 0", "step 400", "step 1,000"]
    assert "seed 1" not in learned.summary(cell, "g")


def test_an_empty_place_says_what_is_missing():
    loaded = made({("a", "x"): [run_of([], 0)], ("b", "x"): [run_of([], 0, finished=False)], ("c", "x"): [run_of([1])]})
    assert grid(loaded).missing == {("a", "x"): "no evaluation after step 0", ("b", "x"): "0 of 1 runs finished"}


def test_why_there_is_no_aggregate():
    def at(mean, n):
        return runs_of(mean, range(n), env="Hopper-v5")

    few = made({("a", "x"): at(1, 2), ("b", "x"): at(2, 2)})
    assert "fewer than two methods have 3 finished seeds" in aggregate.why_none(few)
    apart = {("a", "x"): at(1, 3), ("a", "y"): at(1, 1), ("b", "x"): at(1, 1), ("b", "y"): at(1, 3)}
    assert aggregate.aggregate(made(apart)) is None
    assert "no dataset has 3 finished seeds of every method" in aggregate.why_none(made(apart))
    unknown = made({(row, c): runs_of(-9, range(3)) for row in "ab" for c in "xy"})
    assert aggregate.aggregate(unknown) is None and "references are known for x, y" in aggregate.why_none(
        unknown
    ).replace("no reference scores", "references")


def test_seeds_stand_in_every_caption():
    cells = {(row, c): runs_of(-300 - i, range(3 + i), env="Hopper-v5") for i, row in enumerate("ab") for c in "xy"}
    found = pages.build(made(cells))
    assert len(found.pictures) == 5 and all("n = " in picture.text for picture in found.pictures)
    assert facts.seeds({"a": 5, "b": 5, "c": 3}) == "n = 5 seeds; 3 of c."
    assert facts.seeds({str(i): i for i in range(1, 9)}) == "n = 1 to 8 seeds." and facts.seeds({}) == ""
    swept = {(f"{r} · {e}", "x"): runs_of(-9 * r * e, range(2), env=None) for r in (1, 2) for e in (1, 2)}
    labels = {place: {"r": place[0][0], "e": place[0][-1], "dataset": "x"} for place in swept}
    axes = {"r": ("1", "2"), "e": ("1", "2"), "dataset": ("x",)}
    loaded = made(swept, labels, ("r · e", "dataset"), axes)
    ((_, drawn),) = heat.over_axes(loaded, "x")
    assert drawn.seeds == "n = 2 seeds."


# -- looks and labels ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rows",
    [
        [f"m{c}" for c in "abcdefghijkl"],
        [f"rate {r} · every {p}" for r in ("1e-5", "1e-4", "1e-3", "1e-2") for p in (4, 50, 500)],
        [
            *(f"a {i}" for i in range(3)),
            *(f"b {i}" for i in range(3)),
            *(f"c {i}" for i in range(3)),
            "d 1",
            "d 2",
            "d 5",
        ],
        [*(f"{c} {i}" for c, n in zip("pqrs", (5, 3, 3, 3), strict=True) for i in range(n))],
        [f"m{c}{d}" for c in "abcdefgh" for d in "stuv"],
    ],
)
def test_no_two_rows_look_alike(rows):
    found = looks.looks(rows)
    assert list(found) == rows and len({(one.colour, str(one.dash), one.marker) for one in found.values()}) == len(rows)
    shown = foremost({row: float(i % 8 == 0) for i, row in enumerate(rows)})
    assert len({found[row] for row in shown}) == len(shown) and (len(rows) <= MANY) == (shown == set(rows))


def test_many_rows_still_have_looks():
    rows = [f"{c}{d}" for c in "abcdefghijklmnopqrst" for d in "abcdefghijklmnopqrst"]
    assert list(looks.looks(rows)) == rows


def test_labels_do_not_break_latex_or_markdown():
    loaded = made({(row, "α|β"): runs_of(-9, range(1)) for row in ("[64, 64]", "* <x>", "λ₂ | $1$")})
    tex = latex.latex(loaded)
    assert "{}[64, 64] &" in tex and r"{}* \textless{}x\textgreater{} &" in tex
    assert r"$\lambda$$_{2}$ \textbar{} \$1\$ &" in tex and r"$\alpha$\textbar{}$\beta$ (return)" in tex
    assert latex.escaped("ΑΩος") == r"$A$$\Omega$$o$$\varsigma$"
    lines = tables.markdown(loaded).splitlines()
    assert [line.replace("\\|", "").count("|") for line in lines[:5]] == [3] * 5
    assert r"| λ₂ \| \$1\$ |" in lines[4] and r"| \* &lt;x> |" in lines[3]
    assert "± its standard deviation over seeds" in tables.markdown(loaded)


def test_no_two_figures_share_a_file(tmp_path):
    name = Names("curves")
    words = [("curves", label) for label in ("α", "中文", "a/b", "a-b", "-1", "1", "A b", "1")]
    found = [name(*pair) for pair in words]
    assert len(set(found)) == 7 and found[-1] == found[5] and "curves" not in found
    assert "curves-a-b" in found and all(text.isascii() for text in found)
    loaded = made({("m", label): runs_of(-9, range(2)) for label in ("α", "中文", "a/b", "a-b")})
    pages.write(loaded, tmp_path)
    assert len(list((tmp_path / "figures").glob("curves*.svg"))) == 5


# -- two of them -----------------------------------------------------------------------------------------------


def grid_of(order, offset=0.0):
    cells, labels = {}, {}
    for a in "01":
        for b in "01":
            own = {"alpha": a, "beta": b}
            place = own[order[0]], own[order[1]]
            cells[place] = [run_of([100 * int(a) + int(b) + 0.1 * s + offset] * 10, s) for s in range(3)]
            labels[place] = own
    return made(cells, labels, order, {axis: ("0", "1") for axis in order})


def test_cells_are_matched_by_labels_whatever_the_order_of_the_axes():
    found = compare.compare(grid_of(("alpha", "beta")), grid_of(("beta", "alpha")))
    assert [match.verdict for match in found.matches] == ["identical"] * 4 and found.remark == ""


def test_unlike_axes_are_not_matched_and_said_to_be_unlike():
    def one(axis, base):
        cells = {(v, "return"): runs_of(base - 10 * int(v), range(3)) for v in "01"}
        return made(cells, {place: {axis: place[0]} for place in cells}, (axis, ""), {axis: ("0", "1")})

    with pytest.raises(UserError, match="the axes of one are degree, of the other noise"):
        compare.compare(one("degree", -100), one("noise", -300))


def test_without_labels_cells_are_matched_by_place_and_it_is_said():
    loaded = made({("a", "x"): runs_of(-9, range(3))})
    bare = made({("a", "x"): runs_of(-9, range(3))}, {("a", "x"): {}})
    found = compare.compare(bare, loaded, "old", "new")
    assert [match.verdict for match in found.matches] == ["identical"]
    assert found.notes[0] == "Cells are matched by row and column, since old tells no labels."


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        (
            runs_of(-9, range(3)),
            [run_of([0.9] * 10, 0, rates=[0.9] * 10)],
            "success rates against returns: not compared",
        ),
        (runs_of(-9, range(3)), [run_of([1.0], 0, finished=False)], "no finished run in the second"),
        (
            [*runs_of(-9, range(3)), run_of([NAN] * 10, 3)],
            runs_of(-8, range(4)),
            "a seed diverged: no test",
        ),
        (runs_of(-9, range(2)), runs_of(-8, range(5)), "fewer than 3 seeds: no test"),
        (runs_of(-9, range(3)), runs_of(-9, range(5)), "identical on 3 common seeds"),
        ([run_of([NAN] * 10, 0)], [run_of([NAN] * 10, 0)], "identical"),
        (runs_of(-9, range(5)), runs_of(-90, range(5)), "lower"),
    ],
)
def test_a_comparison_says_why_there_is_no_test(first, second, verdict):
    (match,) = compare.compare(made({("a", "x"): first}), made({("a", "x"): second})).matches
    assert match.verdict == verdict and (match.p is None) == (verdict != "lower") == (match.interval is None)


def test_a_comparison_in_the_terminal_is_read_as_it_stands():
    one = made({("a", "x"): runs_of(-300, range(5)), ("b", "x"): [run_of([-200] * 10, s) for s in range(5)]})
    other = made({("a", "x"): runs_of(-100, range(5)), ("b", "x"): runs_of(-300, range(5))})
    console = Console(width=140, record=True)
    console.print(compare.rich_table(compare.compare(one, other)))
    printed = console.export_text()
    assert "p < 0.001" in printed and "p = 0.000" not in printed
    assert "±: standard deviation over seeds" in " ".join(printed.split())


def test_a_folder_of_bench_folders_names_them(bench, capsys):
    with pytest.raises(UserError, match=r"holds bench folders \(small\); name one, as in `metarl report .*small`"):
        results.load(bench[0] / "runs")
