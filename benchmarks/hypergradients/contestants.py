"""One hypergradient in every library, each used as its documentation says and as cheaply as it allows.

A contestant takes a problem, prepares what a user would prepare once, and returns the function that is timed: from
the current parameters, batches and (for Adam) moments to the gradient of every meta-parameter. Its virtual steps are
undone or never written back, so that every call computes the same. All of them differentiate the outer loss in the
meta-parameters only.

Rivals run eagerly: the ways that they document differentiate twice through autograd, which `torch.compile` refuses.
Products of all of them are PyTorch's; metarl's compiled step takes oneDNN's, as in training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import higher
import torch
import torchopt
from torch import Tensor
from torchopt.transform.scale_by_adam import ScaleByAdamState

from benchmarks.hypergradients.problems import BETAS, EPS, Net, Problem
from metarl import AdamState, TrainState, Unrolled, Update, adam, sgd
from metarl.bilevel import Batches, Tree

Hypergradient = Callable[[], tuple[Tensor, ...]]
Contestant = Callable[[Problem], Hypergradient]
EPS_ROOT = 1e-30
"""For torchopt's Adam, whose derivative is NaN at a dead ReLU without it. (Its accelerated op has none of that, but an
approximate derivative, 2e-6 away in float64, and is no faster here.)"""


def metarl(problem: Problem, through: Callable[[Callable], Callable] = lambda fn: fn) -> Hypergradient:
    """metarl's `Unrolled`, with the metrics that it always returns; `through` what prepares it (`compiled`)."""

    def inner_loss(tree: Tree, batches: Batches) -> Tensor:
        return problem.inner(partial(problem.model, tree["model"]), partial(problem.learned, tree["meta"]), batches)

    def outer_loss(tree: Tree, batches: Batches) -> Tensor:
        return problem.outer(partial(problem.model, tree["model"]), batches)

    optimizer = sgd(problem.lr) if problem.optimizer == "sgd" else adam(problem.lr)
    inner = Update("model", "model", inner_loss, optimizer)
    outer = Update("meta", "meta", outer_loss, sgd(1.0), Unrolled(inner, steps=problem.steps))
    opt = optimizer.init(problem.params)
    if problem.optimizer == "adam":
        opt = AdamState(problem.mu, problem.nu, torch.tensor(float(problem.count), dtype=torch.float64))
    state = TrainState({"model": problem.params, "meta": problem.meta}, {"model": opt}, {})

    def estimate(state: TrainState, batches: Batches) -> Any:
        return outer.gradient(outer, state, batches)

    run = through(estimate)
    return lambda: tuple(run(state, problem.batches).grads.values())


def by_hand(problem: Problem) -> Hypergradient:
    """Plain PyTorch, the optimisers written out: what all others are compared with."""
    names, start = tuple(problem.params), _leaves(problem.params.values())
    meta, learned = _meta(problem)
    carried = [(problem.mu[name], problem.nu[name]) for name in problem.mu]

    def step(params: tuple[Tensor, ...], state: Any, count: int) -> tuple[tuple[Tensor, ...], Any]:
        loss = problem.inner(partial(problem.model, dict(zip(names, params, strict=True))), learned, problem.batches)
        grads = torch.autograd.grad(loss, params, create_graph=True)
        if problem.optimizer == "sgd":
            return tuple(p - problem.lr * g for p, g in zip(params, grads, strict=True)), state
        (b1, b2), moved, moments = BETAS, [], []
        for p, g, (m, v) in zip(params, grads, state, strict=True):
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
            root = torch.where(v > 0, v, 1.0).sqrt() * (v > 0) / (1 - b2**count) ** 0.5
            moved.append(p - problem.lr / (1 - b1**count) * m / (root + EPS))
            moments.append((m, v))
        return tuple(moved), moments

    def hypergradient() -> tuple[Tensor, ...]:
        params, moments = start, carried
        for k in range(problem.steps):
            params, moments = step(params, moments, problem.count + k + 1)
        loss = problem.outer(partial(problem.model, dict(zip(names, params, strict=True))), problem.batches)
        return torch.autograd.grad(loss, meta)

    return hypergradient


def torchopt_functional(problem: Problem) -> Hypergradient:
    """`torchopt.sgd` or `adam`: `update` and `apply_updates`, not in place, on `autograd.grad(create_graph=True)`."""
    sgd, lr = problem.optimizer == "sgd", problem.lr
    optimizer = torchopt.sgd(lr) if sgd else torchopt.adam(lr, eps_root=EPS_ROOT)
    names = tuple(problem.params)
    meta, learned = _meta(problem)
    start = _leaves(problem.params.values())
    state = _carried(problem, optimizer.init(start), names)

    def step(params: tuple[Tensor, ...], moments: Any) -> tuple[tuple[Tensor, ...], Any]:
        loss = problem.inner(partial(problem.model, dict(zip(names, params, strict=True))), learned, problem.batches)
        grads = torch.autograd.grad(loss, params, create_graph=True)
        updates, moments = optimizer.update(grads, moments, inplace=False)
        return torchopt.apply_updates(params, updates, inplace=False), moments

    def hypergradient() -> tuple[Tensor, ...]:
        params, moments = start, state
        for _ in range(problem.steps):
            params, moments = step(params, moments)
        loss = problem.outer(partial(problem.model, dict(zip(names, params, strict=True))), problem.batches)
        return torch.autograd.grad(loss, meta)

    return hypergradient


