"""docs/official.md, written from the recorded results alone."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.official.comparison import OFFICIAL, OURS, RULE, judge
from benchmarks.speed.tables import Grid
from benchmarks.statistics import Interval

INTRODUCTION = """Methods whose authors published code, trained by that code and by metarl on the same rows with the
    same rewards, for as many updates of networks of the same size, and evaluated by one evaluator in the data's
    environment. The authors' files are known by their sha256, and no other content is run. Seeds decide the first
    parameters, the batches and the noise, by other draws on either side."""
RUN = """{repository} at commit {commit}: {files}, sha256 {sha256}, {changes}. Stand-ins are imported in the place of
    {stand_ins}. {loop} No GPU is seen."""
SAME = """Number by number: from equal parameters, with equal batches and draws, {updates} updates in float64 differ by
    at most {largest} in any parameter, relative to the largest of its tensor. A test holds them to {bound:g}."""
READING = """{rule}. Intervals are Student's over seeds; the difference, ours less the authors', is taken seed by seed.
    {score} Overlap says that {seeds} seeds show no difference; one that the interval of the difference holds may still
    be there."""


@dataclass(frozen=True)
class Method:
    """What the page says of one method.

    Attributes:
        loop: what of it is the authors'.
        score: what the numbers are.
        words: for settings, in the order of the table.
    """

    loop: str
    score: str
    words: Mapping[str, str]


METHODS = {
    "POR": Method(
        """Networks, trainer, sampling of batches and acting are the authors'; the loop around them is in the order of
        their main script, which is not run itself.""",
        "Each score is the mean over the episodes of the last evaluation, by the deterministic policy.",
        {
            "recipe": "data",
            "size": "transitions",
            "rewards": "rewards",
            "pretrain_steps": "updates of the behaviour guide, first",
            "train_steps": "updates of everything else",
            "tau": "expectile",
            "alpha": "alpha",
            "value_lr": "learning rate of V",
            "policy_lr": "learning rate of the policies, falling by a cosine",
            "discount": "discount",
            "layer_norm": "layer norms in V",
            "batch_size": "batch",
            "hidden_dim": "width of the two hidden layers of V and the guides",
            "execute_dim": "width of those of the execute policy",
            "episodes": "episodes of the evaluation",
        },
    ),
    "PEX": Method(
        """Their two main scripts are run as they are, the offline one and then the online one on what it saved, but for
        two functions that these import: `get_env_and_dataset`, which knows D4RL's tasks alone, gives the rows and the
        environment of ours; `eval_policy`, which steps the training environment in mid-episode and samples one action
        and one choice in ten, hands their `select_action` with no such share to the evaluator of ours.""",
        """Each score is a mean over evaluations, and each of these over its episodes, by the deterministic policy: at
        the switch by the offline policy, after it by the best of the modes (PEX) or the mode (direct).""",
        {
            "recipe": "data",
            "size": "transitions",
            "reward_scale": "factor of rewards",
            "offline_steps": "gradient steps on the data",
            "online_steps": "environment steps after them",
            "learn_from": "of these, before the first gradient step",
            "tau": "expectile",
            "beta": "beta",
            "inv_temperature": "inverse temperature",
            "learning_rate": "learning rate of everything; on the data the policy's falls by a cosine",
            "target_update_rate": "rate of the target",
            "discount": "discount",
            "batch_size": "batch; online half of it from the data",
            "hidden_dim": "width of the two hidden layers of everything",
            "evaluate_every": "steps between evaluations",
            "episodes": "episodes of an evaluation",
        },
    ),
}


def page(records: Sequence[Mapping[str, Any]]) -> str:
    """The whole page, one section a method."""
    blocks = ["# Beside the authors' own code", _filled(INTRODUCTION)]
    for record in records:
        blocks += _section(record)
    return "\n\n".join(blocks) + "\n"


def table(record: Mapping[str, Any]) -> Grid:
    """One row a cell: both means and the difference, with their intervals, and the verdict."""
    rows = []
    for cell in record["cells"]:
        scores = {side: {int(s): v for s, v in cell["sides"][side]["scores"].items()} for side in (OFFICIAL, OURS)}
        found = judge(scores[OFFICIAL], scores[OURS])
        percent = cell["figure"] == "success"
        unit = "success, %" if percent else cell["figure"]
        figures = (_interval(each, percent) for each in (found.official, found.ours, found.gap))
        name = f"{cell['type']}, {cell['recipe']}: {unit}"
        rows.append((name, *figures, str(found.official.n), "yes" if found.overlap else "no"))
    head = (record["algorithm"], "the authors' code", "metarl", "difference", "seeds", "overlap")
    return Grid(f"{record['algorithm']}: the authors' code and metarl", head, rows)


def scores(record: Mapping[str, Any]) -> Grid:
    """One row a side of a cell: the score of every seed."""
    seeds = list(record["cells"][0]["sides"][OURS]["scores"])
    often = Counter(cell["type"] for cell in record["cells"])
    rows = []
    for cell in record["cells"]:
        title = f"{cell['type']}, {cell['figure']}" if often[cell["type"]] > 1 else cell["type"]
        for side, name in ((OFFICIAL, "the authors' code"), (OURS, "metarl")):
            values = cell["sides"][side]["scores"]
            rows.append((f"{title}, {name}", *(_number(values[s], cell) for s in seeds)))
    return Grid("Every seed", ("seed", *seeds), rows)


def settings(record: Mapping[str, Any]) -> Grid:
    """One row a setting, one column a cell; cells of one type are figures of the same runs."""
    cells = {cell["type"]: cell for cell in record["cells"]}
    words = METHODS[record["algorithm"]].words
    rows = [(said, *(_value(cell[name]) for cell in cells.values())) for name, said in words.items()]
    return Grid("Both sides", ("both sides", *cells), rows)


def _section(record: Mapping[str, Any]) -> list[str]:
    method = METHODS[record["algorithm"]]
    first, made = record["first_updates"], record["environment"]
    shims, stand_ins = record["shims"], record["stand_ins"]
    some = f"{len(shims)} change{'s' if len(shims) > 1 else ''} of text"
    changes = f"run with {some}, listed below" if shims else "run as published, without a change of their text"
    run = RUN.format(
        repository=record["repository"],
        commit=record["commit"],
        files=", ".join(f"`{file}`" for file in record["files"]),
        sha256=record["sha256"][:12],
        changes=changes,
        stand_ins="; ".join(f"`{name}` ({why})" for name, why in stand_ins.items()),
        loop=method.loop,
    )
    listed = "\n".join(
        f"- `{shim['old']}` in {shim['file'] or record['files'][0]} becomes `{shim['new']}`: {shim['reason']}."
        for shim in shims
    )
    largest = " and ".join(f"{value:.0e} ({name})" for name, value in first["largest"].items())
    seeds = len(record["cells"][0]["sides"][OURS]["scores"])
    versions = f"Python {made['python']}, torch {made['torch']}, {made['machine']}"
    return [
        f"## {record['algorithm']}",
        _filled(f"`{record['command']}`. {run}"),
        *([listed] if listed else []),
        _filled(SAME.format(updates=first["updates"], largest=largest, bound=first["bound"])),
        table(record).markdown(),
        _filled(READING.format(rule=RULE, score=method.score, seeds=seeds)),
        scores(record).markdown(),
        settings(record).markdown(),
        _filled(f"{record['notes']} {versions}."),
    ]


def _interval(found: Interval, percent: bool) -> str:
    value, low, high = (100 * x if percent else x for x in (found.value, found.low, found.high))
    return f"{value:.1f} ({low:.1f} to {high:.1f})"


def _number(value: float, cell: Mapping[str, Any]) -> str:
    return f"{100 * value:.0f}" if cell["figure"] == "success" else f"{value:.1f}"


def _value(value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case dict():
            return ", ".join(f"{name}: {_value(each)}" for name, each in value.items())
    return str(value)


def _filled(words: str) -> str:
    return textwrap.fill(" ".join(words.split()), 120, break_long_words=False, break_on_hyphens=False)
