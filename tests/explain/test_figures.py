"""Curves: a picture of runs, and a line where there is none to draw."""

import json

import pytest
from matplotlib.figure import Figure

from attneck import cli
from attneck.explain import figures


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


def test_curves_take_no_file_s_place(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "curves.png").write_bytes(b"mine")
    assert cli.main(["curves", str(run)]) == 0
    assert "wrote curves-2.png" in capsys.readouterr().out
    assert (tmp_path / "curves.png").read_bytes() == b"mine"
    assert (tmp_path / "curves-2.png").read_bytes().startswith(b"\x89PNG")


def test_the_held_out_error_stands_in_the_legend(run, tmp_path):
    picture = tmp_path / "curves.svg"
    assert cli.main(["curves", str(run), "--out", str(picture)]) == 0
    assert "run: 76.0" in picture.read_text()


def drawn(records: list[list[dict]], tmp_path, monkeypatch) -> Figure:
    """The figure of runs with these records."""
    folders = []
    for number, rows in enumerate(records):
        folders.append(tmp_path / f"run{number}")
        folders[-1].mkdir()
        (folders[-1] / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = []
    monkeypatch.setattr(figures, "Figure", lambda **options: made.append(Figure(**options)) or made[0])
    figures.curves(folders, tmp_path / "curves.png")
    return made[0]


def test_a_run_s_name_is_shown_whatever_it_is(run, tmp_path, monkeypatch):
    named = [run.rename(tmp_path / "_a"), tmp_path / "$b\\c$\udcff"]
    named[1].mkdir()
    (named[1] / "metrics.jsonl").write_bytes((named[0] / "metrics.jsonl").read_bytes())
    made = []
    monkeypatch.setattr(figures, "Figure", lambda **options: made.append(Figure(**options)) or made[0])
    figures.curves(named, tmp_path / "curves.png")
    said = [text.get_text() for text in made[0].axes[1].get_legend().get_texts()]
    assert said == [" _a: 76.0", r"\$b\c\$\udcff: 76.0"]


def test_many_runs_are_told_apart_beside_the_lines(tmp_path, monkeypatch):
    """Where a colour comes again the mark is another; kinds of lines that any run has are in the key."""
    one = [{"epoch": n, "step": n, "train_loss": 1, "val_loss": 2, "val_top1": 9} for n in (1, 2)]
    averaged = [record | {"ema_loss": 2} for record in one]
    figure = drawn([*[one] * 11, averaged], tmp_path, monkeypatch)
    for axes in figure.axes:
        looks = {(line.get_color(), line.get_marker()) for line in axes.lines if line.get_linestyle() == "-"}
        assert len(looks) >= 12
        legend = axes.get_legend()
        assert len(legend.get_texts()) == 12
        figure.canvas.draw()
        assert legend.get_window_extent().y1 < axes.get_window_extent().y0
    assert "averaged weights" in [text.get_text() for text in figure.legends[0].get_texts()]


def detector(epoch: int, **more: float) -> dict:
    return {"epoch": epoch, "step": epoch, "train_loss": 1.5, "val_box_AP": 77.3502, **more}


def test_a_detector_s_masks_have_a_panel(tmp_path, monkeypatch):
    masks = [detector(epoch, val_mask_AP=69.0006) for epoch in (1, 2)]
    figure = drawn([masks, [detector(epoch) for epoch in (1, 2)]], tmp_path, monkeypatch)
    panels = {
        axes.get_title(): [text.get_text() for text in axes.get_legend().get_texts()] for axes in figure.axes
    }
    assert panels == {
        "Loss": ["run0: 1.50", "run1: 1.50"],
        "Box AP": ["run0: 77.4", "run1: 77.4"],
        "Mask AP": ["run0: 69.0"],
    }
    assert "The loss is of training images" in figure.get_supxlabel()


def test_one_record_is_seen_and_epochs_are_whole(tmp_path, monkeypatch):
    row = {
        "epoch": 1,
        "step": 1,
        "train_loss": 3.0,
        "val_loss": 4.0,
        "ema_loss": 2.0,
        "val_top1": 50.0,
        "ema_top1": 60.0,
    }
    figure = drawn([[row]], tmp_path, monkeypatch)
    loss = figure.axes[0]
    lines = [line for line in loss.get_lines() if len(line.get_xdata())]
    assert len({(line.get_marker(), line.get_markerfacecolor()) for line in lines}) == 3
    assert all(line.get_markevery() == slice(None) for line in lines)
    assert all(float(tick).is_integer() for tick in loss.get_xticks())
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "training",
        "held out",
        "averaged weights",
    ]
    assert "over-fits" in figure.get_supxlabel()
    assert loss.get_legend().get_texts()[0].get_text() == "run0: 4.00, 2.00 averaged weights"


