"""Locks that several processes of one bench folder hold; the system drops them when their holder dies."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a file's lock; waits for it."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def share(file: IO[str]) -> None:
    """Locks a file together with whoever else does; waits for one that holds it alone."""
    fcntl.flock(file, fcntl.LOCK_SH)


def alone(file: IO[str]) -> bool:
    """Turns a shared lock into one of this process alone; False, and still shared, where others take part."""
    if _now(file):
        return True
    share(file)  # a failed change of a lock may have dropped it
    return False


def claimed(paths: Sequence[Path]) -> ExitStack | None:
    """Locks of all the files, held until the stack is closed; None where another process holds one of them."""
    with ExitStack() as stack:
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not _now(stack.enter_context(path.open("a"))):
                return None
        return stack.pop_all()


def free(path: Path) -> bool:
    """Whether no process holds the file's lock."""
    try:
        with path.open("a") as file:
            return _now(file)
    except FileNotFoundError:  # not even its folder is there
        return True


def _now(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
