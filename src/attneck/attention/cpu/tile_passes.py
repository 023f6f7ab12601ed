"""The passes over a tile's logits as one compiled function each way (tile.cpp).

Relative logits, softmax and pooling are three to six passes over the logits by PyTorch's operators, and one
here. Whoever calls these asks first whether compiled passes are in use (`passes.passes`).
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from attneck.attention.cpu.build import call

SOURCE = Path(__file__).with_name("tile.cpp")


class Tile(ctypes.Structure):
    """g heads of r rows of queries from row y0 on, of an H x W map, pooled or not; threads to use."""

    _fields_ = [(name, ctypes.c_int64) for name in ("g", "r", "y0", "H", "W", "pool", "threads")]


def weights(
    logits: Tensor, by_offset: Tensor, y: int, map_size: tuple[int, int], pool: bool, kept: Tensor | None
) -> Tensor:
    """Softmax of a tile's logits plus relative logits; with `pool` the sums of its 2x2 windows of queries.

    Args:
        logits: [g, n, N] of DTYPES, dense; written over.
        by_offset: relative logits by offset [g, n, L], dense.
        y: the tile's first row.
        map_size: (H, W).
        pool: whether windows are wanted.
        kept: dense memory for the weights [g, n, N], where they are to be kept.

    Returns:
        [g, n', N], the weights or their windows' sums.
    """
    tile = _tile(logits, y, map_size, pool)
    if pool:
        sums = logits.new_empty(tile.g, _windows(tile), logits.shape[2])
        _call("weights", tile, logits, by_offset, kept, sums)
        return sums
    out = logits if kept is None else kept
    _call("weights", tile, logits, by_offset, out, None)
    return out


def gradients(
    source: Tensor,
    by_offset: Tensor | None,
    above: Tensor,
    y: int,
    map_size: tuple[int, int],
    pool: bool,
    *,
    for_v: bool,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """What `weights` gave, again, and the gradients of the logits and of the relative logits by offset.

    Args:
        source: [g, n, N], dense: the logits, which are written over; without `by_offset` the kept weights.
        by_offset: as `weights` has it.
        above: the gradient of its result [g, n', N], dense; may be written over.
        y: the tile's first row.
        map_size: (H, W).
        pool: as `weights` had it.
        for_v: whether its result is asked for.

    Returns:
        [g, n', N] or None, [g, n, N] and [g, n, L].
    """
    H, W = map_size
    tile = _tile(source, y, map_size, pool)
    of_offset = source.new_empty(*source.shape[:2], 2 * H + 2 * W - 2)
    kept = by_offset is None
    of_logits = source
    if kept:  # a second backward pass may want the weights again
        of_logits = torch.empty_like(source) if pool else above
    result = torch.empty_like(above) if for_v and (pool or not kept) else None
    _call("gradients", tile, source, by_offset, above, of_logits, result, of_offset)
    return source if for_v and result is None else result, of_logits, of_offset


def _tile(logits: Tensor, y: int, map_size: tuple[int, int], pool: bool) -> Tile:
    g, n, _ = logits.shape
    H, W = map_size
    return Tile(g, n // W, y, H, W, pool, torch.get_num_threads())


def _windows(tile: Tile) -> int:
    return int(-(-tile.r // 2) * -(-tile.W // 2))


def _call(name: str, tile: Tile, *tensors: Tensor | None) -> None:
    """Call a function of tile.cpp with these tensors, all dense and of one dtype; None is a null pointer."""
    first = tensors[0]
    assert first is not None
    assert all(one is None or one.dtype == first.dtype for one in tensors)
    if call(SOURCE, name, first.dtype, tile, *tensors):
        raise MemoryError("attention's fused passes got no memory for a few rows of logits")


def right() -> bool:
    """Whether both functions agree with their formulas, in each dtype, on a wide map and on a narrow one."""
    bounds = ((torch.float32, 1e-5), (torch.bfloat16, 2e-2))
    return all(_right(size, *each) for size in ((5, 11), (6, 7)) for each in bounds)


def _right(map_size: tuple[int, int], dtype: torch.dtype, bound: float) -> bool:
    """Whether both functions agree with their formulas in float64 on a small tile, pooled and not.

    One logit is huge, and the tile has an odd number of rows and columns.
    """
    g, r, y, (H, W) = 2, 3, 2, map_size
    n, N = r * W, H * W
    generator = torch.Generator("cpu").manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device="cpu", dtype=torch.float32).to(dtype)

    logits, by_offset = normal(g, n, N), normal(g, n, 2 * H + 2 * W - 2)
    logits[0, 0, 0] = 1e4
    query, key = torch.arange(n, device="cpu"), torch.arange(N, device="cpu")
    of_row = (key // W - (y + query // W)[:, None] + H - 1).expand(g, n, N)
    of_column = (key % W - (query % W)[:, None] + W - 1 + 2 * H - 1).expand(g, n, N)
    wide, offsets = logits.double(), by_offset.double()
    P = (wide + offsets.gather(2, of_row) + offsets.gather(2, of_column)).softmax(-1)  # [g, n, N]
    for pool in (False, True):
        window = query // W // 2 * -(-W // 2) + query % W // 2 if pool else query  # [n]
        into = (torch.arange(int(window.max()) + 1, device="cpu")[:, None] == window).double()  # [n', n]
        want = into @ P  # [g, n', N]
        above = normal(*want.shape)
        dP = into.T @ above.double()  # [g, n, N]
        dS = P * (dP - (P * dP).sum(-1, keepdim=True))
        of_offset = torch.zeros_like(offsets).scatter_add_(2, of_row, dS).scatter_add_(2, of_column, dS)
        kept = torch.empty_like(logits)
        result = weights(logits.clone(), by_offset, y, (H, W), pool, kept)
        pairs: list[tuple[Tensor | None, Tensor]] = [(result, want), (kept, P)]
        for source, offset in ((logits.clone(), by_offset), (P.to(dtype), None)):
            got = gradients(source, offset, above.clone(), y, (H, W), pool, for_v=True)
            pairs += zip(got, (want, dS, of_offset), strict=True)
        for one, other in pairs:
            assert one is not None
            if not (one.double() - other).abs().max() <= bound * other.abs().max():  # nor NaN
                return False
    return True
