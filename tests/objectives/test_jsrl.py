"""JSRL against a textbook: who acts when, how h falls, what learns, and real runs that are killed on the way."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Normal

from algorithms.awac import AWAC
from algorithms.bc import BC
from algorithms.ddpg import DDPG
from algorithms.iql import IQL
from algorithms.none import Nothing
from algorithms.td3_bc import TD3BC
from metarl import adam, config
from metarl.data.recipes import make_dataset
from metarl.data.transitions import Layout
from metarl.errors import ConfigError
from metarl.training import checkpoints, offline
from metarl.training.offline import load_policy
from metarl.training.progress import Silent
from objectives.jsrl import JSRL

HIGH = torch.tensor([1.0, 0.5], dtype=torch.float64)
OFFLINE = 3  # gradient steps on data
LIMIT = 20


class Net(nn.Module):
    """torch's Linear and ReLU, started from a group of the learner."""

    def __init__(self, params, prefix=""):
        super().__init__()
        self.prefix, self.layers = prefix, nn.ModuleList()
        for i in range(sum(k.startswith(f"{prefix}layers.") for k in params) // 2):
            weight, bias = (params[f"{prefix}layers.{i}.{k}"] for k in ("weight", "bias"))
            layer = nn.Linear(*weight.shape, dtype=torch.float64)
            layer.weight.data.copy_(weight.T)
            layer.bias.data.copy_(bias)
            self.layers.append(layer)

    def forward(self, *x):
        x = torch.cat(x, 1)
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        return self.layers[-1](x)

    def group(self):
        named = [(f"{self.prefix}layers.{i}", layer) for i, layer in enumerate(self.layers)]
        return {f"{k}.weight": v.weight.T for k, v in named} | {f"{k}.bias": v.bias for k, v in named}


class Gaussian(nn.Module):
    """tanh on the mean, one logarithmic deviation for all states; actions in units of their bounds."""

    def __init__(self, params, bounds=(-5.0, 2.0)):
        super().__init__()
        self.net, self.bounds = Net(params, "net."), bounds
        self.log_std = nn.Parameter(params["log_std"].clone())

    def forward(self, obs):
        return Normal(torch.tanh(self.net(obs)), self.log_std.clamp(*self.bounds).exp())

    def group(self):
        return self.net.group() | {"log_std": self.log_std}


class Textbook:
    """One step online: IQL's V, its Q by the new V, Q', then the fresh policy by the new V and Q'."""

    def __init__(self, tree, beta=10.0, lr=3e-4, bounds=(-5.0, 2.0), expectile=0.7, gamma=0.99, tau=0.005):
        self.v, self.pi = Net(tree["value"]), Gaussian(tree["policy_1"], bounds)
        self.q, self.slow = ([Net(tree[g], p) for p in ("q1.", "q2.")] for g in ("critic", "critic_target"))
        self.beta, self.expectile, self.gamma, self.tau = beta, expectile, gamma, tau
        critic = [p for q in self.q for p in q.parameters()]
        pairs = {"value": self.v.parameters(), "critic": critic, "policy_1": self.pi.parameters()}
        self.optimizers = {k: torch.optim.Adam(p, lr if k == "policy_1" else 3e-4) for k, p in pairs.items()}

    def move(self, name, loss):
        self.optimizers[name].zero_grad()
        loss.backward()
        self.optimizers[name].step()

    def advantage(self, batch):
        return (torch.min(*(q(batch["obs"], batch["action"]) for q in self.slow)) - self.v(batch["obs"])).squeeze(1)

    def train(self, batch):
        u = self.advantage(batch)
        self.move("value", ((self.expectile - (u < 0).double()).abs() * u**2).mean())
        with torch.no_grad():
            y = batch["reward"] + self.gamma * (1 - batch["terminated"]) * self.v(batch["next_obs"]).squeeze(1)
        self.move("critic", sum(((q(batch["obs"], batch["action"]).squeeze(1) - y) ** 2).mean() for q in self.q))
        with torch.no_grad():
            for q, slow in zip(self.q, self.slow, strict=True):
                for p, target in zip(q.parameters(), slow.parameters(), strict=True):
                    target.mul_(1 - self.tau).add_(p, alpha=self.tau)
            self.weight = torch.exp(self.beta * self.advantage(batch)).clamp(max=100)
        loss = -(self.weight * self.pi(batch["obs"]).log_prob(batch["action"] / HIGH).sum(1)).mean()
        self.move("policy_1", loss)
        return loss.detach()

    def tree(self):
        twins = {name: one.group() | two.group() for name, (one, two) in self._twins().items()}
        return {"value": self.v.group(), "policy_1": self.pi.group()} | twins

    def _twins(self):
        return {"critic": self.q, "critic_target": self.slow}


@pytest.fixture
def build(spec):
    """`build(**settings)`: a ready learner on IQL; `run` changes what it is told of the run."""

    def learner(base=None, run=None, **settings):
        told = replace(spec, **{"steps": 100, "offline": OFFLINE, "time_limit": LIMIT, **(run or {})})
        generator = torch.Generator().manual_seed(0)
        made = (base or IQL(hidden=(16, 16), batch_size=32)).build(told, generator)
        return JSRL(**{"hidden": (16, 16), **settings}).attach(made, told, generator).ready()

    return learner


@pytest.fixture
def switched(draw):
    """`switched(learner)`: a state after the offline phase, its fresh policy with unlike deviations."""

    def state(learner, online=0):
        state = learner.init(torch.float64)
        if "policy_1" in state.tree:
            fresh = state.tree["policy_1"]
            moved = torch.linspace(-0.7, -0.2, len(fresh["log_std"]), dtype=torch.float64)
            state = state.with_params("policy_1", {**fresh, "log_std": moved})
        for step in range(1, OFFLINE + online + 1):
            state, _ = learner.step(state, draw(learner, step), learner.due(step))
        return state

    return state


# -- what learns ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "book"),
    [
        ({}, {}),
        ({"schedule": "random"}, {}),
        ({"beta": 1.0}, {"beta": 1.0}),
        ({"log_std": (-0.5, 2.0)}, {"bounds": (-0.5, 2.0)}),
        ({"policy_optimizer": adam(1e-2)}, {"lr": 1e-2}),
    ],
    ids=lambda value: ",".join(value),
)
def test_updates_online_equal_the_textbook(build, draw, apart, switched, settings, book):
    learner = build(**settings)
    state = switched(learner)
    start = state.tree
    theirs = Textbook(start, **book)
    for name in ("value", "critic"):  # as after the same steps on data
        moments = {"exp_avg": state.opt[name].mu, "exp_avg_sq": state.opt[name].nu}
        load(theirs, name, moments)
    clipped = 0
    for step in range(OFFLINE + 1, OFFLINE + 9):
        batches = draw(learner, step)
        state, metrics = learner.step(state, batches, learner.due(step))
        loss = theirs.train(batches["train"])
        assert abs(metrics["policy_1/loss"] - loss) < 1e-10 * abs(loss)
        assert abs(metrics["policy_1/weight"] - theirs.weight.mean()) < 1e-10 * theirs.weight.mean()
        assert apart({k: state.tree[k] for k in theirs.tree()}, theirs.tree()) < 1e-10
        clipped += (theirs.weight == 100).sum()
    assert "actor/loss" not in metrics and (clipped > 5 or "beta" in settings)
    assert all(torch.equal(state.tree["actor"][k], p) for k, p in start["actor"].items())
    assert all(not torch.equal(state.tree["policy_1"][k], p) for k, p in start["policy_1"].items() if k != "log_std")


