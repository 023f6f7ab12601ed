"""Other programs' checkpoints fill our networks whole, by every door, and outputs are their networks'."""

import argparse
import collections
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attneck import cli
from attneck.detection import load_weights
from attneck.models import create_model
from attneck.models.weight_files import unwrapped
from attneck.models.weights import StaysRandomWarning, load_matching


class Small(nn.Module):
    """A trunk and a classifier."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.bn1 = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, classes)


def filled(value: float) -> dict[str, Tensor]:
    return {name: torch.full_like(tensor, value) for name, tensor in Small().state_dict().items()}


def prefixed(first: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {first + name: tensor for name, tensor in weights.items()}


# What is in the file, which part is taken, and the numbers that must come out.
WRAPPED: dict[str, tuple[Any, str]] = {
    "state_dict": ({"state_dict": filled(1), "epoch": 3, "best_prec1": 91.7}, "state_dict"),
    "model": ({"model": filled(1), "optimizer": {"lr": 0.1}}, "model"),
    "model and state_dict": ({"model": filled(2), "state_dict": filled(1)}, "state_dict"),
    "model_ema": ({"model": filled(2), "model_ema": filled(1)}, "model_ema"),
    "model_ema and state_dict": ({"state_dict": filled(2), "model_ema": filled(1)}, "model_ema"),
    "timm": (
        {
            "arch": "resnet50",
            "state_dict": filled(2),
            "state_dict_ema": filled(1),
            "args": argparse.Namespace(lr=0.1, model="resnet50"),
        },
        "state_dict_ema",
    ),
    "no average": ({"state_dict": filled(1), "state_dict_ema": None}, "state_dict"),
    "PyTorch's tutorials": ({"epoch": 3, "model_state_dict": filled(1)}, "model_state_dict"),
    "DataParallel": ({"state_dict": prefixed("module.", filled(1))}, "state_dict"),
    "compiled": (prefixed("_orig_mod.", filled(1)), ""),
    "both": (prefixed("_orig_mod.module.", filled(1)), ""),
    "both, the other way": (prefixed("module._orig_mod.", filled(1)), ""),
    "AveragedModel": ({"n_averaged": torch.tensor(3)} | prefixed("module.", filled(1)), ""),
    "Lightning": (
        {
            "pytorch-lightning_version": "2.6.6",
            "hyper_parameters": {"lr": 0.1},
            "state_dict": prefixed("model.", filled(1)) | {"criterion.weight": torch.ones(5)},
        },
        "state_dict",
    ),
    "Lightning, another name": (
        {"state_dict": collections.OrderedDict(prefixed("net.", filled(1)))},
        "state_dict",
    ),
}


@pytest.mark.parametrize("kind", WRAPPED)
@pytest.mark.parametrize("door", ["python", "file", "before torch 1.6", "compiled network"])
def test_wrappers_and_prefixes(kind: str, door: str, tmp_path: Path) -> None:
    content, part = WRAPPED[kind]
    network, given = Small(), content
    if "python" not in door:
        given = tmp_path / "checkpoint.pth.tar"
        torch.save(content, given, _use_new_zipfile_serialization=door != "before torch 1.6")
    target = torch.compile(network, backend="eager") if door == "compiled network" else network
    loaded = load_matching(target, given)
    assert all(bool((tensor == 1).all()) for tensor in network.state_dict().values())
    assert (loaded.new, loaded.part) == ([], part)
    assert len(loaded.taken) == len(network.state_dict())
    assert str(loaded).startswith(f"9 tensors taken of its {part}" if part else "9 tensors taken")


def test_a_network_whose_own_names_begin_like_a_wrapper_s() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = Small()

    network = Outer()
    assert load_matching(network, prefixed("module.", filled(1))).new == []
    assert bool((network.module.fc.bias == 1).all())


def test_wrappers_are_taken_off_wherever_they_stand_and_nothing_else_is() -> None:
    """A part of a network may be compiled by itself; a module's name may end in a wrapper's."""
    bare = {
        "_orig_mod.module.layer1._orig_mod.weight": "layer1.weight",
        "submodule.weight": "submodule.weight",
        "layer1.module.weight": "layer1.module.weight",
    }
    assert [*unwrapped(dict.fromkeys(bare, torch.ones(1)), "it")] == [*bare.values()]


def test_two_networks_in_one_file_are_refused() -> None:
    both = prefixed("student.", filled(1)) | prefixed("teacher.", filled(2))
    with pytest.raises(ValueError, match="two networks that fit, student and teacher") as caught:
        load_matching(Small(), both)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"tensors that differ only in 'module\.' or"):
        load_matching(Small(), filled(1) | prefixed("module.", filled(2)))


class Trainer:
    """A class of somebody's program."""


