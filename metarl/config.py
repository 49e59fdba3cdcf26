"""An experiment from YAML: files merged by OmegaConf into the dataclasses that components declare."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from metarl import registry
from metarl.component import component, first_line, merge, option, overlay
from metarl.data.sources import DataSource, Part
from metarl.errors import ConfigError, nearest


@dataclass(frozen=True)
class Evaluation:
    """When and how the policy is evaluated, in environments of its own."""

    every: int = option(5000, "steps between evaluations")
    episodes: int = option(10, "episodes of one evaluation")
    env: str | None = option(None, "Gymnasium id; by default the environment that the training data names")


@dataclass(frozen=True)
class Checkpoint:
    """When the run is saved."""

    every: int | None = option(None, "steps between checkpoints; by default those between evaluations")
    keep: int = option(2, "how many are kept; at least 2, so that a corrupt one has a predecessor")


@dataclass(frozen=True)
class Online:
    """How the learner meets an environment; the steps of this phase are environment steps."""

    env: str | None = option(None, "Gymnasium id to train in; by default the one that the training data names")
    envs: int = option(1, "environments stepped together on one batched forward", least=1)
    random_steps: int | None = option(
        None,
        "environment steps of uniform actions at the start; 1,000 by default, none after an offline phase",
        least=0,
    )
    learn_from: int | None = option(None, "environment steps before the first update; by default random_steps", least=0)
    updates_per_step: float = option(1.0, "gradient steps to one environment step")
    replay: int = option(1_000_000, "transitions that are kept; the oldest go first", least=1)
    from_data: float = option(0.0, "share of every training batch that is drawn from data.train", least=0, most=1)

    def updates(self, steps: int) -> int:
        """Gradient steps that belong to so many environment steps."""
        # As the decimal that was written: 0.29 times 100 is 28.999... in binary.
        return math.floor(Fraction(repr(self.updates_per_step)) * max(0, steps - (self.learn_from or 0)))


@dataclass(frozen=True)
class Experiment:
    """A whole experiment, its components built.

    Attributes:
        steps: in all: gradient steps on data, then environment steps.
        offline_steps: those of them on data; all where there is no online phase.
        init: by parameter group, the run folder whose trained values it starts with; `{seed}` stands for the seed,
            `{root}` for the folder that the experiment's own folder lies in.
        where: the file it came from, for messages.
        resolved: the same as plain data, every default filled in; `config.yaml` of a run.
    """

    name: str
    algorithm: Any
    objectives: tuple[Any, ...]
    data: Mapping[str, DataSource]
    steps: int
    offline_steps: int
    online: Online | None
    seeds: tuple[int, ...]
    device: str
    precision: str
    compile: str
    stack: int
    log_every: int
    evaluation: Evaluation
    checkpoint: Checkpoint
    watch: tuple[str, ...]
    init: Mapping[str, str]
    where: str
    resolved: Mapping[str, Any]

    @property
    def hash(self) -> str:
        """Eight hex digits of the resolved configuration without `FREE`: what changes no number but by rounding."""
        return hashlib.sha256(json.dumps(fixed(self.resolved), sort_keys=True).encode()).hexdigest()[:8]

    @property
    def gradient_steps(self) -> int:
        """Gradient steps in all."""
        return self.gradient_steps_at(self.steps)

    def gradient_steps_at(self, step: int) -> int:
        """Gradient steps that belong to the first `step` steps."""
        lived = step - self.offline_steps
        return step if lived <= 0 or self.online is None else self.offline_steps + self.online.updates(lived)

    @property
    def folder(self) -> str:
        """The run folder's name, `<name>-<hash>`."""
        return f"{self.name}-{self.hash}"


