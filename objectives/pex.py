"""PEX: Zhang et al. 2023, "Policy Expansion for Bridging Offline-to-Online Reinforcement Learning", arXiv:2302.00935.

An offline phase by any algorithm with a twin critic leaves a policy behind, which is never changed again. Online, a set
of policies acts, the frozen one first: each proposes an action (frozen ones their mode, the newest a sample), and one
is drawn by the values that the online critic gives them:

    a_i ~ pi_i(.|s),   w ~ softmax_i(kappa min_j Q_j(s, a_i)),   a = a_w

Q and V go on as the algorithm trains them. The newest policy clones what the set would do now, drawn anew in every
state s of a batch (not what was done there):

    L_pi = mean -min(exp(beta A), 100) log pi(a|s),   A = min_j Q'_j(s, a) - V(s),   a of the set, w and A constants

after V, Q and Q' have moved. Adaptive: kappa follows the entropy of the choice, so that it stays `entropy` log n for n
policies, by descending log kappa (entropy log n - H(w)). Growing: at given steps the newest policy is frozen, too, and
a fresh one joins.

On an algorithm without V, V(s) = sum_i w_i min_j Q'_j(s, a_i), and the critic's target takes the set's action:
y = r + gamma (1 - d) min_j Q'_j(s', a'), the sum of both mean squares; nothing else of that algorithm goes on online.

The authors' code (Haichao-Zhang/PEX) is this on `iql` with `preset: pex`. Deviations: an evaluation takes the newest
policy's mode and the best of the set's actions always, where theirs samples one time in ten; what the environment and
the replay are given is cut at the bounds (the update's own actions are not, as there); the offline policy begins with
PyTorch's weights, where theirs begins with Glorot's, as `pex`'s own do here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchopt.base import GradientTransformation

from metarl import Learner, NoiseSpec, Spec, Update, adam, nn, option, sgd, stop_gradient
from metarl.bilevel import Batches, Metrics, Params, Track, Tree
from metarl.bridging import Offline, advantage, frozen, replaced, weighted_log_prob
from metarl.errors import ConfigError

ROOT_HALF = math.sqrt(0.5)


@dataclass(frozen=True)
class PEX:
    """A frozen offline policy and a fresh online one, composed by their values."""

    inverse_temperature: float = option(10.0, "kappa; where entropy is given, what it starts from", least=0)
    entropy: float | None = option(
        None, "share of log n at which the choice's entropy is held; null keeps kappa", least=0, most=1
    )
    grow: tuple[float, ...] = option(
        (), "online gradient steps (or, below 1, shares of them) after which the newest policy is frozen and one joins"
    )
    beta: float = option(10.0, "inverse temperature of the advantage weights")
    discount: float = option(0.99, "gamma, on an algorithm without V", least=0, most=1)
    hidden: tuple[int, ...] = option((256, 256), "widths of the hidden layers of the policies that join", least=1)
    log_std: tuple[float, ...] = option((-5.0, 2.0), "bounds of their logarithmic deviation")
    policy_optimizer: GradientTransformation = option(
        factory=lambda: adam(lr=3e-4), help="of each of them", group="metarl.optimizers"
    )
    temperature_optimizer: GradientTransformation = option(
        factory=lambda: adam(lr=3e-4), help="of log kappa, where entropy is given", group="metarl.optimizers"
    )

    def __post_init__(self) -> None:
        if self.entropy is not None and not self.inverse_temperature > 0:
            raise ValueError(
                "inverse_temperature must be above 0 where entropy is given, since its logarithm is learned"
            )
        if any(step <= 0 or (step >= 1 and step != int(step)) for step in self.grow):
            raise ValueError(f"grow must hold shares below 1 or whole gradient steps, not {list(self.grow)}")
        if len(self.log_std) != 2 or not self.log_std[0] < self.log_std[1]:
            raise ValueError(f"log_std must be a lower and a higher bound, not {list(self.log_std)}")

    def attach(self, learner: Learner, spec: Spec, generator: torch.Generator) -> Learner:
        """The learner with groups `policy_1`, `policy_2`, ..., which act with the offline one once the set has grown.

        Raises:
            ConfigError: there is no online phase, no twin critic, or the set would grow outside of the phase.
        """
        learner, offline = frozen(learner, spec, "pex")
        learner, starts = self._starts(learner, spec, offline.steps)
        bounds = (self.log_std[0], self.log_std[1])
        policies = [
            nn.GaussianPolicy(spec.obs_dim, spec.action_dim, self.hidden, generator, bounds, "xavier") for _ in starts
        ]
        chosen = _Set(offline, tuple(policies), spec.max_action, self.inverse_temperature)
        has_v = _has_v(learner, offline, spec)

        def policy_loss(i: int, tree: Tree, batches: Batches) -> tuple[Tensor, Metrics]:
            obs, noise = batches["train"]["obs"], batches["noise"]["pex"]
            actions = chosen.actions(tree, obs, noise)
            logits = chosen.logits(tree, obs, actions)
            choice = _drawn(logits, noise)
            action = _taken(actions, choice)
            if has_v:
                a = advantage(offline, tree, obs, action)
            else:
                q = offline.q(tree, obs, actions, "critic_target")
                a = _taken(q[..., None], choice).squeeze(-1) - (logits.softmax(-1) * q).sum(-1)
            scaled = action / action.new_tensor(spec.max_action)
            loss, metrics = weighted_log_prob(policies[i], tree[_group(i + 1)], obs, scaled, a, self.beta)
            told = {f"share_{k}": (choice == k).to(obs.dtype).mean() for k in range(i + 2)}
            return loss, {**metrics, **told, "advantage": a.mean(), "entropy": _entropy(logits).mean()}

        def critic_loss(tree: Tree, batches: Batches) -> tuple[Tensor, Metrics]:
            batch, noise = batches["train"], batches["noise"]["pex/next"]
            actions = chosen.actions(tree, batch["next_obs"], noise)
            action = _taken(actions, _drawn(chosen.logits(tree, batch["next_obs"], actions), noise))
            next_q = offline.q(tree, batch["next_obs"], action, "critic_target")
            y = stop_gradient(batch["reward"] + self.discount * (1 - batch["terminated"]) * next_q)
            q1, q2 = nn.call(offline.critic, tree["critic"], batch["obs"], batch["action"])
            return (q1 - y).square().mean() + (q2 - y).square().mean(), {"q": q1.mean()}

        def temperature_loss(tree: Tree, batches: Batches) -> tuple[Tensor, Metrics]:
            obs, noise = batches["train"]["obs"], batches["noise"]["pex"]
            logits = chosen.logits(tree, obs, chosen.actions(tree, obs, noise))
            found, log_kappa = _entropy(logits).mean(), tree["inverse_temperature"]["log"]
            wanted = (self.entropy or 0.0) * torch.log(tree["policy_set"]["size"])
            return log_kappa * stop_gradient(wanted - found), {"inverse_temperature": log_kappa.exp(), "entropy": found}

        names, stops = [_group(i + 1) for i in range(len(starts))], [*starts[1:], None]
        update = Update("", "", None, self.policy_optimizer)
        newest = tuple(
            replace(
                update, name=_group(i + 1), params=_group(i + 1), loss=partial(policy_loss, i), start=start, stop=stop
            )
            for i, (start, stop) in enumerate(zip(starts, stops, strict=True))
        )
        grown = tuple(
            Update(
                f"policy_set_{i + 2}", "policy_set", None, sgd(1.0), Track(_Size(i + 2)), start=start, stop=start + 1
            )
            for i, start in enumerate(starts)
        )
        noise = {"pex": NoiseSpec((spec.action_dim + 1,))}
        if not has_v:
            learner = replaced(learner, "critic", Update("critic_online", "critic", critic_loss, sgd(0)), offline.steps)
            noise["pex/next"] = NoiseSpec((spec.action_dim + 1,))
        last: tuple[Update, ...] = newest
        tensors: dict[str, Params] = {"policy_set": {"size": torch.tensor(1.0)}}
        if self.entropy is not None:
            tensors["inverse_temperature"] = {"log": torch.tensor(math.log(self.inverse_temperature))}
            last = (
                *last,
                Update(
                    "inverse_temperature",
                    "inverse_temperature",
                    temperature_loss,
                    self.temperature_optimizer,
                    start=offline.steps,
                ),
            )
        return replace(
            learner.with_modules(**dict(zip(names, policies, strict=True))).with_tensors(**tensors).with_noise(**noise),
            stages=(grown, *learner.stages, last),
            act=chosen.act,
            told=chosen.told,
            exploration=spec.action_dim + 1,
        )

    def _starts(self, learner: Learner, spec: Spec, offline: int) -> tuple[Learner, list[int]]:
        """The learner, bound to the run's steps where `grow` has shares; and the steps after which one joins."""
        online = spec.steps - offline
        later = [offline + (int(step) if step >= 1 else round(step * online)) for step in self.grow]
        starts = [offline, *later]
        if any(a >= b for a, b in itertools.pairwise([*starts, max(spec.steps, offline + 1)])):
            raise ConfigError(
                f"objective pex: grow={list(self.grow)} must be ascending and lie within the {online:,} online "
                "gradient steps"
            )
        return replace(learner, span=spec.steps) if any(step < 1 for step in self.grow) else learner, starts


