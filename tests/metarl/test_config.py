"""Experiments from YAML: what merges, what is refused, and with which words."""

import textwrap

import pytest

from algorithms.td3_bc import TD3BC
from metarl import config
from metarl.errors import ConfigError
from objectives.gorl import GORL

BASE = """
name: test
algorithm: {name: td3_bc, alpha: 1.5}
objective: {name: gorl, preset: quick, net: {hidden: [7]}, virtual: null}
data:
  train: {recipe: pendulum/medium, size: 400}
  guide: {recipe: pendulum/expert, tuples: 20}
steps: 100
evaluation: {every: 50}
"""


@pytest.fixture
def load(tmp_path):
    def load(text=BASE, *overrides):
        file = tmp_path / "experiment.yaml"
        file.write_text(textwrap.dedent(text))
        return config.load(file, overrides)

    return load


def test_components_are_built_with_defaults_presets_and_settings(load):
    experiment = load()
    assert isinstance(experiment.algorithm, TD3BC) and experiment.algorithm.alpha == 1.5
    (gorl,) = experiment.objectives
    assert isinstance(gorl, GORL)
    assert gorl.every == 2 and gorl.optimizer.hparams["lr"] == GORL.presets["quick"]["optimizer"]["lr"]
    assert gorl.net.hidden == (7,) and gorl.net.output == "sigmoid"
    assert gorl.virtual is None
    assert experiment.log_every == 10 and experiment.checkpoint.every == 50
    assert experiment.data["guide"].tuples == 20


def test_settings_of_one_optimizer_do_not_leak_into_another(load):
    changed = BASE.replace("preset: quick", "optimizer: {name: sgd, lr: 0.5}").replace(
        "virtual: null", "virtual: {lr: 0.1}"
    )
    (gorl,) = load(changed).objectives
    assert dict(gorl.optimizer.hparams) == {"lr": 0.5, "weight_decay": 0.0}
    assert gorl.virtual.name == "sgd" and gorl.virtual.hparams["lr"] == 0.1


def test_resolved_configuration_builds_the_same_experiment(load):
    experiment = load()
    again = config.build(dict(experiment.resolved), "again")
    assert again.resolved == experiment.resolved and again.hash == experiment.hash


def test_hash_leaves_out_steps_seeds_and_device_only(load):
    reference = load().hash
    assert load(BASE, "steps=7", "seeds=[3,4]", "device=cpu").hash == reference
    assert load(BASE, "algorithm.alpha=2.0").hash != reference


def test_base_files_merge_under_the_file_that_names_them(tmp_path):
    (tmp_path / "base.yaml").write_text(textwrap.dedent(BASE))
    (tmp_path / "child.yaml").write_text("base: base.yaml\nname: child\nalgorithm: {alpha: 9.0}\n")
    experiment = config.load(tmp_path / "child.yaml", ["steps=5"])
    assert (experiment.name, experiment.algorithm.alpha, experiment.steps) == ("child", 9.0, 5)


def test_values_under_let_are_referred_to_and_leave_no_trace(tmp_path, load):
    (tmp_path / "base.yaml").write_text(
        textwrap.dedent(BASE).replace("alpha: 1.5", "alpha: '${let.alpha}'") + "let: {alpha: 2.0, beta: 1}\n"
    )
    (tmp_path / "child.yaml").write_text("base: base.yaml\nlet: {alpha: 9.0}\n")
    assert config.load(tmp_path / "base.yaml").algorithm.alpha == 2.0
    experiment = config.load(tmp_path / "child.yaml")
    assert experiment.algorithm.alpha == 9.0 and "let" not in experiment.resolved
    assert experiment.hash == load(BASE, "algorithm.alpha=9.0").hash
    assert config.load(tmp_path / "child.yaml", ["let.alpha=4"]).algorithm.alpha == 4.0
    with pytest.raises(ConfigError, match=r"no such value under let. Did you mean 'alpha'\?"):
        config.load(tmp_path / "child.yaml", ["let.alhpa=4"])
    (tmp_path / "without.yaml").write_text(textwrap.dedent(BASE).replace("alpha: 1.5", "alpha: '${let.alpha}'"))
    assert config.load(tmp_path / "without.yaml", ["let.alpha=4"]).algorithm.alpha == 4.0


