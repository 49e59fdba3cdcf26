"""Which policy of a set acts: the numbers by hand from a run's files, and what the picture shows of them."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import safetensors.torch
import torch
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch
from matplotlib.text import Text

from benchmarks import choice
from metarl import config, nn
from metarl.data.recipes import make_dataset
from metarl.errors import CheckpointError
from metarl.training import offline
from metarl.training.progress import Silent

OFFLINE, ONLINE = 20, 100
BASE = """
name: {name}
algorithm: {{name: iql, hidden: [16], batch_size: 16, normalize: {normalize}, {optimizers}}}
objective: {objective}
data: {{train: {{recipe: {data}, size: 600}}}}
online: {{from_data: 0.5, learn_from: {learn_from}}}
steps: {{offline: 20, online: {online}}}
evaluation: {{every: 40, episodes: 1}}
log_every: {log_every}
checkpoint: {{every: 20, keep: 9}}
compile: "off"
device: cpu
"""
PEX = "{{name: pex, hidden: [16], inverse_temperature: 30.0, {more}}}"
USUAL = {
    "normalize": "false",
    "optimizers": "critic_optimizer: {name: adam, lr: 0.01}",
    "objective": PEX.format(more="entropy: null"),
    "data": "pendulum/medium",
    "learn_from": 20,
    "online": ONLINE,
    "log_every": 10,
}
KINDS = {
    "swing": {},
    "growing": {"objective": PEX.format(more="grow: [0.2, 0.6], entropy: 0.5"), "normalize": "true"},
    "keyed": {"data": "four_rooms_key/medium"},
    "plain": {"objective": "[]"},
}


@pytest.fixture(scope="module")
def runs(made, tmp_path_factory):
    """Run folders by name, each of a few steps."""
    root = tmp_path_factory.mktemp("choice")
    folders = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(made))
        make_dataset("four_rooms_key/medium", 600)
        for name, values in KINDS.items():
            file = root / f"{name}.yaml"
            file.write_text(BASE.format(name=name, **(USUAL | values)))
            folders[name] = offline.train(config.load(file), 0, root / "runs", Silent(), root)
    return folders


@pytest.fixture(scope="module")
def found(runs):
    """What is drawn of them."""
    return {name: choice.find(runs[name]) for name in ("swing", "growing", "keyed")}


@pytest.fixture
def copy(runs, tmp_path):
    """`copy(name)`: a run's folder, to be changed."""
    return lambda name: shutil.copytree(runs[name], tmp_path / "runs" / name / "0")


def shown(figure: Figure) -> str:
    return " ".join(" ".join(text.get_text() for text in figure.findobj(Text) if text.get_text()).split())


def recorded(folder, metric):
    with (folder / "metrics.csv").open() as file:
        return [float(row["value"]) for row in csv.DictReader(file) if row["metric"] == metric]


