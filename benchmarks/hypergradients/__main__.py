"""Measures, prints, and writes benchmarks/results/hypergradients.json and the table of docs/estimators.md."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.hypergradients.comparison import Size, measure
from benchmarks.hypergradients.problems import Problem, actor, cleaning, ridge
from benchmarks.hypergradients.tables import shown, table
from benchmarks.readme import with_table
from metarl.process import settle
from metarl.training.folder import write_aside, write_json

RESULT = Path(__file__).parents[1] / "results" / "hypergradients.json"
PAGE = Path(__file__).parents[2] / "docs" / "estimators.md"
QUICK = Size(rounds=5, turn_ms=10, compiled=False)


def problems() -> list[Problem]:
    """Those that are published."""
    return [ridge(60, 6), ridge(600, 60), cleaning(), actor("sgd"), actor("adam")]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Time and memory of one hypergradient, against TorchOpt and higher.")
    parser.add_argument("--out", type=Path, default=RESULT, help="where the JSON goes")
    parser.add_argument("--only", default="", help="problems whose name contains this; writes nothing")
    parser.add_argument("--quick", action="store_true", help="a few rounds without compiling; writes nothing")
    options = parser.parse_args(arguments)
    settle()
    size = QUICK if options.quick else Size()
    chosen = [problem for problem in problems() if options.only in problem.name]
    # Compile times are those of a first run, and on one core like everything else.
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        result = measure(chosen, size)
    Console().print(shown(result), highlight=False)
    if not options.quick and not options.only:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.out, result)
        write_aside(PAGE, with_table(PAGE.read_text(), table(result), "hypergradient speed"))
        print(f"written: {options.out} and {PAGE}")


if __name__ == "__main__":
    main(sys.argv[1:])
