"""Checkpoints: safetensors beside JSON, checked by sha256, written aside and renamed; nothing that unpickles."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.utils import _pytree as pytree

from metarl.errors import CheckpointError

FORMAT = 1


class Saved(NamedTuple):
    """A checkpoint that was read: its step, its tensors by name, and its JSON record."""

    step: int
    tensors: dict[str, Tensor]
    record: dict[str, Any]


def save(folder: Path, step: int, tensors: dict[str, Tensor], record: dict[str, Any], keep: int) -> None:
    """Writes `folder/step-<step>` whole or not at all, then removes all but the newest `keep`.

    Args:
        folder: the run's `checkpoint` folder.
        step: gradient steps taken.
        tensors: flat, by name (see `flatten`).
        record: whatever else belongs to the run, as JSON.
        keep: checkpoints to keep.
    """
    aside = folder / f".writing-{step:09d}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    data = _bytes(tensors)
    body = {"format": FORMAT, "step": step, "tensors_sha256": hashlib.sha256(data).hexdigest(), **record}
    body["sha256"] = _digest(body)
    _write(aside / "tensors.safetensors", data)
    _write(aside / "state.json", json.dumps(body, indent=1).encode())
    final = folder / f"step-{step:09d}"
    shutil.rmtree(final, ignore_errors=True)
    aside.rename(final)
    _sync(folder)
    for old in _steps(folder)[keep:]:
        shutil.rmtree(old)


def load_newest(folder: Path, say: Callable[[str], None]) -> Saved | None:
    """The newest checkpoint that is whole; says which ones are not. None where there is none.

    Raises:
        CheckpointError: there are checkpoints, and none of them is whole.
    """
    found = _steps(folder)
    for path in found:
        try:
            return _load(path)
        except CheckpointError as error:
            say(f"{error}; trying the previous checkpoint")
    if found:
        raise CheckpointError(
            f"{folder}: no checkpoint is whole; move the folder {folder.parent} away to start the run again"
        )
    return None


def remove_after(folder: Path, step: int) -> None:
    """Removes the checkpoints of later steps."""
    for path in _steps(folder):
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)
    if folder.is_dir():
        _sync(folder)


def load(folder: Path, step: int) -> Saved:
    """The checkpoint of a step; raises CheckpointError where it is not whole."""
    return _load(folder / f"step-{step:09d}")


def flatten(tree: Any) -> dict[str, Tensor]:
    """A nested state as flat names and tensors: `tree/actor/net.layers.0.weight`."""
    pairs, _ = pytree.tree_flatten_with_path(tree)
    return {_name(path): leaf for path, leaf in pairs}


def unflatten(template: Any, tensors: dict[str, Tensor], where: str) -> Any:
    """The state with the structure, shapes, dtypes and devices of `template`.

    Raises:
        CheckpointError: the tensors are those of another learner.
    """
    pairs, structure = pytree.tree_flatten_with_path(template)
    names = [_name(path) for path, _ in pairs]
    if set(names) != set(tensors):
        odd = sorted(set(names) ^ set(tensors))
        side = "lacks" if odd[0] in names else "has an unknown"
        raise CheckpointError(f"{where}: the checkpoint {side} {odd[0]!r}; it belongs to another configuration")
    leaves = []
    for name, (_, like) in zip(names, pairs, strict=True):
        value = tensors[name]
        if value.shape != like.shape or value.dtype != like.dtype:
            raise CheckpointError(
                f"{where}: {name!r} is {value.dtype}{list(value.shape)} in the checkpoint and "
                f"{like.dtype}{list(like.shape)} in the configuration"
            )
        leaves.append(value.to(like.device))
    return pytree.tree_unflatten(leaves, structure)


def digest_of(group: dict[str, Tensor]) -> str:
    """sha256 of a group's tensors, by name."""
    return hashlib.sha256(_bytes(dict(sorted(group.items())))).hexdigest()


def _bytes(tensors: dict[str, Tensor]) -> bytes:
    return safetensors.torch.save({k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()})


def _steps(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), reverse=True) if folder.is_dir() else []


def _load(path: Path) -> Saved:
    try:
        body = json.loads((path / "state.json").read_bytes())
        data = (path / "tensors.safetensors").read_bytes()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is corrupt ({type(error).__name__}: {error})") from error
    if not isinstance(body, dict) or body.pop("sha256", None) != _digest(body):
        raise CheckpointError(f"{path} is corrupt (state.json does not match its sha256)")
    if body["format"] != FORMAT:
        raise CheckpointError(f"{path} has format {body['format']}; this version reads {FORMAT}")
    if hashlib.sha256(data).hexdigest() != body["tensors_sha256"]:
        raise CheckpointError(f"{path} is corrupt (tensors.safetensors does not match its sha256)")
    try:
        tensors = safetensors.torch.load(data)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is corrupt ({error})") from error
    return Saved(body["step"], tensors, body)


def _digest(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _name(path: tuple[Any, ...]) -> str:
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def as_float(metrics: dict[str, Tensor]) -> dict[str, float]:
    """0-d tensors read back in one transfer."""
    if not metrics:
        return {}
    values = torch.stack([value.detach().to(torch.float64) for value in metrics.values()]).tolist()
    return dict(zip(metrics, values, strict=True))
