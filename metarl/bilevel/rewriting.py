"""What is worth doing to a recorded list of operations before it runs; none of it changes what is computed.

1. Nothing is computed twice. A guiding update and the policy's own step look at the same batch through the same
   networks: in one list they share the forward pass and the critic's cotangent, whatever the objective is called.
2. `A (B C)` becomes `(A B) C` where that is less work. A hypergradient multiplies the training batch's activations `A`
   by the outer loss' gradient of a weight matrix, itself a product `B C` over the outer batch: with 20 guiding samples
   and a width of 256, one product of 256 x 256 x 256 becomes two of 256 x 256 x 20.
3. Products on a CPU go through oneDNN. It uses the widest vectors of every maker's CPUs, which the other library that
   PyTorch calls does not: twice as fast there, and as fast elsewhere. Its own ReLU is left unused: it turns NaN into 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensor
from torch.utils import _pytree as pytree

from metarl.products import LEAST, LINEAR, faster_by_onednn

aten = torch.ops.aten
_MM, _BMM, _ADDMM = aten.mm.default, aten.bmm.default, aten.addmm.default
_SAME = (aten.detach.default, aten.alias.default, aten.lift_fresh_copy.default, aten.lift_fresh.default)
_FEW = 1024  # numbers of a constant that are worth comparing
_FILLED: dict[Any, float] = {aten.ones_like.default: 1.0, aten.zeros_like.default: 0.0}
_SHAPES = (aten.view.default, aten._unsafe_view.default, aten.expand.default, aten.permute.default)
_SCALINGS = (aten.mul.Tensor, aten.mul.Scalar)
_LONGEST = 16  # stack whose products are taken one by one


def rewrite(module: fx.GraphModule) -> None:
    """Rewrites a recording in place."""
    graph = module.graph
    _overwrite_nothing(graph)
    if any(_mutates(node) for node in graph.nodes):  # an order that matters is left alone
        return
    _move_constants(module)
    _drop_copies(graph)
    _share_constants(module)
    graph.eliminate_dead_code()
    _share_results(graph)
    _reassociate(graph)
    graph.eliminate_dead_code()
    _through_onednn(graph)
    graph.lint()
    module.recompile()


def _mutates(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _overwrite_nothing(graph: fx.Graph) -> None:
    """What overwrites a fresh result makes a result of its own: PyTorch's gradients of `clamp` and `minimum` do so."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    for node in [node for node in graph.nodes if _mutates(node)]:
        plain, old = _without_overwriting(node.target), node.args[0] if node.args else None
        if plain is None or node.kwargs or not isinstance(old, fx.Node) or not _fresh(old):
            continue
        with graph.inserting_before(node):
            new = _call(graph, plain, *node.args)
        before, after = old.meta["val"], new.meta["val"]
        if (before.shape, before.stride(), before.dtype) != (after.shape, after.stride(), after.dtype):
            graph.erase_node(new)
            continue
        for user in [user for user in old.users if order.get(user, -1) > order[node]]:
            user.replace_input_with(old, new)
        node.replace_all_uses_with(new)
        graph.erase_node(node)


def _without_overwriting(target: Any) -> Any:
    """The operation that returns what `target`, whose name ends with an underscore, writes over its first argument."""
    name = target._opname
    packet = getattr(aten, name.removesuffix("_"), None) if name.endswith("_") and target.namespace == "aten" else None
    plain = getattr(packet, target._overloadname, None)
    return None if plain is None or plain._schema.is_mutable else plain


def _fresh(node: fx.Node) -> bool:
    """Whether a node has memory of its own that no other node looks at."""
    if node.op != "call_function" or _mutates(node):
        return False
    return all(root(one) is one for one in (node, *node.users))


def _move_constants(module: fx.GraphModule) -> None:
    """Makes constants where and as they are needed, once: written down in a loss, they would be sent in every step."""
    made = 0
    for node in module.graph.find_nodes(op="call_function", target=aten._to_copy.default):
        source: Any = node.args[0]
        while isinstance(source, fx.Node) and source.target in _SAME:
            source = source.args[0]
        if isinstance(source, fx.Node) and source.op == "get_attr":
            name, made = f"_moved_constant{made}", made + 1
            module.register_buffer(name, aten._to_copy.default(getattr(module, str(source.target)), **node.kwargs))
            with module.graph.inserting_before(node):
                new = module.graph.get_attr(name)
            new.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(new)
            module.graph.erase_node(node)


def _drop_copies(graph: fx.Graph) -> None:
    """Without a tape, a detached tensor is the tensor; and nothing overwrites a constant."""
    for node in list(graph.nodes):
        if node.target in _SAME or (node.target in _SHAPES + _SCALINGS and _changes_nothing(node)):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif (
            node.target in _FILLED and node.meta["val"].is_contiguous()
        ):  # where every gradient starts; made from the loss, it would tell two losses apart
            value = node.meta["val"]
            with graph.inserting_before(node):
                kind = {"dtype": value.dtype, "device": value.device}
                new = graph.call_function(aten.full.default, (list(value.shape), _FILLED[node.target]), kind)
            new.meta["val"] = value
            node.replace_all_uses_with(new)
            graph.erase_node(node)


