"""Measures and writes benchmarks/results/profile.json, and docs/profile.md and docs/profile.png from it."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.drawing import to_png
from benchmarks.profile import step
from benchmarks.profile.page import page
from benchmarks.profile.picture import picture
from benchmarks.profile.run import CASES, Case, measure
from metarl.data.recipes import make_dataset
from metarl.errors import UserError
from metarl.process import settle
from metarl.provenance import environment
from metarl.training.folder import write_aside, write_json

RESULT = Path(__file__).parents[1] / "results" / "profile.json"
DOCS = Path(__file__).parents[2] / "docs"
STEP = "hopper"  # the case whose compiled step is looked into


def tiny(case: Case) -> Case:
    """An experiment with the same title on networks that are made at once."""
    experiment = {
        "algorithm": {"name": "bc", "hidden": [8], "batch_size": 16},
        "data": {"train": {"recipe": "pendulum/medium", "size": 400}},
        "steps": 24,
        "log_every": 3,
        "evaluation": {"every": 6, "episodes": 2},
    }
    return replace(case, experiment=experiment, steps=12)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 2 for a mistake of the user's."""
    options = _parser().parse_args(arguments)
    settle()
    try:
        if options.render:
            render(json.loads(options.out.read_text()), options.docs)
        elif options.child:
            _child(options.child, options.out)
        else:
            result = _everything(options.quick)
            print(page(result))
            if not options.quick:
                options.out.parent.mkdir(parents=True, exist_ok=True)
                write_json(options.out, result)
                render(result, options.docs)
                print(f"written: {options.out}, {options.docs / 'profile.md'} and {options.docs / 'profile.png'}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def render(result: Mapping[str, Any], docs: Path) -> None:
    """Writes the page and its picture."""
    write_aside(docs / "profile.md", page(result))
    (docs / "profile.png").write_bytes(to_png(picture(result)))


def _everything(quick: bool) -> dict[str, Any]:
    cases = {STEP: tiny(CASES[STEP])} if quick else CASES
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MINARI_DATASETS_PATH"] = folder
        for source in {str(s): s for case in cases.values() for s in case.experiment["data"].values()}.values():
            make_dataset(source["recipe"], source["size"])
        runs = {name: measure(case, Path(folder)) if quick else _in_a_process(name) for name, case in cases.items()}
        looked = _look(cases[STEP], steps=4, rounds=1) if quick else _in_a_process("step")
    return {
        "environment": environment(),
        "load_average": {"before": load, "after": os.getloadavg()[0]},
        "runs": runs,
        "step": looked,
    }


def _in_a_process(name: str) -> dict[str, Any]:
    """What a fresh process measures: it has imported nothing, compiled nothing, and compiles on this one thread."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        settings = {"TORCHINDUCTOR_COMPILE_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": folder, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "benchmarks.profile", "--child", name, "--out", str(out)]
        if subprocess.run(command, env=os.environ | settings).returncode:
            raise UserError(f"measuring {name!r} failed; what it said stands above")
        found: dict[str, Any] = json.loads(out.read_text())
    return found


def _child(name: str, out: Path) -> None:
    if name == "step":
        write_json(out, _look(CASES[STEP], steps=200, rounds=15))
        return
    with tempfile.TemporaryDirectory() as root:
        write_json(out, measure(CASES[name], Path(root)))


def _look(case: Case, steps: int, rounds: int) -> dict[str, Any]:
    return {"what": case.what, **step.examine(case.experiment, steps, rounds)}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.profile", description="Where the CPU time of a run, and of a compiled step, goes."
    )
    parser.add_argument("--out", type=Path, default=RESULT, help="the JSON file")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of profile.md and profile.png")
    parser.add_argument("--quick", action="store_true", help="one tiny run, to see that it works; writes nothing")
    parser.add_argument("--render", action="store_true", help="write page and picture from the JSON; measure nothing")
    parser.add_argument("--child", choices=(*CASES, "step"), help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
