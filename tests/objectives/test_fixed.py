"""A constant degree of constraint: 1 is the base algorithm, 0 is no constraint."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from algorithms.td3_bc import TD3BC
from objectives.fixed import Fixed

BASE = TD3BC(hidden=(16, 16), batch_size=32)


def train(learner, draw, steps, dtype=torch.float64):
    state = learner.init(dtype)
    for step in range(1, steps + 1):
        state, _ = learner.step(state, draw(learner, step, dtype), learner.due(step))
    return state


def test_degree_one_is_the_base_bitwise(assemble, draw, apart):
    base, fixed = (train(assemble(BASE, *objectives), draw, 200, torch.float32) for objectives in ((), (Fixed(1.0),)))
    assert apart(fixed.tree, base.tree) == 0 and apart(fixed.opt, base.opt) == 0
    start = assemble(BASE).init()
    assert apart(base.tree, start.tree) > 1e-3


def test_degree_zero_is_pure_improvement(assemble, draw, apart):
    learner = assemble(BASE)
    policy = learner.policy

    def no_constraint(tree, batches):
        return policy.combine(policy.terms(tree, batches["train"], batches["noise"]), None)

    def pure_q(tree, batches):
        batch = batches["train"]
        q = policy.q(tree, batch["obs"], policy.action(tree, batch["obs"], {}))
        return -2.5 * q.mean() / q.abs().mean().detach()

    zero = train(assemble(BASE, Fixed(0.0)), draw, 20)
    for loss in (no_constraint, pure_q):
        other = train(replace(learner.with_policy_loss(loss)).ready(), draw, 20)
        assert apart(zero.tree, other.tree) < 1e-10
    assert apart(zero.tree, train(learner, draw, 20).tree) > 1e-4


@pytest.mark.parametrize("degree", [0.0, 0.5, 1.0, 3.0])
def test_the_degree_weighs_the_constraint_alone(assemble, draw, apart, degree):
    learner, base = assemble(BASE, Fixed(degree)), assemble(BASE)
    state, batches = base.init(torch.float64), draw(base)
    update, plain = learner.updates["actor"], base.updates["actor"]
    ours = update.gradient(update, state, batches).grads
    one = plain.gradient(plain, state, batches).grads
    clone = torch.func.grad(
        lambda p: base.policy.imitation({**state.tree, "actor": p}, batches["train"], batches["noise"])
    )(state.tree["actor"])
    assert apart(ours, {k: one[k] + (degree - 1) * clone[k] for k in one}) < 1e-10
