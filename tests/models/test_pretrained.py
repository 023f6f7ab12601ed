"""timm's weights by name: from the cache without a network, once; and one line at once where there is none.

At the library's border stands a cache as the hub writes it, with the state dict of timm's own network.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from awake import awake
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import ImageNetInfo
from torch import Tensor

import attneck
from attneck import Run, cli
from attneck.commands.given_model import viewer
from attneck.detection import load_weights
from attneck.errors import UserError
from attneck.explain import maps
from attneck.models import create_model
from attneck.models import pretrained as timms
from attneck.models.weights import StaysRandomWarning, load_matching
from attneck.tasks.classification import Classification
from attneck.tasks.described import facts_of
from attneck.training.recipe_file import parse_recipe

NO_IMAGENET = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""What test_resnet's weights want."""

Cached = Callable[[str], dict[str, Tensor]]


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("the network was asked")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.fixture
def cached(files: Path, monkeypatch: pytest.MonkeyPatch) -> Cached:
    """Puts weights of that name into an own cache, and gives them; the network must not be asked."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(files))
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", refuse)
    monkeypatch.setattr(timm.models._hub, "hf_hub_download", refuse)

    def put(name: str) -> dict[str, Tensor]:
        repository = files / f"models--timm--{name}"
        if (file := repository / "snapshots" / "abc" / "model.safetensors").is_file():
            return load_file(file)
        torch.manual_seed(len(name))
        state = awake(timm.create_model(name.split(".")[0])).state_dict()
        for key, tensor in state.items():
            if key.endswith("running_var"):
                tensor.uniform_(0.5, 2)
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "snapshots" / "abc").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / "main").write_text("abc")
        save_file(state, file)
        return state

    return put


def test_classifiers_start_from_it(cached: Cached) -> None:
    """The same network gives timm's outputs; attention, another classifier stay new; channels are adapted."""
    theirs = cached("resnet18.a1_in1k")
    images = torch.randn(2, 3, 64, 64)
    model: Any = create_model("resnet18", pretrained="resnet18.a1_in1k").eval()
    reference = timm.create_model("resnet18").eval()
    reference.load_state_dict(theirs)
    with torch.no_grad():
        torch.testing.assert_close(model(images), reference(images))
    cfg: Any = timm.get_pretrained_cfg("resnet18.a1_in1k")
    assert (model.pretrained_cfg["mean"], model.pretrained_cfg["std"]) == (cfg.mean, cfg.std)

    model = create_model("resnet18_bam", num_classes=7, in_chans=1, pretrained="timm/resnet18.a1_in1k")
    assert torch.equal(model.layer3[1].conv2.weight, theirs["layer3.1.conv2.weight"])
    torch.testing.assert_close(model.conv1.weight, theirs["conv1.weight"].sum(1, keepdim=True))
    assert model.fc.weight.shape == (7, 512)
    assert len(model.pretrained_cfg["mean"]) == 1
    assert model.origin.options == {}  # what makes it again, without its weights


def test_fetching_draws_nothing(cached: Cached) -> None:
    cached("test_resnet.r160_in1k")
    before = torch.get_rng_state()
    timms.fetch("test_resnet.r160_in1k")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_detector_s_backbone_starts_from_it(cached: Cached) -> None:
    theirs = cached("resnet18.a1_in1k")
    small: dict[str, Any] = {"num_classes": 3, "image_size": 64, "channels": 8, "box_features": 8}
    model: Any = create_model("fasterrcnn_resnet18_bam", pretrained="resnet18.a1_in1k", **small)
    assert torch.equal(model.backbone.body.model.layer4[1].conv2.weight, theirs["layer4.1.conv2.weight"])
    timms.follow(model, *NO_IMAGENET)
    assert (model.transform.image_mean, model.transform.image_std) == ([0.5] * 3, [0.5] * 3)


def test_what_computes_otherwise_is_told(cached: Cached) -> None:
    """Names and shapes fit, strides do not: a different network."""
    cached("resnet18.a1_in1k")
    with pytest.warns(
        StaysRandomWarning, match=r"compute otherwise .*layer4\.0\.conv1 stride \(1, 1\), was \(2, 2\)"
    ):
        create_model("resnet18", c5_stride=1, pretrained="resnet18.a1_in1k")


