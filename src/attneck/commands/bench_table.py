"""attneck bench step --table: forward and backward of a printed table's networks, beside its step times.

The networks take turns: each round times every one of them once, so that what slows the machine for a while
slows them alike. What is measured is written after each sample, and the same command goes on from it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from attneck.commands.text_table import text_table
from attneck.errors import UserError, say
from attneck.files import write_atomic
from attneck.papers.figures import TABLES, name_of
from attneck.papers.step_times import KIND, key
from attneck.papers.tables import Row, load_paper
from attneck.processor import ran_on

ROUNDS = 3
PRINTED_BATCH = 32
"""Images of a printed step."""
SAME = ("processor", "gpu", "torch_threads", "torch", "cores")
"""Of the environment: what times of one document share."""
PAIRS = (("B7", "T7-320", "2.33"), ("B7-RA", "T7", "1.64"))
"""What §4.8.7 says is so many times faster."""
OTHER_SIDES = (224, 1280)
"""Pixels that BoT50 is compared with R50 at, besides Table 5's 1024."""
RATIOS = "step ratios"
"""What the document of Table 5's networks says that it is."""


def rows() -> list[Row]:
    """The networks of Table 14, and the transformers of its figures: each once."""
    found: dict[str, Row] = {}
    for number in TABLES:
        for row in load_paper("botnet").table(number).rows:
            if not row.alternative and row.network is not None:
                found.setdefault(key(row.model, row.options, row.image_size), row)
    return list(found.values())


def all_of_table_5() -> list[dict[str, Any]]:
    """Its networks, with the printed step of a detector on each; R50 and BoT50 at `OTHER_SIDES` too."""
    found: list[dict[str, Any]] = [
        {
            "name": row.label,
            "model": row.model,
            "options": {},
            "image_size": row.image_size,
            "printed_ms": float(row.printed["step_ms"]),
        }
        for row in load_paper("botnet").table("5").rows
    ]
    two = [row for row in found if row["model"] in ("resnet50", "botnet50")]
    found += [row | {"image_size": side, "printed_ms": None} for row in two for side in OTHER_SIDES]
    return [row | {"name": f"{row['name']}, {row['image_size']}"} for row in found]


def all_of_table_14() -> list[dict[str, Any]]:
    """`rows`, as the document has them."""
    return [
        {
            "name": name_of(row),
            "model": row.model,
            "options": row.options,
            "image_size": row.image_size,
            "printed_ms": float(row.printed["step_ms"]) if "step_ms" in row.printed else None,
        }
        for row in rows()
    ]


def bench_table(
    number: str, batch: int | None, dtype: str, device: str, seconds: float, out: Path | None, json_: bool
) -> None:
    """Time every network that `out` lacks times of, and print them all.

    Args:
        number: "14", or "5".
        batch: images of a step; 32 on CUDA and 1 on the CPU if not given. One that does not fit is halved.
        seconds: how long each network is timed in each round, one step at least.

    Raises:
        UserError: `out` holds something else, or times that were measured otherwise.
    """
    from attneck.measure.speed import clock
    from attneck.training.environment import environment

    asked = batch or (PRINTED_BATCH if device == "cuda" else 1)
    document: dict[str, Any] = {
        "what": KIND if number == TABLES[0] else RATIOS,
        "table": number,
        "dtype": dtype,
        "batch": asked,
        "clock": clock(device)[0],
        "environment": environment(device),
        "rows": [
            row | {"batch": asked, "ms": None, "samples_ms": []}
            for row in (all_of_table_14() if number == TABLES[0] else all_of_table_5())
        ],
    }
    if out is not None and out.exists():
        document = _taken_up(out, document)
    _measure(document, device, seconds, out)
    told = table(document) if number == TABLES[0] else said_of_ratios(document)
    print(json.dumps(document, indent=1, ensure_ascii=False) if json_ else told)


def _taken_up(out: Path, fresh: dict[str, Any]) -> dict[str, Any]:
    """The document in `out`, to go on with."""
    try:
        document: dict[str, Any] = json.loads(out.read_bytes())
        same = {field: document[field] for field in ("what", "table", "dtype", "batch")}
        same |= {field: document["environment"][field] for field in SAME}
        networks = [key(row["model"], row["options"], row["image_size"]) for row in document["rows"]]
        assert all(isinstance(row["samples_ms"], list) for row in document["rows"])
    except (ValueError, KeyError, TypeError, AssertionError):
        raise UserError(f"--out {out} holds something else: give a new file") from None
    now = {field: fresh[field] for field in ("what", "table", "dtype", "batch")}
    now |= {field: fresh["environment"][field] for field in SAME}
    different = [f"{field} {same[field]} → {now[field]}" for field in now if same[field] != now[field]]
    if different or networks != [
        key(row["model"], row["options"], row["image_size"]) for row in fresh["rows"]
    ]:
        raise UserError(
            f"--out {out} holds times measured otherwise ({', '.join(different) or 'of other networks'}): "
            "give a new file"
        )
    return document


