"""Part 5: BoTNet's Table 14, forward and backward, by `attneck bench step --table 14` in bfloat16."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from .kept import Job, Kept

TIMES = "table-14.json"
"""The command's own document, which it goes on from."""
SECONDS = 0.5
"""Sampling time of each network in each round."""


def work(kept: Kept, job: Job) -> bool:
    """All rounds; ended when the time is over, it loses a sample."""
    from attneck.commands import bench_table

    if job.tiny:  # one network, one round, one image: the same way through everything
        bench_table.ROUNDS = 1
        first, *_ = bench_table.rows()
        bench_table.rows = lambda: [first]
    file = job.out / TIMES
    kept.document["times"] = file.name
    kept.write()
    bench_table.bench_table(
        "14",
        1 if job.tiny else None,
        "float32" if job.tiny else "bfloat16",
        job.device,
        0.001 if job.tiny else SECONDS,
        file,
        json_=False,
    )
    kept.document["table"] = bench_table.table(json.loads(file.read_bytes()))
    return True


def lines(document: dict[str, Any]) -> Iterator[str]:
    """Its table, once all rounds are there."""
    yield from document.get("table", "its times so far are in " + TIMES).splitlines()
