"""The pages of components and of online runs: what they print runs, and their tables are the components'."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml

from algorithms.none import Nothing
from metarl import config, pages, registry
from metarl.component import component
from metarl.data.recipes import make_dataset
from metarl.errors import ConfigError
from metarl.training import offline
from metarl.training.progress import Silent

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
EVERY = {path.stem: (path, target) for path, target in pages.pages(DOCS)}
PAGES = {name: page for name, page in EVERY.items() if page[0].parent != DOCS}  # those of components
REMEDY = "`python -m metarl.pages docs` writes it again"
BASES = ("td3_bc", "sac_bc", "cql", "iql")

SHORT = ("evaluation.every=20", "evaluation.episodes=1", "log_every=2", "compile=off", "device=cpu")
SHAPE = ("algorithm.hidden=[8,8]", "algorithm.batch_size=16")
OWN_SHAPE = ("objective.hidden=[8,8]", "objective.execute_hidden=[8,8]", "objective.batch_size=16")
# What a page speaks of under the condition that it names: "if learned", "with `lagrange`", "with `watch: [guide]`".
SWITCHES = {
    "sac_bc": ("algorithm.auto_temperature=true",),
    "cql": ("algorithm.lagrange=1.0",),
    "gorl": ("watch=[guide]",),
    "pex": ("objective.entropy=0.5",),
}


@pytest.fixture(scope="module", autouse=True)
def made(tmp_path_factory):
    """pendulum/medium and pendulum/expert of 600 transitions, which stand for the pages' 20,000, and demonstrations."""
    root = tmp_path_factory.mktemp("datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(root))
        for level in ("medium", "expert"):
            make_dataset(f"pendulum/{level}", 600)
        make_dataset("navigation/detour", 600)
        yield root


def text(name: str) -> str:
    return EVERY[name][0].read_text(encoding="utf-8")


def section(name: str, title: str) -> str:
    """What stands under `## title`."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text(name), re.MULTILINE | re.DOTALL)
    assert found, f"{name} has no section {title!r}"
    return found[1]


def quoted(words: str) -> list[str]:
    return re.findall(r"`([^`]+)`", words)


def experiment(name: str, folder: Path, *overrides: str) -> config.Experiment:
    """The page's own YAML, small."""
    blocks = re.findall(r"```yaml\n(.*?)```", text(name), re.DOTALL)
    assert len(blocks) == 1, f"{name} has {len(blocks)} experiments"
    file = folder / f"{name}.yaml"
    file.write_text(blocks[0])
    whole = config.load(file)
    sizes = [f"data.{source}.size=600" for source in whole.data]
    sizes += ["online.random_steps=4", "online.learn_from=4"] if whole.online else []
    both = whole.online is not None and 0 < whole.offline_steps < whole.steps
    sizes += ["steps.offline=20", "steps.online=220"] if both else ["steps=40"]
    shape = OWN_SHAPE if type(whole.algorithm) is Nothing else SHAPE
    return config.load(file, [*SHORT, *shape, *sizes, *overrides])


def metrics(run: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for row in (run / "metrics.csv").read_text().splitlines()[1:]:
        _, name, value = row.split(",")
        found.setdefault(name, []).append(float(value))
    return found


@pytest.mark.parametrize("kind", pages.KINDS)
def test_every_shipped_component_has_a_page(kind):
    shipped = {path.stem for path in (ROOT / kind).glob("*.py")} - {"__init__"}
    assert shipped <= set(registry.names(f"metarl.{kind}"))
    assert {path.stem for path in (DOCS / kind).glob("*.md")} == shipped


@pytest.mark.parametrize("name", EVERY)
def test_the_table_is_that_of_the_component(name):
    path, target = EVERY[name]
    assert pages.renewed(text(name), target, str(path)) == text(name), f"{path} is stale; {REMEDY}"


@pytest.mark.parametrize("name", PAGES)
def test_every_default_and_every_preset_has_a_source(name):
    """The prose below the table names each of them: what is added to a component must be added there."""
    _, target = PAGES[name]
    _, _, below = section(name, "Settings").partition(pages.END)
    sourced = set(quoted(below))
    expected = {setting for setting, _, _ in pages.settings(target)} | set(getattr(target, "presets", {}))
    assert expected - sourced == set()


@pytest.mark.parametrize("name", PAGES)
def test_the_page_runs_and_logs_what_it_says_to_watch(name, tmp_path):
    small = experiment(name, tmp_path, *SWITCHES.get(name, ()))
    logged = metrics(offline.train(small, 0, tmp_path / "runs", Silent()))
    assert logged["evaluation/return"]
    rows = [row.split("|")[1] for row in section(name, "What to watch").splitlines() if row.startswith("| `")]
    watched = [metric for cell in rows for metric in quoted(cell) if "/" in metric]
    assert set(watched) - set(logged) == set()


@pytest.mark.parametrize("name", PAGES)
def test_the_page_loads_unchanged_and_names_its_component(name, tmp_path):
    _, target = PAGES[name]
    file = tmp_path / f"{name}.yaml"
    file.write_text(re.findall(r"```yaml\n(.*?)```", text(name), re.DOTALL)[0])
    loaded = config.load(file)
    assert type(loaded.algorithm) is target or [type(o) for o in loaded.objectives] == [target]
    made = re.findall(r"`metarl data make ([^`]+?) --size (\d+)`", text(name))
    recipes = {(source.recipe, str(source.size)) for source in loaded.data.values()}
    assert {(recipe, size) for names, size in made for recipe in names.split()} == recipes
    assert len(made) == bool(recipes)


@pytest.mark.parametrize("name", EVERY)
def test_links_lead_somewhere(name):
    path, _ = EVERY[name]
    for link in re.findall(r"\]\(([^)]+)\)", text(name)):
        if link.startswith("https://"):
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.is_file(), link
        if anchor:
            heads = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}, link


def readings() -> list[tuple[str, str]]:
    """(setting, where it makes a difference) of every row of GORL's table of readings."""
    between = text("gorl").partition("<!-- readings -->")[2].partition("<!-- end of readings -->")[0]
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in between.splitlines() if line.startswith("|")]
    return [(quoted(row[3])[0], row[4].strip()) for row in rows[2:]]


