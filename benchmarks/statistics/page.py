"""docs/statistics.md, written from the recorded result alone."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks.statistics.coverage import IMPROVEMENT, IQM, MEAN, OUR_TEST, OURS, PROFILE, UNLIKE, Row

GOAL = 0.90  # least coverage that a default may have at five seeds
GORL = "paired t over evaluations"

SHORT = """Reinforcement learning compares methods on three to ten seeds, where textbook formulas for large samples
    are wrong by a lot. Each default below was chosen by simulation with known answers: intervals at a nominal
    {level} by how often they hold the true value, tests at {alpha} by how often they find a difference where there
    is none. The table gives the default intervals' coverage for normal scores, and in brackets the lowest of all
    distributions, numbers of tasks and effects that are simulated here."""

MEAN_TEXT = """The mean over seeds is what papers tabulate; its interval says where the mean over *all* seeds would
    lie. Use it for a single cell of a table, method on dataset; below two seeds there is none.

    `mean ± t(0.975, n - 1) s / sqrt(n)`, Student's, `mean_interval`. It is exact for normal scores at any n, and
    skewness costs it a little. Where a seed sometimes fails outright it falls short, as every interval must that
    sees the scores alone: of five seeds that fail with probability 0.2 none fails in {none_5} of all cells (of
    three in {none_3}), and nothing then tells that one could. Plain bootstraps of three or five values cannot reach
    beyond the scores at hand. Bootstrap-t can, but divides by a spread that is often zero: its
    median width for normal scores, in Student's, is {times} seeds."""

IQM_TEXT = """The interquartile mean is the mean of the middle half of all runs of a method, tasks and seeds
    together. Use it to sum up many tasks: one failed or one lucky run moves it little, and it varies less than a
    median.

    `IQM = mean of x_(g+1) ... x_(N-g), g = floor(N / 4)`; its interval is `IQM ± t(0.975, df) SE`,
    `stratified_bootstrap`. SE is the standard error of a bootstrap that resamples seeds within tasks, from
    residuals multiplied by `sqrt(n / (n - 1))`, without which n seeds vary too little; df is Satterthwaite's, so
    that tasks far from the middle, which the IQM does not see, lend no certainty. rliable's percentile bootstrap
    has neither correction, BCa neither, and Hesterberg's expanded percentiles, the best of the rest, cannot leave
    the range of three scores. Of one task and three seeds the IQM is the mean and the interval is Student's; of one
    task and five seeds it is the mean of three values, whose variation the bootstrap overstates: the interval is a
    little wider than it need be, and no other formula is needed. Tasks are unlike here, with centres from 0 to 8
    and standard deviations from 0.5 to 1.5, so that of four tasks only two lie in the middle. The IQM is then close
    to the mean of those two and, where seeds fail, shares the mean's trouble; two tasks that far apart are worse
    still."""

PROFILE_TEXT = """A performance profile shows, for every score, which share of runs lies above it. Use it to see a
    whole distribution where one number hides a failure: a method is better throughout where its curve lies above.

    `F(τ) = 1/K Σ_k 1/n_k Σ_i [x_ki > τ]`, `performance_profile`. The band is Clopper and Pearson's, at each
    threshold by itself and not for the whole curve. It covers as often as it says where tasks are alike, and is too
    wide where they are as unlike as here, which errs on the honest side; the bootstrap's errs on the other, and has
    no width at all where every run, or none, lies above. Coverage is the mean over nine thresholds, each decile of
    the true distribution; in brackets that of the worst threshold, where Wilson's falls short."""

IMPROVEMENT_TEXT = """The probability of improvement is how often a run of X beats a run of Y on the same task. Use
    it to compare two methods over tasks whose scores share no scale; it says how often, not by how much.

    `P = 1/K Σ_k U_k / (n_k m_k)`, ties half, `probability_of_improvement`; its interval holds every θ with
    `(P - θ)² ≤ z² V(θ)`, Hanley and McNeil's variance at θ. Where every run of X beats every run of Y it stays
    open, while the bootstrap's shrinks to the point 1: look at one task and two standard deviations. Where tasks
    differ in their θ it is wider than need be. The effect is how far X lies above Y, in standard deviations over
    seeds."""

