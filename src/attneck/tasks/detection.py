"""Detection and instance segmentation: the detector's own losses, and the AP of what it finds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import to_tensor

from attneck.data import loader
from attneck.data.detection import (
    SIDES,
    DetectionDataset,
    check_same_classes,
    collate,
    floats,
    open_detection,
)
from attneck.data.sampling import EvalBatches, spread
from attneck.data.table import SETS, Rule
from attneck.detection.finite import all_finite, finite, finite_heads
from attneck.detection.metrics import Detections, coco_evaluators, coco_stats, voc_scores
from attneck.detection.precision_recall import Curve, coco_curves, voc_curves
from attneck.detection.results import to_coco_detections
from attneck.detection.score_tables import bam_coco_table, botnet_table, voc_table
from attneck.detection.transform import Transform
from attneck.detection.weights import load_weights
from attneck.errors import OVERFLOW, NotFinite, say
from attneck.models import catalog, create_model
from attneck.models.detector_options import DetectorOptions
from attneck.models.pretrained import follow, normalisation
from attneck.models.weights import Loaded
from attneck.tasks.task import Described, Evaluation, Facts, Found, Sample, Samples, class_name
from attneck.training.best import NOTHING
from attneck.training.distributed import World
from attneck.training.recipe import Recipe
from attneck.training.report import Watch, unseen

HEADLINE = ("AP", "AP50", "AP75", "APs", "APm", "APl")
"""Of COCO's scores, those of every record: at all, at half and at 0.75 of IoU; of objects by their size."""

PICTURED = 4
"""Held-out images that a run draws at its end."""
CROWDED = 0.05
"""The share of crowds in what is trained on over which it is said."""
EVAL_BATCH = 4  # masks of a hundred objects an image come at its full size

Targets = list[dict[str, Tensor]]


class DescribedObjects(Described):
    """What the source calls its classes too, and the normalisation of pretrained weights."""

    category_ids: list[int]
    mean: list[float] | None = None
    std: list[float] | None = None


