"""The compiler's pass: the same numbers with fewer multiplications."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from metarl.bilevel.compiling import Reassociate


def _graph(fn, *shapes):
    x = [torch.randn(*shape, dtype=torch.float64) for shape in shapes]
    module = make_fx(fn, tracing_mode="fake")(*x)
    # make_fx meets `.T` as aten.t; the compiler has it as a permutation.
    for node in module.graph.nodes:
        if node.target is torch.ops.aten.t.default:
            node.target, node.args = torch.ops.aten.permute.default, (node.args[0], [1, 0])
    return module, x


def _sizes(module):
    return [tuple(n.meta["val"].shape) for n in module.graph.nodes if n.target is torch.ops.aten.mm.default]


@pytest.mark.parametrize(
    ("fn", "shapes"),
    [
        (lambda a, b, c: a @ (b @ c), ((8, 8), (8, 2), (2, 8))),
        (lambda a, b, c: a @ (-(b @ c) * 0.1).T, ((8, 8), (8, 2), (2, 8))),
        (lambda a, b, c: a @ ((b @ c).T * 3 * 2), ((8, 9), (7, 2), (2, 9))),
    ],
    ids=["plain", "scaled and transposed", "oblong"],
)
def test_a_thin_product_is_taken_apart(fn, shapes):
    module, x = _graph(fn, *shapes)
    expected = fn(*x)
    assert (8, 2) not in _sizes(module)
    Reassociate()(module.graph)
    module.recompile()
    assert (8, 2) in _sizes(module)
    torch.testing.assert_close(module(*x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("order", [[0, 1], [-2, -1], [1, 0], [-1, -2]])
def test_permutations_that_change_nothing_are_seen_as_such(order):
    def fn(a, b, c):
        return a @ torch.permute(b @ c, order)

    module, x = _graph(fn, (8, 8), (8, 2), (2, 8))
    Reassociate()(module.graph)
    module.recompile()
    assert (8, 2) in _sizes(module)
    torch.testing.assert_close(module(*x), fn(*x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("fn", "shapes"),
    [
        (lambda a, b, c: a @ (b @ c), ((8, 8), (8, 8), (8, 8))),
        (lambda a, b, c: (a @ (d := b @ c)) + d, ((8, 8), (8, 2), (2, 8))),
        (lambda a, b, c: a @ (b @ c).relu(), ((8, 8), (8, 2), (2, 8))),
    ],
    ids=["nothing to gain", "needed elsewhere", "not linear"],
)
def test_others_stay(fn, shapes):
    module, _ = _graph(fn, *shapes)
    before = str(module.graph)
    Reassociate()(module.graph)
    assert str(module.graph) == before
