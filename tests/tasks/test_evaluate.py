"""attneck.evaluate: models in memory score as by timm's own transforms, saved ones as their runs do."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from forked import as_ranks
from noise_photos import write_photos
from PIL import Image
from small_run import thin_mask_rcnn
from timm.data import create_transform, resolve_data_config
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

import attneck
from attneck import cli, hub
from attneck.data import open_dataset
from attneck.errors import UserError
from attneck.runs import train as runs
from attneck.runs.run import Run
from attneck.surgery import insert_bam
from attneck.training.recipe import Recipe

CLASSES = ("a", "b", "c", "d", "e", "f", "g")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    write_photos(root, {"train": 2, "val": 3}, CLASSES, 80, "png")
    return root


def network(side: int = 64, **images: Any) -> nn.Module:
    """timm's smallest ResNet with answers that differ from image to image, for squares of `side`."""
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=len(CLASSES))
    model.pretrained_cfg = dict(model.pretrained_cfg) | {"input_size": (3, side, side)} | images
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            nn.init.ones_(module.weight)
    model(torch.randn(16, 3, side, side))  # their statistics
    return model.eval()


def by_timm(model: nn.Module, root: Path) -> dict[str, float]:
    """What timm's own transform of the model's images gives."""
    transform: Any = create_transform(**resolve_data_config(model=model))
    files = sorted((root / "val").glob("*/*.png"))
    labels = torch.tensor([CLASSES.index(file.parent.name) for file in files])
    with torch.no_grad():
        logits = model(torch.stack([transform(Image.open(file)) for file in files]))
    best = logits.topk(5).indices == labels[:, None]
    return {
        "loss": float(F.cross_entropy(logits, labels)),
        "top1": 100 * float(best[:, 0].float().mean()),
        "top5": 100 * float(best.any(1).float().mean()),
    }


