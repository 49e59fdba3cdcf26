"""The online loop: what reaches the replay, how often it learns, and the same numbers after any kill."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from metarl import config
from metarl.data.transitions import Layout
from metarl.envs import make_env, spec_of
from metarl.errors import CheckpointError, ConfigError
from metarl.learner import Role
from metarl.training import checkpoints, offline
from metarl.training.evaluation import Policy
from metarl.training.folder import RunFolder
from metarl.training.online import Actor
from metarl.training.progress import Silent
from metarl.training.setup import prepare
from metarl.training.streams import Streams, derive_seed

EXPERIMENT = """
name: online
algorithm: {name: td3, hidden: [8, 8], batch_size: 16}
online: {env: Pendulum-v1, random_steps: 30}
steps: 450
device: cpu
log_every: 10
evaluation: {every: 100, episodes: 2}
checkpoint: {every: 50}
"""
SHORT, FALLING, MOODY = "MetarlShortPendulum-v0", "MetarlFalling-v0", "MetarlMoody-v0"


class Moody(gym.Env):
    """Its observations do not depend on the reset seed: no run can be brought back into its episodes."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float64)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    lived = 0

    def reset(self, *, seed=None, options=None):
        return self._obs(), {}

    def step(self, action):
        return self._obs(), 0.0, False, False, {}

    def _obs(self):
        Moody.lived += 1
        return np.full(2, np.sin(Moody.lived))


@pytest.fixture(autouse=True, scope="module")
def environments():
    """Pendulum cut after 20 steps, and a pole that falls (terminates) within a few."""
    gym.register(SHORT, "gymnasium.envs.classic_control:PendulumEnv", max_episode_steps=20)
    gym.register(FALLING, "gymnasium.envs.mujoco.inverted_pendulum_v5:InvertedPendulumEnv", max_episode_steps=6)
    gym.register(MOODY, f"{__name__}:Moody", max_episode_steps=60)
    yield
    for name in (SHORT, FALLING, MOODY):
        del gym.registry[name]


@pytest.fixture
def yaml(tmp_path):
    file = tmp_path / "experiment.yaml"
    file.write_text(EXPERIMENT)
    return file


class Listener(Silent):
    """Keeps what is said."""

    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


class Stop(Silent):
    """Ends a run from outside once it has come so far."""

    def __init__(self, at):
        self.at = at

    def update(self, done, **figures):
        if done >= self.at:
            raise KeyboardInterrupt


@pytest.fixture
def killed(yaml, tmp_path):
    """`killed(*overrides, at=(steps, ...))`: a run that was stopped at these steps and then went to its end."""

    def train(*overrides, at):
        for step in at:
            with pytest.raises(KeyboardInterrupt):
                offline.train(config.load(yaml, overrides), 0, tmp_path / "killed", Stop(step))
        return offline.train(config.load(yaml, overrides), 0, tmp_path / "killed", Silent())

    return train


def contents(folder):
    """Everything that must repeat, the replay included."""
    saved = checkpoints.load_newest(folder / "checkpoint", pytest.fail)
    return {
        "metrics": (folder / "metrics.csv").read_bytes(),
        "result": (folder / "result.json").read_bytes(),
        "replay": (folder / "replay.bin").read_bytes(),
        "online": saved.record["online"],
        "step": saved.step,
        "tensors": {name: value.numpy().tobytes() for name, value in saved.tensors.items()},
    }


def columns(folder, env_id, dtype=np.float32):
    """The log's columns by name."""
    with gym.make(env_id) as env:
        layout = Layout(env.observation_space.shape[0], env.action_space.shape[0])
    rows = np.fromfile(folder / "replay.bin", dtype).reshape(-1, layout.width)
    return {name: value.numpy() for name, value in layout.split(torch.from_numpy(rows)).items()}


