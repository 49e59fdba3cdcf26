"""Results as one tidy parquet file, which pandas, polars and DuckDB read as it is.

One row is one logged number: `suite`, `run` (`<experiment>/<seed>`), `seed`, `step`, `metric`, `value`; whether the
run is `finished` or its last attempt `failed`; its `commit`; a column `axis.<name>` for every axis of the suite; and a
column for every leaf of the resolved configurations, such as `config.algorithm.alpha` or `config.objective.0.name`.
The score of every run (benchmarks.results says what a score is; `evaluation/success` where there is a goal):

    SELECT run, avg(value) FROM (FROM 'results.parquet' WHERE metric = 'evaluation/return' AND step > 0 AND finished
    QUALIFY row_number() OVER (PARTITION BY run ORDER BY step DESC) <= 10) GROUP BY run

What is not a number of a step lies under the key `metarl` of the file's metadata as JSON: the plan, notes, failures,
and for each run its versions and machine, the ids and digests of its data, its configuration and its cost; `read`
gives Results back from the file alone, probes excepted. Equal results give equal bytes: no clock is in the file, and
of the machine that wrote it no path.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.results import Cell, Excluded, ResultError, Results, Run, Series, logged_evaluations
from metarl.errors import UserError
from metarl.training.cost import Cost

KEY = b"metarl"  # of the file's metadata
FORMAT = 1
ROWS = 2**17  # of a row group, at least: every one costs some kilobytes
REMEDY = "write it again from its run folders with `metarl report`"
PLAIN = ("step", "value")  # columns that a dictionary makes no smaller
# The folders of an absolute path, in a log's tail or in a note; not what follows a scheme, a drive's letter or a word.
DIRECTORIES = re.compile(r"(?<![\w.:/\\-])(?:[A-Za-z]:\\|/)(?:[^\s/\\:'\"]+[/\\])+")

Rows = dict[str, tuple[NDArray[np.int64], NDArray[np.float64]]]


def write(results: Results, path: Path, evaluations_only: bool = False) -> Path:
    """Writes the file whole or not at all, and returns its path.

    Args:
        results: of a bench folder or a folder of runs.
        path: of the file; its folder is made.
        evaluations_only: keep rows at steps of evaluations alone, for results that are committed.

    Raises:
        UserError: the file cannot be written.
    """
    runs = [(cell, run) for cell in results.cells for run in cell.runs]
    leaves = [dict(_leaves(run.config)) for _, run in runs]
    config = _config_schema(leaves)
    schema = _schema(results.axes, config)
    aside = path.with_name(f".{path.name}.writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with _writer(aside, schema) as writer:
                waiting: list[pa.Table] = []
                for (cell, run), own in zip(runs, leaves, strict=True):
                    waiting.append(_table(results, cell, run, own, schema, evaluations_only))
                    if sum(table.num_rows for table in waiting) >= ROWS:
                        _flush(writer, waiting)
                _flush(writer, waiting)
                writer.add_key_value_metadata({KEY: json.dumps(_about(results), separators=(",", ":")).encode()})
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error}); choose another place") from error
    return path


def read(path: Path) -> Results:
    """The results in a file that `write` wrote, without probes; tables made of them are those of the run folders.

    Raises:
        UserError: the file is damaged, or something else wrote it; names it.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    try:
        found = (pq.read_metadata(path).metadata or {}).get(KEY)
        about = json.loads(found) if found else None
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise ResultError(
                f"{path} is a parquet file, but not one of metarl's results: its metadata has no 'metarl' of "
                f"format {FORMAT}; {REMEDY}"
            )
        with pq.ParquetFile(path, page_checksum_verification=True, read_dictionary=["run", "metric"]) as file:
            rows: dict[str, Rows] = {}
            for group in range(file.num_row_groups):
                rows |= _rows(file.read_row_group(group, ["run", "metric", "step", "value"]))
            return _results(about, rows)
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ResultError(f"{path} is not a readable results file ({_short(error)}); {REMEDY}") from error


# -- rows ------------------------------------------------------------------------------------------------------


def _schema(axes: Mapping[str, Sequence[str]], config: Mapping[str, pa.DataType]) -> pa.Schema:
    text = pa.dictionary(pa.int32(), pa.string())
    fields = [("suite", text), ("run", text), ("seed", pa.int64()), ("step", pa.int64()), ("metric", text)]
    fields += [("value", pa.float64()), ("finished", pa.bool_()), ("failed", pa.bool_()), ("commit", text)]
    fields += [(f"axis.{axis}", text) for axis in axes]
    fields += [(f"config.{leaf}", text if kind == pa.string() else kind) for leaf, kind in config.items()]
    return pa.schema(fields)


