"""What can be known before a suite's first run: its data is here, and every cell's parts fit together."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from benchmarks.suite import Suite
from metarl import data
from metarl.config import Experiment
from metarl.data.sources import DataSource
from metarl.data.transitions import Transitions
from metarl.envs import env_spec, make_env, spec_of
from metarl.errors import ConfigError, DatasetUnavailable, UserError
from metarl.training.offline import build_learner


def check(suite: Suite) -> None:
    """Loads every dataset once and builds every cell's learner.

    Raises:
        DatasetUnavailable: one error with the commands that make all the missing datasets.
        UserError: a cell whose parts do not fit together; names the suite and the cell.
    """
    loaded: dict[DataSource, Transitions] = {}
    missing: dict[str, None] = {}
    for cell in suite.cells:
        for role, source in cell.experiment.data.items():
            if source not in loaded:
                try:
                    loaded[source] = data.load(source, torch.Generator(), role, folder=suite.path.parent)
                except DatasetUnavailable as error:
                    missing[_command(str(error))] = None
                except UserError as error:
                    raise type(error)(f"{suite.path} ({cell.title}): {error}") from error
    if missing:
        raise DatasetUnavailable(f"{suite.path}: some data is not on this machine; get it with: {' && '.join(missing)}")
    for cell in suite.cells:
        try:
            _fit(cell.experiment, loaded)
        except UserError as error:
            raise type(error)(f"{suite.path} ({cell.title}): {error}") from error


def _fit(experiment: Experiment, loaded: Mapping[DataSource, Transitions]) -> None:
    train = loaded[experiment.data["train"]]
    env = env_spec(experiment.evaluation.env) if experiment.evaluation.env else train.card.env_spec
    if env is None:
        raise ConfigError("the training data names no environment; set evaluation.env to a Gymnasium id")
    made = make_env(env)
    learner = build_learner(experiment, spec_of(made), seed=0)
    made.close()
    for name, role in learner.roles.items():
        if role.source not in experiment.data:
            raise ConfigError(
                f"the experiment needs data.{role.source} (role {name!r}); add, for example, "
                f"'{role.source}: {{recipe: pendulum/expert, tuples: 200}}' under data"
            )


def _command(text: str) -> str:
    """The command in backticks that an error tells the user to run; the whole text where there is none."""
    found = re.search(r"`(metarl [^`]+)`", text)
    return found.group(1) if found else text
