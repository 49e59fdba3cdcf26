"""Authors' own code beside ours: how it is loaded, what either side is told, runs that are kept, verdict and page."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from benchmarks import official_por
from benchmarks.official import page
from benchmarks.official.command import PAGE, RECORDS, RESULTS, SAME, recorded
from benchmarks.official.comparison import OFFICIAL, OURS, Job, judge, run
from benchmarks.official.published import Published, Shim
from benchmarks.official_por import CELLS, FORMS, Cell, first_updates, loaded, main, official, ours, their_rows
from metarl import config
from metarl.data.recipes import make_dataset
from metarl.errors import UserError
from metarl.training.evaluation import EpisodeReturns
from metarl.training.progress import Silent
from metarl.training.setup import prepare

CHECKOUT = os.environ.get("METARL_POR_CHECKOUT")  # folder of a checkout of github.com/ryanxhr/POR
needs_checkout = pytest.mark.skipif(CHECKOUT is None, reason="METARL_POR_CHECKOUT names no checkout of ryanxhr/POR")
TINY = {
    "recipe": "pendulum/medium",
    "size": 600,
    "train_steps": 4,
    "hidden_dim": 8,
    "execute_dim": 8,
    "batch_size": 16,
    "episodes": 2,
    "figure": "return",
}
R, Q = (replace(cell, **TINY, pretrain_steps=3 * (cell.type == "por_q")) for cell in CELLS)

# -- loading ---------------------------------------------------------------------------------------------------


@pytest.fixture
def code(tmp_path):
    """A repository of two files, and what is known of it."""
    (tmp_path / "first.py").write_text(
        "import absent\nimport torch\nfrom second import x\ny = x + on\ngpu = torch.cuda.is_available()\n"
    )
    (tmp_path / "second.py").write_text("x = 1\n")
    files = (Path("first.py"), Path("second.py"))
    known = Published("--code", "owner/name", "abc1234", files, "", (Shim("x + on", "x + 1", "the name is missing"),))
    return replace(known, sha256=known.digest(tmp_path))


def test_a_checkout_is_run_with_its_shims_and_stand_ins(code, tmp_path, monkeypatch):
    mine = ModuleType("second")
    monkeypatch.setitem(sys.modules, "second", mine)
    absent = ModuleType("absent")
    with code.loaded(tmp_path, {"absent": absent}) as found:
        assert sys.modules["second"] is found["second"] and sys.modules["absent"] is absent
    assert found["first"].y == 2 and found["first"].absent is absent and found["first"].gpu is False
    assert sys.modules["second"] is mine and not {"first", "absent"} & set(sys.modules)
    assert "on" in (tmp_path / "first.py").read_text()


def test_folders_may_be_packages(tmp_path, monkeypatch):
    texts = {"main.py": "from code.a.one import x\n", "code/a/one.py": "from ..two import x\n", "code/two.py": "x = 0"}
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    shims = (Shim("x = 0", "x = 1", "0 is not 1", "code/two.py"),)
    known = Published("--code", "owner/name", "abc1234", tuple(map(Path, texts)), "", shims, packaged=True)
    mine = ModuleType("code")
    monkeypatch.setitem(sys.modules, "code", mine)
    with replace(known, sha256=known.digest(tmp_path)).loaded(tmp_path, {}) as found:
        assert sys.modules["code.a.one"] is found["code.a.one"]
    assert set(found) == {"main", "code.a.one", "code.two"} and found["main"].x == 1
    assert sys.modules["code"] is mine and not {"main", "code.a", "code.a.one", "code.two"} & set(sys.modules)
    (tmp_path / "code/two.py").write_text("x = 2")
    with pytest.raises(UserError, match=r"code/two\.py has 'x = 0' 0 times"):
        known.texts(tmp_path)


@pytest.mark.parametrize("name", ["first.py", "second.py"])
def test_other_content_is_refused_before_a_line_of_it_runs(code, tmp_path, name):
    ran = tmp_path / "ran"
    (tmp_path / name).write_text(f"open({str(ran)!r}, 'w').close()\n" + (tmp_path / name).read_text())
    refused = "--code .*: first.py or second.py is not as published, and no other code is run; check out commit abc1234"
    with pytest.raises(UserError, match=refused), code.loaded(tmp_path, {"absent": ModuleType("absent")}):
        pass
    assert not ran.exists() and "first" not in sys.modules


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "there is no second.py in it; name a checkout of github.com/owner/name"),
        ("", "first.py has 'x \\+ on' 0 times"),
        ("x + on; x + on", "first.py has 'x \\+ on' 2 times, where the version"),
    ],
)
def test_another_version_is_refused(code, tmp_path, text, words):
    if text is None:
        (tmp_path / "second.py").unlink()
    else:
        (tmp_path / "first.py").write_text(text)
    with pytest.raises(UserError, match=f"--code .*: {words}"):
        code.texts(tmp_path)


def test_a_folder_that_is_not_the_authors_por_is_refused(tmp_path, capsys):
    assert main(["--por", str(tmp_path)]) == 2
    assert "there is no por.py in it; name a checkout of github.com/ryanxhr/POR" in capsys.readouterr().err
    for name in official_por.PUBLISHED.files:
        (tmp_path / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    assert main(["--por", str(tmp_path)]) == 2
    assert "is not as published, and no other code is run; check out commit e692bb3" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


# -- both sides ------------------------------------------------------------------------------------------------

FAKES = {
    "por.py": """
