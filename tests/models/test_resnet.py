"""The ImageNet networks: where attention, strides, squeeze-excitation and inserted blocks stand."""

from typing import Any

import pytest
import torch
from timm.layers import DropPath
from torch import nn
from torchvision.models import resnet50

from attneck.layers import BAM, MHSA2d, NonLocal2d, SqueezeExcite2d
from attneck.models import create_model

THIN: dict[str, Any] = {"widths": [16, 16, 16, 32], "num_classes": 5, "image_size": 64}


def on_meta(name: str, **arguments: Any) -> nn.Module:
    with torch.device("meta"):
        return create_model(name, **arguments)


def maps_seen(model: nn.Module, kind: type[nn.Module], side: int) -> dict[str, tuple[tuple[int, ...], ...]]:
    """The (C, H, W) that goes into, and comes out of, each module of a kind."""
    seen = {}
    for name, module in model.named_modules():
        if isinstance(module, kind):

            def keep(_: nn.Module, args: Any, out: Any, name: str = name) -> None:
                seen[name] = (tuple(args[0].shape[1:]), tuple(out.shape[1:]))

            module.register_forward_hook(keep)
    model.eval()(torch.empty(1, 3, side, side, device="meta"))
    return seen


def test_the_plain_network_is_torchvision_s() -> None:
    torch.manual_seed(0)
    ours, peer = create_model("resnet50").eval(), resnet50().eval()
    for module in ours.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1)  # the last one of a branch starts at 0
    peer.load_state_dict(ours.state_dict())
    images = torch.randn(1, 3, 97, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), peer(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", [224, 1024])
def test_attention_s_maps(side: int) -> None:
    c4, c5 = side // 16, side // 32
    seen = maps_seen(on_meta("botnet50", image_size=side), MHSA2d, side)
    assert seen == {
        "layer4.0.conv2": ((512, c4, c4), (512, c5, c5)),
        "layer4.1.conv2": ((512, c5, c5), (512, c5, c5)),
        "layer4.2.conv2": ((512, c5, c5), (512, c5, c5)),
    }
    attention = [m for m in on_meta("botnet50", image_size=side).modules() if isinstance(m, MHSA2d)]
    assert [layer.map_size for layer in attention] == [(c4, c4), (c5, c5), (c5, c5)]


@pytest.mark.parametrize("side", [224, 256, 320, 384])
def test_s1_keeps_c5_at_stride_16(side: int) -> None:
    model = on_meta("botnet_s1_50", image_size=side)
    cells = side // 16
    assert [m.map_size for m in model.modules() if isinstance(m, MHSA2d)] == [(cells, cells)] * 3
    seen = maps_seen(model, MHSA2d, side)
    assert set(seen.values()) == {((512, cells, cells), (512, cells, cells))}
    assert model.feature_info[-1]["reduction"] == 16


def test_c5_at_stride_16_dilates_nothing() -> None:
    model = on_meta("botnet_s1_50", attend=[0, 0, 1])
    convs = [module for module in model.layer4.modules() if isinstance(module, nn.Conv2d)]
    assert {conv.dilation for conv in convs} == {(1, 1)}
    assert {conv.stride for conv in convs} == {(1, 1)}


@pytest.mark.parametrize("side", [224, 64, 100, 97])
@pytest.mark.parametrize("name", ["botnet50", "botnet_s1_50"])
def test_odd_maps_add_up(name: str, side: int) -> None:
    """A shortcut's strided 1×1 and the pool behind attention round the same way."""
    model = on_meta(name, image_size=side).eval()
    assert model(torch.empty(1, 3, side, side, device="meta")).shape == (1, 1000)


@pytest.mark.parametrize(
    ("name", "attended"),
    [
        ("botnet50", [0, 1, 2]),
        ("botnet50_001", [2]),
        ("botnet50_011", [1, 2]),
        ("botnet50_100", [0]),
        ("resnet50", []),
        ("botnet_s1_59", [0, 1, 2, 3, 4, 5]),
    ],
)
def test_which_blocks_attend(name: str, attended: list[int]) -> None:
    model = on_meta(name)
    names = [key for key, module in model.named_modules() if isinstance(module, MHSA2d)]
    assert names == [f"layer4.{index}.conv2" for index in attended]


@pytest.mark.parametrize(
    "name",
    [
        "botnet50",
        "botnet50_100",
        "botnet_s1_50",
        "resnet50_bam",
        "resnet50_nl_c4",
        "resnet50_bot_c4_c5",
        "senet50",
    ],
)
def test_all_other_names_and_shapes_are_the_plain_network_s(name: str) -> None:
    plain = {key: value.shape for key, value in on_meta("resnet50").state_dict().items()}
    changed = {key: value.shape for key, value in on_meta(name).state_dict().items()}
    lost = plain.keys() - changed.keys()
    assert all(key.startswith("layer4.") and key.endswith("conv2.weight") for key in lost)
    assert len(lost) == {"botnet50": 3, "botnet50_100": 1, "botnet_s1_50": 3}.get(name, 0)
    assert all(changed[key] == shape for key, shape in plain.items() if key not in lost)


@pytest.mark.parametrize("name", ["resnet50", "resnext50_32x4d", "botnet50", "botnet_s1_50"])
@pytest.mark.parametrize("stride_on", ["3x3", "1x1"])
def test_where_a_bottleneck_strides(name: str, stride_on: str) -> None:
    model = on_meta(name, stride_on=stride_on)
    for number, stage in enumerate((model.layer1, model.layer2, model.layer3, model.layer4)):
        stride = 1 if number == 0 or (number == 3 and "s1" in name) else 2
        first, *others = stage
        if isinstance(first.conv2, MHSA2d):  # attends to all of its input, whatever stride_on says
            strides = [(1, 1), first.conv2.stride]
            assert strides == [(1, 1), stride]
            assert first.conv1.stride == (1, 1)
        elif stride_on == "3x3":
            assert (first.conv1.stride, first.conv2.stride) == ((1, 1), (stride, stride))
        else:
            assert (first.conv1.stride, first.conv2.stride) == ((stride, stride), (1, 1))
        assert first.downsample[0].stride == (stride, stride)
        assert first.downsample[0].kernel_size == (1, 1)
        for block in others:
            assert block.conv1.stride == (1, 1)
            assert block.conv2.stride in (1, (1, 1))
            assert block.downsample is None


@pytest.mark.parametrize(
    ("name", "options", "stages"),
    [
        ("senet50", {}, [3, 4, 6, 3]),
        ("resnet50_se_c5", {}, [0, 0, 0, 3]),
        ("botnet50", {"se": [2, 3, 4]}, [3, 4, 6, 0]),
        ("botnet_s1_59", {}, [3, 4, 6, 6]),
        ("botnet_s1_59", {"se_in_bot": False}, [3, 4, 6, 0]),
        ("botnet50_001", {"se": [2, 3, 4, 5]}, [3, 4, 6, 2]),
        ("botnet50_001", {"se": [2, 3, 4, 5], "se_in_bot": True}, [3, 4, 6, 3]),
    ],
)
def test_where_squeeze_excitation_stands(name: str, options: dict[str, Any], stages: list[int]) -> None:
    model = on_meta(name, **options)
    found = [[m for m in stage.modules() if isinstance(m, SqueezeExcite2d)] for stage in model.children()
             if isinstance(stage, nn.Sequential)]  # fmt: skip
    assert [len(stage) for stage in found] == stages
    seen = maps_seen(model, SqueezeExcite2d, 224)
    assert {name.split(".")[-1] for name in seen} == {"se"}
    assert {shape[0][0] for shape in seen.values()} <= {256, 512, 1024, 2048}  # the block's output
    assert not any(name.endswith("se.fc1.bias") for name in model.state_dict())


@pytest.mark.parametrize(
    ("name", "kind", "stages"),
    [
        ("resnet50_nl_c4", NonLocal2d, {"layer3": "non_local"}),
        ("resnet50_bot_c4", MHSA2d, {"layer3": "bot"}),
        ("resnet50_bot_c4_c5", MHSA2d, {"layer3": "bot", "layer4": "bot"}),
    ],
)
def test_blocks_inserted_between_the_last_two(
    name: str, kind: type[nn.Module], stages: dict[str, str]
) -> None:
    model = on_meta(name, image_size=1024)
    for stage, inserted in stages.items():
        names = list(dict(model.get_submodule(stage).named_children()))
        assert names.index(inserted) == len(names) - 2
    shapes = maps_seen(model, kind, 1024).values()
    wanted = {"layer3": 64, "layer4": 32}
    width = {("layer3", NonLocal2d): 1024, ("layer3", MHSA2d): 256, ("layer4", MHSA2d): 512}
    assert {shape[0] for shape in shapes} == {
        (width[stage, kind], wanted[stage], wanted[stage]) for stage in stages
    }


def test_new_blocks_change_nothing_at_first() -> None:
    """The last BatchNorm of each branch, an inserted block's too, starts at 0; the Non-Local block's too."""
    torch.manual_seed(0)
    for insert in ("bot", "non_local"):
        model = create_model("botnet50", insert_c4=insert, **THIN)
        last = [module.bn3.weight for module in model.modules() if hasattr(module, "bn3")]
        last += [module.norm.weight for module in model.modules() if isinstance(module, NonLocal2d)]
        assert len(last) == 17
        assert not any(weight.any() for weight in last)
    for name, norm in (("resnet50", "bn3"), ("resnet18_bam", "bn2")):  # BAM's code starts at 1
        model = create_model(name, zero_init_last=False, **THIN)
        last = [getattr(module, norm).weight for module in model.modules() if hasattr(module, norm)]
        assert len(last) == {"bn3": 16, "bn2": 8}[norm]
        assert all(bool((weight == 1).all()) for weight in last)


def test_how_weights_start() -> None:
    """He et al.'s for convs (an inserted block's too), N(0, 0.01) and N(0, d^-1/2) for MHSA."""
    torch.manual_seed(0)
    model = create_model("botnet50", insert_c4="bot")
    for conv in (
        model.layer1[0].conv2,
        model.layer3.bot.conv1,
        model.layer3.bot.conv3,
        model.layer4[0].conv3,
    ):
        fan_out = conv.out_channels * conv.kernel_size[0] * conv.kernel_size[1]
        assert conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.03)
    for block in (model.layer3.bot, model.layer4[0]):
        d = block.conv2.channels // 4
        assert block.conv2.qkv.weight.std().item() == pytest.approx(0.01, rel=0.03)
        assert block.conv2.rel_h.std().item() == pytest.approx(d**-0.5, rel=0.1)
        assert (block.bn2.weight == 1).all()


