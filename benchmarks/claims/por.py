"""POR's claims (Xu et al. 2022, arXiv:2210.08323), judged on committed results.

A run is worth what its second half of evaluations averages, since a V-guided run trains only its behaviour guide in the
first: success rates in percent, or normalised returns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.claims.cells import ahead, cell_of, course, iqm_text, mean_text, of_each, scores_of
from benchmarks.claims.verdict import BySeed, Claim, Difference, Verdict, called, directions, mean
from benchmarks.results import Results, Run
from benchmarks.statistics import holm, mean_interval
from metarl.errors import UserError

GUIDE = Path(__file__).parents[1] / "results" / "por_guide.json"
STEPS = "evaluation/steps_to_goal"
RIVALS = ("BC", "10% BC", "TD3+BC", "IQL")
KEPT = "POR, execute of A"  # a new guide with the execute policy of task A
MARGIN = 10.0  # points of success, within which another is not worse
CLONING = {"BC": "cloning", "10% BC": "cloning the best tenth"}


# -- what runs are worth ---------------------------------------------------------------------------------------


def late(run: Run) -> float:
    """The mean of the second half of the evaluations: success in percent, or the normalised return.

    Raises:
        UserError: no reference is known for returns.
    """
    values = run.values(run.measure)
    value = mean(values[len(values) // 2 :])
    if run.measure == "success":
        return 100 * value
    scale = run.reference_of("return")
    if scale is None:
        raise UserError(f"no reference scores are known for {run.env!r}; see metarl/data/scores.py")
    return scale.normalized(value)


def late_return(run: Run) -> float:
    """The mean raw return of the second half of the evaluations."""
    values = run.values("return")
    return mean(values[len(values) // 2 :])


def steps_to_goal(results: Results, run: Run) -> float:
    """The steps that successes took, averaged over those evaluations of the second half that saw one."""
    series = course(results, run, STEPS)
    begins = run.trained[len(run.trained) // 2].step
    found = [value for step, value in zip(series.steps, series.values, strict=True) if step >= begins]
    return mean(found) if found else float("nan")


# -- PointMaze's pieces ----------------------------------------------------------------------------------------


def above(rival: str, results: Results) -> Verdict:
    """Is POR above a rival? The table of all methods stands below the first."""
    ours = scores_of(results, {"method": "POR"}, late)
    found = {name: Difference.of(ours, scores_of(results, {"method": name}, late)) for name in RIVALS}
    outcome = dict(zip(found, directions(list(found.values()), 1), strict=True))[rival]
    corrected = dict(zip(found, holm([d.test.p for d in found.values()]), strict=True))
    text = (
        f"POR succeeds in {mean(ours):.1f} % of the episodes, {rival} in {mean(ours) - found[rival].value:.1f} %: "
        f"{found[rival].range}, p = {corrected[rival]:.2g} (Holm)."
    )
    if rival != RIVALS[0]:
        return Verdict(outcome, text)
    rows = [["method", "success, %", "its mean's interval", "IQM", "steps to goal", "POR minus it", "p (Holm)"]]
    for name in results.axes["method"]:
        cell = cell_of(results, {"method": name})
        scores = scores_of(results, cell.labels, late)
        steps = mean([steps_to_goal(results, run) for run in cell.scored])
        gap = [found[name].range, f"{corrected[name]:.2g}"] if name in found else ["", ""]
        rows.append([name, mean_text(scores), _interval(scores), iqm_text(scores), f"{steps:.1f}", *gap])
    return Verdict(outcome, f"{text} Steps to goal are of successes alone, which differ between methods.", rows)


# -- the guide -------------------------------------------------------------------------------------------------


def higher_values(results: Results) -> Verdict:
    """Does V say more of g(s) than of s'?"""
    if (runs := _guides(results)) is None:
        return _not_recorded()
    rows = [["seed", "mean V(s')", "mean V(g(s))", "their difference", "above 0 in", "g(s) outside of the data"]]
    rows += [
        [
            str(seed),
            *(f"{run[name]:.2f}".replace("-", "−") for name in ("v_next", "v_guide")),
            f"{run['all']['difference']:+.2f}".replace("-", "−"),
            f"{run['all']['above']:.0%}",
            f"{run['outside']:.0%}",
        ]
        for seed, run in runs.items()
    ]
    found = Difference.of(_gain(runs, "all"), dict.fromkeys(runs, 0.0))
    text = (
        f"V(g(s)) − V(s'), averaged over states of the data: {found}. Outside is a g(s) that is farther from the "
        "data's s' than 95 % of these are from one another: of s' themselves it would be 5 %."
    )
    return Verdict(directions([found], 1)[0], text, rows)


