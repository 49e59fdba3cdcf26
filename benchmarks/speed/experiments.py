"""The questions: each starts its workers, lets them take turns and returns plain data of raw times."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from benchmarks.speed.client import Worker, WorkerDied
from benchmarks.speed.comparisons import BASES, COMPARISONS, LEARNED, MODES, WHOLE
from benchmarks.speed.contestants import Contestant, compared_label, learned_label
from benchmarks.speed.rounds import side_by_side, take_turns
from benchmarks.speed.settings import SIZES, Settings

GPU_STACKS = (1, 8, 64)
FINER = 3  # times as many and as short turns where small differences are looked for
FEWER = 10  # times as few steps of a whole run that compiles
OLD, WINDOWS = 10, 100  # meta-steps to a tenth at either end; times are taken in so many windows


class Lab:
    """What every question needs.

    Args:
        settings: what is timed and for how long.
        progress: a running bar.
        cache: folder for what compilers keep; each contestant of a question has its own in it.
    """

    def __init__(self, settings: Settings, progress: Progress, cache: Path) -> None:
        self.settings, self.progress, self.cache = settings, progress, cache

    def worker(self, contestant: Contestant, size: str = "hopper", cache: str = "td3_bc", **options: Any) -> Worker:
        """The contestant's process, started."""
        told = {**self.settings.options(size), **contestant.options, **options}
        # The C++ compiler takes no folder with blanks and commas in its name.
        env = {"TORCHINDUCTOR_CACHE_DIR": str(self.cache / cache / contestant.name.replace(", ", "-"))}
        return Worker(contestant.name, contestant.python, contestant.module, told, env)

    @contextmanager
    def waiting(self, title: str) -> Iterator[None]:
        """A bar without an end, for what has no rounds."""
        task = self.progress.add_task(title, total=None)
        try:
            yield
        finally:
            self.progress.remove_task(task)

    def turns(
        self,
        found: Sequence[Contestant],
        title: str,
        left_out: dict[str, str],
        settings: Settings | None = None,
        **options: Any,
    ) -> dict[str, dict[str, Any]]:
        """All contestants' turns, with what their workers say of themselves.

        Raises:
            WorkerDied: one that is required did not get ready, or any ended in between.
        """
        with ExitStack() as running:
            workers = {each.name: running.enter_context(self.worker(each, **options)) for each in found}
            for each in found:
                try:
                    with self.waiting(f"{title}: {each.name} gets ready"):
                        workers[each.name].ready()
                except WorkerDied as died:
                    if each.required:
                        raise
                    left_out[each.name] = str(died)
                    del workers[each.name]
            times = take_turns(workers, settings or self.settings, self.progress, title)
            return {name: {**workers[name].ready(), "parts": parts} for name, parts in times.items()}


def steps(lab: Lab, found: Sequence[Contestant], left_out: dict[str, str]) -> dict[str, Any]:
    """TD3+BC at every size: each contestant's turns."""
    measured = {}
    for size in lab.settings.sizes:
        obs_dim, action_dim = SIZES[size]
        turns = lab.turns(found, size, left_out, size=size, cache=size)
        measured[size] = {"obs_dim": obs_dim, "action_dim": action_dim, "contestants": turns}
    return measured


def compare(lab: Lab, name: str, found: Sequence[Contestant], left_out: dict[str, str]) -> dict[str, Any]:
    """One of `COMPARISONS`: each contestant's turns."""
    label, missed = COMPARISONS[name].label, dict[str, str]()
    turns = lab.turns(found, label, missed, cache=name)
    left_out |= {f"{label}, {compared_label(name, each)}": reason for each, reason in missed.items()}
    return {"contestants": turns}


def learned(lab: Lab, name: str, found: Sequence[Contestant], left_out: dict[str, str]) -> dict[str, Any]:
    """One of `LEARNED`: each contestant's turns."""
    label, missed = LEARNED[name].label, dict[str, str]()
    turns = lab.turns(found, f"learned losses on {label}", missed, size="halfcheetah", cache=name)
    left_out |= {f"{label}, {learned_label(name, each)}": reason for each, reason in missed.items()}
    return {"contestants": turns}


def whole(lab: Lab, name: str) -> dict[str, Any]:
    """CPU seconds of whole runs of TD3, alone and with a warm start by GILD, side by side in every round."""
    settings, started = lab.settings, {"alone": 0.0, "gild": lab.settings.warm_start}

    def pair(seed: int, **options: Any) -> dict[str, dict[str, Any]]:
        with ExitStack() as running:
            workers = {
                each: running.enter_context(
                    lab.worker(
                        Contestant(each, "whole"),
                        cache=name,
                        env=WHOLE[name],
                        seed=seed,
                        **{"warm_start": share, **options},
                    )
                )
                for each, share in started.items()
            }
            return {each: ready["facts"] for each, ready in side_by_side(workers, settings.slice_s).items()}

    with lab.waiting(f"whole runs, {WHOLE[name]}: compiling"):
        few = settings.whole_steps // FEWER, settings.long // FEWER  # enough to prepare all that is
        cold = pair(0, whole_steps=few[0], long=few[1])
    rounds: list[dict[str, dict[str, Any]]] = []
    for i in range(settings.whole_rounds):
        with lab.waiting(f"whole runs, {WHOLE[name]}: {i + 1} of {settings.whole_rounds}"):
            rounds.append(pair(i))
    runs = {}
    for each in started:
        facts = [both[each] for both in rounds]
        runs[each] = {
            "cpu_s": [one["cpu_s"] for one in facts],
            "preparing_cpu_s": [one["preparing_cpu_s"] for one in facts],
            "preparing_cold_cpu_s": cold[each]["preparing_cpu_s"],
            "modes": facts[0]["modes"],
        }
    return {"env": WHOLE[name], "gradient_steps": rounds[0]["gild"]["gradient_steps"], "runs": runs}


