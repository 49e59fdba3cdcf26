"""The bilevel problems, each written once: every contestant evaluates the same two losses on the same tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metarl.bilevel import Batches, Params

BETAS, EPS = (0.9, 0.999), 1e-8  # of every Adam
Bound = Callable[..., Any]  # a model or a learned function, its parameters already inside


@dataclass(frozen=True)
class Problem:
    """The gradient of `outer` in `meta`, through virtual steps of `model` down `inner`.

    Attributes:
        name: in the result.
        what: one line for people.
        model, params: the inner function `(params, x)` and the parameters that the virtual steps start from.
        learned, meta: the meta-learned function `(meta, ...)` and its parameters.
        batches: what the losses read.
        inner: `(model, learned, batches) -> scalar`, both functions bound to their parameters.
        outer: `(model, batches) -> scalar`.
        steps: virtual steps.
        lr: their learning rate.
        optimizer: of the virtual steps.
        mu, nu, count: the moments that Adam carries and the real steps behind them. Everyone is handed the same: in
            float32, trajectories of their own would soon differ in which ReLUs are on.
    """

    name: str
    what: str
    model: Callable[..., Any]
    params: Params
    learned: Callable[..., Any]
    meta: Params
    batches: Batches
    inner: Callable[[Bound, Bound, Batches], Tensor]
    outer: Callable[[Bound, Batches], Tensor]
    steps: int
    lr: float
    optimizer: Literal["sgd", "adam"] = "sgd"
    mu: Params = field(default_factory=dict)
    nu: Params = field(default_factory=dict)
    count: int = 0

    def to(self, dtype: torch.dtype) -> Problem:
        """The same problem in another precision."""

        def cast(group: Params) -> Params:
            return {name: t.to(dtype) if t.is_floating_point() else t for name, t in group.items()}

        return replace(
            self,
            params=cast(self.params),
            meta=cast(self.meta),
            batches={role: cast(batch) for role, batch in self.batches.items()},
            mu=cast(self.mu),
            nu=cast(self.nu),
        )

    def after_adam(self, steps: int) -> Problem:
        """The same problem after real steps of Adam, taken in float64, whose moments it then carries."""
        exact = self.to(torch.float64)
        net = Net(exact.model, exact.params)
        optimizer = torch.optim.Adam(net.parameters(), self.lr, BETAS, EPS)
        for _ in range(steps):
            optimizer.zero_grad()
            exact.inner(net, partial(exact.learned, exact.meta), exact.batches).backward()
            optimizer.step()
        named = dict(net.named_parameters())
        carrying = replace(
            exact,
            optimizer="adam",
            params={name: p.detach() for name, p in named.items()},
            mu={name: optimizer.state[p]["exp_avg"] for name, p in named.items()},
            nu={name: optimizer.state[p]["exp_avg_sq"] for name, p in named.items()},
            count=steps,
        )
        return carrying.to(next(iter(self.params.values())).dtype)


class Net(nn.Module):
    """A problem's function as a module, for the libraries that step modules."""

    def __init__(self, function: Callable[..., Any], params: Params) -> None:
        super().__init__()
        self.function, self.names = function, tuple(params)
        for name, value in params.items():
            self.register_parameter(name, nn.Parameter(value.clone()))

    def forward(self, *inputs: Tensor) -> Any:
        return self.function({name: getattr(self, name) for name in self.names}, *inputs)


def ridge(n: int, d: int, steps: int = 10, seed: int = 0) -> Problem:
    """Linear regression whose penalty `exp(meta_j) w_j^2` has a coefficient per coordinate; `n` rows in each half."""
    random = torch.Generator().manual_seed(seed)
    truth = torch.randn(d, generator=random)

    def rows() -> dict[str, Tensor]:
        x = torch.randn(n, d, generator=random)
        return {"x": x, "y": x @ truth + 0.5 * torch.randn(n, generator=random)}

    def inner(model: Bound, penalty: Bound, batches: Batches) -> Tensor:
        prediction, w = model(batches["train"]["x"])
        return (prediction - batches["train"]["y"]).square().mean() + (penalty() * w.square()).sum()

    def outer(model: Bound, batches: Batches) -> Tensor:
        prediction, _ = model(batches["validation"]["x"])
        return (prediction - batches["validation"]["y"]).square().mean()

    return Problem(
        f"ridge_{n}x{d}",
        f"ridge, a penalty per coordinate: {n} rows, {d} columns, {steps} steps of SGD",
        lambda params, x: (x @ params["w"], params["w"]),
        {"w": torch.zeros(d)},
        lambda meta: meta["log"].exp(),
        {"log": torch.full((d,), -2.0)},
        {"train": rows(), "validation": rows()},
        inner,
        outer,
        steps,
        lr=0.1,
    )


