"""docs/online.md, written from the recorded results alone."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.online import solved, tables
from benchmarks.online.returns import Comparison
from benchmarks.online.settings import COURSES, EPISODES
from benchmarks.online.turns import SB3
from benchmarks.results import Results

INTRODUCTION = """metarl beside Stable-Baselines3 (https://github.com/DLR-RM/stable-baselines3): the time of a step, and
    the return after as many steps. Made by `python -m benchmarks.online`; `--sb3-python` names an interpreter that has
    it, `--runs` and `--sb3-runs` folders of trained seeds."""
TIMES = """A step is one of the environment with all that belongs to it: acting, the environment, the replay and, after
    the random start, one update. Each side is a live training in a process of its own, on one thread, both pinned to
    the same core and only one of them running at a time. In each of {rounds} rounds either side advances by {steps:,}
    steps, in alternating order; ratios are taken round by round. Figures are medians with the lowest and the highest
    round. Nothing is evaluated or saved meanwhile; both log as by default. metarl runs as `compile: {mode}` has it. The
    environment alone takes its steps with random actions. Turns begin {warm:,} steps after the random start."""
RETURNS = """Every seed is trained from nothing on either side. Evaluations have {episodes} deterministic episodes in an
    environment of their own, every {every}; both sides' seeds meet the same start states. Means over seeds with 95 %
    intervals of a bootstrap over seeds, widened for few of them (docs/statistics.md). Evaluations count once updates
    have begun. Overlap, as a verdict, says that the intervals meet at every evaluation that counts, and that the test
    over seeds finds a difference neither in an evaluation (p corrected by Holm for their number) nor in the mean over
    all of them. It does not say that there is none: the intervals of the differences show what could be hidden."""
SOLVED = """metarl alone: the suite `online_pendulum` (`metarl bench online_pendulum`), 64 x 64 networks and a learning
    rate of 0.001. Solved is a mean return above -200, here of every single seed, at the end and over the last ten
    evaluations of ten episodes."""
CHANGED = """Settings in which Stable-Baselines3 does not run by its defaults, in its own words:"""
UNLIKE = """What stays unlike: Stable-Baselines3 wraps the environment in its monitor and its vector environment, as it
    does by itself, adds exploration noise to the random actions of TD3 and DDPG too, keeps observations in the
    environment's precision, and gives its critics actions in units of their bounds; in SAC it halves the critics' loss,
    which Adam does not see but for its epsilon. Networks start by PyTorch's rule on both sides, from other numbers."""


def page(
    measured: Mapping[str, Any] | None,
    returns: Sequence[Comparison],
    collected: Mapping[str, Any] | None,
    pendulum: Results | None = None,
) -> str:
    """The whole page.

    Args:
        measured: of `turns.measure`, where times were taken.
        returns: comparisons of the pairs in `collected`.
        collected: of `returns.collect`, where runs were trained.
        pendulum: of `solved.load`.
    """
    blocks = ["# Training in an environment, beside Stable-Baselines3", _filled(INTRODUCTION)]
    if measured or returns:
        blocks.append("![returns over steps, and time per step](online.png)")
    blocks += [f"## {tables.told().title}", tables.told().markdown()]
    blocks += _changed(measured, collected)
    blocks.append(_filled(UNLIKE))
    if measured:
        grid = tables.times(measured)
        blocks += [f"## {grid.title}", grid.markdown(), _filled(TIMES.format(**measured["turns"])), _made(measured)]
    if returns:
        grid = tables.returns(returns)
        every = " and ".join(f"{course.every:,} steps in {env}" for env, course in COURSES.items())
        words = RETURNS.format(episodes=EPISODES, every=every)
        blocks += [f"## {grid.title}", grid.markdown(), _filled(words)]
    if pendulum is not None:
        grid = solved.grid(pendulum)
        blocks += [f"## {grid.title}", grid.markdown(), _filled(SOLVED), "![returns over steps](online_pendulum.png)"]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _changed(measured: Mapping[str, Any] | None, collected: Mapping[str, Any] | None) -> list[str]:
    found: dict[str, Mapping[str, Sequence[str]]] = {}
    for result in (measured, collected):
        for pair in (result or {}).get("pairs", ()):
            side = pair["sides"][SB3]
            found[tables.label(pair)] = side["changed"] if "changed" in side else side["facts"]["changed"]
    entries = [
        _filled(f"- {name}: " + ", ".join(f"`{key}` {new} (default {old})" for key, (old, new) in each.items()) + ".")
        for name, each in found.items()
    ]
    return [CHANGED, "\n".join(entries)] if entries else []


def _made(measured: Mapping[str, Any]) -> str:
    made, load = measured["environment"], measured["load_average"]
    theirs = measured["pairs"][0]["sides"][SB3]["facts"]["versions"]
    return _filled(
        f"Python {made['python']}, torch {made['torch']}, Gymnasium {made['gymnasium']}; Stable-Baselines3 "
        f"{theirs['stable_baselines3']} with torch {theirs['torch']} and Gymnasium {theirs['gymnasium']}; "
        f"{made['machine']}; load average {load['before']:.1f} before and {load['after']:.1f} after."
    )


def _filled(words: str) -> str:
    indent = "  " if words.startswith("- ") else ""
    return textwrap.fill(
        " ".join(words.split()), 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
