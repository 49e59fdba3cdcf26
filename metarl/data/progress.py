"""A progress bar for what takes seconds, on a terminal only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track as rich_track

MANY = 2_000  # a Minari episode takes about a millisecond to read, however short it is

T = TypeVar("T")


def track(items: Iterable[T], total: int, title: str) -> Iterator[T]:
    """The items, with a bar on standard error where there are many of them and somebody sees it."""
    console = Console(stderr=True)
    shown = console.is_terminal and total >= MANY
    yield from rich_track(items, title, total, console=console, transient=True, disable=not shown)
