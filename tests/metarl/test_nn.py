"""Networks as templates: layout, initial distribution, strict names; and the densities of Gaussian policies."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn as torch_nn
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

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


def normal(*shape, seed=1):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


@pytest.mark.parametrize("several", [1, 4])
def test_twin_critic_values_several_actions_of_a_state_as_one_by_one(several):
    critic = nn.TwinCritic(3, 2, (8, 8), generator()).double()
    obs, actions = normal(5, 3), normal(5, several, 2, seed=2)
    q1, q2 = critic(obs, actions)
    assert q1.shape == q2.shape == (5, several)
    one = [critic(obs, actions[:, i]) for i in range(several)]
    for values, i in ((q1, 0), (q2, 1)):
        assert torch.allclose(values, torch.stack([q[i] for q in one], 1), rtol=1e-12, atol=1e-14)
    last_first = actions.transpose(0, 1).contiguous().transpose(0, 1)  # another layout in memory
    assert torch.equal(critic(obs, last_first)[0], q1)


@pytest.mark.parametrize("initialization", ["default", "orthogonal"])
def test_a_single_critic_is_the_first_of_two_from_one_generator(initialization):
    one = nn.Critic(3, 2, (8, 8), generator(), initialization).double()
    two = nn.TwinCritic(3, 2, (8, 8), generator(), initialization).double()
    assert [*dict(one.named_parameters())] == [k.replace("q1.", "q.") for k, _ in two.named_parameters() if "q1." in k]
    for shape in ((5, 2), (5, 4, 2)):
        obs, action = normal(5, 3), normal(*shape, seed=2)
        q = one(obs, action)
        assert q.shape == shape[:-1] and torch.equal(q, two(obs, action)[0])
        assert torch.equal(nn.call(one, dict(one.named_parameters()), obs, action), q)


def test_a_single_critic_reads_state_and_action():
    critic, obs, action = nn.Critic(3, 2, (8,), generator()), normal(5, 3).float(), normal(5, 2, seed=2).float()
    assert torch.allclose(critic(obs, action), critic.q(torch.cat((obs, action), -1))[:, 0])
    last_first = torch.stack((action, -action)).transpose(0, 1)  # another layout in memory
    assert torch.equal(critic(obs, last_first), critic(obs, last_first.contiguous()))


def test_part_takes_what_lies_under_a_prefix():
    critic = nn.TwinCritic(3, 2, (8,), generator())
    params = dict(critic.named_parameters())
    q1 = nn.part(params, "q1.")
    assert q1 == dict(critic.q1.named_parameters()) and all(q1[k] is params[f"q1.{k}"] for k in q1)
    assert nn.part({"a.a.w": 1, "b.a.w": 2, "a": 3}, "a.") == {"a.w": 1}
    assert nn.part(params, "q3.") == {}


@pytest.mark.parametrize("hidden", [(4,), (4, 6), (4, 6, 5)])
def test_features_are_the_last_hidden_layers_outputs(hidden):
    net = nn.MLP([3, *hidden, 2], generator(), "tanh")
    params = {k: torch.randn(p.shape, generator=generator(7)) for k, p in net.named_parameters()}
    x = torch.randn(6, 3, generator=generator(1))
    found = nn.features(net, params, x)
    assert found.shape == (6, hidden[-1])
    last = len(hidden)
    whole = found @ params[f"layers.{last}.weight"] + params[f"layers.{last}.bias"]
    assert torch.allclose(whole, nn.call(net, params, x), atol=1e-6)
    assert not torch.allclose(whole, net(x), atol=1e-2)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9])
def test_dropout_masks_drop_at_their_rate_and_keep_the_mean(rate):
    n, widths = 20_000, (3, 5)
    noise = torch.rand((n, 8), generator=generator(), dtype=torch.float64) * 2 - 1
    noise[0] = -1.0  # the lowest that there is
    masks = nn.dropout_masks(noise, rate, widths)
    assert [m.shape for m in masks] == [(n, 3), (n, 5)]
    both = torch.cat(masks, -1)
    assert both.dtype == torch.float64
    assert set(both.unique().tolist()) == ({0.0, 1 / (1 - rate)} if rate else {1.0})
    spread = math.sqrt(rate * (1 - rate))
    assert ((both == 0).double().mean(0) - rate).abs().max() <= 5 * spread / math.sqrt(n)
    assert (both.mean(0) - 1).abs().max() <= 5 * spread / (1 - rate) / math.sqrt(n)
    if rate:
        together = torch.corrcoef((both == 0).double().T) - torch.eye(8, dtype=torch.float64)
        assert together.abs().max() < 5 / math.sqrt(n)  # each unit by itself


def test_masks_multiply_every_hidden_layers_outputs():
    net = nn.MLP([3, 4, 5, 2], generator(), "tanh", "tanh").double()
    x, (first, second) = normal(6, 3), nn.dropout_masks(torch.rand(6, 9, dtype=torch.float64) * 2 - 1, 0.5, (4, 5))
    h = torch.tanh(net.layers[0](x)) * first
    h = torch.tanh(net.layers[1](h)) * second
    assert torch.allclose(net(x, (first, second)), torch.tanh(net.layers[2](h)), rtol=1e-12)
    ones = torch.ones(6, 4, dtype=torch.float64), torch.ones(6, 5, dtype=torch.float64)
    assert torch.equal(net(x, ones), net(x))
    nothing = [torch.zeros_like(m) for m in ones]
    assert torch.allclose(net(x, nothing), torch.tanh(net.layers[2].bias).expand(6, 2), rtol=1e-12)


@pytest.mark.parametrize(("rows", "columns"), [(7, 4), (4, 7), (5, 5)])
def test_orthogonal_weights_have_orthogonal_rows_or_columns(rows, columns):
    layer = nn.Linear(rows, columns, generator(), "orthogonal")
    weight = layer.weight.detach().double()
    assert weight.shape == (rows, columns) and layer.bias.abs().max() == 0
    gram = weight @ weight.T if rows <= columns else weight.T @ weight
    assert torch.allclose(gram, 2 * torch.eye(min(rows, columns), dtype=torch.float64), atol=1e-5)
    again, other = (nn.Linear(rows, columns, generator(seed), "orthogonal").weight for seed in (0, 1))
    assert torch.equal(again, layer.weight) and not torch.allclose(other, layer.weight, atol=1e-2)


def test_initialization_reaches_every_layer_of_every_network():
    networks = {
        "mlp": lambda start: nn.MLP([3, 6, 5, 2], generator(), initialization=start),
        "tanh": lambda start: nn.TanhGaussianPolicy(3, 2, (6, 5), generator(), initialization=start),
        "gaussian": lambda start: nn.GaussianPolicy(3, 2, (6, 5), generator(), initialization=start),
        "critic": lambda start: nn.TwinCritic(3, 2, (6, 5), generator(), start),
    }
    for make in networks.values():
        for start in ("orthogonal", "default"):
            named = dict(make(start).named_parameters())
            for name, p in named.items():
                if name.endswith("weight"):
                    gram = p.T @ p if p.shape[0] > p.shape[1] else p @ p.T
                    orthogonal = torch.allclose(gram, 2 * torch.eye(len(gram)), atol=1e-5)
                    assert orthogonal == (start == "orthogonal"), name
                elif name.endswith("bias"):
                    assert (p.abs().max() == 0) == (start == "orthogonal"), name


@pytest.mark.parametrize("bounds", [(-5.0, 2.0), (-1.0, 0.5)])
def test_tanh_gaussian_policy_clips_its_deviation(bounds):
    policy = nn.TanhGaussianPolicy(3, 2, (8,), generator(), bounds).double()
    obs = 40 * normal(50, 3)
    mean, log_std = policy(obs)
    raw = policy.net(obs)
    assert mean.shape == log_std.shape == (50, 2) and torch.equal(mean, raw[:, :2])
    assert torch.equal(log_std, raw[:, 2:].clamp(*bounds))
    outside = (raw[:, 2:] < bounds[0]) | (raw[:, 2:] > bounds[1])
    assert 0 < outside.sum() < outside.numel()
    assert (nn.TanhGaussianPolicy(3, 2, (8,), generator()).bounds) == (-5.0, 2.0)


def test_gaussian_policy_has_one_deviation_for_all_states():
    policy = nn.GaussianPolicy(3, 2, (8, 4), generator()).double()
    obs = 40 * normal(50, 3)
    params = {k: p.detach() for k, p in policy.named_parameters()}
    mean, log_std = nn.call(policy, params, obs)
    assert mean.shape == (50, 2) and torch.equal(log_std, torch.zeros(2, dtype=torch.float64))
    assert mean.abs().max() <= 1
    bare = nn.call(nn.MLP([3, 8, 4, 2], generator()).double(), nn.part(params, "net."), obs)
    assert torch.allclose(mean, torch.tanh(bare), rtol=1e-12)
    far = {**params, "log_std": torch.tensor([-9.0, 9.0], dtype=torch.float64)}
    assert nn.call(policy, far, obs)[1].tolist() == [-5.0, 2.0]
    masks = nn.dropout_masks(torch.rand(50, 12, dtype=torch.float64) * 2 - 1, 0.5, (8, 4))
    dropped, same = nn.call(policy, params, obs, masks)
    assert torch.equal(dropped, policy.net(obs, masks)) and torch.equal(same, log_std)
    assert not torch.allclose(dropped, mean)


# -- densities -----------------------------------------------------------------------------------------------


def theirs(mean, log_std):
    """torch.distributions' Gaussian squashed by tanh, over the last dimension as one."""
    base = Normal(mean, log_std.exp())
    return Independent(TransformedDistribution(base, [TanhTransform(cache_size=1)]), 1)


