"""Memory that is freed on the CPU stays with the process, for the next step wants as much of it again."""

from __future__ import annotations

import ctypes

# mallopt's names of them, in malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Set glibc's malloc so; whether there is one to set. It holds for the whole process.

    As it comes, it asks the system for every tensor over 32 MiB, and gives it back: the system clears each
    page anew. Without that a step of stairnet_mobilenet_bam (300 pixels, batch 10) takes 1198 → 1027 ms, of
    botnet50 (224, batch 8, bfloat16) 703 → 651 ms, of the small cifar_resnet20_bam as long as before, on one
    thread: `attneck bench step`, with and without MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=-1 in its
    environment. What is held at most grows by a few per cent: 4.85 → 5.17 GiB for maskrcnn_botnet50 on two
    images of 1024 pixels (`peak_gib`).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # neither macOS nor musl has it
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, -1))
