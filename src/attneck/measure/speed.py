"""Comparable times: interleaved calls, medians, and the machine's own ceilings in the same run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

Call = Callable[[], object]


PROCESSOR = "processor time"


def clock(device: str) -> tuple[str, Callable[[], float]]:
    """What is measured on a device, and the seconds of it so far.

    By one thread of the CPU it is this thread's own processor time, since other programs may wait for the
    core too; else the wall's, of a GPU once it has done what it was given.
    """
    if device == "cuda":

        def waited() -> float:
            torch.cuda.synchronize()
            return time.perf_counter()

        return "wall time", waited
    if torch.get_num_threads() == 1:
        return PROCESSOR, time.thread_time
    return "wall time", time.perf_counter


class Times(dict[str, list[float]]):
    """Seconds of each call, by name: one sample a round."""

    def median(self, name: str) -> float:
        """The median of one call's samples."""
        return statistics.median(self[name])

    def ratio(self, name: str, over: str) -> float:
        """The median, over the rounds, of one call's time divided by another's.

        It varies less than the ratio of their medians: what slows a whole round cancels.
        """
        return statistics.median(a / b for a, b in zip(self[name], self[over], strict=True))


SAMPLE = 0.02
"""Least seconds of a sample: shorter calls are repeated within it."""
SLOW = 0.2
"""Seconds of one product after which no larger one is timed: half precision may be emulated."""
WARM_UP = 1
"""Calls before the first sample: compilation, and libraries that set themselves up."""


def interleave(
    calls: dict[str, Call],
    *,
    seconds: float = 2.0,
    least: int = 3,
    device: str = "cpu",
    now: Callable[[], float] | None = None,
) -> Times:
    """The times of each call, in seconds.

    The calls take turns, each round in another order, so other work of the machine slows all of them alike.
    Compare times of one run only.

    Args:
        calls: by name.
        seconds: sampling time of each call, over all rounds.
        least: least number of rounds, however long they take.
        device: "cuda" takes the GPU's own time, by events at both ends of a sample.
        now: seconds so far, of the CPU; those of `clock` if not given.
    """
    now = now or clock(device)[1]

    def sample(call: Call, repeats: int) -> float:
        if device == "cuda":
            return _by_events(call, repeats)
        start = now()
        for _ in range(repeats):
            call()
        return (now() - start) / repeats

    repeats = {}
    for name, call in calls.items():
        sample(call, WARM_UP)
        repeats[name] = max(1, round(SAMPLE / max(sample(call, 1), 1e-7)))
    times = Times((name, []) for name in calls)
    names, began = list(calls), time.monotonic()
    while min(map(len, times.values())) < least or time.monotonic() - began < seconds * len(calls):
        names = names[1:] + names[:1]
        for name in names:
            times[name].append(sample(calls[name], repeats[name]))
    return times


def _by_events(call: Call, repeats: int) -> float:
    """Seconds of a call on the GPU, from the first of `repeats` to the end of the last."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000 / repeats


def gemm_ceiling(dtype: torch.dtype, device: str = "cpu") -> float:
    """FLOPs a second of a matrix product on this machine: the best of a few sizes."""
    best = 0.0
    for size in (512, 1024, 2048) if device == "cpu" else (4096, 8192):
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        calls: dict[str, Call] = {"mm": lambda a=a, b=b: a @ b}  # type: ignore[misc]
        if device == "cpu" and dtype == torch.float32:
            from attneck.attention.cpu.choice import float32_products
            from attneck.attention.cpu.products import product

            if float32_products() == "onednn":
                calls["onednn"] = lambda a=a, b=b: product(a[None], b[None], True)  # type: ignore[misc]
        times = interleave(calls, seconds=0.3, device=device)
        fastest = min(map(times.median, calls))
        best = max(best, 2 * size**3 / fastest)
        if fastest > SLOW:
            break
    return best


def bandwidth_ceiling(device: str = "cpu") -> float:
    """Bytes a second that a large copy reads and writes on this machine."""
    source = torch.zeros(1 << 26 if device == "cpu" else 1 << 30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = interleave({"copy": lambda: target.copy_(source)}, seconds=0.3, device=device)
    return 2 * source.numel() / times.median("copy")
