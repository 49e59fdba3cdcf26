"""Results: every number equals one computed by hand; what the folders hold is read back."""

import csv
import json
import math
import shutil
import statistics
from dataclasses import asdict

import numpy as np
import pytest

from benchmarks import results
from benchmarks.report import tables
from benchmarks.results import Cell, Evaluation, Excluded, Run, Spread
from metarl.data.scores import reference
from metarl.errors import UserError
from metarl.training.cost import Cost


def run_of(means, rates=None, seed=0, env=None, finished=True):
    rates = rates or [None] * len(means)
    evaluations = tuple(Evaluation(10 * i, *pair) for i, pair in enumerate(zip(means, rates, strict=True)))
    return Run(None, seed, 100, finished, evaluations, {}, {}, {}, {}, {}, 100, env)


def cell_of(*runs):
    return Cell("row", "column", "experiment", tuple(run.seed for run in runs), 100, runs)


def test_a_score_averages_the_last_ten_evaluations_and_never_the_first():
    assert run_of([100.0, 1.0, 2.0]).score == 1.5
    assert run_of([100.0, *range(1, 21)]).score == statistics.mean(range(11, 21))
    assert run_of([100.0, *range(1, 21)]).last_evaluations == tuple(range(11, 21))
    assert run_of([100.0]).score is None and run_of([100.0]).best is None
    assert run_of([100.0, 1.0, 7.0, 2.0]).best == 7.0


def test_success_rates_are_scored_where_every_evaluation_has_one():
    run = run_of([0.0, 5.0, 7.0], [0.0, 0.25, 0.75], env="Pendulum-v1")
    assert run.measure == "success" and run.score == 0.5 and run.best == 0.75
    assert run.normalized == 50.0 and run.reference is None
    partly = run_of([0.0, 5.0, 7.0], [None, 0.25, 0.75])
    assert partly.measure == "return" and partly.score == 6.0 and partly.normalized is None


def test_returns_are_normalised_by_the_references_of_the_environment():
    low, high = (getattr(reference("Hopper-v5"), end) for end in ("low", "high"))
    run = run_of([0.0, low, (low + high) / 2], env="Hopper-v5")
    assert run.measure == "return" and math.isclose(run.normalized, 25.0) and run.reference == reference("Hopper-v5")
    assert run_of([0.0, 1.0], env="Nowhere-v0").normalized is None
    assert run_of([0.0], env="Hopper-v5").normalized is None
    cell = cell_of(run, run_of([0.0, high], seed=1, env="Hopper-v5"))
    assert np.allclose(cell.normalized, [25.0, 100.0]) and cell.reference == run.reference


def test_a_cell_counts_finished_runs_that_were_evaluated():
    runs = (
        run_of([9.0, 1.0, 2.0, 3.0], seed=3),
        run_of([9.0, 5.0], seed=1),
        run_of([9.0], seed=2),
        run_of([9.0, 8.0], seed=0, finished=False),
    )
    cell = cell_of(*runs)
    assert [run.seed for run in cell.scored] == [3, 1]
    assert cell.scores.tolist() == [2.0, 5.0] and cell.last == Spread.of([2.0, 5.0]) and cell.best.mean == 4.0
    assert cell.last_evaluations.tolist() == [[3.0], [5.0]] and cell.normalized is None
    empty = cell_of()
    assert empty.scores.shape == (0,) and empty.last_evaluations.shape == (0, 0)
    assert empty.last is empty.best is empty.normalized is empty.reference is None and empty.measure == "return"


def test_a_cell_scores_returns_where_some_runs_know_no_success():
    cell = cell_of(run_of([0.0, 4.0], [0.0, 1.0]), run_of([0.0, 6.0], seed=1))
    assert cell.measure == "return" and cell.scores.tolist() == [4.0, 6.0] and cell.normalized is None
    assert cell.last_evaluations.tolist() == [[4.0], [6.0]] and cell.best.mean == 5.0


def test_a_spread_is_over_seeds():
    assert Spread.of([]) is None
    assert Spread.of([3.0]) == Spread(3.0, None, 1)
    spread = Spread.of([1.0, 2.0, 4.0])
    assert spread.n == 3 and math.isclose(spread.sd, statistics.stdev([1, 2, 4]))


