"""metarl beside Stable-Baselines3: same settings, live processes in turns, and a verdict that can fail."""

import json
import subprocess
import sys
import types

import gymnasium as gym
import numpy as np
import pytest
from omegaconf import OmegaConf

from benchmarks.online import __main__ as online
from benchmarks.online import rival_sb3, tables
from benchmarks.online.ours import Ours, described
from benchmarks.online.returns import collect, compare
from benchmarks.online.settings import COURSES, EPISODES, PAIRS, Course, settings
from benchmarks.online.turns import MODULES, OURS, SB3, Turns, in_turn, pair
from benchmarks.speed.client import Worker
from metarl.config import build
from metarl.errors import ConfigError, UserError
from metarl.training.evaluation import Evaluator
from metarl.training.offline import train
from metarl.training.progress import Silent

TINY = {"hidden": [8], "batch_size": 16, "random_steps": 20, "replay": 500}
FIXED = ("activation", "critics")  # of metarl's networks

# -- settings of both sides ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("env", "algorithm"), PAIRS)
def test_every_setting_reaches_both_sides(env, algorithm):
    told = settings(algorithm, env)
    ours, theirs = described(env, algorithm, told), rival_sb3.arguments(algorithm, told)
    for name, value in told.items():
        other = (64,) if name == "hidden" else "tanh" if name == "activation" else 2 * value + 1
        changed = {**told, name: other}
        if name in FIXED:
            with pytest.raises(ValueError, match=name):
                described(env, algorithm, changed)
        elif (algorithm, name) != ("ddpg", "policy_every"):  # which is 1 on both sides by what DDPG is
            assert described(env, algorithm, changed) != ours, name
        if name == "lr":
            learner = described(env, algorithm, changed)["algorithm"]
            assert [learner[key]["lr"] for key in ("actor_optimizer", "critic_optimizer")] == [other, other]
        if name not in ("activation", "policy_every"):
            assert rival_sb3.arguments(algorithm, changed) != theirs, name


@pytest.mark.parametrize(("env", "algorithm"), PAIRS)
def test_what_metarl_builds_is_what_stable_baselines3_is_given(env, algorithm):
    told = settings(algorithm, env)
    experiment, theirs = build(described(env, algorithm), "test"), rival_sb3.arguments(algorithm, told)
    resolved, learner = experiment.resolved["algorithm"], experiment.algorithm
    assert list(learner.hidden) == theirs["policy_kwargs"]["net_arch"] == [256, 256]
    assert learner.batch_size == theirs["batch_size"] == 256
    assert learner.discount == theirs["gamma"] == 0.99
    assert learner.tau == theirs["tau"] == 0.005
    assert not learner.normalize
    rates = [resolved[name]["lr"] for name in ("actor_optimizer", "critic_optimizer")]
    assert [*rates, theirs["learning_rate"]] == [3e-4] * 3
    assert [resolved[name]["name"] for name in ("actor_optimizer", "critic_optimizer")] == ["adam"] * 2
    assert experiment.online.replay == theirs["buffer_size"] == 1_000_000
    assert experiment.online.envs == theirs["train_freq"] == 1
    assert experiment.online.updates_per_step == theirs["gradient_steps"] == 1
    start = {experiment.online.random_steps, experiment.online.learn_from, theirs["learning_starts"]}
    assert start == {COURSES[env].random_steps}
    assert experiment.steps == COURSES[env].steps
    if algorithm == "sac":
        assert f"auto_{learner.temperature}" == theirs["ent_coef"]
        assert learner.auto_temperature and learner.target_entropy is None
        assert learner.policy_every == learner.target_every == theirs["target_update_interval"] == 1
    else:
        assert learner.exploration == theirs["action_noise"] == 0.1
    if algorithm == "td3":
        assert learner.policy_every == theirs["policy_delay"] == 2
        assert learner.policy_noise == theirs["target_policy_noise"] == 0.2
        assert learner.noise_clip == theirs["target_noise_clip"] == 0.5


def test_both_sides_meet_the_same_starts():
    evaluator = Evaluator(lambda: gym.make("Pendulum-v1"), 2, seed=3)
    ours = [evaluator._reset_seed(4000, episode) for episode in range(2)]
    assert ours == [rival_sb3.start(3, 4000, episode) for episode in range(2)]
    evaluator.close()


