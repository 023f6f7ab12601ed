"""Folders of any shape: nested, of every format, or split by a share, which looks at the names alone."""

import csv
import re
import shutil
import unicodedata
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from attneck import cli
from attneck.data import open_dataset
from attneck.data.readers.decode import SUFFIXES
from attneck.data.readers.tree import every_split, held_out, scan
from attneck.errors import UserError
from attneck.runs import train as runs
from attneck.runs.run import Run
from attneck.training.recipe import Recipe
from attneck.training.recipe_file import parse_recipe

COUNT = 40


def picture(path, value=90):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (value, 0, 0)).save(path)


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    """root/CLASS/…, partly in folders in the class's; do not change it."""
    root = tmp_path_factory.mktemp("flat")
    for name in ("cat", "dog"):
        for number in range(COUNT):
            picture(root / name / ("" if number % 2 else "more/deep") / f"{number}.png")
    return root


def names(root, split, share=0.25):
    return scan(root, split, val_share=share).names


def test_the_two_parts_are_the_whole(flat):
    train, val = names(flat, "train"), names(flat, "val")
    assert not {*train} & {*val}
    assert len(train) + len(val) == 2 * COUNT
    assert 0.1 < len(val) / (2 * COUNT) < 0.4
    assert sorted(train + val) == sorted(str(path.relative_to(flat)) for path in flat.rglob("*.png"))
    assert {*val} <= {*names(flat, "val", 0.5)}  # a greater share adds to it


def test_a_share_of_many_is_that_share():
    for share in (0.01, 0.2, 0.5, 0.99):
        found = sum(held_out(f"a/{number}.jpg", share) for number in range(20_000)) / 20_000
        assert found == pytest.approx(share, abs=0.01)
    # It is known for good: a run of another day, machine and version has the same split.
    assert [n for n in range(20) if held_out(f"cat/{n}.jpg", 0.2)] == PINNED


PINNED = [1, 3, 5, 8, 18]


