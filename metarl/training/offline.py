"""The offline loop: from an experiment and a seed to a run's folder, resumable to the same numbers."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from metarl import data
from metarl.bilevel import Metrics, TrainState
from metarl.bilevel.autodiff import norm
from metarl.bilevel.state import finite
from metarl.config import Experiment
from metarl.data.fits import check_fits
from metarl.data.transitions import Statistics, Transitions
from metarl.envs import env_spec, make_env, spec_of
from metarl.errors import CheckpointError, ConfigError, DataError, NumericalError
from metarl.learner import Learner, Role, Spec
from metarl.provenance import environment
from metarl.training import checkpoints
from metarl.training.evaluation import EpisodeReturns, Evaluator, Policy
from metarl.training.folder import RunFolder, write_json
from metarl.training.progress import Reporter
from metarl.training.recorder import Recorder, examine
from metarl.training.streams import Streams, generator

ZERO_WARN, ZERO_STOP = 50, 500  # hypergradients of exactly zero in a row


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


def train(experiment: Experiment, seed: int, root: Path, reporter: Reporter, beside: Path | None = None) -> Path:
    """Trains one seed, or goes on from its newest checkpoint, and returns the run's folder.

    Args:
        experiment: as `metarl.config.load` gives it.
        seed: names the folder and every random draw.
        root: where run folders lie.
        reporter: shows progress.
        beside: folder of the YAML file, for recipes named `module:Class`.

    Raises:
        UserError: bad configuration, data, checkpoint or numbers; nothing that was saved is lost.
    """
    torch.set_flush_denormal(True)
    setup = prepare(experiment, seed, beside)
    for name in sorted(set(experiment.data) - set(setup.data)):
        reporter.say(f"note: {experiment.where}: data.{name} is not used by this algorithm and objective")
    setup.learner.check(setup.start, setup.streams.batches(1))
    folder = RunFolder.of(experiment, seed, root)
    with folder.held():
        run = _Run(experiment, seed, folder, setup, reporter)
        if run.complete:
            reporter.say(f"{run.title}: already at step {run.step:,}; set more steps to go on ({folder.path})")
            return folder.path
        run.open()
        try:
            run.go()
        finally:
            run.close()
    return folder.path


def prepare(experiment: Experiment, seed: int, beside: Path | None = None) -> Setup:
    """Loads the data and builds the learner; writes nothing."""
    device = resolve_device(experiment.device)
    dtype = _dtype(experiment)
    train_data = _load(experiment, "train", seed, beside)
    env = env_spec(experiment.evaluation.env) if experiment.evaluation.env else train_data.card.env_spec
    if env is None:
        raise ConfigError("the training data names no environment; set evaluation.env to a Gymnasium id")
    spec = _spec(env, train_data)
    learner = build_learner(experiment, spec, seed)
    loaded = {"train": train_data}
    for name, role in learner.roles.items():
        loaded |= _load_role(experiment, name, role, seed, beside, loaded)
    if len(loaded) > 1:
        with make_env(env) as made:
            for name, found in loaded.items():
                check_fits(found, made, f"data.{name}")
    statistics = {name: Statistics.of(d) for name, d in loaded.items()} if learner.normalize else {}
    by_role = {}
    for name, role in learner.roles.items():
        rows = loaded[role.source]
        if learner.normalize:
            if role.statistics not in statistics:
                raise ConfigError(f"role {name!r} is normalised by data.{role.statistics}, which is missing")
            rows = rows.normalized(statistics[role.statistics])
        by_role[name] = rows.to(dtype=dtype, device=device)
    streams = Streams(by_role, learner.roles, learner.noise, seed)
    start = learner.init(dtype, device)
    return Setup(learner, spec, env, loaded, streams, statistics.get("train"), start)


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


def load_policy(path: Path, say: Callable[[str], None] = print, beside: Path | None = None) -> tuple[Policy, str, int]:
    """A run's newest policy, the specification of its environment, and the step it was saved at.

    Args:
        path: the run's folder.
        say: told of corrupt checkpoints.
        beside: where components named `module:Class` lie.

    Raises:
        ConfigError: the folder holds no run.
        CheckpointError: it holds no whole checkpoint of its configuration.
    """
    folder = RunFolder(path)
    experiment = folder.experiment(beside)
    saved = checkpoints.load_newest(folder.checkpoints, say)
    if saved is None:
        raise CheckpointError(f"{path} has no checkpoint yet; train it first")
    spec = _saved_spec(saved.record["spec"])
    learner = build_learner(experiment, spec, folder.seed)
    state, statistics, _ = _restore(learner.init(_dtype(experiment)), saved, folder)
    return Policy(learner, state.tree, statistics, spec.obs_keys), saved.record["env"], saved.step


def resolve_device(name: str) -> torch.device:
    """`auto`, `cpu` or `cuda` as a device; raises ConfigError where a GPU is asked for and none is there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: cuda, but PyTorch sees no GPU here; use device: auto or cpu")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


