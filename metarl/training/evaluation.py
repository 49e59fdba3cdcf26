"""Evaluation in environments of its own, all episodes stepped together on one batched forward."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarl.bilevel import Tree
from metarl.data.flatten import flatten
from metarl.data.transitions import Statistics
from metarl.learner import Learner
from metarl.training.streams import derive_seed


@dataclass(frozen=True)
class Policy:
    """A trained policy on raw observations.

    Attributes:
        learner, tree: how to act, and the parameters.
        statistics: of the training data; None where the learner does not normalise.
        obs_keys: of a dict observation, in the order in which it was trained; empty for plain vectors.
    """

    learner: Learner
    tree: Tree
    statistics: Statistics | None
    obs_keys: tuple[str, ...] = ()

    @torch.no_grad()
    def __call__(
        self, obs: NDArray[Any] | Mapping[str, NDArray[Any]], carry: Any = None
    ) -> tuple[NDArray[np.float32], Any]:
        """Deterministic actions [N, action_dim] for raw observations [N, obs_dim] or a dict of parts, and the carry."""
        action, carry = self.learner.act(self.tree, self.read(flatten(obs, self.obs_keys)), carry, None, True)
        return action.float().cpu().numpy(), carry

    def read(self, obs: NDArray[Any]) -> Tensor:
        """What the learner looks at in the place of raw observations [N, obs_dim]."""
        like = next(iter(next(iter(self.tree.values())).values()))
        x = torch.as_tensor(np.asarray(obs), dtype=torch.float32)
        if self.statistics is not None:
            x = self.statistics(x)
        return x.to(like.device, like.dtype)


@dataclass(frozen=True)
class EpisodeReturns:
    """The episodes of one evaluation.

    Attributes:
        returns: raw and undiscounted.
        lengths: in steps.
        steps_to_goal: the step at which `info["success"]` first held, None in an episode where it never did; None
            altogether for an environment whose info has no `success`.
    """

    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    steps_to_goal: tuple[int | None, ...] | None = None

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def reached(self) -> tuple[int, ...]:
        """Steps to goal of the episodes that reached it."""
        return tuple(steps for steps in self.steps_to_goal or () if steps is not None)

    @property
    def success(self) -> float | None:
        """Share of the episodes that reached their goal; None where there is none to reach."""
        return None if self.steps_to_goal is None else len(self.reached) / len(self.steps_to_goal)

    def to_dict(self) -> dict[str, Any]:
        """For result.json; `steps_to_goal` only where there is a goal."""
        goal = {} if self.steps_to_goal is None else {"steps_to_goal": list(self.steps_to_goal)}
        return {"returns": list(self.returns), "lengths": list(self.lengths)} | goal

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EpisodeReturns:
        """What `to_dict` gave; other keys are ignored."""
        steps = values.get("steps_to_goal")
        return cls(tuple(values["returns"]), tuple(values["lengths"]), None if steps is None else tuple(steps))

    def figures(self) -> dict[str, float]:
        """What people watch: the success rate where there is a goal, and the mean return."""
        return ({} if self.success is None else {"success": self.success}) | {"return": self.mean}


class Evaluator:
    """Runs a policy for some episodes; start states depend on the seed and the step alone.

    Runs with one seed meet the same start states, so that learners are compared on equal terms. Where the environment's
    info has `success`, every evaluation of every run meets the same start-goal pairs, the first `episodes` of one
    list: a success rate over a few pairs drawn anew would tell more of the pairs than of the policy.
    """

    def __init__(self, make_env: Callable[[], gym.Env], episodes: int, seed: int) -> None:
        self.envs = [make_env() for _ in range(episodes)]
        self.seed = seed
        self.goals = "success" in self.envs[0].reset(seed=0)[1]

    def __call__(self, policy: Policy, step: int) -> EpisodeReturns:
        """Every environment runs one episode to its end."""
        obs = np.stack([env.reset(seed=self._reset_seed(step, i))[0] for i, env in enumerate(self.envs)])
        space = self.envs[0].action_space
        assert isinstance(space, gym.spaces.Box)
        # Plain lists, since adding to one number of an array takes as long as the rest of this loop.
        returns, lengths = [0.0] * len(self.envs), [0] * len(self.envs)
        steps_to_goal: list[int | None] = [None] * len(self.envs)
        running = list(enumerate(self.envs))
        carry = None
        while running:
            # A fixed batch, ended episodes included: a carry keeps its rows, and a row's numbers their bits.
            actions, carry = policy(obs, carry)
            actions = actions.clip(space.low, space.high)
            ended = set()
            for i, env in running:
                obs[i], reward, terminated, truncated, info = env.step(actions[i])
                returns[i] += float(reward)
                lengths[i] += 1
                if steps_to_goal[i] is None and info.get("success", False):
                    steps_to_goal[i] = lengths[i]
                if terminated or truncated:
                    ended.add(i)
            if ended:
                running = [(i, env) for i, env in running if i not in ended]
        goals = tuple(steps_to_goal) if self.goals else None
        return EpisodeReturns(tuple(returns), tuple(lengths), goals)

    def _reset_seed(self, step: int, episode: int) -> int:
        return derive_seed(*((0, "pair") if self.goals else (self.seed, "evaluation", step)), episode) % 2**32

    def close(self) -> None:
        """Closes the environments."""
        for env in self.envs:
            env.close()
