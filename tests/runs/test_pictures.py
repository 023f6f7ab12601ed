"""A run ends with its pictures: they change no bit, and nothing that fails there ends the run."""

import json

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from PIL import Image
from small_run import thin_mask_rcnn

from attneck import cli
from attneck.explain.confusion import confusion_picture
from attneck.explain.pr_curves import pr_picture
from attneck.runs import pictures, snapshots
from attneck.runs import train as runs
from attneck.runs.run import Run
from attneck.runs.scored_on import HELD_OUT, SAME_SPLIT, TRAINED_ON, scored_on
from attneck.tasks.classification import Classification
from attneck.training.recipe import Recipe
from attneck.training.recipe_file import load_recipe

CLASSIFIER = {
    "model": {"name": "cifar_resnet20", "options": {"depths": [1, 1, 1]}},
    "data": {"name": "shapes", "image_size": 24, "train_size": 32, "val_size": 60},
    "batch": 8,
    "ema": 0.5,
}
DETECTOR = {
    "model": thin_mask_rcnn(proposals=20),
    "data": {"name": "shapes", "image_size": 96, "train_size": 8, "val_size": 8, "val_split": "train"},
    "batch": 4,
}
SHOWN = {"classifier": "confusion.png", "detector": "pr-curves.png"}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Runs with their pictures, and what is on each page of tiles."""
    from attneck.explain import contact_sheet

    place, tiles = tmp_path_factory.mktemp("runs"), []
    pages = contact_sheet.pages

    def spy(found, *words):
        tiles.append((found, *words))
        return pages(found, *words)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "draw_pictures", DRAW)
        patch.setattr(snapshots.Snapshots, "take", TAKE)
        patch.setattr(contact_sheet, "pages", spy)
        for name, content in (("classifier", CLASSIFIER), ("detector", DETECTOR)):
            runs.train(Recipe.model_validate(content), place / name)
    return place, dict(zip(("classifier", "detector"), tiles, strict=True))


DRAW, TAKE = pictures.draw_pictures, snapshots.Snapshots.take


@pytest.mark.parametrize("kind", SHOWN)
def test_a_run_ends_with_its_pictures(drawn, kind):
    place, _ = drawn
    files = sorted((place / kind / "pictures").iterdir())
    assert [file.name for file in files] == sorted(["curves.png", "predictions.png", SHOWN[kind]])
    for file in files:
        with Image.open(file) as picture:
            assert len(picture.convert("L").getcolors()) > 20
    report = (place / kind / "report.html").read_text()
    if kind == "detector":
        assert "What is there, and what was found" in report
        assert ": found, 0.5 or surer" in report
        assert "was taken for" not in report
        assert 'alt="image 1, step 2: MHSA ' in report
    else:
        assert "The network has no BAM and no MHSA" in report
        assert "was taken for" in report
    assert len(report) < 2 << 20


def test_the_page_shows_what_eval_finds(drawn):
    place, tiles = drawn
    found, title, *_ = tiles["classifier"]
    known = Run(place / "classifier")
    confusion = known.evaluate()["ema"].confusion
    assert [tile.lines for tile in found] == [
        (f"{confusion.classes[one.predicted]} {one.score:.2f}", f"is {confusion.classes[one.label]}")
        for one in confusion.mistakes[: pictures.TILES]
    ]
    assert "60 held-out images" not in title
    assert "held-out images" in title
    assert tiles["detector"][1].endswith("images that it was trained on")
    assert [tile.lines[0].partition(": ")[2] for tile in tiles["detector"][0]] == [
        "there",
        "found, 0.5 or surer",
    ] * 4


def test_they_change_no_bit_and_may_be_left_out(drawn, tmp_path, monkeypatch, capsys):
    place, _ = drawn
    monkeypatch.setattr(pictures, "draw_pictures", DRAW)
    without = runs.train(Recipe.model_validate(CLASSIFIER | {"pictures": False}), tmp_path / "run")
    assert not (tmp_path / "run/pictures").exists()
    assert without.weights == Run(place / "classifier").summary["weights"]
    # Another choice is no other run; one that has ended is scored once more, as if it had been killed then.
    capsys.readouterr()
    assert cli.main(["train", str(tmp_path / "run"), "--resume", "--pictures"]) == 0
    drawn_now = {file.name for file in (tmp_path / "run/pictures").iterdir()}
    assert drawn_now == {"curves.png", "predictions.png", "confusion.png"}
    assert f"report  {tmp_path}/run/report.html" in capsys.readouterr().out
    assert "--no-pictures" in options(capsys)


def options(capsys):
    assert cli.main(["train", "demo", "--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "fault", [MemoryError(), ValueError("two\nlines"), ModuleNotFoundError("matplotlib")]
)
def test_a_fault_there_is_a_line(tmp_path, monkeypatch, capsys, fault):
    from attneck.explain import figures

    def broken(*words, **options):
        raise fault

    monkeypatch.setattr(pictures, "draw_pictures", DRAW)
    monkeypatch.setattr(figures, "curves", broken)
    summary = runs.train(Recipe.model_validate(CLASSIFIER), tmp_path / "run")
    said = [line for line in capsys.readouterr().err.splitlines() if "pictures" in line]
    assert len(said) == 1
    assert "the run itself is whole" in said[0]
    assert json.loads((tmp_path / "run/summary.json").read_text())["weights"] == summary.weights


def test_the_summary_is_written_before(tmp_path, monkeypatch):
    """A signal that ends the program while it draws leaves a finished run."""
    seen = []
    monkeypatch.setattr(
        pictures,
        "draw_pictures",
        lambda folder, task, facts: seen.append((folder / "summary.json").is_file()),
    )
    runs.train(Recipe.model_validate(CLASSIFIER), tmp_path / "run")
    assert seen == [True]


def test_pictures_that_a_kill_left_out_are_drawn_on_resume(tmp_path, monkeypatch):
    """They are those of a run that was left alone, and one that has them is not scored again."""
    monkeypatch.setattr(pictures, "draw_pictures", lambda *words: None)
    recipe, run = Recipe.model_validate(CLASSIFIER), tmp_path / "run"
    runs.train(recipe, run)
    records = (run / "metrics.jsonl").read_bytes()
    monkeypatch.setattr(pictures, "draw_pictures", DRAW)
    runs.train(recipe, run, resume=True)
    runs.train(recipe, tmp_path / "whole")
    for name in ("scored.json", "pictures/confusion.png", "pictures/predictions.png"):
        assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert (run / "metrics.jsonl").read_bytes() == records
    (run / "metrics.jsonl").write_text("{")
    runs.train(recipe, run, resume=True)
    assert (run / "metrics.jsonl").read_bytes() == records
    monkeypatch.setattr(Classification, "report", lambda *words: pytest.fail("it was scored again"))
    runs.train(recipe, run, resume=True)


@pytest.mark.parametrize("count", [2, 1000])
def test_a_confusion_matrix_of_any_number_of_classes(count, monkeypatch):
    """Every class has its row where it belongs, in the colour of its share."""
    drawn = []
    imshow = Axes.imshow
    monkeypatch.setattr(
        Axes, "imshow", lambda axes, *a, **k: drawn.append((axes, a)) or imshow(axes, *a, **k)
    )
    counts = np.zeros((count, count), dtype=np.int64)
    np.fill_diagonal(counts, 5)
    counts[0] = 0
    counts[0, count - 1] = 5  # all of the first are taken for the last
    names = [f"\udcff$class_{number}^ with a name that does not end" for number in range(count)]
    import io

    picture = np.asarray(
        Image.open(io.BytesIO(confusion_picture(counts, names, "model $x$, 5 images"))).convert("RGB")
    )
    assert max(picture.shape[:2]) < 2000
    ((axes, (shares,)),) = drawn
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("is", "taken for")
    assert axes.yaxis_inverted()  # the first row is above
    np.testing.assert_array_equal(shares, counts / 5)
    blue = (np.abs(picture.astype(int) - (8, 48, 107)).sum(axis=2) < 6).sum()  # cells of a share of 1
    assert blue > 300 if count <= 100 else blue


def test_precision_by_recall_of_many_classes_or_none():
    from attneck.detection.precision_recall import Curve

    recall = np.linspace(0, 1, 11)
    rows = [Curve(f"$c{n}", n, n / 40, recall, 1 - recall) for n in range(30)]
    for curves in ({"boxes": rows, "masks": rows}, {"boxes": [Curve("a", 0, -1.0, recall[:0], recall[:0])]}):
        assert pr_picture(curves, "$t").startswith(b"\x89PNG")


def test_what_a_run_is_scored_on():
    for name, wanted in (
        ("demo", HELD_OUT),
        ("coco-1x", HELD_OUT),
        ("voc-ssd300", HELD_OUT),
        ("coco-overfit", SAME_SPLIT),
        ("voc-overfit", SAME_SPLIT),
    ):
        recipe = load_recipe(name)
        assert scored_on(recipe, {}) == wanted
        one, other = {"": [96, "a", "b"]}, {"": [96, "a", "c"]}
        assert scored_on(recipe, {"data": {"training": one, "held-out": one}}) == TRAINED_ON
        assert scored_on(recipe, {"data": {"training": one, "held-out": other}}) == wanted
    data = {"name": "voc2007", "train_split": "trainval", "val_split": "val"}
    assert scored_on(Recipe.model_validate({"data": data}), {}) == SAME_SPLIT


def test_eval_says_what_each_class_is_and_on_what(drawn, capsys, tmp_path):
    place, _ = drawn
    import csv

    assert cli.main(["eval", str(place / "classifier"), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[0].endswith("60 held-out images")
    confusion = Run(place / "classifier").evaluate()["ema"].confusion
    with (tmp_path / "out/per-class.csv").open() as file:
        rows = [*csv.DictReader(file)]
    for label, row in enumerate(rows):
        mine = confusion.predicted[confusion.labels == label]
        assert row["class"] == confusion.classes[label]
        assert [int(row["images"]), int(row["right"])] == [len(mine), (mine == label).sum()]
        assert float(row["accuracy"]) == pytest.approx(100 * (mine == label).mean(), abs=0.01)
        assert sum(line.startswith(row["class"] + " ") for line in said.splitlines()) >= 1
    with (tmp_path / "out/confusion.csv").open() as file:
        (_, *names), *matrix = csv.reader(file)
    assert names == confusion.classes
    assert np.array_equal(np.array([row[1:] for row in matrix], dtype=int), confusion.counts())
    label, other, times = confusion.pairs()[0]
    assert f"{names[label]} → {names[other]}" in said
    assert times == confusion.counts()[label, other]
    # A second one replaces nothing; what is there is not written to.
    assert cli.main(["eval", str(place / "classifier"), "--out", str(tmp_path / "out")]) == 2
    assert "nothing that is there is written to" in capsys.readouterr().err
    for number in ("", "-2"):
        assert cli.main(["eval", str(place / "classifier"), "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["files"][0] == str(place / f"classifier/evaluation{number}/per-class.csv")
    assert [row["class"] for row in document["classes"]] == names
    assert document["confused"][0] == [names[label], names[other], times]


def test_eval_of_a_detector_says_each_class_s_ap(drawn, capsys):
    place, _ = drawn
    assert cli.main(["eval", str(place / "detector")]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[0].endswith("8 images that it was trained on")
    assert "held" not in said
    assert "class" in said
    assert "AP_masks" in said
    assert (place / "detector/evaluation/pr-curves.png").is_file()
    curves = Run(place / "detector").evaluate()["val"]
    there = [100 * row.ap for row in curves.curves["boxes"] if row.objects]
    assert np.mean(there) == pytest.approx(100 * curves.details["bbox"]["AP"], abs=1e-6)
    assert torch.is_inference_mode_enabled() is False


def test_many_classes_are_shortened_on_the_screen():
    from attneck.commands.evaluation_files import told
    from attneck.tasks.confusion import Confusion
    from attneck.tasks.task import Evaluation

    labels = np.repeat(np.arange(1000), 2)
    predicted = labels.copy()
    predicted[:60] = (labels[:60] + 1) % 7
    names = [f"c{number}" for number in range(1001)]
    words = told(Evaluation(2000, {}, confusion=Confusion(names, labels, predicted, [])))
    assert len(words.splitlines()) < 40
    assert "classes with nothing to score: 1" in words
    assert max(map(len, words.splitlines())) <= 80
    huge = Confusion([str(n) for n in range(5000)], labels, predicted, [])
    assert huge.counts() is None
    assert huge.by_class()[0].images == 2
