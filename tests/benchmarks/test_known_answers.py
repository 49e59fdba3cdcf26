"""`metarl solve` and the record of all answers."""

import json
from pathlib import Path

import pytest

from benchmarks import known_answers
from benchmarks.readme import with_table
from metarl import cli, registry

ROOT = Path(__file__).parents[2]

MINE = """
from dataclasses import dataclass
import torch
from metarl import Learner, Unrolled, Update, sgd
from metarl.problems import Bound, Instance, Problem, no_policy

@dataclass(frozen=True)
class Mine(Problem):
    '''min_b (x - 0.1 (x - b))^2'''
    steps: int = 3
    expected = {"b": Bound("by hand", least=LEAST)}

    def build(self, seed):
        outer = Update("b", "b", lambda t, b: (t["x"]["x"] - 1).square(), sgd(1.0), Unrolled("x"))
        virtual = {"x": Update("x", "x", lambda t, b: (t["x"]["x"] - t["b"]["b"]).square() / 2, sgd(0.5))}
        tensors = {"x": {"x": torch.zeros(())}, "b": {"b": torch.zeros(())}}
        learner = Learner({}, ((outer,),), no_policy, tensors, virtual)
        return Instance(learner, lambda step: {}, lambda learner, state: {"b": float(state.tree["b"]["b"])})
"""


@pytest.fixture
def metarl(monkeypatch, capsys, tmp_path):
    """`metarl(*arguments)`: exit status, standard output and standard error, from a folder with mine.py."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["metarl", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        printed = capsys.readouterr()
        return stopped.value.code or 0, printed.out, printed.err

    return call


@pytest.mark.parametrize(("least", "status", "word"), [(1.0, 0, "ok"), (3.0, 1, "missed")])
def test_ones_own_problem_and_its_exit_status(metarl, tmp_path, least, status, word):
    (tmp_path / "mine.py").write_text(MINE.replace("LEAST", str(least)))
    code, out, err = metarl("solve", "mine:Mine", "--seed", 0, "--progress", "none")
    # b <- b - 2 (b / 2 - 1) / 2 = b / 2 + 1
    line = next(line for line in out.splitlines() if line.startswith("b "))
    assert code == status and line.split() == ["b", "1.75", ">=", f"{least:g}", word] and err == ""
    assert "b: by hand" in out and "mine:Mine, seed 0: 3 steps each" in out


def test_settings_and_seeds_reach_the_problem(metarl):
    code, out, _ = metarl("solve", "learning_rate", "steps=100", "--seed", 4, "--seed", 5, "--progress", "none")
    assert code == 1 and "learning_rate, seed 4, 5: 100 steps each" in out  # too few steps for the last answer
    assert [line.split()[-1] for line in out.splitlines() if line.startswith(("error", "rate_over"))][:3] == [
        "ok",
        "ok",
        "missed",
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["cleening"], "no problem called 'cleening'. Did you mean 'cleaning'?"),
        (["cleaning", "stepz=3"], "Did you mean 'steps'?"),
        (["cleaning", "steps=0"], "steps must be at least 1, not 0"),
        (["cleaning", "steps"], "'steps' is not of the form key=value"),
        (["cleaning", "--seed", "-1"], "--seed must be 0 or more"),
        (["cleaning", "--progress", "bars"], "auto, bar, lines or none"),
        (["metarl.problems:Bound", "source=x"], "is no problem; derive it from metarl.problems.Problem"),
    ],
)
def test_a_users_mistake_is_one_line(metarl, arguments, words):
    code, out, err = metarl("solve", *arguments)
    assert code == 2 and out == "" and err.startswith("error: ") and words in err and err.count("\n") == 1


def test_the_record_and_the_page_come_from_one_measurement(tmp_path, capsys):
    result, page = tmp_path / "known.json", tmp_path / "page.md"
    result.write_text(json.dumps({"another": record("another")}))
    page.write_text("before\n<!-- known answers -->\nold\n<!-- end of known answers -->\nafter\n")
    arguments = ["--problem", "learning_rate", "--result", str(result), "--page", str(page), "--progress", "none"]
    assert known_answers.main(arguments) == 0
    assert "learning_rate, seeds 0, 1, 2" in capsys.readouterr().out
    written = json.loads(result.read_text())
    assert set(written) == {"another", "learning_rate"}
    ours = written["learning_rate"]
    assert ours["settings"]["steps"] == 1000 and ours["environment"]["torch"] and len(ours["seconds"]) == 3
    assert [len(figure["values"]) for figure in ours["figures"]] == [3] * 4
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert text.count("| learning_rate |") == 4 and "| another | f | 1 |" in text


def test_the_committed_page_shows_the_committed_record():
    results = json.loads(known_answers.RESULT.read_text())
    assert set(results) == set(registry.names("metarl.problems"))
    page = (ROOT / known_answers.PAGE).read_text()
    assert with_table(page, known_answers.markdown(results), "known answers") == page
    for result in results.values():
        assert all(figure["holds"] for figure in result["figures"] if figure["known"])


def record(name):
    figure = {"figure": "f", "values": [1.0], "shown": "1", "known": None, "p": None, "holds": None, "verdict": ""}
    environment = {"python": "3", "torch": "2", "machine": "a machine"}
    return {"seeds": [0], "seconds": [1.0], "environment": environment, "figures": [figure]}
