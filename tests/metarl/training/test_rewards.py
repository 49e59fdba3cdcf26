"""What a learner makes of the data's rewards: every role's, by the training data's returns, and seen by its losses."""

from __future__ import annotations

import pytest
import torch

from metarl import Rewards, config, nn
from metarl.data import Card
from metarl.data.recipes import make_dataset
from metarl.errors import ConfigError, DataError
from metarl.training.folder import RunFolder
from metarl.training.setup import prepare

MIX = "data.train={recipe: null, size: null, mix: [%s]}"  # in place of the recipe
MEDIUM = "{recipe: pendulum/medium, size: 1000}"
EXPERT = "{recipe: pendulum/expert, size: 1000, tuples: 50}"


@pytest.fixture
def ready(yaml):
    """`ready(*overrides, rewards="")`: the small experiment prepared; `rewards` in YAML's flow form."""

    def build(*overrides, rewards=""):
        asked = [f"algorithm.rewards={rewards}"] if rewards else []
        return prepare(config.load(yaml, ["precision=float64", *overrides, *asked]), 0)

    return build


@pytest.fixture
def factor(ready):
    """`factor(*overrides, rewards=...)`: by role, the factor of its rewards and what else has changed in its batch."""

    def compare(*overrides, rewards):
        plain, changed = (ready(*overrides, rewards=r).streams.batches(3) for r in ("", rewards))
        for role in ("train", "guide"):
            for column, values in plain[role].items():
                assert column == "reward" or torch.equal(values, changed[role][column]), (role, column)
        return {role: changed[role]["reward"] / plain[role]["reward"] for role in ("train", "guide")}

    return compare


def returns(level):
    return make_dataset(f"pendulum/{level}", 1000).transitions.returns()


def spread(*values):
    values = torch.cat(values)
    return 1000 / (values.max() - values.min())


def test_as_they_are_by_default(ready):
    assert ready().learner.rewards == Rewards() == Rewards(scale=1.0, shift=0.0, return_range=False)
    setup = ready()
    rows = torch.cat([setup.data["train"].reward, setup.data["guide"].reward]).double()
    for role in ("train", "guide"):
        assert torch.isin(setup.streams.batches(1)[role]["reward"], rows).all()


def test_scaled_and_then_shifted_in_every_role(ready):
    plain, changed = (ready(rewards=r).streams.batches(3) for r in ("", "{scale: 2.0, shift: -3.0}"))
    for role in ("train", "guide"):
        torch.testing.assert_close(changed[role]["reward"], 2 * plain[role]["reward"] - 3, rtol=1e-6, atol=1e-6)


def test_the_range_of_returns_is_that_of_the_training_data_in_every_role(factor):
    """As in IQL's train_offline.py: r * 1000 / (highest - lowest return); the guide's own range is another."""
    medium, expert = spread(returns("medium")), spread(returns("expert"))
    assert abs(medium / expert - 1) > 0.1
    for found in factor(rewards="{return_range: true}").values():
        torch.testing.assert_close(found, medium.expand_as(found), rtol=1e-6, atol=0)
    for found in factor(rewards="{return_range: true, scale: 0.5}").values():
        torch.testing.assert_close(found, (medium / 2).expand_as(found), rtol=1e-6, atol=0)


def test_the_shift_is_not_scaled_by_the_range(ready):
    plain, changed = (ready(rewards=r).streams.batches(3) for r in ("", "{return_range: true, shift: -1.0}"))
    expected = spread(returns("medium")) * plain["train"]["reward"] - 1
    torch.testing.assert_close(changed["train"]["reward"], expected, rtol=1e-6, atol=1e-6)


def test_the_range_is_that_of_the_episodes_that_are_kept(factor):
    best = returns("medium").sort(descending=True).values[:2]
    found = factor("data.train.top=0.4", rewards="{return_range: true}")["train"]
    torch.testing.assert_close(found, spread(best).expand_as(found), rtol=1e-6, atol=0)


@pytest.mark.parametrize("level", ["medium", "expert"])
def test_single_tuples_in_a_mixture_have_no_returns(factor, level):
    whole = f"{{recipe: pendulum/{level}, size: 1000}}"
    found = factor(MIX % f"{whole}, {EXPERT}", rewards="{return_range: true}")["train"]
    torch.testing.assert_close(found, spread(returns(level)).expand_as(found), rtol=1e-6, atol=0)


