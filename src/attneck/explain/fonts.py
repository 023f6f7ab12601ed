"""Fonts of a picture's words: DejaVu Sans, which comes with matplotlib; what it lacks from installed ones."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from PIL import ImageFont

from attneck.errors import say

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OWN = str(Path(mpl.get_data_path(), "fonts/ttf/DejaVuSans.ttf"))
ANY_SIZE = 10, 72
"""Points, and dots an inch: fonts of pixels alone, such as coloured emoji, have no such size."""


def fitting(words: str, size: int) -> ImageFont.FreeTypeFont:
    """For Pillow, of `size` pixels: DejaVu Sans, or the font that has the most letters of what it lacks."""
    others = _fonts(_lacking(words))
    return _opened(others[0] if others else OWN, size)


def savefig(figure: Figure, file: Any, **options: Any) -> None:
    """`figure.savefig(file, **options)`, where every letter is drawn that a font installed here has."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if others := _fonts(_lacking(text.get_text())):
            text.set_fontfamily([*text.get_fontfamily(), *map(_family, others)])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # said by `_fonts`
        figure.savefig(file, **options)


def _lacking(words: str) -> frozenset[str]:
    """The letters that DejaVu Sans does not have."""
    if words.isascii():  # most are, and need no look into the font
        return frozenset()
    return frozenset(letter for letter in words if letter.isprintable() and ord(letter) not in _letters(OWN))


@cache
def _fonts(letters: frozenset[str]) -> tuple[str, ...]:
    """A few installed fonts that have these letters, the one with the most first; what none has is said."""
    left, found = {ord(letter) for letter in letters}, []
    while left:
        best = max(_installed(), key=lambda font: len(left & _letters(font)), default=None)
        if best is None or not left & _letters(best):
            _say_boxes(" ".join(sorted(map(chr, left))[:10]))
            break
        left -= _letters(best)
        found.append(best)
    return tuple(found)


@cache
def _installed() -> list[str]:
    from matplotlib import font_manager

    return sorted(font_manager.findSystemFonts())


_told: set[str] = set()
"""Letters that no font has, once that is said: of a hundred names the first is enough."""


def _say_boxes(letters: str) -> None:
    if not _told:
        say(
            f"no font that is installed has {letters}: pictures show boxes in place of these, and of others "
            "that none has; install one that has, such as Noto Sans of that script"
        )
    _told.add(letters)


@cache
def _family(font: str) -> str:
    """What matplotlib calls a font's file, which it knows from then on."""
    from matplotlib import font_manager

    font_manager.fontManager.addfont(font)
    return font_manager.FontProperties(fname=font).get_name()


@cache
def _letters(font: str) -> frozenset[int]:
    """The letters of a font's file; of one that cannot be drawn in any size, none."""
    from matplotlib.ft2font import FT2Font

    try:
        opened = FT2Font(font)
        opened.set_size(*ANY_SIZE)
        return frozenset(opened.get_charmap())
    except (RuntimeError, OSError):
        return frozenset()


@cache
def _opened(font: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font, size)
