"""The pages of docs/ run as they are printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import results

DOCS = Path(__file__).parents[2] / "docs"
SHORT = ("steps=20", "evaluation.every=10", "evaluation.episodes=1", "data.train.size=600", "data.guide.size=600")


def blocks(page: str) -> list[tuple[str, str]]:
    """(file name, text) of every block that the page says is a file, in order."""
    found = re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    assert found
    return found


def commands(page: str) -> list[str]:
    """The command lines of the page's sh blocks."""
    return "".join(re.findall(r"```sh\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)).splitlines()


@pytest.fixture
def folder(tmp_path):
    """The folder that a reader has at the end of the page."""
    for name, text in blocks("learned_loss.md"):
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_learned_loss_takes_at_most_forty_lines():
    _, text = [block for block in blocks("learned_loss.md") if block[0] == "trust.py"][-1]
    assert len(text.splitlines()) <= 40


@pytest.mark.parametrize("version", [0, 1])
def test_every_version_of_the_learned_loss_passes_the_check(metarl, tmp_path, version):
    versions = [text for name, text in blocks("learned_loss.md") if name == "trust.py"]
    (tmp_path / "trust.py").write_text(versions[version])
    assert "metarl check trust:Trust" in commands("learned_loss.md")
    printed = metarl(tmp_path, "check", "trust:Trust", "--no-compile").stdout
    assert "FAILED" not in printed and "warning" not in printed


@pytest.mark.parametrize(
    ("sound", "mistaken", "words"),
    [
        ("weight), {**", "weight.detach()), {**", ["FAILED reached", "'trust'", "detach at", "trust.py:24"]),
        (" + 1e-3)", ")", ["FAILED edges", "div at", "trust.py:22"]),
    ],
)
def test_the_mistakes_that_the_page_suggests_are_found(metarl, folder, sound, mistaken, words):
    text = (folder / "trust.py").read_text()
    assert text.count(sound) == 1
    (folder / "trust.py").write_text(text.replace(sound, mistaken))
    printed = metarl(folder, "check", "trust:Trust", "--no-compile", expect=1).stdout
    for word in words:
        assert word in printed


@pytest.mark.slow
def test_the_comparison_runs_as_printed(metarl, folder):
    """The suite and its report, with few steps and small datasets that the session has made already."""
    assert "metarl bench compare.yaml" in commands("learned_loss.md")
    metarl(folder, "bench", "compare.yaml", "seeds=[0]", *SHORT)
    assert "metarl report runs/trust" in commands("learned_loss.md")
    printed = metarl(folder, "report", "runs/trust").stdout
    for method in ("TD3+BC", "GORL", "Trust"):
        assert method in printed
    loaded = results.load(folder / "runs" / "trust")
    assert [len(cell.finished) for cell in loaded.cells] == [1, 1, 1]
    (mine,) = [cell.runs[0] for cell in loaded.cells if cell.row == "Trust"]
    for metric in ("trust/hypergradient_norm", "trust/params_moved", "actor/weight"):
        assert metric in mine.scalars


def test_the_problem_of_ones_own_is_solved_as_printed(metarl, tmp_path):
    ((name, text),) = blocks("known_answers.md")
    (tmp_path / name).write_text(text)
    assert "metarl solve shrink:Shrink" in commands("known_answers.md")
    printed = metarl(tmp_path, "solve", "shrink:Shrink", "--seed", 0, "--progress", "none").stdout
    assert "ok" in printed and "missed" not in printed
    assert len(text.splitlines()) < 40
