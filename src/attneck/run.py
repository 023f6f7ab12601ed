"""A recipe becomes a run: model, data, task and the loop. What `attneck.train` and the commands share."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from attneck import hub
from attneck.data import ClassificationDataset, loader, open_dataset
from attneck.data.sampling import EvalBatches, TrainBatches
from attneck.errors import UserError
from attneck.files import write_atomic
from attneck.models import catalog, create_model
from attneck.training import checkpoint, loop
from attneck.training.distributed import World, world
from attneck.training.folder import next_folder
from attneck.training.recipe import Data, Recipe, differences, dump_recipe, parse_recipe

EVAL_BATCH = 500
MODEL = "model.json"
"""What `describe` said of a run's model."""


@dataclass(frozen=True)
class Summary:
    """How a run ended."""

    folder: Path
    steps: int
    scores: dict[str, Any]
    weights: str  # digest of the state dict


class Classification:
    """Cross-entropy with label smoothing; top-1 and top-5 on held-out images, each counted once."""

    def __init__(self, held_out: ClassificationDataset, recipe: Recipe, everyone: World) -> None:
        self.held_out, self.recipe, self.everyone = held_out, recipe, everyone

    def _images(self, images: Tensor) -> Tensor:
        device, last = self.everyone.device, self.recipe.channels_last
        form = torch.channels_last if last else torch.contiguous_format
        return images.to(device, non_blocking=True, memory_format=form)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """batch: images [B, 3, H, W], labels [B] → the mean loss, and top-1 in per cent."""
        images, labels = self._images(batch[0]), batch[1].to(self.everyone.device, non_blocking=True)
        logits = model(images).float()  # [B, classes]
        loss = F.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)
        return loss, {"top1": 100 * (logits.detach().argmax(1) == labels).float().mean()}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Mean cross-entropy, top-1 and top-5 in per cent, over every held-out image of every process."""
        batches = EvalBatches(
            len(self.held_out), EVAL_BATCH, rank=self.everyone.rank, world=self.everyone.size
        )
        sums = torch.zeros(4, dtype=torch.float64)  # images, loss, top-1, top-5
        for images, labels in loader(self.held_out, batches, self.recipe.data.workers):
            logits = model(self._images(images)).float().cpu()
            best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]  # [B, 5]
            loss = F.cross_entropy(logits, labels, reduction="sum")
            counts = [len(labels), float(loss), int(best[:, 0].sum()), int(best.sum())]
            sums += torch.tensor(counts, dtype=torch.float64)
        count, loss_sum, top1, top5 = self.everyone.total(sums.tolist())
        return {"loss": loss_sum / count, "top1": 100 * top1 / count, "top5": 100 * top5 / count}


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
            training, held_out = datasets(recipe.data, recipe.seed)
            batches_from(0, training, recipe, everyone)  # refuses a batch that does not divide
            torch.manual_seed(recipe.seed)
            model = build(recipe, training)
        folder = _prepare_once(recipe, out, resume, everyone, describe(model, training))

        progress, average = loop.fit(
            model,
            Classification(held_out, recipe, everyone),
            lambda step: iter(batches_from(step, training, recipe, everyone)),
            recipe,
            folder,
            everyone,
            steps_per_epoch=len(training) // recipe.batch,
            resume=resume,
        )
        best = average.module if average is not None else model
        summary = Summary(folder, progress.step, progress.history[-1], checkpoint.digest(best.state_dict()))
        if everyone.rank == 0:
            document = {"steps": summary.steps, **summary.scores, "weights": summary.weights}
            write_atomic(folder / "summary.json", (json.dumps(document, indent=1) + "\n").encode())
        return summary


def batches_from(
    step: int, training: ClassificationDataset, recipe: Recipe, everyone: World
) -> DataLoader[tuple[Tensor, Tensor]]:
    """This process's batches from optimiser step `step` to the recipe's last."""
    batches = TrainBatches(
        len(training),
        recipe.batch,
        seed=recipe.seed,
        rank=everyone.rank,
        world=everyone.size,
        accumulate=recipe.accumulate,
        start=step,
        steps=recipe.epochs * (len(training) // recipe.batch),
    )
    return loader(training, batches, recipe.data.workers)


def evaluate(run: str | Path, data: Data | None = None) -> dict[str, Any]:
    """Top-1, top-5 and error in per cent of a run's newest checkpoint, for its weights and their average.

    Args:
        data: another place or form of the data than the run's own.

    Raises:
        UserError: no run there, or none of its checkpoints is whole; data that is not there.
    """
    folder = Path(run)
    state, _, _ = checkpoint.load_latest(folder / "checkpoints")
    recipe = parse_recipe(state["recipe"], str(folder))
    with world() as everyone:
        with mistakes():
            _, held_out = datasets(data or recipe.data, recipe.seed)
            model = build(recipe, held_out)
        model.load_state_dict(state["model"])
        model.to(everyone.device)
        if recipe.channels_last:
            model.to(memory_format=torch.channels_last)
        average = None
        if state["average"] is not None:
            average = loop.average_of(model, recipe.ema)
            average.load_state_dict(state["average"])
        scores = loop.evaluate(
            Classification(held_out, recipe, everyone), model, average, recipe, everyone.device
        )
    for key in [key for key in scores if key.endswith("top1")]:
        scores[key.replace("top1", "error")] = 100 - scores[key]
    return {
        "run": str(folder),
        "model": recipe.model.name,
        "step": state["step"],
        "images": len(held_out),
        **scores,
    }


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


def describe(model: nn.Module, dataset: ClassificationDataset) -> dict[str, Any]:
    """How to make `model`, and the images that it is for, as JSON has them."""
    return hub.describe(
        model,
        mean=dataset.mean,
        std=dataset.std,
        interpolation="bilinear",
        crop_pct=dataset.crop_pct,
        label_names=dataset.classes,
    )


def datasets(data: Data, seed: int) -> tuple[ClassificationDataset, ClassificationDataset]:
    """The training and the held-out part of what `data` names."""
    common: dict[str, Any] = {"root": data.root, "image_size": data.image_size, "seed": seed}
    if data.md5:
        common["md5"] = dict.fromkeys(("train", "test", "meta"), data.md5)
    training = open_dataset(
        data.name,
        "train",
        augment=data.augment,
        size=data.train_size,
        randaugment_layers=data.randaugment_layers,
        randaugment_magnitude=data.randaugment_magnitude,
        **common,
    )
    return training, open_dataset(data.name, "val", **common)


def build(recipe: Recipe, dataset: ClassificationDataset) -> nn.Module:
    """The recipe's model, for the classes and the size of `dataset`."""
    options: dict[str, Any] = dict(recipe.model.options)
    catalog.find(recipe.model.name, options)  # refuses what is no option of the family
    return create_model(
        recipe.model.name, num_classes=len(dataset.classes), image_size=dataset.image_size, **options
    )


