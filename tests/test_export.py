"""Exported files say what the network says, at every size that they are for, in plain operators."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import onnx
import onnxruntime
import pytest
import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torchvision.ops import batched_nms

import attneck
from attneck import cli, export
from attneck.errors import NotFinite
from attneck.export import agreement, formats
from attneck.export import graph as graph_making
from attneck.export.detectors import as_graph
from attneck.export.graph import TracedDetector, trace_detector
from attneck.layers import MHSA2d
from attneck.training.recipe import Recipe

THIN = {"depths": [1, 1, 1, 1], "widths": [16, 16, 16, 32]}


@pytest.fixture(autouse=True, scope="module")
def _captured_once() -> Iterator[None]:
    """torch.export takes longer than all the rest: the same network, example and axes are captured once."""
    capture, known = graph_making.capture, {}

    def once(network: nn.Module, example: Tensor, axes: dict[int, str]) -> Any:
        weights = tuple(float(tensor.double().sum()) for tensor in network.state_dict().values())
        key = repr(network), weights, example.shape, tuple(axes)
        if key not in known:
            known[key] = capture(network, example, axes)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph_making, "capture", once)
        yield


def fill(model: nn.Module) -> Any:
    """Weights that leave no branch without effect: MHSA's begin small, and branches end with gamma 0."""
    for key, parameter in model.named_parameters():
        if "qkv" in key or "rel_" in key:
            nn.init.normal_(parameter, std=0.5)
        elif parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.3, 0.6)
    return model.eval()


def make(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return fill(attneck.create_model(name, num_classes=4, **options))


def bot_bam() -> Any:
    """Two stages, the second with MHSA, and a BAM between."""
    return make("cifar_resnet20_bot_bam", depths=[1, 1], mids=[16, 32], outs=[16, 32])


def eager(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(images)
    return out


def in_onnxruntime(file: Path, images: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"image": images.numpy()})[0])


