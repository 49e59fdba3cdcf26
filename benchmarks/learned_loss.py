"""Draws what GILD's learned loss says of actions: `python -m benchmarks.learned_loss RUN [--out FILE.png]`.

For a few demonstrated states (s_d, a_d), a column each, over the action a:

    G_w(a, s_d, a_d)        the learned loss
    -Q(s_d, a)              what the RL loss says
    mean (a - a_d)^2        what cloning would say

with the demonstrated action, the policy's (its mode), and where each loss would push that: its negative gradient.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from benchmarks.colours import INK, PALETTE
from benchmarks.drawing import STYLE, plain, to_png
from metarl import data, nn
from metarl.data.transitions import Transitions
from metarl.envs.navigation import EDGE, Navigation, picture
from metarl.errors import CheckpointError, ConfigError, UserError
from metarl.process import settle
from metarl.training import checkpoints, export
from metarl.training.evaluation import Policy
from metarl.training.folder import RunFolder
from metarl.training.offline import load_policy
from metarl.training.setup import saved_spec
from metarl.training.streams import generator
from objectives.gild import GILD

GRID = 81  # points along an action
MOST = 6  # states, beside which a picture is no longer read
JUDGED = 1000  # demonstrated states of the summary, at most
FLAT = 1e-3  # of its own size: what a loss varies by where it says nothing of actions
CMAP = "viridis"
_DEMONSTRATED: Any = {"color": PALETTE[2], "markeredgecolor": "white", "markersize": 13, "markeredgewidth": 0.9}
_POLICY: Any = {"color": "white", "markeredgecolor": INK, "markersize": 7.5, "markeredgewidth": 1.3}
_ARROW: Any = {
    "arrowstyle": "-|>",
    "color": INK,
    "linewidth": 1.5,
    "shrinkA": 0,
    "shrinkB": 0,
    "mutation_scale": 11,
    "path_effects": [patheffects.withStroke(linewidth=3.5, foreground="white")],
}
_NAVIGATION = f"{Navigation.__module__}:{Navigation.__qualname__}"

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # action, observation as the learner sees it, demonstrated action


@dataclass(frozen=True)
class Found:
    """What is drawn of a run.

    Attributes:
        title: which run, and when.
        notes: what a reader must know.
        losses: by name; each to be seen beside the others.
        policy: of the newest checkpoint, in double precision.
        high: bound of each action.
        demo: the demonstrations, as they are.
        navigation: whether states are places among the walls of `metarl.envs.navigation`.
    """

    title: str
    notes: tuple[str, ...]
    losses: dict[str, Loss]
    policy: Policy
    high: tuple[float, ...]
    demo: Transitions
    navigation: bool


def find(run: Path, beside: Path | None = None) -> Found:
    """Reads a run back.

    Args:
        run: its folder.
        beside: where components named `module:Class` lie.

    Raises:
        ConfigError: there is no run, or none with GILD.
        CheckpointError: it has no checkpoint.
        DataError: its demonstrations are not there.
    """
    folder = RunFolder(run)
    experiment = folder.experiment(beside)
    gild = next((objective for objective in experiment.objectives if isinstance(objective, GILD)), None)
    if gild is None:
        names = ", ".join(type(objective).__name__ for objective in experiment.objectives) or "none"
        raise ConfigError(f"{run} has learned no loss from demonstrations (objectives: {names}); choose a run of gild")
    policy, env, step = load_policy(run, lambda text: print(text, file=sys.stderr), beside)
    saved = checkpoints.load_newest(folder.checkpoints, lambda text: None)
    if saved is None:
        raise CheckpointError(f"{run} has no checkpoint any more")
    tree = {group: {name: value.double() for name, value in params.items()} for group, params in policy.tree.items()}
    policy = replace(policy, tree=tree)
    learner = policy.learner
    terms, net = learner.hooks("gild"), learner.modules["loss_network"]

    def learned(action: Tensor, obs: Tensor, demonstrated: Tensor) -> Tensor:
        value: Tensor = nn.call(net, tree["loss_network"], torch.cat((action, obs, demonstrated), dim=-1))
        return gild.weight * value.squeeze(-1)

    def rl(action: Tensor, obs: Tensor, demonstrated: Tensor) -> Tensor:
        return -terms.q(tree, obs, action)

    def cloning(action: Tensor, obs: Tensor, demonstrated: Tensor) -> Tensor:
        return gild.il_weight * (action - demonstrated).square().mean(-1)

    stop, notes = learner.updates["loss_network"].stop, []
    if stop is not None and experiment.gradient_steps_at(step) >= stop:
        notes.append(
            f"The warm start ended after gradient step {plain(stop)}: G is as it was then, and the policy no longer "
            "follows it."
        )
    whole = run.resolve()
    return Found(
        f"{whole.parent.name}, seed {folder.seed}, step {plain(step)}",
        tuple(notes),
        {
            f"{_factor(gild.weight)}G(a, s, a_d): learned": learned,
            "−Q(s, a): reinforcement": rl,
            f"{_factor(gild.il_weight)}mean (a − a_d)²: cloning": cloning,
        },
        policy,
        saved_spec(saved.record["spec"]).max_action,
        data.load(experiment.data["demo"], generator(folder.seed, "data", "demo"), "demo", folder=beside),
        EnvSpec.from_json(env).entry_point == _NAVIGATION,
    )


def _factor(weight: float) -> str:
    return "" if weight == 1 else f"{weight:g} "


@dataclass(frozen=True)
class State:
    """A demonstrated state, as it is drawn.

    Attributes:
        title: where it stands in the demonstrations.
        path: observations [t, O] of its episode up to it.
        obs: [O], as the learner sees it.
        demonstrated, policy: actions [A].
    """

    title: str
    path: NDArray[Any]
    obs: Tensor
    demonstrated: Tensor
    policy: Tensor


def states(found: Found, n: int) -> list[State]:
    """`n` states evenly apart on the longest demonstrated episode; where that is too short, among all rows (all of
    them, where they are fewer)."""
    demo = found.demo
    lengths = demo.episode_lengths()
    episode = int(lengths.argmax())
    first, length = int(demo.episode_starts[episode]), int(lengths[episode])
    single = length < n
    if single:
        first, length, n = 0, len(demo), min(n, len(demo))
    rows = [first + int((i + 0.5) * length / n) for i in range(n)]
    obs = demo.obs[rows].numpy()
    seen, (policy, _) = found.policy.read(obs), found.policy(obs)
    return [
        State(
            f"demonstration, row {plain(row)}" if single else f"demonstration, step {row - first}",
            demo.obs[row if single else first : row + 1].numpy(),
            seen[i],
            demo.action[row].double(),
            torch.from_numpy(policy[i]).double(),
        )
        for i, row in enumerate(rows)
    ]


def slopes(loss: Loss, action: Tensor, obs: Tensor, demonstrated: Tensor) -> Tensor:
    """The gradient by the action, [N, A]."""
    action = action.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(action, obs, demonstrated).sum(), action)
    return gradient


def axes_of(demo: Transitions) -> tuple[int, ...]:
    """The action, or the two of its numbers that vary most among the demonstrations."""
    spread = demo.action.double().std(0, correction=0)
    return tuple(sorted(spread.argsort(descending=True, stable=True)[:2].tolist()))


@torch.no_grad()
def surface(loss: Loss, state: State, along: tuple[int, ...], high: Sequence[float]) -> NDArray[Any]:
    """The loss over a grid of actions, [GRID] or [GRID, GRID] (the second action upwards); others as demonstrated."""
    lines = [torch.linspace(-high[i], high[i], GRID, dtype=torch.float64) for i in along]
    mesh = torch.meshgrid(*lines, indexing="xy")
    actions = state.demonstrated.expand(mesh[0].numel(), -1).clone()
    for i, values in zip(along, mesh, strict=True):
        actions[:, i] = values.flatten()
    obs, demonstrated = (x.expand(len(actions), -1) for x in (state.obs, state.demonstrated))
    values = loss(actions, obs, demonstrated)
    return values.reshape(mesh[0].shape).numpy()


def summary(found: Found) -> str:
    """How strongly each loss pushes the policy's action at demonstrated states, and whether they agree."""
    rows = torch.linspace(0, len(found.demo) - 1, min(JUDGED, len(found.demo))).round().long()
    raw, demonstrated = found.demo.obs[rows].numpy(), found.demo.action[rows].double()
    action, obs = torch.from_numpy(found.policy(raw)[0]).double(), found.policy.read(raw)
    learned, rl, cloning = (slopes(loss, action, obs, demonstrated) for loss in found.losses.values())
    size = [float(g.norm(dim=-1).mean()) for g in (learned, rl, cloning)]
    like = [round(float(torch.cosine_similarity(learned, g, dim=-1).mean()), 2) for g in (cloning, rl)]
    return (
        f"Mean slopes at the policy's action in {plain(len(rows))} demonstrated states: G {_short(size[0])}, −Q "
        f"{_short(size[1])}, cloning {_short(size[2])}. Mean cosine between where G pushes and where cloning does: "
        f"{plain(like[0])}; where −Q does: {plain(like[1])}."
    )


