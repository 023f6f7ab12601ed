"""A stage that keeps the size of the map before it, as BoTNet-S1's last: what strides no more; refusals."""

from typing import Any

import pytest
import timm
import torch
import torchvision
from test_attend import layers, long, network, thin
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

import attneck
from attneck.models import create_model
from attneck.surgery import attend, insert_bam


def test_it_makes_the_network_of_the_paper() -> None:
    """A ResNet-50 becomes BoTNet-S1-50, tensor for tensor, and computes the same; BAM goes in before."""
    small = {"widths": [16, 16, 16, 32], "depths": [1, 1, 2, 2], "num_classes": 5, "image_size": 64}
    published = create_model("botnet_s1_50", **small, zero_init_last=False).eval()
    for block in (Bottleneck, BasicBlock):
        model: Any = attend(thin(block), stride=1, image_size=64).model.eval()
        if block is Bottleneck:
            model.load_state_dict(published.state_dict())
            x = torch.randn(2, 3, 64, 64)
            with torch.no_grad():
                torch.testing.assert_close(model(x), published(x), rtol=0, atol=0)
        assert [info["reduction"] for info in model.feature_info] == [2, 4, 8, 16, 16]
        x = torch.randn(1, 3, 96, 64)
        last, maps = model.forward_intermediates(x)
        assert model.forward_features(x).shape[2:] == last.shape[2:] == maps[-1].shape[2:] == (6, 4)

    with_bam = create_model("botnet_s1_50", **small, bam="stages")
    model = thin()
    insert_bam(model, image_size=64)
    attend(model, stride=1, image_size=64)
    kinds = [type(module).__name__ for module in model.modules()]
    assert kinds.count("BAM") == 3 == [type(module).__name__ for module in with_bam.modules()].count("BAM")


def test_its_cost_is_the_catalog_s() -> None:
    report = attend(network("resnet50"), stride=1, image_size=224).report
    published = attneck.measure.count(network_of("botnet_s1_50"), 224)
    assert (report.after.params, report.after.madds) == (published.params, published.madds)
    assert report.unstrided == ("layer4.0.downsample.0",)
    assert "  layer4.0.downsample.0: no stride any more\n" in str(report)


def network_of(name: str) -> nn.Module:
    with torch.device("meta"):
        return create_model(name)


@pytest.mark.parametrize(
    ("name", "unstrided", "side"),
    [
        ("resnet18", ("layer4.0.conv1", "layer4.0.downsample.0"), 14),
        long("resnet50d", ("layer4.0.downsample.0",), 14),  # its pool
        ("resnetblur50", ("layer4.0.aa", "layer4.0.downsample.0"), 14),
        ("resnetv2_50x1_bit", ("stages.3.blocks.0.downsample.conv",), 14),
        long("legacy_seresnet50", ("layer4.0.conv1", "layer4.0.downsample.0"), 14),  # on the 1×1
        ("regnety_016", ("s4.b1.downsample.conv",), 14),
        long("nf_resnet26", ("stages.3.0.downsample.pool",), 14),
        # What makes the map smaller lies outside of the blocks.
        ("cspresnet50", ("stages.3.conv_down.conv",), 16),
        ("dla34", ("level5.downsample", "level5.tree1.conv1"), 14),
        long("dpn48b", ("features.conv5_1.c1x1_w_s2.conv",), 14),
        long("tresnet_m", ("body.layer4.0.conv2.aa", "body.layer4.0.downsample.0"), 14),
        ("tv:regnet_y_1_6gf", ("trunk_output.block4.block4-0.proj.0",), 14),
    ],
)
def test_no_stride_is_left_in_the_stage(name: str, unstrided: tuple[str, ...], side: int) -> None:
    model: Any = network(name)
    before = model.state_dict(keep_vars=True)
    report = attend(model, stride=1).report
    assert report.unstrided == unstrided
    assert {(size, stride) for _, size, stride in layers(model).values()} == {((side, side), 1)}
    after = model.state_dict(keep_vars=True)
    assert all(after[key] is tensor for key, tensor in before.items() if key not in report.gone)
    assert all(key.startswith(tuple(change.name for change in report.changes)) for key in report.gone)
    if not name.startswith("tv:"):
        assert [info["reduction"] for info in model.feature_info][-2:] == [16, 16]


