"""What each choice inside the CPU's attention operator is worth: both ways timed in one run.

First float32 matrix products by themselves, by both libraries: the rule of `attention/cpu/choice.py` rests on
this. Then the table of docs/attention.md: each pair differs in one choice alone; times are of the whole layer
(C = 512, h = 4), forward and backward. One thread, interleaved medians.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from attneck.attention.cpu import choice, passes, tiles
from attneck.attention.cpu import operator as cpu
from attneck.measure.contestants import OURS, AttentionCase, attention_call
from attneck.measure.memory import peak_elsewhere
from attneck.measure.speed import interleave
from attneck.processor import processor

Override = dict[str, Any]


@contextmanager
def choosing(override: Override) -> Iterator[None]:
    """Inside, tilings have these fields; `keep` and `logits` are the constants KEEP and LOGITS.

    `passes` is who makes the passes over the logits.
    """
    chosen = tiles.Tiling.of
    others = ("keep", "logits", "passes")
    fields = {name: value for name, value in override.items() if name not in others}

    def of(*arguments: Any) -> tiles.Tiling:
        return dataclasses.replace(chosen(*arguments), **fields)

    with ExitStack() as stack:
        stack.enter_context(patch.object(tiles.Tiling, "of", of))
        if "keep" in override:
            # The constant also says how a map is cut; here only what is kept changes.
            stack.enter_context(patch.object(cpu, "KEEP", override["keep"]))
        if "logits" in override:
            stack.enter_context(patch.object(tiles, "LOGITS", override["logits"]))
        if "passes" in override:
            stack.enter_context(patch.object(passes, "_passes", override["passes"]))
        yield


def call(case: AttentionCase, override: Override) -> Callable[[], object]:
    """The layer's forward and backward under `override`."""
    inside = attention_call(case, OURS, "forward+backward")

    def run() -> None:
        with choosing(override):
            inside()

    return run


Pair = tuple[AttentionCase, Override, Override]


def choices() -> dict[str, tuple[str, str, list[Pair]]]:
    """By name: what is called "this" and "that", and the cases."""
    fp32, bf16 = "float32", "bfloat16"
    return {
        "float32 products": (
            "oneDNN",
            "MKL",
            [
                (AttentionCase(*shape), {"onednn": True}, {"onednn": False})
                for shape in ((7, 32), (10, 16), (14, 8), (20, 4), (32, 2), (64, 1, fp32, 2))
            ],
        ),
        "weights for the backward pass": (
            "kept",
            "computed again",
            [
                (AttentionCase(size, batch, dtype), {"keep": 10**9}, {"keep": 0})
                for dtype in (fp32, bf16)
                for size, batch in ((14, 8), (20, 4), (32, 2))
            ],
        ),
        "passes over the logits": (
            "compiled",
            "PyTorch's operators",
            [
                (AttentionCase(size, batch, dtype, stride), {"passes": "fused"}, {"passes": "operators"})
                for dtype in (fp32, bf16)
                for size, batch, stride in ((14, 8, 1), (20, 4, 1), (32, 2, 1), (64, 1, 2))
            ],
        ),
        "logits a tile of a large map": (
            "1 M (half precision: 2 M)",
            "a quarter / four times as many",
            [
                (AttentionCase(64, 1, dtype, 2), {}, {"logits": logits})
                for dtype in (fp32, bf16)
                for logits in (tiles.LOGITS // 4, 4 * tiles.LOGITS)
            ],
        ),
    }


PRODUCTS = "products"


def products(seconds: float) -> Iterator[str]:
    """A table of float32 products [M, K] [N, K]^T by both libraries, and what this machine takes."""
    about = processor()
    known = ("vendor_id", "cpu family", "model", "model name")
    chosen = choice.float32_products()
    yield f"{', '.join(f'{name} {about[name]}' for name in known if name in about)}"
    yield f"AVX-512: {'avx512f' in about.get('flags', '').split()}. Chosen: {chosen}."
    yield from (
        "",
        "| M, K, N | MKL, GFLOP/s | oneDNN, GFLOP/s | MKL's time / oneDNN's |",
        "|---|---|---|---|",
    )
    squares = [(side, side, side) for side in (256, 512, 1024)]
    layer = [(1568, 512, 1536), (196, 128, 196), (1024, 128, 1024)]  # projections, logits of 14x14 and 32x32
    for M, K, N in squares + layer:
        a, b = torch.randn(M, K), torch.randn(N, K)
        ways: dict[str, Callable[[], object]] = {
            "mkl": lambda a=a, b=b: a @ b.T,  # type: ignore[misc]
            "onednn": lambda a=a, b=b: choice.onednn(a, b),  # type: ignore[misc]
        }
        times = interleave(ways, seconds=seconds)
        speeds = [2e-9 * M * K * N / times.median(way) for way in ways]
        ratio = times.ratio("mkl", over="onednn")
        yield f"| {M}, {K}, {N} | {speeds[0]:.0f} | {speeds[1]:.0f} | {ratio:.2f} |"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="write the table there too")
    parser.add_argument("--seconds", type=float, default=1.5, help="for each way of each case")
    parser.add_argument("--only", choices=[PRODUCTS, *choices()], help="one part of it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines: list[str] = []
    if arguments.only in (None, PRODUCTS):
        if choice.onednn_works():
            for line in products(arguments.seconds):
                lines.append(line)
                print(line, flush=True)
        else:
            print("this PyTorch has no oneDNN operator: float32 products are MKL's")
    if arguments.only != PRODUCTS:
        parts = {name: part for name, part in choices().items() if arguments.only in (None, name)}
        lines += measure_choices(parts, arguments.seconds)
    if arguments.out is not None:
        arguments.out.write_text("\n".join(lines) + "\n")


def measure_choices(parts: dict[str, tuple[str, str, list[Pair]]], seconds: float) -> list[str]:
    """Times each pair, prints its line, and returns all lines."""
    lines = ["", "| choice | case | this, ms (MiB) | that, ms (MiB) | that / this |", "|---|---|---|---|---|"]
    print(*lines, sep="\n")
    for name, (this, that, pairs) in parts.items():
        for case, one, other in pairs:
            ways = {this: one, that: other}
            times = interleave({way: call(case, o) for way, o in ways.items()}, seconds=seconds)
            peaks = {way: peak_elsewhere(call, case, o) / 2**20 for way, o in ways.items()}
            cells = [f"{way} {1000 * times.median(way):.1f} ({peaks[way]:.0f})" for way in ways]
            lines.append(f"| {name} | {case} | {' | '.join(cells)} | {times.ratio(that, over=this):.2f} |")
            print(lines[-1], flush=True)
    return lines


if __name__ == "__main__":
    main()