def drawn(found: Found, n: int) -> tuple[Figure, list[str]]:
    """The picture, and what is written below it."""
    chosen, along = states(found, n), axes_of(found.demo)
    n = len(chosen)
    values = [[surface(loss, state, along, found.high) for state in chosen] for loss in found.losses.values()]
    notes = [*found.notes, summary(found)]
    if _flat(values[0]):
        notes.append(f"G varies by less than {FLAT:.1%} over the actions drawn: it says nothing of them.")
    if len(found.high) > 2:
        notes.append(
            f"Of {len(found.high)} actions, {along[0] + 1} and {along[1] + 1} vary most among the demonstrations and "
            "are drawn; the others are held as demonstrated. Circles and arrows: the policy's own action, seen along "
            "these two."
        )
    heights = [0.85] * found.navigation + [1.0] * len(found.losses)
    width = max(2.35 * n + 1.6, 6.3)
    lines = [line for note in notes for line in textwrap.wrap(note, int(width * 15))]
    tall, low = 2.3 * sum(heights) + 0.5, 0.4 + 0.17 * len(lines)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, tall + low), layout="constrained")
        parts: Any = figure.subfigures(2, 1, height_ratios=(tall, low))
        above, below = parts
        grid = above.subplots(
            len(heights), n + 1, squeeze=False, height_ratios=heights, width_ratios=[1.0] * n + [0.05]
        )
        above.suptitle(found.title, fontweight="bold", fontsize=10.5)
        if found.navigation:
            grid[0, n].set_axis_off()
            for axis, state in zip(grid[0], chosen, strict=False):
                _place(axis, state.path)
        for axis, state in zip(grid[0], chosen, strict=False):
            at: Any = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": "center"}
            axis.annotate(state.title, (0.5, 1.0), (0, 5 if found.navigation else 18), fontweight="bold", **at)
        for panels, of_loss, (name, loss) in zip(
            grid[int(found.navigation) :], values, found.losses.items(), strict=True
        ):
            _row(panels, name, loss, of_loss, chosen, along, found.high)
        for axis in grid[-1, :n]:
            axis.set_xlabel(_unit(along[0], found.high))
        below.legend(handles=_handles(), loc="upper center", ncols=3)
        below.text(0.5, 0.04, "\n".join(lines), ha="center", va="bottom", fontsize=8.5)
    return figure, notes


