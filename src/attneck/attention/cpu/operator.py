"""BoTNet's 2-D relative attention on the CPU: one operator, exact, with memory linear in the map.

Letters: B batch, h heads, d head width, H x W map, N = H*W tokens, L = 2H-1 + 2W-1 rows of both tables. A
tile is g heads of r whole rows of queries, n = r*W tokens, of which n' are left by `pool`.

- The relative logits of a tile are one product with [rel_h; rel_w]. A key's offset is its position minus
  the query's, so those of each axis are a strided view of it: nothing is padded, nothing moved.
- A mean over queries is linear, so pool(P V) = pool(P) V: three products have a quarter of the rows.
- Up to KEEP tokens the weights P are kept for backward; above they are computed again, tile by tile.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from attneck.attention.cpu.choice import emulated
from attneck.attention.cpu.products import inner_product, product
from attneck.attention.cpu.tiles import (
    KEEP,
    Tiling,
    heads_of,
    pool_shares,
)
from attneck.attention.flops import relative_attention_backward_flops, relative_attention_flops
from attneck.attention.graph import no_second_derivative, refuse_tangents, refuse_transforms
from attneck.attention.operands import by_token

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""What the operator takes."""


def relative_attention_2d_cpu(
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    rel_h: Tensor,
    rel_w: Tensor,
    map_size: tuple[int, int],
    pool: bool = False,
    scale: float = 1.0,
) -> Tensor:
    """`relative_attention_2d` of fitting tensors on the CPU, differentiable once, in reverse mode.

    All have one dtype of DTYPES; where autocast is on they are taken in its dtype, as `matmul` takes them.
    Half precision that this processor would emulate is computed in float32.
    The result [B, h, N', d] lies token by token in memory: [B, N', h*d] is a view of it.

    Raises ValueError for other dtypes, NotImplementedError under a transform of `torch.func` and in forward
    mode.
    """
    refuse_transforms("CPU")
    if torch.is_autocast_enabled("cpu") and q.dtype != torch.float64:
        dtype = torch.get_autocast_dtype("cpu")
        q, v, rel_h, rel_w = q.to(dtype), v.to(dtype), rel_h.to(dtype), rel_w.to(dtype)
        k = None if k is None else k.to(dtype)
    tensors = [q, v, rel_h, rel_w] if k is None else [q, k, v, rel_h, rel_w]
    if q.dtype not in DTYPES or any(tensor.dtype != q.dtype for tensor in tensors):
        raise ValueError(
            f"the operands have dtypes {', '.join(str(tensor.dtype) for tensor in tensors)}; the CPU backend "
            f"wants one of {', '.join(map(str, DTYPES))} for all: convert them, or use autocast"
        )
    H, W = map_size
    dtype = q.dtype
    if emulated(dtype):  # float32 is many times faster, and more precise
        q, v, rel_h, rel_w = q.float(), v.float(), rel_h.float(), rel_w.float()
        k = None if k is None else k.float()
    keep = H * W <= KEEP and torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    out: Tensor = _attend(q, k, v, rel_h, rel_w, H, W, pool, scale, keep)[0]  # [B, h, N', d]
    return out.to(dtype)


