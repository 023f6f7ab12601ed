"""The tables of what `benchmarks/gpu` measured: results/gpu."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from table_parts import NONE_YET, RESULTS, Lines, markdown

WAYS = {
    "triton": "triton",
    "sdpa": "sdpa",
    "plain": "plain",
    "tiled": "tiled",
    "FlexAttention": "FlexAttention",
    "timm BottleneckAttn": "timm",
    "bottleneck-transformer-pytorch": "b-t-pytorch",
}


def attention() -> str:
    """Milliseconds and MiB of every way, and the floor."""
    return _table("attention", ["case", "floor", *WAYS.values()], _attention_row)


def steps() -> str:
    """Training steps with attention, with its plain form, and without."""
    header = ["step", "with attention", "plain attention", "without", "with / without"]
    return _table("steps", header, _step_row)


def tests() -> str:
    """How many of the tests that need CUDA passed."""
    document = _document("tests")
    if document is None:
        return NONE_YET
    outcomes = [row["outcome"] for row in document["rows"].values()]
    said = ", ".join(f"{outcomes.count(name)} {name}" for name in sorted({*outcomes}))
    failed = [
        f"- {key.rpartition('::')[2]}" for key, row in document["rows"].items() if row["outcome"] == "failed"
    ]
    by_sources = Counter(row["sources"] for row in document["rows"].values())
    if len(by_sources) > 1:
        counts = " and ".join(map(str, by_sources.values()))
        said += f"; of {len(by_sources)} versions of the sources, {counts}"
    if document["state"] != "done":
        said += "; the rest did not run"
    return "\n".join([f"{_where(document)}: {said}.", *([""] if failed else []), *failed])


def _document(part: str) -> dict[str, Any] | None:
    file = RESULTS / "gpu" / f"{part}.json"
    return json.loads(file.read_bytes()) if file.exists() else None


def _where(document: dict[str, Any]) -> str:
    where = document["where"]
    return f"{where['gpu']}, PyTorch {where['torch']}"


def _table(part: str, header: list[str], line: Any) -> str:
    document = _document(part)
    if document is None:
        return NONE_YET
    lines: Lines = [header, *(line(key, row) for key, row in document["rows"].items())]
    return f"{_where(document)} (`results/gpu/{part}.json`):\n\n{markdown(lines)}"


def _cell(row: dict[str, Any], name: str) -> str:
    if name not in row["ms"]:
        why = row["left_out"].get(name, "not tried" if name else "")
        return why if why in ("does not fit", "not tried", "") else "failed"
    return f"{row['ms'][name]:.3g} ({row['peak_mib'][name]:,.0f})"


def _attention_row(key: str, row: dict[str, Any]) -> list[str]:
    floor = max(row["floor_ms"].values())
    return [key.removesuffix(" forward"), f"{floor:.3g}", *(_cell(row, name) for name in WAYS)]


def _step_row(key: str, row: dict[str, Any]) -> list[str]:
    names = row["names"]
    model, plain = names[0], names[-1]
    attention = next((name for name in names if name.endswith("plain attention")), "")
    ratio = row["ms"][model] / row["ms"][plain] if {model, plain} <= {*row["ms"]} else None
    cells = [_cell(row, model), _cell(row, attention), _cell(row, plain)]
    return [key, *cells, "" if ratio is None else f"{ratio:.2f}"]
