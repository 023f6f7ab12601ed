"""Registers the catalog's classifiers with timm as `attneck_<name>`.

`timm.create_model("attneck_botnet50", num_classes=10, features_only=True)` and libraries on top of timm then
find them. Arguments have timm's names (`img_size`, `drop_rate`, `drop_path_rate`, `output_stride`); the
family's options are arguments too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, is_model, register_model
from torch import nn

from attneck.models.catalog import CATALOG, create_model, find, list_models
from attneck.models.origin import PREFIX, Origin, pretrained_cfg

# timm reads each model's `pretrained_cfg` from here.
default_cfgs: dict[str, Any] = {}


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
            feature_cfg=find(name, given).options.feature_cfg,
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
    output_stride: int = 32,
    global_pool: str | None = None,
    **options: Any,
) -> nn.Module:
    """`create_model` with timm's names of arguments.

    Raises:
        ValueError: as `create_model`; another output stride; a pool other than the family's own.
    """
    row = CATALOG[name].options
    if drop_rate is not None:
        options["dropout"] = float(drop_rate)
    if drop_path_rate is not None:
        options["drop_path"] = float(drop_path_rate)
    if output_stride != 32:
        strided = find(name, options).options.at_stride_16()
        if output_stride != 16 or strided is None:
            known = "32" if strided is None else "32 and 16"
            raise ValueError(f"output_stride={output_stride}: {PREFIX}{name} knows {known} only")
        options |= strided
    if global_pool not in (None, row.global_pool):
        raise ValueError(
            f"global_pool={global_pool!r}: {PREFIX}{name} pools by {row.global_pool!r}; leave it out"
        )
    return create_model(name, num_classes, img_size, in_chans, **options)
