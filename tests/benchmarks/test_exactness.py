"""Every cell of the exactness table, and that the committed page and flags are those of this code."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from benchmarks.exactness import cells, choice, table, transforms
from benchmarks.exactness.__main__ import CHOICE, PAGE, TRANSFORMS
from benchmarks.exactness.oracle import Exact, Quadratic, Ridge, Walk

REFUSED = {
    ("unrolled", "higher", "adam"),
    ("unrolled", "higher", "adamw"),
    *((f"implicit, {solver}", "native", "adamw") for solver in ("cg", "neumann", "fixed_point", "identity")),
    ("implicit, fixed_point", "native", "adam"),
    ("implicit, fixed_point", "native", "rmsprop"),
}
ROWS = sorted({(cell.estimator, cell.backend, cell.optimizer) for cell in cells.grid()})


@pytest.fixture(scope="module")
def measured():
    return [cells.measure(cell) for cell in cells.grid()]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(row))
def test_every_cell_is_right_or_refused(row):
    found = [cells.measure(c) for c in cells.grid() if (c.estimator, c.backend, c.optimizer) == row]
    assert found
    for cell in found:
        assert (cell.refused is not None) == (row in REFUSED), cell
        if cell.error is not None:
            assert cell.error <= (4 if cell.judged == cells.NOISY else 1e-6), cell


def test_noisy_cells_are_neither_exact_nor_all_alike():
    found = [cells.measure(c) for c in cells.grid() if c.judged == cells.NOISY and c.optimizer == "sgd"]
    assert all(cell.error > 1e-3 for cell in found)


@pytest.mark.parametrize("kind", [Ridge, Quadratic])
def test_the_oracle_agrees_with_finite_differences_of_the_optimum(kind):
    """An oracle of the oracle: F(theta*(phi), phi) by real central differences."""
    problem = kind()
    exact = Exact(problem, "sgd", Walk.at(problem.theta)).at_optimum

    def value(phi):
        return problem.value(problem.optimum(phi), phi)

    h = 1e-5
    slopes = [(value(problem.phi + h * e) - value(problem.phi - h * e)) / (2 * h) for e in np.eye(len(problem.phi))]
    np.testing.assert_allclose(exact, slopes, rtol=1e-7, atol=1e-9)
    theta = problem.optimum(problem.phi)
    assert np.abs(problem.gradient(theta, problem.phi)).max() < 1e-12
    hessian, mixed = problem.second(problem.theta, problem.phi)
    for j, e in enumerate(np.eye(len(problem.theta))):
        slope = problem.gradient(problem.theta + 1e-30j * e, problem.phi).imag / 1e-30
        np.testing.assert_allclose(hessian[:, j], slope, rtol=1e-12, atol=1e-14)
    for j, e in enumerate(np.eye(len(problem.phi))):
        slope = problem.gradient(problem.theta + 0j, problem.phi + 1e-30j * e).imag / 1e-30
        np.testing.assert_allclose(mixed[:, j], slope, rtol=1e-12, atol=1e-14)


@pytest.mark.slow
def test_the_committed_page_has_the_rows_of_the_grid(measured):
    def skeleton(text):
        return re.sub(r"\d\S*(?: s\.e\.)?", "#", text)

    assert skeleton(table.page(measured)) == skeleton(PAGE.read_text())


def test_what_compiles_and_vmaps_is_what_the_list_shows():
    assert transforms.measure() == json.loads(TRANSFORMS.read_text())


@pytest.fixture(scope="module")
def rows():
    return choice.measure()


@pytest.mark.slow
def test_the_table_of_costs_says_what_the_page_says_of_it(rows):
    steps = choice.STEPS
    cg, unrolled = rows[f'Implicit("cg", iterations={steps})'], rows[f"Unrolled(steps={steps})"]
    assert cg.trained == pytest.approx((1, 1), abs=5e-3)
    assert unrolled.trained[0] > 0.98 and 0.5 < unrolled.trained[1] < 0.8
    assert rows["Unrolled(steps=1)"].trained[1] < 0.1
    for solver in ("neumann", "fixed_point"):  # each term is one step further back
        found = rows[f'Implicit("{solver}", iterations={steps})']
        assert found.trained == pytest.approx(unrolled.trained, abs=1e-3)
        assert found.memory < unrolled.memory / 5
    forward = rows[f"ForwardMode(steps={steps})"]
    assert forward.cold == pytest.approx(unrolled.cold, abs=1e-9)
    assert forward.one < 3 * unrolled.one and forward.many > 40 * unrolled.many


def test_the_committed_table_of_costs_has_these_rows(rows):
    printed = CHOICE.read_text()
    for name, row in rows.items():
        (line,) = [line for line in printed.splitlines() if line.startswith(f"| `{name}` |")]
        cost = [float(entry) for entry in line.split("|")[4:6]]
        assert cost == pytest.approx([row.one, row.many], abs=1)
