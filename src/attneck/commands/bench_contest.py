"""A contest of attneck bench: who takes part in which cases, and how they are timed and printed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from attneck.commands.text_table import text_table
from attneck.errors import UserError, is_out_of_memory, say
from attneck.processor import ran_on

if TYPE_CHECKING:
    from attneck.measure.speed import Times
    from attneck.measure.steps import StepCase

What = Literal["attention", "bam", "step", "inference"]


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


def hold(asked: Asked, out: Path | None, json_: bool) -> None:
    """Time everybody in each case, and print it; `out` has it after each row.

    Raises UserError for a case that cannot be, and for networks that are none of the contest.
    """
    from attneck.files import write_atomic
    from attneck.measure.memory import can_measure

    contest = _contest(asked)
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
    environment = document["environment"]
    ceilings = ", ".join(f"{value:.0f} GFLOP/s in {name}" for name, value in document["gemm_gflops"].items())
    other = "other" if document["what"] == "step" else "best other"
    lines = []
    for row in rows:
        times, peaks, ours = row["ms"], row.get("peak_mib", {}), row["ours"]
        # The others of a step differ in kind: the same network with plain attention, and another network.
        for name in row["ratios"] if document["what"] == "step" else [row["best_other"]]:
            lines.append(
                [
                    row["case"],
                    row["direction"],
                    f"{times[ours]:.2f}{' compiled' if 'compiled' in ours else ''}",
                    f"{row['floor_ms']:.2f}" if "floor_ms" in row else "",
                    f"{peaks[ours]:.0f}" if ours in peaks else "",
                    name,
                    f"{times[name]:.2f}",
                    f"{peaks[name]:.0f}" if name in peaks else "",
                    f"{row['ratios'][name]:.2f}",
                ]
            )
    header = ("case", "direction", "ms", "floor", "MiB", other, "ms", "MiB", "ratio")
    table = text_table(header, lines, {"case", "direction", other}, 180)
    head = (
        f"{ran_on(environment)}, torch {environment['torch']}; {document['clock']}; at best, "
        f"products run at {ceilings}, copies at {document['copy_gbytes']:.0f} GB/s"
    )
    foot = f"ratio: the {other}'s time over ours: above 1 is faster. floor: what the products or bytes take."
    return f"{head}\n\n{table}\n{foot}"
