"""What stands around the scores: provenance, cost, how configurations differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.results import Cell, Results

SHA = 12  # hex digits shown
UNLIKE = 4  # exceptions to the common number of seeds that are named
LABELS = {"name", "seeds"}  # keys that say what the labels say already


@dataclass(frozen=True)
class Differences:
    """Configuration keys whose values differ along one side of the table.

    Attributes:
        side: `method`, `dataset`, or both.
        labels: of that side.
        keys: dotted key to one value a label; an empty text where the key is not there.
    """

    side: str
    labels: tuple[str, ...]
    keys: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Taken:
    """What the runs of a cell took.

    Attributes:
        time, processor: medians over its runs by the clock and of the processor, in words.
        rate: median gradient steps per second by the clock.
        memory: the largest peak of a process, in words.
        together: how many seeds shared a process; empty for one.
    """

    time: str
    processor: str
    rate: str
    memory: str
    together: str


def lead(results: Results) -> str:
    """`3 methods × 1 dataset, 6 finished runs of 6`."""
    grid = count(len(results.rows), results.row_title or "row")
    if results.column_title:
        grid += f" × {count(len(results.columns), results.column_title)}"
    planned = sum(len(cell.seeds) for cell in results.cells)
    finished = count(results.finished, "finished run")
    return f"{grid}, {finished}" + ("" if planned == results.finished else f" of {planned}")


def count(n: int, what: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{n:,} {what}" + ("" if n == 1 else "s")


def seeds(counts: Mapping[str, int]) -> str:
    """`n = 5 seeds.`, or `n = 5 seeds; 3 of BC.`; of many that differ, `n = 1 to 5 seeds.`"""
    if not counts:
        return ""
    every = list(counts.values())
    common = max(every, key=lambda n: (every.count(n), n))
    unlike = [f"{n} of {what}" for what, n in counts.items() if n != common]
    if len(unlike) > UNLIKE:
        return f"n = {min(every)} to {count(max(every), 'seed')}."
    return f"n = {count(common, 'seed')}{''.join(f'; {text}' for text in unlike)}."


def head(results: Results) -> Iterator[tuple[str, str]]:
    """(what, value) lines below the page's title."""
    seeds = sorted({seed for cell in results.cells for seed in cell.seeds})
    counts = sorted({len(cell.finished) for cell in results.cells})
    finished = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    yield "seeds", f"{', '.join(map(str, seeds))} ({finished} finished per cell)"
    steps = sorted({cell.steps for cell in results.cells})
    yield results.counted, " and ".join(f"{step:,}" for step in steps)
    episodes = sorted({_evaluation(c.config) for c in results.cells if c.config})
    yield "evaluation", "; ".join(episodes)
    commits = sorted({str(e["commit"]) for e in results.environments if e.get("commit")})
    if commits:
        yield "commit", ", ".join(commits)


def provenance(results: Results) -> Iterator[tuple[str, str]]:
    """(what, value) lines: what was compared, on which data, made with what."""
    for axis, labels in results.axes.items():
        yield axis, ", ".join(labels)
    yield from _datasets(results)
    for machine, versions in sorted(_made_with(results)):
        yield "made with", f"{versions}; {machine}" if machine else versions


def references(results: Results) -> Iterator[tuple[str, str]]:
    """(column, what normalises its scores)."""
    for column in results.columns:
        cells = [cell for cell in results.cells if cell.column == column and cell.scored]
        if cells and cells[0].measure == "success":
            yield column, "success rate, in percent"
        elif cells and (found := cells[0].reference) is not None:
            note = f"; {found.note}" if found.note else ""
            yield column, f"{found.low:,.1f} to {found.high:,.1f} ({found.source}{note})"


def costs(results: Results) -> dict[tuple[str, str], Taken]:
    """What the finished runs of every cell took, where that is on record."""
    taken = {}
    for cell in results.cells:
        known = [run.cost for run in cell.finished if run.cost is not None and run.cost.seconds > 0]
        if known:
            together = max(cost.together for cost in known)
            taken[cell.row, cell.column] = Taken(
                time=duration(float(np.median([cost.seconds for cost in known]))),
                processor=duration(float(np.median([cost.cpu_seconds for cost in known]))),
                rate=f"{np.median([cost.step / cost.seconds for cost in known]):,.0f}",
                memory=size(max(cost.peak_memory for cost in known)),
                together=f"{together} seeds together" if together > 1 else "",
            )
    return taken