def test_networks_of_features_say_so() -> None:
    kinds = ({}, *({"feature_cls": kind} for kind in ("dict", "hook", "getter", "fx")))
    for name, options in (("regnety_002", {}), *(("resnet18", kind) for kind in kinds)):
        model: Any = timm.create_model(name, features_only=True, **options).eval()
        attend(model, stride=1, image_size=64)
        with torch.no_grad():
            maps = model(torch.randn(1, 3, 64, 64))
        sides = [each.shape[-1] for each in (maps.values() if isinstance(maps, dict) else maps)]
        assert sides == [64 // reduction for reduction in model.feature_info.reduction()] == [32, 16, 8, 4, 4]


def test_on_the_smallest_images_too() -> None:
    """A mean of 2×2 positions is a map of the stage, too."""
    for name, size in (("resnet18d", 32), ("nf_resnet26", 32), ("resnet18d", 31)):
        model = network(name)
        attend(model, stride=1, image_size=size)
        assert [side for _, side, _ in layers(model).values()] == [(2, 2)] * 2


def test_an_earlier_stage_leaves_later_ones_twice_as_large() -> None:
    model: Any = thin(BasicBlock)
    report = attend(model, -2, stride=1, image_size=64).report
    assert report.unstrided == ("layer3.0.conv1", "layer3.0.downsample.0")
    assert [info["reduction"] for info in model.feature_info] == [2, 4, 8, 8, 16]
    assert model.forward_features(torch.randn(1, 3, 64, 64)).shape[2:] == (4, 4)


def test_it_is_saved_and_loaded(tmp_path: Any) -> None:
    small = {"widths": [16, 16, 16, 32], "depths": [1, 1, 1, 1], "num_classes": 5, "image_size": 64}
    model: Any = create_model("resnet50", **small).eval()
    attend(model, stride=1, image_size=64)
    again: Any = attneck.load(attneck.hub.save(model, tmp_path / "s1.safetensors"))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)
    assert again.feature_info[-1]["reduction"] == 16


class Pooled(nn.Module):
    """Two stages of one block; what makes the map smaller is given."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.one, self.two = Block(), Block()

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.second(self.one(self.first(x)))).mean((2, 3))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.conv1(x).relu())


class Sliced(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, ::2, ::2]


class Encoder(nn.Module):
    """A stem and two stages, beside which other things may be made of the first one's map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one = nn.Conv2d(3, 8, 3, 2, 1), Block()
        self.pool, self.side = nn.AvgPool2d(2), nn.AvgPool2d(2)
        self.two = Block()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        c1 = self.one(self.stem(x))
        return c1, self.two(self.pool(c1)), self.side(c1).mean((2, 3))


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = Encoder(), Encoder()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.a(x)[1], self.b(x)[1]


class Decoder(nn.Module):
    """Its block's map is made of a smaller one, and of one of its size."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.lateral, self.last = Encoder(), nn.Conv2d(8, 8, 1), Block()

    def forward(self, x: Tensor) -> Tensor:
        c1, c2, _ = self.encoder(x)
        return self.last(nn.functional.interpolate(c2, scale_factor=2.0) + self.lateral(c1))


class InRoot(nn.Module):
    """Its blocks are no modules of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(4))
        self.stem, self.down = nn.Conv2d(3, 8, 3, 2, 1), nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.down(x + self.b(self.a(x)))
        return x + self.d(self.c(x))


def test_what_only_shares_the_size_keeps_its_stride() -> None:
    for model, stage, names in ((Encoder(), -1, ("pool",)), (Two(), "a.two", ("a.pool",))):
        report = attend(model, stage, stride=1, heads=2, image_size=32).report
        assert report.unstrided == names
    report = attend(InRoot(), stride=1, heads=2, image_size=32).report
    assert report.unstrided == ("down",)
    assert [change.name for change in report.changes] == ["d"]


