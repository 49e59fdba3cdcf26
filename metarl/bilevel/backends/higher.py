"""Virtual steps with facebookresearch/higher's differentiable optimisers (eager)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import higher
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from metarl.bilevel.autodiff import is_tracked
from metarl.bilevel.direct import Direct
from metarl.bilevel.optimizers import Optimizer
from metarl.bilevel.state import TrainState
from metarl.bilevel.torch_optim import export_state
from metarl.bilevel.update import Batches, OptimizerLike, Tree, Update
from metarl.errors import ConfigError

_REFUSED = {
    "adam": "higher 0.2.1 adds eps in another place than torch.optim.Adam (8.5e-7 apart at lr 0.05)",
    "adamw": "higher 0.2.1 has no AdamW",
}
_TAKEN = ("sgd", "momentum", "rmsprop")


def roll(
    inners: tuple[Update, ...],
    optimizers: Mapping[str, OptimizerLike],
    state: TrainState,
    batches: list[Batches],
) -> Tree:
    """See `metarl.bilevel.backends.roll`. One inner Update with a plain gradient; `sgd`, `momentum` or `rmsprop`.

    Raises:
        ConfigError: for what higher cannot do, or computes wrongly.
    """
    if len(inners) != 1 or not isinstance(inners[0].gradient, Direct):
        raise ConfigError("backend 'higher' rolls one inner Update with a plain gradient; use backend 'native'")
    inner, group = inners[0], inners[0].params
    given = optimizers[group]
    optimizer = given(state.tree) if callable(given) else given
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(f"backend 'higher' takes metarl's {', '.join(_TAKEN)}, not a torchopt optimiser")
    if optimizer.name not in _TAKEN:
        reason = _REFUSED.get(optimizer.name, f"it takes {', '.join(_TAKEN)} only; use backend 'native'")
        raise ConfigError(f"backend 'higher' refuses {optimizer.name}: {reason}")
    lr = optimizer.hparams["lr"]
    learned = [name for name, value in optimizer.hparams.items() if name != "lr" and isinstance(value, Tensor)]
    if learned or any(is_tracked(leaf) for leaf in tree_leaves(state.opt[group]) if isinstance(leaf, Tensor)):
        what = f"a learned {learned[0]}" if learned else "moments that are differentiated"
        raise ConfigError(f"backend 'higher' takes {what} of inner Update {inner.name!r} as constants; use 'native'")
    start = state.tree[group]
    with torch.enable_grad():
        holder = _Holder(start)
        live = export_state(optimizer, dict(zip(start, holder.parameters(), strict=True)), state.opt[group])
        override = {"lr": [lr]} if isinstance(lr, Tensor) else None
        with warnings.catch_warnings():
            # It doubts its RMSprop where a second moment is zero; elsewhere the exactness table finds it right.
            warnings.filterwarnings("ignore", "Differentiable RMSprop")
            differentiable = higher.get_diff_optim(
                live, list(holder.parameters()), fmodel=None, override=override, track_higher_grads=True
            )
        params = list(start.values())
        params = [p.view_as(p) if p.requires_grad else p.detach().requires_grad_() for p in params]
        for step_batches in batches:
            tree = {**state.tree, group: dict(zip(start, params, strict=True))}
            loss, _ = inner.evaluate(tree, step_batches)
            params = list(differentiable.step(loss, params=params))
    return {**state.tree, group: dict(zip(start, params, strict=True))}


class _Holder(nn.Module):
    """The group as a module's parameters, which is what higher wants to see."""

    def __init__(self, params: dict[str, Tensor]) -> None:
        super().__init__()
        self.values = nn.ParameterList(nn.Parameter(value.detach().clone()) for value in params.values())
