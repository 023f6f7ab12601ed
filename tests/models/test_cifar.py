"""The networks for 32×32 images: order of layers, shortcuts, strides, where attention stands."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attneck.layers import BAM, MHSA2d, SqueezeExcite2d
from attneck.models import create_model


def on_meta(name: str, **arguments: Any) -> nn.Module:
    with torch.device("meta"):
        return create_model(name, **arguments)


def lively(model: nn.Module) -> nn.Module:
    """BatchNorms that scale and shift, each channel by itself."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return model


def bottleneck_pre(block: Any, x: Tensor) -> Tensor:
    """He et al. 2016: BN ReLU conv, three times; the projection takes the raw input."""
    y = block.conv1(F.relu(block.bn1(x)))
    y = block.conv2(F.relu(block.bn2(y)))
    y = block.conv3(F.relu(block.bn3(y)))
    return y + (x if block.downsample is None else block.downsample(x))


def basic_pre(block: Any, x: Tensor) -> Tensor:
    """Zagoruyko & Komodakis 2016: the projection takes the activated input, an identity the raw one."""
    activated = F.relu(block.bn1(x))
    y = block.conv2(F.relu(block.bn2(block.conv1(activated))))
    return y + (x if block.downsample is None else block.downsample(activated))


def bottleneck_post(block: Any, x: Tensor) -> Tensor:
    y = F.relu(block.bn1(block.conv1(x)))
    y = F.relu(block.bn2(block.conv2(y)))
    y = block.bn3(block.conv3(y))
    return F.relu(y + (x if block.downsample is None else block.downsample(x)))


@pytest.mark.parametrize(
    ("name", "equation"),
    [
        ("cifar_preresnet110", bottleneck_pre),
        ("cifar_wrn28_8", basic_pre),
        ("cifar_resnext29_8x64d", bottleneck_post),
        ("cifar_resnet50", bottleneck_post),
    ],
)
def test_a_block_is_its_equation(name: str, equation: Any) -> None:
    torch.manual_seed(0)
    model = lively(create_model(name, depths=[2, 2, 2, 2] if name == "cifar_resnet50" else [2, 2, 2]))
    for stage in list(model.children())[3:5]:
        for block in stage:
            x = torch.randn(2, block.conv1.in_channels, 8, 8)
            torch.testing.assert_close(block(x), equation(block, x))


def test_projections() -> None:
    """With BN behind it in post order, alone in pre order; only where the shape changes."""
    for name, kinds in {
        "cifar_resnet50": {nn.Sequential},
        "cifar_preresnet110": {nn.Conv2d},
        "cifar_wrn28_8": {nn.Conv2d},
    }.items():
        model = on_meta(name)
        for info in model.feature_info:
            first, *others = model.get_submodule(info["module"])
            assert {type(first.downsample)} == kinds
            assert all(block.downsample is None for block in others)


@pytest.mark.parametrize(
    ("name", "sides"),
    [
        ("cifar_resnet50", [32, 16, 8, 4]),
        ("cifar_preresnet110", [32, 16, 8]),
        ("cifar_wrn28_10", [32, 16, 8]),
        ("cifar_resnext29_16x64d", [32, 16, 8]),
        ("cifar_densenet100", [32, 16, 8]),
    ],
)
def test_stages(name: str, sides: list[int]) -> None:
    model = on_meta(name).eval()
    _, maps = model.forward_intermediates(torch.empty(1, 3, 32, 32, device="meta"))
    assert [m.shape[-1] for m in maps] == sides
    assert [m.shape[1] for m in maps] == [info["num_chs"] for info in model.feature_info]
    assert [32 // m.shape[-1] for m in maps] == [info["reduction"] for info in model.feature_info]


@pytest.mark.parametrize("name", ["cifar_resnet50", "cifar_preresnet110", "cifar_resnext29_8x64d"])
def test_bottlenecks_stride_on_their_first_1x1(name: str) -> None:
    for stride_on, where in (("1x1", "conv1"), ("3x3", "conv2")):
        block = on_meta(name, stride_on=stride_on).layer2[0]
        strides = {key: getattr(block, key).stride for key in ("conv1", "conv2", "conv3")}
        assert {key for key, stride in strides.items() if stride == (2, 2)} == {where}
    assert on_meta(name).layer2[0].conv1.stride == (2, 2)


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("cifar_resnet50_bam", ["layer1.3", "layer2.4", "layer3.6"]),
        ("cifar_preresnet110_bam", ["layer1.18", "layer2.18"]),
        ("cifar_wrn28_8_bam", ["layer1.4", "layer2.4"]),
        ("cifar_resnext29_16x64d_bam", ["layer1.3", "layer2.3"]),
        (
            "cifar_densenet100_bam",
            ["layer1.bam", "layer2.transition_bam", "layer2.bam", "layer3.transition_bam"],
        ),
        ("cifar_resnet20_bam", ["layer1.3", "layer2.3"]),
    ],
)
def test_where_bam_stands(name: str, modules: list[str]) -> None:
    found = [key for key, module in on_meta(name).named_modules() if isinstance(module, BAM)]
    assert found == modules