def farther_is_higher(results: Results) -> Verdict:
    """Is the gain in V larger where g(s) lies farthest from the data?"""
    if (runs := _guides(results)) is None:
        return _not_recorded()
    far, near = (_gain(runs, part) for part in ("farthest", "nearest"))
    found = Difference.of(far, near)
    rows = [["quarter of states whose g(s) lies", "mean distance to the data", "V(g(s)) − V(s')", "above 0 in"]]
    for part, gain in (("nearest", near), ("farthest", far)):
        distance, share = (mean([run[part][name] for run in runs.values()]) for name in ("distance", "above"))
        own = Difference.of(gain, dict.fromkeys(gain, 0.0))
        rows.append([part, f"{distance:.3g}", own.range, f"{share:.0%}"])
    outside = mean([run["outside"] for run in runs.values()])
    text = (
        f"Farthest minus nearest quarter: {found}. Farther is not far: {outside:.1%} of all g(s) lie outside, farther "
        "from the data's s' than 95 % of these from one another."
    )
    return Verdict(directions([found], 1)[0], text, rows)


def _guides(results: Results) -> dict[int, Mapping[str, Any]] | None:
    """By seed what `benchmarks.guide` recorded of these results' runs of POR; None unless it is of every one."""
    if not GUIDE.is_file():
        return None
    cell = cell_of(results, {"method": "POR"})
    runs = json.loads(GUIDE.read_text())["runs"]
    found = {run["seed"]: run for run in runs if run["experiment"] == cell.experiment and run["step"] == cell.steps}
    return dict(sorted(found.items())) if set(found) == {run.seed for run in cell.scored} else None


def _gain(runs: Mapping[int, Mapping[str, Any]], part: str) -> BySeed:
    return {seed: run[part]["difference"] for seed, run in runs.items()}


def _not_recorded() -> Verdict:
    return Verdict("not measured", "Run `python -m benchmarks.guide RUNS --record` on the suite's runs of POR.")


# -- a supplement of worse data --------------------------------------------------------------------------------


def supplement(ours: str, theirs: str, results: Results, with_table: bool = False) -> Verdict:
    """Is one use of the data above another on every dataset?"""
    columns = results.axes["dataset"]
    scores = {
        (method, column): scores_of(results, {"dataset": column, "method": method}, late)
        for column in columns
        for method in results.axes["method"]
    }
    found = [Difference.of(scores[ours, column], scores[theirs, column]) for column in columns]
    corrected = holm([d.test.p for d in found])
    told = (f"{column}: {d.range}, p = {p:.2g}" for column, d, p in zip(columns, found, corrected, strict=True))
    verdict = Verdict(of_each(directions(found, 1)), f"{ours} minus {theirs}, {'; '.join(told)} (Holm).")
    if not with_table:
        return verdict
    rows = [["dataset", "method", "score", "its IQM", f"{ours} minus it", "p"]]
    for (method, column), own in scores.items():
        d = Difference.of(scores[ours, column], own)
        gap = [d.range, f"{d.test.p:.2g}"] if method != ours else ["", ""]
        rows.append([column, method, mean_text(own), iqm_text(own), *gap])
    return Verdict(verdict.outcome, verdict.measured, rows)


# -- one execute policy for several tasks ----------------------------------------------------------------------


def transfers(results: Results) -> Verdict:
    """Does a new guide with A's execute policy succeed more often than cloning on every other task?"""
    verdict = ahead("method", KEPT, ("BC",), results, score=late)
    rows = [["task", "method", "success, %", "its IQM", "raw return", f"{KEPT} minus it, success", "p"]]
    for cell in results.cells:
        whole = cell_of(results, cell.labels)
        task, method = (whole.labels[axis] for axis in ("task", "method"))
        own, raw = (scores_of(results, whole.labels, score) for score in (late, late_return))
        gap = ["", ""]
        if method != KEPT and task in _others(results):
            d = Difference.of(scores_of(results, {"task": task, "method": KEPT}, late), own)
            gap = [d.range, f"{d.test.p:.2g}"]
        rows.append([task, method, mean_text(own), iqm_text(own), _two(raw), *gap])
    text = f"{verdict.measured} The raw return on the river falls by 1 with every step in the water."
    return Verdict(verdict.outcome, text, rows)


def not_worse(results: Results) -> Verdict:
    """Does it do as well as training everything anew?"""
    names = _others(results)
    rows = [["task", "POR", KEPT, "difference, points of success", "difference of raw returns", "verdict"]]
    outcomes = []
    for task in names:
        (kept, whole), (raw_kept, raw_whole) = (
            [scores_of(results, {"task": task, "method": method}, score) for method in (KEPT, "POR")]
            for score in (late, late_return)
        )
        d = Difference.of(kept, whole)
        inside = d.interval.low > -MARGIN
        outcomes.append(called(inside or d.interval.high < -MARGIN, inside))
        raw = Difference.of(raw_kept, raw_whole)
        rows.append([task, mean_text(whole), mean_text(kept), d.range, raw.range, outcomes[-1]])
    text = (
        f"The interval lies above −{MARGIN:.0f} points on {outcomes.count('held')} of {len(outcomes)} tasks, and "
        f"wholly below on {outcomes.count('did not hold')}."
    )
    return Verdict(of_each(outcomes), text, rows)


