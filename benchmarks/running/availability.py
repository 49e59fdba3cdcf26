"""What can be known before a suite's first run: its data is here, and every cell's parts fit together."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import torch

from benchmarks.running.suite import Suite
from metarl import config, data
from metarl.config import Experiment
from metarl.data.sources import DataSource
from metarl.data.transitions import Transitions
from metarl.envs import env_spec, make_env, spec_of
from metarl.errors import ConfigError, DatasetUnavailable, UserError
from metarl.training.setup import build_learner


def fitted(suite: Suite) -> Suite:
    """The suite with only the data that each cell's learner reads, so that an unused guide changes no run's hash.

    Loads every dataset once and builds every cell's learner.

    Raises:
        DatasetUnavailable: one error with the commands that make all the missing datasets.
        UserError: a cell whose parts do not fit together; names the suite and the cell.
    """
    loaded = _load(suite)
    cells = []
    for cell in suite.cells:
        try:
            cells.append(replace(cell, experiment=_fitted(cell.experiment, loaded, suite)))
        except UserError as error:
            raise type(error)(f"{suite.path} ({cell.title}): {error}") from error
    return replace(suite, cells=tuple(cells))


def _load(suite: Suite) -> dict[DataSource, Transitions]:
    loaded: dict[DataSource, Transitions] = {}
    missing: dict[str, None] = {}
    for cell in suite.cells:
        for role, source in cell.experiment.data.items():
            if source in loaded:
                continue
            try:
                loaded[source] = data.load(source, torch.Generator(), role, folder=suite.path.parent)
            except DatasetUnavailable as error:
                missing[_command(str(error))] = None
            except UserError as error:
                raise type(error)(f"{suite.path} ({cell.title}): {error}") from error
    if missing:
        raise DatasetUnavailable(f"{suite.path}: some data is not on this machine; get it with: {' && '.join(missing)}")
    return loaded


def _fitted(experiment: Experiment, loaded: Mapping[DataSource, Transitions], suite: Suite) -> Experiment:
    train = loaded[experiment.data["train"]]
    env = env_spec(experiment.evaluation.env) if experiment.evaluation.env else train.card.env_spec
    if env is None:
        raise ConfigError("the training data names no environment; set evaluation.env to a Gymnasium id")
    made = make_env(env)
    learner = build_learner(experiment, spec_of(made), seed=0)
    made.close()
    used = {"train"} | {role.source for role in learner.roles.values()} | set(experiment.watch)
    if absent := sorted(used - set(experiment.data)):
        raise ConfigError(
            f"this algorithm and objective need data.{absent[0]}; add, for example, "
            f"'{absent[0]}: {{recipe: pendulum/expert, tuples: 200}}' under data"
        )
    kept = {role: source for role, source in experiment.resolved["data"].items() if role in used}
    return config.build({**experiment.resolved, "data": kept}, str(suite.path), suite.path.parent)


def _command(text: str) -> str:
    """The command that an error tells the user to run; the whole text where there is none."""
    found = re.search(r"run: (.+)$", text)
    return found.group(1) if found else text
