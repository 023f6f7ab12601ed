"""What does not fit is found before training starts: one line, with the file and the image."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detection_files import CATEGORIES, coco_content, polygon, voc_xml, write_coco, write_voc
from faster_coco_eval.core import mask as rle
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from attneck import cli
from attneck.data.annotated import read_annotations
from attneck.data.detection import open_detection
from attneck.data.readers.annotations import Object, Record, object_problem

RUNS = {"size": [60, 80], "counts": [600, 60 * 20, 60 * 60 - 600]}
GOOD = voc_xml(40, 30, [("dog", 0, [3, 4, 20, 30])])


def first(**change: Any) -> Callable[[Any], None]:
    """Changes the first annotation, of image 7 (a.png), 80 × 60."""

    def apply(content: Any) -> None:
        content["annotations"][0] |= change

    return apply


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (first(category_id=2), "its category_id 2 is none of the file's 3 categories"),
        (first(bbox=[10, 20, 72, 10]), r"its box \[10, 20, 72, 10\] .* reaches out of the image's 80 x 60"),
        (first(bbox=[-3, 20, 10, 10]), r"its box \[-3, 20, 10, 10\] .* reaches out"),
        (
            first(bbox=[5, 20, -3, 10]),
            r"its box \[5, 20, -3, 10\] \(x, y, width, height\) has a negative side",
        ),
        (first(bbox=[5, 20, 10]), "bbox: List should have at least 4 items"),
        (first(bbox=["5", 20, 10, 10]), r"bbox\.0 is '5': give a number:"),
        (first(area="4"), "area is '4': give a number:"),
        (first(iscrowd=2), "iscrowd is 2: give a number less than or equal to 1:"),
        (
            first(segmentation=RUNS | {"size": [80, 60]}),
            r"its mask is of size \[80, 60\], the image of \[60, 80\]",
        ),
        (
            first(segmentation=RUNS | {"counts": [10, 10]}),
            "run lengths of its mask add up to 20 pixels, not to its 4800",
        ),
        (
            first(segmentation=RUNS | {"counts": "zzz"}),
            "run lengths of its mask are damaged",
        ),
        (first(segmentation={"size": [60, 80]}), "run lengths of its mask are damaged"),
        (
            first(segmentation=polygon(1, 1, 500, 5)),
            r"a polygon of its mask reaches \(501, 6\), out of the image's",
        ),
        (first(segmentation=[[1, 2, 3, 4]]), "a polygon of its mask is not x, y of three points or more"),
        (first(segmentation=[[1, 2, 3, 4, 5, 6, 7]]), "a polygon of its mask is not x, y of three points"),
        (first(segmentation=[["1", 2, 3, 4, 5, 6]]), "a polygon of its mask is not x, y of three points"),
        (first(segmentation=[[[1], 2, 3, 4, 5, 6]]), "a polygon of its mask is not x, y of three points"),
        (first(segmentation="runs"), "its segmentation is neither polygons nor run lengths"),
        (first(segmentation=[]), "it has no mask"),
        (
            first(bbox=[44, 20, 9, 9]),
            r"its box and its mask are apart: x is 44 to 53 in the box, 10\.5 to 40\.5 in the mask",
        ),
        (first(bbox=[20, 9, 9, 9]), "are apart: y is 9 to 18 in the box, 20 to 45.25 in the mask"),
        (first(id=5), "another annotation has its id"),
    ],
)
def test_an_annotation_that_does_not_fit(tmp_path: Path, change: Callable[[Any], None], message: str) -> None:
    content = coco_content()
    change(content)
    file = write_coco(tmp_path, content)
    number = 5 if content["annotations"][0]["id"] == 5 else 1
    name = r"( \(a\.png\))?"
    with pytest.raises(
        ValueError, match=rf"^coco: {file}: image 7{name}: annotation {number}: .*{message}"
    ) as caught:
        open_detection("coco", "train", root=tmp_path)
    assert "\n" not in str(caught.value)


def test_an_annotation_of_no_image_and_one_that_is_none(tmp_path: Path) -> None:
    content = coco_content()
    content["annotations"] += [content["annotations"][0] | {"id": 44, "image_id": 8}, "crowd"]
    file = write_coco(tmp_path, content)
    problems = read_annotations("coco", "train", tmp_path).problems
    assert problems == [
        f"{file}: image 8: annotation 44: the file lists no image of this id",
        f"{file}: image None: annotation None: it is 'crowd': give its fields in braces",
    ]
    with pytest.raises(ValueError, match=r"\(2 problems; attneck data check coco lists them\)$"):
        open_detection("coco", "train", root=tmp_path)


def test_boxes_alone_need_no_mask_and_no_area(tmp_path: Path) -> None:
    content = coco_content()
    content["annotations"][0] |= {"segmentation": [[1, 2, 3, 4]]}  # a line, as some tools write
    del content["annotations"][0]["area"]
    write_coco(tmp_path, content)
    with pytest.raises(ValueError, match="a polygon of its mask"):
        open_detection("coco", "train", root=tmp_path)
    _, target = open_detection("coco", "train", root=tmp_path, masks=False)[0, 0]
    assert target["area"][0] == 30 * 25.25  # its box's
    assert "masks" not in target


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON, or cut short"),
        (json.dumps(coco_content())[:-40], "not JSON, or cut short"),
        ("[" * 100_000, "not JSON, or cut short"),
        ("\x89PNG", "not JSON, or cut short"),
        ("[1, 2]", "no list of images in it: give COCO's instances JSON"),
        (json.dumps({**coco_content(), "annotations": {}}), "no list of annotations in it"),
        (json.dumps({**coco_content(), "categories": []}), "it lists no categories"),
        (json.dumps({**coco_content(), "categories": CATEGORIES * 2}), "2 categories are called 1: rename"),
        (json.dumps({**coco_content(), "images": [{"id": 1}]}), r"images\[0\]: file_name: Field required"),
        (json.dumps({**coco_content(), "images": coco_content()["images"] * 2}), "2 images are called 7"),
        (
            json.dumps(coco_content()).replace('"id": 7', '"id": "7"'),
            r"images\[0\]: id is '7': give a whole number$",
        ),
        (
            json.dumps(coco_content()).replace('"width": 80', '"width": 80.0'),
            r"images\[0\]: width is 80.0: give a whole number$",
        ),
        (
            json.dumps(coco_content()).replace('"width": 80', '"width": 0'),
            r"images\[0\]: width is 0: give a number greater than 0$",
        ),
        (json.dumps(coco_content()).replace('"a.png"', '"a\\n.png"'), "images.0.: file_name: .* is no name"),
        (json.dumps(coco_content()).replace('"a.png"', '"../a.png"'), "leads out of the images' folder"),
        (json.dumps(coco_content()).replace('"a.png"', '"/a.png"'), "leads out of the images' folder"),
        (json.dumps(coco_content()).replace('"id": 7', '"id": 8, "id": 7'), "'id' is given 2 times in one"),
    ],
)
def test_a_file_that_is_not_cocos(tmp_path: Path, text: str, message: str) -> None:
    file = write_coco(tmp_path, coco_content())
    file.write_bytes(text.encode("latin1"))
    with pytest.raises(ValueError, match=f"^coco: {file}: .*{message}") as caught:
        open_detection("coco", "train", root=tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_files_are_named(tmp_path: Path) -> None:
    file = write_coco(tmp_path, coco_content())
    (tmp_path / "coco" / "train2017" / "b.jpg").unlink()
    with pytest.raises(ValueError, match=rf"{file}: image 3 \(b\.jpg\): .*b\.jpg is missing"):
        open_detection("coco", "train", root=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"instances_val2017\.json is missing: .* must hold coco/"):
        open_detection("coco", "val", root=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"voc2007: .*train\.txt is missing: .* must hold VOCdevkit"):
        open_detection("voc2007", "train", root=tmp_path)


def test_an_image_of_another_size_is_refused_when_it_is_read(tmp_path: Path) -> None:
    write_coco(tmp_path, coco_content())
    Image.new("RGB", (60, 80)).save(tmp_path / "coco" / "train2017" / "a.png")
    dataset = open_detection("coco", "train", root=tmp_path)
    with pytest.raises(
        ValueError, match=r"image 7 \(.*a\.png\) is of 60 x 80 pixels, its annotation says 80 x 60"
    ):
        dataset[0, 0]


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        (
            voc_xml(40, 30, [("unicorn", 0, [1, 1, 9, 9])]),
            "its class 'unicorn' is none of VOC's 20: write a set of your own classes as COCO's JSON",
        ),
        (
            voc_xml(40, 30, [("dog", 0, [3, 4, 42, 30])]),
            r"dog: its box \[2, 3, 40, 27\] .* reaches out of the image's",
        ),
        (
            voc_xml(40, 30, [("dog", 0, [9, 4, 2, 30])]),
            r"dog: its box \[8, 3, -6, 27\] .* has a negative side",
        ),
        (GOOD.replace("<xmin>3</xmin>", "<xmin>left</xmin>"), "its bndbox/xmin is 'left', not a number"),
        (GOOD.replace("<xmin>3</xmin>", ""), "its bndbox/xmin is '', not a number"),
        (GOOD.replace("<width>40</width>", "<width>inf</width>"), "its size/width is 'inf', not a number"),
        (GOOD.replace("<width>40</width>", "<width>0</width>"), "its size is 0 x 30"),
        (GOOD.replace("<difficult>0<", "<difficult>2<"), "its difficult is 2: give 0 or 1"),
        (GOOD.replace("<name>dog<", "<name>cat</name><name>dog<"), "its name is given 2 times: leave one"),
        (
            GOOD.replace("<object>", "<objects><object>").replace("</object>", "</object></objects>"),
            "an object of it lies inside another element",
        ),
        (GOOD[:-20], "not XML"),
        ("", "not XML"),
        (f'<!DOCTYPE a [<!ENTITY b "bb">]>{GOOD}', "it has a DOCTYPE, which VOC's files have not"),
        (f'<!DOCTYPE a SYSTEM "file:///etc/passwd">{GOOD}', "it has a DOCTYPE"),
    ],
)
def test_an_xml_that_does_not_fit(tmp_path: Path, xml: str, message: str) -> None:
    folder = write_voc(tmp_path, {"000001": GOOD, "000002": xml})
    with pytest.raises(
        ValueError, match=rf"^voc2007: {folder}/000002\.xml: image 000002: .*{message}"
    ) as caught:
        open_detection("voc2007", "train", root=tmp_path)
    assert "\n" not in str(caught.value)


def test_vocs_missing_files_are_named(tmp_path: Path) -> None:
    folder = write_voc(tmp_path, dict.fromkeys(("000001", "000002", "000003"), GOOD))
    (folder / "000001.xml").unlink()
    (folder.parent / "JPEGImages" / "000003.jpg").unlink()
    first, second = read_annotations("voc2007", "train", tmp_path).problems
    assert first == f"{folder}/000001.xml: image 000001: it is missing"
    assert second.endswith("JPEGImages/000003.jpg is missing")
    for names, says in {
        "": "no images",
        "../JPEGImages/000002": r"'\.\./JPEGImages/000002': give names of images, without their folder",
        "000002\n000002": "'000002' 2 times: take out all but one",
    }.items():
        (folder.parent / "ImageSets" / "Main" / "train.txt").write_text(f"{names}\n")
        with pytest.raises(ValueError, match=rf"train\.txt lists {says}"):
            open_detection("voc2007", "train", root=tmp_path)


def test_a_name_of_vocs_lists_may_have_spaces(tmp_path: Path) -> None:
    """It is the whole line; a class's own list has a flag after each, which no image has."""
    names = ("photo", "photo copy", "photo 1", "photo 0", "b")
    folder = write_voc(tmp_path, dict.fromkeys(names, GOOD))
    for text, read in {
        "photo copy\nphoto 1\nphoto": ["photo copy", "photo 1", "photo"],
        "photo 1\nphoto 0": ["photo 1", "photo 0"],
        "photo copy  1\nphoto 1 -1\nb  0": ["photo copy", "photo 1", "b"],
    }.items():
        (folder.parent / "ImageSets" / "Main" / "train.txt").write_text(f"{text}\n")
        dataset = open_detection("voc2007", "train", root=tmp_path)
        assert [Path(dataset.record(i).file).stem for i in range(len(dataset))] == read
    for text in ("b 1\nphoto", "b 1\nphoto 1", "b 1\nelse"):
        (folder.parent / "ImageSets" / "Main" / "train.txt").write_text(f"{text}\n")
        problems = read_annotations("voc2007", "train", tmp_path).problems
        missing = ["b 1", "else"] if "else" in text else ["b 1"]
        assert [Path(problem.removesuffix(".jpg is missing")).name for problem in problems] == missing


