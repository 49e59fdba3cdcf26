"""Two sets of results side by side: what is the same cell in both, how far apart, and what was configured unlike."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from benchmarks.report import facts, tables
from benchmarks.report.page import render
from benchmarks.report.scores import ENOUGH, by_seed, digits, testable, values_of
from benchmarks.results import Cell, Results, Spread
from benchmarks.statistics import Interval, difference, holm, over_seeds, significant
from metarl.errors import UserError
from metarl.training.folder import write_aside

CAPTION = (
    "Mean score over the last evaluations in each; success rates in percent; ±: standard deviation over seeds; n: "
    "their number. The difference is the second less the first, in brackets its 95 % interval; p of the t-test over "
    "seeds (paired where both have the same, else Welch's), Holm-corrected over all cells that are not identical to "
    "the last bit."
)

Key = frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Match:
    """A cell that both have.

    Attributes:
        row, column: its labels.
        first, second: its scores in each; None where no run has finished.
        difference: the second mean less the first; None where one is missing, or they measure unlike things.
        interval: of the difference; None where there is no test.
        p: of the test over seeds, Holm-corrected; None where there is none.
        verdict: in words, with the reason where there is no test.
        keys: configuration keys that differ, with both values.
        digits: after the point.
    """

    row: str
    column: str
    first: Spread | None
    second: Spread | None
    difference: float | None
    interval: Interval | None
    p: float | None
    verdict: str
    keys: tuple[tuple[str, str, str], ...]
    digits: int

    @property
    def holds(self) -> bool:
        """Whether the difference is significant."""
        return self.verdict in ("higher", "lower")

    @property
    def ends(self) -> str:
        """`[-3.1, +2.2]`, or nothing."""
        return (
            "" if self.interval is None else f"[{self._signed(self.interval.low)}, {self._signed(self.interval.high)}]"
        )

    @property
    def shown(self) -> str:
        """The difference with its sign."""
        return "" if self.difference is None else self._signed(self.difference)

    def figures(self, spread: Spread) -> str:
        """One of the two, in the digits of both."""
        return tables.shown(spread, self.digits)

    def _signed(self, value: float) -> str:
        return f"{value:+,.{self.digits}f}"


@dataclass(frozen=True)
class Comparison:
    """Two sets of results.

    Attributes:
        titles: of the first and the second.
        results: both.
        matches: cells that both have.
        only: cells that one has alone, of the first and of the second.
        remark: on how cells were matched; empty where it was by all their labels.
    """

    titles: tuple[str, str]
    results: tuple[Results, Results]
    matches: tuple[Match, ...]
    only: tuple[tuple[str, ...], tuple[str, ...]]
    remark: str = ""

    @property
    def notes(self) -> tuple[str, ...]:
        """Of both, with cells that one lacks."""
        notes = [self.remark] if self.remark else []
        notes += [
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
    bare = [
        name for name, loaded in zip(names, (first, second), strict=True) if not all(c.labels for c in loaded.cells)
    ]
    ours, theirs = (_keyed(loaded, bool(bare)) for loaded in (first, second))
    common = [key for key in ours if key in theirs]
    if not common:
        raise UserError(f"{names[0]} and {names[1]} have no cell in common: {_unlike(first, second, ours, theirs)}")
    tests = [_test(ours[key], theirs[key]) for key in common]
    known = [i for i, p in enumerate(tests) if p is not None]
    corrected = dict(zip(known, holm([p for p in tests if p is not None]), strict=True)) if known else {}
    matches = [
        _match(ours[key], theirs[key], None if i not in corrected else float(corrected[i]))
        for i, key in enumerate(common)
    ]
    only = tuple(
        tuple(facts.title(cell) for key, cell in some.items() if key not in others)
        for some, others in ((ours, theirs), (theirs, ours))
    )
    remark = f"Cells are matched by row and column, since {' and '.join(bare)} tells no labels." if bare else ""
    return Comparison(names, (first, second), tuple(matches), (only[0], only[1]), remark)


def rich_table(found: Comparison) -> RenderableType:
    """For the terminal."""
    first = found.results[0]
    table = Table(title=Text(f"{found.titles[1]} against {found.titles[0]}"), title_justify="left")
    table.add_column(Text(f"{first.row_title}\n{first.column_title}"))
    for title in ("first", "second", "difference"):
        table.add_column(title, justify="right")
    table.add_column("verdict")
    for match in found.matches:
        both = (match.first, match.second)
        spreads = [match.figures(s).replace(" ±", "\n±") + f" n={s.n}" if s else "" for s in both]
        p = "" if match.p is None else tables.p_value(match.p)
        verdict = match.verdict + (f"\np {p}" if p.startswith("<") else f"\np = {p}" if p else "")
        cells = (f"{match.row}\n{match.column}", *spreads, f"{match.shown}\n{match.ends}", verdict)
        table.add_row(*map(Text, cells))
    return Group(table, Text(CAPTION, style="dim"))


def page(found: Comparison) -> str:
    """The comparison as a page."""
    return render(
        "compare.html",
        (),
        title=f"{found.results[1].name} against {found.results[0].name}",
        found=found,
        caption=CAPTION,
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


def _keyed(loaded: Results, bare: bool) -> dict[Key, Cell]:
    """Cells by the labels of their axes, whatever their order; where a side tells none, by row and column."""
    return {
        frozenset({"row": cell.row, "column": cell.column}.items() if bare else cell.labels.items()): cell
        for cell in loaded.cells
    }


def _unlike(first: Results, second: Results, ours: Mapping[Key, Cell], theirs: Mapping[Key, Cell]) -> str:
    """Why nothing matches."""
    axes = [{axis for key in keys for axis, _ in key} for keys in (ours, theirs)]
    if axes[0] != axes[1]:
        one, other = (", ".join(axis for axis in loaded.axes) for loaded in (first, second))
        return f"the axes of one are {one}, of the other {other}; compare suites whose axes have the same names"
    return f"{_listed(ours)} against {_listed(theirs)}; compare results of the same methods and datasets"


def _untested(one: Cell, other: Cell) -> str:
    """Why there is no test; empty where there is one."""
    missing = [title for title, cell in (("first", one), ("second", other)) if not cell.scored]
    if missing:
        return f"no finished run in the {' and the '.join(missing)}"
    if one.measure != other.measure:
        return "success rates against returns: not compared"
    sizes, common = {len(one.by_seed), len(other.by_seed)}, _identical(one, other)
    if common and common in sizes:
        return "identical" if len(sizes) == 1 else f"identical on {facts.count(common, 'common seed')}"
    if not all(math.isfinite(score) for cell in (one, other) for score in cell.by_seed.values()):
        return "a seed diverged: no test"
    enough = testable(one.scores) and testable(other.scores)
    return "" if enough else f"fewer than {ENOUGH} seeds: no test"


def _identical(one: Cell, other: Cell) -> int:
    """How many seeds are common, where all of them have the same score to the last bit; else none."""
    pairs = [(score, other.by_seed[seed]) for seed, score in one.by_seed.items() if seed in other.by_seed]
    return len(pairs) if all(x == y or (math.isnan(x) and math.isnan(y)) for x, y in pairs) else 0


def _test(one: Cell, other: Cell) -> float | None:
    """The test's p; None where there is none."""
    test = None if _untested(one, other) else over_seeds(by_seed(other), by_seed(one))
    return None if test is None else test.p