def load(book, name, moments):
    """Adam's moments of a group, under the textbook's tensors."""
    modules = {"value": [book.v], "critic": book.q}[name]
    for net in modules:
        for i, layer in enumerate(net.layers):
            for kind in ("weight", "bias"):
                found = {k: m[f"{net.prefix}layers.{i}.{kind}"] for k, m in moments.items()}
                found = {k: (m.T if kind == "weight" else m).clone() for k, m in found.items()}
                p = getattr(layer, kind)
                book.optimizers[name].state[p] = {"step": torch.tensor(float(OFFLINE)), **found}


@pytest.mark.parametrize("schedule", ["curriculum", "random"])
def test_on_data_it_is_the_algorithm_bitwise_and_nothing_else_moves(build, draw, spec, schedule):
    learner = build(schedule=schedule)
    run = replace(spec, steps=100, offline=OFFLINE, time_limit=LIMIT)
    plain = IQL(hidden=(16, 16), batch_size=32).build(run, torch.Generator().manual_seed(0)).ready()
    state, alone = learner.init(torch.float64), plain.init(torch.float64)
    start = state.tree
    for step in range(1, OFFLINE + 1):
        assert learner.due(step) == plain.due(step)
        state, _ = learner.step(state, draw(learner, step), learner.due(step))
        alone, _ = plain.step(alone, draw(plain, step), plain.due(step))
    for name, group in alone.tree.items():
        assert all(torch.equal(state.tree[name][k], p) for k, p in group.items())
    for name in set(state.tree) - set(alone.tree):
        assert all(torch.equal(state.tree[name][k], p) for k, p in start[name].items())
    assert set(state.tree) - set(alone.tree) == {"policy_1", "jump_start"}
    # Online, the frozen policy and its optimiser stay; of the bookkeeping one number changes, once.
    frozen = state
    for step in range(OFFLINE + 1, OFFLINE + 4):
        state, _ = learner.step(state, draw(learner, step), learner.due(step))
    assert all(torch.equal(state.tree["actor"][k], p) for k, p in frozen.tree["actor"].items())
    assert state.opt["actor"].inner.count == frozen.opt["actor"].inner.count == OFFLINE
    moved = {k for k, v in state.tree["jump_start"].items() if not torch.equal(v, frozen.tree["jump_start"][k])}
    assert moved == {"met"}


