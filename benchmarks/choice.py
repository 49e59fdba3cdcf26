"""Which policy of PEX's set acts, when and where: `python -m benchmarks.choice RUN [RUN ...] [--out FILE.png]`.

A row per run, as far as its newest checkpoint. Left, what the run recorded: the share of actions that each policy gave
over the online steps, and its evaluations. Right, the states that the run itself met in the first and in the last third
of its online steps, coloured by

    1 - w_0(s),   w(s) = softmax_i(kappa min_j Q_j(s, a_i)),   a_i the policies' modes, 0 the offline policy

under the newest checkpoint: where the newer policies would act now (`objectives.pex.weights`).
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from gymnasium.envs.registration import EnvSpec
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator, PercentFormatter
from numpy.typing import NDArray

from benchmarks.colours import FAINT, GRID, INK, PALETTE, ramp
from benchmarks.drawing import STYLE, compact, plain, steps_axis, to_png
from benchmarks.planes import Acting, World, acting, say, world_of
from benchmarks.reading import read_run
from metarl.data.replay import Replay
from metarl.data.transitions import Layout
from metarl.errors import CheckpointError, ConfigError, UserError
from metarl.process import settle
from metarl.training import checkpoints, export
from metarl.training.folder import RunFolder
from metarl.training.setup import dtype_of, saved_spec
from objectives.pex import PEX, weights

STATES = 3000  # looked at, of each third
PARTS = 60  # of the online steps that are drawn apart; more rows are averaged
PENDULUM = ".pendulum:PendulumEnv"
OFFLINE, NEWER = PALETTE[1], PALETTE[2]
CMAP = LinearSegmentedColormap.from_list("choice", [OFFLINE, "#c9c2bd", NEWER])

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Found:
    """What is drawn of a run.

    Attributes:
        run: what it is.
        steps: of the rows that tell of online actions, [K].
        shares: of the actions of each row that each policy gave, [K, n].
        evaluated: (step, value) of its evaluations.
        measured: what that value is.
        lived: online transitions up to the checkpoint.
        early, late: states met in the first and in the last third of them, [m, O], as the environment observes them.
        early_weights, late_weights: of the policies there, [m, n].
    """

    run: Acting
    steps: NDArray[np.int64]
    shares: Values
    evaluated: tuple[tuple[int, float], ...]
    measured: Literal["success", "return"]
    lived: int
    early: Values
    late: Values
    early_weights: Values
    late_weights: Values

    @property
    def switch(self) -> int:
        """The last step on data alone."""
        return self.run.experiment.offline_steps

    @property
    def policies(self) -> int:
        """How many the set has, or is to have."""
        return self.shares.shape[1]

    @cached_property
    def newer(self) -> tuple[Values, Values]:
        """1 - w_0, [m] of either third."""
        return 1 - self.early_weights[:, 0], 1 - self.late_weights[:, 0]


def find(path: Path, beside: Path | None = None, states: int = STATES) -> Found:
    """Reads a run back and weighs its policies.

    Args:
        path: its folder; a run in progress is read as of its newest checkpoint.
        beside: where components named `module:Class` lie.
        states: of each third, a seeded sample where there are more.

    Raises:
        ConfigError: the run has no set of policies, or has not yet met its environment.
        CheckpointError: it has no checkpoint, or its transitions are not there.
    """
    experiment = RunFolder(path).experiment(beside)
    if not any(isinstance(objective, PEX) for objective in experiment.objectives):
        others = ", ".join(type(objective).__name__ for objective in experiment.objectives) or "none"
        raise ConfigError(f"{path} has no set of policies to choose from (objectives: {others}); choose a run of pex")
    run = acting(path, beside)
    early, late, lived = _states(run, states)
    recorded = read_run(path)
    rows = {name: series for name, series in recorded.scalars.items() if name.startswith("online/policy_")}
    names = [f"online/policy_{i}" for i in range(len(rows))]
    kept = [int(step) <= run.step for step in rows[names[0]].steps] if rows else []
    if not any(kept):
        raise ConfigError(
            f"{path}: up to its checkpoint at step {plain(run.step)}, metrics.csv has no row of online actions chosen "
            "by the set; train it further, or log more often (log_every)"
        )
    policy = run.precise()
    success = any(one.success is not None for one in recorded.evaluations)
    evaluated = [
        (one.step, float(one.success or 0.0) if success else one.mean)
        for one in recorded.evaluations
        if one.step <= run.step
    ]
    early_weights, late_weights = (weights(policy.learner, policy.tree, policy.read(x)).numpy() for x in (early, late))
    return Found(
        run,
        np.array(rows[names[0]].steps, np.int64)[kept],
        np.stack([np.array(rows[name].values, np.float64)[kept] for name in names], 1),
        tuple(evaluated),
        "success" if success else "return",
        lived,
        early,
        late,
        early_weights,
        late_weights,
    )


def _states(run: Acting, most: int) -> tuple[Values, Values, int]:
    """Observations of the first and the last third of the online transitions, and how many there are of these."""
    folder = RunFolder(run.path)
    record = checkpoints.load(folder.checkpoints, run.step).record
    lived = int(record.get("online", {"replay": {"rows": 0}})["replay"]["rows"])
    if not lived:
        raise ConfigError(
            f"{run.path} has taken no online step yet (its checkpoint is of step {plain(run.step)}, and "
            f"{plain(run.experiment.offline_steps)} are on data alone); train it further"
        )
    spec = saved_spec(record["spec"])
    replay = Replay(Layout(spec.obs_dim, spec.action_dim), 1, dtype_of(run.experiment))
    # `Replay.restore` would cut the log of a run that goes on.
    size = lived * replay.layout.width * replay.rows.element_size()
    if not folder.replay.is_file() or folder.replay.stat().st_size < size:
        raise CheckpointError(
            f"{folder.replay} is missing or shorter than at the checkpoint, so the states that the run met are not "
            "known; bring it back"
        )
    third, columns = max(1, lived // 3), replay.layout.slices()["obs"]
    thirds = (replay.read(folder.replay, first, third)[:, columns] for first in (0, lived - third))
    rng = np.random.default_rng(0)
    rows = np.sort(rng.choice(third, most, replace=False)) if third > most else np.arange(third)
    early, late = (obs[rows].astype(np.float64) for obs in thirds)
    return early, late, lived


def measure(run: Path | Found, beside: Path | None = None, states: int = STATES) -> dict[str, Any]:
    """The numbers of a run.

    Returns:
        `policies`: of the set; `rows`: of online actions in metrics.csv; `first`, `last`: share of actions that the
        offline policy gave in the first and in the last fifth of them; `states`: looked at; `early`, `late`: mean
        weight of the newer policies on states of the first and of the last third of the online steps; `std`: the
        standard deviation of that weight over all of these states.
    """
    found = run if isinstance(run, Found) else find(run, beside, states)
    fifth = -(-len(found.steps) // 5)
    early, late = found.newer
    both = np.concatenate((early, late))
    return {
        "policies": found.policies,
        "rows": len(found.steps),
        "first": float(found.shares[:fifth, 0].mean()),
        "last": float(found.shares[-fifth:, 0].mean()),
        "states": len(both),
        "early": float(early.mean()),
        "late": float(late.mean()),
        "std": float(both.std()),
    }


def summary(found: Found) -> str:
    """The numbers in words."""
    numbers = measure(found)
    owner = "newer policy's weight" if found.policies == 2 else f"{found.policies - 1} newer policies' weight together"
    return (
        f"The offline policy gave {numbers['first']:.0%} of the actions in the first fifth of the online steps and "
        f"{numbers['last']:.0%} in the last. By the newest critic, the {owner} is {numbers['early']:.2f} on average "
        f"over states of the first third and {numbers['late']:.2f} over those of the last "
        f"({1 - 1 / found.policies:.2f} if all actions had the same value). Its standard deviation over all these "
        f"states is {numbers['std']:.2f} (0 if the state made no difference, at most 0.5)."
    )


# -- the picture -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plane:
    """Where states are drawn.

    Attributes:
        world: the map; None where there is none.
        early, late: places [m, 2].
        x, y: names of the axes.
        note: what is not seen.
    """

    world: World | None
    early: Values
    late: Values
    x: str
    y: str
    note: str


def plane(found: Found) -> Plane:
    """The map of a task, else the pendulum's angle and its speed, else principal components."""
    world = world_of(found.run.env)
    both = (found.early, found.late)
    if world is not None:
        unseen = {
            "maze": "Velocity and goal, which belong to the state too, are not seen.",
            "navigation": "The goal, which belongs to the state too, is not seen.",
            "rooms": "",
        }
        early, late = (world.places(x) for x in both)
        return Plane(world, early, late, *world.axes, unseen[world.kind])
    if str(EnvSpec.from_json(found.run.env).entry_point).endswith(PENDULUM):
        early, late = (np.stack((np.arctan2(x[:, 1], x[:, 0]), x[:, 2]), 1) for x in both)
        return Plane(None, early, late, "angle [rad]; 0: upright", "angular velocity [rad/s]", "")
    every = np.concatenate(both)
    scale = every.std(0)
    scale[scale == 0] = 1.0
    centred = (every - every.mean(0)) / scale
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    share = np.append(singular**2 / max(float((singular**2).sum()), 1e-300), 0.0)
    two = np.zeros((2, centred.shape[1]))
    two[: len(directions[:2])] = directions[:2]
    early, late = np.split(centred @ two.T, [len(found.early)])
    note = "Principal components of these states, coordinates in their standard deviations."
    return Plane(
        None, early, late, f"component 1 ({share[0]:.0%} of the variance)", f"component 2 ({share[1]:.0%})", note
    )


