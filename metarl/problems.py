"""Bilevel problems without an environment: a learner, its batches, what to measure, and figures known beforehand."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NoReturn, Protocol, runtime_checkable

import torch
from torchopt.base import GradientTransformation

from metarl.bilevel import Batches, Params, TrainState, Update
from metarl.bilevel.compiling import has_compiler
from metarl.errors import ConfigError, NumericalError
from metarl.learner import Learner
from metarl.training.progress import Reporter, Silent
from metarl.training.stepping import Stepping
from metarl.training.streams import Noise

Figures = dict[str, float]


@dataclass(frozen=True)
class Bound:
    """A known answer: where a figure must lie, and who says so.

    Attributes:
        source: a formula, a paper or a measurement.
        least, most: the figure lies in [least, most].
        over: how several seeds are judged: "each" of them, their "mean", or by "t-test": the mean exceeds `least`
            with p < 0.05, two-sided (of paired differences, a paired test).
    """

    source: str
    least: float = -math.inf
    most: float = math.inf
    over: Literal["each", "mean", "t-test"] = "each"

    @classmethod
    def near(cls, value: float, within: float, source: str) -> Bound:
        """Within a distance of a value."""
        return cls(source, value - within, value + within)

    def holds(self, value: float) -> bool:
        """Whether one value lies inside."""
        return self.least <= value <= self.most

    def __str__(self) -> str:
        if self.least == -math.inf:
            return f"<= {self.most:g}"
        if self.most == math.inf:
            return f">= {self.least:g}"
        return f"{(self.least + self.most) / 2:g} ± {(self.most - self.least) / 2:.1g}"


@dataclass(frozen=True)
class Instance:
    """A problem with its data.

    Attributes:
        learner: not yet `ready()`.
        batches: of a step, counted from 1; a pure function.
        measure: figures of a state; `solve` gives it the ready learner.
        dtype: of the parameters.
    """

    learner: Learner
    batches: Callable[[int], Batches]
    measure: Callable[[Learner, TrainState], Figures]
    dtype: torch.dtype = torch.float32


@runtime_checkable
class Problem(Protocol):
    """Settings that build instances: a frozen dataclass, registered in the entry-point group `metarl.problems`.

    Derive from this class to inherit the defaults.

    Attributes:
        steps: calls of `Learner.step`.
        every: steps between measurements; the first is taken before any step, the last after all of them.
        compiled: whether the step is worth compiling.
        seeds: those for which the answers were found.
        expected: known answers of the default settings: by figure, after the last step; or by `figure@step`.
    """

    steps: int
    every: ClassVar[int] = 100
    compiled: ClassVar[bool] = False
    seeds: ClassVar[tuple[int, ...]] = (0, 1, 2)
    expected: ClassVar[Mapping[str, Bound]]

    def build(self, seed: int) -> Instance:
        """The learner, and batches and figures that are functions of the seed."""
        ...


@dataclass(frozen=True)
class Solution:
    """What `solve` found.

    Attributes:
        state: after the last step.
        history: figures by step.
        seconds: of the steps, compilation and measurements included.
    """

    state: TrainState
    history: Mapping[int, Figures]
    seconds: float

    def figure(self, name: str) -> float:
        """`figure` after the last step, or `figure@step`; KeyError where it was not measured."""
        name, _, step = name.partition("@")
        return self.history[int(step) if step else max(self.history)][name]


def solve(problem: Problem, seed: int, *, compiled: bool | None = None, progress: Reporter | None = None) -> Solution:
    """Builds an instance and takes its steps.

    Args:
        problem: with its settings.
        seed: of the data, the initialisation and the batches.
        compiled: whether to compile the step, one graph for each set of Updates due together; None lets the problem
            decide, and goes on eagerly where there is no C++ compiler.
        progress: told of every step and figure.

    Raises:
        ConfigError: the learner is wrong, see `Learner.ready` and `Learner.check`.
        NumericalError: a loss or a hypergradient became NaN or infinite, or an estimator failed.
    """
    instance, progress = problem.build(seed), progress or Silent()
    _check(problem, instance)
    learner = instance.learner.ready()
    state = learner.init(instance.dtype)
    noise = {
        name: Noise(spec, spec.whole_shape(learner.roles), seed, name, instance.dtype, torch.device("cpu"))
        for name, spec in learner.noise.items()
    }

    def batches(step: int) -> Batches:
        given = instance.batches(step)
        drawn = {name: stream.draw(step) for name, stream in noise.items()}
        return {**given, "noise": {**drawn, **given.get("noise", {})}} if drawn else given

    learner.check(state, batches(1))
    if compiled is None and problem.compiled and not has_compiler():
        progress.say("there is no C++ compiler (set CXX, or install g++), so the step runs eagerly")
        compiled = False
    wanted = problem.compiled if compiled is None else compiled
    stepping = Stepping(learner, state, "compiled" if wanted else "eager")
    history = {0: instance.measure(learner, state)}
    began = time.perf_counter()
    progress.start(f"{type(problem).__name__} seed {seed}", 0, problem.steps)
    try:
        for step in range(1, problem.steps + 1):
            stepping(batches(step), learner.due(step))
            if step % problem.every and step != problem.steps:
                progress.update(step)
                continue
            if faults := learner.faults(stepping.state) or _dead(learner, stepping.state, state):
                raise NumericalError("; ".join(faults))
            history[step] = instance.measure(learner, stepping.state)
            progress.update(step, **history[step])
    finally:
        progress.stop()
    return Solution(stepping.state, history, time.perf_counter() - began)


ZEROS = 50  # hypergradients of exactly zero, and nothing else, that end a solution


def _dead(learner: Learner, state: TrainState, start: TrainState) -> list[str]:
    """Groups that have not moved at all; one that has converged may have zeros too."""

    def moved(update: Update) -> bool:
        return any(not torch.equal(p, start.tree[update.params][k]) for k, p in state.tree[update.params].items())

    return [text for name, text in learner.silent(state, ZEROS).items() if not moved(learner.updates[name])]


def _check(problem: Problem, instance: Any) -> None:
    name = type(problem).__name__
    if not isinstance(instance, Instance):
        raise ConfigError(f"{name}.build returned {instance!r}; it must return a metarl.problems.Instance")
    for figure, bound in problem.expected.items():
        if not isinstance(bound, Bound):
            raise ConfigError(f"{name}.expected[{figure!r}] is {bound!r}; it must be a metarl.problems.Bound")


def outer_loss(update: Update, state: TrainState, batches: Batches, **changes: Any) -> float:
    """The loss of a bilevel Update after its virtual steps, with changes to its estimator such as `steps=10`."""
    estimator: Any = update.gradient
    return float(replace(estimator, **changes)(update, state, batches).loss)


def projected(
    optimizer: GradientTransformation, onto: Callable[[torch.Tensor], torch.Tensor]
) -> GradientTransformation:
    """Projected descent: `p <- onto(p + u)`, with the step `u` of any optimiser."""

    def update(updates: Any, state: Any, *, params: Any = None, inplace: bool = False) -> tuple[Params, Any]:
        steps, state = optimizer.update(updates, state, params=params, inplace=False)
        return {name: onto(p + steps[name]) - p for name, p in params.items()}, state

    return GradientTransformation(optimizer.init, update)


def no_policy(*_: Any) -> NoReturn:
    """The `act` of a learner that meets no environment."""
    raise ConfigError("this learner solves a problem without an environment and has no policy to act with")


__all__ = ["Bound", "Figures", "Instance", "Problem", "Solution", "no_policy", "outer_loss", "projected", "solve"]
