"""`python -m benchmarks.exactness`: measures everything.

Writes docs/exactness.md, the table of docs/estimators.md, and metarl/bilevel/transforms.json.
"""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

import metarl.bilevel
from benchmarks.exactness import cells, choice, table, transforms
from benchmarks.readme import with_table
from metarl.process import settle
from metarl.training.folder import write_aside

DOCS = Path(__file__).parents[2] / "docs"
PAGE, CHOICE = DOCS / "exactness.md", DOCS / "estimators.md"
TRANSFORMS = Path(metarl.bilevel.__file__).parent / "transforms.json"


def main() -> int:
    """Exit status 1 where an error is out of bounds."""
    settle()
    found = [cells.measure(cell) for cell in cells.grid()]
    write_aside(PAGE, table.page(found))
    write_aside(CHOICE, with_table(CHOICE.read_text(), choice.table(choice.measure()), "estimators"))
    console = Console()
    console.print(table.summary(found), highlight=False)
    console.print(f"pages: {PAGE}, {CHOICE}", highlight=False, soft_wrap=True)
    write_aside(TRANSFORMS, json.dumps(transforms.measure(), indent=2) + "\n")
    console.print(f"what compiles and vmaps: {TRANSFORMS}", highlight=False, soft_wrap=True)
    bad = [cell for cell in found if not cell.good]
    for cell in bad:
        console.print(f"out of bounds: {cell}", highlight=False, soft_wrap=True)
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
