"""MHSA instead of 3×3 convolutions: which, where, on which maps; what stays; what refuses, and why."""

import re
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn
from torch.nn.utils import prune

from attneck.layers import MHSA2d
from attneck.models import create_model
from attneck.surgery import attend, insert_bam
from attneck.surgery.trace import is_hooked

THIN: dict[str, Any] = {"layers": (1, 1, 2, 2), "channels": (16, 16, 16, 32), "num_classes": 5}


def thin(block: type[nn.Module] = Bottleneck, **options: Any) -> ResNet:
    """timm's ResNet, small enough to run often."""
    torch.manual_seed(0)
    return ResNet(block, **{**THIN, **options})


def network(name: str, **options: Any) -> nn.Module:
    """timm's by name, torchvision's after "tv:", without weights."""
    if name.startswith("tv:"):
        return torchvision.models.get_model(name.removeprefix("tv:"), **options)
    with torch.device("meta"):
        return timm.create_model(name, **options)


def layers(model: nn.Module) -> dict[str, tuple[int, tuple[int, int], int]]:
    """Channels, map size and stride of each MHSA layer."""
    return {
        name: (layer.channels, layer.map_size, layer.stride)
        for name, layer in model.named_modules()
        if isinstance(layer, MHSA2d)
    }


def long(*case: Any) -> Any:
    """One in the long form: another of its make is in the short one."""
    return pytest.param(*case, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("name", "convs", "channels", "into", "strides"),
    [
        ("resnet50", "layer4.{}.conv2", 512, (14, 7, 7), (2, 1, 1)),
        ("resnext50_32x4d", "layer4.{}.conv2", 1024, (14, 7, 7), (2, 1, 1)),
        long("wide_resnet50_2", "layer4.{}.conv2", 1024, (14, 7, 7), (2, 1, 1)),
        long("seresnet50", "layer4.{}.conv2", 512, (14, 7, 7), (2, 1, 1)),
        long("resnet50d", "layer4.{}.conv2", 512, (14, 7, 7), (2, 1, 1)),
        # The first 1×1 strides, and the layer takes that over.
        ("legacy_seresnet50", "layer4.{}.conv2", 512, (14, 7, 7), (2, 1, 1)),
        # The anti-aliasing pool goes on to stride.
        ("resnetblur50", "layer4.{}.conv2", 512, (14, 7, 7), (1, 1, 1)),
        long("tresnet_m", "body.layer4.{}.conv2.conv", 512, (14, 7, 7), (1, 1, 1)),
        # Basic blocks stride in their first 3×3.
        ("resnet18", "layer4.{}.conv2", 512, (7, 7), (1, 1)),
        long("resnetv2_18", "stages.3.blocks.{}.conv2", 512, (7, 7), (1, 1)),
        ("resnetv2_50x1_bit", "stages.3.blocks.{}.conv2", 512, (14, 7, 7), (2, 1, 1)),
        ("regnety_016", "s4.b{}.conv2.conv", 888, (14, 7), (2, 1)),
        ("nf_resnet26", "stages.3.{}.conv2", 512, (14, 7), (2, 1)),
        long("cspresnet50", "stages.3.blocks.{}.conv2.conv", 512, (8, 8), (1, 1)),
        ("dla34", "level5.tree{}.conv2", 512, (7, 7), (1, 1)),
        ("dpn48b", "features.conv5_{}.c3x3_b.conv", 1024, (14, 7, 7), (2, 1, 1)),
        ("tv:resnet50", "layer4.{}.conv2", 512, (14, 7, 7), (2, 1, 1)),
        long("tv:resnext50_32x4d", "layer4.{}.conv2", 1024, (14, 7, 7), (2, 1, 1)),
        ("tv:regnet_y_1_6gf", "trunk_output.block4.block4-{}.f.b.0", 888, (14, 7), (2, 1)),
    ],
)
def test_the_last_stage_attends(
    name: str, convs: str, channels: int, into: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    model = network(name)
    before = model.state_dict(keep_vars=True)
    report = attend(model).report
    one_based = name.startswith(("regnety", "dla", "dpn"))
    wanted = {
        convs.format(index + one_based): (channels, (side, side), stride)
        for index, (side, stride) in enumerate(zip(into, strides, strict=True))
    }
    assert layers(model) == wanted
    assert [change.name for change in report.changes] == list(wanted)

    after = model.state_dict(keep_vars=True)
    gone = {key for key in before if key.startswith(tuple(f"{conv}." for conv in wanted))}
    assert {*before} - {*after} == gone == {*report.gone}
    assert all(after[key] is tensor for key, tensor in before.items() if key not in gone)
    assert {*after} - {*before} == {
        f"{conv}.{key}" for conv in wanted for key in ("qkv.weight", "rel_h", "rel_w")
    }
    added = sum(after[key].numel() for key in report.new) - sum(before[key].numel() for key in gone)
    assert report.after.params - report.before.params == added


def test_it_makes_the_networks_of_the_paper() -> None:
    """A ResNet-50 becomes BoTNet-50, tensor for tensor, and computes the same."""
    thin_names = {
        "widths": [16, 16, 16, 32],
        "depths": [1, 1, 2, 2],
        "num_classes": 5,
        "image_size": 64,
        "zero_init_last": False,  # else nothing inside a branch reaches the output
    }
    for name, blocks in (("botnet50", "all"), ("botnet50_100", 0), ("botnet50_100", (-2,))):
        torch.manual_seed(0)
        flags = {"attend": (1, 0)} if name != "botnet50" else {}
        published = create_model(name, **thin_names, **flags).eval()
        model = attend(thin(), blocks=blocks, image_size=64).model.eval()
        model.load_state_dict(published.state_dict())
        x = torch.randn(2, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(model(x), published(x), rtol=0, atol=0)


def test_costs_are_the_paper_s() -> None:
    """BoTNet Table 1: 25.5 M and 85.4 G at 1024 become 20.8 M and 102.98 G."""
    with torch.device("meta"):
        model = ResNet(Bottleneck, (3, 4, 6, 3))
    report = attend(model, image_size=1024).report
    assert (report.before.params, report.before.params_paper) == (25_557_032, 25_503_912)
    assert round(report.before.madds / 1e9, 1) == 85.4
    assert round(report.after.params_paper / 1e6, 1) == 20.8
    assert int(report.after.madds_no_classifier / 1e7) == 10298
    text = str(report)
    assert "layer4.0.conv2: MHSA2d of 512 channels on 64×64, stride 2 instead of a 3×3 convolution" in text
    assert "tensors: 317 kept, 9 new, 3 gone" in text
    assert "parameters: 25,557,032 → " in text
    assert "multiply-adds: 85.41" in text


def test_a_network_of_clips_is_told_that_it_is_one() -> None:
    model = nn.Sequential(nn.Conv3d(3, 4, 3), nn.Flatten(2), nn.Linear(8, 8))
    for surgery in (attend, insert_bam):
        with pytest.raises(ValueError, match=r"works on clips \[B, C, T, H, W\]"):
            surgery(model)


@pytest.mark.parametrize(
    ("name", "stage", "reason"),
    [
        ("vgg11_bn", -1, "no residual block in this VGG"),
        ("densenet121", -1, "no residual block in this DenseNet"),
        ("inception_v3", -1, "no residual block in this InceptionV3"),
        ("vit_tiny_patch16_224", -1, "no residual block in this VisionTransformer"),
        ("mobilenetv2_050", -1, "'blocks.5.1' cannot attend: its 3×3 convolution is depthwise"),
        ("efficientnet_b0", "blocks.2", "it has no 3×3 convolution to replace, only 1×1, 5×5; choose other"),
        ("convnext_atto", -1, "it has no 3×3 convolution to replace, only 1×1, 7×7"),
        ("darknet17", -1, "its 3×3 convolution makes 1024 channels of 512"),
        ("resnest14d", -1, "its 3×3 convolution makes 1024 channels of 512"),
        ("res2net50_14w_8s", -1, "part of its map goes past the 3×3 convolution"),
        ("skresnet50", -1, "its 3×3 convolution makes 512 channels of 256"),
        ("repvgg_a0", -1, "part of its map goes past the 3×3 convolution"),
        ("botnet26t_256", -1, "it has no 3×3 convolution to replace, only 1×1"),
        ("resnet18", 4, "stage=4: this ResNet has 4 stages of residual blocks, layer1.0 to layer1.1, "),
        ("resnet18", "layer5", "stage='layer5' has no residual block; perhaps you meant 'layer4'; this "),
    ],
)  # fmt: skip
def test_what_has_no_place_says_why(name: str, stage: int | str, reason: str) -> None:
    model = network(name)
    before = model.state_dict(keep_vars=True)
    with pytest.raises(ValueError, match=f"^[^\n]*{re.escape(reason)}[^\n]*$"):
        attend(model, stage)
    after = model.state_dict(keep_vars=True)
    assert after.keys() == before.keys()
    assert all(after[key] is tensor for key, tensor in before.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": (2,)}, r"blocks=\(2,\): wanted 'all', or numbers of the 2 blocks, layer4.0, layer4.1"),
        ({"blocks": ()}, r"blocks=\(\): wanted 'all'"),
        ({"blocks": "some"}, "blocks='some': wanted 'all'"),
        ({"heads": 5}, "instead of 'layer4.0.conv2': 32 channels do not split into 5 heads"),
        ({"position": "sine"}, "unknown position 'sine'"),
        ({"position": "none", "content": False}, "leaves no logits"),
        ({"image_size": 0}, "image_size=0: wanted .height, width., or one number"),
    ],
)
def test_what_makes_no_sense_is_refused_and_nothing_is_changed(options: dict[str, Any], message: str) -> None:
    model = thin()
    before = model.state_dict(keep_vars=True)
    with pytest.raises(ValueError, match=message):
        attend(model, **options)
    assert all(model.state_dict(keep_vars=True)[key] is tensor for key, tensor in before.items())
    assert model.layer4[0].conv2.stride == (2, 2)


def test_a_second_time_is_refused() -> None:
    model = attend(thin()).model
    with pytest.raises(ValueError, match=r"'layer4.0' cannot attend: it has an MHSA2d already"):
        attend(model)
    assert len(layers(attend(model, "layer3").model)) == 4


def test_options_and_stages_by_name_or_number() -> None:
    for stage in (1, -3, "layer2", "layer2.0"):
        model = attend(thin(), stage, heads=2, position="absolute", content=False).model
        (layer,) = (m for m in model.modules() if isinstance(m, MHSA2d))
        assert layers(model) == {"layer2.0.conv2": (16, (56, 56), 2)}
        assert (layer.heads, layer.position, layer.content) == (2, "absolute", False)


def test_a_basic_block_s_first_convolution_keeps_its_stride() -> None:
    model = attend(thin(BasicBlock), image_size=64).model
    assert layers(model) == {f"layer4.{index}.conv2": (32, (2, 2), 1) for index in (0, 1)}
    assert model.get_submodule("layer4.0.conv1").stride == (2, 2)
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 5)


