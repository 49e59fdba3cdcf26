"""The matrix products that a TD3+BC step cannot do without, from first principles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any


@dataclass(frozen=True)
class Product:
    """`[m, k] @ [k, n]`.

    Attributes:
        m, k, n: sizes.
        form: "nn" as stored, "tn" with the left factor transposed (a weight's gradient), "nt" with the right one
            (an input's gradient); weights are stored [in, out].
        twice: how often in two gradient steps, of which one moves the policy.
    """

    m: int
    k: int
    n: int
    form: str
    twice: int

    @property
    def mflop(self) -> float:
        """Millions of floating-point operations of one."""
        return 2e-6 * self.m * self.k * self.n

    @property
    def name(self) -> str:
        return f"{self.m} x {self.k} x {self.n} {self.form}"


def products(options: Mapping[str, Any]) -> list[Product]:
    """All of two gradient steps, equal ones counted together."""
    counted: dict[tuple[int, int, int, str], int] = {}
    critic, policy = list(_critic_step(options)), list(_policy_step(options))
    for product in [*critic, *critic, *policy]:
        counted[product] = counted.get(product, 0) + 1
    return [Product(*shape, twice=count) for shape, count in counted.items()]


def mflop_per_step(options: Mapping[str, Any]) -> float:
    """Of an average gradient step."""
    return sum(product.twice * product.mflop for product in products(options)) / 2


def _critic_step(options: Mapping[str, Any]) -> Iterator[tuple[int, int, int, str]]:
    """Both critics move: targets without gradients, then both forwards, weight gradients, inner gradients."""
    batch, actor, critic = _layers(options)
    yield from _forward(batch, actor)
    for _ in range(4):  # two targets, two critics
        yield from _forward(batch, critic)
    for _ in range(2):
        yield from _weight_gradients(batch, critic)
        yield from _input_gradients(batch, critic[1:])


def _policy_step(options: Mapping[str, Any]) -> Iterator[tuple[int, int, int, str]]:
    """The policy moves: through one critic back to the action, whose weights get no gradients."""
    batch, actor, critic = _layers(options)
    yield from _forward(batch, actor)
    yield from _forward(batch, critic)
    yield from _input_gradients(batch, critic[1:])
    yield batch, critic[0][1], options["action_dim"], "nt"
    yield from _weight_gradients(batch, actor)
    yield from _input_gradients(batch, actor[1:])


def _layers(options: Mapping[str, Any]) -> tuple[int, list[tuple[int, int]], list[tuple[int, int]]]:
    obs_dim, action_dim, hidden = options["obs_dim"], options["action_dim"], options["hidden"]
    actor = pairwise([obs_dim, *hidden, action_dim])
    return options["batch"], list(actor), list(pairwise([obs_dim + action_dim, *hidden, 1]))


def _forward(batch: int, layers: list[tuple[int, int]]) -> Iterator[tuple[int, int, int, str]]:
    return ((batch, n_in, n_out, "nn") for n_in, n_out in layers)


def _weight_gradients(batch: int, layers: list[tuple[int, int]]) -> Iterator[tuple[int, int, int, str]]:
    return ((n_in, batch, n_out, "tn") for n_in, n_out in layers)


def _input_gradients(batch: int, layers: list[tuple[int, int]]) -> Iterator[tuple[int, int, int, str]]:
    return ((batch, n_out, n_in, "nt") for n_in, n_out in layers)
