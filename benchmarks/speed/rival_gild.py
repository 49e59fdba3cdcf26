"""The contestants `gild` and `gild-il`: the authors' TD3 with GILD, from a checkout of github.com/slDeng1003/GILD.

Its networks, replay buffer and `train` are called as its main_TD3.py calls them. As published the file does not run;
`SHIMS` are all changes to its text, made while it is loaded. The rest stands outside it: a stand-in of two functions
for learn2learn, which newer Pythons cannot install, and no GPU.

Its repository has no file of its RL+IL baseline. `gild-il` is made of its own parts: the critics' half of its `train`,
and the loss `loss_rl + loss_bc`, which it has for the step that GILD is compared with, as the actor's real step.
"""

from __future__ import annotations

import copy
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.official.published import Published, Shim
from benchmarks.speed.data import columns, repeated
from benchmarks.speed.worker import Run

FILE = Path("algorithm/TD3_GILD_ws.py")
BESIDE = ("model.py", "utils.py")
STANDING_IN = ("learn2learn", "learn2learn.utils")
NEVER = sys.maxsize
KNOWN = "a2cfee58dac086c0c5f60fa480be5b9a6039eaac886388c775ba23044e9ebedd"  # the files that are run, and no others


SHIMS = (
    Shim("policy_bc_loss_val", "policy_loss_val_bc", "the name is not defined; a line above defines it in this order"),
    Shim("variable.grad.data = ", "variable.grad = ", "since PyTorch 2, zero_grad leaves None where it wrote zeros"),
)


def prepare(options: Mapping[str, Any]) -> tuple[dict[str, Run], dict[str, Any]]:
    """Its trainer with the settings of its main_TD3.py, on random transitions and `options["demos"]` demonstrations.

    Every step of `gild` lies in its warm start.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002, whose numbers its replay buffer draws
    folder = Path(options["checkout"])
    obs_dim, action_dim = options["obs_dim"], options["action_dim"]
    demos = columns({**options, "rows": options["demos"]})
    demonstrations = np.concatenate((demos["obs"], demos["action"]), axis=1)
    with loaded(folder) as (gild, utils):
        trainer = gild.TD3_GILD(obs_dim, action_dim, 1.0, demonstrations, settings())
        buffer = utils.ReplayBuffer(obs_dim, action_dim, options["rows"])
    data = columns(options)
    for row in zip(*(data[name] for name in ("obs", "action", "next_obs", "reward", "terminated")), strict=True):
        buffer.add(*row)
    batch = options["batch"]
    step = (
        imitating(trainer, utils, buffer, batch)
        if options["imitating"]
        else lambda: trainer.train(buffer, batch_size=batch)
    )
    return {"step": repeated(step)}, {"versions": {"torch": torch.__version__}, "sha256": digest(folder)}


def settings() -> types.SimpleNamespace:
    """Those of its main_TD3.py, with a warm start that never ends."""
    return types.SimpleNamespace(
        actor_lr=3e-4,
        critic_lr=3e-4,
        gild_lr=1e-4,
        discount=0.99,
        tau=0.005,
        policy_noise=0.2,
        noise_clip=0.5,
        policy_freq=2,
        warm_start_timesteps=NEVER,
    )


def imitating(trainer: Any, utils: Any, buffer: Any, batch: int) -> Callable[[], None]:
    """One gradient step of TD3 with RL+IL, as a function."""
    every, trainer.policy_freq = trainer.policy_freq, NEVER  # so that its `train` moves the critics alone

    def step() -> None:
        with kept_batches(buffer) as drawn:
            trainer.train(buffer, batch)
        if trainer.total_it % every:
            return
        rows = np.random.randint(0, len(trainer.demo_states), batch)  # noqa: NPY002, as it draws them
        state = drawn[0][0]
        rl = -trainer.critic.Q1(state, trainer.actor(state)).mean()
        loss = rl + functional.mse_loss(trainer.actor(trainer.demo_states[rows]), trainer.demo_actions[rows])
        trainer.actor_optimizer.zero_grad()
        loss.backward()
        trainer.actor_optimizer.step()
        utils.soft_update(trainer.critic_target, trainer.critic, trainer.tau)
        utils.soft_update(trainer.actor_target, trainer.actor, trainer.tau)

    return step


@contextmanager
def kept_batches(buffer: Any) -> Iterator[list[Any]]:
    """The batches that are drawn meanwhile: the actor sees the critics' own."""
    drawn: list[Any] = []
    sample = type(buffer).sample

    def keep(*args: Any, **kwargs: Any) -> Any:
        drawn.append(sample(buffer, *args, **kwargs))
        return drawn[-1]

    buffer.sample = keep
    try:
        yield drawn
    finally:
        del buffer.sample


@contextmanager
def loaded(folder: Path) -> Iterator[tuple[Any, Any]]:
    """Its `FILE` with the shims, and its utils; no GPU is seen meanwhile."""
    learn2learn, its_utils = (types.ModuleType(name) for name in STANDING_IN)
    learn2learn.clone_module, learn2learn.utils = clone_module, its_utils  # type: ignore[attr-defined]
    its_utils.clone_module, its_utils.update_module = clone_module, update_module  # type: ignore[attr-defined]
    with published().loaded(folder, dict(zip(STANDING_IN, (learn2learn, its_utils), strict=True))) as found:
        yield found[FILE.stem], found["utils"]


def published() -> Published:
    """What is run of its repository."""
    return Published("--gild", "slDeng1003/GILD", "acf5f2c", (FILE, *map(Path, BESIDE)), KNOWN, SHIMS)


def shimmed(folder: Path) -> str:
    """The text of `FILE`, made to run; raises UserError where a file is missing or not as published."""
    return published().texts(folder)[FILE]


def digest(folder: Path) -> str:
    """sha256 of the three files, one after the other."""
    return published().digest(folder)


def clone_module(module: Any) -> Any:
    """A copy whose parameters are clones on the tape, as learn2learn's function of this name returns."""
    clone = copy.copy(module)
    clone._parameters = {name: p if p is None else p.clone() for name, p in module._parameters.items()}
    clone._modules = {name: clone_module(part) for name, part in module._modules.items()}
    return clone


def update_module(module: Any) -> Any:
    """Adds to every parameter what its attribute `update` holds, on the tape; as learn2learn's."""
    for name, p in module._parameters.items():
        if getattr(p, "update", None) is not None:
            module._parameters[name] = p + p.update
    for part in module._modules.values():
        update_module(part)
    return module
