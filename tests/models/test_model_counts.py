"""Exact parameters of whole networks, counted by hand from the papers' architecture.

Without data: everything is on the meta device. The papers' printed figures are attneck.papers' to check.
"""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from attneck.models import create_model

POSITIONS = ("rel_h", "rel_w", "abs_h", "abs_w")


def on_meta(name: str, **arguments: Any) -> nn.Module:
    with torch.device("meta"):
        return create_model(name, **arguments).eval()


def total(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def as_botnet_counts(model: nn.Module) -> int:
    """Without BatchNorm and position tables."""
    norms = sum(
        total(module) for module in model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
    )
    tables = sum(p.numel() for name, p in model.named_parameters() if name.split(".")[-1] in POSITIONS)
    return total(model) - norms - tables


def multiply_adds(model: nn.Module, side: int) -> float:
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, side, side, device="meta"))
    return counter.get_total_flops() / 2


@pytest.mark.parametrize(
    ("name", "image_size", "all_of_them", "as_botnet"),
    [
        ("resnet50", 1024, 25_557_032, 25_503_912),
        ("botnet50", 1024, 20_903_208, 20_785_320),
        ("botnet50", 224, 20_852_008, 20_785_320),
        ("resnet101", 224, 44_549_160, 44_443_816),
        ("resnet152", 224, 60_192_808, 60_041_384),
    ],
)
def test_botnet_s_parameters(name: str, image_size: int, all_of_them: int, as_botnet: int) -> None:
    model = on_meta(name, image_size=image_size)
    assert total(model) == all_of_them
    assert as_botnet_counts(model) == as_botnet


def test_attention_takes_a_3x3_conv_s_place() -> None:
    """C5's 3×3 convs have 9C², MHSA 3C², and tables of 2·(H + W) - 2 rows of C/h."""
    C, rows = 512, (2 * 14 + 2 * 14 - 2) + 2 * (2 * 7 + 2 * 7 - 2)
    difference = total(on_meta("resnet50")) - total(on_meta("botnet50"))
    assert difference == 3 * (9 - 3) * C**2 - rows * C // 4
    assert total(on_meta("botnet50", position="none")) == total(on_meta("botnet50")) - rows * C // 4
    assert total(on_meta("botnet50", content=False)) == total(on_meta("botnet50")) - 3 * C**2


@pytest.mark.parametrize(
    "name", ["resnet50", "resnet101", "resnext50_32x4d", "cifar_resnet50", "cifar_resnet101"]
)
def test_bam_after_256_512_and_1024_channels(name: str) -> None:
    assert total(on_meta(f"{name}_bam")) - total(on_meta(name)) == 360_761


