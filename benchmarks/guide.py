"""Where POR's guide leaves the data, and what V says of it there: `python -m benchmarks.guide RUN [--out FILE.png]`.

For states s of the training data, with the run's own V (the lower of two), the guide's mean g(s) beside the s' that
followed:

    V(g(s)) - V(s')         does the guide name better states than those that were met?
    min |g(s) - s'|         over all s' of the data, coordinates in their standard deviations: does it leave the data?

`python -m benchmarks.guide RUN RUN ... --record` keeps the numbers of several runs as
benchmarks/results/por_guide.json. Transitions that ended in a terminal state are left out: V is never trained there.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray
from scipy import stats

from benchmarks.colours import FAINT, GRID, INK, PALETTE
from benchmarks.drawing import STYLE, plain, to_png
from benchmarks.planes import Near, Trained, World, read, say, world_of
from metarl import nn
from metarl.errors import ConfigError, UserError
from metarl.process import settle
from metarl.provenance import environment
from metarl.training import export
from metarl.training.folder import write_json
from objectives.por import POR

RESULTS = Path(__file__).parent / "results" / "por_guide.json"
STATES = 2000  # looked at
LEVEL = 0.95  # of intervals, and of what counts as among the data
QUARTER = 0.25  # the states whose g(s) is nearest to the data, and farthest from them
ACROSS = 13  # arrows along a map
BINS = 10  # of the means over the distance
CMAP = "viridis"
NEXT, GUIDE = PALETTE[0], PALETTE[2]  # colours of s' and g(s)

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """States of the training data, and what the guide and V say of them.

    Attributes:
        run: where they come from.
        rows: of the data, ascending, [n].
        episode: of each, [n].
        obs, next_obs, guide: s, s' and g(s), [n, O], as the environment observes them.
        v_next, v_guide: V of the last two, [n].
        distance: of g(s) to the nearest s' of the data, in standard deviations, [n].
        usual: of s' to the nearest other s' of the data, [n].
    """

    run: Trained
    rows: NDArray[np.int64]
    episode: NDArray[np.int64]
    obs: Values
    next_obs: Values
    guide: Values
    v_next: Values
    v_guide: Values
    distance: Values
    usual: Values

    @cached_property
    def gain(self) -> Values:
        """V(g(s)) - V(s'), [n]."""
        return self.v_guide - self.v_next

    @property
    def form(self) -> str:
        """How the guide learned."""
        return _por(self.run).form


def sample(run: Trained, states: int = STATES) -> Sample:
    """A seeded sample of `states` transitions, or all where they are fewer.

    Raises:
        ConfigError: the run has no guide.
    """
    _por(run)
    policy, train = run.precise(), run.train
    rows = (train.terminated == 0).nonzero().flatten().numpy()
    if not len(rows):
        raise ConfigError(f"{run.path}: every transition of data.train is terminal; V says nothing of such states")
    if len(rows) > states:
        rows = np.sort(np.random.default_rng(0).choice(rows, states, replace=False))
    learner, tree = policy.learner, policy.tree
    terms = learner.hooks("por")
    obs, next_obs = (policy.read(part[rows].numpy()) for part in (train.obs, train.next_obs))
    with torch.no_grad():
        guide, _ = nn.call(learner.modules["guide_policy"], tree["guide_policy"], obs)
        v_next, v_guide = (terms.v(tree, x).numpy() for x in (next_obs, guide))
    every = policy.read(train.next_obs.numpy()).numpy()
    scale = every.std(0)
    scale[scale == 0] = 1.0  # a number that never changes, as it is
    near = Near(every / scale)
    usual = near(next_obs.numpy() / scale, 2)[0][:, -1] if len(every) > 1 else np.zeros(len(rows))
    return Sample(
        run,
        rows,
        train.episode_of_row()[rows].numpy(),
        train.obs[rows].double().numpy(),
        train.next_obs[rows].double().numpy(),
        _raw(run, guide.numpy()),
        v_next,
        v_guide,
        near(guide.numpy() / scale)[0],
        usual,
    )


def measure(run: Path | Trained, beside: Path | None = None, states: int = STATES) -> dict[str, Any]:
    """The numbers of a run.

    Returns:
        `states`: how many; `v_next`, `v_guide`: means; `v_next_std`: standard deviation of V(s');
        `all`, `nearest`, `farthest`: of all states, and of the quarters whose g(s) is nearest to the data and farthest
        from them: `difference` (mean V(g(s)) - V(s')), its interval `low`, `high` (95 %, by episodes; None for a single
        one), `above` (share of states with V(g(s)) > V(s')), `distance` (mean, of g(s) to the data);
        `outside`: share of states whose g(s) is farther from the data than 95 % of the s' are from other s';
        `usual`: the median of these; `rank_correlation`: Spearman's, of difference and distance (None if constant).
    """
    return numbers(sample(run if isinstance(run, Trained) else read(run, beside), states))


def numbers(found: Sample) -> dict[str, Any]:
    """See `measure`."""
    order = np.argsort(found.distance, kind="stable")
    quarter = max(1, round(QUARTER * len(order)))
    constant = np.ptp(found.gain) == 0 or np.ptp(found.distance) == 0
    limit = np.quantile(found.usual, LEVEL)
    return {
        "states": len(order),
        "v_next": float(found.v_next.mean()),
        "v_guide": float(found.v_guide.mean()),
        "v_next_std": float(found.v_next.std()),
        "all": _part(found, order),
        "nearest": _part(found, order[:quarter]),
        "farthest": _part(found, order[-quarter:]),
        "outside": float((found.distance > limit).mean()),
        "usual": float(np.median(found.usual)),
        "rank_correlation": None if constant else float(stats.spearmanr(found.gain, found.distance).statistic),
    }


def _part(found: Sample, chosen: NDArray[Any]) -> dict[str, float | None]:
    gain = found.gain[chosen]
    half = _half(gain, found.episode[chosen])
    mean = float(gain.mean())
    return {
        "difference": mean,
        "low": None if half is None else mean - half,
        "high": None if half is None else mean + half,
        "above": float((gain > 0).mean()),
        "distance": float(found.distance[chosen].mean()),
    }


def _half(values: Values, episode: NDArray[Any]) -> float | None:
    """Half of the mean's interval, states of one episode being alike: residuals are summed by episode (Liang and
    Zeger 1986, "Longitudinal data analysis using generalized linear models"), Student's quantile for their number."""
    groups = np.unique(episode, return_inverse=True)[1]
    k = int(groups.max()) + 1
    if k < 2:
        return None
    sums = np.bincount(groups, values - values.mean())
    error = np.sqrt(k / (k - 1) * (sums**2).sum()) / len(values)
    return float(stats.t.ppf((1 + LEVEL) / 2, k - 1) * error)


def _por(run: Trained) -> POR:
    por = next((objective for objective in run.experiment.objectives if isinstance(objective, POR)), None)
    if por is None:
        names = ", ".join(type(objective).__name__ for objective in run.experiment.objectives) or "none"
        raise ConfigError(f"{run.path} has no guide (objectives: {names}); choose a run of por")
    return por


def _raw(run: Trained, obs: Values) -> Values:
    """What the learner looks at, back in the environment's units."""
    statistics = run.policy.statistics
    if statistics is None:
        return obs
    return obs * (statistics.std.numpy() + statistics.EPSILON) + statistics.mean.numpy()


def record(run: Trained) -> dict[str, Any]:
    """What is kept of a run: what it is, and `measure`."""
    found = sample(run)
    return {
        "name": run.name,
        "labels": run.labels,
        "experiment": run.path.resolve().parent.name,
        "form": found.form,
        "env": EnvSpec.from_json(run.env).id,
        "dataset": run.train.card.dataset_id,
        "seed": run.seed,
        "step": run.step,
        **numbers(found),
    }


def summary(found: Mapping[str, Any]) -> str:
    """The numbers in words."""
    every, far, near = found["all"], found["farthest"], found["nearest"]
    return (
        f"Over {plain(found['states'])} states of the data, V(g(s)) − V(s') is {_with_interval(every)} on average, and "
        f"above 0 in {every['above']:.0%} (V(s') has a standard deviation of {_short(found['v_next_std'])}). "
        f"In the quarter of states whose g(s) lies farthest from the data (mean distance {_short(far['distance'])}) it "
        f"is {_with_interval(far)}, and above 0 in {far['above']:.0%}; in the nearest quarter (mean distance "
        f"{_short(near['distance'])}) {_with_interval(near)}, and above 0 in {near['above']:.0%}. "
        f"{found['outside']:.0%} of all g(s) lie farther from the data than 95% of the s' do from other s'. Brackets: "
        "95% intervals over the episodes of this one run."
    )


def _with_interval(part: Mapping[str, Any]) -> str:
    interval = "" if part["low"] is None else f" [{_short(part['low'])}, {_short(part['high'])}]"
    return f"{_short(part['difference'])}{interval}"


def _short(value: float) -> str:
    """Three digits, two behind the point where it is small enough."""
    return plain(float(f"{value:.3g}"))


# -- the picture -----------------------------------------------------------------------------------------------


def drawn(found: Sample) -> tuple[Figure, list[str]]:
    """The picture, and what is written below it."""
    world = world_of(found.run.env)
    stages = ("",) if world is None else world.stages
    notes = [summary(numbers(found)), _clouds(world)]
    width = 10.4
    lines = [line for note in notes for line in textwrap.wrap(note, int(width * 14.5))]
    map_height = 4.6 if world is None else 4.9
    maps, tall, low = map_height * len(stages), 3.3, 0.2 + 0.165 * len(lines)
    low_v, high_v = np.quantile(np.concatenate((found.v_next, found.v_guide)), (0.005, 0.995))
    norm = Normalize(low_v, high_v if high_v > low_v else low_v + 1e-9)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, maps + tall + low + 0.4), layout="constrained")
        parts: Any = figure.subfigures(3, 1, height_ratios=(maps, tall, low))
        title = f"{found.run.title}: POR's guide ({found.form})"
        parts[0].suptitle(title, x=0.02, ha="left", fontweight="bold", fontsize=11.5)
        axes = parts[0].subplots(len(stages), 2, squeeze=False, sharex=True, sharey=True)
        if world is None:
            _components(axes[0], found, norm)
        else:
            for row, (stage, label) in zip(axes, enumerate(stages), strict=True):
                _map(row, found, world, stage, label, norm)
        bar = parts[0].colorbar(ScalarMappable(norm, CMAP), ax=list(axes.flat), shrink=0.8, pad=0.02)
        bar.set_label("V of the state")
        left, right = parts[1].subplots(1, 2, width_ratios=(1, 1.15))
        _distributions(left, found)
        _gain(right, found)
        parts[2].text(0.02, 0.97, "\n".join(lines), ha="left", va="top", fontsize=8.5)
    return figure, notes


