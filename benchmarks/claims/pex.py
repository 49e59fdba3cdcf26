"""PEX's claims (Zhang et al. 2023, arXiv:2302.00935), judged on committed results.

Runs learn from data and then online; those without an offline phase are online from the first step. Judged is what
comes after the switch, by success rates in percent or by normalised returns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import product

import numpy as np

from benchmarks.claims.cells import Score, ahead, iqm_text, mean_text, of_each, scores_of, settings
from benchmarks.claims.verdict import BySeed, Claim, Difference, Outcome, Verdict, called, directions, mean
from benchmarks.results import Results, Run
from benchmarks.statistics import holm
from metarl.errors import UserError

LAST = 3  # evaluations at the end
FIRST = 2  # evaluations after learning begins online
ERRORS = 2.0  # standard errors, by which a return may be below that at the switch
OFFLINE = "offline alone"  # a cell that others begin with, without an online phase
RIVALS = ("direct", "buffer", "scratch", "JSRL", "AWAC")


# -- what runs are worth ---------------------------------------------------------------------------------------


def switch(run: Run) -> int:
    """The step after which a run is online; 0 without an offline phase."""
    return int((run.config.get("steps") or {}).get("offline") or 0)


def learns_from(run: Run) -> int:
    """The step after which it learns online: some environment steps may come first."""
    return switch(run) + int((run.config.get("online") or {}).get("learn_from") or 0)


def curve(run: Run) -> list[tuple[int, float]]:
    """(steps after the switch, success in percent or normalised return) of every evaluation.

    Raises:
        UserError: no reference is known for returns.
    """
    if run.measure == "success":
        return [(e.step - switch(run), 100 * (e.success or 0.0)) for e in run.evaluations]
    scale = run.reference_of("return")
    if scale is None:
        raise UserError(f"no reference scores are known for {run.env!r}; see metarl/data/scores.py")
    return [(e.step - switch(run), scale.normalized(e.mean)) for e in run.evaluations]


def online(run: Run) -> list[tuple[int, float]]:
    """The part of `curve` from the switch on."""
    return [(step, value) for step, value in curve(run) if step >= 0]


def area(run: Run) -> float:
    """The area under the online curve over its width: the mean while it learns there."""
    steps, values = zip(*online(run), strict=True)
    return float(np.trapezoid(values, steps) / (steps[-1] - steps[0]))


def end(run: Run) -> float:
    """The mean of the last three evaluations."""
    return mean([value for _, value in online(run)[-LAST:]])


def at_switch(run: Run) -> float:
    """The evaluation at the switch."""
    return online(run)[0][1]


def after_switch(run: Run) -> float:
    """The mean of the first two evaluations after learning begins online."""
    begins = learns_from(run) - switch(run)
    return mean([value for step, value in online(run) if step > begins][:FIRST])


# -- strategies ------------------------------------------------------------------------------------------------


def no_drop(results: Results, ours: str = "PEX") -> Verdict:
    """Are the first evaluations of online learning no worse than that at the switch?"""
    rows = [["task", "strategy", "at the switch", "just after it", "difference", "standard errors", "verdict"]]
    outcomes: list[Outcome] = []
    for name, labels in settings(results, "strategy").items():
        for strategy in (ours, "direct"):
            before, after = (
                scores_of(results, labels | {"strategy": strategy}, score) for score in (at_switch, after_switch)
            )
            d = Difference.of(after, before)
            errors = _errors(after, before)
            outcome = called(True, errors >= -ERRORS)
            if strategy == ours:
                outcomes.append(outcome)
            told = f"{errors:+.1f}".replace("-", "−") if math.isfinite(errors) else "none varies"
            rows.append([name, strategy, mean_text(before), mean_text(after), d.range, told, outcome])
    text = (
        f"{ours} is below the evaluation at the switch by more than {ERRORS:g} standard errors on "
        f"{outcomes.count('did not hold')} of {len(outcomes)} tasks; fine-tuning (direct) stands beside it."
    )
    return Verdict(of_each(outcomes), text, rows)


def _errors(after: BySeed, before: BySeed) -> float:
    """The mean difference in its standard errors over seeds; infinite where the seeds do not vary."""
    gaps = np.array([after[seed] - before[seed] for seed in before])
    error = float(gaps.std(ddof=1) / math.sqrt(len(gaps)))
    value = float(gaps.mean())
    return value / error if error > 0 else math.copysign(math.inf, value) if value else 0.0


# -- options ---------------------------------------------------------------------------------------------------


def best(axes: Sequence[str], default: Sequence[str], results: Results, score: Score) -> Verdict:
    """Is one combination of labels of some axes above all others, averaged over the other axes?"""
    others = [axis for axis in results.axes if axis not in axes]
    under = {tuple(cell.labels[axis] for axis in others): None for cell in results.cells}
    scores = {
        labels: [
            scores_of(results, dict(zip((*axes, *others), (*labels, *setting), strict=True)), score)
            for setting in under
        ]
        for labels in product(*(results.axes[axis] for axis in axes))
    }
    whole = {labels: _average(own) for labels, own in scores.items()}
    ours = tuple(default)
    found = {labels: Difference.of(whole[ours], own) for labels, own in whole.items() if labels != ours}
    corrected = dict(zip(found, holm([d.test.p for d in found.values()]), strict=True))
    name = " · ".join(ours)
    rows = [[" · ".join(axes), *(" · ".join(s) for s in under), "average", "its IQM", f"{name} minus it", "p (Holm)"]]
    for labels, own in whole.items():
        gap = [found[labels].range, f"{corrected[labels]:.2g}"] if labels in found else ["", ""]
        rows.append([" · ".join(labels), *(mean_text(x) for x in scores[labels]), mean_text(own), iqm_text(own), *gap])
    outcomes = directions(list(found.values()), 1)
    top = max(whole, key=lambda labels: mean(whole[labels]))
    text = (
        f"{name} is significantly above {outcomes.count('held')} of {len(found)} others and below "
        f"{outcomes.count('did not hold')}; the best mean is that of {' · '.join(top)}, {mean(whole[top]):.1f} beside "
        f"{mean(whole[ours]):.1f}."
    )
    return Verdict(of_each(outcomes), text, rows)


def _average(scores: Sequence[BySeed]) -> BySeed:
    return {seed: mean([own[seed] for own in scores]) for seed in scores[0]}


# -- the claims ------------------------------------------------------------------------------------------------

STRATEGIES, SETS, TEMPERATURE, CRITIC, SENSITIVITY = (
    f"pex_{name}-small" for name in ("strategies", "sets", "temperature", "critic", "sensitivity")
)
_AREA = "by the mean over the online steps, the area under the curve from the switch on"
_END = f"by the mean of the last {LAST} evaluations"
_EACH = "significantly above on every task (Holm over them); refuted where significantly below on one"
_EVERY = "averaged over the tasks significantly above every other (Holm over them); refuted where below one"
_WAYS = {
    "direct": "fine-tuning (direct)",
    "buffer": "learning anew with the data in the buffer",
    "scratch": "learning from scratch",
}
_KAPPA = "inverse temperature"

CLAIMS = (
    *(
        Claim(
            "PEX",
            "key result 1" if rival == "direct" else "its tables and figures",
            f"PEX is better than {_WAYS.get(rival, rival)} {when}",
            f"{rule}, {_EACH}",
            STRATEGIES,
            partial(ahead, "strategy", "PEX", (rival,), score=score),
        )
        for when, rule, score in (("while it learns online", _AREA, area), ("in the end", _END, end))
        for rival in RIVALS
    ),
    Claim(
        "PEX",
        "first experiment 2",
        "PEX does not drop at the switch",
        f"on every task the mean of the first {FIRST} evaluations after learning begins online is not below the one at "
        f"the switch by more than {ERRORS:g} standard errors over seeds; no test",
        STRATEGIES,
        no_drop,
    ),
    *(
        Claim(
            "PEX",
            "open question 1",
            f"{number} policies are better than two",
            f"{_AREA}, {_EACH}",
            SETS,
            partial(ahead, "policies", label, ("2",), score=area),
        )
        for label, number in (("4", "four"), ("8", "eight"))
    ),
    Claim(
        "PEX",
        "open question 2",
        "the published inverse temperature, 10, is the best one",
        f"{_AREA}, {_EVERY}",
        TEMPERATURE,
        partial(best, (_KAPPA,), ("10",), score=area),
    ),
    Claim(
        "PEX",
        "open question 2",
        "an inverse temperature that holds the choice's entropy is better than the published one",
        f"{_AREA}, {_EACH}",
        TEMPERATURE,
        partial(ahead, _KAPPA, "adaptive", ("10",), score=area),
    ),
    *(
        Claim("PEX", where, says, f"{_AREA}, {_EACH}", CRITIC, partial(ahead, "critic", ours, (theirs,), score=area))
        for where, says, ours, theirs in (
            ("key result 3", "carrying everything over is better than a fresh critic", "carried on", "fresh"),
            ("next check 2", "the offline values alone are better than a fresh critic", "values given", "fresh"),
            (
                "next check 2",
                "carrying the optimisers over, too, is better than the values alone",
                "carried on",
                "values given",
            ),
        )
    ),
    Claim(
        "PEX",
        "next check 1",
        "the published expectile and inverse temperature, 0.9 and 10, are the best pair",
        f"{_AREA}, {_EVERY}",
        SENSITIVITY,
        partial(best, ("expectile", _KAPPA), ("0.9", "10"), score=area),
    ),
)
