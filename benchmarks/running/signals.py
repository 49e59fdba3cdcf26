"""Signals that ask `metarl bench` to end: all end its children first, in order."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


@contextmanager
def deaf() -> Iterator[None]:
    """No signal that asks for an end is heard meanwhile."""
    with _handling(dict.fromkeys((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), signal.SIG_IGN)):
        yield


class Interrupted(KeyboardInterrupt):
    """One that `exec` of a text does not see: Python would end by SIGINT where KeyboardInterrupt itself passed it."""


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP as one exception, so that all end the children; what is ignored stays ignored."""

    def interrupt(*_: object) -> None:
        raise Interrupted

    heard = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    with _handling(dict.fromkeys((one for one in heard if signal.getsignal(one) is not signal.SIG_IGN), interrupt)):
        yield


@contextmanager
def _handling(handlers: Mapping[signal.Signals, Any]) -> Iterator[None]:
    """Other handlers of signals meanwhile; only the main thread may set any."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
