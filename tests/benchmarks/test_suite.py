"""Suites: merging, the product of axes, and mistakes that fail before anything runs."""

import re
from pathlib import Path

import pytest

from benchmarks.running import availability, suite
from metarl.component import overlay
from metarl.errors import ConfigError, DatasetUnavailable
from metarl.training.folder import RunFolder


def edit(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    return file


def test_a_component_of_another_name_replaces_settings_and_all():
    base = {"algorithm": {"name": "td3_bc", "alpha": 1, "actor_optimizer": {"name": "adam", "lr": 1, "eps": 2}}}
    assert overlay(base, {"algorithm": {"name": "bc"}}) == {"algorithm": {"name": "bc"}}
    assert overlay(base, {"algorithm": "bc"}) == {"algorithm": {"name": "bc"}}
    assert overlay(base, {"algorithm": {"alpha": 3}})["algorithm"]["alpha"] == 3
    assert overlay(base, {"algorithm": {"name": "td3_bc", "tau": 3}})["algorithm"]["alpha"] == 1
    inner = overlay(base, {"algorithm": {"actor_optimizer": {"name": "sgd", "lr": 5}}})["algorithm"]
    assert inner["actor_optimizer"] == {"name": "sgd", "lr": 5} and inner["alpha"] == 1
    assert overlay({"objective": {"name": "gorl"}}, {"objective": None})["objective"] is None
    assert overlay({"data": {"train": {"size": 5}}}, {"data": {"train": {"recipe": "r"}}})["data"] == {
        "train": {"size": 5, "recipe": "r"}
    }


def test_cells_are_the_product_of_the_axes(suite_file):
    text = suite_file.read_text().replace("seeds: [0, 1]", "")
    suite_file.write_text(text + "  precision:\n    single: {}\n    double: {precision: float64}\nseeds: [3]\n")
    loaded = suite.load(suite_file)
    assert len(loaded.cells) == 3 * 1 * 2 and loaded.seeds == (3,)
    assert [c.labels["precision"] for c in loaded.cells[:2]] == ["single", "double"]
    assert [c.experiment.precision for c in loaded.cells[:2]] == ["float32", "float64"]
    assert loaded.cells[2].slug == "td3-bc-gorl--pendulum--single"
    assert len({c.experiment.folder for c in loaded.cells}) == 6


def test_overrides_reach_every_cell_and_seeds_the_suite(suite_file):
    loaded = suite.load(suite_file, ["steps=7", "evaluation.every=7", "seeds=[5]", "name=other"])
    assert loaded.seeds == (5,) and loaded.name == "other"
    assert {c.experiment.steps for c in loaded.cells} == {7}
    assert {c.experiment.evaluation.every for c in loaded.cells} == {7}


def test_the_resolved_suite_is_the_same_suite(suite_file, tmp_path):
    from metarl.config import to_yaml

    loaded = suite.load(suite_file, ["steps=7", "algorithm.batch_size=4"])
    (tmp_path / "again.yaml").write_text(to_yaml(loaded.resolved))
    again = suite.load(tmp_path / "again.yaml")
    assert [c.experiment.resolved for c in again.cells] == [c.experiment.resolved for c in loaded.cells]


def test_a_base_may_be_a_file(suite_file, tmp_path):
    (tmp_path / "base.yaml").write_text("name: ignored\nsteps: 9\nseeds: [8]\n")
    lines = suite_file.read_text().split("\n")
    head = [line for line in lines if not line.startswith(("base:", "  steps", "  device", "  evaluation", "seeds"))]
    suite_file.write_text("base: base.yaml\n" + "\n".join(head))
    loaded = suite.load(suite_file)
    assert loaded.seeds == (8,) and loaded.cells[0].experiment.steps == 9
    assert loaded.cells[0].experiment.name == "bc--pendulum"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("seeds:", "seds:", ["unknown key 'seds'", "Did you mean 'seeds'?"]),
        ("BC: {algorithm: {", "BC: {algoritm: {", ["axes.method.BC", "Did you mean 'algorithm'?"]),
        ("hidden: [8], batch_size: 16}}", "hiden: [8]}}", ["method 'BC'", "algorithm.hiden", "Did you mean 'hidden'?"]),
        ("name: gorl", "name: gorll", ["method 'TD3+BC + GORL'", "Did you mean 'gorl'?"]),
        ("  steps: 20", "  stps: 20", ["base", "Did you mean 'steps'?"]),
        ("broken: {", "broken: {seeds: [4], ", ["axes.method.broken", "'seeds' belongs to the whole suite"]),
        ("broken:", '"BC ":', ["share the file name bc--pendulum"]),
        ("seeds: [0, 1]", "seeds: [0, 0]", ["seeds must be different"]),
        ("name: small", "name: a/b", ["names a folder"]),
        ("  dataset:", "  dataset: {}\n  other:", ["axes.dataset has no labels"]),
        ("axes:", "axes: [", ["not readable YAML", "line ", "column "]),
        ("  steps: 20", "\tsteps: 20", ["not readable YAML", "line 4, column 1"]),
        ("seeds:", "steps: 5\nseeds:", ["'steps' belongs under base"]),
    ],
)
def test_a_mistake_is_named_before_anything_runs(suite_file, old, new, words):
    edit(suite_file, old, new)
    with pytest.raises(ConfigError) as raised:
        suite.load(suite_file)
    text = str(raised.value)
    assert str(suite_file) in text and "\n" not in text
    for word in words:
        assert word in text


