"""Where POR's guide leads: the numbers by the learner's own modules, and what the picture shows of them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.quiver import Quiver
from matplotlib.text import Text
from scipy import stats

from benchmarks import guide
from benchmarks.planes import Near, read
from metarl import config, nn
from metarl.data.recipes import make_dataset
from metarl.process import settle
from metarl.training import offline
from metarl.training.progress import Silent

BASE = """
name: {name}
algorithm: {algorithm}
objective: {objective}
data: {{train: {{recipe: {data}, size: 600}}}}
steps: 30
evaluation: {{every: 30, episodes: 1}}
log_every: 30
compile: "off"
device: cpu
"""
NONE = "{name: none, normalize: false}"
POR = "{name: por, hidden: [16, 16], execute_hidden: [16], batch_size: 32, guide_optimizer: {name: adam, lr: 1e-2}}"
KINDS = {
    "rooms": {"algorithm": NONE, "objective": POR, "data": "four_rooms/medium"},
    "keyed": {"algorithm": NONE, "objective": POR, "data": "four_rooms_key/medium"},
    "swing": {
        "algorithm": "{name: none, normalize: true}",
        "objective": POR[:-1] + ", form: v_guided, behaviour_steps: 5}",
        "data": "pendulum/medium",
    },
    "iql": {
        "algorithm": "{name: iql, hidden: [16], batch_size: 32}",
        "objective": POR[:-1] + ", value: base}",
        "data": "pendulum/medium",
    },
    "plain": {"algorithm": "{name: bc, hidden: [8]}", "objective": "[]", "data": "pendulum/medium"},
}


@pytest.fixture(scope="module")
def runs(made, tmp_path_factory):
    """Run folders by name, each of a few steps."""
    root = tmp_path_factory.mktemp("guide")
    folders = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(made))
        for name in ("four_rooms", "four_rooms_key"):
            make_dataset(f"{name}/medium", 600)
        for name, values in KINDS.items():
            file = root / f"{name}.yaml"
            file.write_text(BASE.format(name=name, **values))
            folders[name] = offline.train(config.load(file), 0, root / "runs", Silent(), root)
    return folders


def shown(figure: Figure) -> str:
    return " ".join(" ".join(text.get_text() for text in figure.findobj(Text) if text.get_text()).split())


@pytest.mark.parametrize("name", ["rooms", "keyed", "swing", "iql"])
def test_the_numbers_are_those_of_the_learners_own_modules(runs, name):
    """g, V and the distances written out: one pass of each network, all pairs of distances, intervals by episodes."""
    run = read(runs[name])
    policy, train = run.policy, run.train
    tree = {group: {k: v.double() for k, v in params.items()} for group, params in policy.tree.items()}
    kept = [i for i in range(len(train)) if train.terminated[i] == 0]
    obs, after = (
        (x if policy.statistics is None else policy.statistics(x)).double() for x in (train.obs, train.next_obs)
    )
    guide_net, value_net = (policy.learner.modules[group] for group in ("guide_policy", "value"))
    aim = nn.call(guide_net, tree["guide_policy"], obs[kept])[0]

    def v(x):
        out = nn.call(value_net, tree["value"], x)
        return torch.minimum(*out) if isinstance(out, tuple) else out.squeeze(-1)

    gain = (v(aim) - v(after[kept])).detach().numpy()
    scale = after.std(0, correction=0)
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    exact = "donot_use_mm_for_euclid_dist"
    distance = torch.cdist(aim / scale, after / scale, compute_mode=exact).min(1).values.detach().numpy()
    found = guide.measure(runs[name])
    assert found["states"] == len(kept)
    assert found["all"]["difference"] == pytest.approx(gain.mean(), abs=1e-6)
    assert found["all"]["above"] == pytest.approx((gain > 0).mean(), abs=2 / len(kept))
    assert found["all"]["distance"] == pytest.approx(distance.mean(), abs=1e-6)
    far = np.argsort(distance, kind="stable")[-round(len(kept) / 4) :]
    assert found["farthest"]["difference"] == pytest.approx(gain[far].mean(), abs=1e-4)
    assert found["farthest"]["distance"] == pytest.approx(distance[far].mean(), abs=1e-4)
    assert found["nearest"]["distance"] < found["all"]["distance"] < found["farthest"]["distance"]
    episode = train.episode_of_row()[kept].numpy()
    sums = [(gain[episode == e] - gain.mean()).sum() for e in np.unique(episode)]
    error = np.sqrt(np.var(sums, ddof=1) * len(sums)) / len(gain)
    half = (found["all"]["high"] - found["all"]["low"]) / 2
    assert half / error > 1.96 and found["all"]["low"] + half == pytest.approx(gain.mean(), abs=1e-6)
    assert half == pytest.approx(stats.t.ppf(0.975, len(sums) - 1) * error, rel=1e-3)


def test_a_guide_that_names_what_followed_gains_nothing(runs):
    """With g(s) = s' every difference and every distance is 0; the picture is still drawn."""
    run = read(runs["rooms"])
    found = guide.sample(run)
    same = replace(found, guide=found.next_obs, v_guide=found.v_next, distance=np.zeros_like(found.distance))
    numbers = guide.numbers(same)
    assert numbers["all"]["difference"] == 0 and numbers["all"]["above"] == 0 and numbers["outside"] == 0
    assert numbers["rank_correlation"] is None
    figure, notes = guide.drawn(same)
    assert "is 0 [0, 0] on average" in notes[0] and notes[0] in shown(figure)


