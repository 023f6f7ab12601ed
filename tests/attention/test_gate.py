"""x + x * sigmoid(combine(c, p)) against the oracle."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attneck.attention import gate, reference


def problem(B: int, C: int, H: int, W: int) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(B, C, H, W, dtype=torch.float64, requires_grad=True)
    c = torch.randn(B, C, dtype=torch.float64, requires_grad=True)
    p = torch.randn(B, 1, H, W, dtype=torch.float64, requires_grad=True)
    return x, c, p


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), st.integers(1, 6)),
    combine=st.sampled_from(["sum", "prod", "max"]),
    branches=st.sampled_from(["both", "channel", "spatial"]),
)
def test_result_and_gradients_are_the_oracle_s(
    sizes: tuple[int, int, int, int], combine: str, branches: str
) -> None:
    x, c, p = problem(*sizes)
    parts = (None if branches == "spatial" else c, None if branches == "channel" else p)
    leaves = [x, *(part for part in parts if part is not None)]
    got, want = gate(x, *parts, combine), reference.gate(x, *parts, combine)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    direction = torch.randn_like(want)
    for one, other in zip(
        torch.autograd.grad(got, leaves, direction), torch.autograd.grad(want, leaves, direction), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_logits_far_out_shut_and_open_the_gate() -> None:
    x = torch.randn(2, 3, 4, 5)
    for logit, factor in [(-1e4, 1), (1e4, 2)]:
        c, p = torch.full((2, 3), logit), torch.zeros(2, 1, 4, 5)
        assert torch.equal(gate(x, c, p), factor * x)


@pytest.mark.parametrize("branches", ["both", "channel", "spatial"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_memory_format_of_x_is_kept(branches: str, memory_format: torch.memory_format) -> None:
    x, c, p = (tensor.detach() for tensor in problem(2, 4, 3, 5))
    x = x.contiguous(memory_format=memory_format)
    out = gate(x, None if branches == "spatial" else c, None if branches == "channel" else p)
    assert out.is_contiguous(memory_format=memory_format)


def test_what_does_not_fit_is_refused() -> None:
    x, c, p = problem(2, 4, 3, 5)
    with pytest.raises(ValueError, match="unknown combine 'mean'; choose one of sum, prod, max"):
        gate(x, c, p, "mean")
    with pytest.raises(ValueError, match="c and p are both None"):
        gate(x, None, None)
    with pytest.raises(ValueError, match=r"c has shape \[2, 3\].*\[B, C\] = \[2, 4\]"):
        gate(x, c[:, :3], p)
    with pytest.raises(ValueError, match=r"p has shape \[2, 1, 5, 3\].*\[2, 1, 3, 5\]"):
        gate(x, c, p.transpose(2, 3))
    with pytest.raises(ValueError, match=r"x has shape \[4, 3, 5\]"):
        gate(x[0], c, p)
