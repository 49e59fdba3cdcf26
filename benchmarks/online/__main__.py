"""Times steps and compares returns, prints both, and writes benchmarks/online/results and docs/online.md from them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from benchmarks.drawing import to_png
from benchmarks.online import solved, tables, turns
from benchmarks.online.ours import described
from benchmarks.online.page import page
from benchmarks.online.picture import picture
from benchmarks.online.returns import Comparison, collect, compare
from benchmarks.online.settings import PAIRS
from benchmarks.speed.rounds import bar
from benchmarks.speed.settings import default_core
from metarl.errors import ConfigError, UserError
from metarl.training.folder import write_aside, write_json

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parents[2] / "docs"


def render(results: Path, docs: Path) -> None:
    """Writes the page and its picture from the JSON files that are there."""
    measured, collected = read(results)
    returns = compared(collected)
    docs.mkdir(parents=True, exist_ok=True)
    pendulum = solved.load()
    write_aside(docs / "online.md", page(measured, returns, collected, pendulum))
    if pendulum is not None and (figure := solved.curves(pendulum)) is not None:
        (docs / "online_pendulum.png").write_bytes(to_png(figure))
    if measured or returns:
        (docs / "online.png").write_bytes(to_png(picture(measured, returns)))


def read(results: Path) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Times and returns, each None where it was not recorded."""
    files = (results / "times.json", results / "returns.json")
    measured, collected = (json.loads(file.read_text()) if file.is_file() else None for file in files)
    return measured, collected


def compared(collected: Mapping[str, Any] | None) -> list[Comparison]:
    """Every pair of the returns."""
    return [compare(pair) for pair in collected["pairs"]] if collected else []


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 2 for a mistake of the user's."""
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace) -> int:
    if options.experiments:
        options.experiments.mkdir(parents=True, exist_ok=True)
        for env, algorithm in PAIRS:
            raw = described(env, algorithm)
            write_aside(options.experiments / f"{raw['name']}.yaml", yaml.safe_dump(raw, sort_keys=False))
        return 0
    if bool(options.runs) != bool(options.sb3_runs):
        raise ConfigError("--runs and --sb3-runs belong together: returns of both sides are compared")
    console = Console()
    if not options.render and not options.runs and not options.sb3_python:
        raise ConfigError("nothing to do; give --sb3-python, or --runs and --sb3-runs, or --render, or --experiments")
    if options.sb3_python:
        pairs = [
            (env, algorithm) for env, algorithm in PAIRS if not options.only or f"{env}-{algorithm}" in options.only
        ]
        core = options.core if options.core is not None else default_core()
        asked = turns.Turns(options.rounds, options.steps, mode=options.mode, core=core)
        pythons = {turns.OURS: sys.executable, turns.SB3: options.sb3_python}
        with bar() as progress:
            measured = turns.measure(pairs, pythons, asked, progress)
        console.print(tables.times(measured).shown(), highlight=False)
        if not options.only:
            options.results.mkdir(parents=True, exist_ok=True)
            write_json(options.results / "times.json", measured)
    if options.runs:
        collected = collect(options.runs, options.sb3_runs)
        console.print(tables.returns(compared(collected)).shown(), highlight=False)
        options.results.mkdir(parents=True, exist_ok=True)
        write_json(options.results / "returns.json", collected)
    if not options.only:
        render(options.results, options.docs)
        print(f"written: {options.docs / 'online.md'}, with its picture")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.online", description="Online training, beside Stable-Baselines3."
    )
    parser.add_argument("--sb3-python", metavar="PATH", help="interpreter with stable-baselines3: time steps")
    parser.add_argument("--rounds", type=int, default=turns.Turns().rounds, help="of the timing")
    parser.add_argument("--steps", type=int, default=turns.Turns().steps, help="of a turn of the timing")
    parser.add_argument("--mode", default="auto", choices=("auto", "off", "on"), help="metarl's `compile`")
    parser.add_argument("--core", type=int, help="the CPU core that both sides are pinned to (the last one)")
    names = [f"{env}-{algorithm}" for env, algorithm in PAIRS]
    parser.add_argument("--only", nargs="+", choices=names, default=[], help="time these; writes nothing")
    parser.add_argument("--runs", type=Path, help="folder with run folders of `metarl train`: compare returns")
    parser.add_argument("--sb3-runs", type=Path, help="folder with files of `benchmarks.online.rival_sb3 train`")
    parser.add_argument("--experiments", type=Path, metavar="FOLDER", help="write metarl's experiments there, and end")
    parser.add_argument("--render", action="store_true", help="write page and picture from the JSON; measure nothing")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the JSON lies")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where page and picture go")
    return parser


if __name__ == "__main__":
    sys.exit(main())