@pytest.mark.parametrize(
    ("build", "opset", "dynamic", "shapes"),
    [
        pytest.param(bot_bam, 20, (), [(1, 3, 32, 32)], marks=pytest.mark.slow),
        (bot_bam, 18, ("batch", "size"), [(1, 3, 32, 32), (5, 3, 27, 44), (2, 3, 4, 50)]),
        pytest.param(
            lambda: make("botnet50", image_size=64, **THIN),
            23,
            ("batch", "size"),
            [(1, 3, 64, 64), (3, 3, 33, 95), (2, 3, 129, 70)],
            marks=pytest.mark.slow,
        ),
        (
            lambda: make("deit_small_patch16_224", width=32, depth=1, heads=2, image_size=64),
            23,
            ("size",),
            [(1, 3, 64, 64), (1, 3, 50, 97)],
        ),
    ],
    ids=[
        "bot_bam-20",
        "bot_bam-18-open",
        "botnet50-23-open",
        "vit-23-size",
    ],
)
def test_onnx_says_what_the_network_says(
    build: Any, opset: int, dynamic: tuple[str, ...], shapes: list[tuple[int, ...]], tmp_path: Path
) -> None:
    model = build().train()
    done = export.export(model, tmp_path / "net.onnx", opset=opset, dynamic=dynamic)
    assert model.training  # as it was
    model.eval()
    export.verify(done.file)
    graph = onnx.load(done.file)
    assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", opset)]
    assert {node.domain for node in graph.graph.node} == {""}
    assert not graph.functions
    (images,) = graph.graph.input
    sides = [side.dim_param or side.dim_value for side in images.type.tensor_type.shape.dim]
    assert sides == list(done.input)
    batch, size = "batch" in dynamic, "size" in dynamic
    side = model.origin.image_size[0]
    assert sides == ["batch" if batch else 1, 3, *(["height", "width"] if size else [side, side])]
    assert len(done.checks) == (3 if size else 2 if batch else 1)
    assert all(check.max_abs < 1e-4 for check in done.checks)
    assert done.bytes == done.file.stat().st_size
    for shape in shapes:
        x = torch.randn(shape)
        torch.testing.assert_close(in_onnxruntime(done.file, x), eager(model, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "dynamic",
    [pytest.param((), marks=pytest.mark.slow, id="fixed"), pytest.param(("batch", "size"), id="open")],
)
def test_a_program_says_what_the_network_says(dynamic: tuple[str, ...], tmp_path: Path) -> None:
    model = bot_bam()
    done = export.export(model, tmp_path / "net.pt2", batch=2, dynamic=dynamic)
    assert done.opset is None
    export.verify(done.file)
    program = torch.export.load(done.file)
    operators = {node.target for node in program.graph.nodes if node.op == "call_function"}
    names = {operator.namespace for operator in operators if isinstance(operator, torch._ops.OpOverload)}
    assert names == {"aten"}
    for shape in [(2, 3, 32, 32), *([(1, 3, 20, 45), (3, 3, 64, 32)] if dynamic else [])]:
        x = torch.randn(shape)
        torch.testing.assert_close(program.module()(x), eager(model, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["cpu", "tiled"])
def test_a_layer_s_own_way_is_in_no_graph(backend: str, tmp_path: Path) -> None:
    """It is an operator of this project's, which nobody else has."""
    layer = MHSA2d(16, map_size=4, heads=2, backend=backend)
    done = export.export(
        nn.Sequential(nn.Conv2d(3, 16, 1), layer), tmp_path / "net.pt2", image_size=4, in_chans=3
    )
    assert "attneck::" not in str(torch.export.load(done.file).graph)
    assert layer.backend == backend


def test_attention_has_a_say_in_these_tests() -> None:
    """A table changed changes the logits by much more than what is let pass."""
    model = bot_bam()
    x = torch.randn(2, 3, 32, 32)
    before = eager(model, x)
    with torch.no_grad():
        model.layer2[0].conv2.rel_h.zero_()
    assert (eager(model, x) - before).abs().max() > 1e-2


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2},
        {"content": False},
        pytest.param({"position": "absolute", "stride": 2}, marks=pytest.mark.slow),
        pytest.param({"position": "none"}, marks=pytest.mark.slow),
        pytest.param({"resample": "keep"}, marks=pytest.mark.slow),
        {"position": "absolute", "resample": "keep"},
    ],
    ids=str,
)
def test_every_kind_of_attention_holds_at_every_size(options: dict[str, Any]) -> None:
    layer = fill(MHSA2d(8, (5, 6), **options))
    sizes = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    program = torch.export.export(layer, (torch.randn(2, 8, 7, 9),), dynamic_shapes=(sizes,))
    least = 1 + layer.stride  # a side of 1 is another graph
    for H, W in [(5, 6), (6, 5), (12, least), (least, 17)]:
        x = torch.randn(2, 8, H, W)
        torch.testing.assert_close(program.module()(x), eager(layer, x), rtol=1e-5, atol=1e-5)


def test_a_network_of_others(tmp_path: Path) -> None:
    """Two maps for one image of four channels; a size must be given."""

    class Maps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bam = nn.Conv2d(4, 16, 3, 2, 1), attneck.layers.BAM(16, reduction=4)

        def forward(self, x: Tensor) -> list[Tensor]:
            x = self.conv(x)
            return [x, self.bam(x)]

    net = fill(Maps())
    with pytest.raises(ValueError, match="this Maps does not say what it was made for"):
        export.export(net, tmp_path / "net.pt2")
    done = export.export(net, tmp_path / "net.pt2", image_size=(16, 24), in_chans=4)
    assert done.input == (1, 4, 16, 24)
    whole = done.file.read_bytes()
    for other, says in (
        (whole[:99] + b"?" + whole[100:], "does not match its SHA-256"),
        (whole[:-1], "no sum"),
    ):
        done.file.write_bytes(other)
        with pytest.raises(ValueError, match=says):
            export.verify(done.file)


