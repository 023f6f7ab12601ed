"""Differences as a picture: where they lie, and which are sure."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from attneck.explain import differences
from attneck.explain.differences import Line

PARTS = {
    "marks": [Line("bot", {"": (2.0, (1.0, 3.0))}, "97"), Line("bam", {"": (-1.0, (-3.0, 1.0))}, "94")],
    "": [Line("one seed", {"": (5.0, None)}, "99")],
}


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Figure:
    found: list[Figure] = []
    monkeypatch.setattr(differences, "save", lambda figure, path, **options: found.append(figure))
    differences.draw(PARTS, tmp_path / "it.png", "points", "score")
    return found[0]


def test_a_marker_a_difference_and_its_interval_as_a_line(drawn: Figure) -> None:
    lines = [(*line.get_xdata(),) for line in drawn.axes[0].lines]
    assert lines[:-1] == [(2.0,), (1.0, 3.0), (-1.0,), (-3.0, 1.0), (5.0,)]  # then the one at 0


def test_only_what_is_sure_is_filled(drawn: Figure) -> None:
    markers = [line for line in drawn.axes[0].lines if len(line.get_xdata()) == 1]
    assert [line.get_markerfacecolor() == "white" for line in markers] == [False, True, True]


def test_lines_stand_under_their_headings(drawn: Figure) -> None:
    axes = drawn.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["bot", "bam", "one seed"]
    assert [*axes.get_yticks()] == [1, 2, 3]
    assert [text.get_text() for text in axes.texts] == ["score", "marks", "97", "94", "99"]