def shares(box: bool, mask: bool) -> Any:
    """COCO's content whose boxes and polygons are shares of their image; a crowd's run lengths stay."""
    content = coco_content()
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    for row in content["annotations"]:
        size = sizes[row["image_id"]]
        if box:
            row["bbox"] = [number / size[i % 2] for i, number in enumerate(row["bbox"])]
        if mask and isinstance(row["segmentation"], list):
            row["segmentation"] = [
                [number / size[i % 2] for i, number in enumerate(polygon)] for polygon in row["segmentation"]
            ]
    return content


@pytest.mark.parametrize(("box", "mask"), [(True, True), (True, False), (False, True), (False, False)])
def test_shares_of_the_image_are_no_pixels(tmp_path: Path, box: bool, mask: bool) -> None:
    """One line for a split, whatever becomes of each of its objects; masks that are not asked for pass."""
    file = write_coco(tmp_path, shares(box, mask))
    found = ["boxes"] * box + ["polygons"] * mask
    problems = read_annotations("coco", "train", tmp_path, masks=True).problems
    assert [problem.split(": ")[1] for problem in problems] == [
        f"all its {what} lie within 0 … 1" for what in found
    ]
    if found:
        with pytest.raises(ValueError, match=rf"^coco: {file}: all its {found[0]} .* shares of the image"):
            open_detection("coco", "train", root=tmp_path)
    assert len(read_annotations("coco", "train", tmp_path, masks=False).problems) == box