# -- axes of values, what is left out, and small forms -----------------------------------------------------------


def test_an_axis_of_values_sets_a_key(suite_file):
    text = suite_file.read_text()
    axes = "algorithm.batch_size: [16, 32]\n  rate: {key: algorithm.optimizer.lr, values: [1e-3, 0.1]}"
    start, stop = text.index('    "TD3+BC'), text.index("    broken:")  # which has two optimisers
    suite_file.write_text(text[:start] + text[stop:].replace("  dataset:", f"  {axes}\n  dataset:"))
    loaded = suite.load(suite_file)
    assert loaded.axes["algorithm.batch_size"] == ("16", "32") and loaded.axes["rate"] == ("0.001", "0.1")
    cell = loaded.cells[3]
    assert cell.labels == {"method": "BC", "algorithm.batch_size": "32", "rate": "0.1", "dataset": "pendulum"}
    assert cell.experiment.algorithm.batch_size == 32 and cell.experiment.algorithm.optimizer.hparams["lr"] == 0.1
    assert cell.slug == "bc--32--0-1--pendulum" and cell.title == "BC · batch_size=32 · lr=0.1 · pendulum"
    edit(suite_file, "rate: {key: algorithm.optimizer.lr, values: [1e-3, 0.1]}", "evaluation.batch_size: [3]")
    with pytest.raises(ConfigError, match=r"evaluation\.batch_size '3'"):
        suite.load(suite_file)
    edit(suite_file, "evaluation.batch_size: [3]", "rate: {key: objective.batch_size, values: [3]}")
    edit(suite_file, "  steps: 20", "  steps: 20\n  objective: {name: gorl, preset: quick}")
    first = suite.load(suite_file).cells[0]
    assert first.title == "BC · algorithm.batch_size=16 · objective.batch_size=3 · pendulum"


def test_values_reach_into_lists_and_differ_by_their_sign():
    from benchmarks.running.axes import Setting, slugged

    raw = {"objective": ["por", {"name": "gorl", "every": 5}]}
    assert Setting("objective.1.every", 7)(raw)["objective"] == ["por", {"name": "gorl", "every": 7}]
    assert Setting("objective.0.alpha", 7)(raw)["objective"][0] == {"name": "por", "alpha": 7}
    assert raw == {"objective": ["por", {"name": "gorl", "every": 5}]}
    for key in ("objective.every", "objective.2.every"):
        with pytest.raises(ConfigError, match=r"is a list of 2 there; say which, as in objective\.0\.every"):
            Setting(key, 7)(raw)
    assert slugged("-1") != slugged("1") and slugged("TD3+BC - x") == "td3-bc-x"