def drawn(found: Sequence[Found]) -> tuple[Figure, list[str]]:
    """The picture, and the numbers below every row."""
    width = 12.6
    planes = [plane(one) for one in found]
    notes = [summary(one) for one in found]
    lines = [
        textwrap.wrap(f"{note} {place.note}".strip(), int(width * 14.2))
        for note, place in zip(notes, planes, strict=True)
    ]
    ends = textwrap.wrap(
        "Left: every online action came from one policy of the set, drawn by the values that the critic of that time "
        "gave to their proposals; the offline policy is frozen at the switch. Right: each dot is a state that the run "
        "met online; its colour is the weight that the newest critic gives there to all policies but the offline one, "
        "softmax of κ min Q over what each would do "
        "(its mode).",
        int(width * 15.2),
    )
    stages = [1 if place.world is None else len(place.world.stages) for place in planes]
    tall = [3.95 if n == 1 else 3.5 * n for n in stages]
    low = [0.17 * len(text) + 0.2 for text in lines]
    low[-1] -= 0.1
    last = 0.16 * len(ends) + 0.1
    heights = [height for pair in zip(tall, low, strict=True) for height in pair] + [last]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, sum(heights)), layout="constrained")
        parts: Any = figure.subfigures(len(heights), 1, height_ratios=heights)
        for i, (one, place, text) in enumerate(zip(found, planes, lines, strict=True)):
            row, below = parts[2 * i], parts[2 * i + 1]
            row.suptitle(one.run.title, x=0.012, ha="left", fontweight="bold", fontsize=11.5)
            left, right = row.subfigures(1, 2, width_ratios=(1, 1.5))
            _course(left, one)
            _places(right, one, place)
            below.text(0.012, 0.98, "\n".join(text), ha="left", va="top", fontsize=8.8)
        parts[-1].text(0.012, 0.9, "\n".join(ends), ha="left", va="top", fontsize=8.2, color="#5b6770")
    return figure, notes


