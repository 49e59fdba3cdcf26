"""The parquet file: other readers find every number in it, and it gives the results back bit for bit."""

import csv
import json
import math
import re
import statistics
import time
from dataclasses import asdict, replace
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest

from benchmarks import results, tidy
from benchmarks.report import tables
from benchmarks.results import Cell, Evaluation, Excluded, Results, Run, Series
from metarl.errors import UserError
from metarl.training.cost import Cost

DOCS = Path(__file__).parents[2] / "docs"
ENVIRONMENT = {"python": "3.11.7", "metarl": "0.1.0", "machine": "two cores", "commit": "abc1234"}
CARD = {
    "source": "recipe",
    "dataset_id": "metarl/pendulum/medium-600-s0-v1",
    "env_id": "Pendulum-v1",
    "sha256": "ff00",
    "returns": {"mean": -700.0},
}
CONFIG = {
    "algorithm": {"name": "bc", "lr": 0.001, "alpha": 2, "clip": None, "hidden": [8, 8], "target": 1},
    "objective": [{"name": "fixed", "degree": 0.5}],
    "data": {"train": {"recipe": "pendulum/medium", "tuples": None}},
    "steps": 100,
}


def run_of(seed, method="BC", finished=True, steps=12, success=False):
    rng = np.random.default_rng([seed, len(method)])
    evaluations = tuple(
        Evaluation(10 * i, float(rng.normal(-500, 90)), float(rng.integers(11)) / 10 if success else None)
        for i in range(steps + 1)
    )
    loss = Series(tuple(range(1, 10 * steps + 1)), tuple(rng.normal(size=10 * steps).tolist()))
    scalars = {"evaluation/return": Series(tuple(e.step for e in evaluations), tuple(e.mean for e in evaluations))}
    config = {**CONFIG, "algorithm": {**CONFIG["algorithm"], **({"alpha": 0.5, "target": "mean"} if success else {})}}
    return Run(
        folder=Path("/home/me/runs/x") / str(seed),
        seed=seed,
        steps=10 * steps,
        finished=finished,
        evaluations=evaluations,
        scalars={"loss": loss, "Loss/b": loss, **scalars},
        probes={"b": ({"step": 0},)},
        data={"train": {**CARD, "figures": {"drawn": f"seed {seed}", "more": [1] * 99}}},
        environment=ENVIRONMENT if finished else {},
        config=config,
        planned=10 * steps,
        env="Pendulum-v1",
        cost=Cost(10 * steps, 12.5 + seed, 10.0, 2**30, 1) if finished else None,
        failure=None if finished else "Traceback",
    )


@pytest.fixture
def suite():
    """Two methods on two datasets, one of them with goals; a run unfinished and failed, one that left no folder."""
    cells = []
    for dataset, success in (("pendulum", False), ("maze", True)):
        for method in ("BC", "CQL"):
            runs = tuple(run_of(seed, method, (method, seed) != ("CQL", 2), 12, success) for seed in (0, 1, 2))
            failed = {2: 'File "/home/me/lib/a.py", see /tmp/x/runs/b', 3: "gone"} if method == "CQL" else {}
            runs = tuple(replace(run, failure=failed.get(run.seed)) for run in runs)
            labels = {"method": method, "dataset": dataset}
            cells.append(Cell(method, dataset, f"{method}-{dataset}", (0, 1, 2, 3), 120, runs, labels, failed))
    return Results(
        "both",
        "method",
        "dataset",
        ("BC", "CQL"),
        ("pendulum", "maze"),
        tuple(cells),
        ("CQL: /home/me/runs/x/2/result.json is not readable",),
        {"method": ("BC", "CQL"), "dataset": ("pendulum", "maze", "ant")},
        (Excluded({"method": "CQL", "dataset": "ant"}, "too slow", "CQL", "ant"),),
    )


def plain(loaded):
    """All that a table or a statistic is made of, without what a machine's paths are in, and without probes."""
    return replace(
        loaded,
        notes=(),
        cells=tuple(
            replace(
                cell,
                failed=dict.fromkeys(cell.failed),
                runs=tuple(
                    replace(
                        run,
                        folder=None,
                        probes={},
                        failure=run.failure is not None,
                        scalars={k: v for k, v in run.scalars.items() if not k.startswith("evaluation/")},
                        data={role: tidy._card(card) for role, card in run.data.items()},
                    )
                    for run in cell.runs
                ),
            )
            for cell in loaded.cells
        ),
    )


