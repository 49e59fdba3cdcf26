"""The authors' POR beside ours: `python -m benchmarks.official_por --por CHECKOUT`.

Their classes from a checkout of github.com/ryanxhr/POR, in the loop of their main_por.py, and metarl's `train`, on the
same rows with the same rewards, for as many updates, evaluated in the same way. A finished run is kept in `--out` and
not run again. Writes benchmarks/results/official_por.json, and docs/official.md from it; `--write-only` writes the page
alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from algorithms.none import Nothing
from benchmarks.official import page
from benchmarks.official.command import SAME, Command, apart, asked, by_our_names, copy, record, sizes
from benchmarks.official.comparison import OFFICIAL, OURS, Job, run
from benchmarks.official.published import Published
from metarl import Spec, adam, config
from metarl.data.transitions import Transitions
from metarl.envs import make_env, registered
from metarl.process import settle
from metarl.training.evaluation import EpisodeReturns, Evaluator
from metarl.training.folder import RunFolder
from metarl.training.offline import train
from metarl.training.progress import Reporter, Style, reporter
from metarl.training.setup import Setup, prepare
from objectives.por import POR

PUBLISHED = Published(
    "--por",
    "ryanxhr/POR",
    "e692bb3",
    tuple(map(Path, ("por.py", "value_functions.py", "policy.py", "util.py"))),
    "4cb49a61ccfeac6c5e6ba277a72b10e190cd1d9f7788b513da103e24b89f6a39",
)
STAND_INS = {
    "wandb": "its log is told of losses, and keeps nothing",
    "IPython": "imported for a debugger that is never called",
    "sklearn": "imported for datasets that are never read",
}
NOTES = """Smaller and shorter than the authors' runs, on either side: theirs are of a million updates, and a million of
    the behaviour guide, with 256 units in every hidden layer but the execute policy's, which have 1,024. Other settings
    are those of their run_antmaze_por.sh (umaze) and run_mujoco_por.sh (hopper-medium). On por_q the behaviour guide is
    trained in the same run, by their `pretrain`; they would load one. Actions are cut at their bounds by the evaluator,
    and start states are the same on both sides."""
LAYERS = 2
Form = Literal["por_r", "por_q"]
FORMS: Mapping[Form, str] = {"por_r": "residual", "por_q": "v_guided"}


@dataclass(frozen=True)
class Cell:
    """One comparison, in the words of main_por.py.

    Attributes:
        type: `por_r`, or `por_q`, which trains a behaviour guide first.
        recipe, size: of the data.
        pretrain_steps, train_steps: updates of the behaviour guide, and of all else.
        tau: the expectile.
        rewards: what is made of the data's.
        figure: that is compared, of the evaluation.
    """

    type: Form
    recipe: str
    size: int
    pretrain_steps: int
    train_steps: int
    tau: float
    alpha: float
    policy_lr: float
    rewards: Mapping[str, Any]
    figure: Literal["success", "return"]
    value_lr: float = 1e-4
    discount: float = 0.99
    layer_norm: bool = False
    batch_size: int = 256
    hidden_dim: int = 128
    execute_dim: int = 128
    episodes: int = 50

    @property
    def steps(self) -> int:
        return self.pretrain_steps + self.train_steps

    def experiment(self) -> dict[str, Any]:
        """The same as an experiment of metarl."""
        policy = {"name": "adam", "lr": self.policy_lr}
        guide = {"behaviour_steps": self.pretrain_steps} if self.type == "por_q" else {}
        return {
            "name": f"official-{self.type}",
            "algorithm": "none",
            "objective": {
                "name": "por",
                "form": FORMS[self.type],
                "expectile": self.tau,
                "alpha": self.alpha,
                "discount": self.discount,
                "layer_norm": self.layer_norm,
                "hidden": [self.hidden_dim] * LAYERS,
                "execute_hidden": [self.execute_dim] * LAYERS,
                "batch_size": self.batch_size,
                "value_optimizer": {"name": "adam", "lr": self.value_lr},
                "guide_optimizer": policy,
                "execute_optimizer": policy,
                "rewards": dict(self.rewards),
                **guide,
            },
            "data": {"train": {"recipe": self.recipe, "size": self.size}},
            "steps": self.steps,
            "evaluation": {"every": self.steps, "episodes": self.episodes},
            "device": "cpu",
        }


CELLS = (
    # run_antmaze_por.sh (umaze) and run_mujoco_por.sh (hopper-medium), but for sizes and steps.
    Cell("por_r", "pointmaze_medium/medium", 100_000, 0, 10_000, 0.9, 10.0, 1e-3, {"shift": -1.0}, "success"),
    Cell("por_q", "hopper/medium", 100_000, 3_000, 3_000, 0.7, 50.0, 1e-3, {"return_range": True}, "return"),
)


# -- both sides ------------------------------------------------------------------------------------------------


def ours(cell: Cell, seed: int, root: Path, told: Reporter) -> EpisodeReturns:
    """metarl's POR, trained as any experiment is."""
    folder = train(config.build(cell.experiment(), "benchmarks.official_por"), seed, root, told)
    last = json.loads(RunFolder(folder).result.read_text())["evaluations"][-1]
    assert last["step"] == cell.steps
    return EpisodeReturns.from_dict(last)