def _share_constants(module: fx.GraphModule) -> None:
    """Constants with the same numbers as one: a network that is called twice makes its bounds twice."""
    seen: dict[Any, fx.Node] = {}
    for node in module.graph.find_nodes(op="get_attr"):
        value = getattr(module, str(node.target), None)
        if isinstance(value, Tensor) and value.numel() <= _FEW:
            key = value.shape, value.stride(), value.dtype, value.device, repr(value.flatten().tolist())
            node.replace_all_uses_with(seen.setdefault(key, node))


def _share_results(graph: fx.Graph) -> None:
    """Every operation once; with nothing overwritten, two of one kind on the same arguments have the same result.

    PyTorch's own pass of this kind leaves apart whatever shares memory with an output, new parameters among them.
    """
    seen: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        target: Any = node.target
        if node.op != "call_function" or torch.Tag.nondeterministic_seeded in getattr(target, "tags", ()):
            continue
        arguments, structure = pytree.tree_flatten((node.args, node.kwargs))
        # repr, since 0.0 equals -0.0
        key = target, str(structure), tuple((value, repr(value)) for value in arguments)
        first = seen.setdefault(key, node)
        if first is not node:
            node.replace_all_uses_with(first)
            graph.erase_node(node)


def _changes_nothing(node: fx.Node) -> bool:
    """Whether a node gives its argument, memory layout included: a view as the same, a product with 1, ..."""
    source: Any = node.args[0]
    if not isinstance(source, fx.Node) or not isinstance(source.meta.get("val"), Tensor):
        return False
    before, after = source.meta["val"], node.meta["val"]
    if before.shape != after.shape or before.stride() != after.stride() or before.dtype != after.dtype:
        return False
    if node.target is aten.permute.default:
        order: Any = node.args[1]
        return [d % before.dim() for d in order] == [*range(before.dim())]
    return node.target not in _SCALINGS or bool(node.args[1] == 1)


# -- the order of products -------------------------------------------------------------------------------------


def _reassociate(graph: fx.Graph) -> None:
    for node in list(graph.nodes):
        if node.target in (_MM, _BMM):
            _reorder(graph, node)


def _reorder(graph: fx.Graph, node: fx.Node) -> None:
    product: Any = node.target
    a, inner = node.args
    found = _product(inner)
    if found is None or not isinstance(a, fx.Node):
        return
    b, c, transposed, factors = found
    m, k, n, j = _rows(a), _columns(a), _columns(node), _columns(b)
    if m * k * j + m * j * n >= m * k * n:
        return
    with graph.inserting_before(node):
        if transposed:  # (B C)^T = C^T B^T
            b, c = _transpose(graph, c), _transpose(graph, b)
        for factor in factors:  # on the inner factor, where it may be what keeps numbers in range
            b = _call(graph, aten.mul.Tensor, b, factor)
        value = _call(graph, product, _call(graph, product, a, b), c)
    node.replace_all_uses_with(value)
    graph.erase_node(node)


def _product(node: Any) -> tuple[fx.Node, fx.Node, bool, list[float]] | None:
    """`(B, C, transposed, factors)` where `node` is `B C`, seen through transpositions and numeric factors.

    Nodes that others use too stay, so that their product would be computed anyway: none is found there.
    """
    transposed, factors = False, list[float]()
    while isinstance(node, fx.Node) and len(node.users) == 1:
        if node.target in (_MM, _BMM):
            b, c = node.args
            return b, c, transposed, factors  # type: ignore[return-value]  # arguments of a product are nodes
        if _transposes(node):
            transposed = not transposed
        elif node.target in _SCALINGS and isinstance(node.args[1], int | float):
            factors.append(node.args[1])
        elif node.target is aten.neg.default:
            factors.append(-1.0)
        else:
            return None
        node = node.args[0]
    return None


def _transposes(node: fx.Node) -> bool:
    """Whether a node swaps the last two axes and nothing else."""
    if node.target is aten.t.default:
        return True
    dims = node.meta["val"].dim() if isinstance(node.meta.get("val"), Tensor) else 0
    if node.target is aten.transpose.int:
        return {d % dims for d in node.args[1:]} == {dims - 1, dims - 2}  # type: ignore[operator]
    if node.target is aten.permute.default:
        order = [d % dims for d in node.args[1]]  # type: ignore[union-attr,operator]
        return order == [*range(dims - 2), dims - 1, dims - 2]
    return False


def _transpose(graph: fx.Graph, node: fx.Node) -> fx.Node:
    return _call(graph, aten.transpose.int, node, -2, -1)


# -- products through oneDNN -----------------------------------------------------------------------------------


