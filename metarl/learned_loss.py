"""A loss that is learned while the policy minimises it, judged by what a policy step with it gains over one without.

A network G_w gives a loss that the policy minimises beside its RL loss L_rl. With a rate eta:

    theta(w)  = theta - eta grad_theta [L_rl + G_w]      a virtual step, never written back
    theta^    = theta - eta grad_theta L_contrast        the step to compare with, a constant
    L_meta(w) = -tanh(U(theta(w)) - U(theta^))           U: how good a policy is on fresh states

Then w moves along grad_w L_meta and the policy, by its own optimiser, along grad_theta [L_rl + G_w]: both estimated on
the same state, so that the policy's real step is taken by the old w.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torchopt.base import GradientTransformation

from metarl.bilevel import Batches, Metrics, Tree, Unrolled, Update
from metarl.bilevel.update import Loss
from metarl.learner import Learner, PolicyTerms, Role, Spec, noise_for


def rl_loss(
    policy: PolicyTerms, tree: Tree, batches: Batches, role: str = "train", constraint: bool = True
) -> tuple[Tensor, Metrics]:
    """The algorithm's own policy loss on the batch of a role, and what it logs.

    Args:
        policy: the terms.
        tree, batches: of the step.
        role: whose transitions; other roles than `train` bring their own noise.
        constraint: whether an offline algorithm's tie to its data stays.
    """
    noise = batches["noise"] if role == "train" else noise_for(batches, role)
    terms = policy.terms(tree, batches[role], noise)
    return policy.combine(terms, 1.0 if constraint else None), terms.metrics


def check_duration(value: float | None, key: str) -> None:
    """Raises ValueError for what is neither a share nor a number of steps; `key` names the setting."""
    if value is None or 0 < value < 1:
        return
    if not (math.isfinite(value) and value >= 1 and value == int(value)):
        raise ValueError(f"{key} must be a share below 1 or a whole number of gradient steps, not {value}")


def duration(learner: Learner, value: float | None, spec: Spec) -> tuple[Learner, int | None]:
    """Gradient steps for a setting that may be a share of the run's (None: no end).

    Returns:
        the learner, bound to the run's steps where they are a share; and the steps.
    """
    if value is None or value >= 1:
        return learner, None if value is None else int(value)
    return replace(learner, span=spec.steps), max(1, round(value * spec.steps))


def with_learned_loss(
    learner: Learner,
    net: torch.nn.Module,
    loss: Loss,
    contrast: Loss,
    utility: Callable[[Tree, Batches], Tensor],
    *,
    optimizer: GradientTransformation,
    virtual: GradientTransformation | None,
    bounded: bool,
    stop: int | None,
) -> Learner:
    """The learner with the group `loss_network`, its Update beside the policy's, and the policy's new loss.

    Args:
        learner: with a policy.
        net: G_w; `loss` reads it as `tree["loss_network"]`.
        loss: the policy's, L_rl + G_w.
        contrast: L_contrast.
        utility: U of a tree; reads `batches["validation"]`, a further draw from the training data or the replay.
        optimizer: of the network.
        virtual: of the virtual steps; None carries the policy's own and its moments.
        bounded: whether tanh is around the gain.
        stop: the last gradient step with G_w; from then on the policy's loss is its own and the network rests.

    Raises:
        ConfigError: `stop` lies before the policy's first step, or another objective has rewritten its loss.
    """
    policy = learner.hooks("a learned loss")
    learner = learner.with_modules(loss_network=net).with_policy_loss(loss, stop)
    inner = learner.updates[policy.updates[-1]]

    def meta_loss(tree: Tree, batches: Batches, other: Tree) -> tuple[Tensor, Metrics]:
        gain = utility(tree, batches) - utility(other, batches)
        return -(torch.tanh(gain) if bounded else gain), {"gain": gain}

    estimator = Unrolled(inner.name, virtual, contrast="contrast")
    network = Update("loss_network", "loss_network", meta_loss, optimizer, estimator)
    return (
        learner.with_virtual(replace(inner, name="contrast", loss=contrast))
        .with_roles(validation=Role("train", learner.roles["train"].size, reader="loss_network"))
        .with_noise_for("validation")
        .with_update_beside(inner.name, replace(network, every=inner.every, start=inner.start, stop=inner.stop))
    )
