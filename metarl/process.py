"""What every process that trains or measures sets once, before its first number."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import torch


def settle() -> None:
    """One thread, denormal numbers as zero, and compiled programs kept where they outlive a restart of the machine.

    Products of a step are too small to share among threads: more seeds as processes use more cores. Denormals, which
    moments of dead units decay to, make arithmetic up to a hundred times slower. Both change last bits, so that they
    are set always.
    """
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    # PyTorch's own choice, made when its compiler is first imported, is the temporary folder.
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "metarl" / "compiled"
        with suppress(OSError):  # a home that cannot be written: the temporary folder it is
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