def test_no_offline_phase_asks_for_a_trained_policy(build):
    learner = build(run={"offline": 0})
    assert learner.given == {"actor"} and "actor" not in learner.updates and learner.due(1) >= {"policy_1"}


# -- who acts ------------------------------------------------------------------------------------------------


def lived(learner, tree, steps, noise, n=4):
    """Actions [T, N, A], whether the offline policy would have taken them, whether the fresh one, what was told."""
    generator = torch.Generator().manual_seed(5)
    guide, fresh = Gaussian(tree["actor"]), Gaussian(tree["policy_1"])
    carry, rows = None, []
    for _ in range(steps):
        obs = torch.randn(n, 3, generator=generator, dtype=torch.float64)
        drawn = torch.randn(n, 3, generator=generator, dtype=torch.float64) if noise else None
        told = learner.told(tree, obs, carry, drawn) if noise else None
        with torch.no_grad():
            action, carry = learner.act(tree, obs, carry, drawn, not noise)
            pi = fresh(obs)
            sample = pi.mean + (pi.stddev * drawn[:, :2] if noise else 0)
        by_guide, by_fresh = guide(obs).mean.detach() * HIGH, sample.clamp(-1, 1) * HIGH
        rows.append((near(action, by_guide), near(action, by_fresh), told))
    return rows


def near(a, b):
    return ((a - b).abs() < 1e-12).all(1)


@pytest.mark.parametrize("noise", [True, False])
@pytest.mark.parametrize("h", [0, 1, 7, 20])
def test_the_offline_policy_takes_the_first_h_steps_and_the_fresh_one_the_rest(build, switched, noise, h):
    """Counted anew in every episode, evaluations included."""
    learner = build()
    tree = switched(learner, online=1).tree
    tree = {**tree, "jump_start": {**tree["jump_start"], "horizon": torch.tensor(float(h), dtype=torch.float64)}}
    for _ in range(2):
        for t, (guide, fresh, told) in enumerate(lived(learner, tree, 25, noise)):
            assert guide.all() if t < h else fresh.all()
            assert not (guide & fresh).any()
            if noise:
                assert set(told) == {"guided", "horizon"}
                assert (told["guided"] == float(t < h)).all() and (told["horizon"] == h).all()