@dataclass(frozen=True)
class _Size:
    """The set's new size."""

    size: int

    def __call__(self, tree: Tree, batches: Batches) -> Params:
        return {"size": torch.full_like(tree["policy_set"]["size"], self.size)}


@dataclass(frozen=True)
class _Set:
    """The offline policy and those that join, as far as they have; noise [B, A + 1] is an action's and the choice's."""

    offline: Offline
    policies: Sequence[nn.GaussianPolicy]
    max_action: tuple[float, ...]
    inverse_temperature: float

    def actions(self, tree: Tree, obs: Tensor, noise: Tensor | None) -> Tensor:
        """One action of each policy, [B, n, A]: modes, and of the newest a sample by `noise`; constants."""
        high = obs.new_tensor(self.max_action)
        found = [self.offline.mode(tree, obs)]
        newest = self._size(tree, noise) - 1
        for i, policy in enumerate(self.policies, 1):
            mean, log_std = nn.call(policy, tree[_group(i)], obs)
            if noise is not None:
                mean = mean + (newest == i).to(mean.dtype) * torch.exp(log_std) * noise[:, :-1]
            found.append(mean * high)
        return stop_gradient(torch.stack(found, 1))

    def logits(self, tree: Tree, obs: Tensor, actions: Tensor, exploring: bool = True) -> Tensor:
        """kappa min_j Q_j(s, a_i), [B, n]; the lowest number there is for a policy that has not joined."""
        log = tree["inverse_temperature"]["log"] if "inverse_temperature" in tree else None
        kappa = self.inverse_temperature if log is None else stop_gradient(log.exp())
        logits = kappa * self.offline.q(tree, obs, actions)
        index = torch.arange(actions.shape[1], device=logits.device, dtype=logits.dtype)
        size = self._size(tree, logits if exploring else None)
        return stop_gradient(torch.where(index < size, logits, torch.finfo(logits.dtype).min))

    def _size(self, tree: Tree, noise: Tensor | None) -> Tensor:
        # The first that joins explores before it has taken a gradient step, but is not yet evaluated.
        size = tree["policy_set"]["size"]
        return size if noise is None else size.clamp(min=2)

    def act(self, tree: Tree, obs: Tensor, carry: Any, noise: Tensor | None, deterministic: bool) -> tuple[Tensor, Any]:
        """The action drawn of the set, cut at the bounds; deterministic, the one of highest value."""
        noise = None if deterministic else noise
        actions = self.actions(tree, obs, noise)
        logits = self.logits(tree, obs, actions, noise is not None)
        choice = logits.argmax(-1) if noise is None else _drawn(logits, noise)
        high = obs.new_tensor(self.max_action)
        return torch.minimum(torch.maximum(_taken(actions, choice), -high), high), carry

    def told(self, tree: Tree, obs: Tensor, carry: Any, noise: Tensor) -> dict[str, Tensor]:
        """Which policy acts, 1 or 0 each."""
        choice = _drawn(self.logits(tree, obs, self.actions(tree, obs, noise)), noise)
        return {f"policy_{i}": (choice == i).to(obs.dtype) for i in range(len(self.policies) + 1)}


