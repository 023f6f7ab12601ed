"""BAM in one network or more of each family of CNNs that timm and torchvision have.

Where the modules belong is written down by hand, from the published architectures: the map that each stage
from stride 4 on hands to a down-sampling. timm's `feature_info` is a second witness, where it taps stages.
"""

import copy
import math
from dataclasses import dataclass

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from attneck.layers import BAM
from attneck.surgery import insert_bam
from attneck.surgery.blocks import residual_blocks
from attneck.surgery.insert import branch_ends
from attneck.surgery.places import bottlenecks
from attneck.surgery.trace import trace

Stage = tuple[str, int, int]


@dataclass(frozen=True)
class Case:
    """A network, and what is to be found in it."""

    name: str
    """timm's; torchvision's after "tv:"."""
    stages: tuple[Stage, ...]
    """Module, channels and side of the map."""
    blocks: int
    """Residual blocks that can take a BAM each; 0: none has any; -1: they have, but their branches' results
    are no module's."""
    side: int = 64
    """Of the images it is run on."""
    reference: int | None = None
    """Of the image that `stages` are for; None: the network's own."""
    taps: bool = True
    """Whether timm's feature_info has the stages' maps."""
    run: bool = True
    """Whether it is run, too; else its places are looked for only, another one of its family being run."""

    def __str__(self) -> str:
        return self.name


def c(name: str, *stages: Stage, blocks: int, **others: object) -> Case:
    return Case(name, stages, blocks, **others)  # type: ignore[arg-type]


