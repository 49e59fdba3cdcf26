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
    Verdict,
    by_label,
    called,
    direction,
    logged,
    majority,
    normalized,
    signed,
    totals,
)
from benchmarks.results import Results
from benchmarks.speed import derived
from benchmarks.statistics.tests import holm, paired_t_over_evaluations, significant

SPEED = Path(__file__).parents[1] / "speed" / "results" / "speed.json"
BASE = "fixed 1.0"  # TD3+BC itself
PUBLISHED = "GORL as published"


def interior_optimum(results: Results) -> Verdict:
    """Table IV: is the best constant weight neither 0 nor 1?"""
    weights = by_label(results, "fixed ")
    rows, outcomes = [["dataset", "best weight", "its score", "at weight 0", "at weight 1", "beats both ends"]], []
    for column in results.columns:
        scores = {weight: normalized(results, row, column) for weight, row in weights.items()}
        means = {weight: float(found.mean()) for weight, found in scores.items()}
        best = max(means, key=means.__getitem__)
        inside = 0 < best < 1
        ends = [Difference.of(scores[best], scores[end]) for end in (0.0, 1.0) if end != best]
        p = holm([end.test.p for end in ends])
        ahead = all(significant(value, ends[0].test.n) for value in p)
        outcomes.append(called(ahead, inside))
        said = ("yes" if ahead else "not significantly") if inside else f"it is one; the other: p = {p[0]:.2g}"
        rows.append([column, f"{best:g}", *(f"{means[w]:.1f}" for w in (best, 0.0, 1.0)), said])
    inner = sum(0 < float(row[1]) < 1 for row in rows[1:])
    text = (
        f"On {inner} of {len(results.columns)} datasets the best constant weight lies between 0 and 1, and on "
        f"{outcomes.count('held')} of them it beats both ends significantly (Welch over seeds, Holm)."
    )
    return Verdict(majority(outcomes), text, rows)


def beats_every_constant(row: str, results: Results) -> Verdict:
    """Table IV: is the total of learned weights above that of every constant?"""
    weights = by_label(results, "fixed ")
    ours = totals(results, row)
    against = {weight: Difference.of(ours, totals(results, fixed)) for weight, fixed in weights.items()}
    p = dict(zip(against, holm([d.test.p for d in against.values()]), strict=True))
    n = next(iter(against.values())).test.n
    best = min(against, key=lambda weight: against[weight].value)
    table = [["constant weight", f"{row} minus it, mean over datasets", "p (Holm)"]]
    table += [[f"{weight:g}", str(d).split(" (p")[0], f"{p[weight]:.2g}"] for weight, d in against.items()]
    above = all(d.value > 0 and significant(p[weight], n) for weight, d in against.items())
    below = any(d.value < 0 and significant(p[weight], n) for weight, d in against.items())
    text = (
        f"{row} averages {ours.mean():.1f} over the datasets; the best constant, {best:g}, is "
        f"{signed(-against[best].value)} from it (95 % interval {signed(-against[best].high)} to "
        f"{signed(-against[best].low)})."
    )
    return Verdict(called(above or below, above), text, table)


def weight_matters(results: Results) -> Verdict:
    """Section V-A: do scores vary greatly with the constant weight?"""
    weights = by_label(results, "fixed ")
    rows, outcomes = [["dataset", "worst weight", "its score", "best weight", "its score"]], []
    for column in results.columns:
        scores = {weight: normalized(results, row, column) for weight, row in weights.items()}
        low, high = (pick(scores, key=lambda w: float(scores[w].mean())) for pick in (min, max))
        gap = Difference.of(scores[high], scores[low])
        # The extremes of seven: p times their 21 pairs.
        clear = significant(min(1.0, gap.test.p * len(scores) * (len(scores) - 1) / 2), gap.test.n)
        outcomes.append(called(clear and gap.value > 10, True))
        rows.append([column, f"{low:g}", f"{scores[low].mean():.1f}", f"{high:g}", f"{scores[high].mean():.1f}"])
    text = (
        f"On {outcomes.count('held')} of {len(results.columns)} datasets the best and the worst weight lie more than "
        "10 points apart, significantly so after correction for all pairs."
    )
    return Verdict(majority(outcomes), text, rows)