def cleaning(n: int = 800, d: int = 64, classes: int = 10, steps: int = 5, seed: int = 0) -> Problem:
    """Data hyper-cleaning (Franceschi et al. 2017, arXiv:1703.01785): a weight per row of wrongly labelled data."""
    random = torch.Generator().manual_seed(seed)
    truth = torch.randn(d, classes, generator=random)

    def rows(wrong: float) -> dict[str, Tensor]:
        x = torch.rand(n, d, generator=random)
        label = (x @ truth).argmax(-1)
        noise = torch.randint(classes, (n,), generator=random)
        return {"x": x, "label": torch.where(torch.rand(n, generator=random) < wrong, noise, label)}

    def inner(model: Bound, weights: Bound, batches: Batches) -> Tensor:
        train = batches["train"]
        return (weights() * F.cross_entropy(model(train["x"]), train["label"], reduction="none")).mean()

    def outer(model: Bound, batches: Batches) -> Tensor:
        return F.cross_entropy(model(batches["validation"]["x"]), batches["validation"]["label"])

    return Problem(
        f"cleaning_{n}x{d}",
        f"data hyper-cleaning: a weight per row of {n} x {d}, {classes} classes, {steps} steps of SGD",
        lambda params, x: F.linear(x, params["weight"], params["bias"]),
        {"weight": torch.zeros(classes, d), "bias": torch.zeros(classes)},
        lambda meta: meta["logit"].sigmoid(),
        {"logit": torch.zeros(n)},
        {"train": rows(wrong=0.5), "validation": rows(wrong=0.0)},
        inner,
        outer,
        steps,
        lr=1.0,
    )


def actor(
    optimizer: Literal["sgd", "adam"] = "sgd",
    hidden: int = 256,
    batch: int = 256,
    obs_dim: int = 11,
    action_dim: int = 3,
    guide: int = 20,
    seed: int = 0,
) -> Problem:
    """GORL (arXiv:2309.01448, Eqs. 2-4) on TD3+BC: a 1-100-1 net weighs each sample's policy constraint."""
    random = torch.Generator().manual_seed(seed)

    def rows(n: int) -> dict[str, Tensor]:
        action = torch.rand(n, action_dim, generator=random) * 2 - 1
        return {"obs": torch.randn(n, obs_dim, generator=random), "action": action}

    def inner(policy: Bound, degree: Bound, batches: Batches) -> Tensor:
        train = batches["train"]
        action = policy(train["obs"])
        q = mlp(batches["critic"], torch.cat((train["obs"], action), -1))
        constraint = (action - train["action"]).square().mean(-1, keepdim=True)
        scale = (2.5 / q.abs().mean()).detach()
        return (degree(constraint.detach()) * constraint).mean() - scale * q.mean()

    def outer(policy: Bound, batches: Batches) -> Tensor:
        return (policy(batches["guide"]["obs"]) - batches["guide"]["action"]).square().mean()

    batches = {
        "train": rows(batch),
        "guide": rows(guide),
        "critic": weights((obs_dim + action_dim, hidden, hidden, 1), random),
    }
    carried = ", its moments carried" if optimizer == "adam" else ""
    problem = Problem(
        f"actor_{hidden}_{optimizer}",
        f"GORL: a {hidden}x{hidden} actor, {batch} samples, one step of {optimizer.upper()}{carried}",
        lambda params, obs: mlp(params, obs).tanh(),
        weights((obs_dim, hidden, hidden, action_dim), random),
        lambda meta, signal: mlp(meta, signal).sigmoid(),
        weights((1, 100, 1), random),
        batches,
        inner,
        outer,
        steps=1,
        lr=3e-4,
    )
    return problem.after_adam(20) if optimizer == "adam" else problem


def weights(sizes: tuple[int, ...], random: torch.Generator) -> Params:
    """A fully connected network's parameters with PyTorch's default spread."""
    params: Params = {}
    for i, (n_in, n_out) in enumerate(pairwise(sizes)):
        for name, shape in ((f"w{i}", (n_out, n_in)), (f"b{i}", (n_out,))):
            params[name] = (torch.rand(shape, generator=random) * 2 - 1) / n_in**0.5
    return params


def mlp(params: Params, x: Tensor) -> Tensor:
    """Fully connected layers with ReLU between them."""
    last = len(params) // 2 - 1
    for i in range(last):
        x = F.linear(x, params[f"w{i}"], params[f"b{i}"]).relu()
    return F.linear(x, params[f"w{last}"], params[f"b{last}"])
