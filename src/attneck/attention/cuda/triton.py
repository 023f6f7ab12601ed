"""Relative attention by Triton kernels (`kernels.py`): the N x N logits exist nowhere, forward or backward.

BoTNet's bias is one number for the key's row plus one for its column; the kernel adds it.
segment-anything-fast has such a kernel for its two decomposed biases, forward only, on maps whose width is
its tile; here there are gradients, any map and three dtypes.
Letters: B batch, h heads, d head width, H x W map, N = H*W tokens in row-major order, L = 2H-1 + 2W-1 rows
in both tables.
"""

import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from attneck.attention.flops import joined_attention_backward_flops, joined_attention_flops
from attneck.attention.graph import no_second_derivative, refuse_tangents, refuse_transforms
from attneck.attention.operands import (
    by_offset,
    by_token,
    capability,
    operands,
    pool_maps,
    rows_whole,
    without_autocast,
)

HAS_TRITON = importlib.util.find_spec("triton") is not None
KERNELS = ("forward", "backward_queries", "backward_keys")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton's interpreter runs the kernels on the CPU: slow, and how they are tested without a GPU."""

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""What the kernels compute in."""

WIDEST_HEAD = {torch.float32: 128, torch.float16: 256, torch.bfloat16: 256}
"""The widest head that "auto" hands to the kernels: wider ones do not fit in registers."""


SCRATCH = 2**28
"""Bytes of what is read and written by key row and column at a time, unless one image takes more."""


@dataclass(frozen=True)
class Tile:
    """How a kernel is cut: queries a step, keys a step, and what Triton's compiler is asked for."""

    queries: int
    keys: int
    warps: int
    stages: int


def tile(kernel: str, d: int, dtype: torch.dtype, capability: tuple[int, int]) -> Tile:
    """The constants of one kernel: by head width, dtype and GPU.

    Those of 9.0 are the fastest of those that were tried on an H100: a warp for every 16 queries (keys, where
    they lead), though some registers are spilled. Elsewhere nothing is measured, and they are the largest
    that fit without spilling (test_compile_ahead.py) and in shared memory: 163 KiB a block on 8.0, more on
    10.0; one stage fewer where there are 99 KiB. Float32 is cut small there because Triton unrolls an "ieee"
    product along all of d.
    """
    half = dtype != torch.float32
    if capability == (9, 0) and (half or d <= 128):
        if half and d > 128:
            tiles = Tile(64, 32, 4, 2), Tile(64, 32, 4, 1), Tile(64, 64, 8, 1)
        elif half and d > 64:
            tiles = Tile(64, 64, 4, 3), Tile(128, 64, 8, 3), Tile(64, 64, 4, 2)
        elif half:
            tiles = Tile(64, 64, 4, 3), Tile(64, 64, 4, 3), Tile(64, 64, 4, 2)
        elif d > 64:
            tiles = Tile(128, 32, 8, 2), Tile(32, 32, 4, 1), Tile(32, 32, 4, 1)
        else:
            tiles = Tile(64, 64, 4, 2), Tile(64, 32, 4, 2), Tile(32, 64, 4, 2)
    elif half and d > 128:
        tiles = Tile(64, 32, 8, 2), Tile(32, 32, 8, 1), Tile(32, 32, 8, 1)
    elif half:
        tiles = Tile(128, 32, 8, 3), Tile(64, 32, 8, 2), Tile(64, 32, 4, 2)
    elif d > 128:
        tiles = Tile(16, 16, 8, 1), Tile(16, 16, 8, 1), Tile(16, 16, 8, 1)
    elif d > 64:
        tiles = Tile(32, 16, 8, 1), Tile(16, 16, 8, 1), Tile(16, 32, 8, 1)
    else:
        tiles = Tile(32, 32, 4, 2), Tile(32, 32, 8, 1), Tile(32, 32, 8, 1)
    found = dict(zip(KERNELS, tiles, strict=True))[kernel]
    if capability not in ((8, 0), (8, 7), (9, 0), (10, 0), (10, 3)):
        return Tile(found.queries, found.keys, found.warps, max(1, found.stages - 1))
    return found


def float32_dot(capability: tuple[int, int]) -> str:
    """How products of float32 tensors are taken; half types ignore it.

    "tf32x3" splits each number in two for the matrix units: about as exact as a float32 product of that
    length, and much faster on an H100 than "ieee", which runs on the ordinary units and is taken where
    nothing is measured. "tf32" is never right here.
    """
    return "tf32x3" if capability == (9, 0) else "ieee"


