"""Data of the problems: scikit-learn's bundled digits (1,797 images of 8 x 8), and wrong labels for them."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from metarl import Batch, Params, nn
from metarl.errors import ConfigError


def extra(module: str) -> Any:
    """A module of the extra `problems`; a ConfigError says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = {"sklearn": "scikit-learn"}.get(module.partition(".")[0], module.partition(".")[0])
        raise ConfigError(f"this needs {package}: pip install 'metarl[problems]'") from error


def digits(sizes: tuple[int, ...], generator: torch.Generator) -> list[Batch]:
    """Disjoint random parts of the digits, x [n, 64] in [0, 1] and y [n]; the last part is all that is left."""
    x, y = extra("sklearn.datasets").load_digits(return_X_y=True)
    order = torch.randperm(len(x), generator=generator)
    images, labels = torch.from_numpy(x / 16).float(), torch.from_numpy(y)
    parts = order.split([*sizes, len(x) - sum(sizes)])
    return [{"x": images[part], "y": labels[part]} for part in parts]


def corrupt(y: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Labels [n] of which a share is wrong, uniformly among the nine others; and which they are."""
    wrong = torch.zeros(len(y), dtype=torch.bool)
    wrong[torch.randperm(len(y), generator=generator)[: round(share * len(y))]] = True
    other = (y + torch.randint(1, 10, y.shape, generator=generator)) % 10
    return torch.where(wrong, other, y), wrong


def losses(net: nn.MLP, params: Params, batch: Batch) -> Tensor:
    """Cross-entropy of every sample, [n]."""
    return cross_entropy(nn.call(net, params, batch["x"]), batch["y"], reduction="none")


def accuracy(net: nn.MLP, params: Params, batch: Batch) -> float:
    """The share of samples whose largest logit is the label's."""
    return float((nn.call(net, params, batch["x"]).argmax(-1) == batch["y"]).float().mean())
