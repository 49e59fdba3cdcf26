"""Problems with known answers: their maths by hand, their data, and (slowly) every answer."""

import inspect
import math
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from benchmarks.problems.cleaning import Cleaning
from benchmarks.problems.data import corrupt, digits, extra
from benchmarks.problems.learning_rate import LearningRate
from benchmarks.problems.logistic import Logistic
from benchmarks.problems.reweighting import Reweighting
from benchmarks.problems.sinusoid import Sinusoid
from benchmarks.solve import build
from benchmarks.verdicts import judge
from metarl import registry
from metarl.errors import ConfigError
from metarl.problems import Bound, Problem, Solution, solve
from metarl.training.streams import generator

NAMES = registry.names("metarl.problems")
QUICK = ("learning_rate", "logistic")


@pytest.mark.parametrize("name", NAMES)
def test_a_problem_is_a_short_file_that_says_what_it_solves(name):
    problem = build(name)
    assert isinstance(problem, Problem) and problem.expected and problem.seeds
    lines = Path(inspect.getfile(type(problem))).read_text().splitlines()
    assert len(lines) < 60 and not any(len(line) > 120 for line in lines)
    assert "min" in type(problem).__doc__ or "w = " in type(problem).__doc__
    assert all(bound.source for bound in problem.expected.values())


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_every_known_answer_is_reached(name):
    problem = build(name)
    verdicts = judge(problem, [solve(problem, seed) for seed in problem.seeds])
    judged = {v.figure: v for v in verdicts if v.bound is not None}
    assert set(judged) == set(problem.expected)
    assert not {v.figure: v.value for v in judged.values() if not v.holds}


# -- learning rate -------------------------------------------------------------------------------------------


def test_the_learning_rates_hypergradient_is_minus_the_product_of_two_gradients():
    instance = LearningRate().build(5)
    learner = instance.learner.ready()
    state, batches = learner.init(torch.float64), instance.batches(1)
    state = state.with_params("rate", {"lr": torch.tensor(0.7, dtype=torch.float64)})
    z, a = batches["train"]["z"].clone().requires_grad_(), torch.linspace(0.1, 1, 10, dtype=torch.float64)
    (inner,) = torch.autograd.grad((a * z**2).sum() / 2, z)
    moved = (z - 0.7 * inner).detach().requires_grad_()
    (outer,) = torch.autograd.grad((a * moved**2).sum() / 2, moved)
    estimate = learner.updates["rate"].gradient(learner.updates["rate"], state, batches).grads["lr"]
    expected = -(outer * inner).sum()
    assert abs(expected) > 1 and abs(estimate / expected - 1) < 1e-12


def test_through_several_steps_it_finds_the_best_constant_rate_too():
    solution = solve(LearningRate(horizon=5, lr=1e-3, steps=1500), 0)
    assert solution.figure("error@0") < 1e-12 and solution.figure("rate_over_best") == pytest.approx(1, abs=0.02)
    assert solution.figure("rate") > 1.1 * solve(LearningRate(), 0).figure("rate")  # one step is greedier


# -- logistic regression -------------------------------------------------------------------------------------


def test_the_regularisers_stay_positive_and_the_regression_at_zero():
    problem = Logistic(steps=40)
    state = solve(problem, 1).state
    assert float(state.tree["h"]["h"].min()) >= 0 and int((state.tree["h"]["h"] < 1e-7).sum()) > 0
    assert not state.tree["w"]["w"].any()


# -- learning to reweight ------------------------------------------------------------------------------------


