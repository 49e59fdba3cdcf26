"""What all figures share: style, looks of lines, and how a figure becomes SVG and PNG."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from benchmarks.colours import FAINT, GRID, INK, PALETTE

WIDE, NARROW = (4.3, 2.9), (3.6, 2.7)  # inches: one panel of two, and of three, in a row of the page
LABEL = 0.165  # inches from one name beside a panel to the next
POINTS = 200  # of a curve; more cannot be seen at these sizes
STYLE: Any = {  # Matplotlib types its keys one by one
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.unicode_minus": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "metarl",
    "lines.solid_capstyle": "round",
}
DASHES = ("-", (0, (6, 1.3)), (0, (2.6, 1.1)), (0, (1.1, 1.1)))  # short gaps: a noisy course stays one line
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


@dataclass(frozen=True)
class Look:
    """How a method is drawn, everywhere.

    Attributes:
        colour: on white; `benchmarks.colours` knows its counterpart on a dark page.
        dash, marker: in Matplotlib's words, so that lines differ in grey print too.
    """

    colour: str
    dash: Any = "-"
    marker: str = "o"

    @property
    def css_dashes(self) -> str:
        """The dashes for `stroke-dasharray`, in widths of 2."""
        return "" if isinstance(self.dash, str) else " ".join(f"{2 * length:g}" for length in self.dash[1])


@contextmanager
def panel(size: tuple[float, float] = WIDE, rows: int = 1) -> Iterator[tuple[Figure, Any]]:
    """A figure with one panel, or with some above each other."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        yield figure, figure.subplots(rows, sharex=True)


# -- axes ------------------------------------------------------------------------------------------------------


def thinned(n: int, most: int = POINTS) -> Any:
    """Indices of at most `most` of `n` points, evenly apart, the first and the last among them."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int))


def plain(value: float) -> str:
    """Thousands apart, a true minus, no more digits than needed."""
    return f"{value:,.10g}".replace("-", "−")


def compact(value: float) -> str:
    """`20k` and `1.5M` from ten thousand on."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= (size if unit == "M" else 1e4):
            return plain(value / size) + unit
    return plain(value)


def power(value: float) -> str:
    """A power of ten as text: SVG text knows no mathematics."""
    digits = str(round(np.log10(value))).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"10{digits}"


def steps_axis(axis: Axes, counted: str = "gradient steps") -> None:
    """The horizontal axis of a curve, and light lines to read its values by; `counted` names what it counts."""
    axis.set_xlabel(counted)
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))
    axis.margins(x=0.02)
    axis.grid(axis="y", color=GRID, linewidth=0.7)
    axis.set_axisbelow(True)


def end_labels(axis: Axes, ends: Sequence[tuple[float, float, str, Look]], height: float) -> None:
    """Names at the right of a panel, each beside the end (x, y) of its line as far as room allows.

    Args:
        axis: with its limits and scale as they will stay.
        ends: (x, y, name, look) of every line.
        height: of the panel in inches, about.
    """
    low, high = axis.get_ylim()
    logarithmic = axis.get_yscale() == "log"
    scale = np.log if logarithmic else np.asarray
    places = [float((scale(y) - scale(low)) / (scale(high) - scale(low))) for _, y, _, _ in ends]
    for (x, y, name, look), place, at in zip(ends, places, spread(places, LABEL / height), strict=True):
        both: Any = {"transform": axis.transAxes, "clip_on": False}
        start = axis.transAxes.inverted().transform(axis.transData.transform((x, y)))[0]
        axis.plot([start, 1.02], [place, at], color=FAINT, linewidth=0.6, zorder=0, **both)
        axis.plot([1.035], [at], color=look.colour, marker=look.marker, markersize=5, linestyle="none", **both)
        beside: Any = {"xycoords": axis.transAxes, "textcoords": "offset points", "va": "center", "fontsize": 8.5}
        axis.annotate(name, (1.035, at), (6, 0), annotation_clip=False, **beside)