def _through_onednn(graph: fx.Graph) -> None:
    for node in list(graph.nodes):
        if node.target is _ADDMM and not node.kwargs:
            bias, x, w = node.args
            if _plain_bias(bias, node.meta["val"].shape[1:]):
                _linear(graph, node, x, w, bias)
        elif node.target is _MM:
            _linear(graph, node, *node.args)
        elif node.target is _BMM:
            _one_by_one(graph, node, *node.args)


def _linear(graph: fx.Graph, node: fx.Node, x: Any, w: Any, bias: Any = None) -> None:
    value = node.meta["val"]
    (m, k), n = x.meta["val"].shape, w.meta["val"].shape[1]
    if not faster_by_onednn(m, k, n, value.dtype, value.device):
        return
    with graph.inserting_before(node):
        new = _call(graph, LINEAR, x, _transpose(graph, w), bias, "none", [], "")
    _replace(graph, [node], new)


def _one_by_one(graph: fx.Graph, node: fx.Node, x: Any, w: Any) -> None:
    """A stack of large products on a CPU, where a batched product is slower than its parts, thin ones many times."""
    value = node.meta["val"]
    (stack, m, n), k = value.shape, x.meta["val"].shape[2]
    if value.device.type != "cpu" or stack > _LONGEST or m * k * n < LEAST:
        return
    if not faster_by_onednn(m, k, n, value.dtype, value.device):
        with graph.inserting_before(node):
            parts = [_call(graph, _MM, *(_call(graph, aten.select.int, y, 0, i) for y in (x, w))) for i in range(stack)]
            new = _call(graph, aten.stack.default, parts)
        _replace(graph, [node], new)
        return
    chain, bias = [node], None
    user = next(iter(node.users))
    if len(node.users) == 1 and user.target is aten.add.Tensor and not user.kwargs:
        other: Any = user.args[0] if user.args[1] is node else user.args[1]
        if _plain_bias(other, (stack, 1, n)):
            chain, bias = [node, user], other
    last = next(iter(chain[-1].users))
    relu = len(chain[-1].users) == 1 and last.target is aten.relu.default
    if relu:
        chain.append(last)
    with graph.inserting_before(chain[-1]):
        w = _transpose(graph, w)
        rows = None if bias is None else _call(graph, aten.select.int, bias, 1, 0)
        parts = []
        for i in range(stack):
            own = [None if y is None else _call(graph, aten.select.int, y, 0, i) for y in (x, w, rows)]
            part = _call(graph, LINEAR, *own, "none", [], "")
            parts.append(_call(graph, aten.relu.default, part) if relu else part)  # while it is in the nearest cache
        new = _call(graph, aten.stack.default, parts)
    _replace(graph, chain, new)


def _plain_bias(bias: Any, shape: Sequence[int]) -> bool:
    """Whether a bias lies in memory as oneDNN takes it to lie."""
    if not isinstance(bias, fx.Node):
        return False
    value = bias.meta["val"]
    return value.shape == tuple(shape) and value.dtype == torch.float32 and bool(value.is_contiguous())


def _replace(graph: fx.Graph, chain: list[fx.Node], new: fx.Node) -> None:
    chain[-1].replace_all_uses_with(new)
    for old in reversed(chain):
        graph.erase_node(old)


# -- outputs ---------------------------------------------------------------------------------------------------


def own_outputs(module: fx.GraphModule) -> None:
    """Copies outputs that are inputs or constants, or views of them: whoever overwrites those must not change them."""
    output = module.graph.output_node()
    values: Any = output.args[0]
    with module.graph.inserting_before(output):
        output.args = ([_owned(module.graph, value) for value in values],)
    module.recompile()


def _owned(graph: fx.Graph, value: Any) -> Any:
    if not isinstance(value, fx.Node) or root(value).op == "call_function":
        return value
    copy = graph.call_function(aten.clone.default, (value,))
    copy.meta["val"] = value.meta.get("val")
    return copy


def root(node: fx.Node) -> fx.Node:
    """The node whose memory a view looks at."""
    while node.op == "call_function" and isinstance(node.args[0] if node.args else None, fx.Node):
        returns = getattr(getattr(node.target, "_schema", None), "returns", ())
        if not returns or returns[0].alias_info is None or returns[0].alias_info.is_write:
            break
        node = node.args[0]  # type: ignore[assignment]
    return node


# -- nodes -----------------------------------------------------------------------------------------------------


def _call(graph: fx.Graph, target: Callable, *args: Any) -> fx.Node:
    node = graph.call_function(target, args)
    values = fx.map_arg(args, lambda n: n.meta["val"])
    with next(v.fake_mode for v in pytree.tree_leaves(values) if isinstance(v, FakeTensor)):
        node.meta["val"] = target(*values)
    return node


def _rows(node: fx.Node) -> int:
    return int(node.meta["val"].shape[-2])


def _columns(node: fx.Node) -> int:
    return int(node.meta["val"].shape[-1])