def test_another_file_moves_no_other(flat, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(flat, root)
    before = {split: {*names(root, split)} for split in ("train", "val")}
    for number in range(10):
        picture(root / "cat" / f"new {number}.png")
        picture(root / "bird" / f"{number}.png")
    for split, old in before.items():
        assert old <= {*names(root, split)}


REFUSED = {
    "a val folder": (
        lambda root: picture(root / "val/cat/1.png"),
        "has a val folder, and val_share is given",
    ),
    "train and others": (lambda root: picture(root / "train/cat/1.png"), "give data.root"),
    "one image alone": (lambda root: picture(root / "bird/0.png"), "leaves bird no training image"),
    "no class": (lambda root: [shutil.rmtree(root / name) for name in ("cat", "dog")], "no class folders"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_root_that_is_split_already_or_cannot_be(flat, tmp_path, case):
    root = tmp_path / "root"
    shutil.copytree(flat, root)
    make, says = REFUSED[case]
    make(root)
    with pytest.raises(ValueError, match=says) as error:
        scan(root, "train", val_share=0.995 if case == "one image alone" else 0.25)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 350


def test_train_alone_is_split(flat, tmp_path):
    shutil.copytree(flat, tmp_path / "root/train")
    assert names(tmp_path / "root", "val") == names(flat, "val")


def test_a_class_called_train_is_one(flat, tmp_path):
    shutil.copytree(flat, tmp_path / "root")
    for number in range(20):
        picture(tmp_path / f"root/train/{number}.png")
    assert scan(tmp_path / "root", "val", val_share=0.5).classes == ("cat", "dog", "train")


def test_images_are_in_the_order_of_their_paths_whatever_their_case(tmp_path):
    """A link to a folder inside a class is not followed."""
    for name in ("b.png", "a/z.png", "a.PNG", "c/a.png", "B.Jpg"):
        picture(tmp_path / "cat" / name)
    picture(tmp_path / "dog/1.png")
    (tmp_path / "cat/d").symlink_to(tmp_path / "dog")
    tree = scan(tmp_path, "val", val_share=1)
    assert tree.names == [
        *(f"cat/{name}" for name in ("B.Jpg", "a.PNG", "a/z.png", "b.png", "c/a.png")),
        "dog/1.png",
    ]
    assert tree.left.links == ["cat/d"]


def test_a_packed_root_is_split_as_its_folders(tmp_path):
    for number in range(20):
        picture(tmp_path / "root" / ("cat" if number % 3 else "dog") / f"{number}.png", 10 * number)
    assert cli.main(["data", "pack", str(tmp_path / "root"), str(tmp_path / "packed")]) == 0
    for split in ("train", "val"):
        parts = [scan(tmp_path / root, split, val_share=0.4) for root in ("root", "packed")]
        assert parts[0].names == parts[1].names
        assert parts[0].labels == parts[1].labels
        for file, place in zip(parts[0].paths, parts[1].paths, strict=True):
            assert place.read() == Path(file).read_bytes()


def test_what_is_packed_are_splits_or_classes(flat, tmp_path):
    """Folders called train and val are classes where they hold images alone, and others lie beside."""
    shutil.copytree(flat, tmp_path / "root")
    picture(tmp_path / "root/train/0.png")
    picture(tmp_path / "root/val/0.png")
    assert every_split(tmp_path / "root")[""].classes == ("cat", "dog", "train", "val")
    picture(tmp_path / "root/val/old/1.png")
    with pytest.raises(ValueError, match="has val with folders in it, and cat beside: give a root of train"):
        every_split(tmp_path / "root")
    shutil.copytree(flat, tmp_path / "split/train")
    picture(tmp_path / "split/val/0.png")
    with pytest.raises(ValueError, match="val has no class folders"):  # and not train alone, without a word
        every_split(tmp_path / "split")
    shutil.rmtree(tmp_path / "split/val")
    picture(tmp_path / "split/test/cat/0.png")
    assert [*every_split(tmp_path / "split")] == ["train"]
    shutil.copytree(flat, tmp_path / "split/val")
    (tmp_path / "split/test").rename(tmp_path / "split/Test")
    assert [*every_split(tmp_path / "split")] == ["train", "val"]
    picture(tmp_path / "split/meta/0.png")
    assert [*every_split(tmp_path / "split")] == ["train", "val"]


@pytest.mark.parametrize(
    ("folders", "root_alone"),
    [
        (["Testing", "Training"], True),
        (["Train", "Val"], True),
        (["test", "train", "valid"], True),
        (["train", "validation"], True),
        (["test", "train"], False),  # of which data check reads train
    ],
)
def test_splits_by_other_names_are_no_classes(flat, tmp_path, folders, root_alone):
    for name in folders:
        shutil.copytree(flat, tmp_path / "root" / name)
    call = "call them train and val" if root_alone else "call the one to score val, or give data.root"
    says = re.escape(f"({', '.join(folders)}) are splits and no classes: {call}")
    with pytest.raises(FileNotFoundError, match=says):
        scan(tmp_path / "root", "val")
    with pytest.raises(ValueError, match=says):
        scan(tmp_path / "root", "val", val_share=0.2)
    if root_alone:
        with pytest.raises(ValueError, match=says):
            every_split(tmp_path / "root")
    else:
        assert [*every_split(tmp_path / "root")] == ["train"]


def test_a_tar_of_another_program_is_to_be_unpacked(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train/0000.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"has no class folders.*only tars that attneck data pack wrote"):
        scan(tmp_path, "train")


def test_class_names_in_two_unicode_forms_are_said_to_be(tmp_path):
    for split, form in (("train", "NFC"), ("val", "NFD")):
        picture(tmp_path / split / unicodedata.normalize(form, "café") / "0.png")
        picture(tmp_path / split / "tea/0.png")
    with pytest.raises(ValueError, match=r"the same letters in another Unicode form \(NFC, NFD\): make them"):
        open_dataset("folder", "train", root=tmp_path)


def test_a_class_of_which_nothing_is_held_out_is_said(flat, tmp_path, capsys):
    root = tmp_path / "root"
    shutil.copytree(flat, root)
    number = next(n for n in range(100) if not held_out(f"bird/{n}.png", 0.25))
    picture(root / f"bird/{number}.png")
    assert open_dataset("folder", "val", root=root, image_size=16, val_share=0.25).classes[0] == "bird"
    said = capsys.readouterr().err
    assert "val_share 0.25 holds out no image of 1 of 3 classes (bird)" in said
    assert said.count("\n") == 1


def test_without_a_share_the_folders_are_wanted(flat):
    with pytest.raises(FileNotFoundError, match=r"for its folders as classes give --data.val-share 0.2"):
        open_dataset("folder", "train", root=flat)


def test_a_share_is_of_folders_and_a_share(flat):
    with pytest.raises(UserError, match=r"data.val_share"):
        parse_recipe({"data": {"name": "folder", "val_share": 1.5}}, "x")
    with pytest.raises(ValueError, match="shapes: val_share is given, but it takes"):
        open_dataset("shapes", "train", val_share=0.5)
    with pytest.raises(ValueError, match="val_share is 0"):
        open_dataset("folder", "train", root=flat, val_share=0.0)
    with pytest.raises(ValueError, match=r"val_share 1 leaves cat no training image, and 1 more"):
        open_dataset("folder", "train", root=flat, val_share=1)
    assert len(open_dataset("folder", "val", root=flat, val_share=1)) == 2 * COUNT


def test_a_run_lists_its_split_and_is_scored_on_it(flat, tmp_path, capsys):
    content = {
        "model": {"name": "cifar_resnet20", "options": {"depths": [1, 1, 1]}},
        "data": {"name": "folder", "root": str(flat), "image_size": 16, "val_share": 0.25},
        "batch": 8,
    }
    runs.train(Recipe.model_validate(content), tmp_path / "run")
    with (tmp_path / "run/split.csv").open() as file:
        rows = {row["name"]: row["split"] for row in csv.DictReader(file)}
    for split in ("train", "val"):
        assert {name for name, part in rows.items() if part == split} == {*names(flat, split)}
    assert [*rows] == sorted(rows)
    known = Run(tmp_path / "run")
    assert len(known.data("val")) == len(names(flat, "val"))
    assert not known.data("val").fingerprint().keys() ^ {"cat", "dog"}
    capsys.readouterr()
    # Another file is another set: a resume says which.
    shutil.copytree(flat, tmp_path / "root")
    for number in range(20):
        picture(tmp_path / f"root/cat/new {number}.png")
    moved = content | {"data": {**content["data"], "root": str(tmp_path / "root")}}
    with pytest.raises(UserError, match=r"images: .* more in 'cat'"):
        runs.train(Recipe.model_validate(moved), tmp_path / "run", resume=True)


@pytest.mark.parametrize("share", [0.25, None])
def test_images_of_another_root_are_scored_as_asked(flat, tmp_path, capsys, share):
    """By a run that holds out a share, or one on train and val: all of class folders, or a share, said."""
    halves = tmp_path / "halves"
    for name in names(flat, "train"):
        picture(halves / "train" / name)
    for name in names(flat, "val"):
        picture(halves / "val" / name, 91)
    root = flat if share else halves
    data = {"name": "folder", "root": str(root), "image_size": 16, "val_share": share}
    model = {"name": "cifar_resnet20", "options": {"depths": [1, 1, 1]}}
    runs.train(Recipe.model_validate({"model": model, "data": data, "batch": 8}), tmp_path / "run")
    test = tmp_path / "test"
    for number in range(30):
        picture(test / f"{('cat', 'dog')[number % 2]}/test {number}.png", number)
    capsys.readouterr()

    def scored(*words):
        code = cli.main(["eval", str(tmp_path / "run"), *words])
        said = capsys.readouterr()
        return code, said.out.partition("\n")[0], said.err

    code, title, _ = scored("--data.root", str(test), "--data.val-share", "1")
    assert (code, "30 images of other data" in title) == (0, True)
    code, title, err = scored("--data.root", str(test))
    if share is None:
        assert code == 2
        assert "(to score all: 1)" in err
    else:
        part = len(names(test, "val"))
        assert 0 < part < 30
        assert f"{part} images of other data" in title
        assert f"of {test} the share of 0.25 is scored" in err
        assert "--data.val-share 1 scores all" in err
    code, title, err = scored("--data.root", str(halves))
    assert (code, f"{len(names(flat, 'val'))} " in title, "--data.val-share" in err) == (0, True, False)
    code, _, err = scored("--data.val-share", "1")
    assert (code, "goes with --data.root" in err) == (2, True)


def test_val_size_is_of_a_run_s_own_images_wherever_they_lie(tmp_path, capsys):
    """Of another root all are scored, be they more or fewer."""
    root = tmp_path / "root"
    for split, number in product(("train", "val"), range(12)):
        picture(root / split / ("cat", "dog")[number % 2] / f"{number}.png", number)
    data = {"name": "folder", "root": str(root), "image_size": 16, "val_size": 6}
    model = {"name": "cifar_resnet20", "options": {"depths": [1, 1, 1]}}
    runs.train(Recipe.model_validate({"model": model, "data": data, "batch": 8}), tmp_path / "run")
    for images in (4, 30):
        for number in range(images):
            picture(tmp_path / f"{images}/val/{('cat', 'dog')[number % 2]}/test {number}.png", number)
    moved = root.rename(tmp_path / "moved")
    capsys.readouterr()
    for where, words in (
        (moved, "6 held-out"),
        *((tmp_path / f"{n}", f"{n} images of other") for n in (4, 30)),
    ):
        assert cli.main(["eval", str(tmp_path / "run"), "--data.root", str(where)]) == 0
        assert f", {words}" in capsys.readouterr().out.partition("\n")[0]


ENDINGS = {".gif": "GIF", ".tif": "TIFF", ".pgm": "PPM", ".jfif": "JPEG", ".avif": "AVIF", ".webp": "WEBP"}


def test_every_format_is_taken_and_16_bits_of_grey_are_scaled(tmp_path):
    kinds = {end: form for end, form in ENDINGS.items() if form != "AVIF" or features.check("avif")}
    for split in ("train", "val"):
        for ending, form in kinds.items():
            (tmp_path / split / "a").mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8), 100).save(tmp_path / split / f"a/1{ending}", form)
        wide = Image.fromarray(np.full((8, 8), 100 * 257, dtype=np.uint16))
        wide.save(tmp_path / split / "a/wide.png")
    images = open_dataset("folder", "train", root=tmp_path, image_size=8)
    assert len(images) == len(kinds) + 1
    assert all(ending in SUFFIXES for ending in kinds)
    pixels = images.pixels([(0, index) for index in range(len(images))])
    assert np.abs(pixels.astype(int) - 100).max() <= 2


def test_a_share_is_given_on_the_command_line(flat, tmp_path, capsys):
    assert cli.main(["train", "surgery", "--data.root", str(flat), "--data.val-share", "2"]) == 2
    assert "val_share" in capsys.readouterr().err
