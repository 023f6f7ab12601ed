"""A row: contestants that take turns, their times, and the most memory that each takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from attneck.measure.memory import emptied, peak
from attneck.measure.speed import Call, interleave

from .apart import reason, sound
from .kept import Job, Kept

Maker = Callable[[], Call]
SECONDS = 0.2
"""Sampling time of each contestant."""


def contest(
    kept: Kept,
    job: Job,
    key: str,
    makers: Mapping[str, Maker],
    check: Callable[[str, Call], dict[str, Any]] = lambda name, call: {},
) -> dict[str, Any]:
    """Milliseconds and MiB by contestant, and `check` of each; why, of those that have none.

    The MiB are beyond what was in use before the call: weights and inputs are not in them.
    """
    row: dict[str, Any] = {"ms": {}, "peak_mib": {}, "checks": {}, "left_out": {}}
    calls: dict[str, Call] = {}
    for name, make in makers.items():
        if why := kept.left_out.get(key, {}).get(name):
            row["left_out"][name] = why
            continue
        kept.doing(key, name)
        try:
            call = make()
            call()
            row["peak_mib"][name] = round(peak(call, job.device) / 2**20, 2)
            row["checks"][name] = check(name, call)
            calls[name] = call
        except Exception as error:
            row["left_out"][name] = reason(error)
            row["peak_mib"].pop(name, None)
            sound(kept, job.device)
        call = None  # type: ignore[assignment]
        emptied(job.device)
    kept.doing(key)
    if calls:
        seconds, least = (0.001, 1) if job.tiny else (SECONDS, 3)
        times = interleave(calls, seconds=seconds, least=least, device=job.device)
        row["ms"] = {name: 1000 * times.median(name) for name in times}
    del calls
    emptied(job.device)
    return row
