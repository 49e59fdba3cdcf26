"""Networks as templates: the parameters that a step uses come from the tree, through `call`.

Weights are stored [in, out], so that a stack of seeds [seed, in, out] is one batched matrix product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

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


def call(module: nn.Module, params: Params, *args: Any) -> Any:
    """`module(*args)` with `params` in the place of its parameters; every name must match."""
    return functional_call(module, params, args, strict=True, tie_weights=False)


class Linear(nn.Module):
    """`x W + b`, x [..., in], W [in, out]; PyTorch's default initialisation, U(-1/sqrt(in), 1/sqrt(in))."""

    def __init__(self, in_features: int, out_features: int, generator: torch.Generator) -> None:
        super().__init__()
        bound = 1 / math.sqrt(in_features)
        weight = torch.empty(in_features, out_features).uniform_(-bound, bound, generator=generator)
        bias = torch.empty(out_features).uniform_(-bound, bound, generator=generator)
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
    """

    def __init__(
        self,
        sizes: Sequence[int],
        generator: torch.Generator,
        activation: str = "relu",
        output: str = "identity",
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Linear(n_in, n_out, generator) for n_in, n_out in pairwise(sizes))
        self.activation, self.output = ACTIVATIONS[activation], ACTIVATIONS[output]

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = self.layers
        for layer in hidden:
            x = self.activation(layer(x))
        return self.output(last(x))


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


class TwinCritic(nn.Module):
    """Two independent Q(s, a): obs [B, obs_dim], action [B, action_dim] to (Q1 [B], Q2 [B])."""

    def __init__(self, obs_dim: int, action_dim: int, hidden: Sequence[int], generator: torch.Generator) -> None:
        super().__init__()
        self.q1 = MLP([obs_dim + action_dim, *hidden, 1], generator)
        self.q2 = MLP([obs_dim + action_dim, *hidden, 1], generator)

    def forward(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat((obs, action), dim=-1)
        return self.q1(x).squeeze(-1), self.q2(x).squeeze(-1)
