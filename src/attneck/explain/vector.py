"""A figure as a file: the same bytes for the same figure, in vectors where the kind of file has them."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from attneck.explain.fonts import savefig
from attneck.files import write_atomic

DATES = {".svg": "Date", ".pdf": "CreationDate"}
"""What each kind calls the day of its making, which is left out."""


def save(figure: Figure, path: Path, *, tight: bool = False, dpi: float = 150, as_text: bool = False) -> None:
    """Write `figure` to `path`, which ends in .svg, .pdf or .png.

    Args:
        tight: cut it to what is drawn.
        dpi: of a PNG, pixels an inch.
        as_text: an SVG's words stay words, which can be searched, in whatever font the reader has; else they
            are shapes, and look the same everywhere.

    Raises:
        NotWritten: what was there stays as it was.
    """
    kind, data = path.suffix.lower(), io.BytesIO()
    dates = {DATES[kind]: None} if kind in DATES else None
    words = "none" if as_text else "path"
    # pdf.fonttype 42: text that can be searched
    with mpl.rc_context({"svg.hashsalt": "attneck", "svg.fonttype": words, "pdf.fonttype": 42}):
        savefig(
            figure,
            data,
            format=kind.removeprefix("."),
            dpi=dpi,
            metadata=dates,
            bbox_inches="tight" if tight else None,
        )
    write_atomic(path, data.getvalue())
