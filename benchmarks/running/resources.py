"""How many runs this machine takes at a time: one per core, as far as memory allows."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MARGIN = 0.9  # of the available memory that runs are given
COMPILING = 1 << 30  # bytes that a process may take more while it compiles
GIB = 1 << 30
PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Room:
    """What runs may take at a time.

    Attributes:
        jobs: processes.
        note: why they are fewer than the cores; "" where they are not.
    """

    jobs: int
    note: str = ""


def room(peak: int, measured: bool, available: int | None = None) -> Room:
    """As many processes as cores, as far as memory allows; at least one.

    Args:
        peak: bytes that a run takes at its peak.
        measured: whether a run was measured; else it is an estimate.
        available: bytes; by default what the machine and its control groups have left.
    """
    available = available_memory() if available is None else available
    if available is None:
        return Room(cores())
    fitting = max(1, int(MARGIN * available / max(peak, 1)))
    if fitting >= cores():
        return Room(cores())
    how = "took" if measured else "may take"
    return Room(
        fitting,
        f"memory for {fitting} of {cores()} runs at a time: {available / GIB:.1f} GiB are available, a run {how} "
        f"{peak / GIB:.1f} GiB; --jobs overrides this",
    )


def cores(proc: Path = PROC, groups: Path = GROUPS) -> int:
    """Cores that this process may use: those it is bound to, or as many as the quota of a control group is worth."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in _groups(proc, groups, "cpu") if (quota := _quota(folder)) is not None]
    return max(1, int(min([bound, *quotas])))


def own_peak() -> int:
    """The most bytes that this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def available_memory(proc: Path = PROC, groups: Path = GROUPS) -> int | None:
    """Bytes that new processes may take: the machine's, or those of a control group above; None where unknown."""
    found = [_of_the_machine(proc / "meminfo")]
    for folder in _groups(proc, groups, "memory"):
        found.append(_left(folder, "memory.max", "memory.current", "inactive_file"))
        found.append(_left(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"))
    return min((value for value in found if value is not None), default=None)


def _of_the_machine(meminfo: Path) -> int | None:
    with suppress(OSError, ValueError, KeyError):
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        return int(fields["MemAvailable"].split()[0]) * 1024
    return None


def _groups(proc: Path, groups: Path, controller: str) -> Iterator[Path]:
    """Folders of the control group and of those above it; within a container its own name may not be there."""
    with suppress(OSError):
        for line in (proc / "self" / "cgroup").read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            root = groups / controller if controllers else groups  # version 1, or 2
            for parts in range(len(Path(name).parts) + 1):
                yield root.joinpath(*Path(name).parts[1 : parts + 1])


def _left(folder: Path, limit: str, usage: str, reclaimable: str) -> int | None:
    with suppress(OSError, ValueError, KeyError):
        most = int((folder / limit).read_text())  # `max` is no number: no limit
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return max(0, most - int((folder / usage).read_text()) + int(stat.get(reclaimable, 0)))
    return None


def _quota(folder: Path) -> float | None:
    """Cores' worth of time that a group may take; None without a limit (`max`, or -1)."""
    with suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = map(int, (folder / "cpu.max").read_text().split())
        return quota / period
    with suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return quota / period if quota > 0 else None
    return None
