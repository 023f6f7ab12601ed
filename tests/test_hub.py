"""Models as files: what is loaded is what was saved, or one line says why not."""

import json
import os
import pickle
import random
import re
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file, save_file
from small_run import broken_off_after
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils._pytree import tree_map

import attneck
from attneck import hub
from attneck.commands.given_model import viewer
from attneck.hub.config import computed
from attneck.models import catalog
from attneck.models.cifar.network import CifarResNet
from attneck.models.weight_files import digest
from attneck.training.recipe import Recipe

MODELS: dict[str, dict[str, Any]] = {
    "botnet50": {"depths": [1, 1, 1, 1], "widths": [16, 16, 16, 32], "heads": 2, "image_size": (64, 96)},
    "cifar_resnet20_bot_bam": {"depths": [1, 1, 1], "bam_dilation": 2, "in_chans": 4},
    "squeezenet1_1_bam": {"image_size": 64},
    "deit_small_patch16_224": {"width": 32, "depth": 1, "heads": 2, "image_size": 64},
    "efficientnet_b0": {"image_size": 64},
}


def make(name: str, num_classes: int = 5, **changes: Any) -> Any:
    """The model with weights that leave no branch without effect, and statistics of its own."""
    torch.manual_seed(0)
    model: Any = attneck.create_model(name, num_classes, **MODELS[name] | changes)
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.ndim == 1:
            nn.init.uniform_(tensor, 0.5, 1.5)
        elif "qkv" in key:
            nn.init.normal_(tensor, std=0.1)
    return model


def images(model: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, model.origin.in_chans, *model.origin.image_size, generator=generator)


def logits(model: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model.eval()(x)
    return out


def refusal(source: Path) -> str:
    with pytest.raises(ValueError, match=r".+") as error:
        hub.load(source)
    said = str(error.value)
    assert "\n" not in said
    return said


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return hub.save(make("cifar_resnet20_bot_bam"), tmp_path / "small")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("form", ["folder", "one.safetensors"])
def test_what_is_loaded_is_what_was_saved(name: str, form: str, tmp_path: Path) -> None:
    model = make(name)
    again: Any = hub.load(hub.save(model, tmp_path / form))
    assert not again.training
    assert again.origin.num_classes == 5
    assert again.origin.image_size == model.origin.image_size
    assert again.origin.in_chans == model.origin.in_chans
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    x = images(model)
    torch.testing.assert_close(logits(again, x), logits(model, x), rtol=0, atol=0)


def test_a_detector_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = attneck.create_model("stairnet_mobilenet_bam", num_classes=4).eval()
    model.transform.image_mean = [0.1, 0.2, 0.3]
    again: Any = hub.load(hub.save(model, tmp_path / "detector"))
    assert again.transform.image_mean == [0.1, 0.2, 0.3]
    x = [torch.rand(3, 100, 120)]
    with torch.no_grad():
        torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)


def test_the_config_says_what_the_model_is_and_wants(tmp_path: Path) -> None:
    model = make("cifar_resnet20_bot_bam")
    model.reset_classifier(3)
    given = {"mean": (0.1, 0.2, 0.3, 0.4), "std": (1, 2, 3, 4), "label_names": ["a", "b", "ĉ"]}
    hub.save(model, tmp_path, interpolation="nearest", crop_pct=0.9, **given)
    config = json.loads((tmp_path / "config.json").read_text())
    assert len(config.pop("sha256")) == 64
    assert config == {
        "architecture": "attneck_cifar_resnet20_bot_bam",
        "num_classes": 3,
        "label_names": ["a", "b", "ĉ"],
        "model_args": {"img_size": [32, 32], "in_chans": 4, "depths": [1, 1, 1], "bam_dilation": 2},
        "pretrained_cfg": {
            "input_size": [4, 32, 32],
            "mean": [0.1, 0.2, 0.3, 0.4],
            "std": [1, 2, 3, 4],
            "interpolation": "nearest",
            "crop_pct": 0.9,
            "first_conv": "conv1",
            "classifier": "fc",
        },
    }
    # It stays with the model, and goes into the next file.
    again: Any = hub.load(tmp_path)
    assert again.pretrained_cfg["mean"] == (0.1, 0.2, 0.3, 0.4)
    assert again.pretrained_cfg["label_names"] == ("a", "b", "ĉ")
    assert hub.describe(again) == config
    again.reset_classifier(2)  # whose names they are not
    assert "label_names" not in hub.describe(again)


