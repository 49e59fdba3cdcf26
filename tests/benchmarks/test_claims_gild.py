"""Claims about GILD: their rules judge known data as they should, and the page and its pictures show it."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from benchmarks import tidy
from benchmarks.claims import gild, page, pictures
from benchmarks.results import Cell, Evaluation, Results, Run, Series, load
from benchmarks.running import suite
from metarl.errors import UserError

SEEDS = 5
BEGINS, STEPS, EVERY = 1000, 20000, 1000
METHODS = ("RL", "RL+IL", "Meta-Critic", "GILD")
WOBBLE = (-1.0, 2.0, 0.0, 1.0, -2.0)  # by seed; no part in the mean
COURSE = tuple(range(EVERY, STEPS + 1, EVERY))


def _series(values):
    """A metric logged at every evaluation after step 0."""
    return Series(COURSE, tuple(float(v) for v in values))


def _run(seed, score, scalars, level, rising=True):
    """A run that has its score in the last ten evaluations, and half of it (or all of it) in the first ten."""
    first = 0.5 * score if rising else score
    evaluations = (Evaluation(0, 0.0, 0.0), *(Evaluation(s, score if s > STEPS / 2 else first, 1.0) for s in COURSE))
    card = {"returns": {"mean": level}} if level is not None else {}
    config = {"online": {"learn_from": BEGINS}, "steps": {"offline": 0, "online": STEPS}}
    environment = {"torch": "2", "commit": "abc"}
    return Run(
        Path(f"x/{seed}"), seed, STEPS, True, evaluations, scalars, {}, {"demo": card}, environment, config, STEPS
    )


def made(name, axes, scores, scalars=None, level=50.0, sd=1.0, rising=None):
    """Results of a suite with these axes; `scores`, `level` and `scalars` of a cell by its labels."""
    cells = []
    for combination in product(*axes.values()):
        labels = dict(zip(axes, combination, strict=True))
        row, column = " · ".join(combination[:-1]), combination[-1]
        order = np.random.default_rng(len(cells)).permutation(SEEDS)
        of_cell = [WOBBLE[i] for i in order]
        runs = tuple(
            _run(
                seed,
                scores(labels) + sd * of_cell[seed],
                scalars(labels, of_cell[seed]) if scalars else {},
                level(labels) if callable(level) else level,
                not rising or rising(labels),
            )
            for seed in range(SEEDS)
        )
        cells.append(Cell(row, column, row + column, tuple(range(SEEDS)), STEPS, runs, labels))
    rows, columns = (tuple(dict.fromkeys(getattr(cell, which) for cell in cells)) for which in ("row", "column"))
    return Results(name, "row", "column", rows, columns, tuple(cells), axes=axes)


def comparison(of, name=gild.COMPARISON, bases=("DDPG", "TD3", "SAC"), **options):
    axes = {"task": ("SparseNavigation",), "base": bases, "method": METHODS}
    return made(name, axes, lambda labels: of(labels["base"], labels["method"]), **options)


def verdicts(results):
    """By what it says, every claim about these results."""
    return {claim.says: claim.judge(results) for claim in gild.CLAIMS if claim.suite == results.name}


# -- returns ---------------------------------------------------------------------------------------------------


def test_a_run_is_scored_by_its_raw_return_although_it_knows_success_rates():
    run = _run(0, 80.0, {}, 50.0)
    assert run.measure == "success" and run.score == 1.0
    assert gild.final(run) == 80.0
    # Trapezoids by hand, in units of 1,000 steps: 20 up to the first evaluation, 9 of 40, 60 across the step, 9 of 80.
    assert gild.area(run) == pytest.approx((20 + 9 * 40 + 60 + 9 * 80) / 20)


@pytest.mark.parametrize(
    ("by_base", "outcome"),
    [
        ({"DDPG": 80, "TD3": 80, "SAC": 80}, "held"),
        ({"DDPG": 80, "TD3": 80, "SAC": 50.1}, "undecided"),
        ({"DDPG": 80, "TD3": 80, "SAC": 20}, "did not hold"),
    ],
)
def test_gild_must_beat_a_rival_on_every_base(by_base, outcome):
    results = comparison(lambda base, method: by_base[base] if method == "GILD" else 50)
    verdict = gild.ahead("method", "GILD", ("RL+IL",), results)
    assert verdict.outcome == outcome
    assert [row[0] for row in verdict.table[1:]] == ["DDPG", "TD3", "SAC"]
    assert ("SAC (RL+IL)" in verdict.measured) == (outcome == "did not hold")


def test_the_table_of_a_comparison_by_hand():
    """Of 80 with seeds apart by -1, 2, 0, 1, -2 the mean is 80; the IQM that of the middle three, too."""
    results = comparison(lambda base, method: {"GILD": 80, "RL": 50}.get(method, 1000))
    (row,) = gild.ahead("method", "GILD", ("RL",), results, only={"base": "TD3"}).table[1:]
    assert row[:2] == ["TD3", "80.0"] and row[2].startswith("80.0 (") and row[3:5] == ["RL", "50.0"]
    assert row[6].startswith("+30.0 (") and float(row[7]) < 0.001


def test_first_experiment_1_reads_ddpg_alone():
    results = comparison(lambda base, method: 80 if (base, method) == ("DDPG", "GILD") else 50)
    found = verdicts(results)
    assert found["on sparse navigation DDPG+GILD beats DDPG and DDPG+IL"].outcome == "held"
    assert found["GILD beats RL on DDPG, TD3 and SAC"].outcome == "undecided"


@pytest.mark.parametrize(("score", "outcome"), [(60, "held"), (50.1, "undecided"), (40, "did not hold")])
def test_getting_past_the_demonstrator(score, outcome):
    results = comparison(lambda base, method: score if method == "GILD" else 50)
    verdict = gild.past_demonstrator(results)
    assert verdict.outcome == outcome and len(verdict.table) == 1 + 3 * 4
    assert [row[2] for row in verdict.table[1:5]] == list(METHODS)
    assert verdict.table[4][1] == "50.0" and verdict.table[4][5].startswith(("+", "−"))


@pytest.mark.parametrize(("score", "outcome"), [(50, "held"), (54.9, "undecided"), (70, "did not hold")])
def test_staying_near_the_demonstrator(score, outcome):
    """Seeds apart by -2 to 2: the interval is the mean and 1.96 to both sides, the margin 5."""
    results = comparison(lambda base, method: score if method == "RL+IL" else 500)
    verdict = gild.near_demonstrator(results)
    assert verdict.outcome == outcome
    assert verdict.table[1][3] == "5.0"


def test_demonstrators_of_their_own_by_setting():
    levels = {"expert": 110.0, "medium": 48.0, "noisy": 23.0, "adversarial": 0.0}
    axes = {"task": ("SparseNavigation",), "demonstrations": tuple(levels), "base": ("TD3",), "method": METHODS[1::2]}
    results = made(
        gild.DEMONSTRATIONS,
        axes,
        lambda labels: 60 if labels["method"] == "GILD" else levels[labels["demonstrations"]],
        level=lambda labels: levels[labels["demonstrations"]],
    )
    assert list(gild.settings(results, "method")) == list(levels)
    found = [gild.demonstrators(gild.cell_of(results, cell.labels)) for cell in results.cells[::2]]
    assert [by_seed[3] for by_seed in found] == list(levels.values())
    by_claim = verdicts(results)
    assert by_claim["where demonstrations never meet a reward, GILD beats RL+IL"].outcome == "held"
    on_each = by_claim["GILD beats RL+IL with expert, medium, noisy and adversarial demonstrations"]
    assert on_each.outcome == "did not hold" and "expert (RL+IL)" in on_each.measured


def test_every_seed_is_compared_with_the_demonstrations_that_it_drew():
    """Demonstrations that rise and fall with the scores leave no spread in the difference: 0.1 is then clear."""
    results = comparison(lambda base, method: 50.1, sd=10.0)
    assert gild.past_demonstrator(results).outcome == "undecided"
    cells = []
    for cell in results.cells:
        drawn = [{"demo": {"returns": {"mean": gild.final(run) - 0.1 - 0.001 * run.seed}}} for run in cell.runs]
        cells.append(
            replace(cell, runs=tuple(replace(run, data=data) for run, data in zip(cell.runs, drawn, strict=True)))
        )
    paired = replace(results, cells=tuple(cells))
    assert gild.past_demonstrator(paired).outcome == "held"
    assert gild.near_demonstrator(results).outcome == "undecided"
    assert gild.near_demonstrator(paired).outcome == "held"


def test_a_demonstrator_that_nobody_knows_is_an_error():
    results = comparison(lambda base, method: 50, level=None)
    with pytest.raises(UserError, match="no mean return is known"):
        gild.past_demonstrator(results)


def test_reaching_the_reward_sooner_is_told_by_the_area():
    """All end at 50; GILD is there from the first evaluation on."""
    options = {"rising": lambda labels: labels["method"] != "GILD"}
    found = verdicts(comparison(lambda base, method: 50, **options))
    assert found["GILD reaches the reward sooner than RL"].outcome == "held"
    assert found["GILD beats RL on DDPG, TD3 and SAC"].outcome == "undecided"


def test_an_unfinished_cell_is_not_judged():
    results = comparison(lambda base, method: 50)
    short = replace(results.cells[0], runs=results.cells[0].runs[:3])
    with pytest.raises(UserError, match="'SparseNavigation, DDPG, RL' is not there with all its seeds"):
        gild.past_demonstrator(replace(results, cells=(short, *results.cells[1:])))


@pytest.mark.parametrize(("score", "outcome"), [(80, "held"), (50, "undecided"), (20, "did not hold")])
def test_tanh_against_the_plain_meta_loss(score, outcome):
    axes = {"task": ("SparseNavigation",), "base": ("SAC",), "meta-loss": ("tanh", "plain")}
    results = made(gild.TANH, axes, lambda labels: score if labels["meta-loss"] == "tanh" else 50)
    (verdict,) = verdicts(results).values()
    assert verdict.outcome == outcome and verdict.measured.startswith("tanh minus plain: ")


@pytest.mark.parametrize(
    ("short", "longest", "outcome"),
    [(110, 100, "held"), (98, 100, "held"), (91, 100, "undecided"), (50, 100, "did not hold"), (0, 0, "undecided")],
)
def test_a_short_warm_start(short, longest, outcome):
    axes = {"task": ("SparseNavigation",), "base": ("SAC",), "warm start": ("0.5 %", "1 %", "2 %", "5 %")}
    results = made(gild.WARM, axes, lambda labels: {"1 %": short, "5 %": longest}.get(labels["warm start"], 70))
    (verdict,) = verdicts(results).values()
    assert verdict.outcome == outcome and len(verdict.table) == 1 + 4
    assert verdict.table[-1][1] == "5 %" and verdict.table[-1][4:] == ["", ""]


# -- the loss network ------------------------------------------------------------------------------------------


def network(after, end, hypergradient=1e-6, mean=0.693):
    """G's spread is 0.02 before learning begins, `after` at the first evaluation after 1 % of the steps, then `end`."""

    def scalars(labels, wobble):
        decayed = labels["weight decay"] == "1e-4" and labels["activation"] == "ReLU"
        spreads = [0.02, after, *[end] * (len(COURSE) - 2)] if decayed else [0.02] * len(COURSE)
        values = {
            gild.SPREAD: [s * (1 + 0.01 * wobble) for s in spreads],
            gild.OUTPUT: [mean if decayed else 0.8] * len(COURSE),
            gild.HYPERGRADIENT: [hypergradient] * len(COURSE),
        }
        return {name: _series(v) for name, v in values.items()}

    axes = {
        "task": ("SparseNavigation",),
        "base": ("SAC",),
        "activation": ("ReLU", "SiLU"),
        "weight decay": ("1e-4", "none"),
    }
    return made(gild.NETWORK, axes, lambda labels: 50 + 30 * (labels["weight decay"] == "none"), scalars)


