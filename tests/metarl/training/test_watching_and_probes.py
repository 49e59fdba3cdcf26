"""Learned functions without a curve, probes of other roles, cloning on watched data, hypergradients of exactly zero."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace

import pytest
import torch
from torch.distributions import Normal

from metarl import Probe
from metarl.config import build, load
from metarl.errors import NumericalError
from metarl.training import offline, run, watching
from metarl.training.progress import Silent
from metarl.training.recorder import GRID, draw_probe, examine
from metarl.training.setup import prepare

EXPERIMENT = {
    "algorithm": {"name": "td3_bc", "hidden": [8], "batch_size": 16},
    "objective": {"name": "gild", "batch_size": 90, "net": {"hidden": [8]}},
    "data": {
        "train": {"recipe": "pendulum/medium", "size": 1000},
        "demo": {"recipe": "pendulum/expert", "size": 1000},
        "other": {"recipe": "pendulum/expert", "size": 1000, "tuples": 37},
    },
    "steps": 4,
    "evaluation": {"every": 2, "episodes": 1},
    "watch": ["other"],
}


def setup_of(**changes):
    return prepare(build({**EXPERIMENT, **changes}, "here"), 0)


def rows_of(data):
    return data.layout.split(data.rows)


# -- probes --------------------------------------------------------------------------------------------------


def points(scale):
    """A function of two numbers, watched by the first."""

    def sample(tree, batches):
        x = batches["demo"]["x"]
        return x[:, 0], scale * tree["w"]["w"] * x.sum(-1)

    return sample


def examined(n=100, curve=None):
    tree, start = {"w": {"w": torch.tensor(3.0)}}, {"w": {"w": torch.tensor(1.0)}}
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(0))
    return x, *examine(Probe("w", points(2.0), curve, "first", "product", role="demo"), tree, start, {"demo": {"x": x}})


def test_a_probe_without_a_curve_keeps_points_of_the_batch():
    x, row, scalars, outputs = examined()
    wanted = 6 * x.sum(-1).double()
    assert torch.allclose(outputs, wanted, rtol=1e-6) and outputs.dtype == torch.float64
    assert len(row["points"]) == GRID and not {"grid", "curve", "start_curve"} & set(row)
    for (at, value), one, y in zip(row["points"], x[:, 0], wanted, strict=False):
        assert at == pytest.approx(float(one)) and value == pytest.approx(float(y), rel=1e-5)
    assert scalars["mean"] == pytest.approx(float(wanted.mean()), rel=1e-5)
    assert scalars["std"] == pytest.approx(float(wanted.std(correction=0)), rel=1e-5)
    assert scalars["moved"] == pytest.approx(float((2 / 3 * wanted).abs().mean()), rel=1e-5)
    assert sum(row["inputs"]["counts"]) == sum(row["outputs"]["counts"]) == 100
    assert json.loads(json.dumps(row)) == row


def test_a_small_batch_gives_all_its_points():
    assert len(examined(5)[1]["points"]) == 5


def test_points_are_drawn_as_points_and_curves_as_curves():
    _, row, *_ = examined()
    (axis,) = draw_probe(row).axes
    (line,) = axis.lines
    assert line.get_linestyle() == "None" and line.get_marker() == "." and len(line.get_xdata()) == GRID
    assert [*zip(line.get_xdata(), line.get_ydata(), strict=True)] == [tuple(point) for point in row["points"]]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["samples"]
    assert axis.get_xlabel() == "first (grey: the batch)" and axis.get_ylabel() == "product"
    _, row, *_ = examined(curve=lambda tree, grid: tree["w"]["w"] * grid)
    assert "points" not in row and len(row["grid"]) == len(row["curve"]) == len(row["start_curve"]) == GRID
    labels = [line.get_label() for line in draw_probe(row).axes[0].lines]
    assert labels == ["at the start", "now"]


def test_gilds_probe_looks_at_demonstrations():
    setup = setup_of()
    probe = setup.learner.probes["loss_network"]
    batches, tree = setup.streams.batches(1), setup.start.tree
    assert (probe.group, probe.role, probe.curve) == ("loss_network", "demo", None)
    row, scalars, outputs = examine(probe, tree, tree, batches)
    demo = batches["demo"]
    action = setup.learner.policy.action(tree, demo["obs"], {})
    distance = (action - demo["action"]).square().mean(-1).sqrt()
    assert outputs.shape == (90,) and (outputs > 0).all() and scalars["moved"] == 0
    assert [at for at, _ in row["points"]] == pytest.approx(distance[:GRID].tolist())
    w, x = tree["loss_network"], torch.cat((action, demo["obs"], demo["action"]), -1)
    hidden = torch.relu(x @ w["layers.0.weight"] + w["layers.0.bias"])
    loss = torch.nn.functional.softplus(hidden @ w["layers.1.weight"] + w["layers.1.bias"])[:, 0]
    assert torch.allclose(outputs, loss.double(), rtol=1e-5)


def test_a_run_writes_and_draws_a_probe_without_a_curve(yaml, tmp_path):
    overrides = (
        "objective={name: gild, batch_size: 70, net: {hidden: [8]}}",
        "data.demo={recipe: pendulum/expert, size: 1000}",
        "watch=[demo]",
        "steps=20",
    )
    folder = offline.train(load(yaml, overrides), 0, tmp_path / "runs", Silent())
    probes = [json.loads(line) for line in (folder / "probes.jsonl").read_text().splitlines()]
    assert [(probe["step"], probe["probe"], len(probe["points"])) for probe in probes] == [
        (0, "loss_network", GRID),
        (20, "loss_network", GRID),
    ]
    assert probes[0]["moved"] == 0 < probes[1]["moved"]
    names = {line.split(",")[1] for line in (folder / "metrics.csv").read_text().splitlines()[1:]}
    assert {"watch/demo/imitation", "watch/demo/improvement", "loss_network/output_mean"} <= names
    assert "watch/demo/loss_network" not in names  # it does not look at training batches


def test_only_probes_of_training_batches_look_at_watched_data():
    setup = setup_of()
    batches, tree = setup.streams.batches(1), setup.start.tree
    own = Probe("actor", lambda t, b: (b["train"]["reward"], b["train"]["reward"] + 1), None, "reward", "more")
    asked = []

    def elsewhere(tree, batches):
        asked.append(1)
        return batches["demo"]["reward"], batches["demo"]["reward"]

    learner = setup.learner.with_probes(own=own, other=replace(own, sample=elsewhere, role="demo"))
    found = watching.terms(learner, tree, setup.watched["other"], batches)
    assert "other" not in found and "loss_network" not in found and not asked
    assert found["own"] == pytest.approx(float(rows_of(setup.watched["other"])["reward"].double().mean()) + 1, rel=1e-6)


# -- cloning on watched data ---------------------------------------------------------------------------------


@pytest.mark.parametrize("tuples", [37, 32, 5, 16, 1])
def test_the_cloning_loss_is_the_exact_mean_over_all_rows(tuples):
    """Also where the last batch is not full: a mean of batches' means would weigh its rows more."""
    setup = setup_of(
        data={**EXPERIMENT["data"], "other": {"recipe": "pendulum/expert", "size": 1000, "tuples": tuples}}
    )
    batches, tree, rows = setup.streams.batches(1), setup.start.tree, rows_of(setup.watched["other"])
    assert len(rows["obs"]) == tuples and len(batches["train"]["obs"]) == 16
    found = watching.terms(setup.learner, tree, setup.watched["other"], batches)
    each = (setup.learner.policy.action(tree, rows["obs"], {}) - rows["action"]).square().mean(-1).double()
    assert found["imitation"] == pytest.approx(float(each.mean()), rel=1e-6)
    assert found["constraint"] == pytest.approx(float(each.mean()), rel=1e-6)
    if tuples == 37:
        of_batches = torch.stack([part.mean() for part in each.split(16)]).mean()
        assert abs(of_batches - each.mean()) > 1e-4 * each.mean()