TESTS_TEXT = """A test says how rarely a difference of this size would come about if there were none. Use it for a
    claim that one method beats another; below three seeds nothing is called significant, whatever p is
    (`significant`).

    The default is Welch's t-test over seeds, one score per run, `over_seeds`:
    `t = (mean x - mean y) / sqrt(s_x² / n + s_y² / m)`. It errs on the careful side for methods of like spread, and
    stays within a point or so of its level where one varies three times as much as the other ("{unlike}"), which
    Student's and the permutation test do not; the price is some power at three seeds. Pairing by seed gains
    nothing, since two
    methods hardly share a seed's luck, and loses half of the degrees of freedom. A permutation
    test, and Mann and Whitney's, have 20 arrangements at three seeds of each method: no p-value is below 0.1, so
    that they never find anything at 5 %."""

GORL_TEXT = """GORL's papers test on 50 pairs: the last 10 evaluations of each of 5 seeds,
    `paired_t_over_evaluations`. Evaluations of one run share its luck, so that these are not 50 but about 5
    observations, and the test finds differences where there are none. `correlation` is the share of the variance
    that evaluations of one run have in common; at 0 the test would be right. It is there to compare with the
    papers, and always carries a warning."""

MANY_TEXT = """Twelve tests at 5 % find something in a third to a half of all tables without any difference. Correct
    whenever a table is searched for what is significant: `holm` for claims about single cells, `benjamini_hochberg`
    where some false ones among many may be borne.

    Holm: `p'_(i) = max over j <= i of min(1, (m - j + 1) p_(j))`. Benjamini and Hochberg:
    `p'_(i) = min over j >= i of m p_(j) / j`. The table says how often at least one of twelve comparisons is called
    significant where none differs, with Welch's test."""

COST_TEXT = """Fewer seeds are paid for in width and in power: the median width of the default intervals for normal
    scores, in standard deviations over seeds (profiles and probabilities: in their own unit), and how often Welch's
    test finds a true difference."""

LIMITS_TEXT = """Scores have mean 0 and standard deviation 1 in every distribution: {distributions}. Every entry is
    a share of {simulations:,} simulations, so that its standard error at 0.95 is {error}; bootstraps draw
    {samples:,} resamples here and 10,000 elsewhere. Seeds are taken to be independent draws: choosing
    hyper-parameters on the same seeds, or reporting a best checkpoint, makes every number of this page too good.
    Scores with heavier tails than these need more seeds, not another formula."""