def test_the_rival_needs_no_metarl():
    forbidden = "import sys; sys.modules['metarl'] = sys.modules['algorithms'] = None"
    subprocess.run([sys.executable, "-c", f"{forbidden}; import benchmarks.online.rival_sb3"], check=True)


def test_the_experiments_are_those_that_are_compared(tmp_path):
    assert online.main(["--experiments", str(tmp_path)]) == 0
    for env, algorithm in PAIRS:
        written = OmegaConf.to_container(OmegaConf.load(tmp_path / f"{env}-{algorithm}.yaml"))
        assert written == described(env, algorithm)


# -- the rival's trainer ---------------------------------------------------------------------------------------


class FakeModel:
    """What the trainer uses of a model of Stable-Baselines3."""

    made = 0

    def __init__(self, policy, env, **kwargs):
        FakeModel.made += 1
        self.num_timesteps, self.size, self.kwargs = 0, env.action_space.shape, kwargs

    def learn(self, steps, reset_num_timesteps=True):
        self.num_timesteps = steps if reset_num_timesteps else self.num_timesteps + steps

    def predict(self, obs, deterministic):
        assert deterministic
        return np.zeros((len(obs), *self.size), np.float32), None


@pytest.fixture
def fake(monkeypatch):
    noise = types.SimpleNamespace(NormalActionNoise=lambda mean, sigma: ("normal", mean.tolist(), sigma.tolist()))
    names = {name: type(name, (FakeModel,), {}) for name in ("SAC", "TD3", "DDPG")}
    module = types.SimpleNamespace(__version__="0", common=types.SimpleNamespace(noise=noise), **names)
    for made in names.values():
        made.__init__ = _init_with_defaults
    monkeypatch.setitem(sys.modules, "stable_baselines3", module)
    FakeModel.made = 0
    return module


def _init_with_defaults(
    self,
    policy,
    env,
    learning_rate=1e-3,
    buffer_size=1_000_000,
    learning_starts=100,
    batch_size=256,
    tau=0.005,
    gamma=0.99,
    train_freq=1,
    gradient_steps=1,
    action_noise=None,
    ent_coef="auto",
    target_update_interval=1,
    policy_delay=2,
    target_policy_noise=0.2,
    target_noise_clip=0.5,
    policy_kwargs=None,
    **kwargs,
):
    FakeModel.__init__(self, policy, env, action_noise=action_noise, policy_kwargs=policy_kwargs, **kwargs)


def test_the_trainer_evaluates_in_between_and_leaves_a_finished_run_alone(fake, tmp_path, capsys):
    out = tmp_path / "runs" / "one.json"
    words = ["train", "--env", "Pendulum-v1", "--algorithm", "td3", "--seed", "2", "--out", str(out)]
    rival_sb3.main([*words, "--steps", "50", "--every", "20", "--episodes", "2"])
    found = json.loads(out.read_text())
    assert [each["step"] for each in found["evaluations"]] == [0, 20, 40, 50]
    assert found["steps"] == 50
    assert all(each["lengths"] == [200, 200] for each in found["evaluations"])
    expected = {
        "learning_rate": ["0.001", "0.0003"],
        "learning_starts": ["100", "1000"],
        "action_noise": ["None", "0.1"],
        "net_arch": ["[400, 300]", "[256, 256]"],
    }
    assert found["changed"] == expected
    rival_sb3.main([*words, "--steps", "50", "--every", "20", "--episodes", "2"])
    assert FakeModel.made == 1
    assert "already at step 50" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="other settings"):
        rival_sb3.main([*words, "--steps", "50", "--every", "10", "--episodes", "2"])
    out.write_text(json.dumps({**found, "steps": 40}))
    rival_sb3.main([*words, "--steps", "50", "--every", "20", "--episodes", "2"])
    assert FakeModel.made == 2
    assert json.loads(out.read_text())["steps"] == 50


def test_sac_has_the_defaults_of_its_networks(fake):
    assert rival_sb3.changed("sac", settings("sac", "Pendulum-v1")).keys() == {"learning_rate", "learning_starts"}


def test_exploration_is_in_units_of_the_bounds(fake):
    env = gym.make("Pendulum-v1")
    model = rival_sb3.build("ddpg", env, 0, settings("ddpg", "Pendulum-v1"))
    kind, mean, sigma = model.kwargs["action_noise"]
    assert (kind, mean) == ("normal", [0.0])
    assert sigma == pytest.approx([0.1])
    assert model.kwargs["policy_kwargs"]["n_critics"] == 1


