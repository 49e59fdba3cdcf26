"""Claims about POR: their rules judge known data as they should, and the page and its pictures show it."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from benchmarks import tidy
from benchmarks.claims import page, pictures, pictures_por, por
from benchmarks.results import Cell, Evaluation, Excluded, Results, Run, Series, load
from benchmarks.running import suite
from metarl.data.scores import reference
from metarl.errors import UserError

SEEDS = 5
WOBBLE = (-1.0, 2.0, 0.0, 1.0, -2.0)  # by seed; no part in the mean
COURSE = tuple(range(0, 11))  # steps of evaluations
METHODS = ("BC", "10% BC", "TD3+BC", "IQL", "POR", "POR, V-guided")
PENDULUM = reference("Pendulum-v1")


def _run(seed, score, raw=None, env=None, steps_to_goal=100.0):
    """Success (or, with a reference, the return) worth 7 in the first half, and `score` in the second."""
    values = [0.0, *[7.0] * 5, *[score] * 5]
    if env is None:
        raw = [raw if raw is not None else v / 100 for v in values]
        evaluations = tuple(Evaluation(s, r, v / 100) for s, v, r in zip(COURSE, values, raw, strict=True))
    else:
        low, high = PENDULUM.low, PENDULUM.high
        evaluations = tuple(Evaluation(s, low + (high - low) * v / 100) for s, v in zip(COURSE, values, strict=True))
    series = Series(COURSE[1:], tuple([9.0] * 5 + [steps_to_goal] * 5))
    scalars = {por.STEPS: series} if env is None else {}
    environment = {"torch": "2", "commit": "abc"}
    return Run(Path(f"x/{seed}"), seed, 10, True, evaluations, scalars, {}, {}, environment, {}, 10, env)


def made(name, axes, scores, sd=1.0, raw=None, env=None, excluded=()):
    """Results of a suite with these axes; `scores`, `raw` and `env` of a cell by its labels."""
    cells = []
    for combination in product(*axes.values()):
        labels = dict(zip(axes, combination, strict=True))
        if labels in excluded:
            continue
        # Another order in every one of ten cells, so that differences vary.
        order = np.roll(np.arange(SEEDS), len(cells))[:: 1 if len(cells) % 10 < SEEDS else -1]
        runs = tuple(
            _run(
                seed,
                scores(labels) + sd * WOBBLE[order[seed]],
                raw(labels) + 0.01 * WOBBLE[order[seed]] if raw else None,
                env(labels) if env else None,
            )
            for seed in range(SEEDS)
        )
        # The last axis is a table's rows here, and the one before its columns.
        row, column = combination[-1], " ".join(combination[:-1]) or "success"
        cells.append(Cell(row, column, f"{row}-{column}", tuple(range(SEEDS)), 10, runs, labels))
    rows, columns = (tuple(dict.fromkeys(getattr(cell, which) for cell in cells)) for which in ("row", "column"))
    left_out = tuple(Excluded(labels, "made so") for labels in excluded)
    return Results(name, "row", "column", rows, columns, tuple(cells), axes=axes, excluded=left_out)


def pointmaze(means, **options):
    scores = dict.fromkeys(METHODS, 50.0) | means
    return made(por.POINTMAZE, {"method": METHODS}, lambda labels: scores[labels["method"]], **options)


def four_rooms(scores, raw=None):
    """Of POR, BC and A's execute policy on B and C; 90 on A."""
    axes = {"task": ("A four rooms", "B river", "C key"), "method": ("POR", por.KEPT, "BC")}
    return made(
        por.ROOMS,
        axes,
        lambda labels: 90.0 if labels["task"].startswith("A") else scores[labels["method"]],
        raw=(lambda labels: raw[labels["method"]]) if raw else None,
        excluded=({"task": "A four rooms", "method": por.KEPT},),
    )


def verdicts(results):
    """By what it says, every claim about these results."""
    return {claim.says: claim.judge(results) for claim in por.CLAIMS if claim.suite == results.name}


# -- what runs are worth ---------------------------------------------------------------------------------------


def test_a_run_is_worth_its_second_half():
    assert por.late(_run(0, 80.0)) == pytest.approx(80) and por.late_return(_run(0, 80.0)) == pytest.approx(0.8)
    assert por.late(_run(0, 60.0, env="Pendulum-v1")) == pytest.approx(60)
    results = pointmaze({})
    assert por.steps_to_goal(results, _run(0, 80.0, steps_to_goal=33.0)) == 33
    short = replace(_run(0, 80.0), scalars={por.STEPS: Series((1, 2), (5.0, 6.0))})
    assert np.isnan(por.steps_to_goal(results, short))
    with pytest.raises(UserError, match="no reference scores are known for 'Nowhere-v0'"):
        por.late(replace(_run(0, 60.0, env="Pendulum-v1"), env="Nowhere-v0"))