def _clouds(world: World | None) -> str:
    if world is None:
        return (
            "Above: both clouds on the two principal components of s' (its coordinates in standard deviations; by a "
            "singular value decomposition). Grey: the other cloud."
        )
    hidden = {
        "maze": "Velocity and goal, which belong to the state too, are not seen.",
        "navigation": "The goal, which belongs to the state too, is not seen.",
        "rooms": "" if len(world.stages) > 1 else "Having the key, which belongs to the state too, is not seen.",
    }[world.kind]
    return f"Above: every dot is a state; arrows lead from some s to what followed, and to g(s). {hidden}".strip()


def _map(row: Any, found: Sample, world: World, stage: int, label: str, norm: Normalize) -> None:
    """The next states and the guide's over the map, by their V, with arrows from some states."""
    here = np.flatnonzero(world.stage(found.obs) == stage)
    at = world.places(found.obs[here])
    arrows, cell = _spread(world, at)
    moves = [world.places(x[here]) - at for x in (found.next_obs, found.guide)]
    longest = float(np.quantile(np.linalg.norm(np.concatenate([move[arrows] for move in moves]), axis=1), 0.9))
    factor = max(1, round(cell / longest)) if longest > 0 else 1
    names = ("s': the states that followed in the data", "g(s): the states that the guide names")
    clouds = [world.places(found.obs)]
    for axis, name, move, v in zip(row, names, moves, (found.v_next, found.v_guide), strict=True):
        world.draw(axis)
        to = at + move
        clouds.append(to)
        axis.scatter(*to.T, c=v[here], cmap=CMAP, norm=norm, s=9, linewidths=0, zorder=2)
        axis.quiver(
            *at[arrows].T,
            *(factor * move[arrows]).T,
            angles="xy",
            scale_units="xy",
            scale=1,
            width=0.004,
            headwidth=4.5,
            headlength=5,
            headaxislength=4.5,
            color=INK,
            edgecolor="white",
            linewidth=0.5,
            zorder=4,
        )
        times = f"arrows {factor} times as long as the step" if factor > 1 else "arrows as long as the step"
        axis.set_title(f"{name}\n", fontsize=10)
        beside: Any = {"xycoords": "axes fraction", "textcoords": "offset points", "fontsize": 8.5}
        axis.annotate(f"{label}; {times}" if label else times, (0, 1.0), (0, 4), **beside)
    row[1].set_ylabel("")
    # A guide may name places outside of the map.
    low, high = np.quantile(np.concatenate(clouds), (0.002, 0.998), axis=0)
    (left, right), (bottom, top) = row[0].get_xlim(), row[0].get_ylim()
    margin = 0.04 * (right - left)
    row[0].set_xlim(min(left, low[0] - margin), max(right, high[0] + margin))
    row[0].set_ylim(min(bottom, low[1] - margin), max(top, high[1] + margin))