def test_images_that_were_trained_on_are_not_called_held_out(run, tmp_path):
    (run / "recipe.yaml").write_text("data: {val_split: train}")
    picture = tmp_path / "curves.svg"
    assert cli.main(["curves", str(run), "--out", str(picture)]) == 0
    assert "held" not in picture.read_text().lower()
    (run / "recipe.yaml").write_text("data: {name: shapes}")
    assert cli.main(["curves", str(run), "--out", str(picture)]) == 0
    assert "held out" in picture.read_text().lower()


def test_many_records_are_a_line(tmp_path, monkeypatch):
    rows = [
        {"epoch": n, "step": n, "train_loss": 3 / n, "val_loss": 3 / n, "val_top1": n} for n in range(1, 61)
    ]
    for line in drawn([rows], tmp_path, monkeypatch).axes[0].get_lines()[:2]:
        assert line.get_markevery() == []


@pytest.mark.parametrize(
    ("value", "said"), [(77.3502, "77.4"), (1.17, "1.17"), (0.03119, "0.0312"), (100, "100"), (0, "0.00")]
)
def test_three_digits(value, said):
    assert figures.significant(value) == said


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


def test_a_study_has_a_panel_a_variant_with_the_baseline_in_each(tmp_path, monkeypatch):
    from attneck.explain import bands

    made = []
    monkeypatch.setattr(bands, "save", lambda figure, path, **_: made.append(figure))
    seeds = {0: [(10, 50.0), (20, 60.0)], 1: [(10, 54.0), (20, 62.0)]}
    better = {0: [(10, 58.0), (20, 66.0)]}
    problems = {
        "easy": {"plain": seeds, "bam": better, "a_name_that_is_much_too_long": better, "none": {}},
        "hard": {"plain": seeds, "bam": {}, "a_name_that_is_much_too_long": better},
    }
    bands.draw(problems, "top1", tmp_path / "curves.png", "plain", threshold=90.0)
    panels = made[0].axes
    assert [axes.get_title() for axes in panels] == ["bam", "a_name_that_is_much_\ntoo_long", "", ""]
    for axes, variant in zip(panels, (better, better, {}, better), strict=True):
        baseline, line = axes.lines[:2]
        assert [*baseline.get_ydata()] == [52, 61]
        assert [*line.get_ydata()] == [score for _, score in variant.get(0, [])]
        assert axes.get_ylim()[1] < 70, "no room is made for a threshold that is far"
    ways = {"": {"plain": better, "plain_anew": seeds, "bam": seeds, "bam_anew": seeds}}
    bands.draw(ways, "top1", tmp_path / "sizes.png", "plain", likewise={"bam_anew": "plain_anew"})
    beside = {axes.get_title(): [*axes.lines[0].get_ydata()] for axes in made[1].axes}
    assert beside == {"plain_anew": [58, 66], "bam": [58, 66], "bam_anew": [52, 61]}


def test_a_small_error_has_two_decimals_and_says_that_it_is_the_last(tmp_path, monkeypatch):
    rows = [{"epoch": 1, "step": 1, "val_loss": 0.0167, "val_top1": 98.0}]
    rows.append({"epoch": 2, "step": 2, "val_loss": 0.0157, "val_top1": 99.5})
    for axes, words in zip(drawn([rows], tmp_path, monkeypatch).axes, ("0.0157", "0.50"), strict=True):
        legend = axes.get_legend()
        assert legend.get_title().get_text() == "last value"
        assert [text.get_text() for text in legend.get_texts()] == [f"run0: {words}"]