def test_the_weights_are_those_of_algorithm_1(apart):
    instance = Reweighting().build(7)
    learner = instance.learner.ready()
    state = learner.init()
    clean = instance.batches(1)["clean"]
    velocity = None
    for step in (1, 2, 3):
        batch = instance.batches(step)["train"]
        theta = {k: p.clone().requires_grad_() for k, p in state.tree["net"].items()}
        eps = torch.zeros(100, requires_grad=True)
        loss = (eps * cross_entropy(mlp(theta, batch["x"]), batch["y"], reduction="none")).sum()
        grads = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
        moved = {k: p - g for (k, p), g in zip(theta.items(), grads, strict=True)}
        (g,) = torch.autograd.grad(cross_entropy(mlp(moved, clean["x"]), clean["y"]), eps)
        w = (-g).clamp(min=0)
        w = w / w.sum()
        loss = (w * cross_entropy(mlp(theta, batch["x"]), batch["y"], reduction="none")).sum()
        grads = dict(zip(theta, torch.autograd.grad(loss, list(theta.values())), strict=True))
        velocity = grads if velocity is None else {k: 0.9 * velocity[k] + g for k, g in grads.items()}
        expected = {k: (p - 0.05 * velocity[k]).detach() for k, p in theta.items()}
        state, _ = learner.step(state, instance.batches(step), learner.due(step))
        assert 0 < int((w == 0).sum()) < 100
        assert apart(state.tree["eps"]["eps"], -g) < 1e-4
        assert apart(state.tree["net"], expected) < 1e-5


def test_wrong_labels_get_little_weight():
    """Clearly less of the weights in a batch than their share of it, from early on."""
    problem = Reweighting(steps=100)
    instance, seed = problem.build(2), 2
    state = solve(problem, seed).state
    learner = instance.learner.ready()
    g = generator_of(seed)
    clean, _, rest = digits((50, 500), g)
    right = torch.cat((clean["y"], rest["y"]))
    x = torch.cat((clean["x"], rest["x"]))
    on_wrong, share = 0.0, 0.0
    for step in range(101, 121):
        batch = instance.batches(step)["train"]
        state, _ = learner.step(state, instance.batches(step), learner.due(step))
        truth = right[torch.cdist(batch["x"], x).argmin(-1)]
        wrong = truth != batch["y"]
        w = state.tree["eps"]["eps"].relu()
        on_wrong += float(w[wrong].sum() / w.sum()) / 20
        share += float(wrong.float().mean()) / 20
    assert 0.3 < share < 0.5 and on_wrong < 0.7 * share


# -- data cleaning -------------------------------------------------------------------------------------------


def test_cleaning_finds_most_wrong_labels_early():
    solution = solve(Cleaning(steps=200), 4)
    assert solution.figure("f1@0") == 0 and solution.figure("f1") > 0.8
    assert solution.figure("accuracy") > solution.figure("plain") + 0.05


# -- sinusoid ------------------------------------------------------------------------------------------------


def test_the_sinusoids_hypergradient_is_mamls(apart):
    instance = Sinusoid(tasks=3).build(0)
    learner = instance.learner.ready()
    state, batches = learner.init(), instance.batches(1)
    theta = {k: p.clone().requires_grad_() for k, p in state.tree["initial"].items()}
    total = torch.zeros(())
    for task in range(3):
        x, y = batches["support"]["x"][task], batches["support"]["y"][task]
        inner = torch.autograd.grad((mlp(theta, x) - y).square().mean(), list(theta.values()), create_graph=True)
        adapted = {k: p - 0.01 * g for (k, p), g in zip(theta.items(), inner, strict=True)}
        total = total + (mlp(adapted, batches["query"]["x"][task]) - batches["query"]["y"][task]).square().mean() / 3
    expected = dict(zip(theta, torch.autograd.grad(total, list(theta.values())), strict=True))
    estimate = learner.updates["initial"].gradient(learner.updates["initial"], state, batches)
    assert apart(estimate.grads, expected) < 1e-4 and apart(estimate.loss, total.detach()) < 1e-5


