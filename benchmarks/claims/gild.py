"""GILD's claims (Deng et al. 2025, arXiv:2501.07346), judged on committed results.

Its suites learn online and are judged by raw returns: the mean of a run's last ten evaluations, unless said otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray

from benchmarks.claims.cells import (
    ahead,
    area,
    cell_of,
    course,
    final,
    iqm_text,
    mean_text,
    of_each,
    scores_of,
    settings,
)
from benchmarks.claims.verdict import (
    BySeed,
    Claim,
    Difference,
    Outcome,
    Verdict,
    called,
    directions,
    majority,
    mean,
    signed,
)
from benchmarks.results import Cell, Results, Run
from benchmarks.statistics import holm
from metarl.errors import UserError

SPREAD, OUTPUT = "loss_network/output_std", "loss_network/output_mean"
HYPERGRADIENT = "loss_network/hypergradient_norm"
IMITATION = "watch/demo/imitation"
CONSTANT = 1e-3  # a spread of G below which it says nothing; at the start it is about 0.02
MARGIN = 0.1  # of a return (or a spread), within which another counts as near it
PERCENT = f"{100 * MARGIN:.0f} %"
SHARE = 0.01  # of the gradient steps, within which GILD is said to converge
DECAY = 1e-3  # the norm of what the published decay adds to G's gradient at the start, 1e-4 |w|
PICTURE = "[picture](gild_decay.png) by `python -m benchmarks.gild_decay`"


# -- what claims are about -------------------------------------------------------------------------------------


def demonstrators(cell: Cell) -> BySeed:
    """The mean return of the demonstrations by seed, from the card of the data: seeds may draw other episodes.

    Raises:
        UserError: a card does not tell.
    """
    found = {run.seed: run.data.get("demo", {}).get("returns", {}).get("mean") for run in cell.scored}
    if None in found.values():
        raise UserError(f"{cell.row}, {cell.column}: no mean return is known of data.demo; take whole episodes")
    return {seed: float(value) for seed, value in found.items()}


def learns_from(cell: Cell) -> int:
    """The environment step after which gradient steps begin."""
    return int(((cell.config or {}).get("online") or {}).get("learn_from", 0))


def first_steps(cell: Cell) -> tuple[float, float]:
    """The environment steps where gradient steps begin, and where 1 % of them are taken."""
    begins = learns_from(cell)
    return begins, begins + SHARE * (cell.steps - begins)


# -- comparisons of returns ------------------------------------------------------------------------------------


def past_demonstrator(results: Results, method: str = "GILD") -> Verdict:
    """Does a method return more than its demonstrations do?"""
    rows = [["setting", "demonstrator", "method", "mean", "IQM", "mean minus demonstrator", "p (Holm)"]]
    lines: dict[str, list[list[str]]] = {}
    outcomes: list[Outcome] = []
    by_setting = settings(results, "method")
    for other in results.axes["method"]:
        cells = {name: cell_of(results, labels | {"method": other}) for name, labels in by_setting.items()}
        scores = {name: scores_of(results, cell.labels, final) for name, cell in cells.items()}
        levels = {name: demonstrators(cell) for name, cell in cells.items()}
        found = [Difference.of(scores[name], levels[name]) for name in cells]
        for name, d, p in zip(cells, found, holm([d.test.p for d in found]), strict=True):
            own = [mean_text(scores[name]), iqm_text(scores[name]), d.range, f"{p:.2g}"]
            lines.setdefault(name, []).append([name, mean_text(levels[name]), other, *own])
        if other == method:
            outcomes = directions(found, 1)
    rows += [line for group in lines.values() for line in group]
    text = (
        f"{method} returns significantly more than its demonstrator on {outcomes.count('held')} of {len(outcomes)} "
        f"settings, and less on {outcomes.count('did not hold')}."
    )
    return Verdict(of_each(outcomes), text, rows)


def near_demonstrator(results: Results, method: str = "RL+IL") -> Verdict:
    """Does a method return about what its demonstrations do?"""
    rows, outcomes = [["setting", "demonstrator", f"{method} minus it", "near is within", "verdict"]], []
    for name, labels in settings(results, "method").items():
        cell = cell_of(results, labels | {"method": method})
        levels = demonstrators(cell)
        margin = MARGIN * abs(mean(levels))
        found = Difference.of(scores_of(results, cell.labels, final), levels)
        low, high = found.interval.low, found.interval.high
        inside, outside = -margin <= low and high <= margin, high < -margin or low > margin
        outcomes.append(called(inside or outside, inside))
        rows.append([name, mean_text(levels), found.range, f"{margin:,.1f}", outcomes[-1]])
    text = (
        f"{method}'s interval lies within {PERCENT} of the demonstrator's return on {outcomes.count('held')} of "
        f"{len(outcomes)} settings, and wholly outside on {outcomes.count('did not hold')}."
    )
    return Verdict(majority(outcomes), text, rows)


def short_start(results: Results, ours: str = "1 %") -> Verdict:
    """Does a short warm start do as well as the suite's longest?"""
    longest = results.axes["warm start"][-1]
    rows, outcomes = [["setting", "GILD for", "mean", "IQM", f"minus GILD for {longest}", "p (Holm)"]], []
    texts = []
    for name, labels in settings(results, "warm start").items():
        scores = {
            share: scores_of(results, labels | {"warm start": share}, final) for share in results.axes["warm start"]
        }
        found = {share: Difference.of(x, scores[longest]) for share, x in scores.items() if share != longest}
        corrected = dict(zip(found, holm([d.test.p for d in found.values()]), strict=True))
        for share, x in scores.items():
            gap = [found[share].range, f"{corrected[share]:.2g}"] if share != longest else ["", ""]
            rows.append([name, share, mean_text(x), iqm_text(x), *gap])
        interval, margin = found[ours].interval, MARGIN * abs(mean(scores[longest]))
        as_well = interval.low > -margin
        outcomes.append(called(as_well or interval.high < -margin, as_well))
        texts.append(f"{name}: {found[ours]}")
    text = f"GILD for {ours} of the gradient steps minus GILD for {longest}: {'; '.join(texts)}."
    return Verdict(majority(outcomes), text, rows)


