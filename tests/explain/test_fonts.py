"""Letters that matplotlib's own font lacks: drawn by a font that is installed, or said."""

import io
import warnings
from pathlib import Path

import matplotlib.font_manager
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.figure import Figure
from PIL import Image

from attneck.explain import fonts
from attneck.explain.contact_sheet import Tile, pages, small
from attneck.explain.detections import draw


def font_of(letters: str, file: Path) -> str:
    """A font whose letters are all one large black square."""
    names = [".notdef", *(f"letter{number}" for number in range(len(letters)))]
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 900), (900, 900), (900, 0)):
        pen.lineTo(corner)
    pen.closePath()
    built = FontBuilder(1000)
    built.setupGlyphOrder(names)
    built.setupCharacterMap({ord(letter): name for letter, name in zip(letters, names[1:], strict=True)})
    built.setupGlyf(dict.fromkeys(names, pen.glyph()))
    built.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    built.setupHorizontalHeader(ascent=900, descent=-100)
    built.setupNameTable({"familyName": file.stem, "styleName": "Regular"})
    built.setupOS2()
    built.setupPost()
    built.save(file)
    return str(file)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The fonts of this machine, for a test: to be filled."""
    found: list[str] = []
    monkeypatch.setattr(matplotlib.font_manager, "findSystemFonts", lambda: found)
    monkeypatch.setattr(fonts, "_told", set())
    for known in (fonts._fonts, fonts._installed):
        known.cache_clear()
    yield found
    for known in (fonts._fonts, fonts._installed):
        known.cache_clear()


def figure(words: str) -> Figure:
    made = Figure(figsize=(3, 1))
    made.text(0.1, 0.2, words, fontsize=40, parse_math=False)
    return made


def pixels(words: str) -> np.ndarray:
    file = io.BytesIO()
    fonts.savefig(figure(words), file, format="png", dpi=50)
    return np.array(Image.open(file).convert("L"))


def test_a_figure_draws_what_an_installed_font_has(installed, tmp_path, capsys) -> None:
    installed += [font_of("犬", tmp_path / "Dog.ttf"), font_of("猫鳥", tmp_path / "Others.ttf")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dog, both = pixels("犬"), pixels("a犬猫")
    assert (dog < 64).sum() > 400, "the black square"
    assert (both < 64).sum() > 1.8 * (dog < 64).sum()
    assert capsys.readouterr().err == ""


def test_what_no_font_has_is_said_once_and_drawn_as_a_box(installed, capsys) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels("犬")
        pixels("犬")
        pixels("鳥")
    said = capsys.readouterr().err
    assert said.count("no font that is installed has 犬: pictures show boxes in place of these") == 1
    assert said.count("\n") == 1


def test_ascii_and_accents_ask_for_no_font(installed, monkeypatch) -> None:
    monkeypatch.setattr(matplotlib.font_manager, "findSystemFonts", None)  # would fail if it were called
    pixels("dog")
    pixels("chien, Hündin, собака, σκύλος, →×²")
    assert fonts.fitting("собака", 12).path == fonts.OWN


def test_a_font_that_is_broken_is_passed_over(installed, tmp_path) -> None:
    (tmp_path / "A.ttf").write_bytes(b"no font")
    installed += [str(tmp_path / "A.ttf"), font_of("犬", tmp_path / "Dog.ttf")]
    assert fonts.fitting("犬 dog", 12).path == str(tmp_path / "Dog.ttf")


def test_contact_sheets_and_detections_have_such_letters_too(installed, tmp_path) -> None:
    installed.append(font_of("犬", tmp_path / "Dog.ttf"))
    white = Image.new("RGB", (100, 100), "white")

    def black(picture: Image.Image) -> int:
        return int((np.array(picture.convert("L")) < 40).sum())

    def page(words: str) -> Image.Image:
        return Image.open(io.BytesIO(next(pages([Tile(small(white), (words,))], "title"))))

    assert black(page("犬" * 4)) > black(page(" " * 4)) + 200
    row = {"category": "犬" * 4, "bbox": [10, 10, 50, 50], "score": 0.5}
    known = row | {"category": "...."}
    inked = [np.array(draw(white, [one]).convert("L"), dtype=int) for one in (row, known)]
    assert (abs(inked[0] - inked[1]) > 60).sum() > 300
