"""What both of BAM's branches first take from a map: its channels' means, and its narrow projection.

Letters: B batch, C channels, m narrow channels, H x W map, N = H*W.

Three operations read the map: the mean (eq. 3), the 1x1 convolution (eq. 4) and the gate. Left to autograd,
their three gradients would each be written out, in formats that differ, and then added. Here the gate's
gradient comes back through `squeeze`, which adds the other two into it, by one product with m + 1 columns.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from attneck.attention.cpu.choice import float32_products
from attneck.attention.cpu.products import inner_product, product


def squeeze(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x itself, to be handed to `gate` and to nothing else, its means and its projection.

    On the CPU, differentiable once. Where autocast is on, means and projection are of its dtype.

    Args:
        x: [B, C, H, W], of either memory format.
        weight: [m, C, 1, 1], as a convolution has it.
        bias: [m].

    Returns:
        x, its mean over the map [B, C], and its projection [B, m, H, W] in channels_last.
    """
    dtype = torch.promote_types(x.dtype, weight.dtype)
    if torch.is_autocast_enabled("cpu") and dtype != torch.float64:
        dtype = torch.get_autocast_dtype("cpu")
    same: Tensor
    same, mean, narrow = _Squeeze.apply(x, weight.flatten(1).to(dtype), bias.to(dtype))
    return same, mean, narrow.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


class _Squeeze(torch.autograd.Function):
    """`squeeze` with weight [m, C] and tokens for the projection, [B, N, m]."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast("cpu", enabled=False):
            tokens = _tokens(x, weight.dtype)  # [B, N, C]
            if tokens.is_contiguous():
                flat = product(tokens.flatten(0, 1)[None], weight[None], _by_onednn(weight))
                narrow = flat.view(*tokens.shape[:2], -1)  # [B, N, m]
            else:
                narrow = tokens @ weight.T  # [B, N, m]
            if tokens.dtype in (torch.bfloat16, torch.float16):
                # Sums of half precision run number by number; a product with equal shares does not.
                shares = tokens.new_full((1, 1, tokens.shape[1]), 1 / tokens.shape[1])
                mean = (shares @ tokens)[:, 0] if len(tokens) else tokens.new_empty(0, tokens.shape[2])
            else:
                mean = tokens.mean(1)  # [B, C]
            return x.view_as(x), mean, narrow.add_(bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, of_mean: Tensor, of_narrow: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        with torch.autocast("cpu", enabled=False):
            of_narrow = of_narrow.contiguous()  # [B, N, m]
            if for_x:
                grad = _add(grad, of_mean, of_narrow, weight)
            of_weight = _weight_gradient(of_narrow, _tokens(x, weight.dtype)) if for_weight else None
            return grad if for_x else None, of_weight, of_narrow.sum((0, 1)) if for_bias else None


def _add(grad: Tensor, of_mean: Tensor, of_narrow: Tensor, weight: Tensor) -> Tensor:
    """grad [B, C, H, W] plus the gradients that come by the mean [B, C] and by the projection [B, N, m]."""
    (B, N, _), (m, C) = of_narrow.shape, weight.shape
    columns = torch.cat((of_narrow, of_narrow.new_ones(B, N, 1)), 2)  # [B, N, m+1]
    rows = torch.cat((weight.expand(B, m, C), (of_mean / N)[:, None]), 1)  # [B, m+1, C]
    if grad.dtype != weight.dtype:
        return grad + (columns @ rows).transpose(1, 2).unflatten(2, grad.shape[2:])
    # The gate made its gradient for this node alone, so it may be added to in place.
    grad.flatten(2).transpose(1, 2).baddbmm_(columns, rows)
    return grad


def _weight_gradient(of_narrow: Tensor, tokens: Tensor) -> Tensor:
    """[B, N, m], [B, N, C] -> [m, C]."""
    if not tokens.is_contiguous():
        return (of_narrow.transpose(1, 2) @ tokens).sum(0)
    all_tokens, narrow = tokens.flatten(0, 1)[None], of_narrow.flatten(0, 1)[None]  # [1, B*N, C], [1, B*N, m]
    return inner_product(all_tokens, narrow, _by_onednn(tokens))[0].T


def _tokens(x: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, C, H, W] -> [B, N, C], a view where the dtype is x's."""
    return x.flatten(2).transpose(1, 2).to(dtype)


def _by_onednn(like: Tensor) -> bool:
    return like.dtype == torch.float32 and float32_products() == "onednn"
