"""Behaviour cloning against torch.nn.Linear and torch.optim."""

from __future__ import annotations

import torch
from torch import nn

from algorithms.bc import BC


def test_twenty_steps_equal_the_textbook(assemble, draw, apart):
    learner = assemble(BC(hidden=(16,), batch_size=32))
    state = learner.init(torch.float64)
    high = torch.tensor([1.0, 0.5], dtype=torch.float64)
    net = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 2), nn.Tanh()).double()
    names = {"net.layers.0": net[0], "net.layers.1": net[2]}
    with torch.no_grad():
        for prefix, layer in names.items():
            layer.weight.copy_(state.tree["actor"][f"{prefix}.weight"].T)
            layer.bias.copy_(state.tree["actor"][f"{prefix}.bias"])
    live = torch.optim.Adam(net.parameters(), 1e-3)
    for step in range(1, 21):
        batches = draw(learner, step)
        batch = batches["train"]
        state, metrics = learner.step(state, batches, learner.due(step))
        loss = nn.functional.mse_loss(net(batch["obs"]) * high, batch["action"])
        live.zero_grad()
        loss.backward()
        live.step()
        assert abs(metrics["actor/loss"] - loss.detach()) < 1e-12
    for prefix, layer in names.items():
        ours = {k: state.tree["actor"][f"{prefix}.{k}"] for k in ("weight", "bias")}
        assert apart(ours, {"weight": layer.weight.T, "bias": layer.bias}) < 1e-10
        nu = {k: state.opt["actor"].nu[f"{prefix}.{k}"] for k in ("weight", "bias")}
        squares = {k: live.state[getattr(layer, k)]["exp_avg_sq"] for k in ("weight", "bias")}
        assert apart(nu, {"weight": squares["weight"].T, "bias": squares["bias"]}) < 1e-10
    obs = draw(learner, 99)["train"]["obs"]
    action, carry = learner.act(state.tree, obs, "kept", None, True)
    with torch.no_grad():
        assert torch.allclose(action, net(obs) * high, rtol=1e-10) and carry == "kept"


def test_cloning_reads_states_and_actions_only(assemble, draw, apart):
    learner = assemble(BC(hidden=(8,), batch_size=8))
    state, batches = learner.init(torch.float64), draw(learner)
    short = {"train": {k: batches["train"][k] for k in ("obs", "action")}, "noise": {}}
    a, _ = learner.step(state, batches, learner.due(1))
    b, _ = learner.step(state, short, learner.due(1))
    assert apart(a.tree, b.tree) == 0
    assert learner.policy is None and list(learner.roles) == ["train"]
