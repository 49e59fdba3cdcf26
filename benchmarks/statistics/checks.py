"""What a statistic takes: finite numbers in the shape that it needs, or an error that says what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metarl.errors import ConfigError

Scores = NDArray[np.float64]


def array(values: ArrayLike, what: str, dims: int = 1, names: Sequence[object] = ()) -> Scores:
    """The values in float64; `names` are what an error calls their places, which are counted without.

    Raises:
        ConfigError: they are no numbers, have another number of dimensions, or one of them is not finite.
    """
    try:
        found = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{what}: not an array of numbers ({error}); give one score per run") from error
    if found.ndim != dims:
        wanted = {1: "one score per seed, [seeds]", 2: "every evaluation of every seed, [seeds, evaluations]"}[dims]
        raise ConfigError(f"{what}: has shape {list(found.shape)}; give {wanted}")
    if not np.isfinite(found).all():
        place = np.argwhere(~np.isfinite(found))[0]
        at = names[place[0]] if names else ", ".join(map(str, place))
        raise ConfigError(f"{what}[{at}] is {found[tuple(place)]}; leave runs without a finite score out")
    return found


def by_task(scores: Mapping[str, ArrayLike], what: str = "scores", least: int = 1) -> dict[str, Scores]:
    """Every task's scores in ascending order, tasks by name: results depend on neither order.

    Raises:
        ConfigError: there is no task, or a task has fewer than `least` scores.
    """
    if not isinstance(scores, Mapping) or not scores:
        raise ConfigError(f"{what}: holds no task; give a mapping from each task to its scores over seeds")
    found = {task: np.sort(array(scores[task], f"{what}[{task!r}]")) for task in sorted(scores)}
    for task, values in found.items():
        if len(values) < least:
            raise ConfigError(
                f"{what}[{task!r}]: {len(values)} of at least {least} seeds; train more seeds of it or leave it out"
            )
    return found


def by_seed(x: Mapping[int, float], y: Mapping[int, float]) -> tuple[Scores, Scores, bool]:
    """Both methods' scores in ascending order of their seeds, and whether the seeds are the same, which makes pairs.

    Raises:
        ConfigError: one of them is not a mapping, or a score is not finite.
    """
    ours, theirs = in_order(x, "x"), in_order(y, "y")
    scores = [array([*of.values()], what, names=[*of]) for of, what in ((ours, "x"), (theirs, "y"))]
    return scores[0], scores[1], ours.keys() == theirs.keys()


def in_order(of_seeds: Mapping[int, Any], what: str) -> dict[int, Any]:
    """By seed, so that nothing depends on the order of a mapping.

    Raises:
        ConfigError: it is not a mapping.
    """
    if not isinstance(of_seeds, Mapping):
        raise ConfigError(f"{what}: not keyed by seed; give a mapping from each seed to what was scored with it")
    return {seed: of_seeds[seed] for seed in sorted(of_seeds)}


def probability(value: float, what: str) -> float:
    """A number strictly between 0 and 1.

    Raises:
        ConfigError: it is not.
    """
    if not 0 < value < 1:
        raise ConfigError(f"{what}: {value} is not between 0 and 1; 0.95 is usual for an interval, 0.05 for a test")
    return value


def p_values(p: Any) -> Scores:
    """One or more p-values.

    Raises:
        ConfigError: there is none, or one lies outside [0, 1].
    """
    found = array(p, "p")
    if not len(found) or found.min() < 0 or found.max() > 1:
        raise ConfigError(f"p: {found.tolist()} are not one or more p-values; give numbers from 0 to 1")
    return found


def constant(values: Scores, scale: float | None = None) -> bool:
    """Whether values are the same but for rounding, of numbers as large as `scale`, so that their variance is noise."""
    return bool(np.ptp(values) <= 1e-12 * (np.abs(values).max() if scale is None else scale))


def gaps(x: Scores, y: Scores) -> tuple[Scores, bool]:
    """`x - y` of pairs, and whether all are equal but for rounding, then exactly so."""
    found, scale = x - y, float(max(np.abs(x).max(), np.abs(y).max()))
    if not constant(found, scale):
        return found, False
    gap = 0.0 if constant(np.append(found, 0.0), scale) else float(found[0])
    return np.full_like(found, gap), True
