"""The table of data sets: every row opens, and says how its splits are scored."""

import inspect
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, get_args

import pytest
from detection_files import coco_content, voc_xml, write_coco, write_voc

from attneck.data import table
from attneck.data.detection import open_detection
from attneck.data.readers import voc
from attneck.data.table import ONLY_WITH, SETS, open_data

ROWS = [(name, task) for name, data_set in SETS.items() for task in data_set.kinds]


@pytest.mark.parametrize(("name", "task"), ROWS)
def test_every_row_names_an_opener_whose_options_fit_it(name: str, task: str) -> None:
    kind = SETS[name].kinds[task]
    takes = inspect.signature(resolve_name(kind.opener)).parameters
    assert [*takes][:2] == ["name", "split"]
    assert all(option.kind is option.KEYWORD_ONLY for option in [*takes.values()][2:])
    assert {"augment", "seed", "size"} <= set(takes)
    assert ("root" in takes) == (not SETS[name].drawn)
    assert kind.augments[0] == "none"
    for option, augment in ONLY_WITH.items():
        if augment in kind.augments:
            assert option in takes
    if task == "detection":
        assert tuple(kind.ap) == kind.splits
        assert bool(kind.annotations) == (not SETS[name].drawn)
        if kind.annotations:
            assert callable(resolve_name(kind.annotations))


def test_recipes_and_commands_may_name_what_the_table_has() -> None:
    assert get_args(table.Name) == tuple(SETS)
    assert set(get_args(table.HeldOutSplit)) == {"train", "val", "trainval", "test"}
    assert set(get_args(table.TrainingSplit)) == {"train", "val", "trainval"}
    every = {a for data_set in SETS.values() for kind in data_set.kinds.values() for a in kind.augments}
    assert set(get_args(table.Augment)) == every


def test_another_task_s_set_is_refused_with_those_that_serve() -> None:
    says = r"^data set is 'coco': choose shapes, clear_shapes, relations, cifar100, folder$"
    with pytest.raises(ValueError, match=says):
        open_data("classification", "coco", "train")


def test_none_is_not_given() -> None:
    data = open_data("classification", "shapes", "val", size=3, image_size=None, root=None, md5=None)
    assert len(data) == 3
    assert data.image_size == 32


@pytest.mark.parametrize(
    ("name", "split", "rule"),
    [
        ("voc2007", "val", "11-point"),
        ("voc2007", "test", "11-point"),
        ("voc2012", "val", "area"),
        ("voc0712", "val", "area"),
        ("voc0712", "test", "11-point"),
        ("coco", "val", "coco"),
        ("shapes", "val", "coco"),
    ],
)
def test_the_rule_of_a_split_is_its_devkits(name: str, split: str, rule: str) -> None:
    assert SETS[name].kinds["detection"].ap[split] == rule


@pytest.mark.parametrize("name", voc.YEARS)
def test_2007_alone_is_scored_by_eleven_points(name: str) -> None:
    """Everingham et al. 2010: 11-point interpolation to 2009, the area from 2010 on."""
    for split, rule in SETS[name].kinds["detection"].ap.items():
        assert (rule == "11-point") == (voc.years(name, split) == ("2007",)), split


def test_voc0712_is_tested_on_2007(tmp_path: Path) -> None:
    """The objects of 2012's test images are not public; a list of them must not be taken for 2007's."""
    write_voc(tmp_path, {"000001": voc_xml(40, 30, [("dog", 0, [3, 4, 20, 30])])}, "test", "2007")
    write_voc(tmp_path, {"2008_1": voc_xml(40, 30, []), "2008_2": voc_xml(40, 30, [])}, "test", "2012")
    both, old = (open_detection(name, "test", root=tmp_path) for name in ("voc0712", "voc2007"))
    assert both.ground_truth() == old.ground_truth()
    assert len(both) == 1
    with pytest.raises(ValueError, match="split of voc2012 is 'test': choose train, val, trainval"):
        open_detection("voc2012", "test", root=tmp_path)


@pytest.mark.parametrize("name", ["coco", "voc2007"])
def test_masks_are_as_the_row_says(tmp_path: Path, name: str) -> None:
    write_coco(tmp_path, coco_content())
    write_voc(tmp_path, {"000001": voc_xml(40, 30, [("dog", 0, [3, 4, 20, 30])])})
    masks = SETS[name].kinds["detection"].masks
    target: dict[str, Any] = open_detection(name, "train", root=tmp_path)[0, 0][1]
    assert ("masks" in target) == masks == (name == "coco")
