"""Two sets of results side by side: what is the same cell in both, how far apart, and what was configured unlike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from scipy import stats

from benchmarks.report import facts, tables
from benchmarks.report.page import render
from benchmarks.report.scores import ENOUGH, testable, values_of
from benchmarks.results import Cell, Results, Spread
from benchmarks.statistics import holm, over_seeds, significant
from metarl.errors import UserError
from metarl.training.folder import write_aside

CAPTION = (
    "Mean score over the last evaluations in each; success rates in percent. The difference is the second less the "
    "first, in brackets its 95 % interval (Welch); p over seeds, Holm-corrected over all cells that are not "
    "identical to the last bit."
)


@dataclass(frozen=True)
class Match:
    """A cell that both have.

    Attributes:
        row, column: its labels.
        first, second: its scores in each; None where no run has finished.
        difference: the second mean less the first; None where one is missing.
        low, high: of its 95 % interval; None where there is no test.
        p: of the test over seeds, Holm-corrected; None below three seeds, and of identical scores.
        holds: whether the difference is significant.
        identical: whether every common seed has the same score to the last bit.
        keys: configuration keys that differ, with both values.
    """

    row: str
    column: str
    first: Spread | None
    second: Spread | None
    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    holds: bool
    identical: bool
    keys: tuple[tuple[str, str, str], ...]

    @property
    def interval(self) -> str:
        """`[-3.1, 2.2]`, or nothing."""
        return "" if self.low is None or self.high is None else f"[{_signed(self.low)}, {_signed(self.high)}]"

    @property
    def shown(self) -> str:
        """The difference with its sign."""
        return "" if self.difference is None else _signed(self.difference)

    @property
    def verdict(self) -> str:
        """In words."""
        if self.difference is None:
            return "not finished in both"
        if self.identical:
            return "identical"
        if self.p is None:
            return f"fewer than {ENOUGH} seeds: no test"
        return ("higher" if self.difference > 0 else "lower") if self.holds else "not significant"


@dataclass(frozen=True)
class Comparison:
    """Two sets of results.

    Attributes:
        titles: of the first and the second.
        results: both.
        matches: cells that both have.
        only: cells that one has alone, of the first and of the second.
    """

    titles: tuple[str, str]
    results: tuple[Results, Results]
    matches: tuple[Match, ...]
    only: tuple[tuple[str, ...], tuple[str, ...]]

    @property
    def notes(self) -> tuple[str, ...]:
        """Of both, with cells that one lacks."""
        notes = [
            f"{other} has no {name}"
            for names, other in zip(self.only, reversed(self.titles), strict=True)
            for name in names
        ]
        for title, loaded in zip(self.titles, self.results, strict=True):
            notes += [f"{title}: {note}" for note in loaded.notes]
        return tuple(notes)


def compare(first: Results, second: Results, *titles: str) -> Comparison:
    """Cells matched by their labels.

    Args:
        first, second: to be compared.
        titles: what they are called; by default their names.

    Raises:
        UserError: they have no cell in common.
    """
    names = (titles[0], titles[1]) if len(titles) == 2 else (first.name, second.name)
    ours, theirs = ({(c.row, c.column): c for c in loaded.cells} for loaded in (first, second))
    common = [place for place in ours if place in theirs]
    if not common:
        raise UserError(
            f"{names[0]} and {names[1]} have no cell in common: {_listed(ours)} against {_listed(theirs)}; "
            "compare results of the same methods and datasets"
        )
    tests = [_test(ours[place], theirs[place]) for place in common]
    known = [i for i, p in enumerate(tests) if p is not None]
    corrected = dict(zip(known, holm([p for p in tests if p is not None]), strict=True)) if known else {}
    matches = [
        _match(ours[place], theirs[place], None if i not in corrected else float(corrected[i]))
        for i, place in enumerate(common)
    ]
    only = (
        tuple(", ".join(place) for place in ours if place not in theirs),
        tuple(", ".join(place) for place in theirs if place not in ours),
    )
    return Comparison(names, (first, second), tuple(matches), only)


def rich_table(found: Comparison) -> RenderableType:
    """For the terminal."""
    first = found.results[0]
    table = Table(title=Text(f"{found.titles[1]} against {found.titles[0]}"), title_justify="left")
    table.add_column(Text(f"{first.row_title}\n{first.column_title}"))
    for title in ("first", "second", "difference"):
        table.add_column(title, justify="right")
    table.add_column("verdict")
    for match in found.matches:
        spreads = [tables.shown(s).replace(" ±", "\n±") + f" n={s.n}" if s else "" for s in (match.first, match.second)]
        verdict = match.verdict + ("" if match.p is None else f"\np = {match.p:.3f}")
        difference = f"{match.shown}\n{match.interval}"
        table.add_row(*map(Text, (f"{match.row}\n{match.column}", *spreads, difference, verdict)))
    return Group(table, Text(CAPTION, style="dim"))


def page(found: Comparison) -> str:
    """The comparison as a page."""
    return render(
        "compare.html",
        (),
        title=f"{found.results[1].name} against {found.results[0].name}",
        found=found,
        caption=CAPTION,
        shown=tables.shown,
        few=tables.FEW if any(m.verdict.startswith("fewer") for m in found.matches) else "",
        provenance=[[*facts.head(results), *facts.provenance(results)] for results in found.results],
    )


def write(found: Comparison, out: Path) -> Path:
    """Writes index.html into `out`, and returns its path.

    Raises:
        UserError: `out` cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_aside(out / "index.html", page(found))
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}); choose another folder with --out") from error
    return out / "index.html"