def test_it_says_no_more_of_its_results_than_they_are(tmp_path: Path) -> None:
    """Class names of as many logits, a task where there are logits; other results are refused."""

    class Said(nn.Module):
        pretrained_cfg: Any = {"label_names": ("cat", "dog"), "input_size": (3, 8, 8)}  # noqa: RUF012

        def __init__(self, result: Any) -> None:
            super().__init__()
            self.conv, self.result = nn.Conv2d(3, 2, 1), result

        def forward(self, x: Tensor) -> Any:
            return self.result(self.conv(x))

    def about(result: Any) -> dict[str, str]:
        export.export(Said(result), tmp_path / "net.pt2")
        files: dict[str, Any] = {"metadata.json": ""}
        torch.export.load(tmp_path / "net.pt2", extra_files=files)
        found: dict[str, str] = json.loads(files["metadata.json"])
        return found

    known = about(lambda x: x.mean((2, 3)))
    assert (known["task"], known["classes"]) == ("classification", '["cat", "dog"]')
    assert "classes" not in about(lambda x: x.mean((2, 3))[:, :1])
    assert not {"task", "classes"} & about(lambda x: x).keys()
    with pytest.raises(ValueError, match="this Said gives a dict: wanted a tensor or a list of tensors"):
        export.export(Said(lambda x: {"out": x}), tmp_path / "other.pt2")


def test_a_quantized_network_is_refused_in_a_line(tmp_path: Path) -> None:
    quantized = torch.ao.quantization.quantize_dynamic(bot_bam(), {nn.Linear})
    with pytest.raises(ValueError, match="is quantized, which no graph takes: export the model as it was"):
        export.export(quantized, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", ["pt2", "onnx"])
def test_a_network_whose_own_results_overflow_is_not_written(ending: str, tmp_path: Path) -> None:
    model = bot_bam()
    nn.init.constant_(model.fc.weight, 3e38)
    with pytest.raises(NotFinite, match="the network's own results on noise are not finite"):
        export.export(model, tmp_path / f"net.{ending}")
    assert not list(tmp_path.iterdir())


def test_a_graph_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = formats.loaded

    def off(data: bytes, least_score: float | None) -> Any:
        return lambda images: [out + 3e-3 for out in whole(data)(images)]

    monkeypatch.setattr(formats, "loaded", off)
    with pytest.raises(export.DisagreementError, match=r"is 3\.0e-03 off, .* nothing was written"):
        export.export(bot_bam(), tmp_path / "net.pt2")
    monkeypatch.setattr(
        formats, "loaded", lambda data, _: lambda images: [whole(data)(images)[0] * torch.nan]
    )
    with pytest.raises(export.DisagreementError, match="is nan off"):
        export.export(bot_bam(), tmp_path / "net.pt2")
    monkeypatch.setattr(formats, "loaded", lambda data, _: lambda images: [whole(data)(images)[0][:, :1]])
    with pytest.raises(export.DisagreementError, match="is inf off"):
        export.export(bot_bam(), tmp_path / "net.pt2")
    assert not list(tmp_path.iterdir())


def test_small_results_are_compared_by_their_own_size() -> None:
    """A tenth of results that are all small is not lost in a tolerance that is made for ones near 1."""
    image, small = torch.zeros(1, 3, 8, 8), torch.linspace(-0.02, 0.02, 7)
    assert agreement.compare(image, lambda _: [small], lambda _: [small * (1 + 1e-5)]).max_rel < 2e-5
    with pytest.raises(export.DisagreementError, match=r"with values up to 2\.0e-02"):
        agreement.compare(image, lambda _: [small], lambda _: [small * (1 + 1e-3)])
    with pytest.raises(export.DisagreementError, match="off"):
        agreement.compare(image, lambda _: [0 * small], lambda _: [0 * small + 1e-5])


def test_an_opset_other_than_the_one_asked_for_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = torch.onnx.export
    monkeypatch.setattr(
        torch.onnx, "export", lambda *args, **named: whole(*args, **named | {"opset_version": 18})
    )
    with pytest.raises(ValueError, match="asked for ONNX opset 20, and PyTorch's exporter gave"):
        export.export(nn.Conv2d(3, 4, 3), tmp_path / "net.onnx", image_size=8, opset=20)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "net.pt2"
    file.write_bytes(b"old")

    def broken(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("attneck.files.os.fsync", broken)
    with pytest.raises(KeyboardInterrupt):
        export.export(nn.Conv2d(3, 4, 3), file, image_size=8)
    assert file.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt2"]


@pytest.mark.parametrize(
    ("file", "options", "says"),
    [
        ("net.pth", {}, r"wanted a name that ends in \.onnx or \.pt2"),
        ("net.onnx", {"opset": 17}, "opset=17: wanted 18, 20, 23"),
        ("net.pt2", {"opset": 18}, r"opset=18 says nothing to a \.pt2 file"),
        ("net.onnx", {"dynamic": ("width",)}, "wanted of batch, size"),
        ("no/where/net.onnx", {}, "there is no folder .*where that can be written to"),
        ("net.pt2", {"image_size": 0}, "image_size=0: wanted"),
        (
            "net.pt2",
            {"dynamic": ("size",)},
            "torch.export does not take this network with a dynamic height and width",
        ),
    ],
)
def test_what_cannot_be_is_refused(file: str, options: dict[str, Any], says: str, tmp_path: Path) -> None:
    fixed = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2))
    with pytest.raises(ValueError, match=says) as error:
        export.export(fixed, tmp_path / file, **{"image_size": 8, **options})
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


