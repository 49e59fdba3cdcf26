"""docs/speed.md, written from the recorded result alone."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from benchmarks.speed import rival_gild, tables
from benchmarks.speed.comparisons import AUTHORS, BASES, COMPARISONS, LEARNED
from benchmarks.speed.contestants import CORL, LABELS
from benchmarks.speed.tables import Grid

RIVALS = {
    "corl": """- **CORL**: `algorithms/offline/td3_bc.py` of a checkout of https://github.com/corl-team/CORL (sha256 of
        the file: `{sha256}`); its networks, replay buffer and trainer, called as its `train` calls them.""",
    "unifloral": """- **unifloral**: `algorithms/td3_bc.py` of a checkout of https://github.com/EmptyJackson/unifloral
        (sha256 of the file: `{sha256}`) in JAX {jax}; a jitted `lax.scan` of its own train step. One of its steps
        draws one batch and makes two critic updates and one of the policy on it; it counts as two gradient steps here,
        for half of the sampling that the others do.""",
    "d3rlpy": """- **d3rlpy** {d3rlpy}: `TD3PlusBC.update` on batches of its own replay buffer, without the logger of
        `fit`.""",
}
MADE_BY = """Made by `python -m benchmarks.speed`; `--corl`, `--unifloral`, `--d3rlpy-python` and `--gild` name rivals
    to run. """
HOW = """One gradient step is one step of both critics; every second one moves the policy and the targets too. Networks
    of {hidden}, batches of {batch} from {rows:,} random transitions, float32; drawing the batch is part of the step, as
    each contestant does it. Every contestant runs in a process of its own, on one thread, all of them pinned to the
    same core and only one at a time. In each of {rounds} rounds every contestant has a turn of about {turn_s:g}
    CPU-seconds, in another order each time. Times are CPU times, so that a neighbour on the machine who takes turns
    does not count (one who shares caches does). Ratios are taken round by round. Figures are medians with the lowest
    and the highest round."""
STEPS = """The rows called products are no training: they are the matrix products of an average step and nothing else
    (shapes in `benchmarks/speed/products.py`), each repeated by itself, by PyTorch's own `mm` and, where all sizes are
    at least 8, by oneDNN; which of the two is faster depends on the processor. The shares are their time over that of a
    step: 100 % of the faster one would be a step whose every other operation is free. Of several seeds in one process
    every seed's step counts. Until ready counts imports, data, compiling without anything cached, and {warm} steps."""
COMPARED = {
    "iql": """Gradient steps of IQL: all of V, policy, both critics and targets move in every one. The first rows take
        CORL's step, in which everything sees the V of before; in the official order the policy and the critics see the
        new V. The policy's learning rate falls by a cosine in all of them.""",
    "cql": """Gradient steps of CQL(H) behind its warm-up, with {samples} uniform actions and as many of the policy at
        either state: the temperature, the policy, both critics and the targets move in every one. All networks have one
        hidden layer more, as CORL's. metarl evaluates the policy's network once a state, CORL once a sampled
        action.""",
    "sac_bc": """Gradient steps of SAC+BC, every second of which moves the policy and the targets, in turns with
        metarl's own TD3+BC in the same mode: there is no rival to compare it with.""",
}
CORLS = """CORL is `algorithms/offline/{file}` of the same checkout (sha256: `{sha256}`), by the defaults of its
    TrainConfig and called as its `train` calls it."""
LEARNED_LOSSES = """Gradient steps of {label} on a full replay of {rows:,} transitions and {demos:,} demonstrated ones,
    {batch} of either in a batch; {schedule}. RL+IL adds behaviour cloning to the policy's loss, and GILD a loss that it
    learns: every step here lies in its warm start. Time is that of one step, in steps of RL+IL in the same mode."""
