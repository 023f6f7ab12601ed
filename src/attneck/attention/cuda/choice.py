"""Which backends may serve a case on CUDA, best first: a rule of sizes, and no clock."""

import torch
from torch import Tensor

from attneck.attention.cuda.limits import limits
from attneck.attention.cuda.sdpa import head_width
from attneck.attention.cuda.triton import DTYPES, HAS_TRITON, WIDEST_HEAD, beyond_offsets
from attneck.attention.operands import capability

FLASH_HEAD = 256
"""The widest head of PyTorch's flash attention."""


def candidates(
    q: Tensor,
    dtype: torch.dtype,
    map_size: tuple[int, int],
    *,
    content: bool,
    gradients: bool,
    same_bits: bool,
) -> tuple[tuple[str, ...], str]:
    """Backends for queries [B, h, N, d] that are computed in `dtype`, best first, and why.

    | map | backends |
    |---|---|
    | fewer positions than `plain_below` squared | plain |
    | H + W up to twice `sdpa_up_to` | sdpa, triton, tiled |
    | larger | triton, sdpa, tiled |

    `limits.py` has the two numbers, by GPU. sdpa stays out where gradients must be the same bits each time,
    since PyTorch's kernels add some of them atomically, and where its head, d + H + W wide, is wider than
    flash takes. triton stays out for heads wider than 256, in float32 than 128, and for tensors beyond its
    32-bit offsets. Both stay out in float64 and on a GPU before compute capability 8.0.
    """
    H, W = map_size
    gpu = capability(q.device)
    training = gradients and torch.is_grad_enabled()
    plain_below, sdpa_up_to = limits(gpu, "training" if training else "forward")
    if plain_below**2 > H * W:
        return ("plain",), f"the N x N logits of a map below {plain_below}x{plain_below} are small"
    order, size = (("sdpa", "triton"), "up to") if 2 * sdpa_up_to >= H + W else (("triton", "sdpa"), "above")
    out: dict[str, str] = {}
    if dtype not in DTYPES or gpu < (8, 0):
        both = f"no kernel for {dtype}" if dtype not in DTYPES else f"compute capability {gpu}, below 8.0"
        out = {"sdpa": both, "triton": both}
    else:
        if training and same_bits:
            out["sdpa"] = "gradients must be the same bits each time"
        elif head_width(q.shape[3], map_size, dtype, content) > FLASH_HEAD:
            out["sdpa"] = f"its head, d + H + W, is wider than {FLASH_HEAD}"
        if not HAS_TRITON:
            out["triton"] = "triton is not installed"
        elif q.shape[3] > WIDEST_HEAD[dtype]:
            out["triton"] = f"the head is wider than {WIDEST_HEAD[dtype]}"
        elif beyond_offsets(q, map_size):
            out["triton"] = "the tensors are too large for its offsets"
    names = [name for name in order if name not in out]
    why = f"a map {size} {sdpa_up_to}x{sdpa_up_to}" if sdpa_up_to else "N x N logits are large"
    return (*names, "tiled"), why + "".join(f"; not {name}: {said}" for name, said in out.items())
