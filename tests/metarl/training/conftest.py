"""A small real experiment on Pendulum data made once for the session."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from metarl import config
from metarl.data.recipes import make_dataset
from metarl.training import offline
from metarl.training.progress import Silent

EXPERIMENT = """
name: small
algorithm: {name: td3_bc, hidden: [8, 8], batch_size: 16}
objective: {name: gorl, preset: quick, batch_size: 5}
data:
  train: {recipe: pendulum/medium, size: 1000}
  guide: {recipe: pendulum/expert, size: 1000, tuples: 50}
steps: 60
seeds: [0]
device: cpu
log_every: 5
evaluation: {every: 20, episodes: 2}
"""


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """pendulum/medium and pendulum/expert of 1,000 transitions, and navigation/detour, in one Minari root."""
    root = tmp_path_factory.mktemp("datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(root))
        for level in ("medium", "expert"):
            make_dataset(f"pendulum/{level}", 1000)
        make_dataset("navigation/detour", 300)
    return root


@pytest.fixture(autouse=True)
def datasets(made):
    """That root for every test here, whatever other folders' tests have set; `monkeypatch.undo()` leaves it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(made))
        yield made


@pytest.fixture
def yaml(tmp_path) -> Path:
    """The experiment's file."""
    file = tmp_path / "experiment.yaml"
    file.write_text(EXPERIMENT)
    return file


@pytest.fixture
def run(yaml, tmp_path):
    """`run(*overrides, root="runs", seed=0, reporter=Silent())`: trains, and returns the run's folder."""

    def train(*overrides, root="runs", seed=0, reporter=None):
        experiment = config.load(yaml, overrides)
        return offline.train(experiment, seed, tmp_path / root, reporter or Silent())

    return train


@pytest.fixture
def command(yaml, tmp_path):
    """The command line that trains the same in another process."""
    return [sys.executable, "-m", "metarl", "train", str(yaml), "--progress", "lines", "--root"]
