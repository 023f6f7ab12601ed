"""Folders of images with what else lies in folders; and images that training is told to skip."""

import os
import pickle
import shutil

import numpy as np
import pytest
import torch
import yaml
from bad_images import whole
from detection_files import coco_content, write_coco
from small_run import broken_off_after

from attneck import cli
from attneck.data import EvalBatches, TrainBatches, loader, open_dataset
from attneck.data.detection import collate, open_detection
from attneck.data.readers.decode import UnreadableImage
from attneck.data.skipping import Skipped
from attneck.runs import train as runs
from attneck.training.recipe import Recipe

PER_CLASS = 6


@pytest.fixture
def root(tmp_path):
    """Two classes in two splits; every image is another."""
    draw = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in "ab":
            (tmp_path / split / kind).mkdir(parents=True)
            for number in range(PER_CLASS):
                pixels = draw.integers(0, 256, (20, 24, 3), dtype=np.uint8)
                (tmp_path / split / kind / f"{number}.png").write_bytes(whole("PNG", pixels))
    return tmp_path


def opened(root, split="train", **options):
    return open_dataset("folder", split, root=root, image_size=16, **options)


PASSED_OVER = {
    "AppleDouble": lambda place: (place / "a/._1.png").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X"),
    "AppleDouble of a folder": lambda place: (place / "._a").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X"),
    "a desktop's file": lambda place: (place / ".DS_Store").write_bytes(b"x"),
    "a notebook's folder": lambda place: shutil.copytree(place / "a", place / ".ipynb_checkpoints"),
    "one in a class": lambda place: shutil.copytree(place / "b", place / "a/.ipynb_checkpoints"),
    "a hidden link to itself": lambda place: (place / "a/.x.png").symlink_to(".x.png"),
}


@pytest.mark.parametrize("case", PASSED_OVER)
def test_what_is_hidden_is_passed_over_and_counted(root, capsys, case):
    PASSED_OVER[case](root / "train")
    (root / "train/b/.last").write_text("x")
    images = opened(root)
    assert len(images) == 2 * PER_CLASS
    assert images.classes == ("a", "b")
    said = capsys.readouterr().err
    assert said.startswith("attneck: folder: not read in train: 2 hidden (")
    assert said.count("\n") == 1


LEFT = {
    "a file beside the classes": (lambda place: (place / "labels.csv").write_text("x"), "labels.csv"),
    "an image beside the classes": (lambda place: (place / "1.png").write_bytes(whole("PNG")), "1.png"),
    "a broken link beside them": (lambda place: (place / "z").symlink_to("nowhere"), "z"),
    "a link to itself beside them": (lambda place: (place / "z").symlink_to("z"), "z"),
    "a FIFO beside them": (lambda place: os.mkfifo(place / "z"), "z"),
    "a text in a class": (lambda place: (place / "a/notes.txt").write_text("x"), "a/notes.txt"),
    "another format": (lambda place: (place / "a/1.heic").write_bytes(b"x"), "a/1.heic"),
    "a text in a folder in a class": (
        lambda place: (place / "a/more").mkdir() or (place / "a/more/x.txt").write_text("x"),
        "a/more/x.txt",
    ),
    "a link to another class": (lambda place: (place / "a/more").symlink_to(place / "b"), "a/more (links"),
    "a loop of folders": (lambda place: (place / "a/loop").symlink_to(place), "a/loop (links"),
    "a name of two lines": (lambda place: (place / "a/x\ny.txt").write_text("x"), "a/x\\ny.txt"),
}


@pytest.mark.parametrize("case", LEFT)
def test_what_is_left_out_is_said(root, capsys, case):
    make, named = LEFT[case]
    make(root / "train")
    assert len(opened(root)) == 2 * PER_CLASS
    said = capsys.readouterr().err
    assert said.startswith("attneck: folder: not read in train: ")
    assert named in said
    assert said.count("\n") == 1
    if "(links" in named:
        (root / "train/b/more").symlink_to(root / "val")
    else:
        (root / "train/b/zzz.txt").write_text("x")
    assert len(opened(root)) == 2 * PER_CLASS
    assert " and 1 more " in capsys.readouterr().err
    assert opened(root, "val")
    assert not capsys.readouterr().err


def no_images(place):
    (place / "c").mkdir()
    (place / "c/readme.txt").write_text("x")


