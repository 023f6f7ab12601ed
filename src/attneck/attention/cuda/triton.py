"""Relative attention by Triton kernels (`kernels.py`): the N x N logits exist nowhere, forward or backward.

BoTNet's bias is one number for the key's row plus one for its column; the kernel adds it.
segment-anything-fast has such a kernel for its two decomposed biases, forward only, on maps whose width is
its tile; here there are gradients, any map and three dtypes.
Letters: B batch, h heads, d head width, H x W map, N = H*W tokens in row-major order, L = 2H-1 + 2W-1 rows
in both tables.
"""

import importlib.util
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from attneck.attention.flops import joined_attention_backward_flops, joined_attention_flops
from attneck.attention.graph import no_second_derivative, refuse_tangents, refuse_transforms
from attneck.attention.operands import (
    by_offset,
    by_position,
    capability,
    like_queries,
    operands,
    pool_maps,
    rows_whole,
)

HAS_TRITON = importlib.util.find_spec("triton") is not None
KERNELS = ("forward", "backward_queries", "backward_keys")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton's interpreter runs the kernels on the CPU: slow, and how they are tested without a GPU."""

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""What the kernels compute in."""

WIDEST_HEAD = {torch.float32: 128, torch.float16: 256, torch.bfloat16: 256}
"""The widest head that "auto" hands to the kernels: wider ones do not fit in registers."""

FLOAT32_DOT = "ieee"
"""Products of float32 tensors: "ieee" is exact to rounding and runs on the ordinary units; "tf32x3" splits
each number in two for the matrix units, is good to about 1e-6 and should be some times faster; "tf32" (3e-4)
is never right here. Half types ignore it."""


@dataclass(frozen=True)
class Tile:
    """How a kernel is cut: queries a step, keys a step, and what Triton's compiler is asked for."""

    queries: int
    keys: int
    warps: int
    stages: int


def tile(kernel: str, d: int, dtype: torch.dtype, capability: tuple[int, int]) -> Tile:
    """The constants of one kernel: by head width, dtype and GPU.

    Not measured on a GPU: the largest that fit in 255 registers without spilling (test_compile_ahead.py) and
    in shared memory, 163 KiB a block on 8.0 and 227 KiB on 9.0 and 10.0; one stage fewer elsewhere (99 KiB).
    Float32 is cut small because Triton unrolls an "ieee" product along all of d.
    """
    if d > 128 and dtype != torch.float32:
        table = {
            "forward": Tile(64, 32, 8, 2),
            "backward_queries": Tile(32, 32, 8, 1),
            "backward_keys": Tile(32, 32, 8, 1),
        }
    elif dtype != torch.float32:
        table = {
            "forward": Tile(128, 64, 8, 3),
            "backward_queries": Tile(64, 64, 8 if d > 64 else 4, 2),
            "backward_keys": Tile(64, 64, 8, 2),
        }
    elif d <= 64:
        table = {
            "forward": Tile(32, 32, 4, 2),
            "backward_queries": Tile(32, 32, 8, 1),
            "backward_keys": Tile(32, 32, 8, 1),
        }
    elif d > 128:
        table = dict.fromkeys(KERNELS, Tile(16, 16, 8, 1))
    else:
        table = {
            "forward": Tile(32, 16, 8, 1),
            "backward_queries": Tile(16, 16, 8, 1),
            "backward_keys": Tile(16, 32, 8, 1),
        }
    found = table[kernel]
    if capability not in ((8, 0), (8, 7), (9, 0), (10, 0), (10, 3)):
        return Tile(found.queries, found.keys, found.warps, max(1, found.stages - 1))
    return found


