"""Not a test: networks whose BatchNorms are of every kind, for tests and for a program of two processes."""

from functools import partial

import timm
from torch import nn

from attneck.surgery import insert_se

SMALL = {
    "efficientnet_b0": {},
    "regnety_002": {},
    "resnetv2_18": {},
    "densenet121": {"block_config": (2, 2, 2), "growth_rate": 8},
    "darknet17": {},
    "mobilenetv3_small_050": {},
}
FAMILIES = {
    # BatchNormAct2d: a norm with an activation.
    name: partial(timm.create_model, name, num_classes=5, **options)
    for name, options in SMALL.items()
} | {
    # Modules that surgery has put after a norm.
    "SE after norms": lambda: insert_se(timm.create_model("resnet10t", num_classes=5), at="blocks")[0],
    "SE after norms with activations": lambda: insert_se(
        timm.create_model("efficientnet_lite0", num_classes=5), at="blocks"
    )[0],
}


def norms(model: nn.Module) -> list[nn.Module]:
    """Every BatchNorm in a network."""
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
