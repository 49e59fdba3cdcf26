"""Colours of figures, each with its counterpart on a dark page, told apart by colour-blind readers and in grey print.

Distinct methods take Okabe and Ito's palette (2008, https://jfly.uni-koeln.de/color/), darkened where it would be pale
on white; values of one ordered quantity take equally spaced shades of a map whose lightness is monotonic. Every shade
stands out from its page by a contrast of at least 3, text by at least 4.5 (WCAG 2.2, 1.4.3 and 1.4.11).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.colors import to_hex, to_rgb

PALETTE = ("#5b6770", "#0072b2", "#d55e00", "#00845f", "#b0578d", "#a37a00", "#3f8fc4", "#7a5195")
INK, FAINT, GRID = "#30353a", "#9aa1a8", "#e6e8ea"
PAPER = ("#ffffff", "#14171a")  # the page, light and dark
SHADES = 33  # of a ramp; any number of values up to it are spread over them
MAPS = ("viridis", "YlOrBr_r", "PuRd_r")  # the ramps, by Matplotlib's names

_GRAPHICAL = 3.0  # least contrast of a line


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours, 1 to 21: (L1 + 0.05) / (L2 + 0.05) of their relative luminances (WCAG 2.2)."""
    dark, light = sorted((_luminance(one), _luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def ramp(n: int, which: int = 0) -> tuple[str, ...]:
    """`n` shades of one ordered quantity, from the darkest on white."""
    shades = _RAMPS[which % len(_RAMPS)]
    return tuple(shades[round(i * (SHADES - 1) / max(n - 1, 1))] for i in range(n))


def variables(text: str) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """CSS custom properties (name, colour) of every colour that `text` names as `var(--c-...)`: light, and dark."""
    used = sorted(set(re.findall(r"var\(--c-([0-9a-f]{6})\)", text)))
    return [(f"--c-{c}", f"#{c}") for c in used], [(f"--c-{c}", on_dark(f"#{c}")) for c in used]


def themed(text: str) -> str:
    """Every colour `#rrggbb` as a custom property, so that a page can change it with its scheme."""
    return re.sub(r"#([0-9a-fA-F]{6})\b", lambda match: f"var(--c-{match[1].lower()})", text)


def on_dark(colour: str) -> str:
    """What stands for a colour on a dark page."""
    return _DARK.get(colour.lower(), colour)


def _luminance(colour: str) -> float:
    channels = np.array(to_rgb(colour))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def _shades(name: str, paper: str) -> tuple[str, ...]:
    """Equally spaced along the part of a map that stands out from the page."""
    every = [to_hex(c) for c in mpl.colormaps[name](np.linspace(0, 1, 512))]
    kept: Sequence[str] = [c for c in every if contrast(c, paper) >= _GRAPHICAL]
    return tuple(kept[round(i)] for i in np.linspace(0, len(kept) - 1, SHADES))


def _pairs() -> Iterable[tuple[str, str]]:
    palette = ("#a9b5be", "#4aa8e8", "#ff8a3d", "#2fc79d", "#e48fc4", "#dcb13c", "#93cbf2", "#bb9fe6")
    yield from zip(PALETTE, palette, strict=True)
    yield from ((INK, "#d7dce0"), (FAINT, "#77818a"), (GRID, "#2b3136"), (PAPER[0], PAPER[1]))
    for name, light in zip(MAPS, _RAMPS, strict=True):
        yield from zip(light, _shades(name, PAPER[1]), strict=True)


_RAMPS = tuple(_shades(name, PAPER[0]) for name in MAPS)
_DARK = dict(_pairs())
