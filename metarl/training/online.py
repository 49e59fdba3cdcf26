"""The online half of a run: environments that the learner acts in, and the replay that it learns from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarl.bilevel import Tree
from metarl.bilevel.recording import leaves, record
from metarl.config import Online
from metarl.data.replay import Replay
from metarl.errors import CheckpointError, ConfigError
from metarl.learner import NoiseSpec
from metarl.training.evaluation import Policy
from metarl.training.folder import RunFolder
from metarl.training.streams import Noise, derive_seed

Told = dict[str, NDArray[Any]]


class Actor:
    """A policy acting with its exploration, on the parameters that training overwrites.

    A policy without a carry is recorded: one observation costs little more than its products.
    """

    def __init__(self, policy: Policy, eager: bool) -> None:
        self.policy, self.eager = policy, eager
        self._program: Callable[[Tensor, Tensor], Any] | None = None

    @torch.no_grad()
    def __call__(self, obs: NDArray[Any], noise: Tensor, carry: Any) -> tuple[NDArray[Any], Any, Told]:
        """On raw observations [N, O] with standard normal noise.

        Returns:
            actions [N, A], the carry, and what the learner tells of these actions.
        """
        x = self.policy.read(obs)
        if self._program is None:
            action, after, told = self._act(self.policy.tree, x, carry, noise)
            if after is None and not self.eager:
                self._record(x, noise)
            carry = after
        if self._program is not None:  # also for the first action: a run that goes on computes as one that did not stop
            action, *values = self._program(x, noise)
            told = dict(zip(self._names, values, strict=True))
        return action.float().cpu().numpy(), carry, {name: value.cpu().numpy() for name, value in told.items()}

    def _act(self, tree: Tree, x: Tensor, carry: Any, noise: Tensor) -> tuple[Tensor, Any, dict[str, Tensor]]:
        learner = self.policy.learner
        told = {} if learner.told is None else learner.told(tree, x, carry, noise)
        return *learner.act(tree, x, carry, noise, False), told

    def _record(self, x: Tensor, noise: Tensor) -> None:
        def act(tree: Tree, x: Tensor, noise: Tensor) -> list[Tensor]:
            action, _, told = self._act(tree, x, None, noise)
            self._names = tuple(told)
            return [action, *told.values()]

        recording = record(act, self.policy.tree, x, noise)
        inputs = leaves(self.policy.tree, x, noise)
        kept = recording.prune()
        parameters = [inputs[i] for i in kept if i < len(inputs) - 2]
        read = [i - len(inputs) + 2 for i in kept if i >= len(inputs) - 2]  # a policy may explore without noise
        forward = recording.module.forward
        self._program = lambda *given: forward(*parameters, *[given[i] for i in read])


class Interaction:
    """The environments of an online run, stepped in turn on one batched forward.

    An episode's reset seed is a function of the run's seed, the environment and the episode's number; noise and random
    actions are functions of the interaction's number. So a checkpoint holds two numbers for each environment: an
    episode that it cuts is lived through again from its reset seed by the actions that the replay's log holds.

    Args:
        make_env: makes a training environment; evaluation has its own.
        online: the settings.
        replay: where transitions go.
        max_action: bounds of actions, per dimension.
        seed: of the run.
        exploration: numbers of noise that an exploring action reads; one for each of its dimensions if None.
    """

    def __init__(
        self,
        make_env: Callable[[], gym.Env],
        online: Online,
        replay: Replay,
        max_action: tuple[float, ...],
        seed: int,
        exploration: int | None = None,
    ) -> None:
        self.envs = [make_env() for _ in range(online.envs)]
        self.replay, self.seed = replay, seed
        self.high = np.array(max_action, np.float32)
        n, size = online.envs, len(max_action)
        like = replay.rows
        drawn = size if exploration is None else exploration
        self._noise = Noise(NoiseSpec((drawn,)), (n, drawn), seed, "exploration", like.dtype, like.device)
        self._uniform = Noise(
            NoiseSpec((size,), distribution="uniform"),
            (n, size),
            seed,
            "random actions",
            torch.float32,
            torch.device("cpu"),
        )
        self._random = online.random_steps or 0
        self.taken = 0  # interactions: one step of every environment
        self._episode, self._begun = [0] * n, [0] * n
        self._obs: NDArray[Any] = np.stack([self._reset(i) for i in range(n)])
        self._returns, self._lengths, self._succeeded = [0.0] * n, [0] * n, [False] * n
        self._carry: Any = None
        self.finished: list[dict[str, float]] = []
        self._told: dict[str, list[float]] = {}  # name -> sum and number of values since the last row

    @property
    def steps(self) -> int:
        """Environment steps taken."""
        return self.taken * len(self.envs)

    @property
    def pending(self) -> bool:
        """Whether there are figures that no row tells of yet."""
        return bool(self.finished or self._told)

    @property
    def between_episodes(self) -> bool:
        """Whether the first environment has just been reset."""
        return self._begun[0] == self.taken

    def step(self, actor: Actor) -> list[dict[str, float]]:
        """One step of every environment, into the replay; returns the figures of the episodes that ended with it."""
        self.taken += 1
        before = len(self.finished)
        if self.steps <= self._random:
            actions = self._uniform.draw(self.taken).numpy() * self.high
        else:
            actions, self._carry, told = actor(self._obs, self._noise.draw(self.taken), self._carry)
            for name, values in told.items():
                kept = self._told.setdefault(name, [0.0, 0.0])
                kept[0] += float(values.sum())
                kept[1] += values.size
        for i, action in enumerate(actions.clip(-self.high, self.high)):
            row, columns = self.replay.row()
            columns["obs"][:] = self._obs[i]
            columns["action"][:] = action
            ended = self._live(i, action, columns)
            self.replay.add(row)
            if ended:
                self._end(i)
        return self.finished[before:]

    def _live(self, i: int, action: NDArray[Any], columns: Mapping[str, NDArray[Any]]) -> bool:
        """One step of one environment; what it gives is written to `columns`. Whether the episode ended."""
        obs, reward, terminated, truncated, info = self.envs[i].step(action)
        # Before any reset: this is the state that the action led to.
        columns["next_obs"][:] = self._obs[i] = obs
        columns["reward"][:] = reward
        columns["terminated"][:], columns["truncated"][:] = terminated, truncated
        self._returns[i] += float(reward)
        self._lengths[i] += 1
        self._succeeded[i] |= bool(info.get("success", False))
        return bool(terminated or truncated)

    def _end(self, i: int) -> None:
        success = {"success": float(self._succeeded[i])} if self._goals else {}
        self.finished.append({"return": self._returns[i], "length": self._lengths[i], **success})
        self._episode[i] += 1
        self._begun[i] = self.taken
        self._returns[i], self._lengths[i], self._succeeded[i] = 0.0, 0, False
        self._obs[i] = self._reset(i)
        self._carry = None

    def _reset(self, i: int) -> NDArray[Any]:
        seed = derive_seed(self.seed, "episode", i, self._episode[i]) % 2**32
        obs, info = self.envs[i].reset(seed=seed)
        self._goals = "success" in info
        return np.asarray(obs)

    def figures(self) -> dict[str, float]:
        """Since the last call: means over the episodes that ended and how many they were, and over what was told."""
        found, self.finished = self.finished, []
        told, self._told = self._told, {}
        means = {name: total / n for name, (total, n) in told.items()}
        if found:
            means |= {name: sum(e[name] for e in found) / len(found) for name in found[0]}
            means["episodes"] = float(len(found))
        return {f"online/{name}": value for name, value in means.items()}

    def close(self) -> None:
        """Closes the environments."""
        for env in self.envs:
            env.close()

    # -- checkpoints -----------------------------------------------------------------------------------------

    def save(self, folder: RunFolder) -> dict[str, Any]:
        """Adds to the replay's log; returns the rest as JSON."""
        return {
            "replay": self.replay.save(folder.replay),
            "taken": self.taken,
            "episode": self._episode,
            "begun": self._begun,
            "carries": self._carry is not None,
            "carry": self._carry.tolist() if isinstance(self._carry, Tensor) else None,
            "finished": self.finished,
            "told": self._told,
        }

    def restore(self, folder: RunFolder, saved: dict[str, Any]) -> None:
        """Takes up where `save` was called; unfinished episodes are lived through again.

        Raises:
            CheckpointError: the log is not whole, or an environment does not repeat its episode.
            ConfigError: the policy carried more than a tensor, which a checkpoint in mid-episode does not hold.
        """
        self.replay.restore(folder.replay, saved["replay"])
        self.taken, self.finished = saved["taken"], saved["finished"]
        self._told = {name: list(kept) for name, kept in saved.get("told", {}).items()}
        self._episode, self._begun = list(saved["episode"]), list(saved["begun"])
        if saved.get("carry") is not None:
            like = self.replay.rows
            self._carry = torch.tensor(saved["carry"], dtype=like.dtype, device=like.device)
        elif saved.get("carries", False) and not self.between_episodes:
            raise ConfigError(
                f"{folder.path}: its policy carries more than a tensor from step to step, so the run cannot go on from "
                "the middle of an episode; start it anew with all the steps that it is to have"
            )
        n, first = len(self.envs), min(self._begun)
        lived = self.replay.read(folder.replay, first * n, (self.taken - first) * n)
        _, columns = self.replay.row()
        where = self.replay.layout.slices()
        for i in range(n):
            self._obs[i] = self._reset(i)
            for row in lived[(self._begun[i] - first) * n + i :: n]:
                self._live(i, row[where["action"]].astype(np.float32), columns)
                if not np.array_equal(columns["next_obs"], row[where["next_obs"]]):
                    raise CheckpointError(
                        f"{folder.path}: the environment does not repeat its episode from the same seed and actions, "
                        "so the run cannot go on from the middle of it; use one that depends on its reset seed alone"
                    )