# -- what reaches the replay -------------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", [SHORT, FALLING, "Pendulum-v1"])
@pytest.mark.parametrize("envs", [1, 3])
def test_every_row_is_what_the_environment_gave(run, env_id, envs):
    """The log against an environment that lives through the same actions from the same reset seeds."""
    folder = run(f"online.env={env_id}", f"online.envs={envs}", "steps=240")
    rows = columns(folder, env_id)
    assert len(rows["reward"]) == 240
    ends = 0
    for i in range(envs):
        mine = {name: value[i::envs] for name, value in rows.items()}
        with make_env(gym.spec(env_id).to_json()) as env:
            episode = 0
            obs, _ = env.reset(seed=derive_seed(0, "episode", i, episode) % 2**32)
            for k, action in enumerate(mine["action"]):
                assert np.array_equal(mine["obs"][k], obs.astype(np.float32))
                obs, reward, terminated, truncated, _ = env.step(action)
                assert np.array_equal(mine["next_obs"][k], obs.astype(np.float32))  # not that of the next episode
                assert mine["reward"][k] == np.float32(reward)
                assert (mine["terminated"][k], mine["truncated"][k]) == (terminated, truncated)
                if terminated or truncated:
                    ends, episode = ends + 1, episode + 1
                    obs, _ = env.reset(seed=derive_seed(0, "episode", i, episode) % 2**32)
    assert ends >= 1 or env_id == "Pendulum-v1"


def test_a_time_limit_is_no_termination_and_a_fall_is(run):
    cut = columns(run(f"online.env={SHORT}", "steps=100"), SHORT)
    assert np.flatnonzero(cut["truncated"]).tolist() == [19, 39, 59, 79, 99] and not cut["terminated"].any()
    fallen = columns(run(f"online.env={FALLING}", "steps=100", root="b"), FALLING)
    assert fallen["terminated"].sum() >= 5 and (fallen["truncated"] > fallen["terminated"]).any()


@pytest.mark.parametrize("envs", [1, 2])
def test_the_start_is_random_and_then_the_learner_acts(run, yaml, envs):
    folder = run("steps=100", f"online.envs={envs}", "online.random_steps=40", "online.learn_from=100")
    rows = columns(folder, "Pendulum-v1")
    setup = prepare(config.load(yaml), 0)  # nothing was learned: these are its parameters
    calm, _ = setup.learner.act(setup.start.tree, torch.from_numpy(rows["obs"]), None, None, True)
    off = np.abs(rows["action"] - calm.numpy())[:, 0]
    assert off[:40].mean() > 0.5 and off[40:].max() < 0.1 * 2 * 4.5 and off[40:].mean() > 0.05
    assert np.abs(rows["action"]).max() <= 2.0 and np.abs(rows["action"][:40]).max() > 1.5
    assert len(np.unique(off[40:])) == 60


@pytest.mark.parametrize("algorithm", ["td3", "ddpg", "sac"])
def test_a_recorded_actor_acts_as_the_learner_does(yaml, algorithm):
    setup = prepare(config.load(yaml, [f"algorithm.name={algorithm}"]), 0)
    noise = torch.randn(3, 1)
    obs = np.random.default_rng(0).normal(size=(3, 3))
    policy = Policy(setup.learner, setup.start.tree, None)
    actor, plain = Actor(policy, eager=False), Actor(policy, eager=True)
    for _ in range(2):
        (fast, carry, _), (slow, _, _) = actor(obs, noise, None), plain(obs, noise, None)
        assert carry is None and np.allclose(fast, slow, atol=1e-6, rtol=0)
        for leaf in setup.start.tree["actor"].values():  # as training overwrites them
            leaf.mul_(1.5)
    assert np.array_equal(actor(obs, noise, None)[0], Actor(policy, eager=False)(obs, noise, None)[0])


