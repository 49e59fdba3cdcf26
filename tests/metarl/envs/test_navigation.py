"""Navigation: walls hold, the goal pays a step, and demonstrators differ as they should."""

from itertools import pairwise

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

from metarl.envs import make_env
from metarl.envs.navigation import RADIUS, STEP, WALLS, controller, move
from metarl.envs.registration import NAVIGATION_STEPS
from metarl.errors import ConfigError
from metarl.training.evaluation import Evaluator

SPARSE, DENSE = "metarl/SparseNavigation-v0", "metarl/DenseNavigation-v0"
EDGES = sorted({max(-1.0, min(1.0, edge)) for wall in WALLS for edge in wall})
COORDINATE = st.floats(-1, 1) | st.sampled_from(EDGES)  # the faces are where a mistake would be


def episode(policy, seed, env_id=SPARSE):
    """Observations [T + 1, 4], rewards [T] and successes [T] of one episode, by the policy (obs -> action)."""
    env = gym.make(env_id)
    obs, info = env.reset(seed=seed)
    rows, rewards, successes = [obs], [], []
    truncated = False
    assert info["success"] is False
    while not truncated:
        obs, reward, terminated, truncated, info = env.step(policy(obs))
        assert not terminated
        rows.append(obs)
        rewards.append(reward)
        successes.append(info["success"])
    env.close()
    return np.array(rows), np.array(rewards), np.array(successes)


def arrival(policy, seed):
    return int(np.argmax(episode(policy, seed)[2]))


def inside(x, y, margin=0.0):
    """Whether a point lies in a wall, deeper than the margin."""
    return any(
        wall.left + margin < x < wall.right - margin and wall.bottom + margin < y < wall.top - margin for wall in WALLS
    )


def leg(start, end):
    """Points on the straight way, its ends included."""
    return [(start[0] + s * (end[0] - start[0]), start[1] + s * (end[1] - start[1])) for s in np.linspace(0, 1, 60)]


@given(COORDINATE, COORDINATE, st.floats(-2, 2), st.floats(-2, 2))
def test_no_move_however_long_crosses_a_wall_or_leaves_the_square(x, y, dx, dy):
    if inside(x, y):
        return
    to_x, to_y = move(x, y, dx, dy)
    assert -1 <= to_x <= 1 and -1 <= to_y <= 1
    assert not inside(to_x, to_y)
    for point in leg((x, y), (to_x, y)) + leg((to_x, y), (to_x, to_y)):
        assert not inside(*point, 1e-9)  # the points between are rounded
    assert abs(to_x - x) <= abs(dx) + 1e-12 and abs(to_y - y) <= abs(dy) + 1e-12


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=1, max_size=8))
def test_no_sequence_of_actions_crosses_a_wall(seed, moves):
    env = gym.make(SPARSE).unwrapped
    obs, _ = env.reset(seed=seed)
    points = [obs[:2]]
    for action in [each for each in moves for _ in range(15)]:  # long enough to reach the walls
        obs, *_ = env.step(np.array(action, np.float32))
        points.append(obs[:2])
    for (x0, y0), (x1, y1) in pairwise(np.array(points, float)):
        corner = (x1, y0)
        # Observations are float32: a point on a face may round into the wall by less than 1e-6.
        for point in leg((x0, y0), corner) + leg(corner, (x1, y1)):
            assert not inside(*point, 1e-6)
        assert max(abs(x1 - x0), abs(y1 - y0)) <= STEP + 1e-6


@pytest.mark.parametrize("wall", WALLS)
def test_a_wall_stops_at_its_face_and_lets_slide_along_it(wall):
    middle_x, middle_y = (wall.left + wall.right) / 2, (wall.bottom + wall.top) / 2
    assert move(wall.left - 0.02, middle_y, 0.05, 0.03) == (wall.left, middle_y + 0.03)
    assert move(wall.right + 0.02, middle_y, -0.05, 0.03) == (wall.right, middle_y + 0.03)
    if wall.bottom > -1:
        assert move(middle_x, wall.bottom - 0.02, 0.01, 0.05) == (middle_x + 0.01, wall.bottom)
    if wall.top < 1:
        assert move(middle_x, wall.top + 0.02, 0.01, -0.05) == (middle_x + 0.01, wall.top)


