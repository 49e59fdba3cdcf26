"""Networks as templates: the parameters that a step uses come from the tree, through `call`.

Weights are stored [in, out], so that a stack of seeds [seed, in, out] is one batched matrix product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metarl.bilevel.autodiff import Params
from metarl.products import affine

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": nn.functional.softplus,
    "silu": nn.functional.silu,
    "identity": lambda x: x,
}
Initialization = Literal["default", "orthogonal", "xavier"]
_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def call(module: nn.Module, params: Params, *args: Any) -> Any:
    """`module(*args)` with `params` in the place of its parameters; every name must match."""
    return functional_call(module, params, args, strict=True, tie_weights=False)


def part(params: Params, prefix: str) -> Params:
    """The parameters whose names begin with `prefix`, without it: those of a module inside a module."""
    return {name.removeprefix(prefix): p for name, p in params.items() if name.startswith(prefix)}


class Linear(nn.Module):
    """`x W + b`, x [..., in], W [in, out].

    Initialised as PyTorch does, U(-1/sqrt(in), 1/sqrt(in)); or `orthogonal`: a weight with orthogonal rows or columns
    of norm sqrt(2), and no bias (jaxrl's, and so IQL's); or `xavier`: U(-b, b) with b = sqrt(6 / (in + out)) and no
    bias (Glorot & Bengio 2010).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        generator: torch.Generator,
        initialization: Initialization = "default",
    ) -> None:
        super().__init__()
        weight, bias = torch.empty(in_features, out_features), torch.zeros(out_features)
        if initialization == "orthogonal":
            nn.init.orthogonal_(weight, math.sqrt(2), generator)
        elif initialization == "xavier":
            nn.init.xavier_uniform_(weight, generator=generator)
        else:
            bound = 1 / math.sqrt(in_features)
            weight.uniform_(-bound, bound, generator=generator)
            bias.uniform_(-bound, bound, generator=generator)
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return affine(x, self.weight, self.bias) if x.dim() == 2 else x @ self.weight + self.bias


class MLP(nn.Module):
    """Fully connected layers: [..., sizes[0]] to [..., sizes[-1]].

    Args:
        sizes: widths, input and output included.
        generator: where the initial weights come from.
        activation: between layers, a name of `ACTIVATIONS`.
        output: after the last layer.
        initialization: of every layer, as in `Linear`.
        layer_norm: normalise each hidden layer (Ba et al. 2016, arXiv:1607.06450) before its activation.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        generator: torch.Generator,
        activation: str = "relu",
        output: str = "identity",
        initialization: Initialization = "default",
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Linear(n_in, n_out, generator, initialization) for n_in, n_out in pairwise(sizes))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in sizes[1:-1] if layer_norm)
        self.activation, self.output = ACTIVATIONS[activation], ACTIVATIONS[output]

    def forward(self, x: Tensor, masks: Sequence[Tensor] = ()) -> Tensor:
        """`masks`: factors of each hidden layer's outputs [..., width] (see `dropout_masks`); none where empty."""
        *hidden, last = self.layers
        for i, layer in enumerate(hidden):
            x = layer(x)
            if self.norms:
                x = self.norms[i](x)
            x = self.activation(x)
            if masks:
                x = x * masks[i]
        return self.output(last(x))


def features(net: MLP, params: Params, x: Tensor) -> Tensor:
    """The outputs of the last hidden layer."""
    for i, layer in enumerate([*net.layers][:-1]):
        x = call(layer, part(params, f"layers.{i}."), x)
        if net.norms:
            x = call(net.norms[i], part(params, f"norms.{i}."), x)
        x = net.activation(x)
    return x


def dropout_masks(noise: Tensor, rate: float, widths: Sequence[int]) -> tuple[Tensor, ...]:
    """Factors that drop each unit with probability `rate` and scale the others by 1 / (1 - rate).

    Args:
        noise: uniform on [-1, 1], [..., sum(widths)].
        rate: in [0, 1).
        widths: of the hidden layers.
    """
    kept = (noise >= 2 * rate - 1).to(noise.dtype) / (1 - rate)
    return kept.split(tuple(widths), dim=-1)


