"""The page: whole in itself, with every figure and number; the same for the same runs."""

import csv
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks import colours, drawing, results, tidy
from benchmarks.report import aggregate, command, compare, curves, facts, heat, latex, learned, looks, tables
from benchmarks.report import page as pages
from benchmarks.report.picture import Picture, slug
from benchmarks.report.scores import ENOUGH, MANY, grid
from benchmarks.results import Cell, Cost, Evaluation, Excluded, Results, Run, Series
from metarl import config
from metarl.errors import UserError
from metarl.training import offline
from metarl.training.progress import Silent

CONFIG = {
    "name": "x",
    "algorithm": {"name": "bc", "hidden": [8]},
    "objective": [{"name": "fixed", "degree": 1.0}],
    "data": {"train": {"recipe": "pendulum/medium"}},
    "steps": 40,
    "seeds": [0],
    "evaluation": {"every": 10, "episodes": 2},
}


class Outline(HTMLParser):
    """Tags and attributes of a page, checked for balance."""

    VOID = {"meta", "br", "hr", "img", "link", "input"}

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes = [], [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag


def run_of(score, seed=0, *, success=False, env=None, degree=1.0, scalars=None, cost=None):
    """A finished run whose every evaluation is its score."""
    evaluations = tuple(Evaluation(step, score, score if success else None) for step in range(0, 50, 10))
    config = CONFIG | {"objective": [{"name": "fixed", "degree": degree}]}
    environment = {"python": "3.11", "machine": "a machine"}
    return Run(
        Path(f"x/{seed}"), seed, 40, True, evaluations, scalars or {}, {}, {}, environment, config, 40, env, cost
    )


def made(scores, **more):
    """Results of `{(row, column): [score of every seed] or [runs]}`."""
    rows, columns = (tuple(dict.fromkeys(place[i] for place in scores)) for i in (0, 1))
    cells = []
    for (row, column), values in scores.items():
        runs = tuple(v if isinstance(v, Run) else run_of(v, seed) for seed, v in enumerate(values))
        labels = {"method": row, "dataset": column}
        cells.append(Cell(row, column, f"{row}-{column}", tuple(range(len(values))), 40, runs, labels))
    axes = {"method": rows, "dataset": columns}
    return Results("made", "method", "dataset", rows, columns, tuple(cells), axes=axes, **more)


# -- the page --------------------------------------------------------------------------------------------------


def test_report_command_writes_everything(bench, capsys):
    folder, _ = bench
    command.report(folder / "runs" / "small", out=folder / "page")
    printed = " ".join(capsys.readouterr().out.split())
    assert "TD3+BC + GORL" in printed and "No significance is claimed below 3 seeds." in printed
    names = {"index.html", "table.csv", "table.md", "table.tex", "results.parquet", "figures"}
    assert names == {f.name for f in (folder / "page").iterdir()}
    drawn = {f.name for f in (folder / "page" / "figures").iterdir()}
    assert {"curves.svg", "curves.png", "curves-pendulum.svg", "hypergradient-pendulum.png"} <= drawn
    assert {name.removesuffix(".svg") for name in drawn if name.endswith(".svg")} == {
        name.removesuffix(".png") for name in drawn if name.endswith(".png")
    }
    assert (folder / "page" / "figures" / "curves.png").read_bytes().startswith(b"\x89PNG")
    for name in drawn:
        if name.endswith(".svg"):
            text = (folder / "page" / "figures" / name).read_text()
            ElementTree.fromstring(text)
            assert "var(" not in text  # of no use outside the page


def test_a_report_of_a_parquet_file_shows_the_same_table(bench, tmp_path, capsys):
    loaded = results.load(bench[0] / "runs" / "small")
    tidy.write(loaded, tmp_path / "some.parquet")
    command.report(tmp_path / "some.parquet")
    capsys.readouterr()
    out = tmp_path / "some-report"
    assert (out / "table.csv").read_text() == tables.csv_text(loaded) and not (out / "results.parquet").exists()
    assert (out / "table.md").read_text() == tables.markdown(loaded)


def test_the_page_is_whole_in_itself(bench):
    loaded = results.load(bench[0] / "runs" / "small")
    made_page = pages.build(loaded)
    html = made_page.html
    outline = Outline(html)
    # learning curve; B over its input, its outputs, its course; hypergradient
    assert [picture.svg.startswith("<svg") for picture in made_page.pictures] == [True] * 5
    assert outline.tags.count("figure") == 5
    assert not {"script", "link", "img", "iframe"} & set(outline.tags)
    for name, value in outline.attributes:
        if name in ("src", "href", "xlink:href"):
            assert value.startswith("#"), (name, value)
    assert not re.findall(r"url\((?!#)", html) and "@import" not in html
    shown = grid(loaded)
    for cell in loaded.cells[:2]:
        score = shown.at(cell.row, cell.column)
        for text in (score.value, score.around, score.seeds):
            assert text.replace("-", "−") in html
        sha = cell.runs[0].data["train"]["sha256"]
        assert sha[:12] in html and cell.experiment in html
    assert "0 of 2 runs finished" in html and "2 of 2 runs unfinished" in html
    assert "Failed runs" in html and "broken, pendulum, seed 0" in html
    assert "No significance is claimed below 3 seeds." in html and "drawn per seed" in html
    assert pages.page(loaded) == html


def test_ids_and_links_of_the_page_fit(bench):
    html = pages.page(results.load(bench[0] / "runs" / "small"))
    ids = re.findall(r'\sid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    used = re.findall(r'(?:href="#|url\(#|aria-labelledby=")([^")]+)', html)
    assert used and set(used) <= set(ids)
    declared = set(re.findall(r"(--c-[0-9a-f]{6}):", html))
    assert declared == set(re.findall(r"var\((--c-[0-9a-f]{6})\)", html))
    assert html.count("<title>") == 1 + html.count('role="img"')


def test_headings_go_down_one_by_one(bench):
    html = pages.page(results.load(bench[0] / "runs" / "small"))
    levels = [int(level) for level in re.findall(r"<h([1-6])", html)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))


def test_labels_are_escaped(bench, tmp_path):
    shutil.copytree(bench[0] / "runs" / "small", tmp_path / "small")
    index = tmp_path / "small" / "index.json"
    index.write_text(index.read_text().replace('"BC"', '"<b>$x_1 & y"'))
    loaded = results.load(tmp_path / "small")
    html = pages.page(loaded)
    Outline(html)
    assert "<b>" not in html and "&lt;b&gt;$x_1 &amp; y" in html
    assert r"\textless{}b\textgreater{}\$x\_1 \& y" in latex.latex(loaded)


def test_svgs_are_xml_and_do_not_share_names(bench):
    loaded = results.load(bench[0] / "runs" / "small")
    drawn = [curves.learning_curve(loaded, "pendulum"), curves.hypergradients(loaded, "pendulum")]
    ids = []
    for figure, _ in drawn:
        svg = drawing.to_svg(figure, 'a "title" & <more>')
        root = ElementTree.fromstring(svg)
        assert root.get("viewBox") and root.get("width") is None and root.get("height") is None
        assert root.get("aria-label") == 'a "title" & <more>' == root[0].text and root[0].tag.endswith("title")
        assert svg == drawing.to_svg(figure, 'a "title" & <more>')
        ids += re.findall(r' id="([^"]+)"', svg)
    assert ids and len(ids) == len(set(ids))


def test_without_probes_or_evaluations_there_is_no_figure(bench):
    loaded = results.load(bench[0] / "runs" / "small")
    bc = loaded.cells[0]
    assert learned.probe_curve(bc, "guiding_network", "C0") is None
    assert curves.learning_curve(loaded, "nowhere") is None
    assert curves.hypergradients(loaded, "nowhere") is None
    assert heat.over_axes(loaded, "pendulum") == []
    assert facts.costs(made({("a", "x"): [1.0]})) == {}


GILD = """
name: gild
algorithm: {name: td3, hidden: [8], batch_size: 16}
objective: {name: gild, net: {hidden: [8]}, batch_size: 16}
online: {env: Pendulum-v1, random_steps: 5}
data: {demo: {recipe: pendulum/expert, size: 600}}
steps: 30
evaluation: {every: 10, episodes: 1}
compile: "off"
device: cpu
"""


@pytest.fixture(scope="module")
def gild(made, tmp_path_factory):
    """The folder of two short runs of GILD, whose learned loss has no curve."""
    folder = tmp_path_factory.mktemp("gild")
    (folder / "gild.yaml").write_text(GILD)
    experiment = config.load(folder / "gild.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(made))
        runs = [offline.train(experiment, seed, folder / "runs", Silent()) for seed in (0, 1)]
    return runs[0].parent


def test_a_learned_function_without_a_curve_is_drawn_as_points(gild):
    (cell,) = results.load(gild).cells
    rows = [run.probes["loss_network"] for run in cell.runs]
    assert all(len(row["points"]) == 16 and "curve" not in row for of_run in rows for row in of_run)
    figure = learned.probe_curve(cell, "loss_network", "#0072b2")
    drawn = {line.get_label(): line for line in figure.axes[0].lines}
    assert list(drawn) == ["step 10", "step 20", "step 30"]
    for label, line in drawn.items():
        points = [row["points"] for of_run in rows for row in of_run if label == f"step {row['step']}"]
        np.testing.assert_array_equal(line.get_xydata(), np.concatenate(points))
        assert line.get_linestyle() == "None"
    looks_of = {(line.get_marker(), line.get_markerfacecolor()) for line in drawn.values()}
    assert len(looks_of) == 3 and ("o", "#0072b2") in looks_of
    assert figure.axes[0].get_xlabel() == "distance from the demonstrated action\n(grey: the last batch)"
    steps = learned.probe_course(cell, "loss_network", "#0072b2").axes[1]
    assert steps.get_xlabel() == "environment steps"


def test_the_page_shows_a_loss_learned_online(gild, tmp_path, capsys):
    command.report(gild, out=tmp_path)
    html = (tmp_path / "index.html").read_text()
    Outline(html)
    assert "loss network" in html and "Mean learned loss G over a batch" in html and "environment steps" in html
    drawn = sorted(path.name for path in (tmp_path / "figures").glob("learned-*.svg"))
    assert [name.removesuffix(".svg").rsplit("-", 1)[1] for name in drawn] == ["course", "input", "outputs"]


def test_a_constant_fills_its_histogram():
    row = {"step": 0, "input_name": "x", "output_name": "G", "outputs": {"edges": [0.5, 0.6, 0.7], "counts": [0, 9]}}
    last = row | {"step": 10, "outputs": {"edges": [0.62, 0.64, 0.66], "counts": [4, 5]}}
    run = replace(run_of(1.0), probes={"g": (row, last)})
    (cell,) = made({("a", "x"): [run]}).cells
    left, right = learned.probe_histogram(cell, "g", "#0072b2").axes[0].get_xlim()
    assert 0.58 < left < 0.6 and 0.7 < right < 0.72


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ([0], [(0.0, 0)]),
        ([0, 10], [(0.0, 0), (1.0, 10)]),
        ([10], [(1.0, 10)]),
        ([10, 20], [(0.0, 10), (1.0, 20)]),
        ([10, 20, 30, 40], [(0.0, 10), (0.5, 20), (1.0, 40)]),
    ],
)
def test_no_moment_is_told_twice(steps, told):
    run = replace(run_of(1.0), probes={"g": tuple({"step": step} for step in steps)})
    (cell,) = made({("a", "x"): [run]}).cells
    assert [(tone, rows[0]["step"]) for _, tone, rows in learned._moments(cell, "g")] == told


def test_what_the_runs_lack_the_page_does_not_claim():
    html = pages.page(made({("a", "x"): [1.0, 2.0], ("b", "x"): [5.0, 6.0]}))
    assert "Pairwise tests" not in html and "Interquartile" not in html and "≈" not in html
    assert "No significance is claimed below 3 seeds." in html


def test_a_page_with_everything():
    scalars = {
        f"watch/{batch}/constraint": Series((0, 10, 20, 30, 40), (1.0, 0.8, 0.5, 0.4, 0.3)) for batch in ("a", "b")
    }
    scores = {}
    for row, level in (("BC", 0.2), ("GORL", 0.8)):
        more = {"scalars": scalars, "degree": level, "cost": Cost(40, 20.0, 30.0, 412_000_000, 2)}
        scores[row, "maze"] = [run_of(level + 0.01 * s, s, success=True, **more) for s in range(4)]
        scores[row, "hopper"] = [run_of(3000 * level + 9 * s, s, env="Hopper-v5", **more) for s in range(4)]
    left_out = Excluded({"method": "BC", "dataset": "ant"}, "too <slow>", "BC", "ant")
    loaded = made(scores, excluded=(left_out,))
    found = pages.build(loaded)
    Outline(found.html)
    names = {picture.name for picture in found.pictures}
    assert names == {
        *("curves-maze", "curves-hopper", "profiles", "iqm", "improvement"),
        *("watch-constraint-maze", "watch-constraint-hopper"),
    }
    text = " ".join(re.sub(r"<[^>]*>", " ", found.html).split())
    assert "success, %" in text and "20.0 to" not in text
    assert "20 s 30 s CPU 2 steps/s 412 MB 2 seeds together" in text
    assert "too &lt;slow&gt;" in text and "objective.degree 0.2 0.8" in text
    assert "Warning: GORL’s test takes" in text and "for independent" in text
    assert "maze success rate, in percent" in text and "d4rl/infos.py" in text
    assert "sum of 2" in text and "IQM" in text


# -- scores ----------------------------------------------------------------------------------------------------


def test_the_best_is_marked_and_what_is_not_told_from_it():
    shown = grid(made({("a", "x"): [1.0, 2.0, 3.0], ("b", "x"): [2.0, 2.5, 3.0], ("c", "x"): [-9.0, -9.1, -9.2]}))
    assert [(s.best, s.tied) for s in (shown.at(row, "x") for row in "abc")] == [(0, 1), (1, 0), (0, 0)]
    few = grid(made({("a", "x"): [1.0, 2.0], ("b", "x"): [2.0, 2.5]}))
    assert [(s.best, s.tied, s.low) for s in (few.at(row, "x") for row in "ab")] == [(0, 0, None), (1, 0, None)]
    assert few.at("a", "x").around == "± 0.707" and tables.FEW in tables.caption(few)
    assert tables.FEW not in tables.caption(shown)


def test_a_diverged_run_takes_part_in_no_test():
    loaded = made({("a", "x"): [1.0, float("nan"), 3.0], ("b", "x"): [2.0, 2.5, 3.0]})
    shown = grid(loaded)
    assert shown.at("a", "x").value == "nan" and shown.at("b", "x").best and not shown.at("a", "x").tied
    assert aggregate.pairs(loaded, "x") == [] and aggregate.aggregate(loaded) is None
    Outline(pages.page(loaded))


def test_success_is_shown_in_percent_and_its_interval_ends_at_100():
    runs = [run_of(rate, seed, success=True) for seed, rate in enumerate((1.0, 1.0, 0.9))]
    score = grid(made({("a", "maze"): runs})).at("a", "maze")
    assert score.value == "96.7" and score.high == 100.0 and score.low > 80


def test_totals_are_over_datasets_that_all_have():
    def at(*returns):
        return [run_of(value, seed, env="Hopper-v5") for seed, value in enumerate(returns)]

    scores = {("a", "x"): at(1, 2, 3), ("b", "x"): at(4, 5, 6), ("a", "y"): at(7, 8, 9)}
    loaded = made(scores | {("a", "z"): at(1, 2, 3), ("b", "z"): at(4, 5, 6)})
    shown = grid(loaded, "normalized")
    assert shown.common == ("x", "z") and shown.missing["b", "y"] == ""
    mean = np.mean([run.normalized for run in loaded.at("b", "x").runs])
    assert shown.totals["b"].sum == pytest.approx(2 * mean) and shown.totals["b"].iqm.low < mean
    assert grid(made({("a", "x"): [1.0]}), "normalized").scores == {}


def test_tables_agree_with_each_other():
    loaded = made({("a", "x"): [1000.0, 2000.0, 3000.0], ("b_1", "x"): [10.0, 20.0, 30.0]})
    rows = {row["method"]: row for row in csv.DictReader(tables.csv_text(loaded).splitlines())}
    assert float(rows["a"]["mean"]) == 2000 and rows["a"]["scores"] == "1000.0 2000.0 3000.0"
    shown = grid(loaded).at("a", "x")
    assert float(rows["a"]["low"]) == shown.low and float(rows["a"]["high"]) == shown.high
    assert f"**2,000.0 {shown.around}**  (n=3)" in tables.markdown(loaded)
    tex = latex.latex(loaded)
    (head, below) = [line for line in tex.splitlines() if line.startswith(("a &", r"b\_1 &"))]
    assert head.startswith(r"a & \textbf{2{,}000.0} {\scriptsize [")
    assert (
        below.startswith(r"b\_1 & 20.0$^{\approx}$ {\scriptsize [$-$4.8, 44.8]}") and grid(loaded).at("b_1", "x").tied
    )
    assert tex.count("{") == tex.count("}") and r"\toprule" in tex


def test_pairs_are_corrected_within_a_dataset():
    loaded = made({(row, "x"): [i + 0.0, i + 0.1, i + 0.2] for i, row in enumerate("abc")})
    found = aggregate.pairs(loaded, "x")
    assert [(p.first, p.second) for p in found] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert all(p.corrected >= p.test.p and p.over_evaluations.warning for p in found)
    assert found[1].test.difference == pytest.approx(-2)
    many = made({(str(i), "x"): [i + 0.0, i + 0.1, i + 0.2] for i in range(MANY + 1)})
    assert {p.first for p in aggregate.pairs(many, "x")} == {str(MANY)} and aggregate.improvement(many) is None


def test_a_heat_map_finds_its_axes():
    cells = []
    for method in ("a", "b"):
        for rate in ("0.1", "1"):
            for every in ("10", "50"):
                labels = {"method": method, "rate": rate, "every": every, "dataset": "x"}
                row = f"{method} · {rate} · {every}"
                cells.append(Cell(row, "x", row, (0,), 40, (run_of(float(rate) * float(every)),), labels))
    axes = {"method": ("a", "b"), "rate": ("0.1", "1"), "every": ("10", "50"), "dataset": ("x",)}
    rows = tuple(cell.row for cell in cells)
    loaded = Results("swept", "method · rate · every", "dataset", rows, ("x",), tuple(cells), axes=axes)
    assert heat.axes_of(loaded) == ("rate", "every")
    (name, first), (other, _) = heat.over_axes(loaded, "x")
    assert (name, other) == ("a", "b") and first.values.tolist() == [[1, 5], [10, 50]]
    assert "swept" in pages.page(loaded) and heat.axes_of(made({("a", "x"): [1.0]})) is None


# -- looks -----------------------------------------------------------------------------------------------------


def test_values_of_one_quantity_take_shades_of_a_ramp():
    rows = [f"weight {w}" for w in ("0", "0.5", "0.25", "1")] + ["TD3+BC", "adaptive"]
    look = looks.looks(rows)
    assert [look[f"weight {w}"].colour for w in ("0", "0.25", "0.5", "1")] == list(colours.ramp(4))
    assert look["TD3+BC"].colour in drawing.PALETTE and look["adaptive"].colour in drawing.PALETTE
    assert len({(one.colour, one.dash, one.marker) for one in look.values()}) == len(rows)


def test_every_colour_stands_out_in_both_schemes():
    light, dark = colours.PAPER
    every = [*drawing.PALETTE, *(c for which in range(len(colours.MAPS)) for c in colours.ramp(colours.SHADES, which))]
    for colour in every:
        assert colours.contrast(colour, light) >= 3 <= colours.contrast(colours.on_dark(colour), dark)
    assert colours.contrast(drawing.INK, light) > 7 < colours.contrast(colours.on_dark(drawing.INK), dark)
    assert colours.contrast("#ffffff", "#000000") == pytest.approx(21)


def test_names_beside_lines_keep_apart_and_in_order():
    places = drawing.spread([0.5, 0.5, 0.1, 0.52], 0.1)
    assert places[2] == pytest.approx(0.1) and places[0] < places[1] < places[3]
    assert np.diff(sorted(places)).min() >= 0.1 - 1e-12 and drawing.spread([], 0.1) == []
    assert np.mean([places[i] for i in (0, 1, 3)]) == pytest.approx(np.mean([0.5, 0.5, 0.52]))


@pytest.mark.parametrize(("n", "kept"), [(1, [0]), (3, [0, 1, 2]), (1000, None)])
def test_thinning_keeps_the_ends(n, kept):
    found = drawing.thinned(n).tolist()
    assert len(found) <= drawing.POINTS and found[0] == 0 and found[-1] == n - 1
    assert kept is None or found == kept


def test_a_crowd_is_averaged_and_said_to_be():
    def run(seed):
        evaluations = tuple(Evaluation(step, float(step)) for step in range(201))
        return replace(run_of(0.0, seed), evaluations=evaluations)

    crowd = made({(row, "x"): [run(0)] for row in "abcde"})
    assert "Each point averages 5 consecutive" in pages.page(crowd)
    assert "averages" not in curves.learning_curve(made({("a", "x"): [run(0)]}), "x").text


# -- facts -----------------------------------------------------------------------------------------------------


def test_differences_are_told_by_the_side_they_follow():
    def run(degree, size):
        run = run_of(1.0, degree=degree)
        return replace(run, config=run.config | {"data": {"train": {"recipe": size}}})

    loaded = made({(m, d): [run(float(m), d)] for m in ("1", "2") for d in ("x", "y")})
    by_row, by_column = facts.differences(loaded)
    assert (by_row.side, dict(by_row.keys)) == ("method", {"objective.degree": ("1.0", "2.0")})
    assert (by_column.side, dict(by_column.keys)) == ("dataset", {"data.train.recipe": ("x", "y")})


@pytest.mark.parametrize(
    ("seconds", "text"), [(8.24, "8.2 s"), (98.0, "98 s"), (100.0, "1.7 min"), (3000.0, "50 min"), (9000.0, "2.5 h")]
)
def test_durations(seconds, text):
    assert facts.duration(seconds) == text


def test_files_are_named_after_labels():
    assert slug("curves", "Pendulum/medium (v5)") == "curves-pendulum-medium-v5"


# -- two of them -----------------------------------------------------------------------------------------------


def test_compare_matches_cells_and_tests_them():
    first = made({("a", "x"): [1.0, 2.0, 3.1], ("b", "x"): [1.0, 2.0, 3.0], ("c", "x"): [1.0]})
    second = made({("a", "x"): [11.0, 12.0, 13.0], ("b", "x"): [1.0, 2.0, 3.0], ("d", "x"): [run_of(1.0, degree=9.0)]})
    found = compare.compare(first, second, "one", "two")
    a, b = found.matches
    assert a.difference == pytest.approx(9.967, abs=1e-3) and a.holds and a.verdict == "higher"
    assert a.interval.low < a.difference < a.interval.high
    assert b.verdict == "identical" and b.p is None
    assert found.only == (("c, x",), ("d, x",)) and "two has no c, x" in found.notes
    html = compare.page(found)
    Outline(html)
    assert "+10.0" in html and "identical" in html and "No cell is configured unlike" in html
    with pytest.raises(UserError, match="no cell in common"):
        compare.compare(made({("a", "x"): [1.0]}), made({("a", "y"): [1.0]}))


def test_compare_claims_nothing_of_two_seeds_and_tells_of_configurations():
    first = made({("a", "x"): [1.0, 2.0]})
    second = made({("a", "x"): [run_of(9.0, seed, degree=0.5) for seed in range(2)]})
    found = compare.compare(first, second)
    (match,) = found.matches
    assert match.p is None and not match.holds and f"fewer than {ENOUGH} seeds" in match.verdict
    assert match.keys == (("objective.degree", "1.0", "0.5"),)


def test_the_command_compares(bench, tmp_path, capsys):
    small = bench[0] / "runs" / "small"
    shutil.copytree(small, tmp_path / "again")
    command.report(small, tmp_path / "again", out=tmp_path / "out")
    printed = " ".join(capsys.readouterr().out.split())
    assert "identical" in printed and (tmp_path / "out" / "index.html").is_file()


def test_a_picture_has_both_files(tmp_path):
    figure = curves.learning_curves(made({("a", "x"): [1.0, 2.0]}))
    Picture("some", "t", figure, "alt").write(tmp_path)
    assert {f.name for f in tmp_path.iterdir()} == {"some.svg", "some.png"}