def test_a_sample_is_seeded_and_without_terminal_rows(runs):
    run = read(runs["keyed"])
    rows = run.train.rows.clone()
    run.train.layout.split(rows)["terminated"][run.train.episode_starts[1:] - 1] = 1
    ended = replace(run, train=replace(run.train, rows=rows))
    ends = set((run.train.episode_starts[1:] - 1).tolist())
    every = guide.sample(ended)
    assert set(every.rows.tolist()) == set(range(len(rows))) - ends
    few, again = guide.sample(ended, 50), guide.sample(ended, 50)
    assert len(few.rows) == 50 and not ends & set(few.rows.tolist())
    np.testing.assert_array_equal(few.rows, again.rows)
    whole = dict(zip(every.rows.tolist(), every.distance, strict=True))
    np.testing.assert_allclose(few.distance, [whole[row] for row in few.rows.tolist()])


def test_states_of_a_normalised_learner_are_shown_as_they_are(runs):
    """The guide of `swing` names normalised states; drawn and kept are the environment's."""
    run = read(runs["swing"])
    found = guide.sample(run, 20)
    net = run.policy.learner.modules["guide_policy"]
    seen = run.policy.statistics(torch.as_tensor(found.obs))
    tree = {k: v.double() for k, v in run.policy.tree["guide_policy"].items()}
    mean = nn.call(net, tree, seen)[0].detach()
    back = mean * (run.policy.statistics.std + 1e-3) + run.policy.statistics.mean
    np.testing.assert_allclose(found.guide, back, atol=1e-5)


def test_points_and_arrows_stand_where_the_states_are(runs):
    found = guide.sample(read(runs["rooms"]))
    figure, _ = guide.drawn(found)
    for axis, to, v in zip(figure.axes[:2], (found.next_obs, found.guide), (found.v_next, found.v_guide), strict=True):
        (points,) = [c for c in axis.collections if isinstance(c, PathCollection)]
        np.testing.assert_allclose(points.get_offsets(), to[:, :2])
        np.testing.assert_allclose(points.get_array(), v)
        (arrows,) = [c for c in axis.collections if isinstance(c, Quiver)]
        rows = [int(np.abs(found.obs[:, :2] - at).sum(1).argmin()) for at in arrows.XY]
        moves = to[rows, :2] - found.obs[rows, :2]
        factor = np.sum(arrows.U * moves[:, 0] + arrows.V * moves[:, 1]) / np.sum(moves**2)
        np.testing.assert_allclose(np.stack((arrows.U, arrows.V), 1), factor * moves, atol=1e-9)
        times = f"arrows {round(factor)} times as long" if round(factor) > 1 else "arrows as long as the step"
        assert factor == pytest.approx(round(factor)) and times in shown(figure)