class DeterministicPolicy(nn.Module):
    """`max_action * tanh(MLP(obs))`: [B, obs_dim] to [B, action_dim]."""

    def __init__(
        self,
        obs_dim: int,
        max_action: Sequence[float],
        hidden: Sequence[int],
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.net = MLP([obs_dim, *hidden, len(max_action)], generator, output="tanh")
        self.max_action = tuple(max_action)

    def forward(self, obs: Tensor) -> Tensor:
        return self.net(obs) * obs.new_tensor(self.max_action)


class TanhGaussianPolicy(nn.Module):
    """Mean and logarithm of the standard deviation of u, a Gaussian whose tanh is the action in units of its bounds.

    obs [B, obs_dim] to two [B, action_dim]; sampled by `tanh_normal_sample`, judged by `tanh_normal_log_prob`.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        hidden: Sequence[int],
        generator: torch.Generator,
        log_std: tuple[float, float] = (-5.0, 2.0),
        initialization: Initialization = "default",
    ) -> None:
        super().__init__()
        self.net = MLP([obs_dim, *hidden, 2 * action_dim], generator, initialization=initialization)
        self.bounds = log_std

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.net(obs).chunk(2, dim=-1)
        return mean, log_std.clamp(*self.bounds)


class GaussianPolicy(nn.Module):
    """`tanh(MLP(obs))` as the mean of a Gaussian over actions in units of their bounds; one deviation for all states.

    obs [B, obs_dim] to the mean [B, action_dim] and the logarithm of the standard deviation [action_dim]. Where not
    `squashed`, the mean is `MLP(obs)`.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        hidden: Sequence[int],
        generator: torch.Generator,
        log_std: tuple[float, float] = (-5.0, 2.0),
        initialization: Initialization = "default",
        squashed: bool = True,
    ) -> None:
        super().__init__()
        sizes = [obs_dim, *hidden, action_dim]
        output = "tanh" if squashed else "identity"
        self.net = MLP(sizes, generator, output=output, initialization=initialization)
        self.log_std = nn.Parameter(torch.zeros(action_dim))
        self.bounds = log_std

    def forward(self, obs: Tensor, masks: Sequence[Tensor] = ()) -> tuple[Tensor, Tensor]:
        return self.net(obs, masks), self.log_std.clamp(*self.bounds)


def normal_log_prob(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """log N(x; mean, exp(log_std)^2), summed over the last dimension."""
    z = (x - mean) * torch.exp(-log_std)
    return (-0.5 * z.square() - log_std - _HALF_LOG_2PI).sum(-1)


def tanh_normal_sample(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """`a = tanh(mean + std noise)` in (-1, 1) and its log-density, for standard normal noise [..., action_dim].

    log p(a) = sum log N(u; mean, std^2) - log(1 - tanh(u)^2) (SAC, Haarnoja et al. 2018, arXiv:1801.01290, Eq. 21).
    """
    u = mean + torch.exp(log_std) * noise
    log_prob = (-0.5 * noise.square() - log_std - _HALF_LOG_2PI - _log_tanh_slope(u)).sum(-1)
    return torch.tanh(u), log_prob


def tanh_normal_log_prob(action: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """The same log-density of given actions [..., action_dim], which are brought inside +-(1 - 1e-6)."""
    u = torch.atanh(action.clamp(1e-6 - 1, 1 - 1e-6))
    return normal_log_prob(u, mean, log_std) - _log_tanh_slope(u).sum(-1)


def _log_tanh_slope(u: Tensor) -> Tensor:
    """log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2 u)), which stays finite where tanh(u) rounds to 1."""
    return 2 * (math.log(2) - u - nn.functional.softplus(-2 * u))


class Critic(nn.Module):
    """Q(s, a): obs [B, obs_dim], action [B, action_dim] to [B].

    Of several actions a state, [B, N, action_dim], [B, N].
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        hidden: Sequence[int],
        generator: torch.Generator,
        initialization: Initialization = "default",
    ) -> None:
        super().__init__()
        self.q = MLP([obs_dim + action_dim, *hidden, 1], generator, initialization=initialization)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        shape = action.shape[:-1]
        if action.dim() == 3:
            obs = obs[:, None].expand(*shape, -1)
        return self.q(torch.cat((obs, action), dim=-1).view(shape.numel(), -1)).view(shape)


class TwinCritic(nn.Module):
    """Two independent Q(s, a): obs [B, obs_dim], action [B, action_dim] to (Q1 [B], Q2 [B]).

    Of several actions a state, [B, N, action_dim], both are [B, N].
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        hidden: Sequence[int],
        generator: torch.Generator,
        initialization: Initialization = "default",
    ) -> None:
        super().__init__()
        sizes = [obs_dim + action_dim, *hidden, 1]
        self.q1 = MLP(sizes, generator, initialization=initialization)
        self.q2 = MLP(sizes, generator, initialization=initialization)

    def forward(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        shape = action.shape[:-1]
        if action.dim() == 3:
            obs = obs[:, None].expand(*shape, -1)
        x = torch.cat((obs, action), dim=-1).view(shape.numel(), -1)
        return self.q1(x).view(shape), self.q2(x).view(shape)


class TwinValue(nn.Module):
    """Two independent V(s): obs [B, obs_dim] to (V1 [B], V2 [B])."""

    def __init__(
        self, obs_dim: int, hidden: Sequence[int], generator: torch.Generator, layer_norm: bool = False
    ) -> None:
        super().__init__()
        sizes = [obs_dim, *hidden, 1]
        self.v1 = MLP(sizes, generator, layer_norm=layer_norm)
        self.v2 = MLP(sizes, generator, layer_norm=layer_norm)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        return self.v1(obs).squeeze(-1), self.v2(obs).squeeze(-1)
