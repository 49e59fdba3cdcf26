"""Measures, prints, and writes benchmarks/speed/results/speed.json, docs/speed.md and docs/speed.png from it.

With `--only ... --merge` what is measured takes the place of the same in the JSON, with the facts of its own run beside
it. Only what is complete in itself can be merged: no ratio is ever taken across runs.
"""

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

from rich.console import Console
from rich.progress import Progress

from benchmarks.drawing import to_png
from benchmarks.readme import with_table
from benchmarks.speed import experiments
from benchmarks.speed.comparisons import BASES, COMPARISONS, LEARNED, MODES, WHOLE
from benchmarks.speed.contestants import LABELS, Rivals, compared, contestants, learned
from benchmarks.speed.page import page
from benchmarks.speed.picture import picture
from benchmarks.speed.rounds import bar
from benchmarks.speed.settings import Settings, default_core
from benchmarks.speed.tables import grids, summary
from metarl.errors import UserError
from metarl.provenance import environment
from metarl.training.folder import write_aside, write_json

RESULT = Path(__file__).parent / "results" / "speed.json"
DOCS = Path(__file__).parents[2] / "docs"
WHOLE_IN_THEMSELVES = {**dict.fromkeys(COMPARISONS, "compared"), **dict.fromkeys(LEARNED, "learned")}
WHOLE_IN_THEMSELVES |= dict.fromkeys(WHOLE, "whole")
"""Questions whose answers can be merged into another run's, and where they stand in it."""
QUESTIONS = (*WHOLE_IN_THEMSELVES, "gorl", "gorl_bases", "flops", "compile", "flatness", "gpu")


def measure(
    settings: Settings, rivals: Rivals, only: Sequence[str], progress: Progress, quick: bool = False
) -> dict[str, Any]:
    """All answers, or those in `only` (contestants of TD3+BC, and questions), as plain data.

    Raises:
        UserError: a name in `only` is not known, or a contestant that was named cannot run.
    """
    asked = [name for name in only if name in QUESTIONS] if only else list(QUESTIONS)
    chosen = [name for name in only if name not in QUESTIONS]
    found, left_out = contestants(rivals, chosen, compiled=not quick)
    comparisons = {name: compared(name, rivals, compiled=not quick) for name in COMPARISONS if name in asked}
    beside = {name: learned(name, rivals, compiled=not quick) for name in LEARNED if name in asked}
    result: dict[str, Any] = {
        "environment": environment(),
        "load_average": {"before": os.getloadavg()[0]},
        "settings": asdict(settings),
        "left_out": left_out,
    }
    with tempfile.TemporaryDirectory() as cache:
        lab = experiments.Lab(settings, progress, Path(cache))
        if "compile" in asked and not (quick and not only):  # first: what it caches serves the others
            result["compile"] = experiments.compile_times(lab, left_out)
        if chosen or not only:
            result["sizes"] = experiments.steps(lab, found, left_out)
        if comparisons:
            result["compared"] = {
                name: experiments.compare(lab, name, each, left_out) for name, each in comparisons.items()
            }
        if beside:
            result["learned"] = {name: experiments.learned(lab, name, each, left_out) for name, each in beside.items()}
        if whole := [name for name in WHOLE if name in asked]:
            result["whole"] = {name: experiments.whole(lab, name) for name in whole}
        modes = ("recorded",) if quick else MODES
        if "gorl" in asked:
            result["gorl"] = experiments.gorl(lab, left_out, modes)
        if "gorl_bases" in asked:
            further = [base for base in BASES if base != "td3_bc"]  # which `gorl` measures
            result["gorl_bases"] = {base: experiments.gorl(lab, left_out, modes, base) for base in further}
        if "flops" in asked:
            result["flops"] = experiments.flops(lab)
        if "flatness" in asked:
            result["flatness"] = experiments.flatness(lab)
        if "gpu" in asked:
            result["gpu"] = experiments.gpu(lab, left_out)
    result["load_average"]["after"] = os.getloadavg()[0]
    return result


