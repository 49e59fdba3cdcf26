"""GORL's claims (Yang et al. 2023, arXiv:2309.01448), judged on committed results.

Scores are normalised: 0 is a random policy's mean return and 100 an expert's, or the success rate in percent.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
from scipy import stats

from benchmarks.claims.verdict import (
    Claim,
    Difference,
    Outcome,
    Verdict,
    by_label,
    called,
    clear,
    direction,
    directions,
    logged,
    majority,
    mean,
    normalized,
    signed,
    totals,
)
from benchmarks.results import Results
from benchmarks.speed import derived
from benchmarks.speed.comparisons import BASES, MODES, PUBLISHED_AVERAGE
from benchmarks.statistics import holm, paired_t_over_evaluations

SPEED = Path(__file__).parents[1] / "speed" / "results" / "speed.json"
BASE = "fixed 1.0"  # TD3+BC itself
PUBLISHED = "GORL as published"


def interior_optimum(results: Results) -> Verdict:
    """Is the best constant weight neither 0 nor 1?"""
    weights = by_label(results, "fixed ")
    rows, outcomes = [["dataset", "best weight", "its score", "at weight 0", "at weight 1", "verdict"]], []
    for column in results.columns:
        scores = {weight: normalized(results, row, column) for weight, row in weights.items()}
        means = {weight: mean(found) for weight, found in scores.items()}
        top = [weight for weight, value in means.items() if value == max(means.values())]
        best = next((weight for weight in top if 0 < weight < 1), top[0])
        inside = 0 < best < 1
        others = [weight for weight in weights if (not 0 < weight < 1) == inside]
        ahead = all(clear([Difference.of(scores[best], scores[other]) for other in others]))
        outcomes.append(called(ahead, inside))
        ties = " and " + ", ".join(f"{weight:g}" for weight in top if weight != best) if len(top) > 1 else ""
        rows.append([column, f"{best:g}{ties}", *(f"{means[w]:.1f}" for w in (best, 0.0, 1.0)), outcomes[-1]])
    inner = sum(0 < float(row[1].split(" ")[0]) < 1 for row in rows[1:])
    text = (
        f"On {inner} of {len(outcomes)} datasets the best constant weight lies between 0 and 1, and on "
        f"{outcomes.count('held')} it beats both ends significantly; on {outcomes.count('did not hold')} an end beats "
        "every weight between."
    )
    return Verdict(majority(outcomes), text, rows)


def beats_every_constant(row: str, results: Results) -> Verdict:
    """Is the total of learned weights above that of every constant?"""
    weights = by_label(results, "fixed ")
    ours = totals(results, row)
    against = {weight: Difference.of(ours, totals(results, fixed)) for weight, fixed in weights.items()}
    corrected = holm([d.test.p for d in against.values()])
    sure = dict(zip(against, clear(list(against.values())), strict=True))
    table = [["constant weight", f"{row} minus it, mean over datasets", "p (Holm)"]]
    table += [[f"{w:g}", d.range, f"{p:.2g}"] for (w, d), p in zip(against.items(), corrected, strict=True)]
    above = all(d.value > 0 and sure[weight] for weight, d in against.items())
    below = any(d.value < 0 and sure[weight] for weight, d in against.items())
    best = min(against, key=lambda weight: against[weight].value)
    its = mean(ours) - against[best].value
    text = f"{row} averages {mean(ours):.1f} over the datasets; the best constant, {best:g}, averages {its:.1f}."
    return Verdict(called(above or below, above), text, table)


def weight_matters(results: Results) -> Verdict:
    """Do scores vary greatly with the constant weight?"""
    weights = by_label(results, "fixed ")
    rows, outcomes = [["dataset", "worst weight", "its score", "best weight", "its score", "p"]], []
    for column in results.columns:
        scores = {weight: normalized(results, row, column) for weight, row in weights.items()}
        low, high = (pick(scores, key=lambda w: mean(scores[w])) for pick in (min, max))
        gap = Difference.of(scores[high], scores[low])
        p = min(1.0, gap.test.p * len(scores) * (len(scores) - 1) / 2)
        outcomes.append(called(p < 0.05 and gap.test.n > 2 and gap.value > 10, True))
        rows.append([column, *(text for w in (low, high) for text in (f"{w:g}", f"{mean(scores[w]):.1f}")), f"{p:.2g}"])
    text = (
        f"On {outcomes.count('held')} of {len(outcomes)} datasets the best and the worst weight differ significantly, "
        "and by more than 10 points."
    )
    return Verdict(majority(outcomes), text, rows)


def better(ours: str, theirs: str, results: Results, expected: int = 1) -> Verdict:
    """Is one row above (or, with -1, below) another, by dataset and on average?"""
    rows = [["dataset", f"{ours} minus {theirs}", "p (Holm)", "p of the papers' test"]]
    found = [Difference.of(*(normalized(results, row, column) for row in (ours, theirs))) for column in results.columns]
    papers = [_papers_test(results, ours, theirs, column) for column in results.columns]
    for column, d, p, paper in zip(results.columns, found, holm([d.test.p for d in found]), papers, strict=True):
        rows.append([column, d.range, f"{p:.2g}", f"{paper:.1g}"])
    whole = Difference.of(totals(results, ours), totals(results, theirs))
    outcomes = directions(found, expected)
    text = (
        f"Averaged over the datasets: {whole}. Significantly {'better' if expected > 0 else 'worse'} on "
        f"{outcomes.count('held')} of {len(found)} datasets, the opposite on {outcomes.count('did not hold')}; the "
        f"papers' test calls {sum(p < 0.05 for p in papers)} of these differences significant."
    )
    return Verdict(direction(whole, expected), text, rows)


def few_guide_better(results: Results) -> Verdict:
    """With few expert tuples, is guiding better than mixing?"""
    return _guiding_minus_mixing(results, [n for n in _numbers(results) if n <= 1000])


def many_mix_as_well(results: Results) -> Verdict:
    """With many, does the advantage of guiding vanish?"""
    found = _guiding_minus_mixing(results, [max(_numbers(results))])
    if found.outcome == "undecided":
        return Verdict(
            "undecided", f"{found.measured} That none was found does not prove that there is none.", found.table
        )
    return Verdict("held" if found.outcome == "did not hold" else "did not hold", found.measured, found.table)


def alone_grows(results: Results) -> Verdict:
    """Does training on expert tuples alone get better with their number?"""
    numbers = _numbers(results)
    rows = [["dataset", *(f"{n:,}" for n in numbers), "rank correlation"]]
    ranks, ps = [], []
    for column in results.columns:
        scores = {n: normalized(results, f"alone · {n}", column) for n in numbers}
        x = [n for n, found in scores.items() for _ in found]
        y = [score for found in scores.values() for score in found.values()]
        # Of scores that are all the same scipy has no correlation.
        found = stats.spearmanr(x, y) if np.ptp(y) else None
        ranks.append(float(found.statistic) if found else 0.0)
        ps.append(float(found.pvalue) if found else 1.0)
        rows.append([column, *(f"{mean(scores[n]):.1f}" for n in numbers), f"{ranks[-1]:.2f} (p = {ps[-1]:.1g})"])
    outcomes = [called(p < 0.05, rank > 0) for p, rank in zip(holm(ps), ranks, strict=True)]
    text = f"Scores rise with the number of tuples on {outcomes.count('held')} of {len(outcomes)} datasets."
    return Verdict(majority(outcomes), text, rows)


def relative_constraint(row: str, results: Results) -> Verdict:
    """Does the constraint loss fall on expert samples relative to random ones?"""
    base, ours = ([_log_ratio(results, name, column) for column in results.columns] for name in ("TD3+BC", row))
    found = [Difference.of(x, y) for x, y in zip(ours, base, strict=True)]
    rows = [["dataset", "TD3+BC", row, "difference", "p (Holm)"]]
    for column, x, y, d, p in zip(results.columns, base, ours, found, holm([d.test.p for d in found]), strict=True):
        rows.append([column, signed(mean(x)), signed(mean(y)), d.range, f"{p:.2g}"])
    outcomes = directions(found, -1)
    text = (
        "Shown is log(constraint loss on expert samples / on random samples), averaged over the second half of "
        f"training. It is significantly lower with {row} on {outcomes.count('held')} of {len(outcomes)} datasets and "
        f"higher on {outcomes.count('did not hold')}."
    )
    return Verdict(majority(outcomes), text, rows)


def larger_degree(row: str, results: Results) -> Verdict:
    """Does B end larger on expert-like samples than on random-like ones?"""
    expert, random = (
        [logged(results, row, column, f"watch/{name}/guiding_network", last=0.1) for column in results.columns]
        for name in ("expert", "random")
    )
    found = [Difference.of(x, y) for x, y in zip(expert, random, strict=True)]
    rows = [["dataset", "mean B on expert samples", "on random samples", "difference", "p (Holm)"]]
    for column, x, y, d, p in zip(results.columns, expert, random, found, holm([d.test.p for d in found]), strict=True):
        rows.append([column, f"{mean(x):.3f}", f"{mean(y):.3f}", f"{d.value:+.3f}".replace("-", "−"), f"{p:.2g}"])
    outcomes = directions(found, 1)
    text = (
        f"At the end of training B is significantly larger on expert samples on {outcomes.count('held')} of "
        f"{len(outcomes)} datasets, and smaller on {outcomes.count('did not hold')}."
    )
    return Verdict(majority(outcomes), text, rows)


def schedule_moves(results: Results) -> Verdict:
    """Does the published number of updates move B?"""
    rows = [["learning rate · period", "updates", "B moved by, mean", "score, mean over datasets"]]
    steps, moved = results.cells[0].steps, {}
    for row in results.rows:
        cells = [logged(results, row, column, "guiding_network/output_moved", last=0.1) for column in results.columns]
        moved[row] = mean([mean(cell) for cell in cells])
        updates = steps // int(row.rpartition(" ")[2])
        rows.append([row, f"{updates:,}", f"{moved[row]:.4f}", f"{mean(totals(results, row)):.1f}"])
    text = (
        f"At the published rate and period B moves by {moved['1e-5 · 500']:.4f} in these {steps:,} steps; with the "
        f"published number of updates, 2,000, by {moved['1e-5 · 4']:.4f}; at the suite's fastest by "
        f"{max(moved.values()):.2f}. Its range is 0 to 1."
    )
    return Verdict("held" if moved["1e-5 · 4"] > 0.05 else "did not hold", text, rows)


def cheap(_: Results | None = None) -> Verdict:
    """What does GORL cost? Judged on the speed benchmark's results."""
    result = json.loads(SPEED.read_text())
    if "gorl_bases" not in result:
        return Verdict("not measured", "Run `python -m benchmarks.speed`.")
    measured = {"td3_bc": result["gorl"], **result["gorl_bases"]}
    modes = [mode for mode in MODES if all(mode in turns for turns in measured.values())]
    rows = [["base", "period", *modes, "the paper's"]]
    for name, base in BASES.items():
        shares = [derived.gorl_overhead(measured[name][mode]["parts"], base.period).median for mode in modes]
        rows.append(
            [base.label, str(base.period), *(f"{100 * share:.1f} %" for share in shares), f"{base.published} %"]
        )
    average = {}
    for mode in modes:
        average[mode] = derived.gorl_average([(measured[name][mode]["parts"], b.period) for name, b in BASES.items()])
    rows.append(["average", "", *(f"{100 * a.median:.1f} %" for a in average.values()), f"{PUBLISHED_AVERAGE} %"])
    added = average[modes[-1]].median
    text = (
        f"At the published periods GORL adds {100 * added:.1f} % to a {modes[-1]} step, averaged over the four bases; "
        f"the paper measured {PUBLISHED_AVERAGE} %."
    )
    return Verdict("held" if 100 * added <= PUBLISHED_AVERAGE else "did not hold", text, rows)


