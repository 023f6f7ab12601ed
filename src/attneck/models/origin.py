"""The record of how a model was made, and the same by timm's names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from attneck.imagenet import MEAN, STD
from attneck.models.options import FamilyOptions

if TYPE_CHECKING:
    from torch import nn

PREFIX = "attneck_"
"""Prefix of the catalog's names in timm's registry."""

FETCHING = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}
"""Arguments of timm's `create_model` that would fetch or read other files."""


@dataclass(frozen=True)
class Origin:
    """The arguments of `create_model` that make the same model again, without its weights.

    A run's model may be timm's (`timm/NAME`), and be changed by the function of `attneck.surgery` that is
    named, or by several joined by +, with their arguments as a recipe has them.
    """

    name: str
    num_classes: int
    image_size: tuple[int, int]
    in_chans: int
    options: dict[str, Any]
    surgery: str = "none"
    surgery_options: dict[str, Any] = field(default_factory=dict)


def pretrained_cfg(origin: Origin, options: FamilyOptions) -> dict[str, Any]:
    """A classifier's preprocessing, first conv and classifier, by the names of timm's `PretrainedCfg`.

    The normalisation is ImageNet's (the average over its channels if images are not RGB), and resizing is
    this project's. A model that was trained with another is saved with its own (`attneck.hub`).

    Args:
        options: the model's own, all of them.
    """
    rgb = origin.in_chans == 3
    small = max(origin.image_size) <= 64  # such data sets come cut to size
    return {
        "architecture": PREFIX + origin.name,
        "input_size": (origin.in_chans, *origin.image_size),
        "num_classes": origin.num_classes,
        "pool_size": options.last_map(origin.image_size),
        "mean": MEAN if rgb else (round(sum(MEAN) / 3, 3),) * origin.in_chans,
        "std": STD if rgb else (round(sum(STD) / 3, 3),) * origin.in_chans,
        "interpolation": "bilinear",
        "crop_pct": 1.0 if small else 0.875,
        "first_conv": options.first_conv,
        "classifier": options.classifier,
    }


def is_detector(model: Any) -> bool:
    """Whether it takes a list of images, and prepares them itself, as torchvision's detectors do.

    That goes by the kind of its `transform`: a classifier may have one of that name, which its images are
    prepared by.
    """
    kinds = type(getattr(model, "transform", None)).__mro__
    return any(kind.__name__ == "GeneralizedRCNNTransform" for kind in kinds)


def bare(model: nn.Module) -> nn.Module:
    """The model inside `torch.compile`, `DistributedDataParallel`, or an average of torch's or timm's."""
    from timm.utils.model_ema import ModelEmaV2, ModelEmaV3
    from torch.nn.parallel import DataParallel, DistributedDataParallel
    from torch.optim.swa_utils import AveragedModel

    if isinstance(model, (AveragedModel, ModelEmaV2, ModelEmaV3, DataParallel, DistributedDataParallel)):
        return bare(model.module)
    compiled = getattr(model, "_orig_mod", None)
    return bare(compiled) if compiled is not None else model
