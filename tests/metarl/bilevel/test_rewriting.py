"""Rewriting: the same numbers from fewer operations."""

import pytest
import torch

from metarl.bilevel import rewriting
from metarl.bilevel.recording import record, recorded
from metarl.products import LINEAR

aten = torch.ops.aten


def draw(*shapes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, dtype=dtype, generator=generator) for shape in shapes]


def products(recording):
    targets = (aten.mm.default, aten.bmm.default)
    return [tuple(n.meta["val"].shape) for n in recording.module.graph.nodes if n.target in targets]


def count(recording, target):
    return sum(node.target is target for node in recording.module.graph.nodes)


@pytest.mark.parametrize("lead", [(), (3,)], ids=["matrices", "stacks"])
@pytest.mark.parametrize(
    ("fn", "shapes"),
    [
        (lambda a, b, c: a @ (b @ c), ((8, 8), (8, 2), (2, 8))),
        (lambda a, b, c: a @ (-(b @ c) * 0.1).mT, ((8, 8), (8, 2), (2, 8))),
        (lambda a, b, c: a @ ((b @ c).mT * 3 * 2), ((8, 9), (7, 2), (2, 9))),
        (lambda a, b, c: a @ ((b @ c).mT * 3 * 2), ((8, 9), (7, 2), (2, 9))),
        (lambda a, b, c: a @ torch.permute(b @ c, [*range(a.dim() - 2), -1, -2]), ((8, 8), (8, 2), (2, 8))),
        (lambda a, b, c: a @ torch.permute(b @ c, [*range(a.dim() - 2), -2, -1]), ((8, 8), (8, 2), (2, 8))),
    ],
    ids=["plain", "scaled and transposed", "oblong", "twice", "permuted", "permuted to itself"],
)
def test_a_thin_product_is_taken_apart(fn, shapes, lead, monkeypatch):
    monkeypatch.setattr(rewriting, "_one_by_one", lambda *_: None)
    x = draw(*(lead + shape for shape in shapes))
    plain, better = record(fn, *x, rewrite=False), record(fn, *x)
    assert (*lead, 8, 2) not in products(plain) and (*lead, 8, 2) in products(better)
    torch.testing.assert_close(better(*x), fn(*x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("fn", "shapes"),
    [
        (lambda a, b, c: a @ (b @ c), ((8, 8), (8, 8), (8, 8))),
        (lambda a, b, c: (a @ (d := b @ c)) + d, ((8, 8), (8, 2), (2, 8))),
        (lambda a, b, c: a @ (b @ c).relu(), ((8, 8), (8, 2), (2, 8))),
    ],
    ids=["nothing to gain", "needed elsewhere", "not linear"],
)
def test_others_stay(fn, shapes):
    x = draw(*shapes)
    assert products(record(fn, *x)) == products(record(fn, *x, rewrite=False))


def test_two_gradients_of_one_network_share_what_they_can():
    """The critic's backward pass is the same whatever weighs the other term: the fusion that GORL lives on."""

    def fn(x, w, v, b1, b2):
        def gradient(b):
            with torch.enable_grad():
                leaf = w.detach().requires_grad_()
                action = (x @ leaf).tanh()
                loss = -(action @ v).relu().mean() + (b * action.square().sum(-1)).mean()
                return torch.autograd.grad(loss, leaf)[0]

        return gradient(b1), gradient(b2)

    x = draw((5, 4), (4, 3), (3, 2), (5,), (5,))
    plain, better = record(fn, *x, rewrite=False), record(fn, *x)
    assert len(products(plain)) == 8 and len(products(better)) == 5  # forward 2, the critic's backward 1, weights 2
    for ours, theirs in zip(better(*x), fn(*x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_random_numbers_are_not_shared():
    recording = record(lambda x: torch.rand_like(x) - torch.rand_like(x), torch.zeros(100))
    assert recording(torch.zeros(100)).abs().min() > 0


def test_what_overwrites_is_left_in_its_order():
    def fn(x):
        y = x.clone()
        before = y.sum()
        y[0] = 7.0
        return before, y.sum()

    x = torch.arange(3.0)
    recording = record(fn, x)
    for _ in range(2):
        assert [float(v) for v in recording(x)] == [3.0, 10.0]


def test_equal_constants_are_one_and_unequal_ones_are_not():
    def fn(x):
        return (x * x.new_tensor([1.0, 2.0])).exp(), (x * x.new_tensor([1.0, 2.0])).exp(), x * x.new_tensor([1.0, 3.0])

    x = torch.tensor([1.0, 1.0])
    recording = record(fn, x)
    assert count(recording, aten.exp.default) == 1 and count(recording, aten.mul.Tensor) == 2
    for ours, theirs in zip(recording(x), fn(x), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_product_with_one_may_still_change_the_dtype():
    recording = record(lambda n: (n * 1.0, n * 1), torch.tensor([2]))
    assert [v.dtype for v in recording(torch.tensor([2]))] == [torch.float32, torch.int64]


@pytest.mark.parametrize("stack", [None, 2])
@pytest.mark.parametrize("activation", [torch.relu, torch.tanh])
def test_large_layers_on_a_cpu_go_through_onednn(stack, activation):
    def layer(x, w, b):
        return activation(torch.addmm(b, x, w)), x.sum()

    fn = torch.vmap(layer) if stack else layer
    lead = (stack,) if stack else ()
    x = draw((*lead, 64, 48), (*lead, 48, 32), (*lead, 32), dtype=torch.float32)
    recording = record(fn, *x)
    assert count(recording, LINEAR) == (stack or 1)
    torch.testing.assert_close(recording(*x), fn(*x), rtol=1e-5, atol=1e-5)
    exact = [value.double() for value in x]
    assert count(record(fn, *exact), LINEAR) == 0
    torch.testing.assert_close(record(fn, *exact)(*exact), fn(*exact), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stack", [None, 2])
def test_nan_goes_through_a_layer_and_its_relu(stack):
    """oneDNN's own ReLU makes a zero of it, and nobody would see."""
    lead = (stack,) if stack else ()
    x, w, b = draw((*lead, 64, 48), (*lead, 48, 32), (*lead, 32), dtype=torch.float32)
    x[..., 3, 5] = float("nan")
    layer = lambda x, w, b: torch.relu(torch.addmm(b, x, w))  # noqa: E731
    recording = record(torch.vmap(layer) if stack else layer, x, w, b)
    assert count(recording, LINEAR) and recording(x, w, b)[..., 3, :].isnan().all()


@pytest.mark.parametrize("kind", ["expanded", "strided", "column", "one number"])
@pytest.mark.parametrize("stack", [None, 2])
def test_a_bias_that_is_not_dense_is_read_rightly(kind, stack):
    """oneDNN does not look at its strides."""
    lead = (stack,) if stack else ()
    x, w = draw((*lead, 64, 48), (*lead, 48, 32), dtype=torch.float32)
    shape = {"expanded": (*lead,), "strided": (*lead, 64), "column": (*lead, 32, 3), "one number": (*lead, 1)}[kind]
    (b,) = draw(shape, dtype=torch.float32)
    view = {
        "expanded": lambda b: b.expand(32),
        "strided": lambda b: b[::2],
        "column": lambda b: b[:, 1],
        "one number": lambda b: b,
    }[kind]

    def layer(x, w, b):
        return torch.addmm(view(b), x, w)

    fn = torch.vmap(layer) if stack else layer
    torch.testing.assert_close(record(fn, x, w, b)(x, w, b), fn(x, w, b), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dims", [(0, 0, 0), (0, 0, 1), (0, None, None), (0, 0, None)])
def test_a_bias_mapped_over_another_axis(dims):
    shapes = [(2, 64, 48), (48, 32) if dims[1] is None else (2, 48, 32), {0: (2, 32), 1: (32, 2), None: (32,)}[dims[2]]]
    x = draw(*shapes, dtype=torch.float32)
    fn = torch.vmap(lambda x, w, b: x @ w + b, in_dims=dims)
    torch.testing.assert_close(record(fn, *x)(*x), fn(*x), rtol=1e-5, atol=1e-5)


def test_a_mask_added_to_a_product_is_no_bias():
    x, w = draw((2, 64, 48), (2, 48, 32), dtype=torch.float32)
    for mask in (torch.ones(32, dtype=torch.bool), torch.arange(32), torch.ones(32, dtype=torch.float64)):
        fn = torch.vmap(lambda x, w, mask=mask: x @ w + mask)
        torch.testing.assert_close(record(fn, x, w)(x, w), fn(x, w), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: (1.0 * x).reshape(-1, 6),
        lambda x: (1.0 * x[:1].expand(64, 3)).view(-1),
        lambda x: torch.zeros_like(x.t().contiguous().t()).t().view(-1) + x.sum(),
    ],
    ids=["rows of a wider table", "expanded", "filled"],
)
def test_what_changes_the_memory_layout_stays(fn):
    x = draw((64, 5), dtype=torch.float32)[0][:, :3]
    torch.testing.assert_close(record(fn, x)(x), fn(x))


def test_long_stacks_of_small_products_stay_batched():
    x, y = draw((256, 1, 8), (256, 8, 1))
    assert products(record(torch.bmm, x, y)) == [(256, 1, 1)]


def test_a_bias_added_after_its_factor_has_been_overwritten():
    def fn(x, w, b):
        x = x.clone()
        y = torch.bmm(x, w)
        x.mul_(2)
        return y + b, x

    x = draw((2, 64, 48), (2, 48, 32), (2, 1, 32), dtype=torch.float32)
    for ours, theirs in zip(record(fn, *x)(*x), fn(*x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_sign_of_zero_is_kept():
    def fn(x):
        return 1 / (x * x.new_tensor(0.0)), 1 / (x * x.new_tensor(-0.0)), 1 / (x * 0.0), 1 / (x * -0.0)

    x = torch.ones(())
    assert [float(v) for v in record(fn, x)(x)] == [float(v) for v in fn(x)] == [float("inf"), float("-inf")] * 2


def test_a_factor_that_keeps_numbers_in_range_still_does():
    a, b, c = draw((8, 8), (8, 2), (2, 8), dtype=torch.float32)
    a, b, c = a * 1e20, b * 1e20, c * 1e10
    fn = lambda a, b, c: a @ ((b @ c) * 1e-30)  # noqa: E731
    recording = record(fn, a, b, c)
    assert (8, 2) in products(recording)
    torch.testing.assert_close(recording(a, b, c), fn(a, b, c), rtol=1e-4, atol=1e16)


def test_constants_are_converted_once():
    recording = record(lambda x: x * torch.tensor([1, 2]).to(torch.float64), torch.ones(2, dtype=torch.float64))
    assert count(recording, aten._to_copy.default) == 0
    assert recording(torch.ones(2, dtype=torch.float64)).tolist() == [1.0, 2.0]


def gradient(fn):
    def of(x, w):
        w = w.detach().requires_grad_()
        return torch.autograd.grad(fn(x, w), w)[0]

    return of


@pytest.mark.parametrize(
    "fn",
    [
        lambda x, w: (x @ w).clamp(-0.5, 0.5).square().sum(),
        lambda x, w: torch.minimum(x @ w, (x @ w).square()).sum(),
        lambda x, w: torch.maximum(x @ w, torch.tanh(x @ w)).clamp(-1, 1).sum(),
    ],
)
def test_gradients_that_overwrite_their_own_results_are_rewritten(fn):
    x, w = draw((64, 64), (64, 64), dtype=torch.float32)
    raw = record(gradient(fn), x, w, rewrite=False)
    assert any(rewriting._mutates(node) for node in raw.module.graph.nodes)  # else there is nothing to test
    made = record(gradient(fn), x, w)
    assert not any(rewriting._mutates(node) for node in made.module.graph.nodes)
    assert made.module.graph.find_nodes(op="call_function", target=LINEAR)
    torch.testing.assert_close(made(x, w), gradient(fn)(x, w))


def overwritten(x, w):
    y = x @ w
    z = y * 2  # of before
    y.add_(1)
    y.mul_(y)
    return z + y


def through_a_view(x, w):
    y = x @ w
    row = y[0]
    y.mul_(3)
    return row + y.sum(0)


def through_itself(x, w):
    y = x @ w
    z = y.mul_(3)
    y.add_(z)
    return y, z


def an_input(x, w):
    y = x.clone()
    y.copy_(w)
    return y + x


@pytest.mark.parametrize("fn", [overwritten, through_a_view, through_itself, an_input])
def test_what_a_loss_overwrites_stays_right(fn):
    x, w = draw((8, 8), (8, 8))
    torch.testing.assert_close(recorded(fn)(x, w), fn(x, w))
