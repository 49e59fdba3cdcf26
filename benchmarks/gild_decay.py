"""Does GILD's loss network survive its weight decay? `python -m benchmarks.gild_decay --gild CHECKOUT`.

The spread of G over the demonstrations, its standard deviation, while TD3 with GILD trains on a sparse HalfCheetah as
the authors' main_TD3.py does, but for 5,000 random steps, on four episodes of halfcheetah/medium (rewards unread): by
the authors' code from a checkout (benchmarks/speed/rival_gild.py says what is changed so that it runs), by metarl with
the same numbers, and by metarl without weight decay. A spread of 0 means that G is a constant and teaches nothing.
Writes benchmarks/results/gild_decay.json and docs/gild_decay.png; `--render` draws the picture alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console

from benchmarks.colours import PALETTE
from benchmarks.drawing import NARROW, STYLE, power, to_png
from benchmarks.speed.rival_gild import digest, loaded, settings
from metarl import config, data
from metarl.envs import registered
from metarl.errors import UserError
from metarl.process import settle
from metarl.provenance import environment
from metarl.training.folder import write_json
from metarl.training.offline import train
from metarl.training.progress import reporter
from metarl.training.streams import generator

RESULTS = Path(__file__).parent / "results" / "gild_decay.json"
PICTURE = Path(__file__).parents[1] / "docs" / "gild_decay.png"
ENV, RANDOM, STEPS, EVERY = "metarl/SparseHalfCheetah-v0", 5000, 10000, 500
DEMO: dict[str, Any] = {"recipe": "halfcheetah/medium", "size": 100_000, "episodes": 4}
AUTHORS, PUBLISHED, UNDECAYED = "the authors' code", "metarl, as published", "metarl, no weight decay"
Course = list[tuple[int, float]]
"""(gradient steps, standard deviation of G over demonstrations)."""


def ours(seed: int, decay: float) -> Course:
    """metarl's GILD."""
    raw = {
        "name": "gild-decay",
        "algorithm": {"name": "td3", "preset": "gild"},
        "objective": {"name": "gild", "optimizer": {"name": "adam", "lr": 1e-4, "weight_decay": decay}},
        "online": {"env": ENV, "random_steps": RANDOM},
        "data": {"demo": DEMO},
        "steps": STEPS,
        "evaluation": {"every": EVERY, "episodes": 1},
        "device": "cpu",
    }
    with tempfile.TemporaryDirectory() as root:
        folder = train(config.build(raw, "benchmarks.gild_decay"), seed, Path(root), reporter("none"))
        rows = (line.split(",") for line in (folder / "metrics.csv").read_text().splitlines())
        found = [(int(row[0]), float(row[2])) for row in rows if row[1] == "loss_network/output_std"]
    return [(step - RANDOM, spread) for step, spread in found if step >= RANDOM]


def authors(checkout: Path, seed: int) -> Course:
    """Their TD3 with GILD, in the loop of their main_TD3.py."""
    with loaded(checkout) as (gild, utils), closing(gym.make(ENV)) as env:
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002  # theirs draws from it
        demo = data.load(data.DataSource(**DEMO), generator(seed, "data", "demo"), "demo")
        columns, sizes = demo.layout.split(demo.rows), (demo.layout.obs_dim, demo.layout.action_dim)
        pairs = torch.cat((columns["obs"], columns["action"]), dim=1).double().numpy()
        trainer = gild.TD3_GILD(*sizes, 1.0, pairs, settings())
        replay = utils.ReplayBuffer(*sizes, STEPS)
        course: Course = []
        env.action_space.seed(seed)
        obs, _ = env.reset(seed=seed)
        for step in range(STEPS):
            if step < RANDOM:
                action = env.action_space.sample()
            else:
                noise = np.random.normal(0, 0.1, sizes[1])  # noqa: NPY002
                action = (trainer.select_action(np.array(obs)) + noise).clip(-1, 1).astype(np.float32)
            after, reward, terminated, truncated, _ = env.step(action)
            replay.add(obs, action, after, reward, float(terminated))
            obs = env.reset()[0] if terminated or truncated else after
            if step >= RANDOM:
                trainer.train(replay, 256)
            if (step + 1) % EVERY == 0 and step + 1 >= RANDOM:
                course.append((step + 1 - RANDOM, _spread(trainer)))
    return course


@torch.no_grad()
def _spread(trainer: Any) -> float:
    states, actions = trainer.demo_states, trainer.demo_actions
    return float(trainer.gild_network(torch.cat((trainer.actor(states), states, actions), dim=1)).std())


def measured(checkout: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Every contestant's course by seed."""
    courses = {AUTHORS: {}, PUBLISHED: {}, UNDECAYED: {}}  # type: dict[str, dict[str, Course]]
    for seed in seeds:
        courses[AUTHORS][str(seed)] = authors(checkout, seed)
        courses[PUBLISHED][str(seed)] = ours(seed, 1e-4)
        courses[UNDECAYED][str(seed)] = ours(seed, 0.0)
    return {"courses": courses, "sha256": digest(checkout), "environment": environment()}


def picture(result: Mapping[str, Any]) -> Figure:
    """The spread over updates of G, on a logarithmic scale; 0 is drawn as 1e-9."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2 * NARROW[0], NARROW[1]), layout="constrained")
        axis = figure.subplots()
        for (who, runs), colour in zip(result["courses"].items(), PALETTE[1:], strict=False):
            for i, course in enumerate(runs.values()):
                updates, spread = zip(*[(steps / 2, max(std, 1e-9)) for steps, std in course], strict=True)
                axis.plot(updates, spread, color=colour, linewidth=1.4, label=who if i == 0 else None)
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(lambda value, _: power(value))
        axis.set_xlabel("updates of the loss network")
        axis.set_ylabel("spread of G over demonstrations")
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 2 for a mistake of the user's."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gild_decay", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--gild", type=Path, help="a checkout of github.com/slDeng1003/GILD")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--render", action="store_true", help="draw what was measured before")
    options = parser.parse_args(arguments)
    settle()
    registered()
    try:
        if not options.render:
            if options.gild is None:
                raise UserError("name a checkout of github.com/slDeng1003/GILD with --gild, or give --render")
            write_json(RESULTS, measured(options.gild, range(options.seeds)))
        result = json.loads(RESULTS.read_text())
    except UserError as error:
        Console(stderr=True).print(f"error: {error}", soft_wrap=True, highlight=False, markup=False)
        return 2
    PICTURE.write_bytes(to_png(picture(result)))
    for who, course in lasts(result):
        print(f"{who}: {course}")
    return 0


def lasts(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """By contestant, the spread of every seed at the start, after 500 updates and at the end."""
    for who, runs in result["courses"].items():
        yield who, "; ".join(f"{c[0][1]:.1e}, {dict(map(tuple, c))[1000]:.1e}, {c[-1][1]:.1e}" for c in runs.values())


if __name__ == "__main__":
    sys.exit(main())
