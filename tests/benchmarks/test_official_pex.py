"""The authors' PEX beside ours: what either side is told, where they are evaluated, the first updates, the record."""

import json
import os
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch

from benchmarks import official_pex
from benchmarks.official import page
from benchmarks.official.command import SAME
from benchmarks.official.comparison import OFFICIAL, OURS
from benchmarks.official_pex import (
    CELLS,
    PHASES,
    Cell,
    Evaluations,
    Normalized,
    first_updates,
    greedy,
    loaded,
    main,
    official,
    ours,
)
from metarl import config
from metarl.envs import make_env
from metarl.training.evaluation import EpisodeReturns, Evaluator
from metarl.training.progress import Silent
from metarl.training.setup import prepare

CHECKOUT = os.environ.get("METARL_PEX_CHECKOUT")  # folder of a checkout of github.com/Haichao-Zhang/PEX
needs_checkout = pytest.mark.skipif(CHECKOUT is None, reason="METARL_PEX_CHECKOUT names no checkout of PEX")
TINY = {
    "recipe": "pendulum/medium",
    "size": 600,
    "offline_steps": 40,
    "online_steps": 200,
    "learn_from": 150,
    "hidden_dim": 8,
    "batch_size": 16,
    "evaluate_every": 40,
    "episodes": 2,
}
EXPANDED, DIRECT = (replace(cell, **TINY) for cell in CELLS)

# -- what is compared ------------------------------------------------------------------------------------------


def test_figures_of_a_curve():
    longer = replace(EXPANDED, online_steps=480)
    assert longer.figures({step: float(step) for step in longer.evaluated})["return, last 10 evaluations"] == 340.0
    curve = {step: float(step) for step in EXPANDED.evaluated}
    assert list(curve) == list(range(40, 241, 40))
    found = {"return, first 3 evaluations online": 120.0, "return, last 10 evaluations": 160.0}
    assert DIRECT.figures(curve) == found
    assert EXPANDED.figures(curve) == {"return at the switch": 40.0, **found}


def test_evaluations_come_back_from_json():
    found = Evaluations({20: EpisodeReturns((1.0, 3.0), (5, 6)), 40: EpisodeReturns((4.0,), (7,))})
    assert Evaluations.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert found.curve == {20: 2.0, 40: 4.0}


# -- both sides ------------------------------------------------------------------------------------------------