# -- panels ----------------------------------------------------------------------------------------------------


def _row(
    panels: Sequence[Axes],
    name: str,
    loss: Loss,
    values: Sequence[NDArray[Any]],
    chosen: Sequence[State],
    along: tuple[int, ...],
    high: Sequence[float],
) -> None:
    """One loss over the action at every state, on one scale: by how much it lies above its least value there."""
    flat = _flat(values)
    top = max(max(float(v.max() - v.min()) for v in values), FLAT * max(float(abs(v).max()) for v in values), 1e-12)
    *axes, beside = panels
    for i, (axis, state, value) in enumerate(zip(axes, chosen, values, strict=True)):
        slope = slopes(loss, state.policy[None], state.obs[None], state.demonstrated[None])[0]
        rise = value - value.min()
        draw = _curve if len(along) == 1 else _heat
        draw(axis, rise, top, state, -slope, along, high, flat)
        axis.set_title(
            f"least {_short(float(value.min()), top)}, slope {_short(float(slope.norm()))}",
            fontsize=8,
            fontweight="normal",
            loc="center",
        )
        if i == 0:
            axis.annotate(
                name,
                (0, 0.5),
                (-52, 0),
                xycoords="axes fraction",
                textcoords="offset points",
                rotation=90,
                ha="center",
                va="center",
                fontweight="bold",
            )
    if len(along) == 1:
        beside.set_axis_off()
        axes[0].set_ylabel("above its least")
        for axis in axes[1:]:
            axis.tick_params(labelleft=False)
        return
    axes[0].set_ylabel(_unit(along[1], high))
    bar = mpl.colorbar.Colorbar(beside, mpl.cm.ScalarMappable(mpl.colors.Normalize(0, top), CMAP))
    bar.set_label("above its least in that square")


