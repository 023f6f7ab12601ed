"""What the memory-linear backends share: operands of one dtype, relative logits by offset and by position.

Letters: B batch, h heads, d head width, H x W map, N = H*W tokens in row-major order, L = 2H-1 + 2W-1 rows
in both tables. Results lie in memory as [B, N, h, d], so that joining the heads again is a view.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attneck.attention.graph import constant


def operands(
    q: Tensor, k: Tensor | None, v: Tensor, rel_h: Tensor, rel_w: Tensor
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """q, k, v and both tables [L, d] in one dtype: autocast's where it is on, else q's."""
    dtype = products_dtype(q)
    table = torch.cat((rel_h, rel_w)).to(dtype)  # [L, d]
    return q.to(dtype), None if k is None else k.to(dtype), v.to(dtype), table


def products_dtype(q: Tensor) -> torch.dtype:
    """The dtype in which a product of q is taken: autocast's where it is on, which leaves float64 alone."""
    device = q.device.type
    if q.dtype == torch.float64 or not torch.amp.is_autocast_available(device):
        return q.dtype
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else q.dtype


def by_offset(q: Tensor, table: Tensor) -> Tensor:
    """Relative logits of both axes by offset, one product: [B, h, N, d], [L, d] -> [h, B, N, L].

    Heads lead: queries that are a view of a product's tokens are then multiplied as they lie (where no
    gradient is wanted; else PyTorch copies them, and the table's gradient is one product).
    """
    B, h, N, d = q.shape
    return (q.transpose(0, 1).reshape(h, B * N, d) @ table.T).view(h, B, N, len(table))


def by_position(x: Tensor, map_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Views by key row [B, h, H, W, H] and key column [B, h, H, W, W] of logits by offset [h, B, N, L].

    A query one row (column) further down starts one entry earlier. No entry is in a view twice, so the
    gradient is a copy too.
    """
    H, W = map_size
    h, B, N, L = x.shape
    rows = x.as_strided((h, B, H, W, H), (B * N * L, N * L, W * L - 1, L, 1), H - 1)
    columns = x.as_strided((h, B, H, W, W), (B * N * L, N * L, W * L, L - 1, 1), 2 * H + W - 2)
    return rows.transpose(0, 1), columns.transpose(0, 1)


def by_position_of_rows(x: Tensor, y: int, map_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Views by key row [g, r, W, H] and key column [g, r, W, W] of logits by offset [g, n, L], n = r*W.

    x is dense, its queries are whole rows from row y on. Query (y+i, x) stands in row i*W + x, and finds key
    row y' in column y' - (y+i) + H-1 of the first 2H-1, key column x' in column x' - x + W-1 of the other
    2W-1. So one query further is one column less, and no entry is in a view twice.
    """
    (g, n, L), (H, W), start = x.shape, map_size, x.storage_offset()
    rows = x.as_strided((g, n // W, W, H), (n * L, W * L - 1, L, 1), start + H - 1 - y)
    columns = x.as_strided((g, n // W, W, W), (n * L, W * L, L - 1, 1), start + 2 * H + W - 2)
    return rows, columns


def pool_maps(tokens: Tensor, map_size: tuple[int, int]) -> Tensor:
    """2x2 average pool, stride 2, a border window over what is inside: [B, h, N, d] -> [B, h, N', d].

    As `relative.pool_tokens`, for tokens that lie as [B, N, h, d]: the map is channels_last as it stands.
    """
    B, h, _, d = tokens.shape
    maps = tokens.transpose(1, 2).reshape(B, *map_size, h * d).permute(0, 3, 1, 2)  # [B, h*d, H, W]
    pooled = F.avg_pool2d(maps, kernel_size=2, ceil_mode=True, count_include_pad=False)  # [B, h*d, H', W']
    pooled = pooled.permute(0, 2, 3, 1).flatten(1, 2)  # [B, N', h*d]; B may be 0
    return pooled.unflatten(2, (h, d)).transpose(1, 2)  # [B, h, N', d]


def by_token(q: Tensor, tokens: int | None = None) -> Tensor:
    """Empty [B, h, N, d] that lies as [B, N, h, d], N as of q or `tokens`.

    It is no view, so that an activation may write over what an operator returns.
    """
    B, h, N, d = q.shape
    N = N if tokens is None else tokens
    return q.new_empty_strided((B, h, N, d), (N * h * d, d, h * d, 1))


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """A context in which what is computed on x's device keeps its dtype."""
    device = x.device.type
    # Shapes alone (the meta device) have no autocast to leave.
    if x.is_meta or not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def rows_whole(tokens: Tensor) -> Tensor:
    """The tensor, copied where the d entries of a token are not beside each other, or its heads and tokens
    lie further apart than 32 bits count."""
    _, h, N, d = tokens.shape
    apart = (h - 1) * tokens.stride(1) + (N - 1) * tokens.stride(2) + d
    return tokens if tokens.stride(3) == 1 and apart < 2**31 else tokens.contiguous()


@constant
def capability(device: torch.device) -> tuple[int, int]:
    """Compute capability of a CUDA device; (0, 0) for any other, and where no GPU is."""
    there = device.type == "cuda" and torch.cuda.is_available()
    return torch.cuda.get_device_capability(device) if there else (0, 0)