def _writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        compression_level=9,
        use_dictionary=[field.name for field in schema if field.name not in PLAIN],
        column_encoding={"step": "DELTA_BINARY_PACKED", "value": "BYTE_STREAM_SPLIT"},
        store_schema=False,  # so that texts are read as texts, and not as categories, by those who read it
        write_page_checksum=True,
    )


def _flush(writer: pq.ParquetWriter, waiting: list[pa.Table]) -> None:
    """One row group of whole runs."""
    if waiting:
        writer.write_table(pa.concat_tables(waiting).unify_dictionaries(), row_group_size=2**62)
        waiting.clear()


def _table(
    results: Results, cell: Cell, run: Run, leaves: Mapping[str, Any], schema: pa.Schema, evaluations_only: bool
) -> pa.Table:
    series = _series(run)
    steps = np.concatenate([np.array(s.steps, np.int64) for s in series.values()] or [np.empty(0, np.int64)])
    values = np.concatenate([np.array(s.values, np.float64) for s in series.values()] or [np.empty(0)])
    metric = np.repeat(np.arange(len(series), dtype=np.int32), [len(s.steps) for s in series.values()])
    if evaluations_only:
        kept = np.isin(steps, [e.step for e in run.evaluations])
        steps, values, metric = steps[kept], values[kept], metric[kept]
    constant: dict[str, Any] = {
        "suite": results.name,
        "run": _name(cell, run),
        "seed": run.seed,
        "finished": run.finished,
        "failed": run.failure is not None,
        "commit": run.environment.get("commit") or None,
        **{f"axis.{axis}": cell.labels.get(axis) for axis in results.axes},
        **{f"config.{leaf}": value for leaf, value in leaves.items()},
    }
    columns = {
        "step": pa.array(steps),
        "value": pa.array(values),
        "metric": pa.DictionaryArray.from_arrays(metric, pa.array(list(series), pa.string())),
    }
    return pa.table(
        [columns[f.name] if f.name in columns else _repeated(constant.get(f.name), len(steps), f.type) for f in schema],
        schema=schema,
    )


def _series(run: Run) -> dict[str, Series]:
    """What was logged, by metric in alphabetical order; evaluations are those that the score is computed from."""
    found = dict(run.scalars)
    evaluations = {"evaluation/return": [(e.step, e.mean) for e in run.evaluations]}
    evaluations["evaluation/success"] = [(e.step, e.success) for e in run.evaluations if e.success is not None]
    for metric, pairs in evaluations.items():
        found.pop(metric, None)
        if pairs:
            found[metric] = Series(*zip(*pairs, strict=True))
    return dict(sorted(found.items()))


def _repeated(value: Any, rows: int, kind: pa.DataType) -> pa.Array:
    if not pa.types.is_dictionary(kind):
        return pa.repeat(pa.scalar(value, kind), rows)
    text = value if value is None or isinstance(value, str) else json.dumps(value)
    if text is None:
        return pa.nulls(rows, kind)
    return pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), pa.array([text], pa.string()))


def _rows(table: pa.Table) -> dict[str, Rows]:
    """run -> metric -> its rows in the order in which they were logged, for every run of a row group."""
    table = table.combine_chunks()
    runs, metrics = (table.column(name).combine_chunks() for name in ("run", "metric"))
    steps, values = (table.column(name).to_numpy() for name in ("step", "value"))
    names, kinds = runs.dictionary.to_pylist(), metrics.dictionary.to_pylist()
    code = runs.indices.to_numpy().astype(np.int64) * len(kinds) + metrics.indices.to_numpy()
    order = np.argsort(code, kind="stable")
    rows: dict[str, Rows] = {}
    for part in np.split(order, np.flatnonzero(np.diff(code[order])) + 1):
        if len(part):
            run, metric = divmod(int(code[part[0]]), len(kinds))
            rows.setdefault(names[run], {})[kinds[metric]] = steps[part], values[part]
    return rows


# -- configurations as columns ---------------------------------------------------------------------------------


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf; components in a list are numbered, a list of anything else is JSON."""
    inner: list[tuple[str, Any]] = []
    if isinstance(node, Mapping):
        inner = [(str(key), value) for key, value in node.items()]
    elif isinstance(node, list | tuple) and any(isinstance(value, Mapping) for value in node):
        inner = [(str(i), value) for i, value in enumerate(node)]
    if not inner and path:
        yield path, json.dumps(node) if isinstance(node, Mapping | list | tuple) else node
    for key, value in inner:
        yield from _leaves(value, f"{path}.{key}" if path else key)


def _config_schema(configs: Sequence[Mapping[str, Any]]) -> dict[str, pa.DataType]:
    """The type of every leaf over all runs; one that is nowhere set has no column."""
    kinds: dict[str, set[pa.DataType]] = {}
    for config in configs:
        for leaf, value in config.items():
            if value is not None:
                kinds.setdefault(leaf, set()).add(_kind(value))
    numbers = {pa.int64(), pa.float64()}
    return {
        leaf: next(iter(found)) if len(found) == 1 else pa.float64() if found == numbers else pa.string()
        for leaf, found in kinds.items()
    }


def _kind(value: Any) -> pa.DataType:
    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, int):
        return pa.int64() if -(2**63) <= value < 2**63 else pa.string()
    return pa.float64() if isinstance(value, float) else pa.string()


# -- what is said of the runs ----------------------------------------------------------------------------------


class _Pool:
    """Values of which many are alike, each kept once."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._places: dict[str, int] = {}

    def __call__(self, value: Any) -> int:
        place = self._places.setdefault(json.dumps(value), len(self.values))
        if place == len(self.values):
            self.values.append(value)
        return place


