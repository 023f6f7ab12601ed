"""attneck bench: this project's layers and networks timed against others, in one run."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, get_args

import tyro

from attneck import checks
from attneck.commands.arguments import Flag, Json, call, check_first
from attneck.errors import UserError, is_out_of_memory, say, user_mistakes
from attneck.processor import ran_on

if TYPE_CHECKING:
    from attneck.measure.steps import StepCase

What = Literal["attention", "bam", "step", "inference"]
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
    given = [name for name in parameters if name != "what" and values[name] != parameters[name].default]
    _check_options(what, given)
    if what == "inference" and dtype not in (None, "float32"):
        raise UserError("attneck bench inference takes --dtype float32 alone")
    if size is not None and batch is None:
        batch = 2 if what == "bam" else 1
    with user_mistakes():
        for name, value in {"--size": size, "--batch": batch, "--channels": channels}.items():
            if value is not None:
                checks.whole(name, value)
        if threads is not None:  # torch ends in a segmentation fault where there are too many
            checks.whole("--threads", threads, most=8 * (os.cpu_count() or 1))
    if kept_memory and device != "cpu":
        raise UserError("--kept-memory is of the CPU: leave it out")
    if not 0 < seconds <= 3600:
        raise UserError(f"--seconds {seconds}: wanted more than 0, 3600 at most")
    if size is not None:
        _refuse_too_large(what, size, batch or 1, channels, device)
    if out is not None and not out.absolute().parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.absolute().parent}; make it first")
    if out is not None and out.is_dir():
        raise UserError(f"--out {out} is a folder: name a file, such as {out / 'bench.json'}")

    import torch

    from attneck.attention.choice import attention
    from attneck.attention.cpu.choice import float32_products
    from attneck.attention.cpu.passes import passes
    from attneck.files import write_atomic
    from attneck.measure.contestants import DTYPES
    from attneck.measure.memory import can_measure
    from attneck.measure.speed import bandwidth_ceiling, clock, gemm_ceiling
    from attneck.training.allocator import keep_memory
    from attneck.training.environment import environment

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this machine has no CUDA device that torch can use")
    if kept_memory and not keep_memory(device):
        raise UserError("--kept-memory is of Linux with glibc's malloc, which this process does not have")
    if threads is not None:
        torch.set_num_threads(threads)
    if table is not None:
        from attneck.commands.bench_table import bench_table

        bench_table(table, batch, dtype or "float32", device, seconds, out, json_)
        return
    if loop:
        from attneck.commands.bench_loop import CASES, bench_loop

        if dtype == "float16":
            raise UserError("--dtype float16: a recipe has no such precision; give float32 or bfloat16")
        chosen = list(CASES) if size is None else [(model, size, batch or 1)]
        bench_loop(chosen, dtype or "float32", device, seconds, out, json_)
        return
    cases, names, contestant = _contest(what, size, batch, stride, channels, model, plain, compiled, device)
    if size is not None:
        case: Any = cases[0]
        if len(names(case)) == 1:
            raise UserError(f"{case}: nobody to compare with is installed, and --no-compiled leaves one out")
        with _of(case):
            contestant(case, names(case)[0], "forward+backward", device)
    if dtype is not None:
        cases = list(dict.fromkeys(_with_dtype(case, dtype) for case in cases))
    ceilings = {
        name: gemm_ceiling(DTYPES[name], device) / 1e9 for name in sorted({case.dtype for case in cases})
    }
    document: dict[str, Any] = {
        "what": what,
        "device": device,
        "environment": environment(device)
        | {
            "float32_products": float32_products(),
            "attention_passes": passes(),
            "attention": attention(),
        },
        "gemm_gflops": ceilings,
        "copy_gbytes": bandwidth_ceiling(device) / 1e9,
        "clock": clock(device)[0],
    }
    directions = {"step": ["forward+backward"], "inference": ["forward"]}.get(
        what, ["forward", "forward+backward"]
    )

    def weighed(case: Any) -> bool:
        # Every peak takes a process that loads torch anew; in the list, small maps are not worth it.
        return measurable and (size is not None or what != "attention" or case.size >= 64)

    measurable = memory and can_measure(device)
    if memory and not measurable:
        say("peak memory is read from Linux's /proc, which is not here: it is left out")

    rows: list[dict[str, Any]] = []
    text = ""
    with nullcontext() if size is None else _of(cases[0]):
        for row in _measure(cases, directions, names, contestant, document, seconds, weighed, device):
            rows.append(row)
            text = json.dumps(document | {"rows": rows}, indent=1, ensure_ascii=False)
            if out is not None:  # after each row: an interrupted benchmark leaves what it has
                write_atomic(out, (text + "\n").encode())
    print(text if json_ else _table(document, rows))


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


class Contest(NamedTuple):
    """What is timed."""

    cases: Sequence[Any]
    names: Callable[[Any], list[str]]
    """Who takes part in a case, this project first."""
    call: Callable[..., Callable[[], object]]
    """Of a case, a name, a direction and a device: what is timed."""


def _contest(
    what: What,
    size: int | None,
    batch: int | None,
    stride: Literal[1, 2],
    channels: int,
    model: str,
    plain: str,
    compiled: bool,
    device: str,
) -> Contest:
    """The project's own cases, or the one of `size`. Raises UserError for networks that are none of it."""
    from attneck.measure import contestants, steps

    if what == "attention":
        one = partial(contestants.AttentionCase, stride=stride, channels=channels)

        def attention_names(case: Any) -> list[str]:
            everybody = contestants.attention_names(compiled, case)
            # Larger maps in the list are there for their memory: the others take seconds, and GiB.
            return everybody if size is not None or case.size < 80 else everybody[:2]

        cases = _attention_cases(device) if size is None else [one(size, batch or 1)]
        return Contest(cases, attention_names, contestants.attention_call)
    if what == "bam":
        parts: tuple[Literal["gate", "module"], ...] = ("gate", "module")
        maps = ((256, 56, 8), (512, 28, 8)) if size is None else ((channels, size, batch or 1),)
        bams = [contestants.BAMCase(*shape, part=part) for part in parts for shape in maps]
        return Contest(bams, lambda _: contestants.bam_names(compiled), contestants.bam_call)
    if what == "inference":
        from attneck.commands import bench_inference

        if _task(model) != "classification":
            raise UserError(f"--model {model} is a detector: bench inference is of classifiers")
        return Contest(
            bench_inference.cases(model, size, batch),
            lambda case: bench_inference.names(case, compiled, device),
            bench_inference.call,
        )
    _comparable(model, plain)
    networks = _step_cases(device) if size is None else [steps.StepCase(model, plain, size, batch or 1)]
    return Contest(networks, steps.step_names, steps.step_call)


