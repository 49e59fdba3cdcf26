"""`metarl check`: what it prints, and its exit codes."""

import json
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from metarl import registry
from metarl.checking.command import check

KINKED = ("gild", "meta_critic")  # their networks are ReLU, as published


@pytest.fixture
def metarl(beside):
    def call(*arguments, expect=0):
        done = subprocess.run(
            [sys.executable, "-m", "metarl", "check", *arguments], cwd=beside, capture_output=True, text=True
        )
        assert done.returncode == expect, done.stderr
        return done

    return call


@pytest.fixture
def quick(beside):
    app = typer.Typer()
    app.command()(check)

    def call(*arguments, expect=0):
        done = CliRunner().invoke(app, ["--no-compile", "--beside", str(beside), *arguments])
        assert done.exit_code == expect, done.output
        return done.stdout

    return call


def test_a_sound_objective_exits_with_0(quick):
    printed = quick("gorl", "preset=quick")
    lines = printed.splitlines()
    assert lines[0] == "gorl over td3_bc"
    rows = {line.split()[0]: line.split()[1] for line in lines[2:]}
    assert rows == {
        **dict.fromkeys(("runs", "shapes", "dtypes", "broadcasting", "purity", "reached", "moments"), "ok"),
        **dict.fromkeys(("gradient", "edges", "signal", "stacks"), "ok"),
        "cost": "info",
    }


def test_a_broken_one_exits_with_1_and_names_the_line(metarl):
    printed = metarl("broken:Detached", "--no-compile", expect=1).stdout
    (told,) = [line for line in printed.splitlines() if line.startswith("FAILED")]
    assert (
        told.startswith("FAILED reached: update 'weight'") and "broken.py:" in told and told.endswith("leave that out.")
    )


def test_a_users_mistake_is_one_line_and_exit_code_2(metarl):
    done = metarl("broken:Detatched", expect=2)
    assert done.stderr.count("\n") == 1 and "Did you mean 'Detached'?" in done.stderr


def test_all_prints_one_line_each(quick):
    lines = [line.split()[:2] for line in quick("--all").splitlines()]
    assert lines == [["warning" if name in KINKED else "ok", name] for name in registry.names("metarl.objectives")]


@pytest.mark.slow
def test_all_with_v_prints_the_tables(quick):
    printed = quick("--all", "-v")
    assert printed.count("broadcasting") == len(registry.names("metarl.objectives"))
    assert "relative error guiding_network" in printed


def test_json(quick):
    report = json.loads(quick("broken:FreshAdam", "--json", expect=1))
    assert (report["objective"], report["algorithm"], report["status"]) == ("broken:FreshAdam", "td3_bc", "FAILED")
    (failed,) = [f for f in report["findings"] if f["status"] == "FAILED"]
    assert failed["check"] == "moments" and "fresh adam" in failed["problem"] and failed["update"] == "weight"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give --all"),
        (["gorl", "--all"], "give --all"),
        (["gorl", "every"], "key=value"),
        (["gorl", "every=two"], "every"),
        (["gorl", "--algorithm", "bc"], "no policy improvement"),
    ],
)
def test_mistakes_say_what_to_do(arguments, words):
    app = typer.Typer()
    app.command()(check)
    done = CliRunner().invoke(app, arguments)
    assert words in str(done.exception) and type(done.exception).__name__ == "ConfigError"