def gorl(*settings: str):
    """(built, plain) of gorl with settings as the page prints them."""
    node = {"name": "gorl"}
    for setting in settings:
        node |= yaml.safe_load(f"{{{setting}}}")
    return component("metarl.objectives", node, "page", "objective")


def test_every_reading_is_an_option():
    """Each alternative is another experiment than the default, and each option that is a reading is in the table."""
    found = readings()
    assert len(found) == 15
    _, default = gorl()
    changed = set()
    for setting, _ in found:
        if not setting.startswith("algorithm."):
            _, plain = gorl(setting)
            assert plain != default, setting
            changed |= {key for key in plain if plain[key] != default[key]}
    assert set(default) - changed == {"name", "steps", "backend", "batch_size"}


@pytest.mark.parametrize("base", BASES)
def test_readings_make_a_difference_where_the_page_says(assemble, draw, base):
    """On the bases that its rows name, an option changes the step; on others it changes nothing, or is refused."""
    places: dict[str, set[str]] = {}
    for setting, where in readings():
        if setting.startswith("algorithm.") or setting.startswith("every") or where.startswith("where "):
            continue  # not of gorl, of the schedule, and of the data
        places.setdefault(setting, set()).update(BASES if where == "all" else quoted(where))
    algorithm, _ = component(
        "metarl.algorithms", {"name": base, "hidden": [8, 8], "batch_size": 16}, "page", "algorithm"
    )

    def stepped(*settings: str):
        learner = assemble(algorithm, gorl(*settings)[0])
        state = learner.init(torch.float64)
        for seed in range(3):
            state, _ = learner.step(state, draw(learner, seed), set(learner.updates) - {"cloning"})
        return state.tree["actor"], state.tree["guiding_network"]

    default = stepped()
    for setting, bases in places.items():
        try:
            groups = stepped(setting)
        except ConfigError as error:
            assert base not in bases and "objective gorl" in str(error), setting
            continue
        pairs = [(a[key], b[key]) for a, b in zip(groups, default, strict=True) for key in a]
        assert any(not torch.equal(a, b) for a, b in pairs) == (base in bases), setting


def test_a_page_whose_table_is_old_is_renewed(tmp_path, capsys):
    folder = tmp_path / "algorithms"
    folder.mkdir()
    (folder / "bc.md").write_text(f"above\n{pages.START}\nold\n{pages.END}\nbelow\n")
    assert pages.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{folder / 'bc.md'}\n"
    written = (folder / "bc.md").read_text()
    assert written.startswith("above\n") and written.endswith("\nbelow\n") and "old" not in written
    assert "| `batch_size` | `256` | transitions in a batch |" in written
    assert pages.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == "" and (folder / "bc.md").read_text() == written


@pytest.mark.parametrize(
    ("name", "page", "words"),
    [
        ("bc", "no markers", "markers"),
        ("bc", f"{pages.END}\n{pages.START}", "in this order"),
        ("bc", f"{pages.START}\n{pages.END}\n{pages.START}\n{pages.END}", "once each"),
        ("bcc", f"{pages.START}\n{pages.END}", "Did you mean 'bc'?"),
    ],
)
def test_a_page_that_cannot_be_renewed_is_told_and_left(tmp_path, capsys, name, page, words):
    (tmp_path / "algorithms").mkdir()
    path = tmp_path / "algorithms" / f"{name}.md"
    path.write_text(page)
    assert pages.main([str(tmp_path)]) == 2
    assert words in capsys.readouterr().err and path.read_text() == page


def test_without_a_folder_there_is_a_usage_line(capsys):
    assert pages.main([]) == 2 and "usage" in capsys.readouterr().err
