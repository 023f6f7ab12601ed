"""The backends: ways of computing the same numbers, one entry each."""

from collections.abc import Callable

from torch import Tensor

from attneck.attention.cpu.operator import relative_attention_2d_cpu
from attneck.attention.cuda.sdpa import augmented_attention_2d
from attneck.attention.cuda.triton import triton_attention_2d
from attneck.attention.plain import plain_attention_2d
from attneck.attention.tiled import tiled_attention_2d

Backend = Callable[[Tensor, Tensor | None, Tensor, Tensor, Tensor, tuple[int, int], bool], Tensor]

BACKENDS: dict[str, Backend] = {
    "plain": plain_attention_2d,
    "cpu": relative_attention_2d_cpu,
    "tiled": tiled_attention_2d,
    "sdpa": augmented_attention_2d,
    "triton": triton_attention_2d,
}