def _measure(document: dict[str, Any], device: str, seconds: float, out: Path | None) -> None:
    """Round by round, what is missing: the document is written after each sample."""
    from rich.console import Console
    from rich.progress import Progress

    from attneck.errors import is_out_of_memory

    todo = [
        (number, row)
        for number in range(ROUNDS)
        for row in document["rows"]
        if len(row["samples_ms"]) <= number and row["batch"]
    ]
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=len(todo))
        for number, row in todo:
            progress.update(task, description=f"{row['name']}, round {number + 1} of {ROUNDS}")
            while row["batch"] and len(row["samples_ms"]) <= number:
                try:
                    row["samples_ms"].append(1000 * sample(row, document["dtype"], device, seconds))
                except Exception as error:
                    if not is_out_of_memory(error):
                        raise
                    # Times of one batch are no times of another.
                    row |= {"batch": row["batch"] // 2, "samples_ms": []}
                    say(f"{row['name']} does not fit: batch {row['batch']}")
            row["ms"] = median(row["samples_ms"]) if row["samples_ms"] else None
            if out is not None:
                write_atomic(out, (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())
            progress.advance(task)


def sample(row: dict[str, Any], dtype: str, device: str, seconds: float) -> float:
    """Seconds of one forward and backward pass of a row's network, after one that isn't counted."""
    from attneck.measure.speed import clock
    from attneck.measure.steps import forward_backward

    _, now = clock(device)
    call = forward_backward(row["model"], row["options"], row["image_size"], row["batch"], dtype, device)
    call()
    began, calls = now(), 0
    while not calls or now() - began < seconds:
        call()
        calls += 1
    return (now() - began) / calls


def table(document: dict[str, Any]) -> str:
    """The times beside the printed ones, each also over its own ResNet-50's at 224."""
    measured = {row["name"]: row["ms"] / row["batch"] for row in document["rows"] if row["ms"] is not None}
    printed = {row["name"]: row["printed_ms"] for row in document["rows"] if row["printed_ms"] is not None}
    header = ("", "pixels", "batch", "ms a step", "ms an image", "over R50's", "printed ms", "over R50's")
    lines = []
    for row in document["rows"]:
        name = row["name"]
        lines.append(
            [
                name,
                str(row["image_size"]),
                str(row["batch"]) if row["batch"] else "does not fit",
                _number(row["ms"]),
                _number(measured.get(name)),
                _over(measured, name, "R50"),
                _number(printed.get(name)),
                _over(printed, name, "R50"),
            ]
        )
    environment = document["environment"]
    return "\n".join(
        [
            f"{ran_on(environment)}, {document['dtype']}; forward and backward, {document['clock']}, "
            f"medians of {ROUNDS} rounds. Printed: {PRINTED_BATCH} images on a TPU-v3 core.",
            "",
            text_table(header, lines, {""}, 110),
            *ratios(document),
        ]
    )


STEP_RATIOS = ("network", "pixels", "ms", "over R50's", "printed ms", "over R50's")
"""The columns of `step_ratios`."""


def step_ratios(document: dict[str, Any]) -> list[list[str]]:
    """A line a network, by size: its step, and Table 5's, each also over R50's of that size.

    Table 5's steps are those of Mask R-CNN on each; these are of the networks alone.
    """
    plain = {row["image_size"]: row for row in document["rows"] if row["model"] == "resnet50"}
    lines = []
    for row in sorted(document["rows"], key=lambda row: row["image_size"]):
        base = plain[row["image_size"]]
        whole = row["ms"] and base["ms"] and row["batch"] == base["batch"]
        lines.append(
            [
                row["name"].removesuffix(f", {row['image_size']}"),
                str(row["image_size"]),
                _number(row["ms"]) if row["batch"] else "does not fit",
                f"{row['ms'] / base['ms']:.2f}" if whole else "",
                _number(row["printed_ms"]),
                f"{row['printed_ms'] / base['printed_ms']:.2f}" if row["printed_ms"] else "",
            ]
        )
    return lines


def said_of_ratios(document: dict[str, Any]) -> str:
    """`step_ratios` to be read."""
    environment, form = document["environment"], "{:16} {:>6} {:>12} {:>10} {:>10} {:>10}".format
    rounds = min(len(row["samples_ms"]) for row in document["rows"])
    return "\n".join(
        [
            f"{environment['gpu'] or environment['processor']}, torch {environment['torch']}, "
            f"{document['dtype']}, batch {document['batch']}; forward and backward, {document['clock']}, "
            f"medians of {rounds} rounds. Printed: Mask R-CNN on them, Table 5.",
            "",
            *(form(*line).rstrip() for line in [STEP_RATIOS, *step_ratios(document)]),
        ]
    )


def ratios(document: dict[str, Any]) -> Sequence[str]:
    """What §4.8.7 says of the fastest BoTNets, beside what the times give, where all rounds are there."""
    rows = document["rows"]
    if any(len(row["samples_ms"]) < ROUNDS for row in rows if row["batch"]):
        return [f"Fewer than {ROUNDS} rounds of some networks: no ratios are taken of them"]
    measured = {row["name"]: row["ms"] / row["batch"] for row in rows if row["ms"] is not None}
    printed = {row["name"]: row["printed_ms"] for row in rows if row["printed_ms"] is not None}
    # B7-RA is B7 trained otherwise, so its step is B7's.
    return [
        f"{slow} over {fast}: {_over(measured, 'B7', fast) or 'not'} measured, "
        f"{_over(printed, 'B7', fast)} by Table 14, {said} in §4.8.7"
        for slow, fast, said in PAIRS
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _over(times: dict[str, float], name: str, base: str) -> str:
    return f"{times[name] / times[base]:.2f}" if name in times and base in times else ""
