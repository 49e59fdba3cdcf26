"""`metarl data`: what is printed, drawn and refused."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from metarl.data.commands import app, histogram
from metarl.data.minari import load_minari
from metarl.data.recipes import make_dataset
from metarl.errors import DataError, DatasetUnavailable


@pytest.fixture
def command(monkeypatch):
    """`command(*arguments)`: the output; what a user did wrong is raised, as the command line's main expects."""
    monkeypatch.setenv("COLUMNS", "80")
    runner = CliRunner()

    def run(*arguments) -> str:
        result = runner.invoke(app, [str(argument) for argument in arguments])
        if result.exception is not None:
            run.output = result.output
            raise result.exception
        return result.output

    return run


def test_make_several_then_say_that_they_are_there(command):
    output = command("make", "pendulum/medium", "pendulum/expert", "--size", 400, "--seed", 3)
    lines = [line for line in output.splitlines() if line.strip()]
    assert len(lines) == 2
    for line, level in zip(lines, ("medium", "expert"), strict=True):
        data = load_minari(f"metarl/pendulum/{level}-400-s3-v1")
        assert line.startswith(f"{data.card.dataset_id}: 400 transitions, 2 episodes, mean return ")
        assert f"{data.card.returns['mean']:,.1f}" in line and data.card.sha256[:12] in line
    again = command("make", "pendulum/medium", "--size", 400, "--seed", 3)
    assert "is already here" in again and "--force" in again
    assert "is already here" not in command("make", "pendulum/medium", "--size", 400, "--seed", 3, "--force")


def test_one_mistake_stops_before_any_work(command, minari_root):
    with pytest.raises(DataError, match="Did you mean 'medium'"):
        command("make", "pendulum/expert", "pendulum/medum", "--size", 400)
    assert list(minari_root.iterdir()) == []


def test_list_shows_recipes_and_what_is_here(command, write):
    assert "make one: metarl data make pendulum/medium" in command("list")
    data = make_dataset("pendulum/expert", 400).transitions
    write()
    output = command("list")
    for level in ("random", "medium", "expert", "medium-expert"):
        assert f"pendulum/{level} " in output
    (mine,) = [line for line in output.splitlines() if "metarl/pendulum/expert-400-s0-v1" in line]
    assert mine.split()[1:] == ["400", "2", f"{data.card.returns['mean']:,.1f}", "0.1", "MB"]
    (foreign,) = [line for line in output.splitlines() if "tests/counting-v0" in line]
    assert foreign.split()[1:4] == ["9", "3", "-"]


def test_inspect_prints_counts_ranges_histograms_and_the_card(command):
    data = make_dataset("pendulum/medium", 4000).transitions
    output = command("inspect", "pendulum/medium", "--size", 4000)
    assert output == command("inspect", data.card.dataset_id)
    assert "4,000 transitions, 20 episodes, 0 terminated, 20 truncated" in output
    assert f"episode returns: mean {data.card.returns['mean']:,.1f}" in output
    assert "episode lengths: all 200 (20)" in output
    assert "█" in output and data.card.sha256 in output and '"status": "' in output
    (speed,) = [line for line in output.splitlines() if " obs[2] " in line]
    assert speed.split("│")[2].strip() == f"{data.obs[:, 2].min().item():,.4g}"


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_a_picture_of_all_levels(command, tmp_path, suffix):
    for level in ("medium", "expert"):
        make_dataset(f"pendulum/{level}", 400)
    path = tmp_path / f"picture.{suffix}"
    assert f"picture: {path}" in command("inspect", "pendulum/medium", "--size", 400, "--picture", path)
    assert path.stat().st_size > 10_000


def test_a_picture_of_a_foreign_dataset(command, tmp_path, write):
    path = tmp_path / "picture.png"
    command("inspect", write(), "--picture", path)
    assert path.stat().st_size > 10_000


@pytest.mark.parametrize(("name", "message"), [("p.jpg", "must end in .png"), ("no/p.png", "there is no folder")])
def test_a_picture_that_cannot_be_written_is_refused_first(command, tmp_path, name, message):
    with pytest.raises(DataError, match=message):
        command("inspect", "foo/bar-v0", "--picture", tmp_path / name)


