"""The results table in its forms: terminal, CSV, Markdown, LaTeX (with `benchmarks.report.latex`)."""

from __future__ import annotations

import csv
import io
import math

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from benchmarks.report.scores import Grid, Score, digits, grid, mean_ends, values_of
from benchmarks.results import LAST, Cell, Results, Spread

FEW = "No significance is claimed below 3 seeds."
TIED, UNTESTED = "≈", "†"
_MARKDOWN = {"<": "&lt;"} | {c: f"\\{c}" for c in "\\|$*`"}


def rich_table(results: Results) -> RenderableType:
    """For the terminal."""
    shown_grid = grid(results)
    table = Table(title=Text(results.name), title_justify="left")
    table.add_column(Text(results.row_title))
    for column in shown_grid.columns:
        table.add_column(Text(heading(shown_grid, column)), justify="right")
    for row in results.rows:
        table.add_row(Text(row), *(_entry(shown_grid, row, column) for column in shown_grid.columns))
    return Group(table, Text(caption(shown_grid), style="dim"))


def caption(shown_grid: Grid) -> str:
    """What the numbers are, and a warning where seeds are few."""
    what = {
        "last": f"Mean score over the last {LAST} evaluations (all, where there are fewer)",
        "normalized": "The same score, normalised: 0 is a random policy and 100 an expert, by the references of each "
        "environment; success rates in percent",
        "best": "The best evaluation of each seed: optimistic, since it is chosen on the evaluations themselves",
    }[shown_grid.kind]
    parts = [f"{what}; n is the number of seeds."]
    scores = shown_grid.scores.values()
    if any(score.low is not None for score in scores):
        parts.append("Brackets: 95 % interval of the mean over seeds.")
    if any(score.around.startswith("±") for score in scores):
        parts.append("±: standard deviation over seeds, where they are fewer than 3.")
    if shown_grid.tested:
        parts.append(
            f"Bold: the highest mean. {TIED}: not significantly below it (t-test over seeds, paired where both "
            "have the same, else Welch's; Holm, 5 %); unmarked: significantly."
        )
        if any(score.untested for score in scores):
            parts.append(f"{UNTESTED}: not tested against it, since one of the two has too few seeds or diverged.")
    elif any(score.best for score in scores):
        parts.append("Bold: the highest mean.")
    if shown_grid.few or not shown_grid.scores:
        parts.append(FEW)
    return " ".join(parts)


def lines(shown_grid: Grid, row: str, column: str) -> str:
    """The text of one cell: `-1,234.5 ± 6.7  (n=2)`."""
    score = shown_grid.at(row, column)
    if score is None:
        return shown_grid.missing[row, column]
    return f"{' '.join(filter(None, (score.value + mark(shown_grid, score), score.around)))}  ({score.seeds})"


def mark(shown_grid: Grid, score: Score) -> str:
    """What stands beside a figure; of a table without any test, nothing."""
    untested = score.untested and shown_grid.tested
    return f" {TIED}" if score.tied else f" {UNTESTED}" if untested else ""


def shown(spread: Spread, places: int | None = None) -> str:
    """`-1,234.5 ± 6.7`; one seed has no spread."""
    if places is None:
        places = digits([math.hypot(spread.mean, spread.sd or 0)])
    sd = "" if spread.sd is None else f" ± {spread.sd:,.{places}f}"
    return f"{spread.mean:,.{places}f}{sd}"


