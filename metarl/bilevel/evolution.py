"""EvolutionStrategies: a gradient from values alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from metarl.bilevel.autodiff import Params, detach, norm, ravel, unravel
from metarl.bilevel.direct import Direct
from metarl.bilevel.state import TrainState
from metarl.bilevel.unrolled import Unrolled
from metarl.bilevel.update import Batches, Estimate, GradientEstimator, Update
from metarl.errors import ConfigError


@dataclass(frozen=True)
class EvolutionStrategies:
    """The gradient of a smoothed objective, from pairs of values (Salimans et al. 2017, arXiv:1703.03864, Sec. 2).

    With F the function that `base` differentiates, and e standard normal (antithetic pairs)::

        estimate = mean_i [F(phi + sigma e_i) - F(phi - sigma e_i)] / (2 sigma) e_i

    It needs no derivative of the outer loss (a return, an accuracy) and keeps no tape; unbiased for the gradient of
    `E F(phi + sigma e)`, which is that of F where F is quadratic. Its variance grows with the number of
    meta-parameters; the metric `standard_error` is the norm of its standard error. The draws come with the step's
    noise.

    Attributes:
        base: `Unrolled` or `Direct`: the objective, rolled twice per sample.
        samples: antithetic pairs.
        sigma: standard deviation of the perturbation, in units of the meta-parameters.
        chunk: samples evaluated at once; all by default.
    """

    base: GradientEstimator
    samples: int = 32
    sigma: float = 0.01
    chunk: int | None = None

    exact: ClassVar[bool] = False
    differentiable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not isinstance(self.base, Direct | Unrolled):
            raise ConfigError(
                "EvolutionStrategies: base must be Direct() or Unrolled(...), the objective that it perturbs, not "
                f"{self.base!r}"
            )
        if self.samples < 2 or self.sigma <= 0 or (self.chunk is not None and self.chunk < 1):
            raise ConfigError("EvolutionStrategies: samples must be at least 2, chunk at least 1, sigma positive")
        if getattr(self.base, "backend", "native") != "native":
            raise ConfigError("EvolutionStrategies: its base runs under vmap, which needs backend='native'")

    def resolve(self, lookup: Callable[[str], Update]) -> EvolutionStrategies:
        """The same estimator with names of Updates replaced by the Updates."""
        return replace(self, base=self.base.resolve(lookup)) if isinstance(self.base, Unrolled) else self

    @property
    def inners(self) -> tuple[Update, ...]:
        """The base's inner Updates."""
        return getattr(self.base, "inners", ())

    def noise(self, update: Update, params: Params) -> dict[str, tuple[int, ...]]:
        """The shape of its draws, [samples, P], standard normal."""
        return {_draws(update): (self.samples, sum(p.numel() for p in params.values()))}

    def __call__(self, update: Update, state: TrainState, batches: Batches) -> Estimate:
        objective = self.base.objective(update, state, batches)  # type: ignore[attr-defined]
        point = state.tree[update.params]
        vector = ravel(point)
        draws = batches["noise"][_draws(update)]

        def value(draw: Tensor) -> Tensor:
            return objective(unravel(vector + self.sigma * draw, point))[0]

        def slope(draw: Tensor) -> Tensor:
            return (value(draw) - value(-draw)) / (2 * self.sigma)

        with torch.no_grad():
            slopes = torch.vmap(slope, chunk_size=self.chunk)(draws)
            loss, (metrics, inner) = detach(objective(point))
        each = slopes[:, None] * draws
        grads = unravel(each.mean(0), point)
        error = each.std(0).norm() / math.sqrt(self.samples)
        return Estimate(
            loss, grads, {**metrics, "hypergradient_norm": norm(grads), "standard_error": error}, inner or None
        )

    def check(self, update: Update, state: TrainState) -> None:
        """What the base says of its settings."""
        if isinstance(self.base, Unrolled):
            self.base.check(update, state)

    def unreached(self, update: Update, state: TrainState, batches: Batches) -> list[str]:
        """Parameters that move the value nowhere when they alone are perturbed, by sigma to a thousand sigma."""
        objective = self.base.objective(update, state, batches)  # type: ignore[attr-defined]
        point = state.tree[update.params]
        draws = [unravel(draw, point) for draw in batches["noise"][_draws(update)][:8]]
        value = objective(point)[0]

        def moves(name: str) -> bool:
            places = (point[name] + scale * self.sigma * d[name] for scale in (1, 10, 100, 1000) for d in draws)
            return any(bool(objective({**point, name: p})[0] != value) for p in places)

        return [name for name in point if not moves(name)]


def _draws(update: Update) -> str:
    return f"{update.name}.evolution"
