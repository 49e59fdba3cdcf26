"""Minari datasets on this machine: read into packed transitions, written whole or not at all.

Minari keeps T + 1 observations and T actions per episode, so row t is (obs[t], action[t], reward[t], obs[t + 1]).
Nothing is downloaded here (`metarl.data.importing` does, when asked). Beside Minari's own `data` folder stand two
files of ours: `metarl_card.json` (for data that a recipe made or that was imported) and `metarl_rows.npz` (the packed
rows, used only while the content hash matches).
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
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

from metarl.data import cache
from metarl.data.flatten import flatten, observation_keys
from metarl.data.progress import track
from metarl.data.transitions import Card, Layout, Transitions, pack_rows
from metarl.errors import DISK, DataError, DatasetUnavailable, disk_reason, one_line

CARD = "metarl_card.json"
CACHE = "metarl_rows.npz"
BLOCK = 500  # episodes read from one opened file
SPARE = 2**26  # bytes that must stay free while a dataset is written: on a full disk HDF5 crashes the whole process

_ID = re.compile(r"(?:[A-Za-z0-9_-]{2,}/)*[A-Za-z0-9_-]{2,}-v[0-9]+")
_RECIPE_ID = re.compile(
    r"metarl/(?P<name>.+?)(?P<scratch>-scratch-[0-9a-f]{8})?-(?P<size>[0-9]+)-s(?P<seed>[0-9]+)-v[0-9]+"
)
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
    """Minari's own folder: MINARI_DATASETS_PATH, or its default.

    Raises:
        DataError: it is not there and cannot be made.
    """
    try:
        return get_dataset_path()
    except OSError as error:
        raise DataError(f"Minari's folder cannot be made ({error}); set MINARI_DATASETS_PATH to another.") from error


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
    rows = _read_rows(dataset, observation_keys(dataset.observation_space, f"dataset {dataset_id!r}"), dataset_id)
    columns = rows.layout.split(torch.from_numpy(rows.values))
    return {**{name: values.numpy() for name, values in columns.items()}, "episode_starts": np.array(rows.starts)}


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
        DataError: the id is no Minari id, is taken or being made, the disk refuses, or the episodes fail `pack`'s
            checks.
    """
    check_id(dataset_id)
    target = root() / dataset_id
    if target.exists() and not overwrite:
        raise DataError(f"dataset {dataset_id!r} is already at {target}; remove it, or overwrite it with --force.")
    behaviours: dict[str, list[float]] = {}
    with staged(dataset_id) as staging:
        with minari_root(staging), warnings.catch_warnings():
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
        folder = staging / dataset_id
        made = _load(folder, dataset_id).card
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
        write_card(folder / CARD, card)
        publish(folder, target, dataset_id, staging, overwrite)
    return card


@contextlib.contextmanager
def staged(dataset_id: str) -> Iterator[Path]:
    """A folder to write a dataset in, for one process at a time; it is gone afterwards, whatever happens.

    Raises:
        DataError: another process makes the same dataset, or the disk refuses.
    """
    where = root()
    lock = where / f".metarl-{dataset_id.replace('/', '-')}.lock"
    try:
        with contextlib.ExitStack() as stack:
            held = stack.enter_context(lock.open("w"))
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise DataError(f"another process is making dataset {dataset_id!r}; wait for it.") from error
            stack.callback(lock.unlink, missing_ok=True)
            staging = Path(tempfile.mkdtemp(prefix=".metarl-", dir=where))  # hidden: Minari does not look inside
            stack.callback(shutil.rmtree, staging, ignore_errors=True)
            yield staging
    except OSError as error:
        if error.errno not in (None, *DISK):  # HDF5's own carry no number
            raise
        raise DataError(
            f"dataset {dataset_id!r} cannot be written to {where} ({disk_reason(error)}); make room "
            "there, or set MINARI_DATASETS_PATH to another folder."
        ) from error


def write_card(path: Path, card: Card) -> None:
    """The card as JSON at `path`, written aside and renamed.

    Raises:
        DataError: the disk refuses; a card that is there stays.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(json.dumps(card.to_dict(), indent=2) + "\n")
        os.replace(aside, path)
    except OSError as error:
        raise DataError(f"{path} cannot be written ({disk_reason(error)}); make room there.") from error
    finally:
        if aside.exists():
            aside.unlink()


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
        trained = " --from-scratch" if recipe["scratch"] else ""
        return f"metarl data make {recipe['name']} --size {recipe['size']} --seed {recipe['seed']}{trained}"
    return f"metarl data import {dataset_id}"


def _open(folder: Path, dataset_id: str) -> minari.MinariDataset:
    try:
        return minari.MinariDataset(folder / "data")
    except (ImportError, AttributeError):  # Ctrl-C in the midst of an import; no fault of the data
        raise
    except Exception as error:  # Minari raises whatever its storage does: AssertionError, KeyError, JSON errors
        raise DataError(
            f"dataset {dataset_id!r} at {folder} cannot be opened ({one_line(error)}); remove that folder, then run: "
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
    transitions = cache.read(folder / CACHE, key, card)
    if transitions is None:
        read = _read_rows(dataset, keys, dataset_id)
        transitions = pack_rows(read.values, read.layout, np.array(read.starts), card, contiguous=True)
        cache.write(folder / CACHE, key, transitions)
    if card.sha256 and card.sha256 != transitions.card.sha256:
        raise DataError(
            f"{where} was changed after it was made (its rows do not match {folder / CARD}); run: "
            f"{_command(dataset_id)} --force"
        )
    return transitions


@dataclass
class _Rows:
    """Packed rows as they come in, one allocation for all where Minari's own count of steps is right."""

    layout: Layout
    values: NDArray[np.float32]
    starts: list[int]

    def add(self, parts: dict[str, NDArray[Any]]) -> None:
        begin, end = self.starts[-1], self.starts[-1] + len(parts["reward"])
        if end > len(self.values):
            grown = np.empty((max(end, 2 * len(self.values)), self.layout.width), np.float32)
            grown[:begin] = self.values[:begin]
            self.values = grown
        with np.errstate(over="ignore"):  # a float64 beyond float32's range becomes inf, which packing names
            for name, columns in self.layout.slices().items():
                self.values[begin:end, columns] = parts[name].reshape(end - begin, -1)
        self.starts.append(end)


