"""`metarl solve`: a problem with known answers, from data to verdict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from metarl.component import component, first_line
from metarl.errors import ConfigError

if TYPE_CHECKING:
    from metarl.problems import Problem

console = Console()


def solve(
    name: Annotated[str, typer.Argument(help="A registered problem, or module:Class.", show_default=False)],
    settings: Annotated[
        list[str] | None, typer.Argument(help="Settings as key=value, such as steps=200.", show_default=False)
    ] = None,
    seed: Annotated[
        list[int] | None,
        typer.Option(help="May be given again; by default those for which the answers are known.", show_default=False),
    ] = None,
    compiled: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="By default as the problem says.", show_default=False)
    ] = None,
    progress: Annotated[str, typer.Option(help="auto, bar, lines (JSON) or none.")] = "auto",
) -> None:
    """Solve a bilevel problem and compare its figures with the known answers; exit code 1 if one is missed."""
    from benchmarks.verdicts import judge, show
    from metarl import problems
    from metarl.process import settle
    from metarl.training.progress import reporter

    settle()
    if progress not in ("auto", "bar", "lines", "none"):
        raise ConfigError(f"--progress must be auto, bar, lines or none, not {progress!r}")
    if any(s < 0 for s in seed or ()):
        raise ConfigError("--seed must be 0 or more")
    problem = build(name, settings or ())
    seeds = tuple(seed or problem.seeds)
    solutions = [
        problems.solve(problem, s, compiled=compiled, progress=reporter(progress))  # type: ignore[arg-type]
        for s in seeds
    ]
    verdicts = judge(problem, solutions)
    show(verdicts, console)
    seconds = sum(s.seconds for s in solutions)
    console.print(
        f"{name}, seed {', '.join(map(str, seeds))}: {problem.steps:,} steps each, {seconds:.1f} s", highlight=False
    )
    if any(v.holds is False for v in verdicts):
        raise typer.Exit(1)


def build(name: str, settings: Sequence[str] = ()) -> Problem:
    """The problem of a name with `key=value` settings.

    Raises:
        ConfigError: an unknown name or setting, or something that is no problem.
    """
    for text in settings:
        if "=" not in text[1:]:
            raise ConfigError(f"argument {text!r} is not of the form key=value")
    try:
        given: Any = OmegaConf.to_container(OmegaConf.from_dotlist(list(settings)), resolve=True)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{' '.join(settings)}: {first_line(error)}") from error
    problem, _ = component("metarl.problems", {**given, "name": name}, f"metarl solve {name}", "problem")
    from metarl.problems import Problem

    if not isinstance(problem, Problem):
        raise ConfigError(f"{name} is no problem; derive it from metarl.problems.Problem")
    return problem