def test_inspect_shows_missing_values_and_then_refuses(command, write, minari_root):
    dataset_id = write()
    with h5py.File(minari_root / dataset_id / "data" / "main_data.hdf5", "a") as file:
        file["episode_2/observations"][1:3, 1] = np.nan
        file["episode_0/rewards"][0] = np.inf
    with pytest.raises(DataError, match=r"obs\[1\] is nan in row 5"):
        command("inspect", dataset_id)
    cells = {line.split("│")[1].strip(): line.split("│")[-3:-1] for line in command.output.splitlines() if "│" in line}
    counts = {name: [int(cell) for cell in pair] for name, pair in cells.items()}
    assert counts["obs[1]"] == [2, 0] and counts["next_obs[1]"] == [2, 0] and counts["reward"] == [0, 1]
    assert counts["obs[0]"] == [0, 0]


def test_inspect_of_what_is_not_here_gives_the_command(command):
    with pytest.raises(DatasetUnavailable, match="metarl data import foo/bar-v0"):
        command("inspect", "foo/bar-v0")
    with pytest.raises(DatasetUnavailable, match="metarl data make pendulum/random --size 400 --seed 1"):
        command("inspect", "pendulum/random", "--size", 400, "--seed", 1)


@pytest.mark.parametrize("suffix", ["npz", "hdf5"])
def test_export_inspect_and_import_a_file(command, tmp_path, suffix):
    data = make_dataset("pendulum/medium", 4000).transitions
    path = tmp_path / f"rows.{suffix}"
    counts = f"4,000 transitions, 20 episodes, mean return {data.card.returns['mean']:,.1f}"
    assert counts in command("export", "pendulum/medium", path, "--size", 4000)
    output = command("inspect", path, "--picture", tmp_path / "picture.png")
    assert "4,000 transitions, 20 episodes, 0 terminated, 20 truncated" in output and data.card.sha256 in output
    of_the_dataset = command("inspect", data.card.dataset_id)
    for shared in (" next_obs[2] ", " truncated ", "episode lengths"):
        (mine,), (theirs,) = ([x for x in text.splitlines() if shared in x] for text in (output, of_the_dataset))
        assert mine.split() == theirs.split()
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    assert counts in command("import", path, "--as", "tests/imported-v0")
    assert torch.equal(load_minari("tests/imported-v0").rows, data.rows)
    assert counts in command("import", path, "--as", "tests/imported-v0", "--force")


def test_importing_asks_for_what_it_needs(command, tmp_path):
    zeros = np.zeros((3, 2))
    flags = {"terminals": np.array([0, 0, 1], bool), "rewards": np.zeros(3)}
    np.savez(tmp_path / "rows.npz", observations=zeros, next_observations=zeros, actions=zeros, **flags)
    with pytest.raises(DataError, match=r"give the id that .* is to have: --as"):
        command("import", tmp_path / "rows.npz")
    with pytest.raises(DataError, match="names no environment; give one with --env"):
        command("import", tmp_path / "rows.npz", "--as", "tests/rows-v0")
    with pytest.raises(DataError, match="--as and --env are for files"):
        command("import", "tests/rows-v0", "--env", "Pendulum-v1")


def test_what_is_here_is_not_downloaded_again(command, write):
    assert "tests/counting-v0: 9 transitions, 3 episodes" in command("import", write())


def test_inspect_puts_d4rls_score_beside_the_return(command, tmp_path):
    data = make_dataset("hopper/random", 1000).transitions
    output = " ".join(command("inspect", "hopper/random", "--size", 1000).split())
    mean = data.card.returns["mean"]
    assert f"mean return {mean:,.1f} (D4RL score {100 * (mean + 20.272305) / 3254.572305:,.1f}; references" in output
    assert "D4RL" not in command("inspect", make_dataset("pendulum/expert", 400).dataset_id)


def test_a_histogram_counts_everything_once():
    values = np.concatenate([np.zeros(990), np.arange(10.0)])
    text = histogram("x", values, bins=5).plain.splitlines()
    assert [int(line.split()[-1]) for line in text[1:]] == [992, 2, 2, 2, 2]
    assert text[0] == "x: mean 0.0, from 0.0 to 9.0"
    assert all("▏" in line for line in text[2:])
