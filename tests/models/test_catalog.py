"""The catalog: its names, and what is said to a name, an option or a value that is not there."""

import subprocess
import sys
import tomllib
from importlib.resources import files
from typing import Any

import pytest
import torch

from attneck.models import create_model, list_detectors, list_models
from attneck.models.catalog import CATALOG, find

WITH_BAM = [
    "resnet18",
    "resnet50",
    "resnet101",
    "wrn18_1_5",
    "wrn18_2_0",
    "resnext50_32x4d",
    "mobilenet",
    "mobilenet_0_7",
    "squeezenet1_1",
    "cifar_resnet50",
    "cifar_resnet101",
    "cifar_preresnet110",
    "cifar_wrn28_8",
    "cifar_wrn28_10",
    "cifar_resnext29_8x64d",
    "cifar_resnext29_16x64d",
    "cifar_densenet100",
]
NAMES = {
    *["resnet50", "resnet101", "resnet152", "resnet200", "botnet50", "botnet101", "botnet152", "botnet200"],
    *["botnet50_001", "botnet50_011", "botnet50_100", "senet50", "senet101", "senet152", "senet350"],
    *["botnet_s1_50", "botnet_s1_59", "botnet_s1_77", "botnet_s1_110", "botnet_s1_128"],
    *["resnet50_se_c5", "resnet50_nl_c4", "resnet50_bot_c4", "resnet50_bot_c4_c5"],
    *["resnet26_thin", "botnet26_thin"],
    *WITH_BAM,
    *(f"{name}_bam" for name in WITH_BAM),
    *(f"cifar_{name}_bam_c" for name in ("resnet50", "preresnet110", "wrn28_8", "resnext29_8x64d")),
    *(f"cifar_{name}_se" for name in ("resnet50", "preresnet110", "wrn28_8", "resnext29_16x64d")),
    *(f"cifar_{name}_block" for name in ("resnet50", "wrn28_8", "resnext29_8x64d")),
    *(f"cifar_resnet{depth}" for depth in (32, 44, 56, 110)),
    *(f"cifar_resnet20{end}" for end in ("", "_bam", "_se", "_bot", "_bot_bam")),
    *(f"efficientnet_b{number}" for number in range(8)),
    *["vit_base_patch16_384", "vit_large_patch16_384"],
    *["deit_small_patch16_224", "deit_base_patch16_224", "deit_base_patch16_384"],
}


def test_the_names_are_these() -> None:
    assert set(list_models()) == NAMES
    assert {entry.task for entry in CATALOG.values()} == {"classification", "detection"}
    assert set(list_models()) | set(list_detectors()) == set(CATALOG)
    assert not set(list_models()) & set(list_detectors())
    assert list_models(["botnet50", "botnet5*0", "nothing"]) == ["botnet50", "botnet50_100"]
    assert list_detectors(("ssd*",)) == ["ssd300_mobilenet", "ssd300_vgg16"]
    assert list_models("botnet50*") == ["botnet50", "botnet50_001", "botnet50_011", "botnet50_100"]


def _rows_of_the_papers() -> list[tuple[str, dict[str, Any]]]:
    """Each (model, options) that a table of either paper names, once; detectors have their own catalog."""
    pairs = {}
    for paper in ("botnet", "bam"):
        tables = tomllib.loads((files("attneck.papers") / f"{paper}.toml").read_text())["table"]
        for row in (row for table in tables for row in table["row"]):
            if row.get("model") and not row["model"].startswith(("ssd300_", "stairnet_")):
                options = row.get("options", {})
                pairs[row["model"], str(options)] = (row["model"], options)
    return list(pairs.values())


def test_every_row_of_the_papers_is_in_the_catalog() -> None:
    rows = _rows_of_the_papers()
    assert len(rows) > 70
    for name, options in rows:
        find(name, options)