EXCLUDE = "exclude: [{labels: {method: [BC, broken], size: 400}, reason: too  small}]\n"
SIZES = "  size:\n    400: {steps: 4}\n    600: {}\n"


def test_what_is_excluded_is_neither_built_nor_loaded(suite_file, tmp_path):
    suite_file.write_text(suite_file.read_text().replace("seeds:", f"{SIZES}seeds:") + EXCLUDE)
    edit(suite_file, "    400: {steps: 4}", "    400: {steps: 4, data: {train: {size: 400}}}")
    edit(suite_file, "labels: {method: [BC, broken], ", "labels: {")
    loaded = availability.fitted(suite.load(suite_file))
    assert [cell.labels["size"] for cell in loaded.cells] == ["600"] * 3
    assert [one.title for one in loaded.excluded] == [f"{m} · pendulum · 400" for m in loaded.axes["method"]]
    assert {one.reason for one in loaded.excluded} == {"too small"}
    edit(suite_file, "size: 400}, reason", "size: 400, method: [BC, broken]}, reason")
    with pytest.raises(DatasetUnavailable, match="pendulum/medium --size 400"):
        availability.fitted(suite.load(suite_file))


def test_the_resolved_suite_leaves_out_the_same(suite_file, tmp_path):
    from metarl.config import to_yaml

    suite_file.write_text(suite_file.read_text().replace("seeds:", f"{SIZES}seeds:") + EXCLUDE)
    loaded = suite.load(suite_file)
    (tmp_path / "again.yaml").write_text(to_yaml(loaded.resolved))
    again = suite.load(tmp_path / "again.yaml")
    assert again.excluded == loaded.excluded and len(again.excluded) == 2
    assert [c.experiment.resolved for c in again.cells] == [c.experiment.resolved for c in loaded.cells]


SMALL = """
small:
  base: {steps: 5}
  axes:
    method: {quick: {algorithm: {name: bc, hidden: [4]}}, slow: {algorithm: {name: bc, hidden: [9]}}}
  seeds: [7]
"""


def test_a_small_form_is_laid_over_the_suite(suite_file):
    suite_file.write_text(suite_file.read_text().replace("seeds:", f"{SIZES}seeds:") + EXCLUDE + SMALL)
    assert suite.load(suite_file).name == "small" and len(suite.load(suite_file).cells) == 4
    loaded = suite.load(suite_file, small=True)
    assert loaded.name == "small-small" and loaded.seeds == (7,)
    assert loaded.axes == {"method": ("quick", "slow"), "dataset": ("pendulum",), "size": ("400", "600")}
    assert [cell.experiment.steps for cell in loaded.cells] == [4, 5, 4, 5]  # and no label of BC is left to exclude
    edit(suite_file, "  seeds: [7]", "  exclude: [{labels: {method: slow, size: 600}, reason: slow}]")
    loaded = suite.load(suite_file, ["name=mine", "seeds=[3]"], small=True)
    assert [one.title for one in loaded.excluded] == ["slow · pendulum · 600"] and loaded.name == "mine"
    assert loaded.seeds == (3,)


def test_a_small_form_may_have_another_base_and_axes_may_be_files(suite_file, tmp_path):
    (tmp_path / "base.yaml").write_text("steps: 9\ndevice: cpu\n")
    (tmp_path / "methods.yaml").write_text("quick: {algorithm: {name: bc, hidden: [4]}}\n")
    suite_file.write_text(suite_file.read_text() + "small: {base: base.yaml, axes: {method: methods.yaml}}\n")
    (cell,) = suite.load(suite_file, small=True).cells
    assert cell.experiment.steps == 9 and cell.experiment.evaluation.every == 5000  # nothing of the other base
    assert cell.experiment.algorithm.hidden == (4,)
    edit(suite_file, "methods.yaml", "nowhere.yaml")
    with pytest.raises(ConfigError, match=r"there is no file .*nowhere\.yaml"):
        suite.load(suite_file, small=True)


