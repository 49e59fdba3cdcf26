"""GORL: Yang et al. 2023, "Hundreds Guide Millions: Adaptive Offline RL with Expert Guidance", arXiv:2309.01448.

A guiding network B_w sets, per sample, how strongly the policy is tied to the data (Eq. 2):

    L_pi(theta, w) = mean_k [ -Q(s_k, pi(s_k)) + B_w(L_pc,k) L_pc,k ]

    theta^(w) = theta - a_D grad_theta L_pi(theta, w_t)           (Eq. 3: a virtual step on offline data)
    w_{t+1}   = w_t - a_G grad_w mean_G L_pc(a, pi_theta^(w)(s))  (Eq. 4: cloning about 200 expert tuples)
    theta_{t+1}: the policy's own step with B_{w_{t+1}}           (Eq. 5: same offline batch)

On other bases, for a degree B and their own cloning loss in Eq. 4:

    SAC+BC  L_pi = mean [alpha log pi(a~|s) - Q + B(L_pc) L_pc];  the entropy term is in Eq. 4 too      (Eq. 11)
    IQL     L_pi = -mean B(-log pi(a|s)) min(exp(Q - V), 100) log pi(a|s);  Eq. 4: -log pi(a|s)         (Eq. 14)
    CQL     L_pi = mean [alpha log pi(a~|s) - B(Q) Q];  Eq. 4: -log pi(a|s)                             (Eq. 16)

The paper has no public code. Where its text leaves a choice, the reading is an option below, and the default is the
one that its tables support: Table IV's column of constant weights shows B in 0..1 with B = 1 equal to TD3+BC.
On CQL the degree weighs the improvement, so that a higher one means less constraint, and the temperature is learned, as
in the base, where Eqs. 15 and 16 have none. On IQL a degree of 1 is the base algorithm only with `keep_beta`; the clip
at 100 is the base's, not Eq. 14's; and the action that its text feeds to B, a~, does not exist in IQL, so that the
data's is taken.
Algorithm 1 moves Q before the policy; on CQL and IQL policy and Q see the state of before both, as the base has it.
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
    noise_for,
    option,
    sgd,
    stop_gradient,
)
from metarl.bilevel import Batches, Metrics, Params, Tree
from metarl.errors import ConfigError

RATE = 0.01  # at which a signal's running moments follow
_START = {"mean": 0.0, "square": RATE, "weight": RATE}


@dataclass(frozen=True)
class GuidingNet:
    """B_w: the signal of one sample to its degree of constraint."""

    hidden: tuple[int, ...] = option((100,), "widths of the hidden layers (Tables VI to IX: 1-100-1)", least=1)
    activation: Literal["relu", "sigmoid", "tanh", "softplus", "silu"] = option(
        "relu", "between layers; the tables say only 'Sigmoid', which may mean this one too"
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
    batch_size: int = option(20, "expert tuples in a batch (Tables VI to IX)", least=1)
    improvement: Literal["base", "literal"] = option(
        "base", "Q as the base algorithm scales it, or as Eq. 2 prints it, without a factor"
    )
    reduction: Literal["mean", "sum"] = option("mean", "L_pc over action dimensions; mean makes B = 1 the base")
    keep_beta: bool = option(False, "on IQL: weights exp(beta (Q - V)) as the base has them, where Eq. 14 has no beta")
    outer: Literal["base", "cloning", "mode"] = option(
        "base",
        "Eq. 4: the base algorithm's own cloning loss with its entropy term, where it has one; without that; or the "
        "squared error of the policy's mode",
    )
    signal: Literal["base", "raw", "scaled", "standardized"] = option(
        "base",
        "how B looks at its input: raw; over its mean magnitude in the batch; by its running mean and deviation; or as "
        "suits the base (L_pc raw, CQL's Q scaled, IQL's -log pi standardized)",
    )
    attach_signal: bool = option(False, "let gradients flow through B's input (Eqs. 3 and 5 evaluate it at theta_t)")
    statistics: Literal["train", "guide"] = option("train", "whose statistics normalise the expert tuples")

    presets: ClassVar[Mapping[str, Mapping]] = {
        # Tables VI to IX, per base: the guiding network's period, on locomotion and on Adroit data, and a_D.
        "td3_bc": {"every": 500},
        "sac_bc": {"every": 500},
        "cql": {"every": 200, "virtual": {"name": "sgd", "lr": 1e-4}},
        "cql_adroit": {"every": 100, "virtual": {"name": "sgd", "lr": 1e-4}},
        "iql": {"every": 200},
        "iql_adroit": {"every": 1},
        # Moves B visibly within a few thousand steps, where the paper's schedule needs millions.
        "quick": {"every": 2, "optimizer": {"name": "adam", "lr": 3e-4, "eps": 1e-12}},
    }

    def attach(self, learner: Learner, spec: Spec, generator: torch.Generator) -> Learner:
        """The learner with the group `guiding_network` and its bilevel Update before the policy's."""
        policy = learner.hooks("gorl")
        if self.statistics != "train" and not learner.normalize:
            raise ConfigError("objective gorl: statistics=guide is for algorithms that normalise observations")
        form, outer_form = self._form(policy.forms), self._outer_form(policy.forms)
        net = nn.MLP((1, *self.net.hidden, 1), generator, self.net.activation, self.net.output)
        kind = policy.signal if self.signal == "base" else self.signal

        def signal(tree: Tree, terms: Terms) -> Tensor:
            value = terms.signal
            if kind == "scaled":
                value = value / stop_gradient(value.abs().mean())
            if kind == "standardized":
                statistics = tree["signal_statistics"]
                mean, square = (statistics[name] / statistics["weight"] for name in ("mean", "square"))
                value = (value - mean) / ((square - mean.square()).clamp_min(0).sqrt() + 1e-3)
            return value if self.attach_signal else stop_gradient(value)

        def degree(params: Params, signal: Tensor) -> Tensor:
            return nn.call(net, params, signal[:, None]).squeeze(-1)

        def policy_loss(tree: Tree, batches: Batches) -> tuple[Tensor, Metrics]:
            terms = policy.terms(tree, batches["train"], batches["noise"], form)
            b = degree(tree["guiding_network"], signal(tree, terms))
            return policy.combine(terms, b), {**terms.metrics, "b_mean": b.mean(), "b_std": b.std(correction=0)}

        def guide_loss(tree: Tree, batches: Batches) -> Tensor:
            return policy.imitation(tree, batches["guide"], noise_for(batches, "guide"), outer_form)

        def sample(tree: Tree, batches: Batches) -> tuple[Tensor, Tensor]:
            seen = signal(tree, policy.terms(tree, batches["train"], batches["noise"], form))
            return seen, degree(tree["guiding_network"], seen)

        inner = policy.updates[-1]
        estimator = Unrolled(inner, self.virtual, self.steps, backend=self.backend)
        guide = Update("guiding_network", "guiding_network", guide_loss, self.optimizer, estimator, every=self.every)
        learner = (
            learner.with_modules(guiding_network=net)
            .with_roles(guide=Role("guide", self.batch_size, self.statistics, reader="guiding_network"))
            .with_noise_for("guide")
            .with_policy_loss(policy_loss)
            .with_stage_before(inner, guide)
            .with_probes(
                guiding_network=Probe(
                    "guiding_network",
                    sample,
                    lambda tree, grid: degree(tree["guiding_network"], grid),
                    "policy constraint" if kind == policy.signal == "raw" else "signal",
                    "degree of constraint B",
                )
            )
        )
        return self._with_statistics(learner, policy, form) if kind == "standardized" else learner

    def _form(self, known: tuple[str, ...]) -> tuple[str, ...]:
        """Of the policy's loss. Raises ConfigError for one that was asked for and that the base does not have."""
        asked = []
        for key, value, name in (("improvement", self.improvement, "literal"), ("reduction", self.reduction, "sum")):
            if value == name:
                if name not in known:
                    raise ConfigError(f"objective gorl: this algorithm has no such form; leave {key}={name} out")
                asked.append(name)
        if self.keep_beta and "no_beta" not in known:
            raise ConfigError("objective gorl: keep_beta is for iql; this algorithm has no beta to keep")
        return tuple(asked) if self.keep_beta or "no_beta" not in known else (*asked, "no_beta")

    def _outer_form(self, known: tuple[str, ...]) -> tuple[str, ...]:
        """Of the outer loss. Raises ConfigError where it would be the base's all the same."""
        form = ("sum",) if self.reduction == "sum" else ()
        if self.outer == "base":
            return (*form, "entropy") if "entropy" in known else form
        if self.outer == "cloning" and "entropy" not in known:
            raise ConfigError(
                "objective gorl: outer=cloning leaves the entropy out of Eq. 4, and this base has none in it"
            )
        if self.outer == "mode" and "mode" not in known:
            raise ConfigError("objective gorl: outer=mode is how this algorithm clones in any case; leave it out")
        return (*form, "mode") if self.outer == "mode" else form

    def _with_statistics(self, learner: Learner, policy: PolicyTerms, form: tuple[str, ...]) -> Learner:
        """The learner with a running mean and square of the signal, which move beside the policy.

        As Adam's, they are divided by the weight that they have gathered: their start, 0 and 1, counts as one step.
        """

        def moments(tree: Tree, batches: Batches) -> Params:
            value = policy.terms(tree, batches["train"], batches["noise"], form).signal
            return {"mean": value.mean(), "square": value.square().mean(), "weight": value.new_ones(())}

        inner = learner.updates[policy.updates[-1]]
        track = Update(
            "signal_statistics",
            "signal_statistics",
            None,
            sgd(RATE),
            Track(moments),
            every=inner.every,
            start=inner.start,
            stop=inner.stop,
        )
        start = {name: torch.tensor(value, dtype=torch.float64) for name, value in _START.items()}
        return learner.with_tensors(signal_statistics=start).with_update_beside(inner.name, track)
