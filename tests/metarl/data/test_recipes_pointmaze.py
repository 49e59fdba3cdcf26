"""PointMaze: planner and driver, pieces, one flattening for data and evaluation, success from fixed pairs."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile

import gymnasium as gym
import numpy as np
import pytest
import torch

from metarl import Learner, config
from metarl.data.flatten import flatten, key_order
from metarl.data.recipes import make_dataset
from metarl.data.recipes.pointmaze import PIECE, Driver, LargeMaze, Maze, MediumMaze, UMaze
from metarl.data.transitions import Statistics
from metarl.envs import make_env, spec_of
from metarl.envs.instantiate import instantiate
from metarl.errors import ConfigError, DataError
from metarl.training import offline
from metarl.training.evaluation import EpisodeReturns, Evaluator, Policy
from metarl.training.progress import Plain, Silent

MAZES = (UMaze, MediumMaze, LargeMaze)
KEYS = ("observation", "desired_goal", "achieved_goal")
EXPERIMENT = """
name: maze
algorithm: {name: td3_bc, hidden: [8, 8], batch_size: 16}
data: {train: {recipe: pointmaze_umaze/medium, size: 500}}
steps: 20
device: cpu
evaluation: {every: 20, episodes: 3}
"""


# ---- planner and driver


@pytest.mark.parametrize("recipe", MAZES)
def test_the_maps_are_those_of_gymnasium_robotics(recipe):
    instantiate(recipe().env_spec()).close()  # imports the package, which registers its own
    theirs = gym.spec(recipe.env_id)
    ours = recipe().env_spec()
    assert ours.kwargs == theirs.kwargs | {"continuing_task": False}
    assert (ours.entry_point, ours.max_episode_steps) == (theirs.entry_point, theirs.max_episode_steps)


def test_a_maze_leaves_no_file_behind_and_still_resets(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    env = instantiate(UMaze().env_spec())
    assert list(tmp_path.rglob("*.xml")) == []
    assert set(env.reset(seed=0)[0]) == set(KEYS)
    env.close()


def test_cells_and_paths_of_a_small_maze():
    maze = Maze(("11111", "10001", "11101", "10001", "11111"))
    assert maze.cells == ((1, 1), (1, 2), (1, 3), (2, 3), (3, 1), (3, 2), (3, 3))
    assert maze.paths[(3, 1)][(1, 1)] == ((1, 2), 6) and maze.paths[(3, 1)][(3, 1)] == ((3, 1), 0)
    assert maze.centre((1, 1)) == (-1.0, 1.0) and maze.cell(-1.4, 0.6) == (1, 1)


@pytest.mark.parametrize("recipe", MAZES)
def test_cells_are_the_environments_own(recipe):
    env = instantiate(recipe().env_spec())
    theirs = env.unwrapped.maze
    for cell in recipe.maze.cells:
        assert recipe.maze.centre(cell) == pytest.approx(theirs.cell_rowcol_to_xy(np.array(cell)))
        assert recipe.maze.cell(*recipe.maze.centre(cell)) == cell
    env.close()


@pytest.mark.parametrize("recipe", MAZES)
def test_every_step_of_a_path_goes_one_cell_nearer(recipe):
    for goal, cells in recipe.maze.paths.items():
        assert set(cells) == set(recipe.maze.cells), "a cell cannot reach the goal"
        for cell, (following, steps) in cells.items():
            assert cells[following][1] == max(0, steps - 1)
            assert abs(cell[0] - following[0]) + abs(cell[1] - following[1]) == (cell != goal)


def test_the_driver_aims_at_the_next_cell_and_then_at_the_goal():
    driver = Driver(UMaze.maze)
    assert driver.waypoint(-1.1, 1.2, (-1.0, -1.0)) == (0.0, 1.0)
    assert driver.waypoint(-1.1, -1.2, (-0.8, -0.9)) == (-0.8, -0.9)


# ---- levels


@pytest.mark.parametrize("recipe", MAZES)
def test_experts_reach_every_goal_and_uniform_forces_few(recipe):
    success = {}
    for level in ("random", "expert"):
        episodes = list(recipe().make(level, 12_000, 0))[:-1]
        success[level] = np.mean([episode.terminations[-1] for episode in episodes])
        assert all(len(e.rewards) == recipe.horizon for e in episodes if not e.terminations[-1])
        assert all(e.rewards.sum() == e.terminations[-1] for e in episodes)
    assert success["expert"] == 1 and success["random"] < 0.5


@pytest.mark.parametrize("recipe", MAZES)
def test_medium_is_made_of_pieces_without_whole_solutions(recipe):
    episodes = list(recipe().make("medium", 20_000, 0))[:-1]
    shares = {name: np.mean([e.behaviour == name for e in episodes]) for name in recipe.shares}
    assert shares == pytest.approx(dict(recipe.shares), abs=0.06)
    lengths = np.array([len(e.rewards) for e in episodes])
    ended = np.array([bool(e.terminations[-1]) for e in episodes])
    assert lengths.max() == PIECE[1] and lengths[~ended].min() == PIECE[0]
    crossed = []
    for episode in episodes:
        cells = [recipe.maze.cell(*xy) for xy in episode.observations["achieved_goal"][[0, -1]]]
        crossed.append(recipe.maze.paths[cells[0]][cells[1]][1])
    assert max(crossed) <= 4, "a piece that crosses more than four cells"
    assert np.mean(np.array(crossed) <= 2) > 0.9
    assert 0.005 < ended.mean() < 0.2, "some pieces must show that goals pay"


# ---- one flattening


def test_the_reader_and_the_evaluation_environment_flatten_alike():
    data = make_dataset("pointmaze_umaze/expert", 400).transitions
    assert tuple(data.card.figures["flattened"]) == KEYS == key_order(KEYS)
    env = make_env(data.card.env_spec)
    assert spec_of(env).obs_keys == KEYS and spec_of(env).obs_dim == data.layout.obs_dim == 8
    episode = next(UMaze().make("expert", 400, 0))
    obs, _ = env.reset(seed=episode.seed)
    for t, action in enumerate(episode.actions):
        assert env.observation_space.contains(obs)
        np.testing.assert_array_equal(data.obs[t].numpy(), obs.astype(np.float32))
        obs, *_ = env.step(action)
        np.testing.assert_array_equal(data.next_obs[t].numpy(), obs.astype(np.float32))
    env.close()


def test_a_recorded_order_is_kept_and_other_keys_are_refused():
    spec = UMaze().env_spec().to_json()
    ours, theirs = make_env(spec), make_env(spec, keys=("achieved_goal", "observation", "desired_goal"))
    a, b = (env.reset(seed=1)[0] for env in (ours, theirs))
    np.testing.assert_array_equal(b, np.concatenate([a[6:], a[:4], a[4:6]]))
    with pytest.raises(ConfigError, match=r"observes observation, desired_goal, achieved_goal; .* on observation"):
        make_env(spec, keys=("observation",))


def test_a_policy_takes_a_dict_as_it_takes_the_vector():
    learner = Learner(
        modules={},
        tensors={"actor": {"w": torch.ones(8)}},
        stages=(),
        act=lambda tree, obs, carry, noise, deterministic: (obs * tree["actor"]["w"], carry),
    )
    statistics = Statistics(torch.arange(8.0).double(), torch.ones(8).double())
    policy = Policy(learner, {"actor": {"w": torch.arange(8.0)}}, statistics, KEYS)
    parts = {
        "achieved_goal": np.ones((2, 2)),
        "observation": np.full((2, 4), 2.0),
        "desired_goal": np.full((2, 2), 3.0),
    }
    np.testing.assert_array_equal(policy(parts)[0], policy(flatten(parts, KEYS))[0])


# ---- success from fixed pairs


class Reach(gym.Env):
    """Walks to a goal drawn at reset; the step's info says whether it is there, and the episode goes on."""

    observation_space = gym.spaces.Box(-100, 100, (2,), np.float64)
    action_space = gym.spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at, self.t, self.goal = 0.0, 0, float(self.np_random.integers(1, 9))
        return np.array([self.at, self.goal]), {"success": False}

    def step(self, action):
        self.at, self.t = self.at + float(action[0]), self.t + 1
        return np.array([self.at, self.goal]), 0.5, False, self.t == 5, {"success": self.at == self.goal}


