"""What a model was made from, and how timm writes such things down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attneck.models.options import FamilyOptions

if TYPE_CHECKING:
    from torch import nn

PREFIX = "attneck_"
"""Stands before the catalog's names where they are among timm's."""


@dataclass(frozen=True)
class Origin:
    """The arguments of `create_model` that make a model anew, but for its weights."""

    name: str
    num_classes: int
    image_size: tuple[int, int]
    in_chans: int
    options: dict[str, Any]


def pretrained_cfg(origin: Origin, options: FamilyOptions) -> dict[str, Any]:
    """A classifier's data and its ends, by the names of timm's `PretrainedCfg`.

    The normalisation is ImageNet's (the mean of its channels, for images other than RGB), and images are
    evaluated as this project does it; a model trained otherwise is saved with what it was trained on.

    Args:
        options: all those of the model, which say its family.
    """
    rgb = origin.in_chans == 3
    small = max(origin.image_size) <= 64  # such data sets come cut to size
    return {
        "architecture": PREFIX + origin.name,
        "input_size": (origin.in_chans, *origin.image_size),
        "num_classes": origin.num_classes,
        "mean": (0.485, 0.456, 0.406) if rgb else (0.449,) * origin.in_chans,
        "std": (0.229, 0.224, 0.225) if rgb else (0.226,) * origin.in_chans,
        "interpolation": "bilinear",
        "crop_pct": 1.0 if small else 0.875,
        "first_conv": options.first_conv,
        "classifier": options.classifier,
    }


def bare(model: nn.Module) -> nn.Module:
    """The model that `torch.compile`, an `AveragedModel` or `DistributedDataParallel` stands around."""
    from torch.nn.parallel import DataParallel, DistributedDataParallel
    from torch.optim.swa_utils import AveragedModel

    if isinstance(model, (AveragedModel, DataParallel, DistributedDataParallel)):
        return bare(model.module)
    compiled = getattr(model, "_orig_mod", None)
    return bare(compiled) if compiled is not None else model
