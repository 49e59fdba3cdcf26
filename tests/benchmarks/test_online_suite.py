"""Suites whose experiments meet an environment: planned, run, reported, and kept as one file."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import results
from benchmarks.running import suite

SHORT = ("steps=40", "evaluation.every=20", "evaluation.episodes=1", "online.random_steps=10", "seeds=[0]")
TWO_PHASES = """
name: phases
base:
  algorithm: {name: td3_bc, hidden: [8], batch_size: 16}
  data: {train: {recipe: pendulum/medium, size: 600}}
  steps: {offline: 20, online: 20}
  device: cpu
  evaluation: {every: 10, episodes: 1}
axes:
  batches:
    replay only: {online: {from_data: 0.0}}
    half from the data: {online: {from_data: 0.5}}
  dataset:
    pendulum: {}
seeds: [0]
"""


@pytest.mark.parametrize("name", ["online_pendulum", "online_halfcheetah"])
def test_the_shipped_suites_are_sound(name):
    loaded = suite.load(suite.find(name))
    assert all(cell.experiment.online and not cell.experiment.data for cell in loaded.cells)


@pytest.mark.slow
def test_a_suite_without_any_data(metarl, tmp_path):
    planned = metarl(tmp_path, "bench", "online_pendulum", *SHORT, "--dry-run").stdout
    assert "3 runs" in planned
    metarl(tmp_path, "bench", "online_pendulum", *SHORT, "--no-estimate")
    printed = metarl(tmp_path, "report", "runs/online_pendulum").stdout
    for algorithm in ("DDPG", "TD3", "SAC"):
        assert algorithm in printed
    loaded = results.load(tmp_path / "runs" / "online_pendulum")
    assert [len(cell.finished) for cell in loaded.cells] == [1, 1, 1]
    assert {cell.runs[0].env for cell in loaded.cells} == {"Pendulum-v1"}
    assert [step for step in loaded.cells[0].runs[0].scalars["evaluation/return"].steps] == [0, 20, 40]
    kept = results.load(tmp_path / "runs" / "online_pendulum" / "report" / "results.parquet")
    assert [cell.steps for cell in kept.cells] == [40, 40, 40]


def test_a_suite_of_two_phases(metarl, tmp_path):
    (tmp_path / "phases.yaml").write_text(TWO_PHASES)
    metarl(tmp_path, "bench", "phases.yaml", "--no-estimate")
    loaded = results.load(tmp_path / "runs" / "phases")
    assert loaded.counted == "steps"
    assert [(len(cell.finished), cell.steps) for cell in loaded.cells] == [(1, 40), (1, 40)]


@pytest.mark.slow
def test_runs_without_a_suite_are_named_after_their_environment(metarl, tmp_path):
    (tmp_path / "one.yaml").write_text(
        "algorithm: {name: td3, hidden: [8]}\nonline: {env: Pendulum-v1, random_steps: 5}\nsteps: 20\n"
        "evaluation: {every: 10, episodes: 1}\n"
    )
    metarl(tmp_path, "train", "one.yaml")
    printed = metarl(tmp_path, "report", "runs").stdout
    assert "td3" in printed and "Pendulum-v1" in printed


@pytest.mark.parametrize(
    ("name", "counted"), [("online_pendulum", "environment steps"), ("gorl_table_i-small", "gradient steps")]
)
def test_what_a_figure_counts(name, counted):
    kept = Path(results.__file__).parent / "results" / f"{name}.parquet"
    assert results.load(kept).counted == counted
