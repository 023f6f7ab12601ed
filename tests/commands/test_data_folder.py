"""attneck data check folder: every bad file, the classes, and a sheet as it is and as it is augmented."""

import json

import numpy as np
import pytest
from PIL import Image

from attneck import cli
from attneck.commands.data_sheet import draw_sheet
from attneck.data import open_dataset
from attneck.data.check_images import Reading
from attneck.explain import contact_sheet


@pytest.fixture
def root(tmp_path):
    """Two classes of other numbers of images, in train and val."""
    draw = np.random.default_rng(0)
    for split, name, count in (("train", "a", 9), ("train", "b", 5), ("val", "a", 3), ("val", "b", 2)):
        (tmp_path / "photos" / split / name).mkdir(parents=True)
        for number in range(count):
            pixels = draw.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / split / name / f"{number}.png")
    return tmp_path / "photos"


def test_every_bad_file_is_listed(root, capsys):
    bad = [root / "train/a/3.png", root / "train/b/0.png", root / "val/b/1.png"]
    bad[0].write_bytes(bad[0].read_bytes()[:200])
    bad[1].write_bytes(b"")
    bad[2].unlink()
    bad[2].symlink_to("nowhere")
    (root / "train/notes.txt").write_text("x")
    assert cli.main(["data", "check", "folder", "--root", str(root)]) == 2
    said = capsys.readouterr()
    listed = [line for line in said.out.splitlines() if "cannot read" in line]
    assert [str(path) in line for path, line in zip(bad, listed, strict=True)] == [True] * 3
    assert "folder train: 14 images, 2 classes, 2 that cannot be read" in said.out
    assert "not read in train: notes.txt" in said.err
    assert said.err.splitlines()[-1].startswith("attneck: folder: 3 images cannot be read, listed above")
    assert cli.main(["data", "check", "folder", "--data.root", str(root), "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert document["problems"] == listed
    assert document["train"]["by_class"] == {"a": 9, "b": 5}
    assert (document["train"]["left_out"], document["val"]["unreadable"]) == (1, 1)


def test_a_flat_folder_is_checked_by_its_share(root, capsys):
    flat = root / "train"
    assert cli.main(["data", "check", "folder", "--root", str(flat)]) == 2
    assert "--data.val-share 0.2" in capsys.readouterr().err
    assert cli.main(["data", "check", "folder", "--root", str(flat), "--val-share", "0.3", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["train"]["images"] + document["val"]["images"] == 14


def test_answers_come_in_the_files_order_from_many_threads(root, monkeypatch, recwarn):
    paths = [str(path) for path in sorted(root.rglob("*.png"))] * 30
    paths[100] = str(root / "none.png")
    monkeypatch.setattr("attneck.data.check_images.THREADS", 4)
    found = [*Reading(paths, "test")]
    assert len(found) == len(paths)
    assert [place for place, line in enumerate(found) if line] == [100]
    assert not recwarn.list


@pytest.mark.parametrize("how", ["as they are", "augmented"])
def test_the_sheet_shows_what_training_has(root, tmp_path, monkeypatch, capsys, how):
    drawn = []
    pages = contact_sheet.pages
    monkeypatch.setattr(
        contact_sheet, "pages", lambda tiles, title: drawn.append((tiles, title)) or pages(tiles, title)
    )
    (root / "train/a/3.png").write_bytes(b"no picture")
    sheet = tmp_path / "sheet.png"
    words = ["data", "check", "folder", "--root", str(root), "--sheet", str(sheet)]
    recipe = {"image_size": 64, "augment": "inception", "randaugment_layers": None}
    assert cli.main([*words, *["--augmented", "surgery"] * (how == "augmented")]) == 2  # the bad image
    with Image.open(sheet) as picture:
        assert picture.format == "PNG"
    ((tiles, title),) = drawn
    assert [tile.lines[0] for tile in tiles] == ["a"] * 8 + ["b"] * 5
    shown = "as they are" if how == "as they are" else "as surgery augments them (inception)"
    assert f"13 of 14 training images {shown}" in title
    if how == "augmented":
        images = open_dataset("folder", "train", root=root, **recipe)
        wanted = Image.fromarray(images.pixels([(0, 0)])[0])
    else:
        wanted = Image.open(root / "train/a/0.png")
    np.testing.assert_array_equal(np.asarray(tiles[0].image), np.asarray(contact_sheet.small(wanted)))
    capsys.readouterr()
    assert cli.main([*words]) == 2
    assert "is there already" in capsys.readouterr().err


def test_the_sheet_has_the_sizes_of_training_in_turn(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(contact_sheet, "pages", lambda tiles, title: drawn.append(tiles) or iter([b""]))
    monkeypatch.setattr(contact_sheet, "small", lambda image: image)
    data = {"name": "clear_shapes", "image_size": 32, "image_sizes": [24, 40]}
    (tmp_path / "mine.yaml").write_text(json.dumps({"model": {"name": "cifar_resnet20"}, "data": data}))
    words = ["--sheet", str(tmp_path / "sheet.png"), "--augmented", str(tmp_path / "mine.yaml")]
    assert cli.main(["data", "check", "clear_shapes", *words]) == 0
    (tiles,) = drawn
    assert {tile.image.size for tile in tiles[::2]} == {(24, 24)}
    assert {tile.image.size for tile in tiles[1::2]} == {(40, 40)}


def test_the_sheet_of_relations_has_the_recipe_s_own_problem(tmp_path, monkeypatch):
    asked = []

    def noted(name, split, **options):
        asked.append(options)
        raise InterruptedError

    monkeypatch.setattr("attneck.data.classification.open_dataset", noted)
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("data: {name: relations, problem: path}\n")
    with pytest.raises(InterruptedError):
        draw_sheet(tmp_path / "sheet.png", "relations", str(recipe), root=None)
    assert asked[0]["problem"] == "path"


REFUSED = {
    "no png": (["folder", "--sheet", "a.jpg"], "ends in .png"),
    "no folder": (["folder", "--sheet", "none/a.png"], "there is no folder"),
    "a sheet of objects": (["coco", "--sheet", "a.png"], "--sheet is of check, and of sets of classes"),
    "no sheet": (["folder", "--augmented", "surgery"], "--augmented is given without --sheet"),
    "another set's recipe": (
        ["folder", "--sheet", "a.png", "--augmented", "demo"],
        "is a recipe for clear_shapes",
    ),
    "a share of what is drawn": (["shapes", "--val-share", "0.2"], "--val-share is of folder"),
    "a share of nothing": (["folder", "--val-share", "0"], "give a share between 0 and 1"),
}


@pytest.mark.parametrize(
    "words", [["--md5", "0" * 32], ["--max-pixels", "5"], ["--no-masks"], ["--val-share", "0.2"]], ids="".join
)
def test_where_takes_nothing_of_check(words, capsys):
    assert cli.main(["data", "where", "folder", *words]) == 2
    assert capsys.readouterr().err == f"attneck: {words[0]} is of check: leave it out\n"


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_a_line(root, tmp_path, monkeypatch, capsys, case):
    """And what is said of the sheet before the images are read, which may take long."""
    monkeypatch.chdir(tmp_path)
    if "sheet" in case or "recipe" in case:
        monkeypatch.setattr("attneck.commands.data.read_folder", None)
    monkeypatch.setenv("ATTNECK_DATA", str(root))
    words, says = REFUSED[case]
    assert cli.main(["data", "check", *words]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert not (tmp_path / "a.png").exists()