REFUSED = {
    "a class without images": (no_images, "c has no images"),
    "a class of hidden ones": (
        lambda place: (place / "c").mkdir() or (place / "c/._1.png").write_bytes(b"x"),
        "c has no images",
    ),
    "a class that is a loop": (lambda place: (place / "c").symlink_to("."), "c has no images"),
    "a class of two lines": (
        lambda place: shutil.copytree(place / "a", place / "x\ny"),
        r"x\ny: a class's name",
    ),
    "a class that is no text": (
        lambda place: shutil.copytree(place / "a", os.fsdecode(os.fsencode(place) + b"/\xff")),
        r"\udcff: a class's name",
    ),
    "a folder of an image's name": (lambda place: (place / "a/x.png").mkdir(), "x.png has an image's name"),
    "a FIFO of an image's name": (lambda place: os.mkfifo(place / "a/x.png"), "x.png has an image's name"),
    "a link to nothing": (lambda place: (place / "a/x.png").symlink_to("no"), "x.png has an image's name"),
    "a link to itself": (lambda place: (place / "a/x.png").symlink_to("x.png"), "x.png has an image's name"),
    "a device": (lambda place: (place / "a/x.png").symlink_to("/dev/zero"), "x.png has an image's name"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_at_once(root, case):
    make, says = REFUSED[case]
    for split in ("train", "val"):
        make(root / split)
    with pytest.raises(ValueError, match=r"^folder: ") as error:
        opened(root)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) <= 300


def bits(dataset, workers, start=0, collate=None):
    batches = TrainBatches(len(dataset), 4, seed=3, start=start, steps=9)
    how = {} if collate is None else {"collate": collate}
    return [images for images, *_ in loader(dataset, batches, workers, **how)]


def test_a_skipped_image_has_one_in_its_place_always_the_same(root, capsys):
    bad = root / "train/b/3.png"
    bad.write_bytes(bad.read_bytes()[:300])
    alone = opened(root, on_bad_image="skip")
    forked = opened(root, on_bad_image="skip")
    resumed = opened(root, on_bad_image="skip")
    for images in (forked, resumed):
        images.skipped.keep(root / "skipped.jsonl")
    first = bits(alone, 0)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("attneck: skipped: folder: cannot read ")
    assert str(bad) in said
    for one, other in zip(first, bits(forked, 2), strict=True):
        assert torch.equal(one, other)
    resumed.skipped.keep(root / "skipped.jsonl")  # a worker has written it
    assert resumed.skipped.files() == [str(bad)]
    for one, other in zip(first[5:], bits(resumed, 1, start=5), strict=True):
        assert torch.equal(one, other)
    for images in (alone, forked):
        assert images.skipped.files() == [str(bad)]
    moved = opened(root, on_bad_image="skip")
    (root / "skipped.jsonl").write_text('"/before/train/b/3.png"\n')
    moved.skipped.keep(root / "skipped.jsonl")
    bits(moved, 0)  # the same image by another path is no second one
    # The following one of its class, under its own label.
    index = alone.paths.index(str(bad))
    np.testing.assert_array_equal(alone.pixels([(0, index)]), alone.pixels([(0, index + 1)]))
    assert alone[0, index][1] == 1
    (root / "train/b/5.png").write_bytes(b"")
    with pytest.raises(UnreadableImage, match=r"5\.png .*\(2 of 12 images cannot be read: over 1% "):
        bits(alone, 0)


def test_the_last_of_a_class_is_followed_by_its_first(root):
    (root / "train/a/5.png").write_bytes(b"")
    images = opened(root, on_bad_image="skip")
    np.testing.assert_array_equal(images.pixels([(0, 5)]), images.pixels([(0, 0)]))


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("nowhere")])
def test_what_is_no_file_is_skipped_too(root, capsys, make):
    bad = root / "train/b/0.png"
    bad.unlink()
    make(bad)
    bits(opened(root, on_bad_image="skip"), 0)
    assert capsys.readouterr().err.count(f"attneck: skipped: folder: cannot read {bad}") == 1


def test_what_all_processes_skip_is_bounded_and_not_what_each_does(tmp_path, capsys):
    """Of 200 images two may be skipped: two processes find one each, and the third is one too many."""
    many = [Skipped(200, lambda index: f"{index}.png") for _ in range(2)]
    for one in many:
        one.keep(tmp_path / "skipped.jsonl")

    def bad(index):
        if index < 3:
            raise UnreadableImage(f"{index}.png: no image")
        return index

    assert [many[0].first([0, 9], bad), many[1].first([1, 9], bad)] == [9, 9]
    with pytest.raises(UnreadableImage, match=r"2\.png: no image \(3 of 200 images cannot be read: over 1%"):
        many[0].first([2, 9], bad)
    assert capsys.readouterr().err.count("skipped") == 2