def test_read_gives_back_what_was_written(suite, tmp_path):
    file = tidy.write(suite, tmp_path / "new" / "results.parquet")
    back = results.load(file)
    assert plain(back) == plain(suite)
    assert tables.csv_text(back) == tables.csv_text(suite)
    assert back.cells[1].runs[2].failure == 'File "a.py", see b' and back.cells[1].failed[3] == "gone"
    assert back.notes == ("CQL: result.json is not readable",)
    assert [(failure.cell.row, failure.seed) for failure in back.failures] == [("CQL", 2), ("CQL", 3)] * 2
    assert tables.markdown(replace(back, notes=())) == tables.markdown(replace(suite, notes=()))


def test_the_same_results_give_the_same_bytes_and_no_path(suite, tmp_path):
    first, second = tidy.write(suite, tmp_path / "a.parquet"), tidy.write(suite, tmp_path / "b" / "c.parquet")
    assert first.read_bytes() == second.read_bytes()
    assert tidy.write(tidy.read(first), tmp_path / "again.parquet").read_bytes() == first.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"a.parquet", "b", "again.parquet"}
    text = pq.read_metadata(first).metadata[b"metarl"] + first.read_bytes()
    for folder in (tmp_path.parents[-2], Path.home(), Path(__file__).parents[2]):
        assert f"{folder}/".encode() not in text


def expected(suite):
    """(method, dataset) -> (n, mean, sd), as the CSV table has them."""
    rows = csv.DictReader(tables.csv_text(suite).splitlines())
    return {(r["method"], r["dataset"]): (int(r["n"]), float(r["mean"]), float(r["sd"])) for r in rows}


def check(found, suite):
    wanted = expected(suite)
    assert found.keys() == wanted.keys()
    for key, (n, mean, sd) in found.items():
        assert n == wanted[key][0] and math.isclose(mean, wanted[key][1], rel_tol=1e-12)
        assert math.isclose(sd, wanted[key][2], rel_tol=1e-9)


def test_pandas_gives_the_table(suite, tmp_path):
    frame = pd.read_parquet(tidy.write(suite, tmp_path / "results.parquet"))
    # Datasets with goals are scored by success, the others by return.
    goals = frame.loc[frame["metric"] == "evaluation/success", "run"].unique()
    metric = np.where(frame["run"].isin(goals), "evaluation/success", "evaluation/return")
    rows = frame[(frame["metric"] == metric) & (frame["step"] > 0) & frame["finished"]]
    keys = ["axis.method", "axis.dataset", "seed"]
    scores = rows.sort_values("step").groupby(keys).tail(10).groupby(keys)["value"].mean()
    table = scores.groupby(keys[:2]).agg(["count", "mean", "std"])
    check({key: tuple(row) for key, row in zip(table.index, table.to_numpy(), strict=True)}, suite)


def test_polars_gives_the_table(suite, tmp_path):
    frame = pl.read_parquet(tidy.write(suite, tmp_path / "results.parquet"))
    goals = frame.filter(pl.col("metric") == "evaluation/success")["run"].unique().to_list()
    metric = (
        pl.when(pl.col("run").is_in(goals)).then(pl.lit("evaluation/success")).otherwise(pl.lit("evaluation/return"))
    )
    rows = frame.filter((pl.col("metric") == metric) & (pl.col("step") > 0) & pl.col("finished"))
    keys = ["axis.method", "axis.dataset", "seed"]
    scores = rows.sort("step").group_by(keys).agg(pl.col("value").tail(10).mean())
    value = pl.col("value")
    table = scores.group_by(keys[:2]).agg(value.count().alias("n"), value.mean().alias("mean"), value.std().alias("sd"))
    check({(r[0], r[1]): r[2:] for r in table.iter_rows()}, suite)


def sql(metric, file):
    """The two lines of the module's docstring."""
    lines = [line.strip() for line in tidy.__doc__.splitlines()]
    start = next(i for i, line in enumerate(lines) if line.startswith("SELECT run"))
    query = " ".join(lines[start : start + 2])
    assert query.count("evaluation/return") == query.count("results.parquet") == 1
    return query.replace("evaluation/return", metric).replace("results.parquet", str(file))


