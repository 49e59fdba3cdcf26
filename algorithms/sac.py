"""SAC: Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and Applications", arXiv:1812.05905, Algorithm 1.

    y    = r + gamma (1 - d) (min_i Q'_i(s', a') - t log pi(a'|s')),   a' ~ pi(.|s')                       (Eq. 3)
    L_Q  = mean (Q_1(s, a) - y)^2 + mean (Q_2(s, a) - y)^2                                                 (Eq. 5)
    L_pi = mean t log pi(a~|s) - min_i Q_i(s, a~),   a~ ~ pi(.|s), reparameterised                         (Eq. 9)
    L_t  = -mean log(t) (log pi(a~|s) + H),   H = -|A|                                                    (Eq. 18)

t, the temperature, is the paper's alpha. pi is a Gaussian squashed by tanh, its density that of actions in units of
their bounds (App. C). d is 1 at terminations only, never at time limits. Every step moves the critics, then the policy
and the temperature, which look at one state and one sample a~, then the targets. Defaults are the paper's Table 1; a
learned temperature starts at 1, as in the authors' code (rail-berkeley/softlearning) and in Stable-Baselines3, a fixed
one is 0.2, as in Spinning Up.

Deviations:
- Eq. 18 has t in the place of log(t). The authors' code descended log(t) until it was ported to TensorFlow 2, as do
  Stable-Baselines3, rlkit and GILD;
- Eq. 5 halves the squared errors, as does the authors' code; Adam divides the factor out but for its epsilon;
- the logarithm of the deviation is kept within -20 and 2, as in rlkit, Spinning Up and GILD; the authors' code bounds
  it nowhere, and since that port climbs the mean of the critics in L_pi;
- targets move through `target - tau (target - source)`, which equals the usual convex combination to rounding.
GILD's code (arXiv:2501.07346, slDeng1003/GILD; preset `gild`) fixes the temperature at 0.2 in Hopper and HalfCheetah
and learns it in Walker2d and Ant, moves targets in every second step, and starts its critics by Xavier's rule, where
these start as PyTorch's do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, ClassVar

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
    refuse_degree,
    sgd,
    stop_gradient,
)
from metarl.bilevel import Batch, Batches, Metrics, Params, Tree
from metarl.errors import ConfigError

if TYPE_CHECKING:
    from algorithms.sac_bc import SACBC


@dataclass(frozen=True)
class SAC:
    """Soft actor-critic."""

    auto_temperature: bool = option(True, "learn the temperature")
    temperature: float | None = option(
        None, "weight of the entropy; where it is learned, its start; if null, 1 where it is learned and else 0.2"
    )
    target_entropy: float | None = option(
        None, "that a learned temperature aims at; minus the action dimension if null"
    )
    discount: float = option(0.99, "gamma", least=0, most=1)
    tau: float = option(0.005, "rate at which targets follow", least=0, most=1)
    policy_every: int = option(1, "critic steps to one of the policy and the temperature", least=1)
    target_every: int = option(1, "critic steps to one of the targets", least=1)
    hidden: tuple[int, ...] = option((256, 256), "widths of the hidden layers of policy and critics", least=1)
    actor_hidden: tuple[int, ...] | None = option(
        None, "widths of the policy's hidden layers; `hidden` if null", least=1
    )
    actor_optimizer: GradientTransformation = option(
        factory=lambda: adam(lr=3e-4), help="of the policy, and of a learned temperature", group="metarl.optimizers"
    )
    critic_optimizer: GradientTransformation = option(
        factory=lambda: adam(lr=3e-4), help="of the critics", group="metarl.optimizers"
    )
    batch_size: int = option(256, "transitions in a batch", least=1)
    normalize: bool = option(False, "observations as (s - mean) / (std + 1e-3) of the training data")
    rewards: Rewards = option(factory=Rewards, help="what is made of the data's rewards")

    presets: ClassVar[Mapping[str, Mapping]] = {
        "gild": {"auto_temperature": False, "target_every": 2}  # the GILD authors' code
    }

    def __post_init__(self) -> None:
        if self.temperature is not None and not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be positive and finite, not {self.temperature}")

    def build(self, spec: Spec, generator: torch.Generator) -> Learner:
        """The learner: groups `actor`, `critic`, its target, and `temperature` where it is learned."""
        hidden = self.hidden if self.actor_hidden is None else self.actor_hidden
        sizes = (spec.obs_dim, spec.action_dim)
        actor = nn.TanhGaussianPolicy(*sizes, hidden, generator, log_std=(-20.0, 2.0))
        critic = nn.TwinCritic(*sizes, self.hidden, generator)
        usual = 1.0 if self.auto_temperature else 0.2
        temperature = usual if self.temperature is None else self.temperature
        policy = SACTerms(actor, critic, spec.max_action, None if self.auto_temperature else temperature)
        return learner(self, spec, policy, temperature, self.target_every)


@dataclass(frozen=True)
class SACTerms:
    """The terms of a Gaussian squashed by tanh that climbs the lower of two critics, and its entropy.

    There is no constraint, so that a degree weighs nothing. Form: `gild` clones as GILD's code does, by the density of
    the Gaussian before tanh, averaged over dimensions.
    """

    actor: nn.TanhGaussianPolicy
    critic: nn.TwinCritic
    max_action: tuple[float, ...]
    fixed_temperature: float | None
    _: KW_ONLY
    updates: tuple[str, ...] = ("actor",)
    forms: tuple[str, ...] = ("gild",)
    noise: tuple[str, ...] = ("policy",)
    signal: Signal = "scaled"

    name: ClassVar[str] = "sac"

    def terms(self, tree: Tree, batch: Batch, noise: Mapping[str, Tensor], form: tuple[str, ...] = ()) -> Terms:
        action, log_prob = self.sample(tree, batch["obs"], noise["policy"])
        q = self.q(tree, batch["obs"], action)
        return Terms(q, None, self.temperature(tree) * log_prob, q, {"q": q.mean(), "entropy": -log_prob.mean()})

    def combine(self, terms: Terms, degree: float | Tensor | None) -> Tensor:
        refuse_degree(self.name, degree)
        assert terms.rest is not None
        return (terms.rest - terms.improvement).mean()

    def imitation(self, tree: Tree, batch: Batch, noise: Mapping[str, Tensor], form: tuple[str, ...] = ()) -> Tensor:
        """Minus the mean log-density of the batch's actions."""
        mean, log_std = nn.call(self.actor, tree["actor"], batch["obs"])
        action = batch["action"] / self.high(mean)
        if "gild" in form:
            return -nn.normal_log_prob(action, mean, log_std).mean() / action.shape[-1]
        return -nn.tanh_normal_log_prob(action, mean, log_std).mean()

    def action(self, tree: Tree, obs: Tensor, noise: Mapping[str, Tensor]) -> Tensor:
        return self.sample(tree, obs, noise["policy"])[0]

    def sample(self, tree: Tree, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions for noise [B, A] or [B, n, A], and their log-densities in units of the bounds."""
        mean, log_std = nn.call(self.actor, tree["actor"], obs)
        if noise.dim() == 3:
            mean, log_std = mean[:, None], log_std[:, None]
        action, log_prob = nn.tanh_normal_sample(mean, log_std, noise)
        return action * self.high(action), log_prob

    def act(
        self, tree: Tree, obs: Tensor, carry: None, noise: Tensor | None, deterministic: bool
    ) -> tuple[Tensor, None]:
        """The mode, or a sample by standard normal `noise`."""
        if deterministic or noise is None:
            mean, _ = nn.call(self.actor, tree["actor"], obs)
            return torch.tanh(mean) * self.high(mean), carry
        return self.sample(tree, obs, noise)[0], carry

    def temperature(self, tree: Tree) -> float | Tensor:
        return tree["temperature"]["log"].exp() if self.fixed_temperature is None else self.fixed_temperature

    def features(self, tree: Tree, obs: Tensor) -> Tensor:
        return nn.features(self.actor.net, nn.part(tree["actor"], "net."), obs)

    def q(self, tree: Tree, obs: Tensor, action: Tensor) -> Tensor:
        return torch.minimum(*nn.call(self.critic, tree["critic"], obs, action))

    def v(self, tree: Tree, obs: Tensor) -> Tensor:
        raise ConfigError(f"{self.name} learns no state-value function; choose an algorithm that does, such as iql")

    def high(self, like: Tensor) -> Tensor:
        """The bounds of actions, as a tensor like another."""
        return like.new_tensor(self.max_action)


def learner(settings: SAC | SACBC, spec: Spec, policy: SACTerms, temperature: float, target_every: int) -> Learner:
    """SAC's steps for a policy whose loss is made of `policy`'s terms: its critics, temperature and targets.

    Args:
        settings: the algorithm's.
        spec: of the environment.
        policy: with its networks; a temperature is learned where it has no fixed one.
        temperature: the start of a learned one.
        target_every: critic steps to one of the targets.
    """
    actor, critic = policy.actor, policy.critic
    target_entropy = -spec.action_dim if settings.target_entropy is None else settings.target_entropy

    def critic_loss(tree: Tree, batches: Batches) -> tuple[Tensor, Metrics]:
        batch = batches["train"]
        y = stop_gradient(target(tree, batch, batches["noise"]["next_policy"]))
        q1, q2 = nn.call(critic, tree["critic"], batch["obs"], batch["action"])
        loss = (q1 - y).square().mean() + (q2 - y).square().mean()
        return loss, {"q": q1.mean(), "q_max": torch.maximum(q1, q2).max()}

    def target(tree: Tree, batch: Batch, noise: Tensor) -> Tensor:
        next_action, log_prob = policy.sample(tree, batch["next_obs"], noise)
        q1, q2 = nn.call(critic, tree["critic_target"], batch["next_obs"], next_action)
        soft = torch.minimum(q1, q2) - policy.temperature(tree) * log_prob
        return batch["reward"] + settings.discount * (1 - batch["terminated"]) * soft

    def actor_loss(tree: Tree, batches: Batches) -> tuple[Tensor, Metrics]:
        terms = policy.terms(tree, batches["train"], batches["noise"])
        return policy.combine(terms, 1.0), terms.metrics

    def temperature_loss(tree: Tree, batches: Batches) -> tuple[Tensor, Metrics]:
        _, log_prob = policy.sample(tree, batches["train"]["obs"], batches["noise"]["policy"])
        log = tree["temperature"]["log"]
        return -(log * stop_gradient(log_prob + target_entropy)).mean(), {"temperature": log.exp()}

    every = settings.policy_every
    improvement: tuple[Update, ...] = (Update("actor", "actor", actor_loss, settings.actor_optimizer, every=every),)
    tensors: dict[str, Params] = {}
    if policy.fixed_temperature is None:
        tensors["temperature"] = {"log": torch.tensor(math.log(temperature), dtype=torch.float64)}
        improvement += (Update("temperature", "temperature", temperature_loss, settings.actor_optimizer, every=every),)
    return Learner(
        modules={"actor": actor, "critic": critic},
        tensors=tensors,
        stages=(
            (Update("critic", "critic", critic_loss, settings.critic_optimizer),),
            improvement,
            (Update("critic_target", "critic_target", None, sgd(settings.tau), Polyak("critic"), every=target_every),),
        ),
        act=policy.act,
        roles={"train": Role("train", settings.batch_size)},
        noise={name: NoiseSpec((spec.action_dim,)) for name in ("policy", "next_policy")},
        policy=policy,
        normalize=settings.normalize,
        rewards=settings.rewards,
    )