# -- how often it learns -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "gradient_steps"),
    [
        (["online.random_steps=30"], 170),
        (["online.random_steps=30", "online.learn_from=60"], 140),
        (["online.random_steps=30", "online.updates_per_step=0.5"], 85),
        (["online.random_steps=30", "online.updates_per_step=2"], 340),
        (["online.random_steps=30", "online.envs=4"], 170),
        (["online.random_steps=0"], 200),
    ],
)
def test_gradient_steps_to_an_environment_step(run, settings, gradient_steps):
    folder = run("steps=200", *settings)
    saved = checkpoints.load_newest(folder / "checkpoint", pytest.fail)
    assert saved.tensors["opt/critic/count"].item() == gradient_steps
    assert saved.tensors["opt/actor/count"].item() == gradient_steps // 2
    assert saved.step == 200


def test_what_is_logged_of_training_episodes(run):
    folder = run(f"online.env={SHORT}", "steps=100", "log_every=50")
    rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()[1:]]
    found = {(int(step), name): float(value) for step, name, value in rows}
    rewards = columns(folder, SHORT)["reward"].astype(np.float64).reshape(5, 20).sum(1)
    assert found[50, "online/episodes"] == 2 and found[100, "online/episodes"] == 3
    assert found[50, "online/return"] == pytest.approx(rewards[:2].mean(), rel=1e-5)
    assert found[100, "online/return"] == pytest.approx(rewards[2:].mean(), rel=1e-5)
    assert found[100, "online/length"] == 20
    assert {name for _, name in found} >= {"critic/loss", "evaluation/return"}


def test_learned_weights_on_what_was_lived_through(run):
    """No data but the guide's; before the first transition there is nothing that B could be looked at on."""
    folder = run(
        "algorithm={name: td3_bc, hidden: [8, 8], batch_size: 16, normalize: false}",
        "objective={name: gorl, preset: quick, batch_size: 5}",
        "data.guide={recipe: pendulum/expert, size: 1000}",
        "steps=200",
    )
    probes = [json.loads(line) for line in (folder / "probes.jsonl").read_text().splitlines()]
    assert [probe["step"] for probe in probes] == [100, 200]
    assert probes[-1]["moved"] > 0


def test_a_small_replay_forgets_and_goes_on(killed, run):
    whole = run(f"online.env={SHORT}", "online.replay=37")
    assert contents(killed(f"online.env={SHORT}", "online.replay=37", at=(130, 333))) == contents(whole)


# -- phases ------------------------------------------------------------------------------------------------------

PHASES = (
    "algorithm={name: td3_bc, hidden: [8, 8], batch_size: 16}",
    "online.env=null",
    "online.random_steps=null",
    "data.train={recipe: pendulum/medium, size: 1000}",
    "steps={offline: 100, online: 250}",
)


def test_offline_then_online_in_one_run(run):
    folder = run(*PHASES)
    saved = checkpoints.load_newest(folder / "checkpoint", pytest.fail)
    assert saved.step == 350 and saved.tensors["opt/critic/count"].item() == 350
    assert len(columns(folder, "Pendulum-v1")["reward"]) == 250
    result = json.loads((folder / "result.json").read_text())
    assert [e["step"] for e in result["evaluations"]] == [0, 100, 200, 300, 350]


def test_the_offline_phase_is_the_offline_run(run):
    """Up to the switch nothing tells the two apart."""
    alone = run(PHASES[0], "online=null", PHASES[3], "steps=100", root="a")
    both = run(*PHASES, "checkpoint.keep=99", root="b")
    first, second = (checkpoints.load(folder / "checkpoint", 100) for folder in (alone, both))
    trees = [{k: v for k, v in saved.tensors.items() if k.startswith(("tree", "opt"))} for saved in (first, second)]
    assert all(torch.equal(trees[0][name], trees[1][name]) for name in trees[0])


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_share_of_the_batch_comes_from_the_data(yaml, share):
    experiment = config.load(yaml, [*PHASES, f"online.from_data={share}"])
    setup = prepare(experiment, 0)
    replay = setup.online.replay
    for _ in range(5):
        row, cells = replay.row()
        cells["reward"][:] = 7.0  # no reward of Pendulum's
        replay.add(row)
    assert not (setup.streams.batches(3)["train"]["reward"] == 7).any()
    setup.streams.live = True
    lived = [setup.streams.batches(step)["train"]["reward"] == 7 for step in range(1, 5)]
    n = round(16 * share)
    assert all(not found[:n].any() and found[n:].all() for found in lived)


