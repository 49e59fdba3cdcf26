"""The results table in LaTeX."""

from __future__ import annotations

import re
import unicodedata

from benchmarks.report.scores import Grid, Score, grid
from benchmarks.report.tables import TIED, UNTESTED, caption, heading, mark, total_heads, total_texts
from benchmarks.results import Results

MARKS = {f" {TIED}": r"$^{\approx}$", f" {UNTESTED}": r"$^{\dagger}$", "": ""}
_WORDS = {"\\": "backslash", "~": "asciitilde", "^": "asciicircum", "<": "less", ">": "greater", "|": "bar"}
_CHARACTERS = {c: rf"\text{word}{{}}" for c, word in _WORDS.items()} | {c: rf"\{c}" for c in "&%$#_{}"}
_CHARACTERS |= {TIED: r"$\approx$", UNTESTED: r"$\dagger$", "·": r"$\cdot$", "−": "$-$", "×": r"$\times$"}
_CHARACTERS |= {"±": r"$\pm$", "∞": r"$\infty$", "≤": r"$\leq$", "≥": r"$\geq$"}
_ALIKE = {"ALPHA": "A", "BETA": "B", "EPSILON": "E", "ZETA": "Z", "ETA": "H", "IOTA": "I", "KAPPA": "K", "MU": "M"}
_ALIKE |= {"NU": "N", "OMICRON": "O", "RHO": "P", "TAU": "T", "CHI": "X"}  # capitals that Latin letters stand for
_GREEK = re.compile(r"GREEK (SMALL|CAPITAL) LETTER ([\w ]+)$")


def latex(results: Results) -> str:
    """Tables for a paper; needs the package booktabs."""
    grids = [grid(results)]
    normalized = grid(results, "normalized")
    grids += [normalized] if normalized.scores else []
    return "\n".join(["% needs \\usepackage{booktabs}", *(_table(results, one) for one in grids)])


def escaped(text: str) -> str:
    """The text as LaTeX prints it; at the start of a row, no `[` or `*` that the line break before it would take."""
    found = "".join(_CHARACTERS.get(c) or _letter(c) for c in text)
    return "{}" + found if found[:1] in ("[", "*") else found


# -- parts -----------------------------------------------------------------------------------------------------


def _table(results: Results, one: Grid) -> str:
    head = [results.row_title, *(heading(one, c) for c in one.columns), *total_heads(one)]
    counts = sorted({score.n for score in one.scores.values()})
    body = []
    for row in one.rows:
        texts = [escaped(row)]
        for column in one.columns:
            score = one.at(row, column)
            texts.append("--" if score is None else _figure(one, score, len(counts) > 1))
        body.append(" & ".join([*texts, *map(_number, total_texts(one, row))]) + r" \\")
    seeds = f"n = {counts[0]}." if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}." if counts else ""
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            f"\\caption{{{escaped(caption(one))} {seeds}}}",
            f"\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
            r"\toprule",
            " & ".join(map(escaped, head)) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _figure(one: Grid, score: Score, counted: bool) -> str:
    """The mean with its mark and what stands around it; its seeds where they are not those of all."""
    value = _number(score.value)
    value = f"\\textbf{{{value}}}" if score.best else value + MARKS[mark(one, score)]
    small = [_number(score.around)] if score.around else []
    small += [f"$n={score.n}$"] if counted else []
    return value + (f" {{\\scriptsize {' '.join(small)}}}" if small else "")


def _number(text: str) -> str:
    """Minus signs, thousands and ± as LaTeX sets them."""
    return text.replace("-", "$-$").replace(",", "{,}").replace("{,} ", ", ").replace("±", r"$\pm$").replace("%", r"\%")


def _letter(character: str) -> str:
    """A Greek letter or a raised or lowered digit in mathematics; anything else as it is."""
    plain = unicodedata.normalize("NFKC", character)
    kind = unicodedata.decomposition(character)
    if kind.startswith(("<super>", "<sub>")) and plain.isascii():
        return f"${'^' if kind.startswith('<super>') else '_'}{{{plain}}}$"
    found = _GREEK.match(unicodedata.name(character, ""))
    if found is None:
        return character
    size, name = found.groups()
    name = {"LAMDA": "LAMBDA", "FINAL SIGMA": "VARSIGMA"}.get(name, name)
    if size == "CAPITAL":
        return f"${_ALIKE[name]}$" if name in _ALIKE else f"$\\{name.capitalize()}$"
    return "$o$" if name == "OMICRON" else f"$\\{name.lower()}$"
