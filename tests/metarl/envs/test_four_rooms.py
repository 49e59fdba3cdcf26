"""Four rooms: walls hold, each task pays as it says, and controllers solve all three from all over the start room."""

from itertools import pairwise
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread

from metarl.envs import make_env
from metarl.envs.four_rooms import BRIDGE, GOAL, KEY, RIVER, WALLS, controller, in_river, overview
from metarl.envs.navigation import RADIUS, STEP, move
from metarl.envs.registration import FOUR_ROOMS_STEPS
from metarl.errors import ConfigError
from metarl.training.evaluation import Evaluator

IDS = {"plain": "metarl/FourRooms-v0", "river": "metarl/FourRoomsRiver-v0", "key": "metarl/FourRoomsKey-v0"}
TASKS = tuple(IDS)
DOORS = {"lower": (0.0, -0.4), "upper": (0.0, 0.7), "left": (-0.3, 0.0), "right": (0.4, 0.0)}  # their middles
EDGES = sorted({max(-1.0, min(1.0, edge)) for wall in WALLS for edge in wall})
COORDINATE = st.floats(-1, 1) | st.sampled_from(EDGES)  # the faces are where a mistake would be
ACTION = st.tuples(st.floats(-1, 1), st.floats(-1, 1)) | st.sampled_from([(1, 0), (-1, 0), (0, 1), (0, -1)])


def place(env, x, y, has_key=False):
    """The point somewhere else."""
    inner = env.unwrapped
    inner._x, inner._y, inner._has_key = x, y, has_key


def episode(policy, seed, task):
    """Observations [T + 1, 3], rewards [T], infos [T] and (terminated, truncated) of one episode."""
    env = gym.make(IDS[task])
    obs, info = env.reset(seed=seed)
    assert info["success"] is False and info.get("wet", 0) == 0
    rows, rewards, infos = [obs], [], []
    terminated = truncated = False
    while not (terminated or truncated):
        obs, reward, terminated, truncated, info = env.step(policy(obs))
        rows.append(obs)
        rewards.append(reward)
        infos.append(info)
    env.close()
    return np.array(rows), np.array(rewards), infos, (terminated, truncated)


def in_wall(x, y, margin=0.0):
    """The cross without its doors, from the page's numbers and not from the code's."""
    upright = abs(x) < 0.05 - margin and not (-0.5 - margin <= y <= -0.3 + margin or 0.6 - margin <= y <= 0.8 + margin)
    level = abs(y) < 0.05 - margin and not (-0.4 - margin <= x <= -0.2 + margin or 0.3 - margin <= x <= 0.5 + margin)
    return upright or level


def leg(start, end):
    """Points on the straight way, its ends included."""
    return [(start[0] + s * (end[0] - start[0]), start[1] + s * (end[1] - start[1])) for s in np.linspace(0, 1, 40)]


def room(x, y):
    """The signs of both coordinates: which room a point is in."""
    return bool(x > 0), bool(y > 0)


@given(COORDINATE, COORDINATE, st.floats(-2, 2), st.floats(-2, 2))
def test_no_move_however_long_crosses_a_wall_or_leaves_the_square(x, y, dx, dy):
    if in_wall(x, y):
        return
    to_x, to_y = move(x, y, dx, dy, WALLS)
    assert -1 <= to_x <= 1 and -1 <= to_y <= 1
    for point in leg((x, y), (to_x, y)) + leg((to_x, y), (to_x, to_y)):
        assert not in_wall(*point, 1e-9)
    assert abs(to_x - x) <= abs(dx) + 1e-12 and abs(to_y - y) <= abs(dy) + 1e-12


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from(TASKS), st.lists(ACTION, min_size=1, max_size=6))
def test_no_sequence_of_actions_crosses_a_wall(seed, task, moves):
    env = gym.make(IDS[task]).unwrapped
    obs, _ = env.reset(seed=seed)
    points = [obs[:2]]
    for action in [each for each in moves for _ in range(25)]:  # long enough to reach the walls
        obs, *_ = env.step(np.array(action, np.float32))
        points.append(obs[:2])
    for (x0, y0), (x1, y1) in pairwise(np.array(points, float)):
        for point in leg((x0, y0), (x1, y0)) + leg((x1, y0), (x1, y1)):
            assert not in_wall(*point, 1e-6)  # float32
        assert max(abs(x1 - x0), abs(y1 - y0)) <= STEP + 1e-6
        if room(x0, y0) != room(x1, y1):  # a wall passed, in a door
            assert min(np.hypot(x1 - x, y1 - y) for x, y in DOORS.values()) < 0.2


