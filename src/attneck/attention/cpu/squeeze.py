"""What both of BAM's branches first take from a map: its channels' means, and its reduced projection.

Letters: B batch, C channels, m reduced channels, H x W map, N = H*W.

Three operations read the map: the mean (eq. 3), the 1x1 convolution (eq. 4) and the gate. Left to autograd,
each of their three gradients would be written out, in formats that differ, and then added. Here the gate
hands its gradient over, and `squeeze` adds the other two into it, by one product with m + 1 columns.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attneck.attention import twice
from attneck.attention.cpu.build import DTYPES
from attneck.attention.cpu.choice import float32_products
from attneck.attention.cpu.gate_passes import column_sums
from attneck.attention.cpu.passes import passes
from attneck.attention.cpu.products import inner_product, product
from attneck.attention.gate import Handover, gate_handing_over


@dataclass(frozen=True)
class Squeezed:
    """A map [B, C, H, W], its `mean` [B, C], and its projection `reduced` [B, m, H, W] in channels_last."""

    x: Tensor
    mean: Tensor
    reduced: Tensor
    token: Tensor
    handover: Handover

    def gate(self, c: Tensor | None, p: Tensor | None, combine: str = "sum") -> Tensor:
        """`attention.gate` of the map; its backward hands x's gradient over to `squeeze`'s."""
        return gate_handing_over(self.x, c, p, combine, self.token, self.handover)


def squeeze(x: Tensor, weight: Tensor, bias: Tensor) -> Squeezed:
    """The mean of a map and its projection, on the CPU.

    The mean is of float32, or of float64 if x is. The projection is of the dtype that all promote to, or of
    autocast's where that is on.

    Args:
        x: [B, C, H, W], of either memory format, not empty.
        weight: [m, C, 1, 1], as a convolution has it.
        bias: [m].
    """
    dtype = torch.promote_types(x.dtype, weight.dtype)
    if torch.is_autocast_enabled("cpu") and dtype != torch.float64:
        dtype = torch.get_autocast_dtype("cpu")
    handover = Handover()
    token, mean, reduced = _Squeeze.apply(x, weight.flatten(1).to(dtype), bias.to(dtype), handover)
    reduced = reduced.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)  # [B, m, H, W]
    return Squeezed(x, mean, reduced, token, handover)


class _Squeeze(torch.autograd.Function):
    """`squeeze` with weight [m, C], and tokens [B, N, m] for the projection.

    Its first result is a token [1] without meaning: the gate has it as an argument, so that the gate's
    backward runs first and says by the token's gradient what it has handed over. No `setup_context`, as in
    the gate's.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, handover: Handover
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.handover = handover
        ctx.save_for_backward(x, weight, bias)
        with torch.autocast("cpu", enabled=False):
            tokens = _tokens(x, weight.dtype)  # [B, N, C]
            if tokens.is_contiguous():
                flat = product(tokens.flatten(0, 1)[None], weight[None], _by_onednn(weight))
                reduced = flat.view(*tokens.shape[:2], -1)  # [B, N, m]
            else:
                reduced = tokens @ weight.T  # [B, N, m]
            token = torch.zeros(1, dtype=torch.float32, device="cpu")
            # Not in place: what selective checkpointing keeps of the product would have the bias twice.
            return token, _mean_at_once(x), reduced + bias

    @staticmethod
    def backward(ctx: Any, number: Tensor, of_mean: Tensor, of_reduced: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        for_x, for_weight, for_bias = wanted = ctx.needs_input_grad[:3]
        with torch.autocast("cpu", enabled=False):
            if twice.is_asked_twice(of_mean, of_reduced):
                return *twice.gradients(_plain, (x, weight, bias), (of_mean, of_reduced), wanted), None
            of_reduced = of_reduced.contiguous()  # [B, N, m]
            grad = None
            if for_x:
                handed = ctx.handover.take(number)
                grad = x.new_zeros(x.shape) if handed is None else handed
                _add(grad, of_mean, of_reduced, weight)
            of_weight = _weight_gradient(of_reduced, _tokens(x, weight.dtype)) if for_weight else None
            return grad, of_weight, of_reduced.sum((0, 1)) if for_bias else None, None


def _plain(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the projection by ordinary PyTorch."""
    return _mean(x), _tokens(x, weight.dtype) @ weight.T + bias


def _mean(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, C], in float32 or float64: BatchNorm magnifies what rounding would take away."""
    return x.mean((2, 3), dtype=torch.promote_types(x.dtype, torch.float32))


def _mean_at_once(x: Tensor) -> Tensor:
    """`_mean` without a derivative, in one pass where compiled functions make it."""
    tokens = _tokens(x, x.dtype)  # [B, N, C]
    if x.dtype in DTYPES and tokens.is_contiguous() and passes() == "fused":
        return column_sums(tokens) / tokens.shape[1]
    return _mean(x)


def _add(grad: Tensor, of_mean: Tensor, of_reduced: Tensor, weight: Tensor) -> None:
    """Add to grad [B, C, H, W] the gradients that come by the mean [B, C] and the projection [B, N, m]."""
    (B, N, _), (m, C) = of_reduced.shape, weight.shape
    columns = torch.cat((of_reduced.to(grad), grad.new_ones(B, N, 1)), 2)  # [B, N, m+1]
    rows = torch.cat((weight.to(grad).expand(B, m, C), (of_mean / N).to(grad)[:, None]), 1)  # [B, m+1, C]
    grad.flatten(2).transpose(1, 2).baddbmm_(columns, rows)


def _weight_gradient(of_reduced: Tensor, tokens: Tensor) -> Tensor:
    """[B, N, m], [B, N, C] -> [m, C]."""
    if not tokens.is_contiguous():
        return (of_reduced.transpose(1, 2) @ tokens).sum(0)
    all_tokens, of_all = tokens.flatten(0, 1), of_reduced.flatten(0, 1)  # [B*N, C], [B*N, m]
    if not _by_onednn(tokens):
        return of_all.T @ all_tokens
    return inner_product(all_tokens[None], of_all[None], True)[0].T


def _tokens(x: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, C, H, W] -> [B, N, C], a view where the dtype is x's."""
    return x.flatten(2).transpose(1, 2).to(dtype)


def _by_onednn(like: Tensor) -> bool:
    return like.dtype == torch.float32 and float32_products() == "onednn"