def _papers_test(results: Results, ours: str, theirs: str, column: str) -> float:
    found = [cell for row in (ours, theirs) if (cell := results.at(row, column)) is not None]
    x, y = (dict(zip((run.seed for run in cell.scored), cell.last_evaluations.tolist(), strict=True)) for cell in found)
    return paired_t_over_evaluations(x, y).p


def _numbers(results: Results) -> list[int]:
    return [int(n) for n in results.axes["tuples"] if int(n)]


def _guiding_minus_mixing(results: Results, numbers: list[int]) -> Verdict:
    uses = {use: {n: totals(results, f"{use} · {n}") for n in numbers} for use in ("mixed in", "guiding")}
    found = [Difference.of(uses["guiding"][n], uses["mixed in"][n]) for n in numbers]
    rows = [["expert tuples", "none", "mixed in", "guiding", "guiding minus mixed in", "p (Holm)"]]
    none = mean(totals(results, "none · 0"))
    for n, d, p in zip(numbers, found, holm([d.test.p for d in found]), strict=True):
        means = [none, *(mean(scores[n]) for scores in uses.values())]
        rows.append([f"{n:,}", *(f"{value:.1f}" for value in means), d.range, f"{p:.2g}"])
    text = "; ".join(f"{n:,} tuples: {d}" for n, d in zip(numbers, found, strict=True))
    outcome: Outcome = majority(directions(found, 1))
    return Verdict(outcome, f"Guiding minus mixing in, averaged over the datasets. {text}.", rows)


