"""What one hypergradient costs, in metarl and in its rivals: `python -m benchmarks.hypergradients`.

`problems.py` defines each bilevel problem once, `contestants.py` solves it with every library, `comparison.py` checks
that all agree and then lets them take turns, `tables.py` shows the result for people and for the documentation.
"""

from benchmarks.hypergradients.comparison import Unequal, measure
from benchmarks.hypergradients.tables import table

__all__ = ["Unequal", "measure", "table"]