def test_timm_and_the_hub_s_mixin_read_the_folder(tmp_path: Path) -> None:
    import timm

    model = make("cifar_resnet20_bot_bam", in_chans=3)
    hub.save(model, tmp_path, mean=(0.1, 0.2, 0.3))
    x = images(model)
    by_timm: Any = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    torch.testing.assert_close(logits(by_timm, x), logits(model, x), rtol=0, atol=0)
    assert tuple(by_timm.pretrained_cfg["mean"]) == (0.1, 0.2, 0.3)
    hub.save(by_timm, tmp_path / "again")
    torch.testing.assert_close(logits(hub.load(tmp_path / "again"), x), logits(model, x), rtol=0, atol=0)

    plain: Any = attneck.create_model("cifar_resnet20", num_classes=5, depths=[1, 1, 1])
    hub.save(plain, tmp_path / "plain")

    class Net(CifarResNet, huggingface_hub.PyTorchModelHubMixin):
        def __init__(self, num_classes: int, model_args: dict[str, Any]) -> None:
            options: Any = catalog.find("cifar_resnet20", {"depths": model_args["depths"]}).options
            super().__init__(options, num_classes, model_args["in_chans"])

    mixed = Net.from_pretrained(tmp_path / "plain", strict=True)
    torch.testing.assert_close(logits(mixed, x), logits(plain, x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"crop_pct": 2.5}, "crop_pct"),
        ({"crop_pct": 0.0}, "crop_pct"),
        ({"std": (0.0, 1.0, 1.0)}, "std"),
        ({"mean": (float("nan"), 0.0, 0.0)}, "mean"),
        ({"interpolation": "a" * 21}, "interpolation"),
    ],
)
def test_what_load_would_refuse_is_not_written(given: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        hub.save(make("cifar_resnet20_bot_bam"), tmp_path / "net.safetensors", **given)
    assert not [*tmp_path.iterdir()]


def test_weights_in_shards_are_named(tmp_path: Path) -> None:
    hub.save(make("cifar_resnet20_bot_bam"), tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "model-00001-of-00001.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text("{}")
    for given in (tmp_path, index):
        with pytest.raises(ValueError, match="json lists the shards of weights"):
            hub.load(given)
    with pytest.raises(ValueError, match="json lists the shards of weights"):
        attneck.load_matching(make("cifar_resnet20_bot_bam"), index)


def test_a_half_network_with_hooks_is_compared_in_float32(tmp_path: Path) -> None:
    """Not every processor has convolutions in half precision."""
    seen: list[torch.dtype] = []
    model = make("cifar_resnet20_bot_bam").to(torch.float16)
    model.fc.register_forward_hook(lambda module, images, out: seen.append(out.dtype))
    hub.save(model, tmp_path)
    assert seen == [torch.float32]
    assert {one.dtype for one in model.parameters()} == {torch.float16}
    model.fc.register_forward_hook(lambda module, images, out: 2 * out)
    with pytest.raises(ValueError, match="makes another result of an image"):
        hub.save(model, tmp_path)


def test_wrappers_are_looked_through(tmp_path: Path) -> None:
    model = make("cifar_resnet20_bot_bam")
    for average in (AveragedModel(torch.compile(model)), ModelEmaV3(model)):
        hub.save(average, tmp_path)
        torch.testing.assert_close(hub.load(tmp_path).state_dict(), model.state_dict(), rtol=0, atol=0)


def test_the_umask_rules(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        folder = hub.save(make("cifar_resnet20_bot_bam"), tmp_path / "folder")
    finally:
        os.umask(old)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o640}
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}


@pytest.mark.parametrize("name", ["botnet50", "deit_small_patch16_224"])
def test_at_another_size_it_says_what_the_old_one_says_there(name: str, tmp_path: Path) -> None:
    model = make(name, image_size=64)
    larger: Any = hub.load(hub.save(model, tmp_path), image_size=96)
    assert larger.origin.image_size == (96, 96)
    assert larger.pretrained_cfg["input_size"] == (3, 96, 96)
    x = images(larger)
    torch.testing.assert_close(logits(larger, x), logits(model, x), rtol=1e-4, atol=1e-5)
    hub.save(larger, tmp_path / "larger")
    torch.testing.assert_close(logits(hub.load(tmp_path / "larger"), x), logits(larger, x), rtol=0, atol=0)


@pytest.mark.parametrize("form", ["folder", "one.safetensors"])
def test_a_flipped_bit_is_refused(form: str, tmp_path: Path) -> None:
    path = hub.save(make("cifar_resnet20_bot_bam"), tmp_path / form)
    files = [path] if path.is_file() else sorted(path.iterdir())
    draw = random.Random(0)
    for file in files:
        whole = file.read_bytes()
        header = int.from_bytes(whole[:8], "little") + 8 if file.suffix == ".safetensors" else len(whole)
        places = [*range(8), *(draw.randrange(header) for _ in range(22))]
        places += [draw.randrange(header, len(whole)) for _ in range(10)] if header < len(whole) else []
        for place in places:
            data = bytearray(whole)
            data[place] ^= 1 << draw.randrange(8)
            file.write_bytes(data)
            refusal(path)
        file.write_bytes(whole)
    hub.load(path)


def test_a_truncated_file_is_refused(small: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        whole = (small / name).read_bytes()
        for length in (0, 1, 7, 8, 100, len(whole) // 2, len(whole) - 2):
            (small / name).write_bytes(whole[:length])
            assert "damaged" in refusal(small)
        (small / name).write_bytes(whole)
    hub.load(small)


def test_files_of_two_models_are_refused(small: Path, tmp_path: Path) -> None:
    other = hub.save(make("cifar_resnet20_bot_bam", num_classes=6), tmp_path / "other")
    shutil.copy(other / "model.safetensors", small)
    assert "of two models" in refusal(small)


def resigned(path: Path, **changes: Any) -> None:
    """Change the config, and the sum with it."""
    config = json.loads((path / "config.json").read_text()) | changes
    state = load_file(path / "model.safetensors")
    config["sha256"] = digest(state, config)
    save_file(state, path / "model.safetensors", {"format": "pt"})
    (path / "config.json").write_text(json.dumps(config))


def test_a_config_that_says_another_model_is_refused(small: Path) -> None:
    for changes, says in (
        ({"num_classes": 7}, "size mismatch for fc.weight"),
        ({"architecture": "attneck_resnet18"}, "wanted 4 entries"),
        ({"architecture": "attneck_resnet"}, "no model is called 'resnet'; perhaps"),
        ({"architecture": ["attneck_resnet18"]}, "not a model that this version makes"),
        ({"model_args": {"img_size": [32, 32], "in_chans": 4, "depth": [1]}}, "no option 'depth'"),
        ({"model_args": {}}, "not a model that this version makes"),
        ({"model_args": 7}, "not a model that this version makes"),
        ({"pretrained_cfg": None}, "not a model that this version makes"),
    ):
        whole = (small / "config.json").read_bytes()
        resigned(small, **changes)
        with pytest.raises(ValueError, match=says) as error:
            hub.load(small)
        assert "\n" not in str(error.value)
        (small / "config.json").write_bytes(whole)


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


def test_nothing_runs_code(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (small / "model.safetensors").write_bytes(pickle.dumps({"conv1.weight": Evil()}))
    assert "damaged" in refusal(small)
    torch.save({"conv1.weight": Evil()}, small / "model.safetensors")
    assert "damaged" in refusal(small)
    assert not (tmp_path / "ran").exists()


def test_what_is_not_there_or_not_ours(small: Path, tmp_path: Path) -> None:
    assert "no repository of the Hub either" in refusal(Path("nowhere"))
    (tmp_path / "empty").mkdir()
    assert "is no saved model, and no run: wanted config.json" in refusal(tmp_path / "empty")
    save_file({"x": torch.zeros(2)}, tmp_path / "weights.safetensors")
    torch.save(torch.nn.Linear(1, 1).state_dict(), tmp_path / "net.pth")
    assert "net.pth is a file of torch.save, without a config: make its" in refusal(tmp_path / "net.pth")
    assert "weights without a config" in refusal(tmp_path / "weights.safetensors")
    (small / "config.json").write_text("[]")
    assert "not what attneck.hub.save wrote" in refusal(small)


def put(layer: str, **values: Any) -> Any:
    """Sets attributes of a model's layer after the model was built."""

    def on(model: Any) -> Any:
        for name, value in values.items():
            setattr(model.get_submodule(layer), name, value)
        return model

    return on


def put_gelu(model: Any) -> Any:
    model.act1 = nn.GELU()
    return model


def with_state(model: Any) -> Any:
    """As quantized layers have it."""
    kind = type(model.layer1)
    model.layer1.__class__ = type(kind.__name__, (kind,), {"get_extra_state": lambda self: "words"})
    return model


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (
            put("conv1", stride=(2, 2)),
            r"its conv1 stride is \(2, 2\) and would be \(1, 1\) in what load makes",
        ),
        (put("layer3.0.conv2", resample="keep"), "its layer3.0.conv2 resample is keep and would be stretch"),
        (put("layer3.0.conv2", scale=1.0), "its layer3.0.conv2 scale is 1.0 and would be 0.25"),
        (put("conv1", padding_mode="reflect"), "its conv1 padding_mode is reflect and would be zeros"),
        (
            lambda model: setattr(model, "act1", nn.Identity()) or model,
            "its act1 kind is not there and would be ReLU",
        ),
        (lambda model: model.row.remove("act1") or model, r"its row is \['conv1', 'bn1', 'layer1'"),
        (put("layer1.0.bn1", eps=0.1), "its layer1.0.bn1 eps is 0.1 and would be 1e-05"),
        (
            lambda model: model.reset_classifier(5, "max") or model,
            "its global_pool pool_type is max and would",
        ),
        (lambda model: model.double(), r"conv1.weight is of float64, .* give model.float\(\)"),
        (lambda model: nn.Sequential(model), "Sequential was not made by attneck.create_model"),
        (lambda model: model.layer1.append(nn.Linear(2, 2)) and model, "2 tensors .layer1.2.bias first"),
        (lambda model: put_gelu(model), "its act1 kind is GELU and would be ReLU"),
        (
            lambda model: model.layer1.register_forward_hook(lambda module, given, out: 2 * out) and model,
            "makes another result of an image .* or has hooks",
        ),
        (lambda model: put("layer1", forward=lambda x: x)(model), "makes another result of an image"),
        (lambda model: with_state(model), "layer1._extra_state is a str and no plain tensor, as in a quant"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(spoil: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says):
        hub.save(spoil(make("cifar_resnet20_bot_bam")), tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_a_tensor_of_a_class_of_its_own_is_saved_as_what_it_holds(tmp_path: Path) -> None:
    class Named(torch.Tensor):
        pass

    model = make("cifar_resnet20_bot_bam")
    model.bn1.running_mean = (torch.arange(16) / 8).as_subclass(Named)  # type: ignore[union-attr,assignment]
    again = attneck.load(hub.save(model, tmp_path / "folder"))
    assert torch.equal(again.bn1.running_mean, torch.arange(16) / 8)  # type: ignore[union-attr,arg-type]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_loaded_as_the_same_numbers_in_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    model = make("cifar_resnet20_bot_bam").to(dtype)
    again = attneck.load(hub.save(model, tmp_path / "folder")).state_dict()
    for name, tensor in model.state_dict().items():
        wanted = tensor.float() if tensor.is_floating_point() else tensor
        torch.testing.assert_close(again[name], wanted, rtol=0, atol=0)


def test_a_detector_s_sizes_and_proposals_are_its_own(tmp_path: Path) -> None:
    for name, value in (
        ("transform.size", (48, 48)),
        ("rpn._pre_nms_top_n", {"training": 3, "testing": 3}),
        ("rpn._post_nms_top_n", {"training": 3, "testing": 3}),
    ):
        model = attneck.create_model("maskrcnn_resnet26_thin", num_classes=3, image_size=64)
        layer, _, attribute = name.partition(".")
        with pytest.raises(ValueError, match=f"its {layer} {attribute} is .* and would be"):
            hub.save(put(layer, **{attribute: value})(model), tmp_path / "folder")


@pytest.mark.parametrize("part", ["backbone", ""])
def test_a_detector_with_hooks_that_change_its_result_is_not_saved(part: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = attneck.create_model("fasterrcnn_resnet26_thin", num_classes=3, image_size=64).eval()
    nn.init.constant_(model.roi_heads.box_predictor.cls_score.bias[:1], 50)  # it finds nothing in noise
    kept = model.get_submodule(part).register_forward_hook(lambda module, given, out: None)
    hub.save(model, tmp_path / "same")
    kept.remove()
    model.get_submodule(part).register_forward_hook(lambda _, given, out: tree_map(lambda x: x + 1, out))
    with pytest.raises(ValueError, match="or has hooks"):
        hub.save(model, tmp_path / "folder")
    assert model.roi_heads.score_thresh == 0.05


def test_what_computes_the_same_is_saved(tmp_path: Path) -> None:
    model = make("cifar_resnet20_bot_bam")
    model.layer3[0].conv2.show_maps()
    model.set_grad_checkpointing()
    hub.save(nn.SyncBatchNorm.convert_sync_batchnorm(model), tmp_path / "folder")


def test_what_matters_in_training_alone_is_no_difference() -> None:
    def settings(training: bool, eps: float = 1e-5) -> dict[str, str]:
        share = 0.5 if training else 0.0
        net: Any = nn.Sequential(
            nn.ReLU(inplace=training),
            nn.BatchNorm2d(4, eps, momentum=0.2 + share),
            timm.layers.DropPath(share, scale_by_keep=training),
            nn.Dropout(share) if training else nn.Identity(),
            attneck.layers.BAM(4, reduction=2, backend="plain" if training else "auto"),
        )
        net.drop_rate = share
        return computed(net.train(training))

    assert settings(True) == settings(False) != settings(False, eps=1e-3)


@pytest.mark.parametrize("given", [{"mean": (0.5,)}, {"std": (1, 2, 3)}, {"label_names": ["a"]}])
def test_figures_that_do_not_fit_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"entries, wanted [45]"):
        hub.describe(make("cifar_resnet20_bot_bam"), **given)


def test_an_option_that_would_change_nothing_is_refused(small: Path) -> None:
    for given in ("num_classes", "revision"):
        with pytest.raises(ValueError, match=f"{given} would change nothing"):
            hub.load(small, **{given: "3"})


def test_a_repository_of_the_hub(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the Hub's cache, as it lies on a machine without a network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "cache" / "models--someone--net"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("c0ffee")
    shutil.copytree(small, repository / "snapshots" / "c0ffee")
    model = hub.load("someone/net", cache_dir=tmp_path / "cache")
    torch.testing.assert_close(model.state_dict(), hub.load(small).state_dict(), rtol=0, atol=0)
    with pytest.raises(ValueError, match="someone/else is not there, and the Hub did not give it"):
        hub.load("someone/else", cache_dir=tmp_path / "cache")


def test_push_uploads_what_load_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Api:
        def __init__(self, token: str | None = None) -> None:
            assert token == "secret"

        def create_repo(self, repo_id: str, **options: Any) -> Any:
            assert options["private"] is True
            return type("Url", (), {"repo_id": repo_id})

        def upload_folder(self, *, repo_id: str, folder_path: Path, **options: Any) -> str:
            shutil.copytree(folder_path, tmp_path / repo_id)
            return f"commit of {repo_id}"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    model = make("cifar_resnet20_bot_bam")
    said = hub.push(
        model, "someone/net", private=True, token="secret", license="mit", label_names=list("abcde")
    )
    assert said == "commit of someone/net"
    uploaded: Any = hub.load(tmp_path / "someone/net")
    assert uploaded.pretrained_cfg["label_names"] == tuple("abcde")
    torch.testing.assert_close(uploaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    card = (tmp_path / "someone/net/README.md").read_text()
    assert 'attneck.load("someone/net")' in card
    assert "license: mit" in card
    assert "library_name: attneck" in card


def test_without_huggingface_hub_a_line_says_what_to_install(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    hub.load(small)
    with pytest.raises(ValueError, match=r"pip install 'attneck\[hub\]'"):
        hub.load("someone/net")


RUNS: dict[str, dict[str, Any]] = {
    "after surgery": {
        "name": "cifar_resnet20",
        "options": {"depths": [1, 1], "mids": [16, 32], "outs": [16, 32]},
        "surgery": "attend",
        "surgery_options": {"heads": 2},
    },
    "after two": {
        "name": "cifar_resnet20",
        "options": {"depths": [1, 1], "mids": [16, 32], "outs": [16, 32]},
        "surgery": "attend+insert_bam",
        "surgery_options": {"attend.heads": 2, "insert_bam.start": "paper"},
    },
    "timm": {"name": "timm/resnet10t", "options": {"channels": [8, 8, 8, 8], "stem_width": 8}},
    "timm after surgery": {
        "name": "timm/resnet10t",
        "options": {"channels": [16, 16, 16, 16], "stem_width": 8},
        "surgery": "insert_bam",
        "surgery_options": {"start": "paper", "reduction": 4},
    },
    "detector": {
        "name": "fasterrcnn_resnet26_thin",
        "options": {"channels": 8, "box_features": 16, "proposals": 20},
    },
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, attneck.Run]:
    made = {}
    for name, model in RUNS.items():
        folder = tmp_path_factory.mktemp("runs") / name
        side = 96 if name == "detector" else 24
        data = {"name": "shapes", "train_size": 8, "val_size": 4, "image_size": side}
        attneck.train(Recipe.model_validate({"model": model, "data": data, "batch": 4}), folder)
        made[name] = attneck.Run(folder)
    return made


@pytest.mark.parametrize("name", RUNS)
def test_what_is_loaded_of_a_run_is_the_run_s_model(
    name: str, runs: dict[str, attneck.Run], tmp_path: Path
) -> None:
    """Also after it was saved once more; by `attneck.load` from the run's folder too."""
    run = runs[name]
    first = hub.save(run, tmp_path / "first")
    again = hub.load(first)
    second = hub.load(hub.save(again, tmp_path / "second.safetensors"))
    own: Any = run.model()
    x = torch.rand(1, 3, 96, 96) if name == "detector" else torch.randn(1, 3, 24, 24)
    for model in (again, second, attneck.load(run), attneck.load(str(run.folder)), attneck.load(first)):
        assert not model.training
        torch.testing.assert_close(model.state_dict(), own.state_dict(), rtol=0, atol=0)
        with torch.no_grad():
            torch.testing.assert_close(model([*x]), own([*x])) if name == "detector" else (
                torch.testing.assert_close(model(x), own(x), rtol=0, atol=0)
            )
    assert hub.describe(again) == hub.describe(own)
    seen, saved = viewer(str(run.folder)).facts, viewer(str(first)).facts  # attneck look, attneck serve
    assert name == "detector" or saved["image_size"] == seen["image_size"] == 24
    classes = run.facts["classes"]
    said = json.loads((first / "config.json").read_text())["label_names"]
    assert said == (["background", *classes] if name == "detector" else classes)


@pytest.mark.parametrize("name", RUNS)
def test_timm_reads_what_it_can_make_and_refuses_the_rest(
    name: str, runs: dict[str, attneck.Run], tmp_path: Path
) -> None:
    import timm

    folder, x = hub.save(runs[name], tmp_path / "saved"), torch.randn(1, 3, 24, 24)
    if name == "timm":
        theirs: Any = timm.create_model(f"local-dir:{folder}", pretrained=True)
        torch.testing.assert_close(logits(theirs, x), logits(runs[name].model(), x), rtol=0, atol=0)
        assert theirs.pretrained_cfg["std"] == runs[name].facts["std"]
    else:
        with pytest.raises(RuntimeError, match="Unknown model"):
            timm.create_model(f"local-dir:{folder}", pretrained=True)


def test_a_run_s_folder_has_a_card(runs: dict[str, attneck.Run], tmp_path: Path) -> None:
    run = runs["after surgery"]
    around = json.loads((run.folder / "environment.json").read_text())
    secret = "--data.root /home/someone --out=/home/someone/run --root '/home/some one'"
    weights = "--model.weights /home/someone/mine.pth"
    around["starts"][0]["command"] = f"attneck train demo {secret} {weights} --model.surgery attend"
    (run.folder / "environment.json").write_text(json.dumps(around))
    hub.save(run, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "README.md",
        "config.json",
        "curves.png",
        "model.safetensors",
    }
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    card = huggingface_hub.ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "attneck"
    assert card.data.pipeline_tag == "image-classification"
    assert card.data.tags == ["attneck", "image-classification", "cifar_resnet20", "attend"]
    assert card.data.metrics == ["accuracy"]
    assert f"| val_top1 | {run.history[-1]['val_top1']:.4g} |" in card.text
    assert "\nattneck train demo --model.weights mine.pth --model.surgery attend\n" in card.text
    assert (
        "This folder has the weights (`val`) after 2 steps. The scores are those after 2 steps; `val`"
        in card.text
    )
    assert card.data.eval_results is not None
    listed, other = card.data.eval_results
    assert (listed.metric_name, other.metric_name) == ("top-1 (%)", "top-5 (%)")
    assert (listed.task_type, listed.dataset_type) == ("image-classification", run.recipe.data.name)
    assert listed.metric_value == pytest.approx(run.history[-1]["val_top1"], rel=1e-3)
    assert "on held-out images:" in card.text
    assert "attneck.surgery.attend(heads=2)" in card.text
    assert "recipe `demo`" in card.text
    assert "they do not read it" in card.text
    assert "(curves.png)" in card.text
    shown = re.search(r"```yaml\n(.*?)```", card.text, re.DOTALL)
    assert shown is not None
    told = Recipe.model_validate(yaml.safe_load(shown[1]))
    assert told == run.recipe
    hub.save(runs["after two"], tmp_path / "two")
    card = huggingface_hub.ModelCard.load(tmp_path / "two/README.md")
    assert card.data.tags == ["attneck", "image-classification", "cifar_resnet20", "attend", "insert_bam"]
    by = "`attneck.surgery.attend(heads=2)`, then `attneck.surgery.insert_bam(start='paper')`"
    assert f"changed by {by}, trained" in card.text


@pytest.mark.parametrize("name", ["README.md", "config.json", "model.safetensors", "curves.png"])
def test_somebody_s_file_is_not_replaced(runs: dict[str, attneck.Run], tmp_path: Path, name: str) -> None:
    """A model that was saved there is."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    (folder / name).write_text("mine")
    with pytest.raises(ValueError, match=f"mine has a {name} that is of no model saved there"):
        hub.save(runs["after surgery"], folder)
    assert (folder / name).read_text() == "mine"
    (folder / name).unlink()
    for _ in range(2):
        hub.save(runs["after surgery"], folder)
    (folder / "config.json").unlink()  # as of a save that was killed
    assert attneck.load(hub.save(runs["after surgery"], folder))


def test_a_card_names_no_place_of_a_machine(runs: dict[str, attneck.Run], tmp_path: Path) -> None:
    run = runs["timm"]
    secret = run.recipe.data.model_copy(update={"root": "/home/someone"})
    begun = run.recipe.model.model_copy(update={"weights": "/home/someone/my net.safetensors"})
    run.model()  # its checkpoint is compared with its recipe, as that is
    run.__dict__["recipe"] = run.recipe.model_copy(update={"data": secret, "model": begun})
    try:
        hub.save(run.model(), tmp_path, run=run)
    finally:
        del run.__dict__["recipe"]
    card = (tmp_path / "README.md").read_text()
    assert "someone" not in card
    assert "weights: my net.safetensors" in card


def test_a_card_is_of_the_network_that_is_saved(runs: dict[str, attneck.Run], tmp_path: Path) -> None:
    run = runs["timm"]
    names = [f"class {label}" for label in range(len(run.facts["classes"]))]
    hub.save(run, tmp_path / "named", label_names=names)
    assert f"{len(names)} classes: class 0, class 1," in (tmp_path / "named" / "README.md").read_text()
    for other, said in (
        (timm.create_model("resnet10t", num_classes=3), "has num_classes 10, and the model 3"),
        (
            runs["after surgery"].model(),
            "has architecture 'resnet10t', and the model 'attneck_after_surgery'",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            hub.save(other, tmp_path / "other", run=run)
    assert not (tmp_path / "other").exists()


def test_a_run_s_folder_is_saved_as_the_run(runs: dict[str, attneck.Run], tmp_path: Path) -> None:
    folder = runs["after surgery"].folder
    saved = hub.save(str(folder), tmp_path / "net")
    assert (saved / "README.md").read_text() == (
        hub.save(runs["after surgery"], tmp_path / "other") / "README.md"
    ).read_text()
    with pytest.raises(ValueError, match="wanted a model, an attneck"):
        hub.save("nowhere", tmp_path / "none")


def test_a_model_in_parts_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, whole = make("cifar_resnet20_bot_bam"), torch.Tensor
    monkeypatch.setattr(whole, "full_tensor", lambda self: self, raising=False)  # as DTensor has it
    with pytest.raises(ValueError, match=r"conv1.weight is in parts, one a process \(fully_shard\)"):
        hub.save(model, tmp_path / "net")


def test_a_card_says_which_weights_and_which_images(tmp_path: Path) -> None:
    data = {"name": "shapes", "train_size": 8, "val_size": 8, "image_size": 24, "val_split": "train"}
    content = {"model": RUNS["after surgery"], "data": data, "batch": 4, "ema": 0.5, "checkpoint_steps": 1}
    with broken_off_after(2):
        attneck.train(Recipe.model_validate(content | {"epochs": 3}), tmp_path / "run")
    (tmp_path / "run/metrics.jsonl").write_text('{"epoch": 1, "step": 3, "val_top1": 1.0, "ema_top1": 2.0}\n')
    run = attneck.Run(tmp_path / "run")
    for name, model, said in (
        ("average", run, "This folder has the moving average of the weights (`ema`) after 2 steps."),
        (
            "plain",
            run.model(average=False),
            "This folder has the weights (`val`), not their average, after 2 steps.",
        ),
    ):
        hub.save(model, tmp_path / name, run=run)
        card = (tmp_path / name / "README.md").read_text()
        assert said in card
        assert "scores are those after 3 steps, not of the weights here, which are of step 2;" in card
        assert "on images that it was trained on, `ema` of their average:" in card
        assert "held" not in card.partition("The whole recipe")[0]
        assert "model-index" not in card


@pytest.mark.parametrize("weights", ["resnet18", "resnet18.a1_in1k", "timm/resnet18.a1_in1k"])
def test_a_card_says_what_the_weights_began_as(
    weights: str, runs: dict[str, attneck.Run], tmp_path: Path
) -> None:
    run = attneck.Run(runs["timm"].folder)
    assert run.step == 2  # its checkpoint is compared with its recipe, as that is
    begun = run.recipe.model.model_copy(update={"pretrained": weights})
    run.__dict__["recipe"] = run.recipe.model_copy(update={"model": begun})
    hub.save(run, tmp_path, license="cc-by-4.0")
    card = huggingface_hub.ModelCard.load(tmp_path / "README.md")
    assert (card.data.base_model, card.data.license) == ("timm/resnet18.a1_in1k", "cc-by-4.0")


def test_a_licence_without_a_card_is_refused(runs: dict[str, attneck.Run], tmp_path: Path) -> None:
    for model, path in (
        (runs["timm"].model(), tmp_path / "net"),
        (runs["timm"], tmp_path / "net.safetensors"),
    ):
        with pytest.raises(ValueError, match="license='mit' is for the card"):
            hub.save(model, path, license="mit")
        assert not path.exists()


def test_what_push_refuses_makes_no_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any, **options: Any) -> Any:
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", refuse)
    model = make("cifar_resnet20_bot_bam")
    with pytest.raises(ValueError, match="label_names has 1 entries"):
        hub.push(model, "someone/net", label_names=["a"])
    with pytest.raises(ValueError, match="float64"):
        hub.push(model.double(), "someone/net")


def test_push_keeps_a_run_s_card(
    runs: dict[str, attneck.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Api:
        def __init__(self, token: str | None = None) -> None:
            pass

        def create_repo(self, repo_id: str, **options: Any) -> Any:
            return type("Url", (), {"repo_id": repo_id})

        def upload_folder(self, *, repo_id: str, folder_path: Path, **options: Any) -> str:
            shutil.copytree(folder_path, tmp_path / repo_id)
            return "commit"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    assert hub.push(runs["detector"], "someone/net") == "commit"
    card = huggingface_hub.ModelCard.load(tmp_path / "someone/net/README.md")
    assert card.data.pipeline_tag == "object-detection"
    assert "## How it was made" in card.text


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("timm", {"model_args": {"pretrained": True}}, "its model_args have pretrained"),
        ("timm", {"model_args": {"checkpoint_path": "x.pt"}}, "its model_args have checkpoint_path"),
        ("timm", {"model_args": {"channels": [4096] * 4, "stem_width": 8}}, "larger model than its weights"),
        ("timm", {"model_args": {"layers": [10**9] * 4, "channels": [8] * 4}}, "layers"),
        ("timm", {"model_args": {"layers": [1] * 101}}, "1, 1]: wanted 100 entries at most"),
        ("timm", {"model_args": {"layers": [1, 10**9]}}, "(layers[1]=1000000000: wanted 100000 at most"),
        ("timm", {"model_args": {"act_layer": "x" * 101}}, "x': wanted 100 characters at most"),
        (
            "timm",
            {"model_args": {"layers": [10**4] * 4, "channels": [8] * 4, "stem_width": 8}},
            "larger model",
        ),
        ("timm", {"architecture": "resnet10x"}, "timm has no model 'resnet10x'"),
        ("timm", {"architecture": "hf_hub:someone/net"}, "timm has no model"),
        ("timm", {"architecture": "attneck_botnet50"}, "img_size"),
        ("after surgery", {"architecture": "attneck_cifar_resnet20"}, None),
        (
            "after surgery",
            {"surgery": {"base": "attneck_resnet50", "name": "attend", "options": {}}},
            "no option 'mids'",
        ),
        (
            "after surgery",
            {"surgery": {"base": "attneck_cifar_resnet20", "name": "attend", "options": {"heads": 10**9}}},
            "heads",
        ),
        (
            "after surgery",
            {"surgery": {"base": "attneck_cifar_resnet20", "name": "__import__", "options": {}}},
            "surgery",
        ),
        ("after surgery", {"surgery": {"base": "attneck_cifar_resnet20"}}, "surgery"),
    ],
)
def test_a_forged_config_of_a_run_is_refused_in_a_line(
    name: str, change: dict[str, Any], says: str | None, runs: dict[str, attneck.Run], tmp_path: Path
) -> None:
    """Where the config says the surgery, `architecture` is only for others to read."""
    resigned(hub.save(runs[name].model(), tmp_path), **change)
    if says is None:
        hub.load(tmp_path)
    else:
        assert says in refusal(tmp_path)


@pytest.mark.parametrize("source", [3, None, "", Path("nowhere"), "resnet50", ["a"]])
def test_what_is_no_model_is_one_line(source: Any) -> None:
    with pytest.raises((ValueError, attneck.errors.UserError)) as error:
        attneck.load(source)
    assert "\n" not in str(error.value)
