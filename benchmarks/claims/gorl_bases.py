"""Claims about GORL's four base algorithms, and about GORL on each of them (arXiv:2309.01448, Tables I to III)."""

from __future__ import annotations

from functools import partial

import numpy as np

from benchmarks.claims.gorl import SCHEDULES, TOTAL, better
from benchmarks.claims.verdict import (
    BySeed,
    Claim,
    Difference,
    Verdict,
    called,
    clear,
    direction,
    directions,
    majority,
    mean,
    normalized,
    signed,
    totals,
)
from benchmarks.results import Results
from benchmarks.statistics import holm
from metarl.errors import UserError

BASES = ("TD3+BC", "SAC+BC", "IQL", "CQL")
BEST = {"pendulum": (-16.28 / (1 - 0.99), 0.0), "inverted_pendulum": (0.0, 1 / (1 - 0.99)), "pointmaze": (0.0, 1.0)}
"""Worst and best possible return, discounted by 0.99: rewards in [-16.28, 0] and [0, 1] in every step, and 1 at the
goal, where an episode ends."""
MARGIN = 0.1  # of the span of possible returns, by which Q may exceed a best of 0
SUITE = "gorl_table_i-small"
MIXING = "gorl_figure_4_bases-small"


def beats_cloning(results: Results) -> Verdict:
    """Is each base above behaviour cloning on every set of medium quality?"""
    columns = [column for column in results.columns if column.endswith("/medium")]
    rows, outcomes = [["dataset", "BC", *(f"{base} minus it" for base in BASES)]], []
    for column in columns:
        cloning = normalized(results, "BC · base", column)
        found = [Difference.of(normalized(results, f"{base} · base", column), cloning) for base in BASES]
        outcomes += directions(found, 1)
        rows.append([column, f"{mean(cloning):.1f}", *(d.range for d in found)])
    text = (
        f"{outcomes.count('held')} of {len(outcomes)} differences are significantly positive (Holm over the bases of a "
        f"dataset), {outcomes.count('did not hold')} negative."
    )
    held = all(outcome == "held" for outcome in outcomes)
    return Verdict(called(held or "did not hold" in outcomes, held), text, rows)


def bounded(results: Results) -> Verdict:
    """Do Q-values stay below three times the best possible discounted return?"""
    rows, fine = [["dataset", "best possible", "limit", *BASES]], True
    for column in results.columns:
        low, high = next(pair for name, pair in BEST.items() if column.startswith(name))
        limit = 3 * high or MARGIN * (high - low)
        tops = {base: _highest(results, base, column) for base in BASES}
        fine &= all(top < limit for top in tops.values())
        rows.append([column, f"{high:g}", f"{limit:.3g}", *(f"{top:.3g}" for top in tops.values())])
    text = (
        "Shown is the highest Q of any of a batch's actions at any evaluation, over methods and seeds, for CQL over "
        "its factor of rewards."
    )
    return Verdict("held" if fine else "did not hold", text, rows)


def _highest(results: Results, base: str, column: str) -> float:
    found = []
    for method in results.axes["method"]:
        cell = results.at(f"{base} · {method}", column)
        if cell is None or len(cell.finished) < len(cell.seeds):
            raise UserError(f"{results.name}: the cell {base} · {method}, {column!r} is not finished; run the suite")
        scale = (cell.config or {})["algorithm"].get("rewards", {}).get("scale", 1.0)
        found += [value / float(scale) for run in cell.finished for value in run.scalars["critic/q_max"].values]
    return float(np.max(found))  # NaN where one is


def improves_all(method: str, results: Results) -> Verdict:
    """Is GORL above its base on average over the four bases and all datasets, and over each?"""
    rows = [["base", "its score, mean over datasets", "GORL minus base", "p (Holm)"]]
    pairs = [(totals(results, f"{base} · {method}"), totals(results, f"{base} · base")) for base in BASES]
    found = [Difference.of(*pair) for pair in pairs]
    for base, (_, own), d, p in zip(BASES, pairs, found, holm([d.test.p for d in found]), strict=True):
        rows.append([base, f"{mean(own):.1f}", d.range, f"{p:.2g}"])
    whole = Difference.of(*(_averaged([pair[i] for pair in pairs]) for i in (0, 1)))
    outcomes = directions(found, 1)
    text = (
        f"Averaged over bases and datasets: {whole}. Significantly better on {outcomes.count('held')} of {len(BASES)} "
        f"bases, worse on {outcomes.count('did not hold')}."
    )
    return Verdict(direction(whole, 1), text, rows)


