"""Exported files say what the network says, at every size that they are for, in plain operators."""

import json
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import attneck
from attneck import cli, export
from attneck.layers import MHSA2d

THIN = {"depths": [1, 1, 1, 1], "widths": [16, 16, 16, 32]}


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
        (bot_bam, 20, (), [(1, 3, 32, 32)]),
        (bot_bam, 18, ("batch", "size"), [(1, 3, 32, 32), (5, 3, 27, 44), (2, 3, 4, 50)]),
        (
            lambda: make("botnet50", image_size=64, **THIN),
            23,
            ("batch", "size"),
            [(1, 3, 64, 64), (3, 3, 33, 95), (2, 3, 129, 70)],
        ),
        (
            lambda: make("deit_small_patch16_224", width=32, depth=1, heads=2, image_size=64),
            23,
            ("size",),
            [(1, 3, 64, 64), (1, 3, 50, 97)],
        ),
        pytest.param(
            lambda: make("efficientnet_b0", image_size=64),
            20,
            ("batch",),
            [(1, 3, 64, 64), (2, 3, 64, 64)],
            marks=pytest.mark.slow,
        ),
    ],
    ids=[
        "bot_bam-20",
        "bot_bam-18-open",
        "botnet50-23-open",
        "vit-23-size",
        "effnet-20-batch",
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


@pytest.mark.parametrize("dynamic", [(), ("batch", "size")], ids=["fixed", "open"])
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
    [{}, {"stride": 2}, {"content": False}, {"position": "absolute", "stride": 2}, {"position": "none"}],
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


def test_a_graph_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = export._loaded

    def off(data: bytes) -> Any:
        return lambda images: [out + 3e-3 for out in whole(data)(images)]

    monkeypatch.setattr(export, "_loaded", off)
    with pytest.raises(export.DisagreementError, match=r"is 3\.0e-03 off, .* nothing was written"):
        export.export(bot_bam(), tmp_path / "net.pt2")
    monkeypatch.setattr(export, "_loaded", lambda data: lambda images: [whole(data)(images)[0] * torch.nan])
    with pytest.raises(export.DisagreementError, match="is nan off"):
        export.export(bot_bam(), tmp_path / "net.pt2")
    monkeypatch.setattr(export, "_loaded", lambda data: lambda images: [whole(data)(images)[0][:, :1]])
    with pytest.raises(export.DisagreementError, match="is inf off"):
        export.export(bot_bam(), tmp_path / "net.pt2")
    assert not list(tmp_path.iterdir())


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
        ("net.pt2", {"image_size": 0}, "wanted 1 or more of each"),
        ("net.pt2", {"dynamic": ("size",)}, "torch.export does not take this network with a dynamic size"),
    ],
)
def test_what_cannot_be_is_refused(file: str, options: dict[str, Any], says: str, tmp_path: Path) -> None:
    fixed = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2))
    with pytest.raises(ValueError, match=says) as error:
        export.export(fixed, tmp_path / file, **{"image_size": 8, **options})
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


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
        (["ssd300_vgg16", "net.onnx"], "is a detector, and only classifiers become graphs"),
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