@contextmanager
def mistakes() -> Iterator[None]:
    """What the layers and data sets refuse as a value is, in a run's setting up, the user's to mend."""
    try:
        yield
    except (ValueError, FileNotFoundError, NotADirectoryError) as error:
        raise UserError(str(error)) from error


def _prepare(recipe: Recipe, out: str | Path | None, resume: bool, model: dict[str, Any]) -> Path:
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
    for name, document in ((MODEL, model), ("environment.json", environment())):
        write_atomic(folder / name, (json.dumps(document, indent=1) + "\n").encode())
    return folder


def _prepare_once(
    recipe: Recipe, out: str | Path | None, resume: bool, everyone: World, model: dict[str, Any]
) -> Path:
    """`_prepare` by the first process; its folder, or its refusal, on every process."""
    box: list[Path | UserError | None] = [None]
    if everyone.rank == 0:
        try:
            box[0] = _prepare(recipe, out, resume, model)
        except UserError as error:
            box[0] = error
    if everyone.size > 1:
        dist.broadcast_object_list(box, src=0, device=everyone.device)
    if isinstance(box[0], UserError):
        raise box[0]
    assert box[0] is not None
    return box[0]


def environment() -> dict[str, Any]:
    """The versions, the machine and the command that a run's figures hang on."""
    packages = ("attneck", "torch", "torchvision", "timm", "numpy")
    return {
        "command": " ".join(["attneck", *sys.argv[1:]]),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "processes": int(os.environ.get("WORLD_SIZE", 1)),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return names[0].partition(":")[2].strip() if names else platform.processor()
