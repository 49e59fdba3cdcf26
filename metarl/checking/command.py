"""`metarl check`: the checks as a table on the terminal, or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from metarl import registry
from metarl.checking.checks import check as run
from metarl.checking.findings import Finding, Report
from metarl.checking.small import Plan
from metarl.component import first_line
from metarl.errors import ConfigError
from metarl.process import settle

COLOURS = {"ok": "green", "info": "cyan", "warning": "yellow", "FAILED": "bold red"}


def check(
    objective: Annotated[
        str | None, typer.Argument(help="A registered objective, or module:Class.", show_default=False)
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Argument(help="Its settings as key=value, such as every=2.", show_default=False)
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every registered objective, one line each.")] = False,
    algorithm: Annotated[
        str | None,
        typer.Option(
            help="The base, with settings as '{name: iql, beta: 10}'; by default the first registered one that it "
            "attaches to."
        ),
    ] = None,
    after: Annotated[
        list[str] | None,
        typer.Option(help="An objective attached before it, as '{name: por, form: v_guided}'; may be repeated."),
    ] = None,
    beside: Annotated[
        Path | None, typer.Option(help="Where components named module:Class lie; by default here.")
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Record the step as the compiler gets it.")
    ] = True,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Whole tables, with --all too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Is this learned loss sound? Shapes, purity, hypergradient against differences, signal, cost."""
    if everything == (objective is not None):
        raise ConfigError("name one objective, as in `metarl check gorl`, or give --all")
    if everything and settings:
        raise ConfigError("--all takes no settings")
    settle()
    base = None if algorithm is None else _component(algorithm)
    skip = () if compiled else ("compiles",)
    nodes = (
        [{"name": n} for n in registry.names("metarl.objectives")] if everything else [_node(objective, settings or [])]
    )
    reports = []
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 120)
    for node in nodes:
        plan = Plan(node, base, beside, tuple(_component(text) for text in after or ()))
        report = _checked(plan, skip, forgive=everything)
        reports.append(report)
        if as_json:
            continue
        if everything and not verbose:
            console.print(_line(report), soft_wrap=True, highlight=False)
        else:
            _show(console, report)
    if as_json:
        print(json.dumps([r.to_dict() for r in reports] if everything else reports[0].to_dict(), indent=2))
    if any(report.failed for report in reports):
        raise typer.Exit(1)


def _checked(plan: Plan, skip: Sequence[str], forgive: bool) -> Report:
    """The report; with `forgive`, an objective that cannot be built as it stands does not stop those after it."""
    try:
        return run(plan, skip)
    except ConfigError as error:
        if not forgive:
            raise
        return Report(
            plan.title,
            plan.base or "any",
            (Finding("builds", "warning", "not checked", str(error)),),
        )


def _component(text: str) -> dict[str, Any]:
    """A name, or a mapping in YAML's short form with one."""
    try:
        given = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{text!r} is neither a name nor '{{name: ..., setting: value}}'") from error
    if isinstance(given, str):
        return {"name": given}
    if not isinstance(given, dict) or "name" not in given:
        raise ConfigError(f"{text!r} is neither a name nor '{{name: ..., setting: value}}'")
    return given


def _node(objective: str | None, settings: Sequence[str]) -> dict[str, Any]:
    for setting in settings:
        if "=" not in setting:
            raise ConfigError(f"settings are key=value, not {setting!r}")
    try:
        given = OmegaConf.to_container(OmegaConf.from_dotlist(list(settings)))
    except OmegaConfBaseException as error:
        raise ConfigError(f"settings cannot be read: {first_line(error)}") from error
    assert isinstance(given, dict)
    return {**{str(key): value for key, value in given.items()}, "name": objective}


def _show(console: Console, report: Report) -> None:
    console.print(f"{escape(report.objective)} over {report.algorithm}", highlight=False)
    table = Table(box=None, pad_edge=False)
    for column in ("check", "result", "measured"):
        table.add_column(column)
    for f in report.findings:
        table.add_row(f.check, f"[{COLOURS[f.status]}]{f.status}[/]", escape(f.measured))
    console.print(table)
    for f in report.problems:
        text = f"[{COLOURS[f.status]}]{f.status}[/] {f.check}: {escape(f.problem)}."
        console.print(text, soft_wrap=True, highlight=False)


def _line(report: Report) -> str:
    head = f"[{COLOURS[report.status]}]{report.status:7}[/] {escape(report.objective)} over {report.algorithm}"
    problems = report.problems
    if not problems:
        return f"{head}: {len(report.findings)} checks"
    return f"{head}: {len(problems)} of {len(report.findings)}: {problems[0].check}: {escape(problems[0].problem)}"