# -- parts -----------------------------------------------------------------------------------------------------


def _test(one: Cell, other: Cell) -> float | None:
    """The test's p; None below three seeds, and of identical scores, which leave nothing to test."""
    if not (testable(one.scores) and testable(other.scores)) or one.measure != other.measure or _identical(one, other):
        return None
    test = over_seeds(values_of(other), values_of(one))
    return None if test is None else test.p


def _match(one: Cell, other: Cell, p: float | None) -> Match:
    x, y = values_of(one), values_of(other)
    same = one.measure == other.measure
    difference = float(y.mean() - x.mean()) if same and len(x) and len(y) else None
    low, high = _interval(x, y) if p is not None else (None, None)
    return Match(
        row=one.row,
        column=one.column,
        first=Spread.of(x.tolist()),
        second=Spread.of(y.tolist()),
        difference=difference,
        low=low,
        high=high,
        p=p,
        holds=p is not None and significant(p, min(len(x), len(y))),
        identical=difference is not None and _identical(one, other),
        keys=tuple(_keys(one, other)),
    )


def _interval(x: Any, y: Any) -> tuple[float | None, float | None]:
    """Welch's interval of mean(y) - mean(x); nothing where no score varies."""
    if np.ptp(x) == 0 and np.ptp(y) == 0:
        return None, None
    found = stats.ttest_ind(y, x, equal_var=False).confidence_interval(0.95)
    return float(found.low), float(found.high)


def _identical(one: Cell, other: Cell) -> bool:
    ours, theirs = ({run.seed: run.score for run in cell.scored} for cell in (one, other))
    return ours == theirs


def _keys(one: Cell, other: Cell) -> Iterator[tuple[str, str, str]]:
    if one.config is None or other.config is None:
        return
    ours, theirs = facts.flat(one.config), facts.flat(other.config)
    for key in dict.fromkeys((*ours, *theirs)):
        if key not in facts.LABELS and ours.get(key) != theirs.get(key):
            yield key, ours.get(key, ""), theirs.get(key, "")


def _listed(places: dict[tuple[str, str], Cell]) -> str:
    names = [", ".join(place) for place in places]
    return "; ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _signed(value: float) -> str:
    return f"{value:+,.{1 if abs(value) >= 10 else 3}f}"
