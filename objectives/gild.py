"""GILD: Deng et al. 2025, "Enhancing Online Reinforcement Learning with Meta-Learned Objective from Offline Data",
arXiv:2501.07346.

A network G_w gives the loss by which a policy learns from demonstrations (s_d, a_d), in the place of cloning:

    L_gild(theta, w) = mean G_w(pi(s_d), s_d, a_d)
    theta(w)  = theta - eta grad_theta [L_rl + L_gild]         (lower level; here a virtual step of SGD)
    theta^    = theta - eta grad_theta [L_rl + L_il]           (what RL+IL would have done; a constant)
    L_meta(w) = -tanh(Q(theta(w)) - Q(theta^)),   Q(theta) = mean Q(s, pi_theta(s)) on fresh states of the replay

L_il is behaviour cloning (see rl_il.py). The policy's real step is its own optimiser's on grad_theta [L_rl + L_gild]
with the old w, in the same step as w's (see metarl/learned_loss.py). After the warm start, 1 % of the steps in the
paper, both G_w and the demonstrations are dropped and the algorithm goes on alone.

Against the authors' code (slDeng1003/GILD), four of whose six files do not run (an undefined name, and gradients that
PyTorch 2 no longer keeps) and are taken as they were meant:
- on SAC it feeds G_w actions sampled at *replay* states beside demonstrated ones; here at the demonstrated states;
- on SAC its meta-loss compares the whole RL loss, entropy included: `utility: rl_loss`. Here the values of Q;
- on SAC it draws each branch's action noise anew; here both branches, and the real step, see the same draw;
- its last step with G_w is the one before `warm_start`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torchopt.base import GradientTransformation

from metarl import Learner, Probe, Role, Spec, adam, nn, noise_for, option, sgd
from metarl.bilevel import Batches, Metrics, Tree
from metarl.learned_loss import check_duration, duration, rl_loss, with_learned_loss


@dataclass(frozen=True)
class LossNet:
    """G_w: the policy's action, a demonstrated state and its action to one loss >= 0."""

    hidden: tuple[int, ...] = option((256, 256), "widths of the hidden layers", least=1)
    activation: Literal["relu", "softplus", "silu", "tanh"] = option(
        "relu", "between layers; as published. Its gradient by the action jumps, which the hypergradient cannot see"
    )


@dataclass(frozen=True)
class GILD:
    """A learned imitation loss, judged by whether it makes the policy better than cloning does."""

    net: LossNet = option(factory=LossNet, help="the loss network")
    optimizer: GradientTransformation = option(
        factory=lambda: adam(lr=1e-4, weight_decay=1e-4), help="of the loss network", group="metarl.optimizers"
    )
    virtual: GradientTransformation | None = option(
        factory=lambda: sgd(lr=3e-4),
        help="of both virtual steps (eta); null carries the policy's own optimiser and its moments",
        group="metarl.optimizers",
    )
    weight: float = option(1.0, "of the learned loss beside the RL loss", least=0)
    il_weight: float = option(1.0, "of cloning in the step to compare with; of no effect where not bounded", least=0)
    utility: Literal["q", "rl_loss"] = option("q", "what a virtual step gains: Q, or minus the whole RL loss")
    bounded: bool = option(True, "tanh around the gain")
    warm_start: float | None = option(
        None, "gradient steps (or, below 1, share of the run's) after which G and the demonstrations are dropped"
    )
    batch_size: int = option(256, "demonstrated transitions in a batch", least=1)
    density: Literal["gild", "base"] = option(
        "gild", "what cloning maximises on sac: the density of GILD's code, or the policy's own"
    )
    constraint: bool = option(True, "keep an offline algorithm's own tie to its data")

    presets: ClassVar[dict[str, dict]] = {
        "warm_start": {"warm_start": 10000},  # the paper's 1 % of a million steps; `_ws` in its code
    }

    def __post_init__(self) -> None:
        check_duration(self.warm_start, "warm_start")

    def attach(self, learner: Learner, spec: Spec, generator: torch.Generator) -> Learner:
        """The learner with the group `loss_network`, the role `demo`, and another loss of its policy."""
        policy = learner.hooks("gild")
        net = nn.MLP(
            (2 * spec.action_dim + spec.obs_dim, *self.net.hidden, 1), generator, self.net.activation, "softplus"
        )
        form = ("gild",) if self.density == "gild" and "gild" in policy.forms else ()

        def learned(tree: Tree, batches: Batches) -> tuple[Tensor, Tensor]:
            demo = batches["demo"]
            action = policy.action(tree, demo["obs"], noise_for(batches, "demo"))
            x = torch.cat((action, demo["obs"], demo["action"]), dim=-1)
            return action, nn.call(net, tree["loss_network"], x).squeeze(-1)

        def imitation(tree: Tree, batches: Batches) -> Tensor:
            return policy.imitation(tree, batches["demo"], noise_for(batches, "demo"), form)

        def loss(tree: Tree, batches: Batches) -> tuple[Tensor, Metrics]:
            rl, metrics = rl_loss(policy, tree, batches, constraint=self.constraint)
            gild = learned(tree, batches)[1].mean()
            return rl + self.weight * gild, {**metrics, "gild": gild, "imitation": imitation(tree, batches)}

        def contrast(tree: Tree, batches: Batches) -> Tensor:
            rl, _ = rl_loss(policy, tree, batches, constraint=self.constraint)
            return rl + self.il_weight * imitation(tree, batches)

        def utility(tree: Tree, batches: Batches) -> Tensor:
            if self.utility == "rl_loss":
                return -rl_loss(policy, tree, batches, "validation", self.constraint)[0]
            obs = batches["validation"]["obs"]
            return policy.q(tree, obs, policy.action(tree, obs, noise_for(batches, "validation"))).mean()

        def sample(tree: Tree, batches: Batches) -> tuple[Tensor, Tensor]:
            action, value = learned(tree, batches)
            return (action - batches["demo"]["action"]).square().mean(-1).sqrt(), value

        learner, stop = duration(learner, self.warm_start, spec)
        learner = learner.with_roles(demo=Role("demo", self.batch_size, reader=policy.updates[-1]))
        return with_learned_loss(
            learner.with_noise_for("demo"),
            net,
            loss,
            contrast,
            utility,
            optimizer=self.optimizer,
            virtual=self.virtual,
            bounded=self.bounded,
            stop=stop,
        ).with_probes(
            loss_network=Probe(
                "loss_network", sample, None, "distance from the demonstrated action", "learned loss G", role="demo"
            )
        )