def _spread(world: World, at: Values) -> tuple[NDArray[np.int64], float]:
    """One state near the middle of each square of a coarse grid, and the squares' side."""
    left, right, bottom, _ = world.bounds
    # A maze's cells in two, so that arrows stand clear of its walls.
    side = 0.5 if world.kind == "maze" else (right - left) / ACROSS
    square = np.floor((at - (left, bottom)) / side)
    off = np.linalg.norm(at - ((square + 0.5) * side + (left, bottom)), axis=1)
    order = np.argsort(off, kind="stable")
    first = np.unique(square[order], axis=0, return_index=True)[1]
    return order[first], side


def _components(row: Any, found: Sample, norm: Normalize) -> None:
    """Both clouds on the principal components of s'."""
    scale = found.next_obs.std(0)
    scale[scale == 0] = 1.0
    mean = found.next_obs.mean(0)
    centred = (found.next_obs - mean) / scale
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    share = singular**2 / max(float((singular**2).sum()), 1e-300)
    two = np.zeros((2, centred.shape[1]))
    two[: len(directions[:2])] = directions[:2]
    clouds = [centred @ two.T, (found.guide - mean) / scale @ two.T]
    names = ("s': the states that followed in the data", "g(s): the states that the guide names")
    for i, (axis, name, v) in enumerate(zip(row, names, (found.v_next, found.v_guide), strict=True)):
        axis.scatter(*clouds[1 - i].T, color=GRID, s=9, linewidths=0, zorder=1)
        axis.scatter(*clouds[i].T, c=v, cmap=CMAP, norm=norm, s=9, linewidths=0, zorder=2)
        axis.set_title(name)
        axis.set_xlabel(f"component 1 ({share[0]:.0%} of the variance of s')")
    row[0].set_ylabel(f"component 2 ({share[1] if len(share) > 1 else 0:.0%})")