def walker() -> Policy:
    act = lambda tree, obs, carry, noise, deterministic: (torch.ones_like(obs[:, :1]), carry)  # noqa: E731
    return Policy(Learner(modules={}, tensors={"a": {"a": torch.ones(1)}}, stages=(), act=act), one(), None)


def one():
    return {"a": {"a": torch.ones(1)}}


def test_success_and_steps_to_goal_are_counted_at_the_first_arrival():
    evaluator = Evaluator(Reach, 20, seed=0)
    result = evaluator(walker(), step=0)
    goals = [env.goal for env in evaluator.envs]
    assert result.steps_to_goal == tuple(int(goal) if goal <= 5 else None for goal in goals)
    assert result.success == np.mean([goal <= 5 for goal in goals]) and 0 < result.success < 1
    assert result.mean == 2.5 and set(result.lengths) == {5}
    assert EpisodeReturns.from_dict(json.loads(json.dumps({"step": 3, **result.to_dict()}))) == result
    assert result.figures() == {"success": result.success, "return": 2.5}


def test_pairs_are_the_same_for_every_run_step_and_number_of_episodes():
    def starts(seed, step, episodes):
        evaluator = Evaluator(lambda: make_env(UMaze().env_spec().to_json()), episodes, seed)
        pairs = np.stack([env.reset(seed=evaluator._reset_seed(step, i))[0] for i, env in enumerate(evaluator.envs)])
        evaluator.close()
        return pairs

    first = starts(seed=0, step=0, episodes=6)
    np.testing.assert_array_equal(first, starts(seed=3, step=500, episodes=6))
    np.testing.assert_array_equal(first[:4], starts(seed=0, step=0, episodes=4))
    assert len(np.unique(first, axis=0)) == 6


