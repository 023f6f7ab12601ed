"""Relative attention on any device, by ordinary operators on tiles of queries: memory linear in N.

Letters: B batch, h heads, d head width, H x W map, N = H*W tokens in row-major order, L = 2H-1 + 2W-1 rows
in both tables. A tile is g of the B*h heads and r whole rows of queries, n = r*W tokens. Its weights are
computed, used and dropped; the backward pass computes them again. No operator here adds atomically.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from attneck.attention.flops import joined_attention_backward_flops, joined_attention_flops
from attneck.attention.graph import no_second_derivative, refuse_tangents, refuse_transforms
from attneck.attention.operands import by_position_of_rows, by_token, operands, pool_maps, without_autocast

LOGITS = 1 << 24
"""Logits in a tile, which are 64 MiB in float32; one row of one head is the least."""


def tiled_attention_2d(
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    rel_h: Tensor,
    rel_w: Tensor,
    map_size: tuple[int, int],
    pool: bool,
) -> Tensor:
    """`relative_attention_2d` of any floating dtype, on any device; arguments and result as there.

    Kept for the backward pass are q, k, v and the tables. Raises NotImplementedError under a transform of
    `torch.func` and in forward mode.
    """
    refuse_transforms("tiled")
    q, k, v, table = operands(q, k, v, rel_h, rel_w)
    out: Tensor = _attend(q, k, v, table, *map_size)  # [B, h, N, d]
    return pool_maps(out, map_size) if pool else out


@torch.library.custom_op("attneck::relative_attention_2d_tiled", mutates_args=())
def _attend(q: Tensor, k: Tensor | None, v: Tensor, table: Tensor, H: int, W: int) -> Tensor:
    """q, k, v [B, h, N, d] and both tables [L, d] -> the result [B, h, N, d]."""
    out = by_token(q)
    with without_autocast(q):
        queries, keys, values = _heads(q), None if k is None else _heads(k), _heads(v)  # [B*h, N, d]
        result = torch.empty_like(values)
        for heads, y, r in _tiles(q, H, W):
            n = slice(y * W, (y + r) * W)
            K = None if keys is None else keys[heads]  # [g, N, d]
            P = _weights(queries[heads, n], K, table, y, (H, W))  # [g, n, N]
            result[heads, n] = P @ values[heads]  # [g, n, d]
    return out.copy_(result.view(q.shape))


@torch.library.custom_op("attneck::relative_attention_2d_tiled_backward", mutates_args=())
def _attend_backward(
    d_out: Tensor, q: Tensor, k: Tensor | None, v: Tensor, table: Tensor, H: int, W: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k (empty without k), v [B, h, N, d] and of the table [L, d]."""
    with without_autocast(q):
        queries, values, above = _heads(q), _heads(v), _heads(d_out)  # [B*h, N, d] each
        keys = None if k is None else _heads(k)  # [B*h, N, d]
        sums = torch.promote_types(q.dtype, torch.float32)  # what is a sum over tiles
        d_q, d_v = torch.empty_like(queries), torch.zeros_like(queries, dtype=sums)
        d_k = None if keys is None else torch.zeros_like(queries, dtype=sums)
        d_table = torch.zeros_like(table, dtype=sums)
        for heads, y, r in _tiles(q, H, W):
            n = slice(y * W, (y + r) * W)
            Q, dO = queries[heads, n], above[heads, n]  # [g, n, d]
            K = None if keys is None else keys[heads]  # [g, N, d]
            P = _weights(Q, K, table, y, (H, W))  # [g, n, N]
            d_v[heads] += P.transpose(1, 2) @ dO
            dP = dO @ values[heads].transpose(1, 2)  # [g, n, N]
            dS = torch.ops.aten._softmax_backward_data(dP, P, -1, P.dtype)  # [g, n, N]
            by_axis = dS.view(len(dS), r, W, H, W)
            by_offset = dS.new_zeros(*Q.shape[:2], len(table))  # [g, n, L]
            rows, columns = by_position_of_rows(by_offset, y, (H, W))
            rows.copy_(by_axis.sum(4)), columns.copy_(by_axis.sum(3))
            d_table += by_offset.flatten(0, 1).T @ Q.flatten(0, 1)
            dQ = by_offset @ table  # [g, n, d]
            if K is not None and d_k is not None:
                dQ = dQ.baddbmm(dS, K)
                d_k[heads] += dS.transpose(1, 2) @ Q
            d_q[heads, n] = dQ
    found = (None if one is None else by_token(q).copy_(one.view(q.shape)) for one in (d_q, d_k, d_v))
    return *(q.new_empty(0) if one is None else one for one in found), d_table.to(table.dtype)  # type: ignore[return-value]


@_attend.register_fake
def _(q: Tensor, k: Tensor | None, v: Tensor, table: Tensor, H: int, W: int) -> Tensor:
    return by_token(q)


@_attend_backward.register_fake
def _(
    d_out: Tensor, q: Tensor, k: Tensor | None, v: Tensor, table: Tensor, H: int, W: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d_k = q.new_empty(0) if k is None else by_token(q)
    return by_token(q), d_k, by_token(q), torch.empty_like(table)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    q, k, v, table, ctx.H, ctx.W = inputs
    ctx.save_for_backward(q, k, v, table)


def _gradients(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
    refuse_tangents("relative attention's tiled backend")
    q, k, v, table = ctx.saved_tensors
    d_q, d_k, d_v, d_table = _attend_backward(d_out, q, k, v, table, ctx.H, ctx.W)
    return d_q, None if k is None else d_k, d_v, d_table, None, None


_attend.register_autograd(_gradients, setup_context=_keep)
_attend_backward.register_autograd(no_second_derivative)
register_flop_formula(torch.ops.attneck.relative_attention_2d_tiled)(joined_attention_flops)
register_flop_formula(torch.ops.attneck.relative_attention_2d_tiled_backward)(joined_attention_backward_flops)


def _tiles(q: Tensor, H: int, W: int) -> Iterator[tuple[slice, int, int]]:
    """(heads of the B*h, first row y, rows r) of each tile, of LOGITS logits or, at the least, one row."""
    B, h, N, _ = q.shape
    rows = min(H, max(1, LOGITS // (N * W)))
    heads = max(1, LOGITS // (N * N))  # one, unless they are whole
    for first in range(0, B * h, heads):
        for y in range(0, H, rows):
            yield slice(first, min(first + heads, B * h)), y, min(rows, H - y)


def _weights(q: Tensor, k: Tensor | None, table: Tensor, y: int, map_size: tuple[int, int]) -> Tensor:
    """Of the queries [g, n, d] from row y on to the keys [g, N, d]: [g, n, N]."""
    rows, columns = by_position_of_rows(q @ table.T, y, map_size)  # [g, r, W, H], [g, r, W, W]
    # In half precision the sum of the two is rounded once.
    precise = torch.promote_types(q.dtype, torch.float32)
    logits = rows.to(precise)[..., :, None] + columns.to(precise)[..., None, :]  # [g, r, W, H, W]
    logits = logits.to(q.dtype).flatten(3).flatten(1, 2)  # [g, n, N]
    if k is not None:
        logits = logits.baddbmm_(q, k.transpose(1, 2))
    return logits.softmax(-1)


def _heads(tokens: Tensor) -> Tensor:
    """[B, h, N, d] -> [B*h, N, d], dense."""
    return tokens.contiguous().flatten(0, 1)