def pooled(second: nn.Module) -> Pooled:
    return Pooled(nn.Conv2d(3, 8, 3, 2, 1), second)


def test_any_pool_goes() -> None:
    for pool in (nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2), Sliced()):
        model = pooled(pool)
        attend(model, stride=1, heads=2, image_size=32)
        assert isinstance(model.second, nn.Identity)
        assert layers(model)["two.conv2"][1] == (16, 16)


def hooked() -> Pooled:
    model = pooled(nn.AvgPool2d(2))
    model.second.register_forward_hook(lambda *given: None)
    return model


def shared() -> nn.Module:
    pool = nn.AvgPool2d(2)
    return nn.Sequential(nn.Conv2d(3, 8, 1), Pooled(pool, pool))


class Rectified(nn.AvgPool2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


def two_names() -> Pooled:
    model = pooled(nn.AvgPool2d(2))
    model.again = nn.Sequential(model.second)
    return model


def test_a_pool_goes_under_all_of_its_names() -> None:
    model: Any = attend(two_names(), stride=1, heads=2, image_size=32).model
    assert [type(each) for each in (model.second, model.again[0])] == [nn.Identity] * 2


class ByAFunction(nn.Module):
    """It makes the map smaller by a function, and has weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.prelu(nn.functional.avg_pool2d(x, 2), self.weight)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (lambda: thin(output_stride=16), {}, "the map of 'layer4.0' is made of one that is no larger"),
        (thin, {"stage": "layer4.1"}, "'layer4.1' to 'layer4.1' are not the blocks of one stage"),
        (lambda: nn.Sequential(thin()), {"stage": "0"}, "'0.layer1.0' to '0.layer4.1' are not the blocks of"),
        (Decoder, {"stage": "last", "heads": 2}, "the map of 'last' is made of one that is no larger"),
        (thin, {"stride": 2}, "stride=2: wanted 1, for a stage that keeps the size"),
        (thin, {"stride": True}, "stride=True: wanted 1"),
        (thin, {"blocks": (1,)}, r"stride=1 and blocks=\(1,\): a stage that keeps the size attends in all"),
        (lambda: network("hrnet_w18_small"), {}, "the map of 'incre_modules.3.0' is made of one that"),
        (lambda: network("convnext_atto"), {}, "it has no 3×3 convolution to replace"),
        (lambda: pooled(nn.Conv2d(8, 8, 2, 2)), {"heads": 2}, "where 'second' does not stride, this"),
        (lambda: pooled(ByAFunction()), {"heads": 2}, "'second' makes the map smaller, and"),
        (lambda: pooled(Rectified(2)), {"heads": 2}, "'second' makes the map smaller, and"),
        (lambda: pooled(nn.AdaptiveAvgPool2d(8)), {"heads": 2}, "'second' makes the map smaller, and"),
        (hooked, {"heads": 2}, "'second' has hooks, which would be lost"),
        (shared, {"heads": 2}, "'1.first' makes maps smaller elsewhere too"),
    ],
)
def test_what_cannot_keep_the_size_is_refused_and_nothing_is_changed(
    model: Any, options: dict[str, Any], message: str
) -> None:
    given: nn.Module = model()
    before = str(given)
    with pytest.raises(ValueError, match=message) as error:
        attend(given, **{"stride": 1, "image_size": 64, **options})
    assert len(str(error.value)) < 300
    assert str(given) == before


def test_detectors_see_the_larger_map() -> None:
    """torchvision's, whose pooling takes each map's scale from its size."""
    detector: Any = torchvision.models.detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    attend(detector.backbone.body, image_size=64, stride=1)
    maps = detector.backbone(torch.randn(1, 3, 64, 64))
    assert [each.shape[-1] for each in maps.values()] == [16, 8, 4, 4, 2]
