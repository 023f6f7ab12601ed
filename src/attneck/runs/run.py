"""A recipe becomes a run: model, data, task and the loop. What `attneck.train` and the commands share."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from PIL import Image
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from attneck import hub
from attneck.data import loader
from attneck.data.sampling import TrainBatches, spread
from attneck.detection.weights import load_weights
from attneck.errors import UserError
from attneck.files import write_atomic
from attneck.models import catalog
from attneck.models.weights import load_matching
from attneck.tasks import open_task
from attneck.tasks.classification import Classification, build_classifier
from attneck.tasks.detection import Detection, build_detector, headline
from attneck.training import checkpoint, loop
from attneck.training.distributed import World, world
from attneck.training.environment import environment
from attneck.runs.folder import next_folder
from attneck.training.recipe import TIMM, Data, Recipe, differences, dump_recipe, parse_recipe
from attneck.training.report import Watch, unseen

Task = Classification | Detection
MODEL = "model.json"
"""What `describe` said of a run's model."""


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
            already, or none to resume; a recipe that differs from the one the run was started with.
        RunFailed: see `attneck.training.loop.fit`.
    """
    with world() as everyone:
        with mistakes():
            task = open_task(recipe, everyone)
            if task.training.classes != task.held_out.classes:
                raise UserError(
                    f"the {len(task.training.classes)} classes of the training images are not the "
                    f"{len(task.held_out.classes)} of those held out: train and score on the same classes"
                )
            batches_from(0, task, recipe, everyone)  # refuses a batch that does not divide
            torch.manual_seed(recipe.seed)
            model = task.build()
            begun = _begin(model, recipe.model.weights) if recipe.model.weights and not resume else None
        folder = _prepare_once(recipe, task, out, resume, everyone, describe(model, task))
        if everyone.rank == 0 and not resume:
            for said in (getattr(model, "surgery_report", None), begun):
                if said is not None:
                    print(f"attneck: {said}", file=sys.stderr)

        progress, average = loop.fit(
            model,
            task,
            lambda step: iter(batches_from(step, task, recipe, everyone)),
            recipe,
            folder,
            everyone,
            steps_per_epoch=len(task.training) // recipe.batch,
            resume=resume,
        )
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


def evaluate(run: str | Path, data: Data | None = None, watch: Watch = unseen) -> dict[str, Any]:
    """The scores of a run's newest checkpoint, for its weights ("val_…") and their average ("ema_…").

    A classifier's are top-1, top-5 and error in per cent. A detector's are AP in per cent; all that there is
    to say, in `scores` by "val" and "ema"; and `detections`, the file with what it found in the held-out
    images in COCO's form, with its averaged weights where the run kept them.

    Args:
        data: another place or form of the data than the run's own.
        watch: is given the DataLoader, and gives its batches on: to show how far it is.

    Raises:
        UserError: no run there, or none of its checkpoints is whole; data that is not there.
    """
    folder = Path(run)
    state, recipe = _newest(folder)
    if data is not None:
        recipe = recipe.model_copy(update={"data": data})
    with world() as everyone:
        with mistakes():
            task = open_task(recipe, everyone)
            model = task.build()
        average = _fill(model, state, recipe, everyone.device)
        about = {
            "run": str(folder),
            "model": recipe.model.name,
            "step": state["step"],
            "images": len(task.held_out),
        }
        if isinstance(task, Classification):
            scores = loop.evaluate(task, model, average, recipe, everyone.device, watch)
            errors = {
                key.replace("top1", "error"): 100 - top1
                for key, top1 in scores.items()
                if key.endswith("top1")
            }
            return about | scores | errors
        found = loop.of_each(partial(task.detect, watch=watch), model, average, recipe, everyone.device)
        file = folder / "detections.json"
        if everyone.rank == 0:
            write_atomic(file, json.dumps(found.get("ema", found["val"])).encode())
        parts = {prefix: task.scores(detections) for prefix, detections in found.items()}
        short = {
            f"{prefix}_{key}": value for prefix in parts for key, value in headline(parts[prefix]).items()
        }
        return about | {"detections": str(file)} | short | {"scores": parts}


@dataclass(frozen=True)
class Detector:
    """A run's detector as it predicts: in evaluation, with its averaged weights where the run kept them."""

    model: nn.Module
    recipe: Recipe
    step: int
    classes: tuple[str, ...]
    """Names of labels 1, 2, …"""
    category_ids: tuple[int, ...]


def load_detector(run: str | Path) -> Detector:
    """The detector of a run's newest checkpoint; its data is not looked at.

    Raises:
        UserError: no run there, one of a classifier, or none of its checkpoints is whole.
    """
    folder = Path(run)
    state, recipe = _newest(folder)
    if recipe.model.name not in catalog.DETECTORS:
        raise UserError(f"{folder} is a run of {recipe.model.name}, which finds no boxes: give a detector's")
    file = folder / "classes.json"
    try:
        known = json.loads(file.read_bytes())
        classes, ids = tuple(map(str, known["classes"])), tuple(map(int, known["category_ids"]))
    except (OSError, ValueError, TypeError, KeyError):
        raise UserError(f"{file} is missing or damaged: attneck train {folder} --resume writes it") from None
    with mistakes():
        model = build_detector(recipe, len(classes))
    average = _fill(model, state, recipe, torch.device("cpu"))
    best = model if average is None else average.module
    return Detector(best.eval(), recipe, state["step"], classes, ids)


class Scene(NamedTuple):
    """An image, its file, and its objects as COCO's annotations with `category`, where they are known."""

    file: str
    image: Image.Image
    objects: list[dict[str, Any]] | None


