"""Pictures of learned losses: of what the run has learned, and where a reader would look for it."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text

from benchmarks import learned_loss
from metarl import config
from metarl.data.recipes import make_dataset
from metarl.training import offline
from metarl.training.progress import Silent

BASE = """
name: {name}
algorithm: {{name: {algorithm}, hidden: [8, 8], batch_size: 16}}
objective: {objective}
online: {{env: {env}, random_steps: 10}}
data: {{demo: {demo}}}
steps: 40
evaluation: {{every: 20, episodes: 1}}
log_every: 20
compile: "off"
device: cpu
"""
NAVIGATION = {"env": "metarl/SparseNavigation-v0", "demo": "{recipe: navigation/detour, size: 300}"}
GILD = "{name: gild, net: {hidden: [8, 8]}, batch_size: 16, weight: 2.0, il_weight: 3.0}"


@pytest.fixture(scope="module")
def runs(made, tmp_path_factory):
    """Run folders by name, each of a few steps."""
    root = tmp_path_factory.mktemp("learned_loss")
    rng = np.random.default_rng(0)
    action = rng.uniform(-1, 1, (20, 3)) * (0.9, 0.1, 0.5)
    ends = {"rewards": np.zeros(20), "terminals": np.zeros(20, bool), "timeouts": np.arange(20) == 19}
    np.savez(root / "three.npz", observations=rng.normal(size=(20, 11)), actions=action, **ends)
    kinds = {
        "two": NAVIGATION | {"algorithm": "td3", "objective": GILD},
        "sampled": NAVIGATION | {"algorithm": "sac", "objective": GILD},
        "warm": NAVIGATION | {"algorithm": "ddpg", "objective": GILD[:-1] + ", warm_start: 10}"},
        "plain": NAVIGATION | {"algorithm": "td3", "objective": "{name: rl_il, batch_size: 16}"},
        "one": {
            "env": "Pendulum-v1",
            "demo": "{recipe: pendulum/expert, size: 600, tuples: 3}",
            "algorithm": "td3",
            "objective": GILD,
        },
        "three": {
            "env": "metarl/SparseHopper-v0",
            "demo": "{file: three.npz, env: Hopper-v5}",
            "algorithm": "td3",
            "objective": GILD,
        },
    }
    folders = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(made))
        make_dataset("navigation/detour", 300)
        for name, values in kinds.items():
            file = root / f"{name}.yaml"
            file.write_text(BASE.format(name=name, **values))
            folders[name] = offline.train(config.load(file), 0, root / "runs", Silent(), root)
    return folders


def find(runs, name):
    return learned_loss.find(runs[name], runs[name].parents[2])


def shown(figure: Figure) -> list[str]:
    """Every text of a figure and of its parts."""
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


@pytest.mark.parametrize(
    ("name", "n", "panels", "labels"),
    [
        ("two", 3, 4 * 4, {"action 1, bound ±1", "action 2, bound ±1", "demonstration, step 75"}),
        ("sampled", 1, 4 * 2, {"action 1, bound ±1", "demonstration, step 75"}),
        ("one", 4, 3 * 4, {"action, bound ±2", "demonstration, row 0", "demonstration, row 2"}),
        ("three", 2, 3 * 3, {"action 1, bound ±1", "action 3, bound ±1", "demonstration, step 14"}),
    ],
)
def test_every_state_has_its_panels_and_every_axis_its_name(runs, name, n, panels, labels):
    figure, notes = learned_loss.drawn(find(runs, name), n)
    assert len(figure.axes) == panels
    texts = shown(figure)
    assert labels <= set(texts)
    assert {"2 G(a, s, a_d): learned", "−Q(s, a): reinforcement", "3 mean (a − a_d)²: cloning"} <= set(texts)
    assert {"demonstrated action", "the policy's action", "where the loss pushes it"} <= set(texts)
    assert ("1 and 3 vary most" in " ".join(notes)) == (name == "three")
    words = " ".join(" ".join(texts).split())
    assert all(note in words for note in notes)


def test_the_losses_are_those_that_trained(runs):
    """G is the probe's, Q and cloning the policy's own terms, with the weights of the objective."""
    found = find(runs, "two")
    learner, tree = found.policy.learner, found.policy.tree
    rows = torch.arange(0, 300, 17)
    demo = {"obs": found.demo.obs[rows].double(), "action": found.demo.action[rows].double()}
    batches = {"demo": demo, "noise": {}}
    action = learner.policy.action(tree, demo["obs"], {})
    learned, rl, cloning = (loss(action, demo["obs"], demo["action"]) for loss in found.losses.values())
    torch.testing.assert_close(learned, 2 * learner.probes["loss_network"].sample(tree, batches)[1])
    torch.testing.assert_close(rl, -learner.policy.q(tree, demo["obs"], action))
    torch.testing.assert_close(cloning.mean(), 3 * learner.policy.imitation(tree, demo, {}))


def test_slopes_are_central_differences(runs):
    found = find(runs, "two")
    (state,) = learned_loss.states(found, 1)
    at = [x[None] for x in (state.policy * 0.5, state.obs, state.demonstrated)]
    for loss in found.losses.values():
        (slope,) = learned_loss.slopes(loss, *at)
        for i in range(2):
            step = 1e-6 * torch.eye(2, dtype=torch.float64)[i]
            central = (loss(at[0] + step, *at[1:]) - loss(at[0] - step, *at[1:])) / 2e-6
            assert float(slope[i]) == pytest.approx(float(central), rel=1e-4, abs=1e-8)


def test_a_surface_has_the_second_action_upwards_and_the_others_as_demonstrated(runs):
    found = find(runs, "three")
    (state,) = learned_loss.states(found, 1)
    values = learned_loss.surface(lambda a, s, d: a @ a.new_tensor([1.0, 10.0, 100.0]), state, (0, 2), (1.0, 1.0, 4.0))
    held = 10 * float(state.demonstrated[1])
    assert values[0, 0] == pytest.approx(held - 401) and values[-1, 0] == pytest.approx(held + 399)
    assert values[0, -1] == pytest.approx(held - 399)
    figure, _ = learned_loss.drawn(found, 1)
    image = figure.axes[0].images[0]
    assert image.origin == "lower" and image.get_extent() == [-1, 1, -1, 1]
    drawn = learned_loss.surface(found.losses["2 G(a, s, a_d): learned"], state, (0, 2), found.high)
    np.testing.assert_allclose(image.get_array(), drawn - drawn.min())


def test_states_lie_evenly_on_one_episode_and_the_policy_acts_there(runs):
    found = find(runs, "two")
    chosen = learned_loss.states(found, 5)
    assert [len(state.path) for state in chosen] == [16, 46, 76, 106, 136]
    for state in chosen:
        row = len(state.path) - 1
        assert torch.equal(state.demonstrated, found.demo.action[row].double())
        np.testing.assert_array_equal(state.path, found.demo.obs[: row + 1])
        action, _ = found.policy(state.path[-1:])
        np.testing.assert_allclose(state.policy, action[0])
    assert [state.title for state in learned_loss.states(find(runs, "one"), 3)] == [
        f"demonstration, row {row}" for row in range(3)
    ]


def test_marks_stand_where_the_actions_are(runs):
    found = find(runs, "two")
    figure, _ = learned_loss.drawn(found, 2)
    for axis, state in zip((figure.axes[3], figure.axes[4]), learned_loss.states(found, 2), strict=True):
        marks = {line.get_marker(): line.get_xydata()[0] for line in axis.lines}
        np.testing.assert_allclose(marks["o"], state.policy)
        np.testing.assert_allclose(marks["*"], state.demonstrated)
        loss = found.losses["2 G(a, s, a_d): learned"]
        push = -learned_loss.slopes(loss, state.policy[None], state.obs[None], state.demonstrated[None])[0]
        (arrow,) = [a for a in axis.texts if getattr(a, "arrow_patch", None) is not None]
        way = np.array(arrow.xy) - np.array(arrow.xyann)  # its head is at xy
        np.testing.assert_allclose(way / np.linalg.norm(way), push / push.norm(), atol=1e-6)


def test_a_constant_is_called_one(runs):
    found = find(runs, "two")
    constant = {"G": lambda a, s, d: 0.0 * a.sum(-1) + 0.693}
    others = dict(list(found.losses.items())[1:])
    figure, notes = learned_loss.drawn(replace(found, losses=constant | others), 2)
    assert notes[-1].endswith("it says nothing of them.") and shown(figure).count("constant") == 2
    assert "constant" not in shown(learned_loss.drawn(found, 2)[0])


def test_after_its_warm_start_a_run_is_drawn_and_it_is_said(runs, capsys):
    assert learned_loss.main([str(runs["warm"]), "--states", "1"]) == 0
    assert "The warm start ended after gradient step 10:" in capsys.readouterr().out
    assert (runs["warm"] / "learned_loss.png").read_bytes().startswith(b"\x89PNG")
    assert "warm start" not in " ".join(learned_loss.drawn(find(runs, "two"), 1)[1])


def test_the_command_writes_where_it_is_told(runs, tmp_path, capsys):
    out = tmp_path / "some.png"
    for _ in range(2):  # the second replaces the first
        assert learned_loss.main([str(runs["two"]), "--out", str(out), "--states", "1"]) == 0
    assert out.read_bytes().startswith(b"\x89PNG") and not (runs["two"] / "learned_loss.png").exists()
    printed = capsys.readouterr().out
    assert re.search(r"some\.png: two-\w+, seed 0, step 40\n", printed) and "1,000" not in printed
    assert "in 300 demonstrated states" in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{nowhere}"], "holds no run"),
        (["{plain}"], "(objectives: RLIL); choose a run of gild"),
        (["{fresh}"], "has no checkpoint yet"),
        (["{two}", "--states", "0"], "--states must be 1 to 6, not 0"),
        (["{two}", "--states", "7"], "--states must be 1 to 6, not 7"),
        (["{two}", "--out", "{nowhere}/some.png"], "there is no folder"),
        (["{two}", "--out", "some.pdf"], "must end in .png"),
    ],
)
def test_mistakes_are_told_in_one_line(runs, tmp_path, capsys, arguments, words):
    fresh = tmp_path / "two-0" / "0"
    fresh.mkdir(parents=True)
    (fresh / "config.yaml").write_text((runs["two"] / "config.yaml").read_text())
    places = {name: str(run) for name, run in runs.items()} | {"fresh": fresh, "nowhere": tmp_path / "nowhere" / "0"}
    assert learned_loss.main([argument.format(**places) for argument in arguments]) == 2
    told = capsys.readouterr()
    assert told.err.startswith("error: ") and words in told.err and told.err.count("\n") == 1 and not told.out
