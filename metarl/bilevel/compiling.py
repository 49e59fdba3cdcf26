"""torch.compile as metarl wants it: one full graph, and matrix products in the cheaper order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

aten = torch.ops.aten
_MM, _PERMUTE, _MUL = aten.mm.default, aten.permute.default, aten.mul.Tensor


def compiled(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` compiled whole; anything that the compiler cannot trace is an error.

    The C++ wrapper calls the kernels without Python between them: a fifth less time where tensors are small.
    """
    options: dict[str, Any] = {"post_grad_custom_pre_pass": Reassociate(), "cpp_wrapper": True}
    return torch.compile(fn, fullgraph=True, options=options)


class Reassociate(CustomGraphPass):
    """`A (B C)` becomes `(A B) C` where that saves multiplications.

    A hypergradient multiplies the training batch's activations `A` by the outer loss' gradient of a weight matrix,
    itself a product `B C` over the outer batch. With 20 guiding samples and a width of 256 the order matters: one
    product of 256 x 256 x 256 becomes two of 256 x 256 x 20. Only a graph of the whole hypergradient shows it.
    """

    def __call__(self, graph: fx.Graph) -> None:
        for node in list(graph.nodes):
            if node.target is _MM:
                _reassociate(graph, node)
        graph.eliminate_dead_code()

    def uuid(self) -> Any:
        return get_hash_for_files((__file__,))


def _reassociate(graph: fx.Graph, node: fx.Node) -> None:
    a, inner = node.args
    found = _product(inner)
    if found is None or not isinstance(a, fx.Node):
        return
    b, c, transposed, factors = found
    (m, n), k, j = _shape(node), _shape(a)[1], _shape(b)[1]
    if m * k * j + m * j * n >= m * k * n:
        return
    with graph.inserting_before(node):
        if transposed:  # (B C)^T = C^T B^T
            b, c = _call(graph, _PERMUTE, c, [1, 0]), _call(graph, _PERMUTE, b, [1, 0])
        value = _call(graph, _MM, _call(graph, _MM, a, b), c)
        for factor in factors:
            value = _call(graph, _MUL, value, factor)
    node.replace_all_uses_with(value)
    graph.erase_node(node)


def _product(node: Any) -> tuple[fx.Node, fx.Node, bool, list[float]] | None:
    """`(B, C, transposed, factors)` where `node` is `B C`, seen through transpositions and numeric factors.

    Nodes that others use too stay, so that their product would be computed anyway: none is found there.
    """
    transposed, factors = False, list[float]()
    while isinstance(node, fx.Node) and len(node.users) == 1:
        if node.target is _MM:
            b, c = node.args
            return b, c, transposed, factors  # type: ignore[return-value]  # arguments of a product are nodes
        if node.target is _PERMUTE:
            order: Any = node.args[1]
            transposed ^= [d % 2 for d in order] == [1, 0]  # vmap leaves permutations that change nothing
        elif node.target in (_MUL, aten.mul.Scalar) and isinstance(node.args[1], int | float):
            factors.append(node.args[1])
        elif node.target is aten.neg.default:
            factors.append(-1.0)
        else:
            return None
        node = node.args[0]
    return None


def _call(graph: fx.Graph, target: Any, *args: Any) -> fx.Node:
    node = graph.call_function(target, args)
    node.meta["val"] = target(*(arg.meta["val"] if isinstance(arg, fx.Node) else arg for arg in args))
    return node


def _shape(node: fx.Node) -> tuple[int, int]:
    rows, columns = node.meta["val"].shape
    return int(rows), int(columns)