@pytest.mark.parametrize("wall", WALLS)
def test_a_face_is_free_past_its_corners(wall):
    for y in (edge for edge in (wall.bottom, wall.top) if abs(edge) < 1):
        for x in (wall.left, wall.right):
            assert move(x, y - 0.02, 0.0, 0.05) == (x, y - 0.02 + 0.05)
            assert move(x, y + 0.02, 0.0, -0.05) == (x, y + 0.02 - 0.05)
        for x in (wall.left, wall.right):
            assert move(x - 0.02, y, 0.05, 0.0) == (x - 0.02 + 0.05, y)
            assert move(x + 0.02, y, -0.05, 0.0) == (x + 0.02 - 0.05, y)


@pytest.mark.parametrize("border", [-1.0, 1.0])
def test_nobody_slides_past_a_wall_along_the_border(border):
    for wall in WALLS:
        if wall.bottom < border < wall.top:
            assert move(wall.left - 0.02, border, 0.3, 0.0) == (wall.left, border)
            assert move(wall.right + 0.02, border, -0.3, 0.0) == (wall.right, border)
    assert sum(wall.bottom < border < wall.top for wall in WALLS) == 1


def test_a_free_move_is_the_action_s():
    env = gym.make(SPARSE)
    obs, _ = env.reset(seed=0)
    after, *_ = env.step(np.array([0.5, -1.0], np.float32))
    np.testing.assert_allclose(after - obs, [0.025, -0.05, -0.025, 0.05], atol=1e-6)
    clipped, *_ = env.step(np.array([-7.0, 3.0], np.float32))  # beyond the bounds: as at the bounds
    np.testing.assert_allclose(clipped - after, [-0.05, 0.05, 0.05, -0.05], atol=1e-6)
    env.close()


@pytest.mark.parametrize("seed", range(5))
def test_every_step_at_the_goal_pays_one_and_no_other_does(seed):
    obs, rewards, successes = episode(controller(), seed)
    distance = np.linalg.norm(obs[1:, 2:].astype(float), axis=1)
    assert (np.abs(distance - RADIUS) > 1e-6).all()  # float32 decides nothing
    np.testing.assert_array_equal(rewards, distance <= RADIUS)
    np.testing.assert_array_equal(successes, distance <= RADIUS)
    assert len(rewards) == NAVIGATION_STEPS
    assert 0 < rewards.sum() == NAVIGATION_STEPS - np.argmax(successes)


def test_leaving_the_goal_ends_the_pay():
    def through(obs):  # on to the wall at the right, once there
        if np.linalg.norm(obs[2:]) < 0.05 or obs[0] > 0.85:
            through.there = True
        return np.array([1, -1], np.float32) if through.there else act(obs)

    through.there, act = False, controller()
    rewards = episode(through, 0)[1]
    assert 0 < rewards.sum() < 10
    assert rewards[-1] == 0


def test_the_dense_reward_is_minus_the_distance():
    obs, rewards, successes = episode(controller(), 1, DENSE)
    np.testing.assert_allclose(rewards, -np.linalg.norm(obs[1:, 2:].astype(float), axis=1), atol=1e-6)
    assert successes.any()


def test_chance_does_not_find_the_goal():
    rng = np.random.default_rng(0)
    for seed in range(30):
        assert episode(lambda obs: rng.uniform(-1, 1, 2), seed)[1].sum() == 0


def test_demonstrators_reach_the_goal_and_the_worse_ones_later():
    seeds = range(20)
    shortest = [arrival(controller(), seed) for seed in seeds]
    detour = [arrival(controller(detour=True), seed) for seed in seeds]
    assert all(0 < short < long for short, long in zip(shortest, detour, strict=True))
    assert np.mean(detour) > 2 * np.mean(shortest)
    for noise, slower in ((0.5, 5), (1.0, 15)):
        noisy = [arrival(controller(noise=noise, seed=seed), seed) for seed in seeds]
        assert min(noisy) > 0
        assert np.mean(noisy) > np.mean(shortest) + slower
    slow = [arrival(controller(speed=0.5), seed) for seed in seeds]
    assert np.mean(slow) == pytest.approx(2 * np.mean(shortest), rel=0.15)


