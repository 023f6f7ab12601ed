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
SIDES = (224, 1024, 1280)
"""Pixels that BoT50 is compared with R50 at; Table 5's are 1024."""
RATIOS = "step ratios"
"""What the document of Table 5's two says that it is."""


def rows() -> list[Row]:
    """The networks of Table 14, and the transformers of its figures: each once."""
    found: dict[str, Row] = {}
    for number in TABLES:
        for row in load_paper("botnet").table(number).rows:
            if not row.alternative and row.network is not None:
                found.setdefault(key(row.model, row.options, row.image_size), row)
    return list(found.values())


def two_at_all_sides() -> list[dict[str, Any]]:
    """R50 and BoT50 at `SIDES`, with the printed step of a detector on each, where there is one."""
    printed = {
        row.model: (row.image_size, float(row.printed["step_ms"]))
        for row in load_paper("botnet").table("5").rows
        if row.printed["c5_attn"] in ("[0,0,0]", "[1,1,1]") and row.model in ("resnet50", "botnet50")
    }
    return [
        {
            "name": f"{name} {side}",
            "model": model,
            "options": {},
            "image_size": side,
            "printed_ms": printed[model][1] if printed[model][0] == side else None,
        }
        for side in SIDES
        for name, model in (("R50", "resnet50"), ("BoT50", "botnet50"))
    ]


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
            for row in (all_of_table_14() if number == TABLES[0] else two_at_all_sides())
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
    from rich.console import Console
    from rich.table import Table

    measured = {row["name"]: row["ms"] / row["batch"] for row in document["rows"] if row["ms"] is not None}
    printed = {row["name"]: row["printed_ms"] for row in document["rows"] if row["printed_ms"] is not None}
    grid = Table(box=None, pad_edge=False)
    for heading in (
        "",
        "pixels",
        "batch",
        "ms a step",
        "ms an image",
        "over R50's",
        "printed ms",
        "over R50's",
    ):
        grid.add_column(heading, justify="left" if not heading else "right")
    for row in document["rows"]:
        name = row["name"]
        grid.add_row(
            name,
            str(row["image_size"]),
            str(row["batch"]) if row["batch"] else "does not fit",
            _number(row["ms"]),
            _number(measured.get(name)),
            _over(measured, name, "R50"),
            _number(printed.get(name)),
            _over(printed, name, "R50"),
        )
    console = Console(width=110)
    with console.capture() as captured:
        console.print(grid)
    environment = document["environment"]
    return "\n".join(
        [
            f"{ran_on(environment)}, {document['dtype']}; forward and backward, {document['clock']}, "
            f"medians of {ROUNDS} rounds. Printed: {PRINTED_BATCH} images on a TPU-v3 core.",
            "",
            captured.get(),
            *ratios(document),
        ]
    )


def bot_over_r(document: dict[str, Any]) -> list[list[str]]:
    """A line a side: pixels, milliseconds of R50 and of BoT50, their ratio, and Table 5's where it has one.

    Table 5's steps are those of Mask R-CNN on each; these are of the networks alone.
    """
    lines = []
    for side in SIDES:
        plain, bot = (
            next(row for row in document["rows"] if row["name"] == f"{name} {side}")
            for name in ("R50", "BoT50")
        )
        whole = plain["ms"] and bot["ms"] and plain["batch"] == bot["batch"]
        lines.append(
            [
                str(side),
                _number(plain["ms"]),
                _number(bot["ms"]),
                f"{bot['ms'] / plain['ms']:.2f}" if whole else "",
                f"{bot['printed_ms'] / plain['printed_ms']:.2f}" if bot["printed_ms"] else "",
            ]
        )
    return lines


def said_of_ratios(document: dict[str, Any]) -> str:
    """`bot_over_r` to be read."""
    environment, form = document["environment"], "{:>6} {:>10} {:>10} {:>15} {:>8}".format
    rounds = min(len(row["samples_ms"]) for row in document["rows"])
    return "\n".join(
        [
            f"{environment['gpu'] or environment['processor']}, torch {environment['torch']}, "
            f"{document['dtype']}, batch {document['batch']}; forward and backward, {document['clock']}, "
            f"medians of {rounds} rounds. Printed: Mask R-CNN on them, Table 5.",
            "",
            form("pixels", "R50 ms", "BoT50 ms", "BoT50 over R50", "printed"),
            *(form(*line) for line in bot_over_r(document)),
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