def test_two_names_for_one_experiment_are_refused(suite_file):
    edit(suite_file, "  dataset:", "  size:\n    few: {steps: 5}\n    many: {steps: 9}\n  dataset:")
    assert len(suite.load(suite_file).cells) == 6
    edit(suite_file, "    pendulum:\n", "    pendulum:\n      steps: 7\n")
    with pytest.raises(ConfigError, match="'BC · few · pendulum' and 'BC · many · pendulum' are the same experiment"):
        suite.load(suite_file)


def test_what_an_override_or_unused_data_makes_equal_is_refused_with_its_reason(suite_file):
    edit(suite_file, "  dataset:", "  steps: [5, 9]\n  dataset:")
    with pytest.raises(ConfigError, match=r"'BC · steps=5 · .* given for every cell \(steps\) has the last word"):
        suite.load(suite_file, ["steps=7"])
    edit(suite_file, "  steps: [5, 9]", "  data.guide.tuples: [5, 9]")
    edit(suite_file, ", tuples: 50", "")
    loaded = suite.load(suite_file)
    with pytest.raises(ConfigError, match=r"'BC · tuples=5 .* they differ in data that neither of them reads"):
        availability.fitted(loaded)


def test_cells_that_take_long_to_check_are_announced(suite_file, monkeypatch):
    said = []
    availability.fitted(suite.load(suite_file), said.append)
    assert said == []
    monkeypatch.setattr(availability, "MANY", 3)
    availability.fitted(suite.load(suite_file), said.append)
    assert said == ["checking 3 cells"]