def spread(places: Sequence[float], gap: float) -> list[float]:
    """The places moved apart by at least `gap`, in their order, with the least sum of squared moves.

    With the gaps taken off it is an isotonic regression, solved by pooling neighbours that are out of order (Barlow et
    al., Statistical Inference under Order Restrictions, 1972).
    """
    order = np.argsort(places, kind="stable")
    offsets = gap * np.arange(len(order))
    blocks: list[tuple[float, int]] = []
    for place in np.array(places, dtype=float)[order] - offsets:
        blocks.append((float(place), 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, n), (b, m) = blocks[-2:]
            blocks[-2:] = [((a * n + b * m) / (n + m), n + m)]
    centres = [centre for centre, n in blocks for _ in range(n)]
    moved = np.empty(len(order))
    moved[order] = np.array(centres) + offsets
    return [float(place) for place in moved]


# -- files -----------------------------------------------------------------------------------------------------


def to_svg(figure: Figure, title: str = "") -> str:
    """The figure as an `<svg>` element: no XML head, no fixed size, ids of its own, the same text for the same figure.

    Args:
        title: what it shows, for readers who hear the page.
    """
    text = io.StringIO()
    with mpl.rc_context(STYLE), _any_script():
        _settle(figure)
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = text.getvalue()
    svg = re.sub(
        r"<!--.*?-->|<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", svg[svg.index("<svg") :], flags=re.S
    )
    svg = re.sub(r'( [\w:-]+=)("[^"<>]*")', lambda match: match[1] + _shorter(match[2], match[1] == " d="), svg)
    svg = re.sub(r"<defs>\s*</defs>", "", svg)
    svg = re.sub(r">\s+<", ">\n<", svg).strip() + "\n"
    svg = _own_ids(svg, title)
    head = re.match(r"<svg[^>]*>", svg)
    assert head is not None
    opened = re.sub(r'\s(?:width|height|role|aria-label)="[^"]*"', "", head[0])[:-1]
    named = f' role="img" aria-label="{escape(title)}"' if title else ""
    titled = f"<title>{escape(title)}</title>" if title else ""
    return f'{opened}{named} stroke-linejoin="round" stroke-linecap="butt">{titled}{svg[head.end() :]}'


def to_png(figure: Figure) -> bytes:
    """The figure as PNG on white, at 160 dots per inch."""
    data = io.BytesIO()
    with mpl.rc_context(STYLE), _any_script():
        _settle(figure)
        figure.savefig(data, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return data.getvalue()


@contextmanager
def _any_script() -> Iterator[None]:
    """No warning of letters that Matplotlib's font lacks: a browser finds them elsewhere, a PNG shows boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"(?s)Glyph \d+ .* missing from font")
        yield


def _settle(figure: Figure) -> None:
    """Lays the figure out once: made anew for each file, a constrained layout moves by hundredths of a point."""
    if figure.get_layout_engine() is not None:
        FigureCanvasAgg(figure)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")


def _shorter(value: str, path: bool) -> str:
    """An attribute's value on one line; in paths to tenths of a point, which is less than a pixel, else hundredths."""
    places = 1 if path else 2
    value = re.sub(
        rf"-?\d+\.\d{{{places + 1},}}",
        lambda match: re.sub(r"^-0$", "0", f"{float(match[0]):.{places}f}".rstrip("0").rstrip(".")),
        value,
    )
    return re.sub(r"\s+", " ", value)


def _own_ids(svg: str, title: str) -> str:
    """Only ids that something refers to, begun by a digest of the figure, so that figures of a page share none."""
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg))
    mine = "f" + hashlib.sha256((title + svg).encode()).hexdigest()[:8]
    svg = re.sub(r' id="([^"]*)"', lambda match: f' id="{mine}-{match[1]}"' if match[1] in used else "", svg)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{mine}-", svg)


__all__ = [
    "FAINT",
    "GRID",
    "INK",
    "NARROW",
    "PALETTE",
    "STYLE",
    "WIDE",
    "Look",
    "compact",
    "end_labels",
    "panel",
    "plain",
    "power",
    "spread",
    "steps_axis",
    "thinned",
    "to_png",
    "to_svg",
]
