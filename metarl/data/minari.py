"""Minari datasets on this machine: read into packed transitions, written whole or not at all.

Minari keeps T + 1 observations and T actions per episode, so row t is (obs[t], action[t], reward[t], obs[t + 1]).
Nothing is ever downloaded. Beside Minari's own `data` folder stand two files of ours: `metarl_card.json` (for
data that a recipe made) and `metarl_rows.npz` (the packed rows, used only while the content hash matches).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import threading
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from minari.data_collector import EpisodeBuffer
from minari.namespace import create_namespace, list_local_namespaces
from minari.storage import get_dataset_path
from numpy.typing import NDArray

from metarl.data.flatten import flatten, observation_keys
from metarl.data.transitions import Card, Layout, Transitions, digest, pack, summary
from metarl.errors import DataError, DatasetUnavailable

CARD = "metarl_card.json"
CACHE = "metarl_rows.npz"
CACHE_VERSION = 1  # of the rows in the cache: raise it when packing changes

_ID = re.compile(r"(?:[A-Za-z0-9_-]{2,}/)*[A-Za-z0-9_-]{2,}-v[0-9]+")
_RECIPE_ID = re.compile(r"metarl/(?P<name>.+)-(?P<size>[0-9]+)-s(?P<seed>[0-9]+)-v[0-9]+")
_log = logging.getLogger(__name__)
_root_lock = threading.Lock()


@dataclass(frozen=True)
class Episode:
    """One recorded episode, as Minari keeps it.

    Attributes:
        observations: [T + 1, O], the last one included; or a dict of such arrays.
        actions: [T, A]. rewards: float64 [T]. terminations, truncations: bool [T].
        seed: with which the environment was reset.
        behaviour: what acted.
    """

    observations: Any
    actions: NDArray[Any]
    rewards: NDArray[np.float64]
    terminations: NDArray[np.bool_]
    truncations: NDArray[np.bool_]
    seed: int | None = None
    behaviour: str = ""


@dataclass(frozen=True)
class LocalDataset:
    """One line of `metarl data list`. `mean_return` is known without reading the data only where a card lies there."""

    dataset_id: str
    transitions: int
    episodes: int
    mean_return: float | None
    bytes: int


def root() -> Path:
    """Minari's own folder: MINARI_DATASETS_PATH, or its default."""
    return get_dataset_path()


def check_id(dataset_id: str) -> None:
    """Refuse an id that Minari would half accept.

    Raises:
        DataError: the id is not `(namespace/)name-vN`.
    """
    if not _ID.fullmatch(dataset_id):
        raise DataError(
            f"{dataset_id!r} is no Minari dataset id; it must be (namespace/)name-vN, such as mujoco/hopper/expert-v0 "
            "(letters, digits, - and _, two or more in each part)."
        )


def is_local(dataset_id: str) -> bool:
    """Whether the dataset is on this machine."""
    return (root() / dataset_id / "data" / "metadata.json").is_file()


def load_minari(dataset_id: str) -> Transitions:
    """The packed transitions of a dataset on this machine.

    Dict observations of vectors are joined by `metarl.data.flatten`; the card records the order.

    Raises:
        DatasetUnavailable: it is not here; the message gives the command that brings it.
        DataError: the id, the spaces or the content cannot be used, or a recipe's data was changed after it was made.
    """
    check_id(dataset_id)
    if not is_local(dataset_id):
        raise DatasetUnavailable(f"dataset {dataset_id!r} is not on this machine; run: {_command(dataset_id)}")
    return _load(root() / dataset_id, dataset_id)


def read_columns(dataset_id: str) -> dict[str, NDArray[Any]]:
    """The columns as they stand, unchecked: what `pack` takes, for `metarl data inspect`.

    Raises:
        DatasetUnavailable, DataError: as for `load_minari`, but not for the values.
    """
    check_id(dataset_id)
    if not is_local(dataset_id):
        raise DatasetUnavailable(f"dataset {dataset_id!r} is not on this machine; run: {_command(dataset_id)}")
    dataset = _open(root() / dataset_id, dataset_id)
    return _columns(dataset, observation_keys(dataset.observation_space, f"dataset {dataset_id!r}"), dataset_id)