FAKES = {
    "pex/utils/util.py": """
import random
import d4rl
import gym
import numpy as np
import torch

def torchify(x):
    return torch.from_numpy(x).float()

def sample_batch(dataset, n):
    rows = torch.randint(len(dataset["rewards"]), (n,))
    return {k: v[rows].cuda() for k, v in dataset.items()}

def epsilon_greedy_sample(dist, eps):
    return dist * eps

def get_env_and_dataset(name, max_episode_steps):
    raise AssertionError("theirs")

eval_policy = get_env_and_dataset
""",
    "pex/networks/policy.py": "from pex.utils.util import torchify\n",
    "pex/networks/value_functions.py": "",
    "pex/algorithms/iql.py": """
import torch

class IQL:
    def select_action(self, obs, evaluate):
        assert evaluate and obs.dtype == torch.float32
        return torch.full((len(obs), 1), 0.5)
""",
    "pex/algorithms/iql_online.py": "from .iql import IQL\n",
    "pex/algorithms/pex.py": """
import torch
from pex.algorithms.iql import IQL
from pex.utils.util import epsilon_greedy_sample

class PEX(IQL):
    def select_action(self, obs, evaluate):
        return super().select_action(obs, evaluate) + epsilon_greedy_sample(torch.ones(len(obs), 1), 0.1)
""",
    "main_offline.py": """
from pathlib import Path
from tqdm import trange
from pex.algorithms.iql import IQL
from pex.utils.util import eval_policy, get_env_and_dataset, sample_batch

def main(args):
    env, dataset, _ = get_env_and_dataset(args.env_name, args.max_episode_steps)
    for step in trange(args.num_steps):
        batch = sample_batch(dataset, args.batch_size)
        if (step + 1) % args.eval_period == 0:
            eval_policy(env, args.env_name, IQL(), args.max_episode_steps, args.eval_episode_num)
    print("told to nobody")
    Path(args.log_dir).mkdir()
    (Path(args.log_dir) / "offline_ckpt").write_text(str(args.seed))
    seen.append((args, batch))

seen = []
""",
    "main_online.py": """
from pathlib import Path
import numpy as np
import torch
from pex.algorithms.iql_online import IQL
from pex.algorithms.pex import PEX
from pex.utils.util import eval_policy, get_env_and_dataset, sample_batch

def main(args):
    assert Path(args.ckpt_path).read_text() == str(args.seed) and not Path(args.log_dir).exists()
    assert not torch.cuda.is_available()
    env, dataset, scaled = get_env_and_dataset(args.env_name, args.max_episode_steps)
    env.seed(args.seed)
    steps, rewards = 0, []
    while steps <= args.total_env_steps:
        state, done = env.reset(), False
        while not done:
            state, reward, done, _ = env.step(np.full(1, -2.0, np.float32))
            rewards.append(scaled(reward))
            steps += 1
            if steps % args.eval_period == 0:
                alg = {"pex": PEX, "direct": IQL}[args.algorithm]()
                eval_policy(env, args.env_name, alg, args.max_episode_steps, args.eval_episode_num)
        env.close()
    print("told to nobody")
    seen.append((args, rewards))

seen = []
""",
}


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    """Scripts and modules laid out as the authors', loaded as theirs are; they write down what they are told."""
    for name, text in FAKES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (shim,) = official_pex.PUBLISHED.shims
    known = replace(official_pex.PUBLISHED, shims=(replace(shim, old="v[rows].cuda()", new="v[rows]"),))
    monkeypatch.setattr(official_pex, "PUBLISHED", replace(known, sha256=known.digest(tmp_path)))
    return loaded(tmp_path)


@pytest.mark.parametrize("cell", [EXPANDED, DIRECT], ids=lambda cell: cell.type)
def test_the_authors_scripts_are_told_the_cell_and_evaluated_as_ours(fakes, cell, capsys):
    found = official(fakes, cell, 3, Silent())
    assert list(found.at) == list(range(40, 241, 40)) and capsys.readouterr().out == ""
    (offline, batch), (online, rewards) = fakes["main_offline"].seen[0], fakes["main_online"].seen[0]
    told = {
        "algorithm": cell.type.lower(),
        "seed": 3,
        "num_steps": 40,
        "total_env_steps": 199,
        "initial_collection_steps": 149,
        "updates_per_step": 1,
        "hidden_dim": 8,
        "hidden_num": 2,
        "batch_size": 16,
        "learning_rate": 1e-3,
        "target_update_rate": 0.02,
        "tau": 0.9,
        "beta": 10.0,
        "inv_temperature": 10.0,
        "discount": 0.99,
        "eval_period": 40,
    }
    for args in (offline, online):
        assert {name: getattr(args, name) for name in told} == told
    setup = prepare(config.build(cell.experiment(), "test"), 3)
    columns = setup.data["train"].layout.split(setup.data["train"].rows)
    theirs = {tuple(obs.tolist()): (action, reward) for obs, action, reward in _rows(batch)}
    known = {tuple(obs.tolist()): (action, reward) for obs, action, reward in _rows(columns)}
    assert len(theirs) > 10
    for obs, (action, reward) in theirs.items():
        torch.testing.assert_close((2 * action, reward / 0.1), known[obs])
    # One episode of the greatest torque to the right, from the seed's start.
    env = make_env(setup.online.env)
    env.reset(seed=3)
    assert rewards == pytest.approx([0.1 * env.step(np.array([-2.0], np.float32))[1] for _ in range(200)])
    evaluator = Evaluator(lambda: make_env(setup.env), 2, 3)
    for step in (40, 240):  # half of the greatest torque to the left, from the starts of ours
        assert found.at[step] == evaluator(lambda obs, carry: (np.full((len(obs), 1), 1.0, np.float32), carry), step)
    evaluator.close()