def by_hand(run, states, sizes):
    """w(s) from the checkpoint's own tensors: each policy's mode, the lower of both Q, one softmax."""
    policy = run.policy
    saved = safetensors.torch.load_file(sorted((run.path / "checkpoint").glob("step-*"))[-1] / "tensors.safetensors")
    tree = {}
    for name, value in saved.items():
        if name.startswith("tree/"):
            _, group, key = name.split("/", 2)
            tree.setdefault(group, {})[key] = value.double()
    obs = torch.as_tensor(states, dtype=torch.float32)
    obs = obs if policy.statistics is None else policy.statistics(obs)
    obs, modules = obs.double(), policy.learner.modules
    high = torch.tensor([1.0, 1.0] if run.name == "keyed" else [2.0], dtype=torch.float64)
    groups = ["actor", *(f"policy_{i}" for i in range(1, sizes))]
    q = []
    for group in groups:
        action = nn.call(modules[group], tree[group], obs)[0] * high
        q.append(torch.minimum(*nn.call(modules["critic"], tree["critic"], obs, action)))
    kappa = tree["inverse_temperature"]["log"].exp() if "inverse_temperature" in tree else 30.0
    scores = (kappa * torch.stack(q, 1)).detach().numpy()
    e = np.exp(scores - scores.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize(("name", "sizes", "actions"), [("swing", 2, 1), ("growing", 4, 1), ("keyed", 2, 2)])
def test_the_numbers_are_those_of_the_runs_files(runs, found, name, sizes, actions):
    """Shares from metrics.csv, states from replay.bin by their place in a row, weights from the saved tensors."""
    one, folder = found[name], runs[name]
    numbers = choice.measure(folder)
    rows = np.fromfile(folder / "replay.bin", np.float32).reshape(-1, 2 * 3 + actions + 3)
    assert len(rows) == ONLINE == one.lived
    third = ONLINE // 3
    early, late = rows[:third, :3], rows[-third:, :3]
    np.testing.assert_array_equal(one.early, early)
    np.testing.assert_array_equal(one.late, late)
    share = recorded(folder, "online/policy_0")
    assert numbers["rows"] == len(share) == 10 and numbers["policies"] == sizes
    assert numbers["first"] == pytest.approx(np.mean(share[:2])) and numbers["last"] == pytest.approx(
        np.mean(share[-2:])
    )
    w = [by_hand(one.run, states, sizes) for states in (early, late)]
    np.testing.assert_allclose(one.early_weights, w[0], atol=1e-6)
    np.testing.assert_allclose(one.late_weights, w[1], atol=1e-6)
    newer = [x[:, 1:].sum(1) for x in w]
    assert numbers["early"] == pytest.approx(newer[0].mean(), abs=1e-6)
    assert numbers["late"] == pytest.approx(newer[1].mean(), abs=1e-6)
    assert numbers["std"] == pytest.approx(np.concatenate(newer).std(), abs=1e-6) and numbers["std"] > 1e-3
    assert numbers["states"] == 2 * third


def test_evaluations_are_those_on_record(runs, found):
    for name, metric in (("swing", "return"), ("keyed", "success")):
        values = recorded(runs[name], f"evaluation/{metric}")
        assert found[name].measured == metric and len(values) == 4
        assert [value for _, value in found[name].evaluated] == pytest.approx(values)
        assert [step for step, _ in found[name].evaluated] == [0, 40, 80, 120]


def test_a_run_in_progress_is_read_as_of_its_checkpoint(runs, copy):
    """What it has lived through and logged since is not looked at, and its log is left alone."""
    folder = copy("swing")
    before = choice.measure(folder)
    with (folder / "replay.bin").open("ab") as file:
        file.write(np.full(10 * 10 + 3, 7.0, np.float32).tobytes())
    with (folder / "metrics.csv").open("a") as file:
        file.writelines(f"{step},online/policy_{i},{i}\n" for step in (130, 140, 150) for i in (0, 1))
    size = (folder / "replay.bin").stat().st_size
    assert choice.measure(folder) == before
    assert (folder / "replay.bin").stat().st_size == size
    figure, _ = choice.drawn([choice.find(folder)])
    assert figure.axes[1].get_xlim()[1] == pytest.approx(1.01 * 120)


def test_a_sample_is_seeded_and_of_both_thirds(runs, found):
    few, again = (choice.find(runs["swing"], states=7) for _ in range(2))
    for part, whole in ((few.early, found["swing"].early), (few.late, found["swing"].late)):
        assert len(part) == 7 and {tuple(x) for x in part} <= {tuple(x) for x in whole}
    np.testing.assert_array_equal(few.late, again.late)
    assert choice.measure(few)["states"] == 14


def test_areas_are_the_shares_and_dots_the_weights(found):
    one = found["growing"]
    figure, notes = choice.drawn([one])
    upper, lower, *maps = figure.axes
    areas = [patch.get_data() for patch in upper.patches if isinstance(patch, StepPatch)]
    assert len(areas) == 4
    for i, (top, edges, base) in enumerate(areas):
        np.testing.assert_allclose(top - base, one.shares[:, i], atol=1e-12)
        np.testing.assert_array_equal(edges, [OFFLINE, *one.steps])
    np.testing.assert_allclose(areas[-1].values, 1)
    assert (one.shares[:2, 2:] == 0).all() and (one.shares[-2:, 3] > 0).any()  # the third and the fourth join later
    np.testing.assert_array_equal(lower.lines[0].get_xydata(), one.evaluated)
    assert all(axis.lines[-1].get_xdata() == [OFFLINE, OFFLINE] for axis in (upper, lower))
    for axis, states, weights in zip(maps, (one.early, one.late), (one.early_weights, one.late_weights), strict=False):
        (dots,) = [c for c in axis.collections if isinstance(c, PathCollection)]
        at, order = dots.get_offsets(), np.argsort(dots.get_offsets()[:, 0], kind="stable")
        angle = np.arctan2(states[:, 1], states[:, 0])
        mine = np.argsort(angle, kind="stable")
        np.testing.assert_allclose(at[order], np.stack((angle, states[:, 2]), 1)[mine])
        np.testing.assert_allclose(dots.get_array()[order], 1 - weights[mine, 0])
    texts = shown(figure)
    assert "States met online, first third" in texts and "steps 21 to 53" in texts and "steps 88 to 120" in texts
    assert "to 20 on data" in texts and "Return of the evaluations (dashed: the switch)" in texts and "newer 3" in texts
    assert " ".join(notes[0].split()) in texts and "3 newer policies' weight together" in notes[0]


def test_many_rows_are_drawn_as_means(found):
    one = found["swing"]
    n = 4 * choice.PARTS
    shares = np.random.default_rng(0).random((n, 1))
    many = replace(one, steps=OFFLINE + 1 + np.arange(n), shares=np.concatenate((shares, 1 - shares), 1))
    figure, _ = choice.drawn([many])
    area = figure.axes[0].patches[0].get_data()
    np.testing.assert_allclose(area.values, shares.reshape(-1, 4).mean(1))
    np.testing.assert_array_equal(area.edges, [OFFLINE, *many.steps[3::4]])


def test_with_a_key_there_are_maps_without_and_with_it(found):
    one = found["keyed"]
    held = one.late.copy()
    held[: len(held) // 4, 2] = 1
    figure, _ = choice.drawn([replace(one, late=held)])
    assert shown(figure).count(", without the key") == shown(figure).count(", with the key") == 2
    maps = [axis for axis in figure.axes if any(isinstance(c, PathCollection) for c in axis.collections)]
    keyed = [int((x[:, 2] > 0.5).sum()) for x in (one.early, held)]
    assert keyed[1] >= len(held) // 4
    counts = [len(axis.collections[0].get_offsets()) for axis in maps]
    assert counts == [*(len(one.late) - k for k in keyed), *keyed]
    np.testing.assert_allclose(
        np.sort(maps[0].collections[0].get_offsets(), 0), np.sort(one.early[one.early[:, 2] < 0.5, :2], 0)
    )


def test_elsewhere_states_are_seen_on_principal_components(found):
    one = found["swing"]
    elsewhere = replace(one, run=replace(one.run, env=gym.spec("Hopper-v5").to_json()))
    place = choice.plane(elsewhere)
    every = np.concatenate((one.early, one.late))
    variances = np.linalg.eigvalsh(np.corrcoef(every.T))[::-1]
    both = np.concatenate((place.early, place.late))
    np.testing.assert_allclose(both.var(0), variances[:2], rtol=1e-6)
    assert place.x == f"component 1 ({variances[0] / 3:.0%} of the variance)" and "Principal components" in place.note
    assert "Principal components of these states" in shown(choice.drawn([elsewhere])[0])


def test_the_command_draws_a_row_per_run(runs, tmp_path, capsys):
    out = tmp_path / "some.png"
    assert choice.main([str(runs["swing"]), str(runs["keyed"]), "--out", str(out)]) == 0
    assert choice.main([str(runs["growing"])]) == 0
    for file in (out, runs["growing"] / "choice.png"):
        assert file.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "some.png\n" in printed
    for name in ("swing", "keyed", "growing"):
        assert f"{name}, seed 0, step 120: The offline policy gave " in printed


def test_a_run_without_its_data_is_drawn(runs, found, tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    assert choice.measure(runs["swing"]) == choice.measure(found["swing"])


def test_a_log_that_is_cut_is_told(copy):
    folder = copy("swing")
    (folder / "replay.bin").write_bytes((folder / "replay.bin").read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=r"replay\.bin is missing or shorter than at the checkpoint"):
        choice.find(folder)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere", "holds no run"),
        ("plain", "has no set of policies to choose from (objectives: none); choose a run of pex"),
        ("young", "has taken no online step yet (its checkpoint is of step 20, and 20 are on data alone)"),
        ("waiting", "metrics.csv has no row of online actions chosen by the set; train it further"),
    ],
)
def test_mistakes_are_told_in_one_line(runs, copy, tmp_path, capsys, name, words):
    path = runs.get(name, tmp_path / name / "0")
    if name == "young":  # as it was at the switch
        path = copy("swing")
        for later in sorted((path / "checkpoint").iterdir())[1:]:
            shutil.rmtree(later)
    if name == "waiting":  # as it was before the first row
        path = copy("swing")
        rows = (path / "metrics.csv").read_text().splitlines(keepends=True)
        (path / "metrics.csv").write_text("".join(row for row in rows if "online/policy" not in row))
    assert choice.main([str(path)]) == 2
    told = capsys.readouterr()
    assert told.err.startswith("error: ") and words in told.err and told.err.count("\n") == 1 and not told.out


def test_a_picture_is_a_png(runs, capsys):
    assert choice.main([str(runs["swing"]), "--out", "some.pdf"]) == 2
    assert "must end in .png" in capsys.readouterr().err
