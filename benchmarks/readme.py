"""Puts the demo's results into the README: `python -m benchmarks.readme runs/demo`, after `make demo`.

The table between the README's markers and the picture are those of the report, whose figures are kept as docs/demo.csv.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import results
from benchmarks.report import page
from metarl.errors import UserError
from metarl.training.folder import write_aside


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes README.md, docs/demo.csv and docs/demo.png below the current folder; returns the exit status."""
    parser = argparse.ArgumentParser(description="Put the demo's results into the README.")
    parser.add_argument("folder", type=Path, help="the demo's bench folder, runs/demo")
    folder = parser.parse_args(arguments).folder
    try:
        made = page.write(results.load(folder), folder / "report").parent
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    readme, docs = Path("README.md"), Path("docs")
    write_aside(readme, with_table(readme.read_text(), (made / "table.md").read_text()))
    shutil.copy(made / "table.csv", docs / "demo.csv")
    shutil.copy(made / "figures" / "curves.png", docs / "demo.png")
    return 0


def with_table(text: str, table: str, name: str = "demo table") -> str:
    """The text with `table` between the markers of that name, `<!-- name -->` and `<!-- end of name -->`."""
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, _, rest = text.partition(start)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"the text has no markers {start} and {end}")
    return f"{before}{start}\n{table.strip()}\n{end}{after}"


if __name__ == "__main__":
    sys.exit(main())