# -- the loss network, and how far the policy goes ---------------------------------------------------------------


def converges(results: Results) -> Verdict:
    """Does G settle within 1 % of the gradient steps, as published, on something that is no constant?"""
    published = {"activation": "ReLU", "weight decay": "1e-4"}
    rows = [["setting", "weight decay", "spread of G at the start", "after 1 %", "at the end", "mean of G there"]]
    outcomes: list[Outcome] = []
    texts = []
    for name, labels in settings(results, "weight decay").items():
        for decay in results.axes["weight decay"]:
            cell = cell_of(results, labels | {"weight decay": decay})
            stages = np.array([_stages(results, cell, run) for run in cell.scored])
            ends = mean([course(results, run, OUTPUT).values[-1] for run in cell.scored])
            rows.append([name, decay, *(f"{value:.2g}" for value in stages.mean(0)), f"{ends:.3f}"])
            if published.items() <= cell.labels.items():
                outcomes.append(_settled(stages))
                texts.append(_said_of_network(results, cell, stages, ends))
    at = sorted({f"step {_after(results, cell, run)[0]:,}" for cell in results.cells for run in cell.scored})
    text = (
        "Shown is the standard deviation of G over the demonstrations, 0 where G is a constant; 'after 1 %' is at the "
        f"first evaluation after them, {' or '.join(at)}. {' '.join(texts)}"
    )
    return Verdict(majority(outcomes), text, rows)


def _said_of_network(results: Results, cell: Cell, stages: NDArray[np.float64], ends: float) -> str:
    start, after, end = (f"{value:.2g}" for value in stages.mean(0))
    norm = max(value for run in cell.scored for value in course(results, run, HYPERGRADIENT).values)
    told = f"As published G's spread goes from {start} to {after} and ends at {end}"
    at_most = f"the hypergradient's norm is at most {norm:.1g} at any evaluation"
    decay = f"1e-4 |w|, about {DECAY:g} at the start"
    if not ((stages[:, 2] < CONSTANT).all() and abs(ends - math.log(2)) < 0.01):
        return (
            f"{told}; {at_most}, what the weight decay adds {decay}. On SparseHalfCheetah, where no reward is met at "
            f"first, G does become a constant, in the authors' own code as well: {PICTURE}."
        )
    same = f"The same on SparseHalfCheetah, in the authors' own code as well: {PICTURE}."
    constant = f"{told}: G becomes the constant softplus(0) = {math.log(2):.3f}"
    if norm < DECAY:
        return f"{constant}, because the weight decay ({decay}) is larger than the hypergradient: {at_most}. {same}"
    return f"{constant}, though not for the weight decay ({decay}) alone: {at_most}. {same}"