@pytest.mark.parametrize(
    ("after", "end", "outcome"),
    [(0.1, 0.1, "held"), (0.1, 0.2, "did not hold"), (0.005, 2e-5, "did not hold"), (1e-5, 1e-5, "did not hold")],
)
def test_convergence_within_one_percent(after, end, outcome):
    verdict = gild.converges(network(after, end, mean=0.693 if end < 1e-3 else 0.9))
    assert verdict.outcome == outcome
    assert verdict.table[1] == ["ReLU", "1e-4", "0.02", f"{after:.2g}", f"{end:.2g}", verdict.table[1][5]]
    # 1 % of the gradient steps is taken at 1,190 environment steps.
    assert "step 2,000." in verdict.measured
    assert ("constant softplus(0) = 0.693" in verdict.measured) == (end < 1e-3)
    assert "(gild_decay.png)" in verdict.measured


def test_the_decay_is_blamed_only_where_it_is_the_larger():
    small, large = (gild.converges(network(1e-5, 0.0, size)).measured for size in (1e-6, 0.5))
    assert "because the weight decay" in small and "at most 1e-06 at any evaluation" in small
    assert "because" not in large and "at most 0.5 at any evaluation" in large


def test_some_seeds_that_settle_leave_convergence_undecided():
    stages = np.array([[0.02, 0.1, 0.1], [0.02, 0.1, 0.3]])
    assert gild._settled(stages) == "undecided"
    assert gild._settled(stages[:1]) == "held" and gild._settled(stages[1:]) == "did not hold"