SCHEDULES = {"TD3": "every second step moves the policy, its loss and the targets"}
MOVING = "every step moves everything"
AUTHORS_CODE = """The authors' code is a checkout of https://github.com/slDeng1003/GILD (sha256 of the three files that
    are used: `{sha256}`), eager PyTorch, called as its main_TD3.py calls it. As published it does not run:
    `benchmarks/speed/rival_gild.py` lists the {count} replacements in its text that are made while it is loaded, and
    has stand-ins for two functions of learn2learn. There is no RL+IL in it: that row is made of its own networks,
    replay buffer and critics' step, with its loss `loss_rl + loss_bc` as the actor's. RL+IL in the first ratio of these
    two rows is the authors' too."""
WHOLE_RUNS = """CPU time of whole processes, imports, environment and evaluation included: {steps:,} environment steps
    of TD3 alone, and of TD3 with GILD and {demos:,} demonstrations for {share:.0%} of the gradient steps; networks of
    {hidden}. Steps are prepared as in runs of {long:,}: what is due often is compiled, and what the warm start alone
    has is recorded. {rounds} pairs, of which either run had turns of {slice_s:g} s on the same core. Compiled programs
    were cached; seconds of preparing in brackets are those without a cache. Further fixed costs of GILD
    (its imports, the demonstrations) are in both ratios: in a run of {long:,} they are {times:g} times smaller."""
GORL_BASES = """Marginal costs as above, measured by themselves. On IQL and CQL the policy moves in every step, and on
    IQL the running mean and deviation of B's input count as weights. Averages are those of the {count} bases, round by
    round. The paper's figures are of whole runs on a GPU (Table III)."""
GORL = """A step without GORL is the mean of one that moves the critics alone and one that moves everything. GORL weighs
    every sample in every step of the policy (weights) and updates its guiding network every so many gradient steps;
    what is added follows from these two marginal costs. The last column is measured as a whole: both algorithms on
    their own schedule. All from {rounds} short rounds, in which what is subtracted was measured side by side."""
FLOPS = """Counted by PyTorch in eager steps, and for the last row from the shapes of the products above, which
    count the gradient of Q in the action alone."""
COMPILE = """In a fresh process: until every set of Updates that can be due together has run once. What it takes in
    all counts from the start of the process. Compiling pays after so many gradient steps, in CPU time and against
    recording."""
FLATNESS = """Meta-steps of GORL on small networks, each with a guiding update: a leaked graph would make them dearer.
    The machine itself drifts over such a time, hence the second comparison, in turns."""