def test_with_a_key_there_are_maps_without_and_with_it(runs):
    figure, _ = guide.drawn(guide.sample(read(runs["keyed"])))
    texts = shown(figure)
    assert texts.count("without the key;") == texts.count("with the key;") == 2
    maps = [axis for axis in figure.axes if any(isinstance(c, PathCollection) for c in axis.collections)][:4]
    found = guide.sample(read(runs["keyed"]))
    inside = int((found.obs[:, 2] > 0.5).sum())
    assert [len(axis.collections[0].get_offsets()) for axis in maps] == [len(found.obs) - inside] * 2 + [inside] * 2


def test_elsewhere_both_clouds_are_seen_on_principal_components(runs):
    found = guide.sample(read(runs["iql"]))
    figure, notes = guide.drawn(found)
    assert "principal components" in notes[1]
    standard = (found.next_obs - found.next_obs.mean(0)) / found.next_obs.std(0)
    variances = np.linalg.eigvalsh(np.cov(standard.T, bias=True))[::-1]
    mine = figure.axes[0].collections[1].get_offsets()
    np.testing.assert_allclose(mine.var(0), variances[:2], rtol=1e-6)
    assert f"({variances[0] / variances.sum():.0%} of the variance" in shown(figure)


def test_the_nearest_is_found_where_denormals_are_zero():
    """Many points on either side of 0: scipy's tree, left to itself, would be built for ever."""
    settle()
    try:
        rng = np.random.default_rng(0)
        points = np.concatenate((rng.normal(size=(3000, 3)), np.zeros((3000, 3)), -np.ones((3000, 3))))
        points[:, 2] = points[:, 2] > 0.5
        places = rng.normal(size=(40, 3))
        distance, index = Near(points)(places)
    finally:
        torch.set_flush_denormal(False)
    every = np.linalg.norm(places[:, None] - points, axis=2)
    np.testing.assert_allclose(distance, every.min(1))
    np.testing.assert_allclose(every[np.arange(40), index], every.min(1))


def test_the_command_draws_each_run(runs, tmp_path, capsys):
    out = tmp_path / "some.png"
    assert guide.main([str(runs["rooms"]), "--out", str(out)]) == 0
    assert guide.main([str(runs["swing"])]) == 0
    for file in (out, runs["swing"] / "guide.png"):
        assert file.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "some.png: rooms, seed 0, step 30\n" in printed and printed.count("on average") == 2


def test_numbers_of_several_runs_are_kept(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(guide, "RESULTS", tmp_path / "por_guide.json")
    names = ("rooms", "swing")
    assert guide.main([*(str(runs[name]) for name in names), "--record"]) == 0
    assert "2 runs" in capsys.readouterr().out
    kept = json.loads((tmp_path / "por_guide.json").read_text())
    assert kept["environment"]["torch"]
    for name, one in zip(names, kept["runs"], strict=True):
        assert (one["name"], one["seed"], one["step"], one["labels"]) == (name, 0, 30, {})
        assert one["experiment"] == runs[name].parent.name
        assert {key: one[key] for key in guide.measure(runs[name])} == guide.measure(runs[name])
    assert [one["form"] for one in kept["runs"]] == ["residual", "v_guided"]
    assert kept["runs"][0]["dataset"].startswith("metarl/four_rooms/medium-600")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{nowhere}"], "holds no run"),
        (["{plain}"], "has no guide (objectives: none); choose a run of por"),
        (["{plain}", "--record"], "has no guide"),
        (["{rooms}", "--out", "some.pdf"], "must end in .png"),
        (["{rooms}", "{swing}", "--out", "some.png"], "--out is for the picture of one run"),
        (["{rooms}", "--record", "--out", "some.png"], "--out is for the picture of one run"),
    ],
)
def test_mistakes_are_told_in_one_line(runs, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.setattr(guide, "RESULTS", tmp_path / "por_guide.json")
    places = {name: str(run) for name, run in runs.items()} | {"nowhere": tmp_path / "nowhere" / "0"}
    assert guide.main([argument.format(**places) for argument in arguments]) == 2
    told = capsys.readouterr()
    assert told.err.startswith("error: ") and words in told.err and told.err.count("\n") == 1 and not told.out
    assert not (tmp_path / "por_guide.json").exists()
