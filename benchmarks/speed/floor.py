"""The contestants `floor` and `floor-onednn`: a step's matrix products and nothing else, each repeated by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.products import Product, mflop_per_step, products
from benchmarks.speed.worker import Run

LEAST = 8  # sizes below are left to torch.mm: oneDNN gains nothing there


def prepare(options: Mapping[str, Any]) -> tuple[dict[str, Run], dict[str, Any]]:
    """An average gradient step's products by `options["engine"]`, "mm" or "onednn"."""
    torch.set_num_threads(1)
    found = products(options)
    calls = [(_call(product, options["engine"]), product.twice) for product in found]

    def run(steps: int) -> int:
        pairs = -(-steps // 2)
        with torch.no_grad():
            for call, twice in calls:
                for _ in range(pairs * twice):
                    call()
        return 2 * pairs

    facts = {
        "versions": {"torch": torch.__version__},
        "mflop_per_step": mflop_per_step(options),
        "products_in_two_steps": {product.name: product.twice for product in found},
    }
    return {"step": run}, facts


def _call(product: Product, engine: str) -> Callable[[], Any]:
    random = torch.Generator().manual_seed(0)

    def factor(rows: int, columns: int, transposed: bool) -> Tensor:
        stored = torch.randn((columns, rows) if transposed else (rows, columns), generator=random)
        return stored.t() if transposed else stored

    a = factor(product.m, product.k, product.form == "tn")
    b = factor(product.k, product.n, product.form == "nt")
    if engine == "onednn" and min(product.m, product.k, product.n) >= LEAST:
        linear = torch.ops.mkldnn._linear_pointwise.default
        # Laid out beforehand: it would copy a transposed left factor in every call.
        left, right = a.contiguous(), b.t()
        return lambda: linear(left, right, None, "none", [], "")
    out = torch.empty(product.m, product.n)
    return lambda: torch.mm(a, b, out=out)
