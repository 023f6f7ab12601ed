"""Peak memory of a call beyond what was in use before it, measured in a separate process."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_elsewhere(make: Callable[..., Callable[[], object]], *arguments: Any, device: str = "cpu") -> int:
    """`peak(make(*arguments))` in bytes, in a new process, for the second call: the first sets libraries up.

    `make` is a module's function, and its own memory is not counted; torch has as many threads as here.
    Raises RuntimeError as `peak`, and whatever `make` and its call raise.
    """
    # So glibc maps each large tensor separately, and unmaps it when the tensor is freed.
    with (
        patch.dict(os.environ, {"MALLOC_MMAP_THRESHOLD_": "65536"}),
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process,
    ):
        return process.submit(_peak_of, make, arguments, device, torch.get_num_threads()).result()


def peak(call: Callable[[], object], device: str = "cpu") -> int:
    """Most bytes in use during `call` beyond those before it, its result included.

    On the CPU this is resident memory as Linux counts it. Raises RuntimeError on other systems, which have no
    such counter.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    if not can_measure(device):
        raise RuntimeError("the peak of a process's memory is read from Linux's /proc, which is not here")
    before = _kilobytes("VmRSS")
    _RESET.write_text("5")  # the peak starts anew from what is resident now
    call()
    return 1024 * (_kilobytes("VmHWM") - before)


def can_measure(device: str) -> bool:
    """Whether there is a counter: a GPU's, or that of Linux."""
    return device == "cuda" or _RESET.exists()


def emptied(device: str) -> None:
    """What nobody uses goes back to the GPU, for who comes next."""
    if device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def _peak_of(
    make: Callable[..., Callable[[], object]], arguments: tuple[Any, ...], device: str, threads: int
) -> int:
    torch.set_num_threads(threads)
    call = make(*arguments)
    call()
    return peak(call, device)


def _kilobytes(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1])