@pytest.mark.parametrize("way", ["bilinear", "bicubic"])
def test_a_model_of_timm_s_is_scored_as_timm_scores_it(way: str, photos: Path) -> None:
    model = network(interpolation=way, crop_pct=0.9, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    found = attneck.evaluate(model, root=photos)
    want = by_timm(model, photos)
    assert found.images == 21
    assert found.scores == pytest.approx(want | {"error": 100 - want["top1"]}, rel=1e-4)
    other = network(interpolation="nearest", crop_pct=0.9, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    assert abs(attneck.evaluate(other, root=photos).scores["loss"] / want["loss"] - 1) > 1e-3


def test_labels_follow_the_model_s_classes(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever their order; without names the folders' is taken, with a word."""
    named = network(label_names=CLASSES)
    want = attneck.evaluate(named, root=photos)
    assert capsys.readouterr().err == ""
    turned = network(label_names=CLASSES[::-1])
    with torch.no_grad():
        turned.fc.weight.copy_(turned.fc.weight.flip(0))
        turned.fc.bias.copy_(turned.fc.bias.flip(0))
    assert attneck.evaluate(turned, root=photos).scores == pytest.approx(want.scores, rel=1e-6)
    assert attneck.evaluate(network(), root=photos).scores == want.scores
    assert "classes have no names: folder's are taken for them in their order" in capsys.readouterr().err


def test_a_model_is_left_as_it_was(photos: Path) -> None:
    """After surgery, in training mode, within a wrapper and in half precision."""
    model = network(label_names=CLASSES)
    insert_bam(model, image_size=64)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    model.layer1.eval()
    average = torch.optim.swa_utils.AveragedModel(model)
    scores = attneck.evaluate(average, root=photos, size=14).scores
    assert [model.training, model.layer1.training, average.training] == [True, False, True]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert scores == attneck.evaluate(model, root=photos, size=14).scores
    half = attneck.evaluate(average.to(torch.bfloat16), root=photos, size=14)
    assert half.scores["loss"] == pytest.approx(scores["loss"], rel=0.1)


def _scores(model: nn.Module, root: Path) -> dict[str, float]:
    return attneck.evaluate(model, root=root).scores


def _in_a_group(model: nn.Module, root: Path) -> dict[str, float]:
    torch.distributed.init_process_group("gloo")
    try:
        return _scores(model, root)
    finally:
        torch.distributed.destroy_process_group()


def _in_parallel(model: nn.Module, root: Path) -> dict[str, float]:
    """Of one image, so that a process has none."""
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    try:
        parallel = nn.parallel.DistributedDataParallel(model)
        return attneck.evaluate(parallel, root=root, size=1).scores
    finally:
        torch.distributed.destroy_process_group()


def _counted(program: Any, model: nn.Module, root: Path) -> tuple[dict[str, float], int]:
    """What it gives, and how many images this process's network saw."""
    seen: list[int] = []
    model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    return program(model, root), sum(seen)


@pytest.mark.parametrize("program", [_scores, _in_a_group])
def test_processes_share_the_images(program: Any, photos: Path) -> None:
    model = network(label_names=CLASSES)
    alone = _scores(model, photos)
    ranks = as_ranks(_counted, program, model, photos)
    first, second = (scores for scores, _ in ranks)
    assert first == second == pytest.approx(alone, rel=1e-5)
    assert sum(count for _, count in ranks) == 21 + 2  # each begins with an empty one


def test_a_process_without_an_image_waits_for_nobody(photos: Path) -> None:
    model = network(label_names=CLASSES)
    alone = attneck.evaluate(model, root=photos, size=1).scores
    first, second = as_ranks(_in_parallel, model, photos)
    assert first == second == pytest.approx(alone, rel=1e-5)


def overflowing() -> nn.Module:
    model = network()
    nn.init.constant_(model.fc.weight, 3e38)
    return model


def with_classifier(classes: int) -> nn.Module:
    """Another than the network was made with, by hand: its num_classes says 7 still."""
    model = network()
    model.fc = nn.Linear(512, classes)
    return model


def answering(answer: Any) -> nn.Module:
    """A network that answers so, and has no parameters."""
    model = nn.Identity()
    model.forward = answer
    model.pretrained_cfg = {"input_size": (3, 64, 64), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    return model


def test_classes_are_counted_in_its_answer(photos: Path) -> None:
    """Not by an attribute, which a classifier put in by hand leaves; nor by the names of the one before."""
    model = timm.create_model("resnet10t", num_classes=20)
    model.pretrained_cfg = dict(model.pretrained_cfg) | {"label_names": tuple("abcdefghijklmnopqrst")}
    model.fc = nn.Linear(512, 7)
    with pytest.raises(ValueError, match="the classes asked for"):
        attneck.evaluate(model, root=photos, image_size=64)
    model.reset_classifier(7)
    assert attneck.evaluate(model, root=photos, image_size=64).images == 21
    bare = timm.create_model("resnet10t", num_classes=0)
    bare.fc = nn.Linear(512, 7)
    assert attneck.evaluate(bare, root=photos, image_size=64).images == 21
    scores = attneck.evaluate(answering(lambda x: x.mean((2, 3)) @ torch.ones(3, 7)), root=photos).scores
    assert scores["loss"] == pytest.approx(np.log(7))


def test_no_memory_left_is_no_fault_of_the_images_size(photos: Path) -> None:
    def full(x: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        attneck.evaluate(answering(full), root=photos)


def test_images_are_resized_as_timm_does_where_nothing_is_said(photos: Path) -> None:
    model = network(crop_pct=0.9)
    model.pretrained_cfg = {key: model.pretrained_cfg[key] for key in ("input_size", "mean", "std")}
    assert attneck.evaluate(model, root=photos).scores["loss"] == pytest.approx(
        by_timm(model, photos)["loss"], rel=1e-4
    )


def test_a_classifier_may_have_its_images_transform_beside_it(photos: Path, tmp_path: Path) -> None:
    model: Any = network()
    want = attneck.evaluate(model, root=photos).scores
    model.transform = create_transform(**resolve_data_config(model=model))
    assert attneck.evaluate(model, root=photos).scores == want
    again = hub.load(hub.save(model, tmp_path / "net.safetensors"))
    assert attneck.evaluate(again, root=photos).scores == pytest.approx(want)


class Merging(nn.Linear):
    """As layers of LoRA do it: in evaluation its weight has what training keeps apart."""

    merged = False

    def train(self, mode: bool = True) -> "Merging":
        if self.merged == mode:
            with torch.no_grad():
                self.weight.add_(-1.0 if mode else 1.0)
        self.merged = not mode
        return super().train(mode)


@pytest.mark.parametrize("look", [attneck.evaluate, attneck.explain.maps])
def test_modules_that_do_more_in_a_mode_go_back_themselves(look: Any, photos: Path) -> None:
    model = network(label_names=CLASSES)
    insert_bam(model, image_size=64)
    model.fc = Merging(512, 7)
    model.train()
    before = model.fc.weight.clone()
    if look is attneck.evaluate:
        look(model, root=photos, size=7)
    else:
        look(model, torch.rand(3, 64, 64))
    assert (model.fc.training, model.fc.merged) == (True, False)
    torch.testing.assert_close(model.fc.weight, before)


REFUSED = [
    (lambda: nn.Linear(1, 1), {}, "this Linear does not say which images it takes"),
    (lambda: network(crop_mode="squash"), {}, "crop_mode squash"),
    (lambda: network(interpolation="random"), {}, "interpolation='random'"),
    (lambda: network(input_size=(3, 64, 32)), {}, "3 × 64 × 32: wanted square images"),
    (lambda: network(label_names=("a", *"uvwxyz")), {}, "the classes asked for: 6 more"),
    (lambda: network(label_names=("a", *"aaaaaa")), {}, "not those of folder .the first that differs is 'a'"),
    (lambda: timm.create_model("resnet10t", num_classes=20), {}, "20 classes apart, and folder has 7"),
    (lambda: timm.create_model("resnet10t", num_classes=0), {}, "it has no classifier"),
    (lambda: with_classifier(14), {}, "14 classes apart"),
    (overflowing, {}, "21 of 21 images have logits that are not finite"),
    (
        lambda: timm.create_model("resnet10t", in_chans=1, num_classes=7),
        {"image_size": 64},
        "it does not take images of 3 × 64 × 64",
    ),
    (lambda: timm.create_model("vit_tiny_patch16_224"), {"image_size": 64}, "does not take images of 3 × 64"),
    (lambda: answering(lambda x: (x, x)), {}, "it gives 'tuple' for an image: wanted logits"),
    (lambda: answering(lambda x: x), {}, "it gives 'Tensor' for an image: wanted logits"),
    (network, {"image_size": 0}, "image_size=0: wanted a whole number"),
    (network, {"image_size": "64"}, "image_size='64': wanted a whole number"),
    (network, {"crop_pct": 2.5}, "crop_pct is 2.5"),
    (network, {"data": ["folder"]}, "data=.*: wanted a data set's name"),
    (network, {"workers": -1}, "workers=-1: wanted a whole number from 0"),
    (network, {"size": 2.5}, "size=2.5: wanted a whole number"),
    (
        lambda: attneck.create_model("fasterrcnn_botnet26_thin", image_size=128),
        {"data": "coco", "masks": True},
        "masks=True: this detector makes no masks",
    ),
    (network, {"augment": "inception"}, "unknown option 'augment'; choose one of"),
    (network, {"on_bad_image": "skip"}, "unknown option 'on_bad_image'"),
    (network, {"data": "coco"}, "data set is 'coco'"),
    (network, {"split": "test"}, "split of folder is 'test'"),
    (network, {"masks": True}, "folder: masks is given, but it takes"),
    (network, {"data": "shapes", "root": None}, "7 classes apart, and shapes has 10"),
]


@pytest.mark.parametrize(("model", "options", "said"), REFUSED)
def test_what_would_score_wrongly_is_refused(model: Any, options: Any, said: str, photos: Path) -> None:
    with pytest.raises((ValueError, UserError), match=said):
        attneck.evaluate(model(), **{"root": photos} | options)


def test_answers_that_are_not_finite_name_no_class(photos: Path, tmp_path: Path, capsys: Any) -> None:
    hub.save(overflowing(), tmp_path / "broken.safetensors")
    image = str(next(photos.glob("val/a/*")))
    for words in (["predict", image, "--out", str(tmp_path / "out")], ["eval", "--data.root", str(photos)]):
        assert cli.main([words[0], str(tmp_path / "broken.safetensors"), *words[1:]]) == 2
        said = capsys.readouterr().err
        assert "logits that are not finite: its weights are broken" in said
        assert words[0] == "eval" or f"{image}: " in said


def test_images_of_one_size_are_resized_to_the_model_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """CIFAR's are of 32 pixels."""
    from attneck.data import arrays
    from attneck.tasks import evaluate

    images = np.random.default_rng(0).integers(0, 256, (14, 32, 32, 3), dtype=np.uint8)
    opened = arrays.ArrayDataset(
        images, np.arange(14) % 7, classes=CLASSES, mean=(0.5,) * 3, std=(0.5,) * 3, augment="none", seed=0
    )
    asked = []

    def resized(name: str, split: str, *, image_size: int) -> arrays.ArrayDataset:
        asked.append(image_size)
        return opened.at(image_size)

    monkeypatch.setattr(evaluate, "open_dataset", resized)
    assert attneck.evaluate(network(), "cifar100").images == 14
    assert attneck.evaluate(network(), "cifar100", image_size=32).images == 14
    assert asked == [64, 32]


@pytest.fixture(scope="module")
def saved(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run's folder, and its model, saved."""
    place = tmp_path_factory.mktemp("saved")
    recipe = Recipe.model_validate(
        {
            "model": {"name": "cifar_resnet20", "options": {"depths": [1, 1, 1]}},
            "data": {"name": "folder", "root": str(photos), "image_size": 24, "crop_pct": 0.8},
            "batch": 4,
            "epochs": 1,
        }
    )
    runs.train(recipe, place / "run")
    return place / "run", hub.save(attneck.Run(place / "run"), place / "net")


def answer(words: list[Any], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert cli.main(["eval", *map(str, words), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_saved_model_scores_as_its_run(
    saved: tuple[Path, Path], photos: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    run, net = saved
    want = answer([run, "--out", tmp_path / "of-run"], capsys)
    monkeypatch.chdir(tmp_path)
    got = answer([net, "--data.root", photos], capsys)
    scores = [key for key in want if key.startswith("val_")]
    assert {key: got[key] for key in scores} == pytest.approx({key: want[key] for key in scores}, rel=1e-5)
    assert [got[key] for key in ("images", "image_size", "classes", "confused")] == [
        want[key] for key in ("images", "image_size", "classes", "confused")
    ]
    assert (got["step"], got["checkpoint"], got["scored_on"]) == (None, None, "images of folder val")
    assert {Path(file).name for file in got["files"]} == {Path(file).name for file in want["files"]}
    assert (tmp_path / "evaluation" / "per-class.csv").read_text() == (
        tmp_path / "of-run" / "per-class.csv"
    ).read_text()
    every = answer([net, "--data.root", photos / "val", "--data.val-share", 1], capsys)
    assert (every["images"], every["val_top1"]) == (21, got["val_top1"])
    assert answer([net, "--root", photos, "--split", "train"], capsys)["images"] == 14
    assert answer([net, "--root", photos, "--image-size", 32], capsys)["image_size"] == 32
    assert cli.main(["eval", str(net), "--root", str(photos)]) == 0
    assert "net, 21 images of folder val\nweights" in capsys.readouterr().out


def test_a_run_scores_with_statistics_of_another_size_and_exports_them(
    saved: tuple[Path, Path], photos: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    """Those of its training images, which are seen as held-out images are."""
    monkeypatch.chdir(tmp_path)
    run, _ = saved
    size = ["--image-size", 40]
    plain, anew = (answer([run, *size, *words], capsys) for words in ([], ["--recalibrate", 14]))
    assert anew["recalibrated"] == 14
    assert anew["val_loss"] != plain["val_loss"]
    model = Run(run).model(40)
    weights = {name: one.clone() for name, one in model.named_parameters()}
    training = open_dataset("folder", "train", root=photos, image_size=40, crop_pct=0.8)
    update_bn([torch.stack([training[0, index][0] for index in range(14)])], model)
    by_hand = attneck.evaluate(model.eval(), "folder", root=photos)
    assert by_hand.scores["loss"] == pytest.approx(anew["val_loss"], rel=1e-4)
    words = ["export", str(run), "net40", *map(str, size), "--recalibrate", "14"]
    assert cli.main(words) == 0
    again = answer(["net40", "--root", photos], capsys)
    assert again["val_loss"] == pytest.approx(anew["val_loss"], rel=1e-5)
    assert all(torch.equal(one, weights[name]) for name, one in hub.load("net40").named_parameters())
    card = (tmp_path / "net40/README.md").read_text()
    assert "(`val`) after 3 steps, with BatchNorm statistics taken anew; the scores below" in card
    assert "BatchNorm statistics" not in (saved[1] / "README.md").read_text()


@pytest.mark.parametrize(("most", "parts"), [(64, [14]), (13, [7, 7]), (5, [5, 5, 4]), (4, [4, 4, 3, 3])])
def test_no_batch_has_a_single_image(
    saved: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, most: int, parts: list[int]
) -> None:
    monkeypatch.setattr("attneck.tasks.classification.CALIBRATION_BATCH", most)
    assert [len(batch) for batch in Run(saved[0])._open().calibration(14)] == parts


def loss_anew(run: Path) -> float:
    return Run(run).evaluate(recalibrate=14)["val"].scores["loss"]


def test_two_processes_take_the_same_statistics(saved: tuple[Path, Path]) -> None:
    assert as_ranks(loss_anew, saved[0]) == [pytest.approx(loss_anew(saved[0]), rel=1e-5)] * 2


def test_export_takes_the_images_from_elsewhere(
    saved: tuple[Path, Path], photos: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["export", str(saved[0]), "net.safetensors", "--root", str(photos)]
    assert cli.main(words) == 2
    assert "--data.root goes with --recalibrate" in capsys.readouterr().err
    assert cli.main([*words[:-1], "nowhere", "--recalibrate", "14"]) == 2
    assert "nowhere is not a folder" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]
    assert cli.main([*words, "--recalibrate", "14"]) == 0


def test_statistics_are_of_images_in_no_order_each_once(saved: tuple[Path, Path], photos: Path) -> None:
    """In a folder's own order those of a class come together, and a batch's variance is that of its class."""
    training = open_dataset("folder", "train", root=photos, image_size=24, crop_pct=0.8)
    images = [training[0, index][0] for index in range(14)]
    batches = [*Run(saved[0])._open().calibration(14)]
    found = [n for image in torch.cat(batches) for n, one in enumerate(images) if torch.equal(image, one)]
    assert sorted(found) == list(range(14))
    assert found != list(range(14))


LINES = [
    ("run", ["--recalibrate", "15"], "recalibrate=15: there are 14 training images, give fewer"),
    ("run", ["--recalibrate", "1"], "recalibrate=1: wanted a whole number from 2"),
    ("run", ["--root", "VAL", "--val-share", "1", "--recalibrate", "9"], "recalibrate wants training images"),
    ("net", ["--recalibrate", "9"], "--recalibrate is about runs"),
    ("run", ["--data.name", "folder"], "--data.name is of saved models"),
    ("run", ["--split", "val"], "--data.val-split is of saved models"),
    ("net", ["--checkpoint", "best"], "--checkpoint is about runs"),
    ("net", ["--data.name", "floder"], "unknown --data.name 'floder'; perhaps you meant 'folder'"),
    ("net", ["--data.val-share", "1"], "--data.val-share goes with --data.root"),
    ("net", ["--data.name", "voc2007"], "voc2007"),
    ("net", ["--data.root", "nowhere"], "nowhere"),
]


@pytest.mark.parametrize(("which", "words", "said"), LINES)
def test_what_eval_cannot_do_is_one_line(
    which: str,
    words: list[str],
    said: str,
    saved: Any,
    photos: Path,
    tmp_path: Path,
    capsys: Any,
    monkeypatch: Any,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [str(photos / "val") if word == "VAL" else word for word in words]
    assert cli.main(["eval", str(saved[which == "net"]), *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_name_has_no_weights(capsys: Any) -> None:
    assert cli.main(["eval", "botnet50", "--root", "photos"]) == 2
    assert "its weights would be random" in capsys.readouterr().err


def test_a_saved_detector_scores_as_its_run(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    """And of other sizes of drawn images as they are drawn."""
    data = {"name": "shapes", "image_size": 96, "train_size": 4, "val_size": 5}
    content = {"model": thin_mask_rcnn(proposals=20), "data": data, "batch": 4, "epochs": 1}
    runs.train(Recipe.model_validate(content), tmp_path / "run")
    model = attneck.Run(tmp_path / "run").model().to(memory_format=torch.channels_last)
    want = attneck.Run(tmp_path / "run").evaluate()["val"]
    got = attneck.evaluate(model, "shapes", size=5)
    assert (got.scores, got.detections) == (want.scores, want.detections)
    with pytest.raises(ValueError, match="A detector's is one of shapes, coco"):
        attneck.evaluate(model)
    with pytest.raises(ValueError, match=r"scored in float32, not torch.float64: give model.float"):
        attneck.evaluate(attneck.Run(tmp_path / "run").model().double(), "shapes", size=5)
    boxes = attneck.evaluate(model, "shapes", size=5, masks=False)
    assert (boxes.scores["box_AP50"], "mask_AP" in boxes.scores) == (want.scores["box_AP50"], False)
    with pytest.raises(ValueError, match="unknown option 'augment'"):
        attneck.evaluate(model, "shapes", augment="flip")
    with pytest.raises(ValueError, match="image_size is of classifiers"):
        attneck.evaluate(model, "shapes", image_size=64)
    monkeypatch.setattr("attneck.tasks.evaluate.open_detection", _few)
    monkeypatch.chdir(tmp_path)
    hub.save(model, "net")
    found = answer(["net", "--data", "shapes"], capsys)
    assert found["val_box_AP"] == want.scores["box_AP"]
    assert json.loads(Path(found["detections"]).read_text()) == want.detections
    assert Path(found["detections"]).parent == Path("evaluation")
    assert cli.main(["eval", "net"]) == 2
    assert "which data?" in capsys.readouterr().err


def _few(name: str, split: str, **options: Any) -> Any:
    from attneck.data.detection import open_detection

    return open_detection(name, split, **options, size=5)
