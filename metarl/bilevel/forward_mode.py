"""ForwardMode: the unrolled hypergradient by tangents carried along, without a tape."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metarl.bilevel.autodiff import detach, norm, ravel, unravel
from metarl.bilevel.state import TrainState
from metarl.bilevel.unrolled import Unrolled
from metarl.bilevel.update import Batches, Estimate, Update
from metarl.errors import ConfigError


@dataclass(frozen=True)
class ForwardMode(Unrolled):
    """The same gradient as `Unrolled`, by forward-mode differentiation (Franceschi et al. 2017, arXiv:1703.01785).

    For every meta-parameter `phi_j` the tangents `Z_k = d theta_k / d phi_j` go along with the steps::

        Z_{k+1} = A_k Z_k + B_k,    estimate_j = dF/dtheta Z_steps + dF/dphi_j                       (its Eq. 9)

    Exact. Memory does not grow with `steps`; time grows with the number of meta-parameters: right for a handful of
    them (learning rates, penalties, a temperature) and a long roll. `torch.no_grad` in a loss does not stop tangents:
    write `metarl.stop_gradient`.

    Attributes:
        chunk: meta-parameters whose tangents are carried at once; all by default.
    """

    chunk: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backend != "native":
            raise ConfigError(f"ForwardMode: backend {self.backend!r} has no forward mode; use native")
        if self.chunk is not None and self.chunk < 1:
            raise ConfigError(f"ForwardMode: chunk must be at least 1, not {self.chunk}")

    def __call__(self, update: Update, state: TrainState, batches: Batches) -> Estimate:
        objective = self.objective(update, state, batches)
        point = state.tree[update.params]
        vector = ravel(point)

        def along(direction: Tensor) -> Tensor:
            return torch.func.jvp(lambda x: objective(unravel(x, point))[0], (vector,), (direction,))[1]

        basis = torch.eye(vector.numel(), dtype=vector.dtype, device=vector.device)
        grads = unravel(torch.vmap(along, chunk_size=self.chunk)(basis), point)
        loss, (metrics, inner) = detach(objective(point))
        return Estimate(loss, grads, {**metrics, "hypergradient_norm": norm(grads)}, inner)
