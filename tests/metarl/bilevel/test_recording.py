"""Recording: the operations of a pure function, run again on other numbers."""

import pytest
import torch

from metarl.bilevel.recording import leaves, record, recorded
from metarl.errors import ConfigError


def test_a_recording_runs_on_other_numbers_and_keeps_the_structure():
    def fn(tree, flag):
        return {"sum": tree["a"] + tree["b"][0], "rest": (tree["b"][0] * 2, None), "flag": flag}

    tree = {"a": torch.ones(3), "b": (torch.zeros(3),)}
    recording = record(fn, tree, "kept")
    other = {"a": torch.arange(3.0), "b": (torch.full((3,), 5.0),)}
    found = recording(*leaves(other))
    assert found["sum"].tolist() == [5.0, 6.0, 7.0] and found["rest"][0].tolist() == [10.0] * 3
    assert found["rest"][1] is None and found["flag"] == "kept"


def test_gradients_and_vmap_leave_only_operations():
    def loss(w, x):
        return (x @ w).tanh().square().sum()

    def fn(w, x):
        return torch.vmap(torch.func.grad(loss))(w, x)

    w, x = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 4, 3, dtype=torch.float64)
    torch.testing.assert_close(record(fn, w, x)(w, x), fn(w, x), rtol=1e-12, atol=1e-12)


def test_closed_over_tensors_are_constants():
    shift = torch.tensor([1.0, 2.0])
    assert record(lambda x: x + shift, torch.zeros(2))(torch.ones(2)).tolist() == [2.0, 3.0]


@pytest.mark.parametrize("fn", [lambda x: x if x.sum() > 0 else -x, lambda x: x * x.max().item()])
def test_a_look_at_a_value_is_an_error(fn):
    with pytest.raises(ConfigError, match=r"looks at the value of a tensor.*torch\.where.*compile: off"):
        record(fn, torch.ones(2))


def test_pruned_inputs():
    recording = record(lambda a, b, c: a + c, *(torch.ones(1) for _ in range(3)))
    assert recording.prune() == [0, 2]
    assert recording(torch.tensor([2.0]), torch.tensor([3.0])).item() == 5.0


def test_outputs_do_not_share_memory_with_inputs():
    """A state that is overwritten later must not change what was returned before."""
    x = torch.zeros(3)
    for out in record(lambda x: (x, x.view(3, 1), x[1:], x.detach()), x)(x):
        assert out.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()


def test_a_prepared_function_knows_names_and_constants():
    fn = recorded(lambda tree, factor: factor * tree["a"] - tree["b"])
    one, two = torch.tensor([1.0]), torch.tensor([2.0])
    assert fn({"a": one, "b": two}, 1).item() == -1
    assert fn({"b": two, "a": one}, 1).item() == -1
    assert fn({"a": one, "b": two}, 3).item() == 1