def duration(seconds: float) -> str:
    """`8.2 s`, `1.7 min`, `12 min`, `3.4 h`."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.1f} min" if seconds < 10 * 60 else f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def size(count_of_bytes: float) -> str:
    """`412 MB`, `1.3 GB`."""
    return f"{count_of_bytes / 1e6:,.0f} MB" if count_of_bytes < 1e9 else f"{count_of_bytes / 1e9:.1f} GB"


def differences(results: Results) -> list[Differences]:
    """The keys that differ between cells: by row alone, by column alone, and the rest by cell."""
    configs = {(c.row, c.column): flat(c.config) for c in results.cells if c.config}
    keys = dict.fromkeys(key for config in configs.values() for key in config)
    sides: dict[str, dict[str, tuple[str, ...]]] = {"row": {}, "column": {}, "cell": {}}
    rows = [row for row in results.rows if any(r == row for r, _ in configs)]
    columns = [column for column in results.columns if any(c == column for _, c in configs)]
    for key in keys:
        value = {place: config.get(key, "") for place, config in configs.items()}
        if len(set(value.values())) == 1 or key.split(".")[0] in LABELS:
            continue
        by_row = {row: {v for (r, _), v in value.items() if r == row} for row in rows}
        by_column = {column: {v for (_, c), v in value.items() if c == column} for column in columns}
        if all(len(found) == 1 for found in by_row.values()):
            sides["row"][key] = tuple(next(iter(by_row[row])) for row in rows)
        elif all(len(found) == 1 for found in by_column.values()):
            sides["column"][key] = tuple(next(iter(by_column[column])) for column in columns)
        else:
            sides["cell"][key] = tuple(value.values())
    labels = {
        "row": (results.row_title or "row", tuple(rows)),
        "column": (results.column_title or "column", tuple(columns)),
        "cell": ("cell", tuple(f"{row}, {column}" for row, column in configs)),
    }
    return [Differences(*labels[side], found) for side, found in sides.items() if found]


def flat(config: Mapping[str, Any]) -> dict[str, str]:
    """Dotted keys to values as text; a list of one mapping, such as a single objective, needs no number."""
    found: dict[str, str] = {}

    def walk(value: Any, path: str) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                walk(inner, f"{path}.{key}" if path else str(key))
        elif isinstance(value, Sequence) and not isinstance(value, str) and any(isinstance(v, Mapping) for v in value):
            for i, inner in enumerate(value):
                walk(inner, path if len(value) == 1 else f"{path}.{i}")
        else:
            found[path] = value if isinstance(value, str) else json.dumps(value)

    walk(config, "")
    return found


def title(cell: Cell) -> str:
    """`BC, pendulum/medium`."""
    return f"{cell.row}, {cell.column}"


def _evaluation(config: Mapping[str, Any]) -> str:
    evaluation = config["evaluation"]
    return f"{evaluation['episodes']} episodes every {evaluation['every']:,} steps"


def _made_with(results: Results) -> set[tuple[str, str]]:
    """(machine, versions), each once; the commit stands on its own."""
    return {
        (
            str(environment.get("machine", "")),
            ", ".join(f"{name} {value}" for name, value in environment.items() if name not in ("machine", "commit")),
        )
        for environment in results.environments
    }


def _datasets(results: Results) -> Iterator[tuple[str, str]]:
    """One line a role: every dataset with its digest; a draw by seed gives each seed its own."""
    cards = [(role, card) for cell in results.cells for run in cell.runs for role, card in run.data.items()]
    for role in dict.fromkeys(role for role, _ in cards):
        shas: dict[str, dict[str, None]] = {}
        for card in (card for name, card in cards if name == role):
            drawn = card.get("figures", {}).get("drawn")
            text = card["dataset_id"] + (f" ({drawn})" if drawn else "")
            shas.setdefault(text, {})[card["sha256"][:SHA]] = None
        lines = []
        for text, (first, *others) in shas.items():
            lines.append(f"{text}, sha256 {first}" + (f" and {len(others)} more, drawn per seed" if others else ""))
        yield f"data, {role}", "; ".join(lines)
