"""The result for people: on the terminal, and as markdown for the documentation."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

OURS = ("metarl eager", "metarl compiled")


def table(result: dict[str, Any]) -> str:
    """Markdown, made from the JSON: one row per problem; times and memory of metarl over the best rival's."""
    head = ("one hypergradient", "best rival", *(f"{name}, time" for name in OURS), "memory", "compiling pays after")
    lines = ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * (len(head) - 2)]
    for problem in result["problems"].values():
        rival = problem["fastest_rival"]
        ratios = [problem["over_best_rival"][name] for name in OURS if name in problem["over_best_rival"]]
        times = [_ratio(ratio["time"]) for ratio in ratios] + ["-"] * (len(OURS) - len(ratios))
        memory = ", ".join(f"{ratio['memory']:.2f}" for ratio in ratios)
        cells = (problem["what"], f"{rival}, {_median(problem, rival)}", *times, memory, _pays(problem))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def shown(result: dict[str, Any]) -> Group:
    """Every contestant of every problem, for the terminal."""
    settings = result["settings"]
    title = (
        f"One hypergradient: CPU time on {settings['threads']} thread, {settings['dtype']};\n"
        f"median of {settings['rounds']} rounds, ratios with the lowest and the highest"
    )
    return Group(Text(title, style="bold"), *(_problem(problem) for problem in result["problems"].values()))


def _problem(problem: dict[str, Any]) -> Table:
    view = Table(title=f"\n{problem['what']}", title_justify="left", box=None, pad_edge=False)
    for column in ("contestant", "time", "over best rival", "peak KiB", "over best"):
        view.add_column(column, justify="left" if column == "contestant" else "right", no_wrap=True)
    for name, figures in problem["contestants"].items():
        ratio = problem["over_best_rival"][name]
        kib = f"{figures['peak_bytes'] / 1024:,.1f}"
        view.add_row(name, _median(problem, name), _ratio(ratio["time"]), kib, f"{ratio['memory']:.2f}")
    if "compile" in problem:
        seconds = problem["compile"]["seconds"]
        view.caption = f"compiling: {seconds:.0f} CPU-seconds, paid back after {_pays(problem)}"
        view.caption_justify = "left"
    return view


def _median(problem: dict[str, Any], name: str) -> str:
    return f"{problem['contestants'][name]['ms']['median']:.3g} ms"


def _ratio(timing: dict[str, float]) -> str:
    return f"{timing['median']:.2f} ({timing['low']:.2f}-{timing['high']:.2f})"


def _pays(problem: dict[str, Any]) -> str:
    calls = problem.get("compile", {}).get("pays_after")
    return f"{calls:,} calls" if calls else "-"