@contextmanager
def _of(case: Any) -> Iterator[None]:
    """A case that cannot be is the user's mistake: such channels, such a size, such a batch."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{case}: {error}") from error


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


def _attention_cases(device: str) -> list[Any]:
    """Maps of c5 at 224, 448, 640 and 1024 pixels, and on CUDA also at 1280 and with larger batches."""
    from attneck.measure.contestants import AttentionCase

    if device == "cuda":
        return [
            AttentionCase(size, batch, dtype, 2 if size >= 64 else 1)
            for size in (14, 20, 32, 64, 80)
            for batch in (8, 32)
            for dtype in ("bfloat16", "float32")
        ]
    shapes = ((7, 32, 1), (14, 8, 1), (20, 4, 1), (32, 2, 1), (64, 1, 2), (80, 1, 2))
    return [
        AttentionCase(size, batch, dtype, stride)
        for size, batch, stride in shapes
        for dtype in ("float32", "bfloat16")
    ]


def _step_cases(device: str) -> list[StepCase]:
    """The classifiers at 224 and 1024 pixels; on CUDA the detectors too, at both of the paper's sizes."""
    from attneck.measure.steps import StepCase

    detectors = ("maskrcnn_botnet50", "maskrcnn_resnet50")
    return [
        StepCase("botnet50", "resnet50", 1024, 1, "bfloat16"),
        *(
            StepCase(model, "resnet50", 224, 8, dtype)
            for model in ("botnet50", "resnet50_bam")
            for dtype in ("bfloat16", "float32")
        ),
        *(StepCase(*detectors, size, 8, "bfloat16") for size in (1024, 1280) if device == "cuda"),
    ]


def _comparable(model: str, plain: str) -> None:
    if _task(model) != _task(plain):
        raise UserError(
            f"--model {model} and --plain {plain}: one is a detector and one is not; give two of a kind"
        )
    if model == plain:
        raise UserError(f"--model {model} and --plain {plain} are one network: give another --plain")


def _task(model: str) -> str:
    from attneck.models import catalog

    try:
        return catalog.find(model).task
    except ValueError as error:
        raise UserError(str(error)) from None


def _with_dtype(case: Any, dtype: str) -> Any:
    return type(case)(**asdict(case) | {"dtype": dtype})


