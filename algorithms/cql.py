"""CQL: Kumar, Zhou, Tucker & Levine 2020, "Conservative Q-Learning for Offline RL", arXiv:2006.04779.

    y      = r + gamma (1 - d) min_i Q'_i(s', a'),   a' ~ pi(.|s')
    L_Q    = sum_i mean (Q_i(s, a) - y)^2 + w gap_i,   gap_i = mean [log sum exp_j z_ij - Q_i(s, a)]      (Eq. 4)
    z_ij   = {Q_i(s, a_u) - log 0.5^|A|, Q_i(s, a') - log pi(a'|s'), Q_i(s, a~) - log pi(a~|s)}, n of each:
             a_u uniform, a' ~ pi(.|s'), a~ ~ pi(.|s): CQL(H), `min_q_version` 3                          (App. F)
             {Q_i(s, a_u), Q_i(s, a), Q_i(s, a'), Q_i(s, a~)}: CQL(rho), `min_q_version` 2
    L_pi   = mean alpha log pi(a~|s) - min_i Q_i(s, a~)
    L_warm = mean alpha log pi(a~|s) - log pi(a|s), for the first `bc_steps` steps
    alpha learned by -mean log(alpha) (log pi(a~|s) - |A|)

pi is a Gaussian squashed by tanh, its density that of actions in units of their bounds. The sampled actions of L_Q and
their densities are constants to the gradient; d is 1 at terminations only. With `lagrange` (Eq. 30) the penalty is
alpha' (w gap_i - lagrange), and log alpha' climbs mean_i alpha' (w gap_i - lagrange).

The temperature moves first; policy, critics and alpha' then all look at what the step found, and the targets follow.
The network of pi is evaluated once a state, and its n actions are drawn from what it gives; the official code evaluates
it on n copies of every state, for the same numbers.

Defaults are the authors' (aviralkumar2907/CQL, examples/cql_mujoco_new.py), with GORL's Table VII where that differs
from them (w = 5, no Lagrange). Deviations from the authors' code:
- It steps Q between the policy's forward and backward pass, which PyTorch refuses since 1.5; here both see the old Q.
- Its warm-up is one step shorter than `policy_eval_start` says. Here log(1 - tanh(u)^2) is exact, where the code adds
  1e-6 in the logarithm; in L_warm the actions are brought inside +-(1 - 1e-6), and the mean is not clipped at +-9.
- Networks start as PyTorch's do (rlkit's last layers start smaller, its hidden biases at 0.1), or orthogonally.
- `max_q_backup` looks at n actions, where the code always takes 10.
The paper's Eq. 4 halves the Bellman error; the authors' code does not.
CORL's algorithm (corl-team/CORL, cql.py) takes the temperature of before the step, starts log alpha' at 1, learns a
scale and an offset of log-std, backs up the best of n lower values where this one takes the lower of two best, clones
its own samples in the warm-up, where the data's actions were meant, and starts its critics with last layers a hundred
times smaller.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torchopt.base import GradientTransformation

from algorithms.sac import SACTerms
from metarl import (
    Learner,
    NoiseSpec,
    Polyak,
    Rewards,
    Role,
    Spec,
    Terms,
    Update,
    adam,
    nn,
    option,
    sgd,
    stop_gradient,
)
from metarl.bilevel import Batch, Batches, Metrics, Params, Tree


@dataclass(frozen=True)
class CQL:
    """Conservative Q-learning."""

    min_q_weight: float = option(5.0, "w: weight of the gap between the values of sampled and of the data's actions")
    min_q_version: int = option(3, "3: CQL(H), by importance sampling; 2: CQL(rho)")
    samples: int = option(10, "n: sampled actions of each kind", least=1)
    lagrange: float | None = option(None, "gap that a learned weight aims at, w included; null leaves the weight fixed")
    min_gap: float | None = option(None, "floor of every state's gap, w not included; null for none")
    bc_steps: int = option(40_000, "steps in which the policy clones the data", least=0)
    bc_share: float | None = option(None, "the same as a share of the run's steps, in place of bc_steps")
    max_q_backup: bool = option(False, "y looks at the best of n actions at s' (for each target), not at one")
    entropy_backup: bool = option(
        False, "subtract alpha log pi(a'|s') in y; the code's deterministic_backup is the opposite"
    )
    discount: float = option(0.99, "gamma", least=0, most=1)
    tau: float = option(0.005, "rate at which targets follow", least=0, most=1)
    hidden: tuple[int, ...] = option((256, 256, 256), "widths of the hidden layers of policy and critics", least=1)
    initialization: Literal["default", "orthogonal"] = option("default", "of all networks; default is PyTorch's")
    actor_optimizer: GradientTransformation = option(
        factory=lambda: adam(lr=1e-4), help="of the policy and of the temperature", group="metarl.optimizers"
    )
    critic_optimizer: GradientTransformation = option(
        factory=lambda: adam(lr=3e-4), help="of the critics and of alpha'", group="metarl.optimizers"
    )
    batch_size: int = option(256, "transitions in a batch", least=1)
    normalize: bool = option(False, "observations as (s - mean) / (std + 1e-3) of the training data")
    rewards: Rewards = option(factory=Rewards, help="what is made of the data's rewards")

    presets: ClassVar[Mapping[str, Mapping]] = {
        "locomotion": {"min_q_weight": 5.0, "min_q_version": 3},  # GORL, Table VII
        "adroit": {"min_q_weight": 1.0, "min_q_version": 2},  # GORL, Table VII
        # young-geng/CQL, issue 2; its gap of 0.2 is before the weight of 5 (CORL's is 0.8, without warm-up).
        "antmaze": {
            "lagrange": 1.0,
            "max_q_backup": True,
            "min_gap": -200.0,
            "initialization": "orthogonal",
            "rewards": {"scale": 10.0, "shift": -5.0},
        },
    }

    def __post_init__(self) -> None:
        if self.min_q_version not in (2, 3):
            raise ValueError(f"min_q_version must be 2 or 3, not {self.min_q_version}")
        if self.entropy_backup and self.max_q_backup:
            raise ValueError("entropy_backup and max_q_backup exclude each other: the best of n actions has no entropy")
        if self.bc_share is not None and not 0 <= self.bc_share < 1:
            raise ValueError(f"bc_share must be at least 0 and below 1, not {self.bc_share}")

    def build(self, spec: Spec, generator: torch.Generator) -> Learner:
        """The learner: groups `actor`, `critic`, its target, `temperature`, and `penalty` (alpha') with `lagrange`."""
        n, dims = self.samples, spec.action_dim
        actor = nn.TanhGaussianPolicy(spec.obs_dim, dims, self.hidden, generator, initialization=self.initialization)
        critic = nn.TwinCritic(spec.obs_dim, dims, self.hidden, generator, self.initialization)
        policy = _Policy(actor, critic, spec.max_action, fixed_temperature=None)

        def temperature_loss(tree: Tree, batches: Batches) -> tuple[Tensor, Metrics]:
            _, log_prob = policy.sample(tree, batches["train"]["obs"], batches["noise"]["policy"])
            log = tree["temperature"]["log"]
            return -(log * stop_gradient(log_prob - dims)).mean(), {"temperature": log.exp()}

        def target(tree: Tree, batches: Batches) -> Tensor:
            batch, noise = batches["train"], batches["noise"]
            drawn = noise["backup"] if self.max_q_backup else noise["next_policy"]
            next_action, log_prob = policy.sample(tree, batch["next_obs"], drawn)
            q1, q2 = nn.call(critic, tree["critic_target"], batch["next_obs"], next_action)
            if self.max_q_backup:
                q = torch.minimum(q1.amax(1), q2.amax(1))
            else:
                q = torch.minimum(q1, q2) - (policy.temperature(tree) * log_prob if self.entropy_backup else 0)
            return batch["reward"] + self.discount * (1 - batch["terminated"]) * q

        def sampled(tree: Tree, batches: Batches) -> tuple[Tensor, Tensor]:
            """Actions [B, 3 n, A] and the log-densities [B, 3 n] that they were drawn with."""
            batch, noise = batches["train"], batches["noise"]
            uniform = noise["uniform"] * noise["uniform"].new_tensor(spec.max_action)
            density = noise["uniform"].new_full(uniform.shape[:-1], dims * math.log(0.5))
            next_action, next_log_prob = policy.sample(tree, batch["next_obs"], noise["next_samples"])
            action, log_prob = policy.sample(tree, batch["obs"], noise["samples"])
            actions = torch.cat((uniform, next_action, action), 1)
            return stop_gradient(actions), stop_gradient(torch.cat((density, next_log_prob, log_prob), 1))

        def values(tree: Tree, batches: Batches) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
            """For either critic: the values of the data's actions [B], and each state's gap [B]."""
            batch = batches["train"]
            actions, log_probs = sampled(tree, batches)
            everything = torch.cat((batch["action"][:, None], actions), 1)
            found = []
            for q in nn.call(critic, tree["critic"], batch["obs"], everything):
                data = q[:, 0]
                z = q[:, 1:] - log_probs if self.min_q_version == 3 else q
                gap = torch.logsumexp(z, 1) - data
                found.append((data, gap if self.min_gap is None else gap.clamp_min(self.min_gap)))
            return found[0], found[1]

        def critic_loss(tree: Tree, batches: Batches) -> tuple[Tensor, Metrics]:
            y = stop_gradient(target(tree, batches))
            (q1, gap1), (q2, gap2) = values(tree, batches)
            gap = gap1.mean() + gap2.mean()
            penalty = self.min_q_weight * gap
            if self.lagrange is not None:
                penalty = weight(tree) * (penalty - 2 * self.lagrange)
            loss = (q1 - y).square().mean() + (q2 - y).square().mean() + penalty
            return loss, {"q": q1.mean(), "q_max": torch.maximum(q1, q2).max(), "gap": gap / 2}

        def weight(tree: Tree) -> Tensor:
            return tree["penalty"]["log"].exp().clamp(max=1e6)

        def penalty_loss(tree: Tree, batches: Batches) -> tuple[Tensor, Metrics]:
            (_, gap1), (_, gap2) = values(tree, batches)
            assert self.lagrange is not None
            excess = self.min_q_weight * (gap1.mean() + gap2.mean()) / 2 - self.lagrange
            return -weight(tree) * stop_gradient(excess), {"weight": weight(tree)}

        def actor_loss(tree: Tree, batches: Batches) -> tuple[Tensor, Metrics]:
            terms = policy.terms(tree, batches["train"], batches["noise"])
            return policy.combine(terms, 1.0), terms.metrics

        def cloning_loss(tree: Tree, batches: Batches) -> Tensor:
            batch, noise = batches["train"], batches["noise"]
            _, log_prob = policy.sample(tree, batch["obs"], noise["policy"])
            return (policy.temperature(tree) * log_prob).mean() + policy.imitation(tree, batch, noise)

        warm = self.bc_steps if self.bc_share is None else round(self.bc_share * (spec.offline or spec.steps))
        estimates = (
            *([Update("cloning", "actor", cloning_loss, self.actor_optimizer, stop=warm)] if warm else []),
            Update("actor", "actor", actor_loss, self.actor_optimizer, start=warm),
            Update("critic", "critic", critic_loss, self.critic_optimizer),
        )
        tensors: dict[str, Params] = {"temperature": {"log": torch.zeros(())}}
        if self.lagrange is not None:
            tensors["penalty"] = {"log": torch.zeros(())}
            estimates += (Update("penalty", "penalty", penalty_loss, self.critic_optimizer),)
        return Learner(
            modules={"actor": actor, "critic": critic},
            tensors=tensors,
            stages=(
                (Update("temperature", "temperature", temperature_loss, self.actor_optimizer),),
                estimates,
                (Update("critic_target", "critic_target", None, sgd(self.tau), Polyak("critic")),),
            ),
            act=policy.act,
            roles={"train": Role("train", self.batch_size)},
            noise={
                "policy": NoiseSpec((dims,)),
                **({"backup": NoiseSpec((n, dims))} if self.max_q_backup else {"next_policy": NoiseSpec((dims,))}),
                "uniform": NoiseSpec((n, dims), distribution="uniform"),
                "next_samples": NoiseSpec((n, dims)),
                "samples": NoiseSpec((n, dims)),
            },
            policy=policy,
            normalize=self.normalize,
            rewards=self.rewards,
            span=None if self.bc_share is None else spec.offline or spec.steps,
        )


@dataclass(frozen=True)
class _Policy(SACTerms):
    """CQL's terms: the degree weighs the improvement (GORL's Eq. 16), since the constraint is in the conservative Q.

    Form: `mode` clones by the squared error of the mode.
    """

    forms: tuple[str, ...] = field(default=("mode",), kw_only=True)

    name: ClassVar[str] = "cql"

    def combine(self, terms: Terms, degree: float | Tensor | None) -> Tensor:
        assert terms.rest is not None
        return (terms.rest - (terms.improvement if degree is None else terms.improvement * degree)).mean()

    def imitation(self, tree: Tree, batch: Batch, noise: Mapping[str, Tensor], form: tuple[str, ...] = ()) -> Tensor:
        if "mode" in form:
            return (self.act(tree, batch["obs"], None, None, True)[0] - batch["action"]).square().mean()
        return super().imitation(tree, batch, noise)