def improves_base(row: str, results: Results) -> Verdict:
    """Tables I and II, Figure 2: is the method better than TD3+BC?"""
    return better(row, BASE, results, expected=1)


def better(ours: str, theirs: str, results: Results, expected: int = 1) -> Verdict:
    """Is one row above (or, with -1, below) another, by dataset and on average?"""
    rows = [["dataset", f"{ours} minus {theirs}", "p over seeds (Holm)", "p of the papers' test"]]
    found = [
        Difference.of(normalized(results, ours, column), normalized(results, theirs, column))
        for column in results.columns
    ]
    corrected = holm([d.test.p for d in found])
    papers = []
    for column, difference, p in zip(results.columns, found, corrected, strict=True):
        pairs = [results.at(row, column) for row in (ours, theirs)]
        evaluations = [cell.last_evaluations for cell in pairs if cell is not None]
        papers.append(paired_t_over_evaluations(*evaluations).p)
        rows.append([column, str(difference).split("; p")[0] + ")", f"{p:.2g}", f"{papers[-1]:.1g}"])
    whole = Difference.of(totals(results, ours), totals(results, theirs))
    clear = sum(
        significant(p, d.test.n) and np.sign(d.value) == expected for p, d in zip(corrected, found, strict=True)
    )
    other = sum(
        significant(p, d.test.n) and np.sign(d.value) == -expected for p, d in zip(corrected, found, strict=True)
    )
    word = "better" if expected > 0 else "worse"
    text = (
        f"Averaged over the datasets: {whole}. Significantly {word} on {clear} of {len(found)} datasets over seeds, "
        f"the opposite on {other}; the papers' test, which takes the evaluations of one run for independent, calls "
        f"{sum(p < 0.05 for p in papers)} of these differences significant."
    )
    return Verdict(direction(whole, expected), text, rows)


def mixing_harms(results: Results) -> Verdict:
    """Figure 4: does mixing 200 expert tuples into the data harm?"""
    return better("expert mixed in", "pure data", results, expected=-1)


def guiding_beats_mixing(results: Results) -> Verdict:
    """Figure 4: are 200 expert tuples worth more as guides?"""
    return better("guided", "expert mixed in", results)


def few_guide_better(results: Results) -> Verdict:
    """Figure 5a: with few expert tuples, is guiding better than mixing?"""
    return _guiding_minus_mixing(results, [n for n in _numbers(results) if n <= 1000])


def many_mix_as_well(results: Results) -> Verdict:
    """Figure 5a: with many, does the advantage of guiding vanish?"""
    most = max(_numbers(results))
    verdict = _guiding_minus_mixing(results, [most])
    n, size = len(next(iter(results.cells)).finished), len(results.columns)
    text = f"{verdict.measured} No difference can be proved by a test that finds none ({size} datasets, {n} seeds)."
    return Verdict("did not hold" if verdict.outcome == "held" else "undecided", text, verdict.table)


def alone_grows(results: Results) -> Verdict:
    """Figure 5b: does training on expert tuples alone get better with their number?"""
    rows = [["dataset", *(f"{n:,}" for n in _numbers(results)), "Spearman's rank correlation"]]
    outcomes = []
    for column in results.columns:
        scores = {n: normalized(results, f"alone · {n}", column) for n in _numbers(results)}
        x = np.repeat(list(scores), [len(found) for found in scores.values()])
        rank = stats.spearmanr(x, np.concatenate(list(scores.values())))
        clear = significant(float(rank.pvalue), min(map(len, scores.values())))
        outcomes.append(called(clear, rank.statistic > 0))
        means = [f"{found.mean():.1f}" for found in scores.values()]
        rows.append([column, *means, f"{rank.statistic:.2f} (p = {rank.pvalue:.1g})"])
    text = f"Scores rise with the number of tuples on {outcomes.count('held')} of {len(outcomes)} datasets."
    return Verdict(majority(outcomes), text, rows)