@pytest.mark.parametrize("border", [-1.0, 1.0])
def test_no_wall_can_be_passed_along_the_border(border):
    x, y = -0.2, -0.2
    for _ in range(20):
        x, _ = move(x, border, STEP, 0.0, WALLS)
        _, y = move(border, y, 0.0, STEP, WALLS)
    assert (x, y) == (-0.05, -0.05)


@pytest.mark.parametrize("door", DOORS.values())
def test_doors_are_open_both_ways(door):
    x, y = door
    for sign in (-1, 1):
        dx, dy = (0.2 * sign, 0.0) if x == 0 else (0.0, 0.2 * sign)
        assert move(x - dx / 2, y - dy / 2, dx, dy, WALLS) == pytest.approx((x + dx / 2, y + dy / 2))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("knows", TASKS)
@pytest.mark.parametrize("seed", range(3))
def test_rewards_ends_and_info_are_those_of_a_slow_account(task, knows, seed):
    obs, rewards, infos, ends = episode(controller(knows, 0.5, seed), seed, task)
    has_key, wet, done = False, 0, False
    for t, (x, y, key) in enumerate(obs[1:].astype(float)):
        assert not done
        to_goal, to_key = np.hypot(x - 0.75, y - 0.75), np.hypot(x + 0.75, y - 0.75)
        assert min(abs(to_goal - 0.1), abs(to_key - 0.1)) > 1e-6  # float32 decides nothing
        has_key = has_key or bool(to_key <= 0.1)
        now_wet = bool(task == "river" and 0.25 < y < 0.45 and not -0.9 <= x <= -0.7)
        wet += now_wet
        done = bool(to_goal <= 0.1 and (has_key or task != "key"))
        assert key == has_key
        assert rewards[t] == done - now_wet
        assert infos[t] == {"success": done} | ({"wet": wet} if task == "river" else {})
    assert ends == (done, len(rewards) == FOUR_ROOMS_STEPS)
    assert done or ends[1]


def test_the_goal_does_nothing_without_the_key():
    env = gym.make(IDS["key"])
    obs, _ = env.reset(seed=0)
    assert obs[2] == 0
    still = np.zeros(2, np.float32)
    place(env, *GOAL)
    obs, reward, terminated, _, info = env.step(still)
    assert (obs[2], reward, terminated, info["success"]) == (0, 0, False, False)
    place(env, KEY[0] + 2.1 * RADIUS, KEY[1])
    taken = []
    for _ in range(5):  # by steps of 0.05: outside, outside, outside, then within 0.1
        obs, reward, *_ = env.step(np.array([-1, 0], np.float32))
        taken.append(int(obs[2]))
        assert reward == 0
    assert taken == [0, 0, 1, 1, 1]
    obs, *_ = env.step(np.array([1, 1], np.float32))
    place(env, 0.5, 0.5, True)
    assert env.step(still)[0][2] == 1  # carried away from where it lay
    place(env, *GOAL, True)
    obs, reward, terminated, _, info = env.step(still)
    assert (obs[2], reward, terminated, info["success"]) == (1, 1, True, True)
    assert env.reset(seed=0)[0][2] == 0
    env.close()


@pytest.mark.parametrize("task", ["plain", "river"])
def test_the_key_is_there_elsewhere_and_means_nothing(task):
    env = gym.make(IDS[task])
    env.reset(seed=0)
    place(env, *KEY)
    obs, reward, terminated, _, _ = env.step(np.zeros(2, np.float32))
    assert (obs[2], reward, terminated) == (1, 0, False)
    place(env, *GOAL, False)
    assert env.step(np.zeros(2, np.float32))[1:3] == (1, True)
    env.close()