def test_a_share_that_rounds_to_nothing_is_refused(run):
    with pytest.raises(ConfigError, match=r"online.from_data=0.01 of a batch of 16 rows is none"):
        run(*PHASES, "online.from_data=0.01")


def test_every_virtual_batch_has_its_share(yaml):
    """A role with further axes before the rows has the share in each of its batches."""
    setup = prepare(config.load(yaml, [*PHASES]), 0)
    role, noise = Role("train", 8, lead=(3,)), {}
    rows = Streams({"train": setup.data["train"]}, {"train": role}, noise, 0, setup.online.replay, 0.25)
    row, cells = setup.online.replay.row()
    cells["reward"][:] = 7.0
    setup.online.replay.add(row)
    rows.live = True
    lived = rows.batches(1)["train"]["reward"] == 7
    assert lived.shape == (3, 8) and not lived[:, :2].any() and lived[:, 2:].all()


def test_replayed_observations_are_normalised_as_the_data_is(run):
    folder = run(*PHASES, "online.learn_from=0")
    statistics = checkpoints.load_newest(folder / "checkpoint", pytest.fail).tensors
    setup = prepare(RunFolder(folder).experiment(), 0)
    raw = torch.from_numpy(np.fromfile(folder / "replay.bin", np.float32).reshape(-1, setup.online.replay.layout.width))
    for row in raw[:20]:
        setup.online.replay.add(row.numpy())
    read = setup.online.replay.layout.split(setup.online.replay.rows[:20])
    given = setup.online.replay.layout.split(raw[:20])
    for name in ("obs", "next_obs"):
        wanted = (given[name] - statistics["statistics/mean"]) / (statistics["statistics/std"] + 1e-3)
        assert torch.allclose(read[name].double(), wanted, atol=1e-5)
    assert torch.equal(read["action"], given["action"])


# -- killed and resumed ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_three_times_it_ends_with_the_same_bits(run, yaml, tmp_path):
    whole = contents(run())
    command = [sys.executable, "-m", "metarl", "train", str(yaml), "--progress", "lines", "--root", str(tmp_path / "k")]
    rng, codes = random.Random(1), []
    for _ in range(3):
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        stop_at = rng.randrange(20, 420)
        for line in child.stdout:
            if json.loads(line).get("done", 0) >= stop_at:
                child.send_signal(signal.SIGKILL)
        codes.append(child.wait())
        child.stdout.close()
    assert codes.count(-signal.SIGKILL) >= 2
    subprocess.run(command, check=True, capture_output=True)
    (folder,) = (tmp_path / "k").glob("online-*/0")
    assert contents(folder) == whole


SEVERAL = {
    "one environment": ((), (73, 251, 449)),
    "sac": (("algorithm={name: sac, hidden: [8, 8], batch_size: 16}",), (111, 222, 333)),
    "several at once": ((f"online.env={SHORT}", "online.envs=3", "online.updates_per_step=0.5"), (75, 250, 420)),
    "falling": ((f"online.env={FALLING}", "online.envs=2"), (60, 130, 300)),
    "float64": (("precision=float64", f"online.env={SHORT}"), (60, 130, 300)),
    "compiled never": (("compile=off",), (120, 305, 440)),
    "two phases": ((*PHASES, "online.from_data=0.5"), (60, 99, 180)),
    "two phases, learned weights": (
        (
            *PHASES,
            "objective={name: gorl, preset: quick, batch_size: 5}",
            "data.guide={recipe: pendulum/expert, size: 1000}",
        ),
        (101, 240),
    ),
}