def test_yolo_s_middles_are_shares_too(tmp_path: Path) -> None:
    """A box of half the image and more around x and y reaches past 1."""
    content = shares(box=True, mask=False)
    for row in content["annotations"]:
        row["bbox"] = [0.5, 0.5, 0.9, 0.8]
    write_coco(tmp_path, content)
    (problem,) = read_annotations("coco", "train", tmp_path, masks=False).problems
    assert "all its boxes lie within 0 … 1" in problem


def test_a_few_small_boxes_are_no_shares(tmp_path: Path) -> None:
    """One box in pixels is enough."""
    content = shares(box=True, mask=False)
    content["annotations"][2]["bbox"] = [60, 5, 20, 20]
    write_coco(tmp_path, content)
    assert read_annotations("coco", "train", tmp_path, masks=False).problems == []


def test_boxes_of_no_size_are_neither_shares_nor_apart_from_their_mask(tmp_path: Path) -> None:
    """They are left out of training."""
    content = coco_content()
    content["annotations"] = [row | {"bbox": [0, 0, 0, 0]} for row in content["annotations"]]
    write_coco(tmp_path, content)
    assert read_annotations("coco", "train", tmp_path, masks=True).problems == []


def test_boxes_may_reach_a_pixel_over() -> None:
    for box, fits in (([-1, -1, 12, 7], True), ([-1.1, 0, 5, 5], False), ([0, 0, 10, 6.1], False)):
        assert (object_problem(Object(1, 1, box, 1), 10, 5) is None) == fits


