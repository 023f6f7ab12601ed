"""2-D relative self-attention (BoTNet, arXiv 2101.11605, Fig. 4) as one differentiable function of tensors.

Letters: B batch, h heads, d head width, H x W map, N = H*W tokens in row-major order (token y*W + x).
"""

from typing import Literal

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from attneck.attention.backends import BACKENDS
from attneck.attention.choice import choose
from attneck.attention.cpu.operator import relative_attention_2d_cpu
from attneck.attention.plain import axis_logits, pool_tokens
from attneck.checks import one_of

__all__ = [
    "BACKENDS",
    "RESAMPLE",
    "Resample",
    "pool_tokens",
    "relative_attention_2d",
    "relative_logits_2d",
    "resample_rows",
    "resample_table",
]

Resample = Literal["stretch", "keep"]
RESAMPLE = ("stretch", "keep")


def relative_attention_2d(
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    rel_h: Tensor,
    rel_w: Tensor,
    map_size: tuple[int, int],
    pool: bool = False,
    backend: str = "auto",
    *,
    scale: float = 1.0,
) -> Tensor:
    """softmax(q k^T + q (rel_h[y'-y+H-1] + rel_w[x'-x+W-1])^T) v for query (y, x) and key (y', x').

    Args:
        q: [B, h, N, d], **already scaled by d**-0.5**, or with it as `scale`; so the scale reaches both
            terms, as published.
        k: [B, h, N, d], or None for no content term: relative logits alone (BoTNet, Table 4).
        v: [B, h, N, d].
        rel_h: [2H-1, d], shared by the heads; row H-1 is offset 0.
        rel_w: [2W-1, d], likewise.
        map_size: (H, W), with H*W = N.
        pool: average the result over 2x2 windows, stride 2 (appendix A.4). On an odd side the last window
            averages only what is inside the map.
        backend: "auto" takes what `choose` says: by a rule, one whose memory is linear in N where
            N x N hurts, checked on the spot. By name: "plain" is ordinary PyTorch with N x N logits, for any
            device, for graphs to export and for any derivative. All others have memory linear in N and one
            derivative: "cpu" on the CPU; "triton" on CUDA, with the same bits each time; "sdpa" on CUDA,
            pinned to PyTorch's fused kernels; "tiled" on any device. Under `torch.func` (grad, jvp, vmap ...)
            and in forward mode "auto" is "plain"; for second derivatives by `create_graph` pass "plain",
            which "auto" cannot know beforehand. The environment variable ATTNECK_ATTENTION names what "auto"
            stands for elsewhere.
        scale: a factor of q, which costs nothing where the backend copies q anyway.

    Returns:
        [B, h, N, d], or [B, h, ceil(H/2)*ceil(W/2), d] with `pool`.

    Raises:
        ValueError: for shapes or table lengths that do not fit, a backend that does not exist, or tensors
            that it does not take.
        NotImplementedError: for a derivative that the backend does not have, or a transform of `torch.func`.
    """
    _check(q, k, v, rel_h, rel_w, map_size)
    if v is None:
        raise ValueError("v is None: wanted the values, [B, h, N, d]; k alone may be left out")
    if not isinstance(pool, bool) or isinstance(scale, str | Tensor | None):
        raise ValueError(
            f"pool={pool!r}, scale={scale!r}: wanted True or False, and a number (multiply q by a tensor)"
        )
    name = backend
    if name == "auto":
        operands = (q, v, rel_h, rel_w) if k is None else (q, k, v, rel_h, rel_w)
        gradients = any(tensor.requires_grad for tensor in operands)
        name = choose(q, map_size, content=k is not None, gradients=gradients).name
    if name not in tuple(BACKENDS):
        one_of("attention backend", backend, ("auto", *BACKENDS))
    if name in ("cpu", "tiled") and _is_wide(map_size):
        # They hold the logits of a row of queries at the least, here not far from N x N: rows become columns.
        H, W = map_size
        keys = None if k is None else _turned(k, H, W)
        high = relative_attention_2d(
            _turned(q, H, W), keys, _turned(v, H, W), rel_w, rel_h, (W, H), pool, name, scale=scale
        )
        return _turned(high, -(-W // 2), -(-H // 2)) if pool else _turned(high, W, H)
    if name == "cpu":  # it copies q anyway
        if q.device.type not in ("cpu", "meta"):
            raise ValueError(
                f'the cpu backend wants tensors on the CPU, q is on {q.device}; pass backend="auto", '
                "and unset ATTNECK_ATTENTION"
            )
        return relative_attention_2d_cpu(q, k, v, rel_h, rel_w, map_size, pool, scale)
    return BACKENDS[name](q if scale == 1.0 else q * scale, k, v, rel_h, rel_w, map_size, pool)


def _is_wide(map_size: tuple[int, int]) -> bool:
    """Whether a row of queries has over a million logits, and a column a quarter of them or less."""
    H, W = map_size
    return statically_known_true(W >= 4 * H) and statically_known_true(H * W * W > 1 << 20)


def _turned(tokens: Tensor, H: int, W: int) -> Tensor:
    """[B, h, H*W, d] of a map's rows -> [B, h, W*H, d], of its columns."""
    return tokens.unflatten(2, (H, W)).transpose(2, 3).flatten(2, 3)


def relative_logits_2d(q: Tensor, rel_h: Tensor, rel_w: Tensor, map_size: tuple[int, int]) -> Tensor:
    """The relative term alone, for pictures and analysis (BoTNet, Fig. 4): -> [B, h, N, N].

    q [B, h, N, d] already scaled, rel_h [2H-1, d], rel_w [2W-1, d], map_size (H, W).
    Raises ValueError for shapes that do not fit.
    """
    _check(q, None, None, rel_h, rel_w, map_size)
    rows, columns = axis_logits(q, rel_h, rel_w, map_size)  # [B, h, H, W, H], [B, h, H, W, W]
    return (rows[..., :, None] + columns[..., None, :]).flatten(4).flatten(2, 3)  # [B, h, N, N]


def resample_table(table: Tensor, length: int, how: Resample = "stretch") -> Tensor:
    """A relative table for a map side of `length` positions: [2L-1, d] -> [2*length-1, d].

    Differentiable, and the very same tensor when the length is unchanged. The centre stays the centre: it is
    offset 0, where a token looks at itself and which must stay itself. The papers leave the rest open
    (BoTNet, A.8).

    "stretch" is linear along the offsets, both ends and the centre on each other ("align corners"): the ends
    are the farthest offsets that either map has, so every new offset lies between two old ones and nothing is
    extrapolated. It suits an image that is the same scene in more pixels.

    "keep" is without interpolation: a row stays that of its offset, in positions of the map. A larger map has
    the table in its middle, and its farther offsets have the table's last rows; a smaller one leaves the
    farthest rows out. It suits an image that shows more, at the same scale.

    Raises ValueError for a table that is not [odd, d], a length below 1, or an unknown `how`.
    """
    if table.ndim != 2 or table.shape[0] % 2 == 0:
        raise ValueError(
            f"a relative table is [2L-1, d], an odd number of rows, but this one is {list(table.shape)}; "
            "resample a table of absolute positions with resample_rows"
        )
    rows = 2 * length - 1
    return _rows(table, rows, how, (table.shape[0] - rows) // 2)


def resample_rows(table: Tensor, rows: int, how: Resample = "stretch") -> Tensor:
    """A table of absolute positions for another number of them: [R, d] -> [rows, d].

    "stretch" is linear interpolation, the first and last rows kept; one row asked for is the middle of the
    table. "keep" has the same first rows, and the last one for all positions beyond.

    Raises ValueError for a table that is not [R, d], for rows below 1, and for an unknown `how`.
    """
    return _rows(table, rows, how, 0)


def leaves_rows(length: int, other: int, how: str) -> bool:
    """Whether a table for a side of `length` has rows that nothing for a side of `other` is made of.

    Of relative and of absolute tables: where the rows of a smaller map are twice as far apart or more, some
    of the table's lie between two that are used.
    """
    return other < length and (how == "keep" or length - 1 >= 2 * (other - 1))


def _rows(table: Tensor, rows: int, how: str, first: int) -> Tensor:
    """[R, d] -> [rows, d]; to "keep" rows is to begin at the old row `first`, which may lie outside.

    A product with the matrix of interpolation weights rather than `F.interpolate` or an index, whose
    gradients on CUDA add atomically and so are not deterministic.
    """
    one_of("resample", how, RESAMPLE)
    if table.ndim != 2 or rows < 1:
        raise ValueError(
            f"resampling takes a table [rows, d] to one row or more, but was given {list(table.shape)} "
            f"and asked for {rows}"
        )
    R = table.shape[0]
    if _same(rows, R):
        return table
    dtype = torch.promote_types(table.dtype, torch.float32)
    old = torch.arange(R, device=table.device, dtype=dtype)  # [R]
    new = torch.arange(rows, device=table.device, dtype=dtype)  # [rows]
    if how == "keep":
        at = (new + first).clamp(0, R - 1)  # [rows], in old rows
    else:
        # Multiplied before it is divided: the middle row then falls exactly on the middle row.
        at = new * (R - 1) / (rows - 1) if rows > 1 else new + (R - 1) / 2  # [rows], in old rows
    weights = (1 - (at[:, None] - old[None, :]).abs()).clamp(min=0)  # [rows, R], each row sums to 1
    return weights.to(table.dtype) @ table  # [rows, d]


def _same(rows: int, R: int) -> bool:
    """Whether nothing is to be resampled; False where a graph for any size is made, which must not ask.

    There the weights of the very same size are an identity matrix, exactly. `torch.jit.trace` makes one
    without saying for which sizes: the table itself would be taken for another size's wherever it fits.
    """
    if torch.compiler.is_compiling():
        return statically_known_true(rows == R)
    return rows == R and not torch.jit.is_tracing()


def _no_side(side: object) -> bool:
    """Whether it is no side of a map. A tracer's side may be a tensor, or a symbol, and is taken as it is."""
    return isinstance(side, bool | float | str | None) or (isinstance(side, int) and side < 1)


def _check(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    rel_h: Tensor,
    rel_w: Tensor,
    map_size: tuple[int, int],
) -> None:
    """ValueError, with what was given, what is wanted and what to do, unless the shapes fit together."""
    given = (("q", q), ("k", k), ("v", v), ("rel_h", rel_h), ("rel_w", rel_w))
    for name, tensor in given:
        if tensor is None and name in ("k", "v"):
            continue
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(f"{name} is of {kind}: wanted a tensor of floating-point numbers")
        if tensor.device != q.device:
            raise ValueError(f"{name} is on {tensor.device} and q on {q.device}: put all on one device")
    if not isinstance(map_size, tuple | list) or len(map_size) != 2 or any(map(_no_side, map_size)):
        raise ValueError(f"map_size={map_size!r}: wanted the map's (H, W), two whole numbers from 1 on")
    H, W = map_size
    if q.ndim != 4 or q.shape[2] != H * W:
        raise ValueError(
            f"q has shape {list(q.shape)}, wanted [B, h, N, d] with N = H*W = {H * W} for a map of {H}x{W}; "
            "flatten the map row by row, or pass the map_size of these tokens"
        )
    for name, tensor in (("k", k), ("v", v)):
        if tensor is not None and tensor.shape != q.shape:
            raise ValueError(
                f"{name} has shape {list(tensor.shape)}, wanted q's shape {list(q.shape)}; "
                "queries, keys and values come from one map and have one head width"
            )
    d = q.shape[3]
    for name, table, side, length in (("rel_h", rel_h, "H", H), ("rel_w", rel_w, "W", W)):
        if table.shape != (2 * length - 1, d):
            raise ValueError(
                f"{name} has shape {list(table.shape)}, wanted [2{side}-1, d] = [{2 * length - 1}, {d}] "
                f"for a map of {H}x{W}; resample_table({name}, {length}) makes one from another map's table"
            )
