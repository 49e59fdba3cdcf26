"""GORL: Yang et al. 2023, "Hundreds Guide Millions: Adaptive Offline RL with Expert Guidance", arXiv:2309.01448.

A guiding network B_w sets, per sample, how strongly the policy is tied to the data (Eq. 2):

    L_pi(theta, w) = mean_k [ -Q(s_k, pi(s_k)) + B_w(L_pc,k) L_pc,k ]

    theta^(w) = theta - a_D grad_theta L_pi(theta, w_t)           (Eq. 3: a virtual step on offline data)
    w_{t+1}   = w_t - a_G grad_w mean_G L_pc(a, pi_theta^(w)(s))  (Eq. 4: cloning about 200 expert tuples)
    theta_{t+1}: the policy's own step with B_{w_{t+1}}           (Eq. 5: same offline batch)

The paper has no public code. Where its text leaves a choice, the reading is an option below, and the default is the
one that its tables support: Table IV's column of constant weights shows B in 0..1 with B = 1 equal to TD3+BC.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torchopt.base import GradientTransformation

from metarl import (
    Learner,
    PolicyTerms,
    Probe,
    Role,
    Spec,
    Terms,
    Track,
    Unrolled,
    Update,
    adam,
    nn,
    option,
    sgd,
    stop_gradient,
)
from metarl.bilevel import Batches, Metrics, Params, Tree
from metarl.errors import ConfigError, nearest


@dataclass(frozen=True)
class GuidingNet:
    """B_w: the signal of one sample to its degree of constraint."""

    hidden: tuple[int, ...] = option((100,), "widths of the hidden layers (Table VIII: 1-100-1)", least=1)
    activation: Literal["relu", "sigmoid", "tanh", "softplus", "silu"] = option(
        "relu", "between layers; Table VIII says only 'Sigmoid', which may mean this one too"
    )
    output: Literal["sigmoid", "softplus"] = option("sigmoid", "range of B: (0, 1) as in Table IV, or (0, inf)")


@dataclass(frozen=True)
class GORL:
    """A learned degree of constraint per sample, guided by a few expert tuples."""

    every: int = option(
        500, "gradient steps between updates of the guiding network; a multiple of the policy's", least=1
    )
    net: GuidingNet = option(factory=GuidingNet, help="the guiding network")
    optimizer: GradientTransformation = option(
        factory=lambda: adam(lr=1e-5, eps=1e-12),
        help="of the guiding network; its gradients are so small (1e-8) that Adam's usual eps would swallow them",
        group="metarl.optimizers",
    )
    virtual: GradientTransformation | None = option(
        factory=lambda: sgd(lr=3e-4),
        help="of the virtual step (Eq. 3: a_D); null carries the policy's own optimiser and its moments",
        group="metarl.optimizers",
    )
    steps: int = option(1, "virtual steps", least=1)
    backend: Literal["native", "torchopt", "higher"] = option("native", "library that rolls the virtual steps")
    batch_size: int = option(20, "expert tuples in a batch (Table VIII)", least=1)
    improvement: Literal["base", "literal"] = option(
        "base", "Q as the base algorithm scales it, or as Eq. 2 prints it, without a factor"
    )
    reduction: Literal["mean", "sum"] = option("mean", "L_pc over action dimensions; mean makes B = 1 the base")
    signal: Literal["raw", "standardized"] = option(
        "raw", "what B looks at: L_pc, or L_pc by its running mean and deviation"
    )
    attach_signal: bool = option(False, "let gradients flow through B's input (Eqs. 3 and 5 evaluate it at theta_t)")
    statistics: Literal["train", "guide"] = option("train", "whose statistics normalise the expert tuples")

    presets: ClassVar[Mapping[str, Mapping]] = {
        # Table VIII, per base: the guiding network's period.
        "td3_bc": {"every": 500},
        # Moves B visibly within a few thousand steps, where the paper's schedule needs millions.
        "quick": {"every": 2, "optimizer": {"name": "adam", "lr": 3e-4, "eps": 1e-12}},
    }

    def attach(self, learner: Learner, spec: Spec, generator: torch.Generator) -> Learner:
        """The learner with the group `guiding_network` and its bilevel Update before the policy's."""
        policy = learner.hooks("gorl")
        form = self._form(policy.forms)
        net = nn.MLP((1, *self.net.hidden, 1), generator, self.net.activation, self.net.output)

        def signal(tree: Tree, terms: Terms) -> Tensor:
            value = terms.signal
            if self.signal == "standardized":
                statistics = tree["signal_statistics"]
                variance = statistics["square"] - statistics["mean"].square()
                value = (value - statistics["mean"]) / (variance.clamp_min(0).sqrt() + 1e-3)
            return value if self.attach_signal else stop_gradient(value)

        def degree(params: Params, signal: Tensor) -> Tensor:
            return nn.call(net, params, signal[:, None]).squeeze(-1)

        def policy_loss(tree: Tree, batches: Batches) -> tuple[Tensor, Metrics]:
            terms = policy.terms(tree, batches["train"], batches["noise"], form)
            b = degree(tree["guiding_network"], signal(tree, terms))
            return policy.combine(terms, b), {**terms.metrics, "b_mean": b.mean(), "b_std": b.std(correction=0)}

        def guide_loss(tree: Tree, batches: Batches) -> Tensor:
            return policy.imitation(tree, batches["guide"], batches["noise"], form)

        def sample(tree: Tree, batches: Batches) -> tuple[Tensor, Tensor]:
            seen = signal(tree, policy.terms(tree, batches["train"], batches["noise"], form))
            return seen, degree(tree["guiding_network"], seen)

        inner = policy.updates[-1]
        estimator = Unrolled(inner, self.virtual, self.steps, backend=self.backend)
        guide = Update("guiding_network", "guiding_network", guide_loss, self.optimizer, estimator, every=self.every)
        learner = (
            learner.with_modules(guiding_network=net)
            .with_roles(guide=Role("guide", self.batch_size, self.statistics))
            .with_policy_loss(policy_loss)
            .with_stage_before(inner, guide)
            .with_probes(
                guiding_network=Probe(
                    "guiding_network",
                    sample,
                    lambda tree, grid: degree(tree["guiding_network"], grid),
                    "signal" if self.signal == "standardized" else "policy constraint",
                    "degree of constraint B",
                )
            )
        )
        return self._with_statistics(learner, policy, form) if self.signal == "standardized" else learner

    def _form(self, known: tuple[str, ...]) -> tuple[str, ...]:
        form = (
            *(["literal"] if self.improvement == "literal" else []),
            *(["sum"] if self.reduction == "sum" else []),
        )
        for name in form:
            if name not in known:
                raise ConfigError(f"objective gorl: this algorithm has no form {name!r}.{nearest(name, known)}")
        return form

    def _with_statistics(self, learner: Learner, policy: PolicyTerms, form: tuple[str, ...]) -> Learner:
        """The learner with a running mean and square of the signal, moved before the guiding network looks at it."""

        def moments(tree: Tree, batches: Batches) -> Params:
            value = policy.terms(tree, batches["train"], batches["noise"], form).signal
            return {"mean": value.mean(), "square": value.square().mean()}

        every = learner.updates[policy.updates[-1]].every
        track = Update("signal_statistics", "signal_statistics", None, sgd(0.01), Track(moments), every=every)
        start = {"mean": torch.zeros(()), "square": torch.ones(())}
        return learner.with_tensors(signal_statistics=start).with_stage_before("guiding_network", track)