def test_the_stride_of_a_1x1_goes_to_the_layer() -> None:
    """The catalog's networks with stride_on="1x1" become what the catalog builds with attention."""
    options: dict[str, Any] = {"depths": [1, 1, 1, 1], "mids": [8, 8, 8, 8], "outs": [16, 16, 16, 16]}
    published = create_model("cifar_resnet50", attend=True, **options).eval()
    model = create_model("cifar_resnet50", **options)
    strided = model.get_submodule("layer4.0.conv1")
    assert strided.stride == (2, 2)
    attend(model.eval(), image_size=32)
    assert strided.stride == (1, 1)
    assert layers(model) == layers(published) == {"layer4.0.conv2": (8, (8, 8), 2)}
    model.load_state_dict(published.state_dict())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(x), published(x), rtol=0, atol=0)


def test_gradients_reach_what_is_new() -> None:
    model = attend(thin(zero_init_last=False), image_size=64).model.train()
    model(torch.randn(4, 3, 64, 64)).square().sum().backward()
    for name in layers(model):
        for parameter in model.get_submodule(name).parameters():
            assert parameter.grad is not None
            assert parameter.grad.any()


def test_device_dtype_mode_and_frozen_weights() -> None:
    model = thin().to(torch.bfloat16)
    model.requires_grad_(False)
    model.train()
    model.layer4.eval()
    model = attend(model, image_size=64).model
    assert model.training
    for name in layers(model):
        layer = model.get_submodule(name)
        assert not layer.training
        assert all(p.dtype == torch.bfloat16 and p.requires_grad for p in layer.parameters())
    assert sum(p.requires_grad for p in model.parameters()) == 6
    with torch.device("meta"):
        other = ResNet(Bottleneck, **THIN)
    assert {p.device.type for p in attend(other).model.parameters()} == {"meta"}


