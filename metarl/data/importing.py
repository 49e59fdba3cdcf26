"""Datasets brought into Minari's folder: from a file, or, only when asked, from Minari's server."""

from __future__ import annotations

import itertools
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from minari.storage import hosting
from numpy.typing import NDArray

from metarl.data.files import load_file
from metarl.data.fits import check_fits
from metarl.data.flatten import flatten, key_order
from metarl.data.minari import Episode, check_id, is_local, minari_root, publish, root, save_minari, staged
from metarl.data.transitions import Card, Transitions
from metarl.errors import DataError, DatasetUnavailable, one_line

PATIENCE = 4.0  # seconds in which the server must answer


def download(dataset_id: str, *, overwrite: bool = False) -> None:
    """Brings a dataset from Minari's server, whole or not at all.

    Raises:
        DataError: the id is no Minari id, is taken, or the server refuses it.
        DatasetUnavailable: there is no network, or no package to download with; the message gives the command.
    """
    check_id(dataset_id)
    if is_local(dataset_id) and not overwrite:
        raise DataError(f"dataset {dataset_id!r} is already at {root() / dataset_id}; overwrite it with --force.")
    command = f"metarl data import {dataset_id}"
    reason = _unreachable()
    if reason:
        raise DatasetUnavailable(
            f"dataset {dataset_id!r} cannot be downloaded ({reason}); with a network, run: {command}"
        )
    if find_spec("huggingface_hub") is None:
        raise DatasetUnavailable(
            f"downloading {dataset_id!r} needs huggingface_hub; run: pip install 'minari[hf]' && {command}"
        )
    with staged(dataset_id) as staging:
        try:
            with minari_root(staging):
                hosting.download_dataset(dataset_id)
        except Exception as error:  # whatever the network, the hub's client or Minari raises
            raise DatasetUnavailable(
                f"dataset {dataset_id!r} could not be downloaded ({one_line(error)}); try again: {command}"
            ) from error
        publish(staging / dataset_id, root() / dataset_id, dataset_id, staging, overwrite)


def import_file(name: str, dataset_id: str, env: str | None, *, overwrite: bool = False) -> Card:
    """Writes a file's rows as a Minari dataset.

    Args:
        name: path of an npz or hdf5 file with D4RL's keys.
        dataset_id: of the dataset.
        env: Gymnasium id of the environment; None takes what the file records.
        overwrite: replace a dataset of the same id.

    Returns:
        The card, as written beside the data.

    Raises:
        DataError: the file, the id, or a size or bound that the environment does not have.
    """
    check_id(dataset_id)
    transitions = load_file(name, env)
    card = transitions.card
    if card.env_spec is None:
        raise DataError(f"file {name!r} names no environment; give one with --env, such as --env Hopper-v5.")
    spec = gym.envs.registration.EnvSpec.from_json(card.env_spec)
    from metarl.envs import make_env  # late: environments import the data's flattening rule

    made = make_env(card.env_spec)
    try:
        check_fits(transitions, made, f"file {name!r}")
        episodes = _episodes(transitions, made.unwrapped.observation_space)
        return save_minari(
            dataset_id,
            episodes,
            spec,
            Card(source="file", dataset_id=dataset_id, seed=card.seed, policy=card.policy, figures=card.figures),
            description=f"{spec.id}, from the file {Path(name).name}.",
            overwrite=overwrite,
        )
    finally:
        made.close()


def _episodes(transitions: Transitions, space: gym.Space) -> Iterator[Episode]:
    starts = transitions.episode_starts.tolist()
    columns = {name: values.numpy() for name, values in transitions.layout.split(transitions.rows).items()}
    for begin, end in itertools.pairwise(starts):
        part = {name: values[begin:end] for name, values in columns.items()}
        observations = np.concatenate([part["obs"], part["next_obs"][-1:]])
        yield Episode(
            observations=_as_recorded(observations, space),
            actions=part["action"],
            rewards=part["reward"].astype(np.float64),
            terminations=part["terminated"].astype(np.bool_),
            truncations=part["truncated"].astype(np.bool_),
            behaviour=transitions.card.policy,
        )


def _as_recorded(observations: NDArray[Any], space: gym.Space) -> Any:
    """Vectors [T + 1, O] as an environment's own observations: parted again where `flatten` had joined them."""
    if not isinstance(space, gym.spaces.Dict):
        return observations.astype(space.dtype)
    keys = key_order(space.spaces)
    sizes = np.cumsum([len(flatten(space[key].sample(), ())) for key in keys])[:-1]
    parts = np.split(observations, sizes, axis=1)
    return {key: part.astype(space[key].dtype) for key, part in zip(keys, parts, strict=True)}


def _unreachable() -> str | None:
    """Why Minari's server cannot be asked, or None; answers within `PATIENCE`, whatever the network does."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return "HF_HUB_OFFLINE is set"
    url = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    answer = ["no answer"]

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PATIENCE).close()
            answer[0] = ""
        except urllib.error.HTTPError as error:  # it answers, if with a refusal
            error.close()
            answer[0] = ""
        except (OSError, ValueError) as error:
            answer[0] = one_line(error)

    # A thread, since looking a name up obeys no timeout.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE)
    return f"no network: {url}: {answer[0]}" if answer[0] else None
