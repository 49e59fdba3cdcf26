"""A policy as one file that acts on raw observations without metarl: `.pt2` of torch.export, or `.onnx`.

The file holds what evaluation does, in its order: observations to single precision, (s - mean) / (std + 1e-3) by the
training data's statistics, the deterministic action, and the action's bounds. Its constants are the parameters that
acting reads, no critic and no optimiser.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import os
import platform
import warnings
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from torch import Tensor, nn

from metarl.bilevel import Tree
from metarl.errors import ConfigError, disk_reason, one_line
from metarl.learner import Spec
from metarl.training.evaluation import Policy

ABOUT = "metarl.json"
"""The name of what the file tells of itself: an extra file of `.pt2`."""
KEY = "metarl"
"""The same among the metadata of `.onnx`."""
SUFFIXES = (".pt2", ".onnx")
VERSION = 1
_TRIED, _NEAR = 32, 1e-5  # rows on which the export is compared with the policy, and how near it must come


def check_path(path: Path, overwrite: bool, suffixes: tuple[str, ...] = SUFFIXES) -> None:
    """Refuses a file's path before any work.

    Raises:
        ConfigError: another suffix, no such folder, or a file that is there already.
    """
    if path.suffix not in suffixes:
        raise ConfigError(f"{path}: the name must end in {' or '.join(suffixes)}")
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: there is no folder {path.parent}")
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; name a file")
    if path.exists() and not overwrite:
        raise ConfigError(f"{path} exists already; choose another name, or give --overwrite")


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all; raises ConfigError where the disk refuses."""
    with replaced(path) as aside:
        aside.write_bytes(data)


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A path beside `path`, renamed to it at the end and removed where something failed."""
    aside = path.with_name(f".{path.name}.writing")
    try:
        yield aside
        os.replace(aside, path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({disk_reason(error)}); choose another folder") from error
    finally:
        aside.unlink(missing_ok=True)


def check_needs(path: Path) -> None:
    """Raises ConfigError where a package for that suffix is missing."""
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if path.suffix == ".onnx" and missing:
        raise ConfigError(
            f"{path}: ONNX needs {' and '.join(missing)}; run: pip install 'metarl[onnx]' (.pt2 needs nothing more)"
        )


def about(run: Path, seed: int, step: int, env: str, spec: Spec) -> dict[str, Any]:
    """What the file tells of itself.

    Args:
        run, seed, step: where the policy comes from.
        env: the specification of its environment, as a checkpoint records it.
        spec: sizes, keys and bounds.
    """
    return {
        "format": VERSION,
        "run": run.resolve().parent.name,
        "seed": seed,
        "step": step,
        "env_id": EnvSpec.from_json(env).id,
        "env_spec": json.loads(env),
        "obs_dim": spec.obs_dim,
        "obs_keys": list(spec.obs_keys),
        "action_dim": spec.action_dim,
        "action_low": [-bound for bound in spec.max_action],
        "action_high": list(spec.max_action),
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("metarl", "torch", "gymnasium", "numpy")},
        },
    }


class _Acting(nn.Module):
    """Raw observations [N, obs_dim] of any real dtype to actions within their bounds, float32 [N, action_dim]."""

    def __init__(self, policy: Policy, max_action: tuple[float, ...]) -> None:
        super().__init__()
        # Plain attributes: what the forward pass reads becomes a constant of the file, and nothing else does.
        self._act, self._statistics = policy.learner.act, policy.statistics
        self._tree: Tree = {
            group: {name: value.detach().cpu() for name, value in values.items()}
            for group, values in policy.tree.items()
        }
        self._dtype = next(iter(next(iter(self._tree.values())).values())).dtype
        self._high = torch.tensor(max_action, dtype=torch.float32)

    def forward(self, obs: Tensor) -> Tensor:
        # `obs.to(float32)` would bind the file to the dtype of the example.
        x = torch.empty_like(obs, dtype=torch.float32).copy_(obs)
        if self._statistics is not None:
            x = self._statistics(x)
        action, _ = self._act(self._tree, x.to(self._dtype), None, None, True)
        return torch.minimum(torch.maximum(action.float(), -self._high), self._high)


def program(policy: Policy, spec: Spec) -> torch.export.ExportedProgram:
    """The policy as a program with any number of rows.

    Args:
        policy: on the CPU.
        spec: its sizes and bounds.

    Raises:
        ConfigError: the policy carries a state from step to step, cannot be recorded, or acts otherwise once recorded.
    """
    example = torch.zeros(2, spec.obs_dim)
    if policy(example.numpy())[1] is not None:
        raise ConfigError("this policy carries a state from step to step; only policies without one can be exported")
    acting = _Acting(policy, spec.max_action)
    try:
        with torch.no_grad():
            made = torch.export.export(acting, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    except Exception as error:  # whatever torch.export cannot follow, it raises as it likes
        raise ConfigError(f"this policy cannot be exported: torch.export cannot follow it ({_brief(error)})") from error
    for node in made.graph.nodes:  # paths of this machine
        node.meta.pop("stack_trace", None)
    _compare(made, policy, spec)
    return made


def write(made: torch.export.ExportedProgram, told: Mapping[str, Any], path: Path) -> None:
    """Writes the program by the path's suffix, with what it tells of itself inside."""
    text = json.dumps(told)
    if path.suffix == ".onnx":
        write_bytes(path, _onnx(made, text))
        return
    buffer = io.BytesIO()
    torch.export.save(made, buffer, extra_files={ABOUT: text})
    write_bytes(path, buffer.getvalue())


def _onnx(made: torch.export.ExportedProgram, text: str) -> bytes:
    log = logging.getLogger("torch.onnx")
    level = log.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about itself and about packages that nobody asked for
        log.setLevel(logging.ERROR)
        try:
            found = torch.onnx.export(
                made,
                (torch.zeros(2, *_width(made)),),
                dynamo=True,
                dynamic_shapes=({0: "batch"},),  # its name
                input_names=["obs"],
                output_names=["action"],
                verbose=False,
            )
        except Exception as error:
            raise ConfigError(
                f"this policy cannot be written as ONNX ({_brief(error)}); .pt2 holds every one"
            ) from error
        finally:
            log.setLevel(level)
    assert found is not None
    found.model.metadata_props[KEY] = text
    data: bytes = found.model_proto.SerializeToString()
    return data


def _width(made: torch.export.ExportedProgram) -> tuple[int, ...]:
    (name,) = made.graph_signature.user_inputs
    (node,) = (node for node in made.graph.nodes if node.name == name)
    return tuple(int(size) for size in node.meta["val"].shape[1:])


def _compare(made: torch.export.ExportedProgram, policy: Policy, spec: Spec) -> None:
    """A policy that looks at more than its observations would be frozen as it was when it was recorded."""
    obs = np.random.default_rng(0).standard_normal((_TRIED, spec.obs_dim))
    if policy.statistics is not None:
        obs = obs * policy.statistics.std.cpu().numpy() + policy.statistics.mean.cpu().numpy()
    high = np.asarray(spec.max_action, dtype=np.float32)
    wanted = policy(obs)[0].clip(-high, high)
    with torch.no_grad():
        found = made.module()(torch.as_tensor(obs)).numpy()
    if not np.allclose(found / high, wanted / high, rtol=0, atol=_NEAR, equal_nan=True):
        raise ConfigError(
            f"this policy acts otherwise once exported, by {np.abs(found - wanted).max():.2g}: its action depends on "
            "more than the observation; let `act` read its tree and its observations alone"
        )


def _brief(error: BaseException) -> str:
    text = one_line(error)
    return text if len(text) <= 200 else f"{text[:200]} ..."
