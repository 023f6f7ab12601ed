"""Memory for many steps on the CPU: what is freed stays with the process, in pages of 2 MiB."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
from functools import cache
from pathlib import Path

# mallopt's parameters, from malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_memory(device: str) -> bool:
    """For the whole process: both of what follows, where steps are taken on the CPU; whether the first was.

    A batch of 32 to be scored by botnet50 (224) takes 1854 ms in place of 2408 and, in a second run, 1902 in
    place of 2379: `attneck bench inference`, with and without the environments named below.
    """
    kept = device == "cpu" and keep_freed_memory()
    if kept:
        use_huge_pages()
    return kept


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to keep freed memory, for the whole process; False where malloc is not glibc's.

    By default malloc asks the system for every tensor over 32 MiB and gives it back, and the system clears
    each page anew; but the next step needs as much again. With this setting a step of stairnet_mobilenet_bam
    (300 pixels, batch 10) takes 1027 ms in place of 1198, of botnet50 (224, batch 8, bfloat16) 651 in place
    of 703, of the small cifar_resnet20_bam as long as before, on one thread: `attneck bench step`, with and
    without MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=-1 in its environment. The most memory held grows by a
    few per cent: from 4.85 to 5.17 GiB for maskrcnn_botnet50 on two images of 1024 pixels (`peak_gib`).
    Before a fork, as for the workers of an evaluation, it goes back: else it would be held twice.
    """
    glibc = _glibc()
    if glibc is None or not (glibc.mallopt(_MMAP_MAX, 0) and glibc.mallopt(_TRIM_THRESHOLD, -1)):
        return False
    _give_back_at_forks()
    return True


@cache
def _give_back_at_forks() -> None:
    glibc = ctypes.CDLL("libc.so.6")
    os.register_at_fork(before=lambda: glibc.malloc_trim(0))


def use_huge_pages() -> bool:
    """Have what malloc takes from now on lie in pages of 2 MiB, where Linux has them for who asks.

    Call it after `keep_freed_memory`. Half as much as the machine has is taken and freed untouched, so malloc
    keeps the addresses and no memory is held; the system is told to back these by huge pages. False where
    the process has a limit on its addresses, or the system one on what all may take, since they would count.

    A step of botnet50 (224, batch 8, bfloat16) takes 852 ms in place of 971 and, in a second run, 907 in
    place of 1123, of cifar_resnet20_bam (32, batch 128) 380 in place of 431 and 383 in place of 475, on one
    thread of an Intel (family 6, model 167): `attneck bench step` with the environment above, with and
    without GLIBC_TUNABLES=glibc.malloc.hugetlb=1, which does the same. The most memory held stays. What is
    written to after a fork lies in small pages again.
    """
    glibc = _glibc()
    if glibc is None or _addresses_count():
        return False
    page = mmap.PAGESIZE
    size = os.sysconf("SC_PHYS_PAGES") // 2 * page
    glibc.malloc.argtypes, glibc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    glibc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    glibc.free.argtypes = [ctypes.c_void_p]
    start = glibc.malloc(size)
    if start is None:
        return False
    first = -(-start // page) * page
    done = glibc.madvise(first, size - page, mmap.MADV_HUGEPAGE) == 0
    glibc.free(start)
    return done


def _glibc() -> ctypes.CDLL | None:
    """glibc, where malloc is its own: not on macOS or musl, nor where another was preloaded."""
    try:
        glibc = ctypes.CDLL("libc.so.6")
        own, used = (ctypes.cast(c.malloc, ctypes.c_void_p).value for c in (glibc, ctypes.CDLL(None)))
        return glibc if own == used and hasattr(glibc, "mallopt") else None
    except (OSError, AttributeError):
        return None


def _addresses_count() -> bool:
    limits = (resource.getrlimit(limit)[0] for limit in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    if any(limit != resource.RLIM_INFINITY for limit in limits):
        return True
    try:
        return Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2"
    except OSError:
        return True