def official(code: Mapping[str, Any], cell: Cell, seed: int, told: Reporter) -> EpisodeReturns:
    """The authors' POR in the order of their main_por.py, on the rows and in the environments of ours."""
    settle()
    setup = prepare(config.build(cell.experiment(), "benchmarks.official_por"), seed)
    dataset = their_rows(code, cell, setup.data["train"])
    util = code["util"]
    util.set_seed(seed)
    por = their_por(code, cell, setup.spec.obs_dim, setup.spec.action_dim)
    step, done = {"por_r": por.por_residual_update, "por_q": por.por_qlearning_update}[cell.type], 0
    told.start(f"{cell.type} of the authors, seed {seed}", 0, cell.steps)
    try:
        for update, times in ((por.pretrain, cell.pretrain_steps), (step, cell.train_steps)):
            for _ in range(times):
                update(**util.sample_batch(dataset, cell.batch_size))
                done += 1
                told.update(done)
    finally:
        told.stop()
    return _evaluated(util, por, cell, setup, seed)


def their_por(code: Mapping[str, Any], cell: Cell, obs_dim: int, action_dim: int) -> Any:
    """Their networks and trainer, made in the order of main_por.py."""
    gaussian = partial(code["policy"].GaussianPolicy, n_hidden=LAYERS)
    policy = gaussian(2 * obs_dim, action_dim, hidden_dim=cell.execute_dim)
    goal_policy = gaussian(obs_dim, obs_dim, hidden_dim=cell.hidden_dim)
    por = code["por"].POR(
        vf=code["value_functions"].TwinV(
            obs_dim, layer_norm=cell.layer_norm, hidden_dim=cell.hidden_dim, n_hidden=LAYERS
        ),
        policy=policy,
        goal_policy=goal_policy,
        max_steps=cell.train_steps,
        tau=cell.tau,
        alpha=cell.alpha,
        discount=cell.discount,
        value_lr=cell.value_lr,
        policy_lr=cell.policy_lr,
    )
    if cell.type == "por_q":
        por.pretrain_init(gaussian(obs_dim, obs_dim, hidden_dim=cell.hidden_dim))
    return por


def their_rows(code: Mapping[str, Any], cell: Cell, data: Transitions) -> dict[str, torch.Tensor]:
    """The data in the form of d4rl.qlearning_dataset, with what get_env_and_dataset makes of the rewards."""
    columns = data.layout.split(data.rows)
    names = {"observations": "obs", "actions": "action", "next_observations": "next_obs"}
    names |= {"rewards": "reward", "terminals": "terminated"}
    found = {theirs: columns[name].numpy().copy() for theirs, name in names.items()}
    if cell.rewards.get("return_range"):
        low, high = code["util"].return_range(found, 1000)
        found["rewards"] /= high - low
        found["rewards"] *= 1000
    found["rewards"] += cell.rewards.get("shift", 0.0)
    return {name: code["util"].torchify(column) for name, column in found.items()}


def _evaluated(util: Any, por: Any, cell: Cell, setup: Setup, seed: int) -> EpisodeReturns:
    """As metarl's runs are, by the acting of their evaluate_por."""

    def act(obs: NDArray[Any], carry: Any = None) -> tuple[NDArray[np.float32], Any]:
        state = util.torchify(obs)
        goal = por.goal_policy.act(state, deterministic=True)
        return por.policy.act(torch.cat((state, goal), dim=1), deterministic=True).numpy(), carry

    evaluator = Evaluator(lambda: make_env(setup.env), cell.episodes, seed)
    try:
        return evaluator(act, cell.steps)  # type: ignore[arg-type]  # which only calls it
    finally:
        evaluator.close()


# -- number by number ------------------------------------------------------------------------------------------