# -- turns -----------------------------------------------------------------------------------------------------


def test_advancing_takes_steps_of_the_environment_and_as_many_updates(tmp_path):
    told = {**settings("td3", "Pendulum-v1"), **TINY}
    ours = Ours("Pendulum-v1", "td3", 0, tmp_path, told, "off")
    replay = ours._run.setup.online.replay
    assert (ours._loop.step, replay.added) == (20, 20)
    before = {name: value.clone() for name, value in ours._loop.stepping.state.tree["critic"].items()}
    assert ours.advance(30) == 30
    assert (ours._loop.step, replay.added) == (50, 50)
    assert ours.modes == ["eager"]
    after = ours._loop.stepping.state.tree["critic"]
    assert any(not np.array_equal(before[name], after[name]) for name in before)
    assert ours.experiment.gradient_steps_at(50) == 30
    ours.close()


@pytest.mark.parametrize("algorithm", ["sac", "ddpg"])
def test_our_worker_advances_on_command(algorithm):
    options = {"env": "Pendulum-v1", "algorithm": algorithm, "seed": 0, "mode": "off", "warm": 4, "core": None}
    told = {**settings(algorithm, "Pendulum-v1"), **TINY}
    with Worker(OURS, sys.executable, MODULES[OURS], {**options, "settings": told}) as worker:
        ready = worker.ready()
        assert ready["parts"] == ["step", "environment"]
        assert ready["facts"]["modes"] == ["eager"]
        assert ready["facts"]["threads"] == 1
        for part in ready["parts"]:
            took = worker.run(10, part)
            assert took["steps"] == 10
            assert took["wall_s"] > 0


def test_a_pair_is_timed_in_every_round():
    class Bar:
        def __getattr__(self, name):
            return lambda *words, **figures: None

    found = pair("Pendulum-v1", "ddpg", {OURS: sys.executable}, Turns(rounds=2, steps=4, warm=2, mode="off"), Bar())
    times = found[OURS]["times"]
    assert {part: [len(clock) for clock in clocks.values()] for part, clocks in times.items()} == {
        "step": [2, 2],
        "environment": [2, 2],
    }


def test_who_is_first_alternates():
    assert [in_turn([OURS, SB3], i) for i in range(3)] == [[OURS, SB3], [SB3, OURS], [OURS, SB3]]


# -- returns ---------------------------------------------------------------------------------------------------


def curves(means, seeds=3, spread=10.0, shift=0.0):
    """Runs around a course of means; every seed has a level of its own."""
    rng = np.random.default_rng(0)
    levels = spread * rng.standard_normal(seeds)
    return {
        str(seed): {str(step): mean + shift + level + spread / 5 * float(rng.standard_normal()) for step, mean in means}
        for seed, level in enumerate(levels)
    }


COURSE = [(step, -1200.0 + 0.05 * step) for step in range(0, 20_001, 1000)]


def made(ours, theirs, algorithm="sac", env="Pendulum-v1"):
    return {"env": env, "algorithm": algorithm, "sides": {OURS: {"runs": ours}, SB3: {"runs": theirs}}}


def test_alike_curves_overlap():
    found = compare(made(curves(COURSE), curves(COURSE, shift=1.0)))
    assert found.overlap
    assert [moment.step for moment in found.counting] == [step for step, _ in COURSE if step > 1000]
    assert tables.verdict(found) == "overlap"


def test_one_evaluation_apart_ends_the_overlap():
    theirs = curves(COURSE)
    for run in theirs.values():
        run["15000"] -= 500.0
    found = compare(made(curves(COURSE), theirs))
    assert not found.overlap
    assert found.apart == [15_000]
    assert "apart at 15,000" in tables.verdict(found)


def test_intervals_that_meet_do_not_hide_what_the_test_finds():
    """Seeds that differ among themselves by far more than the sides do, always in the same direction."""
    theirs = curves(COURSE, spread=100.0)
    ours = {seed: {step: value + 30.0 for step, value in run.items()} for seed, run in theirs.items()}
    for seed in ours:
        ours[seed] = {step: value + 0.01 * int(seed) for step, value in ours[seed].items()}
    found = compare(made(ours, theirs))
    assert found.apart == []
    assert not found.overlap
    assert found.gap.value == pytest.approx(30.01)
    assert "differs" in tables.verdict(found)


