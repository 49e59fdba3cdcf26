"""What a run writes as it goes: metrics.csv, probes.jsonl, TensorBoard. Appended, and cut back on resume."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.tensorboard import SummaryWriter

from metarl.bilevel import Batches, Tree
from metarl.errors import CheckpointError
from metarl.learner import Probe
from metarl.training.folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GRID = 64


class Recorder:
    """Appends rows `step,metric,value`; no clock in them, so that equal runs give equal files.

    Args:
        folder: the run's.
        step: of the checkpoint that the run goes on from; 0 at the start.
        sizes: bytes of each file at that checkpoint; what was written later is cut off.
    """

    def __init__(self, folder: RunFolder, step: int, sizes: Mapping[str, int]) -> None:
        self._files = {}
        for path in (folder.metrics, folder.probes):
            path.touch()
            if path.stat().st_size < sizes.get(path.name, 0):
                raise CheckpointError(
                    f"{path} is shorter than at the checkpoint of step {step:,}: it was edited or removed. Bring it "
                    f"back, or move the folder {folder.path} away to start the run again"
                )
            os.truncate(path, sizes.get(path.name, 0))
            self._files[path.name] = path.open("a", encoding="utf-8")
        self._metrics, self._probes = (self._files[p.name] for p in (folder.metrics, folder.probes))
        if not step:
            self._metrics.write("step,metric,value\n")
        self._board = SummaryWriter(str(folder.tensorboard), purge_step=step + 1 if step else 0)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One row each."""
        for name, value in values.items():
            self._metrics.write(f"{step},{name},{value!r}\n")
            self._board.add_scalar(name, value, step)
        self._metrics.flush()

    def probe(self, step: int, name: str, row: dict[str, Any], outputs: torch.Tensor) -> None:
        """A learned function: one line of JSON, a histogram of its outputs and a picture of its curve."""
        self._probes.write(json.dumps({"step": step, "probe": name, **row}) + "\n")
        self._probes.flush()
        self._board.add_histogram(f"{name}/output", outputs, step)
        self._board.add_figure(f"{name}/curve", draw_probe(row), step)

    def sizes(self) -> dict[str, int]:
        """Bytes of each file, all of them on disk."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        return {name: file.tell() for name, file in self._files.items()}

    def close(self) -> None:
        """Closes the files."""
        for file in self._files.values():
            file.close()
        self._board.close()


def examine(
    probe: Probe, tree: Tree, start: Tree, batches: Batches
) -> tuple[dict[str, Any], dict[str, float], torch.Tensor]:
    """What a learned function does on a batch, and how far it has moved since the start.

    Returns:
        the JSON row (its curve over the batch's range, or some of its points, and histograms), scalars to log, and its
        outputs [n].
    """
    before = {**tree, probe.group: start[probe.group]}
    with torch.no_grad():
        inputs, outputs = (x.detach().double().cpu() for x in probe.sample(tree, batches))
        first = probe.sample(before, batches)[1].double().cpu()
        lines = {"points": _points(inputs, outputs)} if probe.curve is None else _curves(probe, tree, before, inputs)
    scalars = {
        "mean": float(outputs.mean()),
        "std": float(outputs.std(correction=0)),
        "moved": float((outputs - first).abs().mean()),
    }
    row = {
        "input_name": probe.input_name,
        "output_name": probe.output_name,
        **scalars,
        **lines,
        "inputs": _histogram(inputs),
        "outputs": _histogram(outputs),
    }
    return row, scalars, outputs


def _curves(probe: Probe, tree: Tree, before: Tree, inputs: torch.Tensor) -> dict[str, Any]:
    assert probe.curve is not None
    like = next(iter(tree[probe.group].values()))
    grid = torch.linspace(float(inputs.min()), float(inputs.max()), GRID, dtype=torch.float64)
    on_device = grid.to(like.device, like.dtype)
    curve, first = (probe.curve(t, on_device).double().cpu() for t in (tree, before))
    return {"grid": grid.tolist(), "curve": curve.tolist(), "start_curve": first.tolist()}


def _points(inputs: torch.Tensor, outputs: torch.Tensor) -> list[list[float]]:
    return torch.stack((inputs, outputs), dim=1)[:GRID].tolist()


def _histogram(values: torch.Tensor) -> dict[str, list[float]]:
    low, high = float(values.min()), float(values.max())
    if high == low:
        low, high = low - 0.5, high + 0.5
    counts = torch.histc(values, bins=32, min=low, max=high)
    return {"edges": torch.linspace(low, high, 33, dtype=torch.float64).tolist(), "counts": counts.tolist()}


def draw_probe(row: Mapping[str, Any]) -> Figure:
    """The curve over its input, the one at the start of training, and where the batch lies; or points of the batch."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # a quarter of a second that other runs save
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.2))
    FigureCanvasAgg(figure)  # not pyplot, which would choose a backend for the whole process
    axis = figure.subplots()
    figure.subplots_adjust(left=0.13, bottom=0.16, right=0.97, top=0.96)  # a layout engine takes longer than the rest
    edges, counts = row["inputs"]["edges"], row["inputs"]["counts"]
    heights = [count / max(counts) / 1.05 for count in counts]
    axis.stairs(heights, edges, fill=True, color="0.88", transform=axis.get_xaxis_transform())  # no scale of its own
    if "points" in row:
        axis.plot(*zip(*row["points"], strict=True), ".", color="C0", label="samples")
    else:
        axis.plot(row["grid"], row["start_curve"], "--", color="0.5", label="at the start")
        axis.plot(row["grid"], row["curve"], color="C0", label="now")
    axis.set_xlabel(f"{row['input_name']} (grey: the batch)")
    axis.set_ylabel(row["output_name"])
    axis.legend(frameon=False)
    return figure
