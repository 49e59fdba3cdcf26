"""The contestants that are metarl: a step done eagerly, recorded or compiled, of one seed or of a stack of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from algorithms.cql import CQL
from algorithms.ddpg import DDPG
from algorithms.iql import IQL
from algorithms.sac import SAC
from algorithms.sac_bc import SACBC
from algorithms.td3 import TD3
from algorithms.td3_bc import TD3BC
from benchmarks.speed.data import EPISODE, columns, repeated
from benchmarks.speed.worker import Run, cpu_seconds
from metarl import Learner, Spec
from metarl.data.replay import Replay
from metarl.data.transitions import Card, Transitions, pack
from metarl.process import settle
from metarl.training.stepping import Mode, Stepping, stacked
from metarl.training.streams import Streams
from objectives.gild import GILD, LossNet
from objectives.gorl import GORL
from objectives.meta_critic import MetaCritic
from objectives.rl_il import RLIL

Prepared = tuple[dict[str, Run], dict[str, Any]]
GUIDE = "guiding_network"
ONLINE = ("ddpg", "td3", "sac")


class Metarl:
    """A learner on random transitions, stepped as the training loop steps it.

    Args:
        options: algorithm and sizes. An algorithm made for environments reads a full replay; demonstrations, where
            its objective wants them, are the first rows of the data.
        data: what all batches are drawn from.
        gorl: with GORL's guiding network, moved at every step of the policy.
        mode: "eager", "recorded" or "compiled".
        stack: seeds in one step.
        device: where they are stepped.
    """

    def __init__(
        self,
        options: Mapping[str, Any],
        data: Transitions,
        gorl: bool = False,
        mode: Mode = "eager",
        stack: int = 1,
        device: str = "cpu",
    ) -> None:
        learners = [_learner(options, gorl, seed) for seed in range(stack)]
        self.learner = learners[0]
        data = data.to(device=device)
        lived = replay(data) if options["algorithm"].partition("+")[0] in ONLINE else None
        self.streams = []
        for seed, each in enumerate(learners):
            found = {name: demonstrations(data, options) if name == "demo" else data for name in each.roles}
            self.streams.append(Streams(found, each.roles, each.noise, seed, lived))
            self.streams[-1].live = lived is not None
        states = [learner.init(device=device) for learner in learners]
        self.stack, self.count = stack, 0
        if stack == 1:
            self.stepping = Stepping(self.learner, states[0], mode)
        else:
            self.stepping = Stepping(self.learner, stacked(states), mode, stack=stack)

    @property
    def due_sets(self) -> list[frozenset[str]]:
        """Every set of Updates that a step may have due."""
        return list(dict.fromkeys(self.learner.due(step) for step in range(1, 21)))

    def step(self, due: frozenset[str] | None = None) -> None:
        """One step; `due` replaces the learner's own choice of Updates."""
        self.count += 1
        due = self.learner.due(self.count) if due is None else due
        drawn = [streams.batches(self.count, due) for streams in self.streams]
        batches = drawn[0] if self.stack == 1 else stacked(drawn)
        self.stepping(batches, due)

    def run(self, steps: int) -> int:
        """At least so many gradient steps, those of every seed counted; how many it took."""
        for _ in range(-(-steps // self.stack)):
            self.step()
        return -(-steps // self.stack) * self.stack


def _learner(options: Mapping[str, Any], gorl: bool, seed: int) -> Learner:
    generator = torch.Generator().manual_seed(seed)
    spec = Spec(options["obs_dim"], options["action_dim"], (1.0,) * options["action_dim"])
    learner = algorithm(options).build(spec, generator)
    added = GORL(every=2) if gorl else objective(options)
    return (learner if added is None else added.attach(learner, spec, generator)).ready()


def objective(options: Mapping[str, Any]) -> Any:
    """The one that `options["algorithm"]` names behind a plus sign, at its defaults but for the sizes; None without."""
    _, plus, name = options["algorithm"].partition("+")
    match name:
        case "rl_il":
            return RLIL(batch_size=options["batch"])
        case "gild":
            return GILD(LossNet(tuple(options["hidden"])), batch_size=options["batch"])
        case "meta_critic":
            return MetaCritic()
    if plus:
        raise ValueError(f"no objective is called {name!r}")
    return None


def algorithm(options: Mapping[str, Any]) -> Any:
    """The one that `options["algorithm"]` names, before any plus sign; at its defaults but for the sizes."""
    hidden, batch = tuple(options["hidden"]), options["batch"]
    match options["algorithm"].partition("+")[0]:
        case "ddpg":
            return DDPG(hidden=hidden, batch_size=batch)
        case "td3":
            return TD3(hidden=hidden, batch_size=batch)
        case "sac":
            return SAC(hidden=hidden, batch_size=batch)
        case "td3_bc":
            return TD3BC(hidden=hidden, batch_size=batch)
        case "sac_bc":
            return SACBC(hidden=hidden, batch_size=batch)
        case "iql":
            return IQL(hidden=hidden, batch_size=batch)
        case "iql_corl":
            settings: dict[str, Any] = {**IQL.presets["corl"], "hidden": hidden, "batch_size": batch}
            return IQL(**settings)
        case "cql":  # without its warm-up, which costs less
            return CQL(hidden=(*hidden, hidden[-1]), batch_size=batch, samples=options["samples"], bc_steps=0)
    raise ValueError(f"no algorithm is called {options['algorithm']!r}")


def transitions(options: Mapping[str, Any]) -> Transitions:
    """The random dataset, packed."""
    rows = options["rows"]
    starts = np.unique([*range(0, rows, EPISODE), rows])
    found: dict[str, Any] = columns(options)
    return pack(**found, episode_starts=starts, card=Card(source="random", dataset_id="random"))


def demonstrations(data: Transitions, options: Mapping[str, Any]) -> Transitions:
    """The first `options["demos"]` transitions."""
    return replace(data, rows=data.rows[: options["demos"]])


def replay(data: Transitions) -> Replay:
    """One that is full of the same transitions."""
    full = Replay(data.layout, len(data.rows), data.rows.dtype, data.rows.device)
    full.rows.copy_(data.rows)
    full.added = len(data.rows)
    return full


def prepare(options: Mapping[str, Any]) -> Prepared:
    """The parts and facts that answer `options["question"]`: step, gorl, flatness, compile or flops."""
    imports = {"imports_cpu_s": cpu_seconds()}
    settle()
    questions: dict[str, Callable[[Mapping[str, Any]], Prepared]] = {
        "step": _step,
        "gorl": _gorl,
        "flatness": _flatness,
        "compile": _compile,
        "flops": _flops,
    }
    parts, facts = questions[options["question"]](options)
    return parts, {"versions": {"torch": torch.__version__}, **imports, **facts}


def _step(options: Mapping[str, Any]) -> Prepared:
    contestant = Metarl(options, transitions(options), mode=options["mode"], stack=options["stack"])
    return {"step": contestant.run}, {}


def _gorl(options: Mapping[str, Any]) -> Prepared:
    """Steps of the base algorithm and of GORL with chosen Updates due; with `options["whole"]` also by their own
    schedules, GORL's with a period of 2."""
    data = transitions(options)
    base, gorl = (Metarl(options, data, guided, options["mode"]) for guided in (False, True))
    everything = frozenset(gorl.learner.updates)
    parts = {
        "critic": repeated(lambda: base.step(base.learner.due(1))),
        "policy": repeated(lambda: base.step(frozenset(base.learner.updates))),
        "weighted": repeated(lambda: gorl.step(everything - {GUIDE})),
        "guided": repeated(lambda: gorl.step(everything)),
        "base": base.run,
        "gorl": gorl.run,
    }
    if base.learner.due(1) == base.learner.due(2):  # the policy moves in every step
        del parts["critic"]
    return {name: run for name, run in parts.items() if options["whole"] or name not in ("base", "gorl")}, {}


def _flatness(options: Mapping[str, Any]) -> Prepared:
    """Meta-steps, with every Update due, of a learner that will have done many and of one that will have done few."""
    data, small = transitions(options), {**options, "hidden": options["outer_hidden"]}
    contestants = {name: Metarl(small, data, True, options["mode"]) for name in ("old", "fresh")}

    def meta_steps(contestant: Metarl) -> Run:
        everything = frozenset(contestant.learner.updates)
        return repeated(lambda: contestant.step(everything))

    return {name: meta_steps(contestant) for name, contestant in contestants.items()}, {}


def _compile(options: Mapping[str, Any]) -> Prepared:
    """How long it takes until every due set has run once."""
    data = transitions(options)
    cpu, wall = cpu_seconds(), time.perf_counter()
    contestant = Metarl(options, data, options["gorl"], options["mode"])
    for due in contestant.due_sets:
        contestant.step(due)
    spent = {"cpu_s": cpu_seconds() - cpu, "wall_s": time.perf_counter() - wall}
    return {}, {**spent, "process_cpu_s": cpu_seconds(), "due_sets": len(contestant.due_sets)}


def _flops(options: Mapping[str, Any]) -> Prepared:
    """Floating-point operations of matrix products in eager steps, in millions, as PyTorch counts them."""
    data = transitions(options)
    base, gorl = (Metarl(options, data, guided) for guided in (False, True))
    everything = frozenset(gorl.learner.updates)
    steps = {
        "critic": (base, base.learner.due(1)),
        "policy": (base, frozenset(base.learner.updates)),
        "weighted": (gorl, everything - {GUIDE}),
        "guided": (gorl, everything),
    }
    mflop = {}
    for name, (contestant, due) in steps.items():
        contestant.step(due)
        with FlopCounterMode(display=False) as counter:
            contestant.step(due)
        mflop[name] = counter.get_total_flops() / 1e6
    return {}, {"mflop": mflop}
