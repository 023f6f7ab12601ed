"""The R-CNNs by name: all that the papers' tables have, their sizes by hand, what each option does."""

import tomllib
from importlib.resources import files

import pytest
import torch
import torchvision
from one_of_each import one_of_each
from torch import nn

from attneck.detection.rcnn import RCNN, MaskRCNN, faster_rcnn, mask_rcnn
from attneck.layers import BAM, MHSA2d, NonLocal2d, SqueezeExcite2d
from attneck.models.catalog import CATALOG, create_model, find, list_detectors
from attneck.models.detector_options import RCNNOptions
from attneck.models.mobilenet import MobileNetOptions
from attneck.models.resnet import ResNetOptions

NAMES = [name for name in list_detectors() if "rcnn_" in name]
KINDS = [
    *one_of_each(list_detectors("maskrcnn_*"), lambda name: CATALOG[name].options.backbone),
    *("fasterrcnn_botnet26_thin", "fasterrcnn_mobilenet_bam"),
]
"""A backbone of each kind, and two without masks."""
TABLES = [
    table
    for paper in ("botnet", "bam")
    for table in tomllib.loads((files("attneck.papers") / f"{paper}.toml").read_text())["table"]
]


def on_meta(name: str, **arguments) -> nn.Module:
    with torch.device("meta"):
        return create_model(name, **arguments)


def size_of(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def size_by_hand(name: str, K: int) -> int:
    """The backbone without its classifier, and what A.2 puts after it; a norm has two numbers a channel."""
    options = CATALOG[name].options
    backbone = on_meta(name.split("_", 1)[1], num_classes=0, image_size=CATALOG[name].image_size)
    widths = [info["num_chs"] for info in backbone.feature_info[-4:]]
    C, fc, levels, anchors = options.channels, options.box_features, 5, 3
    conv = 9 * C * C
    pyramid = sum(width * C + 2 * C for width in widths) + 4 * (conv + 2 * C)
    rpn = 2 * conv + 2 * levels * 2 * C + (C + 1) * anchors * (1 + 4)
    box = 4 * (conv + 2 * C) + 7 * 7 * C * fc + 2 * fc + (fc + 1) * K * (1 + 4)
    mask = 4 * (conv + 2 * C) + 2 * 2 * C * C + 2 * C + (C + 1) * K
    return size_of(backbone) + pyramid + rpn + box + (mask if options.masks else 0)


def test_every_fitting_backbone_has_both():
    fitting = {
        name
        for name, entry in CATALOG.items()
        if isinstance(entry.options, (ResNetOptions, MobileNetOptions)) and not name.startswith("cifar_")
    }
    assert {name.removeprefix("maskrcnn_") for name in NAMES if name.startswith("mask")} == fitting
    assert {name.removeprefix("fasterrcnn_") for name in NAMES if name.startswith("faster")} == fitting
    for name in NAMES:
        entry = CATALOG[name]
        assert entry.options.backbone == CATALOG[name.split("_", 1)[1]].options
        thin = name.endswith("_thin")
        assert (entry.image_size, entry.num_classes) == ((256, 11) if thin else (1024, 81))


def iou_types(model: nn.Module) -> list[str]:
    """`_get_iou_types` of torchvision's references/detection/engine.py: what its evaluation scores."""
    model_without_ddp = model
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model_without_ddp = model.module
    iou_types = ["bbox"]
    if isinstance(model_without_ddp, torchvision.models.detection.MaskRCNN):
        iou_types.append("segm")
    if isinstance(model_without_ddp, torchvision.models.detection.KeypointRCNN):
        iou_types.append("keypoints")
    return iou_types


@pytest.mark.parametrize("variant", ["botnet", "cloud_tpu", "torchvision"])
def test_torchvisions_evaluation_scores_boxes_and_masks(variant):
    """By name and on a backbone of one's own; a Faster R-CNN is no Mask R-CNN."""
    detection = torchvision.models.detection
    with torch.device("meta"):
        body = [create_model("resnet26_thin", num_classes=0) for _ in range(2)]
        masked = [
            create_model("maskrcnn_resnet26_thin", variant=variant),
            create_model("fasterrcnn_resnet26_thin", masks=True, variant=variant),
            mask_rcnn(body[0], 3, 64, variant=variant),
        ]
        boxes = [
            create_model("fasterrcnn_resnet26_thin", variant=variant),
            create_model("maskrcnn_resnet26_thin", masks=False, variant=variant),
            faster_rcnn(body[1], 3, 64, variant=variant),
        ]
    assert all(isinstance(model, RCNN) for model in masked + boxes)
    assert [isinstance(model, detection.MaskRCNN) for model in masked + boxes] == [True] * 3 + [False] * 3
    assert all(isinstance(model, detection.FasterRCNN) for model in masked + boxes)
    assert [iou_types(model) for model in masked + boxes] == [["bbox", "segm"]] * 3 + [["bbox"]] * 3


def test_the_class_goes_with_the_masks():
    """Otherwise torchvision would pass over the heads that it doesn't know."""
    with torch.device("meta"):
        body = create_model("resnet26_thin", num_classes=0)
    for kind, masks in ((RCNN, True), (MaskRCNN, False)):
        with pytest.raises(ValueError, match=f"got masks={masks}: use mask_rcnn or faster_rcnn"):
            kind(body, 3, (64, 64), RCNNOptions(masks=masks))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in KINDS else pytest.mark.slow) for name in NAMES]
)
def test_parameters_are_the_sum_by_hand(name):
    assert size_of(on_meta(name)) == size_by_hand(name, CATALOG[name].num_classes)


