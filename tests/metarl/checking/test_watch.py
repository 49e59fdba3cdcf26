"""The dispatch modes notice what they are for and nothing else."""

import pytest
import torch

from metarl.checking.watch import Broadcasts, Draws, Dtypes, LiveBytes, Writes, peak_memory

MEGA = 2**20


def buffer(n=MEGA):
    return torch.ones(n, dtype=torch.uint8)


def test_peak_memory_counts_what_is_alive_at_once():
    def one_after_the_other():
        for _ in range(5):
            x = buffer()
            del x

    def all_together():
        return [buffer() for _ in range(5)]

    assert peak_memory(one_after_the_other) == MEGA
    assert peak_memory(all_together) == 5 * MEGA
    assert peak_memory(lambda: None) == 0


def test_peak_memory_leaves_out_what_was_there_and_counts_views_once():
    there = buffer()

    def views():
        x = buffer()
        return there.view(-1), there[:10], x[: MEGA // 2], x.view(2, -1)

    assert peak_memory(views) == MEGA
    assert peak_memory(lambda: there.add_(1)) == 0


def test_a_view_keeps_its_storage_alive():
    def kept():
        x = buffer()
        view = x[:1]
        del x
        y = buffer()
        return view, y

    assert peak_memory(kept) == 2 * MEGA


def test_peak_memory_counts_what_autograd_keeps():
    x = torch.zeros(MEGA // 8, dtype=torch.float64, requires_grad=True)

    def chain():
        y = x
        for _ in range(4):
            y = y.exp()  # each one saves its result for the way back
        return torch.autograd.grad(y.sum(), x)

    with torch.no_grad():
        without = peak_memory(lambda: x.exp().exp().exp().exp())
    assert without == 2 * MEGA
    assert 4 * MEGA <= peak_memory(chain) <= 7 * MEGA


def test_what_is_freed_is_counted_out_again():
    with LiveBytes() as counter:
        kept = [buffer() for _ in range(3)]
        assert counter.live == 3 * MEGA
        del kept[1:]
        assert counter.live == MEGA
        del kept
    assert (counter.live, counter.peak) == (0, 3 * MEGA)


@pytest.mark.parametrize(
    ("shapes", "caught"),
    [
        (((7, 1), (7,)), True),
        (((7,), (7, 1)), True),
        (((11, 1), (7,)), True),
        (((7, 1), (1, 7)), False),  # written with both axes in place
        (((7, 3), (3,)), False),
        (((5, 7), (7,)), False),
        (((7, 1), ()), False),
        (((7, 7), (7,)), False),  # was a square already
    ],
)
def test_broadcasts(shapes, caught, beside):
    a, b = (torch.ones(s) for s in shapes)
    with Broadcasts((7, 11)) as watch:
        _ = a * b
        _ = torch.minimum(a, b)
        _ = torch.where(a > 0, a, b)
    assert len(watch.seen) == (3 if caught else 0)


def test_a_matrix_product_is_no_broadcast():
    with Broadcasts((7, 11)) as watch:
        _ = torch.ones(7, 3) @ torch.ones(3, 7)
        _ = torch.ones(7)[:, None] * torch.ones(7)[None]
    assert watch.seen == []


def test_mse_loss_with_unlike_shapes_is_caught():
    with Broadcasts((7,)) as watch, pytest.warns(UserWarning, match="target size"):
        torch.nn.functional.mse_loss(torch.ones(7, 1), torch.ones(7))
    assert watch.seen


def test_writes_are_seen_through_views_and_only_on_what_is_owned():
    owned, other = torch.zeros(4), torch.zeros(4)
    with Writes({"mine": owned}) as watch:
        other.add_(1)
        _ = owned + 1
        assert watch.seen == []
        owned[1:].mul_(2)
    assert [label for label, _ in watch.seen] == ["mine"]


def test_draws():
    generator = torch.Generator().manual_seed(0)
    with Draws() as watch:
        _ = torch.zeros(3).sum()
        assert watch.seen == []
        _ = torch.randn(3, generator=generator)
        _ = torch.nn.functional.dropout(torch.ones(3))
    assert len(watch.seen) >= 2


def test_dtypes_lets_scalars_be():
    x = torch.ones(3, dtype=torch.float64)
    with Dtypes(torch.float64) as watch:
        _ = x * torch.tensor(0.5) + 1
        _ = x > 0
        assert watch.seen == []
        _ = x.float()
        _ = torch.zeros(3)
    assert [what for what, _ in watch.seen] == ["becomes float32", "mixes with a float32 constant"]