def _averaged(scores: list[BySeed]) -> BySeed:
    return {seed: mean([each[seed] for each in scores]) for seed in scores[0]}


def mixing_harms(results: Results) -> Verdict:
    """Does mixing expert tuples into the data harm each base?"""
    return _by_base("expert mixed in", "pure data", -1, results)


def guiding_helps(guide: str, results: Results) -> Verdict:
    """Does guiding help each base?"""
    return _by_base(guide, "pure data", 1, results)


def _by_base(ours: str, theirs: str, expected: int, results: Results) -> Verdict:
    found = [Difference.of(totals(results, f"{b} · {ours}"), totals(results, f"{b} · {theirs}")) for b in BASES]
    rows = [["base", f"{ours} minus {theirs}", "p (Holm)"]]
    for base, d, p in zip(BASES, found, holm([d.test.p for d in found]), strict=True):
        rows.append([base, d.range, f"{p:.2g}"])
    sure = clear(found)
    text = "; ".join(f"{base} {signed(d.value)}" for base, d, yes in zip(BASES, found, sure, strict=True) if yes)
    return Verdict(majority(directions(found, expected)), f"Significant: {text or 'none'}.", rows)


_HOW = {
    "GORL every 4th step": "every 4th step at 1e-5, 2,000 times; in the paper as often on TD3+BC and SAC+BC, 5,000 "
    "times on IQL and CQL",
    "GORL quick": SCHEDULES["GORL quick"],
}
_AGAINST_BASE = (
    f"{TOTAL}. Against the base: that B starts near 0.5, and on IQL that beta leaves the exponent, count as GORL's"
)

CLAIMS = (
    *(
        Claim(
            "GORL",
            "Tables I and II",
            f"GORL improves {base} (B updated {how})",
            _AGAINST_BASE,
            SUITE,
            partial(better, f"{base} · {method}", f"{base} · base"),
        )
        for method, how in _HOW.items()
        for base in BASES
    ),
    *(
        Claim(
            "GORL",
            "summary, next check 2",
            f"on {base}, a B that moves (updated {_HOW['GORL quick']}) is better than one that hardly does",
            f"{TOTAL}; against B updated {_HOW['GORL every 4th step']}",
            SUITE,
            partial(better, f"{base} · GORL quick", f"{base} · GORL every 4th step"),
        )
        for base in BASES
    ),
    *(
        Claim(
            "GORL",
            "Table I",
            f"GORL improves the average over its four bases (B updated {how})",
            "the sign of the mean over bases and datasets, if significant; by base for information",
            SUITE,
            partial(improves_all, method),
        )
        for method, how in _HOW.items()
    ),
    Claim(
        "GORL",
        "Table I, bases",
        "each base is above behaviour cloning on data of medium quality",
        "every base on every set is significantly above; refuted where one is significantly below",
        SUITE,
        beats_cloning,
    ),
    Claim(
        "metarl",
        "a check of our own",
        "Q stays below three times the best possible discounted return",
        "the highest Q at any evaluation, without a test; where the best is 0, as on Pendulum, Q may exceed it by a "
        "tenth of the span of possible returns",
        SUITE,
        bounded,
    ),
    Claim(
        "GORL",
        "Figure 4, on four bases",
        "mixing 200 expert tuples into the data harms",
        "the sign of the mean over datasets on most bases, where significant (Holm over the bases)",
        MIXING,
        mixing_harms,
    ),
    *(
        Claim(
            "GORL",
            where,
            f"{row} (B updated {SCHEDULES['GORL quick']}) helps",
            "the sign of the mean over datasets on most bases, where significant (Holm over the bases)",
            MIXING,
            partial(guiding_helps, row),
        )
        for where, row in (
            ("Figure 4, on four bases", "guided by expert"),
            ("open question 1", "guided by best episodes"),
        )
    ),
)