@pytest.mark.parametrize("name", ["resnet50_bam", "resnet18_bam", "wrn18_1_5_bam", "wrn18_2_0_bam"])
def test_bam_ends_three_stages(name: str) -> None:
    model = on_meta(name)
    for number, stage in enumerate((model.layer1, model.layer2, model.layer3, model.layer4), start=1):
        modules = list(stage)
        assert isinstance(modules[-1], BAM) == (number < 4)
        assert sum(isinstance(module, BAM) for module in stage.modules()) == (number < 4)
        if number < 4:
            assert modules[-1].channels == model.feature_info[number]["num_chs"]


def test_bam_in_every_block_stands_on_the_branch() -> None:
    model = on_meta("resnet50", bam="blocks")
    names = [name for name, module in model.named_modules() if isinstance(module, BAM)]
    assert len(names) == 16
    assert {name.split(".")[-1] for name in names} == {"se"}


def test_activation_and_drop_path_reach_every_block() -> None:
    model = on_meta("botnet50", activation="silu", drop_path=0.2, dropout=0.3, insert_c5="bot")
    assert not any(isinstance(module, nn.ReLU) for module in model.modules())
    rates = [module.drop_prob for module in model.modules() if isinstance(module, DropPath)]
    assert rates == sorted(rates)
    assert len(rates) == 16  # all but the first of 16, and the inserted one
    assert rates[-1] == pytest.approx(0.2)
    assert model.drop_rate == 0.3


