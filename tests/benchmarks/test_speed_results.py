"""The speed benchmark's arithmetic, its choice of contestants and its page; nothing looks at the clock."""

import json
from dataclasses import asdict

import pytest

from benchmarks.readme import with_table
from benchmarks.speed import Timing, gpu
from benchmarks.speed.__main__ import DOCS, RESULT, main, measure, merged
from benchmarks.speed.comparisons import AUTHORS, BASES, COMPARISONS, LEARNED, MODES, WHOLE
from benchmarks.speed.contestants import CORL, FLOORS, LABELS, Rivals, compared, contestants
from benchmarks.speed.derived import (
    cost,
    flatness_percent,
    gorl_average,
    gorl_costs,
    gorl_measured,
    gorl_overhead,
    pays_after,
    speed,
    whole_cost,
)
from benchmarks.speed.page import page
from benchmarks.speed.picture import picture
from benchmarks.speed.products import mflop_per_step, products
from benchmarks.speed.rival_gild import SHIMS
from benchmarks.speed.rounds import _order, bar
from benchmarks.speed.settings import Settings
from benchmarks.speed.tables import grids, summary
from metarl.errors import UserError


def size(**times):
    """As recorded: milliseconds per step by contestant."""
    return {"contestants": {name: {"parts": {"step": {"cpu_ms": ms}}} for name, ms in times.items()}}


def test_ratios_are_taken_round_by_round():
    # Every second round is ten times slower for both: the ratio does not see it.
    found = speed(size(eager=[1.0, 10.0, 2.0], textbook=[2.0, 20.0, 5.0]), "eager", "textbook")
    assert found == Timing(median=2.0, low=2.0, high=2.5)
    with pytest.raises(ValueError):
        Timing.ratio([1.0], [1.0, 2.0])


def test_what_gorl_adds():
    times = {"critic": 2.0, "policy": 4.0, "weighted": 4.6, "guided": 7.6, "base": 3.0, "gorl": 4.5}
    parts = {name: {"cpu_ms": [ms, 2 * ms]} for name, ms in times.items()}
    costs = {name: timing.low for name, timing in gorl_costs(parts).items()}
    assert costs == pytest.approx({"base": 3.0, "weighing": 0.6, "guiding": 3.0})
    assert gorl_overhead(parts, 2).median == pytest.approx((0.6 / 2 + 3.0 / 2) / 3)
    assert gorl_overhead(parts, 500).median == pytest.approx((0.6 / 2 + 3.0 / 500) / 3)
    assert gorl_measured(parts).median == pytest.approx(0.5)


def test_what_gorl_adds_where_every_step_moves_the_policy():
    parts = {name: {"cpu_ms": [ms, 2 * ms]} for name, ms in {"policy": 4.0, "weighted": 4.6, "guided": 7.6}.items()}
    costs = {name: timing.low for name, timing in gorl_costs(parts).items()}
    assert costs == pytest.approx({"base": 4.0, "weighing": 0.6, "guiding": 3.0})
    assert gorl_overhead(parts, 200).median == pytest.approx((0.6 + 3.0 / 200) / 4)


def test_the_average_over_bases_is_taken_round_by_round():
    """0.1, 0.2, 0.9 and 0.3, 0.2, 0.1: 0.2, 0.2, 0.5."""
    rounds = [(1.1, 1.2, 1.9), (1.3, 1.2, 1.1)]
    bases = [({"policy": ms([1, 1, 1]), "weighted": ms(times), "guided": ms(times)}, 7) for times in rounds]
    found = gorl_average(bases)
    assert (found.median, found.low, found.high) == pytest.approx((0.2, 0.2, 0.5))


def test_what_a_learned_loss_costs():
    found = cost(size(gild=[6.0, 60.0, 8.0], other=[4.0, 40.0, 4.0]), "gild", "other")
    assert found == Timing(median=1.5, low=1.5, high=2.0)


