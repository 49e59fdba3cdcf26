"""The offline loop: from an experiment and its seeds to runs' folders, resumable to the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from metarl.bilevel import Batches, Metrics, TrainState
from metarl.bilevel.compiling import has_compiler
from metarl.config import Experiment
from metarl.errors import CheckpointError, ConfigError
from metarl.process import settle
from metarl.training import checkpoints
from metarl.training.evaluation import EpisodeReturns, Policy
from metarl.training.folder import RunFolder
from metarl.training.progress import Reporter
from metarl.training.run import Run
from metarl.training.setup import build_learner, dtype_of, prepare, restore, saved_spec
from metarl.training.stepping import Stepping, auto, stacked, unstacked


def train(experiment: Experiment, seed: int, root: Path, reporter: Reporter, beside: Path | None = None) -> Path:
    """Trains one seed, or goes on from its newest checkpoint, and returns the run's folder; see `train_stack`."""
    return train_stack(experiment, (seed,), root, reporter, beside)[0]


def train_stack(
    experiment: Experiment, seeds: Sequence[int], root: Path, reporter: Reporter, beside: Path | None = None
) -> list[Path]:
    """Trains seeds together, one program for all of them, or goes on from their checkpoints; returns their folders.

    Args:
        experiment: as `metarl.config.load` gives it.
        seeds: each names a folder and every random draw of its run.
        root: where run folders lie.
        reporter: shows progress.
        beside: folder of the YAML file, for recipes named `module:Class`.

    Raises:
        UserError: bad configuration, data, checkpoint or numbers; nothing that was saved is lost.
    """
    settle()
    setups = [prepare(experiment, seed, beside) for seed in seeds]
    for name in sorted(set(experiment.data) - set(setups[0].data)):
        reporter.say(f"note: {experiment.where}: data.{name} is not used by this algorithm and objective")
    for setup in setups:
        setup.learner.check(setup.start, setup.streams.batches(1))
    folders = [RunFolder.of(experiment, seed, root) for seed in seeds]
    with ExitStack() as held:
        runs = []
        for seed, folder, setup in zip(seeds, folders, setups, strict=True):
            held.enter_context(folder.held())
            run = Run(experiment, seed, folder, setup, reporter)
            folder.write_config(experiment)
            if run.complete:
                text = f"already at step {run.step:,}; set more steps to go on ({folder.path})"
                reporter.say(f"{experiment.name} seed {seed}: {text}")
            else:
                runs.append(run)
        for together in _abreast(runs):
            _Loop(experiment, together, reporter).go()
    return [folder.path for folder in folders]


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
    spec = saved_spec(saved.record["spec"])
    learner = build_learner(experiment, spec, folder.seed)
    state, statistics, _ = restore(learner.init(dtype_of(experiment)), saved, folder)
    return Policy(learner, state.tree, statistics, spec.obs_keys), saved.record["env"], saved.step


def _abreast(runs: list[Run]) -> list[list[Run]]:
    """Runs that go on from the same step: the newest that all of them have, or else stacks of their own."""
    if not runs:
        return []
    common = set.intersection(*(set(run.steps) for run in runs))
    if len(runs) > 1 and (step := max(common)) > 0:
        for run in runs:
            run.go_back(step)
    by_step: dict[int, list[Run]] = {}
    for run in runs:
        by_step.setdefault(run.step, []).append(run)
    return list(by_step.values())


