"""Networks as templates: layout, initial distribution, strict names."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn as torch_nn

from metarl import nn


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def quantiles(values):
    return torch.quantile(values.detach().flatten()[:20000], torch.linspace(0, 1, 11))


def test_linear_starts_with_the_distribution_of_pytorchs():
    """U(-1/sqrt(in), 1/sqrt(in)) for weight and bias, decile by decile beside torch.nn.Linear's."""
    ours, theirs = nn.Linear(49, 400, generator()), torch_nn.Linear(49, 400)
    bound = 1 / math.sqrt(49)
    for a, b in ((ours.weight, theirs.weight), (ours.bias, theirs.bias)):
        assert a.abs().max() <= bound and a.abs().max() > 0.97 * bound
        tolerance = 4 * bound * math.sqrt(2 / a.numel())
        assert (quantiles(a) - quantiles(b)).abs().max() < tolerance
        assert (quantiles(a) - torch.linspace(-bound, bound, 11)).abs().max() < tolerance


def test_linear_stores_weights_in_by_out_and_equals_torchs_with_the_transpose():
    layer = nn.Linear(3, 5, generator())
    assert layer.weight.shape == (3, 5) and layer.bias.shape == (5,)
    x = torch.randn(7, 3, generator=generator(1))
    expected = torch_nn.functional.linear(x, layer.weight.T, layer.bias)
    assert torch.allclose(layer(x), expected, atol=1e-6)
    deep = x.reshape(1, 7, 3).expand(2, 7, 3)
    assert torch.allclose(layer(deep), expected.expand(2, 7, 5), atol=1e-6)
    assert torch.allclose(layer(x[0]), expected[0], atol=1e-6)


def test_initial_values_come_from_the_generator_alone():
    torch.manual_seed(0)
    a = nn.MLP([3, 4, 2], generator())
    torch.manual_seed(1)
    b = nn.MLP([3, 4, 2], generator())
    c = nn.MLP([3, 4, 2], generator(1))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not any(torch.equal(p, q) for p, q in zip(a.parameters(), c.parameters(), strict=True))


@pytest.mark.parametrize("activation", nn.ACTIVATIONS)
@pytest.mark.parametrize("output", nn.ACTIVATIONS)
def test_mlp_is_affine_maps_with_activations_between(activation, output):
    theirs = {
        "relu": torch_nn.ReLU(),
        "tanh": torch_nn.Tanh(),
        "sigmoid": torch_nn.Sigmoid(),
        "softplus": torch_nn.Softplus(),
        "silu": torch_nn.SiLU(),
        "identity": torch_nn.Identity(),
    }
    net = nn.MLP([3, 4, 5, 2], generator(), activation, output)
    x = torch.randn(6, 3, generator=generator(1))
    h = x
    for i, layer in enumerate(net.layers):
        h = theirs[activation if i < 2 else output](h @ layer.weight + layer.bias)
    assert torch.allclose(net(x), h, atol=1e-6)


def test_call_reads_the_given_parameters_and_no_others():
    net = nn.MLP([3, 4, 2], generator())
    x = torch.randn(6, 3, generator=generator(1))
    other = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    assert nn.call(net, other, x).abs().sum() == 0 and net(x).abs().sum() > 0


@pytest.mark.parametrize("change", ["missing", "misspelt"])
def test_call_refuses_names_that_do_not_match(change):
    net = nn.MLP([3, 4, 2], generator())
    params = {name: p.detach() for name, p in net.named_parameters()}
    value = params.pop("layers.1.bias")
    if change == "misspelt":
        params["layers.1.bais"] = value
    with pytest.raises(RuntimeError, match=r"layers\.1\.bais|layers\.1\.bias"):
        nn.call(net, params, torch.zeros(2, 3))


def test_deterministic_policy_is_bounded_per_dimension():
    policy = nn.DeterministicPolicy(3, (2.0, 0.5), (8,), generator())
    obs = 100 * torch.randn(50, 3, generator=generator(1))
    action = policy(obs)
    assert action.shape == (50, 2)
    assert (action.abs().amax(0) <= torch.tensor([2.0, 0.5])).all() and action[:, 0].abs().max() > 1.0
    assert torch.allclose(action, torch.tanh(_logits(policy, obs)) * torch.tensor([2.0, 0.5]), atol=1e-6)


def _logits(policy, obs):
    first, last = policy.net.layers
    return torch.relu(obs @ first.weight + first.bias) @ last.weight + last.bias


def test_twin_critic_holds_two_independent_values():
    critic = nn.TwinCritic(3, 2, (8,), generator())
    obs, action = torch.randn(5, 3, generator=generator(1)), torch.randn(5, 2, generator=generator(2))
    q1, q2 = critic(obs, action)
    assert q1.shape == q2.shape == (5,) and not torch.allclose(q1, q2)
    with torch.no_grad():
        for p in critic.q2.parameters():
            p.zero_()
    again, zero = critic(obs, action)
    assert torch.equal(again, q1) and zero.abs().sum() == 0
    x = torch.cat((obs, action), -1)
    assert torch.allclose(q1, critic.q1(x)[:, 0])