# -- PointMaze's pieces ----------------------------------------------------------------------------------------


def test_por_against_each_rival():
    found = verdicts(pointmaze({"POR": 70.0, "TD3+BC": 69.9, "IQL": 80.0, "POR, V-guided": 20.0}))
    maze = "on pieces of PointMaze's ways"
    assert [found[f"POR does better than {name} {maze}"].outcome for name in ("cloning", "TD3+BC", "IQL")] == [
        "held",
        "undecided",
        "did not hold",
    ]
    assert found[f"the residual form does better than the V-guided one {maze}"].outcome == "held"


def test_the_table_of_pointmaze_by_hand():
    """Seeds apart by -1, 2, 0, 1, -2: the mean's half-width is 2.776 sqrt(10 / 4) / sqrt(5) = 1.963."""
    results = pointmaze({"POR": 70.0})
    verdict = por.above("BC", results)
    assert [row[0] for row in verdict.table[1:]] == list(METHODS)
    assert verdict.table[1][:3] == ["BC", "50.0", "48.0 to 52.0"] and verdict.table[1][4] == "100.0"
    assert verdict.table[1][5].startswith("+20.0 (") and verdict.table[5][5:] == ["", ""]
    assert "POR succeeds in 70.0 % of the episodes, BC in 50.0 %: +20.0 (" in verdict.measured
    assert not por.above("IQL", results).table


def test_rivals_are_judged_together():
    """Alone the rival would be clear at p = 0.03; of four it is not, and of four that are all below it is."""
    results = pointmaze({"POR": 52.0}, sd=0.0)
    cells = []
    for cell in results.cells:
        gaps = dict(zip(range(SEEDS), (0.1, 1.0, 2.0, 3.0, 3.9), strict=True))
        runs = tuple(_run(seed, 52.0 - gaps[seed] if cell.row == "BC" else 52.0) for seed in range(SEEDS))
        cells.append(replace(cell, runs=runs))
    one = replace(results, cells=tuple(cells))
    d = por.Difference.of(
        por.scores_of(one, {"method": "POR"}, por.late), por.scores_of(one, {"method": "BC"}, por.late)
    )
    assert 0.0125 < d.test.p < 0.05
    assert por.above("BC", one).outcome == "undecided"


def test_an_unfinished_cell_is_not_judged():
    results = pointmaze({})
    short = replace(results.cells[0], runs=results.cells[0].runs[:3])
    with pytest.raises(UserError, match="the cell 'BC' is not there with all its seeds"):
        por.above("IQL", replace(results, cells=(short, *results.cells[1:])))


# -- the guide -------------------------------------------------------------------------------------------------


def recorded(path, results, gain=1.0, far=2.0, near=0.5, **changes):
    """A record as `benchmarks.guide` writes it, of all runs of POR."""
    cell = next(cell for cell in results.cells if cell.row == "POR")

    def part(difference, distance, seed):
        value = difference + 0.01 * WOBBLE[seed]
        return {"difference": value, "low": value, "high": value, "above": 0.75, "distance": distance}

    runs = [
        {
            "experiment": cell.experiment,
            "seed": seed,
            "step": cell.steps,
            "v_next": -10.0,
            "v_guide": -10.0 + gain,
            "outside": 0.25,
            "all": part(gain, 0.2, seed),
            "nearest": part(near, 0.1, seed),
            "farthest": part(far, 0.4, (seed + 1) % SEEDS),
            **changes,
        }
        for seed in reversed(range(SEEDS))
    ]
    path.write_text(json.dumps({"runs": runs, "environment": {}}))


@pytest.mark.parametrize(
    ("gain", "far", "near", "outcomes"),
    [
        (1.0, 2.0, 0.5, ["held", "held"]),
        (-1.0, 0.5, 2.0, ["did not hold", "did not hold"]),
        (0.0, 1.0, 1.0, ["undecided", "undecided"]),
    ],
)
def test_the_guide(tmp_path, monkeypatch, gain, far, near, outcomes):
    monkeypatch.setattr(por, "GUIDE", tmp_path / "por_guide.json")
    results = pointmaze({})
    recorded(por.GUIDE, results, gain, far, near)
    higher, farther = por.higher_values(results), por.farther_is_higher(results)
    assert [higher.outcome, farther.outcome] == outcomes
    assert [row[0] for row in higher.table[1:]] == list("01234")
    assert higher.table[3][1:3] == ["−10.00", f"{-10 + gain:.2f}".replace("-", "−")]
    assert higher.table[3][4:] == ["75%", "25%"]
    assert [row[:2] for row in farther.table[1:]] == [["nearest", "0.1"], ["farthest", "0.4"]]