def patch(keys: int, map_size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of a patch of `keys` keys, the powers of two that cover the map with least beside it.

    Of equals, 16 columns or near it: a query then holds 16 + keys/16 numbers of bias, and as many of its
    gradient, in registers, where a row of 64 spills. (4, 16) on maps 64 and 80 wide, (8, 8) on 40.
    """
    H, W = map_size

    def cost(wide: int) -> tuple[int, int]:
        high = keys // wide
        covered = (-(-H // high) * high) * (-(-W // wide) * wide)
        return covered, abs(wide - 16)

    wide = min((2**i for i in range(keys.bit_length())), key=cost)
    return keys // wide, wide


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
        ValueError: for tensors that are not on a CUDA device, or float64.
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
    out, _ = _attention(q, k, v, table, *map_size)  # [B, h, N, d]
    return pool_maps(out, map_size) if pool else out


@torch.library.custom_op("attneck::relative_attention_2d_cuda", mutates_args=())
def _attention(
    q: Tensor, k: Tensor | None, v: Tensor, table: Tensor, H: int, W: int
) -> tuple[Tensor, Tensor]:
    """q, k, v [B, h, N, d] and both tables [L, d] -> the result [B, h, N, d], lse [B, h, N] in base 2."""
    q, k, v = rows_whole(q), None if k is None else rows_whole(k), rows_whole(v)
    B, h, N, _ = q.shape
    out, lse = like_queries(q), q.new_empty((B, h, N), dtype=torch.float32)
    x = by_offset(q, table)  # [B, N, h, L]
    # Read by offset as it is: each query's columns once, its rows from the cache.
    bias = (x[..., H - 1 :], x[..., 2 * H + W - 2 :])
    strides = (x.stride(0), x.stride(2), x.stride(1), 1)
    _launch("forward", (H, W), (q, k, v, *bias, out, lse), (q, k, v), strides, (out,), skew=1)
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
    B, h, N, d = q.shape
    d_q, d_v = like_queries(q), like_queries(q)
    d_k = q.new_empty(0) if k is None else like_queries(q)
    if out.stride() != d_q.stride():  # saved by a hook that laid it anew; the kernels write where out lies
        out = like_queries(q).copy_(out)
    x = by_offset(q, table)  # [B, N, h, L], cheaper than to keep
    # By position, queries innermost: `backward_keys` reads a tile of it for every step.
    bias = x.new_empty(B, h, H + W, N)
    for part, positions in zip(bias.split((H, W), dim=2), by_position(x, (H, W)), strict=True):
        part.unflatten(3, (H, W)).copy_(positions.permute(0, 1, 4, 2, 3))  # [B, h, H or W, H, W]
    d_bias = torch.empty_like(bias, dtype=torch.float32)
    delta = torch.empty_like(lse)
    rows, columns = bias.split((H, W), dim=2)
    d_rows, d_columns = d_bias.split((H, W), dim=2)
    strides = (bias.stride(0), bias.stride(1), 1, N)
    _launch(
        "backward_queries",
        (H, W),
        (q, k, v, rows, columns, out, lse, d_out, d_q, d_rows, d_columns, delta),
        (q, k, v),
        strides,
        (out, d_out),
        skew=0,
    )
    _launch(
        "backward_keys",
        (H, W),
        (q, k, v, rows, columns, lse, delta, d_out, d_k, d_v),
        (q, k, v),
        strides,
        (out, d_out),
        skew=0,
    )
    d_x = torch.zeros_like(x)  # [B, N, h, L]
    for part, positions in zip((d_rows, d_columns), by_position(d_x, (H, W)), strict=True):
        positions.copy_(part.unflatten(3, (H, W)).permute(0, 1, 3, 4, 2))  # [B, h, H, W, H or W]
    d_x = d_x.flatten(0, 2)  # [B*N*h, L]
    d_q_flat = d_q.transpose(1, 2).view(-1, d)  # [B*N*h, d]
    if k is None:
        torch.mm(d_x, table, out=d_q_flat)
    else:
        d_q_flat.addmm_(d_x, table)
    d_table = d_x.T @ q.transpose(1, 2).reshape(-1, d)  # [L, d]
    return d_q, d_k, d_v, d_table


@_attention.register_fake
def _(q: Tensor, k: Tensor | None, v: Tensor, table: Tensor, H: int, W: int) -> tuple[Tensor, Tensor]:
    return like_queries(q), q.new_empty(q.shape[:3], dtype=torch.float32)


@_attention_backward.register_fake
def _(
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
    d_k = q.new_empty(0) if k is None else like_queries(q)
    return like_queries(q), d_k, like_queries(q), torch.empty_like(table)


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


def _launch(
    kernel: str,
    map_size: tuple[int, int],
    tensors: tuple[Tensor | None, ...],
    operands: tuple[Tensor | None, ...],
    bias_strides: tuple[int, int, int, int],
    results: tuple[Tensor, ...],
    skew: int,
) -> None:
    """Run one kernel: one program a block of queries, or a patch of keys, and head."""
    from attneck.attention.cuda import kernels  # here, so that the package imports without triton

    q = results[0]
    B, h, N, d = q.shape
    H, W = map_size
    if not B:
        return
    cut = tile(kernel, d, q.dtype, capability(q.device))
    high, wide = patch(cut.keys, map_size)
    programs = -(-H // high) * -(-W // wide) if kernel == "backward_keys" else -(-N // cut.queries)
    strides = [0 if t is None else t.stride(i) for t in operands for i in range(3)]
    strides += [*bias_strides, *(t.stride(i) for t in results for i in range(3))]
    with torch.cuda.device_of(q):
        getattr(kernels, kernel)[(programs, B * h)](
            *tensors, *strides, h, H, W, HEAD=d, D=max(16, 1 << (d - 1).bit_length()), M=cut.queries,
            PH=high, PW=wide, SKEW=skew, DOT=FLOAT32_DOT, num_warps=cut.warps, num_stages=cut.stages,
            enable_fp_fusion=True,
        )  # fmt: skip