def test_h_of_a_running_episode_is_the_one_that_it_began_with(build, switched):
    learner = build()
    tree = switched(learner, online=1).tree
    obs, noise = torch.zeros(1, 3, dtype=torch.float64), torch.zeros(1, 3, dtype=torch.float64)
    _, carry = learner.act(tree, obs, None, noise, False)
    tree = {**tree, "jump_start": {**tree["jump_start"], "horizon": torch.zeros((), dtype=torch.float64)}}
    assert learner.told(tree, obs, carry, noise) == {"guided": torch.ones(1), "horizon": torch.tensor([20.0])}
    assert learner.told(tree, obs, None, noise) == {"guided": torch.zeros(1), "horizon": torch.zeros(1)}


@pytest.mark.parametrize("schedule", ["curriculum", "random"])
def test_a_deterministic_action_ignores_noise(build, switched, schedule):
    learner = build(schedule=schedule)
    tree = switched(learner, online=1).tree
    tree = {**tree, "jump_start": {**tree["jump_start"], "horizon": torch.zeros((), dtype=torch.float64)}}
    obs, noise = torch.zeros(2, 3, dtype=torch.float64), torch.ones(2, 3, dtype=torch.float64)
    with_noise, without = (learner.act(tree, obs, None, given, True) for given in (noise, None))
    assert torch.equal(with_noise[0], without[0]) and torch.equal(with_noise[1], without[1])


@pytest.mark.parametrize("schedule", ["curriculum", "random"])
@pytest.mark.parametrize("horizon", [2, None])
def test_evaluated_on_data_is_the_offline_policy_alone(build, switched, schedule, horizon):
    """Whatever h: on data the fresh policy has learned nothing."""
    learner = build(schedule=schedule, horizon=horizon)
    assert all(guide.all() for guide, _, _ in lived(learner, switched(learner).tree, 25, False))


def test_evaluated_online_are_the_two_together_or_at_random_h_the_fresh_one(build, switched):
    learner = build(horizon=5)
    rows = lived(learner, switched(learner, online=1).tree, 8, False)
    assert [bool(guide.all()) for guide, _, _ in rows] == [True] * 5 + [False] * 3
    learner = build(schedule="random")
    assert all(fresh.all() for _, fresh, _ in lived(learner, switched(learner, online=1).tree, 8, False))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("online", [0, 1])
def test_random_h_is_uniform_over_the_stages(build, switched, dtype, online):
    """Also before the first gradient step online, where the loop begins to act."""
    learner = build(schedule="random", stages=4)
    state, n = switched(learner, online), 50_000
    tree = {group: {k: v.to(dtype) for k, v in values.items()} for group, values in state.tree.items()}
    noise = torch.randn(n, 3, generator=torch.Generator().manual_seed(1), dtype=dtype)
    obs = torch.zeros(n, 3, dtype=dtype)
    h = learner.told(tree, obs, None, noise)["horizon"]
    levels, counts = h.unique(return_counts=True)
    assert levels.tolist() == [0, 5, 10, 15, 20]
    assert ((counts - n / 5) ** 2 / (n / 5)).sum() < 18.5  # the 0.999 quantile of chi-square with 4 degrees
    assert abs(torch.corrcoef(torch.stack((h, noise[:, 0])))[0, 1]) < 0.02
    # The episode keeps it, whatever is drawn later.
    action, carry = learner.act(tree, obs, None, noise, False)
    with torch.no_grad():
        guide = Gaussian({k: v.double() for k, v in tree["actor"].items()})(obs[:1].double()).mean * HIGH
    assert torch.equal((action.double() - guide).abs().amax(1) < 1e-6, h > 0)
    assert torch.equal(carry, torch.stack((torch.ones_like(h), h), 1))
    assert torch.equal(learner.act(tree, obs, carry, -noise, False)[1], torch.stack((2 * torch.ones_like(h), h), 1))


def test_extreme_draws_stay_within_the_stages(build, switched):
    learner = build(schedule="random", stages=3)
    tree = {g: {k: v.float() for k, v in values.items()} for g, values in switched(learner).tree.items()}
    noise = torch.tensor([[0.0, 0.0, -9.0], [0.0, 0.0, 9.0]])
    assert learner.told(tree, torch.zeros(2, 3), None, noise)["horizon"].tolist() == [0, 20]