def test_what_a_whole_run_costs_with_and_without_preparing():
    runs = {
        "alone": {"cpu_s": [100.0, 200.0], "preparing_cpu_s": [10.0, 20.0]},
        "gild": {"cpu_s": [110.0, 220.0], "preparing_cpu_s": [20.0, 31.0]},
    }
    assert whole_cost(runs) == Timing(1.1, 1.1, 1.1)
    assert whole_cost(runs, prepared=True) == Timing(1.025, 1.0, 1.05)


def ms(times):
    return {"cpu_ms": times}


def test_when_compiling_pays():
    result = {
        "sizes": {"hopper": size(recorded=[5.0, 5.0], compiled=[3.0, 3.0])},
        "compile": {"td3_bc": {"recorded": {"cpu_s": 1.0}, "cold": {"cpu_s": 21.0}, "warm": {"cpu_s": 0.5}}},
    }
    assert pays_after(result, "td3_bc", "cold") == 10_000
    assert pays_after(result, "td3_bc", "warm") == 0
    result["sizes"]["hopper"] = size(recorded=[3.0], compiled=[3.0])
    assert pays_after(result, "td3_bc", "cold") is None


def test_flatness_is_a_change_in_per_cent():
    course = [1.0] * 10 + [5.0] * 80 + [1.1] * 10
    found = flatness_percent({"course_ms": course, "old_ms": [1.0, 2.0, 3.0], "fresh_ms": [1.0, 2.5, 3.0]})
    assert found == pytest.approx((10.0, 0.0))


@pytest.mark.parametrize(("dims", "published"), [((11, 3), 403.0), ((17, 6), None)])
def test_the_products_of_a_step_are_as_many_as_the_closed_form_says(dims, published):
    (obs, action), width, batch = dims, 256, 256
    options = {"obs_dim": obs, "action_dim": action, "hidden": (width, width), "batch": batch}
    found = products(options)
    assert sum(p.twice for p in found if (p.m, p.k, p.n) == (256, 256, 256)) == 2 * 9 + 5
    # In units of [batch, width] times a number of columns; the critic's own layers three times over, twice of them.
    actor, critic = obs + width + action, obs + action + width + 1
    critic_step = actor + 4 * critic + 2 * critic + 2 * (width + 1)
    policy_step = actor + critic + (1 + width + action) + actor + (width + action)
    closed = 2e-6 * batch * width * (critic_step + policy_step / 2)
    assert mflop_per_step(options) == pytest.approx(closed, rel=1e-12)
    if published:
        assert closed == pytest.approx(published, rel=0.01)


def test_everyone_has_a_turn_in_every_round_and_the_order_changes():
    parts = {name: "xy" for name in "abcdef"}
    orders = [_order(parts, i) for i in range(7)]
    assert all(sorted(order) == [(name, part) for name in parts for part in "xy"] for order in orders)
    assert all(order[i][0] == order[i + 1][0] for order in orders for i in range(0, 12, 2))
    assert len(set(map(tuple, orders))) == 7 and len({order[0] for order in orders}) > 3
    assert orders == [_order(parts, i) for i in range(7)]


def test_a_rival_that_is_not_there_is_an_error_once_it_is_named(tmp_path, capsys):
    with pytest.raises(UserError, match=r"there is no algorithms/offline/td3_bc.py in it; name a checkout of"):
        contestants(Rivals(corl=tmp_path))
    with pytest.raises(UserError, match="--unifloral"):
        contestants(Rivals(unifloral=tmp_path / "missing"))
    with pytest.raises(UserError, match=r"corl: no checkout was named \(--corl\)"):
        contestants(Rivals(), only=["corl"])
    with pytest.raises(UserError, match=r"'recoded'\. Did you mean 'recorded'"):
        contestants(Rivals(), only=["recoded"])
    assert main(["--quick", "--corl", str(tmp_path)]) == 2
    assert "error: --corl" in capsys.readouterr().err
    found, left_out = contestants(Rivals(d3rlpy_python="python-of-d3rlpy"), compiled=False)
    assert [each.name for each in found] == ["eager", "recorded", "stack4", "textbook", "d3rlpy", *FLOORS]
    assert set(left_out) == {"corl", "unifloral"}
    assert [each.name for each in found if not each.required] == ["floor-onednn"]
    found, _ = contestants(Rivals(), only=["compiled"])
    assert [each.name for each in found] == ["compiled", "textbook"] and all(each.required for each in found)


