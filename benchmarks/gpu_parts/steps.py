"""Part 4: whole training steps, eager and compiled: `attneck.measure.steps` at batch 8 in bfloat16."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch.torch_version import TorchVersion

from attneck.measure.contestants import COMPILED
from attneck.measure.steps import StepCase, step_call, step_names

from .contest import contest
from .kept import Job, Kept

DETECTORS = ("maskrcnn_botnet50", "maskrcnn_resnet50")
GOAL = 1.10
"""BoTNet-50's step at 1024 over ResNet-50's."""
COMPILES = TorchVersion("2.13")
"""An older PyTorch takes each graph that it compiles for one to be exported: attention is plain in it."""


def cases(job: Job) -> list[tuple[StepCase, bool]]:
    """Cases, and whether they are compiled; what matters most comes first."""
    if job.tiny:
        small = StepCase("cifar_resnet20_bot", "cifar_resnet20", 32, 2, "bfloat16")
        detectors = StepCase("maskrcnn_botnet26_thin", "maskrcnn_resnet26_thin", 96, 1)
        return [(small, False), (detectors, False), (small, True)]

    def at(size: int, model: str = "botnet50", plain: str = "resnet50") -> StepCase:
        return StepCase(model, plain, size, 8, "bfloat16")

    networks = [at(1024), at(224), at(224, "resnet50_bam"), at(1280)]
    on_them = [at(1024, *DETECTORS), at(1280, *DETECTORS)]
    return [(case, compiled) for compiled in (False, True) for case in networks + on_them]


def work(kept: Kept, job: Job) -> bool:
    """A row for each case that has none."""
    for case, compiled in cases(job):
        key = f"{case}{COMPILED if compiled else ''}"
        if key in kept.rows or "" in kept.left_out.get(key, {}):
            continue
        if compiled and TorchVersion(torch.__version__) < COMPILES:
            print(f"{key}: left out, PyTorch {torch.__version__} can't compile the kernels")
            kept.leave_out(key, f"PyTorch {torch.__version__} is older than {COMPILES}")
            continue
        if job.left <= 0:
            return False
        torch._dynamo.reset()  # past a limit of recompilations it would call what is not compiled
        names = [name + COMPILED if compiled else name for name in step_names(case)]
        makers = {name: partial(step_call, case, name, "forward+backward", job.device) for name in names}
        row = contest(kept, job, key, makers) | {"names": names}
        kept.row(key, row)
        print(f"{key}: {said(row)}", flush=True)
    return True


def said(row: dict[str, Any]) -> str:
    """A row in a line."""
    found = [f"{name} {ms:.1f} ms, {row['peak_mib'][name]:,.0f} MiB" for name, ms in row["ms"].items()]
    return "; ".join(found + [f"{name}: {why[:80]}" for name, why in row["left_out"].items()])


def lines(document: dict[str, Any]) -> Iterator[str]:
    """The rows, each with its ratio."""
    for key, row in document["rows"].items():
        model, plain = row["names"][0], row["names"][-1]
        ratio = row["ms"][model] / row["ms"][plain] if {model, plain} <= {*row["ms"]} else None
        yield f"{key}: {'no ratio' if ratio is None else f'{ratio:.3f}'}; {said(row)}"
        if ratio is not None and " 1024 " in key and model.startswith("botnet50"):
            yield f"GOAL {key}: {ratio:.3f}, wanted at most {GOAL:.2f}"