def test_an_environment_without_goals_has_no_success():
    result = Evaluator(lambda: gym.make("InvertedPendulum-v5"), 2, seed=0)(walker(), step=0)
    assert result.success is None and result.reached == () and list(result.to_dict()) == ["returns", "lengths"]
    assert list(result.figures()) == ["return"]


# ---- whole runs


@pytest.fixture
def trained(tmp_path, capsys):
    """A run of 20 steps, and what it printed."""
    make_dataset("pointmaze_umaze/medium", 500)
    (tmp_path / "maze.yaml").write_text(EXPERIMENT)
    folder = offline.train(config.load(tmp_path / "maze.yaml"), 0, tmp_path / "runs", Plain())
    return folder, capsys.readouterr().err


def test_a_run_records_and_shows_success_and_its_checkpoint_the_order(trained):
    folder, printed = trained
    evaluations = json.loads((folder / "result.json").read_text())["evaluations"]
    assert [list(e) for e in evaluations] == [["step", "returns", "lengths", "steps_to_goal"]] * 2
    for evaluation in evaluations:
        assert [float(steps is not None) for steps in evaluation["steps_to_goal"]] == evaluation["returns"]
    assert "success 0" in printed or "success 1" in printed
    assert "evaluation/success" in (folder / "metrics.csv").read_text()
    policy, env, _ = offline.load_policy(folder)
    assert policy.obs_keys == KEYS and json.loads(env)["kwargs"]["continuing_task"] is False
    shown = subprocess.run(
        [sys.executable, "-m", "metarl", "eval", str(folder), "--episodes", "2"], capture_output=True
    )
    assert b"of 2 start-goal pairs" in shown.stdout and b"return" in shown.stdout, shown.stderr


def test_data_joined_in_another_order_than_the_environments_is_refused(tmp_path, monkeypatch):
    make_dataset("pointmaze_umaze/medium", 500)
    (tmp_path / "maze.yaml").write_text(EXPERIMENT)
    order = KEYS[::-1]
    monkeypatch.setattr("metarl.envs.make.observation_keys", lambda space, where: order)
    with pytest.raises(DataError, match="joins the observation's parts as observation, desired_goal, achieved_goal"):
        offline.train(config.load(tmp_path / "maze.yaml"), 0, tmp_path / "runs", Silent())
