"""docs/claims.md: every claim with what was measured, and the index of everything in the papers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks import results as reading
from benchmarks.claims import gild, gorl, gorl_bases, pex, pictures, por
from benchmarks.claims.verdict import Claim, Verdict
from benchmarks.results import Results
from benchmarks.running.suite import SHIPPED
from metarl.errors import ConfigError
from metarl.training.folder import write_aside

PAPERS = Path(__file__).with_name("papers.yaml")
RECORDED = Path(__file__).parents[1] / "results"
CLAIMS = (*gorl.CLAIMS, *gorl_bases.CLAIMS, *gild.CLAIMS, *por.CLAIMS, *pex.CLAIMS)
ANSWERS = ("suite", "page", "test", "awaits", "unavailable")
HEAD = """# What the papers claim, and what was measured here

Written by `python -m benchmarks.claims` from the committed results in benchmarks/results; nothing is typed in.

Scores are normalised: 0 is what a random policy returns on average and 100 what the recipe's expert does, or the
success rate in percent. They average the last 10 evaluations of every seed; POR's the second half of them, since one
of its forms trains no policy before that. Suites that learn online alone (GILD's) are judged by the raw mean return of
the last 10, beside which stand its interquartile mean over seeds (IQM) and the demonstrator's return; their steps are
of the environment. Those that go online after learning from data (PEX's) are judged by the normalised score or success
rate on average over the online steps, and over the last three evaluations. A claim **held** where what it says is
significant at 5 %, **did not hold** where the opposite is, and is **undecided** where these seeds cannot tell; the rule
stands below each. Tests are paired t-tests over seeds, since runs of one seed share their draws, initial networks and
start states; brackets hold 95 % intervals. The papers' own test takes the 10 evaluations of one run for independent
samples, which [calls far too much significant](statistics.md): its p-values are shown and decide nothing.

What was measured is the small form of each suite, or one that has no larger form, on data made here: low-dimensional
tasks and 8,000 to 20,000 gradient steps, or, online, ten to twenty thousand environment steps of a task of few
dimensions (and 50,000 of HalfCheetah, in a suite of its own). It can show that a mechanism works or does not at this
scale; it cannot refute a table that was measured on D4RL or on MuJoCo's robots over a million steps. The other suites
run in paper size with `metarl bench NAME`: offline for anyone who has D4RL's files, online for anyone who has weeks of
a core.
"""


@dataclass(frozen=True)
class Judged:
    """A claim with its verdict and the results behind it.

    Attributes:
        claim, verdict: of it.
        results: None where there are none yet, or where it was judged by something else.
    """

    claim: Claim
    verdict: Verdict
    results: Results | None = None


def recorded(name: str) -> Results | None:
    """The committed results of a suite; None where there are none."""
    path = RECORDED / f"{name}.parquet"
    return reading.load(path) if path.is_file() else None


def judged() -> list[Judged]:
    """Every claim, judged where its results are committed."""
    kept = {suite: recorded(suite) for suite in dict.fromkeys(claim.suite for claim in CLAIMS)}
    return [Judged(claim, _verdict(claim, kept[claim.suite]), kept[claim.suite]) for claim in CLAIMS]


def _verdict(claim: Claim, results: Results | None) -> Verdict:
    if claim.suite and results is None:
        return Verdict("not measured", f"Run `{_command(claim.suite)}`.")
    return claim.judge(results)  # type: ignore[arg-type]  # only claims without a suite are given no results


def write(docs: Path) -> Path:
    """Writes claims.md and its pictures into `docs`; returns the page's path."""
    claims = judged()
    drawn: dict[str, str] = {}
    for results in {j.claim.suite: j.results for j in claims if j.results}.values():
        assert results is not None
        drawing = pictures.of(results)
        if drawing is not None:
            drawn[results.name] = f"claims_{results.name.removesuffix('-small')}.png"
            (docs / drawn[results.name]).write_bytes(drawing)
    write_aside(docs / "claims.md", page(claims, drawn))
    return docs / "claims.md"


def page(claims: Sequence[Judged], drawn: Mapping[str, str]) -> str:
    """The page's text; `drawn` names the picture of a suite's results."""
    parts = [HEAD, _overview(claims)]
    by_suite: dict[str, list[Judged]] = {}
    for one in claims:
        by_suite.setdefault(one.claim.suite, []).append(one)
    for suite, group in by_suite.items():
        parts.append("\n".join(_section(suite, group, drawn)))
    parts.append("\n".join(_index()))
    return "\n".join(parts).rstrip() + "\n"


def _overview(claims: Sequence[Judged]) -> str:
    rows = [["paper", "where", "claim", "here"]]
    rows += [[j.claim.paper, j.claim.where, j.claim.says, f"**{j.verdict.outcome}**"] for j in claims]
    return table(rows)


def _section(suite: str, group: Sequence[Judged], drawn: Mapping[str, str]) -> Iterator[str]:
    results = group[0].results
    yield f"\n## {suite or 'Time'}\n"
    if not suite:
        yield "Measured by `python -m benchmarks.speed`: [how](speed.md).\n"
    if results:
        yield f"{_scale(results)}\n"
    if results and results.name in drawn:
        yield f"![the figures of {results.name} as a picture]({drawn[results.name]})\n"
        yield f"{pictures.caption(results)}\n"
    for one in group:
        claim, verdict = one.claim, one.verdict
        yield f"### {claim.where}: {claim.says}\n"
        yield f"**{verdict.outcome.capitalize()}.** {verdict.measured} *Rule: {claim.rule}.*\n"
        if verdict.table:
            yield table(verdict.table)


def _scale(results: Results) -> str:
    counts = {len(cell.finished) for cell in results.cells}
    seeds = f"{min(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
    steps = sorted({cell.steps for cell in results.cells})
    made = {key: sorted({e[key] for e in results.environments if e.get(key)}) for key in ("torch", "commit")}
    what = f"{len(results.rows)} methods, {len(results.columns)} datasets ({', '.join(results.columns)})"
    if results.counted != "gradient steps" or "dataset" not in results.axes:
        what = "; ".join(f"{axis}: {', '.join(map(_quoted, labels))}" for axis, labels in results.axes.items())
    taken = f"{' and '.join(f'{s:,}' for s in steps)} {results.counted}"
    return (
        f"{results.finished} runs: {what}, {seeds} seeds each, {taken}; "
        f"torch {', '.join(made['torch'])}, commit {', '.join(c[:10] for c in made['commit']) or 'unknown'}. Again: "
        f"`{_command(results.name)}`."
    )


def _quoted(label: str) -> str:
    """In quotes where a comma would take it for two."""
    return f'"{label}"' if "," in label else label


def _command(name: str) -> str:
    suite = name.removesuffix("-small")
    return f"metarl bench {suite}" + (" --small" if suite != name else "")


def _index() -> Iterator[str]:
    yield "\n## Everything in the papers, and where it is answered\n"
    yield (
        "Tables, figures, first experiments, next checks and open questions. A suite runs in paper size with "
        "`metarl bench NAME`, which needs D4RL's files where it learns offline, and on made data with `--small`.\n"
    )
    for paper in papers():
        yield f"### {paper['paper']}: {paper['title']} (arXiv:{paper['arxiv']})\n"
        rows = [["item", "what it says", "here"]]
        for item in paper["items"]:
            note = f" ({item['note']})" if "note" in item else ""
            rows.append([item["item"], item["says"], f"{_answer(item)}{note}"])
        yield table(rows)


def _answer(item: Mapping[str, str]) -> str:
    if "suite" in item:
        return f"suite `{item['suite']}`"
    if "page" in item:
        return f"[{item['page']}]({Path(item['page']).name})"
    if "test" in item:
        return f"test [{item['test']}](../{item['test']})"
    return f"to come, with {item['awaits']}" if "awaits" in item else f"not available: {item['unavailable']}"


def papers() -> list[dict[str, Any]]:
    """The index, checked: every item has one answer, and the suites that it names are shipped.

    Raises:
        ConfigError: names the item that is wrong.
    """
    found: list[dict[str, Any]] = yaml.safe_load(PAPERS.read_text())
    for paper in found:
        for item in paper["items"]:
            given = [answer for answer in ANSWERS if answer in item]
            where = f"{PAPERS}: {paper['paper']}, {item['item']}"
            if len(given) != 1:
                raise ConfigError(f"{where}: give exactly one of {', '.join(ANSWERS)}, not {given}")
            if "suite" in item and not (SHIPPED / f"{item['suite']}.yaml").is_file():
                raise ConfigError(f"{where}: there is no shipped suite {item['suite']!r}")
    return found


def table(rows: Sequence[Sequence[str]]) -> str:
    """Markdown, the first row as its head."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"
