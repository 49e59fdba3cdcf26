"""How often tests find a difference where the truth is known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import product

import numpy as np
from scipy import stats

from benchmarks.statistics import simulation
from benchmarks.statistics.checks import Scores
from benchmarks.statistics.simulation import DISTRIBUTIONS, generator
from benchmarks.statistics.study import (
    COMMON,
    COMPARISONS,
    CORRELATIONS,
    EFFECTS,
    EVALUATIONS,
    GORL,
    MISSING,
    OUR_TEST,
    UNLIKE,
    UNPAIRED,
    WITHIN,
    Row,
    Size,
    Study,
    keyed,
)
from benchmarks.statistics.tests import (
    LEVEL,
    Test,
    benjamini_hochberg,
    holm,
    over_seeds,
    paired_t_over_evaluations,
    welch,
)


def comparison_studies(size: Size) -> Iterator[Study]:
    """One study for every scenario, effect and number of seeds."""
    for n, effect in product(size.seeds, EFFECTS):
        for correlation in CORRELATIONS:
            for scenario in (*size.distributions, UNLIKE):
                yield partial(seeds_study, size, scenario, n, effect, correlation)
            yield partial(missing_study, size, n, effect, correlation)
        yield from (partial(evaluations_study, size, within, n, effect) for within in WITHIN)
    yield from (partial(family_study, size, n) for n in size.seeds)


def seeds_study(size: Size, scenario: str, n: int, effect: int, correlation: float) -> list[Row]:
    """Tests over seeds; with `UNLIKE` one method varies three times as much as the other."""
    rng = generator(size.seed, "tests", scenario, n, effect, correlation)
    spread = 3.0 if scenario == UNLIKE else 1.0
    pair = DISTRIBUTIONS["normal" if scenario == UNLIKE else scenario].pair
    x, y = pair(rng, (size.simulations, n), correlation)
    x, y = x + effect * np.sqrt((1 + spread**2) / 2), spread * y
    p = {OUR_TEST: _over_seeds(x, y), UNPAIRED: _p(map(welch, x, y))}
    if not size.only_ours and not correlation:  # as Welch's, the others know no pairs
        p |= {
            "Student over seeds": stats.ttest_ind(x, y, axis=-1).pvalue,
            "permutation over seeds": simulation.p_permutation(x, y, rng),
            "Mann-Whitney over seeds": stats.mannwhitneyu(x, y, axis=-1, method="exact").pvalue,
        }
    return [_tested(test, scenario, n, effect, values, correlation) for test, values in p.items()]


def missing_study(size: Size, n: int, effect: int, correlation: float) -> list[Row]:
    """Normal scores of seeds 0 ... n - 1 against those of 1 ... n: the default is Welch's, of all scores."""
    rng = generator(size.seed, MISSING, n, effect, correlation)
    x, y = DISTRIBUTIONS["normal"].pair(rng, (size.simulations, n + 1), correlation)
    x, y = x[:, :-1] + effect, y[:, 1:]
    p = {UNPAIRED: _over_seeds(x, y, moved=1)}
    if not size.only_ours:
        p[COMMON] = stats.ttest_rel(x[:, 1:], y[:, :-1], axis=-1).pvalue
    return [_tested(test, MISSING, n, effect, values, correlation) for test, values in p.items()]


def evaluations_study(size: Size, within: float, n: int, effect: int) -> list[Row]:
    """Evaluations as a run's own effect plus noise: `x = sqrt(ρ) run + sqrt(1 - ρ) noise`.

    ρ is the correlation within runs. The effect is in standard deviations of a run's score,
    `sqrt(ρ + (1 - ρ) / evaluations)`.
    """
    rng = generator(size.seed, "evaluations", within, n, effect)
    runs = rng.standard_normal((2, size.simulations, n, 1))
    noise = rng.standard_normal((2, size.simulations, n, EVALUATIONS))
    x, y = np.sqrt(within) * runs + np.sqrt(1 - within) * noise
    x += effect * np.sqrt(within + (1 - within) / EVALUATIONS)
    p = {
        OUR_TEST: _over_seeds(x.mean(-1), y.mean(-1)),
        GORL: _p(paired_t_over_evaluations(*keyed(a, b)) for a, b in zip(x, y, strict=True)),
    }
    scenario = f"{within:g} within runs"
    return [_tested(test, scenario, n, effect, values) for test, values in p.items()]


def family_study(size: Size, n: int) -> list[Row]:
    """Twelve comparisons without any difference: how often at least one is found."""
    rng = generator(size.seed, "family", n)
    x, y = rng.standard_normal((2, size.simulations, COMPARISONS, n))
    p = np.stack([_over_seeds(a, b) for a, b in zip(x, y, strict=True)])
    corrected = {
        "uncorrected": p,
        "Holm": np.stack([holm(row) for row in p]),
        "Benjamini-Hochberg": np.stack([benjamini_hochberg(row) for row in p]),
    }
    scenario = f"{COMPARISONS} comparisons"
    return [_tested(name, scenario, n, 0, values.min(-1)) for name, values in corrected.items()]


def _over_seeds(x: Scores, y: Scores, moved: int = 0) -> Scores:
    return _p(over_seeds(*keyed(a, b, moved)) for a, b in zip(x, y, strict=True))


def _p(made: Iterable[Test | None]) -> Scores:
    return np.array([test.p for test in made if test is not None])


def _tested(test: str, scenario: str, n: int, effect: int, p: Scores, correlation: float = 0.0) -> Row:
    return {
        "test": test,
        "scenario": scenario,
        "effect": effect,
        "correlation": correlation,
        "seeds": n,
        "rejected": float(np.mean(np.asarray(p) < LEVEL)),
    }