def gorl(lab: Lab, left_out: dict[str, str], modes: Sequence[str] = MODES, base: str = "td3_bc") -> dict[str, Any]:
    """Each mode's turns at the parts of a step of GORL and of its base algorithm; on TD3+BC also of whole steps."""
    found = [_ours(mode, "gorl", required=mode != "compiled") for mode in modes]
    title, missed = f"GORL on {BASES[base].label}", dict[str, str]()
    often = replace(lab.settings, rounds=FINER * lab.settings.rounds, turn_s=lab.settings.turn_s / FINER)
    cache = "gorl" if base == "td3_bc" else f"gorl_{base}"
    turns = lab.turns(found, title, missed, often, cache=cache, algorithm=base, whole=base == "td3_bc")
    left_out |= {f"{title}, {name}": reason for name, reason in missed.items()}
    return turns


def flops(lab: Lab) -> dict[str, Any]:
    """Millions of floating-point operations by kind of step."""
    with lab.waiting("counting operations"), lab.worker(_ours("eager", "flops"), warm=0) as worker:
        counted: dict[str, Any] = worker.ready()["facts"]["mflop"]
    return counted


def compile_times(lab: Lab, left_out: dict[str, str]) -> dict[str, Any]:
    """Seconds until every due set has run once, in a fresh process: compiled without and with a cache, and recorded."""
    measured: dict[str, Any] = {}
    for cache in ("td3_bc", "gorl"):
        rows = (
            ("recorded", "recorded"),
            ("compiled, nothing cached", "compiled"),
            ("compiled, all cached", "compiled"),
        )
        for row, mode in rows:
            ours = _ours(mode, "compile")
            try:
                with (
                    lab.waiting(f"getting ready: {cache}, {row}"),
                    lab.worker(ours, cache=cache, gorl=cache == "gorl", warm=0) as worker,
                ):
                    ready = worker.ready()
            except WorkerDied as died:
                left_out[f"{cache}, {row}"] = str(died)
                break
            measured.setdefault(cache, {})[row] = {**ready["facts"], "start_wall_s": ready["start_wall_s"]}
    return measured


def flatness(lab: Lab, modes: Sequence[str] = ("eager", "recorded")) -> dict[str, Any]:
    """CPU milliseconds of a meta-step over many of them, and then in turns with a learner that has done few."""
    return {mode: _flatness(lab, mode) for mode in modes}


def _flatness(lab: Lab, mode: str) -> dict[str, Any]:
    size = max(1, lab.settings.outer // WINDOWS)
    with lab.worker(_ours(mode, "flatness")) as worker:

        def window(part: str) -> float:
            took = worker.run(size, part)
            return 1e3 * float(took["cpu_s"]) / int(took["steps"])

        with lab.waiting(f"{lab.settings.outer:,} meta-steps, {mode}"):
            course = [window("old") for _ in range(lab.settings.outer // size)]
            # The machine itself drifts within a minute: the same question with a fresh learner in turns.
            pairs = [(window("old"), window("fresh")) for _ in range(max(2, len(course) // OLD))]
    old, fresh = map(list, zip(*pairs, strict=True))
    return {"outer": lab.settings.outer, "window": size, "course_ms": course, "old_ms": old, "fresh_ms": fresh}


def gpu(lab: Lab, left_out: dict[str, str]) -> dict[str, Any] | None:
    """metarl's modes and stacks and the textbook on a GPU, in wall time; None where there is no GPU."""
    if not torch.cuda.is_available():
        return None
    found = [Contestant("textbook", "gpu", {"mode": "textbook", "stack": 1}, required=False)]
    for mode in MODES:
        for stack in GPU_STACKS:
            options = {"mode": mode, "stack": stack}
            found.append(Contestant(f"{mode}, {stack} seeds", "gpu", options, required=False))
    missed: dict[str, str] = {}
    turns = lab.turns(found, "GPU", missed)
    left_out |= {f"GPU, {name}": reason for name, reason in missed.items()}
    return {"device": torch.cuda.get_device_name(), "contestants": turns}


def _ours(mode: str, question: str, required: bool = True) -> Contestant:
    return Contestant(mode, "ours", {"question": question, "mode": mode}, sys.executable, required)
