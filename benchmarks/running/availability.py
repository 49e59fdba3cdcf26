"""What can be known before a suite's first run: its data is here, and every cell's parts fit together."""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.running.suite import Cell, Suite, check_distinct
from metarl import config, data
from metarl.config import Experiment
from metarl.data.sources import DataSource
from metarl.data.transitions import Card
from metarl.envs import make_env, spec_of
from metarl.errors import ConfigError, DataError, DatasetUnavailable, UserError, nearest, one_line
from metarl.training.setup import build_learner, environments, of_run

MANY = 20  # cells, from which on checking them takes long enough to be announced


def fitted(suite: Suite, say: Callable[[str], None] = lambda text: None) -> Suite:
    """The suite with only the data that each cell's learner reads, so that an unused guide changes no run's hash.

    Loads every dataset once, one at a time, and builds every cell's learner.

    Args:
        suite: as it was loaded.
        say: is told of work that takes long.

    Raises:
        DatasetUnavailable: one error with the commands that make all the missing datasets.
        UserError: a cell whose parts do not fit together; names the suite and the cell.
    """
    if len(suite.cells) >= MANY:
        say(f"checking {len(suite.cells)} cells")
    cards = _Cards(suite)
    cells = []
    for cell in suite.cells:
        try:
            cells.append(replace(cell, experiment=_fitted(cell.experiment, cards, suite)))
        except DatasetUnavailable as error:
            cards.missing[_command(str(error))] = None
        except DataError as error:
            raise type(error)(_within(suite, cell, error)) from error
        except UserError as error:
            raise type(error)(f"{_within(suite, cell, error)}. {_advice(cell)}") from error
        except Exception as error:  # of a component, such as a plug-in's
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(last.filename).name}, line {last.lineno}"
            raise ConfigError(f"{suite.path} ({cell.title}): {one_line(error)} ({place})") from error
    if cards.missing:
        commands = "".join(f"\n  {command}" for command in cards.missing)
        raise DatasetUnavailable(f"{suite.path}: some data is not on this machine; get it with:{commands}")
    why = "they differ in data that neither of them reads, so take that axis out"
    check_distinct(suite.path, cells, why)
    return replace(suite, cells=tuple(cells))


class _Cards:
    """What is known of every dataset that has been loaded; the data itself is not kept."""

    def __init__(self, suite: Suite) -> None:
        self.folder = suite.path.parent
        self.missing: dict[str, None] = {}
        self._known: dict[DataSource, Card | DatasetUnavailable] = {}

    def __call__(self, experiment: Experiment, role: str) -> Card:
        """The card of the dataset of a role; raises DatasetUnavailable."""
        source = experiment.data[role]
        if source not in self._known:
            try:
                self._known[source] = data.load(source, torch.Generator(), role, folder=self.folder).card
            except DatasetUnavailable as error:
                self._known[source] = error
        known = self._known[source]
        if isinstance(known, DatasetUnavailable):
            raise known
        return known

    def note_missing(self, experiment: Experiment, roles: Iterable[str]) -> None:
        """Remembers which of the datasets have to be made."""
        for role in roles:
            try:
                self(experiment, role)
            except DatasetUnavailable as error:
                self.missing[_command(str(error))] = None


def _fitted(experiment: Experiment, cards: _Cards, suite: Suite) -> Experiment:
    try:
        recorded = cards(experiment, "train").env_spec if "train" in experiment.data else None
    except DatasetUnavailable:  # without it there is no learner to say which of the others it reads
        cards.note_missing(experiment, experiment.data)
        raise
    train_env, env = environments(experiment, recorded)
    made = make_env(env)
    learner = build_learner(experiment, of_run(spec_of(made), experiment, train_env or env), seed=0)
    made.close()
    groups = learner.init().tree
    for group in experiment.init:
        if group not in groups:
            raise ConfigError(f"init.{group}: this learner has no such parameter group.{nearest(group, groups)}")
    fixed = {"train"} if "train" in experiment.data else set()
    lived = {"train"} if experiment.online else set()  # a role that the replay feeds needs no data
    used = fixed | {role.source for role in learner.roles.values()} | set(experiment.watch)
    if absent := sorted(used - set(experiment.data) - lived):
        raise ConfigError(
            f"this algorithm and objective need data.{absent[0]}; add, for example, "
            f"'{absent[0]}: {{recipe: pendulum/expert, tuples: 200}}' under data"
        )
    cards.note_missing(experiment, sorted(used & set(experiment.data)))
    kept = {role: source for role, source in experiment.resolved["data"].items() if role in used}
    return config.build({**experiment.resolved, "data": kept}, str(suite.path), suite.path.parent)


def _within(suite: Suite, cell: Cell, error: UserError) -> str:
    text = str(error).removeprefix(f"{cell.experiment.where}: ").removeprefix(f"{suite.path}: ")
    return f"{suite.path} ({cell.title}): {text}"


def _advice(cell: Cell) -> str:
    labels = json.dumps(dict(cell.labels), ensure_ascii=False)
    return f"Where this pair cannot work, leave it out: exclude: [{{labels: {labels}, reason: ...}}]"


def _command(text: str) -> str:
    """The command that an error tells the user to run; the whole text where there is none."""
    found = re.search(r"run: (.+)$", text)
    return found.group(1) if found else text