def test_an_error_of_a_plug_in_names_suite_and_cell_and_line(suite_file, tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(mine.read_text().replace("        return super", "        spec.nothing\n        return super"))
    with pytest.raises(ConfigError) as raised:
        availability.fitted(suite.load(suite_file))
    text = str(raised.value)
    assert f"{suite_file} (broken · pendulum): AttributeError: " in text and "(mine.py, line " in text
    assert isinstance(raised.value.__cause__, AttributeError)


def test_data_that_is_only_looked_at_is_kept(suite_file):
    edit(suite_file, "      data:\n", "      watch: [guide]\n      data:\n")
    edit(suite_file, "    broken: {", "    other: {")
    loaded = availability.fitted(suite.load(suite_file))
    assert set(loaded.cells[0].experiment.data) == {"train", "guide"}


def test_a_cell_s_own_keys_may_be_named(suite_file):
    edit(suite_file, "      data:\n", "      data:\n        pure: {recipe: pendulum/medium, size: 600}\n")
    edit(suite_file, "train: {recipe: pendulum/medium, size: 600}", 'train: "${data.pure}"')
    loaded = availability.fitted(suite.load(suite_file))
    assert loaded.cells[0].experiment.data["train"].recipe == "pendulum/medium"
    assert set(loaded.cells[0].experiment.data) == {"train"}
    edit(suite_file, "${data.pure}", "${data.poor}")
    with pytest.raises(ConfigError, match=r"method 'BC'.*poor"):
        suite.load(suite_file)


def test_values_under_let_go_from_one_axis_to_another(tmp_path):
    (tmp_path / "base.yaml").write_text("algorithm: {name: td3_bc, alpha: '${let.alpha}'}\nlet: {alpha: 2.0}\n")
    suite_file = tmp_path / "let.yaml"
    suite_file.write_text(
        "base: base.yaml\n"
        "axes:\n"
        "  dataset:\n"
        "    a: {let: {alpha: 5.0}, data: {train: {recipe: pendulum/medium}}}\n"
        "    b: {data: {train: {recipe: pendulum/random}}}\n"
        "  base:\n"
        "    TD3+BC: {}\n"
        "    SAC+BC: {algorithm: {name: sac_bc, alpha: '${let.alpha}'}}\n"
    )
    alphas = [cell.experiment.algorithm.alpha for cell in suite.load(suite_file).cells]
    assert alphas == [5.0, 5.0, 2.0, 2.0]
    assert {c.experiment.algorithm.alpha for c in suite.load(suite_file, ["let.alpha=7"]).cells} == {7.0}
    assert all("let" not in cell.experiment.resolved for cell in suite.load(suite_file).cells)
    with pytest.raises(ConfigError, match=r"no such value under let. Did you mean 'alpha'\?"):
        suite.load(suite_file, ["let.alhpa=7"])


@pytest.mark.slow
def test_gorl_s_suites_run_on_another_base_with_its_own_period():
    cql = ["algorithm={name: cql, preset: locomotion}", "let.gorl=cql", "name=other"]
    for name in ("gorl_figure_3", "gorl_figure_4", "gorl_figure_5", "gorl_table_iv", "gorl_first_experiment"):
        cells = suite.load(suite.find(name), cql).cells
        guided = [o for cell in cells for o in cell.experiment.resolved["objective"] if o["name"] == "gorl"]
        published = [o for o in guided if o["every"] != 2 and o["optimizer"]["name"] == "adam"]
        assert published and all((o["every"], o["virtual"]["lr"]) == (200, 1e-4) for o in published), name


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("exclude: [{labels: {method: BC}}]", ["exclude[0]", "no reason"]),
        ("exclude: [{labels: {method: BC}, reason: ' '}]", ["exclude[0]", "no reason"]),
        ("exclude: [{reason: so}]", ["exclude[0] has no labels"]),
        ("exclude: [{labels: {method: brkn}, reason: so}]", ["no label 'brkn'", "Did you mean 'broken'?"]),
        ("exclude: [{labels: {methd: BC}, reason: so}]", ["no axis 'methd'", "Did you mean 'method'?"]),
        ("exclude: [{label: {method: BC}, reason: so}]", ["unknown key 'label'", "Did you mean 'labels'?"]),
        ("exclude: {method: BC}", ["exclude must be a list"]),
        ("exclude: [{labels: {dataset: pendulum}, reason: so}]", ["every combination is excluded"]),
        ("small: {stps: 4}", ["small", "unknown key 'stps'"]),
        ("small: {base: {stps: 4}}", ["small.base", "Did you mean 'steps'?"]),
        ("small: {axes: {metod: {a: {}}}}", ["small.axes", "Did you mean 'method'?"]),
        ("small: {axes: {method: {a: {algoritm: bc}}}}", ["small.axes.method.a", "Did you mean 'algorithm'?"]),
        ("small: {exclude: [{labels: {method: brkn}, reason: so}]}", ["small.exclude[0]", "no label 'brkn'"]),
        ("small: {}", ["no small form"]),
    ],
)
def test_mistakes_in_what_is_left_out_or_small(suite_file, text, words):
    suite_file.write_text(f"{suite_file.read_text()}{text}\n")
    with pytest.raises(ConfigError) as raised:
        suite.load(suite_file, small=text.startswith("small"))
    for word in (str(suite_file), *words):
        assert word in str(raised.value)


@pytest.mark.parametrize(
    ("axis", "words"),
    [
        ("stps: [1, 2]", ["axes.stps", "Did you mean 'steps'?"]),
        ("seeds: [1, 2]", ["'seeds' belongs to the whole suite"]),
        ("steps: [1, 1]", ["value 1 is there twice"]),
        ("steps: []", ["axes.steps has no labels"]),
        ("precision: ['-', x]", ["needs a letter or a digit"]),
        ("steps: [x]", ["steps 'x'", "steps"]),
        ("steps: 5", ["axes.steps must be a mapping of labels or a list of values, not 5; write [5]"]),
        ("pace: {key: steps, vals: [1]}", ["axes.pace must be {key: ..., values: [...]}"]),
        ("pace: {key: steps, values: 1}", ["axes.pace must be {key: ..., values: [...]}"]),
    ],
)
def test_mistakes_in_an_axis_of_values(suite_file, axis, words):
    edit(suite_file, "  dataset:", f"  {axis}\n  dataset:")
    with pytest.raises(ConfigError) as raised:
        suite.load(suite_file)
    for word in (str(suite_file), *words):
        assert word in str(raised.value)


