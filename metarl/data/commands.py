"""`metarl data make|list|import|export|inspect`."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from metarl import registry
from metarl.data import files, importing
from metarl.data.minari import Episode, is_local, load_minari, local_datasets, read_columns, root
from metarl.data.recipes.base import Recipe
from metarl.data.recipes.datasets import (
    GROUP,
    find,
    find_trained,
    load_any,
    make_dataset,
    recipe_dataset_id,
    siblings,
)
from metarl.data.scores import normalized, readable
from metarl.data.transitions import Transitions
from metarl.errors import ConfigError, DataError

app = typer.Typer(no_args_is_help=True)

Size = Annotated[int | None, typer.Option(help="Transitions; the recipe's default if not given.", show_default=False)]
Seed = Annotated[int, typer.Option(help="The seed of all that is random in the data.")]
Env = Annotated[
    str | None, typer.Option(help="Gymnasium id of the environment that a file comes from.", show_default=False)
]


@app.command()
def make(
    recipes: Annotated[list[str], typer.Argument(metavar="RECIPE...", help="As <name>/<level>: pendulum/medium.")],
    size: Size = None,
    seed: Seed = 0,
    force: Annotated[bool, typer.Option("--force", help="Make again what is already here.")] = False,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Train the policies here first; goes on where it was stopped.")
    ] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="With --from-scratch: a setting of that training."),
    ] = None,
    root: Annotated[Path, typer.Option(help="With --from-scratch: where run folders lie.")] = Path("runs"),
) -> None:
    """Make datasets on this machine; one that is already here is left as it is."""
    console = Console()
    if from_scratch:  # every mistake before any work
        found = {recipe: find_trained(recipe)[0] for recipe in recipes}
    elif settings:
        raise ConfigError("--set is about the training of --from-scratch; a recipe has no settings")
    else:
        found = {recipe: find(recipe)[0] for recipe in recipes}
        for recipe in recipes:
            recipe_dataset_id(recipe, size, seed)
    for recipe, acting in found.items():
        trained = _from_scratch(acting, settings or [], root) if from_scratch else None
        began = time.perf_counter()
        with _progress(console) as progress:
            total = (trained or acting).rows(recipe.rpartition("/")[2]) if size is None else size
            task = progress.add_task(recipe, total=total, returns="")
            watch = _Watch(progress, task)
            made = make_dataset(recipe, size, seed, force=force, on_episode=watch, trained=trained)
            if made.existed:
                progress.update(task, visible=False)
        console.print(
            _made_line(made.transitions, made.dataset_id, made.existed, time.perf_counter() - began), soft_wrap=True
        )


def _from_scratch(recipe: Recipe, settings: list[str], root: Path) -> Recipe:
    try:
        return recipe.from_scratch(settings, root, "auto")
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on from the last checkpoint", file=sys.stderr)
        raise typer.Exit(130) from None


@app.command("list")
def list_datasets() -> None:
    """The recipes, and the datasets that are on this machine."""
    console = Console()
    table = Table("recipe", "what acts", title="recipes")
    for name in registry.names(GROUP):
        try:
            levels = registry.resolve(GROUP, name).levels
        except ConfigError as error:  # one broken package must not hide the others
            table.add_row(escape(name), escape(str(error)))
            continue
        for level, acts in levels.items():
            table.add_row(escape(f"{name}/{level}"), escape(acts))
    console.print(table)
    datasets = local_datasets()
    if not datasets:
        console.print(f"No dataset in {root()} yet; make one: metarl data make pendulum/medium", soft_wrap=True)
        return
    table = Table(
        title=f"on this machine, in {root()}", box=box.SIMPLE, pad_edge=False, collapse_padding=True
    )  # ids fit 80 columns
    table.add_column("id", no_wrap=True)
    for heading in ("rows", "episodes", "return", "on disk"):
        table.add_column(heading, justify="right")
    for one in datasets:
        mean = "-" if one.mean_return is None else f"{one.mean_return:,.1f}"
        table.add_row(one.dataset_id, f"{one.transitions:,}", f"{one.episodes:,}", mean, _megabytes(one.bytes))
    console.print(table)


@app.command("import")
def import_dataset(
    source: Annotated[str, typer.Argument(metavar="ID_OR_FILE", help="A Minari id, or an npz or hdf5 file.")],
    name: Annotated[
        str | None, typer.Option("--as", metavar="ID", help="The Minari id of a file's rows.", show_default=False)
    ] = None,
    env: Env = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is already here.")] = False,
) -> None:
    """Download a Minari dataset, or write a file with D4RL's keys as one."""
    console = Console()
    if not _is_file(source):
        if name is not None or env is not None:
            raise DataError(f"{source!r} is no file, and --as and --env are for files; leave them out to download it.")
        if force or not is_local(source):
            importing.download(source, overwrite=force)
        name = source
    elif name is None:
        raise DataError(f"give the id that {source!r} is to have: --as <namespace>/<name>-v0")
    else:
        importing.import_file(source, name, env, overwrite=force)
    transitions = load_minari(name)
    console.print(f"{name}: {_counts(transitions)}", highlight=False, soft_wrap=True)


@app.command("export")
def export_dataset(
    source: Annotated[str, typer.Argument(metavar="ID_OR_RECIPE", help="A dataset id, or <name>/<level>.")],
    path: Annotated[Path, typer.Argument(help="An .npz, .hdf5 or .h5 file.", show_default=False)],
    size: Size = None,
    seed: Seed = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
) -> None:
    """Write a dataset as a file with D4RL's keys."""
    transitions = load_any(_dataset_id(source, size, seed))
    files.export_file(transitions, path, overwrite=force)
    Console().print(f"{path}: {_counts(transitions)}", highlight=False, soft_wrap=True)


