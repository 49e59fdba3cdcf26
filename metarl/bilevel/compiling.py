"""Recordings through PyTorch's compiler: every run of small operations becomes one generated kernel."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, fx
from torch._inductor.lowering import fallback_handler, lowerings
from torch.utils import _pytree as pytree

from metarl.bilevel.recording import Recording, Signature, leaves, record, signature
from metarl.bilevel.rewriting import aten
from metarl.products import LINEAR

OPTIONS: Mapping[str, Any] = {
    "cpp_wrapper": True,  # no Python between kernels
    "size_asserts": False,  # whoever calls checks the inputs once, not every buffer in every call
    "pattern_matcher": False,  # which would take rewriting's products for those of frozen weights, and fail
}


def compiled(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn`, a pure function of nested dicts, tuples and lists of tensors, compiled whole for each set of shapes."""
    programs: dict[Signature, tuple[Callable[..., list[Tensor]], pytree.TreeSpec]] = {}

    def run(*args: Any) -> Any:
        inputs = leaves(*args)
        key = signature(inputs)
        if key not in programs:
            recording = record(fn, *args)
            programs[key] = compile_recording(recording), recording.spec
        program, spec = programs[key]
        return pytree.tree_unflatten(program(*inputs), spec)

    return run


def compile_recording(
    recording: Recording, donated: Sequence[int] = (), options: Mapping[str, Any] | None = None
) -> Callable[..., list[Tensor]]:
    """A recording as one program, from the input tensors to the flat outputs; shapes are not checked.

    Args:
        recording: used up.
        donated: input `donated[i]` is overwritten with output `i`; these outputs are not returned.
        options: further settings of torch._inductor.
    """
    _write_back(recording.module, donated)
    _for_the_compiler(recording.module)
    # oneDNN's product as it is called in eager: the compiler's own way to it copies every transposed weight.
    as_called = {LINEAR: fallback_handler(LINEAR, add_to_fallback_set=False)}
    with patch.dict(lowerings, as_called), torch.no_grad():
        program = torch._inductor.compile(
            recording.module, [*recording.examples], options={**OPTIONS, **(options or {})}
        )

    def run(*inputs: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return program(*inputs)

    return run


def has_compiler() -> bool:
    """Whether PyTorch's compiler finds the C++ compiler that it needs on a CPU."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++"))


def _write_back(module: fx.GraphModule, donated: Sequence[int]) -> None:
    graph = module.graph
    inputs = graph.find_nodes(op="placeholder")
    output = graph.output_node()
    values: list[Any] = list(output.args[0])  # type: ignore[arg-type]
    with graph.inserting_before(output):
        for position, value in zip(donated, values, strict=False):
            if not (value.target is aten.clone.default and value.args[0] is inputs[position]):  # unchanged
                graph.call_function(aten.copy_.default, (inputs[position], value))
    output.args = (values[len(donated) :],)
    module.recompile()


def _for_the_compiler(module: fx.GraphModule) -> None:
    """What generated kernels do better than the library: copies of transposed operands, and biases of thin products."""
    graph = module.graph
    for node in graph.find_nodes(op="call_function", target=aten.addmm.default):
        bias, *operands = node.args
        if not node.kwargs:
            with graph.inserting_before(node):
                product = graph.call_function(aten.mm.default, tuple(operands))
                node.replace_all_uses_with(graph.call_function(aten.add.Tensor, (product, bias)))
            graph.erase_node(node)
    for node in graph.find_nodes(op="call_function", target=LINEAR):
        x: Any = node.args[0]
        if not x.meta["val"].is_contiguous():
            with graph.inserting_before(node):
                copy = graph.call_function(aten.clone.default, (x,), {"memory_format": torch.contiguous_format})
            node.update_arg(0, copy)
    module.recompile()