def test_a_difference_at_one_evaluation_is_found_by_the_test():
    """There the gap is the same for all seeds but for hundredths; elsewhere it is as much above zero as below."""
    theirs = curves(COURSE, spread=100.0)
    ours = json.loads(json.dumps(theirs))
    for seed, gap in (("0", -20.0), ("1", 0.0), ("2", 20.0)):
        ours[seed] = {step: value + gap for step, value in ours[seed].items()}
        ours[seed]["9000"] = theirs[seed]["9000"] + 30.0 + gap / 2000
    found = compare(made(ours, theirs))
    assert found.apart == []
    assert found.area.p > 0.5
    assert tables.verdict(found) == "differs at 9,000"
    assert not found.overlap


def test_a_difference_of_the_whole_course_is_found():
    """It swings by seed and evaluation, so that none shows it, and nearly cancels in a seed's mean."""
    theirs = curves(COURSE, spread=100.0)
    ours = {
        seed: {step: value + 30.0 + 60.0 * (-1) ** (int(step) // 1000 + int(seed)) for step, value in run.items()}
        for seed, run in theirs.items()
    }
    found = compare(made(ours, theirs))
    assert not any(moment.differs or not moment.overlap for moment in found.counting)
    assert not found.overlap
    assert tables.verdict(found) == "the whole course differs"


def test_what_comes_before_the_first_update_does_not_count():
    theirs = curves(COURSE)
    for run in theirs.values():
        run["0"] -= 5000.0
        run["1000"] -= 5000.0
    found = compare(made(curves(COURSE, shift=1.0), theirs))
    assert not found.moments[0].overlap
    assert found.overlap


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        (curves(COURSE, seeds=1), curves(COURSE), "fewer than two seeds"),
        (curves(COURSE), curves(COURSE[:2]), "share no evaluation after step 1,000"),
    ],
)
def test_too_little_to_compare_is_said(ours, theirs, message):
    with pytest.raises(ConfigError, match=message):
        compare(made(ours, theirs))


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Two real seeds of a short course, and files of the other side."""
    monkeypatch.setitem(COURSES, "Pendulum-v1", Course(60, 20, 30))
    experiment = build({**described("Pendulum-v1", "ddpg"), "compile": "off"}, "test")
    for seed in (0, 1):
        train(experiment, seed, tmp_path / "ours", Silent())
        runs = {"returns": [-1000.0 - seed] * EPISODES, "lengths": [200] * EPISODES}
        plan = {"every": 30, "episodes": EPISODES, "seed": seed, "steps": 60, "changed": {}, "versions": {"torch": "0"}}
        told = {"settings": settings("ddpg", "Pendulum-v1")}
        evaluations = [{"step": step, **runs} for step in (0, 30, 60)]
        _write(tmp_path / "theirs" / f"Pendulum-v1-ddpg-{seed}.json", {**plan, **told, "evaluations": evaluations})
    return tmp_path


def _write(path, value):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))


def test_runs_of_both_sides_are_read(trained):
    found = collect(trained / "ours", trained / "theirs")
    (only,) = found["pairs"]
    ours = only["sides"][OURS]["runs"]
    assert {seed: [*run] for seed, run in ours.items()} == {"0": ["0", "30", "60"], "1": ["0", "30", "60"]}
    assert all(-2000 < value < 0 for run in ours.values() for value in run.values())
    assert only["sides"][SB3]["runs"]["1"]["60"] == -1001.0
    assert [moment.step for moment in compare(only).counting] == [30, 60]


def test_an_unfinished_run_of_the_other_side_is_left_out(trained):
    path = trained / "theirs" / "Pendulum-v1-ddpg-1.json"
    _write(path, {**json.loads(path.read_text()), "steps": 30})
    (only,) = collect(trained / "ours", trained / "theirs")["pairs"]
    assert [*only["sides"][SB3]["runs"]] == ["0"]


def test_runs_of_other_settings_are_refused(trained):
    path = trained / "theirs" / "Pendulum-v1-ddpg-0.json"
    before = path.read_text()
    value = json.loads(before)
    value["settings"]["lr"] = 1e-3
    _write(path, value)
    with pytest.raises(UserError, match=r"Pendulum-v1-ddpg-0\.json: its settings"):
        collect(trained / "ours", trained / "theirs")
    path.write_text(before)
    (config,) = trained.glob("ours/*/0/config.yaml")
    config.write_text(config.read_text().replace("discount: 0.99", "discount: 0.9"))
    with pytest.raises(UserError, match=r"algorithm\.discount is not the comparison's"):
        collect(trained / "ours", trained / "theirs")


def test_no_runs_are_an_error(tmp_path):
    with pytest.raises(UserError, match="no pair of finished runs"):
        collect(tmp_path, tmp_path)


# -- the page --------------------------------------------------------------------------------------------------


def timed(ratio=0.5):
    """Times of one pair whose ratio is given, round by round."""
    theirs = {"cpu_ms": [8.0, 9.0, 10.0], "wall_ms": [8.0, 9.0, 10.0]}
    step = {"cpu_ms": [ratio * ms for ms in theirs["cpu_ms"]], "wall_ms": [ratio * ms for ms in theirs["wall_ms"]]}
    bare = {"cpu_ms": [0.02] * 3, "wall_ms": [0.02] * 3}
    facts = {"versions": {"stable_baselines3": "2.9.2", "torch": "2.0", "gymnasium": "1.4"}, "changed": {"tau": "12"}}
    sides = {
        OURS: {"times": {"step": step, "environment": bare}, "facts": {"modes": ["recorded"]}},
        SB3: {"times": {"step": theirs}, "facts": facts},
    }
    return {
        "environment": {"python": "3.11", "torch": "2.0", "gymnasium": "1.4", "machine": "a machine"},
        "load_average": {"before": 0.1, "after": 0.2},
        "turns": {"rounds": 3, "steps": 2000, "warm": 500, "mode": "auto"},
        "pairs": [{"env": "HalfCheetah-v5", "algorithm": "sac", "sides": sides}],
    }


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results"
    _write(folder / "times.json", timed(0.6))
    pairs = [made(curves(COURSE), curves(COURSE, shift=1.0)), made(curves(COURSE), curves(COURSE, shift=900.0), "td3")]
    for each in pairs:
        each["sides"][SB3]["changed"] = {"learning_rate": ["0.001", "0.0003"]}
    _write(folder / "returns.json", {"pairs": pairs})
    return folder


def test_the_page_shows_what_was_recorded(results, tmp_path):
    assert online.main(["--render", "--results", str(results), "--docs", str(tmp_path / "docs")]) == 0
    text = (tmp_path / "docs" / "online.md").read_text()
    rows = {line.split(" | ")[0].strip("| "): line for line in text.splitlines() if line.startswith("|")}
    assert "| 5.40 (4.80 to 6.00) | 9.00 (8.00 to 10.00) | 0.60 (0.60 to 0.60) |" in rows["SAC, HalfCheetah-v5"]
    assert "| at most 0.7 | 0.020 | recorded |" in rows["SAC, HalfCheetah-v5"]
    assert rows["SAC, Pendulum-v1"].endswith("| overlap |")
    assert "19 of 19" in rows["SAC, Pendulum-v1"]
    assert "0 of 19" in rows["TD3, Pendulum-v1"]
    assert "| apart at 2,000, 3,000, 4,000 and 16 more |" in rows["TD3, Pendulum-v1"]
    assert "- TD3, Pendulum-v1: `learning_rate` 0.0003 (default 0.001)." in text
    assert (tmp_path / "docs" / "online.png").stat().st_size > 10_000


@pytest.mark.parametrize(("share", "words"), [(0.45, "at most 0.5"), (0.65, "at most 0.7"), (0.75, "no")])
def test_the_target_can_be_missed(share, words):
    (row,) = tables.times(timed(share)).rows
    assert row[5] == words


@pytest.mark.parametrize("name", ["times.json", "returns.json"])
def test_either_half_makes_a_page(results, tmp_path, name):
    (results / name).unlink()
    online.render(results, tmp_path)
    text = (tmp_path / "online.md").read_text()
    assert ("## Time per environment step" in text) == (name == "returns.json")
    assert ("## Return at equal steps" in text) == (name == "times.json")
    assert (tmp_path / "online.png").is_file()


def test_the_page_in_docs_is_what_the_results_say(tmp_path):
    online.render(online.RESULTS, tmp_path)
    assert (tmp_path / "online.md").read_text() == (online.DOCS / "online.md").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to do"),
        (["--runs", "here"], "belong together"),
        (["--sb3-python", "/nowhere/python", "--only", "Pendulum-v1-sac"], "cannot be started"),
    ],
)
def test_mistakes_are_told(words, message, capsys):
    assert online.main(words) == 2
    assert message in capsys.readouterr().err