@pytest.mark.parametrize(
    ("x", "y", "wet"),
    [
        (0.5, 0.35, True),
        (-0.5, 0.35, True),
        (-0.95, 0.35, True),
        (-0.8, 0.35, False),  # the bridge
        (BRIDGE.left, 0.35, False),
        (BRIDGE.right, 0.35, False),
        (BRIDGE.right + 0.01, 0.35, True),
        (0.5, RIVER.bottom, False),
        (0.5, RIVER.top, False),
        (0.5, 0.2, False),
        (0.5, 0.5, False),
    ],
)
def test_the_river_is_wet_and_the_bridge_is_dry(x, y, wet):
    for task in TASKS:
        env = gym.make(IDS[task])
        env.reset(seed=0)
        place(env, x, y)
        _, reward, terminated, _, info = env.step(np.zeros(2, np.float32))
        assert (reward, terminated) == (-1.0 if wet and task == "river" else 0.0, False)
        assert info.get("wet") == (int(wet) if task == "river" else None)
        env.close()
    assert in_river(x, y) is wet


def test_the_river_cannot_be_jumped_and_counts_anew_after_a_reset():
    env = gym.make(IDS["river"])
    env.reset(seed=0)
    place(env, 0.6, 0.15)
    found = [env.step(np.array([0, 1], np.float32)) for _ in range(8)]
    assert sum(reward for _, reward, *_ in found) == -found[-1][4]["wet"] == pytest.approx(-4, abs=1)
    assert env.reset(seed=0)[1]["wet"] == 0
    env.close()


@pytest.mark.parametrize("task", TASKS)
def test_controllers_solve_every_task_from_all_over_the_start_region(task):
    for x in (-0.9, -0.76, -0.6):
        for y in (-0.9, -0.73, -0.6):
            env = gym.make(IDS[task])
            obs, _ = env.reset(seed=0)
            place(env, x, y)
            obs, act, total, done = np.array([x, y, 0], np.float32), controller(task), 0.0, False
            while not done:
                obs, reward, terminated, truncated, info = env.step(act(obs))
                total, done = total + reward, terminated or truncated
            assert info["success"] and total == 1  # on `river`: dry
            env.close()


def test_the_dry_way_and_the_way_by_the_key_are_longer():
    lengths = {task: np.mean([len(episode(controller(task), s, task)[1]) for s in range(5)]) for task in TASKS}
    assert 30 < lengths["plain"] < 45 and lengths["river"] > lengths["plain"] + 12 < lengths["key"]
    _, rewards, infos, _ = episode(controller("plain"), 0, "river")  # straight through
    assert infos[-1]["success"] and rewards.sum() == 1 - infos[-1]["wet"] < 0


def test_no_way_without_wet_steps_is_as_short_as_the_plain_one():
    """Both of the plain task's ways, by the upper left and by the lower right room, cross the river."""
    rooms = {room(*row[:2]) for row in episode(controller("plain"), 0, "plain")[0]}
    assert (False, True) not in rooms
    dry = [row[:2] for row in episode(controller("river"), 0, "river")[0]]
    assert any(BRIDGE.left <= x <= BRIDGE.right and RIVER.bottom < y < RIVER.top for x, y in dry)


@pytest.mark.parametrize("noise", [0.1, 0.5])
@pytest.mark.parametrize("task", TASKS)
def test_noisy_controllers_arrive_too_and_later(task, noise):
    found = [episode(controller(task, noise, seed), seed, task) for seed in range(5)]
    assert all(infos[-1]["success"] for _, _, infos, _ in found)
    shortest = np.mean([len(episode(controller(task), seed, task)[1]) for seed in range(5)])
    assert np.mean([len(rewards) for _, rewards, _, _ in found]) > shortest * (1 if noise == 0.1 else 1.1)


@pytest.mark.parametrize("target", [(-0.93, 0.07), (0.52, -0.91), (-0.31, -0.02), (0.12, 0.93)])
def test_a_controller_goes_to_any_target_and_waits_there(target):
    act, (x, y) = controller(target=target), (-0.7, -0.7)
    for _ in range(80):
        dx, dy = act(np.array([x, y, 1], np.float32)).tolist()
        x, y = move(x, y, dx * STEP, dy * STEP, WALLS)
    assert max(abs(x - target[0]), abs(y - target[1])) <= STEP / 2 + 1e-6