def save_minari(
    dataset_id: str,
    episodes: Iterable[Episode],
    env: EnvSpec,
    card: Card,
    *,
    description: str,
    requirements: tuple[str, ...] = (),
    overwrite: bool = False,
) -> Card:
    """Write episodes as a Minari dataset, under another name first, so that a crash leaves no half of one.

    Args:
        dataset_id: `(namespace/)name-vN`.
        episodes: written as they come; a generator is fine.
        env: the environment that they were recorded in.
        card: what is known; its env_spec, returns and sha256 are filled in, and its figures gain `behaviours`.
        description: one sentence, kept by Minari.
        requirements: pip-style, for making the environment again.
        overwrite: replace a dataset of the same id.

    Returns:
        The card, as written beside the data.

    Raises:
        DataError: the id is no Minari id, is taken, or the episodes fail `pack`'s checks.
    """
    check_id(dataset_id)
    target = root() / dataset_id
    if target.exists() and not overwrite:
        raise DataError(f"dataset {dataset_id!r} is already at {target}; remove it, or overwrite it with --force.")
    staging = Path(tempfile.mkdtemp(prefix=".metarl-", dir=root()))  # hidden: Minari does not look inside
    behaviours: dict[str, list[float]] = {}
    try:
        with _minari_root(staging), warnings.catch_warnings():
            # Data made here has no author to write to and no page to link to.
            warnings.filterwarnings("ignore", message="`(code_permalink|author_email)` is set to None")
            minari.create_dataset_from_buffers(
                dataset_id,
                _buffers(episodes, behaviours),
                env=env,
                eval_env=env,
                algorithm_name=card.policy,
                author="metarl",
                description=description,
                requirements=list(requirements),
            )
        staged = staging / dataset_id
        made = _load(staged, dataset_id).card
        mixture = {k: {"episodes": len(v), "mean_return": float(np.mean(v))} for k, v in behaviours.items()}
        card = dataclasses.replace(
            card,
            dataset_id=dataset_id,
            env_spec=env.to_json(),
            env_id=env.id,
            returns=made.returns,
            sha256=made.sha256,
            figures={"behaviours": mixture, **made.figures, **card.figures},
        )
        write_card(staged / CARD, card)
        _publish(staged, target, dataset_id, staging, overwrite)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return card


def write_card(path: Path, card: Card) -> None:
    """The card as JSON at `path`, written aside and renamed."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(json.dumps(card.to_dict(), indent=2) + "\n")
    os.replace(aside, path)


def local_datasets() -> list[LocalDataset]:
    """Every dataset below Minari's folder, sorted by id; folders that Minari could not read are left out."""
    found = []
    for path in sorted(root().glob("**/data/metadata.json")):
        folder = path.parent.parent
        relative = folder.relative_to(root())
        if any(part.startswith(".") for part in relative.parts):
            continue
        try:
            metadata = json.loads(path.read_text())
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            found.append(
                LocalDataset(
                    relative.as_posix(), metadata["total_steps"], metadata["total_episodes"], _mean_return(folder), size
                )
            )
        except (OSError, ValueError, KeyError, DataError) as error:
            _log.warning("%s is left out: %s", path, error)
    return found


def _mean_return(folder: Path) -> float | None:
    card = _read_card(folder)
    return card.returns.get("mean") if card else None


def _command(dataset_id: str) -> str:
    recipe = _RECIPE_ID.fullmatch(dataset_id)
    if recipe:
        return f"metarl data make {recipe['name']} --size {recipe['size']} --seed {recipe['seed']}"
    return f"minari download {dataset_id}"


