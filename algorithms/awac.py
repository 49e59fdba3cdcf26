"""AWAC: Nair et al. 2020, "AWAC: Accelerating Online Reinforcement Learning with Offline Datasets", arXiv:2006.09359.

    y    = r + gamma (1 - d) min_i Q'_i(s', a'),   a' ~ pi(.|s')
    L_Q  = mean (Q_1(s, a) - y)^2 + mean (Q_2(s, a) - y)^2
    L_pi = -mean min(exp(A / lambda), 100) log pi(a|s),   A = min_i Q_i(s, a) - min_i Q_i(s, a~),   a~ ~ pi(.|s)

This is the step of corl-team/CORL (algorithms/finetune/awac.py, and offline/awac.py, which is the same). pi is a
Gaussian around a network without tanh, with one deviation for all states, over actions in units of their bounds; a' and
a~ are cut at the bounds. The weights are constants to the gradient. d is 1 at terminations only, never at time limits.
The critics move first; the policy then sees the new Q; the targets follow the new Q. Trained online, it acts by samples
and the step is the same. Defaults are those of CORL's TrainConfig and classes, presets those of its files for single
datasets.

Deviations from CORL: none in a step's maths, but for actions in units of their bounds (CORL's are in +-1 throughout;
the density differs by a constant). Targets move through `target - tau (target - source)`, which equals CORL's convex
combination to rounding. A mean that acts is cut at the bounds, too, which CORL leaves to the environment.

The authors' code (rail-berkeley/rlkit, rlkit/torch/sac/awac_trainer.py and examples/awac) takes another step, which is
not offered: its weights are a softmax of A / lambda over the batch, times the batch's size, so nothing is clipped; its
policy sees the Q of before the step, has its log-std within -6 and 0, and weight decay.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torchopt.base import GradientTransformation

from metarl import (
    Learner,
    NoiseSpec,
    Polyak,
    Rewards,
    Role,
    Signal,
    Spec,
    Terms,
    Update,
    adam,
    nn,
    option,
    sgd,
    stop_gradient,
)
from metarl.bilevel import Batch, Batches, Metrics, Tree
from metarl.errors import ConfigError

CLIP = 100.0  # of exp(A / lambda)


@dataclass(frozen=True)
class AWAC:
    """Advantage-weighted actor-critic."""

    temperature: float = option(1.0, "lambda: the advantage at which a sample weighs e times the policy's own action")
    discount: float = option(0.99, "gamma", least=0, most=1)
    tau: float = option(0.005, "rate at which targets follow", least=0, most=1)
    log_std: tuple[float, ...] = option((-20.0, 2.0), "bounds of the policy's logarithmic deviation")
    hidden: tuple[int, ...] = option((256, 256, 256), "widths of the hidden layers of policy and critics", least=1)
    actor_optimizer: GradientTransformation = option(
        factory=lambda: adam(lr=3e-4), help="of the policy", group="metarl.optimizers"
    )
    critic_optimizer: GradientTransformation = option(
        factory=lambda: adam(lr=3e-4), help="of the critics", group="metarl.optimizers"
    )
    batch_size: int = option(256, "transitions in a batch", least=1)
    normalize: bool = option(True, "observations as (s - mean) / (std + 1e-3) of the training data")
    rewards: Rewards = option(factory=Rewards, help="what is made of the data's rewards")

    presets: ClassVar[Mapping[str, Mapping]] = {
        # CORL's configs/offline/awac and configs/finetune/awac, alike within each of these.
        "locomotion": {"temperature": 0.3333},
        "adroit": {"temperature": 0.1},
        "antmaze": {"temperature": 0.1, "rewards": {"shift": -1.0}},
        "maze2d": {"temperature": 0.1},
    }

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be positive and finite, not {self.temperature}")
        if len(self.log_std) != 2 or not self.log_std[0] < self.log_std[1]:
            raise ValueError(f"log_std must be a lower and a higher bound, not {list(self.log_std)}")

    def build(self, spec: Spec, generator: torch.Generator) -> Learner:
        """The learner: groups `actor`, `critic` and its target."""
        low, high = self.log_std
        actor = nn.GaussianPolicy(spec.obs_dim, spec.action_dim, self.hidden, generator, (low, high), squashed=False)
        critic = nn.TwinCritic(spec.obs_dim, spec.action_dim, self.hidden, generator)
        policy = _Policy(actor, critic, spec.max_action, self.temperature)

        def critic_loss(tree: Tree, batches: Batches) -> tuple[Tensor, Metrics]:
            batch = batches["train"]
            next_action = policy.sample(tree, batch["next_obs"], batches["noise"]["next_policy"])
            next_q = torch.minimum(*nn.call(critic, tree["critic_target"], batch["next_obs"], next_action))
            y = stop_gradient(batch["reward"] + self.discount * (1 - batch["terminated"]) * next_q)
            q1, q2 = nn.call(critic, tree["critic"], batch["obs"], batch["action"])
            loss = (q1 - y).square().mean() + (q2 - y).square().mean()
            return loss, {"q": q1.mean(), "q_max": torch.maximum(q1, q2).max()}

        def actor_loss(tree: Tree, batches: Batches) -> tuple[Tensor, Metrics]:
            terms = policy.terms(tree, batches["train"], batches["noise"])
            return policy.combine(terms, 1.0), terms.metrics

        return Learner(
            modules={"actor": actor, "critic": critic},
            stages=(
                (Update("critic", "critic", critic_loss, self.critic_optimizer),),
                (Update("actor", "actor", actor_loss, self.actor_optimizer),),
                (Update("critic_target", "critic_target", None, sgd(self.tau), Polyak("critic")),),
            ),
            act=policy.act,
            roles={"train": Role("train", self.batch_size)},
            noise={name: NoiseSpec((spec.action_dim,)) for name in ("policy", "next_policy")},
            policy=policy,
            normalize=self.normalize,
            rewards=self.rewards,
        )


@dataclass(frozen=True)
class _Policy:
    """AWAC's terms: the degree weighs every sample's weighted log-likelihood.

    Form `mode` clones by the squared error of the mean.
    """

    actor: nn.GaussianPolicy
    critic: nn.TwinCritic
    max_action: tuple[float, ...]
    temperature: float
    updates: tuple[str, ...] = ("actor",)
    forms: tuple[str, ...] = ("mode",)
    noise: tuple[str, ...] = ("policy",)
    signal: Signal = "standardized"

    def terms(self, tree: Tree, batch: Batch, noise: Mapping[str, Tensor], form: tuple[str, ...] = ()) -> Terms:
        advantage = stop_gradient(self.advantage(tree, batch, noise["policy"]))
        weight = torch.exp(advantage / self.temperature).clamp(max=CLIP)
        log_prob = self.log_prob(tree, batch)
        metrics = {"log_prob": log_prob.mean(), "weight": weight.mean(), "advantage": advantage.mean()}
        return Terms(weight * log_prob, None, None, -log_prob, metrics)

    def combine(self, terms: Terms, degree: float | Tensor | None) -> Tensor:
        return -(terms.improvement if degree is None else terms.improvement * degree).mean()

    def imitation(self, tree: Tree, batch: Batch, noise: Mapping[str, Tensor], form: tuple[str, ...] = ()) -> Tensor:
        if "mode" in form:
            mean, _ = nn.call(self.actor, tree["actor"], batch["obs"])
            return (mean * self.high(mean) - batch["action"]).square().mean()
        return -self.log_prob(tree, batch).mean()

    def advantage(self, tree: Tree, batch: Batch, noise: Tensor) -> Tensor:
        """min_i Q_i(s, a) - min_i Q_i(s, a~)."""
        own = self.sample(tree, batch["obs"], noise)
        return self.q(tree, batch["obs"], batch["action"]) - self.q(tree, batch["obs"], own)

    def log_prob(self, tree: Tree, batch: Batch) -> Tensor:
        """log pi(a|s) of the batch's actions, in units of their bounds."""
        mean, log_std = nn.call(self.actor, tree["actor"], batch["obs"])
        return nn.normal_log_prob(batch["action"] / self.high(mean), mean, log_std)

    def sample(self, tree: Tree, obs: Tensor, noise: Tensor) -> Tensor:
        """Actions by standard normal `noise`, reparameterised, cut at the bounds."""
        mean, log_std = nn.call(self.actor, tree["actor"], obs)
        return (mean + torch.exp(log_std) * noise).clamp(-1, 1) * self.high(mean)

    def action(self, tree: Tree, obs: Tensor, noise: Mapping[str, Tensor]) -> Tensor:
        """The mean, cut at the bounds."""
        return self.act(tree, obs, None, None, True)[0]

    def act(
        self, tree: Tree, obs: Tensor, carry: None, noise: Tensor | None, deterministic: bool
    ) -> tuple[Tensor, None]:
        """The mean, or a sample by standard normal `noise`; cut at the bounds."""
        if not deterministic and noise is not None:
            return self.sample(tree, obs, noise), carry
        mean, _ = nn.call(self.actor, tree["actor"], obs)
        return mean.clamp(-1, 1) * self.high(mean), carry

    def features(self, tree: Tree, obs: Tensor) -> Tensor:
        return nn.features(self.actor.net, nn.part(tree["actor"], "net."), obs)

    def q(self, tree: Tree, obs: Tensor, action: Tensor) -> Tensor:
        return torch.minimum(*nn.call(self.critic, tree["critic"], obs, action))

    def v(self, tree: Tree, obs: Tensor) -> Tensor:
        raise ConfigError("awac learns no state-value function; choose an algorithm that does, such as iql")

    def high(self, like: Tensor) -> Tensor:
        """The bounds of actions, as a tensor like another."""
        return like.new_tensor(self.max_action)
