"""Exact hypergradients, in numpy and without automatic differentiation.

The two problems give their gradients and second derivatives in closed form. Optimisers are written out; a roll is
differentiated by a complex step, `Im F(phi + i h e_j) / h` with h = 1e-30 (Squire & Trapp 1998), which has neither
truncation nor cancellation: exact to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
H = 1e-30


class Ridge:
    """`f = |X theta - y|^2 / 2n + sum_j exp(phi_j) theta_j^2 / 2`, `F = |V theta - z|^2 / 2m`."""

    def __init__(self, n: int = 60, d: int = 6, seed: int = 0) -> None:
        r = np.random.default_rng(seed)
        truth = r.normal(size=d)
        self.x, self.v = r.normal(size=(n, d)), r.normal(size=(n, d))
        self.y, self.z = (x @ truth + 0.5 * r.normal(size=n) for x in (self.x, self.v))
        self.n, self.theta, self.phi = n, 0.5 * r.normal(size=d), r.normal(size=d) - 1

    def gradient(self, theta: Array, phi: Array) -> Array:
        """df/dtheta."""
        return self.x.T @ (self.x @ theta - self.y) / self.n + np.exp(phi) * theta

    def value(self, theta: Array, phi: Array) -> Any:
        """F."""
        return ((self.v @ theta - self.z) ** 2).sum() / (2 * self.n)

    def slopes(self, theta: Array, phi: Array) -> tuple[Array, Array]:
        """dF/dtheta and dF/dphi."""
        return self.v.T @ (self.v @ theta - self.z) / self.n, np.zeros_like(phi)

    def second(self, theta: Array, phi: Array) -> tuple[Array, Array]:
        """d2f/dtheta dtheta and d2f/dtheta dphi."""
        return self.x.T @ self.x / self.n + np.diag(np.exp(phi)), np.diag(np.exp(phi) * theta)

    def optimum(self, phi: Array) -> Array:
        """argmin_theta f."""
        return np.linalg.solve(self.second(self.theta, phi)[0], self.x.T @ self.y / self.n)


class Quadratic:
    """`f = theta A theta / 2 + phi C theta + a theta`; `F = theta G theta / 2 + g theta + phi P phi / 2 + phi K theta`.

    The value-function problem of benchmark_bilevel's simulated data, with a coupling in F.
    """

    def __init__(self, d: int = 5, p: int = 4, seed: int = 0) -> None:
        r = np.random.default_rng(seed)

        def positive(k: int) -> Array:
            m = r.normal(size=(k, k))
            return m @ m.T / k + np.eye(k)

        self.A, self.G, self.P = positive(d), positive(d), positive(p)
        self.C, self.K = r.normal(size=(p, d)), r.normal(size=(p, d))
        self.a, self.g = r.normal(size=d), r.normal(size=d)
        self.theta, self.phi = r.normal(size=d), r.normal(size=p)

    def gradient(self, theta: Array, phi: Array) -> Array:
        """df/dtheta."""
        return self.A @ theta + self.C.T @ phi + self.a

    def value(self, theta: Array, phi: Array) -> Any:
        """F."""
        return theta @ self.G @ theta / 2 + self.g @ theta + phi @ self.P @ phi / 2 + phi @ self.K @ theta

    def slopes(self, theta: Array, phi: Array) -> tuple[Array, Array]:
        """dF/dtheta and dF/dphi."""
        return self.G @ theta + self.g + self.K.T @ phi, self.P @ phi + self.K @ theta

    def second(self, theta: Array, phi: Array) -> tuple[Array, Array]:
        """d2f/dtheta dtheta and d2f/dtheta dphi."""
        return self.A, self.C.T

    def optimum(self, phi: Array) -> Array:
        """argmin_theta f."""
        return -np.linalg.solve(self.A, self.C.T @ phi + self.a)


@dataclass(frozen=True)
class Walk:
    """An optimiser's moments: two arrays and a count, whichever of them it uses."""

    theta: Array
    first: Array
    second: Array
    count: int = 0

    @classmethod
    def at(cls, theta: Array) -> Walk:
        """Cold moments."""
        return cls(theta, np.zeros_like(theta), np.zeros_like(theta))


LR = 0.05
EPS = 0.1  # large, since the hypergradient of a first adaptive step is proportional to it
DECAY = 0.01