def _open(folder: Path, dataset_id: str) -> minari.MinariDataset:
    try:
        return minari.MinariDataset(folder / "data")
    except Exception as error:  # Minari raises whatever its storage does: AssertionError, KeyError, JSON errors
        raise DataError(
            f"dataset {dataset_id!r} at {folder} cannot be opened ({_line(error)}); remove that folder, then run: "
            f"{_command(dataset_id)}"
        ) from error


def _load(folder: Path, dataset_id: str) -> Transitions:
    dataset = _open(folder, dataset_id)
    where = f"dataset {dataset_id!r}"
    keys = observation_keys(dataset.observation_space, where)
    if not isinstance(dataset.action_space, gym.spaces.Box) or len(dataset.action_space.shape) != 1:
        raise DataError(
            f"{where}: actions are {dataset.action_space}; only continuous vectors (1-d Box) can be packed."
        )
    card = _read_card(folder) or _foreign_card(dataset, keys)
    key = _content_key(folder)
    transitions = _read_cache(folder / CACHE, key, card)
    if transitions is None:
        transitions = pack(**_columns(dataset, keys, dataset_id), card=card, contiguous=True)
        _write_cache(folder / CACHE, key, transitions)
    if card.sha256 and card.sha256 != transitions.card.sha256:
        raise DataError(
            f"{where} was changed after it was made (its rows do not match {folder / CARD}); run: "
            f"{_command(dataset_id)} --force"
        )
    return transitions


def _columns(dataset: minari.MinariDataset, keys: tuple[str, ...], dataset_id: str) -> dict[str, NDArray[Any]]:
    parts: dict[str, list[NDArray[np.float32]]] = {}
    lengths = []
    try:
        for episode in dataset.iterate_episodes(range(dataset.storage.total_episodes)):
            rows = _aligned(episode, keys, f"dataset {dataset_id!r}, episode {episode.id}")
            if len(rows["reward"]) == 0:
                _log.warning("dataset %r, episode %d has no step and is left out", dataset_id, episode.id)
                continue
            lengths.append(len(rows["reward"]))
            for name, values in rows.items():
                parts.setdefault(name, []).append(values)
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"dataset {dataset_id!r} cannot be read ({_line(error)}); remove its folder, then run: "
            f"{_command(dataset_id)}"
        ) from error
    if not lengths:
        raise DataError(f"dataset {dataset_id!r} holds no transitions.")
    columns: dict[str, NDArray[Any]] = {name: np.concatenate(values) for name, values in parts.items()}
    columns["episode_starts"] = np.concatenate([[0], np.cumsum(lengths)])
    return columns


def _aligned(episode: minari.EpisodeData, keys: tuple[str, ...], where: str) -> dict[str, NDArray[np.float32]]:
    observations = flatten(episode.observations, keys)
    steps = len(episode.rewards)
    lengths = {
        "observations": (len(observations), steps + 1),
        "actions": (len(episode.actions), steps),
        "terminations": (len(episode.terminations), steps),
        "truncations": (len(episode.truncations), steps),
    }
    for name, (found, needed) in lengths.items():
        if found != needed:
            raise DataError(f"{where} has {steps} rewards and {found} {name}; it must have {needed}.")
    columns = {
        "obs": observations[:-1],
        "action": episode.actions,
        "reward": episode.rewards,
        "next_obs": observations[1:],
        "terminated": episode.terminations,
        "truncated": episode.truncations,
    }
    with np.errstate(over="ignore"):  # pack reports what overflows float32
        return {name: np.asarray(values).astype(np.float32) for name, values in columns.items()}


def _foreign_card(dataset: minari.MinariDataset, keys: tuple[str, ...]) -> Card:
    metadata = dataset.storage.metadata
    return Card(
        source="minari",
        dataset_id=dataset.id,
        env_spec=dataset.env_spec.to_json() if dataset.env_spec else None,
        env_id=dataset.env_spec.id if dataset.env_spec else None,
        policy=metadata.get("algorithm_name", "unknown"),
        versions={"minari": dataset.minari_version},
        figures={"flattened": list(keys)} if keys else {},
    )


