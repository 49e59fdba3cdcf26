"""Where policies go: maps by hand, pieces and links of made data, and success as the evaluation counts it."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import gymnasium as gym
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text

import metarl.envs
from benchmarks import trajectories
from benchmarks.planes import maze_world, world_of
from metarl import config
from metarl.data.recipes import make_dataset
from metarl.data.recipes.pointmaze import MediumMaze, UMaze
from metarl.data.transitions import Card, pack
from metarl.envs import four_rooms, make_env, navigation
from metarl.training import offline
from metarl.training.evaluation import Evaluator
from metarl.training.offline import load_policy
from metarl.training.progress import Silent

BASE = """
name: {name}
algorithm: {algorithm}
objective: {objective}
data: {{train: {{recipe: {data}, size: {size}}}}}
steps: 20
evaluation: {{every: 20, episodes: 3}}
log_every: 20
compile: "off"
device: cpu
"""
POR = {
    "algorithm": "{name: none, normalize: false}",
    "objective": "{name: por, hidden: [8], execute_hidden: [8], batch_size: 16}",
}
KINDS = {
    "maze": POR | {"data": "pointmaze_umaze/medium", "size": 300},
    "keyed": POR | {"data": "four_rooms_key/medium", "size": 600},
    "way": {"algorithm": "{name: bc, hidden: [8]}", "objective": "[]", "data": "navigation/detour", "size": 300},
    "swing": POR | {"data": "pendulum/medium", "size": 600},
}


@pytest.fixture(scope="module")
def runs(made, tmp_path_factory):
    """Run folders by name, each of a few steps."""
    root = tmp_path_factory.mktemp("trajectories")
    folders = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(made))
        for name, values in KINDS.items():
            if name != "swing":
                make_dataset(values["data"], values["size"])
            file = root / f"{name}.yaml"
            file.write_text(BASE.format(name=name, **values))
            folders[name] = offline.train(config.load(file), 0, root / "runs", Silent(), root)
    return folders


@pytest.fixture(scope="module")
def found(runs, made):
    """What is drawn of them, three episodes each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(made))
        return {name: trajectories.find(runs[name], 3) for name in ("maze", "keyed", "way")}


def rooms(task: str = "plain"):
    assert metarl.envs  # registers
    return world_of(gym.spec({"plain": "metarl/FourRooms-v0", "key": "metarl/FourRoomsKey-v0"}[task]).to_json())


def piece_data(*pieces, key=()):
    """Pieces of places as transitions of the four rooms; those whose number is in `key` end with the key."""
    obs, after, starts = [], [], [0]
    for i, places in enumerate(pieces):
        full = np.concatenate((np.asarray(places, float), np.zeros((len(places), 1))), 1)
        full[-1, 2] = i in key
        obs.append(full[:-1])
        after.append(full[1:])
        starts.append(starts[-1] + len(places) - 1)
    n = starts[-1]
    zero = np.zeros(n)
    columns = {"obs": np.concatenate(obs), "next_obs": np.concatenate(after), "action": np.zeros((n, 2))}
    flags = {"reward": zero, "terminated": zero, "truncated": zero}
    return pack(**columns, **flags, episode_starts=np.array(starts), card=Card("made", "made"))


def line(*ends, n=30):
    """Places along straight lines from each end to the next."""
    parts = [np.linspace(a, b, n) for a, b in pairwise(ends)]
    return np.concatenate(parts)


def shown(figure: Figure) -> str:
    return " ".join(" ".join(text.get_text() for text in figure.findobj(Text) if text.get_text()).split())


@pytest.mark.parametrize("recipe", [UMaze, MediumMaze])
def test_a_mazes_ways_are_its_cells(recipe):
    """From middle to middle: never shorter than the straight line, nor longer than the planner's way by cells."""
    maze = recipe.maze
    world = maze_world(maze.map())
    nodes = world.nodes(np.array([maze.centre(cell) for cell in maze.cells]))
    ways = world.ways[np.ix_(nodes, nodes)]
    cells = np.array([[maze.paths[goal][cell][1] for goal in maze.cells] for cell in maze.cells])
    assert (ways <= cells + 1e-9).all()
    middles = np.array([maze.centre(cell) for cell in maze.cells])
    straight = np.linalg.norm(middles[:, None] - middles, axis=2)
    assert (ways >= straight - 1e-9).all()
    np.testing.assert_allclose(ways[cells == 1], 1.0)


