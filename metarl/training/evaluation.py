"""Evaluation in environments of its own, all episodes stepped together on one batched forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray

from metarl.bilevel import Tree
from metarl.data.transitions import Statistics
from metarl.learner import Learner
from metarl.training.streams import derive_seed


@dataclass(frozen=True)
class Policy:
    """A trained policy on raw observations.

    Attributes:
        learner, tree: how to act, and the parameters.
        statistics: of the training data; None where the learner does not normalise.
    """

    learner: Learner
    tree: Tree
    statistics: Statistics | None

    @torch.no_grad()
    def __call__(self, obs: NDArray[Any], carry: Any = None) -> tuple[NDArray[np.float32], Any]:
        """Deterministic actions [N, action_dim] for raw observations [N, obs_dim], and the carry."""
        like = next(iter(next(iter(self.tree.values())).values()))
        x = torch.as_tensor(np.asarray(obs), dtype=torch.float32)
        if self.statistics is not None:
            x = self.statistics(x)
        action, carry = self.learner.act(self.tree, x.to(like.device, like.dtype), carry, None, True)
        return action.float().cpu().numpy(), carry


@dataclass(frozen=True)
class EpisodeReturns:
    """Raw undiscounted returns and lengths of the episodes of one evaluation."""

    returns: tuple[float, ...]
    lengths: tuple[int, ...]

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))


class Evaluator:
    """Runs a policy for some episodes; start states depend on the seed and the step alone.

    Runs with one seed meet the same start states, so that learners are compared on equal terms.
    """

    def __init__(self, make_env: Callable[[], gym.Env], episodes: int, seed: int) -> None:
        self.envs = [make_env() for _ in range(episodes)]
        self.seed = seed

    def __call__(self, policy: Policy, step: int) -> EpisodeReturns:
        """Every environment runs one episode to its end."""
        obs = np.stack(
            [
                env.reset(seed=derive_seed(self.seed, "evaluation", step, i) % 2**32)[0]
                for i, env in enumerate(self.envs)
            ]
        )
        space = self.envs[0].action_space
        assert isinstance(space, gym.spaces.Box)
        returns = np.zeros(len(self.envs))
        lengths = np.zeros(len(self.envs), dtype=int)
        running = np.ones(len(self.envs), dtype=bool)
        carry = None
        while running.any():
            # A fixed batch, ended episodes included: a carry keeps its rows, and a row's numbers their bits.
            actions, carry = policy(obs, carry)
            actions = np.clip(actions, space.low, space.high)
            for i in np.flatnonzero(running):
                obs[i], reward, terminated, truncated, _ = self.envs[i].step(actions[i])
                returns[i] += float(reward)
                lengths[i] += 1
                running[i] = not (terminated or truncated)
        return EpisodeReturns(tuple(returns.tolist()), tuple(lengths.tolist()))

    def close(self) -> None:
        """Closes the environments."""
        for env in self.envs:
            env.close()