def test_every_detector_of_the_papers_is_here():
    """With the row's options; and on its image size for the attention to be made for."""
    rows = [row for table in TABLES for row in table["row"] if row.get("detector")]
    assert len({row["detector"] for row in rows}) > 20
    for row in rows:
        find(row["detector"], row.get("options", {}))
        if "rcnn_" in row["detector"]:
            assert row["detector"].split("_", 1)[1] == row["model"]


def test_hyper_parameters_as_printed():
    """BoTNet's A.2, read from the figures as they are transcribed."""
    table = next(table for table in TABLES if table["id"] == "§A.2")
    printed = {row["label"]: row["printed"] for row in table["row"]}
    model = on_meta("maskrcnn_botnet50")
    heads = model.roi_heads

    assert printed["image"]["output_size"] == " × ".join(map(str, model.transform.size))
    convs = [block[0] for block in heads.mask_head]
    assert len(convs) == int(printed["mask head"]["num_convs"])
    assert {conv.out_channels for conv in convs} == {int(printed["mask head"]["num_filters"])}
    masks = heads.mask_predictor(heads.mask_head(torch.empty(3, 256, 14, 14, device="meta")))
    assert masks.shape == (3, 81, *[int(printed["mask head"]["mask_target_size"])] * 2)

    convs = [module for module in heads.box_head.modules() if isinstance(module, nn.Conv2d)]
    assert len(convs) == int(printed["box head"]["num_convs"])
    assert {conv.out_channels for conv in convs} == {int(printed["box head"]["num_filters"])}
    linear = [module for module in heads.box_head.modules() if isinstance(module, nn.Linear)]
    assert len(linear) == int(printed["box head"]["num_fcs"])
    assert linear[0].out_features == int(printed["box head"]["fc_dims"])

    rpn = printed["RPN head"]
    levels = range(int(rpn["min_level"]), int(rpn["max_level"]) + 1)
    maps = model.backbone(torch.empty(1, 3, 1024, 1024, device="meta"))
    assert [1024 // features.shape[2] for features in maps.values()] == [2**level for level in levels]
    assert {features.shape[1] for features in maps.values()} == {256}
    anchors = model.rpn.anchor_generator
    assert anchors.num_anchors_per_location() == [int(rpn["anchors_per_location"])] * len(levels)
    (anchor,) = [row["printed"] for row in table["row"] if "anchor_size" in row["printed"]]
    assert [len(sides) for sides in anchors.sizes] == [int(anchor["num_scales"])] * len(levels)
    assert [side for (side,) in anchors.sizes] == [int(anchor["anchor_size"]) * 2**level for level in levels]
    convs = [module for module in model.rpn.head.convs if isinstance(module, nn.Conv2d)]
    assert len(convs) == int(rpn["num_convs"])
    assert {conv.out_channels for conv in convs} == {int(rpn["num_filters"])}

    (norm,) = [row["printed"] for row in table["row"] if "bn_momentum" in row["printed"]]
    norms = [module for module in model.modules() if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d))]
    assert {module.momentum for module in norms} == {round(1 - float(norm["bn_momentum"]), 6)}
    assert {module.eps for module in norms} == {float(norm["bn_epsilon"])}
    parts = {"backbone.body", "backbone.fpn", "rpn.head", "roi_heads.box_head", "roi_heads.mask_head"}
    assert all(any(module in norms for module in model.get_submodule(part).modules()) for part in parts)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_nothing_between_a_convolution_and_its_norm_has_a_bias():
    model = on_meta("maskrcnn_resnet50")
    biased = {
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)) and module.bias is not None
    }
    last = {"rpn.head.cls_logits", "rpn.head.bbox_pred", "roi_heads.mask_predictor.mask_fcn_logits"}
    assert biased == last | {"roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred"}