class _Loop:
    """Runs that take their steps together."""

    def __init__(self, experiment: Experiment, runs: list[Run], reporter: Reporter) -> None:
        self.experiment, self.runs, self.reporter = experiment, runs, reporter
        self.learner, self.step = runs[0].learner, runs[0].step
        self.stack = len(runs) if len(runs) > 1 else None
        seeds = ", ".join(str(run.seed) for run in runs)
        self.title = f"{experiment.name} seed{'s' if self.stack else ''} {seeds}"
        self.pending: Metrics = self._together([run.pending for run in runs])
        compiler = has_compiler()
        modes = {"on": "compiled", "off": "eager"}
        if experiment.compile == "on" and not compiler:
            raise ConfigError(
                f"{experiment.where}: compile: on needs a C++ compiler; set CXX, install g++, or use auto"
            )
        mode = modes.get(experiment.compile) or auto(self.learner, experiment.steps, compiler)
        self.stepping = Stepping(
            self.learner,
            self._together([run.state for run in runs]),
            mode,  # type: ignore[arg-type]
            stack=self.stack,
            say=reporter.say,
            insist=experiment.compile != "auto",
        )

    def go(self) -> None:
        """Steps to the end."""
        total = self.experiment.steps
        if self.stack:
            self._check_alike()
        if self.step:
            self.reporter.say(f"{self.title}: going on from step {self.step:,}")
        with ExitStack() as opened:
            for run in self.runs:
                run.open()
                opened.callback(run.close)
            self.reporter.start(self.title, self.step, total)
            opened.callback(self.reporter.stop)
            if not self.step:
                self._evaluate()
            else:
                self._tell([run.newest for run in self.runs])
            while self.step < total:
                self._advance()
            # Rows off the schedule come after the last checkpoint: a run with more steps cuts them off again.
            if self.step % self.experiment.log_every:
                self._log()
            if self.step % self.experiment.evaluation.every:
                self._evaluate()
            for run in self.runs:
                run.finish(self.step)

    def _advance(self) -> None:
        step = self.step + 1
        self.pending |= self.stepping(self._batches(step), self.learner.due(step))
        self.step = step
        if step % self.experiment.log_every == 0:
            self._log()
        if step % self.experiment.evaluation.every == 0:
            self._evaluate()
        if step == self.experiment.steps or step % (self.experiment.checkpoint.every or 1) == 0:
            for run, state, pending in zip(self.runs, self._states(), self._apart(self.pending), strict=True):
                run.save(state, step, pending)
        self.reporter.update(step)

    def _log(self) -> None:
        for run, state, metrics in zip(self.runs, self._states(), self._apart(self.pending), strict=True):
            run.log(state, self.step, metrics)
        self.pending = {}

    def _evaluate(self) -> None:
        self._tell([run.evaluate(state, self.step) for run, state in zip(self.runs, self._states(), strict=True)])

    def _tell(self, evaluations: Sequence[EpisodeReturns | None]) -> None:
        """Figures to watch, their means over seeds."""
        figures = [found.figures() for found in evaluations if found is not None]
        if figures:
            self.reporter.update(self.step, **{k: sum(f[k] for f in figures) / len(figures) for k in figures[0]})

    def _batches(self, step: int) -> Batches:
        batches: Batches = self._together([run.setup.streams.batches(step) for run in self.runs])
        return batches

    def _together(self, trees: Sequence[Any]) -> Any:
        return stacked(trees) if self.stack else trees[0]

    def _apart(self, tree: Metrics) -> list[Metrics]:
        return [unstacked(tree, i) for i in range(self.stack)] if self.stack else [tree]

    def _states(self) -> list[TrainState]:
        state = self.stepping.state
        return [unstacked(state, i) for i in range(self.stack)] if self.stack else [state]

    def _check_alike(self) -> None:
        """One step of every seed by its own learner, against the stack's: numbers hidden in a loss would differ."""
        due = self.learner.due(self.step + 1)
        batches = self._batches(self.step + 1)
        together = Stepping(self.learner, self.stepping.state, stack=self.stack)(batches, due)
        for i, run in enumerate(self.runs):
            alone = Stepping(run.learner, run.state)(unstacked(batches, i), due)
            for name, value in alone.items():
                if name.endswith("/loss") and not torch.allclose(value, together[name][i], rtol=1e-3, atol=1e-5):
                    raise ConfigError(
                        f"{self.experiment.where}: seed {run.seed} has {name} = {float(value):.6g} by itself and "
                        f"{float(together[name][i]):.6g} in a stack, so its learner holds numbers drawn from the seed "
                        "outside its parameter groups; keep them in Learner.tensors, or use stack: 1"
                    )