def _about(results: Results) -> dict[str, Any]:
    environments, configs, cards = _Pool(), _Pool(), _Pool()
    cells = [
        {
            "row": cell.row,
            "column": cell.column,
            "labels": dict(cell.labels),
            "experiment": cell.experiment,
            "seeds": list(cell.seeds),
            "steps": cell.steps,
            "failures": {str(seed): _without_directories(text) for seed, text in cell.failed.items()},
            "runs": [
                {
                    "seed": run.seed,
                    "steps": run.steps,
                    "planned": run.planned,
                    "finished": run.finished,
                    "env": run.env,
                    "cost": None if run.cost is None else asdict(run.cost),
                    "environment": environments(dict(run.environment)),
                    "config": configs(dict(run.config)),
                    "data": {role: cards(_card(card)) for role, card in run.data.items()},
                }
                for run in cell.runs
            ],
        }
        for cell in results.cells
    ]
    return {
        "format": FORMAT,
        "suite": results.name,
        "titles": [results.row_title, results.column_title],
        "rows": list(results.rows),
        "columns": list(results.columns),
        "axes": {axis: list(labels) for axis, labels in results.axes.items()},
        "seeds": sorted({seed for cell in results.cells for seed in cell.seeds}),
        "excluded": [asdict(one) for one in results.excluded],
        "notes": [_without_directories(note) for note in results.notes],
        "environments": environments.values,
        "data": cards.values,
        "configs": configs.values,
        "cells": cells,
    }


def _card(card: Mapping[str, Any]) -> dict[str, Any]:
    """Which data it was, and its returns."""
    kept = {key: card[key] for key in ("source", "dataset_id", "env_id", "sha256", "returns") if key in card}
    drawn = card.get("figures", {}).get("drawn")
    return kept | ({"figures": {"drawn": drawn}} if drawn else {})


def _results(about: Mapping[str, Any], rows: Mapping[str, Rows]) -> Results:
    cells = []
    for entry in about["cells"]:
        failed = {int(seed): text for seed, text in entry["failures"].items()}
        runs = tuple(_run(about, run, entry["experiment"], rows, failed) for run in entry["runs"])
        place = (entry["row"], entry["column"], entry["experiment"], tuple(entry["seeds"]), entry["steps"])
        cells.append(Cell(*place, runs, entry["labels"], failed))
    row_title, column_title = about["titles"]
    return Results(
        about["suite"],
        row_title,
        column_title,
        tuple(about["rows"]),
        tuple(about["columns"]),
        tuple(cells),
        tuple(about["notes"]),
        {axis: tuple(labels) for axis, labels in about["axes"].items()},
        tuple(Excluded(**one) for one in about["excluded"]),
    )


def _run(
    about: Mapping[str, Any],
    run: Mapping[str, Any],
    experiment: str,
    rows: Mapping[str, Rows],
    failed: Mapping[int, str],
) -> Run:
    name = f"{experiment}/{run['seed']}"
    found = rows.get(name, {})
    scalars = {metric: Series(tuple(s.tolist()), tuple(v.tolist())) for metric, (s, v) in found.items()}
    return Run(
        folder=Path(name),
        seed=run["seed"],
        steps=run["steps"],
        finished=run["finished"],
        evaluations=logged_evaluations(scalars),
        scalars=scalars,
        probes={},
        data={role: about["data"][place] for role, place in run["data"].items()},
        environment=about["environments"][run["environment"]],
        config=about["configs"][run["config"]],
        planned=run["planned"],
        env=run["env"],
        cost=None if run["cost"] is None else Cost(**run["cost"]),
        failure=failed.get(run["seed"]),
    )


def _name(cell: Cell, run: Run) -> str:
    return f"{cell.experiment}/{run.seed}"


def _without_directories(text: str) -> str:
    """The text with absolute paths cut down to their last part."""
    return DIRECTORIES.sub("", text)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
