"""Claims about PEX: their rules judge known data as they should, and the page and its pictures show it."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from benchmarks import tidy
from benchmarks.claims import page, pex, pictures, pictures_pex
from benchmarks.results import Cell, Evaluation, Results, Run, load
from benchmarks.running import suite
from metarl.data.scores import reference
from metarl.errors import UserError

SEEDS = 5
WOBBLE = (-1.0, 2.0, 0.0, 1.0, -2.0)  # by seed; no part in the mean
DATA, ONLINE, EVERY, BEGINS = 5000, 10000, 1000, 1000
TASKS = ("maze", "pendulum")
STRATEGIES = ("PEX", "direct", "buffer", "scratch", "JSRL", "AWAC")
ANEW = ("buffer", "scratch", "values given", "fresh")  # online from the first step
PENDULUM = reference("Pendulum-v1")


def curve(before=20.0, early=20.0, late=60.0, end=None):
    """After the switch's evaluation ten online: `early` in the first four, `late` then, `end` in the last three."""
    return [before, *[early] * 4, *[late] * 3, *[late if end is None else end] * 3]


def _run(seed, values, env=None, data=DATA, wobble=0.0):
    """A run with these evaluations from the switch on, worth 5 on data before it."""
    values = [*[5.0] * (data // EVERY), *(v + wobble for v in values)]
    steps = range(0, EVERY * len(values), EVERY)
    if env is None:
        evaluations = tuple(Evaluation(s, v / 100, v / 100) for s, v in zip(steps, values, strict=True))
    else:
        low, high = PENDULUM.low, PENDULUM.high
        evaluations = tuple(Evaluation(s, low + (high - low) * v / 100) for s, v in zip(steps, values, strict=True))
    config = {"steps": {"offline": data, "online": ONLINE}, "online": {"learn_from": BEGINS}}
    environment = {"torch": "2", "commit": "abc"}
    return Run(Path(f"x/{seed}"), seed, steps[-1], True, evaluations, {}, {}, {}, environment, config, steps[-1], env)


def made(name, axes, curves, sd=1.0, seeds=SEEDS):
    """Results of a suite with these axes; the online curve of a cell by its labels."""
    cells = []
    for combination in product(*axes.values()):
        labels = dict(zip(axes, combination, strict=True))
        # Another order in every one of ten cells, so that differences vary.
        order = np.roll(np.arange(SEEDS), len(cells))[:: 1 if len(cells) % 10 < SEEDS else -1]
        data = 0 if set(ANEW) & set(combination) else DATA
        env = "Pendulum-v1" if labels["dataset"] == "pendulum" else None
        own = curves(labels)
        runs = tuple(_run(s, own, env, data, sd * WOBBLE[order[s]]) for s in range(seeds))
        row, column = " · ".join(combination[1:]), combination[0]
        cells.append(Cell(row, column, f"{row}-{column}", tuple(range(seeds)), runs[0].steps, runs, labels))
    rows, columns = (tuple(dict.fromkeys(getattr(cell, which) for cell in cells)) for which in ("row", "column"))
    return Results(name, "row", "column", rows, columns, tuple(cells), axes=axes)


def strategies(curves, **options):
    """Curves by strategy, on both tasks; `curve()` where none is given."""
    axes = {"dataset": TASKS, "strategy": STRATEGIES}
    return made(pex.STRATEGIES, axes, lambda labels: curves.get(labels["strategy"], curve()), **options)


def verdicts(results):
    """By what it says, every claim about these results."""
    return {claim.says: claim.judge(results) for claim in pex.CLAIMS if claim.suite == results.name}


# -- what runs are worth ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("env", "data"), [(None, DATA), ("Pendulum-v1", DATA), (None, 0)])
def test_what_a_run_is_worth_by_hand(env, data):
    """20 at the switch, 30 four times, 60 three times, 90 three times, from the switch on alone."""
    run = _run(0, curve(20.0, 30.0, 60.0, 90.0), env, data)
    assert pex.switch(run) == data and pex.learns_from(run) == data + BEGINS
    assert [step for step, _ in pex.online(run)] == list(range(0, ONLINE + 1, EVERY))
    # Trapezoids, in units of 1,000 steps: 25 and three of 30, 45 and two of 60, 75 and two of 90.
    assert pex.area(run) == pytest.approx((25 + 90 + 45 + 120 + 75 + 180) / 10)
    assert pex.end(run) == pytest.approx(90)
    assert pex.at_switch(run) == pytest.approx(20) and pex.after_switch(run) == pytest.approx(30)


def test_the_first_evaluations_after_learning_begins():
    """Learning begins after 1,000 online steps: evaluated at 1,000 nothing has been learned yet."""
    run = _run(0, [20.0, 1.0, 30.0, 40.0, *[60.0] * 7])
    assert pex.after_switch(run) == pytest.approx(35)


def test_returns_need_references():
    with pytest.raises(UserError, match="no reference scores are known for 'Nowhere-v0'"):
        pex.area(replace(_run(0, curve(), "Pendulum-v1"), env="Nowhere-v0"))


# -- strategies ------------------------------------------------------------------------------------------------


def test_the_area_and_the_end_are_told_apart():
    """PEX is sooner than direct, which ends above it; the others are as it is."""
    found = verdicts(strategies({"PEX": curve(late=60.0), "direct": curve(early=10.0, late=50.0, end=65.0)}, sd=0.5))
    assert found["PEX is better than fine-tuning (direct) while it learns online"].outcome == "held"
    assert found["PEX is better than fine-tuning (direct) in the end"].outcome == "did not hold"
    assert found["PEX is better than JSRL in the end"].outcome == "undecided"


def test_pex_must_be_ahead_on_every_task():
    results = strategies({"PEX": curve(late=90.0)})
    assert all(verdict.outcome == "held" for says, verdict in verdicts(results).items() if "better" in says)
    cells = []
    for cell in results.cells:
        if cell.labels == {"dataset": "pendulum", "strategy": "PEX"}:
            cell = replace(cell, runs=tuple(_run(s, curve(late=30.0), "Pendulum-v1") for s in range(SEEDS)))
        cells.append(cell)
    verdict = verdicts(replace(results, cells=tuple(cells)))["PEX is better than AWAC in the end"]
    assert verdict.outcome == "did not hold" and "pendulum (AWAC)" in verdict.measured
    assert [row[0] for row in verdict.table[1:]] == list(TASKS)


@pytest.mark.parametrize(("early", "outcome"), [(30.0, "held"), (19.9, "held"), (10.0, "did not hold")])
def test_a_drop_at_the_switch(early, outcome):
    """The seeds differ before learning begins by what they do after it, and by -0.5 to 0.5 besides."""
    results = strategies({"PEX": curve(20.0, early), "direct": curve(20.0, 5.0)}, sd=0.0)
    cells = []
    for cell in results.cells:
        env = cell.runs[0].env
        runs = []
        for seed in range(SEEDS):
            values = [100 * e.success if env is None else _percent(e.mean) for e in cell.runs[seed].evaluations]
            data = pex.switch(cell.runs[seed])
            own = values[data // EVERY :]
            runs.append(_run(seed, [own[0], *(v + 0.25 * WOBBLE[seed] for v in own[1:])], env, data))
        cells.append(replace(cell, runs=tuple(runs)))
    verdict = pex.no_drop(replace(results, cells=tuple(cells)))
    assert verdict.outcome == outcome
    assert [row[:3] for row in verdict.table[1:3]] == [["maze", "PEX", "20.0"], ["maze", "direct", "20.0"]]
    assert verdict.table[1][3] == f"{early:.1f}"
    assert [row[6] for row in verdict.table[1:] if row[1] == "direct"] == ["did not hold"] * 2


def _percent(value):
    return 100 * (value - PENDULUM.low) / (PENDULUM.high - PENDULUM.low)


def test_standard_errors_by_hand():
    """Differences -1, -2, -3: mean -2, sd 1, standard error 1 / sqrt(3)."""
    found = pex._errors({0: 1.0, 1: 1.0, 2: 1.0}, {2: 4.0, 1: 3.0, 0: 2.0})
    assert found == pytest.approx(-2 * math.sqrt(3))
    assert pex._errors({0: 1.0, 1: 1.0}, {0: 2.0, 1: 2.0}) == -math.inf
    assert pex._errors({0: 1.0, 1: 1.0}, {0: 1.0, 1: 1.0}) == 0


def test_seeds_that_all_fall_alike_are_a_drop():
    """Nothing varies: not even two standard errors can explain a fall."""
    assert pex.no_drop(strategies({"PEX": curve(20.0, 19.0)}, sd=0.0)).outcome == "did not hold"
    assert pex.no_drop(strategies({"PEX": curve(20.0, 20.0)}, sd=0.0)).outcome == "held"


# -- options ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("late", "outcomes"),
    [
        ({"2": 50.0, "4": 70.0, "8": 30.0}, ["held", "did not hold"]),
        ({"2": 50.0, "4": 50.0, "8": 70.0}, ["undecided", "held"]),
    ],
)
def test_larger_sets(late, outcomes):
    axes = {"dataset": TASKS, "policies": tuple(late)}
    results = made(pex.SETS, axes, lambda labels: curve(late=late[labels["policies"]]))
    assert [verdict.outcome for verdict in verdicts(results).values()] == outcomes


@pytest.mark.parametrize(
    ("late", "best", "adaptive"),
    [
        ({"10": 70.0}, "held", "did not hold"),
        ({"10": 70.0, "adaptive": 90.0}, "did not hold", "held"),
        ({}, "undecided", "undecided"),
    ],
)
def test_the_inverse_temperature(late, best, adaptive):
    axes = {"dataset": TASKS, "inverse temperature": ("1", "3", "10", "20", "adaptive")}
    results = made(
        pex.TEMPERATURE, axes, lambda labels: curve(late=late.get(labels["inverse temperature"], 50.0)), seeds=3
    )
    first, second = verdicts(results).values()
    assert [first.outcome, second.outcome] == [best, adaptive]
    assert first.table[0][:4] == ["inverse temperature", *TASKS, "average"]
    assert [row[0] for row in first.table[1:]] == list(axes["inverse temperature"]) and first.table[3][5:] == ["", ""]


def test_a_pair_of_options_by_hand():
    """Of 20 at the switch, four times 20 and six times 50: (4 * 20 + 35 + 5 * 50) / 10 = 36.5."""
    axes = {"dataset": ("pendulum",), "expectile": ("0.5", "0.9"), "inverse temperature": ("1", "10")}
    best = {"expectile": "0.9", "inverse temperature": "10"}
    results = made(
        pex.SENSITIVITY, axes, lambda labels: curve(late=80.0 if best.items() <= labels.items() else 50.0), sd=0.1
    )
    (verdict,) = verdicts(results).values()
    assert verdict.outcome == "held" and "3 of 3 others" in verdict.measured
    assert [row[0] for row in verdict.table] == [
        "expectile · inverse temperature",
        "0.5 · 1",
        "0.5 · 10",
        "0.9 · 1",
        "0.9 · 10",
    ]
    assert verdict.table[1][1] == verdict.table[1][2] == "36.5"


def test_the_critic():
    late = {"carried on": 80.0, "values given": 79.9, "fresh": 50.0}
    axes = {"dataset": TASKS, "critic": ("offline alone", *late)}
    results = made(pex.CRITIC, axes, lambda labels: curve(late=late.get(labels["critic"], 0.0)))
    assert [verdict.outcome for verdict in verdicts(results).values()] == ["held", "held", "undecided"]


def test_an_unfinished_cell_is_not_judged():
    results = strategies({})
    short = replace(results.cells[1], runs=results.cells[1].runs[:3])
    results = replace(results, cells=(results.cells[0], short, *results.cells[2:]))
    with pytest.raises(UserError, match="the cell 'maze, direct' is not there with all its seeds"):
        pex.no_drop(results)


# -- the page --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted({claim.suite for claim in pex.CLAIMS}))
def test_every_claim_names_a_shipped_suite_whose_axes_it_can_judge(name):
    loaded = suite.load(suite.find(name.removesuffix("-small")), small=True)
    axes = {axis: tuple(labels) for axis, labels in loaded.axes.items()}
    assert not loaded.excluded
    results = made(name, axes, lambda labels: curve())
    found = verdicts(results)
    assert found and all(verdict.table for verdict in found.values())
    assert pictures.of(results).startswith(b"\x89PNG") and pictures.caption(results) == pictures_pex.CAPTIONS[name]


def test_runs_of_the_suites_tell_their_switch():
    """What `switch` and `learns_from` read is what the suites' configurations say."""
    cells = {
        cell.labels["strategy"]: cell.experiment.resolved
        for cell in suite.load(suite.find("pex_strategies"), small=True).cells
    }
    told = {}
    for strategy, config in cells.items():
        run = replace(_run(0, curve()), config=config)
        told[strategy] = (pex.switch(run), pex.learns_from(run))
    assert told == {name: (0, BEGINS) if name in ANEW else (DATA, DATA + BEGINS) for name in STRATEGIES}


def test_pictures_show_every_strategy_from_the_switch_on():
    figure = pictures_pex.strategies(strategies({"PEX": curve(late=90.0)}))
    assert [axis.get_title(loc="left") for axis in figure.axes] == list(TASKS)
    for axis, unit in zip(figure.axes, ("success, %", "normalised return"), strict=True):
        lines = {line.get_label(): line for line in axis.lines}
        assert set(STRATEGIES) < set(lines) and axis.get_ylabel() == unit
        assert lines["PEX"].get_xdata()[0] == -DATA and lines["scratch"].get_xdata()[0] == 0
        assert {line.get_xdata()[-1] for name, line in lines.items() if name in STRATEGIES} == {ONLINE}
        assert lines["PEX"].get_ydata()[-1] == pytest.approx(90)
        assert len(axis.collections) == len(STRATEGIES)
    axes = {"dataset": TASKS, "critic": (pex.OFFLINE, "carried on", "fresh")}
    figure = pictures_pex.options(made(pex.CRITIC, axes, lambda labels: curve()))
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["carried\non", "fresh"]


def test_the_page_from_recorded_files(tmp_path, monkeypatch):
    """Recorded, read back and judged; what is not recorded is not measured."""
    folder = tmp_path / "results"
    results = strategies({"PEX": curve(late=90.0)})
    path = tidy.write(results, folder / f"{results.name}.parquet", evaluations_only=True)
    assert verdicts(load(path)) == verdicts(results)
    monkeypatch.setattr(page, "RECORDED", folder)
    monkeypatch.setattr(page, "CLAIMS", pex.CLAIMS)
    text = page.write(tmp_path).read_text()
    assert "| PEX | key result 1 | PEX is better than fine-tuning (direct) while it learns online | **held** |" in text
    assert "| PEX | open question 1 | four policies are better than two | **not measured** |" in text
    assert "metarl bench pex_critic --small" in text and (tmp_path / "claims_pex_strategies.png").is_file()
