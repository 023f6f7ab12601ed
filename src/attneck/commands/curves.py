"""attneck curves: runs side by side, by epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from attneck.commands.arguments import call
from attneck.commands.output_file import picture_file
from attneck.errors import UserError


def draw(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional],
    /,
    out: Path | None = None,
) -> None:
    """Loss and top-1 error of runs by epoch, or AP of detectors, in one picture.

    Args:
        runs: the runs' folders.
        out: the picture: .png, .svg or .pdf; if not given curves.png, here, with a number where that is
            taken.
    """
    if not runs:
        raise UserError("no run given: attneck curves RUN…")
    file = picture_file("--out", out, "curves")

    from attneck.explain.figures import curves
    from attneck.runs.scored_on import hold_out

    curves(list(runs), file, held_out=hold_out(runs))
    print(f"wrote {file}")


def main(words: list[str]) -> None:
    """Parse and run."""
    call(draw, "attneck curves", words)
