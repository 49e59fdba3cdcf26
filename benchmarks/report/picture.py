"""A figure of the report with its words and its files."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from markupsafe import Markup
from matplotlib.figure import Figure

from benchmarks.colours import themed
from benchmarks.drawing import to_png, to_svg
from metarl.training.folder import write_aside


@dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
        name: of its files, without suffix.
        title: above it; short.
        figure: as drawn.
        alt: what it shows, for readers who hear the page.
        text: its caption.
    """

    name: str
    title: str
    figure: Figure
    alt: str
    text: str = ""

    @cached_property
    def plain(self) -> str:
        """The figure as SVG in the colours of a white page."""
        return to_svg(self.figure, self.alt)

    @property
    def width(self) -> int:
        """Its natural width in CSS pixels."""
        return round(96 * float(self.figure.get_figwidth()))

    @property
    def svg(self) -> Markup:
        """The figure as SVG whose colours are custom properties of the page."""
        return Markup(themed(self.plain))

    def write(self, folder: Path) -> None:
        """Writes `<name>.svg` and `<name>.png`."""
        write_aside(folder / f"{self.name}.svg", self.plain)
        (folder / f"{self.name}.png").write_bytes(to_png(self.figure))


def slug(*words: str) -> str:
    """A file's name from labels: `curves-pendulum-medium`."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(words).lower()).strip("-")


class Names:
    """Files' names from labels, never one for two: labels that come out alike get a digest of their own.

    On file systems that do not tell capitals from small letters, they are told apart too.
    """

    def __init__(self, *taken: str) -> None:
        self._words: dict[str, tuple[str, ...]] = {name: () for name in taken}

    def __call__(self, *words: str) -> str:
        name = slug(*words)
        if self._words.get(name, words) != words:
            name += "-" + hashlib.sha256("\0".join(words).encode()).hexdigest()[:6]
        self._words[name] = words
        return name
