"""How each method looks, the same in every figure and table of a report."""

from __future__ import annotations

import re
from collections.abc import Sequence

from benchmarks.colours import PALETTE, ramp
from benchmarks.drawing import DASHES, MARKERS, Look

ORDERED = 3  # values of one quantity from which it gets shades of one ramp
NUMBER = re.compile(r"(?<![\w.])[-−]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?(?![\w.])")
BESIDE_RAMPS = tuple(PALETTE[i] for i in (2, 4, 0, 5, 7, 1, 3, 6))  # first what no ramp contains


def looks(rows: Sequence[str]) -> dict[str, Look]:
    """The look of every row.

    Rows that differ in one number alone ("weight 0", "weight 0.25", ...; the number that stands last) are values of
    an ordered quantity and take shades of a ramp, in the order of the values. All others take distinct colours.
    """
    families: dict[str, dict[str, float]] = {}
    for row in rows:
        numbers = list(NUMBER.finditer(row))
        if numbers:
            last = numbers[-1]
            stem = row[: last.start()] + "#" + row[last.end() :]
            families.setdefault(stem, {})[row] = float(last[0].replace("−", "-"))
    ordered = [sorted(f, key=f.__getitem__) for f in families.values() if len(f) >= ORDERED]
    shades = [ramp(len(names), which) for which, names in enumerate(ordered)]
    colour: dict[str, str] = {}
    for names, tones in zip(ordered, shades, strict=True):
        colour.update(zip(names, tones, strict=True))
    palette = BESIDE_RAMPS if ordered else PALETTE
    others = [row for row in rows if row not in colour]
    colour |= {row: palette[i % len(palette)] for i, row in enumerate(others)}
    place = {row: i for names in (others, *ordered) for i, row in enumerate(names)}
    dashes, markers = len(DASHES), len(MARKERS)
    return {row: Look(colour[row], DASHES[place[row] % dashes], MARKERS[place[row] % markers]) for row in rows}