def merged(old: Mapping[str, Any], new: Mapping[str, Any], asked: Sequence[str]) -> dict[str, Any]:
    """`old` with the answers to `asked` from `new`, and with the facts of their run under `apart`."""
    result = {**old, "apart": dict(old.get("apart", {}))}
    facts = {name: new[name] for name in ("environment", "load_average", "settings")}
    for name in asked:
        where = WHOLE_IN_THEMSELVES[name]
        result[where] = {**result.get(where, {}), name: new[where][name]}
        result["apart"][name] = facts
    order = {where: [name for name, other in WHOLE_IN_THEMSELVES.items() if other == where] for where in result}
    for where in {WHOLE_IN_THEMSELVES[name] for name in asked}:
        result[where] = {name: result[where][name] for name in order[where] if name in result[where]}
    return result


def render(result: Mapping[str, Any], docs: Path) -> None:
    """Writes the page, its picture, and the table in the README beside the folder of pages."""
    write_aside(docs / "speed.md", page(result))
    (docs / "speed.png").write_bytes(to_png(picture(result)))
    readme = docs.parent / "README.md"
    if readme.is_file():
        write_aside(readme, with_table(readme.read_text(), summary(result), "speed table"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 2 for a mistake of the user's."""
    options = _parser().parse_args(arguments)
    if options.render:
        render(json.loads(options.out.read_text()), options.docs)
        return 0
    if options.merge and (options.quick or not options.only or set(options.only) - set(WHOLE_IN_THEMSELVES)):
        print(f"error: --merge goes with --only and names of {', '.join(WHOLE_IN_THEMSELVES)}", file=sys.stderr)
        return 2
    core = options.core if options.core is not None or options.quick else default_core()
    settings = Settings.quick(core) if options.quick else Settings(rounds=options.rounds, core=core)
    rivals = Rivals(options.corl, options.unifloral, options.unifloral_python, options.d3rlpy_python, options.gild)
    console = Console()
    try:
        with bar() as progress:
            result = measure(settings, rivals, options.only, progress, options.quick)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for grid in grids(result):
        console.print(grid.shown(), highlight=False)
    for name, reason in result["left_out"].items():
        console.print(f"left out: {LABELS.get(name, name)}, because {reason}", highlight=False, markup=False)
    if options.merge:
        result = merged(json.loads(options.out.read_text()), result, options.only)
    if options.merge or not (options.quick or options.only):
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.out, result)
        render(result, options.docs)
        print(f"written: {options.out}, {options.docs / 'speed.md'} and {options.docs / 'speed.png'}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed", description="Speed of a training step, against the rivals that are there."
    )
    parser.add_argument("--corl", type=Path, help="folder of a checkout of corl-team/CORL")
    parser.add_argument("--unifloral", type=Path, help="folder of a checkout of EmptyJackson/unifloral")
    parser.add_argument(
        "--unifloral-python", default=sys.executable, help="interpreter with jax, flax, distrax and optax"
    )
    parser.add_argument("--d3rlpy-python", help="interpreter with d3rlpy (else this one, where it has it)")
    parser.add_argument("--gild", type=Path, help="folder of a checkout of slDeng1003/GILD")
    parser.add_argument("--rounds", type=int, default=11, help="at least 7 for figures that are published")
    parser.add_argument("--core", type=int, help="the CPU core that all contestants are pinned to (the last one)")
    names = ", ".join((*LABELS, *QUESTIONS))
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help=f"of {names}; writes nothing")
    parser.add_argument("--merge", action="store_true", help="with --only: put the answers into the JSON and the page")
    parser.add_argument("--quick", action="store_true", help="a few tiny rounds, to see that it runs; writes nothing")
    parser.add_argument("--render", action="store_true", help="write page and picture from the JSON; measure nothing")
    parser.add_argument("--out", type=Path, default=RESULT, help="where the JSON goes")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where page and picture go")
    return parser


if __name__ == "__main__":
    sys.exit(main())
