"""Everything that a run needs before its first step: data, learner, streams; and what a checkpoint gives back."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from metarl import data
from metarl.bilevel import Metrics, TrainState
from metarl.config import Experiment
from metarl.data.fits import check_fits
from metarl.data.transitions import Statistics, Transitions
from metarl.envs import env_spec, make_env, spec_of
from metarl.errors import ConfigError, DataError
from metarl.learner import Learner, Spec
from metarl.training import checkpoints
from metarl.training.folder import RunFolder
from metarl.training.streams import Streams, generator


@dataclass(frozen=True)
class Setup:
    """Everything that a run needs before its first step."""

    learner: Learner
    spec: Spec
    env: str
    data: dict[str, Transitions]
    streams: Streams
    statistics: Statistics | None
    start: TrainState
    watched: dict[str, Transitions]


def prepare(experiment: Experiment, seed: int, beside: Path | None = None) -> Setup:
    """Loads the data and builds the learner; writes nothing."""
    device = resolve_device(experiment.device)
    dtype = dtype_of(experiment)
    train_data = _load(experiment, "train", seed, beside)
    env = env_spec(experiment.evaluation.env) if experiment.evaluation.env else train_data.card.env_spec
    if env is None:
        raise ConfigError("the training data names no environment; set evaluation.env to a Gymnasium id")
    spec = replace(_spec(env, train_data), steps=experiment.steps)
    learner = build_learner(experiment, spec, seed)
    loaded = {"train": train_data}
    for name, role in learner.roles.items():
        loaded |= _load_role(experiment, f"role {name!r}", role.source, seed, beside, loaded)
    if experiment.watch and learner.policy is None:
        raise ConfigError(f"{experiment.where}: watch looks at a policy's terms, and this algorithm exposes none")
    for name in experiment.watch:
        loaded |= _load_role(experiment, "watch", name, seed, beside, loaded)
    if len(loaded) > 1:
        with make_env(env) as made:
            for name, found in loaded.items():
                check_fits(found, made, f"data.{name}")
    statistics = {name: Statistics.of(d) for name, d in loaded.items()} if learner.normalize else {}
    scale, shift = _rewards(experiment, learner, train_data)
    by_role = {}
    for name, role in learner.roles.items():
        rows = loaded[role.source].with_rewards(scale, shift)
        if learner.normalize:
            if role.statistics not in statistics:
                raise ConfigError(f"role {name!r} is normalised by data.{role.statistics}, which is missing")
            rows = rows.normalized(statistics[role.statistics])
        by_role[name] = rows.to(dtype=dtype, device=device)
    watched = {name: loaded[name].with_rewards(scale, shift) for name in experiment.watch}
    if learner.normalize:
        watched = {name: rows.normalized(statistics["train"]) for name, rows in watched.items()}
    watched = {name: rows.to(dtype=dtype, device=device) for name, rows in watched.items()}
    streams = Streams(by_role, learner.roles, learner.noise, seed)
    start = learner.init(dtype, device)
    return Setup(learner, spec, env, loaded, streams, statistics.get("train"), start, watched)


def build_learner(experiment: Experiment, spec: Spec, seed: int) -> Learner:
    """The algorithm with every objective attached, initialised from the seed."""
    try:
        learner = experiment.algorithm.build(spec, generator(seed, "init", "algorithm"))
        for i, objective in enumerate(experiment.objectives):
            learner = objective.attach(learner, spec, generator(seed, "init", "objective", i))
            if not isinstance(learner, Learner):
                raise ConfigError(f"{type(objective).__name__}.attach returned {learner!r}; it must return a Learner")
        return learner.ready()
    except (ConfigError, ValueError) as error:
        raise ConfigError(f"{experiment.where}: {error}") from error


def resolve_device(name: str) -> torch.device:
    """`auto`, `cpu` or `cuda` as a device; raises ConfigError where a GPU is asked for and none is there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: cuda, but PyTorch sees no GPU here; use device: auto or cpu")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def plugin_digests(experiment: Experiment) -> dict[str, str]:
    """sha256 of the file of every component named `module:Class`, which no hash of the configuration covers."""
    nodes = [experiment.resolved["algorithm"], *experiment.resolved["objective"]]
    built = [experiment.algorithm, *experiment.objectives]
    return {
        node["name"]: hashlib.sha256(Path(inspect.getfile(type(component))).read_bytes()).hexdigest()
        for node, component in zip(nodes, built, strict=True)
        if ":" in node["name"]
    }