def test_a_file_that_needs_other_classes_says_which(tmp_path: Path) -> None:
    path = tmp_path / "whole.pth"
    torch.save({"state_dict": filled(1), "trainer": Trainer()}, path)
    with pytest.raises(
        ValueError, match=r"needs \S+\.Trainer to be read: .*torch\.save its weights"
    ) as caught:
        load_matching(Small(), path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


class Runs:
    """What a Namespace must not hold: something that runs when it is read."""

    def __reduce__(self) -> Any:
        return (print, ("ran",))


def test_a_namespace_is_plain_data_and_runs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "forged.pth"
    torch.save({"state_dict": filled(1), "args": argparse.Namespace(a=Runs())}, path)
    with pytest.raises(ValueError, match="nothing that would run"):
        load_matching(Small(), path)
    assert capsys.readouterr().out == ""


def test_what_stays_new_is_loud() -> None:
    """Both shapes; the layers in numbers; every name in the listing; and a warning beyond the classifier."""
    given = filled(1) | {"fc.weight": torch.ones(7, 4), "fc.bias": torch.ones(7), "head.bias": torch.ones(2)}
    loaded = load_matching(Small(), given)
    assert loaded.warning is None  # the classifier's
    assert str(loaded) == (
        "7 tensors taken; 2 new (fc: 2); 3 not used (fc, head); another shape: fc.weight [7, 4], wanted "
        "[5, 4], fc.bias [7], wanted [5]"
    )
    assert loaded.listing.splitlines() == [
        "new       fc.weight",
        "new       fc.bias",
        "not used  fc.weight",
        "not used  fc.bias",
        "not used  head.bias",
        "shape     fc.weight [7, 4], wanted [5, 4]",
        "shape     fc.bias [7], wanted [5]",
    ]
    del given["conv1.weight"]
    with pytest.warns(StaysRandomWarning, match=r"\(1 of 9 tensors\), in conv1: are these") as caught:
        load_matching(Small(), given)
    assert len(caught) == 1


def test_a_layer_that_was_filled_in_part_is_told() -> None:
    network = nn.Sequential(collections.OrderedDict(conv=nn.Conv2d(3, 4, 1, bias=False)))
    with pytest.warns(StaysRandomWarning, match=r"filled in part.* no place for conv\.bias"):
        load_matching(network, nn.Sequential(collections.OrderedDict(conv=nn.Conv2d(3, 4, 1))).state_dict())


# The authors' ResNet-50 with BAM, in functions, off a state dict by the published names.

DEPTHS = (3, 4, 6, 3)


def norm(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    kinds = ("running_mean", "running_var", "weight", "bias")
    return F.batch_norm(x, *(weights[f"{name}.{kind}"] for kind in kinds))


def authors_shapes(classes: int) -> dict[str, list[int]]:
    """Every tensor of the published network, as its checkpoints have them: within DataParallel."""
    shapes: dict[str, list[int]] = {}

    def conv(name: str, fan_in: int, out: int, kernel: int, bias: bool = False) -> None:
        shapes[f"{name}.weight"] = [out, fan_in, kernel, kernel]
        if bias:
            shapes[f"{name}.bias"] = [out]

    def linear(name: str, fan_in: int, out: int) -> None:
        shapes.update({f"{name}.weight": [out, fan_in], f"{name}.bias": [out]})

    def batch(name: str, width: int) -> None:
        for kind in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{kind}"] = [width]

    conv("conv1", 3, 64, 7)
    batch("bn1", 64)
    for number, width in enumerate((256, 512, 1024), start=1):
        hidden, c, s = (
            width // 16,
            f"bam{number}.channel_att.gate_c.gate_c",
            f"bam{number}.spatial_att.gate_s.gate_s",
        )
        linear(f"{c}_fc_0", width, hidden)
        batch(f"{c}_bn_1", hidden)
        linear(f"{c}_fc_final", hidden, width)
        conv(f"{s}_conv_reduce0", width, hidden, 1, bias=True)
        batch(f"{s}_bn_reduce0", hidden)
        for i in range(2):
            conv(f"{s}_conv_di_{i}", hidden, hidden, 3, bias=True)
            batch(f"{s}_bn_di_{i}", hidden)
        conv(f"{s}_conv_final", hidden, 1, 1, bias=True)
    channels = 64
    for stage, depth in enumerate(DEPTHS):
        mid = 64 * 2**stage
        for block in range(depth):
            name = f"layer{stage + 1}.{block}"
            for number, (fan_in, out, kernel) in enumerate(
                ((channels, mid, 1), (mid, mid, 3), (mid, 4 * mid, 1)), start=1
            ):
                conv(f"{name}.conv{number}", fan_in, out, kernel)
                batch(f"{name}.bn{number}", out)
            if block == 0:
                conv(f"{name}.downsample.0", channels, 4 * mid, 1)
                batch(f"{name}.downsample.1", 4 * mid)
            channels = 4 * mid
    linear("fc", 2048, classes)
    return shapes


def authors_bam(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    def affine(layer: str) -> tuple[Tensor, Tensor]:
        return weights[f"{layer}.weight"], weights[f"{layer}.bias"]

    c, s = f"{name}.channel_att.gate_c.gate_c", f"{name}.spatial_att.gate_s.gate_s"
    pooled = F.avg_pool2d(x, x.shape[2]).flatten(1)
    hidden = F.relu(norm(weights, f"{c}_bn_1", F.linear(pooled, *affine(f"{c}_fc_0"))))
    channel = F.linear(hidden, *affine(f"{c}_fc_final"))[:, :, None, None]
    y = F.relu(norm(weights, f"{s}_bn_reduce0", F.conv2d(x, *affine(f"{s}_conv_reduce0"))))
    for i in range(2):
        y = F.conv2d(y, *affine(f"{s}_conv_di_{i}"), padding=4, dilation=4)
        y = F.relu(norm(weights, f"{s}_bn_di_{i}", y))
    return x * (1 + torch.sigmoid(channel * F.conv2d(y, *affine(f"{s}_conv_final"))))


def authors_resnet50(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    x = F.relu(norm(weights, "bn1", F.conv2d(x, weights["conv1.weight"], stride=2, padding=3)))
    x = F.max_pool2d(x, 3, 2, 1)
    for stage, depth in enumerate(DEPTHS):
        for block in range(depth):
            name, stride = f"layer{stage + 1}.{block}", 2 if stage and not block else 1
            y = F.relu(norm(weights, f"{name}.bn1", F.conv2d(x, weights[f"{name}.conv1.weight"])))
            y = F.conv2d(y, weights[f"{name}.conv2.weight"], stride=stride, padding=1)
            y = F.relu(norm(weights, f"{name}.bn2", y))
            y = norm(weights, f"{name}.bn3", F.conv2d(y, weights[f"{name}.conv3.weight"]))
            if block == 0:
                x = F.conv2d(x, weights[f"{name}.downsample.0.weight"], stride=stride)
                x = norm(weights, f"{name}.downsample.1", x)
            x = F.relu(x + y)
        if stage < 3:
            x = authors_bam(weights, f"bam{stage + 1}", x)
    return F.linear(x.mean((2, 3)), weights["fc.weight"], weights["fc.bias"])


def drawn(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """Weights that keep maps in range, and statistics that differ by channel."""
    torch.manual_seed(0)
    weights = {}
    for name, shape in shapes.items():
        fan_in = torch.Size(shape[1:]).numel()
        tensor = torch.randn(shape) / fan_in**0.5 if len(shape) > 1 else 0.1 * torch.randn(shape)
        is_scale = name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1)
        weights[name] = tensor.abs() + 0.5 if is_scale else tensor
    return weights


@pytest.fixture(scope="module")
def authors() -> dict[str, Tensor]:
    return drawn(authors_shapes(1000))


def test_the_authors_resnet50_with_bam_loads_whole(authors: dict[str, Tensor], tmp_path: Path) -> None:
    statistics = ("running_mean", "running_var")
    assert sum(t.numel() for name, t in authors.items() if not name.endswith(statistics)) == 25_915_099
    path = tmp_path / "RESNET50_IMAGENET_BAM_best.pth.tar"
    state = {f"module.{name}": tensor for name, tensor in authors.items()}
    torch.save({"epoch": 90, "arch": "resnet", "state_dict": state, "best_prec1": 76.0}, path)
    model = create_model("resnet50_bam", bam_variant="official").eval()
    loaded = load_matching(model, path)
    assert (loaded.new, loaded.unused, loaded.warning) == ([], [], None)
    assert len(loaded.taken) == len(authors)
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(model(images), authors_resnet50(authors, images), rtol=1e-3, atol=1e-3)


def test_the_authors_bam_in_a_detector_s_backbone_and_in_the_paper_s_variant(
    authors: dict[str, Tensor],
) -> None:
    few: dict[str, Any] = {"num_classes": 3, "depths": [1, 1, 1, 1]}
    options: dict[str, Any] = {"image_size": 64, "channels": 8, "box_features": 8}
    model: Any = create_model("fasterrcnn_resnet50_bam", bam_variant="official", **few, **options)
    loaded = load_weights(model, {"state_dict": prefixed("module.", authors)})
    assert loaded.new == []
    ours = model.backbone.body.model.layer2[1].channel_att.gate_c.gate_c_fc_0.weight
    assert torch.equal(ours, authors["bam2.channel_att.gate_c.gate_c_fc_0.weight"])
    with pytest.warns(StaysRandomWarning, match="bam_variant official"):
        load_matching(create_model("resnet50_bam", **few), authors)


# akamaster's residual networks for CIFAR-10, off a state dict by the published names.


def cifar_shapes(blocks: int) -> dict[str, list[int]]:
    shapes = {"conv1.weight": [16, 3, 3, 3]}
    norms = {"bn1": 16}
    channels = 16
    for stage, width in enumerate((16, 32, 64), start=1):
        for block in range(blocks):
            for number, fan_in in ((1, channels), (2, width)):
                shapes[f"layer{stage}.{block}.conv{number}.weight"] = [width, fan_in, 3, 3]
                norms[f"layer{stage}.{block}.bn{number}"] = width
            channels = width
    for name, width in norms.items():
        for kind in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{kind}"] = [width]
    return shapes | {"linear.weight": [10, 64], "linear.bias": [10]}


def cifar_resnet(weights: dict[str, Tensor], x: Tensor, blocks: int) -> Tensor:
    x = F.relu(norm(weights, "bn1", F.conv2d(x, weights["conv1.weight"], padding=1)))
    for stage in (1, 2, 3):
        for block in range(blocks):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = F.conv2d(x, weights[f"{name}.conv1.weight"], stride=stride, padding=1)
            y = F.conv2d(F.relu(norm(weights, f"{name}.bn1", y)), weights[f"{name}.conv2.weight"], padding=1)
            y = norm(weights, f"{name}.bn2", y)
            if stride == 2:  # option A: every second position, channels of zeros on both sides
                zeros = torch.zeros(len(x), x.shape[1] // 2, *y.shape[2:])
                x = torch.cat([zeros, x[:, :, ::2, ::2], zeros], 1)
            x = F.relu(x + y)
    return F.linear(x.mean((2, 3)), weights["linear.weight"], weights["linear.bias"])


@pytest.mark.parametrize(
    ("depth", "millions"), [(20, "0.27"), (32, "0.46"), (44, "0.66"), (56, "0.85"), (110, "1.73")]
)
def test_the_published_parameters_of_cifar_resnets(depth: int, millions: str) -> None:
    with torch.device("meta"):
        model = create_model(f"cifar_resnet{depth}", num_classes=10, shortcut="A")
    own = {name: [*tensor.shape] for name, tensor in model.state_dict().items() if "num_batches" not in name}
    assert own == {
        name.replace("linear", "fc"): shape for name, shape in cifar_shapes((depth - 2) // 6).items()
    }
    assert f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.2f}" == millions


@pytest.mark.parametrize("depth", [20, 32])
def test_akamaster_s_cifar_resnets_load_whole(depth: int, tmp_path: Path) -> None:
    blocks = (depth - 2) // 6
    weights = drawn(cifar_shapes(blocks))
    path = tmp_path / f"resnet{depth}-12fca82f.th"
    torch.save(
        {"state_dict": prefixed("module.", weights), "best_prec1": 91.73},
        path,
        _use_new_zipfile_serialization=False,  # as it was written
    )
    model = create_model(f"cifar_resnet{depth}", num_classes=10, shortcut="A").eval()
    loaded = load_matching(model, path)
    assert (loaded.new, loaded.unused) == ([], [])
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(images), cifar_resnet(weights, images, blocks), rtol=1e-4, atol=1e-4)
        padded: Any = model.get_submodule("layer2.0.downsample")
        odd = torch.randn(1, 16, 5, 7)
        assert padded(odd).shape == (1, 32, 3, 4)
        assert torch.equal(padded(odd)[:, 8:24], odd[:, :, ::2, ::2])
    # With a projection instead, its weights are new, and that is said.
    with pytest.warns(StaysRandomWarning, match=r"layer2\.0\.downsample\.0"):
        load_matching(create_model(f"cifar_resnet{depth}", num_classes=10), path)


def test_kuangliu_s_shortcut_is_our_downsample() -> None:
    model = create_model("cifar_resnet20", num_classes=10)
    theirs = {
        name.replace("fc.", "linear.").replace("downsample", "shortcut"): tensor
        for name, tensor in model.state_dict().items()
    }
    loaded = load_matching(create_model("cifar_resnet20", num_classes=10), theirs)
    assert (loaded.new, loaded.unused) == ([], [])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"stem": 32, "shortcut": "A"}, "never fall"),
        ({"shortcut": "activated"}, "order='pre'"),
        ({"shortcut": "a"}, "wanted one of 'raw', 'activated', 'A'"),
    ],
)
def test_shortcuts_that_do_not_fit(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        create_model("cifar_resnet20", **options)


def test_a_run_starts_from_one_and_says_what_it_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = drawn(cifar_shapes(3))
    del weights["bn1.weight"]
    torch.save({"state_dict": prefixed("module.", weights)}, "resnet20.th")
    words = "train demo --data.train-size 16 --data.val-size 8 --batch 16 --epochs 1"
    words += " --data.image-size 32 --schedule.warmup-epochs 0 --model.name cifar_resnet20"
    words += " --model.options shortcut A depths 3 3 3 --model.weights resnet20.th --verbose --out run"
    assert cli.main(words.split()) in (0, None)
    lines = capsys.readouterr().err.splitlines()
    said = next(line for line in lines if line.startswith("attneck: from resnet20.th: "))
    assert said.startswith("attneck: from resnet20.th: 96 tensors taken of its state_dict; 1 new (bn1: 1)")
    assert "attneck: new       bn1.weight" in lines
    assert any(line.startswith("attneck: warning: more stays random") and "in bn1" in line for line in lines)
