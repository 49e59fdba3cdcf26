"""The results table in its forms: terminal, CSV, Markdown, LaTeX."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from benchmarks.report.scores import Grid, Score, grid, values_of
from benchmarks.results import LAST, Results, Spread
from benchmarks.statistics import mean_interval

FEW = "No significance is claimed below 3 seeds."
TIED = "≈"
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {c: f"\\{c}" for c in "&%$#_{}"} | {"≈": r"$\approx$", "·": r"$\cdot$", "−": "$-$", "×": r"$\times$"}


def rich_table(results: Results) -> RenderableType:
    """For the terminal."""
    shown_grid = grid(results)
    table = Table(title=Text(results.name), title_justify="left")
    table.add_column(Text(results.row_title))
    for column in shown_grid.columns:
        table.add_column(Text(_head(shown_grid, column)), justify="right")
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
    if any(score.low is None and score.sd is not None for score in scores):
        parts.append("±: standard deviation over seeds, where they are fewer than 3.")
    if shown_grid.tested and shown_grid.kind != "best":
        parts.append(f"Bold: the highest mean. {TIED}: not significantly below it (test over seeds, Holm, 5 %).")
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
    return f"{' '.join(filter(None, (score.value + _mark(score), score.around)))}  ({score.seeds})"


def shown(spread: Spread) -> str:
    """`-1,234.5 ± 6.7`; one seed has no spread."""
    digits = 1 if math.hypot(spread.mean, spread.sd or 0) >= 10 else 3
    sd = "" if spread.sd is None else f" ± {spread.sd:,.{digits}f}"
    return f"{spread.mean:,.{digits}f}{sd}"


def csv_text(results: Results) -> str:
    """One row a cell, full precision, the seeds' scores at the end; success rates as shares."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = [results.row_title or "row", results.column_title or "column", "measure", "n", "planned", "steps"]
    means = ["mean", "sd", "low", "high", "best_mean", "best_sd", "normalized_mean", "normalized_sd"]
    writer.writerow([*head, *means, "seeds", "scores"])
    for cell in results.cells:
        runs, scores, normalized = cell.scored, cell.scores, values_of(cell, "normalized")
        interval = mean_interval(scores) if len(scores) > 1 else None
        ends = ["", ""] if interval is None else [repr(float(interval.low)), repr(float(interval.high))]
        figures = [
            *_numbers(cell.last),
            *ends,
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
    notes = "".join(f"\n- {note}" for note in results.notes)
    return "\n\n".join(_markdown(results, one) for one in grids) + f"\n{notes}".rstrip() + "\n"


def latex(results: Results) -> str:
    """Tables for a paper; needs the package booktabs."""
    grids = [grid(results)]
    normalized = grid(results, "normalized")
    grids += [normalized] if normalized.scores else []
    return "\n".join(["% needs \\usepackage{booktabs}", *(_latex(results, one) for one in grids)])


# -- parts -----------------------------------------------------------------------------------------------------


def _entry(shown_grid: Grid, row: str, column: str) -> Text:
    """One cell of the terminal's table: the mean, and below it what stands around it."""
    score = shown_grid.at(row, column)
    if score is None:
        return Text(shown_grid.missing[row, column], style="dim")
    text = Text(score.value + _mark(score), style="bold" if score.best else "")
    return text.append(f"\n{' '.join(filter(None, (score.around, score.seeds)))}", style="not bold dim")


def _markdown(results: Results, one: Grid) -> str:
    head = [results.row_title, *(_head(one, c) for c in one.columns), *_total_heads(one)]
    rows = [head, ["---", *("---:" for _ in head[1:])]]
    for row in one.rows:
        texts = []
        for column in one.columns:
            score, text = one.at(row, column), lines(one, row, column)
            if score is not None and score.best:
                figures, seeds = text.split("  (")
                text = f"**{figures}**  ({seeds}"
            if one.kind == "last" and (cell := results.at(row, column)) is not None and cell.best is not None:
                best = cell.best
                if cell.measure == "success":
                    best = Spread(100 * best.mean, None if best.sd is None else 100 * best.sd, best.n)
                text += f"<br>best {shown(best)}"
            texts.append(text)
        rows.append([row, *texts, *_total_texts(one, row)])
    table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
    best_too = " best: the best evaluation of each seed." if one.kind == "last" and one.scores else ""
    return f"{table}\n\n{caption(one)}{best_too}"


def _latex(results: Results, one: Grid) -> str:
    head = [results.row_title, *(_head(one, c) for c in one.columns), *_total_heads(one)]
    body = []
    for row in one.rows:
        texts = [_escaped(row)]
        for column in one.columns:
            score = one.at(row, column)
            if score is None:
                texts.append("--")
                continue
            value = _number(score.value)
            value = f"\\textbf{{{value}}}" if score.best else value + ("$^{\\approx}$" if score.tied else "")
            around = f" {{\\scriptsize {_number(score.around)}}}" if score.around else ""
            texts.append(f"{value}{around}")
        texts += [_number(text) for text in _total_texts(one, row)]
        body.append(" & ".join(texts) + r" \\")
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            f"\\caption{{{_escaped(caption(one))} {_escaped(_seeds(one))}}}",
            f"\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
            r"\toprule",
            " & ".join(map(_escaped, head)) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _seeds(one: Grid) -> str:
    """The numbers of seeds in a sentence, since they have no room in a paper's cells."""
    counts = sorted({score.n for score in one.scores.values()})
    if not counts:
        return ""
    return f"n = {counts[0]}." if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}."


def _head(one: Grid, column: str) -> str:
    return column if one.units[column] == "return" and column == "return" else f"{column} ({one.units[column]})"


def _total_heads(one: Grid) -> list[str]:
    return [f"sum of {len(one.common)}", "IQM"] if one.totals else []


def _total_texts(one: Grid, row: str) -> Sequence[str]:
    if not one.totals:
        return []
    total = one.totals.get(row)
    if total is None:
        return ["", ""]
    iqm = "" if total.iqm is None else f"{total.iqm.value:.1f} [{total.iqm.low:.1f}, {total.iqm.high:.1f}]"
    return [f"{total.sum:,.1f}", iqm]


def _mark(score: Score) -> str:
    return f" {TIED}" if score.tied else ""


def _number(text: str) -> str:
    """Minus signs, thousands and ± as LaTeX sets them."""
    return text.replace("-", "$-$").replace(",", "{,}").replace("{,} ", ", ").replace("±", r"$\pm$").replace("%", r"\%")


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(c, c) for c in text).replace("±", r"$\pm$")


def _numbers(spread: Spread | None) -> tuple[str, str]:
    if spread is None:
        return "", ""
    return repr(spread.mean), "" if spread.sd is None else repr(spread.sd)