@dataclass(frozen=True)
class _Plain:
    """The keys of an experiment file that hold no component."""

    name: str = option("experiment", "names the run folder")
    steps: int = option(
        100_000,
        "gradient steps on data, or environment steps where there is `online`; {offline: N, online: M} for one phase "
        "after the other",
    )
    seeds: tuple[int, ...] = option((0,), "one run each")
    device: Literal["auto", "cpu", "cuda"] = option("auto", "auto takes a GPU where there is one")
    precision: Literal["float32", "float64"] = option("float32", "of parameters and batches")
    compile: Literal["auto", "on", "off"] = option(
        "auto", "compile what is due often enough to pay; all of it; or run the losses' Python in every step"
    )
    stack: int = option(1, "seeds that run together in one program; a GPU's way")
    log_every: int | None = option(None, "steps between rows of metrics; default: evaluation.every / 5")
    evaluation: Evaluation = option(factory=Evaluation, help="when and how the policy is evaluated")
    checkpoint: Checkpoint = option(factory=Checkpoint, help="when the run is saved")
    watch: tuple[str, ...] = option(
        (), "entries of data that are looked at: the policy's terms on them are logged at every evaluation"
    )


FREE = ("steps", "seeds", "device", "compile", "stack")  # may differ between starts of one run
TOP_LEVEL = ("algorithm", "objective", "data", "init", "online", "let", *(f.name for f in dataclasses.fields(_Plain)))
"""`let` holds values for `${let.x}` elsewhere in the file or in those based on it; it leaves no trace of its own."""


def fixed(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """What a resolved configuration says that may not differ between starts of one run."""
    kept = {k: v for k, v in resolved.items() if k not in FREE}
    return kept | ({"offline_steps": resolved["steps"]["offline"]} if "online" in resolved else {})


def total_steps(resolved: Mapping[str, Any]) -> int:
    """Steps of a resolved configuration, both phases together."""
    steps = resolved["steps"]
    return sum(steps.values()) if isinstance(steps, Mapping) else int(steps)


# -- reading ---------------------------------------------------------------------------------------------------


def load(path: str | Path, overrides: Sequence[str] = (), beside: Path | None = None) -> Experiment:
    """The experiment that a YAML file, the `base:` files it names, and `key=value` arguments describe.

    Components named `module:Class` are looked for in `beside`, by default the file's folder.

    Raises:
        ConfigError: names the file, the key and the nearest valid one.
    """
    path = Path(path)
    return build(read(path, overrides), where=str(path), folder=beside or path.parent)


def read(path: Path, overrides: Sequence[str] = (), resolve: bool = True) -> dict[str, Any]:
    """The merged YAML as plain data, before components are resolved; interpolations are left where not `resolve`."""
    merged = _merge_files(path, ())
    for text in overrides:
        key, equals, _ = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"argument {text!r} is not of the form key=value")
        check_let(key, text, str(path), merged)
        try:
            merged = overlay(merged, _plain(OmegaConf.from_dotlist([text])))
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            raise ConfigError(f"argument {text!r}: {first_line(error)}") from error
    known = _mapping(merged, "let", str(path))
    try:
        return _plain(OmegaConf.create(merged), resolve)
    except InterpolationKeyError as error:
        missing = first_line(error).removeprefix("Interpolation key '").partition("'")[0]
        near = nearest(missing, [f"let.{name}" for name in known] if missing.startswith("let.") else [*merged])
        raise ConfigError(f"{path}: {error.full_key} refers to ${{{missing}}}, which is not there.{near}") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {first_line(error)}") from error


def check_let(key: str, text: str, where: str, *given: Mapping[str, Any]) -> None:
    """Raises ConfigError where an argument sets a value under `let` that nothing given holds or refers to."""
    top, _, name = key.partition(".")
    known = {str(k) for node in given for k in _mapping(node, "let", where)}
    known |= set(re.findall(r"\$\{let\.(\w+)", json.dumps(given)))
    if top == "let" and name and name.split(".")[0] not in known:
        near = nearest(name.split(".")[0], sorted(known))
        raise ConfigError(f"argument {text!r}: {where} has no such value under let.{near}")


def _merge_files(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    if path in above:
        raise ConfigError(f"{path}: base files name each other in a circle")
    try:
        loaded = OmegaConf.load(path)
    except FileNotFoundError:
        raise ConfigError(f"there is no file {path}") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder; name a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError, OmegaConfBaseException) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}: {getattr(error, 'problem', '')}" if mark else f": {first_line(error)}"
        raise ConfigError(f"{path} is not readable YAML{where}") from error
    if not isinstance(loaded, DictConfig):
        raise ConfigError(f"{path}: an experiment is a mapping of keys, such as 'algorithm: {{name: ...}}'")
    own = _plain(loaded)
    base = own.pop("base", None) or []
    merged: dict[str, Any] = {}
    names = [base] if isinstance(base, str) else base
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{path}: base must name a YAML file, or a list of them, not {base!r}")
    for name in names:
        merged = overlay(merged, _merge_files(path.parent / name, (*above, path)))
    return overlay(merged, own)