def _log_ratio(results: Results, row: str, column: str) -> dict[int, float]:
    expert, random = (logged(results, row, column, f"watch/{name}/constraint") for name in ("expert", "random"))
    return {seed: float(np.log(expert[seed] / random[seed])) for seed in expert}


# -- the claims ------------------------------------------------------------------------------------------------

_IV, _3, _4, _5 = ("gorl_table_iv-small", "gorl_figure_3-small", "gorl_figure_4-small", "gorl_figure_5-small")
_QUICK = "B updated every 2nd step at 3e-4"
SCHEDULES = {
    PUBLISHED: "as published, every 500th step at 1e-5",
    "GORL every 4th step": "every 4th step at 1e-5, 2,000 times as in the paper",
    "GORL quick": "every 2nd step at 3e-4",
}
TOTAL = "the sign of the mean over datasets, if significant; by dataset for information"
_BY_DATASET = "the sign on most datasets, where significant after Holm's correction over them"

CLAIMS = (
    Claim(
        "GORL",
        "Table III",
        "GORL adds 1.9 % to the time, averaged over its four bases",
        "the median overhead of a compiled step, averaged over the bases, is at most that; no test",
        "",
        cheap,
    ),
    Claim(
        "GORL",
        "Table IV",
        "an interior constant weight is best on most datasets",
        "on most datasets the best weight lies between 0 and 1 and beats both (Holm over the two); refuted where an "
        "end beats every weight between (Holm over them)",
        _IV,
        interior_optimum,
    ),
    Claim(
        "GORL",
        "Section V-A",
        "scores vary greatly with the constant weight",
        "on most datasets the best and the worst weight differ significantly (Bonferroni over all pairs) and by more "
        "than 10 points; nothing refutes it",
        _IV,
        weight_matters,
    ),
    *(
        Claim(
            "GORL",
            "Table IV",
            f"learned weights beat every constant one in total (B updated {how})",
            "the mean over datasets is significantly above that of every constant (Holm over them); refuted where it "
            "is significantly below one",
            _IV,
            partial(beats_every_constant, row),
        )
        for row, how in SCHEDULES.items()
    ),
    *(
        Claim(
            "GORL",
            "Tables I and II, Figure 2",
            f"GORL improves TD3+BC (B updated {how})",
            TOTAL,
            _IV,
            partial(better, row, BASE),
        )
        for row, how in SCHEDULES.items()
    ),
    Claim(
        "GORL",
        "summary, next check 2",
        f"a guiding network that learns ({_QUICK}) is better than one that is never updated",
        TOTAL,
        _IV,
        partial(better, "GORL quick", "GORL never updated"),
    ),
    Claim(
        "GORL",
        "Figure 4",
        "mixing 200 expert tuples into the data harms",
        TOTAL,
        _4,
        partial(better, "expert mixed in", "pure data", expected=-1),
    ),
    Claim(
        "GORL",
        "Figure 4",
        f"guiding with them ({_QUICK}) is better than mixing them in",
        TOTAL,
        _4,
        partial(better, "guided", "expert mixed in"),
    ),
    Claim(
        "GORL",
        "Figure 5a",
        f"few expert tuples (50 to 1,000) are worth more as guides ({_QUICK}) than mixed in",
        "the sign of the mean over datasets for most numbers of tuples, where significant (Holm over the numbers)",
        _5,
        few_guide_better,
    ),
    Claim(
        "GORL",
        "Figure 5a",
        "of many (10,000) they no longer are",
        "held where mixing in is significantly better; undecided where no difference is found",
        _5,
        many_mix_as_well,
    ),
    Claim(
        "GORL",
        "Figure 5b",
        "training on expert tuples alone gets better with their number",
        "Spearman's rank correlation over seeds on most datasets, where significant (Holm over them)",
        _5,
        alone_grows,
    ),
    *(
        Claim(
            "GORL",
            "Figure 3",
            f"GORL raises the relative constraint on expert data (B updated {SCHEDULES[row]})",
            _BY_DATASET,
            _3,
            partial(relative_constraint, row),
        )
        for row in (PUBLISHED, "GORL quick")
    ),
    Claim(
        "GORL",
        "summary, first experiment 2",
        f"B becomes larger on expert-like than on random-like samples ({_QUICK})",
        _BY_DATASET,
        _3,
        partial(larger_degree, "GORL quick"),
    ),
    Claim(
        "GORL",
        "Table VI",
        "the published number of updates at the published rate moves B by more than 0.05",
        "the mean over datasets and seeds, without a test; 0.05 is our threshold, not the paper's",
        "gorl_schedule-small",
        schedule_moves,
    ),
)