def restore(
    template: TrainState, saved: checkpoints.Saved, folder: RunFolder
) -> tuple[TrainState, Statistics | None, Metrics]:
    """State, statistics, and metrics that were not yet logged."""
    parts: dict[str, dict[str, torch.Tensor]] = {"statistics": {}, "pending": {}, "": {}}
    for name, value in saved.tensors.items():
        part, _, rest = name.partition("/")
        parts.get(part, parts[""])[rest if part in parts else name] = value
    for flag, clear in template.flags.items():  # one that the run's metarl did not know yet
        parts[""].setdefault(f"flags/{flag}", torch.zeros_like(clear))
    state = TrainState(**checkpoints.unflatten(template._asdict(), parts[""], str(folder.checkpoints)))
    device = next(iter(checkpoints.flatten(state.tree).values())).device
    pending = {name: value.to(device) for name, value in parts["pending"].items()}
    return state, Statistics.from_dict(parts["statistics"]) if parts["statistics"] else None, pending


def _load(experiment: Experiment, source: str, seed: int, beside: Path | None) -> Transitions:
    try:
        return data.load(experiment.data[source], generator(seed, "data", source), source, folder=beside)
    except DataError as error:
        raise type(error)(f"{experiment.where}: {error}") from error


def _load_role(
    experiment: Experiment,
    why: str,
    source: str,
    seed: int,
    beside: Path | None,
    loaded: Mapping[str, Transitions],
) -> dict[str, Transitions]:
    if source in loaded:
        return {}
    if source not in experiment.data:
        raise ConfigError(
            f"{experiment.where}: the experiment needs data.{source} ({why}), and has "
            f"{', '.join(experiment.data)}; add, for example, "
            f"'{source}: {{recipe: <name>/<level>, tuples: 200}}' under data"
        )
    found = _load(experiment, source, seed, beside)
    ours, theirs = loaded["train"].layout, found.layout
    if ours != theirs:
        raise DataError(
            f"{experiment.where}: data.{source} has observations of {theirs.obs_dim} and actions of "
            f"{theirs.action_dim} numbers, "
            f"data.train {ours.obs_dim} and {ours.action_dim}; both must come from one environment"
        )
    environments = loaded["train"].card.env_id, found.card.env_id
    if None not in environments and len(set(environments)) > 1:
        raise DataError(
            f"{experiment.where}: data.{source} comes from {environments[1]}, data.train from {environments[0]}; "
            "both must come from one environment"
        )
    return {source: found}


def _rewards(experiment: Experiment, learner: Learner, train_data: Transitions) -> tuple[float, float]:
    """Factor and shift of every reward."""
    wanted = learner.rewards
    if not wanted.return_range:
        return wanted.scale, wanted.shift
    try:
        low, high = train_data.card.return_range()
    except DataError as error:
        raise DataError(f"{experiment.where}: data.train, by whose returns rewards are scaled: {error}") from error
    return wanted.scale * 1000 / (high - low), wanted.shift


def saved_spec(record: Mapping[str, Any]) -> Spec:
    tuples = {name: tuple(record.get(name, ())) for name in ("max_action", "obs_keys")}
    return Spec(**{**record, **tuples})


def _spec(env: str, transitions: Transitions) -> Spec:
    with make_env(env) as made:
        spec = spec_of(made)
        check_fits(transitions, made, "data.train")
    keys = tuple(transitions.card.figures.get("flattened", ()))
    if keys and spec.obs_keys and keys != spec.obs_keys:
        raise DataError(
            f"data.train joins the observation's parts as {', '.join(keys)}, the evaluation environment as "
            f"{', '.join(spec.obs_keys)}; set evaluation.env to the data's own"
        )
    return spec


def dtype_of(experiment: Experiment) -> torch.dtype:
    return {"float32": torch.float32, "float64": torch.float64}[experiment.precision]
