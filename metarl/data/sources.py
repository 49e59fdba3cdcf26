"""One entry of the YAML `data:` block, and how it becomes transitions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from metarl.data.files import load_file
from metarl.data.gild import load_gild
from metarl.data.importing import download
from metarl.data.minari import is_local, load_minari
from metarl.data.mixing import concatenate
from metarl.data.recipes import load_recipe
from metarl.data.transitions import Transitions
from metarl.errors import DataError, DatasetUnavailable

KINDS = ("recipe", "minari", "file", "gild")
SELECTIONS = ("top", "episodes", "tuples")  # in the order in which they choose
# option -> the kinds of source that have it
_OPTIONS = {"size": ("recipe",), "seed": ("recipe",), "remote": ("minari",), "env": ("file", "gild")}


@dataclass(frozen=True)
class Part:
    """One source, and how much of it is kept: exactly one of `recipe`, `minari`, `file` and `gild`."""

    recipe: str | None = field(
        default=None,
        metadata={"help": "Data made on this machine, as <env>/<level>: pendulum/medium (`metarl data list`)."},
    )
    minari: str | None = field(
        default=None,
        metadata={"help": "A Minari dataset id; it must be on this machine already, or have `remote: true`."},
    )
    file: str | None = field(
        default=None,
        metadata={"help": "An npz or hdf5 file with D4RL's keys; its path is relative to the YAML file."},
    )
    gild: str | None = field(
        default=None,
        metadata={"help": "Demonstrations in the GILD paper's format (npz or its pickles of plain arrays); needs env."},
    )
    size: int | None = field(
        default=None, metadata={"help": "Transitions that the recipe made; the recipe's own default if not given."}
    )
    seed: int = field(default=0, metadata={"help": "The seed that the recipe was made with."})
    remote: bool = field(
        default=False, metadata={"help": "Download the Minari dataset if it is not on this machine yet."}
    )
    env: str | None = field(
        default=None, metadata={"help": "Gymnasium id of the environment that a file comes from: Hopper-v5."}
    )
    tuples: int | None = field(
        default=None, metadata={"help": "Keep only this many random transitions, drawn without replacement."}
    )
    episodes: int | None = field(
        default=None, metadata={"help": "Keep only this many random whole episodes, drawn without replacement."}
    )
    top: float | None = field(
        default=None,
        metadata={
            "help": "Keep only whole episodes, best return first, while their rows stay within this share; "
            "tuples or episodes then draws from these."
        },
    )


@dataclass(frozen=True)
class DataSource(Part):
    """Where one role's data comes from: one source as in `Part`, or several put together by `mix`."""

    mix: tuple[Part, ...] | None = field(
        default=None,
        metadata={"help": "Several sources put together, each with a selection of its own: [{...}, {...}]."},
    )

    def __post_init__(self) -> None:
        if self.mix is not None:  # as a configuration gives it: mappings in a list
            parts = tuple(Part(**part) if isinstance(part, Mapping) else part for part in self.mix)
            object.__setattr__(self, "mix", parts)


def load(source: Part, generator: torch.Generator, role: str, *, folder: Path | None = None) -> Transitions:
    """The transitions that a source names, drawn from with `generator` where it asks for a part.

    Args:
        source: the entry `data.<role>`.
        generator: draws `tuples` or `episodes`; untouched where neither is given.
        role: the entry's name, for messages.
        folder: where the YAML file lies, for files and for a recipe given as `module:Class/level`.

    Raises:
        DataError: the entry contradicts itself, or names what does not exist; the message names the key.
        DatasetUnavailable: the dataset is not on this machine; the message gives the command.
    """
    _check(source, f"data.{role}")
    mix = source.mix if isinstance(source, DataSource) else None
    if mix is None:
        transitions = _one(source, f"data.{role}", folder)
    else:
        parts = [load(part, generator, f"{role}.mix[{i}]", folder=folder) for i, part in enumerate(mix)]
        transitions = _named(f"data.{role}.mix", concatenate, parts)
    for name in SELECTIONS:
        wanted = getattr(source, name)
        if wanted is not None:
            transitions = _named(f"data.{role}.{name}", _select, transitions, name, wanted, generator)
    return transitions


def _one(source: Part, where: str, folder: Path | None) -> Transitions:
    if source.recipe is not None:
        return _named(f"{where}.recipe", load_recipe, source.recipe, source.size, source.seed, folder=folder)
    if source.file is not None:
        return _named(f"{where}.file", load_file, source.file, source.env, folder=folder)
    if source.gild is not None:
        return _named(f"{where}.gild", load_gild, source.gild, source.env, folder=folder)
    assert source.minari is not None
    if source.remote and not _named(f"{where}.minari", is_local, source.minari):
        _named(f"{where}.minari", download, source.minari)
    return _named(f"{where}.minari", load_minari, source.minari)


def _select(transitions: Transitions, name: str, wanted: Any, generator: torch.Generator) -> Transitions:
    if name == "top":
        if not transitions.card.returns:
            raise DataError(
                f"dataset {transitions.card.dataset_id!r} holds single transitions or pieces of episodes, which have "
                "no returns to choose by; give `top` to a source of whole episodes."
            )
        return transitions.top(wanted)
    draw = transitions.sample_tuples if name == "tuples" else transitions.sample_episodes
    return draw(wanted, generator)


def _named(key: str, call: Any, *arguments: Any, **options: Any) -> Any:
    """What `call` returns; its mistakes are reported under the key."""
    try:
        return call(*arguments, **options)
    except DatasetUnavailable as error:
        raise DatasetUnavailable(f"{key}: {error}") from error
    except DataError as error:
        raise DataError(f"{key}: {error}") from error


def _check(source: Part, where: str) -> None:
    mix = source.mix if isinstance(source, DataSource) else None
    kinds = [kind for kind in (*KINDS, "mix") if getattr(source, kind, None) is not None]
    if len(kinds) != 1:
        known = ", ".join(f"`{kind}`" for kind in KINDS)
        raise DataError(f"{where}: give exactly one of {known} and `mix`.")
    if mix is not None and not mix:
        raise DataError(f"{where}.mix: name at least one source.")
    defaults = {f.name: f.default for f in fields(Part)}
    for name, owners in _OPTIONS.items():
        if kinds[0] not in owners and getattr(source, name) != defaults[name]:
            mine = " and ".join(f"`{owner}`" for owner in owners)
            raise DataError(f"{where}.{name}: only {mine} can have `{name}`; leave it out beside `{kinds[0]}`.")
    if source.tuples is not None and source.episodes is not None:
        raise DataError(f"{where}: give only one of `tuples` and `episodes`; `top` can stand beside either.")
