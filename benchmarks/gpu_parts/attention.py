"""Part 2: the attention itself, q, k, v to out, every backend of this project and three others.

Letters: B batch, h heads, d head width, H x W map, N = H*W. All get one map of q, k, v, [B, 3hd, H, W], as
the projection leaves it, and the same tables: timm's and bottleneck-transformer-pytorch's layers have an
identity for their projection.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attneck.attention.backends import BACKENDS
from attneck.attention.flops import relative_attention_flops
from attneck.attention.relative import relative_attention_2d
from attneck.measure.contestants import DTYPES, LUCIDRAINS, TIMM, Direction
from attneck.measure.speed import Call, bandwidth_ceiling, gemm_ceiling

from .contest import contest
from .kept import Job, Kept

FLEX = "FlexAttention"
BOTH: Direction = "forward+backward"
DIRECTIONS: tuple[Direction, ...] = ("forward", BOTH)
CHECKED = 4e9
"""Bytes of float32 logits up to which the results are compared with the plain form's in float32."""
BACKWARD = 3.5
"""Products of a forward and backward pass over those of a forward pass: two there, and five, since the
weights are computed again where they are not kept."""


@dataclass(frozen=True)
class Case:
    """A square map, C = 512 and h = 4 as in c5 (BoTNet Fig. 4)."""

    size: int
    batch: int
    dtype: str = "bfloat16"
    heads: int = 4
    width: int = 128

    def __str__(self) -> str:
        return f"{self.size}×{self.size} b{self.batch} {self.dtype}"

    def floor(self, direction: Direction) -> tuple[float, int]:
        """(FLOPs, bytes) that any exact one needs: each product once, and each of q, k, v, out moved once.

        A backward pass reads these and out's gradient, and writes three.
        """
        B, h, N, d = self.batch, self.heads, self.size**2, self.width
        tokens, table = (B, h, N, d), (2 * self.size - 1, d)
        flops = relative_attention_flops(tokens, tokens, tokens, table, table)
        moved = B * h * N * d * DTYPES[self.dtype].itemsize
        return (BACKWARD * flops, 12 * moved) if direction == BOTH else (float(flops), 4 * moved)


def cases(job: Job) -> list[Case]:
    """What matters most comes first."""
    if job.tiny:
        return [Case(size, 1, dtype, 2, 16) for size, dtype in ((4, "float32"), (6, "bfloat16"))]
    first = [Case(size, 8) for size in (64, 14, 32, 20, 128, 7)]
    other = [Case(size, batch) for size in (64, 32, 14, 128) for batch in (1, 32)]
    types = [Case(size, 8, dtype) for size in (64, 32, 14) for dtype in ("float32", "float16")]
    between = [Case(size, 8) for size in (28, 10, 48, 24, 40, 80, 96)]
    rest = [Case(size, batch) for batch in (1, 32) for size in (20, 7, 28, 10, 48, 80)]
    return first + other + types + between + rest


def work(kept: Kept, job: Job) -> bool:
    """A row for each case and direction that has none."""
    torch.manual_seed(0)
    if "copy_gbytes" not in kept.document:
        kept.document["copy_gbytes"] = bandwidth_ceiling(job.device) / 1e9
        kept.write()
    ceilings = kept.document.setdefault("gemm_gflops", {})
    for case in cases(job):
        for direction in DIRECTIONS:
            key = f"{case} {direction}"
            if key in kept.rows or "" in kept.left_out.get(key, {}):
                continue
            if job.left <= 0:
                return False
            if case.dtype not in ceilings:
                ceilings[case.dtype] = gemm_ceiling(DTYPES[case.dtype], job.device) / 1e9
            torch._dynamo.reset()  # a limit of recompilations would end in eager calls, without a word
            row = _row(kept, job, case, direction, key)
            print(f"{key}: {said(row)}", flush=True)
            kept.row(key, row)
    return True


