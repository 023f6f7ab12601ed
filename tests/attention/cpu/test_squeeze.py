"""The means, the narrow projection, and their gradients added into the gate's."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from attneck.attention.cpu.squeeze import squeeze

FORMATS = [torch.contiguous_format, torch.channels_last]


def problem(memory_format: torch.memory_format, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = ((3, 8, 5, 4), (2, 8, 1, 1), (2,))
    x, weight, bias = (torch.randn(shape, dtype=dtype) for shape in shapes)
    return [part.requires_grad_() for part in (x.contiguous(memory_format=memory_format), weight, bias)]


def plain(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x, x.mean((2, 3)), F.conv2d(x, weight, bias)


def used(parts: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """A scalar that all three have a gradient from, x's alias by an operation that makes a new one."""
    x, mean, narrow = parts
    return (x.sigmoid() * mean[:, :, None, None]).sum() + (narrow**3).sum() + (mean**2).sum()


@pytest.mark.parametrize("memory_format", FORMATS)
def test_results_and_gradients_are_the_plain_form_s(memory_format: torch.memory_format) -> None:
    leaves = problem(memory_format)
    got, want = squeeze(*leaves), plain(*leaves)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert got[0].is_contiguous(memory_format=memory_format)
    for one, other in zip(
        torch.autograd.grad(used(got), leaves), torch.autograd.grad(used(want), leaves), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_gradients_are_those_of_finite_differences(memory_format: torch.memory_format) -> None:
    assert torch.autograd.gradcheck(lambda *leaves: used(squeeze(*leaves)), problem(memory_format))


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_one_gradient_alone(wanted: int) -> None:
    leaves = problem(torch.channels_last)
    for i, leaf in enumerate(leaves):
        leaf.requires_grad_(i == wanted)
    got = torch.autograd.grad(used(squeeze(*leaves)), leaves[wanted])
    torch.testing.assert_close(got, torch.autograd.grad(used(plain(*leaves)), leaves[wanted]))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
def test_under_autocast_branches_are_short_and_the_map_is_left_alone(
    given: torch.dtype, memory_format: torch.memory_format
) -> None:
    exact = problem(memory_format, torch.float32)
    leaves = [exact[0].detach().to(given).requires_grad_(), *exact[1:]]
    with torch.autocast("cpu", torch.bfloat16):
        got = squeeze(*leaves)
    assert [part.dtype for part in got] == [given, torch.bfloat16, torch.bfloat16]
    for one, other in zip(got, plain(*exact), strict=True):
        torch.testing.assert_close(one.float(), other, rtol=0.03, atol=0.03)
    gradients = torch.autograd.grad(used([part.float() for part in got]), leaves)
    for one, other, leaf in zip(
        gradients, torch.autograd.grad(used(plain(*exact)), exact), leaves, strict=True
    ):
        assert one.dtype == leaf.dtype
        assert (one.float() - other).norm() < 0.02 * other.norm()


def test_the_gradient_that_comes_back_is_added_to_in_place() -> None:
    x, weight, bias = problem(torch.channels_last)
    same, mean, narrow = squeeze(x, weight, bias)
    seen: list[int] = []
    same.register_hook(lambda grad: seen.append(grad.data_ptr()))
    (gradient,) = torch.autograd.grad(used((same, mean, narrow)), x)
    assert gradient.data_ptr() == seen[0]