def test_who_takes_part_in_a_comparison(tmp_path):
    found = compared("iql", Rivals(), compiled=False)
    assert [each.name for each in found] == ["iql_corl, eager", "iql_corl, recorded", "iql, eager", "iql, recorded"]
    assert [each.name for each in compared("sac_bc", Rivals(corl=tmp_path))] == COMPARISONS["sac_bc"].names()
    file = tmp_path / "algorithms" / "offline" / "td3_bc.py"
    file.parent.mkdir(parents=True)
    file.touch()
    with pytest.raises(UserError, match=r"--corl .*: there is no algorithms/offline/cql.py in it"):
        compared("cql", Rivals(corl=tmp_path))
    assert main(["--quick", "--corl", str(tmp_path)]) == 2  # before anything is measured
    file.with_name("cql.py").touch()
    rival = compared("cql", Rivals(corl=tmp_path))[-1]
    assert (rival.name, rival.options["file"], rival.required) == ("corl", "cql.py", True)


def test_only_what_is_complete_in_itself_is_merged(tmp_path, capsys):
    for names in ([], ["--only", "gorl"], ["--only", "iql", "floor"], ["--quick", "--only", "iql"]):
        assert main([*names, "--merge", "--out", str(tmp_path / "speed.json")]) == 2
        assert "error: --merge goes with --only and names of iql, cql" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_is_merged_keeps_the_facts_of_its_own_run(more):
    facts = {"environment": {"machine": "another"}, "load_average": {"before": 7.0, "after": 8.0}, "settings": {}}
    new = {**facts, "learned": {"gild_sac": {"contestants": {}}}, "compared": {"cql": {"contestants": {}}}}
    result = merged(more, new, ["gild_sac", "cql"])
    assert result["apart"] == {"gild_sac": facts, "cql": facts}
    assert result["learned"] == {**more["learned"], **new["learned"]} and list(result["learned"]) == list(LEARNED)
    assert list(result["compared"]) == list(COMPARISONS) and result["compared"]["cql"] == new["compared"]["cql"]
    assert all(result[name] == more[name] for name in ("environment", "load_average", "settings", "sizes", "whole"))
    assert "apart" not in more


def test_quick_run_writes_nothing(tmp_path, capsys):
    arguments = ["--quick", "--out", str(tmp_path / "speed.json"), "--docs", str(tmp_path)]
    assert main([*arguments, "--only", "floor", "cql", "gorl", "gorl_bases"]) == 0
    printed = capsys.readouterr().out
    words = [LABELS["textbook"], LABELS["floor"], "CQL, size of hopper", "What GORL adds to a step"]
    rows = [f"{base.label}, recorded" for base in BASES.values()]
    for expected in (*words, "What GORL adds at its published periods", *rows, "average, recorded", "left out: CORL"):
        assert expected in printed
    assert not list(tmp_path.iterdir())


def test_the_operations_of_every_kind_of_step():
    with bar() as progress:
        result = measure(Settings.quick(), Rivals(), ["flops"], progress)
    counted = result["flops"]
    assert counted["critic"] < counted["policy"] < counted["weighted"] < counted["guided"]
    assert [grid.title for grid in grids(json.loads(json.dumps(result)))] == ["Operations of matrix products"]


@pytest.mark.parametrize(("mode", "stack"), [("textbook", 1), ("recorded", 2)])
def test_contestants_on_a_gpu_as_far_as_a_cpu_can_tell(monkeypatch, mode, stack):
    waited = []
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    monkeypatch.setattr("torch.cuda.synchronize", lambda: waited.append(True))
    parts, _ = gpu.prepare({**Settings.quick().options(), "mode": mode, "stack": stack})
    assert parts["step"](4) == 4 and waited == [True]