def test_of_a_stochastic_policy_it_is_the_cross_entropy():
    setup = setup_of(algorithm={"name": "sac", "hidden": [8], "batch_size": 16}, precision="float64")
    batches, tree, rows = setup.streams.batches(1), setup.start.tree, rows_of(setup.watched["other"])
    found = watching.terms(setup.learner, tree, setup.watched["other"], batches)
    actor, obs = tree["actor"], rows["obs"]
    hidden = torch.relu(obs @ actor["net.layers.0.weight"] + actor["net.layers.0.bias"])
    out = hidden @ actor["net.layers.1.weight"] + actor["net.layers.1.bias"]
    mean, log_std = out.chunk(2, -1)
    unit = (rows["action"] / 2).clamp(-1 + 1e-6, 1 - 1e-6)  # Pendulum's bound is 2
    log_prob = Normal(mean, log_std.clamp(-20, 2).exp()).log_prob(torch.atanh(unit)) - torch.log1p(-unit.square())
    assert found["imitation"] == pytest.approx(float(-log_prob.sum(-1).mean()), rel=1e-10)
    assert "constraint" not in found and math.isfinite(found["improvement"])


# -- hypergradients of exactly zero --------------------------------------------------------------------------

MUTE = '''
from dataclasses import dataclass

import torch

from metarl import Unrolled, Update, sgd


@dataclass(frozen=True)
class Mute:
    """A learned weight of nothing: its hypergradient is exactly zero."""

    def attach(self, learner, spec, generator):
        actor = learner.updates["actor"]

        def loss(tree, batches):
            value, metrics = actor.loss(tree, batches)
            return value * (1 + 0 * tree["weight"]["x"]), metrics

        def outer(tree, batches):
            return learner.policy.imitation(tree, batches["train"], {})

        learner = learner.with_tensors(weight={"x": torch.ones(())}).with_policy_loss(loss)
        meta = Update("weight", "weight", outer, sgd(0.1), Unrolled("actor", sgd(0.1)), every=actor.every)
        return learner.with_update_beside("actor", meta)
'''
ONLINE = ("data=null", "online={env: Pendulum-v1, random_steps: 20}")


