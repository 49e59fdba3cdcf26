"""Products through oneDNN: the numbers and derivatives of PyTorch's own."""

import pytest
import torch

from metarl.products import affine, faster_by_onednn, in_parts


def numbers(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


@pytest.mark.parametrize(
    "shape",
    [(64, 48, 32), (64, 48, 3), (64, 9, 64), (20, 256, 256), (256, 256, 1), (3, 64, 64), (5000, 48, 32)],
)
def test_values_first_and_second_derivatives(shape):
    m, k, n = shape
    x, w, b = numbers((m, k), (k, n), (n,))
    direction = numbers((m, k), (k, n), (n,))

    def both(layer):
        y = layer(x, w, b)
        grads = torch.autograd.grad(y.tanh().square().sum(), (x, w, b), create_graph=True)
        along = sum((g * d).sum() for g, d in zip(grads, direction, strict=True))
        return y, *grads, *torch.autograd.grad(along, (x, w, b))

    for ours, theirs in zip(both(affine), both(lambda x, w, b: torch.addmm(b, x, w)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.detach().abs().max()))


def test_a_long_sum_is_taken_in_parts_where_its_left_factor_is_transposed():
    a, b = (value.detach() for value in numbers((5000, 48), (5000, 32)))
    assert in_parts(a.t(), b) and not in_parts(a.t().contiguous(), b) and not in_parts(a[:2000].t(), b[:2000])


def test_only_large_single_precision_products_on_a_cpu():
    cpu = torch.device("cpu")
    assert faster_by_onednn(256, 256, 256, torch.float32, cpu)
    assert not faster_by_onednn(256, 256, 256, torch.float64, cpu)
    assert not faster_by_onednn(256, 256, 1, torch.float32, cpu)
    assert not faster_by_onednn(16, 16, 16, torch.float32, cpu)
    assert not faster_by_onednn(256, 256, 256, torch.float32, torch.device("cuda"))


def test_gradients_of_parts_alone():
    x, w, b = numbers((64, 48), (48, 32), (32,))
    for wanted in ((x,), (w,), (b,)):
        (grad,) = torch.autograd.grad(affine(x, w, b).square().sum(), wanted)
        (expected,) = torch.autograd.grad(torch.addmm(b, x, w).square().sum(), wanted)
        torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-2)


def test_transforms_see_the_plain_product():
    x, w, b = numbers((64, 48), (48, 32), (32,))
    grad = torch.func.grad(lambda w: affine(x, w, b).sum())(w)
    torch.testing.assert_close(grad, x.sum(0)[:, None].expand(48, 32), rtol=1e-4, atol=1e-3)


def test_a_bias_that_is_not_dense_and_shapes_that_do_not_fit():
    x, w, b = (value.detach() for value in numbers((64, 48), (48, 32), (64,)))
    for bias in (b[::2], b[0].expand(32), b[0], b[:1]):
        torch.testing.assert_close(affine(x, w, bias), torch.addmm(bias, x, w), rtol=1e-5, atol=1e-5)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        affine(x, w.t(), b)


def test_forward_mode_and_autocast_go_through_pytorch():
    x, w, b = (value.detach() for value in numbers((64, 48), (48, 32), (32,)))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(w, torch.ones_like(w))
        tangent = torch.autograd.forward_ad.unpack_dual(affine(x, dual, b)).tangent
    torch.testing.assert_close(tangent, x.sum(-1, keepdim=True).expand(64, 32), rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert affine(x, w, b).dtype == torch.bfloat16