def test_gild_without_decay():
    found = verdicts(network(0.005, 2e-5))
    assert found["GILD is better without weight decay of its loss network"].outcome == "held"


# -- how far the policy goes -----------------------------------------------------------------------------------


def divergence(rises):
    """The cloning loss is 9 until learning begins, 2 at first and 2 plus the method's rise in the last quarter."""

    def scalars(labels, wobble):
        learning = np.linspace(0, 1, len(COURSE) - 1)
        values = 2 + rises[labels["method"]] * np.clip(2 * (learning - 0.25), 0, 1) + 0.01 * wobble * learning
        return {gild.IMITATION: _series([9.0, *values])}

    axes = {"task": ("SparseNavigation",), "base": ("SAC",), "method": ("RL", "RL+IL", "GILD")}
    return made(gild.DIVERGENCE, axes, lambda labels: 50, scalars)


@pytest.mark.parametrize(
    ("gilds", "cloned", "away", "farther"),
    [
        (3.0, 1.0, "held", "held"),
        (3.0, 5.0, "held", "did not hold"),
        (0.0, 0.0, "undecided", "undecided"),
        (-1.0, -2.0, "did not hold", "held"),
    ],
)
def test_moving_away_from_the_demonstrations(gilds, cloned, away, farther):
    found = verdicts(divergence({"RL": 9.0, "RL+IL": cloned, "GILD": gilds}))
    assert [verdict.outcome for verdict in found.values()] == [away, farther]
    table = next(iter(found.values())).table
    assert table[3][1:3] == ["GILD", "2.00"] and float(table[3][3]) == pytest.approx(2 + gilds, abs=0.02)