@pytest.mark.parametrize("changes", [None, {"experiment": "another"}, {"step": 4}, {"seed": 0}])
def test_a_guide_that_is_not_of_these_runs_is_not_measured(tmp_path, monkeypatch, changes):
    monkeypatch.setattr(por, "GUIDE", tmp_path / "por_guide.json")
    results = pointmaze({})
    if changes is not None:
        recorded(por.GUIDE, results, **changes)
    for judge in (por.higher_values, por.farther_is_higher):
        verdict = judge(results)
        assert verdict.outcome == "not measured" and "python -m benchmarks.guide" in verdict.measured


# -- a supplement of worse data --------------------------------------------------------------------------------

USES = ("main", "more", "mix", "large alone", "mix, execute of large")


def supplements(rooms, pendulum):
    """Scores by use of the data, where they are not 50."""
    by_dataset = {"rooms": rooms, "pendulum": pendulum}
    return made(
        por.SUPPLEMENT,
        {"dataset": tuple(by_dataset), "method": USES},
        lambda labels: by_dataset[labels["dataset"]].get(labels["method"], 50.0),
        env=lambda labels: "Pendulum-v1" if labels["dataset"] == "pendulum" else None,
    )


@pytest.mark.parametrize(
    ("rooms", "pendulum", "outcome"),
    [(80.0, 80.0, "held"), (80.0, 50.1, "undecided"), (80.0, 20.0, "did not hold")],
)
def test_mix_must_be_above_on_every_dataset(rooms, pendulum, outcome):
    main, more = verdicts(supplements({"mix": rooms}, {"mix": pendulum})).values()
    assert main.outcome == more.outcome == outcome
    assert len(main.table) == 1 + 2 * len(USES) and not more.table
    assert main.table[3][:3] == ["rooms", "mix", f"{rooms:.1f}"] and main.table[3][4:] == ["", ""]
    assert main.table[8][:3] == ["pendulum", "mix", f"{pendulum:.1f}"]


def test_main_and_more_are_told_apart():
    main, more = verdicts(supplements({"mix": 60.0, "more": 70.0}, {"mix": 60.0, "more": 70.0})).values()
    assert (main.outcome, more.outcome) == ("held", "did not hold")


# -- one execute policy for several tasks ----------------------------------------------------------------------


@pytest.mark.parametrize(("kept", "outcome"), [(80.0, "held"), (50.1, "undecided"), (20.0, "did not hold")])
def test_a_new_guide_with_the_old_execute_policy(kept, outcome):
    verdict = por.transfers(four_rooms({"POR": 80.0, por.KEPT: kept, "BC": 50.0}))
    assert verdict.outcome == outcome
    assert [row[:2] for row in verdict.table[1:3]] == [["A four rooms", "POR"], ["A four rooms", "BC"]]
    assert all(row[5] == "" for row in verdict.table[1:3])
    assert verdict.table[4][:3] == ["B river", por.KEPT, f"{kept:.1f}"]
    assert verdict.table[5][5].startswith(
        f"{kept - 50:+.1f} (".replace("-", "−") if outcome != "undecided" else "+0.10"
    )


@pytest.mark.parametrize(("kept", "outcome"), [(79.0, "held"), (70.5, "undecided"), (40.0, "did not hold")])
def test_as_good_as_training_the_execute_policy_anew(kept, outcome):
    verdict = por.not_worse(four_rooms({"POR": 80.0, por.KEPT: kept, "BC": 50.0}))
    assert verdict.outcome == outcome
    assert [row[0] for row in verdict.table[1:]] == ["B river", "C key"]


def test_wet_steps_are_judged_by_the_return():
    raw = {"POR": 1.0, por.KEPT: -3.0, "BC": 0.5}
    found = verdicts(four_rooms({"POR": 80.0, por.KEPT: 80.0, "BC": 50.0}, raw))
    assert found["a new guide with A's execute policy solves new tasks more often than cloning"].outcome == "held"
    assert (
        found["a new guide with A's execute policy returns more than cloning, steps in the river counted"].outcome
        == "did not hold"
    )
    assert "−3.00" in [
        row[4] for row in found["a new guide with A's execute policy solves new tasks more often than cloning"].table
    ]