class Even(nn.Module):
    """Of sides that are no multiples of 4 its two maps have other sides, as HRNet's of 32."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        half = self.first(images)
        again: Tensor = nn.functional.interpolate(self.second(half), scale_factor=2.0)
        return (half + again).mean((2, 3))


def test_many_layers_that_pad_by_the_map_s_size_are_refused_with_a_dynamic_size(tmp_path: Path) -> None:
    """torch.export would not end."""
    net = nn.Sequential(*(Conv2dSame(3, 3, 3, stride=2) for _ in range(4)))
    with pytest.raises(ValueError, match=r"^4 layers, 0 the first, pad by the size .*: leave size out"):
        export.export(net, tmp_path / "net.pt2", image_size=32, dynamic=("size",))
    export.export(net, tmp_path / "net.pt2", image_size=32)
    export.export(net[:1], tmp_path / "one.onnx", image_size=32, dynamic=("size",))


def test_a_network_of_some_sizes_alone_is_refused_with_a_dynamic_size(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"this Even is not .* with a dynamic size .*: leave that"):
        export.export(Even(), tmp_path / "net.pt2", image_size=32, dynamic=("size",))
    assert not list(tmp_path.iterdir())
    assert export.export(Even(), tmp_path / "net.pt2", image_size=32).checks


def old_weight_norm() -> nn.Module:
    model = nn.Sequential(torch.nn.utils.weight_norm(nn.Conv2d(3, 4, 3)))
    model(torch.randn(1, 3, 8, 8))
    return model


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize(
    ("model", "options", "says"),
    [
        (
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2)),
            {"image_size": 9},
            "does not take images",
        ),
        (lambda: nn.Conv2d(3, 4, 3), {"image_size": 8.0}, "image_size=8.0: wanted"),
        (lambda: nn.Conv2d(3, 4, 3), {"in_chans": 0}, "in_chans=0: wanted a whole number from 1"),
        (lambda: nn.Conv2d(3, 4, 3, device="meta"), {}, "is on the meta device"),
        (old_weight_norm, {}, "no copy can be made"),
    ],
)
def test_a_network_that_cannot_be_exported_says_why(
    model: Any, options: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=says) as error:
        export.export(model(), tmp_path / "net.pt2", **{"image_size": 8, **options})
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_features_are_no_logits_and_no_configuration_is_needed(tmp_path: Path) -> None:
    model = attneck.create_model("cifar_resnet20", num_classes=0, depths=[1, 1, 1])
    export.export(model, tmp_path / "net.onnx")
    found = onnx.load(tmp_path / "net.onnx")
    assert [one.name for one in found.graph.output] == ["features"]
    assert "task" not in {one.key for one in found.metadata_props}
    model = nn.Conv2d(3, 4, 3)
    model.pretrained_cfg = None
    export.export(model, tmp_path / "net.pt2", image_size=8)


def test_without_onnx_a_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxscript" else object())
    with pytest.raises(ValueError, match=r"pip install 'attneck\[export\]'"):
        export.export(nn.Conv2d(3, 4, 3), tmp_path / "net.onnx", image_size=8)


def test_the_command_prints_one_document_or_lines(tmp_path: Path, capsys: Any) -> None:
    saved = attneck.hub.save(bot_bam(), tmp_path / "saved")
    file = tmp_path / "net.onnx"
    assert cli.main(["export", str(saved), str(file), "--dynamic", "batch", "--opset", "20", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["input"] == ["batch", 3, 32, 32]
    assert document["opset"] == onnx.load(file).opset_import[0].version == 20
    assert [check["shape"] for check in document["checks"]] == [[1, 3, 32, 32], [3, 3, 32, 32]]
    assert document["eager_ms"] > 0
    assert document["exported_ms"] > 0
    assert not document["untrained"]
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(in_onnxruntime(file, x), eager(bot_bam(), x), rtol=1e-4, atol=1e-4)

    words = ["export", "cifar_resnet20", str(tmp_path / "net.pt2"), "--image-size", "16", "--batch", "2"]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    for part in ("cifar_resnet20, untrained, torch.export", "images  2 × 3 × 16 × 16", "differs by", "speed"):
        assert part in said

    assert cli.main(["export", str(saved), str(tmp_path / "net.safetensors"), "--image-size", "48"]) == 0
    assert attneck.hub.load(tmp_path / "net.safetensors").origin.image_size == (48, 48)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["botnte50", "net.onnx"], "no model or run is called 'botnte50'; perhaps you meant 'botnet50'"),
        (["botnet50", "net.pth"], "wanted a name that ends in .onnx, .pt2, .safetensors, or has no ending"),
        (["botnet50", "no/net.onnx"], "there is no folder no that can be written to"),
        (["botnet50", "empty.onnx"], "empty.onnx is a folder"),
        (["botnet50", "net.pt2", "--opset", "18"], "says nothing to a .pt2 file"),
        (["botnet50", "net.safetensors", "--dynamic"], "say nothing to weights"),
        (["botnet50", "net.onnx", "--batch", "0"], "--batch 0: wanted 1 or more"),
        (["botnet50", "net.onnx", "--raw"], "--raw is about runs"),
        (["run", "net.onnx"], "no checkpoint there yet"),
        (["empty.onnx", "net.onnx"], "empty.onnx is no run (recipe.yaml) and no saved model"),
        (
            ["ssd300_mobilenet", "net.onnx", "--dynamic"],
            "takes one image, of any size: leave batch and dynamic out",
        ),
        (["ssd300_mobilenet", "net.pt2", "--batch", "2"], "takes one image, of any size"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_one_line_and_exit_2(
    words: list[str], says: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.onnx").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").touch()
    assert cli.main(["export", *words]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1


def detector(name: str, **options: Any) -> Any:
    """One that finds something, and different things: its scores differ."""
    torch.manual_seed(0)
    model: Any = attneck.create_model(name, num_classes=5, **options).eval()
    for key, parameter in model.named_parameters():
        if "cls_" in key:
            nn.init.normal_(parameter)
        elif "roi_heads" not in key and "rpn" not in key and not hasattr(model, "rpn"):
            if parameter.ndim == 4:
                std = 0.03 if "classification_head" in key else (2 / parameter[0].numel()) ** 0.5
                nn.init.normal_(parameter, std=std)
            elif not parameter.any():
                nn.init.normal_(parameter, std=0.1)
    return model


def mask_rcnn() -> Any:
    small = {"box_features": 16, "box_convs": 1, "mask_convs": 1, "rpn_convs": 1, "proposals": 50}
    small |= {"depths": [1, 1, 1, 1]}
    return detector("maskrcnn_botnet26_thin", image_size=128, channels=8, **small)


BUILD: dict[str, Any] = {
    "mask": mask_rcnn,
    "faster": lambda: detector(
        "fasterrcnn_resnet26_thin", image_size=(128, 192), channels=8, box_features=16, variant="torchvision"
    ),
    "c4": lambda: detector("fasterrcnn_resnet26_thin", image_size=128, variant="c4", depths=[1, 1, 1, 1]),
    "ssd": lambda: detector("ssd300_mobilenet"),
    "stairnet": lambda: detector("stairnet_mobilenet_bam"),
}


def found(model: Any, image: Tensor) -> list[Tensor]:
    with torch.no_grad():
        objects = model([image[0]])[0]
    return [objects[name] for name in as_graph(model).outputs]


@pytest.mark.parametrize("kind", BUILD)
def test_a_detector_s_graph_finds_what_the_detector_finds(kind: str) -> None:
    """With the scores of 500 boxes, on images of other sizes and proportions than its own.

    Not of far other ones: where half of an R-CNN's square is empty, the scores there are equal, and which of
    equal ones is the better is nobody's to say.
    """
    model = BUILD[kind]()
    graph = as_graph(model).eval()
    for size in ((100, 150), (150, 180), (30, 37)):
        image = agreement.clouds((1, 3, *size))
        with torch.no_grad():
            every = graph.class_scores(image).flatten()
            least = float(every.topk(min(500, len(every) // 2)).values[-1])
            graph.least_score.fill_(least)
            getattr(model, "roi_heads", model).score_thresh = least
            wanted, given = found(model, image), graph(image)
        assert len(wanted[0]) > 20
        check = agreement.compare_objects(image, lambda _, it=wanted: it, lambda _, it=given: list(it))
        assert check.unmatched <= 1  # a box on the edge of overlapping too much
        assert check.max_rel < 1e-5
        if (candidates := graph.candidates(image)) is not None:
            assert agreement.chosen_of(candidates, list(given), [each[:0] for each in wanted], max(size))


def test_an_untrained_detector_s_check_compares_objects() -> None:
    """SSD's scores are all the same then: none is surer than the 500th."""
    model: Any = attneck.create_model("ssd300_mobilenet").eval()
    graph = as_graph(model).eval()
    assert len(graph.class_scores(agreement.clouds((1, 3, 300, 300))).unique()) == 1
    made = TracedDetector(
        program=cast("Any", None),
        example=torch.empty(0),
        axes={},
        outputs=list(graph.outputs),
        eager=lambda image: found(model, image),
        images=[agreement.clouds((1, 3, *size)) for size in ((300, 300), (120, 200))],
        classes=None,
        bounds=None,
        graph=graph,
        thresholds=model,
    )

    def exported(least_score: float) -> Any:
        graph.least_score.fill_(least_score)
        return lambda image: list(graph(image))

    with torch.no_grad():
        checks = made.compare(exported(1.0), exported)
    assert [check.objects for check in checks] == [200, 200]


