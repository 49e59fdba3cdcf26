"""`python -m benchmarks.exactness`: measures all, writes docs/exactness.md and metarl/bilevel/transforms.json."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from rich.console import Console

import metarl.bilevel
from benchmarks.exactness import cells, table, transforms

PAGE = Path(__file__).parents[2] / "docs" / "exactness.md"
TRANSFORMS = Path(metarl.bilevel.__file__).parent / "transforms.json"


def main() -> int:
    """Exit status 1 where an error is out of bounds."""
    torch.set_num_threads(1)
    found = [cells.measure(cell) for cell in cells.grid()]
    PAGE.write_text(table.page(found))
    console = Console()
    console.print(table.summary(found), highlight=False)
    console.print(f"page: {PAGE}", highlight=False, soft_wrap=True)
    TRANSFORMS.write_text(json.dumps(transforms.measure(), indent=2) + "\n")
    console.print(f"what compiles and vmaps: {TRANSFORMS}", highlight=False, soft_wrap=True)
    bad = [cell for cell in found if not cell.good]
    for cell in bad:
        console.print(f"out of bounds: {cell}", highlight=False, soft_wrap=True)
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
