"""Measures and writes benchmarks/results/runner.json, and docs/runner.md from it; about five minutes on two cores."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.runner.measure import Plan, measure
from benchmarks.runner.page import page
from metarl.data.recipes import make_dataset
from metarl.errors import UserError
from metarl.process import settle
from metarl.provenance import environment
from metarl.training.folder import write_aside, write_json

RESULT = Path(__file__).parents[1] / "results" / "runner.json"
DOCS = Path(__file__).parents[2] / "docs"
QUICK = Plan(runs=2, steps=20, hidden=(8,), rounds=1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 2 for a mistake of the user's."""
    options = _parser().parse_args(arguments)
    try:
        if options.render:
            render(json.loads(options.out.read_text()), options.docs)
            return 0
        result = _everything(QUICK if options.quick else Plan())
        print(page(result))
        if not options.quick:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            write_json(options.out, result)
            render(result, options.docs)
            print(f"written: {options.out} and {options.docs / 'runner.md'}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def render(result: Mapping[str, Any], docs: Path) -> None:
    """Writes the page."""
    write_aside(docs / "runner.md", page(result))


def _everything(plan: Plan) -> dict[str, Any]:
    settle()
    load = os.getloadavg()[0]
    before = os.environ.get("MINARI_DATASETS_PATH")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["MINARI_DATASETS_PATH"] = str(folder / "datasets")
        try:
            source = plan.suite["base"]["data"]["train"]
            make_dataset(source["recipe"], source["size"])
            rounds = measure(plan, folder)
        finally:
            if before is None:
                del os.environ["MINARI_DATASETS_PATH"]
            else:
                os.environ["MINARI_DATASETS_PATH"] = before
    return {
        "environment": environment(),
        "load_average": {"before": load, "after": os.getloadavg()[0]},
        "plan": asdict(plan) | {"hidden": list(plan.hidden)},
        "rounds": rounds,
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.runner",
        description="Overhead of a run of `metarl bench`, and two cores against one.",
    )
    parser.add_argument("--out", type=Path, default=RESULT, help="the JSON file")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of runner.md")
    parser.add_argument("--quick", action="store_true", help="two tiny runs, to see that it works; writes nothing")
    parser.add_argument("--render", action="store_true", help="write the page from the JSON; measure nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