def _plain(node: Any, resolve: bool = False) -> dict[str, Any]:
    return typing.cast(dict[str, Any], OmegaConf.to_container(node, resolve=resolve))


# -- building --------------------------------------------------------------------------------------------------


def build(raw: Mapping[str, Any], where: str, folder: Path | None = None) -> Experiment:
    """The experiment that plain data describes; `where` names its origin in errors."""
    for key in raw:
        if key not in TOP_LEVEL:
            raise ConfigError(f"{where}: unknown key {key!r}.{nearest(str(key), TOP_LEVEL)}")
    if raw.get("algorithm") is None:
        names = registry.names("metarl.algorithms")
        raise ConfigError(f"{where}: 'algorithm' is missing; add 'algorithm: {{name: ...}}'.{nearest('', names)}")
    _mapping(raw, "let", where)
    if isinstance(raw.get("compile"), bool):  # what YAML makes of an unquoted on and off
        raw = {**raw, "compile": "on" if raw["compile"] else "off"}
    offline_steps, raw = _phases(raw, where)
    plain = merge(_Plain, {f.name: raw[f.name] for f in dataclasses.fields(_Plain) if f.name in raw}, where, "")
    online = _online(raw, offline_steps, where) if raw.get("online") is not None else None
    offline_steps = plain["steps"] if online is None else offline_steps
    algorithm, algorithm_plain = component("metarl.algorithms", raw["algorithm"], where, "algorithm", folder)
    objective = raw.get("objective") or []
    several = isinstance(objective, list)
    built = [
        component("metarl.objectives", node, where, f"objective[{i}]" if several else "objective", folder)
        for i, node in enumerate(objective if several else [objective])
    ]
    data = {role: _source(node, where, f"data.{role}") for role, node in _mapping(raw, "data", where).items()}
    init = _mapping(raw, "init", where)
    for group, run in init.items():
        if not isinstance(run, str):
            raise ConfigError(f"{where}: init.{group} must name a run folder, such as runs/<name>-<hash>/{{seed}}")
    needs_data = online is None or offline_steps or online.from_data
    if "train" not in data and needs_data:
        raise ConfigError(f"{where}: 'data.train' is missing; add 'train: {{recipe: ...}}' (see `metarl data list`)")
    evaluation = Evaluation(**plain["evaluation"])
    log_every = plain["log_every"] or max(1, evaluation.every // 5)
    save_every = plain["checkpoint"]["every"] or evaluation.every
    checkpoint = Checkpoint(save_every, plain["checkpoint"]["keep"])
    for key, value, least in (
        ("steps", plain["steps"], 1),
        ("stack", plain["stack"], 1),
        ("log_every", log_every, 1),
        ("evaluation.every", evaluation.every, 1),
        ("evaluation.episodes", evaluation.episodes, 1),
        ("checkpoint.every", save_every, 1),
        ("checkpoint.keep", checkpoint.keep, 2),
    ):
        if value < least:
            raise ConfigError(f"{where}: {key} must be at least {least}, not {value}")
    derived = "" if plain["log_every"] else ", which is evaluation.every / 5 where it is not given"
    for key, value in (("evaluation.every", evaluation.every), ("checkpoint.every", save_every)):
        if value % log_every:
            raise ConfigError(f"{where}: {key} ({value}) must be a multiple of log_every ({log_every}{derived})")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", plain["name"]):
        raise ConfigError(f"{where}: name {plain['name']!r} names a folder; use letters, digits, '.', '-' and '_' only")
    seeds = tuple(plain["seeds"])
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ConfigError(f"{where}: seeds must be different numbers from 0 up, not {list(seeds)}")
    watch = tuple(plain["watch"])
    for name in watch:
        if name not in data:
            raise ConfigError(f"{where}: watch names {name!r}, which is no entry of data.{nearest(name, data)}")
    steps = plain["steps"]
    if online is not None:
        plain["steps"] = {"offline": offline_steps, "online": plain["steps"] - offline_steps}
        if plain["steps"]["online"] % online.envs:
            raise ConfigError(
                f"{where}: steps.online ({plain['steps']['online']}) must be a multiple of online.envs "
                f"({online.envs}), which are stepped together"
            )
        if plain["stack"] > 1:
            raise ConfigError(f"{where}: seeds that act in environments of their own cannot be stacked; use stack: 1")
    resolved = {
        "name": plain["name"],
        "algorithm": algorithm_plain,
        "objective": [node for _, node in built],
        "data": data,
        **({"init": init} if init else {}),
        **({} if online is None else {"online": dataclasses.asdict(online)}),
        **{k: plain[k] for k in ("steps", "device", "precision", "compile", "stack")},
        "seeds": list(seeds),
        "log_every": log_every,
        "evaluation": plain["evaluation"],
        "checkpoint": dataclasses.asdict(checkpoint),
        **({"watch": list(watch)} if watch else {}),
    }
    return Experiment(
        name=plain["name"],
        algorithm=algorithm,
        objectives=tuple(objective for objective, _ in built),
        data={role: DataSource(**node) for role, node in data.items()},
        steps=steps,
        offline_steps=offline_steps,
        online=online,
        seeds=seeds,
        device=plain["device"],
        precision=plain["precision"],
        compile=plain["compile"],
        stack=plain["stack"],
        log_every=log_every,
        evaluation=evaluation,
        checkpoint=checkpoint,
        watch=watch,
        init=dict(init),
        where=where,
        resolved=resolved,
    )


def _phases(raw: Mapping[str, Any], where: str) -> tuple[int, dict[str, Any]]:
    """Gradient steps of the offline phase, and the configuration with `steps` as one number."""
    steps = raw.get("steps")
    if not isinstance(steps, Mapping):
        return 0, dict(raw)
    for name, value in steps.items():
        if name not in ("offline", "online"):
            raise ConfigError(f"{where}: unknown key 'steps.{name}'.{nearest(str(name), ('offline', 'online'))}")
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ConfigError(f"{where}: steps.{name} must be a number of steps, not {value!r}")
    if raw.get("online") is not None and "online" not in steps:
        raise ConfigError(
            f"{where}: steps.online is missing; add, for example, 'steps: {{offline: 5000, online: 5000}}'"
        )
    if steps.get("online") and raw.get("online") is None:
        raise ConfigError(
            f"{where}: steps.online needs an environment; add, for example, 'online: {{env: Pendulum-v1}}'"
        )
    return steps.get("offline", 0), {**raw, "steps": sum(steps.values())}


def _online(raw: Mapping[str, Any], offline_steps: int, where: str) -> Online:
    node = {"env": raw["online"]} if isinstance(raw["online"], str) else raw["online"]
    plain = merge(Online, node, where, "online")
    if plain["random_steps"] is None:
        plain["random_steps"] = 0 if offline_steps else 1000
    if plain["learn_from"] is None:
        plain["learn_from"] = plain["random_steps"]
    if not 0 < plain["updates_per_step"] < math.inf:
        raise ConfigError(f"{where}: online.updates_per_step must be positive, not {plain['updates_per_step']}")
    if plain["env"] is None and "train" not in _mapping(raw, "data", where):
        raise ConfigError(f"{where}: 'online.env' is missing; name a Gymnasium id, such as Pendulum-v1")
    return Online(**plain)


def _source(node: Any, where: str, key: str) -> dict[str, Any]:
    """One entry of `data`; each part of a mixture is checked by itself, since OmegaConf leaves lists as they are."""
    if isinstance(node, Mapping) and isinstance(node.get("mix"), list):
        parts = [merge(Part, part, where, f"{key}.mix[{i}]") for i, part in enumerate(node["mix"])]
        node = {**node, "mix": parts}
    return merge(DataSource, node, where, key)


def _mapping(raw: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    node = raw.get(key) or {}
    if not isinstance(node, Mapping):
        raise ConfigError(f"{where}: {key!r} must be a mapping, not {node!r}")
    return node


def to_yaml(resolved: Mapping[str, Any]) -> str:
    """Plain data as YAML, keys in their order."""
    return OmegaConf.to_yaml(OmegaConf.create(dict(resolved)))
