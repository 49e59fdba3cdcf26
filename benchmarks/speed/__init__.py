"""What a training step costs, in metarl and in its rivals: `python -m benchmarks.speed`.

Every contestant runs in a process of its own (`worker.py`, spoken to by `client.py`), all on one and the same core,
one at a time and in turns (`rounds.py`). `contestants.py` says who takes part and `experiments.py` what is asked;
`derived.py` makes ratios of the recorded times, `page.py` and `picture.py` show them. The remaining modules are what
the workers run.
"""

from benchmarks.speed.timing import Timing

__all__ = ["Timing"]
