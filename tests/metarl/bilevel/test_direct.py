"""Direct, Polyak and Track."""

from __future__ import annotations

import torch

from metarl import Direct, Learner, Polyak, Track, Update, nn, sgd


def net_and_batch():
    net = nn.MLP([3, 4, 2], torch.Generator().manual_seed(0), "tanh")
    g = torch.Generator().manual_seed(1)
    return net, {"x": torch.randn(6, 3, generator=g, dtype=torch.float64)}


def act(tree, obs, carry, noise, deterministic):
    return obs, carry


def test_direct_is_the_plain_gradient_of_its_own_group_alone(apart):
    net, batch = net_and_batch()

    def loss(tree, batches):
        value = (nn.call(net, tree["net"], batches["train"]["x"]) * tree["other"]["scale"]).square().mean()
        return value, {"seen": value * 2}

    learner = Learner(
        modules={"net": net},
        tensors={"other": {"scale": torch.tensor(2.0)}},
        stages=((Update("net", "net", loss, sgd(0.1)),),),
        act=act,
    ).ready()
    state = learner.init(torch.float64)
    update = learner.updates["net"]
    estimate = update.gradient(update, state, {"train": batch})
    net = net.double()
    value = (net(batch["x"]) * 2).square().mean()
    value.backward()
    assert apart(estimate.grads, {k: p.grad for k, p in net.named_parameters()}) < 1e-12
    assert set(estimate.metrics) == {"seen"} and estimate.metrics["seen"] == 2 * estimate.loss
    assert isinstance(update.gradient, Direct) and estimate.inner is None


def test_polyak_starts_as_a_copy_and_averages_exponentially(apart):
    net, _ = net_and_batch()
    learner = Learner(
        modules={"net": net},
        stages=((Update("target", "target", None, sgd(0.25), Polyak("net")),),),
        act=act,
    ).ready()
    state = learner.init(torch.float64)
    assert apart(state.tree["target"], state.tree["net"]) == 0
    start = state.tree["target"]
    moved = {k: v + 1 for k, v in state.tree["net"].items()}
    state = state.with_params("net", moved)
    for step in range(1, 4):
        state, metrics = learner.step(state, {}, learner.due(step))
        share = 1 - 0.75**step
        assert apart(state.tree["target"], {k: v + share for k, v in start.items()}) < 1e-12
    assert apart(state.tree["net"], moved) == 0 and metrics == {}


def test_polyak_copy_shares_no_memory():
    net, _ = net_and_batch()
    learner = Learner(
        modules={"net": net}, stages=((Update("t", "t", None, sgd(0.5), Polyak("net")),),), act=act
    ).ready()
    state = learner.init()
    for name, value in state.tree["net"].items():
        value.zero_()
        assert state.tree["t"][name].abs().sum() > 0


def test_track_is_a_running_mean_of_a_function():
    def moments(tree, batches):
        return {"mean": (batches["train"]["x"] * tree["scale"]["s"]).mean()}

    learner = Learner(
        modules={},
        tensors={"scale": {"s": torch.tensor(2.0)}, "statistics": {"mean": torch.zeros(())}},
        stages=((Update("statistics", "statistics", None, sgd(0.1), Track(moments)),),),
        act=act,
    ).ready()
    state = learner.init(torch.float64)
    expected = 0.0
    for step in range(1, 5):
        x = torch.full((3,), float(step), dtype=torch.float64)
        state, _ = learner.step(state, {"train": {"x": x}}, learner.due(step))
        expected += 0.1 * (2.0 * step - expected)
        assert abs(state.tree["statistics"]["mean"] - expected) < 1e-14
