"""The report: one self-contained HTML page, and beside it its tables, figures and results as files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from benchmarks import tidy
from benchmarks.colours import themed, variables
from benchmarks.report import aggregate, curves, facts, heat, latex, learned, tables
from benchmarks.report.looks import looks
from benchmarks.report.picture import Names, Picture
from benchmarks.report.scores import ENOUGH, FOREMOST, MANY, grid
from benchmarks.results import Results
from benchmarks.statistics import Interval
from metarl import __version__
from metarl.config import to_yaml
from metarl.errors import UserError
from metarl.training.folder import write_aside

TEMPLATES = Path(__file__).parent / "templates"
OPEN, SHOWN = 4, 60  # learned functions whose pictures a page shows at once, more are folded; and that it shows at all


@dataclass(frozen=True)
class Learned:
    """A learned function of one cell.

    Attributes:
        title: which function of which cell.
        summary: its figures in words.
        pictures: of it.
    """

    title: str
    summary: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Together:
    """What several runs say together.

    Attributes:
        found: the scores.
        intervals: interquartile means by row, the best first.
        pictures: profiles and intervals.
    """

    found: aggregate.Aggregate
    intervals: Mapping[str, Interval]
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Page:
    """The page and its figures."""

    html: str
    pictures: tuple[Picture, ...]


def write(results: Results, out: Path, parquet: bool = True) -> Path:
    """Writes index.html, table.{csv,md,tex}, figures/ and results.parquet into `out`, and returns the page's path.

    Args:
        results: what to report.
        out: a folder; made where it is missing.
        parquet: whether results.parquet is wanted.

    Raises:
        UserError: `out` cannot be written.
    """
    made = build(results)
    overview = curves.learning_curves(results)
    try:
        (out / "figures").mkdir(parents=True, exist_ok=True)
        write_aside(out / "table.csv", tables.csv_text(results))
        write_aside(out / "table.md", tables.markdown(results))
        write_aside(out / "table.tex", latex.latex(results))
        if parquet:
            tidy.write(results, out / "results.parquet")
        for picture in made.pictures:
            picture.write(out / "figures")
        if overview is not None:
            Picture("curves", "Learning curves", overview, f"Learning curves of {results.name}").write(out / "figures")
        write_aside(out / "index.html", made.html)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}); choose another folder with --out") from error
    return out / "index.html"


def page(results: Results) -> str:
    """The page as HTML."""
    return build(results).html


def build(results: Results) -> Page:
    """The page with its figures."""
    name = Names("curves", "profiles", "iqm", "improvement")  # the files that stand alone
    curved = _by_column(results, curves.learning_curve, "Score over steps on {}, a line per method", name, "curves")
    functions = list(_learned(results, name))
    norms = "Norm of the hypergradient over steps on {}"
    slow = _by_column(results, curves.hypergradients, norms, name, "hypergradient")
    watched = list(_watched(results, name))
    heats = list(_heats(results, name))
    together = _together(results)
    better = _improvement(results)
    pictures = [
        *curved,
        *(together.pictures if together else ()),
        *([better] if better else ()),
        *heats,
        *(picture for item in functions for picture in item.pictures),
        *watched,
        *slow,
    ]
    look_of = looks(results.rows)
    scores, normalized, best = grid(results), grid(results, "normalized"), grid(results, "best")
    html = render(
        "report.html",
        pictures,
        title=results.name,
        looks=look_of,
        results=results,
        notes=tables.notes_of(results),
        lead=facts.lead(results),
        few=tables.FEW if scores.few or not scores.scores else "",
        enough=ENOUGH,
        head=list(facts.head(results)),
        provenance=list(facts.provenance(results)),
        scores=scores,
        normalized=normalized if normalized.scores else None,
        best=best,
        captions={one.kind: tables.caption(one) for one in (scores, normalized, best)},
        curves=curved,
        data=any(curves.data_returns(results, c) for c in results.columns if results.measure(c) == "return"),
        many=len(results.rows) > MANY,
        foremost=FOREMOST,
        banded=all(len(cell.finished) >= ENOUGH for cell in results.cells if cell.runs),
        together=together,
        why_none=aggregate.why_none(results),
        better=better,
        pairs=[(column, found) for column in results.columns if (found := aggregate.pairs(results, column))],
        heats=heats,
        learned=functions,
        folded=len(functions) > OPEN,
        shown=SHOWN,
        watched=watched,
        hypergradients=slow,
        moved={row: look for row, look in look_of.items() if row in curves.moved(results)},
        references=list(facts.references(results)),
        costs=facts.costs(results),
        differences=facts.differences(results),
        configs=[(facts.title(c), c.experiment, to_yaml(c.config)) for c in results.cells if c.config],
    )
    return Page(html, tuple(pictures))


def render(template: str, pictures: Iterable[Picture], title: str, **values: Any) -> str:
    """A page of the report: `template` with the colours that its figures and keys use."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(minus=_minus, breaks=_breaks, themed=_themed, p=tables.p_value)
    keys = "".join(themed(look.colour) for look in values.get("looks", {}).values())
    light, dark = variables("".join(picture.svg for picture in pictures) + keys)
    return environment.get_template(template).render(title=title, light=light, dark=dark, version=__version__, **values)