def patch(kernel: str, keys: int, map_size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of a patch of `keys` keys, the powers of two that cover the map with least beside it.

    Of equals the widest for what runs over keys: what is read of each query once, its columns, is then most.
    `backward_keys` runs over queries, and takes the squarest: of each query it reads rows and columns.
    """
    H, W = map_size

    def cost(wide: int) -> tuple[int, int]:
        high = keys // wide
        covered = (-(-H // high) * high) * (-(-W // wide) * wide)
        return covered, wide + high if kernel == "backward_keys" else -wide

    wide = min((2**i for i in range(keys.bit_length())), key=cost)
    return keys // wide, wide


@lru_cache(maxsize=1024)
def constants(
    kernel: str, map_size: tuple[int, int], d: int, dtype: torch.dtype, capability: tuple[int, int]
) -> dict[str, Any]:
    """All that one kernel is compiled for but the divisibility of its numbers: its constants and options.

    The same dictionary each time: a call on a small map waits for Python.
    """
    H, W = map_size
    cut = tile(kernel, d, dtype, capability)
    high, wide = patch(kernel, cut.keys, map_size)
    found = {"HEAD": d, "D": max(16, 1 << (d - 1).bit_length()), "M": cut.queries, "PH": high, "PW": wide}
    if kernel == "backward_keys":
        found |= {"EVEN": H * W % cut.queries == 0, "E": max(16, 1 << (high + wide - 1).bit_length())}
    else:
        found |= {"EVEN": H % high == 0 and W % wide == 0}
    options = {"num_warps": cut.warps, "num_stages": cut.stages, "enable_fp_fusion": True}
    return {**found, "DOT": float32_dot(capability), **options}


def triton_attention_2d(
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    rel_h: Tensor,
    rel_w: Tensor,
    map_size: tuple[int, int],
    pool: bool,
) -> Tensor:
    """`relative_attention_2d` by the Triton kernels; arguments and result as there.

    Float32, float16 or bfloat16; the memory kept for the backward is q, k, v, the result and one number a
    query. Pooling comes after the kernel: beside N*N*d it is nothing. Same input, same bits, gradients too.

    Raises:
        ImportError: where Triton is not installed.
        ValueError: for tensors that are not on a CUDA device, or float64; ones beyond its 32-bit offsets;
            bfloat16 in Triton's interpreter.
        NotImplementedError: under a transform of `torch.func` and in forward mode.
    """
    refuse_transforms("triton")
    if not HAS_TRITON:
        raise ImportError(
            "the triton backend needs the package triton, which is not installed: pip install triton "
            '(Linux) or triton-windows; or pass backend="sdpa", which needs nothing else'
        )
    if q.device.type != "cuda" and not INTERPRETED:
        raise ValueError(
            f'the triton backend wants tensors on a CUDA device, q is on {q.device}; pass backend="auto", '
            "and unset ATTNECK_ATTENTION"
        )
    q, k, v, table = operands(q, k, v, rel_h, rel_w)
    if q.dtype not in DTYPES:
        raise ValueError(
            f"the triton backend computes in float32, float16 or bfloat16, q is {q.dtype}; "
            'pass backend="plain"'
        )
    if INTERPRETED and q.dtype == torch.bfloat16:
        raise ValueError("Triton's interpreter gives wrong numbers in bfloat16: give float32 or float16")
    out, _ = _attention(q, k, v, table, *map_size)  # [B, h, N, d]
    return pool_maps(out, map_size) if pool else out


@torch.library.custom_op("attneck::relative_attention_2d_cuda", mutates_args=())
def _attention(
    q: Tensor, k: Tensor | None, v: Tensor, table: Tensor, H: int, W: int
) -> tuple[Tensor, Tensor]:
    """q, k, v [B, h, N, d] and both tables [L, d] -> the result [B, h, N, d], lse [B, h, N] in base 2."""
    if beyond_offsets(q, (H, W)):
        raise ValueError(
            f"the triton backend's offsets have 32 bits, and queries of {tuple(q.shape)} on a map of {H}x{W} "
            'want more: pass backend="tiled", or fewer images'
        )
    q, k, v = rows_whole(q), None if k is None else rows_whole(k), rows_whole(v)
    B, h, N, _ = q.shape
    out, lse = by_token(q), q.new_empty((B, h, N), dtype=torch.float32)
    with without_autocast(q):
        for some in _images(q, H, W, q.element_size() * len(table)):
            Q, K, V = q[some], None if k is None else k[some], v[some]
            x = by_offset(Q, table)  # [h, B, N, L]
            _launch("forward", (H, W), (Q, K, V, x, out[some], lse[some]), (Q, K, V), (out[some],))
    return out, lse


@torch.library.custom_op("attneck::relative_attention_2d_cuda_backward", mutates_args=())
def _attention_backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    table: Tensor,
    out: Tensor,
    lse: Tensor,
    H: int,
    W: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k (empty without k), v [B, h, N, d] and of the table [L, d]."""
    q, k, v = rows_whole(q), None if k is None else rows_whole(k), rows_whole(v)
    d_out, lse = rows_whole(d_out), lse.contiguous()
    _, h, N, d = q.shape
    d_q, d_v = by_token(q), by_token(q)
    d_k = q.new_empty(0) if k is None else by_token(q)
    if out.stride() != d_q.stride():  # saved by a hook that laid it anew; the kernels write where out lies
        out = by_token(q).copy_(out)
    d_table = torch.zeros_like(table, dtype=torch.float32)
    each = q.element_size() * (2 * len(table) + H + W) + lse.element_size() * (H + W)
    with without_autocast(q):
        for some in _images(q, H, W, each):
            Q, K, V = q[some], None if k is None else k[some], v[some]
            x = by_offset(Q, table)  # [h, B, N, L], cheaper than to keep
            d_x, bias = torch.empty_like(x), x.new_empty(len(Q), h, H + W, N)
            d_rows, d_columns = lse.new_empty(len(Q), h, H, N), lse.new_empty(len(Q), h, N, W)
            sums, above = lse[some], d_out[some]
            delta, results = torch.empty_like(sums), (out[some], above)
            tensors = (Q, K, V, x, out[some], sums, above, d_q[some], d_x, d_rows, d_columns, bias, delta)
            _launch("backward_queries", (H, W), tensors, (Q, K, V), results)
            found = (d_k if K is None else d_k[some], d_v[some])
            _launch("backward_keys", (H, W), (Q, K, V, bias, sums, delta, above, *found), (Q, K, V), results)
            d_tokens = d_q[some].transpose(0, 1).view(h, len(Q) * N, d)
            by_head = d_x.flatten(1, 2), table.expand(h, -1, -1)  # [h, B*N, L], [h, L, d]
            if K is None:
                torch.bmm(*by_head, out=d_tokens)
            else:
                d_tokens.baddbmm_(*by_head)
            d_table += d_x.flatten(0, 2).T @ Q.transpose(0, 1).reshape(-1, d)  # [L, d]
    return d_q, d_k, d_v, d_table.to(table.dtype)


@_attention.register_fake
def _(q: Tensor, k: Tensor | None, v: Tensor, table: Tensor, H: int, W: int) -> tuple[Tensor, Tensor]:
    return by_token(q), q.new_empty(q.shape[:3], dtype=torch.float32)


@_attention_backward.register_fake
def _(
    d_out: Tensor, q: Tensor, k: Tensor | None, v: Tensor, table: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d_k = q.new_empty(0) if k is None else by_token(q)
    return by_token(q), d_k, by_token(q), torch.empty_like(table)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, table, ctx.H, ctx.W = inputs
    ctx.save_for_backward(q, k, v, table, *output)
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx: Any, d_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    refuse_tangents("relative attention's triton backend")
    q, k, v, table, out, lse = ctx.saved_tensors
    d_q, d_k, d_v, d_table = _attention_backward(d_out, q, k, v, table, out, lse, ctx.H, ctx.W)
    return d_q, None if k is None else d_k, d_v, d_table, None, None


_attention.register_autograd(_gradients, setup_context=_keep)
_attention_backward.register_autograd(no_second_derivative)
register_flop_formula(torch.ops.attneck.relative_attention_2d_cuda)(joined_attention_flops)
register_flop_formula(torch.ops.attneck.relative_attention_2d_cuda_backward)(joined_attention_backward_flops)


def beyond_offsets(q: Tensor, map_size: tuple[int, int]) -> bool:
    """True where an image's entries lie 2**31 or more apart, or the heads are too many for a grid."""
    B, h, N, d = q.shape
    return N * h * max(3 * d, 2 * sum(map_size)) >= 2**31 or B * h >= 2**16


def _images(q: Tensor, H: int, W: int, each: int) -> Iterator[slice]:
    """As many images at a time as the numbers by key row and column, `each` bytes a query and head, allow.

    Those grow as N * (H + W): all at once they would be most of the memory of a large map.
    """
    some = max(1, SCRATCH // (q.shape[1] * H * W * each))
    for first in range(0, len(q), some):
        yield slice(first, first + some)


def _launch(
    kernel: str,
    map_size: tuple[int, int],
    tensors: tuple[Tensor | None, ...],
    operands: tuple[Tensor | None, ...],
    results: tuple[Tensor, ...],
) -> None:
    """Run one kernel: one program a block of queries, or a patch of keys, and head."""
    from attneck.attention.cuda import kernels  # here, so that the package imports without triton

    q = results[0]
    B, h, N, d = q.shape
    H, W = map_size
    found = constants(kernel, map_size, d, q.dtype, capability(q.device))
    patches = -(-H // found["PH"]) * -(-W // found["PW"])
    programs = patches if kernel == "backward_keys" else -(-N // found["M"])
    strides = [0 if t is None else t.stride(i) for t in (*operands, *results) for i in range(3)]
    with torch.cuda.device_of(q):
        numbers = (h, H, W, N) if kernel == "backward_keys" else (h, H, W, N, -1)
        getattr(kernels, kernel)[(programs, B * h)](*tensors, *strides, *numbers, **found)
