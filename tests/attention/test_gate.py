"""x + x * sigmoid(combine(c, p)) against the oracle."""

import importlib
import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import forward_ad

from attneck.attention import gate, reference

module = importlib.import_module("attneck.attention.gate")


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


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.tuples(st.integers(0, 3), *(st.integers(1, 5) for _ in range(3))),
    combine=st.sampled_from(["sum", "prod", "max"]),
    branches=st.sampled_from(["both", "channel", "spatial"]),
    memory_format=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    piece=st.integers(1, 70),
)
def test_pieces_of_any_size_make_up_the_oracle_s_numbers(
    sizes: tuple[int, ...], combine: str, branches: str, memory_format: torch.memory_format, piece: int
) -> None:
    x, c, p = problem(*sizes)
    x = x.detach().contiguous(memory_format=memory_format).requires_grad_()
    parts = (None if branches == "spatial" else c, None if branches == "channel" else p)
    leaves = [x, *(part for part in parts if part is not None)]
    want = reference.gate(x, *parts, combine)
    direction = torch.randn(*want.shape[:2], 1, want.shape[3]).double().expand_as(want)  # of any strides
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE", piece)
        got = gate(x, *parts, combine)
        gradients = torch.autograd.grad(got, leaves, direction)
    assert got.is_contiguous(memory_format=memory_format) or not len(x)
    for one, other in zip(
        [got, *gradients], [want, *torch.autograd.grad(want, leaves, direction)], strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("combine", ["sum", "prod", "max"])
def test_gradients_are_those_of_finite_differences(combine: str) -> None:
    torch.manual_seed(0)
    assert torch.autograd.gradcheck(lambda x, c, p: gate(x, c, p, combine), problem(2, 3, 2, 3))


def test_where_the_branches_tie_the_maximum_shares_its_gradient() -> None:
    x, c, p = (torch.ones_like(part, requires_grad=True) for part in problem(1, 1, 1, 1))
    gate(x, c, p, "max").sum().backward()
    slope = 1 / (2 + 2 * math.cosh(1))  # of the sigmoid at 1
    assert c.grad.item() == p.grad.item() == pytest.approx(slope / 2)


def test_it_keeps_its_operands_for_backward_and_nothing_else() -> None:
    def kept(grad: bool) -> list[tuple[int, ...]]:
        x, c, p = (part.detach().requires_grad_(grad) for part in problem(2, 4, 3, 5))
        shapes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: shapes.append(tuple(tensor.shape)) or tensor, lambda tensor: tensor
        ):
            gate(x, c, p)
        return shapes

    assert kept(True) == [(2, 4, 3, 5), (2, 4), (2, 1, 3, 5)]
    assert kept(False) == []


def test_only_the_gradients_that_are_needed_are_computed() -> None:
    x, c, p = (part.detach() for part in problem(2, 3, 4, 5))
    for wanted in itertools.product([False, True], repeat=3):
        parts = module._backward(x, x, c, p, "sum", wanted)
        assert tuple(part.numel() > 0 for part in parts) == wanted


@pytest.mark.parametrize("backend", ["auto", "plain"])
def test_the_result_has_the_dtype_that_all_promote_to(backend: str) -> None:
    torch.manual_seed(0)
    x, c, p = (part.detach() for part in problem(2, 4, 3, 5))
    want = gate(x, c, p)
    leaves = [x.bfloat16().requires_grad_(), c.float().requires_grad_(), p.half().requires_grad_()]
    mixed = gate(*leaves, backend=backend)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed.double(), want, rtol=0.02, atol=0.02)
    gradients = torch.autograd.grad(mixed.sum(), leaves)
    doubles = [leaf.detach().double().requires_grad_() for leaf in leaves]
    exact = torch.autograd.grad(reference.gate(*doubles).sum(), doubles)
    for leaf, one, other in zip(leaves, gradients, exact, strict=True):
        assert one.dtype == leaf.dtype
        torch.testing.assert_close(one.double(), other, rtol=0.02, atol=0.02)
    half = gate(x.half(), c.half().requires_grad_(), p.half(), backend=backend)
    assert (half.dtype, torch.autograd.grad(half.sum(), half)[0].dtype) == (torch.float16, torch.float16)


