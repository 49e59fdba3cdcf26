"""The authors' PEX beside ours: `python -m benchmarks.official_pex --pex CHECKOUT`.

main_offline.py and main_online.py from a checkout of github.com/Haichao-Zhang/PEX, and metarl's `train`: the same rows
and environment with the same rewards, as many gradient and environment steps, evaluated in the same way; with policy
expansion, and fine-tuning alone (direct). A finished run is kept in `--out` and not run again. Writes
benchmarks/results/official_pex.json, and docs/official.md from all such records; `--write-only` writes the page alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Literal
from unittest.mock import patch

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray

from algorithms.iql import IQL
from benchmarks.official import page
from benchmarks.official.command import SAME, Command, apart, asked, by_our_names, copy, record, sizes
from benchmarks.official.comparison import OFFICIAL, OURS, SIDES, Job, run
from benchmarks.official.published import Published, Shim
from metarl import Learner, Spec, adam, config
from metarl.bilevel import Params
from metarl.data.transitions import Transitions
from metarl.envs import make_env, registered
from metarl.errors import UserError
from metarl.process import settle
from metarl.training.evaluation import EpisodeReturns, Evaluator
from metarl.training.folder import RunFolder
from metarl.training.offline import train
from metarl.training.progress import Reporter, Style, reporter
from metarl.training.setup import prepare
from objectives.pex import PEX

UTIL, POLICY, VALUES = "pex.utils.util", "pex.networks.policy", "pex.networks.value_functions"
PUBLISHED = Published(
    "--pex",
    "Haichao-Zhang/PEX",
    "b0ae11e",
    tuple(
        map(
            Path,
            (
                "main_online.py",
                "main_offline.py",
                "pex/algorithms/pex.py",
                "pex/algorithms/iql_online.py",
                "pex/algorithms/iql.py",
                "pex/networks/value_functions.py",
                "pex/networks/policy.py",
                "pex/utils/util.py",
            ),
        )
    ),
    "35ca07b7dd15b047bbbdb840fbeb76700502fa8c9ec8c6bcba4dc5898b0eed49",
    (Shim("v[indices].cuda()", "v[indices]", "batches would go to a GPU, whatever the device", "pex/utils/util.py"),),
    packaged=True,
)
STAND_INS = {
    "gym": "imported for its `make`, which is never called",
    "d4rl": "imported for data and scores that are never asked for",
    "tqdm": "its `trange` is `range`",
}
NOTES = """Smaller and shorter than the authors' runs, on either side: theirs are of a million gradient steps and a
    million environment steps, with 256 units in every hidden layer, batches of 256, rates of 0.0003 and 0.005, and
    5,000 environment steps before the first online gradient step. Other settings are those of their README. metarl's
    side is `iql` with `preset: pex`. What is left between the sides: the authors' code meets actions in +-1, as D4RL's
    are, and metarl in +-2, as Pendulum's, which only Q sees; their offline policy begins with Glorot's weights,
    metarl's with PyTorch's; their optimisers begin anew at the switch, metarl's go on; fine-tuning, theirs copies Q to
    its target there; actions reach their replay uncut, and their policy that joins is evaluated before its first
    gradient step, too."""
LAYERS = 2
UPDATES = 5  # that are compared number by number
PHASES: tuple[Literal["IQL", "PEX"], ...] = ("IQL", "PEX")
KEPT = "offline_ckpt"  # what their main_offline.py saves
Curve = Mapping[int, float]  # step -> mean return


@dataclass(frozen=True)
class Cell:
    """One comparison, in the words of main_offline.py and main_online.py where these have them.

    Attributes:
        type: with policy expansion, or fine-tuning alone.
        recipe, size: of the data.
        reward_scale: factor of rewards, of the data's and the environment's.
        learn_from: environment steps before the first gradient step.
        tau: the expectile.
        evaluate_every: steps of either phase.
    """

    type: Literal["PEX", "direct"]
    recipe: str = "pendulum/random"
    size: int = 20_000
    reward_scale: float = 0.1
    offline_steps: int = 5_000
    online_steps: int = 10_000
    learn_from: int = 1_000
    tau: float = 0.9
    beta: float = 10.0
    inv_temperature: float = 10.0
    learning_rate: float = 1e-3
    target_update_rate: float = 0.02
    discount: float = 0.99
    batch_size: int = 128
    hidden_dim: int = 64
    evaluate_every: int = 1_000
    episodes: int = 10

    @property
    def updates(self) -> int:
        """Gradient steps."""
        return self.offline_steps + max(0, self.online_steps - self.learn_from)

    @property
    def evaluated(self) -> range:
        """Steps after which it is evaluated."""
        return range(self.evaluate_every, self.offline_steps + self.online_steps + 1, self.evaluate_every)

    def figures(self, curve: Curve) -> dict[str, float]:
        """What is compared; up to the switch the runs of both types are the same."""
        online = [curve[step] for step in self.evaluated if step > self.offline_steps]
        found = {"return at the switch": curve[self.offline_steps]} if self.type == "PEX" else {}
        return found | {
            "return, first 3 evaluations online": float(np.mean(online[:3])),
            "return, last 10 evaluations": float(np.mean(online[-10:])),
        }

    def experiment(self) -> dict[str, Any]:
        """The same as an experiment of metarl."""
        hidden, adam = [self.hidden_dim] * LAYERS, {"name": "adam", "lr": self.learning_rate}
        pex = {
            "name": "pex",
            "inverse_temperature": self.inv_temperature,
            "beta": self.beta,
            "hidden": hidden,
            "policy_optimizer": adam,
        }
        return {
            "name": f"official-{self.type.lower()}",
            "algorithm": {
                "name": "iql",
                "preset": "pex",
                "expectile": self.tau,
                "beta": self.beta,
                "discount": self.discount,
                "tau": self.target_update_rate,
                "hidden": hidden,
                "batch_size": self.batch_size,
                "rewards": {"scale": self.reward_scale},
                **{f"{net}_optimizer": adam for net in ("actor", "critic", "value")},
            },
            **({"objective": pex} if self.type == "PEX" else {}),
            "data": {"train": {"recipe": self.recipe, "size": self.size}},
            "online": {"from_data": 0.5, "learn_from": self.learn_from},
            "steps": {"offline": self.offline_steps, "online": self.online_steps},
            "evaluation": {"every": self.evaluate_every, "episodes": self.episodes},
            "device": "cpu",
        }


CELLS = (Cell("PEX"), Cell("direct"))


@dataclass(frozen=True)
class Evaluations:
    """Those of one run, by step."""

    at: Mapping[int, EpisodeReturns]

    @property
    def curve(self) -> Curve:
        return {step: found.mean for step, found in self.at.items()}

    def to_dict(self) -> dict[str, Any]:
        return {str(step): found.to_dict() for step, found in self.at.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Evaluations:
        return cls({int(step): EpisodeReturns.from_dict(found) for step, found in values.items()})


# -- both sides ------------------------------------------------------------------------------------------------


def ours(cell: Cell, seed: int, root: Path, told: Reporter) -> Evaluations:
    """metarl's, trained as any experiment is."""
    folder = train(config.build(cell.experiment(), "benchmarks.official_pex"), seed, root, told)
    found = json.loads(RunFolder(folder).result.read_text())["evaluations"]
    return Evaluations({each["step"]: EpisodeReturns.from_dict(each) for each in found if each["step"]})