def test_a_plug_in_beside_the_yaml(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from metarl import option\n"
        "@dataclass(frozen=True)\n"
        "class Mine:\n"
        "    strength: float = option(1.0, 'how much')\n"
        "    def attach(self, learner, spec, generator):\n"
        "        return learner\n"
    )
    text = textwrap.dedent(BASE).replace(
        "{name: gorl, preset: quick, net: {hidden: [7]}, virtual: null}", "{name: 'mine:Mine', strength: 2}"
    )
    (tmp_path / "experiment.yaml").write_text(text)
    (mine,) = config.load(tmp_path / "experiment.yaml").objectives
    assert mine.strength == 2.0


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stps=10", ["unknown key 'stps'", "'steps'"]),
        ("algorithm.alph=3", ["'algorithm.alph'", "'alpha'"]),
        ("objective.net.hiden=[3]", ["'objective.net.hiden'", "'hidden'"]),
        ("objective.optimizer.weight_decy=1", ["'objective.optimizer.weight_decy'", "'weight_decay'"]),
        ("data.train.tuple=3", ["'data.train.tuple'", "'tuples'"]),
        ("evaluation.evry=3", ["'evaluation.evry'", "'every'"]),
        ("algorithm.alpha=abc", ["algorithm.alpha", "Float"]),
        ("objective.net.output=sigmod", ["objective.net.output", "sigmoid", "softplus"]),
        ("objective.every=2.5", ["objective.every", "Integer"]),
        ("algorithm.name=td3bc", ["no algorithm called 'td3bc'", "'td3_bc'"]),
        ("objective.name=gorll", ["no objective called 'gorll'", "'gorl'"]),
        ("objective.optimizer.name=adm", ["no optimizer called 'adm'", "'adam'"]),
        ("objective.preset=quik", ["no preset 'quik'", "'quick'"]),
        ("steps=0", ["steps must be at least 1"]),
        ("log_every=7", ["evaluation.every (50)", "multiple of log_every (7)"]),
        ("checkpoint.keep=1", ["checkpoint.keep must be at least 2"]),
        ("seeds=[1,1]", ["seeds must be different"]),
        ("device=gpu", ["device", "cuda"]),
        ("name=../evil", ["name", "names a folder"]),
        ("algorithm.policy_every=0", ["algorithm.policy_every must be at least 1"]),
        ("algorithm.hidden=[3,0]", ["algorithm.hidden must be at least 1"]),
        ("objective.batch_size=0", ["objective.batch_size must be at least 1"]),
        ("objective.net.hidden=[-1]", ["objective.net.hidden must be at least 1"]),
        ("objective.optimizer.b1=1.5", ["objective.optimizer", "b1 must lie in [0, 1)"]),
        ("objective.preset=3", ["no preset 3"]),
        ("data.train=pendulum/medium", ["data.train must be a mapping"]),
        ("algorithm.tau=2", ["algorithm.tau must be at most 1, not 2.0"]),
        ("algorithm.discount=-1", ["algorithm.discount must be at least 0"]),
        ("algorithm.rewards.scal=2", ["'algorithm.rewards.scal'", "'scale'"]),
        ("objective.net=5", ["objective.net: 5 is not of the type GuidingNet"]),
        ("algorithm.hidden=[3,x]", ["algorithm.hidden: [3, 'x'] is not of the type tuple[int, ...]"]),
        ("algorithm.alpha=${let.alhpa}", ["algorithm.alpha refers to ${let.alhpa}, which is not there"]),
        ("algorithm.alpha=${dta.train}", ["${dta.train}, which is not there"]),
        ("let.alpha=3", ["has no such value under let"]),
        ("let=3", ["'let' must be a mapping, not 3"]),
        ("nonsense", ["key=value"]),
    ],
)
def test_a_mistake_is_one_line_that_names_file_and_key(load, override, words):
    with pytest.raises(ConfigError) as caught:
        load(BASE, override)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    if override != "nonsense":
        assert "experiment.yaml" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("algorithm: [", "not readable YAML"),
        ("- a\n- b", "mapping"),
        ("name: x", "'algorithm' is missing"),
        ("algorithm: td3_bc", "'data.train' is missing"),
        ("algorithm: {alpha: 3}", "has no name"),
        ("base: 3", "base must name a YAML file"),
        ("algorithm: td3_bc\ndata: 3", "'data' must be a mapping"),
        ("algorithm: 'nowhere:Thing'\ndata: {train: {recipe: a/b}}", "cannot be imported"),
    ],
)
def test_a_broken_file_says_what_is_wrong(load, text, words):
    with pytest.raises(ConfigError, match=words):
        load(text)


def test_a_missing_file_and_a_circle_of_bases(tmp_path):
    with pytest.raises(ConfigError, match="no file"):
        config.load(tmp_path / "none.yaml")
    (tmp_path / "a.yaml").write_text("base: b.yaml")
    (tmp_path / "b.yaml").write_text("base: a.yaml")
    with pytest.raises(ConfigError, match="circle"):
        config.load(tmp_path / "a.yaml")


def test_a_component_of_another_name_replaces_the_one_in_the_base_file(tmp_path):
    (tmp_path / "base.yaml").write_text(textwrap.dedent(BASE))
    (tmp_path / "child.yaml").write_text("base: base.yaml\nobjective: {name: fixed, degree: 0.5}\n")
    (fixed,) = config.load(tmp_path / "child.yaml").objectives
    assert fixed.degree == 0.5
    assert config.load(tmp_path / "base.yaml", ["algorithm=bc"]).resolved["algorithm"]["name"] == "bc"
    (gorl,) = config.load(tmp_path / "base.yaml", ["objective.optimizer={name: sgd, lr: 0.5}"]).objectives
    assert dict(gorl.optimizer.hparams) == {"lr": 0.5, "weight_decay": 0.0}