def page(result: Mapping[str, Any]) -> str:
    """The whole page."""
    made, level, alpha = result["environment"], result["level"], result["alpha"]
    intervals, tests = result["intervals"], result["tests"]
    words = {name: what if what == name else f"{name} ({what})" for name, what in result["distributions"].items()}
    limits = LIMITS_TEXT.format(
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
        "![coverage of intervals and false positives of tests at 3, 5 and 10 seeds](statistics.png)",
        _filled(SHORT.format(level=_percent(level), alpha=_percent(alpha))),
        _defaults(intervals),
        _filled(f"Tables are in percent. **Bold** is the default; *slanted* is a coverage below {_percent(GOAL)}."),
        "## Mean of one cell",
        *_paragraphs(MEAN_TEXT.format(none_3=_percent(0.8**3), none_5=_percent(0.8**5), times=_times(intervals))),
        _coverage(intervals, MEAN, ("method",)),
        "## Interquartile mean (IQM) of several tasks",
        *_paragraphs(IQM_TEXT),
        _coverage(intervals, IQM, ("tasks", "method")),
        "## Performance profile",
        *_paragraphs(PROFILE_TEXT),
        _coverage(intervals, PROFILE, ("tasks", "method")),
        "## Probability of improvement",
        *_paragraphs(IMPROVEMENT_TEXT),
        _coverage(intervals, IMPROVEMENT, ("tasks", "effect", "method")),
        "## Tests over seeds",
        *_paragraphs(TESTS_TEXT.format(unlike=UNLIKE)),
        f"How often a difference is found at p < {alpha:g} where there is none:",
        _rejections(tests, 0, _over_seeds),
        *_power(tests),
        "## GORL's test over evaluations",
        *_paragraphs(GORL_TEXT),
        f"How often a difference is found at p < {alpha:g} where there is none:",
        _rejections(tests, 0, lambda row: "correlation" in row["scenario"]),
        "## Many comparisons",
        *_paragraphs(MANY_TEXT),
        _rejections(tests, 0, lambda row: "comparisons" in row["scenario"]),
        "## What three, five and ten seeds cost",
        *_paragraphs(COST_TEXT),
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
    cells = {(tuple(row[key] for key in keys), row["distribution"], row["seeds"]): row for row in rows}
    lines = []
    for line in dict.fromkeys(tuple(row[key] for key in keys) for row in _by(rows, keys)):
        ours = line[-1] == OURS[statistic]
        head = [*map(str, line[:-1]), f"**{line[-1]}**" if ours else line[-1]]
        lines.append(head + [_covered(cells.get((line, *column))) for column in columns])
    return _table((*keys, *(f"{name}, {n}" for name, n in columns)), lines, left=len(keys))


def _covered(row: Row | None) -> str:
    if row is None:
        return "-"
    text = _share(row["coverage"])
    text = f"*{text}*" if row["coverage"] < GOAL else text
    return f"{text} ({_share(row['lowest'])})" if "lowest" in row else text


def _rejections(rows: Sequence[Row], effect: int, chosen: Callable[[Row], bool]) -> str:
    rows = [row for row in rows if row["effect"] == effect and chosen(row)]
    columns = [(scenario, n) for scenario in _values(rows, "scenario") for n in _values(rows, "seeds")]
    cells = {(row["test"], row["scenario"], row["seeds"]): _share(row["rejected"]) for row in rows}
    lines = [
        [f"**{test}**" if test == OUR_TEST else test, *(cells.get((test, *column), "-") for column in columns)]
        for test in _values(rows, "test")
    ]
    return _table(("test", *(f"{scenario}, {n}" for scenario, n in columns)), lines, left=1)


def _over_seeds(row: Row) -> bool:
    return row["test"].endswith("over seeds") and "correlation" not in row["scenario"]


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
        alike = {
            other["seeds"]: other["width"]
            for other in normal
            if (other["statistic"], other["tasks"], other.get("effect", 0)) == (row["statistic"], row["tasks"], 0)
        }
        lines.append([f"width: {name}", *(f"{alike[n]:.2f}" for n in seeds)])
    lines.sort(key=lambda line: [line[0].startswith(f"width: {name}") for name in OURS], reverse=True)
    for effect in sorted({row["effect"] for row in tests} - {0}):
        found = {
            row["seeds"]: _share(row["rejected"])
            for row in tests
            if (row["test"], row["scenario"], row["effect"]) == (OUR_TEST, "normal", effect)
        }
        lines.append([f"finds a difference of {_deviations(effect)}", *(found[n] for n in seeds)])
    return _table(("normal scores", *(f"{n} seeds" for n in seeds)), lines, left=1)


def _table(head: Sequence[str], lines: Iterable[Sequence[str]], left: int) -> str:
    rule = "|" + "---|" * left + "---:|" * (len(head) - left)
    return "\n".join(["| " + " | ".join(head) + " |", rule, *("| " + " | ".join(line) + " |" for line in lines)])


def _values(rows: Iterable[Row], key: str) -> list[Any]:
    return list(dict.fromkeys(row[key] for row in rows))


def _by(rows: Sequence[Row], keys: tuple[str, ...]) -> list[Row]:
    """By numbers; methods stay in their order."""
    return sorted(rows, key=lambda row: [row[key] for key in keys if isinstance(row[key], int)])


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
