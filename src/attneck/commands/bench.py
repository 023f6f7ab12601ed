"""attneck bench: this project's layers and networks timed against others, in one run."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, get_args

import tyro

from attneck import checks
from attneck.commands.arguments import Flag, Json, call, check_first
from attneck.commands.output_file import check_output
from attneck.errors import UserError, is_out_of_memory, say, user_mistakes
from attneck.processor import ran_on

if TYPE_CHECKING:
    from attneck.measure.speed import Times
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
        _hold(_contest(asked), asked, out, json_)


class Asked(NamedTuple):
    """What the command line says of a contest; see `bench`."""

    what: What
    size: int | None
    batch: int | None
    dtype: str | None
    stride: Literal[1, 2]
    channels: int
    model: str
    plain: str
    device: str
    seconds: float
    compiled: bool
    memory: bool


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


def _hold(contest: Contest, asked: Asked, out: Path | None, json_: bool) -> None:
    """Time everybody in each case, and print it; `out` has it after each row."""
    from attneck.files import write_atomic
    from attneck.measure.memory import can_measure

    if asked.size is not None:
        case = contest.cases[0]
        if len(contest.names(case)) == 1:
            raise UserError(f"{case}: nobody to compare with is installed, and --no-compiled leaves one out")
        with _of(case):
            contest.call(case, contest.names(case)[0], "forward+backward", asked.device)
    if asked.dtype is not None:
        cases = dict.fromkeys(_with_dtype(case, asked.dtype) for case in contest.cases)
        contest = contest._replace(cases=[*cases])
    document = _document(asked, contest.cases)
    measurable = asked.memory and can_measure(asked.device)
    if asked.memory and not measurable:
        say("peak memory is read from Linux's /proc, which is not here: it is left out")

    def weighed(case: Any) -> bool:
        # Every peak takes a process that loads torch anew; in the list, small maps are not worth it.
        return measurable and (asked.size is not None or asked.what != "attention" or case.size >= 64)

    rows: list[dict[str, Any]] = []
    text = ""
    with nullcontext() if asked.size is None else _of(contest.cases[0]):
        for row in _measure(contest, document, asked.seconds, weighed):
            rows.append(row)
            text = json.dumps(document | {"rows": rows}, indent=1, ensure_ascii=False)
            if out is not None:  # after each row: an interrupted benchmark leaves what it has
                write_atomic(out, (text + "\n").encode())
    print(text if json_ else _table(document, rows))


def _document(asked: Asked, cases: Sequence[Any]) -> dict[str, Any]:
    """What is timed and where: all but the rows."""
    from attneck.attention.choice import attention
    from attneck.attention.cpu.choice import float32_products
    from attneck.attention.cpu.passes import passes
    from attneck.measure.contestants import DTYPES
    from attneck.measure.speed import bandwidth_ceiling, clock, gemm_ceiling
    from attneck.training.environment import environment

    device = asked.device
    own = {"float32_products": float32_products(), "attention_passes": passes(), "attention": attention()}
    dtypes = sorted({case.dtype for case in cases})
    return {
        "what": asked.what,
        "device": device,
        "environment": environment(device) | own,
        "gemm_gflops": {name: gemm_ceiling(DTYPES[name], device) / 1e9 for name in dtypes},
        "copy_gbytes": bandwidth_ceiling(device) / 1e9,
        "clock": clock(device)[0],
    }


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


def _contest(asked: Asked) -> Contest:
    """The project's own cases, or the one of `size`. Raises UserError for networks that are none of it."""
    from attneck.measure import contestants, steps

    what, size, batch, channels, model = asked.what, asked.size, asked.batch, asked.channels, asked.model
    compiled, device = asked.compiled, asked.device
    if what == "attention":
        one = partial(contestants.AttentionCase, stride=asked.stride, channels=channels)

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
    _comparable(model, asked.plain)
    networks = _step_cases(device) if size is None else [steps.StepCase(model, asked.plain, size, batch or 1)]
    return Contest(networks, steps.step_names, steps.step_call)


@contextmanager
def _of(case: Any) -> Iterator[None]:
    """A case that cannot be is the user's mistake: such channels, such a size, such a batch."""
    try:
        yield
    except ValueError as error:
        alone = "Expected more than 1 value per channel" in str(error)  # BatchNorm's, of a map of 1x1
        hint = "; give a greater --size or --batch" if alone else ""
        raise UserError(f"{case}: {error}{hint}") from error


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


DIRECTIONS = {"step": ["forward+backward"], "inference": ["forward"]}
"""What is timed of a case; of layers both."""


def _measure(
    contest: Contest, document: dict[str, Any], seconds: float, weighed: Callable[[Any], bool]
) -> Iterator[dict[str, Any]]:
    """A row for each case and direction; of the names, the first, eager or compiled, meets the best other."""
    import torch
    from rich.console import Console
    from rich.progress import Progress

    from attneck.measure.memory import emptied
    from attneck.measure.speed import interleave

    device = document["device"]
    directions = DIRECTIONS.get(document["what"], ["forward", "forward+backward"])
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(contest.cases) * len(directions))
        for case, direction in product(contest.cases, directions):
            torch._dynamo.reset()  # past a limit of recompilations it would call what is not compiled
            what = f"{case}, {direction}"
            progress.update(task, description=what)
            calls = _that_fit(contest.names(case), partial(contest.call, case), direction, device, what)
            if len(calls) > 1:  # else nobody is left to compare with
                times = interleave(calls, seconds=seconds, device=device)
                calls.clear()
                emptied(device)
                row = _row(case, direction, times, document)
                if weighed(case):
                    row["peak_mib"] = _peaks(contest, case, direction, [*times], device)
                yield row
            progress.advance(task)


def _row(case: Any, direction: str, times: Times, document: dict[str, Any]) -> dict[str, Any]:
    """The times, and each other's over ours; where the case says what it must do, how long that takes."""
    from attneck.measure.contestants import COMPILED

    everybody = [*times]
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
    return row


def _peaks(contest: Contest, case: Any, direction: str, names: list[str], device: str) -> dict[str, float]:
    """MiB that each takes at its peak, but for what the compiler and onnxruntime take for themselves."""
    from attneck.measure.inference import ONNXRUNTIME
    from attneck.measure.memory import peak_elsewhere

    return {
        name: peak_elsewhere(contest.call, case, name, direction, device, device=device) / 2**20
        for name in names
        # The compiler's own would be counted; onnxruntime keeps what its first call took.
        if "compiled" not in name and name != ONNXRUNTIME
    }


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
    if words[:1] == ["step"] and "--compiled" in words:  # the default, which `bench` can't tell from a word
        raise UserError("attneck bench step takes no --compiled: its networks are timed as they are")
    call(bench, "attneck bench", words)
