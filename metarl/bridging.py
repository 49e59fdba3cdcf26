"""From a policy learned on data to one that learns in the environment: what `pex` and `jsrl` share.

At the switch everything that acted stops learning and stays, bit for bit, as data made it; value functions, their
targets and their optimisers go on. A fresh policy pi then learns by advantage-weighted likelihood (PEX, Zhang et al.
2023, arXiv:2302.00935; IQL, Kostrikov et al. 2021, arXiv:2110.06169, Eq. 7):

    L_pi = mean -min(exp(beta A), 100) log pi(a|s),   A = min_i Q'_i(s, a) - V(s), a constant
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metarl import nn
from metarl.bilevel import Params, Polyak, Tree, Update
from metarl.errors import ConfigError
from metarl.learner import Act, Learner, PolicyTerms, Spec

CLIP = 100.0  # of exp(beta A)


@dataclass(frozen=True)
class Offline:
    """What an offline phase leaves behind.

    Attributes:
        act: how its policy acts.
        steps: gradient steps of the phase.
        critic: the template of its twin critic, in groups `critic` and `critic_target`.
        policy: its terms, which know V.
    """

    act: Act
    steps: int
    critic: nn.TwinCritic
    policy: PolicyTerms

    def q(self, tree: Tree, obs: Tensor, action: Tensor, group: str = "critic") -> Tensor:
        """min_i Q_i(s, a) of the critic, or of its target."""
        return torch.minimum(*nn.call(self.critic, tree[group], obs, action))

    def mode(self, tree: Tree, obs: Tensor) -> Tensor:
        """Its deterministic action."""
        return self.act(tree, obs, None, None, True)[0]


def frozen(learner: Learner, spec: Spec, name: str) -> tuple[Learner, Offline]:
    """The learner whose policy stops learning at the switch, and what it leaves behind.

    A group that it acts by and that would only begin to learn after the switch, as all do where there is no offline
    phase, must be given by `init`.

    Args:
        learner: with a policy and a twin critic.
        spec: of the run.
        name: of the objective, for messages.

    Raises:
        ConfigError: no environment is ever met, or there is no twin critic to go on with.
    """
    if spec.offline is None:
        raise ConfigError(
            f"objective {name}: it is about an environment met after the data; add online: {{from_data: 0.5}} and "
            "steps: {offline: N, online: M}"
        )
    policy = learner.hooks(name)
    critic = learner.modules.get("critic")
    if not isinstance(critic, nn.TwinCritic) or "critic_target" not in learner.init().tree:
        raise ConfigError(
            f"objective {name}: it chooses by the values of actions, and this algorithm learns no twin critic; choose "
            "one that does, such as iql"
        )
    offline = Offline(learner.act, spec.offline, critic, policy)
    followers = {u.params: u.gradient.source for u in learner.updates.values() if isinstance(u.gradient, Polyak)}

    def kept(update: Update) -> bool:
        return followers.get(update.params, update.params) in ("critic", "value")

    before = learner
    learner = _changed(learner, lambda update: update if kept(update) else _until(update, spec.offline or 0))
    untrained = _moved(before) - _moved(learner)
    return replace(learner, last=name, given=learner.given | (acting(learner, spec) & untrained)), offline


def replaced(learner: Learner, group: str, new: Update, stop: int) -> Learner:
    """The learner with `new`, which starts after `stop`, beside the Update of `group`, which ends there."""
    (old,) = (update for update in learner.updates.values() if update.params == group)
    learner = learner.with_update_beside(old.name, replace(new, optimizer=old.optimizer, start=stop))
    return _changed(learner, lambda update: _until(update, stop) if update.name == old.name else update)


def acting(learner: Learner, spec: Spec) -> frozenset[str]:
    """The parameter groups that `act` reads."""
    seen: set[str] = set()

    class Watched(dict[str, Params]):
        def __getitem__(self, group: str) -> Params:
            seen.add(group)
            return super().__getitem__(group)

    learner.act(Watched(learner.init().tree), torch.zeros(1, spec.obs_dim), None, None, True)
    return frozenset(seen)


def advantage(offline: Offline, tree: Tree, obs: Tensor, action: Tensor) -> Tensor:
    """min_i Q'_i(s, a) - V(s)."""
    return offline.q(tree, obs, action, "critic_target") - offline.policy.v(tree, obs)


def weighted_log_prob(
    policy: nn.GaussianPolicy, params: Params, obs: Tensor, action: Tensor, advantage: Tensor, beta: float
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """L_pi for actions in units of their bounds, and what it logs."""
    weight = torch.exp(beta * advantage.detach()).clamp(max=CLIP)
    log_prob = nn.normal_log_prob(action.detach(), *nn.call(policy, params, obs))
    return -(weight * log_prob).mean(), {"log_prob": log_prob.mean(), "weight": weight.mean()}


def _moved(learner: Learner) -> frozenset[str]:
    return frozenset(update.params for update in learner.updates.values())


def _until(update: Update, stop: int) -> Update | None:
    if stop <= update.start:
        return None
    return update if update.stop is not None and update.stop <= stop else replace(update, stop=stop)


def _changed(learner: Learner, change: Callable[[Update], Update | None]) -> Learner:
    stages = (tuple(new for update in stage if (new := change(update)) is not None) for stage in learner.stages)
    return replace(learner, stages=tuple(stage for stage in stages if stage))
