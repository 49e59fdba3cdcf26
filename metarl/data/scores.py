"""Normalised scores: a return as a share of the way from a random to an expert policy, in percent.

normalised = 100 (return - low) / (high - low), with D4RL's references (Fu et al., 2020; d4rl/infos.py), one pair for
each environment and shared by its datasets, and with metarl's own where the data is made by its recipes. Mazes that
are judged by success need none: a rate lies between 0 and 1. The return itself always stands beside it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_D4RL = "d4rl/infos.py"
_MADE = "mean returns of `metarl data make {}/random {}/expert --size 100000`, seeds 0 to 16"
_V5 = "references were measured in D4RL's version 2 of the environment"


@dataclass(frozen=True)
class Reference:
    """Returns of a random and of an expert policy.

    Attributes:
        low, high: undiscounted returns, to which 0 and 100 correspond.
        source: where they come from.
        note: how the environment differs from the one they were measured in, or what the two policies are; empty
            where there is nothing to say.
        whose: who gave them, and so the name of the score.
    """

    low: float
    high: float
    source: str = _D4RL
    note: str = ""
    whose: str = "D4RL"

    def normalized(self, value: float) -> float:
        """100 (value - low) / (high - low)."""
        return 100 * (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Score:
    """A return, and its normalised score where the environment has references."""

    raw: float
    normalized: float | None
    reference: Reference | None

    def __str__(self) -> str:
        if self.normalized is None or self.reference is None:
            return f"{self.raw:,.1f}"
        note = f"; {self.reference.note}" if self.reference.note else ""
        return f"{self.raw:,.1f} ({self.reference.whose} score {self.normalized:,.1f}{note})"


def _made(recipe: str, low: float, high: float, episodes: str) -> Reference:
    """metarl's own: the recipe's levels, to the digits that the standard errors support."""
    source = f"{_MADE.format(recipe, recipe)}: {episodes}"
    return Reference(low, high, source, f"0 is {recipe}/random, 100 is {recipe}/expert", "metarl")


_HALFCHEETAH, _HOPPER = (-280.178953, 12135.0), (-20.272305, 3234.3)
_WALKER2D, _ANT = (1.629008, 4592.3), (-325.6, 3879.7)

# (environment, version) -> references: D4RL's names first, then Gymnasium's for the same robots, then metarl's own.
REFERENCES: dict[tuple[str, int], Reference] = {
    **{("halfcheetah", v): Reference(*_HALFCHEETAH) for v in (0, 1, 2)},
    **{("hopper", v): Reference(*_HOPPER) for v in (0, 1, 2)},
    **{("walker2d", v): Reference(*_WALKER2D) for v in (0, 1, 2)},
    **{("ant", v): Reference(*_ANT) for v in (0, 1, 2)},
    **{("antmaze", v): Reference(0.0, 1.0, note="returns are successes") for v in (0, 1, 2)},
    **{("pen", v): Reference(96.262799, 3076.8331017826877) for v in (0, 1)},
    **{("hammer", v): Reference(-274.856578, 12794.134825156867) for v in (0, 1)},
    **{("door", v): Reference(-56.512833, 2880.5693087298737) for v in (0, 1)},
    **{("relocate", v): Reference(-6.425911, 4233.877797728884) for v in (0, 1)},
    ("kitchen", 0): Reference(0.0, 4.0),
    ("maze2d-umaze", 1): Reference(23.85, 161.86),
    ("maze2d-medium", 1): Reference(13.13, 277.39),
    ("maze2d-large", 1): Reference(6.7, 273.99),
    ("minigrid-fourrooms", 0): Reference(0.01442, 2.89685),
    ("HalfCheetah", 5): Reference(*_HALFCHEETAH, note=f"{_V5}; random returns about -258 in v5 (2 episodes), not -280"),
    ("Hopper", 5): Reference(*_HOPPER, note=f"{_V5}; random returns about +18 in v5 (89 episodes), not -20"),
    ("Walker2d", 5): Reference(*_WALKER2D, note=f"{_V5}; random returns about 1.4 in v5 (93 episodes), as there"),
    ("Ant", 5): Reference(*_ANT, note=f"{_V5}; v5 observes 105 numbers and counts contact forces"),
    ("Pendulum", 1): _made("pendulum", -1227.0, -150.0, "8,500 episodes each, standard errors 3.1 and 1.0"),
    ("InvertedPendulum", 5): _made(
        "inverted_pendulum", 5.07, 1000.0, "280,276 and 1,700 episodes, standard errors 0.007 and 0"
    ),
}
_LEVELS = r"random|medium|expert|medium-replay|medium-expert|full-replay|human|cloned|complete|partial|mixed"
_MAZES = r"(?:umaze|medium|large)(?:-diverse|-play)?"


def readable(value: float) -> str:
    """A return with one decimal, or with three where it may be a rate."""
    return f"{value:,.1f}" if abs(value) >= 10 else f"{value:,.3f}"


def reference(env_id: str) -> Reference | None:
    """The references of a Gymnasium id (`Hopper-v5`) or of a D4RL dataset (`hopper-medium-v2`); None without any.

    Another version than the table's has none: rewards and ends changed between versions.
    """
    parsed = re.fullmatch(r"(.+)-v(\d+)", env_id)
    if parsed is None:
        return None
    name, version = parsed[1], int(parsed[2])
    dataset = re.fullmatch(rf"(antmaze)-{_MAZES}|(.+?)-(?:{_LEVELS})", name)
    if dataset and (name, version) not in REFERENCES:
        name = dataset[1] or dataset[2]
    return REFERENCES.get((name, version))


def normalized(env_id: str | None, raw: float) -> Score:
    """A return beside its normalised score, which is None where the environment has no references."""
    found = reference(env_id) if env_id is not None else None
    return Score(raw, found.normalized(raw) if found else None, found)
