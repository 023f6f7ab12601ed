"""Classification of whole images: cross-entropy, top-1 and top-5."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from attneck.checks import sides
from attneck.data import ClassificationDataset, Normalise, collate, loader, open_dataset
from attneck.data.readers.folder import resize_and_centre
from attneck.data.sampling import EvalBatches, order, spread
from attneck.errors import OVERFLOW, NotFinite, shown_path
from attneck.models import catalog, create_model, pretrained
from attneck.models.origin import Origin
from attneck.models.renamed import renamed
from attneck.models.weights import Loaded, load_matching, read_weights
from attneck.surgery import Adoption
from attneck.surgery.by_name import operate
from attneck.tasks.confusion import Tally
from attneck.tasks.of_timm import of_timm
from attneck.tasks.ranking import area
from attneck.tasks.task import Described, Evaluation, Facts, Found, Sample, Samples, class_name
from attneck.training.distributed import World
from attneck.training.recipe import TIMM, Model, Recipe
from attneck.training.report import Watch, unseen

EVAL_BATCH, EVAL_PIXELS = 500, 500 * 224**2
"""Images in a batch of an evaluation, and their pixels, at most; and no more than eight training batches, or
32 images: larger ones would want more memory than a training batch does."""
BILINEAR = "bilinear"
"""How images are resized where nothing else is said."""
CALIBRATION_BATCH = 64
"""Images in a batch whose statistics are taken."""


class DescribedImages(Described):
    """Normalisation and evaluation crop too; and how images are resized, if not bilinearly."""

    mean: list[float]
    std: list[float]
    crop_pct: float
    interpolation: str | None = None


class Classification:
    """Cross-entropy with label smoothing; top-1 and top-5 on held-out images, each counted once."""

    finds_objects = False
    described = DescribedImages
    collate = staticmethod(collate)
    last: Evaluation | None = None

    def __init__(self, recipe: Recipe, everyone: World) -> None:
        self.recipe, self.everyone = recipe, everyone
        self.held_out = self._open(recipe.data.val_split, size=recipe.data.val_size)
        if len(names := self.held_out.classes) < 2:
            raise ValueError(
                f"{recipe.data.name}: all images are of one class, {', '.join(names)}, so every answer is "
                "right: give a data.root in which each class has a folder of its own"
            )
        self._normalise = Normalise(self.held_out.mean, self.held_out.std).to(everyone.device)

    @cached_property
    def training(self) -> ClassificationDataset:
        """The data set that is trained on; ValueError where train_size leaves a class's folder out."""
        data = self.recipe.data
        opened = self._trained_on(**data.augmentation())
        for side in data.image_sizes or ():
            opened.at(side)  # refuses one that they cannot have
        if data.name == "folder" and data.train_size is not None:  # its images lie class by class
            kept = {*opened.labels.tolist()}
            if lacking := [name for label, name in enumerate(opened.classes) if label not in kept]:
                raise ValueError(
                    f"folder: data.train_size {data.train_size} leaves {shown_path(lacking[0])} no training "
                    f"image{f', and {len(lacking) - 1} more classes' * (len(lacking) > 1)}: give a larger one"
                )
        return opened

    def _trained_on(self, **options: Any) -> ClassificationDataset:
        data = self.recipe.data
        skips = None if data.on_bad_image == "stop" else data.on_bad_image
        return self._open(data.train_split, size=data.train_size, on_bad_image=skips, **options)

    def _open(self, split: str, **options: Any) -> ClassificationDataset:
        data = self.recipe.data
        opened = open_dataset(
            data.name,
            split,
            problem=data.problem,
            root=data.root,
            image_size=data.image_size,
            seed=self.recipe.seed,
            md5=data.md5 or None,
            max_pixels=data.max_pixels,
            val_share=data.val_share,
            crop_pct=data.crop_pct,
            interpolation=data.interpolation,
            **options,
        )
        if (name := self.recipe.model.pretrained) is not None:
            opened.normalise(*pretrained.normalisation(name))
        return opened

    def describe(self) -> Facts:
        """Classes, size, normalisation, evaluation crop and interpolation of the held-out images."""
        images, way = self.held_out, self.recipe.data.interpolation
        return {
            "classes": list(images.classes),
            "image_size": images.image_size,
            "mean": list(images.mean),
            "std": list(images.std),
            "crop_pct": images.crop_pct,
            **({} if way is None else {"interpolation": way}),
        }

    def normalised(self, images: Tensor) -> Tensor:
        """uint8 images [B, 3, H, W] → normalised on the device, in the recipe's memory format."""
        found: Tensor = self._normalise(images.to(self.everyone.device, non_blocking=True))
        return found if self.recipe.channels_last else found.contiguous()

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """batch: images [B, 3, H, W] uint8, labels [B] → the mean loss, and top-1 in per cent."""
        images, labels = self.normalised(batch[0]), batch[1].to(self.everyone.device, non_blocking=True)
        logits = model(images).float()  # [B, classes]
        loss = F.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)
        return loss, {"top1": 100 * (logits.detach().argmax(1) == labels).float().mean()}

    def evaluate(self, model: nn.Module, watch: Watch = unseen) -> dict[str, float]:
        """Mean cross-entropy, top-1 and top-5 in per cent, over every held-out image of every process."""
        scores = self.report(model, watch).scores
        return {name: scores[name] for name in ("loss", "top1", "top5")}

    def report(self, model: nn.Module, watch: Watch = unseen) -> Evaluation:
        """`evaluate`, the top-1 error in per cent, and what is taken for what: see `report`."""
        trained = self.recipe.batch // (self.recipe.accumulate * self.everyone.size)  # images at a time
        self.last = report(
            model,
            self.held_out,
            self.everyone,
            self.normalised,
            most=max(32, 8 * trained),
            workers=self.recipe.data.workers,
            watch=watch,
        )
        return self.last

    def calibration(self, count: int) -> Iterator[Tensor]:
        """Batches [B, 3, H, W] of so many training images, seen as held-out images are, in no order.

        Raises ValueError where there are fewer, or none.
        """
        try:
            images = self._trained_on(augment="none")
        except (ValueError, FileNotFoundError) as error:
            raise ValueError(f"recalibrate wants training images: {error}") from error
        if count > len(images):
            raise ValueError(f"recalibrate={count}: there are {len(images)} training images, give fewer")
        chosen = spread(len(images), count, self.recipe.data.name)[order(self.recipe.seed, 0, count).numpy()]
        # Of about one size, so that none has a single image; the same for any number of processes.
        parts = np.array_split(chosen, -(-count // max(4, at_once(images, CALIBRATION_BATCH))))
        batches: Any = [[(0, index) for index in part.tolist()] for part in parts]
        for batch, _ in loader(images, batches, self.recipe.data.workers, collate):
            yield self.normalised(batch)

    def samples(self, count: int) -> Samples:
        """Held-out images, with their class."""
        return Samples(spread(len(self.held_out), count, "the held-out images").tolist(), self.sample)

    def sample(self, index: int) -> Sample:
        """A held-out image before it is resized and cut, with its class; its file, where it has one."""
        images = self.held_out
        paths: Sequence[object] | None = getattr(images, "paths", None)
        return Sample(
            f"{self.recipe.data.val_split}-{index}" if paths is None else str(paths[index]),
            images.whole(index),
            [{"category": images.classes[int(images.labels[index])]}],
        )

    @staticmethod
    def metrics(recipe: Recipe) -> tuple[str, ...]:
        """Of `evaluate`."""
        return "top1", "top5", "loss"

    @staticmethod
    def build(recipe: Recipe, facts: Facts, image_size: int | tuple[int, int] | None = None) -> nn.Module:
        """The recipe's model; what it is told of its images is in its `pretrained_cfg`, as timm has it.

        Raises ValueError for a name, an option or a surgery that does not exist or does not fit.
        """
        model: Any = build_classifier(recipe.model, len(facts["classes"]), image_size or facts["image_size"])
        # What attneck.hub and the exports write.
        model.pretrained_cfg = dict(model.pretrained_cfg) | {
            "input_size": (model.origin.in_chans, *model.origin.image_size),
            "mean": tuple(facts["mean"]),
            "std": tuple(facts["std"]),
            "interpolation": facts.get("interpolation", BILINEAR),
            "crop_pct": facts["crop_pct"],
            "crop_mode": "center",
            "label_names": tuple(facts["classes"]),
        }
        built: nn.Module = model
        return built

    @staticmethod
    def start(model: nn.Module, weights: Mapping[str, Tensor]) -> Loaded:
        """Put in what fits by name and shape; what surgery adopted has its old names too."""
        reports: Any = getattr(model, "surgery_reports", ())
        for report in reports:
            if isinstance(report, Adoption):
                given = renamed(read_weights(weights), model)
                if report.is_in(given):
                    weights = given.named(report.converted(given))
        return load_matching(model, weights)

    @staticmethod
    def prepared(image: Image.Image, facts: Facts) -> Tensor:
        """Resized, cut and normalised as held-out images are: [3, H, W]."""
        way = facts.get("interpolation", BILINEAR)
        cut = resize_and_centre(image.convert("RGB"), facts["image_size"], facts["crop_pct"], way)
        pixels = torch.from_numpy(np.array(cut)).permute(2, 0, 1)  # [3, H, W]
        normalised: Tensor = Normalise(facts["mean"], facts["std"])(pixels[None])
        return normalised[0].contiguous()

    @staticmethod
    def predict(
        model: nn.Module, image: Image.Image, facts: Facts, min_score: float = 0.0, top_k: int = 5
    ) -> Found:
        """The likeliest classes, `top_k` at most, with their probability.

        The image is resized, cut and normalised as held-out images are. Raises NotFinite for logits that are
        not.
        """
        pixels = Classification.prepared(image, facts)[None]  # [1, 3, H, W]
        device = next(model.parameters()).device
        logits = model(pixels.to(device))[0]
        found = likeliest(logits, facts["classes"], top_k)
        return [{"category": name, "score": score} for name, score in found if score >= min_score]

    @staticmethod
    def tables(evaluations: Mapping[str, Evaluation]) -> str:
        """A line for each."""
        return "\n".join(f"{name:14} {_said(one)}" for name, one in evaluations.items())


def report(
    model: nn.Module,
    images: ClassificationDataset,
    everyone: World,
    prepare: Callable[[Tensor], Tensor],
    *,
    most: int,
    workers: int | None = None,
    watch: Watch = unseen,
) -> Evaluation:
    """What all images say of `model`, in evaluation mode: the mean cross-entropy, top-1 and top-5, each in
    per cent, the top-1 error, and what is taken for what.

    Of two classes also "auc", the area under the ROC curve in per cent: what is right whatever the threshold
    between them.

    Args:
        prepare: uint8 images [B, 3, H, W] → what `model` takes, on its device.
        most: images at a time, of `EVAL_BATCH` and `EVAL_PIXELS` at most.

    Raises:
        NotFinite: logits that are not, on all processes alike.
    """
    batches = EvalBatches(len(images), at_once(images, most), rank=everyone.rank, world=everyone.size)
    sums = torch.zeros(5, dtype=torch.float64)  # images, loss, top-1, top-5, images of infinite logits
    tally = Tally(list(images.classes))
    two = len(images.classes) == 2
    margins: list[tuple[float, int]] = []  # how far the second class is above the first, and the label
    watched = watch(loader(images, batches, workers, collate))
    for (batch, labels), keys in zip(watched, batches, strict=True):
        logits = model(prepare(batch)).float().cpu()
        likeliest = logits.topk(min(5, logits.shape[1]), dim=1).indices  # [B, 5]
        shares = logits.softmax(1).gather(1, likeliest[:, :1])[:, 0]
        tally.add(keys, labels, likeliest[:, 0], shares)
        if two:
            margins += zip((logits[:, 1] - logits[:, 0]).tolist(), labels.tolist(), strict=True)
        best = likeliest == labels[:, None]
        loss = F.cross_entropy(logits, labels, reduction="sum")
        counts = [len(labels), float(loss), int(best[:, 0].sum()), int(best.sum())]
        counts.append(int((~logits.isfinite()).any(1).sum()))
        sums += torch.tensor(counts, dtype=torch.float64)
    count, loss_sum, top1, top5, broken = everyone.total(sums.tolist())
    if broken:
        raise NotFinite(f"{broken:.0f} of {count:.0f} images have logits that are not finite: {OVERFLOW}")
    scores = {"loss": loss_sum / count, "top1": 100 * top1 / count, "top5": 100 * top5 / count}
    scores["error"] = 100 - scores["top1"]
    if two and (auc := area(*zip(*everyone.joined(margins), strict=True))) is not None:
        scores["auc"] = auc
    return Evaluation(len(images), scores, confusion=tally.total(everyone))


def at_once(images: ClassificationDataset, most: int) -> int:
    """Images in a batch without gradients: `most`, `EVAL_BATCH` and `EVAL_PIXELS` at most."""
    return max(1, min(EVAL_BATCH, EVAL_PIXELS // images.image_size**2, most))


def _said(one: Evaluation) -> str:
    """Its scores in words; of five classes and fewer the top-5 says nothing."""
    scores = one.scores
    few = one.confusion is not None and len(one.confusion.classes) <= 5
    return (
        f"top-1 {scores['top1']:.2f} %  "
        + ("" if few else f"top-5 {scores['top5']:.2f} %  ")
        + f"error {scores['error']:.2f} %  loss {scores['loss']:.4f}"
        + (f"  AUC {scores['auc']:.2f} %" if "auc" in scores else "")
    )


def likeliest(logits: Tensor, classes: Sequence[str], most: int) -> list[tuple[str, float]]:
    """The names of the likeliest classes, `most` at most, with their probability; logits [classes].

    Raises NotFinite for logits that are not.
    """
    if not logits.isfinite().all():
        raise NotFinite(f"an image has logits that are not finite: {OVERFLOW}")
    scores, labels = logits.float().softmax(0).topk(min(most, len(logits)))
    return [
        (class_name(classes, label), score)
        for score, label in zip(scores.tolist(), labels.tolist(), strict=True)
    ]


def build_classifier(recipe: Model, num_classes: int, image_size: int | tuple[int, int]) -> nn.Module:
    """The model that a recipe names, changed as it says; what was changed is in its `surgery_reports`.

    Its `origin` says what it was made from.

    Raises ValueError for a name, an option or a surgery that does not exist or does not fit.
    """
    options: dict[str, Any] = dict(recipe.options)
    network: Any
    if recipe.name.startswith(TIMM):
        size = sides("image_size", image_size)
        network, options = of_timm(
            recipe.name.removeprefix(TIMM),
            num_classes,
            options,
            size,
            resized_later=recipe.surgery.partition("+")[0] == "adopt",
        )
        network.origin = Origin(recipe.name, num_classes, size, 3, options)
    else:
        catalog.find(recipe.name, options)  # refuses what is no option of the family
        network = create_model(recipe.name, num_classes=num_classes, image_size=image_size, **options)
    if recipe.surgery == "none":
        if recipe.surgery_options:
            raise ValueError(
                "model.surgery_options would change nothing without model.surgery: leave them out"
            )
        plain: nn.Module = network
        return plain
    network.surgery_reports = operate(network, recipe.surgery, recipe.surgery_options, image_size)
    network.origin = dataclasses.replace(
        network.origin, surgery=recipe.surgery, surgery_options=dict(recipe.surgery_options)
    )
    changed: nn.Module = network
    return changed
