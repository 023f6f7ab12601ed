"""Annotations changed in every way: what means the same is read, the rest is one line a problem, exit 2.

`attneck train` and `attneck data check` must agree about each.
"""
# ruff: noqa: E501 - a case a line

import copy
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from detection_files import coco_content, polygon, voc_xml, write_coco, write_voc
from faster_coco_eval.core import mask as rle
from fault_cases import LONG, some

from attneck import cli
from attneck.data.detection import open_detection

LINE = 300
NAN, INF = float("nan"), float("inf")
MISSING = object()
VALUES = {
    "missing": MISSING,
    "null": None,
    "true": True,
    "false": False,
    "text": "1",
    "long text": "x" * 100_000,
    "lines": "a\nb\x1b[2J\ud800",
    "fraction": 2.5,
    "nan": NAN,
    "infinity": -INF,
    "negative": -1,
    "huge": 2**70,
    "of 400 digits": 10**400,
    "list": [1],
    "object": {"a": {"b": 1}},
}


def whole(least: int, most: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and least <= value < most


def number(value: Any) -> bool:
    """Whether it is one that the box and the polygon under test may have in their first place."""
    return type(value) in (int, float) and -1 <= value <= 40


# Where each value goes, and which values there mean something.
FIELDS: dict[tuple[Any, ...], Callable[[Any], bool]] = {
    ("images", 0, "id"): lambda value: False,  # the annotations' image_id is another then
    ("images", 0, "file_name"): lambda value: False,
    ("images", 0, "width"): lambda value: False,
    ("images", 0, "height"): lambda value: False,
    ("annotations", 0, "id"): lambda value: False,  # 1 and 5 are taken
    ("annotations", 0, "image_id"): lambda value: False,
    ("annotations", 0, "category_id"): lambda value: False,
    ("annotations", 0, "bbox"): lambda value: False,
    ("annotations", 0, "bbox", 0): number,
    ("annotations", 0, "area"): lambda value: (
        value is MISSING or value is None or (type(value) in (int, float) and 0 <= value < 1e308)
    ),
    ("annotations", 0, "iscrowd"): lambda value: value is MISSING or value in (0, 1, "1"),
    ("annotations", 0, "segmentation"): lambda value: False,
    ("annotations", 0, "segmentation", 0): lambda value: False,
    ("annotations", 0, "segmentation", 0, 0): number,
    ("annotations", 1, "segmentation", "size"): lambda value: False,
    ("annotations", 1, "segmentation", "counts"): lambda value: False,
    ("annotations", 1, "segmentation", "counts", 0): lambda value: False,
    ("categories", 0, "id"): lambda value: False,
    ("categories", 0, "name"): lambda value: False,  # the other split's are others then
    ("images",): lambda value: False,
    ("images", 0): lambda value: False,
    ("annotations",): lambda value: False,
    ("annotations", 0): lambda value: value is MISSING,
    ("categories",): lambda value: False,
    ("categories", 0): lambda value: False,
}


def changed(path: tuple[Any, ...], value: Any) -> Any:
    """COCO's content with `value` at the place."""
    content = copy.deepcopy(coco_content())
    place: Any = content
    for step in path[:-1]:
        place = place[step]
    if value is MISSING:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return content


def first(**change: Any) -> Any:
    """COCO's content with the first annotation, of an image of 80 × 60, changed."""
    content = copy.deepcopy(coco_content())
    content["annotations"][0] |= change
    return content


def image(**change: Any) -> Any:
    content = copy.deepcopy(coco_content())
    content["images"][0] |= change
    return content


def nest(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def runs(counts: Any, size: Any = (60, 80)) -> Any:
    return first(segmentation={"size": list(size), "counts": counts})


GOOD = coco_content()
TEXT = json.dumps(GOOD)
PIXELS = 60 * 80
AS_TEXT = rle.encode(np.asfortranarray(np.eye(60, 80, 9, dtype=np.uint8)))
AS_TEXT = {"size": [60, 80], "counts": AS_TEXT["counts"].decode()}
# (what, content or bytes, whether it means something)
COCO: list[tuple[str, Any, bool]] = [
    *(
        (f"{'.'.join(map(str, path))} {what}", changed(path, value), means(value))
        for path, means in FIELDS.items()
        for what, value in VALUES.items()
        if not (value is MISSING and isinstance(path[-1], int) and len(path) > 3)
    ),
    ("box outside", first(bbox=[90, 5, 9, 9]), False),
    ("box over the edge", first(bbox=[70, 5, 20, 9]), False),
    ("box of no side", first(bbox=[10, 5, 0, 9]), True),
    ("box of a negative side", first(bbox=[10, 5, -3, 9]), False),
    ("box of 1e308", first(bbox=[10, 5, 1e308, 1e308]), False),
    ("box of three", first(bbox=[1, 2, 3]), False),
    ("box of five", first(bbox=[1, 2, 3, 4, 5]), False),
    ("box nested", first(bbox=[[1, 2, 3, 4]]), False),
    ("polygon of two points", first(segmentation=[[1, 2, 3, 4]]), False),
    ("polygon of an odd length", first(segmentation=[[1, 2, 3, 4, 5, 6, 7]]), False),
    ("polygon empty", first(segmentation=[[]]), False),
    ("polygons flat", first(segmentation=[1, 2, 3, 4, 5, 6]), False),
    ("polygon of pairs", first(segmentation=[[[1, 2], [3, 4], [5, 6]]]), False),
    ("polygon one level too deep", first(segmentation=[polygon(1, 1, 5, 5)]), False),
    ("polygon with NaN at its end", first(segmentation=[[1, 2, 3, 4, 5, NAN]]), False),
    ("polygon with a boolean inside", first(segmentation=[[1, 2, 3, 4, 5, True]]), False),
    ("polygon outside", first(segmentation=polygon(100, 100, 5, 5)), False),
    ("polygons nested 60 deep", first(segmentation=nest(60)), False),
    ("polygons nested 900 deep", first(segmentation=nest(900)), False),
    ("an unknown field 900 deep", first(notes=nest(900)), True),
    ("an unknown field in the runs 900 deep", first(segmentation=GOOD["annotations"][1]["segmentation"] | {"notes": nest(900)}), True),
    ("runs of another size", runs([PIXELS], (80, 60)), False),
    ("runs of 40,000 x 40,000", runs([40_000**2], (40_000, 40_000)), False),
    ("runs of fractions", runs([600.0, PIXELS - 600.0]), False),
    ("runs whose size is fractions", runs([PIXELS], (60.0, 80.0)), True),
    ("runs as text", first(segmentation=AS_TEXT), True),
    ("runs too few", runs([600]), False),
    ("runs too many", runs([600, PIXELS]), False),
    ("runs negative, with a right sum", runs([-600, PIXELS + 600]), False),
    ("runs wrapping at 2^32", runs([2**32, PIXELS]), False),
    ("runs of booleans", runs([True, PIXELS - 1]), False),
    ("runs of texts", runs(["600", str(PIXELS - 600)]), False),
    ("runs nested", runs([[600, PIXELS - 600]]), False),
    ("runs empty", runs([]), False),
    ("runs an empty text", runs(""), False),
    ("runs text of no code", runs("zzzz"), False),
    ("runs text with a byte under 48", runs("!!"), False),
    ("runs text in Cyrillic", runs("жжж"), False),
    ("runs text that never ends", runs("o" * 100_000), False),
    ("runs text cut", runs("gT"), False),
    ("an image_id of no image", first(image_id=8), False),
    ("a category_id of no category", first(category_id=2), False),
    ("the same id twice", first(id=5), False),
    ("a category without annotations", GOOD | {"annotations": GOOD["annotations"][1:]}, True),
    ("no annotations", GOOD | {"annotations": []}, True),
    ("no images", GOOD | {"images": []}, False),
    ("no categories", GOOD | {"categories": []}, False),
    ("images twice", GOOD | {"images": GOOD["images"] * 2}, False),
    ("a file under two ids", GOOD | {"images": [*GOOD["images"], GOOD["images"][0] | {"id": 99}]}, False),
    ("categories twice", GOOD | {"categories": GOOD["categories"] * 2}, False),
    ("two categories of a name", changed(("categories", 0, "name"), "dog"), False),
    ("a category without a name", changed(("categories", 0, "name"), ""), False),
    ("categories renumbered in one split", changed(("categories", 0, "id"), 91), False),
    ("file_name of a folder above", image(file_name="../train2017/a.png"), False),
    ("file_name absolute", image(file_name="ABSOLUTE"), False),
    ("file_name with NUL", image(file_name="a.png\0"), False),
    ("file_name with lines", image(file_name="a\nb.png"), False),
    ("file_name of 100,000", image(file_name="a" * 100_000), False),
    ("file_name of a folder", image(file_name="."), False),
    ("file_name empty", image(file_name=""), False),
    ("width and height swapped", image(width=60, height=80), False),
    ("width of another file", image(width=81), False),
    ("width 0", image(width=0), False),
    ("empty", b"", False),
    ("spaces", b"   \n", False),
    ("NUL bytes", bytes(1000), False),
    ("cut in half", TEXT.encode()[: len(TEXT) // 2], False),
    ("cut by a byte", TEXT.encode()[:-1], False),
    ("something after it", TEXT.encode() + b"}", False),
    ("BOM", b"\xef\xbb\xbf" + TEXT.encode(), True),
    ("UTF-16", TEXT.encode("utf-16"), True),
    ("UTF-32", TEXT.encode("utf-32"), True),
    ("latin-1", TEXT.replace("a.png", "é.png").encode("latin-1"), False),
    ("a picture", b"\x89PNG\r\n\x1a\n" + bytes(range(256)), False),
    ("gzip", b"\x1f\x8b\x08\x00" + bytes(range(256)), False),
    ("a list", json.dumps([GOOD]).encode(), False),
    ("annotations alone", json.dumps(GOOD["annotations"]).encode(), False),
    ("a number", b"1", False),
    ("null", b"null", False),
    ("a text", b'"coco"', False),
    ("lists where objects belong", json.dumps({k: [list(r.values()) for r in v] for k, v in GOOD.items()}).encode(), False),
    ("an object where a list belongs", json.dumps({k: dict(enumerate(v)) for k, v in GOOD.items()}).encode(), False),
    ("nested 10^5 deep", b"[" * 100_000, False),
    ("nested 10^6 deep in a field", TEXT.replace('"images"', f'"notes": {"[" * 10**6}{"]" * 10**6}, "images"').encode(), False),
    ("a number of 10^6 digits", TEXT.replace('"id": 7', '"id": ' + "7" * 10**6).encode(), False),
    ("a box given twice", TEXT.replace('"bbox": [10.5', '"bbox": [1, 1, 2, 2], "bbox": [10.5', 1).encode(), False),
    ("annotations given twice", (TEXT[:-1] + ', "annotations": []}').encode(), False),
]  # fmt: skip


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("coco")
    write_coco(root, GOOD, "val2017")
    write_coco(root, GOOD)
    return root


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("voc")
    write_voc(root, {"000009": VOC_GOOD}, "val")
    write_voc(root, {"000001": VOC_GOOD, "000002": VOC_GOOD})
    return root


def refuses(words: list[str], capsys: pytest.CaptureFixture[str]) -> bool:
    """Whether the command ends with exit 2, one line on stderr and short ones on stdout, under two seconds."""
    capsys.readouterr()
    begin = time.process_time()
    code = cli.main(words)
    assert not LONG or time.process_time() - begin < 2
    out, err = capsys.readouterr()
    assert code in (0, 2), (code, err)
    if code == 2:
        assert len(err.splitlines()) == 1, err[:1000]
        assert err.startswith("attneck: "), err[:1000]
        assert "Traceback" not in err + out
        for line in (out + err).splitlines():
            assert len(line) <= LINE, line[:1000]
            assert line.isprintable(), line
    return code == 2


def trained_on(name: str, root: Path) -> list[Any]:
    """Every item of both splits, as training has them: ValueError for what does not fit."""
    sets = [open_detection(name, split, root=root) for split in ("val", "train")]
    if sets[0].classes != sets[1].classes:
        raise ValueError(f"{name}: the classes are not the same")
    return [dataset[0, i] for dataset in sets for i in range(len(dataset))]


def tried(name: str, root: Path, means_something: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """`data check` and training agree, and are right."""
    assert refuses(["data", "check", name, "--root", str(root)], capsys) is not means_something
    if means_something:
        assert trained_on(name, root)
        return
    with pytest.raises(ValueError, match=name[:3]) as caught:
        trained_on(name, root)
    assert len(str(caught.value)) <= LINE - len("attneck: "), str(caught.value)[:1000]
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(("what", "content", "means"), [pytest.param(*c, id=c[0]) for c in some(COCO, 24)])
def test_coco(what: str, content: Any, means: bool, coco: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if what == "file_name absolute":
        content["images"][0]["file_name"] = str(coco / "coco" / "train2017" / "a.png")
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    (coco / "coco" / "annotations" / "instances_train2017.json").write_bytes(data)
    tried("coco", coco, means, capsys)


VOC_GOOD = voc_xml(40, 30, [("dog", 0, [3, 4, 20, 30]), ("cat", 1, [5, 5, 9, 9])])


def put(old: str, new: str) -> bytes:
    """A good file with one piece of it, its first, replaced."""
    assert old in VOC_GOOD
    return VOC_GOOD.replace(old, new, 1).encode()


ENTITY = "&e{};"
LAUGHS = "".join(f'<!ENTITY e{i} "{10 * ENTITY.format(i - 1)}">' for i in range(1, 10))
LAUGHS = f'<!DOCTYPE annotation [<!ENTITY e0 "ha">{LAUGHS}]>'
BLOWUP = (
    f"""<!DOCTYPE annotation [<!ENTITY a '{100_000 * "a"}'>]><annotation>{100_000 * "&a;"}</annotation>"""
)
TEXTS = ("", " ", "left", "nan", "inf", "-1", "1e300", "1e999", "true", "2.5", "0x10", "1,5", "9" * 100_000)
VOC: list[tuple[str, bytes, bool]] = [
    *((f"width {t[:9]!r}", put("<width>40<", f"<width>{t}<"), False) for t in TEXTS),
    *((f"height {t[:9]!r}", put("<height>30<", f"<height>{t}<"), False) for t in TEXTS),
    *((f"xmin {t[:9]!r}", put("<bndbox><xmin>3<", f"<bndbox><xmin>{t}<"), t == "2.5") for t in TEXTS),
    *((f"ymax {t[:9]!r}", put("<ymax>30<", f"<ymax>{t}<"), False) for t in TEXTS),
    *((f"difficult {t[:9]!r}", put("<difficult>0<", f"<difficult>{t}<"), False) for t in TEXTS),
    *((f"name {t[:9]!r}", put("<name>dog<", f"<name>{t}<"), False) for t in TEXTS),
    ("no difficult", put("<difficult>0</difficult>", ""), True),
    ("no size", put("<size><width>40</width><height>30</height><depth>3</depth></size>", ""), False),
    ("no width", put("<width>40</width>", ""), False),
    ("no name", put("<name>dog</name>", ""), False),
    ("no bndbox", put("<bndbox><xmin>3</xmin><ymin>4</ymin><xmax>20</xmax><ymax>30</ymax></bndbox>", ""), False),
    ("no objects", voc_xml(40, 30, []).encode(), True),
    ("two sizes", put("<size>", "<size><width>9</width><height>9</height></size><size>"), False),
    ("two widths", put("<width>40<", "<width>4</width><width>40<"), False),
    ("two boxes of an object", put("<bndbox><xmin>3<", "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox><bndbox><xmin>3<"), False),
    ("two names of an object", put("<name>dog<", "<name>cat</name><name>dog<"), False),
    ("xmin twice", put("<bndbox><xmin>3<", "<bndbox><xmin>1</xmin><xmin>3<"), False),
    ("nested number", put("<bndbox><xmin>3<", "<bndbox><xmin><value>3</value><"), False),
    ("objects nested", f"<annotation>{VOC_GOOD}</annotation>".encode(), False),
    ("objects in a list of their own", VOC_GOOD.replace("<object>", "<objects><object>", 1).replace("</annotation>", "</objects></annotation>").encode(), False),
    ("size of another image", voc_xml(50, 60, [("dog", 0, [3, 4, 20, 30])]).encode(), False),
    ("size swapped", voc_xml(30, 40, [("dog", 0, [3, 4, 20, 30])]).encode(), False),
    ("box outside", voc_xml(40, 30, [("dog", 0, [50, 4, 60, 30])]).encode(), False),
    ("box turned round", voc_xml(40, 30, [("dog", 0, [20, 4, 3, 30])]).encode(), False),
    ("box of one pixel", voc_xml(40, 30, [("dog", 0, [20, 4, 20, 4])]).encode(), True),
    ("class with a capital", put("<name>dog<", "<name>Dog<"), False),
    ("class with lines", put("<name>dog<", "<name>dog\n\ncat<"), False),
    ("empty", b"", False),
    ("NUL bytes", bytes(1000), False),
    ("cut in half", VOC_GOOD.encode()[: len(VOC_GOOD) // 2], False),
    ("cut by a byte", VOC_GOOD.encode()[:-1], False),
    ("something after it", VOC_GOOD.encode() + b"<a/>", False),
    ("JSON", b'{"size": {"width": 40}}', False),
    ("HTML", b"<html><body>Not found</body></html>", False),
    ("BOM", b"\xef\xbb\xbf" + VOC_GOOD.encode(), True),
    ("UTF-16", VOC_GOOD.encode("utf-16"), True),
    ("latin-1, said", b'<?xml version="1.0" encoding="latin-1"?>' + put("<pose>Left", "<pose>\u00e9").decode().encode("latin-1"), True),
    ("latin-1, not said", put("<pose>Left", "<pose>\u00e9").decode().encode("latin-1"), False),
    *((f"encoding {name}", f'<?xml version="1.0" encoding="{name}"?>{VOC_GOOD}'.encode(), False) for name in ("klingon", "utf-7", "hex", "rot13", "zlib", "gb18030", "utf-32", "undefined", "idna", "x" * 1000)),
    *((f"encoding {name}", f'<?xml version="1.0" encoding="{name}"?>{VOC_GOOD}'.encode(), True) for name in ("ascii", "cp1252", "UTF-8")),
    ("billion laughs", LAUGHS.encode() + put("<pose>Left", "<pose>&e9;"), False),
    ("quadratic blow-up", BLOWUP.encode(), False),
    ("external entity", b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>' + put("<pose>Left", "<pose>&x;"), False),
    ("parameter entity", b'<!DOCTYPE a [<!ENTITY % x SYSTEM "file:///etc/passwd">%x;]>' + VOC_GOOD.encode(), False),
    ("DTD outside", b'<!DOCTYPE annotation SYSTEM "voc.dtd">' + VOC_GOOD.encode(), False),
    ("DTD empty", b"<!DOCTYPE annotation>" + VOC_GOOD.encode(), False),
    ("entity unknown", put("<pose>Left", "<pose>&nbsp;"), False),
    ("nested 10^5 deep", b"<a>" * 10**5 + b"</a>" * 10**5, False),
    ("nested 10^5 deep in a part", put("<pose>Left", f"<pose>{'<a>' * 10**5}{'</a>' * 10**5}"), True),
    ("10^5 attributes", put("<annotation>", "<annotation " + " ".join(f"a{i}=''" for i in range(10**5)) + ">"), True),
    ("an attribute twice", put("<annotation>", '<annotation a="" a="">'), False),
    ("namespace", put("<annotation>", '<annotation xmlns="http://voc">'), False),
]  # fmt: skip


@pytest.mark.parametrize(("content", "means"), [pytest.param(*c[1:], id=c[0]) for c in some(VOC, 16)])
def test_voc(content: bytes, means: bool, voc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (voc / "VOCdevkit" / "VOC2007" / "Annotations" / "000002.xml").write_bytes(content)
    tried("voc2007", voc, means, capsys)


LISTS: list[tuple[str, bytes, bool]] = [
    ("empty", b"", False),
    ("spaces", b" \n\n", False),
    ("BOM", b"\xef\xbb\xbf000001\n000002\n", True),
    ("UTF-16", "000001\n000002\n".encode("utf-16"), False),
    ("latin-1", b"000001\n\xe9\n", False),
    ("Windows lines", b"000001\r\n000002\r\n", True),
    ("a flag after the name", b"000001  1\n000002 -1\n", True),
    ("a folder above", b"000001\n../JPEGImages/000002\n", False),
    ("absolute", b"000001\n/etc/passwd\n", False),
    ("NUL", b"000001\n0000\x0002\n", False),
    ("twice", b"000001\n000001\n", False),
    ("an image that is not there", b"000001\n000003\n", False),
    ("with endings", b"000001.jpg\n", False),
    ("a name of 100,000", b"0" * 100_000, False),
    ("a picture", b"\x89PNG\r\n\x1a\n" + bytes(range(256)), False),
]


@pytest.mark.parametrize(("content", "means"), [pytest.param(*c[1:], id=c[0]) for c in some(LISTS, 4)])
def test_vocs_list(content: bytes, means: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_voc(tmp_path, {"000009": VOC_GOOD}, "val")
    write_voc(tmp_path, {"000001": VOC_GOOD, "000002": VOC_GOOD})
    (tmp_path / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main" / "train.txt").write_bytes(content)
    tried("voc2007", tmp_path, means, capsys)


MANY = 100_000 if LONG else 4_000


def many(count: int, side: int, **change: Any) -> Any:
    """One image, as wide and high as `side`, with `count` objects."""
    row = GOOD["annotations"][0] | {"bbox": [1, 1, 9, 9], "segmentation": polygon(1, 1, 9, 9)} | change
    image = {"id": 7, "file_name": "a.png", "width": side, "height": side}
    return GOOD | {"images": [image], "annotations": [row | {"id": i} for i in range(count)]}


def lines_run(work: Callable[[], Any]) -> int:
    """Lines of Python that `work` goes through, again and again in a loop: no clock, so no other program counts."""
    count = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("name", ["coco", "voc2007"])
def test_many_objects_take_work_in_proportion(name: str, tmp_path: Path) -> None:
    found = []
    for count in (MANY // 16, MANY // 4):
        root = tmp_path / str(count)
        if name == "coco":
            write_coco(root, many(count, 64))
        else:
            write_voc(root, {"000001": voc_xml(40, 30, [("dog", 0, [3, 4, 20, 30])] * count)})
        begin = time.process_time()
        open_detection(name, "train", root=root)  # imports too, which are not counted
        assert not LONG or time.process_time() - begin < 1e-4 * MANY
        found.append(lines_run(lambda root=root: open_detection(name, "train", root=root)))
    assert found[0] < found[1] < 5 * found[0], found


def test_problems_without_end_are_counted_and_few_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_coco(tmp_path, many(MANY, 64, category_id=5))
    assert cli.main(["data", "check", "coco", "--root", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 52
    assert f"{MANY:,} problems" in err
    with pytest.raises(ValueError, match=rf"\({MANY} problems; attneck data check coco lists them\)$"):
        open_detection("coco", "train", root=tmp_path)


def test_a_mask_of_40_000_pixels_a_side_is_not_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """1.6 GB, which the annotation says of its image too, and only the file's header does not."""
    side = 40_000
    content = many(1, 64, segmentation={"size": [side, side], "counts": [side, 9, side**2 - side - 9]})
    file = write_coco(tmp_path, content)
    write_coco(tmp_path, GOOD, "val2017")
    content["images"][0] |= {"width": side, "height": side}
    file.write_text(json.dumps(content))
    begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tried("coco", tmp_path, False, capsys)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - begin < 200 << 10


def test_masks_that_do_not_fit_into_memory_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_coco(tmp_path, many(5000, 1000))
    write_coco(tmp_path, GOOD, "val2017")
    assert refuses(["data", "check", "coco", "--root", str(tmp_path)], capsys)
    assert not refuses(["data", "check", "coco", "--no-masks", "--root", str(tmp_path)], capsys)
    with pytest.raises(ValueError, match=r"5,000 masks of 1000 x 1000 take 5 GiB, over the 4"):
        open_detection("coco", "train", root=tmp_path)


def test_training_says_it_in_one_line(coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import attneck.runs.train  # noqa: F401 - seconds of imports, before the clock starts

    file = coco / "coco" / "annotations" / "instances_train2017.json"
    words = ["train", "coco-1x", "--data.root", str(coco), "--out", str(tmp_path / "run")]
    for content in (first(bbox=[9]), first(segmentation=None), image(file_name="x" * 900), [GOOD]):
        file.write_text(json.dumps(content))
        assert refuses(words, capsys)
        assert not (tmp_path / "run").exists()