def _others(results: Results) -> list[str]:
    """The tasks that A's execute policy is taken to."""
    taken = {cell.labels["task"] for cell in results.cells if cell.labels["method"] == KEPT}
    return [task for task in results.axes["task"] if task in taken]


# -- parts -----------------------------------------------------------------------------------------------------


def _interval(scores: BySeed) -> str:
    found = mean_interval(list(scores.values()))
    return f"{found.low:.1f} to {found.high:.1f}".replace("-", "−") if found else ""


def _two(scores: BySeed) -> str:
    return f"{mean(scores):,.2f}".replace("-", "−")


# -- a learned degree ------------------------------------------------------------------------------------------


def beats_every_constant(results: Results) -> Verdict:
    """Is GORL above every constant degree?"""
    constants = [label for label in results.axes["method"] if label.startswith("fixed ")]
    return ahead("method", "GORL quick", constants, results, score=late)


# -- the claims ------------------------------------------------------------------------------------------------

POINTMAZE, ROOMS = "por_pointmaze", "por_four_rooms"
SUPPLEMENT, LEARNED = "por_supplement-small", "por_gorl-small"
_MAZE = "on pieces of PointMaze's ways"
_ALONE = "the sign of the mean difference over seeds, if significant"
_EACH = "significantly above on {what} (Holm over them); refuted where significantly below on one"
_QUICK = "B updated every 2nd step at 3e-4"

CLAIMS = (
    *(
        Claim(
            "POR",
            "table, POR",
            f"POR does better than {CLONING.get(rival, rival)} {_MAZE}",
            "by the mean success rate of the second half of the evaluations, the sign of the mean difference over "
            "seeds, if significant (Holm over the four rivals)",
            POINTMAZE,
            partial(above, rival),
        )
        for rival in RIVALS
    ),
    Claim(
        "POR",
        "(not in the paper)",
        f"the residual form does better than the V-guided one {_MAZE}",
        f"by the same success rate, {_ALONE}; the V-guided guide itself learns in that second half alone",
        POINTMAZE,
        partial(ahead, "method", "POR", ("POR, V-guided",), score=late),
    ),
    Claim(
        "POR",
        "experiment, generalisation",
        "the guide names states of higher value: V(g(s)) is above V(s')",
        "the mean over states of the data of every seed's run, significantly above 0 over seeds",
        POINTMAZE,
        higher_values,
    ),
    Claim(
        "POR",
        "experiment, generalisation",
        "V(g(s)) − V(s') is larger where g(s) lies farther from the data",
        "the mean of V(g(s)) − V(s') over the quarter of states whose g(s) lies farthest from the data's s', minus "
        f"that over the nearest quarter: {_ALONE}",
        POINTMAZE,
        farther_is_higher,
    ),
    *(
        Claim(
            "POR",
            "experiment, additional data",
            says,
            f"by the mean of the second half of the evaluations, {_EACH.format(what='every dataset')}",
            SUPPLEMENT,
            partial(supplement, "mix", rival, with_table=rival == "main"),
        )
        for rival, says in (
            ("main", "more sub-optimal data improves the guide (mix above main)"),
            ("more", "the execute policy is better without it (mix above more)"),
        )
    ),
    Claim(
        "POR",
        "experiment, four rooms",
        "a new guide with A's execute policy solves new tasks more often than cloning",
        f"by the mean success rate of the second half of the evaluations, {_EACH.format(what='both tasks')}",
        ROOMS,
        transfers,
    ),
    Claim(
        "POR",
        "experiment, four rooms",
        "a new guide with A's execute policy returns more than cloning, steps in the river counted",
        f"by the mean of the same evaluations, {_EACH.format(what='both tasks')}",
        ROOMS,
        partial(ahead, "method", KEPT, ("BC",), score=late_return),
    ),
    Claim(
        "POR",
        "experiment, four rooms",
        "a new guide with A's execute policy is not worse than training both anew",
        f"on both tasks the 95 % interval of the difference in success lies above −{MARGIN:.0f} points; refuted where "
        "it is wholly below on one",
        ROOMS,
        not_worse,
    ),
    Claim(
        "POR",
        "(not in the paper)",
        f"a learned degree of constraint ({_QUICK}) does better than POR's own",
        f"by the mean of the second half of the evaluations, {_EACH.format(what='each dataset')}",
        LEARNED,
        partial(ahead, "method", "GORL quick", ("fixed 1.0",), score=late),
    ),
    Claim(
        "POR",
        "(not in the paper)",
        f"a learned degree ({_QUICK}) beats every constant one",
        f"by the same mean, {_EACH.format(what='each of them')}",
        LEARNED,
        beats_every_constant,
    ),
)