def torchopt_meta(problem: Problem) -> Hypergradient:
    """`torchopt.MetaSGD` or `MetaAdam` on a module, taken back by `recover_state_dict` from references (no copies)."""
    net = Net(problem.model, problem.params)
    optimizer: torchopt.MetaOptimizer = torchopt.MetaSGD(net, problem.lr)
    if problem.optimizer == "adam":
        optimizer = torchopt.MetaAdam(net, problem.lr, eps_root=EPS_ROOT, moment_requires_grad=False)
        fresh = optimizer.impl.init(tuple(net.parameters()))
        optimizer.load_state_dict([_carried(problem, fresh, sorted(net.names))])
    meta, learned = _meta(problem)

    def hypergradient() -> tuple[Tensor, ...]:
        net_state = torchopt.extract_state_dict(net, by="reference")
        optimizer_state = torchopt.extract_state_dict(optimizer, by="reference")
        for _ in range(problem.steps):
            optimizer.step(problem.inner(net, learned, problem.batches))
        grads = torch.autograd.grad(problem.outer(net, problem.batches), meta)
        torchopt.recover_state_dict(net, net_state)
        torchopt.recover_state_dict(optimizer, optimizer_state)
        return grads

    return hypergradient


def higher_context(problem: Problem) -> Hypergradient:
    """`higher.innerloop_ctx` on a module, without the copy of its weights."""
    net = Net(problem.model, problem.params)
    optimizer, override = _live_optimizer(problem, net)
    meta, learned = _meta(problem)

    def hypergradient() -> tuple[Tensor, ...]:
        context = higher.innerloop_ctx(net, optimizer, copy_initial_weights=False, override=override)
        with context as (fast, differentiable):
            for _ in range(problem.steps):
                differentiable.step(problem.inner(fast, learned, problem.batches))
            return torch.autograd.grad(problem.outer(fast, problem.batches), meta)

    return hypergradient


def higher_functional(problem: Problem) -> Hypergradient:
    """`higher.get_diff_optim` with explicit parameters, which spares the patched module."""
    net = Net(problem.model, problem.params)
    optimizer, override = _live_optimizer(problem, net)
    names, start = net.names, list(net.parameters())
    meta, learned = _meta(problem)

    def hypergradient() -> tuple[Tensor, ...]:
        differentiable = higher.get_diff_optim(optimizer, start, override=override)
        params = start
        for _ in range(problem.steps):
            model = partial(problem.model, dict(zip(names, params, strict=True)))
            params = differentiable.step(problem.inner(model, learned, problem.batches), params=params)
        loss = problem.outer(partial(problem.model, dict(zip(names, params, strict=True))), problem.batches)
        return torch.autograd.grad(loss, meta)

    return hypergradient


def _live_optimizer(problem: Problem, net: Net) -> tuple[torch.optim.Optimizer, dict[str, list[float]] | None]:
    """torch.optim's, and what higher must be told to compute the same as everyone else.

    higher 0.2.1 adds Adam's eps before the bias correction, torch.optim and the others after it.
    """
    if problem.optimizer == "sgd":
        return torch.optim.SGD(net.parameters(), problem.lr), None
    optimizer = torch.optim.Adam(net.parameters(), problem.lr, BETAS, EPS)
    for name, parameter in net.named_parameters():
        # The count as a number: exact, and cheaper for higher than a tensor.
        moments = {"exp_avg": problem.mu[name], "exp_avg_sq": problem.nu[name]}
        optimizer.state[parameter] = {"step": problem.count, **moments}
    return optimizer, {"eps": [EPS * (1 - BETAS[1] ** (problem.count + 1)) ** 0.5]}


def _carried(problem: Problem, state: Any, names: Sequence[str]) -> Any:
    """A fresh state of torchopt's with the problem's moments in it, flat and in the order of `names`."""
    if isinstance(state, ScaleByAdamState):
        count = [torch.tensor(problem.count) for _ in names]
        return ScaleByAdamState([problem.mu[name] for name in names], [problem.nu[name] for name in names], count)
    return tuple(_carried(problem, part, names) for part in state) if type(state) is tuple else state


def _meta(problem: Problem) -> tuple[tuple[Tensor, ...], Callable[..., Any]]:
    leaves = _leaves(problem.meta.values())
    return leaves, partial(problem.learned, dict(zip(problem.meta, leaves, strict=True)))


def _leaves(values: Any) -> tuple[Tensor, ...]:
    return tuple(value.detach().clone().requires_grad_() for value in values)


OURS: dict[str, Contestant] = {"by hand": by_hand, "metarl eager": metarl}
RIVALS: dict[str, Contestant] = {
    "torchopt functional": torchopt_functional,
    "torchopt Meta": torchopt_meta,
    "higher innerloop_ctx": higher_context,
    "higher get_diff_optim": higher_functional,
}
