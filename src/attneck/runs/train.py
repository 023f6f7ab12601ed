"""A recipe becomes a run: data, model and task are put together, and the loop trains them."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from attneck.attention.cpu.choice import float32_products, set_float32_products
from attneck.data import loader
from attneck.data.sampling import TrainBatches
from attneck.data.skipping import summary_of
from attneck.errors import UserError, user_mistakes
from attneck.files import write_atomic
from attneck.models.weights import read_weights
from attneck.runs.folder import next_folder
from attneck.runs.run import Run
from attneck.tasks import open_task
from attneck.tasks.task import Facts, Task
from attneck.training import checkpoint, loop
from attneck.training.distributed import World, world
from attneck.training.environment import emulates_bfloat16, environment
from attneck.training.recipe import RECIPE, Recipe, differences, dump_recipe, parse_recipe

ENVIRONMENT = "environment.json"


@dataclass(frozen=True)
class Summary:
    """How a run ended."""

    folder: Path
    steps: int
    scores: dict[str, Any]
    weights: str  # digest of the state dict


def train(recipe: Recipe, out: str | Path | None = None, *, resume: bool = False) -> Summary:
    """Train what `recipe` says, into the run folder `out` (a new one under runs/ where None).

    Under torchrun every process calls this; the first one writes.

    Raises:
        UserError: a model, option or data set that is not there or does not fit; a folder that holds a run
            already, or none to resume; a recipe or classes other than the run was started with.
        RunFailed: see `attneck.training.loop.train_loop`.
    """
    with world() as everyone:
        with user_mistakes():
            task = open_task(recipe, everyone)
            if task.training.classes != task.held_out.classes:
                raise UserError(
                    f"the {len(task.training.classes)} classes of the training images are not the "
                    f"{len(task.held_out.classes)} of those held out: train and score on the same classes"
                )
            batches_from(0, task, recipe, everyone)  # refuses a batch that does not divide
            facts = task.describe()
            torch.manual_seed(recipe.seed)
            model = task.build(recipe, facts)
            started = None
            if recipe.model.weights and not resume:
                taken = task.start(model, weights_of(recipe.model.weights))
                started = f"from {recipe.model.weights}: {taken}"
        folder, products = _prepare_once(recipe, facts, out, resume, everyone)
        with user_mistakes():
            set_float32_products(products)
        if recipe.precision == "bfloat16" and everyone.rank == 0 and emulates_bfloat16(everyone.device):
            print(
                "attneck: this processor emulates bfloat16, far slower than float32: --precision float32",
                file=sys.stderr,
            )
        if everyone.rank == 0 and not resume:
            for said in (getattr(model, "surgery_report", None), started):
                if said is not None:
                    print(f"attneck: {said}", file=sys.stderr)

        progress, average = loop.train_loop(
            model,
            task,
            lambda step: iter(batches_from(step, task, recipe, everyone)),
            recipe,
            folder,
            everyone,
            steps_per_epoch=len(task.training) // recipe.batch,
            resume=resume,
            facts=facts,
        )
        if task.training.skipped is not None:
            left_out = set(everyone.joined(task.training.skipped.files()))
            if left_out and everyone.rank == 0:
                print(f"attneck: {summary_of(left_out)}", file=sys.stderr)
        best = average.module if average is not None else model
        summary = Summary(folder, progress.step, progress.history[-1], checkpoint.digest(best.state_dict()))
        if everyone.rank == 0:
            document = {"steps": summary.steps, **summary.scores, "weights": summary.weights}
            write_atomic(folder / "summary.json", (json.dumps(document, indent=1) + "\n").encode())
        return summary


def batches_from(step: int, task: Task, recipe: Recipe, everyone: World) -> DataLoader[Any]:
    """This process's batches from optimiser step `step` to the recipe's last."""
    length = len(task.training)
    batches = TrainBatches(
        length,
        recipe.batch,
        seed=recipe.seed,
        rank=everyone.rank,
        world=everyone.size,
        accumulate=recipe.accumulate,
        start=step,
        steps=recipe.total_steps(length // recipe.batch),
    )
    return loader(task.training, batches, recipe.data.workers, task.collate)


def weights_of(source: str) -> Any:
    """The tensors by name in a file, or of the run in a folder: its averaged weights where it keeps them."""
    return Run(source).weights() if Path(source).is_dir() else read_weights(source)


def _prepare(recipe: Recipe, facts: Facts, out: str | Path | None, resume: bool) -> tuple[Path, str]:
    """The run's folder, made and described, and the library for its float32 products.

    On resume the run there is compared with this one, and its library is kept: another one rounds otherwise.
    """
    folder = Path(out) if out is not None else next_folder(recipe.model.name)
    products: str = float32_products()
    if resume:
        state, _, damaged = checkpoint.load_latest(folder / "checkpoints")
        for path in damaged:
            print(
                f"attneck: {path} does not match its SHA-256; going on from step {state['step']}",
                file=sys.stderr,
            )
        changed = differences(parse_recipe(state["recipe"], str(folder)), recipe)
        if changed:
            raise UserError(
                f"{folder} was started otherwise ({'; '.join(changed)}): drop the change or --resume"
            )
        if other := [name for name, value in facts.items() if state["facts"].get(name) != value]:
            raise UserError(
                f"{folder} was started on other data (its {', '.join(other)} differ): give it the data that "
                "it was started on, or start a new run"
            )
        products = _recorded(folder).get("float32_products", products)
    elif checkpoint.checkpoints(folder / "checkpoints"):
        raise UserError(f"{folder} holds a run already: go on with --resume, or choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / RECIPE, dump_recipe(recipe).encode())
    around = environment() | {"float32_products": products}
    for name, content in ((ENVIRONMENT, around), ("data.json", facts)):
        write_atomic(folder / name, (json.dumps(content, indent=1) + "\n").encode())
    return folder, products


def _recorded(folder: Path) -> dict[str, Any]:
    """The run's environment.json; empty where it is missing or damaged."""
    try:
        found = json.loads((folder / ENVIRONMENT).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _prepare_once(
    recipe: Recipe, facts: Facts, out: str | Path | None, resume: bool, everyone: World
) -> tuple[Path, str]:
    """`_prepare` by the first process; its result, or its refusal, on every process."""
    box: list[tuple[Path, str] | UserError | None] = [None]
    if everyone.rank == 0:
        try:
            box[0] = _prepare(recipe, facts, out, resume)
        except UserError as error:
            box[0] = error
    if everyone.size > 1:
        dist.broadcast_object_list(box, src=0, device=everyone.device)
    if isinstance(box[0], UserError):
        raise box[0]
    assert box[0] is not None
    return box[0]
