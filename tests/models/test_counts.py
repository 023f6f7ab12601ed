"""Exact parameters of whole networks, counted by hand from the papers' architecture (SPEC §1 and §2).

Without data: everything is on the meta device. The papers' printed figures are attneck.papers' to check.
"""

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
    norms = sum(total(module) for module in model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d))
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
        ("botnet50", 1024, 20_903_208, 20_784_872),
        ("botnet50", 224, 20_852_008, 20_784_872),
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


@pytest.mark.parametrize("name", ["resnet50", "resnet101", "resnext50_32x4d", "cifar_resnet50", "cifar_resnet101"])
def test_bam_after_256_512_and_1024_channels(name: str) -> None:
    assert total(on_meta(f"{name}_bam")) - total(on_meta(name)) == 360_761


@pytest.mark.parametrize(("name", "widths"), [("resnet50", (256, 512, 1024)), ("senet50", ())])
def test_squeeze_excitation_without_biases(name: str, widths: tuple[int, ...]) -> None:
    outs = {256: 3, 512: 4, 1024: 6, 2048: 3}
    added = total(on_meta("senet50")) - total(on_meta("resnet50"))
    assert added == sum(2 * out * (out // 16) * blocks for out, blocks in outs.items())
    c5 = total(on_meta("resnet50_se_c5")) - total(on_meta("resnet50"))
    assert c5 == 3 * 2 * 2048 * 128


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("cifar_resnet50", 23_705_252),
        ("cifar_resnet101", 42_697_380),
        ("cifar_preresnet110", 1_726_388),
        ("cifar_wrn28_8", 23_401_396),
        ("cifar_wrn28_10", 36_536_884),
        ("cifar_resnext29_8x64d", 34_518_948),
        ("cifar_resnext29_16x64d", 68_249_508),
        ("cifar_densenet100", 800_032),
        ("resnet18", 11_689_512),
        ("resnext50_32x4d", 25_028_904),
        ("mobilenet", 4_231_976),
        ("squeezenet1_1", 1_235_496),
    ],
)
def test_bam_s_networks(name: str, parameters: int) -> None:
    assert total(on_meta(name)) == parameters


def test_extra_blocks_are_whole_blocks() -> None:
    """Table 1c's "+ ResBlock": 1×1, 3×3 and 1×1 convs with their BatchNorms, at 256, 512 and 1024 channels."""
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
        ("botnet50", {}, 1024, 102.989),
        ("cifar_resnet50", {}, 32, 1.217),
        ("squeezenet1_1", {}, 224, 0.349),
        ("squeezenet1_1_bam", {}, 224, 0.362),
        # As BAM's Table 3 counts it, but for the biases.
        ("squeezenet1_1", {"stem_padding": 1, "pool": "features"}, 224, 0.2875),
    ],
)
def test_multiply_adds(name: str, options: dict[str, Any], side: int, billions: float) -> None:
    digits = len(str(billions).partition(".")[2])
    assert round(multiply_adds(on_meta(name, image_size=side, **options), side) / 1e9, digits) == billions