@settings(max_examples=50)
@given(st.integers(0, 2**32), st.integers(1, 90), st.integers(1, 90), st.floats(0, 1))
def test_run_lengths_as_text_are_those_of_the_mask(seed: int, height: int, width: int, share: float) -> None:
    """Of any mask that pycocotools' successor encodes; a piece of the text is not enough."""
    mask = np.asfortranarray(np.random.default_rng(seed).random((height, width)) < share, dtype=np.uint8)
    text = rle.encode(mask)["counts"].decode()
    box = [0, 0, width, height]
    runs = {"size": [height, width], "counts": text}
    assert object_problem(Object(1, 1, box, 1, segmentation=runs), width, height) is None
    record = Record(1, "", width, height, [Object(1, 1, box, 1, segmentation=runs)])
    np.testing.assert_array_equal(record.masks([0])[0], mask)
    runs = runs | {"counts": text[:-1]}
    assert object_problem(Object(1, 1, box, 1, segmentation=runs), width, height)


def test_check_lists_every_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = coco_content()
    file = write_coco(tmp_path, content)
    write_coco(tmp_path, content | {"categories": [*CATEGORIES, {"id": 91, "name": "hair brush"}]}, "val2017")
    folder = tmp_path / "coco" / "train2017"
    content["annotations"][0]["category_id"] = 4
    content["annotations"][2]["bbox"] = [70, 5, 20, 20]
    file.write_text(json.dumps(content))
    Image.new("RGB", (9, 9)).save(folder / "b.jpg")
    (folder / "c.png").write_bytes((folder / "c.png").read_bytes()[:99])
    (folder / "a.png").unlink()

    assert cli.main(["data", "check", "coco", "--root", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[:2] == [
        "coco train: 3 images, 3 objects, 3 classes (images without objects: 1, crowds: 1, "
        "boxes of no size, left out of training: 1)",
        "coco val: 3 images, 5 objects, 4 classes (images without objects: 1, crowds: 1, "
        "boxes of no size, left out of training: 1)",
    ]
    assert [line.split(": ", 1)[1][:60] for line in lines[2:5]] == [
        "image 7 (a.png): annotation 1: its category_id 4 is none of ",
        "image 7 (a.png): annotation 5: its box [70, 5, 20, 20] (x, y",
        f"image 7 (a.png): {folder / 'a.png'} is missing"[:60],
    ]
    assert "image 3 (" in lines[5]
    assert "is of 9 x 9 pixels, its annotation says 50 x 70" in lines[5]
    assert "coco: cannot read" in lines[6]
    assert lines[7].startswith("coco: class 4, in the order of the source's ids, is not there in train and ")
    assert "'hair brush' in val: give each split the same categories" in lines[7]
    assert len(lines) == 8
    assert err.splitlines()[-1] == (
        "attneck: coco: 6 problems, listed above: mend the annotations or take them out"
    )

    assert cli.main(["data", "check", "coco", "--root", str(tmp_path), "--json"]) == 2
    assert len(json.loads(capsys.readouterr().out)["problems"]) == 6


@pytest.mark.parametrize("masks", [True, False])
def test_check_counts_small_boxes_and_masks_without_a_pixel(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], masks: bool
) -> None:
    """As run lengths and as polygons: one of no area, one between the middles of pixels. Crowds aside."""
    content = coco_content()
    row = content["annotations"][0]
    empty = {"size": [60, 80], "counts": [60 * 80]}
    thin = [[*row["bbox"][:2], 30, 0.5], [10.5, 20, 0.9, 25], [10.5, 20, 1, 1]]
    content["annotations"] += [
        row | {"id": 100 + i} | change
        for i, change in enumerate(
            [
                *({"bbox": box} for box in thin),
                {"segmentation": empty},
                {"segmentation": empty, "iscrowd": 1},
                {"segmentation": [[20, 30, 30, 40, 20, 30]]},
                {"segmentation": polygon(20.1, 30.1, 0.2, 0.2)},
            ]
        )
    ]
    write_coco(tmp_path, content)
    words = ["data", "check", "coco", "--root", str(tmp_path)] + ["--no-masks"] * (not masks)
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "boxes under a pixel a side, which scale_jitter may leave out of training: 2" in out
    assert ("masks without a pixel, left out of training: 3" in out) == masks
    dataset = open_detection("coco", "train", root=tmp_path, masks=masks)
    record = dataset.record(0)
    assert len(dataset[0, 0][1]["labels"]) == len(record.trained_on()) - 3 * masks


@pytest.mark.parametrize(("change", "said"), [({"segmentation": []}, True), ({"category_id": 9}, False)])
def test_check_says_what_passes_boxes_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], said: bool
) -> None:
    content = coco_content()
    first(**change)(content)
    write_coco(tmp_path, content)
    assert cli.main(["data", "check", "coco", "--root", str(tmp_path)]) == 2
    assert ("or give --no-masks, for a detector of boxes alone" in capsys.readouterr().err) == said


