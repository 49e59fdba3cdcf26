"""Building a small learner around an objective, in which every size is told apart from every other."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from metarl import registry
from metarl.checking.case import Case
from metarl.component import component, schema_of
from metarl.errors import ConfigError
from metarl.learner import Learner, Spec
from metarl.training.streams import generator

SMALL = Spec(obs_dim=5, action_dim=3, max_action=(1.0, 0.5, 2.0))
FULL = Spec(obs_dim=17, action_dim=6, max_action=(1.0,) * 6)
HIDDEN = [16, 16]
SIZES = (23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97)  # primes, no dimension among them
NONE = "none"


@dataclass(frozen=True)
class Plan:
    """Which objective over which algorithm.

    Attributes:
        objective: `{name: ..., setting: value}` as in an experiment's YAML.
        algorithm: a name; None takes the first registered one that the objective attaches to, those with a class
            attribute `check_first` before the others.
        folder: where components named `module:Class` lie.
    """

    objective: Mapping[str, Any]
    algorithm: str | None = None
    folder: Path | None = None

    @property
    def title(self) -> str:
        """The objective's name."""
        return str(self.objective.get("name"))


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
        return _made(plan, plan.algorithm, small, seed)
    refused: dict[str, str] = {}
    broken: Exception | None = None
    _objective(plan, small)  # a misspelt setting is no refusal
    for name in [*sorted(registry.names("metarl.algorithms"), key=_is_later), NONE]:
        if name in refused:
            continue
        try:
            return _made(plan, name, small, seed)
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


def _made(plan: Plan, algorithm: str, small: bool, seed: int) -> Case:
    spec = SMALL if small else FULL
    base = _base(algorithm, spec, small, seed, plan.folder)
    learner = _objective(plan, small).attach(base, spec, generator(seed, "init", "objective", 0))
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
    return Case(algorithm, spec, learner, base, seed)


def _base(algorithm: str, spec: Spec, small: bool, seed: int, folder: Path | None) -> Learner:
    if algorithm == NONE and NONE not in registry.names("metarl.algorithms"):
        return Learner(modules={}, stages=(), act=_no_act)
    target = registry.resolve("metarl.algorithms", algorithm, folder=folder)
    own = {f.name: f for f in dataclasses.fields(schema_of(target))}
    reduced = {"hidden": HIDDEN, "batch_size": SIZES[0]} if small else {}
    node = {"name": algorithm} | {key: value for key, value in reduced.items() if key in own}
    built, _ = component("metarl.algorithms", node, "metarl check", "algorithm", folder)
    return built.build(spec, generator(seed, "init", "algorithm"))


def _objective(plan: Plan, small: bool) -> Any:
    node = dict(plan.objective)
    target = registry.resolve("metarl.objectives", plan.title, folder=plan.folder)
    if small and "batch_size" in {f.name for f in dataclasses.fields(schema_of(target))}:
        node.setdefault("batch_size", SIZES[1])
    built, _ = component("metarl.objectives", node, "metarl check", "objective", plan.folder)
    return built


def _no_act(tree: Any, obs: Tensor, carry: Any, noise: Any, deterministic: bool) -> tuple[Tensor, Any]:
    raise ConfigError("this learner has no policy to act with")
