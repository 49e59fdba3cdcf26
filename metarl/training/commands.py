"""`metarl eval` and `metarl export`: what is done with the policies of runs."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console

from metarl.errors import CheckpointError, ConfigError

Beside = Annotated[Path | None, typer.Option(help="Where components named module:Class lie.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a file of that name.")]


def evaluate(
    runs: Annotated[list[Path], typer.Argument(help="Runs' folders, runs/<name>-<hash>/<seed>.", show_default=False)],
    episodes: Annotated[int | None, typer.Option(help="Episodes to run.", show_default="10; of a video, 3")] = None,
    seed: Annotated[int, typer.Option(help="Of the start states; start-goal pairs are always the same.")] = 0,
    beside: Beside = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print every return as JSON.")] = False,
    video: Annotated[
        Path | None, typer.Option(help="Film the episodes: FILE.gif or FILE.mp4.", show_default=False)
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Evaluate the newest policies of runs in a new environment; with --video, film them."""
    from gymnasium.envs.registration import EnvSpec

    from metarl.data.scores import normalized
    from metarl.envs import make_env
    from metarl.process import settle
    from metarl.training.evaluation import Evaluator
    from metarl.training.offline import load_policy

    if episodes is None:
        episodes = 3 if video else 10
    if episodes < 1:
        raise ConfigError(f"--episodes must be at least 1, not {episodes}")
    videos = _videos(video, runs, overwrite)
    settle()
    console = Console()
    for run in runs:
        policy, env, step = load_policy(run, lambda text: print(text, file=sys.stderr), beside)
        if video is None:
            evaluator = Evaluator(partial(make_env, env, policy.obs_keys or None), episodes, seed)
            result = evaluator(policy, step)
            evaluator.close()
        else:
            from metarl.training.video import film

            with Console(stderr=True).status(f"filming {videos[run].name}"):  # shown on a terminal alone
                filmed = film(policy, step, env, episodes, seed, videos[run])
            result = filmed.result
        if as_json:
            told = {"video": str(videos[run])} if videos else {}
            print(json.dumps({"run": str(run), "step": step, **result.to_dict(), **told}))
            continue
        if len(runs) > 1:
            console.print(f"{run}:", highlight=False, soft_wrap=True)
        if result.success is not None:
            steps = f", {np.mean(result.reached):,.0f} steps to goal" if result.reached else ""
            console.print(
                f"step {step:,}: success {result.success:.0%} of {episodes} start-goal pairs{steps}",
                highlight=False,
                soft_wrap=True,
            )
        spread = float(np.std(result.returns))
        score = normalized(EnvSpec.from_json(env).id, result.mean)
        console.print(
            f"step {step:,}: return {result.mean:,.1f} ± {spread:,.1f} (mean and standard deviation of {episodes} "
            f"episodes), length {np.mean(result.lengths):,.0f}",
            highlight=False,
            soft_wrap=True,
        )
        if score.normalized is not None:
            console.print(f"return {score}", highlight=False)
        if video is not None:
            of = "every step" if filmed.every == 1 else f"every {filmed.every} steps"
            console.print(
                f"video: {videos[run]} ({filmed.frames:,} frames, {of}, {filmed.rate:.4g} per second)",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )


def _videos(video: Path | None, runs: list[Path], overwrite: bool) -> dict[Path, Path]:
    """The file of each run; of several, names with the run's folder and seed in them."""
    if video is None:
        if overwrite:
            raise ConfigError("--overwrite is about the file of --video")
        return {}
    from metarl.training.export import check_path
    from metarl.training.video import SUFFIXES

    files = {run: video for run in runs}
    if len(files) > 1:
        for run in files:
            whole = run.resolve()
            files[run] = video.with_name(f"{video.stem}-{whole.parent.name}-{whole.name}{video.suffix}")
    for file in files.values():
        check_path(file, overwrite, SUFFIXES)
    return files


def export(
    run: Annotated[Path, typer.Argument(help="A run's folder, runs/<name>-<hash>/<seed>.", show_default=False)],
    file: Annotated[Path, typer.Argument(help="FILE.pt2 (torch.export) or FILE.onnx.", show_default=False)],
    beside: Beside = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a run's newest policy as one file that acts on raw observations without metarl."""
    from metarl.process import settle
    from metarl.training import checkpoints, export
    from metarl.training.folder import RunFolder
    from metarl.training.offline import load_policy
    from metarl.training.setup import saved_spec

    export.check_path(file, overwrite)
    export.check_needs(file)
    settle()
    policy, env, step = load_policy(run, lambda text: print(text, file=sys.stderr), beside)
    folder = RunFolder(run)
    saved = checkpoints.load_newest(folder.checkpoints, lambda text: None)
    if saved is None:
        raise CheckpointError(f"{run} has no checkpoint any more")
    spec = saved_spec(saved.record["spec"])
    told = export.about(run, folder.seed, step, env, spec)
    export.write(export.program(policy, spec), told, file)
    Console().print(
        f"{file}: step {step:,} of {told['run']} seed {told['seed']}, observations [N, {spec.obs_dim}] to actions "
        f"[N, {spec.action_dim}] of {told['env_id']}, {file.stat().st_size:,} bytes",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
