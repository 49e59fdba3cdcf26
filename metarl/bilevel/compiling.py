"""Recordings through PyTorch's compiler: every run of small operations becomes one generated kernel."""

from __future__ import annotations

import copy
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, fx

from metarl.bilevel.recording import Recording, prepared
from metarl.bilevel.rewriting import aten, root
from metarl.products import LINEAR

OPTIONS: Mapping[str, Any] = {
    "size_asserts": False,  # whoever calls checks the inputs once, not every buffer in every call
    "pattern_matcher": False,  # which would take rewriting's products for those of frozen weights, and fail
}


def compiled(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn`, a pure function of nested dicts, tuples and lists of tensors, compiled whole."""
    return prepared(fn, compile_recording)


def compile_recording(
    recording: Recording, donated: Sequence[int] = (), options: Mapping[str, Any] | None = None
) -> Callable[..., list[Tensor]]:
    """A recording as one program, from the input tensors to the flat outputs; shapes are not checked.

    Args:
        recording: used up.
        donated: input `donated[i]` is overwritten with output `i`; these outputs are not returned.
        options: further settings of torch._inductor.
    """
    from torch._inductor.lowering import lowerings  # a second of imports that a run without compiling does not need

    aside, waiting = _write_back(recording.module, donated)
    _for_the_compiler(recording.module)
    on_gpu = any(example.device.type == "cuda" for example in recording.examples)
    # No Python between kernels: by a C++ wrapper, and on a GPU by a CUDA graph around it all.
    settings = {**OPTIONS, "cpp_wrapper": not on_gpu, **(options or {})}
    with patch.dict(lowerings, {LINEAR: _product}), torch.no_grad():
        program = torch._inductor.compile(recording.module, [*recording.examples], options=settings)

    def run(*inputs: Tensor) -> list[Tensor]:
        with torch.no_grad():
            if not waiting:
                return program(*inputs)
            before = aside(*inputs)
            outputs = list(program(*inputs))
            for position, value in zip(waiting, before, strict=True):
                if position < len(donated):
                    inputs[donated[position]].copy_(value)
                else:
                    outputs.insert(position - len(donated), value)
        return outputs

    return run


def as_cuda_graph(program: Callable[..., list[Tensor]], state: Sequence[Tensor], inputs: Sequence[Tensor]) -> Any:
    """A compiled program of a GPU as one CUDA graph, launched at once: `inputs -> outputs`.

    Args:
        program: `(*state, *inputs) -> outputs`, which overwrites `state`.
        state: lies where it lies from now on.
        inputs: examples; later ones are copied over them.
    """
    kept, own = [t.clone() for t in state], [t.clone() for t in inputs]
    try:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # what allocates or tunes itself at first must not be captured
                program(*state, *own)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = program(*state, *own)
    finally:
        torch._foreach_copy_(list(state), kept)  # the warm-up was no training

    def run(*inputs: Tensor) -> list[Tensor]:
        torch._foreach_copy_(own, list(inputs))
        graph.replay()
        return [out.clone() for out in outputs]

    return run


def has_compiler() -> bool:
    """Whether PyTorch's compiler finds the C++ compiler that it needs on a CPU."""
    return shutil.which(os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")) is not None


def _write_back(module: fx.GraphModule, donated: Sequence[int]) -> tuple[fx.GraphModule, list[int]]:
    """Makes the program overwrite the donated inputs, and takes out the outputs that are (views of) other inputs.

    The compiler would read those after they have been overwritten. Returns what computes them, to be called before the
    program, and their positions among the outputs.
    """
    graph = module.graph
    inputs = graph.find_nodes(op="placeholder")
    output = graph.output_node()
    values: list[Any] = list(output.args[0])  # type: ignore[arg-type]
    passed = [i for i, value in enumerate(values) if isinstance(value, fx.Node) and _passes(value)]
    unchanged = {i for i in passed if i < len(donated) and values[i].args[0] is inputs[donated[i]]}
    waiting = [i for i in passed if i not in unchanged]
    output.args = ([values[i] for i in waiting],)
    aside = fx.GraphModule(module, copy.deepcopy(graph))
    aside.graph.eliminate_dead_code()
    aside.recompile()
    with graph.inserting_before(output):
        for i, position in enumerate(donated):
            if i not in passed:
                graph.call_function(aten.copy_.default, (inputs[position], values[i]))
    output.args = ([value for i, value in enumerate(values) if i >= len(donated) and i not in passed],)
    graph.eliminate_dead_code()
    module.recompile()
    return aside, waiting


def _passes(value: fx.Node) -> bool:
    return value.target is aten.clone.default and root(value.args[0]).op == "placeholder"  # type: ignore[arg-type]


def _for_the_compiler(module: fx.GraphModule) -> None:
    """Takes the biases of thin products apart, for generated kernels to add on the way."""
    graph = module.graph
    for node in graph.find_nodes(op="call_function", target=aten.addmm.default):
        bias, *operands = node.args
        if not node.kwargs:
            with graph.inserting_before(node):
                product = graph.call_function(aten.mm.default, tuple(operands))
                node.replace_all_uses_with(graph.call_function(aten.add.Tensor, (product, bias)))
            graph.erase_node(node)
    module.recompile()


def _product(x: Any, *rest: Any) -> Any:
    """oneDNN's product as it is called in eager: the compiler's own way to it copies every transposed weight.

    The library copies a transposed left operand slowly; a generated kernel does it well.
    """
    from torch._inductor.ir import ExternKernel
    from torch._inductor.lowering import fallback_handler

    x = ExternKernel.require_contiguous(ExternKernel.realize_input(x))
    return fallback_handler(LINEAR, add_to_fallback_set=False)(x, *rest)
