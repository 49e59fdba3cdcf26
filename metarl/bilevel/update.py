"""Update: one parameter group moved along one gradient; and what a gradient estimator returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor
from torchopt.base import GradientTransformation

from metarl.bilevel.autodiff import Params

if TYPE_CHECKING:
    from metarl.bilevel.state import TrainState

Tree = dict[str, Params]
Batch = dict[str, Tensor]
Batches = dict[str, Batch]
Metrics = dict[str, Tensor]
Loss = Callable[..., Tensor | tuple[Tensor, Metrics]]
OptimizerLike = GradientTransformation | Callable[[Tree], GradientTransformation]
Objective = Callable[[Params], tuple[Tensor, tuple[Metrics, Params]]]  # aux: metrics, adapted inner parameters


class Estimate(NamedTuple):
    """What an estimator says of one Update; it changes nothing itself.

    Attributes:
        loss: the value of the Update's loss, 0-d; None for an Update without one.
        grads: the estimated gradient, with the structure of the group.
        metrics: 0-d tensors to log.
        inner: the adapted inner parameters of a bilevel estimator, else None.
        failures: 0-d bools by the names in the estimator's `failures`: kept as flags until somebody reads them.
    """

    loss: Tensor | None
    grads: Params
    metrics: Metrics
    inner: Params | None = None
    failures: Metrics = {}


@runtime_checkable
class GradientEstimator(Protocol):
    """`(update, state, batches) -> Estimate`.

    Optional attributes, which the learner looks for:
        inners: the Updates that a bilevel estimator differentiates through.
        resolve(lookup): the estimator with names of Updates replaced.
        objective(update, state, batches): the differentiated function of the group.
        check(update, state): settings that cannot work on this state, as an error or a warning.
        unreached(update, state, batches): parameters that the estimate cannot depend on; by default those without a
            path to `objective`.
        noise(update, params): the noise that it reads, by name.
        rests: whether it relies on real steps of its inners to have reached an optimum.
        failures: what can go wrong on the way, by name, each as a sentence with its cure.
        exact: whether the estimate is the gradient of `objective` (to rounding); taken as true where absent.
        tolerance: the relative error that one which is not exact should stay below in float64.
        recordable: whether a step with it may be recorded and compiled; taken as true where absent.
        differentiable: whether an outer estimator may differentiate the estimate; taken as true where absent.
    """

    def __call__(self, update: Update, state: TrainState, batches: Batches) -> Estimate: ...


@dataclass(frozen=True)
class Update:
    """Moves one parameter group along one estimated gradient.

    Attributes:
        name: unique in its learner; metrics appear as `name/...`.
        params: the group that it moves; optimiser state belongs to the group, so two Updates may share it.
        loss: pure `(tree, batches) -> scalar` or `(scalar, metrics)`; under an estimator with a contrast,
            `(tree, batches, contrast_tree)`. None for `Polyak` and `Track`.
        optimizer: a `GradientTransformation`, or `tree -> GradientTransformation` for meta-learned settings.
        gradient: the estimator.
        every, start, stop: steps count from 1; due when `start < step <= stop` and `step % every == 0`.
    """

    name: str
    params: str
    loss: Loss | None
    optimizer: OptimizerLike
    gradient: GradientEstimator = field(default_factory=lambda: _direct())
    every: int = 1
    start: int = 0
    stop: int | None = None

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"update {self.name!r}: every must be at least 1, not {self.every}")
        if self.stop is not None and self.stop <= self.start:
            raise ValueError(f"update {self.name!r}: stop ({self.stop}) must lie after start ({self.start})")

    def due(self, step: int) -> bool:
        """Whether this Update's own schedule has it at `step` (counted from 1)."""
        return self.start < step and (self.stop is None or step <= self.stop) and step % self.every == 0

    @property
    def inners(self) -> tuple[Update, ...]:
        """The Updates that its estimator differentiates through; empty unless it is bilevel."""
        return getattr(self.gradient, "inners", ())

    def optimizer_for(self, tree: Tree) -> GradientTransformation:
        """The optimiser, built from the tree where its settings are meta-learned."""
        if isinstance(self.optimizer, GradientTransformation):
            return self.optimizer
        return self.optimizer(tree)

    def evaluate(self, *args: Any) -> tuple[Tensor, Metrics]:
        """The loss as `(scalar, metrics)`, whichever of the two forms it returns."""
        if self.loss is None:
            raise ValueError(f"update {self.name!r} has no loss to evaluate")
        value = self.loss(*args)
        return value if isinstance(value, tuple) else (value, {})


def _direct() -> GradientEstimator:
    from metarl.bilevel.direct import Direct  # which itself needs Update

    return Direct()
