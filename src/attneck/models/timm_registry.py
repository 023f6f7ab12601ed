"""Registers the catalog's classifiers with timm as `attneck_<name>`.

`timm.create_model("attneck_botnet50", num_classes=10, features_only=True)` and libraries on top of timm then
find them. Arguments have timm's names (`img_size`, `drop_rate`, `drop_path_rate`, `drop_block_rate`,
`output_stride`, `device`, `dtype`); the family's options are arguments too, `global_pool`, `bn_momentum` and
`bn_eps` among them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from timm.models import FeatureListNet, build_model_with_cfg, generate_default_cfgs, is_model, register_model
from torch import nn

from attneck.models.catalog import CATALOG, create_model, find, list_models
from attneck.models.origin import PREFIX, Origin, pretrained_cfg
from attneck.models.recomputing import recompute

# timm reads each model's `pretrained_cfg` from here.
default_cfgs: dict[str, Any] = {}

LACKING = {"drop_path": "residual branch to drop", "drop_block": "DropBlock"}
"""What a family without such a rate is without."""


class UnknownArgumentError(TypeError, ValueError):
    """An argument that nobody knows: timm's callers expect a TypeError, ours a ValueError."""


class Features(FeatureListNet):
    """timm's maps of a network's stages; checkpointing leaves BatchNorm's statistics alone."""

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute the maps inside a block again in backward instead of keeping them.

        Raises ValueError for a network whose stages were taken apart to get at its maps.
        """
        switched = {recompute(stage, enable) for stage in self.values()}
        if True not in switched:
            raise ValueError(
                "these maps are of a network without stages, whose blocks cannot be checkpointed: take "
                "forward_intermediates of the whole network, which has set_grad_checkpointing too"
            )


def enter() -> None:
    """Register every classifier that timm does not have yet; its `pretrained_cfg` names no weights."""
    for name in list_models():
        if not is_model(PREFIX + name):
            entry = CATALOG[name]
            size = (entry.image_size, entry.image_size)
            cfg = pretrained_cfg(Origin(name, entry.num_classes, size, 3, {}), entry.options)
            default_cfgs.update(generate_default_cfgs({PREFIX + name: cfg}))
            globals()[PREFIX + name] = register_model(_entry(name))


def _entry(name: str) -> Callable[..., nn.Module]:
    """The function that timm calls to make the model."""

    def create(pretrained: bool = False, **arguments: Any) -> nn.Module:
        row = CATALOG[name].options
        given = {key: value for key, value in arguments.items() if key in row.as_dict()}
        model: nn.Module = build_model_with_cfg(
            partial(_create, name),
            PREFIX + name,
            pretrained,
            feature_cfg={"feature_cls": Features, **find(name, given).options.feature_cfg},
            **arguments,
        )
        return model

    create.__name__ = create.__qualname__ = PREFIX + name
    create.__doc__ = f"attneck's {name}."
    return create


def _create(
    name: str,
    num_classes: int,
    in_chans: int,
    img_size: int | tuple[int, int] | None = None,
    drop_rate: float | None = None,
    drop_path_rate: float | None = None,
    drop_block_rate: float | None = None,
    output_stride: int = 32,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> nn.Module:
    """`create_model` with timm's names of arguments.

    Raises:
        ValueError: as `create_model`; a rate of, or an output stride that, this family does not have.
        UnknownArgumentError: neither timm's nor an option of the family.
    """
    row = CATALOG[name].options
    known = row.as_dict()
    if unknown := {key: value for key, value in options.items() if key not in known}:
        try:
            find(name, unknown)
        except ValueError as error:
            raise UnknownArgumentError(str(error)) from None
    if drop_rate is not None:
        options["dropout"] = float(drop_rate)
    for own, theirs, rate in (
        ("drop_path", "drop_path_rate", drop_path_rate),
        ("drop_block", "drop_block_rate", drop_block_rate),
    ):
        if own in known and rate is not None:
            options[own] = float(rate)
        elif rate:
            raise ValueError(f"{theirs}={rate}: {PREFIX}{name} has no {LACKING[own]}; leave it out")
    own_stride = find(name, options).options.last_stride
    if output_stride not in (32, own_stride):
        if "output_stride" not in known:
            raise ValueError(
                f"output_stride={output_stride}: {PREFIX}{name} has {own_stride} and no other; leave it out"
            )
        options["output_stride"] = output_stride
    with torch.device(device) if device is not None else nullcontext():
        model = create_model(name, num_classes, img_size, in_chans, **options)
    return model.to(dtype=dtype) if dtype is not None else model