def test_early_and_late_by_hand():
    """Of nineteen evaluations after learning begins the first and the last four: means of 1 to 4 and of 16 to 19."""
    results = divergence({"RL": 9.0, "RL+IL": 0.0, "GILD": 0.0})
    cell = results.cells[0]
    runs = tuple(replace(run, scalars={gild.IMITATION: _series(range(20))}) for run in cell.runs)
    early, late = gild._early_and_late(replace(results, cells=(replace(cell, runs=runs),)), cell.labels)
    assert early == dict.fromkeys(range(SEEDS), 2.5) and late == dict.fromkeys(range(SEEDS), 17.5)


def test_a_metric_that_was_not_logged_is_an_error():
    results = divergence({"RL": 9.0, "RL+IL": 0.0, "GILD": 0.0})
    runs = tuple(replace(run, scalars={}) for run in results.cells[-1].runs)
    with pytest.raises(UserError, match="no metric 'watch/demo/imitation'"):
        gild.moves_farther(replace(results, cells=(*results.cells[:-1], replace(results.cells[-1], runs=runs))))


# -- the page --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted({claim.suite for claim in gild.CLAIMS}))
def test_every_claim_names_a_shipped_suite_whose_axes_it_can_judge(name):
    loaded = suite.load(suite.find(name.removesuffix("-small")), small=name.endswith("-small"))
    axes = {axis: tuple(labels) for axis, labels in loaded.axes.items()}

    def scalars(labels, wobble):
        names = (gild.SPREAD, gild.OUTPUT, gild.HYPERGRADIENT, gild.IMITATION)
        return {metric: _series(0.5 + 0.01 * wobble + 0 * np.arange(len(COURSE))) for metric in names}

    results = made(name, axes, lambda labels: 50, scalars)
    found = verdicts(results)
    assert found and all(verdict.table for verdict in found.values())
    drawn = pictures.of(results)
    if name in (gild.COMPARISON, gild.ROBOT, gild.DEMONSTRATIONS, gild.DIVERGENCE, gild.NETWORK):
        assert drawn is not None and drawn.startswith(b"\x89PNG")
        assert pictures.caption(results) != pictures.CAPTION
    else:
        assert drawn is None


