"""Everything that a run needs before its first step: data, learner, streams; and what a checkpoint gives back."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from gymnasium.envs.registration import EnvSpec
from torch import Tensor

from metarl import data
from metarl.bilevel import Metrics, TrainState
from metarl.config import Experiment
from metarl.data.fits import check_fits
from metarl.data.replay import Replay
from metarl.data.transitions import Card, Layout, Statistics, Transitions
from metarl.envs import env_spec, make_env, spec_of
from metarl.errors import ConfigError, DataError
from metarl.learner import Learner, Spec
from metarl.training import checkpoints
from metarl.training.folder import RunFolder
from metarl.training.initial import trained_groups
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
    online: OnlineSetup | None


@dataclass(frozen=True)
class OnlineSetup:
    """What the online phase needs: the training environment's specification, and an empty replay."""

    env: str
    replay: Replay


def prepare(
    experiment: Experiment, seed: int, beside: Path | None = None, root: Path | None = None, init: bool = True
) -> Setup:
    """Loads the data and builds the learner; writes nothing.

    Args:
        experiment: as `metarl.config.load` gives it.
        seed: names every random draw.
        beside: folder of the YAML file, for recipes named `module:Class`.
        root: where run folders lie, for an `init` that names one from there.
        init: false leaves the groups that `init` names as the seed draws them, since other runs may have to come first.
    """
    device = resolve_device(experiment.device)
    dtype = dtype_of(experiment)
    train = experiment.data.get("train")
    loaded = {} if train is None else {"train": _load(experiment, "train", seed, beside)}
    train_env, env = environments(experiment, loaded["train"].card.env_spec if "train" in loaded else None)
    spec = of_run(_spec(env, loaded), experiment, train_env or env)
    learner = build_learner(experiment, spec, seed)
    if not learner.updates:
        raise ConfigError(
            f"{experiment.where}: algorithm and objective have nothing to train; add an objective that brings a "
            "policy, such as objective: {name: por}"
        )
    if missing := sorted(learner.given - set(experiment.init)):
        raise ConfigError(
            f"{experiment.where}: {', '.join(missing)} would stay as initialised; name the run that trained it, as in "
            f"init: {{{missing[0]}: 'runs/<name>-<hash>/{{seed}}'}}"
        )
    if experiment.online is not None and experiment.online.envs > 1:
        drawn = spec.action_dim if learner.exploration is None else learner.exploration
        noise = torch.zeros(1, drawn)
        if learner.act(learner.init().tree, torch.zeros(1, spec.obs_dim), None, noise, False)[1] is not None:
            raise ConfigError(
                f"{experiment.where}: a policy that carries a state from step to step explores in one environment: "
                "set online.envs=1"
            )
    for name, role in learner.roles.items():
        if role.source != "train" or train is not None or experiment.online is None:
            loaded |= _load_role(experiment, f"role {name!r}", role.source, seed, beside, loaded)
    if experiment.watch and learner.policy is None:
        raise ConfigError(f"{experiment.where}: watch looks at a policy's terms, and this algorithm exposes none")
    for name in experiment.watch:
        loaded |= _load_role(experiment, "watch", name, seed, beside, loaded)
    if set(loaded) - {"train"}:
        with make_env(env) as made:
            for name, found in loaded.items():
                check_fits(found, made, f"data.{name}")
    if learner.normalize and "train" not in loaded:
        raise ConfigError(
            f"{experiment.where}: observations are normalised by the statistics of data.train, and there is none; set "
            "algorithm.normalize=false"
        )
    statistics = {name: Statistics.of(d) for name, d in loaded.items()} if learner.normalize else {}
    scale, shift = _rewards(experiment, learner, loaded)

    def read(found: Transitions, name: str) -> Transitions:
        found = found.with_rewards(scale, shift)
        return found.normalized(statistics[name]) if learner.normalize else found

    by_role = {}
    for name, role in learner.roles.items():
        if learner.normalize and role.statistics not in statistics:
            raise ConfigError(f"role {name!r} is normalised by data.{role.statistics}, which is missing")
        rows = loaded[role.source] if role.source in loaded else _imagined(spec, seed)
        by_role[name] = read(rows, role.statistics).to(dtype=dtype, device=device)
    watched = {name: read(loaded[name], "train").to(dtype=dtype, device=device) for name in experiment.watch}
    online = None
    if experiment.online is not None and train_env is not None:
        layout = Layout(spec.obs_dim, spec.action_dim)
        card = Card(source="replay", dataset_id="replay")
        plain = not learner.normalize and (scale, shift) == (1.0, 0.0)
        capacity = experiment.online.replay

        def prepared(rows: Tensor) -> Tensor:
            return read(Transitions(rows, layout, torch.tensor([0]), card), "train").rows

        try:
            replay = Replay(layout, capacity, dtype, device, None if plain else prepared)
        except RuntimeError as error:
            size = capacity * layout.width * dtype.itemsize / 2**30
            raise ConfigError(
                f"{experiment.where}: online.replay={capacity:,} transitions take {size:,.1f} GiB, which are not "
                "there; set a smaller replay"
            ) from error
        online = OnlineSetup(train_env, replay)
    streams = Streams(
        by_role,
        learner.roles,
        learner.noise,
        seed,
        online.replay if online else None,
        experiment.online.from_data if experiment.online else 0.0,
    )
    given = trained_groups(experiment, learner, seed, statistics.get("train"), dtype, device, root) if init else {}
    start = learner.init(dtype, device, given)
    return Setup(learner, spec, env, loaded, streams, statistics.get("train"), start, watched, online)