def test_mask_rcnn_in_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what was captured, which a .pt2 file holds, finds nothing too."""
    model = mask_rcnn()
    made = trace_detector(copy.deepcopy(model), (128, 128))
    monkeypatch.setattr(export, "trace_detector", lambda *_: made)
    model.pretrained_cfg = {"label_names": ("background", "a", "b", "c", "d")}
    done = export.export(model, tmp_path / "net.onnx")
    export.verify(done.file)
    assert done.input == (1, 3, "height", "width")
    assert [check.shape for check in done.checks] == [(1, 3, 128, 128), (1, 3, 97, 160)]
    assert all(check.objects and check.objects > 50 for check in done.checks)
    graph = onnx.load(done.file)
    assert {node.domain for node in graph.graph.node} == {""}
    session = onnxruntime.InferenceSession(done.file, providers=["CPUExecutionProvider"])
    assert [out.name for out in session.get_outputs()] == ["boxes", "labels", "scores", "masks"]
    about = session.get_modelmeta().custom_metadata_map
    assert about["task"] == "detection"
    assert json.loads(about["classes"]) == ["background", "a", "b", "c", "d"]
    assert (json.loads(about["mean"]), json.loads(about["std"])) == ([0] * 3, [1] * 3)  # it does it itself
    image = agreement.clouds((1, 3, 70, 60))
    wanted = found(model, image)
    for out, want in zip(session.run(None, {"image": image.numpy()}), wanted, strict=True):
        torch.testing.assert_close(torch.from_numpy(out), want, rtol=1e-3, atol=1e-2)
    assert wanted[3].shape[1:] == (1, 70, 60)
    finds_nothing_too(made.program.module(), image)


def finds_nothing_too(program: Any, image: Tensor) -> None:
    """A program that says that there are two objects at least, as torchvision does, would refuse that."""
    with torch.no_grad():
        _, _, scores, *_ = program(image)
    for count in (1, 0):
        program.get_buffer("least_score").fill_(float(scores[count]))
        assert {len(out) for out in program(image)} == {count}


@pytest.mark.slow
def test_stairnet_in_onnxruntime_and_as_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = BUILD["stairnet"]()
    model.score_thresh = 0.0
    made = trace_detector(copy.deepcopy(model), (300, 300))
    monkeypatch.setattr(export, "trace_detector", lambda *_: made)
    leaves = export.export(model, tmp_path / "net.onnx")
    assert [check.shape for check in leaves.checks] == [(1, 3, 300, 300), (1, 3, 226, 375)]
    session = onnxruntime.InferenceSession(leaves.file, providers=["CPUExecutionProvider"])
    assert [out.name for out in session.get_outputs()] == ["boxes", "labels", "scores"]
    assert {node.domain for node in onnx.load(leaves.file).graph.node} == {""}
    done = export.export(model, tmp_path / "net.pt2")
    assert done.checks[0].objects == model.detections_per_img
    files = {"metadata.json": ""}
    program: Any = torch.export.load(done.file, extra_files=files).module()
    assert json.loads(files["metadata.json"])["task"] == "detection"
    image = agreement.clouds((1, 3, 80, 90))
    with torch.no_grad():
        boxes, _, _ = program(image)
    assert len(boxes) == model.detections_per_img
    finds_nothing_too(program, image)


def test_other_people_s_detectors_are_refused(tmp_path: Path) -> None:
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large

    theirs = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
    with pytest.raises(ValueError, match="a SSD that attneck did not make"):
        export.export(theirs, tmp_path / "net.onnx", image_size=320)


def objects(count: int) -> list[Tensor]:
    draws = torch.Generator().manual_seed(0)
    boxes = 100 * torch.rand(count, 4, generator=draws)
    return [boxes, torch.ones(count, dtype=torch.int64), torch.rand(count, generator=draws)]


@pytest.mark.parametrize(
    ("spoil", "unmatched"),
    [
        (lambda boxes, labels, scores: [boxes.flip(0), labels, scores.flip(0)], 0),  # another order
        (lambda boxes, labels, scores: [boxes[1:], labels[1:], scores[1:]], 1),
        (lambda *found: [torch.cat((one, one[:1] + 50)) for one in found], 1),
        (lambda *found: [torch.cat((one, one + 50)) for one in found], None),
        (lambda boxes, labels, scores: [boxes + 1, labels, scores], None),
        (lambda boxes, labels, scores: [boxes, labels + 1, scores], None),
        (lambda boxes, labels, scores: [boxes, labels, scores + 1e-3], None),
        (lambda boxes, labels, scores: [boxes, labels, scores * torch.nan], None),
        (lambda boxes, labels, scores: [boxes[:0], labels[:0], scores[:0]], None),
    ],
    ids=["order", "one missing", "one more", "twice as many", "boxes", "labels", "scores", "NaN", "none"],
)
def test_objects_are_compared_with_their_counterparts(spoil: Any, unmatched: int | None) -> None:
    image, wanted = torch.zeros(1, 3, 100, 100), objects(60)
    if unmatched is None:
        with pytest.raises(export.DisagreementError, match="have no counterpart; nothing was written"):
            agreement.compare_objects(image, lambda _: wanted, lambda _: spoil(*wanted))
    else:
        check = agreement.compare_objects(image, lambda _: wanted, lambda _: spoil(*wanted))
        assert (check.objects, check.unmatched, check.max_rel) == (60, unmatched, 0)


def chosen(candidates: agreement.Candidates, scores: Tensor) -> list[Tensor]:
    """By torchvision's suppression, in the order of these scores."""
    keep = batched_nms(candidates.boxes, scores, candidates.labels, candidates.overlap)[: candidates.most]
    return [candidates.boxes[keep], candidates.labels[keep], candidates.scores[keep]]


