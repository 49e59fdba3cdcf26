"""Recipes by name, and the datasets that they have made: `pendulum/medium` to metarl/pendulum/medium-20000-s0-v1."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from metarl import registry
from metarl.data.minari import CARD, Episode, is_local, load_minari, root, save_minari, write_card
from metarl.data.recipes.base import Recipe
from metarl.data.transitions import Card, Transitions
from metarl.envs.instantiate import instantiate
from metarl.errors import ConfigError, DataError, DatasetUnavailable, nearest

GROUP = "metarl.recipes"


@dataclass(frozen=True)
class Made:
    """What `make_dataset` did: the id, its transitions, and whether it had been there before."""

    dataset_id: str
    transitions: Transitions
    existed: bool


def find(recipe: str, folder: Path | None = None) -> tuple[Recipe, str]:
    """The recipe and the level of `<name>/<level>` (`module:Class/level` for one that is not registered).

    Raises:
        DataError: no such recipe or level; the message suggests the nearest.
    """
    found, level = _named(recipe, folder)
    if level not in found.levels:
        raise DataError(f"recipe {recipe.rpartition('/')[0]!r} has no level {level!r}.{nearest(level, found.levels)}")
    return found, level


def find_trained(recipe: str, folder: Path | None = None) -> tuple[Recipe, str]:
    """As `find`, for a level whose policy can be trained again, whether or not one is shipped.

    Raises:
        DataError: it is none.
    """
    found, level = _named(recipe, folder)
    if level in found.trained:
        return found, level
    if level in found.levels or not found.trained:
        raise DataError(f"nothing in {recipe} is trained; leave --from-scratch out.")
    raise DataError(f"recipe {found.name!r} trains no level {level!r}.{nearest(level, found.trained)}")


def _named(recipe: str, folder: Path | None) -> tuple[Recipe, str]:
    name, _, level = recipe.rpartition("/")
    if not name:
        raise DataError(f"{recipe!r} is no recipe; write <name>/<level>.{nearest(recipe, available())}")
    try:
        found: Recipe = registry.resolve(GROUP, name, folder=folder)()
    except ConfigError as error:
        raise DataError(str(error)) from error
    return found, level


def available() -> list[str]:
    """Every `<name>/<level>` that is registered."""
    return [f"{name}/{level}" for name in registry.names(GROUP) for level in registry.resolve(GROUP, name).levels]


def recipe_dataset_id(recipe: str, size: int | None = None, seed: int = 0, *, folder: Path | None = None) -> str:
    """The Minari id of what a recipe makes: metarl/<name>/<level>-<size>-s<seed>-v<version>.

    Raises:
        DataError: no such recipe, or a size or seed that it cannot have.
    """
    found, level = find(recipe, folder)
    return _dataset_id(found, level, _size(found, level, size), _seed(seed))


def load_recipe(recipe: str, size: int | None = None, seed: int = 0, *, folder: Path | None = None) -> Transitions:
    """What the recipe made earlier; its card's acceptance figures are those of this installation.

    Raises:
        DatasetUnavailable: it is not on this machine; the message gives the command.
        DataError: no such recipe, or its data was changed.
    """
    found, level = find(recipe, folder)
    size = _size(found, level, size)
    dataset_id = _dataset_id(found, level, size, _seed(seed))
    if not is_local(dataset_id):
        raise DatasetUnavailable(
            f"{dataset_id!r} is not on this machine; run: metarl data make {recipe} --size {size} --seed {seed}"
        )
    return _judged(load_minari(dataset_id), found, level)


def origin(card: Card) -> tuple[Recipe, str] | None:
    """The recipe and level that made a dataset, where that recipe is registered."""
    recipe = card.figures.get("recipe")
    return find(recipe) if recipe in available() else None


def load_any(dataset_id: str) -> Transitions:
    """A dataset by its id; a recipe's card has its acceptance figures, as from `load_recipe`."""
    transitions = load_minari(dataset_id)
    made = origin(transitions.card)
    return _judged(transitions, *made) if made else transitions