def relative_constraint(row: str, results: Results) -> Verdict:
    """Figure 3: does the constraint loss fall on expert samples relative to random ones?"""
    rows = [["dataset", "TD3+BC", row, "difference"]]
    outcomes = []
    for column in results.columns:
        base, ours = (_log_ratio(results, name, column) for name in ("TD3+BC", row))
        difference = Difference.of(ours, base)
        outcomes.append(direction(difference, -1))
        rows.append([column, signed(base.mean()), signed(ours.mean()), str(difference)])
    text = (
        "Shown is log(constraint loss on expert samples / on random samples), averaged over the second half of "
        f"training: it is significantly lower with {row} on {outcomes.count('held')} of {len(outcomes)} datasets and "
        f"higher on {outcomes.count('did not hold')}."
    )
    return Verdict(majority(outcomes), text, rows)


def larger_degree(row: str, results: Results) -> Verdict:
    """Theorem 1's reading: does B end larger on expert-like samples than on random-like ones?"""
    rows = [["dataset", "mean B on expert samples", "on random samples", "difference"]]
    outcomes = []
    for column in results.columns:
        expert, random = (
            logged(results, row, column, f"watch/{name}/guiding_network", last=0.1) for name in ("expert", "random")
        )
        gaps = expert - random  # of one run's B, so paired
        found = stats.ttest_1samp(gaps, 0.0)
        clear = significant(float(found.pvalue), len(gaps))
        outcomes.append(called(clear, gaps.mean() > 0))
        rows.append(
            [column, f"{expert.mean():.3f}", f"{random.mean():.3f}", f"{gaps.mean():+.3f} (p = {found.pvalue:.1g})"]
        )
    text = (
        f"At the end of training B is significantly larger on expert samples on {outcomes.count('held')} of "
        f"{len(outcomes)} datasets, and smaller on {outcomes.count('did not hold')}."
    )
    return Verdict(majority(outcomes), text, rows)


def schedule_moves(results: Results) -> Verdict:
    """Does the published schedule move B?"""
    rows = [["learning rate · period", "B moved by (mean over datasets and seeds)", "score, mean over datasets"]]
    moved = {}
    for row in results.rows:
        per_column = [
            logged(results, row, column, "guiding_network/output_moved", last=0.1) for column in results.columns
        ]
        moved[row] = float(np.mean(per_column))
        rows.append([row, f"{moved[row]:.4f}", f"{totals(results, row).mean():.1f}"])
    published = moved["1e-5 · 500"]
    text = (
        f"At the published schedule B moves by {published:.4f} on average in these {results.cells[0].steps:,} steps, "
        f"which hold {results.cells[0].steps // 500} updates (the paper's million holds 2,000); at the suite's fastest "
        f"schedule by {max(moved.values()):.2f}. Its range is 0 to 1."
    )
    return Verdict("held" if published > 0.05 else "did not hold", text, rows)


def cheap() -> Verdict:
    """Table III: what does GORL cost?"""
    recorded = {mode: turns["parts"] for mode, turns in json.loads(SPEED.read_text())["gorl"].items()}
    rows = [["how steps run", "added at period 500", "at period 10", "at period 2"]]
    for mode, parts in recorded.items():
        shares = [derived.gorl_overhead(parts, period).median for period in (500, 10, 2)]
        rows.append([mode, *(f"{100 * share:.1f} %" for share in shares)])
    added = [derived.gorl_overhead(parts, 500).median for parts in recorded.values()]
    text = (
        f"At the published period GORL adds {100 * min(added):.1f} to {100 * max(added):.1f} % to a step of TD3+BC; "
        "the paper measured 3.7 % for TD3+BC and 1.9 % on average."
    )
    return Verdict("held" if max(added) < 0.037 else "did not hold", text, rows)


def _numbers(results: Results) -> list[int]:
    return [int(n) for n in results.axes["tuples"] if int(n)]


