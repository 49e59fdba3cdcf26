"""Figures of a problem over seeds against its known answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.problems.data import extra
from metarl.errors import ConfigError, nearest
from metarl.problems import Bound, Problem, Solution

LEVEL = 0.05  # of the t-test


@dataclass(frozen=True)
class Verdict:
    """One figure.

    Attributes:
        figure: its name; `figure@step` before the last step.
        values: by seed.
        bound: the known answer; None for a figure that is only watched.
        p: two-sided, of the t-test where the bound asks for one.
        holds: None where there is nothing to judge: no bound, or one over several seeds and a single value.
    """

    figure: str
    values: tuple[float, ...]
    bound: Bound | None = None
    p: float | None = None
    holds: bool | None = None

    @property
    def value(self) -> str:
        """The value; of several seeds, mean and standard deviation."""
        if len(self.values) == 1:
            return f"{self.values[0]:.6g}"
        return f"{fmean(self.values):.4g} ± {stdev(self.values):.2g}"

    @property
    def answer(self) -> str:
        """The known answer in words."""
        if self.bound is None:
            return ""
        seeds = {"each": "", "mean": ", mean of seeds", "t-test": f", t-test over seeds, p < {LEVEL}"}
        return str(self.bound) + seeds[self.bound.over]

    @property
    def verdict(self) -> str:
        """In a word, with the p-value of a test."""
        word = {True: "ok", False: "missed", None: ""}[self.holds]
        return word if self.p is None else f"{word} (p = {self.p:.1g})"


def judge(problem: Problem, solutions: Sequence[Solution]) -> list[Verdict]:
    """A verdict for every known answer, then the other figures after the last step.

    Raises:
        ConfigError: a known answer names a figure that the problem does not measure.
    """
    measured = solutions[0].history[max(solutions[0].history)]
    verdicts = []
    for figure, bound in problem.expected.items():
        name, _, step = figure.partition("@")
        if name not in measured:
            raise ConfigError(
                f"{type(problem).__name__}.expected: no figure is called {name!r}.{nearest(name, measured)}"
            )
        if not step or int(step) in solutions[0].history:  # a shorter run does not get there
            verdicts.append(_judge(figure, bound, tuple(s.figure(figure) for s in solutions)))
    judged = {v.figure for v in verdicts}
    return verdicts + [Verdict(n, tuple(s.figure(n) for s in solutions)) for n in measured if n not in judged]


def _judge(figure: str, bound: Bound, values: tuple[float, ...]) -> Verdict:
    if bound.over == "each":
        return Verdict(figure, values, bound, holds=all(bound.holds(v) for v in values))
    if len(values) == 1:
        return Verdict(figure, values, bound)
    if bound.over == "mean":
        return Verdict(figure, values, bound, holds=bound.holds(fmean(values)))
    p = float(extra("scipy.stats").ttest_1samp(values, bound.least).pvalue)
    return Verdict(figure, values, bound, p, fmean(values) > bound.least and p < LEVEL)


def show(verdicts: Sequence[Verdict], console: Console) -> None:
    """A small table, and where the known answers come from."""
    table = Table(box=None, pad_edge=False)
    for column in ("figure", "value", "known answer", ""):
        table.add_column(column)
    for v in verdicts:
        table.add_row(*map(escape, (v.figure, v.value, v.answer, v.verdict)))
    console.print(table, highlight=False)
    figures: dict[str, list[str]] = {}
    for v in verdicts:
        if v.bound is not None:
            figures.setdefault(v.bound.source, []).append(v.figure)
    for source, names in figures.items():
        console.print(f"{', '.join(names)}: {source}", highlight=False, markup=False, soft_wrap=True)