def test_numbers_equal_a_computation_by_hand(bench):
    folder, _ = bench
    loaded = results.load(folder / "runs" / "small")
    rows = {row["method"]: row for row in csv.DictReader(tables.csv_text(loaded).splitlines())}
    for cell in loaded.cells:
        scores, best = [], []
        for seed in (0, 1):
            file = folder / "runs" / "small" / cell.experiment / str(seed) / "result.json"
            if not file.is_file():
                continue
            means = [sum(e["returns"]) / len(e["returns"]) for e in json.loads(file.read_text())["evaluations"]]
            scores.append(statistics.mean(means[1:][-10:]))
            best.append(max(means[1:]))
        row = rows[cell.row]
        assert int(row["n"]) == len(scores) == (0 if cell.row == "broken" else 2)
        if not scores:
            assert row["mean"] == "" and cell.last is None
            continue
        assert math.isclose(float(row["mean"]), statistics.mean(scores), rel_tol=1e-12)
        assert math.isclose(float(row["sd"]), statistics.stdev(scores), rel_tol=1e-9)
        assert math.isclose(float(row["best_mean"]), statistics.mean(best), rel_tol=1e-12)
        assert row["scores"] == " ".join(repr(score) for score in cell.scores.tolist())
        assert [run.score for run in cell.runs] == cell.scores.tolist()


def test_an_unfinished_run_is_read_from_metrics_and_not_counted(bench, tmp_path):
    source = bench[0] / "runs" / "small"
    shutil.copytree(source, tmp_path / "small")
    cell = results.load(source).cells[0]
    folder = tmp_path / "small" / cell.experiment / "1"
    (folder / "result.json").unlink()
    with (folder / "metrics.csv").open("a") as file:
        file.write("25,evaluation/ret")  # as a run that is being written
    loaded = results.load(tmp_path / "small")
    unfinished = loaded.cells[0].runs[1]
    assert not unfinished.finished and loaded.cells[0].last.n == 1 and loaded.cells[0].last.sd is None
    assert [e.step for e in unfinished.evaluations] == [e.step for e in cell.runs[1].evaluations]
    for ours, theirs in zip(unfinished.evaluations, cell.runs[1].evaluations, strict=True):
        assert math.isclose(ours.mean, theirs.mean)
    assert any("1 of 2 runs unfinished" in note for note in loaded.notes)


def test_an_unreadable_run_becomes_a_note(bench, tmp_path):
    source = bench[0] / "runs" / "small"
    shutil.copytree(source, tmp_path / "small")
    experiment = results.load(source).cells[0].experiment
    (tmp_path / "small" / experiment / "0" / "result.json").write_text('{"steps": ')
    (tmp_path / "small" / experiment / "1" / "config.yaml").write_text("[not, a, run]")
    loaded = results.load(tmp_path / "small")
    assert loaded.cells[0].runs == () and loaded.cells[1].last.n == 2
    assert sum("result.json" in note or "config.yaml" in note for note in loaded.notes) == 2


def test_a_folder_of_runs_needs_no_index(bench, tmp_path):
    source = bench[0] / "runs" / "small"
    ours = results.load(source)
    for cell in ours.cells[:2]:
        shutil.copytree(source / cell.experiment, tmp_path / cell.experiment)
    loaded = results.load(tmp_path)
    assert loaded.rows == ("bc", "td3_bc + gorl") and loaded.columns == ("pendulum/medium",)
    assert [cell.last for cell in loaded.cells] == [cell.last for cell in ours.cells[:2]]
    one = results.load(source / ours.cells[0].experiment)
    assert one.rows == ("bc",) and one.cells[0].last == ours.cells[0].last
    single = results.load(source / ours.cells[0].experiment / "0")
    assert single.cells[0].last.n == 1


def test_a_folder_without_runs_is_an_error(tmp_path):
    with pytest.raises(UserError, match="holds no run yet"):
        results.load(tmp_path)
    with pytest.raises(UserError, match="there is no folder"):
        results.load(tmp_path / "none")