def test_an_image_over_the_limit_is_never_skipped(root):
    (root / "train/b/0.png").write_bytes(whole("PNG", np.zeros((40, 40, 3), dtype=np.uint8)))
    images = opened(root, on_bad_image="skip", max_pixels=1599)
    with pytest.raises(UnreadableImage, match=r"0\.png has over 1,599 pixels: .*higher max_pixels"):
        bits(images, 0)
    assert len(bits(opened(root, max_pixels=1600), 0)) == 9


def test_stop_or_skip(root):
    with pytest.raises(ValueError, match="on_bad_image is 'ignore': choose stop or skip"):
        opened(root, on_bad_image="ignore")


def test_detection_skips_with_the_next_image_and_its_objects(tmp_path):
    content = coco_content()
    write_coco(tmp_path, content)
    (tmp_path / "coco/train2017/a.png").write_bytes(b"")
    images = open_detection("coco", "train", root=tmp_path, augment="flip", on_bad_image="skip")
    images = pickle.loads(pickle.dumps(images))  # as to a worker that is not forked
    image, target = images[0, 0]
    other, wanted = images[0, 1]
    assert target["image_id"] == wanted["image_id"]
    assert images.skipped.files() == [str(tmp_path / "coco/train2017/a.png")]
    assert image.shape == other.shape
    stopping = open_detection("coco", "train", root=tmp_path)
    with pytest.raises(UnreadableImage, match=r"a\.png .it is empty"):
        list(loader(stopping, EvalBatches(3, 3), 1, collate))


def test_what_was_skipped_counts_after_a_resume(tmp_path, capsys):
    """Named at the end, and a part of the limit; a run that begins anew counts anew."""
    for number in range(12):
        for split in ("train", "val"):
            file = tmp_path / split / "ab"[number % 2] / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(whole("PNG", np.full((20, 24, 3), 20 * number, dtype=np.uint8)))
    (tmp_path / "train/b/3.png").write_bytes(b"no picture")
    recipe = {
        "model": {"name": "cifar_resnet20", "options": {"depths": [1, 1, 1]}},
        "data": {"name": "folder", "root": str(tmp_path), "image_size": 16, "on_bad_image": "skip"},
        "batch": 4,
        "epochs": 2,
        "checkpoint_steps": 1,
        "pictures": False,
    }
    run = tmp_path / "run"
    with broken_off_after(4):
        runs.train(Recipe.model_validate(recipe), run)
    capsys.readouterr()
    shutil.copytree(run, tmp_path / "other")
    assert cli.main(["train", str(run), "--resume"]) == 0
    said = capsys.readouterr().err
    assert said.startswith("attneck: images skipped in training: 1 (")
    assert said.count("3.png") == 1
    bad = tmp_path / "train/b/5.png"
    bad.write_bytes(b"x" * bad.stat().st_size)
    assert cli.main(["train", str(tmp_path / "other"), "--resume"]) == 2
    assert "(2 of 12 images cannot be read: over 1% is not skipped)" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "other/checkpoints")
    (tmp_path / "other/metrics.jsonl").unlink()
    (tmp_path / "train/b/3.png").write_bytes((tmp_path / "val/b/3.png").read_bytes())
    runs.train(Recipe.model_validate(recipe), tmp_path / "other")
    assert "3.png" not in capsys.readouterr().err


def test_a_run_says_what_it_skipped(root, tmp_path, capsys):
    (root / "train/b/3.png").write_bytes(b"no picture")
    recipe = {
        "model": {"name": "cifar_resnet20", "options": {"depths": [1, 1, 1]}},
        "data": {"name": "folder", "root": str(root), "image_size": 16, "on_bad_image": "skip"},
        "batch": 4,
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    words = ["train", str(tmp_path / "tiny.yaml"), "--out", str(tmp_path / "run")]
    assert cli.main(words) == 0
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if "3.png" in line] == [said[-2], said[-1]]
    assert said[-1].startswith("attneck: images skipped in training: 1 (")
    # Held-out images always stop.
    (root / "val/a/0.png").write_bytes(b"no picture")
    assert cli.main(["eval", str(tmp_path / "run")]) == 2
    assert "cannot read" in capsys.readouterr().err
    # The option of files is refused where images are drawn.
    assert cli.main(["train", "demo", "--data.on-bad-image", "skip", "--out", str(tmp_path / "demo")]) == 2
    assert "on_bad_image is given, but it takes" in capsys.readouterr().err