def derivatives(fn, *inputs):
    """A sum's first derivatives by every input, and those of a weighed sum of these."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    first = torch.autograd.grad(fn(*inputs).sum(), inputs, create_graph=True)
    mixed = sum((torch.linspace(1, 2, g.numel(), dtype=g.dtype).view_as(g) * g).sum() for g in first)
    second = torch.autograd.grad(mixed, inputs, allow_unused=True)
    return [*first, *(torch.zeros_like(x) if g is None else g for x, g in zip(inputs, second, strict=True))]


def agree(a, b, rtol=1e-9):
    return all(torch.allclose(x, y, rtol=rtol, atol=1e-10) for x, y in zip(a, b, strict=True))


POINT = normal(7, 3, seed=2), 0.5 * normal(7, 3, seed=3) - 0.5


def test_normal_log_prob_is_torchs_with_its_derivatives():
    x = normal(7, 3)

    def expected(x, mean, log_std):
        return Independent(Normal(mean, log_std.exp()), 1).log_prob(x)

    assert nn.normal_log_prob(x, *POINT).shape == (7,)
    assert agree([nn.normal_log_prob(x, *POINT)], [expected(x, *POINT)])
    assert agree(derivatives(nn.normal_log_prob, x, *POINT), derivatives(expected, x, *POINT))
    shared = POINT[1][0]  # one deviation for all rows
    assert agree([nn.normal_log_prob(x, POINT[0], shared)], [expected(x, POINT[0], shared.expand(7, 3))])


def test_tanh_normal_sample_is_torchs_with_its_derivatives():
    noise = normal(7, 3)

    def drawn(mean, log_std, noise):
        pi = theirs(mean, log_std)
        base = pi.base_dist.base_dist
        action = pi.base_dist.transforms[0](base.loc + base.scale * noise)
        return action, pi.log_prob(action)

    action, log_prob = nn.tanh_normal_sample(*POINT, noise)
    assert action.shape == (7, 3) and log_prob.shape == (7,)
    assert agree([action, log_prob], drawn(*POINT, noise))
    for i in range(2):
        ours = derivatives(lambda *args, i=i: nn.tanh_normal_sample(*args)[i], *POINT, noise)
        assert agree(ours, derivatives(lambda *args, i=i: drawn(*args)[i], *POINT, noise))


def test_tanh_normal_log_prob_is_torchs_with_its_derivatives():
    action = torch.tanh(normal(7, 3))

    def expected(action, mean, log_std):
        return theirs(mean, log_std).log_prob(action)

    assert agree([nn.tanh_normal_log_prob(action, *POINT)], [expected(action, *POINT)])
    assert agree(derivatives(nn.tanh_normal_log_prob, action, *POINT), derivatives(expected, action, *POINT), 1e-7)
    drawn, log_prob = nn.tanh_normal_sample(*POINT, normal(7, 3))
    assert agree([nn.tanh_normal_log_prob(drawn, *POINT)], [log_prob])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("u", [-30.0, -12.0, 0.0, 12.0, 30.0])
def test_saturated_actions_have_finite_densities_and_derivatives(u, dtype):
    """1 - tanh(u)^2 is 0 in either precision at 30, and its logarithm is 2 log 2 - 2 |u|."""
    mean, log_std = torch.full((2, 3), u, dtype=dtype), torch.full((2, 3), -1.0, dtype=dtype)
    noise = torch.zeros(2, 3, dtype=dtype)
    action, log_prob = nn.tanh_normal_sample(mean, log_std, noise)
    slope = 0.0 if u == 0 else 2 * math.log(2) - 2 * abs(u) - 2 * math.log1p(math.exp(-2 * abs(u)))
    assert torch.allclose(log_prob, torch.full_like(log_prob, 3 * (1 - 0.5 * math.log(2 * math.pi) - slope)))
    assert (action.abs() <= 1).all()
    found = derivatives(lambda *args: nn.tanh_normal_sample(*args)[1], mean, log_std, noise)
    assert all(g.isfinite().all() for g in found)
    assert torch.allclose(found[0], torch.full_like(found[0], 2 * math.tanh(u)))  # d/du of -log(1 - tanh(u)^2)
    given = nn.tanh_normal_log_prob(action, mean, log_std)
    assert given.isfinite().all()
    assert all(g.isfinite().all() for g in derivatives(nn.tanh_normal_log_prob, action, mean, log_std))


@pytest.mark.parametrize("edge", [-1.0, 1.0])
def test_actions_on_the_bounds_are_brought_inside(edge):
    mean, log_std = torch.zeros(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    at = nn.tanh_normal_log_prob(torch.full_like(mean, edge), mean, log_std)
    near = nn.tanh_normal_log_prob(torch.full_like(mean, edge * (1 - 1e-6)), mean, log_std)
    inside = nn.tanh_normal_log_prob(torch.full_like(mean, edge * (1 - 1e-3)), mean, log_std)
    assert torch.equal(at, near) and at.isfinite().all() and (at < inside - 1).all()
    expected = Normal(0.0, 1.0).log_prob(torch.tensor(math.atanh(1 - 1e-6), dtype=torch.float64))
    assert abs(at - (expected - math.log(1 - (1 - 1e-6) ** 2))) < 1e-9


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (0.3, -0.5), (-1.0, -1.0), (0.5, -2.0)])
def test_the_density_of_actions_integrates_to_one(mean, log_std):
    nodes, weights = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(600))
    shape = len(nodes), 1
    density = nn.tanh_normal_log_prob(
        nodes[:, None],
        torch.full(shape, mean, dtype=torch.float64),
        torch.full(shape, log_std, dtype=torch.float64),
    ).exp()
    assert abs((weights * density).sum() - 1) < 1e-6


# -- stacks of seeds -----------------------------------------------------------------------------------------

MODULES = {
    "mlp": (lambda seed: nn.MLP([3, 8, 8, 2], generator(seed)), [(5, 3)]),
    "deterministic": (lambda seed: nn.DeterministicPolicy(3, (1.0, 0.5), (8,), generator(seed)), [(5, 3)]),
    "tanh": (lambda seed: nn.TanhGaussianPolicy(3, 2, (8, 8), generator(seed), (-0.1, 0.1)), [(5, 3)]),
    "gaussian": (lambda seed: nn.GaussianPolicy(3, 2, (8, 8), generator(seed)), [(5, 3)]),
    "critic": (lambda seed: nn.TwinCritic(3, 2, (8,), generator(seed)), [(5, 3), (5, 2)]),
    "critic-of-several": (lambda seed: nn.TwinCritic(3, 2, (8,), generator(seed)), [(5, 3), (5, 4, 2)]),
}


def equal_to_turns(fn, *stacks, in_dims=0):
    """Whether `vmap(fn)` gives what `fn` gives for each of a stack in turn."""
    together = torch.vmap(fn, in_dims)(*stacks)
    axes = in_dims if isinstance(in_dims, tuple) else (in_dims,) * len(stacks)
    pick = torch.utils._pytree.tree_map

    def of(i):
        return [x if d is None else pick(lambda t, d=d: t.select(d, i), x) for x, d in zip(stacks, axes, strict=True)]

    for i in range(3):
        one = fn(*of(i))
        pairs = zip(one, together, strict=True) if isinstance(one, tuple) else [(one, together)]
        assert all(torch.allclose(a, b[i], rtol=1e-10, atol=1e-13) for a, b in pairs)


@pytest.mark.parametrize("name", MODULES)
def test_modules_in_a_stack_equal_each_in_turn(name):
    make, shapes = MODULES[name]
    nets = [make(seed).double() for seed in range(3)]
    params = {k: torch.stack([dict(n.named_parameters())[k].detach() for n in nets]) for k in nets[0].state_dict()}
    args = [normal(3, *shape, seed=i) for i, shape in enumerate(shapes)]

    def apply(params, *args):
        return nn.call(nets[0], params, *args)

    equal_to_turns(apply, params, *args)
    equal_to_turns(apply, params, *[x[0] for x in args], in_dims=(0, *[None] * len(args)))  # data in common
    moved = [x.movedim(0, 1).contiguous() for x in args]
    equal_to_turns(apply, params, *moved, in_dims=(0, *[1] * len(args)))

    def slope(params, *args):
        def total(params):
            out = apply(params, *args)
            return sum(x.square().sum() for x in out) if isinstance(out, tuple) else out.square().sum()

        return tuple(torch.func.grad(total)(params).values())

    equal_to_turns(slope, params, *args)


def test_functions_in_a_stack_equal_each_in_turn():
    x, mean, log_std = normal(3, 7, 2, seed=1), normal(3, 7, 2, seed=2), 0.3 * normal(3, 7, 2, seed=3)
    equal_to_turns(nn.normal_log_prob, x, mean, log_std)
    equal_to_turns(nn.normal_log_prob, x, mean, log_std[:, 0])
    equal_to_turns(nn.tanh_normal_sample, mean, log_std, x)
    equal_to_turns(nn.tanh_normal_log_prob, torch.tanh(x), mean, log_std)
    several = normal(3, 7, 4, 2, seed=4)
    equal_to_turns(lambda m, s, e: nn.tanh_normal_sample(m[:, None], s[:, None], e), mean, log_std, several)
    noise = torch.rand((3, 7, 9), generator=generator(5), dtype=torch.float64) * 2 - 1
    equal_to_turns(lambda n: nn.dropout_masks(n, 0.3, (4, 5)), noise)
    nets = [nn.MLP([2, 4, 5, 2], generator(seed)).double() for seed in range(3)]
    params = {k: torch.stack([dict(n.named_parameters())[k].detach() for n in nets]) for k in nets[0].state_dict()}
    equal_to_turns(lambda p, x: nn.features(nets[0], p, x), params, x)
    equal_to_turns(lambda p, x, n: nn.call(nets[0], p, x, nn.dropout_masks(n, 0.3, (4, 5))), params, x, noise)
