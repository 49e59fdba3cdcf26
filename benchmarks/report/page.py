"""The report: one self-contained HTML page, and the table and curves beside it as files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from benchmarks.report import figures, tables
from benchmarks.results import LAST, Cell, Results
from metarl import __version__
from metarl.config import to_yaml
from metarl.errors import UserError
from metarl.training.folder import write_aside

TEMPLATES = Path(__file__).parent / "templates"
SHA = 12  # hex digits shown


@dataclass(frozen=True)
class Picture:
    """A figure in the page.

    Attributes:
        title: above it.
        svg: the figure.
        text: below it.
    """

    title: str
    svg: Markup
    text: str = ""


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


def write(results: Results, out: Path) -> Path:
    """Writes index.html, table.csv, table.md and curves.png into `out`, and returns the page's path.

    Raises:
        UserError: `out` cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_aside(out / "table.csv", tables.csv_text(results))
        write_aside(out / "table.md", tables.markdown(results))
        curves = figures.learning_curves(results)
        if curves is not None:
            (out / "curves.png").write_bytes(figures.to_png(curves))
        write_aside(out / "index.html", page(results))
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}); choose another folder with --out") from error
    return out / "index.html"


def page(results: Results) -> str:
    """The page as HTML."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(
        results=results,
        lead=_lead(results),
        colours=figures.colours(results),
        lines=tables.lines,
        few=tables.FEW if results.fewest < 3 else "",
        last=LAST,
        provenance=list(_provenance(results)),
        curves=_by_column(results, figures.learning_curve),
        learned=list(_learned(results)),
        hypergradients=_by_column(results, figures.hypergradients),
        configs=[(f"{c.row}, {c.column}", c.experiment, to_yaml(c.config)) for c in results.cells if c.config],
        version=__version__,
    )


def _lead(results: Results) -> str:
    """`3 methods × 1 dataset, 6 finished runs`."""
    grid = _count(len(results.rows), results.row_title or "row")
    if results.column_title:
        grid += f" × {_count(len(results.columns), results.column_title)}"
    return f"{grid}, {_count(results.finished, 'finished run')}"


def _count(n: int, what: str) -> str:
    return f"{n} {what}" + ("" if n == 1 else "s")


def _by_column(results: Results, draw: Callable[[Results, str], Figure | None]) -> list[Picture]:
    drawn = ((column, draw(results, column)) for column in results.columns)
    return [Picture(column, Markup(figures.to_svg(figure))) for column, figure in drawn if figure is not None]


def _learned(results: Results) -> Iterator[Learned]:
    colour = figures.colours(results)
    for cell in results.cells:
        for name in dict.fromkeys(name for run in cell.runs for name in run.probes):
            drawn = (
                ("Over its input", figures.probe_curve, ""),
                ("Its outputs", figures.probe_histogram, ""),
                ("Over training", figures.probe_course, "One line per seed; the band is the spread over a batch."),
            )
            pictures = [(title, draw(cell, name, colour[cell.row]), text) for title, draw, text in drawn]
            yield Learned(
                f"{cell.row}, {cell.column}: {name.replace('_', ' ')}",
                _summary(cell, name),
                tuple(Picture(t, Markup(figures.to_svg(f)), x) for t, f, x in pictures if f is not None),
            )


def _summary(cell: Cell, name: str) -> str:
    ends = [(run.probes[name][0], run.probes[name][-1], run.seed) for run in cell.runs if run.probes.get(name)]
    what = ends[0][0]["output_name"]
    seeds = "; ".join(
        f"seed {seed}: {first['mean']:.3g} to {last['mean']:.3g}, moved by {last['moved']:.3g}"
        for first, last, seed in ends
    )
    return (
        f"Mean {what} over a batch from start to end, and the mean distance of its outputs from those that the "
        f"initial function gives on the same inputs: {seeds}."
    )


def _provenance(results: Results) -> Iterator[tuple[str, str]]:
    """(what, value) lines of the page's head."""
    seeds = sorted({seed for cell in results.cells for seed in cell.seeds})
    counts = sorted({len(cell.finished) for cell in results.cells})
    finished = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    yield "seeds", f"{', '.join(map(str, seeds))} ({finished} finished per cell)"
    steps = sorted({cell.steps for cell in results.cells})
    yield "gradient steps", " and ".join(f"{step:,}" for step in steps)
    episodes = sorted({_evaluation(c.config) for c in results.cells if c.config})
    yield "evaluation", "; ".join(episodes)
    yield from _datasets(results)
    for environment in results.environments:
        machine = environment.get("machine", "")
        versions = ", ".join(f"{name} {version}" for name, version in environment.items() if name != "machine")
        yield "made with", f"{versions}; {machine}"


def _evaluation(config: Mapping[str, Any]) -> str:
    evaluation = config["evaluation"]
    return f"{evaluation['episodes']} episodes every {evaluation['every']:,} steps"


def _datasets(results: Results) -> Iterator[tuple[str, str]]:
    """One line a role: every dataset with its digest; a draw by seed gives each seed its own."""
    cards = [(role, card) for cell in results.cells for run in cell.runs for role, card in run.data.items()]
    for role in dict.fromkeys(role for role, _ in cards):
        shas: dict[str, dict[str, None]] = {}
        for card in (card for name, card in cards if name == role):
            drawn = card.get("figures", {}).get("drawn")
            text = card["dataset_id"] + (f" ({drawn})" if drawn else "")
            shas.setdefault(text, {})[card["sha256"][:SHA]] = None
        lines = []
        for text, (first, *others) in shas.items():
            lines.append(f"{text}, sha256 {first}" + (f" and {len(others)} more, drawn per seed" if others else ""))
        yield f"data, {role}", "; ".join(lines)
