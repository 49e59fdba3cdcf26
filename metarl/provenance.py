"""What figures were made with: versions of packages, the commit, and a description of the machine."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

PACKAGES = ("metarl", "torch", "torchopt", "gymnasium", "minari", "numpy", "scipy")


def environment() -> dict[str, str]:
    """Versions by package, `python`, `commit` (see `commit`), and `machine`: processor, cores and system."""
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "commit": commit(),
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()}",
    }


@functools.cache
def commit() -> str:
    """The commit of metarl's source, with `+changes` where files differ from it; empty for an installed package."""
    source = Path(__file__).resolve().parents[1]
    if not (source / ".git").exists():
        return ""
    try:
        head, changes = (
            subprocess.run(["git", "-C", str(source), *words], capture_output=True, text=True, check=True).stdout
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.CalledProcessError):  # no git here, or a checkout of another user
        return ""
    return head.strip() + ("+changes" if changes else "")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()