def test_two_lines_of_sql_give_every_score(suite, tmp_path):
    file = tidy.write(suite, tmp_path / "results.parquet")
    rates = dict(duckdb.sql(sql("evaluation/success", file)).fetchall())
    scores = dict(duckdb.sql(sql("evaluation/return", file)).fetchall()) | rates
    runs = {f"{cell.experiment}/{run.seed}": run for cell in suite.cells for run in cell.finished}
    assert scores.keys() == runs.keys() and len(rates) == 5
    for name, score in scores.items():
        assert math.isclose(score, runs[name].score, rel_tol=1e-12)
    found: dict = {}
    for cell in suite.cells:
        values = [scores[f"{cell.experiment}/{run.seed}"] for run in cell.finished]
        found[cell.row, cell.column] = len(values), statistics.mean(values), statistics.stdev(values)
    check(found, suite)


def test_the_example_of_the_docs_gives_the_table(suite, tmp_path):
    suite = replace(suite, cells=suite.cells[:2])  # those that returns are scored of
    file = tidy.write(suite, tmp_path / "results.parquet")
    (code,) = re.findall(r"```python\n(import duckdb.*?)```", (DOCS / "benchmarks.md").read_text(), re.DOTALL)
    assert code.count("runs/demo/report/results.parquet") == 1
    _, query, _ = code.replace("runs/demo/report/results.parquet", str(file)).split('"""')
    found = {(method, dataset): (n, score, sd) for method, dataset, score, sd, n in duckdb.sql(query).fetchall()}
    check(found, suite)


def test_the_columns_are_typed_and_say_what_ran(suite, tmp_path):
    file = tidy.write(suite, tmp_path / "results.parquet")
    frame = pd.read_parquet(file)
    first = frame.iloc[0]
    assert list(frame.columns[:8]) == ["suite", "run", "seed", "step", "metric", "value", "finished", "failed"]
    assert first["suite"] == "both" and first["run"] == "BC-pendulum/0" and first["commit"] == "abc1234"
    assert first["axis.method"] == "BC" and first["axis.dataset"] == "pendulum"
    assert frame["config.algorithm.lr"].dtype == np.float64 and frame["config.steps"].dtype == np.int64
    assert first["config.algorithm.hidden"] == "[8, 8]" and first["config.objective.0.degree"] == 0.5
    assert "config.algorithm.clip" not in frame  # nowhere set
    assert set(frame["config.algorithm.alpha"]) == {2.0, 0.5}  # whole numbers and fractions are numbers
    assert set(frame["config.algorithm.target"]) == {"1", "mean"}  # anything else that is mixed is text
    flags = frame.groupby("run")[["finished", "failed"]].first()
    assert flags["finished"].sum() == 10 and set(flags.index[flags["failed"]]) == {"CQL-pendulum/2", "CQL-maze/2"}
    assert frame[~frame["finished"]]["commit"].isna().all()
    about = json.loads(
        duckdb.sql(f"SELECT value FROM parquet_kv_metadata('{file}') WHERE key = 'metarl'").fetchone()[0]
    )
    assert about["excluded"] == [
        {"labels": {"method": "CQL", "dataset": "ant"}, "reason": "too slow", "row": "CQL", "column": "ant"}
    ]
    assert about["environments"] == [ENVIRONMENT, {}] and len(about["configs"]) == 2
    assert {card["figures"]["drawn"] for card in about["data"]} == {"seed 0", "seed 1", "seed 2"}
    assert about["cells"][0]["runs"][1]["cost"] == asdict(suite.cells[0].runs[1].cost)
    assert about["axes"]["dataset"][-1] == "ant" and about["seeds"] == [0, 1, 2, 3]


def test_non_finite_values_survive_in_every_reader(suite, tmp_path):
    values = (math.nan, math.inf, -math.inf, 5e-324, -0.0)
    run = replace(suite.cells[0].runs[0], scalars={"odd": Series((1, 2, 3, 4, 5), values)})
    cell = replace(suite.cells[0], runs=(run,))
    file = tidy.write(replace(suite, cells=(cell,)), tmp_path / "odd.parquet")
    read = results.load(file).cells[0].runs[0].scalars["odd"].values
    frame = pd.read_parquet(file, filters=[("metric", "==", "odd")])["value"].tolist()
    polars = pl.read_parquet(file).filter(pl.col("metric") == "odd")["value"].to_list()
    duck = [row[0] for row in duckdb.sql(f"SELECT value FROM '{file}' WHERE metric = 'odd' ORDER BY step").fetchall()]
    for found in (read, frame, polars, duck):
        assert [repr(value) for value in found] == [repr(value) for value in values]