@torch.library.custom_op("attneck::relative_attention_2d_cpu", mutates_args=(), device_types="cpu")
def _attend(
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    rel_h: Tensor,
    rel_w: Tensor,
    H: int,
    W: int,
    pool: bool,
    scale: float,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """The result [B, h, N', d], and the weights [B, h, N, N] to be kept for backward, or nothing [0]."""
    out, weights = _results(q, H, W, pool, keep)
    table = torch.cat((rel_h, rel_w))  # [L, d]
    tiling = Tiling.of(q, k, H, W, pool)
    shares = pool_shares(H, W, q) if pool else None  # [N', 1]
    with torch.autocast("cpu", enabled=False):
        for block in tiling.blocks():
            queries = heads_of(q, block, scale)  # [g, N, d]
            keys = None if k is None else heads_of(k, block)  # [g, N, d]
            values = heads_of(v, block).transpose(1, 2)  # [g, d, N]
            result = out[block]  # [images, heads, N', d]
            for y, r in tiling.rows_of_queries():
                n = _tokens_out(y, r, W, pool)
                kept = weights[block].flatten(0, 1) if keep else None  # [g, n, N]
                P = tiling.weights(queries[:, y * W : (y + r) * W], keys, table, y, kept)  # [g, n', N]
                tile = product(P, values, tiling.onednn)  # [g, n', d]
                if shares is not None:
                    tile *= shares[n]
                result[:, :, n] = tile.unflatten(0, result.shape[:2])
    return out, weights


@_attend.register_fake
def _(q: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    *_, H, W, pool, _, keep = others
    return _results(q, H, W, pool, keep)


@torch.library.custom_op("attneck::relative_attention_2d_cpu_backward", mutates_args=(), device_types="cpu")
def _differentiate(
    grad: Tensor,
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    rel_h: Tensor,
    rel_w: Tensor,
    weights: Tensor,
    H: int,
    W: int,
    pool: bool,
    scale: float,
    for_q: bool,
    for_k: bool,
    for_v: bool,
    for_table: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and [rel_h; rel_w] from the result's; nothing [0] where none is asked for."""
    dq, dk, dv, dtable = _gradients(q, H, W, for_q, for_k, for_v, for_table)
    table = torch.cat((rel_h, rel_w))  # [L, d]
    tiling = Tiling.of(q, k, H, W, pool)
    shares = pool_shares(H, W, q) if pool else None  # [N', 1]
    for_logits = for_q or for_k or for_table
    with torch.autocast("cpu", enabled=False):
        for block in tiling.blocks():
            queries = heads_of(q, block, scale)  # [g, N, d]
            keys = None if k is None else heads_of(k, block)  # [g, N, d]
            values, above = heads_of(v, block), heads_of(grad, block)  # [g, N, d], [g, N', d]
            to_k = to_v = None
            for y, r in tiling.rows_of_queries():
                n, n_out = slice(y * W, (y + r) * W), _tokens_out(y, r, W, pool)
                Q, dO = queries[:, n], above[:, n_out]  # [g, n, d], [g, n', d]
                if shares is not None:
                    dO = dO * shares[n_out]
                dP = product(dO, values, tiling.onednn) if for_logits or tiling.fused else None  # [g, n', N]
                kept = weights[block].flatten(0, 1) if weights.numel() else None  # [g, n, N]
                P, dS, of_offset = tiling.gradients(Q, keys, table, y, kept, dP, for_v=for_v)
                if P is not None:
                    to_v = tiling.plus(to_v, inner_product(P, dO, tiling.onednn))  # [g, N, d]
                if dS is None or not for_logits:
                    continue
                if for_k:
                    to_k = tiling.plus(to_k, inner_product(dS, Q, tiling.onednn))  # [g, N, d]
                if for_q or for_table:
                    dQ, by_offset = tiling.query_gradients(dS, of_offset, keys, table, y)
                    # [g, n, d], [g*n, L]
                    if for_q:
                        torch.mul(dQ.view_as(dq[block][:, :, n]), scale, out=dq[block][:, :, n])
                    if for_table:
                        part = inner_product(by_offset[None], Q.flatten(0, 1)[None], tiling.onednn)
                        dtable += part[0]  # [L, d]
            for gradient, total in ((dk, to_k), (dv, to_v)):
                if total is not None:
                    gradient[block] = total.unflatten(0, gradient[block].shape[:2])
    return dq, dk, dv, dtable.to(table.dtype)


@_differentiate.register_fake
def _(grad: Tensor, q: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *_, H, W, _, _, for_q, for_k, for_v, for_table = others
    dq, dk, dv, dtable = _gradients(q, H, W, for_q, for_k, for_v, for_table)
    return dq, dk, dv, dtable.to(q.dtype)


def _results(q: Tensor, H: int, W: int, pool: bool, keep: bool) -> tuple[Tensor, Tensor]:
    """Memory for the result [B, h, N', d], token by token, and for the weights [B, h, N, N] or [0]."""
    B, h, N, _ = q.shape
    out = by_token(q, -(-H // 2) * -(-W // 2) if pool else N)
    return out, q.new_empty((B, h, N, N) if keep else (0,))


def _gradients(
    q: Tensor, H: int, W: int, for_q: bool, for_k: bool, for_v: bool, for_table: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Memory for the gradients of q, k, v, token by token, and zeros for the tables', float32 or better."""
    N, d = q.shape[2:]
    dq, dk, dv = (by_token(q, N) if asked else q.new_empty(0) for asked in (for_q, for_k, for_v))
    sums = torch.promote_types(q.dtype, torch.float32)
    return dq, dk, dv, q.new_zeros((2 * H + 2 * W - 2, d) if for_table else (0,), dtype=sums)


def _tokens_out(y: int, r: int, W: int, pool: bool) -> slice:
    """The tokens of the result that queries of the rows y to y+r make up; y is even with `pool`."""
    if not pool:
        return slice(y * W, (y + r) * W)
    width = -(-W // 2)
    return slice(y // 2 * width, -(-(y + r) // 2) * width)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, rel_h, rel_w, *ctx.options, _ = inputs
    weights = output[1]
    ctx.mark_non_differentiable(weights)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, rel_h, rel_w, weights)


def _backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 10
    refuse_tangents("relative attention's CPU backend")
    for_q, for_k, for_v, for_h, for_w = ctx.needs_input_grad[:5]
    H = ctx.options[0]
    dq, dk, dv, dtable = _differentiate(
        grad, *ctx.saved_tensors, *ctx.options, for_q, for_k, for_v, for_h or for_w
    )
    return (
        dq if for_q else None,
        dk if for_k else None,
        dv if for_v else None,
        dtable[: 2 * H - 1] if for_h else None,
        dtable[2 * H - 1 :] if for_w else None,
        *[None] * 5,
    )


_attend.register_autograd(_backward, setup_context=_save)
_differentiate.register_autograd(no_second_derivative)
register_flop_formula(torch.ops.attneck.relative_attention_2d_cpu)(relative_attention_flops)
register_flop_formula(torch.ops.attneck.relative_attention_2d_cpu_backward)(relative_attention_backward_flops)
