"""What a check found: one measurement, and for a problem its cause and its cure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["ok", "info", "warning", "FAILED"]
RANK: dict[str, int] = {"ok": 0, "info": 1, "warning": 2, "FAILED": 3}


@dataclass(frozen=True)
class Finding:
    """One line of what a check found.

    Attributes:
        check: the check's name.
        status: "FAILED" makes the command fail; "info" says that there was nothing to judge.
        measured: the numbers, or in a word what is wrong.
        problem: the cause and the cure in one sentence; empty where all is well.
        update, group, where: the Update and the parameter group concerned, and the user's `file:line`, where known.
    """

    check: str
    status: Status
    measured: str
    problem: str = ""
    update: str = ""
    group: str = ""
    where: str = ""


@dataclass(frozen=True)
class Report:
    """All findings on one objective over one algorithm."""

    objective: str
    algorithm: str
    findings: tuple[Finding, ...]

    @property
    def failed(self) -> bool:
        """Whether anything failed."""
        return any(f.status == "FAILED" for f in self.findings)

    @property
    def status(self) -> Status:
        """The worst of all; information counts as ok."""
        return next((f.status for f in self.problems), "ok")

    @property
    def problems(self) -> list[Finding]:
        """Failures first, then warnings."""
        found = [f for f in self.findings if RANK[f.status] > RANK["info"]]
        return sorted(found, key=lambda f: -RANK[f.status])

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        found = [dataclasses.asdict(f) for f in self.findings]
        return {"objective": self.objective, "algorithm": self.algorithm, "status": self.status, "findings": found}


def once(findings: Iterable[Finding]) -> list[Finding]:
    """Of the findings at one line of the user's only the first: the others saw it through that one."""
    kept: dict[Any, Finding] = {}
    for i, f in enumerate(findings):
        kept.setdefault((f.check, f.where) if f.where else i, f)
    return [*kept.values()]


def listed(names: Sequence[str]) -> str:
    """Names for a sentence: the first three, and how many more."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more
