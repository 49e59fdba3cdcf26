"""The same short suite through `metarl bench --jobs 1` and `--jobs 2`, in turn, each from nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metarl.config import to_yaml
from metarl.errors import UserError

JOBS = (1, 2)


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        runs: of the suite, one seed each.
        steps: of a run.
        hidden: widths of its networks.
        rounds: how often all is measured.
    """

    runs: int = 8
    steps: int = 2500
    hidden: tuple[int, ...] = (256, 256)
    rounds: int = 3

    @property
    def suite(self) -> dict[str, Any]:
        """Its YAML: TD3+BC, eagerly, so that no compiler's cache says how long a run takes."""
        return {
            "name": "short",
            "base": {
                "algorithm": {"name": "td3_bc", "hidden": list(self.hidden)},
                "data": {"train": {"recipe": "pendulum/medium", "size": 20000}},
                "steps": self.steps,
                "compile": "off",
                "device": "cpu",
                "evaluation": {"every": max(1, self.steps // 4), "episodes": 5},
            },
            "axes": {"method": {"TD3+BC": {}}},
            "seeds": list(range(self.runs)),
        }


def measure(plan: Plan, folder: Path) -> list[dict[str, Any]]:
    """One mapping a round: seconds of importing torch, of starting the command, and of the suite by its `--jobs`.

    Raises:
        UserError: a command failed; what it said stands above.
    """
    file = folder / "suite.yaml"
    file.write_text(to_yaml(plan.suite))
    command = [sys.executable, "-m", "metarl", "bench", str(file), "--root", str(folder / "runs")]
    rounds = []
    for i in range(plan.rounds):
        found: dict[str, Any] = {
            "import_torch": _seconds([sys.executable, "-c", "import torch"]),
            "start": _seconds([*command, "--dry-run", "--no-estimate"]),
        }
        for jobs in JOBS if i % 2 == 0 else reversed(JOBS):
            shutil.rmtree(folder / "runs", ignore_errors=True)
            wall = _seconds([*command, "--jobs", str(jobs)])
            found[f"jobs_{jobs}"] = {"seconds": wall, "loops": _loops(folder / "runs", plan.runs)}
        rounds.append(found)
    return rounds


def _loops(root: Path, runs: int) -> list[float]:
    """Seconds that each run spent in its training loop, evaluations and checkpoints included."""
    files = sorted(root.glob("*/*/*/cost.json"))
    if len(files) != runs:
        raise UserError(f"{root} has {len(files)} runs with a cost.json, and should have {runs}")
    return [float(json.loads(file.read_text())["seconds"]) for file in files]


def _seconds(command: Sequence[str]) -> float:
    start = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.DEVNULL, env=_environment())
    if done.returncode:
        raise UserError(f"`{' '.join(command[1:4])}` failed with exit status {done.returncode}")
    return time.monotonic() - start


def _environment() -> Mapping[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}
