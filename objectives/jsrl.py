"""JSRL: Uchendu et al. 2022, "Jump-Start Reinforcement Learning", arXiv:2204.02372, on an algorithm with Q and V.

The frozen offline policy takes the first h steps of every episode, a fresh one the rest:

    a_t = mode of pi_offline(.|s_t) for t < h,   a_t ~ pi(.|s_t) from there on

h falls from `horizon` to 0 in `stages` equal steps. As a curriculum: once `window` training episodes have been lived at
one h, it falls as soon as the mean return of the last `window` is no worse than the best mean at which it fell before,
but for `tolerance` of that one's size; the first window always passes. Or `random`, drawn anew for every episode from
those stages. pi learns from all transitions by L_pi of `metarl.bridging`, last in every step; Q and V go on as the
algorithm trains them.

Deviations: the paper judges the curriculum by evaluations, here by training episodes, which cost nothing more.
Evaluated is what acts: on data the offline policy, then with a curriculum the two together, at random h the fresh one
alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torchopt.base import GradientTransformation

from metarl import Learner, Spec, Update, adam, nn, option, sgd
from metarl.bilevel import Batches, Metrics, Track, Tree
from metarl.bridging import Offline, advantage, frozen, weighted_log_prob
from metarl.errors import ConfigError

ROOT_HALF = math.sqrt(0.5)


@dataclass(frozen=True)
class JSRL:
    """The frozen offline policy begins every episode, a fresh one ends it."""

    schedule: Literal["curriculum", "random"] = option("curriculum", "how h falls")
    horizon: int | None = option(None, "h at the start, in steps; by default the environment's time limit", least=1)
    stages: int = option(10, "steps in which h falls to 0", least=1)
    window: int = option(5, "training episodes whose mean return is looked at", least=1)
    tolerance: float = option(0.05, "share of the best mean return that may be lost on the way", least=0)
    beta: float = option(10.0, "inverse temperature of the advantage weights")
    hidden: tuple[int, ...] = option((256, 256), "widths of the hidden layers of the fresh policy", least=1)
    log_std: tuple[float, ...] = option((-5.0, 2.0), "bounds of its logarithmic deviation")
    policy_optimizer: GradientTransformation = option(
        factory=lambda: adam(lr=3e-4), help="of the fresh policy", group="metarl.optimizers"
    )

    def __post_init__(self) -> None:
        if len(self.log_std) != 2 or not self.log_std[0] < self.log_std[1]:
            raise ValueError(f"log_std must be a lower and a higher bound, not {list(self.log_std)}")

    def attach(self, learner: Learner, spec: Spec, generator: torch.Generator) -> Learner:
        """The learner with the group `policy_1`, which acts after the offline one.

        Raises:
            ConfigError: there is no online phase, no twin critic, no V, or no horizon to begin with.
        """
        learner, offline = frozen(learner, spec, "jsrl")
        offline.policy.v(learner.init().tree, torch.zeros(1, spec.obs_dim))  # which says so where there is none
        horizon = self.horizon or spec.time_limit
        if horizon is None:
            raise ConfigError("objective jsrl: this environment has no time limit to begin with; set horizon")
        bounds = (self.log_std[0], self.log_std[1])
        policy = nn.GaussianPolicy(spec.obs_dim, spec.action_dim, self.hidden, generator, bounds, "xavier")
        together = _Together(offline, policy, spec.max_action, self, horizon)

        def policy_loss(tree: Tree, batches: Batches) -> tuple[Tensor, Metrics]:
            batch = batches["train"]
            a = advantage(offline, tree, batch["obs"], batch["action"])
            action = batch["action"] / batch["action"].new_tensor(spec.max_action)
            loss, metrics = weighted_log_prob(policy, tree["policy_1"], batch["obs"], action, a, self.beta)
            return loss, {**metrics, "advantage": a.mean()}

        update = Update("policy_1", "policy_1", policy_loss, self.policy_optimizer, start=offline.steps)
        met = Track(lambda tree, batches: {**tree["jump_start"], "met": torch.ones_like(_of(tree, "met"))})
        first = Update("jump_start", "jump_start", None, sgd(1.0), met, start=offline.steps, stop=offline.steps + 1)
        start = {
            "met": torch.tensor(0.0),
            "horizon": torch.tensor(float(horizon)),
            "returns": torch.zeros(self.window),
            "seen": torch.tensor(0.0),
            "best": torch.tensor(0.0),
            "judged": torch.tensor(0.0),
        }
        return replace(
            learner.with_modules(policy_1=policy).with_tensors(jump_start=start),
            stages=((first,), *learner.stages, (update,)),
            act=together.act,
            told=together.told,
            exploration=spec.action_dim + 1,
            after_episode=together.after_episode if self.schedule == "curriculum" else None,
        )


@dataclass(frozen=True)
class _Together:
    """How the two act; the carry is [N, 2], steps taken in the episode and its h."""

    offline: Offline
    policy: nn.GaussianPolicy
    max_action: tuple[float, ...]
    settings: JSRL
    horizon: int

    def act(self, tree: Tree, obs: Tensor, carry: Any, noise: Tensor | None, deterministic: bool) -> tuple[Tensor, Any]:
        noise = None if deterministic else noise
        carry = self._begun(tree, obs, carry, noise)
        mean, log_std = nn.call(self.policy, tree["policy_1"], obs)
        if noise is not None:
            mean = mean + torch.exp(log_std) * noise[:, :-1]
        action = mean.clamp(-1, 1) * obs.new_tensor(self.max_action)
        guided = _guided(carry)[:, None]
        step = torch.tensor((1.0, 0.0), dtype=carry.dtype, device=carry.device)
        return torch.where(guided, self.offline.mode(tree, obs), action), carry + step

    def told(self, tree: Tree, obs: Tensor, carry: Any, noise: Tensor) -> dict[str, Tensor]:
        """Whether the offline policy acts, and h."""
        carry = self._begun(tree, obs, carry, noise)
        return {"guided": _guided(carry).to(obs.dtype), "horizon": carry[:, 1]}

    def after_episode(self, tree: Tree, figures: Mapping[str, float]) -> Tree:
        """The curriculum, one episode on."""
        now = dict(tree["jump_start"])
        now["returns"] = torch.cat((now["returns"][1:], now["returns"].new_tensor([figures["return"]])))
        now["seen"] = now["seen"] + 1
        if now["seen"] < self.settings.window:
            return {"jump_start": now}
        mean, best = now["returns"].mean(), now["best"]
        if not now["judged"] or mean >= best - self.settings.tolerance * best.abs():
            stages = self.settings.stages
            # In whole stages: what repeated subtraction leaves of 1000 - 3 (1000 / 3) would be one more guided step.
            left = (now["horizon"] * stages / self.horizon).round() - 1
            now["horizon"] = left.clamp(min=0) * self.horizon / stages
            now["best"] = torch.maximum(mean, best) if now["judged"] else mean
            now["judged"], now["seen"] = torch.ones_like(best), torch.zeros_like(best)
        return {"jump_start": now}

    def _begun(self, tree: Tree, obs: Tensor, carry: Any, noise: Tensor | None) -> Tensor:
        """The carry, and where an episode begins a new one."""
        if carry is not None:
            return carry
        h, settings = _of(tree, "horizon"), self.settings
        if noise is None:  # evaluated: until the environment is met, the offline policy
            h = torch.where(_of(tree, "met") > 0, h if settings.schedule == "curriculum" else 0 * h, math.inf)
        elif settings.schedule == "random":
            u = 0.5 * (1 + torch.erf(noise[:, -1] * ROOT_HALF))
            h = (u * (settings.stages + 1)).floor().clamp(max=settings.stages) * self.horizon / settings.stages
        h = h.expand(len(obs))
        return torch.stack((torch.zeros_like(h), h), 1)


def _guided(carry: Tensor) -> Tensor:
    return carry[:, 0] < carry[:, 1]


def _of(tree: Tree, name: str) -> Tensor:
    return tree["jump_start"][name]