def _row(kept: Kept, job: Job, case: Case, direction: Direction, key: str) -> dict[str, Any]:
    given = Given(case, direction, job.device)
    reference = given.reference() if 4 * case.batch * case.heads * case.size**4 < CHECKED else None

    def check(name: str, call: Call) -> dict[str, Any]:
        result = given.result(call)
        found: dict[str, Any] = {"same_bits": bool(torch.equal(result, given.result(call)))}
        if reference is not None:
            found["error"] = float((result.float() - reference).norm() / reference.norm())
        return found

    makers = {name: partial(given.call, name) for name in contestants(case)}
    row = contest(kept, job, key, makers, check)
    flops, moved = case.floor(direction)
    by_products = flops / kept.document["gemm_gflops"][case.dtype] / 1e6
    by_bytes = moved / kept.document["copy_gbytes"] / 1e6
    return row | {
        "size": case.size,
        "batch": case.batch,
        "dtype": case.dtype,
        "direction": direction,
        "floor_ms": {"products": by_products, "bytes": by_bytes},
    }


def contestants(case: Case) -> list[str]:
    """This project's backends, and what others are there; FlexAttention, which compiles long, in a few."""
    names = [name for name in BACKENDS if name != "cpu"]
    if importlib.util.find_spec("timm"):
        names.append(TIMM)
    if importlib.util.find_spec("bottleneck_transformer_pytorch"):
        names.append(LUCIDRAINS)
    if case.batch in (1, 8) and case.size in (4, 32, 64):
        names.append(FLEX)
    return names


class Given:
    """A case's tensors, and the calls on them; with gradients in that direction alone."""

    def __init__(self, case: Case, direction: Direction, device: str) -> None:
        B, h, N, d = case.batch, case.heads, case.size**2, case.width
        self.case, self.direction, self.device = case, direction, device
        dtype, both = DTYPES[case.dtype], direction == BOTH
        qkv = torch.randn(B, N, 3, h, d, device=device)
        qkv[:, :, 0] *= d**-0.5
        self.qkv = qkv.to(dtype).requires_grad_(both)  # as a projection in channels_last leaves it
        tables = (torch.randn(2 * case.size - 1, d, device=device) for _ in range(2))
        self.rel_h, self.rel_w = (nn.Parameter(table.to(dtype), requires_grad=both) for table in tables)
        self.grad = torch.randn(B, h, N, d, device=device).to(dtype)

    def call(self, name: str) -> Call:
        """One call: out, or the gradients of q, k, v and the tables."""
        form = self._form(name)
        if self.direction == "forward":

            def forward() -> Tensor:
                with torch.no_grad():
                    return form()

            return forward

        def both() -> Tensor:
            out = form()
            is_map = out.shape != self.grad.shape  # a library's
            grad = _map(self.grad, self.case.size) if is_map else self.grad
            return torch.autograd.grad(out, [self.qkv, self.rel_h, self.rel_w], grad)[0]

        return both

    def result(self, call: Call) -> Tensor:
        """What a call returns, in one layout: out [B, h, N, d], or q, k, v's gradient [B, N, 3, h, d]."""
        found = call()
        assert isinstance(found, Tensor)
        if found.ndim == 4 and found.shape[2] == found.shape[3] == self.case.size:
            found = found.unflatten(1, (self.case.heads, -1)).flatten(3).transpose(2, 3)
        return found

    def reference(self) -> Tensor:
        """The plain form's result in float32, on the numbers of the case's dtype."""
        exact = copy.copy(self)
        both = self.direction == BOTH
        exact.qkv = self.qkv.detach().float().requires_grad_(both)
        tables = (table.detach().float() for table in (self.rel_h, self.rel_w))
        exact.rel_h, exact.rel_w = (nn.Parameter(table, requires_grad=both) for table in tables)
        exact.grad = self.grad.float()
        return exact.result(exact.call("plain"))

    def _form(self, name: str) -> Callable[[], Tensor]:
        size, heads, d = self.case.size, self.case.heads, self.case.width
        dtype = self.qkv.dtype
        if name in BACKENDS:
            return lambda: relative_attention_2d(
                *self._heads(), self.rel_h, self.rel_w, (size, size), backend=name
            )
        if name == FLEX:
            return self._flex()
        layer: Any
        if name == TIMM:
            from timm.layers.bottleneck_attn import BottleneckAttn

            layer = BottleneckAttn(heads * d, feat_size=(size, size), num_heads=heads, scale_pos_embed=True)
            layer.qkv, layer.scale = nn.Identity(), 1.0
            layer.pos_embed.height_rel, layer.pos_embed.width_rel = self.rel_h, self.rel_w
        else:
            from bottleneck_transformer_pytorch.bottleneck_transformer_pytorch import Attention

            layer = Attention(
                dim=heads * d, fmap_size=(size, size), heads=heads, dim_head=d, rel_pos_emb=True
            )
            layer.to_qkv, layer.scale = nn.Identity(), 1.0
            layer.pos_emb.rel_height, layer.pos_emb.rel_width = self.rel_h, self.rel_w
        layer.to(self.device, dtype)
        maps = lambda: self.qkv.flatten(2).transpose(1, 2).unflatten(2, (size, size))  # noqa: E731
        return lambda: layer(maps())  # [B, 3hd, H, W] in channels_last -> [B, hd, H, W]

    def _heads(self) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v: [B, h, N, d] each."""
        q, k, v = self.qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def _flex(self) -> Callable[[], Tensor]:
        """The bias is read from q times either table, [B, h, N, 2L-1], by offset."""
        from torch.nn.attention.flex_attention import flex_attention

        size = self.case.size
        attention: Any = torch.compile(flex_attention) if self.device == "cuda" else flex_attention

        def form() -> Tensor:
            q, k, v = self._heads()
            # Two tensors: it has no gradient of one that is read at two places.
            rows, columns = q @ self.rel_h.T, q @ self.rel_w.T

            def biased(score: Tensor, b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
                row = key // size - query // size + size - 1
                column = key % size - query % size + size - 1
                return score + rows[b, h, query, row] + columns[b, h, query, column]

            out: Tensor = attention(q, k, v, score_mod=biased, scale=1.0)
            return out

        return form


def _map(tokens: Tensor, size: int) -> Tensor:
    """[B, h, N, d] -> [B, hd, H, W]."""
    return tokens.transpose(2, 3).flatten(1, 2).unflatten(2, (size, size))


SHORT = {TIMM: "timm", LUCIDRAINS: "b-t-pytorch", FLEX: "flex"}
"""Names in a line."""


def said(row: dict[str, Any]) -> str:
    """A row in a line: its floor, and each one's time with that in floors."""
    floor = max(row["floor_ms"].values())
    times = sorted(row["ms"].items(), key=lambda pair: pair[1])
    found = [f"{SHORT.get(name, name)} {ms:.3g} ({ms / floor:.1f})" for name, ms in times]
    return f"floor {floor:.3g} ms; " + ", ".join(found)