def test_what_a_bench_folder_tells_beside_its_runs(bench, tmp_path):
    shutil.copytree(bench[0] / "runs" / "small", tmp_path / "small")
    root = tmp_path / "small"
    index = json.loads((root / "index.json").read_text())
    index["excluded"] = [{"labels": {"method": "broken", "dataset": "maze"}, "reason": "no maze for it"}]
    index["axes"]["dataset"] = ["maze", "pendulum"]
    (root / "index.json").write_text(json.dumps(index))
    bc, gorl, broken = (cell["experiment"] for cell in index["cells"])
    (root / gorl / "1" / "result.json").unlink()
    logs = {f"{gorl}/1": "\n".join(map(str, range(50))), f"{broken}/0": "", f"{bc}/0": "long ago"}
    (root / "failures.json").write_text(json.dumps({run: {"code": 9, "log": f"{run}.log"} for run in logs}))
    for run, text in logs.items():
        (root / f"{run}.log").write_text(text)
    cost = Cost(20, 12.5, 11.0, 1000, 2)
    (root / bc / "0" / "cost.json").write_text(json.dumps(asdict(cost)))
    (root / bc / "1" / "cost.json").write_text('{"seconds": ')
    loaded = results.load(root)
    assert loaded.axes == {"method": ("BC", "TD3+BC + GORL", "broken"), "dataset": ("maze", "pendulum")}
    assert loaded.columns == ("pendulum",)
    assert loaded.cells[0].labels == {"method": "BC", "dataset": "pendulum"}
    assert loaded.excluded == (
        Excluded({"method": "broken", "dataset": "maze"}, "no maze for it", row="broken", column="maze"),
    )
    assert loaded.excluded_at("broken", "maze").reason == "no maze for it" and loaded.excluded_at("BC", "maze") is None
    assert [run.cost for run in loaded.cells[0].runs] == [cost, None]
    assert [run.env for run in loaded.cells[1].runs] == ["Pendulum-v1"] * 2  # the second from its recipe
    assert {run.planned for cell in loaded.cells for run in cell.runs} == {20}
    failed = loaded.cells[1].runs[1]
    assert failed.failure.splitlines() == [str(i) for i in range(30, 50)] and loaded.cells[0].runs[0].failure is None
    told = {(failure.cell.row, failure.seed): failure.text for failure in loaded.failures}
    assert told[("TD3+BC + GORL", 1)] == failed.failure
    assert told[("broken", 0)] == "exit status 9; it left no log" and len(told) == 2


def test_rows_and_columns_stand_in_the_order_of_the_axes(bench, tmp_path):
    """A cell that is excluded must not put the column of the others behind."""
    shutil.copytree(bench[0] / "runs" / "small", tmp_path / "small")
    file = tmp_path / "small" / "index.json"
    index = json.loads(file.read_text())
    index["axes"]["dataset"] = ["maze", "pendulum"]
    index["cells"][1]["labels"]["dataset"] = "maze"
    file.write_text(json.dumps(index))
    assert results.load(tmp_path / "small").columns == ("maze", "pendulum")


def test_success_rates_are_read_from_both_files(bench, tmp_path):
    source = bench[0] / "runs" / "small"
    run = source / results.load(source).cells[0].experiment / "0"
    shutil.copytree(run, tmp_path / "0")
    result = json.loads((tmp_path / "0" / "result.json").read_text())
    for evaluation, goals in zip(
        result["evaluations"], [[None, None], [3, None], [4, 5], [None, 1], [2, 2]], strict=True
    ):
        evaluation["steps_to_goal"] = goals
    (tmp_path / "0" / "result.json").write_text(json.dumps(result))
    rates = (0.0, 0.5, 1.0, 0.5, 1.0)
    finished = results.load(tmp_path / "0").cells[0]
    assert finished.measure == "success" and tuple(e.success for e in finished.runs[0].evaluations) == rates
    assert finished.scores.tolist() == [0.75] and finished.normalized.tolist() == [75.0]
    (tmp_path / "0" / "result.json").unlink()
    with (tmp_path / "0" / "metrics.csv").open("a") as file:
        file.writelines(
            f"{step},evaluation/success,{rate!r}\n" for step, rate in zip(range(0, 25, 5), rates, strict=True)
        )
    unfinished = results.load(tmp_path / "0").cells[0].runs[0]
    assert unfinished.measure == "success" and unfinished.evaluations == finished.runs[0].evaluations