import torch
import wandb
from IPython import embed

class POR:
    def __init__(self, **told):
        self.told, self.log, self.seen = told, [], []
        self.policy, self.goal_policy = told["policy"], told["goal_policy"]
        wandb.log({"p_loss": 0.0}, step=0)

    def pretrain_init(self, guide):
        self.guide = guide

    def update(self, name, observations, actions, next_observations, rewards, terminals):
        self.log.append(name)
        self.seen.append(torch.cat([observations, actions, next_observations, rewards[:, None], terminals[:, None]], 1))

    def pretrain(self, **batch):
        self.update("pretrain", **batch)

    def por_residual_update(self, **batch):
        self.update("residual", **batch)

    def por_qlearning_update(self, **batch):
        self.update("qlearning", **batch)
""",
    "policy.py": """
import torch

class GaussianPolicy:
    def __init__(self, obs_dim, act_dim, hidden_dim, n_hidden):
        self.sizes = (obs_dim, act_dim, hidden_dim, n_hidden)

    def act(self, obs, deterministic):
        assert deterministic and obs.shape[1] == self.sizes[0] and obs.dtype == torch.float32
        return torch.full((len(obs), self.sizes[1]), 9.0)
""",
    "value_functions.py": """
class TwinV:
    def __init__(self, *sizes, **told):
        self.sizes, self.told = sizes, told
""",
    "util.py": """
import torch
from sklearn import datasets

def set_seed(seed):
    torch.manual_seed(seed)

def torchify(x):
    return torch.from_numpy(x).float()

def return_range(dataset, max_episode_steps):
    assert max_episode_steps == 1000 and set(dataset) >= {"rewards", "terminals"}
    return -3.0, 1.0

def sample_batch(dataset, n):
    rows = torch.randint(len(dataset["rewards"]), (n,))
    return {k: v[rows] for k, v in dataset.items()}
""",
}


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    """Modules laid out as the authors', loaded as theirs are; they write down what they are told."""
    for name, text in FAKES.items():
        (tmp_path / name).write_text(text)
    known = replace(official_por.PUBLISHED, sha256=official_por.PUBLISHED.digest(tmp_path))
    monkeypatch.setattr(official_por, "PUBLISHED", known)
    return loaded(tmp_path)