def test_waves_are_those_of_the_paper():
    batches = Sinusoid(tasks=400).build(0).batches(1)
    x = torch.cat((batches["support"]["x"], batches["query"]["x"]), 1)
    y = torch.cat((batches["support"]["y"], batches["query"]["y"]), 1)
    assert x.shape == y.shape == (400, 20, 1) and batches["support"]["x"].shape == (400, 10, 1)
    assert -5 <= float(x.min()) < -4.9 and 4.9 < float(x.max()) <= 5
    # y = A sin x + B cos x exactly, with amplitude (A, B) in [0.1, 5] and phase in [0, pi]
    basis = torch.cat((x.sin(), x.cos()), -1).double()
    solution = torch.linalg.lstsq(basis, y.double()).solution
    assert float((basis @ solution - y).abs().max()) < 1e-4
    amplitude, phase = solution.norm(dim=1), torch.atan2(-solution[:, 1], solution[:, 0])
    assert 0.1 <= float(amplitude.min()) < 0.3 and 4.8 < float(amplitude.max()) <= 5.001
    assert -1e-3 <= float(phase.min()) < 0.1 and math.pi - 0.1 < float(phase.max()) <= math.pi + 1e-3


# -- data and verdicts ---------------------------------------------------------------------------------------


def test_parts_are_disjoint_and_wrong_labels_are_wrong():
    g = torch.Generator().manual_seed(0)
    parts = digits((800, 200), g)
    assert [len(part["y"]) for part in parts] == [800, 200, 797]
    rows = {tuple(row) for part in parts for row in part["x"].tolist()}
    assert len(rows) == 1797 and max(map(max, rows)) == 1
    y, wrong = corrupt(parts[0]["y"], 0.5, g)
    assert int(wrong.sum()) == 400 and torch.equal(y != parts[0]["y"], wrong) and set(y.tolist()) == set(range(10))


def test_a_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(ConfigError, match=r"needs scikit-learn: pip install 'metarl\[problems\]'"):
        extra("sklearn.datasets")


def solutions(values):
    return [Solution(None, {0: {"f": 0.0}, 5: {"f": v, "g": 1.0}}, 0.0) for v in values]


class Expecting:
    def __init__(self, **expected):
        self.expected = expected


def test_each_seed_the_mean_and_a_test_are_judged_apart():
    values = (0.4, 0.8, 0.9)

    def first(bound, values=values):
        return judge(Expecting(f=bound), solutions(values))[0]

    assert first(Bound("", least=0.5)).holds is False
    assert first(Bound("", least=0.5, over="mean")).holds is True
    assert first(Bound("", least=0.75, over="mean")).holds is False
    # t = 0.7 / (sd / sqrt 3) = 4.58 with two degrees of freedom, where p = 1 - t / sqrt(t^2 + 2)
    tested = first(Bound("", least=0.0, over="t-test"))
    t = 0.7 / (math.sqrt((0.09 + 0.01 + 0.04) / 2) / math.sqrt(3))
    assert tested.p == pytest.approx(1 - t / math.sqrt(t**2 + 2), rel=1e-9) and tested.holds is True
    assert first(Bound("", least=0.5, over="t-test")).holds is False  # above, but not by enough
    assert first(Bound("", least=2.0, over="t-test")).holds is False  # far, but on the other side
    assert first(Bound("", least=2.0, over="mean"), (0.4,)).holds is None  # one seed says nothing of a mean
    assert first(Bound("", least=2.0), (0.4,)).holds is False


def test_figures_without_an_answer_are_shown_and_unknown_ones_refused():
    verdicts = judge(Expecting(**{"f@0": Bound("", most=0.0), "f@9": Bound("", most=0.0)}), solutions((1.0,)))
    assert [(v.figure, v.holds) for v in verdicts] == [("f@0", True), ("f", None), ("g", None)]  # no step 9 in this run
    with pytest.raises(ConfigError, match=r"no figure is called 'ff'\. Did you mean 'f'"):
        judge(Expecting(ff=Bound("")), solutions((1.0,)))


def generator_of(seed):
    """What a problem draws its data from."""
    return generator(seed, "data")


def mlp(p, x):
    """ReLU layers, from the very parameters that `nn.MLP` names."""
    layers = len(p) // 2
    for i in range(layers):
        x = x @ p[f"layers.{i}.weight"] + p[f"layers.{i}.bias"]
        x = x.relu() if i + 1 < layers else x
    return x