def _guiding_minus_mixing(results: Results, numbers: list[int]) -> Verdict:
    found = {n: Difference.of(totals(results, f"guiding · {n}"), totals(results, f"mixed in · {n}")) for n in numbers}
    corrected = holm([d.test.p for d in found.values()])
    outcomes = [called(significant(p, d.test.n), d.value > 0) for p, d in zip(corrected, found.values(), strict=True)]
    rows = [["expert tuples", "none", "mixed in", "guiding", "guiding minus mixed in", "p (Holm)"]]
    none = totals(results, "none · 0").mean()
    for (n, difference), p in zip(found.items(), corrected, strict=True):
        means = [totals(results, f"{use} · {n}").mean() for use in ("mixed in", "guiding")]
        rows.append(
            [f"{n:,}", *(f"{mean:.1f}" for mean in (none, *means)), str(difference).split("; p")[0] + ")", f"{p:.2g}"]
        )
    text = "; ".join(f"{n:,} tuples: {difference}" for n, difference in found.items()) + "."
    return Verdict(majority(outcomes), f"Guiding minus mixing in, mean over datasets. {text}", rows)


def _log_ratio(results: Results, row: str, column: str) -> np.ndarray:
    expert, random = (logged(results, row, column, f"watch/{name}/constraint") for name in ("expert", "random"))
    return np.log(expert / random)


SMALL = "gorl_table_iv-small"
_FASTER = {
    "GORL every 4th step": "updated every 4th step (2,000 times, as in the paper)",
    "GORL quick": "updated every 2nd step at 3e-4",
}

CLAIMS = (
    Claim("GORL", "Table IV", "an interior constant weight is best on most datasets", SMALL, interior_optimum),
    Claim("GORL", "Section V-A", "scores vary greatly with the constant weight", SMALL, weight_matters),
    Claim(
        "GORL",
        "Table IV",
        "learned weights beat every constant one in total, at the published schedule",
        SMALL,
        partial(beats_every_constant, PUBLISHED),
    ),
    *(
        Claim("GORL", "Table IV", f"the same with the guiding network {how}", SMALL, partial(beats_every_constant, row))
        for row, how in _FASTER.items()
    ),
    Claim(
        "GORL",
        "Tables I and II, Figure 2",
        "GORL improves TD3+BC, at the published schedule",
        SMALL,
        partial(improves_base, PUBLISHED),
    ),
    *(
        Claim("GORL", "Tables I and II", f"the same with the guiding network {how}", SMALL, partial(improves_base, row))
        for row, how in _FASTER.items()
    ),
    Claim(
        "GORL",
        "summary, next check 2",
        "a guiding network that learns is better than one that is never updated",
        SMALL,
        partial(better, "GORL quick", "GORL never updated"),
    ),
    Claim("GORL", "Figure 4", "mixing 200 expert tuples into the data harms", "gorl_figure_4-small", mixing_harms),
    Claim(
        "GORL",
        "Figure 4",
        "guiding with them is better than mixing them in",
        "gorl_figure_4-small",
        guiding_beats_mixing,
    ),
    Claim(
        "GORL",
        "Figure 5a",
        "few expert tuples (50 to 1,000) are worth more as guides than mixed in",
        "gorl_figure_5-small",
        few_guide_better,
    ),
    Claim("GORL", "Figure 5a", "of many (10,000) they no longer are", "gorl_figure_5-small", many_mix_as_well),
    Claim(
        "GORL",
        "Figure 5b",
        "training on expert tuples alone gets better with their number",
        "gorl_figure_5-small",
        alone_grows,
    ),
    Claim(
        "GORL",
        "Figure 3",
        "GORL raises the relative constraint on expert data, at the published schedule",
        "gorl_figure_3-small",
        partial(relative_constraint, PUBLISHED),
    ),
    Claim(
        "GORL",
        "Figure 3",
        "the same with the guiding network updated every 2nd step at 3e-4",
        "gorl_figure_3-small",
        partial(relative_constraint, "GORL quick"),
    ),
    Claim(
        "GORL",
        "summary, first experiment 2",
        "B becomes larger on expert-like than on random-like samples (updated every 2nd step at 3e-4)",
        "gorl_figure_3-small",
        partial(larger_degree, "GORL quick"),
    ),
    Claim(
        "GORL",
        "Table VI",
        "the published schedule moves the guiding network (B by more than 0.05)",
        "gorl_schedule-small",
        schedule_moves,
    ),
)
