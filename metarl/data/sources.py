"""One entry of the YAML `data:` block, and how it becomes transitions."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from metarl.data.minari import load_minari
from metarl.data.recipes import load_recipe
from metarl.data.transitions import Transitions
from metarl.errors import DataError, DatasetUnavailable


@dataclass(frozen=True)
class DataSource:
    """Where one role's data comes from: exactly one of `recipe` and `minari`."""

    recipe: str | None = field(
        default=None,
        metadata={"help": "Data made on this machine, as <env>/<level>: pendulum/medium (`metarl data list`)."},
    )
    minari: str | None = field(
        default=None,
        metadata={"help": "A Minari dataset id; it must be on this machine already (nothing is downloaded)."},
    )
    size: int | None = field(
        default=None, metadata={"help": "Transitions that the recipe made; the recipe's own default if not given."}
    )
    seed: int = field(default=0, metadata={"help": "The seed that the recipe was made with."})
    tuples: int | None = field(
        default=None, metadata={"help": "Keep only this many random transitions, drawn without replacement."}
    )
    episodes: int | None = field(
        default=None, metadata={"help": "Keep only this many random whole episodes, drawn without replacement."}
    )


def load(source: DataSource, generator: torch.Generator, role: str, *, folder: Path | None = None) -> Transitions:
    """The transitions that a source names, drawn from with `generator` where it asks for a part.

    Args:
        source: the entry `data.<role>`.
        generator: draws `tuples` or `episodes`; untouched where neither is given.
        role: the entry's name, for messages.
        folder: where the YAML file lies, for a recipe given as `module:Class/level`.

    Raises:
        DataError: the entry contradicts itself, or names what does not exist; the message names the key.
        DatasetUnavailable: the dataset is not on this machine; the message gives the command.
    """
    _check(source, role)
    key = f"data.{role}.{'recipe' if source.recipe is not None else 'minari'}"
    try:
        if source.recipe is not None:
            transitions = load_recipe(source.recipe, source.size, source.seed, folder=folder)
        else:
            assert source.minari is not None
            transitions = load_minari(source.minari)
    except DatasetUnavailable as error:
        raise DatasetUnavailable(f"{key}: {error}") from error
    except DataError as error:
        raise DataError(f"{key}: {error}") from error
    for name, draw in (("tuples", transitions.sample_tuples), ("episodes", transitions.sample_episodes)):
        n = getattr(source, name)
        if n is not None:
            try:
                return draw(n, generator)
            except DataError as error:
                raise DataError(f"data.{role}.{name}: {error}") from error
    return transitions


def _check(source: DataSource, role: str) -> None:
    if (source.recipe is None) == (source.minari is None):
        raise DataError(f"data.{role}: give exactly one of `recipe` and `minari`.")
    if source.minari is not None:
        for name, default in (("size", None), ("seed", 0)):
            if getattr(source, name) != default:
                raise DataError(f"data.{role}.{name}: only a recipe has a {name}; leave it out beside `minari`.")
    if source.tuples is not None and source.episodes is not None:
        raise DataError(f"data.{role}: give `tuples` or `episodes`, not both.")
