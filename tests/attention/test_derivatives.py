"""Derivatives of every kind: forward mode, second ones and `torch.func`, right or refused in one line."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from attneck.attention import relative_attention_2d, tiled
from attneck.attention.cpu.products import linear
from attneck.attention.cuda import triton as cuda

MAP = (2, 3)


def problem(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """q, k, v [1, 2, 6, 3] and the tables of a 2x3 map."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 6, 3, dtype=torch.float64).unbind()
    return [tensor.to(dtype) for tensor in (q, k, v, *torch.randn(8, 3).double().split((3, 5)))]


def attention(backend: str, pool: bool = False, content: bool = True) -> Callable[..., Tensor]:
    def attend(q: Tensor, k: Tensor, v: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
        return relative_attention_2d(q, k if content else None, v, rel_h, rel_w, MAP, pool, backend)

    return attend


def directional(function: Callable[..., Tensor], tensors: list[Tensor], tangents: list[Tensor]) -> Tensor:
    """The derivative along `tangents` by central differences; good to about 1e-9."""
    step = 1e-5
    ahead = function(*(x + step * t for x, t in zip(tensors, tangents, strict=True)))
    behind = function(*(x - step * t for x, t in zip(tensors, tangents, strict=True)))
    return (ahead - behind) / (2 * step)


@pytest.mark.parametrize("backend", ["auto", "plain"])
@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("content", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-5)])
def test_forward_mode_gives_the_derivative_of_finite_differences(
    backend: str, pool: bool, content: bool, dtype: torch.dtype, tolerance: float
) -> None:
    tensors, function = problem(), attention(backend, pool, content)
    tangents = [torch.randn_like(tensor) for tensor in tensors]
    want = directional(function, tensors, tangents)
    assert want.norm() > 0.1
    tensors, tangents = ([tensor.to(dtype) for tensor in given] for given in (tensors, tangents))
    _, by_func = torch.func.jvp(function, tuple(tensors), tuple(tangents))
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(*pair) for pair in zip(tensors, tangents, strict=True)]
        by_dual = forward_ad.unpack_dual(function(*duals)).tangent
    for got in (by_func, by_dual):
        torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("content", [False, True])
def test_the_plain_form_has_every_derivative(pool: bool, content: bool) -> None:
    tensors = [tensor.requires_grad_() for tensor in problem()]
    function = attention("plain", pool, content)
    assert torch.autograd.gradcheck(function, tensors, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


@pytest.mark.parametrize("backend", ["auto", "plain"])
def test_transforms_of_torch_func_agree_with_each_other_and_with_autograd(backend: str) -> None:
    q, *rest = problem()
    function = attention(backend)

    def loss(q: Tensor) -> Tensor:
        return function(q, *rest).square().sum()

    leaf = q.clone().requires_grad_()
    (want,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(q), want)
    jacobian = torch.func.jacrev(lambda q: function(q, *rest))(q)
    torch.testing.assert_close(torch.func.jacfwd(lambda q: function(q, *rest))(q), jacobian)
    direction = torch.randn_like(q)
    hessian = torch.func.hessian(loss)(q).flatten(4) @ direction.flatten()
    torch.testing.assert_close(
        hessian, directional(torch.func.grad(loss), [q], [direction]), rtol=1e-7, atol=1e-7
    )
    batch = torch.stack((q, 2 * q))
    mapped = torch.func.vmap(lambda q: function(q, *rest))(batch)
    torch.testing.assert_close(mapped, torch.stack([function(q, *rest) for q in batch]))


REFUSED = (
    r"^the {} backend of relative attention has no.*torch.func; set backend='plain' on the MHSA2d[^\n]*$"
)


@pytest.mark.parametrize(("backend", "name"), [("cpu", "CPU"), ("tiled", "tiled"), ("triton", "triton")])
def test_a_backend_without_them_that_was_asked_for_by_name_refuses(backend: str, name: str) -> None:
    if backend == "triton" and not cuda.HAS_TRITON:
        pytest.skip("triton is not installed")
    q, *rest = problem()

    def attend(q: Tensor) -> Tensor:
        return relative_attention_2d(q, *rest, MAP, backend=backend)

    for transformed in (
        lambda: torch.func.jvp(attend, (q,), (q,)),
        lambda: torch.func.jacfwd(attend)(q),
        lambda: torch.func.vmap(attend)(q[None]),
        lambda: torch.func.grad(lambda q: attend(q).sum())(q),
    ):
        with pytest.raises(NotImplementedError, match=REFUSED.format(name)):
            transformed()
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=REFUSED.format(name)):
        attend(forward_ad.make_dual(q, q))


def test_sdpa_is_right_or_refuses() -> None:
    tensors = tuple(problem())
    _, got = torch.func.jvp(attention("sdpa"), tensors, tensors)
    _, want = torch.func.jvp(attention("plain"), tensors, tensors)
    torch.testing.assert_close(got, want)
    half = tuple(problem(torch.bfloat16))  # which goes to a fused kernel
    with pytest.raises(NotImplementedError, match="forward AD"):
        torch.func.jvp(attention("sdpa"), half, half)


def test_a_backward_pass_in_forward_mode_refuses() -> None:
    leaves = [tensor.requires_grad_() for tensor in problem()]
    out = relative_attention_2d(*leaves, MAP, backend="cpu")
    x, weight = (torch.randn(4, 4, requires_grad=True) for _ in range(2))
    projected = linear(x, weight)
    with forward_ad.dual_level():
        for result, leaf in ((out, leaves[0]), (projected, x)):
            grad = forward_ad.make_dual(torch.randn_like(result), torch.randn_like(result))
            with pytest.raises(NotImplementedError, match="forward-mode derivative; set backend='plain'"):
                torch.autograd.grad(result, leaf, grad)
        with pytest.raises(NotImplementedError, match="forward-mode derivative; set backend='plain'"):
            cuda._gradients(None, torch.empty(0), torch.empty(0))
        with pytest.raises(NotImplementedError, match="forward-mode derivative; set backend='plain'"):
            tiled._gradients(None, torch.empty(0))


def test_second_derivatives_of_the_operators_refuse_and_name_the_way_out() -> None:
    leaves = [tensor.requires_grad_() for tensor in problem()]
    x, weight = (torch.randn(4, 4, requires_grad=True) for _ in range(2))
    results = [
        (relative_attention_2d(*leaves, MAP, backend="cpu"), leaves[0]),
        (relative_attention_2d(*leaves, MAP, backend="tiled"), leaves[0]),
        (linear(x, weight), x),
    ]
    for result, leaf in results:
        (gradient,) = torch.autograd.grad(result.square().sum(), leaf, create_graph=True)
        with pytest.raises(NotImplementedError, match="second derivatives set backend='plain' on the MHSA2d"):
            gradient.sum().backward()


def test_a_projection_in_float32_keeps_its_tangents() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(5, 3), torch.randn(4, 3), torch.randn(4)
    _, got = torch.func.jvp(linear, (x, weight, bias), (x, weight, bias))
    torch.testing.assert_close(got, 2 * x @ weight.T + bias)
    mapped = torch.func.vmap(linear, (0, None, None))(x[None], weight, bias)
    torch.testing.assert_close(mapped[0], x @ weight.T + bias)