@pytest.mark.parametrize("cell", [R, Q], ids=lambda cell: cell.type)
def test_the_authors_trainer_is_told_the_cell_and_run_in_their_order(fakes, cell, monkeypatch):
    made = []
    POR = fakes["por"].POR
    monkeypatch.setattr(fakes["por"], "POR", lambda **told: made.append(POR(**told)) or made[-1])
    result = official(fakes, cell, 1, Silent())
    (por,) = made
    updates = ["residual"] * 4 if cell.type == "por_r" else ["pretrain"] * 3 + ["qlearning"] * 4
    assert por.log == updates and all(rows.shape == (16, 9) for rows in por.seen)
    assert por.policy.sizes == (6, 1, 8, 2) and por.goal_policy.sizes == (3, 3, 8, 2)
    assert hasattr(por, "guide") == (cell.type == "por_q")
    vf = por.told["vf"]
    assert vf.sizes == (3,) and vf.told == {"layer_norm": False, "hidden_dim": 8, "n_hidden": 2}
    numbers = {k: v for k, v in por.told.items() if isinstance(v, int | float)}
    assert numbers == {
        "max_steps": 4,
        "tau": cell.tau,
        "alpha": cell.alpha,
        "discount": 0.99,
        "value_lr": 1e-4,
        "policy_lr": 1e-3,
    }
    again = official(fakes, cell, 1, Silent())
    assert (
        again == result and len(result.returns) == 2 and torch.equal(torch.stack(made[1].seen), torch.stack(por.seen))
    )


@pytest.mark.parametrize(("cell", "factor", "shift"), [(R, 1.0, -1.0), (Q, 250.0, 0.0)], ids=lambda x: str(x)[:12])
def test_the_authors_see_the_same_rows(fakes, cell, factor, shift):
    data = prepare(config.build(cell.experiment(), "test"), 0).data["train"]
    columns, found = data.layout.split(data.rows), their_rows(fakes, cell, data)
    names = ("observations", "actions", "next_observations", "terminals")
    for theirs, name in zip(names, ("obs", "action", "next_obs", "terminated"), strict=True):
        assert torch.equal(found[theirs], columns[name])
    torch.testing.assert_close(found["rewards"], columns["reward"] * factor + shift)


@pytest.mark.parametrize("cell", [R, Q, replace(Q, layer_norm=True, value_lr=3e-4, discount=0.9)])
def test_metarl_is_told_the_cell(cell):
    built = config.build(cell.experiment(), "test")
    (por,) = built.resolved["objective"]
    told = {
        "form": FORMS[cell.type],
        "expectile": cell.tau,
        "alpha": cell.alpha,
        "discount": cell.discount,
        "layer_norm": cell.layer_norm,
        "hidden": (8, 8),
        "execute_hidden": (8, 8),
        "batch_size": 16,
        "tau": 0.005,  # theirs: beta
        "log_std": (-5.0, 2.0),
        "decay": True,
    }
    assert {name: por[name] for name in told} == told
    rates = [por[f"{name}_optimizer"]["lr"] for name in ("value", "guide", "execute", "behaviour")]
    assert rates == [cell.value_lr, cell.policy_lr, cell.policy_lr, 1e-4]  # the last as their pretrain_init has it
    assert built.steps == cell.pretrain_steps + cell.train_steps
    assert cell.type == "por_r" or por["behaviour_steps"] == cell.pretrain_steps
    assert not built.algorithm.normalize


def test_metarls_side_is_its_last_evaluation(tmp_path):
    result = ours(R, 0, tmp_path, Silent())
    (file,) = tmp_path.glob("official-por_r-*/0/result.json")
    evaluations = json.loads(file.read_text())["evaluations"]
    assert [e["step"] for e in evaluations] == [0, 4]
    assert result == EpisodeReturns.from_dict(evaluations[-1]) and len(result.returns) == 2


# -- the real one ----------------------------------------------------------------------------------------------