def _rows(columns):
    names = ("observations", "actions", "rewards") if "rewards" in columns else ("obs", "action", "reward")
    return zip(*(columns[name] for name in names), strict=True)


def test_their_share_of_samples_is_0_while_they_are_evaluated(fakes):
    alg, obs = fakes["pex.algorithms.pex"].PEX(), torch.zeros(2, 3)
    with greedy(fakes):
        assert alg.select_action(obs, evaluate=True).tolist() == [[0.5], [0.5]]
    torch.testing.assert_close(alg.select_action(obs, evaluate=True), torch.full((2, 1), 0.6))


def test_their_environment_takes_actions_in_units_of_their_bounds():
    setup = prepare(config.build(EXPANDED.experiment(), "test"), 0)
    given = []
    told = gym.wrappers.TransformAction(make_env(setup.online.env), lambda a: given.append(float(a[0])) or a, None)
    env, plain = Normalized(told), make_env(setup.online.env)
    assert env._max_episode_steps == 200 and env.action_space.high == 1
    env.seed(4)
    first = env.reset()
    assert np.array_equal(first, plain.reset(seed=4)[0])
    for action in (0.25, 7.0):
        state, reward, done, _ = env.step(np.array([action], np.float32))
        expected = plain.step(np.array([2 * min(action, 1)], np.float32))
        assert np.array_equal(state, expected[0]) and (reward, done) == (expected[1], False)
    assert given == [0.5, 2.0]
    assert not np.array_equal(env.reset(), first)  # the seed is of one reset


@pytest.mark.parametrize("cell", [EXPANDED, replace(DIRECT, tau=0.8, beta=5.0, discount=0.9, reward_scale=0.5)])
def test_metarl_is_told_the_cell(cell):
    built = config.build(cell.experiment(), "test")
    iql = built.resolved["algorithm"]
    told = {
        "order": "corl",
        "initialization": "default",
        "expectile": cell.tau,
        "beta": cell.beta,
        "discount": cell.discount,
        "tau": 0.02,
        "hidden": (8, 8),
        "batch_size": 16,
        "actor_decay": True,
        "log_std": (-5.0, 2.0),
        "normalize": False,
    }
    assert {name: tuple(iql[name]) if isinstance(iql[name], list) else iql[name] for name in told} == told
    assert iql["rewards"]["scale"] == cell.reward_scale
    assert [iql[f"{net}_optimizer"]["lr"] for net in ("actor", "critic", "value")] == [1e-3] * 3
    assert (built.offline_steps, built.steps, built.gradient_steps) == (40, 240, 90) and cell.updates == 90
    assert (built.online.from_data, built.online.learn_from, built.online.random_steps) == (0.5, 150, 0)
    if cell.type == "PEX":
        (pex,) = built.resolved["objective"]
        assert (pex["inverse_temperature"], pex["beta"], tuple(pex["hidden"])) == (10.0, 10.0, (8, 8))
        assert pex["policy_optimizer"]["lr"] == 1e-3 and pex["entropy"] is None and not pex["grow"]
    else:
        assert not built.objectives


def test_metarls_side_is_its_evaluations(tmp_path):
    found = ours(EXPANDED, 0, tmp_path, Silent())
    (file,) = tmp_path.glob("official-pex-*/0/result.json")
    evaluations = {each["step"]: each for each in json.loads(file.read_text())["evaluations"]}
    assert list(found.at) == list(EXPANDED.evaluated) and set(evaluations) - set(found.at) == {0}
    assert all(found.at[step] == EpisodeReturns.from_dict(evaluations[step]) for step in found.at)