def official(code: Mapping[str, Any], cell: Cell, seed: int, told: Reporter) -> Evaluations:
    """Their two main scripts, on the rows and in the environment of ours."""
    settle()
    setup = prepare(config.build(cell.experiment(), "benchmarks.official_pex"), seed)
    evaluator = Evaluator(lambda: make_env(setup.env), cell.episodes, seed)
    assert setup.online is not None
    env, at = Normalized(make_env(setup.online.env)), dict[int, EpisodeReturns]()
    util = code[UTIL]

    def get_env_and_dataset(name: str, max_episode_steps: int) -> tuple[Any, Any, Callable[[float], float]]:
        scaled: Callable[[Any], Any] = lambda reward: cell.reward_scale * reward  # noqa: E731
        columns = their_rows(setup.data["train"], env.high)
        columns["rewards"] = scaled(columns["rewards"])
        return env, {key: util.torchify(column) for key, column in columns.items()}, scaled

    def eval_policy(env: Any, name: str, alg: Any, max_episode_steps: int, n_eval_episodes: int) -> None:
        step = cell.evaluate_every * (len(at) + 1)
        with greedy(code):
            at[step] = evaluator(partial(_act, util, alg, env.high), step)  # type: ignore[arg-type]  # only called
        told.update(step)

    told.start(f"{cell.type} of the authors, seed {seed}", 0, cell.evaluated[-1])
    try:
        with ExitStack() as opened:
            opened.enter_context(patch("torch.cuda.is_available", lambda: False))
            for name in ("main_offline", "main_online"):
                for ours in (get_env_and_dataset, eval_policy):
                    opened.enter_context(patch.object(code[name], ours.__name__, ours))
                opened.enter_context(patch.object(code[name], "print", _quiet, create=True))
            folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
            settings = _settings(cell, seed)
            code["main_offline"].main(SimpleNamespace(**settings, log_dir=str(folder / "offline")))
            online = {"log_dir": str(folder / "online"), "ckpt_path": str(folder / "offline" / KEPT)}
            code["main_online"].main(SimpleNamespace(**settings, **online))
    finally:
        told.stop()
        evaluator.close()
    return Evaluations({step: at[step] for step in cell.evaluated})


