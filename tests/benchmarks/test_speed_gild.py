"""The authors' GILD as a rival: what is changed in its text, what stands in for learn2learn, and its steps."""

import copy
import os
import sys

import numpy as np
import pytest
import torch

from benchmarks.speed import rival_gild
from benchmarks.speed.__main__ import main
from benchmarks.speed.comparisons import AUTHORS, LEARNED
from benchmarks.speed.contestants import Rivals, learned, learned_label
from benchmarks.speed.rival_gild import FILE, SHIMS, clone_module, loaded, prepare, shimmed, update_module
from benchmarks.speed.settings import Settings
from metarl.errors import UserError

CHECKOUT = os.environ.get("METARL_GILD_CHECKOUT")  # folder of a checkout of github.com/slDeng1003/GILD
FAKE = """
import numpy as np
import torch
from learn2learn import clone_module
from model import Net
from utils import update_model

class TD3_GILD:
    def __init__(self, state_dim, action_dim, max_action, demo_traj, args):
        assert demo_traj.shape == (5, state_dim + action_dim) and max_action == 1.0
        self.actor, self.actor_target = Net(state_dim, action_dim), Net(state_dim, action_dim)
        self.critic, self.critic_target = Net(state_dim + action_dim, 1), Net(state_dim + action_dim, 1)
        self.actor_optimizer = torch.optim.SGD(self.actor.parameters(), lr=0.1)
        self.demo_states = torch.tensor(demo_traj[:, :state_dim])
        self.demo_actions = torch.tensor(demo_traj[:, state_dim:])
        self.policy_freq, self.tau, self.total_it, self.log = args.policy_freq, args.tau, 0, []

    def train(self, replay_buffer, batch_size):
        self.total_it += 1
        self.state = replay_buffer.sample(batch_size)[0]
        self.log.append("critic")
        if self.total_it % self.policy_freq == 0:
            self.log.append("gild")
            policy_loss_val_bc = torch.zeros(())
            utility = torch.tanh(policy_bc_loss_val)
            for gradient, variable in zip([], []):
                variable.grad.data = gradient
"""
MODEL = """
import torch

class Net(torch.nn.Linear):
    def Q1(self, state, action):
        return self(torch.cat([state, action], 1))
"""
UTILS = """
import numpy as np
import torch
from learn2learn.utils import update_module as update_model

def soft_update(target, source, tau):
    for t, s in zip(target.parameters(), source.parameters()):
        t.data.copy_(t.data * (1 - tau) + s.data * tau)

class ReplayBuffer:
    def __init__(self, state_dim, action_dim, max_size):
        self.rows, self.max_size = [], max_size

    def add(self, state, action, next_state, reward, done):
        self.rows.append((state, action, next_state, reward, done))

    def sample(self, n):
        assert len(self.rows) == self.max_size and len(self.rows[0][0]) == len(self.rows[0][2])
        picked = [self.rows[i] for i in np.random.randint(0, len(self.rows), n)]
        return [torch.tensor(np.stack(column)) for column in zip(*picked)]
"""
OPTIONS = {**Settings.quick().options("halfcheetah"), "rows": 50, "demos": 5, "batch": 4}


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder that is laid out as GILD's is, and whose trainer needs the same changes; known, as the published is."""
    (tmp_path / FILE).parent.mkdir()
    (tmp_path / FILE).write_text(FAKE)
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "utils.py").write_text(UTILS)
    monkeypatch.setattr(rival_gild, "KNOWN", rival_gild.digest(tmp_path))
    return tmp_path


def test_every_change_is_made_once_and_nothing_else(checkout):
    before, after = FAKE.splitlines(), shimmed(checkout).splitlines()
    changed = [(old.strip(), new.strip()) for old, new in zip(before, after, strict=True) if old != new]
    assert changed == [
        ("utility = torch.tanh(policy_bc_loss_val)", "utility = torch.tanh(policy_loss_val_bc)"),
        ("variable.grad.data = gradient", "variable.grad = gradient"),
    ]
    assert (checkout / FILE).read_text() == FAKE


@pytest.mark.parametrize("shim", SHIMS, ids=lambda shim: shim.old)
@pytest.mark.parametrize("times", [0, 2])
def test_another_version_is_refused(checkout, shim, times, capsys):
    text = FAKE.replace(shim.old, "gone") if not times else f"{FAKE}\n# {shim.old}"
    (checkout / FILE).write_text(text)
    with pytest.raises(UserError, match=rf"--gild .*TD3_GILD_ws.py has '{shim.old}' {times} times"):
        learned("gild_td3", Rivals(gild=checkout))
    assert main(["--quick", "--only", "gild_td3", "--gild", str(checkout)]) == 2  # before anything is measured
    assert "error: --gild" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["model.py", "utils.py", str(FILE)])
def test_no_other_code_is_run(checkout, tmp_path, name):
    ran = tmp_path / "ran"
    with (checkout / name).open("a") as file:
        file.write(f"\nopen({str(ran)!r}, 'w').close()\n")
    with pytest.raises(UserError, match="is not as published, and no other code is run"), loaded(checkout):
        pass
    assert not ran.exists()


@pytest.mark.parametrize("name", ["model.py", "utils.py", str(FILE)])
def test_another_folder_is_refused(checkout, name):
    (checkout / name).unlink()
    with pytest.raises(UserError, match=f"there is no {name} in it; name a checkout of github.com/slDeng1003/GILD"):
        learned("gild_td3", Rivals(gild=checkout))


