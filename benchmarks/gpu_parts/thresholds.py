"""Part 3: the table of `attention/cuda/limits.py` from what part 2 measured, as a patch."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from attneck.files import write_atomic

from .attention import BOTH, LARGEST
from .kept import Job, Kept, NotHere

LIMITS = "src/attneck/attention/cuda/limits.py"
PATCH = "thresholds.patch"
DTYPE = "bfloat16"
"""The rows that decide; the table does not ask for the dtype."""
LARGEST_PLAIN = 32
"""Side of the largest map that the plain form may serve, however fast it is: it takes N×N."""
ABSENT = 100.0
"""How many times slower a backend counts that did not run, or was wrong."""
DIRECTIONS = {"forward": "forward", "training": BOTH}


def work(kept: Kept, job: Job) -> bool:
    """The two limits for each direction that lose least, summed over the maps and batches."""
    file = job.out / "attention.json"
    measured = json.loads(file.read_bytes()) if file.exists() else {"rows": {}}
    rows = [row for row in measured["rows"].values() if job.tiny or row["dtype"] == DTYPE]
    if not rows:
        raise NotHere(f"part attention has no {DTYPE} rows yet")
    capability = _capability(job)
    before = Path(__file__).parents[2].joinpath(LIMITS).read_text()
    after = before
    for direction, measured_as in DIRECTIONS.items():
        those = [row for row in rows if row["direction"] == measured_as and row["ms"]]
        if not those:
            continue
        current = _current(capability, direction)
        limits, loss = best(those, current)
        sizes = sorted({row["size"] for row in those})
        kept.row(
            direction,
            {
                "capability": capability,
                "limits": limits,
                "slower_than_the_fastest": loss,
                "current": current,
                "current_slower_than_the_fastest": _loss(those, *current),
                "sizes": sizes,
            },
        )
        after = replaced(after, capability, direction, limits)
    patch = "".join(
        difflib.unified_diff(
            before.splitlines(keepends=True), after.splitlines(keepends=True), f"a/{LIMITS}", f"b/{LIMITS}"
        )
    )
    write_atomic(job.out / PATCH, patch.encode())
    kept.document["patch"] = patch
    print(patch or "the table stays as it is")
    return bool(measured["state"] == "done")


def backend(size: int, plain_below: int, sdpa_up_to: int) -> str:
    """What the table's rule takes."""
    return "plain" if size < plain_below else "sdpa" if size <= sdpa_up_to else "triton"


def best(rows: Sequence[dict[str, Any]], current: tuple[int, int]) -> tuple[tuple[int, int], float]:
    """The limits that lose least, those in force where others are no better; and how much they lose."""
    sizes = sorted({row["size"] for row in rows})
    plain = [size for size in sizes if size <= LARGEST_PLAIN]
    pairs = [current, *((p, u) for p in [*plain, plain[-1] + 1 if plain else 1] for u in [*sizes, 0])]
    found = min(pairs, key=lambda pair: round(_loss(rows, *pair), 4))
    return found, _loss(rows, *found)


def _loss(rows: Sequence[dict[str, Any]], plain_below: int, sdpa_up_to: int) -> float:
    """How many times slower than the fastest of each row, as a geometric mean."""
    logs = []
    for row in rows:
        right = {
            name: ms
            for name, ms in row["ms"].items()
            if row["checks"].get(name, {}).get("error", 0.0) <= LARGEST[row["dtype"]]
        }
        fastest = min((right[name] for name in ("plain", "sdpa", "triton") if name in right), default=None)
        if fastest is not None:
            name = backend(row["size"], plain_below, sdpa_up_to)
            logs.append(math.log(right[name] / fastest if name in right else ABSENT))
    return math.exp(sum(logs) / max(1, len(logs)))


def replaced(text: str, capability: str, direction: str, limits: tuple[int, int]) -> str:
    """The table's source with this row in it, in its old one's place or as the last."""
    row = f'    ("{capability}", "{direction}"): Limits(plain_below={limits[0]}, sdpa_up_to={limits[1]}),\n'
    old = re.compile(rf'^    \("{re.escape(capability)}", "{direction}"\): .*\n', re.MULTILINE)
    if old.search(text):
        return old.sub(row, text)
    table = re.search(r"^LIMITS\b[^\n]*= \{\n(?:    .*\n)*", text, re.MULTILINE)
    if table is None:
        raise ValueError(f"{LIMITS} has no table LIMITS of rows of one line")
    return text[: table.end()] + row + text[table.end() :]


def _capability(job: Job) -> str:
    if job.device != "cuda":
        return "0.0"
    import torch

    return "{}.{}".format(*torch.cuda.get_device_capability())


def _current(capability: str, direction: Any) -> tuple[int, int]:
    from attneck.attention.cuda.limits import limits

    major, minor = map(int, capability.split("."))
    found = limits((major, minor), direction)
    return found.plain_below, found.sdpa_up_to


def lines(document: dict[str, Any]) -> Iterator[str]:
    """Each direction's limits, and the patch."""
    for direction, row in document["rows"].items():
        (plain, sdpa), (old_plain, old_sdpa) = row["limits"], row["current"]
        yield (
            f"{direction}, capability {row['capability']}: plain below {plain}, sdpa up to {sdpa} "
            f"({row['slower_than_the_fastest']:.2f} times the fastest one's time; now {old_plain} and "
            f"{old_sdpa}, {row['current_slower_than_the_fastest']:.2f} times)"
        )
    yield from document.get("patch", "").splitlines()
