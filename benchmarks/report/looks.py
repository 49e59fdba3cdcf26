"""How each method looks, the same in every figure and table of a report."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence

from benchmarks.colours import PALETTE, ramp
from benchmarks.drawing import DASHES, MARKERS, Look

ORDERED = 3  # values of one quantity from which it gets shades of one ramp
NUMBER = re.compile(r"(?<![\w.])[-−]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?(?![\w.])")
BESIDE_RAMPS = tuple(PALETTE[i] for i in (2, 4, 0, 5, 7, 1, 3, 6))  # first what no ramp contains


def looks(rows: Sequence[str]) -> dict[str, Look]:
    """The look of every row, no two alike up to some sixty rows.

    Rows that differ in one number alone ("weight 0", "weight 0.25", ...; the number that stands last) are values of
    an ordered quantity and take shades of a ramp, in the order of the values. All others take distinct colours; where
    colours come round again, dashes and markers are shifted.
    """
    families: dict[str, dict[str, float]] = {}
    for row in rows:
        numbers = list(NUMBER.finditer(row))
        if numbers:
            last = numbers[-1]
            stem = row[: last.start()] + "#" + row[last.end() :]
            families.setdefault(stem, {})[row] = float(last[0].replace("−", "-"))
    ordered = [sorted(f, key=f.__getitem__) for f in families.values() if len(f) >= ORDERED]
    within = {row for names in ordered for row in names}
    others = [row for row in rows if row not in within]
    palette = BESIDE_RAMPS if ordered else PALETTE
    coloured = [(row, i, palette[i % len(palette)]) for i, row in enumerate(others)]
    for which, names in enumerate(ordered):
        coloured += zip(names, range(len(names)), ramp(len(names), which), strict=True)
    found: dict[str, Look] = {}
    for row, i, colour in coloured:
        found[row] = _free(colour, i, found.values())
    return {row: found[row] for row in rows}


def _free(colour: str, i: int, taken: Collection[Look]) -> Look:
    """The colour with the i-th dash and marker, or the next that are not taken."""
    shifts = range(math.lcm(len(DASHES), len(MARKERS)))
    made = [Look(colour, DASHES[(i + s) % len(DASHES)], MARKERS[(i + s) % len(MARKERS)]) for s in shifts]
    made += [Look(colour, dash, marker) for dash in DASHES for marker in MARKERS]
    return next((look for look in made if look not in taken), made[0])
