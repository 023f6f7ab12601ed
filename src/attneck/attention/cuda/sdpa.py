"""Relative attention by PyTorch's fused attention, with a longer head.

`augmented_attention_2d` hands q' = [q, row bias, column bias] and k' = [k, one-hot row, one-hot column]
to the fused attention PyTorch has; q' k'^T is exactly the biased logits. FlashBias (arXiv 2505.12044) does
this for any low-rank bias; this one's factors are exact, and there are H + W of them.
Letters: B batch, h heads, d head width, H x W map, N = H*W tokens in row-major order.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from attneck.attention.operands import by_offset, by_position, operands, pool_maps


def augmented_attention_2d(
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    rel_h: Tensor,
    rel_w: Tensor,
    map_size: tuple[int, int],
    pool: bool,
) -> Tensor:
    """`relative_attention_2d` by `scaled_dot_product_attention`; arguments and result as there, any device.

    Half types go to the flash kernel, which wants one width for q, k and v: v is padded too, and the width is
    one that has a kernel (32, 64, 96, 128, 192, 256).
    """
    q, k, v, table = operands(q, k, v, rel_h, rel_w)
    H, W = map_size
    B, h, N, d = q.shape
    rows, columns = by_position(by_offset(q, table), map_size)  # [B, h, H, W, H], [B, h, H, W, W]
    bias = [rows.reshape(B, h, N, H), columns.reshape(B, h, N, W)]
    one_hot = [
        torch.eye(H, dtype=q.dtype, device=q.device).repeat_interleave(W, 0).expand(B, h, N, H),
        torch.eye(W, dtype=q.dtype, device=q.device).repeat(H, 1).expand(B, h, N, W),
    ]
    width = (d if k is not None else 0) + H + W
    half = q.dtype in (torch.float16, torch.bfloat16)
    padded = -(-max(width, d) // 8) * 8
    if half:
        padded = -(-padded // 32) * 32 if padded <= 128 else -(-padded // 64) * 64
    zeros = q.new_zeros(()).expand(B, h, N, padded - width)
    queries = torch.cat([*([] if k is None else [q]), *bias, zeros], dim=3)  # [B, h, N, padded]
    keys = torch.cat([*([] if k is None else [k]), *one_hot, zeros], dim=3)  # [B, h, N, padded]
    values = F.pad(v, (0, padded - d)) if half else v  # [B, h, N, padded] or [B, h, N, d]
    out = F.scaled_dot_product_attention(queries, keys, values, scale=1.0)[..., :d]  # [B, h, N, d]
    return pool_maps(out, map_size) if pool else out