def test_bam_of_the_densenet_sees_both_ends_of_a_transition() -> None:
    bams = [module for module in on_meta("cifar_densenet100_bam").modules() if isinstance(module, BAM)]
    assert [module.channels for module in bams] == [216, 108, 300, 150]


@pytest.mark.parametrize(
    ("name", "kind"), [("cifar_preresnet110_bam_c", BAM), ("cifar_wrn28_8_se", SqueezeExcite2d)]
)
def test_what_stands_in_every_block(name: str, kind: type[nn.Module]) -> None:
    """On the branch's output, before the addition; SE with biases (BAM Table 5)."""
    torch.manual_seed(0)
    model = lively(create_model(name, depths=[1, 1, 1]))
    block: Any = model.layer2[0]
    assert isinstance(block.se, kind)
    x = torch.randn(2, block.bn1.num_features, 8, 8)
    with_it = block(x)
    branch = block.se
    block.se = None
    shortcut = block.downsample(F.relu(block.bn1(x)) if "wrn" in name else x)
    torch.testing.assert_close(with_it, branch(block(x) - shortcut) + shortcut, rtol=1e-4, atol=1e-5)
    assert "fc1.bias" in branch.state_dict() or kind is BAM


@pytest.mark.parametrize("name", ["cifar_resnet50", "cifar_wrn28_8", "cifar_resnext29_8x64d"])
def test_an_extra_block_is_one_more_of_the_same(name: str) -> None:
    plain, longer = on_meta(name), on_meta(f"{name}_block")
    lengths = [
        [len(model.get_submodule(info["module"])) for info in model.feature_info] for model in (plain, longer)
    ]
    assert lengths[1] == [length + 1 for length in lengths[0][:-1]] + lengths[0][-1:]
    for stage in (
        model.get_submodule(f"layer{i + 1}") for model in [longer] for i in range(len(lengths[0]) - 1)
    ):
        shapes = [{key: value.shape for key, value in block.state_dict().items()} for block in stage]
        assert shapes[-1] == shapes[-2]


def test_convs_start_as_he_et_al_say() -> None:
    torch.manual_seed(0)
    model = create_model("cifar_wrn28_8_block")
    for conv in (model.layer1[0].conv1, model.layer1[-1].conv1, model.layer3[1].conv2):
        fan_out = conv.out_channels * 9
        assert conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.02)


@pytest.mark.parametrize("stride_on", ["1x1", "3x3"])
def test_a_bottleneck_attends_to_its_own_input(stride_on: str) -> None:
    model = on_meta("cifar_resnet50", attend=True, stride_on=stride_on)
    attention = [module for module in model.modules() if isinstance(module, MHSA2d)]
    assert [(layer.map_size, layer.stride) for layer in attention] == [((8, 8), 2), ((4, 4), 1), ((4, 4), 1)]
    assert model.layer4[0].conv1.stride == (1, 1)
    assert model.eval()(torch.empty(1, 3, 32, 32, device="meta")).shape == (1, 100)


def test_the_lab_family_s_names() -> None:
    """Runs are resumed and published under these names."""
    names = set(on_meta("cifar_resnet20").state_dict())
    assert {"conv1.weight", "bn1.weight", "layer3.2.bn2.running_var", "fc.bias"} < names
    assert {"layer2.0.downsample.0.weight", "layer2.0.downsample.1.weight"} < names
    assert not any(name.startswith(("norm", "act", "layer1.0.downsample")) for name in names)
    added = set(on_meta("cifar_resnet20_bot_bam").state_dict()) - names
    assert {name.partition(".conv2.")[0] for name in added if "conv2" in name} == {
        f"layer3.{i}" for i in range(3)
    }
    assert {".".join(name.split(".")[:2]) for name in added if "conv2" not in name} == {
        "layer1.3",
        "layer2.3",
    }
    seen = [module for module in on_meta("cifar_resnet20_bot").modules() if isinstance(module, MHSA2d)]
    assert [(layer.channels, layer.map_size, layer.stride) for layer in seen] == [(64, (8, 8), 1)] * 3


@pytest.mark.parametrize("name", ["cifar_resnet20", "cifar_preresnet110"])
def test_tools_that_put_hooks_on_activations_see_each(name: str) -> None:
    """DeepLift's attributions add up to the change of the logit only if it is told of every ReLU."""
    from captum.attr import DeepLift

    torch.manual_seed(0)
    model = lively(create_model(name, num_classes=5, depths=[1, 1, 1])).double().eval()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    black = torch.zeros_like(images)
    found = DeepLift(model).attribute(images, black, target=1)
    with torch.no_grad():
        change = (model(images) - model(black))[:, 1]
    torch.testing.assert_close(found.sum((1, 2, 3)).detach(), change)