@needs_checkout
@pytest.mark.parametrize("form", FORMS)
def test_the_authors_first_updates_are_ours(form, monkeypatch):
    code = loaded(Path(CHECKOUT))
    assert first_updates(code, form) < SAME
    monkeypatch.setattr(code["policy"], "LOG_STD_MAX", -0.1)  # another rule shows
    assert first_updates(code, form) > 1e-4


@pytest.fixture
def hopper(tmp_path, monkeypatch):
    """The cells on data with terminations, whose range of returns the authors' code can tell."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    make_dataset("hopper/random", 1500)
    return [replace(cell, recipe="hopper/random", size=1500) for cell in (R, Q)]


@needs_checkout
def test_the_authors_range_of_returns_is_ours(hopper):
    cell = hopper[1]
    setup = prepare(config.build(cell.experiment(), "test"), 0)
    rows = their_rows(loaded(Path(CHECKOUT)), cell, setup.data["train"])
    known = {
        tuple(obs.tolist()): float(reward) for obs, reward in zip(rows["observations"], rows["rewards"], strict=True)
    }
    batch = setup.streams.batches(1)["train"]
    for obs, reward in zip(batch["obs"], batch["reward"], strict=True):
        assert known[tuple(obs.tolist())] == pytest.approx(float(reward), rel=1e-5)


@needs_checkout
def test_both_forms_are_compared(hopper, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(official_por, "CELLS", hopper)
    files = {"--out": "runs", "--results": "official.json", "--page": "official.md"}
    words = ["--por", CHECKOUT, "--seeds", "2", "--progress", "none"]
    words += [word for key, name in files.items() for word in (key, str(tmp_path / name))]
    assert main(words) == 0
    told = capsys.readouterr()
    assert (
        "1/8 por_r, official, seed 0" in told.err
        and "min left" in told.err
        and "por_q, hopper/random: return" in told.out
    )
    before = (tmp_path / "official.md").read_text()
    assert len(list((tmp_path / "runs").glob("*.json"))) == 8
    assert main(words) == 0 and (tmp_path / "official.md").read_text() == before
    assert "/8" not in capsys.readouterr().err  # everything was kept
    assert main([*words, "--train-steps", "5"]) == 2
    assert "holds a run of other settings; move it away, or name another --out" in capsys.readouterr().err


# -- runs, verdict, page ---------------------------------------------------------------------------------------


def job(done, seed, plan=None, fails=False):
    def go():
        if fails:
            raise UserError("the disk is full")
        done.append(seed)
        return EpisodeReturns((float(seed),), (1,))

    return Job(OURS, "cell", seed, 10, {"seed": seed, "sizes": (1, 2)} if plan is None else plan, go)


def test_a_finished_run_is_not_run_again(tmp_path):
    done, said = [], []
    with pytest.raises(UserError):
        run([job(done, 0), job(done, 1, fails=True)], tmp_path / "out", said.append)
    assert done == [0] and said[0] == "1/2 cell, ours, seed 0" and said[1].startswith("2/2 cell, ours, seed 1; about 0")
    records = run([job(done, 0), job(done, 1)], tmp_path / "out", said.append)
    assert done == [0, 1] and said[2] == "2/2 cell, ours, seed 1"
    assert [record["evaluation"]["returns"] for record in records] == [[0.0], [1.0]]
    assert run([job(done, 0), job(done, 1)], tmp_path / "out", said.append) == records and done == [0, 1]


def test_a_file_of_another_run_is_not_taken(tmp_path):
    done = []
    run([job(done, 0)], tmp_path, print)
    with pytest.raises(UserError, match=r"cell-ours-0\.json holds a run of other settings"):
        run([job(done, 0, {"seed": 0, "sizes": (1, 3)})], tmp_path, print)
    (tmp_path / "cell-ours-0.json").write_text("{")
    with pytest.raises(UserError, match=r"cannot be read .* remove it to have its run again"):
        run([job(done, 0)], tmp_path, print)
    assert done == [0]


def test_the_verdict():
    low, high = {0: 1.0, 1: 2.0, 2: 3.0}, {0: 11.0, 1: 12.0, 2: 13.0}
    same = judge(low, {0: 1.1, 1: 2.2, 2: 2.8})
    assert same.overlap and same.gap.low < 0 < same.gap.high and same.gap.value == pytest.approx(0.1 / 3)
    apart = judge(low, high)
    assert not apart.overlap and apart.gap.value == 10 and apart.official.value == 2 and apart.ours.value == 12
    # The means' intervals meet, and the difference, the same on every seed, is there.
    wide = judge({0: 1.0, 1: 20.0, 2: 40.0}, {0: 2.0, 1: 21.0, 2: 41.0})
    assert wide.official.high > wide.ours.low and wide.gap.low > 0 and not wide.overlap
    assert not replace(same, official=replace(same.official, low=8.0, high=9.0)).overlap
    assert not replace(same, official=replace(same.official, low=-9.0, high=-8.0)).overlap
    with pytest.raises(UserError, match="needs two seeds"):
        judge({0: 1.0}, {0: 1.0})


def test_the_page_tells_what_was_recorded():
    assert page.page([json.loads((RESULTS / name).read_text()) for name in RECORDS]) == PAGE.read_text()


def test_the_record_is_of_this_method():
    record = json.loads(official_por.RESULTS.read_text())
    assert record["sha256"] == official_por.PUBLISHED.sha256 and record["stand_ins"] == official_por.STAND_INS
    assert max(record["first_updates"]["largest"].values()) < SAME
    cells = [{k: v for k, v in cell.items() if k != "sides"} for cell in record["cells"]]
    assert [Cell(**cell) for cell in cells] == list(CELLS)
    for cell in record["cells"]:
        assert all(len(cell["sides"][side]["scores"]) >= 3 for side in (OFFICIAL, OURS))


def test_rows_of_the_table_and_of_changes():
    record = json.loads(official_por.RESULTS.read_text())
    first = record["cells"][0]
    first["sides"][OFFICIAL]["scores"] = {"0": 0.1, "1": 0.2, "2": 0.3}
    first["sides"][OURS]["scores"] = {"0": 0.3, "1": 0.5, "2": 0.4}
    record["shims"] = [{"old": "a", "new": "b", "reason": "it fails", "file": ""}]
    row = page.table(record).rows[0]
    half = 4.302653 * 10 / np.sqrt(3)  # Student's 0.975 quantile at 2 degrees of freedom
    assert row[1] == f"20.0 ({20 - half:.1f} to {20 + half:.1f})"
    assert row[3].startswith("20.0 (") and row[4:] == ("3", "yes")
    assert page.scores(record).rows[1][1:] == ("30", "50", "40")
    text = page.page([record])
    assert "run with 1 change of text, listed below" in text and "- `a` in por.py becomes `b`: it fails." in text


def test_the_command_writes_the_page_alone(tmp_path, capsys):
    assert main(["--write-only", "--page", str(tmp_path / "page.md")]) == 0
    assert (tmp_path / "page.md").read_text() == PAGE.read_text()
    assert "the authors' code" in capsys.readouterr().out


def test_other_methods_records_are_found_beside_it(tmp_path):
    for name in (*RECORDS, "mine.json"):
        (tmp_path / name).write_text(json.dumps(name))
    first, second = RECORDS
    assert recorded(tmp_path / first, first) == recorded(tmp_path / second, second) == list(RECORDS)
    assert recorded(tmp_path / "mine.json", first) == ["mine.json", second]
    (tmp_path / first).unlink()
    assert recorded(tmp_path / second, second) == [second]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "name a checkout of github.com/ryanxhr/POR with --por, or give --write-only"),
        (["--por", ".", "--seeds", "1"], "--seeds 1: an interval over seeds needs two or more"),
        (["--write-only", "--results", "absent.json"], "there is no absent.json to write the page from"),
    ],
)
def test_mistakes(words, told, capsys):
    assert main(words) == 2
    assert told in capsys.readouterr().err