def test_a_compiler_is_given_the_formula_and_has_the_same_numbers() -> None:
    torch._dynamo.reset()
    leaves = problem(2, 4, 3, 5)
    want, got = gate(*leaves), torch.compile(gate, backend="aot_eager", fullgraph=True)(*leaves)
    direction = torch.randn_like(want)
    for one, other in zip(
        [got, *torch.autograd.grad(got, leaves, direction)],
        [want, *torch.autograd.grad(want, leaves, direction)],
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # of float32 there are compiled passes
def test_a_graph_for_elsewhere_has_no_operator_of_ours(dtype: torch.dtype) -> None:
    class Gate(torch.nn.Module):
        def forward(self, *parts: Tensor) -> Tensor:
            return gate(*parts)

    parts = tuple(part.detach().to(dtype) for part in problem(2, 4, 3, 5))
    program = torch.export.export(Gate(), parts)
    assert not any("attneck" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(*parts), gate(*parts))


@pytest.mark.parametrize("backend", ["auto", "plain"])
@pytest.mark.parametrize("combine", ["sum", "prod", "max"])
def test_second_derivatives_are_those_of_finite_differences(backend: str, combine: str) -> None:
    torch.manual_seed(0)
    parts = problem(2, 3, 2, 2)
    assert torch.autograd.gradgradcheck(lambda x, c, p: gate(x, c, p, combine, backend=backend), parts)


@pytest.mark.parametrize("branches", ["both", "channel", "spatial"])
def test_a_penalty_on_a_sum_s_gradient_is_not_lost(branches: str) -> None:
    """There nothing that comes into backward needs a gradient; only what was saved does."""
    x, c, p = problem(2, 3, 4, 5)
    parts = (None if branches == "spatial" else c, None if branches == "channel" else p)
    leaves = [x, *(part for part in parts if part is not None)]
    penalties = []
    for form in (gate, reference.gate):
        out = form(x, *parts).sum()
        (gradient,) = torch.autograd.grad(out, x, create_graph=True)
        penalties.append(torch.autograd.grad(out + gradient.square().sum(), leaves))
    torch.testing.assert_close(*penalties, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("backend", ["auto", "plain"])
@pytest.mark.parametrize("combine", ["sum", "prod", "max"])
def test_forward_derivatives_and_transforms_are_the_oracle_s(backend: str, combine: str) -> None:
    torch.manual_seed(0)
    parts = tuple(part.detach() for part in problem(2, 3, 2, 3))
    tangents = tuple(torch.randn_like(part) for part in parts)

    def ours(*parts: Tensor) -> Tensor:
        return gate(*parts, combine, backend=backend)

    def oracle(*parts: Tensor) -> Tensor:
        return reference.gate(*parts, combine)

    step = 1e-6
    far, near = (ours(*(a + s * b for a, b in zip(parts, tangents, strict=True))) for s in (step, -step))
    _, pushed = torch.func.jvp(ours, parts, tangents)
    torch.testing.assert_close(pushed, (far - near) / (2 * step), rtol=1e-6, atol=1e-6)
    with forward_ad.dual_level():
        duals = (forward_ad.make_dual(*pair) for pair in zip(parts, tangents, strict=True))
        torch.testing.assert_close(forward_ad.unpack_dual(ours(*duals)).tangent, pushed)
    several = tuple(torch.stack((part, -part)) for part in parts)
    torch.testing.assert_close(
        torch.func.vmap(ours)(*several), torch.stack([oracle(*one) for one in zip(*several, strict=True)])
    )
    for transform in (torch.func.jacrev, torch.func.jacfwd, torch.func.hessian):
        got, want = (transform(form, (0, 1, 2))(*parts) for form in (ours, oracle))
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", ["auto", "plain"])
def test_a_batch_of_gradients(backend: Any) -> None:
    leaves = problem(2, 3, 2, 2)
    want = torch.randn(3, 2, 3, 2, 2, dtype=torch.float64)
    got = torch.autograd.grad(gate(*leaves, backend=backend), leaves, want, is_grads_batched=True)
    for i, direction in enumerate(want):
        alone = torch.autograd.grad(reference.gate(*leaves), leaves, direction)
        torch.testing.assert_close(tuple(one[i] for one in got), alone)


@pytest.mark.parametrize("backend", ["auto", "plain"])
@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0), (2, 0, 4, 5)])
def test_what_is_empty_stays_so(shape: tuple[int, int, int, int], backend: str) -> None:
    x, c, p = problem(*shape)
    out = gate(x, c, p, backend=backend)
    assert (out.shape, out.dtype) == (x.shape, x.dtype)
    out.sum().backward()
    for part in (x, c, p):
        assert part.grad is not None
        assert part.grad.shape == part.shape
        assert not part.grad.any()


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
    with pytest.raises(ValueError, match="unknown backend 'cuda'; choose one of auto, plain"):
        gate(x, c, p, backend="cuda")
    with pytest.raises(ValueError, match="c and p are both None"):
        gate(x, None, None)
    with pytest.raises(ValueError, match=r"c has shape \[2, 3\].*\[B, C\] = \[2, 4\]"):
        gate(x, c[:, :3], p)
    with pytest.raises(ValueError, match=r"p has shape \[2, 1, 5, 3\].*\[2, 1, 3, 5\]"):
        gate(x, c, p.transpose(2, 3))
    with pytest.raises(ValueError, match=r"x has shape \[4, 3, 5\]"):
        gate(x[0], c, p)
