"""What `least_parameters` says by arithmetic is never more than a network has, and not much less."""

from typing import Any

import pytest
import torch

from attneck.models.catalog import create_model, find, list_detectors, list_models
from attneck.models.options import MAX_PARAMETERS

CHANGED: list[tuple[str, dict[str, Any]]] = [
    ("botnet50", {"depths": [1, 1, 1, 9], "widths": [64, 64, 64, 256]}),
    ("botnet50", {"base_width": 96, "groups": 2, "attend": [0, 1, 1]}),
    ("resnet50_bot_c4_c5", {"num_classes": 100_000}),
    ("resnet18", {"widths": [256, 256, 256, 1024]}),
    ("cifar_resnet20_bot_bam", {"depths": [1, 9, 9], "mids": [8, 64, 64], "outs": [99, 16, 64]}),
    ("cifar_resnext29_8x64d", {"groups": 32}),
    ("cifar_resnet20", {"stem": 4096, "in_chans": 64}),
    ("cifar_densenet100", {"depths": [2, 40], "growth": 40}),
    ("vit_base_patch16_384", {"depth": 2, "patch": 8, "image_size": (600, 400), "in_chans": 100}),
    ("mobilenet", {"alpha": 0.013}),
    ("mobilenet", {"alpha": 3.7, "num_classes": 5}),
    ("squeezenet1_1", {"num_classes": 50_000}),
    ("stairnet_vgg16_bam", {"num_classes": 3_000}),
    ("stairnet_mobilenet", {"num_classes": 3_000}),
    ("ssd300_vgg16", {"num_classes": 3_000}),
    ("ssd300_mobilenet", {"num_classes": 3_000}),
    ("maskrcnn_botnet26_thin", {"channels": 512, "box_convs": 9, "num_classes": 2}),
    ("fasterrcnn_botnet26_thin", {"variant": "torchvision", "box_features": 4096, "num_classes": 2_000}),
]


@pytest.mark.parametrize(("name", "given"), CHANGED, ids=str)
def test_no_network_has_fewer(name: str, given: dict[str, Any]) -> None:
    options = {
        key: value for key, value in given.items() if key not in ("num_classes", "image_size", "in_chans")
    }
    entry = find(name, options)
    with torch.device("meta"):
        model: Any = create_model(name, **given)
    asked = model.origin
    least = entry.options.least_parameters(asked.num_classes, asked.image_size, asked.in_chans)
    has = sum(parameter.numel() for parameter in model.parameters())
    assert least <= has
    assert has <= 5 * least + (30_000_000 if entry.task == "detection" else 0)  # its trunk is not counted


def test_the_catalog_is_far_from_the_bound() -> None:
    for name in [*list_models(), *list_detectors("*")]:
        entry = find(name)
        side = (entry.image_size, entry.image_size)
        least = entry.options.least_parameters(entry.num_classes, side, 3)
        assert 0 < 3 * least < MAX_PARAMETERS, name