def weights(learner: Learner, tree: Tree, obs: Tensor) -> Tensor:
    """softmax_i(kappa min_j Q_j(s, a_i)) of the policies' modes, [B, n], on observations as the learner sees them.

    Raises:
        ConfigError: the learner has no set of policies.
    """
    chosen = getattr(learner.act, "__self__", None)
    if not isinstance(chosen, _Set):
        raise ConfigError("this learner has no set of policies; choose a run of pex")
    with torch.no_grad():
        return chosen.logits(tree, obs, chosen.actions(tree, obs, None), exploring=False).softmax(-1)


def _group(i: int) -> str:
    return f"policy_{i}"


def _has_v(learner: Learner, offline: Offline, spec: Spec) -> bool:
    try:
        offline.policy.v(learner.init().tree, torch.zeros(1, spec.obs_dim))
    except ConfigError:
        return False
    return "value" in learner.modules


def _drawn(logits: Tensor, noise: Tensor) -> Tensor:
    """Indices [B] by the softmax of logits [B, n]: the quantile of the last standard normal number of `noise`."""
    u = 0.5 * (1 + torch.erf(noise[:, -1:] * ROOT_HALF))
    reached = logits.softmax(-1).cumsum(-1)
    return (reached < u * reached[:, -1:]).sum(-1)  # the sum is 1 but for rounding: nobody is drawn who has no share


def _taken(values: Tensor, choice: Tensor) -> Tensor:
    """values[b, choice[b]] of [B, n, A]."""
    return values.gather(1, choice[:, None, None].expand(-1, 1, values.shape[-1])).squeeze(1)


def _entropy(logits: Tensor) -> Tensor:
    """Of the choice, [B]."""
    log = logits.log_softmax(-1)
    return -(log.exp() * log.clamp(min=-1e4)).sum(-1)