def _stages(results: Results, cell: Cell, run: Run) -> tuple[float, float, float]:
    """G's spread before it learns, at the first evaluation after 1 % of the gradient steps, and at the end."""
    series = course(results, run, SPREAD)
    before = [v for step, v in zip(series.steps, series.values, strict=True) if step <= learns_from(cell)]
    return (before or series.values[:1])[-1], _after(results, cell, run)[1], series.values[-1]


def _after(results: Results, cell: Cell, run: Run) -> tuple[int, float]:
    series = course(results, run, SPREAD)
    due = first_steps(cell)[1]
    return next((s, v) for s, v in zip(series.steps, series.values, strict=True) if s >= due)


def _settled(stages: NDArray[np.float64]) -> Outcome:
    """Of spreads [seeds, 3]: held where all have settled, refuted where all end constant or none has settled."""
    constant = stages[:, 2] < CONSTANT
    settled = ~constant & (np.abs(stages[:, 1] - stages[:, 2]) <= MARGIN * stages[:, 2])
    return called(bool(constant.all() or settled.all() or not settled.any()), bool(settled.all()))


def moves_away(results: Results) -> Verdict:
    """Does the policy under GILD go away from the demonstrations after the early stage?"""
    rows = [["setting", "method", "early", "late", "late minus early", "p (Holm)"]]
    by_setting = settings(results, "method")
    outcomes: list[Outcome] = []
    for method in results.axes["method"]:
        ends = [_early_and_late(results, labels | {"method": method}) for labels in by_setting.values()]
        found = [Difference.of(late, early) for early, late in ends]
        corrected = holm([d.test.p for d in found])
        for name, (early, late), d, p in zip(by_setting, ends, found, corrected, strict=True):
            rows.append([name, method, f"{mean(early):,.2f}", f"{mean(late):,.2f}", d.range, f"{p:.2g}"])
        if method == "GILD":
            outcomes = directions(found, 1)
    text = (
        "Shown is the cloning loss on all demonstrations in the first and the last quarter of the evaluations after "
        f"learning begins. Under GILD it rises significantly on {outcomes.count('held')} of {len(outcomes)} settings, "
        f"and falls on {outcomes.count('did not hold')}."
    )
    return Verdict(majority(outcomes), text, rows)


def moves_farther(results: Results) -> Verdict:
    """Does it go away by more than under RL+IL?"""
    rows = [["setting", "by which GILD moves away", "RL+IL", "difference", "p (Holm)"]]
    names, moved = [], []
    for name, labels in settings(results, "method").items():
        names.append(name)
        moved.append([_moved(results, labels | {"method": method}) for method in ("GILD", "RL+IL")])
    found = [Difference.of(x, y) for x, y in moved]
    for name, (x, y), d, p in zip(names, moved, found, holm([d.test.p for d in found]), strict=True):
        rows.append([name, signed(mean(x)), signed(mean(y)), d.range, f"{p:.2g}"])
    outcomes = directions(found, 1)
    text = "; ".join(f"{name} {d}" for name, d in zip(names, found, strict=True))
    return Verdict(majority(outcomes), f"GILD's rise of the cloning loss minus RL+IL's: {text}.", rows)


def _moved(results: Results, labels: Mapping[str, str]) -> BySeed:
    early, late = _early_and_late(results, labels)
    return {seed: late[seed] - early[seed] for seed in early}


