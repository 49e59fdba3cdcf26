"""The loop that solves a problem, and what it refuses."""

import math
from dataclasses import dataclass, replace

import pytest
import torch

from metarl import EvolutionStrategies, Implicit, Learner, Unrolled, Update, momentum, option, sgd
from metarl.errors import ConfigError, NumericalError
from metarl.problems import Bound, Instance, Problem, no_policy, outer_loss, projected, solve
from metarl.training.stepping import Stepping
from metarl.training.streams import generator


@dataclass(frozen=True)
class Shift(Problem):
    """min_b E (x' - z)^2 with x' = x - 0.1 grad (x - b)^2 from x = 0: b is five times the mean of z."""

    steps: int = option(60)
    lr: float = option(0.2)
    reached: bool = option(True)

    every = 25
    seeds = (3,)
    expected = {"b": Bound.near(5.0, 0.5, "by hand"), "loss@0": Bound("by hand", least=0.5)}

    def build(self, seed):
        def batches(step):
            return {"train": {"z": 1 + 0.1 * torch.randn(4, generator=generator(seed, step))}}

        def outer_loss_of(tree, batches):
            return (tree["x"]["x"] - batches["train"]["z"]).square().mean()

        def inner_loss(tree, batches):
            return (tree["x"]["x"] - (tree["b"]["b"] if self.reached else 0.0)).square()

        def measure(learner, state):
            return {"b": float(state.tree["b"]["b"]), "loss": outer_loss(learner.updates["b"], state, batches(0))}

        outer = Update("b", "b", outer_loss_of, sgd(self.lr), Unrolled("x"))
        tensors = {"x": {"x": torch.zeros(())}, "b": {"b": torch.zeros(())}}
        virtual = {"x": Update("x", "x", inner_loss, sgd(0.1))}
        return Instance(Learner({}, ((outer,),), no_policy, tensors, virtual), batches, measure)


class Recorder:
    """A reporter that remembers."""

    def __init__(self):
        self.told, self.said, self.stopped = [], [], 0

    def start(self, title, done, total):
        self.told.append((title, done, total))

    def update(self, done, **figures):
        self.told.append((done, figures))

    def say(self, text):
        self.said.append(text)

    def stop(self):
        self.stopped += 1


def by_hand(steps, lr=0.2):
    """b after each step; x' = 0.2 b, so that the gradient is 2 (0.2 b - mean z) 0.2."""
    b, path = torch.zeros(()), [0.0]
    for step in range(1, steps + 1):
        z = 1 + 0.1 * torch.randn(4, generator=generator(3, step))
        b = b - lr * 0.4 * (0.2 * b - z.mean())
        path.append(float(b))
    return path


def test_the_steps_are_those_by_hand_and_figures_come_when_asked_for():
    recorder = Recorder()
    solution = solve(Shift(), 3, progress=recorder)
    assert list(solution.history) == [0, 25, 50, 60]
    path = by_hand(60)
    for step, figures in solution.history.items():
        assert figures["b"] == pytest.approx(path[step], abs=1e-5)
    assert solution.figure("b") == solution.figure("b@60") != solution.figure("b@50")
    with pytest.raises(KeyError):
        solution.figure("b@51")
    assert recorder.told[0] == ("Shift seed 3", 0, 60) and recorder.stopped == 1
    assert [told[0] for told in recorder.told[1:]] == list(range(1, 61))
    assert [told[0] for told in recorder.told[1:] if told[1]] == [25, 50, 60]


def test_a_seed_decides_everything():
    one, again, other = (solve(Shift(), seed).history for seed in (3, 3, 4))
    assert one == again and one[60] != other[60]


def test_outer_loss_takes_changes_to_the_estimator():
    instance = Shift().build(3)
    learner = instance.learner.ready()
    state = learner.init().with_params("b", {"b": torch.tensor(2.0)})
    batches = instance.batches(1)
    for steps in (1, 4):
        x = 2.0 * (1 - 0.8**steps)
        expected = float((x - batches["train"]["z"]).square().mean())
        assert outer_loss(learner.updates["b"], state, batches, steps=steps) == pytest.approx(expected, rel=1e-5)


def test_an_estimator_that_needs_noise_gets_it_and_zeros_are_told():
    @dataclass(frozen=True)
    class Noisy(Shift):
        def build(self, seed):
            instance = super().build(seed)
            ((outer,),) = instance.learner.stages
            samples = EvolutionStrategies(outer.gradient, samples=64)
            stages = ((replace(outer, gradient=samples, optimizer=sgd(self.lr)),),)
            learner = replace(instance.learner, stages=stages)
            return replace(instance, learner=learner, measure=lambda learner, state: {"b": float(state.tree["b"]["b"])})

    found = solve(Noisy(), 3)
    assert found.figure("b") == pytest.approx(solve(Shift(), 3).figure("b"), rel=0.05)
    assert solve(Noisy(), 3).history == found.history
    with pytest.raises(NumericalError, match=r"update 'b' .*exactly zero 50 times in a row, so it learns nothing"):
        solve(Stuck(), 3)


def test_what_build_and_expected_hold_is_looked_at_first():
    @dataclass(frozen=True)
    class Bare(Shift):
        expected = {"b": 5.0}

    @dataclass(frozen=True)
    class Nothing(Shift):
        def build(self, seed):
            return None

    with pytest.raises(ConfigError, match=r"Bare\.expected\['b'\] is 5\.0; it must be a metarl\.problems\.Bound"):
        solve(Bare(), 3)
    with pytest.raises(ConfigError, match=r"Nothing\.build returned None; it must return a metarl\.problems\.Instance"):
        solve(Nothing(), 3)


