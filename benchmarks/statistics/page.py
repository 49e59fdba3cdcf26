"""docs/statistics.md, written from the recorded result alone."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.statistics import prose
from benchmarks.statistics.simulation import DISTRIBUTIONS
from benchmarks.statistics.study import (
    DIFFERENCE,
    IMPROVEMENT,
    IQM,
    MEAN,
    MISSING,
    OUR_TEST,
    OURS,
    PROFILE,
    UNLIKE,
    UNPAIRED,
    Row,
)

TOLD = 5  # seeds of the numbers in the text
GOAL = 0.90  # least coverage that a default may have at five seeds


def page(result: Mapping[str, Any]) -> str:
    """The whole page."""
    made, level, alpha = result["environment"], result["level"], result["alpha"]
    intervals, tests = result["intervals"], result["tests"]
    words = {name: what if what == name else f"{name} ({what})" for name, what in result["distributions"].items()}
    limits = prose.LIMITS.format(
        distributions="; ".join(words.values()),
        simulations=result["simulations"],
        samples=result["samples"],
        error=f"{100 * (0.95 * 0.05 / result['simulations']) ** 0.5:.1f} points",
    )
    blocks = [
        "# Statistics over few seeds",
        _filled(
            f"Made by `python -m benchmarks.statistics`. Python {made['python']}, numpy {made['numpy']}, scipy "
            f"{made['scipy']}; {made['machine']}."
        ),
        "![coverage of intervals, false positives and power of tests at 3, 5 and 10 seeds](statistics.png)",
        _filled(prose.SHORT.format(level=_percent(level), alpha=_percent(alpha))),
        _defaults(intervals),
        _filled(f"Tables are in percent. **Bold** is the default; *slanted* is a coverage below {_percent(GOAL)}."),
        "## Mean of one cell",
        *_paragraphs(prose.MEAN.format(none_3=_percent(0.8**3), none_5=_percent(0.8**5), times=_times(intervals))),
        _coverage(intervals, MEAN, ("method",)),
        "## Difference of two methods",
        *_paragraphs(prose.DIFFERENCE.format(**_widths(intervals))),
        _coverage(intervals, DIFFERENCE, ("correlation", "method")),
        "## Interquartile mean (IQM) of several tasks",
        *_paragraphs(prose.IQM),
        _coverage(intervals, IQM, ("tasks", "method")),
        "## Performance profile",
        *_paragraphs(prose.PROFILE),
        _coverage(intervals, PROFILE, ("tasks", "method")),
        "## Probability of improvement",
        *_paragraphs(prose.IMPROVEMENT),
        _coverage(intervals, IMPROVEMENT, ("tasks", "effect", "method")),
        "## Tests over seeds",
        *_paragraphs(prose.TESTS.format(unlike=UNLIKE, **_found(tests))),
        f"How often a difference is found at p < {alpha:g} where there is none:",
        _rejections(tests, 0, _over_seeds),
        *_power(tests),
        "## Tests where seeds differ",
        *_paragraphs(prose.MISSING),
        _missing(tests),
        "## GORL's test over evaluations",
        *_paragraphs(prose.GORL),
        f"How often a difference is found at p < {alpha:g} where there is none:",
        _rejections(tests, 0, lambda row: row["scenario"].endswith("within runs")),
        "## Many comparisons",
        *_paragraphs(prose.MANY),
        _rejections(tests, 0, lambda row: "comparisons" in row["scenario"]),
        "## What three, five and ten seeds cost",
        *_paragraphs(prose.COST),
        _costs(intervals, tests),
        "## How it was simulated, and what it leaves out",
        *_paragraphs(limits),
    ]
    return "\n\n".join(blocks) + "\n"


# -- tables ------------------------------------------------------------------------------------------------------


def _defaults(rows: Sequence[Row]) -> str:
    seeds = _values(rows, "seeds")
    lines = []
    for statistic, method in OURS.items():
        ours = [row for row in rows if row["statistic"] == statistic and row["method"] == method]
        cells = []
        for n in seeds:
            of_n = [row for row in ours if row["seeds"] == n]
            normal = [row["coverage"] for row in of_n if row["distribution"] == "normal"]
            cells.append(f"{_share(min(normal))} ({_share(min(row['coverage'] for row in of_n))})")
        lines.append([statistic, method, *cells])
    return _table(("statistic", "default interval", *(f"{n} seeds" for n in seeds)), lines, left=2)


def _coverage(rows: Sequence[Row], statistic: str, keys: tuple[str, ...]) -> str:
    """A line for each value of the keys; columns are distributions and, within, numbers of seeds."""
    rows = [row for row in rows if row["statistic"] == statistic]
    columns = [(name, n) for name in _values(rows, "distribution") for n in _values(rows, "seeds")]
    cells = {(_key(row, keys), row["distribution"], row["seeds"]): row for row in rows}
    lines = []
    for line in dict.fromkeys(_key(row, keys) for row in _by(rows, keys)):
        head = [*map(str, line[:-1]), _bold(line[-1], OURS[statistic])]
        lines.append(head + [_covered(cells.get((line, *column))) for column in columns])
    return _table((*keys, *(f"{name}, {n}" for name, n in columns)), lines, left=len(keys))


def _covered(row: Row | None) -> str:
    if row is None:
        return "-"
    text = _share(row["coverage"])
    text = f"*{text}*" if row["coverage"] < GOAL else text
    return f"{text} ({_share(row['lowest'])})" if "lowest" in row else text


def _rejections(rows: Sequence[Row], effect: int, chosen: Callable[[Row], bool]) -> str:
    """A line for each test, and for each correlation where there are several."""
    rows = [row for row in rows if row["effect"] == effect and chosen(row)]
    columns = [(scenario, n) for scenario in _values(rows, "scenario") for n in _values(rows, "seeds")]
    keys = ("correlation", "test") if len(_values(rows, "correlation")) > 1 else ("test",)
    found = {(_key(row, keys), row["scenario"], row["seeds"]): _share(row["rejected"]) for row in rows}
    lines = [
        [*map(str, line[:-1]), _bold(line[-1], OUR_TEST), *(found.get((line, *column), "-") for column in columns)]
        for line in dict.fromkeys(_key(row, keys) for row in _by(rows, keys))
    ]
    return _table((*keys, *(f"{scenario}, {n}" for scenario, n in columns)), lines, left=len(keys))


def _missing(rows: Sequence[Row]) -> str:
    """A line for each correlation and test; columns are effects and, within, numbers of seeds."""
    rows, keys = [row for row in rows if row["scenario"] == MISSING], ("correlation", "test")
    columns = [(effect, n) for effect in _values(_by(rows, ("effect",)), "effect") for n in _values(rows, "seeds")]
    found = {(_key(row, keys), row["effect"], row["seeds"]): _share(row["rejected"]) for row in rows}
    lines = [
        [str(line[0]), _bold(line[1], UNPAIRED), *(found[line, *column] for column in columns)]
        for line in dict.fromkeys(_key(row, keys) for row in _by(rows, keys))
    ]
    heads = (f"{f'{effect} sd' if effect else 'no difference'}, {n}" for effect, n in columns)
    return _table((*keys, *heads), lines, left=2)


def _over_seeds(row: Row) -> bool:
    return row["test"].endswith("over seeds") and row["scenario"] in (*DISTRIBUTIONS, UNLIKE)


def _found(rows: Sequence[Row]) -> dict[str, str]:
    """The shares that the text tells: normal scores, five seeds."""
    cells = {
        (row["test"], row["correlation"], row["effect"]): _share(row["rejected"])
        for row in rows
        if (row["scenario"], row["seeds"]) == ("normal", TOLD)
    }
    return {
        "false_welch": cells[UNPAIRED, 0.8, 0],
        "power_welch": cells[UNPAIRED, 0.8, 1],
        "power_paired": cells[OUR_TEST, 0.8, 1],
        "price_welch": cells[UNPAIRED, 0.0, 2],
        "price_paired": cells[OUR_TEST, 0.0, 2],
    }


def _widths(rows: Sequence[Row]) -> dict[str, str]:
    """The median widths that the text tells: normal scores, five seeds, correlation 0.8."""
    found = {
        row["method"] == OURS[DIFFERENCE]: f"{row['width']:.2f}"
        for row in rows
        if (row["statistic"], row["distribution"], row["seeds"]) == (DIFFERENCE, "normal", TOLD)
        and row["correlation"] == 0.8
    }
    return {"paired": found[True], "unpaired": found[False]}


def _power(rows: Sequence[Row]) -> Iterator[str]:
    for effect in sorted({row["effect"] for row in rows} - {0}):
        yield f"Where the means differ by {_deviations(effect)} over seeds:"
        yield _rejections(rows, effect, _over_seeds)


def _costs(intervals: Sequence[Row], tests: Sequence[Row]) -> str:
    seeds = _values(intervals, "seeds")
    normal = [row for row in intervals if row["distribution"] == "normal" and row["method"] == OURS[row["statistic"]]]
    lines = []
    for row in (row for row in _by(normal, ("tasks",)) if row["seeds"] == seeds[0] and row.get("effect", 0) == 0):
        tasks = f"{row['tasks']} task{'s' if row['tasks'] > 1 else ''}"
        name = row["statistic"] if row["statistic"] == MEAN else f"{row['statistic']}, {tasks}"
        if row["statistic"] == DIFFERENCE:
            name = f"{DIFFERENCE}, correlation {row['correlation']:g}"
        alike = {other["seeds"]: other["width"] for other in normal if _key_of_width(other) == _key_of_width(row)}
        lines.append([f"width: {name}", *(f"{alike[n]:.2f}" for n in seeds)])
    lines.sort(key=lambda line: [line[0].startswith(f"width: {name}") for name in OURS], reverse=True)
    ours = [row for row in tests if (row["test"], row["scenario"]) == (OUR_TEST, "normal") and row["effect"]]
    for effect, correlation in dict.fromkeys(_key(row, ("effect", "correlation")) for row in _by(ours, ("effect",))):
        found = {
            row["seeds"]: _share(row["rejected"])
            for row in ours
            if (row["effect"], row["correlation"]) == (effect, correlation)
        }
        what = f"finds {_deviations(effect)}, correlation {correlation:g}"
        lines.append([what, *(found[n] for n in seeds)])
    return _table(("normal scores", *(f"{n} seeds" for n in seeds)), lines, left=1)


def _key_of_width(row: Row) -> tuple[Any, ...]:
    return row["statistic"], row["tasks"], row.get("effect", 0), row.get("correlation", 0.0)


def _table(head: Sequence[str], lines: Iterable[Sequence[str]], left: int) -> str:
    rule = "|" + "---|" * left + "---:|" * (len(head) - left)
    return "\n".join(["| " + " | ".join(head) + " |", rule, *("| " + " | ".join(line) + " |" for line in lines)])


def _values(rows: Iterable[Row], key: str) -> list[Any]:
    return list(dict.fromkeys(row[key] for row in rows))


def _by(rows: Sequence[Row], keys: tuple[str, ...]) -> list[Row]:
    """By numbers; methods stay in their order."""
    return sorted(rows, key=lambda row: [row[key] for key in keys if isinstance(row[key], (int, float))])


def _key(row: Row, keys: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(row[key] for key in keys)


def _bold(name: str, default: str) -> str:
    return f"**{name}**" if name == default else name


def _share(share: float) -> str:
    return f"{100 * share:.1f}"


def _times(rows: Sequence[Row]) -> str:
    """How wide bootstrap-t is, in Student's widths, at each number of seeds."""
    of_mean = [row for row in rows if (row["statistic"], row["distribution"]) == (MEAN, "normal")]
    widths = {(row["method"], row["seeds"]): row["width"] for row in of_mean}
    ratios = []
    for n in _values(of_mean, "seeds"):
        width = widths["bootstrap-t", n]
        ratio = "infinite" if width is None else f"{width / widths[OURS[MEAN], n]:.1f}"
        ratios.append(f"{ratio} at {n}")
    return f"{', '.join(ratios[:-1])} and {ratios[-1]}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _deviations(effect: int) -> str:
    return f"{effect} standard deviation{'s' if effect > 1 else ''}"


def _paragraphs(text: str) -> list[str]:
    return [_filled(part) for part in text.split("\n\n")]


def _filled(text: str) -> str:
    """Lines of prose; code and percentages stay in one piece."""
    whole = re.sub(r"`[^`]*`|\d %", lambda match: match[0].replace(" ", "\0"), " ".join(text.split()))
    return textwrap.fill(whole, 120, break_long_words=False, break_on_hyphens=False).replace("\0", " ")