def p_value(p: float) -> str:
    """Three digits, or below which it lies."""
    return "–" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def csv_text(results: Results) -> str:
    """One row a cell, full precision, the seeds' scores at the end; success rates as shares, as their interval."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = [results.row_title or "row", results.column_title or "column", "measure", "n", "planned", "steps"]
    means = ["mean", "sd", "low", "high", "best_mean", "best_sd", "normalized_mean", "normalized_sd"]
    writer.writerow([*head, *means, "seeds", "scores"])
    for cell in results.cells:
        runs, scores, normalized = cell.scored, cell.scores, values_of(cell, "normalized")
        ends = mean_ends(scores, 1.0 if cell.measure == "success" else None)
        figures = [
            *_numbers(cell.last),
            *(map(repr, ends) if ends else ("", "")),
            *_numbers(cell.best),
            *_numbers(None if normalized is None else Spread.of(normalized.tolist())),
        ]
        facts = [cell.row, cell.column, cell.measure, len(runs), len(cell.seeds), cell.steps]
        seeds = " ".join(str(run.seed) for run in runs)
        writer.writerow([*facts, *figures, seeds, " ".join(repr(float(score)) for score in scores)])
    return text.getvalue()


def markdown(results: Results) -> str:
    """Tables in GitHub's dialect, with the notes."""
    grids = [grid(results)]
    normalized = grid(results, "normalized")
    grids += [normalized] if normalized.scores else []
    notes = "".join(f"\n- {_plain(note)}" for note in notes_of(results))
    return "\n\n".join(_markdown(results, one) for one in grids) + f"\n{notes}".rstrip() + "\n"


def notes_of(results: Results) -> tuple[str, ...]:
    """Those of the results, and runs whose score is not finite, which no interval and no test counts."""
    return results.notes + tuple(
        f"{cell.row}, {cell.column}: seed {seed} diverged (its score is {score})"
        for cell in results.cells
        for seed, score in cell.by_seed.items()
        if not math.isfinite(score)
    )


# -- parts -----------------------------------------------------------------------------------------------------


def _entry(shown_grid: Grid, row: str, column: str) -> Text:
    """One cell of the terminal's table: the mean, and below it what stands around it."""
    score = shown_grid.at(row, column)
    if score is None:
        return Text(shown_grid.missing[row, column], style="dim")
    text = Text(score.value + mark(shown_grid, score), style="bold" if score.best else "")
    return text.append(f"\n{' '.join(filter(None, (score.around, score.seeds)))}", style="not bold dim")


def _markdown(results: Results, one: Grid) -> str:
    head = [_plain(results.row_title), *(_plain(heading(one, c)) for c in one.columns), *total_heads(one)]
    rows = [head, ["---", *("---:" for _ in head[1:])]]
    for row in one.rows:
        texts = []
        for column in one.columns:
            score, text = one.at(row, column), lines(one, row, column)
            if score is not None and score.best:
                figures, seeds = text.split("  (")
                text = f"**{figures}**  ({seeds}"
            if one.kind == "last" and (cell := results.at(row, column)) is not None and (best := _best(cell)):
                text += f"<br>best {shown(best)}"
            texts.append(text)
        total = one.totals.get(row)
        texts += total_texts(one, row)[:1] + [f"{text}  ({total.seeds})" for text in total_texts(one, row)[1:] if total]
        rows.append([_plain(row), *texts])
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    best_too = (
        " best: the best evaluation of each seed, ± its standard deviation over seeds."
        if one.kind == "last" and one.scores
        else ""
    )
    return f"{table}\n\n{caption(one)}{best_too}"


def _best(cell: Cell) -> Spread | None:
    return Spread.of(values_of(cell, "best").tolist())


def _plain(text: str) -> str:
    """Labels in Markdown, where some characters would be markup."""
    return "".join(_MARKDOWN.get(c, c) for c in text)


def heading(one: Grid, column: str) -> str:
    """`pendulum (return)`."""
    return column if one.units[column] == "return" and column == "return" else f"{column} ({one.units[column]})"


def total_heads(one: Grid) -> list[str]:
    """Titles of the columns with totals."""
    return [f"sum of {len(one.common)}", "IQM"] if one.totals else []


def total_texts(one: Grid, row: str) -> list[str]:
    """A row's totals."""
    if not one.totals:
        return []
    total = one.totals.get(row)
    if total is None:
        return ["", ""]
    iqm = "" if total.iqm is None else f"{total.iqm.value:.1f} [{total.iqm.low:.1f}, {total.iqm.high:.1f}]"
    return [f"{total.sum:,.1f}", iqm]


def _numbers(spread: Spread | None) -> tuple[str, str]:
    if spread is None:
        return "", ""
    return repr(spread.mean), "" if spread.sd is None else repr(spread.sd)
