"""The command line: what it prints, and exit code 2 with one line for a user's mistake."""

import json
import subprocess
import sys

import pytest


@pytest.fixture
def metarl(tmp_path):
    def call(*arguments, expect=0):
        done = subprocess.run(
            [sys.executable, "-m", "metarl", *map(str, arguments)], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == expect, done.stderr
        return done

    return call


def test_train_then_eval(metarl, yaml):
    trained = metarl("train", yaml, "steps=20", "--progress", "none")
    folder = trained.stdout.split("run folder: ")[1].strip()
    once, twice = (metarl("eval", folder, "--episodes", 2, "--json").stdout for _ in range(2))
    assert once == twice and len(json.loads(once)["returns"]) == 2
    assert "step 20: return" in metarl("eval", folder, "--episodes", 1).stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "none.yaml"], "no file none.yaml"),
        (["train", "YAML", "stps=3"], "Did you mean 'steps'?"),
        (["train", "YAML", "data.train.size=800"], "metarl data make pendulum/medium --size 800"),
        (["eval", "."], "holds no run"),
        (["list", "gorll"], "Did you mean 'gorl'?"),
        (["data", "inspect", "pendulum/mediun"], "medium"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(metarl, yaml, arguments, words):
    done = metarl(*[yaml if a == "YAML" else a for a in arguments], expect=2)
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert words in done.stderr


def test_config_prints_yaml_that_builds_the_same(metarl, yaml, tmp_path):
    printed = metarl("config", yaml).stdout
    (tmp_path / "whole.yaml").write_text(printed)
    assert metarl("config", "whole.yaml").stdout == printed


def test_list(metarl):
    listed = metarl("list").stdout
    for name in ("td3_bc", "gorl", "unrolled", "adamw", "pendulum", "bench"):
        assert name in listed
    assert "weight of the constraint" in " ".join(metarl("list", "fixed").stdout.split())


def test_list_of_one_kind_and_settings_from_docstrings(metarl):
    listed = metarl("list", "estimators").stdout
    rows = {line.split()[0]: line.split()[1:3] for line in listed.splitlines() if line and line[0] != " "}
    assert rows["unrolled"] == rows["implicit"] == rows["forward_mode"] == ["yes", "yes"]
    kinds = metarl("list", "optimizers").stdout
    assert "rmsprop" in kinds and "td3_bc" not in kinds
    settings = " ".join(metarl("list", "forward_mode").stdout.split())
    assert "virtual steps. They reuse one batch" in settings and "whose tangents are carried at once" in settings
