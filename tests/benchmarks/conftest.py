"""A small real suite: three cells, one of which cannot survive, two seeds each, run once for the session."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from metarl.data.recipes import make_dataset

SUITE = """
name: small
base:
  steps: 20
  device: cpu
  evaluation: {every: 5, episodes: 2}
axes:
  method:
    BC: {algorithm: {name: bc, hidden: [8], batch_size: 16}}
    "TD3+BC + GORL":
      algorithm: {name: td3_bc, hidden: [8], batch_size: 16}
      objective: {name: gorl, preset: quick, batch_size: 5}
    broken: {algorithm: {name: "mine:Mine", hidden: [8], optimizer: {name: sgd, lr: 1.0e+30}}}
  dataset:
    pendulum:
      data:
        train: {recipe: pendulum/medium, size: 600}
        guide: {recipe: pendulum/expert, size: 600, tuples: 50}
seeds: [0, 1]
"""

MINE = """
import subprocess

from algorithms.bc import BC

class Mine(BC):
    'An algorithm in a file beside the suite, which prints what looks like progress and is none.'

    def build(self, spec, generator):
        print('{"title": "mine"}', flush=True)
        subprocess.run(["echo", '{"done": "never"}'])
        return super().build(spec, generator)
"""

Metarl = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pendulum/medium and pendulum/expert of 600 transitions, in a Minari root of this session."""
    root = tmp_path_factory.mktemp("datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(root))
        for level in ("medium", "expert"):
            make_dataset(f"pendulum/{level}", 600)
    return root


@pytest.fixture(autouse=True)
def datasets(made: Path) -> Iterator[Path]:
    """That root for every test here, whatever other folders' tests have set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(made))
        yield made


@pytest.fixture(scope="session")
def metarl() -> Metarl:
    """`metarl(cwd, *arguments, expect=0)`: the command line in a process of its own."""

    def call(cwd: Path, *arguments: object, expect: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "metarl", *map(str, arguments)],
            cwd=cwd,
            capture_output=True,
            text=True,
            env=os.environ | {"COLUMNS": "200"},
        )
        assert done.returncode == expect, done.stdout + done.stderr
        return done

    return call


@pytest.fixture(scope="session")
def bench(
    made: Path, tmp_path_factory: pytest.TempPathFactory, metarl: Metarl
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder where the suite ran (own/suite.yaml and runs/small lie in it), and what the command printed."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "own").mkdir()
    (folder / "own" / "suite.yaml").write_text(SUITE)
    (folder / "own" / "mine.py").write_text(MINE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(made))
        return folder, metarl(folder, "bench", "own/suite.yaml", expect=1)


@pytest.fixture
def suite_file(tmp_path: Path) -> Path:
    """The suite's file, to be changed."""
    file = tmp_path / "suite.yaml"
    file.write_text(SUITE)
    (tmp_path / "mine.py").write_text(MINE)
    return file
