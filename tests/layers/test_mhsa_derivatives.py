"""MHSA2d under forward mode, `torch.func` and second derivatives, against finite differences in float64."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from attneck.layers import MHSA2d

POSITIONS = ["relative", "absolute", "none"]


def layer_and_input(position: str, backend: str = "auto", stride: int = 1) -> tuple[MHSA2d, Tensor]:
    """A layer whose softmax is not flat, on another map than its own, so that the tables are resampled."""
    torch.manual_seed(0)
    layer = MHSA2d(4, (2, 2), heads=2, position=position, backend=backend, stride=stride).double()
    nn.init.normal_(layer.qkv.weight)
    return layer, torch.randn(2, 4, 2, 3, dtype=torch.float64)


def differences(function: Callable[[Tensor], Tensor], x: Tensor, tangent: Tensor) -> Tensor:
    """The derivative of `function` along `tangent`, central; good to about 1e-9."""
    step = 1e-5
    return ((function(x + step * tangent) - function(x - step * tangent)) / (2 * step)).detach()


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("backend", ["auto", "plain"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 2e-5)])
def test_forward_mode_is_that_of_finite_differences(
    position: str, backend: str, stride: int, dtype: torch.dtype, tolerance: float
) -> None:
    layer, x = layer_and_input(position, backend, stride)
    tangent = torch.randn_like(x)
    want = differences(layer, x, tangent)
    assert want.norm() > 0.1
    layer, x, tangent = layer.to(dtype), x.to(dtype), tangent.to(dtype)
    for frozen in (False, True):
        layer.requires_grad_(not frozen)
        _, got = torch.func.jvp(layer, (x,), (tangent,))
        jacobian = torch.func.jacfwd(layer)(x)  # [*out, *x]
        with forward_ad.dual_level():
            dual = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, tangent))).tangent
        for one in (got, jacobian.flatten(4) @ tangent.flatten(), dual):
            torch.testing.assert_close(one.double(), want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("backend", ["auto", "plain"])
def test_forward_mode_reaches_every_parameter(position: str, backend: str) -> None:
    layer, x = layer_and_input(position, backend)
    parameters = {name: value.detach() for name, value in layer.named_parameters()}
    for name, value in parameters.items():
        tangent = torch.randn_like(value)

        def of(value: Tensor, name: str = name) -> Tensor:
            return torch.func.functional_call(layer, {**parameters, name: value}, (x,))

        _, got = torch.func.jvp(of, (value,), (tangent,))
        want = differences(of, value, tangent)
        assert want.norm() > 0.01
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("backend", ["auto", "plain"])
def test_transforms_of_torch_func_are_right(position: str, backend: str) -> None:
    layer, x = layer_and_input(position, backend)

    def loss(x: Tensor) -> Tensor:
        return layer(x).square().sum()

    leaf = x.clone().requires_grad_()
    (want,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(x), want)
    torch.testing.assert_close(torch.func.jacrev(layer)(x), torch.func.jacfwd(layer)(x))
    torch.testing.assert_close(
        torch.func.vmap(layer)(torch.stack((x, -x))), torch.stack((layer(x), layer(-x)))
    )
    tangent = torch.randn_like(x)
    hessian = torch.func.hessian(loss)(x)
    torch.testing.assert_close(
        hessian.flatten(4) @ tangent.flatten(),
        differences(torch.func.grad(loss), x, tangent),
        rtol=1e-7,
        atol=1e-7,
    )


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("stride", [1, 2])
def test_the_plain_layer_has_second_derivatives(position: str, stride: int) -> None:
    layer, x = layer_and_input(position, "plain", stride)
    assert torch.autograd.gradcheck(layer, x.requires_grad_(), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(layer, x, fast_mode=True)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_it_second_derivatives_are_refused(position: str, dtype: torch.dtype) -> None:
    layer, x = layer_and_input(position)
    layer, x = layer.to(dtype), x.to(dtype).requires_grad_()
    (gradient,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    # In float64 and without relative positions all operators are PyTorch's, and so is the message.
    ours = position == "relative" or dtype == torch.float32
    with pytest.raises(
        RuntimeError, match="set backend='plain' on the MHSA2d" if ours else "not implemented"
    ):
        gradient.sum().backward()
    layer.backend = "plain"  # as the message says
    (gradient,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    gradient.sum().backward()


def test_a_derivative_that_is_compiled_is_the_same() -> None:
    layer, x = layer_and_input("relative")
    tangent = torch.randn_like(x)

    def derivative(x: Tensor, tangent: Tensor) -> Tensor:
        return torch.func.jvp(layer, (x,), (tangent,))[1]

    torch._dynamo.reset()
    compiled = torch.compile(derivative, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, tangent), derivative(x, tangent))


@pytest.mark.parametrize("position", POSITIONS)
def test_plain_is_the_same_function_by_pytorch_s_own_operators(position: str) -> None:
    layer, x = layer_and_input(position)
    plain = copy.deepcopy(layer)
    plain.backend = "plain"
    torch.testing.assert_close(plain(x), layer(x), rtol=1e-12, atol=1e-12)
    layer, plain, x = layer.float(), plain.float(), x.float()
    names: set[str] = set()

    def collect(node: object) -> None:
        names.add(node.name())
        for following, _ in node.next_functions:
            if following is not None:
                collect(following)

    collect(plain(x).grad_fn)
    assert not [name for name in names if "attneck" in name or "ScaledDotProduct" in name]
    assert any("Convolution" in name for name in names)


def test_the_backend_is_checked_and_shown_when_it_is_not_auto() -> None:
    assert "backend" not in repr(MHSA2d(8, 4))
    assert "stride=1, backend='plain'" in repr(MHSA2d(8, 4, backend="plain"))
    with pytest.raises(ValueError, match=r"'flash'.*choose one of auto, plain, cpu, tiled, sdpa, triton$"):
        MHSA2d(8, 4, backend="flash")
    for position in ("absolute", "none"):
        layer = MHSA2d(8, 4, position=position, backend="plain")
        with pytest.raises(ValueError, match=rf"'cpu' is none of.*'{position}'; choose one of auto, plain$"):
            layer.backend = "cpu"
        assert layer.backend == "plain"
    with pytest.raises(TypeError):
        MHSA2d(8, 4, 4, "relative", True, 1, "plain")  # by keyword only
    triton = MHSA2d(8, 4, backend="triton")
    with pytest.raises((ValueError, ImportError), match="triton backend"):
        triton(torch.zeros(1, 8, 4, 4))