def _early_and_late(results: Results, labels: Mapping[str, str]) -> tuple[BySeed, BySeed]:
    """The cloning loss on demonstrations in the first and the last quarter of the evaluations while it learns."""
    cell = cell_of(results, labels)
    early, late = {}, {}
    for run in cell.scored:
        series = course(results, run, IMITATION)
        values = [v for step, v in zip(series.steps, series.values, strict=True) if step > learns_from(cell)]
        n = max(1, len(values) // 4)
        early[run.seed], late[run.seed] = mean(values[:n]), mean(values[-n:])
    return early, late


# -- the claims ------------------------------------------------------------------------------------------------

_THREE, _ONE = " on DDPG, TD3 and SAC", " on SparseHalfCheetah with TD3"
COMPARISON, ROBOT = "gild_comparison-small", "gild_halfcheetah"
TANH, WARM, DEMONSTRATIONS, NETWORK, DIVERGENCE = (
    f"gild_{name}-small" for name in ("tanh", "warm_start", "demonstrations", "network", "divergence")
)
_ON_EACH = (
    "its mean over seeds is significantly above on {what} (Holm over them); refuted where significantly below on one"
)
_BASES = _ON_EACH.format(what="every base")
_NEAR = f"its mean minus the demonstrator's has a 95 % interval within {PERCENT} of that; refuted where wholly outside"
_ALONE = "the sign of the mean difference, if significant"

CLAIMS = (
    *(
        Claim(
            "GILD", "key result 1", f"GILD beats {rival}{of}", rule, suite, partial(ahead, "method", "GILD", (rival,))
        )
        for suite, of, rule in (
            (COMPARISON, _THREE, _BASES),
            (ROBOT, _ONE, _ALONE),
        )
        for rival in ("RL", "RL+IL", "Meta-Critic")
    ),
    *(
        claim
        for suite, of, rules in (
            (COMPARISON, _THREE, (_BASES, f"on most bases {_NEAR}")),
            (ROBOT, _ONE, (_ALONE, _NEAR)),
        )
        for claim in (
            Claim("GILD", "key result 2", f"GILD gets past its demonstrator{of}", rules[0], suite, past_demonstrator),
            Claim("GILD", "key result 2", f"RL+IL stays near its demonstrator{of}", rules[1], suite, near_demonstrator),
        )
    ),
    Claim(
        "GILD",
        "first experiment 1",
        "on sparse navigation DDPG+GILD beats DDPG and DDPG+IL",
        _ON_EACH.format(what="both"),
        COMPARISON,
        partial(ahead, "method", "GILD", ("RL", "RL+IL"), only={"base": "DDPG"}),
    ),
    Claim(
        "GILD",
        "(not in the paper)",
        "GILD reaches the reward sooner than RL",
        f"by the mean return over all of training, the area under its curve: {_BASES}",
        COMPARISON,
        partial(ahead, "method", "GILD", ("RL",), score=area),
    ),
    Claim(
        "GILD",
        "key result 3",
        "GILD converges within 1 % of the steps",
        f"as published, on every seed G's spread after 1 % of the gradient steps is within {PERCENT} of that in the "
        f"end, which is above {CONSTANT:g}; refuted where it ends below that on every seed, or has settled on none; no "
        "test",
        NETWORK,
        converges,
    ),
    Claim(
        "GILD",
        "(not in the paper)",
        "GILD is better without weight decay of its loss network",
        _ON_EACH.format(what="both activations"),
        NETWORK,
        partial(ahead, "weight decay", "none", ("1e-4",)),
    ),
    Claim(
        "GILD",
        "key result 4",
        "the policy under GILD moves away from the demonstrations after the early stage",
        "the cloning loss on them rises significantly from the first to the last quarter of evaluations",
        DIVERGENCE,
        moves_away,
    ),
    Claim(
        "GILD",
        "key result 4",
        "it moves away by more than under RL+IL",
        f"{_ALONE}, of that rise",
        DIVERGENCE,
        moves_farther,
    ),
    Claim(
        "GILD",
        "first experiment 2",
        "the bounded meta-loss (tanh) is better than the plain one",
        _ALONE,
        TANH,
        partial(ahead, "meta-loss", "tanh", ("plain",)),
    ),
    Claim(
        "GILD",
        "first experiment 3",
        "GILD for the first 1 % of the steps does as well as for 5 %",
        f"the 95 % interval of the difference lies above −{PERCENT} of the latter's return; refuted if wholly below",
        WARM,
        short_start,
    ),
    Claim(
        "GILD",
        "next check 1",
        "GILD beats RL+IL with expert, medium, noisy and adversarial demonstrations",
        _ON_EACH.format(what="each"),
        DEMONSTRATIONS,
        partial(ahead, "method", "GILD", ("RL+IL",)),
    ),
    Claim(
        "GILD",
        "open question 3",
        "where demonstrations never meet a reward, GILD beats RL+IL",
        _ALONE,
        DEMONSTRATIONS,
        partial(ahead, "method", "GILD", ("RL+IL",), only={"demonstrations": "adversarial"}),
    ),
)
