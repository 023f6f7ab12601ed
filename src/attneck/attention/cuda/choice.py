"""Which way serves a case on CUDA."""

import torch
from torch import Tensor

from attneck.attention.cuda.operands import capability
from attneck.attention.cuda.triton import HAS_TRITON


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
    Triton does not run (not installed, before compute capability 8.0, or d > 128) SDPA serves instead.
    """
    H, W = map_size
    if q.dtype == torch.float64 or H * W < 100:
        return "plain"
    if not HAS_TRITON or capability(q.device) < (8, 0) or q.shape[3] > 128:
        return "sdpa"
    training = torch.is_grad_enabled() and q.requires_grad
    return "sdpa" if max(H, W) <= 32 and not training else "triton"