def test_what_does_not_fit_is_refused(cached: Cached) -> None:
    cached("resnet18.a1_in1k")
    with pytest.raises(ValueError, match="none of the"):
        create_model("squeezenet1_1", pretrained="resnet18.a1_in1k")
    with (
        pytest.warns(StaysRandomWarning),
        pytest.raises(ValueError, match=r"fill \d+ tensors of this network and leave \d+ random"),
    ):
        create_model("cifar_resnet50", depths=[4, 4, 4, 4], pretrained="resnet18.a1_in1k")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnet50.a1_in2k", r"'resnet50\.a1_in2k'; perhaps you meant 'resnet50\.a1_in1k'"),
        ("resnt50", "perhaps you meant 'resnet50'"),
        ("attneck_resnet50", "timm has no pretrained weights"),
        (True, "pretrained=True: wanted a name"),
    ],
)
def test_names_that_timm_does_not_have(name: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        create_model("resnet50", pretrained=name)
    assert "\n" not in str(caught.value)


def test_the_registry_s_pretrained_is_timm_s() -> None:
    with pytest.raises(RuntimeError, match="No pretrained weights exist"):
        timm.create_model("attneck_resnet18", pretrained=True)


def test_weights_and_pretrained_together_are_refused() -> None:
    with pytest.raises(UserError, match=r"model\.weights and model\.pretrained are given"):
        parse_recipe({"model": {"weights": "a.pt", "pretrained": "resnet50.a1_in1k"}}, "here")


RECIPE = """
model: {name: timm/test_resnet, pretrained: test_resnet.r160_in1k}
data: {name: clear_shapes, train_size: 16, val_size: 8}
optimizer: {lr: 1.0e-30}
batch: 16
"""


def test_a_run_has_the_weights_and_never_asks_again(
    cached: Cached,
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It starts from them; evaluation and going on need no cache; images are normalised for them."""
    monkeypatch.chdir(tmp_path)
    theirs = cached("test_resnet.r160_in1k")
    Path("tiny.yaml").write_text(RECIPE)
    assert cli.main(["train", "tiny.yaml", "--out", "run"]) == 0
    assert "from test_resnet.r160_in1k: " in (told := capsys.readouterr().err)
    assert "tensors taken of its test_resnet.r160_in1k; 2 new (fc: 2); " in told
    assert "warning" not in told
    run = Run("run")
    assert run.recipe.model.pretrained == "test_resnet.r160_in1k"
    weights = run.weights(average=False)
    assert torch.equal(weights["layer1.0.conv1.weight"], theirs["layer1.0.conv1.weight"])
    assert (run.facts["mean"], run.facts["std"]) == ([0.5] * 3, [0.5] * 3)
    white = run.data("val")
    pixels = torch.from_numpy(white.pixels([(0, 3)])[0]).permute(2, 0, 1)
    torch.testing.assert_close(white[0, 3][0], pixels / 127.5 - 1, rtol=1e-5, atol=1e-5)

    shutil.rmtree(files / "models--timm--test_resnet.r160_in1k")
    monkeypatch.setattr(timm, "create_model", _without_weights(timm.create_model))
    assert run.evaluate()["val"].images == 8
    assert cli.main(["train", "run", "--resume"]) == 0

    words = ["train", "tiny.yaml", "--model.pretrained", "None"]
    capsys.readouterr()
    assert cli.main([*words, "--model.weights", "run", "--out", "second"]) == 0
    said = "the images of run were normalised otherwise (std [0.5, 0.5, 0.5], here [0.243, 0.243, 0.243])"
    assert said in capsys.readouterr().err
    assert cli.main([*words, "--model.weights", "second", "--out", "third"]) == 0
    assert "normalised" not in capsys.readouterr().err


def _without_weights(create: Any) -> Any:
    def checked(*arguments: Any, **options: Any) -> Any:
        assert not options.get("pretrained")
        return create(*arguments, **options)

    return checked


def test_a_detector_s_run_normalises_as_its_weights_want(cached: Cached) -> None:
    from attneck.tasks.detection import Detection

    recipe = parse_recipe({"model": {"name": "fasterrcnn_resnet26_thin"}}, "here")
    facts = {"classes": ["a"], "image_size": 64, "mean": [0.5] * 3, "std": [0.25] * 3}
    model: Any = Detection.build(recipe, facts)
    assert (model.transform.image_mean, model.transform.image_std) == ([0.5] * 3, [0.25] * 3)
    del facts["mean"]
    model = Detection.build(recipe, facts)
    assert model.transform.image_mean == [0.485, 0.456, 0.406]


@pytest.fixture
def dead_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The hub's own client, through a proxy that is not there, and an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    new_client()  # one that was made before does not know of the proxy
    yield
    new_client()


def new_client() -> None:
    """The hub's next client is made anew; before version 1 that goes by another name."""
    name = "close_session" if hasattr(huggingface_hub, "close_session") else "configure_http_backend"
    getattr(huggingface_hub, name)()


@pytest.mark.usefixtures("dead_network")
def test_without_a_network_one_line_says_so_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    start = time.monotonic()
    Path("tiny.yaml").write_text(RECIPE)
    assert cli.main(["train", "tiny.yaml"]) == 2
    assert time.monotonic() - start < 10
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "test_resnet.r160_in1k are not in the cache, and huggingface.co cannot be reached" in lines[0]
    assert not (tmp_path / "runs").exists()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    new_client()
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE forbids to fetch them: unset it"):
        timms.fetch("test_resnet.r160_in1k")


def test_a_damaged_file_is_told_in_a_line(cached: Cached, files: Path) -> None:
    cached("test_resnet.r160_in1k")
    path = next(files.glob("models--timm--test_resnet*/snapshots/abc/model.safetensors"))
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    try:
        with pytest.raises(ValueError, match=r"did not load from .*model\.safetensors") as caught:
            timms.fetch("test_resnet.r160_in1k")
    finally:
        path.write_bytes(whole)
    assert "\n" not in str(caught.value)


def test_a_vit_of_another_size_takes_resampled_positions() -> None:
    """By timm's own resampling, for our ViT and for timm's; an oracle is timm's load into its own network."""
    own: dict[str, Any] = {"width": 16, "depth": 1, "heads": 2, "num_classes": 3}
    theirs: dict[str, Any] = {"embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 3}
    source = timm.create_model("vit_base_patch16_224", img_size=96, **theirs)
    wanted = timm.create_model("vit_base_patch16_224", img_size=64, **theirs)
    from timm.models.vision_transformer import checkpoint_filter_fn

    wanted.load_state_dict(checkpoint_filter_fn(source.state_dict(), wanted))
    for model in (
        create_model("vit_base_patch16_384", image_size=64, **own),
        timm.create_model("vit_base_patch16_224", img_size=64, **theirs),
    ):
        loaded = load_matching(model, source.state_dict())
        assert (loaded.new, loaded.unused) == ([], [])
        torch.testing.assert_close(model.get_parameter("pos_embed"), wanted.pos_embed)


def test_commands_take_timm_s_weights_by_their_name(
    cached: Cached, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The network whole, with the names of ImageNet's classes; nothing of it is trained or changed."""
    theirs = cached("test_resnet.r160_in1k")
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    for label in range(1000):
        (tmp_path / "photos" / "val" / f"{label:03}").mkdir(parents=True)
        pixels = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / "val" / f"{label:03}" / "1.png")
    reference = timm.create_model("test_resnet.r160_in1k", pretrained=False).eval()
    reference.load_state_dict(theirs)
    name = "timm/test_resnet.r160_in1k"

    assert cli.main(["eval", name, "--root", "photos", "--image-size", "32", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    want = attneck.evaluate(reference, root="photos", image_size=32)
    assert (said["model"], said["images"], said["image_size"]) == ("test_resnet.r160_in1k", 1000, 32)
    assert said["val_loss"] == pytest.approx(want.scores["loss"], rel=1e-5)

    photo = "photos/val/007/1.png"
    assert cli.main(["predict", name, photo, "--out", "found"]) == 0
    (row, *_) = json.loads(Path("found/predictions.json").read_text())["runs"][0]["detections"]
    with torch.no_grad():
        pixels = Classification.prepared(Image.open(photo), facts_of(reference) | {"image_size": 160})
        best = int(reference(pixels[None]).argmax())
    assert row["category"] == ImageNetInfo().index_to_description(best)

    assert cli.main(["export", name, "net.safetensors"]) == 0
    saved = attneck.load("net.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(saved(pixels[None]), reference(pixels[None]))
    assert cli.main(["look", "timm/resnet1", photo]) == 2
    assert "perhaps you meant 'resnet1" in capsys.readouterr().err


def test_look_shows_the_heads_of_timm_s_own_attention(cached: Cached, tmp_path: Path) -> None:
    cached("botnet26t_256.c1_in1k")
    Image.new("RGB", (64, 64), (200, 30, 40)).save(tmp_path / "photo.png")
    seer = viewer("timm/botnet26t_256.c1_in1k")
    found = maps(seer.network, seer.prepared(Image.open(tmp_path / "photo.png")))
    assert len(found.mhsas) == 3
    assert len(seer.facts["classes"]) == 1000


def test_load_weights_takes_fetched_ones(cached: Cached) -> None:
    cached("resnet18.a1_in1k")
    model = create_model("fasterrcnn_resnet18", num_classes=3, image_size=64, channels=8, box_features=8)
    loaded = load_weights(model, timms.fetch("resnet18.a1_in1k"))
    assert (loaded.new, loaded.part, loaded.warning) == ([], "resnet18.a1_in1k", None)