@app.command()
def inspect(
    target: Annotated[
        str, typer.Argument(metavar="ID_OR_RECIPE", help="A dataset id, <name>/<level>, or an npz or hdf5 file.")
    ],
    size: Size = None,
    seed: Seed = 0,
    env: Env = None,
    picture: Annotated[
        Path | None, typer.Option(help="Also draw returns, observations and actions into this .png, .svg or .pdf.")
    ] = None,
) -> None:
    """Counts, ranges, histograms and the card of one dataset."""
    from metarl.data.picture import check_path, draw  # late: matplotlib is slow to import

    console = Console()
    if picture is not None:
        check_path(picture)
    file = _is_file(target)
    dataset_id = target if file else _dataset_id(target, size, seed)
    columns = {files.KEYS[k]: v for k, v in files.read_columns(target).items()} if file else read_columns(dataset_id)
    console.print(_ranges(columns, dataset_id))
    # after the ranges: loading refuses data that is not finite
    transitions = files.load_file(target, env) if file else load_any(dataset_id)
    console.print(
        f"{len(transitions):,} transitions, {transitions.episodes:,} episodes, "
        f"{int(transitions.terminated.sum()):,} terminated, {int(transitions.truncated.sum()):,} truncated",
        highlight=False,
    )
    console.print(histogram("episode returns", transitions.returns().numpy()), highlight=False)
    score = normalized(transitions.card.env_id, transitions.card.returns["mean"])
    if score.normalized is not None:
        console.print(f"mean return {score}", highlight=False)
    console.print(histogram("episode lengths", transitions.episode_lengths().numpy()), highlight=False)
    console.print("card", style="bold")
    console.print_json(json.dumps(_short(transitions.card.to_dict())))
    if picture is not None:
        levels = {level: load_any(other) for level, other in siblings(transitions.card).items()}
        draw(transitions, levels, picture)
        console.print(f"picture: {picture}", highlight=False, soft_wrap=True)


def histogram(title: str, values: NDArray[Any], bins: int = 10, width: int = 40) -> Text:
    """A histogram in lines of text; values that are all alike give one line."""
    if values.min() == values.max():
        return Text(f"{title}: all {values[0]:,.6g} ({len(values):,})")
    counts, edges = np.histogram(values.astype(np.float64), bins=bins)
    lines = [f"{title}: mean {values.mean():,.1f}, from {values.min():,.1f} to {values.max():,.1f}"]
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        bar = "█" * round(width * count / counts.max())
        lines.append(f"{low:>12,.1f} to {high:>10,.1f}  {bar or ('▏' if count else '')} {count}")
    return Text("\n".join(lines))


def _is_file(target: str) -> bool:
    return Path(target).suffix in files.SUFFIXES or Path(target).is_file()


def _dataset_id(target: str, size: int | None, seed: int) -> str:
    return target if re.search(r"-v\d+$", target) else recipe_dataset_id(target, size, seed)


def _counts(transitions: Transitions) -> str:
    return (
        f"{len(transitions):,} transitions, {transitions.episodes:,} episodes, "
        f"mean return {readable(transitions.card.returns['mean'])}"
    )


class _Rate(ProgressColumn):
    """Transitions a second so far."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.finished_speed or task.speed or 0:,.0f}/s")


class _Watch:
    """Moves a progress bar by the episodes that are made, and shows their mean return."""

    def __init__(self, progress: Progress, task: Any) -> None:
        self.progress, self.task = progress, task
        self.total, self.episodes = 0.0, 0

    def __call__(self, episode: Episode) -> None:
        self.total += float(np.sum(episode.rewards))
        self.episodes += 1
        returns = f"mean return {readable(self.total / self.episodes)}"
        self.progress.update(self.task, advance=len(episode.rewards), returns=returns)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
        _Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[returns]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _made_line(transitions: Transitions, dataset_id: str, existed: bool, seconds: float) -> str:
    facts = _counts(transitions)
    if existed:
        return f"{dataset_id} is already here ({facts}); --force makes it again"
    return f"{dataset_id}: {facts}, sha256 {transitions.card.sha256[:12]}, {seconds:.1f} s"


def _ranges(columns: dict[str, NDArray[Any]], dataset_id: str) -> Table:
    table = Table(title=dataset_id)
    table.add_column("column")
    for heading in ("min", "mean", "std", "max", "NaN", "infinite"):
        table.add_column(heading, justify="right")
    for name, values in columns.items():
        if name == "episode_starts":
            continue
        for i, column in enumerate(values.reshape(len(values), -1).T.astype(np.float64)):
            label = f"{name}[{i}]" if values.ndim == 2 else name
            finite = column[np.isfinite(column)]
            statistics = (finite.min(), finite.mean(), finite.std(), finite.max()) if len(finite) else ()
            cells = [f"{value:,.4g}" for value in statistics] or ["-"] * 4
            table.add_row(escape(label), *cells, str(np.isnan(column).sum()), str(np.isinf(column).sum()))
    return table


def _short(card: dict[str, Any]) -> dict[str, Any]:
    """The card with the environment's specification opened, so that it reads as the rest does."""
    spec = card["env_spec"]
    if spec is None:
        return card
    wanted = ("id", "max_episode_steps", "kwargs")
    return {**card, "env_spec": {key: value for key, value in json.loads(spec).items() if key in wanted}}


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
