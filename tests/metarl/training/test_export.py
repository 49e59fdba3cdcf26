"""Exported policies: the numbers of evaluation, from the file alone, and what is refused."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from metarl import Learner, Spec
from metarl.cli import app
from metarl.data.transitions import Statistics
from metarl.errors import ConfigError
from metarl.registry import resolve
from metarl.training import checkpoints, export
from metarl.training.evaluation import Policy
from metarl.training.folder import RunFolder
from metarl.training.offline import load_policy
from metarl.training.setup import saved_spec

ALGORITHMS = ("td3_bc", "sac_bc", "iql", "bc", "ddpg", "td3", "sac")
SPEC = Spec(obs_dim=5, action_dim=3, max_action=(1.0, 0.4, 2.5), obs_keys=("achieved", "goal"))
STATISTICS = Statistics(
    torch.tensor([0.0, 3.0, -40.0, 1e-3, 0.7]).double(), torch.tensor([1.0, 0.2, 11.0, 0.0, 5.0]).double()
)
HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))


def untrained(name, statistics=STATISTICS, dtype=torch.float32):
    """A policy of random weights, which leaves its bounds for large observations only through clipping."""
    algorithm = resolve("metarl.algorithms", name)(hidden=(16, 16))
    learner = algorithm.build(SPEC, torch.Generator().manual_seed(1)).ready()
    return Policy(learner, learner.init(dtype).tree, statistics, SPEC.obs_keys)


def observations(n, seed=0):
    """Raw ones, near the statistics and up to six deviations away."""
    rng = np.random.default_rng((n, seed))
    scale = rng.uniform(0, 3, (n, 1)) * STATISTICS.std.numpy()
    return (STATISTICS.mean.numpy() + rng.standard_normal((n, SPEC.obs_dim)) * scale).astype(np.float32)


def evaluated(policy, obs, high=SPEC.max_action):
    """What `Evaluator` gives to the environment."""
    high = np.asarray(high, dtype=np.float32)
    return policy(obs)[0].clip(-high, high)


def loaded(path):
    return torch.export.load(path).module()


def constant(action, statistics=None, carry=None):
    """A policy that does the same everywhere."""

    def act(tree, obs, carry_in, noise, deterministic):
        return obs[:, :3] * 0 + tree["actor"]["a"], carry

    tree = {"actor": {"a": torch.tensor(action)}}
    return Policy(Learner(modules={}, tensors=tree, stages=(), act=act), tree, statistics)


@pytest.fixture
def saved(tmp_path):
    """`saved(policy, suffix)`: the path of its export."""

    def write(policy, suffix=".pt2", spec=SPEC, told=None):
        path = tmp_path / f"policy{suffix}"
        export.write(export.program(policy, spec), told or {}, path)
        return path

    return write


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_trained_run_exports_what_evaluation_does(run, tmp_path, name):
    folder = run(f"algorithm={{name: {name}, hidden: [8, 8], batch_size: 16}}", "objective=[]", "steps=8")
    policy, _, step = load_policy(folder)
    spec = saved_spec(checkpoints.load_newest(RunFolder(folder).checkpoints, print).record["spec"])
    assert step == 8 and (policy.statistics is not None) == policy.learner.normalize
    export.write(export.program(policy, spec), {}, tmp_path / "policy.pt2")
    module = loaded(tmp_path / "policy.pt2")
    for n in (1, 2, 7, 64):
        obs = np.random.default_rng(n).uniform(-4, 4, (n, 3)).astype(np.float32)
        with torch.no_grad():
            found = module(torch.from_numpy(obs)).numpy()
        np.testing.assert_array_equal(found, evaluated(policy, obs, spec.max_action))


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("statistics", [STATISTICS, None], ids=["normalised", "raw"])
def test_any_number_of_rows_gives_the_same_numbers_as_the_policy(saved, name, statistics):
    policy = untrained(name, statistics)
    module = loaded(saved(policy))
    for n in (0, 1, 2, 3, 17):
        obs = observations(n)
        found = module(torch.from_numpy(obs))
        assert found.dtype == torch.float32 and not found.requires_grad
        np.testing.assert_array_equal(found.numpy(), evaluated(policy, obs))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_many_rows_give_the_same_actions_to_rounding(saved, name):
    # Evaluation takes large products through another library (metarl.products).
    policy, obs = untrained(name), observations(5000)
    found = loaded(saved(policy))(torch.from_numpy(obs)).numpy()
    np.testing.assert_allclose(found, evaluated(policy, obs), rtol=0, atol=2e-6)


def test_statistics_are_in_the_file(saved):
    obs = torch.from_numpy(observations(9))
    raw, normalised = (loaded(saved(untrained("td3_bc", s))) for s in (None, STATISTICS))
    assert (raw(obs) - normalised(obs)).abs().max() > 0.01
    torch.testing.assert_close(raw(STATISTICS(obs)), normalised(obs), rtol=0, atol=0)


def test_actions_are_within_the_bounds(saved):
    module = loaded(saved(constant([9.0, -9.0, 0.25])))
    torch.testing.assert_close(module(torch.ones(2, 5)), torch.tensor([[1.0, -0.4, 0.25]]).expand(2, 3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64])
def test_observations_of_another_dtype_are_brought_to_single_precision(saved, dtype):
    policy = untrained("sac_bc")
    obs = torch.from_numpy(observations(6)).to(dtype)
    found = loaded(saved(policy))(obs)
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found.numpy(), evaluated(policy, obs.numpy()))


def test_double_precision_weights_keep_their_precision(saved):
    policy = untrained("td3_bc", dtype=torch.float64)
    obs = observations(6)
    np.testing.assert_array_equal(loaded(saved(policy))(torch.from_numpy(obs)).numpy(), evaluated(policy, obs))


def test_observations_of_another_width_are_refused(saved):
    module = loaded(saved(untrained("td3_bc")))
    with pytest.raises(AssertionError, match="Guard failed"):
        module(torch.zeros(2, SPEC.obs_dim + 1))


def test_the_file_holds_the_policy_and_no_critic(saved):
    policy = untrained("td3_bc")
    made = torch.export.load(saved(policy))
    kept = sum(value.numel() for value in made.constants.values()) + sum(p.numel() for p in made.state_dict.values())
    actor = sum(value.numel() for value in policy.tree["actor"].values())
    small = 2 * SPEC.obs_dim + 2 * SPEC.action_dim  # statistics; the action's bounds, here and in the policy
    assert actor < kept <= actor + small


def test_the_file_holds_no_path_of_this_machine(saved):
    data = saved(untrained("td3_bc")).read_bytes()
    assert str(Path(export.__file__).parents[2]).encode() not in data


def test_what_the_file_tells_of_itself(run, tmp_path):
    folder = run("steps=8")
    _, env, step = load_policy(folder)
    told = export.about(folder, 0, step, env, SPEC)
    export.write(export.program(untrained("bc"), SPEC), told, tmp_path / "policy.pt2")
    extra = {export.ABOUT: ""}
    torch.export.load(tmp_path / "policy.pt2", extra_files=extra)
    found = json.loads(extra[export.ABOUT])
    assert found == told
    assert (found["run"], found["seed"], found["step"]) == (folder.parent.name, 0, 8)
    assert found["env_id"] == "Pendulum-v1" and found["env_spec"]["id"] == "Pendulum-v1"
    assert found["obs_dim"] == 5 and found["obs_keys"] == ["achieved", "goal"]
    assert found["action_high"] == [1.0, 0.4, 2.5] and found["action_low"] == [-1.0, -0.4, -2.5]
    assert found["versions"]["torch"] == torch.__version__


def printed(file):
    """The example of docs/policies.md that reads this file."""
    page = (Path(__file__).parents[3] / "docs" / "policies.md").read_text()
    (text,) = re.findall(rf"<!-- run: {re.escape(file)} -->\n```python\n(.*?)```", page, re.DOTALL)
    return text


ALONE = """
import sys
sys.modules["metarl"] = sys.modules["algorithms"] = None  # an import of them, or of what is in them, raises ImportError
"""
SHOW = """
torch.save((obs, action), "found.pt")
print(about["note"], [name for name in sys.modules if name.startswith(("metarl.", "algorithms."))])
"""


def test_the_page_s_example_needs_the_file_and_no_metarl(saved, tmp_path):
    policy = untrained("sac_bc")
    saved(policy, told={"note": "alone", "obs_dim": SPEC.obs_dim})
    code = ALONE + printed("policy.pt2") + SHOW
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "alone []\n"
    obs, action = torch.load(tmp_path / "found.pt")
    # Another process: with another number of threads, and without metarl's denormal numbers as zero.
    np.testing.assert_allclose(action, evaluated(policy, obs.numpy()), rtol=0, atol=1e-6)


def test_a_policy_with_a_carry_is_refused():
    with pytest.raises(ConfigError, match="carries a state") as error:
        export.program(constant([0.0, 0.0, 0.0], carry=torch.zeros(2)), SPEC)
    assert "\n" not in str(error.value)


def test_a_policy_that_cannot_be_followed_is_refused_in_one_line():
    def act(tree, obs, carry, noise, deterministic):
        return (obs[:, :3] if float(obs.sum()) > 0 else -obs[:, :3]) + tree["actor"]["a"], carry

    policy = Policy(Learner(modules={}, stages=(), act=act), {"actor": {"a": torch.zeros(3)}}, None)
    with pytest.raises(ConfigError, match=r"cannot be exported: torch\.export cannot follow it") as error:
        export.program(policy, SPEC)
    assert "\n" not in str(error.value)


def test_a_policy_that_looks_at_more_than_its_observation_is_refused():
    calls = []

    def act(tree, obs, carry, noise, deterministic):
        calls.append(None)
        return obs[:, :3] * 0 + tree["actor"]["a"] * len(calls), carry

    policy = Policy(Learner(modules={}, stages=(), act=act), {"actor": {"a": torch.full((3,), 0.01)}}, None)
    with pytest.raises(ConfigError, match="acts otherwise once exported"):
        export.program(policy, SPEC)


def test_paths_are_refused_before_any_work(tmp_path):
    there = tmp_path / "there.pt2"
    there.write_text("mine")
    (tmp_path / "folder.pt2").mkdir()
    for path, words in (
        (there, "exists already; choose another name, or give --overwrite"),
        (tmp_path / "policy.pth", "must end in .pt2 or .onnx"),
        (tmp_path / "none" / "policy.pt2", "there is no folder"),
        (tmp_path / "folder.pt2", "is a folder"),
    ):
        with pytest.raises(ConfigError, match=words):
            export.check_path(path, overwrite=False)
    export.check_path(there, overwrite=True)
    assert there.read_text() == "mine"


def test_a_write_that_fails_leaves_the_former_file(tmp_path):
    path = tmp_path / "policy.pt2"
    path.write_text("former")
    with pytest.raises(ZeroDivisionError), export.replaced(path) as aside:
        aside.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "former" and [*tmp_path.iterdir()] == [path]


def test_the_command_writes_the_newest_policy_and_overwrites_only_when_told(run, tmp_path):
    folder, file = run("steps=20"), tmp_path / "policy.pt2"
    command = ["export", str(folder), str(file)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "step 20" in done.output and "Pendulum-v1" in done.output
    policy, _, _ = load_policy(folder)
    obs = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    found = loaded(file)(torch.from_numpy(obs)).detach().numpy()
    np.testing.assert_array_equal(found, evaluated(policy, obs, (2.0,)))
    extra = {export.ABOUT: ""}
    torch.export.load(file, extra_files=extra)
    assert json.loads(extra[export.ABOUT])["step"] == 20

    file.write_text("mine")
    again = subprocess.run([sys.executable, "-m", "metarl", *command], capture_output=True, text=True)
    assert again.returncode == 2 and again.stderr.count("\n") == 1 and "--overwrite" in again.stderr
    assert file.read_text() == "mine"
    assert CliRunner().invoke(app, [*command, "--overwrite"]).exit_code == 0
    assert torch.export.load(file).constants


def test_onnx_without_its_packages_names_the_pip_command(monkeypatch):
    monkeypatch.setattr(sys, "path", [])  # nothing more can be found
    monkeypatch.delitem(sys.modules, "onnx", raising=False)
    monkeypatch.delitem(sys.modules, "onnxscript", raising=False)
    with pytest.raises(ConfigError, match=r"pip install 'metarl\[onnx\]'"):
        export.check_needs(Path("policy.onnx"))
    export.check_needs(Path("policy.pt2"))


@pytest.mark.skipif(not HAS_ONNX, reason="onnx, onnxscript and onnxruntime are not installed")
@pytest.mark.parametrize("name", ALGORITHMS)
def test_onnx_runs_elsewhere_with_the_same_numbers(saved, name):
    import onnxruntime

    policy = untrained(name)
    path = saved(policy, ".onnx", told={"note": name})
    assert str(Path(export.__file__).parents[2]).encode() not in path.read_bytes()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for n in (0, 1, 2, 17, 1000):
        obs = observations(n)
        (found,) = session.run(["action"], {"obs": obs})
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, evaluated(policy, obs), rtol=0, atol=1e-6)
    assert json.loads(session.get_modelmeta().custom_metadata_map[export.KEY]) == {"note": name}
    with pytest.raises(Exception, match=r"expected: \(tensor\(float\)\)"):
        session.run(None, {"obs": observations(2).astype(np.float64)})


@pytest.mark.skipif(not HAS_ONNX, reason="onnx, onnxscript and onnxruntime are not installed")
def test_the_page_s_example_of_onnx(saved, tmp_path):
    policy = untrained("iql")
    saved(policy, ".onnx", told={"obs_dim": SPEC.obs_dim})
    script = printed("policy.onnx") + "\nnp.savez('found.npz', obs=obs, action=action)\n"
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    found = np.load(tmp_path / "found.npz")
    np.testing.assert_allclose(found["action"], evaluated(policy, found["obs"]), rtol=0, atol=1e-6)
