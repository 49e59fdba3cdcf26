"""What figures were made with: versions of packages, and a description of the machine."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

PACKAGES = ("metarl", "torch", "torchopt", "gymnasium", "minari", "numpy")


def environment() -> dict[str, str]:
    """Versions by package, `python`, and `machine`: processor, cores and system."""
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()}",
    }


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