def resnet(*channels: int, side: int = 56, names: str = "layer1 layer2 layer3") -> tuple[Stage, ...]:
    return tuple(zip(names.split(), channels, (side, side // 2, side // 4), strict=True))


CASES = [
    c("resnet18", *resnet(64, 128, 256), blocks=8),
    c("resnext50_32x4d", *resnet(256, 512, 1024), blocks=16),
    c("resnet26d", *resnet(256, 512, 1024), blocks=8),
    c("legacy_seresnet18", *resnet(64, 128, 256), blocks=8, run=False),
    c("skresnet18", *resnet(64, 128, 256), blocks=8, run=False),
    c("resnest14d", *resnet(256, 512, 1024), blocks=4),
    c("res2net50_14w_8s", *resnet(256, 512, 1024), blocks=16),
    c("resnetv2_18", *resnet(64, 128, 256, names="stages.0 stages.1 stages.2"), blocks=8),
    c("regnetx_002", *resnet(24, 56, 152, names="s1 s2 s3"), blocks=13),
    c("regnety_002", *resnet(24, 56, 152, names="s1 s2 s3"), blocks=13, run=False),
    c(
        "densenet121",
        *resnet(256, 512, 1024, names="features.denseblock1 features.denseblock2 features.denseblock3"),
        blocks=0,
    ),
    c("nest_tiny", ("levels.0", 96, 56), ("levels.1", 192, 28), blocks=0, run=False),
    c("swinv2_cr_tiny_224", *resnet(96, 192, 384, names="stages.0 stages.1 stages.2"), blocks=0, run=False),
    c("vgg11", ("features.9", 256, 56), ("features.14", 512, 28), ("features.19", 512, 14), blocks=0),
    c("vgg11_bn", ("features.13", 256, 56), ("features.20", 512, 28), ("features.27", 512, 14), blocks=0),
    c("mobilenetv1_100", *resnet(128, 256, 512, names="blocks.1 blocks.2 blocks.3"), blocks=0),
    c("mobilenetv2_050", *resnet(16, 16, 48, names="blocks.1 blocks.2 blocks.4"), blocks=10),
    c("mobilenetv3_small_100", *resnet(16, 24, 48, names="blocks.0 blocks.1 blocks.3"), blocks=6),
    c("mobilenetv4_conv_small", *resnet(32, 64, 96, names="blocks.0 blocks.1 blocks.2"), blocks=10),
    c("efficientnet_b0", *resnet(24, 40, 112, names="blocks.1 blocks.2 blocks.4"), blocks=9),
    c("tinynet_e", ("blocks.1", 16, 27), ("blocks.2", 24, 14), ("blocks.4", 56, 7), blocks=3, run=False),
    c("convnext_atto", *resnet(40, 80, 160, names="stages.0 stages.1 stages.2"), blocks=12),
    c("nf_resnet26", *resnet(256, 512, 1024, names="stages.0 stages.1 stages.2"), blocks=8, run=False),
    c("test_nfnet", *resnet(32, 64, 96, side=40, names="stages.0 stages.1 stages.2"), blocks=4),
    c("darknet17", *resnet(128, 256, 512, side=64, names="stages.1 stages.2 stages.3"), blocks=5),
    c("cspresnet50", *resnet(128, 256, 512, side=64, names="stages.0 stages.1 stages.2"), blocks=13),
    c(
        "cs3darknet_s",
        *resnet(64, 128, 256, side=64, names="stages.0 stages.1 stages.2"),
        blocks=9,
        run=False,
    ),
    c(
        "inception_v3",
        ("Conv2d_4a_3x3", 192, 71),
        ("Mixed_5d", 288, 35),
        ("Mixed_6e", 768, 17),
        blocks=0,
        side=96,
    ),
    c(
        "inception_v4",
        ("features.4", 192, 71),  # timm taps features.3, of 160 channels on 73×73
        ("features.9", 384, 35),
        ("features.17", 1024, 17),
        blocks=0,
        side=96,
        taps=False,
    ),
    c("legacy_xception", ("block1", 128, 74), ("block2", 256, 37), ("block11", 728, 19), blocks=12),
    # timm taps what is inside the next stage's first block, after it has changed the channels.
    c(
        "xception41",
        ("blocks.0", 128, 75),
        ("blocks.1", 256, 38),
        ("blocks.10", 728, 19),
        blocks=12,
        taps=False,
        run=False,
    ),
    # timm's taps at strides 4 and 16 are not the last blocks there.
    c("ghostnet_050", *resnet(12, 20, 56, names="blocks.2 blocks.4 blocks.6"), blocks=16, taps=False),
    # Of HRNet's several maps the coarsest is the one that is made smaller; timm taps the head's.
    c("hrnet_w18_small", *resnet(128, 32, 64, names="layer1 stage2 stage3"), blocks=23, taps=False),
    c("dla46_c", *resnet(64, 64, 128, names="level2 level3 level4"), blocks=12),
    c("mnasnet_small", *resnet(16, 16, 32, names="blocks.1 blocks.2 blocks.4"), blocks=10),
    c("repvgg_a0", *resnet(48, 96, 192, names="stages.0 stages.1 stages.2"), blocks=17),
    c("gernet_s", *resnet(48, 48, 384, names="stages.0 stages.1 stages.2"), blocks=14, run=False),
    c("tresnet_m", *resnet(64, 128, 1024, names="body.layer1 body.layer2 body.layer3"), blocks=21),
    c("hardcorenas_a", *resnet(24, 40, 112, names="blocks.1 blocks.2 blocks.4"), blocks=5),
    # Its head shrinks once more, to stride 64.
    c(
        "selecsls42",
        *resnet(128, 288, 480, names="features.1 features.3 features.5"),
        ("head.1", 1024, 7),
        blocks=0,
        side=96,
    ),
    c("ese_vovnet19b_slim", *resnet(112, 256, 384, names="stages.0 stages.1 stages.2"), blocks=0),
    c(
        "dpn48b",
        *resnet(144, 320, 512, names="features.conv2_3 features.conv3_4 features.conv4_6"),
        blocks=16,
    ),
    c(
        "dpn68",
        *resnet(144, 320, 704, names="features.conv2_3 features.conv3_4 features.conv4_12"),
        blocks=-1,
        run=False,
    ),
    c("edgenext_xx_small", *resnet(24, 48, 88, side=64, names="stages.0 stages.1 stages.2"), blocks=-1),
    c("rexnet_100", *resnet(38, 61, 128, names="features.2 features.4 features.10"), blocks=-1),
    c("tv:resnet18", *resnet(64, 128, 256), blocks=8),
    c(
        "tv:regnet_x_400mf",
        *resnet(32, 64, 160, names="trunk_output.block1 trunk_output.block2 trunk_output.block3"),
        blocks=22,
    ),
    c(
        "tv:densenet121",
        *resnet(256, 512, 1024, names="features.denseblock1 features.denseblock2 features.denseblock3"),
        blocks=0,
    ),
    c(
        "tv:vgg11",
        ("features.9", 256, 56),
        ("features.14", 512, 28),
        ("features.19", 512, 14),
        blocks=0,
        run=False,
    ),
    c(
        "tv:vgg11_bn",
        ("features.13", 256, 56),
        ("features.20", 512, 28),
        ("features.27", 512, 14),
        blocks=0,
        run=False,
    ),
    c("tv:alexnet", ("features.1", 64, 55), ("features.4", 192, 27), ("features.11", 256, 13), blocks=0),
    c("tv:squeezenet1_1", ("features.4", 128, 55), ("features.7", 256, 27), blocks=0),
    c("tv:shufflenet_v2_x0_5", ("stage2", 48, 28), ("stage3", 96, 14), blocks=0),
    c("tv:googlenet", *resnet(192, 480, 832, names="conv3 inception3b inception4e"), blocks=0),
    c(
        "tv:inception_v3",
        ("Conv2d_4a_3x3", 192, 71),
        ("Mixed_5d", 288, 35),
        ("Mixed_6e", 768, 17),
        blocks=0,
        reference=299,
        run=False,
    ),
    c("tv:mobilenet_v2", *resnet(24, 32, 96, names="features.3 features.6 features.13"), blocks=10),
    c("tv:mobilenet_v3_small", *resnet(16, 24, 48, names="features.1 features.3 features.8"), blocks=6),
    c("tv:mnasnet0_5", *resnet(16, 24, 48, names="layers.8 layers.9 layers.11"), blocks=10),
    c("tv:efficientnet_b0", *resnet(24, 40, 112, names="features.2 features.3 features.5"), blocks=9),
    c("tv:convnext_tiny", *resnet(96, 192, 384, names="features.1 features.3 features.5"), blocks=18),
]
SHORT = {
    *("resnet18", "resnet26d", "regnetx_002", "densenet121", "vgg11", "mobilenetv3_small_100"),
    *("convnext_atto", "test_nfnet", "darknet17", "inception_v3", "legacy_xception", "ghostnet_050"),
    *("hrnet_w18_small", "selecsls42", "edgenext_xx_small", "repvgg_a0"),
    *("tv:squeezenet1_1", "tv:shufflenet_v2_x0_5", "tv:mobilenet_v3_small"),
}
"""One of each make. The others, whose places are looked for in any case, are run in the long form."""
RUN = [
    pytest.param(case, marks=() if case.name in SHORT else pytest.mark.slow, id=case.name)
    for case in CASES
    if case.run
]
OF_TIMM = [case for case in RUN if not str(case.id).startswith("tv:")]


def build(case: Case, **options: object) -> nn.Module:
    """The network with random weights; VGG's classifiers, which are most of it, made small."""
    torch.manual_seed(0)
    if not case.name.startswith("tv:"):
        narrow = {"mlp_ratio": 1 / 64} if case.name.startswith("vgg") else {}
        return timm.create_model(case.name, **narrow, **options)
    name = case.name.removeprefix("tv:")
    quick = {"init_weights": False} if name in ("googlenet", "inception_v3", "vgg11", "vgg11_bn") else {}
    if name in ("googlenet", "inception_v3"):
        quick["aux_logits"] = False
    model = torchvision.models.get_model(name, **quick)
    if name.startswith("vgg"):
        model.classifier = nn.Linear(512 * 7 * 7, 10)
    return model


def images(case: Case, batch: int = 2) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(batch, 3, case.side, case.side)


def bams(model: nn.Module) -> dict[str, BAM]:
    return {name: module for name, module in model.named_modules() if isinstance(module, BAM)}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_places_are_where_the_architecture_has_them(case: Case) -> None:
    of_torchvision = case.name.startswith("tv:")
    # torchvision draws a RegNet's weights from numbers that have to be there.
    with torch.device("cpu" if case.name.startswith("tv:regnet") else "meta"):
        model = build(case)
    seen = trace(model, case.reference)
    places = bottlenecks(seen)
    assert [(place.call.name, place.channels, place.map_size[0]) for place in places] == [*case.stages]
    if case.taps and not of_torchvision:
        info = [(entry["num_chs"], entry["reduction"]) for entry in model.feature_info]
        described = [(channels, stride) for channels, stride in info if 4 <= stride < info[-1][1]]
        strides = [2 ** round(math.log2(seen.image_size[0] / place.map_size[0])) for place in places]
        assert [(place.channels, s) for place, s in zip(places, strides, strict=True)] == described

    if case.blocks == 0:
        with pytest.raises(ValueError, match=r"no residual block in this .*: looked for .*, and found none"):
            residual_blocks(seen)
    elif case.blocks == -1:
        with pytest.raises(
            ValueError, match=r"adds a map that comes from no module .*choose at='bottlenecks'"
        ):
            branch_ends(seen)
    else:
        ends = branch_ends(seen)
        assert len(ends) == case.blocks == len({place.call.name for place in ends})


@pytest.mark.parametrize("side", [96, 128, 192, 224, 256])
def test_no_branch_of_an_inception_block_is_a_place(side: int) -> None:
    """Its windows without padding take more than one half off a small map."""
    with torch.device("meta"):
        seen = trace(timm.create_model("inception_v3"), side)
    assert [place.call.name for place in bottlenecks(seen)] == ["Conv2d_4a_3x3", "Mixed_5d", "Mixed_6e"]


@pytest.mark.parametrize("case", RUN)
def test_bam_stands_where_it_belongs_changes_nothing_at_first_and_learns(case: Case) -> None:
    model = build(case).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = images(case)
    with torch.no_grad():
        want = model(x[:1])

    report = insert_bam(model, start="identity", reduction=4, image_size=case.reference).report

    found = [(change.name, change.channels, change.map_size[0]) for change in report.changes]
    part = {"hrnet_w18_small": (1, 2), "selecsls42": (0, 1, 2)}.get(case.name, ())  # one of several maps
    assert found == [
        (f"{name}.bam{'.module' if index in part else ''}", channels, side)
        for index, (name, channels, side) in enumerate(case.stages)
    ]
    assert list(bams(model)) == [name for name, _, _ in found]

    after = model.state_dict()
    assert [name for name in after if name in before] == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert {*after} - {*before} == {*report.new}
    assert all(name.startswith(tuple(bams(model))) for name in report.new)
    assert (len(report.kept), report.gone) == (len(before), ())

    with torch.no_grad():
        assert torch.equal(model(x[:1]), want)
        copied = copy.deepcopy(model)
        for module in bams(model).values():
            assert module.gain is not None
            module.gain.fill_(1)
        changed = model(x[:1])
        assert not torch.equal(changed, want)
        assert torch.equal(copied(x[:1]), want)
        copied.load_state_dict(model.state_dict())
        assert torch.equal(copied(x[:1]), changed)
        for module in bams(model).values():
            module.gain.zero_()  # type: ignore[union-attr]

    _learns(model, x)


def _learns(model: nn.Module, x: Tensor) -> None:
    """A gradient reaches every gain at once, and every weight after one step."""
    model.train()
    model(x).square().mean().backward()
    for module in bams(model).values():
        assert module.gain is not None
        assert module.gain.grad is not None
        assert module.gain.grad.any()
        with torch.no_grad():
            module.gain -= 0.1 * module.gain.grad / module.gain.grad.norm()
    model.zero_grad()
    model(x).square().mean().backward()
    for name, module in bams(model).items():
        weights = {key: p.grad for key, p in module.named_parameters() if p.ndim > 1}
        assert len(weights) == 6
        assert all(grad is not None and grad.any() for grad in weights.values()), name


@pytest.mark.parametrize("case", OF_TIMM)
def test_networks_built_for_their_features_take_it_too(case: Case) -> None:
    model = build(case, features_only=True).eval()
    before = list(model.state_dict())
    x = images(case, batch=1)
    with torch.no_grad():
        want = model(x)
        report = insert_bam(model, reduction=4).report
        got = model(x)
        assert [name for name in model.state_dict() if name in before] == before
        for one, other in zip(got, want, strict=True):
            assert torch.equal(one, other)
        for module in bams(model).values():
            module.gain.fill_(1)  # type: ignore[union-attr]
        changed = model(x)
    # The networks end at their last tap here, and so do without SelecSLS's last one.
    stages = case.stages[: len(report.changes)]
    assert len(stages) == 3
    assert [(change.channels, change.map_size[0]) for change in report.changes] == [s[1:] for s in stages]
    if case.taps:
        coarse = [index for index, stride in enumerate(model.feature_info.reduction()) if stride >= 4]
        assert len(coarse) >= 3
        assert all(not torch.equal(changed[index], want[index]) for index in coarse)
