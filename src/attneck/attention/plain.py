"""Relative attention in ordinary PyTorch, with all N x N logits: any device, any derivative, any graph.

Letters: B batch, h heads, d head width, H x W map, N = H*W tokens in row-major order.

The relative logits factor by axis: q.rel_h is N x (2H-1) and q.rel_w is N x (2W-1), so no N x N x d tensor
ever exists. A table's row is an *offset*, key minus query, and a query at position y reads the L rows
that start at L-1-y: `skew` takes them all by slicing alone.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from attneck.attention.graph import being_exported


def plain_attention_2d(
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    rel_h: Tensor,
    rel_w: Tensor,
    map_size: tuple[int, int],
    pool: bool,
) -> Tensor:
    """Ordinary PyTorch: all N x N logits of every head at once. Arguments as `relative_attention_2d`.

    By `torch.matmul`, since other libraries' counters of multiply-adds do not see `@`.
    """
    rows, columns = axis_logits(q, rel_h, rel_w, map_size)  # [B, h, H, W, H], [B, h, H, W, W]
    logits = rows[..., :, None] + columns[..., None, :]  # [B, h, H, W, H, W]
    logits = logits.flatten(4).flatten(2, 3)  # [B, h, N, N]
    if k is not None:
        logits = logits + torch.matmul(q, k.transpose(-2, -1))  # [B, h, N, N]
    out = torch.matmul(logits.softmax(dim=-1), v)  # [B, h, N, d]
    return pool_tokens(out, map_size) if pool else out


def axis_logits(q: Tensor, rel_h: Tensor, rel_w: Tensor, map_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Relative logits by axis, q [B, h, N, d] -> over rows [B, h, H, W, H], over columns [B, h, H, W, W]."""
    H, W = map_size
    by_offset = torch.matmul(q, torch.cat((rel_h, rel_w)).T)  # [B, h, N, 2H-1 + 2W-1], one for both axes
    over_h, over_w = by_offset.unflatten(2, (H, W)).split((2 * H - 1, 2 * W - 1), dim=-1)
    rows = skew(over_h.transpose(2, 3)).transpose(2, 3)  # [B, h, H, W, H]
    columns = skew(over_w)  # [B, h, H, W, W]
    return rows, columns


def skew(by_offset: Tensor) -> Tensor:
    """From offsets to positions, out[..., i, j] = x[..., i, j-i+L-1]: [..., L, 2L-1] -> [..., L, L].

    In the flattened L*(2L-1) entries, (i, j-i+L-1) stands at L-1 + i*(2L-2) + j: rows 2L-2 apart, from L-1
    on.
    """
    L = by_offset.shape[-2]
    if L == 1:
        return by_offset  # [..., 1, 1]
    rows = by_offset.flatten(-2)[..., L - 1 : -1].unflatten(-1, (L, 2 * L - 2))  # [..., L, 2L-2]
    if being_exported():  # a copy: the strides of a view would forbid a graph for any size the side of 2
        return rows.index_select(-1, torch.arange(L, device=rows.device))  # [..., L, L]
    return rows[..., :L]  # [..., L, L]


def pool_tokens(tokens: Tensor, map_size: tuple[int, int]) -> Tensor:
    """2x2 average pool, stride 2, of a map of tokens: [B, h, H*W, d] -> [B, h, ceil(H/2)*ceil(W/2), d].

    Border windows average only what is inside, so an odd map shrinks as a strided 1x1 convolution shrinks it.
    """
    B, h = tokens.shape[:2]
    maps = tokens.flatten(0, 1).transpose(1, 2).unflatten(2, map_size)  # [B*h, d, H, W]
    pooled = F.avg_pool2d(maps, kernel_size=2, ceil_mode=True, count_include_pad=False)  # [B*h, d, H', W']
    return pooled.flatten(2).transpose(1, 2).unflatten(0, (B, h))  # [B, h, H'*W', d]