# -- parts -----------------------------------------------------------------------------------------------------


def _by_column(
    results: Results, draw: Callable[[Results, str], curves.Drawn | None], alt: str, name: Names, kind: str
) -> list[Picture]:
    drawn = ((column, draw(results, column)) for column in results.columns)
    return [
        Picture(name(kind, column), column, one.figure, alt.format(column), one.text)
        for column, one in drawn
        if one is not None
    ]


def _learned(results: Results, file: Names) -> Iterator[Learned]:
    look = looks(results.rows)
    drawings = (
        ("input", "Over its input", learned.probe_curve, ""),
        ("outputs", "Its outputs", learned.probe_histogram, ""),
        (
            "course",
            "Over training",
            learned.probe_course,
            "One line per seed, dotted where it has not finished; the band is the spread over a batch.",
        ),
    )
    for cell in results.cells:
        for name in dict.fromkeys(name for run in cell.runs for name, rows in run.probes.items() if rows):
            what = f"{facts.title(cell)}: {name.replace('_', ' ')}"
            pictures = []
            for short, title, draw, text in drawings:
                figure = draw(cell, name, look[cell.row].colour)
                if figure is not None:
                    called = file("learned", cell.row, cell.column, name, short)
                    pictures.append(Picture(called, title, figure, f"{what}, {title.lower()}", text))
            yield Learned(what, learned.summary(cell, name), tuple(pictures))


def _watched(results: Results, name: Names) -> Iterator[Picture]:
    for term, batches in curves.watched(results).items():
        for column in results.columns:
            drawn = curves.watch_curve(results, column, term, batches)
            if drawn is not None:
                what = term.replace("_", " ")
                alt = f"{what} over gradient steps on {column}, a panel a batch"
                yield Picture(name("watch", term, column), f"{what}, {column}", drawn.figure, alt, drawn.text)


def _heats(results: Results, file: Names) -> Iterator[Picture]:
    for column in results.columns:
        for name, found in heat.over_axes(results, column):
            title = ", ".join(filter(None, (column if results.column_title else "", name))) or "score"
            down, across = found.title
            alt = f"Mean score by {down} and {across}: {title}"
            yield Picture(file("axes", column, name), title, heat.heat_map(found), alt, found.seeds)


def _together(results: Results) -> Together | None:
    found = aggregate.aggregate(results)
    if found is None:
        return None
    made = aggregate.intervals(found)
    drawn = (
        Picture(
            "profiles",
            "Performance profiles",
            aggregate.profiles(found, results.rows),
            "Share of runs above every score, a line per method",
            "The higher a line, the more of its runs reach a score."
            + (" Bands: 95 % intervals." if len(found.scores) <= aggregate.BANDS else "")
            + f" {facts.seeds(found.seeds)}",
        ),
        Picture(
            "iqm",
            "Interquartile means",
            aggregate.forest(made, results.rows, found.unit),
            "Interquartile mean with its interval per method",
            "Mean of the middle half of all runs, with its 95 % interval (bootstrap, stratified by dataset). "
            f"Grey: that of the best. {facts.seeds(found.seeds)}",
        ),
    )
    order = sorted(made, key=lambda row: -made[row].value)
    return Together(found, {row: made[row] for row in order}, drawn)


def _improvement(results: Results) -> Picture | None:
    drawn = aggregate.improvement(results)
    if drawn is None:
        return None
    figure, found = drawn
    over = facts.count(len(found.columns), "dataset")
    text = (
        f"How often a run of the method at the left beats a run of the one below, averaged over {over}. "
        f"{facts.seeds(found.seeds)}"
    )
    return Picture("improvement", "Probability of improvement", figure, "Probability of improvement by pair", text)


def _minus(text: object) -> str:
    """A true minus before digits."""
    return str(text).replace("-", "−")


def _breaks(label: str) -> Markup:
    """A label that a narrow column may break after its slashes."""
    return Markup("/<wbr>").join(label.split("/"))


def _themed(colour: str) -> Markup:
    return Markup(themed(colour))