def test_check_passes_what_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_voc(tmp_path, {"1": GOOD, "2": voc_xml(40, 30, [("cow", 1, [1, 1, 5, 5])])}, "test")
    assert cli.main(["data", "check", "voc2007", "--root", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "voc2007 test: 2 images, 2 objects, 20 classes (difficult objects: 1)\n"
    assert cli.main(["data", "check", "voc2007", "--root", str(tmp_path), "--md5", "00"]) == 2
    assert "voc2007: md5 is given, but only cifar100's files are checked" in capsys.readouterr().err
    assert cli.main(["data", "check", "voc2012", "--root", str(tmp_path)]) == 2
    assert "VOC2012/ImageSets/Main/train.txt is missing" in capsys.readouterr().err


def test_check_counts_photos_that_their_exif_turns_and_refuses_a_set_of_two_minds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By 180° the size is the same: nothing says which way an annotation has it, if not the set's others."""
    annotations = write_voc(tmp_path, dict.fromkeys(("1", "2", "3"), GOOD), "test")
    photos = annotations.parent / "JPEGImages"

    def turn(name: str, orientation: int) -> None:
        exif = Image.Exif()
        exif[274] = orientation
        Image.new("RGB", (40, 30)).save(photos / f"{name}.jpg", exif=exif)

    turn("1", 3)
    assert cli.main(["data", "check", "voc2007", "--root", str(tmp_path)]) == 0
    assert "3 objects, 20 classes (photos that EXIF turns to the same size, whose boxes are taken " in (
        out := capsys.readouterr().out
    )
    assert out.endswith("of the upright one: 1)\n")
    turn("2", 6)  # its annotation has the size that it has in the file
    assert cli.main(["data", "check", "voc2007", "--root", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert "(photos annotated as they lie in the file, before EXIF turns them: 1, photos that EXIF" in out
    assert f"EXIF turns 1 more whose size does not say so ({photos / '1.jpg'})" in out
    assert "1 problem, listed above" in err


def test_check_counts_what_it_does_not_print(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = coco_content()
    content["annotations"] += [
        content["annotations"][0] | {"id": 100 + i, "category_id": 99} for i in range(60)
    ]
    write_coco(tmp_path, content)
    assert cli.main(["data", "check", "coco", "--root", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out.count("is none of the file's 3 categories") == 50
    assert out.endswith("…\n")
    assert "60 problems" in err


@pytest.mark.data
@pytest.mark.parametrize("name", ["coco", "voc2007"])
def test_the_real_sets_pass(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "check", name]) == 0
    assert "train: " in capsys.readouterr().out