def test_a_cell_that_cannot_work_comes_with_the_entry_that_leaves_it_out(suite_file):
    edit(suite_file, "broken: {", "broken: {objective: gorl, ")
    with pytest.raises(ConfigError) as raised:
        availability.fitted(suite.load(suite_file))
    text = str(raised.value)
    entry = text[text.index("exclude: [") :].replace("reason: ...", "reason: it has no policy")
    suite_file.write_text(f"{suite_file.read_text()}{entry}\n")
    assert [one.title for one in availability.fitted(suite.load(suite_file)).excluded] == ["broken · pendulum"]


def test_the_help_lists_the_shipped_suites(metarl, tmp_path):
    printed = " ".join(metarl(tmp_path, "bench", "--help").stdout.split())
    assert all(name in printed for name in suite.shipped())


def test_argument_mistakes(suite_file):
    with pytest.raises(ConfigError, match="not of the form key=value"):
        suite.load(suite_file, ["steps"])
    with pytest.raises(ConfigError, match="Did you mean 'steps'"):
        suite.load(suite_file, ["stps=3"])
    with pytest.raises(ConfigError, match="Did you mean 'demo'"):
        suite.find("dmo")
    with pytest.raises(ConfigError, match="no suite file"):
        suite.find("nowhere/suite.yaml")
    with pytest.raises(ConfigError, match="is a folder; give the suite's YAML file in it"):
        suite.find(str(suite_file.parent))
    with pytest.raises(ConfigError, match=r"argument 'steps=\[1': .+ in line 2, column 1"):
        suite.load(suite_file, ["steps=[1"])


def test_all_missing_data_is_named_in_one_error(suite_file):
    edit(suite_file, "size: 600", "size: 800")
    with pytest.raises(DatasetUnavailable) as raised:
        availability.fitted(suite.load(suite_file))
    lines = [line.strip() for line in str(raised.value).splitlines()[1:]]  # to be copied one by one, or together
    assert lines == [f"metarl data make pendulum/{level} --size 800 --seed 0" for level in ("medium", "expert")]


def test_parts_that_do_not_fit_are_named_with_their_cell(suite_file):
    edit(suite_file, "broken: {", "broken: {objective: gorl, ")
    with pytest.raises(ConfigError, match=r"broken · pendulum.*exposes no policy") as raised:
        availability.fitted(suite.load(suite_file))
    assert str(raised.value).count(str(suite_file)) == 1


def test_a_learner_that_needs_no_guide_has_none_in_its_hash(suite_file):
    with_guide = availability.fitted(suite.load(suite_file))
    edit(suite_file, "        guide: {recipe: pendulum/expert, size: 600, tuples: 50}\n", "")
    edit(suite_file, "      objective: {name: gorl, preset: quick, batch_size: 5}\n", "")
    without = availability.fitted(suite.load(suite_file))
    folders = [RunFolder.of(s.cells[0].experiment, 0, suite_file.parent) for s in (with_guide, without)]
    assert folders[0] == folders[1]
    assert set(with_guide.cells[1].experiment.data) == {"train", "guide"}


def test_the_example_of_the_page_builds(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text()
    (tmp_path / "weights.yaml").write_text(re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)[0])
    loaded, small = (suite.load(tmp_path / "weights.yaml", small=small) for small in (False, True))
    assert (len(loaded.cells), len(loaded.excluded), len(small.cells), small.seeds) == (5, 1, 4, (0,))
    assert loaded.cells[0].title == "degree=0.0 · pendulum/medium" and small.name == "weights-small"
    assert all(f"metarl data make {name} --size 20000" in page for name in loaded.axes["dataset"])