class _Run:
    """One seed in its folder."""

    def __init__(self, experiment: Experiment, seed: int, folder: RunFolder, setup: Setup, reporter: Reporter) -> None:
        self.experiment, self.seed, self.folder, self.reporter = experiment, seed, folder, reporter
        self.setup, self.learner = setup, setup.learner
        self.title = f"{experiment.name} seed {seed}"
        self.state, self.step = setup.start, 0
        self.evaluations: list[dict[str, Any]] = []
        self.pending: Metrics = {}
        self.sizes: Mapping[str, int] = {}
        self.warned: set[str] = set()
        saved = checkpoints.load_newest(folder.checkpoints, reporter.say)
        if saved is not None:
            self._check_origin(saved)
            self.state, _, self.pending = _restore(setup.start, saved, folder)
            self.step, self.evaluations = saved.step, saved.record["evaluations"]
            self.sizes = saved.record["sizes"]
        folder.write_config(experiment)

    @property
    def complete(self) -> bool:
        """Whether result.json already tells of all the steps."""
        return self.step >= self.experiment.steps and self.folder.steps_on_record() == self.step

    def open(self) -> None:
        """Opens files and environments; what was written after the checkpoint is cut off."""
        self.recorder = Recorder(self.folder, self.step, self.sizes)
        self.evaluator = Evaluator(lambda: make_env(self.setup.env), self.experiment.evaluation.episodes, self.seed)

    def go(self) -> None:
        """Steps to the end."""
        total = self.experiment.steps
        if self.step:
            self.reporter.say(f"{self.title}: going on from step {self.step:,}")
        self.reporter.start(self.title, self.step, total)
        if not self.step:
            self._evaluate()
        elif self.evaluations:
            self.reporter.update(self.step, **EpisodeReturns.from_dict(self.evaluations[-1]).figures())
        while self.step < total:
            self._advance()
        # Rows off the schedule come after the last checkpoint: a run with more steps cuts them off again.
        if self.step % self.experiment.log_every:
            self._log()
        if self.step % self.experiment.evaluation.every:
            self._evaluate()
        write_json(self.folder.result, self._result())

    def close(self) -> None:
        """Stops the progress and closes files and environments."""
        self.reporter.stop()
        self.recorder.close()
        self.evaluator.close()

    def _advance(self) -> None:
        step = self.step + 1
        batches = self.setup.streams.batches(step)
        self.state, metrics = self.learner.step(self.state, batches, self.learner.due(step), donate=True)
        self.step = step
        self.pending |= metrics
        if step % self.experiment.log_every == 0:
            self._log()
        if step % self.experiment.evaluation.every == 0:
            self._evaluate()
        if step == self.experiment.steps or step % (self.experiment.checkpoint.every or 1) == 0:
            self._save()
        self.reporter.update(step)

    def _log(self) -> None:
        for name, update in self.learner.updates.items():
            if update.inners:
                now, start = (s.tree[update.params] for s in (self.state, self.setup.start))
                self.pending[f"{name}/params_moved"] = norm({k: v - start[k] for k, v in now.items()})
        values = checkpoints.as_float(dict(sorted(self.pending.items())))
        self.pending = {}
        self._check_flags()
        self.recorder.scalars(self.step, values)

    def _check_flags(self) -> None:
        faults = self.learner.faults(self.state) or [*self.learner.silent(self.state, ZERO_STOP).values()]
        groups = [group for group, ok in finite(self.state).items() if not ok]
        if faults or groups:
            what = faults[0] if faults else _nonfinite_groups(groups)
            raise NumericalError(
                f"{self.folder.path}, at or before step {self.step:,}: {what}. What was saved before is kept"
            )
        for name, text in self.learner.silent(self.state, ZERO_WARN).items():
            if name not in self.warned:
                self.warned.add(name)
                self.reporter.say(f"warning: {text}")

    def _evaluate(self) -> None:
        policy = Policy(self.learner, self.state.tree, self.setup.statistics)
        result: EpisodeReturns = self.evaluator(policy, self.step)
        self.evaluations.append({"step": self.step, **result.to_dict()})
        values = {
            "evaluation/return": result.mean,
            "evaluation/return_std": float(torch.tensor(result.returns, dtype=torch.float64).std(correction=0)),
            "evaluation/length": float(torch.tensor(result.lengths, dtype=torch.float64).mean()),
        }
        if result.success is not None:
            values["evaluation/success"] = result.success
        if result.reached:
            values["evaluation/steps_to_goal"] = sum(result.reached) / len(result.reached)
        batches = self.setup.streams.batches(max(self.step, 1))
        for name, probe in self.learner.probes.items():
            row, scalars, outputs = examine(probe, self.state.tree, self.setup.start.tree, batches)
            self.recorder.probe(self.step, name, row, outputs)
            values |= {f"{name}/output_{key}": value for key, value in scalars.items()}
        self.recorder.scalars(self.step, values)
        self.reporter.update(self.step, **result.figures())

    def _save(self) -> None:
        self._check_flags()
        tensors = checkpoints.flatten(self.state._asdict())
        if self.setup.statistics is not None:
            tensors |= {f"statistics/{k}": v for k, v in self.setup.statistics.to_dict().items()}
        tensors |= {f"pending/{k}": v for k, v in self.pending.items()}
        record = {
            "config_hash": self.experiment.hash,
            "spec": dataclasses.asdict(self.setup.spec),
            "env": self.setup.env,
            "data": self._data_digests(),
            "plugins": plugin_digests(self.experiment),
            "sizes": self.recorder.sizes(),
            "evaluations": self.evaluations,
        }
        checkpoints.save(self.folder.checkpoints, self.step, tensors, record, self.experiment.checkpoint.keep)

    def _result(self) -> dict[str, Any]:
        return {
            "name": self.experiment.name,
            "hash": self.experiment.hash,
            "seed": self.seed,
            "steps": self.step,
            "environment": environment(),
            "data": {name: d.card.to_dict() for name, d in self.setup.data.items()},
            "evaluations": self.evaluations,
        }

    def _data_digests(self) -> dict[str, str]:
        return {name: d.card.sha256 for name, d in self.setup.data.items()}

    def _check_origin(self, saved: checkpoints.Saved) -> None:
        remedy = f"to go on from {self.folder.path}, bring the former one back; else give the experiment another name"
        for name, digest in self._data_digests().items():
            if saved.record["data"].get(name) != digest:
                raise DataError(f"data.{name} has changed since this run was begun (its sha256 differs); {remedy}")
        for name, digest in plugin_digests(self.experiment).items():
            if saved.record["plugins"].get(name) != digest:
                raise ConfigError(f"the file of {name!r} has changed since this run was begun; {remedy}")


