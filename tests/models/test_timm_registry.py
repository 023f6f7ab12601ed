"""The catalog among timm's models: found by name, and there as timm's own are."""

import subprocess
import sys
from typing import Any

import pytest
import timm
import torch
from torch import nn

import attneck
from attneck.models.catalog import CATALOG

OURS = [f"attneck_{name}" for name in attneck.list_models()]
# A small one of each family: its name, and options that make it small.
FAMILIES: dict[str, dict[str, Any]] = {
    "resnet50_bam": {"depths": [1, 1, 1, 1], "widths": [16, 16, 16, 32]},
    "botnet50": {"depths": [1, 1, 1, 2], "widths": [16, 16, 16, 32]},
    "cifar_resnet20_bot_bam": {"depths": [1, 1, 1]},
    "cifar_preresnet110": {"depths": [1, 1, 1]},
    "cifar_densenet100_bam": {"depths": [2, 2, 2]},
    "mobilenet_bam": {"alpha": 0.25},
    "squeezenet1_1_bam": {},
    "efficientnet_b0": {},
    "deit_small_patch16_224": {"width": 32, "depth": 4, "heads": 2},
}


def run(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_classifier_is_there() -> None:
    assert sorted(timm.list_models("attneck_*")) == sorted(OURS)
    assert all(map(timm.is_model, OURS))
    assert timm.list_models(module="timm_registry") == timm.list_models("attneck_*")
    assert not timm.list_pretrained("attneck_*")


def test_timm_first_and_no_name_is_timm_s() -> None:
    run(
        "import timm\n"
        "from timm.models import get_deprecated_models\n"
        "theirs = {*timm.list_models(include_tags=True), *timm.list_models(), *get_deprecated_models()}\n"
        "assert len(theirs) > 2000\n"
        "import attneck\n"
        f"ours = set({OURS!r})\n"
        "assert not ours & theirs\n"
        "assert set(timm.list_models()) - theirs == ours\n"
    )


def test_attneck_first_and_timm_none_the_wiser() -> None:
    run(
        "import sys, attneck, attneck.timm_hook\n"
        "assert not {'timm', 'torch'} & set(sys.modules)\n"
        "import timm.layers\n"  # brings in timm.models by way of timm itself
        "assert timm.is_model('attneck_botnet50')\n"
        "assert 'attneck' not in type(timm.models.__spec__.loader).__module__\n"
        "assert timm.models.__loader__ is timm.models.__spec__.loader\n"
        "assert not any(type(finder).__module__ == 'attneck.timm_hook' for finder in sys.meta_path)\n"
    )


def test_an_import_of_timm_that_fails_can_be_tried_again(tmp_path: Any) -> None:
    """With a stand-in for timm, and for what is then entered."""
    (tmp_path / "timm" / "models").mkdir(parents=True)
    (tmp_path / "timm" / "__init__.py").touch()
    broken = "import builtins\nif not hasattr(builtins, 'mended'): raise OSError('no')\n"
    (tmp_path / "timm" / "models" / "__init__.py").write_text(broken)
    run(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import builtins\n"
        "from attneck import timm_hook\n"
        "entered = []; timm_hook._enter = lambda: entered.append(1)\n"
        "timm_hook.register()\n"  # a second time: still one finder
        "try: import timm.models\n"
        "except OSError: pass\n"
        "else: raise AssertionError\n"
        "assert not entered\n"
        "builtins.mended = True\n"
        "import timm.models\n"
        "assert entered == [1], entered\n"
        "timm_hook.register()\n"
        "assert entered == [1, 1]\n"
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_timm_s_functions_take_it(name: str) -> None:
    torch.manual_seed(0)
    options = FAMILIES[name]
    arguments: dict[str, Any] = {"img_size": 64, "in_chans": 2, **options}
    whole: Any = timm.create_model(f"attneck_{name}", num_classes=5, drop_rate=0.25, **arguments).eval()
    images = torch.randn(2, 2, 64, 64)
    assert whole(images).shape == (2, 5)
    assert any(isinstance(module, nn.Dropout) and module.p == 0.25 for module in whole.modules()) or (
        whole.drop_rate == 0.25
    )
    cfg = whole.pretrained_cfg
    assert whole.get_submodule(cfg["first_conv"]).weight.shape[1] == 2
    assert whole.get_submodule(cfg["classifier"]).weight.shape[0] == 5
    rgb = timm.data.resolve_model_data_config(whole)
    assert (rgb["mean"], rgb["std"]) == (timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD)
    assert whole.origin.name == name

    last = whole.forward_features(images)
    torch.testing.assert_close(whole.forward_head(last), whole(images), rtol=0, atol=0)
    count = len(whole.feature_info)
    for feature_cls in (None, "getter"):
        chosen = {"feature_cls": feature_cls} if feature_cls else {}
        features: Any = timm.create_model(
            f"attneck_{name}", features_only=True, out_indices=(1, -1), **arguments, **chosen
        ).eval()
        weights = whole.state_dict()
        if "model" in dict(features.named_children()):
            features.model.load_state_dict(weights, strict=False)
        else:  # flattened, timm's way, where a stage is inside a Sequential
            flat = {key.replace("features.", "features_"): value for key, value in weights.items()}
            own = features.state_dict()
            features.load_state_dict({key: flat[key] for key in own})
        maps = features(images)
        wanted = whole.forward_intermediates(images, indices=[1, count - 1], intermediates_only=True)
        torch.testing.assert_close(maps, wanted, rtol=0, atol=0)
        assert features.feature_info.channels() == [features.shape[1] for features in maps]
        assert "classifier" not in features.pretrained_cfg
    default: Any = timm.create_model(f"attneck_{name}", features_only=True, **arguments)
    assert len(default(images)) == (3 if name.startswith("deit") else count)

    whole.reset_classifier(7)
    assert whole(images).shape == (2, 7)


def test_at_output_stride_16_a_botnet_is_of_the_s1_kind() -> None:
    with torch.device("meta"):
        model: Any = timm.create_model("attneck_botnet50", output_stride=16)
        assert model.state_dict().keys() == attneck.create_model("botnet_s1_50").state_dict().keys()
        assert model.feature_info[-1]["reduction"] == 16


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("botnet50", {"output_stride": 4}, "output_stride=4: wanted one of 32, 16 or 8"),
        ("cifar_resnet20", {"output_stride": 16}, "attneck_cifar_resnet20 has 4 and no other"),
        ("squeezenet1_1", {"output_stride": 8}, "attneck_squeezenet1_1 has 16 and no other"),
        ("botnet50", {"global_pool": "mean"}, "global_pool='mean': wanted one of 'avg', 'max'"),
        ("squeezenet1_1", {"global_pool": "catavgmax"}, "wanted one of 'avg', 'max', 'avgmax', ''"),
        ("mobilenet", {"global_pool": ""}, "global_pool='' hands on a map.*give num_classes=0"),
        ("deit_small_patch16_224", {"bn_eps": 1e-3}, "bn_eps=0.001 would change nothing"),
        ("botnet50", {"head": 8}, "no option 'head'; perhaps you meant 'heads'"),
        ("botnet50", {"head": 8, "output_stride": 16}, "^botnet50 has no option 'head'"),
        ("mobilenet", {"drop_path_rate": 0.1}, "drop_path_rate=0.1: .* no residual branch"),
        ("cifar_resnet20", {"drop_block_rate": 0.1}, "drop_block_rate=0.1: .* no DropBlock"),
        ("cifar_resnet20", {"in_chans": 0}, "in_chans=0: wanted a whole number from 1"),
    ],
)
def test_what_it_does_not_have_is_refused(name: str, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        timm.create_model(f"attneck_{name}", **arguments)


def test_there_are_no_pretrained_weights() -> None:
    with pytest.raises(RuntimeError, match="No pretrained weights exist for attneck_cifar_resnet20"):
        timm.create_model("attneck_cifar_resnet20", pretrained=True)


def test_weights_of_three_channels_load_into_one(tmp_path: Any) -> None:
    """timm's own adaptation finds the first conv and the classifier by `pretrained_cfg`."""
    torch.manual_seed(0)
    rgb = attneck.create_model("cifar_resnet20", depths=[1, 1, 1])
    attneck.hub.save(rgb, tmp_path)
    grey: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, in_chans=1, num_classes=3)
    torch.testing.assert_close(grey.conv1.weight, rgb.conv1.weight.sum(1, keepdim=True))
    assert torch.equal(grey.layer3[0].conv2.weight, rgb.layer3[0].conv2.weight)
    assert grey.fc.weight.shape[0] == 3


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_says_where_its_ends_are(name: str) -> None:
    with torch.device("meta"):
        model: Any = attneck.create_model(name, in_chans=5, num_classes=7)
    cfg = model.pretrained_cfg
    assert model.get_submodule(cfg["first_conv"]).weight.shape[1] == 5
    assert model.get_submodule(cfg["classifier"]).weight.shape[0] == 7
    assert cfg["input_size"] == (5, CATALOG[name].image_size, CATALOG[name].image_size)
    assert len(cfg["mean"]) == len(cfg["std"]) == 5