def test_evaluations_only_keeps_the_table(suite, tmp_path):
    file = tidy.write(suite, tmp_path / "small.parquet", evaluations_only=True)
    back = results.load(file)
    assert tables.csv_text(back) == tables.csv_text(suite)
    steps = set(back.cells[0].runs[0].scalars["loss"].steps)
    assert steps == set(range(10, 130, 10))
    assert pq.read_metadata(file).num_rows == 10 * (13 + 12 + 12) + 2 * (13 + 12 + 12) + 6 * 13


def test_row_groups_hold_whole_runs(suite, tmp_path, monkeypatch):
    monkeypatch.setattr(tidy, "ROWS", 600)
    file = tidy.write(suite, tmp_path / "groups.parquet")
    parquet = pq.ParquetFile(file)
    groups = [set(parquet.read_row_group(i, ["run"])["run"].to_pylist()) for i in range(parquet.num_row_groups)]
    assert len(groups) == 4 and sum(map(len, groups)) == 12 == len(set.union(*groups))
    assert plain(results.load(file)) == plain(suite)


def test_runs_without_a_row_are_kept(suite, tmp_path):
    empty = replace(suite.cells[0].runs[0], scalars={}, evaluations=(), finished=False)
    cells = (replace(suite.cells[0], runs=(empty,)), replace(suite.cells[1], runs=()))
    back = results.load(tidy.write(replace(suite, cells=cells), tmp_path / "empty.parquet"))
    assert [len(cell.runs) for cell in back.cells] == [1, 0] and back.cells[0].runs[0].evaluations == ()
    assert back.cells[0].config == empty.config


def test_damaged_and_foreign_files_are_users_errors(suite, tmp_path):
    file = tidy.write(suite, tmp_path / "results.parquet")
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[pq.read_metadata(file).row_group(0).column(5).data_page_offset + 2000] ^= 0xFF
    for damaged in (whole[: len(whole) // 2], whole[:-3], b"PAR1", b"", b"step,metric\n", bytes(flipped)):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"results\.parquet is not a readable results file .*write it again from"):
            results.load(file)
    pl.DataFrame({"a": [1]}).write_parquet(file)
    with pytest.raises(UserError, match=r"results\.parquet is a parquet file, but not one of metarl's"):
        results.load(file)
    with pytest.raises(UserError, match="there is no"):
        results.load(tmp_path / "none.parquet")


def test_a_place_that_cannot_be_written_is_a_users_error(suite, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        tidy.write(suite, tmp_path / "file" / "results.parquet")
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        tidy.write(suite, tmp_path / "folder.parquet")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder.parquet"}


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("no /home/me/a b/c.py", "no a b/c.py"),
        ('File "/usr/lib/python3/x.py", line 3', 'File "x.py", line 3'),
        ("runs/demo/bc/0 and pendulum/medium", "runs/demo/bc/0 and pendulum/medium"),
        ("see https://a.org/b/c or C:\\Users\\me\\x.txt", "see https://a.org/b/c or x.txt"),
        ("1 / 2 and 3/4", "1 / 2 and 3/4"),
    ],
)
def test_paths_of_the_machine_are_cut(text, kept):
    assert tidy._without_directories(text) == kept


def test_real_runs_give_their_own_table(bench, tmp_path):
    loaded = results.load(bench[0] / "runs" / "small")
    file = tidy.write(loaded, tmp_path / "small.parquet")
    back = results.load(file)
    assert tables.csv_text(back) == tables.csv_text(loaded) and plain(back) == plain(loaded)
    norms = duckdb.sql(f"""SELECT step, value FROM '{file}' WHERE "axis.method" = 'TD3+BC + GORL' AND seed = 0
        AND metric = 'guiding_network/hypergradient_norm' ORDER BY step""").fetchall()
    series = loaded.at("TD3+BC + GORL", "pendulum").runs[0].scalars["guiding_network/hypergradient_norm"]
    assert norms == list(zip(series.steps, series.values, strict=True)) and norms


@pytest.mark.slow
def test_a_long_run_takes_no_time_that_anyone_would_notice(suite, tmp_path):
    """Generous by an order of magnitude, so that a busy machine passes and a loop over rows in Python does not."""
    rng = np.random.default_rng(0)
    scalars = {f"metric/{i}": Series(tuple(range(10_000)), tuple(rng.normal(size=10_000).tolist())) for i in range(10)}
    run = replace(suite.cells[0].runs[0], scalars=scalars)
    one = replace(suite, cells=(replace(suite.cells[0], runs=(run,)),))
    began = time.process_time()
    file = tidy.write(one, tmp_path / "long.parquet")
    assert len(results.load(file).cells[0].runs[0].scalars["metric/3"].values) == 10_000
    assert time.process_time() - began < 5