def test_a_way_goes_round_walls_and_by_the_corner():
    world = rooms()
    here, there = np.array((-0.5, -0.5)), np.array((0.5, -0.5))
    # From (-0.5, -0.5) straight to the lower wall's door, from -0.5 to -0.3, whose lower end is free.
    assert world.way(here, there) == pytest.approx(1.0)
    across = world.way(np.array((-0.5, 0.1)), np.array((0.5, 0.1)))
    # By three doors: 0.45 right and 0.4 down to the lower one's end at y = -0.3, 0.1 through it, and up likewise.
    assert across == pytest.approx(0.1 + 2 * (0.4 * np.sqrt(2) + 0.05))
    assert world.way(np.array((-0.05, 0.2)), np.array((0.05, 0.2))) == pytest.approx(0.1 + 2 * 0.4)


def test_displacement_is_the_farthest_two_places_by_the_shortest_way():
    world = rooms()
    there_and_back = line((-0.9, -0.9), (-0.4, -0.9), (-0.9, -0.9))
    assert world.displacement(there_and_back) == pytest.approx(0.5)
    bent = line((-0.9, -0.9), (-0.5, -0.9), (-0.5, -0.6))
    assert world.displacement(bent) == pytest.approx(0.1 + 0.3 * np.sqrt(2))
    data = piece_data(there_and_back, bent)
    np.testing.assert_allclose(trajectories.displacements(world, data), [0.5, 0.1 + 0.3 * np.sqrt(2)], atol=1e-6)


def test_a_piece_links_a_pair_where_it_is_at_the_start_and_later_at_the_goal():
    world, start, goal = rooms(), (-0.7, -0.7), four_rooms.GOAL
    whole = line((-0.75, -0.7), (-0.3, -0.4), (0.4, -0.4), (0.4, 0.4), (0.7, 0.75))
    first, second = whole[:60], whole[60:]
    ends = np.array([start]), np.array([goal])
    assert trajectories.linked(world, piece_data(whole), *ends).tolist() == [1]
    assert trajectories.linked(world, piece_data(first, second), *ends).tolist() == [0]
    assert trajectories.linked(world, piece_data(whole[::-1]), *ends).tolist() == [0]
    assert trajectories.linked(world, piece_data(whole, whole[::-1], whole), *ends).tolist() == [2]
    keyed = rooms("key")
    assert trajectories.linked(keyed, piece_data(whole, whole, key=(1,)), *ends).tolist() == [1]


@pytest.mark.parametrize("name", ["maze", "keyed", "way"])
def test_success_and_paths_are_the_evaluations_own(runs, found, name):
    """The same episodes as an Evaluator that nobody watches, and as the run's last evaluation on record."""
    one = found[name]
    policy, env, step = load_policy(runs[name])
    evaluator = Evaluator(lambda: make_env(env), 3, 0)
    plain = evaluator(policy, step)
    evaluator.close()
    assert one.returns == plain
    last = json.loads((runs[name] / "result.json").read_text())["evaluations"][-1]
    assert last["steps_to_goal"] == list(plain.steps_to_goal)
    for trajectory, steps, length in zip(one.trajectories, plain.steps_to_goal, plain.lengths, strict=True):
        assert trajectory.steps == steps and len(trajectory.obs) == (length if steps is None else steps) + 1
        near = np.linalg.norm(trajectory.places - trajectory.goal, axis=1) <= one.world.radius
        assert near[-1] == (steps is not None) or name == "keyed"
    starts = np.stack([t.places[0] for t in one.trajectories])
    assert len(np.unique(starts, axis=0)) == 3


def test_a_maps_observations_are_the_environments(found):
    """V is looked up at states as the environment would tell them at rest."""
    for one in found.values():
        first = one.trajectories[0]
        made = one.world.at(first.places[:1], first.goal.tolist())
        np.testing.assert_allclose(made, first.obs[:1], atol=1e-6)
        np.testing.assert_allclose(one.world.goals(made), first.goal[None], atol=1e-6)
    held = found["keyed"].world.at(np.zeros((1, 2)), four_rooms.GOAL, 1)
    assert held.tolist() == [[0, 0, 1]] and found["keyed"].world.stage(held).tolist() == [1]