class Detection:
    """The sum of a detector's losses; COCO's AP or VOC's mAP on held-out images, each looked at once.

    The data sets have masks where the detector has a mask head.

    Attributes:
        held_out: the data set that is scored, its images as they are in their files.

    The constructor also raises ValueError for the first annotation that does not fit its image.
    """

    finds_objects = True
    described = DescribedObjects
    collate = staticmethod(collate)
    last: Evaluation | None = None

    def __init__(self, recipe: Recipe, everyone: World) -> None:
        self.recipe, self.everyone = recipe, everyone
        self.entry = catalog.find(recipe.model.name, dict(recipe.model.options))
        assert isinstance(self.entry.options, DetectorOptions)  # as the row's task says
        self.options = self.entry.options
        self.masks = self.options.finds_masks
        self.image_size = recipe.data.image_size or self.entry.image_size
        self._check()
        data = recipe.data
        self.held_out = open_detection(
            data.name,
            data.val_split,
            root=data.root,
            image_size=self.image_size if SETS[data.name].drawn else None,
            masks=self.masks,
            size=data.val_size,
            md5=data.md5 or None,
            max_pixels=data.max_pixels,
            val_share=data.val_share,
            crop_pct=data.crop_pct,
            interpolation=data.interpolation,
        )

    @cached_property
    def training(self) -> DetectionDataset:
        """The data set that is trained on.

        Raises ValueError where its classes are not the held-out images', and where it has nothing to find.
        """
        data = self.recipe.data
        # SSD brings whole images to its size by itself, and in evaluation the same way.
        squares = not self.options.resizes or data.augment in SIDES
        opened = open_detection(
            data.name,
            data.train_split,
            root=data.root,
            image_size=self.image_size if squares or SETS[data.name].drawn else None,
            masks=self.masks,
            seed=self.recipe.seed,
            size=data.train_size,
            max_pixels=data.max_pixels,
            val_share=data.val_share,
            on_bad_image=None if data.on_bad_image == "stop" else data.on_bad_image,
            **data.augmentation(),
        )
        if (name := self.recipe.model.pretrained) is not None:
            opened.pad_with(normalisation(name)[0])
        check_same_classes({data.train_split: opened.classes, data.val_split: self.held_out.classes})
        records = map(opened.record, range(len(opened)))
        chosen = ((record, record.trained_on()) for record in records)
        if not any(record.with_pixels(kept) if self.masks else kept for record, kept in chosen):
            raise ValueError(
                f"{data.name}: no object in the {len(opened):,} images of {data.train_split} is trained on: "
                "there are none, or they are crowds (iscrowd 1), difficult, boxes of no size, or masks "
                f"without a pixel; attneck data check {data.name} counts them"
            )
        for count, what in ((opened.dropped, "boxes of no size"), (opened.blank, "masks without a pixel")):
            if count and self.everyone.rank == 0:
                say(
                    f"{data.name}: {count:,} objects of {data.train_split} have {what}: they are not "
                    "trained on"
                )
        crowds, objects = opened.crowds
        if crowds > CROWDED * objects and self.everyone.rank == 0:
            say(
                f"{data.name}: {crowds:,} of {objects:,} objects of {data.train_split} are crowds (iscrowd "
                "1): they are not trained on. Some tools write a brush's masks so: set iscrowd to 0 where "
                "they are single objects"
            )
        held_out = self.held_out
        if self.everyone.rank == 0 and not any(held_out.record(i).trained_on() for i in range(len(held_out))):
            say(
                f"{data.name}: there is nothing to find in the {len(held_out):,} images of {data.val_split}, "
                "every score will be -1: no checkpoint is kept as the best, and patience ends nothing"
            )
        return opened

    def _check(self) -> None:
        """ValueError for a part of the recipe that would be passed over, or fail in the first step."""
        recipe = self.recipe
        if recipe.model.surgery != "none" or recipe.model.surgery_options:
            raise ValueError(
                "model.surgery and its options are for classifiers: change a detector's backbone in "
                "Python (attneck.detection.rcnn.mask_rcnn takes any), or choose one that has the attention"
            )
        if recipe.data.image_sizes is not None:
            raise ValueError(
                "data.image_sizes is of classifiers: leave it out, and give data.augment scale_jitter for "
                "images of other scales"
            )
        if recipe.label_smoothing:
            raise ValueError("label_smoothing is of classifiers; a detector's losses have none: leave it out")
        share = recipe.batch // (recipe.accumulate * self.everyone.size)
        synchronised = recipe.sync_bn and self.everyone.size > 1
        if share < self.options.least_images and not synchronised:
            raise ValueError(
                f"{recipe.model.name} wants {self.options.least_images} images or more at a time, since one "
                "gives a BatchNorm one value a channel, which has no variance: give a greater batch, or a "
                "smaller accumulate"
            )
        if self.options.needs_weights and (recipe.model.weights or recipe.model.pretrained) is None:
            raise ValueError(
                "model.options freeze_norms keeps the backbone's BatchNorms as they were loaded, and nothing "
                "is loaded: give model.weights or model.pretrained, or freeze_norms False"
            )

    def calibration(self, count: int) -> Iterator[Any]:
        """Refused: a detector resizes its images itself."""
        raise ValueError(
            "statistics are taken anew of classifiers alone; of a detector's images give "
            "attneck.layers.recalibrate batches of your own"
        )

    def describe(self) -> Facts:
        """Classes of the held-out images, and what the source itself calls them; the side of training's.

        The normalisation too, where it is that of pretrained weights.
        """
        images, name = self.held_out, self.recipe.model.pretrained
        means = (
            {} if name is None else dict(zip(("mean", "std"), map(list, normalisation(name)), strict=True))
        )
        return {
            "classes": list(images.classes),
            "category_ids": list(images.category_ids),
            "image_size": self.image_size,
            **means,
        }

    def _here(self, batch: tuple[list[Tensor], Targets]) -> tuple[list[Tensor], Targets]:
        device = self.everyone.device
        images, targets = batch
        return (
            [floats(image.to(device, non_blocking=True)) for image in images],
            [{key: value.to(device, non_blocking=True) for key, value in one.items()} for one in targets],
        )

    def loss(self, model: nn.Module, batch: tuple[list[Tensor], Targets]) -> tuple[Tensor, dict[str, Tensor]]:
        """batch: images [3, H, W] uint8 and their targets → the sum of the losses, and each by its name."""
        losses: dict[str, Tensor] = model(*self._here(batch))
        named = {f"loss_{name.removeprefix('loss_')}": loss.detach() for name, loss in losses.items()}
        return torch.stack([*losses.values()]).sum(), named

    def evaluate(self, model: nn.Module, watch: Watch = unseen) -> dict[str, float]:
        """`headline` of what `model` finds."""
        found = self.report(model, watch)
        # What is kept from one evaluation to the next is what the run's pictures need.
        chosen = spread(len(self.held_out), min(PICTURED, len(self.held_out)), "the held-out images")
        ids = {self.held_out.record(index).id for index in chosen.tolist()}
        self.last = replace(
            found, detections=[row for row in found.detections or [] if row["image_id"] in ids]
        )
        return found.scores

    def report(self, model: nn.Module, watch: Watch = unseen) -> Evaluation:
        """`headline`, all scores, and what `model` finds."""
        data = self.recipe.data
        self.last = report(
            model,
            self.held_out,
            self.everyone,
            SETS[data.name].kinds["detection"].ap[data.val_split],
            data.workers,
            watch,
        )
        return self.last

    def samples(self, count: int) -> Samples:
        """Held-out images as they are in their files, with their objects."""
        return Samples(spread(len(self.held_out), count, "the held-out images").tolist(), self.sample)

    def sample(self, index: int) -> Sample:
        """A held-out image as it is in its file, with its objects."""
        names = dict(zip(self.held_out.category_ids, self.held_out.classes, strict=True))
        pixels, record = self.held_out.read(index)
        rows = self.held_out.annotations(record)
        truth = [row | {"category": names[row["category_id"]]} for row in rows]
        return Sample(record.file, Image.fromarray(pixels), truth)

    @staticmethod
    def metrics(recipe: Recipe) -> tuple[str, ...]:
        """Of `headline`; masks' only where the detector has a mask head."""
        if SETS[recipe.data.name].kinds["detection"].ap[recipe.data.val_split] != "coco":
            return ("mAP",)
        options = catalog.find(recipe.model.name, dict(recipe.model.options)).options
        kinds = ("box", "mask") if isinstance(options, DetectorOptions) and options.finds_masks else ("box",)
        return tuple(f"{kind}_{score}" for kind in kinds for score in HEADLINE)

    @staticmethod
    def build(recipe: Recipe, facts: Facts, image_size: int | tuple[int, int] | None = None) -> nn.Module:
        """The recipe's model, for the classes of its data beside the background; their names stay with it.

        Raises ValueError for a name or an option that does not exist or does not fit.
        """
        name, options = recipe.model.name, dict[str, Any](recipe.model.options)
        catalog.find(name, options)  # refuses what is no option of the family
        size = image_size or facts["image_size"]
        model: Any = create_model(name, num_classes=len(facts["classes"]) + 1, image_size=size, **options)
        # What attneck.hub and the exports write.
        model.pretrained_cfg = {"label_names": ("background", *facts["classes"])}
        if recipe.compile and isinstance(model.transform, Transform):
            model.transform.whole = True  # one compiled form for all batches
        if "mean" in facts:
            follow(model, facts["mean"], facts["std"])
        built: nn.Module = model
        return built

    @staticmethod
    def start(model: nn.Module, weights: Mapping[str, Tensor]) -> Loaded:
        """Put in a backbone's weights, or another detector's, where they fit by name and shape."""
        return load_weights(model, weights)

    @staticmethod
    def prepared(image: Image.Image, facts: Facts) -> Tensor:
        """From 0 to 1, in its own size: [3, H, W]. The detector resizes and normalises it."""
        pixels: Tensor = to_tensor(image.convert("RGB"))
        return pixels

    @staticmethod
    def predict(model: nn.Module, image: Image.Image, facts: Facts, min_score: float = 0.0) -> Found:
        """Objects as COCO's results, in the image's pixels, with the name of their class.

        Raises NotFinite for scores or boxes that are not, before the detector drops them.
        """
        pixels = Detection.prepared(image, facts).to(next(model.parameters()).device)  # [3, H, W]
        with finite(model):
            outputs = model([pixels])
        rows = to_coco_detections(outputs, [{"image_id": torch.tensor(0)}], facts["category_ids"], min_score)
        labels = {number: label for label, number in enumerate(facts["category_ids"])}
        return [row | {"category": class_name(facts["classes"], labels[row["category_id"]])} for row in rows]

    @staticmethod
    def tables(evaluations: Mapping[str, Evaluation]) -> str:
        """The papers' tables: BAM's 4b of VOC, else BoTNet's 2, and BAM's 4a where there are no masks."""
        details = {name: one.details for name, one in evaluations.items()}
        if any("mAP" in row for row in details.values()):
            return voc_table(
                {name: (row["mAP"], row["classes"]) for name, row in details.items()}, classes=True
            )
        found = botnet_table(details, sizes=True)
        with_masks = any("segm" in row for row in details.values())
        return found if with_masks else f"{found}\n\n{bam_coco_table(details)}"