def siblings(card: Card) -> dict[str, str]:
    """level -> dataset id of what the same recipe, size and seed made on this machine, this one included."""
    made = origin(card)
    if made is None:
        return {}
    recipe, level = made
    before, after = card.dataset_id.rsplit(f"/{level}-", 1)
    ids = {other: f"{before}/{other}-{after}" for other in recipe.levels}
    return {other: dataset_id for other, dataset_id in ids.items() if is_local(dataset_id)}


def make_dataset(
    recipe: str,
    size: int | None = None,
    seed: int = 0,
    *,
    force: bool = False,
    on_episode: Callable[[Episode], None] = lambda episode: None,
    folder: Path | None = None,
    trained: Recipe | None = None,
) -> Made:
    """Make a recipe's dataset, or leave the one that is there.

    Args:
        recipe: `<name>/<level>`.
        size: transitions; the recipe's default if None.
        seed: of all that is random in it, from 0.
        force: replace one that is there.
        on_episode: called after every episode, for progress.
        folder: where a `module:Class` recipe's file lies.
        trained: acts in the recipe's place: what its `from_scratch` gave.

    Raises:
        DataError: no such recipe, or a size or seed that it cannot have.
        ConfigError: its environment cannot be made here.
    """
    found, level = find(recipe, folder) if trained is None else (trained, recipe.rpartition("/")[2])
    size = _size(found, level, size)
    dataset_id = _dataset_id(found, level, size, _seed(seed))
    existed = is_local(dataset_id)
    if not existed or force:
        instantiate(found.env_spec()).close()  # what is missing for it is said before any work
        card = Card(
            source="recipe",
            dataset_id=dataset_id,
            seed=seed,
            policy=found.levels[level],
            versions=_versions(found),
            figures={"recipe": f"{found.name}/{level}", "recipe_version": found.version, **found.facts(level)},
        )
        save_minari(
            dataset_id,
            _watched(found.make(level, size, seed), on_episode),
            found.env_spec(),
            card,
            description=f"{found.env_id}, made by the metarl recipe {found.name}/{level}: {found.levels[level]}.",
            requirements=found.requirements,
            overwrite=force,
        )
    transitions = _judged(load_minari(dataset_id), found, level)
    if not existed or force:
        write_card(root() / dataset_id / CARD, transitions.card)  # with the acceptance figures, which need the sha256
    return Made(dataset_id, transitions, existed and not force)


def _judged(transitions: Transitions, recipe: Recipe, level: str) -> Transitions:
    if level not in recipe.judged:
        return transitions
    figures = {**transitions.card.figures, "acceptance": acceptance(recipe, level, transitions.card.sha256)}
    return dataclasses.replace(transitions, card=dataclasses.replace(transitions.card, figures=figures))


def acceptance(recipe: Recipe, level: str, sha256: str) -> dict[str, Any]:
    """The committed figures of a judged level, and whether they were measured on these very rows."""
    measured = json.loads(files(__package__).joinpath("acceptance.json").read_text()).get(f"{recipe.name}/{level}")
    if measured is None:
        return {"status": "not measured"}
    on = f"size {measured['size']}, seed {measured['seed']}, version {measured['version']}"
    same = measured["sha256"] == sha256
    status = (
        f"measured on these rows ({on})" if same else f"measured on other rows ({on}, sha256 {measured['sha256'][:12]})"
    )
    return {"status": status, **measured["figures"]}


def _dataset_id(recipe: Recipe, level: str, size: int, seed: int) -> str:
    variant = f"-{recipe.variant}" if recipe.variant else ""
    return f"metarl/{recipe.name}/{level}{variant}-{size}-s{seed}-v{recipe.version}"


def _size(recipe: Recipe, level: str, size: int | None) -> int:
    size = recipe.rows(level) if size is None else size
    recipe.check_size(size)
    return size


def _seed(seed: int) -> int:
    if seed < 0:
        raise DataError(f"seed {seed}: a recipe's seed is 0 or more.")
    return seed


def _watched(episodes: Iterator[Episode], on_episode: Callable[[Episode], None]) -> Iterator[Episode]:
    for episode in episodes:
        yield episode
        on_episode(episode)


def _versions(recipe: Recipe) -> dict[str, str]:
    from metarl import __version__  # late: metarl's own __init__ may still be running at import

    packages = ("gymnasium", "minari", "numpy", *recipe.packages)
    return {"metarl": __version__, "python": platform.python_version(), **{name: version(name) for name in packages}}