def _match(one: Cell, other: Cell, p: float | None) -> Match:
    first, second = (Spread.of(values_of(cell).tolist()) for cell in (one, other))
    comparable = first is not None and second is not None and one.measure == other.measure
    gap = second.mean - first.mean if first and second and comparable else None
    interval = None if p is None else difference(by_seed(other), by_seed(one))
    verdict = _untested(one, other)
    if p is not None and gap is not None:
        clear = significant(p, min(len(one.by_seed), len(other.by_seed)))
        verdict = ("higher" if gap > 0 else "lower") if clear else "not significant"
    return Match(
        row=one.row,
        column=one.column,
        first=first,
        second=second,
        difference=gap,
        interval=interval,
        p=p,
        verdict=verdict,
        keys=tuple(_keys(one, other)),
        digits=digits([spread.mean for spread in (first, second) if spread]),
    )


def _keys(one: Cell, other: Cell) -> Iterator[tuple[str, str, str]]:
    if one.config is None or other.config is None:
        return
    ours, theirs = facts.flat(one.config), facts.flat(other.config)
    for key in dict.fromkeys((*ours, *theirs)):
        if key not in facts.LABELS and ours.get(key) != theirs.get(key):
            yield key, ours.get(key, ""), theirs.get(key, "")


def _listed(cells: Mapping[Key, Cell]) -> str:
    names = [facts.title(cell) for cell in cells.values()]
    return "; ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