def lines(document: dict[str, Any]) -> Iterator[str]:
    """The rows, what is wrong or missing in them, and the goals."""
    rows = document["rows"]
    missing: dict[str, list[str]] = {}
    for key, row in rows.items():
        yield f"{key}: {said(row)}"
        for name, found in row["checks"].items():
            if found.get("error", 0.0) > LARGEST[row["dtype"]]:
                yield f"  WRONG: {name} is {found['error']:.1e} off the plain form in float32"
        for name, why in row["left_out"].items():
            missing.setdefault(f"{SHORT.get(name, name)}: {why[:160]}", []).append(key)
    for what, keys in missing.items():
        yield f"LEFT OUT of {len(keys)}, {keys[0]} the first: {what}"
    yield from goals(rows)


LARGEST = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 3e-2}
"""Of the error's norm over the reference's, products in TF32 included."""


def goals(rows: dict[str, Any]) -> Iterator[str]:
    """What is aimed at, beside what was measured."""
    key = str(Case(64, 8))
    for direction, wanted, aim in (("forward", 1.5, 0.35), (BOTH, None, 1.22)):
        row = rows.get(f"{key} {direction}")
        ways = {name: ms for name, ms in row["ms"].items() if name in BACKENDS} if row else {}
        if not row or not ways:
            continue
        best = min(ways, key=ways.__getitem__)
        floor = max(row["floor_ms"].values())
        limit = f"at most {wanted} floors" if wanted else f"{BACKWARD} times the forward pass's floor"
        yield (
            f"GOAL {key} {direction}: {best} {ways[best]:.3f} ms, {ways[best] / floor:.2f} times its floor "
            f"of {floor:.3f} ms here; wanted {limit} ({aim} ms is the floor on an H200)"
        )
    small, large = (rows.get(f"{Case(size, 8)} {BOTH}") for size in (64, 128))
    if small and large:
        grown = {
            name: large["peak_mib"][name] / small["peak_mib"][name]
            for name in large["peak_mib"]
            if name in BACKENDS and small["peak_mib"].get(name)
        }
        said = ", ".join(f"{name} {times:.1f}" for name, times in grown.items())
        yield f"GOAL memory linear, 128×128's over 64×64's {BOTH}, wanted 4: {said or 'none fits'}"
