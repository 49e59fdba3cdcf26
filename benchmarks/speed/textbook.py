"""TD3+BC as one writes it in plain PyTorch, one file and no framework: what metarl's speed is measured against.

The maths is that of `algorithms/td3_bc.py`; modules are nn.Sequential, optimisers torch.optim.Adam, targets deep
copies moved parameter by parameter, and batches numpy rows turned into tensors.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional


class Actor(nn.Module):
    """tanh policy on [-max_action, max_action]."""

    def __init__(self, obs_dim: int, action_dim: int, max_action: float, hidden: Sequence[int]) -> None:
        super().__init__()
        self.net = _mlp([obs_dim, *hidden, action_dim])
        self.max_action = max_action

    def forward(self, obs: Tensor) -> Tensor:
        return self.max_action * torch.tanh(self.net(obs))


class Critic(nn.Module):
    """Two Q functions."""

    def __init__(self, obs_dim: int, action_dim: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.q1 = _mlp([obs_dim + action_dim, *hidden, 1])
        self.q2 = _mlp([obs_dim + action_dim, *hidden, 1])

    def forward(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat([obs, action], 1)
        return self.q1(x), self.q2(x)


class ReplayBuffer:
    """Columns in numpy; a batch is drawn by index and copied into tensors."""

    def __init__(self, columns: dict[str, NDArray[np.float32]], seed: int) -> None:
        self.columns, self.size = columns, len(columns["obs"])
        self.random = np.random.default_rng(seed)

    def sample(self, n: int) -> dict[str, Tensor]:
        """`n` transitions with replacement."""
        indices = self.random.integers(0, self.size, n)
        return {name: torch.from_numpy(column[indices]) for name, column in self.columns.items()}


class TD3BC:
    """Fujimoto & Gu 2021, with the defaults of `algorithms/td3_bc.py`."""

    def __init__(self, obs_dim: int, action_dim: int, max_action: float, hidden: Sequence[int]) -> None:
        self.actor = Actor(obs_dim, action_dim, max_action, hidden)
        self.critic = Critic(obs_dim, action_dim, hidden)
        self.actor_target, self.critic_target = copy.deepcopy(self.actor), copy.deepcopy(self.critic)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=3e-4)
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), lr=3e-4)
        self.max_action, self.steps = max_action, 0

    def train_step(self, batch: dict[str, Tensor]) -> None:
        """One critic step; on every second call also the policy's and the targets'."""
        self.steps += 1
        obs, action = batch["obs"], batch["action"]
        with torch.no_grad():
            noise = (torch.randn_like(action) * 0.2).clamp(-0.5, 0.5) * self.max_action
            next_action = (self.actor_target(batch["next_obs"]) + noise).clamp(-self.max_action, self.max_action)
            target = torch.min(*self.critic_target(batch["next_obs"], next_action))
            y = batch["reward"][:, None] + 0.99 * (1 - batch["terminated"][:, None]) * target
        q1, q2 = self.critic(obs, action)
        critic_loss = functional.mse_loss(q1, y) + functional.mse_loss(q2, y)
        self.critic_optimizer.zero_grad()
        critic_loss.backward()
        self.critic_optimizer.step()
        if self.steps % 2:
            return
        policy = self.actor(obs)
        q = self.critic.q1(torch.cat([obs, policy], 1))
        actor_loss = -2.5 / q.abs().mean().detach() * q.mean() + functional.mse_loss(policy, action)
        self.actor_optimizer.zero_grad()
        actor_loss.backward()
        self.actor_optimizer.step()
        _follow(self.critic, self.critic_target)
        _follow(self.actor, self.actor_target)


def _mlp(sizes: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _follow(source: nn.Module, target: nn.Module, tau: float = 0.005) -> None:
    for theirs, own in zip(source.parameters(), target.parameters(), strict=True):
        own.data.copy_(tau * theirs.data + (1 - tau) * own.data)