def test_grey_images_and_feature_extractors() -> None:
    model = attend(thin(in_chans=1), image_size=64).model
    assert model(torch.randn(2, 1, 64, 64)).shape == (2, 5)
    features = timm.create_model("test_resnet", features_only=True)
    attend(features, image_size=64)
    assert [tuple(map.shape[2:]) for map in features(torch.randn(2, 3, 64, 64))] == [
        (32, 32), (16, 16), (8, 8), (4, 4), (2, 2),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("image_size", "map_size"),
    [(32, (1, 1)), (33, (2, 2)), (65, (3, 3)), ((32, 128), (1, 4)), ((65, 200), (3, 7)), ((33, 128), (2, 4))],
)
def test_the_last_stage_is_the_last_on_small_narrow_and_odd_images(image_size: Any, map_size: Any) -> None:
    report = attend(network("resnet18"), image_size=image_size).report
    assert [(change.name, change.map_size) for change in report.changes] == [
        ("layer4.0.conv2", map_size),
        ("layer4.1.conv2", map_size),
    ]


@pytest.mark.parametrize(
    "register",
    ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"],
)
def test_hooks_would_be_lost_and_are_refused(register: str) -> None:
    model = thin()
    handle = getattr(model.layer4[1].conv2, f"register_{register}")(lambda *_: None)
    before = list(model.state_dict())
    with pytest.raises(ValueError, match=r"'layer4.1.conv2' has hooks, and they would be lost with it: rem"):
        attend(model)
    assert list(model.state_dict()) == before
    handle.remove()
    nn.utils.weight_norm(model.layer4[0].conv2)
    prune.random_unstructured(model.layer4[1].conv2, "weight", 0.5)
    assert len(layers(attend(model).model)) == 2  # what only computes the weights goes with them