def page(result: Mapping[str, Any]) -> str:
    """The whole page."""
    settings = result["settings"]
    hidden = " x ".join(map(str, settings["hidden"]))
    blocks = [
        "# Speed of a training step",
        _filled(MADE_BY + _machine(result)),
        "![gradient steps per CPU-second, relative to plain PyTorch](speed.png)",
        "## How it is measured",
        _filled(HOW.format(**{**settings, "hidden": hidden})),
        _contestants(result),
        *(_section(tables.steps(name, size)) for name, size in result["sizes"].items()),
        _filled(STEPS.format(**settings)),
        *(_compared(result, name) for name in result.get("compared", {})),
        *(_learned(result, name) for name in result.get("learned", {})),
        _whole(result),
        _section(tables.gorl(result), GORL.format(rounds=_gorl_rounds(result))),
        _section(tables.gorl_bases(result), GORL_BASES.format(count=len(BASES))) if "gorl_bases" in result else "",
        _section(tables.flops(result), FLOPS),
        _section(tables.compiling(result), COMPILE),
        _section(tables.flatness(result), FLATNESS),
        _gpu(result),
        _left_out(result),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _compared(result: Mapping[str, Any], name: str) -> str:
    measured, words = result["compared"][name], COMPARED[name].format(**result["settings"])
    if CORL in measured["contestants"]:
        sha256 = measured["contestants"][CORL]["facts"]["sha256"][:12]
        words = f"{words} {CORLS.format(file=COMPARISONS[name].file, sha256=sha256)}"
    return _section(tables.compared(name, measured), f"{words} {_apart(result, name)}")


def _learned(result: Mapping[str, Any], name: str) -> str:
    measured, label = result["learned"][name], LEARNED[name].label
    settings = _settings(result, name)
    words = LEARNED_LOSSES.format(**settings, label=label, schedule=SCHEDULES.get(label, MOVING))
    authors = [found for each, found in measured["contestants"].items() if each in AUTHORS]
    if authors:
        words += " " + AUTHORS_CODE.format(sha256=authors[0]["facts"]["sha256"][:12], count=len(rival_gild.SHIMS))
    return _section(tables.learned(name, measured), f"{words} {_apart(result, name)}")


def _whole(result: Mapping[str, Any]) -> str:
    if not result.get("whole"):
        return ""
    first = next(iter(result["whole"]))
    settings = _settings(result, first)
    hidden = " x ".join(map(str, settings["hidden"]))
    words = WHOLE_RUNS.format(
        **{**settings, "hidden": hidden, "rounds": settings["whole_rounds"]},
        steps=settings["whole_steps"],
        share=settings["warm_start"],
        times=settings["long"] / settings["whole_steps"],
    )
    return _section(
        tables.whole(result), " ".join((words, *dict.fromkeys(_apart(result, each) for each in result["whole"])))
    )


def _settings(result: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Those of the run that answered."""
    found: Mapping[str, Any] = result.get("apart", {}).get(name, result)["settings"]
    return found


def _apart(result: Mapping[str, Any], name: str) -> str:
    """Where and in what rounds an answer was measured, where it has a run of its own."""
    own = result.get("apart", {}).get(name)
    return "" if own is None else f"Measured in a run of its own, {own['settings']['rounds']} rounds: {_machine(own)}"


def _section(grid: Grid, words: str = "") -> str:
    return "\n\n".join(part for part in (f"## {grid.title}", grid.markdown(), _filled(words)) if part)


def _filled(words: str) -> str:
    indent = "  " if words.startswith("- ") else ""
    return textwrap.fill(
        " ".join(words.split()), 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _gorl_rounds(result: Mapping[str, Any]) -> int:
    first: Mapping[str, Any] = next(iter(result["gorl"].values()))
    return len(first["parts"]["gorl"]["cpu_ms"])


def _machine(result: Mapping[str, Any]) -> str:
    made, load = result["environment"], result["load_average"]
    return (
        f"Python {made['python']}, torch {made['torch']}; {made['machine']}; load average {load['before']:.1f} before "
        f"and {load['after']:.1f} after."
    )


def _contestants(result: Mapping[str, Any]) -> str:
    found = next(iter(result["sizes"].values()))["contestants"]
    entries = [
        """- **metarl**: eagerly, recorded and compiled, as a training run steps; also with four seeds stacked in one
        process.""",
        """- **plain PyTorch**: `benchmarks/speed/textbook.py`, the algorithm as one writes it in one file, with
        nn.Sequential, torch.optim.Adam and batches of NumPy rows.""",
    ]
    for name, words in RIVALS.items():
        if name in found:
            facts = found[name]["facts"]
            entries.append(words.format(sha256=facts.get("sha256", "")[:12], **facts["versions"]))
    return "\n".join(map(_filled, entries))


def _gpu(result: Mapping[str, Any]) -> str:
    if not result["gpu"]:
        return "## On a GPU\n\nNot measured: no GPU."
    grid = tables.gpu(result)
    return f"## On a GPU\n\n{grid.title}, wall time.\n\n{grid.markdown()}"


def _left_out(result: Mapping[str, Any]) -> str:
    entries = [f"- {LABELS.get(name, name)}: {_brief(reason)}." for name, reason in result["left_out"].items()]
    return "\n\n".join(["## Not measured", "\n".join(map(_filled, entries))]) if entries else ""


def _brief(reason: str) -> str:
    """The first line of a reason and the last, where a dead worker's final words stand."""
    lines = [line.strip() for line in reason.splitlines()]
    return " ".join(dict.fromkeys((lines[0], lines[-1]))).rstrip(".")
