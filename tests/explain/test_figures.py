"""Curves: a picture of runs, and a line where there is none to draw."""

import json

import pytest

from attneck import cli


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    records = [
        {
            "epoch": n,
            "step": n,
            "train_loss": 3 / n,
            "val_loss": 3.1 / n,
            "train_top1": 9 * n,
            "val_top1": 8 * n,
        }
        for n in (1, 2, 3)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


@pytest.mark.parametrize(("kind", "opening"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_curves_are_drawn(run, tmp_path, kind, opening):
    picture = tmp_path / f"curves.{kind}"
    assert cli.main(["curves", str(run), str(run), "--out", str(picture)]) == 0
    assert picture.read_bytes().startswith(opening)


def test_the_held_out_error_stands_in_the_legend(run, tmp_path):
    picture = tmp_path / "curves.svg"
    import matplotlib as mpl

    with mpl.rc_context({"svg.fonttype": "none"}):
        assert cli.main(["curves", str(run), "--out", str(picture)]) == 0
    assert "run: 76.00" in picture.read_text()


@pytest.mark.parametrize(
    ("words", "says"),
    [(["nowhere"], "no metrics.jsonl there"), ([], "no run given"), (["--out", "x"], "no run given")],
)
def test_nothing_to_draw_is_one_line(words, says, capsys):
    assert cli.main(["curves", *words]) == 2
    assert says in capsys.readouterr().err


def test_a_picture_of_a_kind_that_there_is_not(run, capsys):
    assert cli.main(["curves", str(run), "--out", "curves.doc"]) == 2
    assert "wanted a file that ends in .png, .svg or .pdf" in capsys.readouterr().err