def test_squeeze_excitation_without_biases() -> None:
    outs = {256: 3, 512: 4, 1024: 6, 2048: 3}
    added = total(on_meta("senet50")) - total(on_meta("resnet50"))
    assert added == sum(2 * out * (out // 16) * blocks for out, blocks in outs.items())
    c5 = total(on_meta("resnet50_se_c5")) - total(on_meta("resnet50"))
    assert c5 == 3 * 2 * 2048 * 128


def wide_resnet(k: int) -> int:
    """BN 3×3 BN 3×3, four a stage, the first with a projection; stem of 16, final BN, classifier."""
    parameters, c = 3 * 9 * 16, 16
    for width in (16 * k, 32 * k, 64 * k):
        for block in range(4):
            parameters += 2 * c + 9 * c * width + 2 * width + 9 * width**2 + (c * width if block == 0 else 0)
            c = width
    return parameters + 2 * c + 100 * c + 100


def resnext29(groups: int) -> int:
    """1×1 BN, grouped 3×3 BN, 1×1 BN, three a stage, the first with a projection and its BN."""
    parameters, c = 3 * 9 * 64 + 2 * 64, 64
    for stage, out in enumerate((256, 512, 1024)):
        mid = 64 * groups * 2**stage
        for block in range(3):
            parameters += c * mid + 9 * mid**2 // groups + mid * out + 4 * mid + 2 * out
            parameters += c * out + 2 * out if block == 0 else 0
            c = out
    return parameters + 100 * c + 100


def densenet_bc(growth: int, depth: int) -> int:
    """Layers BN 1×1 (4k) BN 3×3 (k), transitions BN 1×1 to half, final BN, classifier."""
    c = 2 * growth
    parameters = 3 * 9 * c
    for block in range(3):
        for _ in range(depth):
            parameters += 2 * c + 4 * growth * c + 2 * 4 * growth + 9 * 4 * growth**2
            c += growth
        if block < 2:
            parameters += 2 * c + c * (c // 2)
            c //= 2
    return parameters + 2 * c + 100 * c + 100


def mobilenet(alpha: float) -> int:
    widths = [int(w * alpha + 1e-9) for w in (32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024)]
    parameters = 3 * 9 * widths[0] + 2 * widths[0]
    for c, out in pairwise(widths):
        parameters += 9 * c + 2 * c + c * out + 2 * out
    return parameters + 1000 * widths[-1] + 1000


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("cifar_wrn28_8", wide_resnet(8)),
        ("cifar_wrn28_10", wide_resnet(10)),
        ("cifar_resnext29_8x64d", resnext29(8)),
        ("cifar_resnext29_16x64d", resnext29(16)),
        ("cifar_densenet100", densenet_bc(12, 16)),
        ("mobilenet", mobilenet(1.0)),
        ("mobilenet_0_7", mobilenet(0.7)),
        ("resnet18", 11_689_512),  # this one and those below: torchvision's
        ("resnext50_32x4d", 25_028_904),
        ("squeezenet1_1", 1_235_496),
    ],
)
def test_bam_s_networks(name: str, parameters: int) -> None:
    assert total(on_meta(name)) == parameters


@pytest.mark.parametrize(
    ("name", "millions"),
    [("cifar_resnet50", "23.705"), ("cifar_resnet101", "42.697"), ("cifar_preresnet110", "1.726")],
)
def test_bottleneck_networks_for_small_images(name: str, millions: str) -> None:
    assert f"{total(on_meta(name)) / 1e6:.3f}" == millions


def test_extra_blocks_are_whole_blocks() -> None:
    """Table 1c's "+ ResBlock": 1×1, 3×3, 1×1 convs with their BatchNorms at 256, 512 and 1024 channels."""
    added = sum(2 * 4 * m * m + 9 * m * m + 2 * (m + m + 4 * m) for m in (64, 128, 256))
    assert total(on_meta("cifar_resnet50_block")) - total(on_meta("cifar_resnet50")) == added


def test_senet350_is_what_its_parameters_say() -> None:
    assert round(as_botnet_counts(on_meta("senet350")) / 1e6, 2) == 115.18
    assert round(as_botnet_counts(on_meta("senet350", depths=[4, 40, 60, 12])) / 1e6, 2) == 151.37


@pytest.mark.parametrize(
    ("name", "options", "side", "billions"),
    [
        ("resnet50", {}, 224, 4.089),
        ("resnet50", {"stride_on": "1x1"}, 224, 3.858),
        ("botnet50", {}, 1024, 102.991),  # the paper's 102.98 leaves out the classifier's 0.002
        ("cifar_resnet50", {}, 32, 1.22),
        ("squeezenet1_1", {}, 224, 0.349),
        ("squeezenet1_1_bam", {}, 224, 0.362),
        # As BAM's Table 3 counts it, but for the biases.
        ("squeezenet1_1", {"stem_padding": 1, "pool": "features"}, 224, 0.2875),
    ],
)
def test_multiply_adds(name: str, options: dict[str, Any], side: int, billions: float) -> None:
    digits = len(str(billions).partition(".")[2])
    assert round(multiply_adds(on_meta(name, image_size=side, **options), side) / 1e9, digits) == billions