def _read_rows(dataset: minari.MinariDataset, keys: tuple[str, ...], dataset_id: str) -> _Rows:
    rows: _Rows | None = None
    total = dataset.storage.total_episodes
    try:
        for episode in track(_episodes(dataset, total), total, f"reading {dataset_id}"):
            where = f"dataset {dataset_id!r}, episode {episode.id}"
            parts = _aligned(episode, keys, where)
            if len(parts["reward"]) == 0:
                _log.warning("dataset %r, episode %d has no step and is left out", dataset_id, episode.id)
                continue
            layout = Layout(parts["obs"].shape[1], parts["action"].shape[1])
            if rows is None:
                rows = _Rows(layout, np.empty((dataset.storage.total_steps, layout.width), np.float32), [0])
            if layout != rows.layout:
                raise DataError(
                    f"{where} has observations of {layout.obs_dim} and actions of {layout.action_dim} numbers, the "
                    f"episodes before it {rows.layout.obs_dim} and {rows.layout.action_dim}."
                )
            rows.add(parts)
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"dataset {dataset_id!r} cannot be read ({one_line(error)}); remove its folder, then run: "
            f"{_command(dataset_id)}"
        ) from error
    if rows is None:
        raise DataError(f"dataset {dataset_id!r} holds no transitions.")
    return _Rows(rows.layout, rows.values[: rows.starts[-1]], rows.starts)


def _episodes(dataset: minari.MinariDataset, total: int) -> Iterator[minari.EpisodeData]:
    # HDF5 keeps 50 kB for every episode that was read until its file is closed, which Minari does after a block.
    for begin in range(0, total, BLOCK):
        yield from dataset.iterate_episodes(range(begin, min(begin + BLOCK, total)))


def _aligned(episode: minari.EpisodeData, keys: tuple[str, ...], where: str) -> dict[str, NDArray[Any]]:
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
    return {
        "obs": observations[:-1],
        "action": episode.actions,
        "reward": episode.rewards,
        "next_obs": observations[1:],
        "terminated": episode.terminations,
        "truncated": episode.truncations,
    }


def _foreign_card(dataset: minari.MinariDataset, keys: tuple[str, ...]) -> Card:
    metadata = dataset.storage.metadata
    low, high = dataset.action_space.low.tolist(), dataset.action_space.high.tolist()
    figures: dict[str, Any] = {"flattened": list(keys)} if keys else {}
    if dataset.action_space.is_bounded():
        figures["action_bounds"] = [low, high]
    return Card(
        source="minari",
        dataset_id=dataset.id,
        env_spec=dataset.env_spec.to_json() if dataset.env_spec else None,
        env_id=dataset.env_spec.id if dataset.env_spec else None,
        policy=metadata.get("algorithm_name", "unknown"),
        versions={"minari": dataset.minari_version},
        figures=figures,
    )


def _read_card(folder: Path) -> Card | None:
    path = folder / CARD
    if not path.is_file():
        return None
    try:
        return Card.from_dict(json.loads(path.read_text()))
    except (ValueError, TypeError, DataError) as error:
        raise DataError(f"{path} cannot be read ({one_line(error)}); make the dataset again with --force.") from error


def _buffers(episodes: Iterable[Episode], behaviours: dict[str, list[float]]) -> Iterator[EpisodeBuffer]:
    for episode in episodes:
        if shutil.disk_usage(root()).free < SPARE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
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
def minari_root(folder: Path) -> Iterator[None]:
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


def publish(folder: Path, target: Path, dataset_id: str, staging: Path, overwrite: bool) -> None:
    """Moves a whole dataset from the staging folder to its place; the one that it replaces comes back on failure.

    Raises:
        DataError: it cannot be put there.
    """
    namespace = dataset_id.rpartition("/")[0]
    if namespace and namespace not in list_local_namespaces():
        with contextlib.suppress(ValueError):  # another process has just made it
            create_namespace(namespace)
    replaced = staging / ".replaced"
    if overwrite and target.exists():
        os.rename(target, replaced)
    try:
        os.rename(folder, target)
    except OSError as error:
        if replaced.exists():
            os.rename(replaced, target)
        raise DataError(f"dataset {dataset_id!r} cannot be put at {target} ({error.strerror}).") from error


def _content_key(folder: Path) -> str:
    """Hash of every byte of Minari's `data` folder, so that no stale row can be served."""
    hasher = hashlib.sha256(f"packing {cache.VERSION}".encode())
    for path in sorted((folder / "data").rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            hasher.update(f"\n{path.relative_to(folder).as_posix()} {content}".encode())
    return hasher.hexdigest()
