"""Every problem over its seeds: `python -m benchmarks.known_answers [--problem NAME]`.

Prints each figure against its known answer, records them in benchmarks/results/known_answers.json with what they were
made with, and writes the table of docs/known_answers.md from that file. Exit status 1 if a known answer is missed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.readme import with_table
from benchmarks.solve import build
from benchmarks.verdicts import Verdict, judge, show
from metarl import registry
from metarl.errors import UserError
from metarl.problems import solve
from metarl.process import settle
from metarl.provenance import environment
from metarl.training.folder import write_aside, write_json
from metarl.training.progress import Style, reporter

RESULT = Path(__file__).parent / "results" / "known_answers.json"
PAGE = Path("docs/known_answers.md")
COLUMNS = ("problem", "figure", "measured", "known answer", "", "source", "seeds", "seconds a seed")


def measure(name: str, style: Style = "auto") -> tuple[dict[str, Any], list[Verdict]]:
    """One problem over the seeds for which its answers are known: what is recorded, and the verdicts."""
    problem: Any = build(name)
    solutions = [solve(problem, seed, progress=reporter(style)) for seed in problem.seeds]
    verdicts = judge(problem, solutions)
    record = {
        "command": f"python -m benchmarks.known_answers --problem {name}",
        "settings": dataclasses.asdict(problem),
        "seeds": problem.seeds,
        "seconds": [round(solution.seconds, 2) for solution in solutions],
        "environment": environment(),
        "figures": [_plain(verdict) for verdict in verdicts],
    }
    return record, verdicts


def _plain(v: Verdict) -> dict[str, Any]:
    known = None if v.bound is None else {"answer": v.answer, "source": v.bound.source}
    return {
        "figure": v.figure,
        "values": v.values,
        "shown": v.value,
        "known": known,
        "p": v.p,
        "holds": v.holds,
        "verdict": v.verdict,
    }


def markdown(results: Mapping[str, Any]) -> str:
    """The table in Markdown, and where it was made."""
    rows = [
        (
            name,
            figure["figure"],
            figure["shown"],
            figure["known"]["answer"] if figure["known"] else "",
            figure["verdict"],
            figure["known"]["source"] if figure["known"] else "",
            str(len(result["seeds"])),
            f"{sum(result['seconds']) / len(result['seconds']):.1f}",
        )
        for name, result in sorted(results.items())
        for figure in result["figures"]
    ]
    lines = [COLUMNS, ("---",) * len(COLUMNS), *rows]
    table = "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)
    machines = dict.fromkeys(
        f"Python {e['python']}, torch {e['torch']}; {e['machine']}"
        for e in (r["environment"] for r in results.values())
    )
    return f"{table}\n\nMade with {' and '.join(machines)}; one thread."


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, records and prints; returns the exit status."""
    parser = argparse.ArgumentParser(description="Solve problems with known answers.")
    parser.add_argument("--problem", choices=registry.names("metarl.problems"), help="only this one")
    parser.add_argument("--result", type=Path, default=RESULT, help="the JSON file; other problems in it are kept")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page whose table is written anew")
    parser.add_argument("--progress", choices=("auto", "bar", "lines", "none"), default="auto")
    options = parser.parse_args(arguments)
    settle()
    chosen = [options.problem] if options.problem else registry.names("metarl.problems")
    results: dict[str, Any] = json.loads(options.result.read_text()) if options.result.is_file() else {}
    console, missed = Console(), False
    try:
        for name in chosen:
            results[name], verdicts = measure(name, options.progress)
            write_json(options.result, results)
            console.print(f"\n{name}, seeds {', '.join(map(str, results[name]['seeds']))}", highlight=False)
            show(verdicts, console)
            missed |= any(verdict.holds is False for verdict in verdicts)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.page.is_file():
        write_aside(options.page, with_table(options.page.read_text(), markdown(results), "known answers"))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
