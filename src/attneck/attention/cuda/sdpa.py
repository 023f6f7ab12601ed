"""Relative attention by PyTorch's fused attention, with a longer head.

`augmented_attention_2d` hands q' = [q, row bias, column bias] and k' = [k, one-hot row, one-hot column]
to the fused attention PyTorch has; q' k'^T is exactly the biased logits. FlashBias (arXiv 2505.12044) does
this for any low-rank bias; this one's factors are exact, and there are H + W of them.
Letters: B batch, h heads, d head width, H x W map, N = H*W tokens in row-major order.
"""

import threading

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_efficient_attention, can_use_flash_attention
from torch.nn.attention import SDPBackend, sdpa_kernel

from attneck.attention.operands import by_offset, by_position, operands, pool_maps

FUSED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
"""The kernels with memory linear in N; PyTorch's own choice may be the N x N form, without a word."""


_one_pin = threading.Lock()


class NoFusedKernelError(ValueError):
    """PyTorch has no fused kernel for these tensors on this GPU."""


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

    On CUDA it is pinned to its fused kernels. Elsewhere PyTorch chooses, and may choose N x N logits. Half
    types are padded to a width that flash has a kernel for, with one width for q, k and v, as it wants.

    Raises NoFusedKernelError, a ValueError, on CUDA where no fused kernel takes the tensors.
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
    padded = head_width(d, map_size, q.dtype, k is not None)
    zeros = q.new_zeros(()).expand(B, h, N, padded - width)
    queries = torch.cat([*([] if k is None else [q]), *bias, zeros], dim=3)  # [B, h, N, padded]
    keys = torch.cat([*([] if k is None else [k]), *one_hot, zeros], dim=3)  # [B, h, N, padded]
    values = F.pad(v, (0, padded - d)) if _is_half(q.dtype) else v  # [B, h, N, padded] or [B, h, N, d]
    out = _attend(queries, keys, values)[..., :d]  # [B, h, N, d]
    return pool_maps(out, map_size) if pool else out


def head_width(d: int, map_size: tuple[int, int], dtype: torch.dtype, content: bool) -> int:
    """How wide a head gets: d, unless there is no content term, and H + W, padded.

    In half precision to 32, 64, 96, 128, 192, 256 or more, which are the widths of flash's kernels.
    """
    padded = -(-max((d if content else 0) + sum(map_size), d) // 8) * 8
    if not _is_half(dtype):
        return padded
    return -(-padded // 32) * 32 if padded <= 128 else -(-padded // 64) * 64


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax(q k^T) v; [B, h, N, padded] twice and [B, h, N, d or padded] -> as v."""
    if not _is_pinned(q):
        return F.scaled_dot_product_attention(q, k, v, scale=1.0)
    if torch.compiler.is_compiling():  # it finds out while it traces: no kernel is left that it could record
        with sdpa_kernel(FUSED):
            return F.scaled_dot_product_attention(q, k, v, scale=1.0)
    # PyTorch keeps the pin for the whole process: two threads would put back what the other had set.
    with _one_pin, sdpa_kernel(FUSED):
        if not _a_kernel_takes(q, k, v):
            also = " and gradients" if q.requires_grad else ""
            raise NoFusedKernelError(
                f"none of PyTorch's fused attention kernels takes {q.dtype}, heads {q.shape[3]} wide (d + H "
                f"+ W){also} on this GPU: pass backend='tiled', whose memory is linear in N too, or 'auto'"
            )
        return F.scaled_dot_product_attention(q, k, v, scale=1.0)


def _is_pinned(q: Tensor) -> bool:
    return q.device.type == "cuda"


def _a_kernel_takes(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether PyTorch would take a kernel that is enabled; it looks at shapes, dtypes and the current GPU."""
    params = SDPAParams(q, k, v, None, 0.0, False, False)
    with torch.cuda.device_of(q):
        return can_use_flash_attention(params) or can_use_efficient_attention(params)


def _is_half(dtype: torch.dtype) -> bool:
    return dtype in (torch.float16, torch.bfloat16)
