"""Evaluation: its own environments, whole episodes, start states from the seed and the step alone."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from metarl import Learner
from metarl.training.evaluation import Evaluator, Policy
from metarl.training.streams import derive_seed


class Countdown(gym.Env):
    """Ends after 1 to 5 steps, as its reset seed has it; pays the action; terminates or truncates by parity."""

    observation_space = gym.spaces.Box(-10, 10, (1,))
    action_space = gym.spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = self.length = int(self.np_random.integers(1, 6))
        self.alive = True
        return np.array([self.left], dtype=np.float32), {}

    def step(self, action):
        assert self.alive, "stepped after its end"
        self.left -= 1
        self.alive = self.left > 0
        over = not self.alive
        odd = bool(self.length % 2)
        return np.array([self.left], dtype=np.float32), float(action[0]), over and odd, over and not odd, {}


def policy(scale):
    def act(tree, obs, carry, noise, deterministic):
        assert deterministic
        return tree["actor"]["scale"] * torch.ones_like(obs), (carry or 0) + 1

    learner = Learner(modules={}, tensors={"actor": {"scale": torch.tensor(scale)}}, stages=(), act=act)
    return Policy(learner, {"actor": {"scale": torch.tensor(scale)}}, None)


def test_every_episode_runs_to_its_own_end_and_no_further():
    evaluator = Evaluator(Countdown, episodes=20, seed=3)
    result = evaluator(policy(0.5), step=7)
    lengths = []
    for i in range(20):
        env = Countdown()
        env.reset(seed=derive_seed(3, "evaluation", 7, i) % 2**32)
        lengths.append(env.length)
    assert list(result.lengths) == lengths and len(set(lengths)) == 5
    assert result.returns == pytest.approx([0.5 * n for n in lengths])
    assert result.mean == pytest.approx(0.5 * np.mean(lengths))


def test_actions_are_clipped_to_the_bounds_of_the_environment():
    evaluator = Evaluator(Countdown, episodes=4, seed=0)
    result = evaluator(policy(3.0), step=0)
    assert result.returns == tuple(float(n) for n in result.lengths)


def test_start_states_depend_on_seed_and_step_only():
    make = lambda: gym.make("Pendulum-v1")  # noqa: E731
    a, b, other = (Evaluator(make, 3, seed) for seed in (0, 0, 1))
    a(policy(0.1), step=5)
    assert a(policy(0.1), step=9) == b(policy(0.1), step=9)
    assert b(policy(0.1), step=10) != b(policy(0.1), step=9)
    assert other(policy(0.1), step=9) != b(policy(0.1), step=9)


def test_a_batch_of_episodes_gives_the_returns_of_one_at_a_time():
    together = Evaluator(lambda: gym.make("Pendulum-v1"), 3, seed=0)(policy(0.3), step=0)
    for i, expected in enumerate(together.returns):
        env = gym.make("Pendulum-v1")
        env.reset(seed=derive_seed(0, "evaluation", 0, i) % 2**32)
        total, over = 0.0, False
        while not over:
            _, reward, terminated, truncated, _ = env.step(np.array([0.3], dtype=np.float32))
            total, over = total + float(reward), terminated or truncated
        assert total == pytest.approx(expected, rel=1e-12)
