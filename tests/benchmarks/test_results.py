"""Results and tables: every number equals one computed by hand from result.json."""

import csv
import json
import math
import shutil
import statistics

import pytest

from benchmarks import results
from benchmarks.report import tables
from benchmarks.results import Evaluation, Run, Spread
from metarl.errors import UserError


def run_of(means, steps=100):
    evaluations = tuple(Evaluation(10 * i, mean) for i, mean in enumerate(means))
    return Run(None, 0, steps, True, evaluations, {}, {}, {}, {}, {})


def test_a_score_averages_the_last_ten_evaluations_and_never_the_first():
    assert run_of([100.0, 1.0, 2.0]).score == 1.5
    assert run_of([100.0, *range(1, 21)]).score == statistics.mean(range(11, 21))
    assert run_of([100.0]).score is None and run_of([100.0]).best is None
    assert run_of([100.0, 1.0, 7.0, 2.0]).best == 7.0


def test_a_spread_is_over_seeds():
    assert Spread.of([]) is None
    assert Spread.of([3.0]) == Spread(3.0, None, 1)
    spread = Spread.of([1.0, 2.0, 4.0])
    assert spread.n == 3 and math.isclose(spread.sd, statistics.stdev([1, 2, 4]))


@pytest.mark.parametrize(
    ("spread", "text"),
    [
        (Spread(-1234.56, 7.89, 2), "-1,234.6 ± 7.9"),
        (Spread(0.8534, 0.0421, 5), "0.853 ± 0.042"),
        (Spread(-200.0, None, 1), "-200.0"),
    ],
)
def test_shown(spread, text):
    assert tables.shown(spread) == text


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
        assert f"{statistics.mean(scores):,.1f} ± {statistics.stdev(scores):,.1f}  (n=2)" in tables.markdown(loaded)


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
