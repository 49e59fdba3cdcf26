"""Each broken objective is caught by the check it is meant for, with cause, place and cure; sound ones pass."""

from pathlib import Path

import pytest

from metarl.checking import Plan, check, names
from metarl.errors import ConfigError

FAULTS = [
    ("WrongRole", "runs", ["'guied'", "Did you mean 'guide'?", "'weight'", "broken.py:", 'batches["guied"]']),
    ("WrongColumn", "runs", ["'next_ob'", "Did you mean 'next_obs'?", "'actor'", "broken.py:"]),
    ("WrongGroup", "runs", ["update 'level'", "Did you mean 'reward'?"]),
    ("WritesParameter", "runs", ["in-place", 'tree["weight"]["layers.0.bias"] += 1', "x = x + y"]),
    ("NotReduced", "runs", ["[29, 3]", ".mean()", "'weight'"]),
    ("VectorMetric", "shapes", ["metric 'reward'", "[29]", ".mean()"]),
    ("CurveOfColumns", "shapes", ["probe 'weight'", "curve [5, 1]", "its grid's shape"]),
    ("Float32", "dtypes", ["float64 run becomes float32", ".float()", "broken.py:"]),
    ("Float64Only", "dtypes", ["float32 run stops", "broken.py:"]),
    ("MixesDtypes", "runs", ["mixes dtypes", "new_tensor", "broken.py:"]),
    ("Broadcast", "broadcasting", ["[23, 1] with [23] became [23, 23]", "broken.py:", ".squeeze(-1)"]),
    ("WritesBatch", "purity", ["batches['guide']['action']", "in place", ".clamp_(-0.9, 0.9)", "x = x + y"]),
    ("WritesTheSame", "purity", ["batches['guide']['action']", ".clamp_(-99, 99)"]),
    ("GlobalRandomness", "purity", ["random", "torch.rand", "with_noise", "broken.py:"]),
    ("NumpyRandomness", "purity", ["numpy's generator", "with_noise"]),
    ("Counts", "purity", ["other numbers when it is called again"]),
    ("Detached", "reached", ["detached", "cut by detach", ".detach()`", "'layers.0.weight'", "group 'weight'"]),
    ("ThroughNoGrad", "reached", ["detached", "broken.py:"]),
    ("ThroughItem", "reached", ["detached", "cut by item", ".item()"]),
    ("HalfDetached", "reached", ["'layers.1.bias' of group 'weight': detached", "'spare' of group 'weight': unused"]),
    ("Unused", "reached", ["unused", "nn.call(net, tree['weight'], x)"]),
    ("FirstOrder", "reached", ["first_order=True", "only through the inner loss", "first_order=False"]),
    ("OutputBias", "reached", ["'layers.1.bias'", "constant", "'actor'", "softplus"]),
    ("FreshAdam", "moments", ["one virtual step of a fresh adam", "useless", "use sgd"]),
    ("ColdForEver", "moments", ["moments of 'actor'", "still zero", "staged"]),
    ("WrongBackward", "gradient", ["wrong", "graph does not follow", "broken.py:"]),
    ("NanAtZero", "edges", ["derivative of Sqrt", ".sqrt()", "'guide'", "small constant"]),
    ("NanInHypergradient", "edges", ["update 'weight'", "derivative of Sqrt", "zeros", "broken.py:"]),
    ("NanInSecondDerivative", "edges", ["update 'weight'", "second derivative of Pow", "zeros", ".pow(1.5)"]),
    ("InfiniteForward", "edges", ["zeros", "comes from log", "broken.py:"]),
    ("NothingToLearn", "signal", ["exactly zero", "virtual step"]),
    ("MisspeltInner", "builds", ["no Update called 'actr'", "Did you mean 'actor'?"]),
    ("RaisesInAttach", "builds", ["KeyError: 'critc'", "broken.py:"]),
    ("ReturnsNothing", "builds", ["attach returned None", "must return the learner"]),
    ("Singular", "gradient", ["Hessian is singular or indefinite", "damping", "smallest_curvature"]),
]

WARNINGS = [
    ("ReluLossNet", "gradient", ["kink", "ReLU", "tanh, softplus or silu"]),
    ("FloatConstant", "dtypes", ["mixes with a float32 constant", "torch.full", "x.new_tensor"]),
    ("PlainDetach", "gradient", ["plain detach at", "metarl.stop_gradient", "broken.py:"]),
    ("Swallowed", "signal", ["eps (1e-08)", "swallows", "smaller one"]),
    ("StandsStill", "signal", ["float32 rounds away", "learning rate"]),
    ("ItemBranch", "stacks", ["torch.vmap", ".item()", "eager training works"]),
]

SOUND = [
    "Sound",
    "DeclaredNoise",
    "Differenced",
    "LossNet",
    "Contrasted",
    "Stopped",
    "ByEvolution",
    "Carried",
    "Truncated",
    "Paired",
    "OtherBackend",
]