def _heat(
    axis: Axes,
    rise: NDArray[Any],
    top: float,
    state: State,
    push: Tensor,
    along: tuple[int, ...],
    high: Sequence[float],
    flat: bool,
) -> None:
    i, j = along
    x, y = high[i], high[j]
    axis.imshow(rise, extent=(-x, x, -y, y), origin="lower", cmap=CMAP, vmin=0, vmax=top, aspect="auto")
    if not flat:
        line = np.linspace(-1, 1, GRID)
        axis.contour(line * x, line * y, rise, levels=8, colors="white", linewidths=0.5, alpha=0.6)
    at = float(state.policy[i]), float(state.policy[j])
    scaled = np.array((float(push[i]) * x, float(push[j]) * y))  # steepest in units of the bounds, as it is seen
    if not flat and np.linalg.norm(scaled):
        scaled *= 0.4 / np.linalg.norm(scaled)
        end = at[0] + scaled[0] * x, at[1] + scaled[1] * y
        axis.annotate("", end, at, arrowprops=_ARROW, annotation_clip=False, zorder=4)
    if flat:
        axis.text(0, 0.35 * y, "constant", color="white", ha="center", va="center")
    axis.plot(*at, "o", **_POLICY)
    axis.plot(float(state.demonstrated[i]), float(state.demonstrated[j]), "*", **_DEMONSTRATED)
    axis.set_xlim(-1.35 * x, 1.35 * x)
    axis.set_ylim(-1.35 * y, 1.35 * y)
    axis.set_xticks((-x, 0, x))
    axis.set_yticks((-y, 0, y))
    axis.spines[:].set_visible(False)
    axis.set_box_aspect(1)


def _curve(
    axis: Axes,
    rise: NDArray[Any],
    top: float,
    state: State,
    push: Tensor,
    along: tuple[int, ...],
    high: Sequence[float],
    flat: bool,
) -> None:
    (i,) = along
    line = np.linspace(-high[i], high[i], GRID)
    axis.plot(line, rise, color=PALETTE[1], linewidth=1.6)
    at = float(state.policy[i])
    height = float(np.interp(at, line, rise))
    if not flat and push[i]:
        end = at + 0.35 * high[i] * float(push[i].sign())
        axis.annotate("", (end, height), (at, height), arrowprops=_ARROW, annotation_clip=False, zorder=4)
    axis.plot(at, height, "o", **_POLICY)
    demonstrated = float(state.demonstrated[i])
    axis.plot(demonstrated, float(np.interp(demonstrated, line, rise)), "*", **_DEMONSTRATED)
    axis.set_xlim(-1.3 * high[i], 1.3 * high[i])
    axis.set_ylim(-0.08 * top, 1.08 * top)


def _place(axis: Axes, path: NDArray[Any]) -> None:
    """Where a state of navigation is, and how the demonstrator came there."""
    x, y, dx, dy = (float(value) for value in path[-1, :4])
    points = [(float(a), float(b)) for a, b in path[:, :2]]
    axis.imshow(picture(points, (x + dx, y + dy)), extent=(-EDGE, EDGE, -EDGE, EDGE))
    axis.set_axis_off()


def _flat(values: Sequence[NDArray[Any]]) -> bool:
    size = max(float(abs(v).max()) for v in values)
    return max(float(v.max() - v.min()) for v in values) < FLAT * size


def _unit(i: int, high: Sequence[float]) -> str:
    return f"action {i + 1}, bound ±{high[i]:g}" if len(high) > 1 else f"action, bound ±{high[i]:g}"


def _handles() -> list[Line2D]:
    return [
        Line2D([], [], linestyle="none", marker="*", label="demonstrated action", **_DEMONSTRATED),
        Line2D([], [], linestyle="none", marker="o", label="the policy's action", **_POLICY),
        Line2D([], [], color=INK, marker=">", markersize=6, linewidth=1.4, label="where the loss pushes it"),
    ]


def _short(value: float, beside: float = 0.0) -> str:
    """Two digits; 0 where it is nothing beside another number."""
    return plain(float(f"{value:.2g}")) if abs(value) >= FLAT * beside else "0"


# -- the command -----------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws a run's learned loss; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learned_loss", description="Draw a GILD run's loss.")
    parser.add_argument("run", type=Path, help="a run's folder, runs/<name>-<hash>/<seed>")
    parser.add_argument("--out", type=Path, help="FILE.png; by default learned_loss.png in the run's folder")
    parser.add_argument("--states", type=int, default=4, help=f"demonstrated states to draw, 1 to {MOST}")
    parser.add_argument("--beside", type=Path, help="where components named module:Class lie")
    options = parser.parse_args(arguments)
    out = options.out or options.run / "learned_loss.png"
    settle()
    try:
        if not 1 <= options.states <= MOST:
            raise ConfigError(f"--states must be 1 to {MOST}, not {options.states}")
        found = find(options.run, options.beside)
        export.check_path(out, True, (".png",))
        figure, notes = drawn(found, options.states)
        export.write_bytes(out, to_png(figure))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for text in (f"{out}: {found.title}", *notes):
        Console().print(text, highlight=False, markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