def test_pictures_show_every_setting_and_the_demonstrator():
    figure = pictures.returns(comparison(lambda base, method: 60))
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["DDPG", "TD3", "SAC"]
    for axis in figure.axes:
        lines = {line.get_label(): line for line in axis.lines}
        assert set(lines) == {*METHODS, "demonstrator"}
        assert set(lines["demonstrator"].get_ydata()) == {50.0}
        assert lines["GILD"].get_ydata()[-1] == pytest.approx(60)
    figure = pictures.spread_of_network(network(0.01, 0.0))
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["ReLU", "SiLU"]
    assert len([line for line in figure.axes[0].lines if len(line.get_xdata()) == len(COURSE)]) == 2 * SEEDS


def test_bands_do_not_set_the_height_of_a_picture():
    """One of five seeds at 80 (on SAC), the others at 0: the mean's interval reaches below -28. All panels have room
    for the demonstrator's 100."""
    cells = []
    for cell in comparison(lambda base, method: 80 if base == "SAC" else -20, sd=0.0, level=100.0).cells:
        failed = tuple(
            replace(run, evaluations=tuple(replace(e, mean=0.0) for e in run.evaluations)) for run in cell.runs[1:]
        )
        cells.append(replace(cell, runs=(cell.runs[0], *failed)))
    results = replace(comparison(lambda base, method: 0), cells=tuple(cells))
    figure = pictures.returns(results)
    assert figure.axes[0].get_ylim() == pytest.approx((-26, 106))
    assert len({axis.get_ylim() for axis in figure.axes}) == 1
    assert len(figure.axes[0].collections) == len(METHODS)
    few = tuple(replace(cell, runs=cell.runs[:3], seeds=(0, 1, 2)) for cell in cells)
    axis = pictures.returns(replace(results, cells=few)).axes[0]
    assert not axis.collections and len(axis.lines) == len(METHODS) * (1 + 3) + 1


def test_the_page_from_recorded_files(tmp_path, monkeypatch):
    """Recorded, read back and judged; what is not recorded is not measured."""
    recorded = tmp_path / "results"
    results = comparison(lambda base, method: {"GILD": 80}.get(method, 50))
    path = tidy.write(results, recorded / f"{results.name}.parquet", evaluations_only=True)
    assert verdicts(load(path)) == verdicts(results)
    monkeypatch.setattr(page, "RECORDED", recorded)
    monkeypatch.setattr(page, "CLAIMS", gild.CLAIMS)
    text = page.write(tmp_path).read_text()
    assert "| GILD | key result 1 | GILD beats RL on DDPG, TD3 and SAC | **held** |" in text
    assert "| GILD | key result 3 | GILD converges within 1 % of the steps | **not measured** |" in text
    assert "base: DDPG, TD3, SAC; method: RL, RL+IL, Meta-Critic, GILD, 5 seeds each, 20,000 environment steps" in text
    assert "`metarl bench gild_halfcheetah`" in text and "metarl bench gild_tanh --small" in text
    assert pictures.CURVES in text and (tmp_path / "claims_gild_comparison.png").is_file()
