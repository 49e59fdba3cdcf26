"""Dispatch modes that notice what a loss does: where it broadcasts, writes, draws, changes dtype, cuts or explodes."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from metarl import stop_gradient
from metarl.checking.where import called_by_user, caller, in_transform


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(tree) if isinstance(x, Tensor)]


class Watch(TorchDispatchMode, ABC):
    """Shows every operation to `look`, and keeps what it noticed in `seen`: (what, file:line)."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, str]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self.look(func, args, kwargs, _tensors(out))
        return out

    @abstractmethod
    def look(self, func: Any, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
        """Notes what is odd about one operation."""

    def note(self, what: str, where: str) -> None:
        """Remembers it once."""
        if (what, where) not in self.seen:
            self.seen.append((what, where))


class Broadcasts(Watch):
    """An elementwise operation that makes two batch axes of inputs with one: [B, 1] with [B] gives [B, B].

    Inputs of one rank are left alone: who writes x[:, None] - y[None, :] means it.
    """

    def __init__(self, sizes: Iterable[int]) -> None:
        super().__init__()
        self.sizes = frozenset(sizes)

    def look(self, func: Any, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
        expand = func is torch.ops.aten.expand.default
        if len(outputs) != 1 or not (expand or torch.Tag.pointwise in func.tags):
            return
        out = outputs[0]
        inputs = [x for x in _tensors((args, kwargs)) if x.dim()]
        ranks = {x.dim() for x in inputs} | ({out.dim()} if expand else set())
        if self._axes(out) >= 2 and len(ranks) > 1 and all(self._axes(x) < 2 for x in inputs) and (where := caller()):
            shapes = " with ".join(str(list(x.shape)) for x in inputs)
            self.note(f"{shapes} became {list(out.shape)}", where)

    def _axes(self, x: Tensor) -> int:
        return sum(n in self.sizes for n in x.shape)


class Writes(Watch):
    """Operations in place on tensors that are not the loss's own.

    Args:
        owned: what must not change, by a label.
    """

    def __init__(self, owned: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.labels = {x.untyped_storage()._cdata: label for label, x in owned.items()}

    def look(self, func: Any, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
        if not func._schema.is_mutable:
            return
        for i, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            for x in _tensors(value):
                label = self.labels.get(x.untyped_storage()._cdata)
                if label is not None:
                    self.note(label, caller())


class Draws(Watch):
    """Random operations."""

    def look(self, func: Any, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.note(func.overloadpacket.__name__, caller())


class Dtypes(Watch):
    """Where the user's code leaves the run's floating dtype; 0-d constants, which PyTorch fits in, are let be."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def look(self, func: Any, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
        foreign = [x for x in outputs if x.is_floating_point() and x.dtype != self.dtype]
        if not foreign:
            return
        inputs = [x for x in _tensors((args, kwargs)) if x.is_floating_point()]
        own = any(x.dtype == self.dtype for x in inputs)
        cast = own and func is torch.ops.aten._to_copy.default
        mixed = own and any(x.dtype != self.dtype and x.dim() for x in inputs)
        made = not inputs and foreign[0].dim() > 0
        if (cast or mixed or made) and not in_transform() and (where := caller()):
            dtype = str(foreign[0].dtype).removeprefix("torch.")
            self.note(f"becomes {dtype}" if cast else f"mixes with a {dtype} constant", where)


class NonFinite(Watch):
    """The first operation that makes NaN or infinity of finite numbers."""

    def look(self, func: Any, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
        if self.seen or not any(_bad(x) for x in outputs) or any(_bad(x) for x in _tensors((args, kwargs))):
            return
        name = func.overloadpacket.__name__
        if not name.startswith(("empty", "new_empty")):  # memory as it lay there
            self.note(name, caller())


def _bad(x: Tensor) -> bool:
    zeros = x._is_zerotensor()  # has no memory to read
    return x.is_floating_point() and not zeros and not bool(torch.isfinite(x).all())


class Backwards(TorchFunctionMode):
    """The first operation whose derivative makes NaN or infinity of finite numbers, in `seen`."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, str]] = []
        self.nodes: set[Any] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in _tensors(out):
            node = x.grad_fn
            if node is not None and node not in self.nodes and (where := caller()):
                self.nodes.add(node)
                node.register_hook(self._hook(node.name(), where))
        return out

    def _hook(self, name: str, where: str) -> Callable:
        def hook(into: Any, outof: Any) -> None:
            if any(map(_bad, _tensors(into))) and not any(map(_bad, _tensors(outof))):
                self.seen.append((name, where))

        return hook


class Cuts(TorchFunctionMode):
    """Calls that take a tracked tensor and give back one that is not: where a path for gradients ends."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, str]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if any(x.requires_grad for x in _tensors((args, kwargs or {}))):
            name = getattr(func, "__name__", str(func))
            values = pytree.tree_leaves(out)
            dead = any(isinstance(x, Tensor) and not x.requires_grad for x in values)
            number = any(isinstance(x, float) for x in values)
            if (dead or number) and name != "requires_grad_" and (where := caller()) and (name, where) not in self.seen:
                self.seen.append((name, where))
        return out


class HeldDetach(TorchFunctionMode):
    """Plain detaches in the user's code as `metarl.stop_gradient`, so that finite differences hold their values."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.detach and called_by_user():
            if (where := caller()) not in self.seen:
                self.seen.append(where)
            return stop_gradient(args[0])
        return func(*args, **(kwargs or {}))


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that operations made and that are still alive; `peak` is the most at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {x.untyped_storage()._cdata for x in _tensors((args, kwargs or {}))}
        out = func(*args, **(kwargs or {}))
        for x in _tensors(out):
            storage = x.untyped_storage()
            if storage._cdata not in given and storage._cdata not in self._sizes:
                self._sizes[storage._cdata] = storage.nbytes()
                self.live += storage.nbytes()
                weakref.finalize(storage, self._freed, storage._cdata).atexit = False
        self.peak = max(self.peak, self.live)
        return out

    def _freed(self, key: int) -> None:
        self.live -= self._sizes.pop(key)


def peak_memory(fn: Callable[[], Any]) -> int:
    """The most bytes of tensors that were alive at once during `fn()`, beyond those that were there before.

    What a single operation allocates for itself and frees again is not seen.
    """
    with LiveBytes() as counter:
        out = fn()  # its result counts: it is alive when fn returns
    del out
    return counter.peak
