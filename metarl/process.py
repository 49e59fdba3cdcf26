"""What every process that trains or measures sets once, before its first number."""

from __future__ import annotations

import torch


def settle() -> None:
    """One thread, and denormal numbers as zero.

    Products of a step are too small to share among threads: more seeds as processes use more cores. Denormals, which
    moments of dead units decay to, make arithmetic up to a hundred times slower. Both change last bits, so that they
    are set always.
    """
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
