"""The command line: `metarl train`, `eval`, `export`, ..., and what other rooms add through `metarl.commands`."""

from __future__ import annotations

import json
import sys
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from metarl import registry
from metarl.errors import ConfigError, UserError
from metarl.training import commands

app = typer.Typer(
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()

File = Annotated[Path, typer.Argument(help="An experiment's YAML file.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings as key=value, such as steps=2000.", show_default=False)
]
Root = Annotated[Path, typer.Option(help="Where run folders lie.")]
Shown = Annotated[str, typer.Option(help="auto, bar, lines (JSON, for a parent process) or none.")]


@app.callback()
def _about() -> None:
    """Bilevel experiments in reinforcement learning, composed from YAML."""


@app.command()
def train(
    file: File,
    overrides: Overrides = None,
    root: Root = Path("runs"),
    seed: Annotated[
        list[int] | None, typer.Option(help="Only this seed (may be given again); by default all of `seeds`.")
    ] = None,
    beside: Annotated[
        Path | None, typer.Option(help="Where components named module:Class lie; by default beside the file.")
    ] = None,
    progress: Shown = "auto",
) -> None:
    """Train an experiment; started again, it goes on where it stopped."""
    from metarl import config
    from metarl.training import offline
    from metarl.training.progress import reporter

    if progress not in ("auto", "bar", "lines", "none"):
        raise ConfigError(f"--progress must be auto, bar, lines or none, not {progress!r}")
    if seed and (min(seed) < 0 or len(set(seed)) < len(seed)):
        raise ConfigError(f"--seed must be different numbers from 0 up, not {seed}")
    beside = beside or file.parent
    experiment = config.load(file, overrides or [], beside)
    seeds = tuple(seed or experiment.seeds)
    for first in range(0, len(seeds), experiment.stack):
        stack = seeds[first : first + experiment.stack]
        try:
            folders = offline.train_stack(experiment, stack, root, reporter(progress), beside)  # type: ignore[arg-type]
        except KeyboardInterrupt:
            print("stopped; run the same command again to go on from the last checkpoint", file=sys.stderr)
            raise typer.Exit(130) from None
        if progress != "lines":
            for folder in folders:
                console.print(f"run folder: {folder}", highlight=False, soft_wrap=True)


app.command("eval")(commands.evaluate)
app.command("export")(commands.export)


@app.command("config")
def show_config(file: File, overrides: Overrides = None) -> None:
    """Print an experiment with every default filled in."""
    from metarl import config

    experiment = config.load(file, overrides or [])
    print(f"# run folder: {experiment.folder}")
    print(config.to_yaml(experiment.resolved), end="")


@app.command("list")
def list_components(
    name: Annotated[
        str | None,
        typer.Argument(help="One kind (estimators), or a component whose settings to show.", show_default=False),
    ] = None,
) -> None:
    """Every registered component, one line each; one kind of them; or one component's settings and presets."""
    kinds = {f"{kind}s": group for group, kind in registry.GROUPS.items()}
    if name == "estimators":
        _list_estimators()
    elif name is None or name in (*kinds, "environments"):
        _list([group for kind, group in kinds.items() if name in (None, kind)], name in (None, "environments"))
        console.print("\n`metarl list NAME` shows a component's settings and presets.", highlight=False)
    else:
        _describe(name)


def _list(groups: list[str], environments: bool) -> None:
    from metarl.envs import registered

    table = Table(box=None, pad_edge=False)
    for column in ("kind", "name", "what it is"):
        table.add_column(column)
    for group in groups:
        for entry in registry.names(group):
            table.add_row(registry.GROUPS[group], entry, escape(_summary(registry.resolve(group, entry))))
    for env_id, line in registered() if environments else ():
        table.add_row("environment", env_id, escape(line))
    console.print(table)


def _list_estimators() -> None:
    """With what compiles and runs under vmap: measured by `python -m benchmarks.exactness`, and by the tests."""
    measured = json.loads(resources.files("metarl.bilevel").joinpath("transforms.json").read_text())
    table = Table(box=None, pad_edge=False)
    for column in ("estimator", "compiles", "vmap", "what it is"):
        table.add_column(column)
    for entry in registry.names("metarl.estimators"):
        shown = [{True: "yes", False: "no"}.get(measured.get(entry, {}).get(key), "?") for key in ("compiles", "vmaps")]
        table.add_row(entry, *shown, escape(_summary(registry.resolve("metarl.estimators", entry))))
    console.print(table)
    console.print(
        "\ncompiles: as one graph (fullgraph), with the eager numbers; vmap: over stacked seeds, likewise. "
        "?: not measured.",
        highlight=False,
    )


def _describe(name: str) -> None:
    from metarl.pages import flow, settings

    shown = [f"metarl.{kind}" for kind in ("algorithms", "objectives", "optimizers", "estimators", "problems")]
    groups = [group for group in shown if name in registry.names(group)]
    if not groups:
        every = [n for group in shown for n in registry.names(group)]
        raise ConfigError(f"there is no component called {name!r}.{registry.nearest(name, every)}")
    for group in groups:
        target = registry.resolve(group, name)
        console.print(f"[bold]{name}[/bold] ({registry.GROUPS[group]}): {escape(_summary(target))}")
        table = Table(box=None, pad_edge=False)
        for column in ("setting", "default", "what it does"):
            table.add_column(column)
        for row in settings(target):
            table.add_row(*(escape(cell.replace("`", "")) for cell in row))
        console.print(table)
        for preset, values in getattr(target, "presets", {}).items():
            console.print(f"preset [bold]{preset}[/bold]: {escape(flow(values, bare=True))}", highlight=False)


def _summary(target: object) -> str:
    lines = (getattr(target, "__doc__", None) or "").strip().splitlines()
    return lines[0] if lines else ""


def _plug(group: str) -> None:
    """Adds the commands that other packages contribute: functions or Typer apps."""
    for name in registry.names(group):
        try:
            command = registry.resolve(group, name)
        except ConfigError as error:  # somebody's broken command must not take the others away
            print(f"warning: {error}", file=sys.stderr)
            continue
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name)(command)


def main() -> None:
    """Runs the command line; a user's mistake is one line on standard error and exit code 2."""
    from metarl.checking.command import check
    from metarl.data.commands import app as data

    app.command("check")(check)
    app.add_typer(data, name="data", help="Make, list and inspect datasets.")
    try:
        _plug("metarl.commands")
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