def _distributions(axis: Axes, found: Sample) -> None:
    """How V is distributed over both."""
    both = np.concatenate((found.v_next, found.v_guide))
    low, high = np.quantile(both, (0.001, 0.999))
    bins = np.linspace(low, high if high > low else low + 1e-9, 41).tolist()
    top = 0.0
    for values, colour, name in ((found.v_next, NEXT, "V(s')"), (found.v_guide, GUIDE, "V(g(s))")):
        weights = np.full(len(values), 1 / len(values))
        heights, *_ = axis.hist(
            values.clip(low, high), bins=bins, weights=weights, histtype="stepfilled", color=colour, alpha=0.28
        )
        axis.hist(
            values.clip(low, high), bins=bins, weights=weights, histtype="step", color=colour, linewidth=1.4, label=name
        )
        axis.axvline(float(values.mean()), ymax=1 / 1.4, color=colour, linewidth=1.6, linestyle=(0, (3, 1.5)))
        top = max(top, float(np.max(heights)))
    handles = [
        mpl.lines.Line2D([], [], color=colour, linewidth=4, alpha=0.7, label=f"{name}, mean {_short(values.mean())}")
        for values, colour, name in ((found.v_next, NEXT, "V(s')"), (found.v_guide, GUIDE, "V(g(s))"))
    ]
    axis.legend(handles=handles, loc="upper left", title="dashed: the mean", title_fontsize=8.5, alignment="left")
    axis.set_ylim(0, 1.4 * top)
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    axis.set_title("How high V is")
    axis.set_xlabel("V")
    axis.set_ylabel("share of states")