def _read_card(folder: Path) -> Card | None:
    path = folder / CARD
    if not path.is_file():
        return None
    try:
        return Card.from_dict(json.loads(path.read_text()))
    except (ValueError, TypeError, DataError) as error:
        raise DataError(f"{path} cannot be read ({_line(error)}); make the dataset again with --force.") from error


def _buffers(episodes: Iterable[Episode], behaviours: dict[str, list[float]]) -> Iterator[EpisodeBuffer]:
    for episode in episodes:
        behaviours.setdefault(episode.behaviour or "unnamed", []).append(float(np.sum(episode.rewards)))
        yield EpisodeBuffer(
            seed=episode.seed,
            observations=episode.observations,
            actions=episode.actions,
            rewards=episode.rewards,
            terminations=episode.terminations,
            truncations=episode.truncations,
            infos={},  # with None, Minari cannot print an episode
        )


@contextlib.contextmanager
def _minari_root(folder: Path) -> Iterator[None]:
    # Minari has no argument for where to write, only this variable.
    with _root_lock:
        before = os.environ.get("MINARI_DATASETS_PATH")
        os.environ["MINARI_DATASETS_PATH"] = str(folder)
        try:
            yield
        finally:
            if before is None:
                del os.environ["MINARI_DATASETS_PATH"]
            else:
                os.environ["MINARI_DATASETS_PATH"] = before


def _publish(staged: Path, target: Path, dataset_id: str, staging: Path, overwrite: bool) -> None:
    namespace = dataset_id.rpartition("/")[0]
    if namespace and namespace not in list_local_namespaces():
        with contextlib.suppress(ValueError):  # another process has just made it
            create_namespace(namespace)
    replaced = staging / ".replaced"
    if overwrite and target.exists():
        os.rename(target, replaced)
    try:
        os.rename(staged, target)
    except OSError as error:
        if replaced.exists():
            os.rename(replaced, target)
        raise DataError(f"dataset {dataset_id!r} cannot be put at {target} ({error.strerror}).") from error


def _content_key(folder: Path) -> str:
    """Hash of every byte of Minari's `data` folder, so that no stale row can be served."""
    hasher = hashlib.sha256(f"packing {CACHE_VERSION}".encode())
    for path in sorted((folder / "data").rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            hasher.update(f"\n{path.relative_to(folder).as_posix()} {content}".encode())
    return hasher.hexdigest()


def _read_cache(path: Path, key: str, card: Card) -> Transitions | None:
    if not path.is_file():
        return None
    try:
        # opened here: np.load leaves its own file open where the zip is damaged
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            if str(stored["key"]) != key:
                _log.info("%s is of other content and is rebuilt", path)
                return None
            rows, starts = torch.from_numpy(stored["rows"]), torch.from_numpy(stored["episode_starts"])
            layout = Layout(*stored["dims"].tolist())
        transitions = Transitions(rows, layout, starts, card)
        card = dataclasses.replace(card, returns=summary(transitions.returns()), sha256=digest(rows, starts))
    except Exception as error:  # a damaged zip raises nearly anything
        _log.warning("%s is damaged (%s) and is rebuilt", path, _line(error))
        return None
    return dataclasses.replace(transitions, card=card)


def _write_cache(path: Path, key: str, transitions: Transitions) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("wb") as file:
            np.savez(
                file,
                key=np.array(key),
                rows=transitions.rows.numpy(),
                episode_starts=transitions.episode_starts.numpy(),
                dims=np.array([transitions.layout.obs_dim, transitions.layout.action_dim]),
            )
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        _log.warning("%s cannot be written (%s); the dataset is read from Minari each time", path, error)


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