def _nonfinite_groups(groups: list[str]) -> str:
    return (
        f"a parameter or moment of {', '.join(groups)} became NaN or infinite; lower the learning rate, or look for "
        "extreme values with `metarl data inspect`"
    )


def plugin_digests(experiment: Experiment) -> dict[str, str]:
    """sha256 of the file of every component named `module:Class`, which no hash of the configuration covers."""
    nodes = [experiment.resolved["algorithm"], *experiment.resolved["objective"]]
    built = [experiment.algorithm, *experiment.objectives]
    return {
        node["name"]: hashlib.sha256(Path(inspect.getfile(type(component))).read_bytes()).hexdigest()
        for node, component in zip(nodes, built, strict=True)
        if ":" in node["name"]
    }


def _restore(
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
    name: str,
    role: Role,
    seed: int,
    beside: Path | None,
    loaded: Mapping[str, Transitions],
) -> dict[str, Transitions]:
    if role.source in loaded:
        return {}
    if role.source not in experiment.data:
        raise ConfigError(
            f"{experiment.where}: the experiment needs data.{role.source} (role {name!r}), and has "
            f"{', '.join(experiment.data)}; add, for example, "
            f"'{role.source}: {{recipe: <name>/<level>, tuples: 200}}' under data"
        )
    found = _load(experiment, role.source, seed, beside)
    ours, theirs = loaded["train"].layout, found.layout
    if ours != theirs:
        raise DataError(
            f"{experiment.where}: data.{role.source} has observations of {theirs.obs_dim} and actions of "
            f"{theirs.action_dim} numbers, "
            f"data.train {ours.obs_dim} and {ours.action_dim}; both must come from one environment"
        )
    environments = loaded["train"].card.env_id, found.card.env_id
    if None not in environments and len(set(environments)) > 1:
        raise DataError(
            f"{experiment.where}: data.{role.source} comes from {environments[1]}, data.train from {environments[0]}; "
            "both must come from one environment"
        )
    return {role.source: found}


def _saved_spec(record: Mapping[str, Any]) -> Spec:
    tuples = {name: tuple(record.get(name, ())) for name in ("max_action", "obs_keys")}
    return Spec(record["obs_dim"], record["action_dim"], **tuples)


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


def _dtype(experiment: Experiment) -> torch.dtype:
    return {"float32": torch.float32, "float64": torch.float64}[experiment.precision]
