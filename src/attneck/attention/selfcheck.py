"""A kernel is checked on the spot, before it is trusted: a small case, against the plain form on the CPU.

The first use in a process of (kernel, dtype, head width, device) pays for it, later ones look it up. The check
runs in a thread of its own, where nothing of the caller's is on: no dispatch mode, no fake tensors, no
autocast, no transform, no inference mode, no compiler. It draws from a generator of its own. No process waits
for another: where GPUs differ, each decides for itself, and the ways agree up to rounding.
"""

import threading
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from attneck.attention.backends import BACKENDS
from attneck.attention.cuda.sdpa import NoFusedKernel, head_width
from attneck.attention.cuda.triton import alike
from attneck.attention.plain import plain_attention_2d

TOLERANCE = {torch.float32: 5e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""Norm of the error over the norm of the plain form's in float64, for the result and each gradient. Float32 has
room for TF32 products; a wrong entry in a hundred shows in all three."""


class Kernel(NamedTuple):
    """What is left out, if it fails."""

    name: str
    dtype: torch.dtype
    d: int
    device: torch.device

    def __str__(self) -> str:
        return f"{self.name} ({self.dtype}, head width {self.d}, {_gpu(self.device)})"
