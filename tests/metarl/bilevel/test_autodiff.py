"""Gradients of one group, in every mode, and values that differences may not move."""

from __future__ import annotations

import pytest
import torch

from metarl import hold_stop_gradients, stop_gradient, value_and_grad
from metarl.bilevel.autodiff import detach, is_tracked, norm, unreached


def cubic(params):
    """a^3 + a b, and c that it never reads."""
    return params["a"] ** 3 + params["a"] * params["b"], {"seen": params["a"] * 2}


def point(**values):
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}


def test_gradient_value_and_aux_of_a_known_function():
    grads, value, aux = value_and_grad(cubic, point(a=2.0, b=5.0, c=7.0))
    assert {k: g.item() for k, g in grads.items()} == {"a": 17.0, "b": 2.0, "c": 0.0}
    assert value.item() == 18.0 and aux["seen"].item() == 4.0
    assert not (value.requires_grad or aux["seen"].requires_grad or is_tracked(grads))


def test_the_same_under_vmap():
    stacked = {k: v[None] for k, v in point(a=2.0, b=5.0, c=7.0).items()}
    grads, value, _ = torch.vmap(lambda p: value_and_grad(cubic, p))(stacked)
    assert {k: g.item() for k, g in grads.items()} == {"a": 17.0, "b": 2.0, "c": 0.0}
    assert value.item() == 18.0


def test_the_gradient_is_differentiable_inside_a_transform():
    outer = torch.func.grad(lambda p: sum(value_and_grad(cubic, p)[0].values()))
    second = outer(point(a=2.0, b=5.0, c=7.0))  # of 3 a^2 + b + a
    assert {k: g.item() for k, g in second.items()} == {"a": 13.0, "b": 1.0, "c": 0.0}


def test_the_graph_is_kept_only_when_asked_for():
    outer = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    grads, _, _ = value_and_grad(lambda p: (p["a"] ** 2 * outer, {}), point(a=2.0), differentiable=True)
    (slope,) = torch.autograd.grad(grads["a"], outer)
    assert grads["a"].item() == 12.0 and slope.item() == 4.0
    grads, value, _ = value_and_grad(lambda p: (p["a"] ** 2 * outer, {}), point(a=2.0))
    assert not grads["a"].requires_grad and not value.requires_grad


def test_gradient_is_partial_where_the_function_holds_tensors_computed_from_the_point():
    """d/da of a * b at fixed b, though b = a^2 was computed from a; and the graph still leads back to a."""
    a = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    b = a**2
    grads, _, _ = value_and_grad(lambda p: (p["a"] * b, {}), {"a": a}, differentiable=True)
    assert grads["a"].item() == 9.0
    (slope,) = torch.autograd.grad(grads["a"], a)
    assert slope.item() == 6.0


def test_a_group_that_reaches_nothing_has_gradient_zero():
    grads, value, _ = value_and_grad(lambda p: (torch.tensor(4.0), {}), point(a=2.0))
    assert grads["a"].item() == 0.0 and value.item() == 4.0


def test_unreached_tells_no_path_from_a_gradient_of_zero():
    assert unreached(cubic, point(a=0.0, b=0.0, c=7.0)) == ["c"]
    assert unreached(lambda p: (p["a"] * 0 + p["b"].detach(), {}), point(a=1.0, b=1.0)) == ["b"]


def test_stop_gradient_is_a_constant():
    grads, value, _ = value_and_grad(lambda p: (p["a"] * stop_gradient(p["a"]), {}), point(a=3.0))
    assert grads["a"].item() == 3.0 and value.item() == 9.0


def test_held_values_replay_in_order_and_are_let_go():
    def f(x):
        return stop_gradient(x) + 10 * stop_gradient(x**2) + 100 * x

    x, moved = torch.tensor(2.0), torch.tensor(3.0)
    with hold_stop_gradients() as rewind:
        assert f(x) == 242
        rewind()
        assert f(moved) == 342
        rewind()
        assert f(moved) == 342
    assert f(moved) == 393


def test_held_values_are_let_go_after_an_error_and_do_not_nest():
    with pytest.raises(RuntimeError, match="does not nest"), hold_stop_gradients(), hold_stop_gradients():
        pass
    assert stop_gradient(torch.tensor(5.0)) == 5
    with hold_stop_gradients() as rewind:
        stop_gradient(torch.tensor(1.0))
        rewind()
        stop_gradient(torch.tensor(2.0))
        with pytest.raises(RuntimeError, match=r"more often than in the recorded evaluation \(1 times\)"):
            stop_gradient(torch.tensor(3.0))  # a path that the recording never took


def test_detach_keeps_the_structure():
    from metarl import AdamState

    x = torch.ones(2, requires_grad=True)
    nest = {"a": [x, (x, 3)], "opt": AdamState({"w": x}, {"w": x}, x.sum())}
    out = detach(nest)
    assert isinstance(out["opt"], AdamState) and out["a"][1][1] == 3
    assert not any(t.requires_grad for t in (out["a"][0], out["a"][1][0], *out["opt"].mu.values()))
    assert is_tracked({"g": {"a": x}}) and not is_tracked({"g": {"a": x.detach()}})


def test_norm_is_that_of_one_vector():
    assert norm({"a": torch.tensor([[3.0]]), "b": torch.tensor(4.0)}) == 5.0
