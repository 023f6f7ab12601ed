"""The parts of relative attention on the CPU: how it is cut into tiles, and what is done to one.

Letters: B batch, h heads, d head width, H x W map, N = H*W tokens, L = 2H-1 + 2W-1 rows of both tables. A
tile is g heads of r whole rows of queries, n = r*W tokens, of which n' are left by pooling. The constants
were measured on an AMD EPYC (AVX-512), by one thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from attneck.attention.cpu import tile_passes
from attneck.attention.cpu.build import DTYPES
from attneck.attention.cpu.choice import attends_by_onednn
from attneck.attention.cpu.passes import passes
from attneck.attention.cpu.products import product
from attneck.attention.operands import by_position_of_rows

KEEP = 32 * 32
"""Tokens up to which the weights are kept for backward, and up to which a tile has whole heads."""

LOGITS = 1 << 20
"""Logits in a tile of a larger map, in half precision twice as many: 4 MiB."""

Block = tuple[slice, slice]
"""Some heads of one image, or all heads of some images: an index of [B, h, ...]."""


@dataclass(frozen=True)
class Tiling:
    """How one call is computed."""

    B: int
    h: int
    H: int
    W: int
    heads: int
    """g; at most h heads of one image, or the heads of several images."""
    rows: int
    """Rows of queries a tile; H up to KEEP tokens, even with pooling."""
    onednn: bool
    """Whether products go through oneDNN (float32 alone)."""
    pool: bool
    fused: bool
    """Whether the passes over the logits are compiled; else PyTorch's operators."""

    @classmethod
    def of(cls, q: Tensor, k: Tensor | None, H: int, W: int, pool: bool) -> Tiling:
        """The fastest that was measured, for q [B, h, N, d]."""
        B, h, N, d = q.shape
        short = q.dtype in (torch.bfloat16, torch.float16)
        onednn = q.dtype == torch.float32 and attends_by_onednn(N)
        fuses = k is not None and q.dtype in DTYPES and passes() == "fused"
        if N > KEEP:
            rows = max(1, (2 * LOGITS if short else LOGITS) // (N * W))
            return cls(B, h, H, W, 1, min(H, rows + rows % 2 if pool else rows), onednn, pool, fuses)
        # Tokens and logits of a tile stay in the cache; half precision gains more by fewer, larger products.
        tokens, logits = (1 << 20, 1 << 21) if short else (1 << 17, 1 << 19)
        heads = max(1, min(tokens // (N * d), logits // (N * N)))
        return cls(B, h, H, W, heads, H, onednn, pool, fuses)

    def blocks(self) -> Iterator[Block]:
        """Every head of every image once, `heads` at a time."""
        images, heads = (self.heads // self.h, self.h) if self.heads >= self.h else (1, self.heads)
        for b in range(0, self.B, images):
            for j in range(0, self.h, heads):
                yield slice(b, min(b + images, self.B)), slice(j, min(j + heads, self.h))

    def rows_of_queries(self) -> Iterator[tuple[int, int]]:
        """(first row y, rows r) of each tile of a head."""
        for y in range(0, self.H, self.rows):
            yield y, min(self.rows, self.H - y)

    def weights(
        self, q: Tensor, keys: Tensor | None, table: Tensor, y: int, kept: Tensor | None = None
    ) -> Tensor:
        """The weights P of a tile [g, n, N], or with `pool` the sums of its windows of queries [g, n', N].

        Operands as of `logits`. `kept` is dense memory for P itself, where it is to be kept.
        """
        if self.fused:
            assert keys is not None
            logits = product(q, keys, self.onednn)  # [g, n, N]
            return tile_passes.weights(logits, self.by_offset(q, table), y, (self.H, self.W), self.pool, kept)
        logits = self.logits(q, keys, table, y)  # [g, n, N]
        P = torch.softmax(logits, dim=-1, out=logits if kept is None else kept)
        return self._pooled(P)

    def gradients(
        self,
        q: Tensor,
        keys: Tensor | None,
        table: Tensor,
        y: int,
        kept: Tensor | None,
        above: Tensor | None,
        *,
        for_v: bool,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """From the gradient `above` of `weights` [g, n', N]: of the logits [g, n, N], by offset [g, n, L].

        Before the two, `weights` again if `for_v`. Operands as of `logits`; `kept` is P if it was kept. The
        gradient by offset is None where it is still to be summed; without `above`, which `fused` always
        needs, there is none.
        """
        if self.fused:
            assert keys is not None
            assert above is not None
            by_offset = None if kept is not None else self.by_offset(q, table)
            source = product(q, keys, self.onednn) if kept is None else kept  # [g, n, N]
            return tile_passes.gradients(
                source, by_offset, above, y, (self.H, self.W), self.pool, for_v=for_v
            )
        P = kept
        if P is None:
            logits = self.logits(q, keys, table, y)  # [g, n, N]
            P = torch.softmax(logits, dim=-1, out=logits)
        again = self._pooled(P) if for_v else None
        if above is None:
            return again, None, None
        dP = spread_queries(above, P.shape[1] // self.W, self.W) if self.pool else above  # [g, n, N]
        return again, torch.ops.aten._softmax_backward_data(dP, P, -1, P.dtype), None

    def _pooled(self, P: Tensor) -> Tensor:
        return pool_queries(P, P.shape[1] // self.W, self.W) if self.pool else P

    def by_offset(self, q: Tensor, table: Tensor) -> Tensor:
        """Relative logits by offset: q [g, n, d], table [L, d] -> [g, n, L]."""
        return product(q.flatten(0, 1)[None], table[None], self.onednn).view(*q.shape[:2], -1)

    def logits(self, q: Tensor, keys: Tensor | None, table: Tensor, y: int) -> Tensor:
        """Of a tile from row y on: q [g, n, d], keys [g, N, d], table [L, d] -> [g, n, N]."""
        rows, columns = by_position_of_rows(
            self.by_offset(q, table), y, (self.H, self.W)
        )  # [g, r, W, H], [g, r, W, W]
        if keys is None:
            return (rows[..., :, None] + columns[..., None, :]).view(*q.shape[:2], -1)  # [g, n, N]
        if not self.onednn:
            # One pass and one rounding less than to add both to the product; float32 adds faster too.
            precise = torch.promote_types(q.dtype, torch.float32)
            relative = rows.to(precise)[..., :, None] + columns.to(precise)[..., None, :]
            return relative.to(q.dtype).view(*q.shape[:2], -1).baddbmm_(q, keys.transpose(1, 2))  # [g, n, N]
        logits = product(q, keys, self.onednn)  # [g, n, N]
        by_axis = logits.view(len(q), -1, self.W, self.H, self.W)  # [g, r, W, H, W]
        by_axis += rows[..., :, None]
        by_axis += columns[..., None, :]
        return logits

    def query_gradients(
        self, dS: Tensor, of_offset: Tensor | None, keys: Tensor | None, table: Tensor, y: int
    ) -> tuple[Tensor, Tensor]:
        """From `gradients`' two: of q [g, n, d], and of q table^T [g*n, L]."""
        g, n, _ = dS.shape
        d = table.shape[1]
        if of_offset is None:
            of_offset = self._by_offset_again(dS, y)
        by_offset = of_offset.flatten(0, 1)  # [g*n, L]
        relative = product(by_offset[None], table.T[None], self.onednn).view(g, n, d)
        if keys is None:
            return relative, by_offset
        return relative.add_(product(dS, keys.transpose(1, 2), self.onednn)), by_offset

    def _by_offset_again(self, dS: Tensor, y: int) -> Tensor:
        """The gradient by offset: dS [g, n, N] -> [g, n, L], summed over key columns and key rows."""
        g, n, _ = dS.shape
        H, W = self.H, self.W
        by_offset = dS.new_zeros(g, n, 2 * H + 2 * W - 2)  # [g, n, L]
        rows, columns = by_position_of_rows(by_offset, y, (H, W))  # [g, r, W, H], [g, r, W, W]
        by_axis = dS.view(g, -1, W, H, W)  # [g, r, W, H, W]
        rows.copy_(by_axis.sum(-1))
        columns.copy_(by_axis.sum(-2))
        return by_offset

    def plus(self, total: Tensor | None, part: Tensor) -> Tensor:
        """A sum over the tiles of a head, in float32 at least if there are several."""
        if total is not None:
            return total.add_(part)
        return part if self.rows >= self.H else part.to(torch.promote_types(part.dtype, torch.float32))


def heads_of(tokens: Tensor, block: Block, scale: float = 1.0) -> Tensor:
    """The block's heads times `scale`, dense: [B, h, N, d] -> [g, N, d]."""
    part = tokens[block]  # [images, heads, N, d]
    if scale == 1.0:
        return part.contiguous().flatten(0, 1)
    return torch.mul(part, scale, out=part.new_empty(part.shape)).flatten(0, 1)


def pool_shares(H: int, W: int, like: Tensor) -> Tensor:
    """One over the positions of each 2x2 window that are inside the map: [N', 1]."""
    inside_h = (H - torch.arange(0, H, 2, device="cpu")).clamp(max=2)  # [H']
    inside_w = (W - torch.arange(0, W, 2, device="cpu")).clamp(max=2)  # [W']
    return (1 / (inside_h[:, None] * inside_w)).to(like.dtype).view(-1, 1)


def pool_queries(P: Tensor, r: int, W: int) -> Tensor:
    """Sum of each 2x2 window of queries: [g, r*W, N] -> [g, n', N]; a window on an odd side has fewer."""
    return _add_pairs(_add_pairs(P.unflatten(1, (r, W)), 1), 2).flatten(1, 2)


def _add_pairs(x: Tensor, dim: int) -> Tensor:
    """Neighbours along `dim` added, two by two; the last of an odd number stays alone."""
    pairs, odd = divmod(x.shape[dim], 2)
    first, second = x.narrow(dim, 0, 2 * pairs).unflatten(dim, (pairs, 2)).unbind(dim + 1)
    return torch.cat((first + second, x.narrow(dim, 2 * pairs, 1)), dim) if odd else first + second


def spread_queries(dP: Tensor, r: int, W: int) -> Tensor:
    """The gradient of `pool_queries`: [g, n', N] -> [g, r*W, N]."""
    g, _, N = dP.shape
    windows = dP.view(g, -(-r // 2), 1, -(-W // 2), 1, N).expand(-1, -1, 2, -1, 2, -1)
    whole = windows.reshape(g, r + r % 2, W + W % 2, N)
    return whole[:, :r, :W].reshape(g, r * W, N)