def test_the_papers_options_build() -> None:
    """Those that differ from the rows as they are, which test_every_model.py builds."""
    with torch.device("meta"):
        for name, options in _rows_of_the_papers():
            if options:
                create_model(name, **options)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("botnet5O", {}, ["no model is called 'botnet5O'", "perhaps you meant 'botnet50'"]),
        ("resnet50", {"dropuot": 0.1}, ["resnet50 has no option 'dropuot'", "'dropout'"]),
        ("mobilenet", {"heads": 4}, ["mobilenet has no option 'heads'"]),
        ("botnet50", {"img_size": 64}, ["no option 'img_size': give image_size"]),
        ("maskrcnn_botnet50", {"drop_path_rate": 0.1}, ["no option 'drop_path_rate': give drop_path"]),
        ("botnet50", {"features_only": True}, ["take timm.create_model('attneck_botnet50', features_only="]),
        ("maskrcnn_botnet50", {"features_only": True}, ["no option 'features_only'; perhaps"]),
        ("efficientnet_b0", {"se": [2]}, ["efficientnet_b0 has no option 'se'"]),
        ("botnet50", {"position": "relativ"}, ["position='relativ'", "perhaps you meant 'relative'"]),
        ("botnet50", {"heads": "4"}, ["heads='4'", "wanted a whole number"]),
        ("botnet50", {"content": 0}, ["content=0", "wanted True or False"]),
        ("resnet50", {"depths": 3}, ["depths=3", "wanted 4 entries or more"]),
        ("resnet50", {"depths": [3, 4, 6]}, ["depths=[3, 4, 6]", "wanted 4 entries or more"]),
        ("resnet50", {"depths": [3, 4, 0, 3]}, ["depths[2]=0", "1 or more"]),
        ("resnet50", {"dropout": 1.0}, ["dropout=1.0", "less than 1"]),
        ("botnet50", {"drop_path": -0.1}, ["drop_path=-0.1"]),
        ("botnet50", {"attend": [1, 0]}, ["attend=(1, 0)", "3 c5 blocks"]),
        ("botnet50", {"attend": [2]}, ["attend[0]=2", "1 at most"]),
        ("botnet50", {"c5_stride": True}, ["c5_stride=True"]),
        ("senet50", {"se": [1]}, ["se[0]=1", "2 or more"]),
        ("senet50", {"bam": "blocks"}, ["choose one"]),
        ("cifar_resnet50_se", {"bam": "blocks"}, ["choose one"]),
        ("cifar_resnet20_bam", {"bam_dilation": 0}, ["bam_dilation=0"]),
        ("mobilenet", {"alpha": 0.0}, ["alpha=0.0"]),
        ("mobilenet", {"bam": "blocks"}, ["bam='blocks'", "'stages'"]),
        ("cifar_wrn28_8", {"groups": 3}, ["groups=3"]),
        ("cifar_resnet20_bot", {"outs": [16, 32, 128]}, ["mids and outs", "64, 128"]),
        ("vit_base_patch16_384", {"heads": 5}, ["heads that divide"]),
        ("resnet50", {"insert_c5": "bot", "depths": [3, 4, 6, 1]}, ["insert_c5", "two blocks"]),
        ("resnet18", {"attend": [1]}, ["attend=(1,)", "without block='bottleneck'"]),
        ("resnet18", {"insert_c4": "bot"}, ["block='bottleneck'"]),
    ],
)
def test_a_mistake_is_answered(name: str, options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        find(name, options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet50", {"heads": 8}),
        ("resnet50", {"position": "absolute"}),
        ("resnet50", {"bam_reduction": 8}),
        ("resnet50_nl_c4", {"content": False}),
        ("resnet18", {"stride_on": "1x1"}),
        ("resnet18", {"groups": 2}),
        ("botnet50", {"se_in_bot": True}),
        ("senet50", {"se_in_bot": True}),
        ("resnet50_bam", {"bam_branches": "channel", "bam_dilation": 2}),
        ("resnet50_bam", {"bam_branches": "channel", "bam_combine": "max"}),
        ("cifar_resnet20", {"heads": 8}),
        ("cifar_resnet20", {"bam_variant": "official"}),
        ("cifar_resnet20", {"resample": "keep"}),
        ("cifar_resnet20_bot", {"position": "none", "resample": "keep"}),
        ("cifar_resnet20", {"bam_gate": False}),
        ("cifar_resnet20_bam", {"bam_gate": False, "bam_combine": "max"}),
        ("cifar_resnet20", {"stride_on": "1x1"}),
        ("cifar_resnet50", {"shortcut": "activated"}),
        ("cifar_densenet100", {"bam_dilation": 2}),
        ("mobilenet", {"bam_combine": "max"}),
        ("squeezenet1_1", {"bam_reduction": 8}),
    ],
)
def test_an_option_that_would_change_nothing_is_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{name}: "):
        find(name, options)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("botnet50", {"heads": 3}, ["512 channels", "3 heads", "divisor of 512"]),
        ("botnet50", {"position": "none", "content": False}, ["leaves no logits"]),
        ("cifar_resnet20_bam", {"bam_reduction": 17}, ["16 channels", "reduction 17", "1 to 16"]),
        ("resnet50_bam", {"bam_reduction": 512}, ["1 to 256"]),
        ("stairnet_vgg16_bam", {"bam_reduction": 512}, ["1 to 256"]),
        ("resnet50_bam", {"bam_variant": "official", "bam_combine": "max"}, ["multiplies both branches"]),
        ("resnet50_bam", {"bam_variant": "official", "bam_branches": "spatial"}, ["multiplies both"]),
        ("cifar_resnet50", {"groups": 3}, ["divisible by groups"]),
    ],
)
def test_what_a_layer_does_not_take_is_its_own_to_refuse(
    name: str, options: dict[str, Any], words: list[str]
) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=f"^{name}: ") as caught:
        create_model(name, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("botnet50", {"drop_path": float("nan")}, "drop_path=nan: wanted"),
        ("mobilenet", {"alpha": float("inf")}, "alpha=inf: wanted"),
        ("botnet50", {"heads": True}, "heads=True: wanted a whole number"),
        ("botnet50", {"heads": 4.0}, "heads=4.0: wanted a whole number"),
        ("resnet50", {"depths": {3, 4, 6}}, "wanted a list of whole numbers"),
        ("resnet50", {"attend": [True]}, r"attend\[0\]=True: wanted a whole number"),
        ("cifar_resnet20", {"mids": [16, 32]}, "one number a stage"),
        ("maskrcnn_botnet50", {"norm_momentum": 0.0}, "norm_momentum=0.0: wanted more than 0"),
        ("maskrcnn_botnet50", {"head": 4}, "no option 'head'; perhaps you meant 'heads'"),
        ("maskrcnn_botnet50", {"position": "relativ"}, "perhaps you meant 'relative'"),
        ("maskrcnn_botnet50", {"dropout": 0.5}, "dropout=0.5 would change nothing"),
        ("ssd300_vgg16", {"backbone": None}, "no option 'backbone'"),
    ],
)
def test_types_are_strict(name: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}[: ].*{says}"):
        find(name, options)


