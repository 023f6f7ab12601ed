"""Position tables at another map size."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from attneck.attention import resample_rows, resample_table

LENGTHS = st.integers(1, 30)


def test_the_same_length_is_the_same_tensor() -> None:
    table = torch.randn(27, 4)
    assert resample_table(table, 14) is table


@given(old=LENGTHS, new=LENGTHS)
def test_the_centre_stays_and_so_do_the_ends(old: int, new: int) -> None:
    table = torch.randn(2 * old - 1, 3)
    moved = resample_table(table, new)
    assert moved.shape == (2 * new - 1, 3)
    assert torch.equal(moved[new - 1], table[old - 1])
    if new > 1:
        assert torch.equal(moved[[0, -1]], table[[0, -1]])


@given(old=st.integers(2, 20), new=st.integers(2, 40))
def test_a_linear_table_stays_linear(old: int, new: int) -> None:
    ends = torch.tensor([-2.0, 5.0], dtype=torch.float64)
    table = torch.linspace(*ends.tolist(), 2 * old - 1, dtype=torch.float64)[:, None]
    want = torch.linspace(*ends.tolist(), 2 * new - 1, dtype=torch.float64)[:, None]
    torch.testing.assert_close(resample_table(table, new), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("old", "new"), [(14, 28), (14, 24), (24, 14), (7, 8), (1, 4)])
def test_it_is_linear_interpolation_with_the_corners_aligned(old: int, new: int) -> None:
    table = torch.randn(2 * old - 1, 5, dtype=torch.float64)
    want = F.interpolate(table.T[None], size=2 * new - 1, mode="linear", align_corners=True)[0].T
    torch.testing.assert_close(resample_table(table, new), want, rtol=1e-12, atol=1e-12)


def test_doubling_a_map_and_halving_it_again_returns_the_table() -> None:
    # 2L-1 rows to 4L-3 puts one new row between each two old ones.
    table = torch.randn(13, 4, dtype=torch.float64)
    moved = resample_rows(table, 25)
    torch.testing.assert_close(moved[::2], table, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(resample_rows(moved, 13), table, rtol=1e-14, atol=1e-14)


def test_one_row_is_the_middle_of_an_even_table() -> None:
    assert resample_rows(torch.tensor([[0.0], [1.0], [3.0], [9.0]]), 1).tolist() == [[2.0]]


@given(old=LENGTHS, new=LENGTHS)
def test_a_kept_row_is_its_offset_s_and_beyond_the_table_the_last_one(old: int, new: int) -> None:
    table = torch.randn(2 * old - 1, 3)
    moved = resample_table(table, new, "keep")
    assert moved.shape == (2 * new - 1, 3)
    for offset in range(1 - new, new):
        nearest = max(1 - old, min(offset, old - 1))
        assert torch.equal(moved[offset + new - 1], table[nearest + old - 1])
    absolute = resample_rows(table, new, "keep")
    assert torch.equal(absolute, table[[min(position, 2 * old - 2) for position in range(new)]])


def test_gradients_reach_every_row() -> None:
    table = torch.randn(7, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: resample_table(t, 6), (table,))
    (gradient,) = torch.autograd.grad(resample_table(table, 6).sum(), table)
    assert (gradient > 0).all()
    assert torch.autograd.gradcheck(lambda t: resample_table(t, 6, "keep"), (table,))


def test_what_is_no_table_is_refused() -> None:
    with pytest.raises(ValueError, match=r"odd number of rows, but this one is \[6, 2\]"):
        resample_table(torch.zeros(6, 2), 5)
    with pytest.raises(ValueError, match=r"given \[7, 2\] and asked for -1"):
        resample_table(torch.zeros(7, 2), 0)
    with pytest.raises(ValueError, match=r"given \[7\] and asked for 3"):
        resample_rows(torch.zeros(7), 3)
    with pytest.raises(ValueError, match="unknown resample 'pad'; choose one of stretch, keep"):
        resample_table(torch.zeros(7, 2), 4, "pad")  # the size that it has
