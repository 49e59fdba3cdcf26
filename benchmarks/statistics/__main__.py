"""Simulates, and writes benchmarks/results/coverage.json, and docs/statistics.md and docs/statistics.png from it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.drawing import to_png
from benchmarks.statistics.coverage import Size, measure
from benchmarks.statistics.page import page
from benchmarks.statistics.picture import picture
from metarl.errors import UserError
from metarl.process import settle
from metarl.training.folder import write_aside, write_json

RESULT = Path(__file__).parents[1] / "results" / "coverage.json"
DOCS = Path(__file__).parents[2] / "docs"


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 2 for a mistake of the user's."""
    options = _parser().parse_args(arguments)
    settle()
    try:
        if options.render:
            render(json.loads(options.out.read_text()), options.docs)
            return 0
        result = measure(Size(simulations=options.simulations, seed=options.seed))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.out, result)
    render(result, options.docs)
    print(f"written: {options.out}, {options.docs / 'statistics.md'} and {options.docs / 'statistics.png'}")
    return 0


def render(result: Mapping[str, Any], docs: Path) -> None:
    """Writes the page and its picture."""
    docs.mkdir(parents=True, exist_ok=True)
    write_aside(docs / "statistics.md", page(result))
    (docs / "statistics.png").write_bytes(to_png(picture(result)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Coverage of intervals and false positives of tests over few seeds.")
    parser.add_argument("--simulations", type=int, default=Size().simulations, help="of every cell")
    parser.add_argument("--seed", type=int, default=0, help="of everything")
    parser.add_argument("--out", type=Path, default=RESULT, help="where the JSON goes")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where the page and its picture go")
    parser.add_argument("--render", action="store_true", help="write page and picture from the JSON; simulate nothing")
    return parser


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
