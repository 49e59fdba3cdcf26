"""A pure function as one straight list of tensor operations, recorded once and run many times.

Recording runs the function once on tensors without memory (nothing is computed), with every PyTorch operation written
down, those of its gradients and of vmap included. What is left has no Python in it: no modules, no tape, no
dispatch of transforms. `rewriting.py` then does what is worth doing to it, and the list runs operation by operation,
or goes to the compiler (`compiling.py`). A branch on a tensor's value cannot be recorded, and is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import DataDependentOutputException as DataDependent
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from metarl.bilevel import rewriting
from metarl.errors import ConfigError

Signature = tuple[tuple[Any, ...], ...]


class Recording:
    """A recorded function of nested dicts, tuples and lists of tensors.

    Attributes:
        module: the operations; a flat list of tensors in, a flat list of tensors out.
        spec: structure of the outputs.
        examples: the inputs as tensors without memory.
    """

    def __init__(self, module: fx.GraphModule, spec: pytree.TreeSpec, examples: Sequence[Tensor]) -> None:
        self.module, self.spec, self.examples = module, spec, list(examples)

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> Any:
        """The outputs in their structure, from the inputs' tensors in order (`leaves`); shapes are not checked."""
        return pytree.tree_unflatten(self.module(*inputs), self.spec)

    def prune(self) -> list[int]:
        """Drops the inputs that no operation reads, and says which are left."""
        graph = self.module.graph
        inputs = list(graph.find_nodes(op="placeholder"))
        kept = [i for i, node in enumerate(inputs) if node.users]
        for node in inputs:
            if not node.users:
                graph.erase_node(node)
        self.examples = [self.examples[i] for i in kept]
        self.module.recompile()
        return kept


def leaves(*args: Any) -> list[Tensor]:
    """The tensors of nested dicts, tuples and lists in order."""
    return [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, Tensor)]


def signature(tensors: Sequence[Tensor]) -> Signature:
    """What a recording depends on: shape, strides, dtype and device of every input."""
    return tuple((t.shape, t.stride(), t.dtype, t.device) for t in tensors)


def record(fn: Callable[..., Any], *args: Any, rewrite: bool = True) -> Recording:
    """`fn(*args)` as a list of operations, for these shapes.

    Args:
        fn: a pure function; its outputs are nested dicts, tuples and lists of tensors and None.
        args: nested dicts, tuples and lists of tensors; anything else in them is taken as a constant.
        rewrite: whether `rewriting.rewritten` improves the list.

    Raises:
        ConfigError: `fn` branches on a tensor's value.
    """
    given, structure = pytree.tree_flatten(args)
    spec: list[pytree.TreeSpec] = []

    def flat(*tensors: Tensor) -> list[Any]:
        values = iter(tensors)
        filled = [next(values) if isinstance(leaf, Tensor) else leaf for leaf in given]
        outputs, structure_out = pytree.tree_flatten(fn(*pytree.tree_unflatten(filled, structure)))
        spec.append(structure_out)
        return [out.detach() if isinstance(out, Tensor) else out for out in outputs]

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    examples = [mode.from_tensor(leaf.detach()) for leaf in given if isinstance(leaf, Tensor)]
    try:
        with mode:
            module = make_fx(flat)(*examples)
    except (DataDependent, DynamicOutputShapeException) as error:
        raise ConfigError(
            f"a loss or an estimator looks at the value of a tensor to decide what to compute ({error}), so the step "
            "cannot be recorded; write it with torch.where, or set compile: off"
        ) from error
    if rewrite:
        rewriting.rewrite(module)
    rewriting.own_outputs(module)
    return Recording(module, spec[-1], examples)


def prepared(
    fn: Callable[..., Any], prepare: Callable[[Recording], Callable[..., Sequence[Any]]]
) -> Callable[..., Any]:
    """`fn`, a pure function of nested dicts, tuples and lists of tensors, recorded and prepared once for each set of
    names, shapes and constants."""
    programs: dict[Any, tuple[Callable[..., Sequence[Any]], pytree.TreeSpec]] = {}

    def run(*args: Any) -> Any:
        given, structure = pytree.tree_flatten(args)
        inputs = [leaf for leaf in given if isinstance(leaf, Tensor)]
        constants = tuple(None if isinstance(leaf, Tensor) else leaf for leaf in given)
        key = structure, constants, signature(inputs)
        if key not in programs:
            recording = record(fn, *args)
            programs[key] = prepare(recording), recording.spec
        program, spec = programs[key]
        with torch.no_grad():
            return pytree.tree_unflatten(program(*inputs), spec)

    return run


def recorded(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` as its list of operations."""
    return prepared(fn, lambda recording: recording.module)
