"""2-D relative self-attention on CUDA: Triton kernels, SDPA with a longer head, and the choice between them.

Letters: B batch, h heads, d head width, H x W map, N = H*W tokens in row-major order, L = 2H-1 + 2W-1 rows
in both tables. Results lie in memory as [B, N, h, d], so that joining the heads again is a view.

Both ways rest on what BoTNet's bias is: one number for the key's row plus one for its column.
- `triton_attention_2d` adds the two inside the kernel (`triton_kernels.py`). segment-anything-fast has such
  a kernel for its two decomposed biases, forward only, on maps whose width is its tile; here there are
  gradients, any map and three dtypes. The N x N logits exist nowhere, forward or backward.
- `augmented_attention_2d` hands q' = [q, row bias, column bias] and k' = [k, one-hot row, one-hot column] to
  the fused attention PyTorch has; q' k'^T is exactly the biased logits. FlashBias (arXiv 2505.12044) does
  this for any low-rank bias; this one's factors are exact, and there are H + W of them.
"""

import importlib.util
import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Triton's interpreter runs the kernels on the CPU: slow, and how they are tested without a GPU."""

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

    Not measured on a GPU: the largest that fit in 255 registers without spilling (test_cuda_compile.py) and
    in shared memory, 163 KiB a block on 8.0 and 227 KiB on 9.0 and 10.0; one stage fewer elsewhere (99 KiB).
    Float32 is cut small because Triton unrolls an "ieee" product along all of d.
    """
    if dtype != torch.float32:
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
    """Rows and columns of a patch of `keys` keys, the powers of two that leave fewest places outside the map.

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