def test_wide_resnets_keep_the_stem() -> None:
    model = on_meta("wrn18_1_5")
    assert model.conv1.out_channels == 64
    assert [info["num_chs"] for info in model.feature_info] == [64, 96, 192, 384, 768]


def test_two_ways_to_keep_c5_at_c4s_size_are_refused_together() -> None:
    """Where 3×3 convs stay in c5 one of the options would do nothing; where all attend nothing is dilated."""
    with pytest.raises(ValueError, match="c5_stride=1 and output_stride=16: either keeps c5"):
        create_model("resnet26_thin", c5_stride=1, output_stride=16)
    model = create_model("botnet26_thin", c5_stride=1, output_stride=16, attend=[1])
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert all(conv.dilation == (1, 1) for conv in convs)


def test_the_shortcut_of_the_authors_code_is_activated() -> None:
    """Beside the first attention block of c5 alone, and under the same names."""
    networks = [create_model("botnet50", 2, 64, shortcut_act=act).eval() for act in (False, True)]
    networks[1].load_state_dict(networks[0].state_dict())
    x = torch.randn(1, 1024, 4, 4)
    plain, activated = (network.layer4[0].downsample(x) for network in networks)
    torch.testing.assert_close(activated, plain.relu())
    with pytest.raises(ValueError, match="wanted attend with a 1 for c5's first block"):
        create_model("botnet50_001", 2, 64, shortcut_act=True)


@pytest.mark.parametrize(
    ("name", "options"),
    [("botnet50", {}), ("senet50", {}), ("resnet50_bam", {}), ("resnet50", {"insert_c4": "non_local"})],
)
def test_weights_drawn_anew_are_of_the_same_size(name: str, options: dict[str, Any]) -> None:
    model = create_model(name, 2, 64, depths=[1, 1, 2, 1], **options)
    before = {name: one.detach().clone() for name, one in model.named_parameters() if one.numel() > 1000}
    model.init_weights()
    for name, one in model.named_parameters():
        if name in before and before[name].std() > 0:
            assert one.detach().std() == pytest.approx(float(before[name].std()), rel=0.2), name
            assert not torch.equal(one, before[name]) or name == "fc.weight"