def colours(n: int) -> tuple[str, ...]:
    """Of the policies of a set of `n`, the offline one first."""
    return (OFFLINE, NEWER) if n == 2 else (OFFLINE, *ramp(n - 1, 1))


def _course(part: Any, found: Found) -> None:
    """Whose actions were taken, and the evaluations, over the steps."""
    upper, lower = part.subplots(2, 1, sharex=True, height_ratios=(1.35, 1))
    parts = [rows for rows in np.array_split(np.arange(len(found.steps)), PARTS) if len(rows)]
    online = found.run.experiment.online
    begin = found.switch + (online.random_steps or 0 if online is not None else 0)
    edges = np.array([min(begin, int(found.steps[0]) - 1), *(found.steps[rows[-1]] for rows in parts)])
    means = np.stack([found.shares[rows].mean(0) for rows in parts])
    tops = np.concatenate((np.zeros((len(parts), 1)), means.cumsum(1)), 1)
    for i, colour in enumerate(colours(found.policies)):
        name = "offline policy" if i == 0 else "newer policy" if found.policies == 2 else f"newer {i}"
        upper.stairs(
            tops[:, i + 1], edges, baseline=tops[:, i], fill=True, color=colour, alpha=0.85, linewidth=0, label=name
        )
    upper.set_ylim(0, 1)
    upper.yaxis.set_major_locator(MultipleLocator(0.5))
    upper.yaxis.set_major_formatter(PercentFormatter(1.0))
    upper.set_ylabel("share of actions")
    upper.set_title("Whose actions are taken\n", fontsize=10)
    upper.legend(
        loc="lower left",
        bbox_to_anchor=(-0.02, 0.99),
        ncols=found.policies,
        borderaxespad=0,
        handlelength=1,
        handletextpad=0.5,
        columnspacing=1.2,
    ).set_in_layout(False)
    if found.evaluated:
        steps, values = zip(*found.evaluated, strict=True)
        lower.plot(steps, values, color=INK, marker="o", markersize=3, linewidth=1.4)
    title = f"{found.measured.capitalize()} of the evaluations"
    lower.set_title(f"{title} (dashed: the switch)" if found.switch else title)
    lower.set_ylabel(found.measured)
    if found.measured == "success":
        lower.set_ylim(-0.04, 1.04)
        lower.yaxis.set_major_locator(MultipleLocator(0.5))
        lower.yaxis.set_major_formatter(PercentFormatter(1.0))
    counted = f"steps (to {compact(found.switch)} on data, then in the environment)"
    steps_axis(lower, counted if found.switch else "environment steps")
    right = max(found.run.step, int(found.steps[-1]))
    lower.set_xlim(-0.01 * right, 1.01 * right)
    if not found.switch:
        return
    for axis in (upper, lower):
        axis.axvline(found.switch, color=INK, linewidth=1.1, linestyle=(0, (4, 2)), zorder=3)
        axis.axvspan(-0.01 * right, found.switch, color=GRID, alpha=0.55, linewidth=0, zorder=0)
    if found.switch > 0.18 * right:
        upper.text(found.switch / 2, 0.5, "learns from data,\nno actions yet", ha="center", va="center", fontsize=8.5)