def _gain(axis: Axes, found: Sample) -> None:
    """V(g(s)) - V(s') over the distance, with means of equally many states."""
    floor = max(float(found.distance[found.distance > 0].min(initial=np.inf)), 1e-6)
    distance = found.distance.clip(floor if np.isfinite(floor) else 1e-6)
    axis.scatter(distance, found.gain, color=GUIDE, s=5, alpha=0.3, linewidths=0)
    order = np.argsort(distance, kind="stable")
    parts = [part for part in np.array_split(order, BINS) if len(part)]
    middles = [float(np.exp(np.log(distance[part]).mean())) for part in parts]
    means = [float(found.gain[part].mean()) for part in parts]
    halves = [_half(found.gain[part], found.episode[part]) or 0.0 for part in parts]
    axis.errorbar(
        middles,
        means,
        halves,
        color=INK,
        marker="o",
        markersize=4,
        linewidth=1.4,
        label="mean of a tenth of the states",
    )
    axis.axhline(0, color=FAINT, linewidth=0.8)
    low, high = np.quantile(found.gain, (0.005, 0.995))
    margin = 0.12 * (high - low) or 1e-9
    axis.set_ylim(min(low - margin, -margin), max(high, 0.0) + 2.5 * margin)  # with 0 in sight
    axis.set_xscale("log")
    limit = float(np.quantile(found.usual, LEVEL))
    if limit > 0:
        left, right = axis.get_xlim()
        right = max(right, 1.6 * limit)
        axis.set_xlim(left, right)
        axis.axvspan(max(limit, left), right, color=GRID, zorder=0, linewidth=0)
        early = limit < np.sqrt(left * right)
        axis.annotate(
            "grey: farther than 95% of\nthe s' from other s'",
            (max(limit, left) if early else right, 0),
            (4 if early else -4, 4),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="left" if early else "right",
            fontsize=8,
        )
    left, right = axis.get_xlim()
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0,) if right > 300 * left else (1.0, 2.0, 5.0)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.legend(loc="upper left")
    axis.set_title("Is V higher where the guide leaves the data?")
    axis.set_xlabel("distance of g(s) to the nearest s' of the data [standard deviations]")
    axis.set_ylabel("V(g(s)) − V(s')")


# -- the command -----------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws a run's guide, or records the numbers of several; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guide", description="Draw where POR's guide leads.")
    parser.add_argument("runs", type=Path, nargs="+", metavar="run", help="a run's folder, runs/<name>-<hash>/<seed>")
    parser.add_argument("--out", type=Path, help="FILE.png; by default guide.png in the run's folder")
    parser.add_argument("--record", action="store_true", help=f"keep the numbers as {RESULTS.name}; draws nothing")
    parser.add_argument("--beside", type=Path, help="where components named module:Class lie")
    options = parser.parse_args(arguments)
    settle()
    try:
        if options.out is not None and (options.record or len(options.runs) > 1):
            raise ConfigError("--out is for the picture of one run; leave it out")
        if options.record:
            kept = []
            for path in options.runs:
                kept.append(record(read(path, options.beside)))
                say(f"{path}: {summary(kept[-1])}")
            write_json(RESULTS, {"runs": kept, "environment": environment()})
            say(f"{RESULTS}: {len(kept)} runs")
            return 0
        for path in options.runs:
            out = options.out or path / "guide.png"
            run = read(path, options.beside)
            export.check_path(out, True, (".png",))
            figure, notes = drawn(sample(run))
            export.write_bytes(out, to_png(figure))
            for text in (f"{out}: {run.title}", *notes):
                say(text)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