def held_out_scenes(recipe: Recipe, count: int) -> list[Scene]:
    """So many of the images that a detector's recipe holds out, evenly spread.

    Raises:
        UserError: not so many, or data that is not there.
    """
    with mistakes(), world() as everyone:
        data = Detection(recipe, everyone).held_out
        names = dict(zip(data.category_ids, data.classes, strict=True))
        scenes = []
        for index in spread(len(data), count, "the held-out images").tolist():
            pixels, record = data.read(index)
            objects = [row | {"category": names[row["category_id"]]} for row in data.annotations(record)]
            scenes.append(Scene(record.file, Image.fromarray(pixels), objects))
        return scenes


def _newest(folder: Path) -> tuple[dict[str, Any], Recipe]:
    """The newest whole checkpoint of a run, and its recipe."""
    state, _, _ = checkpoint.load_latest(folder / "checkpoints")
    return state, parse_recipe(state["recipe"], str(folder))


def _fill(
    model: nn.Module, state: dict[str, Any], recipe: Recipe, device: torch.device
) -> AveragedModel | None:
    """Put a checkpoint's weights into `model`, in place; their average as a model of its own."""
    model.load_state_dict(state["model"])
    model.to(device)
    if recipe.channels_last:
        model.to(memory_format=torch.channels_last)
    if state["average"] is None:
        return None
    average = loop.average_of(model, recipe.ema)
    average.load_state_dict(state["average"])
    return average


def _begin(model: nn.Module, weights: str) -> str:
    """Start a model from a file or a run, a detector also from a backbone's; says what was taken."""
    given: Any = Path(weights)
    if given.is_dir():
        state, _ = _newest(given)
        best = state["average"] or state["model"]
        given = {name.removeprefix("module."): tensor for name, tensor in best.items()}
    if hasattr(model, "backbone"):
        return f"from {weights}: {load_weights(model, given)}"
    return f"from {weights}: {load_matching(model, given)}"


def load(
    run: str | Path, image_size: int | tuple[int, int] | None = None, *, average: bool = True
) -> nn.Module:
    """The model of a run's newest checkpoint, in evaluation mode on the CPU; its data is not needed.

    Args:
        image_size: as `create_model` has it, if another than the run's.
        average: take the moving average of the weights, where the run keeps one.

    Raises:
        UserError: no run there, or none of its checkpoints is whole.
    """
    folder = Path(run)
    state, _, _ = checkpoint.load_latest(folder / "checkpoints")
    try:
        config = json.loads((folder / MODEL).read_text())
    except FileNotFoundError:
        raise UserError(
            f"{folder}: no {MODEL} there, which says how to make its model (attneck train {folder} --resume "
            "writes it anew)"
        ) from None
    recipe = parse_recipe(state["recipe"], str(folder))
    if _by_recipe(recipe):
        model = build_classifier(recipe.model, config["num_classes"], image_size or config["image_size"])
    else:
        model = hub.build(config, image_size)
    weights = state["model"]
    if average and state["average"] is not None:
        prefix = "module."
        weights = {
            name.removeprefix(prefix): tensor
            for name, tensor in state["average"].items()
            if name.startswith(prefix)
        }
    model.load_state_dict(weights)
    return model.eval()


def _by_recipe(recipe: Recipe) -> bool:
    """Whether its model is timm's, or changed: nothing that `create_model` makes."""
    return recipe.model.name.startswith(TIMM) or recipe.model.surgery != "none"


def describe(model: nn.Module, task: Task) -> dict[str, Any]:
    """How to make `model`, and the images that it is for, as JSON has them."""
    if isinstance(task, Detection):
        return hub.describe(model)
    images = task.held_out
    if _by_recipe(task.recipe):  # no name says how to make it
        return {"num_classes": len(images.classes), "image_size": images.image_size}
    return hub.describe(
        model,
        mean=images.mean,
        std=images.std,
        interpolation="bilinear",
        crop_pct=images.crop_pct,
        label_names=images.classes,
    )


@contextmanager
def mistakes() -> Iterator[None]:
    """What the layers and data sets refuse as a value is, in a run's setting up, the user's to mend."""
    try:
        yield
    except (ValueError, FileNotFoundError, NotADirectoryError) as error:
        raise UserError(str(error)) from error


def _prepare(recipe: Recipe, task: Task, out: str | Path | None, resume: bool, model: dict[str, Any]) -> Path:
    """The run's folder, made and described; the run there, checked, on resume."""
    folder = Path(out) if out is not None else next_folder(recipe.model.name)
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
    elif checkpoint.checkpoints(folder / "checkpoints"):
        raise UserError(f"{folder} holds a run already: go on with --resume, or choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "recipe.yaml", dump_recipe(recipe).encode())
    names: dict[str, Any] = {"classes": task.held_out.classes}
    if isinstance(task, Detection):
        names["category_ids"] = task.held_out.category_ids
    for name, content in ((MODEL, model), ("environment.json", environment()), ("classes.json", names)):
        write_atomic(folder / name, (json.dumps(content, indent=1) + "\n").encode())
    return folder


def _prepare_once(
    recipe: Recipe,
    task: Task,
    out: str | Path | None,
    resume: bool,
    everyone: World,
    model: dict[str, Any],
) -> Path:
    """`_prepare` by the first process; its folder, or its refusal, on every process."""
    box: list[Path | UserError | None] = [None]
    if everyone.rank == 0:
        try:
            box[0] = _prepare(recipe, task, out, resume, model)
        except UserError as error:
            box[0] = error
    if everyone.size > 1:
        dist.broadcast_object_list(box, src=0, device=everyone.device)
    if isinstance(box[0], UserError):
        raise box[0]
    assert box[0] is not None
    return box[0]