def test_a_controller_s_noise_is_its_seed_s():
    obs = np.array([-0.8, -0.8, 1.5, 1.5], np.float32)
    one, same, other = controller(1.0, seed=1), controller(1.0, seed=1), controller(1.0, seed=2)
    first = [one(obs) for _ in range(3)]
    np.testing.assert_array_equal(first, [same(obs) for _ in range(3)])
    assert not np.array_equal(first, [other(obs) for _ in range(3)])
    assert first[0].dtype == np.float32
    assert np.abs(first).max() <= 1


def test_starts_and_goals_come_from_the_seed():
    env = gym.make(SPARSE)
    one, again, other = (env.reset(seed=seed)[0] for seed in (5, 5, 6))
    np.testing.assert_array_equal(one, again)
    drawn = np.array([env.reset(seed=seed)[0] for seed in range(200)])
    assert not np.array_equal(one, other)
    starts, goals = drawn[:, :2], drawn[:, :2] + drawn[:, 2:]
    assert starts.min() >= -0.9 and starts.max() <= -0.6 and np.ptp(starts) > 0.28
    assert goals.min() >= 0.6 - 1e-6 and goals.max() <= 0.9 + 1e-6 and np.ptp(goals) > 0.28
    env.close()


@pytest.mark.parametrize("env_id", [SPARSE, DENSE])
@pytest.mark.parametrize("render_mode", [None, "rgb_array"])
@pytest.mark.filterwarnings("ignore:.*not having a spec:UserWarning")
def test_gymnasium_s_checker_passes(env_id, render_mode):
    check_env(gym.make(env_id, render_mode=render_mode, disable_env_checker=True).unwrapped)


def test_a_picture_shows_walls_goal_and_path():
    env = gym.make(SPARSE, render_mode="rgb_array")
    obs, _ = env.reset(seed=0)
    empty = env.render()
    act = controller()
    for _ in range(20):
        obs, *_ = env.step(act(obs))
    image = env.render()
    assert image.dtype == np.uint8 and image.shape == (320, 320, 3)

    def at(x, y, image=image):
        scale = 320 / 2.1
        return tuple(int(c) for c in image[int((1.05 - y) * scale), int((x + 1.05) * scale)])

    for wall in WALLS:
        assert at((wall.left + wall.right) / 2, (wall.bottom + wall.top) / 2) == (60, 60, 60)
    assert at(-0.9, 0.9) == (255, 255, 255)
    red, green, blue = at(obs[0] + obs[2], obs[1] + obs[3])
    assert green > red and green > blue
    assert at(obs[0], obs[1]) == (31, 119, 180)
    changed = (image != empty).any(-1)
    assert changed.sum() > 200
    rows = np.flatnonzero(changed.any(1))
    assert rows.max() - rows.min() > 60  # the path, not the point alone
    env.reset(seed=0)
    np.testing.assert_array_equal(env.render(), empty)  # the last episode's path is gone
    env.close()
    assert gym.make(SPARSE).unwrapped.render() is None


def test_metarl_s_evaluator_reports_success_and_steps_to_goal():
    act = controller()
    evaluator = Evaluator(lambda: make_env(gym.spec(SPARSE).to_json()), 3, 0)
    found = evaluator(lambda obs, carry: (np.stack([act(row) for row in obs]), carry), 0)
    evaluator.close()
    assert found.success == 1
    expected = [NAVIGATION_STEPS - steps + 1 for steps in found.reached]
    assert list(found.returns) == expected
    assert list(found.lengths) == [NAVIGATION_STEPS] * 3


def test_a_wrong_reward_is_one_line():
    with pytest.raises(ConfigError, match="reward must be one of sparse, dense, not 'shaped'"):
        gym.make(SPARSE, reward="shaped")
