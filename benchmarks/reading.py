"""Run folders, bench folders and results files read back into `benchmarks.results`."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from benchmarks.results import Cell, Evaluation, Excluded, ResultError, Results, Run, Series, logged_evaluations
from benchmarks.running.folder import BenchFolder
from metarl.config import total_steps
from metarl.data import recipes
from metarl.errors import UserError
from metarl.training.cost import Cost
from metarl.training.evaluation import EpisodeReturns
from metarl.training.folder import RunFolder

TAIL = 20  # lines of a failed run's log


def load(path: Path) -> Results:
    """See `benchmarks.results.load`."""
    if path.is_file() and path.suffix == ".parquet":
        from benchmarks import tidy

        return tidy.read(path)
    if not path.is_dir():
        raise UserError(f"there is no folder {path}, and no .parquet file; name a bench folder such as runs/demo")
    bench = BenchFolder(path)
    results = _of_bench(bench) if bench.index.is_file() else _of_folder(path)
    inside = [] if bench.index.is_file() else sorted(file.parent for file in path.glob("*/index.json"))
    if not any(cell.runs or cell.failed for cell in results.cells):
        if inside:
            names = ", ".join(folder.name for folder in inside)
            raise UserError(f"{path} holds bench folders ({names}); name one, as in `metarl report {inside[0]}`")
        raise UserError(f"{path} holds no run yet; start some with `metarl bench` or `metarl train`")
    return results


def read_run(path: Path, steps: int | None = None, failure: str | None = None) -> Run:
    """One run's folder.

    Args:
        path: of the folder.
        steps: that it should reach, by default what its config.yaml says.
        failure: the tail of its log, where its last attempt failed; of no account once it has finished.

    Raises:
        ResultError: a file is missing or unreadable; names it.
    """
    folder = RunFolder(path)
    config = _yaml(folder.config)
    scalars = _scalars(folder.metrics)
    result = _json(folder.result) if folder.result.is_file() else None
    data: dict[str, Any] = {}
    environment: dict[str, str] = {}
    if result is not None:
        try:
            taken, data, environment = int(result["steps"]), dict(result["data"]), dict(result["environment"])
            found = [(int(e["step"]), EpisodeReturns.from_dict(e)) for e in result["evaluations"]]
            evaluations = tuple(Evaluation(step, one.mean, one.success) for step, one in found)
        except (KeyError, TypeError, ValueError) as error:
            raise ResultError(f"{folder.result} is not a run's result ({error!r}); train the run again") from error
    else:
        evaluations = logged_evaluations(scalars)
        taken = max((series.steps[-1] for series in scalars.values()), default=0)
    planned = total_steps(config) if steps is None else steps
    finished = result is not None and taken >= planned
    return Run(
        folder=path,
        seed=folder.seed,
        steps=taken,
        finished=finished,
        evaluations=evaluations,
        scalars=scalars,
        probes=_probes(folder.probes),
        data=data,
        environment=environment,
        config=config,
        planned=planned,
        env=_env(config, data),
        cost=Cost.read(folder),
        failure=None if finished else failure,
    )


def _of_bench(bench: BenchFolder) -> Results:
    index = bench.read_index()
    axes = {str(axis): tuple(map(str, labels)) for axis, labels in index["axes"].items()}
    column_axis = "dataset" if "dataset" in axes and len(axes) > 1 else (list(axes)[-1] if len(axes) > 1 else None)
    row_axes = [axis for axis in axes if axis != column_axis]
    logs = _logs(bench)
    notes: list[str] = []
    cells = []

    def place(labels: Mapping[str, str]) -> tuple[str, str]:
        return " · ".join(labels[axis] for axis in row_axes), labels[column_axis] if column_axis else "return"

    for entry in index["cells"]:
        labels = {axis: str(entry["labels"][axis]) for axis in axes}
        seeds, experiment, steps = tuple(index["seeds"]), entry["experiment"], entry["steps"]
        failed = {seed: logs[f"{experiment}/{seed}"] for seed in seeds if f"{experiment}/{seed}" in logs}
        folders = [bench.path / experiment / str(seed) for seed in seeds]
        runs = tuple(_readable(folders, steps, notes, failed))
        failed = {seed: text for seed, text in failed.items() if seed not in {r.seed for r in runs if r.finished}}
        cells.append(Cell(*place(labels), experiment, seeds, steps, runs, labels, failed))
    excluded = [
        ({axis: str(label) for axis, label in e["labels"].items()}, e["reason"]) for e in index.get("excluded", [])
    ]
    # In the order of the axes: where a cell is excluded, cells come in another.
    places = [place(dict(zip(axes, labels, strict=True))) for labels in itertools.product(*axes.values())]
    results = _results(index["name"], (" · ".join(row_axes), column_axis or ""), cells, notes, places)
    left_out = tuple(Excluded(labels, reason, *place(labels)) for labels, reason in excluded)
    return replace(results, axes=axes, excluded=left_out)


def _logs(bench: BenchFolder) -> dict[str, str]:
    """`<experiment>/<seed>` -> the tail of its log, of runs whose last attempt failed."""
    tails = {}
    for run, entry in bench.read_failures().items():
        log = bench.path / str(entry.get("log", f"{run}.log"))
        lines = log.read_text(errors="replace").strip().splitlines()[-TAIL:] if log.is_file() else []
        tails[run] = "\n".join(lines) or f"exit status {entry.get('code')}; it left no log"
    return tails


def _of_folder(path: Path) -> Results:
    found = sorted(file.parent for depth in ("", "*/", "*/*/") for file in path.glob(f"{depth}config.yaml"))
    notes: list[str] = []
    by_experiment: dict[str, list[Run]] = {}
    for run in _readable([folder for folder in found if folder.name.isdigit()], None, notes):
        by_experiment.setdefault(run.folder.parent.name, []).append(run)
    labels = {name: (_method(runs[0].config), _dataset(runs[0].config)) for name, runs in by_experiment.items()}
    cells = []
    for name, runs in by_experiment.items():
        row, column = labels[name]
        unique = list(labels.values()).count(labels[name]) == 1
        seeds = tuple(run.seed for run in runs)
        steps = max(total_steps(run.config) for run in runs)
        row = row if unique else name
        cells.append(Cell(row, column, name, seeds, steps, tuple(runs), {"method": row, "dataset": column}))
    results = _results(path.resolve().name, ("method", "dataset"), cells, notes, [(c.row, c.column) for c in cells])
    return replace(results, axes={"method": results.rows, "dataset": results.columns})


def _results(
    name: str,
    titles: tuple[str, str],
    cells: Sequence[Cell],
    notes: list[str],
    places: Sequence[tuple[str, str]],
) -> Results:
    for cell in cells:
        missing = len(cell.seeds) - len(cell.finished)
        title = f"{cell.row}, {cell.column}"
        if missing:
            reached = max((run.steps for run in cell.runs if not run.finished), default=0)
            notes.append(f"{title}: {missing} of {len(cell.seeds)} runs unfinished, the furthest at step {reached:,}")
        if len({run.steps for run in cell.finished}) > 1:
            lengths = ", ".join(f"{run.steps:,}" for run in cell.finished)
            notes.append(f"{title}: runs of unlike lengths are averaged ({lengths} steps)")
    taken = [{cell.row for cell in cells}, {cell.column for cell in cells}]
    rows, columns = (tuple(dict.fromkeys(p[side] for p in places if p[side] in taken[side])) for side in (0, 1))
    return Results(name, *titles, rows, columns, tuple(cells), tuple(notes))


def _readable(
    folders: Sequence[Path], steps: int | None, notes: list[str], failed: Mapping[int, str] | None = None
) -> Iterator[Run]:
    """The runs that exist; one that cannot be read becomes a note."""
    for folder in folders:
        if not (folder / "config.yaml").is_file():
            continue
        try:
            yield read_run(folder, steps, (failed or {}).get(int(folder.name)))
        except ResultError as error:
            notes.append(str(error))


def _method(config: Mapping[str, Any]) -> str:
    names = [config["algorithm"]["name"], *(objective["name"] for objective in config["objective"])]
    return " + ".join(names)


def _dataset(config: Mapping[str, Any]) -> str:
    source = config["data"].get("train")
    if source is None:
        return str(config["online"]["env"])
    return str(source.get("recipe") or source.get("minari") or "data")


def _env(config: Mapping[str, Any], data: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The Gymnasium id that a run is evaluated in; before it has finished once, as far as its configuration tells."""
    source = config["data"].get("train", {})
    met = (config.get("online") or {}).get("env")
    named = config.get("evaluation", {}).get("env") or met or data.get("train", {}).get("env_id") or source.get("env")
    if named or not source.get("recipe"):
        return named
    try:
        return recipes.find(source["recipe"])[0].env_id
    except UserError:  # of a package that is not installed here
        return None


