"""Freed CPU memory stays with the process, because the next step needs as much again."""

from __future__ import annotations

import ctypes

# mallopt's parameters, from malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to keep freed memory, for the whole process; False where there is no glibc.

    By default malloc asks the system for every tensor over 32 MiB and gives it back, and the system clears
    each page anew. With this setting a step of stairnet_mobilenet_bam (300 pixels, batch 10) takes 1027 ms
    in place of 1198, of botnet50 (224, batch 8, bfloat16) 651 in place of 703, of the small
    cifar_resnet20_bam as long as before, on one thread: `attneck bench step`, with and without
    MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=-1 in its environment. The most memory held grows by a few per
    cent: from 4.85 to 5.17 GiB for maskrcnn_botnet50 on two images of 1024 pixels (`peak_gib`).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # neither macOS nor musl has it
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, -1))
