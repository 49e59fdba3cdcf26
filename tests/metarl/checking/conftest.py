"""`checked(name, ...)`: the report on an objective of broken.py, without the slow checks unless they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from metarl.checking import Plan, Report, check

SLOW = ("compiles", "cost")


@pytest.fixture(scope="session")
def beside() -> Path:
    """Where broken.py lies."""
    return Path(__file__).parent


@pytest.fixture(scope="session")
def checked(beside: Path) -> Callable[..., Report]:
    """`checked(name, algorithm=None, skip=SLOW, **settings)`; a name without a colon is a class of broken.py."""

    def run(name: str, algorithm: str | None = None, skip: tuple[str, ...] = SLOW, **settings) -> Report:
        return check(Plan({"name": f"broken:{name}", **settings}, algorithm, beside), skip)

    return run
