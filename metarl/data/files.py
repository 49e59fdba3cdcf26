"""npz and hdf5 files with D4RL's keys, read into packed transitions and written from them; nothing that unpickles.

A row ends its episode where `terminals` (the task ended) or `timeouts` (the recording was cut) is set. Without
`next_observations` the observation after a cut is not in the file, so the last step before a cut is left out, as
D4RL's own reader does; a terminated step is never left out, so a file that has some must have `next_observations`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
from gymnasium.error import Error as GymnasiumError
from numpy.typing import NDArray

from metarl.data import cache
from metarl.data.transitions import Card, Layout, Transitions, pack_rows
from metarl.errors import DataError, DatasetUnavailable, disk_reason, one_line

KEYS = {
    "observations": "obs",
    "actions": "action",
    "rewards": "reward",
    "next_observations": "next_obs",
    "terminals": "terminated",
    "timeouts": "truncated",
}
REQUIRED = ("observations", "actions", "rewards", "terminals")
D4RL = "~/.d4rl/datasets"  # where D4RL's own package keeps what it downloads
D4RL_URL = "http://rail.eecs.berkeley.edu/datasets/offline_rl/gym_mujoco_v2"
SUFFIXES = (".npz", ".hdf5", ".h5")
ABOUT = "metarl"  # the key of a JSON text about where an exported file's rows come from; no other program needs it

_log = logging.getLogger(__name__)


def load_file(name: str, env: str | None = None, *, folder: Path | None = None) -> Transitions:
    """The packed transitions of a file.

    Args:
        name: its path, relative to `folder`, or from `~`; the card's dataset_id.
        env: Gymnasium id of the environment; None takes the one that an export of metarl records, if any.
        folder: where the YAML file lies.

    Raises:
        DatasetUnavailable: there is no such file.
        DataError: it cannot be read whole, lacks a key, or its rows fail a check; the message names the key.
    """
    path = find(name, folder)
    key = _content_key(path) if _kind(path, name) == "hdf5" else ""
    beside = path.with_name(f".{path.name}.metarl_rows.npz")
    about = _about(path, name)
    card = _card(name, about, env)
    transitions = cache.read(beside, key, card) if key else None
    if transitions is None:
        rows, layout, starts, left_out = _pack(read_columns(name, folder=folder), name)
        transitions = pack_rows(rows, layout, starts, card)
        _check_ends(transitions, name, left_out)
        if key and not left_out:  # D4RL's hdf5 is compressed; an npz is read as fast as its cache would be
            cache.write(beside, key, transitions)
        if left_out:
            said = f"{left_out} last steps before a cut are left out: the file has no next_observations"
            _log.warning("%s: %s", name, said)
            figures = {**transitions.card.figures, "left_out": said}
            transitions = dataclasses.replace(transitions, card=dataclasses.replace(transitions.card, figures=figures))
    if about.get("sha256", transitions.card.sha256) != transitions.card.sha256:
        raise DataError(f"file {name!r} was changed after metarl exported it (its rows do not match their sha256).")
    return transitions


def read_columns(name: str, *, folder: Path | None = None) -> dict[str, NDArray[Any]]:
    """The arrays that D4RL's keys hold, as they stand, for `metarl data inspect`; lengths are checked, values not.

    Raises:
        DatasetUnavailable, DataError: as for `load_file`, but not for the values.
    """
    path = find(name, folder)
    with _opened(path, name) as stored:
        columns = {key: _array(stored, key, name) for key in KEYS if key in stored}
        if missing := [key for key in REQUIRED if key not in columns]:
            held = ", ".join(sorted(stored)) or "nothing"
            raise DataError(f"file {name!r} lacks {', '.join(missing)}; it holds {held}.")
    if "timeouts" not in columns and "next_observations" not in columns:
        raise DataError(
            f"file {name!r} has neither timeouts nor next_observations, so where its episodes are cut is unknown; "
            "add timeouts."
        )
    _check_shapes(columns, name)
    return columns


def export_file(transitions: Transitions, path: Path, *, overwrite: bool = False) -> None:
    """Writes every row with D4RL's keys, aside and then renamed; `.npz`, `.hdf5` or `.h5`.

    Raises:
        DataError: another suffix, a file that is there already, or one that cannot be written.
    """
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path}: the name must end in {', '.join(SUFFIXES)}.")
    if path.exists() and not overwrite:
        raise DataError(f"{path} is there already; overwrite it with --force.")
    columns: dict[str, Any] = {key: getattr(transitions, own).numpy() for key, own in KEYS.items()}
    columns |= {key: columns[key].astype(np.bool_) for key in ("terminals", "timeouts")}
    about = json.dumps(_describe(transitions.card))
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if path.suffix == ".npz":
            with aside.open("wb") as file:
                np.savez(file, allow_pickle=False, **{**columns, ABOUT: np.array(about)})
        else:
            memory = io.BytesIO()  # on a full disk HDF5 crashes the whole process
            with h5py.File(memory, "w") as hdf5:
                hdf5.attrs[ABOUT] = about
                for key, values in columns.items():
                    hdf5.create_dataset(key, data=values)
            aside.write_bytes(memory.getbuffer())
        os.replace(aside, path)
    except OSError as error:
        raise DataError(
            f"{path} cannot be written ({disk_reason(error)}); make room there, or choose another folder."
        ) from error
    finally:
        if aside.exists():
            aside.unlink()


def find(name: str, folder: Path | None = None) -> Path:
    """The path of a file that is there.

    Raises:
        DatasetUnavailable: there is none.
    """
    named = Path(name).expanduser()
    path = (folder or Path()) / named
    if not path.is_file():
        where = f" in {folder}, to which paths are relative" if folder and not named.is_absolute() else ""
        d4rl = f" D4RL publishes it; run: wget -P {D4RL} {D4RL_URL}/{named.name}" if name.startswith(D4RL) else ""
        raise DatasetUnavailable(f"there is no file {name!r}{where}.{d4rl}")
    return path


def _kind(path: Path, name: str) -> str:
    with path.open("rb") as file:
        start = file.read(8)
    if not start:
        raise DataError(f"file {name!r} is empty.")
    if start.startswith(b"PK\x03\x04"):
        return "npz"
    if h5py.is_hdf5(path):
        return "hdf5"
    if (start[:1] == b"\x80" and start[1] <= 5) or path.suffix in (".pkl", ".pickle", ".pt", ".pth"):
        raise DataError(
            f"file {name!r} is a pickle, which can run code when it is read; write npz or hdf5 instead "
            "(only a `gild:` source reads pickles, of plain arrays)."
        )
    raise DataError(f"file {name!r} is neither npz nor hdf5, or its beginning is damaged.")


@contextmanager
def _opened(path: Path, name: str) -> Iterator[Mapping[str, Any]]:
    kind = _kind(path, name)
    try:
        if kind == "npz":
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                yield stored
        else:
            with h5py.File(path, "r") as hdf5:
                yield hdf5
    except DataError:
        raise
    except Exception as error:  # a damaged zip or hdf5 raises nearly anything
        raise DataError(f"file {name!r} cannot be read as {kind}, it is damaged ({one_line(error)}).") from error


def _array(stored: Mapping[str, Any], key: str, name: str) -> NDArray[Any]:
    if isinstance(stored, h5py.File):
        link, node = stored.get(key, getlink=True), stored[key]
        if not isinstance(node, h5py.Dataset):
            raise DataError(f"file {name!r}: {key} is a group, not an array.")
        if not isinstance(link, h5py.HardLink) or node.external or node.is_virtual:
            raise DataError(f"file {name!r}: {key} points into another file; write its values into this one.")
        kind = node.dtype.kind
    else:
        try:
            node = stored[key]
        except ValueError as error:
            if "allow_pickle" not in str(error):
                raise
            kind = "O"
        else:
            kind = node.dtype.kind
    if kind not in "fiub":
        what = "Python objects, which are pickled" if kind == "O" else f"of type {node.dtype}"
        raise DataError(f"file {name!r}: {key} is {what}; it must be a plain array of numbers.")
    return node[()]


def _check_shapes(columns: Mapping[str, NDArray[Any]], name: str) -> None:
    obs = columns["observations"]
    n = len(obs) if obs.ndim else 0
    if n == 0:
        raise DataError(f"file {name!r} is empty: observations has shape {obs.shape}.")
    for key, values in columns.items():
        vectors = key in ("observations", "actions", "next_observations")
        wanted = f"[{n}, n]" if vectors else f"[{n}]"
        if values.ndim != (2 if vectors else 1) or len(values) != n or 0 in values.shape:
            raise DataError(f"file {name!r}: {key} has shape {list(values.shape)}; it must be {wanted}, like the rest.")
    after = columns.get("next_observations", obs)
    if after.shape != obs.shape:
        raise DataError(
            f"file {name!r}: next_observations has shape {list(after.shape)}, observations {list(obs.shape)}."
        )


def _pack(columns: Mapping[str, NDArray[Any]], name: str) -> tuple[NDArray[np.float32], Layout, NDArray[np.int64], int]:
    """Rows, their layout, where episodes start, and how many steps were left out."""
    flags = {key: _flag(columns, key, name) for key in ("terminals", "timeouts")}
    ends = flags["terminals"] | flags["timeouts"]
    if not ends.any():
        raise DataError(
            f"file {name!r}: no row of terminals or timeouts is set, so where its episodes end is unknown; "
            "set timeouts in every episode's last row."
        )
    ends[-1] = True  # a recording that stops is cut
    kept = np.ones(len(ends), np.bool_)
    obs = columns["observations"]
    if "next_observations" in columns:
        after = columns["next_observations"]
    else:
        if flags["terminals"].any():
            raise DataError(
                f"file {name!r}: {flags['terminals'].sum()} rows are terminals (the first is row "
                f"{np.flatnonzero(flags['terminals'])[0]}) and their next observations are not in it; "
                "add next_observations."
            )
        kept, after = ~ends, np.roll(obs, -1, axis=0)
        ends = np.roll(ends, -1) & kept  # the step before the one that is left out
        if not kept.any():
            raise DataError(f"file {name!r} holds no transitions: without next_observations an episode needs two rows.")
    layout = Layout(obs.shape[1], columns["actions"].shape[1])
    rows = np.empty((int(kept.sum()), layout.width), np.float32)
    parts = {
        "obs": obs,
        "action": columns["actions"],
        "reward": columns["rewards"],
        "next_obs": after,
        "terminated": flags["terminals"],
        "truncated": flags["timeouts"],
    }
    whole = kept.all()
    with np.errstate(over="ignore"):  # a float64 beyond float32's range becomes inf, which packing names
        for own, place in layout.slices().items():
            values = parts[own] if whole else parts[own][kept]
            rows[:, place] = values.reshape(len(rows), -1)
    starts = np.concatenate([[0], np.flatnonzero(ends[kept]) + 1])
    return rows, layout, starts, int((~kept).sum())


def _flag(columns: Mapping[str, NDArray[Any]], key: str, name: str) -> NDArray[np.bool_]:
    values = columns.get(key)
    if values is None:
        return np.zeros(len(columns["observations"]), np.bool_)
    wrong = np.flatnonzero((values != 0) & (values != 1))
    if len(wrong):
        raise DataError(f"file {name!r}: {key} is {values[wrong[0]]} in row {wrong[0]}; it must be 0 or 1.")
    return values.astype(np.bool_)


def _check_ends(transitions: Transitions, name: str, left_out: int) -> None:
    if left_out:  # next observations were taken from the next rows: nothing to compare
        return
    same = (transitions.next_obs[:-1] == transitions.obs[1:]).all(1)
    same[transitions.episode_starts[1:-1] - 1] = True
    if not same.all():
        row = int(same.int().argmin())
        raise DataError(
            f"file {name!r}: next_observations of row {row} is not observations of row {row + 1}, and row {row} ends "
            "no episode; set timeouts (or terminals) in every episode's last row."
        )


def _about(path: Path, name: str) -> dict[str, Any]:
    with _opened(path, name) as stored:
        if isinstance(stored, h5py.File):
            text = stored.attrs.get(ABOUT, "{}")
        else:
            text = stored[ABOUT].item() if ABOUT in stored else "{}"
    try:
        about = json.loads(text)
    except (ValueError, TypeError):
        about = None
    if not isinstance(about, dict):
        raise DataError(f"file {name!r}: {ABOUT!r}, which metarl writes, is damaged; remove that key.")
    return about


def _describe(card: Card) -> dict[str, Any]:
    env = json.loads(card.env_spec) if card.env_spec else {}
    return {
        "from": card.dataset_id,
        "env_id": card.env_id,
        "env_kwargs": env.get("kwargs", {}),
        "max_episode_steps": env.get("max_episode_steps"),
        "policy": card.policy,
        "seed": card.seed,
        "flattened": card.figures.get("flattened"),
        "action_bounds": card.figures.get("action_bounds"),
        "sha256": card.sha256,
    }


def _card(name: str, about: Mapping[str, Any], env: str | None) -> Card:
    env_id = env or about.get("env_id")
    spec = None
    if env_id is not None:
        spec = registered(env_id)
        if env is None:
            spec.kwargs.update(about.get("env_kwargs", {}))
            spec.max_episode_steps = about.get("max_episode_steps", spec.max_episode_steps)
    kept = {key: about[key] for key in ("from", "flattened", "action_bounds") if about.get(key)}
    return Card(
        source="file",
        dataset_id=name,
        env_spec=spec.to_json() if spec else None,
        env_id=env_id,
        seed=about.get("seed"),
        policy=about.get("policy", "unknown"),
        figures=kept,
    )


def registered(env_id: str) -> gym.envs.registration.EnvSpec:
    """A fresh specification of a registered environment; data names an environment, and never brings its code.

    Raises:
        DataError: it is not registered here.
    """
    try:
        return gym.envs.registration.EnvSpec.from_json(gym.spec(env_id).to_json())
    except (GymnasiumError, ImportError) as error:
        raise DataError(f"environment {env_id!r}: {one_line(error)}; give another `env`.") from error


def _content_key(path: Path) -> str:
    with path.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    return f"packing {cache.VERSION} {content}"
