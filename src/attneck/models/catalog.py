"""The catalog: name → family and options. No torch is imported until a network is built."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Sequence
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from attneck.checks import sides, whole
from attneck.errors import brief, suggestion
from attneck.models.cifar import CifarResNetOptions
from attneck.models.densenet import DenseNetOptions
from attneck.models.detector_options import RCNNOptions, SSDOptions, StairNetOptions, ThinRCNNOptions
from attneck.models.efficientnet import EfficientNetOptions
from attneck.models.mobilenet import MobileNetOptions
from attneck.models.options import (
    MAP_TO_CLASSIFIER,
    MAX_CLASSES,
    FamilyOptions,
    override,
    refuse_absurd,
)
from attneck.models.origin import Origin, pretrained_cfg
from attneck.models.resnet import ResNetOptions
from attneck.models.squeezenet import SqueezeNetOptions
from attneck.models.vit import ViTOptions

if TYPE_CHECKING:
    from torch import nn


@dataclasses.dataclass(frozen=True)
class Entry:
    """A row: the options that make the model, and the image side and classes it was published with.

    A classifier makes logits of an image; a detector finds boxes in it, has torchvision's interface, and
    counts the background among its classes.
    """

    options: FamilyOptions
    image_size: int = 224
    num_classes: int = 1000
    task: str = "classification"
    """A name of `attneck.tasks.TASKS`."""


def _imagenet_rows() -> dict[str, FamilyOptions]:
    """Both papers' ImageNet networks; BoTNet's are also the backbones of its detectors."""
    rows: dict[str, FamilyOptions] = {}
    everywhere = (2, 3, 4, 5)

    # BoTNet Table 13 and Fig. 12; R200's depths are those of the authors' code.
    for depth, depths in {
        50: (3, 4, 6, 3),
        101: (3, 4, 23, 3),
        152: (3, 8, 36, 3),
        200: (3, 24, 36, 3),
    }.items():
        rows[f"resnet{depth}"] = ResNetOptions(depths=depths)
        rows[f"botnet{depth}"] = ResNetOptions(depths=depths, attend=(1,))
        if depth < 200:
            rows[f"senet{depth}"] = ResNetOptions(depths=depths, se=everywhere)
    # Table 13 prints [4, 40, 60, 12], which has 151.37 M parameters; these, as deep, have its 115.18 M.
    rows["senet350"] = ResNetOptions(depths=(3, 44, 66, 3), se=everywhere)

    # Table 5: which c5 blocks attend. Tables 8 and 17: other blocks instead.
    for flags in ("001", "011", "100"):
        rows[f"botnet50_{flags}"] = ResNetOptions(attend=tuple(map(int, flags)))
    rows["resnet50_nl_c4"] = ResNetOptions(insert_c4="non_local")
    rows["resnet50_bot_c4"] = ResNetOptions(insert_c4="bot")
    rows["resnet50_bot_c4_c5"] = ResNetOptions(insert_c4="bot", insert_c5="bot")
    rows["resnet50_se_c5"] = ResNetOptions(se=(5,))

    # §4.8: c5 at stride 16. The text has SE in c2 to c4; the parameters printed for the deeper ones hold only
    # with SE in the BoT blocks too.
    rows["botnet_s1_50"] = ResNetOptions(attend=(1,), c5_stride=1)
    for depth, depths in {
        59: (3, 4, 6, 6),
        77: (3, 4, 6, 12),
        110: (3, 4, 23, 6),
        128: (3, 4, 23, 12),
    }.items():
        rows[f"botnet_s1_{depth}"] = ResNetOptions(
            depths=depths, attend=(1,), c5_stride=1, se=everywhere, se_in_bot=True
        )

    # Bottlenecks that leave each stage as wide as ResNet-18's: small enough to train detectors on a CPU.
    thin = ResNetOptions(depths=(2, 2, 2, 2), widths=(16, 32, 64, 128))
    rows["resnet26_thin"] = thin
    rows["botnet26_thin"] = thin.replace(attend=(1,))

    # BAM Table 3b.
    resnet18 = ResNetOptions(depths=(2, 2, 2, 2), block="basic")
    rows["resnet18"] = resnet18
    rows["wrn18_1_5"] = resnet18.replace(widths=(96, 192, 384, 768))
    rows["wrn18_2_0"] = resnet18.replace(widths=(128, 256, 512, 1024))
    rows["resnext50_32x4d"] = ResNetOptions(groups=32, base_width=4)
    rows["mobilenet"] = MobileNetOptions()
    rows["mobilenet_0_7"] = MobileNetOptions(alpha=0.7)
    rows["squeezenet1_1"] = SqueezeNetOptions()
    resnets = ("resnet18", "resnet50", "resnet101", "wrn18_1_5", "wrn18_2_0", "resnext50_32x4d")
    for name in (*resnets, "mobilenet", "mobilenet_0_7", "squeezenet1_1"):
        rows[f"{name}_bam"] = rows[name].replace(bam="stages")
    return rows


def _cifar_rows() -> dict[str, FamilyOptions]:
    """BAM's CIFAR-100 networks (§4.2), and the lab family."""
    plain_resnet = CifarResNetOptions()
    # Bottlenecks stride on their first 1×1: the printed multiply-adds of each such network say so.
    bottleneck = CifarResNetOptions(block="bottleneck", stride_on="1x1")
    resnet = bottleneck.replace(
        depths=(3, 4, 6, 3),
        stem=64,
        mids=(64, 128, 256, 512),
        outs=(256, 512, 1024, 2048),
    )
    wrn = CifarResNetOptions(depths=(4, 4, 4), order="pre", shortcut="activated")
    resnext = bottleneck.replace(stem=64, outs=(256, 512, 1024))
    plain: dict[str, CifarResNetOptions | DenseNetOptions] = {
        "resnet20": plain_resnet,  # the lab family, small enough for a CPU
        "resnet50": resnet,
        "resnet101": resnet.replace(depths=(3, 4, 23, 3)),
        # Its printed figures are those of a network of 164 layers: 18 bottlenecks a stage.
        "preresnet110": bottleneck.replace(depths=(18, 18, 18), order="pre", outs=(64, 128, 256)),
        "wrn28_8": wrn.replace(mids=(128, 256, 512), outs=(128, 256, 512)),
        "wrn28_10": wrn.replace(mids=(160, 320, 640), outs=(160, 320, 640)),
        "resnext29_8x64d": resnext.replace(groups=8, mids=(512, 1024, 2048)),
        "resnext29_16x64d": resnext.replace(groups=16, mids=(1024, 2048, 4096)),
        "densenet100": DenseNetOptions(),
    }
    rows: dict[str, FamilyOptions] = {}
    for name, options in plain.items():
        rows[f"cifar_{name}"] = options
        rows[f"cifar_{name}_bam"] = options.replace(bam="stages")
    variants: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
        "_bam_c": (("resnet50", "preresnet110", "wrn28_8", "resnext29_8x64d"), {"bam": "blocks"}),  # Table 2
        "_se": (
            ("resnet20", "resnet50", "preresnet110", "wrn28_8", "resnext29_16x64d"),
            {"se": True},
        ),  # Table 5
        "_bot": (("resnet20",), {"attend": True}),
        "_bot_bam": (("resnet20",), {"attend": True, "bam": "stages"}),
    }
    for suffix, (names, changes) in variants.items():
        for name in names:
            rows[f"cifar_{name}{suffix}"] = plain[name].replace(**changes)
    # He et al. 2016, Table 6, the deeper ones.
    for depth in (32, 44, 56, 110):
        rows[f"cifar_resnet{depth}"] = plain_resnet.replace(depths=((depth - 2) // 6,) * 3)
    # Table 1c: one more block of the same shape wherever a BAM would stand: after every stage but the last.
    for name in ("resnet50", "wrn28_8", "resnext29_8x64d"):
        options = plain[name]
        longer = (*(depth + 1 for depth in options.depths[:-1]), options.depths[-1])
        rows[f"cifar_{name}_block"] = options.replace(depths=longer)
    return rows


def _classifier_rows() -> dict[str, Entry]:
    rows = {name: Entry(options) for name, options in _imagenet_rows().items()}
    rows |= {name: Entry(options, image_size=32, num_classes=100) for name, options in _cifar_rows().items()}
    # BoTNet Table 14, with each one's own image size.
    for number, size in enumerate((224, 240, 260, 300, 380, 456, 528, 600)):
        rows[f"efficientnet_b{number}"] = Entry(EfficientNetOptions().replace(variant=f"b{number}"), size)
    # BoTNet Figures 7 to 9: ViT-384 and DeiT-224, DeiT-384.
    base, large = ViTOptions(), ViTOptions(width=1024, depth=24, heads=16)
    rows["vit_base_patch16_384"] = Entry(base, 384)
    rows["vit_large_patch16_384"] = Entry(large, 384)
    rows["deit_small_patch16_224"] = Entry(ViTOptions(width=384, heads=6))
    rows["deit_base_patch16_224"] = Entry(base)
    rows["deit_base_patch16_384"] = Entry(base, 384)
    return rows


def _detector_rows() -> dict[str, Entry]:
    """BAM Table 4b on VOC, 20 classes and the background; and every R-CNN of both papers, and more."""
    single_shot: dict[str, FamilyOptions] = {
        "ssd300_vgg16": SSDOptions(),
        "ssd300_mobilenet": SSDOptions(trunk="mobilenet"),
        "stairnet_vgg16": StairNetOptions(),
        "stairnet_vgg16_bam": StairNetOptions(bam="stages"),
        "stairnet_mobilenet": StairNetOptions(trunk="mobilenet"),
        "stairnet_mobilenet_bam": StairNetOptions(trunk="mobilenet", bam="stages"),
    }
    rows = {name: Entry(options, 300, 21, "detection") for name, options in single_shot.items()}
    # BoTNet §4.1 and A.3, BAM Table 4a: COCO, 80 classes and the background, on squares of 1024 pixels.
    for name, backbone in _imagenet_rows().items():
        if not backbone.fits_fpn:
            continue
        for kind, masks in (("maskrcnn", True), ("fasterrcnn", False)):
            if name.endswith("_thin"):
                thin = ThinRCNNOptions(backbone=backbone, masks=masks)
                rows[f"{kind}_{name}"] = Entry(thin, 256, 11, "detection")
            else:
                rcnn = RCNNOptions(backbone=backbone, masks=masks)
                rows[f"{kind}_{name}"] = Entry(rcnn, 1024, 81, "detection")
    return rows


CATALOG = _classifier_rows() | _detector_rows()
"""Every model by its name."""


def list_models(pattern: str | Sequence[str] = "*") -> list[str]:
    """The classifiers' names that match `pattern`, or one of several, sorted.

    As in a shell: `*`, `?`, `[…]`. Detectors are in `list_detectors`.
    """
    return _names(pattern, detectors=False)


def list_detectors(pattern: str | Sequence[str] = "*") -> list[str]:
    """The detectors' names that match `pattern`, or one of several, sorted."""
    return _names(pattern, detectors=True)


def _names(pattern: str | Sequence[str], detectors: bool) -> list[str]:
    patterns = [pattern] if isinstance(pattern, str) else pattern
    names = [name for name, entry in CATALOG.items() if (entry.task == "detection") == detectors]
    return sorted({name for one in patterns for name in fnmatch.filter(names, one)})


def find(name: str, options: dict[str, Any] | None = None) -> Entry:
    """The row called `name`, with `options` instead of its own.

    Raises:
        ValueError: no such model, no such option, or a value that the option does not take (what only a layer
            knows, `create_model` refuses).
    """
    if not isinstance(name, str) or name not in CATALOG:
        raise ValueError(
            f"no model is called {brief(name)}{suggestion(name, list(CATALOG))} (attneck list shows them all)"
        )
    entry = CATALOG[name]
    return dataclasses.replace(entry, options=override(entry.options, options or {}, name))


def create_model(
    name: str,
    num_classes: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    in_chans: int = 3,
    *,
    pretrained: str | None = None,
    **options: Any,
) -> nn.Module:
    """Build the model called `name`, freshly initialised, or started from weights of timm's.

    `model.origin` says what it was made from; a classifier has timm's `pretrained_cfg` too.

    Args:
        name: one of `list_models()` or `list_detectors()`.
        num_classes: width of the classifier; 0 for none; None for the published number. A detector counts the
            background too.
        image_size: side or (height, width) in pixels that position tables are made for; None for the
            published one. Any other size works at run time: the tables are resampled. A detector takes images
            of any size and resizes them to this one in evaluation; SSD300 and StairNet do so always, to 300.
        in_chans: channels of the images; a detector's have 3.
        pretrained: timm's weights to start from, by timm's name, such as "resnet50.a1_in1k": of a
            classifier, or for a detector's backbone. They are downloaded once. What fits is taken, see
            `attneck.models.weights.load_matching`; mean and std in `pretrained_cfg`, or in a detector's
            `transform`, become those of the weights.
        options: the family's own, by name (see its options class), and a detector's (`detector_options`).

    Raises:
        ValueError: an unknown name or option (with the nearest known one), or a value out of range; weights
            that timm does not have, that cannot be fetched, or of which none fits.
    """
    entry = find(name, options)
    if pretrained is not None:
        from attneck.models import pretrained as timms

        timms.check_name(pretrained)
    size = sides("image_size", entry.image_size if image_size is None else image_size)
    classes = entry.num_classes if num_classes is None else num_classes
    classes = whole("num_classes", classes, least=0, most=MAX_CLASSES)  # 0: no classifier
    if whole("in_chans", in_chans) != 3 and entry.task == "detection":
        raise ValueError(f"in_chans={in_chans}: a detector takes RGB, in_chans=3")
    try:
        refuse_absurd(entry.options.least_parameters(classes, size, in_chans))
        if entry.task != "detection" and classes and not entry.options.global_pool:
            raise ValueError(MAP_TO_CLASSIFIER)
        model: Any = build_family(entry.options, classes, size, in_chans)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    model.origin = Origin(name, classes, size, in_chans, options)
    if entry.task != "detection":
        model.in_chans = in_chans
        model.pretrained_cfg = pretrained_cfg(model.origin, entry.options)
    if pretrained is not None:
        timms.start(model, pretrained, entry.options.loader)
    built: nn.Module = model
    return built


def build_family(
    options: FamilyOptions, num_classes: int, image_size: tuple[int, int], in_chans: int = 3
) -> nn.Module:
    """The network that `options` describe, for a row of the catalog or for a detector's backbone.

    Raises:
        ValueError: what the family's builder, or a layer that it makes, does not take.
    """
    channels = {"in_chans": in_chans} if in_chans != 3 else {}  # detectors have no such choice
    model: nn.Module = resolve_name(options.builder)(
        options, num_classes=num_classes, image_size=image_size, **channels
    )
    if options.bn_momentum is not None or options.bn_eps is not None:
        from attneck.models.parts import set_norms

        set_norms(model, options.bn_momentum, options.bn_eps)
    return model