class Own(prune.RandomUnstructured):
    """Somebody's own pruning."""


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_what_only_computes_weights_is_no_hook() -> None:
    for compute in (
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        lambda conv: prune.random_unstructured(conv, "weight", 0.5),
        lambda conv: Own.apply(conv, "weight", amount=0.5),
    ):
        conv = nn.Conv2d(3, 4, 1)
        compute(conv)
        assert not is_hooked(conv)


class TwoNames(nn.Module):
    """A block whose convolutions are attributes and parts of a row, too."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.row = nn.Sequential(self.conv1, nn.ReLU(), self.conv2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.row(x)


def test_a_convolution_with_two_names_is_replaced_under_both() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), TwoNames(8))
    attend(model, image_size=16)
    assert isinstance(model[1].conv2, MHSA2d)
    assert model[1].row[2] is model[1].conv2


class ConvAndNorm(nn.Conv2d):
    """A convolution with a norm of its own, as other libraries have."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.norm = nn.BatchNorm2d(self.out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(super().forward(x))


def test_what_a_convolution_s_module_does_besides_is_not_lost() -> None:
    block = TwoNames(8)
    block.conv2 = block.row[2] = ConvAndNorm(8, 8, 3, padding=1)
    pre = create_model("cifar_resnet20", order="pre", depths=[1, 1, 1], num_classes=4)
    insert_bam(pre, at="blocks")
    for model, what in ((nn.Sequential(nn.Conv2d(3, 8, 1), block), "norm"), (pre, "bam")):
        before = {*model.state_dict()}
        with pytest.raises(ValueError, match=f"does more to the map, by {what}, and that would be lost"):
            attend(model, image_size=32)
        assert {*model.state_dict()} == before


class InAList(TwoNames):
    """A block whose forward goes through a plain list, which no module is replaced in."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.layers = [*self.row]
        del self.row

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for layer in self.layers:
            y = layer(y)
        return x + y


class AsksForMore(TwoNames):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(self.conv1(x)).to(self.conv2.weight.dtype)


@pytest.mark.parametrize(
    ("block", "reason"),
    [(InAList(8), "; does it keep the conv"), (AsksForMore(8), r"\(AttributeError: .*'weight'\); does it")],
)
def test_a_convolution_that_is_not_called_by_its_name_stays(block: nn.Module, reason: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), block)
    before = model.state_dict(keep_vars=True)
    with pytest.raises(ValueError, match=f"^'1.conv2' cannot be replaced: .*{reason}"):
        attend(model, image_size=16)
    assert all(model.state_dict(keep_vars=True)[key] is tensor for key, tensor in before.items())
    assert not block.conv2._forward_hooks  # type: ignore[union-attr]
