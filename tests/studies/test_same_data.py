"""The runs of a study are of the same images and the same beginning; what is not is refused in a line."""

import json
import shutil
from pathlib import Path

import pytest
from noise_photos import write_photos

from attneck import cli
from attneck.errors import UserError
from attneck.runs.train import train
from attneck.studies import report
from attneck.studies.jobs import run_all
from attneck.studies.results import collect
from attneck.studies.study import Cell, Study, cells, load_study

STUDY = {
    "recipe": "relations",
    "fields": {
        "data.name": "folder",
        "data.problem": None,
        "data.train_size": None,
        "data.val_size": None,
        "data.image_size": 16,
        "epochs": 1,
        "batch": 4,
        "pictures": False,
        "schedule.warmup_epochs": 0,
    },
    "variants": {"plain": {}, "se": {"model.options.se": True}},
    "baseline": "plain",
    "seeds": [0],
}


def cats_and_dogs(root: Path, held_out: int) -> None:
    write_photos(root, {"train": 2, "val": held_out}, ("cats", "dogs"), 16, "png")


def made(root: Path, photos: str, out: str = "out") -> list[Cell]:
    return cells(load_study(str(root / "s.yaml")), root / out, {"data.root": str(root / photos)})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both runs on the photographs in `a`; `b` has another one held out, and `moved` is a copy of `a`."""
    root = tmp_path_factory.mktemp("root")
    (root / "s.yaml").write_text(json.dumps(STUDY))
    cats_and_dogs(root / "a", 1)
    cats_and_dogs(root / "b", 2)
    shutil.copytree(root / "a", root / "moved")
    for cell in made(root, "a"):
        train(cell.recipe, cell.folder)
    return root


def said(root: Path, out: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that refuses."""
    capsys.readouterr()
    assert cli.main(["study", str(root / "s.yaml"), "--out", str(out), *words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_runs_of_other_data_than_is_given_are_refused(root: Path, tmp_path: Path, capsys) -> None:
    a, b, gone = (str(root / name) for name in ("a", "b", "gone"))
    for mode in ([], ["--list"], ["--report", "--to", str(tmp_path / "report")]):
        error = said(root, root / "out", capsys, *mode, "--data.root", b)
        assert "held-out images: 1 more in 'cats'" in error
        assert f"was trained on the data in {a}, and that in {b} is other data" in error
        assert f"give --data.root {a}, or give another --out" in error
    assert "cannot be compared" in (error := said(root, root / "out", capsys, "--list", "--data.root", gone))
    assert f"give --data.root {a}" in error
    assert not (tmp_path / "report").exists()
    for photos in ("a", "moved"):  # the same images elsewhere
        rows = collect(load_study(str(root / "s.yaml")), made(root, photos))
        assert [len(row.scores) for row in rows] == [1, 1]


def test_runs_of_other_data_than_each_other_are_refused(root: Path, tmp_path: Path, capsys) -> None:
    """The held-out images are replaced where they lie, between two runs."""
    photos = tmp_path / "photos"
    shutil.copytree(root / "a", photos)
    one = load_study(str(root / "s.yaml"))
    plain, se = cells(one, tmp_path / "out", {"data.root": str(photos)})
    train(plain.recipe, plain.folder)
    shutil.copy(photos / "val/cats/cats_0.png", photos / "val/cats/cats_1.png")
    error = said(root, tmp_path / "out", capsys, "--data.root", str(photos))  # before it trains
    assert f"and that in {photos} now is other data (held-out images: 1 more in 'cats'" in error
    assert "put the images back, or give another --out" in error
    assert not se.folder.exists()
    train(se.recipe, se.folder)
    with pytest.raises(UserError, match=r"se/seed-0 was trained on other data than .*1 more in 'cats'"):
        collect(one, [plain, se])


def test_images_that_are_not_there_are_said_at_once(root: Path, tmp_path: Path, capsys) -> None:
    error = said(root, tmp_path / "out", capsys, "--data.root", str(tmp_path / "nowhere"))
    assert f"{tmp_path / 'nowhere'} is not a folder" in error
    assert not (tmp_path / "out").exists()


def test_variants_may_have_images_of_their_own() -> None:
    few = {"data.train_size": 2}
    one = Study.model_validate(
        STUDY
        | {
            "problems": {"a": {}, "b": {"data.root": "b"}},
            "variants": {"plain": {}, "few": few, "crop": {"data.augment": "inception"}},
        }
    )
    assert one.images("a", "plain") == one.images("a", "crop")  # the same, seen otherwise
    assert len({one.images(problem, variant) for problem in "ab" for variant in ("plain", "few")}) == 4


@pytest.mark.parametrize(
    ("fields", "different"),
    [
        ({"model.weights": "other.pth"}, "model.weights: None → other.pth"),
        ({"patience": 1}, "patience: None → 1"),
    ],
)
def test_runs_from_other_weights_or_of_other_patience_are_refused(
    root: Path, fields: dict, different: str
) -> None:
    one = load_study(str(root / "s.yaml"))
    other = cells(one, root / "out", {"data.root": str(root / "a"), **fields})
    with pytest.raises(UserError, match=different):
        run_all(other, 1)
    with pytest.raises(UserError, match=different):
        collect(one, other)


def test_reports_of_other_data_are_refused(root: Path, tmp_path: Path, capsys) -> None:
    """Also where no variant has runs both there and here."""
    one, file = load_study(str(root / "s.yaml")), tmp_path / "report.json"
    there = made(root, "b", "there")
    train(there[0].recipe, there[0].folder)
    document = report.document(report.Results(one, "s", collect(one, there), 1))
    file.write_text(json.dumps(document))
    shutil.copytree(root / "out/se", tmp_path / "se")
    given = ["--data.root", str(root / "a"), "--list", "--with", str(file)]
    error = said(root, tmp_path, capsys, *given)
    assert "its runs of plain are of other data than those of se here (held-out: 4 images, " in error
    # A report of before does not tell, and nothing is compared.
    for row in document["rows"]:
        del row["data"]
    for field in ("model.weights", "patience"):
        del document["recipe"][field]
    file.write_text(json.dumps(document))
    study = ["study", str(root / "s.yaml"), *given, "--out"]
    assert cli.main([*study, str(tmp_path)]) == 0
    assert cli.main([*study, str(tmp_path / "new"), "--patience", "1"]) == 0


def test_variants_of_other_held_out_images_have_no_difference(root: Path, tmp_path: Path) -> None:
    """And costs that differ from problem to problem are all told."""
    study = Study.model_validate(
        STUDY
        | {
            "fields": STUDY["fields"] | {"data.root": str(root / "a"), "batch": 2},  # type: ignore[operator]
            "variants": {"plain": {}, "other": {"data.root": str(root / "b")}},
        }
    )
    for cell in cells(study, tmp_path):
        train(cell.recipe, cell.folder)
    head, body = report.table(study, collect(study, cells(study, tmp_path)))
    assert body[1][head.index("verdict")] == "other held-out images"
    assert body[1][head.index("difference to plain [95 %]")] == ""


def test_nothing_is_found_of_images_that_were_replaced(root: Path, tmp_path: Path, capsys) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(root / "a", photos)
    content = STUDY | {"sizes": [24], "variants": {"plain": {}}}
    (tmp_path / "s.yaml").write_text(json.dumps(content))
    study = load_study(str(tmp_path / "s.yaml"))
    (cell,) = cells(study, tmp_path / "out", {"data.root": str(photos)})
    train(cell.recipe, cell.folder)
    shutil.copy(photos / "val/cats/cats_0.png", photos / "val/cats/cats_1.png")
    words = ["study", str(tmp_path / "s.yaml"), "--report", "--out", str(tmp_path / "out")]
    words += ["--data.root", str(photos)]
    assert cli.main(words) == 0
    said = capsys.readouterr().err
    assert "not scored at other sizes, and no distances of attention: " in said
    assert "is other data (held-out images: 1 more in 'cats')" in said
    assert not (cell.folder / "sizes.json").exists()
    (photos / "val/cats/cats_1.png").unlink()
    assert cli.main(words) == 0
    assert (cell.folder / "sizes.json").exists()