def test_who_takes_part(checkout):
    assert [each.name for each in learned("gild_td3", Rivals(gild=checkout))] == LEARNED["gild_td3"].names()
    assert not set(AUTHORS) & {each.name for each in learned("gild_td3", Rivals())}
    assert [each.name for each in learned("gild_sac", Rivals(gild=checkout))] == LEARNED["gild_sac"].names()
    assert learned_label("gild_td3", "td3+gild, compiled") == "GILD, compiled"
    assert learned_label("gild_td3", "gild") == "GILD, the authors'"


@pytest.mark.parametrize("imitating", [False, True])
def test_steps_of_its_trainer(checkout, imitating, monkeypatch):
    logs = []
    original = rival_gild.repeated
    monkeypatch.setattr(rival_gild, "repeated", lambda step: logs.append(step) or original(step))
    parts, facts = prepare({**OPTIONS, "checkout": str(checkout), "imitating": imitating})
    assert parts["step"](4) == 4 and len(facts["sha256"]) == 64
    (step,) = logs
    trainer = next(cell.cell_contents for cell in step.__closure__ if hasattr(cell.cell_contents, "log"))
    assert trainer.log == (["critic"] * 4 if imitating else ["critic", "critic", "gild"] * 2)


def test_its_rl_il_is_a_step_of_both_losses_and_of_the_targets(checkout):
    with loaded(checkout) as (gild, utils):
        args = type("Args", (), {"policy_freq": 2, "tau": 0.25})
        trainer = gild.TD3_GILD(3, 2, 1.0, np.ones((5, 5), np.float32), args)
        buffer = utils.ReplayBuffer(3, 2, 6)
    for i in range(6):
        buffer.add(*(np.full(n, i + 1, np.float32) for n in (3, 2, 3)), 0.0, 0.0)
    before = copy.deepcopy(trainer)
    step = rival_gild.imitating(trainer, utils, buffer, 4)
    step()
    _same(trainer.actor, before.actor)
    step()
    cloning = torch.nn.functional.mse_loss(before.actor(torch.ones(4, 3)), torch.ones(4, 2))
    loss = cloning - before.critic.Q1(trainer.state, before.actor(trainer.state)).mean()  # on the critics' own batch
    before.actor_optimizer = torch.optim.SGD(before.actor.parameters(), lr=0.1)
    loss.backward()
    before.actor_optimizer.step()
    _same(trainer.actor, before.actor)
    for name in ("actor", "critic"):
        target, source = getattr(before, f"{name}_target"), getattr(before, name)
        for t, s in zip(target.parameters(), source.parameters(), strict=True):
            t.data.copy_(0.75 * t.data + 0.25 * s.data)
        _same(getattr(trainer, f"{name}_target"), target)


def _same(module, other):
    for a, b in zip(module.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_nothing_of_it_stays_imported(checkout, monkeypatch):
    mine = object()
    monkeypatch.setitem(sys.modules, "utils", mine)
    with loaded(checkout):
        assert sys.modules["utils"] is not mine and "learn2learn" in sys.modules
        assert not torch.cuda.is_available()
    assert sys.modules["utils"] is mine and not {"model", "learn2learn", "learn2learn.utils"} & set(sys.modules)


def test_a_clone_moves_on_the_tape_and_leaves_the_module():
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1, bias=False)).double()
    before = [p.detach().clone() for p in module.parameters()]
    x, scale = torch.ones(4, 2, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    clone = clone_module(module)
    for p in clone.parameters():
        p.update = scale * torch.ones_like(p)
    moved = update_module(clone)(x).sum()
    expected = copy.deepcopy(module)
    with torch.no_grad():
        for p in expected.parameters():
            p += 0.5
    assert moved.item() == pytest.approx(expected(x).sum().item(), rel=1e-12)
    assert all(torch.equal(p, old) for p, old in zip(module.parameters(), before, strict=True))
    assert not any(hasattr(p, "update") for p in module.parameters())
    # To the update, and to the parameters that it was cloned from.
    grads = torch.autograd.grad(moved, [scale, *module.parameters()])
    assert all(grad.abs().sum() > 0 for grad in grads)


@pytest.mark.skipif(CHECKOUT is None, reason="METARL_GILD_CHECKOUT names no checkout of slDeng1003/GILD")
@pytest.mark.filterwarnings("ignore:Using backward:UserWarning")
@pytest.mark.parametrize("imitating", [False, True])
def test_the_real_one_takes_steps(imitating, monkeypatch):
    kept = []
    original = rival_gild.repeated
    monkeypatch.setattr(rival_gild, "repeated", lambda step: kept.append(step) or original(step))
    parts, _ = prepare({**OPTIONS, "checkout": CHECKOUT, "imitating": imitating})
    trainer = next(c.cell_contents for c in kept[0].__closure__ if hasattr(c.cell_contents, "gild_network"))
    networks = ("actor", "critic", "actor_target", "critic_target", "gild_network")
    before = {name: copy.deepcopy(getattr(trainer, name)) for name in networks}
    assert parts["step"](2) == 2
    moved = {
        name
        for name in networks
        if not all(map(torch.equal, before[name].parameters(), getattr(trainer, name).parameters()))
    }
    assert moved == set(networks) - ({"gild_network"} if imitating else set())