def test_a_mixture_of_whole_episodes_has_the_range_of_all(factor):
    parts = f"{MEDIUM}, {{recipe: pendulum/expert, size: 1000}}"
    found = factor(MIX % parts, rewards="{return_range: true}")["train"]
    both = spread(returns("medium"), returns("expert"))
    torch.testing.assert_close(found, both.expand_as(found), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("train", "problem"),
    [
        ("data.train.tuples=100", "holds single transitions, which have no returns"),
        (MIX % f"{EXPERT}, {EXPERT}", "holds single transitions, which have no returns"),
        ("data.train.episodes=1", "every episode has the return -.*, so there is no range"),
    ],
    ids=["tuples", "mixture", "one-episode"],
)
def test_no_range_of_returns_is_one_clear_error(run, yaml, tmp_path, train, problem):
    settings = [train, "algorithm.rewards={return_range: true}"]
    with pytest.raises(DataError, match=rf"experiment\.yaml: data\.train, by whose returns .*: .*{problem}") as raised:
        run(*settings)
    assert "\n" not in str(raised.value) and not (tmp_path / "runs").exists()
    prepare(config.load(yaml, settings[:1]), 0)  # without the range there is nothing wrong with it


def test_a_misspelt_setting_is_refused(ready):
    with pytest.raises(ConfigError, match=r"key 'algorithm\.rewards\.return_rang'.*Did you mean 'return_range'"):
        ready(rewards="{return_rang: true}")


@pytest.mark.parametrize("name", ["td3_bc", "sac_bc", "cql", "iql"])
def test_every_algorithm_hands_them_on(ready, name):
    found = ready(f"algorithm.name={name}", rewards="{scale: 3.0, shift: 1.0, return_range: true}").learner
    assert found.rewards == Rewards(3.0, 1.0, True)


def test_the_losses_of_a_run_see_them(run, ready):
    """With discount 0 the first critic loss is the squared distance of both critics to the transformed rewards."""
    settings = ["precision=float64", "algorithm.discount=0.0", "steps=1", "log_every=1"]
    rewards = "{scale: 0.5, shift: 7.0, return_range: true}"
    plain = ready("algorithm.discount=0.0")
    batch = plain.streams.batches(1)["train"]
    q1, q2 = nn.call(
        plain.learner.modules["critic"], plain.start.tree["critic"], batch["obs"], batch["action"].double()
    )
    reward = 0.5 * spread(returns("medium")) * batch["reward"] + 7
    expected = (q1 - reward).square().mean() + (q2 - reward).square().mean()
    as_it_is = (q1 - batch["reward"]).square().mean() + (q2 - batch["reward"]).square().mean()
    folder = run(*settings, f"algorithm.rewards={rewards}", root="changed")
    assert first_critic_loss(folder) == pytest.approx(float(expected), rel=1e-6)
    assert first_critic_loss(run(*settings, root="plain")) == pytest.approx(float(as_it_is), rel=1e-9)
    again = RunFolder(folder).experiment().algorithm.rewards  # as a run reads itself back
    assert again == Rewards(0.5, 7.0, True)


def first_critic_loss(folder):
    lines = (folder / "metrics.csv").read_text().splitlines()
    (value,) = [line.split(",")[2] for line in lines if line.startswith("1,critic/loss,")]
    return float(value)


def test_the_card_of_a_run_still_tells_of_the_datas_own_rewards(ready):
    setup = ready(rewards="{scale: 2.0}")
    own = make_dataset("pendulum/medium", 1000).transitions.card
    assert isinstance(setup.data["train"].card, Card) and setup.data["train"].card.returns == own.returns
    assert setup.data["train"].card.sha256 == own.sha256


def test_what_is_watched_has_the_same_rewards(ready):
    setup = ready("watch=[guide]", rewards="{scale: 2.0, shift: 1.0}")
    expected = 2 * setup.data["guide"].reward.double() + 1
    torch.testing.assert_close(setup.watched["guide"].reward, expected, rtol=1e-6, atol=1e-6)


def test_the_range_of_the_best_of_a_mixture_is_their_own(factor):
    parts = f"{MEDIUM}, {{recipe: pendulum/expert, size: 1000}}"
    best = torch.cat([returns("medium"), returns("expert")]).sort(descending=True).values[:3]
    found = factor(MIX.replace("mix:", "top: 0.3, mix:") % parts, rewards="{return_range: true}")["train"]
    torch.testing.assert_close(found, spread(best).expand_as(found), rtol=1e-6, atol=0)