# -- how h falls ---------------------------------------------------------------------------------------------

CURRICULA = {
    # window 2, tolerance 1/4: the first window falls; 6 is 8 - 8/4; a failed window slides, a passed one is emptied.
    "positive": (
        [8, 8, 4, 8, 4, 6, 5.5, 7, 20, 20, 16, 16, 14, 15],
        [20, 15, 15, 10, 10, 10, 10, 5, 5, 0, 0, 0, 0, 0],
    ),
    # -10 is -8 - 8/4.
    "negative": ([-8, -8, -12, -8, -12, -10, -8.5, -10, -10, -1, -1], [20, 15, 15, 10, 10, 10, 5, 5, 0, 0, 0]),
    # Best stays the best: had it become 6, 4.5 would do.
    "best": ([8, 8, 6, 6, 5, 5, 5, 7], [20, 15, 15, 10, 10, 10, 10, 5]),
    # A better mean raises the bar.
    "bar": ([8, 8, 16, 16, 11, 11, 12, 12], [20, 15, 15, 10, 10, 10, 10, 5]),
    "across zero": ([-1, -1, 4, 4, 2, 2, 3, 3], [20, 15, 15, 10, 10, 10, 10, 5]),
    "zero": ([0, 0, -0.1, 0, 0, 0], [20, 15, 15, 15, 10, 10]),
}


def followed(learner, tree, returns):
    """h after every episode."""
    found = []
    for value in returns:
        changed = learner.after_episode(tree, {"return": value, "length": 20.0})
        assert set(changed) == {"jump_start"} and set(changed["jump_start"]) == set(tree["jump_start"])
        tree = {**tree, **changed}
        found.append(tree["jump_start"]["horizon"].item())
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CURRICULA)
def test_h_falls_exactly_when_it_should(build, case, dtype):
    learner = build(window=2, tolerance=0.25, stages=4)
    returns, horizons = CURRICULA[case]
    assert followed(learner, learner.init(dtype).tree, returns) == horizons


