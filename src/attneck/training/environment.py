"""Versions, hardware and command of a run, the memory that it took, and what of it is the same each time."""

from __future__ import annotations

import os
import platform
import resource
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.attention import SDPBackend, sdpa_kernel

from attneck import __version__
from attneck.processor import processor_name


def gpu_name() -> str | None:
    """Of the GPU that torch would use."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def environment(device: str = "cuda") -> dict[str, Any]:
    """Versions, hardware and command of a run, as JSON has them.

    Args:
        device: what computes; where it is "cpu" a GPU that is there too is not named.
    """
    packages = ("torch", "torchvision", "timm", "numpy")
    return {
        "command": shlex.join(["attneck", *sys.argv[1:]]),
        "python": platform.python_version(),
        "attneck": __version__,  # there too where the package is a folder on the path
        **{name: version(name) for name in packages},
        "platform": platform.platform(),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": None if device == "cpu" else gpu_name(),
        "processes": dist.get_world_size() if dist.is_initialized() else 1,
    }


def peak_memory(device: torch.device) -> float:
    """The most memory that this process has held, in GiB: of the GPU on CUDA, else all that was resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


@contextmanager
def operators_in_same_bits() -> Iterator[None]:
    """Here PyTorch takes no convolution, and no attention of its own, that adds atomically on a GPU.

    Its fused attention does so for gradients. The plain form takes its place, N x N weights and all; the ways
    of `attneck.attention` are not concerned. On the CPU nothing changes.
    """
    deterministic, torch.backends.cudnn.deterministic = torch.backends.cudnn.deterministic, True
    try:
        with sdpa_kernel(SDPBackend.MATH) if torch.cuda.is_available() else nullcontext():
            yield
    finally:
        torch.backends.cudnn.deterministic = deterministic
