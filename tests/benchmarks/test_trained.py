"""Trained recipes: what acts is what was trained, levels are what they claim, and training anew repeats itself."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from functools import cache
from itertools import islice, pairwise
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from benchmarks.readme import with_table
from benchmarks.trained import __main__ as tool
from benchmarks.trained import cutting, policies
from benchmarks.trained.policies import RANDOM
from benchmarks.trained.policy import SquashedGaussian
from benchmarks.trained.recipes import TRAINED, HalfCheetah, Hopper, Trained, Walker2d
from metarl import Spec, config
from metarl.data.commands import app
from metarl.data.minari import load_minari
from metarl.data.recipes import find, locomotion, make_dataset, recipe_dataset_id
from metarl.data.replay import Replay
from metarl.data.transitions import Layout
from metarl.envs import make_env
from metarl.errors import CheckpointError, ConfigError, DataError
from metarl.training import checkpoints, offline
from metarl.training.folder import RunFolder
from metarl.training.progress import Silent
from metarl.training.setup import build_learner

ROBOTS = (Hopper, HalfCheetah, Walker2d)
SHIPPED = [robot for robot in ROBOTS if policies.shipped(robot.name) is not None]
MODULE = "benchmarks.trained.recipes"
N = 6  # episodes whose mean is held against a claim


@pytest.fixture(autouse=True)
def minari_root(tmp_path, monkeypatch) -> Path:
    """An empty Minari folder."""
    root = tmp_path / "datasets"
    root.mkdir()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    return root


def fields(episode):
    """What the bytes of a dataset come from."""
    return [getattr(episode, f.name) for f in dataclasses.fields(episode)]


def assert_alike(ours, theirs) -> None:
    for one, other in zip(ours, theirs, strict=True):
        for a, b in zip(fields(one), fields(other), strict=True):
            np.testing.assert_array_equal(a, b)


def rows(episodes) -> int:
    return sum(len(episode.rewards) for episode in episodes)


# -- policies ----------------------------------------------------------------------------------------------------


def tensors(obs_dim: int, action_dim: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    sizes = [obs_dim, 8, 8, 2 * action_dim]
    made = {}
    for i, (n_in, n_out) in enumerate(pairwise(sizes)):
        made[f"net.layers.{i}.weight"] = rng.uniform(-0.5, 0.5, (n_in, n_out))
        made[f"net.layers.{i}.bias"] = rng.uniform(-0.5, 0.5, n_out)
    return made


@pytest.fixture
def three(tmp_path):
    """`three(recipe)`: that recipe with three untrained policies: medium at step 40, expert at 90, random up to 10."""

    def build(recipe: type[Trained]) -> Trained:
        env = gym.spec(recipe.env_id).make()
        sizes = env.observation_space.shape[0], env.action_space.shape[0]
        env.close()
        claim = {"mean": 1.0, "std": 0.0, "episodes": 1, "share": 0.4}
        facts = {
            **{"algorithm": "sac", "config": "0" * 8, "seed": 0, "steps": 100, "random": claim},
            "medium": {"step": 40, **claim},
            "expert": {"step": 90, **claim},
            "replay": cutting.replayed([20, 40], 10),
        }
        policies.write(tmp_path, recipe.name, facts, {step: tensors(*sizes, step) for step in (20, 40, 90)})
        found = policies.read(tmp_path, recipe.name)
        assert found is not None
        return recipe(found)

    return build


def test_numpy_acts_as_the_learner_does():
    spec = Spec(obs_dim=17, action_dim=3, max_action=(1.0, 0.5, 2.0))
    space = gym.spaces.Box(-np.array(spec.max_action, np.float32), np.array(spec.max_action, np.float32))
    learner = build_learner(config.load(Walker2d.settings, ["algorithm.actor_hidden=[8,8]"]), spec, seed=0)
    tree = {name: {k: v.double() for k, v in group.items()} for name, group in learner.init(torch.float64).tree.items()}
    tree["actor"] = {k: 3 * v for k, v in tree["actor"].items()}  # far from zero, so that every part matters
    obs = np.random.default_rng(0).normal(0, 3, (100, spec.obs_dim))
    draws = np.random.default_rng(1)
    noise = np.concatenate([draws.standard_normal((64, spec.action_dim)) for _ in range(2)])[:100]
    theirs, _ = learner.act(tree, torch.from_numpy(obs), None, torch.from_numpy(noise), False)
    act = SquashedGaussian({k: v.numpy() for k, v in tree["actor"].items()}).acting(np.random.default_rng(1), space)
    ours = np.stack([act(step, one) for step, one in enumerate(obs)])
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-6)
    assert ours.dtype == np.float32 and all(map(space.contains, ours)) and ours.std() > 0.1


def test_weights_are_shipped_as_float16_under_their_steps(three, tmp_path):
    recipe = three(Hopper)
    assert sorted(recipe.policies.nets) == [20, 40, 90]
    want = SquashedGaussian({k: v.astype(np.float16) for k, v in tensors(11, 3, 40).items()})
    obs = np.linspace(-1, 1, 11)
    np.testing.assert_array_equal(recipe.policies.nets[40](obs), want(obs))
    path = tmp_path / "hopper.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"hopper\.safetensors does not match its sha256 in hopper\.json"):
        policies.read(tmp_path, "hopper")
    path.unlink()
    assert policies.read(tmp_path, "hopper") is None


def test_shipped_files_are_small_and_come_from_the_shipped_settings():
    assert sum(path.stat().st_size for path in policies.SHIPPED.iterdir()) < 500_000
    for robot in ROBOTS:
        experiment = robot.experiment()
        cutting.check(experiment)
        assert experiment.online.env == robot.env_id
        found = policies.shipped(robot.name)
        if found is not None:
            told = found.facts["config"], found.facts["steps"], (found.facts["seed"],)
            assert told == (experiment.hash, experiment.steps, experiment.seeds)
            assert (found.facts["env_id"], found.facts["algorithm"]) == (robot.env_id, "sac")


def test_the_page_shows_what_is_shipped():
    page = tool.PAGE.read_text()
    assert with_table(page, tool.table(), "trained") == page


# -- levels ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("robot", ROBOTS, ids=lambda robot: robot.name)
def test_levels_are_those_that_policies_are_shipped_for(robot):
    assert set(robot.levels) == ({RANDOM, *TRAINED} if robot in SHIPPED else {RANDOM})
    assert robot.judged == (("medium",) if robot in SHIPPED else ())


def test_without_policies_there_is_random_alone():
    class Ant(Hopper):
        name = "ant"
        levels = Trained.levels

    assert set(Ant.levels) == {RANDOM} == set(Ant().levels) and rows(Ant().make(RANDOM, 20, 0)) == 20


@pytest.mark.parametrize("robot", ROBOTS, ids=lambda robot: robot.name)
def test_random_is_what_it_was_without_policies(robot):
    plain = next(one for one in robot.__mro__ if one.__module__ == locomotion.__name__)
    assert robot.version == plain.version == 1
    assert_alike(robot().make(RANDOM, 150, 3), plain().make(RANDOM, 150, 3))
    made = make_dataset(f"{MODULE}:{robot.__name__}/random", 20)
    assert made.dataset_id == f"metarl/{robot.name}/random-20-s0-v1" and "policies" not in made.transitions.card.figures


@cache
def lived(robot: type[Trained], level: str) -> list:
    """N whole episodes of a level."""
    recipe = robot()
    make = robot.make if level == RANDOM else None
    assert make or level in ("medium", "expert")
    acting = recipe._net(level) if level != RANDOM else locomotion.uniform
    return list(islice(recipe.lived(level, 11, lambda rows: (level, acting)), N))


@pytest.mark.parametrize("robot", SHIPPED, ids=lambda robot: robot.name)
@pytest.mark.parametrize("level", [RANDOM, "medium", "expert"])
def test_returns_are_those_that_the_card_claims(robot, level):
    claim = robot().facts("medium")["policies"][level]
    found = np.mean([episode.rewards.sum() for episode in lived(robot, level)])
    # Four standard errors of the difference, and 2 % of the expert's return for spreads that fifty episodes missed.
    error = claim["std"] * np.sqrt(1 / N + 1 / claim["episodes"])
    assert abs(found - claim["mean"]) <= 4 * error + 0.02 * robot().facts("medium")["policies"]["expert"]["mean"]
    assert claim["episodes"] >= 50


@pytest.mark.parametrize("robot", SHIPPED, ids=lambda robot: robot.name)
def test_levels_are_ordered_and_medium_lies_between(robot):
    random, medium, expert = (
        np.mean([episode.rewards.sum() for episode in lived(robot, level)]) for level in (RANDOM, "medium", "expert")
    )
    assert random < medium < expert
    told = robot().facts("medium")["policies"]
    low, high = told[RANDOM]["mean"], told["expert"]["mean"]
    assert told["medium"]["share"] == pytest.approx((told["medium"]["mean"] - low) / (high - low), abs=1e-3)
    assert 0.3 <= told["medium"]["share"] <= 0.5 and told["medium"]["step"] < told["expert"]["step"]


@pytest.mark.parametrize("robot", SHIPPED, ids=lambda robot: robot.name)
def test_episodes_terminate_at_falls_and_are_truncated_after_1000_steps(robot):
    for episode in (*lived(robot, "medium"), *lived(robot, "expert")):
        assert not episode.terminations[:-1].any() and not episode.truncations[:-1].any()
        length = len(episode.rewards)
        assert length == 1000 if episode.truncations[-1] else episode.terminations[-1] and length <= 1000
        assert episode.terminations[-1] != episode.truncations[-1]
        assert robot is not HalfCheetah or length == 1000


@pytest.mark.parametrize("level", TRAINED)
def test_the_same_seed_gives_the_same_bytes(three, level):
    recipe = three(Hopper)
    assert_alike(recipe.make(level, 250, 5), recipe.make(level, 250, 5))
    one, other = next(iter(recipe.make(level, 250, 5))), next(iter(recipe.make(level, 250, 6)))
    assert one.seed != other.seed and not np.array_equal(one.actions[0], other.actions[0])
    assert rows(recipe.make(level, 250, 5)) == 250


def test_every_episode_draws_noise_of_its_own(three):
    seeds = {level: {episode.seed for episode in three(Hopper).make(level, 300, 0)} for level in (RANDOM, *TRAINED)}
    assert len(set().union(*seeds.values())) == sum(map(len, seeds.values()))
    episodes = list(three(Hopper).make("medium", 300, 0))
    assert len(episodes) == len({episode.actions[0].tobytes() for episode in episodes})


def test_medium_expert_is_medium_to_its_last_whole_trajectory_then_expert(three):
    episodes = list(three(Hopper).make("medium-expert", 401, 0))
    names = [episode.behaviour for episode in episodes]
    n = names.index("expert")
    assert names == ["medium"] * n + ["expert"] * (len(names) - n) and rows(episodes) == 401
    assert all(episode.terminations[-1] for episode in episodes[:-1])
    more = list(islice(three(Hopper).make("medium-expert", 4001, 0), n + 1))  # one more of the same stream
    assert_alike(episodes[:n], more[:n])
    assert rows(episodes[:n]) <= 200 < rows(more) and more[n].behaviour == "medium"


def test_where_no_medium_trajectory_fits_its_first_is_cut(three):
    episodes = list(three(HalfCheetah).make("medium-expert", 50, 0))
    assert [(episode.behaviour, len(episode.rewards)) for episode in episodes] == [("medium", 25), ("expert", 25)]
    assert all(episode.truncations[-1] and not episode.terminations[-1] for episode in episodes)


def test_medium_replay_is_rebuilt_in_the_order_of_training(three):
    recipe = three(Hopper)
    episodes = list(recipe.make("medium-replay", 2000, 0))
    begun = 0
    for episode in episodes:
        step = 40 * begun / 2000
        assert episode.behaviour == ("random" if step < 10 else "step 20" if step < 30 else "step 40")
        begun += len(episode.rewards)
    assert {episode.behaviour for episode in episodes} == {"random", "step 20", "step 40"} and begun == 2000
    assert "rebuilt from 2 snapshots" in recipe.levels["medium-replay"]
    assert recipe.facts("medium-replay")["policies"]["replay"] == recipe.policies.facts["replay"]


# -- cutting -----------------------------------------------------------------------------------------------------


def test_what_acts_in_the_replay():
    assert cutting.replayed([10, 20, 50], 5) == [
        {"acts": "random", "until": 5},
        {"acts": 10, "until": 15},
        {"acts": 20, "until": 35},
        {"acts": 50, "until": 50},
    ]
    many = cutting.replayed(list(range(100, 10_100, 100)), 0)
    assert [part["acts"] for part in many][:2] == [100, 1300] and many[-1] == {"acts": 10_000, "until": 10_000}
    assert len(many) == cutting.REPLAYED + 1
    assert cutting.replayed([3], 5)[-1]["acts"] == 3  # medium before the random start is over: nothing else is there


def medium(first: dict[int, float], second: dict[int, float]) -> tuple[int, list[int]]:
    """The choice among snapshots whose first and second looks give these returns (random 0, expert 100)."""
    asked = []

    def again(step: int) -> float:
        asked.append(step)
        return second[step]

    return cutting._medium(sorted(first), first.__getitem__, again, 0.0, 100.0), asked


def test_medium_is_the_earliest_near_40_percent_on_a_second_look():
    first = {1: 10.0, 2: 45.0, 3: 41.0, 4: 39.0, 5: 70.0}
    assert medium(first, {2: 60.0, 3: 43.0, 4: 40.0}) == (3, [2, 3])
    assert medium(first, {2: 60.0, 3: 30.0, 4: 52.0}) == (3, [2, 3, 4])  # none is near: the nearest of them
    assert medium({1: 5.0, 2: 70.0}, {}) == (2, [])  # none is worth a second look


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("algorithm={name: td3}", "algorithm: sac"),
        ("algorithm.normalize=true", "normalize: false"),
        ("online.envs=2", "online.envs=1"),
        ("seeds=[0,1]", "name one of the seeds"),
        ("online.env=HalfCheetah-v5", "trained in Hopper-v5"),
    ],
)
def test_settings_that_give_no_such_policies_are_refused(setting, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        Hopper().from_scratch([setting], tmp_path, "none")
    assert list(tmp_path.glob("hopper*")) == []


# -- training from scratch ---------------------------------------------------------------------------------------

TINY = ["steps=500", "online.random_steps=150", "checkpoint.every=100", "evaluation={every: 100, episodes: 1}"]
TINY += ["algorithm.hidden=[16,16]", "algorithm.actor_hidden=[8,8]", "algorithm.batch_size=32"]
TINY += ["algorithm.actor_optimizer.lr=3e-3", "algorithm.critic_optimizer.lr=3e-3"]
TINY += ["algorithm.auto_temperature=false", "algorithm.temperature=0.05", "compile=off"]
LEVELS = ("medium", "medium-replay", "medium-expert")
COMMAND = ["make", *(f"{MODULE}:Hopper/{level}" for level in LEVELS), "--from-scratch", "--size", "90"]
COMMAND += [word for setting in TINY for word in ("--set", setting)]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """Two folders of runs and datasets of one command: one that went through, and one that was killed."""
    whole, killed = (tmp_path_factory.mktemp(name) for name in ("whole", "killed"))
    for root in (whole, killed):
        (root / "datasets").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(killed / "datasets"))
        again = [sys.executable, "-m", "metarl", "data", *COMMAND, "--root", str(killed / "runs")]
        child = subprocess.Popen(again, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while child.poll() is None:
            if len(list(killed.glob("runs/hopper-*/0/checkpoint/step-*"))) > 1:
                child.send_signal(signal.SIGKILL)
            time.sleep(0.01)
        assert child.returncode == -signal.SIGKILL and not list(killed.glob("runs/hopper-*/0/result.json"))
        done = subprocess.run(again, capture_output=True, text=True)
        assert done.returncode == 0 and "going on from step" in done.stderr, done.stderr
        patch.setenv("MINARI_DATASETS_PATH", str(whole / "datasets"))
        result = CliRunner().invoke(app, [*COMMAND, "--root", str(whole / "runs")])
        assert result.exception is None, result.output
    return whole, killed


def cards(root: Path) -> dict[str, dict]:
    found = (root / "datasets").rglob("metarl_card.json")
    return {path.parent.relative_to(root / "datasets").as_posix(): json.loads(path.read_text()) for path in found}


def test_from_scratch_killed_once_gives_the_same_ids_and_bytes(scratch):
    whole, killed = map(cards, scratch)
    assert whole == killed and len(whole) == len(LEVELS) and all(card["sha256"] for card in whole.values())
    names = [sorted((root / "runs").rglob("scratch-*/hopper.*")) for root in scratch]
    for ours, theirs in zip(*names, strict=True):
        assert ours.read_bytes() == theirs.read_bytes()


def test_from_scratch_is_not_to_be_confused_with_what_is_shipped(scratch):
    told = cards(scratch[0])
    (run,) = (scratch[0] / "runs").glob("hopper-*/0")
    (variant,) = [path.name for path in run.glob("scratch-*")]
    assert set(told) == {f"metarl/hopper/{level}-{variant}-90-s0-v1" for level in LEVELS}
    if Hopper in SHIPPED:
        assert recipe_dataset_id(f"{MODULE}:Hopper/medium", 90) == "metarl/hopper/medium-90-s0-v1"
    for card in told.values():
        policy = card["figures"]["policies"]
        assert policy["run"] == f"{run.parent.name}/0" and policy["config"] == run.parent.name.removeprefix("hopper-")
        assert policy["sha256"] == policies.read(run / variant, "hopper").sha256
        assert policy["medium"]["step"] < policy["expert"]["step"]


def test_from_scratch_gives_the_runs_own_replay(scratch, monkeypatch):
    root = scratch[0]
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root / "datasets"))
    (run,) = (root / "runs").glob("hopper-*/0")
    (dataset_id,) = [name for name in cards(root) if "/medium-replay-" in name]
    made = load_minari(dataset_id)
    until = made.card.figures["policies"]["medium"]["step"]
    log = Replay(Layout(11, 3), 1).read(run / "replay.bin", until - 90, 90)
    want = log.copy()
    want[-1, -1] = 1 - want[-1, -2]  # an end of the recording is a truncation
    np.testing.assert_array_equal(made.rows.numpy(), want)
    assert "every transition that it was trained on" in made.card.policy and "rebuilt" not in made.card.policy
    trained = Hopper().from_scratch(TINY, root / "runs", "none")  # it is all there: nothing is trained
    assert trained.rows("medium-replay") == until and trained.rows("medium") == Hopper.default_size
    whole = list(trained.make("medium-replay", until, 0))
    assert rows(whole) == until
    with make_env(Hopper().env_spec().to_json()) as env:
        for episode in whole:
            obs, _ = env.reset(seed=episode.seed)
            np.testing.assert_array_equal(obs.astype(np.float32), episode.observations[0])
    with pytest.raises(DataError, match=f"holds {until} rows"):
        trained.make("medium-replay", until + 1, 0)


def test_a_log_that_was_changed_is_refused(scratch):
    trained = Hopper().from_scratch(TINY, scratch[1] / "runs", "none")
    log = trained.run / "replay.bin"
    data = bytearray(log.read_bytes())
    data[10] ^= 1
    log.write_bytes(data)
    with pytest.raises(CheckpointError, match="does not match the sha256"):
        trained.make("medium-replay", 50, 0)
    data[10] ^= 1
    log.write_bytes(data)
    assert rows(trained.make("medium-replay", 50, 0)) == 50


def test_the_tool_cuts_the_same_files_and_refuses_other_settings(scratch, tmp_path, capsys, monkeypatch):
    (run,) = (scratch[0] / "runs").glob("hopper-*/0")
    assert tool.main([str(run), "--to", str(tmp_path / "cut")]) == 2
    assert "other settings than those that are shipped" in capsys.readouterr().err
    experiment = RunFolder(run).experiment()
    monkeypatch.setattr(Hopper, "experiment", classmethod(lambda cls, settings=(): experiment))
    assert tool.main([str(run), "--to", str(tmp_path / "cut")]) == 0
    for path in run.glob("scratch-*/hopper.*"):
        assert (tmp_path / "cut" / path.name).read_bytes() == path.read_bytes()
    told = json.loads((tmp_path / "cut" / "hopper.json").read_text())
    printed = capsys.readouterr().out
    assert f"at step {told['medium']['step']:,}, {told['medium']['share']:.1%} of the way" in printed


def test_snapshots_lie_between_episodes_also_of_a_run_that_went_on(scratch, tmp_path):
    shutil.copytree(scratch[0] / "runs", tmp_path / "runs")
    experiment = Hopper.experiment([*TINY, "steps=540"])
    run = offline.train(experiment, 0, tmp_path / "runs", Silent())
    kept = {int(path.name.removeprefix("step-")) for path in (run / "checkpoint").glob("step-*")}
    assert {500, 540} <= kept and len(kept) == 6
    _, found = cutting.snapshots(run)
    log = Replay(Layout(11, 3), 1).read(run / "replay.bin", 0, 540)
    ends = set((np.flatnonzero(log[:, -2:].any(axis=1)) + 1).tolist())
    assert {snapshot.step for snapshot in found} == kept & (ends | {540})
    saved = checkpoints.load(run / "checkpoint", found[0].step).tensors
    name = "net.layers.1.weight"
    np.testing.assert_array_equal(found[0].weights[name], saved[f"tree/actor/{name}"].numpy().astype(np.float16))


def test_too_few_snapshots_and_an_unfinished_run_are_refused(scratch, tmp_path):
    (run,) = (scratch[0] / "runs").glob("hopper-*/0")
    copy = tmp_path / "0"
    shutil.copytree(run, copy)
    for path in sorted((copy / "checkpoint").glob("step-*"))[2:]:
        shutil.rmtree(path)
    with pytest.raises(ConfigError, match="keeps 2 snapshots, and 3 or more are needed"):
        cutting.cut(copy, "hopper", tmp_path, Silent())
    (copy / "result.json").unlink()
    with pytest.raises(ConfigError, match="is not at its last step, 500, yet"):
        cutting.cut(copy, "hopper", tmp_path, Silent())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pendulum/medium", "--from-scratch"], "nothing in pendulum/medium is trained; leave --from-scratch out"),
        ([f"{MODULE}:Hopper/random", "--from-scratch"], "is trained; leave --from-scratch out"),
        ([f"{MODULE}:Hopper/mediun", "--from-scratch"], "Did you mean 'medium'"),
        (["pendulum/medium", "--set", "steps=3"], "--set is about the training of --from-scratch"),
        ([f"{MODULE}:Hopper/medium", "--from-scratch", "--set", "stepz=3"], "unknown key 'stepz'"),
    ],
)
def test_mistakes_are_one_line_before_any_work(arguments, message, tmp_path, minari_root):
    result = CliRunner().invoke(app, ["make", *arguments, "--root", str(tmp_path / "runs")])
    assert isinstance(result.exception, (DataError, ConfigError)) and message in str(result.exception)
    assert "\n" not in str(result.exception) and not (tmp_path / "runs").exists() and not list(minari_root.iterdir())


def test_find_knows_the_trained_levels_by_class():
    for robot in SHIPPED:
        for level in TRAINED:
            assert find(f"{MODULE}:{robot.__name__}/{level}")[1] == level