@pytest.mark.parametrize("window", [1, 3])
def test_nothing_is_judged_before_a_window_is_full(build, window):
    learner = build(window=window, stages=5, tolerance=0.0)
    expected = [max(0, 20 - 4 * (i // window)) for i in range(1, 20)]
    assert followed(learner, learner.init().tree, range(19)) == expected


def test_no_tolerance_wants_no_less(build):
    learner = build(window=1, stages=4, tolerance=0.0)
    assert followed(learner, learner.init().tree, [-3, -3.001, -3, -2, -3]) == [15, 15, 10, 5, 5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("horizon", "stages"), [(1000, 3), (1000, 7), (200, 30), (999, 11), (1, 1), (7, 10)])
def test_h_ends_at_nothing_after_its_stages(build, horizon, stages, dtype):
    """Rounding leaves no guided step over."""
    learner = build(horizon=horizon, stages=stages, window=1)
    found = followed(learner, learner.init(dtype).tree, [1.0] * (stages + 2))
    exact = [float(Fraction(horizon * max(0, stages - i), stages)) for i in range(1, stages + 3)]
    assert found == pytest.approx(exact, rel=1e-6) and found[-3:] == [0.0] * 3


def test_at_random_h_nothing_follows_an_episode(build):
    assert build(schedule="random").after_episode is None


# -- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "run", "message"),
    [
        (None, {"offline": None}, r"objective jsrl: it is about an environment met after the data; add online"),
        (None, {"time_limit": None}, r"objective jsrl: this environment has no time limit to begin with; set horizon"),
        (TD3BC(hidden=(8,)), {}, r"td3_bc learns no state-value function.*such as iql"),
        (AWAC(hidden=(8,)), {}, r"awac learns no state-value function.*such as iql"),
        (DDPG(hidden=(8,)), {}, r"objective jsrl: .*no twin critic; choose one that does, such as iql"),
        (BC(hidden=(8,)), {}, r"objective jsrl: this algorithm exposes no policy"),
        (Nothing(), {}, r"objective jsrl: this algorithm exposes no policy"),
    ],
    ids=["no environment", "no time limit", "td3_bc", "awac", "ddpg", "bc", "none"],
)
def test_what_it_cannot_do_is_refused(build, base, run, message):
    with pytest.raises(ConfigError, match=message):
        build(base, run)


def test_a_given_horizon_needs_no_time_limit(build):
    learner = build(run={"time_limit": None}, horizon=12)
    assert learner.init().tree["jump_start"]["horizon"] == 12
    assert build(horizon=12).init().tree["jump_start"]["horizon"] == 12
    assert build().init().tree["jump_start"]["horizon"] == LIMIT


def test_bounds_in_the_wrong_order_are_refused():
    with pytest.raises(ValueError, match=r"log_std must be a lower and a higher bound, not \[2.0, -5.0\]"):
        JSRL(log_std=(2.0, -5.0))


# -- real runs -----------------------------------------------------------------------------------------------

EXPERIMENT = """
name: jump
algorithm: {name: iql, hidden: [8, 8], batch_size: 16}
objective: {name: "objectives.jsrl:JSRL", hidden: [8, 8], stages: 4, window: 2}
data:
  train: {recipe: pendulum/medium, size: 600}
online: {env: MetarlJumpPendulum-v0, from_data: 0.5}
steps: {offline: 60, online: 300}
seeds: [0]
device: cpu
compile: "off"
log_every: 20
evaluation: {every: 60, episodes: 2}
checkpoint: {every: 40}
"""
RANDOM, FALLING = ("objective.schedule=random",), ("objective.tolerance=0.8",)


@pytest.fixture(autouse=True, scope="module")
def pendulum(tmp_path_factory):
    """Pendulum cut after 20 steps, and data of the long one."""
    gym.register("MetarlJumpPendulum-v0", "gymnasium.envs.classic_control:PendulumEnv", max_episode_steps=LIMIT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path_factory.mktemp("data")))
        make_dataset("pendulum/medium", 600)
        yield
    del gym.registry["MetarlJumpPendulum-v0"]


@pytest.fixture
def train(tmp_path):
    """`train(*overrides, root="runs", at=())`: stopped at these steps, then to its end; the run's folder."""
    file = tmp_path / "jump.yaml"
    file.write_text(EXPERIMENT)

    def run(*overrides, root="runs", at=()):
        for step in at:
            with pytest.raises(KeyboardInterrupt):
                offline.train(config.load(file, overrides), 0, tmp_path / root, Stop(step))
        return offline.train(config.load(file, overrides), 0, tmp_path / root, Silent())

    return run


class Stop(Silent):
    """Ends a run from outside once it has come so far."""

    def __init__(self, at):
        self.at = at

    def update(self, done, **figures):
        if done >= self.at:
            raise KeyboardInterrupt


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


def episodes(folder):
    """The replay's columns, [episodes, 20, ...]."""
    layout = Layout(3, 1)
    rows = torch.from_numpy(np.fromfile(folder / "replay.bin", np.float32).reshape(-1, LIMIT, layout.width))
    return layout.split(rows)


def metrics(folder):
    """Values by step and name."""
    rows = [line.split(",") for line in (folder / "metrics.csv").read_text().splitlines()[1:]]
    return {(int(step), name): float(value) for step, name, value in rows}


def by_hand(returns, horizon=20.0, stages=4, window=2, tolerance=0.05):
    """h in every episode by the rule of the curriculum, in plain Python."""
    best, kept, level, found = None, [], stages, []
    for value in returns:
        found.append(horizon * level / stages)
        kept.append(value)
        if len(kept) >= window:
            mean = sum(kept[-window:]) / window
            if best is None or mean >= best - tolerance * abs(best):
                best, kept, level = mean if best is None else max(best, mean), [], max(0, level - 1)
    return found


def test_a_run_acts_learns_and_tells_as_it_should(train):
    """Who acted, from the replay and the trained policies; h, from the returns; both, as they were logged."""
    folder = train(*FALLING)
    rows, found = episodes(folder), metrics(folder)
    expected = by_hand(rows["reward"].double().sum(1).tolist(), tolerance=0.8)
    assert len(expected) == 15 and expected[0] == 20 and len(set(expected)) >= 3  # it falls, and is held up
    assert expected != [max(0, 20 - 5 * (i // 2)) for i in range(15)]
    assert [found[60 + 20 * (i + 1), "online/horizon"] for i in range(15)] == expected
    assert [found[60 + 20 * (i + 1), "online/guided"] for i in range(15)] == [h / 20 for h in expected]
    saved = checkpoints.load_newest(folder / "checkpoint", pytest.fail)
    params = {k.removeprefix("tree/actor/"): v.double() for k, v in saved.tensors.items() if k.startswith("tree/actor")}
    with torch.no_grad():
        calm = Gaussian(params)(rows["obs"].double().flatten(0, 1)).mean.view(15, 20) * 2
    guided = (calm - rows["action"][..., 0]).abs() < 1e-5
    assert torch.equal(guided, torch.arange(20) < torch.tensor(expected)[:, None])
    assert saved.tensors["opt/actor/inner/count"] == 60 and saved.tensors["opt/policy_1/count"] == 300
    assert {(step, k) for step, k in found if k.startswith("policy_1/")} == {
        (step, f"policy_1/{k}") for step in range(80, 361, 20) for k in ("loss", "log_prob", "weight", "advantage")
    }
    assert not [step for step, k in found if k in ("online/guided", "online/horizon") and step <= 60]


def test_the_offline_phase_is_that_of_the_algorithm_alone(train):
    """Evaluations too, that at the switch included."""
    keep = "checkpoint={every: 20, keep: 99}"
    both, alone = train(keep, root="both"), train(keep, "objective=[]", root="alone")
    first, second = (checkpoints.load(folder / "checkpoint", 60) for folder in (both, alone))
    shared = [k for k in second.tensors if k.startswith(("tree", "opt"))]
    assert shared and all(torch.equal(first.tensors[k], second.tensors[k]) for k in shared)
    told = [json.loads((folder / "result.json").read_text())["evaluations"][:2] for folder in (both, alone)]
    assert told[0] == told[1] and [e["step"] for e in told[0]] == [0, 60]


KILLS = {
    "about the switch": (FALLING, (30, 60, 61)),
    "in the first episode": (FALLING, (75,)),
    "in mid-curriculum": (FALLING, (130, 215, 307)),
    "at random h": (RANDOM, (60, 75, 215)),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The runs that were never stopped, by their overrides."""
    root, kept = tmp_path_factory.mktemp("whole"), {}
    (root / "jump.yaml").write_text(EXPERIMENT)

    def run(*overrides):
        if overrides not in kept:
            experiment = config.load(root / "jump.yaml", overrides)
            kept[overrides] = contents(offline.train(experiment, 0, root / str(len(kept)), Silent()))
        return kept[overrides]

    return run


@pytest.mark.parametrize("kill", KILLS)
def test_killed_anywhere_it_ends_with_the_same_bits(train, whole, kill):
    """log_every, checkpoints and episodes fall apart: rows are told over a checkpoint."""
    schedule, at = KILLS[kill]
    settings = (*schedule, "log_every=13", "evaluation.every=65", "checkpoint.every=39")
    assert contents(train(*settings, at=at)) == whole(*settings)


def test_recorded_steps_are_killed_to_the_same_bits(train):
    settings = ("compile=auto", "steps={offline: 210, online: 120}", *FALLING)
    assert contents(train(*settings, at=(215, 275), root="killed")) == contents(train(*settings, root="whole"))


@pytest.mark.parametrize("first", [200, 230])
def test_more_steps_go_on_where_an_episode_ended_and_in_its_middle(train, whole, first):
    train(f"steps.online={first}", root="first")
    assert contents(train(root="first")) == whole()


def test_a_saved_policy_counts_its_steps(train):
    folder = train("steps={offline: 40, online: 40}")
    policy, _, step = load_policy(folder)
    carry = None
    for t in range(3):
        _, carry = policy(np.zeros((2, 3)), carry)
        assert step == 80 and carry.tolist() == [[t + 1, 15.0]] * 2


def test_several_environments_are_refused(train):
    with pytest.raises(ConfigError, match=r"explores in one environment: set online.envs=1"):
        train("online.envs=2", "steps={offline: 1, online: 20}")