def test_the_page_tells_of_a_gpu_and_of_what_was_left_out():
    result = json.loads(RESULT.read_text())
    eager = {"parts": {"step": {"wall_ms": [0.5, 0.5, 0.6]}}}
    textbook = {"parts": {"step": {"wall_ms": [1.0, 1.1, 1.5]}}}
    result["gpu"] = {"device": "a GPU", "contestants": {"textbook": textbook, "eager, 8 seeds": eager}}
    result["left_out"] = {"corl": "no checkout was named", "compiled": "it died; the last:\n  much\n  CppCompileError"}
    text = page(result)
    assert "| metarl, eager, 8 seeds | 0.500 (0.500 to 0.600) | 2.20 (2.00 to 2.50) |" in text
    assert "- CORL: no checkout was named.\n- metarl, compiled: it died; the last: CppCompileError." in text


@pytest.fixture
def more():
    """The committed measurement, and made-up times of what is compared with CORL, which takes 10 to our 5, and of GORL
    on all bases, where it adds 2 %."""
    result = json.loads(RESULT.read_text())
    result["settings"] = asdict(Settings())
    step = {"setup_cpu_s": 1.0, "facts": {"sha256": "0123456789abcdef"}}
    result["compared"] = {
        name: {
            "contestants": {
                each: {**step, "parts": {"step": ms([10.0] * 2 if each in (CORL, "td3_bc, eager") else [5.0] * 2)}}
                for each in comparison.names()
            }
        }
        for name, comparison in COMPARISONS.items()
    }
    result.pop("apart", None)
    takes = {"rl_il": 10.0, "gild": 15.0, "gild-il": 20.0}
    result["learned"] = {
        name: {
            "contestants": {
                each: {
                    **step,
                    "parts": {"step": ms([takes.get(each.partition(", ")[0].partition("+")[2] or each, 5.0)] * 2)},
                }
                for each in comparison.names()
            }
        }
        for name, comparison in LEARNED.items()
    }
    runs = {
        each: {"cpu_s": [total] * 2, "preparing_cpu_s": [few] * 2, "preparing_cold_cpu_s": 20.0, "modes": {}}
        for each, total, few in (("alone", 101.0, 1.0), ("gild", 105.0, 3.0))
    }
    result["whole"] = {name: {"env": env, "gradient_steps": 19000, "runs": runs} for name, env in WHOLE.items()}
    times = {"policy": 1.0, "weighted": 1.02, "guided": 1.02, "base": 1.0, "gorl": 1.0}
    turns = {mode: {"parts": {part: ms([time] * 2) for part, time in times.items()}} for mode in MODES}
    result["gorl"] = turns
    result["gorl_bases"] = {base: dict(turns) for base in BASES if base != "td3_bc"}
    return result


def test_the_page_shows_what_is_compared_with_corl(more):
    text = page(more)
    assert "| metarl, compiled, official order | 5.00 (5.00 to 5.00) | 2.00 (2.00 to 2.00) | 1.0 |" in text
    assert "| metarl, eager | 5.00 (5.00 to 5.00) | 2.00 (2.00 to 2.00) | 1.0 |\n| metarl, recorded" in text
    assert "| metarl, eager, TD3+BC | 10.0 (10.0 to 10.0) | 1.00 (1.00 to 1.00) | 1.0 |" in text
    assert "`algorithms/offline/cql.py` of the same checkout (sha256: `0123456789ab`)" in " ".join(text.split())
    table = summary(more)
    columns = "IQL; CORL = 1 | IQL, official order; CORL = 1 | CQL; CORL = 1 | SAC+BC; TD3+BC = 1"
    assert f"| size of hopper | {columns} |" in table
    assert "| metarl, eager | 2.00 | 2.00 | 2.00 | 2.00 |\n| metarl, recorded | 2.00 | 2.00 | 2.00 | 1.00 |" in table
    panels = picture(more).axes
    assert len(panels) == len(more["sizes"]) + len(COMPARISONS)


