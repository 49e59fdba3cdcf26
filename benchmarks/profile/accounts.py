"""CPU time by part: callables are timed from outside, and what one calls is taken off its own time."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch


class Accounts:
    """Seconds of this thread's CPU time and calls, by part; each second in one part only.

    Attributes:
        seconds, calls: by part, in the order of the first call.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.calls: dict[str, int] = {}
        self._inside = [0.0]  # seconds spent in parts that the open ones called

    def call(self, part: str, fn: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """`fn(*args, **options)`, on the account of `part`."""
        self._inside.append(0.0)
        began = time.thread_time()
        try:
            return fn(*args, **options)
        finally:
            took = time.thread_time() - began
            self.seconds[part] = self.seconds.get(part, 0.0) + took - self._inside.pop()
            self.calls[part] = self.calls.get(part, 0) + 1
            self._inside[-1] += took

    def timed(self, part: str | Callable[..., str], fn: Callable[..., Any]) -> Callable[..., Any]:
        """`fn`, on the account of `part` or of what `part` makes of the arguments."""

        @functools.wraps(fn)
        def run(*args: Any, **options: Any) -> Any:
            return self.call(part if isinstance(part, str) else part(*args, **options), fn, *args, **options)

        return run

    def watch(self, stack: ExitStack, owner: Any, name: str, part: str | Callable[..., str]) -> None:
        """Times `owner.name`, a function of a class or a module, for as long as the stack is open."""
        stack.enter_context(patch.object(owner, name, self.timed(part, getattr(owner, name))))