def choose(q: Tensor, map_size: tuple[int, int]) -> str:
    """Which backend serves queries [B, h, N, d] on a CUDA device: "plain", "sdpa" or "triton".

    | map | without gradients | with gradients |
    |---|---|---|
    | below 10x10 | plain | plain |
    | both sides up to 32 | sdpa | triton |
    | larger | triton | triton |

    Expected, not measured; a GPU is to correct the two limits. Gradients keep to Triton all the same: SDPA's
    flash and memory-efficient backward add atomically and give other bits each time, unless
    `torch.use_deterministic_algorithms(True)` is set. float64 has no fused kernel and is always plain; where
    Triton does not run (not installed, before compute capability 8.0, or d > 128) its place is SDPA's.
    """
    H, W = map_size
    if q.dtype == torch.float64 or H * W < 100:
        return "plain"
    if not HAS_TRITON or _capability(q.device) < (8, 0) or q.shape[3] > 128:
        return "sdpa"
    training = torch.is_grad_enabled() and q.requires_grad
    return "sdpa" if max(H, W) <= 32 and not training else "triton"


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
    q, k, v, table = _operands(q, k, v, rel_h, rel_w)
    H, W = map_size
    B, h, N, d = q.shape
    rows, columns = _by_place(_by_offset(q, table), map_size)  # [B, h, H, W, H], [B, h, H, W, W]
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
    return _pool(out, map_size) if pool else out


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
    """
    if not HAS_TRITON:
        raise ImportError(
            "the triton backend needs the package triton, which is not installed: pip install triton "
            '(Linux) or triton-windows; or pass backend="sdpa", which needs nothing else'
        )
    if q.device.type != "cuda" and not INTERPRETED:
        raise ValueError(
            f'the triton backend wants tensors on a CUDA device, q is on {q.device}; pass backend="auto"'
        )
    q, k, v, table = _operands(q, k, v, rel_h, rel_w)
    if q.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(
            f"the triton backend computes in float32, float16 or bfloat16, q is {q.dtype}; "
            'pass backend="plain"'
        )
    out, _ = _attention(q, k, v, table, *map_size)  # [B, h, N, d]
    return _pool(out, map_size) if pool else out


@torch.library.custom_op("attneck::relative_attention_2d_cuda", mutates_args=())
def _attention(
    q: Tensor, k: Tensor | None, v: Tensor, table: Tensor, H: int, W: int
) -> tuple[Tensor, Tensor]:
    """q, k, v [B, h, N, d] and both tables [L, d] -> the result [B, h, N, d], lse [B, h, N] in base 2."""
    q, k, v = _rows_whole(q), None if k is None else _rows_whole(k), _rows_whole(v)
    B, h, N, _ = q.shape
    out, lse = _like_queries(q), q.new_empty((B, h, N), dtype=torch.float32)
    x = _by_offset(q, table)  # [B, N, h, L]
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
    q, k, v = _rows_whole(q), None if k is None else _rows_whole(k), _rows_whole(v)
    d_out, lse = _rows_whole(d_out), lse.contiguous()
    B, h, N, d = q.shape
    d_q, d_v = _like_queries(q), _like_queries(q)
    d_k = q.new_empty(0) if k is None else _like_queries(q)
    if out.stride() != d_q.stride():  # saved by a hook that laid it anew; the kernels write where out lies
        out = _like_queries(q).copy_(out)
    x = _by_offset(q, table)  # [B, N, h, L], cheaper than to keep
    # By place, queries innermost: `backward_keys` reads a tile of it for every step.
    bias = x.new_empty(B, h, H + W, N)
    for part, places in zip(bias.split((H, W), dim=2), _by_place(x, (H, W)), strict=True):
        part.unflatten(3, (H, W)).copy_(places.permute(0, 1, 4, 2, 3))  # [B, h, H or W, H, W]
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
    for part, places in zip((d_rows, d_columns), _by_place(d_x, (H, W)), strict=True):
        places.copy_(part.unflatten(3, (H, W)).permute(0, 1, 3, 4, 2))  # [B, h, H, W, H or W]
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
    return _like_queries(q), q.new_empty(q.shape[:3], dtype=torch.float32)


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
    d_k = q.new_empty(0) if k is None else _like_queries(q)
    return _like_queries(q), d_k, _like_queries(q), torch.empty_like(table)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, table, ctx.H, ctx.W = inputs
    ctx.save_for_backward(q, k, v, table, *output)
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx: Any, d_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, table, out, lse = ctx.saved_tensors
    d_q, d_k, d_v, d_table = _attention_backward(d_out, q, k, v, table, out, lse, ctx.H, ctx.W)
    return d_q, None if k is None else d_k, d_v, d_table, None, None


_attention.register_autograd(_gradients, setup_context=_keep)


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
    from attneck.attention import triton_kernels  # here, so that the package imports without triton

    q = results[0]
    B, h, N, d = q.shape
    H, W = map_size
    cut = tile(kernel, d, q.dtype, _capability(q.device))
    high, wide = patch(cut.keys, map_size)
    programs = -(-H // high) * -(-W // wide) if kernel == "backward_keys" else -(-N // cut.queries)
    strides = [0 if t is None else t.stride(i) for t in operands for i in range(3)]
    strides += [*bias_strides, *(t.stride(i) for t in results for i in range(3))]
    with torch.cuda.device_of(q):
        getattr(triton_kernels, kernel)[(programs, B * h)](
            *tensors, *strides, h, H, W, HEAD=d, D=max(16, 1 << (d - 1).bit_length()), M=cut.queries,
            PH=high, PW=wide, SKEW=skew, DOT=FLOAT32_DOT, num_warps=cut.warps, num_stages=cut.stages,
            enable_fp_fusion=True,
        )  # fmt: skip


def _operands(
    q: Tensor, k: Tensor | None, v: Tensor, rel_h: Tensor, rel_w: Tensor
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """q, k, v and both tables [L, d] in one dtype: autocast's where it is on, else q's."""
    device = q.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else q.dtype
    table = torch.cat((rel_h, rel_w)).to(dtype)  # [L, d]
    return q.to(dtype), None if k is None else k.to(dtype), v.to(dtype), table


def _by_offset(q: Tensor, table: Tensor) -> Tensor:
    """Relative logits of both axes by offset, one product: [B, h, N, d], [L, d] -> [B, N, h, L]."""
    B, h, N, d = q.shape
    return (q.transpose(1, 2).reshape(-1, d) @ table.T).view(B, N, h, -1)


def _by_place(x: Tensor, map_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Views by key row [B, h, H, W, H] and key column [B, h, H, W, W] of logits by offset [B, N, h, L].

    A query one row (column) further down starts one entry earlier. No entry is in a view twice, so the
    gradient is a copy too.
    """
    H, W = map_size
    B, N, h, L = x.shape
    row, token = W * h * L, h * L
    rows = x.as_strided((B, h, H, W, H), (N * h * L, L, row - 1, token, 1), H - 1)
    columns = x.as_strided((B, h, H, W, W), (N * h * L, L, row, token - 1, 1), 2 * H + W - 2)
    return rows, columns


def _pool(tokens: Tensor, map_size: tuple[int, int]) -> Tensor:
    """2x2 average pool, stride 2, a border window over what is inside: [B, h, N, d] -> [B, h, N', d].

    As `relative.pool_tokens`, for tokens that lie as [B, N, h, d]: the map is channels_last as it stands.
    """
    B, h, _, d = tokens.shape
    maps = tokens.transpose(1, 2).reshape(B, *map_size, h * d).permute(0, 3, 1, 2)  # [B, h*d, H, W]
    pooled = F.avg_pool2d(maps, kernel_size=2, ceil_mode=True, count_include_pad=False)  # [B, h*d, H', W']
    return pooled.permute(0, 2, 3, 1).reshape(B, -1, h, d).transpose(1, 2)  # [B, h, N', d]


def _like_queries(q: Tensor) -> Tensor:
    """Empty [B, h, N, d] that lies as [B, N, h, d]."""
    B, h, N, d = q.shape
    return q.new_empty((B, N, h, d)).transpose(1, 2)


def _rows_whole(tokens: Tensor) -> Tensor:
    """The tensor, copied where the d entries of a token are not beside each other."""
    return tokens if tokens.stride(3) == 1 else tokens.contiguous()


@torch.compiler.assume_constant_result
def _capability(device: torch.device) -> tuple[int, int]:
    """Compute capability of a CUDA device; (0, 0) for any other."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
