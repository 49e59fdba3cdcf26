"""The steps of a run, in the fastest way that pays: eager, recorded or compiled; one seed, or a stack of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from metarl.bilevel import Batches, Estimate, Metrics, TrainState, Update
from metarl.bilevel.applying import Estimates, apply_, memory
from metarl.bilevel.compiling import as_cuda_graph, compile_recording
from metarl.bilevel.recording import leaves, record, signature
from metarl.errors import ConfigError
from metarl.learner import Learner, metrics_of

Mode = Literal["eager", "recorded", "compiled"]
Program = Callable[[Batches, list[Tensor]], Metrics]

MOST = 64  # programs that are kept
_LOOKED = 20_000  # steps whose due sets `auto` counts one by one
RECORDED_FROM, COMPILED_FROM = 200, 30_000  # steps with one due set from which a mode earns its preparation


class Stepping:
    """A learner's steps on a state of its own, which they overwrite.

    What is due together is prepared once and kept. `eager` runs the losses' Python in every step, for each seed of a
    stack in turn, so that prints and breakpoints work. `recorded` runs each stage as a list of operations
    (`metarl.bilevel.recording`), then the optimisers' one-pass steps. `compiled` is the whole step as one program. All
    agree to rounding: 1e-10 relative in float64 and 1e-4 in float32 after 100 steps.

    Args:
        learner: ready.
        state: copied.
        mode: one for all, or by the names of the Updates that are due.
        stack: how many seeds the state and all batches carry as a leading axis (see `stacked`); None for a single one
            without that axis.
        options: settings of torch._inductor for `compiled`.
        say: told of what takes long, and of what cannot be prepared.
        insist: whether it is an error where a due set cannot be prepared as `mode` says; else it runs in a slower mode,
            and `say` is told.
    """

    def __init__(
        self,
        learner: Learner,
        state: TrainState,
        mode: Mode | Callable[[frozenset[str]], Mode] = "eager",
        stack: int | None = None,
        options: Mapping[str, Any] | None = None,
        say: Callable[[str], None] = lambda text: None,
        insist: bool = True,
    ) -> None:
        self.learner, self.stack, self.options = learner, stack, options
        self.say, self.insist = say, insist
        self.state: TrainState = pytree.tree_map_only(
            Tensor, lambda t: t.detach().clone(memory_format=torch.contiguous_format), state
        )
        self._check()
        self._owned = memory(self.state)
        self._mode = mode if callable(mode) else lambda due: mode
        self._programs: dict[Any, Program] = {}

    def __call__(self, batches: Batches, due: frozenset[str]) -> Metrics:
        """One step: changes `state`, and returns metrics by `update/metric`, 0-d (or [stack]); nothing is read back."""
        inputs = [value for role in batches.values() for value in role.values()]
        names = tuple((role, *columns) for role, columns in batches.items())
        key = due, names, signature(inputs)
        program = self._programs.get(key)
        if program is None:
            if len(self._programs) == MOST:
                self.say(f"batches came in {MOST} shapes; in further ones steps run eagerly")
            mode: Mode = self._mode(due) if len(self._programs) < MOST else "eager"
            program = self._programs[key] = self._prepared(mode, batches, due)
        return program(batches, inputs)

    def _check(self) -> None:
        """What cannot be overwritten step by step is refused before the first."""
        for group, opt in self.state.opt.items():
            for leaf in pytree.tree_leaves(opt):
                if leaf is not None and not isinstance(leaf, Tensor):
                    raise ConfigError(
                        f"the optimiser of group {group!r} keeps {leaf!r} in its state, which would stay as it is; "
                        "keep counts and the like as 0-d tensors"
                    )
        for update in self.learner.updates.values():
            for name, p in self.state.tree[update.params].items():
                if not p.is_floating_point():
                    raise ConfigError(
                        f"update {update.name!r} moves group {update.params!r}, whose {name!r} is {p.dtype}; an "
                        "optimiser moves floating-point numbers only, so keep it as such"
                    )

    def _prepared(self, mode: Mode, batches: Batches, due: frozenset[str]) -> Program:
        if mode == "eager":
            return self._eager(batches, due)
        what = f"a step of {', '.join(sorted(due))}"
        try:
            if libraries := eager_only(u for stage in self._due_stages(due) for u in stage):
                raise ConfigError(f"the library that {', '.join(libraries)} goes through runs eagerly only")
            if mode == "recorded":
                return self._recorded(batches, due)
            self.say(f"compiling {what}; kept for later runs")
            return self._compiled(batches, due)
        except Exception as error:  # whatever the compiler raises
            lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
            text = f"{what} cannot be {mode}: {lines[0]}"
            if self.insist:
                raise ConfigError(f"{text}; mend that, or run eagerly (compile: off, or --no-compile)") from error
            slower: Mode = "recorded" if mode == "compiled" else "eager"
            self.say(f"{text}; it runs {slower}")
            return self._prepared(slower, batches, due)

    # -- the three ways --------------------------------------------------------------------------------------

    def _eager(self, batches: Batches, due: frozenset[str]) -> Program:
        stages = self._due_stages(due)

        def one(state: TrainState, batches: Batches) -> Metrics:
            metrics: Metrics = {}
            for updates in stages:
                metrics |= self._apply([(u, u.gradient(u, state, batches)) for u in updates], state, stacked=False)
            return metrics

        if not self.stack:
            return lambda batches, inputs: one(self.state, batches)
        # In turn: every tensor is one seed's, as its author expects, and vmap would cost more than it saves.
        states = [unstacked(self.state, i) for i in range(self.stack)]
        return lambda batches, inputs: stacked([one(state, unstacked(batches, i)) for i, state in enumerate(states)])

    def _recorded(self, batches: Batches, due: frozenset[str]) -> Program:
        stages = []
        with torch.no_grad():
            for updates in self._due_stages(due):
                names: list[Any] = []

                def estimate(*args: Any, updates: list[Update] = updates, names: list[Any] = names) -> list[Tensor]:
                    values, structure = _flatten(self._estimate(updates)(*args))
                    names.append(structure)
                    return values

                recording = record(estimate, self.state.tree, self.state.opt, batches)
                kept = recording.prune()
                own = leaves(self.state.tree, self.state.opt)
                ours = [own[i] for i in kept if i < len(own)]
                theirs = [i - len(own) for i in kept if i >= len(own)]
                stages.append((updates, recording.module.forward, names[-1], ours, theirs))

        def run(batches: Batches, inputs: list[Tensor]) -> Metrics:
            metrics: Metrics = {}
            for updates, forward, names, ours, theirs in stages:
                with torch.no_grad():
                    values = forward(*ours, *[inputs[i] for i in theirs])
                metrics |= self._apply(_estimates(updates, values, names), self.state, stacked=bool(self.stack))
            return metrics

        return run

    def _compiled(self, batches: Batches, due: frozenset[str]) -> Program:
        names: list[str] = []

        def step(state: TrainState, batches: Batches) -> tuple[list[Tensor], list[Tensor]]:
            one = torch.vmap(self._step(due)) if self.stack else self._step(due)
            state, metrics = one(state, batches)
            names[:] = metrics
            return leaves(state), list(metrics.values())

        recording = record(step, self.state, batches)
        own = leaves(self.state)
        program = compile_recording(recording, range(len(own)), self.options)
        if own[0].device.type == "cuda":
            examples = [value for role in batches.values() for value in role.values()]
            replay = as_cuda_graph(program, own, examples)
            return lambda batches, inputs: dict(zip(names, replay(*inputs), strict=True))
        return lambda batches, inputs: dict(zip(names, program(*own, *inputs), strict=True))

    # -- parts -----------------------------------------------------------------------------------------------

    def _due_stages(self, due: frozenset[str]) -> list[list[Update]]:
        stages = ([u for u in stage if u.name in due] for stage in self.learner.stages)
        return [updates for updates in stages if updates]

    def _step(self, due: frozenset[str]) -> Callable[[TrainState, Batches], tuple[TrainState, Metrics]]:
        return lambda state, batches: self.learner.step(state, batches, due)

    def _estimate(self, updates: list[Update]) -> Callable[[Any, Any, Batches], list[dict[str, Any]]]:
        """`(tree, opt, batches)` to what each Update estimates, as dicts of tensors."""

        def estimate(tree: Any, opt: Any, batches: Batches) -> list[dict[str, Any]]:
            state = TrainState(tree, opt, {})
            return [
                {
                    "loss": {} if found.loss is None else {"loss": found.loss},
                    "grads": found.grads,
                    "metrics": found.metrics,
                    "failures": found.failures,
                }
                for found in (u.gradient(u, state, batches) for u in updates)
            ]

        return torch.vmap(estimate) if self.stack else estimate

    def _apply(self, estimates: Estimates, state: TrainState, stacked: bool) -> Metrics:
        with torch.no_grad():
            # A metric may be a parameter itself, which is about to change.
            metrics = {name: value.clone() for name, value in metrics_of(estimates).items()}
            apply_(estimates, state, self._owned, stacked)
        return metrics


Names = list[list[tuple[str, list[str]]]]


def _flatten(found: list[dict[str, Any]]) -> tuple[list[Tensor], Names]:
    names = [[(part, list(values)) for part, values in one.items()] for one in found]
    return [value for one in found for values in one.values() for value in values.values()], names


def _estimates(updates: Sequence[Update], values: Sequence[Tensor], names: Names) -> Estimates:
    flat = iter(values)
    parts = [{part: dict(zip(keys, islice(flat, len(keys)), strict=True)) for part, keys in one} for one in names]
    return [
        (u, Estimate(p["loss"].get("loss"), p["grads"], p["metrics"], None, p["failures"]))
        for u, p in zip(updates, parts, strict=True)
    ]


def eager_only(updates: Iterable[Update]) -> list[str]:
    """Those Updates, or Updates that they differentiate through, that cannot be recorded."""
    found, waiting = list[str](), list(updates)
    while waiting:
        update = waiting.pop()
        waiting.extend(update.inners)
        found += [] if getattr(update.gradient, "recordable", True) else [update.name]
    return found


def stacked(trees: Sequence[Any]) -> Any:
    """Nested structures of tensors, alike, as one with a leading axis of seeds."""
    return pytree.tree_map(lambda *parts: torch.stack(parts) if isinstance(parts[0], Tensor) else parts[0], *trees)


def unstacked(tree: Any, i: int) -> Any:
    """What one seed has in a stack, as views."""
    return pytree.tree_map_only(Tensor, lambda t: t[i], tree)


def auto(learner: Learner, steps: int) -> dict[frozenset[str], Mode]:
    """The mode of each set of Updates that is due in a run of so many steps: what is due often is worth preparing.

    It looks at the configured number of steps, never at those that are left, so that a resumed run computes as the
    uninterrupted one would have.
    """
    updates = learner.updates.values()
    ends = {0, steps, *(u.start for u in updates), *(u.stop for u in updates if u.stop is not None)}
    edges = sorted(end for end in ends if 0 <= end <= steps)
    period = math.lcm(*(u.every for u in updates))
    times: dict[frozenset[str], float] = {}
    for start, stop in itertools.pairwise(edges):  # between two edges it repeats itself with the period
        looked = min(stop - start, period, _LOOKED)
        for step in range(start + 1, start + looked + 1):
            due = learner.due(step)
            times[due] = times.get(due, 0.0) + (stop - start) / looked
    return {
        due: "compiled" if round(n) >= COMPILED_FROM else "recorded" if round(n) >= RECORDED_FROM else "eager"
        for due, n in times.items()
    }
