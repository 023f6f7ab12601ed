"""What is timed: this project's layers, other implementations of them, and their plain forms.

Letters: B batch, C channels, H×W map, h heads, d = C/h, N = H·W.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attneck.attention import relative_attention_2d
from attneck.attention.flops import relative_attention_flops
from attneck.attention.gate import COMBINES, gate
from attneck.layers import BAM, MHSA2d

Direction = Literal["forward", "forward+backward"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
OURS = "attneck"
PLAIN, TIMM, LUCIDRAINS = "plain", "timm BottleneckAttn", "bottleneck-transformer-pytorch"
LAST, COMPILED = " channels_last", " compiled"
EXPANDED = "expanded"


@dataclass(frozen=True)
class AttentionCase:
    """MHSA with its projections on a square map: C = 512, h = 4, as in c5 (BoTNet Fig. 4)."""

    size: int
    """H and W."""
    batch: int
    dtype: str = "float32"
    stride: int = 1
    channels: int = 512
    heads: int = 4

    def __str__(self) -> str:
        stride = f" stride {self.stride}" if self.stride > 1 else ""
        return f"{self.size}×{self.size}{stride} b{self.batch} {self.dtype}"

    def floor(self, direction: Direction) -> tuple[int, int]:
        """(FLOPs, bytes) that every exact implementation needs: each product once, each tensor once.

        The backward pass has two products for each one of the forward pass. The bytes leave out the weights
        [N, N], which need never leave the chip.
        """
        B, C, N = self.batch, self.channels, self.size**2
        tokens = (B, self.heads, N, C // self.heads)
        table = (2 * self.size - 1, C // self.heads)
        flops = 2 * B * N * C * 3 * C + relative_attention_flops(tokens, tokens, tokens, table, table)
        if self.stride == 2:  # the weights can be averaged before they meet v: a quarter of the rows
            flops -= 2 * B * N * N * C * 3 // 4
        numbers = B * N * C * (1 + 1 / self.stride**2) + 3 * C * C
        share = 3 if direction == "forward+backward" else 1
        return flops * share, int(numbers * share) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class BAMCase:
    """The gate x + x·sigmoid(c + p), or the whole module, on a map in channels_last."""

    channels: int
    size: int
    batch: int
    dtype: str = "float32"
    part: Literal["gate", "module"] = "gate"

    def __str__(self) -> str:
        return f"{self.part} {self.channels}×{self.size}×{self.size} b{self.batch} {self.dtype}"


class PlainMHSA(MHSA2d):
    """The same layer in plain PyTorch: a convolution, all N×N logits, softmax, product, pool."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C, H', W']."""
        (B, C), (H, W) = x.shape[:2], x.shape[2:]
        qkv = F.conv2d(x, self.qkv.weight).flatten(2)  # [B, 3C, N]
        q, k, v = qkv.view(B, 3, self.heads, C // self.heads, H * W).transpose(3, 4).unbind(1)
        out = relative_attention_2d(
            q * self.scale, k, v, self.rel_h, self.rel_w, (H, W), self.stride == 2, backend="plain"
        )  # [B, h, N', d]
        return out.transpose(2, 3).reshape(B, C, -(-H // self.stride), -(-W // self.stride))


class ExpandedBAM(BAM):
    """The same module in plain PyTorch: both branches are expanded to the whole map, as is usual."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C, H, W]."""
        c = self.channel_attention(x).to(x.dtype)  # that branch is float32
        return expanded_gate(x, c, self.spatial_attention(x), self.combine)


def expanded_gate(x: Tensor, c: Tensor, p: Tensor, combine: str = "sum") -> Tensor:
    """x + x·sigmoid(c + p) in plain PyTorch: x [B, C, H, W], c [B, C], p [B, 1, H, W]."""
    weights = COMBINES[combine](c[:, :, None, None].expand_as(x), p.expand_as(x)).sigmoid()
    return x + x * weights


def attention_names(compiled: bool, case: AttentionCase | None = None) -> list[str]:
    """All contestants of an attention case, this project first, without libraries that are not installed.

    The libraries' layers pool a map of an odd side to another size than ours and the papers': they are left
    out there.
    """
    names = [OURS, PLAIN, PLAIN + LAST]
    odd = case is not None and case.stride == 2 and case.size % 2 == 1
    if importlib.util.find_spec("timm") and not odd:
        names += [TIMM, TIMM + LAST]
    if importlib.util.find_spec("bottleneck_transformer_pytorch") and not odd:
        names += [LUCIDRAINS, LUCIDRAINS + LAST]
    if compiled:
        names += [name + COMPILED for name in names if not name.startswith(PLAIN)]
    return names


def attention_call(
    case: AttentionCase, name: str, direction: Direction, device: str = "cpu"
) -> Callable[[], object]:
    """One call of `name` in `case`: forward in evaluation, or forward and backward in training."""
    peer, compiled = name.removesuffix(COMPILED), name.endswith(COMPILED)
    last = peer.endswith(LAST) or peer == OURS
    C, heads, side = case.channels, case.heads, (case.size, case.size)
    peer = peer.removesuffix(LAST)
    layer: nn.Module
    if peer == OURS:
        layer = MHSA2d(C, side, heads=heads, stride=case.stride)
    elif peer == PLAIN:
        layer = PlainMHSA(C, side, heads=heads, stride=case.stride)
    elif peer == TIMM:
        from timm.layers.bottleneck_attn import BottleneckAttn

        layer = BottleneckAttn(C, feat_size=side, stride=case.stride, num_heads=heads, scale_pos_embed=True)
    else:
        from bottleneck_transformer_pytorch.bottleneck_transformer_pytorch import Attention

        layer = Attention(dim=C, fmap_size=side, heads=heads, dim_head=C // heads, rel_pos_emb=True)
        if case.stride == 2:
            layer = nn.Sequential(layer, nn.AvgPool2d(2))
    x = torch.randn(case.batch, C, *side)
    return _call(layer, x, last, compiled, case.dtype, direction, device)


def bam_names(compiled: bool) -> list[str]:
    """All contestants of a BAM case."""
    names = [OURS, EXPANDED]
    return names + [name + COMPILED for name in names if compiled]


def bam_call(case: BAMCase, name: str, direction: Direction, device: str = "cpu") -> Callable[[], object]:
    """One call of `name` in `case`, as `attention_call`."""
    compiled, ours = name.endswith(COMPILED), name.removesuffix(COMPILED) == OURS
    layer = _Gate(case, ours) if case.part == "gate" else (BAM if ours else ExpandedBAM)(case.channels)
    x = torch.randn(case.batch, case.channels, case.size, case.size)
    return _call(layer, x, True, compiled, case.dtype, direction, device)


class _Gate(nn.Module):
    """The gate alone; its logits are parameters."""

    def __init__(self, case: BAMCase, ours: bool) -> None:
        super().__init__()
        self.function = gate if ours else expanded_gate
        self.c = nn.Parameter(torch.randn(case.batch, case.channels))
        self.p = nn.Parameter(torch.randn(case.batch, 1, case.size, case.size))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.c, self.p)


def _call(
    layer: nn.Module, x: Tensor, last: bool, compiled: bool, dtype: str, direction: Direction, device: str
) -> Callable[[], object]:
    memory_format = torch.channels_last if last else torch.contiguous_format
    layer = layer.to(device, DTYPES[dtype]).to(memory_format=memory_format)
    x = x.to(device, DTYPES[dtype]).contiguous(memory_format=memory_format)
    training = direction == "forward+backward"
    layer.train(training)
    run: Any = torch.compile(layer) if compiled else layer
    if not training:

        def forward() -> Tensor:
            with torch.no_grad():
                return run(x)

        return forward
    x.requires_grad_()
    with torch.no_grad():
        grad = torch.randn_like(layer(x))

    def both() -> None:
        run(x).backward(grad)
        x.grad = None
        layer.zero_grad(set_to_none=True)

    return both
