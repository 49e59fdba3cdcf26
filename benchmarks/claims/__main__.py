"""`python -m benchmarks.claims [--record runs/SUITE ...]`: keeps results, and writes docs/claims.md from those kept."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import results, tidy
from benchmarks.claims import page
from metarl.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes below the current folder; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.claims", description=__doc__)
    parser.add_argument("--record", type=Path, nargs="+", default=[], help="bench folders to keep the results of")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="where claims.md is written")
    options = parser.parse_args(arguments)
    try:
        for folder in options.record:
            found = results.load(folder)
            if missing := sum(len(cell.seeds) - len(cell.scored) for cell in found.cells):
                raise UserError(f"{folder}: {missing} runs are not finished; `metarl bench` goes on with them")
            tidy.write(found, page.RECORDED / f"{found.name}.parquet", evaluations_only=True)
            print(f"kept: {found.name}, {found.finished} finished runs")
        print(f"written: {page.write(options.docs)}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
