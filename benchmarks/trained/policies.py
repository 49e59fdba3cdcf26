"""Snapshots of one training run as they are shipped: float16 weights in safetensors, and a JSON of facts."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from benchmarks.trained.policy import SquashedGaussian
from metarl.errors import DataError
from metarl.training.folder import write_json

SHIPPED = Path(__file__).parent / "shipped"
RANDOM = "random"


@dataclass(frozen=True)
class Policies:
    """Policies of one run, and what is known about them.

    Attributes:
        facts: the JSON; `medium` and `expert` name steps, `replay` says what acts up to which step of training.
        nets: step -> the policy.
        sha256: of the weights' file.
    """

    facts: Mapping[str, Any]
    nets: Mapping[int, SquashedGaussian]
    sha256: str

    def step(self, level: str) -> int:
        """The training step of `medium` or `expert`."""
        return int(self.facts[level]["step"])

    def replayed(self, step: float) -> int | None:
        """The snapshot that stands for a step of training up to medium; None for the random start."""
        parts = self.facts["replay"]
        part = parts[min(bisect_right([p["until"] for p in parts], step), len(parts) - 1)]
        return None if part["acts"] == RANDOM else int(part["acts"])


def write(folder: Path, name: str, facts: Mapping[str, Any], weights: Mapping[int, Mapping[str, NDArray[Any]]]) -> None:
    """Writes `<name>.safetensors`, tensors called `<step>/net.layers.0.weight`, then `<name>.json`."""
    data = save(
        {
            f"{step}/{key}": np.ascontiguousarray(value, np.float16)
            for step, tensors in sorted(weights.items())
            for key, value in sorted(tensors.items())
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".{name}.writing"
    aside.write_bytes(data)
    aside.replace(folder / f"{name}.safetensors")
    write_json(folder / f"{name}.json", {**facts, "sha256": hashlib.sha256(data).hexdigest()})


def read(folder: Path, name: str) -> Policies | None:
    """What `write` wrote; None where there is none.

    Raises:
        DataError: the weights are not those that the facts tell of.
    """
    path, told = folder / f"{name}.safetensors", folder / f"{name}.json"
    if not path.is_file() or not told.is_file():
        return None
    data = path.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        facts = json.loads(told.read_text())
        if facts["sha256"] != sha256:
            raise DataError(f"{path} does not match its sha256 in {told.name}; bring both files back.")
        tensors = load(data)
    except (ValueError, KeyError, SafetensorError) as error:
        raise DataError(f"{path} or {told.name} cannot be read ({error}); bring both files back.") from error
    by_step: dict[int, dict[str, NDArray[Any]]] = {}
    for key, value in tensors.items():
        step, _, inner = key.partition("/")
        by_step.setdefault(int(step), {})[inner] = value
    return Policies(facts, {step: SquashedGaussian(found) for step, found in by_step.items()}, sha256)


@cache
def shipped(name: str) -> Policies | None:
    """The policies that come with metarl for a recipe; None where there are none yet."""
    return read(SHIPPED, name)