def test_a_controller_s_noise_is_its_seed_s():
    obs = np.array([-0.8, -0.8, 0], np.float32)
    one, same, other = controller(noise=1.0, seed=1), controller(noise=1.0, seed=1), controller(noise=1.0, seed=2)
    first = [one(obs) for _ in range(3)]
    np.testing.assert_array_equal(first, [same(obs) for _ in range(3)])
    assert not np.array_equal(first, [other(obs) for _ in range(3)])
    assert first[0].dtype == np.float32 and np.abs(first).max() <= 1


def test_starts_come_from_the_seed_and_fill_the_start_region():
    env = gym.make(IDS["plain"])
    drawn = np.array([env.reset(seed=seed)[0] for seed in range(200)])
    np.testing.assert_array_equal(drawn[5], env.reset(seed=5)[0])
    assert drawn[:, :2].min() >= -0.9 and drawn[:, :2].max() <= -0.6 + 1e-6
    assert (np.ptp(drawn, 0) > [0.28, 0.28, -1]).all() and (drawn[:, 2] == 0).all()
    env.close()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("render_mode", [None, "rgb_array"])
@pytest.mark.filterwarnings("ignore:.*not having a spec:UserWarning")
def test_gymnasium_s_checker_passes(task, render_mode):
    check_env(gym.make(IDS[task], render_mode=render_mode, disable_env_checker=True).unwrapped)


@pytest.mark.parametrize("task", TASKS)
def test_metarl_s_evaluator_reports_success_and_steps_to_goal(task):
    act = controller(task)
    evaluator = Evaluator(lambda: make_env(gym.spec(IDS[task]).to_json()), 2, 0)
    found = evaluator(lambda obs, carry: (np.stack([act(row) for row in obs]), carry), 0)
    evaluator.close()
    assert found.success == 1 and found.returns == (1, 1) and found.reached == found.lengths


def test_a_picture_shows_walls_river_bridge_key_goal_and_path():
    def at(image, x, y):
        scale = 320 / 2.1
        return tuple(int(c) for c in image[int((1.05 - y) * scale), int((x + 1.05) * scale)])

    images = {}
    for task in TASKS:
        env = gym.make(IDS[task], render_mode="rgb_array")
        env.reset(seed=0)
        env.step(np.zeros(2, np.float32))
        images[task] = env.render()
        assert images[task].shape == (320, 320, 3) and images[task].dtype == np.uint8
        for x, y in [(0, 0), (0, -0.8), (0, 0.2), (0, 0.9), (-0.7, 0), (0.8, 0)]:
            assert at(images[task], x, y) == (60, 60, 60)
        for door in DOORS.values():
            assert at(images[task], *door) == (255, 255, 255)
        red, green, blue = at(images[task], *GOAL)
        assert green > red and green > blue
        assert at(images[task], env.unwrapped._x, env.unwrapped._y) == (31, 119, 180)
        place(env, *KEY)
        for _ in range(4):
            env.step(np.array([0, -1], np.float32))
        assert at(env.render(), KEY[0] - 0.05, KEY[1] + 0.05) == (255, 255, 255)  # taken
        env.close()
    white = (255, 255, 255)
    assert at(images["plain"], 0.5, 0.35) == at(images["plain"], -0.8, 0.35) == white
    water, bridge, key = (at(images["river"], 0.5, 0.35), at(images["river"], -0.8, 0.35), at(images["key"], *KEY))
    assert water[2] > water[0] and bridge[0] > bridge[2] and key[0] > key[1] > key[2]
    assert gym.make(IDS["river"]).unwrapped.render() is None


def test_the_picture_of_the_docs_is_today_s():
    shown = imread(Path(__file__).parents[3] / "docs/environments_four_rooms.png")[..., :3]
    np.testing.assert_allclose(shown, overview() / 255, atol=2 / 255)


def test_mistakes_are_one_line():
    with pytest.raises(ConfigError, match="task must be one of plain, river, key, not 'lake'"):
        gym.make(IDS["plain"], task="lake")
    with pytest.raises(ConfigError, match="task must be one of plain, river, key, not 'lake'"):
        controller("lake")
    for target in ((0.0, 0.0), (1.5, 0.0)):
        with pytest.raises(ConfigError, match=r"target .* lies in a wall or outside the square"):
            controller(target=target)