def first_updates(code: Mapping[str, Any], form: Form, updates: int = 5) -> float:
    """The largest relative difference of any parameter in the first updates, from equal ones and on equal batches.

    In float64, small networks with layer norms. For por_q as many updates of the behaviour guide come first. The
    expectile and the discount are numbers that float32 holds, since their masks are float32.
    """
    first = updates if form == "por_q" else 0
    cell = Cell(form, "", 0, first, updates, 0.75, 3.0, 1e-3, {}, "return", 1e-2, 63 / 64, True, 32, 16, 24)
    spec = Spec(5, 2, (1.0, 1.0), steps=cell.steps)
    draw = torch.Generator().manual_seed(0)
    objective = POR(
        form=FORMS[form],  # type: ignore[arg-type]
        expectile=cell.tau,
        alpha=cell.alpha,
        layer_norm=True,
        hidden=(cell.hidden_dim,) * LAYERS,
        execute_hidden=(cell.execute_dim,) * LAYERS,
        discount=cell.discount,
        behaviour_steps=first or 0.5,
        value_optimizer=adam(lr=cell.value_lr),
        guide_optimizer=adam(lr=cell.policy_lr),
        execute_optimizer=adam(lr=cell.policy_lr),
    )
    learner = objective.attach(Nothing().build(spec, draw), spec, draw).ready()
    state = learner.init(torch.float64)
    por = their_por(code, cell, spec.obs_dim, spec.action_dim).double()
    theirs = {
        "value": por.vf,
        "value_target": por.v_target,
        "guide_policy": por.goal_policy,
        "execute_policy": por.policy,
        **({"behaviour_guide": por.b_goal_policy} if first else {}),
    }
    assert set(theirs) == set(state.tree)
    for group, module in theirs.items():
        copy(state.tree[group], by_our_names(module))
    step = por.por_residual_update if form == "por_r" else por.por_qlearning_update
    worst = 0.0
    for i in range(1, cell.steps + 1):
        shapes = {"obs": (32, 5), "next_obs": (32, 5), "action": (32, 2), "reward": (32,)}
        batch = {name: torch.randn(shape, generator=draw, dtype=torch.float64) for name, shape in shapes.items()}
        batch["terminated"] = (torch.rand(32, generator=draw, dtype=torch.float64) < 0.3).double()
        torch.manual_seed(i)
        noise = {"guide": torch.normal(torch.zeros(32, 5, dtype=torch.float64), 1.0)}
        state, _ = learner.step(state, {"train": batch, "noise": noise}, learner.due(i))
        torch.manual_seed(i)  # by which their rsample draws the same noise
        (por.pretrain if i <= first else step)(
            observations=batch["obs"],
            actions=batch["action"],
            next_observations=batch["next_obs"],
            rewards=batch["reward"],
            terminals=batch["terminated"],
        )
        worst = max(worst, *(apart(state.tree[group], by_our_names(module)) for group, module in theirs.items()))
    return worst


# -- the command -----------------------------------------------------------------------------------------------


def loaded(checkout: Path) -> dict[str, Any]:
    """Their modules; raises UserError where a file is missing or not as published."""
    stand_ins = {name: ModuleType(name) for name in STAND_INS}
    wandb, ipython, sklearn = stand_ins.values()
    wandb.log = lambda *_, **__: None  # type: ignore[attr-defined]
    ipython.embed = sklearn.datasets = None  # type: ignore[attr-defined]
    with PUBLISHED.loaded(checkout, stand_ins) as found:
        return dict(found)


def jobs(cells: Sequence[Cell], seeds: int, code: Mapping[str, Any], out: Path, style: Style) -> list[Job]:
    """Seed by seed, both sides of every cell."""
    found = []
    for seed in range(seeds):
        for cell in cells:
            sides: dict[str, Callable[[], EpisodeReturns]] = {
                OFFICIAL: partial(official, code, cell, seed, reporter(style)),
                OURS: partial(ours, cell, seed, out / "runs", reporter(style)),
            }
            for side, go in sides.items():
                plan = {"cell": asdict(cell), "side": side, "seed": seed}
                plan |= {"sha256": PUBLISHED.sha256} if side == OFFICIAL else {}
                found.append(Job(side, cell.type, seed, cell.steps, plan, go))
    return found


def measured(checkout: Path, cells: Sequence[Cell], seeds: int, out: Path, style: Style) -> dict[str, Any]:
    """What is recorded.

    Raises:
        UserError: the checkout is not as published, or `out` holds other runs.
    """
    code = loaded(checkout)
    same = {form: first_updates(code, form) for form in FORMS}
    registered()
    records = run(jobs(cells, seeds, code, out, style), out, lambda text: print(text, file=sys.stderr, flush=True))

    def of(cell: Cell, side: str) -> dict[str, Any]:
        mine = [r for r in records if (r["plan"]["cell"]["type"], r["plan"]["side"]) == (cell.type, side)]
        found = {str(r["plan"]["seed"]): EpisodeReturns.from_dict(r["evaluation"]).figures()[cell.figure] for r in mine}
        return {"scores": found, "seconds": [r["seconds"] for r in mine]}

    return record(
        "por",
        PUBLISHED,
        stand_ins=STAND_INS,
        first_updates={"updates": 5, "bound": SAME, "largest": same},
        cells=[{**asdict(c), "sides": {side: of(c, side) for side in (OFFICIAL, OURS)}} for c in cells],
        notes=" ".join(NOTES.split()),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 2 for a mistake of the user's."""
    return COMMAND.main(arguments)


def _measured(options: argparse.Namespace) -> dict[str, Any]:
    cells = [_sized(cell, asked(COMMAND.sizes, options)) for cell in CELLS]
    return measured(options.checkout, cells, options.seeds, options.out, options.progress)


def _sized(cell: Cell, sizes: Mapping[str, Any]) -> Cell:
    """The cell with the sizes that were asked for."""
    return replace(cell, **{**sizes, "pretrain_steps": 0} if cell.type == "por_r" else sizes)


COMMAND = Command(
    "por",
    (__doc__ or "").splitlines()[0],
    PUBLISHED,
    sizes(page.METHODS["POR"].words, CELLS, "pretrain_steps", "train_steps", "hidden_dim", "execute_dim", "episodes"),
    _measured,
)
RESULTS = COMMAND.results

if __name__ == "__main__":
    sys.exit(main())