def step(name: str, at: Walk, grad: Array) -> Walk:
    """One step of torch.optim's SGD, SGD with momentum 0.9, Adam, AdamW or RMSprop, with the settings above."""
    count = at.count + 1
    if name == "sgd":
        return Walk(at.theta - LR * grad, at.first, at.second, count)
    if name == "momentum":
        velocity = 0.9 * at.first + grad
        return Walk(at.theta - LR * velocity, velocity, at.second, count)
    if name == "rmsprop":
        square = 0.99 * at.second + 0.01 * grad * grad
        return Walk(at.theta - LR * grad / (np.sqrt(square) + EPS), at.first, square, count)
    first, square = 0.9 * at.first + 0.1 * grad, 0.999 * at.second + 0.001 * grad * grad
    along = first / (1 - 0.9**count) / (np.sqrt(square / (1 - 0.999**count)) + EPS)
    decay = DECAY if name == "adamw" else 0.0
    return Walk(at.theta - LR * along - LR * decay * at.theta, first, square, count)


@dataclass(frozen=True)
class Exact:
    """What estimators should return on one problem, from one start."""

    problem: Ridge | Quadratic
    optimizer: str
    start: Walk

    def rolled(self, steps: int, truncate: int | None = None, first_order: bool = False) -> Array:
        """d F(theta_steps(phi), phi) / d phi; of the last `truncate` steps only; with inner gradients held."""
        return self._complex_step(lambda phi: self._roll(phi, steps, truncate, first_order))

    def implicit(self, steps: int, solver: str, iterations: int, scale: float) -> Array:
        """dF/dphi - (d2f/dtheta dphi)^T v at theta_steps, with v as the solver defines it."""
        p = self.problem
        at = self._walk(p.phi, steps)
        hessian, mixed = p.second(at.theta, p.phi)
        right, direct = p.slopes(at.theta, p.phi)
        if solver == "fixed_point":
            return direct + self._through_fixed_point(at, right, iterations)
        if solver == "cg":
            v = np.linalg.solve(hessian, right)
        elif solver == "identity":
            v = scale * right
        else:
            shrink = np.eye(len(right)) - scale * hessian
            v = scale * np.sum([np.linalg.matrix_power(shrink, i) @ right for i in range(iterations)], axis=0)
        return direct - mixed.T @ v

    @cached_property
    def at_optimum(self) -> Array:
        """The hypergradient at the inner optimum: the implicit function theorem in closed form."""
        p = self.problem
        theta = p.optimum(p.phi)
        hessian, mixed = p.second(theta, p.phi)
        right, direct = p.slopes(theta, p.phi)
        return direct - mixed.T @ np.linalg.solve(hessian, right)

    def _walk(self, phi: Array, steps: int) -> Walk:
        at = self.start
        for _ in range(steps):
            at = step(self.optimizer, at, self.problem.gradient(at.theta, phi))
        return at

    def _roll(self, phi: Array, steps: int, truncate: int | None, first_order: bool) -> Any:
        at = self._walk(phi.real, steps - (truncate or steps))
        for _ in range(truncate or steps):
            grad = self.problem.gradient(at.theta, phi)
            at = step(self.optimizer, at, grad.real if first_order else grad)
        return self.problem.value(at.theta, phi)

    def _through_fixed_point(self, at: Walk, right: Array, iterations: int) -> Array:
        """`u^T dPhi/dphi` with `u = sum_i (J^T)^i (right, 0)`, J of the joint step of theta and its velocity."""
        p, d = self.problem, len(at.theta)

        def joint(both: Array, phi: Array) -> Array:
            here = Walk(both[:d], both[d:], at.second, at.count)
            after = step(self.optimizer, here, p.gradient(here.theta, phi))
            return np.concatenate([after.theta, after.first])

        both = np.concatenate([at.theta, at.first])
        jacobian = _jacobian(lambda b: joint(b, p.phi), both)
        u = sum(np.linalg.matrix_power(jacobian.T, i) @ np.append(right, np.zeros(d)) for i in range(iterations))
        return _jacobian(lambda phi: joint(both, phi), p.phi).T @ u

    def _complex_step(self, fn: Callable[[Array], Any]) -> Array:
        phi = self.problem.phi
        return np.array([fn(phi + 1j * H * e).imag / H for e in np.eye(len(phi))])


def _jacobian(fn: Callable[[Array], Array], x: Array) -> Array:
    return np.stack([fn(x + 1j * H * e).imag / H for e in np.eye(len(x))], axis=1)
