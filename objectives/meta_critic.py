"""Meta-Critic: Zhou et al. 2020, "Online Meta-Critic Learning for Off-Policy Actor-Critic Methods", arXiv:2003.05334.

An auxiliary loss of the policy, learned while it trains and without demonstrations: G_w sees the features phi(s) that
the policy's last hidden layer computes.

    L_aux(theta, w) = mean G_w(phi_theta(s))                                     (on the batch of the RL loss)
    theta(w)  = theta - eta grad_theta [L_rl + L_aux]
    theta^    = theta - eta grad_theta L_rl                                      (plain RL; a constant)
    L_meta(w) = -tanh(L_rl(theta^) - L_rl(theta(w)))   on a fresh batch

See metarl/learned_loss.py for the steps that follow. It is GILD's engine with another input and another point of
comparison, and a baseline of GILD's. The authors' DDPG and TD3 have policies of 400 and 300 units, batches of 100 and
rates of 1e-3 (settings of the algorithm); eta is that rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torchopt.base import GradientTransformation

from metarl import Learner, Probe, Spec, adam, nn, option, sgd
from metarl.bilevel import Batches, Metrics, Tree
from metarl.learned_loss import check_duration, duration, rl_loss, with_learned_loss


@dataclass(frozen=True)
class AuxiliaryNet:
    """G_w: features of the policy to one loss >= 0."""

    hidden: tuple[int, ...] = option((100, 100), "widths of the hidden layers", least=1)
    activation: Literal["relu", "softplus", "silu", "tanh"] = option("relu", "between layers")


@dataclass(frozen=True)
class MetaCritic:
    """A learned auxiliary loss on the policy's features, judged by what it adds to a plain RL step."""

    net: AuxiliaryNet = option(factory=AuxiliaryNet, help="the loss network")
    optimizer: GradientTransformation = option(
        factory=lambda: adam(lr=1e-3, weight_decay=1e-4), help="of the loss network", group="metarl.optimizers"
    )
    virtual: GradientTransformation | None = option(
        factory=lambda: sgd(lr=1e-3),
        help="of both virtual steps (eta); null carries the policy's own optimiser and its moments",
        group="metarl.optimizers",
    )
    bounded: bool = option(True, "tanh around the gain")
    warm_start: float | None = option(
        None, "gradient steps (or, below 1, share of the run's) after which the auxiliary loss is dropped"
    )
    constraint: bool = option(True, "keep an offline algorithm's own tie to its data")

    def __post_init__(self) -> None:
        check_duration(self.warm_start, "warm_start")

    def attach(self, learner: Learner, spec: Spec, generator: torch.Generator) -> Learner:
        """The learner with the group `loss_network` and another loss of its policy."""
        policy = learner.hooks("meta_critic")
        width = policy.features(learner.init().tree, torch.zeros(1, spec.obs_dim)).shape[-1]
        net = nn.MLP((width, *self.net.hidden, 1), generator, self.net.activation, "softplus")

        def auxiliary(tree: Tree, batches: Batches) -> Tensor:
            seen = policy.features(tree, batches["train"]["obs"])
            return nn.call(net, tree["loss_network"], seen).squeeze(-1)

        def plain(tree: Tree, batches: Batches) -> tuple[Tensor, Metrics]:
            return rl_loss(policy, tree, batches, constraint=self.constraint)

        def loss(tree: Tree, batches: Batches) -> tuple[Tensor, Metrics]:
            rl, metrics = plain(tree, batches)
            extra = auxiliary(tree, batches).mean()
            return rl + extra, {**metrics, "auxiliary": extra}

        def utility(tree: Tree, batches: Batches) -> Tensor:
            return -rl_loss(policy, tree, batches, "validation", self.constraint)[0]

        def sample(tree: Tree, batches: Batches) -> tuple[Tensor, Tensor]:
            return policy.terms(tree, batches["train"], batches["noise"]).signal, auxiliary(tree, batches)

        learner, stop = duration(learner, self.warm_start, spec)
        return with_learned_loss(
            learner,
            net,
            loss,
            plain,
            utility,
            optimizer=self.optimizer,
            virtual=self.virtual,
            bounded=self.bounded,
            stop=stop,
        ).with_probes(loss_network=Probe("loss_network", sample, None, "signal", "auxiliary loss G"))
