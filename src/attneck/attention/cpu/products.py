"""float32 matrix products on the CPU, by the faster of the two libraries that PyTorch brings.

PyTorch multiplies float32 matrices by MKL, which on AMD's CPUs runs at less than half of oneDNN's speed;
oneDNN is reached by one private operator. It is used where it is there, right, and clearly faster.
"""

from functools import cache
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

MARGIN = 1.2
"""How much faster oneDNN must be to be chosen: a choice that wavers would cost runs their equal bits."""


def product(a: Tensor, b: Tensor, onednn: bool) -> Tensor:
    """a b^T, head by head: [g, M, K], [g, N, K] -> [g, M, N].

    `onednn` is for float32 where `onednn_is_faster()`, with each a[i] dense and each b[i] dense or the
    transpose of a dense matrix: any other strides take oneDNN's reference code, a hundred times slower.
    """
    if a.shape[0] == 1:
        return (_onednn(a[0], b[0]) if onednn else a[0] @ b[0].T)[None]
    if not onednn:
        return torch.bmm(a, b.transpose(1, 2))
    return torch.stack([_onednn(*pair) for pair in zip(a, b, strict=True)])


def inner_product(a: Tensor, b: Tensor, onednn: bool) -> Tensor:
    """a^T b, head by head: [g, K, M], [g, K, N] -> [g, M, N] of any strides; `onednn` as above, a dense."""
    if not onednn:
        return product(a.transpose(1, 2), b.transpose(1, 2), onednn)
    # b is the smaller one here; turned, it makes the operands that oneDNN is fast on.
    turned = b.transpose(1, 2).contiguous()  # [g, N, K]
    return product(turned, a.transpose(1, 2), onednn).transpose(1, 2)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` on the CPU, faster in float32: x [..., K], weight [O, K], bias [O] -> [..., O].

    Differentiable once. Not for a graph that is `being_exported`.
    """
    if x.dtype != torch.float32 or weight.dtype != x.dtype or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    y: Tensor = _linear(x.flatten(0, -2), weight, bias)  # [M, O]
    return y.unflatten(0, x.shape[:-1])  # [..., O]


@cache
def onednn_is_faster() -> bool:
    """Whether oneDNN multiplies float32 matrices right, and by MARGIN faster; tested once a process."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    generator = torch.Generator("cpu").manual_seed(0)
    a, b = torch.randn(2, 256, 256, generator=generator, device="cpu", dtype=torch.float32).unbind()
    try:
        wrong = (_onednn(a, b).double() - a.double() @ b.double().T).abs().max() > 1e-3
    except (RuntimeError, TypeError, NotImplementedError):  # a private operator may change
        return False
    if wrong:
        return False
    best = [float("inf"), float("inf")]
    for _ in range(7):  # interleaved, and the best of each: a busy machine slows both, at different times
        for i, multiply in enumerate((_onednn, lambda a, b: a @ b.T)):
            start = perf_counter()
            multiply(a, b)
            best[i] = min(best[i], perf_counter() - start)
    return best[1] > MARGIN * best[0]


def _onednn(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a b^T + bias by oneDNN: [M, K], [N, K], [N] -> [M, N]."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return y


def _mm(a: Tensor, b: Tensor) -> Tensor:
    """a b^T of float32 matrices, by the faster library: [M, K], [N, K] -> [M, N]."""
    return _onednn(a.contiguous(), b) if onednn_is_faster() else a @ b.T


@torch.library.custom_op("attneck::linear_cpu", mutates_args=(), device_types="cpu")
def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x weight^T + bias: [M, K], [O, K], [O] -> [M, O]."""
    if not onednn_is_faster():
        return F.linear(x, weight, bias)
    return _onednn(x.contiguous(), weight.contiguous(), bias)


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
    for_x, for_weight, for_bias = ctx.needs_input_grad
    dx, dw = _linear_backward(grad, *ctx.saved_tensors, for_x, for_weight)
    return dx if for_x else None, dw if for_weight else None, grad.sum(0) if for_bias else None


_linear.register_autograd(_gradients, setup_context=_save)