def test_lists_become_tuples_and_whole_numbers_become_floats() -> None:
    options: Any = find("cifar_resnet20", {"depths": [1, 2, 3], "dropout": 0}).options
    assert options.depths == (1, 2, 3)
    assert type(options.dropout) is float
    assert options.replace(depths=[4, 4, 4]).depths == (4, 4, 4)
    detector = find("maskrcnn_botnet50", {"heads": 8, "channels": 64}).options
    assert detector.as_dict()["heads"] == 8
    assert detector.as_dict()["channels"] == 64
    with pytest.raises(ValueError, match="frozen"):
        options.stem = 8


@pytest.mark.parametrize("arguments", [{"num_classes": -1}, {"image_size": 0}, {"image_size": (32, 0)}])
def test_sizes_out_of_range(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="wanted"):
        create_model("cifar_resnet20", **arguments)


def test_our_own_networks_need_no_timm_and_layers_no_compiler() -> None:
    code = (
        "import sys\n"
        "import attneck.layers\n"
        "assert 'torch._dynamo' not in sys.modules\n"
        "from attneck.models import create_model\n"
        "create_model('cifar_resnet20_bot_bam')\n"
        "assert not {'timm', 'torchvision'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_published_sizes() -> None:
    sizes = {name: (entry.image_size, entry.num_classes) for name, entry in CATALOG.items()}
    assert sizes["botnet50"] == (224, 1000)
    assert sizes["cifar_densenet100_bam"] == (32, 100)
    assert sizes["efficientnet_b7"] == (600, 1000)
    assert sizes["vit_large_patch16_384"] == (384, 1000)