def _settings(cell: Cell, seed: int) -> dict[str, Any]:
    """Of both scripts' command lines."""
    same = (
        "discount",
        "hidden_dim",
        "batch_size",
        "learning_rate",
        "target_update_rate",
        "tau",
        "beta",
        "inv_temperature",
    )
    return {name: getattr(cell, name) for name in same} | {
        "env_name": cell.recipe,
        "algorithm": cell.type.lower(),
        "seed": seed,
        "hidden_num": LAYERS,
        "num_steps": cell.offline_steps,
        "replay_size": 1_000_000,
        # It ends with an episode, once there are more steps than total_env_steps. A gradient step comes before an
        # environment step there, and first where the replay holds more than so many.
        "total_env_steps": cell.online_steps - 1,
        "initial_collection_steps": cell.learn_from - 1,
        "updates_per_step": 1,
        "eval": True,
        "eval_period": cell.evaluate_every,
        "eval_episode_num": cell.episodes,
        "max_episode_steps": 1_000,
    }


class Normalized:
    """An environment by the interface of an older gym, with actions in +-1, which are cut there as D4RL's are."""

    def __init__(self, env: gym.Env) -> None:
        assert isinstance(env.action_space, gym.spaces.Box) and env.spec is not None
        self._env = env
        self._seed: int | None = None
        self.high: NDArray[Any] = env.action_space.high
        self.action_space = gym.spaces.Box(-1.0, 1.0, self.high.shape, np.float32)
        self._max_episode_steps = env.spec.max_episode_steps

    def seed(self, seed: int) -> None:
        """Of the next reset."""
        self._seed = seed

    def reset(self) -> NDArray[Any]:
        obs: NDArray[Any] = self._env.reset(seed=self._seed)[0]
        self._seed = None
        return obs

    def step(self, action: NDArray[Any]) -> tuple[NDArray[Any], float, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self._env.step(action.clip(-1, 1) * self.high)
        return obs, float(reward), terminated or truncated, info

    def close(self) -> None:
        """After every episode there; it goes on."""


def their_rows(data: Transitions, high: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """The data in the form of d4rl.qlearning_dataset, with actions in +-1."""
    columns = data.layout.split(data.rows)
    names = {"observations": "obs", "actions": "action", "next_observations": "next_obs"}
    names |= {"rewards": "reward", "terminals": "terminated"}
    found = {theirs: columns[name].numpy().copy() for theirs, name in names.items()}
    return found | {"actions": found["actions"] / high}


@contextmanager
def greedy(code: Mapping[str, Any]) -> Iterator[None]:
    """No sample where they evaluate: the mode, and the choice of highest value."""
    sample = code[UTIL].epsilon_greedy_sample
    with patch.object(code["pex.algorithms.pex"], "epsilon_greedy_sample", lambda dist, eps: sample(dist, 0.0)):
        yield


@torch.no_grad()
def _act(util: Any, alg: Any, high: NDArray[Any], obs: NDArray[Any], carry: Any = None) -> tuple[NDArray[Any], Any]:
    return alg.select_action(util.torchify(obs), evaluate=True).numpy() * high, carry


def _quiet(*_: Any, **__: Any) -> None:
    """In the place of print."""


# -- number by number ------------------------------------------------------------------------------------------


def first_updates(code: Mapping[str, Any], phase: Literal["IQL", "PEX"]) -> float:
    """The largest relative difference of any parameter in the first updates, from equal ones and on equal batches.

    In float64 on small networks: of their IQL, whose policy's rate falls by a cosine, or of their PEX, from any offline
    policy. Their draws are recorded and given to ours as noise. The expectile and the discount are numbers that
    float32 holds, since theirs are float32.
    """
    cell = Cell("PEX", tau=0.75, beta=3.0, discount=63 / 64, hidden_dim=16, learning_rate=1e-2, inv_temperature=4.0)
    draw = torch.Generator().manual_seed(0)
    spec = Spec(5, 2, (1.0, 1.0), steps=UPDATES, offline=UPDATES if phase == "IQL" else 0)
    learner = _small(cell, spec, draw)
    state = learner.init(torch.float64)
    alg = _their_alg(code, cell, spec, phase).double()
    theirs = {"critic": alg.critic, "critic_target": alg.target_critic, "value": alg.vf}
    theirs |= {"actor": alg.policy} if phase == "IQL" else {"actor": alg.policy_offline, "policy_1": alg.policy}
    # A target of its own, so that one taken for the critic shows.
    other = {name: 1.5 * p + 0.02 for name, p in state.tree["critic_target"].items()}
    state = state.with_params("critic_target", other)
    for group, module in theirs.items():
        copy(state.tree[group], _by_our_names(module))
    worst = 0.0
    for i in range(1, UPDATES + 1):
        shapes = {"obs": (32, 5), "next_obs": (32, 5), "reward": (32,)}
        batch = {name: torch.randn(shape, generator=draw, dtype=torch.float64) for name, shape in shapes.items()}
        batch["action"] = 1.8 * torch.rand((32, 2), generator=draw, dtype=torch.float64) - 0.9
        batch["terminated"] = (torch.rand(32, generator=draw, dtype=torch.float64) < 0.3).double()
        torch.manual_seed(i)
        with recorded_draws(code) as drawn:
            alg.update(*(batch[name] for name in ("obs", "action", "next_obs", "reward", "terminated")))
        noise = torch.zeros(32, 3, dtype=torch.float64) if phase == "IQL" else _noise(*drawn)
        state, _ = learner.step(state, {"train": batch, "noise": {"pex": noise}}, learner.due(i))
        worst = max(worst, *(apart(state.tree[group], _by_our_names(each)) for group, each in theirs.items()))
    return worst


@contextmanager
def recorded_draws(code: Mapping[str, Any]) -> Iterator[list[tuple[Any, torch.Tensor]]]:
    """Every distribution that their PEX draws from, and what it drew."""
    found: list[tuple[Any, torch.Tensor]] = []
    sample = code[UTIL].epsilon_greedy_sample

    def recorded(dist: Any, eps: float) -> torch.Tensor:
        drawn: torch.Tensor = sample(dist, eps)
        found.append((dist, drawn))
        return drawn

    with patch.object(code["pex.algorithms.pex"], "epsilon_greedy_sample", recorded):
        yield found


def _noise(action: tuple[Any, torch.Tensor], choice: tuple[Any, torch.Tensor]) -> torch.Tensor:
    """The noise [B, A + 1] by which ours draws the same actions and choices: of these the middle of their quantiles."""
    normal, drawn = action
    z = ((drawn - normal.mean) / normal.stddev).detach()
    share = choice[0].probs.detach()
    index = choice[1][..., None]
    middle = (share.cumsum(-1) - share / 2).gather(-1, index)
    return torch.cat((z, torch.special.ndtri(middle)), -1).squeeze(0)


def _small(cell: Cell, spec: Spec, draw: torch.Generator) -> Learner:
    """Ours."""
    hidden, optimizer = (cell.hidden_dim,) * LAYERS, adam(lr=cell.learning_rate)
    base = IQL(
        order="corl",
        expectile=cell.tau,
        beta=cell.beta,
        discount=cell.discount,
        tau=cell.target_update_rate,
        hidden=hidden,
        batch_size=32,
        actor_optimizer=optimizer,
        critic_optimizer=optimizer,
        value_optimizer=optimizer,
    )
    pex = PEX(cell.inv_temperature, beta=cell.beta, hidden=hidden, policy_optimizer=optimizer)
    return pex.attach(base.build(spec, draw), spec, draw).ready()


def _their_alg(code: Mapping[str, Any], cell: Cell, spec: Spec, phase: Literal["IQL", "PEX"]) -> Any:
    """Their networks and trainer, made as their main scripts make them."""
    sizes = {"hidden_dim": cell.hidden_dim, "n_hidden": LAYERS}
    told = {
        "critic": code[VALUES].DoubleCriticNetwork(spec.obs_dim, spec.action_dim, **sizes),
        "vf": code[VALUES].ValueNetwork(spec.obs_dim, **sizes),
        "policy": code[POLICY].GaussianPolicy(spec.obs_dim, spec.action_dim, **sizes),
        "optimizer_ctor": lambda params: torch.optim.Adam(params, lr=cell.learning_rate),
        "tau": cell.tau,
        "beta": cell.beta,
        "target_update_rate": cell.target_update_rate,
        "discount": cell.discount,
    }
    if phase == "IQL":
        return code["pex.algorithms.iql"].IQL(max_steps=UPDATES, **told)
    return code["pex.algorithms.pex"].PEX(ckpt_path=None, inv_temperature=cell.inv_temperature, **told)


def _by_our_names(module: torch.nn.Module) -> Params:
    return {name.removeprefix("v."): p for name, p in by_our_names(module).items()}


# -- the command -----------------------------------------------------------------------------------------------


def loaded(checkout: Path) -> dict[str, Any]:
    """Their modules; raises UserError where a file is missing or not as published."""
    stand_ins = {name: ModuleType(name) for name in STAND_INS}
    stand_ins["tqdm"].trange = range  # type: ignore[attr-defined]
    with PUBLISHED.loaded(checkout, stand_ins) as found:
        return dict(found)


def jobs(cells: Iterable[Cell], seeds: int, code: Mapping[str, Any], out: Path, style: Style) -> list[Job]:
    """Seed by seed, both sides of every cell."""
    found = []
    for seed in range(seeds):
        for cell in cells:
            sides: dict[str, Callable[[], Evaluations]] = {
                OFFICIAL: partial(official, code, cell, seed, reporter(style)),
                OURS: partial(ours, cell, seed, out / "runs", reporter(style)),
            }
            for side, go in sides.items():
                plan = {"cell": asdict(cell), "side": side, "seed": seed}
                plan |= {"sha256": PUBLISHED.sha256} if side == OFFICIAL else {}
                found.append(Job(side, cell.type, seed, cell.updates, plan, go))
    return found


def measured(checkout: Path, cells: Sequence[Cell], seeds: int, out: Path, style: Style) -> dict[str, Any]:
    """What is recorded: of every cell one entry a figure.

    Raises:
        UserError: the checkout is not as published, or `out` holds other runs.
    """
    code = loaded(checkout)
    same = {phase: first_updates(code, phase) for phase in PHASES}
    registered()
    runs = run(jobs(cells, seeds, code, out, style), out, lambda text: print(text, file=sys.stderr, flush=True))
    found = []
    for cell in cells:
        mine = [each for each in runs if each["plan"]["cell"]["type"] == cell.type]
        figures = [cell.figures(Evaluations.from_dict(each["evaluation"]).curve) for each in mine]
        for name in figures[0]:
            sides: dict[str, Any] = {side: {"scores": {}, "seconds": []} for side in SIDES}
            for each, values in zip(mine, figures, strict=True):
                side = sides[each["plan"]["side"]]
                side["scores"][str(each["plan"]["seed"])] = values[name]
                side["seconds"].append(each["seconds"])
            found.append({**asdict(cell), "figure": name, "sides": sides})
    return record(
        "pex",
        PUBLISHED,
        stand_ins=STAND_INS,
        first_updates={"updates": UPDATES, "bound": SAME, "largest": same},
        cells=found,
        notes=" ".join(NOTES.split()),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 2 for a mistake of the user's."""
    return COMMAND.main(arguments)


def _measured(options: argparse.Namespace) -> dict[str, Any]:
    cells = [_sized(cell, asked(COMMAND.sizes, options)) for cell in CELLS]
    return measured(options.checkout, cells, options.seeds, options.out, options.progress)


def _sized(cell: Cell, sizes: Mapping[str, Any]) -> Cell:
    """The cell with the sizes that were asked for.

    Raises:
        UserError: they are not such as their scripts end with.
    """
    sized = replace(cell, **sizes)
    for name in ("offline_steps", "online_steps"):
        if getattr(sized, name) < 1 or getattr(sized, name) % sized.evaluate_every:
            raise UserError(
                f"--{name.replace('_', '-')} {getattr(sized, name)} must be a multiple of --evaluate-every "
                f"{sized.evaluate_every}, so that the switch and the end are evaluated"
            )
    return sized


COMMAND = Command(
    "pex",
    (__doc__ or "").splitlines()[0],
    PUBLISHED,
    sizes(
        page.METHODS["PEX"].words,
        CELLS,
        "offline_steps",
        "online_steps",
        "learn_from",
        "hidden_dim",
        "evaluate_every",
        "episodes",
    ),
    _measured,
)
RESULTS = COMMAND.results

if __name__ == "__main__":
    sys.exit(main())
