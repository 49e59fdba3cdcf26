"""How often intervals cover where the truth is known; `measure` makes all studies, those of tests too."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial
from importlib import metadata
from itertools import product
from typing import Any

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.statistics import simulation
from benchmarks.statistics.checks import Scores
from benchmarks.statistics.comparisons import comparison_studies
from benchmarks.statistics.differences import difference
from benchmarks.statistics.intervals import LEVEL, Method, Statistic, bounds, iqm, mean_interval
from benchmarks.statistics.profiles import performance_profile, probability_of_improvement
from benchmarks.statistics.simulation import DISTRIBUTIONS, generator, locations
from benchmarks.statistics.study import (
    CORRELATIONS,
    DIFFERENCE,
    EFFECTS,
    IMPROVEMENT,
    IQM,
    MEAN,
    OURS,
    PROFILE,
    Row,
    Size,
    Study,
    keyed,
)
from benchmarks.statistics.tests import LEVEL as ALPHA
from metarl.provenance import environment


def measure(size: Size, progress: Progress | None = None) -> dict[str, Any]:
    """All studies as plain data: rows of `intervals` and of `tests`, and what they were made with."""
    intervals, comparisons = list(interval_studies(size)), list(comparison_studies(size))
    with progress or bar() as shown:
        task = shown.add_task("simulating", total=len(intervals) + len(comparisons))

        def run(studies: Sequence[Study]) -> Iterator[Row]:
            for study in studies:
                yield from study()
                shown.advance(task)

        rows = {"intervals": list(run(intervals)), "tests": list(run(comparisons))}
    return {
        "environment": environment() | {"scipy": metadata.version("scipy")},
        "load_average": os.getloadavg()[0],
        "simulations": size.simulations,
        "samples": size.samples,
        "seed": size.seed,
        "level": LEVEL,
        "alpha": ALPHA,
        "distributions": {name: DISTRIBUTIONS[name].what for name in size.distributions},
        **rows,
    }


def bar() -> Progress:
    """The progress bar."""
    return Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


# -- intervals ---------------------------------------------------------------------------------------------------


def interval_studies(size: Size) -> Iterator[Study]:
    """One study for every statistic, distribution and number of tasks and seeds."""
    for name, n in product(size.distributions, size.seeds):
        yield partial(mean_study, size, name, n)
        yield from (partial(difference_study, size, name, n, correlation) for correlation in CORRELATIONS)
        for tasks in size.tasks:
            yield partial(iqm_study, size, name, n, tasks)
            yield partial(profile_study, size, name, n, tasks)
            yield from (partial(improvement_study, size, name, n, tasks, effect) for effect in EFFECTS)


def mean_study(size: Size, name: str, n: int) -> list[Row]:
    """Intervals of the mean of one cell, whose true value is 0."""
    rng = generator(size.seed, MEAN, name, n)
    draws = DISTRIBUTIONS[name].draw(rng, (size.simulations, n))
    truth = float(DISTRIBUTIONS[name].quantiles.mean())
    student = [mean_interval(scores) for scores in draws]
    found = {OURS[MEAN]: np.array([(made.low, made.high) for made in student if made is not None])}
    if not size.only_ours:
        others: tuple[Method, ...] = ("percentile", "expanded", "bca")
        found |= _bootstraps([[scores] for scores in draws], np.mean, size, others)
        parts = np.array_split(draws, max(1, size.simulations // 100))  # a hundred at once fit into memory
        low, high = zip(*(simulation.bootstrap_t(part, LEVEL, size.samples, rng) for part in parts), strict=True)
        found["bootstrap-t"] = np.stack([np.concatenate(low), np.concatenate(high)], 1)
    return [_row(MEAN, method, name, n, 1, ends, truth) for method, ends in found.items()]


def difference_study(size: Size, name: str, n: int, correlation: float) -> list[Row]:
    """Intervals of the difference of two methods' means, which is 0; as if seeds were unlike they are Welch's."""
    rng = generator(size.seed, DIFFERENCE, name, n, correlation)
    pairs = list(zip(*DISTRIBUTIONS[name].pair(rng, (size.simulations, n), correlation), strict=True))
    rows = []
    for method, moved in ((OURS[DIFFERENCE], 0), ("Welch's t", n)):
        made = [difference(*keyed(x, y, moved)) for x, y in pairs]
        ends = np.array([(interval.low, interval.high) for interval in made if interval is not None])
        rows.append(_row(DIFFERENCE, method, name, n, 1, ends, 0.0) | {"correlation": correlation})
    return rows


def iqm_study(size: Size, name: str, n: int, tasks: int) -> list[Row]:
    """Intervals of the IQM of unlike tasks; its true value is that of their mixture."""
    distribution, (centres, spreads) = DISTRIBUTIONS[name], locations(tasks)
    rng = generator(size.seed, IQM, name, n, tasks)
    draws = centres[:, None] + spreads[:, None] * distribution.draw(rng, (size.simulations, tasks, n))
    truth = float(iqm(centres[:, None] + spreads[:, None] * distribution.quantiles))
    methods: tuple[Method, ...] = ("t",)
    if not size.only_ours:  # bca takes as long as all others together where tasks are many
        methods += ("percentile", "expanded") if tasks > 4 else ("percentile", "expanded", "bca")
    found = _bootstraps([list(scores) for scores in draws], iqm, size, methods)
    return [_row(IQM, method, name, n, tasks, ends, truth) for method, ends in found.items()]


def _bootstraps(
    draws: Sequence[Sequence[Scores]], statistic: Statistic, size: Size, methods: tuple[Method, ...]
) -> dict[str, Scores]:
    made = [
        bounds([np.sort(task) for task in tasks], statistic, LEVEL, size.samples, seed, methods)
        for seed, tasks in enumerate(draws)
    ]
    return {method: np.array([found[method] for found in made]) for method in methods}


def improvement_study(size: Size, name: str, n: int, tasks: int, effect: int) -> list[Row]:
    """Intervals of the probability that X beats Y, which is shifted down by the effect on every task."""
    distribution = DISTRIBUTIONS[name]
    rng = generator(size.seed, IMPROVEMENT, name, n, tasks, effect)
    x, y = (distribution.draw(rng, (size.simulations, tasks, n)) for _ in "xy")
    x += effect
    below = np.searchsorted(distribution.quantiles, distribution.quantiles + effect)
    truth = 0.5 if not effect else float(below.mean() / len(below))
    names = [str(task) for task in range(tasks)]
    made = [
        probability_of_improvement(dict(zip(names, a, strict=True)), dict(zip(names, b, strict=True)))
        for a, b in zip(x, y, strict=True)
    ]
    found = {OURS[IMPROVEMENT]: np.array([(interval.low, interval.high) for interval in made])}
    if not size.only_ours:
        found["percentile"] = np.array(
            [simulation.percentile_of_improvement(a, b, LEVEL, size.samples, rng) for a, b in zip(x, y, strict=True)]
        )
    return [
        _row(IMPROVEMENT, method, name, n, tasks, ends, truth) | {"effect": effect} for method, ends in found.items()
    ]


def profile_study(size: Size, name: str, n: int, tasks: int) -> list[Row]:
    """Bands at nine thresholds: coverage is the mean over them, and the lowest is kept beside it."""
    distribution, (centres, spreads) = DISTRIBUTIONS[name], locations(tasks)
    rng = generator(size.seed, PROFILE, name, n, tasks)
    draws = centres[:, None] + spreads[:, None] * distribution.draw(rng, (size.simulations, tasks, n))
    mixture = centres[:, None] + spreads[:, None] * distribution.quantiles
    thresholds = np.quantile(mixture, np.arange(0.1, 0.95, 0.1))
    truth = (mixture[..., None] > thresholds).mean((0, 1))
    names = [str(task) for task in range(tasks)]
    made = [performance_profile(dict(zip(names, scores, strict=True)), thresholds) for scores in draws]
    found = {OURS[PROFILE]: np.stack([[made.low, made.high] for made in made])}
    if not size.only_ours:
        found["Wilson"] = np.stack(simulation.wilson(np.array([m.share for m in made]), tasks * n, LEVEL), 1)
        above = draws[:, None] > thresholds[:, None, None]
        parts = np.array_split(above, max(1, size.simulations // 50))
        bands = [np.stack(simulation.percentile_of_share(part, LEVEL, size.samples, rng), 1) for part in parts]
        found["percentile"] = np.concatenate(bands)
    rows = []
    for method, bands_ in found.items():
        covered = (bands_[:, 0] <= truth) & (truth <= bands_[:, 1])
        row = _summary(PROFILE, method, name, n, tasks, float(covered.mean()), bands_[:, 1] - bands_[:, 0])
        rows.append(row | {"lowest": float(covered.mean(0).min())})
    return rows


def _row(statistic: str, method: str, name: str, n: int, tasks: int, ends: Scores, truth: float) -> Row:
    covered = (ends[:, 0] <= truth) & (truth <= ends[:, 1])
    return _summary(statistic, method, name, n, tasks, float(covered.mean()), ends[:, 1] - ends[:, 0])


def _summary(statistic: str, method: str, name: str, n: int, tasks: int, covered: float, widths: Scores) -> Row:
    width = float(np.median(widths))
    return {
        "statistic": statistic,
        "method": method,
        "distribution": name,
        "tasks": tasks,
        "seeds": n,
        "coverage": covered,
        "width": width if np.isfinite(width) else None,  # JSON knows no infinity
    }