@pytest.mark.parametrize("case", SEVERAL)
def test_killed_anywhere_it_ends_with_the_same_bits(run, killed, case):
    settings, at = SEVERAL[case]
    assert contents(killed(*settings, at=at)) == contents(run(*settings))


def test_checkpoints_come_at_episode_ends(run):
    folder = run(f"online.env={FALLING}", "checkpoint.keep=99")
    ends = np.cumsum(np.ones(450))[(lambda c: c["terminated"] + c["truncated"] > 0)(columns(folder, FALLING))]
    saved = sorted(int(p.name.removeprefix("step-")) for p in (folder / "checkpoint").glob("step-*"))
    assert set(saved[:-1]) <= set(ends.astype(int)) and saved[-1] == 450
    assert [min(s for s in saved if s >= 50 * k) - 50 * k < 10 for k in range(1, 9)] == [True] * 8


@pytest.mark.parametrize("first", [130, 200])
def test_more_steps_go_on_from_the_middle_of_an_episode(run, first):
    straight = run("steps=300", root="a")
    run(f"steps={first}", root="b")
    assert contents(run("steps=300", root="b")) == contents(straight)


@pytest.mark.parametrize("envs", [1, 3])
def test_the_end_is_logged_and_evaluated_once(run, envs):
    """Three environments pass a multiple without standing on it."""
    folder = run(f"online.envs={envs}", "steps=402")
    rows = [line.split(",")[:2] for line in (folder / "metrics.csv").read_text().splitlines()]
    assert len({tuple(row) for row in rows}) == len(rows)
    steps = [e["step"] for e in json.loads((folder / "result.json").read_text())["evaluations"]]
    assert steps == ([0, 100, 200, 300, 400, 402] if envs == 1 else [0, 102, 201, 300, 402])


def test_a_run_that_ends_before_its_first_update_says_so(run, yaml, tmp_path):
    said = Listener()
    offline.train(config.load(yaml, ["steps=20"]), 0, tmp_path / "runs", said)
    (note,) = [text for text in said.said if text.startswith("note")]
    assert "end before the first update" in note and "online.learn_from=30" in note


@pytest.mark.parametrize(("ratio", "steps", "updates"), [(0.29, 100, 29), (0.57, 100, 57), (1.1, 10, 11), (3.0, 7, 21)])
def test_a_ratio_is_the_decimal_that_was_written(ratio, steps, updates):
    assert config.Online(updates_per_step=ratio, learn_from=5).updates(steps + 5) == updates


def test_a_replay_that_no_memory_holds_is_refused(run, tmp_path):
    with pytest.raises(ConfigError, match=r"online.replay=100,000,000,000,000 transitions take .* GiB.*smaller"):
        run("online.replay=100000000000000")
    assert not (tmp_path / "runs").exists()


def test_an_online_phase_that_never_learns_says_so(yaml, tmp_path):
    said = Listener()
    offline.train(config.load(yaml, [*PHASES, "online.learn_from=1000"]), 0, tmp_path / "runs", said)
    assert [text for text in said.said if "the 250 environment steps end before the first update" in text]


def test_the_switch_cannot_be_moved_afterwards(run):
    run(*PHASES)
    other = run(*PHASES[:-1], "steps={offline: 120, online: 250}")
    assert len(list(other.parent.parent.iterdir())) == 2  # another folder: nothing was overwritten


def test_an_environment_that_does_not_repeat_itself_is_refused(run):
    run(f"online.env={MOODY}", "steps=250")
    with pytest.raises(CheckpointError, match="does not repeat its episode"):
        run(f"online.env={MOODY}", "steps=300")


