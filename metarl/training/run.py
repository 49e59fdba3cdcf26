"""One seed of an experiment in its folder: what it writes, and what it goes on from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from metarl.bilevel import Metrics, TrainState
from metarl.bilevel.autodiff import norm
from metarl.bilevel.state import finite
from metarl.config import Experiment
from metarl.envs import make_env
from metarl.errors import CheckpointError, ConfigError, DataError, NumericalError
from metarl.provenance import environment
from metarl.training import checkpoints, watching
from metarl.training.cost import Meter
from metarl.training.evaluation import EpisodeReturns, Evaluator, Policy
from metarl.training.folder import RunFolder, write_json
from metarl.training.online import Interaction
from metarl.training.progress import Reporter
from metarl.training.recorder import Recorder, examine
from metarl.training.setup import Setup, plugin_digests, restore

ZERO_WARN, ZERO_STOP = 50, 500  # hypergradients of exactly zero in a row


class Run:
    """One seed in its folder.

    Attributes:
        state, step, pending: where its checkpoint left it: what has been trained, the steps taken, and metrics not yet
            logged.
    """

    def __init__(self, experiment: Experiment, seed: int, folder: RunFolder, setup: Setup, reporter: Reporter) -> None:
        self.experiment, self.seed, self.folder, self.reporter = experiment, seed, folder, reporter
        self.setup, self.learner = setup, setup.learner
        self._warned: set[str] = set()
        self._begin(checkpoints.load_newest(folder.checkpoints, reporter.say))

    def has(self, step: int) -> bool:
        """Whether it could go on from that step."""
        try:
            return step in (0, self.step) or bool(checkpoints.load(self.folder.checkpoints, step))
        except CheckpointError:
            return False

    def go_back(self, step: int) -> None:
        """Goes on from the checkpoint of an earlier step, or from the start; later ones are removed."""
        saved = checkpoints.load(self.folder.checkpoints, step) if step else None
        checkpoints.remove_after(self.folder.checkpoints, step)
        self._begin(saved)

    def _begin(self, saved: checkpoints.Saved | None) -> None:
        self.state, self.step = self.setup.start, 0
        self.pending: Metrics = {}
        self._evaluations: list[dict[str, Any]] = []
        self._sizes: Mapping[str, int] = {}
        self._lived: dict[str, Any] | None = None
        if saved is not None:
            self._check_origin(saved)
            self.state, _, self.pending = restore(self.setup.start, saved, self.folder)
            self.step, self._evaluations = saved.step, saved.record["evaluations"]
            self._sizes = saved.record["sizes"]
            self._lived = saved.record.get("online")

    @property
    def complete(self) -> bool:
        """Whether result.json already tells of all the steps."""
        return self.step >= self.experiment.steps and self.folder.steps_on_record() == self.step

    @property
    def evaluated(self) -> int | None:
        """The step of the last evaluation so far."""
        return self._evaluations[-1]["step"] if self._evaluations else None

    @property
    def newest(self) -> EpisodeReturns | None:
        """The last evaluation so far."""
        return EpisodeReturns.from_dict(self._evaluations[-1]) if self._evaluations else None

    def open(self, together: int) -> None:
        """Opens files and environments; what was written after the checkpoint is cut off.

        Args:
            together: seeds that share the process.
        """
        self.interaction = self._met() if self.setup.online is not None else None
        self._recorder = Recorder(self.folder, self.step, self._sizes)
        self._evaluator = Evaluator(lambda: make_env(self.setup.env), self.experiment.evaluation.episodes, self.seed)
        self._meter = Meter(self.folder, self.step, together)

    def _met(self) -> Interaction:
        """The training environments, where the checkpoint left them."""
        online, settings = self.setup.online, self.experiment.online
        assert online is not None and settings is not None
        interaction = Interaction(
            lambda: make_env(online.env),
            settings,
            online.replay,
            self.setup.spec.max_action,
            self.seed,
            self.learner.exploration,
        )
        if self._lived is None:
            self.folder.replay.unlink(missing_ok=True)  # of a run that was killed before its first checkpoint
            return interaction
        try:
            interaction.restore(self.folder, self._lived)
        except BaseException:
            interaction.close()
            raise
        self.setup.streams.live = interaction.steps > 0
        return interaction

    def close(self) -> None:
        """Closes files and environments."""
        self._recorder.close()
        self._evaluator.close()
        if self.interaction is not None:
            self.interaction.close()

    def log(self, state: TrainState, step: int, metrics: Metrics) -> None:
        """One row of every metric; raises NumericalError where something became NaN or infinite."""
        for name, update in self.learner.updates.items():
            if update.inners:
                now, start = (s.tree[update.params] for s in (state, self.setup.start))
                metrics = {**metrics, f"{name}/params_moved": norm({k: v - start[k] for k, v in now.items()})}
        values = checkpoints.as_float(dict(sorted(metrics.items())))
        if self.interaction is not None:
            values |= self.interaction.figures()
        self._check_flags(state, step)
        self._recorder.scalars(step, values)

    def evaluate(self, state: TrainState, step: int) -> EpisodeReturns:
        """Runs the policy in its own environments, and looks at what has been learned."""
        policy = Policy(self.learner, state.tree, self.setup.statistics)
        result: EpisodeReturns = self._evaluator(policy, step)
        self._evaluations.append({"step": step, **result.to_dict()})
        values = {
            "evaluation/return": result.mean,
            "evaluation/return_std": float(torch.tensor(result.returns, dtype=torch.float64).std(correction=0)),
            "evaluation/length": float(torch.tensor(result.lengths, dtype=torch.float64).mean()),
        }
        if result.success is not None:
            values["evaluation/success"] = result.success
        if result.reached:
            values["evaluation/steps_to_goal"] = sum(result.reached) / len(result.reached)
        if "train" in self.setup.data or self.setup.streams.live:  # else there is nothing yet to look at
            values |= self._look(state, step)
        self._recorder.scalars(step, values)
        return result

    def _look(self, state: TrainState, step: int) -> dict[str, float]:
        """What learned functions do on a training batch, and the policy's terms on data that is watched."""
        batches = self.setup.streams.batches(max(self.experiment.gradient_steps_at(step), 1))
        values: dict[str, float] = {}
        for name, probe in self.learner.probes.items():
            row, scalars, outputs = examine(probe, state.tree, self.setup.start.tree, batches)
            self._recorder.probe(step, name, row, outputs)
            values |= {f"{name}/output_{key}": value for key, value in scalars.items()}
        for name, rows in self.setup.watched.items():
            terms = watching.terms(self.learner, state.tree, rows, batches)
            values |= {f"watch/{name}/{term}": value for term, value in terms.items()}
        return values

    def save(self, state: TrainState, step: int, pending: Metrics) -> None:
        """Writes a checkpoint, once the flags say that it is worth keeping."""
        self._check_flags(state, step)
        tensors = checkpoints.flatten(state._asdict())
        if self.setup.statistics is not None:
            tensors |= {f"statistics/{k}": v for k, v in self.setup.statistics.to_dict().items()}
        tensors |= {f"pending/{k}": v for k, v in pending.items()}
        record = {
            "config_hash": self.experiment.hash,
            "spec": dataclasses.asdict(self.setup.spec),
            "span": self.learner.span,
            "env": self.setup.env,
            "data": self._data_digests(),
            "plugins": plugin_digests(self.experiment),
            **({"init": self._init_digests()} if self.experiment.init else {}),
            "sizes": self._recorder.sizes(),
            "evaluations": self._evaluations,
        }
        if self.interaction is not None:
            record["online"] = self.interaction.save(self.folder)
        checkpoints.save(self.folder.checkpoints, step, tensors, record, self.experiment.checkpoint.keep)
        self._meter.write(step)

    def finish(self, step: int) -> None:
        """Writes result.json."""
        result = {
            "name": self.experiment.name,
            "hash": self.experiment.hash,
            "seed": self.seed,
            "steps": step,
            "environment": environment(),
            "data": {name: d.card.to_dict() for name, d in self.setup.data.items()},
            "evaluations": self._evaluations,
        }
        self._meter.write(step)
        write_json(self.folder.result, result)

    def _check_flags(self, state: TrainState, step: int) -> None:
        # Online, a critic that has met no reward yet may have nothing to say for as long as it takes.
        online = self.experiment.online is not None
        faults = self.learner.faults(state) or ([] if online else [*self.learner.silent(state, ZERO_STOP).values()])
        groups = [group for group, ok in finite(state).items() if not ok]
        if faults or groups:
            what = faults[0] if faults else _nonfinite_groups(groups)
            raise NumericalError(
                f"{self.folder.path}, at or before step {step:,}: {what}. What was saved before is kept"
            )
        for name, text in self.learner.silent(state, ZERO_WARN).items():
            if name not in self._warned:
                self._warned.add(name)
                wait = ", or wait for the first reward" if online else ""
                self.reporter.say(f"warning: {text}{wait}")

    def _init_digests(self) -> dict[str, str]:
        """Of the groups that start with another run's values."""
        start = self.setup.start.tree
        return {group: checkpoints.digest_of(start[group]) for group in self.experiment.init}

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
        for group, digest in self._init_digests().items():
            if saved.record.get("init", {}).get(group) != digest:
                raise ConfigError(f"init.{group} has been trained further since this run was begun; {remedy}")
        span = saved.record.get("span")
        if span is not None and span != self.learner.span:
            online = self.experiment.online is not None
            unit, back = ("gradient ", "steps to what they were") if online else ("", f"steps={span}")
            ours = self.learner.span or self.experiment.gradient_steps
            raise ConfigError(
                f"this run's schedules were made for {span:,} {unit}steps, not for {ours:,} "
                "(a setting that is a share of the run is a schedule, too); "
                f"to go on from {self.folder.path}, set {back}; else give the experiment another name"
            )


def _nonfinite_groups(groups: list[str]) -> str:
    return (
        f"a parameter or moment of {', '.join(groups)} became NaN or infinite; lower the learning rate, or look for "
        "extreme values with `metarl data inspect`"
    )