# -- the real one ----------------------------------------------------------------------------------------------


@needs_checkout
@pytest.mark.parametrize("phase", PHASES)
def test_the_authors_first_updates_are_ours(phase, monkeypatch):
    code = loaded(Path(CHECKOUT))
    assert first_updates(code, phase) < SAME
    monkeypatch.setattr(code["pex.networks.policy"], "LOG_STD_MAX", -0.1)  # another rule shows
    assert first_updates(code, phase) > 1e-4


@needs_checkout
def test_both_types_are_compared(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(official_pex, "CELLS", (EXPANDED, DIRECT))
    files = {"--out": "runs", "--results": "official.json", "--page": "official.md"}
    words = ["--pex", CHECKOUT, "--seeds", "2", "--progress", "none"]
    words += [word for key, name in files.items() for word in (key, str(tmp_path / name))]
    assert main(words) == 0
    told = capsys.readouterr()
    assert "1/8 PEX, official, seed 0" in told.err and "direct, pendulum/medium" in told.out
    record = json.loads((tmp_path / "official.json").read_text())
    assert [(cell["type"], cell["figure"].split(",")[-1]) for cell in record["cells"]] == [
        ("PEX", "return at the switch"),
        ("PEX", " first 3 evaluations online"),
        ("PEX", " last 10 evaluations"),
        ("direct", " first 3 evaluations online"),
        ("direct", " last 10 evaluations"),
    ]
    kept = {file.stem: json.loads(file.read_text()) for file in (tmp_path / "runs").glob("*.json")}
    assert len(kept) == 8
    for side in (OFFICIAL, OURS):  # up to the switch both types are one run
        assert kept[f"PEX-{side}-1"]["evaluation"]["40"] == kept[f"direct-{side}-1"]["evaluation"]["40"]
    assert main(words) == 0 and "/8" not in capsys.readouterr().err  # everything was kept


# -- the record ------------------------------------------------------------------------------------------------


def test_the_record_is_of_this_method():
    record = json.loads(official_pex.RESULTS.read_text())
    assert record["sha256"] == official_pex.PUBLISHED.sha256 and record["stand_ins"] == official_pex.STAND_INS
    assert set(record["first_updates"]["largest"]) == set(PHASES)
    assert max(record["first_updates"]["largest"].values()) < SAME
    assert record["notes"] == " ".join(official_pex.NOTES.split())
    cells = [Cell(**{k: v for k, v in cell.items() if k not in ("sides", "figure")}) for cell in record["cells"]]
    assert list(dict.fromkeys(cells)) == list(CELLS)
    for cell in record["cells"]:
        assert all(len(cell["sides"][side]["scores"]) >= 3 for side in (OFFICIAL, OURS))
    assert page.settings(record).head == ("both sides", "PEX", "direct")
    assert page.scores(record).rows[0][0] == "PEX, return at the switch, the authors' code"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "name a checkout of github.com/Haichao-Zhang/PEX with --pex, or give --write-only"),
        (["--pex", ".", "--online-steps", "1500"], "--online-steps 1500 must be a multiple of --evaluate-every 1000"),
        (["--pex", ".", "--offline-steps", "0"], "--offline-steps 0 must be a multiple"),
        (["--pex", "absent"], "there is no main_online.py in it; name a checkout of github.com/Haichao-Zhang/PEX"),
    ],
)
def test_mistakes(words, told, capsys):
    assert main(words) == 2
    assert told in capsys.readouterr().err


def test_stand_ins_are_of_what_they_import(fakes):
    assert set(official_pex.STAND_INS) == {"gym", "d4rl", "tqdm"} and fakes["main_offline"].trange is range
    assert isinstance(fakes["pex.utils.util"].gym, ModuleType) and isinstance(fakes["main_online"].np, ModuleType)
    assert SimpleNamespace(**official_pex._settings(DIRECT, 0)).algorithm == "direct"
