"""Contestants compute one hypergradient, and the result has what the tables need; nothing looks at the clock."""

import json
from functools import partial

import pytest
import torch

from benchmarks.hypergradients import Unequal, comparison, measure, table
from benchmarks.hypergradients.__main__ import PAGE, RESULT, main, problems
from benchmarks.hypergradients.comparison import Size, errors, peak_memory
from benchmarks.hypergradients.contestants import OURS, RIVALS, by_hand
from benchmarks.hypergradients.problems import actor, cleaning, ridge
from benchmarks.hypergradients.tables import shown
from benchmarks.readme import with_table
from metarl.bilevel.recording import recorded

TINY = [
    ridge(n=8, d=3, steps=3),
    cleaning(n=12, d=4, classes=3, steps=2),
    actor("sgd", hidden=8, batch=16, guide=4),
    actor("adam", hidden=8, batch=16, guide=4),
]


@pytest.mark.parametrize("problem", TINY, ids=lambda problem: problem.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_all_contestants_agree(problem, dtype):
    with comparison.default_dtype(dtype):
        found, _ = errors(problem.to(dtype), OURS | RIVALS)
    assert set(found) == {*OURS, *RIVALS}


@pytest.mark.parametrize("problem", [p for p in TINY if p.optimizer == "sgd"], ids=lambda problem: problem.name)
def test_the_reference_agrees_with_finite_differences(problem):
    problem = problem.to(torch.float64)
    name, grad = next(iter(problem.meta)), by_hand(problem)()[0]
    direction, h = grad / grad.norm(), 1e-4
    above, below = (
        _after_sgd(problem, {**problem.meta, name: problem.meta[name] + step * direction}) for step in (h, -h)
    )
    assert (above - below) / (2 * h) == pytest.approx(grad.norm().item(), rel=1e-5)


def _after_sgd(problem, meta):
    """The outer loss at the end of the virtual steps."""
    params = problem.params
    for _ in range(problem.steps):
        leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
        loss = problem.inner(partial(problem.model, leaves), partial(problem.learned, meta), problem.batches)
        grads = torch.autograd.grad(loss, list(leaves.values()))
        params = {name: value - problem.lr * g for (name, value), g in zip(params.items(), grads, strict=True)}
    return problem.outer(partial(problem.model, params), problem.batches).item()


def test_unequal_contestants_are_not_timed(monkeypatch):
    monkeypatch.setitem(RIVALS, "half", lambda problem: lambda: tuple(g / 2 for g in by_hand(problem)()))
    monkeypatch.setattr(comparison, "take_turns", lambda *_: pytest.fail("timed"))
    with pytest.raises(Unequal, match="half is 5"):
        measure(TINY[:1], Size(compiled=False))


def test_a_hypergradient_of_zero_is_no_reference():
    problem = ridge(n=8, d=3, steps=3)
    problem.batches["validation"]["x"].zero_()
    with pytest.raises(Unequal, match="zero or not finite"):
        errors(problem, OURS)


def test_result_and_tables(monkeypatch):
    monkeypatch.setattr(comparison, "compiled", recorded)  # all but the C++ compiler
    result = json.loads(json.dumps(measure(TINY[:1], Size(rounds=2, turn_ms=0.1))))
    (problem,) = result["problems"].values()
    assert set(problem["contestants"]) == {*OURS, *RIVALS, "metarl compiled"}
    assert all(figures["peak_bytes"] > 0 for figures in problem["contestants"].values())
    assert problem["fastest_rival"] in RIVALS and problem["leanest_rival"] in RIVALS
    assert problem["over_best_rival"][problem["fastest_rival"]]["time"]["median"] == 1
    assert min(problem["over_best_rival"][name]["memory"] for name in RIVALS) == 1
    assert problem["compile"]["seconds"] > 0
    assert {"torch", "torchopt", "higher", "machine"} <= set(result["environment"])
    head, rule, row = table(result).splitlines()
    assert head.count("|") == rule.count("|") == row.count("|") == 7
    assert problem["what"] in row
    assert shown(result).renderables


def test_the_published_result_has_every_problem():
    result = json.loads(RESULT.read_text())
    assert list(result["problems"]) == [problem.name for problem in problems()]
    assert len(table(result).splitlines()) == 2 + len(problems())


def test_quick_run_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("benchmarks.hypergradients.__main__.problems", lambda: TINY[:1])
    monkeypatch.setattr("benchmarks.hypergradients.__main__.QUICK", Size(rounds=1, turn_ms=0.1, compiled=False))
    main(["--quick", "--out", str(tmp_path / "result.json")])
    assert "torchopt functional" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_peak_memory_counts_what_is_held_at_once():
    x = torch.ones(1000, 25)
    one = x.nbytes
    assert peak_memory(lambda: x + 1) == pytest.approx(one, rel=0.01)
    assert peak_memory(lambda: (x + 1) * 2) == pytest.approx(2 * one, rel=0.01)
    assert peak_memory(lambda: [(x + 1).sum() for _ in range(5)]) == pytest.approx(one, rel=0.01)


def test_the_committed_page_shows_the_committed_measurement():
    page = PAGE.read_text()
    assert with_table(page, table(json.loads(RESULT.read_text())), "hypergradient speed") == page