def _yaml(path: Path) -> dict[str, Any]:
    try:
        value = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise ResultError(f"{path} is not readable ({type(error).__name__}); move the run away") from error
    if not isinstance(value, dict) or not {"algorithm", "objective", "data", "steps"} <= set(value):
        raise ResultError(f"{path} is not a run's configuration; move the run away")
    return value  # type: ignore[return-value]


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ResultError(f"{path} is not readable ({error}); train the run again") from error
    if not isinstance(value, dict):
        raise ResultError(f"{path} is not a run's result; train the run again")
    return value


def _scalars(path: Path) -> dict[str, Series]:
    if not path.is_file():
        return {}
    columns: dict[str, tuple[list[int], list[float]]] = {}
    with path.open(newline="") as file:
        for line in file:
            try:
                step, metric, value = next(csv.reader([line]))
                pair = int(step), float(value)
            except (ValueError, csv.Error):  # the head; the last line of a run that is being written
                continue
            steps, values = columns.setdefault(metric, ([], []))
            steps.append(pair[0])
            values.append(pair[1])
    return {metric: Series(tuple(steps), tuple(values)) for metric, (steps, values) in columns.items()}


def _probes(path: Path) -> dict[str, tuple[Mapping[str, Any], ...]]:
    if not path.is_file():
        return {}
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
            by_name.setdefault(row["probe"], []).append(row)
        except (ValueError, KeyError):  # the last line of a run that is being written
            continue
    return {name: tuple(rows) for name, rows in by_name.items()}
