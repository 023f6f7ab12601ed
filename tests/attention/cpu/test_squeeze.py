"""The means, the projection, and their gradients added into the gate's."""

import itertools
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from attneck.attention import reference
from attneck.attention.cpu import squeeze as module
from attneck.attention.cpu.squeeze import Squeezed, squeeze

FORMATS = [torch.contiguous_format, torch.channels_last]


def problem(memory_format: torch.memory_format, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = ((3, 8, 5, 4), (2, 8, 1, 1), (2,))
    x, weight, bias = (torch.randn(shape, dtype=dtype) for shape in shapes)
    return [part.requires_grad_() for part in (x.contiguous(memory_format=memory_format), weight, bias)]


def gated(squeezed: Squeezed) -> Tensor:
    """A map that depends on mean, projection and gate, through operations of PyTorch's."""
    p = (squeezed.reduced**3).sum(1, keepdim=True)  # [B, 1, H, W]
    return squeezed.gate(squeezed.mean**2, p)


def by_squeeze(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return gated(squeeze(x, weight, bias))


def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    p = (F.conv2d(x, weight, bias) ** 3).sum(1, keepdim=True)
    return reference.gate(x, x.mean((2, 3)) ** 2, p)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_results_and_gradients_are_the_plain_form_s(memory_format: torch.memory_format) -> None:
    leaves = problem(memory_format)
    squeezed, (x, weight, bias) = squeeze(*leaves), leaves
    torch.testing.assert_close(squeezed.mean, x.mean((2, 3)), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(squeezed.reduced, F.conv2d(x, weight, bias), rtol=1e-12, atol=1e-12)
    got, want = gated(squeezed), plain(*leaves)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    assert got.is_contiguous(memory_format=memory_format)
    direction = torch.randn_like(want)
    for again in (True, False):
        gradients = torch.autograd.grad(got, leaves, direction, retain_graph=again)
        wanted = torch.autograd.grad(want, leaves, direction, retain_graph=again)
        assert gradients[0].is_contiguous(memory_format=memory_format)
        for one, other in zip(gradients, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_first_and_second_derivatives_are_those_of_finite_differences(
    memory_format: torch.memory_format,
) -> None:
    leaves = [leaf.detach() / 4 for leaf in problem(memory_format)]
    leaves = [leaves[0][:1, :, :2, :2], *leaves[1:]]
    leaves = [leaf.clone(memory_format=torch.preserve_format).requires_grad_() for leaf in leaves]
    assert torch.autograd.gradcheck(by_squeeze, leaves)
    assert torch.autograd.gradgradcheck(by_squeeze, leaves)


def test_a_penalty_on_a_sum_s_gradient_is_not_lost() -> None:
    """There nothing that comes into backward needs a gradient; only what was saved does."""
    leaves = problem(torch.channels_last)

    def penalty(form: Callable[..., Tensor]) -> Tensor:
        out = form(*leaves).sum()
        (gradient,) = torch.autograd.grad(out, leaves[0], create_graph=True)
        return out + gradient.square().sum()

    for one, other in zip(
        torch.autograd.grad(penalty(by_squeeze), leaves),
        torch.autograd.grad(penalty(plain), leaves),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "wanted", [flags for flags in itertools.product([False, True], repeat=3) if any(flags)]
)
def test_some_gradients_alone(wanted: tuple[bool, ...]) -> None:
    leaves = problem(torch.channels_last)
    asked = [leaf for leaf, is_wanted in zip(leaves, wanted, strict=True) if is_wanted]
    every = torch.autograd.grad(by_squeeze(*leaves).sum(), asked)  # the others need one and are not asked
    for leaf, is_wanted in zip(leaves, wanted, strict=True):
        leaf.requires_grad_(is_wanted)
    want = torch.autograd.grad(plain(*leaves).sum(), asked)
    torch.testing.assert_close(every, want, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(torch.autograd.grad(by_squeeze(*leaves).sum(), asked), want)


def test_mean_and_projection_without_the_gate_have_gradients() -> None:
    leaves = problem(torch.contiguous_format)
    x, weight, bias = leaves
    for got, want in [
        (squeeze(*leaves).mean, x.mean((2, 3))),
        (squeeze(*leaves).reduced, F.conv2d(x, weight, bias)),
    ]:
        one = torch.autograd.grad(got.square().sum(), x)
        torch.testing.assert_close(one, torch.autograd.grad(want.square().sum(), x))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
def test_under_autocast_the_projection_is_short_and_mean_and_map_are_not(
    given: torch.dtype, memory_format: torch.memory_format
) -> None:
    exact = problem(memory_format)
    leaves = [leaf.detach().float().requires_grad_() for leaf in exact]
    leaves[0] = leaves[0].detach().to(given).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        squeezed = squeeze(*leaves)
    assert [squeezed.mean.dtype, squeezed.reduced.dtype] == [torch.float32, torch.bfloat16]
    torch.testing.assert_close(squeezed.mean, leaves[0].double().mean((2, 3)).float(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(squeezed.reduced.double(), F.conv2d(*exact), rtol=0.03, atol=0.03)
    # Linear logits: a power would multiply the projection's rounding.
    p = squeezed.reduced.sum(1, keepdim=True, dtype=given)
    out = squeezed.gate(squeezed.mean.to(given), p)
    exact_p = F.conv2d(*exact).sum(1, keepdim=True)
    want = reference.gate(exact[0], exact[0].mean((2, 3)), exact_p)
    assert out.dtype == given
    direction = torch.randn_like(want)
    of_p, *of_exact = torch.autograd.grad(want, (exact_p, *exact), direction)
    # The bias's gradient is p's, summed: what cancels in it does so with p's rounding left over.
    scales = [*(other.norm() for other in of_exact[:2]), of_p.abs().sum()]
    of_leaves = torch.autograd.grad(out, leaves, direction.to(given))
    for one, other, leaf, scale in zip(of_leaves, of_exact, leaves, scales, strict=True):
        assert one.dtype == leaf.dtype
        assert (one.double() - other).norm() < 0.02 * scale


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_mean_is_exact_to_its_last_bits_in_any_dtype(
    dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    """1/784 is no number of bfloat16; and means that differ little are what the branch is to tell apart."""
    torch.manual_seed(0)
    x = (1 + torch.randn(2, 16, 28, 28)).to(dtype).contiguous(memory_format=memory_format)
    x.requires_grad_()
    squeezed = squeeze(x, torch.randn(1, 16, 1, 1, dtype=dtype), torch.zeros(1, dtype=dtype))
    want = x.detach().double().mean((2, 3))
    assert squeezed.mean.dtype == torch.float32
    torch.testing.assert_close(squeezed.mean.double(), want, rtol=1e-6, atol=1e-7)
    direction = torch.randn(2, 16)
    (gradient,) = torch.autograd.grad(squeezed.mean, x, direction)
    exact = (direction.double() / 784)[:, :, None, None].expand(2, 16, 28, 28)
    torch.testing.assert_close(gradient, exact.to(dtype))


def test_the_gradient_of_another_use_of_the_map_is_its_own() -> None:
    leaves = problem(torch.channels_last)
    x = leaves[0]
    kept: list[Tensor] = []

    def used_twice(form: Callable[..., Tensor]) -> Tensor:
        return form(*leaves) * x + x.sigmoid()

    x.register_hook(kept.append)
    direction = torch.randn_like(x)
    used_twice(by_squeeze).backward(direction)
    got = x.grad.clone()
    x.grad = None
    used_twice(plain).backward(direction)
    torch.testing.assert_close(got, x.grad, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(kept[0], kept[1], rtol=1e-11, atol=1e-11)


def test_the_handed_gradient_is_added_to_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    leave = module.Handover.leave
    monkeypatch.setattr(
        module.Handover, "leave", lambda self, grad: (left.append(grad.data_ptr()), leave(self, grad))[1]
    )
    leaves = problem(torch.channels_last)
    (gradient,) = torch.autograd.grad(by_squeeze(*leaves).sum(), leaves[0])
    assert left == [gradient.data_ptr()]


def test_a_backward_broken_off_leaves_nothing_for_the_next() -> None:
    leaves = problem(torch.channels_last)
    squeezed = squeeze(*leaves)
    out = gated(squeezed)

    def fail(grad: Tensor) -> None:
        raise KeyError("broken off")

    hook = squeezed.mean.register_hook(fail)
    with pytest.raises(KeyError, match="broken off"):
        out.sum().backward(retain_graph=True)
    hook.remove()
    direction = torch.randn_like(out)
    (without,) = torch.autograd.grad(squeezed.mean.sum(), leaves[0], retain_graph=True)
    torch.testing.assert_close(without, torch.full_like(without, 1 / 20))
    got = torch.autograd.grad(out, leaves, direction)
    want = torch.autograd.grad(plain(*leaves), leaves, direction)
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


def test_backwards_that_stop_before_the_squeeze_leave_no_maps() -> None:
    """Of each of many rows of a Jacobian one would be kept for as long as the graph is."""
    leaves = problem(torch.channels_last)
    squeezed = squeeze(*leaves)
    logits = [squeezed.mean**2, (squeezed.reduced**3).sum(1, keepdim=True)]
    out = squeezed.gate(*logits)
    for row in range(3):
        got = torch.autograd.grad(out[row].sum(), logits, retain_graph=True)
        assert not squeezed.handover.left
    same = reference.gate(leaves[0], *logits)
    want = torch.autograd.grad(same[2].sum(), logits, retain_graph=True)
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)
    out.sum().backward()  # one that goes on
    want = torch.autograd.grad(plain(*leaves).sum(), leaves)
    torch.testing.assert_close([leaf.grad for leaf in leaves], [*want], rtol=1e-11, atol=1e-11)


def test_a_backward_inside_another_and_in_other_threads() -> None:
    leaves = problem(torch.channels_last)
    squeezed = squeeze(*leaves)
    out, directions = gated(squeezed), torch.randn(4, 3, 8, 5, 4, dtype=torch.float64)
    want = [torch.autograd.grad(plain(*leaves), leaves, direction) for direction in directions]
    got: dict[int, tuple[Tensor, ...]] = {}

    def run(i: int) -> None:
        got[i] = torch.autograd.grad(out, leaves, directions[i], retain_graph=True)

    started: list[int] = []

    def inside(grad: Tensor) -> None:
        if not started:
            started.append(1)
            run(0)
            threads = [threading.Thread(target=run, args=(i,)) for i in (1, 2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    squeezed.mean.register_hook(inside)
    run(3)
    assert sorted(got) == [0, 1, 2, 3]
    for i, expected in enumerate(want):
        torch.testing.assert_close(got[i], expected, rtol=1e-11, atol=1e-11)
