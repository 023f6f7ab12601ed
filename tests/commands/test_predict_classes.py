"""attneck predict for classifiers: folders and patterns, known classes, the table and the contact sheets."""

import csv
import json
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from attneck import cli
from attneck.commands.class_predictions import ClassPredictions
from attneck.commands.given_images import given_images
from attneck.explain import contact_sheet
from attneck.runs import train as runs
from attneck.runs.run import Run
from attneck.tasks import open_task
from attneck.tasks.task import Sample
from attneck.training.distributed import World
from attneck.training.recipe import Recipe

COLOURS = {"blue": (20, 30, 220), "green": (20, 200, 40), "red": (220, 30, 20)}
OPTIONS = {"depths": [1, 1, 1]}


def photo(path, colour, size=(40, 30), number=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((*size[::-1], 3), colour, dtype=np.uint8)
    pixels[3 : 6 + number % 9, 4:9] = 255 - pixels[0, 0]
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Photos of three colours in `photos`, and a run on them; do not change them."""
    place = tmp_path_factory.mktemp("place")
    for name, colour in COLOURS.items():
        for number in range(20):
            photo(place / "photos" / name / f"{number}.png", colour, number=number)
    content = {
        "model": {"name": "cifar_resnet20", "options": OPTIONS},
        "data": {"name": "folder", "root": str(place / "photos"), "image_size": 16, "val_share": 0.4},
        "batch": 8,
        "epochs": 5,
    }
    summary = runs.train(Recipe.model_validate(content), place / "run")
    assert summary.scores["val_top1"] > 60
    return place


def predicted(place, out, *words):
    assert cli.main(["predict", str(place / "run"), *map(str, words), "--out", str(out)]) == 0
    with (out / "predictions.csv").open() as file:
        return json.loads((out / "predictions.json").read_text()), [*csv.DictReader(file)]


def test_a_folder_of_class_folders_is_scored(place, tmp_path, capsys):
    document, rows = predicted(place, tmp_path / "out", place / "photos", "--top-k", "2")
    said = capsys.readouterr().out
    images = document["images"]
    files = sorted(map(str, (place / "photos").rglob("*.png")))
    assert [image["file_name"] for image in images] == [row["file"] for row in rows] == files
    assert all(image["label"] == image["file_name"].split("/")[-2] for image in images)
    assert [row["label"] for row in rows] == [image["label"] for image in images]
    found = document["runs"][0]["detections"]
    assert [row["image_id"] for row in found] == sorted([*range(60)] * 2)
    assert [row["category"] for row in found[::2]] == [row["class_1"] for row in rows]
    assert float(rows[0]["score_2"]) == pytest.approx(found[1]["score"], abs=1e-6)
    right = sum(row["class_1"] == row["label"] for row in rows)
    assert f"\n{right} of 60 with a known class are right" in said


def test_an_answer_that_is_left_out_is_not_right():
    """Of a known class, none being as sure as --min-score; of an unknown one it is neither."""
    found = ClassPredictions(["run"], 1)
    for label, answer in (("a", "a"), ("a", None), ("b", "a"), (None, None)):
        truth = label and [{"category": label}]
        rows = [{"category": answer, "score": 0.9}] if answer else []
        found.add(Sample("x.png", Image.new("RGB", (8, 8)), truth), [rows])
    assert found.summary() == "1 of 3 with a known class are right (33.33 %), 1 below --min-score"
    assert [one.right for one in found.best.tiles()] == [False, False, None, True]


def test_held_out_images_are_scored_as_eval_scores_them(place, tmp_path, capsys):
    """They are resized and cut once, not twice."""
    held_out = Run(place / "run").data("val")
    assert [sample.image.size for sample in Run(place / "run").samples(2)] == [(40, 30)] * 2
    _, rows = predicted(place, tmp_path / "out", "--held-out", len(held_out))
    right = sum(row["class_1"] == row["label"] for row in rows)
    capsys.readouterr()
    assert cli.main(["eval", str(place / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["val_top1"] == pytest.approx(100 * right / len(held_out))
    assert [row["file"] for row in rows] == held_out.paths
    with torch.inference_mode():
        shares = Run(place / "run").model()(held_out[0, 3][0][None]).softmax(1)
    assert float(rows[3]["score_1"]) == pytest.approx(float(shares.max()), abs=1e-4)


def test_patterns_in_quotes_and_rotation(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photo(tmp_path / "sub/deep/one.png", COLOURS["red"])
    photo(tmp_path / "sub/two.png", COLOURS["red"])
    (tmp_path / "sub/notes.txt").write_text("x")
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "sub/turned.jpg", exif=exif)
    photo(tmp_path / "[1].png", COLOURS["red"])
    for words, wanted in (
        (["sub/**/*.png"], ["sub/deep/one.png", "sub/two.png"]),
        (["sub"], ["sub/deep/one.png", "sub/turned.jpg", "sub/two.png"]),
        (["su?/*.jpg", "[1].png"], ["sub/turned.jpg", "[1].png"]),
    ):
        document, rows = predicted(
            place, tmp_path / f"out{len(wanted)}{words[0][0:3]}".replace("?", "_"), *words
        )
        assert [row["file"] for row in rows] == wanted
        assert not any("label" in image for image in document["images"])
    (turned,) = [image for image in document["images"] if "turned" in image["file_name"]]
    assert (turned["width"], turned["height"]) == (20, 30)


def test_a_pattern_knows_the_classes_that_its_folder_has(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photo(tmp_path / "photos/red/day 0/one.png", COLOURS["red"])
    for word in ("photos", "photos/**/*.png", "*/red/**/*.png", tmp_path / "photos/**/*.png"):
        (image,) = given_images([Path(word)], None)
        assert image.label({"red", "green"}) == "red", word


@pytest.mark.parametrize(
    ("inside", "word"),
    [("photos/red", "."), ("photos/red", "one.png"), ("photos/red/deep", ".."), ("photos", ".")],
)
def test_a_class_is_known_from_within_its_folder(tmp_path, monkeypatch, inside, word):
    """Its name may have its letters taken apart, as macOS writes them."""
    for name in ("red", unicodedata.normalize("NFD", "grün")):
        photo(tmp_path / "photos" / name / "one.png", COLOURS["red"])
        (tmp_path / "photos" / name / "deep").mkdir()
        monkeypatch.chdir(tmp_path / inside.replace("red", name))
        labels = {image.label({"red", "grün"}) for image in given_images([Path(word)], None)}
        assert labels <= {"red", "grün"}
        assert unicodedata.normalize("NFC", name) in labels
    both = [unicodedata.normalize(form, "grün") for form in ("NFC", "NFD")]
    (image,) = given_images([tmp_path / "photos" / both[1] / "one.png"], None)
    assert image.label({*both}) == both[1]


def test_what_a_folder_has_beside_is_told(place, tmp_path, capsys):
    shutil.copytree(place / "photos/red", tmp_path / "some")
    (tmp_path / "some/notes.txt").write_text("x")
    (tmp_path / "some/.DS_Store").write_text("x")
    predicted(place, tmp_path / "out", tmp_path / "some")
    said = capsys.readouterr().err
    assert "some: notes.txt (images end in .jpeg " in said
    assert "1 hidden (.DS_Store)" in said
    assert said.count("\n") == 1


def test_the_surest_mistake_comes_first(place, tmp_path, monkeypatch):
    """A green photo in the folder of red ones; the sheet's first place has it, framed in red."""
    shutil.copytree(place / "photos", tmp_path / "photos")
    wrong = photo(tmp_path / "photos/red/wrong.png", COLOURS["green"])
    drawn = []
    monkeypatch.setattr(
        "attneck.explain.contact_sheet.pages", lambda tiles, title: drawn.append((tiles, title)) or []
    )
    _, rows = predicted(place, tmp_path / "out", tmp_path / "photos", "--beside", place / "run")
    ((tiles, title),) = drawn
    assert len(tiles) == 61
    mistakes = [row for row in rows[::2] if row["class_1"] != row["label"]]
    assert str(wrong) in [row["file"] for row in mistakes]
    assert [tile.right for tile in tiles] == [False] * len(mistakes) + [True] * (61 - len(mistakes))
    scores = [float(tile.lines[0].split()[-1]) for tile in tiles]
    assert scores[: len(mistakes)] == sorted(scores[: len(mistakes)], reverse=True)
    assert scores[len(mistakes) :] == sorted(scores[len(mistakes) :])
    assert tiles[0].lines[-1].startswith("is ")
    assert "61 images, the surest mistakes first" in title


def tile(value, right=None):
    image = Image.new("RGB", (300, 200), (value % 256, 0, 0))
    return contact_sheet.Tile(
        contact_sheet.small(image), ("a very long name of a class indeed $x$ 0.99", "是"), right
    )


def test_pages_are_bounded_and_hold_the_least_keys():
    best = contact_sheet.Best(10)
    keys = np.random.default_rng(0).permutation(1000)
    for key in keys.tolist():
        if best.wants((key // 2,)):
            best.add((key // 2,), tile(key))
    found = [one.image.getpixel((0, 0))[0] for one in best.tiles()]
    first = {key // 2: key for key in reversed(keys.tolist())}
    assert len(found) == 10
    assert [value // 2 for value in found] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert found[::2] == [first[number] for number in range(5)]  # of equal keys the first comes first


def test_a_page_shows_its_images_where_they_belong():
    side = contact_sheet.SIDE
    (page,) = contact_sheet.pages([tile(200, False), tile(100, True)], "title " * 100)
    import io

    picture = np.asarray(Image.open(io.BytesIO(page)).convert("RGB")).astype(int)
    for value, colour in ((200, (0xD5, 0x5E, 0x00)), (100, (0x00, 0x9E, 0x73))):
        rows, columns = np.nonzero((np.abs(picture - (value, 0, 0)) < 3).all(axis=2))
        assert columns.max() - columns.min() == side - 1
        assert rows.max() - rows.min() == side * 2 // 3 - 1
        assert (picture[rows.min() - 2, columns.min()] == colour).all()
    count = contact_sheet.COLUMNS * contact_sheet.ROWS
    assert len([*contact_sheet.pages([tile(1)] * (count + 1), "t")]) == 2
    assert not [*contact_sheet.pages([], "t")]


def test_the_confusion_is_that_of_every_image(place):
    known = Run(place / "run")
    task = open_task(known.recipe, World(0, 1, torch.device("cpu")))
    with torch.inference_mode():
        evaluation = task.report(known.model())
        images, labels = task.held_out.__getitems__([(0, i) for i in range(len(task.held_out))])
        predicted = known.model()(task.normalised(images)).argmax(1)
    confusion = evaluation.confusion
    wanted = np.zeros((3, 3), dtype=int)
    for label, other in zip(labels.tolist(), predicted.tolist(), strict=True):
        wanted[label, other] += 1
    np.testing.assert_array_equal(confusion.counts(), wanted)
    assert [row.right for row in confusion.by_class()] == np.diag(wanted).tolist()
    assert (
        sum(times for *_, times in confusion.pairs())
        == (labels != predicted).sum()
        == len(confusion.mistakes)
    )
    assert task.last is evaluation


def test_a_share_of_1_scores_all_whatever_size_the_run_was_scored_on(place, tmp_path, capsys):
    content = {
        "model": {"name": "cifar_resnet20", "options": OPTIONS},
        "data": {"name": "folder", "root": str(place / "photos"), "image_size": 16},
        "batch": 8,
        "epochs": 1,
    }
    content["data"] |= {"val_share": 0.4, "val_size": 6}
    runs.train(Recipe.model_validate(content), tmp_path / "run")
    capsys.readouterr()
    words = ["eval", str(tmp_path / "run"), "--data.root", str(place / "photos"), "--json"]
    for more, images in (([], 6), (["--data.val-share", "1"], 60)):
        assert cli.main([*words, *more]) == 0
        assert json.loads(capsys.readouterr().out)["images"] == images