def _places(part: Any, found: Found, place: Plane) -> None:
    """The states of both thirds."""
    stages = ("",) if place.world is None else place.world.stages
    axes = part.subplots(len(stages), 2, squeeze=False, sharex=True, sharey=True)
    third = max(1, found.lived // 3)
    first = found.switch
    spans = ((first + 1, first + third), (first + found.lived - third + 1, first + found.lived))
    clouds = ((found.early, place.early, found.newer[0]), (found.late, place.late, found.newer[1]))
    norm = Normalize(0, 1)
    for column, (name, span, (obs, at, weight)) in enumerate(
        zip(("first third", "last third"), spans, clouds, strict=True)
    ):
        stage_of = np.zeros(len(obs), np.int64) if place.world is None else place.world.stage(obs)
        # Drawn in no order of time, so that none covers the others as the later one.
        order = np.random.default_rng(0).permutation(len(obs))
        for stage, (axis, label) in enumerate(zip(axes[:, column], stages, strict=True)):
            shown = order[stage_of[order] == stage]
            if place.world is not None:
                place.world.draw(axis)
            axis.scatter(*at[shown].T, c=weight[shown], cmap=CMAP, norm=norm, s=7, linewidths=0, alpha=0.9, zorder=2)
            span_text = f"steps {plain(span[0])} to {plain(span[1])}"
            axis.set_title(f"States met online, {name}\n", fontsize=10)
            axis.annotate(
                f"{span_text}, {label}" if label else span_text,
                (0, 1.0),
                (0, 4),
                xycoords="axes fraction",
                textcoords="offset points",
                fontsize=8.5,
            )
            axis.set_xlabel(place.x if stage == len(stages) - 1 else "")
            axis.set_ylabel(place.y if column == 0 else "")
            if place.x.startswith("angle"):
                axis.set_xlim(-np.pi, np.pi)
                axis.set_xticks([-np.pi, -np.pi / 2, 0, np.pi / 2, np.pi], ["−π", "−π/2", "0", "π/2", "π"])
    bar = part.colorbar(ScalarMappable(norm, CMAP), ax=list(axes.flat), shrink=0.92, pad=0.02, aspect=24)
    bar.set_ticks([0, 0.5, 1])
    which = "the newer policy" if found.policies == 2 else "the newer policies"
    bar.set_label(f"weight of {which}\n0: offline policy, 1: newer")
    bar.outline.set_edgecolor(FAINT)


# -- the command -----------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws which policy of their sets acts in runs; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.choice", description="Draw which policy of PEX's set acts, when and where."
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="run", help="a run's folder, runs/<name>-<hash>/<seed>")
    parser.add_argument("--out", type=Path, help="FILE.png; by default choice.png in the first run's folder")
    parser.add_argument("--beside", type=Path, help="where components named module:Class lie")
    options = parser.parse_args(arguments)
    out = options.out or options.runs[0] / "choice.png"
    settle()
    try:
        found = [find(run, options.beside) for run in options.runs]
        export.check_path(out, True, (".png",))
        figure, notes = drawn(found)
        export.write_bytes(out, to_png(figure))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    say(str(out))
    for one, note in zip(found, notes, strict=True):
        say(f"{one.run.title}: {note}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