@pytest.mark.parametrize("most", [300, 20])
def test_equal_scores_may_be_chosen_among_otherwise(most: int) -> None:
    """As of a network that was hardly trained: a wrong choice among them is still a wrong one."""
    draws = torch.Generator().manual_seed(1)
    corners = 60 * torch.rand(300, 2, generator=draws)
    boxes = torch.cat([corners, corners + 16 + 8 * torch.rand(300, 2, generator=draws)], 1)
    labels = torch.randint(1, 3, (300,), generator=draws)
    scores = torch.randint(1, 4, (300,), generator=draws) / 10  # three different ones
    candidates = agreement.Candidates(boxes, labels, scores, 0.45, most)
    wanted, found = (chosen(candidates, scores + 1e-6 * torch.rand(300, generator=draws)) for _ in range(2))
    image = torch.zeros(1, 3, 100, 100)

    def compared(got: list[Tensor], among: agreement.Candidates | None = candidates) -> agreement.Check:
        return agreement.compare_objects(image, lambda _: wanted, lambda _: got, among)

    check = compared(found)
    assert check.unmatched is not None
    assert check.unmatched > 2 * agreement.FLIPPED * max(len(wanted[0]), len(found[0]))
    beside = [torch.cat([each, each[:1] + add]) for each, add in zip(found, (200, 0, 0), strict=True)]
    twice = [torch.cat([each, each[:1]]) for each in found]
    wrong = {
        "not told": (found, None),
        "moved": ([found[0] + 1, *found[1:]], candidates),
        "another class": ([found[0], 3 - found[1], found[2]], candidates),
        "surer": ([*found[:2], found[2] + 1e-3], candidates),
        "the surest is missing": ([each[1:] for each in found], candidates),
        "one twice": (twice, candidates),
        "none": ([each[:0] for each in found], candidates),
        "the order is turned round": (chosen(candidates, -scores), candidates),
        "one that is no candidate": (beside, candidates),
    }
    for got, among in wrong.values():
        with pytest.raises(export.DisagreementError, match="have no counterpart"):
            compared(got, among)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> attneck.Run:
    """After surgery, of a recipe's file."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    recipe = {
        "model": {
            "name": "cifar_resnet20",
            "options": {"depths": [1, 1], "mids": [16, 32], "outs": [16, 32]},
            "surgery": "attend",
            "surgery_options": {"heads": 2},
        },
        "data": {"name": "shapes", "train_size": 32, "val_size": 8, "image_size": 24},
        "batch": 32,
    }
    attneck.train(Recipe.model_validate(recipe), folder)
    around = json.loads((folder / "environment.json").read_text())
    around["starts"][0]["command"] = "attneck train some/where/mine.yaml --out run"
    (folder / "environment.json").write_text(json.dumps(around))
    return attneck.Run(folder)


def test_a_run_after_surgery_says_in_its_file_what_it_is(
    run: attneck.Run, tmp_path: Path, capsys: Any
) -> None:
    file = tmp_path / "net.onnx"
    assert cli.main(["export", str(run.folder), str(file)]) == 0
    assert "differs by" in capsys.readouterr().out
    export.verify(file)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    assert [out.name for out in session.get_outputs()] == ["logits"]
    about = session.get_modelmeta().custom_metadata_map
    held_out = run.data("val")
    assert json.loads(about["classes"]) == list(held_out.classes)
    assert json.loads(about["mean"]) == pytest.approx(held_out.mean)
    assert json.loads(about["std"]) == pytest.approx(held_out.std)
    assert json.loads(about["size"]) == [24, 24]
    assert about["recipe"] == "mine"
    assert about["attneck"] == attneck.__version__
    assert json.loads(about["surgery"]) == {"name": "attend", "options": {"heads": 2}}
    images = torch.randn(1, 3, 24, 24)
    torch.testing.assert_close(in_onnxruntime(file, images), eager(run.model(), images), rtol=1e-4, atol=1e-4)
    data = file.read_bytes()
    file.write_bytes(data.replace(b"disc", b"disk", 1))
    with pytest.raises(ValueError, match="does not match its SHA-256"):
        export.verify(file)