def environments(experiment: Experiment, recorded: str | None) -> tuple[str | None, str]:
    """Specifications of the environments to train and to evaluate in; the first is None where none is trained in.

    Args:
        experiment: names them, or leaves them to its data.
        recorded: the specification that the training data carries.

    Raises:
        ConfigError: neither names one, one cannot be made here, or they differ in observations or actions.
    """
    online = experiment.online
    train_env = None if online is None else env_spec(online.env, "online.env") if online.env else recorded
    chosen = experiment.evaluation.env
    env = env_spec(chosen, "evaluation.env") if chosen else recorded if online is None else train_env
    if env is None or (online is not None and train_env is None):
        key = "evaluation.env" if online is None else "online.env"
        raise ConfigError(f"{experiment.where}: the training data names no environment; set {key} to a Gymnasium id")
    if train_env is not None and train_env != env:
        with make_env(train_env) as ours, make_env(env) as theirs:
            if spec_of(ours) != spec_of(theirs):
                raise ConfigError(
                    f"{experiment.where}: online.env and evaluation.env have unlike observations or actions "
                    f"({_sizes(spec_of(ours))}; {_sizes(spec_of(theirs))}); name two that agree in both"
                )
    return train_env, env


def _sizes(spec: Spec) -> str:
    bounds = ", ".join(f"{bound:g}" for bound in spec.max_action)
    return f"{spec.obs_dim} numbers, {spec.action_dim} actions within ±({bounds})"


def _imagined(spec: Spec, seed: int) -> Transitions:
    """Rows of the right shape for the checks before the first step of a run that has no data."""
    source = generator(seed, "imagined")
    layout = Layout(spec.obs_dim, spec.action_dim)
    rows = torch.randn(256, layout.width, generator=source)
    columns = layout.split(rows)
    columns["action"].copy_(columns["action"].tanh() * rows.new_tensor(spec.max_action))
    columns["terminated"].copy_(columns["terminated"] > 1)
    columns["truncated"].zero_()
    return Transitions(rows, layout, torch.arange(257), Card(source="imagined", dataset_id="imagined"))


def of_run(spec: Spec, experiment: Experiment, env: str) -> Spec:
    """What a learner must know of an environment (specified by `env`), with what it must know of the run."""
    return replace(
        spec,
        steps=experiment.gradient_steps,
        offline=None if experiment.online is None else experiment.offline_steps,
        time_limit=EnvSpec.from_json(env).max_episode_steps,
    )


def build_learner(experiment: Experiment, spec: Spec, seed: int) -> Learner:
    """The algorithm with every objective attached, initialised from the seed."""
    try:
        learner = experiment.algorithm.build(spec, generator(seed, "init", "algorithm"))
        for i, objective in enumerate(experiment.objectives):
            if learner.last is not None:
                raise ConfigError(
                    f"objective {learner.last} must come last, after those that change how the offline policy learns; "
                    "put it at the end of the list"
                )
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
            f"{', '.join(experiment.data) or 'none'}; add, for example, "
            f"'{source}: {{recipe: <name>/<level>, tuples: 200}}' under data"
        )
    found = _load(experiment, source, seed, beside)
    if "train" not in loaded:
        return {source: found}
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


def _rewards(experiment: Experiment, learner: Learner, loaded: Mapping[str, Transitions]) -> tuple[float, float]:
    """Factor and shift of every reward."""
    wanted = learner.rewards
    if not wanted.return_range:
        return wanted.scale, wanted.shift
    if "train" not in loaded:
        raise ConfigError(
            f"{experiment.where}: algorithm.rewards.return_range scales by the returns of data.train, and there is "
            "none; set it to false"
        )
    try:
        low, high = loaded["train"].card.return_range()
    except DataError as error:
        raise DataError(f"{experiment.where}: data.train, by whose returns rewards are scaled: {error}") from error
    return wanted.scale * 1000 / (high - low), wanted.shift


def saved_spec(record: Mapping[str, Any]) -> Spec:
    tuples = {name: tuple(record.get(name, ())) for name in ("max_action", "obs_keys")}
    return Spec(**{**record, **tuples})


def _spec(env: str, loaded: Mapping[str, Transitions]) -> Spec:
    with make_env(env) as made:
        spec = spec_of(made)
        if "train" not in loaded:
            return spec
        transitions = loaded["train"]
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