def test_the_page_shows_what_learned_losses_cost(more):
    text = page(more)
    assert "| GILD, compiled | 15.0 (15.0 to 15.0) | 1.50 (1.50 to 1.50) | 0.75 (0.75 to 0.75) | 1.0 |" in text
    assert "| GILD, the authors' | 15.0 (15.0 to 15.0) | 0.75 (0.75 to 0.75) | 0.75 (0.75 to 0.75) | 1.0 |" in text
    assert "## Learned losses on SAC, size of halfcheetah" in text and "every step moves everything" in text
    assert f"lists the {len(SHIMS)} replacements" in text and "Measured in a run of its own" not in text
    for each in AUTHORS:
        del more["learned"]["gild_td3"]["contestants"][each]
    text = page(more)
    assert "| GILD, compiled | 15.0 (15.0 to 15.0) | 1.50 (1.50 to 1.50) | 1.0 |" in text
    assert "the authors' RL+IL = 1" not in text and "slDeng1003" not in text


def test_the_page_shows_whole_runs(more):
    row = "| 19,000 | 101 (101 to 101) | 105 (105 to 105) | 1.040 (1.040 to 1.040) | 1.020 (1.020 to 1.020) |"
    text = page(more)
    for env in WHOLE.values():
        assert f"| {env} {row} 1.0 (20.0) | 3.0 (20.0) |" in text
    assert "for 1% of the gradient steps" in " ".join(text.split())


def test_the_page_tells_of_answers_from_runs_of_their_own(more):
    own = {
        "environment": {**more["environment"], "machine": "another machine"},
        "load_average": {"before": 7.0, "after": 8.0},
        "settings": {**more["settings"], "rounds": 99, "rows": 12345, "whole_steps": 777},
    }
    more["apart"] = dict.fromkeys(("iql", "gild_sac", *WHOLE), own)
    text = " ".join(page(more).split())
    told = "Measured in a run of its own, 99 rounds: Python"
    assert text.count(told) == 3  # both whole runs came from one
    assert "another machine; load average 7.0 before and 8.0 after." in text
    assert "12,345 transitions" in text and "200,000 transitions" in text and "777 environment steps" in text


def test_the_page_shows_what_gorl_adds_to_every_base(more):
    text = page(more)
    milliseconds = "1.00 (1.00 to 1.00) | 0.02 (0.02 to 0.02) | 0.00 (0.00 to 0.00)"
    assert f"| IQL, eager | 200 | {milliseconds} | 2.0 % (2.0 to 2.0) | 2.6 % |" in text
    assert "| average, compiled |  |  |  |  | 2.0 % (2.0 to 2.0) | 1.9 % |" in text


def test_what_ran_without_corl_is_shown_by_its_times_alone(more):
    for name in ("iql", "cql"):
        del more["compared"][name]["contestants"][CORL]
    del more["gorl_bases"]["cql"]["compiled"]
    text = page(more)
    assert "| metarl, eager, official order | 5.00 (5.00 to 5.00) |  | 1.0 |" in text and "cql.py" not in text
    assert "| average, eager |" in text and "| average, compiled |" not in text
    assert "| size of hopper | SAC+BC; TD3+BC = 1 |" in summary(more)
    assert len(picture(more).axes) == len(more["sizes"]) + 1


def test_the_committed_page_shows_the_committed_measurement():
    result = json.loads(RESULT.read_text())
    assert page(result) == (DOCS / "speed.md").read_text()
    readme = (DOCS.parent / "README.md").read_text()
    assert with_table(readme, summary(result), "speed table") == readme
    assert len(picture(result).axes) == len(result["sizes"]) + len(result.get("compared", {}))
    assert (DOCS / "speed.png").stat().st_size > 10_000
