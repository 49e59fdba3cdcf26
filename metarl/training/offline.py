"""The loop: from an experiment and its seeds to runs' folders, resumable to the same numbers.

Gradient steps on data are all that an offline run is made of; where there is an online phase, each of its environment
steps (`metarl.training.online`) is followed by the gradient steps that belong to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from metarl.bilevel import Batches, Metrics, TrainState, Update
from metarl.bilevel.compiling import has_compiler
from metarl.config import Experiment
from metarl.errors import CheckpointError, ConfigError, NumericalError
from metarl.learner import Learner
from metarl.process import settle
from metarl.training import checkpoints
from metarl.training.evaluation import EpisodeReturns, Policy
from metarl.training.folder import RunFolder
from metarl.training.online import Actor
from metarl.training.progress import Reporter
from metarl.training.run import Run
from metarl.training.setup import build_learner, dtype_of, prepare, restore, saved_spec
from metarl.training.stepping import Mode, Stepping, auto, eager_only, stacked, unstacked


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
    setups = [prepare(experiment, seed, beside, root) for seed in seeds]
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
        if runs:
            for text in _idle(experiment, runs[0].learner):
                reporter.say(f"note: {experiment.where}: {text}")
        for together in _abreast(runs, experiment.checkpoint.every or 1, reporter.say) if runs else []:
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


def _idle(experiment: Experiment, learner: Learner) -> Iterator[str]:
    """A sentence on everything that will do nothing."""
    lived, online = experiment.steps - experiment.offline_steps, experiment.online
    if online is not None and lived and experiment.gradient_steps == experiment.offline_steps:
        yield (
            f"the {lived:,} environment steps end before the first update (online.learn_from={online.learn_from}, "
            f"updates_per_step={online.updates_per_step:g}), so nothing is learned from them; set more steps, or a "
            "smaller learn_from"
        )
    if experiment.gradient_steps:
        yield from _never_due(learner, experiment.gradient_steps, "gradient " if experiment.online else "")


def _never_due(learner: Learner, steps: int, unit: str = "") -> Iterator[str]:
    """A sentence on every Update that is due at none of the steps."""
    for update in learner.updates.values():
        together = [update, *(inner for inner in update.inners if inner.name in learner.updates)]
        latest = max(together, key=lambda u: u.start)
        # Its period is a multiple of its inners': after their starts, all are due at its first multiple, or never.
        first = (latest.start // update.every + 1) * update.every
        if update.name not in learner.due(first):
            end, name = min((u.stop, u.name) for u in together if u.stop is not None)
            yield (
                f"update {update.name!r} is never due, so it does nothing: with every={update.every} it would be at "
                f"step {first:,}, and {name!r} ends at {end:,}; make every smaller, or let {name!r} end later"
            )
        elif first > steps:
            waits = update.every <= latest.start
            why = f"{latest.name!r} starts after {latest.start:,}" if waits else f"every={update.every}"
            yield (
                f"update {update.name!r} is not due in these {steps:,} {unit}steps, so it does nothing: it is first "
                f"due at {unit}step {first:,} ({why}); "
                f"{'let the run be longer' if unit else f'set steps={first} or more'}, or let it begin sooner"
            )


def _abreast(runs: list[Run], interval: int, say: Callable[[str], None]) -> list[list[Run]]:
    """Runs that go on from the same step.

    A kill between the checkpoints of two seeds leaves one of them an interval ahead: it goes back to the step that all
    have. Seeds that are further apart make stacks of their own.
    """
    newest, oldest = max(run.step for run in runs), min(run.step for run in runs)
    if oldest < newest <= oldest + interval and all(run.has(oldest) for run in runs):
        for run in runs:
            if run.step > oldest:
                say(f"seed {run.seed} goes back from step {run.step:,} to {oldest:,}, where the other seeds are")
                run.go_back(oldest)
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
        mode = self._mode()
        self.stepping = Stepping(
            self.learner,
            self._together([run.state for run in runs]),
            mode,
            stack=self.stack,
            say=reporter.say,
            insist=experiment.compile != "auto",
        )
        self._actor: Actor | None = None
        self._save_due = False

    def _mode(self) -> Callable[[frozenset[str]], Mode]:
        where, wanted = self.experiment.where, self.experiment.compile
        if wanted == "off":
            return lambda due: "eager"
        if wanted == "on":
            if not has_compiler():
                raise ConfigError(f"{where}: compile: on needs a C++ compiler; set CXX, install g++, or use auto")
            return lambda due: "compiled"
        modes = auto(self.learner, self.experiment.gradient_steps)
        if "compiled" in modes.values() and not has_compiler():
            self.reporter.say("there is no C++ compiler (set CXX, or install g++), so steps are recorded, not compiled")
            modes = {due: "recorded" if mode == "compiled" else mode for due, mode in modes.items()}
        return lambda due: modes.get(due, "eager")

    def go(self) -> None:
        """Steps to the end."""
        total = self.experiment.steps
        if self.stack:
            self._check_alike()
        if self.step:
            self.reporter.say(f"{self.title}: going on from step {self.step:,}")
        with ExitStack() as opened:
            for run in self.runs:
                run.open(len(self.runs))
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
            if self.pending or any(run.interaction and run.interaction.pending for run in self.runs):
                self._log()
            if any(run.evaluated != self.step for run in self.runs):
                self._evaluate()
            for run in self.runs:
                run.finish(self.step)

    def _advance(self) -> None:
        before = self.step
        if before < self.experiment.offline_steps:
            self._learn(before + 1)
            self.step = before + 1
        else:
            self._interact()
        if self._passed(before, self.experiment.log_every):
            self._log()
        if self._passed(before, self.experiment.evaluation.every):
            self._evaluate()
        self._save_due |= self._passed(before, self.experiment.checkpoint.every or 1)
        if self.step == self.experiment.steps or (self._save_due and self._at_rest()):
            self._save_due = False
            for run, state, pending in zip(self.runs, self._states(), self._apart(self.pending), strict=True):
                with self._others(run):
                    run.save(state, self.step, pending)
        self.reporter.update(self.step)

    def _passed(self, before: int, every: int) -> bool:
        """Whether a multiple of `every` was reached since `before`: several environments are stepped at once."""
        return self.step // every > before // every

    def _learn(self, step: int) -> None:
        """One gradient step."""
        due = self.learner.due(step)
        self.pending |= self.stepping(self._batches(step, due), due)

    def _interact(self) -> None:
        """One step of the environments, and the gradient steps that belong to it."""
        (run,) = self.runs
        interaction = run.interaction
        assert interaction is not None
        if self._actor is None:
            eager = self.experiment.compile == "off"
            self._actor = Actor(Policy(self.learner, self.stepping.state.tree, run.setup.statistics), eager)
        for figures in interaction.step(self._actor):
            self._after_episode(figures)
        done = self.experiment.gradient_steps_at(self.step)
        self.step = self.experiment.offline_steps + interaction.steps
        run.setup.streams.live = True
        for step in range(done + 1, self.experiment.gradient_steps_at(self.step) + 1):
            self._learn(step)

    def _after_episode(self, figures: Mapping[str, float]) -> None:
        """What changes between two episodes, written where programs read it."""
        tree = self.stepping.state.tree
        if self.learner.after_episode is not None:
            for group, values in self.learner.after_episode(tree, figures).items():
                for name, value in values.items():
                    tree[group][name].copy_(value)

    def _at_rest(self) -> bool:
        """Whether the first environment is between two episodes, where a checkpoint is cheapest to go on from."""
        return all(run.interaction is None or run.interaction.between_episodes for run in self.runs)

    def _log(self) -> None:
        for run, state, metrics in zip(self.runs, self._states(), self._apart(self.pending), strict=True):
            with self._others(run):
                run.log(state, self.step, metrics)
        self.pending = {}

    def _evaluate(self) -> None:
        self._tell([run.evaluate(state, self.step) for run, state in zip(self.runs, self._states(), strict=True)])

    def _tell(self, evaluations: Sequence[EpisodeReturns | None]) -> None:
        """Figures to watch, their means over seeds."""
        figures = [found.figures() for found in evaluations if found is not None]
        if figures:
            self.reporter.update(self.step, **{k: sum(f[k] for f in figures) / len(figures) for k in figures[0]})

    def _batches(self, step: int, due: frozenset[str] | None = None) -> Batches:
        batches: Batches = self._together([run.setup.streams.batches(step, due) for run in self.runs])
        return batches

    def _together(self, trees: Sequence[Any]) -> Any:
        return stacked(trees) if self.stack else trees[0]

    def _apart(self, tree: Metrics) -> list[Metrics]:
        return [unstacked(tree, i) for i in range(self.stack)] if self.stack else [tree]

    def _states(self) -> list[TrainState]:
        state = self.stepping.state
        return [unstacked(state, i) for i in range(self.stack)] if self.stack else [state]

    @contextmanager
    def _others(self, run: Run) -> Iterator[None]:
        """Says what becomes of the other seeds of a stack where one of them fails."""
        try:
            yield
        except NumericalError as error:
            if not self.stack:
                raise
            others = ",".join(str(other.seed) for other in self.runs if other is not run)
            raise NumericalError(f"{error}. The other seeds wait at their last checkpoint: seeds=[{others}]") from error

    def _check_alike(self) -> None:
        """Every estimate of every seed by its own learner, against the stack's: numbers hidden in a loss would differ.

        Raises:
            ConfigError: they do, or the learner cannot run in a stack.
        """
        where, state, step = self.experiment.where, self.stepping.state, self.step + 1
        updates = list(self.learner.updates.values())
        if names := eager_only(updates):
            raise ConfigError(f"{where}: the library that {', '.join(names)} goes through takes no stack; use stack: 1")
        batches = self._batches(step)
        try:
            trial = Stepping(self.learner, state, "recorded", stack=self.stack, insist=False)
            trial(batches, self.learner.due(step))
            together = torch.vmap(partial(_judged, updates))(state, batches)
        except Exception as error:  # whatever vmap cannot do, it raises as it likes
            first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise ConfigError(f"{where}: a step cannot be taken in a stack ({first}); use stack: 1") from error
        for i, run in enumerate(self.runs):
            alone = _judged(list(run.learner.updates.values()), run.state, unstacked(batches, i))
            for name, value in alone.items():
                other = together[name][i]
                # A hypergradient is a difference of large numbers: another rounding shows in it.
                if value.isfinite().all() and (value - other).abs().max() > 0.05 * value.abs().max() + 1e-7:
                    raise ConfigError(
                        f"{where}: seed {run.seed} by itself has another {name} than in a stack, so its learner holds "
                        "numbers drawn from the seed outside its parameter groups; keep them in Learner.tensors, or "
                        "use stack: 1"
                    )


def _judged(updates: Sequence[Update], state: TrainState, batches: Batches) -> dict[str, torch.Tensor]:
    """Losses and gradients of Updates on one state, whatever their schedules."""
    found: dict[str, torch.Tensor] = {}
    for update in updates:
        estimate = update.gradient(update, state, batches)
        if estimate.loss is not None:
            found[f"loss of {update.name}"] = estimate.loss.detach()
        found |= {f"gradient of {update.name} ({name})": g.detach() for name, g in estimate.grads.items()}
    return found
