"""Cuts what is shipped out of finished training runs: `python -m benchmarks.trained RUN_FOLDER...`.

Then, and without any run, it writes the table of what is shipped into docs/data.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.readme import with_table
from benchmarks.trained import cutting, policies, recipes
from metarl.errors import ConfigError, UserError
from metarl.process import settle
from metarl.training.folder import RunFolder, write_aside
from metarl.training.progress import reporter

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
ROBOTS = (recipes.Hopper, recipes.HalfCheetah, recipes.Walker2d)
LEVELS = (policies.RANDOM, "medium", "expert")


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes `<name>.safetensors` and `<name>.json` for every run, and the page's table; returns the exit status."""
    parser = argparse.ArgumentParser(description="Cut the policies of trained recipes out of training runs.")
    parser.add_argument("runs", type=Path, nargs="*", help="runs' folders, runs/<name>-<hash>/<seed>")
    parser.add_argument("--to", type=Path, default=policies.SHIPPED, help="where the files go")
    options = parser.parse_args(arguments)
    settle()
    console = Console()
    try:
        robots = [robot(run) for run in options.runs]
        for run, chosen in zip(options.runs, robots, strict=True):
            cutting.cut(run, chosen.name, options.to, reporter("auto"))
            found = policies.read(options.to, chosen.name)
            assert found is not None
            for line in lines(chosen.name, found):
                console.print(line, highlight=False, soft_wrap=True)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.to == policies.SHIPPED:
        write_aside(PAGE, with_table(PAGE.read_text(), table(), "trained"))
    return 0


def robot(run: Path) -> type[recipes.Trained]:
    """The recipe whose shipped settings a run was trained by.

    Raises:
        ConfigError: there is none.
    """
    experiment = RunFolder(run).experiment()
    for found in ROBOTS:
        if found.experiment().hash == experiment.hash:
            return found
    known = ", ".join(found.settings.name for found in ROBOTS)
    raise ConfigError(f"{run} was trained by other settings than those that are shipped ({known})")


def table() -> str:
    """What is shipped, in Markdown: mean and deviation of returns, one row for each robot that has policies."""
    head = ("recipe", "SAC's steps", "random", "medium", "its share", "expert", "episodes each", "rows up to medium")
    rows = [head, ("---",) * len(head)]
    for robot in ROBOTS:
        found = policies.read(policies.SHIPPED, robot.name)
        if found is not None:
            told = found.facts
            returns = {name: f"{told[name]['mean']:,.0f} ± {told[name]['std']:,.0f}" for name in LEVELS}
            share, medium = f"{told['medium']['share']:.0%}", told["medium"]["step"]
            each = f"{told['medium']['episodes']}"
            cells = (returns["random"], returns["medium"], share, returns["expert"], each, f"{medium:,}")
            rows.append((robot.name, f"{told['steps']:,}", *cells))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def lines(name: str, found: policies.Policies) -> list[str]:
    """The facts for people."""
    told = found.facts
    shown = [f"{name}: {len(found.nets)} policies, sha256 {found.sha256[:12]}"]
    for level in LEVELS:
        one = told[level]
        at = f" at step {one['step']:,}, {one['share']:.1%} of the way" if "step" in one else ""
        shown.append(f"  {level} {one['mean']:,.1f} ± {one['std']:,.1f} ({one['episodes']} episodes){at}")
    acts = ", ".join(f"{part['acts']} to {part['until']:,}" for part in told["replay"])
    return [*shown, f"  replay: {acts}"]


if __name__ == "__main__":
    sys.exit(main())
