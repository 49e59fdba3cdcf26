"""The README's table is the demo's, not typed."""

import csv
from pathlib import Path

from benchmarks.readme import with_table

START, END = "<!-- demo table -->", "<!-- end of demo table -->"
ROOT = Path(__file__).parents[2]


def test_the_table_stands_between_the_markers_alone():
    text = f"a\n{START}\nold\n{END}\nb"
    assert with_table(text, "| new |\n") == f"a\n{START}\n| new |\n{END}\nb"


def test_the_readme_shows_the_committed_figures():
    table = (ROOT / "README.md").read_text().partition(START)[2].partition(END)[0]
    rows = list(csv.DictReader((ROOT / "docs" / "demo.csv").read_text().splitlines()))
    assert {row["method"] for row in rows} == {"BC", "TD3+BC", "TD3+BC + GORL"}
    for row in rows:
        line = next(line for line in table.splitlines() if line.startswith(f"| {row['method']} |"))
        assert f"{float(row['mean']):,.1f} ± {float(row['sd']):,.1f}" in line.replace("−", "-")
