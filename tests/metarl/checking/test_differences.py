"""Five-point differences judge a right gradient right to rounding, and tell how far a wrong one is off."""

import pytest
import torch

from metarl import stop_gradient
from metarl.checking.differences import STEPS, agreements, best

POINT = {"a": torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64), "b": torch.tensor(0.4, dtype=torch.float64)}


def value(p):
    return (p["a"].sin() * p["b"]).sum().exp(), None


def slope(p):
    outer = value(p)[0]
    return {"a": outer * p["a"].cos() * p["b"], "b": outer * p["a"].sin().sum()}


def test_a_right_gradient_agrees():
    found = agreements(value, POINT, slope(POINT))
    assert [a.h for a in found] == list(STEPS)
    assert best(found).error < 1e-10 and all(a.error < 1e-6 for a in found)


@pytest.mark.parametrize("factor", [0.5, 0.99, 1.001])
def test_the_error_of_a_wrong_one_is_relative(factor):
    wrong = {k: factor * g for k, g in slope(POINT).items()}
    along_gradient = abs(1 - factor) / factor
    assert best(agreements(value, POINT, wrong)).error == pytest.approx(along_gradient, rel=1.5)
    assert best(agreements(value, POINT, wrong)).error >= along_gradient * (1 - 1e-6)


def test_an_error_off_the_gradients_direction_is_seen_too():
    right = slope(POINT)
    off = {"a": torch.zeros(3, dtype=torch.float64), "b": torch.tensor(0.0, dtype=torch.float64)}
    off["a"][0], off["a"][1] = right["a"][1], -right["a"][0]  # at right angles to the gradient
    wrong = {k: right[k] + 0.3 * off[k] for k in right}
    assert best(agreements(value, POINT, wrong)).error > 0.01


def test_a_zero_gradient_of_a_function_that_moves_disagrees():
    zero = {k: torch.zeros_like(p) for k, p in POINT.items()}
    assert best(agreements(value, POINT, zero)).error > 0.1


def test_stopped_values_are_held():
    def scaled(p):
        return (stop_gradient(p["a"].square().sum()) * p["a"].sum()) + 0 * p["b"], None

    total = POINT["a"].square().sum()
    grads = {"a": total.expand(3), "b": torch.zeros((), dtype=torch.float64)}
    assert best(agreements(scaled, POINT, grads)).error < 1e-10


def test_rounding_is_told_from_error():
    def drowned(p):
        return 1e8 + value(p)[0], None

    found = agreements(drowned, POINT, slope(POINT))
    assert all(a.error < 20 * a.noise for a in found[1:]) and found[-1].noise > 1e-3


def test_rounding_inside_a_small_value_is_seen_too():
    def cancelling(p):
        return (1e8 + value(p)[0]) - 1e8, None

    found = agreements(cancelling, POINT, slope(POINT))
    assert found[-1].noise > 1e-3 and all(a.error < 20 * a.noise for a in found[1:])
