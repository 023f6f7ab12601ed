"""attneck bench step --loop: a step of a run's own loop beside one of a bare PyTorch loop; its checkpoint.

Both train the same network on the same batches, and take turns step by step: the run's loop asks for its
next batch, and in between the bare loop takes its step. Both are timed by the same clock. The bare loop is
given its images as the network takes them; to normalise them is a part of the run's.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout, suppress
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from attneck.commands.text_table import text_table
from attneck.errors import user_mistakes
from attneck.files import write_json
from attneck.processor import ran_on

CASES = (("cifar_resnet20_bam", 32, 128), ("resnet50", 224, 8))
"""Without --size: network, pixels, images. A small network shows best what a loop costs beside it."""
WARM_UP = 3
"""Steps of both that are not counted: libraries set themselves up, momentum and buffers are made."""
LEAST = 5
"""Steps of both that are counted."""
SAVES = 5


def bench_loop(
    cases: list[tuple[str, int, int]], dtype: str, device: str, seconds: float, out: Path | None, json_: bool
) -> None:
    """Time each case (model, pixels, images) and print it.

    Args:
        seconds: how long both loops of a case are timed for together, about; 5 steps at least.

    Raises:
        UserError: a model that is no classifier, or a size that it does not take.
    """
    from attneck.measure.speed import clock
    from attneck.training.environment import environment

    document: dict[str, Any] = {
        "what": "loop",
        "device": device,
        "environment": environment(device),
        "dtype": dtype,
        "clock": clock(device)[0],
        "rows": [],
    }
    for case in cases:
        document["rows"].append(_row(*case, dtype, device, seconds))
        if out is not None:
            write_json(out, document)
    print(json.dumps(document, indent=1) if json_ else table(document))


def _row(name: str, size: int, batch: int, dtype: str, device: str, seconds: float) -> dict[str, Any]:
    """The times of one case, in milliseconds."""
    import torch

    from attneck.runs.train import batches_from
    from attneck.tasks import open_task
    from attneck.training.distributed import World
    from attneck.training.loop import train_loop
    from attneck.training.recipe import Recipe

    recipe = Recipe.model_validate(
        {
            "model": {"name": name},
            "data": {"name": "shapes", "image_size": size, "train_size": 2 * batch, "val_size": 2},
            "optimizer": {"lr": 1e-4},
            "batch": batch,
            "precision": dtype,
            "steps": 1000,  # the data ends before
            "checkpoint_minutes": 1e6,
            "pictures": False,
        }
    )
    everyone = World(0, 1, torch.device(device))
    with user_mistakes():
        task = open_task(recipe, everyone)
        if task.finds_objects:
            raise ValueError(f"--loop is of classifiers, and {name} is a detector")
        facts = task.describe()
        networks = [_built(task, recipe, facts) for _ in range(2)]
    data = list(islice(iter(batches_from(0, task, recipe, everyone)), 2))
    bare = _bare_step(networks[1], [_seen(task, batch) for batch in data], recipe, everyone)
    now = _clock(device)
    ours: list[float] = []
    theirs: list[float] = []

    def turns(_: int) -> Iterator[Any]:
        for number in range(recipe.total_steps(0)):
            began = now()
            yield data[number % 2]
            ours.append(now() - began)
            began = now()
            bare(number % 2)
            theirs.append(now() - began)
            if number >= WARM_UP + LEAST and sum(ours) + sum(theirs) > seconds:
                raise _EnoughError
        raise _EnoughError

    with tempfile.TemporaryDirectory() as place:
        with suppress(_EnoughError), redirect_stdout(sys.stderr):  # where its progress goes
            train_loop(
                networks[0],
                task,
                turns,
                recipe,
                Path(place),
                everyone,
                steps_per_epoch=recipe.total_steps(0) + 1,
                resume=False,
                facts=facts,
            )
        saved = _checkpoint(networks[0], recipe, facts, everyone, Path(place))
    pairs = list(zip(ours, theirs, strict=True))[WARM_UP:]
    return {
        "model": name,
        "image_size": size,
        "batch": batch,
        "steps": len(pairs),
        "loop_ms": 1000 * median(one for one, _ in pairs),
        "bare_ms": 1000 * median(other for _, other in pairs),
        "ratio": median(one / other for one, other in pairs),
        "checkpoint": saved,
    }


class _EnoughError(Exception):
    """Ends the loop where its data ends."""


def _built(task: Any, recipe: Any, facts: Any) -> Any:
    import torch

    torch.manual_seed(recipe.seed)
    return task.build(recipe, facts)


def _seen(task: Any, batch: Any) -> tuple[Any, Any]:
    """What a network is given of a batch, as it is given it, and the labels."""
    from torch import nn

    class Seeing(nn.Module):
        def forward(self, x: Any) -> Any:
            self.given = x
            return x.flatten(1)

    seeing = Seeing()
    task.loss(seeing, batch)
    return seeing.given.clone(), batch[1].to(seeing.given.device)


def _bare_step(network: Any, data: Any, recipe: Any, everyone: Any) -> Callable[[int], None]:
    """A step as anybody writes it, of the batch with that number."""
    import torch
    from torch.nn import functional as F

    from attneck.training.precision import precision

    network.to(everyone.device).to(memory_format=torch.channels_last).train()
    options = recipe.optimizer
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=options.lr,
        momentum=options.momentum,
        nesterov=options.nesterov,
        weight_decay=options.weight_decay,
        fused=everyone.device.type == "cuda" or None,
    )

    def step(number: int) -> None:
        images, labels = data[number]
        with precision(recipe, everyone.device):
            loss = F.cross_entropy(network(images).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _checkpoint(network: Any, recipe: Any, facts: Any, everyone: Any, place: Path) -> dict[str, float]:
    """Of a checkpoint: its size, how long a step waits for it, and how long it then takes beside the steps.

    A step waits for the look at whether all is finite and for the copy; the rest has a thread of its own.
    """
    import torch

    from attneck.training import checkpoint, state
    from attneck.training.optimizer import make_optimizer

    now = _clock(everyone.device.type)
    optimizer = make_optimizer(network, recipe.optimizer)
    for weight in network.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    progress = state.Progress(1)
    times: dict[str, list[float]] = {"finite_ms": [], "copy_ms": [], "write_ms": []}
    path = place
    for step in range(1, SAVES + 1):
        progress.step = step
        content = state.taken(progress, network, optimizer, None, recipe, facts, everyone)
        marks = [now()]
        checkpoint.not_finite(content)
        marks.append(now())
        copy = state.copied(content)
        marks.append(now())
        written = time.perf_counter()  # the disk's share is no processor time
        path = checkpoint.save(place / "checkpoints", step, copy)
        for name, took in zip(
            times, (marks[1] - marks[0], marks[2] - marks[1], time.perf_counter() - written), strict=True
        ):
            times[name].append(1000 * took)
    return {"mib": path.stat().st_size / 2**20} | {name: median(values) for name, values in times.items()}


def _clock(device: str) -> Callable[[], float]:
    from attneck.measure.speed import PROCESSOR, clock

    name, now = clock(device)
    return time.process_time if name == PROCESSOR else now  # what a loop leaves to other threads counts


def table(document: dict[str, Any]) -> str:
    """The rows to read."""
    lines = []
    for row in document["rows"]:
        times = [f"{row['loop_ms']:.1f}", f"{row['bare_ms']:.1f}", f"{100 * (row['ratio'] - 1):+.1f} %"]
        lines.append([row["model"], *(str(row[name]) for name in ("image_size", "batch", "steps")), *times])
    header = ("", "pixels", "batch", "steps", "loop ms", "bare ms", "behind")
    said = [
        f"checkpoint of {row['model']}, {saved['mib']:.1f} MiB: a step waits {saved['finite_ms']:.1f} ms for "
        f"the look at whether all is finite and {saved['copy_ms']:.1f} ms for the copy; the file takes "
        f"{saved['write_ms']:.0f} ms beside the next steps"
        for row in document["rows"]
        for saved in [row["checkpoint"]]
    ]
    environment = document["environment"]
    head = (
        f"{ran_on(environment)}, torch {environment['torch']}, {document['dtype']}; {document['clock']}, "
        "step by step in turns, medians"
    )
    return "\n".join([head, "", text_table(header, lines, {""}, 110), *said])