def test_stitching_is_counted(found):
    """Three made episodes: linked and reached, not linked and reached, not linked and not reached."""
    one = found["keyed"]
    base = one.trajectories[0]
    made = (
        replace(base, steps=40, way=1.0, linked=2),
        replace(base, steps=60, way=9.0, linked=0),
        replace(base, steps=None, way=9.0, linked=0),
    )
    returns = replace(one.returns, steps_to_goal=(40, 60, None))
    numbers = trajectories.measure(replace(one, trajectories=made, returns=returns))
    assert numbers["success"] == pytest.approx(2 / 3) and numbers["steps"] == 50 and numbers["longest"] == 9
    assert numbers["beyond"] == 0.5 and (numbers["unlinked"], numbers["stitched"]) == (2, 1)
    assert numbers["piece"] == pytest.approx(one.displacements.max())
    text = trajectories.summary(replace(one, trajectories=made, returns=returns))
    assert "Goal reached in 2 of 3 episodes, after 50 steps on average." in text
    assert "in 2 of the 3 episodes no single piece leads from start to goal; the policy reaches 1 of these" in text


def test_every_run_has_its_map_and_every_episode_its_ends(found):
    figure, notes = trajectories.drawn([found["maze"], found["way"]])
    words = shown(figure)
    assert "maze, seed 0, step 20" in words and "way, seed 0, step 20" in words
    assert all(note in words for note in notes) and len(figure.axes) == 2
    for axis, one in zip(figure.axes, (found["maze"], found["way"]), strict=True):
        ends = [tuple(mark.get_xydata()[0]) for mark in axis.lines if mark.get_marker() in ("*", "X")]
        assert ends == [tuple(t.places[-1]) for t in one.trajectories]
        marks = [mark.get_marker() for mark in axis.lines if mark.get_marker() in ("*", "X")]
        assert marks == ["X" if t.steps is None else "*" for t in one.trajectories]
    assert len(trajectories.drawn([found["way"]], shown=1)[0].axes[0].patches) == len(navigation.WALLS) + 2


def test_behind_the_trajectories_is_the_runs_own_v(found):
    """Both stages on one scale, the learner's V at the map's points."""
    one = found["keyed"]
    figure, _ = trajectories.drawn([one], value=True)
    assert "without the key" in shown(figure) and "with the key" in shown(figure)
    meshes = [axis.collections[0] for axis in figure.axes if axis.get_xlabel() == "x"]
    policy = one.run.policy
    for stage, mesh in enumerate(meshes):
        obs = np.concatenate((one.world.points, np.full((len(one.world.points), 1), stage)), 1)
        v = policy.learner.policy.v(policy.tree, torch.as_tensor(obs, dtype=torch.float32)).detach()
        np.testing.assert_allclose(mesh.get_array()[one.world.free], v, atol=1e-5)
        assert np.ma.getmaskarray(np.ma.masked_invalid(mesh.get_array()))[~one.world.free].all()
    assert len(meshes) == 2 and meshes[0].norm.vmax == meshes[1].norm.vmax


def test_the_command_writes_where_it_is_told(runs, tmp_path, capsys):
    out = tmp_path / "some.png"
    assert trajectories.main([str(runs["way"]), "--out", str(out), "--episodes", "2"]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "some.png\n" in printed and "way, seed 0, step 20: Goal reached in" in printed and "of 2 episodes" in printed
    assert trajectories.main([str(runs["maze"]), "--value", "--episodes", "1"]) == 0
    assert (runs["maze"] / "trajectories.png").is_file() and "V for its goal" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{nowhere}"], "holds no run"),
        (["{swing}"], "Pendulum-v1 has no map to draw on; choose a run on a point maze"),
        (["{way}", "--value", "--episodes", "1"], "has no state-value function; leave --value out"),
        (["{way}", "--episodes", "0"], "--episodes must be at least 1, not 0"),
        (["{way}", "--out", "some.pdf", "--episodes", "1"], "must end in .png"),
    ],
)
def test_mistakes_are_told_in_one_line(runs, tmp_path, capsys, arguments, words):
    places = {name: str(run) for name, run in runs.items()} | {"nowhere": tmp_path / "nowhere" / "0"}
    assert trajectories.main([argument.format(**places) for argument in arguments]) == 2
    told = capsys.readouterr()
    assert told.err.startswith("error: ") and words in told.err and told.err.count("\n") == 1 and not told.out