def _measure(
    cases: Sequence[Any],
    directions: list[Any],
    names: Callable[[Any], list[str]],
    contestant: Callable[..., Callable[[], object]],
    document: dict[str, Any],
    seconds: float,
    weighed: Callable[[Any], bool],
    device: str,
) -> Iterator[dict[str, Any]]:
    """A row for each case and direction; of `names`, the first, eager or compiled, meets the best other."""
    import torch
    from rich.console import Console
    from rich.progress import Progress

    from attneck.measure.contestants import COMPILED
    from attneck.measure.inference import ONNXRUNTIME
    from attneck.measure.memory import emptied, peak_elsewhere
    from attneck.measure.speed import interleave

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(cases) * len(directions))
        for case in cases:
            for direction in directions:
                torch._dynamo.reset()  # past a limit of recompilations it would call what is not compiled
                what = f"{case}, {direction}"
                progress.update(task, description=what)
                calls = _that_fit(names(case), partial(contestant, case), direction, device, what)
                everybody = [*calls]
                if len(everybody) == 1:  # nobody is left to compare with
                    progress.advance(task)
                    continue
                times = interleave(calls, seconds=seconds, device=device)
                calls.clear()
                emptied(device)
                own = [name for name in everybody if name.removesuffix(COMPILED) == everybody[0]]
                ours = min(own, key=times.median)
                ratios = {name: times.ratio(name, over=ours) for name in everybody if name not in own}
                best = min(ratios, key=times.median)
                row: dict[str, Any] = {
                    "case": str(case),
                    "direction": direction,
                    "ms": {name: 1000 * times.median(name) for name in everybody},
                    "ours": ours,
                    "best_other": best,
                    "ratio": ratios[best],
                    "ratios": ratios,
                }
                if hasattr(case, "floor"):
                    flops, moved = case.floor(direction)
                    by_products = flops / document["gemm_gflops"][case.dtype] / 1e6
                    row["floor_ms"] = max(by_products, moved / document["copy_gbytes"] / 1e6)
                if weighed(case):
                    row["peak_mib"] = {
                        name: peak_elsewhere(contestant, case, name, direction, device, device=device) / 2**20
                        for name in everybody
                        # The compiler's own would be counted; onnxruntime keeps what its first call took.
                        if "compiled" not in name and name != ONNXRUNTIME
                    }
                yield row
                progress.advance(task)


def _that_fit(
    names: list[str], contestant: Callable[..., Callable[[], object]], direction: Any, device: str, what: str
) -> dict[str, Callable[[], object]]:
    """The calls by name, without those of others that find no memory, which is said."""
    from attneck.measure.memory import emptied

    found = {}
    for name in names:
        try:
            made = contestant(name, direction, device)
            made()
            found[name] = made
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or name == names[0]:
                raise
            say(f"{what}: {name} does not fit")
        emptied(device)
    return found


def _table(document: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The rows to read, a line each."""
    from rich.console import Console
    from rich.table import Table

    environment = document["environment"]
    ceilings = ", ".join(f"{value:.0f} GFLOP/s in {name}" for name, value in document["gemm_gflops"].items())
    table = Table(box=None, pad_edge=False)
    other = "other" if document["what"] == "step" else "best other"
    for heading in ("case", "direction", "ms", "floor", "MiB", other, "ms", "MiB", "ratio"):
        table.add_column(heading, justify="left" if heading in ("case", "direction", other) else "right")
    for row in rows:
        times, peaks, ours = row["ms"], row.get("peak_mib", {}), row["ours"]
        # The others of a step differ in kind: the same network with plain attention, and another network.
        for name in row["ratios"] if document["what"] == "step" else [row["best_other"]]:
            table.add_row(
                row["case"],
                row["direction"],
                f"{times[ours]:.2f}{' compiled' if 'compiled' in ours else ''}",
                f"{row['floor_ms']:.2f}" if "floor_ms" in row else "",
                f"{peaks[ours]:.0f}" if ours in peaks else "",
                name,
                f"{times[name]:.2f}",
                f"{peaks[name]:.0f}" if name in peaks else "",
                f"{row['ratios'][name]:.2f}",
            )
    console = Console(width=180)
    with console.capture() as captured:
        console.print(table)
    head = (
        f"{ran_on(environment)}, torch {environment['torch']}; {document['clock']}; at best, "
        f"products run at {ceilings}, copies at {document['copy_gbytes']:.0f} GB/s"
    )
    foot = f"ratio: the {other}'s time over ours: above 1 is faster. floor: what the products or bytes take."
    return f"{head}\n\n{captured.get()}\n{foot}"


def main(words: list[str]) -> None:
    """Parse and run."""
    if words[:1] == ["input"]:
        from attneck.commands import bench_input

        bench_input.main(words[1:])
        return
    check_first("attneck bench", words, (*get_args(What), "input"))
    call(bench, "attneck bench", words)