def detect(
    model: nn.Module,
    images: DetectionDataset,
    everyone: World,
    workers: int | None = None,
    watch: Watch = unseen,
) -> Detections:
    """What `model` finds on all images, each looked at by one process, as COCO's results.

    Raises NotFinite for scores or boxes that are not, on all processes alike.
    """
    batches = EvalBatches(len(images), EVAL_BATCH, rank=everyone.rank, world=everyone.size)
    found: Detections = []
    broken = 0
    with finite_heads(model) as heads:
        for batch, targets in watch(loader(images, batches, workers, collate)):
            outputs = model([floats(image.to(everyone.device, non_blocking=True)) for image in batch])
            if all_finite(heads):
                found += to_coco_detections(outputs, targets, images.category_ids)
            else:
                broken += len(batch)
    (among,) = everyone.total([broken])
    if among:
        raise NotFinite(
            f"{among:.0f} of {len(images)} images were in batches with scores or boxes that are not finite: "
            f"{OVERFLOW}"
        )
    return everyone.joined(found)


def score(
    images: DetectionDataset, detections: Detections, rule: Rule
) -> tuple[dict[str, Any], dict[str, list[Curve]]]:
    """All scores, fractions: by COCO's rule `coco_stats` of boxes and, where the set has them, of masks; by
    VOC's "mAP" and "classes". And the precision by recall of each class."""
    truth = images.ground_truth()
    if rule == "coco":
        evaluators = coco_evaluators(truth, detections, ("bbox", "segm") if images.masks else ("bbox",))
        scores = {kind: coco_stats(evaluator) for kind, evaluator in evaluators.items()}
        return scores, coco_curves(truth, evaluators)
    mean, classes = voc_scores(truth, detections, rule)
    return {"mAP": mean, "classes": classes}, voc_curves(truth, detections, rule)


def report(
    model: nn.Module,
    images: DetectionDataset,
    everyone: World,
    rule: Rule,
    workers: int | None = None,
    watch: Watch = unseen,
) -> Evaluation:
    """`headline`, all scores, and what `model`, in evaluation mode, finds."""
    found = detect(model, images, everyone, workers, watch)
    scores, curves = score(images, found, rule)
    return Evaluation(len(images), headline(scores), scores, found, curves=curves)


def headline(scores: dict[str, Any]) -> dict[str, float]:
    """The scores of a record, in per cent: `HEADLINE` of boxes and of masks (box_AP, mask_APs …); or mAP.

    -1 where there was nothing to find.

    Args:
        scores: those of `score`, from 0 to 1.
    """
    if "mAP" in scores:
        shares = {"mAP": scores["mAP"]}
    else:
        kinds = {"bbox": "box", "segm": "mask"}
        shares = {f"{kinds[kind]}_{key}": row[key] for kind, row in scores.items() for key in HEADLINE}
    return {name: 100 * share if share >= 0 else NOTHING for name, share in shares.items()}