class Listener(Silent):
    """Keeps what is said."""

    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)


@pytest.fixture
def mute(yaml, tmp_path, monkeypatch):
    """`mute(steps, *overrides)`: trains with a learned weight of nothing; what was said, and the run's folder."""
    own = tmp_path / "mute.py"
    own.write_text(MUTE)

    def train(steps, *overrides):
        said = Listener()
        settings = ("objective={name: 'mute:Mute'}", "algorithm.policy_every=1", "algorithm.normalize=false")
        settings += (f"steps={steps}", f"evaluation.every={steps}", "log_every=10", "checkpoint={every: 100}")
        folder = offline.train(load(yaml, [*settings, *overrides]), 0, tmp_path / "runs", said)
        return [text for text in said.said if text.startswith("warning")], folder

    yield train
    for name in [
        n for n, module in sys.modules.items() if getattr(module, "__file__", None) == str(tmp_path / "mute.py")
    ]:
        monkeypatch.delitem(sys.modules, name)


def test_offline_it_warns_once_and_then_stops(mute, monkeypatch):
    assert (run.ZERO_WARN, run.ZERO_STOP) == (50, 500)
    monkeypatch.setattr(run, "ZERO_WARN", 20)
    monkeypatch.setattr(run, "ZERO_STOP", 60)
    assert mute(10)[0] == []
    (text,), _ = mute(50, "name=longer")
    assert "hypergradient was exactly zero 20 times in a row" in text and "metarl check" in text
    assert "first reward" not in text
    with pytest.raises(NumericalError, match=r"update 'weight'.*hypergradient was exactly zero 60 times in a row"):
        mute(80, "name=long")


def test_online_it_only_warns(mute, monkeypatch):
    monkeypatch.setattr(run, "ZERO_WARN", 20)
    monkeypatch.setattr(run, "ZERO_STOP", 60)
    (text,), folder = mute(120, *ONLINE)
    assert text.endswith(", or wait for the first reward") and "update 'weight' (group 'weight')" in text
    assert json.loads((folder / "result.json").read_text())["steps"] == 120
