"""attneck bench: this project's layers and networks timed against others, in one run."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Annotated, Literal, get_args

import tyro

from attneck import checks
from attneck.commands.arguments import Flag, Json, call, check_first
from attneck.commands.bench_contest import Asked, What, hold
from attneck.commands.output_file import check_output
from attneck.errors import UserError, user_mistakes

COMMON = {"dtype", "device", "threads", "seconds", "out", "json_"}
CASE = {"batch", "stride", "channels", "model", "plain"}
"""What is of one case, and goes with its size."""
CONTEST = COMMON | {"size", "batch", "kept_memory", "memory"}
TAKES = {
    "attention": CONTEST | {"compiled", "stride", "channels"},
    "bam": CONTEST | {"compiled", "channels"},
    "step": CONTEST | {"model", "plain"},
    "step --loop": COMMON | {"loop", "size", "batch", "model"},
    "step --table": COMMON | {"table", "batch"},
    "inference": CONTEST | {"compiled", "model"},
}
"""The options of each."""


def bench(
    what: Annotated[What, tyro.conf.Positional],
    /,
    size: int | None = None,
    batch: int | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    stride: Literal[1, 2] = 1,
    channels: int = 512,
    model: str = "botnet50",
    plain: str = "resnet50",
    table: Literal["14", "5"] | None = None,
    loop: Flag = False,
    device: Literal["cpu", "cuda"] = "cpu",
    threads: int | None = None,
    seconds: float = 2.0,
    kept_memory: Flag = False,
    compiled: bool = True,
    memory: bool = True,
    out: Path | None = None,
    json_: Json = False,
) -> None:
    """Time layers and networks against other implementations: interleaved, medians, ratios of one run.

    Without --size the project's own cases are timed. attention: MHSA with its projections, against the plain
    form, timm's BottleneckAttn in both memory formats and bottleneck-transformer-pytorch, eager and under
    torch.compile. bam: the gate and the module, against the form that expands both branches. step: a whole
    training step of a classifier or a detector, against the same with plain attention and the one without.
    inference: a whole classifier folded and in channels_last, eager and compiled, against the same with
    timm's attention or with BAM's branches expanded, and against onnxruntime; on one thread, processor time.
    And how fast images come: attneck bench input --help.

    Args:
        what: attention, bam, step or inference.
        size: side of the map, or of the image in a step: one case instead of the list.
        batch: images; if not given with --size, 1, or 2 of bam, whose BatchNorm wants two.
        dtype: of that case (float32 if not given), or of those of the list; a step runs under autocast.
        stride: attention only: 2 averages the result over 2x2 windows.
        channels: attention and bam: of the map.
        model: step and inference: the network with attention; of a step, also a detector on it.
        plain: step only: the network or detector that it is compared with.
        table: step only: forward and backward of BoTNet's Table 14 and its figures' ViT and DeiT, in rounds,
            beside the printed step times; or of the networks of Table 5, at 1024 pixels (BoT50 and R50 at
            224 and 1280 too). Goes on from what is in --out.
        loop: step only: a run's whole loop beside a bare PyTorch loop over the same network and batches, and
            how long a step waits for a checkpoint; of --model at --size, or of the project's own cases.
        device: what is timed; cuda is the GPU, which is not taken by itself.
        threads: as torch takes them; its own choice if not given.
        seconds: how long each contestant is timed for in each case.
        kept_memory: keep freed memory, in pages of 2 MiB, as attneck train does on the CPU; else each large
            tensor goes back to the system, as in a program that does nothing about it.
        compiled: time torch.compile of them too, which takes a while to compile; of all but step, whose
            networks are timed as they are.
        memory: measure peak memory too, each in a process of its own; of the list, on maps from 64x64 on.
        out: write the JSON document there too.
        json_: print one JSON document and nothing else.
    """
    values = locals()  # before there is any other
    parameters = inspect.signature(bench).parameters
    _check_options(
        what, [name for name, one in parameters.items() if one.default not in (values[name], one.empty)]
    )
    if size is not None and batch is None:
        batch = 2 if what == "bam" else 1
    asked = Asked(what, size, batch, dtype, stride, channels, model, plain, device, seconds, compiled, memory)
    _check(asked, threads, kept_memory, out)

    import torch

    from attneck.training.allocator import keep_memory

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this machine has no CUDA device that torch can use")
    if kept_memory and not keep_memory(device):
        raise UserError("--kept-memory is of Linux with glibc's malloc, which this process does not have")
    if threads is not None:
        torch.set_num_threads(threads)
    if table is not None:
        from attneck.commands.bench_table import bench_table

        bench_table(table, batch, dtype or "float32", device, seconds, out, json_)
    elif loop:
        from attneck.commands.bench_loop import CASES, bench_loop

        if dtype == "float16":
            raise UserError("--dtype float16: a recipe has no such precision; give float32 or bfloat16")
        chosen = list(CASES) if size is None else [(model, size, batch or 1)]
        bench_loop(chosen, dtype or "float32", device, seconds, out, json_)
    else:
        hold(asked, out, json_)


def _check(asked: Asked, threads: int | None, kept_memory: bool, out: Path | None) -> None:
    """UserError for values that no contest can have; nothing heavy is imported."""
    if asked.what == "inference" and asked.dtype not in (None, "float32"):
        raise UserError("attneck bench inference takes --dtype float32 alone")
    with user_mistakes():
        for name in ("size", "batch", "channels"):
            if (value := getattr(asked, name)) is not None:
                checks.whole(f"--{name}", value)
        if threads is not None:  # torch ends in a segmentation fault where there are too many
            checks.whole("--threads", threads, most=8 * (os.cpu_count() or 1))
    if kept_memory and asked.device != "cpu":
        raise UserError("--kept-memory is of the CPU: leave it out")
    if not 0 < asked.seconds <= 3600:
        raise UserError(f"--seconds {asked.seconds}: wanted more than 0, 3600 at most")
    if asked.size is not None:
        _refuse_too_large(asked.what, asked.size, asked.batch or 1, asked.channels, asked.device)
    if out is not None:
        check_output("--out", out, (".json",))


def _check_options(what: What, given: list[str]) -> None:
    """UserError for an option that would change nothing."""
    ways = [way for way in ("loop", "table") if what == "step" and way in given]
    mode = " --".join([what, *ways[:1]])
    if idle := [name for name in given if name not in TAKES[mode]]:
        flag = f"no-{idle[0]}" if idle[0] in ("compiled", "memory") else idle[0].replace("_", "-")
        where = f" (attneck bench step --{flag} does)" if flag in ("loop", "table") and what != "step" else ""
        raise UserError(f"attneck bench {mode} takes no --{flag}: leave it out{where}")
    if "size" in TAKES[mode] - {*given} and CASE & {*given}:
        raise UserError(
            "--batch, --stride, --channels, --model and --plain are of one case: give its --size too"
        )


def _refuse_too_large(what: What, size: int, batch: int, channels: int, device: str) -> None:
    """UserError where the tensors of a case, at the least, are more than the memory."""
    positions, network = size**2, what in ("step", "inference")
    # Of a network its first maps: 64 channels at stride 2.
    least = 64 * batch * positions if network else 4 * batch * channels * positions
    if what == "attention":  # the plain form has all logits, of 4 heads
        least += 4 * 4 * batch * positions**2
    there = checks.memory() if device == "cpu" else 1 << 40
    if least > there:
        wide = "" if network else f", --channels {channels}"
        raise UserError(
            f"--size {size}, --batch {batch}{wide}: takes {least / 2**30:,.0f} GiB or more, of "
            f"{there / 2**30:,.0f}: give smaller ones"
        )


def main(words: list[str]) -> None:
    """Parse and run."""
    if words[:1] == ["input"]:
        from attneck.commands import bench_input

        bench_input.main(words[1:])
        return
    check_first("attneck bench", words, (*get_args(What), "input"))
    if words[:1] == ["step"] and "--compiled" in words:  # the default, which `bench` can't tell from a word
        raise UserError("attneck bench step takes no --compiled: its networks are timed as they are")
    call(bench, "attneck bench", words)
