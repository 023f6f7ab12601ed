"""What makes the relative logits relative."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attneck.attention import reference, relative_attention_2d, relative_logits_2d

SIDES = st.integers(1, 6)


@settings(max_examples=25, deadline=None)
@given(H=SIDES, W=SIDES)
def test_logits_are_the_oracle_s(H: int, W: int) -> None:
    q = torch.randn(2, 2, H * W, 3, dtype=torch.float64)
    rel_h, rel_w = torch.randn(2 * H - 1, 3).double(), torch.randn(2 * W - 1, 3).double()
    want = reference.relative_logits_2d(q, rel_h, rel_w, (H, W))
    torch.testing.assert_close(relative_logits_2d(q, rel_h, rel_w, (H, W)), want, rtol=1e-12, atol=1e-12)


def test_moving_query_and_key_together_changes_nothing() -> None:
    torch.manual_seed(0)
    H, W, d = 5, 7, 4
    q = torch.randn(d, dtype=torch.float64).expand(1, 1, H * W, d)  # every query is the same vector
    logits = relative_logits_2d(
        q, torch.randn(2 * H - 1, d).double(), torch.randn(2 * W - 1, d).double(), (H, W)
    )
    by_place = logits.view(H, W, H, W)
    for dy, dx in [(1, 0), (0, 1), (2, 3)]:
        here = by_place[: H - dy, : W - dx, : H - dy, : W - dx]
        there = by_place[dy:, dx:, dy:, dx:]
        torch.testing.assert_close(there, here, rtol=1e-13, atol=1e-13)
    assert (by_place[0, 0, 1, 1] - by_place[1, 1, 0, 0]).abs() > 1e-3  # and direction does matter


def test_each_row_of_a_table_belongs_to_one_offset() -> None:
    H, W = 3, 4
    q = torch.ones(1, 1, H * W, 1)
    rel_h, rel_w = 10.0 * torch.arange(-2, 3)[:, None], torch.arange(-3.0, 4.0)[:, None]
    by_place = relative_logits_2d(q, rel_h, rel_w, (H, W)).view(H, W, H, W)
    for y, x, key_y, key_x in [(0, 0, 0, 0), (0, 0, 2, 3), (2, 3, 0, 0), (1, 2, 2, 0)]:
        assert by_place[y, x, key_y, key_x] == 10 * (key_y - y) + (key_x - x)


def test_turning_the_map_over_turns_the_result_over() -> None:
    torch.manual_seed(0)
    H, W, d = 3, 5, 4
    q, k, v = torch.randn(3, 2, 2, H * W, d, dtype=torch.float64).unbind()
    rel_h, rel_w = torch.randn(2 * H - 1, d).double(), torch.randn(2 * W - 1, d).double()

    def turn(tokens: torch.Tensor, H: int, W: int) -> torch.Tensor:
        return tokens.unflatten(2, (H, W)).transpose(2, 3).flatten(2, 3)

    want = turn(relative_attention_2d(q, k, v, rel_h, rel_w, (H, W)), H, W)
    got = relative_attention_2d(*(turn(t, H, W) for t in (q, k, v)), rel_w, rel_h, (W, H))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