@pytest.mark.parametrize("side", [1024, 1280])
def test_attention_is_made_for_the_size(side):
    """c5.0 attends at stride 16, 64×64 or 80×80; the others at 32."""
    body = on_meta("maskrcnn_botnet50", image_size=side).backbone.body.model
    maps = [block.conv2.map_size[0] for block in body.layer4]
    assert maps == [side // 16, side // 32, side // 32]
    assert [len(block.conv2.rel_h) for block in body.layer4] == [2 * cells - 1 for cells in maps]


BLOCKS = ["layer4.0.conv2", "layer4.1.conv2", "layer4.2.conv2"]


@pytest.mark.parametrize(
    ("backbone", "layers"),
    [
        ("resnet50", []),
        ("botnet50", BLOCKS),
        ("botnet152", BLOCKS),
        ("botnet50_001", BLOCKS[2:]),
        ("botnet50_011", BLOCKS[1:]),
        ("botnet50_100", BLOCKS[:1]),
        ("resnet50_nl_c4", ["layer3.non_local"]),
        ("resnet50_bot_c4", ["layer3.bot.conv2"]),
        ("resnet50_bot_c4_c5", ["layer3.bot.conv2", "layer4.bot.conv2"]),
        ("resnet50_se_c5", ["layer4.0.se", "layer4.1.se", "layer4.2.se"]),
        ("resnet101_bam", [f"layer{stage}.{blocks}" for stage, blocks in ((1, 3), (2, 4), (3, 23))]),
    ],
)
def test_replacements_and_insertions(backbone, layers):
    """Tables 5, 8 and 17: which c5 blocks attend, what stands between the last two, SE in c5; BAM's three."""
    body = on_meta(f"maskrcnn_{backbone}").backbone.body.model
    kinds = (MHSA2d, NonLocal2d, SqueezeExcite2d, BAM)
    assert [name for name, module in body.named_modules() if isinstance(module, kinds)] == layers


CHANGES = {
    "masks": False,
    "variant": "torchvision",
    "freeze_norms": True,
    "channels": 32,
    "rpn_convs": 1,
    "box_convs": 2,
    "box_features": 128,
    "mask_convs": 8,
    "proposals": 20,
    "candidates": 300,
    "rois": 16,
    "norm_momentum": 0.01,
}


def test_no_option_is_forgotten():
    of_classifiers = {"dropout", "global_pool", "bn_momentum", "bn_eps"}  # refused
    assert set(RCNNOptions.model_fields) == {*CHANGES, "backbone"} | of_classifiers


@pytest.mark.parametrize("option", CHANGES)
def test_every_option_does_something(option):
    model = on_meta("maskrcnn_botnet26_thin", **{option: CHANGES[option]})
    if option == "proposals":
        assert model.eval().rpn.post_nms_top_n() == model.train().rpn.post_nms_top_n() == 20
    elif option == "candidates":
        assert (model.train().rpn.pre_nms_top_n(), model.eval().rpn.pre_nms_top_n()) == (300, 1000)
    elif option == "rois":
        assert model.roi_heads.fg_bg_sampler.batch_size_per_image == 16
    elif option == "freeze_norms":
        assert {m.training for m in model.backbone.body.modules() if isinstance(m, nn.BatchNorm2d)} == {False}
    elif option == "norm_momentum":
        assert {m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {0.01}
    else:
        assert size_of(model) != size_of(on_meta("maskrcnn_botnet26_thin"))


def test_options_of_the_backbone():
    model = on_meta("maskrcnn_botnet50", position="absolute", heads=8, stride_on="1x1", channels=128)
    layers = [module for module in model.modules() if isinstance(module, MHSA2d)]
    assert {(layer.position, layer.heads) for layer in layers} == {("absolute", 8)}
    assert model.backbone.body.model.layer2[0].conv1.stride == (2, 2)
    assert model.backbone.out_channels == 128
    assert find("fasterrcnn_resnet50", {"masks": True}) == find("maskrcnn_resnet50")
    assert find("maskrcnn_resnet50", {"attend": [1]}) == find("maskrcnn_botnet50")


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("maskrcnn_botnet5", {}, "perhaps you meant 'maskrcnn_botnet50'"),
        ("maskrcnn_squeezenet1_1", {}, "no model is called"),
        ("maskrcnn_botnet50", {"num_classes": 1}, "the background"),
        ("maskrcnn_botnet50", {"image_size": 0}, r"wanted \(height, width\)"),
        ("maskrcnn_botnet50", {"mask_conv": 8}, "perhaps you meant 'mask_convs'"),
        ("maskrcnn_botnet50", {"head": 8}, "perhaps you meant 'heads'"),
        ("maskrcnn_botnet50", {"backbone": "resnet50"}, "no option 'backbone'"),
        ("maskrcnn_botnet50", {"heads": 3}, "maskrcnn_botnet50: 512 channels do not split into 3 heads"),
        ("maskrcnn_resnet50", {"heads": 8}, "would change nothing without attention"),
        ("maskrcnn_resnet50", {"dropout": 0.5}, "dropout=0.5 would change nothing"),
        ("maskrcnn_resnet50", {"global_pool": "max"}, "global_pool='max' would change nothing"),
        ("fasterrcnn_resnet50", {"mask_convs": 8}, "would change nothing without masks=True"),
        ("maskrcnn_resnet50", {"channels": 0}, "channels=0: wanted 1 or more"),
        ("maskrcnn_resnet50", {"rois": 2.5}, "rois=2.5: wanted a whole number"),
        ("maskrcnn_resnet50", {"masks": 1}, "masks=1: wanted True or False"),
        ("maskrcnn_resnet50", {"norm_momentum": 0}, "norm_momentum=0: wanted more than 0"),
        ("maskrcnn_resnet50", {"variant": "torch"}, "perhaps you meant 'torchvision'"),
        (
            "maskrcnn_resnet50",
            {"variant": "torchvision", "rpn_convs": 1},
            "nothing without variant='botnet' or 'cloud_tpu'",
        ),
        (
            "maskrcnn_resnet50",
            {"variant": "torchvision", "box_convs": 2},
            "nothing without variant='botnet' or 'cloud_tpu'",
        ),
        (
            "maskrcnn_resnet50",
            {"variant": "torchvision", "freeze_norms": True, "norm_momentum": 0.1},
            "norm_momentum=0.1 would change nothing without a BatchNorm that learns",
        ),
    ],
)
def test_a_mistake_is_answered(name, arguments, words):
    with pytest.raises(ValueError, match=words) as caught:
        on_meta(name, **arguments)
    assert "\n" not in str(caught.value)