@pytest.mark.parametrize(("name", "where", "words"), FAULTS, ids=[f[0] for f in FAULTS])
def test_a_fault_is_found_by_its_check_alone_with_the_cause_named(checked, name, where, words):
    report = checked(name)
    failures = [f for f in report.findings if f.status == "FAILED"]
    assert {f.check for f in failures} == {where} and report.failed
    told = " ".join(f.problem for f in failures)
    for word in words:
        assert word in told


@pytest.mark.parametrize(("name", "where", "words"), WARNINGS, ids=[w[0] for w in WARNINGS])
def test_what_may_be_meant_is_a_warning(checked, name, where, words):
    report = checked(name)
    assert not report.failed and [f.check for f in report.problems] == [where]
    for word in words:
        assert word in report.problems[0].problem


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_objective_passes(checked, name):
    report = checked(name)
    assert report.problems == [] and report.algorithm == "td3_bc"
    assert [f.check for f in report.findings] == [n for n in names() if n not in ("builds", "compiles", "cost")]


@pytest.mark.parametrize("objective", ["gorl", "fixed", "state_weight:StateWeight"])
def test_the_objectives_that_we_ship_pass(objective):
    examples = Path(__file__).parents[3] / "examples"
    report = check(Plan({"name": objective}, folder=examples), skip=("compiles",))
    assert report.problems == []


def test_an_objective_that_brings_everything_needs_no_algorithm(checked):
    report = checked("WithoutPolicy", skip=("compiles",))
    assert report.problems == [] and report.algorithm == "none"
    assert "no base to compare" in report.findings[-1].measured


def test_the_update_and_its_group_are_named_in_fields_too(checked):
    (failure,) = checked("Detached").problems
    assert (failure.update, failure.group) == ("weight", "weight")
    assert failure.where.endswith("`return super().weight(net, tree, batch).detach()`")


def test_no_line_is_blamed_that_is_not_the_objectives(checked):
    assert checked("ReturnsNothing").problems[0].where == ""


def test_a_fault_of_the_inner_loss_is_told_once(checked):
    found = [f for f in checked("Broadcast").findings if f.check == "broadcasting"]
    assert [f.update for f in found] == ["actor"]


def test_what_follows_from_a_failure_is_no_second_one(checked):
    found = {f.check: f for f in checked("Detached").findings}
    assert found["gradient"].measured == "follows from 'reached'" and found["gradient"].status == "info"
    assert found["signal"].measured == "follows from 'reached'"


def test_checking_leaves_the_global_generator_alone(checked):
    import torch

    before = torch.get_rng_state()
    checked("GlobalRandomness")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_step_that_compiles(checked):
    only = tuple(n for n in names() if n != "compiles")
    (found,) = checked("WithoutPolicy", skip=only).findings
    assert found.status == "ok" and "one graph" in found.measured


def test_a_step_that_does_not_compile(checked):
    only = tuple(n for n in names() if n != "compiles")
    (found,) = checked("ItemBranch", skip=only).findings
    assert found.status == "warning" and "does not compile" in found.problem and "broken.py:" in found.where


def test_a_step_that_need_not_compile(checked):
    only = tuple(n for n in names() if n != "compiles")
    (found,) = checked("OtherBackend", skip=only).findings
    assert (found.status, found.measured) == ("info", "the library that weight goes through runs eagerly only")


def test_cost_is_relative_to_the_base_and_over_the_whole_period(checked):
    only = tuple(n for n in names() if n != "cost")
    (plain,) = check(Plan({"name": "fixed"}), skip=only).findings
    assert plain.measured.startswith("step 1.00x base FLOPs (1.00x on average)")
    (often,), (seldom,) = (check(Plan({"name": "gorl", "every": n}), skip=only).findings for n in (2, 500))
    meta = float(often.measured.split()[1].removesuffix("x"))
    averages = [float(f.measured.split("(")[1].split("x")[0]) for f in (often, seldom)]
    assert 1.2 < averages[0] < meta and 1.0 <= averages[1] < 1.01


def test_settings_reach_the_objective(checked):
    assert checked("Sound", lr=1e-7).problems[0].check == "signal"


@pytest.mark.parametrize(
    ("node", "algorithm", "words"),
    [
        ({"name": "gorll"}, None, "Did you mean 'gorl'?"),
        ({"name": "gorl", "evry": 2}, None, "Did you mean 'every'?"),
        ({"name": "gorl"}, "td3bc", "Did you mean 'td3_bc'?"),
        ({"name": "gorl"}, "bc", "no policy improvement and constraint"),
        ({"name": "gorl", "improvement": "literal", "reduction": "sum"}, "bc", "choose one that does"),
    ],
)
def test_a_mistake_in_what_was_asked_is_the_users(node, algorithm, words):
    with pytest.raises(ConfigError, match=words):
        check(Plan(node, algorithm))


def test_differences_that_see_through_a_plain_detach_are_told_twice(checked):
    """Of the estimate that is far off, and of the line that is the cause."""
    far, cause = checked("DifferencedDetach").problems
    assert far.status == cause.status == "warning" and far.check == cause.check == "gradient"
    assert far.update == "weight" and "FiniteDifference is" in far.problem and "let it use Unrolled" in far.problem
    assert "plain detach at" in cause.problem and "broken.py:" in cause.problem