# -- a learned degree ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "degree", "best"),
    [(90.0, "held", "held"), (60.0, "held", "did not hold"), (40.0, "did not hold", "did not hold")],
)
def test_a_learned_degree(ours, degree, best):
    constants = {"fixed 0.0": 30.0, "fixed 1.0": 50.0, "fixed 3.0": 70.0}
    axes = {"dataset": ("a", "b"), "method": (*constants, "GORL quick")}
    results = made(por.LEARNED, axes, lambda labels: constants.get(labels["method"], ours))
    found = verdicts(results)
    assert [verdict.outcome for verdict in found.values()] == [degree, best]
    assert [row[3] for row in list(found.values())[1].table[1:]] == 2 * list(constants)


# -- the page --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted({claim.suite for claim in por.CLAIMS}))
def test_every_claim_names_a_shipped_suite_whose_axes_it_can_judge(name, tmp_path, monkeypatch):
    monkeypatch.setattr(por, "GUIDE", tmp_path / "por_guide.json")
    loaded = suite.load(suite.find(name.removesuffix("-small")), small=name.endswith("-small"))
    axes = {axis: tuple(labels) for axis, labels in loaded.axes.items()}
    excluded = tuple(dict(one.labels) for one in loaded.excluded)
    results = made(name, axes, lambda labels: 50.0, excluded=excluded)
    if name == por.POINTMAZE:
        recorded(por.GUIDE, results)
    for claim in (claim for claim in por.CLAIMS if claim.suite == name):
        verdict = claim.judge(results)
        assert verdict.outcome != "not measured" and verdict.measured
    assert pictures.of(results).startswith(b"\x89PNG") and pictures.caption(results) == pictures_por.CAPTIONS[name]


def test_pictures_show_every_method_and_task():
    figure = pictures_por.pointmaze(pointmaze({"POR": 70.0}))
    course, points = figure.axes
    assert [line.get_label() for line in course.lines] == list(METHODS)
    assert course.lines[4].get_ydata()[-1] == pytest.approx(70) and course.lines[4].get_ydata()[3] == pytest.approx(7)
    assert [label.get_text() for label in points.get_xticklabels()][-1] == "POR,\nV-guided"
    assert [line.get_ydata()[0] for line in points.lines if line.get_marker() == "v"] == [pytest.approx(70)]
    figure = pictures_por.rooms(four_rooms({"POR": 80.0, por.KEPT: 70.0, "BC": 50.0}))
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles == [
        "A four rooms",
        "B river",
        "C key",
        *(f"{t}: raw return" for t in ("A four rooms", "B river", "C key")),
    ]
    assert [line.get_label() for line in figure.axes[0].lines] == ["POR", "BC"]
    assert [line.get_label() for line in figure.axes[2].lines] == ["POR", por.KEPT, "BC"]
    looks = [{line.get_label(): line.get_color() for line in axis.lines} for axis in figure.axes[:3]]
    assert looks[0] == {method: looks[1][method] for method in ("POR", "BC")}
    assert [bar.get_color().tolist() for bar in figure.axes[3].collections] == [
        bar.get_color().tolist() for bar in figure.axes[4].collections[::2]
    ]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["POR", por.KEPT, "BC"]


def test_the_page_from_recorded_files(tmp_path, monkeypatch):
    """Recorded, read back and judged; what is not recorded is not measured."""
    folder = tmp_path / "results"
    monkeypatch.setattr(por, "GUIDE", folder / "por_guide.json")
    results = four_rooms({"POR": 80.0, por.KEPT: 78.0, "BC": 50.0})
    path = tidy.write(results, folder / f"{results.name}.parquet", evaluations_only=True)
    assert verdicts(load(path)) == verdicts(results)
    tidy.write(pointmaze({"POR": 70.0}), folder / f"{por.POINTMAZE}.parquet", evaluations_only=True)
    monkeypatch.setattr(page, "RECORDED", folder)
    monkeypatch.setattr(page, "CLAIMS", por.CLAIMS)
    text = page.write(tmp_path).read_text()
    rooms = "| POR | experiment, four rooms | a new guide with A's execute policy solves new tasks more often"
    assert f"{rooms} than cloning | **held** |" in text
    assert "| POR does better than IQL on pieces of PointMaze's ways | **held** |" in text
    assert "V(g(s)) is above V(s') | **not measured** |" in text
    assert "metarl bench por_supplement --small" in text and "`metarl bench por_pointmaze`" in text
    assert (tmp_path / "claims_por_four_rooms.png").is_file() and (tmp_path / "claims_por_pointmaze.png").is_file()
