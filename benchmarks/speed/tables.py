"""The result as grids of text, for the page and for the terminal; every number comes from the recorded times."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from benchmarks.speed.comparisons import (
    AUTHORS_IL,
    BASES,
    COMPARISONS,
    LEARNED,
    MODES,
    PUBLISHED_AVERAGE,
    contestant,
)
from benchmarks.speed.contestants import CORL, FLOORS, LABELS, TEXTBOOK, compared_label, learned_label
from benchmarks.speed.derived import (
    PERIODS,
    cost,
    flatness_percent,
    gorl_average,
    gorl_costs,
    gorl_measured,
    gorl_overhead,
    pays_after,
    speed,
    step_ms,
    whole_cost,
)
from benchmarks.speed.products import mflop_per_step
from benchmarks.speed.timing import Timing

ALGORITHMS = {"td3_bc": "TD3+BC", "gorl": "TD3+BC with GORL"}
KINDS = {
    "critic": "TD3+BC, the critic alone moves",
    "policy": "TD3+BC, everything moves",
    "weighted": "the same with GORL's weights, no guiding update",
    "guided": "the same with a guiding update",
}


@dataclass(frozen=True)
class Grid:
    """A table: its first column is words, the others are figures, some with their range in brackets."""

    title: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def markdown(self) -> str:
        lines = [self.head, ("---",) + ("---:",) * (len(self.head) - 1), *self.rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    def shown(self) -> Table:
        """For the terminal, without the ranges."""
        table = Table(title=f"\n{self.title}", title_justify="left", box=None, pad_edge=False)
        for i, name in enumerate(self.head):
            table.add_column(name, justify="right" if i else "left", no_wrap=not i)
        for words, *figures in self.rows:
            table.add_row(words, *(figure.partition(" (")[0] for figure in figures))
        return table


def grids(result: Mapping[str, Any]) -> Iterator[Grid]:
    """Those of all questions that were asked."""
    for name, size in result.get("sizes", {}).items():
        yield steps(name, size)
    for name, comparison in result.get("compared", {}).items():
        yield compared(name, comparison)
    for name, comparison in result.get("learned", {}).items():
        yield learned(name, comparison)
    if result.get("whole"):
        yield whole(result)
    questions = {
        "gorl": gorl,
        "gorl_bases": gorl_bases,
        "flops": flops,
        "compile": compiling,
        "flatness": flatness,
        "gpu": gpu,
    }
    for key, make in questions.items():
        if result.get(key):
            yield make(result)


def summary(result: Mapping[str, Any]) -> str:
    """For the README: how many gradient steps each contestant takes while another takes one."""
    first, second = _summary(result["sizes"]), _compared_summary(result.get("compared", {}))
    return "\n\n".join(grid.markdown() for grid in (first, second) if grid.rows)


def _summary(sizes: Mapping[str, Any]) -> Grid:
    found = [
        each
        for each in LABELS
        if each not in (*FLOORS, TEXTBOOK) and all(each in s["contestants"] for s in sizes.values())
    ]
    rows = [(LABELS[each], *(f"{speed(size, each, TEXTBOOK).median:.2f}" for size in sizes.values())) for each in found]
    head = ("TD3+BC", *(f"size of {name}" for name in sizes))
    return Grid("Gradient steps while plain PyTorch takes one", head, rows)


def _compared_summary(comparisons: Mapping[str, Any]) -> Grid:
    """One column a variant; no rows where nothing was compared."""
    columns: dict[str, list[str]] = {}
    for name, measured in comparisons.items():
        comparison, found = COMPARISONS[name], measured["contestants"]
        for variant, label in comparison.columns().items():
            each = [contestant(variant, mode) for mode in MODES]
            pairs = [(one, comparison.against(one)) for one in each]
            cells = [f"{speed(measured, *pair).median:.2f}" if {*pair} <= {*found} else "" for pair in pairs]
            if any(cells):
                columns[f"{label}; {comparison.yardstick} = 1"] = cells
    rows = [(LABELS[mode], *cells) for mode, *cells in zip(MODES, *columns.values(), strict=True)] if columns else []
    return Grid("Gradient steps while another takes one", ("size of hopper", *columns), rows)


def steps(name: str, size: Mapping[str, Any]) -> Grid:
    """One row a contestant: its time, and how many steps it takes while another takes one."""
    found = [each for each in LABELS if each in size["contestants"]]
    against = {TEXTBOOK: "plain PyTorch", CORL: "CORL"}
    columns = {f"speed, {label} = 1": each for each, label in against.items() if each in found}
    shares = {f"share of {LABELS[each].removeprefix('products, ')}": each for each in FLOORS if each in found}
    rows = []
    for each in found:
        ratios = [_ranged(speed(size, each, other)) for other in columns.values()]
        floors = ["" if each in FLOORS else _percent(speed(size, each, other)) for other in shares.values()]
        setup = size["contestants"][each]["setup_cpu_s"]
        rows.append((LABELS[each], _ranged(Timing.of(step_ms(size, each))), *ratios, *floors, f"{setup:.1f}"))
    head = ("TD3+BC", "CPU-ms a step", *columns, *shares, "CPU-s until ready")
    dims = f"{size['obs_dim']} observations, {size['action_dim']} actions"
    return Grid(f"TD3+BC, size of {name} ({dims})", head, rows)


def compared(name: str, measured: Mapping[str, Any]) -> Grid:
    """One row a contestant of one of `COMPARISONS`: its time, and how many steps it takes while another takes one."""
    comparison, found = COMPARISONS[name], measured["contestants"]
    rows = []
    for each in comparison.names():
        if each in found:
            against = comparison.against(each)
            ratio = _ranged(speed(measured, each, against)) if against in found else ""
            time = _ranged(Timing.of(step_ms(measured, each)))
            rows.append((compared_label(name, each), time, ratio, f"{found[each]['setup_cpu_s']:.1f}"))
    head = (comparison.label, "CPU-ms a step", f"speed, {comparison.yardstick} = 1", "CPU-s until ready")
    return Grid(f"{comparison.label}, size of hopper", head, rows)


def learned(name: str, measured: Mapping[str, Any]) -> Grid:
    """One row a contestant of one of `LEARNED`: its time, and in those of others."""
    comparison, found = LEARNED[name], measured["contestants"]
    authors = AUTHORS_IL in found
    rows = []
    for each in comparison.names():
        if each in found:
            against = [comparison.yardstick(each), *([AUTHORS_IL] if authors else [])]
            ratios = [_ranged(cost(measured, each, other)) if other in found else "" for other in against]
            time = _ranged(Timing.of(step_ms(measured, each)))
            rows.append((learned_label(name, each), time, *ratios, f"{found[each]['setup_cpu_s']:.1f}"))
    columns = ["time, RL+IL = 1", *(["time, the authors' RL+IL = 1"] if authors else [])]
    head = (comparison.label, "CPU-ms a step", *columns, "CPU-s until ready")
    return Grid(f"Learned losses on {comparison.label}, size of halfcheetah", head, rows)


def whole(result: Mapping[str, Any]) -> Grid:
    """One row an environment: a run with a warm start, and in those without."""
    rows = []
    for measured in result["whole"].values():
        runs = measured["runs"]
        seconds = [_ranged(Timing.of(runs[each]["cpu_s"])) for each in ("alone", "gild")]
        ratios = [_ranged(whole_cost(runs, prepared), 4) for prepared in (False, True)]
        preparing = [
            f"{statistics.median(runs[each]['preparing_cpu_s']):.1f} ({runs[each]['preparing_cold_cpu_s']:.1f})"
            for each in ("alone", "gild")
        ]
        steps = f"{measured['gradient_steps']:,}"
        rows.append((measured["env"], steps, *seconds, *ratios, *preparing))
    head = (
        "TD3 in",
        "gradient steps",
        "alone, CPU-s",
        "GILD, CPU-s",
        "time, alone = 1",
        "without preparing",
        "preparing, alone, CPU-s",
        "preparing, GILD, CPU-s",
    )
    return Grid("Whole runs with a warm start", head, rows)


def gorl(result: Mapping[str, Any]) -> Grid:
    """One row a mode: marginal costs, and what they add to a step of the base algorithm."""
    rows = []
    for mode, turns in result["gorl"].items():
        costs = gorl_costs(turns["parts"])
        added = [_percent(gorl_overhead(turns["parts"], period)) for period in PERIODS]
        milliseconds = [_ranged(costs[name]) for name in ("base", "weighing", "guiding")]
        rows.append((LABELS[mode], *milliseconds, *added, _percent(gorl_measured(turns["parts"]))))
    head = (
        "GORL on TD3+BC",
        "step without it, CPU-ms",
        "weights, CPU-ms",
        "guiding update, CPU-ms",
        *(f"added, every {period}" for period in PERIODS),
        f"in all, every {PERIODS[-1]}",
    )
    return Grid("What GORL adds to a step", head, rows)


def gorl_bases(result: Mapping[str, Any]) -> Grid:
    """One row a base and mode, and one a mode for the average over the bases."""
    measured = {"td3_bc": result.get("gorl", {}), **result["gorl_bases"]}
    rows = []
    for name, base in BASES.items():
        for mode, turns in measured[name].items():
            costs, parts = gorl_costs(turns["parts"]), turns["parts"]
            milliseconds = [_ranged(costs[cost]) for cost in ("base", "weighing", "guiding")]
            added = _percent(gorl_overhead(parts, base.period))
            label = f"{base.label}, {mode}"
            rows.append((label, str(base.period), *milliseconds, added, f"{base.published} %"))
    for mode in MODES:
        found = [(measured[name][mode]["parts"], BASES[name].period) for name in BASES if mode in measured[name]]
        if len(found) == len(BASES):
            rows.append((f"average, {mode}", "", "", "", "", _percent(gorl_average(found)), f"{PUBLISHED_AVERAGE} %"))
    head = (
        "GORL on",
        "guiding update every",
        "step without it, CPU-ms",
        "weights, CPU-ms",
        "guiding update, CPU-ms",
        "added",
        "added, the paper's",
    )
    return Grid("What GORL adds at its published periods", head, rows)


def flops(result: Mapping[str, Any]) -> Grid:
    """One row a kind of step."""
    counted, average = result["flops"], mflop_per_step({**result["settings"], "obs_dim": 11, "action_dim": 3})
    rows = [(words, f"{counted[kind]:,.1f}") for kind, words in KINDS.items()]
    rows.append(("TD3+BC, average step", f"{(counted['critic'] + counted['policy']) / 2:,.1f}"))
    rows.append(("TD3+BC, average step, from first principles", f"{average:,.1f}"))
    return Grid("Operations of matrix products", ("step, size of hopper", "MFLOP"), rows)


def compiling(result: Mapping[str, Any]) -> Grid:
    """One row an algorithm and a way to get ready."""
    rows = []
    for algorithm, ways in result["compile"].items():
        for way, facts in ways.items():
            pays = pays_after(result, algorithm, way) if way != "recorded" and _comparable(result, algorithm) else None
            seconds = [facts[key] for key in ("cpu_s", "wall_s", "process_cpu_s", "start_wall_s")]
            name = f"{ALGORITHMS[algorithm]}, {way}"
            rows.append((name, *(f"{value:.1f}" for value in seconds), f"{pays:,}" if pays else ""))
    head = ("getting ready", "CPU-s", "wall s", "CPU-s in all", "wall s in all", "pays after steps")
    return Grid("Until every kind of step has run once", head, rows)


def _comparable(result: Mapping[str, Any], algorithm: str) -> bool:
    """Whether both sides of `pays_after` were timed."""
    steps = result.get("sizes", {}).get("hopper", {}).get("contestants", {})
    return {"recorded", "compiled"} <= set(result.get("gorl", {}) if algorithm == "gorl" else steps)


def flatness(result: Mapping[str, Any]) -> Grid:
    """One row a mode."""
    rows = []
    for mode, course in result["flatness"].items():
        over_time, in_turns = flatness_percent(course)
        rows.append((LABELS[mode], f"{over_time:+.1f} %", f"{in_turns:+.1f} %"))
    outer = f"{next(iter(result['flatness'].values()))['outer']:,}"
    head = ("cost of a meta-step", f"last tenth of {outer} over the first", f"after {outer} over a fresh learner's")
    return Grid("Whether a meta-step's cost stays", head, rows)


def gpu(result: Mapping[str, Any]) -> Grid:
    """One row a contestant, in wall time."""
    found, rows = result["gpu"]["contestants"], []
    for name in found:
        times = Timing.of(step_ms(result["gpu"], name, "wall"))
        ratio = [_ranged(speed(result["gpu"], name, TEXTBOOK, "wall"))] if TEXTBOOK in found else []
        rows.append((LABELS.get(name, f"metarl, {name}"), _ranged(times, 4), *ratio))
    against = ["speed, plain PyTorch = 1"] if TEXTBOOK in found else []
    return Grid(result["gpu"]["device"], ("TD3+BC", "ms a step", *against), rows)


def _ranged(timing: Timing, digits: int = 3) -> str:
    """Median and range, to so many significant digits of the median."""
    size = abs(timing.median)
    places = max(0, digits - 1 - (0 if size < 1 else len(str(int(size))) - 1))
    return f"{timing.median:.{places}f} ({timing.low:.{places}f} to {timing.high:.{places}f})"


def _percent(share: Timing) -> str:
    median, low, high = 100 * share.median, 100 * share.low, 100 * share.high
    places = 0 if abs(median) >= 10 else 1 if abs(median) >= 1 else 2
    return f"{median:.{places}f} % ({low:.{places}f} to {high:.{places}f})"