@dataclass(frozen=True)
class Stuck(Shift):
    """A product with zero, whose hypergradient is exactly zero."""

    def build(self, seed):
        instance = super().build(seed)
        inner = instance.learner.virtual["x"]
        dead = replace(inner, loss=lambda tree, batches: 0 * inner.loss(tree, batches))
        return replace(instance, learner=replace(instance.learner, virtual={"x": dead}))


@pytest.mark.parametrize(
    ("estimator", "curvature", "words"),
    [
        (
            Implicit("x", "neumann", 30, scale=1.5, steps=1),
            2.0,
            r"update 'b' \(group 'b'\): .* lower Implicit's scale=",
        ),
        (
            Implicit("x", "fixed_point", 30, steps=1),
            30.0,
            r"update 'b' \(group 'b'\): .* lower .* the inner learning rate",
        ),
        (Implicit("x", "cg", steps=1), -2.0, r"update 'b' \(group 'b'\): .* give Implicit damping="),
    ],
    ids=["divergent", "divergent-step", "indefinite"],
)
def test_an_estimate_without_a_value_stops_with_group_and_cure(estimator, curvature, words):
    @dataclass(frozen=True)
    class Unsolvable(Shift):
        def build(self, seed):
            instance = super().build(seed)
            ((outer,),) = instance.learner.stages

            def inner_loss(tree, batches):
                return curvature * (tree["x"]["x"] - tree["b"]["b"]).square() / 2

            learner = replace(
                instance.learner,
                stages=((replace(outer, gradient=estimator),),),
                virtual={"x": Update("x", "x", inner_loss, sgd(0.1))},
            )
            return replace(instance, learner=learner, measure=lambda learner, state: {})

    with pytest.raises(NumericalError, match=words):
        solve(Unsolvable(), 3)


def test_a_nonfinite_loss_stops_with_the_name_of_the_update_and_closes_the_bar():
    recorder = Recorder()
    with pytest.raises(NumericalError, match=r"update 'b'.*became NaN or infinite"):
        solve(Shift(lr=1e30), 3, progress=recorder)
    assert recorder.stopped == 1


def test_a_parameter_that_reaches_no_loss_is_refused_before_the_first_step():
    recorder = Recorder()
    with pytest.raises(ConfigError, match="do not reach its loss"):
        solve(Shift(reached=False), 3, progress=recorder)
    assert recorder.told == []


def test_without_a_compiler_it_says_so_and_runs_eagerly(monkeypatch):
    monkeypatch.setattr(Shift, "compiled", True)
    monkeypatch.setattr("metarl.problems.has_compiler", lambda: False)
    monkeypatch.setattr(Stepping, "_compiled", None)  # would fail if called
    recorder = Recorder()
    assert solve(Shift(steps=2), 3, progress=recorder).history[2]["b"] == pytest.approx(by_hand(2)[2], abs=1e-6)
    assert recorder.said == ["there is no C++ compiler (set CXX, or install g++), so the step runs eagerly"]


def test_one_graph_for_each_set_of_due_updates(monkeypatch):
    compiled, eager = [], Stepping._eager

    def remember(self, batches, due):
        compiled.append(due)
        return eager(self, batches, due)

    monkeypatch.setattr(Stepping, "_compiled", remember)
    instance = Shift().build(3)
    slow = replace(instance.learner.stages[0][0], every=2)
    monkeypatch.setattr(
        Shift, "build", lambda self, seed: replace(instance, learner=replace(instance.learner, stages=((slow,),)))
    )
    assert solve(Shift(steps=6), 3, compiled=True).history[6]["b"] != 0
    assert sorted(map(len, compiled)) == [0, 1]  # due, and not due


@pytest.mark.slow
def test_compiled_and_eager_agree():
    eager, compiled = (solve(Shift(), 3, compiled=c).state.tree["b"]["b"] for c in (False, True))
    assert torch.allclose(eager, compiled, rtol=1e-5)


def test_a_bound_is_closed_and_no_number_is_outside_it():
    near = Bound.near(0.5, 0.25, "")
    assert [near.holds(v) for v in (0.24, 0.25, 0.75, 0.76, math.nan)] == [False, True, True, False, False]
    assert [Bound("", least=1).holds(v) for v in (0.9, 1.0, math.nan)] == [False, True, False]
    assert [str(b) for b in (near, Bound("", least=0.92), Bound("", most=1e-12))] == [
        "0.5 ± 0.2",
        ">= 0.92",
        "<= 1e-12",
    ]


def test_a_projected_step_is_the_projection_of_the_step():
    plain, onto = momentum(1.0, 0.5), projected(momentum(1.0, 0.5), lambda p: p.clamp(min=0.1))
    params = {"p": torch.tensor([1.0, 2.0], dtype=torch.float64)}
    state, theirs = onto.init(params), plain.init(params)
    for gradient in ([3.0, 0.2], [-1.0, 0.1]):
        grads = {"p": torch.tensor(gradient, dtype=torch.float64)}
        step, theirs = plain.update(grads, theirs, params=params, inplace=False)
        expected = (params["p"] + step["p"]).clamp(min=0.1)
        ours, state = onto.update(grads, state, params=params, inplace=False)
        params = {"p": params["p"] + ours["p"]}
        assert torch.allclose(params["p"], expected, rtol=1e-14)
    assert torch.equal(state.trace["p"], theirs.trace["p"])  # the velocity knows nothing of the projection


def test_a_learner_without_a_policy_cannot_act():
    with pytest.raises(ConfigError, match="without an environment"):
        Shift().build(0).learner.act({}, torch.zeros(1, 1), None, None, True)


def test_a_class_that_builds_nothing_is_no_problem():
    assert isinstance(Shift(), Problem) and not isinstance(Bound(""), Problem)
