"""`attneck.explain.maps` against the layers' own methods, the float64 oracle and plain sums."""

from typing import Any

import pytest
import torch
from timm.layers.bottleneck_attn import BottleneckAttn
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils._python_dispatch import TorchDispatchMode

import attneck
from attneck.attention import reference
from attneck.explain import Maps, maps
from attneck.explain.seeing import gain_of
from attneck.layers import BAM, MHSA2d, fold
from attneck.layers.mhsa import TABLES

SIZES = {"as built": (6, 6), "another": (5, 9)}
LAYERS: dict[str, dict[str, Any]] = {
    "relative": {},
    "stride 2": {"stride": 2},
    "positions alone": {"content": False},
    "absolute": {"position": "absolute"},
    "absolute alone": {"position": "absolute", "content": False},
    "none": {"position": "none"},
}


def image(*size: int) -> Tensor:
    return torch.randn(1, 8, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def sharp(**options: Any) -> MHSA2d:
    """A layer whose weights are far from even."""
    torch.manual_seed(0)
    layer = MHSA2d(8, (6, 6), heads=2, **options).double()
    with torch.no_grad():
        layer.qkv.weight *= 100
    return layer


def rows_of(found: Any, part: Any = "both") -> Tensor:
    """[h, N, N]"""
    H, W = found.map_size
    return torch.stack([found.row(y, x, part).flatten(1) for y in range(H) for x in range(W)], 1)


def test_what_was_seen_stays_as_it_was() -> None:
    """A layer that is trained on writes into its weights."""
    model = nn.Sequential(BAM(8, reduction=2, start="identity"), MHSA2d(8, (6, 6), heads=2))
    found = maps(model, image(6, 6).float())
    before = [found.mhsas[0].row(2, 3), *found.mhsas[0].tables, found.bams[0].gain]
    before = [one.clone() for one in before if one is not None]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    after = [found.mhsas[0].row(2, 3), *found.mhsas[0].tables, found.bams[0].gain]
    assert len(before) == len(after) == 4
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
def test_a_row_is_what_the_layer_applies(options: dict[str, Any], size: tuple[int, int]) -> None:
    layer, x = sharp(**options), image(*size)
    (found,) = maps(nn.Sequential(layer), x).mhsas
    assert (found.name, found.map_size, found.heads, found.image_size) == ("0", size, 2, size)
    want = layer.attention_maps(x)[0]  # [h, N, N]
    assert want.max() > 0.2
    torch.testing.assert_close(rows_of(found), want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
def test_each_part_is_the_softmax_of_its_term(options: dict[str, Any]) -> None:
    layer, x = sharp(**options), image(6, 6)
    (found,) = maps(nn.Sequential(layer), x).mhsas
    assert (found.content, found.position) == (layer.content, layer.position)
    parts = reference.convolution_1x1(x, layer.qkv.weight).flatten(2).unflatten(1, (-1, 2, 4)).transpose(2, 3)
    parts = parts.transpose(2, 3)  # [1, 3h or 2h in heads, d, N]
    q, *k, _ = (part.transpose(-2, -1) for part in parts.unbind(1))  # [1, h, N, d]
    q = q * layer.head_width**-0.5
    if layer.content:
        want = reference.content_logits(q, k[0]).softmax(-1)[0]
        torch.testing.assert_close(rows_of(found, "content"), want, rtol=1e-10, atol=1e-12)
    else:
        with pytest.raises(ValueError, match="'0' has no content term"):
            found.row(0, 0, "content")
    if layer.position == "none":
        with pytest.raises(ValueError, match="'0' has no positions"):
            found.row(0, 0, "position")
        return
    logits: Any = getattr(reference, f"{layer.position}_logits_2d")
    want = logits(q, *map(layer.get_parameter, TABLES[layer.position]), (6, 6)).softmax(-1)[0]
    torch.testing.assert_close(rows_of(found, "position"), want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
def test_distance_is_the_mean_over_all_pairs(options: dict[str, Any]) -> None:
    layer = sharp(**options)
    model = nn.Sequential(nn.AvgPool2d((3, 2)), layer)  # places of 3 x 2 pixels
    found = maps(model, image(15, 18)).mhsas[0]
    y, x = (torch.arange(45) // 9).double(), (torch.arange(45) % 9).double()
    apart = (9 * (y[:, None] - y).square() + 4 * (x[:, None] - x).square()).sqrt()  # [N, N]
    want = (layer.attention_maps(model[0](image(15, 18)))[0] * apart).sum((1, 2)) / 45
    torch.testing.assert_close(found.distance(), want, rtol=1e-10, atol=1e-10)


def test_a_layer_set_to_look_left_does() -> None:
    layer = looking_left(MHSA2d(8, (6, 6), heads=2))
    found = maps(nn.Sequential(layer), torch.ones(8, 6, 6)).mhsas[0]
    for y, x in ((2, 3), (0, 1), (5, 5)):
        row = found.row(y, x)
        assert row[:, y, x - 1].min() > 0.99, (y, x)
    assert found.distance()[0] > 0.8  # one pixel, but for the first column


def looking_left(layer: MHSA2d) -> MHSA2d:
    """From the place one to the left, whatever is there: for inputs of ones."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        H, W = layer.map_size
        layer.qkv.weight[: layer.channels] = 1.0
        layer.rel_h[H - 1], layer.rel_w[W - 2] = 10, 10
    return layer


BAMS: dict[str, dict[str, Any]] = {
    "paper": {},
    "official": {"variant": "official"},
    "product": {"combine": "prod"},
    "channel": {"branches": "channel"},
    "spatial": {"branches": "spatial"},
    "identity": {"start": "identity"},
}


@pytest.mark.parametrize("options", BAMS.values(), ids=BAMS)
def test_bam_says_what_its_methods_say(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layer, x = BAM(8, reduction=2, **options).double(), image(6, 7)
    layer(x.repeat(3, 1, 1, 1) + torch.randn(3, 8, 6, 7))  # BatchNorm's statistics
    layer.eval()
    (found,) = maps(nn.Sequential(layer), x).bams
    assert (found.name, found.map_size) == ("0", (6, 7))
    with torch.no_grad():
        torch.testing.assert_close(found.attention, layer.attention(x)[0])
        assert (found.channel is None) == (layer.channel_att is None)
        assert (found.spatial is None) == (layer.spatial_att is None)
        if found.channel is not None:
            torch.testing.assert_close(found.channel, layer.channel_attention(x)[0])
        if found.spatial is not None:
            torch.testing.assert_close(found.spatial, layer.spatial_attention(x)[0, 0])
        torch.testing.assert_close(found.before, x[0].abs().mean(0))
        torch.testing.assert_close(found.after, layer(x)[0].abs().mean(0))
        assert (found.gain is None) == (layer.gain is None)
        if layer.gain is not None:  # at first it changes nothing, whatever M is
            assert gain_of(found) == "0 to 0"
            layer.gain[0] = -0.25
            assert gain_of(maps(nn.Sequential(layer), x).bams[0]) == "-0.25 to 0"


class _Sizes(TorchDispatchMode):
    """The most numbers that a tensor has."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, tuple | list) else [result]:
            self.most = max(self.most, one.numel() if isinstance(one, Tensor) else 0)
        return result


def test_no_map_of_all_pairs_is_made() -> None:
    layer = MHSA2d(16, 64, heads=4).eval()
    x = torch.randn(16, 64, 64)
    with _Sizes() as sizes:
        found = maps(nn.Sequential(layer), x).mhsas[0]
        found.row(10, 20), found.row(63, 0, "position"), found.row(0, 63, "content")
        assert sizes.most <= 3 * 16 * 64**2  # queries, keys and values
        found._weights(5, slice(0, 64), "both")  # what `distance` has at a time
    assert sizes.most <= 4 * 64 * 64**2 < 64**4 / 10
    with _Sizes() as sizes:
        layer.attention_maps(x[None, :, :16, :16])
    assert sizes.most >= 4 * 16**4  # the meter works


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """BAM after three stages, MHSA in the last."""
    torch.manual_seed(0)
    return attneck.create_model("cifar_resnet20_bot_bam", num_classes=3, image_size=32, depths=[1, 1, 2])


def test_a_network_is_as_it_was(network: nn.Module) -> None:
    network.train()
    network.get_submodule("bn1").eval()  # a part in another mode
    before = {name: value.clone() for name, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    found = maps(network, torch.randn(3, 32, 32))
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())

    network.eval()
    names = {name: module for name, module in network.named_modules() if isinstance(module, BAM | MHSA2d)}
    assert [one.name for one in found.bams] == [name for name, one in names.items() if isinstance(one, BAM)]
    assert [one.name for one in found.mhsas] == [
        name for name, one in names.items() if isinstance(one, MHSA2d)
    ]
    assert found.notes == ()


def test_hooks_go_whatever_happens(network: nn.Module) -> None:
    with pytest.raises(RuntimeError, match="channels"):
        maps(network, torch.randn(7, 32, 32))
    assert not any(module._forward_hooks for module in network.modules())


def same(first: Maps, second: Maps) -> None:
    assert len(first.mhsas) == len(second.mhsas) > 0
    for one, other in zip(first.mhsas, second.mhsas, strict=True):
        torch.testing.assert_close(one.row(1, 2), other.row(1, 2), rtol=1e-4, atol=1e-5)
        for part in ("content", "position"):
            torch.testing.assert_close(one.row(1, 2, part), other.row(1, 2, part), rtol=1e-4, atol=1e-5)
    for before, after in zip(first.bams, second.bams, strict=True):
        torch.testing.assert_close(before.attention, after.attention, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first.output, second.output, rtol=1e-4, atol=1e-5)


def test_folded_and_shown_layers_are_the_same(network: nn.Module) -> None:
    network.eval()
    x = torch.randn(3, 32, 32)
    want = maps(network, x)
    torch.testing.assert_close(want.output, network(x[None])[0])
    same(want, maps(fold(network), x))
    shown = [module for module in network.modules() if isinstance(module, MHSA2d)]
    for module in shown:
        module.show_maps()
    same(want, maps(network, x))
    for module in shown:
        module.show_maps(False)


def test_adopted_attention() -> None:
    torch.manual_seed(0)
    theirs = nn.Sequential(BottleneckAttn(16, feat_size=(6, 6), num_heads=2, stride=2))
    x = torch.randn(1, 16, 6, 6)
    model = attneck.surgery.adopt(theirs).model
    found = maps(model, x).mhsas[0]
    layer = next(module for module in model.modules() if isinstance(module, MHSA2d))
    torch.testing.assert_close(rows_of(found), layer.attention_maps(x)[0].detach())


def test_surgery_in_timm() -> None:
    import timm

    model = timm.create_model("resnet10t", num_classes=2)
    attneck.surgery.attend(model, image_size=64)
    attneck.surgery.insert_bam(model, image_size=64)
    found = maps(model, torch.randn(3, 64, 96))
    assert len(found.mhsas) == 1
    assert len(found.bams) == 3
    assert found.mhsas[0].map_size == (2, 3)


class Odd(nn.Module):
    """A layer that runs twice, one that never runs, one that runs on regions."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.never, self.regions = BAM(16), BAM(16), MHSA2d(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(x=self.twice(x))
        return self.regions(x.repeat(5, 1, 1, 1)).mean((0, 2, 3))[None]


def test_layers_that_run_otherwise_are_told() -> None:
    found = maps(Odd(), torch.randn(16, 4, 4))
    assert [(one.name, one.call) for one in found.bams] == [("twice", 1), ("twice", 2)]
    torch.testing.assert_close(found.bams[0].after, found.bams[1].before)
    assert found.mhsas == ()
    assert [note.partition(":")[0] for note in found.notes] == [
        "'twice' ran 2 times",
        "'regions' ran on regions of the image (5), which have no one map",
        "'never' did not run",
    ]


@pytest.mark.parametrize("regions", [1, 3])
def test_attention_in_regions_is_not_taken_for_the_images(regions: int) -> None:
    """Of Faster R-CNN without a pyramid the last stage sees regions, though it be one."""
    torch.manual_seed(0)
    model = attneck.create_model(
        "fasterrcnn_botnet26_thin", num_classes=3, variant="c4", proposals=regions, depths=[1, 1, 1, 1]
    )
    found = maps(model, torch.rand(3, 256, 256))
    assert found.mhsas == ()
    name = "roi_heads.box_head.layer4.0.conv2"
    assert found.notes == (f"{name!r} ran on regions of the image ({regions}), which have no one map",)


def test_a_detector_says_what_its_batch_is() -> None:
    torch.manual_seed(0)
    sizes = {"channels": 16, "box_features": 32, "box_convs": 1, "rois": 16}
    options = {"depths": [1, 1, 1, 1], **sizes}
    model = attneck.create_model("fasterrcnn_botnet26_thin", num_classes=3, image_size=128, **options)
    found = maps(model, torch.rand(3, 40, 60))
    assert found.image_size == (128, 128)
    assert found.seen == (85, 128)
    assert found.mhsas[0].image_size == (128, 128)
    assert set(found.output) == {"boxes", "labels", "scores"}
    assert model.training
    averaged = maps(AveragedModel(model), torch.rand(3, 40, 60))
    assert (averaged.image_size, averaged.seen) == (found.image_size, found.seen)


def test_a_dictionary_or_a_list_of_results_loses_its_batch() -> None:
    class Named(nn.Module):
        def __init__(self, result: Any) -> None:
            super().__init__()
            self.bam, self.result = BAM(16, reduction=4), result

        def forward(self, x: Tensor) -> Any:
            return self.result(self.bam(x))

    x = torch.randn(16, 4, 4)
    found = maps(Named(lambda y: {"out": y, "aux": [y], "sum": y.sum()}), x).output
    assert (found["aux"][0].shape, found["sum"].shape) == ((16, 4, 4), ())  # a sum over it has none
    assert [y.shape for y in maps(Named(lambda y: [y, y.mean((2, 3))]), x).output] == [(16, 4, 4), (16,)]


MISTAKES = {
    "no layer": (lambda: nn.Conv2d(3, 3, 1), torch.randn(3, 8, 8), "this Conv2d has no BAM and no MHSA2d"),
    "two images": (lambda: BAM(16), torch.randn(2, 16, 8, 8), "wanted one image"),
    "bytes": (lambda: BAM(16), torch.ones(16, 8, 8, dtype=torch.uint8), "is of torch.uint8"),
    "a path": (lambda: BAM(16), "photo.jpg", "with an attneck.Run"),
    "no model": (lambda: "botnet50", torch.randn(3, 8, 8), "wanted a torch.nn.Module"),
}


@pytest.mark.parametrize(("model", "given", "says"), MISTAKES.values(), ids=MISTAKES)
def test_what_cannot_be_seen_is_refused(model: Any, given: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        maps(model(), given)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("place", [(6, 0), (-1, 0), (0, 6), (1.0, 0), (True, 0)])
def test_a_place_off_the_map_is_refused(place: Any) -> None:
    found = maps(nn.Sequential(sharp()), image(6, 6)).mhsas[0]
    with pytest.raises(ValueError, match="is not on the 6x6 map of '0': give 0 to 5"):
        found.row(*place)
    with pytest.raises(ValueError, match="choose one of both, content, position"):
        found.row(0, 0, "all")  # type: ignore[arg-type]
