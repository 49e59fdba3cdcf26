"""Cells by their labels, what runs are worth, and comparisons of them: for suites that are judged by raw scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from benchmarks.claims.verdict import BySeed, Difference, Outcome, Verdict, called, directions, mean
from benchmarks.results import Cell, Results, Run, Series
from benchmarks.statistics import holm, stratified_bootstrap
from metarl.errors import UserError

Score = Callable[[Run], float]


def final(run: Run) -> float:
    """The mean return of the last ten evaluations."""
    score = run.score_of("return")
    assert score is not None  # of runs that are scored
    return score


def area(run: Run) -> float:
    """The area under the curve of returns over its width: the mean return while it learns."""
    steps, values = ([getattr(e, name) for e in run.evaluations] for name in ("step", "mean"))
    return float(np.trapezoid(values, steps) / (steps[-1] - steps[0]))


def settings(results: Results, axis: str) -> dict[str, dict[str, str]]:
    """What the labels of `axis` are compared under: by name the labels of all other axes, in the order of the plan."""
    others = [name for name in results.axes if name != axis]
    told = [name for name in others if len(results.axes[name]) > 1] or others[:1]
    found = {}
    for cell in results.cells:
        labels = {name: cell.labels[name] for name in others}
        found[" · ".join(labels[name] for name in told)] = labels
    return found


def cell_of(results: Results, labels: Mapping[str, str]) -> Cell:
    """The cell with these labels.

    Raises:
        UserError: it is not there with all its seeds.
    """
    cell = next((cell for cell in results.cells if dict(cell.labels) == dict(labels)), None)
    if cell is None or len(cell.scored) < len(cell.seeds):
        where = ", ".join(labels.values())
        raise UserError(f"{results.name}: the cell {where!r} is not there with all its seeds; run the suite")
    return cell


def course(results: Results, run: Run, metric: str) -> Series:
    """A logged metric of a run.

    Raises:
        UserError: it was not logged.
    """
    series = run.scalars.get(metric)
    if series is None or not series.steps:
        raise UserError(f"{results.name}: a run has no metric {metric!r}; run the suite again")
    return series


def scores_of(results: Results, labels: Mapping[str, str], score: Score) -> BySeed:
    """What every seed of a cell is worth."""
    return {run.seed: score(run) for run in cell_of(results, labels).scored}


def ahead(
    axis: str,
    ours: str,
    rivals: Sequence[str],
    results: Results,
    only: Mapping[str, str] | None = None,
    score: Score = final,
) -> Verdict:
    """Is one label of an axis above others, under every setting of the other axes?

    Args:
        axis, ours, rivals: the label `ours` of that axis beside others.
        results: of the suite.
        only: labels of other axes, to which settings are restricted; what the suite leaves out is passed over anyway.
        score: of a run.
    """
    excluded = [dict(one.labels) for one in results.excluded]
    chosen = {
        name: labels
        for name, labels in settings(results, axis).items()
        if all(labels[key] == value for key, value in (only or {}).items())
        and not any(labels | {axis: label} in excluded for label in (ours, *rivals))
    }
    pairs = [(name, labels, rival) for name, labels in chosen.items() for rival in rivals]
    scores = [
        [scores_of(results, labels | {axis: label}, score) for label in (ours, rival)] for _, labels, rival in pairs
    ]
    found = [Difference.of(x, y) for x, y in scores]
    rows = [["setting", ours, "its IQM", "against", "its mean", "its IQM", "difference", "p (Holm)"]]
    for (name, _, rival), (x, y), d, p in zip(pairs, scores, found, holm([d.test.p for d in found]), strict=True):
        rows.append([name, mean_text(x), iqm_text(x), rival, mean_text(y), iqm_text(y), d.range, f"{p:.2g}"])
    outcomes = directions(found, 1)
    below = [f"{name} ({rival})" for (name, _, rival), o in zip(pairs, outcomes, strict=True) if o == "did not hold"]
    if len(found) == 1:
        # Of a suite of one axis there is no setting to tell.
        return Verdict(outcomes[0], f"{ours} minus {rivals[0]}: {found[0]}.", rows if next(iter(chosen)) else ())
    text = (
        f"{ours} is significantly above on {outcomes.count('held')} of {len(found)} comparisons and below on "
        f"{len(below)}{': ' + ', '.join(below) if below else ''}."
    )
    return Verdict(of_each(outcomes), text, rows)


def of_each(outcomes: Sequence[Outcome]) -> Outcome:
    """Of a claim about each of some cases: held on all, or refuted on one."""
    held = all(outcome == "held" for outcome in outcomes)
    return called(held or "did not hold" in outcomes, held)


def mean_text(scores: BySeed) -> str:
    """The mean over seeds."""
    return f"{mean(scores):,.1f}".replace("-", "−")


def iqm_text(scores: BySeed) -> str:
    """The interquartile mean over seeds with its interval."""
    found = stratified_bootstrap({"": list(scores.values())})
    return f"{found.value:,.1f} ({found.low:,.1f} to {found.high:,.1f})".replace("-", "−")
