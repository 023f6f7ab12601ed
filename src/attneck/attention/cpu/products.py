"""Matrix products on the CPU, in float32 by the library that `choice` names.

oneDNN's operator is fast on dense matrices and on the transpose of a dense one, and on nothing else.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import flop_registry, register_flop_formula

from attneck.attention.cpu.choice import emulated, float32_products, onednn
from attneck.attention.flops import linear_backward_flops, linear_flops
from attneck.attention.graph import no_second_derivative, refuse_tangents, transformed


def product(a: Tensor, b: Tensor, by_onednn: bool) -> Tensor:
    """a b^T, head by head: [g, M, K], [g, N, K] -> [g, M, N].

    `by_onednn` is for float32 where `float32_products()` says so, with each a[i] dense and each b[i] dense or
    the transpose of a dense matrix: any other strides take oneDNN's reference code, a hundred times slower.
    """
    if a.shape[0] == 1:
        return (onednn(a[0], b[0]) if by_onednn else a[0] @ b[0].T)[None]
    if not by_onednn:
        return torch.bmm(a, b.transpose(1, 2))
    return torch.stack([onednn(*pair) for pair in zip(a, b, strict=True)])


def inner_product(a: Tensor, b: Tensor, by_onednn: bool) -> Tensor:
    """a^T b, head by head: [g, K, M], [g, K, N] -> [g, M, N] any strides; `by_onednn`: as above, a dense."""
    if not by_onednn:
        return product(a.transpose(1, 2), b.transpose(1, 2), by_onednn)
    # b is the smaller one here; turned, it makes the operands that oneDNN is fast on.
    turned = b.transpose(1, 2).contiguous()  # [g, N, K]
    return product(turned, a.transpose(1, 2), by_onednn).transpose(1, 2)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` on the CPU, faster in float32: x [..., K], weight [O, K], bias [O] -> [..., O].

    Half precision that this processor would emulate is computed in float32.

    Differentiable once; under a transform of `torch.func` and in forward mode it is `F.linear` itself. Not
    for a graph that is `being_exported`.
    """
    autocast = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if autocast else x.dtype
    dtypes = {x.dtype, weight.dtype}
    if emulated(dtype) and torch.float64 not in dtypes and (autocast or len(dtypes) == 1):
        with torch.autocast("cpu", enabled=False):
            return linear(x.float(), weight.float(), None if bias is None else bias.float()).to(dtype)
    ordinary = x.dtype != torch.float32 or weight.dtype != x.dtype
    if ordinary or autocast or transformed():
        return F.linear(x, weight, bias)
    y: Tensor = _linear(x.flatten(0, -2), weight, bias)  # [M, O]
    return y.unflatten(0, x.shape[:-1])  # [..., O]


def _mm(a: Tensor, b: Tensor) -> Tensor:
    """a b^T of float32 matrices, by the library in use: [M, K], [N, K] -> [M, N]."""
    by_onednn = a.shape[1] and float32_products() == "onednn"  # which takes no product of nothing
    return onednn(a.contiguous(), b) if by_onednn else a @ b.T


@torch.library.custom_op("attneck::linear_cpu", mutates_args=(), device_types="cpu")
def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x weight^T + bias: [M, K], [O, K], [O] -> [M, O]."""
    if float32_products() != "onednn":
        return F.linear(x, weight, bias)
    return onednn(x.contiguous(), weight.contiguous(), bias)


@_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


@torch.library.custom_op("attneck::linear_cpu_backward", mutates_args=(), device_types="cpu")
def _linear_backward(
    grad: Tensor, x: Tensor, weight: Tensor, for_x: bool, for_weight: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of x [M, K] and of weight [O, K] from the result's [M, O]; empty where not asked for."""
    with torch.autocast("cpu", enabled=False):
        grad = grad.contiguous()
        dx = _mm(grad, weight.contiguous().T) if for_x else x.new_empty(0)
        dw = _mm(grad.T, x.contiguous().T) if for_weight else x.new_empty(0)
    return dx, dw


@_linear_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, for_x: bool, for_weight: bool) -> tuple[Tensor, Tensor]:
    return (
        x.new_empty(x.shape if for_x else (0,)),
        x.new_empty(weight.shape if for_weight else (0,)),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    refuse_tangents("MHSA2d's projection")
    for_x, for_weight, for_bias = ctx.needs_input_grad
    dx, dw = _linear_backward(grad, *ctx.saved_tensors, for_x, for_weight)
    return dx if for_x else None, dw if for_weight else None, grad.sum(0) if for_bias else None


_linear.register_autograd(_gradients, setup_context=_save)
_linear_backward.register_autograd(no_second_derivative)
register_flop_formula(torch.ops.attneck.linear_cpu)(linear_flops)
register_flop_formula(torch.ops.attneck.linear_cpu_backward)(linear_backward_flops)
_private = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
if _private is not None and _private not in flop_registry:  # PyTorch gives its own operator none
    register_flop_formula(_private)(linear_flops)
