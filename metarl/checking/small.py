"""Building a small learner around an objective, in which every size is told apart from every other."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from metarl import registry
from metarl.checking.case import Case
from metarl.component import component, schema_of
from metarl.errors import ConfigError
from metarl.learner import Learner, Spec
from metarl.training.streams import generator

# An environment is met at once, so that what an objective does online is what is checked.
SMALL = Spec(obs_dim=5, action_dim=3, max_action=(1.0, 0.5, 2.0), offline=0, time_limit=200)
FULL = Spec(obs_dim=17, action_dim=6, max_action=(1.0,) * 6, offline=0, time_limit=1000)
HIDDEN = [16, 16]
SIZES = (23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97)  # primes, no dimension among them


@dataclass(frozen=True)
class Plan:
    """Which objective over which algorithm.

    Attributes:
        objective: `{name: ..., setting: value}` as in an experiment's YAML.
        algorithm: a name, or a name with settings as in an experiment's YAML; None takes the first registered one that
            the objective attaches to, those with a class attribute `check_first` before the others.
        folder: where components named `module:Class` lie.
        after: objectives that are attached before it.
    """

    objective: Mapping[str, Any]
    algorithm: str | Mapping[str, Any] | None = None
    folder: Path | None = None
    after: tuple[Mapping[str, Any], ...] = ()

    @property
    def base(self) -> str | None:
        """The algorithm's name; None where it is yet to be found."""
        return self.algorithm if isinstance(self.algorithm, str | None) else str(self.algorithm.get("name"))

    @property
    def title(self) -> str:
        """The names of the objectives in order."""
        return " on ".join(str(node.get("name")) for node in (self.objective, *self.after[::-1]))


class CannotBuild(Exception):
    """An objective attaches, but what it makes of the learner is not sound; the cause is its ConfigError."""


def make(plan: Plan, *, small: bool = True, seed: int = 0) -> Case:
    """The case that a plan describes.

    Args:
        plan: what to build.
        small: small networks and prime batch sizes; else the components' own.
        seed: of the initial parameters and the batches.

    Raises:
        ConfigError: a name or a setting is wrong, or the objective refuses every algorithm.
    """
    if plan.algorithm is not None:
        given = {"name": plan.algorithm} if isinstance(plan.algorithm, str) else plan.algorithm
        return _made(plan, given, small, seed)
    refused: dict[str, str] = {}
    broken: Exception | None = None
    for node in (*plan.after, plan.objective):
        _objective(node, plan.folder, small)  # a misspelt setting is no refusal
    for name in sorted(registry.names("metarl.algorithms"), key=_is_later):
        try:
            return _made(plan, {"name": name}, small, seed)
        except ConfigError as error:
            refused[name] = str(error)
        except CannotBuild:
            raise
        except Exception as error:  # the objective's own code: shown if no algorithm suits it
            broken = broken or error
            refused[name] = str(error)
    if broken is not None:
        raise broken
    reasons = "; ".join(f"{name}: {reason.rstrip('.')}" for name, reason in refused.items())
    raise ConfigError(f"objective {plan.title}: no registered algorithm suits it ({reasons})")


def _is_later(algorithm: str) -> bool:
    return not getattr(registry.resolve("metarl.algorithms", algorithm), "check_first", False)


def _made(plan: Plan, algorithm: Mapping[str, Any], small: bool, seed: int) -> Case:
    spec = SMALL if small else FULL
    learner = base = _base(algorithm, spec, small, seed, plan.folder)
    for i, node in enumerate((*plan.after, plan.objective)):
        base = learner
        learner = _objective(node, plan.folder, small).attach(base, spec, generator(seed, "init", "objective", i))
        if not isinstance(learner, Learner):
            raise TypeError(
                f"attach returned {learner!r}; it must return the learner that it was given, with its additions"
            )
    try:
        learner = learner.ready()
    except ConfigError as error:
        raise CannotBuild(str(error)) from error
    if not learner.updates:
        raise ConfigError("nothing to train: neither the algorithm nor the objective has an Update")
    base = base.ready()
    if small:
        names = [*learner.roles]
        sizes = {name: SIZES[i % len(SIZES)] for i, name in enumerate(names)}
        roles = {name: replace(role, size=sizes[name]) for name, role in learner.roles.items()}
        learner = replace(learner, roles=roles)
        for module in learner.modules.values():  # a loss that calls one itself is told of that, not of its dtype
            module.double()
    return Case(str(algorithm["name"]), spec, learner, base, seed)


def _base(given: Mapping[str, Any], spec: Spec, small: bool, seed: int, folder: Path | None) -> Learner:
    algorithm = str(given.get("name"))
    target = registry.resolve("metarl.algorithms", algorithm, folder=folder)
    own = {f.name: f for f in dataclasses.fields(schema_of(target))}
    reduced = {"hidden": HIDDEN, "batch_size": SIZES[0]} if small else {}
    node = {key: value for key, value in reduced.items() if key in own} | dict(given)
    built, _ = component("metarl.algorithms", node, "metarl check", "algorithm", folder)
    return built.build(spec, generator(seed, "init", "algorithm"))


def _objective(given: Mapping[str, Any], folder: Path | None, small: bool) -> Any:
    node = dict(given)
    target = registry.resolve("metarl.objectives", str(node.get("name")), folder=folder)
    own = {f.name for f in dataclasses.fields(schema_of(target))}
    if small:
        reduced = {"batch_size": SIZES[1], "execute_hidden": HIDDEN}
        node = {key: value for key, value in reduced.items() if key in own} | node
    built, _ = component("metarl.objectives", node, "metarl check", "objective", folder)
    return built
