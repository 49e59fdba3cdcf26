"""Loads one file of a rival's checkout, with stand-ins for what it imports and a training step does not use.

Needs nothing but Python itself: it runs in the rival's own interpreter.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any


class StandIn(types.ModuleType):
    """A module all of whose attributes are functions that return a decorator which changes nothing."""

    Env = object  # in annotations

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: lambda decorated: decorated


def load(path: Path, stand_ins: tuple[str, ...]) -> Any:
    """The module in a file, importing stand-ins by these names."""
    sys.modules.update({name: StandIn(name) for name in stand_ins})
    name = f"rival_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def digest(path: Path) -> str:
    """sha256 of the file, by which the rival's version is known."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
