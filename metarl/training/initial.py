"""Parameter groups that start with what another run has trained: `init: {critic: 'runs/<name>-<hash>/{seed}'}`."""

from __future__ import annotations

from pathlib import Path

import torch

from metarl.bilevel import Params, Tree
from metarl.config import Experiment
from metarl.data.transitions import Statistics
from metarl.errors import ConfigError, nearest
from metarl.learner import Learner
from metarl.training import checkpoints
from metarl.training.folder import RunFolder

SEED, ROOT = "{seed}", "{root}"  # the run's seed, and the folder in which its experiment's folder lies


def trained_groups(
    experiment: Experiment,
    learner: Learner,
    seed: int,
    statistics: Statistics | None,
    dtype: torch.dtype,
    device: torch.device,
    root: Path | None = None,
) -> Tree:
    """The groups that `init` names, from the newest whole checkpoints of the runs that it names.

    Args:
        experiment: what `init` belongs to.
        learner: whose groups they are to be.
        seed: of the run; `{seed}` stands for it.
        statistics: of the run's observations, where they are normalised.
        dtype: of its floating-point numbers.
        device: where it trains.
        root: the folder in which the run's experiment folder lies; `{root}` stands for it.

    Raises:
        ConfigError: no such group here or there, no such run, other shapes, or observations that were normalised
            otherwise.
    """
    found = {}
    for group, run in experiment.init.items():
        where = f"{experiment.where}: init.{group}"
        source = _source(where, run, seed, root)
        found[group] = _group(where, group, source, learner, statistics, dtype, device)
    return found


def _source(where: str, run: str, seed: int, root: Path | None) -> RunFolder:
    if ROOT in run and root is None:
        raise ConfigError(
            f"{where}: {ROOT} stands for the folder of this run's experiment, which has none here; write the path out"
        )
    return RunFolder(Path(run.replace(SEED, str(seed)).replace(ROOT, str(root))))


def _group(
    where: str,
    group: str,
    folder: RunFolder,
    learner: Learner,
    statistics: Statistics | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Params:
    template = learner.init().tree
    if group not in template:
        raise ConfigError(f"{where}: this learner has no such parameter group.{nearest(group, template)}")
    if not folder.path.is_dir():
        raise ConfigError(f"{where}: there is no run folder {folder.path.absolute()}; train that run first, or name it")
    notes: list[str] = []
    saved = checkpoints.load_newest(folder.checkpoints, notes.append)
    if notes:  # an earlier checkpoint than the one that was meant
        raise ConfigError(f"{where}: {notes[0].partition(';')[0]}; train that run again, or name another")
    if saved is None:
        raise ConfigError(f"{where}: {folder.path} has no checkpoint; name the folder of one seed, and train it first")
    prefix = f"tree/{group}/"
    found = {name.removeprefix(prefix): value for name, value in saved.tensors.items() if name.startswith(prefix)}
    if not found:
        others = sorted({name.split("/")[1] for name in saved.tensors if name.startswith("tree/")})
        raise ConfigError(f"{where}: {folder.path} has no such group; it has {', '.join(others)}")
    shapes, wanted = ({k: list(t.shape) for k, t in each.items()} for each in (found, template[group]))
    if unlike := [k for k in sorted({**shapes, **wanted}) if shapes.get(k) != wanted.get(k)]:
        here, there = (each.get(unlike[0], "missing") for each in (wanted, shapes))
        raise ConfigError(f"{where}: {unlike[0]} is {there} there and {here} here; give both runs the same networks")
    theirs = {k: v for k, v in saved.tensors.items() if k.startswith("statistics/")}
    ours = {} if statistics is None else {f"statistics/{k}": v for k, v in statistics.to_dict().items()}
    if theirs.keys() != ours.keys() or any(not torch.equal(theirs[k], v.cpu()) for k, v in ours.items()):
        raise ConfigError(
            f"{where}: {folder.path} saw observations normalised otherwise; train both with normalize=false, or on the "
            "same data.train"
        )
    return {k: v.to(device, dtype if v.is_floating_point() else v.dtype) for k, v in found.items()}