def test_a_replay_that_was_changed_is_refused_before_anything_is_written(run):
    folder = run()
    before = (folder / "metrics.csv").read_bytes()
    data = bytearray((folder / "replay.bin").read_bytes())
    data[100] ^= 1
    (folder / "replay.bin").write_bytes(data)
    with pytest.raises(CheckpointError, match="corrupt"):
        run("steps=500")
    assert (folder / "metrics.csv").read_bytes() == before


# -- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["online.env=null"], r"'online.env' is missing; name a Gymnasium id"),
        (["online.env=Pendulum-v9"], r"online.env: "),
        (["online.envs=0"], r"online.envs must be at least 1"),
        (["online.envs=7"], r"steps.online \(450\) must be a multiple of online.envs \(7\)"),
        (["online.updates_per_step=0"], r"online.updates_per_step must be positive"),
        (["online.random=5"], r"unknown key 'online.random'.*random_steps"),
        (["online=null"], r"'data.train' is missing"),
        (["steps={offline: 5, online: 100}"], r"'data.train' is missing"),
        (["online.from_data=0.5"], r"'data.train' is missing"),
        (["steps={ofline: 5}"], r"unknown key 'steps.ofline'.*offline"),
        (["steps={offline: 5}"], r"steps.online is missing"),
        (["steps={online: many}"], r"steps.online must be a number of steps, not 'many'"),
        (["steps={online: 10}", "online=null"], r"steps.online needs an environment"),
        (["stack=2"], r"cannot be stacked; use stack: 1"),
        (["algorithm.normalize=true"], r"normalised by the statistics of data.train, and there is none"),
        (["algorithm.rewards.return_range=true"], r"return_range scales by the returns of data.train"),
        (["evaluation.env=InvertedPendulum-v5"], r"online.env and evaluation.env have unlike observations"),
        (["online.env=CartPole-v1"], r"actions must be continuous vectors"),
    ],
)
def test_bad_settings_are_named(run, tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        run(*settings)
    assert not (tmp_path / "runs").exists()


def test_spec_of_an_online_run_counts_gradient_steps(yaml):
    setup = prepare(config.load(yaml, ["online.updates_per_step=2"]), 0)
    assert setup.spec.steps == 2 * (450 - 30) and not setup.data
    with make_env(setup.env) as env:
        assert spec_of(env).obs_dim == setup.spec.obs_dim == 3


@pytest.mark.parametrize("example", ["online", "offline_to_online", "pex", "gild"])
def test_the_examples_run(tmp_path, example):
    file = Path(__file__).parents[3] / "examples" / f"{example}.yaml"
    both = example in ("offline_to_online", "pex")
    small = ["steps={offline: 10, online: 30}"] if both else ["steps=40"]
    small += ["data.train={recipe: pendulum/medium, size: 1000}"] if both else ["online.random_steps=10"]
    small += ["data.demo.size=300"] if example == "gild" else []
    experiment = config.load(file, [*small, "evaluation.every=10", "evaluation.episodes=1", "compile=off"])
    folder = offline.train(experiment, 0, tmp_path, Silent())
    result = json.loads((folder / "result.json").read_text())
    assert [e["step"] for e in result["evaluations"]] == [0, 10, 20, 30, 40]


@pytest.mark.parametrize("algorithm", ["td3", "ddpg", "sac"])
@pytest.mark.parametrize("objective", ["{name: fixed, degree: 0.5}", "{name: gorl, preset: quick, batch_size: 5}"])
def test_a_degree_of_nothing_is_refused_before_anything_is_written(run, tmp_path, algorithm, objective):
    data = "data.guide={recipe: pendulum/expert, size: 1000}"
    with pytest.raises(ConfigError, match=f"{algorithm} ties its policy to no data"):
        run(f"algorithm={{name: {algorithm}, hidden: [8]}}", f"objective={objective}", data)
    assert not list(tmp_path.glob("runs/*/0/checkpoint"))
